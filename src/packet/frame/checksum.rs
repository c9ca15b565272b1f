//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// Adds bytes to a sum of 16-bit words. The sum is over the words as this machine reads them: swapping the bytes of the
/// words swaps those of the sum, so the order matters only where a sum meets a number, and zero is zero in both.
fn add(bytes: &[u8], mut sum: u64) -> u64 {
    let mut lanes = [0u64; 4];
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
            // A lane holds 2^32 words before it could overflow: more than any packet.
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut words = chunks.remainder().chunks_exact(2);
    for word in &mut words {
        sum += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    lanes.iter().fold(sum, |sum, lane| sum + (lane >> 32) + (lane & 0xffff_ffff))
}

/// Folds a sum to 16 bits.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Whether bytes that hold their own checksum are as they were sent.
pub fn is_good(bytes: &[u8]) -> bool {
    fold(add(bytes, 0)) == 0xffff
}

/// The sum of the pseudo header (RFC 9293 3.1, RFC 8200 8.1) that stands before what TCP and UDP sum.
fn pseudo(source: &IpAddr, destination: &IpAddr, protocol: u8, length: u32) -> u64 {
    let mut sum = u64::from(u16::from(protocol).to_be());
    sum += u64::from(((length >> 16) as u16).to_be()) + u64::from((length as u16).to_be());
    for address in [source, destination] {
        sum = match address {
            IpAddr::V4(v4) => add(&v4.octets(), sum),
            IpAddr::V6(v6) => add(&v6.octets(), sum),
        };
    }
    sum
}

/// A checksum of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// It is right.
    Good,
    /// The field holds the pseudo header's sum, as the kernel leaves it for the network card to complete.
    Owed,
    /// It is wrong.
    Bad,
}

/// Judges the checksum that stands at `at` in the bytes of a segment or datagram.
pub fn transport(source: &IpAddr, destination: &IpAddr, protocol: u8, bytes: &[u8], at: usize) -> Transport {
    let pseudo = pseudo(source, destination, protocol, bytes.len() as u32);
    if fold(add(bytes, pseudo)) == 0xffff {
        Transport::Good
    } else if bytes.get(at..at + 2).is_some_and(|field| field == fold(pseudo).to_ne_bytes()) {
        Transport::Owed
    } else {
        Transport::Bad
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 to the letter.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        fold(sum)
    }

    proptest! {
        #[test]
        fn sums_as_the_rfc_does(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(fold(add(&bytes, 0)).to_be(), plain(&bytes));
        }

        #[test]
        fn a_changed_bit_is_seen(mut bytes in prop::collection::vec(any::<u8>(), 4..100), bit in 0usize..800) {
            bytes[2..4].fill(0);
            let sum = !plain(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
            prop_assert!(is_good(&bytes));
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!is_good(&bytes));
        }
    }
}
