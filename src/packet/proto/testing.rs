//! What tests of parsers have in common: conversations that were recorded, cuts, mutations.

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Oddity, Out, Parser, Side, Stage, Told};

/// What one side sent, at once.
pub(crate) type Piece = (Side, Vec<u8>);

/// A byte that is put in the place of another, and that place.
type Edit = (usize, u8);

/// Where bytes are missing, and how many.
type Gap = (usize, u64);

/// How pieces are handed to a parser.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// As they are.
    Whole,
    /// Each in two at this byte of the whole conversation.
    At(usize),
    /// In pieces of so many bytes.
    Every(usize),
}

/// A conversation of tests/data/handshakes: of each piece its side, its length in four bytes, and itself.
pub(crate) fn recorded(name: &str) -> Vec<Piece> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/handshakes").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut pieces = Vec::new();
    let mut rest = &bytes[..];
    while let [side, a, b, c, d, behind @ ..] = rest {
        let (piece, behind) = behind.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        pieces.push((if *side == 0 { Side::Client } else { Side::Server }, piece.to_vec()));
        rest = behind;
    }
    pieces
}

/// Feeds a conversation, without its end; all that was told.
pub(crate) fn feed(parser: &mut dyn Parser, pieces: &[Piece], cut: Cut) -> Out {
    let mut out = Out::default();
    let mut at = 0;
    for (side, bytes) in pieces {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let count = match cut {
                Cut::At(point) if point > at && point < at + rest.len() => point - at,
                Cut::Every(count) => count.min(rest.len()),
                _ => rest.len(),
            };
            let (now, behind) = rest.split_at(count);
            parser.take(*side, now, &mut out);
            at += count;
            rest = behind;
        }
    }
    out
}

/// Ends both sides.
pub(crate) fn end(parser: &mut dyn Parser, out: &mut Out) {
    for side in Side::BOTH {
        parser.end(side, out);
    }
}

fn told<P: Parser>(mut parser: P, pieces: &[Piece], cut: Cut) -> (Vec<Told>, Vec<(Side, Oddity)>) {
    let mut out = feed(&mut parser, pieces, cut);
    end(&mut parser, &mut out);
    (out.told, out.oddities)
}

/// Every cut in two, and pieces of some sizes, tell the same as no cut.
pub(crate) fn assert_cuts_agree<P: Parser>(make: impl Fn() -> P, pieces: &[Piece]) {
    let whole = told(make(), pieces, Cut::Whole);
    let length: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
    let cuts = (1..length).map(Cut::At).chain([1, 2, 3, 7, 100, 1460].map(Cut::Every));
    for cut in cuts {
        assert_eq!(told(make(), pieces, cut), whole, "{cut:?}");
    }
}

/// What a client asks after the server's end is done at its own.
pub(crate) fn assert_late_questions_are_done<P: Parser>(mut parser: P, pieces: &[Piece]) {
    let mut out = Out::default();
    parser.end(Side::Server, &mut out);
    for (side, bytes) in pieces {
        if *side == Side::Client {
            parser.take(Side::Client, bytes, &mut out);
        }
    }
    parser.end(Side::Client, &mut out);
    let of = |stage: Stage| out.told.iter().filter(move |told| told.stage == stage).map(|told| told.tx);
    assert!(of(Stage::Asked).count() > 0);
    for asked in of(Stage::Asked) {
        assert_eq!(of(Stage::Done).filter(|done| *done == asked).count(), 1, "{asked}");
    }
}

/// Mutated conversations, with gaps, do no harm: no panic, a bound on what is kept, and the same however they are cut.
pub(crate) fn assert_mutations_are_harmless<P: Parser>(make: impl Fn() -> P, pieces: &[Piece], memory_max: usize) {
    let length: usize = pieces.iter().map(|(_, bytes)| bytes.len()).sum();
    // Most of what a parser looks at stands in front.
    let place = prop_oneof![0..length.min(64), 0..length];
    let edits = prop::collection::vec((place, any::<u8>()), 0..8);
    let gap = prop::option::of((0..length, 1u64..100_000));
    let mut runner = TestRunner::new(Config { cases: 2000, failure_persistence: None, ..Config::default() });
    let check = |(edits, gap, step): (Vec<Edit>, Option<Gap>, usize)| {
        let mut mutated = pieces.to_vec();
        for (place, value) in edits {
            let mut at = place;
            for (_, bytes) in &mut mutated {
                if at < bytes.len() {
                    bytes[at] = value;
                    break;
                }
                at -= bytes.len();
            }
        }
        let run = |cut| {
            let mut parser = make();
            let mut out = Out::default();
            let mut at = 0;
            for piece in &mutated {
                if let Some((place, missing)) = gap
                    && (at..at + piece.1.len()).contains(&place)
                {
                    parser.skip(piece.0, missing, &mut out);
                }
                at += piece.1.len();
                let now = feed(&mut parser, std::slice::from_ref(piece), cut);
                out.told.extend(now.told);
                out.oddities.extend(now.oddities);
                assert!(parser.memory() <= memory_max, "keeps {}", parser.memory());
            }
            end(&mut parser, &mut out);
            (out.told, out.oddities)
        };
        prop_assert_eq!(run(Cut::Whole), run(Cut::Every(step)));
        Ok(())
    };
    runner.run(&(edits, gap, 1usize..200), check).unwrap();
}
