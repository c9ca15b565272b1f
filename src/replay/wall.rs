//! The firewall of a replay: the loaded xdp_firewall and tc_egress, or their model.
//!
//! The model runs beside the programs, too: it says what connections and fragmented datagrams are over by the capture's
//! clock, which the kernel's programs cannot see, and these are taken out of the kernel's tables. What becomes of a packet
//! the programs say.

use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::bpf::blocks::Blocks;
use crate::bpf::ringbuf::OneByOne;
use crate::bpf::tc_egress::TcEgress;
use crate::bpf::xdp_firewall::{ConnTimeouts, Switches, XdpFirewall};
use crate::bpf::{cpu_ids, takes_test_run};
use crate::classify::guard::Guard;
use crate::classify::interfaces::Port;
use crate::classify::slots::Slots;
use crate::engines::firewall::alerts::rule_of;
use crate::engines::firewall::config::{FirewallConfig, RpFilter};
use crate::engines::firewall::maps::Generation;
use crate::engines::firewall::model::Model;
use crate::engines::firewall::rule::{Action, Rule};
use crate::event::{Event, Outcome, Verdict};
use crate::packet::headers::{Headers, Unparsable};
use crate::ruled::Book;

/// Actions of XDP.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// Index of the loopback device, on which a test run arrives unless it says otherwise.
const LOOPBACK: u32 = 1;
/// Entries of the kernel's table of connections that each CPU may keep for itself.
const LRU_SHARE: u32 = 256;

/// A verdict that is told, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule, or what decided instead.
    pub rule: Arc<str>,
    /// What the rule wishes.
    pub rule_action: &'static str,
}

/// What becomes of a packet that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// By rules and policy.
    Judged(Outcome),
    /// Its flow is blocked.
    Blocked,
}

/// The firewall.
pub struct Wall {
    model: Model,
    kernel: Option<Programs>,
    /// The model alone is asked, and lets everything pass.
    is_open: bool,
    /// Name and action of the rules, by slot.
    rules: Vec<Option<(Arc<str>, Action)>>,
}

/// The loaded programs.
struct Programs {
    xdp: XdpFirewall,
    egress: Option<TcEgress>,
    records: OneByOne,
    record: Vec<u8>,
}

impl Wall {
    /// The firewall of a section; packets arrive on `interface`. With `kernel` it is the loaded programs, which heed
    /// `blocks`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(config: &FirewallConfig, interface: &str, kernel: bool, blocks: Option<&Blocks>) -> Result<Wall> {
        // A capture knows nothing of this host's routes.
        let config = FirewallConfig { rp_filter: RpFilter::Off, next_hop: false, ..config.clone() };
        let rules = Book { file: &config.rules, added: &[] }.in_order();
        let (slots, _) = Slots::default().next(rules.iter().map(|rule| rule.id.as_str()))?;
        let mut placed = Vec::with_capacity(rules.len());
        let mut names = Vec::new();
        for rule in &rules {
            let slot = slots.get(&rule.id).with_context(|| format!("rule {} has no counter", rule.id))?;
            names.resize(names.len().max(usize::from(slot) + 1), None);
            names[usize::from(slot)] = Some((rule.id.as_str().into(), rule.action));
            placed.push((*rule, slot));
        }
        let model = Model::new(&config, &placed, interface, kernel);
        let kernel = kernel.then(|| Programs::load(&config, &rules, &slots, interface, blocks)).transpose()?;
        let is_open = kernel.is_none() && model.passes_all();
        Ok(Wall { model, kernel, is_open, rules: names })
    }

    /// A packet arrives that is not blocked, or that the programs are to find blocked.
    ///
    /// # Errors
    /// The kernel does not run its program.
    pub fn arrives(
        &mut self,
        frame: &[u8],
        read: &(Headers, Result<(), Unparsable>),
        now_ns: u64,
        is_blocked: bool,
    ) -> Result<(Fate, Option<Notice>)> {
        let (fate, verdict) = if is_blocked {
            (Fate::Blocked, None)
        } else if self.is_open {
            (Fate::Judged(Outcome::Passed), None)
        } else {
            let (outcome, verdict) = self.model.arrives(frame, read, now_ns);
            (Fate::Judged(outcome), verdict)
        };
        let (fate, verdict) = match &mut self.kernel {
            None => (fate, verdict),
            Some(programs) => {
                programs.forget(&mut self.model)?;
                programs.arrives(frame, now_ns)?
            }
        };
        let notice = verdict.map(|verdict| {
            let rule_in = |slot: u16| self.rules.get(usize::from(slot))?.as_ref();
            let rule_action = match verdict.slot.and_then(rule_in) {
                Some((_, action)) => action.name(),
                None => Action::Deny.name(),
            };
            Notice { rule: rule_of(&verdict, |slot| Some(rule_in(slot)?.0.clone())), rule_action, verdict }
        });
        Ok((fate, notice))
    }

    /// A packet leaves.
    ///
    /// # Errors
    /// The kernel does not run its program.
    pub fn leaves(&mut self, frame: &[u8], read: &(Headers, Result<(), Unparsable>), now_ns: u64) -> Result<()> {
        if !self.is_open {
            self.model.leaves(read, now_ns);
        }
        if let Some(programs) = &mut self.kernel {
            programs.forget(&mut self.model)?;
            // What cannot be parsed opens no connection.
            if let Some(egress) = programs.egress.as_ref().filter(|_| takes_test_run(frame)) {
                egress.test_run(frame)?;
            }
        }
        Ok(())
    }
}

impl Programs {
    fn load(
        config: &FirewallConfig,
        rules: &[&Rule],
        slots: &Slots,
        interface: &str,
        blocks: Option<&Blocks>,
    ) -> Result<Programs> {
        // More than the model keeps, so that the kernel never has to choose whom to forget.
        let share = LRU_SHARE * cpu_ids("possible")? as u32;
        let switches = Switches {
            max_connections: config.max_connections.saturating_add(share),
            blocks,
            is_replay: true,
            ..Switches::default()
        };
        let mut xdp = XdpFirewall::load(&switches).context("without root use --no-kernel, which prints the same")?;
        let ports = [Port { name: interface.to_owned(), ifindex: Some(LOOPBACK) }];
        let guard = Guard::default();
        let generation = Generation { number: 1, config, rules, slots, ports: &ports, guard: &guard };
        xdp.swap(|tables| generation.write(tables))?;
        let never = ConnTimeouts {
            tcp_opening_secs: u32::MAX,
            tcp_open_secs: u32::MAX,
            tcp_closing_secs: u32::MAX,
            other_opening_secs: u32::MAX,
            other_open_secs: u32::MAX,
        };
        let load = || TcEgress::load(&xdp.connections()?, &xdp.misc_counts_map()?, &never);
        let egress = config.stateful.then(load).transpose()?;
        let records = OneByOne::new(&xdp.events()?)?;
        Ok(Programs { xdp, egress, records, record: Vec::new() })
    }

    /// Takes out of the kernel's tables what the model has forgotten.
    fn forget(&self, model: &mut Model) -> Result<()> {
        for key in model.forgotten_connections() {
            self.xdp.forget_connection(&key.abi())?;
        }
        for key in model.forgotten_fragments() {
            self.xdp.forget_fragments(&key.abi())?;
        }
        Ok(())
    }

    fn arrives(&mut self, frame: &[u8], now_ns: u64) -> Result<(Fate, Option<Verdict>)> {
        let action = self.xdp.test_run(frame, 0, 1)?.action;
        let verdict = match self.records.take(&mut self.record)? {
            false => None,
            true => {
                let Event::Verdict(verdict) =
                    Event::decode(&self.record).context("a record of xdp_firewall cannot be read")?;
                // By the capture's clock, on no interface of this host, and standing for itself alone.
                Some(Verdict { boot_ns: now_ns, ifindex: 0, packets: 1, ..verdict })
            }
        };
        let fate = match (action, &verdict) {
            (XDP_DROP, None) => Fate::Blocked,
            (XDP_DROP | XDP_PASS, Some(verdict)) => Fate::Judged(verdict.outcome),
            (XDP_PASS, None) => Fate::Judged(Outcome::Passed),
            _ => bail!("xdp_firewall answered {action}"),
        };
        Ok((fate, verdict))
    }
}
