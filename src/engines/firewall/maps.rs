//! From rules and policy to a generation of the kernel's tables. The firewall engine is the only writer.

use anyhow::{Context, Result};

use super::config::{FirewallConfig, Policy, RpFilter};
use super::rule::Rule;
use crate::abi::{fw_policy, fw_tables};
use crate::bpf::jiffies_per_second;
use crate::classify::compile::{self, BothRows, Placed};
use crate::classify::guard::Guard;
use crate::classify::interfaces::{Port, bits_of_interfaces, hash_of_interfaces};
use crate::classify::rules::Mode;
use crate::classify::slots::Slots;

/// Binary logarithm of the ticks in a turn of the flow cache: half a second at most where its answers may change with the
/// routes, since they live for two turns. Else 2^15, with which 16 bits of the clock tell one tick from another.
pub fn flow_turn(by_routes: bool) -> Result<u8> {
    const TICK_BITS_LESS_ONE: u8 = 15;
    if !by_routes {
        return Ok(TICK_BITS_LESS_ONE);
    }
    Ok((jiffies_per_second()?.max(2).ilog2() - 1) as u8)
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
        policy.rp_filter = config.rp_filter.number();
        policy.next_hop = config.next_hop.into();
        policy.flow_turn = flow_turn(config.rp_filter != RpFilter::Off)?;
        policy.write_meta = self.rules.iter().any(|rule| rule.is_mirroring()).into();
        self.guard.write(&mut policy.guard);
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
