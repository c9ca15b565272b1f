//! The program under test: the real xdp_firewall with compiled rules, as the agent loads it.

use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result};
use ebpfsentinel::abi::fw_tables;
use ebpfsentinel::bpf::program_facts;
use ebpfsentinel::bpf::tc_egress::TcEgress;
use ebpfsentinel::bpf::xdp_firewall::{ConnTimeouts, Switches, XdpFirewall};
use ebpfsentinel::classify::compile::{BothRows, Placed, compile_v4, compile_v6};
use ebpfsentinel::engines::firewall::maps::flow_turn;
use ebpfsentinel::engines::firewall::rule::Rule;

/// What the policy says beside the rules. Mode is always block.
#[derive(Clone, Copy)]
pub struct Policy {
    pub drop_unmatched: bool,
    pub stateful: bool,
}

/// The loaded objects.
pub struct Product {
    firewall: XdpFirewall,
    egress: TcEgress,
    generation: u32,
}

impl Product {
    pub fn load() -> Result<Product> {
        Product::load_with(&Switches::default())
    }

    /// With other switches than usual.
    pub fn load_with(switches: &Switches<'_>) -> Result<Product> {
        let firewall = XdpFirewall::load(switches)?;
        let egress = TcEgress::load(&firewall.connections()?, &firewall.misc_counts_map()?, &ConnTimeouts::default())?;
        Ok(Product { firewall, egress, generation: 0 })
    }

    pub fn program(&self) -> RawFd {
        self.firewall.program().as_raw_fd()
    }

    /// Compiles and swaps; the new rules judge when it returns. The policy holds what a host usually has: DHCP answers
    /// pass, SSH from two networks is guarded, one interface is known.
    pub fn apply(&mut self, policy: Policy, v4: &[Rule], v6: &[Rule]) -> Result<()> {
        self.generation += 1;
        let generation = self.generation;
        self.firewall
            .swap(|tables| {
                write_policy(tables, policy, generation);
                let [family_v4, family_v6] = &mut tables.family;
                let rows_v4 = compile_v4(&placed(v4), 0, family_v4, &mut tables.v4)?;
                let rows_v6 = compile_v6(&placed(v6), rows_v4.entries(), family_v6, &mut tables.v6)?;
                anyhow::Ok(BothRows { v4: rows_v4, v6: rows_v6 })
            })
            .context("swapping in a rule set")
    }

    /// Instructions that the verifier walked, by program.
    pub fn verified_instructions(&self) -> Result<Vec<(&'static str, u32)>> {
        Ok(vec![
            ("xdp_firewall", program_facts(self.firewall.program())?.verified_insns),
            ("tc_egress", program_facts(self.egress.program())?.verified_insns),
        ])
    }

    /// Memory of all maps, and of them the rows of the live generation.
    pub fn memory_bytes(&self) -> (u64, u64) {
        let maps = self.firewall.maps();
        let rows = maps.iter().filter(|map| map.name == "fw_rows").map(|map| map.bytes).sum();
        (maps.iter().map(|map| map.bytes).sum(), rows)
    }
}

fn placed(rules: &[Rule]) -> Vec<Placed<'_>> {
    rules
        .iter()
        .enumerate()
        .map(|(place, rule)| Placed {
            matches: &rule.matches,
            answer: rule.answer(place as u16),
            interfaces: Placed::ALL_INTERFACES,
        })
        .collect()
}

fn write_policy(tables: &mut fw_tables, wanted: Policy, generation: u32) {
    let policy = &mut tables.policy;
    *policy = Default::default();
    policy.generation = generation;
    policy.iface_multiplier = 0x9e37_79b1;
    policy.enforce = 1;
    policy.drop_unmatched = wanted.drop_unmatched.into();
    policy.drop_unparsable = wanted.drop_unmatched.into();
    policy.stateful = wanted.stateful.into();
    policy.dhcp = 1;
    policy.flow_turn = flow_turn(false).expect("a turn that depends on nothing");
    policy.guard.ports = 1;
    policy.guard.port[0] = 22;
    policy.guard.nets = 2;
    for (net, low) in policy.guard.net.iter_mut().zip([0xffff_c000_0201_u64, 0xffff_c633_6401]) {
        net.addr = [0, low];
        net.mask = [u64::MAX, u64::MAX];
    }
}
