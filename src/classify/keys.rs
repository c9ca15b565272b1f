//! Single keys of a match, some of which other sections write alike: networks, names of interfaces, ICMP types, states.
//!
//! Host bits of a network are dropped as iptables and nftables do (`10.0.0.1/24` is `10.0.0.0/24`), with a warning.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::matching::{Protocol, State, States, proto};
use crate::written::{Field, did_you_mean};

/// Longest interface name, in bytes: IFNAMSIZ without its NUL.
pub const INTERFACE_NAME_MAX: usize = 15;

/// An address or a network; its host bits are dropped.
pub fn read_network(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    match parse_network(text) {
        Ok(net) if net.trunc() != net => {
            field.warn(format!("{net} has host bits; it means {}", net.trunc()));
            Some(net.trunc())
        }
        Ok(net) => Some(net),
        Err(message) => {
            field.error(message);
            None
        }
    }
}

/// Parses an address or a network, keeping its host bits.
fn parse_network(text: &str) -> Result<IpNet, String> {
    let strange = || {
        let shown = text.chars().take(60).collect::<String>();
        let hint = match text.split_once('-') {
            _ if matches!(text, "" | "any" | "*" | "all") => "; leave the key out to match every address",
            Some((low, high)) if low.parse::<IpAddr>().is_ok() && high.parse::<IpAddr>().is_ok() => {
                "; write a range as one or more networks"
            }
            _ if text.contains('%') => "; name the interface in interfaces, not in the address",
            _ if text.trim() != text => "; remove the spaces around it",
            _ => "",
        };
        format!(
            "\"{}\" is not an address or a network such as 192.0.2.0/24 or 2001:db8::/32{hint}",
            shown.escape_debug()
        )
    };
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| strange())?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    let bits = match prefix {
        None => bits_max,
        Some(prefix) => match prefix.parse::<u8>() {
            Ok(bits) if bits <= bits_max => bits,
            Ok(_) => return Err(format!("\"{text}\": a prefix length is at most {bits_max} here")),
            Err(_) => {
                let mask = prefix.parse::<IpAddr>().ok().and_then(|mask| ipnet::ip_mask_to_prefix(mask).ok());
                return Err(match mask {
                    Some(bits) => format!("\"{text}\": write the mask as a prefix length: {address}/{bits}"),
                    None => strange(),
                });
            }
        },
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
        && bits >= 96
    {
        let v4_bits = bits - 96;
        return Err(format!(
            "\"{text}\" is an IPv4 address in IPv6 clothing, which no packet carries; write {v4}/{v4_bits}"
        ));
    }
    IpNet::new(address, bits).map_err(|_| strange())
}

/// Names of types that people filter by, as nftables spells them.
const ICMP_TYPES: &[(&str, Option<u8>, Option<u8>)] = &[
    ("echo-request", Some(8), Some(128)),
    ("echo-reply", Some(0), Some(129)),
    ("destination-unreachable", Some(3), Some(1)),
    ("packet-too-big", None, Some(2)),
    ("time-exceeded", Some(11), Some(3)),
    ("parameter-problem", Some(12), Some(4)),
    ("redirect", Some(5), None),
    ("timestamp-request", Some(13), None),
    ("timestamp-reply", Some(14), None),
    ("router-solicitation", Some(10), None),
    ("router-advertisement", Some(9), None),
    ("nd-router-solicit", None, Some(133)),
    ("nd-router-advert", None, Some(134)),
    ("nd-neighbor-solicit", None, Some(135)),
    ("nd-neighbor-advert", None, Some(136)),
    ("nd-redirect", None, Some(137)),
];

/// A number, or a name of the protocol's.
pub(super) fn read_icmp_type(field: &Field<'_>, protocol: Protocol) -> Option<u8> {
    let Some(name) = field.as_text().filter(|text| text.parse::<u8>().is_err()) else {
        return field.parse_or_integer::<IcmpType>().map(|IcmpType(number)| number);
    };
    let v6 = protocol == Protocol::Number(proto::ICMPV6);
    let names = ICMP_TYPES.iter().filter_map(|&(name, v4, six)| Some((name, if v6 { six } else { v4 }?)));
    let found = names.clone().find(|(known, _)| *known == name).map(|(_, number)| number);
    if found.is_none() {
        let near = did_you_mean(name, names.map(|(name, _)| name));
        let family = if v6 { "ICMPv6" } else { "ICMP" };
        field.error(format!(
            "\"{}\" is not a type of {family}; use a number from 0 to 255 or a name such as echo-request{near}",
            name.chars().take(60).collect::<String>().escape_debug()
        ));
    }
    found
}

struct IcmpType(u8);

impl FromStr for IcmpType {
    type Err = String;

    fn from_str(s: &str) -> Result<IcmpType, String> {
        s.parse().map(IcmpType).map_err(|_| format!("{s} is not an ICMP type; use a number from 0 to 255 or a name"))
    }
}

/// A list of different states; absent is any.
pub(super) fn read_states(field: &Field<'_>) -> States {
    let mut states = States::ANY;
    let Some(items) = field.items() else { return states };
    if items.is_empty() {
        field.error("an empty list matches nothing; leave the key out to match every state");
    }
    for item in items {
        let Some(state) = item.parse::<State>() else { continue };
        if !states.is_any() && states.contains(state) {
            item.error(format!("\"{}\" stands here already", state.name()));
        }
        states = states.with(state);
    }
    states
}

/// The name of an interface.
pub fn read_interface(field: &Field<'_>) -> Option<String> {
    let name = field.text()?;
    let wrong = name.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'));
    if name.is_empty() || name.len() > INTERFACE_NAME_MAX {
        field.error(format!("an interface name has 1 to {INTERFACE_NAME_MAX} bytes; this one has {}", name.len()));
    } else if let Some(wrong) = wrong {
        field.error(format!("{wrong:?} cannot be in the name of an interface"));
    } else if matches!(name, "." | "..") {
        field.error(format!("\"{name}\" cannot be the name of an interface"));
    } else {
        return Some(name.to_owned());
    }
    None
}

/// A list of different interface names, at most `max`; empty lists are errors.
pub fn read_interfaces(field: &Field<'_>, max: usize) -> Option<Vec<String>> {
    let items = field.items()?;
    if items.is_empty() {
        field.error("the list is empty; name at least one interface");
        return None;
    }
    if items.len() > max {
        field.error(format!("{} interfaces, and {max} is the limit", items.len()));
        return None;
    }
    let mut names: Vec<String> = Vec::with_capacity(items.len());
    let mut good = true;
    for item in items {
        match read_interface(&item) {
            Some(name) if names.contains(&name) => item.error(format!("\"{name}\" stands here already")),
            Some(name) => {
                names.push(name);
                continue;
            }
            None => {}
        }
        good = false;
    }
    good.then_some(names)
}
