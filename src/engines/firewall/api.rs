//! Operations on firewall rules.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Serialize;

use super::Firewall;
use super::config::RuleText;
use super::rule::Rule;
use crate::api::{self, Method, Operation, Role, Spec};
use crate::bpf::counts::RuleCount;
use crate::confirm::{CONFIRM_SECS, Confirmations};
use crate::logging::rfc3339;
use crate::ruled::Source;
use crate::ruled::api::{Context, RULES_LIMIT, RuleSpecs};
use crate::supervise::Handle;

/// A rule with what it did, as the API shows it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RuleView {
    #[serde(flatten)]
    rule: RuleText,
    /// `file`: from the configuration file; `api`: made through the API.
    source: &'static str,
    /// Packets that the rule decided since it was made.
    packets: u64,
    /// Their bytes.
    bytes: u64,
    /// Time of the last one, RFC 3339; `null` when there was none.
    last_hit: Option<String>,
}

impl RuleView {
    /// Shows a rule.
    pub fn new(rule: &Rule, source: Source, count: RuleCount, last_hit: Option<SystemTime>) -> RuleView {
        let since_1970 = last_hit.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        RuleView {
            rule: rule.into(),
            source: source.name(),
            packets: count.packets,
            bytes: count.bytes,
            last_hit: since_1970.map(|age| rfc3339(age.as_nanos() as u64)),
        }
    }
}

static LIST: Spec = Spec {
    command: "firewall list",
    method: Method::Get,
    path: "/api/v1/firewall/rules",
    query: &[RULES_LIMIT, api::OFFSET],
    role: Role::Viewer,
    summary: "List the rules in the order in which they are asked, with their counters",
    body: None,
    reply: api::schema::<Vec<RuleView>>,
    success: 200,
};

static SHOW: Spec = Spec {
    command: "firewall show",
    method: Method::Get,
    path: "/api/v1/firewall/rules/{id}",
    query: &[],
    role: Role::Viewer,
    summary: "Show a rule with its counters",
    body: None,
    reply: api::schema::<RuleView>,
    success: 200,
};

static ADD: Spec = Spec {
    command: "firewall add",
    method: Method::Post,
    path: "/api/v1/firewall/rules",
    query: &[CONFIRM_SECS],
    role: Role::Operator,
    summary: "Add a rule, or an array of rules in one step: all or none",
    body: Some(api::schema::<RuleText>),
    reply: api::schema::<RuleText>,
    success: 201,
};

static UPDATE: Spec = Spec {
    command: "firewall update",
    method: Method::Put,
    path: "/api/v1/firewall/rules/{id}",
    query: &[CONFIRM_SECS],
    role: Role::Operator,
    summary: "Replace a rule that was made through the API; its counters go on",
    body: Some(api::schema::<RuleText>),
    reply: api::schema::<RuleText>,
    success: 200,
};

static DELETE: Spec = Spec {
    command: "firewall delete",
    method: Method::Delete,
    path: "/api/v1/firewall/rules/{id}",
    query: &[CONFIRM_SECS],
    role: Role::Operator,
    summary: "Delete a rule that was made through the API",
    body: None,
    reply: api::no_reply,
    success: 204,
};

/// Everything that can be asked of this engine.
pub static SPECS: &[&Spec] = &[&LIST, &SHOW, &ADD, &UPDATE, &DELETE];

const RULE_SPECS: RuleSpecs = RuleSpecs { list: &LIST, show: &SHOW, add: &ADD, update: &UPDATE, delete: &DELETE };

/// The operations, bound to the engine's thread.
pub fn operations(firewall: &Handle<Firewall>, confirmations: &Arc<Confirmations>) -> Vec<Operation> {
    let context = Context::new(firewall, confirmations);
    context.operations(RULE_SPECS)
}
