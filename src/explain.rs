//! One packet and what would become of it: asks the firewall, and behind it the rate limiter.

use schemars::JsonSchema;
use serde::Serialize;

use crate::api::{self, ApiError, Method, Operation, Reply, Request, Role, Spec};
use crate::engines::firewall::Firewall;
use crate::engines::firewall::explain::{Explanation, Question, QuestionText};
use crate::engines::ratelimit::Ratelimit;
use crate::engines::ratelimit::explain::LimitView;
use crate::ruled::api::{gone, invalid, refused};
use crate::supervise::Handle;

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Explained {
    /// At the firewall.
    #[serde(flatten)]
    pub firewall: Explanation,
    /// At the rate limiter, if the packet gets there and a limit is meant for it.
    pub rate_limit: Option<LimitView>,
}

static EXPLAIN: Spec = Spec {
    command: "explain",
    method: Method::Post,
    path: "/api/v1/explain",
    query: &[],
    role: Role::Viewer,
    summary: "Say what the programs in the kernel would do to a packet, and why; counts and remembers nothing",
    body: Some(api::schema::<QuestionText>),
    reply: api::schema::<Explained>,
    success: 200,
};

/// Its operation.
pub static SPECS: &[&Spec] = &[&EXPLAIN];

/// The operation, bound to the engines' threads.
pub fn operation(firewall: &Handle<Firewall>, ratelimit: Option<&Handle<Ratelimit>>) -> Operation {
    let (firewall, ratelimit) = (firewall.clone(), ratelimit.cloned());
    Operation::new(&EXPLAIN, move |request: &Request| explain(&firewall, ratelimit.as_ref(), request))
}

fn explain(
    firewall: &Handle<Firewall>,
    ratelimit: Option<&Handle<Ratelimit>>,
    request: &Request,
) -> Result<Reply, ApiError> {
    let question = Question::read(&request.body).map_err(invalid)?;
    let asked = firewall.call(move |firewall| firewall.explain(&question)).map_err(gone)?.map_err(refused)?;
    let mut explained = Explained { firewall: asked.explanation, rate_limit: None };
    if let (Some(ratelimit), true) = (ratelimit, explained.firewall.verdict != "drop") {
        let (frame, ifindex) = (asked.frame, asked.ifindex);
        let limit = ratelimit.call(move |ratelimit| ratelimit.explain(&frame, ifindex)).map_err(gone)?;
        explained.rate_limit = limit.map_err(|error| ApiError::internal(format!("{error:#}")))?;
        let text = explained.rate_limit.as_ref().map(LimitView::text);
        explained.firewall.text.push(' ');
        explained.firewall.text.push_str(text.as_deref().unwrap_or("No rate limit is meant for it."));
    }
    Ok(Reply::json(&explained))
}
