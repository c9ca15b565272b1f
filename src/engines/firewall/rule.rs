//! A firewall rule as the engine uses it: every field checked and in its own type.

use std::sync::Arc;

use crate::abi::fw_answer;
use crate::classify::matching::Match;

pub use crate::classify::rules::Action;

/// One rule of the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique name, `[A-Za-z0-9_-]`, 1 to 64 characters.
    pub id: String,
    /// Whose rule it is: operators of this namespace may change it. Without one it is the admins'.
    pub namespace: Option<String>,
    /// Lower numbers are asked first; from 1. Equal priorities keep the order in which they were written.
    pub priority: u32,
    /// A rule that is switched off is kept and shown, and never matches.
    pub enabled: bool,
    /// What to do with a packet that matches.
    pub action: Action,
    /// Record each packet that matches, whatever the action. Always true for [`Action::Log`].
    pub log: bool,
    /// Which packets those are.
    pub matches: Match,
    /// Interface that a copy of each packet that passes by this rule is sent to. Never of a rule that denies.
    pub mirror_to: Option<String>,
    /// What it is a sign of: ids of MITRE ATT&CK techniques, at most 16.
    pub mitre: Vec<Arc<str>>,
    /// Free text for people, at most 256 characters.
    pub description: String,
}

impl Rule {
    /// Whether copies of its packets are sent somewhere.
    pub fn is_mirroring(&self) -> bool {
        self.enabled && self.mirror_to.is_some()
    }

    /// What a hit tells the kernel, as bits of `enum fw_answer`. `slot` is the rule's counter.
    pub fn answer(&self, slot: u16) -> u32 {
        let flag = |on: bool, flag: fw_answer| if on { flag.0 } else { 0 };
        u32::from(slot) & fw_answer::FW_SLOT_MASK.0
            | flag(self.action == Action::Deny, fw_answer::FW_DENY)
            | flag(self.log || self.action == Action::Log, fw_answer::FW_TELL)
    }
}
