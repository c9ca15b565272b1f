//! How many attempts that came to nothing get an entry of their own.
//!
//! Whoever may not enter, or whose requests are all bad, must not fill the trail and so push out what was done before.
//! There is an allowance for each actor and address, and one for all of them, for those who were refused and for those
//! who failed apart. It comes back slowly: what is told in a day at most is a twentieth of a million entries. Attempts
//! beyond it are counted, and told together once a minute: none is lost silently.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Action, Actor, Entry, cut};
use crate::api::whose;

/// How long attempts are counted together.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Entries of all together.
const ALL: Limit = Limit { most: 100, refill: 10 };
/// Entries of one actor from one address.
const ONE: Limit = Limit { most: 30, refill: 3 };

/// An allowance, and how much of it comes back with each window.
struct Limit {
    most: u32,
    refill: u32,
}

/// Those who were refused, and those who failed.
#[derive(Debug)]
pub struct Budget {
    /// When what was withheld is told; `None` while the allowances are whole.
    end: Option<Instant>,
    refused: Sort,
    failed: Sort,
}

/// What is left of the allowances for attempts of one sort.
#[derive(Debug)]
struct Sort {
    left: u32,
    /// Who had an entry a while ago: no more than have the allowance of all, over the windows in which theirs comes
    /// back.
    ones: HashMap<(String, Option<IpAddr>), One>,
    others: Withheld,
}

#[derive(Debug)]
struct One {
    left: u32,
    withheld: Withheld,
}

#[derive(Debug, Default)]
struct Withheld {
    count: u64,
    /// For people: the last of them.
    last: String,
}

impl Default for Budget {
    fn default() -> Budget {
        let sort = || Sort { left: ALL.most, ones: HashMap::new(), others: Withheld::default() };
        Budget { end: None, refused: sort(), failed: sort() }
    }
}

impl Budget {
    /// Whether an entry is written for itself. What changed something always is.
    pub fn admit(&mut self, entry: &Entry, now: Instant) -> bool {
        let sort = match entry.action() {
            Action::PolicyViolation => &mut self.refused,
            Action::Failed => &mut self.failed,
            _ => return true,
        };
        self.end.get_or_insert(now + WINDOW);
        sort.admit(entry)
    }

    /// What the others of a window that is over at `now` share.
    pub fn summaries(&mut self, now: Instant) -> Vec<Entry> {
        if self.end.is_none_or(|end| now < end) {
            return Vec::new();
        }
        let mut told = self.refused.end("refused attempts", 429, "were refused");
        told.extend(self.failed.end("failed attempts", 400, "failed"));
        self.end = [&self.refused, &self.failed].iter().any(|sort| !sort.is_whole()).then_some(now + WINDOW);
        told
    }
}

impl Sort {
    fn admit(&mut self, entry: &Entry) -> bool {
        let name = cut(&entry.actor.name, 100);
        let key = (name, entry.actor.address.map(whose));
        match self.ones.get_mut(&key) {
            Some(one) if one.left == 0 => {
                one.withheld.add(format!("{}, answered {}", entry.operation, entry.outcome));
                return false;
            }
            _ if self.left == 0 => {
                self.others.add(format!("{} by {}", entry.operation, who(&key.0, entry.actor.address)));
                return false;
            }
            Some(one) => one.left -= 1,
            None => drop(self.ones.insert(key, One { left: ONE.most - 1, withheld: Withheld::default() })),
        }
        self.left -= 1;
        true
    }

    fn is_whole(&self) -> bool {
        self.left == ALL.most && self.ones.is_empty()
    }

    fn end(&mut self, operation: &str, outcome: u16, what: &str) -> Vec<Entry> {
        let actor = || Actor { name: "agent".to_owned(), ..Actor::config_reload() };
        let entry = |withheld: Withheld, by: String| {
            let Withheld { count, last } = withheld;
            let text = format!("{count} more attempts{by} {what} in the same minute, the last one: {last}");
            (count > 0).then(|| Entry::new(actor(), operation, outcome, text))
        };
        let mut told = Vec::new();
        for ((name, address), one) in &mut self.ones {
            told.extend(entry(std::mem::take(&mut one.withheld), format!(" by {}", who(name, *address))));
            one.left = ONE.most.min(one.left + ONE.refill);
        }
        told.extend(entry(std::mem::take(&mut self.others), String::new()));
        self.ones.retain(|_, one| one.left < ONE.most);
        self.left = ALL.most.min(self.left + ALL.refill);
        told
    }
}

impl Withheld {
    fn add(&mut self, last: String) {
        self.count += 1;
        self.last = last;
    }
}

fn who(name: &str, address: Option<IpAddr>) -> String {
    format!("{name}{}", address.map(|address| format!(" from {address}")).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(name: &str, address: &str, outcome: u16) -> Entry {
        let address = Some(address.parse().unwrap());
        let actor = Actor { name: name.into(), role: "operator".into(), address, method: "api_key".into() };
        Entry::new(actor, "firewall add", outcome, "")
    }

    fn admitted(budget: &mut Budget, entry: &Entry, attempts: usize, now: Instant) -> usize {
        (0..attempts).filter(|_| budget.admit(entry, now)).count()
    }

    #[test]
    fn who_fails_a_lot_leaves_room_for_others_and_all_are_counted() {
        let start = Instant::now();
        let minute = |n: u32| start + WINDOW * n;
        let mut budget = Budget::default();
        let (anna, bob) = (attempt("anna", "2001:db8::1", 400), attempt("bob", "192.0.2.1", 404));
        assert_eq!(admitted(&mut budget, &anna, 1000, start), 30);
        // All of the network are the same; another name, another way to come to nothing, and success are not.
        assert_eq!(admitted(&mut budget, &attempt("anna", "2001:db8::2", 409), 50, start), 0);
        assert_eq!(admitted(&mut budget, &bob, 29, start), 29);
        assert_eq!(admitted(&mut budget, &attempt("anna", "2001:db8::1", 403), 30, start), 30);
        assert_eq!(admitted(&mut budget, &attempt("anna", "2001:db8::1", 201), 1000, start), 1000);
        assert!(budget.summaries(minute(1) - Duration::from_millis(1)).is_empty());
        let told = |entries: Vec<Entry>| entries.into_iter().map(|one| (one.action(), one.detail)).collect::<Vec<_>>();
        let text = "1020 more attempts by anna from 2001:db8:: failed in the same minute, the last one: firewall add, \
                    answered 409";
        assert_eq!(told(budget.summaries(minute(1))), [(Action::Failed, text.to_owned())]);
        // It comes back slowly.
        assert_eq!(admitted(&mut budget, &anna, 100, minute(1)), 3);
        assert_eq!(budget.summaries(minute(2)).len(), 1);
        for n in 2..12 {
            assert!(budget.summaries(minute(n + 1)).is_empty(), "{n}");
        }
        assert_eq!((budget.end, budget.failed.ones.len(), budget.refused.ones.len()), (None, 0, 0));
        assert_eq!(admitted(&mut budget, &anna, 100, minute(20)), 30);
    }

    #[test]
    fn many_together_have_a_bound_and_so_have_those_who_are_known() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let (mut admitted, mut told) = (0, 0);
        for minute in 0..60u32 {
            let now = start + WINDOW * minute;
            told += budget.summaries(now).len();
            for n in 0..500u32 {
                let address = std::net::Ipv4Addr::from(minute * 500 + n).to_string();
                admitted += usize::from(budget.admit(&attempt("anonymous", &address, 401), now));
            }
            assert!(budget.refused.ones.len() <= 200, "{}", budget.refused.ones.len());
        }
        // A hundred at first, then ten with each minute, and one that tells of the others.
        assert_eq!((admitted, told), (100 + 59 * 10, 59));
    }
}
