//! Which rule counts where.

use std::collections::HashMap;

use anyhow::{Context, Result};

use crate::abi::fw_limits;

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

    /// The slots for the rules of these names: those that had one keep it. Also tells which are new and have to be
    /// cleared.
    pub fn next<'r>(&self, ids: impl Iterator<Item = &'r str> + Clone) -> Result<(Slots, Vec<u16>)> {
        let mut of = HashMap::new();
        let mut taken = vec![false; fw_limits::FW_SLOTS.0 as usize];
        for id in ids.clone() {
            if let Some(slot) = self.get(id) {
                of.insert(id.to_owned(), slot);
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
        for id in ids {
            if !of.contains_key(id) {
                let slot = free.pop().or_else(|| given_up.pop()).context("no counter is left for a rule")?;
                of.insert(id.to_owned(), slot);
                fresh.push(slot);
            }
        }
        Ok((Slots { of }, fresh))
    }
}
