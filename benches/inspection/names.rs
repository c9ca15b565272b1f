//! `gb_per_s.tls` and `gb_per_s.dns`: what the two parsers take in a second, on one core, without the flow layer.

use std::hint::black_box;
use std::time::Duration;

use ebpfsentinel::packet::proto::{AppProto, Out, Parser, Side, datagram_parser_for, parser_for};
use nix::time::{ClockId, clock_gettime};

/// Bytes that a segment carries on Ethernet.
const SEGMENT: usize = 1460;

/// Encrypted bytes that a server sends behind its handshake: a page.
const RESPONSE: usize = 64 * 1024;

/// The conversations of tests/data/handshakes that are taken, full handshakes of both versions.
pub const RECORDED: [&[u8]; 2] =
    [include_bytes!("../../tests/data/handshakes/tls12.bin"), include_bytes!("../../tests/data/handshakes/tls13.bin")];

pub type Conversation = Vec<(Side, Vec<u8>)>;

/// Time that this thread had a core, so that what else runs does not count.
pub fn core_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the clock of the thread").into()
}

/// Bytes per second in units of 10^9: the best of `rounds`, each at least `round_ms` long.
fn gb_per_s(rounds: u32, round_ms: u128, mut pass: impl FnMut() -> usize) -> f64 {
    let round = |pass: &mut dyn FnMut() -> usize| {
        let start = core_time();
        let mut bytes = 0;
        while (core_time() - start).as_millis() < round_ms {
            bytes += pass();
        }
        bytes as f64 / (core_time() - start).as_nanos() as f64
    };
    (0..rounds).map(|_| round(&mut pass)).fold(0.0, f64::max)
}

/// Feeds whole conversations, each to a parser of its own; the bytes.
fn feed(conversations: &[Conversation], make: impl Fn() -> Box<dyn Parser>) -> usize {
    let mut out = Out::default();
    let mut bytes = 0;
    for conversation in conversations {
        let mut parser = make();
        for (side, segment) in conversation {
            parser.take(*side, segment, &mut out);
            bytes += segment.len();
            black_box(&out.told);
            out.told.clear();
        }
        for side in Side::BOTH {
            parser.end(side, &mut out);
        }
        assert!(out.oddities.is_empty(), "{:?}", out.oddities);
    }
    bytes
}

/// A recorded conversation up to its application data, in segments.
pub fn handshake(recorded: &[u8]) -> Conversation {
    let mut segments = Vec::new();
    let mut rest = recorded;
    while let [side, a, b, c, d, behind @ ..] = rest {
        let (piece, behind) = behind.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        let side = if *side == 0 { Side::Client } else { Side::Server };
        segments.extend(piece.chunks(SEGMENT).map(|segment| (side, segment.to_vec())));
        rest = behind;
    }
    segments
}

/// TLS: a full handshake of 1.2 or 1.3, then 64 KiB of application data. The second figure is for handshakes alone, as
/// when every connection is new and carries next to nothing.
pub fn tls(rounds: u32, round_ms: u128) -> (f64, f64) {
    let handshakes: Vec<Conversation> = RECORDED.iter().map(|recorded| handshake(recorded)).collect();
    let make = || parser_for(AppProto::Tls).expect("TLS has a parser");
    let alone = gb_per_s(rounds, round_ms, || feed(&handshakes, make));
    let record = [&[23, 3, 3, 0x40, 0][..], &[0xa5; 1 << 14]].concat();
    let data = record.repeat(RESPONSE >> 14);
    let pages: Vec<Conversation> = handshakes
        .iter()
        .map(|handshake| {
            let data = data.chunks(SEGMENT).map(|segment| (Side::Server, segment.to_vec()));
            handshake.iter().cloned().chain(data).collect()
        })
        .collect();
    (gb_per_s(rounds, round_ms, || feed(&pages, make)), alone)
}

/// A query for a name, or its response with a CNAME and three addresses.
pub fn message(id: u16, is_response: bool) -> Vec<u8> {
    let counts: [u8; 4] = if is_response { [0x81, 0x80, 0, 1] } else { [1, 0, 0, 1] };
    let answers = if is_response { 4 } else { 0 };
    let mut bytes = [&id.to_be_bytes()[..], &counts, &[0, answers, 0, 0, 0, 1]].concat();
    bytes.extend(b"\x03www\x07example\x03org\0\0\x01\0\x01");
    if is_response {
        bytes.extend(b"\xc0\x0c\0\x05\0\x01\0\0\x01\x2c\0\x13\x04edge\x08provider\x03net\0");
        for last in 1..4 {
            bytes.extend([0xc0, 45, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last]);
        }
    }
    bytes.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// DNS over UDP: a query and its response of 130 bytes a conversation, as stub resolvers ask.
pub fn dns(rounds: u32, round_ms: u128) -> f64 {
    let conversations: Vec<Conversation> =
        (0..64).map(|id| vec![(Side::Client, message(id, false)), (Side::Server, message(id, true))]).collect();
    let make = || datagram_parser_for(AppProto::Dns).expect("DNS has a parser");
    gb_per_s(rounds, round_ms, || feed(&conversations, make))
}
