//! `gb_per_s.smtp` and `gb_per_s.smb2`: what the parsers of mails and files take in a second, on one core, without
//! the flow layer.

use std::hint::black_box;
use std::time::Instant;

use ebpfsentinel::packet::proto::{AppProto, Out, Side, parser_for};

/// Bytes that a segment carries on Ethernet.
const SEGMENT: usize = 1460;

/// A mail with a picture in it, and what SMB reads at once.
const BODY: usize = 64 * 1024;

/// Requests of SMB in one conversation.
const READS: u64 = 16;

type Conversation = Vec<(Side, Vec<u8>)>;

/// Bytes per second in units of 10^9: the best of `rounds`, each at least `round_ms` long. Every pass reads the whole
/// conversation by a parser of its own, which must find `facts` in it and nothing odd.
fn gb_per_s(protocol: AppProto, talk: &[(Side, Vec<u8>)], facts: usize, rounds: u32, round_ms: u128) -> f64 {
    let segments: Conversation =
        talk.iter().flat_map(|(side, said)| said.chunks(SEGMENT).map(|segment| (*side, segment.to_vec()))).collect();
    let bytes: usize = segments.iter().map(|(_, segment)| segment.len()).sum();
    let mut out = Out::default();
    let mut pass = || {
        let mut parser = parser_for(protocol).expect("there is a parser");
        let mut told = 0;
        for (side, segment) in &segments {
            parser.take(*side, segment, &mut out);
            told += black_box(&out.told).len();
            out.told.clear();
        }
        Side::BOTH.into_iter().for_each(|side| parser.end(side, &mut out));
        assert_eq!((told, &out.oddities[..]), (facts, &[][..]));
    };
    let mut round = || {
        let start = Instant::now();
        let mut read = 0;
        while start.elapsed().as_millis() < round_ms {
            pass();
            read += bytes;
        }
        read as f64 / start.elapsed().as_nanos() as f64
    };
    (0..rounds).map(|_| round()).fold(0.0, f64::max)
}

/// SMTP: a mail of 64 KiB in lines of 76 letters, as base64 has them.
pub fn smtp(rounds: u32, round_ms: u128) -> f64 {
    let line = [&[b'x'; 76][..], b"\r\n"].concat();
    let mail = [b"Subject: picture\r\n\r\n", &line.repeat(BODY / line.len())[..], b".\r\n"].concat();
    let said = |side: Side, said: &[u8]| (side, said.to_vec());
    let talk = [
        said(Side::Server, b"220 mail.example.org ESMTP\r\n"),
        said(Side::Client, b"EHLO client.example.org\r\n"),
        said(Side::Server, b"250-mail.example.org\r\n250 PIPELINING\r\n"),
        said(Side::Client, b"MAIL FROM:<bob@example.org>\r\nRCPT TO:<eve@example.net>\r\nDATA\r\n"),
        said(Side::Server, b"250 ok\r\n250 ok\r\n354 go\r\n"),
        (Side::Client, mail),
        said(Side::Server, b"250 queued\r\n"),
        said(Side::Client, b"QUIT\r\n"),
        said(Side::Server, b"221 bye\r\n"),
    ];
    // EHLO, QUIT: two each. MAIL, RCPT, DATA, the mail done.
    gb_per_s(AppProto::Smtp, &talk, 8, rounds, round_ms)
}

/// A message of SMB 2 in its frame: command, flags, message id, and what stands behind the header.
fn message(command: u16, is_response: bool, id: u64, body: &[u8]) -> Vec<u8> {
    let length = (64 + body.len() as u32).to_be_bytes();
    let flags = u32::from(is_response).to_le_bytes();
    let header = [
        &length[..],
        b"\xfeSMB\x40\0\0\0\0\0\0\0",
        &command.to_le_bytes(),
        &[0; 2],
        &flags,
        &[0; 4],
        &id.to_le_bytes(),
        &[0; 32],
    ];
    [&header.concat(), body].concat()
}

/// SMB 2: a file that is opened, read in pieces of 64 KiB, and closed.
pub fn smb2(rounds: u32, round_ms: u128) -> f64 {
    const CREATE: u16 = 5;
    const CLOSE: u16 = 6;
    const READ: u16 = 8;
    let name: Vec<u8> = r"pictures\holiday.raw".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut create = vec![0; 56];
    create[44..46].copy_from_slice(&120u16.to_le_bytes());
    create[46..48].copy_from_slice(&(name.len() as u16).to_le_bytes());
    create.extend(&name);
    let mut talk =
        vec![(Side::Client, message(CREATE, false, 1, &create)), (Side::Server, message(CREATE, true, 1, &[7; 88]))];
    let piece = [&[17, 0, 80, 0][..], &[0; 12], &[0xa5; BODY]].concat();
    for id in 2..2 + READS {
        talk.push((Side::Client, message(READ, false, id, &[7; 49])));
        talk.push((Side::Server, message(READ, true, id, &piece)));
    }
    talk.push((Side::Client, message(CLOSE, false, 2 + READS, &[7; 24])));
    talk.push((Side::Server, message(CLOSE, true, 2 + READS, &[0; 60])));
    gb_per_s(AppProto::Smb, &talk, 2 * (READS as usize + 2), rounds, round_ms)
}
