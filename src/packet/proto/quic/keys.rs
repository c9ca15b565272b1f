//! Keys of Initial packets, and what they open (RFC 9001, 5; RFC 9369, 3.3).

use aws_lc_rs::aead::quic::{AES_128, HeaderProtectionKey};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

use crate::packet::proto::Side;

/// Bytes of a header that a sample of the payload masks: the packet number's most.
const NUMBER_MAX: usize = 4;

/// Bytes of that sample.
const SAMPLE: usize = 16;

const KEY: usize = 16;
const SECRET: usize = 32;

const SALT_Q050: [u8; 20] = [
    0x50, 0x45, 0x74, 0xef, 0xd0, 0x66, 0xfe, 0x2f, 0x9d, 0x94, 0x5c, 0xfc, 0xdb, 0xd3, 0xa7, 0xf0, 0xd3, 0xb5, 0x6b,
    0x45,
];
const SALT_T050: [u8; 20] = [
    0x7f, 0xf5, 0x79, 0xe5, 0xac, 0xd0, 0x72, 0x91, 0x55, 0x80, 0x30, 0x4c, 0x43, 0xa2, 0x36, 0x7c, 0x60, 0x48, 0x83,
    0x10,
];
const SALT_T051: [u8; 20] = [
    0x7a, 0x4e, 0xde, 0xf4, 0xe7, 0xcc, 0xee, 0x5f, 0xa4, 0x50, 0x6c, 0x19, 0x12, 0x4f, 0xc8, 0xcc, 0xda, 0x6e, 0x03,
    0x3d,
];
const SALT_DRAFT_22: [u8; 20] = [
    0x7f, 0xbc, 0xdb, 0x0e, 0x7c, 0x66, 0xbb, 0xe9, 0x19, 0x3a, 0x96, 0xcd, 0x21, 0x51, 0x9e, 0xbd, 0x7a, 0x02, 0x64,
    0x4a,
];
const SALT_DRAFT_23: [u8; 20] = [
    0xc3, 0xee, 0xf7, 0x12, 0xc7, 0x2e, 0xbb, 0x5a, 0x11, 0xa7, 0xd2, 0x43, 0x2b, 0xb4, 0x63, 0x65, 0xbe, 0xf9, 0xf5,
    0x02,
];
const SALT_DRAFT_29: [u8; 20] = [
    0xaf, 0xbf, 0xec, 0x28, 0x99, 0x93, 0xd2, 0x4c, 0x9e, 0x97, 0x86, 0xf1, 0x9c, 0x61, 0x11, 0xe0, 0x43, 0x90, 0xa8,
    0x99,
];
const SALT_V1: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f,
    0x0a,
];
const SALT_V2: [u8; 20] = [
    0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e,
    0xd9,
];

/// What versions differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Google's Q050: sealed as the drafts are, with Google's own hello inside.
    Q050,
    /// Google's T050: TLS inside, in Google's frames.
    T050,
    /// Google's T051: the same.
    T051,
    /// Drafts 21 and 22, and Facebook's mvfst of that time.
    Draft22,
    /// Drafts 23 to 28, and mvfst since.
    Draft23,
    /// Drafts 29 to 32.
    Draft29,
    /// RFC 9000, and the last drafts.
    V1,
    /// RFC 9369.
    V2,
}

impl Family {
    /// The family of a version whose packets can be opened.
    pub(super) fn of(version: u32) -> Option<Family> {
        match version {
            1 | 0xff00_0021 | 0xff00_0022 => Some(Family::V1),
            0x5130_3530 => Some(Family::Q050),
            0x5430_3530 => Some(Family::T050),
            0x5430_3531 => Some(Family::T051),
            0xff00_0015 | 0xff00_0016 | 0xface_b001 => Some(Family::Draft22),
            0xff00_0017..=0xff00_001c | 0xface_b002 | 0xface_b00e => Some(Family::Draft23),
            0xff00_001d..=0xff00_0020 => Some(Family::Draft29),
            0x6b33_43cf => Some(Family::V2),
            _ => None,
        }
    }

    fn salt(self) -> &'static [u8] {
        match self {
            Family::Q050 => &SALT_Q050,
            Family::T050 => &SALT_T050,
            Family::T051 => &SALT_T051,
            Family::Draft22 => &SALT_DRAFT_22,
            Family::Draft23 => &SALT_DRAFT_23,
            Family::Draft29 => &SALT_DRAFT_29,
            Family::V1 => &SALT_V1,
            Family::V2 => &SALT_V2,
        }
    }

    /// Labels of key, initialization vector and header protection.
    fn labels(self) -> [&'static str; 3] {
        match self {
            Family::V2 => ["quicv2 key", "quicv2 iv", "quicv2 hp"],
            _ => ["quic key", "quic iv", "quic hp"],
        }
    }
}

/// A length of key material.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446, 7.1).
fn expand<const N: usize>(secret: &Prk, label: &str) -> Result<[u8; N], Unspecified> {
    let head = [0, N as u8, (b"tls13 ".len() + label.len()) as u8];
    let info = [&head[..], b"tls13 ", label.as_bytes(), &[0]];
    let mut bytes = [0; N];
    secret.expand(&info, Length(N))?.fill(&mut bytes)?;
    Ok(bytes)
}

/// Keys of one side.
struct SideKeys {
    packet: LessSafeKey,
    vector: [u8; NONCE_LEN],
    header: HeaderProtectionKey,
}

impl SideKeys {
    fn derive(initial: &Prk, family: Family, side: Side) -> Result<SideKeys, Unspecified> {
        let label = match side {
            Side::Client => "client in",
            Side::Server => "server in",
        };
        let secret = Prk::new_less_safe(HKDF_SHA256, &expand::<SECRET>(initial, label)?);
        let [key, vector, header] = family.labels();
        Ok(SideKeys {
            packet: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &expand::<KEY>(&secret, key)?)?),
            vector: expand(&secret, vector)?,
            header: HeaderProtectionKey::new(&AES_128, &expand::<KEY>(&secret, header)?)?,
        })
    }

    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.vector;
        for (byte, of_number) in nonce[NONCE_LEN - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= of_number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The keys of a connection's Initial packets.
pub(super) struct Keys {
    sides: [SideKeys; 2],
}

impl Keys {
    /// The keys that follow from the connection id that the client chose for the server first.
    pub(super) fn derive(family: Family, connection_id: &[u8]) -> Option<Keys> {
        let initial = Salt::new(HKDF_SHA256, family.salt()).extract(connection_id);
        let client = SideKeys::derive(&initial, family, Side::Client).ok()?;
        let server = SideKeys::derive(&initial, family, Side::Server).ok()?;
        Some(Keys { sides: [client, server] })
    }

    /// Opens a packet: its header, whose number begins at `number_at`, and its payload up to the end of `packet`. The
    /// packet number and the frames; `None` if it is not authentic.
    ///
    /// `largest` is the largest number of that side so far.
    pub(super) fn open(
        &self,
        side: Side,
        packet: &[u8],
        number_at: usize,
        largest: Option<u64>,
    ) -> Option<(u64, Vec<u8>)> {
        let keys = &self.sides[side as usize];
        let sample = packet.get(number_at + NUMBER_MAX..number_at + NUMBER_MAX + SAMPLE)?;
        let mask = keys.header.new_mask(sample).ok()?;
        let mut opened = packet.to_vec();
        opened[0] ^= mask[0] & 0x0f;
        let number_length = usize::from(opened[0] & 3) + 1;
        let mut truncated = 0;
        for (byte, mask) in opened[number_at..number_at + number_length].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
            truncated = truncated << 8 | u64::from(*byte);
        }
        let number = whole_number(truncated, 8 * number_length as u32, largest);
        let (header, payload) = opened.split_at_mut(number_at + number_length);
        let length = keys.packet.open_in_place(keys.nonce(number), Aad::from(&*header), payload).ok()?.len();
        opened.drain(..number_at + number_length);
        opened.truncate(length);
        Some((number, opened))
    }

    /// Seals a packet as its sender does: what [`Keys::open`] undoes. The header ends with the packet number.
    #[cfg(test)]
    pub(super) fn seal(&self, side: Side, header: &[u8], number: u64, frames: &[u8]) -> Vec<u8> {
        let keys = &self.sides[side as usize];
        let number_length = usize::from(header[0] & 3) + 1;
        let number_at = header.len() - number_length;
        let mut payload = frames.to_vec();
        keys.packet.seal_in_place_append_tag(keys.nonce(number), Aad::from(header), &mut payload).unwrap();
        let mut packet = [header, &payload].concat();
        let sample = &packet[number_at + NUMBER_MAX..number_at + NUMBER_MAX + SAMPLE];
        let mask = keys.header.new_mask(sample).unwrap();
        packet[0] ^= mask[0] & 0x0f;
        for (byte, mask) in packet[number_at..number_at + number_length].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
        }
        packet
    }
}

/// The packet number whose last bits are `truncated`, next to the one that is expected (RFC 9000, A.3).
fn whole_number(truncated: u64, bits: u32, largest: Option<u64>) -> u64 {
    let expected = largest.map_or(0, |largest| largest.saturating_add(1));
    let window = 1u64 << bits;
    let candidate = (expected & !(window - 1)) | truncated;
    if candidate + window / 2 <= expected && candidate < (1 << 62) - window {
        candidate + window
    } else if candidate > expected + window / 2 && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 9000, A.3, and the edges.
    #[test]
    fn numbers_are_completed_near_the_expected_one() {
        assert_eq!(whole_number(0x9b32, 16, Some(0xa82f_30ea)), 0xa82f_9b32);
        assert_eq!(whole_number(2, 32, None), 2);
        assert_eq!(whole_number(0, 8, Some(255)), 256);
        // Half a window away, the larger one is taken.
        assert_eq!(whole_number(0, 8, Some(383)), 512);
        assert_eq!(whole_number(255, 8, Some(256)), 255);
    }
}
