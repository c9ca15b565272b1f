//! A request body: a rule that is taken is shown so that it reads back equal.

use std::fmt::Debug;

use ebpfsentinel::engines::{firewall, l7, ratelimit};
use ebpfsentinel::ruled::AnyRule;
use ebpfsentinel::ruled::body::{RuleBody, read_rule_json, read_rules_json};
use ebpfsentinel::written::ERRORS_MAX;

pub fn run(body: &[u8]) {
    read::<firewall::rule::Rule>(body);
    read::<ratelimit::rule::Rule>(body);
    read::<l7::rule::Rule>(body);
}

fn read<R: AnyRule + Debug + PartialEq>(body: &[u8]) {
    let rules: Vec<R> = match read_rules_json(body) {
        Ok(RuleBody::One(rule)) => vec![rule],
        Ok(RuleBody::Many(rules)) => rules,
        Err(errors) => {
            assert!(!errors.is_empty() && errors.len() <= ERRORS_MAX + 1);
            return;
        }
    };
    for rule in rules {
        let shown = serde_json::to_vec(&rule.text()).expect("a rule is strings, numbers and lists");
        assert_eq!(read_rule_json(&shown), Ok(rule));
    }
}
