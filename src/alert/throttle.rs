//! What bounds the number of alerts: an allowance for each rule and source, and a ceiling for all in a second. What they
//! withhold is counted, and a summary stands for it when the window is over.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Alert, Severity};
use crate::component::Component;

/// The action of a summary of what was withheld: what was done with each packet differs.
pub const WITHHELD: &str = "withheld";
/// The ceiling's summaries stand for so long.
pub const CEILING_WINDOW: Duration = Duration::from_secs(60);
/// Rules of which a summary tells what the ceiling withheld; of others it is only counted.
const CEILING_RULES_MAX: usize = 256;

/// Alerts of which nobody was told, as one.
#[derive(Debug)]
pub struct Withheld {
    /// Rule, technique and addresses as the first of them had them; count, times and severity are of all.
    alert: Box<Alert>,
}

impl Withheld {
    /// Adds one, to none at first.
    fn add(withheld: &mut Option<Withheld>, alert: Alert) {
        match withheld {
            None => *withheld = Some(Withheld { alert: Box::new(alert) }),
            Some(Withheld { alert: all }) => {
                all.count = all.count.saturating_add(alert.count);
                all.severity = all.severity.max(alert.severity);
                all.first_seen_ns = all.first_seen_ns.min(alert.first_seen_ns);
                all.last_seen_ns = all.last_seen_ns.max(alert.last_seen_ns);
            }
        }
    }

    /// The alert that stands for them. `about` says of whom they were, `key` which bound of the configuration withheld them.
    fn summary(self, src_ip: Option<IpAddr>, about: &str, key: &str) -> Alert {
        let all = *self.alert;
        let message = format!("{} more events of {} {about}, beyond alerting.{key}", all.count, all.rule_id);
        let mut summary = Alert::new(all.component, all.severity, all.rule_id, WITHHELD, all.first_seen_ns, message);
        summary.mitre = all.mitre;
        summary.src_ip = src_ip;
        summary.count = all.count;
        summary.last_seen_ns = all.last_seen_ns;
        summary
    }
}

/// Windows of one length, found by what they are of. The oldest ends first, and early if there are too many.
pub struct Windows<K, V> {
    known: HashMap<Arc<K>, V>,
    /// The keys of `known`, by the end of their windows.
    ends: VecDeque<(Instant, Arc<K>)>,
}

impl<K: Eq + Hash, V> Windows<K, V> {
    /// None is open.
    pub fn new() -> Windows<K, V> {
        Windows { known: HashMap::new(), ends: VecDeque::new() }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// What an open one holds.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.known.get(key)
    }

    /// What an open one holds.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.known.get_mut(key)
    }

    /// Opens one that is not open. It ends after all that are open.
    pub fn open(&mut self, key: Arc<K>, value: V, end: Instant) {
        self.known.insert(key.clone(), value);
        self.ends.push_back((end, key));
    }

    /// Ends the oldest, if it is over by `now`; with `None` in any case.
    pub fn end_oldest(&mut self, now: Option<Instant>) -> Option<(Arc<K>, V)> {
        let (end, _) = self.ends.front()?;
        if now.is_some_and(|now| now < *end) {
            return None;
        }
        let (_, key) = self.ends.pop_front()?;
        let value = self.known.remove(&key)?;
        Some((key, value))
    }

    /// Gives windows another length, also those that are open, so that they go on to end in their order.
    pub fn change_length(&mut self, old: Duration, new: Duration) {
        for (end, _) in &mut self.ends {
            *end = end.checked_sub(old).map_or(*end, |start| start + new);
        }
    }
}

/// Whose alerts have an allowance of their own.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Who {
    component: Component,
    rule_id: Arc<str>,
    /// One IPv6 host commands a whole /64.
    source: Option<IpAddr>,
}

impl Who {
    /// Whose an alert is.
    pub fn of(alert: &Alert) -> Who {
        let source = alert.src_ip.map(|address| match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
            v4 => v4,
        });
        Who { component: alert.component, rule_id: alert.rule_id.clone(), source }
    }
}

/// What of an allowance is used, and what it withheld.
#[derive(Debug, Default)]
pub struct Allowance {
    told: u32,
    withheld: Option<Withheld>,
}

/// The allowances of rules and sources.
pub struct Throttle {
    pub(super) windows: Windows<Who, Allowance>,
}

impl Throttle {
    /// Nobody has used any of his.
    pub fn new() -> Throttle {
        Throttle { windows: Windows::new() }
    }

    /// Whether there is an alert left in an allowance of `max`.
    pub fn has_room(&self, who: &Who, max: u32) -> bool {
        self.windows.get(who).is_none_or(|allowance| allowance.told < max)
    }

    /// Takes one out of an allowance; `end` is when a window that opens now is over. With `windows_max` open, the oldest
    /// ends early; the answer is the summary of what it withheld.
    pub fn take(&mut self, who: Who, end: Instant, windows_max: usize) -> Vec<Alert> {
        if let Some(allowance) = self.windows.get_mut(&who) {
            allowance.told += 1;
            return Vec::new();
        }
        let mut summaries = Vec::new();
        while self.windows.len() >= windows_max.max(1) {
            summaries.extend(self.end_oldest(None).flatten());
        }
        self.windows.open(Arc::new(who), Allowance { told: 1, withheld: None }, end);
        summaries
    }

    /// Notes an alert for which there was no room.
    pub fn withhold(&mut self, who: &Who, alert: Alert) {
        if let Some(allowance) = self.windows.get_mut(who) {
            Withheld::add(&mut allowance.withheld, alert);
        }
    }

    /// Ends the oldest window, if it is over by `now`; with `None` in any case. Inside: the summary of what was withheld.
    pub fn end_oldest(&mut self, now: Option<Instant>) -> Option<Option<Alert>> {
        let (who, allowance) = self.windows.end_oldest(now)?;
        let about = match who.source {
            Some(source @ IpAddr::V6(_)) => format!("from {source}/64"),
            Some(source) => format!("from {source}"),
            None => "without a source".to_owned(),
        };
        let source = allowance.withheld.as_ref().and_then(|withheld| withheld.alert.src_ip);
        Some(allowance.withheld.map(|withheld| withheld.summary(source, &about, "throttle_max")))
    }

    /// Gives windows another length.
    pub fn change_length(&mut self, old: Duration, new: Duration) {
        self.windows.change_length(old, new);
    }
}

/// How many alerts all together may begin in a second. A quarter of it is kept for those that are high or critical, so
/// that a flood of others does not hide them.
pub struct Ceiling {
    second_end: Instant,
    told: u32,
    withheld: HashMap<(Component, Arc<str>), Option<Withheld>>,
    window_end: Option<Instant>,
}

impl Ceiling {
    /// Nothing was told yet.
    pub fn new(now: Instant) -> Ceiling {
        Ceiling { second_end: now, told: 0, withheld: HashMap::new(), window_end: None }
    }

    /// Whether one more of this severity may be told now, of `max` in a second.
    pub fn has_room(&mut self, severity: Severity, max: u32, now: Instant) -> bool {
        if now >= self.second_end {
            (self.second_end, self.told) = (now + Duration::from_secs(1), 0);
        }
        let reserved = if severity >= Severity::High { 0 } else { max / 4 };
        self.told < max - reserved
    }

    /// Counts one that is told.
    pub fn take(&mut self) {
        self.told += 1;
    }

    /// Notes an alert for which there was no room.
    pub fn withhold(&mut self, alert: Alert, now: Instant) {
        self.window_end.get_or_insert(now + CEILING_WINDOW);
        let rule = (alert.component, alert.rule_id.clone());
        if self.withheld.len() < CEILING_RULES_MAX || self.withheld.contains_key(&rule) {
            Withheld::add(self.withheld.entry(rule).or_default(), alert);
        }
    }

    /// The summaries, one for each rule, if their window is over by `now`; with `None` in any case.
    pub fn end_window(&mut self, now: Option<Instant>) -> Vec<Alert> {
        if self.window_end.is_none_or(|end| now.is_some_and(|now| now < end)) {
            return Vec::new();
        }
        self.window_end = None;
        let withheld = self.withheld.drain().filter_map(|(_, withheld)| withheld);
        withheld.map(|withheld| withheld.summary(None, "from all sources", "max_alerts_per_second")).collect()
    }
}
