//! Who is told by the inspector in a replay: makes lines of it, and counts.

use std::collections::HashSet;
use std::io::{self, Write};

use super::eve::{Alert, Eve};
use super::summary::Summary;
use crate::flow::{Anomaly, EndReason, Flow, Reaction, Watcher};
use crate::packet::proto::{Fact, Stage, Told};

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
    /// What was counted.
    pub summary: Summary,
}

impl<'o> Teller<'o> {
    /// Lines go to `out`, if there is one.
    pub fn new(out: Option<&'o mut dyn Write>, events: bool) -> Teller<'o> {
        Teller {
            eve: Eve::default(),
            out,
            events,
            packet: 0,
            now_ns: 0,
            alerted: HashSet::new(),
            error: None,
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

    fn has_lines(&self) -> bool {
        self.events && self.out.is_some()
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
        // A query of DNS has a line of its own: that of its response says nothing of when it was asked, and may not come.
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
        let alerted = !self.alerted.is_empty() && self.alerted.remove(&flow.id);
        if self.has_lines() {
            let line = self.eve.flow(flow, why, self.now_ns, alerted);
            put(&mut self.out, &mut self.error, &mut self.summary.lines, line);
        }
    }
}
