use super::*;
use crate::packet::proto::testing::{
    Cut, Piece, assert_cuts_agree, assert_late_questions_are_done, assert_mutations_are_harmless, end, feed, recorded,
};
use crate::packet::proto::{Fact, Out, Parser, Side, Stage, Told};

/// What was told, a line each.
fn show(out: &Out) -> Vec<String> {
    let fact = |told: &Told| {
        let Fact::Smb(exchange) = &told.fact else { panic!("{told:?}") };
        let text = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name}={value}"));
        let parts = [
            Some(exchange.command.to_string()),
            Some(format!("[{}]", exchange.dialect)),
            text("share", &exchange.share),
            text("file", &exchange.file),
            text("to", &exchange.rename_to),
            exchange.user.as_ref().map(|(user, domain)| format!("user={domain}\\{user}")),
            (!exchange.offered.is_empty()).then(|| format!("offered={}", exchange.offered.join(","))),
            exchange.status.map(|status| format!("{status:#x}")),
        ];
        let start = format!("{} {:?}", told.tx, told.stage);
        parts.into_iter().flatten().fold(start, |line, part| format!("{line} {part}"))
    };
    let odd = out.oddities.iter().map(|(side, oddity)| format!("{side:?} {}", oddity.0));
    out.told.iter().map(fact).chain(odd).collect()
}

fn run(pieces: &[Piece]) -> Vec<String> {
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, pieces, Cut::Whole);
    end(&mut parser, &mut out);
    show(&out)
}

/// What the server answered (transactions that are done), without numbers and dialect.
fn done(name: &str) -> Vec<String> {
    let shown = run(&recorded(&format!("{name}.bin")));
    assert!(!shown.iter().any(|line| line.contains("Client smb") || line.contains("Server smb")), "{shown:#?}");
    let done = shown.iter().filter_map(|line| line.split_once(" Done "));
    let plain = done.map(|(_, said)| said.replace("_COMMAND_", " ").replace(r"\\127.0.0.1\", ""));
    plain.collect()
}

#[track_caller]
fn check(found: &[String], wanted: &str) {
    let wanted: Vec<_> = wanted.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(found, wanted);
}

/// smbclient and smbd: a listing, a file that is fetched, one that is put, renamed, fetched and deleted, one that is
/// absent.
#[test]
fn a_session_of_smb1() {
    check(
        &done("smb1"),
        r"SMB1 NEGOTIATE_PROTOCOL [NT LANMAN 1.0] offered=NT LANMAN 1.0,NT LM 0.12 0x0
          SMB1 SESSION_SETUP_ANDX [NT LANMAN 1.0] 0xc0000016
          SMB1 SESSION_SETUP_ANDX [NT LANMAN 1.0] user=LAB\games 0x0
          SMB1 TREE_CONNECT_ANDX [NT LANMAN 1.0] share=IPC$ 0x0
          SMB1 TRANS2 [NT LANMAN 1.0] share=IPC$ 0xc0000225
          SMB1 TREE_DISCONNECT [NT LANMAN 1.0] share=IPC$ 0x0
          SMB1 TREE_CONNECT_ANDX [NT LANMAN 1.0] share=DOCS 0x0
          SMB1 TRANS2 [NT LANMAN 1.0] share=DOCS file=\* 0x0
          SMB1 TRANS2 [NT LANMAN 1.0] share=DOCS 0x0
          SMB1 NT_CREATE_ANDX [NT LANMAN 1.0] share=DOCS file=\report.txt 0x0
          SMB1 TRANS2 [NT LANMAN 1.0] share=DOCS 0x0
          SMB1 READ_ANDX [NT LANMAN 1.0] share=DOCS file=\report.txt 0x0
          SMB1 CLOSE [NT LANMAN 1.0] share=DOCS file=\report.txt 0x0
          SMB1 CREATE_DIRECTORY [NT LANMAN 1.0] share=DOCS file=\plans 0x0
          SMB1 NT_CREATE_ANDX [NT LANMAN 1.0] share=DOCS file=\plans\größe.bin 0x0
          SMB1 WRITE_ANDX [NT LANMAN 1.0] share=DOCS file=\plans\größe.bin 0x0
          SMB1 CLOSE [NT LANMAN 1.0] share=DOCS file=\plans\größe.bin 0x0
          SMB1 RENAME [NT LANMAN 1.0] share=DOCS file=\plans\größe.bin to=\plans\new.bin 0x0
          SMB1 NT_CREATE_ANDX [NT LANMAN 1.0] share=DOCS file=\plans\new.bin 0x0
          SMB1 TRANS2 [NT LANMAN 1.0] share=DOCS 0x0
          SMB1 READ_ANDX [NT LANMAN 1.0] share=DOCS file=\plans\new.bin 0x0
          SMB1 CLOSE [NT LANMAN 1.0] share=DOCS file=\plans\new.bin 0x0
          SMB1 TRANS2 [NT LANMAN 1.0] share=DOCS file=\plans\new.bin 0x0
          SMB1 DELETE [NT LANMAN 1.0] share=DOCS file=\plans\new.bin 0x0
          SMB1 DELETE_DIRECTORY [NT LANMAN 1.0] share=DOCS file=\plans 0x0
          SMB1 NT_CREATE_ANDX [NT LANMAN 1.0] share=DOCS file=\absent.txt 0xc0000034
          SMB1 TREE_DISCONNECT [NT LANMAN 1.0] share=DOCS 0x0",
    );
}

#[test]
fn a_session_of_smb3() {
    check(
        &done("smb3_11"),
        r"SMB1 NEGOTIATE_PROTOCOL [2.??] offered=NT LANMAN 1.0,NT LM 0.12,SMB 2.002,SMB 2.??? 0x0
          SMB2 NEGOTIATE_PROTOCOL [3.11] offered=2.02,2.10,3.00,3.02,3.11 0x0
          SMB2 SESSION_SETUP [3.11] 0xc0000016
          SMB2 SESSION_SETUP [3.11] user=LAB\games 0x0
          SMB2 TREE_CONNECT [3.11] share=IPC$ 0x0
          SMB2 IOCTL [3.11] share=IPC$ 0xc0000225
          SMB2 TREE_DISCONNECT [3.11] share=IPC$ 0x0
          SMB2 TREE_CONNECT [3.11] share=docs 0x0
          SMB2 CREATE [3.11] share=docs file= 0x0
          SMB2 FIND [3.11] share=docs file= 0x0
          SMB2 FIND [3.11] share=docs file= 0x80000006
          SMB2 CLOSE [3.11] share=docs file= 0x0
          SMB2 CREATE [3.11] share=docs file= 0x0
          SMB2 GET_INFO [3.11] share=docs file= 0x0
          SMB2 CLOSE [3.11] share=docs file= 0x0
          SMB2 CREATE [3.11] share=docs file=report.txt 0x0
          SMB2 GET_INFO [3.11] share=docs file=report.txt 0x0
          SMB2 READ [3.11] share=docs file=report.txt 0x0
          SMB2 CLOSE [3.11] share=docs file=report.txt 0x0
          SMB2 CREATE [3.11] share=docs file=plans 0x0
          SMB2 CLOSE [3.11] share=docs file=plans 0x0
          SMB2 CREATE [3.11] share=docs file=plans\größe.bin 0x0
          SMB2 WRITE [3.11] share=docs file=plans\größe.bin 0x0
          SMB2 CLOSE [3.11] share=docs file=plans\größe.bin 0x0
          SMB2 CREATE [3.11] share=docs file=plans\größe.bin 0x0
          SMB2 SET_INFO [3.11] share=docs file=plans\größe.bin to=plans\new.bin 0x0
          SMB2 CLOSE [3.11] share=docs file=plans\größe.bin 0x0
          SMB2 CREATE [3.11] share=docs file=plans\new.bin 0x0
          SMB2 GET_INFO [3.11] share=docs file=plans\new.bin 0x0
          SMB2 READ [3.11] share=docs file=plans\new.bin 0x0
          SMB2 CLOSE [3.11] share=docs file=plans\new.bin 0x0
          SMB2 CREATE [3.11] share=docs file=plans 0x0
          SMB2 FIND [3.11] share=docs file=plans 0x0
          SMB2 CREATE [3.11] share=docs file=plans\new.bin 0x0
          SMB2 CLOSE [3.11] share=docs file=plans\new.bin 0x0
          SMB2 FIND [3.11] share=docs file=plans 0x80000006
          SMB2 CLOSE [3.11] share=docs file=plans 0x0
          SMB2 CREATE [3.11] share=docs file=plans 0x0
          SMB2 SET_INFO [3.11] share=docs file=plans 0x0
          SMB2 CLOSE [3.11] share=docs file=plans 0x0
          SMB2 CREATE [3.11] share=docs file=absent.txt 0xc0000034
          SMB2 TREE_DISCONNECT [3.11] share=docs 0x0",
    );
}

#[test]
fn other_sessions() {
    let found = done("smb2_10");
    assert_eq!(found[1], "SMB2 NEGOTIATE_PROTOCOL [2.10] offered=2.02,2.10 0x0");
    assert_eq!(found[24], r"SMB2 WRITE [2.10] share=docs file=plans\größe.bin 0x0");
    assert_eq!(found.len(), 44);
    // What is encrypted is not read, and not odd.
    check(
        &done("smb3_encrypted"),
        r"SMB1 NEGOTIATE_PROTOCOL [2.??] offered=NT LANMAN 1.0,NT LM 0.12,SMB 2.002,SMB 2.??? 0x0
          SMB2 NEGOTIATE_PROTOCOL [3.11] offered=2.02,2.10,3.00,3.02,3.11 0x0
          SMB2 SESSION_SETUP [3.11] 0xc0000016
          SMB2 SESSION_SETUP [3.11] user=LAB\games 0x0",
    );
}

#[test]
fn each_is_asked_before_it_is_done() {
    for name in ["smb1", "smb2_10", "smb3_11"] {
        let out = feed(&mut Conversation::default(), &recorded(&format!("{name}.bin")), Cut::Whole);
        let asked = out.told.iter().filter(|told| told.stage == Stage::Asked).count();
        assert_eq!(2 * asked, out.told.len(), "{name}");
        for (tx, pair) in out.told.chunks(2).enumerate() {
            let told: Vec<_> = pair.iter().map(|told| (told.tx as usize, told.stage)).collect();
            assert_eq!(told, [(tx, Stage::Asked), (tx, Stage::Done)], "{name}");
        }
    }
}

#[test]
fn any_cut_tells_the_same() {
    // Cutting everywhere is quadratic: the longest of these would take minutes.
    assert_cuts_agree(Conversation::default, &recorded("smb1.bin")[..24]);
    assert_cuts_agree(Conversation::default, &recorded("smb3_11.bin")[..24]);
    for name in ["smb1", "smb2_10", "smb3_11", "smb3_encrypted"] {
        let pieces = recorded(&format!("{name}.bin"));
        let whole = run(&pieces);
        for size in [1, 2, 3, 5, 64, 100, 1460] {
            let mut parser = Conversation::default();
            let mut out = feed(&mut parser, &pieces, Cut::Every(size));
            end(&mut parser, &mut out);
            assert_eq!(show(&out), whole, "{name} {size}");
        }
    }
}

#[test]
fn questions_after_the_servers_end_are_done() {
    assert_late_questions_are_done(Conversation::default(), &recorded("smb1.bin"));
    assert_late_questions_are_done(Conversation::default(), &recorded("smb3_11.bin"));
}

#[test]
fn mutations_are_harmless() {
    for name in ["smb1", "smb2_10", "smb3_11"] {
        assert_mutations_are_harmless(Conversation::default, &recorded(&format!("{name}.bin"))[..40], 300 * 1024);
    }
}

/// A message of SMB 1: command, status, flags (0x80: a response), and what stands behind the header, in ASCII.
fn v1(command: u8, status: u32, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"\xffSMB".to_vec();
    bytes.push(command);
    bytes.extend(status.to_le_bytes());
    bytes.extend([flags, 0, 0]);
    bytes.extend([0; 12]);
    bytes.extend([5, 0, 77, 0, 6, 0, 99, 0]);
    bytes.extend(body);
    bytes
}

#[test]
fn a_chain_of_smb1() {
    // SESSION_SETUP_ANDX in its form without a security blob: next command, its place, passwords of 1 and 2 bytes.
    let words = [0x75, 0, 0, 0, 0, 16, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let setup = [&[13][..], &words, &[22, 0], b"pppbob\0LAB\0Unix\0Samba\0"].concat();
    // TREE_CONNECT_ANDX: no next command, a password of 1 byte.
    let tree = [&[4, 0xff, 0, 0, 0, 0, 0, 1, 0][..], &[20, 0], b"\0\\\\srv\\docs\0?????\0"].concat();
    let mut asked = v1(0x73, 0, 0, &[&setup[..], &tree].concat());
    // The place of the second, from the header on.
    asked[35..37].copy_from_slice(&(32 + setup.len() as u16).to_le_bytes());
    let granted = [3, 0x75, 0, 41, 0, 0, 0, 0, 0, 3, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    for (answer, status) in [(v1(0x73, 0, 0x80, &granted), "0x0"), (v1(0x73, 0xc000_006d, 0x80, &[0; 3]), "0xc000006d")]
    {
        let pieces = [(Side::Client, frame(&[asked.clone()])), (Side::Server, frame(&[answer]))];
        let setup = r"SMB1_COMMAND_SESSION_SETUP_ANDX [] user=LAB\bob".to_string();
        let tree = r"SMB1_COMMAND_TREE_CONNECT_ANDX [] share=\\srv\docs".to_string();
        let wanted = [
            format!("0 Asked {setup}"),
            format!("1 Asked {tree}"),
            format!("0 Done {setup} {status}"),
            format!("1 Done {tree} {status}"),
        ];
        assert_eq!(run(&pieces), wanted);
        assert_cuts_agree(Conversation::default, &pieces);
    }
}

#[test]
fn a_session_is_asked_for_first() {
    let negotiate = frame(&[v1(0x72, 0, 0, b"\0\x0c\0\x02NT LM 0.12\0")]);
    let request = [&b"\x81\0\0\x44"[..], &[b'A'; 68]].concat();
    let pieces = [
        (Side::Client, request),
        (Side::Server, b"\x82\0\0\0".to_vec()),
        (Side::Client, negotiate),
        (Side::Client, b"\x85\0\0\0".to_vec()),
        (Side::Server, frame(&[v1(0x72, 0, 0x80, &[1, 0, 0, 0, 0])])),
    ];
    let offered = "offered=NT LM 0.12";
    assert_eq!(
        run(&pieces),
        [
            format!("0 Asked SMB1_COMMAND_NEGOTIATE_PROTOCOL [] {offered}"),
            format!("0 Done SMB1_COMMAND_NEGOTIATE_PROTOCOL [NT LM 0.12] {offered} 0x0"),
        ]
    );
    assert_cuts_agree(Conversation::default, &pieces);
}

/// A message of SMB 2: command, status or zero, flags, the next one's place, message id, and what stands behind the
/// header.
fn v2(command: u16, status: u32, flags: u32, next: u32, message: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"\xfeSMB\x40\0\0\0".to_vec();
    bytes.extend(status.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes.extend(message.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(7u32.to_le_bytes());
    bytes.extend(9u64.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

fn frame(messages: &[Vec<u8>]) -> Vec<u8> {
    let message = messages.concat();
    [&(message.len() as u32).to_be_bytes()[..], &message].concat()
}

/// The body of a CREATE for a name, filled up to a multiple of 8.
fn create(name: &str) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut body = vec![0; 56];
    body[44..46].copy_from_slice(&120u16.to_le_bytes());
    body[46..48].copy_from_slice(&(name.len() as u16).to_le_bytes());
    body.extend(name);
    body.resize(body.len().next_multiple_of(8), 0);
    body
}

const RESPONSE: u32 = 1;
const ASYNC: u32 = 2;
const RELATED: u32 = 4;

#[test]
fn a_chain_goes_on_with_the_same_file() {
    let first = create("a.txt");
    let asked = frame(&[
        v2(5, 0, 0, 64 + first.len() as u32, 1, &first),
        v2(8, 0, RELATED, 64 + 48, 2, &[0xff; 48]),
        v2(6, 0, RELATED, 0, 3, &[0xff; 24]),
    ]);
    let answered = frame(&[
        v2(5, 0, RESPONSE, 64 + 88, 1, &[3; 88]),
        v2(8, 0xc000_0011, RESPONSE, 64 + 16, 2, &[0; 16]),
        v2(6, 0, RESPONSE, 0, 3, &[0; 60]),
    ]);
    let pieces = [(Side::Client, asked), (Side::Server, answered)];
    let shown = run(&pieces);
    assert_eq!(
        shown[3..],
        [
            "0 Done SMB2_COMMAND_CREATE [] file=a.txt 0x0",
            "1 Done SMB2_COMMAND_READ [] file=a.txt 0xc0000011",
            "2 Done SMB2_COMMAND_CLOSE [] file=a.txt 0x0",
        ]
    );
    assert_cuts_agree(Conversation::default, &pieces);
}

#[test]
fn answers_that_come_later() {
    let pieces = [
        (Side::Client, frame(&[v2(15, 0, 0, 0, 1, &[0; 32])])),
        (Side::Client, frame(&[v2(13, 0, 0, 0, 2, &[0; 4])])),
        (Side::Server, frame(&[v2(15, 0x103, RESPONSE | ASYNC, 0, 1, &[0; 9])])),
        (Side::Server, frame(&[v2(13, 0, RESPONSE, 0, 2, &[0; 4])])),
        (Side::Client, frame(&[v2(12, 0, ASYNC, 0, 1, &[0; 4])])),
        (Side::Server, frame(&[v2(15, 0xc000_0120, RESPONSE | ASYNC, 0, 1, &[0; 9])])),
        // Of its own accord.
        (Side::Server, frame(&[v2(18, 0, RESPONSE, 0, u64::MAX, &[0; 24])])),
    ];
    assert_eq!(
        run(&pieces),
        [
            "0 Asked SMB2_COMMAND_CHANGE_NOTIFY []",
            "1 Asked SMB2_COMMAND_KEEPALIVE []",
            "1 Done SMB2_COMMAND_KEEPALIVE [] 0x0",
            "2 Asked SMB2_COMMAND_CANCEL []",
            "2 Done SMB2_COMMAND_CANCEL []",
            "0 Done SMB2_COMMAND_CHANGE_NOTIFY [] 0xc0000120",
            "3 Done SMB2_COMMAND_OPLOCK_BREAK [] 0x0",
        ]
    );
}

#[test]
fn odd_messages() {
    let table: [(&str, Vec<u8>, &[&str]); 6] = [
        (
            "another protocol in a frame",
            b"\0\0\0\x28GET / HTTP/1.1\r\nHost: a.b.c.d.e.f.g\r\n\r\n\0".to_vec(),
            &["Client smb.bad_header"],
        ),
        ("a short message", b"\0\0\0\x10\xfeSMB\x40\0\0\0\0\0\0\0\0\0\0\0".to_vec(), &["Client smb.bad_header"]),
        ("no frame", b"\x99\0\0\0".to_vec(), &["Client smb.bad_frame"]),
        ("a chain that goes backwards", frame(&[v2(13, 0, 0, 8, 1, &[0; 16])]), &["Client smb.bad_header"]),
        ("a chain out of the frame", frame(&[v2(13, 0, 0, 80, 1, &[0; 16])]), &["Client smb.bad_header"]),
        ("a response of the client", frame(&[v2(13, 0, RESPONSE, 0, 1, &[0; 4])]), &["Client smb.wrong_direction"]),
    ];
    for (name, bytes, wanted) in table {
        let mut out = feed(&mut Conversation::default(), &[(Side::Client, bytes)], Cut::Whole);
        out.told.clear();
        assert_eq!(show(&out), wanted, "{name}");
    }
    // A name that is longer than what is kept.
    let out = feed(
        &mut Conversation::default(),
        &[(Side::Client, frame(&[v2(5, 0, 0, 0, 1, &create(&"x".repeat(20_000)))]))],
        Cut::Whole,
    );
    assert!(show(&out).contains(&"Client smb.long_name".to_string()));
    let Fact::Smb(exchange) = &out.told[0].fact else { panic!() };
    assert_eq!(exchange.file.as_ref().map(String::len), Some((16 * 1024 - 56) / 2));
}

#[test]
fn what_is_kept_is_bounded() {
    let mut parser = Conversation::default();
    let mut out = Out::default();
    let mut most = 0;
    for message in 0..5000u64 {
        let name = format!("{message}{}", "x".repeat(message as usize % 4000));
        let body = if message % 2 == 0 { create(&name) } else { create("short") };
        let tree: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let share = [&[9, 0, 0, 0, 72, 0][..], &(tree.len() as u16).to_le_bytes(), &tree].concat();
        parser.take(Side::Client, &frame(&[v2(5, 0, 0, 0, message, &body)]), &mut out);
        parser.take(Side::Client, &frame(&[v2(3, 0, 0, 0, message, &share)]), &mut out);
        if message % 2 == 0 {
            let mut id = [0; 88];
            id[64..72].copy_from_slice(&message.to_le_bytes());
            parser.take(Side::Server, &frame(&[v2(5, 0, RESPONSE, 0, message, &id)]), &mut out);
            parser.take(Side::Server, &frame(&[v2(3, 0, RESPONSE, 0, message, &[0; 16])]), &mut out);
        }
        most = most.max(parser.memory());
        out.told.clear();
    }
    assert!(most < 500 * 1024, "{most}");
    let is_told = |name| out.oddities.iter().any(|(_, oddity)| oddity.0 == name);
    assert!(is_told("smb.many_requests") && is_told("smb.many_names"));
}

/// What files are made of is passed over, not kept.
#[test]
fn a_large_write() {
    let mut parser = Conversation::default();
    let mut out = Out::default();
    let write = frame(&[v2(9, 0, 0, 0, 1, &vec![0x5a; 4 << 20])]);
    for piece in write.chunks(1460) {
        parser.take(Side::Client, piece, &mut out);
        assert!(parser.memory() < 4096);
    }
    parser.take(Side::Client, &frame(&[v2(13, 0, 0, 0, 2, &[0; 4])]), &mut out);
    assert_eq!(show(&out), ["0 Asked SMB2_COMMAND_WRITE []", "1 Asked SMB2_COMMAND_KEEPALIVE []"]);
}
