//! Resets the TCP connections that were refused, so that neither end waits for a peer that cannot be heard any more.
//!
//! A reset is taken only if it stands where the next byte is expected (RFC 5961, section 3.2). A refused flow's last packets
//! are still on their way from the kernel's ring when the refusal is decided, so a reset waits for them: [`Resets::ask`]
//! notes the flow, [`Resets::send_due`] sends what waited long enough, to both ends, by what the flow knows then.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
};

use crate::packet::build::Packet;
use crate::packet::frame::tcp_flag;
use crate::packet::proto::Side;

/// How long a reset waits for packets that were in the ring when the flow was refused.
const SETTLE: Duration = Duration::from_millis(5);
/// Flows that wait for their reset at most.
const WAITING_MAX: usize = 4096;
/// Flows that a worker resets in a second, and at once: nobody makes a flood of it.
const PER_SECOND: u32 = 200;
const ETHERNET_BYTES: usize = 14;

/// Where a flow's next bytes stand: who is reset, and at which numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Who opened the flow.
    pub client: SocketAddr,
    /// The other one.
    pub server: SocketAddr,
    /// The next byte of each side.
    pub next_seq: [u32; 2],
    /// Interface of its packets: a link-local address means nothing without it.
    pub ifindex: u32,
}

/// What became of the resets that were asked for, in flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResetCounts {
    /// Both ends were sent one.
    pub sent: u64,
    /// Too many were asked for.
    pub limited: u64,
    /// The kernel refused to send.
    pub failed: u64,
}

/// Sends resets.
pub struct Resets {
    v4: OwnedFd,
    v6: Option<OwnedFd>,
    waiting: VecDeque<(Instant, u64)>,
    allowance: u32,
    refilled: Instant,
    /// What was done.
    pub counts: ResetCounts,
}

impl Resets {
    /// Opens the raw sockets: this needs CAP_NET_RAW. A host without IPv6 has only one.
    pub fn open(now: Instant) -> Result<Resets> {
        let raw = |family, protocol| {
            socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)
        };
        // IPPROTO_RAW means that the header comes from us, in both families.
        let v4 = raw(AddressFamily::Inet, Some(SockProtocol::Raw)).context("opening a raw socket for TCP resets")?;
        let v6 = raw(AddressFamily::Inet6, Some(SockProtocol::Raw)).ok();
        Ok(Resets {
            v4,
            v6,
            waiting: VecDeque::new(),
            allowance: PER_SECOND,
            refilled: now,
            counts: ResetCounts::default(),
        })
    }

    /// Notes that a flow is to be reset.
    pub fn ask(&mut self, flow: u64, now: Instant) {
        if self.waiting.len() >= WAITING_MAX {
            self.counts.limited += 1;
            return;
        }
        self.waiting.push_back((now + SETTLE, flow));
    }

    /// Sends what has waited long enough. `ends` finds a flow; one that is gone needs no reset.
    pub fn send_due(&mut self, now: Instant, ends: impl Fn(u64) -> Option<Ends>) {
        while self.waiting.front().is_some_and(|(due, _)| *due <= now) {
            let Some(ends) = self.waiting.pop_front().and_then(|(_, flow)| ends(flow)) else { continue };
            if !self.may_send(now) {
                self.counts.limited += 1;
                continue;
            }
            let [from_client, from_server] = ends.next_seq;
            let to_client = self.send(&ends, Side::Client, from_server, from_client);
            let to_server = self.send(&ends, Side::Server, from_client, from_server);
            match to_client.and(to_server) {
                Ok(()) => self.counts.sent += 1,
                Err(error) => {
                    log::debug!("resetting {} - {}: {error}", ends.client, ends.server);
                    self.counts.failed += 1;
                }
            }
        }
    }

    fn may_send(&mut self, now: Instant) -> bool {
        if now.duration_since(self.refilled) >= Duration::from_secs(1) {
            (self.allowance, self.refilled) = (PER_SECOND, now);
        }
        let may = self.allowance > 0;
        self.allowance -= u32::from(may);
        may
    }

    fn send(&self, ends: &Ends, to: Side, seq: u32, ack: u32) -> nix::Result<()> {
        let (from, to) = match to {
            Side::Client => (ends.server, ends.client),
            Side::Server => (ends.client, ends.server),
        };
        let packet = reset_packet(from, to, seq, ack).ok_or(nix::Error::EAFNOSUPPORT)?;
        // The port must be 0: a raw socket takes it for the protocol.
        match to.ip() {
            IpAddr::V4(ip) => {
                let to = SockaddrIn::from(std::net::SocketAddrV4::new(ip, 0));
                sendto(self.v4.as_raw_fd(), &packet, &to, MsgFlags::empty()).map(drop)
            }
            IpAddr::V6(ip) => {
                let v6 = self.v6.as_ref().ok_or(nix::Error::EAFNOSUPPORT)?;
                let scope = if ip.is_unicast_link_local() { ends.ifindex } else { 0 };
                let to = SockaddrIn6::from(std::net::SocketAddrV6::new(ip, 0, 0, scope));
                sendto(v6.as_raw_fd(), &packet, &to, MsgFlags::empty()).map(drop)
            }
        }
    }
}

/// The IP packet of a reset; `None` when the addresses are of two families.
fn reset_packet(from: SocketAddr, to: SocketAddr, seq: u32, ack: u32) -> Option<Vec<u8>> {
    let packet = Packet::new()
        .ip(from.ip(), to.ip())?
        .tcp(from.port(), to.port())
        .flags(tcp_flag::RST | tcp_flag::ACK)
        .numbers(seq, ack)
        .window(0);
    Some(packet.build().split_off(ETHERNET_BYTES))
}
