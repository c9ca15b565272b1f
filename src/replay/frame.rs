//! Frames of other link layers with an Ethernet header in front, because that is what the programs in the kernel read.

use crate::flow::Link;
use crate::packet::frame;

/// Length of an Ethernet header.
const HEADER: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Reserved (IEEE 802.3): no protocol, so nothing that anyone looks into.
const UNKNOWN: [u8; 2] = [0xff, 0xff];

/// Whether the host on which a frame was captured sent it: Linux cooked captures say so.
pub fn is_outgoing(link: Link, bytes: &[u8]) -> bool {
    const OUTGOING: u8 = 4;
    match link {
        // The packet's type stands first, in two bytes.
        Link::Sll => bytes.starts_with(&[0, OUTGOING]),
        // It stands behind protocol, interface and hardware type.
        Link::Sll2 => bytes.get(10) == Some(&OUTGOING),
        Link::Ethernet | Link::Raw | Link::Null | Link::Ppp => false,
    }
}

/// Puts frames together, in one buffer.
#[derive(Debug, Default)]
pub struct Ethernet {
    buffer: Vec<u8>,
}

impl Ethernet {
    /// The frame as Ethernet; one that is, stays where it is. What is too short for its link layer becomes a frame of
    /// no known protocol.
    pub fn of<'f>(&'f mut self, link: Link, bytes: &'f [u8]) -> &'f [u8] {
        let (ethertype, packet) = match link {
            Link::Ethernet => return bytes,
            Link::Raw => (by_version(bytes), bytes),
            Link::Null => {
                bytes.split_first_chunk().map_or((UNKNOWN, bytes), |(family, rest)| (by_family(*family), rest))
            }
            // The protocol stands behind packet type, hardware type, length and 8 bytes of address.
            Link::Sll => split(bytes, 14, 16),
            // It stands first.
            Link::Sll2 => split(bytes, 0, 20),
            Link::Ppp => match frame::ppp(bytes) {
                Some((Some(ethertype), packet)) => (ethertype.to_be_bytes(), packet),
                _ => (UNKNOWN, bytes),
            },
        };
        self.buffer.clear();
        self.buffer.resize(HEADER - 2, 0);
        self.buffer.extend_from_slice(&ethertype);
        self.buffer.extend_from_slice(packet);
        &self.buffer
    }
}

/// A cooked header: where its protocol stands, and how long it is.
fn split(bytes: &[u8], protocol: usize, header: usize) -> ([u8; 2], &[u8]) {
    match bytes.split_at_checked(header) {
        Some((head, rest)) => ([head[protocol], head[protocol + 1]], rest),
        None => (UNKNOWN, bytes),
    }
}

fn by_version(packet: &[u8]) -> [u8; 2] {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => IPV4,
        Some(6) => IPV6,
        _ => UNKNOWN,
    }
}

/// The family's number in either byte order; that of IPv6 depends on the BSD, and Linux's is another.
fn by_family(family: [u8; 4]) -> [u8; 2] {
    let number = u32::from_le_bytes(family);
    match if number > 0xffff { number.swap_bytes() } else { number } {
        2 => IPV4,
        10 | 24 | 28 | 30 => IPV6,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(link: Link, bytes: &[u8], ethertype: [u8; 2], packet: &[u8]) {
        let mut framed = Ethernet::default();
        // The buffer of a longer frame does not shine through.
        framed.of(Link::Raw, &[0x45; 100]);
        assert_eq!(framed.of(link, bytes), [&[0; 12], &ethertype[..], packet].concat());
    }

    #[test]
    fn every_link_layer_says_its_protocol() {
        check(Link::Raw, &[0x45, 1], IPV4, &[0x45, 1]);
        check(Link::Raw, &[0x60, 1], IPV6, &[0x60, 1]);
        check(Link::Raw, &[], UNKNOWN, &[]);
        check(Link::Null, &[2, 0, 0, 0, 0x45], IPV4, &[0x45]);
        check(Link::Null, &[0, 0, 0, 2, 0x45], IPV4, &[0x45]);
        check(Link::Null, &[0, 0, 0, 30, 0x60], IPV6, &[0x60]);
        check(Link::Null, &[24, 0, 0, 0, 0x60], IPV6, &[0x60]);
        check(Link::Null, &[2, 0, 0], UNKNOWN, &[2, 0, 0]);
        let mut sll = [0; 17];
        sll[14..].copy_from_slice(&[0x08, 0x06, 9]);
        check(Link::Sll, &sll, [0x08, 0x06], &[9]);
        check(Link::Sll, &sll[..15], UNKNOWN, &sll[..15]);
        let mut sll2 = [0; 21];
        sll2[0] = 0x81;
        sll2[20] = 7;
        check(Link::Sll2, &sll2, [0x81, 0], &[7]);
        check(Link::Ppp, &[0xff, 0x03, 0, 0x21, 0x45], IPV4, &[0x45]);
        check(Link::Ppp, &[0, 0x57, 0x60], IPV6, &[0x60]);
        check(Link::Ppp, &[0x21, 0x45], IPV4, &[0x45]);
        check(Link::Ppp, &[0xff, 0x03, 0xc0, 0x21, 1], UNKNOWN, &[0xff, 0x03, 0xc0, 0x21, 1]);
        check(Link::Ppp, &[0xff, 0x03, 0], UNKNOWN, &[0xff, 0x03, 0]);
        assert_eq!(Ethernet::default().of(Link::Ethernet, &[1, 2]), [1, 2]);
    }

    #[test]
    fn cooked_frames_say_which_way_they_went() {
        let mut sll = [0; 16];
        assert!(!is_outgoing(Link::Sll, &sll));
        sll[1] = 4;
        assert!(is_outgoing(Link::Sll, &sll));
        assert!(!is_outgoing(Link::Ethernet, &sll) && !is_outgoing(Link::Sll2, &sll));
        let mut sll2 = [0; 20];
        sll2[10] = 4;
        assert!(is_outgoing(Link::Sll2, &sll2));
        assert!(!is_outgoing(Link::Sll2, &sll2[..10]) && !is_outgoing(Link::Sll, &[]));
    }
}
