//! Operations on the rules of the L7 firewall.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::L7;
use super::config::RuleText;
use super::rule::Rule;
use super::tally::RuleCount;
use crate::api::{self, ApiError, Method, Operation, Request, Role, Spec};
use crate::confirm::{CONFIRM_SECS, Confirmations};
use crate::logging::rfc3339;
use crate::ruled::Source;
use crate::ruled::api::{Context, RULES_LIMIT, RuleSpecs};
use crate::supervise::Handle;

/// A rule with what it did, as the API shows it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "L7RuleView")]
pub struct RuleView {
    #[serde(flatten)]
    rule: RuleText,
    /// `file`: from the configuration file; `api`: made through the API.
    source: &'static str,
    /// Transactions that the rule decided since it was made.
    hits: u64,
    /// Of them, those whose flow was blocked: none in `mode = "alert"`.
    enforced: u64,
    /// Time of the last one, RFC 3339; `null` when there was none.
    last_hit: Option<String>,
}

impl RuleView {
    /// Shows a rule.
    pub fn new(rule: &Rule, source: Source, count: RuleCount) -> RuleView {
        RuleView {
            rule: rule.into(),
            source: source.name(),
            hits: count.hits,
            enforced: count.enforced,
            last_hit: count.last_hit_ns.map(rfc3339),
        }
    }
}

static LIST: Spec = Spec {
    command: "l7 list",
    method: Method::Get,
    path: "/api/v1/firewall/l7-rules",
    query: &[RULES_LIMIT, api::OFFSET],
    role: Role::Viewer,
    summary: "List the rules of the L7 firewall in the order in which they are asked, with their counters",
    body: None,
    reply: api::schema::<Vec<RuleView>>,
    success: 200,
};

static SHOW: Spec = Spec {
    command: "l7 show",
    method: Method::Get,
    path: "/api/v1/firewall/l7-rules/{id}",
    query: &[],
    role: Role::Viewer,
    summary: "Show a rule of the L7 firewall with its counters",
    body: None,
    reply: api::schema::<RuleView>,
    success: 200,
};

static ADD: Spec = Spec {
    command: "l7 add",
    method: Method::Post,
    path: "/api/v1/firewall/l7-rules",
    query: &[CONFIRM_SECS],
    role: Role::Operator,
    summary: "Add a rule to the L7 firewall, or an array of rules in one step: all or none",
    body: Some(api::schema::<RuleText>),
    reply: api::schema::<RuleText>,
    success: 201,
};

static UPDATE: Spec = Spec {
    command: "l7 update",
    method: Method::Put,
    path: "/api/v1/firewall/l7-rules/{id}",
    query: &[CONFIRM_SECS],
    role: Role::Operator,
    summary: "Replace a rule of the L7 firewall that was made through the API; its counters go on",
    body: Some(api::schema::<RuleText>),
    reply: api::schema::<RuleText>,
    success: 200,
};

static DELETE: Spec = Spec {
    command: "l7 delete",
    method: Method::Delete,
    path: "/api/v1/firewall/l7-rules/{id}",
    query: &[CONFIRM_SECS],
    role: Role::Operator,
    summary: "Delete a rule of the L7 firewall that was made through the API",
    body: None,
    reply: api::no_reply,
    success: 204,
};

/// Everything that can be asked of this engine.
pub static SPECS: &[&Spec] = &[&LIST, &SHOW, &ADD, &UPDATE, &DELETE];

const RULE_SPECS: RuleSpecs = RuleSpecs { list: &LIST, show: &SHOW, add: &ADD, update: &UPDATE, delete: &DELETE };

/// The operations, bound to the engine's thread.
pub fn operations(l7: &Handle<L7>, confirmations: &Arc<Confirmations>) -> Vec<Operation> {
    Context::new(l7, confirmations).operations(RULE_SPECS)
}

/// The same operations while the engine does not run: each says so.
pub fn refused() -> Vec<Operation> {
    let refuse =
        |_: &Request| Err(ApiError::unavailable("the L7 firewall is off; set l7.enabled = true and restart the agent"));
    SPECS.iter().map(|spec| Operation::new(spec, refuse)).collect()
}
