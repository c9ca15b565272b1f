//! The compiler against the plain reference, through `lookup`.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::lookup::{Addresses, Packet, Tables, lookup_ipv6};
use super::*;
use crate::abi::{Plain, fw_limits, fw_mode, fw_row};
use crate::classify::matching::State;
use crate::engines::firewall::rule::{Action, Rule};
use crate::support::classbench::{self, Kind, Style, classbench, trace};
use crate::support::packets::PacketFields;
use crate::support::random::Random;
use crate::support::{reference, rulesets};

// SAFETY: structs of include/abi.h, made of integers only, without hidden padding.
unsafe impl Plain for fw_family {}
// SAFETY: as above.
unsafe impl Plain for fw_v4 {}
// SAFETY: as above.
unsafe impl Plain for fw_v6 {}

/// Memory for a table, as an older rule set might have left it: every byte is 0xa5.
fn stale<T: Plain>() -> Box<T> {
    let mut memory = Box::<T>::new_uninit();
    // SAFETY: the bytes lie within the allocation, and any bytes are a T.
    unsafe {
        std::ptr::write_bytes(memory.as_mut_ptr().cast::<u8>(), 0xa5, size_of::<T>());
        memory.assume_init()
    }
}

/// A generation's tables of both families, in memory.
struct Generation {
    v4_family: Box<fw_family>,
    v6_family: Box<fw_family>,
    v4: Box<fw_v4>,
    v6: Box<fw_v6>,
    rows: Vec<fw_row>,
}

/// Rows before the family's own, as if another family's stood there.
const ROW_BASE: usize = 3;

impl Generation {
    fn new() -> Generation {
        Generation { v4_family: stale(), v6_family: stale(), v4: stale(), v6: stale(), rows: Vec::new() }
    }

    /// Compiles the rules for one family; gives their order.
    fn compile(&mut self, rules: &[Rule], ipv4: bool) -> Vec<usize> {
        let mut order: Vec<usize> =
            (0..rules.len()).filter(|&i| rules[i].enabled && rules[i].matches.is_of_family(ipv4)).collect();
        order.sort_by_key(|&i| rules[i].priority);
        let placed: Vec<Placed> = order.iter().map(|&i| placed(&rules[i], i)).collect();
        let rows = if ipv4 {
            compile_v4(&placed, ROW_BASE, &mut self.v4_family, &mut self.v4)
        } else {
            compile_v6(&placed, ROW_BASE, &mut self.v6_family, &mut self.v6)
        };
        let rows = rows.expect("4096 rules fit");
        self.rows = vec![fw_row { word: [u64::MAX; 64] }; ROW_BASE + rows.entries()];
        rows.write(&mut self.rows[ROW_BASE..]);
        order
    }

    fn classify(&self, packet: &PacketFields) -> u32 {
        let bits = |address| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let parsed = Packet {
            src: bits(packet.src),
            dst: bits(packet.dst),
            ports: packet.has_ports().then_some((packet.src_port, packet.dst_port)),
            protocol: packet.protocol,
            tcp_flags: packet.tcp_flags,
            icmp_type: packet.icmp_type,
            icmp_code: packet.icmp_code,
            vlan_id: packet.vlan_id,
            interface: packet.interface,
            later_fragment: packet.later_fragment,
        };
        let (family, addresses) = match packet.src {
            IpAddr::V4(_) => (&self.v4_family, Addresses::V4(&self.v4)),
            IpAddr::V6(_) => (&self.v6_family, Addresses::V6(&self.v6)),
        };
        let state = packet.state.map_or(0, |state| 1 + state as usize);
        Tables { family, addresses, rows: &self.rows }.classify(&parsed, state)
    }

    fn mode(&self, ipv4: bool) -> u32 {
        if ipv4 { self.v4_family.mode } else { self.v6_family.mode }
    }
}

/// The rule with its place among the written ones as its slot, so that an answer names the rule.
fn placed(rule: &Rule, place: usize) -> Placed<'_> {
    let number = |name: &String| name.trim_start_matches("test").parse::<u32>().expect("interface of a test");
    let interfaces = match rule.matches.interfaces.is_empty() {
        true => Placed::ALL_INTERFACES,
        false => rule.matches.interfaces.iter().fold(0, |bits, name| bits | 1 << number(name)),
    };
    Placed { matches: &rule.matches, answer: rule.answer(place as u16), interfaces }
}

/// Compares the compiled tables with the reference; packets lie inside of rules, at their edges and anywhere.
fn check(name: &str, generation: &mut Generation, rules: &[Rule], ipv4: bool, packets: usize, seed: u64) {
    generation.compile(rules, ipv4);
    let mut random = Random::new(seed);
    for _ in 0..packets {
        let mut packet = match (random.below(8), rules.len()) {
            (0, _) | (_, 0) => PacketFields::random(ipv4, &mut random),
            (1 | 2, n) => PacketFields::inside(&rules[random.below(n)].matches, ipv4, &mut random),
            (_, n) => PacketFields::at_edge(&rules[random.below(n)].matches, ipv4, &mut random),
        };
        packet.state = None;
        compare(name, generation, rules, &packet);
        if random.chance(50) && generation.classify(&packet) & fw_answer::FW_STATEFUL.0 != 0 {
            packet.state = Some(random.pick(&State::ALL));
            compare(name, generation, rules, &packet);
        }
    }
}

fn compare(name: &str, generation: &Generation, rules: &[Rule], packet: &PacketFields) {
    let answer = generation.classify(packet);
    let found = (answer & fw_answer::FW_NO_MATCH.0 == 0).then_some((answer & fw_answer::FW_SLOT_MASK.0) as usize);
    let wanted = reference::first_match(rules, packet);
    assert_eq!(
        found,
        wanted,
        "{name}: {packet:?}\nfound {:?}\nwanted {:?}",
        found.map(|i| &rules[i]),
        wanted.map(|i| &rules[i])
    );
    if let Some(rule) = wanted.map(|place| &rules[place]) {
        assert_eq!(answer & fw_answer::FW_DENY.0 != 0, rule.action == Action::Deny);
        assert_eq!(answer & fw_answer::FW_TELL.0 != 0, rule.log);
        assert_eq!(answer & fw_answer::FW_STATEFUL.0 != 0, !rule.matches.states.is_any());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_rules_match_as_the_reference_says(n in 0usize..200, ipv4: bool, seed: u64) {
        let mut generation = Generation::new();
        check("random", &mut generation, &rulesets::random(n, ipv4, seed), ipv4, 400, seed);
    }

    #[test]
    fn tables_are_written_over_an_older_rule_set(first in 0usize..600, second in 0usize..60, ipv4: bool, seed: u64) {
        let mut generation = Generation::new();
        generation.compile(&rulesets::random(first, ipv4, seed), ipv4);
        check("over older", &mut generation, &rulesets::random(second, ipv4, !seed), ipv4, 200, seed);
    }
}

#[test]
fn large_random_sets() {
    let mut generation = Generation::new();
    for (seed, &n) in [1, 2, 63, 64, 65, 1000, 4096].iter().enumerate() {
        for ipv4 in [true, false] {
            check("large", &mut generation, &rulesets::random(n, ipv4, seed as u64), ipv4, 1500, seed as u64);
        }
    }
}

#[test]
fn hostile_sets_of_4096_rules_fit_and_match() {
    let mut generation = Generation::new();
    for (name, make) in rulesets::HOSTILE {
        for ipv4 in [true, false] {
            check(name, &mut generation, &make(RULES_MAX, ipv4, 7), ipv4, 1500, 7);
        }
    }
}

#[test]
fn each_mode_is_reached() {
    let mut generation = Generation::new();
    generation.compile(&[], true);
    assert_eq!(generation.mode(true), fw_mode::FW_MODE_EMPTY.0);
    generation.compile(&classbench::classbench(Style::Ipc, 1000, 1), true);
    assert_eq!(generation.mode(true), fw_mode::FW_MODE_MERGED.0);
    generation.compile(&rulesets::port_ranges(2000, true, 1), true);
    assert_eq!(generation.mode(true), fw_mode::FW_MODE_SPLIT.0);
    generation.compile(&rulesets::environments(RULES_MAX, true, 1), true);
    assert_eq!(generation.mode(true), fw_mode::FW_MODE_APART.0);
}

#[test]
fn classbench_sets_merge_and_the_ipv6_policy_says_the_same() {
    let mut generation = Generation::new();
    for style in Style::ALL {
        let rules = classbench::classbench(style, RULES_MAX, 1);
        let rules_v6 = classbench::to_ipv6(&rules);
        let packets = classbench::trace(&rules, Kind::Uniform, 1500, 1);
        generation.compile(&rules, true);
        assert_eq!(generation.mode(true), fw_mode::FW_MODE_MERGED.0);
        let answers: Vec<u32> = packets.iter().map(|packet| generation.classify(packet)).collect();
        packets.iter().for_each(|packet| compare(style.name(), &generation, &rules, packet));
        generation.compile(&rules_v6, false);
        for (packet, answer) in packets.iter().map(classbench::packet_to_ipv6).zip(answers) {
            compare(style.name(), &generation, &rules_v6, &packet);
            assert_eq!(generation.classify(&packet), answer);
        }
    }
}

#[test]
fn paths_in_the_trie_are_short() {
    let mut generation = Generation::new();
    for style in Style::ALL {
        let rules = classbench::to_ipv6(&classbench::classbench(style, RULES_MAX, 1));
        generation.compile(&rules, false);
        let packets = classbench::trace(&rules, Kind::Uniform, 4000, 1);
        let steps: usize = packets
            .iter()
            .map(|packet| {
                let path = |side, address| match address {
                    IpAddr::V6(address) => {
                        lookup_ipv6(&generation.v6, side, (address.to_bits() >> 64) as u64, address.to_bits() as u64).1
                    }
                    IpAddr::V4(_) => 0,
                };
                path(0, packet.src) + path(1, packet.dst)
            })
            .sum();
        let mean = steps as f64 / (2 * packets.len()) as f64;
        assert!(mean < 3.5, "{}: {mean} nodes on the path", style.name());
    }
}

#[test]
fn more_rules_than_bits_are_refused() {
    let rules: Vec<Rule> = (0..=RULES_MAX).map(rulesets::open_rule).collect();
    let placed: Vec<Placed> = rules.iter().map(|rule| placed(rule, 0)).collect();
    let mut generation = Generation::new();
    let error = compile_v4(&placed, 0, &mut generation.v4_family, &mut generation.v4).expect_err("4097 rules");
    assert_eq!(error, CompileError::TooManyRules(RULES_MAX + 1));
    assert_eq!(RULES_MAX, fw_limits::FW_RULES.0 as usize);
}

/// The sets that the bench measures must be as hard as those of ClassBench itself (seeds acl1, fw1 and ipc1, 4096 rules),
/// of which the numbers were counted: not easier by more than a tenth, and harder by half at most.
#[test]
fn classbench_sets_are_as_hard_as_the_real_ones() {
    // Style, prefixes of source and destination, classes of destination ports, application rows, words visited.
    let real = [
        (Style::Acl, [660, 346], 106, 137, 1.3),
        (Style::Fw, [1406, 2460], 42, 534, 7.8),
        (Style::Ipc, [548, 1424], 53, 3088, 7.0),
    ];
    let within = |what: &str, found: f64, real: f64, low: f64, high: f64| {
        assert!((real * low..=real * high).contains(&found), "{what}: {found:.1}, ClassBench {real}");
    };
    for (style, prefixes, ports, app, words) in real {
        for seed in [1, 2, 3] {
            let rules = classbench(style, RULES_MAX, seed);
            let distinct = |field: fn(&Match) -> Option<IpNet>| {
                rules.iter().map(|rule| field(&rule.matches)).collect::<HashSet<_>>().len()
            };
            let mut tables = Generation::new();
            tables.compile(&rules, true);
            let family = &tables.v4_family;
            let port_classes = family.port_class[1].iter().collect::<HashSet<_>>().len();
            let app_rows = tables.rows.len() - (family.row_base + family.app_base) as usize;
            let packets = trace(&rules, Kind::Uniform, 2000, 1);
            let visited: usize = packets.iter().map(|packet| words_visited(&rules, packet)).sum();
            within("source prefixes", distinct(|r| r.src_ip) as f64, prefixes[0].into(), 0.95, 1.05);
            within("destination prefixes", distinct(|r| r.dst_ip) as f64, prefixes[1].into(), 0.95, 1.05);
            within("port classes", port_classes as f64, ports.into(), 0.9, 1.15);
            within("application rows", app_rows as f64, app.into(), 0.75, 1.25);
            within("words", visited as f64 / packets.len() as f64, words, 0.9, 1.5);
            assert!(!trace(&rules, Kind::NoMatch, 100, 1).is_empty(), "{style:?}: every packet matches");
        }
    }
}

/// Words of the three rows that are compared until one has a common bit.
fn words_visited(rules: &[Rule], packet: &PacketFields) -> usize {
    let inside = |net: Option<IpNet>, address: &IpAddr| net.is_none_or(|net| net.contains(address));
    let mut visited = 0;
    for word in rules.chunks_exact(64) {
        let any = |holds: &dyn Fn(&Match) -> bool| word.iter().any(|rule| holds(&rule.matches));
        let src = any(&|m| inside(m.src_ip, &packet.src));
        let dst = src && any(&|m| inside(m.dst_ip, &packet.dst));
        let rest = |m: &Match| reference::holds(&Match { src_ip: None, dst_ip: None, ..m.clone() }, packet);
        if dst && any(&rest) {
            visited += 1;
            if any(&|m| reference::holds(m, packet)) {
                break;
            }
        }
    }
    visited
}
