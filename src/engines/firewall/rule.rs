//! A firewall rule as the engine uses it: every field checked and in its own type.

use std::str::FromStr;

use crate::abi::fw_answer;
use crate::classify::matching::Match;

/// What a rule wishes for a packet that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Let the packet go on.
    Allow,
    /// Drop the packet (in `mode = "block"`).
    Deny,
    /// Let the packet go on and record it.
    Log,
}

impl Action {
    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Log => "log",
        }
    }
}

impl FromStr for Action {
    type Err = String;

    /// `allow`/`pass`, `deny`/`drop`/`block`, `log`.
    fn from_str(s: &str) -> Result<Action, String> {
        match s {
            "allow" | "pass" => Ok(Action::Allow),
            "deny" | "drop" | "block" => Ok(Action::Deny),
            "log" => Ok(Action::Log),
            _ => Err(format!("\"{s}\" is not an action; use allow, deny or log")),
        }
    }
}

/// One rule of the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique name, `[A-Za-z0-9_-]`, 1 to 64 characters.
    pub id: String,
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
