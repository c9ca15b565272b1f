//! What rules did: counters that any number of inspection workers move, and that outlive every change of the rules.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one rule.
#[derive(Debug, Default)]
pub struct RuleCounts {
    hits: AtomicU64,
    enforced: AtomicU64,
    last_hit_ns: AtomicU64,
}

impl RuleCounts {
    /// The rule decided a transaction, at a time in nanoseconds since 1970.
    pub fn hit(&self, time_ns: u64) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.last_hit_ns.fetch_max(time_ns, Ordering::Relaxed);
    }

    /// A flow was blocked because of it.
    pub fn enforced(&self) {
        self.enforced.fetch_add(1, Ordering::Relaxed);
    }

    /// What they are now.
    pub fn read(&self) -> RuleCount {
        let last_hit_ns = self.last_hit_ns.load(Ordering::Relaxed);
        RuleCount {
            hits: self.hits.load(Ordering::Relaxed),
            enforced: self.enforced.load(Ordering::Relaxed),
            last_hit_ns: (last_hit_ns != 0).then_some(last_hit_ns),
        }
    }
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// Transactions that the rule decided.
    pub hits: u64,
    /// Of them, those whose flow was blocked.
    pub enforced: u64,
    /// When the last one was, in nanoseconds since 1970.
    pub last_hit_ns: Option<u64>,
}

/// The counters of all rules, by their names.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    of: HashMap<String, Arc<RuleCounts>>,
}

impl Tally {
    /// The counters of a rule; new ones if it has none.
    pub fn of(&mut self, id: &str) -> Arc<RuleCounts> {
        self.of.entry(id.to_owned()).or_default().clone()
    }

    /// What was counted of a rule.
    pub fn read(&self, id: &str) -> RuleCount {
        self.of.get(id).map(|counts| counts.read()).unwrap_or_default()
    }

    /// The same counters without those of rules that are gone.
    pub fn keeping<'r>(&self, ids: impl Iterator<Item = &'r str>) -> Tally {
        let kept = ids.filter_map(|id| Some((id.to_owned(), self.of.get(id)?.clone())));
        Tally { of: kept.collect() }
    }
}
