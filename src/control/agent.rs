//! The agent's own operations: health, readiness, metrics, status, configuration.
//!
//! The answers come through [`AgentControl`], which the agent implements: control knows nothing of engines and kernel.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::{self, ApiError, Method, Note, Operation, Param, ParamKind, Reply, Role, Spec};
use crate::confirm::CONFIRM_SECS;
use crate::metrics::{self, Metrics};
use crate::system::harden::SandboxStatus;

/// What the agent answers about itself. Called on control workers, several at a time.
pub trait AgentControl: Send + Sync {
    /// Whether everything that is enabled works, and if not, why.
    fn readiness(&self) -> Readiness;
    fn status(&self) -> AgentStatus;
    /// The configuration in force, secrets masked.
    fn config(&self) -> Value;
    /// Reads the configuration anew and puts it in force, or changes nothing. With `confirm_secs` it is taken back
    /// after that time unless [`AgentControl::confirm`] comes first.
    fn reload(&self, confirm_secs: Option<u32>) -> Result<Reloaded, ApiError>;
    /// Keeps what waits for its confirmation. With `by` it must be the change of that caller.
    fn confirm(&self, by: Option<&str>) -> Result<Confirmed, ApiError>;
    fn ebpf_status(&self) -> EbpfStatus;
}

/// Answer of `/healthz`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Health {
    /// Always `ok`: a process that answers is alive.
    pub status: &'static str,
}

/// What `/readyz` is made from.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// Whether every program that is enabled is loaded.
    pub ebpf_loaded: bool,
    /// What is missing, a sentence each. Ready means none.
    pub reasons: Vec<String>,
}

/// Answer of `/readyz`, also with 503.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Ready {
    /// `ready` or `not_ready`.
    pub status: &'static str,
    pub ebpf_loaded: bool,
    /// What is missing; empty when ready.
    pub reasons: Vec<String>,
}

/// Answer of `/api/v1/agent/status`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AgentStatus {
    pub version: String,
    pub uptime_seconds: u64,
    pub ebpf_loaded: bool,
    /// Rules in force in all components.
    pub rule_count: u64,
    pub firewall_enabled: bool,
    /// `alert` or `block`.
    pub firewall_mode: String,
    /// `pass` or `drop`.
    pub firewall_default_policy: String,
    pub rules: FirewallRuleCounts,
    /// Where gRPC listens; `null` where it does not.
    pub grpc_address: Option<String>,
    pub interfaces: Vec<InterfaceStatus>,
    /// A change that is taken back unless it is confirmed.
    pub pending_confirm: Option<PendingConfirm>,
    /// What the agent may still do, once it runs.
    pub sandbox: SandboxStatus,
    /// What does not work as configured; empty when all does.
    pub degraded: Vec<String>,
}

/// Where the firewall's rules come from and where they apply.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct FirewallRuleCounts {
    /// From the configuration file.
    pub file: u64,
    /// Made through the API.
    pub api: u64,
    /// Kept, but not enabled.
    pub disabled: u64,
    /// In the IPv4 tables.
    pub ipv4: u64,
    /// In the IPv6 tables.
    pub ipv6: u64,
}

/// An interface of the configuration.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct InterfaceStatus {
    pub name: String,
    /// `null` while the interface does not exist.
    pub ifindex: Option<u32>,
    pub attached: bool,
    /// `native` or `generic`; `null` while not attached.
    pub xdp_mode: Option<String>,
    /// Why it is not attached, or not as wished.
    pub reason: Option<String>,
}

/// A change under commit-confirm.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PendingConfirm {
    /// What waits, as `config reload`.
    pub what: String,
    /// When it is taken back, RFC 3339.
    pub deadline: String,
    pub seconds_left: u64,
}

/// Answer of a reload that went well.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Reloaded {
    /// `reloaded`.
    pub status: String,
    pub message: String,
    pub pending_confirm: Option<PendingConfirm>,
    /// What changed, for the audit log.
    #[serde(skip)]
    #[schemars(skip)]
    pub notes: Vec<Note>,
}

/// Answer of a confirmation.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Confirmed {
    /// `confirmed`.
    pub status: String,
    /// What is kept.
    pub message: String,
}

/// Answer of `/api/v1/ebpf/status`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EbpfStatus {
    pub kernel: String,
    /// Whether `kernel.bpf_stats_enabled` is on; without it the kernel counts no runs.
    pub stats_enabled: bool,
    /// What this kernel lacks, and what is used instead.
    pub missing_features: Vec<MissingFeature>,
    pub programs: Vec<ProgramStatus>,
}

/// Something that the kernel does not have.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct MissingFeature {
    pub name: String,
    /// What is done instead.
    pub fallback: String,
}

/// What became of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProgramState {
    Active,
    Disabled,
    Failed,
}

/// One eBPF program.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ProgramStatus {
    pub name: String,
    pub loaded: bool,
    pub state: ProgramState,
    /// Why it is not active.
    pub reason: Option<String>,
    pub attached: Vec<AttachPoint>,
    /// The kernel's figures; `null` unless `kernel.bpf_stats_enabled`.
    pub run_count: Option<u64>,
    pub run_time_ns: Option<u64>,
    pub ns_per_run: Option<f64>,
    /// Instructions that the verifier walked through.
    pub verified_insns: Option<u32>,
    pub maps: Vec<MapStatus>,
}

/// Where a program runs.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AttachPoint {
    pub interface: String,
    pub mode: AttachMode,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    Native,
    Generic,
    Tcx,
    Clsact,
}

/// A map of a program.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct MapStatus {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub max_entries: u32,
    /// How many are in use, where that can be told cheaply.
    pub entries: Option<u64>,
    /// Memory, as the kernel accounts it.
    pub bytes: u64,
}

static HEALTH: Spec = Spec {
    command: "health",
    method: Method::Get,
    path: "/healthz",
    query: &[],
    role: Role::Public,
    summary: "Whether the process is alive",
    body: None,
    reply: api::schema::<Health>,
    success: 200,
};

static READY: Spec = Spec {
    command: "ready",
    method: Method::Get,
    path: "/readyz",
    query: &[],
    role: Role::Public,
    summary: "Whether everything that is enabled works; 503 with the reasons when not",
    body: None,
    reply: api::schema::<Ready>,
    success: 200,
};

static METRICS: Spec = Spec {
    command: "metrics",
    method: Method::Get,
    path: "/metrics",
    query: &[FORMAT],
    role: Role::Public,
    summary: "Metrics in OpenMetrics text, or in the older text format of Prometheus",
    body: None,
    reply: metrics_reply,
    success: 200,
};

static STATUS: Spec = Spec {
    command: "status",
    method: Method::Get,
    path: "/api/v1/agent/status",
    query: &[],
    role: Role::Viewer,
    summary: "Version, interfaces, modes and what is degraded",
    body: None,
    reply: api::schema::<AgentStatus>,
    success: 200,
};

static CONFIG: Spec = Spec {
    command: "config show",
    method: Method::Get,
    path: "/api/v1/config",
    query: &[],
    role: Role::Viewer,
    summary: "The configuration in force, secrets masked",
    body: None,
    reply: any_object,
    success: 200,
};

static RELOAD: Spec = Spec {
    command: "config reload",
    method: Method::Post,
    path: "/api/v1/config/reload",
    query: &[CONFIRM_SECS],
    role: Role::Admin,
    summary: "Read the configuration anew; on any error nothing changes",
    body: None,
    reply: api::schema::<Reloaded>,
    success: 200,
};

static CONFIRM: Spec = Spec {
    command: "config confirm",
    method: Method::Post,
    path: "/api/v1/config/confirm",
    query: &[],
    role: Role::Operator,
    summary: "Keep a change that was made with confirm_secs: an operator their own, an admin any",
    body: None,
    reply: api::schema::<Confirmed>,
    success: 200,
};

static EBPF: Spec = Spec {
    command: "ebpf status",
    method: Method::Get,
    path: "/api/v1/ebpf/status",
    query: &[],
    role: Role::Viewer,
    summary: "Programs, where they are attached, their maps and what the kernel lacks",
    body: None,
    reply: api::schema::<EbpfStatus>,
    success: 200,
};

/// `format` of the metrics.
const FORMAT: Param = Param::optional(
    "format",
    "openmetrics, as when absent, or text: Prometheus's own format, version 0.0.4, as promtool reads it",
    ParamKind::Word(&["openmetrics", "text"]),
);

/// The agent's own operations.
pub static SPECS: &[&Spec] = &[&HEALTH, &READY, &METRICS, &STATUS, &CONFIG, &RELOAD, &CONFIRM, &EBPF];

fn metrics_reply() -> Value {
    json!({"type": "string", "contentMediaType": [metrics::CONTENT_TYPE, metrics::TEXT_CONTENT_TYPE]})
}

fn any_object() -> Value {
    json!({"type": "object", "additionalProperties": true})
}

/// The agent's own operations, answered by `agent`.
pub fn operations(agent: Arc<dyn AgentControl>, metrics: Arc<Metrics>) -> Vec<Operation> {
    let with = |spec, run: fn(&dyn AgentControl, &api::Request) -> Result<Reply, ApiError>| {
        let agent = Arc::clone(&agent);
        Operation::new(spec, move |request| run(&*agent, request))
    };
    vec![
        Operation::new(&HEALTH, |_| Ok(Reply::json(&Health { status: "ok" }))),
        with(&READY, |agent, _| Ok(ready(agent.readiness()))),
        Operation::new(&METRICS, move |request| {
            Ok(match request.query("format") {
                Some("text") => Reply::Text { content_type: metrics::TEXT_CONTENT_TYPE, body: metrics.render_text() },
                _ => Reply::Text { content_type: metrics::CONTENT_TYPE, body: metrics.render() },
            })
        }),
        with(&STATUS, |agent, _| Ok(Reply::json(&agent.status()))),
        with(&CONFIG, |agent, _| Ok(Reply::Json(agent.config()))),
        with(&RELOAD, |agent, request| {
            let mut reloaded = agent.reload(request.query_as("confirm_secs")?)?;
            reloaded.notes.drain(..).for_each(|note| request.note(note));
            Ok(Reply::json(&reloaded))
        }),
        with(&CONFIRM, |agent, request| {
            let by = (request.role < Role::Admin).then(|| request.caller_id());
            Ok(Reply::json(&agent.confirm(by.as_deref())?))
        }),
        with(&EBPF, |agent, _| Ok(Reply::json(&agent.ebpf_status()))),
    ]
}

/// A refusal carries the reasons for people and machines, and the error shape as every failure does.
fn ready(readiness: Readiness) -> Reply {
    let Readiness { ebpf_loaded, reasons } = readiness;
    if reasons.is_empty() {
        return Reply::json(&Ready { status: "ready", ebpf_loaded, reasons });
    }
    let error = ApiError::unavailable(format!("not ready: {}", reasons.join("; ")));
    let mut body = json!(Ready { status: "not_ready", ebpf_loaded, reasons });
    body["error"] = error.body()["error"].take();
    Reply::Status { status: error.status, body }
}
