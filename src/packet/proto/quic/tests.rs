//! The examples of RFC 9001 and RFC 9369, and connections that are made by the same keys.

use proptest::prelude::*;

use super::keys::{Family, Keys};
use super::packet::{self, Packet};
use super::*;
use crate::packet::proto::testing::{Cut, Piece, assert_mutations_are_harmless, end, feed};
use crate::packet::proto::tls::tests::{Hello, server_name};
use crate::packet::proto::{Fact, Out, Parser, Side, Stage};

const V1: u32 = 1;
const V2: u32 = 0x6b33_43cf;
const DRAFT_29: u32 = 0xff00_001d;

/// The connection id of both RFCs' examples.
const CONNECTION_ID: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];

/// The frame of RFC 9001, A.2, which RFC 9369 takes too: a hello for `example.com`.
const CLIENT_FRAME: &str = "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868\
    04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578\
    616d706c652e636f6dff01000100000a00080006001d00170018001000070005\
    04616c706e000500050100000000003300260024001d00209370b2c9caa47fba\
    baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400\
    0d0010000e0403050306030203080408050806002d00020101001c0002400100\
    3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000\
    75300901100f088394c8f03e51570806048000ffff";

/// The server's answer of RFC 9001, A.3, as it goes over the wire.
const SERVER_PACKET: &str = "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a\
    5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839b3\
    dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84\
    022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc4\
    2158407dd074ee";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn keys(version: u32, connection_id: &[u8]) -> Keys {
    Keys::derive(Family::of(version).unwrap(), connection_id).unwrap()
}

/// An Initial packet of 1200 bytes as its sender protects it.
struct Initial<'a> {
    version: u32,
    /// What the keys follow from.
    key_id: &'a [u8],
    /// The receiver's connection id.
    destination: &'a [u8],
    token: &'a [u8],
    number: u32,
}

impl Default for Initial<'_> {
    fn default() -> Self {
        Initial { version: V1, key_id: &CONNECTION_ID, destination: &CONNECTION_ID, token: &[], number: 0 }
    }
}

impl Initial<'_> {
    fn seal(&self, side: Side, frames: &[u8]) -> Vec<u8> {
        let kind = if self.version == V2 { 0xd3 } else { 0xc3 };
        let mut header = [&[kind][..], &self.version.to_be_bytes(), &[self.destination.len() as u8]].concat();
        header.extend(self.destination);
        header.extend([0, self.token.len() as u8]);
        header.extend(self.token);
        let room = 1200 - header.len() - 2 - 4 - 16;
        let frames = [frames, &vec![0; room.saturating_sub(frames.len())]].concat();
        header.extend((0x4000 | (4 + frames.len() + 16) as u16).to_be_bytes());
        header.extend(self.number.to_be_bytes());
        keys(self.version, self.key_id).seal(side, &header, self.number.into(), &frames)
    }
}

fn crypto(offset: usize, data: &[u8]) -> Vec<u8> {
    let number = |number: usize| (0x8000_0000 | number as u32).to_be_bytes();
    [&[6][..], &number(offset), &number(data.len()), data].concat()
}

fn hello(name: &str) -> Vec<u8> {
    let versions = (43, vec![2, 3, 4]);
    Hello { version: 0x0303, ciphers: vec![0x1301], extensions: vec![server_name(name.as_bytes()), versions] }.message()
}

fn server_hello() -> Vec<u8> {
    let body = [&[3, 3][..], &[9; 32], &[0, 0x13, 0x01, 0, 0, 6, 0, 43, 0, 2, 3, 4]].concat();
    [&(2 << 24 | body.len() as u32).to_be_bytes()[..], &body].concat()
}

fn told(out: &Out) -> Vec<(u32, Stage, String, Option<u16>)> {
    let read = |fact: &Fact| match fact {
        Fact::Quic(initial) => {
            let name = initial.handshake.sni.clone().unwrap_or_default();
            (String::from_utf8(name).unwrap(), initial.handshake.cipher)
        }
        other => panic!("{other:?}"),
    };
    out.told.iter().map(|told| (told.tx, told.stage, read(&told.fact).0, read(&told.fact).1)).collect()
}

fn read(pieces: &[Piece]) -> Out {
    feed(&mut Conversation::default(), pieces, Cut::Whole)
}

fn odd(out: &Out) -> Vec<&'static str> {
    out.oddities.iter().map(|(_, odd)| odd.0).collect()
}

#[test]
fn the_examples_of_the_rfcs_are_opened() {
    let check = |version: u32, start: &str, tag: &str| {
        let packet = Initial { version, number: 2, ..Initial::default() }.seal(Side::Client, &bytes(CLIENT_FRAME));
        assert_eq!(packet.len(), 1200);
        assert_eq!(packet[..32], bytes(start));
        assert_eq!(packet[1184..], bytes(tag));
        let out = read(&[(Side::Client, packet)]);
        assert_eq!(told(&out), [(0, Stage::Asked, "example.com".to_string(), None)]);
        assert!(odd(&out).is_empty());
        match &out.told[0].fact {
            Fact::Quic(initial) => {
                assert_eq!(initial.version, version);
                assert_eq!(initial.handshake.client_alpn, [b"alpn".to_vec()]);
                assert!(initial.handshake.ja4.as_ref().unwrap().starts_with("q13d0211an_"));
            }
            other => panic!("{other:?}"),
        }
    };
    let start = "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11";
    check(V1, start, "e221af44860018ab0856972e194cd934");
    let start = "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485";
    check(V2, start, "a18b2faa745b6fe189cf772a9f84cbfc");
}

/// As aioquic and others have it, the drafts differ in their salt.
#[test]
fn a_draft_is_opened() {
    let out = read(&[(
        Side::Client,
        Initial { version: DRAFT_29, ..Initial::default() }.seal(Side::Client, &crypto(0, &hello("a.example"))),
    )]);
    assert_eq!(told(&out), [(0, Stage::Asked, "a.example".to_string(), None)]);
}

#[test]
fn googles_versions_with_tls_are_opened() {
    for version in [0x5430_3530, 0x5430_3531] {
        let initial = |number| Initial { version, number, ..Initial::default() };
        let mut frame = crypto(0, &hello("a.example"));
        // Their frame of the handshake is another.
        frame[0] = 8;
        // What acknowledges stands in Google's form, and behind the hello.
        let acknowledgement = [0x40, 1, 0, 0, 1, 0];
        let pieces = [
            (Side::Client, initial(0).seal(Side::Client, &[&frame[..], &acknowledgement].concat())),
            (Side::Server, initial(0).seal(Side::Server, &acknowledgement)),
        ];
        let out = read(&pieces);
        assert_eq!(told(&out), [(0, Stage::Asked, "a.example".to_string(), None)]);
        assert!(odd(&out).is_empty());
    }
}

#[test]
fn the_servers_answer_ends_it() {
    let client = Initial { number: 2, ..Initial::default() }.seal(Side::Client, &bytes(CLIENT_FRAME));
    let pieces = [(Side::Client, client.clone()), (Side::Server, bytes(SERVER_PACKET)), (Side::Client, client)];
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, &pieces, Cut::Whole);
    end(&mut parser, &mut out);
    let name = "example.com".to_string();
    assert_eq!(told(&out), [(0, Stage::Asked, name.clone(), None), (0, Stage::Done, name, Some(0x1301))]);
    assert!(odd(&out).is_empty());
}

/// A later version that the server chose by itself (RFC 9368).
#[test]
fn a_server_may_answer_in_another_version() {
    let client = Initial::default().seal(Side::Client, &crypto(0, &hello("a.example")));
    let server =
        Initial { version: V2, destination: &[], ..Initial::default() }.seal(Side::Server, &crypto(0, &server_hello()));
    let again = Initial { version: V2, number: 1, ..Initial::default() }.seal(Side::Client, &[2, 0, 0, 0, 0]);
    let out = read(&[(Side::Client, client), (Side::Server, server), (Side::Client, again)]);
    assert_eq!(told(&out)[1], (0, Stage::Done, "a.example".to_string(), Some(0x1301)));
    assert!(odd(&out).is_empty());
}

#[test]
fn packets_of_one_datagram_are_told_apart() {
    let hello = hello("a.example");
    let first = Initial::default().seal(Side::Client, &crypto(0, &hello[..50]));
    let early = [&[0xd0][..], &V1.to_be_bytes(), &[8], &CONNECTION_ID, &[0, 5, 1, 2, 3, 4, 5]].concat();
    let second = Initial { number: 1, ..Initial::default() }.seal(Side::Client, &crypto(50, &hello[50..]));
    // What a sender adds behind the last packet is no packet.
    let datagram = [&first[..], &early, &second, &[0x40; 30]].concat();
    let out = read(&[(Side::Client, datagram)]);
    assert_eq!(told(&out), [(0, Stage::Asked, "a.example".to_string(), None)]);
    assert!(odd(&out).is_empty());
}

/// After a retry the keys follow from the id that the server chose; the same hello is not told twice, another one is.
#[test]
fn a_retry_makes_new_keys() {
    let new_id = [0xf0, 0x67, 0xa5, 0x50];
    let retry = [&[0xf0][..], &V1.to_be_bytes(), &[0, 4], &new_id, b"token", &[0; 16]].concat();
    let check = |second: &str, expected: &[(u32, Stage, &str)], oddities: &[&str]| {
        let after = Initial { key_id: &new_id, destination: &new_id, token: b"token", number: 1, ..Initial::default() };
        let server = Initial { key_id: &new_id, destination: &[], ..Initial::default() };
        let out = read(&[
            (Side::Client, Initial::default().seal(Side::Client, &crypto(0, &hello("a.example")))),
            (Side::Server, retry.clone()),
            (Side::Client, after.seal(Side::Client, &crypto(0, &hello(second)))),
            (Side::Server, server.seal(Side::Server, &crypto(0, &server_hello()))),
        ]);
        let told = told(&out);
        let told: Vec<_> = told.iter().map(|(tx, stage, name, _)| (*tx, *stage, name.as_str())).collect();
        assert_eq!(told, expected);
        assert_eq!(odd(&out), oddities);
    };
    let (asked, done) = (Stage::Asked, Stage::Done);
    check("a.example", &[(0, asked, "a.example"), (0, done, "a.example")], &[]);
    let changed = [(0, asked, "a.example"), (0, done, "a.example"), (1, asked, "b.example"), (1, done, "b.example")];
    check("b.example", &changed, &["tls.changed_client_hello"]);
}

/// Another connection between the same ports is inspected as the first.
#[test]
fn a_second_connection_is_another_transaction() {
    let second = Initial { key_id: b"otherkey", destination: b"otherkey", ..Initial::default() };
    let out = read(&[
        (Side::Client, Initial::default().seal(Side::Client, &crypto(0, &hello("a.example")))),
        (Side::Client, second.seal(Side::Client, &crypto(0, &hello("b.example")))),
    ]);
    let told = told(&out);
    let told: Vec<_> = told.iter().map(|(tx, stage, name, _)| (*tx, *stage, name.as_str())).collect();
    assert_eq!(told, [(0, Stage::Asked, "a.example"), (0, Stage::Done, "a.example"), (1, Stage::Asked, "b.example")]);
}

#[test]
fn what_cannot_be_read_is_told_by_its_version() {
    let packet = |version: u32| [&[0xc0][..], &version.to_be_bytes(), &[3, 1, 2, 3, 0, 0, 1, 0]].concat();
    let check = |pieces: &[Piece], expected: Option<u32>| {
        let mut parser = Conversation::default();
        let mut out = feed(&mut parser, pieces, Cut::Whole);
        end(&mut parser, &mut out);
        let versions = out.told.iter().map(|told| match &told.fact {
            Fact::Quic(initial) => initial.version,
            other => panic!("{other:?}"),
        });
        assert_eq!(versions.collect::<Vec<_>>(), Vec::from_iter(expected));
        assert!(odd(&out).is_empty());
    };
    check(&[(Side::Client, packet(0x5130_3433))], Some(0x5130_3433));
    // A version for exercise, its refusal, and then a real one.
    let real = Initial::default().seal(Side::Client, &crypto(0, &hello("a.example")));
    let negotiation = [&[0x80, 0, 0, 0, 0, 0, 3, 1, 2, 3][..], &V1.to_be_bytes()].concat();
    check(&[(Side::Client, packet(0x1a2a_3a4a)), (Side::Server, negotiation.clone())], None);
    let pieces = [(Side::Client, packet(0x1a2a_3a4a)), (Side::Server, negotiation), (Side::Client, real)];
    let out = read(&pieces);
    assert_eq!(told(&out), [(0, Stage::Asked, "a.example".to_string(), None)]);
    // One direction alone: its keys are not known, nothing is odd.
    check(&[(Side::Server, bytes(SERVER_PACKET))], None);
}

#[test]
fn hostile_packets_are_odd() {
    let good = Initial::default();
    let check = |packets: &[Vec<u8>], expected: &[&str]| {
        let pieces: Vec<Piece> = packets.iter().map(|packet| (Side::Client, packet.clone())).collect();
        assert_eq!(odd(&read(&pieces)), expected);
    };
    let mut forged = good.seal(Side::Client, &crypto(0, &hello("a.example")));
    forged[600] ^= 1;
    check(&[forged], &["quic.unauthentic_packet"]);
    check(&[good.seal(Side::Client, &[0x08, 0, 1])], &["quic.bad_frame"]);
    check(&[good.seal(Side::Client, &crypto(70_000, b"x"))], &["quic.too_much_crypto"]);
    check(
        &[good.seal(Side::Client, &crypto(0, &[1, 0, 9, 9])), good.seal(Side::Client, &crypto(2, &[8]))],
        &["quic.crypto_conflict"],
    );
    check(&[good.seal(Side::Client, &crypto(0, &[11, 0, 0, 0]))], &["quic.unexpected_message"]);
    check(&[vec![0xc0, 0, 0, 0, 1, 21]], &["quic.malformed_packet"]);
    check(&[vec![0xc0, 0, 0, 0, 1, 0, 0, 0, 0x40, 0x90, 1]], &["quic.malformed_packet"]);
    // An Initial packet too short for the sample of its protection.
    check(&[vec![0xc0, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1]], &["quic.unauthentic_packet"]);
}

/// A hello that never becomes complete is told at the end, as far as it came.
#[test]
fn a_hello_that_breaks_off_is_read_as_far_as_it_goes() {
    let hello = hello("a.example");
    let mut parser = Conversation::default();
    let part = Initial::default().seal(Side::Client, &crypto(0, &hello[..hello.len() - 2]));
    let mut out = feed(&mut parser, &[(Side::Client, part)], Cut::Whole);
    assert!(out.told.is_empty());
    end(&mut parser, &mut out);
    assert_eq!(told(&out), [(0, Stage::Done, "a.example".to_string(), None)]);
}

#[test]
fn mutations_are_harmless() {
    let hello = hello("a.example");
    let number = |number| Initial { number, ..Initial::default() };
    let pieces = [
        (Side::Client, number(0).seal(Side::Client, &crypto(40, &hello[40..]))),
        (Side::Client, number(1).seal(Side::Client, &crypto(0, &hello[..60]))),
        (
            Side::Server,
            Initial { destination: &[], ..Initial::default() }.seal(Side::Server, &crypto(0, &server_hello())),
        ),
    ];
    // Datagrams are not cut.
    let make = || Datagrams(Conversation::default(), Vec::new());
    assert_mutations_are_harmless(make, &pieces, 256 * 1024);
}

/// Puts the pieces of a datagram of 1200 bytes together again.
struct Datagrams(Conversation, Vec<u8>);

impl Parser for Datagrams {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        self.1.extend_from_slice(bytes);
        if self.1.len() >= 1200 {
            let datagram = std::mem::take(&mut self.1);
            self.0.take(side, &datagram, out);
        }
    }

    fn skip(&mut self, side: Side, missing: u64, out: &mut Out) {
        self.0.skip(side, missing, out);
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        self.0.end(side, out);
    }

    fn memory(&self) -> usize {
        self.0.memory()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// However a client cuts and shuffles its hello, over however many packets.
    #[test]
    fn any_pieces_in_any_order_are_read(
        mut cuts in prop::collection::vec(1usize..70, 0..12),
        order in any::<[usize; 13]>(),
        per_packet in 1usize..5,
        repeats: bool,
    ) {
        let hello = hello("www.example.org");
        cuts.extend([0, hello.len()]);
        cuts.sort_unstable();
        let mut pieces: Vec<Vec<u8>> = cuts.windows(2).map(|pair| crypto(pair[0], &hello[pair[0]..pair[1]])).collect();
        if repeats {
            pieces.push(crypto(3, &hello[3..33]));
        }
        for (at, other) in order.iter().enumerate().take(pieces.len()) {
            let other = other % pieces.len();
            pieces.swap(at, other);
        }
        let packets: Vec<Piece> = pieces
            .chunks(per_packet)
            .enumerate()
            .map(|(number, frames)| {
                let frames = [&[1, 0, 0][..], &frames.concat()].concat();
                let packet = Initial { number: number as u32, ..Initial::default() };
                (Side::Client, packet.seal(Side::Client, &frames))
            })
            .collect();
        let out = read(&packets);
        prop_assert_eq!(told(&out), [(0, Stage::Asked, "www.example.org".to_string(), None)]);
        prop_assert!(odd(&out).is_empty());
    }

    #[test]
    fn random_bytes_are_harmless(
        bytes in prop::collection::vec(any::<u8>(), 1..300),
        frames in prop::collection::vec(0u8..32, 0..200),
    ) {
        read(&[(Side::Client, [&[0xc0, 0, 0, 0, 1][..], &bytes].concat()), (Side::Server, bytes.clone())]);
        read(&[(Side::Client, Initial::default().seal(Side::Client, &frames))]);
        let mut rest = &bytes[..];
        while let Some((packet, behind)) = packet::next(rest) {
            prop_assert!(behind.len() < rest.len());
            if let Packet::Initial { bytes, number_at, .. } = packet {
                prop_assert!(number_at <= bytes.len());
            }
            rest = behind;
        }
    }
}
