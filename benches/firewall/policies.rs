//! Rule sets and traces of the matrix: three in the manner of ClassBench, one hostile, and the worst packets we know.

use std::net::{IpAddr, Ipv4Addr};

use ebpfsentinel::classify::matching::{Match, PortRange};
use ebpfsentinel::engines::firewall::rule::{Action, Rule};
use ipnet::{IpNet, Ipv4Net};

use crate::support::classbench::{Kind, Style, classbench, packet_to_ipv6, to_ipv6, trace};
use crate::support::packets::PacketFields;
use crate::support::random::Random;

const UDP_LITE: u8 = 136;

/// Kind of rule set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Set {
    ClassBench(Style),
    /// Random prefixes and random port ranges in every rule: nothing can be shared or merged.
    Hostile,
}

impl Set {
    pub const ALL: [Set; 4] =
        [Set::ClassBench(Style::Acl), Set::ClassBench(Style::Fw), Set::ClassBench(Style::Ipc), Set::Hostile];

    pub const fn name(self) -> &'static str {
        match self {
            Set::ClassBench(style) => style.name(),
            Set::Hostile => "hostile",
        }
    }

    pub fn rules(self, n: usize) -> Vec<Rule> {
        match self {
            Set::ClassBench(style) => classbench(style, n, 1),
            Set::Hostile => hostile(n, &mut Random::new(1)),
        }
    }
}

/// The same policy and the same traffic in both families.
pub struct Workload {
    pub v4: Vec<Rule>,
    pub v6: Vec<Rule>,
}

impl Workload {
    pub fn new(v4: Vec<Rule>) -> Workload {
        Workload { v6: to_ipv6(&v4), v4 }
    }

    /// Packets of the IPv4 policy; [`both`] gives their IPv6 form. Empty when no packet of this kind was found.
    pub fn trace(&self, kind: Kind, n: usize) -> Vec<PacketFields> {
        trace(&self.v4, kind, n, 7).into_iter().map(plain).collect()
    }
}

/// The IPv6 packets that stand for IPv4 ones.
pub fn in_ipv6(packets: &[PacketFields]) -> Vec<PacketFields> {
    packets.iter().map(packet_to_ipv6).collect()
}

/// A random protocol number may be that of an IPv6 extension header, which the injectors do not write.
fn plain(mut packet: PacketFields) -> PacketFields {
    if matches!(packet.protocol, 0 | 43 | 44 | 51 | 58 | 60) {
        packet.protocol = 17;
    }
    packet.vlan_id = 0;
    packet.interface = 0;
    packet
}

fn rule(place: usize, src: IpNet, dst: IpNet, src_port: PortRange, dst_port: PortRange, action: Action) -> Rule {
    Rule {
        id: format!("r{place}"),
        namespace: None,
        priority: place as u32 + 1,
        enabled: true,
        action,
        log: false,
        matches: Match {
            src_ip: Some(src),
            dst_ip: Some(dst),
            src_port: Some(src_port),
            dst_port: Some(dst_port),
            ..Match::default()
        },
        mirror_to: None,
        mitre: Vec::new(),
        description: String::new(),
    }
}

fn random_range(random: &mut Random) -> PortRange {
    let (a, b) = (random.bits() as u16, random.bits() as u16);
    PortRange { low: a.min(b), high: a.max(b) }
}

fn hostile(n: usize, random: &mut Random) -> Vec<Rule> {
    let prefix = |random: &mut Random| {
        let length = random.between(8, 32) as u8;
        IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(random.bits() as u32), length).expect("at most 32").trunc())
    };
    (0..n)
        .map(|place| {
            let (src, dst) = (prefix(random), prefix(random));
            let (src_port, dst_port) = (random_range(random), random_range(random));
            rule(place, src, dst, src_port, dst_port, if random.chance(50) { Action::Allow } else { Action::Deny })
        })
        .collect()
}

/// Every word of every row has a bit for these packets, and no two rows share one: all words are read, of rows that
/// follow random ports and so are never warm, and no rule matches. UDP-Lite has no place in the flow cache, so each of
/// them is judged anew. Nothing that a packet can do costs more.
pub fn worst(n: usize) -> (Vec<Rule>, Vec<PacketFields>) {
    let mut random = Random::new(3);
    let net = |text: &str| text.parse::<IpNet>().expect("a network");
    let (here, there) = (net("10.0.0.0/8"), net("192.0.2.0/24"));
    let rules = (0..n)
        .map(|place| {
            let around = |random: &mut Random| PortRange {
                low: random.between(0, 20_000) as u16,
                high: random.between(40_000, 65_535) as u16,
            };
            let (src, dst) = if place % 2 == 0 { (here, there) } else { (there, here) };
            let (src_port, dst_port) = (around(&mut random), around(&mut random));
            rule(place, src, dst, src_port, dst_port, Action::Deny)
        })
        .collect();
    let address = |random: &mut Random| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | random.bits() as u32 >> 8));
    let packets = (0..crate::kernel::HEADERS)
        .map(|_| {
            let (src, dst) = (address(&mut random), address(&mut random));
            let port = |random: &mut Random| match random.below(2) {
                0 => random.between(10_000, 25_000) as u16,
                _ => random.between(35_000, 55_000) as u16,
            };
            let fields = PacketFields::tcp(src, dst, port(&mut random), port(&mut random));
            PacketFields { protocol: UDP_LITE, tcp_flags: 0, ..fields }
        })
        .collect();
    (rules, packets)
}
