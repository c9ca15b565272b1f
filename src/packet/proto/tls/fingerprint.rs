//! Fingerprints of hellos: JA3, JA3S (MD5, as their authors published them) and JA4.

use std::fmt::Write;

use aws_lc_rs::digest;
use md5::{Digest, Md5};

use super::hello::{ClientHello, Values};
use crate::packet::proto::reader::hex;

/// What carries a handshake: the first letter of JA4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// TLS over TCP.
    Tcp,
    /// QUIC.
    Quic,
}

/// Digits that JA4 keeps of a SHA-256.
const JA4_HASH_DIGITS: usize = 12;

/// JA4's word for a list without values.
const JA4_EMPTY_HASH: &str = "000000000000";

/// Extensions whose presence JA4 tells in its first part, so that they do not count in the hash: server_name and ALPN.
const JA4_TOLD_ELSEWHERE: [u16; 2] = [0x0000, 0x0010];

/// Whether a value is one of those that clients strew in so that servers get used to unknown ones (RFC 8701).
pub(crate) fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// MD5 of a text, and the text.
fn md5_of(text: String) -> (String, String) {
    (hex(&Md5::digest(text.as_bytes())), text)
}

/// Appends values in decimal, by dashes.
fn push_dashed(text: &mut String, values: impl Iterator<Item = u16>) {
    for (at, value) in values.enumerate() {
        let dash = if at > 0 { "-" } else { "" };
        // Writing to a string does not fail.
        let _ = write!(text, "{dash}{value}");
    }
}

/// JA3: version, ciphers, extensions, groups and point formats of a client's hello.
pub(super) fn ja3(hello: &ClientHello) -> (String, String) {
    let mut text = hello.version.to_string();
    for list in [hello.ciphers, Values::new(&hello.extension_kinds), hello.groups] {
        text.push(',');
        push_dashed(&mut text, list.iter().filter(|value| !is_grease(*value)));
    }
    text.push(',');
    push_dashed(&mut text, hello.point_formats.iter().map(|format| u16::from(*format)));
    md5_of(text)
}

/// JA3S: version, cipher and extensions of a server's hello.
pub(super) fn ja3s(version: u16, cipher: u16, extensions: &[u16]) -> (String, String) {
    let mut text = format!("{version},{cipher},");
    push_dashed(&mut text, extensions.iter().copied());
    md5_of(text)
}

/// JA4 of a client's hello.
pub(super) fn ja4(carrier: Carrier, hello: &ClientHello) -> String {
    let carrier = match carrier {
        Carrier::Tcp => 't',
        Carrier::Quic => 'q',
    };
    let offered = hello.supported_versions.iter().filter(|value| !is_grease(*value)).max();
    let version = ja4_version(offered.unwrap_or(hello.version));
    let name = if hello.extensions_hold(0x0000) { 'd' } else { 'i' };
    let [first, last] = ja4_alpn(hello);

    let mut ciphers: Vec<u16> = hello.ciphers.iter().filter(|value| !is_grease(*value)).collect();
    ciphers.sort_unstable();
    let mut extensions: Vec<u16> = hello.extensions().filter(|value| !is_grease(*value)).collect();
    let extension_count = extensions.len().min(99);
    extensions.retain(|kind| !JA4_TOLD_ELSEWHERE.contains(kind));
    extensions.sort_unstable();

    let mut behind = comma_separated(extensions.iter().copied());
    let has_extensions = !behind.is_empty();
    let signatures = comma_separated(hello.signatures.iter().filter(|value| !is_grease(*value)));
    if !signatures.is_empty() {
        behind.push('_');
        behind.push_str(&signatures);
    }
    let cipher_hash = ja4_hash(&comma_separated(ciphers.iter().copied()));
    let extension_hash = if has_extensions { ja4_hash(&behind) } else { JA4_EMPTY_HASH.to_string() };
    let cipher_count = ciphers.len().min(99);
    format!("{carrier}{version}{name}{cipher_count:02}{extension_count:02}{first}{last}_{cipher_hash}_{extension_hash}")
}

/// Two characters for a version.
fn ja4_version(version: u16) -> &'static str {
    match version {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        0x0001 => "s1",
        _ => "00",
    }
}

/// First and last character of the first protocol that the client offers; where one of them is not alphanumeric, of its
/// hexadecimal form; zeros where there is none.
fn ja4_alpn(hello: &ClientHello) -> [char; 2] {
    let is_protocol = |name: &&[u8]| !<[u8; 2]>::try_from(*name).is_ok_and(|pair| is_grease(u16::from_be_bytes(pair)));
    let Some(name) = hello.protocols().find(is_protocol) else {
        return ['0', '0'];
    };
    let (Some(first), Some(last)) = (name.first(), name.last()) else {
        return ['0', '0'];
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [char::from(*first), char::from(*last)];
    }
    [first >> 4, last & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'))
}

/// Values as four hexadecimal digits each.
fn comma_separated(values: impl Iterator<Item = u16>) -> String {
    let mut text = String::new();
    for value in values {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{value:04x}");
    }
    text
}

fn ja4_hash(text: &str) -> String {
    if text.is_empty() {
        return JA4_EMPTY_HASH.to_string();
    }
    let mut hash = hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    hash.truncate(JA4_HASH_DIGITS);
    hash
}
