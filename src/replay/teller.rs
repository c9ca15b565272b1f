//! Who is told by the inspector in a replay: makes lines of it, and counts.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use super::eve::{Alert, Eve};
use super::summary::Summary;
use crate::alert::Severity;
use crate::classify::rules::Action;
use crate::engines::l7::Ruling;
use crate::engines::l7::judge::{Decided, Hit, Scratch};
use crate::flow::{Anomaly, EndReason, Flow, Reaction, Watcher};
use crate::packet::proto::{Fact, Stage, Told};

/// Rules, and what judging by them needs.
struct Rules {
    ruling: Ruling,
    scratch: Scratch,
    /// Of each flow that had a transaction, while it lasts.
    decided: HashMap<u64, Decided>,
}

/// The watcher of a replay.
pub struct Teller<'o> {
    eve: Eve,
    out: Option<&'o mut dyn Write>,
    events: bool,
    packet: u64,
    now_ns: u64,
    /// Flows that a rule hit, while they last.
    alerted: HashSet<u64>,
    error: Option<io::Error>,
    rules: Option<Rules>,
    /// What was counted.
    pub summary: Summary,
}

impl<'o> Teller<'o> {
    /// Lines go to `out`, if there is one.
    pub fn new(out: Option<&'o mut dyn Write>, events: bool, ruling: Option<Ruling>) -> Teller<'o> {
        let rules = |ruling| Rules { ruling, scratch: Scratch::default(), decided: HashMap::new() };
        Teller {
            eve: Eve::default(),
            out,
            events,
            packet: 0,
            now_ns: 0,
            alerted: HashSet::new(),
            error: None,
            rules: ruling.map(rules),
            summary: Summary::default(),
        }
    }

    /// The next packet is looked at, at this time.
    pub fn set_packet(&mut self, time_ns: u64) {
        self.packet += 1;
        self.eve.set_packet(self.packet);
        self.now_ns = self.now_ns.max(time_ns);
    }

    /// Whether the output takes no more.
    pub fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    /// What was counted, unless the output failed. A reader that went away (`| head`) is no failure.
    pub fn finish(self) -> io::Result<Summary> {
        match self.error {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(self.summary),
        }
    }

    /// Judges a transaction, and tells of what is not allowed. Nothing is blocked: a capture is over.
    fn judge(&mut self, flow: &Flow, time_ns: u64, told: &Told) {
        let Some(Rules { ruling, scratch, decided }) = &mut self.rules else { return };
        let Some(hit) = decided.entry(flow.id).or_default().judge(&ruling.judge, scratch, flow, told) else { return };
        if hit.action == Action::Allow {
            return;
        }
        let rule = format!("l7 {}", hit.rule);
        self.summary.count_alert(&rule);
        self.alerted.insert(flow.id);
        if self.out.is_some() {
            let line = self.eve.alert(flow, time_ns, &alert_of(&hit), Some(told));
            put(&mut self.out, &mut self.error, &mut self.summary.lines, line);
        }
    }

    fn has_lines(&self) -> bool {
        self.events && self.out.is_some()
    }
}

/// A hit as EVE shows it.
fn alert_of(hit: &Hit) -> Alert<'_> {
    Alert {
        is_blocked: false,
        component: "l7",
        rule: &hit.rule,
        rule_action: hit.action.name(),
        signature_id: None,
        signature: &hit.rule,
        category: hit.protocol.name(),
        severity: match hit.severity {
            Severity::Critical => 1,
            Severity::High => 2,
            Severity::Medium => 3,
            Severity::Low => 4,
        },
        matched: hit.field.as_ref().map(|_| &hit.matched[..]),
    }
}

/// Writes a line; after the first failure none.
fn put(out: &mut Option<&mut dyn Write>, error: &mut Option<io::Error>, lines: &mut u64, line: &[u8]) {
    if let (Some(out), None) = (out, &error) {
        match out.write_all(line) {
            Ok(()) => *lines += 1,
            Err(failure) => *error = Some(failure),
        }
    }
}

impl Watcher for Teller<'_> {
    fn transaction(&mut self, flow: &Flow, time_ns: u64, told: &Told) -> Reaction {
        self.judge(flow, time_ns, told);
        // A query of DNS has a line of its own: that of its response says nothing of when it was asked, and may not
        // come.
        let is_due = told.stage == Stage::Done || matches!(told.fact, Fact::Dns(_));
        if is_due && self.has_lines() {
            let line = self.eve.transaction(flow, time_ns, told);
            put(&mut self.out, &mut self.error, &mut self.summary.lines, line);
        }
        Reaction::GoOn
    }

    fn anomaly(&mut self, flow: Option<&Flow>, anomaly: &Anomaly) {
        self.summary.count_anomaly(anomaly);
        if self.has_lines() {
            let line = self.eve.anomaly(flow, anomaly);
            put(&mut self.out, &mut self.error, &mut self.summary.lines, line);
        }
    }

    fn ended(&mut self, flow: &Flow, why: EndReason) {
        self.summary.count_flow(flow);
        if let Some(rules) = &mut self.rules {
            rules.decided.remove(&flow.id);
        }
        let alerted = !self.alerted.is_empty() && self.alerted.remove(&flow.id);
        if self.has_lines() {
            let line = self.eve.flow(flow, why, self.now_ns, alerted);
            put(&mut self.out, &mut self.error, &mut self.summary.lines, line);
        }
    }
}
