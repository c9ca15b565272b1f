//! What xdp_firewall counted, all CPUs together.

use crate::abi::{fw_counts, fw_flow, fw_iface_count, fw_limits, fw_rule_count};

/// Counters of all rules, reasons and interfaces.
#[derive(Clone, Debug)]
pub struct Counts {
    /// By slot of the rule; behind the slots by reason.
    pub rules: Vec<fw_rule_count>,
    /// By number of the interface.
    pub ifaces: Vec<fw_iface_count>,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            rules: vec![fw_rule_count::default(); fw_counts::FW_RULE_COUNTS.0 as usize],
            ifaces: vec![fw_iface_count::default(); fw_limits::FW_IFACES.0 as usize],
        }
    }
}

impl Counts {
    /// Adds what one CPU counted of a slot.
    pub(super) fn add_rule(&mut self, slot: usize, one: &fw_rule_count) {
        let sum = &mut self.rules[slot];
        sum.packets += one.packets;
        sum.bytes += one.bytes;
        sum.last_jiffies = sum.last_jiffies.max(one.last_jiffies);
    }

    /// Adds what one CPU counted of an interface.
    pub(super) fn add_iface(&mut self, number: usize, one: &fw_iface_count) {
        let sum = &mut self.ifaces[number];
        sum.packets.iter_mut().zip(one.packets).for_each(|(sum, one)| *sum += one);
        sum.bytes.iter_mut().zip(one.bytes).for_each(|(sum, one)| *sum += one);
    }

    /// Adds what an entry of the flow cache keeps. Its numbers come from the kernel and may be torn: none is trusted.
    pub(super) fn add_flow(&mut self, flow: &fw_flow) {
        let (packets, cell) = (u64::from(flow.packets), usize::from(flow.cell));
        let (Some(rule), Some(iface)) =
            (self.rules.get_mut(usize::from(flow.slot)), self.ifaces.get_mut(usize::from(flow.iface)))
        else {
            return;
        };
        if flow.packets == 0 || cell >= iface.packets.len() {
            return;
        }
        rule.packets += packets;
        rule.bytes += flow.bytes;
        iface.packets[cell] += packets;
        iface.bytes[cell] += flow.bytes;
    }

    /// Takes over whatever is larger: a counter never goes back.
    pub(super) fn rise_to(&mut self, now: &Counts) {
        for (shown, now) in self.rules.iter_mut().zip(&now.rules) {
            shown.packets = shown.packets.max(now.packets);
            shown.bytes = shown.bytes.max(now.bytes);
            shown.last_jiffies = shown.last_jiffies.max(now.last_jiffies);
        }
        for (shown, now) in self.ifaces.iter_mut().zip(&now.ifaces) {
            shown.packets.iter_mut().zip(now.packets).for_each(|(shown, now)| *shown = now.max(*shown));
            shown.bytes.iter_mut().zip(now.bytes).for_each(|(shown, now)| *shown = now.max(*shown));
        }
    }
}
