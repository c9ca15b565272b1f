use proptest::prelude::*;

use super::*;

type Field = (Vec<u8>, Vec<u8>);

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<(Vec<Field>, u32), Malformed> {
    let mut fields = Vec::new();
    let unknown = decoder.decode(block, |name, value| fields.push((name.to_vec(), value.to_vec())))?;
    Ok((fields, unknown))
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Decodes blocks one after the other, and compares with `name: value` lines.
#[track_caller]
fn check(decoder: &mut Decoder, blocks: &[(&str, &[&str])]) {
    for (block, expected) in blocks {
        let (fields, unknown) = decode(decoder, &hex(block)).expect(block);
        let text =
            |(name, value): &Field| format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        assert_eq!(fields.iter().map(text).collect::<Vec<_>>(), *expected, "{block}");
        assert_eq!(unknown, 0);
    }
}

/// What a table holds, newest first.
fn table(decoder: &Decoder) -> Vec<String> {
    let text = |entry: &Entry| {
        let name = String::from_utf8_lossy(entry.name.bytes().unwrap());
        format!("{name}: {}", String::from_utf8_lossy(&entry.value))
    };
    decoder.entries.iter().map(text).collect()
}

/// RFC 7541, appendix C.2.
#[test]
fn fields_by_representation() {
    for (block, field) in [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", "custom-key: custom-header"),
        ("040c2f73616d706c652f70617468", ":path: /sample/path"),
        ("100870617373776f726406736563726574", "password: secret"),
        ("82", ":method: GET"),
    ] {
        check(&mut Decoder::default(), &[(block, &[field])]);
    }
}

/// RFC 7541, appendices C.3 and C.4: the same requests without and with the Huffman code.
#[test]
fn requests_of_the_appendix() {
    let base = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
    let second = [&base[..], &["cache-control: no-cache"]].concat();
    let third = [
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        ":authority: www.example.com",
        "custom-key: custom-value",
    ];
    for blocks in [
        [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ],
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
    ] {
        let mut decoder = Decoder::default();
        check(&mut decoder, &[(blocks[0], &base), (blocks[1], &second), (blocks[2], &third)]);
        let expected = ["custom-key: custom-value", "cache-control: no-cache", ":authority: www.example.com"];
        assert_eq!(table(&decoder), expected);
        assert_eq!(decoder.size, 164);
    }
}

/// RFC 7541, appendices C.5 and C.6: entries are evicted from a table of 256 bytes.
#[test]
fn responses_of_the_appendix() {
    let (date, later) = ("date: Mon, 21 Oct 2013 20:13:21 GMT", "date: Mon, 21 Oct 2013 20:13:22 GMT");
    let (private, location) = ("cache-control: private", "location: https://www.example.com");
    let cookie = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    for blocks in [
        [
            "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a\
             2f2f7777772e6578616d706c652e636f6d",
            "4803333037c1c0bf",
            "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b4851\
             4b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
        ],
        [
            "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
            "4883640effc1c0bf",
            "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af2708\
             7f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
        ],
    ] {
        let mut decoder = Decoder::default();
        let first = format!("3fe101{}", blocks[0]);
        check(
            &mut decoder,
            &[
                (&first, &[":status: 302", private, date, location]),
                (blocks[1], &[":status: 307", private, date, location]),
                (blocks[2], &[":status: 200", private, later, location, "content-encoding: gzip", cookie]),
            ],
        );
        assert_eq!(table(&decoder), [cookie, "content-encoding: gzip", later]);
        assert_eq!(decoder.size, 215);
    }
}

#[test]
fn what_is_malformed() {
    for block in [
        "80",                       // index 0
        "be",                       // an entry that is not there
        "7f00",                     // a name that is not there
        "ff8080808000",             // a number of too many bytes
        "ff",                       // one that is cut off
        "400161",                   // a value that is missing
        "4001610561",               // a value that is cut off
        "40016182ffff",             // padding of more than seven bits
        "4001618100",               // padding of zeros: "0" and three bits that are not set
        "400161840fffffff3fffffff", // behind a symbol that is none
        "8220",                     // a change of size behind a field
        "3fe21f",                   // a table larger than what was allowed: 4097
    ] {
        let mut decoder = Decoder::default();
        assert_eq!(decode(&mut decoder, &hex(block)), Err(Malformed), "{block}");
        // It goes on as one that knows nothing.
        assert_eq!(
            decode(&mut decoder, &hex("82be")),
            Ok((vec![(b":method".to_vec(), b"GET".to_vec())], 1)),
            "{block}"
        );
    }
}

#[test]
fn settings_allow_a_larger_table() {
    let mut decoder = Decoder::default();
    decoder.allow(8192);
    assert_eq!(decode(&mut decoder, &hex("3fe13f")), Ok((vec![], 0)));
    assert_eq!(decoder.max_size, 8192);
    // One that is larger than ours is followed as far as it can be: what is evicted here is unknown, not wrong.
    decoder.allow(1 << 24);
    let mut block = hex("3fe1ffff01");
    let long = |wire: &mut Vec<u8>, name: u8| {
        wire.extend([0x40, 1, name, 0x7f, 0x81, 0x7f]);
        wire.extend(vec![b'v'; 127 + 1 + (127 << 7)]);
    };
    (b'a'..=b'e').for_each(|name| long(&mut block, name));
    let (fields, unknown) = decode(&mut decoder, &block).unwrap();
    assert_eq!((fields.len(), unknown, decoder.entries.len()), (5, 0, 3));
    assert_eq!(decode(&mut decoder, &[0xc2]), Ok((vec![], 1)), "the first of them");
    assert_eq!(decode(&mut decoder, &[0xc0]).unwrap().0[0].0, b"c");
}

#[test]
fn short_blocks_cannot_copy_long_names() {
    // One long name, then entries of two bytes that refer to it: copied, they would be gigabytes.
    let mut block = hex("40");
    block.extend([0x7f, 0x81, 0x3f]);
    block.extend(vec![b'n'; 127 + 1 + (63 << 7)]);
    block.push(0);
    let mut decoder = Decoder::default();
    decoder.lose();
    assert_eq!(decode(&mut decoder, &block).unwrap().0.len(), 1);
    let start = std::time::Instant::now();
    let bomb = [0x7e, 0x00].repeat(30_000);
    let mut bytes = 0;
    for _ in 0..20 {
        decoder.decode(&bomb, |name, _| bytes += name.len()).unwrap();
    }
    assert!(bytes > 1 << 32, "{bytes}");
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert!(decoder.memory() < 1 << 20);
}

fn field() -> impl Strategy<Value = Field> {
    let name = prop_oneof![
        prop::sample::select(vec![":path", ":status", "cookie", "x-a", "x-b", "x-c"])
            .prop_map(|s| s.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..20),
    ];
    let value = prop_oneof![
        prop::sample::select(vec!["", "/", "200", "a", "b"]).prop_map(|s| s.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..300),
    ];
    (name, value)
}

/// Encodes with another implementation, which fills a dynamic table of its own.
fn encoded(lists: &[Vec<Field>]) -> Vec<Vec<u8>> {
    let mut encoder = loona_hpack::Encoder::new();
    lists.iter().map(|list| encoder.encode(list.iter().map(|(name, value)| (&name[..], &value[..])))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn what_another_encodes_is_decoded(lists in prop::collection::vec(prop::collection::vec(field(), 0..8), 1..8)) {
        let mut decoder = Decoder::default();
        for (block, list) in encoded(&lists).iter().zip(&lists) {
            prop_assert_eq!(decode(&mut decoder, block), Ok((list.clone(), 0)));
            prop_assert!(decoder.size <= decoder.max_size);
        }
    }

    #[test]
    fn joining_in_the_middle_is_incomplete_but_never_wrong(
        lists in prop::collection::vec(prop::collection::vec(field(), 0..8), 2..8),
        missed in any::<prop::sample::Index>(),
    ) {
        let missed = missed.index(lists.len());
        let mut decoder = Decoder::default();
        let blocks = encoded(&lists);
        for (at, (block, list)) in blocks.iter().zip(&lists).enumerate() {
            if at == missed {
                decoder.lose();
                continue;
            }
            let (fields, unknown) = decode(&mut decoder, block).unwrap();
            // What is told is there, in this order; the rest is counted.
            let mut all = list.iter();
            prop_assert!(fields.iter().all(|field| all.any(|each| each == field)));
            prop_assert_eq!(fields.len() + unknown as usize, list.len());
        }
    }

    #[test]
    fn another_decoder_reads_the_same(
        list in prop::collection::vec(field(), 0..6),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        noise in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut block = encoded(&[list])[0].clone();
        block.extend(noise);
        for (at, byte) in flips {
            if !block.is_empty() {
                let at = at.index(block.len());
                block[at] = byte;
            }
        }
        if let Ok((fields, _)) = decode(&mut Decoder::default(), &block) {
            let other = loona_hpack::Decoder::new().decode(&block);
            if other != Err(loona_hpack::decoder::DecoderError::SizeUpdateAtEnd) {
                prop_assert_eq!(other, Ok(fields));
            }
        }
    }

    #[test]
    fn strings_in_the_huffman_code(text in prop::collection::vec(any::<u8>(), 0..200), noise in prop::collection::vec(any::<u8>(), 0..30)) {
        let mut decoded = b"kept".to_vec();
        prop_assert_eq!(huffman::decode(&huffman::encode(&text), &mut decoded), Some(()));
        prop_assert_eq!(&decoded[..4], b"kept");
        prop_assert_eq!(&decoded[4..], &text[..]);
        // Any bytes: the same as by another decoder.
        let mut ours = Vec::new();
        let ours = huffman::decode(&noise, &mut ours).map(|()| ours);
        prop_assert_eq!(ours, loona_hpack::huffman::HuffmanDecoder::new().decode(&noise).ok());
        prop_assert_eq!(loona_hpack::huffman::HuffmanDecoder::new().decode(&huffman::encode(&text)).ok(), Some(text));
    }
}
