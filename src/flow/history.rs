//! Bytes that were delivered lately, of all flows of an inspector in one ring.
//!
//! A retransmission with other bytes than the first time can only matter as long as the receiver has not acknowledged
//! them. Most bytes are acknowledged at once, so a ring that all flows share finds what copies of each flow's last
//! bytes would find, for a small part of the memory.

/// A ring of bytes. Places count from the start of the run and never come again.
pub(super) struct History {
    ring: Box<[u8]>,
    written: u64,
}

impl History {
    /// Of so many bytes, rounded up to a power of two.
    pub(super) fn new(bytes: usize) -> History {
        History { ring: vec![0; bytes.max(1).next_power_of_two()].into_boxed_slice(), written: 0 }
    }

    /// Bytes that it takes.
    pub(super) fn memory(&self) -> usize {
        self.ring.len()
    }

    fn index(&self, place: u64) -> usize {
        (place as usize) & (self.ring.len() - 1)
    }

    /// Adds bytes; gives their place.
    pub(super) fn push(&mut self, bytes: &[u8]) -> u64 {
        let place = self.written;
        self.written += bytes.len() as u64;
        // Of more than the ring holds, the end stays.
        let lost = bytes.len().saturating_sub(self.ring.len());
        let kept = &bytes[lost..];
        let at = self.index(place + lost as u64);
        let (first, second) = kept.split_at(kept.len().min(self.ring.len() - at));
        self.ring[at..at + first.len()].copy_from_slice(first);
        self.ring[..second.len()].copy_from_slice(second);
        place
    }

    /// Whether the same bytes stand at a place; `None` when they were overwritten, even in part.
    pub(super) fn is_same(&self, place: u64, bytes: &[u8]) -> Option<bool> {
        if self.written - place > self.ring.len() as u64 {
            return None;
        }
        let at = self.index(place);
        let (first, second) = bytes.split_at(bytes.len().min(self.ring.len() - at));
        Some(self.ring[at..at + first.len()] == *first && self.ring[..second.len()] == *second)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a history that forgets nothing.
        #[test]
        fn what_is_not_overwritten_is_compared(
            pushes in prop::collection::vec(prop::collection::vec(0u8..3, 0..40), 1..30),
            flip in any::<bool>(),
        ) {
            let (mut history, mut all) = (History::new(64), Vec::new());
            for bytes in &pushes {
                prop_assert_eq!(history.push(bytes), all.len() as u64);
                all.extend_from_slice(bytes);
                for place in all.len().saturating_sub(80)..all.len() {
                    let mut asked = all[place..(place + 7).min(all.len())].to_vec();
                    asked[0] ^= u8::from(flip);
                    let expected = (all.len() - place <= 64).then_some(!flip);
                    prop_assert_eq!(history.is_same(place as u64, &asked), expected);
                }
            }
        }
    }
}
