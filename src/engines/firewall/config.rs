//! Section `[firewall]` as written -> as used, and the one text form of a rule: in TOML, in JSON bodies and replies,
//! and on the command line the keys and their values are the same. Those of its match are read in [`classify::text`].
//!
//! [`classify::text`]: crate::classify::text

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::rule::{Action, Rule};
use crate::abi::fw_rp_filter;
use crate::classify::compile::RULES_MAX;
use crate::classify::keys::read_interface;
use crate::classify::matching::Match;
use crate::classify::rules::{
    Mode, check_counts, read_description, read_id, read_mitre, read_namespace, serialize_mitre,
};
use crate::classify::text::{MatchText, Surroundings, WrittenMatch};
use crate::ruled::AnyRule;
use crate::ruled::body::read_all;
use crate::written::{Field, Reader};

/// A connection that is silent for longer than a month is gone, whatever it was.
const TIMEOUT_SECS_MAX: u32 = 30 * 86_400;

/// What happens to a packet that no rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// It goes on.
    Pass,
    /// It is dropped (in `mode = "block"`).
    Drop,
}

impl Policy {
    /// Words that stand for a policy, the usual one first.
    pub const WORDS: &'static [(&'static str, Policy)] =
        &[("pass", Policy::Pass), ("drop", Policy::Drop), ("allow", Policy::Pass), ("deny", Policy::Drop)];

    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Pass => "pass",
            Policy::Drop => "drop",
        }
    }
}

/// Which sources are taken for forged, by the way back to them (RFC 3704).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RpFilter {
    /// None.
    Off,
    /// Those to which no route leads, and this host's own.
    Loose,
    /// These, and those to which the route leaves by another interface than the one on which the packet came.
    Strict,
}

impl RpFilter {
    /// Words that stand for a filter, the usual one first.
    pub const WORDS: &'static [(&'static str, RpFilter)] =
        &[("off", RpFilter::Off), ("loose", RpFilter::Loose), ("strict", RpFilter::Strict)];

    /// As the kernel's program takes it.
    pub const fn number(self) -> u8 {
        (match self {
            RpFilter::Off => fw_rp_filter::FW_RP_OFF,
            RpFilter::Loose => fw_rp_filter::FW_RP_LOOSE,
            RpFilter::Strict => fw_rp_filter::FW_RP_STRICT,
        })
        .0 as u8
    }
}

/// Silence after which a connection is forgotten, by protocol and phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Timeouts {
    /// TCP, until the handshake is done.
    pub tcp_opening_secs: u32,
    /// TCP, once it is done.
    pub tcp_established_secs: u32,
    /// TCP, after a FIN or RST.
    pub tcp_closing_secs: u32,
    /// UDP, ICMP and all others, until there was an answer.
    pub other_opening_secs: u32,
    /// UDP, ICMP and all others, once there was one.
    pub other_established_secs: u32,
}

/// Section `[firewall]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FirewallConfig {
    /// Whether the firewall runs at all.
    pub enabled: bool,
    /// Whether verdicts are enforced.
    pub mode: Mode,
    /// For packets that no rule matches.
    pub default_policy: Policy,
    /// For packets that cannot be parsed.
    pub unparsable: Policy,
    /// Whether answers to connections that this host opened pass where no rule matches.
    pub stateful: bool,
    /// Whether DHCP answers to this host always pass.
    pub dhcp: bool,
    /// Which sources are taken for forged; their packets are dropped.
    pub rp_filter: RpFilter,
    /// Whether events say by which way a forwarded packet leaves.
    pub next_hop: bool,
    /// Connections that are remembered.
    pub max_connections: u32,
    /// When connections are forgotten.
    pub timeouts: Timeouts,
    /// Rules in the order in which they were written.
    #[serde(serialize_with = "rules_as_text")]
    #[schemars(with = "Vec<RuleText>")]
    pub rules: Vec<Rule>,
}

fn rules_as_text<S: serde::Serializer>(rules: &[Rule], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rules.iter().map(RuleText::from))
}

impl FirewallConfig {
    /// Reads the section. `interfaces` are those of the agent, or `None` if they could not be read.
    pub fn read(mut r: Reader<'_>, interfaces: Option<&[String]>) -> FirewallConfig {
        let enabled = r.key("enabled").boolean().unwrap_or(true);
        let mode = r.key("mode").one_of(Mode::WORDS).unwrap_or(Mode::Alert);
        let default_policy = r.key("default_policy").one_of(Policy::WORDS).unwrap_or(Policy::Pass);
        let unparsable = r.key("unparsable").one_of(Policy::WORDS).unwrap_or(default_policy);
        let stateful = r.key("stateful").boolean().unwrap_or(true);
        let dhcp = r.key("dhcp").boolean().unwrap_or(true);
        let rp_filter = r.key("rp_filter").one_of(RpFilter::WORDS).unwrap_or(RpFilter::Off);
        let next_hop = r.key("next_hop").boolean().unwrap_or(false);
        let max_connections = r.key("max_connections").integer(1024..=16_777_216u32).unwrap_or(131_072);
        let timeouts = Timeouts::read(&r.key("timeouts"));
        let list = r.key("rules");
        let rules: Vec<Rule> = read_all(list.tables(), Surroundings { stateful: Some(stateful), interfaces });
        if let Err(message) = check_counts(rules.iter().map(Rule::matches), RULES_MAX) {
            list.error(message);
        }
        r.finish();
        FirewallConfig {
            enabled,
            mode,
            default_policy,
            unparsable,
            stateful,
            dhcp,
            rp_filter,
            next_hop,
            max_connections,
            timeouts,
            rules,
        }
    }
}

impl Timeouts {
    fn read(field: &Field<'_>) -> Timeouts {
        let mut r = field.table();
        let mut secs =
            |key, default| r.as_mut().and_then(|r| r.key(key).integer(1..=TIMEOUT_SECS_MAX)).unwrap_or(default);
        let timeouts = Timeouts {
            tcp_opening_secs: secs("tcp_opening_secs", 60),
            tcp_established_secs: secs("tcp_established_secs", 86_400),
            tcp_closing_secs: secs("tcp_closing_secs", 60),
            other_opening_secs: secs("other_opening_secs", 30),
            other_established_secs: secs("other_established_secs", 120),
        };
        if let Some(r) = r {
            r.finish();
        }
        timeouts
    }
}

impl AnyRule for Rule {
    type Text = RuleText;

    const FILE: &'static str = "firewall-rules.json";

    fn read(mut r: Reader<'_>, surroundings: Surroundings<'_>) -> Option<Rule> {
        let id = read_id(&r.key("id").required());
        let namespace = read_namespace(&r.key("namespace"));
        let priority = r.key("priority").required().integer(1..=u32::MAX);
        let action = r.key("action").required().parse::<Action>();
        let written = WrittenMatch::read(&mut r);
        r.refuse("fragment", "a later fragment follows the verdict on its first one; only a rate limit may ask for it");
        let enabled = r.key("enabled").boolean().unwrap_or(true);
        let log_field = r.key("log");
        let log = log_field.boolean();
        let mirror_field = r.key("mirror_to");
        let mirror_to = read_interface(&mirror_field);
        let mitre = read_mitre(&r.key("mitre"));
        let description = read_description(&r.key("description"));
        r.finish();

        written.check();
        if action == Some(Action::Log) && log == Some(false) {
            log_field.error("action = \"log\" always records; to pass without a record write action = \"allow\"");
        }
        if mirror_to.is_some() && action == Some(Action::Deny) {
            mirror_field
                .error("what is denied does not go on, and only what goes on is mirrored; write action = \"allow\"");
        }
        if let Some(message) = mirror_to.as_deref().and_then(|name| loop_of(name, surroundings.interfaces?)) {
            mirror_field.error(message);
        }
        let (id, priority, action) = (id?, priority?, action?);
        written.check_surroundings(surroundings);
        let log = log.unwrap_or(false) || action == Action::Log;
        let matches = written.matches;
        Some(Rule { id, namespace, priority, enabled, action, log, matches, mirror_to, mitre, description })
    }

    fn text(&self) -> RuleText {
        RuleText::from(self)
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    fn priority(&self) -> u32 {
        self.priority
    }

    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn matches(&self) -> &Match {
        &self.matches
    }
}

/// Why an interface cannot be one that packets are mirrored to, when it is among the guarded ones.
pub(super) fn loop_of(mirror_to: &str, guarded: &[String]) -> Option<String> {
    guarded.iter().any(|name| name == mirror_to).then(|| {
        format!(
            "\"{mirror_to}\" is among agent.interfaces: what it sends counts as this host's own connections; name one that \
             is not guarded"
        )
    })
}

const fn yes() -> bool {
    true
}

/// A rule as it is shown, and as a body describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, transform = without_fragment)]
pub struct RuleText {
    /// Unique name.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub id: String,
    /// Whose rule it is: operators of this namespace may change it, without one only admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub namespace: Option<String>,
    /// Lower numbers are asked first; equal ones keep their order.
    #[schemars(range(min = 1))]
    pub priority: u32,
    /// What to do with a packet that matches: allow (pass), deny (drop, block), or log (pass and record).
    #[schemars(schema_with = "action_schema")]
    pub action: &'static str,
    /// Which packets those are.
    #[serde(flatten)]
    pub matches: MatchText,
    /// A rule that is switched off is kept and never matches.
    #[schemars(default = "yes")]
    pub enabled: bool,
    /// Record each packet that matches.
    #[schemars(default)]
    pub log: bool,
    /// Interface, none of agent.interfaces, that a copy of each packet that matches is sent to. The packet itself goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub mirror_to: Option<String>,
    /// What it is a sign of: techniques of MITRE ATT&CK, such as T1110 or T1110.001; alerts carry them.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "serialize_mitre")]
    #[schemars(with = "Vec<String>", length(max = 16), default)]
    pub mitre: Vec<Arc<str>>,
    /// Free text for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256), default)]
    pub description: String,
}

/// Later fragments follow the first one.
fn without_fragment(schema: &mut schemars::Schema) {
    if let Some(properties) = schema.get_mut("properties").and_then(serde_json::Value::as_object_mut) {
        properties.remove("fragment");
    }
}

fn action_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": ["allow", "pass", "deny", "drop", "block", "log"] })
}

impl From<&Rule> for RuleText {
    fn from(rule: &Rule) -> RuleText {
        RuleText {
            id: rule.id.clone(),
            namespace: rule.namespace.clone(),
            priority: rule.priority,
            action: rule.action.name(),
            matches: MatchText::from(&rule.matches),
            enabled: rule.enabled,
            log: rule.log,
            mirror_to: rule.mirror_to.clone(),
            mitre: rule.mitre.clone(),
            description: rule.description.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::classify::matching::PortRange;
    use crate::classify::rules::tests::any_mitre;
    use crate::classify::text::tests::any_match;
    use crate::ruled::body::{RuleBody, read_rule_json, read_rules_json};
    use crate::written::Document;

    fn messages(body: &str) -> Vec<String> {
        read_rule_json::<Rule>(body.as_bytes())
            .map_or_else(|e| e.iter().map(ToString::to_string).collect(), |_| Vec::new())
    }

    #[test]
    fn a_body_is_read_like_a_file() {
        let rule = r#"{"id":"fw-block-ssh","priority":10,"action":"drop","protocol":"tcp","dst_port":22}"#;
        let read: Rule = read_rule_json(rule.as_bytes()).unwrap();
        assert_eq!((read.action, read.matches.dst_port), (Action::Deny, Some(PortRange { low: 22, high: 22 })));
        assert_eq!(read_rules_json(rule.as_bytes()), Ok(RuleBody::One(read.clone())));
        assert_eq!(read_rules_json(format!("[{rule}]").as_bytes()), Ok(RuleBody::Many(vec![read])));
        assert_eq!(
            messages(r#"{"id":"a","priority":"10","action":"deny","dst_prot":22}"#),
            [
                "priority: expected an integer from 1 to 4294967295, found the string \"10\"; remove the quotes",
                "dst_prot: unknown key; did you mean dst_port?"
            ]
        );
        assert_eq!(messages("[]"), ["expected an object, found an array"]);
        assert_eq!(messages("{}").len(), 3);
        let many = |body: &str| read_rules_json::<Rule>(body.as_bytes()).unwrap_err()[0].to_string();
        assert_eq!(many(&format!("[{rule},{rule}]")), "[1].id: \"fw-block-ssh\" is already the id of [0]");
        assert_eq!(many("[]"), "no rule in it");
        assert_eq!(many("[1]"), "[0]: expected an object, found the integer 1");
        assert_eq!(many("7"), "expected an object, found the integer 7");
    }

    #[test]
    fn what_is_denied_is_not_mirrored() {
        let rule = |action: &str| {
            messages(&format!(r#"{{"id":"a","priority":1,"action":"{action}","mirror_to":"mon0"}}"#)).join("; ")
        };
        assert!(rule("drop").starts_with("mirror_to: what is denied does not go on"), "{}", rule("drop"));
        assert_eq!((rule("allow"), rule("log")), (String::new(), String::new()));
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read() {
        let schema = serde_json::to_value(schemars::schema_for!(RuleText)).unwrap();
        let mut described = schema["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let read = Document::known_keys(|root| Rule::read(root.table()?, Surroundings::default()));
        let mut read = read.into_iter().map(|key| key.path).collect::<Vec<_>>();
        described.sort();
        read.sort();
        assert_eq!(described, read);
        assert_eq!(schema["required"], serde_json::json!(["id", "priority", "action"]));
        assert_eq!(schema["additionalProperties"], false);
    }

    prop_compose! {
        /// Any rule that can be written.
        fn rule()(
            id in "[A-Za-z0-9_-]{1,64}",
            namespace in prop::option::of("[A-Za-z0-9_-]{1,64}"),
            priority in 1..=u32::MAX,
            (enabled, log) in any::<(bool, bool)>(),
            action in prop::sample::select(vec![Action::Allow, Action::Deny, Action::Log]),
            matches in any_match(),
            mirror_to in prop::option::of("[a-z][a-z0-9.@_-]{0,14}"),
            mitre in any_mitre(),
            description in "\\PC{0,256}",
        ) -> Rule {
            let matches = Match { fragment: None, ..matches };
            let mirror_to = mirror_to.filter(|_| action != Action::Deny);
            let log = log || action == Action::Log;
            Rule { id, namespace, priority, enabled, action, log, matches, mirror_to, mitre, description }
        }
    }

    proptest! {
        /// What is shown can be typed back, as JSON and as TOML.
        #[test]
        fn a_shown_rule_reads_back_equal(rule in rule()) {
            let shown = RuleText::from(&rule);
            prop_assert_eq!(read_rule_json(&serde_json::to_vec(&shown).unwrap()), Ok(rule.clone()));
            let toml = toml::to_string(&shown).unwrap();
            let document = Document::toml("rule", toml.as_bytes()).unwrap();
            let read = document.read(|root| Rule::read(root.table()?, Surroundings::default()));
            prop_assert_eq!(read.warnings.len(), 0);
            prop_assert_eq!(read.into_result(), Ok(Some(rule)));
        }
    }
}
