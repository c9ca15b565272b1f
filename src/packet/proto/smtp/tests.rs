use proptest::prelude::*;

use super::mail::{Data, Head};
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
        let said = said.replace("\\r", "\r").replace("\\n", "\n").replace("\\t", "\t");
        (side, said.strip_suffix('\\').map_or_else(|| format!("{said}\r\n"), str::to_string).into_bytes())
    };
    talk.lines().filter(|line| !line.trim().is_empty()).map(piece).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What was told, a line each.
fn show(out: &Out) -> Vec<String> {
    let fact = |told: &Told| {
        let start = format!("{} {:?}", told.tx, told.stage);
        let Fact::Smtp(exchange) = &told.fact else { return format!("{start} other") };
        let recipients: Vec<_> = exchange.rcpt_to.iter().map(|path| text(path)).collect();
        let parts = [
            ("", Some(text(&exchange.command))),
            ("", Some(text(&exchange.argument)).filter(|argument| !argument.is_empty())),
            ("from=", exchange.mail_from.as_deref().map(text)),
            ("to=", Some(recipients.join(",")).filter(|all| !all.is_empty())),
            ("subject=", exchange.subject.as_deref().map(text)),
            ("bytes=", Some(exchange.mail_bytes.to_string()).filter(|bytes| bytes != "0")),
            ("reply=", exchange.reply.map(|reply| reply.to_string())),
        ];
        parts
            .into_iter()
            .fold(start, |line, (name, value)| value.map_or(line.clone(), |value| format!("{line} {name}{value}")))
    };
    let odd = out.oddities.iter().map(|(side, oddity)| format!("{side:?} {}", oddity.0));
    out.told.iter().map(fact).chain(odd).collect()
}

fn run(pieces: &[Piece], cut: Cut) -> Vec<String> {
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, pieces, cut);
    end(&mut parser, &mut out);
    show(&out)
}

#[track_caller]
fn check(talk: &str, wanted: &str) {
    let pieces = pieces(talk);
    let wanted: Vec<_> = wanted.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(run(&pieces, Cut::Whole), wanted);
    assert_cuts_agree(Conversation::default, &pieces);
}

#[test]
fn a_mail() {
    check(
        r"S 220 mail ESMTP
         C ehlo client
         S 250-mail
         S 250 8BITMIME
         C MAIL FROM:<bob@a.org> SIZE=100
         S 250 ok
         C RCPT TO:<eve@b.example>
         S 250 ok
         C RCPT TO:<kim@b.example>
         S 550 no
         C DATA
         S 354 go
         C From: x
         C subject:  Figures of
         C \tthe quarter
         C Subject: another
         C \r\n\
         C ..dot
         C .
         S 250 queued
         C QUIT
         S 221 bye",
        "0 Asked EHLO client
         0 Done EHLO client reply=250
         1 Asked MAIL FROM:<bob@a.org> SIZE=100 from=bob@a.org
         1 Asked RCPT TO:<eve@b.example> from=bob@a.org to=eve@b.example reply=250
         1 Asked RCPT TO:<kim@b.example> from=bob@a.org to=kim@b.example reply=250
         1 Asked DATA from=bob@a.org to=eve@b.example,kim@b.example reply=550
         1 Done DATA from=bob@a.org to=eve@b.example,kim@b.example subject=Figures of\tthe quarter bytes=71 reply=250
         2 Asked QUIT
         2 Done QUIT reply=221",
    );
}

#[test]
fn commands_at_once() {
    check(
        r#"S 220 mail
         C EHLO c
         S 250 PIPELINING
         C MAIL FROM:<>\r\nRCPT TO:<"a>b"@c>\r\nRCPT TO:d@e x=y\r\nDATA
         S 250 ok\r\n250 ok\r\n550 no\r\n354 go
         C .
         C MAIL FROM: <f@g>\r\nRSET\r\nNOOP
         S 250 queued\r\n250 ok\r\n250 reset\r\n250 noop"#,
        r#"0 Asked EHLO c
         0 Done EHLO c reply=250
         1 Asked MAIL FROM:<> from=
         1 Asked RCPT TO:<"a>b"@c> from= to="a>b"@c
         1 Asked RCPT TO:d@e x=y from= to=d@e
         1 Asked DATA from= to="a>b"@c,d@e
         2 Asked MAIL FROM: <f@g> from=f@g
         2 Done MAIL FROM: <f@g> from=f@g
         3 Asked RSET
         4 Asked NOOP
         1 Done DATA from= to="a>b"@c,d@e reply=250
         3 Done RSET reply=250
         4 Done NOOP reply=250"#,
    );
}

#[test]
fn what_is_refused() {
    check(
        r"S 554 no
         C HELO c
         S 250 ok
         C MAIL FROM:<a>
         S 550 no
         C RCPT TO:<b>
         S 503 mail first
         C DATA
         S 503 no
         C VRFY x
         S 252 perhaps
         C a-b c
         S 500 what
         C QUIT
         S 221 bye",
        "0 Asked HELO c
         0 Done HELO c reply=250
         1 Asked MAIL FROM:<a> from=a
         1 Done MAIL FROM:<a> from=a reply=550
         2 Asked RCPT TO:<b> to=b
         2 Asked DATA to=b reply=503
         3 Asked VRFY x
         3 Done VRFY x reply=252
         2 Done DATA to=b reply=503
         4 Asked QUIT
         4 Done QUIT reply=221
         Client smtp.bad_command",
    );
}

#[test]
fn chunks() {
    check(
        r"S 220 mail
         C MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 12\r\nSubject: a\r\n\
         S 250 ok\r\n250 ok\r\n250 12 octets
         C BDAT 11 LAST\r\n\r\n.\r\nQUIT\r\n\
         S 250 queued
         C BDAT x
         S 501 no
         C BDAT 0 LAST
         S 503 no mail",
        "0 Asked MAIL FROM:<a> from=a
         0 Asked RCPT TO:<b> from=a to=b
         0 Asked BDAT 12 from=a to=b
         0 Asked BDAT 11 LAST from=a bytes=12 reply=250
         0 Done BDAT 11 LAST from=a to=b subject=a bytes=23 reply=250
         1 Asked BDAT x
         1 Done BDAT x reply=501
         2 Asked BDAT 0 LAST
         2 Done BDAT 0 LAST reply=503
         Client smtp.bad_bdat",
    );
}

#[test]
fn what_is_said_to_log_in_is_not_kept() {
    check(
        r"S 220 mail
         C AUTH PLAIN AGJvYgBodW50ZXIy
         S 235 in
         C AUTH LOGIN
         S 334 VXNlcm5hbWU6
         C Ym9i
         S 334 UGFzc3dvcmQ6
         C aHVudGVyMg==
         S 535 no
         C AUTH CRAM-MD5
         C MAIL FROM:<a>
         S 504 no
         S 250 ok",
        "0 Asked AUTH PLAIN
         0 Done AUTH PLAIN reply=235
         1 Asked AUTH LOGIN
         1 Done AUTH LOGIN reply=535
         2 Asked AUTH CRAM-MD5
         3 Asked MAIL FROM:<a> from=a
         2 Done AUTH CRAM-MD5 reply=504
         3 Done MAIL FROM:<a> from=a reply=250",
    );
}

#[test]
fn lmtp_has_a_reply_for_each_recipient() {
    check(
        r"S 220 mail LMTP
         C LHLO c
         S 250 ok
         C MAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nDATA
         S 250 ok\r\n250 ok\r\n250 ok\r\n354 go
         C x\r\n.\r\nQUIT
         S 250 b has it\r\n452 c is full\r\n221 bye",
        "0 Asked LHLO c
         0 Done LHLO c reply=250
         1 Asked MAIL FROM:<a> from=a
         1 Asked RCPT TO:<b> from=a to=b
         1 Asked RCPT TO:<c> from=a to=c
         1 Asked DATA from=a to=b,c
         2 Asked QUIT
         1 Done DATA from=a to=b,c bytes=3 reply=452
         2 Done QUIT reply=221",
    );
}

#[test]
fn tls_begins() {
    let talk = pieces("S 220 mail\nC STARTTLS\nS 220 go\nC \u{16}\u{3}\u{1}\\");
    let mut parser = Conversation::default();
    let out = feed(&mut parser, &talk, Cut::Whole);
    assert_eq!(show(&out), ["0 Asked STARTTLS", "0 Done STARTTLS reply=220"]);
    assert_eq!(out.became, Some(AppProto::Tls));

    // Refused: it goes on as it was.
    let talk = "S 220 mail\nC STARTTLS\nS 454 no\nC NOOP\nS 250 ok";
    check(talk, "0 Asked STARTTLS\n0 Done STARTTLS reply=454\n1 Asked NOOP\n1 Done NOOP reply=250");

    // The client's first record is seen before the reply that allows it.
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, &pieces("S 220 mail\nC STARTTLS\nC \u{16}\u{3}\u{1}\\"), Cut::Every(1));
    assert_eq!(out.became, None);
    parser.take(Side::Server, b"220 go\r\n", &mut out);
    assert_eq!(out.became, Some(AppProto::Tls));

    // The reply is missing, a record tells.
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, &pieces("S 220 mail\nC STARTTLS"), Cut::Whole);
    parser.skip(Side::Server, 8, &mut out);
    parser.take(Side::Client, b"\x16\x03\x01", &mut out);
    assert_eq!(out.became, Some(AppProto::Tls));

    check(
        "S 220 mail\nC STARTTLS\\r\\nRSET\nS 220 go",
        "0 Asked STARTTLS
         1 Asked RSET
         0 Done STARTTLS reply=220
         1 Done RSET
         Client smtp.starttls_pipelined",
    );
}

#[test]
fn recorded_sessions() {
    let plain = recorded("smtp_plain.bin");
    let shown = run(&plain, Cut::Whole);
    let subject = |number| {
        format!(
            "subject=Figures of the quarter, number {number}, with a subject that is long enough to be folded by \
             the library that sends it"
        )
    };
    let from = "from=bob@example.org to=eve@example.net,kim@example.net";
    for (tx, number) in [(2, 1), (3, 2)] {
        let start = format!("{tx} Done DATA {from} {}", subject(number));
        assert!(
            shown.iter().any(|line| line.starts_with(&start) && line.ends_with("reply=250")),
            "{start}\n{shown:#?}"
        );
    }
    assert!(
        shown.contains(&"1 Done AUTH LOGIN reply=235".to_string())
            || shown.contains(&"1 Done AUTH PLAIN reply=235".to_string())
    );
    assert!(!shown.iter().any(|line| line.contains("Client smtp") || line.contains("Server smtp")), "{shown:#?}");
    assert_cuts_agree(Conversation::default, &plain);

    let secure = recorded("smtp_starttls.bin");
    let out = feed(&mut Conversation::default(), &secure, Cut::Whole);
    assert_eq!(out.became, Some(AppProto::Tls));
    let shown = show(&out);
    assert!(shown.contains(&"1 Done STARTTLS reply=220".to_string()), "{shown:#?}");
    assert_cuts_agree(Conversation::default, &secure);
}

#[test]
fn gaps() {
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, &pieces("S 220 mail\nC MAIL FROM:<a>\nS 250 ok\nC RCPT TO:<b@\\"), Cut::Whole);
    parser.skip(Side::Client, 100, &mut out);
    let rest = feed(&mut parser, &pieces("C c>\nC DATA\nS 250 ok\nS 354 go\nC Subj\\"), Cut::Whole);
    out.told.extend(rest.told);
    // The end of the mail is missing: the server's reply tells of it.
    parser.skip(Side::Client, 1000, &mut out);
    let rest = feed(&mut parser, &pieces("C ect: x\nS 250 queued\nC QUIT"), Cut::Whole);
    out.told.extend(rest.told);
    let wanted = [
        "0 Asked MAIL FROM:<a> from=a",
        "0 Asked DATA from=a reply=250",
        "0 Done DATA from=a bytes=1012 reply=250",
        "1 Asked QUIT",
    ];
    assert_eq!(show(&out), wanted);
}

/// How many bytes a mail has, whether it ends, and what is odd, by a reading of whole lines.
#[test]
fn ends_of_mails() {
    let table: &[(&str, Option<u64>, &str)] = &[
        (".\r\n", Some(0), ""),
        ("a\r\n.\r\n", Some(3), ""),
        ("..\r\n.\r\n", Some(3), ""),
        (".a\r\n...\r\n.\r\n", Some(7), ""),
        ("a\n.\n", None, "lf end"),
        ("a\n.\r\n", None, "lf end"),
        ("a\r\n.\n", None, "lf end"),
        ("a\r.\r", None, "cr end"),
        ("a\r.\rb", None, "cr end"),
        ("a\r.\n", None, "lf cr end"),
        ("a\r.\r\n", None, "cr end"),
        ("a\rb\r\n.\r\n", Some(5), "cr"),
        ("a\nb\r\n.\r\n", Some(5), "lf"),
        ("a\r\n.\rb\r\n.\r\n", None, "cr"),
        ("a.\r\n", None, ""),
        ("\r\r\n.\r\n", Some(3), "cr"),
    ];
    for (mail, wanted, odd) in table {
        for first in 0..=mail.len() {
            let mut data = Data::default();
            let mut count = 0;
            let (head, tail) = mail.as_bytes().split_at(first);
            let (_, is_over) = data.take(head, &mut count, &mut |_| {});
            let is_end = is_over || data.take(tail, &mut count, &mut |_| {}).1;
            let shapes = data.shapes;
            let names = [(shapes.bare_lf, "lf"), (shapes.bare_cr, "cr"), (shapes.false_end, "end")];
            let found: Vec<_> = names.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
            let is_last = mail.ends_with("\r\n.\r\n") || *mail == ".\r\n";
            assert_eq!(is_end, is_last, "{mail:?} {first}");
            if let Some(wanted) = wanted {
                assert_eq!(count, *wanted, "{mail:?} {first}");
            }
            assert_eq!(found.join(" "), *odd, "{mail:?} {first}");
        }
    }
}

#[test]
fn a_false_end_that_the_server_takes() {
    check(
        r"S 220 mail
         C MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA
         S 250 ok\r\n250 ok\r\n354 go
         C x\n.\nMAIL FROM:<admin>\r\n\
         S 250 queued
         C QUIT
         S 221 bye",
        "0 Asked MAIL FROM:<a> from=a
         0 Asked RCPT TO:<b> from=a to=b
         0 Asked DATA from=a to=b
         0 Done DATA from=a to=b bytes=23 reply=250
         1 Asked QUIT
         1 Done QUIT reply=221
         Client smtp.mail_bare_lf
         Client smtp.mail_false_end",
    );
}

#[test]
fn subjects() {
    let table: &[(&str, Option<&str>)] = &[
        ("Subject: a b \r\n\r\n", Some("a b")),
        ("SUBJECT:a\r\n", Some("a")),
        ("Subject : a\n\tb\n c\n", Some("a\tb c")),
        ("X: y\r\n folded\r\nSubject: a\r\n", Some("a")),
        ("Subject: a\r\nX: b\r\n c\r\n", Some("a")),
        ("Subject: a\r\nSubject: b\r\n c\r\n", Some("a")),
        ("Subjects: a\r\n\r\nSubject: in the body\r\n", None),
        ("Subject", None),
    ];
    for (mail, wanted) in table {
        let mut head = Head::default();
        mail.as_bytes().chunks(3).for_each(|part| head.take(part));
        assert_eq!(head.into_subject().map(|subject| text(&subject)).as_deref(), *wanted, "{mail:?}");
    }
    let mut head = Head::default();
    head.take(b"Subject: ");
    head.take(&vec![b'x'; 100_000]);
    head.take(b"\r\n");
    (0..1000).for_each(|_| head.take(b" folded once more\r\n"));
    assert!(head.memory() < 5000);
    assert_eq!(head.into_subject().map(|subject| subject.len()), Some(998));
}

#[test]
fn what_is_kept_is_bounded() {
    let mut parser = Conversation::default();
    let mut out = Out::default();
    let mut most = 0;
    for round in 0..20_000u32 {
        let line = match round % 4 {
            0 => format!("NOOP {}\r\n", "x".repeat(900)),
            1 => format!("RCPT TO:<{}>\r\n", "y".repeat(900)),
            2 => format!("VRFY {}\r\n", "z".repeat(5000)),
            _ => "NOOP\r\n".to_string(),
        };
        parser.take(Side::Client, line.as_bytes(), &mut out);
        most = most.max(parser.memory());
        out.told.clear();
    }
    assert!(most < 400 * 1024, "{most}");
    let is_told = |name| out.oddities.iter().any(|(_, oddity)| oddity.0 == name);
    assert!(is_told("smtp.many_commands") && is_told("smtp.many_recipients") && is_told("smtp.long_command"));
}

#[test]
fn questions_after_the_servers_end_are_done() {
    assert_late_questions_are_done(Conversation::default(), &recorded("smtp_plain.bin"));
}

#[test]
fn mutations_are_harmless() {
    for name in ["smtp_plain.bin", "smtp_starttls.bin"] {
        assert_mutations_are_harmless(Conversation::default, &recorded(name), 400 * 1024);
    }
}

proptest! {
    /// The end of a mail, its bytes and its shapes do not depend on how it was cut.
    #[test]
    fn a_mail_is_the_same_however_cut(
        mail in prop::collection::vec(
            prop::sample::select(vec!["\r\n", "\n", "\r", ".", "a", "\r\n.\r\n", "\r\n."]),
            0..20,
        ),
        cut in 1usize..9,
    ) {
        let mail = mail.concat();
        let read = |size: usize| {
            let (mut data, mut count, mut taken, mut odd) = (Data::default(), 0, 0, Vec::new());
            for part in mail.as_bytes().chunks(size) {
                let (part, is_end) = data.take(part, &mut count, &mut |name| odd.push(name));
                taken += part;
                if is_end {
                    break;
                }
            }
            (taken, count, data.shapes, odd)
        };
        let whole = read(mail.len().max(1));
        prop_assert_eq!(&read(cut), &whole);
        // The end is where RFC 5321 has it, and nowhere else.
        let end = if mail.starts_with(".\r\n") { Some(3) } else { mail.find("\r\n.\r\n").map(|at| at + 5) };
        prop_assert_eq!(whole.0, end.unwrap_or(mail.len()));
    }
}
