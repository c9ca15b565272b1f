//! Routes under `/api/v1/audit`.

use serde_json::Value;

use super::Action;
use super::store::{AuditStore, Filter, History, LogPage, Verification};
use crate::api::{self, ApiError, Method, Operation, Param, ParamKind, Reply, Request, Role, Spec};
use crate::component::Component;
use crate::store::{self, LIMIT, component_of, period_of, refused as unreadable};

/// Versions of a history when the client names no `limit`.
const VERSIONS_DEFAULT: usize = 50;
/// Most versions of a history.
const VERSIONS_MAX: u64 = 500;

static LOGS: Spec = Spec {
    command: "audit logs",
    method: Method::Get,
    path: "/api/v1/audit/logs",
    query: &[
        Param::optional("from", "Only entries from this time on, RFC 3339", ParamKind::Text),
        Param::optional("to", "Only entries before this time, RFC 3339", ParamKind::Text),
        Param::optional("component", "Only entries about this component", ParamKind::Text),
        Param::optional("action", "Only entries of this sort", ParamKind::Word(Action::WORDS)),
        Param::optional("rule_id", "Only entries about the rule of this id", ParamKind::Text),
        Param::optional("actor", "Only what this actor did", ParamKind::Text),
        Param::optional(
            "before",
            "Only entries with a lower number: `next` of the page before",
            ParamKind::Integer { min: 1, max: u64::MAX },
        ),
        LIMIT,
        api::OFFSET,
    ],
    role: Role::Viewer,
    summary: "List the entries of the audit trail, the newest first",
    body: None,
    reply: api::schema::<LogPage>,
    success: 200,
};

static HISTORY: Spec = Spec {
    command: "audit history",
    method: Method::Get,
    path: "/api/v1/audit/rules/{id}/history",
    query: &[
        Param::optional("component", "Only the rule of this component", ParamKind::Text),
        Param::optional(
            "limit",
            "Most versions in the answer; 50 when absent",
            ParamKind::Integer { min: 1, max: VERSIONS_MAX },
        ),
    ],
    role: Role::Viewer,
    summary: "List the versions of a rule, the newest first, and what each changed",
    body: None,
    reply: api::schema::<History>,
    success: 200,
};

static VERIFY: Spec = Spec {
    command: "audit verify",
    method: Method::Get,
    path: "/api/v1/audit/verify",
    query: &[],
    role: Role::Viewer,
    summary: "Check the chain of the audit trail from its first entry to its last",
    body: None,
    reply: api::schema::<Verification>,
    success: 200,
};

/// What can be asked of the trail.
pub static SPECS: &[&Spec] = &[&LOGS, &HISTORY, &VERIFY];

/// The operations; without a trail each says so.
pub fn operations(store: Option<&AuditStore>) -> Vec<Operation> {
    let missing = "there is no audit trail; set audit.enabled = true and restart the agent";
    store::operations(store, missing, &[(&LOGS, logs), (&HISTORY, history), (&VERIFY, verify)])
}

fn logs(store: &AuditStore, request: &Request) -> Result<Reply, ApiError> {
    let text = |name| request.query(name).map(str::to_owned);
    let [from_ns, to_ns] = period_of(request)?;
    let filter = Filter {
        from_ns,
        to_ns,
        component: component_of(request)?.map(|component| component.name().to_owned()),
        action: text("action"),
        rule_id: text("rule_id"),
        actor: text("actor"),
        before: request.query_as("before")?,
    };
    let page = request.page()?;
    let page = store.logs(&filter, page.limit, page.offset).map_err(|error| unreadable(&error))?;
    Ok(Reply::json(&page))
}

fn history(store: &AuditStore, request: &Request) -> Result<Reply, ApiError> {
    let limit = request.query_as("limit")?.unwrap_or(VERSIONS_DEFAULT);
    let component = component_of(request)?;
    let found = store.history(request.path("id")?, component.map(Component::name), limit);
    let found = found.map_err(|error| unreadable(&error))?;
    if found.total == 0 {
        return Err(ApiError::version_not_found(request.path("id")?));
    }
    Ok(Reply::json(&found))
}

fn verify(store: &AuditStore, _: &Request) -> Result<Reply, ApiError> {
    let Some(found) = store.verify() else {
        return Err(ApiError::conflict("a verification is under way; try again when it has ended"));
    };
    let found: Value = serde_json::to_value(found.map_err(|error| unreadable(&error))?)
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Reply::Json(found))
}
