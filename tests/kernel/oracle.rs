//! The loaded program against a plain reading of the rules: random and hostile rule sets, each swapped over the last
//! one, times random and adversarial packets, IPv4 and IPv6. Each packet is asked about twice, so that the class cache
//! answers as well, and arrives twice, so that the flow cache does; in the end each rule must have counted its packets.

use std::collections::HashMap;

use ebpfsentinel::abi::{fw_answer, fw_answered, fw_iface, fw_reason, fw_state, fw_tables};
use ebpfsentinel::bpf::xdp_firewall::{Switches, XdpFirewall};
use ebpfsentinel::classify::compile::{BothRows, Placed, RULES_MAX, compile_v4, compile_v6};
use ebpfsentinel::classify::matching::State;
use ebpfsentinel::engines::firewall::rule::Rule;

use crate::support::classbench::{Style, classbench, to_ipv6};
use crate::support::packets::{PacketFields, interface_name};
use crate::support::random::Random;
use crate::support::{reference, rulesets};

/// Pairs of rule set and packet that are compared, at least.
const COMPARISONS: usize = 1_000_000;

/// In a test run the packet arrives on the loopback device.
const TEST_IFINDEX: u32 = 1;

/// IPv6 extension headers: as a protocol after the IPv6 header they are not one.
const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];

#[test]
fn kernel_agrees_with_the_reference() {
    let mut firewall = XdpFirewall::load(&Switches::default()).expect("loading xdp_firewall");
    let mut compared = 0;
    let mut by_reason: HashMap<u8, usize> = HashMap::new();
    let mut round = 0;
    while compared < COMPARISONS {
        let mut random = Random::new(round);
        let rules = rule_set(round, &mut random);
        let interface = random.below(6) as u8;
        let generation = 2 * round as u32 + 1;
        install(&mut firewall, &rules, generation, interface);
        let mut counted = vec![(0, 0); rules.len()];
        // The reference's cost grows with the rules; keep it even.
        for _ in 0..(1_000_000 / rules.len().max(30)) {
            let packet = packet(&rules, interface, &mut random);
            let frame = packet.frame();
            for cached in [false, true] {
                let answered = firewall.explain(&frame, 0).expect("asking the program");
                assert_eq!(answered.generation, generation);
                *by_reason.entry(answered.reason).or_default() += 1;
                let rule = compare(&rules, &packet, &answered, round, cached);
                let ran = firewall.test_run(&frame, 0, 1).expect("running the program");
                assert_eq!(ran.action, action_of(&answered), "round {round}, second {cached}: {packet:?}");
                if let Some(place) = rule {
                    counted[place].0 += 1;
                    counted[place].1 += frame.len() as u64;
                }
                compared += 1;
            }
        }
        let counts = firewall.counts().rules;
        for (place, expected) in counted.into_iter().enumerate() {
            let count = &counts[place];
            assert_eq!((count.packets, count.bytes), expected, "round {round}: {:?}", rules[place]);
        }
        install(&mut firewall, &[], generation + 1, interface);
        (0..rules.len() as u32).for_each(|slot| firewall.clear_slot(slot));
        round += 1;
    }
    println!("{compared} comparisons over {round} swaps, 0 differences; by reason {by_reason:?}");
    assert!(by_reason[&(fw_reason::FW_BY_RULE.0 as u8)] > COMPARISONS / 4, "most packets met no rule: {by_reason:?}");
}

fn action_of(answered: &fw_answered) -> u32 {
    if answered.verdict == 0 { XDP_PASS } else { XDP_DROP }
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// Sets of 1 to 4096 rules, both families together where the generators know only one.
fn rule_set(round: u64, random: &mut Random) -> Vec<Rule> {
    let n = random.pick(&[1, 2, 16, 64, 65, 256, 1024, RULES_MAX]);
    let of_both = |v4: Vec<Rule>, v6: Vec<Rule>| v4.into_iter().chain(v6).collect();
    match round % 4 {
        0 | 1 => of_both(rulesets::random(n / 2 + 1, true, round), rulesets::random(n / 2, false, !round)),
        2 => {
            let (_, hostile) = rulesets::HOSTILE[round as usize / 4 % rulesets::HOSTILE.len()];
            of_both(hostile(n, true, round), hostile(n, false, round))
        }
        _ => {
            let style = Style::ALL[round as usize / 4 % 3];
            let v4: Vec<Rule> =
                classbench(style, n, round).into_iter().filter(|rule| rule.matches.is_ipv4() == Some(true)).collect();
            let v6 = to_ipv6(&v4);
            of_both(v4, v6)
        }
    }
}

/// Swaps the rules in, as generation `generation`; the loopback device is interface number `interface`.
fn install(firewall: &mut XdpFirewall, rules: &[Rule], generation: u32, interface: u8) {
    let of_family = |ipv4: bool| {
        let mut order: Vec<usize> =
            (0..rules.len()).filter(|&i| rules[i].enabled && rules[i].matches.is_of_family(ipv4)).collect();
        order.sort_by_key(|&i| rules[i].priority);
        order.into_iter().map(|place| placed(&rules[place], place)).collect::<Vec<_>>()
    };
    let (v4, v6) = (of_family(true), of_family(false));
    firewall
        .swap(|tables: &mut fw_tables| {
            tables.policy.generation = generation;
            tables.policy.enforce = 1;
            tables.policy.drop_unmatched = 1;
            tables.policy.drop_unparsable = 1;
            tables.policy.iface_multiplier = 0;
            tables.policy.iface[0] = fw_iface { ifindex: TEST_IFINDEX, number: interface.into() };
            let [family_v4, family_v6] = &mut tables.family;
            let rows_v4 = compile_v4(&v4, 0, family_v4, &mut tables.v4)?;
            let rows_v6 = compile_v6(&v6, rows_v4.entries(), family_v6, &mut tables.v6)?;
            Ok(BothRows { v4: rows_v4, v6: rows_v6 })
        })
        .expect("swapping the rules in");
}

/// The rule with its place among the written ones as its slot, so that an answer names the rule.
fn placed(rule: &Rule, place: usize) -> Placed<'_> {
    let names = &rule.matches.interfaces;
    let interfaces = match names.is_empty() {
        true => Placed::ALL_INTERFACES,
        false => (0..64).filter(|&n| names.contains(&interface_name(n))).fold(0, |bits, n| bits | 1 << n),
    };
    Placed { matches: &rule.matches, answer: rule.answer(place as u16), interfaces }
}

fn packet(rules: &[Rule], interface: u8, random: &mut Random) -> PacketFields {
    let ipv4 = random.chance(50);
    let mut packet = match random.below(8) {
        0 => PacketFields::random(ipv4, random),
        1 | 2 => PacketFields::inside(&rules[random.below(rules.len())].matches, ipv4, random),
        _ => PacketFields::at_edge(&rules[random.below(rules.len())].matches, ipv4, random),
    };
    packet.interface = interface;
    if packet.src.is_ipv6() && EXTENSIONS.contains(&packet.protocol) {
        packet.protocol = 47;
    }
    packet
}

/// The rule that matched, after it was found to be the right one.
fn compare(rules: &[Rule], packet: &PacketFields, answered: &fw_answered, round: u64, cached: bool) -> Option<usize> {
    let reason = u32::from(answered.reason);
    assert!(
        reason == fw_reason::FW_BY_RULE.0 || reason == fw_reason::FW_BY_POLICY.0,
        "round {round}: {packet:?} was judged by {reason}, unparsable {}",
        answered.unparsable
    );
    // The packet's state is what the program found; here only that the rules were applied to it is judged.
    let state = State::ALL.into_iter().find(|&state| state as u8 == answered.state);
    assert!(state.is_some() || u32::from(answered.state) == fw_state::FW_STATE_UNKNOWN.0);
    let wanted = reference::first_match(rules, &PacketFields { state, ..*packet });
    let matched = answered.answer & fw_answer::FW_NO_MATCH.0 == 0;
    let found = matched.then_some((answered.answer & fw_answer::FW_SLOT_MASK.0) as usize);
    assert_eq!(
        found,
        wanted,
        "round {round}, cached {cached}: {packet:?} in state {state:?}\nkernel {:?}\nreference {:?}",
        found.map(|place| &rules[place]),
        wanted.map(|place| &rules[place])
    );
    if let (Some(place), None) = (found, state) {
        assert!(
            rules[place].matches.states.is_any(),
            "round {round}: a rule that asks for a state matched without one"
        );
    }
    found
}
