//! HTTP/1.1, 1.0 and 0.9 (RFC 9112): requests and responses of one connection, paired by their order.
//!
//! Each side is a small machine ([`half`]) that turns bytes into heads and bodies; this file pairs them. A head that lies
//! whole in the bytes given is read where it lies. What two receivers could read differently is told as an oddity, and read
//! as the common servers do. A side that lost its place (bytes missing in a head, a first line that is none) looks for the
//! next line that is the start of a message beyond doubt.
//!
//! Who is client and who is server is settled by the first line of the conversation, not by who opened it: a capture that
//! starts in the middle may have taken one for the other.

mod chunks;
mod half;
mod head;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use self::half::{Half, State};
use self::head::{EndSearch, Framing, Oddities, Start, Upgrade};
use super::http::body::Body;
use super::http::{Exchange, HEAD_MAX, Version, target};
use super::http2::Http2;
use super::{AppProto, Fact, Out, Parser, Side, Stage, parser_for};

/// Requests that wait for their response. Clients that pipeline send a handful.
pub const PIPELINE_MAX: usize = 64;
/// Bytes of all requests that wait for their response; past it further ones are told, and not waited for.
pub const PENDING_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a line in which a side that lost its place recognises a message.
const SEEK_LINE_MAX: usize = 8 * 1024;

/// A parser of one connection.
#[derive(Default)]
pub struct Http1 {
    halves: [Half; 2],
    /// What was told as asked and is not done, in the order of the requests.
    pending: VecDeque<Pending>,
    /// Bytes of `pending`.
    pending_bytes: usize,
    /// Requests behind the last of `pending` that are not waited for.
    untracked: u32,
    next_tx: u32,
    /// Which side is which is known.
    is_settled: bool,
    /// The flow's client is the server here.
    is_swapped: bool,
    /// The protocol that the connection went on in.
    inner: Option<Inner>,
}

/// An exchange that is not done.
struct Pending {
    tx: u32,
    exchange: Arc<Exchange>,
    bytes: usize,
    /// Requests in front of it that were too many to be waited for: as many responses are not its own.
    untracked_before: u32,
    is_request_done: bool,
    is_response_done: bool,
}

/// A parser inside.
struct Inner {
    parser: Box<dyn Parser>,
    /// Number of its first transaction.
    base_tx: u32,
}

impl Parser for Http1 {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        self.with_roles(side, out, |parser, role, out| parser.run(role, bytes, out));
    }

    fn skip(&mut self, side: Side, missing: u64, out: &mut Out) {
        self.with_roles(side, out, |parser, role, out| parser.jump(role, missing, out));
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        self.with_roles(side, out, |parser, role, out| parser.close(role, out));
    }

    fn memory(&self) -> usize {
        let halves: usize = self.halves.iter().map(Half::memory).sum();
        let pending = self.pending.capacity() * size_of::<Pending>() + self.pending_bytes;
        size_of::<Http1>() + halves + pending + self.inner.as_ref().map_or(0, |inner| inner.parser.memory())
    }
}

impl Http1 {
    /// Runs something in terms of who asks and who answers.
    fn with_roles(&mut self, side: Side, out: &mut Out, run: impl FnOnce(&mut Http1, Side, &mut Out)) {
        let role = self.turned(side);
        run(self, role, out);
    }

    /// The role of a side, or the side of a role.
    fn turned(&self, side: Side) -> Side {
        if self.is_swapped { side.other() } else { side }
    }

    fn odd(&self, role: Side, name: &'static str, out: &mut Out) {
        out.odd(self.turned(role), name);
    }

    fn half(&mut self, role: Side) -> &mut Half {
        &mut self.halves[role as usize]
    }

    fn run(&mut self, mut role: Side, mut bytes: &[u8], out: &mut Out) {
        while !bytes.is_empty() {
            bytes = match self.half(role).state {
                State::Start => self.on_start(role, bytes, out),
                State::Head => self.on_head(&mut role, bytes, out),
                State::Length(left) => self.on_length(role, left, bytes, out),
                State::UntilClose => {
                    self.half(role).body.take(bytes);
                    &[]
                }
                State::Chunked => self.on_chunked(role, bytes, out),
                State::Trailers => self.on_trailers(role, bytes, out),
                State::Lost => self.on_lost(&mut role, bytes),
                State::TunnelStart => {
                    self.open_tunnel(bytes[0], out);
                    bytes
                }
                State::Tunnel => {
                    self.within(out, |inner, out| inner.take(role, bytes, out));
                    &[]
                }
            };
        }
    }

    /// Where a message may start. Empty lines in front of it are allowed (RFC 9112, 2.2).
    fn on_start<'a>(&mut self, role: Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let Some(first) = bytes.iter().position(|b| !b"\r\n".contains(b)) else {
            return &[];
        };
        // A client that does not wait for the answer to its CONNECT: nothing of HTTP starts with this byte.
        let is_hasty = role == Side::Client && bytes[first] == TLS_HANDSHAKE;
        if is_hasty && self.pending.back().is_some_and(|last| last.exchange.method == b"CONNECT") {
            self.half(role).state = State::TunnelStart;
            self.open_tunnel(bytes[first], out);
        } else {
            self.half(role).start_head();
        }
        &bytes[first..]
    }

    fn on_head<'a>(&mut self, role: &mut Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = self.half(*role);
        let room = HEAD_MAX - half.kept.len();
        let window = &bytes[..bytes.len().min(room)];
        let mut at = 0;
        while let Some((line, is_empty)) = half.search.next_line(&window[at..]) {
            at += line;
            if !half.has_first_line {
                half.has_first_line = true;
                match self.check_first_line(*role, &window[..at], out) {
                    FirstLine::Goes => {}
                    FirstLine::Swapped => {
                        *role = role.other();
                        self.half(*role).has_first_line = true;
                    }
                    FirstLine::IsAll => return self.take_head(*role, bytes, at, out),
                    FirstLine::IsBody => return bytes,
                    FirstLine::Bad => {
                        self.lose(*role, out);
                        self.half(*role).is_at_line = true;
                        return &bytes[at..];
                    }
                }
                return self.on_rest_of_head(*role, bytes, at, out);
            }
            if is_empty {
                return self.take_head(*role, bytes, at, out);
            }
        }
        self.keep_head(*role, window, bytes, out)
    }

    /// The same behind the first line, which is a separate matter only because the roles may have changed at it.
    fn on_rest_of_head<'a>(&mut self, role: Side, bytes: &'a [u8], mut at: usize, out: &mut Out) -> &'a [u8] {
        let half = self.half(role);
        let window = &bytes[..bytes.len().min(HEAD_MAX - half.kept.len())];
        while let Some((line, is_empty)) = half.search.next_line(&window[at..]) {
            at += line;
            if is_empty {
                return self.take_head(role, bytes, at, out);
            }
        }
        self.keep_head(role, window, bytes, out)
    }

    /// The head is not whole: it is kept, if it may still become so.
    fn keep_head<'a>(&mut self, role: Side, window: &[u8], bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = self.half(role);
        half.kept.extend_from_slice(window);
        if half.kept.len() < HEAD_MAX {
            return &[];
        }
        if half.has_first_line || !self.answers_simple(role) {
            self.odd(role, "http.head_too_long", out);
            self.lose(role, out);
        } else {
            self.start_simple_body(role);
        }
        &bytes[window.len()..]
    }

    /// Looks at the first line as soon as it is there, so that what is no HTTP is not kept.
    fn check_first_line(&mut self, role: Side, piece: &[u8], out: &mut Out) -> FirstLine {
        let half = self.half(role);
        let joined;
        let line = if half.kept.is_empty() {
            piece
        } else {
            joined = [&half.kept, piece].concat();
            &joined
        };
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_answer = line.starts_with(b"HTTP/");
        if !self.is_settled && is_answer != (role == Side::Server) {
            // A request may not look like one, but a response that came from the client is beyond doubt.
            if is_answer || head::is_certain_start(line, false) {
                self.is_settled = true;
                self.is_swapped = true;
                self.halves.swap(0, 1);
                return FirstLine::Swapped;
            }
        }
        let mut ignored = Oddities::new();
        let start = match role {
            Side::Client => head::request_line(line, &mut ignored),
            Side::Server => head::status_line(line, &mut ignored),
        };
        match start {
            Some(Start::Request { version: Version::V09, .. }) => {
                self.is_settled = true;
                FirstLine::IsAll
            }
            Some(_) => {
                self.is_settled = true;
                FirstLine::Goes
            }
            None if self.answers_simple(role) => {
                self.start_simple_body(role);
                FirstLine::IsBody
            }
            None => {
                self.odd(
                    role,
                    if role == Side::Client { "http.bad_request_line" } else { "http.bad_status_line" },
                    out,
                );
                FirstLine::Bad
            }
        }
    }

    /// What this side sends next answers a request of HTTP/0.9: it may have no head.
    fn answers_simple(&self, role: Side) -> bool {
        role == Side::Server && self.unanswered().is_some_and(|at| self.pending[at].exchange.version == Version::V09)
    }

    /// The answer of HTTP/0.9 is a body and nothing else; what was kept as a head belongs to it.
    fn start_simple_body(&mut self, role: Side) {
        let tx = self.unanswered().map_or(0, |at| self.pending[at].tx);
        let half = self.half(role);
        let kept = half.take_kept();
        half.tx = tx;
        half.body = Body::default();
        half.body.take(&kept);
        half.state = State::UntilClose;
    }

    /// The head is whole: the kept part and `at` bytes more.
    fn take_head<'a>(&mut self, role: Side, bytes: &'a [u8], at: usize, out: &mut Out) -> &'a [u8] {
        let (head, rest) = bytes.split_at(at);
        let half = self.half(role);
        half.state = State::Start;
        let mut kept = half.take_kept();
        if kept.is_empty() {
            self.on_message(role, head, true, out);
        } else {
            kept.extend_from_slice(head);
            self.on_message(role, &kept, true, out);
            self.half(role).give_back(kept);
        }
        rest
    }

    fn on_message(&mut self, role: Side, head: &[u8], is_whole: bool, out: &mut Out) {
        let mut odd = Oddities::new();
        let is_response = role == Side::Server;
        let parsed = if is_whole {
            head::parse(head, is_response, &mut odd)
        } else {
            head::by_lines(head, is_response, &mut odd)
        };
        if self.half(role).search.has_bare_lf {
            odd.push("http.bare_lf");
        }
        match parsed {
            Some((Start::Request { method, target, version }, fields)) => {
                let mut request = Request { method, target, version, fields, is_whole };
                let framing = request.fields.conclude(version, &mut odd);
                self.on_request(request, framing, &mut odd, out);
            }
            Some((Start::Response { version, status, reason }, mut fields)) => {
                let framing = fields.conclude(version, &mut odd);
                self.on_response(Response { version, status, reason, fields }, framing, out);
            }
            Some((Start::Preface, _)) => self.on_preface(role, head, out),
            None => {
                self.odd(role, if is_response { "http.bad_status_line" } else { "http.bad_request_line" }, out);
                self.lose(role, out);
            }
        }
        odd.into_iter().for_each(|name| self.odd(role, name, out));
    }

    fn on_request(&mut self, request: Request<'_>, framing: Framing, odd: &mut Oddities, out: &mut Out) {
        let Request { method, target, version, fields, is_whole } = request;
        let (host, port) = host_of(method, target, version, &fields, odd);
        let exchange = Arc::new(Exchange {
            version,
            method: method.to_vec(),
            target: target.to_vec(),
            host,
            port,
            request: fields.headers,
            ..Exchange::default()
        });
        let tx = self.new_tx();
        if is_whole {
            out.tell(tx, Stage::Asked, Fact::Http(exchange.clone()));
        }
        let length = match framing {
            _ if !is_whole => State::Start,
            Framing::Chunked => State::Chunked,
            Framing::Length(0) | Framing::Unsaid => State::Start,
            Framing::Length(length) => State::Length(length),
        };
        let half = self.half(Side::Client);
        half.start_body(length, tx, fields.codings);
        half.wants_h2c = fields.upgrade == Upgrade::H2c;
        let is_server_gone = self.half(Side::Server).is_ended;
        let bytes = exchange.memory();
        if self.pending.len() >= PIPELINE_MAX || self.pending_bytes + bytes > PENDING_BYTES_MAX {
            odd.push("http.too_many_pending");
            self.untracked = self.untracked.saturating_add(1);
            out.tell(tx, Stage::Done, Fact::Http(exchange));
            return;
        }
        self.pending_bytes += bytes;
        self.pending.push_back(Pending {
            tx,
            exchange,
            bytes,
            untracked_before: std::mem::take(&mut self.untracked),
            is_request_done: length == State::Start,
            is_response_done: is_server_gone,
        });
        self.tell_done(tx, out);
    }

    fn on_response(&mut self, response: Response<'_>, framing: Framing, out: &mut Out) {
        let Response { version, status, reason, fields } = response;
        if (100..200).contains(&status) && status != 101 {
            return;
        }
        let at = self.place_of_response(version);
        let pending = &mut self.pending[at];
        let exchange = Arc::make_mut(&mut pending.exchange);
        exchange.status = Some(status);
        exchange.reason = reason.to_vec();
        exchange.response = fields.headers;
        let bytes = exchange.memory();
        self.pending_bytes = self.pending_bytes + bytes - pending.bytes;
        pending.bytes = bytes;
        let (tx, is_connect) = (pending.tx, exchange.method == b"CONNECT");
        let has_no_body = exchange.method == b"HEAD" || status == 204 || status == 304;
        if status == 101 {
            return self.on_upgrade(at, fields.upgrade, out);
        }
        if is_connect && (200..300).contains(&status) {
            return self.on_granted(at, out);
        }
        if is_connect && self.half(Side::Client).is_in_tunnel() {
            // What the client sent without waiting was sent in vain.
            self.inner = None;
            self.half(Side::Client).state = State::Lost;
        }
        let length = match framing {
            _ if has_no_body => State::Start,
            Framing::Chunked => State::Chunked,
            Framing::Length(0) => State::Start,
            Framing::Length(length) => State::Length(length),
            Framing::Unsaid => State::UntilClose,
        };
        self.half(Side::Server).start_body(length, tx, fields.codings);
        if length == State::Start {
            self.response_done(tx, out);
        }
    }

    /// The first exchange whose response is not complete.
    fn unanswered(&self) -> Option<usize> {
        self.pending.iter().position(|pending| !pending.is_response_done)
    }

    /// Which exchange a response belongs to; a new one when no request is known for it.
    fn place_of_response(&mut self, version: Version) -> usize {
        let at = self.unanswered();
        let untracked = match at {
            Some(at) => &mut self.pending[at].untracked_before,
            None => &mut self.untracked,
        };
        match at {
            Some(at) if *untracked == 0 => return at,
            _ => *untracked = untracked.saturating_sub(1),
        }
        let tx = self.new_tx();
        let at = at.unwrap_or(self.pending.len());
        let exchange = Arc::new(Exchange { version, ..Exchange::default() });
        let bytes = exchange.memory();
        self.pending_bytes += bytes;
        let alone =
            Pending { tx, exchange, bytes, untracked_before: 0, is_request_done: true, is_response_done: false };
        self.pending.insert(at, alone);
        at
    }

    fn new_tx(&mut self) -> u32 {
        let tx = self.next_tx;
        self.next_tx = tx.wrapping_add(1);
        tx
    }

    fn on_length<'a>(&mut self, role: Side, left: u64, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let half = self.half(role);
        half.body.take(&bytes[..n]);
        half.state = State::Length(left - n as u64);
        if left == n as u64 {
            self.message_done(role, out);
        }
        &bytes[n..]
    }

    fn on_chunked<'a>(&mut self, role: Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = self.half(role);
        let step = half.chunks.take(bytes, &mut half.body);
        match step.outcome {
            chunks::Outcome::Goes => {}
            chunks::Outcome::Last => {
                half.state = State::Trailers;
                half.search = EndSearch::behind_a_line();
            }
            chunks::Outcome::Bad => self.lose(role, out),
        }
        if let Some(name) = step.oddity {
            self.odd(role, name, out);
        }
        step.rest
    }

    fn on_trailers<'a>(&mut self, role: Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = self.half(role);
        let window = &bytes[..bytes.len().min(HEAD_MAX - half.kept.len())];
        let mut at = 0;
        while let Some((line, is_empty)) = half.search.next_line(&window[at..]) {
            at += line;
            if is_empty {
                half.kept.extend_from_slice(&window[..at]);
                self.message_done(role, out);
                return &bytes[at..];
            }
        }
        half.kept.extend_from_slice(window);
        if half.kept.len() >= HEAD_MAX {
            self.odd(role, "http.trailers_too_long", out);
            self.lose(role, out);
        }
        &bytes[window.len()..]
    }

    /// Looks for a line that starts a message.
    fn on_lost<'a>(&mut self, role: &mut Side, mut bytes: &'a [u8]) -> &'a [u8] {
        loop {
            let half = self.half(*role);
            let end = memchr::memchr(b'\n', bytes).map(|at| at + 1);
            if !half.is_at_line {
                let Some(end) = end else { return &[] };
                half.is_at_line = true;
                bytes = &bytes[end..];
                continue;
            }
            let Some(&first) = half.kept.first().or(bytes.first()) else {
                return bytes;
            };
            let piece = &bytes[..end.unwrap_or(bytes.len())];
            if !first.is_ascii_uppercase() || half.kept.len() + piece.len() > SEEK_LINE_MAX {
                half.take_kept();
                half.is_at_line = false;
                continue;
            }
            half.kept.extend_from_slice(piece);
            let Some(end) = end else { return &[] };
            bytes = &bytes[end..];
            if self.found_again(role) {
                return bytes;
            }
        }
    }

    /// Whether the kept line starts a message; then it is the head's first line.
    fn found_again(&mut self, role: &mut Side) -> bool {
        let is_settled = self.is_settled;
        let half = self.half(*role);
        let line = half.kept.strip_suffix(b"\n").unwrap_or(&half.kept);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_own = head::is_certain_start(line, *role == Side::Server);
        let is_others = !is_own && !is_settled && head::is_certain_start(line, *role == Side::Client);
        if !is_own && !is_others {
            half.take_kept();
            return false;
        }
        half.state = State::Head;
        half.has_first_line = true;
        half.search = EndSearch::default();
        let _ = half.search.next_line(&half.kept);
        self.is_settled = true;
        if is_others {
            self.is_swapped = true;
            self.halves.swap(0, 1);
            *role = role.other();
        }
        true
    }

    /// A side's place is not known any more. What it was sending is over, as far as it came.
    fn lose(&mut self, role: Side, out: &mut Out) {
        let half = self.half(role);
        let had_message = half.is_in_body();
        half.take_kept();
        half.is_at_line = false;
        if had_message {
            self.message_done(role, out);
        } else if role == Side::Server
            && let Some(at) = self.unanswered()
        {
            // The answer that was lost was this one's.
            let tx = self.pending[at].tx;
            self.response_done(tx, out);
        }
        self.half(role).state = State::Lost;
    }

    /// A message is over; its body is told.
    fn message_done(&mut self, role: Side, out: &mut Out) {
        let half = self.half(role);
        let (tx, taken) = (half.tx, half.body.finish());
        let trailers = if half.state == State::Trailers { half.take_kept() } else { Vec::new() };
        half.state = State::Start;
        if let Some(name) = taken.oddity {
            self.odd(role, name, out);
        }
        let mut odd = Oddities::new();
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.tx == tx) {
            let exchange = Arc::make_mut(&mut pending.exchange);
            let (headers, bytes, start) = match role {
                Side::Client => (&mut exchange.request, &mut exchange.request_bytes, &mut exchange.request_body),
                Side::Server => (&mut exchange.response, &mut exchange.response_bytes, &mut exchange.response_body),
            };
            (*bytes, *start) = (taken.bytes, taken.start);
            if trailers.len() > 2 {
                let mut fields = head::Fields::default();
                head::field_lines(&trailers, &mut fields, &mut odd);
                let room = super::http::FIELDS_MAX.saturating_sub(headers.len());
                fields.headers.iter().take(room).for_each(|(name, value)| headers.push(name, value));
            }
            let bytes = exchange.memory();
            self.pending_bytes = self.pending_bytes + bytes - pending.bytes;
            pending.bytes = bytes;
        }
        odd.into_iter().for_each(|name| self.odd(role, name, out));
        match role {
            Side::Client => {
                if let Some(pending) = self.pending.iter_mut().find(|pending| pending.tx == tx) {
                    pending.is_request_done = true;
                }
                self.tell_done(tx, out);
            }
            Side::Server => self.response_done(tx, out),
        }
    }

    fn response_done(&mut self, tx: u32, out: &mut Out) {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.tx == tx) {
            pending.is_response_done = true;
        }
        self.tell_done(tx, out);
    }

    /// Tells of an exchange if both of its parts are over.
    fn tell_done(&mut self, tx: u32, out: &mut Out) {
        let is_done = |pending: &Pending| pending.tx == tx && pending.is_request_done && pending.is_response_done;
        if let Some(at) = self.pending.iter().position(is_done) {
            self.tell_of(at, out);
        }
    }

    fn tell_of(&mut self, at: usize, out: &mut Out) {
        let Some(pending) = self.pending.remove(at) else { return };
        self.pending_bytes -= pending.bytes;
        match self.pending.get_mut(at) {
            Some(next) => next.untracked_before = next.untracked_before.saturating_add(pending.untracked_before),
            None => self.untracked = self.untracked.saturating_add(pending.untracked_before),
        }
        out.tell(pending.tx, Stage::Done, Fact::Http(pending.exchange));
    }

    /// So many bytes are missing.
    fn jump(&mut self, role: Side, mut missing: u64, out: &mut Out) {
        let half = self.half(role);
        match half.state {
            State::Length(left) => {
                let n = left.min(missing);
                half.body.skip(n);
                half.state = State::Length(left - n);
                missing -= n;
                if left == n {
                    self.message_done(role, out);
                }
            }
            State::Chunked => missing -= half.chunks.skip(missing, &mut half.body),
            State::UntilClose => {
                half.body.skip(missing);
                return;
            }
            State::Tunnel => return self.within(out, |inner, out| inner.skip(role, missing, out)),
            // Nobody knows what it is; what comes behind it will not be looked at either.
            State::TunnelStart => {
                self.halves.iter_mut().filter(|half| half.is_in_tunnel()).for_each(|half| half.state = State::Tunnel);
                return;
            }
            State::Start | State::Head | State::Trailers | State::Lost => {}
        }
        if missing > 0 {
            self.odd(role, "http.gap", out);
            self.lose(role, out);
            // Segments often start where messages do.
            self.half(role).is_at_line = true;
        }
    }

    /// A side sends no more.
    fn close(&mut self, role: Side, out: &mut Out) {
        let half = self.half(role);
        half.is_ended = true;
        if half.state == State::Head && half.has_first_line {
            half.state = State::Start;
            let kept = half.take_kept();
            self.on_message(role, &kept, false, out);
        } else if half.state == State::Head && self.answers_simple(role) {
            self.start_simple_body(role);
        }
        if self.half(role).is_in_body() {
            self.message_done(role, out);
        }
        if self.inner.is_some() {
            self.within(out, |inner, out| inner.end(role, out));
        }
        if role == Side::Server {
            self.pending.iter_mut().for_each(|pending| pending.is_response_done = true);
        }
        let is_over = self.halves.iter().all(|half| half.is_ended);
        let mut at = 0;
        while let Some(pending) = self.pending.get(at) {
            if is_over || (pending.is_request_done && pending.is_response_done) {
                self.tell_of(at, out);
            } else {
                at += 1;
            }
        }
    }

    /// Lets the parser inside do something, and counts its transactions among ours.
    fn within(&mut self, out: &mut Out, run: impl FnOnce(&mut dyn Parser, &mut Out)) {
        let Some(inner) = &mut self.inner else { return };
        let (told, odd) = (out.told.len(), out.oddities.len());
        run(&mut *inner.parser, out);
        for told in &mut out.told[told..] {
            told.tx = told.tx.wrapping_add(inner.base_tx);
            self.next_tx = self.next_tx.max(told.tx.wrapping_add(1));
        }
        if self.is_swapped {
            out.oddities[odd..].iter_mut().for_each(|(role, _)| *role = role.other());
        }
    }

    /// The connection is HTTP/2 from its start.
    fn on_preface(&mut self, role: Side, head: &[u8], out: &mut Out) {
        self.inner = Some(Inner { parser: Box::new(Http2::default()), base_tx: self.next_tx });
        out.became = Some(AppProto::Http2);
        let from_server = self.half(Side::Server).take_kept();
        for half in &mut self.halves {
            half.state = State::Tunnel;
        }
        self.within(out, |inner, out| inner.take(role, head, out));
        if !from_server.is_empty() {
            self.within(out, |inner, out| inner.take(role.other(), &from_server, out));
        }
    }

    /// 101: both sides go on in another protocol.
    fn on_upgrade(&mut self, at: usize, answer: Upgrade, out: &mut Out) {
        let wants_h2c = self.half(Side::Client).wants_h2c;
        let early = self.half(Side::Client).take_kept();
        for half in &mut self.halves {
            half.state = State::Tunnel;
        }
        let (tx, bytes) = (self.pending[at].tx, self.pending[at].bytes);
        if answer == Upgrade::H2c
            && wants_h2c
            && let Some(pending) = self.pending.remove(at)
        {
            // The request goes on as the first stream, and is answered there (RFC 7540, 3.2).
            self.pending_bytes -= bytes;
            let mut exchange = pending.exchange;
            let inside = Arc::make_mut(&mut exchange);
            (inside.status, inside.reason, inside.response) = (None, Vec::new(), Default::default());
            let parser = Http2::upgraded(tx, exchange, self.next_tx);
            self.inner = Some(Inner { parser: Box::new(parser), base_tx: 0 });
            out.became = Some(AppProto::Http2);
            if !early.is_empty() {
                self.within(out, |inner, out| inner.take(Side::Client, &early, out));
            }
            return;
        }
        self.pending[at].is_request_done = true;
        self.response_done(tx, out);
    }

    /// CONNECT was granted: a tunnel.
    fn on_granted(&mut self, at: usize, out: &mut Out) {
        let tx = self.pending[at].tx;
        self.pending[at].is_request_done = true;
        self.half(Side::Server).state = if self.inner.is_some() { State::Tunnel } else { State::TunnelStart };
        let client = self.half(Side::Client);
        let early = client.take_kept();
        if !client.is_in_tunnel() {
            client.state = State::TunnelStart;
        }
        self.response_done(tx, out);
        if !early.is_empty() {
            self.run(Side::Client, &early, out);
        }
    }

    /// Decides by a tunnel's first byte what is in it.
    fn open_tunnel(&mut self, first: u8, out: &mut Out) {
        let parser = if first == TLS_HANDSHAKE { parser_for(AppProto::Tls) } else { None };
        if let Some(parser) = parser {
            self.inner = Some(Inner { parser, base_tx: self.next_tx });
            out.became = Some(AppProto::Tls);
        }
        for half in self.halves.iter_mut().filter(|half| half.state == State::TunnelStart) {
            half.state = State::Tunnel;
        }
    }
}

/// Content type of a TLS record with a handshake (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// What a first line turned out to be.
enum FirstLine {
    /// The head goes on.
    Goes,
    /// The head goes on, and it is the other role's.
    Swapped,
    /// The whole request (HTTP/0.9).
    IsAll,
    /// The answer to one.
    IsBody,
    /// Nothing of HTTP.
    Bad,
}

struct Request<'a> {
    method: &'a [u8],
    target: &'a [u8],
    version: Version,
    fields: head::Fields,
    is_whole: bool,
}

struct Response<'a> {
    version: Version,
    status: u16,
    reason: &'a [u8],
    fields: head::Fields,
}

/// Who is asked (RFC 9112, 3.3): the target's authority before the field.
fn host_of(
    method: &[u8],
    target: &[u8],
    version: Version,
    fields: &head::Fields,
    odd: &mut Oddities,
) -> (Option<Vec<u8>>, Option<u16>) {
    let field = if fields.has_host() { fields.headers.get("host") } else { None };
    let in_target = target::authority(method, target);
    if field.is_none() && version == Version::V11 {
        odd.push("http.no_host");
    }
    if let (Some(field), Some(authority)) = (field, in_target)
        && let (Some((a, _)), Some((b, _))) = (target::split(field), target::split(authority))
        && !a.eq_ignore_ascii_case(b)
    {
        odd.push("http.host_mismatch");
    }
    let Some(authority) = in_target.or(field).filter(|authority| !authority.is_empty()) else {
        return (None, None);
    };
    match target::split(authority) {
        Some((host, port)) => (Some(host.to_vec()), port),
        None => {
            odd.push("http.bad_host");
            (Some(authority.to_vec()), None)
        }
    }
}
