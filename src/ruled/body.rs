//! Rules in JSON bodies.

use super::AnyRule;
use crate::classify::rules::read_rules;
use crate::classify::text::Surroundings;
use crate::written::{Document, Field, Reader, WrittenError};

/// What a body of rules holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleBody<R> {
    /// An object: one rule.
    One(R),
    /// An array: all or none are taken.
    Many(Vec<R>),
}

/// Reads rules that belong together: their ids must differ.
pub fn read_all<R: AnyRule>(readers: Vec<Reader<'_>>, surroundings: Surroundings<'_>) -> Vec<R> {
    read_rules(readers, |reader| R::read(reader, surroundings), R::id)
}

/// Reads one rule from a JSON body.
pub fn read_rule_json<R: AnyRule>(body: &[u8]) -> Result<R, Vec<WrittenError>> {
    let document = Document::json(body)?;
    let rule = document.read(|root| R::read(root.table()?, Surroundings::default())).into_result()?;
    rule.ok_or_else(|| vec![WrittenError::whole("", "not a rule")])
}

/// Reads a rule, or an array of rules with different ids, from a JSON body.
pub fn read_rules_json<R: AnyRule>(body: &[u8]) -> Result<RuleBody<R>, Vec<WrittenError>> {
    let document = Document::json(body)?;
    let read = |root: Field<'_>| {
        if !root.is_list() {
            return R::read(root.table()?, Surroundings::default()).map(RuleBody::One);
        }
        let rules = read_all(root.tables(), Surroundings::default());
        if rules.is_empty() {
            root.error("no rule in it");
        }
        Some(RuleBody::Many(rules))
    };
    document.read(read).into_result()?.ok_or_else(|| vec![WrittenError::whole("", "not a rule")])
}
