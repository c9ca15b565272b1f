//! What the fuzz targets do with their bytes, without a fuzzer: over their seeds, over inputs that once failed
//! (tests/data/fuzz), and over mutations of both.

use std::fs;
use std::path::Path;

mod targets {
    pub mod capture;
    pub mod config;
    pub mod conversation;
    pub mod jwt;
    pub mod packets;
    pub mod patterns;
    pub mod quic;
    pub mod record;
    pub mod replay;
    pub mod request;
    pub mod rule_json;
    pub mod seeds;
    pub mod segments;
    pub mod stored;
    pub mod token;
}
#[path = "../support/mod.rs"]
pub mod support;

use support::random::Random;
use targets::*;

/// A target's seeds, what once failed in it, and mutations of these.
fn check(target: &str, mutations: usize, run: impl Fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut inputs = seeds::of(target, root);
    assert!(!inputs.is_empty());
    if let Ok(found) = fs::read_dir(root.join("tests/data/fuzz").join(target)) {
        inputs.extend(found.map(|entry| fs::read(entry.unwrap().path()).unwrap()));
    }
    run(b"");
    inputs.iter().for_each(|input| run(input));
    let mut random = Random::new(0x5eed);
    for _ in 0..mutations {
        let donor = random.below(inputs.len());
        let mut input = inputs[random.below(inputs.len())].clone();
        // Whole seeds are long; what their fronts hold costs less to read.
        input.truncate(2048);
        for _ in 0..1 + random.below(4) {
            let at = random.below(input.len() + 1);
            let until = (at + random.below(40)).min(input.len());
            match random.below(4) {
                0 => drop(input.drain(at..until)),
                1 => input[at..until].iter_mut().take(2).for_each(|byte| *byte = random.bits() as u8),
                2 => input[at..until].iter_mut().take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
                _ => {
                    let other = &inputs[donor];
                    let from = random.below(other.len() + 1);
                    let bytes = other[from..(from + random.below(200)).min(other.len())].to_vec();
                    drop(input.splice(at..at, bytes));
                }
            }
        }
        run(&input);
    }
}

#[test]
fn captures_are_read_as_far_as_they_go() {
    check("capture", 500, capture::run);
}

#[test]
fn configurations_are_taken_or_their_errors_are_told() {
    check("config", 500, config::run);
}

#[test]
fn conversations_are_the_same_however_they_are_cut() {
    check("conversation", 5000, conversation::run);
}

#[test]
fn only_what_an_issuer_signed_lets_somebody_in() {
    check("jwt", 2000, jwt::run);
}

#[test]
fn packets_of_all_kinds_stay_within_the_caps() {
    check("packets", 5000, packets::run);
}

#[test]
fn patterns_compile_in_time_and_mean_what_they_say() {
    check("patterns", 300, patterns::run);
}

#[test]
fn frames_of_quic_do_no_harm() {
    check("quic", 2000, quic::run);
}

#[test]
fn records_are_whole_or_refused() {
    check("record", 5000, record::run);
}

#[test]
fn a_replay_gives_the_same_lines_again() {
    check("replay", 100, replay::run);
}

#[test]
fn requests_are_answered_or_refused() {
    check("request", 2000, request::run);
}

#[test]
fn rules_are_taken_or_their_errors_are_told() {
    check("rule_json", 1000, rule_json::run);
}

#[test]
fn segments_are_put_together_in_any_order() {
    check("segments", 2000, segments::run);
}

#[test]
fn what_is_stored_is_read_back_or_refused() {
    check("stored", 500, stored::run);
}

#[test]
fn tokens_and_keys_of_strangers_let_nobody_in() {
    check("token", 3000, token::run);
}
