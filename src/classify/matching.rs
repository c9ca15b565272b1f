//! What a rule asks of a packet: every condition checked and in its own type, whatever the rule does with the packet.
//!
//! The text form of a whole match is read and shown in `text`; both directions of each single value stand here, beside
//! its type, so that what is shown can be typed back.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

/// An IP protocol number, or any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Every protocol.
    #[default]
    Any,
    /// One protocol by its IANA number.
    Number(u8),
}

/// IANA protocol numbers that have a meaning here.
pub mod proto {
    #![allow(missing_docs)]
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
    pub const UDPLITE: u8 = 136;
}

impl Protocol {
    /// Whether its packets have ports, or any protocol's may.
    pub const fn has_ports(self) -> bool {
        matches!(self, Protocol::Any | Protocol::Number(proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE))
    }

    /// Whether it is ICMP or ICMPv6.
    pub const fn is_icmp(self) -> bool {
        matches!(self, Protocol::Number(proto::ICMP | proto::ICMPV6))
    }
}

impl FromStr for Protocol {
    type Err = String;

    /// `tcp`, `udp`, `icmp`, `icmpv6`, `any` or `*`, or a number from 0 to 255.
    fn from_str(s: &str) -> Result<Protocol, String> {
        Ok(match s {
            "any" | "*" => Protocol::Any,
            "tcp" => Protocol::Number(proto::TCP),
            "udp" => Protocol::Number(proto::UDP),
            "icmp" => Protocol::Number(proto::ICMP),
            "icmpv6" => Protocol::Number(proto::ICMPV6),
            _ => Protocol::Number(s.parse().map_err(|_| {
                format!("\"{s}\" is not a protocol; use tcp, udp, icmp, icmpv6, any or a number from 0 to 255")
            })?),
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Protocol::Any => f.write_str("any"),
            Protocol::Number(proto::TCP) => f.write_str("tcp"),
            Protocol::Number(proto::UDP) => f.write_str("udp"),
            Protocol::Number(proto::ICMP) => f.write_str("icmp"),
            Protocol::Number(proto::ICMPV6) => f.write_str("icmpv6"),
            Protocol::Number(n) => write!(f, "{n}"),
        }
    }
}

/// An inclusive range of ports, host byte order, `low <= high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// First port of the range.
    pub low: u16,
    /// Last port of the range.
    pub high: u16,
}

impl PortRange {
    /// Whether `port` lies in the range.
    pub const fn contains(self, port: u16) -> bool {
        self.low <= port && port <= self.high
    }
}

impl FromStr for PortRange {
    type Err = String;

    /// `80` or `80-443`.
    fn from_str(s: &str) -> Result<PortRange, String> {
        let port = |text: &str| {
            text.parse::<u16>().map_err(|_| format!("\"{s}\" is not a port (0 to 65535) or a range such as 80-443"))
        };
        let (low, high) = match s.split_once('-') {
            Some((low, high)) => (port(low)?, port(high)?),
            None => (port(s)?, port(s)?),
        };
        if low > high {
            return Err(format!("\"{s}\" is empty: its first port is above its last"));
        }
        Ok(PortRange { low, high })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high { write!(f, "{}", self.low) } else { write!(f, "{}-{}", self.low, self.high) }
    }
}

/// TCP flags that must be set, among those looked at: `"S/SA"` is SYN set and ACK clear (pf's spelling).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpFlags {
    /// Flags that must be set; always a subset of `mask`.
    pub set: u8,
    /// Flags that are looked at. Bits as in the TCP header: F 1, S 2, R 4, P 8, A 16, U 32, E 64, W 128.
    pub mask: u8,
}

impl TcpFlags {
    /// A packet that opens a connection and does nothing else: SYN of S, A, R and F.
    pub const SYN: TcpFlags = TcpFlags { set: 0x02, mask: 0x17 };
}

const FLAG_LETTERS: &[u8; 8] = b"FSRPAUEW";

impl FromStr for TcpFlags {
    type Err = String;

    /// `set/mask` with the letters F S R P A U E W; without a mask every flag is looked at.
    fn from_str(s: &str) -> Result<TcpFlags, String> {
        let bits = |text: &str| {
            text.bytes().try_fold(0u8, |bits, letter| {
                let place = FLAG_LETTERS.iter().position(|&known| known == letter.to_ascii_uppercase());
                place.map(|place| bits | 1 << place).ok_or_else(|| {
                    format!("\"{s}\" is not a set of TCP flags; write set/mask with the letters F S R P A U E W, such as S/SA")
                })
            })
        };
        let (set, mask) = match s.split_once('/') {
            Some((set, mask)) => (bits(set)?, bits(mask)?),
            None => (bits(s)?, 0xff),
        };
        if set & !mask != 0 {
            return Err(format!("\"{s}\" can never match: a flag that must be set is not among those looked at"));
        }
        if mask == 0 {
            return Err(format!("\"{s}\" looks at no flag"));
        }
        Ok(TcpFlags { set, mask })
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", letters_of_flags(self.set), letters_of_flags(self.mask))
    }
}

/// Flags of a TCP header as letters: `SA` are SYN and ACK.
pub fn letters_of_flags(bits: u8) -> String {
    (0..8).filter(move |place| bits & 1 << place != 0).map(|place| FLAG_LETTERS[place] as char).collect()
}

/// State of the connection that a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// No connection is known, and the packet may open one.
    New = 0,
    /// The packet belongs to a known connection.
    Established = 1,
    /// An ICMP error about a known connection.
    Related = 2,
    /// No connection is known, and the packet cannot open one.
    Invalid = 3,
}

impl State {
    /// All states, by number.
    pub const ALL: [State; 4] = [State::New, State::Established, State::Related, State::Invalid];

    /// The word in config and events.
    pub const fn name(self) -> &'static str {
        match self {
            State::New => "new",
            State::Established => "established",
            State::Related => "related",
            State::Invalid => "invalid",
        }
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(s: &str) -> Result<State, String> {
        State::ALL
            .into_iter()
            .find(|state| state.name() == s)
            .ok_or_else(|| format!("\"{s}\" is not a connection state; use new, established, related or invalid"))
    }
}

/// A set of connection states; empty means any state, and then no state is looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct States(pub u8);

impl States {
    /// No condition on the state.
    pub const ANY: States = States(0);

    /// The set with `state` added.
    pub const fn with(self, state: State) -> States {
        States(self.0 | 1 << state as u8)
    }

    /// Whether the rule asks for a state at all.
    pub const fn is_any(self) -> bool {
        self.0 == 0
    }

    /// Whether a packet of `state` may match.
    pub const fn contains(self, state: State) -> bool {
        self.0 == 0 || self.0 & 1 << state as u8 != 0
    }
}

/// The conditions of a rule. Fields that are `None` or empty match everything, as the default does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// IP protocol.
    pub protocol: Protocol,
    /// Source network. The family of the addresses decides the family of the rule.
    pub src_ip: Option<IpNet>,
    /// Destination network; of the same family as `src_ip`.
    pub dst_ip: Option<IpNet>,
    /// Source ports; a packet without ports never matches.
    pub src_port: Option<PortRange>,
    /// Destination ports; a packet without ports never matches.
    pub dst_port: Option<PortRange>,
    /// Outer 802.1Q or 802.1ad VLAN id, 0 to 4094; 0 means untagged only.
    pub vlan_id: Option<u16>,
    /// TCP flags; the packet must be TCP.
    pub tcp_flags: Option<TcpFlags>,
    /// ICMP or ICMPv6 type; the packet must be ICMP or ICMPv6.
    pub icmp_type: Option<u8>,
    /// ICMP or ICMPv6 code, with `icmp_type` only.
    pub icmp_code: Option<u8>,
    /// Whether the packet is a fragment after the first one of its datagram: of those no field of the transport is known.
    pub fragment: Option<bool>,
    /// Connection states.
    pub states: States,
    /// Names of the interfaces on which the packet arrives; empty means every interface.
    pub interfaces: Vec<String>,
}

impl Match {
    /// The family that the addresses bind the rule to: `Some(true)` for IPv4, `None` when it applies to both.
    pub fn is_ipv4(&self) -> Option<bool> {
        self.src_ip.or(self.dst_ip).map(|net| net.addr().is_ipv4())
    }

    /// Whether the rule stands in the tables of a family.
    pub fn is_of_family(&self, ipv4: bool) -> bool {
        self.is_ipv4().is_none_or(|own| own == ipv4)
    }
}
