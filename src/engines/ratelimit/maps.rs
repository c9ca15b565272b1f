//! From rules to a generation of xdp_ratelimit's tables. The engine is the only writer.

use anyhow::{Context, Result};

use super::rule::Rule;
use crate::abi::{fw_answer, fw_policy, fw_tables, rl_rules};
use crate::bpf::jiffies_per_second;
use crate::classify::compile::{self, BothRows, Rows};
use crate::classify::guard::Guard;
use crate::classify::interfaces::{Port, bits_of_interfaces, hash_of_interfaces};
use crate::classify::matching::Match;

/// A rule with its place in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// Its counters.
    pub slot: u16,
    /// The number that its buckets carry.
    pub instance: u32,
}

/// Everything that makes a generation.
pub struct Generation<'a> {
    /// Counts the swaps, from 1.
    pub number: u32,
    /// Whether packets over a limit are dropped at all.
    pub enforce: bool,
    /// All rules, in the order in which they are asked.
    pub rules: &'a [Placed<'a>],
    /// Interfaces, by number.
    pub ports: &'a [Port],
    /// The lock-out guard.
    pub guard: &'a Guard,
}

impl Generation<'_> {
    /// Writes the generation; returns the rows of both families.
    pub fn write(&self, tables: &mut fw_tables, rules: &mut rl_rules) -> Result<BothRows> {
        self.write_policy(&mut tables.policy)?;
        let ticks = jiffies_per_second()?;
        for one in self.rules {
            rules.rule[usize::from(one.slot)] = one.rule.in_kernel(one.instance, ticks);
        }
        rules.cookies = self.rules.iter().any(|one| one.rule.enabled && one.rule.is_about_cookies()).into();
        for (at, ipv4) in [true, false].into_iter().enumerate() {
            let constant = self.constant(ipv4);
            rules.ask[at] = constant.is_none().into();
            rules.any[at] = constant.unwrap_or(fw_answer::FW_NO_MATCH.0);
        }
        let [v4, v6] = &mut tables.family;
        let of_v4 =
            compile::compile_v4(&self.placed(true), 0, v4, &mut tables.v4).context("compiling the IPv4 limits")?;
        let base = Rows::entries(&of_v4);
        let of_v6 =
            compile::compile_v6(&self.placed(false), base, v6, &mut tables.v6).context("compiling the IPv6 limits")?;
        Ok(BothRows { v4: of_v4, v6: of_v6 })
    }

    fn write_policy(&self, policy: &mut fw_policy) -> Result<()> {
        policy.generation = self.number;
        policy.enforce = self.enforce.into();
        policy.dhcp = 1;
        self.guard.write(&mut policy.guard);
        (policy.iface_multiplier, policy.iface) = hash_of_interfaces(self.ports)?;
        Ok(())
    }

    fn of_family(&self, ipv4: bool) -> impl Iterator<Item = &Placed<'_>> {
        self.rules.iter().filter(move |one| one.rule.enabled && one.rule.matches.is_of_family(ipv4))
    }

    /// The answer to every packet of a family, when its first rule asks nothing of a packet, or there is none.
    fn constant(&self, ipv4: bool) -> Option<u32> {
        match self.of_family(ipv4).next() {
            None => Some(fw_answer::FW_NO_MATCH.0),
            Some(first) => (first.rule.matches == Match::default()).then_some(first.slot.into()),
        }
    }

    /// The enabled rules of a family, with their counters and interfaces.
    fn placed(&self, ipv4: bool) -> Vec<compile::Placed<'_>> {
        self.of_family(ipv4)
            .map(|one| compile::Placed {
                matches: &one.rule.matches,
                answer: one.slot.into(),
                interfaces: bits_of_interfaces(&one.rule.matches.interfaces, self.ports),
            })
            .collect()
    }
}
