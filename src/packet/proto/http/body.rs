//! Bodies: counted whole, looked at only in their first bytes, and decoded only that far.
//!
//! What is kept of a body is decoded in one go when it ends or is cut off. So the result does not depend on how the stream
//! was cut, no decoder's window is held for the time of a transfer, and whatever a body unfolds to, at most [`WIRE_MAX`]
//! bytes are read and [`BODY_MAX`] written (between two codings [`WIRE_MAX`]).

use std::io::{ErrorKind, Read};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// Bytes of a coded body, as they were sent, that are kept to be decoded.
pub const WIRE_MAX: usize = 16 * 1024;
/// Bytes of a decoded body that are told.
pub const BODY_MAX: usize = 4 * 1024;
/// Codings on top of each other that are undone.
const CODINGS_MAX: usize = 2;

/// A coding of content or transfer (RFC 9110, 8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Brotli,
}

/// Codings of a body, in the order in which they were applied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Codings {
    applied: [Option<Coding>; CODINGS_MAX],
    /// There are more, or one that is not known: the body is told as it was sent.
    is_unreadable: bool,
    is_too_many: bool,
}

impl Codings {
    /// Takes a list such as the value of `Content-Encoding`.
    pub fn add_list(&mut self, value: &[u8]) {
        for name in value.split(|&b| b == b',') {
            self.add(name.trim_ascii());
        }
    }

    /// Takes one name, whatever its case.
    pub fn add(&mut self, name: &[u8]) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let coding = if is("gzip") || is("x-gzip") {
            Coding::Gzip
        } else if is("deflate") {
            Coding::Deflate
        } else if is("br") {
            Coding::Brotli
        } else {
            self.is_unreadable |= !name.is_empty() && !is("identity");
            return;
        };
        self.apply(coding);
    }

    /// Adds others that were applied later.
    pub fn add_all(&mut self, others: Codings) {
        others.applied.into_iter().flatten().for_each(|coding| self.apply(coding));
        self.is_unreadable |= others.is_unreadable;
        self.is_too_many |= others.is_too_many;
    }

    fn apply(&mut self, coding: Coding) {
        match self.applied.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(coding),
            None => {
                self.is_unreadable = true;
                self.is_too_many = true;
            }
        }
    }

    fn are_to_undo(&self) -> bool {
        self.applied[0].is_some() && !self.is_unreadable
    }
}

/// A body on its way.
#[derive(Debug, Default)]
pub struct Body {
    bytes: u64,
    kept: Vec<u8>,
    codings: Codings,
    /// Bytes are missing: what comes behind them is not kept.
    has_gap: bool,
}

/// What became of a body.
#[derive(Debug, Default)]
pub struct Taken {
    /// Its bytes as it was sent.
    pub bytes: u64,
    /// Its start, decoded.
    pub start: Vec<u8>,
    /// What was odd.
    pub oddity: Option<&'static str>,
}

impl Body {
    /// One with these codings, of which nothing came yet.
    pub fn new(codings: Codings) -> Body {
        Body { codings, ..Body::default() }
    }

    /// Takes the next bytes.
    pub fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let cap = if self.codings.are_to_undo() { WIRE_MAX } else { BODY_MAX };
        if self.kept.len() < cap && !self.has_gap {
            let n = bytes.len().min(cap - self.kept.len());
            self.kept.extend_from_slice(&bytes[..n]);
        }
    }

    /// So many bytes are missing.
    pub fn skip(&mut self, missing: u64) {
        self.bytes = self.bytes.saturating_add(missing);
        self.has_gap |= missing > 0;
    }

    /// Bytes of memory, about.
    pub fn memory(&self) -> usize {
        self.kept.capacity()
    }

    /// It is over.
    pub fn finish(&mut self) -> Taken {
        let Body { bytes, mut kept, codings, .. } = std::mem::take(self);
        let mut oddity = codings.is_too_many.then_some("http.too_many_codings");
        if !codings.are_to_undo() || kept.is_empty() {
            return Taken { bytes, start: kept, oddity };
        }
        // Undone from the last one applied to the first.
        let mut to_undo = codings.applied.iter().rev().flatten().peekable();
        while let Some(&coding) = to_undo.next() {
            let cap = if to_undo.peek().is_some() { WIRE_MAX } else { BODY_MAX };
            let (decoded, is_bad) = decode(coding, &kept, cap);
            if is_bad {
                oddity = Some("http.bad_coding");
            }
            if is_bad && decoded.is_empty() {
                break;
            }
            kept = decoded;
        }
        kept.truncate(BODY_MAX);
        Taken { bytes, start: kept, oddity }
    }
}

/// Undoes one coding, up to so many bytes; whether it is wrong, other than cut off.
fn decode(coding: Coding, wire: &[u8], cap: usize) -> (Vec<u8>, bool) {
    match coding {
        Coding::Gzip => read(MultiGzDecoder::new(wire), cap),
        // RFC 9110 means the zlib format; some servers send bare DEFLATE, and clients take both.
        Coding::Deflate if is_zlib(wire) => read(ZlibDecoder::new(wire), cap),
        Coding::Deflate => read(DeflateDecoder::new(wire), cap),
        Coding::Brotli => unbrotli(wire, cap),
    }
}

fn is_zlib(wire: &[u8]) -> bool {
    match wire {
        [cmf, flags, ..] => cmf & 15 == 8 && (u16::from(*cmf) << 8 | u16::from(*flags)) % 31 == 0,
        _ => false,
    }
}

fn read(decoder: impl Read, cap: usize) -> (Vec<u8>, bool) {
    let mut decoded = Vec::with_capacity(cap);
    // What was decoded before an error stays.
    let result = decoder.take(cap as u64).read_to_end(&mut decoded);
    let is_bad = result.is_err_and(|error| error.kind() != ErrorKind::UnexpectedEof);
    decoded.shrink_to_fit();
    (decoded, is_bad)
}

fn unbrotli(wire: &[u8], cap: usize) -> (Vec<u8>, bool) {
    // Strict: without the windows of up to 1 GiB that are no part of RFC 7932.
    let alloc = StandardAlloc::default;
    let mut state = BrotliState::<_, StandardAlloc, StandardAlloc>::new_strict(alloc(), alloc(), alloc());
    let mut decoded = vec![0; cap];
    let (mut left, mut at, mut room, mut filled, mut total) = (wire.len(), 0, cap, 0, 0);
    let result =
        BrotliDecompressStream(&mut left, &mut at, wire, &mut room, &mut filled, &mut decoded, &mut total, &mut state);
    decoded.truncate(filled);
    decoded.shrink_to_fit();
    (decoded, matches!(result, BrotliResult::ResultFailure))
}
