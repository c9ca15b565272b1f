//! What an alert says of a verdict, wherever the packet came from.

use std::sync::Arc;

use crate::alert::Severity;
use crate::event::{Outcome, Reason, Verdict};

/// The rule that decided, by the name of its slot, or what decided instead.
pub fn rule_of(verdict: &Verdict, name: impl Fn(u16) -> Option<Arc<str>>) -> Arc<str> {
    match (verdict.slot, verdict.reason, verdict.unparsable) {
        (Some(slot), ..) => name(slot).unwrap_or_else(|| "deleted".into()),
        (_, Reason::Unparsable, Some(why)) => format!("unparsable:{why}").into(),
        (_, reason, _) => reason.name().into(),
    }
}

/// How bad it is: what the default policy drops is the noise of every network.
pub fn severity_of(verdict: &Verdict) -> Severity {
    match verdict.outcome {
        Outcome::Dropped | Outcome::WouldDrop if verdict.reason != Reason::Policy => Severity::Medium,
        _ => Severity::Low,
    }
}
