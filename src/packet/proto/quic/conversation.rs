//! A conversation's datagrams: Initial packets are opened, their handshake is read, all else is passed over.

use std::sync::Arc;

use super::Initial;
use super::crypto_stream::{CryptoStream, Fault};
use super::google;
use super::keys::{Family, Keys};
use super::packet::{self, Frame, Packet};
use crate::packet::proto::tls::{self, Answer, Carrier, Handshake};
use crate::packet::proto::{Fact, Oddity, Out, Parser, Side, Stage};

const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// Keys, and what they were made of.
struct Known {
    version: u32,
    connection_id: Vec<u8>,
    keys: Keys,
}

/// One connection. Clients seldom open two between the same ports, but nothing forbids it.
#[derive(Default)]
struct Connection {
    version: u32,
    known: Option<Known>,
    /// The largest packet number of each side.
    largest: [Option<u64>; 2],
    streams: [CryptoStream; 2],
    handshake: Handshake,
    /// The client's hello was read and told.
    is_asked: bool,
    /// The server answered by a retry: the client begins anew, by another connection id.
    is_retry: bool,
    is_done: bool,
}

/// Reads a QUIC conversation as far as its Initial packets go.
#[derive(Default)]
pub struct Conversation {
    connection: Connection,
    tx: u32,
}

impl Conversation {
    /// Opens an Initial packet by the connection's keys, or as the first of another connection.
    fn open(&mut self, side: Side, packet: &Packet, out: &mut Out) -> Option<Vec<u8>> {
        let Packet::Initial { version, family, destination, bytes, number_at } = packet else {
            return None;
        };
        let known = self.connection.known.take();
        let has_known = known.is_some();
        // A server may answer in another version than it was asked in, for the same connection id (RFC 9368, 2.3).
        let known = known.map(|known| match known.version == *version {
            true => Some(known),
            false => derive(*version, *family, &known.connection_id),
        });
        let largest = self.connection.largest[side as usize];
        if let Some(known) = known.flatten() {
            let opened = known.keys.open(side, bytes, *number_at, largest);
            self.connection.known = Some(known);
            if let Some((number, frames)) = opened {
                let largest = &mut self.connection.largest[side as usize];
                *largest = Some(largest.unwrap_or(0).max(number));
                return Some(frames);
            }
        }
        if side == Side::Client
            && let Some(known) = derive(*version, *family, destination)
            && let Some((number, frames)) = known.keys.open(side, bytes, *number_at, None)
        {
            self.begin(known, out);
            self.connection.largest[side as usize] = Some(number);
            return Some(frames);
        }
        // Of a server whose client was not heard there are no keys.
        if has_known || side == Side::Client {
            out.odd(side, "quic.unauthentic_packet");
        }
        None
    }

    /// A client begins: first, or anew after a retry, or another connection.
    fn begin(&mut self, known: Known, out: &mut Out) {
        let old = &mut self.connection;
        if old.known.is_none() || (old.is_retry && !old.is_done) {
            // The hello is the same after a retry (RFC 9000, 17.2.5.3); if it came whole before, it is not told again
            // unless it changed.
            old.version = known.version;
            old.known = Some(known);
            old.is_retry = false;
            old.streams = Default::default();
            old.largest = [None; 2];
            return;
        }
        self.finish(out);
        self.tx += 1;
        self.connection = Connection { version: known.version, known: Some(known), ..Connection::default() };
    }

    fn take_frames(&mut self, side: Side, family: Family, frames: &[u8], out: &mut Out) {
        let is_google = matches!(family, Family::T050 | Family::T051);
        let next = if is_google { packet::next_google_frame } else { packet::next_frame };
        let mut rest = frames;
        let mut is_closed = false;
        while !rest.is_empty() {
            let Some((frame, behind)) = next(rest) else {
                if !is_google {
                    out.odd(side, "quic.bad_frame");
                }
                break;
            };
            rest = behind;
            match frame {
                Frame::Crypto { offset, data } if !self.connection.is_done => {
                    match self.connection.streams[side as usize].insert(offset, data) {
                        Ok(()) => {}
                        Err(Fault::TooMuch) => out.odd(side, "quic.too_much_crypto"),
                        Err(Fault::Conflict) => out.odd(side, "quic.crypto_conflict"),
                    }
                }
                Frame::Crypto { .. } | Frame::Other => {}
                Frame::Close => is_closed = true,
            }
        }
        while !self.connection.is_done && self.take_message(side, out) {}
        if is_closed {
            self.finish(out);
        }
    }

    /// Reads the next message if it is complete; whether it was.
    fn take_message(&mut self, side: Side, out: &mut Out) -> bool {
        let mut stream = std::mem::take(&mut self.connection.streams[side as usize]);
        let length = stream.message().map(|(kind, body)| {
            match (side, kind) {
                (Side::Client, CLIENT_HELLO) => self.client_hello(body, out),
                (Side::Server, SERVER_HELLO) => self.server_hello(body, out),
                _ => out.odd(side, "quic.unexpected_message"),
            }
            body.len()
        });
        if let Some(length) = length {
            stream.advance(length);
        }
        if !self.connection.is_done {
            self.connection.streams[side as usize] = stream;
        }
        length.is_some()
    }

    fn client_hello(&mut self, body: &[u8], out: &mut Out) {
        let mut hello = Handshake::default();
        tls::read_client(body, Carrier::Quic, &mut hello, &mut |name| out.oddities.push((Side::Client, Oddity(name))));
        if !self.connection.is_asked {
            self.connection.handshake = hello;
            return self.ask(out);
        }
        // After a retry of TLS or of QUIC. One that asks for another name would get past a rule that saw the first
        // only.
        let first = &self.connection.handshake;
        if hello.sni == first.sni && hello.client_alpn == first.client_alpn {
            return;
        }
        out.odd(Side::Client, "tls.changed_client_hello");
        self.tell(Stage::Done, out);
        self.tx += 1;
        self.connection.handshake = hello;
        self.ask(out);
    }

    /// A hello of Google's QUIC before TLS: it is all that is read of such a connection.
    fn take_google(&mut self, datagram: &[u8], out: &mut Out) {
        if let Some(hello) = google::hello(datagram) {
            self.connection.version = hello.version;
            self.tell_google(hello.server_name, out);
        }
    }

    /// The same of Q050, whose packets were opened.
    fn take_google_frames(&mut self, side: Side, frames: &[u8], out: &mut Out) {
        if side == Side::Client
            && !self.connection.is_asked
            && let Some(name) = google::server_name(frames)
        {
            self.tell_google(name, out);
        }
    }

    fn tell_google(&mut self, server_name: Option<&[u8]>, out: &mut Out) {
        self.connection.handshake.sni = server_name.map(<[u8]>::to_vec);
        self.ask(out);
        self.finish(out);
    }

    fn ask(&mut self, out: &mut Out) {
        self.connection.is_asked = true;
        self.tell(Stage::Asked, out);
    }

    fn server_hello(&mut self, body: &[u8], out: &mut Out) {
        let handshake = &mut self.connection.handshake;
        let mut odd = |name| out.oddities.push((Side::Server, Oddity(name)));
        match tls::read_server(body, handshake, &mut odd) {
            Some(Answer::Retry) => {}
            Some(Answer::Hello) => self.finish(out),
            None => {
                odd("tls.malformed_server_hello");
                self.finish(out);
            }
        }
    }

    fn tell(&self, stage: Stage, out: &mut Out) {
        let connection = &self.connection;
        let handshake = Arc::new(connection.handshake.clone());
        out.tell(self.tx, stage, Fact::Quic(Arc::new(Initial { version: connection.version, handshake })));
    }

    /// All is known that will be. The keys stay, so that packets that come again are not taken for another
    /// connection's.
    fn finish(&mut self, out: &mut Out) {
        if self.connection.is_done || self.connection.version == 0 {
            return;
        }
        if !self.connection.is_asked {
            self.read_partial_hello(out);
        }
        self.tell(Stage::Done, out);
        self.connection.is_done = true;
        self.connection.streams = Default::default();
        self.connection.handshake = Handshake::default();
    }

    /// Reads as much of the client's hello as came.
    fn read_partial_hello(&mut self, out: &mut Out) {
        let stream = std::mem::take(&mut self.connection.streams[Side::Client as usize]);
        if let [CLIENT_HELLO, _, _, _, body @ ..] = stream.ready()
            && !body.is_empty()
        {
            let handshake = &mut self.connection.handshake;
            tls::read_client(body, Carrier::Quic, handshake, &mut |name| out.odd(Side::Client, name));
        }
    }
}

fn derive(version: u32, family: Family, connection_id: &[u8]) -> Option<Known> {
    let keys = Keys::derive(family, connection_id)?;
    Some(Known { version, connection_id: connection_id.to_vec(), keys })
}

impl Parser for Conversation {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        if side == Side::Client && self.connection.known.is_none() && !self.connection.is_asked {
            self.take_google(bytes, out);
        }
        let mut rest = bytes;
        // Behind a packet with a short header nothing can be told apart.
        while rest.first().is_some_and(|first| first & 0x80 != 0) {
            let Some((packet, behind)) = packet::next(rest) else {
                return out.odd(side, "quic.malformed_packet");
            };
            rest = behind;
            match packet {
                Packet::Initial { family, .. } => match self.open(side, &packet, out) {
                    Some(frames) if family == Family::Q050 => self.take_google_frames(side, &frames, out),
                    Some(frames) => self.take_frames(side, family, &frames, out),
                    None => {}
                },
                // The server's later packets come behind its hello, or its hello is lost.
                Packet::Later if side == Side::Server => {
                    if self.connection.is_asked {
                        self.finish(out);
                    }
                }
                Packet::Later | Packet::Negotiation => {}
                Packet::Retry => self.connection.is_retry |= side == Side::Server,
                Packet::Unknown { version } => {
                    if side == Side::Client && self.connection.known.is_none() && !packet::is_reserved(version) {
                        self.connection.version = version;
                    }
                }
            }
        }
    }

    fn skip(&mut self, _side: Side, _missing: u64, _out: &mut Out) {}

    fn end(&mut self, side: Side, out: &mut Out) {
        // Of a client alone the server may still answer.
        if side == Side::Server {
            self.finish(out);
        }
    }

    fn memory(&self) -> usize {
        let streams = self.connection.streams.iter().map(CryptoStream::memory).sum::<usize>();
        // Keys of aws-lc lie on its heap: four of half a kilobyte.
        let keys = if self.connection.known.is_some() { 2048 } else { 0 };
        size_of::<Self>() + streams + keys + self.connection.handshake.memory()
    }
}
