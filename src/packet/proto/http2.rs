//! HTTP/2 in clear text (RFC 9113) and gRPC above it: one exchange a stream.
//!
//! Frames are taken apart as they come; only header blocks and settings are kept until they are whole. Where bytes
//! are missing, a side looks for what can be nothing but a frame's header; fields that refer to what was missed are
//! left out ([`hpack`]).

mod frame;
mod hpack;
mod huffman;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::frame::{HEADER_LEN, Header, flag, kind, unpadded};
use self::hpack::Decoder;
use self::stream::{Block, Stream};
use super::http::{Exchange, HEAD_MAX, Version};
use super::{Fact, Out, Parser, Side, Stage};

/// What a client sends first (RFC 9113, 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams that are open at once. Servers allow 100 to 250.
pub const OPEN_STREAMS_MAX: usize = 256;
/// Bytes of what all open streams told.
pub const STREAMS_BYTES_MAX: usize = 512 * 1024;
/// CONTINUATION frames of one block; a block of 64 KiB needs four.
const CONTINUATIONS_MAX: u32 = 32;
/// Bytes of SETTINGS; one of each known kind needs 48.
const SETTINGS_LEN_MAX: u32 = 4 * 1024;
/// SETTINGS_HEADER_TABLE_SIZE.
const SETTINGS_TABLE_SIZE: u16 = 1;
/// SETTINGS_MAX_FRAME_SIZE.
const SETTINGS_FRAME_SIZE: u16 = 5;

/// A parser of one connection.
#[derive(Default)]
pub struct Http2 {
    halves: [Half; 2],
    streams: BTreeMap<u32, Stream>,
    /// Bytes of `streams`.
    bytes: usize,
    /// The highest stream that each side opened, or that was known of before.
    highest: [u32; 2],
    next_tx: u32,
}

/// Where a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before its first byte.
    Start,
    /// In the preface, of which so many bytes came.
    Preface(usize),
    /// At a frame's header, or in it.
    Header,
    /// In a frame that is kept.
    Kept(Header),
    /// At the padding's length of a DATA frame.
    PadLength(Header),
    /// In a DATA frame: bytes of data, then of padding, that are left.
    Data { header: Header, data: u32, padding: u32 },
    /// In a frame that is nobody's concern.
    Passing(u32),
    /// Nobody knows.
    Lost,
}

/// A side.
struct Half {
    state: State,
    kept: Vec<u8>,
    decoder: Decoder,
    block: Option<OpenBlock>,
    /// The largest frame that the other side takes.
    frame_max: u32,
    /// No frame came yet.
    is_first: bool,
    is_ended: bool,
}

/// A header block that is not complete.
struct OpenBlock {
    /// Whose frame it came in.
    stream: u32,
    /// The stream that a PUSH_PROMISE announces.
    promised: Option<u32>,
    ends_stream: bool,
    bytes: Vec<u8>,
    continuations: u32,
    /// It is longer than can be kept.
    is_dropped: bool,
}

impl Default for Half {
    fn default() -> Half {
        Half {
            state: State::Start,
            kept: Vec::new(),
            decoder: Decoder::default(),
            block: None,
            frame_max: frame::SIZE_DEFAULT,
            is_first: true,
            is_ended: false,
        }
    }
}

impl Parser for Http2 {
    fn take(&mut self, side: Side, mut bytes: &[u8], out: &mut Out) {
        while !bytes.is_empty() {
            bytes = match self.half(side).state {
                State::Start => self.on_start(side, bytes),
                State::Preface(len) => self.on_preface(side, len, bytes, out),
                State::Header => self.on_header(side, bytes, out),
                State::Kept(header) => self.on_kept(side, header, bytes, out),
                State::PadLength(header) => self.on_pad_length(side, header, bytes, out),
                State::Data { header, data, padding } => self.on_data(side, header, (data, padding), bytes, out),
                State::Passing(left) => self.on_passing(side, left, bytes),
                State::Lost => self.on_lost(side, bytes),
            };
        }
    }

    fn skip(&mut self, side: Side, mut missing: u64, out: &mut Out) {
        while missing > 0 {
            let left = match self.half(side).state {
                State::Data { header, data, padding } if data > 0 => {
                    let n = u64::from(data).min(missing);
                    if let Some(stream) = self.streams.get_mut(&header.stream) {
                        stream.bodies[side as usize].skip(n);
                    }
                    self.go_on_in_data(side, header, data - n as u32, padding, out);
                    missing - n
                }
                State::Data { header, padding, .. } => {
                    let n = u64::from(padding).min(missing);
                    self.go_on_in_data(side, header, 0, padding - n as u32, out);
                    missing - n
                }
                State::Passing(len) => {
                    let n = u64::from(len).min(missing);
                    self.pass(side, len - n as u32);
                    missing - n
                }
                _ => {
                    out.odd(side, "http2.gap");
                    return self.lose(side);
                }
            };
            missing = left;
        }
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        self.half(side).is_ended = true;
        let is_over = self.halves.iter().all(|half| half.is_ended);
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        for id in ids {
            self.end_side(id, side, out);
            if is_over {
                self.close(id, out);
            }
        }
    }

    fn memory(&self) -> usize {
        let halves: usize = self.halves.iter().map(Half::memory).sum();
        size_of::<Http2>() + halves + self.bytes
    }
}

impl Half {
    fn memory(&self) -> usize {
        let block = self.block.as_ref().map_or(0, |block| block.bytes.capacity());
        self.kept.capacity() + self.decoder.memory() + block
    }
}

impl Http2 {
    /// A connection that became HTTP/2 by an upgrade: its request is stream 1 (RFC 7540, 3.2).
    pub(super) fn upgraded(tx: u32, request: Arc<Exchange>, next_tx: u32) -> Http2 {
        let mut parser = Http2 { next_tx, ..Http2::default() };
        let mut stream = Stream::new(tx, request);
        Arc::make_mut(&mut stream.exchange).stream = Some(1);
        stream.has_head[Side::Client as usize] = true;
        // Its body was told already, and is not to be told again as an empty one.
        stream.is_ended[Side::Client as usize] = true;
        parser.bytes = stream.bytes;
        parser.streams.insert(1, stream);
        parser.highest[Side::Client as usize] = 1;
        // The client's settings stood in a field of the request; they are repeated behind the preface.
        parser.half(Side::Server).decoder.allow_any();
        parser
    }

    fn half(&mut self, side: Side) -> &mut Half {
        &mut self.halves[side as usize]
    }

    fn on_start<'a>(&mut self, side: Side, bytes: &'a [u8]) -> &'a [u8] {
        self.half(side).state = if side == Side::Client { State::Preface(0) } else { State::Header };
        bytes
    }

    fn on_preface<'a>(&mut self, side: Side, len: usize, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let same = PREFACE[len..].iter().zip(bytes).take_while(|(a, b)| a == b).count();
        let rest = &bytes[same..];
        let len = len + same;
        self.half(side).state = State::Preface(len);
        if len == PREFACE.len() {
            self.half(side).state = State::Header;
        } else if !rest.is_empty() {
            // It started before this parser.
            out.odd(side, "http2.no_preface");
            self.lose(side);
            self.take(side, &PREFACE[..len], out);
        }
        rest
    }

    fn on_header<'a>(&mut self, side: Side, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = self.half(side);
        let room = HEADER_LEN - half.kept.len();
        let n = room.min(bytes.len());
        let header = match bytes.first_chunk() {
            Some(header) if half.kept.is_empty() => *header,
            _ => {
                half.kept.extend_from_slice(&bytes[..n]);
                let Some(&header) = half.kept.first_chunk() else { return &[] };
                half.kept.clear();
                header
            }
        };
        if std::mem::take(&mut half.is_first) && !Header::opens(&header) {
            // A connection starts with settings.
            out.odd(side, "http2.no_preface");
            self.lose(side);
            self.take(side, &header, out);
        } else {
            self.start_frame(side, Header::read(&header), out);
        }
        &bytes[n..]
    }

    /// Decides what becomes of a frame's payload.
    fn start_frame(&mut self, side: Side, header: Header, out: &mut Out) {
        let half = self.half(side);
        if header.len > half.frame_max {
            out.odd(side, "http2.frame_too_large");
        }
        if let Some(block) = &half.block
            && (header.kind != kind::CONTINUATION || header.stream != block.stream)
        {
            // Nothing may stand between the parts of a block (RFC 9113, 6.10): its end is not known.
            out.odd(side, "http2.broken_block");
            half.block = None;
            half.decoder.lose();
        }
        half.state = match header.kind {
            kind::DATA if header.has(flag::PADDED) && header.len > 0 => State::PadLength(header),
            kind::DATA => return self.go_on_in_data(side, header, header.len, 0, out),
            kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION if header.len as usize <= HEAD_MAX => {
                State::Kept(header)
            }
            kind::HEADERS | kind::PUSH_PROMISE | kind::CONTINUATION => {
                out.odd(side, "http2.headers_too_long");
                half.block = (!header.has(flag::END_HEADERS)).then(|| OpenBlock::dropped(header));
                half.decoder.lose();
                State::Passing(header.len)
            }
            kind::SETTINGS if header.len <= SETTINGS_LEN_MAX && !header.has(flag::ACK) => State::Kept(header),
            _ => State::Passing(header.len),
        };
        if header.kind == kind::RST_STREAM {
            self.close(header.stream, out);
        }
        match self.half(side).state {
            State::Kept(header) if header.len == 0 => self.take_frame(side, header, &[], out),
            State::Passing(0) => self.pass(side, 0),
            _ => {}
        }
    }

    fn on_kept<'a>(&mut self, side: Side, header: Header, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let half = self.half(side);
        let n = bytes.len().min(header.len as usize - half.kept.len());
        let (payload, rest) = bytes.split_at(n);
        if half.kept.is_empty() && n == header.len as usize {
            self.take_frame(side, header, payload, out);
            return rest;
        }
        half.kept.extend_from_slice(payload);
        if half.kept.len() == header.len as usize {
            let kept = std::mem::take(&mut half.kept);
            self.take_frame(side, header, &kept, out);
        }
        rest
    }

    fn on_passing<'a>(&mut self, side: Side, left: u32, bytes: &'a [u8]) -> &'a [u8] {
        let n = bytes.len().min(left as usize);
        self.pass(side, left - n as u32);
        &bytes[n..]
    }

    fn pass(&mut self, side: Side, left: u32) {
        self.half(side).state = if left == 0 { State::Header } else { State::Passing(left) };
    }

    fn on_pad_length<'a>(&mut self, side: Side, header: Header, bytes: &'a [u8], out: &mut Out) -> &'a [u8] {
        let padding = u32::from(bytes[0]);
        match (header.len - 1).checked_sub(padding) {
            Some(data) => self.go_on_in_data(side, header, data, padding, out),
            None => {
                out.odd(side, "http2.bad_padding");
                self.pass(side, header.len - 1);
            }
        }
        &bytes[1..]
    }

    fn on_data<'a>(
        &mut self,
        side: Side,
        header: Header,
        (data, padding): (u32, u32),
        bytes: &'a [u8],
        out: &mut Out,
    ) -> &'a [u8] {
        let n = bytes.len().min(data as usize);
        let padded = (bytes.len() - n).min(padding as usize);
        if n > 0
            && let Some(stream) = self.streams.get_mut(&header.stream)
            && !stream.is_ended[side as usize]
        {
            stream.bodies[side as usize].take(&bytes[..n]);
            self.recount(header.stream);
            self.evict(header.stream, side, out);
        }
        self.go_on_in_data(side, header, data - n as u32, padding - padded as u32, out);
        &bytes[n + padded..]
    }

    fn go_on_in_data(&mut self, side: Side, header: Header, data: u32, padding: u32, out: &mut Out) {
        if data > 0 || padding > 0 {
            self.half(side).state = State::Data { header, data, padding };
            return;
        }
        self.half(side).state = State::Header;
        if header.has(flag::END_STREAM) {
            self.end_side(header.stream, side, out);
        }
    }

    /// A frame that was kept is whole.
    fn take_frame(&mut self, side: Side, header: Header, payload: &[u8], out: &mut Out) {
        self.half(side).state = State::Header;
        match header.kind {
            kind::SETTINGS => self.take_settings(side, payload),
            kind::CONTINUATION => self.take_continuation(side, header, payload, out),
            _ => self.start_block(side, header, payload, out),
        }
    }

    /// Settings bind the other side (RFC 9113, 6.5.2).
    fn take_settings(&mut self, side: Side, payload: &[u8]) {
        let other = self.half(side.other());
        for &[a, b, value @ ..] in payload.as_chunks::<6>().0 {
            let value = u32::from_be_bytes(value);
            match u16::from_be_bytes([a, b]) {
                SETTINGS_TABLE_SIZE => other.decoder.allow(value as usize),
                SETTINGS_FRAME_SIZE => other.frame_max = value.clamp(frame::SIZE_DEFAULT, (1 << 24) - 1),
                _ => {}
            }
        }
    }

    fn start_block(&mut self, side: Side, header: Header, payload: &[u8], out: &mut Out) {
        let mut promised = None;
        let fragment = unpadded(header, payload).and_then(|fragment| match header.kind {
            kind::PUSH_PROMISE => {
                let (id, fragment) = fragment.split_first_chunk()?;
                promised = Some(u32::from_be_bytes(*id) & 0x7fff_ffff);
                Some(fragment)
            }
            _ if header.has(flag::PRIORITY) => fragment.get(5..),
            _ => Some(fragment),
        });
        let Some(fragment) = fragment else {
            out.odd(side, "http2.bad_padding");
            let half = self.half(side);
            half.decoder.lose();
            half.block = (!header.has(flag::END_HEADERS)).then(|| OpenBlock::dropped(header));
            return;
        };
        let block = OpenBlock {
            stream: header.stream,
            promised,
            ends_stream: header.kind == kind::HEADERS && header.has(flag::END_STREAM),
            bytes: Vec::new(),
            continuations: 0,
            is_dropped: false,
        };
        if header.has(flag::END_HEADERS) {
            self.take_block(side, block, fragment, out);
        } else {
            self.half(side).block = Some(OpenBlock { bytes: fragment.to_vec(), ..block });
        }
    }

    fn take_continuation(&mut self, side: Side, header: Header, payload: &[u8], out: &mut Out) {
        let half = self.half(side);
        let Some(mut block) = half.block.take() else {
            // Its start was missed: what it adds to the table is not known.
            out.odd(side, "http2.broken_block");
            return half.decoder.lose();
        };
        block.continuations = block.continuations.saturating_add(1);
        let is_too_long = block.bytes.len() + payload.len() > HEAD_MAX;
        if !block.is_dropped && (is_too_long || block.continuations > CONTINUATIONS_MAX) {
            out.odd(side, if is_too_long { "http2.headers_too_long" } else { "http2.continuation_flood" });
            half.decoder.lose();
            block.is_dropped = true;
            block.bytes = Vec::new();
        }
        if !block.is_dropped {
            block.bytes.extend_from_slice(payload);
        }
        if !header.has(flag::END_HEADERS) {
            half.block = Some(block);
        } else if !block.is_dropped {
            let bytes = std::mem::take(&mut block.bytes);
            self.take_block(side, block, &bytes, out);
        }
    }

    /// A header block is whole.
    fn take_block(&mut self, side: Side, open: OpenBlock, bytes: &[u8], out: &mut Out) {
        let mut block = Block::default();
        match self.half(side).decoder.decode(bytes, |name, value| block.add(name, value)) {
            Ok(unknown) => block.unknown = unknown,
            // The fields in front of the error are right.
            Err(_) => {
                out.odd(side, "http2.bad_hpack");
                block.is_broken = true;
            }
        }
        block.oddities().for_each(|name| out.odd(side, name));
        let (id, of) = match open.promised {
            // The request that the server makes up for the client.
            Some(id) => (id, Side::Client),
            None => (open.stream, side),
        };
        if !self.open(id, side, out) {
            return;
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let mut odd = Vec::new();
        let was_head = stream.take_fields(of, block, &mut odd);
        odd.into_iter().for_each(|name| out.odd(side, name));
        if was_head && of == Side::Client {
            out.tell(stream.tx, Stage::Asked, Fact::Http(stream.exchange.clone()));
        }
        self.recount(id);
        if open.promised.is_some() || open.ends_stream {
            self.end_side(id, of, out);
        }
        self.evict(id, side, out);
    }

    /// Whether a stream is open; it is opened if it is new.
    fn open(&mut self, id: u32, side: Side, out: &mut Out) -> bool {
        if self.streams.contains_key(&id) {
            return true;
        }
        let is_own = (id % 2 == 1) == (side == Side::Client);
        if id == 0 || (side == Side::Client && !is_own) {
            out.odd(side, "http2.bad_stream");
            return false;
        }
        // One that was open before is done, and what comes late is nobody's.
        let [client, server] = self.highest;
        if id <= self.highest[side as usize] || (!is_own && id <= client.max(server)) {
            return false;
        }
        self.highest[side as usize] = id;
        let exchange = Exchange { version: Version::V2, stream: Some(id), ..Exchange::default() };
        let mut stream = Stream::new(self.next_tx, Arc::new(exchange));
        self.next_tx = self.next_tx.wrapping_add(1);
        // A response to what was asked before this parser listened.
        stream.is_ended[Side::Client as usize] = side == Side::Server && !is_own;
        self.bytes += stream.bytes;
        self.streams.insert(id, stream);
        true
    }

    /// Makes room: the oldest go, as far as they came.
    fn evict(&mut self, newest: u32, side: Side, out: &mut Out) {
        while self.streams.len() > OPEN_STREAMS_MAX || self.bytes > STREAMS_BYTES_MAX {
            let Some(&oldest) = self.streams.keys().find(|&&id| id != newest) else { return };
            out.odd(side, "http2.too_many_streams");
            self.close(oldest, out);
        }
    }

    /// A side's part of a stream is over.
    fn end_side(&mut self, id: u32, side: Side, out: &mut Out) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(name) = stream.end(side) {
            out.odd(side, name);
        }
        if stream.is_ended == [true; 2] {
            self.close(id, out);
        } else {
            self.recount(id);
        }
    }

    /// A stream is over, complete or not.
    fn close(&mut self, id: u32, out: &mut Out) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        self.bytes -= stream.bytes;
        for side in Side::BOTH {
            if let Some(name) = stream.end(side) {
                out.odd(side, name);
            }
        }
        out.tell(stream.tx, Stage::Done, Fact::Http(stream.exchange));
    }

    /// A side's place is not known any more.
    fn lose(&mut self, side: Side) {
        let half = self.half(side);
        half.kept = Vec::new();
        half.block = None;
        half.decoder.lose();
        half.is_first = false;
        half.state = State::Lost;
        // Settings may have been among it.
        self.half(side.other()).decoder.allow_any();
    }

    /// Looks for what is a frame's header beyond doubt, at every byte.
    fn on_lost<'a>(&mut self, side: Side, bytes: &'a [u8]) -> &'a [u8] {
        const OVERLAP: usize = HEADER_LEN - 1;
        let half = self.half(side);
        // A header may have started in the last bytes of the piece before.
        let old = half.kept.len();
        half.kept.extend_from_slice(&bytes[..bytes.len().min(OVERLAP)]);
        if let Some(at) = half.kept.array_windows().take(old).position(Header::is_plausible) {
            half.kept.truncate(old);
            half.kept.drain(..at);
            half.state = State::Header;
            return bytes;
        }
        if let Some(at) = bytes.array_windows().position(Header::is_plausible) {
            half.kept.clear();
            half.state = State::Header;
            return &bytes[at..];
        }
        if bytes.len() >= OVERLAP {
            half.kept.clear();
            half.kept.extend_from_slice(&bytes[bytes.len() - OVERLAP..]);
        } else {
            half.kept.drain(..half.kept.len().saturating_sub(OVERLAP));
        }
        &[]
    }

    /// Counts what a stream holds again.
    fn recount(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            let bytes = stream.memory();
            self.bytes = self.bytes + bytes - stream.bytes;
            stream.bytes = bytes;
        }
    }
}

impl OpenBlock {
    /// One that is not read: only its end matters.
    fn dropped(header: Header) -> OpenBlock {
        OpenBlock {
            stream: header.stream,
            promised: None,
            ends_stream: false,
            bytes: Vec::new(),
            continuations: 0,
            is_dropped: true,
        }
    }
}
