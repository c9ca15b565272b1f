//! Headers of packets (RFC 9000, 17.2) and the frames of Initial ones (12.4 and 19).

use super::keys::Family;
use crate::packet::proto::reader::Reader;

/// Bytes of a connection id of the versions that are known (RFC 9000, 17.2).
const CONNECTION_ID_MAX: usize = 20;

const PADDING: u64 = 0x00;
const PING: u64 = 0x01;
const ACK: u64 = 0x02;
const ACK_ECN: u64 = 0x03;
const CRYPTO: u64 = 0x06;
const CONNECTION_CLOSE: u64 = 0x1c;
/// Google's own frames, whose types are bytes: the handshake's, and padding as above.
const GOOGLE_PADDING: u8 = 0x00;
const GOOGLE_CRYPTO: u8 = 0x08;

/// A number of one, two, four or eight bytes (RFC 9000, 16).
fn number(reader: &mut Reader) -> Option<u64> {
    let first = reader.u8()?;
    let more = reader.take((1 << (first >> 6)) - 1)?;
    Some(more.iter().fold(u64::from(first & 0x3f), |number, byte| number << 8 | u64::from(*byte)))
}

fn length(reader: &mut Reader) -> Option<usize> {
    usize::try_from(number(reader)?).ok()
}

/// A packet with a long header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// An Initial packet.
    Initial {
        version: u32,
        family: Family,
        /// The receiver's connection id.
        destination: &'a [u8],
        /// From its first byte to its last.
        bytes: &'a [u8],
        /// Where its number stands in `bytes`.
        number_at: usize,
    },
    /// One that comes later and is encrypted by keys that nobody else has.
    Later,
    /// The server wants the client to begin anew.
    Retry,
    /// The server does not know the version.
    Negotiation,
    /// Of a version that is not known, or reserved so that nobody gets used to few of them (RFC 9000, 15).
    Unknown { version: u32 },
}

/// Whether a version is one of those that are reserved for exercising negotiation.
pub(super) fn is_reserved(version: u32) -> bool {
    version & 0x0f0f_0f0f == 0x0a0a_0a0a
}

/// Takes the next packet of a datagram; what stands behind it. `None` where it is malformed.
pub(super) fn next(datagram: &[u8]) -> Option<(Packet<'_>, &[u8])> {
    let mut reader = Reader::new(datagram);
    let first = reader.u8()?;
    let version = reader.u32()?;
    let destination = reader.vector8()?;
    let source = reader.vector8()?;
    if version == 0 {
        return Some((Packet::Negotiation, &[]));
    }
    let Some(family) = Family::of(version) else {
        return Some((Packet::Unknown { version }, &[]));
    };
    if destination.len() > CONNECTION_ID_MAX || source.len() > CONNECTION_ID_MAX {
        return None;
    }
    // Version 2 numbers the types otherwise, so that nobody gets used to them (RFC 9369, 3.2). Whether the bit before
    // is set says nothing (RFC 9287).
    let kind = match family {
        Family::V2 => (first >> 4 & 3).wrapping_sub(1) & 3,
        _ => first >> 4 & 3,
    };
    match kind {
        0 => {
            let token = length(&mut reader)?;
            reader.take(token)?;
        }
        3 => return Some((Packet::Retry, &[])),
        _ => {}
    }
    let length = length(&mut reader)?;
    let number_at = datagram.len() - reader.rest().len();
    reader.take(length)?;
    let (bytes, behind) = datagram.split_at(number_at + length);
    let packet = match kind {
        0 => Packet::Initial { version, family, destination, bytes, number_at },
        _ => Packet::Later,
    };
    Some((packet, behind))
}

/// What a frame says, of those that may stand in an Initial packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// Bytes of the handshake, and where they belong.
    Crypto { offset: u64, data: &'a [u8] },
    /// The connection is refused.
    Close,
    /// Nothing of interest.
    Other,
}

/// Takes the next frame; what stands behind it. `None` where it is malformed, or may not stand in an Initial packet.
pub(super) fn next_frame(frames: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let mut reader = Reader::new(frames);
    match number(&mut reader)? {
        PADDING => {
            // It comes by the hundreds.
            let rest = reader.rest();
            return Some((Frame::Other, behind_padding(rest)));
        }
        PING => {}
        kind @ (ACK | ACK_ECN) => {
            number(&mut reader)?;
            number(&mut reader)?;
            let ranges = number(&mut reader)?;
            number(&mut reader)?;
            // Each takes two bytes at least: it ends with the packet.
            for _ in 0..ranges {
                number(&mut reader)?;
                number(&mut reader)?;
            }
            if kind == ACK_ECN {
                for _ in 0..3 {
                    number(&mut reader)?;
                }
            }
        }
        CRYPTO => return crypto(reader),
        CONNECTION_CLOSE => {
            number(&mut reader)?;
            number(&mut reader)?;
            let reason = length(&mut reader)?;
            reader.take(reason)?;
            return Some((Frame::Close, reader.rest()));
        }
        _ => return None,
    }
    Some((Frame::Other, reader.rest()))
}

/// The same of Google's T050 and T051, whose frames but the handshake's have Google's form. `None` also at those: a
/// client's hello stands before them, and how long they are is not known here.
pub(super) fn next_google_frame(frames: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let mut reader = Reader::new(frames);
    match reader.u8()? {
        GOOGLE_PADDING => Some((Frame::Other, behind_padding(reader.rest()))),
        GOOGLE_CRYPTO => crypto(reader),
        _ => None,
    }
}

fn behind_padding(rest: &[u8]) -> &[u8] {
    let count = rest.iter().take_while(|byte| **byte == 0).count();
    &rest[count..]
}

/// A frame of the handshake's bytes from behind its type on (RFC 9000, 19.6).
fn crypto(mut reader: Reader<'_>) -> Option<(Frame<'_>, &[u8])> {
    let offset = number(&mut reader)?;
    let length = length(&mut reader)?;
    let data = reader.take(length)?;
    Some((Frame::Crypto { offset, data }, reader.rest()))
}
