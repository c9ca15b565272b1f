//! Flows: from packets to the bytes that each side sent, in order, and to what the protocols above say.
//!
//! An [`Inspector`] owns the flows of one worker. It takes packets, puts fragments and segments together as the
//! receiver would, finds the protocol, and tells a [`Watcher`] of transactions, anomalies, and flows that ended.
//! Everything it keeps has a cap, each cap a policy and a counter ([`Stats`]). Time is an argument: the capture's, or
//! the boot clock's.

mod app;
pub mod budget;
pub mod community_id;
pub mod config;
pub mod defrag;
mod entry;
mod expect;
mod fold;
mod history;
mod inspector;
mod limits;
pub mod reassembly;
mod stats;
mod table;
mod tcp;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

pub use app::Protocols;
pub use community_id::{community_id, community_id_of};
pub use inspector::Inspector;
pub use limits::{Checksums, Limits, SECOND_NS};
pub use stats::Stats;

pub use crate::packet::frame::Link;
use crate::packet::proto::{AppProto, Side, Told};

/// Which way a packet went, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It arrived.
    Ingress,
    /// It was sent, or forwarded out.
    Egress,
}

/// What is known of a packet beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketMeta {
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Index of the interface; of a capture file its number there.
    pub ifindex: u32,
    /// Which way it went; of a capture file always ingress.
    pub direction: Direction,
    /// Tags that are not in the frame any more because the kernel took them out, outer first; 0 for none.
    pub vlans: [u16; 2],
    /// The socket's cookie, 0 when there is none.
    pub socket_cookie: u64,
    /// The cgroup's id, 0 when there is none.
    pub cgroup_id: u64,
    /// Packets and bytes of the frame's flow and direction that were not handed over since the last one, because the
    /// flow's budget was spent or they found no room.
    pub unseen: (u64, u64),
}

/// How a TCP flow stands. UDP's are `New` until both sides sent, then `Established`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// One side was heard.
    New,
    /// Both were; of TCP: the handshake is complete.
    Established,
    /// Of TCP: a FIN or a RST was seen.
    Closed,
}

impl State {
    /// The word in EVE JSON and answers.
    pub const fn name(self) -> &'static str {
        match self {
            State::New => "new",
            State::Established => "established",
            State::Closed => "closed",
        }
    }
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Its packets closed it.
    Closed,
    /// It was silent for as long as its state allows.
    Timeout,
    /// Others needed its room.
    Evicted,
    /// The capture or the agent ended.
    Shutdown,
}

/// A flow as others see it.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Unique among the flows of a run, and the same in every run over the same capture.
    pub id: u64,
    /// IP protocol: 6, 17; others are counted and not inspected.
    pub protocol: u8,
    /// Who opened it, as far as that is known.
    pub client: SocketAddr,
    /// The other one.
    pub server: SocketAddr,
    /// VLAN tags, outer first; 0 for none.
    pub vlans: [u16; 2],
    /// Interface of its first packet.
    pub ifindex: u32,
    /// Direction of its first packet.
    pub direction: Direction,
    /// Time of its first packet, in nanoseconds since 1970.
    pub start_ns: u64,
    /// Time of its last packet.
    pub last_ns: u64,
    /// Packets by side, also those past the budget.
    pub packets: [u64; 2],
    /// Bytes of frames by side.
    pub bytes: [u64; 2],
    /// Whether packets of a side arrived, by side.
    pub arrived: [bool; 2],
    /// Whether packets of a side left.
    pub left: [bool; 2],
    /// Bytes that are missing in a side's stream.
    pub gap_bytes: [u64; 2],
    /// The protocol above, once it is known.
    pub app_proto: Option<AppProto>,
    /// How it stands.
    pub state: State,
    /// Flags of TCP that were seen, by side.
    pub tcp_flags: [u8; 2],
    /// The next byte that each side will send, for a reset; of TCP only.
    pub next_seq: [u32; 2],
    /// The first packet that was seen was not the first of the flow.
    pub is_midstream: bool,
    /// Both ends were heard, and of TCP each acknowledged what the other sends, which strangers who send in the name of
    /// one of them cannot do. What is seen of one direction only never is.
    pub is_answered: bool,
    /// Both sides have finished, in order and acknowledged, or another connection has its place: nothing more comes of
    /// it. A single FIN or reset does not say so.
    pub is_finished: bool,
    /// It was carried in a tunnel.
    pub is_tunnelled: bool,
    /// Its packets are blocked: it is not inspected any more.
    pub is_blocked: bool,
    /// Cookie of this host's socket, 0 when there is none.
    pub socket_cookie: u64,
    /// Its cgroup, 0 when there is none.
    pub cgroup_id: u64,
}

impl Flow {
    /// Ends of it that are this host's, as far as is known by the way that their packets went, each with the other one:
    /// one, none when it is forwarded, or both on the loopback interface.
    pub fn local_ends(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> + '_ {
        let is_local = |side: Side| {
            let (own, other) = (side as usize, side.other() as usize);
            self.left[own] || self.arrived[other] && !self.arrived[own]
        };
        let end = |side| if side == Side::Client { self.client } else { self.server };
        Side::BOTH.into_iter().filter(move |side| is_local(*side)).map(move |side| (end(side), end(side.other())))
    }
}

/// Something in packets or streams that no honest sender does, or that two receivers may read differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// What layer: `decode`, `stream` or `applayer`, as in Suricata's anomaly events.
    pub layer: &'static str,
    /// Its name, e.g. `tcp.overlap_conflict`.
    pub name: &'static str,
    /// When.
    pub time_ns: u64,
    /// Whose packet, if there is a flow.
    pub side: Option<Side>,
    /// How often it was seen in this flow since it was last told: repeats are folded.
    pub count: u64,
}

/// What a watcher wants done with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reaction {
    /// Nothing.
    GoOn,
    /// It is blocked now: inspect it no more.
    Blocked,
}

/// Who is told.
pub trait Watcher {
    /// A transaction of a flow is known, or done.
    fn transaction(&mut self, flow: &Flow, time_ns: u64, told: &Told) -> Reaction;

    /// Something is odd; without a flow when the packet could not be read that far.
    fn anomaly(&mut self, flow: Option<&Flow>, anomaly: &Anomaly);

    /// A packet of a flow came that is blocked: it was on its way, or the block does not hold any more. Says whether the
    /// flow is blocked still, or again.
    fn blocked_packet(&mut self, _flow: &Flow) -> bool {
        true
    }

    /// A flow ended.
    fn ended(&mut self, flow: &Flow, why: EndReason);
}
