//! Whole inspectors: frames in, what the parser got and what the watcher was told out.

mod evasion;
mod segmentation;
mod support;
mod table;

use support::*;

use super::*;
use crate::packet::build::Packet as Build;
use crate::packet::frame::tcp_flag::{ACK, FIN, RST, SYN};
use crate::packet::proto::Stage;
#[test]
fn a_connection_is_read_from_end_to_end() {
    for is_v6 in [false, true] {
        let mut lab = Lab::new(is_v6);
        lab.handshake().c(0, b"Chello ").ack(7).s(0, b"Sworld");
        lab.sent[1] = 6;
        lab.c(7, b"again").ack(12).close();
        assert_eq!((lab.told.client().as_str(), lab.told.server().as_str()), ("Chello againEND", "SworldEND"));
        assert_eq!(lab.told.anomalies, [""; 0]);
        let stats = *lab.inspector.stats();
        let told = lab.finish();
        let (flow, why) = &told.ended[0];
        assert_eq!((told.ended.len(), *why, flow.state), (1, EndReason::Closed, State::Closed));
        assert_eq!((flow.packets, flow.client.port(), flow.is_midstream), ([6, 5], 40000, false));
        assert_eq!(flow.next_seq, [1001 + 12 + 1, 5001 + 6 + 1]);
        assert_eq!(flow.app_proto, Some(AppProto::Ftp));
        assert_eq!(flow.tcp_flags, [SYN | ACK | FIN; 2]);
        assert_eq!((stats.packets, stats.flows, stats.malformed), (11, 1, 0));
    }
}

#[test]
fn sides_are_found_midstream() {
    // The first packet is the server's answer; the protocol knows.
    let mut lab = Lab::new(false);
    lab.s(0, b"Sa").s(2, b"nswer").c(0, b"Cquestion");
    assert_eq!((lab.told.client(), lab.told.server()), ("Cquestion".into(), "Sanswer".into()));
    let told = lab.finish();
    let flow = &told.ended[0].0;
    assert_eq!((flow.client.port(), flow.server.port(), flow.packets), (40000, 21, [1, 2]));
    assert!(flow.is_midstream);
    assert_eq!(told.anomalies, [""; 0]);
}

#[test]
fn a_protocol_that_runs_the_other_way_keeps_its_flow() {
    // The one that opened the connection answers in it.
    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"SmyODD").s(0, b"Cquestion");
    assert_eq!((lab.told.client(), lab.told.server()), ("Cquestion".into(), "SmyODD".into()));
    let told = lab.finish();
    assert_eq!(told.ended[0].0.client.port(), 40000);
    assert_eq!(told.anomalies, ["echo.odd"]);
}

#[test]
fn gaps_are_told_where_they_are() {
    // Acknowledged by the receiver: nobody will send it again.
    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"Cabc").c(10, b"later").ack(4);
    assert_eq!(lab.told.client(), "Cabc");
    lab.ack(15);
    assert_eq!(lab.told.client(), "Cabc~6~later");
    assert_eq!(lab.inspector.stats().gaps_acknowledged, 1);
    // Not handed over.
    lab.unseen = (3, 100);
    lab.c(50, b"more");
    assert_eq!(lab.told.client(), "Cabc~6~later~35~more");
    assert_eq!(lab.inspector.stats().gaps_unseen, 1);
    lab.unseen = (0, 0);
    // Captured in part.
    let frame = lab.build(Side::Client, ACK, 54, b"0123456789").build();
    lab.frame(&frame[..frame.len() - 4]).c(64, b"!");
    assert_eq!(lab.told.client(), "Cabc~6~later~35~more012345~4~!");
    // Never filled.
    lab.c(100, b"end");
    assert_eq!(lab.told.client(), "Cabc~6~later~35~more012345~4~!");
    let stats = *lab.inspector.stats();
    assert_eq!((stats.gaps, stats.gap_bytes, stats.gaps_truncated), (3, 45, 1));
    let told = lab.finish();
    assert_eq!(told.client(), "Cabc~6~later~35~more012345~4~!~35~endEND");
    assert_eq!(told.ended[0].0.gap_bytes, [80, 0]);
    assert_eq!(told.ended[0].0.packets[0], 8 + 3);
}

#[test]
fn records_past_the_budget_are_headers_and_counts() {
    for is_v6 in [false, true] {
        let mut lab = Lab::new(is_v6);
        lab.handshake().c(0, b"Cabc");
        lab.unseen = (10, 5000);
        let frame = lab.build(Side::Client, ACK, 4000, &[b'x'; 100]).build();
        lab.frame(&frame[..frame.len() - 100]);
        assert_eq!(lab.told.client(), "Cabc~3996~~100~");
        lab.unseen = (7, 3000);
        let frame = lab.build(Side::Client, ACK | FIN, 6000, &[b'x'; 100]).build();
        lab.frame(&frame[..frame.len() - 100]);
        lab.unseen = (0, 0);
        lab.ack(6101);
        assert_eq!(lab.told.client(), "Cabc~3996~~100~~1900~~100~END");
        let told = lab.finish();
        let flow = &told.ended[0].0;
        assert_eq!((flow.packets, flow.state), ([22, 2], State::Closed));
        assert_eq!((flow.gap_bytes, flow.next_seq[0]), ([6096, 0], 1001 + 6101));
        assert_eq!(told.anomalies, [""; 0]);
    }
}

#[test]
fn more_than_half_of_the_numbers_may_be_missing() {
    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"Cabc");
    lab.unseen = (3_000_000, 5_000_000_000);
    let place: u64 = 4_500_000_000;
    lab.c(place as u32, b"more");
    assert_eq!(lab.told.client(), format!("Cabc~{}~more", place - 4));
}

#[test]
fn out_of_order_data_is_capped() {
    let mut lab = Lab::new(false);
    lab.window = 65_535;
    lab.handshake().c(0, b"Cab");
    let piece = [b'x'; 1000];
    for i in 0..60 {
        lab.c(10 + i * 1000, &piece);
    }
    assert_eq!((lab.told.client().len(), lab.inspector.stats().gaps_held_max), (3, 0));
    for i in 60..64 {
        lab.c(10 + i * 1000, &piece);
    }
    assert_eq!(lab.inspector.stats().gaps_held_max, 1);
    assert_eq!(lab.told.client().len(), 3 + "~7~".len() + 64_000);
    lab.finish();
}

#[test]
fn tiny_pieces_cost_more_than_their_bytes() {
    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"Cab");
    for i in 0..2000 {
        lab.c(10 + i * 2, b"x");
    }
    assert!(lab.inspector.stats().gaps_held_max > 0);
    assert!(lab.inspector.reassembly_memory() < 80 << 10, "{}", lab.inspector.reassembly_memory());
    lab.finish();
}

#[test]
fn a_blocked_flow_is_not_inspected_any_more() {
    let mut lab = Lab::new(false);
    lab.told.block_on = Some(b"Cbad");
    lab.handshake().c(0, b"Cbad").c(4, b"more").s(0, b"Sanswer");
    assert_eq!((lab.told.client(), lab.told.server()), ("Cbad".into(), "".into()));
    assert_eq!(lab.inspector.stats().blocked, 1);
    assert_eq!(lab.inspector.reassembly_memory(), 0);
    let told = lab.finish();
    let flow = &told.ended[0].0;
    assert!(flow.is_blocked);
    assert_eq!((flow.packets, flow.next_seq), ([4, 2], [1009, 5008]));

    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"Cgood");
    let id = lab.inspector.flows().next().unwrap().id;
    assert!(lab.inspector.block(id));
    assert!(!lab.inspector.block(id + (1 << 30)));
    lab.c(5, b"more");
    assert_eq!(lab.told.client(), "Cgood");
}

#[test]
fn a_flow_is_finished_when_both_ends_are() {
    let mut lab = Lab::new(false);
    let is_finished = |lab: &Lab| lab.inspector.flows().next().unwrap().is_finished;
    lab.handshake().c(0, b"Chello").ack(6);
    // Neither one ahead, nor one that nobody acknowledged, nor that of one side.
    lab.segment(Side::Client, ACK | FIN, 20, b"");
    assert!(!is_finished(&lab));
    lab.close();
    assert!(is_finished(&lab));
    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"Chello").ack(6);
    lab.segment(Side::Client, ACK | RST, 6, b"");
    assert_eq!((is_finished(&lab), lab.inspector.flows().next().unwrap().state), (false, State::Closed));
}

/// Whose end a flow's ends are, by the way that packets went; also when the sides are exchanged later.
#[test]
fn the_end_of_this_host_is_known() {
    let locals = |lab: &Lab| {
        let flow = lab.inspector.flows().next().unwrap();
        flow.local_ends().map(|(local, _)| local.port()).collect::<Vec<_>>()
    };
    for (client, server, want) in [
        (Direction::Ingress, Direction::Egress, &[21][..]),
        (Direction::Egress, Direction::Ingress, &[40000]),
        (Direction::Ingress, Direction::Ingress, &[]),
        (Direction::Egress, Direction::Egress, &[40000, 21]),
    ] {
        // Midstream, the server first.
        let mut lab = Lab::new(false);
        lab.direction = server;
        lab.s(0, b"Sa");
        assert_eq!(locals(&lab), if server == Direction::Egress { [21] } else { [40000] });
        lab.s(2, b"nswer");
        lab.direction = client;
        lab.c(0, b"Cquestion");
        assert_eq!(lab.inspector.flows().next().unwrap().client.port(), 40000);
        assert_eq!(locals(&lab), want);
    }
}

#[test]
fn announced_connections_carry_their_file() {
    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"CEXPECT 777;");
    lab.ports = (40001, 777);
    lab.isn = [1, 2];
    lab.sent = [0, 0];
    lab.handshake().s(0, b"bytes of ");
    assert_eq!(lab.told.facts.len(), 1);
    lab.s(9, b"the file");
    lab.sent[1] = 17;
    lab.close();
    let facts: Vec<_> = lab.told.facts.iter().map(|(stage, fact)| (*stage, &fact.file[..], fact.bytes)).collect();
    assert_eq!(facts, [(Stage::Asked, &b"secret"[..], 9), (Stage::Done, &b"secret"[..], 17)]);
    assert_eq!(lab.inspector.stats().expected_met, 1);
    let told = lab.finish();
    assert_eq!(told.ended[1].0.app_proto, Some(AppProto::FtpData));
}

#[test]
fn what_is_no_protocol_is_only_counted() {
    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"garbage").c(20, b"with a gap").c(7, b"late");
    assert_eq!((lab.inspector.stats().undetected, lab.inspector.reassembly_memory()), (1, 0));
    // A side that says nothing that tells it.
    let mut lab = Lab::new(false);
    lab.handshake();
    for i in 0..17 {
        lab.c(i * 1000, &[b'?'; 1000]);
    }
    assert_eq!((lab.inspector.stats().undecided_overflows, lab.inspector.reassembly_memory()), (1, 0));
    let told = lab.finish();
    assert_eq!((told.client(), told.ended[0].0.packets[0]), (String::new(), 19));
}

#[test]
fn udp_flows_are_read_by_datagram() {
    for is_v6 in [false, true] {
        let mut lab = Lab::new(is_v6);
        let answer = lab.ip(Side::Server).udp(53, 4000).payload(b"Sanswer").build();
        let question = lab.ip(Side::Client).udp(4000, 53).payload(b"Cquestion").build();
        lab.frame(&answer).frame(&question).frame(&answer);
        assert_eq!((lab.told.client(), lab.told.server()), ("Cquestion".into(), "SanswerSanswer".into()));
        let told = lab.finish();
        let flow = &told.ended[0].0;
        assert_eq!((flow.client.port(), flow.packets, flow.state), (4000, [1, 2], State::Established));
    }
}

/// Empty lines in front of a request may be any number. Few are kept, and what is told does not depend on the cut.
#[test]
fn empty_lines_in_front_cost_nothing() {
    let blanks = b"\r\n".repeat(20_000);
    for size in [1, 7, 511, 512, 513, 1400] {
        let mut lab = Lab::new(false);
        lab.handshake();
        let mut at = 0;
        for piece in blanks.chunks(size) {
            lab.c(at, piece);
            at += piece.len() as u32;
            assert!(lab.inspector.reassembly_memory() < 8 << 10, "{size}: {}", lab.inspector.reassembly_memory());
        }
        lab.c(at, b"Crequest").s(0, b"Sanswer");
        let (client, server) = (lab.told.client(), lab.told.server());
        assert_eq!((client.trim_start_matches(['\r', '\n']), server.as_str()), ("Crequest", "Sanswer"), "{size}");
        assert_eq!(client.len(), 512 + 8, "{size}");
    }
}

/// What drops on its way in, or is of another protocol, hides no connection behind it.
#[test]
fn a_datagram_that_begins_a_connection_is_believed_at_any_time() {
    let before: [&[&[u8]]; 4] = [&[&b"x"[..]; 3], &[&b"x"[..]; 4], &[&b"x"[..]; 200], &[b"Cquery", b"Cquery"]];
    for junk in before {
        for (speaker, is_v6) in [(Side::Client, false), (Side::Server, true)] {
            let mut lab = Lab::new(is_v6);
            let datagram = |lab: &Lab, side: Side, bytes: &[u8]| {
                let (from, to) = if side == Side::Client { (4000, 443) } else { (443, 4000) };
                lab.ip(side).udp(from, to).payload(bytes).build()
            };
            for bytes in junk {
                let frame = datagram(&lab, Side::Client, bytes);
                lab.frame(&frame);
            }
            (lab.told.text, lab.told.tx) = Default::default();
            let (hello, answer) = (datagram(&lab, speaker, b"Qhello"), datagram(&lab, speaker.other(), b"an answer"));
            lab.frame(&hello).frame(&answer).frame(&hello);
            let said = (lab.told.client().replace("END", ""), lab.told.server().replace("END", ""));
            assert_eq!(said, ("QhelloQhello".into(), "an answer".into()), "{junk:?} {speaker:?}");
            // Nobody takes its transactions for those that were judged before.
            let first_tx = if junk[0] == b"x" { 0 } else { junk.len() as u32 };
            assert!(lab.told.tx.iter().rev().take(3).all(|tx| *tx >= first_tx), "{junk:?}: {:?}", lab.told.tx);
            let told = lab.finish();
            let flow = &told.ended[0].0;
            assert_eq!((told.ended.len(), flow.app_proto), (1, Some(AppProto::Quic)));
            let client_port = if speaker == Side::Client { 4000 } else { 443 };
            assert_eq!((flow.client.port(), flow.packets.iter().sum::<u64>()), (client_port, junk.len() as u64 + 3));
        }
    }
}

#[test]
fn pings_and_their_answers_are_one_flow() {
    let mut lab = Lab::new(false);
    let ping = lab.ip(Side::Client).icmp(8, 0).build();
    let pong = lab.ip(Side::Server).icmp(0, 0).build();
    lab.frame(&ping).frame(&pong).frame(&ping);
    let told = lab.finish();
    assert_eq!(told.ended.len(), 1);
    assert_eq!((told.ended[0].0.packets, told.ended[0].0.protocol), ([2, 1], 1));
}

#[test]
fn fragments_and_tunnels_reach_their_flow() {
    for is_v6 in [false, true] {
        let mut lab = Lab::new(is_v6);
        let bytes: Vec<u8> = [b"C", &[b'x'; 3000][..]].concat();
        let whole = lab.ip(Side::Client).udp(4000, 53).payload(&bytes);
        for piece in whole.fragments(5, 1000).iter().rev() {
            lab.frame(piece);
        }
        assert_eq!(lab.told.text[0], bytes);
        // Fragments in a tunnel, the tunnel's packets in fragments again.
        let mut again = 0;
        for piece in whole.fragments(6, 1000) {
            let outer = Build::new().between("192.0.2.1", "192.0.2.2").protocol(if is_v6 { 41 } else { 4 });
            for outer in outer.payload(&piece[14..]).fragments(70 + again, 600) {
                lab.frame(&outer);
            }
            again += 1;
        }
        assert_eq!(lab.told.text[0].len(), 2 * bytes.len());
        // The last of the inner fragments is small enough to go whole.
        assert_eq!(lab.inspector.stats().defragmented, 1 + u64::from(again - 1) + 1);
        let told = lab.finish();
        let tunnelled: Vec<_> = told.ended.iter().map(|(flow, _)| flow.is_tunnelled).collect();
        assert_eq!(tunnelled, [false, true]);
        assert_eq!(told.ended[0].0.packets[0], 4);
        assert_eq!(told.anomalies, [""; 0]);
    }
}
