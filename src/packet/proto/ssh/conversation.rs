//! Banners (RFC 4253, 4.2), then packets in the clear up to each side's KEXINIT (6 and 7.1). What follows is not looked at.

use std::sync::Arc;

use md5::{Digest, Md5};

use super::{Half, Handshake};
use crate::packet::proto::reader::{Reader, hex};
use crate::packet::proto::{Fact, Out, Parser, Side, Stage};

/// Bytes of a line up to the banner. A banner has at most 255 with its end; others get some more.
const LINE_MAX: usize = 1024;
const BANNER_MAX: usize = 255;

/// Bytes of lines that a server may send before its banner.
const PREFACE_MAX: usize = 16 * 1024;

/// Length of a packet, without the four bytes that say it (RFC 4253, 6.1 asks for 35000).
const PACKET_MAX: usize = 35_000;

/// Packets before KEXINIT: there should be none.
const PACKETS_MAX: u32 = 16;

const KEXINIT: u8 = 20;
const COOKIE: usize = 16;
const NAME_LISTS: usize = 10;

/// Where a side is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Banner,
    Packets,
    /// All that it says in the clear is known, or its place was lost.
    Over,
}

#[derive(Debug, Default)]
struct Progress {
    phase: Phase,
    /// The line or the packet that came in part.
    kept: Vec<u8>,
    preface_bytes: usize,
    packets: u32,
}

/// Reads an SSH conversation.
#[derive(Debug, Default)]
pub struct Conversation {
    halves: [Progress; 2],
    handshake: Option<Arc<Handshake>>,
    is_asked: bool,
    is_over: bool,
}

impl Conversation {
    fn half(&mut self, side: Side) -> &mut Progress {
        &mut self.halves[side as usize]
    }

    fn said(&mut self, side: Side) -> &mut Half {
        let handshake = Arc::make_mut(self.handshake.get_or_insert_default());
        match side {
            Side::Client => &mut handshake.client,
            Side::Server => &mut handshake.server,
        }
    }

    /// Takes up to the end of a line; what is left.
    fn take_line<'a>(&mut self, side: Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (now, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
        let half = self.half(side);
        let length = half.kept.len() + now.len();
        if length > LINE_MAX || half.preface_bytes + length > PREFACE_MAX {
            out.odd(side, "ssh.long_banner");
            self.lose(side, out);
            return &[];
        }
        half.kept.extend_from_slice(now);
        if end.is_some() {
            let line = std::mem::take(&mut half.kept);
            self.line(side, &line, out);
        }
        rest
    }

    fn line(&mut self, side: Side, line: &[u8], out: &mut Out) {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let Some(banner) = text.strip_prefix(b"SSH-") else {
            if side == Side::Client {
                out.odd(side, "ssh.line_before_banner");
            }
            self.half(side).preface_bytes += line.len();
            return;
        };
        if line.len() > BANNER_MAX {
            out.odd(side, "ssh.long_banner");
        }
        let dash = banner.iter().position(|byte| *byte == b'-');
        let (protocol, software) = match dash {
            Some(at) => (&banner[..at], &banner[at + 1..]),
            None => {
                out.odd(side, "ssh.malformed_banner");
                (banner, &[][..])
            }
        };
        let said = self.said(side);
        said.protocol = protocol.to_vec();
        said.software = software.to_vec();
        // 1.99 is a server of version 2 that also speaks 1 (RFC 4253, 5.1). What version 1 says next is of another form.
        let is_second = protocol.starts_with(b"2.") || protocol == b"1.99";
        self.half(side).phase = if is_second { Phase::Packets } else { Phase::Over };
        if side == Side::Client {
            self.is_asked = true;
            self.tell(Stage::Asked, out);
        }
        self.finish_if_known(out);
    }

    /// Takes a packet or a piece of it; what is left.
    fn take_packet<'a>(&mut self, side: Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = self.half(side);
        let wanted = match half.kept.first_chunk() {
            Some(length) => 4 + u32::from_be_bytes(*length) as usize,
            None => 4,
        };
        let (now, rest) = bytes.split_at(bytes.len().min(wanted - half.kept.len()));
        half.kept.extend_from_slice(now);
        if half.kept.len() < wanted {
            return rest;
        }
        if wanted == 4 {
            let length = Reader::new(&half.kept).u32().unwrap_or_default() as usize;
            // A byte of padding length and one of type are the least.
            if !(2..=PACKET_MAX).contains(&length) {
                out.odd(side, "ssh.bad_packet_length");
                self.lose(side, out);
            }
            return rest;
        }
        let packet = std::mem::take(&mut half.kept);
        half.packets += 1;
        let is_last = half.packets >= PACKETS_MAX;
        if packet[5] == KEXINIT {
            self.kexinit(side, &packet, out);
        } else if is_last {
            self.lose(side, out);
        }
        rest
    }

    fn kexinit(&mut self, side: Side, packet: &[u8], out: &mut Out) {
        match hassh(side, packet) {
            Some(text) => self.said(side).hassh = Some((hex(&Md5::digest(text.as_bytes())), text)),
            None => out.odd(side, "ssh.malformed_kexinit"),
        }
        self.lose(side, out);
    }

    /// Nothing of `side` is read any more.
    fn lose(&mut self, side: Side, out: &mut Out) {
        *self.half(side) = Progress { phase: Phase::Over, ..Progress::default() };
        self.finish_if_known(out);
    }

    fn finish_if_known(&mut self, out: &mut Out) {
        if !self.is_over && self.halves.iter().all(|half| half.phase == Phase::Over) {
            self.is_over = true;
            self.tell(Stage::Done, out);
            self.handshake = None;
        }
    }

    fn tell(&self, stage: Stage, out: &mut Out) {
        if let Some(handshake) = &self.handshake {
            out.tell(0, stage, Fact::Ssh(handshake.clone()));
        }
    }
}

/// The text that a HASSH is the MD5 of: algorithms of key exchange, encryption, authentication and compression, of the
/// direction that `side` sends in.
fn hassh(side: Side, packet: &[u8]) -> Option<String> {
    let mut reader = Reader::new(packet);
    reader.u32()?;
    let padding = usize::from(reader.u8()?);
    let payload = reader.rest();
    let mut reader = Reader::new(payload.get(..payload.len().checked_sub(padding)?)?);
    reader.take(1 + COOKIE)?;
    let mut lists = [&[][..]; NAME_LISTS];
    for list in &mut lists {
        let length = reader.u32()?;
        *list = reader.take(length as usize)?;
    }
    // Key exchange, host keys, then encryption, MAC, compression and languages, each to the server and to the client.
    let numbers = match side {
        Side::Client => [0, 2, 4, 6],
        Side::Server => [0, 3, 5, 7],
    };
    Some(numbers.map(|number| String::from_utf8_lossy(lists[number])).join(";"))
}

impl Parser for Conversation {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match self.half(side).phase {
                Phase::Banner => self.take_line(side, rest, out),
                Phase::Packets => self.take_packet(side, rest, out),
                Phase::Over => return,
            };
        }
    }

    fn skip(&mut self, side: Side, _missing: u64, out: &mut Out) {
        if self.half(side).phase != Phase::Over {
            self.lose(side, out);
        }
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        if self.half(side).phase != Phase::Over {
            self.lose(side, out);
        }
    }

    fn memory(&self) -> usize {
        let kept = self.halves.iter().map(|half| half.kept.capacity()).sum::<usize>();
        let said = self.handshake.as_ref().map_or(0, |handshake| {
            [&handshake.client, &handshake.server]
                .iter()
                .map(|half| half.software.len() + half.hassh.as_ref().map_or(0, |(hash, text)| hash.len() + text.len()))
                .sum()
        });
        size_of::<Self>() + kept + said
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::proto::testing::{Cut, Piece, assert_cuts_agree, assert_mutations_are_harmless, feed, recorded};

    fn handshake(out: &Out) -> &Handshake {
        match &out.told.last().unwrap().fact {
            Fact::Ssh(handshake) => handshake,
            other => panic!("{other:?}"),
        }
    }

    fn read(pieces: &[Piece]) -> Out {
        feed(&mut Conversation::default(), pieces, Cut::Whole)
    }

    /// OpenSSH 9.2 on both sides; `ssh -vv` printed the same lists, Python's hashlib gave their MD5.
    #[test]
    fn openssh_is_read() {
        let out = read(&recorded("ssh.bin"));
        let stages: Vec<Stage> = out.told.iter().map(|told| told.stage).collect();
        assert_eq!(stages, [Stage::Asked, Stage::Done]);
        let handshake = handshake(&out);
        assert_eq!(handshake.client.protocol, b"2.0");
        assert_eq!(handshake.client.software, b"OpenSSH_9.2p1 Debian-2+deb12u10");
        assert_eq!(handshake.server.software, b"OpenSSH_9.2p1 Debian-2+deb12u10");
        let (hash, client) = handshake.client.hassh.as_ref().unwrap();
        assert_eq!(hash, "472b5de333ad665af5cbf10ff892c4df");
        assert!(client.starts_with("sntrup761x25519-sha512,sntrup761x25519-sha512@openssh.com,curve25519-sha256,"));
        assert!(client.contains(",ext-info-c,kex-strict-c-v00@openssh.com;chacha20-poly1305@openssh.com,aes128-ctr,"));
        assert!(client.ends_with(",hmac-sha2-512,hmac-sha1;none,zlib@openssh.com,zlib"));
        let (hash, server) = handshake.server.hassh.as_ref().unwrap();
        assert_eq!(hash, "425d29fe50d8e4f5e37efb6e24bcf660");
        assert!(server.ends_with(",hmac-sha2-512,hmac-sha1;none,zlib@openssh.com"));
        assert!(out.oddities.is_empty(), "{:?}", out.oddities);
    }

    #[test]
    fn every_cut_tells_the_same() {
        assert_cuts_agree(Conversation::default, &recorded("ssh.bin"));
    }

    #[test]
    fn mutations_are_harmless() {
        assert_mutations_are_harmless(Conversation::default, &recorded("ssh.bin"), 256 * 1024);
    }

    /// Each side's fingerprint takes the algorithms of the direction that it sends in.
    #[test]
    fn hassh_takes_the_lists_of_its_direction() {
        let lists =
            ["kex1,kex2", "ssh-rsa", "aes128-ctr", "to-client", "hmac-sha1,hmac-md5", "mac2", "none", "zlib", "", ""];
        let out = read(&[
            (Side::Client, b"SSH-2.0-x\n".to_vec()),
            (Side::Server, b"welcome\r\nSSH-1.99-y z\r\n".to_vec()),
            (Side::Client, kexinit(&lists)),
            (Side::Server, kexinit(&lists)),
        ]);
        let handshake = handshake(&out);
        let (hash, text) = handshake.client.hassh.clone().unwrap();
        assert_eq!(text, "kex1,kex2;aes128-ctr;hmac-sha1,hmac-md5;none");
        assert_eq!(hash, "44b1cd770038503cb783af7958788616");
        assert_eq!(handshake.server.hassh.clone().unwrap().1, "kex1,kex2;to-client;mac2;zlib");
        assert_eq!((&handshake.server.protocol[..], &handshake.server.software[..]), (&b"1.99"[..], &b"y z"[..]));
        assert!(out.oddities.is_empty());
    }

    fn kexinit(lists: &[&str; NAME_LISTS]) -> Vec<u8> {
        let mut payload = vec![4, KEXINIT];
        payload.extend([7; COOKIE]);
        for list in lists {
            payload.extend((list.len() as u32).to_be_bytes());
            payload.extend(list.bytes());
        }
        payload.extend([0; 5 + 4]);
        [&(payload.len() as u32).to_be_bytes()[..], &payload].concat()
    }

    #[test]
    fn hostile_banners_and_packets_are_odd() {
        let check = |side: Side, bytes: &[u8], odd: &str| {
            let out = read(&[(side, bytes.to_vec())]);
            assert_eq!(out.oddities.iter().map(|(_, odd)| odd.0).collect::<Vec<_>>(), [odd]);
        };
        check(Side::Client, &[b'a'; LINE_MAX + 1], "ssh.long_banner");
        check(Side::Server, &b"line\n".repeat(PREFACE_MAX / 5 + 1), "ssh.long_banner");
        check(Side::Client, b"hello\nSSH-2.0-x\n", "ssh.line_before_banner");
        check(Side::Client, b"SSH-2.0\n", "ssh.malformed_banner");
        check(Side::Client, b"SSH-2.0-x\n\xff\xff\xff\xff", "ssh.bad_packet_length");
        check(Side::Client, b"SSH-2.0-x\n\0\0\0\x06\x04\x14\0\0\0\0", "ssh.malformed_kexinit");
    }

    /// Version 1 goes on in packets of another form; both banners are all that is known.
    #[test]
    fn version_1_is_told_by_its_banners() {
        let out =
            read(&[(Side::Server, b"SSH-1.5-old\n".to_vec()), (Side::Client, b"SSH-1.5-older\n\0\0\x01".to_vec())]);
        assert_eq!(out.told.iter().map(|told| told.stage).collect::<Vec<_>>(), [Stage::Asked, Stage::Done]);
        assert_eq!(handshake(&out).server.software, b"old");
    }
}
