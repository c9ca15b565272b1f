//! First match, as a plain reading of the rules gives it: one rule after the other, one field after the other.
//! Shares nothing with the compiler that it judges; slow on purpose.

use std::net::IpAddr;

use ebpfsentinel::classify::matching::{Match, Protocol};
use ebpfsentinel::engines::firewall::rule::Rule;
use ipnet::IpNet;

use super::packets::PacketFields;

/// Place in `rules` of the rule that decides about `packet`: of those that match, the one with the lowest priority
/// number, and among equal numbers the one that stands first.
pub fn first_match(rules: &[Rule], packet: &PacketFields) -> Option<usize> {
    let mut first: Option<usize> = None;
    for (place, rule) in rules.iter().enumerate() {
        if first.is_some_and(|earlier| rules[earlier].priority <= rule.priority) {
            continue;
        }
        if rule.enabled && holds(&rule.matches, packet) {
            first = Some(place);
        }
    }
    first
}

/// Whether every condition of `matches` holds for `packet`.
pub fn holds(matches: &Match, packet: &PacketFields) -> bool {
    protocol_matches(matches, packet)
        && address_matches(matches.src_ip, packet.src)
        && address_matches(matches.dst_ip, packet.dst)
        && ports_match(matches, packet)
        && vlan_matches(matches, packet)
        && tcp_flags_match(matches, packet)
        && icmp_matches(matches, packet)
        && matches.fragment.is_none_or(|later| later == packet.later_fragment)
        && state_matches(matches, packet)
        && interface_matches(matches, packet)
}

fn protocol_matches(matches: &Match, packet: &PacketFields) -> bool {
    match matches.protocol {
        Protocol::Any => true,
        Protocol::Number(number) => number == packet.protocol,
    }
}

fn address_matches(network: Option<IpNet>, address: IpAddr) -> bool {
    match (network, address) {
        (None, _) => true,
        (Some(IpNet::V4(network)), IpAddr::V4(address)) => network.contains(&address),
        (Some(IpNet::V6(network)), IpAddr::V6(address)) => network.contains(&address),
        (Some(_), _) => false,
    }
}

/// Only TCP, UDP, SCTP and UDP-Lite have ports.
fn ports_match(matches: &Match, packet: &PacketFields) -> bool {
    if matches.src_port.is_none() && matches.dst_port.is_none() {
        return true;
    }
    if packet.later_fragment || !matches!(packet.protocol, 6 | 17 | 132 | 136) {
        return false;
    }
    let source = matches.src_port.is_none_or(|range| packet.src_port >= range.low && packet.src_port <= range.high);
    let destination =
        matches.dst_port.is_none_or(|range| packet.dst_port >= range.low && packet.dst_port <= range.high);
    source && destination
}

/// VLAN 0 asks for an untagged packet.
fn vlan_matches(matches: &Match, packet: &PacketFields) -> bool {
    match matches.vlan_id {
        None => true,
        Some(id) => packet.vlan_id == id,
    }
}

fn tcp_flags_match(matches: &Match, packet: &PacketFields) -> bool {
    match matches.tcp_flags {
        None => true,
        Some(flags) => packet.protocol == 6 && !packet.later_fragment && packet.tcp_flags & flags.mask == flags.set,
    }
}

/// ICMP is protocol 1 in IPv4 and 58 in IPv6; the other's number in a packet of this family is just a number.
fn icmp_matches(matches: &Match, packet: &PacketFields) -> bool {
    if matches.icmp_type.is_none() && matches.icmp_code.is_none() {
        return true;
    }
    let icmp = if packet.src.is_ipv4() { 1 } else { 58 };
    packet.protocol == icmp
        && !packet.later_fragment
        && matches.icmp_type.is_none_or(|wanted| wanted == packet.icmp_type)
        && matches.icmp_code.is_none_or(|wanted| wanted == packet.icmp_code)
}

/// While the state of a packet is unknown, it may turn out to be any.
fn state_matches(matches: &Match, packet: &PacketFields) -> bool {
    match packet.state {
        None => true,
        Some(state) => matches.states.is_any() || matches.states.0 & (1 << state as u8) != 0,
    }
}

fn interface_matches(matches: &Match, packet: &PacketFields) -> bool {
    matches.interfaces.is_empty() || matches.interfaces.contains(&packet.interface_name())
}
