//! QUIC behind its encryption, which no mutation of a datagram gets through: frames, sealed here by the keys that anyone
//! can derive (RFC 9001, 5.2).

use aws_lc_rs::aead::quic::{AES_128, HeaderProtectionKey};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ebpfsentinel::packet::proto::{AppProto, Out, Side, Stage, datagram_parser_for};

/// The connection id that the client chose, which the keys follow from.
const CONNECTION_ID: [u8; 8] = *b"sentinel";
/// Salt of version 1.
const SALT: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f,
    0x0a,
];
/// Two sides' crypto streams, with what their pieces cost, and a handshake's facts.
const MEMORY_MAX: usize = 512 << 10;

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(secret: &Prk, label: &str) -> Result<[u8; N], Unspecified> {
    let info = [&[0, N as u8, 6 + label.len() as u8][..], b"tls13 ", label.as_bytes(), &[0]];
    let mut bytes = [0; N];
    secret.expand(&info, Length(N))?.fill(&mut bytes)?;
    Ok(bytes)
}

/// An Initial packet of version 1 with these frames.
fn sealed(side: Side, number: u32, frames: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let initial = Salt::new(HKDF_SHA256, &SALT).extract(&CONNECTION_ID);
    let label = if side == Side::Client { "client in" } else { "server in" };
    let secret = Prk::new_less_safe(HKDF_SHA256, &expand::<32>(&initial, label)?);
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &expand::<16>(&secret, "quic key")?)?);
    let mut nonce: [u8; 12] = expand(&secret, "quic iv")?;
    for (byte, of_number) in nonce[8..].iter_mut().zip(number.to_be_bytes()) {
        *byte ^= of_number;
    }
    let mut header = [&[0xc3, 0, 0, 0, 1, 8][..], &CONNECTION_ID, &[0, 0]].concat();
    // At least as long that the mask's sample is there.
    let mut payload = [frames, &[0; 4]].concat();
    header.extend((0x4000 | (4 + payload.len() + 16) as u16).to_be_bytes());
    let number_at = header.len();
    header.extend(number.to_be_bytes());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&header), &mut payload)?;
    let mut packet = [header, payload].concat();
    let mask = HeaderProtectionKey::new(&AES_128, &expand::<16>(&secret, "quic hp")?)?
        .new_mask(&packet[number_at + 4..number_at + 20])?;
    packet[0] ^= mask[0] & 0x0f;
    packet[number_at..number_at + 4].iter_mut().zip(&mask[1..]).for_each(|(byte, mask)| *byte ^= mask);
    Ok(packet)
}

/// Of each packet: who sends it and whether it follows the one before in its datagram, a length, its frames.
pub fn run(mut bytes: &[u8]) {
    let mut parser = datagram_parser_for(AppProto::Quic).expect("there is one");
    let mut out = Out::default();
    let (mut datagram, mut number) = (Vec::new(), 0);
    while let [kind, length, rest @ ..] = bytes {
        let side = if kind & 1 == 0 { Side::Client } else { Side::Server };
        let (frames, behind) = rest.split_at(rest.len().min(usize::from(*length) << (kind >> 1 & 3)));
        bytes = behind;
        datagram.extend(sealed(side, number, frames).expect("sealing"));
        number += 1;
        if kind & 0x80 == 0 || bytes.is_empty() {
            parser.take(side, &datagram, &mut out);
            datagram.clear();
        }
        assert!(parser.memory() <= MEMORY_MAX, "keeps {}", parser.memory());
    }
    Side::BOTH.into_iter().for_each(|side| parser.end(side, &mut out));
    let of = |stage: Stage| out.told.iter().filter(move |told| told.stage == stage).map(|told| told.tx);
    let mut done: Vec<u32> = of(Stage::Done).collect();
    done.sort_unstable();
    assert!(done.windows(2).all(|pair| pair[0] < pair[1]), "done twice: {done:?}");
    assert!(of(Stage::Asked).all(|tx| done.binary_search(&tx).is_ok()), "asked, and not done: {done:?}");
}
