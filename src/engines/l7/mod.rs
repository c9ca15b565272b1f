//! Judges what applications say to each other. Owns the rules; the inspection workers apply them.
//!
//! Section `[l7]`; routes under `/api/v1/firewall/l7-rules`. A worker hands each transaction of its flows to
//! [`judge::Judge`], a pure function of rules, flow and transaction; the same is done by `replay`. What a denied flow
//! suffers (the kernel's block table, resets) is the worker's business, and it says so when it makes the alert
//! ([`alerts`]). This thread compiles rules and swaps them whole.
//!
//! - `rule` and `config` are what a rule is and how it is written; `view` and `normal` what a transaction says, as a server
//!   would see it; `tally` what was counted.

pub mod alerts;
pub mod api;
pub mod config;
pub mod judge;
pub mod normal;
pub mod rule;
pub mod tally;
pub mod view;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use arc_swap::ArcSwap;

use self::alerts::Enforcement;
use self::api::RuleView;
use self::config::{L7Config, RULES_MAX};
use self::judge::{DEFAULT_RULE, Hit, Judge};
use self::rule::{Protocol, Rule};
use self::tally::Tally;
use crate::classify::rules::Mode;
use crate::component::Component;
use crate::flow::Flow;
use crate::metrics::{L7Counters, L7RuleCounters, Metrics};
use crate::ruled::store::Store;
use crate::ruled::{Book, ChangeError, RuleOwner, Source};
use crate::supervise::Owned;

/// What is in force, for those who apply it.
#[derive(Debug)]
pub struct Ruling {
    /// The rules.
    pub judge: Judge,
    /// Whether flows are blocked.
    pub mode: Mode,
    /// Whether both ends of a blocked TCP connection are reset.
    pub tcp_reset: bool,
}

impl Ruling {
    /// What a section says, without rules of an API: for `replay`.
    ///
    /// # Errors
    /// See [`Judge::compile`].
    pub fn of(config: &L7Config) -> Result<Ruling> {
        let book = Book { file: &config.rules, added: &[] };
        let judge = Judge::compile(book.in_order(), &config.default_action, &mut Tally::default())?;
        Ok(Ruling { judge, mode: config.mode, tcp_reset: config.tcp_reset })
    }

    /// Whether a hit's flow is to be blocked.
    pub fn blocks(&self, hit: &Hit) -> bool {
        self.mode == Mode::Block && hit.wants_block()
    }

    /// Whether a flow that was blocked because of a rule is to be blocked again.
    pub fn blocks_again(&self, rule: &str, protocol: Protocol) -> bool {
        self.mode == Mode::Block && self.judge.denies(rule, protocol)
    }

    /// What becomes of a hit's flow; `block` blocks it, where that is to be and can be.
    pub fn enforce(&self, hit: &Hit, flow: &Flow, block: impl FnOnce() -> Enforcement) -> Enforcement {
        if !self.blocks(hit) {
            Enforcement::NotWanted
        } else if flow.is_tunnelled {
            Enforcement::Tunnelled
        } else if flow.is_finished {
            Enforcement::TooLate
        } else {
            block()
        }
    }
}

/// How the engine starts.
pub struct Start {
    /// Its section.
    pub config: L7Config,
    /// Where rules made through the API are kept.
    pub store: Store<Rule>,
    /// The agent's metrics.
    pub metrics: Arc<Metrics>,
}

/// Rules and mode at one moment, to go back to.
#[derive(Clone, Debug)]
pub struct Snapshot {
    config: L7Config,
    added: Vec<Rule>,
}

/// The engine.
pub struct L7 {
    config: L7Config,
    added: Vec<Rule>,
    store: Store<Rule>,
    tally: Tally,
    ruling: Arc<ArcSwap<Ruling>>,
    metrics: Arc<Metrics>,
}

impl L7 {
    /// Puts the rules of the section, and those made through the API, in force.
    pub fn start(start: Start) -> Result<L7> {
        let Start { config, store, metrics } = start;
        let added = store.load()?;
        Book { file: &config.rules, added: &added }.warn_of_hidden();
        let mut tally = Tally::default();
        let judge = Judge::compile([], &config.default_action, &mut tally)?;
        let ruling = Arc::new(ArcSwap::from_pointee(Ruling { judge, mode: config.mode, tcp_reset: config.tcp_reset }));
        let mut l7 = L7 { config: config.clone(), added: Vec::new(), store, tally, ruling, metrics };
        l7.apply(config, added)?;
        Ok(l7)
    }

    /// What is in force, now and after each change: workers load it for each transaction.
    pub fn ruling(&self) -> Arc<ArcSwap<Ruling>> {
        self.ruling.clone()
    }

    /// Makes rules and mode live, or changes nothing.
    fn apply(&mut self, config: L7Config, added: Vec<Rule>) -> Result<()> {
        let book = Book { file: &config.rules, added: &added };
        book.check_count(RULES_MAX).map_err(anyhow::Error::msg)?;
        let rules = book.in_order();
        let mut tally = self.tally.keeping(rules.iter().map(|rule| rule.id.as_str()).chain([DEFAULT_RULE]));
        let earlier = self.ruling.load();
        let judge = Judge::compile_after(Some(&earlier.judge), rules, &config.default_action, &mut tally)?;
        self.metrics.set_rules_loaded(Component::L7, judge.rule_count());
        self.ruling.store(Arc::new(Ruling { judge, mode: config.mode, tcp_reset: config.tcp_reset }));
        (self.config, self.added, self.tally) = (config, added, tally);
        Ok(())
    }

    /// Takes a new section, or changes nothing.
    ///
    /// # Errors
    /// A rule of the section has the name of one that was made through the API.
    pub fn replace(&mut self, config: L7Config) -> Result<()> {
        self.book().refuse_names_of_added(&config.rules)?;
        self.apply(config, self.added.clone())
    }

    /// Rules in force, those made through the API included.
    pub fn rule_count(&self) -> usize {
        self.book().in_order().len()
    }

    /// What was counted, for Prometheus.
    pub fn counters(&self) -> L7Counters {
        let actions = self.book().in_order().into_iter().map(|rule| (rule.id.as_str(), rule.action.name()));
        let counted = actions.map(|(rule, action)| (rule, action, self.tally.read(rule)));
        let mut rules: Vec<L7RuleCounters> = counted
            .map(|(rule, action, count)| L7RuleCounters {
                rule: rule.to_owned(),
                action,
                matches: count.hits,
                blocked_flows: count.enforced,
            })
            .collect();
        let default = self.tally.read(DEFAULT_RULE);
        if default.hits > 0 {
            let (matches, blocked_flows) = (default.hits, default.enforced);
            rules.push(L7RuleCounters { rule: DEFAULT_RULE.to_owned(), action: "default", matches, blocked_flows });
        }
        L7Counters { rules, scan_failures: self.ruling.load().judge.scan_failures() }
    }
}

impl RuleOwner for L7 {
    type Rule = Rule;
    type Counts = ();
    type View = RuleView;
    type Snapshot = Snapshot;

    fn book(&self) -> Book<'_, Rule> {
        Book { file: &self.config.rules, added: &self.added }
    }

    fn store(&self) -> &Store<Rule> {
        &self.store
    }

    fn rules_max(&self) -> usize {
        RULES_MAX
    }

    fn check(&self, _rule: &Rule) -> Result<(), ChangeError> {
        Ok(())
    }

    fn replace_added(&mut self, added: Vec<Rule>) -> Result<()> {
        self.apply(self.config.clone(), added)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot { config: self.config.clone(), added: self.added.clone() }
    }

    fn restore(&mut self, snapshot: Snapshot) -> Result<()> {
        self.apply(snapshot.config, snapshot.added)
    }

    fn counts(&self) -> Result<()> {
        Ok(())
    }

    fn view(&self, (): &(), rule: &Rule, source: Source) -> RuleView {
        RuleView::new(rule, source, self.tally.read(&rule.id))
    }
}

impl Owned for L7 {
    type Event = Infallible;

    fn event(&mut self, event: Infallible, _now: Instant) {
        match event {}
    }
}

#[cfg(test)]
mod tests;
