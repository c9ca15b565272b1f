//! A conversation of any protocol that there is a parser for: no panic, a bound on what is kept, and the same facts
//! however it is cut. What is found by its first bytes never changes with more of them.

use std::collections::HashSet;

use ebpfsentinel::packet::proto::detect::{Detected, detect};
use ebpfsentinel::packet::proto::{AppProto, Fact, Oddity, Out, Side, Stage, Told, datagram_parser_for, parser_for};

/// More than any parser keeps: bodies of HTTP have the largest cap.
const MEMORY_MAX: usize = 4 << 20;

enum Step<'a> {
    Take(Side, &'a [u8]),
    Skip(Side, u64),
    End(Side),
}

/// Steps out of bytes: of each a byte for what it is and who does it, a length, and as many bytes. A side that has ended
/// does nothing any more.
fn steps(mut bytes: &[u8]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut ended = [false; 2];
    while let [kind, length, rest @ ..] = bytes {
        let side = if kind & 1 == 0 { Side::Client } else { Side::Server };
        bytes = rest;
        // One in sixteen is a gap, and one an end.
        let step = match kind >> 4 {
            0xf => Step::Skip(side, u64::from(*length) << (kind & 0xe)),
            0xe => Step::End(side),
            _ => {
                let (now, behind) = rest.split_at(rest.len().min(usize::from(*length) << (kind >> 1 & 3)));
                bytes = behind;
                Step::Take(side, now)
            }
        };
        let is_empty = matches!(step, Step::Take(_, []));
        if !ended[side as usize] && !is_empty {
            ended[side as usize] = matches!(step, Step::End(_));
            steps.push(step);
        }
    }
    steps
}

/// Transactions and oddities, in their order.
type Heard = (Vec<Told>, Vec<(Side, Oddity)>);

fn read(protocol: AppProto, is_udp: bool, steps: &[Step<'_>], size: usize) -> Option<Heard> {
    let mut parser = if is_udp { datagram_parser_for(protocol)? } else { parser_for(protocol)? };
    let mut out = Out::default();
    for step in steps {
        match step {
            Step::Take(side, bytes) => bytes.chunks(size).for_each(|piece| parser.take(*side, piece, &mut out)),
            Step::Skip(side, missing) => parser.skip(*side, *missing, &mut out),
            Step::End(side) => parser.end(*side, &mut out),
        }
        let memory = parser.memory();
        assert!(memory <= MEMORY_MAX, "{protocol:?} keeps {memory}");
    }
    let ended = |side: Side| steps.iter().any(|step| matches!(step, Step::End(of) if *of == side));
    Side::BOTH.into_iter().filter(|side| !ended(*side)).for_each(|side| parser.end(side, &mut out));
    Some((out.told, out.oddities))
}

/// A transaction is asked once or not at all, and done once; see [`Stage`] for mails and queries.
fn assert_stages(protocol: AppProto, told: &[Told]) {
    let mut open = HashSet::new();
    let mut done = HashSet::new();
    for told in told {
        let is_first = match told.stage {
            Stage::Asked => open.insert(told.tx) || matches!(told.fact, Fact::Smtp(_)),
            Stage::Done => {
                open.remove(&told.tx);
                done.insert(told.tx)
            }
        };
        assert!(is_first && (told.stage == Stage::Done || !done.contains(&told.tx)), "{protocol:?}: {told:?} again");
    }
    assert!(open.is_empty() || protocol == AppProto::Dns, "{protocol:?}: not done: {open:?}");
}

/// Reads the conversation whole and in pieces; the first byte says by which protocol, the second how large the pieces
/// are.
pub fn run(bytes: &[u8]) {
    let [choice, size, rest @ ..] = bytes else { return };
    let choice = usize::from(*choice) % (AppProto::ALL.len() + 1);
    // The last is DNS over UDP: DNS over TCP has a place of its own.
    let protocol = AppProto::ALL.get(choice).copied().unwrap_or(AppProto::Dns);
    let is_udp = choice == AppProto::ALL.len() || protocol == AppProto::Quic;
    let steps = steps(rest);
    if let Some(whole) = read(protocol, is_udp, &steps, usize::MAX) {
        assert_stages(protocol, &whole.0);
        // A datagram is never cut.
        let pieces = (!is_udp).then(|| read(protocol, false, &steps, usize::from(*size).max(1))).flatten();
        assert!(pieces.is_none_or(|pieces| pieces == whole), "{protocol:?} in pieces of {size}");
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
