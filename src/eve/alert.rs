//! The member `alert`, and the numbers by which tools for Suricata know rules and flows.
//!
//! Those tools take alerts for alike by `gid` and `signature_id`, and Suricata's schema allows in `alert` its own keys
//! only. What is ours stands in `metadata`, where Suricata has what its rules say of themselves: lists of texts by
//! name.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::json::Json;

/// Whose signatures these are. Suricata's rules have 1, Snort's preprocessors up to three digits; this is 0xebf.
pub const GENERATOR: u64 = 3775;

/// What Suricata says of an alert, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// The flow was blocked, or the packet dropped; else it went on.
    pub is_blocked: bool,
    /// Whose rule: a component's name.
    pub component: &'a str,
    /// The rule's id.
    pub rule: &'a str,
    /// What the rule is about.
    pub signature: &'a str,
    /// Its class.
    pub category: &'a str,
    /// 1 is the gravest.
    pub severity: u64,
}

/// Writes the member `alert`; `more` writes what `metadata` has beside component and rule, with [`detail`] and
/// [`details`].
pub fn alert(json: &mut Json, head: &Head<'_>, more: impl FnOnce(&mut Json)) {
    json.object("alert");
    json.text("action", if head.is_blocked { "blocked" } else { "allowed" });
    json.number("gid", GENERATOR);
    json.number("signature_id", signature_id(head.component, head.rule).into());
    json.number("rev", 0);
    json.text("signature", head.signature);
    json.text("category", head.category);
    json.number("severity", head.severity);
    json.object("metadata");
    detail(json, "component", head.component.as_bytes());
    detail(json, "rule", head.rule.as_bytes());
    more(json);
    json.close();
    json.close();
}

/// A member of `metadata` with one value.
pub fn detail(json: &mut Json, name: &str, value: &[u8]) {
    details(json, name, [value]);
}

/// A member of `metadata`.
pub fn details<'v>(json: &mut Json, name: &str, values: impl IntoIterator<Item = &'v [u8]>) {
    json.array(name);
    values.into_iter().for_each(|value| json.wire_element(value));
    json.end_array();
}

/// The number of a rule: from 1 to 2^31 - 1, the same on every host and after every change of other rules. It is a
/// hash, so of some ten thousand rules two may share one; `metadata` tells them apart.
pub fn signature_id(component: &str, rule: &str) -> u32 {
    let hash = Sha256::new().chain_update(component).chain_update([0]).chain_update(rule).finalize();
    (u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) >> 1).max(1)
}

/// The number of a flow by its Community ID: the same for all that happens between the same ends, from any program's
/// line. It has 53 bits, which readers that take numbers for floating point keep whole. Nothing for what is no such id.
pub fn flow_id(community_id: &str) -> Option<u64> {
    let hash = STANDARD.decode(community_id.strip_prefix("1:")?).ok()?;
    let first = hash.first_chunk::<8>()?;
    Some((u64::from_be_bytes(*first) >> 11).max(1))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::Value;

    use super::*;

    /// Keys that Suricata's schema allows in `alert`, which allows no others.
    const KEYS: [&str; 12] = [
        "action",
        "category",
        "gid",
        "metadata",
        "rev",
        "rule",
        "severity",
        "signature",
        "signature_id",
        "source",
        "target",
        "xff",
    ];

    /// Proves of a line that `alert` is as Suricata's consumers expect it, and gives its `metadata`.
    pub fn metadata_of(line: &[u8]) -> Value {
        let line: Value = serde_json::from_slice(line).unwrap();
        let alert = line["alert"].as_object().unwrap();
        for key in alert.keys() {
            assert!(KEYS.contains(&key.as_str()), "{key} in {line}");
        }
        for key in ["gid", "signature_id", "rev", "severity"] {
            assert!(alert[key].is_u64(), "{key} in {line}");
        }
        for key in ["action", "signature", "category"] {
            assert!(alert[key].is_string(), "{key} in {line}");
        }
        for (name, values) in alert["metadata"].as_object().unwrap() {
            let values = values.as_array().unwrap_or_else(|| panic!("{name} in {line}"));
            assert!(!values.is_empty() && values.iter().all(Value::is_string), "{name} in {line}");
        }
        alert["metadata"].clone()
    }

    #[test]
    fn a_rule_has_a_number_of_its_own_that_stays() {
        // printf 'l7\0no-admin' | sha256sum, its first 32 bits without the last
        assert_eq!(signature_id("l7", "no-admin"), 285436273);
        assert_ne!(signature_id("firewall", "no-admin"), signature_id("l7", "no-admin"));
        assert_ne!(signature_id("l7", "a"), signature_id("l", "7a"));
        let numbers: Vec<u32> = (0..1000).map(|number| signature_id("firewall", &format!("rule-{number}"))).collect();
        assert!(numbers.iter().all(|number| (1..1 << 31).contains(number)));
        assert_eq!(numbers.iter().collect::<std::collections::HashSet<_>>().len(), 1000);
    }

    #[test]
    fn a_flow_has_the_number_of_its_community_id() {
        // printf 'LQU9qZlK+B5F3KDmev6m5PMibrg=' | base64 -d | xxd -l 8, shifted right by 11
        assert_eq!(flow_id("1:LQU9qZlK+B5F3KDmev6m5PMibrg="), Some(1_584_017_043_564_895));
        for none in ["", "1:", "1:LQU9", "2:LQU9qZlK+B5F3KDmev6m5PMibrg=", "1:?"] {
            assert_eq!(flow_id(none), None, "{none}");
        }
    }
}
