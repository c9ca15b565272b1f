//! A conversation of any protocol that there is a parser for: no panic, a bound on what is kept, and the same facts
//! however it is cut. What is found by its first bytes never changes with more of them.

use ebpfsentinel::packet::proto::detect::{Detected, detect};
use ebpfsentinel::packet::proto::{AppProto, Oddity, Out, Side, Told, parser_for};

/// More than any parser keeps: bodies of HTTP have the largest cap.
const MEMORY_MAX: usize = 4 << 20;

enum Step<'a> {
    Take(Side, &'a [u8]),
    Skip(Side, u64),
}

/// Steps out of bytes: of each a byte for what it is and who does it, a length, and as many bytes.
fn steps(mut bytes: &[u8]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    while let [kind, length, rest @ ..] = bytes {
        let side = if kind & 1 == 0 { Side::Client } else { Side::Server };
        // One in sixteen is a gap.
        if kind >> 4 == 0xf {
            steps.push(Step::Skip(side, u64::from(*length) << (kind & 0xe)));
            bytes = rest;
            continue;
        }
        let (now, behind) = rest.split_at(rest.len().min(usize::from(*length) << (kind >> 1 & 3)));
        if !now.is_empty() {
            steps.push(Step::Take(side, now));
        }
        bytes = behind;
    }
    steps
}

fn read(protocol: AppProto, steps: &[Step<'_>], size: usize) -> Option<(Vec<Told>, Vec<(Side, Oddity)>)> {
    let mut parser = parser_for(protocol)?;
    let mut out = Out::default();
    for step in steps {
        match step {
            Step::Take(side, bytes) => bytes.chunks(size).for_each(|piece| parser.take(*side, piece, &mut out)),
            Step::Skip(side, missing) => parser.skip(*side, *missing, &mut out),
        }
        let memory = parser.memory();
        assert!(memory <= MEMORY_MAX, "{protocol:?} keeps {memory}");
    }
    Side::BOTH.into_iter().for_each(|side| parser.end(side, &mut out));
    Some((out.told, out.oddities))
}

/// Reads the conversation whole and in pieces; the first byte says by which protocol, the second how large the pieces
/// are.
pub fn run(bytes: &[u8]) {
    let [protocol, size, rest @ ..] = bytes else { return };
    let protocol = AppProto::ALL[usize::from(*protocol) % AppProto::ALL.len()];
    let steps = steps(rest);
    // A datagram is never cut.
    if !matches!(protocol, AppProto::Quic) {
        let whole = read(protocol, &steps, usize::MAX);
        assert!(whole == read(protocol, &steps, usize::from(*size).max(1)), "{protocol:?} in pieces of {size}");
    } else {
        read(protocol, &steps, usize::MAX);
    }
    for step in &steps {
        let Step::Take(_, bytes) = step else { continue };
        let ask = |end: usize| detect(false, &bytes[..end], b"", 25);
        let last = ask(bytes.len());
        let ends = [1, bytes.len() / 2, bytes.len() - 1];
        assert!(ends.into_iter().all(|end| [Detected::More, last].contains(&ask(end))), "{last:?} of {bytes:?}");
        detect(true, bytes, bytes, 53);
    }
}
