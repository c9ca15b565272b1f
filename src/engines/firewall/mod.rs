//! Decides which packets pass, in the kernel. Owns xdp_firewall and tc_egress and all of their maps.
//!
//! Section `[firewall]`; routes under `/api/v1/firewall` and `/api/v1/explain`. This thread compiles rules into the
//! idle generation of the tables, swaps, attaches, and turns the kernel's records into alerts; the verdict itself falls
//! in the kernel. Rules of the configuration file and rules made through the API are one list.

pub mod api;
pub mod config;
pub mod explain;
pub mod guard;
pub mod maps;
pub mod rule;
pub mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use libbpf_rs::MapHandle;

use self::config::{FirewallConfig, RuleText};
use self::explain::{Explanation, Question};
use self::guard::Guard;
use self::maps::Generation;
use self::rule::Rule;
use self::store::Store;
use crate::abi::{fw_limits, fw_verdict};
use crate::alert::{Alert, AlertSender, Severity};
use crate::bpf::attach::{self, AttachMode, Attached, XdpMode};
use crate::bpf::counts::RuleCount;
use crate::bpf::map::MapFacts;
use crate::bpf::offload;
use crate::bpf::tc_egress::TcEgress;
use crate::bpf::xdp_firewall::{ConnTimeouts, Switches, XdpFirewall};
use crate::bpf::{self, ProgramFacts};
use crate::classify::interfaces::{INTERFACES_MAX, Port};
use crate::classify::rules::check_counts;
use crate::classify::slots::Slots;
use crate::classify::text::Surroundings;
use crate::component::Component;
use crate::event::{Event, Outcome, Reason, UNPARSABLE, Verdict};
use crate::metrics::{InterfaceCounters, KernelCounters, Metrics, RuleCounters};
use crate::supervise::Owned;

/// The pin of the connection table.
const CONNECTIONS_PIN: &str = "connections";

/// How the firewall starts.
pub struct Start {
    /// Its section.
    pub config: FirewallConfig,
    /// Names of the interfaces to guard.
    pub interfaces: Vec<String>,
    /// XDP modes that the user allows.
    pub xdp_mode: XdpMode,
    /// The lock-out guard.
    pub guard: Guard,
    /// Where an agent with `on_exit = "keep"` pins its links and connections.
    pub pins: PathBuf,
    /// Whether this agent is one.
    pub keep: bool,
    /// Where rules made through the API are kept.
    pub store: Store,
    /// Where alerts go.
    pub alerts: AlertSender,
    /// The agent's metrics.
    pub metrics: Arc<Metrics>,
}

/// An interface and what runs on it.
#[derive(Default)]
struct Guarded {
    name: String,
    ifindex: Option<u32>,
    xdp: Option<Attached>,
    egress: Option<Attached>,
    reason: Option<String>,
}

/// An interface, as status shows it.
#[derive(Clone, Debug)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// Its index, while it exists.
    pub ifindex: Option<u32>,
    /// How xdp_firewall runs on it, if it does.
    pub xdp: Option<AttachMode>,
    /// How tc_egress runs on it, if it does.
    pub egress: Option<AttachMode>,
    /// What is wrong.
    pub reason: Option<String>,
}

/// A program, as status shows it.
#[derive(Clone, Debug)]
pub struct ProgramStatus {
    /// Its name.
    pub name: &'static str,
    /// Whether it should run.
    pub enabled: bool,
    /// The kernel's numbers, if it is loaded.
    pub facts: Option<ProgramFacts>,
    /// Why it is not loaded.
    pub failure: Option<String>,
    /// Its maps.
    pub maps: Vec<MapFacts>,
}

/// The firewall in numbers, as status shows it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its section in force.
    pub config: FirewallConfig,
    /// Generation of the rules in force.
    pub generation: u32,
    /// Rules made through the API.
    pub added_rules: usize,
    /// Rules in force for IPv4 and for IPv6.
    pub ipv4_rules: usize,
    /// See `ipv4_rules`.
    pub ipv6_rules: usize,
    /// Rules that are switched off.
    pub disabled_rules: usize,
    /// Interfaces.
    pub interfaces: Vec<InterfaceFacts>,
    /// Programs.
    pub programs: Vec<ProgramStatus>,
}

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration file.
    File,
    /// The API.
    Api,
}

/// A rule and what it did.
#[derive(Clone, Debug)]
pub struct Counted {
    /// The rule.
    pub rule: RuleText,
    /// Where it comes from.
    pub source: Source,
    /// Packets that it decided since it was made.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time of the last one.
    pub last_hit: Option<SystemTime>,
}

/// Why a change of rules was refused.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// No rule of that name was made through the API.
    #[error("rule \"{0}\" not found")]
    NotFound(String),
    /// The name is taken.
    #[error("{0}")]
    Taken(String),
    /// The rule does not fit here.
    #[error("{0}")]
    Unfit(String),
    /// The kernel or the disk refused.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Rules and policy at one moment, to go back to.
#[derive(Clone, Debug)]
pub struct Snapshot {
    config: FirewallConfig,
    guard: Guard,
    added: Vec<Rule>,
}

/// The engine.
pub struct Firewall {
    kernel: XdpFirewall,
    egress: Option<TcEgress>,
    egress_failure: Option<String>,
    guarded: Vec<Guarded>,
    xdp_mode: XdpMode,
    pins: PathBuf,
    keep: bool,
    /// Nothing was pinned when this agent started.
    nothing_kept: bool,
    config: FirewallConfig,
    guard: Guard,
    added: Vec<Rule>,
    store: Store,
    slots: Slots,
    names: Vec<Option<Arc<str>>>,
    generation: u32,
    alerts: AlertSender,
    metrics: Arc<Metrics>,
}

/// All rules in the order in which they are asked. Equal priorities: the file's before the API's, each as written.
/// A rule of the API whose name the file has taken meanwhile rests.
fn in_order<'r>(file: &'r [Rule], added: &'r [Rule]) -> Vec<&'r Rule> {
    let taken: std::collections::HashSet<&str> = file.iter().map(|rule| rule.id.as_str()).collect();
    let mut all: Vec<&Rule> =
        file.iter().chain(added.iter().filter(|rule| !taken.contains(rule.id.as_str()))).collect();
    all.sort_by_key(|rule| rule.priority);
    all
}

impl Firewall {
    /// Loads the programs, fills the maps, and only then attaches.
    ///
    /// # Errors
    /// Everything that keeps the firewall from enforcing, except interfaces that do not exist yet: those are attached
    /// when they appear.
    pub fn start(start: Start) -> Result<Firewall> {
        let pins = start.pins.clone();
        let nothing_kept = !pins.exists();
        let started = Firewall::start_on_pins(start, nothing_kept);
        if started.is_err() && nothing_kept {
            // The error that is told is the one that came first.
            let _ = attach::release_pins(&pins, &[]);
        }
        started
    }

    fn start_on_pins(start: Start, nothing_kept: bool) -> Result<Firewall> {
        let Start { config, interfaces, xdp_mode, guard, pins, keep, store, alerts, metrics } = start;
        if interfaces.len() > INTERFACES_MAX {
            bail!("{} interfaces, and {INTERFACES_MAX} is the limit", interfaces.len());
        }
        let added = store.load()?;
        for rule in &added {
            if config.rules.iter().any(|other| other.id == rule.id) {
                log::warn!(
                    "rule {} of the configuration file hides the rule of that name made through the API",
                    rule.id
                );
            }
        }
        if keep {
            attach::prepare_pins(&pins)?;
        }
        let connections_pin = pins.join(CONNECTIONS_PIN);
        let kept = MapHandle::from_pinned_path(&connections_pin)
            .ok()
            .filter(|map| libbpf_rs::MapCore::max_entries(map) == config.max_connections);
        let timeouts = ConnTimeouts {
            tcp_opening_secs: config.timeouts.tcp_opening_secs,
            tcp_open_secs: config.timeouts.tcp_established_secs,
            tcp_closing_secs: config.timeouts.tcp_closing_secs,
            other_opening_secs: config.timeouts.other_opening_secs,
            other_open_secs: config.timeouts.other_established_secs,
        };
        let kernel = XdpFirewall::load(&Switches {
            multi_buffer: bpf::has_multi_buffer() && interfaces.iter().any(|name| needs_several_buffers(name)),
            write_meta: false,
            max_connections: config.max_connections,
            timeouts,
            connections: kept.as_ref(),
        })?;
        let (egress, egress_failure) = if config.stateful {
            let loaded = TcEgress::load(&kernel.connections()?, &kernel.misc_counts_map()?, &timeouts);
            match loaded {
                Ok(egress) => (Some(egress), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            }
        } else {
            (None, None)
        };
        if keep && kept.is_none() {
            bpf::xdp_firewall::pin_map(&kernel.connections()?, &connections_pin)?;
        }
        let guarded = interfaces.into_iter().map(|name| Guarded { name, ..Guarded::default() }).collect();
        let names = vec![None; fw_limits::FW_SLOTS.0 as usize];
        let mut firewall = Firewall {
            kernel,
            egress,
            egress_failure,
            guarded,
            xdp_mode,
            pins,
            keep,
            nothing_kept,
            config: config.clone(),
            guard: guard.clone(),
            added: Vec::new(),
            store,
            slots: Slots::default(),
            names,
            generation: 0,
            alerts,
            metrics,
        };
        for interface in &mut firewall.guarded {
            interface.ifindex = attach::ifindex(&interface.name);
        }
        firewall.apply(config, guard, added)?;
        firewall.attach_all(true)?;
        firewall.release_pins()?;
        Ok(firewall)
    }

    /// The agent's start failed after all: leaves the kernel as it was found, enforcing what was kept before, if anything.
    pub fn abandon(&mut self) -> Result<()> {
        self.stop();
        if self.nothing_kept { attach::release_pins(&self.pins, &[]) } else { Ok(()) }
    }

    /// Lets go of what an earlier agent kept and this one does not: its successor with `on_exit = "detach"`, without an
    /// interface, or with the firewall switched off, must not leave it enforcing rules that nobody sees.
    fn release_pins(&self) -> Result<()> {
        let mut wanted: Vec<PathBuf> = Vec::new();
        if self.keep {
            wanted.push(self.pins.join(CONNECTIONS_PIN));
            let attached = self.guarded.iter().flat_map(|one| [&one.xdp, &one.egress]).flatten();
            wanted.extend(attached.filter_map(|one| one.pinned().map(PathBuf::from)));
        }
        attach::release_pins(&self.pins, &wanted)
    }

    /// Makes rules and policy live, or changes nothing.
    fn apply(&mut self, config: FirewallConfig, guard: Guard, added: Vec<Rule>) -> Result<()> {
        let ports: Vec<Port> =
            self.guarded.iter().map(|one| Port { name: one.name.clone(), ifindex: one.ifindex }).collect();
        let rules = in_order(&config.rules, &added);
        check_counts(rules.iter().map(|rule| &rule.matches)).map_err(anyhow::Error::msg)?;
        let (slots, fresh) = self.slots.next(rules.iter().map(|rule| rule.id.as_str()))?;
        for slot in fresh {
            self.kernel.clear_slot(slot.into());
        }
        let number = self.generation + 1;
        let next = Generation { number, config: &config, rules: &rules, slots: &slots, ports: &ports, guard: &guard };
        self.kernel.swap(|tables| next.write(tables))?;
        self.names.fill(None);
        for rule in &rules {
            if let Some(slot) = slots.get(&rule.id) {
                self.names[usize::from(slot)] = Some(rule.id.as_str().into());
            }
        }
        self.metrics.set_rules_loaded(Component::Firewall, rules.iter().filter(|rule| rule.enabled).count());
        drop(rules);
        self.generation = number;
        self.slots = slots;
        (self.config, self.guard, self.added) = (config, guard, added);
        Ok(())
    }

    /// Rules and policy as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { config: self.config.clone(), guard: self.guard.clone(), added: self.added.clone() }
    }

    /// Goes back to an earlier moment. What is saved on disk is not touched.
    pub fn restore(&mut self, snapshot: Snapshot) -> Result<()> {
        let Snapshot { config, guard, added } = snapshot;
        self.replace_all(config, guard, added)
    }

    /// Takes a new section and guard, or changes nothing.
    ///
    /// # Errors
    /// A rule of the section has the name of one that was made through the API; the kernel refused.
    pub fn replace(&mut self, config: FirewallConfig, guard: Guard) -> Result<()> {
        for rule in &config.rules {
            let is_new = !self.config.rules.iter().any(|other| other.id == rule.id);
            if is_new && self.added.iter().any(|other| other.id == rule.id) {
                bail!(
                    "rule {} of the configuration file has the name of a rule made through the API; delete that one first",
                    rule.id
                );
            }
        }
        self.replace_all(config, guard, self.added.clone())
    }

    fn replace_all(&mut self, config: FirewallConfig, guard: Guard, added: Vec<Rule>) -> Result<()> {
        let was_enabled = self.config.enabled;
        self.apply(config, guard, added)?;
        if was_enabled != self.config.enabled {
            self.attach_all(false)?;
        }
        Ok(())
    }

    /// Saves the rules that were made through the API.
    pub fn save(&self) -> Result<()> {
        self.store.save(&self.added)
    }

    /// Changes the rules of the API, and saves them unless the change waits for its confirmation. A change that cannot
    /// be saved is taken back.
    fn change(&mut self, added: Vec<Rule>, save: bool) -> Result<(), ChangeError> {
        let rules = in_order(&self.config.rules, &added);
        check_counts(rules.iter().map(|rule| &rule.matches)).map_err(ChangeError::Unfit)?;
        let before = self.snapshot();
        self.apply(self.config.clone(), self.guard.clone(), added)?;
        if save && let Err(error) = self.save() {
            self.restore(before)?;
            return Err(error.into());
        }
        Ok(())
    }

    fn check_surroundings(&self, rule: &Rule) -> Result<(), ChangeError> {
        let names: Vec<String> = self.guarded.iter().map(|one| one.name.clone()).collect();
        let clashes =
            rule.matches.clashes(Surroundings { stateful: Some(self.config.stateful), interfaces: Some(&names) });
        match clashes.first() {
            Some((key, message)) => Err(ChangeError::Unfit(format!("rule {}: {key}: {message}", rule.id))),
            None => Ok(()),
        }
    }

    /// Adds rules, all or none of them.
    pub fn add(&mut self, rules: Vec<Rule>, save: bool) -> Result<(), ChangeError> {
        let mut added = self.added.clone();
        for rule in rules {
            if self.config.rules.iter().any(|other| other.id == rule.id) {
                return Err(ChangeError::Taken(format!("rule \"{}\" is in the configuration file", rule.id)));
            }
            if added.iter().any(|other| other.id == rule.id) {
                return Err(ChangeError::Taken(format!("rule \"{}\" exists", rule.id)));
            }
            self.check_surroundings(&rule)?;
            added.push(rule);
        }
        self.change(added, save)
    }

    /// Puts a rule in the place of the one that has its name.
    pub fn update(&mut self, rule: Rule, save: bool) -> Result<(), ChangeError> {
        self.check_surroundings(&rule)?;
        let mut added = self.added.clone();
        let place = self.place_of(&rule.id)?;
        added[place] = rule;
        self.change(added, save)
    }

    /// Removes a rule.
    pub fn delete(&mut self, id: &str, save: bool) -> Result<(), ChangeError> {
        let mut added = self.added.clone();
        added.remove(self.place_of(id)?);
        self.change(added, save)
    }

    fn place_of(&self, id: &str) -> Result<usize, ChangeError> {
        if self.config.rules.iter().any(|rule| rule.id == id) {
            return Err(ChangeError::Taken(format!(
                "rule \"{id}\" is in the configuration file; change it there and reload"
            )));
        }
        self.added.iter().position(|rule| rule.id == id).ok_or_else(|| ChangeError::NotFound(id.to_owned()))
    }

    /// All rules in the order in which they are asked, with what they did.
    pub fn list(&self) -> Result<Vec<Counted>> {
        let counts = self.kernel.counts().rules;
        let clock = self.kernel.clock()?;
        let now = SystemTime::now();
        Ok(in_order(&self.config.rules, &self.added)
            .into_iter()
            .map(|rule| {
                let count = self.count_of(&counts, rule);
                Counted {
                    rule: rule.into(),
                    source: if self.added.iter().any(|other| std::ptr::eq(other, rule)) {
                        Source::Api
                    } else {
                        Source::File
                    },
                    packets: count.packets,
                    bytes: count.bytes,
                    last_hit: clock.age_of(count.last_jiffies).and_then(|age| now.checked_sub(age)),
                }
            })
            .collect())
    }

    fn count_of(&self, counts: &[RuleCount], rule: &Rule) -> RuleCount {
        self.slots.get(&rule.id).and_then(|slot| counts.get(usize::from(slot)).copied()).unwrap_or_default()
    }

    /// What would be done to a packet.
    pub fn explain(&self, question: &Question) -> Result<Explanation, ChangeError> {
        let guarded =
            match &question.interface {
                Some(name) => self.guarded.iter().find(|one| one.name == *name).ok_or_else(|| {
                    ChangeError::Unfit(format!("interface: \"{name}\" is not among agent.interfaces"))
                })?,
                None => self.guarded.first().context("the agent guards no interface")?,
            };
        let frame =
            question.frame().ok_or_else(|| ChangeError::Unfit("dst_ip: not of the family of src_ip".to_owned()))?;
        let answered = self.kernel.explain(&frame, guarded.ifindex.unwrap_or(0))?;
        let rule = |slot: u16| self.names.get(usize::from(slot))?.as_deref().map(str::to_owned);
        Ok(Explanation::new(&answered, &guarded.name, rule).context("the program gave no answer")?)
    }

    /// Attaches to every interface that exists, and lets go of those that do not. With `first` a refusal is an error.
    fn attach_all(&mut self, first: bool) -> Result<()> {
        for at in 0..self.guarded.len() {
            if !self.config.enabled {
                let guarded = &mut self.guarded[at];
                for mut attached in [guarded.xdp.take(), guarded.egress.take()].into_iter().flatten() {
                    attached.unpin()?;
                }
                continue;
            }
            if let Err(error) = self.attach(at) {
                if first && self.guarded[at].ifindex.is_some() {
                    return Err(error);
                }
                let message = format!("{error:#}");
                if self.guarded[at].reason.as_ref() != Some(&message) {
                    log::error!("{}: {message}", self.guarded[at].name);
                }
                self.guarded[at].reason = Some(message);
            } else {
                self.guarded[at].reason = None;
            }
        }
        self.metrics.set_program_active("xdp_firewall", self.guarded.iter().any(|one| one.xdp.is_some()));
        self.metrics.set_program_active("tc_egress", self.guarded.iter().any(|one| one.egress.is_some()));
        Ok(())
    }

    fn attach(&mut self, at: usize) -> Result<()> {
        let guarded = &mut self.guarded[at];
        let name = guarded.name.clone();
        let ifindex = guarded.ifindex.with_context(|| format!("interface {name} does not exist"))?;
        let pin = |word: &str| self.pins.join(format!("{word}_{}", pin_name(&name)));
        if guarded.xdp.is_none() {
            guarded.xdp = Some(place(pin("xdp"), self.keep, self.kernel.program(), ifindex, |program| {
                attach::xdp(program, ifindex, &name, self.xdp_mode)
            })?);
            log::info!("{name}: xdp_firewall attached ({})", guarded.xdp.as_ref().map_or("", |one| one.mode.name()));
        }
        if let Some(egress) = &self.egress
            && guarded.egress.is_none()
        {
            guarded.egress = Some(place(pin("egress"), self.keep, egress.program(), ifindex, |program| {
                attach::egress(program, ifindex, &name)
            })?);
        }
        if let Some(failure) = &self.egress_failure {
            bail!("tc_egress is not loaded, so answers to this host's connections do not pass: {failure}");
        }
        Ok(())
    }

    /// Interfaces came, went or were renamed: looks at them anew.
    pub fn links_changed(&mut self) -> Result<()> {
        let mut changed = false;
        for guarded in &mut self.guarded {
            let ifindex = attach::ifindex(&guarded.name);
            if guarded.ifindex != ifindex {
                changed = true;
                guarded.ifindex = ifindex;
                // The links went with the old interface; their pins, if any, name nothing any more.
                for mut attached in [guarded.xdp.take(), guarded.egress.take()].into_iter().flatten() {
                    attached.unpin()?;
                }
            }
        }
        if changed {
            // Rules see interfaces by number; the new index must lead to it before the first packet is judged.
            self.apply(self.config.clone(), self.guard.clone(), self.added.clone())?;
        }
        self.attach_all(false)
    }

    /// What does not work as configured, a sentence each.
    pub fn degraded(&self) -> Vec<String> {
        if !self.config.enabled {
            return Vec::new();
        }
        self.guarded.iter().filter_map(|one| Some(format!("{}: {}", one.name, self.reason_of(one)?))).collect()
    }

    /// What is wrong with an interface.
    fn reason_of(&self, one: &Guarded) -> Option<String> {
        one.reason.clone().or_else(|| self.hidden_tags(one))
    }

    /// Why rules about VLAN tags do not do on an interface what they say. Asked anew each time: the user may have
    /// changed its offloads meanwhile.
    fn hidden_tags(&self, one: &Guarded) -> Option<String> {
        one.xdp.as_ref()?;
        let is_concerned = |rule: &&Rule| {
            rule.enabled
                && rule.matches.vlan_id.is_some()
                && (rule.matches.interfaces.is_empty() || rule.matches.interfaces.contains(&one.name))
        };
        let rule = in_order(&self.config.rules, &self.added).into_iter().find(is_concerned)?;
        // A driver without ethtool operations has no offloads either.
        let hiders = offload::tag_hiders(&one.name).unwrap_or_default();
        let off = hiders.iter().map(|name| format!(" {name} off")).collect::<String>();
        (!hiders.is_empty()).then(|| {
            format!(
                "takes VLAN tags out of frames before XDP sees them, so that rule {} takes tagged packets for \
                 untagged ones; run: ethtool -K {}{off}",
                rule.id, one.name
            )
        })
    }

    /// For status.
    pub fn facts(&self) -> Facts {
        let rules = in_order(&self.config.rules, &self.added);
        let of_family = |ipv4| rules.iter().filter(|rule| rule.enabled && rule.matches.is_of_family(ipv4)).count();
        let enabled = self.config.enabled;
        let mut programs = vec![ProgramStatus {
            name: "xdp_firewall",
            enabled,
            facts: bpf::program_facts(self.kernel.program()).ok(),
            failure: None,
            maps: self.kernel.maps(),
        }];
        programs.push(ProgramStatus {
            name: "tc_egress",
            enabled: enabled && self.config.stateful,
            facts: self.egress.as_ref().and_then(|egress| bpf::program_facts(egress.program()).ok()),
            failure: self.egress_failure.clone(),
            maps: Vec::new(),
        });
        Facts {
            config: self.config.clone(),
            generation: self.generation,
            added_rules: self.added.len(),
            ipv4_rules: of_family(true),
            ipv6_rules: of_family(false),
            disabled_rules: rules.iter().filter(|rule| !rule.enabled).count(),
            interfaces: self
                .guarded
                .iter()
                .map(|one| InterfaceFacts {
                    name: one.name.clone(),
                    ifindex: one.ifindex,
                    xdp: one.xdp.as_ref().map(|attached| attached.mode),
                    egress: one.egress.as_ref().map(|attached| attached.mode),
                    reason: self.reason_of(one),
                })
                .collect(),
            programs,
        }
    }

    /// What the kernel counted, for Prometheus.
    pub fn counters(&self) -> Result<KernelCounters> {
        let verdicts = fw_verdict::FW_VERDICTS.0 as usize;
        let counts = self.kernel.counts();
        let misc = self.kernel.misc_counts()?;
        let interfaces = self.guarded.iter().zip(&counts.ifaces).map(|(guarded, count)| {
            let by_verdict = |verdict: usize| count.packets.iter().skip(verdict).step_by(verdicts).sum::<u64>();
            InterfaceCounters {
                interface: guarded.name.clone(),
                packets: [Outcome::Passed, Outcome::Dropped, Outcome::WouldDrop]
                    .into_iter()
                    .enumerate()
                    .map(|(number, outcome)| (outcome.name(), by_verdict(number)))
                    .collect(),
                bytes: vec![("ingress", count.bytes.iter().sum())],
            }
        });
        let rules = in_order(&self.config.rules, &self.added).into_iter().map(|rule| {
            let count = self.count_of(&counts.rules, rule);
            let family = match rule.matches.is_ipv4() {
                Some(true) => "ipv4",
                Some(false) => "ipv6",
                None => "any",
            };
            RuleCounters { rule: rule.id.clone(), family, packets: count.packets, bytes: count.bytes }
        });
        Ok(KernelCounters {
            interfaces: interfaces.collect(),
            rules: rules.collect(),
            unparsable: UNPARSABLE.iter().copied().zip(misc.unparsable).skip(1).collect(),
            events_lost: vec![("ring_full", misc.ring_full)],
            connections: self.config.stateful.then(|| self.kernel.connection_count()),
        })
    }

    /// A handle of the ring buffer, for the poller.
    pub fn events(&self) -> Result<MapHandle> {
        self.kernel.events()
    }

    /// The agent ends: what is pinned stays, the rest goes with it.
    pub fn stop(&mut self) {
        for guarded in &mut self.guarded {
            guarded.xdp = None;
            guarded.egress = None;
        }
    }

    fn alert_of(&self, verdict: &Verdict) -> Alert {
        let rule: Arc<str> = match (verdict.slot, verdict.reason, verdict.unparsable) {
            (Some(slot), ..) => {
                self.names.get(usize::from(slot)).cloned().flatten().unwrap_or_else(|| "deleted".into())
            }
            (_, Reason::Unparsable, Some(why)) => format!("unparsable:{why}").into(),
            (_, reason, _) => reason.name().into(),
        };
        let severity = match verdict.outcome {
            Outcome::Dropped | Outcome::WouldDrop if verdict.reason != Reason::Policy => Severity::Medium,
            _ => Severity::Low,
        };
        let fate = match verdict.outcome {
            Outcome::Passed => "passed",
            Outcome::Dropped => "dropped",
            Outcome::WouldDrop => "would have been dropped (mode alert)",
        };
        let interface =
            self.guarded.iter().find(|one| one.ifindex == Some(verdict.ifindex)).map(|one| one.name.clone());
        let timestamp_ns = unix_time_of(verdict.boot_ns);
        let by = if verdict.slot.is_some() { "rule " } else { "" };
        let message = format!("packet {fate} by {by}{rule}");
        let mut alert = Alert::new(Component::Firewall, severity, rule, verdict.outcome.name(), timestamp_ns, message);
        let has_ports = verdict.src_port != 0 || verdict.dst_port != 0;
        alert.src_ip = verdict.src;
        alert.dst_ip = verdict.dst;
        alert.src_port = has_ports.then_some(verdict.src_port);
        alert.dst_port = has_ports.then_some(verdict.dst_port);
        alert.protocol = verdict.src.map(|_| verdict.protocol);
        alert.interface = interface;
        alert.count = verdict.packets.into();
        alert
    }
}

impl Owned for Firewall {
    type Event = Event;

    fn event(&mut self, event: Event, _now: Instant) {
        let begun = Instant::now();
        let Event::Verdict(verdict) = event;
        self.alerts.send(self.alert_of(&verdict));
        self.metrics.processing(Component::Firewall).observe(begun.elapsed().as_secs_f64());
    }

    fn finish(&mut self, _now: Instant) {
        self.stop();
    }
}

/// Takes over what is pinned at `pin`, or attaches anew. With `keep` it is pinned then, else it is not.
fn place(
    pin: PathBuf,
    keep: bool,
    program: std::os::fd::BorrowedFd<'_>,
    ifindex: u32,
    attach: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<Attached>,
) -> Result<Attached> {
    let mut attached = match Attached::take_over(&pin, program, ifindex)? {
        Some(kept) => kept,
        None => attach(program)?,
    };
    if keep {
        attached.pin(&pin)?
    } else {
        attached.unpin()?
    }
    Ok(attached)
}

/// An interface's name as the BPF file system takes it: it refuses dots.
fn pin_name(interface: &str) -> String {
    interface
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("_{byte:02x}") })
        .collect()
}

/// Whether an interface's frames may be too long for one buffer of a page.
fn needs_several_buffers(interface: &str) -> bool {
    const ONE_BUFFER: u32 = 3000;
    offload::mtu(interface).is_ok_and(|mtu| mtu > ONE_BUFFER)
}

/// The time of day of a moment of the boot clock, in nanoseconds since 1970.
fn unix_time_of(boot_ns: u64) -> u64 {
    let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = boot.saturating_sub(Duration::from_nanos(boot_ns));
    now.saturating_sub(age).as_nanos() as u64
}
