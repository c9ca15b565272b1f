//! Decides which packets pass, in the kernel. Owns xdp_firewall, tc_egress and tc_mirror and all of their maps.
//!
//! Section `[firewall]`; routes under `/api/v1/firewall` and `/api/v1/explain`. This thread compiles rules into the
//! idle generation of the tables, swaps, attaches, and turns the kernel's records into alerts; the verdict itself falls
//! in the kernel. Rules of the configuration file and rules made through the API are one list.

pub mod alerts;
pub mod api;
pub mod config;
pub mod explain;
mod forwarding;
pub mod maps;
mod mirror;
pub mod model;
pub mod rule;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use libbpf_rs::MapHandle;

use self::alerts::{rule_of, severity_of};
use self::api::RuleView;
use self::config::{FirewallConfig, RpFilter, loop_of};
use self::explain::{Asked, Explanation, Question};
use self::forwarding::Forwarding;
use self::maps::Generation;
use self::mirror::Mirroring;
use self::rule::Rule;
use crate::abi::{fw_limits, fw_verdict, steer_count};
use crate::alert::{Alert, AlertSender};
use crate::bpf::attach::{self, AttachMode, Attached, TcPlace, XdpMode};
use crate::bpf::blocks::Blocks;
use crate::bpf::chain::Chain;
use crate::bpf::counts::RuleCount;
use crate::bpf::offload;
use crate::bpf::tc_egress::TcEgress;
use crate::bpf::xdp_firewall::{Clock, ConnTimeouts, Switches, XdpFirewall};
use crate::bpf::xdp_steer::{self, XdpSteer};
use crate::bpf::{self, ProgramStatus};
use crate::classify::compile::RULES_MAX;
use crate::classify::guard::Guard;
use crate::classify::interfaces::{Device, INTERFACES_MAX, Port, is_in_vrf, uppers_of};
use crate::classify::matching::proto;
use crate::classify::slots::Slots;
use crate::classify::text::Surroundings;
use crate::component::Component;
use crate::event::{Event, Outcome, Reason, UNPARSABLE, Verdict, unix_time_of};
use crate::metrics::{InterfaceCounters, KernelCounters, Metrics, RuleCounters, SteerCounters};
use crate::ruled::store::Store;
use crate::ruled::{Book, ChangeError, RuleOwner, Source, check_surroundings, hidden_tags};
use crate::supervise::Owned;

/// The pin of the connection table.
const CONNECTIONS_PIN: &str = "connections";
/// The pin of what runs behind xdp_firewall: the kernel empties that map when nobody holds it.
const NEXT_PIN: &str = "xdp_next";

/// How the firewall starts.
pub struct Start<'a> {
    /// Its section.
    pub config: FirewallConfig,
    /// Names of the interfaces to guard.
    pub interfaces: Vec<String>,
    /// All network devices.
    pub devices: Vec<Device>,
    /// XDP modes that the user allows.
    pub xdp_mode: XdpMode,
    /// Whether frames may stand in several buffers; see [`bpf::wants_multi_buffer`].
    pub multi_buffer: bool,
    /// The lock-out guard.
    pub guard: Guard,
    /// Where an agent with `on_exit = "keep"` pins its links and connections.
    pub pins: PathBuf,
    /// Whether this agent is one.
    pub keep: bool,
    /// The programs behind xdp_firewall.
    pub chain: &'a Chain,
    /// What is in that chain.
    pub behind: Vec<Behind>,
    /// Its last program, if flows are steered.
    pub steer: Option<XdpSteer>,
    /// What is blocked, if flows are inspected.
    pub blocks: Option<&'a Arc<Mutex<Blocks>>>,
    /// Where rules made through the API are kept.
    pub store: Store<Rule>,
    /// Where alerts go.
    pub alerts: AlertSender,
    /// The agent's metrics.
    pub metrics: Arc<Metrics>,
}

/// A program of the chain behind xdp_firewall.
pub struct Behind {
    /// Its name.
    pub name: &'static str,
    /// Maps that it needs when the agent is gone, by the names of their pins.
    pub pins: Vec<(&'static str, MapHandle)>,
}

/// An interface and what runs on it.
#[derive(Default)]
struct Guarded {
    name: String,
    ifindex: Option<u32>,
    xdp: Option<Attached>,
    egress: Option<Attached>,
    mirror: Option<Attached>,
    reason: Option<String>,
    mirror_reason: Option<String>,
}

impl Guarded {
    /// Everything that is attached, taken out.
    fn take_all(&mut self) -> impl Iterator<Item = Attached> {
        [self.xdp.take(), self.egress.take(), self.mirror.take()].into_iter().flatten()
    }
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
    /// How tc_mirror runs on it, if it does.
    pub mirror: Option<AttachMode>,
    /// What is wrong.
    pub reason: Option<String>,
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
    /// How those of other engines are attached: interface, program and mode.
    pub attachments: Vec<(String, &'static str, AttachMode)>,
}

/// What was counted of the rules at one moment.
pub struct Counts {
    rules: Vec<RuleCount>,
    clock: Clock,
    now: SystemTime,
}

/// Rules and policy at one moment, to go back to.
#[derive(Clone, Debug)]
pub struct Snapshot {
    config: FirewallConfig,
    guard: Guard,
    added: Vec<Rule>,
}

/// What alerts say of a rule.
struct Named {
    id: Arc<str>,
    mitre: Vec<Arc<str>>,
}

/// The engine.
pub struct Firewall {
    kernel: XdpFirewall,
    egress: Option<TcEgress>,
    egress_failure: Option<String>,
    mirror: Mirroring,
    steer: Option<XdpSteer>,
    guarded: Vec<Guarded>,
    devices: Vec<Device>,
    forwarding: Forwarding,
    /// Why sources cannot be checked.
    unchecked: Option<String>,
    xdp_mode: XdpMode,
    pins: PathBuf,
    keep: bool,
    /// Nothing was pinned when this agent started.
    nothing_kept: bool,
    /// See [`Firewall::establish`].
    established: bool,
    /// Pins of what runs behind xdp_firewall.
    kept: Vec<PathBuf>,
    /// Names of what runs behind xdp_firewall.
    behind: Vec<&'static str>,
    config: FirewallConfig,
    guard: Guard,
    added: Vec<Rule>,
    store: Store<Rule>,
    slots: Slots,
    names: Vec<Option<Named>>,
    generation: u32,
    alerts: AlertSender,
    metrics: Arc<Metrics>,
}

impl Firewall {
    /// Loads the programs, fills the maps, and only then attaches.
    ///
    /// # Errors
    /// Everything that keeps the firewall from enforcing, except interfaces that do not exist yet: those are attached
    /// when they appear.
    pub fn start(start: Start<'_>) -> Result<Firewall> {
        let pins = start.pins.clone();
        let nothing_kept = !attach::has_pins(&pins);
        let started = Firewall::start_on_pins(start, nothing_kept);
        if started.is_err() && nothing_kept {
            // The error that is told is the one that came first.
            let _ = attach::release_pins(&pins, &[]);
        }
        started
    }

    fn start_on_pins(start: Start<'_>, nothing_kept: bool) -> Result<Firewall> {
        let Start {
            config,
            interfaces,
            devices,
            xdp_mode,
            multi_buffer,
            guard,
            pins,
            keep,
            chain,
            behind,
            steer,
            blocks,
            store,
            alerts,
            metrics,
        } = start;
        if interfaces.len() > INTERFACES_MAX {
            bail!("{} interfaces, and {INTERFACES_MAX} is the limit", interfaces.len());
        }
        let added = store.load()?;
        Book { file: &config.rules, added: &added }.warn_of_hidden();
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
        let blocks = blocks.map(|blocks| blocks.lock().unwrap_or_else(PoisonError::into_inner));
        let kernel = XdpFirewall::load(&Switches {
            multi_buffer,
            write_meta: false,
            max_connections: config.max_connections,
            timeouts,
            connections: kept.as_ref(),
            chain: Some(chain),
            steers: steer.is_some(),
            blocks: blocks.as_deref(),
            is_replay: false,
        })?;
        drop(blocks);
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
        let names = (0..fw_limits::FW_SLOTS.0).map(|_| None).collect();
        let mut firewall = Firewall {
            kernel,
            egress,
            egress_failure,
            mirror: Mirroring::load(),
            steer,
            guarded,
            devices,
            forwarding: Forwarding::default(),
            unchecked: None,
            xdp_mode,
            pins,
            keep,
            nothing_kept,
            established: false,
            kept: Vec::new(),
            behind: behind.iter().map(|one| one.name).collect(),
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
        firewall.keep_behind(chain, behind)?;
        Ok(firewall)
    }

    /// The agent's start went well: from here on `on_exit` says what stays. A firewall that ends before leaves the kernel as
    /// it was found, enforcing what was kept before, if anything.
    ///
    /// # Errors
    /// What an earlier agent kept, and this one does not, stays.
    pub fn establish(&mut self) -> Result<()> {
        if !self.keep {
            for guarded in &mut self.guarded {
                let attached = [&mut guarded.xdp, &mut guarded.egress, &mut guarded.mirror];
                attached.into_iter().flatten().try_for_each(Attached::unpin)?;
            }
        }
        self.release_pins()?;
        self.established = true;
        Ok(())
    }

    /// Pins what runs behind xdp_firewall, if the agent is to be outlived by it. The pins of an earlier agent are replaced:
    /// all interfaces run this agent's programs now, so nothing needs those any more.
    fn keep_behind(&mut self, chain: &Chain, behind: Vec<Behind>) -> Result<()> {
        if !self.keep || behind.is_empty() {
            return Ok(());
        }
        let chain = (NEXT_PIN, chain.map()?);
        for (name, map) in behind.into_iter().flat_map(|one| one.pins).chain([chain]) {
            let path = self.pins.join(name);
            bpf::xdp_firewall::pin_map(&map, &path)?;
            self.kept.push(path);
        }
        Ok(())
    }

    /// Lets go of what an earlier agent kept and this one does not: its successor with `on_exit = "detach"`, without an
    /// interface, or with the firewall switched off, must not leave it enforcing rules that nobody sees.
    fn release_pins(&self) -> Result<()> {
        let mut wanted: Vec<PathBuf> = Vec::new();
        if self.keep {
            wanted.push(self.pins.join(CONNECTIONS_PIN));
            wanted.extend(self.kept.iter().cloned());
            let attached = self.guarded.iter().flat_map(|one| [&one.xdp, &one.egress, &one.mirror]).flatten();
            wanted.extend(attached.filter_map(|one| one.pinned().map(PathBuf::from)));
        }
        attach::release_pins(&self.pins, &wanted)
    }

    /// The guarded interfaces, by number.
    fn ports(&self) -> Vec<Port> {
        self.guarded.iter().map(|one| Port { name: one.name.clone(), ifindex: one.ifindex }).collect()
    }

    /// Makes rules and policy live, or changes nothing.
    fn apply(&mut self, config: FirewallConfig, guard: Guard, added: Vec<Rule>) -> Result<()> {
        let ports = self.ports();
        let book = Book { file: &config.rules, added: &added };
        book.check_count(RULES_MAX).map_err(anyhow::Error::msg)?;
        let rules = book.in_order();
        let (slots, fresh) = self.slots.next(rules.iter().map(|rule| rule.id.as_str()))?;
        for slot in fresh {
            self.kernel.clear_slot(slot.into());
        }
        self.prepare_routes(&config);
        let number = self.generation + 1;
        let next = Generation { number, config: &config, rules: &rules, slots: &slots, ports: &ports, guard: &guard };
        self.mirror.prepare(&rules);
        self.kernel.swap(|tables| next.write(tables))?;
        self.mirror.follow(&rules, &slots, &ports);
        self.names.fill_with(|| None);
        for rule in &rules {
            if let Some(slot) = slots.get(&rule.id) {
                self.names[usize::from(slot)] = Some(Named { id: rule.id.as_str().into(), mitre: rule.mitre.clone() });
            }
        }
        self.metrics.set_rules_loaded(Component::Firewall, rules.iter().filter(|rule| rule.enabled).count());
        drop(rules);
        self.generation = number;
        self.slots = slots;
        if !asks_routes(&config) {
            self.forwarding.put_back();
        }
        (self.config, self.guard, self.added) = (config, guard, added);
        Ok(())
    }

    /// Sees to what a look at the routes needs, before packets are judged by them.
    fn prepare_routes(&mut self, config: &FirewallConfig) {
        self.unchecked = None;
        if !asks_routes(config) {
            return;
        }
        let standing = |one: &Guarded| {
            // A driver without ethtool operations has no offloads either.
            Some((one.ifindex?, offload::tag_hiders(&one.name).is_ok_and(|hiders| !hiders.is_empty())))
        };
        let guarded: Vec<_> = self.guarded.iter().map(standing).collect();
        let told = self.kernel.set_uppers(&uppers_of(&self.devices, &guarded));
        if let Err(error) = self.forwarding.switch_on().and(told) {
            let message = format!("firewall.rp_filter: {error:#}");
            log::error!("{message}");
            self.unchecked = Some(message);
        }
    }

    /// Takes a new section and guard, or changes nothing.
    ///
    /// # Errors
    /// A rule of the section has the name of one that was made through the API; the kernel refused.
    pub fn replace(&mut self, config: FirewallConfig, guard: Guard) -> Result<()> {
        self.book().refuse_names_of_added(&config.rules)?;
        self.replace_all(config, guard, self.added.clone())
    }

    fn replace_all(&mut self, config: FirewallConfig, guard: Guard, added: Vec<Rule>) -> Result<()> {
        let was = (self.config.enabled, self.mirror.is_wanted());
        self.apply(config, guard, added)?;
        if was != (self.config.enabled, self.mirror.is_wanted()) {
            self.attach_all(false)?;
        }
        Ok(())
    }

    fn count_of(&self, counts: &[RuleCount], rule: &Rule) -> RuleCount {
        self.slots.get(&rule.id).and_then(|slot| counts.get(usize::from(slot)).copied()).unwrap_or_default()
    }

    /// What would be done to a packet.
    pub fn explain(&self, question: &Question) -> Result<Asked, ChangeError> {
        let guarded =
            match &question.interface {
                Some(name) => self.guarded.iter().find(|one| one.name == *name).ok_or_else(|| {
                    ChangeError::Unfit(format!("interface: \"{name}\" is not among agent.interfaces"))
                })?,
                None => self.guarded.first().context("the agent guards no interface")?,
            };
        let frame =
            question.frame().ok_or_else(|| ChangeError::Unfit("dst_ip: not of the family of src_ip".to_owned()))?;
        let ifindex = guarded.ifindex.unwrap_or(0);
        let answered = self.kernel.explain(&frame, ifindex)?;
        let rule = |slot: u16| Some(self.names.get(usize::from(slot))?.as_ref()?.id.to_string());
        let explanation = Explanation::new(&answered, &guarded.name, rule).context("the program gave no answer")?;
        Ok(Asked { explanation, frame, ifindex })
    }

    /// Attaches to every interface that exists, and lets go of those that do not. With `first` a refusal is an error.
    fn attach_all(&mut self, first: bool) -> Result<()> {
        for at in 0..self.guarded.len() {
            if !self.config.enabled {
                for mut attached in self.guarded[at].take_all() {
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
            if let Err(error) = self.attach_mirror(at) {
                let message = format!("nothing is mirrored: {error:#}");
                if self.guarded[at].mirror_reason.as_ref() != Some(&message) {
                    log::error!("{}: {message}", self.guarded[at].name);
                }
                self.guarded[at].mirror_reason = Some(message);
            } else {
                self.guarded[at].mirror_reason = None;
            }
        }
        self.mirror.begin();
        let runs = self.guarded.iter().any(|one| one.xdp.is_some());
        for program in std::iter::once("xdp_firewall").chain(self.behind.iter().copied()) {
            self.metrics.set_program_active(program, runs);
        }
        self.metrics.set_program_active("tc_egress", self.guarded.iter().any(|one| one.egress.is_some()));
        self.metrics.set_program_active(mirror::PROGRAM, self.guarded.iter().any(|one| one.mirror.is_some()));
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
                attach::tc(program, "tc_egress", TcPlace::Egress, ifindex, &name)
            })?);
        }
        if let Some(failure) = &self.egress_failure {
            bail!("tc_egress is not loaded, so answers to this host's connections do not pass: {failure}");
        }
        Ok(())
    }

    /// Attaches tc_mirror as long as it is wanted. Packets are judged without it too, so its failure is not the firewall's.
    fn attach_mirror(&mut self, at: usize) -> Result<()> {
        let guarded = &mut self.guarded[at];
        let Some(program) = self.mirror.program() else {
            return guarded.mirror.take().map_or(Ok(()), |mut attached| attached.unpin());
        };
        if let Some(ifindex) = guarded.ifindex.filter(|_| guarded.mirror.is_none()) {
            let pin = self.pins.join(format!("mirror_{}", pin_name(&guarded.name)));
            guarded.mirror = Some(place(pin, self.keep, program, ifindex, |program| {
                attach::tc(program, mirror::PROGRAM, TcPlace::Ingress, ifindex, &guarded.name)
            })?);
        }
        Ok(())
    }

    /// Interfaces came, went or were renamed: looks at them anew.
    pub fn links_changed(&mut self, devices: Vec<Device>) -> Result<()> {
        self.devices = devices;
        let mut changed = false;
        for guarded in &mut self.guarded {
            let ifindex = attach::ifindex(&guarded.name);
            if guarded.ifindex != ifindex {
                changed = true;
                guarded.ifindex = ifindex;
                // The links went with the old interface; their pins, if any, name nothing any more.
                for mut attached in guarded.take_all() {
                    attached.unpin()?;
                }
            }
        }
        if changed {
            // Rules see interfaces by number; the new index must lead to it before the first packet is judged.
            self.apply(self.config.clone(), self.guard.clone(), self.added.clone())?;
        } else {
            self.mirror.look(&self.ports());
            self.prepare_routes(&self.config.clone());
        }
        self.attach_all(false)
    }

    /// What does not work as configured, a sentence each.
    pub fn degraded(&self) -> Vec<String> {
        if !self.config.enabled {
            return Vec::new();
        }
        let interfaces = self.guarded.iter().filter_map(|one| Some(format!("{}: {}", one.name, self.reason_of(one)?)));
        let mut reasons: Vec<String> = interfaces.collect();
        if self.config.rp_filter != RpFilter::Off {
            let off = || Some(format!("firewall.rp_filter: {}", forwarding::problem()?));
            reasons.extend(self.unchecked.clone().or_else(off));
            let in_vrf = |one: &&Guarded| one.ifindex.is_some_and(|ifindex| is_in_vrf(&self.devices, ifindex));
            reasons.extend(
                self.guarded
                    .iter()
                    .filter(in_vrf)
                    .map(|one| format!("firewall.rp_filter: {} is in a VRF, whose routes are not looked at", one.name)),
            );
        }
        reasons.extend(self.mirror.degraded(&self.ports()));
        reasons
    }

    /// What is wrong with an interface.
    fn reason_of(&self, one: &Guarded) -> Option<String> {
        one.reason
            .clone()
            .or_else(|| one.mirror_reason.clone())
            .or_else(|| one.xdp.as_ref().and_then(|_| hidden_tags(&self.book(), &one.name)))
    }

    /// For status.
    pub fn facts(&self) -> Facts {
        let rules = self.book().in_order();
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
        programs.push(self.mirror.status(enabled));
        if let Some(steer) = &self.steer {
            programs.push(ProgramStatus {
                name: xdp_steer::PROGRAM,
                enabled,
                facts: bpf::program_facts(steer.program()).ok(),
                failure: None,
                maps: steer.maps(),
            });
        }
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
                    mirror: one.mirror.as_ref().map(|attached| attached.mode),
                    reason: self.reason_of(one),
                })
                .collect(),
            programs,
            attachments: Vec::new(),
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
                forged: [Outcome::Dropped, Outcome::WouldDrop]
                    .map(|outcome| (outcome.name(), count.packets[cell_of(Reason::RpFilter, outcome)]))
                    .to_vec(),
                packets: [Outcome::Passed, Outcome::Dropped, Outcome::WouldDrop]
                    .into_iter()
                    .enumerate()
                    .map(|(number, outcome)| (outcome.name(), by_verdict(number)))
                    .collect(),
                bytes: vec![("ingress", count.bytes.iter().sum())],
            }
        });
        let rules = self.book().in_order().into_iter().map(|rule| {
            let count = self.count_of(&counts.rules, rule);
            let family = match rule.matches.is_ipv4() {
                Some(true) => "ipv4",
                Some(false) => "ipv6",
                None => "any",
            };
            RuleCounters { rule: rule.id.clone(), family, packets: count.packets, bytes: count.bytes }
        });
        Ok(KernelCounters {
            inspection: None,
            interfaces: interfaces.collect(),
            rules: rules.collect(),
            unparsable: UNPARSABLE.iter().copied().zip(misc.unparsable).skip(1).collect(),
            events_lost: vec![("ring_full", misc.ring_full)],
            connections: self.config.stateful.then(|| self.kernel.connection_count()),
            limits: None,
            l7: None,
            mirrors: self.mirror.counters(&self.ports())?,
            steered: self.steered()?,
        })
    }

    fn steered(&self) -> Result<Vec<SteerCounters>> {
        let counts = self.steer.as_ref().map_or(Ok(Vec::new()), XdpSteer::counts)?;
        let shown = |(cpu, count): (u32, steer_count)| SteerCounters {
            cpu: cpu.to_string(),
            steered: count.steered,
            arrived: count.arrived,
        };
        Ok(counts.into_iter().map(shown).collect())
    }

    /// A handle of the ring buffer, for the poller.
    pub fn events(&self) -> Result<MapHandle> {
        self.kernel.events()
    }

    /// The agent ends: what is pinned stays, the rest goes with it.
    pub fn stop(&mut self) {
        for guarded in &mut self.guarded {
            drop(guarded.take_all().collect::<Vec<_>>());
        }
        if !self.keep {
            self.forwarding.put_back();
        }
    }

    /// Takes back what a start did that failed.
    fn abandon(&mut self) -> Result<()> {
        self.stop();
        if !self.nothing_kept {
            return Ok(());
        }
        self.forwarding.put_back();
        attach::release_pins(&self.pins, &[])
    }

    fn alert_of(&self, verdict: &Verdict) -> Alert {
        let named = verdict.slot.and_then(|slot| self.names.get(usize::from(slot))?.as_ref());
        let rule = rule_of(verdict, |_| named.map(|named| named.id.clone()));
        let severity = severity_of(verdict);
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
        alert.mitre = named.map(|named| named.mitre.clone()).unwrap_or_default();
        let has_ports = verdict.src_port != 0 || verdict.dst_port != 0;
        alert.src_ip = verdict.src;
        alert.dst_ip = verdict.dst;
        alert.src_port = has_ports.then_some(verdict.src_port);
        alert.dst_port = has_ports.then_some(verdict.dst_port);
        alert.protocol = verdict.src.map(|_| verdict.protocol);
        alert.vlan_id = (verdict.vlan_id != 0).then_some(verdict.vlan_id);
        alert.tcp_flags = (verdict.src.is_some() && verdict.protocol == proto::TCP).then_some(verdict.tcp_flags);
        alert.bytes = Some(verdict.bytes);
        alert.interface = interface;
        alert.next_hop = verdict.next_hop.map(|(next_hop, _)| next_hop);
        alert.out_interface = verdict.next_hop.and_then(|(_, ifindex)| attach::interface_name(ifindex));
        alert.count = verdict.packets.into();
        alert
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        if !self.established
            && let Err(error) = self.abandon()
        {
            log::error!("giving the kernel back: {error:#}");
        }
    }
}

impl RuleOwner for Firewall {
    type Rule = Rule;
    type Counts = Counts;
    type View = RuleView;
    type Snapshot = Snapshot;

    fn book(&self) -> Book<'_, Rule> {
        Book { file: &self.config.rules, added: &self.added }
    }

    fn store(&self) -> &Store<Rule> {
        &self.store
    }

    fn rules_max(&self) -> usize {
        RULES_MAX
    }

    fn check(&self, rule: &Rule) -> Result<(), ChangeError> {
        let names: Vec<String> = self.guarded.iter().map(|one| one.name.clone()).collect();
        if let Some(message) = rule.mirror_to.as_deref().and_then(|name| loop_of(name, &names)) {
            return Err(ChangeError::Unfit(format!("rule {}: mirror_to: {message}", rule.id)));
        }
        check_surroundings(rule, Surroundings { stateful: Some(self.config.stateful), interfaces: Some(&names) })
    }

    fn replace_added(&mut self, added: Vec<Rule>) -> Result<()> {
        self.replace_all(self.config.clone(), self.guard.clone(), added)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot { config: self.config.clone(), guard: self.guard.clone(), added: self.added.clone() }
    }

    fn restore(&mut self, snapshot: Snapshot) -> Result<()> {
        let Snapshot { config, guard, added } = snapshot;
        self.replace_all(config, guard, added)
    }

    fn counts(&self) -> Result<Counts> {
        let rules = self.kernel.counts().rules;
        Ok(Counts { rules, clock: self.kernel.clock()?, now: SystemTime::now() })
    }

    fn view(&self, counts: &Counts, rule: &Rule, source: Source) -> RuleView {
        let count = self.count_of(&counts.rules, rule);
        let age = counts.clock.age_of(count.last_jiffies);
        RuleView::new(rule, source, count, age.and_then(|age| counts.now.checked_sub(age)))
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

/// Whether packets are judged by routes.
fn asks_routes(config: &FirewallConfig) -> bool {
    config.enabled && config.rp_filter != RpFilter::Off
}

/// Where an interface's counters have a reason with an outcome.
fn cell_of(reason: Reason, outcome: Outcome) -> usize {
    reason as usize * fw_verdict::FW_VERDICTS.0 as usize + outcome as usize
}

/// Takes over what is pinned at `pin`, or attaches anew. With `keep` it is pinned then, else when a start has gone well it
/// is no more: [`Firewall::establish`].
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
        attached.pin(&pin)?;
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
