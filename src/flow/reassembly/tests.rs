//! The stream against a naive model that keeps every byte it ever saw.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A small generator of its own, so that a run of a million steps is the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// What a stream delivered: bytes, and gaps.
#[derive(Default, Debug, PartialEq, Eq, Clone)]
struct Got(Vec<Option<u8>>);

impl Sink for Got {
    fn data(&mut self, bytes: &[u8], _: &mut Stats) {
        assert!(!bytes.is_empty());
        self.0.extend(bytes.iter().copied().map(Some));
    }

    fn gap(&mut self, missing: u64, _: &mut Stats) {
        assert!(missing > 0);
        self.0.extend((0..missing).map(|_| None));
    }
}

/// A receiver that keeps a map of all bytes, each at its place.
#[derive(Default)]
struct Model {
    /// Bytes that wait behind a gap.
    held: BTreeMap<u64, u8>,
    /// Bytes that were delivered, `None` where they were given up.
    delivered: Vec<Option<u8>>,
    acked: u64,
}

impl Model {
    fn next(&self) -> u64 {
        self.delivered.len() as u64
    }

    fn drain(&mut self) {
        while let Some(byte) = self.held.remove(&self.next()) {
            self.delivered.push(Some(byte));
        }
    }

    fn skip_to(&mut self, place: u64) {
        while self.next() < place {
            self.delivered.push(None);
        }
        self.drain();
    }

    /// Says whether there is a conflict, and whether there are bytes for a place that was given up.
    fn segment(&mut self, start: u64, bytes: &[u8]) -> (bool, bool) {
        let (mut is_conflict, mut is_in_gap) = (false, false);
        for (place, byte) in (start..).zip(bytes) {
            if let Some(old) = self.delivered.get(place as usize) {
                is_conflict |= place >= self.acked && old.is_some_and(|old| old != *byte);
                is_in_gap |= old.is_none();
            } else {
                is_conflict |= *self.held.entry(place).or_insert(*byte) != *byte;
            }
        }
        self.drain();
        self.acknowledge(self.acked);
        (is_conflict, is_in_gap)
    }

    fn acknowledge(&mut self, place: u64) {
        self.acked = self.acked.max(place);
        while let Some((&first, _)) = self.held.first_key_value()
            && first <= self.acked
        {
            self.skip_to(first);
        }
    }

    fn flush(&mut self) {
        while let Some((&first, _)) = self.held.first_key_value() {
            self.skip_to(first);
        }
    }
}

struct Bench {
    limits: Limits,
    history: History,
    stats: Stats,
    held_total: usize,
}

impl Bench {
    fn new(held_max: usize, history: usize) -> Bench {
        let limits = Limits { held_max, held_total_max: 2 * held_max, ..Limits::default() };
        Bench { limits, history: History::new(history), stats: Stats::default(), held_total: 0 }
    }

    fn room(&mut self) -> Room<'_> {
        Room {
            limits: &self.limits,
            history: &mut self.history,
            stats: &mut self.stats,
            held_total: &mut self.held_total,
        }
    }
}

/// Some hundred operations on one stream, with caps out of reach: the model and the stream agree at each step.
fn run(random: &mut Random, operations: usize) -> Stats {
    let mut bench = Bench::new(1 << 30, 1 << 16);
    let isn = random.next() as u32;
    let (mut stream, mut model) = (Stream::new(isn), Model::default());
    let (mut got, mut end) = (Got::default(), 0u64);
    for _ in 0..operations {
        let number = |place: u64| isn.wrapping_add(place as u32);
        match random.below(20) {
            0 => {
                let place = model.acked + random.below(60);
                let place = place.min(end);
                stream.acknowledge(number(place), &mut bench.room(), &mut got);
                model.acknowledge(place);
            }
            1 if random.below(10) == 0 => {
                let place = model.next() + random.below(50);
                stream.lose_until(number(place), 1, &mut bench.room(), &mut got);
                while model.next() < place {
                    let first = model.held.first_key_value().map_or(place, |(&first, _)| first.min(place));
                    model.skip_to(first);
                }
            }
            _ => {
                let back = random.below(40);
                let start = (model.next() + random.below(60)).saturating_sub(back);
                // Bytes follow from their place, but for a few that lie.
                let lie = u8::from(random.below(15) == 0);
                let len = random.below(30);
                let bytes: Vec<u8> = (start..start + len).map(|place| (place * 31) as u8 ^ lie).collect();
                let noticed = stream.segment(number(start), &bytes, &mut bench.room(), &mut got);
                end = end.max(start + len);
                let (is_conflict, is_in_gap) = model.segment(start, &bytes);
                assert_eq!(noticed.is_conflict, is_conflict);
                // Of gaps only the last is remembered.
                assert!(is_in_gap || !noticed.is_unchecked && !noticed.is_late);
            }
        }
        assert_eq!(stream.next() as u32, number(model.next()));
        let held: usize = stream.held.values().map(|piece| piece.len()).sum();
        assert_eq!(held, model.held.len());
        assert_eq!(stream.held_bytes, held + stream.held.len() * PIECE_OVERHEAD);
        assert_eq!(bench.held_total, stream.held_bytes);
    }
    stream.flush(&mut bench.room(), &mut got);
    model.flush();
    assert_eq!(got.0, model.delivered);
    assert_eq!(bench.held_total, 0);
    bench.stats
}

#[test]
fn a_million_random_operations_agree_with_the_model() {
    let mut random = Random(0x853c_49e6_748f_ea9b);
    let mut sum = Stats::default();
    for _ in 0..5000 {
        sum.add(&run(&mut random, 200));
    }
    // The run met what it is about.
    for (name, count) in [
        ("gaps", sum.gaps),
        ("acknowledged", sum.gaps_acknowledged),
        ("out of order", sum.out_of_order),
        ("conflicts", sum.overlap_conflicts),
        ("retransmissions", sum.retransmissions),
        ("lost", sum.gaps_unseen),
    ] {
        assert!(count > 1000, "{name}: {count}");
    }
}

/// Bytes follow from their place.
fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

proptest! {
    /// However a stream is cut, reordered and repeated, its bytes come out, once each and in order.
    #[test]
    fn any_cut_order_and_repeat_gives_the_same_bytes(
        isn in any::<u32>(),
        len in 1usize..600,
        cuts in prop::collection::vec((0usize..600, 1usize..120), 0..60),
        seed in 1u64..u64::MAX,
    ) {
        let bytes = content(len);
        // Pieces anywhere, and those that make the stream whole.
        let mut pieces: Vec<(usize, usize)> = cuts.iter().map(|(at, n)| (at % len, (at % len + n).min(len))).collect();
        pieces.extend((0..len).step_by(50).map(|at| (at, (at + 50).min(len))));
        let mut random = Random(seed);
        for i in (1..pieces.len()).rev() {
            pieces.swap(i, random.below(i as u64 + 1) as usize);
        }
        let mut bench = Bench::new(1 << 20, 1 << 12);
        let (mut stream, mut got) = (Stream::new(isn), Got::default());
        for (from, until) in pieces {
            let number = isn.wrapping_add(from as u32);
            let noticed = stream.segment(number, &bytes[from..until], &mut bench.room(), &mut got);
            prop_assert_eq!(noticed, Noticed::default());
        }
        prop_assert_eq!(got.0, bytes.into_iter().map(Some).collect::<Vec<_>>());
        prop_assert_eq!((bench.held_total, bench.stats.gaps), (0, 0));
    }

    /// Under caps nothing is delivered twice or out of place, and the caps hold after every step.
    #[test]
    fn caps_hold_and_bytes_keep_their_places(
        held_max in 80usize..600,
        pieces in prop::collection::vec((0usize..2000, 1usize..100), 1..100),
    ) {
        let bytes = content(2100);
        let mut bench = Bench::new(held_max, 1 << 12);
        bench.limits.held_total_max = held_max * 3 / 4;
        let (mut stream, mut got) = (Stream::new(77), Got::default());
        for (at, len) in pieces {
            stream.segment(77 + at as u32, &bytes[at..at + len], &mut bench.room(), &mut got);
            prop_assert!(bench.held_total <= held_max * 3 / 4);
            prop_assert!(stream.held.first_key_value().is_none_or(|(&first, _)| first > stream.next));
        }
        stream.flush(&mut bench.room(), &mut got);
        for (place, byte) in got.0.iter().enumerate() {
            prop_assert!(byte.is_none_or(|byte| byte == bytes[place]));
        }
        let missing = got.0.iter().filter(|byte| byte.is_none()).count();
        prop_assert_eq!(bench.stats.gap_bytes, missing as u64);
    }
}

#[test]
fn numbers_wrap_around() {
    let mut bench = Bench::new(1 << 20, 1 << 12);
    let (mut stream, mut got) = (Stream::new(u32::MAX - 2), Got::default());
    stream.segment(3, b"gh", &mut bench.room(), &mut got);
    stream.segment(u32::MAX, b"cdef", &mut bench.room(), &mut got);
    stream.segment(u32::MAX - 2, b"ab", &mut bench.room(), &mut got);
    assert_eq!(got.0, b"abcdefgh".map(Some));
}

#[test]
fn what_is_too_old_to_compare_is_said() {
    let mut bench = Bench::new(1 << 20, 16);
    let (mut stream, mut got) = (Stream::new(0), Got::default());
    for at in 0..10u32 {
        stream.segment(at * 4, b"abcd", &mut bench.room(), &mut got);
    }
    let again = stream.segment(0, b"abcd", &mut bench.room(), &mut got);
    assert_eq!(again, Noticed { is_unchecked: true, ..Noticed::default() });
    // Once it is acknowledged the receiver does not care either.
    stream.acknowledge(20, &mut bench.room(), &mut got);
    let again = stream.segment(0, b"xxxx", &mut bench.room(), &mut got);
    assert_eq!(again, Noticed::default());
    let again = stream.segment(36, b"xbcd", &mut bench.room(), &mut got);
    assert!(again.is_conflict);
}

#[test]
fn many_runs_of_delivered_bytes_stay_bounded() {
    let mut bench = Bench::new(1 << 20, 1 << 12);
    let (mut stream, mut other, mut got) = (Stream::new(0), Stream::new(0), Got::default());
    for at in 0..1000u32 {
        // The other stream's bytes keep the runs from growing together.
        stream.segment(at, b"a", &mut bench.room(), &mut got);
        other.segment(at, b"b", &mut bench.room(), &mut got);
    }
    assert!(stream.recent.len() <= RECENT_MAX);
    assert!(stream.segment(999, b"x", &mut bench.room(), &mut got).is_conflict);
    assert!(stream.segment(0, b"a", &mut bench.room(), &mut got).is_unchecked);
}

#[test]
fn bytes_for_a_gap_that_was_given_up_are_said() {
    let mut bench = Bench::new(1 << 20, 1 << 12);
    let (mut stream, mut got) = (Stream::new(0), Got::default());
    stream.segment(10, b"later", &mut bench.room(), &mut got);
    stream.acknowledge(15, &mut bench.room(), &mut got);
    assert_eq!(got.0.len(), 15);
    let late = stream.segment(0, b"0123456789", &mut bench.room(), &mut got);
    assert_eq!(late, Noticed { is_late: true, ..Noticed::default() });
}
