//! The same rules for nftables and iptables, as text that `nft -f` and `iptables-legacy-restore` read.

use std::fmt::Write;

use anyhow::{Result, bail};
use ebpfsentinel::classify::matching::{Match, PortRange, Protocol, proto};
use ebpfsentinel::engines::firewall::rule::Rule;
use ipnet::{IpNet, Ipv4Net};

/// Where an nftables chain listens. Which one is faster depends on the rules, so both run and the faster one counts.
#[derive(Clone, Copy)]
pub enum Hook {
    Netdev,
    Prerouting,
}

impl Hook {
    const fn table(self) -> &'static str {
        match self {
            Hook::Netdev => "netdev",
            Hook::Prerouting => "inet",
        }
    }

    fn chain(self) -> &'static str {
        match self {
            Hook::Netdev => "type filter hook ingress device \"b0\" priority 0; policy accept;",
            Hook::Prerouting => "type filter hook prerouting priority -300; policy accept;",
        }
    }
}

/// What neither of the two can say in the same words as we do is not compared.
fn check(rule: &Rule) -> Result<&Match> {
    let matches = &rule.matches;
    let told = matches.vlan_id.is_none()
        && matches.tcp_flags.is_none()
        && matches.icmp_type.is_none()
        && matches.states.is_any()
        && matches.interfaces.is_empty()
        && matches.is_ipv4() != Some(false);
    if !told {
        bail!("rule {} has a field that the comparison with nftables and iptables leaves out", rule.id);
    }
    Ok(matches)
}

fn network(net: Option<IpNet>) -> Option<Ipv4Net> {
    match net {
        Some(IpNet::V4(net)) if net.prefix_len() > 0 => Some(net.trunc()),
        _ => None,
    }
}

fn range(port: Option<PortRange>, between: char) -> Option<String> {
    let port = port?;
    if port.low == port.high { Some(port.low.to_string()) } else { Some(format!("{}{between}{}", port.low, port.high)) }
}

/// One rule after the other in one chain; every packet ends in a drop.
pub fn nft_linear(rules: &[Rule], hook: Hook) -> Result<String> {
    let mut text = format!("table {} t {{ chain c {{ {}\n", hook.table(), hook.chain());
    for rule in rules {
        let matches = check(rule)?;
        if let Some(net) = network(matches.src_ip) {
            write!(text, "ip saddr {net} ")?;
        }
        if let Some(net) = network(matches.dst_ip) {
            write!(text, "ip daddr {net} ")?;
        }
        if let Protocol::Number(number) = matches.protocol {
            write!(text, "meta l4proto {number} ")?;
        }
        if let Some(ports) = range(matches.src_port, '-') {
            write!(text, "th sport {ports} ")?;
        }
        if let Some(ports) = range(matches.dst_port, '-') {
            write!(text, "th dport {ports} ")?;
        }
        text.push_str("drop\n");
    }
    text.push_str("counter drop\n}\n}\n");
    Ok(text)
}

/// A concatenated interval set has no order, so it holds only rules that do not overlap: the number of those, and the text.
pub fn nft_set(rules: &[Rule], hook: Hook) -> Result<(usize, String)> {
    let mut kept: Vec<Box_> = Vec::new();
    for rule in rules {
        let candidate = Box_::of(check(rule)?);
        if !kept.iter().any(|other| other.overlaps(&candidate)) {
            kept.push(candidate);
        }
    }
    let mut text = format!(
        "table {table} t {{\nset s {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service . inet_service; flags interval; }}\n\
         chain c {{ {chain}\nip saddr . ip daddr . meta l4proto . th sport . th dport @s drop\ncounter drop\n}}\n}}\n\
         add element {table} t s {{\n",
        table = hook.table(),
        chain = hook.chain(),
    );
    for box_ in &kept {
        let address = |[low, high]: [u32; 2]| {
            format!("{}-{}", std::net::Ipv4Addr::from_bits(low), std::net::Ipv4Addr::from_bits(high))
        };
        let [src, dst, protocol, src_port, dst_port] = box_.0;
        let protocol = if protocol[0] == protocol[1] { protocol[0].to_string() } else { "0-255".to_owned() };
        writeln!(
            text,
            "{} . {} . {protocol} . {}-{} . {}-{},",
            single(address(src), src),
            single(address(dst), dst),
            src_port[0],
            src_port[1],
            dst_port[0],
            dst_port[1]
        )?;
    }
    text.push_str("}\n");
    Ok((kept.len(), text))
}

fn single(range: String, [low, high]: [u32; 2]) -> String {
    if low == high { std::net::Ipv4Addr::from_bits(low).to_string() } else { range }
}

/// The values that a rule matches, as a range in each of the five fields.
struct Box_([[u32; 2]; 5]);

impl Box_ {
    fn of(matches: &Match) -> Box_ {
        let address = |net: Option<IpNet>| {
            network(net).map_or([0, u32::MAX], |net| [net.network().to_bits(), net.broadcast().to_bits()])
        };
        let port = |port: Option<PortRange>| port.map_or([0, 65535], |port| [port.low.into(), port.high.into()]);
        let protocol = match matches.protocol {
            Protocol::Any => [0, 255],
            Protocol::Number(number) => [number.into(), number.into()],
        };
        Box_([
            address(matches.src_ip),
            address(matches.dst_ip),
            protocol,
            port(matches.src_port),
            port(matches.dst_port),
        ])
    }

    fn overlaps(&self, other: &Box_) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a[0] <= b[1] && b[0] <= a[1])
    }
}

/// The raw table, before connection tracking: the cheapest place that iptables has. Port matches exist for TCP and UDP
/// only; a rule with ports for another protocol loses them, which only makes iptables faster.
pub fn iptables(rules: &[Rule]) -> Result<String> {
    let mut text = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n".to_owned();
    for rule in rules {
        let matches = check(rule)?;
        text.push_str("-A PREROUTING");
        if let Some(net) = network(matches.src_ip) {
            write!(text, " -s {net}")?;
        }
        if let Some(net) = network(matches.dst_ip) {
            write!(text, " -d {net}")?;
        }
        if let Protocol::Number(number) = matches.protocol {
            write!(text, " -p {number}")?;
            let module = match number {
                proto::TCP => Some("tcp"),
                proto::UDP => Some("udp"),
                _ => None,
            };
            if let Some(module) = module.filter(|_| matches.src_port.is_some() || matches.dst_port.is_some()) {
                write!(text, " -m {module}")?;
                if let Some(ports) = range(matches.src_port, ':') {
                    write!(text, " --sport {ports}")?;
                }
                if let Some(ports) = range(matches.dst_port, ':') {
                    write!(text, " --dport {ports}")?;
                }
            }
        }
        text.push_str(" -j DROP\n");
    }
    text.push_str("-A PREROUTING -j DROP\nCOMMIT\n");
    Ok(text)
}
