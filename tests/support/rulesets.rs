//! Rule sets over all fields: random ones that overlap and nest, and hostile ones that strain a single table.

use std::net::{Ipv4Addr, Ipv6Addr};

use ebpfsentinel::classify::matching::{Match, PortRange, Protocol, State, States, TcpFlags};
use ebpfsentinel::engines::firewall::rule::{Action, Rule};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::packets::{icmp, interface_name};
use super::random::Random;

/// A rule that matches every packet, with the given place in the order.
pub fn open_rule(place: usize) -> Rule {
    Rule {
        id: format!("rule-{place}"),
        namespace: None,
        priority: place as u32 + 1,
        enabled: true,
        action: if place.is_multiple_of(2) { Action::Deny } else { Action::Allow },
        log: false,
        matches: Match::default(),
        mirror_to: None,
        mitre: Vec::new(),
        description: String::new(),
    }
}

/// `n` rules of one family over all fields. Values come from small pools, so that rules overlap and nest; equal
/// priorities and disabled rules occur.
pub fn random(n: usize, ipv4: bool, seed: u64) -> Vec<Rule> {
    let mut random = Random::new(seed);
    let anchors: Vec<u128> = (0..(n / 8).max(2)).map(|_| anchor(ipv4, &mut random)).collect();
    let ports: Vec<u16> = (0..(n / 16).max(4)).map(|_| random.bits() as u16).collect();
    // Some sets look at few fields, so that all ways to combine the rows are met.
    let likely: Vec<usize> = (0..8).map(|_| random.pick(&[0, 5, 20, 50, 80])).collect();
    (0..n)
        .map(|place| {
            let r = &mut random;
            let mut rule = open_rule(place);
            rule.priority = r.between(1, (n as u64).div_ceil(2) + 1) as u32;
            rule.enabled = !r.chance(3);
            rule.action = r.pick(&[Action::Allow, Action::Deny, Action::Log]);
            rule.log = rule.action == Action::Log || r.chance(10);
            let matches = &mut rule.matches;
            matches.src_ip = r.chance(likely[0]).then(|| network(&anchors, ipv4, r));
            matches.dst_ip = r.chance(likely[1]).then(|| network(&anchors, ipv4, r));
            matches.vlan_id = r.chance(likely[2] / 2).then(|| r.pick(&[0, 1, 7, 100, 4094]));
            if r.chance(likely[3] / 3) {
                matches.interfaces = (0..r.between(1, 3)).map(|_| interface_name(r.below(5) as u8)).collect();
            }
            if r.chance(likely[4] / 3) {
                matches.states = States(r.between(1, 15) as u8);
            }
            match r.below(10) {
                0..=1 => matches.protocol = Protocol::Number(r.pick(&[6, 17, 1, 58, 132, 136, 47, 0, 255])),
                2 if r.chance(likely[5]) => {
                    matches.protocol = r.pick(&[Protocol::Any, Protocol::Number(icmp(ipv4))]);
                    matches.icmp_type = Some(r.pick(&[0, 3, 8, 128, 255]));
                    matches.icmp_code = r.chance(50).then(|| r.pick(&[0, 1, 4, 255]));
                }
                3 if r.chance(likely[6]) => {
                    matches.protocol = r.pick(&[Protocol::Any, Protocol::Number(6)]);
                    let mask = (r.bits() as u8).max(1);
                    matches.tcp_flags = Some(TcpFlags { set: r.bits() as u8 & mask, mask });
                    matches.dst_port = r.chance(50).then(|| range(&ports, r));
                }
                4..=8 if r.chance(likely[7].max(20)) => {
                    matches.protocol = r.pick(&[Protocol::Any, Protocol::Number(6), Protocol::Number(17)]);
                    matches.src_port = r.chance(40).then(|| range(&ports, r));
                    matches.dst_port = r.chance(70).then(|| range(&ports, r));
                }
                _ => {}
            }
            rule
        })
        .collect()
}

/// Random port ranges on both sides: their cross product fits no table.
pub fn port_ranges(n: usize, ipv4: bool, seed: u64) -> Vec<Rule> {
    let mut random = Random::new(seed);
    let mut any_range = || {
        let (a, b) = (random.bits() as u16, random.bits() as u16);
        Some(PortRange { low: a.min(b), high: a.max(b) })
    };
    (0..n)
        .map(|place| {
            let mut rule = open_rule(place);
            rule.matches = Match {
                protocol: Protocol::Number(if place % 3 == 0 { 17 } else { 6 }),
                src_port: any_range(),
                dst_port: any_range(),
                // Bound to a family, as rules without addresses are of both.
                src_ip: Some(if ipv4 { net_v4(0, 0) } else { net_v6(0, 0) }),
                ..Match::default()
            };
            rule
        })
        .collect()
}

/// Prefixes that nest as deeply as they can: every length, in chains along random addresses.
pub fn nested(n: usize, ipv4: bool, seed: u64) -> Vec<Rule> {
    let mut random = Random::new(seed);
    let bits = if ipv4 { 32 } else { 128 };
    let mut path = anchor(ipv4, &mut random);
    let mut rules: Vec<Rule> = (0..n)
        .map(|place| {
            let length = place % (bits + 1);
            if length == 0 {
                path = anchor(ipv4, &mut random);
            }
            let mut rule = open_rule(place);
            let net = net(path, length as u8, ipv4);
            if random.chance(50) {
                rule.matches.src_ip = Some(net)
            } else {
                rule.matches.dst_ip = Some(net)
            }
            rule
        })
        .collect();
    longest_first(&mut rules);
    rules
}

/// A caterpillar: along one address a branch leaves at every bit, so that a trie has little to compress and each leaf
/// lies within many prefixes.
pub fn caterpillar(n: usize, ipv4: bool, seed: u64) -> Vec<Rule> {
    let mut random = Random::new(seed);
    let bits = if ipv4 { 32 } else { 128 };
    let spine = anchor(ipv4, &mut random);
    let mut rules: Vec<Rule> = (0..n)
        .map(|place| {
            let bit = random.below(bits);
            // Along the spine up to this bit, then off it, and on for a few bits or to the end.
            let off = spine ^ 1 << (127 - bit);
            let (key, length) = match random.below(3) {
                0 => (spine, bit + 1),
                1 => (off, bit + 1),
                _ => (
                    off ^ u128::from(random.bits()) >> bit.min(63),
                    random.between(bit as u64 + 1, bits as u64) as usize,
                ),
            };
            let mut rule = open_rule(place);
            let net = net(key, length as u8, ipv4);
            if place % 2 == 0 {
                rule.matches.src_ip = Some(net)
            } else {
                rule.matches.dst_ip = Some(net)
            }
            rule
        })
        .collect();
    longest_first(&mut rules);
    rules
}

/// As many prefixes as rules, with neighbours at the end of the address: blocks and leaves in the greatest number.
pub fn scattered(n: usize, ipv4: bool, seed: u64) -> Vec<Rule> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|place| {
            let mut rule = open_rule(place);
            let bits = if ipv4 { 32 } else { 128 };
            let mut host = || Some(net(u128::from(random.bits()) << 64 | u128::from(random.bits()), bits, ipv4));
            rule.matches.src_ip = host();
            rule.matches.dst_ip = host();
            rule
        })
        .collect()
}

/// Every VLAN id, then flags, ICMP types and codes, protocols, interfaces and states: more combinations than one table of
/// environments holds.
pub fn environments(n: usize, ipv4: bool, seed: u64) -> Vec<Rule> {
    let mut random = Random::new(seed);
    let mut rules: Vec<Rule> = (0..n)
        .map(|place| {
            let mut rule = open_rule(place);
            let matches = &mut rule.matches;
            match place % 6 {
                0 | 1 => matches.vlan_id = Some((place % 4095) as u16),
                2 => {
                    let mask = (random.bits() as u8).max(1);
                    matches.tcp_flags = Some(TcpFlags { set: random.bits() as u8 & mask, mask });
                }
                3 => {
                    matches.icmp_type = Some(random.bits() as u8);
                    matches.icmp_code = random.chance(80).then(|| random.bits() as u8);
                }
                4 => matches.protocol = Protocol::Number(random.bits() as u8),
                _ => matches.interfaces = vec![interface_name(random.below(64) as u8)],
            }
            if random.chance(30) {
                matches.states = States::ANY.with(random.pick(&State::ALL));
            }
            // Without ports, yet of one family.
            matches.dst_ip = Some(if ipv4 { net_v4(0, 0) } else { net_v6(0, 0) });
            rule
        })
        .collect();
    random.shuffle(&mut rules);
    rules.iter_mut().enumerate().for_each(|(place, rule)| rule.priority = place as u32 + 1);
    rules
}

/// Makes `n` rules of one family (IPv4 or not) from a seed.
pub type Generator = fn(usize, bool, u64) -> Vec<Rule>;

/// The hostile sets by name.
pub const HOSTILE: [(&str, Generator); 5] = [
    ("port_ranges", port_ranges),
    ("nested", nested),
    ("caterpillar", caterpillar),
    ("scattered", scattered),
    ("environments", environments),
];

/// Else the wide prefixes would hide the long ones.
fn longest_first(rules: &mut [Rule]) {
    rules
        .sort_by_key(|rule| std::cmp::Reverse(rule.matches.src_ip.or(rule.matches.dst_ip).map(|net| net.prefix_len())));
    rules.iter_mut().enumerate().for_each(|(place, rule)| rule.priority = place as u32 + 1);
}

/// An address, in the high bits.
fn anchor(ipv4: bool, random: &mut Random) -> u128 {
    let bits = u128::from(random.bits()) << 64 | u128::from(random.bits());
    if ipv4 { bits & u128::from(u32::MAX) << 96 } else { 0x2a01 << 112 | bits >> 16 }
}

fn network(anchors: &[u128], ipv4: bool, random: &mut Random) -> IpNet {
    let bits = if ipv4 { 32 } else { 128 };
    let length = match random.below(4) {
        0 => random.between(0, bits),
        1 => bits,
        2 => bits / 2,
        _ => (random.between(0, bits / 8)) * 8,
    };
    let mut key = random.pick(anchors);
    if random.chance(30) {
        key ^= 1 << (127 - random.below(bits as usize));
    }
    net(key, length as u8, ipv4)
}

fn net(key: u128, length: u8, ipv4: bool) -> IpNet {
    if ipv4 { net_v4((key >> 96) as u32, length) } else { net_v6(key, length) }
}

fn net_v4(bits: u32, length: u8) -> IpNet {
    Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), length).trunc().into()
}

fn net_v6(bits: u128, length: u8) -> IpNet {
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length).trunc().into()
}

fn range(ports: &[u16], random: &mut Random) -> PortRange {
    let (a, b) = (random.pick(ports), random.pick(ports));
    match random.below(6) {
        0..=2 => PortRange { low: a, high: a },
        3 => PortRange { low: 0, high: a },
        4 => PortRange { low: a, high: u16::MAX },
        _ => PortRange { low: a.min(b), high: a.max(b) },
    }
}
