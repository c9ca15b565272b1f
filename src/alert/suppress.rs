//! Suppressions: alerts of a rule, about a source or about all, that someone does not want to hear of for a while.
//!
//! The router asks them before anything else, so what they hide is in no store and in no stream; it is counted. Whoever
//! makes one keeps it on disk; here is what is in force.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Alert;
use crate::component::Component;

/// Most suppressions at a time.
pub const SUPPRESSIONS_MAX: usize = 10_000;

/// One suppression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Suppression {
    /// Unique; a newer one for the same rule and source has another.
    pub id: String,
    /// Whose alerts.
    pub component: Component,
    /// Alerts of this rule.
    pub rule_id: String,
    /// About this source; absent: about any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub src_ip: Option<IpAddr>,
    /// When it was made, in nanoseconds since 1970.
    pub created_ns: u64,
    /// It hides what happens before this time, in nanoseconds since 1970.
    pub until_ns: u64,
    /// Who made it.
    pub created_by: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Events that it hid since the agent started.
    #[serde(default)]
    pub hidden: u64,
}

/// There are [`SUPPRESSIONS_MAX`] already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {SUPPRESSIONS_MAX} suppressions, and that is the limit; remove some")]
pub struct Full;

/// What a suppression is found by.
type Key = (Component, Arc<str>, Option<IpAddr>);

struct Entry {
    made: Suppression,
    hidden: AtomicU64,
}

impl Entry {
    fn shown(&self) -> Suppression {
        Suppression { hidden: self.hidden.load(Ordering::Relaxed), ..self.made.clone() }
    }
}

/// Those in force: one for a rule and source. Shared by the router, which reads, and by whoever makes them.
#[derive(Default)]
pub struct Suppressions {
    entries: RwLock<HashMap<Key, Entry>>,
}

impl Suppressions {
    /// Whether an alert is hidden at `now_ns`. What is hidden is counted for the suppression.
    pub fn hides(&self, alert: &Alert, now_ns: u64) -> bool {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        if entries.is_empty() {
            return false;
        }
        let (component, rule) = (alert.component, &alert.rule_id);
        let of_source = alert.src_ip.map(|source| (component, rule.clone(), Some(source.to_canonical())));
        let of_all = Some((component, rule.clone(), None));
        let hiding = [of_source, of_all].into_iter().flatten().find_map(|key| {
            let entry = entries.get(&key)?;
            (now_ns < entry.made.until_ns).then_some(entry)
        });
        if let Some(entry) = hiding {
            entry.hidden.fetch_add(alert.count, Ordering::Relaxed);
        }
        hiding.is_some()
    }

    /// Puts one in force, in the place of one for the same rule and source, which is given back. Those that are over at
    /// `now_ns` make room.
    pub fn add(&self, suppression: Suppression, now_ns: u64) -> Result<Option<Suppression>, Full> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| now_ns < entry.made.until_ns);
        put(&mut entries, suppression)
    }

    /// Puts those in force that were kept, in their order, so that the last for a rule and source wins; not those that
    /// are over at `now_ns`, nor those for a rule and source that has one, which is newer. The answer is how many found
    /// no room.
    pub fn restore(&self, kept: Vec<Suppression>, now_ns: u64) -> usize {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| now_ns < entry.made.until_ns);
        let known: HashSet<Key> = entries.keys().cloned().collect();
        let new = kept.into_iter().filter(|one| now_ns < one.until_ns && !known.contains(&key_of(one)));
        new.filter_map(|one| put(&mut entries, one).err()).count()
    }

    /// Those in force at `now_ns`, in the order in which they were made.
    pub fn list(&self, now_ns: u64) -> Vec<Suppression> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            entries.values().filter(|entry| now_ns < entry.made.until_ns).map(|entry| entry.shown()).collect();
        all.sort_by(|one, other| (one.created_ns, &one.id).cmp(&(other.created_ns, &other.id)));
        all
    }

    /// Ends one, and gives it back if it was there.
    pub fn remove(&self, id: &str) -> Option<Suppression> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let key = entries.iter().find(|(_, entry)| entry.made.id == id).map(|(key, _)| key.clone())?;
        entries.remove(&key).map(|entry| entry.shown())
    }
}

fn key_of(suppression: &Suppression) -> Key {
    let source = suppression.src_ip.map(|source| source.to_canonical());
    (suppression.component, Arc::from(suppression.rule_id.as_str()), source)
}

fn put(entries: &mut HashMap<Key, Entry>, suppression: Suppression) -> Result<Option<Suppression>, Full> {
    let key = key_of(&suppression);
    if entries.len() >= SUPPRESSIONS_MAX && !entries.contains_key(&key) {
        return Err(Full);
    }
    let hidden = AtomicU64::new(0);
    let before = entries.insert(key, Entry { made: Suppression { hidden: 0, ..suppression }, hidden });
    Ok(before.map(|entry| entry.shown()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Severity;

    fn alert(rule: &str, src: Option<&str>) -> Alert {
        let mut alert = Alert::new(Component::Firewall, Severity::Low, rule, "deny", 5, "m");
        alert.src_ip = src.map(|src| src.parse().unwrap());
        alert.count = 3;
        alert
    }

    fn suppression(id: &str, src: Option<&str>, until_ns: u64) -> Suppression {
        Suppression {
            id: id.to_owned(),
            component: Component::Firewall,
            rule_id: "ssh".to_owned(),
            src_ip: src.map(|src| src.parse().unwrap()),
            created_ns: 1,
            until_ns,
            created_by: "test".to_owned(),
            comment: String::new(),
            hidden: 0,
        }
    }

    #[test]
    fn it_hides_its_rule_and_source_until_its_time() {
        let suppressions = Suppressions::default();
        let of_one = alert("ssh", Some("192.0.2.1"));
        assert!(!suppressions.hides(&of_one, 10));
        suppressions.add(suppression("a", Some("192.0.2.1"), 100), 1).unwrap();
        assert!(suppressions.hides(&of_one, 99));
        assert!(suppressions.hides(&alert("ssh", Some("::ffff:192.0.2.1")), 99), "the same address");
        assert!(!suppressions.hides(&of_one, 100), "its time is over");
        for other in [alert("ssh", Some("192.0.2.2")), alert("ssh", None), alert("web", Some("192.0.2.1"))] {
            assert!(!suppressions.hides(&other, 10), "{other:?}");
        }
        assert!(!suppressions.hides(&Alert { component: Component::L7, ..of_one.clone() }, 10));
        assert_eq!(suppressions.list(10)[0].hidden, 6);

        suppressions.add(suppression("b", None, 200), 1).unwrap();
        assert!(suppressions.hides(&of_one, 150), "that of all sources goes on");
        assert!(suppressions.hides(&alert("ssh", None), 150));
        let ids = |now| suppressions.list(now).into_iter().map(|one| one.id).collect::<Vec<_>>();
        assert_eq!((ids(99), ids(100), ids(200)), (vec!["a".into(), "b".into()], vec!["b".into()], vec![]));
        assert_eq!(suppressions.remove("b").map(|one| one.hidden), Some(6));
        assert_eq!(suppressions.remove("b"), None);
        assert!(!suppressions.hides(&of_one, 150));
    }

    #[test]
    fn there_is_one_for_a_rule_and_source_and_a_bound() {
        let suppressions = Suppressions::default();
        assert_eq!(suppressions.add(suppression("a", None, 100), 1), Ok(None));
        let before = suppressions.add(suppression("b", None, 300), 1).unwrap();
        assert_eq!(before.map(|one| one.id), Some("a".to_owned()));
        for n in 0..SUPPRESSIONS_MAX - 1 {
            let source = format!("10.0.{}.{}", n / 256, n % 256);
            suppressions.add(suppression(&format!("c{n}"), Some(&source), 100 + n as u64), 1).unwrap();
        }
        assert_eq!(suppressions.add(suppression("d", Some("192.0.2.1"), 100), 1), Err(Full));
        assert_eq!(suppressions.add(suppression("e", None, 100), 1).map(|one| one.unwrap().id), Ok("b".to_owned()));
        // At 110 eleven of them are over.
        assert_eq!(suppressions.add(suppression("d", Some("192.0.2.1"), 200), 110), Ok(None));
        assert_eq!(suppressions.list(110).len(), SUPPRESSIONS_MAX - 1 - 11 + 1);
    }

    #[test]
    fn those_that_were_kept_are_put_in_force_anew() {
        let suppressions = Suppressions::default();
        let hidden = alert("ssh", Some("192.0.2.1"));
        suppressions.add(suppression("a", Some("192.0.2.1"), 100), 1).unwrap();
        assert!(suppressions.hides(&hidden, 10));
        let mut kept = vec![
            suppression("a", Some("192.0.2.1"), 100),
            suppression("over", Some("192.0.2.2"), 5),
            suppression("b", Some("192.0.2.3"), 100),
            suppression("c", Some("192.0.2.3"), 100),
        ];
        assert_eq!(suppressions.restore(kept.clone(), 10), 0);
        let told = |one: Suppression| (one.id, one.hidden);
        let all: Vec<_> = suppressions.list(10).into_iter().map(told).collect();
        assert_eq!(all, [("a".to_owned(), 3), ("c".to_owned(), 0)], "what is known goes on, and the last one wins");
        let source = |n: usize| format!("10.1.{}.{}", n / 256, n % 256);
        kept.extend((0..SUPPRESSIONS_MAX).map(|n| suppression(&format!("d{n}"), Some(&source(n)), 100)));
        assert_eq!(suppressions.restore(kept, 10), 2);
        assert_eq!(suppressions.list(10).len(), SUPPRESSIONS_MAX);
    }
}
