//! Builds one Ethernet frame, well-formed or deliberately not. `explain`, the laboratory, tests and benches share it.
//!
//! Lengths, next-header fields and checksums follow from the layers that were asked for; whatever a test wants to be
//! wrong is said last ([`Packet::ihl`], [`Packet::total_length`], [`Packet::wrong_checksum`], [`Packet::truncate`]).
//! Libraries that build packets refuse to build such frames, hence our own; the tests compare it with etherparse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;

/// A frame in the making. Each method adds or changes one thing; [`Packet::build`] writes the bytes.
#[derive(Clone, Debug)]
pub struct Packet {
    destination: [u8; 6],
    source: [u8; 6],
    /// Outermost first: protocol id and tag control information.
    tags: Vec<(u16, u16)>,
    ethertype: Option<u16>,
    network: Network,
    ttl: u8,
    traffic_class: u8,
    flow_label: u32,
    identification: u16,
    dont_fragment: bool,
    options: Vec<u8>,
    extensions: Vec<Extension>,
    transport: Transport,
    protocol: Option<u8>,
    tcp_options: Vec<u8>,
    /// IPv4 only: offset in units of 8 bytes, and "more fragments".
    fragment: Option<(u16, bool)>,
    payload: Vec<u8>,
    ihl: Option<u8>,
    total_length: Option<u16>,
    data_offset: Option<u8>,
    wrong_checksum: bool,
    truncate: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Network {
    None,
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

#[derive(Clone, Debug)]
struct Extension {
    protocol: u8,
    /// Everything after the next-header byte.
    body: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    None,
    Tcp { source: u16, destination: u16, flags: u8, sequence: u32, acknowledgement: u32, window: u16 },
    Udp { source: u16, destination: u16 },
    Icmp { kind: u8, code: u8, rest: u32 },
}

impl Default for Packet {
    fn default() -> Packet {
        Packet::new()
    }
}

impl Packet {
    /// A frame between two locally administered addresses, with nothing in it yet.
    pub fn new() -> Packet {
        Packet {
            destination: [2, 0, 0, 0, 0, 2],
            source: [2, 0, 0, 0, 0, 1],
            tags: Vec::new(),
            ethertype: None,
            network: Network::None,
            ttl: 64,
            traffic_class: 0,
            flow_label: 0,
            identification: 0,
            dont_fragment: false,
            options: Vec::new(),
            extensions: Vec::new(),
            transport: Transport::None,
            protocol: None,
            tcp_options: Vec::new(),
            fragment: None,
            payload: Vec::new(),
            ihl: None,
            total_length: None,
            data_offset: None,
            wrong_checksum: false,
            truncate: None,
        }
    }

    /// Hardware addresses.
    pub fn mac(mut self, source: [u8; 6], destination: [u8; 6]) -> Packet {
        self.source = source;
        self.destination = destination;
        self
    }

    /// Adds a VLAN tag inside those that are there. One tag is 802.1Q; of two, the outer one becomes 802.1ad (QinQ).
    pub fn vlan(mut self, id: u16) -> Packet {
        if let Some(outer) = self.tags.last_mut() {
            outer.0 = ETHERTYPE_QINQ;
        }
        self.tags.push((ETHERTYPE_VLAN, id & 0xfff));
        self
    }

    /// Adds a tag with the given protocol id and tag control information (priority, DEI, id), as they stand.
    pub fn tag(mut self, protocol_id: u16, control: u16) -> Packet {
        self.tags.push((protocol_id, control));
        self
    }

    /// An EtherType other than the network layer's own.
    pub fn ethertype(mut self, ethertype: u16) -> Packet {
        self.ethertype = Some(ethertype);
        self
    }

    /// IPv4 from `source` to `destination`.
    pub fn ipv4(mut self, source: impl Into<Ipv4Addr>, destination: impl Into<Ipv4Addr>) -> Packet {
        self.network = Network::V4(source.into(), destination.into());
        self
    }

    /// IPv6 from `source` to `destination`.
    pub fn ipv6(mut self, source: impl Into<Ipv6Addr>, destination: impl Into<Ipv6Addr>) -> Packet {
        self.network = Network::V6(source.into(), destination.into());
        self
    }

    /// IPv4 or IPv6; `None` when the addresses are of different families.
    pub fn ip(self, source: IpAddr, destination: IpAddr) -> Option<Packet> {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some(self.ipv4(source, destination)),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Some(self.ipv6(source, destination)),
            _ => None,
        }
    }

    /// The addresses as text, for packets that stand in the source code.
    ///
    /// # Panics
    /// When the text is not two addresses of one family.
    pub fn between(self, source: &str, destination: &str) -> Packet {
        let parse = |text: &str| text.parse().unwrap_or_else(|_| panic!("\"{text}\" is not an address"));
        self.ip(parse(source), parse(destination))
            .unwrap_or_else(|| panic!("{source} and {destination} are of different families"))
    }

    /// Time to live or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Packet {
        self.ttl = ttl;
        self
    }

    /// DSCP and ECN, as one byte.
    pub fn traffic_class(mut self, class: u8) -> Packet {
        self.traffic_class = class;
        self
    }

    /// Flow label of IPv6.
    pub fn flow_label(mut self, label: u32) -> Packet {
        self.flow_label = label & 0xf_ffff;
        self
    }

    /// Identification of IPv4.
    pub fn identification(mut self, id: u16) -> Packet {
        self.identification = id;
        self
    }

    /// The "don't fragment" bit of IPv4.
    pub fn dont_fragment(mut self) -> Packet {
        self.dont_fragment = true;
        self
    }

    /// Options of IPv4, filled up with zeros to a multiple of 4 bytes; at most 40 bytes go in.
    pub fn options(mut self, options: &[u8]) -> Packet {
        self.options = options[..options.len().min(40)].to_vec();
        self.options.resize(self.options.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a hop-by-hop options header: the options alone, padded to a multiple of 8 bytes.
    pub fn hop_by_hop(self, options: &[u8]) -> Packet {
        self.options_header(HOP_BY_HOP, options)
    }

    /// Adds a destination options header: the options alone, padded to a multiple of 8 bytes.
    pub fn destination_options(self, options: &[u8]) -> Packet {
        self.options_header(DESTINATION_OPTIONS, options)
    }

    /// Adds a routing header without segments.
    pub fn routing(self, kind: u8, segments_left: u8) -> Packet {
        self.extension(ROUTING, &[0, kind, segments_left, 0, 0, 0, 0])
    }

    /// Adds an authentication header with `icv` bytes of check value (filled up to a multiple of 8 with the header).
    pub fn authentication(self, icv: usize) -> Packet {
        let length = (12 + icv).next_multiple_of(8);
        let mut body = vec![0u8; length - 1];
        // The length counts units of 4 bytes, less 2, unlike every other extension header.
        body[0] = (length / 4 - 2) as u8;
        body[10] = 1;
        self.extension(AUTHENTICATION, &body)
    }

    /// Adds an IPv6 extension header (or an AH in IPv4): `body` is everything after its next-header byte.
    pub fn extension(mut self, protocol: u8, body: &[u8]) -> Packet {
        self.extensions.push(Extension { protocol, body: body.to_vec() });
        self
    }

    /// Makes the packet one fragment: `offset` in bytes (a multiple of 8), `more` when others follow.
    ///
    /// IPv4 sets the fields of its header, IPv6 adds a fragment header at this place among the extension headers. What
    /// the fragment carries is what is said: a later fragment has a payload and no transport layer, but needs
    /// [`Packet::protocol`]. [`Packet::fragments`] splits a whole packet.
    pub fn fragment(mut self, id: u32, offset: u16, more: bool) -> Packet {
        match self.network {
            Network::V6(..) => {
                let field = (offset & !7) | u16::from(more);
                let mut body = vec![0u8; 7];
                body[1..3].copy_from_slice(&field.to_be_bytes());
                body[3..7].copy_from_slice(&id.to_be_bytes());
                self.extensions.push(Extension { protocol: FRAGMENT, body });
            }
            _ => {
                self.identification = id as u16;
                self.fragment = Some((offset / 8, more));
            }
        }
        self
    }

    /// TCP, with SYN set until [`Packet::flags`] says otherwise.
    pub fn tcp(mut self, source: u16, destination: u16) -> Packet {
        self.transport =
            Transport::Tcp { source, destination, flags: 2, sequence: 1000, acknowledgement: 0, window: 64240 };
        self
    }

    /// UDP.
    pub fn udp(mut self, source: u16, destination: u16) -> Packet {
        self.transport = Transport::Udp { source, destination };
        self
    }

    /// ICMP or ICMPv6, as the addresses say.
    pub fn icmp(mut self, kind: u8, code: u8) -> Packet {
        self.transport = Transport::Icmp { kind, code, rest: 0 };
        self
    }

    /// An echo request of ICMP or ICMPv6.
    pub fn ping(self, id: u16, sequence: u16) -> Packet {
        let kind = if matches!(self.network, Network::V6(..)) { 128 } else { 8 };
        self.icmp(kind, 0).rest(u32::from(id) << 16 | u32::from(sequence))
    }

    /// The second word of an ICMP header.
    pub fn rest(mut self, word: u32) -> Packet {
        if let Transport::Icmp { ref mut rest, .. } = self.transport {
            *rest = word;
        }
        self
    }

    /// The flags of TCP as bits: F 1, S 2, R 4, P 8, A 16, U 32, E 64, W 128.
    pub fn flags(mut self, bits: u8) -> Packet {
        if let Transport::Tcp { ref mut flags, .. } = self.transport {
            *flags = bits;
        }
        self
    }

    /// Sequence and acknowledgement numbers of TCP.
    pub fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Packet {
        if let Transport::Tcp { sequence: ref mut s, acknowledgement: ref mut a, .. } = self.transport {
            (*s, *a) = (sequence, acknowledgement);
        }
        self
    }

    /// Window of TCP.
    pub fn window(mut self, bytes: u16) -> Packet {
        if let Transport::Tcp { ref mut window, .. } = self.transport {
            *window = bytes;
        }
        self
    }

    /// Options of TCP, filled up with zeros to a multiple of 4 bytes; at most 40 bytes go in.
    pub fn tcp_options(mut self, options: &[u8]) -> Packet {
        self.tcp_options = options[..options.len().min(40)].to_vec();
        self.tcp_options.resize(self.tcp_options.len().next_multiple_of(4), 0);
        self
    }

    /// The IP protocol number: of the payload where there is no transport layer, else instead of the layer's own.
    pub fn protocol(mut self, number: u8) -> Packet {
        self.protocol = Some(number);
        self
    }

    /// What the innermost layer carries.
    pub fn payload(mut self, bytes: &[u8]) -> Packet {
        self.payload = bytes.to_vec();
        self
    }

    /// An ARP request for `wanted` by `asking`, to everybody.
    pub fn arp_request(mut self, asking: Ipv4Addr, wanted: Ipv4Addr) -> Packet {
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
        body.extend(self.source);
        body.extend(asking.octets());
        body.extend([0; 6]);
        body.extend(wanted.octets());
        self.destination = [0xff; 6];
        self.ethertype(ETHERTYPE_ARP).payload(&body)
    }

    /// A header length of IPv4, in words, that need not be true.
    pub fn ihl(mut self, words: u8) -> Packet {
        self.ihl = Some(words);
        self
    }

    /// A total length (IPv4) or payload length (IPv6) that need not be true.
    pub fn total_length(mut self, bytes: u16) -> Packet {
        self.total_length = Some(bytes);
        self
    }

    /// A header length of TCP, in words, that need not be true.
    pub fn data_offset(mut self, words: u8) -> Packet {
        self.data_offset = Some(words);
        self
    }

    /// Spoils the checksum of the transport layer.
    pub fn wrong_checksum(mut self) -> Packet {
        self.wrong_checksum = true;
        self
    }

    /// Cuts the frame after `bytes`.
    pub fn truncate(mut self, bytes: usize) -> Packet {
        self.truncate = Some(bytes);
        self
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = self.ethernet();
        match self.network {
            Network::None => frame.extend(&self.payload),
            _ => {
                let segment = self.segment();
                self.push_ip(&mut frame, &self.extensions, self.protocol_number(), self.fragment, &segment);
            }
        }
        self.finish(frame)
    }

    /// The packet in fragments of at most `bytes` (a multiple of 8) of data each; the transport layer's header stands
    /// in the first one, and its checksum is that of the whole. Extension headers so far stay outside of the fragments.
    pub fn fragments(&self, id: u32, bytes: usize) -> Vec<Vec<u8>> {
        let bytes = (bytes & !7).max(8);
        let whole = self.segment();
        let last = whole.len().div_ceil(bytes).max(1) - 1;
        (0..=last)
            .map(|index| {
                let part = &whole[index * bytes..whole.len().min((index + 1) * bytes)];
                let piece = self.clone().fragment(id, (index * bytes) as u16, index < last);
                let mut frame = piece.ethernet();
                piece.push_ip(&mut frame, &piece.extensions, piece.protocol_number(), piece.fragment, part);
                piece.finish(frame)
            })
            .collect()
    }

    fn finish(&self, mut frame: Vec<u8>) -> Vec<u8> {
        if let Some(length) = self.truncate {
            frame.truncate(length);
        }
        frame
    }

    fn ethernet(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(128 + self.payload.len());
        frame.extend(self.destination);
        frame.extend(self.source);
        for (protocol_id, control) in &self.tags {
            frame.extend(protocol_id.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        let own = match self.network {
            Network::None => 0xffff,
            Network::V4(..) => ETHERTYPE_IPV4,
            Network::V6(..) => ETHERTYPE_IPV6,
        };
        frame.extend(self.ethertype.unwrap_or(own).to_be_bytes());
        frame
    }

    fn options_header(self, protocol: u8, options: &[u8]) -> Packet {
        let length = (2 + options.len()).next_multiple_of(8);
        let mut body = vec![(length / 8 - 1) as u8];
        body.extend(options);
        match length - 1 - body.len() {
            0 => {}
            1 => body.push(0),
            pad => {
                body.extend([1, (pad - 2) as u8]);
                body.resize(length - 1, 0);
            }
        }
        self.extension(protocol, &body)
    }

    fn protocol_number(&self) -> u8 {
        self.protocol.unwrap_or(match (self.transport, self.network) {
            (Transport::Tcp { .. }, _) => TCP,
            (Transport::Udp { .. }, _) => UDP,
            (Transport::Icmp { .. }, Network::V6(..)) => ICMPV6,
            (Transport::Icmp { .. }, _) => ICMP,
            (Transport::None, Network::V6(..)) => NO_NEXT_HEADER,
            // 253 is kept for experiments (RFC 3692).
            (Transport::None, _) => 253,
        })
    }

    /// The transport layer with its payload.
    fn segment(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64 + self.payload.len());
        let checksum_at = match self.transport {
            Transport::None => None,
            Transport::Tcp { source, destination, flags, sequence, acknowledgement, window } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledgement.to_be_bytes());
                bytes.push(self.data_offset.unwrap_or(5 + (self.tcp_options.len() / 4) as u8) << 4);
                bytes.push(flags);
                bytes.extend(window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(&self.tcp_options);
                Some(16)
            }
            Transport::Udp { source, destination } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend([0; 2]);
                Some(6)
            }
            Transport::Icmp { kind, code, rest } => {
                bytes.extend([kind, code, 0, 0]);
                bytes.extend(rest.to_be_bytes());
                Some(2)
            }
        };
        bytes.extend(&self.payload);
        if let Some(at) = checksum_at {
            let mut sum = checksum(&[&self.pseudo_header(bytes.len()), &bytes]);
            if sum == 0 && matches!(self.transport, Transport::Udp { .. }) {
                sum = 0xffff; // Zero means "no checksum" in UDP.
            }
            if self.wrong_checksum {
                sum ^= 0x5555;
            }
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// What the transport checksum covers besides the segment; nothing for ICMP over IPv4.
    fn pseudo_header(&self, length: usize) -> Vec<u8> {
        let protocol = match self.transport {
            Transport::Tcp { .. } => TCP,
            Transport::Udp { .. } => UDP,
            Transport::Icmp { .. } if matches!(self.network, Network::V6(..)) => ICMPV6,
            _ => return Vec::new(),
        };
        let mut header = Vec::with_capacity(40);
        match self.network {
            Network::V4(source, destination) => {
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend([0, protocol]);
                header.extend((length as u16).to_be_bytes());
            }
            Network::V6(source, destination) => {
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend((length as u32).to_be_bytes());
                header.extend([0, 0, 0, protocol]);
            }
            Network::None => {}
        }
        header
    }

    fn push_ip(
        &self,
        frame: &mut Vec<u8>,
        extensions: &[Extension],
        protocol: u8,
        fragment: Option<(u16, bool)>,
        segment: &[u8],
    ) {
        let mut inner = Vec::with_capacity(segment.len() + 64);
        for (index, extension) in extensions.iter().enumerate() {
            inner.push(extensions.get(index + 1).map_or(protocol, |next| next.protocol));
            inner.extend(&extension.body);
        }
        inner.extend(segment);
        let first = extensions.first().map_or(protocol, |extension| extension.protocol);
        match self.network {
            Network::V4(source, destination) => {
                let words = 5 + (self.options.len() / 4) as u8;
                let (offset, more) = fragment.unwrap_or((0, false));
                let length = (usize::from(words) * 4 + inner.len()) as u16;
                let mut header = vec![0x40 | self.ihl.unwrap_or(words) & 15, self.traffic_class];
                header.extend(self.total_length.unwrap_or(length).to_be_bytes());
                header.extend(self.identification.to_be_bytes());
                let flags = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13 | offset & 0x1fff;
                header.extend(flags.to_be_bytes());
                header.extend([self.ttl, first, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
            }
            Network::V6(source, destination) => {
                let first_word = 6u32 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
                frame.extend(first_word.to_be_bytes());
                frame.extend(self.total_length.unwrap_or(inner.len() as u16).to_be_bytes());
                frame.extend([first, self.ttl]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            Network::None => {}
        }
        frame.extend(inner);
    }
}

/// The Internet checksum (RFC 1071) of the concatenated parts; every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{LinkExtSlice, NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    fn v4() -> Packet {
        Packet::new().between("10.0.0.1", "192.0.2.7")
    }

    fn v6() -> Packet {
        Packet::new().between("2001:db8::1", "fe80::2")
    }

    /// Parses with etherparse and checks every checksum by it.
    fn check(frame: &[u8]) {
        let sliced = SlicedPacket::from_ethernet(frame).expect("etherparse reads it");
        match (&sliced.net, &sliced.transport) {
            (Some(NetSlice::Ipv4(ip)), transport) => {
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), ip.header().header_checksum());
                match transport {
                    Some(TransportSlice::Tcp(tcp)) => {
                        assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(header.source, header.destination).unwrap())
                    }
                    Some(TransportSlice::Udp(udp)) => {
                        let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                        assert_eq!(udp.checksum(), sum)
                    }
                    Some(TransportSlice::Icmpv4(icmp)) => {
                        assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()))
                    }
                    other => panic!("unexpected transport {other:?}"),
                }
            }
            (Some(NetSlice::Ipv6(ip)), transport) => {
                let (source, destination) = (ip.header().source(), ip.header().destination());
                match transport {
                    Some(TransportSlice::Tcp(tcp)) => {
                        assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(source, destination).unwrap())
                    }
                    Some(TransportSlice::Udp(udp)) => {
                        let header = ip.header().to_header();
                        let sum = udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap();
                        assert_eq!(udp.checksum(), sum)
                    }
                    Some(TransportSlice::Icmpv6(icmp)) => {
                        assert!(icmp.is_checksum_valid(source, destination))
                    }
                    other => panic!("unexpected transport {other:?}"),
                }
            }
            other => panic!("unexpected network layer {other:?}"),
        }
    }

    #[test]
    fn whole_packets_are_well_formed() {
        for packet in [v4(), v4().options(&[1, 1, 7, 3, 4]), v4().vlan(7), v4().vlan(100).vlan(7), v6(), v6().vlan(7)] {
            check(&packet.clone().tcp(1, 80).build());
            check(&packet.clone().tcp(1, 80).flags(0x10).tcp_options(&[2, 4, 5, 0xb4]).payload(b"hello").build());
            check(&packet.clone().udp(1, 53).payload(b"odd").build());
            check(&packet.clone().ping(3, 9).payload(b"abc").build());
        }
        for packet in [
            v6().hop_by_hop(&[]),
            v6().hop_by_hop(&[5, 2, 0, 0]).destination_options(&[1, 4, 0, 0, 0, 0, 1, 1]),
            v6().routing(0, 0).authentication(12),
            v6().fragment(77, 0, false),
        ] {
            check(&packet.clone().tcp(1, 80).build());
            check(&packet.clone().udp(1, 80).payload(b"x").build());
        }
    }

    #[test]
    fn tags_stack_as_qinq() {
        let frame = v4().vlan(100).vlan(7).udp(1, 2).build();
        assert_eq!(&frame[12..22], &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 7, 8, 0]);
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let ids: Vec<u16> = sliced
            .link_exts
            .iter()
            .map(|tag| match tag {
                LinkExtSlice::Vlan(vlan) => vlan.vlan_identifier().value(),
                other => panic!("unexpected {other:?}"),
            })
            .collect();
        assert_eq!(ids, [100, 7]);
    }

    #[test]
    fn fragments_carry_the_whole_between_them() {
        let payload: Vec<u8> = (0..100).collect();
        for packet in [v4().udp(1000, 53), v6().udp(1000, 53)] {
            let packet = packet.payload(&payload);
            let whole = packet.segment();
            let parts = packet.fragments(99, 40);
            assert_eq!(parts.len(), 3);
            let mut joined: Vec<u8> = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                let sliced = SlicedPacket::from_ethernet(part).unwrap();
                let ip_payload = match sliced.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        assert_eq!(usize::from(ip.header().fragments_offset().value()) * 8, index * 40);
                        assert_eq!(ip.header().more_fragments(), index < 2);
                        assert_eq!(ip.header().identification(), 99);
                        ip.payload().payload
                    }
                    NetSlice::Ipv6(ip) => {
                        let field = u16::from_be_bytes([part[56], part[57]]);
                        assert_eq!(
                            (part[20], usize::from(field & !7), field & 1),
                            (44, index * 40, u16::from(index < 2))
                        );
                        assert_eq!(ip.payload().ip_number.0, 17);
                        ip.payload().payload
                    }
                    other => panic!("unexpected {other:?}"),
                };
                joined.extend(ip_payload);
            }
            assert_eq!(joined, whole);
        }
    }

    #[test]
    fn wrong_is_possible() {
        assert_eq!(v4().ihl(4).tcp(1, 2).build()[14], 0x44);
        assert_eq!(v4().total_length(9).udp(1, 2).build()[16..18], [0, 9]);
        assert_eq!(v4().tcp(1, 2).data_offset(3).build()[46], 0x30);
        assert_eq!(v4().tcp(1, 2).truncate(30).build().len(), 30);
        assert_ne!(v4().tcp(1, 2).build()[50..52], v4().tcp(1, 2).wrong_checksum().build()[50..52]);
        assert_eq!(v4().protocol(47).payload(b"gre").build()[23], 47);
        let arp = Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build();
        assert_eq!((arp.len(), &arp[12..14]), (42, &[8u8, 6][..]));
    }

    proptest! {
        #[test]
        fn any_addresses_ports_and_payload(a: [u8; 4], b: [u8; 4], c: [u8; 16], d: [u8; 16], ports: (u16, u16),
                                           payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            for packet in [Packet::new().ipv4(a, b), Packet::new().ipv6(c, d)] {
                check(&packet.clone().tcp(ports.0, ports.1).payload(&payload).build());
                check(&packet.udp(ports.0, ports.1).payload(&payload).build());
            }
        }
    }
}
