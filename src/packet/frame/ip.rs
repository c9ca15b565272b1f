//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Checksum, Fragment, Headers, Malformed, Oddities, Packet, Unread, checksum};

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers of one packet. RFC 8200 4.1 has use for seven.
const EXTENSIONS_MAX: usize = 8;
/// Bytes that an IP packet's payload can have.
const PAYLOAD_MAX: usize = 65_535;

/// What a packet without a link layer is, by its version.
pub(super) fn ethertype_of(bytes: &[u8]) -> Result<u16, Unread> {
    match bytes.first().map(|byte| byte >> 4) {
        Some(4) => Ok(ETHERTYPE_IPV4),
        Some(6) => Ok(ETHERTYPE_IPV6),
        Some(_) => Err(Malformed::IpBadVersion.into()),
        None => Err(Malformed::Ipv4Truncated.into()),
    }
}

/// Reads the IP header at the start of `bytes`.
pub(super) fn read<'a>(
    ethertype: u16,
    bytes: &'a [u8],
    vlans: [u16; 2],
    depth: u8,
    oddities: &mut Oddities,
) -> Result<Packet<'a>, Unread> {
    match ethertype {
        ETHERTYPE_IPV4 => ipv4(bytes, vlans, depth),
        ETHERTYPE_IPV6 => ipv6(bytes, vlans, depth, oddities),
        _ => Err(Unread::NotIp),
    }
}

fn ipv4(bytes: &[u8], vlans: [u16; 2], depth: u8) -> Result<Packet<'_>, Unread> {
    let fixed = bytes.first_chunk::<20>().ok_or(Malformed::Ipv4Truncated)?;
    if fixed[0] >> 4 != 4 {
        return Err(Malformed::IpBadVersion.into());
    }
    let header_len = usize::from(fixed[0] & 0xf) * 4;
    if header_len < 20 || header_len > bytes.len() {
        return Err(Malformed::Ipv4BadHeaderLength.into());
    }
    let total_len = match usize::from(u16::from_be_bytes([fixed[2], fixed[3]])) {
        // The kernel writes 0 where a packet that is yet to be cut into segments is too long for the field.
        0 => bytes.len(),
        short if short < header_len => return Err(Malformed::Ipv4BadTotalLength.into()),
        total_len => total_len,
    };
    // What lies behind the total length is the padding of Ethernet.
    let payload = &bytes[header_len..total_len.min(bytes.len())];
    let missing = total_len.saturating_sub(bytes.len());
    let checksum = if checksum::is_good(&bytes[..header_len]) {
        Checksum::Good
    } else {
        Checksum::Bad(Malformed::Ipv4BadChecksum)
    };
    let ip = Headers {
        source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
        destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
        ttl: fixed[8],
        vlans,
        depth,
        checksum,
        is_routed: false,
    };
    let word = u16::from_be_bytes([fixed[6], fixed[7]]);
    let (has_more, offset) = (word & 0x2000 != 0, word & 0x1fff);
    let fragment = if has_more || offset > 0 {
        Some(fragment(u32::from(u16::from_be_bytes([fixed[4], fixed[5]])), offset * 8, has_more, payload, missing)?)
    } else {
        None
    };
    Ok(Packet { ip, protocol: fixed[9], payload, missing, fragment })
}

/// A fragment, with the checks that need no other fragment.
fn fragment(id: u32, offset: u16, has_more: bool, bytes: &[u8], missing: usize) -> Result<Fragment<'_>, Unread> {
    if has_more && !(bytes.len() + missing).is_multiple_of(8) {
        return Err(Malformed::FragmentBadLength.into());
    }
    if usize::from(offset) + bytes.len() + missing > PAYLOAD_MAX {
        return Err(Malformed::FragmentTooLong.into());
    }
    if missing > 0 {
        return Err(Unread::Cut);
    }
    Ok(Fragment { id, offset, has_more, bytes })
}

fn ipv6<'a>(bytes: &'a [u8], vlans: [u16; 2], depth: u8, oddities: &mut Oddities) -> Result<Packet<'a>, Unread> {
    let (fixed, rest) = bytes.split_first_chunk::<40>().ok_or(Malformed::Ipv6Truncated)?;
    if fixed[0] >> 4 != 6 {
        return Err(Malformed::IpBadVersion.into());
    }
    let payload_len = match usize::from(u16::from_be_bytes([fixed[4], fixed[5]])) {
        // A jumbogram (RFC 2675), or a packet that is yet to be cut into segments.
        0 if fixed[6] == HOP_BY_HOP || rest.len() > PAYLOAD_MAX => rest.len(),
        payload_len => payload_len,
    };
    let payload = &rest[..payload_len.min(rest.len())];
    let missing = payload_len.saturating_sub(rest.len());
    let address = |at: usize| -> [u8; 16] { std::array::from_fn(|i| fixed[at + i]) };
    let ip = Headers {
        source: Ipv6Addr::from(address(8)).into(),
        destination: Ipv6Addr::from(address(24)).into(),
        ttl: fixed[7],
        vlans,
        depth,
        checksum: Checksum::Good,
        is_routed: false,
    };
    let mut packet = Packet { ip, protocol: fixed[6], payload, missing, fragment: None };
    extensions(&mut packet, true, oddities)?;
    Ok(packet)
}

/// Walks over extension headers, up to a fragment header or what is none of them. `is_first` says that the IPv6 header
/// stands right before them.
pub(super) fn extensions(packet: &mut Packet<'_>, is_first: bool, oddities: &mut Oddities) -> Result<(), Unread> {
    let mut is_first = is_first;
    for _ in 0..EXTENSIONS_MAX {
        let known = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS];
        if !known.contains(&packet.protocol) {
            return Ok(());
        }
        let head = packet.payload.first_chunk::<8>().ok_or(Malformed::Ipv6TruncatedExtension)?;
        // Each kind counts in units of its own (RFC 8200 4, RFC 4302 2.2).
        let length = match packet.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(head[1]) + 2) * 4,
            _ => (usize::from(head[1]) + 1) * 8,
        };
        let rest = packet.payload.get(length..).ok_or(Malformed::Ipv6TruncatedExtension)?;
        match packet.protocol {
            HOP_BY_HOP if !is_first => oddities.add(Malformed::Ipv6MisplacedHopByHop),
            ROUTING => {
                packet.ip.is_routed |= head[3] > 0;
                if head[2] == 0 {
                    oddities.add(Malformed::Ipv6RoutingType0);
                }
            }
            _ => {}
        }
        let was = std::mem::replace(&mut packet.protocol, head[0]);
        packet.payload = rest;
        is_first = false;
        if was == FRAGMENT {
            let word = u16::from_be_bytes([head[2], head[3]]);
            let (offset, has_more) = (word & 0xfff8, word & 1 != 0);
            // A fragment that is all of its packet is handled apart from others (RFC 6946).
            if offset > 0 || has_more {
                let id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                packet.fragment = Some(fragment(id, offset, has_more, rest, packet.missing)?);
                return Ok(());
            }
        }
    }
    Err(Malformed::Ipv6TooManyExtensions.into())
}
