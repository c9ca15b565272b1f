//! Messages in datagrams, and in a stream behind their lengths (RFC 1035, 4.2).

use std::collections::VecDeque;
use std::sync::Arc;

use super::message;
use crate::packet::proto::detect::{PREFIX_MAX, is_dns_message};
use crate::packet::proto::{Fact, Oddity, Out, Parser, Side, Stage};

/// Queries of a conversation that wait for their response. The oldest is forgotten; its response is a transaction of
/// its own then.
const WAITING_MAX: usize = 64;

/// What datagrams and streams have in common: which response belongs to which query.
#[derive(Debug, Default)]
struct Exchanges {
    /// Identifier and transaction.
    waiting: VecDeque<(u16, u32)>,
    next_tx: u32,
}

impl Exchanges {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        let Some(message) = message::read(bytes, &mut |name| out.oddities.push((side, Oddity(name)))) else {
            return;
        };
        let waiting = self.waiting.iter().position(|(id, _)| message.is_response() && *id == message.id);
        let known = waiting.and_then(|at| self.waiting.remove(at)).map(|(_, tx)| tx);
        let tx = known.unwrap_or_else(|| {
            self.next_tx += 1;
            self.next_tx - 1
        });
        if message.is_response() {
            return out.tell(tx, Stage::Done, Fact::Dns(Arc::new(message)));
        }
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back((message.id, tx));
        out.tell(tx, Stage::Asked, Fact::Dns(Arc::new(message)));
    }

    fn memory(&self) -> usize {
        self.waiting.capacity() * size_of::<(u16, u32)>()
    }
}

/// Reads DNS over UDP.
#[derive(Debug, Default)]
pub struct Datagrams {
    exchanges: Exchanges,
}

impl Parser for Datagrams {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        self.exchanges.take(side, bytes, out);
    }

    fn skip(&mut self, _side: Side, _missing: u64, _out: &mut Out) {}

    fn end(&mut self, _side: Side, _out: &mut Out) {}

    fn memory(&self) -> usize {
        size_of::<Self>() + self.exchanges.memory()
    }
}

/// One side of a stream.
#[derive(Debug, Default)]
struct Half {
    length: [u8; 2],
    length_filled: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    /// What came of the message, or behind a gap.
    kept: Vec<u8>,
    /// A piece of the message is missing.
    has_hole: bool,
    place: Place,
}

/// Whether it is known where messages begin.
#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Known,
    /// Not yet, behind a gap: one begins right there, or is not found. Who sends a message in a segment, as most do, has
    /// lost whole ones.
    Behind,
    /// Not until the next gap.
    Lost,
}

/// Reads DNS over TCP.
#[derive(Debug, Default)]
pub struct Stream {
    exchanges: Exchanges,
    halves: [Half; 2],
}

impl Stream {
    /// Takes a length or a piece of a message; what is left.
    fn step<'a>(&mut self, side: Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = &mut self.halves[side as usize];
        if half.left == 0 {
            half.length[half.length_filled] = bytes[0];
            half.length_filled += 1;
            if half.length_filled == half.length.len() {
                half.length_filled = 0;
                half.left = u16::from_be_bytes(half.length).into();
                if half.left == 0 {
                    out.odd(side, "dns.short_message");
                }
            }
            return &bytes[1..];
        }
        let (now, rest) = bytes.split_at(bytes.len().min(half.left));
        half.left -= now.len();
        if half.left > 0 {
            if !half.has_hole {
                half.kept.extend_from_slice(now);
            }
        } else if std::mem::take(&mut half.has_hole) {
            half.kept = Vec::new();
        } else if half.kept.is_empty() {
            self.exchanges.take(side, now, out);
        } else {
            let mut kept = std::mem::take(&mut half.kept);
            kept.extend_from_slice(now);
            self.exchanges.take(side, &kept, out);
        }
        rest
    }

    /// Looks whether a message begins behind a gap; what is left, when that is known.
    fn find<'a>(&mut self, side: Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = &mut self.halves[side as usize];
        let (now, rest) = bytes.split_at(bytes.len().min(PREFIX_MAX - half.kept.len()));
        half.kept.extend_from_slice(now);
        match is_dns_message(&half.kept) {
            None if half.kept.len() < PREFIX_MAX => {}
            Some(true) => {
                half.place = Place::Known;
                let kept = std::mem::take(&mut half.kept);
                self.take(side, &kept, out);
            }
            _ => *half = Half { place: Place::Lost, ..Half::default() },
        }
        rest
    }
}

impl Parser for Stream {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.halves[side as usize].place {
                Place::Known => self.step(side, rest, out),
                Place::Behind => self.find(side, rest, out),
                Place::Lost => return,
            };
        }
    }

    fn skip(&mut self, side: Side, missing: u64, _out: &mut Out) {
        let half = &mut self.halves[side as usize];
        match usize::try_from(missing) {
            Ok(missing) if missing <= half.left && half.place == Place::Known => {
                half.left -= missing;
                half.kept = Vec::new();
                half.has_hole = half.left > 0;
            }
            _ => *half = Half { place: Place::Behind, ..Half::default() },
        }
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        let half = &mut self.halves[side as usize];
        if !half.kept.is_empty() && half.place == Place::Known {
            out.odd(side, "dns.cut_message");
            let kept = std::mem::take(half).kept;
            self.exchanges.take(side, &kept, out);
        }
        self.halves[side as usize] = Half { place: Place::Lost, ..Half::default() };
    }

    fn memory(&self) -> usize {
        let kept = self.halves.iter().map(|half| half.kept.capacity()).sum::<usize>();
        size_of::<Self>() + self.exchanges.memory() + kept
    }
}
