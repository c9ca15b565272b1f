//! Start, wire, reload, stop: the only file that knows all parts.
//!
//! Order of start: configuration, programs loaded and their maps filled, attached, then the control port. Order of stop
//! is the reverse; what the kernel goes on doing is `agent.on_exit`.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use crossbeam_channel::Sender;
use libbpf_rs::MapHandle;
use serde_json::Value;

use crate::abi::xdp_chain;
use crate::alert::hub::{self, Hub};
use crate::alert::{self, Alerting, Route, Suppressions};
use crate::api::{ApiError, Note};
use crate::audit::store::AuditStore;
use crate::audit::{self, Actor, Auditor, Entry, NoAuditor};
use crate::bpf::attach::{self, AttachMode, XdpMode};
use crate::bpf::chain::Chain;
use crate::bpf::ringbuf::{self, Ring, Taker};
use crate::bpf::tc_ids::PROGRAMS;
use crate::bpf::xdp_steer::{self, XdpSteer};
use crate::bpf::{self, PIN_DIR};
use crate::classify::guard::Guard;
use crate::classify::interfaces::Device;
use crate::config::agent::{AgentConfig, ControlSocket, CpuSteering, GuardFrom, OnExit, XdpMode as WrittenXdpMode};
use crate::config::{self, Config};
use crate::confirm::{Confirmations, Expired};
use crate::control::agent::{
    self as shown, AgentControl, AgentStatus, Confirmed, EbpfStatus, FirewallRuleCounts, InterfaceStatus,
    PendingConfirm, Readiness, Reloaded,
};
use crate::control::auth::Auth;
use crate::control::grpc::{self, Grpc, GrpcConfig};
use crate::control::tls::{TlsState, TlsStore};
use crate::control::{Control, ControlConfig, Port, UnixSocket, stream};
use crate::engines::firewall::{self, Behind, Facts, Firewall};
use crate::engines::l7::{self, L7};
use crate::engines::ratelimit::{self, Ratelimit};
use crate::enrichment::{Processes, Scanner};
use crate::event::{Event, OverLimit};
use crate::inspection::{self, Inspection, SharedBlocks, Worker};
use crate::logging::rfc3339;
use crate::metrics::{InspectionCounters, KernelCounters, Metrics};
use crate::ruled::RuleOwner;
use crate::ruled::store::Store;
use crate::store;
use crate::store::alerts::AlertStore;
use crate::supervise::{Gone, Handle, Mailbox, Supervisor, Thread};
use crate::system::harden::{self, Sandbox};
use crate::system::{LinkWatch, MainEvent, MainLoop, Notifier, Signal, Signals};

/// Records that wait for an engine.
const EVENTS_MAX: usize = 8192;
/// Alerts that wait for the router.
const ALERTS_MAX: usize = 4096;
/// How often the poller looks at the ring buffers; records do not wake it.
const POLL: Duration = Duration::from_millis(1);
/// How long a thread may take to end.
const STOP: Duration = Duration::from_secs(5);
/// How long a thread may give no sign of life before the watchdog is left to bark.
const STALL: Duration = Duration::from_secs(10);

/// What the command line says about the run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Flags that override keys: name, key, value.
    pub flags: Vec<(String, String, String)>,
}

impl Options {
    /// Reads and checks the configuration as the agent would.
    pub fn load(&self) -> Result<config::Loaded, config::ConfigErrors> {
        let flags: Vec<config::Flag<'_>> =
            self.flags.iter().map(|(name, key, value)| config::Flag { name, key, value }).collect();
        config::load(&self.config, std::env::vars_os(), &flags)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// Once a second: what waits for its confirmation.
    Second,
    Watchdog,
    Links,
}

/// The engines that run.
#[derive(Clone)]
struct Engines {
    firewall: Handle<Firewall>,
    ratelimit: Option<Handle<Ratelimit>>,
    l7: Option<Handle<L7>>,
    inspection: Option<Handle<Inspection>>,
    workers: Vec<Handle<Worker>>,
}

/// The agent's main thread: reloads and the configuration in force belong to it.
struct Agent {
    options: Options,
    config: Config,
    engines: Engines,
    auth: Arc<Auth>,
    alerting: Arc<Alerting>,
    metrics: Arc<Metrics>,
    confirmations: Arc<Confirmations>,
    shared: Arc<Mutex<Config>>,
    stores: Stores,
    /// With `tls.enabled`.
    tls: Option<Arc<TlsStore>>,
    sandbox: Arc<Sandbox>,
}

/// What the control port sees of the agent.
struct Front {
    agent: Handle<Agent>,
    engines: Engines,
    auth: Arc<Auth>,
    confirmations: Arc<Confirmations>,
    shared: Arc<Mutex<Config>>,
    stores: Stores,
    tls: Option<Arc<TlsStore>>,
    sandbox: Arc<Sandbox>,
    /// Where gRPC listens.
    grpc: Option<SocketAddr>,
    started: Instant,
}

/// What outlives a run; `None` where it is switched off.
#[derive(Clone)]
struct Stores {
    audit: Option<AuditStore>,
    alerts: Option<AlertStore>,
}

/// The TCP ports, bound while the agent may bind any.
struct Ports {
    /// REST and metrics.
    http: [Port; 2],
    grpc: Option<Port>,
}

impl Ports {
    fn bind(agent: &AgentConfig) -> Result<Ports> {
        let bind = |port, key| Port::bind(SocketAddr::new(agent.bind_address, port), key);
        Ok(Ports {
            http: [bind(agent.http_port, "agent.http_port")?, bind(agent.metrics_port, "agent.metrics_port")?],
            grpc: (agent.grpc_port != 0).then(|| bind(agent.grpc_port, "agent.grpc_port")).transpose()?,
        })
    }
}

/// The threads of the stores.
struct StoreThreads {
    audit: Option<Thread<audit::store::Writer>>,
    alerts: Option<Thread<store::alerts::Writer>>,
}

/// Runs until a signal or a failure ends it. An error is a start that failed, or a thread that did.
pub fn run(options: Options) -> Result<()> {
    // Before any thread starts: threads inherit the mask.
    let signals = Signals::block().context("blocking signals")?;
    let loaded = options.load().map_err(|errors| anyhow::anyhow!("the configuration has errors\n{errors}"))?;
    let config = &loaded.config;
    crate::logging::init(config.agent.log_level, config.agent.log_format)?;
    bpf::log_libbpf();
    for warning in &loaded.warnings {
        log::warn!("{warning}");
    }

    let tls = load_tls(config)?;
    let notifier = Notifier::from_env().context("reading NOTIFY_SOCKET")?;
    let _lock = lock_state(&config.agent.state_dir)?;
    let metrics = Metrics::new();
    let (supervisor, failures) = Supervisor::new().context("setting up supervision")?;
    let mut main_loop = MainLoop::<Timer>::new(signals, failures).context("setting up the main loop")?;
    let devices = main_loop.watch_links().context("listening to changes of network links")?.devices();
    main_loop.watch_config(&loaded.path).with_context(|| format!("watching {}", loaded.path.display()))?;
    main_loop.watch_files(&config.tls.files()).context("watching the files of [tls]")?;
    let (agent_handle, mailbox) = Mailbox::<Agent>::new("main").context("setting up the main thread's mailbox")?;
    main_loop.hear_calls(&mailbox.bell()).context("listening to calls")?;

    let config = &loaded.config;
    let enclosed = config.agent.sandbox;
    // Before the walls: it looks into processes, which no thread behind them may.
    let looking = move || if enclosed { harden::keep_only(harden::LOOKING) } else { Ok(()) };
    let (scanner, bounded) = Scanner::start(&supervisor, looking).context("starting the look-up of processes")?;
    if config.firewall.enabled && config.agent.on_exit == OnExit::Keep {
        // Mounting is the first that ends.
        attach::prepare_pins(&pin_dir(&config.agent.state_dir))?;
    }
    let socket = bind_socket(&config.agent)?;
    let ports = Ports::bind(&config.agent)?;
    let sandbox = Arc::new(if enclosed { Sandbox::enter(&sandbox_plan(&loaded)?) } else { Sandbox::off() });
    if let Err(error) = &bounded {
        sandbox.note("dropping capabilities of the look-up of processes", error);
    }
    let config = loaded.config;
    let auth = Auth::new(&config.auth, &config.tls.clients, &metrics, &supervisor).context("setting up [auth]")?;

    let (alerts, alert_queue) = alert::queue(&metrics, ALERTS_MAX);
    let hub = Hub::new(hub::RING);
    let processes = Processes::open(scanner.clone(), Instant::now());
    let processes = processes.inspect_err(|error| log::warn!("alerts name no processes: {error}")).ok();
    let suppressions = Arc::new(Suppressions::default());
    let (stores, store_threads) = Stores::start(&config, &suppressions, &metrics, &supervisor)?;
    if let Some(alerts) = &stores.alerts {
        hub.set_history(Arc::new(alerts.clone()));
    }
    let mut own = vec![Route::all(hub.sink())];
    own.extend(stores.alerts.as_ref().map(|alerts| Route::all(alerts.sink())));
    let start = alert::Start {
        config: &config.alerting,
        own,
        suppressions,
        processes,
        alerts: alert_queue,
        state_dir: config.agent.state_dir.clone(),
        metrics: metrics.clone(),
    };
    let (alerting, router_thread) = Alerting::start(start, &supervisor).context("starting [alerting]")?;
    let alerting = Arc::new(alerting);

    let guard = guard_of(&config.agent);
    let xdp_mode = match config.agent.xdp_mode {
        WrittenXdpMode::Auto => XdpMode::Auto,
        WrittenXdpMode::Native => XdpMode::Native,
        WrittenXdpMode::Generic => XdpMode::Generic,
    };
    let multi_buffer = bpf::wants_multi_buffer(&config.agent.interfaces, xdp_mode);
    let chain = Chain::new()?;
    let steer = start_steering(&config.agent, multi_buffer, &chain).context("starting agent.cpu_steering")?;
    let limiter = if config.ratelimit.enabled {
        let start = ratelimit::Start {
            config: config.ratelimit.clone(),
            interfaces: config.agent.interfaces.clone(),
            multi_buffer,
            steers: steer.is_some(),
            guard: guard.clone(),
            chain: &chain,
            store: Store::new(&config.agent.state_dir),
            alerts: alerts.clone(),
            metrics: metrics.clone(),
        };
        Some(Ratelimit::start(start).context("starting the rate limiter")?)
    } else {
        None
    };
    let blocks = config.inspects().then(inspection::new_blocks).transpose().context("making room for blocks")?;
    let engine = Firewall::start(firewall::Start {
        config: config.firewall.clone(),
        interfaces: config.agent.interfaces.clone(),
        devices,
        xdp_mode,
        multi_buffer,
        guard: guard.clone(),
        pins: pin_dir(&config.agent.state_dir),
        keep: config.agent.on_exit == OnExit::Keep,
        chain: &chain,
        behind: [limiter.as_ref().map(behind).transpose()?, steer.as_ref().map(steering).transpose()?]
            .into_iter()
            .flatten()
            .flatten()
            .collect(),
        steer,
        blocks: blocks.as_ref(),
        store: Store::new(&config.agent.state_dir),
        alerts: alerts.clone(),
        metrics: metrics.clone(),
    })
    .context("starting the firewall")?;
    let (events, event_queue) = crossbeam_channel::bounded(EVENTS_MAX);
    let (limit_events, limit_queue) = crossbeam_channel::bounded(EVENTS_MAX);
    let rings = Rings { firewall: engine.events()?, ratelimit: limiter.as_ref().map(Ratelimit::events).transpose()? };
    let (firewall, firewall_thread) = supervisor.spawn_owner("firewall", engine, event_queue)?;
    let limiter = limiter.map(|limiter| supervisor.spawn_owner("ratelimit", limiter, limit_queue)).transpose()?;
    let (ratelimit, ratelimit_thread) = limiter.unzip();
    let l7 = config.l7.enabled.then(|| start_l7(&config, &supervisor, &metrics)).transpose()?;
    let (l7, l7_thread) = l7.unzip();
    let threads = match &blocks {
        Some(blocks) => {
            let told = (alerts, &metrics);
            Some(start_inspection(&config, blocks, &guard, l7.as_ref(), scanner, told, &supervisor)?)
        }
        None => None,
    };
    let engines = Engines {
        firewall,
        ratelimit,
        l7,
        inspection: threads.as_ref().map(inspection::Threads::inspection),
        workers: threads.as_ref().map(inspection::Threads::workers).unwrap_or_default(),
    };
    let stop_poller = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let poller_thread = spawn_poller(&supervisor, rings, (events, limit_events), &metrics, stop_poller.clone())?;
    metrics.set_kernel_source(Box::new({
        let engines = engines.clone();
        move || engines.counters()
    }));

    // The control port and all that come after it are born behind the last wall.
    sandbox.close();
    for failure in sandbox.degraded() {
        log::error!("{failure}");
    }
    let confirmations = Arc::new(Confirmations::default());
    let shared = Arc::new(Mutex::new(config.clone()));
    let front = Front {
        agent: agent_handle,
        engines: engines.clone(),
        auth: auth.clone(),
        confirmations: confirmations.clone(),
        shared: shared.clone(),
        stores: stores.clone(),
        sandbox: sandbox.clone(),
        grpc: None,
        tls: tls.clone(),
        started: Instant::now(),
    };
    let started = start_grpc(
        ports.grpc,
        &hub,
        grpc::gate_of(auth.clone(), stores.auditor()),
        tls.as_ref(),
        &supervisor,
        &metrics,
    )
    .and_then(|grpc| {
        let front = Front { grpc: grpc.as_ref().map(Grpc::address), ..front };
        start_control(&config, &supervisor, (front, ports.http, socket), &engines, &confirmations, &hub, &metrics)
            .map(|control| (grpc, control))
    });
    let (grpc, control) = match started {
        Ok(started) => started,
        Err(error) => {
            match engines.firewall.call(Firewall::abandon) {
                Ok(Ok(())) => {}
                Ok(Err(also)) => log::error!("giving the kernel back: {also:#}"),
                Err(gone) => log::error!("giving the kernel back: {gone}"),
            }
            return Err(error);
        }
    };
    let rest = control.addresses().rest;
    let also = grpc.as_ref().map_or_else(String::new, |grpc| format!(", gRPC on {}", grpc.address()));
    log::info!(
        version = env!("CARGO_PKG_VERSION"), rest = rest.to_string().as_str();
        "agent started; REST on {rest}{}{}{also}", if tls.is_some() { " by TLS" } else { "" },
        control.socket().map(|path| format!(" and {}", path.display())).unwrap_or_default()
    );
    notifier.ready("protecting");

    let mut agent = Agent {
        options,
        config,
        engines: engines.clone(),
        auth,
        alerting: alerting.clone(),
        metrics,
        confirmations,
        shared,
        stores: stores.clone(),
        tls,
        sandbox,
    };
    let ended = agent.serve(&mut main_loop, &mailbox, &notifier, &supervisor);
    notifier.stopping();
    // From here on a second signal ends the process at once.
    let _ = main_loop.signals().release();
    // Streams end with it, and then the ports that they are on.
    hub.close();
    if let Some(Err(gone)) = grpc.map(Grpc::stop) {
        log::warn!("{gone}");
    }
    control.stop();
    stop_poller.store(true, std::sync::atomic::Ordering::Release);
    let _ = poller_thread.join(STOP);
    for gone in threads.map(|threads| threads.stop(STOP)).unwrap_or_default() {
        log::warn!("{gone}");
    }
    // The engines tell what they still know before the router does.
    let limiter = engines.ratelimit.as_ref().zip(ratelimit_thread);
    let l7 = engines.l7.as_ref().zip(l7_thread);
    for gone in [
        l7.map_or(Ok(()), |(handle, thread)| handle.stop().and_then(|()| thread.join(STOP).map(drop))),
        engines.firewall.stop().and_then(|()| firewall_thread.join(STOP).map(drop)),
        limiter.map_or(Ok(()), |(handle, thread)| handle.stop().and_then(|()| thread.join(STOP).map(drop))),
        alerting.stop(router_thread, STOP),
    ] {
        if let Err(gone) = gone {
            log::warn!("{gone}");
        }
    }
    // The last of all: what the others did while they stopped is kept, too.
    for gone in stores.stop(store_threads) {
        log::warn!("{gone}");
    }
    log::info!("agent stopped");
    ended
}

impl Stores {
    /// Starts those that are wanted. A file that cannot be opened is no error: it is told by readiness.
    fn start(
        config: &Config,
        suppressions: &Arc<Suppressions>,
        metrics: &Arc<Metrics>,
        supervisor: &Supervisor,
    ) -> Result<(Stores, StoreThreads)> {
        let audit = config.audit.enabled.then(|| {
            let path = config.audit.trail_file(&config.agent.state_dir);
            AuditStore::start(path, config.audit.limits(), metrics, supervisor).context("starting the audit trail")
        });
        let (audit, audit_thread) = audit.transpose()?.unzip();
        let alerts = config.audit.alerts.enabled.then(|| {
            let path = config.audit.alerts_file(&config.agent.state_dir);
            AlertStore::start(path, config.audit.alerts.limits(), suppressions, metrics, supervisor)
                .context("starting the store of alerts")
        });
        let (alerts, alerts_thread) = alerts.transpose()?.unzip();
        Ok((Stores { audit, alerts }, StoreThreads { audit: audit_thread, alerts: alerts_thread }))
    }

    /// Whom operations are told to.
    fn auditor(&self) -> Arc<dyn Auditor> {
        match &self.audit {
            Some(audit) => Arc::new(audit.clone()),
            None => Arc::new(NoAuditor),
        }
    }

    /// Other limits, at a reload.
    fn reconfigure(&self, config: &Config) {
        if let Some(audit) = &self.audit {
            let limits = config.audit.limits();
            if let Err(gone) = audit.handle().call(move |writer| writer.set_limits(limits)) {
                log::error!("the audit trail keeps its old limits: {gone}");
            }
        }
        if let Some(alerts) = &self.alerts {
            let limits = config.audit.alerts.limits();
            if let Err(gone) = alerts.handle().call(move |writer| writer.set_limits(limits)) {
                log::error!("the store of alerts keeps its old limits: {gone}");
            }
        }
    }

    fn degraded(&self) -> Vec<String> {
        let audit = self.audit.iter().flat_map(AuditStore::health);
        audit.chain(self.alerts.iter().flat_map(AlertStore::health)).collect()
    }

    fn stop(&self, threads: StoreThreads) -> Vec<Gone> {
        let audit = self.audit.as_ref().zip(threads.audit);
        let audit = audit.map(|(audit, thread)| audit.handle().stop().and_then(|()| thread.join(STOP).map(drop)));
        let alerts = self.alerts.as_ref().zip(threads.alerts);
        let alerts = alerts.map(|(alerts, thread)| alerts.handle().stop().and_then(|()| thread.join(STOP).map(drop)));
        [alerts, audit].into_iter().flatten().filter_map(Result::err).collect()
    }
}

impl Agent {
    /// Serves until a signal (then all is well) or the failure of a thread.
    fn serve(
        &mut self,
        main_loop: &mut MainLoop<Timer>,
        mailbox: &Mailbox<Agent>,
        notifier: &Notifier,
        supervisor: &Supervisor,
    ) -> Result<()> {
        main_loop.set_timer(Timer::Second, Instant::now() + Duration::from_secs(1));
        if let Some(interval) = notifier.watchdog_interval() {
            main_loop.set_timer(Timer::Watchdog, Instant::now() + interval);
        }
        loop {
            let event = main_loop.wait().context("waiting for events")?;
            let files = self.config.tls.files();
            match event {
                MainEvent::Signal(Signal::Terminate | Signal::Interrupt) => return Ok(()),
                MainEvent::Signal(Signal::Hangup) => self.reload_and_tell(notifier, "SIGHUP"),
                MainEvent::ConfigChanged => self.reload_and_tell(notifier, "the configuration file changed"),
                MainEvent::FilesChanged => self.reload_tls(),
                MainEvent::Link(event) => {
                    log::debug!("link {} ({}): {:?}", event.name, event.ifindex, event.change);
                    // Changes come in bunches; they are looked at once, and soon.
                    main_loop.set_timer(Timer::Links, Instant::now() + Duration::from_millis(20));
                }
                MainEvent::Timer(Timer::Links) => {
                    let devices = main_loop.links().map(LinkWatch::devices).unwrap_or_default();
                    for error in self.engines.links_changed(devices) {
                        log::error!("after a change of links: {error}");
                    }
                }
                MainEvent::Timer(Timer::Second) => {
                    if let Some(Expired { what, undone, notes }) = self.confirmations.expire(Instant::now()) {
                        let outcome = if undone.is_ok() { 200 } else { 500 };
                        self.audit("config confirm", outcome, &format!("{what}: not confirmed in time"), notes);
                        match undone {
                            Ok(()) => log::warn!("{what}: not confirmed in time, taken back"),
                            Err(error) => log::error!("{what}: not confirmed in time, and not taken back: {error:#}"),
                        }
                        let in_force = self.lock().clone();
                        self.config = in_force;
                    }
                    if let Some(Err(gone)) =
                        self.engines.ratelimit.as_ref().map(|limiter| limiter.call(Ratelimit::look_at_host))
                    {
                        log::error!("looking at this host's TCP: {gone}");
                    }
                    main_loop.set_timer(Timer::Second, Instant::now() + Duration::from_secs(1));
                }
                MainEvent::Timer(Timer::Watchdog) => {
                    let stalled = supervisor.stalled(STALL);
                    match stalled.is_empty() {
                        true => notifier.watchdog(),
                        false => log::error!("no sign of life from {}", stalled.join(", ")),
                    }
                    if let Some(interval) = notifier.watchdog_interval() {
                        main_loop.set_timer(Timer::Watchdog, Instant::now() + interval);
                    }
                }
                MainEvent::Call => {
                    mailbox.serve(self);
                }
                MainEvent::Fatal(fatal) => bail!("{fatal}"),
            }
            // A reload may have come by any of these ways, also by a call, or was taken back.
            if self.config.tls.files() != files
                && let Err(error) = main_loop.watch_files(&self.config.tls.files())
            {
                log::error!("watching the files of [tls], which are read at SIGHUP from here on: {error}");
            }
        }
    }

    /// The certificate or its key is another one now.
    fn reload_tls(&self) {
        let Some(tls) = &self.tls else { return };
        let read = tls.reload();
        self.metrics.tls_reload(read.is_ok());
        match read {
            Ok(()) => {
                tls.state().warnings().iter().for_each(|warning| log::warn!("tls: {warning}"));
                log::info!("tls: the files changed: new connections get the new certificate");
            }
            Err(error) => log::error!("tls: the files changed, and the certificate of before stays in use: {error:#}"),
        }
    }

    /// The files of [tls] as `config` names them, read and checked but not yet in use.
    fn prepare_tls(&self, config: &Config) -> Result<Option<Arc<TlsState>>, ApiError> {
        if self.tls.is_none() {
            return Ok(None);
        }
        let read = TlsState::load(&config.tls);
        self.metrics.tls_reload(read.is_ok());
        let state = read.map_err(|error| ApiError::validation(format!("tls: {error:#}")))?;
        state.warnings().iter().for_each(|warning| log::warn!("tls: {warning}"));
        Ok(Some(Arc::new(state)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Config> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload_and_tell(&mut self, notifier: &Notifier, why: &str) {
        notifier.reloading();
        match self.reload(None) {
            Ok((message, notes)) => {
                log::info!("{why}: {message}");
                self.audit("config reload", 200, &format!("{why}: {message}"), notes);
            }
            Err(error) => {
                log::error!("{why}: nothing was changed: {error}");
                let told = format!("{why}: nothing was changed: {}", error.message);
                self.audit("config reload", error.status, &told, Vec::new());
            }
        }
        notifier.ready("protecting");
    }

    /// Tells the audit log of what the agent did by itself.
    fn audit(&self, operation: &str, outcome: u16, detail: &str, notes: Vec<Note>) {
        let auditor = self.stores.auditor();
        let entry = Entry::new(Actor::config_reload(), operation, outcome, detail);
        if notes.is_empty() {
            auditor.record(entry.clone());
        }
        notes.into_iter().for_each(|note| auditor.record(entry.clone().with(note)));
    }

    /// Reads the configuration anew and puts all of it in force, or changes nothing.
    fn reload(&mut self, confirm_secs: Option<u32>) -> Result<(String, Vec<Note>), ApiError> {
        let result = self.try_reload(confirm_secs);
        self.metrics.config_reload(result.is_ok());
        result
    }

    fn try_reload(&mut self, confirm_secs: Option<u32>) -> Result<(String, Vec<Note>), ApiError> {
        self.confirmations.refuse_while_pending()?;
        let loaded = self.options.load().map_err(|errors| ApiError::validation(errors.to_string()))?;
        let fixed = loaded.config.restart_needed(&self.config);
        if !fixed.is_empty() {
            return Err(ApiError::validation(format!("{} cannot change without a restart", fixed.join(", "))));
        }
        let refused = sandbox_plan(&loaded).map(|plan| self.sandbox.refuses(&plan));
        if let Some(why) = refused.map_err(|error| ApiError::internal(format!("{error:#}")))? {
            return Err(ApiError::validation(why));
        }
        for warning in &loaded.warnings {
            log::warn!("{warning}");
        }
        let refused = |error: anyhow::Error| ApiError::conflict(format!("{error:#}"));
        let sinks = self.alerting.prepare(&loaded.config.alerting).map_err(refused)?;
        let tls = self.prepare_tls(&loaded.config)?;
        let tls_before = self.tls.as_ref().map(|store| (store.clone(), store.state()));
        let guard = guard_of(&loaded.config.agent);
        let auth = self.auth.prepare(&loaded.config.auth, &loaded.config.tls.clients);
        let auth = auth.map_err(|error| ApiError::conflict(format!("{error:#}")))?;
        let before = self.engines.replace_sections(&loaded.config, &guard)?;
        let section = loaded.config.firewall.clone();
        let (confirmations, old) = (self.confirmations.clone(), self.config.clone());
        let (undo, shared, stores) = (self.engines.clone(), self.shared.clone(), self.stores.clone());
        let alerting = self.alerting.clone();
        let others = before.clone();
        let (asking, asked) = (self.auth.clone(), self.auth.current());
        let (spared, spared_before) = (guard.clone(), (old.firewall.dhcp, guard_of(&old.agent)));
        // All in one turn of the engine: no other change comes between the question and the beginning of the wait.
        let replaced = self
            .engines
            .firewall
            .call(move |firewall| {
                confirmations.refuse_while_pending()?;
                let before = firewall.snapshot();
                firewall.replace(section, guard).map_err(|error| ApiError::conflict(format!("{error:#}")))?;
                if let Some(secs) = confirm_secs {
                    confirmations.begin(
                        "config reload",
                        "an admin",
                        Instant::now() + Duration::from_secs(secs.into()),
                        || Ok(()),
                        move || {
                            // The firewall first: it is what locks people out. A part that fails keeps no other back.
                            let firewall = undo.firewall.call(move |firewall| firewall.restore(before));
                            let firewall = firewall.map_err(anyhow::Error::from).flatten();
                            let others = undo.restore_sections(others);
                            undo.spare(spared_before.0, &spared_before.1);
                            asking.replace(asked);
                            if let Some((store, state)) = tls_before {
                                store.replace(state);
                            }
                            stores.reconfigure(&old);
                            let told = alerting.replace(&old.alerting);
                            if let Err(error) = crate::logging::reconfigure(old.agent.log_level, old.agent.log_format) {
                                log::warn!("{error}");
                            }
                            *shared.lock().unwrap_or_else(PoisonError::into_inner) = old;
                            firewall.and(others).and(told)
                        },
                    );
                }
                Ok::<(), ApiError>(())
            })
            .map_err(|gone| ApiError::unavailable(gone.to_string()))
            .flatten();
        if let Err(error) = replaced {
            if let Err(also) = self.engines.restore_sections(before) {
                log::error!("taking the rules of the other engines back: {also:#}");
            }
            return Err(error);
        }
        if let Err(error) = crate::logging::reconfigure(loaded.config.agent.log_level, loaded.config.agent.log_format) {
            log::warn!("{error}");
        }
        // It cannot be refused any more: if the router's thread has ended, so does the agent.
        if let Err(gone) = self.alerting.commit(&loaded.config.alerting, sinks) {
            log::error!("putting [alerting] in force: {gone}");
        }
        self.engines.spare(loaded.config.firewall.dhcp, &spared);
        if let (Some(store), Some(state)) = (&self.tls, tls) {
            store.replace(state);
        }
        self.auth.replace(auth);
        self.stores.reconfigure(&loaded.config);
        let notes = audit::config_changes(&self.config.masked(), &loaded.config.masked());
        if confirm_secs.is_some() {
            self.confirmations.remember(notes.clone());
        }
        self.config = loaded.config.clone();
        *self.lock() = loaded.config;
        let rules = self.config.firewall.rules.len() + self.config.ratelimit.rules.len() + self.config.l7.rules.len();
        Ok((format!("configuration reloaded, {rules} rules in the file"), notes))
    }
}

impl Engines {
    /// What the kernel counted, for Prometheus.
    fn counters(&self) -> KernelCounters {
        let mut counters = match self.firewall.call(|firewall| firewall.counters()) {
            Ok(Ok(counters)) => counters,
            Ok(Err(error)) => {
                log::warn!("reading the kernel's counters: {error:#}");
                KernelCounters::default()
            }
            Err(gone) => {
                log::warn!("reading the kernel's counters: {gone}");
                KernelCounters::default()
            }
        };
        counters.limits = self.ratelimit.as_ref().and_then(|limiter| {
            let counted = limiter.call(|limiter| limiter.counters());
            counted.inspect_err(|gone| log::warn!("reading the rate limiter's counters: {gone}")).ok()
        });
        counters.inspection = self.inspected();
        counters.l7 = self.l7.as_ref().and_then(|l7| {
            let counted = l7.call(|l7| l7.counters());
            counted.inspect_err(|gone| log::warn!("reading the L7 firewall's counters: {gone}")).ok()
        });
        counters
    }

    /// What the inspection counted, in the kernel and in its workers.
    fn inspected(&self) -> Option<InspectionCounters> {
        let counted = self.inspection.as_ref()?.call(|inspection| inspection.counters());
        let mut counters = counted.inspect_err(|gone| log::warn!("reading the inspection's counters: {gone}")).ok()?;
        let of = |worker: &Handle<Worker>| {
            let counted = worker.call(|worker| worker.counters());
            counted.inspect_err(|gone| log::warn!("reading a worker's counters: {gone}")).unwrap_or_default()
        };
        counters.workers = self.workers.iter().map(of).collect();
        Some(counters)
    }

    /// Lets each engine look at the interfaces anew; what went wrong. The limiter first: the firewall attaches.
    fn links_changed(&self, devices: Vec<Device>) -> Vec<String> {
        let limiter = self.ratelimit.as_ref().map(|limiter| limiter.call(Ratelimit::links_changed));
        let firewall = self.firewall.call(move |firewall| firewall.links_changed(devices));
        // Behind the firewall: its programs come first.
        let inspection = self.inspection.as_ref().map(|one| {
            one.call(|inspection| {
                inspection.links_changed();
                Ok(())
            })
        });
        let all = limiter.into_iter().chain([firewall]).chain(inspection);
        all.filter_map(|result| match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(gone) => Some(gone.to_string()),
        })
        .collect()
    }

    /// Puts the sections of all engines but the firewall in force, or changes nothing; the answer is what was before.
    fn replace_sections(&self, config: &Config, guard: &Guard) -> Result<Before, ApiError> {
        let limits = self.replace_limits(config, guard)?;
        match self.replace_l7(config) {
            Ok(l7) => Ok(Before { limits, l7 }),
            Err(error) => {
                if let Err(also) = self.restore_limits(limits) {
                    log::error!("taking the rate limits back: {also:#}");
                }
                Err(error)
            }
        }
    }

    /// Goes back to it; each engine, whatever becomes of the other.
    fn restore_sections(&self, before: Before) -> Result<()> {
        let limits = self.restore_limits(before.limits);
        let l7 = match (&self.l7, before.l7) {
            (Some(l7), Some(before)) => l7.call(move |l7| l7.restore(before)).map_err(Into::into).flatten(),
            _ => Ok(()),
        };
        limits.and(l7)
    }

    /// Puts the L7 firewall's section in force, or changes nothing; the answer is what was before.
    fn replace_l7(&self, config: &Config) -> Result<Option<l7::Snapshot>, ApiError> {
        let Some(l7) = &self.l7 else { return Ok(None) };
        let section = config.l7.clone();
        let replaced = l7.call(move |l7| {
            let before = l7.snapshot();
            l7.replace(section).map(|()| before)
        });
        let before = replaced.map_err(|gone| ApiError::unavailable(gone.to_string()))?;
        before.map(Some).map_err(|error| ApiError::conflict(format!("{error:#}")))
    }

    /// Puts the limiter's section in force, or changes nothing; the answer is what was before.
    fn replace_limits(&self, config: &Config, guard: &Guard) -> Result<Option<ratelimit::Snapshot>, ApiError> {
        let Some(limiter) = &self.ratelimit else { return Ok(None) };
        let (section, guard) = (config.ratelimit.clone(), guard.clone());
        let replaced = limiter.call(move |limiter| {
            let before = limiter.snapshot();
            limiter.replace(section, guard).map(|()| before)
        });
        let before = replaced.map_err(|gone| ApiError::unavailable(gone.to_string()))?;
        before.map(Some).map_err(|error| ApiError::conflict(format!("{error:#}")))
    }

    fn restore_limits(&self, before: Option<ratelimit::Snapshot>) -> Result<()> {
        match (&self.ratelimit, before) {
            (Some(limiter), Some(before)) => limiter.call(move |limiter| limiter.restore(before))?,
            _ => Ok(()),
        }
    }

    /// Who is never blocked, from now on.
    fn spare(&self, dhcp: bool, guard: &Guard) {
        let guard = guard.clone();
        let spared = self.inspection.as_ref().map(|one| one.call(move |one| one.set_exceptions(&guard, dhcp)));
        if let Some(Err(gone)) = spared {
            log::error!("telling the inspection who is never blocked: {gone}");
        }
    }

    fn degraded(&self) -> Vec<String> {
        let mut reasons =
            self.firewall.call(|firewall| firewall.degraded()).unwrap_or_else(|gone| vec![gone.to_string()]);
        if let Some(limiter) = &self.ratelimit {
            reasons.extend(limiter.call(|limiter| limiter.degraded()).unwrap_or_else(|gone| vec![gone.to_string()]));
        }
        if let Some(inspection) = &self.inspection {
            reasons.extend(inspection.call(|one| one.degraded()).unwrap_or_else(|gone| vec![gone.to_string()]));
        }
        reasons
    }

    /// The firewall in numbers, with the programs of all engines.
    fn facts(&self) -> Result<Facts, String> {
        let mut facts = self.firewall.call(|firewall| firewall.facts()).map_err(|gone| gone.to_string())?;
        if let Some(limiter) = &self.ratelimit {
            facts.programs.extend(limiter.call(|limiter| limiter.program_status()).map_err(|gone| gone.to_string())?);
        }
        if let Some(inspection) = &self.inspection {
            let (programs, attachments) = inspection
                .call(|inspection| (inspection.program_status(), inspection.attachments()))
                .map_err(|gone| gone.to_string())?;
            facts.programs.extend(programs);
            facts.attachments = attachments;
        }
        Ok(facts)
    }

    /// Rules of all engines but the firewall.
    fn other_rules(&self) -> u64 {
        let limits = self.ratelimit.as_ref().and_then(|limiter| limiter.call(|limiter| limiter.rule_count()).ok());
        let l7 = self.l7.as_ref().and_then(|l7| l7.call(|l7| l7.rule_count()).ok());
        (limits.unwrap_or(0) + l7.unwrap_or(0)) as u64
    }
}

/// What was in force of the sections but the firewall's.
#[derive(Clone)]
struct Before {
    limits: Option<ratelimit::Snapshot>,
    l7: Option<l7::Snapshot>,
}

impl Front {
    fn degraded(&self) -> Vec<String> {
        let mut reasons = self.engines.degraded();
        reasons.extend(self.auth.degraded());
        reasons.extend(self.stores.degraded());
        reasons.extend(self.sandbox.degraded());
        reasons
    }

    fn pending(&self) -> Option<PendingConfirm> {
        let (what, left) = self.confirmations.pending(Instant::now())?;
        let deadline = (SystemTime::now() + left).duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(PendingConfirm { what, deadline: rfc3339(deadline.as_nanos() as u64), seconds_left: left.as_secs() })
    }
}

impl AgentControl for Front {
    fn readiness(&self) -> Readiness {
        let mut reasons = self.degraded();
        let ebpf_loaded = match self.engines.facts() {
            Ok(facts) => facts.programs.iter().all(|program| !program.enabled || program.facts.is_some()),
            Err(gone) => {
                reasons.push(gone);
                false
            }
        };
        Readiness { ebpf_loaded, reasons }
    }

    fn status(&self) -> AgentStatus {
        let mut degraded = self.degraded();
        // The certificate of before is in use, so nothing is refused for it.
        degraded.extend(self.tls.as_ref().and_then(|tls| tls.complaint()));
        let facts = self.engines.facts().inspect_err(|gone| degraded.push(gone.clone())).ok();
        let config = self.shared.lock().unwrap_or_else(PoisonError::into_inner).firewall.clone();
        let number = |of: fn(&Facts) -> usize| facts.as_ref().map_or(0, |facts| of(facts) as u64);
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ebpf_loaded: facts
                .as_ref()
                .is_some_and(|facts| facts.programs.iter().all(|one| !one.enabled || one.facts.is_some())),
            rule_count: number(|facts| facts.config.rules.len() + facts.added_rules) + self.engines.other_rules(),
            firewall_enabled: config.enabled,
            firewall_mode: config.mode.name().to_owned(),
            firewall_default_policy: config.default_policy.name().to_owned(),
            rules: FirewallRuleCounts {
                file: number(|facts| facts.config.rules.len()),
                api: number(|facts| facts.added_rules),
                disabled: number(|facts| facts.disabled_rules),
                ipv4: number(|facts| facts.ipv4_rules),
                ipv6: number(|facts| facts.ipv6_rules),
            },
            grpc_address: self.grpc.map(|address| address.to_string()),
            interfaces: facts
                .iter()
                .flat_map(|facts| &facts.interfaces)
                .map(|one| InterfaceStatus {
                    name: one.name.clone(),
                    ifindex: one.ifindex,
                    attached: one.xdp.is_some(),
                    xdp_mode: one.xdp.map(|mode| mode.name().to_owned()),
                    reason: one.reason.clone(),
                })
                .collect(),
            pending_confirm: self.pending(),
            sandbox: self.sandbox.status(),
            degraded,
        }
    }

    fn config(&self) -> Value {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).masked()
    }

    fn reload(&self, confirm_secs: Option<u32>) -> Result<Reloaded, ApiError> {
        let (message, notes) = self
            .agent
            .call(move |agent| agent.reload(confirm_secs))
            .map_err(|gone| ApiError::unavailable(gone.to_string()))??;
        Ok(Reloaded { status: "reloaded".to_owned(), message, pending_confirm: self.pending(), notes })
    }

    fn confirm(&self, by: Option<&str>) -> Result<Confirmed, ApiError> {
        let Some((what, kept)) = self.confirmations.confirm(by)? else {
            return Err(ApiError::conflict("nothing waits for a confirmation"));
        };
        kept.map_err(|error| ApiError::internal(format!("{error:#}")))?;
        log::info!("{what}: confirmed");
        Ok(Confirmed { status: "confirmed".to_owned(), message: what })
    }

    fn ebpf_status(&self) -> EbpfStatus {
        let stats_enabled = bpf::run_stats_enabled();
        let facts = self.engines.facts().ok();
        let programs = facts.iter().flat_map(|facts| {
            facts.programs.iter().map(|program| {
                let by_firewall = facts.interfaces.iter().filter_map(|one| {
                    let mode = match program.name {
                        "tc_egress" => one.egress,
                        "tc_mirror" => one.mirror,
                        name if PROGRAMS.contains(&name) => None,
                        _ => one.xdp,
                    }?;
                    Some((one.name.clone(), mode))
                });
                let by_inspection = facts.attachments.iter().filter(|(_, name, _)| *name == program.name);
                let attached: Vec<shown::AttachPoint> = by_firewall
                    .chain(by_inspection.map(|(interface, _, mode)| (interface.clone(), *mode)))
                    .map(|(interface, mode)| shown::AttachPoint { interface, mode: shown_mode(mode) })
                    .collect();
                let runs = program.facts.as_ref().filter(|_| stats_enabled);
                let state = match (program.enabled, &program.facts) {
                    (false, _) => shown::ProgramState::Disabled,
                    (true, Some(_)) if !attached.is_empty() => shown::ProgramState::Active,
                    _ => shown::ProgramState::Failed,
                };
                let reason = program
                    .failure
                    .clone()
                    .or_else(|| (state == shown::ProgramState::Failed).then(|| "attached to no interface".to_owned()));
                shown::ProgramStatus {
                    name: program.name.to_owned(),
                    loaded: program.facts.is_some(),
                    state,
                    reason,
                    attached,
                    run_count: runs.map(|facts| facts.run_count),
                    run_time_ns: runs.map(|facts| facts.run_time_ns),
                    ns_per_run: runs
                        .filter(|facts| facts.run_count > 0)
                        .map(|facts| facts.run_time_ns as f64 / facts.run_count as f64),
                    verified_insns: program.facts.as_ref().map(|facts| facts.verified_insns),
                    maps: program
                        .maps
                        .iter()
                        .map(|map| shown::MapStatus {
                            name: map.name.clone(),
                            kind: map.kind.clone(),
                            max_entries: map.max_entries,
                            entries: map.entries,
                            bytes: map.bytes,
                        })
                        .collect(),
                }
            })
        });
        EbpfStatus {
            kernel: nix::sys::utsname::uname()
                .map_or_else(|_| "unknown".to_owned(), |uts| uts.release().to_string_lossy().into_owned()),
            stats_enabled,
            missing_features: bpf::missing_features()
                .into_iter()
                .map(|(name, fallback)| shown::MissingFeature { name: name.to_owned(), fallback: fallback.to_owned() })
                .collect(),
            programs: programs.collect(),
        }
    }
}

fn shown_mode(mode: AttachMode) -> shown::AttachMode {
    match mode {
        AttachMode::Native => shown::AttachMode::Native,
        AttachMode::Generic => shown::AttachMode::Generic,
        AttachMode::Tcx => shown::AttachMode::Tcx,
        AttachMode::Clsact => shown::AttachMode::Clsact,
    }
}

/// Starts the threads that read flows.
fn start_inspection(
    config: &Config,
    blocks: &SharedBlocks,
    guard: &Guard,
    l7: Option<&Handle<L7>>,
    scanner: Scanner,
    (alerts, metrics): (alert::AlertSender, &Arc<Metrics>),
    supervisor: &Supervisor,
) -> Result<inspection::Threads> {
    let start = inspection::Start {
        config: config.ids.clone(),
        interfaces: config.agent.interfaces.clone(),
        blocks: blocks.clone(),
        exceptions: (guard, config.firewall.dhcp),
        ruling: l7.map(|l7| l7.call(|l7| l7.ruling())).transpose()?,
        scanner,
        alerts,
        metrics,
    };
    inspection::start(start, supervisor).context("starting the inspection of flows")
}

/// Starts the thread that owns the rules of the L7 firewall.
fn start_l7(
    config: &Config,
    supervisor: &Supervisor,
    metrics: &Arc<Metrics>,
) -> Result<(Handle<L7>, crate::supervise::Thread<L7>)> {
    let start =
        l7::Start { config: config.l7.clone(), store: Store::new(&config.agent.state_dir), metrics: metrics.clone() };
    let engine = L7::start(start).context("starting the L7 firewall")?;
    // Nothing is queued for it: the workers ask its rules where they are.
    Ok(supervisor.spawn_owner("l7", engine, crossbeam_channel::never())?)
}

/// The programs of the rate limiter as the firewall runs them.
fn behind(limiter: &Ratelimit) -> Result<Vec<Behind>> {
    let mut behind: Vec<Behind> =
        limiter.programs().into_iter().map(|name| Behind { name, pins: Vec::new() }).collect();
    behind[0].pins = limiter.pins()?;
    Ok(behind)
}

/// Steering as the firewall runs it.
fn steering(steer: &XdpSteer) -> Result<Vec<Behind>> {
    Ok(vec![Behind { name: xdp_steer::PROGRAM, pins: steer.pins()? }])
}

/// Loads the programs that spread flows over CPUs, and puts them at the chain's end.
fn start_steering(config: &AgentConfig, multi_buffer: bool, chain: &Chain) -> Result<Option<XdpSteer>> {
    let cpus = match &config.cpu_steering {
        CpuSteering::Off => return Ok(None),
        CpuSteering::Online => bpf::online_cpus()?,
        CpuSteering::Cpus(cpus) => cpus.clone(),
    };
    let steer = XdpSteer::load(&cpus, multi_buffer)?;
    chain.set(xdp_chain::CHAIN_STEER, steer.program())?;
    log::info!("flows are spread over {} CPUs, {} frames may wait for each", cpus.len(), xdp_steer::QUEUE_FRAMES);
    Ok(Some(steer))
}

/// Where the kernel's records are.
struct Rings {
    firewall: MapHandle,
    ratelimit: Option<MapHandle>,
}

/// Hands the kernel's records to the engines. Never waits for them: what finds no room is counted.
fn spawn_poller(
    supervisor: &Supervisor,
    rings: Rings,
    (events, limit_events): (Sender<Event>, Sender<OverLimit>),
    metrics: &Arc<Metrics>,
    stop: Arc<std::sync::atomic::AtomicBool>,
) -> std::io::Result<crate::supervise::Thread<()>> {
    let metrics = metrics.clone();
    supervisor.spawn("poller", move |pulse| {
        let mut all = vec![Ring { map: &rings.firewall, each: hand_over(&metrics, "poller", Event::decode, events) }];
        if let Some(map) = &rings.ratelimit {
            let each = hand_over(&metrics, "poller_ratelimit", OverLimit::decode, limit_events);
            all.push(Ring { map, each });
        }
        ringbuf::consume(all, POLL, &stop, || pulse.beat())
    })
}

/// Decodes records and queues them for an engine; losses are told of `place`.
fn hand_over<E: 'static>(
    metrics: &Metrics,
    place: &'static str,
    decode: fn(&[u8]) -> Option<E>,
    queue: Sender<E>,
) -> Taker<'static> {
    let (lost, unreadable) = (metrics.events_lost(place, "queue_full"), metrics.events_lost(place, "undecodable"));
    Box::new(move |record| match decode(record) {
        Some(event) => {
            if queue.try_send(event).is_err() {
                lost.inc();
            }
        }
        None => {
            unreadable.inc();
        }
    })
}

/// Starts the gRPC server, unless there is to be none.
fn start_grpc(
    port: Option<Port>,
    hub: &Hub,
    gate: grpc::Gate,
    tls: Option<&Arc<TlsStore>>,
    supervisor: &Supervisor,
    metrics: &Arc<Metrics>,
) -> Result<Option<Grpc>> {
    let Some(port) = port else { return Ok(None) };
    let mut config = GrpcConfig::new(port, hub.clone());
    config.gate = Some(gate);
    config.tls = tls.cloned().map(|store| -> grpc::Tls { Arc::new(move || store.grpc()) });
    Grpc::start(config, supervisor, metrics).map(Some).context("starting the gRPC port")
}

/// Reads the files of `[tls]`, if it is on.
fn load_tls(config: &Config) -> Result<Option<Arc<TlsStore>>> {
    if !config.tls.enabled {
        return Ok(None);
    }
    let store = TlsStore::load(&config.tls).context("reading the files of [tls]")?;
    store.state().warnings().iter().for_each(|warning| log::warn!("tls: {warning}"));
    Ok(Some(store))
}

fn start_control(
    whole: &Config,
    supervisor: &Supervisor,
    (front, [rest, metrics_port], socket): (Front, [Port; 2], Option<UnixSocket>),
    engines: &Engines,
    confirmations: &Arc<Confirmations>,
    hub: &Hub,
    metrics: &Arc<Metrics>,
) -> Result<Control> {
    let stores = front.stores.clone();
    let auth = front.auth.clone();
    let agent = &whole.agent;
    let tls = front.tls.clone();
    if let Some(tls) = &tls {
        let tls = tls.clone();
        metrics.set_tls_expiry(Box::new(move || tls.not_after()));
    }
    let mut operations = crate::control::agent::operations(Arc::new(front), metrics.clone());
    operations.extend(audit::api::operations(stores.audit.as_ref()));
    operations.extend(store::api::operations(stores.alerts.as_ref()));
    operations.extend(firewall::api::operations(&engines.firewall, confirmations));
    operations.extend(match &engines.ratelimit {
        Some(limiter) => ratelimit::api::operations(limiter, confirmations),
        None => ratelimit::api::refused(),
    });
    operations.extend(match &engines.inspection {
        Some(_) => inspection::api::operations(&engines.workers),
        None => inspection::api::refused(),
    });
    operations.extend(match &engines.l7 {
        Some(l7) => l7::api::operations(l7, confirmations),
        None => l7::api::refused(),
    });
    operations.push(crate::explain::operation(&engines.firewall, engines.ratelimit.as_ref()));
    operations.push(stream::operation(hub.clone(), stream::STREAMS_MAX, metrics));
    let runtime_dir = runtime_dir(&agent.state_dir);
    let mut config = ControlConfig::new(SocketAddr::new(agent.bind_address, agent.http_port), runtime_dir);
    config.rest = rest;
    config.socket = socket;
    config.tls = tls;
    config.metrics_tls = whole.tls.metrics;
    config.limits.requests_per_s = agent.requests_per_second;
    config.metrics = Some(metrics_port);
    config.host_names = agent.host_names.clone();
    config.auditor = stores.auditor();
    config.auth = Some(auth);
    config.swagger_ui = agent.swagger_ui;
    let failed = supervisor.clone();
    config.on_failure = Arc::new(move |thread, message| failed.fail(thread, message));
    Control::start(config, operations, metrics.clone()).context("starting the control port")
}

/// Makes the socket for processes of this host.
fn bind_socket(agent: &AgentConfig) -> Result<Option<UnixSocket>> {
    let runtime_dir = runtime_dir(&agent.state_dir);
    let path = match &agent.socket {
        ControlSocket::Off => return Ok(None),
        ControlSocket::Usual => runtime_dir.join("control.sock"),
        ControlSocket::At(path) => path.clone(),
    };
    UnixSocket::bind(&path, &runtime_dir).map(Some)
}

/// Where sockets lie.
fn runtime_dir(state_dir: &Path) -> PathBuf {
    match std::env::var_os("RUNTIME_DIRECTORY") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => state_dir.join("run"),
    }
}

/// What the sandbox has to leave to an agent with this configuration.
fn sandbox_plan(loaded: &config::Loaded) -> Result<harden::Plan> {
    let agent = &loaded.config.agent;
    let runtime = runtime_dir(&agent.state_dir);
    std::fs::create_dir_all(&runtime).with_context(|| format!("making {}", runtime.display()))?;
    let mut plan =
        harden::Plan { read: loaded.paths.read.clone(), write: loaded.paths.write.clone(), ..Default::default() };
    plan.write.extend([agent.state_dir.clone(), runtime]);
    plan.read.extend(std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from));
    plan.abstract_sockets = std::env::var("NOTIFY_SOCKET").is_ok_and(|socket| socket.starts_with('@'));
    Ok(plan)
}

/// The lock-out guard that the configuration asks for, with the sessions that are open now.
fn guard_of(agent: &AgentConfig) -> Guard {
    if !agent.anti_lockout.enabled {
        return Guard::default();
    }
    let mut ports = agent.anti_lockout.ssh_ports.clone();
    ports.extend([agent.http_port, agent.metrics_port]);
    ports.extend((agent.grpc_port != 0).then_some(agent.grpc_port));
    match &agent.anti_lockout.from {
        GuardFrom::Sessions => Guard::of_sessions(ports),
        GuardFrom::Networks(networks) => Guard { ports, networks: networks.clone() },
    }
}

/// Where this agent pins: one directory for each state directory, so that agents in several namespaces do not meet.
fn pin_dir(state_dir: &Path) -> PathBuf {
    if state_dir == Path::new("/var/lib/ebpfsentinel") {
        return PathBuf::from(PIN_DIR);
    }
    let word: String =
        state_dir.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    PathBuf::from(format!("{PIN_DIR}{word}"))
}

/// Makes the state directory, and sees to it that one agent uses it.
fn lock_state(state_dir: &Path) -> Result<nix::fcntl::Flock<File>> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(state_dir)
        .with_context(|| format!("making the state directory {}", state_dir.display()))?;
    let path = state_dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow::anyhow!("another agent is running with the state directory {}", state_dir.display()))
}
