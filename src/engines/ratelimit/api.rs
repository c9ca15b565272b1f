//! Operations on rate limits, and the question who is over them.

use std::net::IpAddr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::Ratelimit;
use super::config::RuleText;
use super::rule::Rule;
use crate::abi::rl_rule_count;
use crate::api::{self, ApiError, Method, Operation, Reply, Request, Role, Spec};
use crate::confirm::{CONFIRM_SECS, Confirmations};
use crate::ruled::Source;
use crate::ruled::api::{Context, RULES_LIMIT, RuleSpecs};
use crate::supervise::Handle;

/// A rate limit with what it did, as the API shows it.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RateLimitView")]
pub struct RuleView {
    #[serde(flatten)]
    rule: RuleText,
    /// `file`: from the configuration file; `api`: made through the API.
    source: &'static str,
    /// Packets that were within the limit since the rule was made.
    passed: u64,
    /// Their bytes.
    passed_bytes: u64,
    /// Packets over the limit. They were dropped, unless action is pass or mode is alert.
    over_limit: u64,
    /// Their bytes.
    over_limit_bytes: u64,
}

impl RuleView {
    /// Shows a rule.
    pub fn new(rule: &Rule, source: Source, count: rl_rule_count) -> RuleView {
        RuleView {
            rule: rule.into(),
            source: source.name(),
            passed: count.passed,
            passed_bytes: count.passed_bytes,
            over_limit: count.dropped,
            over_limit_bytes: count.dropped_bytes,
        }
    }
}

/// A bucket that was over its limit. What its rule's scope does not look at is `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TopView {
    /// Id of the rule, or `(default)`.
    pub rule: String,
    /// Whose packets it is of when not of one source, flow or destination: `all` that match the rule (scope global), or
    /// those that were `crowded` out, since there was no room for buckets of their own.
    pub common: Option<&'static str>,
    /// Source: an address, or the IPv6 prefix whose addresses share the bucket.
    pub source: Option<String>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// Source port.
    pub src_port: Option<u16>,
    /// Destination port.
    pub dst_port: Option<u16>,
    /// Protocol: a name such as tcp, or a number.
    pub protocol: Option<String>,
    /// Packets over the limit since the bucket was made.
    pub dropped: u32,
    /// Seconds for which it is still blocked; 0 when it is not.
    pub blocked_secs_left: u32,
}

/// A bucket and how full it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BucketView {
    /// Which one it is, and what it did.
    #[serde(flatten)]
    pub bucket: TopView,
    /// Units that would pass now.
    pub available: u64,
    /// token_bucket, leaky_bucket, fixed_window or sliding_window.
    pub algorithm: &'static str,
    /// What is counted: packets or bits.
    pub unit: &'static str,
    /// Units a second.
    pub rate: u64,
    /// Units at once; `null` with windows, which have none.
    pub burst: Option<u64>,
}

static LIST: Spec = Spec {
    command: "ratelimit list",
    method: Method::Get,
    path: "/api/v1/ratelimit/rules",
    query: &[RULES_LIMIT, api::OFFSET],
    role: Role::Viewer,
    summary: "List the rate limits in the order in which they are asked, with their counters",
    body: None,
    reply: api::schema::<Vec<RuleView>>,
    success: 200,
};

static SHOW: Spec = Spec {
    command: "ratelimit show",
    method: Method::Get,
    path: "/api/v1/ratelimit/rules/{id}",
    query: &[],
    role: Role::Viewer,
    summary: "Show a rate limit with its counters",
    body: None,
    reply: api::schema::<RuleView>,
    success: 200,
};

static ADD: Spec = Spec {
    command: "ratelimit add",
    method: Method::Post,
    path: "/api/v1/ratelimit/rules",
    query: &[CONFIRM_SECS],
    role: Role::Operator,
    summary: "Add a rate limit, or an array of them in one step: all or none",
    body: Some(api::schema::<RuleText>),
    reply: api::schema::<RuleText>,
    success: 201,
};

static UPDATE: Spec = Spec {
    command: "ratelimit update",
    method: Method::Put,
    path: "/api/v1/ratelimit/rules/{id}",
    query: &[CONFIRM_SECS],
    role: Role::Operator,
    summary: "Replace a rate limit that was made through the API; its counters go on",
    body: Some(api::schema::<RuleText>),
    reply: api::schema::<RuleText>,
    success: 200,
};

static DELETE: Spec = Spec {
    command: "ratelimit delete",
    method: Method::Delete,
    path: "/api/v1/ratelimit/rules/{id}",
    query: &[CONFIRM_SECS],
    role: Role::Operator,
    summary: "Delete a rate limit that was made through the API",
    body: None,
    reply: api::no_reply,
    success: 204,
};

static TOP: Spec = Spec {
    command: "ratelimit top",
    method: Method::Get,
    path: "/api/v1/ratelimit/top",
    query: api::PAGE,
    role: Role::Viewer,
    summary: "List who is over a limit, those with the most packets over it first",
    body: None,
    reply: api::schema::<Vec<TopView>>,
    success: 200,
};

static BUCKETS: Spec = Spec {
    command: "ratelimit buckets",
    method: Method::Get,
    path: "/api/v1/ratelimit/buckets/{ip}",
    query: &[],
    role: Role::Viewer,
    summary: "Show the buckets of an address, and how full they are",
    body: None,
    reply: api::schema::<Vec<BucketView>>,
    success: 200,
};

/// Everything that can be asked of this engine.
pub static SPECS: &[&Spec] = &[&LIST, &SHOW, &ADD, &UPDATE, &DELETE, &TOP, &BUCKETS];

const RULE_SPECS: RuleSpecs = RuleSpecs { list: &LIST, show: &SHOW, add: &ADD, update: &UPDATE, delete: &DELETE };

/// The operations, bound to the engine's thread.
pub fn operations(ratelimit: &Handle<Ratelimit>, confirmations: &Arc<Confirmations>) -> Vec<Operation> {
    let context = Context::new(ratelimit, confirmations);
    let mut operations = context.operations(RULE_SPECS);
    operations.extend([context.bind(&TOP, top), context.bind(&BUCKETS, buckets)]);
    operations
}

/// The same operations while the limiter does not run: each says so.
pub fn refused() -> Vec<Operation> {
    let refuse = |_: &Request| {
        Err(ApiError::unavailable("the rate limiter is off; set ratelimit.enabled = true and restart the agent"))
    };
    SPECS.iter().map(|spec| Operation::new(spec, refuse)).collect()
}

fn top(context: &Context<Ratelimit>, request: &Request) -> Result<Reply, ApiError> {
    let limit: usize = request.query_as("limit")?.unwrap_or(api::PAGE_LIMIT_DEFAULT as usize);
    let offset: usize = request.query_as("offset")?.unwrap_or(0);
    Ok(Reply::json(&context.ask(move |ratelimit| ratelimit.top(limit, offset))?))
}

fn buckets(context: &Context<Ratelimit>, request: &Request) -> Result<Reply, ApiError> {
    let written = request.path("ip")?;
    let ip: IpAddr = written.parse().map_err(|_| ApiError::validation("ip: not an IPv4 or IPv6 address"))?;
    Ok(Reply::json(&context.ask(move |ratelimit| ratelimit.buckets_of(ip))?))
}
