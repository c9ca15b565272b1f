//! The keys of a match, the same in the rules of every engine, and in TOML, in JSON bodies and replies, and on the
//! command line.
//!
//! What a rule asks for must be able to happen: ports with a protocol that has none, an ICMP rule with IPv6 addresses
//! or a state while `stateful` is off are errors, not rules that never match.

use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Serialize;

use super::keys::{read_icmp_type, read_interfaces, read_network, read_states};
use super::matching::{Match, Protocol, State, States, TcpFlags, proto};
use crate::written::{Field, Reader, did_you_mean};

/// What rules are checked against beyond themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings<'s> {
    /// `firewall.stateful`; `None` when it is not known here.
    pub stateful: Option<bool>,
    /// `agent.interfaces`; `None` when they are not known here.
    pub interfaces: Option<&'s [String]>,
}

/// A match as it was read, and the keys that its conditions came from.
pub struct WrittenMatch<'r> {
    /// The conditions; of no use if there are errors.
    pub matches: Match,
    /// A protocol that could not be read is an error already; what depends on it is not judged.
    is_protocol_known: bool,
    protocol: Field<'r>,
    src_ip: Field<'r>,
    dst_ip: Field<'r>,
    src_port: Field<'r>,
    dst_port: Field<'r>,
    tcp_flags: Field<'r>,
    icmp_type: Field<'r>,
    icmp_code: Field<'r>,
    /// Present where later fragments are judged for themselves.
    fragment: Option<Field<'r>>,
    /// Absent where no connection is known.
    state: Option<Field<'r>>,
    interfaces: Field<'r>,
}

impl<'r> WrittenMatch<'r> {
    /// Reads each key by itself but `fragment`: later fragments follow the first one.
    pub fn read(r: &mut Reader<'r>) -> WrittenMatch<'r> {
        WrittenMatch::read_keys(r, true)
    }

    /// Reads each key by itself but `state`, and `fragment`, where no connection is known and no fragment follows another.
    pub fn read_stateless(r: &mut Reader<'r>) -> WrittenMatch<'r> {
        WrittenMatch::read_keys(r, false)
    }

    fn read_keys(r: &mut Reader<'r>, with_state: bool) -> WrittenMatch<'r> {
        let protocol_field = r.key("protocol");
        let known_protocol = protocol_field.parse_or_integer::<Protocol>();
        let protocol = known_protocol.unwrap_or_default();
        let (src_ip, dst_ip) = (r.key("src_ip"), r.key("dst_ip"));
        let (src_port, dst_port) = (r.key("src_port"), r.key("dst_port"));
        let vlan_id = r.key("vlan_id");
        let tcp_flags = r.key("tcp_flags");
        let (icmp_type, icmp_code) = (r.key("icmp_type"), r.key("icmp_code"));
        let fragment = (!with_state).then(|| r.key("fragment"));
        let state = with_state.then(|| r.key("state"));
        let interfaces = r.key("interfaces");
        let matches = Match {
            protocol,
            src_ip: read_network(&src_ip),
            dst_ip: read_network(&dst_ip),
            src_port: src_port.parse_or_integer(),
            dst_port: dst_port.parse_or_integer(),
            vlan_id: vlan_id.integer(0..=4094u16),
            tcp_flags: tcp_flags.parse(),
            icmp_type: read_icmp_type(&icmp_type, protocol),
            icmp_code: icmp_code.integer(0..=255u8),
            fragment: fragment.as_ref().and_then(Field::boolean),
            states: state.as_ref().map_or(States::ANY, read_states),
            interfaces: read_interfaces(&interfaces, usize::MAX).unwrap_or_default(),
        };
        WrittenMatch {
            matches,
            is_protocol_known: known_protocol.is_some() || !protocol_field.is_present(),
            protocol: protocol_field,
            src_ip,
            dst_ip,
            src_port,
            dst_port,
            tcp_flags,
            icmp_type,
            icmp_code,
            fragment,
            state,
            interfaces,
        }
    }

    /// Notes conditions that no packet can meet together.
    pub fn check(&self) {
        self.check_families();
        if self.is_protocol_known {
            self.check_protocol();
        }
        if self.icmp_code.is_present() && !self.icmp_type.is_present() {
            self.icmp_code.error("needs icmp_type: a code has a meaning only with its type");
        }
        self.check_icmp_family();
        self.check_fragment();
    }

    /// Makes the match be about the SYNs among its packets, as `who` needs it; notes what speaks against that.
    pub fn take_syns_only(&mut self, who: &str) {
        if self.is_protocol_known && self.matches.protocol != Protocol::Number(proto::TCP) {
            let protocol = self.matches.protocol;
            self.protocol.error(format!("{who} needs protocol = \"tcp\"; it is \"{protocol}\""));
        }
        if self.tcp_flags.is_present() {
            self.tcp_flags.error(format!("{who} looks at SYNs by itself; remove tcp_flags"));
        }
        self.matches.tcp_flags = Some(TcpFlags::SYN);
    }

    /// Notes what the match asks for and its surroundings do not give.
    pub fn check_surroundings(&self, surroundings: Surroundings<'_>) {
        for (key, message) in self.matches.clashes(surroundings) {
            let field = if key == "state" { self.state.as_ref() } else { None };
            field.unwrap_or(&self.interfaces).error(message);
        }
    }

    fn check_families(&self) {
        if let (Some(src), Some(dst)) = (self.matches.src_ip, self.matches.dst_ip)
            && src.addr().is_ipv4() != dst.addr().is_ipv4()
        {
            let family = |net: IpNet| if net.addr().is_ipv4() { "IPv4" } else { "IPv6" };
            self.dst_ip.error(format!(
                "{dst} is {}, but src_ip {src} is {}; a rule has one family, so write two rules",
                family(dst),
                family(src)
            ));
        }
    }

    /// What only some protocols have.
    fn check_protocol(&self) {
        let Match { protocol, src_port, dst_port, tcp_flags, icmp_type, .. } = self.matches;
        for (field, port) in [(&self.src_port, src_port), (&self.dst_port, dst_port)] {
            if port.is_some() && !protocol.has_ports() {
                field.error(format!(
                    "protocol {protocol} has no ports; ports go with tcp, udp, 132 (SCTP), 136 (UDP-Lite) or any"
                ));
            }
        }
        if tcp_flags.is_some() && protocol != Protocol::Number(proto::TCP) {
            self.tcp_flags.error(format!("needs protocol = \"tcp\"; it is \"{protocol}\""));
        }
        if icmp_type.is_some() && !protocol.is_icmp() {
            self.icmp_type.error(format!("needs protocol = \"icmp\" or \"icmpv6\"; it is \"{protocol}\""));
        }
    }

    /// What a later fragment does not have.
    fn check_fragment(&self) {
        let fields = [&self.src_port, &self.dst_port, &self.tcp_flags, &self.icmp_type];
        if let (Some(true), Some(fragment)) = (self.matches.fragment, &self.fragment)
            && fields.iter().any(|field| field.is_present())
        {
            fragment.error("only the first fragment has ports, flags or an ICMP type; remove these keys or fragment");
        }
    }

    /// ICMP is IPv4's, ICMPv6 is IPv6's.
    fn check_icmp_family(&self) {
        let (field, net) = match (self.matches.src_ip, self.matches.dst_ip) {
            (Some(net), _) => (&self.src_ip, net),
            (None, Some(net)) => (&self.dst_ip, net),
            (None, None) => return,
        };
        match (self.matches.protocol, net.addr()) {
            (Protocol::Number(proto::ICMP), IpAddr::V6(_)) => {
                field.error(format!("{net} is IPv6, but protocol icmp is IPv4's; write protocol = \"icmpv6\""));
            }
            (Protocol::Number(proto::ICMPV6), IpAddr::V4(_)) => {
                field.error(format!("{net} is IPv4, but protocol icmpv6 is IPv6's; write protocol = \"icmp\""));
            }
            _ => {}
        }
    }
}

impl Match {
    /// What the match asks for and its surroundings do not give, as key and message.
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

fn any_protocol() -> String {
    Protocol::Any.to_string()
}

/// A match as it is shown, and as a body describes it: some of the keys of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MatchText {
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
    /// true: only fragments after the first one of their datagram; false: all but those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment: Option<bool>,
    /// States of the connection: new, established, related, invalid; absent matches every state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "states_schema", default)]
    pub state: Vec<&'static str>,
    /// Interfaces on which the packet arrives; absent matches every interface.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub interfaces: Vec<String>,
}

/// What [`Field::parse_or_integer`] takes.
pub fn number_or_text_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": ["string", "integer"] })
}

fn states_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let words = State::ALL.map(State::name);
    schemars::json_schema!({
        "type": "array", "items": { "type": "string", "enum": words }, "minItems": 1, "uniqueItems": true
    })
}

impl From<&Match> for MatchText {
    fn from(matches: &Match) -> MatchText {
        let states = matches.states;
        let named = State::ALL.into_iter().filter(|&state| !states.is_any() && states.contains(state));
        MatchText {
            protocol: matches.protocol.to_string(),
            src_ip: matches.src_ip.map(|net| net.to_string()),
            dst_ip: matches.dst_ip.map(|net| net.to_string()),
            src_port: matches.src_port.map(|range| range.to_string()),
            dst_port: matches.dst_port.map(|range| range.to_string()),
            vlan_id: matches.vlan_id,
            tcp_flags: matches.tcp_flags.map(|flags| flags.to_string()),
            icmp_type: matches.icmp_type,
            icmp_code: matches.icmp_code,
            fragment: matches.fragment,
            state: named.map(State::name).collect(),
            interfaces: matches.interfaces.clone(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::matching::PortRange;
    use super::*;
    use crate::written::Document;

    fn read(body: &str) -> Match {
        let document = Document::json(body.as_bytes()).unwrap();
        let read = |mut r: Reader<'_>| {
            let written = WrittenMatch::read(&mut r);
            r.finish();
            written.check();
            written.matches
        };
        document.read(|root| root.table().map(read)).into_result().unwrap().unwrap()
    }

    #[test]
    fn clashes_with_the_surroundings() {
        let matches = read(r#"{"state":["new"],"interfaces":["eth1","eht0"]}"#);
        assert_eq!(matches.clashes(Surroundings::default()), []);
        let known = ["eth0".to_owned(), "eth1".to_owned()];
        let clashes = matches.clashes(Surroundings { stateful: Some(false), interfaces: Some(&known) });
        assert_eq!(clashes.len(), 2);
        assert_eq!(clashes[1].1, "\"eht0\" is not among agent.interfaces (eth0, eth1); did you mean eth0?");
    }

    fn maybe_network(v4: bool) -> impl Strategy<Value = Option<IpNet>> {
        prop::option::of((any::<u128>(), 0..=128u8).prop_map(move |(bits, prefix)| {
            let address = if v4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6((bits | 1 << 127).into()) };
            IpNet::new(address, if v4 { prefix % 33 } else { prefix }).unwrap().trunc()
        }))
    }

    fn interface_name() -> impl Strategy<Value = String> {
        "[a-z0-9.@-]{2,15}".prop_filter("not ..", |name| name != "..")
    }

    fn ports() -> impl Strategy<Value = Option<PortRange>> {
        prop::option::of((any::<u16>(), any::<u16>()).prop_map(|(a, b)| PortRange { low: a.min(b), high: a.max(b) }))
    }

    prop_compose! {
        /// Any match that can be written.
        pub(crate) fn any_match()(
            number in prop::option::of(prop::sample::select(vec![1u8, 6, 17, 58, 132, 136, 0, 47, 255])),
            (src, dst) in any::<bool>().prop_flat_map(|v4| (maybe_network(v4), maybe_network(v4))),
            (src_port, dst_port) in (ports(), ports()),
            vlan_id in prop::option::of(0..=4094u16),
            flags in prop::option::of((any::<u8>(), 1..=255u8)),
            (icmp_type, icmp_code) in any::<(Option<u8>, Option<u8>)>(),
            fragment in prop::option::of(any::<bool>()),
            states in 0..16u8,
            interfaces in prop::collection::btree_set(interface_name(), 0..4),
        ) -> Match {
            let protocol = number.map_or(Protocol::Any, Protocol::Number);
            let v4 = src.or(dst).map(|net: IpNet| net.addr().is_ipv4());
            let protocol = match (protocol, v4) {
                (Protocol::Number(proto::ICMP), Some(false)) => Protocol::Number(proto::ICMPV6),
                (Protocol::Number(proto::ICMPV6), Some(true)) => Protocol::Number(proto::ICMP),
                _ => protocol,
            };
            let icmp_type = icmp_type.filter(|_| protocol.is_icmp());
            Match {
                protocol,
                src_ip: src,
                dst_ip: dst,
                src_port: src_port.filter(|_| protocol.has_ports()),
                dst_port: dst_port.filter(|_| protocol.has_ports()),
                vlan_id,
                tcp_flags: flags
                    .filter(|_| protocol == Protocol::Number(proto::TCP))
                    .map(|(set, mask)| TcpFlags { set: set & mask, mask }),
                icmp_type,
                icmp_code: icmp_code.filter(|_| icmp_type.is_some()),
                fragment: fragment.filter(|later| !later || (src_port, dst_port, flags, icmp_type) == (None, None, None, None)),
                states: States(states),
                interfaces: interfaces.into_iter().collect(),
            }
        }
    }
}
