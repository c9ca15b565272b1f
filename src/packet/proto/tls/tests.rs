//! Handshakes that OpenSSL 3.0 made (tests/data/handshakes), and such as nobody honest makes.

use super::hello::NAME_MAX;
use super::*;
use crate::packet::proto::testing::{
    Cut, Piece, assert_cuts_agree, assert_mutations_are_harmless, end, feed, recorded,
};
use crate::packet::proto::{Fact, Out, Parser, Stage};
use proptest::prelude::*;

const KEPT: usize = 256 * 1024;

fn handshakes(out: &Out) -> Vec<(u32, Stage, Handshake)> {
    let read = |fact: &Fact| match fact {
        Fact::Tls(handshake) => Handshake::clone(handshake),
        other => panic!("{other:?}"),
    };
    out.told.iter().map(|told| (told.tx, told.stage, read(&told.fact))).collect()
}

fn read(pieces: &[Piece]) -> Out {
    feed(&mut Conversation::default(), pieces, Cut::Whole)
}

/// Asked and done, nothing odd; what is known at the end.
fn done(pieces: &[Piece]) -> Handshake {
    let out = read(pieces);
    assert!(out.oddities.is_empty(), "{:?}", out.oddities);
    let told = handshakes(&out);
    let stages: Vec<_> = told.iter().map(|(tx, stage, _)| (*tx, *stage)).collect();
    assert_eq!(stages, [(0, Stage::Asked), (0, Stage::Done)]);
    assert_eq!(told[0].2.sni, told[1].2.sni);
    told[1].2.clone()
}

#[test]
fn tls_1_3_is_read() {
    let handshake = done(&recorded("tls13.bin"));
    assert_eq!(handshake.sni.as_deref(), Some(&b"www.example.org"[..]));
    assert_eq!(handshake.client_alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert_eq!(handshake.client_version, 0x0303);
    assert_eq!(handshake.client_versions, [0x0304, 0x0303, 0x0302, 0x0301]);
    assert_eq!(handshake.version, Some(0x0304));
    assert_eq!(handshake.cipher, Some(0x1302));
    assert_eq!(handshake.certificate, None);
    assert!(!handshake.is_resumed);
    assert_eq!(handshake.ja3s.unwrap().1, "771,4866,43-51");
    // Reckoned from the same bytes by a script of twelve lines.
    assert_eq!(handshake.ja4.as_deref(), Some("t13d3111h2_e8f1e7e78f70_1f22a2ca17c4"));
}

#[test]
fn tls_1_2_is_read_up_to_its_certificate() {
    let handshake = done(&recorded("tls12.bin"));
    assert_eq!(handshake.version, Some(0x0303));
    assert_eq!(handshake.cipher, Some(0xc030));
    assert_eq!(handshake.server_alpn.as_deref(), Some(&b"http/1.1"[..]));
    // As `openssl x509 -fingerprint -serial -subject -dates` shows them.
    let subject = "C=DE, O=Example Org, CN=www.example.org".to_string();
    assert_eq!(
        handshake.certificate,
        Some(Certificate {
            subject: subject.clone(),
            issuer: subject,
            serial: "0F:A3:B2".to_string(),
            not_before: 1_796_064_820,
            not_after: 2_111_424_820,
            names: vec!["www.example.org".to_string(), "*.example.net".to_string()],
            fingerprint: "75:48:ca:ec:9e:1b:bf:f9:7f:ee:54:f0:5c:54:a3:88:cc:c4:fc:4d".to_string(),
        })
    );
}

#[test]
fn sessions_that_go_on_are_told_as_such() {
    let old = done(&recorded("tls12_resumed.bin"));
    assert_eq!((old.version, old.is_resumed, old.certificate), (Some(0x0303), true, None));
    let new = done(&recorded("tls13_resumed.bin"));
    assert_eq!((new.version, new.is_resumed), (Some(0x0304), true));
}

#[test]
fn a_retry_is_one_transaction() {
    let handshake = done(&recorded("tls13_retry.bin"));
    assert_eq!(handshake.version, Some(0x0304));
    assert_eq!(handshake.sni.as_deref(), Some(&b"www.example.org"[..]));
}

#[test]
fn a_refusal_is_told_with_its_alert() {
    let handshake = done(&recorded("tls12_refused.bin"));
    assert_eq!(handshake.alert, Some((Side::Server, 40)));
    assert_eq!((handshake.sni, handshake.version), (None, None));
    assert!(handshake.ja4.unwrap().starts_with("t12i"));
}

#[test]
fn every_cut_tells_the_same() {
    for name in
        ["tls12.bin", "tls12_resumed.bin", "tls13.bin", "tls13_resumed.bin", "tls13_retry.bin", "tls12_refused.bin"]
    {
        assert_cuts_agree(Conversation::default, &recorded(name));
    }
}

/// Packets of two directions may be seen in either order.
#[test]
fn a_server_that_is_heard_first_waits_for_the_client() {
    for name in ["tls12.bin", "tls13.bin"] {
        let mut pieces = recorded(name);
        let expected = done(&pieces);
        pieces.swap(0, 1);
        assert_eq!(done(&pieces), expected, "{name}");
    }
}

#[test]
fn one_direction_alone_is_told_at_the_end() {
    let pieces: Vec<Piece> = recorded("tls13.bin").into_iter().filter(|(side, _)| *side == Side::Server).collect();
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, &pieces, Cut::Whole);
    assert!(out.told.is_empty());
    end(&mut parser, &mut out);
    let told = handshakes(&out);
    assert_eq!((told.len(), told[0].1, told[0].2.cipher), (1, Stage::Done, Some(0x1302)));
}

/// What is encrypted says nothing, and is not taken for odd.
#[test]
fn a_conversation_under_way_is_silent() {
    let data = |side| (side, [&[23, 3, 3, 0, 100][..], &[0xa5; 100]].concat());
    let mut parser = Conversation::default();
    let mut out = feed(&mut parser, &[data(Side::Server), data(Side::Client), data(Side::Server)], Cut::Every(3));
    end(&mut parser, &mut out);
    assert!(out.told.is_empty() && out.oddities.is_empty(), "{out:?}");
}

#[test]
fn mutations_are_harmless() {
    for name in ["tls12.bin", "tls13_retry.bin", "tls13_resumed.bin"] {
        assert_mutations_are_harmless(Conversation::default, &recorded(name), KEPT);
    }
}

/// A hello in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hello {
    pub(crate) version: u16,
    pub(crate) ciphers: Vec<u16>,
    pub(crate) extensions: Vec<(u16, Vec<u8>)>,
}

/// Values as a list on the wire.
fn list(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn vector8(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8][..], bytes].concat()
}

pub(crate) fn server_name(name: &[u8]) -> (u16, Vec<u8>) {
    (0, vector16(&[&[0][..], &vector16(name)].concat()))
}

fn alpn(protocols: &[&[u8]]) -> (u16, Vec<u8>) {
    (16, vector16(&protocols.iter().flat_map(|name| vector8(name)).collect::<Vec<u8>>()))
}

impl Hello {
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = self.version.to_be_bytes().to_vec();
        body.extend([0x11; 32]);
        body.extend(vector8(&[]));
        body.extend(vector16(&list(&self.ciphers)));
        body.extend(vector8(&[0]));
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &vector16(data)].concat())
            .collect();
        if !extensions.is_empty() {
            body.extend(vector16(&extensions));
        }
        body
    }

    pub(crate) fn message(&self) -> Vec<u8> {
        let body = self.body();
        [&(1 << 24 | body.len() as u32).to_be_bytes()[..], &body].concat()
    }

    fn read(&self, carrier: Carrier) -> (Handshake, Vec<&'static str>) {
        let (mut handshake, mut odd) = (Handshake::default(), Vec::new());
        read_client(&self.body(), carrier, &mut handshake, &mut |name| odd.push(name));
        (handshake, odd)
    }
}

fn records(message: &[u8], record: usize) -> Vec<u8> {
    message.chunks(record).flat_map(|chunk| [&[22, 3, 1][..], &vector16(chunk)].concat()).collect()
}

/// The hello behind the fingerprint that JA4's own description takes as its example, with GREASE strewn in.
fn chrome() -> Hello {
    Hello {
        version: 0x0303,
        ciphers: vec![
            0x1a1a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c,
            0x009d, 0x002f, 0x0035,
        ],
        extensions: vec![
            (0xcaca, vec![]),
            (0x001b, vec![]),
            server_name(b"example.com"),
            (0x0033, vec![]),
            alpn(&[b"h2", b"http/1.1"]),
            (0x4469, vec![]),
            (0x0017, vec![]),
            (0x002d, vec![]),
            (0x000d, vector16(&list(&[0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601]))),
            (0x0005, vec![]),
            (0x0023, vec![]),
            (0x0012, vec![]),
            (0x002b, vector8(&list(&[0x5a5a, 0x0304, 0x0303]))),
            (0xff01, vec![]),
            (0x000b, vector8(&[0])),
            (0x000a, vector16(&list(&[0xdada, 0x001d, 0x0017, 0x0018]))),
            (0x1a1a, vec![0]),
            (0x0015, vec![0; 100]),
        ],
    }
}

#[test]
fn ja4_is_the_published_one() {
    let (handshake, odd) = chrome().read(Carrier::Tcp);
    assert_eq!(handshake.ja4.as_deref(), Some("t13d1516h2_8daaf6152771_e5627efa2ab1"));
    assert_eq!(handshake.client_versions, [0x0304, 0x0303]);
    assert!(odd.is_empty(), "{odd:?}");
    assert!(chrome().read(Carrier::Quic).0.ja4.unwrap().starts_with("q13d1516h2_8daaf6152771_"));
}

/// A newer Chrome, whose JA3 and JA4 a public test page reports.
#[test]
fn ja3_is_the_published_one() {
    let mut hello = chrome();
    let kinds = [45, 51, 16, 65037, 23, 17613, 0, 11, 10, 43, 65281, 35, 18, 5, 13, 27];
    let data = |kind: u16| match kind {
        10 => vector16(&list(&[0xdada, 4588, 29, 23, 24])),
        _ => hello.extensions.iter().find(|(each, _)| *each == kind).map_or(vec![], |(_, data)| data.clone()),
    };
    hello.extensions = kinds.iter().map(|kind| (*kind, data(*kind))).collect();
    let (handshake, _) = hello.read(Carrier::Tcp);
    let (hash, text) = handshake.ja3.unwrap();
    assert_eq!(
        text,
        "771,4865-4866-4867-49195-49199-49196-49200-52393-52392-49171-49172-156-157-47-53,\
         45-51-16-65037-23-17613-0-11-10-43-65281-35-18-5-13-27,4588-29-23-24,0"
    );
    assert_eq!(hash, "98487aa16281980e7d1120d399efb6a4");
    assert_eq!(handshake.ja4.as_deref(), Some("t13d1516h2_8daaf6152771_d8a2da3f94cd"));
}

#[test]
fn ja4_of_unusual_hellos() {
    let check = |hello: Hello, expected: &str| {
        let ja4 = hello.read(Carrier::Tcp).0.ja4.unwrap();
        assert!(ja4.starts_with(expected) || ja4.ends_with(expected), "{ja4} instead of {expected}");
    };
    let with = |name: &[u8]| Hello { version: 0x0303, ciphers: vec![1], extensions: vec![alpn(&[name])] };
    // The examples of the description for names that are not alphanumeric.
    check(with(&[0xab]), "t12i0101ab_");
    check(with(&[0xab, 0xcd]), "t12i0101ad_");
    check(with(&[0x30, 0xab]), "t12i01013b_");
    check(with(&[0x30, 0x31, 0xab, 0xcd]), "t12i01013d_");
    check(with(&[0x30, 0xab, 0xcd, 0x31]), "t12i010101_");
    check(with(b"x"), "t12i0101xx_");
    check(with(b""), "t12i010100_");
    check(Hello { version: 0x0301, ..Hello::default() }, "t10i000000_000000000000_000000000000");
    check(Hello { version: 0x0300, ciphers: (1..200).collect(), ..Hello::default() }, "ts3i990000_");
    check(Hello { version: 0x7777, ..Hello::default() }, "t00i");
    // Neither name nor protocol counts in the last part.
    let both = Hello { version: 0x0303, ciphers: vec![], extensions: vec![server_name(b"a"), alpn(&[b"h2"])] };
    check(both, "t12d0002h2_000000000000_000000000000");
}

#[test]
fn hostile_hellos_are_odd_and_still_named() {
    let check = |extensions: Vec<(u16, Vec<u8>)>, sni: &str, expected: &str| {
        let hello = Hello { version: 0x0303, ciphers: vec![1], extensions };
        let (handshake, odd) = hello.read(Carrier::Tcp);
        assert_eq!(odd, [expected]);
        assert_eq!(handshake.sni.unwrap_or_default(), sni.as_bytes());
    };
    let two = [&[0][..], &vector16(b"a.example"), &[0], &vector16(b"b.example")].concat();
    check(vec![(0, vector16(&two))], "a.example", "tls.several_names");
    check(vec![server_name(b"a.example"), server_name(b"b.example")], "a.example", "tls.repeated_extension");
    check(vec![alpn(&[b"h2"]), alpn(&[b"h3"])], "", "tls.repeated_extension");
    check(vec![server_name(b"")], "", "tls.malformed_name");
    check(vec![server_name(b"a\0b")], "a\0b", "tls.malformed_name");
    check(vec![server_name(&[b'a'; 300])], &"a".repeat(NAME_MAX), "tls.malformed_name");
    check(vec![(0, vec![])], "", "tls.malformed_name");
    check(vec![(0, vec![0, 20, 0, 0, 30, b'a'])], "a", "tls.malformed_name");
    check(vec![server_name(b"a"), (16, vec![0, 9, 2, b'h'])], "a", "tls.malformed_client_hello");
    check(vec![server_name(b"a"), (10, vec![0, 3, 1, 2, 3])], "a", "tls.malformed_client_hello");
    check(vec![server_name(b"a"), alpn(&[b"x".as_slice(); 40])], "a", "tls.too_many_values");
    let many: Vec<_> = std::iter::once(server_name(b"a")).chain((0..3000).map(|kind| (kind + 100, vec![]))).collect();
    check(many, "a", "tls.too_many_values");
}

/// What a hello says is known of every part of it that came, as far as it came.
#[test]
fn a_hello_that_breaks_off_is_read_as_far_as_it_goes() {
    let hello = chrome();
    let bytes = records(&hello.message(), 16384);
    let name_end = bytes.windows(11).position(|window| window == b"example.com").unwrap() + 11;
    for length in name_end..bytes.len() {
        let mut parser = Conversation::default();
        let mut out = feed(&mut parser, &[(Side::Client, bytes[..length].to_vec())], Cut::Whole);
        assert!(out.told.is_empty());
        end(&mut parser, &mut out);
        let told = handshakes(&out);
        assert_eq!(told.last().unwrap().2.sni.as_deref(), Some(&b"example.com"[..]), "{length}");
        assert_eq!(out.oddities.len(), 1);
    }
}

/// A client that asks for another name after a retry is another transaction: a rule sees both.
#[test]
fn a_second_hello_with_another_name_is_told_too() {
    let recorded = recorded("tls13_retry.bin");
    let mut second = chrome();
    second.extensions[2] = server_name(b"other.example");
    let out = read(&[
        (Side::Client, records(&chrome().message(), 100)),
        recorded[1].clone(),
        (Side::Client, records(&second.message(), 100)),
    ]);
    let told = handshakes(&out);
    let told: Vec<_> = told.iter().map(|(tx, stage, told)| (*tx, *stage, told.sni.clone().unwrap())).collect();
    assert_eq!(
        told,
        [
            (0, Stage::Asked, b"example.com".to_vec()),
            (0, Stage::Done, b"example.com".to_vec()),
            (1, Stage::Asked, b"other.example".to_vec())
        ]
    );
    assert_eq!(out.oddities.iter().map(|(_, odd)| odd.0).collect::<Vec<_>>(), ["tls.changed_client_hello"]);
}

#[test]
fn records_that_are_none_are_odd() {
    let check = |side: Side, bytes: &[u8], expected: &str| {
        let out = read(&[(side, bytes.to_vec())]);
        assert_eq!(out.oddities.iter().map(|(_, odd)| odd.0).collect::<Vec<_>>(), [expected]);
    };
    check(Side::Server, b"HTTP/1.1 400 Bad Request\r\n\r\n", "tls.bad_record");
    check(Side::Client, &[22, 3, 1, 0x48, 1], "tls.long_record");
    check(Side::Client, &[22, 3, 1, 0, 0], "tls.empty_record");
    check(Side::Client, &[&records(&chrome().message(), 50)[..], &[99; 5]].concat(), "tls.bad_record");
}

/// The form that clients of both SSLv2 and newer versions sent (RFC 5246, E.2).
#[test]
fn an_old_hello_is_told_with_its_version() {
    let body = [&[1, 3, 1, 0, 3, 0, 0, 0, 16, 0, 0, 0x2f][..], &[7; 16]].concat();
    let bytes = [&[0x80, body.len() as u8][..], &body].concat();
    assert_cuts_agree(Conversation::default, &[(Side::Client, bytes.clone())]);
    let out = read(&[(Side::Client, bytes)]);
    let told = handshakes(&out);
    assert_eq!((told[0].1, told[0].2.client_version, told.len()), (Stage::Asked, 0x0301, 1));
    assert_eq!(out.oddities.iter().map(|(_, odd)| odd.0).collect::<Vec<_>>(), ["tls.sslv2_hello"]);
}

/// Two messages in one record, one in two records, and a message that nobody knows.
#[test]
fn messages_and_records_need_not_match() {
    let pieces = recorded("tls12.bin");
    let expected = done(&pieces);
    let mut messages = Vec::new();
    let mut rest = &pieces[1].1[..];
    while let [22, 3, _, high, low, behind @ ..] = rest {
        let (body, behind) = behind.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        messages.extend_from_slice(body);
        rest = behind;
    }
    let unknown = [200, 0, 0, 3, 1, 2, 3];
    let messages = [&unknown[..], &messages].concat();
    for record in [1, 5, 200, 16384] {
        let pieces = [pieces[0].clone(), (Side::Server, records(&messages, record))];
        assert_eq!(done(&pieces), expected, "records of {record}");
    }
}

/// The largest hello that is kept whole, in the smallest records, its name at the very end.
#[test]
fn a_hello_of_64_kib_in_records_of_one_byte_is_read() {
    let mut hello = chrome();
    hello.extensions.retain(|(kind, _)| *kind != 0);
    let room = 65_536 - hello.body().len() - 100;
    hello.extensions.push((0x0015, vec![0; room - 4]));
    hello.extensions.push(server_name(b"at.the.end.example"));
    // The extensions' length has 16 bits.
    assert!(hello.body().len() > 65_000);
    let bytes = records(&hello.message(), 1);
    let mut parser = Conversation::default();
    let out = feed(&mut parser, &[(Side::Client, bytes)], Cut::Every(1460));
    assert_eq!(handshakes(&out)[0].2.sni.as_deref(), Some(&b"at.the.end.example"[..]));
    assert!(parser.memory() < KEPT, "{}", parser.memory());
}

proptest! {
    #[test]
    fn any_hello_in_any_records_is_read(
        name in "[a-z0-9.-]{1,255}",
        protocols in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..5),
        padding in 0usize..3000,
        is_name_last: bool,
        record in 1usize..400,
        step in 1usize..400,
    ) {
        let mut hello = Hello { version: 0x0303, ciphers: vec![0x1301], extensions: vec![(21, vec![0; padding])] };
        if !protocols.is_empty() {
            hello.extensions.push(alpn(&protocols.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        }
        let at = if is_name_last { hello.extensions.len() } else { 0 };
        hello.extensions.insert(at, server_name(name.as_bytes()));
        let pieces = [(Side::Client, records(&hello.message(), record))];
        let out = feed(&mut Conversation::default(), &pieces, Cut::Every(step));
        let told = handshakes(&out);
        prop_assert_eq!(told.len(), 1);
        prop_assert_eq!(told[0].2.sni.as_deref(), Some(name.as_bytes()));
        prop_assert_eq!(&told[0].2.client_alpn, &protocols);
        prop_assert!(out.oddities.is_empty());
    }

    #[test]
    fn random_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 1..300), side: bool) {
        let side = if side { Side::Client } else { Side::Server };
        let mut parser = Conversation::default();
        let mut out = feed(&mut parser, &[(side, bytes.clone())], Cut::Whole);
        end(&mut parser, &mut out);
        let mut handshake = Handshake::default();
        read_client(&bytes, Carrier::Tcp, &mut handshake, &mut |_| ());
        read_server(&bytes, &mut handshake, &mut |_| ());
    }
}
