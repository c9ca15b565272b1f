//! Routes under `/api/v1/alerts`.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::alerts::{AlertStore, Mark, MarkError, Question, Suppress, Writer};
use super::block::Wanted;
use super::{LIMIT, Run, component_of, now_ns, period_of, refused as unreadable};
use crate::alert::{AlertId, Severity, Suppression};
use crate::api::{self, ApiError, Method, Namespaces, Note, Operation, Param, ParamKind, Reply, Request, Role, Spec};
use crate::component::Component;
use crate::logging::rfc3339;
use crate::supervise::Gone;

/// Longest comment, in bytes.
const COMMENT_MAX: usize = 512;
/// A year.
const MINUTES_MAX: u32 = 525_600;

/// Some alerts, the newest first.
#[derive(Serialize, JsonSchema)]
struct AlertPage {
    /// The alerts.
    alerts: Vec<AlertView>,
    /// Alerts that the filters want, as far as `total_is_exact` says.
    total: u64,
    /// False where not all were looked at; there may be more then.
    total_is_exact: bool,
    /// Ask with `before` set to this for those that follow; `null`: none do.
    next: Option<String>,
    /// Most alerts in an answer.
    limit: u32,
    /// Alerts that were skipped.
    offset: u32,
}

/// An alert. What it is about decides which further fields there are.
#[derive(Serialize, JsonSchema)]
struct AlertView {
    /// Unique, and ordered by time: a UUID of version 7.
    id: String,
    /// When it first happened, RFC 3339.
    timestamp: String,
    /// The same in nanoseconds since 1970.
    timestamp_ns: u64,
    /// Who noticed.
    component: Component,
    /// How bad it is.
    severity: Severity,
    /// The rule that matched.
    rule_id: String,
    /// What was done.
    action: String,
    /// Source address.
    #[serde(skip_serializing_if = "Option::is_none")]
    src_ip: Option<String>,
    /// Source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    src_port: Option<u16>,
    /// Destination address.
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_ip: Option<String>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_port: Option<u16>,
    /// IP protocol, by name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    /// For people.
    message: String,
    /// How many events it stands for.
    count: u64,
    /// When the first of them was.
    first_seen: String,
    /// When the last of them was.
    last_seen: String,
    /// Whether it is marked as a false positive.
    false_positive: bool,
    /// Who marked it, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<Mark>,
}

/// Body of a mark.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MarkBody {
    /// Why, for people; at most 512 bytes.
    #[serde(default)]
    comment: String,
    /// Hides alerts of the same rule about the same source for a time.
    #[serde(default)]
    suppress: Option<SuppressBody>,
}

/// How long to hide what is like it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SuppressBody {
    /// Minutes, 1 to 525600.
    #[schemars(range(min = 1, max = 525_600))]
    minutes: u32,
}

/// Answer of a mark.
#[derive(Debug, Serialize, JsonSchema)]
struct Marked {
    /// The alert.
    alert_id: String,
    /// Whether it is marked now.
    marked: bool,
    /// The suppression that was made.
    suppression: Option<SuppressionView>,
}

/// A suppression that is in force.
#[derive(Debug, Serialize, JsonSchema)]
struct SuppressionView {
    /// What it is.
    #[serde(flatten)]
    suppression: Suppression,
    /// Until when it hides, RFC 3339.
    until: String,
}

impl From<Suppression> for SuppressionView {
    fn from(suppression: Suppression) -> SuppressionView {
        SuppressionView { until: rfc3339(suppression.until_ns), suppression }
    }
}

static LIST: Spec = Spec {
    command: "alerts list",
    method: Method::Get,
    path: "/api/v1/alerts",
    query: &[
        Param::optional("from", "Only alerts that last happened at this time or later, RFC 3339", ParamKind::Text),
        Param::optional("to", "Only alerts that first happened before this time, RFC 3339", ParamKind::Text),
        Param::optional("component", "Only alerts of this component", ParamKind::Text),
        Param::optional(
            "min_severity",
            "Only alerts from this severity on",
            ParamKind::Word(&["low", "medium", "high", "critical"]),
        ),
        Param::optional("rule_id", "Only alerts of this rule", ParamKind::Text),
        Param::optional("ip", "Only alerts with this address, or one of this network, on either side", ParamKind::Text),
        Param::optional("text", "Only alerts with this text in a field; looks at 10000 at a time", ParamKind::Text),
        Param::optional(
            "false_positive",
            "Only alerts that are marked, or only those that are not",
            ParamKind::Boolean,
        ),
        Param::optional(
            "before",
            "Only alerts older than the one of this id: `next` of the page before",
            ParamKind::Text,
        ),
        LIMIT,
        api::OFFSET,
    ],
    role: Role::Viewer,
    summary: "List the alerts that are kept, the newest first",
    body: None,
    reply: api::schema::<AlertPage>,
    success: 200,
};

static SHOW: Spec = Spec {
    command: "alerts show",
    method: Method::Get,
    path: "/api/v1/alerts/{id}",
    query: &[],
    role: Role::Viewer,
    summary: "Show one alert",
    body: None,
    reply: api::schema::<AlertView>,
    success: 200,
};

static MARK: Spec = Spec {
    command: "alerts mark-fp",
    method: Method::Post,
    path: "/api/v1/alerts/{id}/false-positive",
    query: &[],
    role: Role::Operator,
    summary: "Mark an alert of a rule that the caller may change as a false positive, and (admins) hide others like it",
    body: Some(api::schema::<MarkBody>),
    reply: api::schema::<Marked>,
    success: 200,
};

static UNMARK: Spec = Spec {
    command: "alerts unmark-fp",
    method: Method::Delete,
    path: "/api/v1/alerts/{id}/false-positive",
    query: &[],
    role: Role::Operator,
    summary: "Take the mark from an alert of a rule that the caller may change",
    body: None,
    reply: api::no_reply,
    success: 204,
};

static SUPPRESSIONS: Spec = Spec {
    command: "alerts suppressions",
    method: Method::Get,
    path: "/api/v1/alerts/suppressions",
    query: api::PAGE,
    role: Role::Viewer,
    summary: "List what hides alerts now",
    body: None,
    reply: api::schema::<Vec<SuppressionView>>,
    success: 200,
};

static UNSUPPRESS: Spec = Spec {
    command: "alerts unsuppress",
    method: Method::Delete,
    path: "/api/v1/alerts/suppressions/{id}",
    query: &[],
    role: Role::Operator,
    summary: "End a suppression",
    body: None,
    reply: api::no_reply,
    success: 204,
};

/// What can be asked of the store.
pub static SPECS: &[&Spec] = &[&LIST, &SHOW, &MARK, &UNMARK, &SUPPRESSIONS, &UNSUPPRESS];

/// Finds the namespace of a rule; `None`: there is no such rule, or it is in none.
pub type NamespaceOf = Arc<dyn Fn(Component, &str) -> Result<Option<String>, ApiError> + Send + Sync>;

/// The store, and whose its alerts are.
#[derive(Clone)]
struct Alerts {
    store: AlertStore,
    namespace_of: NamespaceOf,
}

/// The operations; without a store each says so. An alert is in the namespace that `namespace_of` finds for its rule.
pub fn operations(store: Option<&AlertStore>, namespace_of: NamespaceOf) -> Vec<Operation> {
    let missing = "alerts are not kept; set audit.alerts.enabled = true and restart the agent";
    let all: &[(&Spec, Run<Alerts>)] = &[
        (&LIST, list),
        (&SHOW, show),
        (&MARK, mark),
        (&UNMARK, unmark),
        (&SUPPRESSIONS, suppressions),
        (&UNSUPPRESS, unsuppress),
    ];
    let alerts = store.map(|store| Alerts { store: store.clone(), namespace_of });
    super::operations(alerts.as_ref(), missing, all)
}

fn not_found(id: AlertId) -> ApiError {
    ApiError::new(404, "ALERT_NOT_FOUND", format!("there is no alert {id}"))
}

/// A path that is no id names no alert.
fn id_of(request: &Request) -> Result<AlertId, ApiError> {
    let text = request.path("id")?;
    text.parse().map_err(|error| ApiError::new(404, "ALERT_NOT_FOUND", error))
}

fn list(Alerts { store, .. }: &Alerts, request: &Request) -> Result<Reply, ApiError> {
    let page = request.page()?;
    let [from_ns, to_ns] = period_of(request)?;
    let mut wanted = Wanted {
        from_ns,
        to_ns,
        component: component_of(request)?,
        min_severity: request.query_as("min_severity")?,
        marked: request.query_as("false_positive")?,
        before: request.query_as::<AlertId>("before")?.map(|id| id.0.as_u128()),
        ..Wanted::default()
    };
    if let Some(rule) = request.query("rule_id") {
        wanted = wanted.of_rule(rule);
    }
    if let Some(text) = request.query("ip") {
        let network = Question::network(text);
        let wrong = |why| ApiError::validation(format!("query parameter \"ip\": {why}"));
        wanted = wanted.of_network(network.map_err(wrong)?);
    }
    let text = request.query("text").map(str::to_owned).filter(|text| !text.is_empty());
    let question = Question { wanted, text, limit: page.limit, offset: page.offset };
    let answer = store.find(&question).map_err(|error| unreadable(&error))?;
    let mut body = Value::from(&answer);
    (body["limit"], body["offset"]) = (page.limit.into(), page.offset.into());
    Ok(Reply::Json(body))
}

fn show(Alerts { store, .. }: &Alerts, request: &Request) -> Result<Reply, ApiError> {
    let id = id_of(request)?;
    let found = store.get(id).map_err(|error| unreadable(&error))?;
    found.map(|alert| Reply::Json(alert.document)).ok_or_else(|| not_found(id))
}

/// Has the owner of the store do something.
fn asked<R: Send + 'static>(
    store: &AlertStore,
    run: impl FnOnce(&mut Writer) -> Result<R, MarkError> + Send + 'static,
) -> Result<R, ApiError> {
    let result = store.handle().call(run).map_err(|gone: Gone| ApiError::unavailable(gone.to_string()))?;
    result.map_err(|error| match error {
        MarkError::NotFound(id) => not_found(id),
        MarkError::NoSource => ApiError::validation(error.to_string()),
        MarkError::Full(full) => ApiError::conflict(full.to_string()),
        MarkError::Db(error) => unreadable(&error),
    })
}

/// Who may change a rule may mark its alerts, and take marks from them; what no rule is named by, or one in no namespace,
/// is the admins'.
fn may_mark(alerts: &Alerts, request: &Request, id: AlertId) -> Result<(), ApiError> {
    if request.namespaces == Namespaces::All {
        return Ok(());
    }
    let alert = alerts.store.get(id).map_err(|error| unreadable(&error))?.ok_or_else(|| not_found(id))?.document;
    let component = Component::ALL.iter().find(|component| alert["component"] == component.name());
    let namespace = match (component, alert["rule_id"].as_str()) {
        (Some(component), Some(rule)) => (alerts.namespace_of)(*component, rule)?,
        _ => None,
    };
    request.namespaces.check(namespace.as_deref()).map_err(|error| ApiError {
        message: format!("an alert is marked by who may change its rule: {}", error.message),
        ..error
    })
}

/// What hides alerts hides them from everybody, and before they are kept: an operator marks, an admin hides.
fn may_hide(request: &Request) -> Result<(), ApiError> {
    match request.namespaces {
        Namespaces::All => Ok(()),
        Namespaces::Only(_) => {
            Err(ApiError::namespace_forbidden("what hides alerts is not bound to a namespace; ask an admin"))
        }
    }
}

/// Notes for the audit log what became of an alert's mark.
fn note(request: &Request, id: AlertId, before: Option<&Mark>, after: Option<Value>) {
    let before = before.map(|mark| json!({"alert_id": id.to_string(), "mark": mark}));
    request.note(Note { component: None, rule: None, before, after });
}

fn mark(alerts @ Alerts { store, .. }: &Alerts, request: &Request) -> Result<Reply, ApiError> {
    let id = id_of(request)?;
    let body: MarkBody = match request.body.iter().all(u8::is_ascii_whitespace) {
        true => MarkBody::default(),
        false => request.json()?,
    };
    if body.comment.len() > COMMENT_MAX {
        return Err(ApiError::validation(format!("\"comment\" is longer than {COMMENT_MAX} bytes")));
    }
    if body.comment.chars().any(|c| c.is_control() && c != '\n') {
        return Err(ApiError::validation("\"comment\" holds a control character"));
    }
    if body.suppress.is_some() {
        may_hide(request)?;
    }
    let now = now_ns();
    let by = request.actor.clone();
    let suppress = match body.suppress.map(|suppress| suppress.minutes) {
        Some(minutes @ 1..=MINUTES_MAX) => {
            Some(Suppress { until_ns: now + u64::from(minutes) * 60_000_000_000, by: by.clone() })
        }
        Some(_) => return Err(ApiError::validation(format!("\"suppress.minutes\" must be 1 to {MINUTES_MAX}"))),
        None => None,
    };
    may_mark(alerts, request, id)?;
    let mark = Mark { by, at: rfc3339(now), comment: body.comment };
    let wanted = mark.clone();
    let (before, suppression) = asked(store, move |writer| writer.mark(id, Some(wanted), suppress))?;
    let after = json!({"alert_id": id.to_string(), "mark": mark, "suppression": suppression});
    note(request, id, before.as_ref(), Some(after));
    let suppression = suppression.map(SuppressionView::from);
    Ok(Reply::json(&Marked { alert_id: id.to_string(), marked: true, suppression }))
}

fn unmark(alerts @ Alerts { store, .. }: &Alerts, request: &Request) -> Result<Reply, ApiError> {
    let id = id_of(request)?;
    may_mark(alerts, request, id)?;
    let (before, _) = asked(store, move |writer| writer.mark(id, None, None))?;
    note(request, id, before.as_ref(), None);
    Ok(Reply::NoContent)
}

fn suppressions(Alerts { store, .. }: &Alerts, request: &Request) -> Result<Reply, ApiError> {
    let page = request.page()?;
    let all = store.suppressions().list(now_ns());
    Ok(Reply::json(&page.of(all.into_iter().map(SuppressionView::from))))
}

fn unsuppress(Alerts { store, .. }: &Alerts, request: &Request) -> Result<Reply, ApiError> {
    may_hide(request)?;
    let id = request.path("id")?.to_owned();
    let wanted = id.clone();
    let ended = asked(store, move |writer| Ok(writer.end_suppression(&wanted)?))?;
    let Some(ended) = ended else {
        return Err(ApiError::new(
            404,
            "SUPPRESSION_NOT_FOUND",
            format!("there is no suppression {}", id.escape_debug()),
        ));
    };
    let before = serde_json::to_value(ended).ok();
    request.note(Note { component: None, rule: None, before, after: None });
    Ok(Reply::NoContent)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::alert::Alert;
    use crate::alert::sinks::Sink;
    use crate::api::Caller;
    use crate::metrics::Metrics;
    use crate::store::alerts::Limits;
    use crate::supervise::Supervisor;

    /// Rules of the firewall are in the namespace that they are called by, but "nobodys"; l7 has the same names elsewhere.
    fn namespace_of(component: Component, rule: &str) -> Result<Option<String>, ApiError> {
        Ok(match (component, rule) {
            (Component::Firewall, "prod" | "finance") => Some(rule.to_owned()),
            (Component::L7, "prod") => Some("finance".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn operators_mark_the_alerts_of_their_rules() {
        let directory = tempfile::tempdir().unwrap();
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let limits = Limits { age: Duration::from_secs(3600), count: 1000, buffer: 100 };
        let path = directory.path().join("alerts.redb");
        let (store, _thread) = AlertStore::start(path, limits, &Arc::default(), &Metrics::new(), &supervisor).unwrap();
        let kept = |component, rule: &str| {
            let mut alert = Alert::new(component, Severity::High, rule, "deny", now_ns(), "m");
            alert.src_ip = Some("192.0.2.1".parse().unwrap());
            let id = alert.id;
            store.sink().write(&Arc::new(alert)).unwrap();
            let begin = Instant::now();
            while !matches!(store.get(id), Ok(Some(_))) {
                assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", store.health());
                std::thread::sleep(Duration::from_millis(5));
            }
            id
        };
        let alerts = Alerts { store: store.clone(), namespace_of: Arc::new(namespace_of) };
        let request = |spec, id: AlertId, namespaces: Option<&[&str]>| {
            let namespaces = namespaces.map_or(Namespaces::All, |own| {
                Namespaces::Only(own.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>())
            });
            let caller = Caller { name: "anna".to_owned(), role: Role::Operator, namespaces, method: "api_key" };
            Request::new(spec).with_path("id", id.to_string()).called_by(caller)
        };
        let status = |result: Result<Reply, ApiError>| match result {
            Ok(reply) => (reply.status(), ""),
            Err(error) => (error.status, error.code),
        };
        const FORBIDDEN: (u16, &str) = (403, "NAMESPACE_FORBIDDEN");
        for (component, rule, of_prod) in [
            (Component::Firewall, "prod", true),
            (Component::Firewall, "finance", false),
            (Component::Firewall, "nobodys", false),
            (Component::L7, "prod", false),
            (Component::Ids, "tcp.overlap_conflict", false),
        ] {
            let id = kept(component, rule);
            for (namespaces, may) in [(None, true), (Some(&["prod"][..]), of_prod), (Some(&[][..]), false)] {
                let (marked, unmarked) = if may { ((200, ""), (204, "")) } else { (FORBIDDEN, FORBIDDEN) };
                let about = format!("{component:?} {rule} {namespaces:?}");
                assert_eq!(status(mark(&alerts, &request(&MARK, id, namespaces))), marked, "{about}");
                // An admin's mark stays.
                assert_eq!(status(mark(&alerts, &request(&MARK, id, None))), (200, ""), "{about}");
                assert_eq!(status(unmark(&alerts, &request(&UNMARK, id, namespaces))), unmarked, "{about}");
                assert_eq!(store.get(id).unwrap().unwrap().document["false_positive"], !may, "{about}");
            }
        }
        let nothing = request(&MARK, AlertId::next(), Some(&["prod"]));
        assert_eq!(status(mark(&alerts, &nothing)), (404, "ALERT_NOT_FOUND"));
    }
}
