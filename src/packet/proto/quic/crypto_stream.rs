//! The handshake's bytes of one side, which come in pieces and in any order (RFC 9000, 19.6).

use std::ops::Range;

use crate::packet::proto::KEPT_MAX;

/// Pieces with holes between them. Clients cut their hello in a few dozen on purpose.
const PIECES_MAX: usize = 256;

/// What is wrong with a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It lies behind what is kept, or is one hole too many.
    TooMuch,
    /// It says other than a piece before. The first counts.
    Conflict,
}

/// Bytes in order, as far as they are there.
#[derive(Debug, Default)]
pub(super) struct CryptoStream {
    bytes: Vec<u8>,
    /// What of them came: sorted, with holes between.
    pieces: Vec<Range<usize>>,
    /// Bytes of messages that were read.
    read: usize,
}

impl CryptoStream {
    /// Takes a piece. What came before stays.
    pub(super) fn insert(&mut self, offset: u64, data: &[u8]) -> Result<(), Fault> {
        let start = usize::try_from(offset).map_err(|_| Fault::TooMuch)?;
        let end = start.checked_add(data.len()).filter(|end| *end <= KEPT_MAX).ok_or(Fault::TooMuch)?;
        if data.is_empty() {
            return Ok(());
        }
        // Those that touch it become one with it.
        let first = self.pieces.partition_point(|piece| piece.end < start);
        let last = self.pieces.partition_point(|piece| piece.start <= end);
        if first == last && self.pieces.len() == PIECES_MAX {
            return Err(Fault::TooMuch);
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let mut at = start;
        let mut is_same = true;
        for piece in &self.pieces[first..last] {
            let common = piece.start.clamp(start, end)..piece.end.clamp(start, end);
            is_same &= self.bytes[common.clone()] == data[common.start - start..common.end - start];
            self.bytes[at..common.start.max(at)].copy_from_slice(&data[at - start..common.start.max(at) - start]);
            at = common.end.max(at);
        }
        self.bytes[at..end].copy_from_slice(&data[at - start..]);
        let joined = self.pieces[first..last]
            .iter()
            .fold(start..end, |joined, piece| joined.start.min(piece.start)..joined.end.max(piece.end));
        self.pieces.splice(first..last, [joined]);
        if is_same { Ok(()) } else { Err(Fault::Conflict) }
    }

    /// What is there, in order, behind the messages that were read.
    pub(super) fn ready(&self) -> &[u8] {
        match self.pieces.first() {
            Some(piece) if piece.start == 0 => &self.bytes[self.read..piece.end],
            _ => &[],
        }
    }

    /// The next message, if it is complete: its type and its body.
    pub(super) fn message(&self) -> Option<(u8, &[u8])> {
        let [kind, a, b, c, body @ ..] = self.ready() else {
            return None;
        };
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        body.get(..length).map(|body| (*kind, body))
    }

    /// The next message was read; it has so many bytes in its body.
    pub(super) fn advance(&mut self, body: usize) {
        self.read += 4 + body;
    }

    /// Bytes that it keeps, about.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.pieces.capacity() * size_of::<Range<usize>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a model that remembers each byte.
        #[test]
        fn the_first_byte_of_a_place_counts(
            pieces in prop::collection::vec((0usize..200, prop::collection::vec(0u8..3, 0..40)), 0..60),
        ) {
            let mut stream = CryptoStream::default();
            let mut model = [None; 256];
            for (offset, data) in pieces {
                let is_same = data.iter().enumerate().all(|(at, byte)| model[offset + at].is_none_or(|old| old == *byte));
                for (at, byte) in data.iter().enumerate() {
                    model[offset + at].get_or_insert(*byte);
                }
                let expected = if is_same { Ok(()) } else { Err(Fault::Conflict) };
                prop_assert_eq!(stream.insert(offset as u64, &data), expected);
                let ready: Vec<u8> = model.iter().map_while(|byte| *byte).collect();
                prop_assert_eq!(stream.ready(), &ready[..]);
                let holes = stream.pieces.windows(2).all(|pair| pair[0].end < pair[1].start);
                prop_assert!(holes, "{:?}", stream.pieces);
            }
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut stream = CryptoStream::default();
        assert_eq!(stream.insert(KEPT_MAX as u64, b"x"), Err(Fault::TooMuch));
        assert_eq!(stream.insert(u64::MAX, b"x"), Err(Fault::TooMuch));
        for number in 0..PIECES_MAX as u64 {
            assert_eq!(stream.insert(1 + 2 * number, b"x"), Ok(()));
        }
        assert_eq!(stream.insert(5000, b"x"), Err(Fault::TooMuch));
        assert_eq!(stream.insert(2, b"x"), Ok(()));
        assert!(stream.memory() < 2 * KEPT_MAX);
    }
}
