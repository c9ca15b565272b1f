//! One frame: from its link layer to what TCP, UDP or ICMP carry, without a copy.
//!
//! Each length is checked against the one around it, and those against what was captured. Tunnels (GRE, IP in IP in all
//! four combinations, VXLAN) are opened to a depth of [`DEPTH_MAX`] inner headers. What cannot be read says why
//! ([`Malformed`]). No number in a packet makes this allocate, recurse, or loop longer than its headers are.

mod checksum;
mod ip;
#[cfg(test)]
mod tests;
mod transport;
mod tunnel;

use std::net::IpAddr;

pub use transport::{Datagram, Segment};

/// Inner IP headers that are looked at below the outer one.
pub const DEPTH_MAX: u8 = 2;

/// Link layer of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// Ethernet.
    Ethernet,
    /// IPv4 or IPv6 without a link layer.
    Raw,
    /// BSD loopback: four bytes of address family in either order.
    Null,
    /// Linux cooked capture, version 1.
    Sll,
    /// Linux cooked capture, version 2.
    Sll2,
    /// PPP (RFC 1661), with or without address and control (RFC 1662).
    Ppp,
}

/// Protocol numbers of IP that are looked into.
pub mod protocol {
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: u8 = 4;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 4213).
    pub const IPV6: u8 = 41;
    /// Generic routing encapsulation (RFC 2784, RFC 2890).
    pub const GRE: u8 = 47;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// Bits of [`Segment::flags`].
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
}

macro_rules! malformed {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal),* $(,)?) => {
        /// What is wrong with a frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Malformed { $($(#[doc = $doc])* $variant),* }

        impl Malformed {
            /// All of them.
            pub const ALL: &'static [Malformed] = &[$(Malformed::$variant),*];

            /// The name that anomalies carry.
            pub const fn name(self) -> &'static str {
                match self { $(Malformed::$variant => $name),* }
            }
        }
    };
}

malformed! {
    /// The frame ends inside its link header.
    LinkTruncated = "link.truncated_header",
    /// More than two VLAN tags.
    LinkTooManyTags = "link.too_many_tags",
    /// BSD loopback of an unknown family.
    LinkUnknownFamily = "link.unknown_family",
    /// The packet ends inside its IPv4 header.
    Ipv4Truncated = "ipv4.truncated_header",
    /// Version is not what the layer below said.
    IpBadVersion = "ip.bad_version",
    /// Header length below 20 bytes, or beyond the packet.
    Ipv4BadHeaderLength = "ipv4.bad_header_length",
    /// Total length below the header's.
    Ipv4BadTotalLength = "ipv4.bad_total_length",
    /// The header's checksum is wrong.
    Ipv4BadChecksum = "ipv4.bad_checksum",
    /// Fewer bytes than the IP header promises, but some of the payload.
    IpTruncated = "ip.truncated",
    /// The packet ends inside its IPv6 header.
    Ipv6Truncated = "ipv6.truncated_header",
    /// An extension header reaches beyond the packet.
    Ipv6TruncatedExtension = "ipv6.truncated_extension",
    /// More extension headers than anyone needs.
    Ipv6TooManyExtensions = "ipv6.too_many_extensions",
    /// A hop-by-hop header that is not the first (RFC 8200 4.1).
    Ipv6MisplacedHopByHop = "ipv6.misplaced_hop_by_hop",
    /// A routing header of type 0 (RFC 5095).
    Ipv6RoutingType0 = "ipv6.routing_type_0",
    /// A fragment whose reassembled content begins with another fragment header.
    Ipv6NestedFragment = "ipv6.nested_fragment",
    /// A fragment that is not the last and whose length is no multiple of 8.
    FragmentBadLength = "fragment.bad_length",
    /// A fragment that ends beyond 65,535 bytes.
    FragmentTooLong = "fragment.too_long",
    /// The packet ends inside its TCP header.
    TcpTruncated = "tcp.truncated_header",
    /// Data offset below 20 bytes, or beyond the packet.
    TcpBadHeaderLength = "tcp.bad_header_length",
    /// An option's length is 0, 1, or beyond the header.
    TcpBadOptions = "tcp.bad_options",
    /// TCP's checksum is wrong.
    TcpBadChecksum = "tcp.bad_checksum",
    /// The packet ends inside its UDP header.
    UdpTruncated = "udp.truncated_header",
    /// Length below 8 bytes, or beyond the packet.
    UdpBadLength = "udp.bad_length",
    /// UDP's checksum is wrong.
    UdpBadChecksum = "udp.bad_checksum",
    /// UDP over IPv6 without a checksum (RFC 8200 8.1).
    UdpNoChecksum = "udp.no_checksum",
    /// The packet ends inside its ICMP header.
    IcmpTruncated = "icmp.truncated_header",
    /// The packet ends inside its GRE header.
    GreTruncated = "gre.truncated_header",
    /// The packet ends inside the inner Ethernet header of a tunnel.
    TunnelTruncated = "tunnel.truncated_header",
    /// More than two IP headers below the outer one; what lies deeper is not inspected.
    TunnelTooDeep = "tunnel.too_deep",
}

/// Why nothing of a frame can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It is no IP: ARP, LLDP...
    NotIp,
    /// It is broken.
    Malformed(Malformed),
    /// What was captured of it ends too early: before the end of a header that its IP header promises.
    Cut,
}

impl From<Malformed> for Unread {
    fn from(what: Malformed) -> Unread {
        Unread::Malformed(what)
    }
}

/// What the checksums of a packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// All of them are right.
    Good,
    /// One is wrong: the packet is broken, or its sender left all of the sum to the network card.
    Bad(Malformed),
    /// The one of TCP or UDP holds the pseudo header's sum only: the packet was taken on the way out, before the
    /// network card completed it, or on the way in, after segments were merged. On the wire it would be wrong.
    Owed(Malformed),
    /// Not all could be reckoned: bytes are missing, or there is none.
    Unknown,
}

/// The innermost IP header that was read, and what is around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Who sent it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// VLAN tags of the outermost frame, outer first; 0 for none.
    pub vlans: [u16; 2],
    /// IP headers around this one.
    pub depth: u8,
    /// What the checksums say.
    pub checksum: Checksum,
    /// A routing header has stations left: the destination is not the one that transport checksums are reckoned with.
    is_routed: bool,
}

/// A fragment of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Identification; 16 bits in IPv4.
    pub id: u32,
    /// Where its bytes stand in the packet's payload.
    pub offset: u16,
    /// It is not the last one.
    pub has_more: bool,
    /// Its bytes. Of IPv6 without the headers before the fragment header.
    pub bytes: &'a [u8],
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A segment of TCP.
    Tcp(Segment<'a>),
    /// A datagram of UDP.
    Udp(Datagram<'a>),
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Part of a packet; [`resume`] goes on when it is whole.
    Fragment(Fragment<'a>),
    /// Something else.
    Other,
}

/// Things that are wrong with a frame that can be used all the same. More than it holds are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oddities([Option<Malformed>; 4]);

impl Oddities {
    fn add(&mut self, what: Malformed) {
        if !self.0.contains(&Some(what))
            && let Some(free) = self.0.iter_mut().find(|slot| slot.is_none())
        {
            *free = Some(what);
        }
    }

    /// What was odd.
    pub fn iter(&self) -> impl Iterator<Item = Malformed> + '_ {
        self.0.iter().map_while(|what| *what)
    }
}

/// A frame that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its innermost IP header.
    pub ip: Headers,
    /// Protocol of what it carries; of a fragment, of what the whole will carry.
    pub protocol: u8,
    /// What it carries.
    pub content: Content<'a>,
    /// What is odd about it. A bad checksum stands in [`Headers::checksum`] only.
    pub oddities: Oddities,
}

/// An IP packet whose header was read.
struct Packet<'a> {
    ip: Headers,
    protocol: u8,
    payload: &'a [u8],
    /// Bytes of the payload that the header promises and the capture does not hold.
    missing: usize,
    fragment: Option<Fragment<'a>>,
}

/// Reads a frame. `vlans` are tags that stood in front of it and were taken out, outer first; 0 for none.
pub fn decode(link: Link, vlans: [u16; 2], bytes: &[u8]) -> Result<Frame<'_>, Unread> {
    let mut vlans = vlans;
    let (ethertype, packet) = match link {
        Link::Ethernet => tunnel::ethernet(bytes, Some(&mut vlans))?,
        Link::Raw => (ip::ethertype_of(bytes)?, bytes),
        Link::Null => null(bytes)?,
        Link::Sll => cooked(bytes, 14, 16, &mut vlans)?,
        Link::Sll2 => cooked(bytes, 0, 20, &mut vlans)?,
        Link::Ppp => {
            let (ethertype, packet) = ppp(bytes).ok_or(Malformed::LinkTruncated)?;
            (ethertype.ok_or(Unread::NotIp)?, packet)
        }
    };
    let mut oddities = Oddities::default();
    let packet = ip::read(ethertype, packet, vlans, 0, &mut oddities)?;
    follow(packet, oddities)
}

/// Goes on with a packet that was put together from fragments: `protocol` and `payload` are the whole's. It may turn
/// out to be a tunnel that carries a fragment; the depth in `ip` bounds how often.
pub fn resume(ip: Headers, protocol: u8, payload: &[u8]) -> Result<Frame<'_>, Unread> {
    let mut packet = Packet { ip, protocol, payload, missing: 0, fragment: None };
    let mut oddities = Oddities::default();
    if ip.source.is_ipv6() {
        ip::extensions(&mut packet, false, &mut oddities)?;
        if packet.fragment.is_some() {
            return Err(Malformed::Ipv6NestedFragment.into());
        }
    }
    follow(packet, oddities)
}

/// From an IP header inwards, to the last one.
fn follow<'a>(mut packet: Packet<'a>, mut oddities: Oddities) -> Result<Frame<'a>, Unread> {
    loop {
        if let Some(fragment) = packet.fragment {
            let content = Content::Fragment(fragment);
            return Ok(Frame { ip: packet.ip, protocol: packet.protocol, content, oddities });
        }
        match tunnel::inner(&packet)? {
            Some(_) if packet.ip.depth == DEPTH_MAX => oddities.add(Malformed::TunnelTooDeep),
            Some((ethertype, inner)) => {
                let depth = packet.ip.depth + 1;
                // The outer sums cover the inner packet, but a router on the way does not look at them: it is the
                // inner ones that the receiver goes by.
                packet = ip::read(ethertype, inner, packet.ip.vlans, depth, &mut oddities)?;
                continue;
            }
            None => {}
        }
        return transport::read(packet, oddities);
    }
}

/// BSD loopback. The family is in the byte order of the machine that captured, and IPv6 has three numbers.
fn null(bytes: &[u8]) -> Result<(u16, &[u8]), Unread> {
    let (family, packet) = bytes.split_first_chunk::<4>().ok_or(Malformed::LinkTruncated)?;
    match u32::from_be_bytes(*family).min(u32::from_le_bytes(*family)) {
        2 => Ok((ip::ETHERTYPE_IPV4, packet)),
        10 | 24 | 28 | 30 => Ok((ip::ETHERTYPE_IPV6, packet)),
        _ => Err(Malformed::LinkUnknownFamily.into()),
    }
}

/// What PPP carries: the EtherType of IPv4 or IPv6, none for another protocol, and the packet. `None`: too short.
pub fn ppp(bytes: &[u8]) -> Option<(Option<u16>, &[u8])> {
    // Both may be left out (RFC 1661, sections 6.5 and 6.6): an odd byte ends the protocol's number.
    let bytes = bytes.strip_prefix(&[0xff, 0x03]).unwrap_or(bytes);
    let (&first, rest) = bytes.split_first()?;
    let (number, packet) = if first & 1 == 1 {
        (u16::from(first), rest)
    } else {
        let (&second, rest) = rest.split_first()?;
        (u16::from_be_bytes([first, second]), rest)
    };
    let ethertype = match number {
        0x21 => Some(ip::ETHERTYPE_IPV4),
        0x57 => Some(ip::ETHERTYPE_IPV6),
        _ => None,
    };
    Some((ethertype, packet))
}

/// Linux cooked capture: the EtherType stands at `at`, the packet begins at `header`.
fn cooked<'a>(bytes: &'a [u8], at: usize, header: usize, vlans: &mut [u16; 2]) -> Result<(u16, &'a [u8]), Unread> {
    let packet = bytes.get(header..).ok_or(Malformed::LinkTruncated)?;
    let ethertype = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    tunnel::tags(ethertype, packet, Some(vlans))
}
