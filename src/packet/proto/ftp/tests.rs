use super::*;
use crate::packet::proto::testing::{
    Cut, Piece, assert_cuts_agree, assert_late_questions_are_done, assert_mutations_are_harmless, end, feed, recorded,
};
use crate::packet::proto::{AppProto, Fact, Out, Parser, Side, Told};

/// A conversation as lines: `C ` or `S `, then what that side says, with `\r\n` behind it unless a `\` ends it.
fn pieces(talk: &str) -> Vec<Piece> {
    let piece = |line: &str| {
        let (side, said) = line.trim_start().split_once(' ').unwrap();
        let side = if side == "C" { Side::Client } else { Side::Server };
        let said = said.replace("\\r", "\r").replace("\\n", "\n");
        (side, said.strip_suffix('\\').map_or_else(|| format!("{said}\r\n"), str::to_string).into_bytes())
    };
    talk.lines().filter(|line| !line.trim().is_empty()).map(piece).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What was told, a line each: transactions, connections to come, oddities.
fn show(out: &Out) -> Vec<String> {
    let fact = |told: &Told| {
        let start = format!("{} {:?}", told.tx, told.stage);
        let Fact::Ftp(exchange) = &told.fact else { return format!("{start} other") };
        let reply: Vec<_> = exchange.reply.iter().map(|line| text(line)).collect();
        let codes: Vec<_> = exchange.codes.iter().map(u16::to_string).collect();
        let parts = [
            text(&exchange.command),
            text(&exchange.argument),
            codes.join(","),
            reply.join("/"),
            exchange.data_port.map_or_else(String::new, |port| format!("port={port}")),
            if exchange.is_passive { "passive".to_string() } else { String::new() },
        ];
        parts.iter().filter(|part| !part.is_empty()).fold(start, |line, part| format!("{line} {part}"))
    };
    let expected = out.expected.iter().map(|expected| {
        let transfer = &expected.transfer;
        let carried = format!("{} {}", text(&transfer.command), text(&transfer.file));
        format!("expect {} by {:?} {carried}", expected.server, expected.opener).trim_end().to_string()
    });
    let odd = out.oddities.iter().map(|(side, oddity)| format!("{side:?} {}", oddity.0));
    out.told.iter().map(fact).chain(expected).chain(odd).collect()
}

fn run(pieces: &[Piece]) -> Vec<String> {
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, pieces, Cut::Whole);
    end(&mut parser, &mut out);
    show(&out)
}

#[track_caller]
fn check(talk: &str, wanted: &str) {
    let pieces = pieces(talk);
    let wanted: Vec<_> = wanted.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(run(&pieces), wanted);
    assert_cuts_agree(Conversation::default, &pieces);
    for cut in [Cut::Every(1), Cut::Every(3)] {
        let expected = feed(&mut Conversation::default(), &pieces, cut).expected;
        assert_eq!(expected, feed(&mut Conversation::default(), &pieces, Cut::Whole).expected);
    }
}

#[test]
fn a_session() {
    check(
        "S 220-welcome
         S all day
         S 220 ready
         C user bob
         S 331 password
         C PASS hunter2
         S 230 in
         C FEAT
         S 211-Features:
         S  EPSV
         S 211 End
         C PASV
         S 227 Entering Passive Mode (10,0,0,9,4,1)
         C RETR  two  spaces.txt
         S 150 here it comes
         S 226 done
         C EPSV
         S 229 Entering Extended Passive Mode (|||6446|)
         C STOR /a b
         S 553 no
         C NOOP
         S 200 ok
         C QUIT
         S 221 bye",
        "0 Done 220,220 welcome/all day/ready
         1 Asked USER bob
         1 Done USER bob 331 password
         2 Asked PASS
         2 Done PASS 230 in
         3 Asked FEAT
         3 Done FEAT 211,211 Features:/ EPSV/End
         4 Asked PASV
         4 Done PASV 227 Entering Passive Mode (10,0,0,9,4,1) port=1025 passive
         5 Asked RETR  two  spaces.txt
         5 Done RETR  two  spaces.txt 150,226 here it comes/done
         6 Asked EPSV
         6 Done EPSV 229 Entering Extended Passive Mode (|||6446|) port=6446 passive
         7 Asked STOR /a b
         7 Done STOR /a b 553 no
         8 Asked NOOP
         8 Done NOOP 200 ok
         9 Asked QUIT
         9 Done QUIT 221 bye
         expect 10.0.0.9:1025 by Client
         expect 10.0.0.9:1025 by Client RETR  two  spaces.txt
         expect 0.0.0.0:6446 by Client
         expect 0.0.0.0:6446 by Client STOR /a b",
    );
}

#[test]
fn active_connections() {
    check(
        "S 220 ready
         C PORT 10,0,0,1,4,1
         S 200 ok
         C LIST
         S 150 go\\r\\n226 done
         C NLST x
         S 150 go\\r\\n226 done
         C EPRT |2|2001:db8::1|2000|
         S 200 ok
         C PORT 10,0,0,1,4
         S 501 no
         C PORT 10,0,0,2,4,1
         S 500 not yours",
        "0 Done 220 ready
         1 Asked PORT 10,0,0,1,4,1 port=1025
         1 Done PORT 10,0,0,1,4,1 200 ok port=1025
         2 Asked LIST
         2 Done LIST 150,226 go/done
         3 Asked NLST x
         3 Done NLST x 150,226 go/done
         4 Asked EPRT |2|2001:db8::1|2000| port=2000
         4 Done EPRT |2|2001:db8::1|2000| 200 ok port=2000
         5 Asked PORT 10,0,0,1,4
         5 Done PORT 10,0,0,1,4 501 no
         6 Asked PORT 10,0,0,2,4,1 port=1025
         6 Done PORT 10,0,0,2,4,1 500 not yours port=1025
         expect 10.0.0.1:1025 by Server
         expect 10.0.0.1:1025 by Server LIST
         expect 10.0.0.1:1025 by Server NLST x
         expect [2001:db8::1]:2000 by Server
         Client ftp.bad_address",
    );
}

#[test]
fn commands_at_once() {
    check(
        "S 220 ready
         C PASV\\r\\nRETR a\\r\\nPASV\\r\\nRETR b
         S 227 (10,0,0,9,4,1)\\r\\n150 go\\r\\n226 done\\r\\n227 (10,0,0,9,4,2)\\r\\n426 cut\\r\\n421 bye",
        "0 Done 220 ready
         1 Asked PASV
         2 Asked RETR a
         3 Asked PASV
         4 Asked RETR b
         1 Done PASV 227 (10,0,0,9,4,1) port=1025 passive
         2 Done RETR a 150,226 go/done
         3 Done PASV 227 (10,0,0,9,4,2) port=1026 passive
         4 Done RETR b 426 cut
         5 Done 421 bye
         expect 10.0.0.9:1025 by Client RETR a
         expect 10.0.0.9:1026 by Client RETR b",
    );
}

#[test]
fn odd_lines() {
    check(
        "S 220 ready
         C a-b
         S 500 what
         S no reply
         C NOOP
         S 200 ok
         C STAT",
        "0 Done 220 ready
         1 Asked NOOP
         1 Done NOOP 200 ok
         2 Asked STAT
         2 Done STAT
         Client ftp.bad_command
         Server ftp.bad_reply",
    );
    let mut parser = Conversation::default();
    let mut out = Out::default();
    parser.take(Side::Client, b"\xff\xf4\xff\xf2ABOR\r\n\xff\xfd\x01RETR \xff\xffa\xff\xff\r\n\xff", &mut out);
    let shown: Vec<_> = out.told.iter().map(|told| told.fact.clone()).collect();
    let Fact::Ftp(abort) = &shown[0] else { panic!("{shown:?}") };
    let Fact::Ftp(retrieve) = &shown[1] else { panic!("{shown:?}") };
    assert_eq!((&abort.command[..], &retrieve.argument[..]), (&b"ABOR"[..], &b"\xffa\xff"[..]));
}

#[test]
fn tls_begins() {
    let talk = pieces("S 220 ready\nC AUTH TLS\nS 234 go\nC \u{16}\u{3}\u{1}\\");
    let out = feed(&mut Conversation::default(), &talk, Cut::Whole);
    assert_eq!(show(&out), ["0 Done 220 ready", "1 Asked AUTH TLS", "1 Done AUTH TLS 234 go"]);
    assert_eq!(out.became, Some(AppProto::Tls));
    check(
        "S 220 ready\nC AUTH TLS\nS 534 no\nC PWD\nS 257 /",
        "0 Done 220 ready
         1 Asked AUTH TLS
         1 Done AUTH TLS 534 no
         2 Asked PWD
         2 Done PWD 257 /",
    );
    let out = feed(&mut Conversation::default(), &pieces("S 220 ready\nC AUTH GSSAPI\nS 334 go"), Cut::Whole);
    assert_eq!(out.became, None);
}

#[test]
fn recorded_sessions() {
    let plain = recorded("ftp_plain.bin");
    let shown = run(&plain);
    for line in [
        "0 Done 220 pyftpdlib 2.2.0 ready.",
        "2 Asked PASS",
        "6 Asked STOR notes.txt",
        "12 Done RETR notes.txt 125,226 Data connection already open. Transfer starting./Transfer complete.",
        "expect 127.0.0.1:35199 by Client STOR notes.txt",
        "expect 127.0.0.1:46869 by Server RETR notes.txt",
        "expect 0.0.0.0:38551 by Client",
    ] {
        assert!(shown.iter().any(|each| each == line), "{line}: {shown:#?}");
    }
    assert!(!shown.iter().any(|line| line.contains("hunter2") || line.contains("Client ftp")), "{shown:#?}");
    assert_cuts_agree(Conversation::default, &plain);

    let secure = recorded("ftp_auth_tls.bin");
    let out = feed(&mut Conversation::default(), &secure, Cut::Whole);
    assert_eq!(out.became, Some(AppProto::Tls));
    assert_cuts_agree(Conversation::default, &secure);
}

#[test]
fn gaps() {
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, &pieces("S 220-wel\\"), Cut::Whole);
    parser.skip(Side::Server, 100, &mut out);
    let rest = feed(&mut parser, &pieces("S come\nC RETR lo\\"), Cut::Whole);
    out.told.extend(rest.told);
    parser.skip(Side::Client, 10, &mut out);
    let rest = feed(&mut parser, &pieces("C ng\nC SIZE a\nS 213 7"), Cut::Whole);
    out.told.extend(rest.told);
    assert_eq!(show(&out), ["0 Asked SIZE a", "0 Done SIZE a 213 7"]);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut parser = Conversation::default();
    let mut out = Out::default();
    let mut most = 0;
    for round in 0..10_000u32 {
        parser.take(Side::Client, format!("RETR {}\r\n", "x".repeat(round as usize % 6000)).as_bytes(), &mut out);
        if round % 3 == 0 {
            parser.take(Side::Server, format!("150-{}\r\n", "y".repeat(2000)).as_bytes(), &mut out);
        }
        most = most.max(parser.memory());
        out.told.clear();
        out.expected.clear();
    }
    assert!(most < 200 * 1024, "{most}");
    let is_told = |name| out.oddities.iter().any(|(_, oddity)| oddity.0 == name);
    assert!(is_told("ftp.many_commands") && is_told("ftp.long_command") && is_told("ftp.long_reply"));
}

#[test]
fn questions_after_the_servers_end_are_done() {
    assert_late_questions_are_done(Conversation::default(), &recorded("ftp_plain.bin"));
}

#[test]
fn mutations_are_harmless() {
    for name in ["ftp_plain.bin", "ftp_auth_tls.bin"] {
        assert_mutations_are_harmless(Conversation::default, &recorded(name), 200 * 1024);
    }
}
