//! Ethernet with its tags, and the tunnels: GRE, IP in IP, VXLAN.

use super::{Malformed, Packet, Unread, ip, protocol};

const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
/// An older number for the outer tag that switches still send.
const ETHERTYPE_QINQ_OLD: u16 = 0x9100;
/// Transparent Ethernet bridging (RFC 1701), in GRE.
const ETHERTYPE_TEB: u16 = 0x6558;
/// Below it the field is the length of an LLC frame.
const ETHERTYPE_MIN: u16 = 0x0600;

const VXLAN_PORT: u16 = 4789;

/// Reads an Ethernet header. Tags go to `vlans`, if they are wanted.
pub(super) fn ethernet<'a>(bytes: &'a [u8], vlans: Option<&mut [u16; 2]>) -> Result<(u16, &'a [u8]), Unread> {
    let (header, rest) = bytes.split_first_chunk::<14>().ok_or(Malformed::LinkTruncated)?;
    tags(u16::from_be_bytes([header[12], header[13]]), rest, vlans)
}

/// Reads VLAN tags, at most two with those that `vlans` holds already.
pub(super) fn tags<'a>(
    mut ethertype: u16,
    mut rest: &'a [u8],
    vlans: Option<&mut [u16; 2]>,
) -> Result<(u16, &'a [u8]), Unread> {
    let mut unwanted = [0; 2];
    let vlans = vlans.unwrap_or(&mut unwanted);
    let mut count = vlans.iter().take_while(|id| **id != 0).count();
    while [ETHERTYPE_VLAN, ETHERTYPE_QINQ, ETHERTYPE_QINQ_OLD].contains(&ethertype) {
        let (tag, inner) = rest.split_first_chunk::<4>().ok_or(Malformed::LinkTruncated)?;
        // Id 0 is a priority only, but still a tag: else a frame could have any number of them.
        if let Some(slot) = vlans.get_mut(count) {
            *slot = u16::from_be_bytes([tag[0], tag[1]]) & 0xfff;
        } else {
            return Err(Malformed::LinkTooManyTags.into());
        }
        count += 1;
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        rest = inner;
    }
    if ethertype < ETHERTYPE_MIN { Err(Unread::NotIp) } else { Ok((ethertype, rest)) }
}

/// The IP packet that another carries, with its EtherType.
pub(super) fn inner<'a>(packet: &Packet<'a>) -> Result<Option<(u16, &'a [u8])>, Unread> {
    match packet.protocol {
        protocol::IPIP => Ok(Some((ip::ETHERTYPE_IPV4, packet.payload))),
        protocol::IPV6 => Ok(Some((ip::ETHERTYPE_IPV6, packet.payload))),
        protocol::GRE => gre(packet.payload),
        protocol::UDP => vxlan(packet.payload),
        _ => Ok(None),
    }
}

fn is_ip(inner: (u16, &[u8])) -> bool {
    [ip::ETHERTYPE_IPV4, ip::ETHERTYPE_IPV6].contains(&inner.0)
}

/// Inner Ethernet: what is no IP stays a packet of the tunnel.
fn bridged(bytes: &[u8]) -> Result<Option<(u16, &[u8])>, Unread> {
    match ethernet(bytes, None) {
        Ok(inner) => Ok(Some(inner).filter(|inner| is_ip(*inner))),
        Err(Unread::NotIp) => Ok(None),
        Err(Unread::Malformed(Malformed::LinkTruncated)) => Err(Malformed::TunnelTruncated.into()),
        Err(other) => Err(other),
    }
}

/// GRE version 0. Version 1 (PPTP) carries PPP and is not opened, nor is one with source routes (RFC 1701).
fn gre(bytes: &[u8]) -> Result<Option<(u16, &[u8])>, Unread> {
    let head = bytes.first_chunk::<4>().ok_or(Malformed::GreTruncated)?;
    let flags = u16::from_be_bytes([head[0], head[1]]);
    if flags & 0x4007 != 0 {
        return Ok(None);
    }
    let fields = [0x8000, 0x2000, 0x1000].iter().filter(|bit| flags & **bit != 0).count();
    let rest = bytes.get(4 + 4 * fields..).ok_or(Malformed::GreTruncated)?;
    match u16::from_be_bytes([head[2], head[3]]) {
        ETHERTYPE_TEB => bridged(rest),
        ethertype => Ok(Some((ethertype, rest)).filter(|inner| is_ip(*inner))),
    }
}

/// VXLAN (RFC 7348 5): the bit that the network identifier counts, and no other, in the flags. A datagram to its port
/// that looks different is a datagram like others.
fn vxlan(bytes: &[u8]) -> Result<Option<(u16, &[u8])>, Unread> {
    match bytes.first_chunk::<16>() {
        Some(head)
            if u16::from_be_bytes([head[2], head[3]]) == VXLAN_PORT && head[8..12] == [8, 0, 0, 0] && head[15] == 0 =>
        {
            bridged(&bytes[16..])
        }
        _ => Ok(None),
    }
}
