//! First match, as a plain reading of the rules gives it: one rule after the other, one field after the other.
//! Shares nothing with the compiler that it judges; slow on purpose.

use std::net::IpAddr;

use ebpfsentinel::engines::firewall::rule::{Protocol, Rule};
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
        if matches(rule, packet) {
            first = Some(place);
        }
    }
    first
}

/// Whether every condition of `rule` holds for `packet`.
pub fn matches(rule: &Rule, packet: &PacketFields) -> bool {
    rule.enabled
        && protocol_matches(rule, packet)
        && address_matches(rule.src_ip, packet.src)
        && address_matches(rule.dst_ip, packet.dst)
        && ports_match(rule, packet)
        && vlan_matches(rule, packet)
        && tcp_flags_match(rule, packet)
        && icmp_matches(rule, packet)
        && state_matches(rule, packet)
        && interface_matches(rule, packet)
}

fn protocol_matches(rule: &Rule, packet: &PacketFields) -> bool {
    match rule.protocol {
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
fn ports_match(rule: &Rule, packet: &PacketFields) -> bool {
    if rule.src_port.is_none() && rule.dst_port.is_none() {
        return true;
    }
    if !matches!(packet.protocol, 6 | 17 | 132 | 136) {
        return false;
    }
    let source = rule.src_port.is_none_or(|range| packet.src_port >= range.low && packet.src_port <= range.high);
    let destination = rule.dst_port.is_none_or(|range| packet.dst_port >= range.low && packet.dst_port <= range.high);
    source && destination
}

/// VLAN 0 asks for an untagged packet.
fn vlan_matches(rule: &Rule, packet: &PacketFields) -> bool {
    match rule.vlan_id {
        None => true,
        Some(id) => packet.vlan_id == id,
    }
}

fn tcp_flags_match(rule: &Rule, packet: &PacketFields) -> bool {
    match rule.tcp_flags {
        None => true,
        Some(flags) => packet.protocol == 6 && packet.tcp_flags & flags.mask == flags.set,
    }
}

/// ICMP is protocol 1 in IPv4 and 58 in IPv6; the other's number in a packet of this family is just a number.
fn icmp_matches(rule: &Rule, packet: &PacketFields) -> bool {
    if rule.icmp_type.is_none() && rule.icmp_code.is_none() {
        return true;
    }
    let icmp = if packet.src.is_ipv4() { 1 } else { 58 };
    packet.protocol == icmp
        && rule.icmp_type.is_none_or(|wanted| wanted == packet.icmp_type)
        && rule.icmp_code.is_none_or(|wanted| wanted == packet.icmp_code)
}

/// While the state of a packet is unknown, it may turn out to be any.
fn state_matches(rule: &Rule, packet: &PacketFields) -> bool {
    match packet.state {
        None => true,
        Some(state) => rule.states.is_any() || rule.states.0 & (1 << state as u8) != 0,
    }
}

fn interface_matches(rule: &Rule, packet: &PacketFields) -> bool {
    rule.interfaces.is_empty() || rule.interfaces.contains(&packet.interface_name())
}
