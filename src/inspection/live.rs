//! What a worker does about what its flows say: rules judge it, flows are blocked and reset, and it is told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::reset::{Ends, Resets};
use crate::alert::{Alert, AlertSender, Severity};
use crate::bpf::attach::interface_name;
use crate::bpf::blocks::{BlockedFlow, Blocks};
use crate::classify::rules::Action;
use crate::component::Component;
use crate::engines::l7::Ruling;
use crate::engines::l7::alerts::Enforcement;
use crate::engines::l7::judge::{Decided, Scratch};
use crate::engines::l7::rule::Protocol;
use crate::enrichment::{Processes, Scanner};
use crate::flow::{Anomaly, EndReason, Flow, Reaction, Watcher};
use crate::packet::frame::protocol::TCP;
use crate::packet::proto::Told;

/// A flow is blocked for so long. Its ends are reset at once, and what it sends later blocks it anew, since a blocked flow
/// is known for longer ([`crate::flow::Limits::blocked_ns`]): the time only has to be longer than packets are on their way,
/// and short enough that a client may use the port again.
const BLOCK_SECS: u64 = 120;
/// The same of a flow of which one end alone was heard: maybe a stranger spoke in its name, and the port is to be of use to
/// who has it. If it is genuine it goes on, and each block costs it all but a packet.
const UNANSWERED_BLOCK_SECS: u64 = 10;

/// For how long a flow is blocked.
pub fn block_secs(is_answered: bool) -> u64 {
    if is_answered { BLOCK_SECS } else { UNANSWERED_BLOCK_SECS }
}

/// Who may be blocked, shared by the workers. A lock, not a thread's turn: until the block stands, packets pass.
pub type SharedBlocks = Arc<Mutex<Blocks>>;

/// Judges, blocks and tells for one worker.
pub struct Live {
    ruling: Option<Arc<ArcSwap<Ruling>>>,
    scratch: Scratch,
    decided: HashMap<u64, Decided>,
    blocks: SharedBlocks,
    /// Flows that are blocked and may have to be reset or blocked again.
    blocked: HashMap<u64, Refused>,
    resets: Option<Resets>,
    processes: Option<Processes>,
    alerts: AlertSender,
    /// Blocks that failed since the last look.
    pub blocks_failed: u64,
}

/// A blocked flow.
struct Refused {
    ends: Ends,
    /// It was when it was blocked.
    is_answered: bool,
    /// Why: the rule of a hit, and its protocol.
    rule: Arc<str>,
    protocol: Protocol,
}

impl Live {
    /// Nothing is known yet. Without a ruling flows are only watched.
    pub fn new(
        ruling: Option<Arc<ArcSwap<Ruling>>>,
        blocks: SharedBlocks,
        scanner: Scanner,
        alerts: AlertSender,
        now: Instant,
    ) -> Live {
        let resets = Resets::open(now).inspect_err(|error| log::warn!("refused flows are not reset: {error:#}")).ok();
        let processes = Processes::open(scanner, now);
        let processes = processes.inspect_err(|error| log::warn!("alerts name no processes: {error}")).ok();
        Live {
            ruling,
            scratch: Scratch::default(),
            decided: HashMap::new(),
            blocks,
            blocked: HashMap::new(),
            resets,
            processes,
            alerts,
            blocks_failed: 0,
        }
    }

    /// Sends the resets that are due.
    pub fn send_resets(&mut self, now: Instant) {
        if let Some(resets) = &mut self.resets {
            resets.send_due(now, |flow| self.blocked.get(&flow).map(|refused| refused.ends));
        }
    }

    /// What became of resets.
    pub fn resets(&self) -> super::reset::ResetCounts {
        self.resets.as_ref().map(|resets| resets.counts).unwrap_or_default()
    }

    /// Blocks a flow because of a rule for a protocol.
    fn block(&mut self, flow: &Flow, (rule, protocol): (&Arc<str>, Protocol), tcp_reset: bool) -> Enforcement {
        let vlan = flow.vlans[0];
        let Some(key) = BlockedFlow::new(flow.client, flow.server, flow.protocol, vlan) else {
            return Enforcement::Failed;
        };
        let until = boot_secs().map(|now| now + block_secs(flow.is_answered));
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if flow.local_ends().any(|(local, remote)| blocks.spare(flow.protocol, local, remote)) {
            return Enforcement::Spared;
        }
        let blocked = match flow.is_answered {
            true => blocks.block_flow(key, until),
            false => blocks.block_unanswered(key, until),
        };
        drop(blocks);
        if let Err(error) = blocked {
            log::warn!("blocking {} - {}: {error}", flow.client, flow.server);
            self.blocks_failed += 1;
            return Enforcement::Failed;
        }
        self.blocked.insert(
            flow.id,
            Refused { ends: ends_of(flow), is_answered: flow.is_answered, rule: rule.clone(), protocol },
        );
        // Who does not answer is not told: nobody is to get resets from here for what he never sent.
        if flow.protocol == TCP
            && flow.is_answered
            && tcp_reset
            && let Some(resets) = &mut self.resets
        {
            resets.ask(flow.id, Instant::now());
        }
        Enforcement::Blocked
    }

    fn tell(&mut self, mut alert: Alert, flow: &Flow) {
        let ends: [SocketAddr; 2] = [flow.client, flow.server];
        let process = self.processes.as_mut().and_then(|known| known.of_flow(flow.protocol, ends, Instant::now()));
        alert.process = process.map(|process| (process.pid, process.command));
        self.alerts.send(alert);
    }
}

impl Watcher for Live {
    fn transaction(&mut self, flow: &Flow, time_ns: u64, told: &Told) -> Reaction {
        let Some(ruling) = &self.ruling else { return Reaction::GoOn };
        let ruling = ruling.load_full();
        let decided = self.decided.entry(flow.id).or_default();
        let hit = decided.judge(&ruling.judge, &mut self.scratch, flow, told);
        // What is allowed is not told of, and must cost nothing more.
        let Some(hit) = hit.filter(|hit| hit.action != Action::Allow) else { return Reaction::GoOn };
        let enforcement = ruling.enforce(&hit, flow, || match self.blocked.contains_key(&flow.id) {
            // All that came with what was refused is told, too.
            true => Enforcement::Blocked,
            false => self.block(flow, (&hit.rule, hit.protocol), ruling.tcp_reset),
        });
        let interface = interface_name(flow.ifindex);
        if let Some(alert) = hit.alert(flow, told, time_ns, interface.as_deref(), enforcement) {
            self.tell(alert, flow);
        }
        enforcement.reaction()
    }

    fn anomaly(&mut self, flow: Option<&Flow>, anomaly: &Anomaly) {
        let message = format!("{} anomaly: {}", anomaly.layer, anomaly.name);
        let (severity, rule) = (severity_of(anomaly), anomaly.name);
        let mut alert = Alert::new(Component::Ids, severity, rule, "log", anomaly.time_ns, message);
        alert.count = anomaly.count;
        if let Some(flow) = flow {
            alert.set_flow(flow, interface_name(flow.ifindex).as_deref());
        }
        // Its process is not looked for: anybody can make as many anomalies as he likes, and each search costs.
        self.alerts.send(alert);
    }

    fn blocked_packet(&mut self, flow: &Flow) -> bool {
        let Some(refused) = self.blocked.get_mut(&flow.id) else { return false };
        // What is on its way still passes, and moves the place where a reset is taken.
        refused.ends = ends_of(flow);
        let (rule, protocol) = (refused.rule.clone(), refused.protocol);
        let was_answered = refused.is_answered || !flow.is_answered;
        let Some(key) = BlockedFlow::new(flow.client, flow.server, flow.protocol, flow.vlans[0]) else { return false };
        if was_answered && self.blocks.lock().unwrap_or_else(PoisonError::into_inner).is_blocked(&key) {
            return true;
        }
        // The block has ended, and the flow goes on; or it was answered now, and is blocked as one that was.
        let ruling = self.ruling.as_ref().map(|ruling| ruling.load_full());
        let becomes = match ruling.filter(|ruling| ruling.blocks_again(&rule, protocol)) {
            Some(ruling) => self.block(flow, (&rule, protocol), ruling.tcp_reset),
            None => Enforcement::NotWanted,
        };
        // When there is no room now, there may be for its next packet.
        let is_blocked = matches!(becomes, Enforcement::Blocked | Enforcement::Failed);
        if !is_blocked {
            self.blocked.remove(&flow.id);
        }
        is_blocked
    }

    fn ended(&mut self, flow: &Flow, _why: EndReason) {
        self.decided.remove(&flow.id);
        self.blocked.remove(&flow.id);
    }
}

fn ends_of(flow: &Flow) -> Ends {
    Ends { client: flow.client, server: flow.server, next_seq: flow.next_seq, ifindex: flow.ifindex }
}

/// What two receivers may read differently is an attack or nothing; the rest happens.
fn severity_of(anomaly: &Anomaly) -> Severity {
    if anomaly.name.contains("_conflict") { Severity::Medium } else { Severity::Low }
}

fn boot_secs() -> Option<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    u64::try_from(now.tv_sec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Limits, SECOND_NS};

    /// As long again as the block: senders wait for two minutes at most before they try once more.
    #[test]
    fn blocked_flows_are_known_beyond_their_block() {
        let limits = Limits::default();
        assert_eq!(limits.blocked_ns, 2 * block_secs(true) * SECOND_NS);
        assert!(limits.tcp_new_ns.min(limits.udp_new_ns) >= 2 * block_secs(false) * SECOND_NS);
    }
}
