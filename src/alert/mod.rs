//! Alerts: what an engine tells people. The router folds repeats, throttles sources, and hands what is left to the sinks.

mod alerting;
pub mod config;
pub mod facts;
pub mod hub;
mod route;
mod router;
pub mod sinks;
mod suppress;
mod throttle;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use crate::classify::matching::letters_of_flags;
use crate::component::Component;
use crate::logging::rfc3339;

pub use alerting::{Alerting, Start};
pub use route::{Filter, Route, RulePattern};
pub use router::{AlertSender, Limits, Router, queue};
pub use suppress::{Full, SUPPRESSIONS_MAX, Suppression, Suppressions};
pub use throttle::WITHHELD;

/// How bad it is, from the mildest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a look some day.
    Low,
    /// Worth a look today.
    Medium,
    /// Someone should look now.
    High,
    /// Someone should be woken.
    Critical,
}

impl Severity {
    /// The words of the configuration.
    pub const WORDS: &'static [(&'static str, Severity)] = &[
        ("low", Severity::Low),
        ("medium", Severity::Medium),
        ("high", Severity::High),
        ("critical", Severity::Critical),
    ];

    /// The names of all, from the mildest on.
    pub const NAMES: &'static [&'static str] = &["low", "medium", "high", "critical"];

    /// The word in JSON, metrics and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

impl FromStr for Severity {
    type Err = String;

    fn from_str(s: &str) -> Result<Severity, String> {
        let found = Severity::WORDS.iter().find(|(word, _)| *word == s).map(|(_, severity)| *severity);
        found.ok_or_else(|| format!("\"{s}\" is not a severity; use low, medium, high or critical"))
    }
}

/// Names one alert among those of all agents: a UUID of version 7 (RFC 9562, 5.7). Those of one process are ordered by
/// when they were made, and so are those of several, to the millisecond, as far as their clocks agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AlertId(pub Uuid);

impl AlertId {
    /// An id greater than every one that this process made before.
    pub fn next() -> AlertId {
        AlertId(Uuid::now_v7())
    }
}

impl fmt::Display for AlertId {
    /// 36 characters: lower case, with hyphens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for AlertId {
    type Err = String;

    /// The one form in which an id is shown; upper case is taken, too.
    fn from_str(s: &str) -> Result<AlertId, String> {
        let parsed = if s.len() == uuid::fmt::Hyphenated::LENGTH { Uuid::try_parse(s).ok() } else { None };
        parsed.map(AlertId).ok_or_else(|| {
            let shown: String = s.chars().take(60).collect();
            format!(
                "\"{}\" is not the id of an alert, such as 019ad3c1-5b7e-7c40-9c1e-6f2f1d0a4b33",
                shown.escape_debug()
            )
        })
    }
}

/// One alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// Unique; an update has the id of the alert that it updates.
    pub id: AlertId,
    /// When it first happened, in nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// Who noticed.
    pub component: Component,
    /// How bad it is.
    pub severity: Severity,
    /// The rule of the component that matched, or the name of the check.
    pub rule_id: Arc<str>,
    /// What the rule is a sign of: ids of MITRE ATT&CK techniques, such as T1190.
    pub mitre: Vec<Arc<str>>,
    /// What was done with the packet, in the component's own word.
    pub action: &'static str,
    /// The packet's source address.
    pub src_ip: Option<IpAddr>,
    /// The packet's source port.
    pub src_port: Option<u16>,
    /// The packet's destination address.
    pub dst_ip: Option<IpAddr>,
    /// The packet's destination port.
    pub dst_port: Option<u16>,
    /// IP protocol number; written as a word where it has one.
    pub protocol: Option<u8>,
    /// Outer VLAN id, if the frame was tagged.
    pub vlan_id: Option<u16>,
    /// Flags of TCP; written as letters.
    pub tcp_flags: Option<u8>,
    /// Length of the frame.
    pub bytes: Option<u32>,
    /// Name of the interface.
    pub interface: Option<String>,
    /// Where the packet goes next: a gateway, or its destination.
    pub next_hop: Option<IpAddr>,
    /// Name of the interface by which it leaves.
    pub out_interface: Option<String>,
    /// Which way the first packet of the flow went, seen from this host: `ingress` or `egress`.
    pub direction: Option<&'static str>,
    /// The flow's Community ID, by which other tools name the same flow.
    pub community_id: Option<String>,
    /// The process of this host that has an end of the flow: its id and its command line.
    pub process: Option<(u32, String)>,
    /// The protocol above, by the word of [`AppProto::name`](crate::packet::proto::AppProto::name).
    pub app_proto: Option<&'static str>,
    /// What that protocol told; see [`facts`].
    pub facts: Vec<facts::NamedFact>,
    /// The key of the rule that the bytes below met.
    pub matched_field: Option<Arc<str>>,
    /// The bytes that matched, escaped.
    pub matched: Option<String>,
    /// For people, one line.
    pub message: String,
    /// How many events it stands for up to now.
    pub count: u64,
    /// When the first of them was: [`timestamp_ns`](Alert::timestamp_ns).
    pub first_seen_ns: u64,
    /// When the last of them was.
    pub last_seen_ns: u64,
    /// 0 when it is told for the first time, then one more with each update. Who keeps alerts keeps, for an id, what came
    /// with the greatest revision.
    pub revision: u32,
}

impl Alert {
    /// An alert without a packet; the fields of one are set after.
    pub fn new(
        component: Component,
        severity: Severity,
        rule_id: impl Into<Arc<str>>,
        action: &'static str,
        timestamp_ns: u64,
        message: impl Into<String>,
    ) -> Alert {
        Alert {
            id: AlertId::next(),
            timestamp_ns,
            component,
            severity,
            rule_id: rule_id.into(),
            mitre: Vec::new(),
            action,
            src_ip: None,
            src_port: None,
            dst_ip: None,
            dst_port: None,
            protocol: None,
            vlan_id: None,
            tcp_flags: None,
            bytes: None,
            interface: None,
            next_hop: None,
            out_interface: None,
            direction: None,
            community_id: None,
            process: None,
            app_proto: None,
            facts: Vec::new(),
            matched_field: None,
            matched: None,
            message: message.into(),
            count: 1,
            first_seen_ns: timestamp_ns,
            last_seen_ns: timestamp_ns,
            revision: 0,
        }
    }

    /// The fields in the order in which every sink writes them; those that are absent are left out.
    pub fn fields(&self) -> Vec<(&'static str, Field<'_>)> {
        let mut fields = vec![
            ("id", Field::Text(self.id.to_string().into())),
            ("timestamp", Field::Text(rfc3339(self.timestamp_ns).into())),
            ("timestamp_ns", Field::Number(self.timestamp_ns)),
            ("component", Field::Text(self.component.name().into())),
            ("severity", Field::Text(self.severity.name().into())),
            ("rule_id", Field::Text(self.rule_id.as_ref().into())),
        ];
        fields.extend((!self.mitre.is_empty()).then_some(("mitre", Field::List(&self.mitre))));
        fields.push(("action", Field::Text(self.action.into())));
        let address = |address: IpAddr| Field::Text(address.to_string().into());
        let port = |port: u16| Field::Number(port.into());
        fields.extend(self.src_ip.map(|ip| ("src_ip", address(ip))));
        fields.extend(self.src_port.map(|number| ("src_port", port(number))));
        fields.extend(self.dst_ip.map(|ip| ("dst_ip", address(ip))));
        fields.extend(self.dst_port.map(|number| ("dst_port", port(number))));
        fields.extend(self.protocol.map(|number| ("protocol", Field::Text(protocol_name(number)))));
        fields.extend(self.vlan_id.map(|id| ("vlan_id", port(id))));
        fields.extend(self.tcp_flags.map(|flags| ("tcp_flags", Field::Text(letters_of_flags(flags).into()))));
        fields.extend(self.bytes.map(|bytes| ("bytes", Field::Number(bytes.into()))));
        fields.extend(self.interface.as_deref().map(|name| ("interface", Field::Text(name.into()))));
        fields.extend(self.next_hop.map(|ip| ("next_hop", address(ip))));
        fields.extend(self.out_interface.as_deref().map(|name| ("out_interface", Field::Text(name.into()))));
        fields.extend(self.direction.map(|word| ("direction", Field::Text(word.into()))));
        fields.extend(self.community_id.as_deref().map(|id| ("community_id", Field::Text(id.into()))));
        if let Some((pid, command)) = &self.process {
            fields.push(("pid", Field::Number((*pid).into())));
            fields.push(("command", Field::Text(command.as_str().into())));
        }
        fields.extend(self.app_proto.map(|word| ("app_proto", Field::Text(word.into()))));
        fields.extend(self.facts.iter().map(|(name, text)| (*name, Field::Text(text.as_str().into()))));
        fields.extend(self.matched_field.as_deref().map(|name| ("matched_field", Field::Text(name.into()))));
        fields.extend(self.matched.as_deref().map(|text| ("matched", Field::Text(text.into()))));
        fields.push(("message", Field::Text(self.message.as_str().into())));
        fields.push(("count", Field::Number(self.count)));
        fields.push(("first_seen", Field::Text(rfc3339(self.first_seen_ns).into())));
        fields.push(("last_seen", Field::Text(rfc3339(self.last_seen_ns).into())));
        fields.extend((self.revision > 0).then_some(("revision", Field::Number(self.revision.into()))));
        fields
    }
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// Text.
    Text(Cow<'a, str>),
    /// A number.
    Number(u64),
    /// Several texts, at least one.
    List(&'a [Arc<str>]),
}

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Field::Text(text) => serializer.serialize_str(text),
            Field::Number(number) => serializer.serialize_u64(*number),
            Field::List(texts) => serializer.collect_seq(texts.iter().map(|text| &**text)),
        }
    }
}

impl Serialize for Alert {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields = self.fields();
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for (key, value) in &fields {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

fn protocol_name(number: u8) -> Cow<'static, str> {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        other => other.to_string().into(),
    }
}

/// The number of a protocol, from what [`Alert::fields`] writes for it.
pub fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "icmp" => Some(1),
        "tcp" => Some(6),
        "udp" => Some(17),
        "icmpv6" => Some(58),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_alert_in_json_has_addresses_as_text_and_its_times() {
        let mut alert = Alert::new(Component::Firewall, Severity::High, "ssh", "deny", 1_500_000_000, "ssh from afar");
        alert.src_ip = Some("2001:db8::7".parse().unwrap());
        alert.src_port = Some(40_000);
        alert.dst_port = Some(22);
        alert.protocol = Some(6);
        let json = serde_json::to_string(&alert).unwrap();
        assert_eq!(
            json,
            format!(
                "{{\"id\":\"{}\",\"timestamp\":\"1970-01-01T00:00:01.500000000Z\",\"timestamp_ns\":1500000000,\
                 \"component\":\"firewall\",\"severity\":\"high\",\"rule_id\":\"ssh\",\"action\":\"deny\",\
                 \"src_ip\":\"2001:db8::7\",\"src_port\":40000,\"dst_port\":22,\"protocol\":\"tcp\",\
                 \"message\":\"ssh from afar\",\"count\":1,\"first_seen\":\"1970-01-01T00:00:01.500000000Z\",\
                 \"last_seen\":\"1970-01-01T00:00:01.500000000Z\"}}",
                alert.id
            )
        );
    }

    #[test]
    fn an_update_says_which_and_until_when() {
        let alert = Alert {
            mitre: vec!["T1110".into(), "T1190.001".into()],
            count: 7,
            last_seen_ns: 2_000_000_000,
            revision: 3,
            ..Alert::new(Component::L7, Severity::Low, "r", "log", 1_000_000_000, "m")
        };
        let json = serde_json::to_value(&alert).unwrap();
        assert_eq!(json["mitre"], serde_json::json!(["T1110", "T1190.001"]));
        assert_eq!((&json["count"], &json["revision"]), (&7.into(), &3.into()));
        assert_eq!(json["first_seen"], "1970-01-01T00:00:01.000000000Z");
        assert_eq!(json["last_seen"], "1970-01-01T00:00:02.000000000Z");
    }

    #[test]
    fn ids_are_unique_across_threads_and_in_order_within_one() {
        let make = || std::thread::spawn(|| (0..1000).map(|_| AlertId::next()).collect::<Vec<_>>());
        let ids: Vec<Vec<AlertId>> =
            [make(), make(), make(), make()].into_iter().map(|thread| thread.join().unwrap()).collect();
        for of_one in &ids {
            assert!(of_one.is_sorted(), "{of_one:?}");
        }
        let texts: HashSet<String> = ids.concat().iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 4000);
    }

    #[test]
    fn an_id_reads_back_and_nothing_else_does() {
        let id = AlertId::next();
        let text = id.to_string();
        assert_eq!((text.len(), text.as_bytes()[14]), (36, b'7'), "{text}");
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(text.to_uppercase().parse(), Ok(id));
        let simple = text.replace('-', "");
        for wrong in ["", "alert-001", &simple, &format!("{{{text}}}"), &format!("urn:uuid:{text}"), &text[1..]] {
            let error = wrong.parse::<AlertId>().unwrap_err();
            assert!(error.contains("is not the id of an alert"), "{error}");
        }
    }

    #[test]
    fn severities_are_ordered_and_read_back() {
        assert!(Severity::Low < Severity::Medium && Severity::High < Severity::Critical);
        assert_eq!("high".parse(), Ok(Severity::High));
        assert!("urgent".parse::<Severity>().unwrap_err().contains("use low, medium, high or critical"));
    }
}
