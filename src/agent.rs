//! Start, wire, reload, stop: the only file that knows all parts.
//!
//! Order of start: configuration, programs loaded and their maps filled, attached, then the control port. Order of stop
//! is the reverse; what the kernel goes on doing is `agent.on_exit`.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use crossbeam_channel::Sender;
use libbpf_rs::MapHandle;
use serde_json::Value;

use crate::abi::xdp_chain;
use crate::alert::hub::{self, Hub};
use crate::alert::{self, Alerting, Route, Router, Suppressions};
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
use crate::component::Component;
use crate::config::agent::{AgentConfig, ControlSocket, CpuSteering, GuardFrom, OnExit, XdpMode as WrittenXdpMode};
use crate::config::{self, Config};
use crate::confirm::{Confirmations, Expired, Reserved, Trial};
use crate::control::agent::{
    self as shown, AgentControl, AgentStatus, Confirmed, EbpfStatus, FirewallRuleCounts, InterfaceStatus,
    PendingConfirm, Readiness, Reloaded,
};
use crate::control::auth::{self, Auth};
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
use crate::ruled::api::namespace_of;
use crate::ruled::store::Store;
use crate::ruled::{AnyRule, RuleOwner};
use crate::store;
use crate::store::alerts::AlertStore;
use crate::store::api::NamespaceOf;
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
    hub: Hub,
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
    metrics: Arc<Metrics>,
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

/// An engine and its thread.
type Part<O> = (Handle<O>, Thread<O>);

/// What has been started, to be stopped in order: when a run ends, and by a start that fails on its way.
#[derive(Default)]
struct Parts {
    /// Where an agent with `on_exit = "keep"` pins, if nothing was pinned there before.
    pins: Option<PathBuf>,
    audit: Option<(AuditStore, Thread<audit::store::Writer>)>,
    alerts: Option<(AlertStore, Thread<store::alerts::Writer>)>,
    alerting: Option<(Arc<Alerting>, Thread<Router>)>,
    /// Held: the kernel empties it when nobody does.
    chain: Option<Chain>,
    ratelimit: Option<Part<Ratelimit>>,
    firewall: Option<Part<Firewall>>,
    l7: Option<Part<L7>>,
    inspection: Option<inspection::Threads>,
    poller: Option<(Arc<AtomicBool>, Thread<()>)>,
    hub: Option<Hub>,
    grpc: Option<Grpc>,
    control: Option<Control>,
}

/// What an agent starts from.
struct Basis {
    options: Options,
    loaded: config::Loaded,
    tls: Option<Arc<TlsStore>>,
    metrics: Arc<Metrics>,
    supervisor: Supervisor,
    devices: Vec<Device>,
    agent: Handle<Agent>,
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
    let (handle, mailbox) = Mailbox::<Agent>::new("main").context("setting up the main thread's mailbox")?;
    main_loop.hear_calls(&mailbox.bell()).context("listening to calls")?;

    let basis = Basis { options, loaded, tls, metrics, supervisor: supervisor.clone(), devices, agent: handle };
    let mut parts = Parts::default();
    let mut agent = match start(basis, &mut parts) {
        Ok(agent) => agent,
        Err(error) => {
            parts.abandon();
            return Err(error);
        }
    };
    notifier.ready("protecting");
    let ended = agent.serve(&mut main_loop, &mailbox, &notifier, &supervisor);
    notifier.stopping();
    // From here on a second signal ends the process at once.
    let _ = main_loop.signals().release();
    // Nobody is left to confirm anything when the ports are closed.
    parts.close_ports();
    if let Some(expired) = agent.confirmations.close(STOP) {
        agent.taken_back(expired, "not confirmed before the agent stopped");
    }
    let why = ended.as_ref().map_or_else(|error| format!("{error:#}"), |()| "a signal ended it".to_owned());
    agent.stores.auditor().record(Entry::new(Actor::agent(), audit::AGENT_STOP, 200, why));
    parts.stop();
    log::info!("agent stopped");
    ended
}

/// Starts everything in its order. What was started before an error is in `parts`.
fn start(basis: Basis, parts: &mut Parts) -> Result<Agent> {
    let Basis { options, loaded, tls, metrics, supervisor, devices, agent: handle } = basis;
    let config = &loaded.config;
    let enclosed = config.agent.sandbox;
    // Before the walls: it looks into processes, which no thread behind them may.
    let looking = move || if enclosed { harden::keep_only(harden::LOOKING) } else { Ok(()) };
    let (scanner, bounded) = Scanner::start(&supervisor, looking).context("starting the look-up of processes")?;
    let pins = pin_dir(&config.agent.state_dir);
    if config.firewall.enabled && config.agent.on_exit == OnExit::Keep {
        parts.pins = (!attach::has_pins(&pins)).then(|| pins.clone());
        // Mounting is the first that ends.
        attach::prepare_pins(&pins)?;
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
    hub.note_window(fold_window(&config));
    parts.hub = Some(hub.clone());
    let processes = Processes::open(scanner.clone(), Instant::now());
    let processes = processes.inspect_err(|error| log::warn!("alerts name no processes: {error}")).ok();
    let suppressions = Arc::new(Suppressions::default());
    let stores = start_stores(&config, &suppressions, &metrics, &supervisor, parts)?;
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
    parts.alerting = Some((alerting.clone(), router_thread));

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
        pins,
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
    let (firewall, thread) = supervisor.spawn_owner("firewall", engine, event_queue)?;
    parts.firewall = Some((firewall.clone(), thread));
    let limiter = limiter.map(|limiter| supervisor.spawn_owner("ratelimit", limiter, limit_queue)).transpose()?;
    let ratelimit = limiter.as_ref().map(|(handle, _)| handle.clone());
    parts.ratelimit = limiter;
    parts.l7 = config.l7.enabled.then(|| start_l7(&config, &supervisor, &metrics)).transpose()?;
    let l7 = parts.l7.as_ref().map(|(handle, _)| handle.clone());
    if let Some(blocks) = &blocks {
        let told = (alerts, &metrics);
        parts.inspection = Some(start_inspection(&config, blocks, &guard, l7.as_ref(), scanner, told, &supervisor)?);
    }
    let engines = Engines {
        firewall,
        ratelimit,
        l7,
        inspection: parts.inspection.as_ref().map(inspection::Threads::inspection),
        workers: parts.inspection.as_ref().map(inspection::Threads::workers).unwrap_or_default(),
    };
    let stop_poller = Arc::new(AtomicBool::new(false));
    let thread = spawn_poller(&supervisor, rings, (events, limit_events), &metrics, stop_poller.clone())?;
    parts.poller = Some((stop_poller, thread));
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
    let gate = grpc::gate_of(auth.clone(), stores.auditor());
    let grpc = start_grpc(ports.grpc, &hub, gate, tls.as_ref(), &supervisor, &metrics)?;
    let grpc_address = grpc.as_ref().map(Grpc::address);
    parts.grpc = grpc;
    let front = Front {
        agent: handle,
        engines: engines.clone(),
        auth: auth.clone(),
        confirmations: confirmations.clone(),
        shared: shared.clone(),
        stores: stores.clone(),
        sandbox: sandbox.clone(),
        grpc: grpc_address,
        metrics: metrics.clone(),
        tls: tls.clone(),
        started: Instant::now(),
    };
    let control =
        start_control(&config, &supervisor, (front, ports.http, socket), &engines, &confirmations, &hub, &metrics)?;
    let (rest, socket) = (control.addresses().rest, control.socket().map(Path::to_owned));
    parts.chain = Some(chain);
    parts.control = Some(control);
    // From here on what the kernel does without the agent is as `on_exit` says.
    let established = engines.firewall.call(Firewall::establish).map_err(anyhow::Error::from).flatten();
    established.context("ending the start of the firewall")?;
    let also = grpc_address.map_or_else(String::new, |address| format!(", gRPC on {address}"));
    log::info!(
        version = env!("CARGO_PKG_VERSION"), rest = rest.to_string().as_str();
        "agent started; REST on {rest}{}{}{also}", if tls.is_some() { " by TLS" } else { "" },
        socket.map(|path| format!(" and {}", path.display())).unwrap_or_default()
    );
    stores.begin_run(&config, &options.config, &engines);
    Ok(Agent { options, config, engines, auth, alerting, hub, metrics, confirmations, shared, stores, tls, sandbox })
}

impl Parts {
    /// Nobody is let in any more: streams end with the hub, and then the ports that they are on.
    fn close_ports(&mut self) {
        if let Some(hub) = self.hub.take() {
            hub.close();
        }
        if let Some(Err(gone)) = self.grpc.take().map(Grpc::stop) {
            log::warn!("{gone}");
        }
        if let Some(control) = self.control.take() {
            control.stop();
        }
    }

    /// Ends every thread in the order of a packet's way.
    fn stop(&mut self) {
        self.close_ports();
        if let Some((stop, thread)) = self.poller.take() {
            stop.store(true, Ordering::Release);
            let _ = thread.join(STOP);
        }
        for gone in self.inspection.take().map(|threads| threads.stop(STOP)).unwrap_or_default() {
            log::warn!("{gone}");
        }
        // The engines tell what they still know before the router does.
        for gone in [
            end(self.l7.take()),
            end(self.firewall.take()),
            end(self.ratelimit.take()),
            self.alerting.take().map_or(Ok(()), |(alerting, thread)| alerting.stop(thread, STOP)),
            // The last of all: what the others did while they stopped is kept, too.
            end(self.alerts.take().map(|(store, thread)| (store.handle().clone(), thread))),
            end(self.audit.take().map(|(store, thread)| (store.handle().clone(), thread))),
        ] {
            if let Err(gone) = gone {
                log::warn!("{gone}");
            }
        }
    }

    /// The start failed: the same, and what it made for a time without the agent goes, too. The firewall gives back what
    /// is its own.
    fn abandon(&mut self) {
        self.stop();
        if let Some(Err(error)) = self.pins.take().map(|pins| attach::release_pins(&pins, &[])) {
            log::error!("giving the kernel back: {error:#}");
        }
    }
}

/// How long repeats of an alert wait for their telling.
fn fold_window(config: &Config) -> Duration {
    Duration::from_secs(config.alerting.dedup_window_secs.into())
}

/// Ends an owner's thread, and what it owns with it.
fn end<O: 'static>(part: Option<Part<O>>) -> Result<(), Gone> {
    part.map_or(Ok(()), |(handle, thread)| handle.stop().and_then(|()| thread.join(STOP).map(drop)))
}

/// Starts the stores that are wanted. They open their files by themselves, however long that takes, and one that cannot
/// be opened is no error: it is told by readiness.
fn start_stores(
    config: &Config,
    suppressions: &Arc<Suppressions>,
    metrics: &Arc<Metrics>,
    supervisor: &Supervisor,
    parts: &mut Parts,
) -> Result<Stores> {
    if config.audit.enabled {
        let path = config.audit.trail_file(&config.agent.state_dir);
        let started = AuditStore::start(path, config.audit.limits(), metrics, supervisor);
        parts.audit = Some(started.context("starting the audit trail")?);
    }
    if config.audit.alerts.enabled {
        let path = config.audit.alerts_file(&config.agent.state_dir);
        let started = AlertStore::start(path, config.audit.alerts.limits(), suppressions, metrics, supervisor);
        parts.alerts = Some(started.context("starting the store of alerts")?);
    }
    Ok(Stores {
        audit: parts.audit.as_ref().map(|(store, _)| store.clone()),
        alerts: parts.alerts.as_ref().map(|(store, _)| store.clone()),
    })
}

impl Stores {
    /// Whom operations are told to.
    fn auditor(&self) -> Arc<dyn Auditor> {
        match &self.audit {
            Some(audit) => Arc::new(audit.clone()),
            None => Arc::new(NoAuditor),
        }
    }

    /// Tells the trail of the start, and what is in force now.
    fn begin_run(&self, config: &Config, path: &Path, engines: &Engines) {
        let Some(audit) = &self.audit else { return };
        let detail = format!("version {}, {}", env!("CARGO_PKG_VERSION"), path.display());
        audit.begin_run(audit::run::Run {
            entry: Entry::new(Actor::agent(), audit::AGENT_START, 200, detail),
            config: config.masked(),
            added: engines.added_rules(),
        });
    }

    /// Another configuration is in force: the next start is compared with it.
    fn configured(&self, config: Value) {
        if let Some(audit) = &self.audit {
            audit.configured(config);
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
                    if let Some(expired) = self.confirmations.expire(Instant::now()) {
                        self.taken_back(expired, "not confirmed in time");
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

    /// Tells of a change that nobody confirmed, `why` it was taken back now, or that it could not be.
    fn taken_back(&mut self, expired: Expired, why: &str) {
        let Expired { what, undone, notes, attempt } = expired;
        // It is tried again and again; once in the audit log is enough.
        if undone.is_ok() || attempt == 1 {
            let outcome = if undone.is_ok() { 200 } else { 500 };
            self.audit("config confirm", outcome, &format!("{what}: {why}"), notes);
        }
        match undone {
            Ok(()) => log::warn!("{what}: {why}, taken back"),
            Err(error) => log::error!("{what}: {why}, and not taken back: {error:#}"),
        }
        let in_force = self.lock().clone();
        self.config = in_force;
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
        let alone = self.confirmations.reserve("config reload")?;
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
        let auth = self.auth.prepare(&loaded.config.auth, &loaded.config.tls.clients).map_err(refused)?;
        let auth_before = self.auth.current();
        let before = self.engines.replace_sections(&loaded.config, &guard, &alone)?;

        // Nothing is refused from here on.
        if let Err(error) = crate::logging::reconfigure(loaded.config.agent.log_level, loaded.config.agent.log_format) {
            log::warn!("{error}");
        }
        // It cannot be refused any more: if the router's thread has ended, so does the agent.
        if let Err(error) = self.alerting.commit(&loaded.config.alerting, sinks) {
            log::error!("putting [alerting] in force, of which nothing changed: {error:#}");
        }
        self.hub.note_window(fold_window(&loaded.config));
        self.engines.spare(loaded.config.firewall.dhcp, &guard);
        if let (Some(store), Some(state)) = (&self.tls, tls) {
            store.replace(state);
        }
        self.auth.replace(auth);
        self.stores.reconfigure(&loaded.config);
        let masked = loaded.config.masked();
        let notes = audit::config_changes(&self.config.masked(), &masked);
        self.stores.configured(masked);
        let old = std::mem::replace(&mut self.config, loaded.config.clone());
        *self.lock() = loaded.config;
        if let Some(secs) = confirm_secs {
            let way_back = WayBack {
                config: old,
                sections: before,
                auth: (self.auth.clone(), auth_before),
                tls: tls_before,
                alerting: self.alerting.clone(),
                engines: self.engines.clone(),
                stores: self.stores.clone(),
                shared: self.shared.clone(),
            };
            alone.wait(Trial {
                by: "an admin".to_owned(),
                deadline: Instant::now() + Duration::from_secs(secs.into()),
                notes: notes.clone(),
                keep: Box::new(|| Ok(())),
                undo: Box::new(move |_| way_back.go()),
            });
        }
        let rules = self.config.firewall.rules.len() + self.config.ratelimit.rules.len() + self.config.l7.rules.len();
        Ok((format!("configuration reloaded, {rules} rules in the file"), notes))
    }
}

/// From a reload that nobody confirmed to what was before.
struct WayBack {
    config: Config,
    sections: Before,
    auth: (Arc<Auth>, Arc<auth::State>),
    tls: Option<(Arc<TlsStore>, Arc<TlsState>)>,
    alerting: Arc<Alerting>,
    engines: Engines,
    stores: Stores,
    shared: Arc<Mutex<Config>>,
}

impl WayBack {
    /// Puts everything back; after a failure again. A part that fails keeps no other back.
    fn go(&self) -> Result<()> {
        let sections = self.engines.restore_sections(self.sections.clone());
        self.engines.spare(self.config.firewall.dhcp, &guard_of(&self.config.agent));
        self.auth.0.replace(self.auth.1.clone());
        if let Some((store, state)) = &self.tls {
            store.replace(state.clone());
            // A certificate that was exchanged meanwhile is not to be another one again.
            if let Err(error) = store.reload() {
                log::error!("tls: the certificate of before the reload is in use as it was read then: {error:#}");
            }
        }
        self.stores.reconfigure(&self.config);
        let alerting = self.alerting.replace(&self.config.alerting);
        let agent = &self.config.agent;
        if let Err(error) = crate::logging::reconfigure(agent.log_level, agent.log_format) {
            log::warn!("{error}");
        }
        sections.and(alerting)?;
        self.stores.configured(self.config.masked());
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = self.config.clone();
        Ok(())
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

    /// Puts the sections of all engines in force, or changes nothing; the answer is what was before.
    fn replace_sections(&self, config: &Config, guard: &Guard, alone: &Reserved) -> Result<Before, ApiError> {
        let mut before = Before::default();
        let replaced = (|| {
            if let Some(limiter) = &self.ratelimit {
                let (section, guard) = (config.ratelimit.clone(), guard.clone());
                before.limits = Some(replace_in_time(limiter, alone, move |one| one.replace(section, guard))?);
            }
            if let Some(l7) = &self.l7 {
                let section = config.l7.clone();
                before.l7 = Some(replace_in_time(l7, alone, move |one| one.replace(section))?);
            }
            let (section, guard) = (config.firewall.clone(), guard.clone());
            before.firewall = Some(replace_in_time(&self.firewall, alone, move |one| one.replace(section, guard))?);
            Ok(())
        })();
        if let Err(error) = replaced {
            if let Err(also) = self.restore_sections(before) {
                log::error!("taking the rules of the other engines back: {also:#}");
            }
            return Err(error);
        }
        Ok(before)
    }

    /// Goes back to it; each engine, whatever becomes of the others. The firewall first: it is what locks people out.
    fn restore_sections(&self, before: Before) -> Result<()> {
        let firewall = restore(Some(&self.firewall), before.firewall);
        let limits = restore(self.ratelimit.as_ref(), before.limits);
        let l7 = restore(self.l7.as_ref(), before.l7);
        firewall.and(limits).and(l7)
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

    /// Of each engine that runs the rules that were made through the API.
    fn added_rules(&self) -> Vec<(Component, Vec<Value>)> {
        fn of<O: RuleOwner>(owner: &Handle<O>) -> Option<Vec<Value>> {
            let text = |rule: &O::Rule| serde_json::to_value(rule.text()).unwrap_or_default();
            let asked = owner.call(move |owner| owner.book().added.iter().map(text).collect());
            asked.inspect_err(|gone| log::warn!("asking for the rules of the API: {gone}")).ok()
        }
        let all = [
            (Component::Firewall, of(&self.firewall)),
            (Component::Ratelimit, self.ratelimit.as_ref().and_then(of)),
            (Component::L7, self.l7.as_ref().and_then(of)),
        ];
        all.into_iter().filter_map(|(component, rules)| Some((component, rules?))).collect()
    }

    /// Rules of all engines but the firewall.
    fn other_rules(&self) -> u64 {
        let limits = self.ratelimit.as_ref().and_then(|limiter| limiter.call(|limiter| limiter.rule_count()).ok());
        let l7 = self.l7.as_ref().and_then(|l7| l7.call(|l7| l7.rule_count()).ok());
        (limits.unwrap_or(0) + l7.unwrap_or(0)) as u64
    }
}

/// What was in force in the engines that a reload has changed.
#[derive(Clone, Default)]
struct Before {
    firewall: Option<firewall::Snapshot>,
    limits: Option<ratelimit::Snapshot>,
    l7: Option<l7::Snapshot>,
}

/// Changes an engine, or nothing; the answer is what was before. An engine that is late changes itself back, so that its
/// part is not in force beside others that were taken back; `alone` lasts until then.
fn replace_in_time<O: RuleOwner>(
    owner: &Handle<O>,
    alone: &Reserved,
    replace: impl FnOnce(&mut O) -> Result<()> + Send + 'static,
) -> Result<O::Snapshot, ApiError> {
    let unavailable = |gone: Gone| ApiError::unavailable(gone.to_string());
    let before = owner.call(|owner| owner.snapshot()).map_err(unavailable)?;
    // Set by the engine when it is done, and by this thread when it has waited in vain: who comes second knows it.
    let is_over = Arc::new(AtomicBool::new(false));
    let replaced = owner.call({
        let (before, alone, is_over) = (before.clone(), alone.clone(), is_over.clone());
        move |owner| {
            replace(owner)?;
            if is_over.swap(true, Ordering::AcqRel) {
                log::warn!("a reload came too late in the engine, and is taken back there");
                owner.restore(before)?;
            }
            drop(alone);
            Ok(())
        }
    });
    match replaced {
        Ok(replaced) => {
            replaced.map(|()| before).map_err(|error: anyhow::Error| ApiError::conflict(format!("{error:#}")))
        }
        Err(Gone::Unanswered(_)) if is_over.swap(true, Ordering::AcqRel) => Ok(before),
        Err(gone) => Err(unavailable(gone)),
    }
}

/// Puts an engine back, if it was changed.
fn restore<O: RuleOwner>(owner: Option<&Handle<O>>, before: Option<O::Snapshot>) -> Result<()> {
    match (owner, before) {
        (Some(owner), Some(before)) => owner.call(move |owner| owner.restore(before))?,
        _ => Ok(()),
    }
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
        // Nothing that happens now is lost by it.
        degraded.extend(self.metrics.spools_left().into_iter().map(|(spool, bytes)| {
            format!("{bytes} bytes of alerts in the spool {spool} wait for a route of that name; nobody sends them")
        }));
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
        kept.map_err(|error| ApiError::internal(format!("{what}: still waits for its confirmation: {error:#}")))?;
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
fn start_l7(config: &Config, supervisor: &Supervisor, metrics: &Arc<Metrics>) -> Result<Part<L7>> {
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
    stop: Arc<AtomicBool>,
) -> std::io::Result<Thread<()>> {
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

/// Finds the namespaces of rules. Alerts of inspection name no rule that somebody wrote.
fn namespaces(engines: &Engines) -> NamespaceOf {
    let Engines { firewall, ratelimit, l7, .. } = engines;
    let (firewall, ratelimit, l7) = (firewall.clone(), ratelimit.clone(), l7.clone());
    Arc::new(move |component, rule| match component {
        Component::Firewall => namespace_of(&firewall, rule),
        Component::Ratelimit => ratelimit.as_ref().map_or(Ok(None), |limiter| namespace_of(limiter, rule)),
        Component::L7 => l7.as_ref().map_or(Ok(None), |l7| namespace_of(l7, rule)),
        Component::Ids => Ok(None),
    })
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
    operations.extend(store::api::operations(stores.alerts.as_ref(), namespaces(engines)));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A section of the L7 firewall with these rules.
    fn section(rules: &str) -> l7::config::L7Config {
        let text = format!("[agent]\ninterfaces = ['lo']\n[l7]\nenabled = true\n{rules}");
        config::parse("test", text.as_bytes(), [], &[]).unwrap().0.l7
    }

    #[test]
    fn an_engine_that_is_late_changes_itself_back() {
        let folder = tempfile::tempdir().unwrap();
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let start = l7::Start { config: section(""), store: Store::new(folder.path()), metrics: Metrics::new() };
        let engine = L7::start(start).unwrap();
        let (engine, _thread) = supervisor.spawn_owner("l7", engine, crossbeam_channel::never()).unwrap();
        let wider = section("[[l7.rules]]\nid = 'a'\npriority = 1\naction = 'deny'\nprotocol = 'http'\n");
        let rules = || engine.call(|l7| l7.rule_count()).unwrap();
        let all = Arc::new(Confirmations::default());

        let alone = all.reserve("reload").unwrap();
        let (hold, held) = crossbeam_channel::bounded::<()>(0);
        let impatient = engine.with_timeout(Duration::from_millis(200));
        let late = replace_in_time(&impatient, &alone, {
            let wider = wider.clone();
            move |l7| {
                // Until nobody holds it any more.
                let _ = held.recv();
                l7.replace(wider)
            }
        });
        assert_eq!(late.err().map(|error| error.status), Some(503));
        drop(alone);
        drop(hold);
        assert_eq!(rules(), 0, "what was refused is not in force");

        let alone = all.reserve("reload").unwrap();
        let before = replace_in_time(&engine, &alone, |l7| l7.replace(wider)).unwrap();
        assert_eq!(rules(), 1);
        restore(Some(&engine), Some(before)).unwrap();
        assert_eq!(rules(), 0);
    }
}
