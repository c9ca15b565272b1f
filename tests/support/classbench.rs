//! Rule sets in the manner of ClassBench (Taylor and Turner, 2005), and traffic for them.
//!
//! Real filters are far from random: addresses come from few sites and nest in them, the same services are named again
//! and again, and a rule that lies within another one stands before it. Three kinds of filter differ in what they leave
//! open: `acl` (access lists: destination services), `fw` (firewalls: many wildcards), `ipc` (IP chains: between the two).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpfsentinel::classify::matching::{Match, PortRange, Protocol};
use ebpfsentinel::engines::firewall::rule::{Action, Rule};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::packets::PacketFields;
use super::random::{Random, Zipf, mix};
use super::reference;

/// Kind of filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Acl,
    Fw,
    Ipc,
}

impl Style {
    /// All kinds.
    pub const ALL: [Style; 3] = [Style::Acl, Style::Fw, Style::Ipc];

    /// Name in figures.
    pub const fn name(self) -> &'static str {
        match self {
            Style::Acl => "acl",
            Style::Fw => "fw",
            Style::Ipc => "ipc",
        }
    }
}

/// Kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One flow.
    Hot,
    /// 4096 flows, the n-th of them with a share of 1/n.
    Zipf,
    /// Points drawn evenly from all rules, one in ten from nowhere.
    Uniform,
    /// Packets that match no rule.
    NoMatch,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::Hot, Kind::Zipf, Kind::Uniform, Kind::NoMatch];

    /// Name in figures.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Hot => "hot",
            Kind::Zipf => "zipf",
            Kind::Uniform => "uniform",
            Kind::NoMatch => "nomatch",
        }
    }
}

/// `n` different IPv4 rules of a style in priority order, priorities from 1; the same for the same arguments.
pub fn classbench(style: Style, n: usize, seed: u64) -> Vec<Rule> {
    let mut random = Random::new(mix(seed ^ (style as u64 + 1) << 32));
    let shape = Shape::of(style);
    let sources = Sites::new(&shape.source, n, &mut random);
    let destinations = Sites::new(&shape.destination, n, &mut random);
    let services = Services::new(&shape, n, &mut random);
    let mut seen = HashSet::with_capacity(n);
    let mut drawn = Vec::with_capacity(n);
    while drawn.len() < n {
        let place = drawn.len();
        let filter = Filter {
            source: sources.draw(place, &mut random),
            destination: destinations.draw(place, &mut random),
            service: services.draw(place, &mut random),
        };
        if seen.insert(filter) {
            drawn.push(filter);
        }
    }
    specific_first(&drawn, shape.grouped, &mut random)
        .into_iter()
        .enumerate()
        .map(|(place, filter)| filter.rule(place, if random.chance(50) { Action::Allow } else { Action::Deny }))
        .collect()
}

/// The same policy in IPv6: each address and prefix is mapped so that nesting stays as it was, so a packet mapped by
/// [`packet_to_ipv6`] meets the rule in the place where its IPv4 packet does.
pub fn to_ipv6(rules: &[Rule]) -> Vec<Rule> {
    let map = |net: Option<IpNet>| net.map(|net| IpNet::V6(net_to_ipv6(net)));
    rules
        .iter()
        .map(|rule| {
            let mut rule = rule.clone();
            let matches = &mut rule.matches;
            if matches.protocol == Protocol::Number(1) {
                matches.protocol = Protocol::Number(58);
            }
            (matches.src_ip, matches.dst_ip) = (map(matches.src_ip), map(matches.dst_ip));
            rule
        })
        .collect()
}

/// The packet of [`to_ipv6`]'s policy that stands for an IPv4 packet.
pub fn packet_to_ipv6(packet: &PacketFields) -> PacketFields {
    let map = |address: IpAddr| match address {
        IpAddr::V4(address) => IpAddr::V6(address_to_ipv6(address)),
        IpAddr::V6(_) => address,
    };
    let protocol = if packet.protocol == 1 { 58 } else { packet.protocol };
    PacketFields { src: map(packet.src), dst: map(packet.dst), protocol, ..*packet }
}

/// `n` packets for `rules` (of one family); the same for the same arguments. Empty when [`Kind::NoMatch`] is asked for
/// and nothing that was tried passed all rules.
pub fn trace(rules: &[Rule], kind: Kind, n: usize, seed: u64) -> Vec<PacketFields> {
    let mut random = Random::new(mix(seed ^ 0x7ace));
    let ipv4 = rules.iter().find_map(|rule| rule.matches.is_ipv4()).unwrap_or(true);
    match kind {
        Kind::Hot => vec![flow(rules, ipv4, 0, &mut random); n],
        Kind::Zipf => {
            let flows: Vec<_> = (0..4096).map(|_| flow(rules, ipv4, 10, &mut random)).collect();
            let zipf = Zipf::new(flows.len());
            (0..n).map(|_| flows[zipf.rank(&mut random)]).collect()
        }
        Kind::Uniform => (0..n).map(|_| flow(rules, ipv4, 10, &mut random)).collect(),
        Kind::NoMatch => {
            let missing: Vec<_> = (0..4 * n)
                .map(|_| nowhere(ipv4, &mut random))
                .filter(|packet| reference::first_match(rules, packet).is_none())
                .take(n)
                .collect();
            missing.iter().copied().cycle().take(if missing.is_empty() { 0 } else { n }).collect()
        }
    }
}

/// A packet of a random rule, or in `miss_percent` of 100 cases of none in particular.
fn flow(rules: &[Rule], ipv4: bool, miss_percent: usize, random: &mut Random) -> PacketFields {
    if rules.is_empty() || random.chance(miss_percent) {
        return nowhere(ipv4, random);
    }
    let matches = &rules[random.below(rules.len())].matches;
    let mut packet = PacketFields::inside(matches, ipv4, random);
    if matches.protocol == Protocol::Any {
        packet.protocol = random.pick(&[6, 17]);
    }
    if matches.vlan_id.is_none() {
        packet.vlan_id = 0;
    }
    if matches.interfaces.is_empty() {
        packet.interface = 0;
    }
    packet
}

fn nowhere(ipv4: bool, random: &mut Random) -> PacketFields {
    let mut packet = PacketFields::random(ipv4, random);
    packet.protocol = random.pick(&[6, 17]);
    packet.vlan_id = 0;
    packet.interface = 0;
    packet
}

/// How the rules of a style are spread. Weights in percent.
struct Shape {
    source: Side,
    destination: Side,
    protocols: &'static [(u32, Protocol)],
    source_ports: &'static [(u32, Ports)],
    destination_ports: &'static [(u32, Ports)],
    /// Different ports and arbitrary ranges that 4096 rules name.
    ports: usize,
    ranges: usize,
    /// Rules in 100 that stand beside others of their source, as an administrator groups them.
    grouped: usize,
    /// Different services (protocol and ports together) that 4096 rules name.
    services: usize,
}

/// The addresses of one side.
struct Side {
    /// Different prefixes that 4096 rules name.
    prefixes: usize,
    /// Rules in 1000 that name none.
    any: usize,
    lengths: &'static [(u32, Length)],
}

#[derive(Clone, Copy)]
enum Length {
    /// /8 to /16.
    Wide,
    /// /17 to /23.
    Middle,
    /// /24.
    Site,
    /// /25 to /31.
    Part,
    Host,
}

#[derive(Clone, Copy)]
enum Ports {
    Any,
    Low,
    High,
    Range,
    One,
}

const ANY: Protocol = Protocol::Any;
const TCP: Protocol = Protocol::Number(6);
const UDP: Protocol = Protocol::Number(17);
const ICMP: Protocol = Protocol::Number(1);

impl Shape {
    /// What the numbers give was measured on ClassBench's own sets (seeds acl1, fw1, ipc1); a test of the compiler checks
    /// that these are as easy and as hard.
    fn of(style: Style) -> Shape {
        match style {
            Style::Acl => Shape {
                source: Side {
                    prefixes: 660,
                    any: 0,
                    lengths: &[(3, Length::Middle), (20, Length::Site), (27, Length::Part), (50, Length::Host)],
                },
                destination: Side {
                    prefixes: 346,
                    any: 0,
                    lengths: &[(3, Length::Middle), (15, Length::Site), (27, Length::Part), (55, Length::Host)],
                },
                protocols: &[(82, TCP), (14, UDP), (4, ICMP)],
                source_ports: &[(1, Ports::Any)],
                destination_ports: &[(14, Ports::Any), (2, Ports::High), (10, Ports::Range), (74, Ports::One)],
                ports: 110,
                ranges: 12,
                services: 310,
                grouped: 75,
            },
            Style::Fw => Shape {
                source: Side {
                    prefixes: 1406,
                    any: 25,
                    lengths: &[
                        (1, Length::Wide),
                        (4, Length::Middle),
                        (15, Length::Site),
                        (20, Length::Part),
                        (60, Length::Host),
                    ],
                },
                destination: Side {
                    prefixes: 2460,
                    any: 5,
                    lengths: &[
                        (1, Length::Wide),
                        (4, Length::Middle),
                        (15, Length::Site),
                        (20, Length::Part),
                        (60, Length::Host),
                    ],
                },
                protocols: &[(66, TCP), (28, UDP), (4, ICMP), (1, Protocol::Number(47)), (1, ANY)],
                source_ports: &[(72, Ports::Any), (20, Ports::High), (4, Ports::Low), (4, Ports::One)],
                destination_ports: &[
                    (20, Ports::Any),
                    (8, Ports::High),
                    (2, Ports::Low),
                    (5, Ports::Range),
                    (65, Ports::One),
                ],
                ports: 38,
                ranges: 4,
                services: 1100,
                grouped: 0,
            },
            Style::Ipc => Shape {
                source: Side {
                    prefixes: 548,
                    any: 10,
                    lengths: &[
                        (1, Length::Wide),
                        (5, Length::Middle),
                        (20, Length::Site),
                        (24, Length::Part),
                        (50, Length::Host),
                    ],
                },
                destination: Side {
                    prefixes: 1424,
                    any: 10,
                    lengths: &[
                        (1, Length::Wide),
                        (5, Length::Middle),
                        (20, Length::Site),
                        (24, Length::Part),
                        (50, Length::Host),
                    ],
                },
                protocols: &[(58, TCP), (30, UDP), (8, ICMP), (4, ANY)],
                source_ports: &[
                    (75, Ports::Any),
                    (8, Ports::High),
                    (2, Ports::Low),
                    (3, Ports::Range),
                    (7, Ports::One),
                ],
                destination_ports: &[
                    (45, Ports::Any),
                    (7, Ports::High),
                    (2, Ports::Low),
                    (6, Ports::Range),
                    (40, Ports::One),
                ],
                ports: 46,
                ranges: 6,
                services: 1750,
                grouped: 10,
            },
        }
    }
}

/// How many different things `n` rules name, when 4096 of them name `of_4096`: a small policy names more for each rule.
fn scaled(of_4096: usize, n: usize) -> usize {
    ((of_4096 as f64 * (n as f64 / 4096.0).powf(0.8)).ceil() as usize).max(2)
}

/// The prefixes that the rules of one side name: of hosts in few /24s in few /16s, so that prefixes of different lengths
/// nest.
struct Sites {
    prefixes: Vec<Prefix>,
    any: usize,
}

impl Sites {
    fn new(side: &Side, n: usize, random: &mut Random) -> Sites {
        let wanted = scaled(side.prefixes, n);
        let wide: Vec<u32> = (0..wanted.div_ceil(24).max(2)).map(|_| (random.bits() as u32) & 0xffff_0000).collect();
        let site: Vec<u32> = (0..wanted.div_ceil(3).max(2))
            .map(|_| wide[skewed(wide.len(), random)] | (random.below(256) as u32) << 8)
            .collect();
        let mut seen = HashSet::with_capacity(wanted);
        let mut prefixes = Vec::with_capacity(wanted);
        while prefixes.len() < wanted {
            let length = match random.weighted(side.lengths) {
                Length::Wide => random.pick(&[8, 12, 14, 15, 16, 16, 16]),
                Length::Middle => random.between(17, 23) as u8,
                Length::Site => 24,
                Length::Part => random.pick(&[25, 26, 26, 27, 27, 28, 28, 29, 30, 30, 31]),
                Length::Host => 32,
            };
            let host = site[skewed(site.len(), random)] | random.below(256) as u32;
            let prefix = Prefix { address: host & mask(length), length };
            if seen.insert(prefix) {
                prefixes.push(prefix);
            }
        }
        Sites { prefixes, any: side.any }
    }

    /// A prefix for the rule that is drawn as number `place`: each one once, then by chance.
    fn draw(&self, place: usize, random: &mut Random) -> Prefix {
        if random.below(1000) < self.any {
            return Prefix { address: 0, length: 0 };
        }
        each_once(&self.prefixes, place, random)
    }
}

/// The first ones in turn, so that all are drawn, then any of them.
fn each_once<T: Copy>(pool: &[T], place: usize, random: &mut Random) -> T {
    if place < pool.len() { pool[place] } else { pool[skewed(pool.len(), random)] }
}

/// Low indexes more often than high ones.
fn skewed(n: usize, random: &mut Random) -> usize {
    random.below(n).min(random.below(n))
}

/// The services that the rules name, the popular ones first.
struct Services {
    services: Vec<Service>,
    popularity: Zipf,
}

impl Services {
    fn new(shape: &Shape, n: usize, random: &mut Random) -> Services {
        const WELL_KNOWN: [u16; 24] = [
            80, 443, 22, 25, 53, 110, 143, 21, 23, 123, 161, 389, 445, 514, 993, 995, 1433, 1521, 3306, 3389, 5060,
            8080, 8443, 135,
        ];
        let (ports, ranges) = (scaled(shape.ports, n), scaled(shape.ranges, n));
        let mut named: Vec<u16> = WELL_KNOWN.into_iter().take(ports).collect();
        while named.len() < ports {
            named.push(if random.chance(40) { random.between(1, 1023) } else { random.between(1024, 20000) } as u16);
        }
        let named: Vec<(u16, u16)> = named.into_iter().map(|port| (port, port)).collect();
        let ranges: Vec<(u16, u16)> = (0..ranges)
            .map(|_| {
                let low = random.between(1, 40000) as u16;
                (low, low + random.pick(&[2, 4, 10, 50, 100, 1000, 5000]))
            })
            .collect();
        let popular = Zipf::new(named.len());
        let wanted = scaled(shape.services, n);
        let services = (0..wanted)
            .map(|place| {
                let protocol = random.weighted(shape.protocols);
                if protocol != TCP && protocol != UDP {
                    return Service { protocol, source: None, destination: None };
                }
                let mut draw = |weights| match random.weighted(weights) {
                    Ports::Any => None,
                    Ports::Low => Some((0, 1023)),
                    Ports::High => Some((1024, 65535)),
                    Ports::Range => Some(random.pick(&ranges)),
                    Ports::One => Some(if place < named.len() { named[place] } else { named[popular.rank(random)] }),
                };
                Service { protocol, source: draw(shape.source_ports), destination: draw(shape.destination_ports) }
            })
            .collect::<Vec<_>>();
        Services { popularity: Zipf::new(services.len()), services }
    }

    fn draw(&self, place: usize, random: &mut Random) -> Service {
        if place < self.services.len() { self.services[place] } else { self.services[self.popularity.rank(random)] }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Prefix {
    address: u32,
    length: u8,
}

impl Prefix {
    fn covers(self, other: Prefix) -> bool {
        self.length <= other.length && other.address & mask(self.length) == self.address
    }

    fn network(self) -> Option<IpNet> {
        (self.length > 0).then(|| Ipv4Net::new_assert(Ipv4Addr::from_bits(self.address), self.length).into())
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Service {
    protocol: Protocol,
    source: Option<(u16, u16)>,
    destination: Option<(u16, u16)>,
}

impl Service {
    fn covers(self, other: Service) -> bool {
        let ports = |wide: Option<(u16, u16)>, narrow: Option<(u16, u16)>| match (wide, narrow) {
            (None, _) => true,
            (Some(wide), Some(narrow)) => wide.0 <= narrow.0 && narrow.1 <= wide.1,
            (Some(_), None) => false,
        };
        (self.protocol == ANY || self.protocol == other.protocol)
            && ports(self.source, other.source)
            && ports(self.destination, other.destination)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Filter {
    source: Prefix,
    destination: Prefix,
    service: Service,
}

impl Filter {
    fn covers(self, other: Filter) -> bool {
        self.source.covers(other.source)
            && self.destination.covers(other.destination)
            && self.service.covers(other.service)
    }

    fn rule(self, place: usize, action: Action) -> Rule {
        let range = |ports: Option<(u16, u16)>| ports.map(|(low, high)| PortRange { low, high });
        Rule {
            id: format!("rule-{place}"),
            namespace: None,
            priority: place as u32 + 1,
            enabled: true,
            action,
            log: false,
            matches: Match {
                protocol: self.service.protocol,
                src_ip: self.source.network(),
                dst_ip: self.destination.network(),
                src_port: range(self.service.source),
                dst_port: range(self.service.destination),
                ..Match::default()
            },
            mirror_to: None,
            mitre: Vec::new(),
            description: String::new(),
        }
    }
}

/// A random order in which whatever lies within another one stands before it.
fn specific_first(filters: &[Filter], grouped: usize, random: &mut Random) -> Vec<Filter> {
    let mut covering: Vec<Vec<u32>> = vec![Vec::new(); filters.len()];
    let mut waits_for = vec![0u32; filters.len()];
    for (inner, narrow) in filters.iter().enumerate() {
        for (outer, wide) in filters.iter().enumerate() {
            if inner != outer && wide.covers(*narrow) {
                covering[inner].push(outer as u32);
                waits_for[outer] += 1;
            }
        }
    }
    let keys: Vec<u64> = filters
        .iter()
        .map(|narrow| match random.chance(grouped) {
            true => mix(u64::from(narrow.source.address)),
            false => random.bits(),
        })
        .collect();
    let mut ready: BinaryHeap<_> =
        (0..filters.len()).filter(|&i| waits_for[i] == 0).map(|i| Reverse((keys[i], i))).collect();
    let mut order = Vec::with_capacity(filters.len());
    while let Some(Reverse((_, next))) = ready.pop() {
        order.push(filters[next]);
        for &outer in &covering[next] {
            waits_for[outer as usize] -= 1;
            if waits_for[outer as usize] == 0 {
                ready.push(Reverse((keys[outer as usize], outer as usize)));
            }
        }
    }
    order
}

/// An IPv4 /16 becomes a provider's /32, a /24 a customer's /48, a /31 a group of /64s, an address one host in a /64
/// with an arbitrary interface id. Bits 17 to 32 become two bits each; the second one depends on the prefix so far,
/// since sites number sparsely.
fn address_to_ipv6(address: Ipv4Addr) -> Ipv6Addr {
    let address = address.to_bits();
    let mut network = 0x2a01 << 48 | u64::from(address >> 16) << 32;
    for place in 16..32u32 {
        let prefix = address & mask(place as u8 + 1);
        let bit = u64::from(address >> (31 - place) & 1);
        let filler = mix(u64::from(prefix) << 6 | u64::from(place)) & 1;
        network |= (bit << 1 | filler) << (30 - 2 * (place - 16));
    }
    let interface = mix(u64::from(address));
    Ipv6Addr::from_bits(u128::from(network) << 64 | u128::from(interface))
}

fn net_to_ipv6(net: IpNet) -> Ipv6Net {
    let IpNet::V4(net) = net else { panic!("{net} is not IPv4") };
    let length = match net.prefix_len() {
        0 => 0,
        length @ 1..=16 => 16 + length,
        32 => 128,
        length => 32 + 2 * (length - 16),
    };
    Ipv6Net::new_assert(address_to_ipv6(net.network()), length).trunc()
}
