//! Limits rates, in the kernel. Owns xdp_ratelimit and xdp_syncookie and all of their maps.
//!
//! Section `[ratelimit]`; routes under `/api/v1/ratelimit`. This thread compiles rules into the idle generation, swaps, and
//! turns the kernel's records into alerts. The program runs behind xdp_firewall, for what that one passes; buckets are
//! the kernel's, and outlive every change of rules that does not change what they count.

pub mod api;
pub mod buckets;
pub mod config;
pub mod cookies;
pub mod explain;
pub mod limit;
pub mod maps;
pub mod rule;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use libbpf_rs::MapHandle;

use self::api::{BucketView, RuleView, TopView};
use self::buckets::{bucket_view, common_view, instance_of, is_about, top_view};
use self::config::RatelimitConfig;
use self::cookies::HostTcp;
use self::maps::{Generation, Placed};
use self::rule::{Action, Rule};
use crate::abi::{fw_limits, rl_rule_count, xdp_chain};
use crate::alert::{Alert, AlertSender, Severity};
use crate::bpf::attach;
use crate::bpf::chain::Chain;
use crate::bpf::xdp_ratelimit::{Bucket, Counts, Switches, XdpRatelimit};
use crate::bpf::xdp_syncookie::{self, XdpSyncookie};
use crate::bpf::{self, ProgramStatus};
use crate::classify::guard::Guard;
use crate::classify::interfaces::Port;
use crate::classify::matching::proto;
use crate::classify::rules::Mode;
use crate::classify::slots::Slots;
use crate::classify::text::Surroundings;
use crate::component::Component;
use crate::event::{OverLimit, unix_time_of};
use crate::metrics::{LimitCounters, LimitRuleCounters, Metrics};
use crate::ruled::store::Store;
use crate::ruled::{Book, ChangeError, RuleOwner, Source, check_surroundings, hidden_tags};
use crate::supervise::Owned;

/// The programs' names.
pub const PROGRAM: &str = "xdp_ratelimit";
/// See [`PROGRAM`].
pub const COOKIE_PROGRAM: &str = "xdp_syncookie";
/// The pin of the map with the timer: without it the kernel's expiry of buckets ends with the agent.
const EXPIRY_PIN: &str = "rl_expiry";

/// How the limiter starts.
pub struct Start<'a> {
    /// Its section.
    pub config: RatelimitConfig,
    /// Names of the interfaces that the agent guards.
    pub interfaces: Vec<String>,
    /// Whether their frames may stand in several buffers; see [`bpf::wants_multi_buffer`].
    pub multi_buffer: bool,
    /// Whether xdp_steer is the last of the chain.
    pub steers: bool,
    /// The lock-out guard.
    pub guard: Guard,
    /// The programs behind the firewall, of which it becomes one.
    pub chain: &'a Chain,
    /// Where rules made through the API are kept.
    pub store: Store<Rule>,
    /// Where alerts go.
    pub alerts: AlertSender,
    /// The agent's metrics.
    pub metrics: Arc<Metrics>,
}

/// Rules and policy at one moment, to go back to.
#[derive(Clone, Debug)]
pub struct Snapshot {
    config: RatelimitConfig,
    guard: Guard,
    added: Vec<Rule>,
}

/// A rule's place in the kernel.
#[derive(Clone, Debug)]
struct Placing {
    instance: u32,
    rule: Rule,
}

/// The engine.
pub struct Ratelimit {
    kernel: XdpRatelimit,
    /// Or why it was not loaded.
    cookies: Result<XdpSyncookie, String>,
    host: Option<HostTcp>,
    ports: Vec<Port>,
    config: RatelimitConfig,
    guard: Guard,
    added: Vec<Rule>,
    store: Store<Rule>,
    slots: Slots,
    placings: HashMap<String, Placing>,
    last_instance: u32,
    names: Vec<Option<Arc<str>>>,
    generation: u32,
    alerts: AlertSender,
    metrics: Arc<Metrics>,
}

impl Ratelimit {
    /// Loads the program, puts the rules in force, and the program into the chain, which nothing runs before the firewall
    /// is attached.
    pub fn start(start: Start<'_>) -> Result<Ratelimit> {
        let Start { config, interfaces, multi_buffer, steers, guard, chain, store, alerts, metrics } = start;
        let added = store.load()?;
        Book { file: &config.rules, added: &added }.warn_of_hidden();
        let kernel =
            XdpRatelimit::load(Switches { multi_buffer, buckets: config.max_sources, chain: Some(chain), steers })?;
        let switches = xdp_syncookie::Switches { multi_buffer, chain: Some(chain), steers };
        // A kernel that cannot have it limits all the same, and readiness says what is missing if a rule needs it.
        let cookies = XdpSyncookie::load(&switches, &kernel).map_err(|error| format!("{error:#}"));
        let ports = interfaces.into_iter().map(|name| Port { ifindex: attach::ifindex(&name), name }).collect();
        let mut limiter = Ratelimit {
            kernel,
            cookies,
            host: None,
            ports,
            config: config.clone(),
            guard: guard.clone(),
            added: Vec::new(),
            store,
            slots: Slots::default(),
            placings: HashMap::new(),
            last_instance: 0,
            names: vec![None; fw_limits::FW_SLOTS.0 as usize],
            generation: 0,
            alerts,
            metrics,
        };
        limiter.apply(config, guard, added)?;
        chain.set(xdp_chain::CHAIN_RATELIMIT, limiter.kernel.program())?;
        if let Ok(cookies) = &limiter.cookies {
            chain.set(xdp_chain::CHAIN_SYNCOOKIE, cookies.program())?;
        }
        Ok(limiter)
    }

    /// The maps that it needs when the agent is gone, by the names of their pins.
    pub fn pins(&self) -> Result<Vec<(&'static str, MapHandle)>> {
        Ok(vec![(EXPIRY_PIN, self.kernel.expiry()?)])
    }

    /// A handle of the ring buffer, for the poller.
    pub fn events(&self) -> Result<MapHandle> {
        self.kernel.events()
    }

    /// Makes rules and policy live, or changes nothing.
    fn apply(&mut self, config: RatelimitConfig, guard: Guard, added: Vec<Rule>) -> Result<()> {
        let mut rules: Vec<Rule> =
            Book { file: &config.rules, added: &added }.in_order().into_iter().cloned().collect();
        rules.extend(config.default_rule());
        let (slots, fresh) = self.slots.next(rules.iter().map(|rule| rule.id.as_str()))?;
        let (placings, last_instance) = self.place(&rules);
        let placed = rules
            .iter()
            .map(|rule| {
                let slot = slots.get(&rule.id).with_context(|| format!("rule {} has no counter", rule.id))?;
                let instance = placings.get(&rule.id).map_or(0, |placing| placing.instance);
                if fresh.contains(&slot) {
                    self.kernel.clear_slot(slot.into(), rule.algorithm.in_kernel())?;
                } else if self.placings.get(&rule.id).is_none_or(|old| old.instance != instance) {
                    self.kernel.renew_common(slot.into(), rule.algorithm.in_kernel())?;
                }
                Ok(Placed { rule, slot, instance })
            })
            .collect::<Result<Vec<_>>>()?;
        let number = self.generation + 1;
        let enforce = config.mode == Mode::Block;
        let next = Generation { number, enforce, rules: &placed, ports: &self.ports, guard: &guard };
        self.kernel.swap(|tables, kernel_rules| next.write(tables, kernel_rules))?;
        self.names.fill(None);
        for one in &placed {
            self.names[usize::from(one.slot)] = Some(one.rule.id.as_str().into());
        }
        self.metrics.set_rules_loaded(Component::Ratelimit, rules.iter().filter(|rule| rule.enabled).count());
        self.generation = number;
        (self.slots, self.placings, self.last_instance) = (slots, placings, last_instance);
        (self.config, self.guard, self.added) = (config, guard, added);
        self.renew_cookies()
    }

    /// The rule that answers SYNs first, if one does so and not only tells.
    fn cookie_rule(&self) -> Option<&Rule> {
        let book = self.book();
        let enforced = self.config.mode == Mode::Block;
        cookies::first_rule(book.in_order().into_iter().filter(|rule| enforced && rule.action == Action::Drop))
    }

    /// Looks anew at what SYN cookies need of the interfaces.
    fn renew_cookies(&mut self) -> Result<()> {
        if let Ok(program) = &mut self.cookies {
            cookies::set_interfaces(program, &self.ports)?;
        }
        self.look_at_host();
        Ok(())
    }

    /// Looks at the settings of this host's TCP, which an administrator may change at any time, if a rule needs them.
    /// Once a second is enough.
    pub fn look_at_host(&mut self) {
        let Some(rule) = self.cookie_rule().map(|rule| rule.id.clone()) else {
            self.host = None;
            return;
        };
        let Ok(program) = &mut self.cookies else { return };
        let host = HostTcp::read();
        if self.host == Some(host) {
            return;
        }
        if self.host.is_none() {
            // Until now nobody noted which connections ended.
            match self.kernel.now() {
                Ok(now) => program.watch_from(now),
                Err(error) => log::error!("{error:#}"),
            }
        }
        for message in [host.refusal(), host.shortcoming()].into_iter().flatten() {
            log::warn!("rule {rule}: {message}");
        }
        program.set_host(host.in_kernel());
        self.kernel.set_cookies_usable(host.takes_cookies());
        self.host = Some(host);
    }

    /// Why SYNs are not answered as a rule says, a sentence each.
    fn cookie_failures(&self) -> Vec<String> {
        let Some(rule) = self.cookie_rule() else { return Vec::new() };
        if let Err(failure) = &self.cookies {
            return vec![format!("rule {}: {COOKIE_PROGRAM} is not loaded, so SYNs go on: {failure}", rule.id)];
        }
        let refusal = HostTcp::read().refusal().map(|message| format!("rule {}: {message}", rule.id));
        let interfaces = self.ports.iter().filter_map(|port| {
            cookies::interface_refusal(&port.name).map(|message| format!("{}: {message}", port.name))
        });
        refusal.into_iter().chain(interfaces).collect()
    }

    /// Gives each rule its instance: a rule that counts as before keeps its buckets, whatever else of it has changed.
    /// Numbers come round after 16 million changes, when buckets of the first ones have long expired.
    fn place(&self, rules: &[Rule]) -> (HashMap<String, Placing>, u32) {
        let mut last = self.last_instance;
        let mut placings = HashMap::with_capacity(rules.len());
        for rule in rules {
            let kept = self.placings.get(&rule.id).filter(|old| old.rule.counts_like(rule));
            let instance = kept.map_or_else(
                || {
                    last = last % buckets::INSTANCE_MAX + 1;
                    last
                },
                |old| old.instance,
            );
            placings.insert(rule.id.clone(), Placing { instance, rule: rule.clone() });
        }
        (placings, last)
    }

    /// Takes a new section and guard, or changes nothing.
    ///
    /// # Errors
    /// A rule of the section has the name of one that was made through the API; the kernel refused.
    pub fn replace(&mut self, config: RatelimitConfig, guard: Guard) -> Result<()> {
        self.book().refuse_names_of_added(&config.rules)?;
        self.apply(config, guard, self.added.clone())
    }

    /// Interfaces came, went or were renamed: looks at them anew.
    pub fn links_changed(&mut self) -> Result<()> {
        let mut changed = false;
        for port in &mut self.ports {
            let ifindex = attach::ifindex(&port.name);
            changed |= port.ifindex != ifindex;
            port.ifindex = ifindex;
        }
        if changed {
            return self.apply(self.config.clone(), self.guard.clone(), self.added.clone());
        }
        // An interface may have another MAC address now.
        self.renew_cookies()
    }

    /// What does not work as configured, a sentence each.
    pub fn degraded(&self) -> Vec<String> {
        let hidden = |port: &Port| Some(format!("{}: {}", port.name, hidden_tags(&self.book(), &port.name)?));
        self.ports.iter().filter_map(hidden).chain(self.cookie_failures()).collect()
    }

    /// Names of the programs that run.
    pub fn programs(&self) -> Vec<&'static str> {
        if self.cookies.is_ok() { vec![PROGRAM, COOKIE_PROGRAM] } else { vec![PROGRAM] }
    }

    /// The programs, for status.
    pub fn program_status(&self) -> [ProgramStatus; 2] {
        let limiter = ProgramStatus {
            name: PROGRAM,
            enabled: true,
            facts: bpf::program_facts(self.kernel.program()).ok(),
            failure: None,
            maps: self.kernel.maps(),
        };
        let cookies = self.cookies.as_ref();
        let answers = ProgramStatus {
            name: COOKIE_PROGRAM,
            enabled: self.cookie_rule().is_some(),
            facts: cookies.ok().and_then(|one| bpf::program_facts(one.program()).ok()),
            failure: cookies.err().cloned(),
            maps: cookies.map(XdpSyncookie::maps).unwrap_or_default(),
        };
        [limiter, answers]
    }

    /// Rules in force, those made through the API included.
    pub fn rule_count(&self) -> usize {
        self.book().in_order().len()
    }

    /// What the kernel counted, for Prometheus.
    pub fn counters(&self) -> LimitCounters {
        let counts = self.kernel.counts();
        let passes = |rule: &Rule| rule.action == Action::Pass || self.config.mode == Mode::Alert;
        let rules = self.placings.values().map(|placing| {
            let rule = &placing.rule;
            let count = self.count_of(&counts, &rule.id);
            let over = if passes(rule) { "would_drop" } else { "drop" };
            LimitRuleCounters {
                rule: rule.id.clone(),
                counts: vec![("pass", count.passed, count.passed_bytes), (over, count.dropped, count.dropped_bytes)],
            }
        });
        let mut rules: Vec<_> = rules.collect();
        rules.sort_by(|one, other| one.rule.cmp(&other.rule));
        let in_use = counts.made.saturating_sub(counts.replaced).saturating_sub(counts.expired);
        LimitCounters {
            rules,
            buckets: (in_use, self.kernel.capacity() as u64),
            ended: vec![("replaced", counts.replaced), ("expired", counts.expired)],
            exceptional: vec![("crowded", counts.crowded), ("contended", counts.contended)],
            cookies: self
                .cookies
                .as_ref()
                .ok()
                .and_then(|program| program.counts().inspect_err(|error| log::warn!("{error:#}")).ok())
                .map_or_else(Vec::new, |counts| cookies::by_name(&counts)),
            events_lost: vec![("ring_full", counts.ring_full)],
        }
    }

    fn count_of(&self, counts: &Counts, id: &str) -> rl_rule_count {
        self.slots.get(id).and_then(|slot| counts.rules.get(usize::from(slot)).copied()).unwrap_or_default()
    }

    /// The buckets with most packets over their limit, the worst first.
    pub fn top(&self, limit: usize, offset: usize) -> Result<Vec<TopView>> {
        let rules = self.rules_by_instance();
        let own = self.kernel.buckets().filter_map(|one| Some((*rules.get(&instance_of(&one))?, one, false)));
        let common = self.placings.values().filter_map(|placing| {
            let slot = self.slots.get(&placing.rule.id)?;
            Some((&placing.rule, self.kernel.common_at(slot.into()), true))
        });
        let mut over: Vec<(&Rule, Bucket, bool)> = own.chain(common).filter(|(_, one, _)| one.dropped != 0).collect();
        let key = |(rule, of, _): &(&Rule, Bucket, bool)| (std::cmp::Reverse(of.dropped), of.key, rule.priority);
        over.sort_by_key(key);
        let (now, ticks) = (self.kernel.now()?, bpf::jiffies_per_second()?);
        let view = |(rule, of, is_common): &(&Rule, Bucket, bool)| match is_common {
            false => top_view(rule, of, now, ticks),
            true => common_view(rule, of, now, ticks),
        };
        Ok(over.iter().skip(offset).take(limit).map(view).collect())
    }

    /// The buckets of an address, as source or as destination.
    pub fn buckets_of(&self, address: IpAddr) -> Result<Vec<BucketView>> {
        let (now, rules, ticks) = (self.kernel.now()?, self.rules_by_instance(), bpf::jiffies_per_second()?);
        let found = self.kernel.buckets().filter_map(|one| {
            let rule = rules.get(&instance_of(&one))?;
            is_about(rule, &one, address).then(|| bucket_view(rule, &one, now, ticks))
        });
        Ok(found.collect())
    }

    fn rules_by_instance(&self) -> HashMap<u32, &Rule> {
        self.placings.values().map(|placing| (placing.instance, &placing.rule)).collect()
    }

    fn alert_of(&self, over: &OverLimit) -> Alert {
        let rule: Arc<str> =
            self.names.get(usize::from(over.slot)).cloned().flatten().unwrap_or_else(|| "deleted".into());
        let known = self.placings.get(&*rule).map(|placing| &placing.rule);
        let passes = self.config.mode == Mode::Alert || known.is_some_and(|known| known.action == Action::Pass);
        let whose = if over.is_common { "together with others" } else { "from this source" };
        let (action, message) = match (known.is_some_and(Rule::is_about_cookies), passes) {
            (true, true) => ("would_challenge", format!("SYNs beyond the threshold of {rule}, passed")),
            (true, false) => ("challenge", format!("SYNs beyond the threshold of {rule}, answered with cookies")),
            (false, true) => ("would_drop", format!("packets over rate limit {rule} {whose}, passed")),
            (false, false) => ("drop", format!("packets over rate limit {rule} {whose}, dropped")),
        };
        let mitre = known.map(|known| known.mitre.clone()).unwrap_or_default();
        let timestamp_ns = unix_time_of(over.boot_ns);
        let mut alert = Alert::new(Component::Ratelimit, Severity::Medium, rule, action, timestamp_ns, message);
        alert.mitre = mitre;
        let has_ports = over.src_port != 0 || over.dst_port != 0;
        alert.src_ip = over.src;
        alert.dst_ip = over.dst;
        alert.src_port = has_ports.then_some(over.src_port);
        alert.dst_port = has_ports.then_some(over.dst_port);
        alert.protocol = Some(over.protocol);
        alert.interface = self.ports.iter().find(|one| one.ifindex == Some(over.ifindex)).map(|one| one.name.clone());
        alert.vlan_id = (over.vlan_id != 0).then_some(over.vlan_id);
        alert.tcp_flags = (over.protocol == proto::TCP).then_some(over.tcp_flags);
        alert.bytes = Some(over.bytes);
        alert.count = over.packets.into();
        alert
    }
}

impl RuleOwner for Ratelimit {
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
        self.config.rules_max()
    }

    fn check(&self, rule: &Rule) -> Result<(), ChangeError> {
        let names: Vec<String> = self.ports.iter().map(|one| one.name.clone()).collect();
        check_surroundings(rule, Surroundings { stateful: None, interfaces: Some(&names) })
    }

    fn replace_added(&mut self, added: Vec<Rule>) -> Result<()> {
        self.apply(self.config.clone(), self.guard.clone(), added)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot { config: self.config.clone(), guard: self.guard.clone(), added: self.added.clone() }
    }

    fn restore(&mut self, snapshot: Snapshot) -> Result<()> {
        let Snapshot { config, guard, added } = snapshot;
        self.apply(config, guard, added)
    }

    fn counts(&self) -> Result<Counts> {
        Ok(self.kernel.counts())
    }

    fn view(&self, counts: &Counts, rule: &Rule, source: Source) -> RuleView {
        RuleView::new(rule, source, self.count_of(counts, &rule.id))
    }
}

impl Owned for Ratelimit {
    type Event = OverLimit;

    fn event(&mut self, over: OverLimit, _now: Instant) {
        let begun = Instant::now();
        self.alerts.send(self.alert_of(&over));
        self.metrics.processing(Component::Ratelimit).observe(begun.elapsed().as_secs_f64());
    }
}
