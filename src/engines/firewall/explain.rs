//! A packet in words, put to the live program: what would be done to it, and why.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use crate::abi::{fw_answer, fw_answered, fw_exception, fw_state};
use crate::classify::matching::{PortRange, Protocol, State, TcpFlags, proto};
use crate::event::{Outcome, Reason, UNPARSABLE};
use crate::packet::build::Packet;
use crate::written::{Document, WrittenError};

/// A packet as a person describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; also the identifier of an ICMP echo.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// VLAN id; 0 when untagged.
    pub vlan_id: u16,
    /// Interface on which it arrives; the first one of the agent when absent.
    pub interface: Option<String>,
    /// Flags of TCP as bits.
    pub tcp_flags: u8,
    /// Type of ICMP; an echo request when absent.
    pub icmp_type: Option<u8>,
    /// Code of ICMP.
    pub icmp_code: u8,
}

/// The body of a question, for the API's description.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "described, never built: the body is read by Question::read")]
pub struct QuestionText {
    /// Source address.
    src_ip: String,
    /// Destination address.
    dst_ip: String,
    /// `tcp`, `udp`, `icmp`, `icmpv6` or a number; `tcp` when absent.
    #[schemars(schema_with = "protocol_schema")]
    protocol: Option<String>,
    /// Source port; 40000 when absent.
    src_port: Option<u16>,
    /// Destination port.
    dst_port: Option<u16>,
    /// VLAN id; 0 is untagged.
    #[schemars(range(max = 4094))]
    vlan_id: Option<u16>,
    /// Interface on which it arrives; the first one of the agent when absent.
    interface: Option<String>,
    /// TCP flags such as `S` or `SA`; `S` when absent.
    tcp_flags: Option<String>,
    /// ICMP type.
    icmp_type: Option<u8>,
    /// ICMP code.
    icmp_code: Option<u8>,
}

fn protocol_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": ["string", "integer", "null"], "default": null })
}

impl Question {
    /// Reads a JSON body.
    pub fn read(body: &[u8]) -> Result<Question, Vec<WrittenError>> {
        let document = Document::json(body)?;
        let read = |root: crate::written::Field<'_>| {
            let mut r = root.table()?;
            let (src, dst_field) = (r.key("src_ip").required().parse::<IpAddr>(), r.key("dst_ip").required());
            let dst = dst_field.parse::<IpAddr>();
            let protocol_field = r.key("protocol");
            let protocol = match protocol_field.parse_or_integer::<Protocol>() {
                Some(Protocol::Number(number)) => number,
                Some(Protocol::Any) => {
                    protocol_field.error("a packet has one protocol; use tcp, udp, icmp, icmpv6 or a number");
                    proto::TCP
                }
                None => proto::TCP,
            };
            let port = |field: crate::written::Field<'_>, default: u16| match field.parse_or_integer::<PortRange>() {
                Some(range) if range.low != range.high => {
                    field.error("a packet has one port, not a range");
                    range.low
                }
                Some(range) => range.low,
                None => default,
            };
            let (src_port, dst_port) = (port(r.key("src_port"), 40_000), port(r.key("dst_port"), 0));
            let vlan_id = r.key("vlan_id").integer(0..=4094u16).unwrap_or(0);
            let interface = r.key("interface").text().map(str::to_owned);
            let tcp_flags = r.key("tcp_flags").parse::<TcpFlags>().map_or(2, |flags| flags.set);
            let icmp_type = r.key("icmp_type").integer(0..=255u8);
            let icmp_code = r.key("icmp_code").integer(0..=255u8).unwrap_or(0);
            r.finish();
            let (src, dst) = (src?, dst?);
            if src.is_ipv4() != dst.is_ipv4() {
                dst_field.error(format!("{dst} and the source {src} are of different families"));
            }
            Some(Question {
                src,
                dst,
                protocol,
                src_port,
                dst_port,
                vlan_id,
                interface,
                tcp_flags,
                icmp_type,
                icmp_code,
            })
        };
        document.read(read).into_result()?.ok_or_else(|| vec![WrittenError::whole("", "not a packet")])
    }

    /// The frame that the question describes; `None` when the addresses are of different families.
    pub fn frame(&self) -> Option<Vec<u8>> {
        let mut packet = Packet::new();
        if self.vlan_id != 0 {
            packet = packet.vlan(self.vlan_id);
        }
        packet = packet.ip(self.src, self.dst)?;
        let icmp = if self.src.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
        packet = match self.protocol {
            proto::TCP => packet.tcp(self.src_port, self.dst_port).flags(self.tcp_flags),
            proto::UDP => packet.udp(self.src_port, self.dst_port),
            number if number == icmp => match self.icmp_type {
                Some(kind) => packet.icmp(kind, self.icmp_code).rest(u32::from(self.src_port) << 16),
                None => packet.ping(self.src_port, 1),
            },
            number => {
                // Ports of SCTP and UDP-Lite stand where those of UDP do; all others carry what nobody looks at.
                let mut body = vec![0u8; 32];
                body[..2].copy_from_slice(&self.src_port.to_be_bytes());
                body[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
                packet.protocol(number).payload(&body)
            }
        };
        Some(packet.build())
    }
}

/// A question that was put to the program, for others who judge the same packet.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The answer.
    pub explanation: Explanation,
    /// The frame that was asked about.
    pub frame: Vec<u8>,
    /// The interface on which it was taken to arrive; 0: none in particular.
    pub ifindex: u32,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Explanation {
    /// `pass`, `drop`, or `would_drop` (passed because of `mode = "alert"`).
    pub verdict: &'static str,
    /// What decided: `rule`, `default_policy`, `state`, `exception`, `unparsable`, `fragment`,
    /// `rp_filter`.
    pub decided_by: &'static str,
    /// The rule, when one decided.
    pub rule: Option<String>,
    /// State of the connection, if it was looked up: `new`, `established`, `related`, `invalid`.
    pub state: Option<&'static str>,
    /// The exception that let it pass: `link_control`, `neighbour_discovery`, `dhcp`, `anti_lockout`.
    pub exception: Option<&'static str>,
    /// Why it cannot be parsed.
    pub unparsable: Option<&'static str>,
    /// Interface on which it was taken to arrive.
    pub interface: String,
    /// Generation of the rules that answered.
    pub generation: u32,
    /// All of it in a sentence.
    pub text: String,
}

impl Explanation {
    /// Puts the program's answer into words. `rule` names a slot.
    pub fn new(answered: &fw_answered, interface: &str, rule: impl Fn(u16) -> Option<String>) -> Option<Explanation> {
        let verdict = Outcome::of(answered.verdict)?;
        let reason = Reason::of(answered.reason)?;
        let rule = (matches!(reason, Reason::Rule | Reason::Fragment)
            && answered.answer & fw_answer::FW_NO_MATCH.0 == 0)
            .then(|| rule((answered.answer & fw_answer::FW_SLOT_MASK.0) as u16))
            .flatten();
        let state = State::ALL.into_iter().find(|state| *state as u8 == answered.state).map(State::name);
        debug_assert!(u32::from(answered.state) == fw_state::FW_STATE_UNKNOWN.0 || state.is_some());
        let exception = match fw_exception(answered.exception.into()) {
            fw_exception::FW_LINK_CONTROL => Some("link_control"),
            fw_exception::FW_NEIGHBOUR => Some("neighbour_discovery"),
            fw_exception::FW_DHCP => Some("dhcp"),
            fw_exception::FW_GUARD => Some("anti_lockout"),
            _ => None,
        };
        let unparsable =
            (answered.unparsable != 0).then(|| UNPARSABLE.get(usize::from(answered.unparsable)).copied()).flatten();
        let because = match (reason, &rule, exception, unparsable, state) {
            (Reason::RpFilter, ..) => {
                format!("nobody with its source can be behind {interface}, by the host's routes (firewall.rp_filter)")
            }
            (_, Some(rule), ..) => format!("rule {rule} matches"),
            (Reason::Policy, .., Some(state)) => {
                format!("no rule matches a {state} connection's packet, so the default policy decides")
            }
            (Reason::Policy, ..) => "no rule matches, so the default policy decides".to_owned(),
            (Reason::State, ..) => "no rule matches, and it answers a connection that this host opened".to_owned(),
            (_, _, Some(exception), ..) => format!("it is an exception that no rule can close ({exception})"),
            (_, _, _, Some(why), _) => format!("it cannot be parsed ({why}), so firewall.unparsable decides"),
            _ => "it follows its first fragment".to_owned(),
        };
        let fate = match verdict {
            Outcome::Passed => "passes",
            Outcome::Dropped => "is dropped",
            Outcome::WouldDrop => "passes only because mode is \"alert\"; it would be dropped",
        };
        Some(Explanation {
            verdict: verdict.name(),
            decided_by: reason.name(),
            rule,
            state,
            exception,
            unparsable,
            interface: interface.to_owned(),
            generation: answered.generation,
            text: format!("The packet {fate}: {because}."),
        })
    }
}
