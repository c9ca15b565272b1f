//! Copies for rules with `mirror_to`: where each rule's packets go, and why some do not get there. Owns tc_mirror, which
//! runs on the guarded interfaces as long as some rule asks for it.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use anyhow::Result;

use super::config::loop_of;
use super::rule::Rule;
use crate::abi::mirror_loss;
use crate::bpf::tc_mirror::{Monitor, TcMirror};
use crate::bpf::{self, ProgramStatus, attach};
use crate::classify::interfaces::Port;
use crate::classify::slots::Slots;
use crate::metrics::MirrorCounters;

pub(super) use crate::bpf::tc_mirror::PROGRAM;

/// Packets without metadata that are taken for a few which were on their way when mirroring began.
const STRAYS_MAX: u64 = 64;

/// Words for the losses, in the order of `enum mirror_loss`.
const LOSSES: [&str; mirror_loss::MIRROR_LOSSES.0 as usize] = ["no_metadata", "no_interface", "mtu", "clone_failed"];

/// What is mirrored, and the program that does it.
pub(super) struct Mirroring {
    kernel: Option<TcMirror>,
    failure: Option<String>,
    /// Rules that mirror: name, slot, and to which interface.
    rules: Vec<(String, u16, String)>,
    /// Those interfaces, as the kernel knows them from here.
    found: BTreeMap<String, Option<u32>>,
}

impl Mirroring {
    /// Loads the program. Without it everything but mirroring goes on.
    pub(super) fn load() -> Mirroring {
        let (kernel, failure) = match TcMirror::load() {
            Ok(kernel) => (Some(kernel), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Mirroring { kernel, failure, rules: Vec::new(), found: BTreeMap::new() }
    }

    /// Whether some rule mirrors.
    pub(super) fn is_wanted(&self) -> bool {
        !self.rules.is_empty()
    }

    /// The program, if it is loaded and to be attached.
    pub(super) fn program(&self) -> Option<BorrowedFd<'_>> {
        self.kernel.as_ref().filter(|_| self.is_wanted()).map(TcMirror::program)
    }

    /// Before other rules come into force: packets without metadata are no loss if those mirror nothing.
    pub(super) fn prepare(&mut self, rules: &[&Rule]) {
        if let Some(kernel) = &mut self.kernel
            && !rules.iter().any(|rule| rule.is_mirroring())
        {
            kernel.set_active(false);
        }
    }

    /// Other rules are in force.
    pub(super) fn follow(&mut self, rules: &[&Rule], slots: &Slots, guarded: &[Port]) {
        let mirroring = rules.iter().filter(|rule| rule.is_mirroring());
        self.rules = mirroring
            .filter_map(|rule| Some((rule.id.clone(), slots.get(&rule.id)?, rule.mirror_to.clone()?)))
            .collect();
        self.look(guarded);
    }

    /// Looks for the interfaces anew.
    pub(super) fn look(&mut self, guarded: &[Port]) {
        let Some(kernel) = &mut self.kernel else { return };
        self.found.clear();
        let monitors: Vec<(u16, Monitor)> = self
            .rules
            .iter()
            .map(|(_, slot, name)| {
                let ifindex = *self.found.entry(name.clone()).or_insert_with(|| attach::ifindex(name));
                // By its index: an interface may have been renamed into a name that a rule has.
                let usable = ifindex.filter(|_| !guarded.iter().any(|port| port.ifindex == ifindex));
                (*slot, usable.map_or(Monitor::Absent, Monitor::Interface))
            })
            .collect();
        kernel.set_monitors(&monitors);
        let indexes: Vec<_> = guarded.iter().map(|port| port.ifindex).collect();
        if let Err(error) = kernel.set_interfaces(&indexes) {
            log::error!("what is mirrored counts for the wrong interface: {error:#}");
        }
    }

    /// The program is attached wherever it can be.
    pub(super) fn begin(&mut self) {
        let wanted = self.is_wanted();
        if let Some(kernel) = &mut self.kernel {
            kernel.set_active(wanted);
        }
    }

    /// What does not work as configured, a sentence each.
    pub(super) fn degraded(&self, guarded: &[Port]) -> Vec<String> {
        if !self.is_wanted() {
            return Vec::new();
        }
        if let Some(failure) = &self.failure {
            return vec![format!("{PROGRAM} is not loaded, so nothing is mirrored: {failure}")];
        }
        let names: Vec<String> = guarded.iter().map(|port| port.name.clone()).collect();
        let mut first_rules = BTreeMap::new();
        for (id, _, name) in &self.rules {
            first_rules.entry(name.as_str()).or_insert(id.as_str());
        }
        let of_monitors = first_rules.into_iter().filter_map(|(name, id)| {
            let what = loop_of(name, &names).or_else(|| match self.found.get(name).copied().flatten() {
                None => Some(format!("interface {name} does not exist, so nothing is mirrored to it")),
                Some(_) if !attach::is_up(name) => {
                    Some(format!("interface {name} is down, so nothing is mirrored to it; run: ip link set {name} up"))
                }
                Some(_) => None,
            })?;
            Some(format!("rule {id}: mirror_to: {what}"))
        });
        let mut reasons: Vec<String> = of_monitors.collect();
        for (port, count) in
            guarded.iter().zip(self.kernel.iter().flat_map(|kernel| kernel.counts().unwrap_or_default()))
        {
            let without = count.lost[mirror_loss::MIRROR_NO_METADATA.0 as usize];
            if without > STRAYS_MAX {
                reasons.push(format!(
                    "{}: {without} packets came without the metadata that mirroring goes by, so they have no copy; its \
                     driver has no room for metadata, or something between XDP and TC takes it away \
                     (agent.cpu_steering, on kernels whose CPUMAP does not carry it)",
                    port.name
                ));
            }
        }
        reasons
    }

    /// The program, for status.
    pub(super) fn status(&self, enabled: bool) -> ProgramStatus {
        ProgramStatus {
            name: PROGRAM,
            enabled: enabled && self.is_wanted(),
            facts: self.kernel.as_ref().and_then(|kernel| bpf::program_facts(kernel.program()).ok()),
            failure: self.failure.clone(),
            maps: self.kernel.as_ref().map_or_else(Vec::new, TcMirror::maps),
        }
    }

    /// What was counted on each interface, once there is something to count.
    pub(super) fn counters(&self, guarded: &[Port]) -> Result<Vec<MirrorCounters>> {
        let Some(kernel) = &self.kernel else { return Ok(Vec::new()) };
        let counts = kernel.counts()?;
        if !self.is_wanted() && counts.iter().all(|one| one.packets == 0 && one.lost.iter().all(|&lost| lost == 0)) {
            return Ok(Vec::new());
        }
        let of = guarded.iter().zip(counts).map(|(port, count)| MirrorCounters {
            interface: port.name.clone(),
            packets: count.packets,
            bytes: count.bytes,
            lost: LOSSES.into_iter().zip(count.lost).collect(),
        });
        Ok(of.collect())
    }
}
