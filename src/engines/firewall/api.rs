//! Operations on firewall rules, and the question what would be done to a packet.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Serialize;

use super::config::{RuleBody, RuleText, read_rule_json, read_rules_json};
use super::explain::{Explanation, Question, QuestionText};
use super::rule::Rule;
use super::{ChangeError, Counted, Firewall, Source};
use crate::api::{self, ApiError, Method, Operation, Param, ParamKind, Reply, Request, Role, Spec};
use crate::confirm::{CONFIRM_SECS_MAX, Confirmations};
use crate::logging::rfc3339;
use crate::supervise::{Gone, Handle};
use crate::written::WrittenError;

const RULES_SHOWN_MAX: u64 = 8192;

const CONFIRM: Param = Param::optional(
    "confirm_secs",
    "Take the change back after so many seconds unless it is confirmed (POST /api/v1/config/confirm)",
    ParamKind::Integer { min: 1, max: CONFIRM_SECS_MAX as u64 },
);

/// A rule with what it did, as the API shows it.
#[derive(Debug, Serialize, JsonSchema)]
struct RuleView {
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

impl From<Counted> for RuleView {
    fn from(counted: Counted) -> RuleView {
        let since_1970 = counted.last_hit.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        RuleView {
            rule: counted.rule,
            source: match counted.source {
                Source::File => "file",
                Source::Api => "api",
            },
            packets: counted.packets,
            bytes: counted.bytes,
            last_hit: since_1970.map(|age| rfc3339(age.as_nanos() as u64)),
        }
    }
}

static LIST: Spec = Spec {
    command: "firewall list",
    method: Method::Get,
    path: "/api/v1/firewall/rules",
    query: &[
        Param::optional(
            "limit",
            "Most rules in the answer; all when absent",
            ParamKind::Integer { min: 1, max: RULES_SHOWN_MAX },
        ),
        api::OFFSET,
    ],
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
    query: &[CONFIRM],
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
    query: &[CONFIRM],
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
    query: &[CONFIRM],
    role: Role::Operator,
    summary: "Delete a rule that was made through the API",
    body: None,
    reply: api::no_reply,
    success: 204,
};

static EXPLAIN: Spec = Spec {
    command: "explain",
    method: Method::Post,
    path: "/api/v1/explain",
    query: &[],
    role: Role::Viewer,
    summary: "Say what the program in the kernel would do to a packet, and why; counts and remembers nothing",
    body: Some(api::schema::<QuestionText>),
    reply: api::schema::<Explanation>,
    success: 200,
};

/// Everything that can be asked of this engine.
pub static SPECS: &[&Spec] = &[&LIST, &SHOW, &ADD, &UPDATE, &DELETE, &EXPLAIN];

/// The operations, bound to the engine's thread.
pub fn operations(firewall: &Handle<Firewall>, confirmations: &Arc<Confirmations>) -> Vec<Operation> {
    let bound = |run: fn(&Context, &Request) -> Result<Reply, ApiError>| {
        let context = Context { firewall: firewall.clone(), confirmations: confirmations.clone() };
        move |request: &Request| run(&context, request)
    };
    vec![
        Operation::new(&LIST, bound(list)),
        Operation::new(&SHOW, bound(show)),
        Operation::new(&ADD, bound(add)),
        Operation::new(&UPDATE, bound(update)),
        Operation::new(&DELETE, bound(delete)),
        Operation::new(&EXPLAIN, bound(explain)),
    ]
}

struct Context {
    firewall: Handle<Firewall>,
    confirmations: Arc<Confirmations>,
}

fn gone(error: Gone) -> ApiError {
    ApiError::unavailable(error.to_string())
}

fn refused(error: ChangeError) -> ApiError {
    match error {
        ChangeError::NotFound(id) => ApiError::rule_not_found(&id),
        ChangeError::Taken(message) => ApiError::duplicate_rule(message),
        ChangeError::Unfit(message) => ApiError::validation(message),
        ChangeError::Failed(error) => ApiError::internal(format!("{error:#}")),
    }
}

fn invalid(errors: Vec<WrittenError>) -> ApiError {
    ApiError::validation(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

impl Context {
    fn rules(&self) -> Result<Vec<Counted>, ApiError> {
        self.firewall
            .call(|firewall| firewall.list())
            .map_err(gone)?
            .map_err(|error| ApiError::internal(format!("{error:#}")))
    }

    /// Makes a change, and lets it wait for its confirmation when the request asks for that.
    fn change(
        &self,
        request: &Request,
        what: String,
        change: impl FnOnce(&mut Firewall, bool) -> Result<(), ChangeError> + Send + 'static,
    ) -> Result<(), ApiError> {
        let confirm_secs: Option<u32> = request.query_as("confirm_secs")?;
        let confirmations = self.confirmations.clone();
        let (keep, undo, told) = (self.firewall.clone(), self.firewall.clone(), what.clone());
        // All in one turn of the engine: no other change comes between the question and the beginning of the wait.
        self.firewall
            .call(move |firewall| {
                confirmations.refuse_while_pending()?;
                let before = firewall.snapshot();
                change(firewall, confirm_secs.is_none()).map_err(refused)?;
                if let Some(secs) = confirm_secs {
                    confirmations.begin(
                        what,
                        Instant::now() + Duration::from_secs(secs.into()),
                        move || keep.call(|firewall| firewall.save())?,
                        move || undo.call(move |firewall| firewall.restore(before))?,
                    );
                }
                Ok::<(), ApiError>(())
            })
            .map_err(gone)??;
        log::info!(actor = request.actor.as_str(); "{told}");
        Ok(())
    }
}

fn list(context: &Context, request: &Request) -> Result<Reply, ApiError> {
    let limit: usize = request.query_as("limit")?.unwrap_or(RULES_SHOWN_MAX as usize);
    let offset: usize = request.query_as("offset")?.unwrap_or(0);
    let rules: Vec<RuleView> = context.rules()?.into_iter().skip(offset).take(limit).map(RuleView::from).collect();
    Ok(Reply::json(&rules))
}

fn show(context: &Context, request: &Request) -> Result<Reply, ApiError> {
    let id = request.path("id")?;
    let found = context.rules()?.into_iter().find(|counted| counted.rule.id == id);
    found.map(|counted| Reply::json(&RuleView::from(counted))).ok_or_else(|| ApiError::rule_not_found(id))
}

fn add(context: &Context, request: &Request) -> Result<Reply, ApiError> {
    match read_rules_json(&request.body).map_err(invalid)? {
        RuleBody::One(rule) => {
            let text = RuleText::from(&rule);
            context
                .change(request, format!("rule {} added", rule.id), |firewall, save| firewall.add(vec![rule], save))?;
            Ok(Reply::created(&text))
        }
        RuleBody::Many(rules) => {
            let text: Vec<RuleText> = rules.iter().map(RuleText::from).collect();
            context
                .change(request, format!("{} rules added", rules.len()), |firewall, save| firewall.add(rules, save))?;
            Ok(Reply::created(&text))
        }
    }
}

fn update(context: &Context, request: &Request) -> Result<Reply, ApiError> {
    let id = request.path("id")?;
    let rule: Rule = read_rule_json(&request.body).map_err(invalid)?;
    if rule.id != id {
        return Err(ApiError::validation(format!(
            "the rule in the body is \"{}\", that of the path \"{id}\"",
            rule.id
        )));
    }
    let text = RuleText::from(&rule);
    context.change(request, format!("rule {id} updated"), |firewall, save| firewall.update(rule, save))?;
    Ok(Reply::json(&text))
}

fn delete(context: &Context, request: &Request) -> Result<Reply, ApiError> {
    let id = request.path("id")?.to_owned();
    context.change(request, format!("rule {id} deleted"), move |firewall, save| firewall.delete(&id, save))?;
    Ok(Reply::NoContent)
}

fn explain(context: &Context, request: &Request) -> Result<Reply, ApiError> {
    let question = Question::read(&request.body).map_err(invalid)?;
    let answer = context.firewall.call(move |firewall| firewall.explain(&question)).map_err(gone)?.map_err(refused)?;
    Ok(Reply::json(&answer))
}
