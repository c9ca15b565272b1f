//! What xdp_firewall and tc_egress make of a packet, in Rust: for captures that are judged without a kernel.
//!
//! Rules are read as a person reads them, one after the other, and share nothing with the tables that are compiled for the
//! kernel; what was found for a flow is kept. Time is an argument. What depends on this host and not on the packet is left
//! out: its routes (`rp_filter`), its sessions (the lock-out guard), and the cookies that it sent.

mod aged;
pub mod state;

use std::collections::HashMap;

use ipnet::IpNet;

use self::state::{ConnKey, Connections, FragKey, Fragments};
use super::config::{FirewallConfig, Policy};
use super::rule::{Action, Rule};
use crate::classify::matching::{Match, PortRange, Protocol, TcpFlags, proto};
use crate::classify::rules::Mode;
use crate::event::{Outcome, Reason, UNPARSABLE, Verdict, address};
use crate::packet::headers::{Headers, Place, Unparsable};

/// Flows whose first match is kept; then all are forgotten.
const KEPT_MAX: usize = 1 << 16;

/// So few rules are asked faster than what was kept is found.
const ASKED_AT_ONCE: usize = 16;

/// A rule that decided.
#[derive(Clone, Copy, Debug)]
struct Hit {
    slot: u16,
    denies: bool,
    tells: bool,
}

/// A rule, ready to be asked.
struct Asking {
    matches: Match,
    src: Net,
    dst: Net,
    hit: Hit,
}

/// A network: the bits that count, and their values. All bits of no network are 0, as is the mask of everything.
#[derive(Clone, Copy)]
struct Net {
    bits: u128,
    mask: u128,
}

impl Net {
    fn of(net: Option<IpNet>) -> Net {
        match net {
            None => Net { bits: 0, mask: 0 },
            Some(IpNet::V4(net)) => Net { bits: net.network().to_bits().into(), mask: net.netmask().to_bits().into() },
            Some(IpNet::V6(net)) => Net { bits: net.network().to_bits(), mask: net.netmask().to_bits() },
        }
    }

    fn contains(self, address: u128) -> bool {
        address & self.mask == self.bits
    }
}

/// All that rules can ask of a packet, but for its state.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Asked {
    family: u8,
    src: u128,
    dst: u128,
    protocol: u8,
    ports: Option<(u16, u16)>,
    vlan: u16,
    tcp_flags: Option<u8>,
    icmp: Option<(u8, u8)>,
}

impl Asked {
    fn of(p: &Headers) -> Asked {
        let word = |words: [u64; 2]| u128::from(words[0]) << 64 | u128::from(words[1]);
        Asked {
            family: p.family,
            src: word(p.src),
            dst: word(p.dst),
            protocol: p.protocol,
            ports: p.has_ports.then_some((p.src_port, p.dst_port)),
            vlan: p.vlans[0],
            tcp_flags: (p.protocol == proto::TCP).then_some(p.tcp_flags),
            icmp: p.is_icmp().then_some((p.icmp_type, p.icmp_code)),
        }
    }
}

impl Asking {
    /// Whether all conditions hold, but that on the state.
    fn holds(&self, packet: &Asked) -> bool {
        let Match { protocol, src_port, dst_port, vlan_id, tcp_flags, icmp_type, icmp_code, .. } = &self.matches;
        let port = |range: &Option<PortRange>, of: fn((u16, u16)) -> u16| match range {
            None => true,
            Some(range) => packet.ports.is_some_and(|ports| range.contains(of(ports))),
        };
        self.src.contains(packet.src)
            && self.dst.contains(packet.dst)
            && [Protocol::Any, Protocol::Number(packet.protocol)].contains(protocol)
            && port(src_port, |ports| ports.0)
            && port(dst_port, |ports| ports.1)
            && vlan_id.is_none_or(|id| id == packet.vlan)
            && tcp_flags.is_none_or(|TcpFlags { set, mask }| packet.tcp_flags.is_some_and(|bits| bits & mask == set))
            && icmp_type.is_none_or(|wanted| packet.icmp.is_some_and(|(kind, _)| kind == wanted))
            && icmp_code.is_none_or(|wanted| packet.icmp.is_some_and(|(_, code)| code == wanted))
    }
}

/// What is known of a packet in the end.
#[derive(Clone, Copy)]
struct Judgement {
    hit: Option<Hit>,
    drop: bool,
    reason: Reason,
    state: Option<u8>,
    unparsable: Option<Unparsable>,
}

/// The firewall, and all that it remembers.
pub struct Model {
    enforces: bool,
    drops_unmatched: bool,
    drops_unparsable: bool,
    stateful: bool,
    dhcp: bool,
    /// By family, IPv4 first, in the order in which they are asked.
    rules: [Vec<Asking>; 2],
    /// The first rule that matches while the state is not known.
    kept: HashMap<Asked, Option<u32>>,
    connections: Connections,
    fragments: Fragments<Judgement>,
}

impl Model {
    /// The firewall of a section. `rules` are all of them in the order in which they are asked, each with its slot;
    /// packets arrive on `interface`. With `notes`, what connections and fragments it forgets is kept to be asked for:
    /// [`Model::forgotten_connections`].
    pub fn new(config: &FirewallConfig, rules: &[(&Rule, u16)], interface: &str, notes: bool) -> Model {
        let is_here = |rule: &Rule| {
            let names = &rule.matches.interfaces;
            rule.enabled && (names.is_empty() || names.iter().any(|name| name == interface))
        };
        let of_family = |ipv4: bool| {
            let rules = rules.iter().filter(|(rule, _)| is_here(rule) && rule.matches.is_of_family(ipv4));
            let asking = rules.map(|(rule, slot)| Asking {
                src: Net::of(rule.matches.src_ip),
                dst: Net::of(rule.matches.dst_ip),
                hit: Hit {
                    slot: *slot,
                    denies: rule.action == Action::Deny,
                    tells: rule.log || rule.action == Action::Log,
                },
                matches: rule.matches.clone(),
            });
            asking.collect::<Vec<_>>()
        };
        Model {
            enforces: config.mode == Mode::Block,
            drops_unmatched: config.default_policy == Policy::Drop,
            drops_unparsable: config.unparsable == Policy::Drop,
            stateful: config.stateful,
            dhcp: config.dhcp,
            rules: [of_family(true), of_family(false)],
            kept: HashMap::new(),
            connections: Connections::new(config.max_connections as usize, &config.timeouts, notes),
            fragments: Fragments::new(notes),
        }
    }

    /// Whether every packet passes and nothing is told, so that nobody has to ask.
    pub fn passes_all(&self) -> bool {
        self.rules.iter().all(Vec::is_empty) && !self.drops_unmatched && !self.drops_unparsable
    }

    /// Connections that were forgotten since this was asked before.
    pub fn forgotten_connections(&mut self) -> Vec<ConnKey> {
        self.connections.forgotten()
    }

    /// The same of fragmented datagrams.
    pub fn forgotten_fragments(&mut self) -> Vec<FragKey> {
        self.fragments.forgotten()
    }

    /// A packet leaves: its connection is known from now on.
    pub fn leaves(&mut self, (headers, result): &(Headers, Result<(), Unparsable>), now_ns: u64) {
        if self.stateful && result.is_ok() && headers.place != Place::Later {
            self.connections.leaves(headers, now_ns);
        }
    }

    /// A packet arrives: what becomes of it, and the record of it, if there is to be one.
    pub fn arrives(
        &mut self,
        frame: &[u8],
        (headers, result): &(Headers, Result<(), Unparsable>),
        now_ns: u64,
    ) -> (Outcome, Option<Verdict>) {
        let judgement = self.judge(frame, headers, *result, now_ns);
        let outcome = match (judgement.drop, self.enforces) {
            (false, _) => Outcome::Passed,
            (true, true) => Outcome::Dropped,
            (true, false) => Outcome::WouldDrop,
        };
        let is_told = outcome != Outcome::Passed || judgement.hit.is_some_and(|hit| hit.tells);
        (outcome, is_told.then(|| verdict_of(&judgement, outcome, headers, frame.len(), now_ns)))
    }

    fn judge(&mut self, frame: &[u8], p: &Headers, result: Result<(), Unparsable>, now_ns: u64) -> Judgement {
        let by = |reason| Judgement { hit: None, drop: false, reason, state: None, unparsable: None };
        let unparsable =
            |why| Judgement { drop: self.drops_unparsable, unparsable: Some(why), ..by(Reason::Unparsable) };
        if let Err(why) = result {
            return if p.is_link_control { by(Reason::Exception) } else { unparsable(why) };
        }
        if p.place == Place::First
            && let Some(why) = self.fragments.first(p, now_ns)
        {
            return unparsable(why);
        }
        if p.place == Place::Later {
            return match self.fragments.later(p, now_ns) {
                Err(why) => unparsable(why),
                Ok(first) => Judgement { hit: first.hit, drop: first.drop, ..by(Reason::Fragment) },
            };
        }
        if p.is_neighbour_discovery() {
            return by(Reason::Exception);
        }
        let judgement = self.judge_whole(frame, p, now_ns);
        if p.place == Place::First {
            self.fragments.remember(p, judgement, now_ns);
        }
        judgement
    }

    /// By rules, state, policy and exceptions.
    fn judge_whole(&mut self, frame: &[u8], p: &Headers, now_ns: u64) -> Judgement {
        let mut known = None;
        let mut hit = None;
        if let Some(first) = self.first_match(p) {
            let rules = &self.rules[usize::from(p.family == 6)];
            let packet = Asked::of(p);
            for asking in &rules[first..] {
                let states = asking.matches.states;
                if asking.holds(&packet)
                    && (states.is_any() || {
                        let known = known.get_or_insert_with(|| self.connections.state_of(frame, p, now_ns));
                        states.contains(known.state)
                    })
                {
                    hit = Some(asking.hit);
                    break;
                }
            }
        }
        if hit.is_none() && self.drops_unmatched && self.stateful && known.is_none() {
            known = Some(self.connections.state_of(frame, p, now_ns));
        }
        let is_answer = self.stateful && known.as_ref().is_some_and(|known| known.is_ours);
        let (mut reason, mut drop) = match hit {
            Some(hit) => (Reason::Rule, hit.denies),
            None if is_answer => (Reason::State, false),
            None => (Reason::Policy, self.drops_unmatched),
        };
        if let Some(key) = known.as_ref().and_then(|known| known.key)
            && !drop
        {
            self.connections.confirm(&key, p.tcp_flags, now_ns);
        }
        if drop && self.dhcp && p.is_dhcp_answer() {
            (reason, drop) = (Reason::Exception, false);
        }
        Judgement { hit, drop, reason, state: known.map(|known| known.state as u8), unparsable: None }
    }

    /// The place of the first rule that matches, if it is taken for granted that the state is the one that it asks for.
    fn first_match(&mut self, p: &Headers) -> Option<usize> {
        let rules = &self.rules[usize::from(p.family == 6)];
        if rules.is_empty() {
            return None;
        }
        let packet = Asked::of(p);
        let find = || rules.iter().position(|asking| asking.holds(&packet)).map(|place| place as u32);
        if rules.len() <= ASKED_AT_ONCE {
            return find().map(|place| place as usize);
        }
        if self.kept.len() >= KEPT_MAX {
            self.kept.clear();
        }
        self.kept.entry(packet).or_insert_with(find).map(|place| place as usize)
    }
}

fn verdict_of(j: &Judgement, outcome: Outcome, p: &Headers, bytes: usize, now_ns: u64) -> Verdict {
    let by_rule = matches!(j.reason, Reason::Rule | Reason::Fragment);
    Verdict {
        boot_ns: now_ns,
        ifindex: 0,
        src: address(p.family, p.src),
        dst: address(p.family, p.dst),
        src_port: p.src_port,
        dst_port: p.dst_port,
        protocol: p.protocol,
        vlan_id: p.vlans[0],
        tcp_flags: p.tcp_flags,
        icmp: (p.icmp_type, p.icmp_code),
        bytes: bytes as u32,
        packets: 1,
        outcome,
        reason: j.reason,
        slot: j.hit.filter(|_| by_rule).map(|hit| hit.slot),
        generation: 1,
        state: j.state,
        unparsable: j.unparsable.and_then(|why| UNPARSABLE.get(why as usize).copied()),
        next_hop: None,
    }
}
