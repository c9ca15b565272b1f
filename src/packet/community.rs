//! Community ID, version 1: a name of a flow that other tools reckon alike, so that their records can be joined.

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::digest;

/// Length of the text: `1:` and 20 bytes in base64.
pub const LENGTH: usize = 30;

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text for a flow of a protocol with ports (TCP, UDP, SCTP), with seed 0; both directions have the same.
pub fn id(protocol: u8, one: SocketAddr, other: SocketAddr) -> [u8; LENGTH] {
    let (first, second) = if key(one) <= key(other) { (one, other) } else { (other, one) };
    // Seed, two addresses, protocol, a byte of zero, two ports: 40 bytes with IPv6.
    let mut hashed = [0u8; 40];
    let mut length = 2;
    let mut add = |bytes: &[u8]| {
        hashed[length..length + bytes.len()].copy_from_slice(bytes);
        length += bytes.len();
    };
    for end in [first, second] {
        match end.ip() {
            IpAddr::V4(ip) => add(&ip.octets()),
            IpAddr::V6(ip) => add(&ip.octets()),
        }
    }
    add(&[protocol, 0]);
    add(&first.port().to_be_bytes());
    add(&second.port().to_be_bytes());
    // The scheme asks for SHA-1: a name, not a proof.
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &hashed[..length]);
    text(digest.as_ref())
}

/// Who comes first: the lower address, then the lower port.
fn key(end: SocketAddr) -> (IpAddr, u16) {
    (end.ip(), end.port())
}

fn text(digest: &[u8]) -> [u8; LENGTH] {
    let mut text = *b"1:...........................=";
    for (place, group) in digest.chunks(3).enumerate() {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        // The last group has two bytes: three digits, and the padding that stands there already.
        for digit in 0..=group.len() {
            text[2 + 4 * place + digit] = BASE64[(bits >> (18 - 6 * digit) & 0x3f) as usize];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(protocol: u8, one: &str, other: &str, expected: &str) {
        let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
        assert_eq!(std::str::from_utf8(&id(protocol, one, other)), Ok(expected));
        assert_eq!(std::str::from_utf8(&id(protocol, other, one)), Ok(expected));
    }

    #[test]
    fn other_tools_reckon_the_same() {
        // From the specification's baseline, and what Suricata 7 says of IPv6.
        check(6, "128.232.110.120:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        check(17, "192.168.1.52:54585", "8.8.8.8:53", "1:d/FP5EW3wiY1vCndhwleRRKHowQ=");
    }
}
