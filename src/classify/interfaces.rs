//! Interfaces as the tables know them: by number, found by index.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::compile::Placed;
use crate::abi::{fw_iface, fw_policy_limits, fw_uppers_limits};

/// Interfaces that can be guarded at once.
pub const INTERFACES_MAX: usize = fw_policy_limits::FW_OTHER_IFACE.0 as usize;

/// An interface as the tables know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, as rules write it.
    pub name: String,
    /// Its index, while it exists.
    pub ifindex: Option<u32>,
}

/// A network device, and on what it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// The device of which it is a part (`eth0` of `eth0.5`), with the VLAN id for which it stands, if it does. Only where
    /// that device's frames are its own: not the one through which a tunnel's packets go.
    pub lower: Option<(u32, Option<u16>)>,
    /// The device of which it is a port, and what kind that is.
    pub master: Option<u32>,
    /// What it makes of its ports, if it can have any.
    pub joins: Option<Joins>,
}

/// What a device makes of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    /// A bridge: what comes on a port may be for it, with or without a tag.
    Bridge,
    /// Bond or team: what comes on a port is its own.
    Bundle,
    /// VRF: ports stay what they are, with another routing table.
    Vrf,
}

/// A guarded interface, and whether its card takes VLAN tags out of the frames.
pub type Standing = (u32, bool);

/// The devices that stand on guarded interfaces: by index and the tag on the guarded one, a bit for each number of those.
pub fn uppers_of(devices: &[Device], guarded: &[Option<Standing>]) -> BTreeMap<(u32, u32), u64> {
    let any = fw_uppers_limits::FW_ANY_VLAN.0;
    let mut uppers = BTreeMap::new();
    for (number, standing) in guarded.iter().enumerate() {
        let Some((ifindex, hides_tags)) = *standing else { continue };
        let mut seen = vec![(ifindex, 0u32)];
        let mut at = 0;
        while let Some(&(below, tag)) = seen.get(at) {
            at += 1;
            let master = devices.iter().find(|one| one.ifindex == below).and_then(|one| one.master);
            for device in devices {
                let above = if Some(device.ifindex) == master {
                    match device.joins {
                        Some(Joins::Bridge) if tag == 0 => Some(any),
                        Some(Joins::Bridge | Joins::Bundle) => Some(tag),
                        _ => None,
                    }
                } else {
                    device.lower.filter(|(lower, _)| *lower == below).map(|(_, vlan)| match vlan {
                        Some(_) if tag == 0 && hides_tags => any,
                        Some(vlan) if tag == 0 => vlan.into(),
                        _ => tag, // the outer tag is the one that is seen
                    })
                };
                if let Some(tag) = above
                    && !seen.contains(&(device.ifindex, tag))
                {
                    seen.push((device.ifindex, tag));
                    *uppers.entry((device.ifindex, tag)).or_insert(0) |= 1 << number;
                }
            }
        }
    }
    uppers
}

/// Whether an interface, or a device that stands on it, is in a VRF: routes to what is behind it are in another table.
pub fn is_in_vrf(devices: &[Device], ifindex: u32) -> bool {
    let uppers = uppers_of(devices, &[Some((ifindex, false))]);
    let all = uppers.keys().map(|(upper, _)| *upper).chain([ifindex]);
    let masters = all.filter_map(|index| devices.iter().find(|one| one.ifindex == index)?.master);
    masters.into_iter().any(|master| devices.iter().any(|one| one.ifindex == master && one.joins == Some(Joins::Vrf)))
}

/// A bit for each interface of a rule, by number; all of them, and unknown ones, when it names none.
pub fn bits_of_interfaces(names: &[String], ports: &[Port]) -> u64 {
    if names.is_empty() {
        return Placed::ALL_INTERFACES;
    }
    let named = (0..).zip(ports).filter(|(_, port)| names.contains(&port.name));
    named.fold(0, |bits, (number, _): (u32, _)| bits | 1 << number)
}

/// A multiplier that puts every index into a place of its own, and the places. The kernel then looks at one of them.
pub fn hash_of_interfaces(ports: &[Port]) -> Result<(u32, [fw_iface; 256])> {
    let present: Vec<(u32, u32)> =
        (0..).zip(ports).filter_map(|(number, port)| Some((port.ifindex?, number))).collect();
    hash_of(&present)
}

/// The same for pairs of index and number.
fn hash_of(present: &[(u32, u32)]) -> Result<(u32, [fw_iface; 256])> {
    const TRIES: u32 = 1_000_000;
    if present.len() > INTERFACES_MAX {
        bail!("{} interfaces, and {INTERFACES_MAX} is the limit", present.len());
    }
    let mut multiplier = 0x9e37_79b1u32;
    for _ in 0..TRIES {
        let mut places = [fw_iface::default(); 256];
        let free = present.iter().all(|&(ifindex, number)| {
            let place = &mut places[(ifindex.wrapping_mul(multiplier) >> 24) as usize];
            let free = place.ifindex == 0;
            *place = fw_iface { ifindex, number };
            free
        });
        if free {
            return Ok((multiplier, places));
        }
        // Any walk over odd numbers does; this one is the step of a Weyl sequence.
        multiplier = multiplier.wrapping_add(0x61c8_8647 << 1) | 1;
    }
    bail!("no multiplier found for {} interfaces", present.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_on_an_interface() {
        let any = fw_uppers_limits::FW_ANY_VLAN.0;
        let vlan = |ifindex, lower, vlan| Device { ifindex, lower: Some((lower, Some(vlan))), ..Device::default() };
        let port = |ifindex, master| Device { ifindex, master: Some(master), ..Device::default() };
        let joins = |ifindex, how| Device { ifindex, joins: Some(how), ..Device::default() };
        let check = |devices: &[Device], guarded: &[Option<Standing>], expected: &[((u32, u32), u64)]| {
            let uppers: Vec<_> = uppers_of(devices, guarded).into_iter().collect();
            assert_eq!(uppers, expected, "{devices:?}");
        };
        let plain = |ifindex| Device { ifindex, ..Device::default() };
        check(&[plain(2), plain(3)], &[Some((2, false)), None], &[]);
        // eth0.5, in it .6 (the outer tag is the one on the wire), and a macvlan of eth0.
        let macvlan = Device { ifindex: 9, lower: Some((2, None)), ..Device::default() };
        let tagged = [plain(2), plain(3), vlan(5, 2, 5), vlan(6, 5, 6), vlan(7, 3, 7), macvlan];
        check(&tagged, &[Some((3, false)), Some((2, false))], &[((5, 5), 2), ((6, 5), 2), ((7, 7), 1), ((9, 0), 2)]);
        check(&tagged, &[None, Some((2, true))], &[((5, any), 2), ((6, any), 2), ((9, 0), 2)]);
        // A bond of both, a VLAN of the bond, in a bridge.
        let bond = [
            port(2, 4),
            port(3, 4),
            joins(4, Joins::Bundle),
            Device { master: Some(8), ..vlan(5, 4, 5) },
            joins(8, Joins::Bridge),
            vlan(10, 8, 100),
        ];
        let both = [((4, 0), 3), ((5, 5), 3), ((8, 5), 3), ((10, 5), 3)];
        check(&bond, &[Some((2, false)), Some((3, false))], &both);
        // A bridge hands tagged frames up; one of its VLAN devices may get untagged ones too.
        let bridge = [port(2, 4), joins(4, Joins::Bridge), vlan(5, 4, 5)];
        check(&bridge, &[Some((2, false))], &[((4, any), 1), ((5, any), 1)]);
        // A VRF takes nothing from its ports but their routes.
        let vrf = [Device { master: Some(4), ..vlan(5, 2, 5) }, plain(2), plain(3), joins(4, Joins::Vrf)];
        check(&vrf, &[Some((2, false))], &[((5, 5), 1)]);
        assert!(is_in_vrf(&vrf, 2) && is_in_vrf(&vrf, 5) && !is_in_vrf(&vrf, 3));
        // Rings, which the kernel does not make.
        check(&[vlan(2, 3, 1), vlan(3, 2, 1)], &[Some((2, false))], &[((2, 1), 1), ((3, 1), 1)]);
    }

    #[test]
    fn interfaces_find_their_places() {
        for count in [0, 1, 2, 17, INTERFACES_MAX as u32] {
            let present: Vec<_> = (0..count).map(|number| (number * number * 7 + 3, number)).collect();
            let (multiplier, places) = hash_of(&present).unwrap();
            for (ifindex, number) in present {
                let place = places[(ifindex.wrapping_mul(multiplier) >> 24) as usize];
                assert_eq!((place.ifindex, place.number), (ifindex, number));
            }
        }
    }
}
