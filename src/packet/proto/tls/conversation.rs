//! Records, and the handshake messages in them (RFC 8446, 5.1 and RFC 5246, 6.2).
//!
//! A message may lie in any number of records, a record in any number of segments. A message that is whole in what came is
//! read where it lies; only what is cut is kept, and only of the kinds that say something. What is encrypted is not looked
//! at: once the handshake is told, a call returns at once.

use std::sync::Arc;

use super::hello::{self, Answer};
use super::{Carrier, Handshake, certificate, is_version_13};
use crate::packet::proto::reader::Reader;
use crate::packet::proto::{Fact, KEPT_MAX, Out, Parser, Side, Stage};

/// Content types (RFC 8446, B.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const HEARTBEAT: u8 = 24;

/// Handshake types (RFC 8446, B.3).
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const CERTIFICATE: u8 = 11;
const SERVER_HELLO_DONE: u8 = 14;

/// Level of an alert that ends the connection, and the description of the one that ends it in peace.
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;

/// Bytes of a record's body: 2^14 and what encryption may add (RFC 5246, 6.2.3).
const RECORD_MAX: usize = (1 << 14) + 2048;

/// Bytes of a message that are kept. A longer one is read as far as that goes.
const MESSAGE_MAX: usize = KEPT_MAX;

const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// The message that is being received.
#[derive(Debug, Default)]
struct Message {
    header: [u8; MESSAGE_HEADER],
    header_filled: usize,
    /// Bytes of the body that are still to come.
    left: usize,
    /// What came of the body, of the kinds that are read.
    kept: Vec<u8>,
}

impl Message {
    fn is_between(&self) -> bool {
        self.header_filled == 0
    }

    fn kind(&self) -> u8 {
        self.header[0]
    }
}

/// One side.
#[derive(Debug, Default)]
struct Half {
    /// Something came, or was missing.
    has_begun: bool,
    header: [u8; RECORD_HEADER],
    header_filled: usize,
    /// Bytes of the record's body that are still to come.
    left: usize,
    message: Message,
    alert: [u8; 2],
    alert_filled: usize,
    /// Nothing that it sends can be read any more: it is encrypted, or its place was lost.
    is_opaque: bool,
}

/// Reads a TLS conversation.
#[derive(Debug, Default)]
pub struct Conversation {
    halves: [Half; 2],
    handshake: Option<Arc<Handshake>>,
    tx: u32,
    /// The client's hello was read and told.
    is_asked: bool,
    /// The server's hello was read.
    is_answered: bool,
    /// The server wants another hello.
    is_retry: bool,
    /// The server's part is known, the client's not yet: packets of two directions may come in either order.
    is_waiting: bool,
    is_over: bool,
}

impl Conversation {
    fn half(&mut self, side: Side) -> &mut Half {
        &mut self.halves[side as usize]
    }

    fn handshake(&mut self) -> &mut Handshake {
        Arc::make_mut(self.handshake.get_or_insert_default())
    }

    /// Fills a header; what is left of `bytes`, and whether it is complete.
    fn fill<'a, const N: usize>(header: &mut [u8; N], filled: &mut usize, bytes: &'a [u8]) -> &'a [u8] {
        let (now, rest) = bytes.split_at(bytes.len().min(N - *filled));
        header[*filled..*filled + now.len()].copy_from_slice(now);
        *filled += now.len();
        rest
    }

    /// Takes a record's header, or a piece of its body; what is left of `bytes`.
    fn step<'a>(&mut self, side: Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = self.half(side);
        if half.left == 0 {
            let rest = Self::fill(&mut half.header, &mut half.header_filled, bytes);
            if half.header_filled == RECORD_HEADER {
                self.begin_record(side, out);
            }
            return rest;
        }
        let (piece, rest) = bytes.split_at(bytes.len().min(half.left));
        half.left -= piece.len();
        let kind = half.header[0];
        if half.left == 0 {
            half.header_filled = 0;
        }
        match kind {
            HANDSHAKE => self.take_handshake(side, piece, out),
            ALERT => self.take_alert(side, piece, out),
            // Of an SSLv2 hello; see `begin_record`.
            _ if kind & 0x80 != 0 => self.take_old_hello(piece, out),
            _ => {}
        }
        rest
    }

    fn begin_record(&mut self, side: Side, out: &mut Out) {
        let is_first = !self.half(side).has_begun;
        let half = self.half(side);
        half.has_begun = true;
        let [kind, major, _, high, low] = half.header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if side == Side::Client && is_first && kind & 0x80 != 0 && half.header[2] == CLIENT_HELLO {
            // SSLv2's header is a length of 15 bits; behind it stand the type and the version, of which one byte came.
            let length = usize::from(u16::from_be_bytes([kind & 0x7f, major]));
            if let Some(left @ 1..) = length.checked_sub(RECORD_HEADER - 2) {
                half.left = left;
                return out.odd(side, "tls.sslv2_hello");
            }
        }
        if !(CHANGE_CIPHER_SPEC..=HEARTBEAT).contains(&kind) || major != 3 {
            out.odd(side, "tls.bad_record");
            return self.lose(side, out);
        }
        if length > RECORD_MAX {
            out.odd(side, "tls.long_record");
            return self.lose(side, out);
        }
        half.left = length;
        if length == 0 {
            half.header_filled = 0;
            if kind == HANDSHAKE || kind == ALERT {
                out.odd(side, "tls.empty_record");
            }
        }
        match kind {
            CHANGE_CIPHER_SPEC => self.change_cipher(side, out),
            APPLICATION_DATA => self.application_data(side, out),
            _ => {}
        }
    }

    /// What `side` sends now is encrypted, unless this is one of the empty gestures of TLS 1.3 (RFC 8446, D.4).
    fn change_cipher(&mut self, side: Side, out: &mut Out) {
        if !self.is_answered {
            return;
        }
        self.half(side).is_opaque = true;
        if side == Side::Server {
            // A server that shows nothing before it changes ciphers goes on from an earlier session (RFC 5246, 7.3).
            self.handshake().is_resumed = true;
            self.finish(out);
        }
    }

    fn application_data(&mut self, side: Side, out: &mut Out) {
        self.half(side).is_opaque = true;
        // Of a client that was not answered it is early data (RFC 8446, 2.3), and its answer is still to come. Without any
        // hello, the conversation was under way before it was seen.
        if side == Side::Server || self.is_answered {
            if !self.is_asked {
                self.half(Side::Client).is_opaque = true;
            }
            self.finish(out);
        } else if !self.is_asked {
            self.is_over = true;
        }
    }

    fn take_alert(&mut self, side: Side, piece: &[u8], out: &mut Out) {
        let mut piece = piece;
        while !piece.is_empty() && !self.is_over {
            let half = self.half(side);
            let (alert, filled) = (&mut half.alert, &mut half.alert_filled);
            piece = Self::fill(alert, filled, piece);
            if half.alert_filled < half.alert.len() {
                return;
            }
            half.alert_filled = 0;
            let [level, description] = half.alert;
            let ends = level == FATAL || description == CLOSE_NOTIFY;
            let is_sound = level == FATAL || level == 1;
            // Without a hello it may as well be an encrypted one of a conversation that was under way.
            if ends && is_sound && self.handshake.is_some() {
                self.handshake().alert = Some((side, description));
                self.half(Side::Client).is_opaque = true;
                return self.finish(out);
            }
        }
    }

    fn take_handshake(&mut self, side: Side, piece: &[u8], out: &mut Out) {
        let mut piece = piece;
        while !piece.is_empty() && !self.is_over && !self.half(side).is_opaque {
            let message = &mut self.half(side).message;
            if message.header_filled < MESSAGE_HEADER {
                piece = Self::fill(&mut message.header, &mut message.header_filled, piece);
                if message.header_filled < MESSAGE_HEADER {
                    return;
                }
                let [_, a, b, c] = message.header;
                message.left = u32::from_be_bytes([0, a, b, c]) as usize;
            }
            let (now, rest) = piece.split_at(piece.len().min(message.left));
            piece = rest;
            message.left -= now.len();
            let is_read = Self::is_read(side, message.kind());
            if message.left > 0 {
                if is_read {
                    let room = MESSAGE_MAX - message.kept.len();
                    message.kept.extend_from_slice(&now[..now.len().min(room)]);
                }
                continue;
            }
            let mut kept = std::mem::take(&mut message.kept);
            let kind = message.kind();
            message.header_filled = 0;
            if kept.is_empty() {
                self.take_message(side, kind, now, out);
            } else {
                let room = MESSAGE_MAX - kept.len();
                kept.extend_from_slice(&now[..now.len().min(room)]);
                self.take_message(side, kind, &kept, out);
            }
        }
    }

    /// Whether a message's body says something.
    fn is_read(side: Side, kind: u8) -> bool {
        matches!((side, kind), (Side::Client, CLIENT_HELLO) | (Side::Server, SERVER_HELLO | CERTIFICATE))
    }

    fn take_message(&mut self, side: Side, kind: u8, body: &[u8], out: &mut Out) {
        match (side, kind) {
            (Side::Client, CLIENT_HELLO) => self.client_hello(body, out),
            (Side::Server, SERVER_HELLO) => self.server_hello(body, out),
            (Side::Server, CERTIFICATE) if self.is_answered => {
                match certificate::leaf(body) {
                    Ok(certificate) => self.handshake().certificate = certificate,
                    Err(()) => out.odd(side, "tls.malformed_certificate"),
                }
                self.finish(out);
            }
            (Side::Server, SERVER_HELLO_DONE) if self.is_answered => self.finish(out),
            _ => {}
        }
    }

    fn client_hello(&mut self, body: &[u8], out: &mut Out) {
        let mut odd = |name| out.oddities.push((Side::Client, crate::packet::proto::Oddity(name)));
        if !self.is_asked {
            hello::read_client(body, Carrier::Tcp, self.handshake(), &mut odd);
            return self.ask(out);
        }
        if !self.is_retry {
            odd("tls.unexpected_client_hello");
        }
        // The second hello must be as the first (RFC 8446, 4.1.2). A client that asks for another name now would get past
        // a rule that saw the first one only: it is another transaction.
        let mut second = Handshake::default();
        hello::read_client(body, Carrier::Tcp, &mut second, &mut odd);
        let first = self.handshake();
        if second.sni == first.sni && second.client_alpn == first.client_alpn {
            return;
        }
        odd("tls.changed_client_hello");
        if let Some(first) = self.handshake.replace(Arc::new(second)) {
            out.tell(self.tx, Stage::Done, Fact::Tls(first));
        }
        self.tx += 1;
        self.ask(out);
    }

    /// The client's part is known.
    fn ask(&mut self, out: &mut Out) {
        self.is_asked = true;
        if let Some(handshake) = &self.handshake {
            out.tell(self.tx, Stage::Asked, Fact::Tls(handshake.clone()));
        }
        if self.is_waiting {
            self.finish(out);
        }
    }

    fn server_hello(&mut self, body: &[u8], out: &mut Out) {
        let mut odd = |name| out.oddities.push((Side::Server, crate::packet::proto::Oddity(name)));
        match hello::read_server(body, self.handshake(), &mut odd) {
            None => {
                odd("tls.malformed_server_hello");
                self.lose(Side::Server, out);
            }
            Some(Answer::Retry) => self.is_retry = true,
            Some(Answer::Hello) => {
                self.is_answered = true;
                if self.handshake().version.is_some_and(is_version_13) {
                    self.half(Side::Server).is_opaque = true;
                    self.finish(out);
                }
            }
        }
    }

    /// Takes a piece of an SSLv2 hello that offers a newer version (RFC 5246, E.2). Its ciphers are three bytes each.
    fn take_old_hello(&mut self, piece: &[u8], out: &mut Out) {
        let half = self.half(Side::Client);
        let major = half.header[3];
        half.message.kept.extend_from_slice(piece);
        if half.left > 0 {
            return;
        }
        let (kept, minor) = (std::mem::take(&mut half.message.kept), half.header[4]);
        let mut reader = Reader::new(&kept);
        let lengths = (reader.u16(), reader.u16(), reader.u16());
        let sum = match lengths {
            (Some(a), Some(b), Some(c)) => Some(usize::from(a) + usize::from(b) + usize::from(c)),
            _ => None,
        };
        if sum != Some(reader.rest().len()) {
            out.odd(Side::Client, "tls.malformed_client_hello");
        }
        self.handshake().client_version = u16::from_be_bytes([major, minor]);
        self.ask(out);
    }

    /// All is known that will be, unless the client's hello may still come.
    fn finish(&mut self, out: &mut Out) {
        if !self.is_asked && !self.half(Side::Client).is_opaque {
            self.is_waiting = true;
            self.half(Side::Server).is_opaque = true;
            return;
        }
        self.is_over = true;
        self.halves = Default::default();
        if let Some(handshake) = self.handshake.take() {
            out.tell(self.tx, Stage::Done, Fact::Tls(handshake));
        }
    }

    /// What `side` sends cannot be followed any more. What came of a hello is read as far as it goes.
    fn lose(&mut self, side: Side, out: &mut Out) {
        if self.is_over || self.half(side).is_opaque {
            return;
        }
        let half = self.half(side);
        half.is_opaque = true;
        half.has_begun = true;
        let message = std::mem::take(&mut half.message);
        if !message.is_between() && Self::is_read(side, message.kind()) && !message.kept.is_empty() {
            match message.kind() {
                CLIENT_HELLO if !self.is_asked => self.client_hello(&message.kept, out),
                SERVER_HELLO if !self.is_answered => self.server_hello(&message.kept, out),
                _ => {}
            }
        }
        if !self.is_over && (side == Side::Server || self.is_waiting) {
            self.finish(out);
        }
    }
}

impl Parser for Conversation {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_over && !self.half(side).is_opaque {
            rest = self.step(side, rest, out);
        }
    }

    fn skip(&mut self, side: Side, missing: u64, out: &mut Out) {
        let half = self.half(side);
        // What is missing inside of a body that would not be read does no harm.
        let kind = half.header[0];
        let is_in_message = kind == HANDSHAKE && half.message.header_filled == MESSAGE_HEADER;
        let is_unread = match kind {
            HANDSHAKE => is_in_message && !Self::is_read(side, half.message.kind()),
            ALERT => false,
            _ => kind & 0x80 == 0,
        };
        let left = if is_in_message { half.left.min(half.message.left) } else { half.left };
        match usize::try_from(missing) {
            Ok(missing) if is_unread && missing < left => {
                half.left -= missing;
                if is_in_message {
                    half.message.left -= missing;
                }
            }
            _ => self.lose(side, out),
        }
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        self.lose(side, out);
    }

    fn memory(&self) -> usize {
        let kept = self.halves.iter().map(|half| half.message.kept.capacity()).sum::<usize>();
        size_of::<Self>() + kept + self.handshake.as_ref().map_or(0, |handshake| handshake.memory())
    }
}
