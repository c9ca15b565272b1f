//! Numbers for Prometheus. Every metric stands once in the table below; nothing else names one.
//!
//! Userspace moves its own counters here as things happen. What the kernel counts is read at scrape time, by
//! [`Metrics::set_kernel_source`], so that a number exists in one place only and no heartbeat copies it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::component::Component;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of [`Metrics::render_text`].
pub const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One metric as declared: the name as scraped is `name`, `_unit` where there is one, and `_total` for a counter.
#[derive(Debug)]
pub struct Declared {
    name: &'static str,
    unit: Option<&'static str>,
    kind: MetricType,
    labels: &'static [&'static str],
    help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal $(in $unit:literal)? [$($label:literal),*] $help:literal;)*) => {
        $(const $constant: Declared = Declared {
            name: concat!("ebpfsentinel_", $name),
            unit: metrics!(@unit $($unit)?),
            kind: MetricType::$kind,
            labels: &[$($label),*],
            help: $help,
        };)*
        /// Every metric, in the order of the output.
        pub const DECLARED: &[Declared] = &[$($constant),*];
    };
    (@unit) => { None };
    (@unit $unit:literal) => { Some($unit) };
}

metrics! {
    PACKETS = Counter "packets" ["interface", "verdict"] "Packets judged in the kernel";
    BYTES = Counter "bytes_processed" ["interface", "direction"] "Bytes seen by the programs on an interface";
    UNPARSABLE = Counter "unparsable_packets" ["reason"] "Packets that the kernel parser could not read";
    FORGED = Counter "forged_source_packets" ["interface", "verdict"] "Packets whose source cannot be behind the \
        interface on which they came, by firewall.rp_filter";
    RULE_PACKETS = Counter "firewall_rule_packets" ["rule", "family"] "Packets decided by a firewall rule";
    RULE_BYTES = Counter "firewall_rule" in "bytes" ["rule", "family"] "Bytes of packets decided by a firewall rule";
    LIMIT_PACKETS = Counter "ratelimit_rule_packets" ["rule", "verdict"] "Packets that a rate limit was asked about: \
        pass within it, drop over it and dropped, would_drop over it and passed (action pass, mode alert)";
    LIMIT_BYTES = Counter "ratelimit_rule" in "bytes" ["rule", "verdict"] "Bytes of those packets";
    BUCKETS = Gauge "ratelimit_buckets" [] "Buckets of the rate limiter that are in use";
    BUCKETS_MAX = Gauge "ratelimit_buckets_max" [] "Room for buckets of the rate limiter";
    BUCKETS_ENDED = Counter "ratelimit_buckets_ended" ["reason"] "Buckets that are no more: silent and expired, or \
        silent and replaced by a new source's";
    LIMIT_PATHS = Counter "ratelimit_exceptional_packets" ["reason"] "Packets that went by their rule's common bucket \
        as there was no room for another one (crowded), or gave up on a bucket that other CPUs kept changing (contended)";
    COOKIES = Counter "ratelimit_syn_cookies" ["result"] "SYNs beyond the threshold of a rule with syn_cookie: answered, \
        limited (dropped, their source had its answers), full (dropped, the listener takes no more), and passed as they \
        were (no_listener, not_mine, known); acknowledgements meanwhile that were accepted, or forged and dropped";
    L7_MATCHES = Counter "l7_rule_matches" ["rule", "action"] "Transactions that a rule of the L7 firewall decided, or the \
        default action of their protocol (rule (default), action default)";
    L7_BLOCKED = Counter "l7_blocked_flows" ["rule"] "Flows that the kernel blocks because of a rule of the L7 firewall";
    STEERED = Counter "steered_packets" ["cpu"] "Packets that were sent to a CPU by agent.cpu_steering";
    STEERED_ARRIVED = Counter "steered_arrived_packets" ["cpu"] "Packets that arrived on the CPU that they were sent to";
    STEERED_MISSING = Gauge "steered_missing_packets" ["cpu"] "Packets that were sent to a CPU and have not arrived there: \
        they wait in its queue, or were lost as it was full";
    MIRRORED = Counter "mirrored_packets" ["interface"] "Packets that arrived on an interface and of which a copy was sent \
        to the interface that their rule's mirror_to names";
    MIRRORED_BYTES = Counter "mirrored" in "bytes" ["interface"] "Bytes of those packets";
    MIRROR_LOST = Counter "mirror_lost_packets" ["interface", "reason"] "Packets that arrived on an interface and have no \
        copy: longer than the MTU of the one that it should have gone to (mtu), which is not there (no_interface) or did \
        not take it (clone_failed); or it is not known whether they should have one (no_metadata)";
    CAPTURE_PACKETS = Counter "inspection_packets" ["direction", "result"] "IP packets that tc_ids looked at: recorded for \
        the agent, past their flow's budget, sampled out, forwarded (and looked at when they arrived), dropped because \
        their flow is blocked, or lost";
    CAPTURE_BYTES = Counter "inspection" in "bytes" ["direction", "kind"] "Bytes of frames that tc_ids looked at (seen), \
        and that it recorded (copied)";
    CAPTURE_TRUNCATED = Counter "inspection_truncated_packets" ["direction"] "Recorded packets that were too long to be \
        recorded whole";
    CAPTURE_EVICTED = Counter "inspection_flows_replaced" ["direction"] "Flows whose place in the kernel's table was taken \
        by another one; their budget begins anew";
    BLOCKS = Gauge "blocked" ["kind"] "What is blocked: flows";
    BLOCKS_EVICTED = Counter "blocks_evicted" ["kind"] "Blocks of flows of which one end alone was heard that made room for \
        others";
    BLOCKS_FAILED = Counter "blocks_failed" ["worker"] "Flows that should have been blocked and for which there was no room";
    RESETS = Counter "tcp_resets" ["worker", "result"] "Refused connections that were reset at both ends, were too many, or \
        could not be";
    WORKER_QUEUE = Gauge "inspection_queue_batches" ["worker"] "Batches of records that wait for a worker";
    WORKER_MEMORY = Gauge "inspection_memory" in "bytes" ["worker", "kind"] "What a worker keeps: all, and of it streams, \
        parsers and beginnings (reassembly)";
    WORKER_EVENTS = Counter "inspection_events" ["worker", "event"] "What happened to packets, streams and flows in a worker, \
        by the name of the event; each cap has one";
    LIVE_FLOWS = Gauge "flows" ["protocol"] "Live flows by the protocol above";
    CONNECTIONS = Gauge "connections" [] "Entries of the connection table";
    EVENTS_LOST = Counter "events_lost" ["place", "reason"] "Events that did not fit, by where they were lost and why";
    PROGRAM_STATUS = Gauge "ebpf_program_status" ["program"] "1 for an attached eBPF program, 0 for any other";
    RULES_LOADED = Gauge "rules_loaded" ["domain"] "Rules in force";
    ALERTS = Counter "alerts" ["component", "severity"] "Alerts generated";
    SENDER_CIRCUIT = Gauge "alert_sender_circuit_state" ["destination"] "Whether alerts are sent to a destination: 0 closed \
        (they are), 1 half-open (one is, to see), 2 open (none is, after failures)";
    SENDER_ALERTS = Counter "alert_sender_alerts" ["destination", "result"] "Alerts of a destination: delivered, retried (each \
        time that one is to be sent again), failed (refused for good, or given up)";
    SENDER_QUEUE = Gauge "alert_sender_queue" ["destination"] "Alerts in memory that wait to be sent, or to be spooled";
    SENDER_SPOOL = Gauge "alert_sender_spool" in "bytes" ["destination"] "Bytes on disk of alerts that wait to be sent";
    SPOOL_LEFT = Gauge "alert_spool_left" in "bytes" ["destination"] "Bytes on disk of alerts that nobody sends: their route was \
        removed or renamed, and the spool is kept until there is a route of its name again";
    ALERTS_DROPPED = Counter "alerts_dropped" ["reason"] "Events of alerts of which nobody was told by themselves: folded \
        into the count of an alert that was told (dedup), withheld and told in a summary (throttle, ceiling), hidden by a \
        suppression, wanted by no route of the configuration (no_route), or alerting.enabled is false (disabled)";
    ALERT_PROCESSES = Counter "alert_process_searches" ["result"] "Searches for the process of the socket that an alert of a \
        packet is about: found, nobody (no process of this host has it), late (no answer in time), too_many (not begun)";
    ALERTS_TOLD = Counter "alerts_told" ["route"] "Alerts, and updates of alerts, that a route handed to its sink";
    PROCESSING = Histogram "processing_duration" in "seconds" ["domain"] "Time that an engine takes for an event";
    CONFIG_RELOADS = Counter "config_reloads" ["status"] "Reloads of the configuration";
    FALSE_POSITIVES = Counter "false_positives" ["component", "rule_id"] "Alerts that were marked as false positives";
    STORE_RECORDS = Counter "store_records" ["store"] "Records that were committed: alerts (an alert that goes on counts \
        each time it is told), entries of the audit trail";
    STORE_FAILURES = Counter "store_commit_failures" ["store"] "Commits that failed and are tried again: the disk is full or \
        refuses";
    HTTP_REQUESTS = Counter "http_requests" ["operation", "status"] "Requests answered on the control port";
    HTTP_REFUSED = Counter "http_refused" ["reason"] "Connections that the control port's front refused or cut";
    AUTH_FAILURES = Counter "auth_failures" ["reason"] "Requests that were refused for who sent them: without a credential \
        (missing), with one that is bad (unknown_key, signature, expired ...) or one bad one too many (throttled), of a \
        caller whose role or namespace is not enough (role, namespace), or as their issuer's keys are not known";
    JWKS_FETCHES = Counter "auth_jwks_fetches" ["result"] "Questions to the issuer of auth.oidc for its keys";
    TLS_RELOADS = Counter "tls_reloads" ["status"] "Times that the files of [tls] were read anew";
    TLS_EXPIRY = Gauge "tls_certificate_expiry_timestamp" in "seconds" [] "When the certificate of the control ports expires, \
        in seconds since 1970";
    STREAM_CLIENTS = Gauge "stream_clients" ["kind"] "Clients that listen to alerts: kind sse or grpc";
    STREAM_ALERTS = Counter "stream_alerts" ["kind"] "Alerts and updates sent to such clients";
    STREAM_GAPS = Counter "stream_gaps" ["kind", "reason"] "Times that such a client was told that alerts are missing; those \
        that were counted are lost events of the place stream_sse or stream_grpc";
    GRPC_REFUSED = Counter "grpc_refused" ["reason"] "Connections and calls that the gRPC port refused or cut";
    MEMORY = Gauge "memory_usage" in "bytes" [] "Resident memory of the agent";
    CPU = Gauge "cpu_usage" in "percent" [] "CPU time of the agent; 100 is one core";
}

/// What Prometheus knows of every process, by the names that its dashboards ask for.
const PROCESS: &[(&str, &str, &str)] = &[
    ("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds."),
    ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    ("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."),
    ("process_open_fds", "gauge", "Number of open file descriptors."),
    ("process_max_fds", "gauge", "Maximum number of open file descriptors."),
    ("process_threads", "gauge", "Number of OS threads in the process."),
];

impl Declared {
    /// The name of the samples: what a query asks for. (A histogram adds `_bucket`, `_sum` and `_count`.)
    pub fn full_name(&self) -> String {
        let unit = self.unit.map(|unit| format!("_{unit}")).unwrap_or_default();
        let total = if matches!(self.kind, MetricType::Counter) { "_total" } else { "" };
        format!("{}{unit}{total}", self.name)
    }

    /// The names of its labels.
    pub fn labels(&self) -> &'static [&'static str] {
        self.labels
    }

    fn set<const N: usize>(&self, values: [&str; N]) -> Labels {
        debug_assert_eq!(self.labels.len(), N, "{} has other labels", self.name);
        self.labels.iter().zip(values).map(|(name, value)| (*name, Cow::Owned(value.to_owned()))).collect()
    }
}

type Labels = Vec<(&'static str, Cow<'static, str>)>;
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// What the kernel counted until now; the firewall engine reads it from its maps when Prometheus scrapes.
#[derive(Clone, Debug, Default)]
pub struct KernelCounters {
    pub interfaces: Vec<InterfaceCounters>,
    pub rules: Vec<RuleCounters>,
    /// Why packets could not be parsed, and how many.
    pub unparsable: Vec<(&'static str, u64)>,
    /// Why records did not reach the ring buffer, and how many.
    pub events_lost: Vec<(&'static str, u64)>,
    /// Entries of the connection table; `None` when there is none.
    pub connections: Option<u64>,
    /// The rate limiter's; `None` when it does not run.
    pub limits: Option<LimitCounters>,
    /// The inspection's; `None` when it does not run.
    pub inspection: Option<InspectionCounters>,
    /// The L7 firewall's; `None` when it does not run.
    pub l7: Option<L7Counters>,
    /// What was mirrored, by interface; empty as long as nothing is.
    pub mirrors: Vec<MirrorCounters>,
    /// What was steered, by CPU; empty when nothing is.
    pub steered: Vec<SteerCounters>,
}

/// What the inspection of flows counted.
#[derive(Clone, Debug, Default)]
pub struct InspectionCounters {
    /// The kernel's part, by direction.
    pub capture: Vec<CaptureCounters>,
    /// What is blocked, by kind.
    pub blocks: Vec<(&'static str, u64)>,
    /// Blocks of flows that were not answered which made room for others.
    pub blocks_evicted: u64,
    /// Batches that wait, by worker.
    pub queues: Vec<u64>,
    /// By worker.
    pub workers: Vec<WorkerCounters>,
}

/// What tc_ids counted of one direction.
#[derive(Clone, Debug, Default)]
pub struct CaptureCounters {
    pub direction: &'static str,
    pub bytes: u64,
    pub copied_bytes: u64,
    /// What became of packets.
    pub packets: Vec<(&'static str, u64)>,
    /// Why records did not reach the ring buffer, and how many.
    pub lost: Vec<(&'static str, u64)>,
    pub truncated: u64,
    pub flows_evicted: u64,
}

/// What a worker counted, and what it keeps.
#[derive(Clone, Debug, Default)]
pub struct WorkerCounters {
    /// Live flows by the protocol above.
    pub flows: Vec<(&'static str, u64)>,
    /// Events by name.
    pub stats: Vec<(&'static str, u64)>,
    pub memory: u64,
    pub reassembly_memory: u64,
    /// What became of resets.
    pub resets: Vec<(&'static str, u64)>,
    pub blocks_failed: u64,
}

/// What the L7 firewall counted.
#[derive(Clone, Debug, Default)]
pub struct L7Counters {
    pub rules: Vec<L7RuleCounters>,
    /// Scans that the pattern matcher failed at.
    pub scan_failures: u64,
}

/// Counters of one rule of the L7 firewall.
#[derive(Clone, Debug, Default)]
pub struct L7RuleCounters {
    pub rule: String,
    pub action: &'static str,
    pub matches: u64,
    pub blocked_flows: u64,
}

/// Packets that were sent to a CPU.
#[derive(Clone, Debug, Default)]
pub struct SteerCounters {
    /// Its number.
    pub cpu: String,
    pub steered: u64,
    /// Of them, those that arrived.
    pub arrived: u64,
}

/// Copies of packets that arrived on one interface.
#[derive(Clone, Debug, Default)]
pub struct MirrorCounters {
    pub interface: String,
    pub packets: u64,
    pub bytes: u64,
    /// Why packets have no copy, and how many.
    pub lost: Vec<(&'static str, u64)>,
}

/// Counters of one interface.
#[derive(Clone, Debug, Default)]
pub struct InterfaceCounters {
    pub interface: String,
    /// Packets by verdict: `("pass", 7)`.
    pub packets: Vec<(&'static str, u64)>,
    /// Of them, those that `firewall.rp_filter` took for forged, by verdict.
    pub forged: Vec<(&'static str, u64)>,
    /// Bytes by direction: `("ingress", 7)`.
    pub bytes: Vec<(&'static str, u64)>,
}

/// Counters of one firewall rule in one address family.
#[derive(Clone, Debug, Default)]
pub struct RuleCounters {
    pub rule: String,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    pub packets: u64,
    pub bytes: u64,
}

/// Counters of the rate limiter.
#[derive(Clone, Debug, Default)]
pub struct LimitCounters {
    pub rules: Vec<LimitRuleCounters>,
    /// Buckets in use, and room for them.
    pub buckets: (u64, u64),
    /// Buckets that ended, by reason.
    pub ended: Vec<(&'static str, u64)>,
    /// Packets that did not go by a bucket of their own, by reason.
    pub exceptional: Vec<(&'static str, u64)>,
    /// What became of SYNs and acknowledgements where cookies are in use.
    pub cookies: Vec<(&'static str, u64)>,
    /// Why records did not reach the ring buffer, and how many.
    pub events_lost: Vec<(&'static str, u64)>,
}

/// Counters of one rate limit.
#[derive(Clone, Debug, Default)]
pub struct LimitRuleCounters {
    pub rule: String,
    /// Packets and bytes by verdict: `("pass", 7, 700)`.
    pub counts: Vec<(&'static str, u64, u64)>,
}

/// What is counted of one destination of alerts.
#[derive(Clone, Debug)]
pub struct SenderMetrics {
    /// 0 closed, 1 half-open, 2 open.
    pub circuit: Gauge,
    /// Alerts in memory.
    pub queue: Gauge,
    /// Bytes on disk.
    pub spool_bytes: Gauge,
    /// Alerts that arrived.
    pub delivered: Counter,
    /// Alerts that are to be sent again.
    pub retried: Counter,
    /// Alerts that will not be sent again.
    pub failed: Counter,
}

type KernelSource = Box<dyn Fn() -> KernelCounters + Send + Sync>;

/// The agent's metrics. One for a process, shared by `Arc`.
pub struct Metrics {
    registry: Registry,
    state: Arc<State>,
}

impl Metrics {
    /// All at zero, without a kernel source.
    pub fn new() -> Arc<Metrics> {
        let state = Arc::new(State::default());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(&state)));
        Arc::new(Metrics { registry, state })
    }

    /// Where the kernel's numbers come from. Called at each scrape, on a control worker.
    pub fn set_kernel_source(&self, source: KernelSource) {
        *lock(&self.state.kernel) = Some(Arc::from(source));
    }

    /// The counter of events lost at `place` for `reason`. Keep it: incrementing it is one atomic instruction.
    pub fn events_lost(&self, place: impl Into<Cow<'static, str>>, reason: &'static str) -> Counter {
        lock(&self.state.events_lost).entry((place.into(), reason)).or_default().clone()
    }

    /// One alert.
    pub fn alert(&self, component: Component, severity: &str) {
        self.state.alerts.get_or_create(&ALERTS.set([component.name(), severity])).inc();
    }

    /// What is counted of a destination of alerts; keep it.
    pub fn sender(&self, destination: &str) -> SenderMetrics {
        let state = &self.state;
        let gauge = |family: &Gauges, declared: &Declared| family.get_or_create_owned(&declared.set([destination]));
        let alerts = |result| state.sender_alerts.get_or_create_owned(&SENDER_ALERTS.set([destination, result]));
        SenderMetrics {
            circuit: gauge(&state.sender_circuit, &SENDER_CIRCUIT),
            queue: gauge(&state.sender_queue, &SENDER_QUEUE),
            spool_bytes: gauge(&state.sender_spool, &SENDER_SPOOL),
            delivered: alerts("delivered"),
            retried: alerts("retried"),
            failed: alerts("failed"),
        }
    }

    /// A destination that is no more: its states go, its counts stay.
    pub fn forget_sender(&self, destination: &str) {
        self.state.sender_circuit.remove(&SENDER_CIRCUIT.set([destination]));
        self.state.sender_queue.remove(&SENDER_QUEUE.set([destination]));
        self.state.sender_spool.remove(&SENDER_SPOOL.set([destination]));
    }

    /// Bytes of alerts in the spool of a route that is no more; 0: nothing is left in it.
    pub fn set_spool_left(&self, spool: &str, bytes: u64) {
        let mut left = lock(&self.state.spools_left);
        match bytes {
            0 => left.remove(spool),
            _ => left.insert(spool.to_owned(), bytes),
        };
    }

    /// Spools of routes that are no more, and the bytes of alerts in each.
    pub fn spools_left(&self) -> BTreeMap<String, u64> {
        lock(&self.state.spools_left).clone()
    }

    /// The counter of events of alerts that were not told by themselves, for `reason`. Keep it, as that of
    /// [`Metrics::events_lost`].
    pub fn alerts_dropped(&self, reason: &str) -> Counter {
        self.state.alerts_dropped.get_or_create_owned(&ALERTS_DROPPED.set([reason]))
    }

    /// The counter of searches for the process of an alert with this result. Keep it, too.
    pub fn alert_processes(&self, result: &str) -> Counter {
        self.state.alert_processes.get_or_create_owned(&ALERT_PROCESSES.set([result]))
    }

    /// The counter of what a route told. Keep it, too.
    pub fn alerts_told(&self, route: &str) -> Counter {
        self.state.alerts_told.get_or_create_owned(&ALERTS_TOLD.set([route]))
    }

    /// One reload of the configuration.
    pub fn config_reload(&self, succeeded: bool) {
        let status = if succeeded { "success" } else { "failure" };
        self.state.config_reloads.get_or_create(&CONFIG_RELOADS.set([status])).inc();
    }

    /// The files of `[tls]` were read anew, and taken or not.
    pub fn tls_reload(&self, succeeded: bool) {
        let status = if succeeded { "success" } else { "failure" };
        self.state.tls_reloads.get_or_create(&TLS_RELOADS.set([status])).inc();
    }

    /// Where each scrape asks when the certificate expires, in seconds since 1970.
    pub fn set_tls_expiry(&self, expiry: Box<dyn Fn() -> i64 + Send + Sync>) {
        *lock(&self.state.tls_expiry) = Some(expiry);
    }

    /// The rules that a component has in force.
    pub fn set_rules_loaded(&self, component: Component, rules: usize) {
        self.state.rules_loaded.get_or_create(&RULES_LOADED.set([component.name()])).set(rules as i64);
    }

    /// Whether a program is attached.
    pub fn set_program_active(&self, program: &str, active: bool) {
        self.state.program_status.get_or_create(&PROGRAM_STATUS.set([program])).set(active.into());
    }

    /// The histogram of a component's time per event. Keep it, as [`Metrics::events_lost`].
    pub fn processing(&self, component: Component) -> Histogram {
        self.state.processing.get_or_create_owned(&PROCESSING.set([component.name()]))
    }

    /// One alert that was marked as a false positive.
    pub fn false_positive(&self, component: &str, rule_id: &str) {
        self.state.false_positives.get_or_create(&FALSE_POSITIVES.set([component, rule_id])).inc();
    }

    /// The counter of records that a store has committed. Keep it, as [`Metrics::events_lost`].
    pub fn store_records(&self, store: &str) -> Counter {
        self.state.store_records.get_or_create_owned(&STORE_RECORDS.set([store]))
    }

    /// The counter of a store's commits that failed. Keep it, as [`Metrics::events_lost`].
    pub fn store_failures(&self, store: &str) -> Counter {
        self.state.store_failures.get_or_create_owned(&STORE_FAILURES.set([store]))
    }

    /// One answered request; `operation` is the command of its spec.
    pub fn http_request(&self, operation: &str, status: u16) {
        self.state.http_requests.get_or_create(&HTTP_REQUESTS.set([operation, &status.to_string()])).inc();
    }

    /// One connection that the front refused or cut.
    pub fn http_refused(&self, reason: &'static str) {
        self.state.http_refused.get_or_create(&HTTP_REFUSED.set([reason])).inc();
    }

    /// One request that was refused for who sent it.
    pub fn auth_failure(&self, reason: &'static str) {
        self.state.auth_failures.get_or_create(&AUTH_FAILURES.set([reason])).inc();
    }

    /// One question to a token issuer for its keys.
    pub fn auth_keys_fetched(&self, succeeded: bool) {
        let result = if succeeded { "success" } else { "failure" };
        self.state.jwks_fetches.get_or_create(&JWKS_FETCHES.set([result])).inc();
    }

    /// One connection or call that the gRPC port refused or cut.
    pub fn grpc_refused(&self, reason: &'static str) {
        self.state.grpc_refused.get_or_create(&GRPC_REFUSED.set([reason])).inc();
    }

    /// What clients of one kind of stream, `sse` or `grpc`, are sent.
    pub fn streams(self: &Arc<Metrics>, kind: &'static str) -> StreamMetrics {
        let place = if kind == "sse" { "stream_sse" } else { "stream_grpc" };
        StreamMetrics {
            kind,
            place,
            clients: self.state.stream_clients.get_or_create_owned(&STREAM_CLIENTS.set([kind])),
            alerts: self.state.stream_alerts.get_or_create_owned(&STREAM_ALERTS.set([kind])),
            metrics: self.clone(),
        }
    }

    /// The OpenMetrics text of all.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        encode(&mut text, &self.registry).expect("a String takes all that is written");
        let end = text.strip_suffix("# EOF\n").map_or(text.len(), str::len);
        text.truncate(end);
        for ((name, kind, help), value) in PROCESS.iter().zip(process_figures()) {
            let Some(value) = value else { continue };
            let family = name.strip_suffix("_total").unwrap_or(name);
            text += &format!("# HELP {family} {help}\n# TYPE {family} {kind}\n{name} {value}\n");
        }
        text + "# EOF\n"
    }

    /// The same as Prometheus's own text format, version 0.0.4, in which the family of a counter has the name of its
    /// samples.
    pub fn render_text(&self) -> String {
        let text = self.render();
        let mut out = String::with_capacity(text.len());
        let mut counters: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        counters.retain(|family| family.ends_with(" counter"));
        let counters: std::collections::HashSet<&str> =
            counters.iter().filter_map(|family| family.split(' ').next()).collect();
        for line in text.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some(what), Some(family), rest) if counters.contains(family) => {
                    out += &format!("# {what} {family}_total {}\n", rest.unwrap_or_default());
                }
                _ => {
                    out += line;
                    out.push('\n');
                }
            }
        }
        out
    }
}

/// What clients of one kind of stream are sent. Clones are the same.
#[derive(Clone)]
pub struct StreamMetrics {
    kind: &'static str,
    /// Of lost events.
    place: &'static str,
    clients: Gauge,
    alerts: Counter,
    metrics: Arc<Metrics>,
}

impl StreamMetrics {
    /// One more client, until this is dropped.
    pub fn client(&self) -> StreamClient {
        self.clients.inc();
        StreamClient(self.clients.clone())
    }

    /// One alert, or an update, was sent.
    pub fn alert(&self) {
        self.alerts.inc();
    }

    /// A client was told that alerts are missing, and how many where that is known.
    pub fn gap(&self, reason: &'static str, missed: Option<u64>) {
        self.metrics.state.stream_gaps.get_or_create(&STREAM_GAPS.set([self.kind, reason])).inc();
        self.metrics.events_lost(self.place, reason).inc_by(missed.unwrap_or(0));
    }
}

/// See [`StreamMetrics::client`].
pub struct StreamClient(Gauge);

impl Drop for StreamClient {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

struct State {
    kernel: Mutex<Option<Arc<dyn Fn() -> KernelCounters + Send + Sync>>>,
    process: Mutex<ProcessCpu>,
    /// Not a `Family`: the kernel's losses are samples of the same metric.
    events_lost: Mutex<BTreeMap<(Cow<'static, str>, &'static str), Counter>>,
    program_status: Gauges,
    rules_loaded: Gauges,
    alerts: Counters,
    sender_circuit: Gauges,
    sender_alerts: Counters,
    sender_queue: Gauges,
    sender_spool: Gauges,
    spools_left: Mutex<BTreeMap<String, u64>>,
    alerts_dropped: Counters,
    alerts_told: Counters,
    alert_processes: Counters,
    processing: Histograms,
    config_reloads: Counters,
    false_positives: Counters,
    store_records: Counters,
    store_failures: Counters,
    tls_reloads: Counters,
    tls_expiry: Mutex<Option<Box<dyn Fn() -> i64 + Send + Sync>>>,
    http_requests: Counters,
    http_refused: Counters,
    auth_failures: Counters,
    jwks_fetches: Counters,
    stream_clients: Gauges,
    stream_alerts: Counters,
    stream_gaps: Counters,
    grpc_refused: Counters,
}

impl Default for State {
    fn default() -> State {
        State {
            kernel: Mutex::default(),
            process: Mutex::new(ProcessCpu::start()),
            events_lost: Mutex::default(),
            program_status: Gauges::default(),
            rules_loaded: Gauges::default(),
            alerts: Counters::default(),
            sender_circuit: Gauges::default(),
            sender_alerts: Counters::default(),
            sender_queue: Gauges::default(),
            sender_spool: Gauges::default(),
            spools_left: Mutex::default(),
            alerts_dropped: Counters::default(),
            alerts_told: Counters::default(),
            alert_processes: Counters::default(),
            processing: Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS_SECONDS)),
            config_reloads: Counters::default(),
            false_positives: Counters::default(),
            store_records: Counters::default(),
            store_failures: Counters::default(),
            tls_reloads: Counters::default(),
            tls_expiry: Mutex::default(),
            http_requests: Counters::default(),
            http_refused: Counters::default(),
            auth_failures: Counters::default(),
            jwks_fetches: Counters::default(),
            stream_clients: Gauges::default(),
            stream_alerts: Counters::default(),
            stream_gaps: Counters::default(),
            grpc_refused: Counters::default(),
        }
    }
}

/// An event takes microseconds; a rule change or a slow disk shows in the last buckets.
const DURATION_BUCKETS_SECONDS: [f64; 10] = [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1];

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

impl Collector for State {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Cloned out of the lock: the source may take as long as its maps are big.
        let source = lock(&self.kernel).clone();
        let kernel = source.map(|source| source()).unwrap_or_default();
        let mut out = Output(encoder);

        let interfaces = &kernel.interfaces;
        let packets = interfaces.iter().flat_map(|i| i.packets.iter().map(|(v, n)| ([i.interface.as_str(), v], *n)));
        out.counters(&PACKETS, packets)?;
        let bytes = interfaces.iter().flat_map(|i| i.bytes.iter().map(|(d, n)| ([i.interface.as_str(), d], *n)));
        out.counters(&BYTES, bytes)?;
        let forged = interfaces.iter().flat_map(|i| i.forged.iter().map(|(v, n)| ([i.interface.as_str(), v], *n)));
        out.counters(&FORGED, forged)?;
        out.counters(&UNPARSABLE, kernel.unparsable.iter().map(|(reason, n)| ([*reason], *n)))?;
        out.counters(&RULE_PACKETS, kernel.rules.iter().map(|r| ([r.rule.as_str(), r.family], r.packets)))?;
        out.counters(&RULE_BYTES, kernel.rules.iter().map(|r| ([r.rule.as_str(), r.family], r.bytes)))?;
        let steered = &kernel.steered;
        out.counters(&STEERED, steered.iter().map(|one| ([one.cpu.as_str()], one.steered)))?;
        out.counters(&STEERED_ARRIVED, steered.iter().map(|one| ([one.cpu.as_str()], one.arrived)))?;
        out.gauges(
            &STEERED_MISSING,
            steered.iter().map(|one| ([one.cpu.as_str()], one.steered.saturating_sub(one.arrived) as f64)),
        )?;
        let mirrors = &kernel.mirrors;
        out.counters(&MIRRORED, mirrors.iter().map(|one| ([one.interface.as_str()], one.packets)))?;
        out.counters(&MIRRORED_BYTES, mirrors.iter().map(|one| ([one.interface.as_str()], one.bytes)))?;
        let lost = mirrors.iter().flat_map(|one| one.lost.iter().map(|(why, n)| ([one.interface.as_str(), *why], *n)));
        out.counters(&MIRROR_LOST, lost)?;
        if let Some(inspection) = &kernel.inspection {
            out.inspection(inspection)?;
        }
        if let Some(connections) = kernel.connections {
            out.gauge(&CONNECTIONS, connections as f64)?;
        }

        if let Some(limits) = &kernel.limits {
            out.limits(limits)?;
        }

        let l7 = kernel.l7.iter().flat_map(|l7| &l7.rules);
        out.counters(&L7_MATCHES, l7.clone().map(|one| ([one.rule.as_str(), one.action], one.matches)))?;
        out.counters(&L7_BLOCKED, l7.map(|one| ([one.rule.as_str()], one.blocked_flows)))?;

        let own: Vec<_> = lock(&self.events_lost).iter().map(|(key, n)| (key.clone(), n.get())).collect();
        let own = own.iter().map(|((place, reason), n)| ([place.as_ref(), *reason], *n));
        let in_kernel = kernel.events_lost.iter().map(|(reason, n)| (["kernel", *reason], *n));
        let limits = kernel.limits.iter().flat_map(|limits| &limits.events_lost);
        let in_kernel = in_kernel.chain(limits.map(|(reason, n)| (["kernel_ratelimit", *reason], *n)));
        let capture = kernel.inspection.iter().flat_map(|inspection| &inspection.capture);
        let mut not_recorded: BTreeMap<&str, u64> = BTreeMap::new();
        for (reason, lost) in capture.flat_map(|one| &one.lost) {
            *not_recorded.entry(reason).or_default() += lost;
        }
        let in_kernel = in_kernel.chain(not_recorded.into_iter().map(|(reason, n)| (["kernel_ids", reason], n)));
        let unscanned = kernel.l7.iter().map(|l7| (["l7", "scan_failed"], l7.scan_failures));
        out.counters(&EVENTS_LOST, own.chain(in_kernel).chain(unscanned))?;

        out.family(&PROGRAM_STATUS, &self.program_status)?;
        out.family(&RULES_LOADED, &self.rules_loaded)?;
        out.family(&ALERTS, &self.alerts)?;
        out.family(&SENDER_CIRCUIT, &self.sender_circuit)?;
        out.family(&SENDER_ALERTS, &self.sender_alerts)?;
        out.family(&SENDER_QUEUE, &self.sender_queue)?;
        out.family(&SENDER_SPOOL, &self.sender_spool)?;
        let left = lock(&self.spools_left).clone();
        out.gauges(&SPOOL_LEFT, left.iter().map(|(spool, bytes)| ([spool.as_str()], *bytes as f64)))?;
        out.family(&ALERTS_DROPPED, &self.alerts_dropped)?;
        out.family(&ALERTS_TOLD, &self.alerts_told)?;
        out.family(&ALERT_PROCESSES, &self.alert_processes)?;
        out.family(&PROCESSING, &self.processing)?;
        out.family(&CONFIG_RELOADS, &self.config_reloads)?;
        out.family(&FALSE_POSITIVES, &self.false_positives)?;
        out.family(&STORE_RECORDS, &self.store_records)?;
        out.family(&STORE_FAILURES, &self.store_failures)?;
        out.family(&TLS_RELOADS, &self.tls_reloads)?;
        if let Some(expiry) = &*lock(&self.tls_expiry) {
            out.gauge(&TLS_EXPIRY, expiry() as f64)?;
        }
        out.family(&HTTP_REQUESTS, &self.http_requests)?;
        out.family(&HTTP_REFUSED, &self.http_refused)?;
        out.family(&AUTH_FAILURES, &self.auth_failures)?;
        out.family(&JWKS_FETCHES, &self.jwks_fetches)?;
        out.family(&STREAM_CLIENTS, &self.stream_clients)?;
        out.family(&STREAM_ALERTS, &self.stream_alerts)?;
        out.family(&STREAM_GAPS, &self.stream_gaps)?;
        out.family(&GRPC_REFUSED, &self.grpc_refused)?;

        if let Some(bytes) = resident_bytes() {
            out.gauge(&MEMORY, bytes as f64)?;
        }
        if let Some(percent) = lock(&self.process).percent() {
            out.gauge(&CPU, percent)?;
        }
        Ok(())
    }
}

/// Writes one declared metric after the other. One without samples leaves no trace.
struct Output<'a>(DescriptorEncoder<'a>);

impl Output<'_> {
    fn describe<R>(
        &mut self,
        metric: &Declared,
        write: impl FnOnce(MetricEncoder<'_>) -> Result<R, fmt::Error>,
    ) -> Result<R, fmt::Error> {
        let unit = metric.unit.map(|unit| match unit {
            "bytes" => Unit::Bytes,
            "seconds" => Unit::Seconds,
            other => Unit::Other(other.to_owned()),
        });
        write(self.0.encode_descriptor(metric.name, metric.help, unit.as_ref(), metric.kind)?)
    }

    fn counters<'v, const N: usize>(
        &mut self,
        metric: &Declared,
        samples: impl Iterator<Item = ([&'v str; N], u64)>,
    ) -> fmt::Result {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        self.describe(metric, |mut encoder| {
            for (values, n) in samples {
                let labels = metric.set(values);
                ConstCounter::new(n).encode(encoder.encode_family(&labels)?)?;
            }
            Ok(())
        })
    }

    fn inspection(&mut self, inspection: &InspectionCounters) -> fmt::Result {
        let capture = &inspection.capture;
        let packets =
            capture.iter().flat_map(|one| one.packets.iter().map(|(result, n)| ([one.direction, *result], *n)));
        self.counters(&CAPTURE_PACKETS, packets)?;
        let bytes = |one: &CaptureCounters| {
            [([one.direction, "seen"], one.bytes), ([one.direction, "copied"], one.copied_bytes)]
        };
        self.counters(&CAPTURE_BYTES, capture.iter().flat_map(bytes))?;
        self.counters(&CAPTURE_TRUNCATED, capture.iter().map(|one| ([one.direction], one.truncated)))?;
        self.counters(&CAPTURE_EVICTED, capture.iter().map(|one| ([one.direction], one.flows_evicted)))?;
        self.gauges(&BLOCKS, inspection.blocks.iter().map(|(kind, n)| ([*kind], *n as f64)))?;
        self.counters(&BLOCKS_EVICTED, [(["flow"], inspection.blocks_evicted)].into_iter())?;
        let numbers: Vec<String> =
            (0..inspection.workers.len().max(inspection.queues.len())).map(|n| n.to_string()).collect();
        let workers = || numbers.iter().map(String::as_str).zip(&inspection.workers);
        self.counters(&BLOCKS_FAILED, workers().map(|(worker, of)| ([worker], of.blocks_failed)))?;
        let resets = workers().flat_map(|(worker, of)| of.resets.iter().map(move |(what, n)| ([worker, *what], *n)));
        self.counters(&RESETS, resets)?;
        let queues = numbers.iter().zip(&inspection.queues).map(|(worker, n)| ([worker.as_str()], *n as f64));
        self.gauges(&WORKER_QUEUE, queues)?;
        let memory = workers().flat_map(|(worker, of)| {
            [([worker, "all"], of.memory as f64), ([worker, "reassembly"], of.reassembly_memory as f64)]
        });
        self.gauges(&WORKER_MEMORY, memory)?;
        let events = workers().flat_map(|(worker, of)| of.stats.iter().map(move |(event, n)| ([worker, *event], *n)));
        self.counters(&WORKER_EVENTS, events)?;
        let mut flows: BTreeMap<&str, u64> = BTreeMap::new();
        for (protocol, live) in inspection.workers.iter().flat_map(|of| &of.flows) {
            *flows.entry(protocol).or_default() += live;
        }
        self.gauges(&LIVE_FLOWS, flows.into_iter().map(|(protocol, n)| ([protocol], n as f64)))
    }

    fn limits(&mut self, limits: &LimitCounters) -> fmt::Result {
        let each = || limits.rules.iter().flat_map(|one| one.counts.iter().map(|count| (one.rule.as_str(), count)));
        self.counters(&LIMIT_PACKETS, each().map(|(rule, (verdict, packets, _))| ([rule, *verdict], *packets)))?;
        self.counters(&LIMIT_BYTES, each().map(|(rule, (verdict, _, bytes))| ([rule, *verdict], *bytes)))?;
        self.gauge(&BUCKETS, limits.buckets.0 as f64)?;
        self.gauge(&BUCKETS_MAX, limits.buckets.1 as f64)?;
        self.counters(&BUCKETS_ENDED, limits.ended.iter().map(|(reason, n)| ([*reason], *n)))?;
        self.counters(&LIMIT_PATHS, limits.exceptional.iter().map(|(reason, n)| ([*reason], *n)))?;
        self.counters(&COOKIES, limits.cookies.iter().map(|(result, n)| ([*result], *n)))
    }

    fn gauge(&mut self, metric: &Declared, value: f64) -> fmt::Result {
        self.describe(metric, |encoder| ConstGauge::new(value).encode(encoder))
    }

    fn gauges<'v, const N: usize>(
        &mut self,
        metric: &Declared,
        samples: impl Iterator<Item = ([&'v str; N], f64)>,
    ) -> fmt::Result {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        self.describe(metric, |mut encoder| {
            for (values, value) in samples {
                let labels = metric.set(values);
                ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
            }
            Ok(())
        })
    }

    fn family<M, C>(&mut self, metric: &Declared, family: &Family<Labels, M, C>) -> fmt::Result
    where
        Family<Labels, M, C>: EncodeMetric,
    {
        if family.is_empty() {
            return Ok(());
        }
        self.describe(metric, |encoder| family.encode(encoder))
    }
}

/// The CPU time at the last look, for a percentage since then.
struct ProcessCpu {
    at: Instant,
    used: Duration,
    percent: Option<f64>,
}

impl ProcessCpu {
    /// Two scrapers would halve each other's window; below this the last figure stands.
    const WINDOW_MIN: Duration = Duration::from_secs(1);

    fn start() -> ProcessCpu {
        ProcessCpu { at: Instant::now(), used: cpu_time().unwrap_or_default(), percent: None }
    }

    fn percent(&mut self) -> Option<f64> {
        let (now, used) = (Instant::now(), cpu_time()?);
        let window = now - self.at;
        if self.percent.is_none() || window >= Self::WINDOW_MIN {
            let window = window.max(Duration::from_millis(1));
            self.percent = Some(100.0 * used.saturating_sub(self.used).as_secs_f64() / window.as_secs_f64());
            (self.at, self.used) = (now, used);
        }
        self.percent
    }
}

/// User and system time of this process.
fn cpu_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The command in parentheses may hold spaces; utime and stime are fields 14 and 15, counted from 1.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()?? as f64;
    Some(Duration::from_secs_f64(ticks as f64 / per_second))
}

/// The figures of [`PROCESS`], in its order; what cannot be read is left out.
fn process_figures() -> [Option<String>; 7] {
    let pages = |field: usize| {
        let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = statm.split_ascii_whitespace().nth(field)?.parse().ok()?;
        Some((pages * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()?? as u64).to_string())
    };
    let count = |folder: &str| std::fs::read_dir(folder).ok().map(|entries| entries.count().to_string());
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok();
    [
        cpu_time().map(|time| format!("{:.2}", time.as_secs_f64())),
        pages(1),
        pages(0),
        start_time().map(|time| format!("{time:.2}")),
        count("/proc/self/fd"),
        limit.map(|(soft, _)| soft.to_string()),
        count("/proc/self/task"),
    ]
}

/// When this process was started, in seconds since 1970.
fn start_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // As in `cpu_time`; field 22 counts from the start of the host.
    let ticks: f64 = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(19)?.parse().ok()?;
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()?? as f64)
}

/// Memory of this process that is in RAM.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page as u64)
}

/// Counters stay right when a thread died while it held the lock: each is one word.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted() -> KernelCounters {
        KernelCounters {
            interfaces: vec![InterfaceCounters {
                interface: "eth\"0".to_owned(),
                packets: vec![("pass", 5), ("drop", 2)],
                forged: vec![("drop", 1)],
                bytes: vec![("ingress", 700)],
            }],
            rules: vec![RuleCounters { rule: "fw-1".to_owned(), family: "ipv4", packets: 2, bytes: 128 }],
            unparsable: vec![("truncated", 1)],
            events_lost: vec![("ring_full", 9)],
            connections: Some(3),
            limits: Some(LimitCounters {
                rules: vec![LimitRuleCounters {
                    rule: "rl-1".to_owned(),
                    counts: vec![("pass", 6, 600), ("drop", 8, 800)],
                }],
                buckets: (4, 1024),
                ended: vec![("expired", 5)],
                exceptional: vec![("crowded", 7)],
                cookies: vec![("answered", 2)],
                events_lost: vec![("ring_full", 1)],
            }),
            inspection: Some(InspectionCounters {
                capture: vec![CaptureCounters {
                    direction: "egress",
                    bytes: 3000,
                    copied_bytes: 2000,
                    packets: vec![("recorded", 21)],
                    lost: vec![("ring_full", 18)],
                    truncated: 19,
                    flows_evicted: 20,
                }],
                blocks: vec![("flow", 22)],
                blocks_evicted: 30,
                queues: vec![23],
                workers: vec![WorkerCounters {
                    flows: vec![("tls", 24)],
                    stats: vec![("gaps", 25)],
                    memory: 26,
                    reassembly_memory: 27,
                    resets: vec![("sent", 28)],
                    blocks_failed: 29,
                }],
            }),
            l7: Some(L7Counters {
                rules: vec![L7RuleCounters { rule: "l7-1".to_owned(), action: "deny", matches: 17, blocked_flows: 16 }],
                scan_failures: 0,
            }),
            steered: vec![SteerCounters { cpu: "1".to_owned(), steered: 15, arrived: 13 }],
            mirrors: vec![MirrorCounters {
                interface: "eth0".to_owned(),
                packets: 11,
                bytes: 1100,
                lost: vec![("mtu", 12)],
            }],
        }
    }

    fn moved() -> Arc<Metrics> {
        let metrics = Metrics::new();
        metrics.set_kernel_source(Box::new(counted));
        metrics.events_lost("engine", "queue_full").inc_by(4);
        metrics.alert(Component::Firewall, "high");
        let sender = metrics.sender("hook");
        sender.circuit.set(2);
        sender.queue.set(30);
        sender.spool_bytes.set(31);
        sender.delivered.inc_by(32);
        metrics.set_spool_left("old-hook", 35);
        metrics.set_spool_left("gone", 36);
        metrics.set_spool_left("gone", 0);
        metrics.alerts_dropped("dedup").inc_by(30);
        metrics.alerts_told("default-log").inc_by(31);
        metrics.alert_processes("late").inc_by(37);
        metrics.false_positive("firewall", "ssh");
        metrics.store_records("alerts").inc_by(32);
        metrics.store_failures("audit").inc();
        metrics.config_reload(true);
        metrics.config_reload(false);
        metrics.tls_reload(true);
        metrics.set_tls_expiry(Box::new(|| 1_900_000_000));
        metrics.set_rules_loaded(Component::Firewall, 12);
        metrics.set_program_active("xdp_firewall", true);
        metrics.processing(Component::Firewall).observe(2e-6);
        metrics.http_request("firewall list", 200);
        metrics.http_refused("head_timeout");
        metrics.auth_failure("unknown_key");
        metrics.auth_keys_fetched(false);
        let streams = metrics.streams("sse");
        drop(streams.client());
        std::mem::forget(streams.client());
        streams.alert();
        streams.gap("slow_client", Some(5));
        metrics.grpc_refused("tls");
        metrics.false_positive("firewall", "ssh");
        metrics.store_records("audit").inc_by(33);
        metrics.store_failures("audit").inc_by(34);
        metrics
    }

    #[test]
    fn samples() {
        let text = moved().render();
        for line in [
            "ebpfsentinel_packets_total{interface=\"eth\\\"0\",verdict=\"pass\"} 5",
            "ebpfsentinel_packets_total{interface=\"eth\\\"0\",verdict=\"drop\"} 2",
            "ebpfsentinel_forged_source_packets_total{interface=\"eth\\\"0\",verdict=\"drop\"} 1",
            "ebpfsentinel_bytes_processed_total{interface=\"eth\\\"0\",direction=\"ingress\"} 700",
            "ebpfsentinel_unparsable_packets_total{reason=\"truncated\"} 1",
            "ebpfsentinel_firewall_rule_packets_total{rule=\"fw-1\",family=\"ipv4\"} 2",
            "ebpfsentinel_firewall_rule_bytes_total{rule=\"fw-1\",family=\"ipv4\"} 128",
            "ebpfsentinel_connections 3.0",
            "ebpfsentinel_ratelimit_rule_packets_total{rule=\"rl-1\",verdict=\"drop\"} 8",
            "ebpfsentinel_ratelimit_rule_bytes_total{rule=\"rl-1\",verdict=\"pass\"} 600",
            "ebpfsentinel_ratelimit_buckets 4.0",
            "ebpfsentinel_ratelimit_buckets_max 1024.0",
            "ebpfsentinel_ratelimit_buckets_ended_total{reason=\"expired\"} 5",
            "ebpfsentinel_ratelimit_exceptional_packets_total{reason=\"crowded\"} 7",
            "ebpfsentinel_ratelimit_syn_cookies_total{result=\"answered\"} 2",
            "ebpfsentinel_inspection_packets_total{direction=\"egress\",result=\"recorded\"} 21",
            "ebpfsentinel_inspection_bytes_total{direction=\"egress\",kind=\"seen\"} 3000",
            "ebpfsentinel_inspection_bytes_total{direction=\"egress\",kind=\"copied\"} 2000",
            "ebpfsentinel_inspection_truncated_packets_total{direction=\"egress\"} 19",
            "ebpfsentinel_inspection_flows_replaced_total{direction=\"egress\"} 20",
            "ebpfsentinel_blocked{kind=\"flow\"} 22.0",
            "ebpfsentinel_blocks_evicted_total{kind=\"flow\"} 30",
            "ebpfsentinel_blocks_failed_total{worker=\"0\"} 29",
            "ebpfsentinel_tcp_resets_total{worker=\"0\",result=\"sent\"} 28",
            "ebpfsentinel_inspection_queue_batches{worker=\"0\"} 23.0",
            "ebpfsentinel_inspection_memory_bytes{worker=\"0\",kind=\"all\"} 26.0",
            "ebpfsentinel_inspection_memory_bytes{worker=\"0\",kind=\"reassembly\"} 27.0",
            "ebpfsentinel_inspection_events_total{worker=\"0\",event=\"gaps\"} 25",
            "ebpfsentinel_flows{protocol=\"tls\"} 24.0",
            "ebpfsentinel_events_lost_total{place=\"kernel_ids\",reason=\"ring_full\"} 18",
            "ebpfsentinel_l7_rule_matches_total{rule=\"l7-1\",action=\"deny\"} 17",
            "ebpfsentinel_l7_blocked_flows_total{rule=\"l7-1\"} 16",
            "ebpfsentinel_events_lost_total{place=\"l7\",reason=\"scan_failed\"} 0",
            "ebpfsentinel_events_lost_total{place=\"kernel_ratelimit\",reason=\"ring_full\"} 1",
            "ebpfsentinel_events_lost_total{place=\"engine\",reason=\"queue_full\"} 4",
            "ebpfsentinel_events_lost_total{place=\"kernel\",reason=\"ring_full\"} 9",
            "ebpfsentinel_ebpf_program_status{program=\"xdp_firewall\"} 1",
            "ebpfsentinel_rules_loaded{domain=\"firewall\"} 12",
            "ebpfsentinel_alerts_total{component=\"firewall\",severity=\"high\"} 1",
            "ebpfsentinel_alert_sender_circuit_state{destination=\"hook\"} 2",
            "ebpfsentinel_alert_sender_queue{destination=\"hook\"} 30",
            "ebpfsentinel_alert_sender_spool_bytes{destination=\"hook\"} 31",
            "ebpfsentinel_alert_sender_alerts_total{destination=\"hook\",result=\"delivered\"} 32",
            "ebpfsentinel_alert_spool_left_bytes{destination=\"old-hook\"} 35.0",
            "ebpfsentinel_alerts_dropped_total{reason=\"dedup\"} 30",
            "ebpfsentinel_alerts_told_total{route=\"default-log\"} 31",
            "ebpfsentinel_alert_process_searches_total{result=\"late\"} 37",
            "ebpfsentinel_processing_duration_seconds_count{domain=\"firewall\"} 1",
            "ebpfsentinel_config_reloads_total{status=\"success\"} 1",
            "ebpfsentinel_config_reloads_total{status=\"failure\"} 1",
            "ebpfsentinel_tls_reloads_total{status=\"success\"} 1",
            "ebpfsentinel_tls_certificate_expiry_timestamp_seconds 1900000000.0",
            "ebpfsentinel_http_requests_total{operation=\"firewall list\",status=\"200\"} 1",
            "ebpfsentinel_http_refused_total{reason=\"head_timeout\"} 1",
            "ebpfsentinel_auth_failures_total{reason=\"unknown_key\"} 1",
            "ebpfsentinel_auth_jwks_fetches_total{result=\"failure\"} 1",
            "ebpfsentinel_stream_clients{kind=\"sse\"} 1",
            "ebpfsentinel_stream_alerts_total{kind=\"sse\"} 1",
            "ebpfsentinel_stream_gaps_total{kind=\"sse\",reason=\"slow_client\"} 1",
            "ebpfsentinel_events_lost_total{place=\"stream_sse\",reason=\"slow_client\"} 5",
            "ebpfsentinel_grpc_refused_total{reason=\"tls\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
    }

    /// Each declared metric can be moved, has its samples after its TYPE, and ends as OpenMetrics must.
    #[test]
    fn every_declared_metric_is_rendered_once() {
        let text = moved().render();
        assert!(text.ends_with("# EOF\n"));
        for metric in DECLARED {
            let family = metric.full_name().trim_end_matches("_total").to_owned();
            let types: Vec<_> = text.lines().filter(|l| l.starts_with(&format!("# TYPE {family} "))).collect();
            assert_eq!(types.len(), 1, "{family} in\n{text}");
        }
        let types = text.lines().filter(|l| l.starts_with("# TYPE ")).count();
        assert_eq!(types, DECLARED.len() + PROCESS.len());
    }

    #[test]
    fn the_text_of_prometheus_names_counters_as_their_samples() {
        let text = moved().render_text();
        for line in [
            "# TYPE ebpfsentinel_packets_total counter",
            "# HELP ebpfsentinel_alerts_total Alerts generated",
            "# TYPE ebpfsentinel_connections gauge",
            "# TYPE ebpfsentinel_processing_duration_seconds histogram",
            "# TYPE process_cpu_seconds_total counter",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
    }

    #[test]
    fn the_process_is_seen() {
        let text = Metrics::new().render();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("ebpfsentinel_memory_usage_bytes") > 100_000.0);
        assert!(value("ebpfsentinel_cpu_usage_percent") >= 0.0);
        assert_eq!(value("process_threads") as usize, std::fs::read_dir("/proc/self/task").unwrap().count());
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") > value("process_open_fds"));
        assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }

    /// Labels are names of the configuration, or words and numbers of which there are few: never an address or a port.
    #[test]
    fn labels_have_few_values() {
        let few = [
            "interface",
            "verdict",
            "direction",
            "reason",
            "rule",
            "family",
            "result",
            "action",
            "cpu",
            "kind",
            "worker",
            "event",
            "protocol",
            "place",
            "program",
            "domain",
            "component",
            "severity",
            "status",
            "operation",
            "destination",
            "route",
            "rule_id",
            "store",
        ];
        for metric in DECLARED {
            for label in metric.labels() {
                assert!(few.contains(label), "{}: is the number of values of {label} bounded?", metric.full_name());
            }
        }
    }
}
