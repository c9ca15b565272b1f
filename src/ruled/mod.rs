//! Rules and who owns them: what every engine with rules does alike.
//!
//! An engine has rules of the configuration file and rules made through the API, and asks them as one list ([`Book`]).
//! The API lists, shows, adds, replaces and deletes them, if wanted with confirmation (`api`); those of the API survive
//! in a file ([`store::Store`]). What differs stands in the engine: how a rule is read and shown ([`AnyRule`]), how it
//! comes into force, and what is counted of it ([`RuleOwner`]).

pub mod api;
pub mod body;
pub mod book;
pub mod store;

use schemars::JsonSchema;
use serde::Serialize;

pub use self::book::{Book, Source};
use self::store::Store;
use crate::bpf::offload;
use crate::classify::matching::Match;
use crate::classify::rules::check_counts;
use crate::classify::text::Surroundings;
use crate::supervise::Owned;
use crate::written::Reader;

/// A rule of some engine.
pub trait AnyRule: Clone + Send + 'static {
    /// The rule as it is shown, and as a body describes it.
    type Text: Serialize + JsonSchema;

    /// File of the rules made through the API, in the agent's state directory.
    const FILE: &'static str;

    /// Reads one rule. `None` means that errors were noted; there may be errors besides a rule.
    fn read(reader: Reader<'_>, surroundings: Surroundings<'_>) -> Option<Self>;

    /// The rule as it is shown; read again, it is equal.
    fn text(&self) -> Self::Text;

    /// Its unique name.
    fn id(&self) -> &str;

    /// Whose rule it is: who may change it, see [`crate::api::Namespaces`].
    fn namespace(&self) -> Option<&str>;

    /// Lower numbers are asked first.
    fn priority(&self) -> u32;

    /// A rule that is switched off is kept and shown, and never matches.
    fn is_enabled(&self) -> bool;

    /// Which packets it is about.
    fn matches(&self) -> &Match;

    /// Whether there are at most `max` rules: of each family, as far as the kernel's tables go.
    fn check_count(rules: &mut dyn Iterator<Item = &Self>, max: usize) -> Result<(), String> {
        check_counts(rules.map(Self::matches), max)
    }
}

/// Why a change of rules was refused.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// No rule of that name was made through the API.
    #[error("rule \"{0}\" not found")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    Taken(String),
    /// The rule does not fit here.
    #[error("{0}")]
    Unfit(String),
    /// The kernel or the disk refused.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// An engine with rules.
pub trait RuleOwner: Owned {
    /// Its rules.
    type Rule: AnyRule;
    /// What was counted of all rules at one moment.
    type Counts;
    /// A rule with what it did, as the API shows it.
    type View: Serialize + Send + 'static;
    /// All that a change of rules changes, at one moment, to go back to.
    type Snapshot: Clone + Send + 'static;

    /// The rules in force.
    fn book(&self) -> Book<'_, Self::Rule>;

    /// Where rules made through the API are kept.
    fn store(&self) -> &Store<Self::Rule>;

    /// Most rules; see [`AnyRule::check_count`].
    fn rules_max(&self) -> usize;

    /// Whether the surroundings give what a rule asks for; see [`check_surroundings`].
    fn check(&self, rule: &Self::Rule) -> Result<(), ChangeError>;

    /// Puts other rules of the API in force, or changes nothing. Does not save them.
    fn replace_added(&mut self, added: Vec<Self::Rule>) -> anyhow::Result<()>;

    /// Everything as it is now.
    fn snapshot(&self) -> Self::Snapshot;

    /// Goes back to an earlier moment. What is saved on disk is not touched.
    fn restore(&mut self, snapshot: Self::Snapshot) -> anyhow::Result<()>;

    /// What was counted up to now.
    fn counts(&self) -> anyhow::Result<Self::Counts>;

    /// Shows a rule with what it did.
    fn view(&self, counts: &Self::Counts, rule: &Self::Rule, source: Source) -> Self::View;

    /// Saves the rules that were made through the API.
    fn save(&self) -> anyhow::Result<()> {
        self.store().save(self.book().added)
    }

    /// Changes the rules of the API, and saves them unless the change waits for its confirmation. A change that cannot
    /// be saved is taken back.
    fn change(&mut self, added: Vec<Self::Rule>, save: bool) -> Result<(), ChangeError> {
        let next = Book { file: self.book().file, added: &added };
        next.check_count(self.rules_max()).map_err(ChangeError::Unfit)?;
        let before = self.snapshot();
        self.replace_added(added)?;
        if save && let Err(error) = self.save() {
            self.restore(before)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Adds rules, all or none of them.
    fn add(&mut self, rules: Vec<Self::Rule>, save: bool) -> Result<(), ChangeError> {
        let added = self.book().with(rules, |rule| self.check(rule))?;
        self.change(added, save)
    }

    /// Puts a rule in the place of the one that has its name.
    fn update(&mut self, rule: Self::Rule, save: bool) -> Result<(), ChangeError> {
        self.check(&rule)?;
        let added = self.book().with_changed(rule)?;
        self.change(added, save)
    }

    /// Removes a rule.
    fn delete(&mut self, id: &str, save: bool) -> Result<(), ChangeError> {
        let added = self.book().without(id)?;
        self.change(added, save)
    }

    /// So many rules in the order in which they are asked, after the first `offset`, with what they did.
    fn list(&self, limit: usize, offset: usize) -> anyhow::Result<Vec<Self::View>> {
        let counts = self.counts()?;
        let some = self.book().in_order_with_source().into_iter().skip(offset).take(limit);
        Ok(some.map(|(rule, source)| self.view(&counts, rule, source)).collect())
    }

    /// The rule of a name with what it did, if it is in force.
    fn show(&self, id: &str) -> anyhow::Result<Option<Self::View>> {
        let Some((rule, source)) = self.book().in_order_with_source().into_iter().find(|(rule, _)| rule.id() == id)
        else {
            return Ok(None);
        };
        Ok(Some(self.view(&self.counts()?, rule, source)))
    }
}

/// Refuses a rule that asks for what its surroundings do not give.
pub fn check_surroundings<R: AnyRule>(rule: &R, surroundings: Surroundings<'_>) -> Result<(), ChangeError> {
    match rule.matches().clashes(surroundings).first() {
        Some((key, message)) => Err(ChangeError::Unfit(format!("rule {}: {key}: {message}", rule.id()))),
        None => Ok(()),
    }
}

/// Why rules about VLAN tags do not do on an interface what they say. Asked anew each time: the user may have changed its
/// offloads meanwhile.
pub fn hidden_tags<R: AnyRule>(book: &Book<'_, R>, interface: &str) -> Option<String> {
    let is_concerned = |rule: &&R| {
        let Match { vlan_id, interfaces, .. } = rule.matches();
        let applies = interfaces.is_empty() || interfaces.iter().any(|name| name == interface);
        rule.is_enabled() && vlan_id.is_some() && applies
    };
    let rule = book.in_order().into_iter().find(is_concerned)?;
    // A driver without ethtool operations has no offloads either.
    let hiders = offload::tag_hiders(interface).unwrap_or_default();
    let off = hiders.iter().map(|name| format!(" {name} off")).collect::<String>();
    (!hiders.is_empty()).then(|| {
        format!(
            "takes VLAN tags out of frames before XDP sees them, so that rule {} takes tagged packets for untagged ones; \
             run: ethtool -K {interface}{off}",
            rule.id()
        )
    })
}
