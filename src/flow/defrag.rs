//! Puts fragments together.
//!
//! IPv4: the first data at a place wins; an overlap with other bytes is told. IPv6: a packet with any overlap is given
//! up (RFC 5722), but for exact repeats. What else contradicts itself (two ends, data behind the end) gives the packet
//! up too, and so do timeouts and caps; each is counted.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::IpAddr;

use ahash::RandomState;
use hashbrown::HashMap;

use super::limits::Limits;
use super::stats::Stats;
use crate::packet::frame::{Fragment, Frame, Headers};

/// Pieces of one packet. More is no way to send a packet: 65,535 bytes in an MTU of 576 are 119.
const PIECES_MAX: usize = 256;
/// What a packet in fragments costs beside its bytes, about.
const OVERHEAD: usize = 256;
/// What a piece costs beside its bytes.
const PIECE_OVERHEAD: usize = 40;

/// What tells packets apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    protocol: u8,
    vlans: [u16; 2],
    depth: u8,
}

struct Piece {
    start: u32,
    bytes: Box<[u8]>,
}

impl Piece {
    fn end(&self) -> u32 {
        self.start + self.bytes.len() as u32
    }
}

struct Parts {
    ip: Headers,
    protocol: u8,
    /// In order of place, none overlaps another.
    pieces: Vec<Piece>,
    held: usize,
    /// Bytes of the whole, once its end was seen.
    len: Option<u32>,
    packets: u64,
    bytes: u64,
    began_ns: u64,
    number: u64,
    /// Given up: later fragments of it are thrown away until its time is over.
    is_refused: bool,
}

/// A packet that is whole again.
#[derive(Debug)]
pub struct Whole {
    /// Its header: that of the fragment that completed it, with the least TTL of all.
    pub ip: Headers,
    /// Protocol of its payload.
    pub protocol: u8,
    /// Its payload.
    pub payload: Vec<u8>,
    /// Frames that it came in.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What became of a fragment.
#[derive(Debug)]
pub struct Outcome {
    /// The packet, if this was what it lacked.
    pub whole: Option<Whole>,
    /// What is odd.
    pub odd: Option<&'static str>,
}

/// Packets in fragments.
pub struct Defrag {
    parts: HashMap<Key, Parts, RandomState>,
    /// In order of their first fragment. Numbers tell those that are gone from their successors.
    order: VecDeque<(Key, u64)>,
    held: usize,
    count: u64,
}

impl Defrag {
    /// An empty one. The secret keeps others from choosing keys that collide.
    pub fn new(secret: u64) -> Defrag {
        let keys = RandomState::with_seeds(secret.rotate_left(17), secret, !secret, 0x2545_f491_4f6c_dd1d);
        Defrag { parts: HashMap::with_hasher(keys), order: VecDeque::new(), held: 0, count: 0 }
    }

    /// Packets that wait.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes that are kept.
    pub fn memory(&self) -> usize {
        self.held + self.order.capacity() * size_of::<(Key, u64)>()
    }

    /// Takes a fragment that came in a frame of `frame_len` bytes.
    pub fn take(
        &mut self,
        frame: &Frame<'_>,
        fragment: &Fragment<'_>,
        frame_len: usize,
        now_ns: u64,
        limits: &Limits,
        stats: &mut Stats,
    ) -> Outcome {
        self.expire(now_ns, limits, stats);
        let ip = frame.ip;
        // IPv6 tells packets apart by addresses and id (RFC 8200 4.5), since a later fragment's next header is not
        // looked at.
        let protocol = if ip.source.is_ipv4() { frame.protocol } else { 0 };
        let key = Key {
            source: ip.source,
            destination: ip.destination,
            id: fragment.id,
            protocol,
            vlans: ip.vlans,
            depth: ip.depth,
        };
        if !self.parts.contains_key(&key) {
            self.begin(key, frame, now_ns);
        }
        let Some(parts) = self.parts.get_mut(&key) else { return Outcome { whole: None, odd: None } };
        parts.packets += 1;
        parts.bytes += frame_len as u64;
        if parts.is_refused {
            return Outcome { whole: None, odd: None };
        }
        if fragment.offset == 0 {
            parts.protocol = frame.protocol;
        }
        parts.ip.ttl = parts.ip.ttl.min(ip.ttl);
        let before = parts.held;
        let odd = match parts.add(fragment, ip.source.is_ipv6()) {
            Ok(odd) => odd,
            Err(odd) => {
                stats.fragments_refused += 1;
                parts.refuse();
                Some(odd)
            }
        };
        self.held = self.held - before + parts.held;
        let whole = if parts.is_whole() { self.finish(&key) } else { None };
        stats.defragmented += u64::from(whole.is_some());
        while self.parts.len() > limits.fragmented_max.max(1) || self.held > limits.fragment_bytes_max {
            if !self.drop_first(stats, |stats| &mut stats.fragments_evicted) {
                break;
            }
        }
        Outcome { whole, odd }
    }

    /// Gives up what waited for too long.
    pub fn expire(&mut self, now_ns: u64, limits: &Limits, stats: &mut Stats) {
        while let Some((key, number)) = self.order.front() {
            match self.parts.get(key) {
                Some(parts)
                    if parts.number == *number
                        && now_ns.saturating_sub(parts.began_ns) < limits.fragment_timeout_ns =>
                {
                    break;
                }
                _ => self.drop_first(stats, |stats| &mut stats.fragments_timed_out),
            };
        }
    }

    fn begin(&mut self, key: Key, frame: &Frame<'_>, now_ns: u64) {
        let number = self.count;
        self.count += 1;
        self.held += OVERHEAD;
        let parts = Parts {
            ip: frame.ip,
            protocol: frame.protocol,
            pieces: Vec::new(),
            held: OVERHEAD,
            len: None,
            packets: 0,
            bytes: 0,
            began_ns: now_ns,
            number,
            is_refused: false,
        };
        self.parts.insert(key, parts);
        self.order.push_back((key, number));
    }

    fn finish(&mut self, key: &Key) -> Option<Whole> {
        let parts = self.parts.remove(key)?;
        self.held -= parts.held;
        // What is behind the front may be gone too; it goes when it comes to the front, or here when much is.
        if self.order.len() > 2 * self.parts.len() + 64 {
            let kept = &self.parts;
            self.order.retain(|(key, number)| kept.get(key).is_some_and(|parts| parts.number == *number));
        }
        let mut payload = Vec::with_capacity(parts.len.unwrap_or(0) as usize);
        for piece in &parts.pieces {
            payload.extend_from_slice(&piece.bytes);
        }
        Some(Whole { ip: parts.ip, protocol: parts.protocol, payload, packets: parts.packets, bytes: parts.bytes })
    }

    /// Forgets the oldest; says whether there was one.
    fn drop_first(&mut self, stats: &mut Stats, counter: impl Fn(&mut Stats) -> &mut u64) -> bool {
        let Some((key, number)) = self.order.pop_front() else { return false };
        if self.parts.get(&key).is_some_and(|parts| parts.number == number)
            && let Some(parts) = self.parts.remove(&key)
        {
            self.held -= parts.held;
            // A refused one was counted when it was.
            *counter(stats) += u64::from(!parts.is_refused);
        }
        true
    }
}

impl Parts {
    /// Adds a fragment's bytes where there are none. An error says why the packet has to be given up.
    fn add(&mut self, fragment: &Fragment<'_>, is_v6: bool) -> Result<Option<&'static str>, &'static str> {
        let (start, end) = (u32::from(fragment.offset), u32::from(fragment.offset) + fragment.bytes.len() as u32);
        let reach = self.pieces.last().map_or(0, Piece::end);
        match self.len {
            Some(len) if end > len || !fragment.has_more && end != len => return Err("fragment.beyond_end"),
            None if !fragment.has_more && reach > end => return Err("fragment.beyond_end"),
            None if !fragment.has_more => self.len = Some(end),
            _ => {}
        }
        if fragment.bytes.is_empty() {
            return if fragment.has_more { Err("fragment.empty") } else { Ok(None) };
        }
        let part = |from: u32, until: u32| &fragment.bytes[(from - start) as usize..(until - start) as usize];
        let first = self.pieces.partition_point(|piece| piece.end() <= start);
        let mut from = start;
        let (mut is_conflict, mut is_overlap) = (false, false);
        let mut fresh = Vec::new();
        for piece in self.pieces[first..].iter().take_while(|piece| piece.start < end) {
            if is_v6 {
                // A repeat that a network made is no attack (RFC 8200 4.5).
                return if piece.start == start && *piece.bytes == *fragment.bytes {
                    Ok(None)
                } else {
                    Err("fragment.overlap_v6")
                };
            }
            if piece.start > from {
                fresh.push((from, piece.start));
                from = piece.start;
            }
            let until = piece.end().min(end);
            is_overlap |= piece.start != start || piece.end() != end;
            is_conflict |=
                piece.bytes[(from - piece.start) as usize..(until - piece.start) as usize] != *part(from, until);
            from = until;
        }
        if from < end {
            fresh.push((from, end));
        }
        if self.pieces.len() + fresh.len() > PIECES_MAX {
            return Err("fragment.too_many");
        }
        for (from, until) in fresh {
            let at = self.pieces.partition_point(|piece| piece.start < from);
            self.pieces.insert(at, Piece { start: from, bytes: part(from, until).into() });
            self.held += (until - from) as usize + PIECE_OVERHEAD;
        }
        Ok(match (is_conflict, is_overlap) {
            (true, _) => Some("fragment.overlap_conflict"),
            (false, true) => Some("fragment.overlap"),
            (false, false) => None,
        })
    }

    fn refuse(&mut self) {
        self.is_refused = true;
        self.pieces = Vec::new();
        self.held = OVERHEAD;
    }

    fn is_whole(&self) -> bool {
        // Pieces do not overlap and none is beyond the end: they are all there when their lengths add up.
        let Some(len) = self.len else { return false };
        !self.is_refused && self.held - OVERHEAD == len as usize + self.pieces.len() * PIECE_OVERHEAD
    }
}
