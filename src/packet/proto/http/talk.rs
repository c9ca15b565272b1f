//! Conversations for the tests of HTTP's parsers: who says what, cut in any way, and what is told of it, as text.

use proptest::prelude::*;

use super::Exchange;
use crate::packet::proto::{Fact, Out, Parser, Side, Stage};

/// One thing that happens to a conversation.
#[derive(Clone, Debug)]
pub enum Step {
    Says(Side, Vec<u8>),
    Misses(Side, u64),
    Ends(Side),
}

/// What the client says.
pub fn c(bytes: impl AsRef<[u8]>) -> Step {
    Step::Says(Side::Client, bytes.as_ref().to_vec())
}

/// What the server says.
pub fn s(bytes: impl AsRef<[u8]>) -> Step {
    Step::Says(Side::Server, bytes.as_ref().to_vec())
}

/// What both sides' ends are.
pub fn ends() -> [Step; 2] {
    [Step::Ends(Side::Client), Step::Ends(Side::Server)]
}

/// Runs steps, each as one piece.
pub fn run(parser: &mut dyn Parser, steps: &[Step]) -> Out {
    run_cut(parser, steps, |rest| rest)
}

/// Runs steps, cut into pieces as `next_len` says: it is given what is left of a step, and takes at least one byte.
pub fn run_cut(parser: &mut dyn Parser, steps: &[Step], mut next_len: impl FnMut(usize) -> usize) -> Out {
    let mut out = Out::default();
    for step in steps {
        match step {
            Step::Says(side, bytes) => {
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (piece, behind) = rest.split_at(next_len(rest.len()).clamp(1, rest.len()));
                    parser.take(*side, piece, &mut out);
                    rest = behind;
                }
            }
            Step::Misses(side, missing) => parser.skip(*side, *missing, &mut out),
            Step::Ends(side) => parser.end(*side, &mut out),
        }
    }
    out
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// An exchange as text: request, then the response if it came, with what the bodies were.
fn exchange(exchange: &Exchange) -> String {
    let body = |bytes: u64, start: &[u8]| {
        let start = if start.len() > 40 { format!("{}...", text(&start[..20])) } else { text(start) };
        if bytes > 0 { format!(" [{bytes}:{start}]") } else { String::new() }
    };
    let mut line = String::new();
    if let Some(stream) = exchange.stream {
        line += &format!("#{stream} ");
    }
    line += &format!("{} {}", text(&exchange.method), text(&exchange.target));
    if let Some(host) = &exchange.host {
        line += &format!(" @{}", text(host));
    }
    if let Some(port) = exchange.port {
        line += &format!(":{port}");
    }
    line += &body(exchange.request_bytes, &exchange.request_body);
    if let Some(status) = exchange.status {
        line += &format!(" -> {status} {}", text(&exchange.reason));
    }
    line += &body(exchange.response_bytes, &exchange.response_body);
    if let Some(grpc) = &exchange.grpc {
        line += &format!(" grpc {} {} {:?}", text(&grpc.service), text(&grpc.method), grpc.status);
    }
    line.trim_end().to_owned()
}

/// What was told, a line each: `?` is asked, `=` is done, `!` is odd.
pub fn lines(out: &Out) -> Vec<String> {
    let told = out.told.iter().map(|told| {
        let Fact::Http(fact) = &told.fact else { panic!("another protocol's fact: {told:?}") };
        let mark = if told.stage == Stage::Asked { '?' } else { '=' };
        format!("{}{mark} {}", told.tx, exchange(fact))
    });
    let odd = out.oddities.iter().map(|(side, oddity)| {
        let side = if *side == Side::Client { "client" } else { "server" };
        format!("! {side} {}", oddity.0)
    });
    told.chain(odd).collect()
}

/// Asserts what is told of a conversation, uncut and byte by byte.
#[track_caller]
pub fn check<P: Parser + Default>(steps: &[Step], expected: &[&str]) {
    let whole = run(&mut P::default(), steps);
    assert_eq!(lines(&whole), expected, "uncut");
    assert_same(&whole, &run_cut(&mut P::default(), steps, |_| 1));
}

/// Asserts that two runs told the same.
#[track_caller]
pub fn assert_same(a: &Out, b: &Out) {
    assert_eq!(lines(a), lines(b));
    assert_eq!(a.told, b.told);
    assert_eq!(a.became, b.became);
}

/// Every transaction is asked at most once and first, done exactly once and last.
#[track_caller]
pub fn assert_stages(out: &Out) {
    let mut stages = std::collections::HashMap::<u32, Vec<Stage>>::new();
    out.told.iter().for_each(|told| stages.entry(told.tx).or_default().push(told.stage));
    for (tx, stages) in stages {
        assert!(matches!(stages[..], [Stage::Done] | [Stage::Asked, Stage::Done]), "{tx}: {stages:?}");
    }
}

/// Damage to a conversation.
#[derive(Clone, Debug)]
pub enum Damage {
    Byte(prop::sample::Index, prop::sample::Index, u8),
    Cut(prop::sample::Index, prop::sample::Index, u8),
    Repeat(prop::sample::Index, prop::sample::Index, u8),
    Gap(prop::sample::Index, Side, u16),
}

pub fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    let side = prop_oneof![Just(Side::Client), Just(Side::Server)];
    prop_oneof![
        (index(), index(), prop_oneof![any::<u8>(), prop::sample::select(b"\r\n :,;0\0".to_vec())])
            .prop_map(|(step, at, byte)| Damage::Byte(step, at, byte)),
        (index(), index(), any::<u8>()).prop_map(|(step, at, len)| Damage::Cut(step, at, len)),
        (index(), index(), any::<u8>()).prop_map(|(step, at, len)| Damage::Repeat(step, at, len)),
        (index(), side, 0..500_u16).prop_map(|(step, side, len)| Damage::Gap(step, side, len)),
    ]
}

/// Damages a conversation.
pub fn damaged(mut steps: Vec<Step>, damages: &[Damage]) -> Vec<Step> {
    for damage in damages {
        let (Damage::Byte(step, ..) | Damage::Cut(step, ..) | Damage::Repeat(step, ..) | Damage::Gap(step, ..)) =
            damage;
        let step = step.index(steps.len());
        if let Damage::Gap(_, side, len) = damage {
            steps.insert(step, Step::Misses(*side, (*len).into()));
            continue;
        }
        let Step::Says(_, bytes) = &mut steps[step] else { continue };
        if bytes.is_empty() {
            continue;
        }
        match damage {
            Damage::Byte(_, at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Cut(_, at, len) => {
                let at = at.index(bytes.len());
                bytes.drain(at..bytes.len().min(at + usize::from(*len)));
            }
            Damage::Repeat(_, at, len) => {
                let at = at.index(bytes.len());
                let part = bytes[at..bytes.len().min(at + usize::from(*len))].to_vec();
                bytes.splice(at..at, part);
            }
            Damage::Gap(..) => {}
        }
    }
    steps
}

/// Runs a conversation whole, and cut by `lens`; both tell the same, in order, and keep little.
pub fn assert_cuts_do_not_matter<P: Parser + Default>(steps: &[Step], lens: &[u16]) {
    let mut whole = P::default();
    let out = run(&mut whole, steps);
    assert_stages(&out);
    let mut lens = lens.iter().cycle();
    let mut cut = P::default();
    let cut_out = run_cut(&mut cut, steps, |_| lens.next().map_or(1, |&len| len.into()));
    assert_same(&out, &cut_out);
    assert!(cut.memory() < 2 * 1024 * 1024, "{} bytes are kept", cut.memory());
}
