//! From rules and policy to a generation of the kernel's tables. The firewall engine is the only writer.

use anyhow::{Context, Result};

use super::config::{FirewallConfig, Policy};
use super::rule::Rule;
use crate::abi::{fw_policy, fw_tables};
use crate::classify::compile::{self, BothRows, Placed};
use crate::classify::guard::Guard;
use crate::classify::interfaces::{Port, bits_of_interfaces, hash_of_interfaces};
use crate::classify::rules::Mode;
use crate::classify::slots::Slots;

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
        policy.write_meta = self.rules.iter().any(|rule| rule.is_mirroring()).into();
        self.guard.write(policy);
        (policy.iface_multiplier, policy.iface) = hash_of_interfaces(self.ports)?;
        Ok(())
    }

    /// The enabled rules of a family, with their counters and interfaces.
    fn placed(&self, ipv4: bool) -> Result<Vec<Placed<'_>>> {
        self.rules
            .iter()
            .filter(|rule| rule.enabled && rule.matches.is_of_family(ipv4))
            .map(|rule| {
                let slot = self.slots.get(&rule.id).with_context(|| format!("rule {} has no counter", rule.id))?;
                let interfaces = bits_of_interfaces(&rule.matches.interfaces, self.ports);
                Ok(Placed { matches: &rule.matches, answer: rule.answer(slot), interfaces })
            })
            .collect()
    }
}
