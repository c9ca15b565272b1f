use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::packet::proto::http::talk::{self, Step, c, ends, run, run_cut, s};
use crate::packet::proto::http::{BODY_MAX, FIELDS_MAX};
use crate::packet::proto::http1::Http1;

#[track_caller]
fn check(steps: &[Step], expected: &[&str]) {
    let mut steps = steps.to_vec();
    steps.extend(ends());
    talk::check::<Http2>(&steps, expected);
}

fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as literals that enter no table.
fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in list {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block
}

const END_HEADERS: u8 = flag::END_HEADERS;
const END: u8 = flag::END_STREAM;

fn headers(stream: u32, flags: u8, list: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS | flags, stream, fields(list))
}

fn get(path: &str) -> Vec<(&str, &str)> {
    vec![(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "x.example:81")]
}

fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(kind::DATA, flags, stream, payload)
}

/// The preface and settings of a client, then frames.
fn opening(frames: &[Vec<u8>]) -> Step {
    c([PREFACE.to_vec(), frame(kind::SETTINGS, 0, 0, []), frames.concat()].concat())
}

fn answer(frames: &[Vec<u8>]) -> Step {
    s([frame(kind::SETTINGS, 0, 0, []), frames.concat()].concat())
}

const ASKED: &str = "0? #1 GET /a @x.example:81";

#[test]
fn an_exchange() {
    let ok = [(":status", "200"), ("content-type", "text/plain")];
    check(
        &[
            opening(&[headers(1, END, &get("/a"))]),
            answer(&[headers(1, 0, &ok), data(1, 0, b"hel"), frame(kind::PING, 0, 0, [0; 8]), data(1, END, b"lo")]),
        ],
        &[ASKED, "0= #1 GET /a @x.example:81 -> 200  [5:hello]"],
    );
}

#[test]
fn requests_are_told_at_their_heads() {
    let mut parser = Http2::default();
    let out = run(&mut parser, &[opening(&[headers(1, 0, &get("/a")), data(1, 0, b"ab")])]);
    assert_eq!(talk::lines(&out), [ASKED]);
    let Fact::Http(exchange) = &out.told[0].fact else { panic!() };
    assert_eq!((exchange.version, exchange.request.len()), (Version::V2, 0));
    let out = run(&mut parser, &[c(data(1, END, b"c")), answer(&[headers(1, END, &[(":status", "204")])])]);
    assert_eq!(talk::lines(&out), ["0= #1 GET /a @x.example:81 [3:abc] -> 204"]);
}

#[test]
fn streams_are_told_as_they_end() {
    check(
        &[
            opening(&[headers(1, END, &get("/a")), headers(3, END, &get("/b"))]),
            answer(&[
                headers(1, 0, &[(":status", "200")]),
                headers(3, 0, &[(":status", "201")]),
                data(1, 0, b"a"),
                data(3, END, b"b"),
                data(1, END, b"a"),
            ]),
        ],
        &[
            ASKED,
            "1? #3 GET /b @x.example:81",
            "1= #3 GET /b @x.example:81 -> 201  [1:b]",
            "0= #1 GET /a @x.example:81 -> 200  [2:aa]",
        ],
    );
}

#[test]
fn padding_and_priority_are_left_out() {
    let mut block = vec![3, 0, 0, 0, 0, 9];
    block.extend(fields(&get("/a")));
    block.extend([0; 3]);
    let head = frame(kind::HEADERS, END | END_HEADERS | flag::PADDED | flag::PRIORITY, 1, block);
    let body = data(1, END | flag::PADDED, b"\x02hello\0\0");
    check(
        &[opening(&[head]), answer(&[headers(1, 0, &[(":status", "200")]), body])],
        &[ASKED, "0= #1 GET /a @x.example:81 -> 200  [5:hello]"],
    );
    for bad in [data(1, END | flag::PADDED, b"\x06hello"), frame(kind::HEADERS, END_HEADERS | flag::PADDED, 1, [1])] {
        let out = run(&mut Http2::default(), &[opening(&[headers(1, 0, &get("/a")), bad])]);
        assert_eq!(talk::lines(&out), [ASKED, "! client http2.bad_padding"]);
    }
}

#[test]
fn continuations() {
    let block = fields(&get("/a"));
    let part = |kind, flags, range: std::ops::Range<usize>| frame(kind, flags, 1, &block[range]);
    let (end, len) = (END_HEADERS, block.len());
    let whole =
        [part(kind::HEADERS, END, 0..9), part(kind::CONTINUATION, 0, 9..20), part(kind::CONTINUATION, end, 20..len)];
    check(&[opening(&whole)], &[ASKED, "0= #1 GET /a @x.example:81"]);
    // Nothing may stand between them.
    let between =
        [part(kind::HEADERS, END, 0..9), frame(kind::PING, 0, 0, [0; 8]), part(kind::CONTINUATION, end, 9..len)];
    check(&[opening(&between)], &["! client http2.broken_block", "! client http2.broken_block"]);
    let flood = [vec![part(kind::HEADERS, END, 0..9)], vec![part(kind::CONTINUATION, 0, 9..9); 1000]].concat();
    check(&[opening(&flood)], &["! client http2.continuation_flood"]);
    let long = vec![frame(kind::CONTINUATION, 0, 1, [0; 16_000]); 6];
    let long = [vec![part(kind::HEADERS, END, 0..9)], long, vec![part(kind::CONTINUATION, end, 9..9)]].concat();
    let next = headers(3, END, &get("/a"));
    let (asked, done) = ("0? #3 GET /a @x.example:81", "0= #3 GET /a @x.example:81");
    check(&[opening(&[long, vec![next]].concat())], &[asked, done, "! client http2.headers_too_long"]);
}

#[test]
fn resets_end_streams() {
    let reset = frame(kind::RST_STREAM, 0, 1, [0, 0, 0, 8]);
    check(
        &[
            opening(&[headers(1, 0, &get("/a")), data(1, 0, b"abc")]),
            answer(&[headers(1, 0, &[(":status", "200")]), reset.clone(), data(1, END, b"late"), reset]),
        ],
        &[ASKED, "0= #1 GET /a @x.example:81 [3:abc] -> 200"],
    );
}

#[test]
fn interim_responses_and_trailers() {
    let response = [
        headers(1, 0, &[(":status", "103"), ("link", "</b>")]),
        headers(1, 0, &[(":status", "200"), ("a", "1")]),
        data(1, 0, b"x"),
        headers(1, END, &[("b", "2")]),
    ];
    let steps = [opening(&[headers(1, END, &get("/a"))]), answer(&response)];
    check(&steps, &[ASKED, "0= #1 GET /a @x.example:81 -> 200  [1:x]"]);
    let out = run(&mut Http2::default(), &steps);
    let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
    let expected: [(&[u8], &[u8]); 2] = [(b"a", b"1"), (b"b", b"2")];
    assert_eq!(exchange.response.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn pushed_responses() {
    let mut promise = 2_u32.to_be_bytes().to_vec();
    promise.extend(fields(&get("/style")));
    let answer = answer(&[
        frame(kind::PUSH_PROMISE, END_HEADERS, 1, promise),
        headers(1, END, &[(":status", "200")]),
        headers(2, 0, &[(":status", "200")]),
        data(2, END, b"css"),
    ]);
    check(
        &[opening(&[headers(1, END, &get("/a"))]), answer],
        &[
            ASKED,
            "1? #2 GET /style @x.example:81",
            "0= #1 GET /a @x.example:81 -> 200",
            "1= #2 GET /style @x.example:81 -> 200  [3:css]",
        ],
    );
}

#[test]
fn grpc_calls() {
    let call = |content_type| {
        let mut list = get("/pkg.v1.Greeter/SayHello");
        (list[0], list[1]) = ((":method", "POST"), (":scheme", "http"));
        list.extend([("content-type", content_type), ("te", "trailers")]);
        opening(&[headers(1, 0, &list), data(1, END, b"\0\0\0\0\x03abc")])
    };
    let request = "#1 POST /pkg.v1.Greeter/SayHello @x.example:81";
    let body = "[8:\\x00\\x00\\x00\\x00\\x03abc]";
    let response = answer(&[
        headers(1, 0, &[(":status", "200"), ("content-type", "application/grpc+proto")]),
        data(1, 0, b"\0\0\0\0\x02hi"),
        headers(1, END, &[("grpc-status", "7"), ("grpc-message", "no")]),
    ]);
    let grpc = "grpc pkg.v1.Greeter SayHello";
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
        check(
            &[call(content_type), response.clone()],
            &[
                &format!("0? {request} {grpc} None"),
                &format!("0= {request} {body} -> 200  [7:\\x00\\x00\\x00\\x00\\x02hi] {grpc} Some(7)"),
            ],
        );
    }
    // A head that is trailers at once, and what is no gRPC.
    let only = answer(&[headers(1, END, &[(":status", "200"), ("grpc-status", "12")])]);
    let done = format!("0= {request} {body} -> 200  {grpc} Some(12)");
    check(&[call("application/grpc"), only.clone()], &[&format!("0? {request} {grpc} None"), &done]);
    let done = format!("0= {request} {body} -> 200");
    check(&[call("application/grpc-web"), only], &[&format!("0? {request}"), &done]);
}

#[test]
fn fields_that_are_odd() {
    let with = |more: &[(&'static str, &'static str)]| [&get("/a")[..], more].concat();
    for (list, odd) in [
        (with(&[("A", "1")]), "http2.bad_field_name"),
        (with(&[("a b", "1")]), "http2.bad_field_name"),
        (with(&[("a", "1\r\nb: 2")]), "http2.bad_field_value"),
        (with(&[("transfer-encoding", "chunked")]), "http2.connection_field"),
        (with(&[("a", "1"), (":path", "/b")]), "http2.bad_pseudo_field"),
        (with(&[(":path", "/b")]), "http2.bad_pseudo_field"),
        (with(&[(":what", "/b")]), "http2.bad_pseudo_field"),
        (with(&[("host", "y")]), "http.host_mismatch"),
        (with(&[("host", "x.example:81"), ("host", "x.example:81")]), "http.several_hosts"),
    ] {
        let odd = format!("! client {odd}");
        check(&[opening(&[headers(1, END, &list)])], &[ASKED, "0= #1 GET /a @x.example:81", &odd]);
    }
    let list = &get("/a")[1..];
    let out = run(&mut Http2::default(), &[opening(&[headers(1, END, list)])]);
    assert_eq!(talk::lines(&out), ["0? #1  /a @x.example:81", "! client http2.bad_pseudo_field"]);
    let out = run(&mut Http2::default(), &[opening(&[headers(2, END, &get("/a")), headers(0, END, &get("/a"))])]);
    assert_eq!(talk::lines(&out), ["! client http2.bad_stream"; 2]);
}

#[test]
fn what_unfolds_is_capped() {
    // A value of 4000 bytes enters the table once, and is told again and again by one byte each.
    let mut block = fields(&get("/a"));
    block.extend([0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
    block.extend(vec![b'v'; 127 + 33 + (30 << 7)]);
    block.extend(vec![0xbe; 10_000]);
    let out = run(&mut Http2::default(), &[opening(&[frame(kind::HEADERS, END | END_HEADERS, 1, block)])]);
    assert_eq!(talk::lines(&out), [ASKED, "! client http2.header_list_too_long"]);
    let Fact::Http(exchange) = &out.told[0].fact else { panic!() };
    assert_eq!(exchange.request.len(), HEAD_MAX / 4001);
    let many: Vec<_> = get("/a").into_iter().chain(vec![("a", ""); FIELDS_MAX + 1]).collect();
    let out = run(&mut Http2::default(), &[opening(&[headers(1, END, &many)])]);
    let Fact::Http(exchange) = &out.told[0].fact else { panic!() };
    assert_eq!(exchange.request.len(), FIELDS_MAX);
}

#[test]
fn streams_that_are_too_many_make_room() {
    let count = OPEN_STREAMS_MAX as u32 + 3;
    let frames: Vec<_> = (0..count).map(|n| headers(2 * n + 1, 0, &get("/a"))).collect();
    let mut parser = Http2::default();
    let out = run(&mut parser, &[opening(&frames)]);
    assert_eq!((parser.streams.len(), out.oddities.len()), (OPEN_STREAMS_MAX, 3));
    assert!(talk::lines(&out).contains(&"0= #1 GET /a @x.example:81".to_owned()));
    // Bodies count as well.
    let body = [vec![0; 4096].as_slice()].concat();
    let frames: Vec<_> = (0..count).map(|n| data(2 * n + 1, 0, &body)).collect();
    let out = run(&mut parser, &[c(frames.concat())]);
    assert!(
        parser.bytes <= STREAMS_BYTES_MAX && parser.memory() < STREAMS_BYTES_MAX + 16 * 1024,
        "{}",
        parser.memory()
    );
    assert!(out.oddities.iter().all(|(_, odd)| odd.0 == "http2.too_many_streams") && out.oddities.len() > 100);
    talk::assert_stages(&out);
}

#[test]
fn bodies_are_decoded() {
    let text = b"Lorem ipsum ".repeat(1000);
    let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    coder.write_all(&text).unwrap();
    let body = coder.finish().unwrap();
    let head = headers(1, 0, &[(":status", "200"), ("content-encoding", "gzip")]);
    let frames = [head, data(1, 0, &body[..9]), data(1, END | flag::PADDED, &[&[0], &body[9..]].concat())];
    let steps = [opening(&[headers(1, END, &get("/a"))]), answer(&frames)];
    let out = run_cut(&mut Http2::default(), &steps, |_| 7);
    let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
    assert_eq!((exchange.response_bytes, &exchange.response_body[..]), (body.len() as u64, &text[..BODY_MAX]));
}

#[test]
fn settings_bind_the_other_side() {
    // The server allows frames of 32 KiB, which the client then sends; the client allows none.
    let allow = frame(kind::SETTINGS, 0, 0, [0, 5, 0, 0, 0x80, 0, 0, 1, 0, 0, 0x20, 0]);
    let large = data(1, END, &[b'a'; 32 * 1024]);
    let steps = [
        s(allow),
        opening(&[headers(1, 0, &get("/a")), large.clone()]),
        s(headers(1, 0, &[(":status", "200")])),
        s(large),
    ];
    let out = run(&mut Http2::default(), &steps);
    assert_eq!(out.oddities, [(Side::Server, crate::packet::proto::Oddity("http2.frame_too_large"))]);
    let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
    assert_eq!((exchange.request_bytes, exchange.response_bytes), (32 * 1024, 32 * 1024));
    // A table of 8 KiB, which the server allowed and the client uses.
    let mut block = vec![0x3f, 0xe1, 0x3f];
    block.extend(fields(&get("/a")));
    let head = frame(kind::HEADERS, END | END_HEADERS, 1, &block);
    let allow = frame(kind::SETTINGS, 0, 0, [0, 1, 0, 0, 0x20, 0]);
    assert!(run(&mut Http2::default(), &[s(allow), opening(std::slice::from_ref(&head))]).oddities.is_empty());
    let out = run(&mut Http2::default(), &[opening(&[head])]);
    assert_eq!(talk::lines(&out)[1..], ["! client http2.bad_hpack"]);
}

#[test]
fn a_gap_in_data_is_passed_over_exactly() {
    let body = data(1, END | flag::PADDED, b"\x01hello world\0");
    let (front, back) = (&body[..9 + 4], &body[9 + 9..]);
    check(
        &[
            opening(&[headers(1, END, &get("/a"))]),
            answer(&[headers(1, 0, &[(":status", "200")]), front.to_vec()]),
            Step::Misses(Side::Server, 5),
            s([back.to_vec(), frame(kind::PING, 0, 0, [0; 8])].concat()),
            opening(&[]),
        ][..4],
        &[ASKED, "0= #1 GET /a @x.example:81 -> 200  [11:hel]"],
    );
}

#[test]
fn after_a_gap_the_next_frame_is_found_and_unknown_fields_left_out() {
    let entering = |value: &str| {
        let mut block = fields(&get("/a"));
        block.extend([0x40, 1, b'n', value.len() as u8]);
        block.extend(value.as_bytes());
        block
    };
    let first = frame(kind::HEADERS, END | END_HEADERS, 1, entering("1"));
    let missed = frame(kind::HEADERS, END | END_HEADERS, 3, entering("2"));
    // Refers to the newest entry, which was missed; then enters one, refers to it, and to the one before.
    let mut block = fields(&get("/b"));
    block.extend([0xbe, 0x7e, 1, b'3', 0x40, 1, b'm', 1, b'4', 0xbe, 0xbf]);
    let third = frame(kind::HEADERS, END | END_HEADERS, 5, block);
    let steps = [
        opening(&[first]),
        c(&missed[..20]),
        Step::Misses(Side::Client, missed.len() as u64 - 25),
        c([&missed[missed.len() - 5..], &third].concat()),
    ];
    check(
        &steps,
        &[
            ASKED,
            "1? #5 GET /b @x.example:81",
            "0= #1 GET /a @x.example:81",
            "1= #5 GET /b @x.example:81",
            "! client http2.gap",
            "! client http2.unknown_fields",
        ],
    );
    let out = run(&mut Http2::default(), &steps);
    let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
    let expected: [(&[u8], &[u8]); 2] = [(b"m", b"4"), (b"m", b"4")];
    assert_eq!(exchange.request.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn joining_in_the_middle() {
    let steps = [
        c([b"rest of a frame".to_vec(), headers(7, END, &get("/a"))].concat()),
        s([data(5, END, b"late"), headers(7, END, &[(":status", "200")])].concat()),
    ];
    check(
        &steps,
        &[
            "0? #7 GET /a @x.example:81",
            "0= #7 GET /a @x.example:81 -> 200",
            "! client http2.no_preface",
            "! server http2.no_preface",
        ],
    );
    // Only the server's side.
    check(
        &[s([headers(3, 0, &[(":status", "200")]), data(3, END, b"x")].concat())],
        &["0= #3   -> 200  [1:x]", "! server http2.no_preface"],
    );
}

#[test]
fn http_1_turns_into_http_2() {
    // With prior knowledge, though it was taken for HTTP/1 first.
    let mut steps = vec![
        opening(&[headers(1, END, &get("/a"))]),
        answer(&[headers(1, 0, &[(":status", "200")]), data(1, END, b"x")]),
    ];
    steps.extend(ends());
    talk::check::<Http1>(&steps, &[ASKED, "0= #1 GET /a @x.example:81 -> 200  [1:x]"]);
    assert_eq!(run(&mut Http1::default(), &steps).became, Some(crate::packet::proto::AppProto::Http2));
    // By an upgrade: the request is answered as the first stream.
    let request =
        "POST /u HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 2\r\n\r\nab";
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_vec();
    let answer = [frame(kind::SETTINGS, 0, 0, []), headers(1, 0, &[(":status", "200")]), data(1, END, b"hello")];
    let mut steps = vec![
        c(request),
        s([switch, answer.concat()].concat()),
        opening(&[headers(3, END, &get("/b"))]),
        s(headers(3, END, &[(":status", "404")])),
    ];
    steps.extend(ends());
    talk::check::<Http1>(
        &steps,
        &[
            "0? POST /u @x",
            "0= #1 POST /u @x [2:ab] -> 200  [5:hello]",
            "1? #3 GET /b @x.example:81",
            "1= #3 GET /b @x.example:81 -> 404",
        ],
    );
}

fn conversations() -> Vec<Vec<Step>> {
    let mut promise = 2_u32.to_be_bytes().to_vec();
    promise.extend(fields(&get("/style")));
    let block = fields(&get("/c"));
    let indexed = [0x82, 0x86, 0x84, 0x41, 1, b'h', 0x40, 1, b'k', 1, b'v', 0xbe];
    let grpc = [&get("/p.S/M")[..], &[("content-type", "application/grpc")]].concat();
    let mut all = vec![
        vec![
            opening(&[headers(1, END, &get("/a")), headers(3, 0, &grpc), data(3, END, b"\0\0\0\0\0")]),
            answer(&[
                headers(1, 0, &[(":status", "200"), ("content-encoding", "gzip")]),
                data(1, flag::PADDED, b"\x05not gzip at all\0\0\0\0\0"),
                frame(kind::PUSH_PROMISE, END_HEADERS, 1, promise),
                headers(3, 0, &[(":status", "200")]),
                data(1, END, b""),
                headers(3, END, &[("grpc-status", "0")]),
                headers(2, END, &[(":status", "304")]),
            ]),
        ],
        vec![
            opening(&[
                frame(kind::HEADERS, END, 1, &block[..8]),
                frame(kind::CONTINUATION, END_HEADERS, 1, &block[8..]),
                frame(kind::HEADERS, END | END_HEADERS, 3, indexed),
                frame(kind::HEADERS, END | END_HEADERS, 5, [0xbe, 0x82, 0xbf]),
                frame(kind::RST_STREAM, 0, 3, [0; 4]),
            ]),
            answer(&[frame(kind::GOAWAY, 0, 0, [0; 8]), frame(kind::HEADERS, END_HEADERS | END, 5, [0x88])]),
        ],
        vec![c(headers(9, END, &get("/mid"))), s(data(9, END, b"DATA")), s(frame(kind::WINDOW_UPDATE, 0, 0, [0; 4]))],
    ];
    all.iter_mut().for_each(|steps| steps.extend(ends()));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn cuts_do_not_matter(
        steps in prop::sample::select(conversations()),
        damages in prop::collection::vec(talk::damage(), 0..5),
        lens in prop::collection::vec(1..40_u16, 1..8),
    ) {
        talk::assert_cuts_do_not_matter::<Http2>(&talk::damaged(steps, &damages), &lens);
    }

    #[test]
    fn noise_is_survived(
        noise in prop::collection::vec(
            (any::<bool>(), 0..10_u8, any::<u8>(), 0..4_u32, prop::collection::vec(any::<u8>(), 0..60)),
            0..12,
        ),
        starts_right: bool,
        lens in prop::collection::vec(1..50_u16, 1..8),
    ) {
        let mut steps = if starts_right { vec![opening(&[]), answer(&[])] } else { vec![] };
        steps.extend(noise.into_iter().map(|(is_client, kind, flags, stream, payload)| {
            let bytes = if kind == 9 { payload } else { frame(kind, flags, stream, payload) };
            if is_client { c(bytes) } else { s(bytes) }
        }));
        steps.extend(ends());
        talk::assert_cuts_do_not_matter::<Http2>(&steps, &lens);
    }
}
