//! What a segment does to its flow: handshake, acknowledgements, data, and the end (RFC 9293, RFC 5961).
//!
//! Nothing that one segment says makes this look away. A reset or a FIN changes the state, but what is sent after it is
//! still inspected, and told as odd; of two SYNs the one counts that the other end acknowledged. So a segment that was
//! made for this observer only, and never reached its receiver, is told in one way or another. A flow that is blocked is
//! blocked until the other end has answered the SYN of the next connection, whatever ended it: else one forged SYN would
//! make it forgotten.

use super::State;
use super::app::{App, Feed, Upper};
use super::entry::Entry;
use super::reassembly::{Noticed, Room, Stream};
use crate::packet::frame::{Segment, tcp_flag};
use crate::packet::proto::Side;

/// How far the TTL of a segment with conflicting data may be from that of its sender's first one, in hops.
const TTL_SLACK: u8 = 2;
/// How far an acknowledgement may be from what its receiver sends next, for both to be of one connection.
const NEAR: u32 = 1 << 20;
/// After so long without a word from the receiver its window may be another than the last that was seen.
const FRESH_MS: u32 = 1000;

/// Whether `a` stands behind `b` (RFC 1982).
fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// Whether two numbers are near each other.
fn is_near(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).wrapping_add(NEAR) <= 2 * NEAR
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Done,
    /// The segment belongs to a new connection between the same ports. If it answers a SYN that was seen, that has this
    /// number.
    Restart { syn: Option<u32> },
}

/// A segment with what its frame said of it.
pub(super) struct Arrival<'a> {
    pub segment: Segment<'a>,
    pub side: Side,
    pub ttl: u8,
    /// Bytes of its side's packets that were not handed over since the last one.
    pub unseen_bytes: u64,
    /// There were such packets.
    pub has_unseen: bool,
}

/// One segment at work on its flow.
pub(super) struct Tcp<'a, 'b, 'c> {
    pub entry: &'a mut Entry,
    pub room: &'a mut Room<'b>,
    pub upper: &'a mut Upper<'c>,
}

impl Tcp<'_, '_, '_> {
    /// Takes a segment.
    pub(super) fn take(&mut self, arrival: &mut Arrival<'_>) -> Next {
        let segment = arrival.segment;
        let now_ms = (self.upper.now_ns / 1_000_000) as u32;
        let end = &mut self.entry.ends[arrival.side as usize];
        end.heard_ms = now_ms;
        end.is_lossy |= arrival.has_unseen;
        if end.ttl == 0 {
            end.ttl = arrival.ttl;
        }
        if segment.has(tcp_flag::URG) {
            self.odd("tcp.urgent", arrival.side);
        }
        let next = if segment.has(tcp_flag::SYN) {
            if segment.has(tcp_flag::FIN | tcp_flag::RST) {
                self.odd("tcp.bad_flags", arrival.side);
                return Next::Done;
            }
            if segment.has(tcp_flag::ACK) { self.syn_ack(arrival) } else { self.syn(arrival) }
        } else if segment.has(tcp_flag::RST) {
            self.reset(arrival);
            Next::Done
        } else if segment.has(tcp_flag::ACK) {
            self.plain(arrival);
            Next::Done
        } else {
            // Receivers throw away what acknowledges nothing.
            self.odd("tcp.no_ack", arrival.side);
            Next::Done
        };
        if next == Next::Done {
            self.settle();
        }
        next
    }

    fn odd(&mut self, name: &'static str, side: Side) {
        let entry = &mut *self.entry;
        let told = entry.folds.note("stream", name, Some(side), self.upper.now_ns, self.room.stats);
        if let Some(anomaly) = told {
            self.upper.watcher.anomaly(Some(&entry.flow), &anomaly);
        }
    }

    fn syn(&mut self, arrival: &mut Arrival<'_>) -> Next {
        let (segment, side) = (arrival.segment, arrival.side);
        let is_new = self.entry.flow.state == State::New;
        let is_blocked = self.entry.flow.is_blocked;
        let end = &mut self.entry.ends[side as usize];
        if end.has_syn && end.isn == segment.sequence {
            self.syn_data(arrival);
        } else if is_new && !end.is_synced {
            self.open(side, &segment);
            self.syn_data(arrival);
        } else if self.entry.is_over && !is_blocked || is_new && !end.has_syn {
            return Next::Restart { syn: None };
        } else if is_new {
            if is_blocked {
                // Nobody answered so far, so this one need not be answered either.
                self.odd("tcp.syn_other_isn", side);
                return Next::Restart { syn: None };
            }
            // The other end's answer will say which of them arrived.
            end.other_isn = Some(segment.sequence);
            self.odd("tcp.syn_other_isn", side);
        } else {
            self.entry.next_syn = Some(segment.sequence);
            if !self.entry.is_over {
                self.odd("tcp.syn_in_connection", side);
            }
        }
        Next::Done
    }

    fn syn_ack(&mut self, arrival: &mut Arrival<'_>) -> Next {
        let (segment, side) = (arrival.segment, arrival.side);
        let is_new = self.entry.flow.state == State::New;
        let acked = segment.acknowledgement.wrapping_sub(1);
        if self.entry.next_syn == Some(acked) {
            return Next::Restart { syn: Some(acked) };
        }
        let is_gone = self.entry.is_over && !self.entry.flow.is_blocked;
        if is_gone && self.entry.ends[side as usize].isn != segment.sequence {
            return Next::Restart { syn: None };
        }
        let peer = self.entry.ends[side.other() as usize];
        let end = &mut self.entry.ends[side as usize];
        if end.has_syn && end.isn == segment.sequence {
            return Next::Done;
        }
        // An acknowledgement of the peer's may have come before: it does not say more than the answer itself.
        if !is_new || end.is_synced && !end.has_syn && !peer.has_syn {
            self.odd("tcp.syn_in_connection", side);
        } else if end.has_syn {
            end.other_isn = Some(segment.sequence);
            self.odd("tcp.syn_ack_other_isn", side);
        } else if peer.has_syn
            && peer.other_isn != Some(acked)
            && (is_after(peer.isn, acked) || is_after(acked, peer.next))
        {
            // Its receiver would answer with a reset.
            self.odd("tcp.syn_ack_wrong_ack", side);
        } else {
            self.open(side, &segment);
            self.synchronise(side.other(), segment.acknowledgement);
            self.acknowledge(arrival);
            self.syn_data(arrival);
        }
        Next::Done
    }

    fn open(&mut self, side: Side, segment: &Segment<'_>) {
        let end = &mut self.entry.ends[side as usize];
        end.has_syn = true;
        end.is_synced = true;
        end.isn = segment.sequence;
        end.next = segment.sequence.wrapping_add(1);
        end.scale = segment.window_scale;
        self.restart(side);
    }

    /// Begins the stream of a side anew, at what is now known to be its next byte.
    fn restart(&mut self, side: Side) {
        let next = self.entry.ends[side as usize].next;
        self.entry.flow.next_seq[side as usize] = next;
        if let Some(streams) = &mut self.entry.streams {
            let stream = &mut streams[side as usize];
            stream.discard(self.room.held_total);
            *stream = Stream::new(next);
        }
        self.entry.app.forget(side);
    }

    /// Data in a SYN (RFC 7413). If the other end does not take it, it comes again.
    fn syn_data(&mut self, arrival: &mut Arrival<'_>) {
        arrival.segment.sequence = arrival.segment.sequence.wrapping_add(1);
        self.data(arrival);
    }

    /// The other end says, or a segment shows, that the next byte of a side that sent no data yet is `sequence`.
    fn synchronise(&mut self, side: Side, sequence: u32) {
        let end = &mut self.entry.ends[side as usize];
        if !end.is_synced {
            end.is_synced = true;
            end.next = sequence;
            self.entry.flow.next_seq[side as usize] = sequence;
        } else if let Some(isn) = end.other_isn
            && sequence == isn.wrapping_add(1)
        {
            end.other_isn = None;
            end.isn = isn;
            end.next = sequence;
            self.restart(side);
        }
    }

    /// A reset counts if it stands where its receiver waits (RFC 5961 3.2), or answers a SYN.
    fn reset(&mut self, arrival: &Arrival<'_>) {
        let (segment, side) = (arrival.segment, arrival.side);
        let end = self.entry.ends[side as usize];
        let peer = self.entry.ends[side.other() as usize];
        let answers_syn = self.entry.flow.state == State::New
            && segment.has(tcp_flag::ACK)
            && peer.has_syn
            && segment.acknowledgement == peer.next;
        let is_in_place = !end.is_synced
            || segment.sequence == end.next
            || segment.sequence == self.entry.flow.next_seq[side as usize]
            || peer.has_acked && segment.sequence == peer.ack;
        if answers_syn || is_in_place || arrival.has_unseen {
            self.entry.ends[side as usize].has_reset = true;
            self.entry.flow.state = State::Closed;
            self.entry.is_over = true;
        } else {
            self.odd("tcp.reset_out_of_place", side);
        }
    }

    /// Neither SYN nor RST.
    fn plain(&mut self, arrival: &mut Arrival<'_>) {
        let (segment, side) = (arrival.segment, arrival.side);
        // Those of a blocked one are ours.
        if self.entry.ends[side as usize].has_reset && !self.entry.flow.is_blocked {
            // What the other end sends may have been on its way; who resets a connection sends no more.
            self.odd("tcp.segment_after_reset", side);
        }
        self.synchronise(side, segment.sequence);
        self.synchronise(side.other(), segment.acknowledgement);
        self.meet(&segment, side);
        self.acknowledge(arrival);
        if self.entry.flow.state == State::New && self.entry.flow.packets[arrival.side.other() as usize] > 0 {
            self.entry.flow.state = State::Established;
        }
        if arrival.has_unseen {
            self.lose(arrival);
        }
        let is_fin = segment.has(tcp_flag::FIN);
        if !is_fin && segment.payload.is_empty() && segment.missing == 0 {
            return;
        }
        let is_accepted = self.data(arrival);
        if is_accepted && is_fin {
            self.fin(arrival);
        }
    }

    /// Whether the sender of this segment and the other end, heard before it, know each other's numbers.
    fn meet(&mut self, segment: &Segment<'_>, side: Side) {
        let peer = self.entry.ends[side.other() as usize];
        let flow = &mut self.entry.flow;
        flow.is_answered |= peer.has_acked
            && is_near(peer.ack, segment.sequence)
            && is_near(segment.acknowledgement, flow.next_seq[side.other() as usize]);
    }

    fn acknowledge(&mut self, arrival: &mut Arrival<'_>) {
        let (segment, side) = (arrival.segment, arrival.side);
        let peer_has_scale = self.entry.ends[side.other() as usize].scale.is_some();
        let end = &mut self.entry.ends[side as usize];
        if end.has_acked && is_after(end.ack, segment.acknowledgement) {
            return;
        }
        // Scales count if both ends offered them, and not in a SYN (RFC 7323 2.2).
        let shift = match end.scale {
            Some(scale) if peer_has_scale && !segment.has(tcp_flag::SYN) => scale,
            _ => 0,
        };
        let edge = segment.acknowledgement.wrapping_add(u32::from(segment.window) << shift);
        if !end.has_acked || is_after(edge, end.edge) {
            end.edge = edge;
        }
        end.has_acked = true;
        end.ack = segment.acknowledgement;
        if self.entry.streams.is_some() {
            let sender = side.other();
            let is_swapped =
                self.feed(sender, |stream, room, feed| stream.acknowledge(segment.acknowledgement, room, feed));
            arrival.turn(is_swapped);
        }
    }

    /// Packets before this one were not handed over.
    fn lose(&mut self, arrival: &mut Arrival<'_>) {
        let (sequence, unseen) = (arrival.segment.sequence, arrival.unseen_bytes);
        if self.entry.streams.is_some() {
            let is_swapped =
                self.feed(arrival.side, |stream, room, feed| stream.lose_until(sequence, unseen, room, feed));
            arrival.turn(is_swapped);
        } else {
            self.entry.ends[arrival.side as usize].next = sequence;
        }
    }

    /// Takes the data of a segment. Says whether the segment was accepted.
    fn data(&mut self, arrival: &mut Arrival<'_>) -> bool {
        let (segment, side) = (arrival.segment, arrival.side);
        let len = segment.payload.len() + segment.missing;
        let end_sequence = segment.sequence.wrapping_add(len as u32);
        if !self.is_within_window(&segment, side, end_sequence) {
            self.room.stats.beyond_window += 1;
            return false;
        }
        let end = &mut self.entry.ends[side as usize];
        if len > 0 && end.is_finished && is_after(end_sequence, end.next) {
            self.odd("tcp.data_after_fin", side);
            return false;
        }
        if is_after(end_sequence, self.entry.flow.next_seq[side as usize]) {
            self.entry.flow.next_seq[side as usize] = end_sequence;
        }
        if len == 0 {
            return true;
        }
        let end = &mut self.entry.ends[side as usize];
        end.has_far_ttl |= end.ttl.abs_diff(arrival.ttl) > TTL_SLACK;
        if matches!(self.entry.app, App::Ignored) || self.entry.flow.is_blocked {
            if is_after(end_sequence, end.next) {
                end.next = end_sequence;
            }
            return true;
        }
        self.open_streams();
        let mut noticed = Noticed::default();
        let mut is_after_fin = false;
        let is_swapped = self.feed(side, |stream, room, feed| {
            let tail = stream.place(segment.sequence) + segment.payload.len() as u64;
            if stream.fin().is_some_and(|fin| fin < tail) {
                // The receiver has not acknowledged the FIN: maybe it has not seen it.
                is_after_fin = true;
                stream.clear_fin();
            }
            noticed = stream.segment(segment.sequence, segment.payload, room, feed);
            stream.lose_tail(tail, segment.missing as u64, room, feed);
        });
        arrival.turn(is_swapped);
        if is_after_fin {
            self.odd("tcp.data_after_fin", arrival.side);
        }
        self.tell_noticed(noticed, arrival);
        true
    }

    fn tell_noticed(&mut self, noticed: Noticed, arrival: &Arrival<'_>) {
        if noticed.is_conflict {
            // Either of the two may be the one that was made for observers.
            let has_far_ttl = self.entry.ends[arrival.side as usize].has_far_ttl;
            self.odd(if has_far_ttl { "tcp.overlap_conflict_ttl" } else { "tcp.overlap_conflict" }, arrival.side);
        }
        if noticed.is_unchecked {
            self.odd("tcp.overlap_unchecked", arrival.side);
        }
        if noticed.is_late {
            self.odd("tcp.data_in_gap", arrival.side);
        }
    }

    /// Whether the receiver's window lets a segment in. It is known if both SYNs were seen and the receiver was heard
    /// just now. In order it is taken all the same: an acknowledgement may have been missed here.
    fn is_within_window(&mut self, segment: &Segment<'_>, side: Side, end_sequence: u32) -> bool {
        let end = self.entry.ends[side as usize];
        let peer = self.entry.ends[side.other() as usize];
        let now_ms = (self.upper.now_ns / 1_000_000) as u32;
        let is_fresh = now_ms.wrapping_sub(peer.heard_ms) < FRESH_MS;
        let is_known = end.has_syn && peer.has_syn && peer.has_acked && !peer.is_lossy && is_fresh;
        // A byte beyond it is how a sender asks whether it is still closed.
        if !is_known || !is_after(end_sequence, peer.edge.wrapping_add(1)) {
            return true;
        }
        self.odd("tcp.beyond_window", side);
        !is_after(segment.sequence, end.next) || is_after(peer.edge, segment.sequence)
    }

    fn fin(&mut self, arrival: &Arrival<'_>) {
        let (segment, side) = (arrival.segment, arrival.side);
        let end_sequence = segment.sequence.wrapping_add((segment.payload.len() + segment.missing) as u32);
        self.entry.flow.state = State::Closed;
        let after = end_sequence.wrapping_add(1);
        if is_after(after, self.entry.flow.next_seq[side as usize]) {
            self.entry.flow.next_seq[side as usize] = after;
        }
        if !matches!(self.entry.app, App::Ignored) {
            self.open_streams();
        }
        if let Some(streams) = &mut self.entry.streams {
            let stream = &mut streams[side as usize];
            stream.set_fin(stream.place(end_sequence));
        }
    }

    fn open_streams(&mut self) {
        let ends = &self.entry.ends;
        self.entry.streams.get_or_insert_with(|| Box::new([Stream::new(ends[0].next), Stream::new(ends[1].next)]));
    }

    /// Lets something be done to one side's stream. Says whether the sides were exchanged by it.
    fn feed(&mut self, side: Side, work: impl FnOnce(&mut Stream, &mut Room<'_>, &mut Feed<'_, '_>)) -> bool {
        let entry = &mut *self.entry;
        let Some(streams) = &mut entry.streams else { return false };
        let stream = &mut streams[side as usize];
        let mut feed = Feed {
            flow: &mut entry.flow,
            app: &mut entry.app,
            folds: &mut entry.folds,
            side,
            is_swapped: false,
            upper: self.upper,
        };
        work(stream, self.room, &mut feed);
        let is_swapped = feed.is_swapped;
        entry.ends[side as usize].next = stream.next() as u32;
        if is_swapped {
            entry.swap_ends();
        }
        is_swapped
    }

    /// Ends what has ended, and lets go of what is not inspected.
    fn settle(&mut self) {
        for side in Side::BOTH {
            let is_finished = self.entry.streams.as_ref().is_some_and(|streams| streams[side as usize].is_finished());
            if is_finished && !self.entry.ends[side as usize].is_finished {
                self.entry.ends[side as usize].is_finished = true;
                self.entry.flow.is_finished |= self.entry.ends.iter().all(|end| end.is_finished);
                self.drop_behind_fin(side);
                self.feed(side, |_, room, feed| feed.end(room.stats));
            }
        }
        if self.entry.ends.iter().all(|end| end.is_finished) {
            self.entry.is_over = true;
            self.feed(Side::Client, |_, room, feed| feed.finish(room.stats));
        }
        if matches!(self.entry.app, App::Ignored) || self.entry.flow.is_blocked {
            self.entry.ignore(self.room.held_total);
            let fins = self.entry.flow.tcp_flags.map(|flags| flags & tcp_flag::FIN);
            self.entry.is_over |= fins[0] & fins[1] != 0;
        }
    }

    /// What is still held when a side has ended stands behind its FIN: the receiver throws it away.
    fn drop_behind_fin(&mut self, side: Side) {
        let Some(streams) = &mut self.entry.streams else { return };
        let stream = &mut streams[side as usize];
        if stream.is_holding() {
            stream.discard(self.room.held_total);
            self.odd("tcp.data_after_fin", side);
        }
    }

    /// The flow ends: what is held is delivered with its gaps, and both sides end.
    pub(super) fn finish(&mut self) {
        // Three times, since the sides may be exchanged in between. An empty stream does nothing.
        for side in [Side::Client, Side::Server, Side::Client] {
            self.feed(side, |stream, room, feed| stream.flush(room, feed));
        }
    }
}

impl Arrival<'_> {
    fn turn(&mut self, is_swapped: bool) {
        if is_swapped {
            self.side = self.side.other();
        }
    }
}
