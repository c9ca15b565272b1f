//! Attempts to show an observer something else than the receiver gets, over both IP versions: what the parser gets is
//! what the receiver got, or an anomaly says that they may differ.

use super::*;
use crate::packet::frame::tcp_flag::{PSH, RST, URG};

const SECRET: &str = "Cattack at dawn";

/// An attempt: what happens after the handshake, the stream as the receiver has it, and the anomaly that must be told.
/// Without one the bytes alone must be right.
struct Attempt {
    name: &'static str,
    run: fn(&mut Lab),
    anomaly: Option<&'static str>,
    /// Whether the parser gets the receiver's bytes all the same.
    is_read: bool,
}

const fn seen(name: &'static str, run: fn(&mut Lab)) -> Attempt {
    Attempt { name, run, anomaly: None, is_read: true }
}

const fn told(name: &'static str, anomaly: &'static str, run: fn(&mut Lab)) -> Attempt {
    Attempt { name, run, anomaly: Some(anomaly), is_read: true }
}

const fn only_told(name: &'static str, anomaly: &'static str, run: fn(&mut Lab)) -> Attempt {
    Attempt { name, run, anomaly: Some(anomaly), is_read: false }
}

fn send(lab: &mut Lab, from: usize, until: usize) {
    lab.c(from as u32, &SECRET.as_bytes()[from..until]);
}

/// The secret from a place on, in one segment.
fn rest(lab: &mut Lab, from: usize) {
    send(lab, from, SECRET.len());
}

fn bad_checksum(lab: &mut Lab, at: u32, payload: &[u8]) {
    let mut frame = lab.build(Side::Client, ACK, at, payload).build();
    *frame.last_mut().unwrap() ^= 0x40;
    lab.frame(&frame);
}

/// A segment whose checksum is the pseudo header's sum, as before a network card completes it.
fn owed_checksum(lab: &mut Lab, at: u32, payload: &[u8]) {
    assert!(payload.len().is_multiple_of(2));
    let mut frame = lab.build(Side::Client, ACK, at, payload).build();
    let tcp = frame.len() - payload.len() - 20;
    // What the good checksum covers, taken out of it again.
    let words = frame[tcp..].chunks(2).map(|word| u32::from(!u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[tcp + 16..tcp + 18].copy_from_slice(&((sum & 0xffff) as u16 + (sum >> 16) as u16).to_be_bytes());
    lab.frame(&frame);
}

/// Fragments of a segment with the whole secret, changed before they are sent.
fn fragments(lab: &mut Lab, change: fn(&mut Vec<Vec<u8>>)) {
    let mut pieces = lab.build(Side::Client, ACK, 0, SECRET.as_bytes()).fragments(99, 8);
    change(&mut pieces);
    for piece in pieces {
        lab.frame(&piece);
    }
}

const ATTEMPTS: &[Attempt] = &[
    seen("tiny segments", |lab| (0..SECRET.len()).for_each(|at| send(lab, at, at + 1))),
    seen("tiny segments, last first", |lab| (0..SECRET.len()).rev().for_each(|at| send(lab, at, at + 1))),
    seen("every segment twice", |lab| {
        for at in 0..5 {
            send(lab, at * 3, at * 3 + 3);
            send(lab, at * 3, at * 3 + 3);
        }
    }),
    seen("segments that overlap and agree", |lab| {
        for at in [4, 0, 8, 2, 10] {
            send(lab, at, (at + 5).min(SECRET.len()));
        }
    }),
    told("wrong checksum, then the truth", "tcp.bad_checksum", |lab| {
        bad_checksum(lab, 0, b"Cnothing to see");
        rest(lab, 0);
    }),
    only_told("a checksum that is owed, and the truth", "tcp.overlap_conflict", |lab| {
        owed_checksum(lab, 0, b"Cnothing to se");
        rest(lab, 0);
    }),
    told("wrong checksum out of order", "tcp.bad_checksum", |lab| {
        bad_checksum(lab, 4, b"nothing");
        rest(lab, 4);
        send(lab, 0, 4);
    }),
    told("a reset with a wrong checksum", "tcp.bad_checksum", |lab| {
        let mut frame = lab.build(Side::Client, RST, 0, b"").build();
        let at = frame.len() - 4;
        frame[at] ^= 1;
        lab.frame(&frame);
        rest(lab, 0);
    }),
    only_told("a segment that dies on the way, in order", "tcp.overlap_conflict_ttl", |lab| {
        send(lab, 0, 3);
        lab.ttl = 3;
        lab.c(3, b"nothing here");
        lab.ttl = 64;
        rest(lab, 3);
    }),
    only_told("the same with a likely TTL", "tcp.overlap_conflict", |lab| {
        send(lab, 0, 3);
        lab.c(3, b"nothing here");
        rest(lab, 3);
    }),
    only_told("a segment that dies on the way, out of order", "tcp.overlap_conflict_ttl", |lab| {
        lab.ttl = 3;
        lab.c(3, b"nothing here");
        lab.ttl = 64;
        rest(lab, 3);
        send(lab, 0, 3);
    }),
    told("a later segment that lies about an earlier one", "tcp.overlap_conflict", |lab| {
        rest(lab, 4);
        lab.c(0, b"Cattacknothing");
        send(lab, 0, 4);
    }),
    only_told("overlap from the left", "tcp.overlap_conflict", |lab| {
        lab.c(5, b"XXXXX");
        send(lab, 0, 8);
        rest(lab, 8);
    }),
    only_told("overlap from the right", "tcp.overlap_conflict", |lab| {
        lab.c(5, b"XXXXX");
        rest(lab, 8);
        send(lab, 0, 5);
    }),
    only_told("one byte differs long after", "tcp.overlap_conflict", |lab| {
        lab.c(0, b"CAttack at dawn");
        for at in 0..100u32 {
            lab.c(15 + at * 100, &[b'.'; 100]);
        }
        rest(lab, 0);
    }),
    told("beyond the window", "tcp.beyond_window", |lab| {
        lab.c(70_000, b"nothing");
        rest(lab, 0);
    }),
    told("a reset out of place", "tcp.reset_out_of_place", |lab| {
        send(lab, 0, 4);
        lab.reset(Side::Client, 400);
        rest(lab, 4);
    }),
    told("a reset in its place that dies on the way", "tcp.segment_after_reset", |lab| {
        send(lab, 0, 4);
        lab.reset(Side::Client, 4);
        rest(lab, 4);
    }),
    told("a reset from the other end that dies on the way", "tcp.segment_after_reset", |lab| {
        send(lab, 0, 4);
        lab.reset(Side::Server, 0);
        rest(lab, 4);
        lab.ack(15);
    }),
    told("a FIN that dies on the way", "tcp.data_after_fin", |lab| {
        send(lab, 0, 4);
        lab.segment(Side::Client, FIN | ACK, 4, b"");
        rest(lab, 4);
    }),
    told("a FIN ahead of its data", "tcp.data_after_fin", |lab| {
        send(lab, 0, 4);
        lab.segment(Side::Client, FIN | ACK, 8, b"");
        rest(lab, 4);
    }),
    told("another SYN in the connection", "tcp.syn_in_connection", |lab| {
        send(lab, 0, 4);
        lab.segment(Side::Client, SYN, 500_000, b"");
        rest(lab, 4);
    }),
    told("a SYN and ACK in the connection", "tcp.syn_in_connection", |lab| {
        send(lab, 0, 4);
        lab.segment(Side::Server, SYN | ACK, 500_000, b"");
        rest(lab, 4);
    }),
    told("urgent data", "tcp.urgent", |lab| {
        send(lab, 0, 4);
        lab.segment(Side::Client, ACK | URG, 4, &SECRET.as_bytes()[4..]);
    }),
    told("data that acknowledges nothing", "tcp.no_ack", |lab| {
        lab.segment(Side::Client, PSH, 0, b"Cnothing to see");
        rest(lab, 0);
    }),
    told("no flags at all", "tcp.no_ack", |lab| {
        lab.segment(Side::Client, 0, 0, b"Cnothing to see");
        rest(lab, 0);
    }),
    told("SYN and FIN", "tcp.bad_flags", |lab| {
        lab.segment(Side::Client, SYN | FIN, u32::MAX, b"Cnothing");
        rest(lab, 0);
    }),
    told("broken options", "tcp.bad_options", |lab| {
        let frame = lab.build(Side::Client, ACK, 0, SECRET.as_bytes()).tcp_options(&[8, 0, 0, 0]).build();
        lab.frame(&frame);
    }),
    told("what was given up comes after all", "tcp.data_in_gap", |lab| {
        send(lab, 0, 4);
        send(lab, 8, 12);
        // The one that sends acknowledges for the other, so that a gap is believed to be one.
        lab.ack(12);
        lab.sent[0] = 0;
        send(lab, 4, 8);
        // The rest is read for what it is.
        lab.told.text[0] = b"Cattack at d".to_vec();
        rest(lab, 12);
    }),
    seen("fragments in order", |lab| fragments(lab, |_| {})),
    seen("fragments, last first", |lab| fragments(lab, |pieces| pieces.reverse())),
    seen("fragments, each twice", |lab| {
        fragments(lab, |pieces| {
            *pieces = pieces.iter().take(pieces.len() - 1).flat_map(|piece| [piece.clone(), piece.clone()]).collect();
        });
        fragments(lab, |_| {});
    }),
];

fn run(attempt: &Attempt, is_v6: bool, isn: u32) {
    let mut lab = Lab::new(is_v6);
    lab.isn[0] = isn;
    lab.handshake();
    (attempt.run)(&mut lab);
    let told = lab.finish();
    let place = format!("{}, IPv{}, from {isn}", attempt.name, if is_v6 { 6 } else { 4 });
    match attempt.anomaly {
        Some(anomaly) => assert!(told.has(anomaly), "{place}: {:?}", told.anomalies),
        None => assert_eq!(told.anomalies, [""; 0], "{place}"),
    }
    if attempt.is_read {
        assert!(told.client().starts_with(SECRET), "{place}: {}", told.client());
    }
}

#[test]
fn no_attempt_goes_unnoticed() {
    for attempt in ATTEMPTS {
        for is_v6 in [false, true] {
            // Also with numbers that wrap around within the secret.
            for isn in [1000, u32::MAX - 5] {
                run(attempt, is_v6, isn);
            }
        }
    }
}

#[test]
fn fragments_that_overlap_are_told() {
    for (is_v6, anomaly) in [(false, "fragment.overlap_conflict"), (true, "fragment.overlap_v6")] {
        let mut lab = Lab::new(is_v6);
        lab.handshake();
        let whole = lab.build(Side::Client, ACK, 0, SECRET.as_bytes());
        let lie = lab.build(Side::Client, ACK, 0, b"Cnothing to see");
        let (truth, lie) = (whole.fragments(9, 8), lie.fragments(9, 8));
        lab.frame(&lie[3]);
        for piece in &truth {
            lab.frame(piece);
        }
        assert!(lab.told.has(anomaly), "{:?}", lab.told.anomalies);
    }
}

/// Its receiver throws away what stands behind a FIN, also what came before it. A parser hears nothing after the end.
#[test]
fn data_that_waits_behind_a_fin_is_told() {
    for is_v6 in [false, true] {
        let mut lab = Lab::new(is_v6);
        lab.handshake().c(0, b"C00").c(100, SECRET.as_bytes());
        lab.segment(Side::Client, FIN | ACK, 3, b"").ack(4).s(0, b"S00");
        assert_eq!(lab.told.client(), "C00END");
        let told = lab.finish();
        assert_eq!((told.client().as_str(), told.server().as_str()), ("C00END", "S00END"));
        assert_eq!(told.anomalies, ["tcp.data_after_fin"]);
    }
}

#[test]
fn the_syn_that_the_server_took_counts() {
    for (first, second) in [(1000, 777_000), (777_000, 1000)] {
        let mut lab = Lab::new(false);
        for isn in [first, second] {
            lab.isn[0] = isn;
            lab.segment(Side::Client, SYN, u32::MAX, b"");
        }
        lab.isn[0] = 1000;
        lab.segment(Side::Server, SYN | ACK, u32::MAX, b"");
        lab.c(0, b"").c(0, SECRET.as_bytes());
        assert_eq!(lab.told.client(), SECRET);
        assert!(lab.told.has("tcp.syn_other_isn"));
    }
}

#[test]
fn the_answer_that_the_client_took_counts() {
    for (first, second) in [(5000, 777_000), (777_000, 5000)] {
        let mut lab = Lab::new(false);
        lab.segment(Side::Client, SYN, u32::MAX, b"");
        for isn in [first, second] {
            lab.isn[1] = isn;
            lab.segment(Side::Server, SYN | ACK, u32::MAX, b"");
        }
        lab.isn[1] = 5000;
        lab.c(0, b"").s(0, b"Sanswer");
        assert_eq!(lab.told.server(), "Sanswer");
        assert!(lab.told.has("tcp.syn_ack_other_isn"));
    }
}

#[test]
fn an_answer_to_another_syn_is_not_believed() {
    let mut lab = Lab::new(false);
    lab.segment(Side::Client, SYN, u32::MAX, b"");
    lab.isn[0] = 500_000;
    lab.segment(Side::Server, SYN | ACK, u32::MAX, b"");
    lab.isn[0] = 1000;
    assert_eq!(lab.told.anomalies, ["tcp.syn_ack_wrong_ack"]);
    lab.segment(Side::Server, SYN | ACK, u32::MAX, b"").c(0, SECRET.as_bytes());
    assert_eq!(lab.told.client(), SECRET);
}

#[test]
fn an_acknowledgement_ahead_of_the_answer_hides_nothing() {
    let mut lab = Lab::new(false);
    lab.segment(Side::Client, SYN, u32::MAX, b"");
    for lie in [700_000, 2_000_000_000, 3_000_000_000] {
        lab.sent[1] = lie;
        lab.c(0, b"C");
    }
    lab.sent[1] = 0;
    lab.segment(Side::Server, SYN | ACK, u32::MAX, b"").c(0, SECRET.as_bytes()).s(0, b"Sanswer");
    assert_eq!((lab.told.client().as_str(), lab.told.server().as_str()), (SECRET, "Sanswer"));
}

#[test]
fn data_in_a_syn_is_read_once() {
    let mut lab = Lab::new(true);
    lab.segment(Side::Client, SYN, u32::MAX, &SECRET.as_bytes()[..8]);
    assert_eq!(lab.told.client(), SECRET[..8]);
    // The server does not take it: it comes again.
    lab.segment(Side::Server, SYN | ACK, u32::MAX, b"").c(0, b"");
    rest(&mut lab, 0);
    assert_eq!((lab.told.client().as_str(), lab.told.anomalies.len()), (SECRET, 0));
}

#[test]
fn the_next_connection_between_the_same_ports_is_another_flow() {
    // After an end, and after the silent death of a client.
    for is_closed in [true, false] {
        let mut lab = Lab::new(false);
        lab.handshake().c(0, b"Cone");
        lab.sent = [4, 0];
        if is_closed {
            lab.close();
        }
        (lab.isn, lab.sent) = ([900_000, 800_000], [0, 0]);
        lab.handshake().c(0, b"Ctwo");
        assert_eq!(lab.told.client().replace("END", ""), "ConeCtwo");
        let told = lab.finish();
        assert_eq!(told.ended.iter().map(|(flow, _)| flow.is_midstream).collect::<Vec<_>>(), [false, false]);
        assert_eq!(told.ended[1].0.client.port(), 40000);
    }
}

#[test]
fn checksums_are_trusted_as_the_policy_says() {
    let count = |policy, handshake_is_bad: bool| {
        let mut lab = Lab::with(Limits { check_checksums: policy, ..limits() }, false);
        if handshake_is_bad {
            for (side, flags) in [(Side::Client, SYN), (Side::Server, SYN | ACK), (Side::Client, ACK)] {
                let at = if flags & SYN != 0 { u32::MAX } else { 0 };
                let mut frame = lab.build(side, flags, at, b"").build();
                frame[50] ^= 1;
                lab.frame(&frame);
            }
        } else {
            lab.handshake();
        }
        bad_checksum(&mut lab, 0, b"Cxx");
        (lab.told.client().len(), lab.inspector.stats().bad_checksums)
    };
    assert_eq!(count(Checksums::Verify, false), (0, 1));
    assert_eq!(count(Checksums::Verify, true), (0, 4));
    assert_eq!(count(Checksums::Auto, false), (0, 1));
    assert_eq!(count(Checksums::Auto, true), (3, 0));
    assert_eq!(count(Checksums::Trust, false), (3, 0));
    // Merged by the receiver, or not yet completed by the sender's network card.
    for (policy, expected) in [(Checksums::Verify, (0, 1)), (Checksums::Auto, (4, 0)), (Checksums::Trust, (4, 0))] {
        let mut lab = Lab::with(Limits { check_checksums: policy, ..limits() }, true);
        lab.handshake();
        owed_checksum(&mut lab, 0, b"Cxxx");
        assert_eq!((lab.told.client().len(), lab.inspector.stats().bad_checksums), expected);
    }
}

#[test]
fn repeats_of_an_anomaly_are_folded() {
    let mut lab = Lab::new(false);
    lab.handshake();
    for _ in 0..1000 {
        lab.reset(Side::Client, 3000);
    }
    assert_eq!(lab.told.anomalies.len(), 4);
    assert_eq!(lab.inspector.stats().anomalies, 1000);
}
