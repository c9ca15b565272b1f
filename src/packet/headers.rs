//! What include/parse.h makes of a frame, in Rust: for captures that are judged without a kernel.
//!
//! Kept beside the C, field by field and reason by reason, so that both judge alike; tests compare them. What the
//! inspection reads is another matter: [`super::frame`] opens tunnels and checks sums, which no rule of the firewall
//! asks for.

use crate::abi::fw_unparsable;
use crate::packet::frame::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP};

/// UDP-Lite (RFC 3828): ports like UDP's.
const UDPLITE: u8 = 136;
const EXTENSION_HEADERS_MAX: usize = 8;
const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// Bits of IPv4's word of flags and offset.
const MORE_V4: u16 = 0x2000;
const OFFSET_V4: u16 = 0x1fff;
/// Bits of IPv6's.
const MORE_V6: u16 = 0x0001;
const OFFSET_V6: u16 = 0xfff8;
const VLAN_ID: u16 = 0x0fff;
const ETHERNET: usize = 14;

/// Why a frame could not be read to its end: enum fw_unparsable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsable {
    /// It ends within its Ethernet header or its tags.
    ShortEthernet = fw_unparsable::FW_SHORT_ETHERNET.0 as isize,
    /// More than two tags.
    VlanDepth = fw_unparsable::FW_VLAN_DEPTH.0 as isize,
    /// Neither IPv4 nor IPv6.
    NotIp = fw_unparsable::FW_NOT_IP.0 as isize,
    /// Version, header length or total length of IPv4.
    BadIpv4 = fw_unparsable::FW_BAD_IPV4.0 as isize,
    /// The same of IPv6.
    BadIpv6 = fw_unparsable::FW_BAD_IPV6.0 as isize,
    /// Too many extension headers, or one that is cut off or out of place.
    Extensions = fw_unparsable::FW_EXTENSIONS.0 as isize,
    /// TCP, UDP or ICMP header cut off, or TCP's data offset below 5.
    ShortTransport = fw_unparsable::FW_SHORT_TRANSPORT.0 as isize,
    /// A fragment that could split or rewrite the transport header.
    TinyFragment = fw_unparsable::FW_TINY_FRAGMENT.0 as isize,
    /// A later fragment whose first one was not seen.
    StrayFragment = fw_unparsable::FW_STRAY_FRAGMENT.0 as isize,
    /// A second first fragment with another transport header.
    OverlapFragment = fw_unparsable::FW_OVERLAP_FRAGMENT.0 as isize,
}

/// Where a packet stands in a fragmented datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// It is whole.
    #[default]
    Whole,
    /// The first fragment: the transport header is in it.
    First,
    /// One after that: no field of the transport is known.
    Later,
}

/// What is known of a packet. Fields that were not reached are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// 4, 6, or 0 when it is no IP.
    pub family: u8,
    /// Source, in host order, high half first; IPv4 in the low 32 bits.
    pub src: [u64; 2],
    /// Destination, likewise.
    pub dst: [u64; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Ids of the VLAN tags, outer first; 0: none, or a priority tag.
    pub vlans: [u16; 2],
    /// Where the transport header stands in the frame; 0 while none was found.
    pub transport: usize,
    /// Bytes from there on that belong to the packet, by its IP header.
    pub claimed: usize,
    /// Whether and where it is a fragment.
    pub place: Place,
    /// The datagram's number, as it stands on the wire.
    pub fragment_id: u32,
    /// Whether the protocol has ports: TCP, UDP, UDP-Lite, SCTP.
    pub has_ports: bool,
    /// Source port; the identifier of an ICMP echo.
    pub src_port: u16,
    /// Destination port; the identifier of an ICMP echo.
    pub dst_port: u16,
    /// Flags of TCP.
    pub tcp_flags: u8,
    /// Type of ICMP.
    pub icmp_type: u8,
    /// Code of ICMP.
    pub icmp_code: u8,
    /// TTL of IPv4, hop limit of IPv6.
    pub hop_limit: u8,
    /// It is no IP, but what a host needs to stay on its link: ARP, LACP, EAPOL, LLDP.
    pub is_link_control: bool,
}

/// Reads an Ethernet frame, as far as it goes, and says whether that was to its end.
pub fn read(frame: &[u8]) -> (Headers, Result<(), Unparsable>) {
    let mut headers = Headers::default();
    let result = headers.frame(frame);
    (headers, result)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn is_extension(kind: u8) -> bool {
    matches!(kind, HOP_BY_HOP | 43 | FRAGMENT | AUTHENTICATION | 60)
}

impl Headers {
    /// Whether it is ICMP of its own family; in the other one the number means nothing.
    pub fn is_icmp(&self) -> bool {
        self.protocol == if self.family == 4 { ICMP } else { ICMPV6 }
    }

    /// What every IPv6 host needs to keep its neighbours (RFC 4861), and the queries of the switches that snoop on
    /// multicast (RFC 3810).
    pub fn is_neighbour_discovery(&self) -> bool {
        if self.family != 6 || self.protocol != ICMPV6 || self.place != Place::Whole {
            return false;
        }
        if (133..=137).contains(&self.icmp_type) {
            return self.hop_limit == 255 && self.icmp_code == 0;
        }
        self.icmp_type == 130 && self.hop_limit == 1 && self.src[0] >> 54 == 0xfe80 >> 6
    }

    /// An answer to this host's own DHCP client (RFC 2131, RFC 8415).
    pub fn is_dhcp_answer(&self) -> bool {
        let ports = if self.family == 4 { (67, 68) } else { (547, 546) };
        self.protocol == UDP && self.family != 0 && (self.src_port, self.dst_port) == ports
    }

    /// A request of this host's own DHCP client.
    pub fn is_dhcp_request(&self) -> bool {
        let ports = if self.family == 4 { (68, 67) } else { (546, 547) };
        self.protocol == UDP && self.family != 0 && (self.src_port, self.dst_port) == ports
    }

    fn frame(&mut self, frame: &[u8]) -> Result<(), Unparsable> {
        const ARP: u16 = 0x0806;
        const SLOW: u16 = 0x8809;
        const PAE: u16 = 0x888e;
        const LLDP: u16 = 0x88cc;
        let mut ethertype = be16(frame, ETHERNET - 2).ok_or(Unparsable::ShortEthernet)?;
        let (mut at, mut tags) = (ETHERNET, 0);
        while matches!(ethertype, 0x8100 | 0x88a8) {
            let vlan = self.vlans.get_mut(tags).ok_or(Unparsable::VlanDepth)?;
            let (Some(tag), Some(next)) = (be16(frame, at), be16(frame, at + 2)) else {
                return Err(Unparsable::ShortEthernet);
            };
            *vlan = tag & VLAN_ID;
            (ethertype, at, tags) = (next, at + 4, tags + 1);
        }
        match ethertype {
            0x0800 => self.ipv4(frame, at),
            0x86dd => self.ipv6(frame, at),
            _ => {
                self.is_link_control = matches!(ethertype, ARP | SLOW | PAE | LLDP);
                Err(Unparsable::NotIp)
            }
        }
    }

    fn ipv4(&mut self, frame: &[u8], at: usize) -> Result<(), Unparsable> {
        const BAD: Unparsable = Unparsable::BadIpv4;
        let head = frame.get(at..at + 20).ok_or(BAD)?;
        let (header, total) = (usize::from(head[0] & 0xf) * 4, usize::from(be16(head, 2).ok_or(BAD)?));
        if head[0] >> 4 != 4 || header < 20 || total < header || frame.len() < at + header {
            return Err(BAD);
        }
        self.family = 4;
        self.src[1] = be32(head, 12).ok_or(BAD)?.into();
        self.dst[1] = be32(head, 16).ok_or(BAD)?.into();
        self.protocol = head[9];
        self.hop_limit = head[8];
        let fragment = be16(head, 6).ok_or(BAD)?;
        if fragment & (OFFSET_V4 | MORE_V4) != 0 {
            self.fragment_id = u32::from(be16(head, 4).ok_or(BAD)?.to_be());
            if fragment & OFFSET_V4 != 0 {
                return self.later(usize::from(fragment & OFFSET_V4) * 8);
            }
            self.place = Place::First;
        }
        self.transport(frame, at + header, total - header)
    }

    /// A later fragment must not start inside of a TCP header.
    fn later(&mut self, offset: usize) -> Result<(), Unparsable> {
        self.place = Place::Later;
        if self.protocol == TCP && offset < 20 { Err(Unparsable::TinyFragment) } else { Ok(()) }
    }

    fn ipv6(&mut self, frame: &[u8], start: usize) -> Result<(), Unparsable> {
        const BAD: Unparsable = Unparsable::BadIpv6;
        let head = frame.get(start..start + 40).ok_or(BAD)?;
        if head[0] >> 4 != 6 {
            return Err(BAD);
        }
        self.family = 6;
        let word = |at| be64(head, at).ok_or(BAD);
        (self.src, self.dst) = ([word(8)?, word(16)?], [word(24)?, word(32)?]);
        self.hop_limit = head[7];
        let claimed = usize::from(be16(head, 4).ok_or(BAD)?);
        let (mut kind, mut at) = (head[6], start + 40);
        for turn in 0..EXTENSION_HEADERS_MAX {
            if !is_extension(kind) {
                break;
            }
            let extension = frame.get(at..at + 8).ok_or(Unparsable::Extensions)?;
            if kind == HOP_BY_HOP && turn > 0 {
                return Err(Unparsable::Extensions);
            }
            if kind == FRAGMENT {
                let offset = be16(extension, 2).ok_or(Unparsable::Extensions)?;
                if self.place != Place::Whole {
                    return Err(Unparsable::Extensions);
                }
                // An atomic fragment (RFC 6946) is a whole packet.
                if offset & (OFFSET_V6 | MORE_V6) != 0 {
                    self.fragment_id = be32(extension, 4).ok_or(Unparsable::Extensions)?.to_be();
                    self.place = Place::First;
                }
                if offset & OFFSET_V6 != 0 {
                    self.protocol = extension[0];
                    return self.later(usize::from(offset & OFFSET_V6));
                }
            }
            at += match kind {
                FRAGMENT => 8,
                AUTHENTICATION => (usize::from(extension[1]) + 2) * 4,
                _ => (usize::from(extension[1]) + 1) * 8,
            };
            kind = extension[0];
        }
        let extensions = at - start - 40;
        if is_extension(kind) {
            return Err(Unparsable::Extensions);
        }
        self.protocol = kind;
        if extensions > claimed || frame.len() < at {
            return Err(Unparsable::Extensions);
        }
        self.transport(frame, at, claimed - extensions)
    }

    fn transport(&mut self, frame: &[u8], at: usize, claimed: usize) -> Result<(), Unparsable> {
        (self.transport, self.claimed) = (at, claimed);
        let head = &frame[at..];
        let short = if self.place == Place::Whole { Unparsable::ShortTransport } else { Unparsable::TinyFragment };
        let is_icmp = self.is_icmp();
        let needed = match self.protocol {
            TCP => 20,
            UDP | UDPLITE | SCTP => 8,
            _ if is_icmp => 8,
            _ => return Ok(()),
        };
        if head.len() < needed || claimed < needed || (self.protocol == TCP && head[12] < 0x50) {
            return Err(short);
        }
        if is_icmp {
            (self.icmp_type, self.icmp_code) = (head[0], head[1]);
            let echoes = if self.family == 4 { [8, 0] } else { [128, 129] };
            if echoes.contains(&self.icmp_type) {
                let identifier = be16(head, 4).ok_or(short)?;
                (self.src_port, self.dst_port) = (identifier, identifier);
            }
            return Ok(());
        }
        if self.protocol == TCP {
            self.tcp_flags = head[13];
        }
        self.has_ports = true;
        (self.src_port, self.dst_port) = (be16(head, 0).ok_or(short)?, be16(head, 2).ok_or(short)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::Packet;

    fn v4() -> Packet {
        Packet::new().ipv4([10, 0, 0, 1], [10, 0, 0, 2])
    }

    #[track_caller]
    fn refused(frame: &[u8], why: Unparsable) {
        assert_eq!(read(frame).1, Err(why), "{frame:02x?}");
    }

    #[test]
    fn fields_are_read_through_tags_options_and_extensions() {
        let (tcp, result) = read(&v4().vlan(7).vlan(8).tcp(1000, 80).flags(0x12).payload(&[1; 5]).build());
        assert_eq!((result, tcp.family, tcp.vlans, tcp.protocol), (Ok(()), 4, [7, 8], TCP));
        assert_eq!((tcp.src, tcp.dst), ([0, 0x0a00_0001], [0, 0x0a00_0002]));
        assert_eq!((tcp.src_port, tcp.dst_port, tcp.tcp_flags, tcp.has_ports), (1000, 80, 0x12, true));
        assert_eq!((tcp.transport, tcp.claimed), (14 + 8 + 20, 25));
        let (udp, _) = read(&Packet::new().between("2001:db8::1", "2001:db8::2").udp(5, 53).payload(&[1; 4]).build());
        assert_eq!((udp.family, udp.src, udp.dst_port), (6, [0x2001_0db8_0000_0000, 1], 53));
        let (ping, _) = read(&v4().ping(9, 1).build());
        assert_eq!((ping.icmp_type, ping.src_port, ping.dst_port, ping.has_ports), (8, 9, 9, false));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        refused(&[0; 13], Unparsable::ShortEthernet);
        refused(&v4().vlan(1).vlan(2).vlan(3).udp(1, 2).build(), Unparsable::VlanDepth);
        refused(&v4().vlan(1).udp(1, 2).build()[..16], Unparsable::ShortEthernet);
        let arp = Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build();
        refused(&arp, Unparsable::NotIp);
        assert!(read(&arp).0.is_link_control);
        let tcp = v4().tcp(1, 2).build();
        refused(&tcp[..30], Unparsable::BadIpv4);
        refused(&tcp[..50], Unparsable::ShortTransport);
        assert_eq!(read(&tcp[..50]).0.src, [0, 0x0a00_0001]);
        let fragments = v4().udp(1, 2).payload(&[1; 3000]).fragments(9, 1480);
        let places = [read(&fragments[0]), read(&fragments[1])].map(|(headers, result)| (headers.place, result));
        assert_eq!(places, [(Place::First, Ok(())), (Place::Later, Ok(()))]);
        refused(&fragments[0][..40], Unparsable::TinyFragment);
        let v6 = Packet::new().between("2001:db8::1", "2001:db8::2").udp(1, 2).build();
        refused(&v6[..50], Unparsable::BadIpv6);
        let mut hop = v6.clone();
        hop[20] = HOP_BY_HOP;
        refused(&hop[..60], Unparsable::Extensions);
    }
}
