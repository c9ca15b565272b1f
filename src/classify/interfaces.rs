//! Interfaces as the tables know them: by number, found by index.

use anyhow::{Result, bail};

use super::compile::Placed;
use crate::abi::{fw_iface, fw_policy_limits};

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
