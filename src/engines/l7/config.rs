//! Section `[l7]` as written -> as used, and the one text form of a rule: in TOML, in JSON bodies and replies, and on the
//! command line the keys and their values are the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::rule::{Condition, Field as RuleField, Protocol, Rule};
use crate::alert::Severity;
use crate::classify::keys::read_network;
use crate::classify::matching::Match;
use crate::classify::rules::{Action, Mode, read_description, read_id, read_mitre, read_namespace, serialize_mitre};
use crate::classify::text::{Surroundings, number_or_text_schema};
use crate::matching::matcher::Matcher;
use crate::ruled::AnyRule;
use crate::ruled::body::read_all;
use crate::written::{Field, Reader};

/// Most rules, those that are switched off included.
pub const RULES_MAX: usize = 10_000;
/// Most fields of a head that one rule asks for.
const HEADERS_MAX: usize = 16;
/// Longest name of one, in bytes.
const HEADER_NAME_MAX: usize = 128;

/// What happens to transactions that no rule decides, by protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultActions([Action; Protocol::ALL.len()]);

impl Default for DefaultActions {
    fn default() -> DefaultActions {
        DefaultActions([Action::Allow; Protocol::ALL.len()])
    }
}

impl DefaultActions {
    /// That of one protocol.
    pub const fn of(&self, protocol: Protocol) -> Action {
        self.0[protocol as usize]
    }

    /// Sets that of one protocol.
    pub fn set(&mut self, protocol: Protocol, action: Action) {
        self.0[protocol as usize] = action;
    }

    /// Whether nothing is done by default.
    pub fn are_all_allow(&self) -> bool {
        self.0.iter().all(|action| *action == Action::Allow)
    }

    fn read(field: &Field<'_>) -> DefaultActions {
        let mut actions = DefaultActions::default();
        let Some(mut r) = field.table() else { return actions };
        for &(word, protocol) in Protocol::WORDS {
            let written = r.key(word).parse::<Action>();
            // A call of gRPC is an exchange of HTTP, and no hole in what is said of HTTP.
            let inherited = if protocol == Protocol::Grpc { actions.of(Protocol::Http) } else { Action::Allow };
            actions.set(protocol, written.unwrap_or(inherited));
        }
        r.finish();
        actions
    }
}

/// The default actions as they are shown.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "L7DefaultActions")]
struct DefaultActionsText {
    http: &'static str,
    tls: &'static str,
    grpc: &'static str,
    smtp: &'static str,
    ftp: &'static str,
    smb: &'static str,
}

impl Serialize for DefaultActions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let word = |protocol| self.of(protocol).name();
        DefaultActionsText {
            http: word(Protocol::Http),
            tls: word(Protocol::Tls),
            grpc: word(Protocol::Grpc),
            smtp: word(Protocol::Smtp),
            ftp: word(Protocol::Ftp),
            smb: word(Protocol::Smb),
        }
        .serialize(serializer)
    }
}

/// Section `[l7]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct L7Config {
    /// Whether the L7 firewall runs at all.
    pub enabled: bool,
    /// Whether flows are blocked.
    pub mode: Mode,
    /// Whether both ends of a TCP connection that is blocked are reset, so that neither waits for the other.
    pub tcp_reset: bool,
    /// For transactions that no rule decides.
    #[schemars(with = "DefaultActionsText")]
    pub default_action: DefaultActions,
    /// Rules in the order in which they were written.
    #[serde(serialize_with = "rules_as_text")]
    #[schemars(with = "Vec<RuleText>")]
    pub rules: Vec<Rule>,
}

fn rules_as_text<S: Serializer>(rules: &[Rule], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rules.iter().map(RuleText::from))
}

impl L7Config {
    /// Reads the section.
    pub fn read(mut r: Reader<'_>) -> L7Config {
        let enabled = r.key("enabled").boolean();
        let mode = r.key("mode").one_of(Mode::WORDS).unwrap_or(Mode::Alert);
        let tcp_reset = r.key("tcp_reset").boolean().unwrap_or(true);
        let default_action = DefaultActions::read(&r.key("default_action"));
        let list = r.key("rules");
        let rules: Vec<Rule> = read_all(list.tables(), Surroundings::default());
        r.finish();
        // Without a rule, payload would be copied and read for nothing.
        let enabled = enabled.unwrap_or(!rules.is_empty() || !default_action.are_all_allow());
        let config = L7Config { enabled, mode, tcp_reset, default_action, rules };
        if let Err(message) = Rule::check_count(&mut config.rules.iter(), RULES_MAX) {
            list.error(message);
        }
        config
    }
}

/// Addresses and ports of a flow.
fn read_ends(r: &mut Reader<'_>) -> Match {
    let (src_field, dst_field) = (r.key("src_ip"), r.key("dst_ip"));
    let matches = Match {
        src_ip: read_network(&src_field),
        dst_ip: read_network(&dst_field),
        src_port: r.key("src_port").parse_or_integer(),
        dst_port: r.key("dst_port").parse_or_integer(),
        ..Match::default()
    };
    if let (Some(src), Some(dst)) = (matches.src_ip, matches.dst_ip)
        && src.addr().is_ipv4() != dst.addr().is_ipv4()
    {
        let family = |is_ipv4: bool| if is_ipv4 { "IPv4" } else { "IPv6" };
        dst_field.error(format!(
            "{dst} is {}, but src_ip {src} is {}; a rule has one family, so write two rules",
            family(dst.addr().is_ipv4()),
            family(src.addr().is_ipv4())
        ));
    }
    matches
}

/// The conditions on the fields of a protocol, in the order of the keys. A key of another protocol's is an error that says
/// whose it is.
fn read_conditions(r: &mut Reader<'_>, protocol: Protocol) -> Vec<Condition> {
    let mut conditions = Vec::new();
    let mut own = Vec::new();
    for &(key, ref field) in protocol.fields() {
        own.push(key);
        conditions.extend(read_condition(&r.key(key), field.clone()));
    }
    if protocol == Protocol::Http {
        own.push("header");
        conditions.extend(read_headers(&r.key("header")));
    }
    for key in all_keys().filter(|key| !own.contains(key)) {
        let owners: Vec<&str> =
            Protocol::ALL.iter().filter(|other| has_key(**other, key)).map(|other| other.name()).collect();
        r.refuse(
            key,
            format!(
                "is a key of protocol = \"{}\"; this rule's is \"{}\", which has {}",
                owners.join("\" or \""),
                protocol.name(),
                own.join(", ")
            ),
        );
    }
    conditions
}

fn has_key(protocol: Protocol, key: &str) -> bool {
    protocol.fields().iter().any(|(own, _)| *own == key) || (protocol == Protocol::Http && key == "header")
}

/// The keys of all protocols' fields, each once.
fn all_keys() -> impl Iterator<Item = &'static str> {
    let mut keys = vec!["header"];
    for (key, _) in Protocol::ALL.iter().flat_map(|protocol| protocol.fields()) {
        if !keys.contains(key) {
            keys.push(key);
        }
    }
    keys.into_iter()
}

fn read_condition(written: &Field<'_>, field: RuleField) -> Option<Condition> {
    let text = written.text()?;
    let matcher = Matcher::read(text, field.folding()).inspect_err(|message| written.error(message)).ok()?;
    Some(Condition { field, matcher })
}

fn headers_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": ["object", "null"], "additionalProperties": { "type": "string" } })
}

fn read_headers(table: &Field<'_>) -> Vec<Condition> {
    let Some(entries) = table.entries() else { return Vec::new() };
    if entries.is_empty() {
        table.error("no field of a head in it; write such as { user-agent = \"curl/*\" }");
    }
    if entries.len() > HEADERS_MAX {
        table.error(format!("{} fields of a head, and {HEADERS_MAX} is the limit", entries.len()));
        return Vec::new();
    }
    let mut conditions: Vec<Condition> = Vec::new();
    for (name, written) in entries {
        if let Err(message) = check_header_name(name) {
            written.error(message);
            continue;
        }
        let field = RuleField::Header(name.to_ascii_lowercase().into());
        if conditions.iter().any(|known| known.field == field) {
            written.error("stands here twice: names of fields have no case");
            continue;
        }
        conditions.extend(read_condition(&written, field));
    }
    // So that what is shown reads back equal, whatever the order of a table.
    conditions.sort_by_key(|one| one.field.name());
    conditions
}

fn check_header_name(name: &str) -> Result<(), String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > HEADER_NAME_MAX {
        return Err(format!("the name of a field has 1 to {HEADER_NAME_MAX} bytes"));
    }
    match name.bytes().find(|&byte| !is_token(byte)) {
        Some(byte) => {
            let shown = char::from(byte).escape_debug();
            Err(format!("'{shown}' cannot be in the name of a field; only its value is matched by forms"))
        }
        None => Ok(()),
    }
}

impl AnyRule for Rule {
    type Text = RuleText;

    const FILE: &'static str = "l7-rules.json";

    fn read(mut r: Reader<'_>, _surroundings: Surroundings<'_>) -> Option<Rule> {
        let id = read_id(&r.key("id").required());
        let namespace = read_namespace(&r.key("namespace"));
        let priority = r.key("priority").required().integer(1..=u32::MAX);
        let action = r.key("action").required().parse::<Action>();
        let protocol_field = r.key("protocol").required();
        let protocol = protocol_field.one_of(Protocol::WORDS);
        let matches = read_ends(&mut r);
        let conditions = match protocol {
            Some(protocol) => read_conditions(&mut r, protocol),
            // Whose keys these are is not known; the protocol is an error already.
            None => {
                for key in all_keys().filter(|key| *key != "header") {
                    r.key(key).text();
                }
                r.key("header").entries();
                Vec::new()
            }
        };
        let enabled = r.key("enabled").boolean().unwrap_or(true);
        let severity_field = r.key("severity");
        let severity = severity_field.one_of(Severity::WORDS);
        let mitre = read_mitre(&r.key("mitre"));
        let description = read_description(&r.key("description"));
        r.finish();

        let (id, priority, action, protocol) = (id?, priority?, action?, protocol?);
        if action == Action::Allow && severity.is_some() {
            severity_field.error("what is allowed makes no alert, so it has no severity; write action = \"log\"");
        }
        let severity = severity.unwrap_or(Rule::severity_of(action));
        Some(Rule {
            id,
            namespace,
            priority,
            enabled,
            action,
            protocol,
            matches,
            conditions,
            severity,
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

    fn check_count(rules: &mut dyn Iterator<Item = &Rule>, max: usize) -> Result<(), String> {
        match rules.count() {
            count if count > max => Err(format!("{count} rules, and {max} is the limit")),
            _ => Ok(()),
        }
    }
}

const fn yes() -> bool {
    true
}

/// A rule of the L7 firewall as it is shown, and as a body describes it. A text of a field is exact, or `prefix*`,
/// `*suffix`, a wildcard with `*` and `?`, `~regex`, or `=text` for a text that is exact whatever is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "L7RuleText", deny_unknown_fields)]
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
    /// What to do with a transaction that matches: allow (pass), deny (drop, block), or log (pass and tell).
    #[schemars(schema_with = "action_schema")]
    pub action: &'static str,
    /// What kind of transaction: http, tls (also in QUIC), grpc, smtp, ftp or smb.
    #[schemars(schema_with = "protocol_schema")]
    pub protocol: &'static str,
    /// Address or network of the client; absent matches every address of both families.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_ip: Option<String>,
    /// Address or network of the server, of the same family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_ip: Option<String>,
    /// Port or range of the client such as 1024-65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_text_schema", default)]
    pub src_port: Option<String>,
    /// Port or range of the server such as 80-443; absent matches the protocol on every port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_text_schema", default)]
    pub dst_port: Option<String>,
    /// http: method of the request. grpc: method of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// http: path of the request, without its query, as a server sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// http: host that is asked for, without port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// http: media type of the request or of the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// tls: name that the client asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// tls: a protocol that it offers, such as h2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// tls: its JA3, 32 hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ja3: Option<String>,
    /// tls: its JA4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ja4: Option<String>,
    /// grpc: package.Service that is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// smtp, ftp, smb: the command, such as MAIL, RETR or CREATE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// smtp: sender of a mail, by its envelope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// smtp: a recipient of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// ftp, smb: the file that is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// smb: the share, \\server\share or the last part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
    /// smb: the dialect in force, such as 3.11 or NT LM 0.12.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialect: Option<String>,
    /// http: fields of the request's head by their names, all of which must match.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "headers_schema", default)]
    pub header: BTreeMap<String, String>,
    /// A rule that is switched off is kept and never matches.
    #[schemars(default = "yes")]
    pub enabled: bool,
    /// How bad a match is: low, medium, high or critical; else high with deny and low with log. None with allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "severity_schema", default)]
    pub severity: Option<&'static str>,
    /// What it is a sign of: techniques of MITRE ATT&CK, such as T1110 or T1110.001; alerts carry them.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "serialize_mitre")]
    #[schemars(with = "Vec<String>", length(max = 16), default)]
    pub mitre: Vec<Arc<str>>,
    /// Free text for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256), default)]
    pub description: String,
}

fn action_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": ["allow", "pass", "deny", "drop", "block", "log"] })
}

fn protocol_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": Protocol::ALL.map(Protocol::name) })
}

fn severity_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": Severity::WORDS.iter().map(|(word, _)| word).collect::<Vec<_>>() })
}

impl From<&Rule> for RuleText {
    fn from(rule: &Rule) -> RuleText {
        let keys = rule.protocol.fields();
        let text = |key: &str| {
            let (_, field) = keys.iter().find(|(own, _)| *own == key)?;
            let condition = rule.conditions.iter().find(|condition| condition.field == *field)?;
            Some(condition.matcher.text().to_owned())
        };
        let headers = rule.conditions.iter().filter_map(|condition| match &condition.field {
            RuleField::Header(name) => Some((name.to_string(), condition.matcher.text().to_owned())),
            _ => None,
        });
        RuleText {
            id: rule.id.clone(),
            namespace: rule.namespace.clone(),
            priority: rule.priority,
            action: rule.action.name(),
            protocol: rule.protocol.name(),
            src_ip: rule.matches.src_ip.map(|net| net.to_string()),
            dst_ip: rule.matches.dst_ip.map(|net| net.to_string()),
            src_port: rule.matches.src_port.map(|ports| ports.to_string()),
            dst_port: rule.matches.dst_port.map(|ports| ports.to_string()),
            method: text("method"),
            path: text("path"),
            host: text("host"),
            content_type: text("content_type"),
            sni: text("sni"),
            alpn: text("alpn"),
            ja3: text("ja3"),
            ja4: text("ja4"),
            service: text("service"),
            command: text("command"),
            from: text("from"),
            to: text("to"),
            file: text("file"),
            share: text("share"),
            dialect: text("dialect"),
            header: headers.collect(),
            enabled: rule.enabled,
            severity: (rule.action != Action::Allow).then_some(rule.severity.name()),
            mitre: rule.mitre.clone(),
            description: rule.description.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::classify::matching::PortRange;
    use crate::classify::rules::tests::any_mitre;
    use crate::ruled::body::read_rule_json;
    use crate::written::Document;

    fn messages(body: &str) -> Vec<String> {
        read_rule_json::<Rule>(body.as_bytes())
            .map_or_else(|errors| errors.iter().map(ToString::to_string).collect(), |_| Vec::new())
    }

    #[test]
    fn a_body_is_read_like_a_file() {
        let body =
            r#"{"id":"l7-block-admin","priority":10,"action":"drop","protocol":"http","path":"/admin","dst_port":80}"#;
        let rule: Rule = read_rule_json(body.as_bytes()).unwrap();
        assert_eq!((rule.action, rule.protocol, rule.severity), (Action::Deny, Protocol::Http, Severity::High));
        assert_eq!(rule.matches.dst_port, Some(PortRange { low: 80, high: 80 }));
        assert_eq!((rule.conditions.len(), &rule.conditions[0].field), (1, &RuleField::Path));
        assert_eq!(
            messages(r#"{"id":"a","priority":1,"action":"deny","protocol":"tls","path":"/x","snl":"y"}"#),
            [
                "path: is a key of protocol = \"http\"; this rule's is \"tls\", which has sni, alpn, ja3, ja4",
                "snl: unknown key; did you mean sni?"
            ]
        );
        assert_eq!(messages("{}").len(), 4, "what is required");
        // A null is a key that is left out, also of another protocol.
        assert_eq!(messages(r#"{"id":"a","priority":1,"action":"log","protocol":"ftp","sni":null}"#), [""; 0]);
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
        assert_eq!(schema["required"], serde_json::json!(["id", "priority", "action", "protocol"]));
        assert_eq!(schema["additionalProperties"], false);
    }

    fn matcher(field: RuleField) -> impl Strategy<Value = Condition> {
        let text = prop_oneof![
            "[a-zA-Z0-9/._@-]{1,20}",
            "[a-z/]{1,8}\\*",
            "\\*[a-z.]{1,8}",
            "[a-z]\\?[a-z*]{0,5}[a-z]",
            "~\\^[a-z]{1,5}\\[0-9\\]\\+",
            "=[ -~]{1,10}",
        ];
        // Of a name a dot at its end is nothing: what is a dot and nothing else is no form.
        text.prop_filter_map("a form of the field", move |text| {
            let matcher = Matcher::read(&text, field.folding()).ok()?;
            Some(Condition { field: field.clone(), matcher })
        })
    }

    fn conditions(protocol: Protocol) -> impl Strategy<Value = Vec<Condition>> {
        let own: Vec<_> = protocol.fields().iter().map(|(_, field)| prop::option::of(matcher(field.clone()))).collect();
        let is_http = protocol == Protocol::Http;
        let headers = prop::collection::btree_set("[a-z][a-z0-9-]{0,12}", 0..if is_http { 4 } else { 1 });
        let headers = headers.prop_flat_map(|names| {
            let fields = names.into_iter().map(|name| matcher(RuleField::Header(name.into())));
            fields.collect::<Vec<_>>()
        });
        (own, headers).prop_map(move |(own, headers)| {
            let headers = headers.into_iter().filter(move |_| is_http);
            own.into_iter().flatten().chain(headers).collect()
        })
    }

    /// Any rule that can be written.
    fn rule() -> impl Strategy<Value = Rule> {
        let protocol = select(Protocol::ALL.to_vec());
        let protocol = protocol.prop_flat_map(|protocol| (Just(protocol), conditions(protocol)));
        let action = select(vec![Action::Allow, Action::Deny, Action::Log]);
        let severity = select(Severity::WORDS.iter().map(|(_, severity)| *severity).collect::<Vec<_>>());
        let net = prop::option::of(select(vec!["10.0.0.0/8", "192.0.2.7/32"]));
        let ports = prop::option::of(select(vec!["80", "1-65535"]));
        let id = "[A-Za-z0-9_-]{1,64}";
        let words = (id, prop::option::of(id), 1..=u32::MAX, any::<bool>(), any_mitre(), "\\PC{0,256}");
        (words, protocol, action, severity, net, ports).prop_map(
            |(
                (id, namespace, priority, enabled, mitre, description),
                (protocol, conditions),
                action,
                severity,
                net,
                ports,
            )| {
                let matches = Match {
                    src_ip: net.map(|net| net.parse().unwrap()),
                    dst_port: ports.map(|ports| ports.parse().unwrap()),
                    ..Match::default()
                };
                let severity = if action == Action::Allow { Rule::severity_of(action) } else { severity };
                Rule {
                    id,
                    namespace,
                    priority,
                    enabled,
                    action,
                    protocol,
                    matches,
                    conditions,
                    severity,
                    mitre,
                    description,
                }
            },
        )
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
            prop_assert_eq!(read.into_result(), Ok(Some(rule)));
        }
    }
}
