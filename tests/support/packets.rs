//! A packet as the rules see it, and as a frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpfsentinel::classify::matching::{Match, Protocol, State};
use ebpfsentinel::packet::build::Packet;
use ipnet::IpNet;

use super::random::Random;

/// What rules can ask of a packet. Fields that the packet's protocol does not have are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacketFields {
    pub src: IpAddr,
    /// Of the same family as `src`.
    pub dst: IpAddr,
    pub protocol: u8,
    pub src_port: u16,
    pub dst_port: u16,
    /// 0 when untagged.
    pub vlan_id: u16,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// A fragment after the first one: ports, flags, type and code are not in it.
    pub later_fragment: bool,
    /// Number of the interface on which it arrives, below 64.
    pub interface: u8,
    /// `None` while no state was looked up: rules that ask for one may match then.
    pub state: Option<State>,
}

/// Name of the interface with this number in rules made for tests.
pub fn interface_name(number: u8) -> String {
    format!("test{number}")
}

impl PacketFields {
    /// An untagged TCP SYN between two addresses of one family.
    pub fn tcp(src: IpAddr, dst: IpAddr, src_port: u16, dst_port: u16) -> PacketFields {
        PacketFields {
            src,
            dst,
            protocol: 6,
            src_port,
            dst_port,
            vlan_id: 0,
            tcp_flags: 2,
            icmp_type: 0,
            icmp_code: 0,
            later_fragment: false,
            interface: 0,
            state: None,
        }
    }

    /// A random packet of one family that no rule had a part in.
    pub fn random(ipv4: bool, random: &mut Random) -> PacketFields {
        let protocol = match random.below(10) {
            0..=4 => 6,
            5..=7 => 17,
            8 => icmp(ipv4),
            _ => random.bits() as u8,
        };
        PacketFields {
            src: random_address(ipv4, random),
            dst: random_address(ipv4, random),
            protocol,
            src_port: random.bits() as u16,
            dst_port: random.bits() as u16,
            vlan_id: if random.chance(80) { 0 } else { random.below(4095) as u16 },
            tcp_flags: random.pick(&[0x02, 0x10, 0x12, 0x18, 0x11, 0x04, 0x00, 0xff]),
            icmp_type: random.pick(&[0, 3, 8, 11, 128, 129]),
            icmp_code: random.below(4) as u8,
            later_fragment: false,
            interface: random.below(4) as u8,
            state: None,
        }
    }

    /// A random packet that `matches` takes, if any packet of its family can; `ipv4` decides for a rule of both.
    pub fn inside(matches: &Match, ipv4: bool, random: &mut Random) -> PacketFields {
        let ipv4 = matches.is_ipv4().unwrap_or(ipv4);
        let mut packet = PacketFields::random(ipv4, random);
        if let Some(network) = matches.src_ip {
            packet.src = address_in(network, random);
        }
        if let Some(network) = matches.dst_ip {
            packet.dst = address_in(network, random);
        }
        packet.protocol = match matches.protocol {
            Protocol::Number(number) => number,
            Protocol::Any if matches.tcp_flags.is_some() => 6,
            Protocol::Any if matches.icmp_type.is_some() => icmp(ipv4),
            Protocol::Any if matches.src_port.is_some() || matches.dst_port.is_some() => {
                random.pick(&[6, 6, 17, 17, 132, 136])
            }
            Protocol::Any => packet.protocol,
        };
        if let Some(range) = matches.src_port {
            packet.src_port = random.between(range.low.into(), range.high.into()) as u16;
        }
        if let Some(range) = matches.dst_port {
            packet.dst_port = random.between(range.low.into(), range.high.into()) as u16;
        }
        if let Some(id) = matches.vlan_id {
            packet.vlan_id = id;
        }
        if let Some(flags) = matches.tcp_flags {
            packet.tcp_flags = flags.set | (random.bits() as u8 & !flags.mask);
        }
        if let Some(kind) = matches.icmp_type {
            packet.icmp_type = kind;
        }
        if let Some(code) = matches.icmp_code {
            packet.icmp_code = code;
        }
        if !matches.interfaces.is_empty() {
            let name = &matches.interfaces[random.below(matches.interfaces.len())];
            packet.interface = name.trim_start_matches("test").parse().expect("interface of a test");
        }
        packet
    }

    /// A packet at the edges of `matches`: in each field the first or last value that matches, or the one beside it.
    pub fn at_edge(matches: &Match, ipv4: bool, random: &mut Random) -> PacketFields {
        let mut packet = PacketFields::inside(matches, ipv4, random);
        if let Some(network) = matches.src_ip.filter(|_| random.chance(70)) {
            packet.src = address_at_edge(network, random);
        }
        if let Some(network) = matches.dst_ip.filter(|_| random.chance(70)) {
            packet.dst = address_at_edge(network, random);
        }
        if let Some(range) = matches.src_port.filter(|_| random.chance(70)) {
            packet.src_port = beside(range.low, range.high, random);
        }
        if let Some(range) = matches.dst_port.filter(|_| random.chance(70)) {
            packet.dst_port = beside(range.low, range.high, random);
        }
        if random.chance(15) {
            packet.vlan_id = (packet.vlan_id + random.pick(&[1, 4094])) % 4095;
        }
        if random.chance(15) {
            packet.tcp_flags ^= 1 << random.below(8);
        }
        if random.chance(15) {
            packet.icmp_code ^= 1;
        }
        if random.chance(10) {
            packet.icmp_type = packet.icmp_type.wrapping_add(1);
        }
        if random.chance(10) {
            packet.interface = random.below(64) as u8;
        }
        if random.chance(10) {
            packet.protocol = random.pick(&[1, 6, 17, 58, 132, 136, 47, 0, 255]);
        }
        packet
    }

    /// Name of the interface on which it arrives.
    pub fn interface_name(&self) -> String {
        interface_name(self.interface)
    }

    /// Whether the protocol has ports.
    pub fn has_ports(&self) -> bool {
        matches!(self.protocol, 6 | 17 | 132 | 136) && !self.later_fragment
    }

    /// The frame that carries these fields; interface and state are not in it.
    pub fn frame(&self) -> Vec<u8> {
        let mut packet = Packet::new().ip(self.src, self.dst).expect("addresses of one family");
        if self.vlan_id != 0 {
            packet = packet.vlan(self.vlan_id);
        }
        if self.later_fragment {
            return packet.protocol(self.protocol).fragment(7, 1480, false).payload(&[0; 16]).build();
        }
        let ports = [self.src_port.to_be_bytes(), self.dst_port.to_be_bytes()].concat();
        match self.protocol {
            6 => packet.tcp(self.src_port, self.dst_port).flags(self.tcp_flags),
            17 => packet.udp(self.src_port, self.dst_port),
            136 => packet.udp(self.src_port, self.dst_port).protocol(136),
            // SCTP: ports, verification tag, checksum.
            132 => packet.protocol(132).payload(&[&ports[..], &[0; 8]].concat()),
            protocol if protocol == icmp(self.src.is_ipv4()) => packet.icmp(self.icmp_type, self.icmp_code),
            protocol => packet.protocol(protocol).payload(&[0; 16]),
        }
        .build()
    }
}

/// The number of ICMP in a family.
pub fn icmp(ipv4: bool) -> u8 {
    if ipv4 { 1 } else { 58 }
}

fn random_address(ipv4: bool, random: &mut Random) -> IpAddr {
    if ipv4 {
        Ipv4Addr::from_bits(random.bits() as u32).into()
    } else {
        // Global unicast, or what rules are most often about: the 2000::/3 of the rule sets here starts with 2a01.
        let high = if random.chance(50) { 0x2a01 << 48 | random.bits() >> 16 } else { random.bits() };
        Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(random.bits())).into()
    }
}

fn address_in(network: IpNet, random: &mut Random) -> IpAddr {
    match network {
        IpNet::V4(net) => {
            let host = random.bits() as u32 & net.hostmask().to_bits();
            Ipv4Addr::from_bits(net.network().to_bits() | host).into()
        }
        IpNet::V6(net) => {
            let bits = u128::from(random.bits()) << 64 | u128::from(random.bits());
            Ipv6Addr::from_bits(net.network().to_bits() | bits & net.hostmask().to_bits()).into()
        }
    }
}

/// First or last address of the network, or the one before or after it; or one with a single bit of the prefix turned.
fn address_at_edge(network: IpNet, random: &mut Random) -> IpAddr {
    let step = random.below(5);
    match network {
        IpNet::V4(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            Ipv4Addr::from_bits(match step {
                0 => first,
                1 => last,
                2 => first.wrapping_sub(1),
                3 => last.wrapping_add(1),
                _ => first ^ 1 << random.below(32),
            })
            .into()
        }
        IpNet::V6(net) => {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            Ipv6Addr::from_bits(match step {
                0 => first,
                1 => last,
                2 => first.wrapping_sub(1),
                3 => last.wrapping_add(1),
                _ => first ^ 1 << random.below(128),
            })
            .into()
        }
    }
}

fn beside(low: u16, high: u16, random: &mut Random) -> u16 {
    match random.below(4) {
        0 => low,
        1 => high,
        2 => low.wrapping_sub(1),
        _ => high.wrapping_add(1),
    }
}
