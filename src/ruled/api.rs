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
use crate::confirm::{Confirmations, Entered, Reserved, Trial};
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

/// The namespace of a rule; `None`: there is no such rule, or it is in none.
pub fn namespace_of<O: RuleOwner>(owner: &Handle<O>, id: &str) -> Result<Option<String>, ApiError> {
    let id = id.to_owned();
    let find = move |owner: &mut O| owner.book().find(&id).and_then(AnyRule::namespace).map(str::to_owned);
    owner.call(find).map_err(gone)
}

/// How an engine describes the operations on its rules.
#[derive(Clone, Copy, Debug)]
pub struct RuleSpecs {
    /// Takes [`RULES_LIMIT`] and `offset`, replies with an array of [`RuleOwner::View`].
    pub list: &'static Spec,
    /// Has `{id}` in its path, replies with a [`RuleOwner::View`].
    pub show: &'static Spec,
    /// Takes `confirm_secs` and a body of one rule or several, replies with the same.
    pub add: &'static Spec,
    /// Has `{id}` in its path, takes `confirm_secs` and a body of one rule, replies with the same.
    pub update: &'static Spec,
    /// Has `{id}` in its path, takes `confirm_secs`, replies with nothing.
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
    /// will be another one, or none, afterwards: it must be the caller's. `change` tells what it changed.
    fn change(
        &self,
        request: &Request,
        what: String,
        existing: Option<String>,
        change: impl FnOnce(&mut O, bool) -> Result<Vec<Note>, ChangeError> + Send + 'static,
    ) -> Result<Vec<Note>, ApiError> {
        let confirm_secs: Option<u32> = request.query_as("confirm_secs")?;
        // Before the engine's turn: what goes on alone may be waiting for this engine.
        let admitted = match confirm_secs {
            None => self.confirmations.enter().map(Admitted::Kept),
            Some(secs) => self.confirmations.reserve(&what).map(|alone| Admitted::Tried(alone, secs)),
        };
        let (namespaces, by) = (request.namespaces.clone(), request.caller_id());
        let (keep, undo) = (self.owner.clone(), self.owner.clone());
        let notes = self
            .owner
            .call(move |owner| {
                if let Some(id) = existing {
                    let rule = owner.book().find(&id).ok_or_else(|| ApiError::rule_not_found(&id))?;
                    namespaces.check(rule.namespace())?;
                }
                let admitted = admitted?;
                let before = owner.snapshot();
                let is_kept = matches!(admitted, Admitted::Kept(_));
                let notes = change(owner, is_kept).map_err(refused)?;
                // In the engine's turn: a change that is late for its caller waits for its confirmation, too.
                if let Admitted::Tried(alone, secs) = admitted {
                    alone.wait(Trial {
                        by,
                        deadline: Instant::now() + Duration::from_secs(secs.into()),
                        notes: notes.clone(),
                        keep: Box::new(move || keep.call(|owner| owner.save())?),
                        undo: Box::new(move |keep_failed| {
                            let before = before.clone();
                            undo.call(move |owner| {
                                owner.restore(before)?;
                                if keep_failed { owner.save() } else { Ok(()) }
                            })?
                        }),
                    });
                }
                Ok::<Vec<Note>, ApiError>(notes)
            })
            .map_err(gone)??;
        log::info!(actor = request.actor.as_str(); "{what}");
        Ok(notes)
    }
}

/// How a change may go on; held until it has ended.
enum Admitted {
    /// It is saved at once.
    Kept(#[expect(dead_code, reason = "held, not read")] Entered),
    /// It waits for its confirmation, for so many seconds.
    Tried(Reserved, u32),
}

/// What is told of the rules of one component.
struct Noted {
    component: Option<Component>,
}

impl Noted {
    /// Of the component that the command of `request` is about.
    fn of(request: &Request) -> Noted {
        let word = request.spec.command.split(' ').next().unwrap_or_default();
        Noted { component: Component::ALL.iter().copied().find(|component| component.name() == word) }
    }

    /// What the audit log is told of a rule.
    fn rule<R: AnyRule>(&self, id: &str, before: Option<&R>, after: Option<&R>) -> Note {
        let text = |rule: &R| serde_json::to_value(rule.text()).unwrap_or_default();
        Note { component: self.component, rule: Some(id.to_owned()), before: before.map(text), after: after.map(text) }
    }
}

/// The rule of this name that was made through the API.
fn added<'o, O: RuleOwner>(owner: &'o O, id: &str) -> Option<&'o O::Rule> {
    owner.book().added.iter().find(|rule| rule.id() == id)
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
    let noted = Noted::of(request);
    let notes: Vec<Note> = rules.iter().map(|rule| noted.rule(rule.id(), None, Some(rule))).collect();
    // Noted first: who tried to add them is told of also if they are refused.
    notes.iter().cloned().for_each(|note| request.note(note));
    rules.iter().try_for_each(|rule| request.namespaces.check(rule.namespace()))?;
    let mut text: Vec<_> = rules.iter().map(AnyRule::text).collect();
    let what = match rules.as_slice() {
        [rule] if is_one => format!("rule {} added", rule.id()),
        rules => format!("{} rules added", rules.len()),
    };
    context.change(request, what, None, |owner, save| owner.add(rules, save).map(|()| notes))?;
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
    let (text, existing, noted) = (rule.text(), Some(id.to_owned()), Noted::of(request));
    let tried = noted.rule(id, None, Some(&rule));
    let changed = request.namespaces.check(rule.namespace()).and_then(|()| {
        context.change(request, format!("rule {id} updated"), existing, move |owner, save| {
            let note = noted.rule(rule.id(), added(owner, rule.id()), Some(&rule));
            owner.update(rule, save).map(|()| vec![note])
        })
    });
    told(request, changed, tried)?;
    Ok(Reply::json(&text))
}

fn delete<O: RuleOwner>(context: &Context<O>, request: &Request) -> Result<Reply, ApiError> {
    let id = request.path("id")?.to_owned();
    let (gone, existing, noted) = (id.clone(), Some(id.clone()), Noted::of(request));
    let tried = noted.rule::<O::Rule>(&id, None, None);
    let changed = context.change(request, format!("rule {id} deleted"), existing, move |owner, save| {
        let note = noted.rule(&gone, added(owner, &gone), None);
        owner.delete(&gone, save).map(|()| vec![note])
    });
    told(request, changed, tried)?;
    Ok(Reply::NoContent)
}

/// Notes what was changed, or what was tried in vain.
fn told(request: &Request, changed: Result<Vec<Note>, ApiError>, tried: Note) -> Result<(), ApiError> {
    let (notes, result) = match changed {
        Ok(notes) => (notes, Ok(())),
        Err(error) => (vec![tried], Err(error)),
    };
    notes.into_iter().for_each(|note| request.note(note));
    result
}
