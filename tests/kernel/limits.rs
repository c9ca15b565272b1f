//! The rate limiter with rules in their text form: what `explain` says is what happens, and the presets of the example
//! do what they are for.

use ebpfsentinel::abi::{fw_answer, rl_answered, rl_place};
use ebpfsentinel::bpf::xdp_ratelimit::{Switches, XdpRatelimit};
use ebpfsentinel::classify::guard::Guard;
use ebpfsentinel::classify::interfaces::Port;
use ebpfsentinel::classify::slots::Slots;
use ebpfsentinel::config;
use ebpfsentinel::engines::ratelimit::limit::{Limit, Unit};
use ebpfsentinel::engines::ratelimit::maps::{Generation, Placed};
use ebpfsentinel::engines::ratelimit::rule::{Action, Algorithm, Rule, Scope};
use ebpfsentinel::packet::build::Packet;

use crate::harness::{XDP_DROP, XDP_PASS};
use crate::support::packets::PacketFields;
use crate::support::random::Random;
use crate::support::{reference, rulesets};

/// The program with rules; each rule's counters are told by its place.
struct Limits {
    xdp: XdpRatelimit,
    slots: Slots,
    ids: Vec<String>,
}

/// By rule: packets that passed and packets that were over.
type Counted = Vec<(u64, u64)>;

impl Limits {
    fn new(rules: &[Rule], guard: &Guard) -> Limits {
        let mut xdp =
            XdpRatelimit::load(Switches { multi_buffer: false, buckets: 65_536, chain: None, steers: false }).unwrap();
        let (slots, _) = Slots::default().next(rules.iter().map(|rule| rule.id.as_str())).unwrap();
        let placed: Vec<Placed<'_>> = rules
            .iter()
            .zip(1..)
            .map(|(rule, instance)| Placed { rule, slot: slots.get(&rule.id).unwrap(), instance })
            .collect();
        for one in &placed {
            xdp.clear_slot(one.slot.into(), one.rule.algorithm.in_kernel()).unwrap();
        }
        let ports = [Port { name: "eth0".to_owned(), ifindex: Some(1) }];
        let next = Generation { number: 1, enforce: true, rules: &placed, ports: &ports, guard };
        xdp.swap(|tables, kernel_rules| next.write(tables, kernel_rules)).unwrap();
        Limits { xdp, slots, ids: rules.iter().map(|rule| rule.id.clone()).collect() }
    }

    fn counted(&self) -> Counted {
        let counts = self.xdp.counts();
        let of = |id: &String| counts.rules[usize::from(self.slots.get(id).unwrap())];
        self.ids.iter().map(of).map(|count| (count.passed, count.dropped)).collect()
    }

    fn explain(&self, frame: &[u8]) -> (Option<usize>, rl_answered) {
        let answered = self.xdp.explain(frame, 0).unwrap();
        let slot = (answered.answer & fw_answer::FW_SLOT_MASK.0) as u16;
        let matched = answered.answer & fw_answer::FW_NO_MATCH.0 == 0;
        let rule = matched.then(|| self.ids.iter().position(|id| self.slots.get(id) == Some(slot)).unwrap());
        (rule, answered)
    }

    fn passes(&self, frame: &[u8]) -> bool {
        match self.xdp.test_run(frame, 0, 1).unwrap().0 {
            XDP_PASS => true,
            XDP_DROP => false,
            other => panic!("action {other}"),
        }
    }
}

/// Limits with any match; rates so low that time brings next to nothing during the test.
fn any_limits(seed: u64, random: &mut Random) -> Vec<Rule> {
    let matches = rulesets::random(60, true, seed).into_iter().chain(rulesets::random(60, false, seed));
    let mut rules: Vec<Rule> = matches
        .enumerate()
        .map(|(place, from)| {
            let mut matches = from.matches;
            matches.interfaces.clear();
            matches.states = Default::default();
            let asks_transport = matches.tcp_flags.is_some() || matches.icmp_type.is_some();
            let asks_more = asks_transport || matches.src_port.is_some() || matches.dst_port.is_some();
            matches.fragment = random.pick(&[None, None, Some(false), Some(true)]).filter(|later| !later || !asks_more);
            let algorithm = random.pick(&[
                Algorithm::TokenBucket,
                Algorithm::LeakyBucket,
                Algorithm::FixedWindow,
                Algorithm::SlidingWindow,
            ]);
            let unit = random.pick(&[Unit::Packets, Unit::Bits]);
            let least = if unit == Unit::Bits { 13_000 } else { 1 + random.below(3) as u64 };
            let action = random.pick(&[Action::Drop, Action::Pass, Action::Block]);
            Rule {
                id: format!("limit-{place}"),
                priority: from.priority,
                enabled: from.enabled,
                matches,
                scope: random.pick(&[Scope::PerIp, Scope::PerFlow, Scope::PerDst, Scope::Global]),
                ipv6_prefix_len: random.pick(&[48, 64, 128]),
                limit: Limit { rate: least, burst: least, unit },
                algorithm,
                action,
                threshold_pps: 0,
                block_secs: if action == Action::Block { 60 } else { 0 },
                description: String::new(),
            }
        })
        .collect();
    rules.sort_by_key(|rule| rule.priority);
    rules
}

#[test]
fn what_explain_says_is_what_is_charged() {
    let mut random = Random::new(0x11_3171);
    let mut fragments = 0;
    let (mut asked, mut matched, mut over, mut early, mut exempt, mut kinds) = (0, 0, 0, 0, 0, [0; 3]);
    for round in 0..4 {
        let rules = any_limits(round, &mut random);
        let guard =
            Guard { ports: vec![22], networks: vec!["10.0.0.0/8".parse().unwrap(), "2a01::/16".parse().unwrap()] };
        let limits = Limits::new(&rules, &guard);
        let mut packets: Vec<PacketFields> = (0..60)
            .map(|_| {
                let matches = &rules[random.below(rules.len())].matches;
                let ipv4 = matches.is_ipv4().unwrap_or_else(|| random.chance(50));
                let mut packet = match random.below(8) {
                    0 => PacketFields::random(ipv4, &mut random),
                    1 => PacketFields::at_edge(matches, ipv4, &mut random),
                    _ => PacketFields::inside(matches, ipv4, &mut random),
                };
                packet.interface = 0;
                packet.later_fragment = matches.fragment.unwrap_or_else(|| random.chance(10));
                if packet.src.is_ipv6() && [0, 43, 44, 51, 60].contains(&packet.protocol) {
                    packet.protocol = 47;
                }
                packet
            })
            .collect();
        packets.extend(
            ["10.1.2.3", "192.0.2.1"]
                .map(|from| PacketFields::tcp(from.parse().unwrap(), "10.9.9.9".parse().unwrap(), 40_000, 22)),
        );
        for _ in 0..1500 {
            let packet = packets[random.below(packets.len())];
            let frame = packet.frame();
            let before = limits.counted();
            let (rule, answered) = limits.explain(&frame);
            let (again, second) = limits.explain(&frame);
            assert_eq!(limits.counted(), before, "a question is not charged");
            assert_eq!((rule, answered.place, answered.at), (again, second.place, second.at));
            assert!(second.over <= answered.over, "a question is not charged");
            let expected = rules.iter().position(|rule| {
                rule.enabled && rule.matches.is_of_family(packet.src.is_ipv4()) && {
                    reference::holds(&rule.matches, &packet)
                }
            });
            let is_discovery =
                !packet.later_fragment && packet.src.is_ipv6() && packet.protocol == 58 && packet.icmp_type >= 130;
            assert!(rule == expected || is_discovery, "{packet:?}: {rule:?} and not {expected:?}");

            let passes = limits.passes(&frame);
            let after = limits.counted();
            let charged: Vec<usize> = (0..rules.len()).filter(|&at| before[at] != after[at]).collect();
            assert_eq!(charged, rule.into_iter().collect::<Vec<_>>(), "{packet:?}");
            asked += 1;
            let Some(at) = rule else {
                assert!(passes);
                continue;
            };
            matched += 1;
            fragments += usize::from(packet.later_fragment);
            kinds[usize::from(answered.place)] += 1;
            assert_eq!(answered.place == rl_place::RL_COMMON.0 as u8, rules[at].scope == Scope::Global);
            let was_over = after[at].1 > before[at].1;
            exempt += usize::from(answered.exempt);
            // Between question and packet a unit may come in, and none can go.
            early += usize::from(answered.over != 0 && answered.exempt == 0 && !was_over);
            assert!(!was_over || (answered.over != 0 && answered.exempt == 0), "{packet:?} {:?}", rules[at]);
            assert_eq!(passes, !was_over || rules[at].action == Action::Pass);
            over += usize::from(was_over);
            // Now it has a bucket, and a blocked one stays blocked.
            let (_, now) = limits.explain(&frame);
            assert_ne!(now.place, rl_place::RL_NEW.0 as u8);
            if was_over && rules[at].action == Action::Block {
                assert_eq!((now.blocked, now.over), (1, 1), "{packet:?}");
            }
            if now.place == rl_place::RL_OWN.0 as u8 {
                let bucket = limits.xdp.bucket_at(now.at as usize);
                assert_eq!((bucket.id >> 40) as usize, at + 1, "the bucket of this rule");
                assert!(!was_over || bucket.dropped > 0, "and the very one that was charged");
            }
        }
    }
    assert!(fragments > 300, "{fragments}");
    println!("{asked} asked, {matched} matched, {over} over, {early} came in time, {exempt} exempt, places {kinds:?}");
    assert!(matched > 3000 && over > 400 && exempt > 20 && kinds.iter().all(|&count| count > 50));
    // This machine may stand still between a question and its packet.
    assert!(early * 10 < over, "{early} of {over} passed that were said to be over");
}

/// Each preset of the example cuts its flood, from one address and nobody else's, and is the one that is charged.
#[test]
fn the_presets_cut_their_floods() {
    let text = include_str!("../../conf/examples/ratelimit.toml");
    let (config, _) = config::parse("ratelimit.toml", text.as_bytes(), [], &[]).unwrap();
    let mut rules = config.ratelimit.rules.clone();
    rules.sort_by_key(|rule| rule.priority);
    let limits = Limits::new(&rules, &Guard::default());
    let between = |v4: bool, host: u8| match v4 {
        true => Packet::new().between(&format!("192.0.2.{host}"), "192.0.2.200"),
        false => Packet::new().between(&format!("2001:db8:{host}::1"), "2001:db8::200"),
    };
    type Flood = (&'static str, bool, fn(Packet) -> Packet);
    let floods: [Flood; 10] = [
        ("syn-flood", true, |packet| packet.tcp(4000, 443)),
        ("syn-flood", false, |packet| packet.tcp(4000, 443)),
        ("icmp-flood", true, |packet| packet.ping(7, 1)),
        ("icmpv6-flood", false, |packet| packet.ping(7, 1)),
        ("udp-flood", true, |packet| packet.udp(4000, 9)),
        ("udp-flood", false, |packet| packet.udp(4000, 9)),
        ("fragment-flood", true, |packet| packet.protocol(17).fragment(7, 1480, true).payload(&[0; 100])),
        ("fragment-flood", true, |packet| packet.protocol(6).fragment(7, 1480, false).payload(&[0; 100])),
        ("fragment-flood", false, |packet| packet.protocol(58).fragment(7, 1480, true).payload(&[0; 100])),
        ("fragment-flood", false, |packet| packet.protocol(132).fragment(7, 1480, true).payload(&[0; 100])),
    ];
    for (number, (id, v4, flood)) in floods.into_iter().enumerate() {
        const COUNT: u32 = 50_000;
        let at = limits.ids.iter().position(|one| one == id).unwrap();
        let frame = |host| flood(between(v4, host)).build();
        let (attacker, other) = (frame(number as u8 + 1), frame(number as u8 + 101));
        let before = limits.counted();
        limits.xdp.test_run(&attacker, 0, COUNT).unwrap();
        assert!(limits.passes(&other), "{id}: another address");
        let after = limits.counted();
        let (passed, over) = (after[at].0 - before[at].0, after[at].1 - before[at].1);
        assert_eq!(passed + over, u64::from(COUNT) + 1, "{id}: all are its packets");
        assert!(passed > rules[at].limit.burst, "{id}: {passed} passed");
        assert!(over > u64::from(COUNT) / 2, "{id}: only {over} were over");
        assert!((0..rules.len()).all(|other| other == at || before[other] == after[other]), "{id}: no other limit");
    }
    // A first fragment is a packet of its protocol, and so is a whole one.
    let at = limits.ids.iter().position(|one| one == "fragment-flood").unwrap();
    let before = limits.counted()[at];
    for frame in [
        between(true, 200).udp(1, 2).payload(&[0; 100]).fragment(7, 0, true).build(),
        between(false, 200).udp(1, 2).payload(&[0; 100]).fragment(7, 0, true).build(),
        between(false, 200).udp(1, 2).payload(&[0; 100]).fragment(7, 0, false).build(),
        between(true, 200).udp(1, 2).build(),
    ] {
        assert!(limits.passes(&frame));
    }
    assert_eq!(limits.counted()[at], before);
}
