//! The start of a run: what is in force other than in the last one, so that each rule's history is true over restarts.
//!
//! The trail's file keeps the configuration of the last run, secrets masked, beside the entries. Of a rule the history
//! knows best how it was: a change by the API that nobody confirmed is in it, and so is what was written after the
//! configuration was kept. What retention took from the history is as the configuration says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use serde_json::Value;

use super::store::{ENTRIES, HISTORY, decoded};
use super::{Entry, config_changes};
use crate::component::Component;
use crate::store::db::DbError;
use crate::store::existing;

/// `"last"` -> the configuration in force, secrets masked, as JSON.
const CONFIG: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("config");
const LAST: &str = "last";

/// A run that begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// What is told of the start; each change is told by another entry like it.
    pub entry: Entry,
    /// The configuration in force, secrets masked.
    pub config: Value,
    /// Of each engine that runs the rules that were made through the API, as the API shows them.
    pub added: Vec<(Component, Vec<Value>)>,
}

/// What the agent tells the writer of the configuration. Nobody waits for the file to be open.
#[derive(Default)]
pub(super) struct Told(Mutex<Waiting>);

#[derive(Default)]
pub(super) struct Waiting {
    /// Once, at the start.
    pub run: Option<Run>,
    /// The configuration in force, if it is another one since.
    pub config: Option<Value>,
}

impl Told {
    pub fn change(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn take(&self) -> Waiting {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the file knows of the runs before.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The configuration of the last one; `None`: there was none.
    config: Option<Value>,
    /// By component and id the newest version of each rule; `None`: it was removed.
    rules: HashMap<(String, String), Option<Value>>,
}

impl Known {
    pub fn read(read: &ReadTransaction) -> Result<Known, DbError> {
        let mut known = Known::default();
        if let Some(table) = existing(read.open_table(CONFIG))? {
            known.config = table.get(LAST)?.and_then(|value| serde_json::from_slice(value.value()).ok());
        }
        let Some(history) = existing(read.open_table(HISTORY))? else { return Ok(known) };
        let entries = read.open_table(ENTRIES)?;
        // Versions of a rule come in their order.
        let mut newest = HashMap::<Vec<u8>, u64>::new();
        for item in history.iter()? {
            let (key, seq) = item?;
            let rule = key.value().split_last_chunk::<8>().map_or(&[][..], |(rule, _)| rule);
            match newest.get_mut(rule) {
                Some(known) => *known = seq.value(),
                None => drop(newest.insert(rule.to_vec(), seq.value())),
            }
        }
        for seq in newest.into_values() {
            // One that cannot be read is told of to who asks for it.
            let Some(record) = entries.get(seq)?.and_then(|value| decoded(value.value())) else { continue };
            if let Some((rule, component)) = record.rule() {
                let name = (component.to_owned(), rule.to_owned());
                known.rules.insert(name, record.after);
            }
        }
        Ok(known)
    }

    /// The entries of a run that begins after that: its start, and what is other than it was.
    pub fn entries(&self, run: &Run) -> Vec<Entry> {
        let mut before = self.config.clone().unwrap_or_default();
        // As it was read, so is it compared: by way of its text.
        let mut after: Value = serde_json::from_str(&run.config.to_string()).unwrap_or_default();
        for component in Component::ALL {
            let added = run.added.iter().find(|(of, _)| of == component).map(|(_, rules)| rules.as_slice());
            let (was, is) = self.rules_of(*component, &before, &after, added);
            for (config, rules) in [(&mut before, was), (&mut after, is)] {
                // What has no section has no rules either.
                if config[component.name()].is_object() || !rules.is_empty() {
                    config[component.name()]["rules"] = rules.into();
                }
            }
        }
        let notes = config_changes(&before, &after);
        let (found, detail) = match (&self.config, notes.len()) {
            (Some(_), 0) => ("the configuration is that of the last run".to_owned(), ""),
            (Some(_), count) => (format!("{count} changes since the last run"), "changed since the last run"),
            (None, _) => ("the trail knows no run before".to_owned(), "in force at the first start"),
        };
        let start = Entry { detail: format!("{}; {found}", run.entry.detail), ..run.entry.clone() };
        let change = |note| Entry { detail: detail.to_owned(), ..run.entry.clone() }.with(note);
        std::iter::once(start).chain(notes.into_iter().map(change)).collect()
    }

    /// The rules of a component as they were at the end of the last run, and as they are; `added` with an engine that runs.
    fn rules_of(
        &self,
        component: Component,
        before: &Value,
        after: &Value,
        added: Option<&[Value]>,
    ) -> (Vec<Value>, Vec<Value>) {
        let rules = |config: &Value| config[component.name()]["rules"].as_array().cloned().unwrap_or_default();
        let id = |rule: &Value| rule["id"].as_str().unwrap_or_default().to_owned();
        let mut is = rules(after);
        let mut ids: HashSet<String> = is.iter().map(id).collect();
        let mut was: BTreeMap<String, Value> = rules(before).into_iter().map(|rule| (id(&rule), rule)).collect();
        for rule in added.unwrap_or_default() {
            // A rule of the API rests while one of the file has its name.
            if ids.insert(id(rule)) {
                is.push(rule.clone());
                // When it was made is not known any more, but it was not now.
                was.entry(id(rule)).or_insert_with(|| rule.clone());
            }
        }
        for ((_, id), newest) in self.rules.iter().filter(|((of, _), _)| of == component.name()) {
            match newest {
                None => drop(was.remove(id)),
                // What is neither in the file nor the engine's is gone. Rules of an engine that does not run only rest.
                Some(rule) if rule.is_object() && (added.is_some() || was.contains_key(id) || ids.contains(id)) => {
                    was.insert(id.clone(), rule.clone());
                }
                // It was too long to be kept whole.
                Some(_) => {}
            }
        }
        (was.into_values().collect(), is)
    }
}

/// Keeps the configuration in force for the next start.
pub(super) fn keep(write: &WriteTransaction, config: &Value) -> Result<(), DbError> {
    write.open_table(CONFIG)?.insert(LAST, config.to_string().as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::audit::Actor;

    const FIREWALL: Component = Component::Firewall;

    fn run(mode: &str, rules: Value, added: &[Value]) -> Run {
        Run {
            entry: Entry::new(Actor::agent(), "agent start", 200, "v"),
            config: json!({"agent": {"a": 1}, "firewall": {"mode": mode, "rules": rules}}),
            added: vec![(FIREWALL, added.to_vec())],
        }
    }

    fn told(known: &Known, run: &Run) -> Vec<String> {
        let show = |value: &Option<Value>| value.as_ref().map_or("-".to_owned(), Value::to_string);
        let entries = known.entries(run);
        assert!(entries.iter().all(|entry| entry.operation == "agent start" && entry.outcome == 200));
        let text = |entry: &Entry| match (&entry.rule, &entry.before) {
            (None, None) => entry.detail.clone(),
            _ => format!("{} {} {}", entry.action().name(), show(&entry.before), show(&entry.after)),
        };
        entries.iter().map(text).collect()
    }

    fn known(config: Option<&Run>, rules: &[(&str, Option<Value>)]) -> Known {
        let name = |id: &str| ("firewall".to_owned(), id.to_owned());
        let rules = rules.iter().map(|(id, rule)| (name(id), rule.clone())).collect();
        Known { config: config.map(|run| run.config.clone()), rules }
    }

    #[test]
    fn a_start_tells_what_is_other_than_in_the_last_run() {
        let (deny, log) = (json!({"id": "r", "action": "deny"}), json!({"id": "r", "action": "log"}));
        let first = run("alert", json!([log]), &[]);
        let all = told(&known(None, &[]), &first);
        assert_eq!(all[0], "v; the trail knows no run before");
        assert_eq!(all[1], format!("rule_added - {log}"));
        let keys = r#"{"agent.a":1,"firewall.mode":"alert"}"#;
        assert_eq!(all[2..], [format!("config_changed {} {keys}", r#"{"agent.a":null,"firewall.mode":null}"#)]);

        // A crash loop adds one entry a start.
        let same = ["v; the configuration is that of the last run"];
        assert_eq!(told(&known(Some(&first), &[("r", Some(log.clone()))]), &first), same);
        // Also when retention has taken the history.
        assert_eq!(told(&known(Some(&first), &[]), &first), same);

        let second = run("block", json!([deny]), &[]);
        let all = told(&known(Some(&first), &[]), &second);
        let keys = r#"config_changed {"firewall.mode":"alert"} {"firewall.mode":"block"}"#;
        assert_eq!(all[0], "v; 2 changes since the last run");
        assert_eq!(all[1..], [format!("rule_updated {log} {deny}"), keys.to_owned()]);
        let none = run("block", json!([]), &[]);
        assert_eq!(told(&known(Some(&second), &[]), &none)[1..], [format!("rule_removed {deny} -")]);
    }

    #[test]
    fn the_history_knows_best_how_a_rule_was() {
        let (deny, log) = (json!({"id": "r", "action": "deny"}), json!({"id": "r", "action": "log"}));
        let denying = run("alert", json!([deny]), &[]);
        // The entry of the reload was lost, or the configuration was not kept any more.
        let all = told(&known(Some(&denying), &[("r", Some(log.clone()))]), &denying);
        assert_eq!(all[1..], [format!("rule_updated {log} {deny}")]);
        let all = told(&known(Some(&denying), &[("r", None)]), &denying);
        assert_eq!(all[1..], [format!("rule_added - {deny}")]);
        // Too long to be kept whole.
        assert_eq!(told(&known(Some(&denying), &[("r", Some(json!("{\"id\":\"r\"…")))]), &denying).len(), 1);
    }

    #[test]
    fn rules_of_the_api_are_compared_with_their_history() {
        let (deny, log) = (json!({"id": "r", "action": "deny"}), json!({"id": "r", "action": "log"}));
        let without = run("alert", json!([]), &[]);
        let with = run("alert", json!([]), std::slice::from_ref(&deny));
        assert_eq!(told(&known(Some(&with), &[("r", Some(deny.clone()))]), &with).len(), 1);
        // Made before the trail began.
        assert_eq!(told(&known(Some(&with), &[]), &with).len(), 1);
        // Added, changed and deleted on trial, and killed before it was confirmed.
        let all = told(&known(Some(&without), &[("r", Some(deny.clone()))]), &without);
        assert_eq!(all[1..], [format!("rule_removed {deny} -")]);
        let all = told(&known(Some(&without), &[("r", Some(log.clone()))]), &with);
        assert_eq!(all[1..], [format!("rule_updated {log} {deny}")]);
        let all = told(&known(Some(&without), &[("r", None)]), &with);
        assert_eq!(all[1..], [format!("rule_added - {deny}")]);
        // The file takes its name: it rests.
        let taken = run("alert", json!([log]), std::slice::from_ref(&deny));
        let all = told(&known(Some(&without), &[("r", Some(deny.clone()))]), &taken);
        assert_eq!(all[1..], [format!("rule_updated {deny} {log}")]);
        // An engine that does not run says nothing about them.
        let off = Run { added: Vec::new(), ..without.clone() };
        assert_eq!(told(&known(Some(&without), &[("r", Some(deny))]), &off).len(), 1);
    }
}
