//! Section `[firewall]` as written -> as used, and the one text form of a rule: in TOML, in JSON bodies and replies, and
//! on the command line the keys and their values are the same.
//!
//! What a rule asks for must be able to happen: ports with a protocol that has none, an ICMP rule with IPv6 addresses
//! or a state while `stateful` is off are errors, not rules that never match. Host bits of a network are dropped as
//! iptables and nftables do (`10.0.0.1/24` is `10.0.0.0/24`), with a warning.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Serialize;

use super::rule::{Action, PortRange, Protocol, RULES_MAX, Rule, State, States, proto};
use crate::written::{Document, Field, Reader, WrittenError, did_you_mean};

/// Longest `id`, in characters.
const ID_MAX: usize = 64;
/// Longest `description`, in characters.
const DESCRIPTION_MAX: usize = 256;
/// Longest interface name, in bytes: IFNAMSIZ without its NUL.
pub const INTERFACE_NAME_MAX: usize = 15;
/// A connection that is silent for longer than a month is gone, whatever it was.
const TIMEOUT_SECS_MAX: u32 = 30 * 86_400;

/// Whether verdicts are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is dropped; events say what would have been.
    Alert,
    /// Verdicts are enforced.
    Block,
}

impl Mode {
    /// Words that stand for a mode, the usual one first.
    pub const WORDS: &'static [(&'static str, Mode)] = &[
        ("alert", Mode::Alert),
        ("block", Mode::Block),
        ("monitor", Mode::Alert),
        ("observe", Mode::Alert),
        ("enforce", Mode::Block),
    ];

    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Alert => "alert",
            Mode::Block => "block",
        }
    }
}

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

/// What rules are checked against beyond themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings<'s> {
    /// `firewall.stateful`; `None` when it is not known here.
    pub stateful: Option<bool>,
    /// `agent.interfaces`; `None` when they are not known here.
    pub interfaces: Option<&'s [String]>,
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
        let max_connections = r.key("max_connections").integer(1024..=16_777_216u32).unwrap_or(131_072);
        let timeouts = Timeouts::read(&r.key("timeouts"));
        let list = r.key("rules");
        let rules = read_rules(list.tables(), Surroundings { stateful: Some(stateful), interfaces });
        if let Err(message) = check_counts(&rules) {
            list.error(message);
        }
        r.finish();
        FirewallConfig { enabled, mode, default_policy, unparsable, stateful, dhcp, max_connections, timeouts, rules }
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

/// Reads rules that belong together: their ids must differ.
fn read_rules(readers: Vec<Reader<'_>>, surroundings: Surroundings<'_>) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(readers.len());
    let mut places: HashMap<String, (String, Option<u32>)> = HashMap::new();
    for mut reader in readers {
        let id = reader.key("id");
        let place = (reader.path().to_owned(), id.line());
        let Some(rule) = Rule::read(reader, surroundings) else { continue };
        if let Some((path, line)) = places.get(&rule.id) {
            let line = line.map(|line| format!(" on line {line}")).unwrap_or_default();
            id.error(format!("\"{}\" is already the id of {path}{line}", rule.id));
        } else {
            places.insert(rule.id.clone(), place);
        }
        rules.push(rule);
    }
    rules
}

/// Whether the rules fit the kernel's tables: [`RULES_MAX`] in each family, and those without addresses are in both.
/// Rules that are switched off count too, so that switching one on never fails.
pub fn check_counts<'r>(rules: impl IntoIterator<Item = &'r Rule>) -> Result<(), String> {
    let [mut v4, mut v6, mut both] = [0usize; 3];
    for rule in rules {
        match rule.is_ipv4() {
            Some(true) => v4 += 1,
            Some(false) => v6 += 1,
            None => both += 1,
        }
    }
    let family = |name, own| match own + both {
        sum if sum > RULES_MAX => Err(format!(
            "{sum} rules for {name}, and {RULES_MAX} is the limit for each family ({own} with {name} addresses, \
             {both} without addresses, which apply to both families)"
        )),
        _ => Ok(()),
    };
    family("IPv4", v4)?;
    family("IPv6", v6)
}

/// Reads one rule from a JSON body.
pub fn read_rule_json(body: &[u8]) -> Result<Rule, Vec<WrittenError>> {
    let document = Document::json(body)?;
    let rule = document.read(|root| Rule::read(root.table()?, Surroundings::default())).into_result()?;
    rule.ok_or_else(|| vec![WrittenError::whole("", "not a rule")])
}

/// What a body of rules holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleBody {
    /// An object: one rule.
    One(Rule),
    /// An array: all or none are taken.
    Many(Vec<Rule>),
}

/// Reads a rule, or an array of rules with different ids, from a JSON body.
pub fn read_rules_json(body: &[u8]) -> Result<RuleBody, Vec<WrittenError>> {
    let document = Document::json(body)?;
    let read = |root: Field<'_>| {
        if !root.is_list() {
            return Rule::read(root.table()?, Surroundings::default()).map(RuleBody::One);
        }
        let rules = read_rules(root.tables(), Surroundings::default());
        if rules.is_empty() {
            root.error("no rule in it");
        }
        Some(RuleBody::Many(rules))
    };
    document.read(read).into_result()?.ok_or_else(|| vec![WrittenError::whole("", "not a rule")])
}

impl Rule {
    /// Reads one rule. `None` means that errors were noted; there may be errors besides a rule.
    pub fn read(mut r: Reader<'_>, surroundings: Surroundings<'_>) -> Option<Rule> {
        let id = read_id(&r.key("id").required());
        let priority = r.key("priority").required().integer(1..=u32::MAX);
        let action = r.key("action").required().parse::<Action>();
        let protocol_field = r.key("protocol");
        let known_protocol = protocol_field.parse_or_integer::<Protocol>();
        let protocol = known_protocol.unwrap_or(Protocol::Any);
        let (src_field, dst_field) = (r.key("src_ip"), r.key("dst_ip"));
        let (src_ip, dst_ip) = (read_network(&src_field), read_network(&dst_field));
        let (src_port_field, dst_port_field) = (r.key("src_port"), r.key("dst_port"));
        let src_port = src_port_field.parse_or_integer::<PortRange>();
        let dst_port = dst_port_field.parse_or_integer::<PortRange>();
        let vlan_id = r.key("vlan_id").integer(0..=4094u16);
        let flags_field = r.key("tcp_flags");
        let tcp_flags = flags_field.parse();
        let (type_field, code_field) = (r.key("icmp_type"), r.key("icmp_code"));
        let icmp_type = read_icmp_type(&type_field, protocol);
        let icmp_code = code_field.integer(0..=255u8);
        let state_field = r.key("state");
        let states = read_states(&state_field);
        let interfaces_field = r.key("interfaces");
        let interfaces = read_interfaces(&interfaces_field, usize::MAX).unwrap_or_default();
        let enabled = r.key("enabled").boolean().unwrap_or(true);
        let log_field = r.key("log");
        let log = log_field.boolean();
        let description = read_description(&r.key("description"));
        r.finish();

        if let (Some(src), Some(dst)) = (src_ip, dst_ip)
            && src.addr().is_ipv4() != dst.addr().is_ipv4()
        {
            let family = |net: IpNet| if net.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            dst_field.error(format!(
                "{dst} is {}, but src_ip {src} is {}; a rule has one family, so write two rules",
                family(dst),
                family(src)
            ));
        }
        // A protocol that could not be read is an error already; what depends on it is not judged.
        if known_protocol.is_some() || !protocol_field.is_present() {
            for (field, present) in [(&src_port_field, src_port.is_some()), (&dst_port_field, dst_port.is_some())] {
                if present && !has_ports(protocol) {
                    field.error(format!(
                        "protocol {protocol} has no ports; ports go with tcp, udp, 132 (SCTP), 136 (UDP-Lite) or any"
                    ));
                }
            }
            if tcp_flags.is_some() && protocol != Protocol::Number(proto::TCP) {
                flags_field.error(format!("needs protocol = \"tcp\"; it is \"{protocol}\""));
            }
            if icmp_type.is_some() && !is_icmp(protocol) {
                type_field.error(format!("needs protocol = \"icmp\" or \"icmpv6\"; it is \"{protocol}\""));
            }
        }
        if code_field.is_present() && !type_field.is_present() {
            code_field.error("needs icmp_type: a code has a meaning only with its type");
        }
        if let Some((field, net)) =
            [(&src_field, src_ip), (&dst_field, dst_ip)].into_iter().find_map(|(f, n)| Some((f, n?)))
        {
            match (protocol, net.addr()) {
                (Protocol::Number(proto::ICMP), IpAddr::V6(_)) => {
                    field.error(format!("{net} is IPv6, but protocol icmp is IPv4's; write protocol = \"icmpv6\""));
                }
                (Protocol::Number(proto::ICMPV6), IpAddr::V4(_)) => {
                    field.error(format!("{net} is IPv4, but protocol icmpv6 is IPv6's; write protocol = \"icmp\""));
                }
                _ => {}
            }
        }
        if action == Some(Action::Log) && log == Some(false) {
            log_field.error("action = \"log\" always records; to pass without a record write action = \"allow\"");
        }
        let rule = Rule {
            id: id?,
            priority: priority?,
            enabled,
            action: action?,
            log: log.unwrap_or(false) || action == Some(Action::Log),
            protocol,
            src_ip,
            dst_ip,
            src_port,
            dst_port,
            vlan_id,
            tcp_flags,
            icmp_type,
            icmp_code,
            states,
            interfaces,
            description,
        };
        for (key, message) in rule.clashes(surroundings) {
            if key == "state" { &state_field } else { &interfaces_field }.error(message);
        }
        Some(rule)
    }

    /// What the rule asks for and its surroundings do not give, as key and message.
    pub fn clashes(&self, surroundings: Surroundings<'_>) -> Vec<(&'static str, String)> {
        let mut clashes = Vec::new();
        if !self.states.is_any() && surroundings.stateful == Some(false) {
            clashes.push(("state", "needs firewall.stateful = true; no connection is remembered now".to_owned()));
        }
        for name in &self.interfaces {
            let Some(known) = surroundings.interfaces else { continue };
            if !known.contains(name) {
                let near = did_you_mean(name, known.iter().map(String::as_str));
                let message = format!("\"{name}\" is not among agent.interfaces ({}){near}", known.join(", "));
                clashes.push(("interfaces", message));
            }
        }
        clashes
    }
}

const fn has_ports(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Any | Protocol::Number(proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE))
}

const fn is_icmp(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Number(proto::ICMP | proto::ICMPV6))
}

fn read_id(field: &Field<'_>) -> Option<String> {
    let id = field.text()?;
    let wrong = id.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-'));
    if let Some(wrong) = wrong {
        field.error(format!("{wrong:?} cannot be in an id; use letters, digits, _ and -"));
    } else if id.is_empty() || id.len() > ID_MAX {
        field.error(format!("an id has 1 to {ID_MAX} characters; this one has {}", id.len()));
    } else {
        return Some(id.to_owned());
    }
    None
}

fn read_description(field: &Field<'_>) -> String {
    let text = field.text().unwrap_or_default();
    let length = text.chars().count();
    if length > DESCRIPTION_MAX {
        field.error(format!("a description has at most {DESCRIPTION_MAX} characters; this one has {length}"));
    } else if let Some(control) = text.chars().find(|c| c.is_control()) {
        field.error(format!("a description is one line of plain text; this one has {control:?} in it"));
    }
    text.to_owned()
}

/// An address or a network; its host bits are dropped.
pub fn read_network(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    match parse_network(text) {
        Ok(net) if net.trunc() != net => {
            field.warn(format!("{net} has host bits; it means {}", net.trunc()));
            Some(net.trunc())
        }
        Ok(net) => Some(net),
        Err(message) => {
            field.error(message);
            None
        }
    }
}

/// Parses an address or a network, keeping its host bits.
fn parse_network(text: &str) -> Result<IpNet, String> {
    let strange = || {
        let shown = text.chars().take(60).collect::<String>();
        let hint = match text.split_once('-') {
            _ if matches!(text, "" | "any" | "*" | "all") => "; leave the key out to match every address",
            Some((low, high)) if low.parse::<IpAddr>().is_ok() && high.parse::<IpAddr>().is_ok() => {
                "; write a range as one or more networks"
            }
            _ if text.contains('%') => "; name the interface in interfaces, not in the address",
            _ if text.trim() != text => "; remove the spaces around it",
            _ => "",
        };
        format!(
            "\"{}\" is not an address or a network such as 192.0.2.0/24 or 2001:db8::/32{hint}",
            shown.escape_debug()
        )
    };
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| strange())?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    let bits = match prefix {
        None => bits_max,
        Some(prefix) => match prefix.parse::<u8>() {
            Ok(bits) if bits <= bits_max => bits,
            Ok(_) => return Err(format!("\"{text}\": a prefix length is at most {bits_max} here")),
            Err(_) => {
                let mask = prefix.parse::<IpAddr>().ok().and_then(|mask| ipnet::ip_mask_to_prefix(mask).ok());
                return Err(match mask {
                    Some(bits) => format!("\"{text}\": write the mask as a prefix length: {address}/{bits}"),
                    None => strange(),
                });
            }
        },
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
        && bits >= 96
    {
        let v4_bits = bits - 96;
        return Err(format!(
            "\"{text}\" is an IPv4 address in IPv6 clothing, which no packet carries; write {v4}/{v4_bits}"
        ));
    }
    IpNet::new(address, bits).map_err(|_| strange())
}

/// Names of types that people filter by, as nftables spells them.
const ICMP_TYPES: &[(&str, Option<u8>, Option<u8>)] = &[
    ("echo-request", Some(8), Some(128)),
    ("echo-reply", Some(0), Some(129)),
    ("destination-unreachable", Some(3), Some(1)),
    ("packet-too-big", None, Some(2)),
    ("time-exceeded", Some(11), Some(3)),
    ("parameter-problem", Some(12), Some(4)),
    ("redirect", Some(5), None),
    ("timestamp-request", Some(13), None),
    ("timestamp-reply", Some(14), None),
    ("router-solicitation", Some(10), None),
    ("router-advertisement", Some(9), None),
    ("nd-router-solicit", None, Some(133)),
    ("nd-router-advert", None, Some(134)),
    ("nd-neighbor-solicit", None, Some(135)),
    ("nd-neighbor-advert", None, Some(136)),
    ("nd-redirect", None, Some(137)),
];

/// A number, or a name of the protocol's.
fn read_icmp_type(field: &Field<'_>, protocol: Protocol) -> Option<u8> {
    let Some(name) = field.as_text().filter(|text| text.parse::<u8>().is_err()) else {
        return field.parse_or_integer::<IcmpType>().map(|IcmpType(number)| number);
    };
    let v6 = protocol == Protocol::Number(proto::ICMPV6);
    let names = ICMP_TYPES.iter().filter_map(|&(name, v4, six)| Some((name, if v6 { six } else { v4 }?)));
    let found = names.clone().find(|(known, _)| *known == name).map(|(_, number)| number);
    if found.is_none() {
        let near = did_you_mean(name, names.map(|(name, _)| name));
        let family = if v6 { "ICMPv6" } else { "ICMP" };
        field.error(format!(
            "\"{}\" is not a type of {family}; use a number from 0 to 255 or a name such as echo-request{near}",
            name.chars().take(60).collect::<String>().escape_debug()
        ));
    }
    found
}

struct IcmpType(u8);

impl std::str::FromStr for IcmpType {
    type Err = String;

    fn from_str(s: &str) -> Result<IcmpType, String> {
        s.parse().map(IcmpType).map_err(|_| format!("{s} is not an ICMP type; use a number from 0 to 255 or a name"))
    }
}

fn read_states(field: &Field<'_>) -> States {
    let mut states = States::ANY;
    let Some(items) = field.items() else { return states };
    if items.is_empty() {
        field.error("an empty list matches nothing; leave the key out to match every state");
    }
    for item in items {
        let Some(state) = item.parse::<State>() else { continue };
        if !states.is_any() && states.contains(state) {
            item.error(format!("\"{}\" stands here already", state.name()));
        }
        states = states.with(state);
    }
    states
}

/// A list of different interface names, at most `max`; empty lists are errors.
pub fn read_interfaces(field: &Field<'_>, max: usize) -> Option<Vec<String>> {
    let items = field.items()?;
    if items.is_empty() {
        field.error("the list is empty; name at least one interface");
        return None;
    }
    if items.len() > max {
        field.error(format!("{} interfaces, and {max} is the limit", items.len()));
        return None;
    }
    let mut names: Vec<String> = Vec::with_capacity(items.len());
    let mut good = true;
    for item in items {
        let Some(name) = item.text() else {
            good = false;
            continue;
        };
        let wrong = name.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'));
        if name.is_empty() || name.len() > INTERFACE_NAME_MAX {
            item.error(format!("an interface name has 1 to {INTERFACE_NAME_MAX} bytes; this one has {}", name.len()));
        } else if let Some(wrong) = wrong {
            item.error(format!("{wrong:?} cannot be in the name of an interface"));
        } else if matches!(name, "." | "..") {
            item.error(format!("\"{name}\" cannot be the name of an interface"));
        } else if names.iter().any(|known| known == name) {
            item.error(format!("\"{name}\" stands here already"));
        } else {
            names.push(name.to_owned());
            continue;
        }
        good = false;
    }
    good.then_some(names)
}

const fn yes() -> bool {
    true
}

fn any_protocol() -> String {
    Protocol::Any.to_string()
}

/// A rule as it is shown, and as a body describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RuleText {
    /// Unique name.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub id: String,
    /// Lower numbers are asked first; equal ones keep their order.
    #[schemars(range(min = 1))]
    pub priority: u32,
    /// What to do with a packet that matches: allow (pass), deny (drop, block), or log (pass and record).
    #[schemars(schema_with = "action_schema")]
    pub action: &'static str,
    /// tcp, udp, icmp, icmpv6, any, or a number from 0 to 255.
    #[schemars(schema_with = "number_or_text_schema", default = "any_protocol")]
    pub protocol: String,
    /// Source address or network; absent matches every address of both families.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_ip: Option<String>,
    /// Destination address or network, of the same family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_ip: Option<String>,
    /// Source port or range such as 1024-65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_text_schema", default)]
    pub src_port: Option<String>,
    /// Destination port or range such as 80-443.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_text_schema", default)]
    pub dst_port: Option<String>,
    /// Outer VLAN id; 0 is untagged only, absent matches every packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 4094))]
    pub vlan_id: Option<u16>,
    /// Flags that must be set / flags that are looked at, such as S/SA; needs protocol tcp.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<String>,
    /// ICMP type, a number or a name such as echo-request; needs protocol icmp or icmpv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number_or_text_schema", default)]
    pub icmp_type: Option<u8>,
    /// ICMP code; needs icmp_type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// States of the connection: new, established, related, invalid; absent matches every state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "states_schema", default)]
    pub state: Vec<&'static str>,
    /// Interfaces on which the packet arrives; absent matches every interface.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub interfaces: Vec<String>,
    /// A rule that is switched off is kept and never matches.
    #[schemars(default = "yes")]
    pub enabled: bool,
    /// Record each packet that matches.
    #[schemars(default)]
    pub log: bool,
    /// Free text for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256), default)]
    pub description: String,
}

fn action_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "string", "enum": ["allow", "pass", "deny", "drop", "block", "log"] })
}

fn number_or_text_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": ["string", "integer"] })
}

fn states_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let words = State::ALL.map(State::name);
    schemars::json_schema!({
        "type": "array", "items": { "type": "string", "enum": words }, "minItems": 1, "uniqueItems": true
    })
}

impl From<&Rule> for RuleText {
    fn from(rule: &Rule) -> RuleText {
        let states = State::ALL.into_iter().filter(|&state| !rule.states.is_any() && rule.states.contains(state));
        RuleText {
            id: rule.id.clone(),
            priority: rule.priority,
            action: rule.action.name(),
            protocol: rule.protocol.to_string(),
            src_ip: rule.src_ip.map(|net| net.to_string()),
            dst_ip: rule.dst_ip.map(|net| net.to_string()),
            src_port: rule.src_port.map(|range| range.to_string()),
            dst_port: rule.dst_port.map(|range| range.to_string()),
            vlan_id: rule.vlan_id,
            tcp_flags: rule.tcp_flags.map(|flags| flags.to_string()),
            icmp_type: rule.icmp_type,
            icmp_code: rule.icmp_code,
            state: states.map(State::name).collect(),
            interfaces: rule.interfaces.clone(),
            enabled: rule.enabled,
            log: rule.log,
            description: rule.description.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rule::TcpFlags;
    use super::*;

    fn messages(body: &str) -> Vec<String> {
        read_rule_json(body.as_bytes()).map_or_else(|e| e.iter().map(ToString::to_string).collect(), |_| Vec::new())
    }

    #[test]
    fn a_body_is_read_like_a_file() {
        let rule = r#"{"id":"fw-block-ssh","priority":10,"action":"drop","protocol":"tcp","dst_port":22}"#;
        let read = read_rule_json(rule.as_bytes()).unwrap();
        assert_eq!((read.action, read.dst_port), (Action::Deny, Some(PortRange { low: 22, high: 22 })));
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
        let many = |body: &str| read_rules_json(body.as_bytes()).unwrap_err()[0].to_string();
        assert_eq!(many(&format!("[{rule},{rule}]")), "[1].id: \"fw-block-ssh\" is already the id of [0]");
        assert_eq!(many("[]"), "no rule in it");
        assert_eq!(many("[1]"), "[0]: expected an object, found the integer 1");
        assert_eq!(many("7"), "expected an object, found the integer 7");
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

    #[test]
    fn clashes_with_the_surroundings() {
        let body = r#"{"id":"a","priority":1,"action":"deny","state":["new"],"interfaces":["eth1","eht0"]}"#;
        let rule = read_rule_json(body.as_bytes()).unwrap();
        assert_eq!(rule.clashes(Surroundings::default()), []);
        let known = ["eth0".to_owned(), "eth1".to_owned()];
        let clashes = rule.clashes(Surroundings { stateful: Some(false), interfaces: Some(&known) });
        assert_eq!(clashes.len(), 2);
        assert_eq!(clashes[1].1, "\"eht0\" is not among agent.interfaces (eth0, eth1); did you mean eth0?");
    }

    fn network(v4: bool) -> impl Strategy<Value = IpNet> {
        (any::<u128>(), 0..=128u8).prop_map(move |(bits, prefix)| {
            let address = if v4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6((bits | 1 << 127).into()) };
            IpNet::new(address, if v4 { prefix % 33 } else { prefix }).unwrap().trunc()
        })
    }

    fn ports() -> impl Strategy<Value = Option<PortRange>> {
        prop::option::of((any::<u16>(), any::<u16>()).prop_map(|(a, b)| PortRange { low: a.min(b), high: a.max(b) }))
    }

    prop_compose! {
        /// Any rule that can be written.
        fn rule()(
            id in "[A-Za-z0-9_-]{1,64}",
            priority in 1..=u32::MAX,
            (enabled, log) in any::<(bool, bool)>(),
            action in prop::sample::select(vec![Action::Allow, Action::Deny, Action::Log]),
            number in prop::option::of(prop::sample::select(vec![1u8, 6, 17, 58, 132, 136, 0, 47, 255])),
            (src, dst) in any::<bool>().prop_flat_map(|v4| (prop::option::of(network(v4)), prop::option::of(network(v4)))),
            (src_port, dst_port) in (ports(), ports()),
            vlan_id in prop::option::of(0..=4094u16),
            flags in prop::option::of((any::<u8>(), 1..=255u8)),
            (icmp_type, icmp_code) in any::<(Option<u8>, Option<u8>)>(),
            states in 0..16u8,
            interfaces in prop::collection::btree_set("[a-z0-9.@-]{2,15}".prop_filter("not ..", |name| name != ".."), 0..4),
            description in "\\PC{0,256}",
        ) -> Rule {
            let protocol = number.map_or(Protocol::Any, Protocol::Number);
            let v4 = src.or(dst).map(|net: IpNet| net.addr().is_ipv4());
            let protocol = match (protocol, v4) {
                (Protocol::Number(proto::ICMP), Some(false)) => Protocol::Number(proto::ICMPV6),
                (Protocol::Number(proto::ICMPV6), Some(true)) => Protocol::Number(proto::ICMP),
                _ => protocol,
            };
            let icmp_type = icmp_type.filter(|_| is_icmp(protocol));
            Rule {
                id,
                priority,
                enabled,
                action,
                log: log || action == Action::Log,
                protocol,
                src_ip: src,
                dst_ip: dst,
                src_port: src_port.filter(|_| has_ports(protocol)),
                dst_port: dst_port.filter(|_| has_ports(protocol)),
                vlan_id,
                tcp_flags: flags
                    .filter(|_| protocol == Protocol::Number(proto::TCP))
                    .map(|(set, mask)| TcpFlags { set: set & mask, mask }),
                icmp_type,
                icmp_code: icmp_code.filter(|_| icmp_type.is_some()),
                states: States(states),
                interfaces: interfaces.into_iter().collect(),
                description,
            }
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
