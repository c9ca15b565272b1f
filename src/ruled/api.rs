//! The operations on rules, written once for all engines; each engine describes them by its own specs.
//!
//! An operator changes rules of their own namespaces only. What is asked comes in this order: is the body a rule (400), may
//! the caller make rules of its namespace (403), is there a rule of that name to change (404), is that one, too, theirs
//! (403), can it be changed here and now (409). Rules are no secret among those who may read, so 404 tells nothing new.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::body::{RuleBody, read_rule_json, read_rules_json};
use super::{AnyRule, ChangeError, RuleOwner};
use crate::api::{ApiError, Note, Operation, Param, ParamKind, Reply, Request, Spec};
use crate::component::Component;
use crate::confirm::{CONFIRM_SECS_MAX, Confirmations};
use crate::supervise::{Gone, Handle};
use crate::written::WrittenError;

/// As many as the engine with the most may have, so that a list without a limit is whole.
const RULES_SHOWN_MAX: u64 = 10_000;

/// `limit` of a list of rules: without it the answer has all of them.
pub const RULES_LIMIT: Param = Param::optional(
    "limit",
    "Most rules in the answer; all when absent",
    ParamKind::Integer { min: 1, max: RULES_SHOWN_MAX },
);

/// `confirm_secs` of a change of rules.
pub const CONFIRM: Param = Param::optional(
    "confirm_secs",
    "Take the change back after so many seconds unless it is confirmed (POST /api/v1/config/confirm)",
    ParamKind::Integer { min: 1, max: CONFIRM_SECS_MAX as u64 },
);

/// How an engine describes the operations on its rules.
#[derive(Clone, Copy, Debug)]
pub struct RuleSpecs {
    /// Takes [`RULES_LIMIT`] and `offset`, replies with an array of [`RuleOwner::View`].
    pub list: &'static Spec,
    /// Has `{id}` in its path, replies with a [`RuleOwner::View`].
    pub show: &'static Spec,
    /// Takes [`CONFIRM`] and a body of one rule or several, replies with the same.
    pub add: &'static Spec,
    /// Has `{id}` in its path, takes [`CONFIRM`] and a body of one rule, replies with the same.
    pub update: &'static Spec,
    /// Has `{id}` in its path, takes [`CONFIRM`], replies with nothing.
    pub delete: &'static Spec,
}

/// An engine, for the operations that are bound to its thread.
pub struct Context<O> {
    /// The engine.
    pub owner: Handle<O>,
    confirmations: Arc<Confirmations>,
}

/// The code of an operation on an engine.
type Run<O> = fn(&Context<O>, &Request) -> Result<Reply, ApiError>;

impl<O: RuleOwner> Context<O> {
    /// The context of the engine's operations.
    pub fn new(owner: &Handle<O>, confirmations: &Arc<Confirmations>) -> Context<O> {
        Context { owner: owner.clone(), confirmations: confirmations.clone() }
    }

    /// An operation, bound to the engine.
    pub fn bind(&self, spec: &'static Spec, run: Run<O>) -> Operation {
        let context = Context::new(&self.owner, &self.confirmations);
        Operation::new(spec, move |request: &Request| run(&context, request))
    }

    /// The operations on rules, bound to the engine.
    pub fn operations(&self, specs: RuleSpecs) -> Vec<Operation> {
        vec![
            self.bind(specs.list, list),
            self.bind(specs.show, show),
            self.bind(specs.add, add),
            self.bind(specs.update, update),
            self.bind(specs.delete, delete),
        ]
    }

    /// Asks the engine.
    pub fn ask<A: Send + 'static>(
        &self,
        question: impl FnOnce(&O) -> anyhow::Result<A> + Send + 'static,
    ) -> Result<A, ApiError> {
        self.owner
            .call(|owner| question(owner))
            .map_err(gone)?
            .map_err(|error| ApiError::internal(format!("{error:#}")))
    }

    /// Makes a change, and lets it wait for its confirmation when the request asks for that. `existing` is the rule that
    /// will be another one, or none, afterwards: it must be the caller's.
    fn change<A: Send + 'static>(
        &self,
        request: &Request,
        what: String,
        existing: Option<String>,
        change: impl FnOnce(&mut O, bool) -> Result<A, ChangeError> + Send + 'static,
    ) -> Result<A, ApiError> {
        let confirm_secs: Option<u32> = request.query_as("confirm_secs")?;
        let confirmations = self.confirmations.clone();
        let (namespaces, by) = (request.namespaces.clone(), request.caller_id());
        let (keep, undo, told) = (self.owner.clone(), self.owner.clone(), what.clone());
        // All in one turn of the engine: no other change comes between the question and the beginning of the wait.
        let answer = self
            .owner
            .call(move |owner| {
                if let Some(id) = existing {
                    let rule = owner.book().find(&id).ok_or_else(|| ApiError::rule_not_found(&id))?;
                    namespaces.check(rule.namespace())?;
                }
                confirmations.refuse_while_pending()?;
                let before = owner.snapshot();
                let answer = change(owner, confirm_secs.is_none()).map_err(refused)?;
                if let Some(secs) = confirm_secs {
                    confirmations.begin(
                        what,
                        by,
                        Instant::now() + Duration::from_secs(secs.into()),
                        move || keep.call(|owner| owner.save())?,
                        move || undo.call(move |owner| owner.restore(before))?,
                    );
                }
                Ok::<A, ApiError>(answer)
            })
            .map_err(gone)??;
        log::info!(actor = request.actor.as_str(); "{told}");
        Ok(answer)
    }

    /// After a change: what was noted of it is the other way round when it is taken back.
    fn remember(&self, request: &Request) {
        if request.query("confirm_secs").is_some() {
            self.confirmations.remember(request.notes());
        }
    }
}

/// What the audit log is told of a rule.
fn note<R: AnyRule>(request: &Request, id: &str, before: Option<&R>, after: Option<&R>) {
    let word = request.spec.command.split(' ').next().unwrap_or_default();
    let text = |rule: &R| serde_json::to_value(rule.text()).unwrap_or_default();
    request.note(Note {
        component: Component::ALL.iter().copied().find(|component| component.name() == word),
        rule: Some(id.to_owned()),
        before: before.map(text),
        after: after.map(text),
    });
}

/// The rule of this name that was made through the API.
fn added<O: RuleOwner>(owner: &O, id: &str) -> Option<O::Rule> {
    owner.book().added.iter().find(|rule| rule.id() == id).cloned()
}

/// The engine does not answer.
pub fn gone(error: Gone) -> ApiError {
    ApiError::unavailable(error.to_string())
}

/// The engine refused a change.
pub fn refused(error: ChangeError) -> ApiError {
    match error {
        ChangeError::NotFound(id) => ApiError::rule_not_found(&id),
        ChangeError::Taken(message) => ApiError::duplicate_rule(message),
        ChangeError::Unfit(message) => ApiError::validation(message),
        ChangeError::Failed(error) => ApiError::internal(format!("{error:#}")),
    }
}

/// The body is not what it should be.
pub fn invalid(errors: Vec<WrittenError>) -> ApiError {
    ApiError::validation(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

fn list<O: RuleOwner>(context: &Context<O>, request: &Request) -> Result<Reply, ApiError> {
    let limit: usize = request.query_as("limit")?.unwrap_or(RULES_SHOWN_MAX as usize);
    let offset: usize = request.query_as("offset")?.unwrap_or(0);
    Ok(Reply::json(&context.ask(move |owner| owner.list(limit, offset))?))
}

fn show<O: RuleOwner>(context: &Context<O>, request: &Request) -> Result<Reply, ApiError> {
    let id = request.path("id")?.to_owned();
    let found = context.ask({
        let id = id.clone();
        move |owner| owner.show(&id)
    })?;
    found.map(|view| Reply::json(&view)).ok_or_else(|| ApiError::rule_not_found(&id))
}

fn add<O: RuleOwner>(context: &Context<O>, request: &Request) -> Result<Reply, ApiError> {
    let (rules, is_one) = match read_rules_json::<O::Rule>(&request.body).map_err(invalid)? {
        RuleBody::One(rule) => (vec![rule], true),
        RuleBody::Many(rules) => (rules, false),
    };
    // Noted first: who tried to add them is told of also if they are refused.
    rules.iter().for_each(|rule| note(request, rule.id(), None, Some(rule)));
    rules.iter().try_for_each(|rule| request.namespaces.check(rule.namespace()))?;
    let mut text: Vec<_> = rules.iter().map(AnyRule::text).collect();
    let what = match rules.as_slice() {
        [rule] if is_one => format!("rule {} added", rule.id()),
        rules => format!("{} rules added", rules.len()),
    };
    context.change(request, what, None, |owner, save| owner.add(rules, save))?;
    context.remember(request);
    Ok(if is_one { Reply::created(&text.swap_remove(0)) } else { Reply::created(&text) })
}

fn update<O: RuleOwner>(context: &Context<O>, request: &Request) -> Result<Reply, ApiError> {
    let id = request.path("id")?;
    let rule: O::Rule = read_rule_json(&request.body).map_err(invalid)?;
    if rule.id() != id {
        return Err(ApiError::validation(format!(
            "the rule in the body is \"{}\", that of the path \"{id}\"",
            rule.id()
        )));
    }
    let (text, new, existing) = (rule.text(), rule.clone(), Some(id.to_owned()));
    let changed = request.namespaces.check(rule.namespace()).and_then(|()| {
        context.change(request, format!("rule {id} updated"), existing, |owner, save| {
            let before = added(owner, rule.id());
            owner.update(rule, save).map(|()| before)
        })
    });
    note(request, id, changed.as_ref().ok().and_then(Option::as_ref), Some(&new));
    changed?;
    context.remember(request);
    Ok(Reply::json(&text))
}

fn delete<O: RuleOwner>(context: &Context<O>, request: &Request) -> Result<Reply, ApiError> {
    let id = request.path("id")?.to_owned();
    let (gone, existing) = (id.clone(), Some(id.clone()));
    let changed = context.change(request, format!("rule {id} deleted"), existing, move |owner, save| {
        let before = added(owner, &gone);
        owner.delete(&gone, save).map(|()| before)
    });
    note::<O::Rule>(request, &id, changed.as_ref().ok().and_then(Option::as_ref), None);
    changed?;
    context.remember(request);
    Ok(Reply::NoContent)
}
