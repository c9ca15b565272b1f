//! Events: what the kernel told, owned and decoded. One variant for each kind of record.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::abi::{self, from_bytes, fw_event, fw_reason, fw_state, fw_verdict, rl_event};

/// One record of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// xdp_firewall judged a packet, and was to tell.
    Verdict(Verdict),
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It went on.
    Passed,
    /// It was dropped.
    Dropped,
    /// It went on because of `mode = "alert"`; else it would have been dropped.
    WouldDrop,
}

impl Outcome {
    /// The outcome with the kernel's number.
    pub fn of(verdict: u8) -> Option<Outcome> {
        match fw_verdict(verdict.into()) {
            fw_verdict::FW_PASS => Some(Outcome::Passed),
            fw_verdict::FW_DROP => Some(Outcome::Dropped),
            fw_verdict::FW_WOULD_DROP => Some(Outcome::WouldDrop),
            _ => None,
        }
    }

    /// The word in events, metrics and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Passed => "pass",
            Outcome::Dropped => "drop",
            Outcome::WouldDrop => "would_drop",
        }
    }
}

/// What decided about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A rule.
    Rule,
    /// No rule matched: the default policy.
    Policy,
    /// No rule matched, and it answers a connection that this host opened.
    State,
    /// ARP, neighbour discovery, DHCP, link control or the lock-out guard.
    Exception,
    /// It could not be parsed.
    Unparsable,
    /// It follows the first fragment of its datagram.
    Fragment,
    /// It would pass, but its source is forged: `firewall.rp_filter`.
    RpFilter,
    /// The agent has blocked its flow.
    BlockedFlow,
    /// The agent has blocked its source or destination.
    BlockedAddress,
}

impl Reason {
    /// All of them, in the kernel's order.
    pub const ALL: [Reason; 9] = [
        Reason::Rule,
        Reason::Policy,
        Reason::State,
        Reason::Exception,
        Reason::Unparsable,
        Reason::Fragment,
        Reason::RpFilter,
        Reason::BlockedFlow,
        Reason::BlockedAddress,
    ];

    /// The reason with the kernel's number.
    pub fn of(reason: u8) -> Option<Reason> {
        const { assert!(fw_reason::FW_REASONS.0 == 9) };
        Reason::ALL.get(usize::from(reason)).copied()
    }

    /// The word in events, metrics and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Rule => "rule",
            Reason::Policy => "default_policy",
            Reason::State => "state",
            Reason::Exception => "exception",
            Reason::Unparsable => "unparsable",
            Reason::Fragment => "fragment",
            Reason::RpFilter => "rp_filter",
            Reason::BlockedFlow => "blocked_flow",
            Reason::BlockedAddress => "blocked_address",
        }
    }
}

/// Names of enum fw_unparsable, by number; 0 means parsed.
pub const UNPARSABLE: [&str; abi::fw_unparsable::FW_UNPARSABLE.0 as usize] = [
    "parsed",
    "short_ethernet",
    "vlan_depth",
    "not_ip",
    "bad_ipv4",
    "bad_ipv6",
    "extension_headers",
    "short_transport",
    "tiny_fragment",
    "stray_fragment",
    "overlapping_fragment",
];

/// A verdict of xdp_firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Nanoseconds since boot, suspended time included (CLOCK_BOOTTIME).
    pub boot_ns: u64,
    /// Where the packet arrived.
    pub ifindex: u32,
    /// Source; `None` when it was not parsed that far.
    pub src: Option<IpAddr>,
    /// Destination.
    pub dst: Option<IpAddr>,
    /// Source port; the identifier of an ICMP echo; else 0.
    pub src_port: u16,
    /// Destination port; the identifier of an ICMP echo; else 0.
    pub dst_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Outer VLAN id; 0 when untagged.
    pub vlan_id: u16,
    /// Flags of TCP.
    pub tcp_flags: u8,
    /// Type and code of ICMP.
    pub icmp: (u8, u8),
    /// Length of the frame.
    pub bytes: u32,
    /// Packets for which this one stands, itself included.
    pub packets: u32,
    /// What became of it.
    pub outcome: Outcome,
    /// What decided.
    pub reason: Reason,
    /// Slot of the rule, when a rule decided.
    pub slot: Option<u16>,
    /// Generation of the rules that judged it.
    pub generation: u32,
    /// State of its connection (number of enum fw_state), if it was looked up.
    pub state: Option<u8>,
    /// Why it could not be parsed.
    pub unparsable: Option<&'static str>,
    /// Where it goes next, and by which interface (its index), if that was asked for and the host forwards it.
    pub next_hop: Option<(IpAddr, u32)>,
}

/// An address as the kernel keeps it: host order, high half first, IPv4 in the low 32 bits.
pub fn address(family: u8, words: [u64; 2]) -> Option<IpAddr> {
    match family {
        4 => Some(Ipv4Addr::from(words[1] as u32).into()),
        6 => Some(Ipv6Addr::from(u128::from(words[0]) << 64 | u128::from(words[1])).into()),
        _ => None,
    }
}

impl Event {
    /// Decodes a record of xdp_firewall's ring buffer; `None` when it is not one.
    pub fn decode(record: &[u8]) -> Option<Event> {
        let raw: fw_event = from_bytes(record)?;
        let reason = Reason::of(raw.reason)?;
        let by_rule =
            matches!(reason, Reason::Rule | Reason::Fragment) && u32::from(raw.slot) < abi::fw_limits::FW_SLOTS.0;
        Some(Event::Verdict(Verdict {
            boot_ns: raw.boot_ns,
            ifindex: raw.ifindex,
            src: address(raw.family, raw.src),
            dst: address(raw.family, raw.dst),
            src_port: raw.src_port,
            dst_port: raw.dst_port,
            protocol: raw.protocol,
            vlan_id: raw.vlan,
            tcp_flags: raw.tcp_flags,
            icmp: (raw.icmp_type, raw.icmp_code),
            bytes: raw.bytes,
            packets: raw.packets,
            outcome: Outcome::of(raw.verdict)?,
            reason,
            slot: by_rule.then_some(raw.slot),
            generation: raw.generation,
            state: (u32::from(raw.state) != fw_state::FW_STATE_UNKNOWN.0).then_some(raw.state),
            unparsable: (raw.unparsable != 0).then(|| UNPARSABLE.get(usize::from(raw.unparsable)).copied()).flatten(),
            next_hop: address(raw.next_hop_family, raw.next_hop).map(|next_hop| (next_hop, raw.out_ifindex)),
        }))
    }
}

/// xdp_ratelimit met packets over a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverLimit {
    /// Nanoseconds since boot, suspended time included (CLOCK_BOOTTIME).
    pub boot_ns: u64,
    /// Where the packet arrived.
    pub ifindex: u32,
    /// Source.
    pub src: Option<IpAddr>,
    /// Destination.
    pub dst: Option<IpAddr>,
    /// Source port, else 0.
    pub src_port: u16,
    /// Destination port, else 0.
    pub dst_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Outer VLAN id; 0 when untagged.
    pub vlan_id: u16,
    /// Flags of TCP.
    pub tcp_flags: u8,
    /// Length of the frame.
    pub bytes: u32,
    /// Packets of this bucket over the limit since the last event, this one included.
    pub packets: u32,
    /// Slot of the rule.
    pub slot: u16,
    /// The bucket is the rule's common one: of all its packets, or of those that found no room.
    pub is_common: bool,
}

impl OverLimit {
    /// Decodes a record of xdp_ratelimit's ring buffer; `None` when it is not one.
    pub fn decode(record: &[u8]) -> Option<OverLimit> {
        let raw: rl_event = from_bytes(record)?;
        Some(OverLimit {
            boot_ns: raw.boot_ns,
            ifindex: raw.ifindex,
            src: address(raw.family, raw.src),
            dst: address(raw.family, raw.dst),
            src_port: raw.src_port,
            dst_port: raw.dst_port,
            protocol: raw.protocol,
            vlan_id: raw.vlan,
            tcp_flags: raw.tcp_flags,
            bytes: raw.bytes,
            packets: raw.packets,
            slot: raw.slot,
            is_common: raw.common != 0,
        })
    }
}

/// The time of day of a moment of the boot clock, in nanoseconds since 1970.
pub fn unix_time_of(boot_ns: u64) -> u64 {
    let boot = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = boot.saturating_sub(Duration::from_nanos(boot_ns));
    now.saturating_sub(age).as_nanos() as u64
}
