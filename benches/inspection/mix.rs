//! A capture as a busy link gives it: conversations of many kinds, hundreds at the same time, in packets of 400 bytes
//! on the average.

use std::io::{self, BufWriter, Write};

use anyhow::{Result, ensure};

use crate::names;
use crate::support::captures::{Order, Precision, pcap};
use crate::support::conversations::{Client, Conversation, Packets, Server, Speaker};
use crate::support::random::Random;

/// Packets, about: the last conversations are not cut off.
const PACKETS: usize = 1_000_000;
/// Conversations that go on at the same time.
const AT_ONCE: usize = 512;
/// Bytes of a segment, and segments for each that only acknowledges.
const SEGMENT: usize = 960;
const ACKNOWLEDGED: usize = 2;
/// Time between two packets: 400 Mbit/s.
const APART_NS: u64 = 8_000;
/// Conversations of a kind that differ.
const VARIANTS: u64 = 8;
const LINK_ETHERNET: u32 = 1;

/// What conversations are about: protocol as the summary of a replay has it, transport, weight.
const KINDS: [(Kind, &str, &str, u32); 7] = [
    (Kind::Http, "tcp", "http", 10),
    (Kind::Tls, "tcp", "tls", 24),
    (Kind::Dns, "udp", "dns", 40),
    (Kind::Smtp, "tcp", "smtp", 4),
    (Kind::Ssh, "tcp", "ssh", 3),
    (Kind::OtherTcp, "tcp", "-", 6),
    (Kind::OtherUdp, "udp", "-", 6),
];

#[derive(Clone, Copy)]
enum Kind {
    Http,
    Tls,
    Dns,
    Smtp,
    Ssh,
    OtherTcp,
    OtherUdp,
}

/// What was written.
pub struct Mix {
    pub packets: usize,
    pub bytes: usize,
    /// By place in [`KINDS`].
    conversations: [usize; KINDS.len()],
}

impl Mix {
    /// Whether a summary of replay tells of these flows and of nothing odd.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self, said: &str) -> Result<()> {
        for ((_, transport, protocol, _), count) in KINDS.iter().zip(self.conversations) {
            let line = format!("  {transport:<6} {protocol:<9} {count:>10} flows");
            ensure!(said.contains(&line), "not {line} in:\n{said}");
        }
        for line in ["gaps       0 bytes", "anomalies  0", " 0 unreadable", " 0 seen from their middle"] {
            ensure!(said.contains(line), "not {line} in:\n{said}");
        }
        Ok(())
    }
}

/// Writes the capture, the same in each run.
///
/// # Errors
/// What the file refuses.
pub fn write(out: &mut impl Write) -> io::Result<Mix> {
    let mut random = Random::new(400);
    let mut out = BufWriter::with_capacity(1 << 20, out);
    out.write_all(&pcap(Order::Little, Precision::Nano, LINK_ETHERNET, &[]))?;
    let mut mix = Mix { packets: 0, bytes: 0, conversations: [0; KINDS.len()] };
    let begin = |mix: &mut Mix, random: &mut Random| {
        let weights: Vec<_> = KINDS.iter().enumerate().map(|(place, kind)| (kind.3, place)).collect();
        let place = random.weighted(&weights);
        mix.conversations[place] += 1;
        let number = mix.conversations.iter().sum::<usize>();
        conversation(KINDS[place].0, number, random).into_iter()
    };
    let mut live: Vec<_> = (0..AT_ONCE).map(|_| begin(&mut mix, &mut random)).collect();
    while !live.is_empty() {
        let place = random.below(live.len());
        let Some((_, frame)) = live[place].next() else {
            if mix.packets < PACKETS {
                live[place] = begin(&mut mix, &mut random);
            } else {
                live.swap_remove(place);
            }
            continue;
        };
        let time_ns = 1_800_000_000_000_000_000 + mix.packets as u64 * APART_NS;
        let length = frame.len() as u64;
        for word in [time_ns / 1_000_000_000, time_ns % 1_000_000_000, length, length] {
            out.write_all(&(word as u32).to_le_bytes())?;
        }
        out.write_all(&frame)?;
        mix.packets += 1;
        mix.bytes += frame.len();
    }
    out.flush()?;
    Ok(mix)
}

/// Bytes that a side says, each two segments acknowledged.
fn say(talk: Conversation, from: Speaker, bytes: &[u8]) -> Conversation {
    bytes.chunks(ACKNOWLEDGED * SEGMENT).fold(talk, |talk, pieces| talk.say_in(from, pieces, SEGMENT))
}

/// Bytes of no protocol.
fn noise(length: usize, random: &mut Random) -> Vec<u8> {
    // The first one stands in no protocol's beginning.
    let bytes = (1..length).map(|_| random.bits() as u8);
    std::iter::once(0xf1).chain(bytes).collect()
}

fn conversation(kind: Kind, number: usize, random: &mut Random) -> Packets {
    let port = match kind {
        Kind::Http => 80,
        Kind::Tls => 443,
        Kind::Dns => 53,
        Kind::Smtp => 25,
        Kind::Ssh => 22,
        Kind::OtherTcp | Kind::OtherUdp => 7777,
    };
    // Each client holds one conversation, so that no two are one flow.
    let client =
        format!("10.{}.{}.{}:{}", number >> 16 & 255, number >> 8 & 255, number & 255, random.between(32_768, 60_999));
    let server = format!("192.0.2.{}:{port}", random.between(1, 200));
    let talk = Conversation::new(&client, &server, 0);
    let variant = random.bits() % VARIANTS;
    match kind {
        Kind::Http => http(talk.handshake(), variant).close(),
        Kind::Tls => tls(talk.handshake(), variant, random).close(),
        Kind::Dns => {
            let id = random.bits() as u16;
            talk.datagram(Client, &names::message(id, false)).datagram(Server, &names::message(id, true)).packets
        }
        Kind::Smtp => smtp(talk.handshake(), variant).close(),
        Kind::Ssh => ssh(talk.handshake(), variant, random).close(),
        Kind::OtherTcp => (0..4 + variant as usize)
            .fold(talk.handshake(), |talk, _| {
                let (asked, answered) = (noise(200, random), noise(2_000, random));
                say(say(talk, Client, &asked), Server, &answered)
            })
            .close(),
        Kind::OtherUdp => {
            let packets = (0..40 + 8 * variant).fold(talk, |talk, _| talk.datagram(Server, &noise(400, random)));
            packets.packets
        }
    }
}

fn http(talk: Conversation, variant: u64) -> Conversation {
    (0..3).fold(talk, |talk, asked| {
        let request = format!(
            "GET /static/{variant}/{asked}/app.js?v=3 HTTP/1.1\r\nHost: www{variant}.example.com\r\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\nAccept: */*\r\n\
             Accept-Encoding: identity\r\nReferer: http://www.example.com/\r\nCookie: id=0123456789abcdef\r\n\r\n"
        );
        let length = 2_000 + 3_000 * variant as usize;
        let response = format!(
            "HTTP/1.1 200 OK\r\nDate: Mon, 30 Nov 2026 10:00:00 GMT\r\nServer: nginx\r\n\
             Content-Type: text/javascript\r\nContent-Length: {length}\r\nETag: \"6651-10000\"\r\n\
             Cache-Control: max-age=3600\r\nConnection: keep-alive\r\n\r\n{}",
            "let x = 1;\n".repeat(length / 11 + 1).split_at(length).0
        );
        say(say(talk, Client, request.as_bytes()), Server, response.as_bytes())
    })
}

/// A recorded handshake, then records of a length that varies.
fn tls(talk: Conversation, variant: u64, random: &mut Random) -> Conversation {
    let recorded = names::RECORDED[variant as usize % names::RECORDED.len()];
    let talk = names::handshake(recorded).iter().fold(talk, |talk, (side, bytes)| {
        let from = if *side == ebpfsentinel::packet::proto::Side::Client { Client } else { Server };
        say(talk, from, bytes)
    });
    (0..2 + variant).fold(talk, |talk, _| {
        let record = |length: u16, random: &mut Random| {
            [&[23, 3, 3][..], &length.to_be_bytes(), &noise(length.into(), random)].concat()
        };
        let (asked, answered) = (record(300, random), record(3_000, random));
        say(say(talk, Client, &asked), Server, &answered)
    })
}

fn smtp(talk: Conversation, variant: u64) -> Conversation {
    let mail = format!(
        "From: bob@example.org\r\nTo: eve@example.net\r\nSubject: picture {variant}\r\n\r\n{}.\r\n",
        format!("{}\r\n", "x".repeat(76)).repeat(50 + 20 * variant as usize)
    );
    let lines: [(Speaker, &str); 11] = [
        (Server, "220 mail.example.org ESMTP\r\n"),
        (Client, "EHLO client.example.org\r\n"),
        (Server, "250-mail.example.org\r\n250 PIPELINING\r\n"),
        (Client, "MAIL FROM:<bob@example.org>\r\nRCPT TO:<eve@example.net>\r\nDATA\r\n"),
        (Server, "250 ok\r\n250 ok\r\n"),
        (Server, "354 go\r\n"),
        (Client, &mail),
        (Server, "250 queued\r\n"),
        (Client, "QUIT\r\n"),
        (Server, "221 bye\r\n"),
        (Server, ""),
    ];
    lines.into_iter().fold(talk, |talk, (from, line)| say(talk, from, line.as_bytes()))
}

/// Banners, key exchange, then what nobody can read.
fn ssh(talk: Conversation, variant: u64, random: &mut Random) -> Conversation {
    const NEW_KEYS: u8 = 21;
    let talk = say(talk, Client, b"SSH-2.0-OpenSSH_9.9\r\n");
    let talk = say(talk, Server, b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n");
    let talk = [Client, Server].into_iter().fold(talk, |talk, from| say(talk, from, &key_exchange(random)));
    let talk = [Client, Server].into_iter().fold(talk, |talk, from| say(talk, from, &ssh_packet(&[NEW_KEYS])));
    (0..20 + 4 * variant).fold(talk, |talk, _| {
        let (typed, shown) = (noise(52, random), noise(900, random));
        say(say(talk, Client, &typed), Server, &shown)
    })
}

/// A packet of SSH (RFC 4253, 6).
fn ssh_packet(payload: &[u8]) -> Vec<u8> {
    let padding = 4 + (8 - (5 + payload.len() + 4) % 8) % 8;
    let length = ((1 + payload.len() + padding) as u32).to_be_bytes();
    [&length[..], &[padding as u8], payload, &vec![0; padding]].concat()
}

/// SSH_MSG_KEXINIT (RFC 4253, 7.1) in its packet.
fn key_exchange(random: &mut Random) -> Vec<u8> {
    const LISTS: [&str; 10] = [
        "mlkem768x25519-sha256,curve25519-sha256,ecdh-sha2-nistp256,diffie-hellman-group14-sha256",
        "ssh-ed25519,ecdsa-sha2-nistp256,rsa-sha2-512,rsa-sha2-256",
        "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com",
        "chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com",
        "umac-64-etm@openssh.com,hmac-sha2-256-etm@openssh.com,hmac-sha2-256",
        "umac-64-etm@openssh.com,hmac-sha2-256-etm@openssh.com,hmac-sha2-256",
        "none,zlib@openssh.com",
        "none,zlib@openssh.com",
        "",
        "",
    ];
    let mut payload = vec![20];
    payload.extend(noise(16, random));
    for list in LISTS {
        payload.extend((list.len() as u32).to_be_bytes());
        payload.extend(list.as_bytes());
    }
    payload.extend([0; 5]);
    ssh_packet(&payload)
}
