//! One side of a TCP connection: from segments in any order to its bytes in order.
//!
//! Places in the stream are 64-bit numbers whose low half is the sequence number, so wrapping around needs no thought.
//! The first byte seen at a place wins. Later ones are compared with it while the receiver has not acknowledged the
//! place: with what is held, and with [`History`] for what was delivered. In-order bytes go to the [`Sink`] straight
//! from the packet; out of order they are copied, under caps.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::history::History;
use super::limits::Limits;
use super::stats::Stats;

/// What a held piece costs beside its bytes: its box, its place in the tree. So tiny segments cannot outgrow the caps.
pub(super) const PIECE_OVERHEAD: usize = 64;
/// Runs of delivered bytes that are remembered for comparison, of one side.
const RECENT_MAX: usize = 64;

/// Who takes the bytes of a stream.
pub trait Sink {
    /// The next bytes.
    fn data(&mut self, bytes: &[u8], stats: &mut Stats);
    /// So many are missing, and will stay so.
    fn gap(&mut self, missing: u64, stats: &mut Stats);
}

/// What all streams of an inspector share.
pub struct Room<'a> {
    /// Caps.
    pub limits: &'a Limits,
    /// Delivered bytes.
    pub(super) history: &'a mut History,
    /// Counters.
    pub stats: &'a mut Stats,
    /// Bytes that are held, all streams together.
    pub held_total: &'a mut usize,
}

/// What was noticed about a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noticed {
    /// It holds other bytes than were seen at its place.
    pub is_conflict: bool,
    /// It overlaps bytes that are too old to be compared and not acknowledged yet.
    pub is_unchecked: bool,
    /// It holds bytes that were given up as missing.
    pub is_late: bool,
}

/// A run of delivered bytes, and where the history has them.
#[derive(Clone, Copy)]
struct Recent {
    start: u64,
    end: u64,
    place: u64,
}

/// One side's stream.
#[derive(Default)]
pub struct Stream {
    /// Place of the next byte to deliver.
    next: u64,
    /// What the receiver acknowledged.
    acked: u64,
    /// Out-of-order pieces by place: none overlaps another, none begins before or at `next`.
    held: BTreeMap<u64, Box<[u8]>>,
    /// Bytes of `held`, with their overhead.
    held_bytes: usize,
    /// In order, the oldest first.
    recent: Vec<Recent>,
    /// The last run of bytes that was given up.
    last_gap: (u64, u64),
    /// Place of the FIN.
    fin: Option<u64>,
}

impl Stream {
    /// A stream whose next byte has the number `sequence`.
    pub fn new(sequence: u32) -> Stream {
        // High enough that no place before it is negative.
        let next = 1 << 32 | u64::from(sequence);
        Stream { next, acked: next, last_gap: (next, next), ..Stream::default() }
    }

    /// The place of a sequence number: the one nearest to the next byte.
    pub fn place(&self, sequence: u32) -> u64 {
        let distance = sequence.wrapping_sub(self.next as u32) as i32;
        self.next.wrapping_add_signed(i64::from(distance))
    }

    /// Place of the next byte to deliver.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Bytes that it keeps.
    pub fn memory(&self) -> usize {
        self.held_bytes + self.recent.capacity() * size_of::<Recent>()
    }

    /// Notes that its sender will send no more from `place` on, until that is acknowledged or data proves it wrong.
    pub fn set_fin(&mut self, place: u64) {
        if place >= self.next {
            self.fin = Some(place);
        }
    }

    /// Place of the FIN, if one was seen.
    pub fn fin(&self) -> Option<u64> {
        self.fin
    }

    /// Forgets the FIN.
    pub fn clear_fin(&mut self) {
        self.fin = None;
    }

    /// Whether all was delivered up to the FIN, and the receiver has it too.
    pub fn is_finished(&self) -> bool {
        self.fin.is_some_and(|fin| self.next == fin && self.acked > fin)
    }

    /// Takes a segment's data.
    pub fn segment(&mut self, sequence: u32, payload: &[u8], room: &mut Room<'_>, sink: &mut dyn Sink) -> Noticed {
        let mut noticed = Noticed::default();
        if payload.is_empty() {
            return noticed;
        }
        let start = self.place(sequence);
        let end = start + payload.len() as u64;
        if start == self.next && self.held.is_empty() {
            self.deliver(payload, room, sink);
            return noticed;
        }
        if start < self.next {
            self.compare_delivered(start, &payload[..(self.next.min(end) - start) as usize], room, &mut noticed);
        }
        if end <= self.next {
            room.stats.retransmissions += 1;
        } else if start <= self.next {
            self.take_in_order(&payload[(self.next - start) as usize..], room, sink, &mut noticed);
        } else {
            room.stats.out_of_order += 1;
            self.hold(start, payload, room, sink, &mut noticed);
            self.pass_acknowledged(room, sink);
        }
        room.stats.overlap_conflicts += u64::from(noticed.is_conflict);
        room.stats.overlaps_unchecked += u64::from(noticed.is_unchecked);
        noticed
    }

    /// Notes what the receiver acknowledged. A gap that it acknowledged will not be filled.
    pub fn acknowledge(&mut self, sequence: u32, room: &mut Room<'_>, sink: &mut dyn Sink) {
        let place = self.place(sequence);
        if place <= self.acked {
            return;
        }
        self.acked = place;
        let passed = self.recent.iter().take_while(|run| run.end <= place).count();
        self.recent.drain(..passed);
        self.pass_acknowledged(room, sink);
    }

    /// Gives up gaps that the receiver acknowledged.
    fn pass_acknowledged(&mut self, room: &mut Room<'_>, sink: &mut dyn Sink) {
        while let Some((&first, _)) = self.held.first_key_value()
            && first <= self.acked
        {
            room.stats.gaps_acknowledged += 1;
            self.skip_to(first, room, sink);
            self.drain(room, sink);
        }
    }

    /// Gives up what is missing before `sequence`: packets of `unseen` bytes, with their headers, were lost on the way
    /// here. So many may be more than half of the sequence numbers.
    pub fn lose_until(&mut self, sequence: u32, unseen: u64, room: &mut Room<'_>, sink: &mut dyn Sink) {
        let mut place = self.place(sequence);
        if unseen > i32::MAX as u64 {
            // The last place of this number that so many bytes can reach.
            let furthest = self.next.saturating_add(unseen);
            place = furthest - u64::from((furthest as u32).wrapping_sub(sequence));
        }
        while self.next < place {
            let first = self.held.first_key_value().map_or(place, |(&first, _)| first.min(place));
            room.stats.gaps_unseen += 1;
            self.skip_to(first, room, sink);
            self.drain(room, sink);
        }
    }

    /// So many bytes that follow the last segment were not captured.
    pub fn lose_tail(&mut self, from: u64, missing: u64, room: &mut Room<'_>, sink: &mut dyn Sink) {
        if from == self.next && missing > 0 {
            room.stats.gaps_truncated += 1;
            let end = from + missing;
            let until = self.held.first_key_value().map_or(end, |(&first, _)| first.min(end));
            self.skip_to(until, room, sink);
            self.drain(room, sink);
        }
    }

    /// The end: delivers what is held, with its gaps.
    pub fn flush(&mut self, room: &mut Room<'_>, sink: &mut dyn Sink) {
        while let Some((&first, _)) = self.held.first_key_value() {
            room.stats.gaps_at_end += 1;
            self.skip_to(first, room, sink);
            self.drain(room, sink);
        }
    }

    /// Whether it holds bytes that are out of order.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Throws away what is held.
    pub fn discard(&mut self, held_total: &mut usize) {
        *held_total -= self.held_bytes;
        self.held_bytes = 0;
        self.held.clear();
    }

    fn deliver(&mut self, bytes: &[u8], room: &mut Room<'_>, sink: &mut dyn Sink) {
        if bytes.is_empty() {
            return;
        }
        let (start, end) = (self.next, self.next + bytes.len() as u64);
        self.next = end;
        if end > self.acked {
            let place = room.history.push(bytes);
            match self.recent.last_mut() {
                Some(last) if last.end == start && last.place + (last.end - last.start) == place => last.end = end,
                _ => {
                    if self.recent.len() == RECENT_MAX {
                        self.recent.remove(0);
                    }
                    self.recent.push(Recent { start, end, place });
                }
            }
        }
        sink.data(bytes, room.stats);
    }

    fn skip_to(&mut self, place: u64, room: &mut Room<'_>, sink: &mut dyn Sink) {
        let missing = place - self.next;
        if missing > 0 {
            room.stats.gaps += 1;
            room.stats.gap_bytes += missing;
            self.last_gap = (self.next, place);
            self.next = place;
            sink.gap(missing, room.stats);
        }
    }

    /// Delivers held pieces as long as they follow.
    fn drain(&mut self, room: &mut Room<'_>, sink: &mut dyn Sink) {
        while let Some(entry) = self.held.first_entry()
            && *entry.key() == self.next
        {
            let piece = entry.remove();
            self.release(piece.len(), room);
            self.deliver(&piece, room, sink);
        }
    }

    fn release(&mut self, len: usize, room: &mut Room<'_>) {
        self.held_bytes -= len + PIECE_OVERHEAD;
        *room.held_total -= len + PIECE_OVERHEAD;
    }

    /// Compares bytes before `next` with what was delivered there.
    fn compare_delivered(&self, start: u64, bytes: &[u8], room: &Room<'_>, noticed: &mut Noticed) {
        let end = start + bytes.len() as u64;
        if start.max(self.last_gap.0) < end.min(self.last_gap.1) {
            noticed.is_late = true;
        }
        // The receiver does not look at what it has acknowledged. It may do so for what lies in a gap, but there is
        // nothing to compare with.
        let mut from = start.max(self.acked);
        for run in &self.recent {
            if from >= end {
                break;
            }
            if run.end <= from || run.start >= end {
                continue;
            }
            if run.start > from && !self.is_gap(from, run.start) {
                noticed.is_unchecked = true;
            }
            let (low, high) = (from.max(run.start), end.min(run.end));
            match room
                .history
                .is_same(run.place + (low - run.start), &bytes[(low - start) as usize..(high - start) as usize])
            {
                Some(true) => {}
                Some(false) => noticed.is_conflict = true,
                None => noticed.is_unchecked = true,
            }
            from = high;
        }
        if from < end && !self.is_gap(from, end) {
            noticed.is_unchecked = true;
        }
    }

    fn is_gap(&self, start: u64, end: u64) -> bool {
        self.last_gap.0 <= start && end <= self.last_gap.1
    }

    /// Delivers bytes that stand at `next`, and held pieces where they were first.
    fn take_in_order(&mut self, mut bytes: &[u8], room: &mut Room<'_>, sink: &mut dyn Sink, noticed: &mut Noticed) {
        while !bytes.is_empty() {
            let Some((&first, piece)) = self.held.first_key_value() else {
                self.deliver(bytes, room, sink);
                break;
            };
            if first == self.next {
                let both = piece.len().min(bytes.len());
                noticed.is_conflict |= piece[..both] != bytes[..both];
                bytes = &bytes[both..];
                if let Some((_, piece)) = self.held.pop_first() {
                    self.release(piece.len(), room);
                    self.deliver(&piece, room, sink);
                }
            } else {
                let before = ((first - self.next) as usize).min(bytes.len());
                self.deliver(&bytes[..before], room, sink);
                bytes = &bytes[before..];
            }
        }
        self.drain(room, sink);
    }

    /// Holds what is new of bytes that stand behind a gap.
    fn hold(&mut self, start: u64, bytes: &[u8], room: &mut Room<'_>, sink: &mut dyn Sink, noticed: &mut Noticed) {
        let end = start + bytes.len() as u64;
        let part = |from: u64, until: u64| &bytes[(from - start) as usize..(until - start) as usize];
        let mut from = start;
        // The piece that begins before `start` may reach into it.
        let before = self.held.range(..=start).next_back().map(|(&at, _)| at);
        let mut fresh: Vec<(u64, u64)> = Vec::new();
        for (&at, piece) in self.held.range(before.unwrap_or(start)..end) {
            let piece_end = at + piece.len() as u64;
            if piece_end <= from {
                continue;
            }
            if at > from {
                fresh.push((from, at));
                from = at;
            }
            let until = piece_end.min(end);
            noticed.is_conflict |= piece[(from - at) as usize..(until - at) as usize] != *part(from, until);
            from = until;
        }
        if from < end {
            fresh.push((from, end));
        }
        for (from, until) in fresh {
            if from == self.next {
                // Room for the one before was made by giving up what was missing.
                self.deliver(part(from, until), room, sink);
                self.drain(room, sink);
            } else {
                self.insert(from, part(from, until), room, sink);
            }
        }
    }

    /// Holds a piece that overlaps no other. If that is too much, what is missing before the first piece is given up,
    /// again and again; this may reach the piece itself.
    fn insert(&mut self, at: u64, bytes: &[u8], room: &mut Room<'_>, sink: &mut dyn Sink) {
        let cost = bytes.len() + PIECE_OVERHEAD;
        loop {
            let is_full = self.held_bytes + cost > room.limits.held_max;
            if !is_full && *room.held_total + cost <= room.limits.held_total_max {
                self.held.insert(at, bytes.into());
                self.held_bytes += cost;
                *room.held_total += cost;
                return;
            }
            if is_full {
                room.stats.gaps_held_max += 1;
            } else {
                room.stats.gaps_held_total_max += 1;
            }
            match self.held.first_key_value() {
                Some((&first, _)) if first < at => {
                    self.skip_to(first, room, sink);
                    self.drain(room, sink);
                }
                _ => self.skip_to(at, room, sink),
            }
            if self.next == at {
                self.deliver(bytes, room, sink);
                self.drain(room, sink);
                return;
            }
        }
    }
}
