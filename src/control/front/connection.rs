//! One client's connection: read a request, hand it on, relay the answer, linger.
//!
//! [`Connection::advance`] does as much as it can without waiting and is called after every event of its sockets; which
//! event it was does not matter.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use serde_json::json;

use super::Kind;
use super::body::Body;
use super::head::{self, AnswerHead, Head, Refusal, Sender};
use super::hosts::Hosts;
use super::limits::Limits;
use super::peer::Peer;
use super::transport::{NotTls, Transport};

/// Read in one go.
const BLOCK: usize = 16 << 10;
/// Moved for one connection before the others have their turn.
const TURN: usize = 512 << 10;

/// What the connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The rest of the head.
    Head,
    /// The rest of the body.
    Body,
    /// A worker; the request is complete.
    Queued,
    /// The answer, from tiny_http and to the client.
    Relay,
    /// The client, to take the rest of an answer that is complete here.
    Drain,
    /// The client, to close: closing with its bytes unread would reset the connection and lose the answer.
    Linger,
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Until its next event.
    Wait,
    /// It had its turn and can do more at once.
    Again,
    Close,
}

/// What a connection needs to know of the front.
pub struct Context<'a> {
    pub limits: &'a Limits,
    pub hosts: &'a Hosts,
    pub now: Instant,
    /// Bytes that the other connections hold.
    pub held_by_others: usize,
    /// Of these, bytes of connections from the same address or user.
    pub held_by_own: usize,
    /// Why there is no place for one more stream of this client's; `None` when there is one.
    pub stream_refused: Option<&'static Refusal>,
    /// Told of each refusal.
    pub refused: &'a dyn Fn(&Refusal, Peer),
    /// Asked for each request: how long until the client may ask again, if it has asked too often.
    pub admits: &'a dyn Fn(Peer) -> Result<(), Duration>,
}

pub struct Connection {
    pub client: Transport,
    pub peer: Peer,
    pub kind: Kind,
    /// Rises from connection to connection: who came first.
    pub order: u64,
    pub stage: Stage,
    pub upstream: Option<UnixStream>,
    /// Refused or answered: no longer among those that are served.
    pub refused: bool,
    since: Instant,
    progress: Instant,
    /// Of the head, while it is read.
    input: Vec<u8>,
    request: Option<(Head, Body)>,
    /// To tiny_http.
    forward: Pending,
    /// To the client.
    answer: Pending,
    /// Whether the answer's head has come and was written anew, so that it may go out.
    answer_marked: bool,
    /// Whether the answer is a stream: it may go on for hours, and has places of its own.
    pub stream: bool,
    /// When the client last took something of its answer, or had taken all.
    taken: Instant,
    /// Since when the worker of this request has had to wait for the client to take what was said, now and then or all
    /// the time.
    slow: Option<Instant>,
    /// Bytes of the answer's body that are still to come, when the connection is kept after them.
    keep: Option<usize>,
    /// Requests answered on this connection.
    answered: u32,
}

impl Connection {
    pub fn new(client: Transport, peer: Peer, kind: Kind, order: u64, now: Instant) -> Connection {
        Connection {
            client,
            peer,
            kind,
            order,
            stage: Stage::Head,
            upstream: None,
            refused: false,
            since: now,
            progress: now,
            input: Vec::new(),
            request: None,
            forward: Pending::default(),
            answer: Pending::default(),
            answer_marked: false,
            stream: false,
            taken: now,
            slow: None,
            keep: None,
            answered: 0,
        }
    }

    /// Bytes of body and answer that it holds.
    pub fn held(&self) -> usize {
        let body = self.request.as_ref().map_or(0, |(_, body)| body.bytes.len());
        body + self.forward.left() + self.waiting()
    }

    /// Bytes of the answer that the client has not taken.
    fn waiting(&self) -> usize {
        self.answer.left() + self.client.held()
    }

    /// Whether it may hold so many bytes more of what all connections share.
    fn may_hold(&self, more: usize, context: &Context<'_>) -> bool {
        let Limits { held_bytes, held_bytes_per_address, held_bytes_here, .. } = context.limits;
        let of_own = if self.peer.is_here() { held_bytes_here } else { held_bytes_per_address };
        let held = self.held() + more;
        context.held_by_others + held <= *held_bytes && context.held_by_own + held <= *of_own
    }

    /// Since when its client has kept a worker waiting.
    pub fn slow_since(&self) -> Option<Instant> {
        self.slow.filter(|_| self.stage == Stage::Relay && self.upstream.is_some() && !self.stream)
    }

    /// Since when its request waits for a worker to begin with the answer.
    pub fn waiting_since(&self) -> Option<Instant> {
        let waits = self.stage == Stage::Queued || (self.stage == Stage::Relay && !self.answer_marked);
        waits.then_some(self.since)
    }

    /// Since when tiny_http has had its request without having said anything.
    pub fn handed_over_since(&self) -> Option<Instant> {
        (self.upstream.is_some() && !self.answer_marked).then_some(self.since)
    }

    /// Order in which connections give way when there are too many: those that have not even said what they want, then
    /// those that do not finish saying it, then those that do not read. A request that is being answered does not give
    /// way to a client.
    pub fn gives_way(&self) -> Option<Stage> {
        matches!(self.stage, Stage::Head | Stage::Body | Stage::Drain).then_some(self.stage)
    }

    /// When it has waited too long; `None` for a stream that waits for something to tell.
    pub fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let stall = self.progress + limits.stall_timeout;
        Some(match self.stage {
            Stage::Head if self.is_idle() => self.since + limits.idle_timeout,
            Stage::Head => self.since + limits.head_timeout,
            Stage::Body => stall.min(self.since + limits.body_timeout),
            Stage::Queued => self.since + limits.answer_timeout,
            Stage::Relay if self.stream && self.waiting() == 0 => return None,
            // More of it comes all the time, so only what the client takes counts.
            Stage::Relay if self.stream => self.taken + limits.stall_timeout,
            Stage::Relay if self.answer.left() > 0 => stall,
            Stage::Relay => self.progress + limits.answer_timeout,
            Stage::Drain => stall.min(self.since + limits.drain_timeout),
            Stage::Linger => self.since + limits.linger_timeout,
        })
    }

    /// Since when it is in its stage.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Between two requests.
    fn is_idle(&self) -> bool {
        self.stage == Stage::Head && self.answered > 0 && self.input.is_empty() && self.request.is_none()
    }

    /// The deadline has passed.
    pub fn expire(&mut self, context: &Context<'_>) -> Step {
        let refusal = match self.stage {
            Stage::Head if self.client.is_handshaking() => {
                let message = "the TLS handshake took too long";
                Refusal::new(408, "REQUEST_TIMEOUT", "tls_timeout", message)
            }
            // A browser opens connections ahead and says nothing on them; and one that is kept has had its answers.
            Stage::Head if self.input.is_empty() => {
                self.end_silently(context.now);
                return self.advance(context);
            }
            Stage::Head => Refusal::new(408, "REQUEST_TIMEOUT", "head_timeout", "the request's head took too long"),
            Stage::Body => Refusal::new(408, "REQUEST_TIMEOUT", "body_timeout", "the request's body took too long"),
            Stage::Queued => busy("no worker was free in time"),
            Stage::Relay if self.answer_marked => return self.stalled(context),
            Stage::Relay => Refusal::new(504, "SERVICE_UNAVAILABLE", "answer_timeout", "the operation took too long"),
            Stage::Drain => return self.stalled(context),
            Stage::Linger => return Step::Close,
        };
        self.refuse(&refusal, context);
        self.advance(context)
    }

    fn stalled(&self, context: &Context<'_>) -> Step {
        self.cut(&Refusal::new(0, "", "client_stalled", "the client takes nothing of its answer"), context)
    }

    /// Ends it in the middle of its answer, which a client sees by its length.
    pub fn cut(&self, refusal: &Refusal, context: &Context<'_>) -> Step {
        (context.refused)(refusal, self.peer);
        Step::Close
    }

    /// Makes room for another client: who has not had an answer yet is told so, as far as that goes out at once. Behind
    /// the part of an answer that has gone out, the text would be taken for more of it.
    pub fn give_way(&mut self, refusal: &Refusal, context: &Context<'_>) -> Step {
        if self.stage == Stage::Drain {
            return self.cut(refusal, context);
        }
        self.refuse(refusal, context);
        self.advance(context);
        Step::Close
    }

    /// Gives up the request; the client is told why.
    pub fn refuse(&mut self, refusal: &Refusal, context: &Context<'_>) {
        (context.refused)(refusal, self.peer);
        let body = json!({"error": {"code": refusal.code, "message": refusal.message}}).to_string();
        let mut text = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
             x-content-type-options: nosniff\r\n\
             connection: close\r\n",
            refusal.status,
            reason_phrase(refusal.status),
            body.len(),
        );
        if let Some(seconds) = refusal.retry_after_s {
            text += &format!("retry-after: {seconds}\r\n");
        }
        text += "\r\n";
        if self.request.as_ref().is_none_or(|(head, _)| head.method != "HEAD") {
            text += &body;
        }
        if self.client.is_handshaking() || self.is_idle() {
            // It could not be read before the handshake's end, or would be taken for the answer to the next request. The
            // client sees that it is closed.
            text.clear();
        }
        self.upstream = None;
        self.request = None;
        self.stream = false;
        self.keep = None;
        self.input = Vec::new();
        self.forward = Pending::default();
        self.answer = Pending { bytes: text.into_bytes(), done: 0 };
        self.answer_marked = true;
        self.refused = true;
        self.enter(Stage::Drain, context.now);
    }

    /// The request goes to tiny_http on `upstream`.
    pub fn hand_on(&mut self, upstream: UnixStream, now: Instant) {
        if let Some((head, body)) = &mut self.request {
            let sender = Sender { kind: self.kind, peer: self.peer, certificate: self.client.certificate() };
            let mut bytes = head.rewrite(&sender, body.bytes.len());
            bytes.append(&mut body.bytes);
            self.forward = Pending { bytes, done: 0 };
        }
        self.upstream = Some(upstream);
        self.slow = None;
        self.enter(Stage::Relay, now);
    }

    /// Does what can be done now.
    pub fn advance(&mut self, context: &Context<'_>) -> Step {
        let mut moved = 0;
        loop {
            let stage = self.stage;
            let result = match stage {
                Stage::Head => self.read_head(context),
                Stage::Body => self.read_body(context),
                Stage::Queued => Ok(0),
                Stage::Relay => self.relay(context),
                Stage::Drain => self.drain(context),
                Stage::Linger => self.linger(),
            };
            match result {
                Err(_) => return Step::Close,
                Ok(0) if self.stage == stage => return Step::Wait,
                Ok(n) => moved += n,
            }
            self.progress = context.now;
            if moved >= TURN {
                return Step::Again;
            }
        }
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        self.since = now;
        self.progress = now;
    }

    fn read_head(&mut self, context: &Context<'_>) -> io::Result<usize> {
        let mut block = [0; BLOCK];
        let n = match read_some(&mut self.client, &mut block) {
            Ok(None) => return Ok(0),
            Ok(Some(0)) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(Some(n)) => n,
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                self.refuse_tls(&e, context);
                return Ok(0);
            }
            Err(e) => return Err(e),
        };
        let first = self.input.is_empty();
        if self.is_idle() {
            self.since = context.now;
        }
        self.input.extend_from_slice(&block[..n]);
        // Nothing changes before a line ends; the first look tells what is not HTTP at all.
        let parsed = if first || block[..n].contains(&b'\n') {
            head::parse(&self.input, context.hosts, context.limits.body_bytes)
        } else {
            Ok(None)
        };
        match parsed {
            Ok(Some((_, length))) if length > context.limits.head_bytes => self.refuse(&HEAD_TOO_LARGE, context),
            Ok(Some((head, length))) => {
                let rest = self.input.split_off(length);
                self.input = Vec::new();
                match (context.admits)(self.peer) {
                    Ok(()) => self.begin_body(head, &rest, context),
                    Err(wait) => {
                        self.request = Some((head, Body::new(head::Framing::Length(0), 0)));
                        self.refuse(&too_often(wait), context);
                    }
                }
            }
            Ok(None) if self.input.len() > context.limits.head_bytes => self.refuse(&HEAD_TOO_LARGE, context),
            Ok(None) => {}
            Err(refusal) => {
                // So that a refused HEAD gets no body.
                if self.input.starts_with(b"HEAD ") {
                    self.request = Some((Head::of_method("HEAD"), Body::new(head::Framing::Length(0), 0)));
                }
                self.refuse(&refusal, context);
            }
        }
        Ok(n)
    }

    /// What the client says is no TLS, or not as it is wished here.
    fn refuse_tls(&mut self, error: &io::Error, context: &Context<'_>) {
        if error.get_ref().is_some_and(|inner| inner.is::<NotTls>()) {
            let message = "this port speaks TLS: ask it with https:// (ebpfsentinel-agent: --tls)";
            return self.refuse(&Refusal::new(400, "TLS_REQUIRED", "not_tls", message), context);
        }
        let message = error.to_string().into();
        (context.refused)(&Refusal { message, ..Refusal::new(0, "", "tls", "") }, self.peer);
        // The alert is on its way; there is nothing to add.
        self.end_silently(context.now);
    }

    /// Closes without an answer.
    fn end_silently(&mut self, now: Instant) {
        self.answer = Pending::default();
        self.answer_marked = true;
        self.refused = true;
        self.enter(Stage::Drain, now);
    }

    fn begin_body(&mut self, head: Head, rest: &[u8], context: &Context<'_>) {
        let body = Body::new(head.framing, context.limits.body_bytes);
        let wants_continue = head.expects_continue && rest.is_empty() && !body.is_complete();
        self.request = Some((head, body));
        self.enter(Stage::Body, context.now);
        if wants_continue {
            // 25 bytes behind answers that were taken: they fit, or the client sees a broken answer and closes.
            let _ = self.client.write(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.take_body(rest, context);
    }

    fn read_body(&mut self, context: &Context<'_>) -> io::Result<usize> {
        let mut block = [0; BLOCK];
        match read_some(&mut self.client, &mut block)? {
            None => Ok(0),
            Some(0) => Err(ErrorKind::UnexpectedEof.into()),
            Some(n) => {
                self.take_body(&block[..n], context);
                Ok(n)
            }
        }
    }

    fn take_body(&mut self, input: &[u8], context: &Context<'_>) {
        let Some((_, body)) = &mut self.request else { return };
        if let Err(refusal) = body.take(input) {
            return self.refuse(&refusal, context);
        }
        if body.is_complete() {
            return self.enter(Stage::Queued, context.now);
        }
        if !self.may_hold(0, context) {
            self.refuse(&busy("too many large requests at a time"), context);
        }
    }

    fn relay(&mut self, context: &Context<'_>) -> io::Result<usize> {
        if self.waiting() == 0 {
            self.taken = context.now;
        }
        // What a stream has beyond that waits at its source, which knows what to leave out.
        let room = self.answer.left() < context.limits.answer_bytes || (!self.stream && self.may_hold(1, context));
        if !room {
            self.slow.get_or_insert(context.now);
        }
        let Some(upstream) = &mut self.upstream else { return Ok(0) };
        let mut moved = match self.forward.write_to(upstream) {
            Ok(n) => n,
            // The operation answers without reading all: its answer counts.
            Err(_) => {
                self.forward = Pending::default();
                0
            }
        };
        let mut ended = false;
        if room {
            let mut block = [0; BLOCK];
            match read_some(upstream, &mut block) {
                Ok(None) => {}
                Ok(Some(0)) | Err(_) => ended = true,
                Ok(Some(n)) => {
                    self.answer.bytes.extend_from_slice(&block[..n]);
                    if self.answer_marked {
                        self.keep = self.keep.and_then(|left| left.checked_sub(n));
                    }
                    moved += n;
                }
            }
        }
        if !self.answer_marked && !self.mark_answer(context) {
            return Ok(moved);
        }
        if self.answer_marked {
            let written = self.answer.write_to(&mut self.client)?;
            // TLS may have something left of before.
            self.client.flush()?;
            if written > 0 {
                self.taken = context.now;
            }
            moved += written;
        }
        if self.stream {
            moved += self.listen()?;
        }
        if ended {
            self.end_relay(context);
        }
        Ok(moved)
    }

    /// The operation has said all.
    fn end_relay(&mut self, context: &Context<'_>) {
        self.upstream = None;
        self.request = None;
        if self.answer_marked {
            // Some is missing, and the client must see it: the connection ends.
            self.keep = self.keep.filter(|left| *left == 0);
            self.enter(Stage::Drain, context.now);
        } else {
            let refusal = Refusal::new(500, "INTERNAL_ERROR", "no_answer", "the operation gave no answer");
            self.refuse(&refusal, context);
        }
    }

    /// A stream's client says nothing more; that it leaves must be noticed, whether there is something to tell or not.
    fn listen(&mut self) -> io::Result<usize> {
        let mut block = [0; BLOCK];
        match read_some(&mut self.client, &mut block)? {
            None => Ok(0),
            Some(0) => Err(ErrorKind::UnexpectedEof.into()),
            Some(n) => Ok(n),
        }
    }

    /// Writes the head of the answer anew once it has come: the client must know that the connection ends, which
    /// tiny_http does not say, and needs nothing of what is meant for the front. False when the request was refused.
    fn mark_answer(&mut self, context: &Context<'_>) -> bool {
        let Some(end) = self.answer.bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return true };
        let answer = AnswerHead::read(&self.answer.bytes[..end]);
        if answer.stream {
            if let Some(refusal) = context.stream_refused {
                self.refuse(refusal, context);
                return false;
            }
            self.stream = true;
        }
        let left = self.request.as_ref().and_then(|(head, body)| {
            let kept = head.keep_alive && !body.surplus && self.answered + 1 < context.limits.requests_per_connection;
            answer.body_length(&head.method).filter(|_| kept)
        });
        self.keep = left.and_then(|left| left.checked_sub(self.answer.bytes.len() - end - 4));
        self.answer.bytes.splice(..end + 4, answer.write(self.keep.is_some()));
        self.answer_marked = true;
        self.taken = context.now;
        true
    }

    /// When stopping: what has come of the stream goes out, nothing more comes.
    pub fn end_stream(&mut self, context: &Context<'_>) -> Step {
        if self.stream && self.stage == Stage::Relay {
            self.end_relay(context);
        }
        self.advance(context)
    }

    fn drain(&mut self, context: &Context<'_>) -> io::Result<usize> {
        let moved = self.answer.write_to(&mut self.client)?;
        if self.answer.left() > 0 {
            return Ok(moved);
        }
        if self.keep.is_some() {
            self.client.flush()?;
            if self.client.held() == 0 {
                self.begin_again(context.now);
            }
        } else if self.client.finish()? {
            self.answer = Pending::default();
            self.refused = true;
            self.enter(Stage::Linger, context.now);
        }
        Ok(moved)
    }

    /// The connection is kept for the client's next request.
    fn begin_again(&mut self, now: Instant) {
        self.answered += 1;
        self.keep = None;
        self.answer = Pending::default();
        self.answer_marked = false;
        self.enter(Stage::Head, now);
    }

    fn linger(&mut self) -> io::Result<usize> {
        let mut block = [0; BLOCK];
        match none_yet(|| self.client.discard(&mut block))? {
            None => Ok(0),
            Some(0) => Err(ErrorKind::UnexpectedEof.into()),
            Some(n) => Ok(n),
        }
    }
}

const HEAD_TOO_LARGE: Refusal =
    Refusal::new(431, "HEADERS_TOO_LARGE", "head_too_large", "the request's head is larger than the limit");

/// 503 for what would go well at another time.
pub const fn busy(message: &'static str) -> Refusal {
    busy_as("busy", message)
}

/// The same, counted with a reason of its own.
pub const fn busy_as(reason: &'static str, message: &'static str) -> Refusal {
    Refusal::new(503, "SERVICE_UNAVAILABLE", reason, message)
}

/// Bytes on their way out.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    done: usize,
}

impl Pending {
    fn left(&self) -> usize {
        self.bytes.len() - self.done
    }

    /// Writes until the socket is full; how much.
    fn write_to(&mut self, socket: &mut impl Write) -> io::Result<usize> {
        let start = self.done;
        let mut written = 0;
        while self.left() > 0 {
            match socket.write(&self.bytes[self.done..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.done += n;
                    written += n;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.left() == 0 {
            self.bytes.clear();
            self.done = 0;
        } else if self.done > start && self.done >= BLOCK {
            self.bytes.drain(..self.done);
            self.done = 0;
        }
        Ok(written)
    }
}

/// One read: `None` when there is nothing yet, `Some(0)` at the end.
fn read_some(socket: &mut impl Read, block: &mut [u8]) -> io::Result<Option<usize>> {
    none_yet(|| socket.read(block))
}

/// `None` when the socket has nothing yet.
fn none_yet(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match read() {
            Ok(n) => return Ok(Some(n)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// 429.
fn too_often(wait: Duration) -> Refusal {
    let message = "too many requests from this address; ask again later";
    let refusal = Refusal::new(429, "RATE_LIMITED", "rate", message);
    Refusal { retry_after_s: Some(wait.as_secs() + 1), ..refusal }
}

fn reason_phrase(status: u16) -> &'static str {
    tiny_http::StatusCode(status).default_reason_phrase()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdStream;

    use super::*;
    use crate::control::front::EVICTED;

    /// Makes a connection give way; what its client reads of it, after what it had read before.
    fn given_way(change: impl FnOnce(&mut Connection)) -> String {
        let (client, own) = StdStream::pair().unwrap();
        own.set_nonblocking(true).unwrap();
        let (now, limits, hosts) = (Instant::now(), Limits::default(), Hosts::new(&[]));
        let refusals = std::cell::Cell::new(0);
        let refused = |refusal: &Refusal, _: Peer| {
            assert_eq!(refusal.reason, "evicted");
            refusals.set(refusals.get() + 1);
        };
        let context = Context {
            limits: &limits,
            hosts: &hosts,
            now,
            held_by_others: 0,
            held_by_own: 0,
            stream_refused: None,
            refused: &refused,
            admits: &|_| Ok(()),
        };
        let transport = Transport::Unix(UnixStream::from_std(own));
        let peer = Peer::Local { uid: 0, gid: 0 };
        let mut connection = Connection::new(transport, peer, Kind::Unix, 0, now);
        change(&mut connection);
        assert_eq!(connection.give_way(&EVICTED, &context), Step::Close);
        drop(connection);
        assert_eq!(refusals.get(), 1);
        let mut text = String::new();
        (&client).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn half_an_answer_is_not_followed_by_another_one() {
        let half = |connection: &mut Connection| {
            let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabcdef".to_vec();
            let mut answer = Pending { bytes, done: 0 };
            answer.done = connection.client.write(&answer.bytes[..answer.bytes.len() - 3]).unwrap();
            connection.answer = answer;
            connection.answer_marked = true;
            connection.enter(Stage::Drain, Instant::now());
        };
        let text = given_way(half);
        assert!(text.ends_with("\r\n\r\nabc"), "{text}");
        // Who has had nothing is told.
        let text = given_way(|_| {});
        assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("closed to make room"), "{text}");
    }
}
