//! A request's head: read strictly, written anew.
//!
//! Whatever two parsers could read in two ways is refused. What goes on to tiny_http is not the client's text but a head
//! written here, with only the header fields that somebody behind uses, so that nothing of the client's can be taken for
//! ours (`x-agent-...`) or change the framing.

use std::borrow::Cow;

use super::hosts::Hosts;
use super::peer::Peer;
use super::{CERT_HEADER, GID_HEADER, Kind, LISTENER_HEADER, PEER_HEADER, STREAM_HEADER, UID_HEADER};
use crate::api::percent_encode;

/// More header fields than any client of ours sends.
const HEADERS_MAX: usize = 64;

/// The client's header fields that go on. One of each.
const RELAYED: [&str; 6] = ["accept", "authorization", "content-type", "last-event-id", "user-agent", "x-api-key"];

/// What all header fields begin with that the front and what is behind it have among themselves.
const OWN_PREFIX: &str = "x-agent-";

/// Why a request is refused: what the client reads and what the metric counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: Cow<'static, str>,
    /// Label of `ebpfsentinel_http_refused_total`.
    pub reason: &'static str,
    /// Seconds after which it may go well.
    pub retry_after_s: Option<u64>,
}

impl Refusal {
    pub const fn new(status: u16, code: &'static str, reason: &'static str, message: &'static str) -> Refusal {
        Refusal { status, code, message: Cow::Borrowed(message), reason, retry_after_s: None }
    }

    const fn malformed(message: &'static str) -> Refusal {
        Refusal::new(400, "BAD_REQUEST", "malformed", message)
    }

    const fn framing(message: &'static str) -> Refusal {
        Refusal::new(400, "BAD_REQUEST", "framing", message)
    }
}

/// How the body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(usize),
    Chunked,
}

/// What is kept of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub method: String,
    pub target: String,
    pub framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The client asks for the connection to stay open for its next request.
    pub keep_alive: bool,
    relayed: Vec<(&'static str, String)>,
}

/// Reads a head from the start of `bytes`: the head and its length, or `None` while it is incomplete.
pub fn parse(bytes: &[u8], hosts: &Hosts, body_max: usize) -> Result<Option<(Head, usize)>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new(431, "HEADERS_TOO_LARGE", "head_too_large", "too many header fields"));
        }
        Err(httparse::Error::Version) => {
            return Err(Refusal::new(
                505,
                "VERSION_NOT_SUPPORTED",
                "malformed",
                "only HTTP/1.0 and 1.1 are spoken here",
            ));
        }
        Err(_) => return Err(Refusal::malformed("this is not an HTTP request")),
    };
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Refusal::malformed("this is not an HTTP request"));
    };
    // The absolute form is for proxies; read by two parsers, its host and the Host field could disagree.
    if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(Refusal::malformed("the request target must be a path that begins with /"));
    }
    let fields = Fields(request.headers);
    check_names(&fields, hosts)?;
    let expects_continue = match fields.one("expect")? {
        None => false,
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => minor == 1,
        Some(_) => return Err(Refusal::new(417, "EXPECTATION_FAILED", "malformed", "only 100-continue is known here")),
    };
    let framing = framing(&fields, minor, body_max)?;
    let mut relayed = Vec::new();
    for name in RELAYED {
        if let Some(value) = fields.text(name)? {
            relayed.push((name, value.to_owned()));
        }
    }
    let (method, target) = (method.to_owned(), target.to_owned());
    let keep_alive = minor == 1 && fields.asks_to_keep_alive();
    Ok(Some((Head { method, target, framing, expects_continue, keep_alive, relayed }, length)))
}

/// Who sent a request, as far as the connection tells.
#[derive(Clone, Debug)]
pub struct Sender {
    pub kind: Kind,
    pub peer: Peer,
    /// The verified client certificate: its SHA-256 in hexadecimal, and the subject's common name if it has a plain one.
    pub certificate: Option<String>,
}

fn check_names(fields: &Fields, hosts: &Hosts) -> Result<(), Refusal> {
    let host = match fields.text("host")? {
        None => return Err(Refusal::new(400, "BAD_REQUEST", "host", "a Host header field is required")),
        Some(host) => host,
    };
    if !hosts.allows(host) {
        let message = "Host is not a name of this host; names beside its own stand in agent.host_names";
        return Err(Refusal::new(421, "MISDIRECTED_REQUEST", "host", message));
    }
    // A browser sends Origin with everything that could change state. No other origin has business here, not even
    // another port of this host.
    if let Some(origin) = fields.text("origin")? {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host)) {
            let message = "requests from web pages of another origin are refused";
            return Err(Refusal::new(403, "FORBIDDEN_ORIGIN", "origin", message));
        }
    }
    Ok(())
}

fn framing(fields: &Fields, minor: u8, body_max: usize) -> Result<Framing, Refusal> {
    let length = fields.one("content-length").map_err(|_| Refusal::framing("Content-Length is given twice"))?;
    let coding = fields.one("transfer-encoding").map_err(|_| Refusal::framing("Transfer-Encoding is given twice"))?;
    match (length, coding) {
        (Some(_), Some(_)) => Err(Refusal::framing("Content-Length and Transfer-Encoding exclude each other")),
        (None, None) => Ok(Framing::Length(0)),
        (None, Some(coding)) if minor == 1 && coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (None, Some(_)) => Err(Refusal::framing("the only Transfer-Encoding is chunked, and only in HTTP/1.1")),
        (Some(length), None) => {
            if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
                return Err(Refusal::framing("Content-Length is not a number"));
            }
            // All digits and not a usize means larger than any limit.
            let length = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
            if length > body_max { Err(body_too_large()) } else { Ok(Framing::Length(length)) }
        }
    }
}

/// 413.
pub fn body_too_large() -> Refusal {
    Refusal::new(413, "BODY_TOO_LARGE", "body_too_large", "the body is larger than the limit")
}

impl Head {
    /// A head of which only the method is known.
    pub fn of_method(method: &str) -> Head {
        Head {
            method: method.to_owned(),
            target: String::new(),
            framing: Framing::Length(0),
            expects_continue: false,
            keep_alive: false,
            relayed: Vec::new(),
        }
    }

    /// The head as tiny_http reads it, for a body of `body_length` bytes.
    pub fn rewrite(&self, sender: &Sender, body_length: usize) -> Vec<u8> {
        let Head { method, target, .. } = self;
        let mut text = format!("{method} {target} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n");
        text += &format!("content-length: {body_length}\r\n{LISTENER_HEADER}: {}\r\n", sender.kind.name());
        text += &match sender.peer {
            Peer::Net(address) => format!("{PEER_HEADER}: {address}\r\n"),
            Peer::Local { uid, gid } => format!("{UID_HEADER}: {uid}\r\n{GID_HEADER}: {gid}\r\n"),
        };
        if let Some(certificate) = &sender.certificate {
            text += &format!("{CERT_HEADER}: ");
            // Whoever reads a field takes blanks from its ends, and a name may end with one.
            let (fingerprint, name) = certificate.split_once(' ').unwrap_or((certificate.as_str(), ""));
            text += fingerprint;
            if !name.is_empty() {
                text.push(' ');
                percent_encode(name, &mut text);
            }
            text += "\r\n";
        }
        for (name, value) in &self.relayed {
            text += &format!("{name}: {value}\r\n");
        }
        text += "\r\n";
        text.into_bytes()
    }
}

/// The head of an answer, read.
#[derive(Debug, PartialEq, Eq)]
pub struct AnswerHead {
    status: u16,
    /// Its lines but those that are the front's affair.
    lines: Vec<String>,
    length: Option<usize>,
    /// Whether it goes on without an end in sight.
    pub stream: bool,
}

impl AnswerHead {
    /// Reads the head without its last, empty line. It is ours, so only what is used is looked at.
    pub fn read(head: &[u8]) -> AnswerHead {
        let text = String::from_utf8_lossy(head);
        let mut answer = AnswerHead {
            status: text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0),
            lines: Vec::new(),
            length: None,
            stream: false,
        };
        for (number, line) in text.split("\r\n").enumerate() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let name = name.to_ascii_lowercase();
            match name.as_str() {
                STREAM_HEADER => answer.stream = true,
                "content-length" => answer.length = value.trim().parse().ok(),
                _ => {}
            }
            if number == 0 || !(name.starts_with(OWN_PREFIX) || name == "connection") {
                answer.lines.push(line.to_owned());
            }
        }
        answer
    }

    /// Length of the body that follows, when the connection can go on after it.
    pub fn body_length(&self, method: &str) -> Option<usize> {
        match (method, self.status) {
            _ if self.stream => None,
            (_, 0..=199) => None,
            ("HEAD", _) | (_, 204 | 304) => Some(0),
            _ => self.length,
        }
    }

    /// The head as the client gets it.
    pub fn write(&self, keep: bool) -> Vec<u8> {
        let (first, rest) = self.lines.split_first().map_or(("", &[] as &[String]), |(first, rest)| (first, rest));
        let connection = if keep { "keep-alive" } else { "close" };
        let mut text = format!("{first}\r\nconnection: {connection}\r\n");
        rest.iter().for_each(|line| text += &format!("{line}\r\n"));
        text += "\r\n";
        text.into_bytes()
    }
}

/// The client's header fields.
struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    /// The value of a field that may stand once.
    fn one(&self, name: &str) -> Result<Option<&'a [u8]>, Refusal> {
        let mut values = self.0.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        let value = values.next().map(|field| field.value.trim_ascii());
        match values.next() {
            None => Ok(value),
            Some(_) => {
                let message = format!("the header field {name} is given twice");
                Err(Refusal { message: message.into(), ..Refusal::malformed("") })
            }
        }
    }

    /// Whether the connection is to stay. The field may be a list; given twice it is not believed.
    fn asks_to_keep_alive(&self) -> bool {
        let Ok(Some(value)) = self.one("connection") else { return false };
        let is =
            |word: &str| value.split(|b| *b == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(word.as_bytes()));
        is("keep-alive") && !is("close")
    }

    /// The same, as text: tiny_http drops a connection with other bytes in its head, without an answer.
    fn text(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        let Some(value) = self.one(name)? else { return Ok(None) };
        if value.iter().any(|b| !matches!(b, b' '..=b'~' | b'\t')) {
            let message = format!("the header field {name} holds bytes that are not ASCII text");
            return Err(Refusal { message: message.into(), ..Refusal::malformed("") });
        }
        Ok(std::str::from_utf8(value).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<(Head, usize)>, Refusal> {
        parse(text.as_bytes(), &Hosts::new(&[]), 1000)
    }

    #[test]
    fn refused_heads() {
        let check = |line: &str, fields: &str, want: (u16, &str)| {
            let fields = fields.replace('|', "\r\n");
            let got = read(&format!("{line}\r\n{fields}\r\n\r\n")).expect_err(&fields);
            assert_eq!((got.status, got.reason), want, "{line} {fields}");
        };
        let get = "GET / HTTP/1.1";
        check(get, "a: b", (400, "host"));
        check(get, "Host: localhost|Host: localhost", (400, "malformed"));
        check(get, "Host: evil.example", (421, "host"));
        check(get, "Host: localhost|Origin: http://evil.example", (403, "origin"));
        check(get, "Host: 198.51.100.7|Origin: http://evil.example", (403, "origin"));
        check(get, "Host: localhost|Origin: null", (403, "origin"));
        check(get, "Host: localhost:8080|Origin: http://localhost:3000", (403, "origin"));
        check(get, "Host: localhost|Content-Length: 3|Content-Length: 3", (400, "framing"));
        check(get, "Host: localhost|Content-Length: 3|Transfer-Encoding: chunked", (400, "framing"));
        check(get, "Host: localhost|Transfer-Encoding: chunked|Transfer-Encoding: chunked", (400, "framing"));
        check(get, "Host: localhost|Transfer-Encoding: gzip, chunked", (400, "framing"));
        check(get, "Host: localhost|Transfer-Encoding: identity", (400, "framing"));
        check("GET / HTTP/1.0", "Host: localhost|Transfer-Encoding: chunked", (400, "framing"));
        for length in ["+3", "-1", "0x3", "3 3", "3,3", "", "three"] {
            check(get, &format!("Host: localhost|Content-Length: {length}"), (400, "framing"));
        }
        check(get, "Host: localhost|Content-Length: 1001", (413, "body_too_large"));
        check(get, "Host: localhost|Content-Length: 99999999999999999999999", (413, "body_too_large"));
        check(get, "Host: localhost|Expect: a miracle", (417, "malformed"));
        check(get, "Host: localhost|Authorization: ä", (400, "malformed"));
        check(get, "Host : localhost", (400, "malformed"));
        check(get, "Host: localhost| folded", (400, "malformed"));
        check(get, &format!("Host: localhost{}", "|a: b".repeat(64)), (431, "head_too_large"));
        check("GET http://localhost/ HTTP/1.1", "Host: localhost", (400, "malformed"));
        check("GET * HTTP/1.1", "Host: localhost", (400, "malformed"));
        check("GET /a#b HTTP/1.1", "Host: localhost", (400, "malformed"));
        check("GET / HTTP/2.0", "Host: localhost", (505, "malformed"));
        check("GE\u{1}T / HTTP/1.1", "Host: localhost", (400, "malformed"));
        check("\u{16}\u{3}\u{1}", "", (400, "malformed"));
    }

    #[test]
    fn an_answer_is_written_anew() {
        let check = |head: &str, keep: bool, want: &str, stream: bool, length: Option<usize>| {
            let answer = AnswerHead::read(head.replace('|', "\r\n").as_bytes());
            let written = String::from_utf8(answer.write(keep)).unwrap();
            assert_eq!(written, want.replace('|', "\r\n") + "\r\n\r\n");
            assert_eq!((answer.stream, answer.body_length("GET")), (stream, length), "{head}");
        };
        let ok = "HTTP/1.1 200 OK";
        check(
            &format!("{ok}|Connection: keep-alive|Content-Length: 3"),
            false,
            &format!("{ok}|connection: close|Content-Length: 3"),
            false,
            Some(3),
        );
        check(
            &format!("{ok}|X-Agent-Stream: 1|a: b|x-agent-other: 2"),
            false,
            &format!("{ok}|connection: close|a: b"),
            true,
            None,
        );
        check(ok, true, &format!("{ok}|connection: keep-alive"), false, None);
        let none = "HTTP/1.1 204 No Content";
        check(none, true, &format!("{none}|connection: keep-alive"), false, Some(0));
        assert_eq!(AnswerHead::read(b"HTTP/1.1 200 OK\r\ncontent-length: 9").body_length("HEAD"), Some(0));
    }

    #[test]
    fn who_asks_to_keep_the_connection() {
        let check = |line: &str, field: &str, want: bool| {
            let (head, _) = read(&format!("{line}\r\nHost: localhost\r\n{field}\r\n\r\n")).unwrap().unwrap();
            assert_eq!(head.keep_alive, want, "{line} {field}");
        };
        check("GET / HTTP/1.1", "Connection: Keep-Alive", true);
        check("GET / HTTP/1.1", "Connection: TE, keep-alive", true);
        check("GET / HTTP/1.1", "a: b", false);
        check("GET / HTTP/1.1", "Connection: keep-alive, close", false);
        check("GET / HTTP/1.1", "Connection: keep-alive\r\nConnection: keep-alive", false);
        check("GET / HTTP/1.0", "Connection: keep-alive", false);
    }

    #[test]
    fn a_head_is_written_anew() {
        let text = "POST /a?b=c HTTP/1.1\r\nHost: localhost:1\r\nX-Agent-Peer: 6.6.6.6:6\r\nx-agent-listener: metrics\r\n\
                    Connection: keep-alive, upgrade\r\nX-Agent-Uid: 0\r\nX-Agent-Cert: x\r\nTE: trailers\r\nAuthorization: Bearer x\r\nContent-Length: 003\r\n\
                    Expect: 100-Continue\r\nOrigin: http://LOCALHOST:1\r\nX-Bytes: ä\r\n\r\nabc";
        let (head, length) = read(text).unwrap().unwrap();
        assert_eq!((head.framing, head.expects_continue, length), (Framing::Length(3), true, text.len() - 3));
        let written = |kind, peer, certificate: Option<&str>| {
            let sender = Sender { kind, peer, certificate: certificate.map(str::to_owned) };
            String::from_utf8(head.rewrite(&sender, 3)).unwrap()
        };
        let check = |got: String, ours: &str| {
            let want = "POST /a?b=c HTTP/1.1|host: agent|connection: close|content-length: 3|";
            assert_eq!(got, format!("{want}{ours}authorization: Bearer x||").replace('|', "\r\n"));
        };
        let net = Peer::Net("192.0.2.1:5".parse().unwrap());
        check(written(Kind::Rest, net, None), "x-agent-listener: rest|x-agent-peer: 192.0.2.1:5|");
        check(
            written(Kind::Rest, net, Some("ab12 some name")),
            "x-agent-listener: rest|x-agent-peer: 192.0.2.1:5|x-agent-cert: ab12 some%20name|",
        );
        let local = Peer::Local { uid: 1, gid: 2 };
        check(written(Kind::Unix, local, None), "x-agent-listener: unix|x-agent-uid: 1|x-agent-gid: 2|");
        for cut in [1, 40, length - 1] {
            assert_eq!(read(&text[..cut]), Ok(None), "{cut}");
        }
    }
}
