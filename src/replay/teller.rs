//! Who is told by the firewall and the inspector in a replay: makes lines of it, blocks, and counts.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;

use super::blocks::ReplayBlocks;
use super::eve::{Alert, Eve};
use super::summary::Summary;
use super::wall::Notice;
use crate::alert::Severity;
use crate::bpf::blocks::BlockedFlow;
use crate::classify::rules::Action;
use crate::component::Component;
use crate::engines::firewall::alerts::severity_of;
use crate::engines::l7::Ruling;
use crate::engines::l7::alerts::Enforcement;
use crate::engines::l7::judge::{Decided, Hit, Scratch};
use crate::eve::alert::Head;
use crate::event::Outcome;
use crate::flow::{Anomaly, EndReason, Flow, Reaction, Watcher};
use crate::packet::frame::protocol::TCP;
use crate::packet::proto::{Fact, Stage, Told};

/// How long a verdict of the firewall has one line for all that is like it, in nanoseconds of the capture: as long as the
/// agent folds alerts unless told otherwise.
const FOLD_NS: u64 = 60_000_000_000;
/// Verdicts that are told apart at a time; then all are told anew.
const FOLDS_MAX: usize = 65_536;

/// What makes verdicts alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    rule: Arc<str>,
    outcome: &'static str,
    ends: [Option<IpAddr>; 2],
    dst_port: u16,
    protocol: u8,
}

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
    /// Flows that were blocked just now, and whose ends the agent would reset.
    reset: Vec<u64>,
    /// Verdicts that had a line, and until when that stands for others.
    folds: HashMap<Kind, u64>,
    /// What is blocked.
    pub blocks: ReplayBlocks,
    /// What was counted.
    pub summary: Summary,
}

impl<'o> Teller<'o> {
    /// Lines go to `out`, if there is one; flows that `ruling` refuses are blocked in `blocks`.
    pub fn new(
        out: Option<&'o mut dyn Write>,
        events: bool,
        ruling: Option<Ruling>,
        blocks: ReplayBlocks,
    ) -> Teller<'o> {
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
            reset: Vec::new(),
            folds: HashMap::new(),
            blocks,
            summary: Summary::default(),
        }
    }

    /// The next packet is looked at, at this time.
    pub fn set_packet(&mut self, time_ns: u64) {
        self.packet += 1;
        self.eve.set_packet(self.packet);
        self.now_ns = self.now_ns.max(time_ns);
    }

    /// Connections that were reset since this was asked before.
    pub fn take_reset(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.reset)
    }

    /// The latest time of the capture so far.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
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

    /// Tells a verdict of the firewall: a line for the first one of its kind in a minute.
    pub fn verdict(&mut self, Notice { verdict, rule, rule_action }: &Notice) {
        self.summary.count_alert(&format!("{} {rule}", Component::Firewall.name()));
        if self.out.is_none() {
            return;
        }
        let kind = Kind {
            rule: rule.clone(),
            outcome: verdict.outcome.name(),
            ends: [verdict.src, verdict.dst],
            dst_port: verdict.dst_port,
            protocol: verdict.protocol,
        };
        if self.folds.get(&kind).is_some_and(|until_ns| self.now_ns < *until_ns) {
            return;
        }
        if self.folds.len() >= FOLDS_MAX {
            self.folds.clear();
        }
        self.folds.insert(kind, self.now_ns.saturating_add(FOLD_NS));
        let head = Head {
            is_blocked: verdict.outcome == Outcome::Dropped,
            component: Component::Firewall.name(),
            rule,
            signature: rule,
            category: "packet",
            severity: number_of(severity_of(verdict)),
        };
        let alert = Alert { head, rule_action, matched: None };
        let line = self.eve.packet_alert(verdict, &alert);
        put(&mut self.out, &mut self.error, &mut self.summary.lines, line);
    }

    /// Judges a transaction, blocks its flow where that is to be, and tells of what is not allowed.
    fn judge(&mut self, flow: &Flow, time_ns: u64, told: &Told) -> Reaction {
        const ON: Reaction = Reaction::GoOn;
        let Some(Rules { ruling, scratch, decided }) = &mut self.rules else { return ON };
        let Some(hit) = decided.entry(flow.id).or_default().judge(&ruling.judge, scratch, flow, told) else {
            return ON;
        };
        if hit.action == Action::Allow {
            return ON;
        }
        let enforcement = ruling.enforce(&hit, flow, || block(&mut self.blocks, flow, self.now_ns));
        if enforcement == Enforcement::Blocked && ruling.tcp_reset && flow.protocol == TCP && flow.is_answered {
            self.reset.push(flow.id);
        }
        let rule = format!("l7 {}", hit.rule);
        self.summary.count_alert(&rule);
        self.alerted.insert(flow.id);
        if self.out.is_some() {
            let line = self.eve.alert(flow, time_ns, &alert_of(&hit, enforcement), Some(told));
            put(&mut self.out, &mut self.error, &mut self.summary.lines, line);
        }
        enforcement.reaction()
    }

    fn has_lines(&self) -> bool {
        self.events && self.out.is_some()
    }
}

/// Blocks a flow, as the agent does.
fn block(blocks: &mut ReplayBlocks, flow: &Flow, now_ns: u64) -> Enforcement {
    if blocks.spare(flow) {
        return Enforcement::Spared;
    }
    let key = BlockedFlow::new(flow.client, flow.server, flow.protocol, flow.vlans[0]);
    if key.is_some_and(|key| blocks.block(key, flow.is_answered, now_ns)) {
        Enforcement::Blocked
    } else {
        Enforcement::Failed
    }
}

/// A severity as EVE counts it.
fn number_of(severity: Severity) -> u64 {
    match severity {
        Severity::Critical => 1,
        Severity::High => 2,
        Severity::Medium => 3,
        Severity::Low => 4,
    }
}

/// A hit as EVE shows it.
fn alert_of(hit: &Hit, enforcement: Enforcement) -> Alert<'_> {
    let head = Head {
        is_blocked: hit.wants_block() && enforcement == Enforcement::Blocked,
        component: Component::L7.name(),
        rule: &hit.rule,
        signature: &hit.rule,
        category: hit.protocol.name(),
        severity: number_of(hit.severity),
    };
    Alert { head, rule_action: hit.action.name(), matched: hit.field.as_ref().map(|_| &hit.matched[..]) }
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
        let reaction = self.judge(flow, time_ns, told);
        // A query of DNS has a line of its own: that of its response says nothing of when it was asked, and may not
        // come.
        let is_due = told.stage == Stage::Done || matches!(told.fact, Fact::Dns(_));
        if is_due && self.has_lines() {
            let line = self.eve.transaction(flow, time_ns, told);
            put(&mut self.out, &mut self.error, &mut self.summary.lines, line);
        }
        reaction
    }

    fn blocked_packet(&mut self, flow: &Flow) -> bool {
        // The block is over, and the flow goes on: it is blocked anew.
        block(&mut self.blocks, flow, self.now_ns) != Enforcement::Spared
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
