//! A flow with what is kept of it. Until it carries data that is no more than the entry itself.

use super::app::App;
use super::fold::Folds;
use super::reassembly::Stream;
use super::{Flow, State};
use crate::packet::frame::Checksum;
use crate::packet::proto::Side;

/// One end of a TCP connection: small, since half-open connections come by the million.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    /// Number of the next byte to come in order; of no meaning before [`End::is_synced`].
    pub next: u32,
    /// Number of its SYN.
    pub isn: u32,
    /// Number of another SYN, if it sent two different ones before the other end chose.
    pub other_isn: Option<u32>,
    /// The last that it acknowledged.
    pub ack: u32,
    /// The first byte that the other end may not send: the furthest that was granted.
    pub edge: u32,
    /// When it was heard last, in milliseconds that wrap around.
    pub heard_ms: u32,
    /// Scale of its windows, if its SYN offered one.
    pub scale: Option<u8>,
    /// TTL of its first packet.
    pub ttl: u8,
    /// It sent data with a TTL far from that.
    pub has_far_ttl: bool,
    /// `next` is known.
    pub is_synced: bool,
    /// Its SYN was seen.
    pub has_syn: bool,
    /// It acknowledged something.
    pub has_acked: bool,
    /// Not all of its packets are handed over.
    pub is_lossy: bool,
    /// It reset the connection.
    pub has_reset: bool,
    /// It sent a FIN, all before that was delivered, and the other end acknowledged it.
    pub is_finished: bool,
    /// A good checksum was seen from it.
    pub has_good_checksum: bool,
}

/// A flow in the table.
pub(super) struct Entry {
    pub flow: Flow,
    /// IP headers around it.
    pub depth: u8,
    /// Its packets closed it.
    pub is_over: bool,
    /// TCP's ends, by side.
    pub ends: [End; 2],
    /// A SYN that came in an established connection: maybe the next one.
    pub next_syn: Option<u32>,
    /// The streams, once there was data.
    pub streams: Option<Box<[Stream; 2]>>,
    /// What is above.
    pub app: App,
    /// Its anomalies.
    pub folds: Folds,
    /// Bytes of the last three that are counted in the inspector's memory.
    pub counted: usize,
}

impl Entry {
    pub(super) fn new(flow: Flow, depth: u8) -> Entry {
        Entry {
            flow,
            depth,
            is_over: false,
            ends: [End::default(); 2],
            next_syn: None,
            streams: None,
            app: App::Waiting,
            folds: Folds::default(),
            counted: 0,
        }
    }

    /// Bytes that it keeps beside itself.
    pub(super) fn memory(&self) -> usize {
        let streams = self
            .streams
            .as_ref()
            .map_or(0, |streams| size_of::<[Stream; 2]>() + streams.iter().map(Stream::memory).sum::<usize>());
        streams + self.app.memory() + self.folds.memory()
    }

    /// Exchanges the sides, of what the application does not know by itself.
    pub(super) fn swap_ends(&mut self) {
        self.ends.swap(0, 1);
        if let Some(streams) = &mut self.streams {
            streams.swap(0, 1);
        }
    }

    /// Whether a checksum that is wrong may be the work of a network card that was to reckon it.
    pub(super) fn may_be_offloaded(&mut self, side: Side, checksum: Checksum) -> bool {
        let end = &mut self.ends[side as usize];
        end.has_good_checksum |= checksum == Checksum::Good;
        !end.has_good_checksum
    }

    /// Notes that a side was heard, of what has no connections.
    pub(super) fn hear(&mut self, side: Side) {
        self.flow.is_answered |= self.flow.packets[side.other() as usize] > 0;
        if self.flow.state == State::New && self.flow.packets[side.other() as usize] > 0 {
            self.flow.state = State::Established;
        }
    }

    /// Stops inspecting: the flow is only counted from now on.
    pub(super) fn ignore(&mut self, held_total: &mut usize) {
        if let Some(mut streams) = self.streams.take() {
            for (stream, end) in streams.iter_mut().zip(&mut self.ends) {
                end.next = stream.next() as u32;
                stream.discard(held_total);
            }
        }
        self.app = App::Ignored;
    }
}

/// Exchanges the sides of what others see of a flow.
pub(super) fn swap_sides(flow: &mut Flow) {
    std::mem::swap(&mut flow.client, &mut flow.server);
    flow.packets.swap(0, 1);
    flow.bytes.swap(0, 1);
    flow.arrived.swap(0, 1);
    flow.left.swap(0, 1);
    flow.gap_bytes.swap(0, 1);
    flow.tcp_flags.swap(0, 1);
    flow.next_seq.swap(0, 1);
}
