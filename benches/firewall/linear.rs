//! Rules as the linear scan of benches/bench.bpf.c reads them.

use std::net::IpAddr;

use anyhow::{Result, bail};
use ebpfsentinel::classify::matching::{PortRange, Protocol};
use ebpfsentinel::engines::firewall::rule::{Action, Rule};
use ipnet::IpNet;

const ANY_PROTOCOL: u8 = 1;
const PORTS: u8 = 2;
const ICMP_TYPE: u8 = 4;
const ICMP_CODE: u8 = 8;
const DENY: u8 = 16;

/// `struct linear_match`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Match {
    src_port_low: u16,
    src_port_high: u16,
    dst_port_low: u16,
    dst_port_high: u16,
    protocol: u8,
    flags: u8,
    tcp_set: u8,
    tcp_mask: u8,
    icmp_type: u8,
    icmp_code: u8,
    pad: [u8; 2],
}

/// `struct linear_v4`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct LinearV4 {
    src: u32,
    src_mask: u32,
    dst: u32,
    dst_mask: u32,
    match_: Match,
}

/// `struct linear_v6`, words of 64 bits with the high one first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct LinearV6 {
    src: [u64; 2],
    src_mask: [u64; 2],
    dst: [u64; 2],
    dst_mask: [u64; 2],
    match_: Match,
}

fn match_of(rule: &Rule) -> Result<Match> {
    let asked = &rule.matches;
    if asked.vlan_id.is_some() || !asked.states.is_any() || !asked.interfaces.is_empty() {
        bail!("the linear scan knows neither VLANs nor states nor interfaces: {}", rule.id);
    }
    let any = PortRange { low: 0, high: u16::MAX };
    let (src, dst) = (asked.src_port.unwrap_or(any), asked.dst_port.unwrap_or(any));
    let mut match_ = Match {
        src_port_low: src.low,
        src_port_high: src.high,
        dst_port_low: dst.low,
        dst_port_high: dst.high,
        ..Match::default()
    };
    match asked.protocol {
        Protocol::Any => match_.flags |= ANY_PROTOCOL,
        Protocol::Number(number) => match_.protocol = number,
    }
    if asked.src_port.is_some() || asked.dst_port.is_some() {
        match_.flags |= PORTS;
    }
    if let Some(flags) = asked.tcp_flags {
        (match_.tcp_set, match_.tcp_mask) = (flags.set, flags.mask);
    }
    if let Some(kind) = asked.icmp_type {
        match_.flags |= ICMP_TYPE;
        match_.icmp_type = kind;
    }
    if let Some(code) = asked.icmp_code {
        match_.flags |= ICMP_CODE;
        match_.icmp_code = code;
    }
    if rule.action == Action::Deny {
        match_.flags |= DENY;
    }
    Ok(match_)
}

fn network_v4(network: Option<IpNet>) -> Result<(u32, u32)> {
    match network {
        None => Ok((0, 0)),
        Some(IpNet::V4(network)) => Ok((network.network().to_bits(), network.netmask().to_bits())),
        Some(IpNet::V6(network)) => bail!("{network} in an IPv4 rule"),
    }
}

fn network_v6(network: Option<IpNet>) -> Result<([u64; 2], [u64; 2])> {
    let halves = |bits: u128| [(bits >> 64) as u64, bits as u64];
    match network.map(|network| (network.network(), network.netmask())) {
        None => Ok(([0; 2], [0; 2])),
        Some((IpAddr::V6(network), IpAddr::V6(mask))) => Ok((halves(network.to_bits()), halves(mask.to_bits()))),
        Some((network, _)) => bail!("{network} in an IPv6 rule"),
    }
}

impl LinearV4 {
    pub fn of(rule: &Rule) -> Result<LinearV4> {
        let ((src, src_mask), (dst, dst_mask)) = (network_v4(rule.matches.src_ip)?, network_v4(rule.matches.dst_ip)?);
        Ok(LinearV4 { src, src_mask, dst, dst_mask, match_: match_of(rule)? })
    }
}

impl LinearV6 {
    pub fn of(rule: &Rule) -> Result<LinearV6> {
        let ((src, src_mask), (dst, dst_mask)) = (network_v6(rule.matches.src_ip)?, network_v6(rule.matches.dst_ip)?);
        Ok(LinearV6 { src, src_mask, dst, dst_mask, match_: match_of(rule)? })
    }
}
