//! Section `[ratelimit]` as written -> as used, and the one text form of a rate limit: in TOML, in JSON bodies and
//! replies, and on the command line the keys and their values are the same. Those of its match are read in
//! [`classify::text`].
//!
//! [`classify::text`]: crate::classify::text

use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::limit::{Limit, LimitError, Unit};
use super::rule::{Action, Algorithm, Rule, Scope};
use crate::classify::compile::RULES_MAX;
use crate::classify::matching::Match;
use crate::classify::rules::{
    Mode, check_counts, read_description, read_id, read_mitre, read_namespace, serialize_mitre,
};
use crate::classify::text::{MatchText, Surroundings, WrittenMatch, number_or_text_schema};
use crate::ruled::AnyRule;
use crate::ruled::body::read_all;
use crate::written::{Field, Reader};

/// A source is blocked for a day at most.
const BLOCK_SECS_MAX: u32 = 86_400;

/// Section `[ratelimit]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RatelimitConfig {
    /// Whether the rate limiter runs at all.
    pub enabled: bool,
    /// Whether verdicts are enforced.
    pub mode: Mode,
    /// Sources (or flows, or destinations) that are counted at the same time.
    pub max_sources: u32,
    /// Packets a second from a source address, for packets that no rule matches; 0: no limit.
    pub default_rate: u64,
    /// Packets of the same at once; 0 without a default_rate.
    pub default_burst: u64,
    /// Rules in the order in which they were written.
    #[serde(serialize_with = "rules_as_text")]
    #[schemars(with = "Vec<RuleText>")]
    pub rules: Vec<Rule>,
}

fn rules_as_text<S: serde::Serializer>(rules: &[Rule], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rules.iter().map(RuleText::from))
}

impl RatelimitConfig {
    /// Reads the section. `interfaces` are those of the agent, or `None` if they could not be read.
    pub fn read(mut r: Reader<'_>, interfaces: Option<&[String]>) -> RatelimitConfig {
        let enabled = r.key("enabled").boolean();
        let mode = r.key("mode").one_of(Mode::WORDS).unwrap_or(Mode::Alert);
        let max_sources = r.key("max_sources").integer(1024..=4_194_304u32).unwrap_or(262_144);
        let default_limit = read_default(&r.key("default_rate"), &r.key("default_burst"));
        let list = r.key("rules");
        let rules: Vec<Rule> = read_all(list.tables(), Surroundings { stateful: None, interfaces });
        r.finish();
        let (default_rate, default_burst) = default_limit.map_or((0, 0), |limit| (limit.rate, limit.burst));
        // Without a limit it would cost each packet its way through the program, and memory, for nothing.
        let enabled = enabled.unwrap_or(!rules.is_empty() || default_rate > 0);
        let config = RatelimitConfig { enabled, mode, max_sources, default_rate, default_burst, rules };
        if let Err(message) = check_counts(config.rules.iter().map(Rule::matches), config.rules_max()) {
            list.error(message);
        }
        config
    }

    /// Most rules of a family: a table has room for [`RULES_MAX`], and the default limit is one of them.
    pub fn rules_max(&self) -> usize {
        if self.default_rate == 0 { RULES_MAX } else { RULES_MAX - 1 }
    }

    /// The limit for packets that no rule matches, if there is one, as a rule to be asked after all others. Its name is
    /// one that no other rule can have.
    pub fn default_rule(&self) -> Option<Rule> {
        (self.default_rate > 0).then(|| Rule {
            id: "(default)".to_owned(),
            namespace: None,
            priority: u32::MAX,
            enabled: true,
            matches: Match::default(),
            scope: Scope::PerIp,
            ipv6_prefix_len: Rule::IPV6_PREFIX_LEN,
            limit: Limit { rate: self.default_rate, burst: self.default_burst, unit: Unit::Packets },
            algorithm: Algorithm::TokenBucket,
            action: Action::Drop,
            threshold_pps: 0,
            block_secs: 0,
            mitre: Vec::new(),
            description: String::new(),
        })
    }
}

/// The limit for packets that no rule matches; a rate of 0, like none, is no limit.
fn read_default(rate: &Field<'_>, burst: &Field<'_>) -> Option<Limit> {
    let written_rate = read_amount(rate);
    let written_burst = read_amount(burst).filter(|&amount| amount > 0);
    let Some(rate_number) = written_rate.filter(|&amount| amount > 0) else {
        let is_rate_wrong = rate.is_present() && written_rate.is_none();
        if written_burst.is_some() && !is_rate_wrong {
            burst.error("needs default_rate: a burst has a meaning only with its rate");
        }
        return None;
    };
    read_limit(rate_number, written_burst, Unit::Packets, rate, burst)
}

/// A number of packets or bits, in whole or as a text with k, M or G.
struct Amount(u64);

impl FromStr for Amount {
    type Err = String;

    fn from_str(s: &str) -> Result<Amount, String> {
        let strange = || {
            let shown = s.chars().take(60).collect::<String>();
            format!("\"{}\" is not a number; write it whole, or with k, M or G, such as 1.5M", shown.escape_debug())
        };
        let (number, zeros) = match s.chars().last() {
            Some('k') => (&s[..s.len() - 1], 3),
            Some('M') => (&s[..s.len() - 1], 6),
            Some('G') => (&s[..s.len() - 1], 9),
            _ => (s, 0),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !is_number(part) {
            return Err(strange());
        }
        let part = part.trim_end_matches('0');
        if part.len() > zeros {
            return Err(format!("\"{}\" is not a whole number", s.chars().take(60).collect::<String>()));
        }
        let digits = format!("{whole}{part}{}", "0".repeat(zeros - part.len()));
        digits.parse().map(Amount).map_err(|_| strange())
    }
}

fn read_amount(field: &Field<'_>) -> Option<u64> {
    field.parse_or_integer::<Amount>().map(|Amount(number)| number)
}

/// A limit that the kernel can count with; without a burst it is what comes in a second.
fn read_limit(
    rate: u64,
    burst: Option<u64>,
    unit: Unit,
    rate_field: &Field<'_>,
    burst_field: &Field<'_>,
) -> Option<Limit> {
    let limit = Limit { rate, burst: burst.unwrap_or(rate.max(unit.burst_min())), unit };
    match limit.check() {
        Ok(()) => return Some(limit),
        Err(error @ LimitError::Rate { .. }) => rate_field.error(error.to_string()),
        Err(error) => burst_field.error(error.to_string()),
    }
    None
}

/// What a rule says of its limit, as it was read.
struct WrittenLimit<'r> {
    rate: Field<'r>,
    burst: Field<'r>,
    unit_field: Field<'r>,
    threshold: Field<'r>,
    threshold_pps: Option<u32>,
    rate_number: Option<u64>,
    burst_number: Option<u64>,
    unit: Unit,
    algorithm: Algorithm,
    /// A unit or algorithm that could not be read is an error already; what depends on it is not judged.
    is_known: bool,
}

impl<'r> WrittenLimit<'r> {
    fn read(r: &mut Reader<'r>) -> WrittenLimit<'r> {
        let (rate, burst, threshold) = (r.key("rate"), r.key("burst"), r.key("threshold_pps"));
        let (unit_field, algorithm_field) = (r.key("unit"), r.key("algorithm"));
        let (unit, algorithm) = (unit_field.one_of(Unit::WORDS), algorithm_field.one_of(Algorithm::WORDS));
        WrittenLimit {
            rate_number: read_amount(&rate),
            burst_number: read_amount(&burst),
            is_known: unit_field.is_present() == unit.is_some() && algorithm_field.is_present() == algorithm.is_some(),
            unit: unit.unwrap_or(Unit::Packets),
            algorithm: algorithm.unwrap_or(Algorithm::TokenBucket),
            threshold_pps: threshold.integer(0..=1_000_000_000),
            rate,
            burst,
            unit_field,
            threshold,
        }
    }

    /// The limit, if the kernel can count with it.
    fn check(&self) -> Option<Limit> {
        if !self.is_known {
            return None;
        }
        if self.algorithm == Algorithm::SynCookie {
            return self.check_cookies();
        }
        if self.threshold.is_present() {
            self.threshold.error(format!("goes with algorithm = \"syn_cookie\"; it is \"{}\"", self.algorithm.name()));
            return None;
        }
        if !self.rate.is_present() {
            self.rate.error("missing; this key is required");
            return None;
        }
        if !self.algorithm.is_bucket() && self.burst.is_present() {
            self.burst.error("a window has no burst; its limit is rate");
            return None;
        }
        if self.burst.is_present() && self.burst_number.is_none() {
            return None;
        }
        let limit = read_limit(self.rate_number?, self.burst_number, self.unit, &self.rate, &self.burst)?;
        if !self.algorithm.is_bucket() && limit.rate < self.unit.burst_min() {
            self.rate.error(format!(
                "a window of {} {} is below {}, so a full packet would never pass",
                limit.rate,
                self.unit,
                self.unit.burst_min()
            ));
            return None;
        }
        Some(limit)
    }
}

impl WrittenLimit<'_> {
    /// The limit of the answers to a source.
    fn check_cookies(&self) -> Option<Limit> {
        if self.burst.is_present() {
            self.burst.error("SYN cookies have no burst; the limit of answers to a source is rate");
        }
        if self.unit == Unit::Bits {
            self.unit_field.error("SYN cookies count packets");
        }
        let rate = if self.rate.is_present() { self.rate_number? } else { Rule::COOKIE_RATE };
        if !(1..=Rule::COOKIE_RATE_MAX).contains(&rate) {
            self.rate.error(format!(
                "{rate} answers to a source in a second are not between 1 and {}",
                Rule::COOKIE_RATE_MAX
            ));
            return None;
        }
        Some(Limit { rate, burst: rate, unit: Unit::Packets })
    }

    /// SYNs a second that go on.
    fn threshold(&self) -> u32 {
        match self.algorithm {
            Algorithm::SynCookie => self.threshold_pps.unwrap_or(Rule::THRESHOLD_PPS),
            _ => 0,
        }
    }
}

/// The scope, and how many bits of an IPv6 address count.
fn read_scope(r: &mut Reader<'_>, algorithm: Algorithm) -> (Scope, u8) {
    let (scope_field, prefix_field) = (r.key("scope"), r.key("ipv6_prefix_len"));
    let scope = scope_field.one_of(Scope::WORDS);
    let prefix = prefix_field.integer(1..=128u8);
    if let (Some(scope), Algorithm::SynCookie) = (scope.filter(|&scope| scope != Scope::PerIp), algorithm) {
        let scope = scope.name();
        scope_field.error(format!("SYN cookies limit the answers to a source: scope = \"per_ip\"; it is \"{scope}\""));
    } else if let (Some(scope), true) = (scope.filter(|&scope| scope != Scope::PerIp), prefix_field.is_present()) {
        prefix_field.error(format!("goes with scope = \"per_ip\"; it is \"{}\"", scope.name()));
    }
    (scope.unwrap_or(Scope::PerIp), prefix.unwrap_or(Rule::IPV6_PREFIX_LEN))
}

/// The action, and for how many seconds it blocks.
fn read_action(r: &mut Reader<'_>, algorithm: Algorithm) -> (Action, u32) {
    let (action_field, secs_field) = (r.key("action"), r.key("block_secs"));
    let written = action_field.one_of(Action::WORDS);
    let secs = secs_field.integer(1..=BLOCK_SECS_MAX);
    let action = written.unwrap_or(Action::Drop);
    if written.is_some() || !action_field.is_present() {
        match (action, secs_field.is_present()) {
            (Action::Block, _) if algorithm == Algorithm::SynCookie => {
                action_field
                    .error("SYN cookies answer sources that may be invented; block would shut out whose they are");
            }
            (Action::Block, false) => secs_field.error("missing; action = \"block\" needs the time, in seconds"),
            (Action::Drop | Action::Pass, true) => {
                secs_field.error(format!("goes with action = \"block\"; it is \"{}\"", action.name()));
            }
            _ => {}
        }
    }
    (action, secs.unwrap_or(0))
}

impl AnyRule for Rule {
    type Text = RuleText;

    const FILE: &'static str = "ratelimit-rules.json";

    fn read(mut r: Reader<'_>, surroundings: Surroundings<'_>) -> Option<Rule> {
        let id = read_id(&r.key("id").required());
        let namespace = read_namespace(&r.key("namespace"));
        let priority_field = r.key("priority");
        let priority =
            priority_field.integer(1..=u32::MAX).or((!priority_field.is_present()).then_some(Rule::PRIORITY));
        let mut written = WrittenMatch::read_stateless(&mut r);
        r.refuse("state", "a rate limit knows no connection state; remove state");
        let written_limit = WrittenLimit::read(&mut r);
        let (scope, ipv6_prefix_len) = read_scope(&mut r, written_limit.algorithm);
        let (action, block_secs) = read_action(&mut r, written_limit.algorithm);
        let enabled = r.key("enabled").boolean().unwrap_or(true);
        let mitre = read_mitre(&r.key("mitre"));
        let description = read_description(&r.key("description"));
        r.finish();

        written.check();
        if written_limit.algorithm == Algorithm::SynCookie {
            written.take_syns_only("algorithm = \"syn_cookie\"");
        }
        let limit = written_limit.check();
        let (id, priority, limit) = (id?, priority?, limit?);
        written.check_surroundings(surroundings);
        let (matches, algorithm) = (written.matches, written_limit.algorithm);
        Some(Rule {
            id,
            namespace,
            priority,
            enabled,
            matches,
            scope,
            ipv6_prefix_len,
            limit,
            algorithm,
            action,
            threshold_pps: written_limit.threshold(),
            block_secs,
            mitre,
            description,
        })
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

const fn yes() -> bool {
    true
}

const fn last() -> u32 {
    Rule::PRIORITY
}

const fn per_ip() -> &'static str {
    Scope::PerIp.name()
}

const fn packets() -> &'static str {
    Unit::Packets.name()
}

const fn token_bucket() -> &'static str {
    Algorithm::TokenBucket.name()
}

const fn drop_it() -> &'static str {
    Action::Drop.name()
}

/// A rate limit as it is shown, and as a body describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "RateLimitText", deny_unknown_fields, transform = without_state)]
pub struct RuleText {
    /// Unique name.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub id: String,
    /// Whose rule it is: operators of this namespace may change it, without one only admins.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub namespace: Option<String>,
    /// Lower numbers are asked first; equal ones keep their order; 1000 when absent.
    #[schemars(range(min = 1), default = "last")]
    pub priority: u32,
    /// Which packets it is about.
    #[serde(flatten)]
    pub matches: MatchText,
    /// Whose packets share a bucket: per_ip (source_ip, src_ip, per-ip), per_flow, per_dst, global.
    #[schemars(schema_with = "scope_schema", default = "per_ip")]
    pub scope: &'static str,
    /// Bits of an IPv6 source address that count, with scope per_ip; 64 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 128))]
    pub ipv6_prefix_len: Option<u8>,
    /// Units a second: a number, or a text with k, M or G such as 1.5M. Required, but with syn_cookie: there it is how
    /// many SYNs of a source are answered in a second, 256 when absent.
    #[schemars(schema_with = "number_or_text_schema", default)]
    pub rate: u64,
    /// Units at once after a rest, written as the rate; what comes in a second when absent. Windows have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_text_schema", default)]
    pub burst: Option<u64>,
    /// What is counted: packets, or bits of the frames.
    #[schemars(schema_with = "unit_schema", default = "packets")]
    pub unit: &'static str,
    /// How it is counted.
    #[schemars(schema_with = "algorithm_schema", default = "token_bucket")]
    pub algorithm: &'static str,
    /// SYNs a second that go on; beyond that they are answered with cookies. With algorithm syn_cookie; 1000 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000_000))]
    pub threshold_pps: Option<u32>,
    /// Over the limit: drop (deny), pass (log: count and tell only), or block (drop all of it for block_secs).
    #[schemars(schema_with = "action_schema", default = "drop_it")]
    pub action: &'static str,
    /// How long it is blocked; needs action block.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = BLOCK_SECS_MAX))]
    pub block_secs: Option<u32>,
    /// A rule that is switched off is kept and never matches.
    #[schemars(default = "yes")]
    pub enabled: bool,
    /// What it is a sign of: techniques of MITRE ATT&CK, such as T1110 or T1110.001; alerts carry them.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "serialize_mitre")]
    #[schemars(with = "Vec<String>", length(max = 16), default)]
    pub mitre: Vec<Arc<str>>,
    /// Free text for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256), default)]
    pub description: String,
}

fn words_schema<T>(words: &[(&'static str, T)]) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": words.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
}

fn scope_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words_schema(Scope::WORDS)
}

fn unit_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words_schema(Unit::WORDS)
}

fn algorithm_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words_schema(Algorithm::WORDS)
}

fn action_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    words_schema(Action::WORDS)
}

/// Takes the one key of a match away that a rate limit does not have.
fn without_state(schema: &mut schemars::Schema) {
    if let Some(properties) = schema.get_mut("properties").and_then(|properties| properties.as_object_mut()) {
        properties.remove("state");
    }
}

impl From<&Rule> for RuleText {
    fn from(rule: &Rule) -> RuleText {
        RuleText {
            id: rule.id.clone(),
            namespace: rule.namespace.clone(),
            priority: rule.priority,
            matches: match rule.algorithm {
                // Those that it looks at are its own.
                Algorithm::SynCookie => MatchText { tcp_flags: None, ..MatchText::from(&rule.matches) },
                _ => MatchText::from(&rule.matches),
            },
            scope: rule.scope.name(),
            ipv6_prefix_len: (rule.scope == Scope::PerIp).then_some(rule.ipv6_prefix_len),
            rate: rule.limit.rate,
            burst: rule.algorithm.is_bucket().then_some(rule.limit.burst),
            unit: rule.limit.unit.name(),
            algorithm: rule.algorithm.name(),
            threshold_pps: rule.is_about_cookies().then_some(rule.threshold_pps),
            action: rule.action.name(),
            block_secs: (rule.action == Action::Block).then_some(rule.block_secs),
            enabled: rule.enabled,
            mitre: rule.mitre.clone(),
            description: rule.description.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::classify::matching::{Protocol, States, TcpFlags};
    use crate::classify::rules::tests::any_mitre;
    use crate::classify::text::tests::any_match;
    use crate::ruled::body::read_rule_json;
    use crate::written::Document;

    #[test]
    fn a_rule_has_defaults() {
        let read: Rule = read_rule_json(br#"{"id":"a","priority":1,"rate":"1.5k"}"#).unwrap();
        assert_eq!(read.limit, Limit { rate: 1500, burst: 1500, unit: Unit::Packets });
        assert_eq!((read.scope, read.ipv6_prefix_len), (Scope::PerIp, 64));
        assert_eq!((read.algorithm, read.action, read.block_secs), (Algorithm::TokenBucket, Action::Drop, 0));
        assert!(read.enabled);
        let read: Rule = read_rule_json(br#"{"id":"a","priority":1,"rate":1000,"unit":"bits"}"#).unwrap();
        assert_eq!(read.limit.burst, 12_144, "at least a full frame");
    }

    #[test]
    fn cookies_have_defaults() {
        let read: Rule =
            read_rule_json(br#"{"id":"a","priority":1,"protocol":"tcp","algorithm":"syn_cookie"}"#).unwrap();
        assert_eq!((read.limit.rate, read.threshold_pps, read.scope), (256, 1000, Scope::PerIp));
        assert_eq!(read.matches.tcp_flags, Some(TcpFlags::SYN));
        assert_eq!(read.text().matches.tcp_flags, None);
    }

    #[test]
    fn amounts() {
        let amount = |text: &str| text.parse().map(|Amount(number)| number);
        assert_eq!(amount("7"), Ok(7));
        assert_eq!(amount("10k"), Ok(10_000));
        assert_eq!(amount("1.5M"), Ok(1_500_000));
        assert_eq!(amount("0.123456789G"), Ok(123_456_789));
        assert_eq!(amount("1.50"), Err("\"1.50\" is not a whole number".to_owned()));
        assert_eq!(amount("2.0"), Ok(2));
        assert_eq!(amount("1.2345k"), Err("\"1.2345k\" is not a whole number".to_owned()));
        for strange in
            ["", "k", ".5k", "5.k", "-1", "+1", "1 k", "1m", "1K", "1e3", "ä", "99999999999999999999", "1.2.3"]
        {
            assert!(amount(strange).unwrap_err().contains("is not a number"), "{strange}");
        }
    }

    #[test]
    fn words_with_the_same_meaning() {
        let read = |keys: &str| {
            read_rule_json::<Rule>(format!(r#"{{"id":"a","priority":1,"rate":5,{keys}}}"#).as_bytes()).unwrap()
        };
        for word in ["per_ip", "source_ip", "src_ip", "per-ip"] {
            assert_eq!(read(&format!(r#""scope":"{word}""#)).scope, Scope::PerIp);
        }
        assert_eq!(read(r#""action":"deny""#).action, Action::Drop);
        assert_eq!(read(r#""action":"log""#).action, Action::Pass);
    }

    #[test]
    fn the_default_limit_is_the_last_rule() {
        let read = |text: &str| {
            let document = Document::toml("c.toml", text.as_bytes()).unwrap();
            let read = document.read(|root| root.table().map(|r| RatelimitConfig::read(r, None)));
            read.into_result().map(Option::unwrap)
        };
        let none = read("").unwrap();
        assert_eq!((none.default_rule(), none.rules_max()), (None, RULES_MAX));
        let config = read("default_rate = '1k'").unwrap();
        let rule = config.default_rule().unwrap();
        assert_eq!(rule.limit, Limit { rate: 1000, burst: 1000, unit: Unit::Packets });
        assert_eq!(config.rules_max(), RULES_MAX - 1);
        assert_eq!(read("default_rate = 10\ndefault_burst = 3").unwrap().default_burst, 3);
        assert_eq!(read("default_rate = 0\ndefault_burst = 0").unwrap(), none);
        assert!(read("default_rate = 'x'\ndefault_burst = 3").unwrap_err().len() == 1);
    }

    #[test]
    fn a_rule_without_a_priority_is_among_the_last() {
        let read = |text: &str| read_rule_json::<Rule>(text.as_bytes());
        let rule = read(r#"{"id":"rl-global","rate":1000,"burst":2000,"scope":"per_ip"}"#).unwrap();
        assert_eq!(
            (rule.priority, serde_json::to_value(rule.text()).unwrap()["priority"].as_u64()),
            (1000, Some(1000))
        );
        assert_eq!(read(r#"{"id":"a","rate":1,"priority":7}"#).unwrap().priority, 7);
        for wrong in ["0", "-1", "\"1\"", "4294967296"] {
            let errors = read(&format!(r#"{{"id":"a","rate":1,"priority":{wrong}}}"#)).unwrap_err();
            assert!(errors.len() == 1 && errors[0].path == "priority", "{wrong}: {errors:?}");
        }
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
        assert_eq!(schema["required"], serde_json::json!(["id"]));
        assert_eq!(schema["additionalProperties"], false);
    }

    fn any_limit() -> impl Strategy<Value = (Limit, Algorithm)> {
        let algorithm = prop::sample::select(Algorithm::WORDS).prop_map(|(_, algorithm)| algorithm);
        let unit = prop::sample::select(Unit::WORDS).prop_map(|(_, unit)| unit);
        (unit, algorithm, any::<(u64, u64)>()).prop_map(|(unit, algorithm, (rate, burst))| {
            if algorithm == Algorithm::SynCookie {
                let rate = 1 + rate % Rule::COOKIE_RATE_MAX;
                return (Limit { rate, burst: rate, unit: Unit::Packets }, algorithm);
            }
            let (lowest, highest) = unit.rates();
            let lowest = if algorithm.is_bucket() { lowest } else { lowest.max(unit.burst_min()) };
            let rate = lowest + rate % (highest - lowest + 1);
            let bursts = rate * Limit::BURST_SECONDS_MAX - unit.burst_min() + 1;
            let burst = if algorithm.is_bucket() { unit.burst_min() + burst % bursts } else { rate };
            (Limit { rate, burst, unit }, algorithm)
        })
    }

    prop_compose! {
        /// Any rule that can be written.
        fn rule()(
            id in "[A-Za-z0-9_-]{1,64}",
            namespace in prop::option::of("[A-Za-z0-9_-]{1,64}"),
            priority in 1..=u32::MAX,
            enabled in any::<bool>(),
            scope in prop::sample::select(Scope::WORDS),
            prefix in 1..=128u8,
            (limit, algorithm) in any_limit(),
            action in prop::sample::select(Action::WORDS),
            secs in 1..=BLOCK_SECS_MAX,
            matches in any_match(),
            threshold in 0..=1_000_000_000u32,
            mitre in any_mitre(),
            description in "\\PC{0,256}",
        ) -> Rule {
            let (scope, action) = (scope.1, action.1);
            if algorithm == Algorithm::SynCookie {
                let tcp = Match { protocol: Protocol::Number(6), tcp_flags: Some(TcpFlags::SYN), ..Match::default() };
                let (src_ip, dst_ip, vlan_id) = (matches.src_ip, matches.dst_ip, matches.vlan_id);
                return Rule {
                    id,
                    namespace,
                    priority,
                    enabled,
                    matches: Match { src_ip, dst_ip, vlan_id, interfaces: matches.interfaces, ..tcp },
                    scope: Scope::PerIp,
                    ipv6_prefix_len: prefix,
                    limit,
                    algorithm,
                    threshold_pps: threshold,
                    action: if action == Action::Block { Action::Drop } else { action },
                    block_secs: 0,
                    mitre,
                    description,
                };
            }
            Rule {
                id,
                namespace,
                priority,
                enabled,
                matches: Match { states: States::ANY, ..matches },
                scope,
                ipv6_prefix_len: if scope == Scope::PerIp { prefix } else { Rule::IPV6_PREFIX_LEN },
                limit,
                algorithm,
                threshold_pps: 0,
                action,
                block_secs: if action == Action::Block { secs } else { 0 },
                mitre,
                description,
            }
        }
    }

    proptest! {
        /// What is shown can be typed back, as JSON and as TOML.
        #[test]
        fn a_shown_rule_reads_back_equal(rule in rule()) {
            let shown = rule.text();
            prop_assert_eq!(read_rule_json(&serde_json::to_vec(&shown).unwrap()), Ok(rule.clone()));
            let toml = toml::to_string(&shown).unwrap();
            let document = Document::toml("rule", toml.as_bytes()).unwrap();
            let read = document.read(|root| Rule::read(root.table()?, Surroundings::default()));
            prop_assert_eq!(read.warnings.len(), 0);
            prop_assert_eq!(read.into_result(), Ok(Some(rule.clone())));
            // The kernel can count with every one of them.
            prop_assert_eq!(rule.in_kernel(1, 1000).instance, 1);
        }
    }
}
