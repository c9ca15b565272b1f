//! The audit trail: who changed what, when, and what came of it, also of those who were refused.
//!
//! Section `[audit]`; routes under `/api/v1/audit`. Entries are numbered and chained: each holds the SHA-256 of the one
//! before ([`chain`]), so that one that was changed, taken out or put in shows. They are kept in a file of their own
//! ([`store`]), with the history of each rule, which goes on over restarts ([`run`]). Sensitive values never get here:
//! what an operation notes is what the API shows, and there secrets are masked.

pub mod api;
pub mod budget;
pub mod chain;
pub mod config;
pub mod run;
pub mod store;
pub mod verify;

use std::collections::HashMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::Note;
use crate::component::Component;
use crate::store::now_ns;

/// Longest text of an entry's detail, in bytes.
pub const DETAIL_MAX: usize = 512;
/// Longest name of an actor, an operation or a rule, in bytes.
pub const NAME_MAX: usize = 256;
/// Longest value before or after a change, in bytes of JSON.
pub const VALUE_MAX: usize = 32 << 10;

/// The operation of entries about the start of a run.
pub const AGENT_START: &str = "agent start";
/// The operation of the entry about its end.
pub const AGENT_STOP: &str = "agent stop";

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The name of the API key, the token's subject, or `config_reload` or `agent` for the agent itself.
    pub name: String,
    /// The role that it had; empty for none.
    pub role: String,
    /// Where it called from; `None` over a Unix socket, and for the agent itself.
    pub address: Option<IpAddr>,
    /// How it said who it is: the kind of credential; `none` without one.
    pub method: String,
}

impl Actor {
    /// The agent itself: a reload by signal or file, a change that nobody confirmed.
    pub fn config_reload() -> Actor {
        Actor { name: "config_reload".to_owned(), role: "admin".to_owned(), address: None, method: "local".to_owned() }
    }

    /// The agent itself: its start, its stop, and the trail's own entries.
    pub fn agent() -> Actor {
        Actor { name: "agent".to_owned(), ..Actor::config_reload() }
    }
}

/// Something that was done, or refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Who.
    pub actor: Actor,
    /// The operation's command, such as `firewall add`.
    pub operation: String,
    /// Of which component.
    pub component: Option<Component>,
    /// The rule that it was about.
    pub rule: Option<String>,
    /// What there was; `None`: nothing.
    pub before: Option<Value>,
    /// What there is now; `None`: nothing.
    pub after: Option<Value>,
    /// The HTTP status that was answered.
    pub outcome: u16,
    /// For people: the error, or what else there is to say.
    pub detail: String,
}

impl Entry {
    /// An entry of now, about no rule.
    pub fn new(actor: Actor, operation: impl Into<String>, outcome: u16, detail: impl Into<String>) -> Entry {
        Entry {
            time_ns: now_ns(),
            actor,
            operation: operation.into(),
            component: None,
            rule: None,
            before: None,
            after: None,
            outcome,
            detail: detail.into(),
        }
    }

    /// With what changed.
    pub fn with(self, note: Note) -> Entry {
        let Note { component, rule, before, after } = note;
        Entry { component, rule, before, after, ..self }
    }

    /// What sort of thing was done.
    pub fn action(&self) -> Action {
        match (self.outcome, &self.rule, &self.before, &self.after) {
            (401 | 403 | 429, ..) => Action::PolicyViolation,
            (400.., ..) => Action::Failed,
            _ if self.operation.starts_with("alerts ") => Action::FalsePositive,
            (_, Some(_), None, Some(_)) => Action::RuleAdded,
            (_, Some(_), Some(_), None) => Action::RuleRemoved,
            (_, Some(_), Some(_), Some(_)) => Action::RuleUpdated,
            _ if self.operation.starts_with("config ") => Action::ConfigChanged,
            // Keys that are other than in the last run.
            (_, None, Some(_), Some(_)) if self.operation == AGENT_START => Action::ConfigChanged,
            _ => Action::Operation,
        }
    }
}

/// What sort of thing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The configuration changed.
    ConfigChanged,
    /// There is a rule that was not there.
    RuleAdded,
    /// A rule is another.
    RuleUpdated,
    /// A rule is no more.
    RuleRemoved,
    /// An alert was marked, or what the mark hides was changed.
    FalsePositive,
    /// Somebody was not let in, or not allowed to; see [`budget`].
    PolicyViolation,
    /// It was allowed and did not work; see [`budget`].
    Failed,
    /// Something else that changes things.
    Operation,
    /// The trail itself: entries that retention removed, or that were lost, a file that was damaged, an end that is
    /// missing.
    Trail,
}

impl Action {
    /// The words of the API, in the order of the variants.
    pub const WORDS: &'static [&'static str] = &[
        "config_changed",
        "rule_added",
        "rule_updated",
        "rule_removed",
        "false_positive",
        "policy_violation",
        "failed",
        "operation",
        "trail",
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        Action::WORDS[self as usize]
    }
}

/// Takes entries; never fails, and waits for a moment at most.
pub trait Auditor: Send + Sync {
    /// Keeps the entry, or counts it as lost.
    fn record(&self, entry: Entry);
}

/// Keeps nothing: `audit.enabled = false`.
#[derive(Debug)]
pub struct NoAuditor;

impl Auditor for NoAuditor {
    fn record(&self, _: Entry) {}
}

/// At most `max` bytes of a text, cut between characters; a cut text ends in `…`, which is among them.
pub fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..end])
}

/// A value that is short enough to be kept; one that is not, as the beginning of its text.
pub fn cut_value(value: Value) -> Value {
    let text = value.to_string();
    if text.len() <= VALUE_MAX { value } else { Value::String(cut(&text, VALUE_MAX)) }
}

/// One key that changed.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Change {
    /// The key, with dots where values are in values.
    pub key: String,
    /// What it was; `null` where it was absent.
    pub before: Value,
    /// What it is; `null` where it is absent.
    pub after: Value,
}

/// The keys in which two values differ.
pub fn changes(before: Option<&Value>, after: Option<&Value>) -> Vec<Change> {
    let mut found = Vec::new();
    compare("", before.unwrap_or(&Value::Null), after.unwrap_or(&Value::Null), &mut found);
    found
}

fn compare(key: &str, before: &Value, after: &Value, found: &mut Vec<Change>) {
    if before == after {
        return;
    }
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    let nothing = serde_json::Map::new();
    let map = |value: &'_ Value| value.as_object().cloned();
    let (olds, news) = match (map(before), map(after)) {
        (Some(olds), Some(news)) => (olds, news),
        // What appears or goes is told key by key, too.
        (Some(olds), None) if after.is_null() => (olds, nothing),
        (None, Some(news)) if before.is_null() => (nothing, news),
        _ => {
            found.push(Change { key: key.to_owned(), before: before.clone(), after: after.clone() });
            return;
        }
    };
    for (name, old) in &olds {
        compare(&below(name), old, news.get(name).unwrap_or(&Value::Null), found);
    }
    for (name, new) in news.iter().filter(|(name, _)| !olds.contains_key(*name)) {
        compare(&below(name), &Value::Null, new, found);
    }
}

/// What a reload, or a restart, changed: a note for each rule of a section that came, went or is another, and one for all
/// other keys.
/// Both are the configuration as it is shown, secrets masked.
pub fn config_changes(before: &Value, after: &Value) -> Vec<Note> {
    let mut notes = Vec::new();
    for component in Component::ALL {
        let rules = |config: &Value| match &config[component.name()]["rules"] {
            Value::Array(rules) => rules.clone(),
            _ => Vec::new(),
        };
        let (olds, news) = (rules(before), rules(after));
        let by_id = |rules: &[Value]| -> HashMap<String, Value> {
            // Ids are unique. There may be thousands.
            rules.iter().filter_map(|rule| Some((rule["id"].as_str()?.to_owned(), rule.clone()))).collect()
        };
        let (olds_by_id, news_by_id) = (by_id(&olds), by_id(&news));
        let note =
            |id: &str, before, after| Note { component: Some(*component), rule: Some(id.to_owned()), before, after };
        for old in &olds {
            let Some(id) = old["id"].as_str() else { continue };
            let new = news_by_id.get(id);
            if new != Some(old) {
                notes.push(note(id, Some(old.clone()), new.cloned()));
            }
        }
        for new in &news {
            let Some(id) = new["id"].as_str() else { continue };
            if !olds_by_id.contains_key(id) {
                notes.push(note(id, None, Some(new.clone())));
            }
        }
    }
    let without_rules = |config: &Value| {
        let mut config = config.clone();
        for component in Component::ALL {
            if let Some(section) = config[component.name()].as_object_mut() {
                section.remove("rules");
            }
        }
        config
    };
    let keys = changes(Some(&without_rules(before)), Some(&without_rules(after)));
    if !keys.is_empty() {
        let side = |of: fn(&Change) -> &Value| {
            Some(Value::Object(keys.iter().map(|change| (change.key.clone(), of(change).clone())).collect()))
        };
        let (before, after) = (side(|change| &change.before), side(|change| &change.after));
        notes.push(Note { component: None, rule: None, before, after });
    }
    notes
}

/// The JSON Schema of any value.
pub(crate) fn any_value(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::Schema::try_from(json!(true)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        for (text, max, want) in [
            ("abc", 3, "abc"),
            ("abcdef", 5, "ab…"),
            // 511 bytes of ASCII and then a character of two bytes, which the original cut in half and panicked.
            ("ää", 3, "…"),
            ("aäää", 6, "aä…"),
            ("😀😀", 7, "😀…"),
            ("😀😀", 6, "…"),
            ("", 0, ""),
        ] {
            assert_eq!(cut(text, max), want, "{text} {max}");
        }
        let long = format!("{}ä{}", "x".repeat(511), "y".repeat(100));
        let short = cut(&long, DETAIL_MAX);
        assert!(short.len() <= DETAIL_MAX && short.ends_with('…'));
        assert_eq!(cut_value(json!({"a": "b"})), json!({"a": "b"}));
        let large = cut_value(json!({"a": "ä".repeat(VALUE_MAX)}));
        assert!(large.as_str().is_some_and(|text| text.starts_with("{\"a\":\"ä") && text.len() <= VALUE_MAX));
    }

    #[test]
    fn the_action_follows_from_what_was_done() {
        let entry = |operation: &str, outcome| Entry::new(Actor::config_reload(), operation, outcome, "");
        let rule = |before: Option<i32>, after: Option<i32>| Note {
            component: Some(Component::Firewall),
            rule: Some("r".to_owned()),
            before: before.map(Value::from),
            after: after.map(Value::from),
        };
        let add = || entry("firewall add", 201);
        for (entry, action) in [
            (add().with(rule(None, Some(1))), "rule_added"),
            (add().with(rule(Some(1), Some(2))), "rule_updated"),
            (add().with(rule(Some(1), None)), "rule_removed"),
            (entry("firewall add", 409).with(rule(None, Some(1))), "failed"),
            (entry("firewall add", 403), "policy_violation"),
            (entry("config show", 401), "policy_violation"),
            (entry("config reload", 200), "config_changed"),
            (entry("config reload", 200).with(rule(None, Some(1))), "rule_added"),
            (entry("alerts mark-fp", 200), "false_positive"),
            (entry("explain", 200), "operation"),
            (entry("agent start", 200), "operation"),
            (entry("agent start", 200).with(rule(None, Some(1))), "rule_added"),
            (
                entry("agent start", 200).with(Note { component: None, rule: None, ..rule(Some(1), Some(2)) }),
                "config_changed",
            ),
            (entry("agent stop", 200), "operation"),
        ] {
            assert_eq!(entry.action().name(), action, "{entry:?}");
        }
        for word in Action::WORDS {
            let action: Action = serde_json::from_value(json!(word)).unwrap();
            assert_eq!((action.name(), serde_json::to_value(action).unwrap()), (*word, json!(word)));
        }
    }

    #[test]
    fn changes_name_the_keys() {
        let told = |before: Option<Value>, after: Option<Value>| {
            let all = changes(before.as_ref(), after.as_ref());
            all.iter().map(|c| format!("{}: {} -> {}", c.key, c.before, c.after)).collect::<Vec<_>>()
        };
        let (old, new) =
            (json!({"a": 1, "b": {"c": [1], "d": 2}}), json!({"b": {"c": [1, 2], "d": 2}, "e": null, "f": 3}));
        assert_eq!(told(Some(old.clone()), Some(new)), ["a: 1 -> null", "b.c: [1] -> [1,2]", "f: null -> 3"]);
        assert_eq!(told(None, Some(json!({"id": "x"}))), ["id: null -> \"x\""]);
        assert_eq!(told(Some(json!({"id": "x"})), None), ["id: \"x\" -> null"]);
        assert_eq!(told(Some(old.clone()), Some(old)), Vec::<String>::new());
    }

    #[test]
    fn a_reload_is_told_by_rule_and_by_key() {
        let config = |mode: &str, rules: Value| json!({"agent": {"a": 1}, "firewall": {"mode": mode, "rules": rules}});
        let (a, b, b2, c) = (json!({"id": "a"}), json!({"id": "b"}), json!({"id": "b", "x": 1}), json!({"id": "c"}));
        let notes = config_changes(&config("alert", json!([a, b])), &config("block", json!([b2, c])));
        let note = |id: &str, before: Option<&Value>, after: Option<&Value>| Note {
            component: Some(Component::Firewall),
            rule: Some(id.to_owned()),
            before: before.cloned(),
            after: after.cloned(),
        };
        let keys = Note {
            component: None,
            rule: None,
            before: Some(json!({"firewall.mode": "alert"})),
            after: Some(json!({"firewall.mode": "block"})),
        };
        assert_eq!(notes, [note("a", Some(&a), None), note("b", Some(&b), Some(&b2)), note("c", None, Some(&c)), keys]);
        assert_eq!(config_changes(&config("alert", json!([a])), &config("alert", json!([a]))), []);
    }
}
