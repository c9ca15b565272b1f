//! What xdp_firewall counted, all CPUs together.

use crate::abi::{fw_counts, fw_iface_count, fw_limits, fw_rule_count, fw_rule_note, fw_while};

/// Counters of a rule or reason.
#[derive(Clone, Copy, Debug, Default)]
pub struct RuleCount {
    /// Packets that it decided about.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
    /// The kernel's jiffies at the last of them, at most 16 ticks early; 0 when there was none.
    pub last_jiffies: u64,
}

/// Counters of all rules, reasons and interfaces.
#[derive(Clone, Debug)]
pub struct Counts {
    /// By slot of the rule; behind the slots by reason.
    pub rules: Vec<RuleCount>,
    /// By number of the interface.
    pub ifaces: Vec<fw_iface_count>,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            rules: vec![RuleCount::default(); fw_counts::FW_RULE_COUNTS.0 as usize],
            ifaces: vec![fw_iface_count::default(); fw_limits::FW_IFACES.0 as usize],
        }
    }
}

impl Counts {
    /// Adds what one CPU counted of a slot.
    pub(super) fn add_rule(&mut self, slot: usize, one: &fw_rule_count, note: &fw_rule_note) {
        let sum = &mut self.rules[slot];
        sum.packets += one.packets / u64::from(fw_while::FW_PACKET.0);
        sum.bytes += one.bytes;
        sum.last_jiffies = sum.last_jiffies.max(note.last_jiffies);
    }

    /// Adds what one CPU counted of an interface.
    pub(super) fn add_iface(&mut self, number: usize, one: &fw_iface_count) {
        let sum = &mut self.ifaces[number];
        sum.packets.iter_mut().zip(one.packets).for_each(|(sum, one)| *sum += one);
        sum.bytes.iter_mut().zip(one.bytes).for_each(|(sum, one)| *sum += one);
    }
}
