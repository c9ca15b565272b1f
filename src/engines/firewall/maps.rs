//! From rules and policy to a generation of the kernel's tables. The firewall engine is the only writer.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

use super::compile::{self, Placed, Rows};
use super::config::{FirewallConfig, Mode, Policy};
use super::guard::Guard;
use super::rule::Rule;
use crate::abi::{fw_iface, fw_limits, fw_policy, fw_policy_limits, fw_row, fw_tables};
use crate::bpf::xdp_firewall::WriteRows;

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

/// Counters of the rules: each has a slot for as long as it lives.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    of: HashMap<String, u16>,
}

impl Slots {
    /// Slot of a rule that is in force.
    pub fn get(&self, id: &str) -> Option<u16> {
        self.of.get(id).copied()
    }

    /// Which rule has a slot.
    pub fn rule(&self, slot: u16) -> Option<&str> {
        self.of.iter().find(|(_, taken)| **taken == slot).map(|(id, _)| id.as_str())
    }

    /// The slots for `rules`: those that had one keep it. Also tells which are new and have to be cleared.
    pub fn next<'r>(&self, rules: impl Iterator<Item = &'r Rule> + Clone) -> Result<(Slots, Vec<u16>)> {
        let mut of = HashMap::new();
        let mut taken = vec![false; fw_limits::FW_SLOTS.0 as usize];
        for rule in rules.clone() {
            if let Some(slot) = self.get(&rule.id) {
                of.insert(rule.id.clone(), slot);
                taken[usize::from(slot)] = true;
            }
        }
        // A slot that was just given up may still be counted by packets of the old generation: others come first.
        for &slot in self.of.values() {
            if !taken[usize::from(slot)] {
                taken[usize::from(slot)] = true;
            }
        }
        let mut free: Vec<u16> = (0..taken.len() as u16).rev().filter(|&slot| !taken[usize::from(slot)]).collect();
        let mut given_up: Vec<u16> =
            self.of.iter().filter(|(id, _)| !of.contains_key(*id)).map(|(_, &slot)| slot).collect();
        let mut fresh = Vec::new();
        for rule in rules {
            if !of.contains_key(&rule.id) {
                let slot = free.pop().or_else(|| given_up.pop()).context("no counter is left for a rule")?;
                of.insert(rule.id.clone(), slot);
                fresh.push(slot);
            }
        }
        Ok((Slots { of }, fresh))
    }
}

/// Everything that makes a generation.
pub struct Generation<'a> {
    /// Counts the swaps, from 1.
    pub number: u32,
    /// Mode and policies.
    pub config: &'a FirewallConfig,
    /// All rules, in the order in which they are asked.
    pub rules: &'a [&'a Rule],
    /// Their counters.
    pub slots: &'a Slots,
    /// Interfaces, by number.
    pub ports: &'a [Port],
    /// The lock-out guard.
    pub guard: &'a Guard,
}

/// The rows of both families in their common map: first IPv4's, then IPv6's.
pub struct BothRows {
    /// IPv4.
    pub v4: Rows,
    /// IPv6.
    pub v6: Rows,
}

impl WriteRows for BothRows {
    fn entries(&self) -> usize {
        self.v4.entries() + self.v6.entries()
    }

    fn write_rows(&self, out: &mut [fw_row]) {
        let (v4, v6) = out.split_at_mut(self.v4.entries());
        self.v4.write(v4);
        self.v6.write(v6);
    }
}

impl Generation<'_> {
    /// Writes the generation; returns the rows of both families.
    pub fn write(&self, tables: &mut fw_tables) -> Result<BothRows> {
        self.write_policy(&mut tables.policy)?;
        let [v4, v6] = &mut tables.family;
        let of_v4 =
            compile::compile_v4(&self.placed(true)?, 0, v4, &mut tables.v4).context("compiling the IPv4 rules")?;
        let of_v6 = compile::compile_v6(&self.placed(false)?, of_v4.entries(), v6, &mut tables.v6)
            .context("compiling the IPv6 rules")?;
        Ok(BothRows { v4: of_v4, v6: of_v6 })
    }

    fn write_policy(&self, policy: &mut fw_policy) -> Result<()> {
        let config = self.config;
        policy.generation = self.number;
        policy.enforce = (config.mode == Mode::Block).into();
        policy.drop_unmatched = (config.default_policy == Policy::Drop).into();
        policy.drop_unparsable = (config.unparsable == Policy::Drop).into();
        policy.stateful = config.stateful.into();
        policy.dhcp = config.dhcp.into();
        self.guard.write(policy);
        let present: Vec<(u32, u32)> = (0u32..)
            .zip(self.ports)
            .filter_map(|(number, port)| port.ifindex.map(|ifindex| (ifindex, number)))
            .collect();
        (policy.iface_multiplier, policy.iface) = hash_of_interfaces(&present)?;
        Ok(())
    }

    /// The enabled rules of a family, with their counters and interfaces.
    fn placed(&self, ipv4: bool) -> Result<Vec<Placed<'_>>> {
        let of_family = |rule: &&&Rule| rule.enabled && rule.is_ipv4().is_none_or(|is| is == ipv4);
        self.rules
            .iter()
            .filter(of_family)
            .map(|rule| {
                let slot = self.slots.get(&rule.id).with_context(|| format!("rule {} has no counter", rule.id))?;
                Ok(Placed { rule, slot, interfaces: self.interfaces_of(rule) })
            })
            .collect()
    }

    /// A bit for each interface of the rule, by number; all of them, and unknown ones, when it names none.
    fn interfaces_of(&self, rule: &Rule) -> u64 {
        if rule.interfaces.is_empty() {
            return u64::MAX;
        }
        let named = |port: &Port| rule.interfaces.contains(&port.name);
        (0..).zip(self.ports).filter(|(_, port)| named(port)).fold(0, |bits, (number, _): (u32, _)| bits | 1 << number)
    }
}

/// A multiplier that puts every index into a place of its own, and the places. The kernel then looks at one of them.
fn hash_of_interfaces(present: &[(u32, u32)]) -> Result<(u32, [fw_iface; 256])> {
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
            let (multiplier, places) = hash_of_interfaces(&present).unwrap();
            for (ifindex, number) in present {
                let place = places[(ifindex.wrapping_mul(multiplier) >> 24) as usize];
                assert_eq!((place.ifindex, place.number), (ifindex, number));
            }
        }
    }
}
