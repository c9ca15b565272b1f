//! What a run came to, counted as it goes and shown at its end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use crate::event::Outcome;
use crate::flow::{Anomaly, Flow};
use crate::packet::proto::AppProto;

use super::capture::Refused;
use super::gate::Passed;
use super::wall::Fate;

/// Counts of a run. The same capture gives the same counts; only how long it took differs.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Packets that were read.
    pub packets: u64,
    /// Their bytes, as captured.
    pub bytes: u64,
    /// Packets that the capture cut short.
    pub cut_packets: u64,
    /// Packets past their flow's budget: not inspected.
    pub past_budget: u64,
    /// What the firewall made of the packets that arrive, if there is one.
    pub firewall: Option<Judged>,
    /// Packets that were dropped because their flow was blocked.
    pub blocked: u64,
    /// There are rate limits, which were not asked.
    pub has_limits: bool,
    /// What the reader refused.
    pub refused: Refused,
    /// Time between the first packet and the last, of the capture's clock.
    pub span_ns: u64,
    /// How long the run took.
    pub took: Duration,
    /// Lines of EVE that were written.
    pub lines: u64,
    /// Why the capture was not read to its end.
    pub fault: Option<String>,
    flows: BTreeMap<(u8, Option<AppProto>), Flows>,
    alerts: BTreeMap<String, u64>,
    anomalies: HashMap<(&'static str, &'static str), u64>,
    gap_flows: u64,
    gap_bytes: u64,
    midstream_flows: u64,
}

/// Packets by what the firewall made of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// They went on.
    pub passed: u64,
    /// They were dropped.
    pub dropped: u64,
    /// They went on because of `mode = "alert"`.
    pub would_drop: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flows {
    flows: u64,
    packets: u64,
    bytes: u64,
}

impl Summary {
    /// A packet went its way.
    pub fn count_passed(&mut self, passed: &Passed<'_>) {
        self.blocked += u64::from(passed.is_blocked);
        if let (Some(firewall), Some(Fate::Judged(outcome))) = (&mut self.firewall, &passed.fate) {
            match outcome {
                Outcome::Passed => firewall.passed += 1,
                Outcome::Dropped => firewall.dropped += 1,
                Outcome::WouldDrop => firewall.would_drop += 1,
            }
        }
    }

    /// A flow ended.
    pub fn count_flow(&mut self, flow: &Flow) {
        let flows = self.flows.entry((flow.protocol, flow.app_proto)).or_default();
        flows.flows += 1;
        flows.packets += flow.packets[0] + flow.packets[1];
        flows.bytes += flow.bytes[0] + flow.bytes[1];
        let gap = flow.gap_bytes[0] + flow.gap_bytes[1];
        self.gap_flows += u64::from(gap > 0);
        self.gap_bytes += gap;
        self.midstream_flows += u64::from(flow.is_midstream);
    }

    /// A rule was hit; `rule` is its component and id.
    pub fn count_alert(&mut self, rule: &str) {
        match self.alerts.get_mut(rule) {
            Some(count) => *count += 1,
            None => {
                self.alerts.insert(rule.to_owned(), 1);
            }
        }
    }

    /// Something was odd.
    pub fn count_anomaly(&mut self, anomaly: &Anomaly) {
        *self.anomalies.entry((anomaly.layer, anomaly.name)).or_default() += anomaly.count;
    }

    fn write_packets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64().max(1e-9);
        let rate = |count: u64| (count as f64 / seconds) as u64;
        let span = Duration::from_nanos(self.span_ns);
        writeln!(
            f,
            "packets    {} ({} a second), {} bytes ({} a second)",
            self.packets,
            rate(self.packets),
            self.bytes,
            rate(self.bytes)
        )?;
        writeln!(f, "capture    {:.6} s, read in {:.3} s", span.as_secs_f64(), self.took.as_secs_f64())?;
        let unreadable = self.refused.total();
        writeln!(
            f,
            "dropped    {} past their flow's budget, {} unreadable; {} were captured in part",
            self.past_budget, unreadable, self.cut_packets
        )?;
        for (link, count) in &self.refused.links {
            writeln!(f, "           {count} of link type {link}, which is not read")?;
        }
        if self.refused.oversized > 0 {
            writeln!(f, "           {} longer than {} bytes", self.refused.oversized, super::capture::FRAME_MAX)?;
        }
        if self.refused.malformed > 0 {
            writeln!(f, "           {} whose block makes no sense", self.refused.malformed)?;
        }
        Ok(())
    }

    fn write_firewall(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Judged { passed, dropped, would_drop }) = self.firewall {
            write!(f, "firewall   {passed} passed, {dropped} dropped")?;
            if would_drop > 0 {
                write!(f, ", {would_drop} passed that mode \"block\" drops")?;
            }
            writeln!(f)?;
        }
        if self.blocked > 0 {
            writeln!(f, "blocked    {} of flows that a rule of l7 refused", self.blocked)?;
        }
        if self.has_limits {
            writeln!(f, "ratelimit  not asked: it goes by the kernel's clock, and a capture has its own")?;
        }
        Ok(())
    }

    fn write_flows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: u64 = self.flows.values().map(|flows| flows.flows).sum();
        writeln!(f, "flows      {total}, {} seen from their middle on", self.midstream_flows)?;
        for ((protocol, app_proto), flows) in &self.flows {
            let transport = match protocol {
                6 => "tcp".to_owned(),
                17 => "udp".to_owned(),
                other => format!("ip {other}"),
            };
            let name = app_proto.map_or("-", AppProto::name);
            writeln!(
                f,
                "  {transport:<6} {name:<9} {:>10} flows {:>12} packets {:>15} bytes",
                flows.flows, flows.packets, flows.bytes
            )?;
        }
        writeln!(f, "gaps       {} bytes in {} flows", self.gap_bytes, self.gap_flows)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_packets(f)?;
        self.write_firewall(f)?;
        self.write_flows(f)?;
        let mut anomalies: Vec<_> = self.anomalies.iter().collect();
        anomalies.sort_unstable();
        writeln!(f, "anomalies  {}", anomalies.iter().map(|(_, count)| **count).sum::<u64>())?;
        for ((layer, name), count) in anomalies {
            writeln!(f, "  {:<26} {count:>10}", format!("{layer} {name}"))?;
        }
        writeln!(f, "alerts     {}", self.alerts.values().sum::<u64>())?;
        for (rule, count) in &self.alerts {
            writeln!(f, "  {rule:<26} {count:>10}")?;
        }
        write!(f, "events     {} lines", self.lines)
    }
}
