//! Messages that hickory-proto encodes, with its compression, and such as nobody honest sends.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns as HickoryEdns, Message as HickoryMessage, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{self, svcb};
use hickory_proto::rr::{Name, RData, Record as HickoryRecord, RecordType};
use proptest::prelude::*;

use super::message::read;
use super::*;
use crate::packet::proto::reader::hex;
use crate::packet::proto::testing::{Cut, Piece, assert_cuts_agree, assert_mutations_are_harmless, end, feed};
use crate::packet::proto::{Fact, Out, Parser, Side, Stage};

type Labels = Vec<Vec<u8>>;

/// A name as the doc comment of [`Question::name`] has it, written another way than the parser does.
fn name_text(labels: &Labels) -> String {
    let label = |label: &Vec<u8>| -> String {
        let byte = |byte: &u8| match byte {
            b'.' | b'\\' => format!("\\{}", *byte as char),
            0x21..=0x7e => (*byte as char).to_string(),
            _ => format!("\\{byte:03}"),
        };
        label.iter().map(byte).collect()
    };
    labels.iter().map(label).collect::<Vec<_>>().join(".")
}

fn data_name(labels: &Labels) -> String {
    if labels.is_empty() { ".".to_string() } else { name_text(labels) }
}

fn name(labels: &Labels) -> Name {
    Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap()
}

fn labels() -> impl Strategy<Value = Labels> {
    // Few different ones, so that names share their ends and get compressed.
    let plain = prop::sample::select(vec!["www", "mail", "example", "org", "net", "a"]);
    let plain = plain.prop_map(|label| label.as_bytes().to_vec());
    let label = prop_oneof![6 => plain, 1 => prop::collection::vec(any::<u8>(), 1..20)];
    prop::collection::vec(label, 0..5)
}

fn quoted(bytes: &[u8]) -> String {
    let byte = |byte: &u8| match byte {
        b'"' | b'\\' => format!("\\{}", *byte as char),
        b' '..=b'~' => (*byte as char).to_string(),
        _ => format!("\\{byte:03}"),
    };
    format!("\"{}\"", bytes.iter().map(byte).collect::<String>())
}

/// Data and the text that is expected of it.
fn data() -> impl Strategy<Value = (RData, String)> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..30);
    let text = || "[ -~]{0,20}";
    prop_oneof![
        any::<u32>().prop_map(|bits| {
            let address = Ipv4Addr::from(bits);
            (RData::A(address.into()), address.to_string())
        }),
        any::<u128>().prop_map(|bits| {
            let address = Ipv6Addr::from(bits);
            (RData::AAAA(address.into()), address.to_string())
        }),
        labels().prop_map(|labels| (RData::CNAME(rdata::CNAME(name(&labels))), data_name(&labels))),
        labels().prop_map(|labels| (RData::NS(rdata::NS(name(&labels))), data_name(&labels))),
        labels().prop_map(|labels| (RData::PTR(rdata::PTR(name(&labels))), data_name(&labels))),
        (any::<u16>(), labels()).prop_map(|(preference, labels)| {
            let text = format!("{preference} {}", data_name(&labels));
            (RData::MX(rdata::MX::new(preference, name(&labels))), text)
        }),
        (labels(), labels(), any::<u32>(), 0..i32::MAX, any::<u32>()).prop_map(|(a, b, serial, refresh, minimum)| {
            let soa = rdata::SOA::new(name(&a), name(&b), serial, refresh, 2, 3, minimum);
            let text = format!("{} {} {serial} {refresh} 2 3 {minimum}", data_name(&a), data_name(&b));
            (RData::SOA(soa), text)
        }),
        prop::collection::vec(bytes(), 1..4).prop_map(|strings| {
            let txt = rdata::TXT::from_bytes(strings.iter().map(Vec::as_slice).collect());
            let text = quoted(&strings.concat());
            (RData::TXT(txt), text[1..text.len() - 1].replace("\\\"", "\""))
        }),
        (any::<[u16; 3]>(), labels()).prop_map(|([priority, weight, port], labels)| {
            let text = format!("{priority} {weight} {port} {}", data_name(&labels));
            (RData::SRV(rdata::SRV::new(priority, weight, port, name(&labels))), text)
        }),
        (any::<[u16; 2]>(), text(), bytes(), labels()).prop_map(|([order, preference], service, regexp, labels)| {
            let naptr = rdata::NAPTR::new(
                order,
                preference,
                b"U".as_slice().into(),
                service.as_bytes().into(),
                regexp.as_slice().into(),
                name(&labels),
            );
            let [service, regexp] = [quoted(service.as_bytes()), quoted(&regexp)];
            (RData::NAPTR(naptr), format!("{order} {preference} \"U\" {service} {regexp} {}", data_name(&labels)))
        }),
        (text(), text()).prop_map(|(cpu, os)| {
            let expected = format!("{} {}", quoted(cpu.as_bytes()), quoted(os.as_bytes()));
            (RData::HINFO(rdata::HINFO::new(cpu, os)), expected)
        }),
        (0u16..9, labels(), "[a-z0-9]{1,8}", any::<u16>(), any::<[u32; 2]>(), any::<u128>()).prop_map(
            |(priority, labels, protocol, port, v4, v6)| {
                use svcb::{Alpn, EchConfigList, IpHint, SvcParamKey, SvcParamValue};
                let [v4, v6] = [v4.map(Ipv4Addr::from).to_vec(), vec![]].map(|hint| (hint, Ipv6Addr::from(v6)));
                let (v4, v6) = (v4.0, v6.1);
                let parameters = vec![
                    (SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec![protocol.clone(), "h2".to_string()]))),
                    (SvcParamKey::Port, SvcParamValue::Port(port)),
                    (
                        SvcParamKey::Ipv4Hint,
                        SvcParamValue::Ipv4Hint(IpHint(v4.iter().map(|address| (*address).into()).collect())),
                    ),
                    (SvcParamKey::EchConfigList, SvcParamValue::EchConfigList(EchConfigList(vec![0, 0xab]))),
                    (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(vec![v6.into()]))),
                ];
                let text = format!(
                    "{priority} {} alpn={protocol},h2 port={port} ipv4hint={},{} ech=00ab ipv6hint={v6}",
                    data_name(&labels),
                    v4[0],
                    v4[1]
                );
                (RData::HTTPS(rdata::HTTPS(svcb::SVCB::new(priority, name(&labels), parameters))), text)
            }
        ),
    ]
}

type Section = Vec<(Labels, u32, (RData, String))>;

fn section() -> impl Strategy<Value = Section> {
    prop::collection::vec((labels(), 0..u32::MAX / 2, data()), 0..5)
}

fn encode(id: u16, question: &Labels, kind: u16, sections: &[Section; 3], has_edns: bool) -> Vec<u8> {
    let mut message = HickoryMessage::new(id, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(name(question), RecordType::from(kind)));
    let records = |section: &Section| -> Vec<HickoryRecord> {
        let record = |(labels, ttl, (data, _)): &(Labels, u32, (RData, String))| {
            HickoryRecord::from_rdata(name(labels), *ttl, data.clone())
        };
        section.iter().map(record).collect()
    };
    message.add_answers(records(&sections[0]));
    message.add_authorities(records(&sections[1]));
    message.add_additionals(records(&sections[2]));
    if has_edns {
        let mut edns = HickoryEdns::new();
        edns.set_max_payload(1232);
        edns.set_dnssec_ok(true);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn read_quietly(bytes: &[u8]) -> (Option<Message>, Vec<&'static str>) {
    let mut odd = Vec::new();
    let message = read(bytes, &mut |name| odd.push(name));
    (message, odd)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_hickory_writes_is_read(
        id: u16,
        question in labels(),
        kind in 1u16..300,
        sections in [section(), section(), section()],
        has_edns: bool,
    ) {
        let bytes = encode(id, &question, kind, &sections, has_edns);
        let (message, odd) = read_quietly(&bytes);
        prop_assert!(odd.is_empty(), "{:?}", odd);
        let message = message.unwrap();
        prop_assert_eq!((message.id, message.is_response()), (id, true));
        prop_assert_eq!(&message.queries, &[Question { name: name_text(&question), kind, class: 1 }]);
        let read = [&message.answers, &message.authorities, &message.additionals];
        for (read, written) in read.into_iter().zip(&sections) {
            let expected: Vec<Record> = written
                .iter()
                .map(|(labels, ttl, (data, text))| Record {
                    name: name_text(labels),
                    kind: data.record_type().into(),
                    class: 1,
                    ttl: *ttl,
                    data: text.clone(),
                })
                .collect();
            prop_assert_eq!(read, &expected);
        }
        let edns = Edns { udp_size: 1232, rcode_high: 0, version: 0, is_dnssec_ok: true };
        prop_assert_eq!(message.edns, has_edns.then_some(edns));
    }

    /// Broken anywhere: what hickory still takes is taken, with the same questions.
    #[test]
    fn what_hickory_takes_is_taken(
        question in labels(),
        sections in [section(), section(), section()],
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        is_cut: bool,
    ) {
        let mut bytes = encode(7, &question, 1, &sections, true);
        for (place, value) in edits {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (read, odd) = read_quietly(&bytes);
        if let Ok(theirs) = HickoryMessage::from_vec(&bytes) {
            let ours = read.unwrap();
            let questions: Vec<(String, u16)> = theirs
                .queries
                .iter()
                .map(|query| {
                    let labels = query.name().iter().map(<[u8]>::to_vec).collect();
                    (name_text(&labels), query.query_type().into())
                })
                .collect();
            let read: Vec<(String, u16)> = ours.queries.iter().map(|query| (query.name.clone(), query.kind)).collect();
            prop_assert_eq!(&read, &questions);
            prop_assert_eq!(ours.answers.len(), theirs.answers.len(), "{} {:?}", hex(&bytes), odd);
            for (ours, theirs) in ours.answers.iter().zip(&theirs.answers) {
                let labels = theirs.name.iter().map(<[u8]>::to_vec).collect();
                prop_assert_eq!(&ours.name, &name_text(&labels));
                prop_assert_eq!(ours.ttl, theirs.ttl);
            }
        }
    }

    #[test]
    fn random_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_quietly(&bytes);
        // A header that promises much, so that the rest is taken for names and records.
        let header = [0, 1, 0x81, 0x80, 0, 1, 0, 9, 0, 9, 0, 9];
        read_quietly(&[&header[..], &bytes].concat());
    }
}

/// A message of a question for `www.example.org` and records as they are given.
fn response(id: u16, records: &[&[u8]]) -> Vec<u8> {
    let header = [id.to_be_bytes(), [0x81, 0x80], [0, 1], (records.len() as u16).to_be_bytes(), [0, 0], [0, 0]];
    [&header.concat()[..], b"\x03www\x07example\x03org\0\0\x01\0\x01", &records.concat()].concat()
}

/// A record of the name that was asked for, in hexadecimal data.
fn record(kind: u16, data: &str) -> Vec<u8> {
    let data: Vec<u8> =
        (0..data.len() / 2).map(|at| u8::from_str_radix(&data[2 * at..2 * at + 2], 16).unwrap()).collect();
    [&[0xc0, 12][..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 60], &(data.len() as u16).to_be_bytes(), &data].concat()
}

/// Types that hickory does not build without its DNSSEC; texts by the examples of their RFCs or by hand.
#[test]
fn data_of_other_types() {
    let check = |kind: u16, data: &str, expected: &str| {
        let (message, odd) = read_quietly(&response(1, &[&record(kind, data)]));
        assert_eq!(message.unwrap().answers[0].data, expected, "type {kind}");
        assert!(odd.is_empty(), "type {kind}: {odd:?}");
    };
    check(
        kind::DS,
        "ec4505012bb183af5f22588179a53b0a98631fad1a292118",
        "60485 5 1 2bb183af5f22588179a53b0a98631fad1a292118",
    );
    check(kind::DNSKEY, "01000305666f6f626172", "256 3 5 Zm9vYmFy");
    check(
        kind::RRSIG,
        "00010502000151803e86bb803e5ce0000a52c00c666f6f",
        "A 5 2 86400 1049017216 1046274048 2642 www.example.org Zm9v",
    );
    // RFC 4034, 4.3: A MX RRSIG NSEC TYPE1234.
    let bitmap = format!("0006400100000003041b{}20", "00".repeat(26));
    check(kind::NSEC, &format!("c00c{bitmap}"), "www.example.org A MX RRSIG NSEC TYPE1234");
    check(kind::NSEC3, "01010001 02abcd 03666f6f 000140".replace(' ', "").as_str(), "1 1 1 abcd cpnmu A");
    check(kind::NSEC3PARAM, "0100000a00", "1 0 10 -");
    check(kind::TLSA, "0301 01 aabb".replace(' ', "").as_str(), "3 1 1 aabb");
    check(kind::SSHFP, "0402aabb", "4 2 aabb");
    check(kind::CAA, "80056973737565 63612e22".replace(' ', "").as_str(), "128 issue \"ca.\\\"\"");
    check(kind::URI, "00010002 613a".replace(' ', "").as_str(), "1 2 \"a:\"");
    check(kind::OPENPGPKEY, "666f6f", "Zm9v");
    check(29, "0012", "0012");
    check(65280, "ff00", "ff00");
    check(kind::A, "", "");
    check(
        kind::SVCB,
        "0001 00 0002 0000 0007 0004 2f7b2c7d 0309 0001 ff".replace(' ', "").as_str(),
        "1 . no-default-alpn dohpath=/{\\,} key777=ff",
    );
    check(kind::HTTPS, "000100 0000 0004 00010003".replace(' ', "").as_str(), "1 . mandatory=alpn,port");
}

/// Data that breaks its form is shown in hexadecimal, and told.
#[test]
fn malformed_data_is_hexadecimal() {
    let check = |kind: u16, data: &str| {
        let (message, odd) = read_quietly(&response(1, &[&record(kind, data), &record(1, "01020304")]));
        let message = message.unwrap();
        assert_eq!((&message.answers[0].data[..], &odd[..]), (data, &["dns.malformed_record"][..]), "type {kind}");
        assert_eq!(message.answers[1].data, "1.2.3.4");
    };
    check(kind::A, "010203");
    check(kind::A, "0102030405");
    check(kind::AAAA, "01");
    check(kind::CNAME, "c0ff");
    // A name that goes on behind its record.
    check(kind::CNAME, "05616263");
    check(kind::MX, "0001");
    check(kind::TXT, "05616263");
    check(kind::NSEC, "000000");
    check(kind::NSEC, "000021");
    check(kind::CAA, "0000");
    check(kind::HTTPS, "000100 0003 0001 00".replace(' ', "").as_str());
    check(kind::HTTPS, "000100 0004 0003 010203".replace(' ', "").as_str());
}

#[test]
fn hostile_names_are_refused() {
    let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let check = |name: &[u8], expected: Option<&str>| {
        let (message, _) = read_quietly(&[&header[..], name, &[0, 1, 0, 1]].concat());
        assert_eq!(message.map(|message| message.queries[0].name.clone()).as_deref(), expected);
    };
    check(b"\x03a.b\x02\\ \x01\xff\0", Some("a\\.b.\\\\\\032.\\255"));
    check(b"\0", Some(""));
    // Into the header, which servers follow; to itself, forward, to the labels that lead to it.
    check(&[0xc0, 4], Some(""));
    check(&[0xc0, 12], None);
    check(&[0xc0, 14, 1, b'a', 0], None);
    check(&[1, b'a', 0xc0, 12], None);
    // The two forms of labels that nobody uses.
    check(&[0x41, 0], None);
    check(&[0x80, 0], None);
    // 63 bytes are the most of a label, 255 of a name with its lengths.
    let longest = [&[63][..], &[b'a'; 63]].concat();
    let name = |last: usize| [longest.repeat(3), vec![last as u8], vec![b'b'; last], vec![0]].concat();
    check(&name(61), Some(&format!("{a}.{a}.{a}.{b}", a = "a".repeat(63), b = "b".repeat(61))));
    check(&name(62), None);
}

/// A chain of pointers, each to the one before, is followed for a few of them only.
#[test]
fn chains_of_pointers_are_refused() {
    // Behind header and question stands a record of the root; its data is a root at 44, then the chain.
    let chain: Vec<u8> =
        (0..8000u16).flat_map(|link| (0xc000 | if link == 0 { 44 } else { 43 + 2 * link }).to_be_bytes()).collect();
    let first = [&[0, 0xff, 0, 0, 1, 0, 0, 0, 0][..], &(1 + chain.len() as u16).to_be_bytes(), &[0], &chain].concat();
    let check = |links: u16, expected: usize| {
        let name = (0xc000 | (43 + 2 * links)).to_be_bytes();
        let second = [&name[..], &[0, 1, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        let (message, odd) = read_quietly(&response(1, &[&first, &second]));
        assert_eq!(message.unwrap().answers.len(), expected, "{links}");
        assert_eq!(odd.is_empty(), expected == 2, "{odd:?}");
    };
    check(1, 2);
    check(31, 2);
    check(32, 1);
    check(7000, 1);
}

#[test]
fn what_a_message_makes_is_bounded() {
    // Names of 255 bytes that all need escapes, by a pointer of two bytes each.
    let label = [&[63][..], &[0xff; 63]].concat();
    let name = [label.repeat(3), vec![61], vec![0xff; 61], vec![0]].concat();
    let mut bytes = [&[0, 1, 0x81, 0x80, 0, 1, 0xff, 0xff, 0, 0, 0, 0][..], &name, &[0, 1, 0, 1]].concat();
    while bytes.len() < 65_000 {
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
    let (message, odd) = read_quietly(&bytes);
    let text: usize = message.unwrap().answers.iter().map(|record| record.name.len()).sum();
    assert!(text > 200_000 && text < 300_000, "{text}");
    assert_eq!(odd, ["dns.too_much"]);
}

#[test]
fn short_and_long_messages_are_odd() {
    assert_eq!(read_quietly(&[0; 11]), (None, vec!["dns.short_message"]));
    let whole = response(1, &[&record(1, "01020304")]);
    let (message, odd) = read_quietly(&[&whole[..], &[0]].concat());
    assert_eq!((message.unwrap().answers.len(), &odd[..]), (1, &["dns.trailing_bytes"][..]));
    for length in 12..whole.len() {
        let (message, odd) = read_quietly(&whole[..length]);
        assert_eq!(odd, ["dns.malformed_message"], "{length}");
        assert_eq!(message.is_some(), length >= 12 + 17 + 4, "{length}");
    }
}

fn query(id: u16) -> Vec<u8> {
    let mut query = response(id, &[]);
    query[2] = 1;
    query[3] = 0;
    query
}

fn told(out: &Out) -> Vec<(u32, Stage, u16)> {
    let id = |fact: &Fact| match fact {
        Fact::Dns(message) => message.id,
        other => panic!("{other:?}"),
    };
    out.told.iter().map(|told| (told.tx, told.stage, id(&told.fact))).collect()
}

#[test]
fn a_response_shares_the_transaction_of_its_query() {
    let pieces = [
        (Side::Client, query(7)),
        (Side::Client, query(8)),
        (Side::Server, response(8, &[])),
        (Side::Server, response(9, &[])),
        (Side::Server, response(7, &[])),
        (Side::Server, response(7, &[])),
    ];
    let out = feed(&mut Datagrams::default(), &pieces, Cut::Whole);
    let (asked, done) = (Stage::Asked, Stage::Done);
    assert_eq!(told(&out), [(0, asked, 7), (1, asked, 8), (1, done, 8), (2, done, 9), (0, done, 7), (3, done, 7)]);
    assert!(out.oddities.is_empty());
}

#[test]
fn queries_that_nobody_answers_are_forgotten() {
    let mut parser = Datagrams::default();
    let queries: Vec<Piece> = (0..1000).map(|id| (Side::Client, query(id))).collect();
    feed(&mut parser, &queries, Cut::Whole);
    assert!(parser.memory() < 4096, "{}", parser.memory());
    let out = feed(&mut parser, &[(Side::Server, response(999, &[])), (Side::Server, response(0, &[]))], Cut::Whole);
    assert_eq!(told(&out), [(999, Stage::Done, 999), (1000, Stage::Done, 0)]);
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

fn conversation() -> Vec<Piece> {
    let address = record(1, "01020304");
    vec![
        (Side::Client, [framed(&query(1)), framed(&query(2)), framed(&query(3))].concat()),
        (Side::Server, [framed(&response(2, &[&address])), framed(&response(1, &[&address, &address]))].concat()),
        (
            Side::Server,
            [framed(&[]), framed(&response(3, &[])), framed(&response(4, &[&address]))[..40].to_vec()].concat(),
        ),
    ]
}

#[test]
fn messages_in_a_stream_are_read_however_they_are_cut() {
    let out = feed(&mut Stream::default(), &conversation(), Cut::Whole);
    assert_eq!(told(&out).iter().map(|(tx, _, _)| *tx).collect::<Vec<_>>(), [0, 1, 2, 1, 0, 2]);
    assert_cuts_agree(Stream::default, &conversation());
    assert_mutations_are_harmless(Stream::default, &conversation(), 128 * 1024);
}

/// A gap costs the messages in it.
#[test]
fn a_gap_costs_a_message() {
    let mut parser = Stream::default();
    let mut out = Out::default();
    let message = framed(&query(1));
    parser.take(Side::Client, &message[..10], &mut out);
    parser.skip(Side::Client, 5, &mut out);
    parser.take(Side::Client, &message[15..], &mut out);
    parser.take(Side::Client, &framed(&query(2)), &mut out);
    assert_eq!(told(&out), [(0, Stage::Asked, 2)]);
    // Whole messages are missing, and the beginning of one more.
    parser.skip(Side::Client, 100, &mut out);
    framed(&query(3)).iter().for_each(|byte| parser.take(Side::Client, &[*byte], &mut out));
    assert_eq!(told(&out)[1..], [(1, Stage::Asked, 3)]);
    parser.skip(Side::Client, 30, &mut out);
    parser.take(Side::Client, &framed(&query(4))[10..], &mut out);
    parser.take(Side::Client, &framed(&query(5)), &mut out);
    assert_eq!(told(&out).len(), 2, "it reads from the middle of a message");
    parser.skip(Side::Client, 1, &mut out);
    parser.take(Side::Client, &[framed(&query(6)), framed(&query(7))].concat(), &mut out);
    assert_eq!(told(&out)[2..], [(2, Stage::Asked, 6), (3, Stage::Asked, 7)]);
    // What is not decided at the end is nothing.
    parser.skip(Side::Client, 1, &mut out);
    parser.take(Side::Client, &framed(&query(8))[..14], &mut out);
    end(&mut parser, &mut out);
    assert_eq!(told(&out).len(), 4);
    assert!(out.oddities.is_empty());
}
