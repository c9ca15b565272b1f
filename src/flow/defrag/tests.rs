//! Fragments in, packets out, against a naive model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::flow::SECOND_NS;
use crate::packet::build::Packet as Build;
use crate::packet::frame::{Content, Link, decode};

struct Bench {
    defrag: Defrag,
    limits: Limits,
    stats: Stats,
    now_ns: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench { defrag: Defrag::new(1), limits: Limits::default(), stats: Stats::default(), now_ns: SECOND_NS }
    }

    fn frame(&mut self, bytes: &[u8]) -> Outcome {
        let frame = decode(Link::Ethernet, [0; 2], bytes).unwrap();
        let Content::Fragment(fragment) = frame.content else { panic!("{frame:?}") };
        self.defrag.take(&frame, &fragment, bytes.len(), self.now_ns, &self.limits, &mut self.stats)
    }
}

/// One fragment of packet `id`, at a place in units of 8 bytes.
fn piece(is_v6: bool, id: u32, offset: u16, has_more: bool, bytes: &[u8]) -> Vec<u8> {
    let ip = if is_v6 {
        Build::new().between("2001:db8::1", "2001:db8::2")
    } else {
        Build::new().between("10.0.0.1", "10.0.0.2")
    };
    ip.fragment(id, offset * 8, has_more).protocol(17).payload(bytes).build()
}

fn content(from: u16, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((usize::from(from) * 8 + i) * 13) as u8).collect()
}

#[test]
fn pieces_in_any_order_make_the_packet() {
    for is_v6 in [false, true] {
        let all = [(0u16, true, 16usize), (2, true, 24), (5, false, 5)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut bench = Bench::new();
            let mut whole = None;
            for (count, at) in order.into_iter().enumerate() {
                let (offset, has_more, len) = all[at];
                let frame = piece(is_v6, 9, offset, has_more, &content(offset, len));
                // A repeat changes nothing.
                if count < 2 {
                    assert!(bench.frame(&frame).whole.is_none());
                }
                let outcome = bench.frame(&frame);
                assert_eq!((outcome.whole.is_some(), outcome.odd), (count == 2, None));
                whole = outcome.whole;
            }
            let whole = whole.unwrap();
            assert_eq!((whole.payload, whole.protocol, whole.packets), (content(0, 45), 17, 5));
            assert_eq!((bench.defrag.len(), bench.defrag.held), (0, 0));
        }
    }
}

/// Fragments of one packet; what is odd about the last, and whether that completed the packet.
fn check(is_v6: bool, pieces: &[(u16, bool, &[u8])], odd: Option<&'static str>, whole: Option<&[u8]>) {
    let mut bench = Bench::new();
    let mut last = None;
    for (offset, has_more, bytes) in pieces {
        last = Some(bench.frame(&piece(is_v6, 3, *offset, *has_more, bytes)));
    }
    let last = last.unwrap();
    assert_eq!((last.odd, last.whole.map(|whole| whole.payload).as_deref()), (odd, whole), "{pieces:?}");
}

#[test]
fn overlaps_are_told_and_the_first_wins() {
    let (a, b) = (&[b'a'; 16][..], &[b'b'; 16][..]);
    // Both ways, and the teardrop: a piece inside another.
    check(false, &[(0, true, a), (1, false, b)], Some("fragment.overlap_conflict"), Some(&[a, &b[..8]].concat()));
    check(false, &[(1, false, b), (0, true, a)], Some("fragment.overlap_conflict"), Some(&[&a[..8], b].concat()));
    check(false, &[(0, true, &[b'a'; 32]), (1, false, &b[..8])], Some("fragment.beyond_end"), None);
    check(false, &[(0, true, a), (1, true, &a[..8]), (2, false, b)], None, Some(&[a, b].concat()));
    check(false, &[(0, true, a), (1, true, &a[..8])], Some("fragment.overlap"), None);
    check(false, &[(0, true, a), (0, true, b)], Some("fragment.overlap_conflict"), None);
    check(true, &[(0, true, a), (1, false, a)], Some("fragment.overlap_v6"), None);
    check(true, &[(0, true, a), (0, true, b)], Some("fragment.overlap_v6"), None);
    // Once given up, it stays so.
    check(true, &[(0, true, a), (0, true, b), (0, true, a), (2, false, a)], None, None);
}

#[test]
fn two_ends_give_a_packet_up() {
    let a = &[b'a'; 16][..];
    for is_v6 in [false, true] {
        check(is_v6, &[(2, false, a), (4, false, a)], Some("fragment.beyond_end"), None);
        check(is_v6, &[(4, false, a), (2, false, a)], Some("fragment.beyond_end"), None);
        check(is_v6, &[(2, false, a), (4, true, a)], Some("fragment.beyond_end"), None);
        check(is_v6, &[(4, true, a), (2, false, a)], Some("fragment.beyond_end"), None);
        check(is_v6, &[(4, true, b"")], Some("fragment.empty"), None);
    }
}

#[test]
fn too_many_pieces_give_a_packet_up() {
    let mut bench = Bench::new();
    for at in 0..300 {
        bench.frame(&piece(false, 1, at * 2, true, &[0; 8]));
    }
    assert_eq!((bench.stats.fragments_refused, bench.defrag.held), (1, OVERHEAD));
}

#[test]
fn packets_that_stay_in_pieces_time_out() {
    let mut bench = Bench::new();
    bench.frame(&piece(false, 1, 0, true, &[0; 8]));
    bench.now_ns += bench.limits.fragment_timeout_ns / 2;
    bench.frame(&piece(false, 2, 0, true, &[0; 8]));
    bench.now_ns += bench.limits.fragment_timeout_ns / 2;
    assert!(bench.frame(&piece(false, 1, 1, false, &[0; 8])).whole.is_none());
    assert!(bench.frame(&piece(false, 2, 1, false, &[0; 8])).whole.is_some());
    assert_eq!((bench.stats.fragments_timed_out, bench.defrag.len()), (1, 1));
}

#[test]
fn caps_in_number_and_bytes_hold() {
    let mut bench = Bench::new();
    bench.limits.fragmented_max = 10;
    for id in 0..1000 {
        bench.frame(&piece(true, id, 0, true, &[0; 8]));
        assert!(bench.defrag.len() <= 10);
    }
    assert_eq!(bench.stats.fragments_evicted, 990);
    // The oldest went: the last ten can still be completed.
    assert!(bench.frame(&piece(true, 990, 1, false, &[0; 8])).whole.is_some());
    assert!(bench.frame(&piece(true, 989, 1, false, &[0; 8])).whole.is_none());

    let mut bench = Bench::new();
    bench.limits.fragment_bytes_max = 10_000;
    for id in 0..1000 {
        bench.frame(&piece(true, id, 0, true, &[0; 800]));
        assert!(bench.defrag.held <= 10_000);
    }
    assert!(bench.defrag.memory() < 100_000);
    assert!(bench.stats.fragments_evicted > 980);
}

#[test]
fn packets_that_were_completed_leave_nothing() {
    let mut bench = Bench::new();
    for id in 0..10_000 {
        bench.frame(&piece(true, id, 0, true, &[0; 8]));
        assert!(bench.frame(&piece(true, id, 1, false, &[0; 8])).whole.is_some());
    }
    assert_eq!((bench.defrag.len(), bench.defrag.held), (0, 0));
    assert!(bench.defrag.order.len() < 200);
}

#[test]
fn packets_are_told_apart() {
    let mut bench = Bench::new();
    bench.frame(&piece(false, 1, 0, true, &[0; 8]));
    assert!(bench.frame(&piece(false, 2, 1, false, &[0; 8])).whole.is_none());
    let other = Build::new().between("10.0.0.1", "10.0.0.2").fragment(1, 8, false).protocol(6).payload(&[0; 8]);
    assert!(bench.frame(&other.build()).whole.is_none());
    let tagged = Build::new().vlan(5).between("10.0.0.1", "10.0.0.2").fragment(1, 8, false).protocol(17);
    assert!(bench.frame(&tagged.payload(&[0; 8]).build()).whole.is_none());
    assert_eq!(bench.defrag.len(), 4);
    assert!(bench.frame(&piece(false, 1, 1, false, &[0; 8])).whole.is_some());
}

proptest! {
    /// IPv4 against a map of bytes in which the first wins.
    #[test]
    fn v4_agrees_with_a_model(
        pieces in prop::collection::vec((0u16..12, 1usize..6, any::<bool>()), 1..40),
        units in 8u16..14,
    ) {
        let mut bench = Bench::new();
        let mut model: BTreeMap<usize, u8> = BTreeMap::new();
        let mut has_end = false;
        for (offset, len, lies) in pieces {
            let until = (offset + len as u16).min(units);
            if offset >= until {
                continue;
            }
            let mut bytes = content(offset, usize::from(until - offset) * 8);
            if lies {
                bytes.fill(0xff);
            }
            let is_last = until == units;
            let outcome = bench.frame(&piece(false, 1, offset, !is_last, &bytes));
            has_end |= is_last;
            let mut is_conflict = false;
            for (place, byte) in (usize::from(offset) * 8..).zip(&bytes) {
                is_conflict |= *model.entry(place).or_insert(*byte) != *byte;
            }
            prop_assert_eq!(outcome.odd == Some("fragment.overlap_conflict"), is_conflict);
            let is_whole = has_end && model.len() == usize::from(units) * 8;
            prop_assert_eq!(outcome.whole.is_some(), is_whole);
            if let Some(whole) = outcome.whole {
                prop_assert_eq!(whole.payload, model.values().copied().collect::<Vec<_>>());
                break;
            }
        }
    }

    /// IPv6: whole if and only if no two pieces overlap, but for repeats.
    #[test]
    fn v6_gives_up_what_overlaps(pieces in prop::collection::vec((0u16..8, 1u16..4), 1..20)) {
        let mut bench = Bench::new();
        let mut seen: Vec<(u16, u16)> = Vec::new();
        let mut is_refused = false;
        for (offset, len) in pieces {
            let until = (offset + len).min(8);
            let outcome = bench.frame(&piece(true, 1, offset, until < 8, &content(offset, usize::from(until - offset) * 8)));
            let overlaps = seen.iter().any(|(a, b)| *a < until && offset < *b);
            if !is_refused && overlaps && !seen.contains(&(offset, until)) {
                is_refused = true;
                prop_assert_eq!(outcome.odd, Some("fragment.overlap_v6"));
            } else if !overlaps {
                seen.push((offset, until));
            }
            let covered: u16 = seen.iter().map(|(a, b)| b - a).sum();
            prop_assert_eq!(outcome.whole.is_some(), !is_refused && covered == 8);
            if outcome.whole.is_some() {
                break;
            }
        }
    }
}
