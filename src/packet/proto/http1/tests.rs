use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::packet::proto::http::talk::{self, Step, c, ends, run, run_cut, s};
use crate::packet::proto::http::{BODY_MAX, FIELDS_MAX, WIRE_MAX};

#[track_caller]
fn check(steps: &[Step], expected: &[&str]) {
    let mut steps = steps.to_vec();
    steps.extend(ends());
    talk::check::<Http1>(&steps, expected);
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: x.example\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn coded(coding: &str, text: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    match coding {
        "gzip" => {
            let mut to = flate2::write::GzEncoder::new(Vec::new(), level);
            to.write_all(text).unwrap();
            to.finish().unwrap()
        }
        "deflate" => {
            let mut to = flate2::write::ZlibEncoder::new(Vec::new(), level);
            to.write_all(text).unwrap();
            to.finish().unwrap()
        }
        "raw deflate" => {
            let mut to = flate2::write::DeflateEncoder::new(Vec::new(), level);
            to.write_all(text).unwrap();
            to.finish().unwrap()
        }
        "br" => {
            let mut coded = Vec::new();
            brotli::CompressorWriter::new(&mut coded, 4096, 5, 22).write_all(text).unwrap();
            coded
        }
        _ => text.to_vec(),
    }
}

fn response(fields: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn a_request_and_its_response() {
    check(&[c(GET), s(OK)], &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK [5:hello]"]);
}

#[test]
fn fields_are_kept_in_their_order() {
    let request = b"POST / HTTP/1.0\r\nHost: x\r\nX-A:  1 \r\nx-a:\r\nCookie: a=b\xffc\r\n\r\n";
    let out = run(&mut Http1::default(), &[c(request)]);
    let Fact::Http(exchange) = &out.told[0].fact else { panic!() };
    let fields: Vec<_> = exchange.request.iter().collect();
    let expected: [(&[u8], &[u8]); 4] = [(b"Host", b"x"), (b"X-A", b"1"), (b"x-a", b""), (b"Cookie", b"a=b\xffc")];
    assert_eq!(fields, expected);
    assert_eq!(exchange.version, Version::V10);
}

#[test]
fn requests_are_told_before_their_bodies() {
    let head = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n";
    let mut parser = Http1::default();
    let out = run(&mut parser, &[c(head)]);
    assert_eq!(talk::lines(&out), ["0? POST /a @x"]);
    let out = run(&mut parser, &[c("0123456789"), s("HTTP/1.1 204 No Content\r\n\r\n")]);
    assert_eq!(talk::lines(&out), ["0= POST /a @x [10:0123456789] -> 204 No Content"]);
}

#[test]
fn an_exchange_is_done_when_both_parts_are() {
    let steps = [
        c("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab"),
        s("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"),
        c("cd"),
        c(GET),
        s(OK),
    ];
    check(
        &steps,
        &[
            "0? POST /a @x",
            "0= POST /a @x [4:abcd] -> 413 Too Large",
            "1? GET /a @x.example",
            "1= GET /a @x.example -> 200 OK [5:hello]",
        ],
    );
}

#[test]
fn hosts() {
    for (request, host) in [
        ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n", "GET / @[2001:db8::1]:8080"),
        ("GET http://u@y:81/p HTTP/1.1\r\nHost: y:81\r\n\r\n", "GET http://u@y:81/p @y:81"),
        ("CONNECT z:443 HTTP/1.1\r\nHost: z:443\r\n\r\n", "CONNECT z:443 @z:443"),
        ("GET / HTTP/1.0\r\n\r\n", "GET /"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET /"),
    ] {
        check(&[c(request)], &[&format!("0? {host}"), &format!("0= {host}")]);
    }
    for (request, told, odd) in [
        ("GET / HTTP/1.1\r\n\r\n", "GET /", "http.no_host"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / @a", "http.several_hosts"),
        ("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", "GET http://a/ @a", "http.host_mismatch"),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", "GET / @a:b", "http.bad_host"),
    ] {
        check(&[c(request)], &[&format!("0? {told}"), &format!("0= {told}"), &format!("! client {odd}")]);
    }
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let requests =
        "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nHEAD /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\nHost: x\r\n\r\n";
    let responses = "HTTP/1.1 200 A\r\nContent-Length: 1\r\n\r\na\
                     HTTP/1.1 200 B\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 C\r\nContent-Length: 1\r\n\r\nc";
    check(
        &[c(requests), s(responses)],
        &[
            "0? GET /1 @x",
            "1? HEAD /2 @x",
            "2? GET /3 @x",
            "0= GET /1 @x -> 200 A [1:a]",
            "1= HEAD /2 @x -> 200 B",
            "2= GET /3 @x -> 200 C [1:c]",
        ],
    );
}

#[test]
fn more_requests_than_are_waited_for_do_not_shift_the_responses() {
    let many = PIPELINE_MAX + 10;
    let requests: String = (0..many).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    let responses: String = (0..many).map(|n| format!("HTTP/1.1 200 {n}\r\nContent-Length: 0\r\n\r\n")).collect();
    let last = [c("GET /last HTTP/1.1\r\nHost: x\r\n\r\n"), s("HTTP/1.1 200 last\r\nContent-Length: 0\r\n\r\n")];
    let mut parser = Http1::default();
    let out = run(&mut parser, &[c(requests), s(responses.clone()), last[0].clone(), last[1].clone()]);
    assert_eq!(out.oddities.len(), 10);
    talk::assert_stages(&out);
    let lines = talk::lines(&out);
    for n in 0..PIPELINE_MAX {
        assert!(lines.contains(&format!("{n}= GET /{n} @x -> 200 {n}")), "{n}");
    }
    assert!(lines.contains(&format!("{}= GET /last @x -> 200 last", 2 * many - PIPELINE_MAX)), "{lines:?}");
    // The same when a request comes while the surplus is not answered yet.
    let requests: String = (0..many).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    let (first, rest) = responses.split_at(responses.find("HTTP/1.1 200 5\r").unwrap());
    let out = run(&mut Http1::default(), &[c(requests), s(first), last[0].clone(), s(rest), last[1].clone()]);
    assert!(talk::lines(&out).iter().any(|line| line.ends_with("GET /last @x -> 200 last")), "{:?}", talk::lines(&out));
}

#[test]
fn chunked_bodies() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "5;a=\"b\"\r\nhello\r\n1  \r\n!\r\n000\r\nX-T: 1\r\nX-U: 2\r\n\r\n";
    let steps = [c(GET), s(format!("{head}{body}{OK}"))];
    check(&steps, &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK [6:hello!]", "1=   -> 200 OK [5:hello]"]);
    let out = run(&mut Http1::default(), &steps);
    let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
    let fields: Vec<_> = exchange.response.iter().collect();
    let expected: [(&[u8], &[u8]); 3] = [(b"Transfer-Encoding", b"chunked"), (b"X-T", b"1"), (b"X-U", b"2")];
    assert_eq!(fields, expected);
}

#[test]
fn chunks_that_are_none() {
    let head = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (body, start, odd) in [
        ("-5\r\nhello", "", "http.bad_chunk"),
        ("0x5\r\nhello", "", "http.bad_chunk"),
        ("fffffffffffffffff\r\nhello", "", "http.bad_chunk"),
        ("5\r\nhelloX\r\n", " [5:hello]", "http.bad_chunk"),
        ("5\nhello\r\n0\r\n\r\n", " [5:hello]", "http.bare_lf_in_chunk"),
        ("5\r\nhello\n0\r\n\r\n", " [5:hello]", "http.bare_lf_in_chunk"),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", " [5:hello]", "http.bad_chunk_extension"),
    ] {
        let done = format!("0= POST /a @x{start}");
        check(&[c(format!("{head}{body}"))], &["0? POST /a @x", &done, &format!("! client {odd}")]);
    }
}

#[test]
fn responses_without_a_body() {
    for (status, fields) in [(204, "Content-Length: 5\r\n"), (304, "Content-Length: 5\r\n"), (304, "")] {
        let first = format!("HTTP/1.1 {status} N\r\n{fields}\r\n");
        let done = format!("0= GET /a @x.example -> {status} N");
        let next = ["1? GET /a @x.example", "1= GET /a @x.example -> 200 OK [5:hello]"];
        check(&[c(GET), s(first), c(GET), s(OK)], &["0? GET /a @x.example", &done, next[0], next[1]]);
    }
}

#[test]
fn interim_responses_are_passed_over() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    check(
        &[c(GET), s(format!("{interim}{OK}"))],
        &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK [5:hello]"],
    );
}

#[test]
fn bodies_until_the_end() {
    check(
        &[c(GET), s("HTTP/1.0 200 OK\r\n\r\nhello\r\n\r\nHTTP/1.1 200 OK\r\n")],
        &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK [26:hello\\r\\n\\r\\nHTTP/1.1 200 OK\\r\\n]"],
    );
}

#[test]
fn http_0_9() {
    let asked = "0? GET /a";
    check(&[c("GET /a\r\n"), s("<html>\nx")], &[asked, "0= GET /a [8:<html>\\nx]"]);
    check(&[c("GET /a\r\n"), s("no line")], &[asked, "0= GET /a [7:no line]"]);
    let refused = "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n";
    check(&[c("GET /a\r\n"), s(refused)], &[asked, "0= GET /a -> 400 Bad"]);
}

#[test]
fn what_is_not_complete_is_told_at_the_end() {
    check(&[c("GET /a HTTP/1.1\r\nHost: x\r\nUser-Ag")], &["0= GET /a @x"]);
    check(&[c("GET /a HTT")], &[]);
    check(&[c(GET), s("HTTP/1.1 200 OK\r\nServ")], &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK"]);
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello";
    check(&[c(GET), s(half)], &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK [5:hello]"]);
}

#[test]
fn shapes_of_smuggling_are_told() {
    for (fields, odd) in [
        ("Content-Length: 0\r\nContent-Length: 1\r\n", "http.content_length_conflict"),
        ("Content-Length: 0\r\nContent-Length: 0\r\n", "http.content_length_repeated"),
        ("Content-Length: 0, 0\r\n", "http.content_length_repeated"),
        ("Content-Length: +0\r\n", "http.bad_content_length"),
        ("Content-Length: 0x0\r\n", "http.bad_content_length"),
        ("Content-Length: 99999999999999999999\r\n", "http.bad_content_length"),
        ("Content-Length: \r\n", "http.bad_content_length"),
        ("Transfer-Encoding: xchunked\r\n", "http.bad_transfer_encoding"),
        ("Transfer-Encoding: \u{b}chunked\r\n", "http.bad_field_value http.bad_transfer_encoding"),
        ("Transfer-Encoding: identity\r\n", "http.bad_transfer_encoding"),
        ("Transfer-Encoding: chunked, identity\r\n", "http.bad_transfer_encoding http.bad_transfer_encoding"),
        ("X: 1\r\n folded\r\n", "http.obs_fold"),
        ("X : 1\r\n", "http.space_around_field_name"),
        ("X\r\n", "http.field_without_colon"),
        ("X[: 1\r\n", "http.bad_field_name"),
        ("X: a\0b\r\n", "http.bad_field_value"),
        ("X: 1\n", "http.bare_lf"),
    ] {
        let mut expected = vec!["0? GET /a @x".to_owned(), "0= GET /a @x".to_owned()];
        expected.extend(odd.split(' ').map(|name| format!("! client {name}")));
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(&[c(format!("GET /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))], &expected);
    }
}

#[test]
fn chunked_wins_over_a_length() {
    let smuggled = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r\n";
    for (fields, odd) in [
        ("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "http.transfer_encoding_with_length"),
        ("Transfer-Encoding : chunked\r\n", "http.space_around_field_name"),
        ("Transfer-Encoding:\r\n chunked\r\n", "http.obs_fold"),
        ("transfer-encoding: CHUNKED\r\nTransfer-Encoding: chunked\r\n", ""),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n{smuggled}");
        let out = run(&mut Http1::default(), &[c(request)]);
        assert_eq!(talk::lines(&out)[..2], ["0? POST / @x", "1? GET /admin @x"], "{fields}");
        assert!(odd.is_empty() || out.oddities.iter().any(|(_, oddity)| oddity.0 == odd), "{fields} {out:?}");
    }
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    check(&[c(old)], &["0? POST /", "0= POST /", "! client http.transfer_encoding_in_http10"]);
}

#[test]
fn lenient_first_lines() {
    for (line, told, odd) in [
        ("GET  /a HTTP/1.1", "GET /a", "http.bad_spaces_in_request_line"),
        ("GET\t/a HTTP/1.1", "GET /a", "http.bad_spaces_in_request_line"),
        ("GET /a HTTP/1.1 ", "GET /a", "http.bad_spaces_in_request_line"),
        ("GET /a b HTTP/1.1", "GET /a b", "http.bad_target"),
        ("GET /a HTTP/1.9", "GET /a", "http.bad_version"),
    ] {
        let expected = [format!("0? {told} @x"), format!("0= {told} @x"), format!("! client {odd}")];
        check(&[c(format!("{line}\r\nHost: x\r\n\r\n"))], &expected.each_ref().map(String::as_str));
    }
    for line in ["GET", " GET / HTTP/1.1", "G(T / HTTP/1.1", "GET / HTTP/x", "\x16\x03\x01 / x", "POST /"] {
        check(&[c(format!("{line}\r\n"))], &["! client http.bad_request_line"]);
    }
    check(&[s("220 hello\r\n")], &["! server http.bad_status_line"]);
}

#[test]
fn codings_are_undone() {
    let text: Vec<u8> = b"The quick brown fox. ".repeat(50);
    for (field, codings) in [
        ("Content-Encoding: gzip\r\n", vec!["gzip"]),
        ("Content-Encoding: X-GZIP\r\n", vec!["gzip"]),
        ("Content-Encoding: deflate\r\n", vec!["deflate"]),
        ("Content-Encoding: deflate\r\n", vec!["raw deflate"]),
        ("Content-Encoding: br\r\n", vec!["br"]),
        ("Content-Encoding: identity\r\n", vec![]),
        ("Content-Encoding: gzip, br\r\n", vec!["gzip", "br"]),
        ("Content-Encoding: br\r\nContent-Encoding: deflate\r\n", vec!["br", "deflate"]),
    ] {
        let body = codings.iter().fold(text.clone(), |body, coding| coded(coding, &body));
        let out = run(&mut Http1::default(), &[c(GET), s(response(field, &body))]);
        let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
        assert_eq!(exchange.response_body, text, "{field}");
        assert_eq!(exchange.response_bytes, body.len() as u64);
        assert!(out.oddities.is_empty(), "{out:?}");
    }
    // Codings of the transfer lie over those of the content.
    let body = coded("gzip", &coded("br", &text));
    let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_vec();
    bytes.extend(format!("{:x}\r\n", body.len()).bytes().chain(body).chain(*b"\r\n0\r\n\r\n"));
    let out = run(&mut Http1::default(), &[c(GET), s(bytes)]);
    let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
    assert_eq!(exchange.response_body, text);
}

#[test]
fn what_cannot_be_undone_is_told_as_it_was_sent() {
    for (field, body, odd) in [
        ("Content-Encoding: zstd\r\n", &b"what"[..], None),
        ("Content-Encoding: gzip, gzip, gzip\r\n", b"what", Some("http.too_many_codings")),
        ("Content-Encoding: gzip\r\n", b"what is no gzip at all", Some("http.bad_coding")),
        ("Content-Encoding: br\r\n", b"\xff\xff\xff\xff\xff\xff", Some("http.bad_coding")),
    ] {
        let out = run(&mut Http1::default(), &[c(GET), s(response(field, body))]);
        let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
        assert_eq!(exchange.response_body, body, "{field}");
        assert_eq!(out.oddities.first().map(|(_, oddity)| oddity.0), odd, "{field}");
    }
}

#[test]
fn bombs_unfold_to_the_cap() {
    let zeros = vec![0; 64 << 20];
    for codings in [vec!["gzip"], vec!["deflate"], vec!["br"], vec!["gzip", "gzip"], vec!["br", "br"]] {
        let body = codings.iter().fold(zeros.clone(), |body, coding| coded(coding, &body));
        let field = format!("Content-Encoding: {}\r\n", codings.join(","));
        let out = run(&mut Http1::default(), &[c(GET), s(response(&field, &body))]);
        let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
        assert_eq!(exchange.response_body, [0; BODY_MAX], "{codings:?}");
        assert!(out.oddities.is_empty());
    }
}

#[test]
fn a_coded_body_that_is_cut_off_is_told_as_far_as_it_came() {
    let text: Vec<u8> = (0..3000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
    for coding in ["gzip", "deflate", "br"] {
        let body = coded(coding, &text);
        let sent = response(&format!("Content-Encoding: {coding}\r\n"), &body);
        let mut steps = vec![c(GET), s(&sent[..sent.len() - body.len() / 2])];
        steps.extend(ends());
        let out = run(&mut Http1::default(), &steps);
        let Fact::Http(exchange) = &out.told[1].fact else { panic!() };
        assert!(exchange.response_body.len() > 500 && text.starts_with(&exchange.response_body), "{coding}");
        assert!(out.oddities.is_empty(), "{out:?}");
    }
}

#[test]
fn long_bodies_cost_nothing_but_their_start() {
    let body: Vec<u8> = (0..1 << 20).map(|n| (n % 251) as u8).collect();
    let mut parser = Http1::default();
    let out = run_cut(&mut parser, &[c(GET), s(&response("", &body)[..1 << 19])], |left| left.min(1460));
    assert_eq!(out.told.len(), 1);
    assert!(parser.memory() < BODY_MAX * 2 + WIRE_MAX, "{}", parser.memory());
    let out = run(&mut parser, &[s(&response("", &body)[1 << 19..])]);
    let Fact::Http(exchange) = &out.told[0].fact else { panic!() };
    assert_eq!((exchange.response_bytes, &exchange.response_body[..]), (1 << 20, &body[..BODY_MAX]));
}

#[test]
fn caps_on_heads() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(HEAD_MAX));
    check(
        &[c(format!("{long}{GET}"))],
        &["0? GET /a @x.example", "0= GET /a @x.example", "! client http.head_too_long"],
    );
    let fields: String = (0..FIELDS_MAX + 5).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let request = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: 2\r\n\r\nab");
    check(&[c(&request)], &["0? POST / @x", "0= POST / @x [2:ab]", "! client http.too_many_fields"]);
    let out = run(&mut Http1::default(), &[c(&request)]);
    let Fact::Http(exchange) = &out.told[0].fact else { panic!() };
    assert_eq!(exchange.request.len(), FIELDS_MAX);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
    let trailers = format!("{chunked}X: {}\r\n\r\n", "a".repeat(HEAD_MAX));
    check(
        &[c(GET), s(trailers)],
        &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK", "! server http.trailers_too_long"],
    );
}

#[test]
fn a_gap_in_a_body_is_passed_over_exactly() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
    let steps = [c(GET), s(format!("{head}abc")), Step::Misses(Side::Server, 5), s(format!("ij{OK}"))];
    check(&steps, &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK [10:abc]", "1=   -> 200 OK [5:hello]"]);
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nabc";
    let steps = [c(GET), s(chunked), Step::Misses(Side::Server, 6), s("j\r\n0\r\n\r\n")];
    check(&steps, &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK [10:abc]"]);
}

#[test]
fn a_gap_elsewhere_is_told_and_the_next_message_found() {
    let odd = "! client http.gap";
    let second = "GET /b HTTP/1.1\r\nHost: y\r\n\r\n";
    let rest = ["0? GET /b @y", "0= GET /b @y"];
    let half = c("GET /a HTTP/1.1\r\nHo");
    let gap = Step::Misses(Side::Client, 7);
    // At once, behind the rest of a head, and behind a body that holds lines.
    check(&[half.clone(), gap.clone(), c(second)], &[rest[0], rest[1], odd]);
    check(
        &[half.clone(), gap.clone(), c(format!("mple\r\nX: GET /c HTTP/1.1\r\n\r\n{second}"))],
        &[rest[0], rest[1], odd],
    );
    check(&[half, gap, c(format!("GET nothing\r\nPOST\r\nHTTP/1.1 200 OK\r\n{second}"))], &[rest[0], rest[1], odd]);
}

#[test]
fn a_response_that_was_lost_does_not_shift_the_others() {
    let get = |n| c(format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let steps = [get(0), s(OK), get(1), Step::Misses(Side::Server, 43), get(2), s(OK)];
    check(
        &steps,
        &[
            "0? GET /0 @x",
            "0= GET /0 @x -> 200 OK [5:hello]",
            "1? GET /1 @x",
            "1= GET /1 @x",
            "2? GET /2 @x",
            "2= GET /2 @x -> 200 OK [5:hello]",
            "! server http.gap",
        ],
    );
}

#[test]
fn sides_that_were_mixed_up() {
    let steps = [Step::Says(Side::Server, GET.into()), Step::Says(Side::Client, OK.into())];
    check(&steps, &["0? GET /a @x.example", "0= GET /a @x.example -> 200 OK [5:hello]"]);
    let steps = [Step::Says(Side::Client, OK.into()), Step::Says(Side::Server, format!("{GET}\u{0}\n").into())];
    check(
        &steps,
        &["0=   -> 200 OK [5:hello]", "1? GET /a @x.example", "1= GET /a @x.example", "! server http.bad_request_line"],
    );
    // In the middle of a body.
    let gap = Step::Misses(Side::Client, 1);
    let steps = [gap, c(format!("...\r\n{OK}")), s(GET)];
    check(&steps, &["0=   -> 200 OK [5:hello]", "1? GET /a @x.example", "1= GET /a @x.example", "! client http.gap"]);
}

#[test]
fn a_websocket_is_opaque() {
    let request = "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x01\x02GET / HTTP/1.1\r\n\r\n";
    check(
        &[c(request), s(answer), c("\0\n\0GET / HTTP/1.1\r\n\r\n"), Step::Misses(Side::Client, 9)],
        &["0? GET /chat @x", "0= GET /chat @x -> 101 Switching Protocols"],
    );
}

#[test]
fn tunnels() {
    let connect = "CONNECT y:25 HTTP/1.1\r\nHost: y:25\r\n\r\n";
    let asked = "0? CONNECT y:25 @y:25";
    let granted = "HTTP/1.1 200 Go\r\nContent-Length: 3\r\n\r\n";
    check(
        &[c(connect), s(format!("{granted}220 y\r\n")), c("EHLO x\r\n")],
        &[asked, "0= CONNECT y:25 @y:25 -> 200 Go"],
    );
    // One that is refused is an exchange like others.
    let refused = "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno";
    let next = ["1? GET /a @x.example", "1= GET /a @x.example -> 200 OK [5:hello]"];
    let done = "0= CONNECT y:25 @y:25 -> 403 No [2:no]";
    check(&[c(connect), s(refused), c(GET), s(OK)], &[asked, done, next[0], next[1]]);
    // A client that does not wait, and is refused.
    let hello = "\x16\x03\x01\0\x05hello";
    check(&[c(connect), c(hello), s(refused), c(format!("\n{GET}")), s(OK)], &[asked, done, next[0], next[1]]);
}

#[test]
fn a_head_byte_by_byte_is_not_searched_from_its_start_each_time() {
    // Quadratic, this would look at 32 GiB.
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "a\r\nb: ".repeat(HEAD_MAX / 7));
    let start = std::time::Instant::now();
    for _ in 0..16 {
        let out = run_cut(&mut Http1::default(), &[c(&request)], |_| 1);
        assert!(out.told.is_empty() && out.oddities.is_empty());
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

/// What lines say is what httparse says, where it says something.
#[test]
fn both_readings_of_a_head_agree() {
    let part = "[ -~]{0,12}|[ -~\t\r\n\u{80}]{0,6}";
    let head = (part, prop::collection::vec((part, part), 0..5));
    let config = ProptestConfig::with_cases(4000);
    proptest!(config, |((target, fields) in head, is_response: bool)| {
        let start = if is_response { format!("HTTP/1.1 200 {target}") } else { format!("GET /{target} HTTP/1.1") };
        let fields: String = fields.iter().map(|(name, value)| format!("{name}:{value}\r\n")).collect();
        let text = format!("{start}\r\n{fields}\r\n");
        let mut odd = Oddities::new();
        let (mut search, mut len) = (EndSearch::default(), 0);
        while let Some((line, is_empty)) = search.next_line(&text.as_bytes()[len..]) {
            len += line;
            if is_empty { break; }
        }
        let head = &text.as_bytes()[..len];
        let fast = head::parse(head, is_response, &mut odd);
        if odd.is_empty() {
            let mut lenient = Oddities::new();
            let by_lines = head::by_lines(head, is_response, &mut lenient);
            prop_assert!(lenient.is_empty(), "{:?}", lenient);
            let pair = |parsed: Option<(Start<'_>, head::Fields)>| parsed.map(|(start, fields)| (format!("{start:?}"), fields.headers));
            prop_assert_eq!(pair(fast), pair(by_lines));
        }
    });
}

/// Conversations to cut and to damage.
fn conversations() -> Vec<Vec<Step>> {
    let text = b"Lorem ipsum dolor sit amet. ".repeat(40);
    let post = "POST /p HTTP/1.1\r\nHost: x:80\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: 1\r\n\r\n";
    let h2c = "GET /u HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    let switch = b"HTTP/1.1 101 S\r\nUpgrade: h2c\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x01\x88";
    let mut all = vec![
        vec![c(GET), s(OK), c(GET), s(response("Content-Encoding: gzip\r\n", &coded("gzip", &text)))],
        vec![
            c(format!("{GET}{post}{GET}")),
            s("HTTP/1.1 100 C\r\n\r\n"),
            s(format!("{OK}{OK}")),
            s("HTTP/1.0 200 OK\r\n\r\nrest"),
        ],
        vec![c("GET /\n"), s("simple")],
        vec![c(h2c), s(switch), c("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")],
        vec![
            c("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
            c("\x16\x03\x01abc"),
            s("HTTP/1.1 200 OK\r\n\r\n\x16\x03\x01def"),
        ],
        vec![s(GET), c(format!("{OK}{OK}"))],
        vec![
            c("GET / HTTP/1.1\nHost : a\n b\nContent-Length: 3\nContent-Length: 4\n\nabcd"),
            s("HTTP/1.1 304 N\r\n\r\n"),
        ],
        vec![c(format!("POST / HTTP/1.0\r\nContent-Length: 200\r\n\r\n{}", "x\n".repeat(100))), s(OK)],
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
        lens in prop::collection::vec(1..80_u16, 1..8),
    ) {
        talk::assert_cuts_do_not_matter::<Http1>(&talk::damaged(steps, &damages), &lens);
    }

    #[test]
    fn noise_is_survived(
        noise in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..200)), 0..8),
        lens in prop::collection::vec(1..50_u16, 1..8),
    ) {
        let mut steps: Vec<Step> = noise.into_iter().map(|(is_client, bytes)| if is_client { c(bytes) } else { s(bytes) }).collect();
        steps.extend(ends());
        talk::assert_cuts_do_not_matter::<Http1>(&steps, &lens);
    }
}
