//! The rate limiter with rules in their text form: what `explain` says is what happens, and the presets of the example
//! do what they are for.

use ebpfsentinel::abi::{fw_answer, rl_answered, rl_place};
use ebpfsentinel::bpf::xdp_ratelimit::{Switches, XdpRatelimit};
use ebpfsentinel::classify::guard::Guard;
use ebpfsentinel::classify::interfaces::Port;
use ebpfsentinel::classify::matching::{Match, PortRange, Protocol, TcpFlags, proto};
use ebpfsentinel::classify::slots::Slots;
use ebpfsentinel::config;
use ebpfsentinel::engines::ratelimit::limit::{Limit, Unit};
use ebpfsentinel::engines::ratelimit::maps::{Generation, Placed};
use ebpfsentinel::engines::ratelimit::rule::{Action, Algorithm, Rule, Scope};
use ebpfsentinel::packet::build::Packet;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

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
                namespace: None,
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
                mitre: Vec::new(),
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

/// A limit that answers SYNs to a port with cookies, beyond a threshold.
fn cookies(id: &str, port: u16, threshold_pps: u32) -> Rule {
    Rule {
        id: id.to_owned(),
        namespace: None,
        priority: 10,
        enabled: true,
        matches: Match {
            protocol: Protocol::Number(proto::TCP),
            dst_port: Some(PortRange { low: port, high: port }),
            tcp_flags: Some(TcpFlags::SYN),
            ..Match::default()
        },
        scope: Scope::PerIp,
        ipv6_prefix_len: Rule::IPV6_PREFIX_LEN,
        limit: Limit { rate: Rule::COOKIE_RATE, burst: Rule::COOKIE_RATE, unit: Unit::Packets },
        algorithm: Algorithm::SynCookie,
        action: Action::Drop,
        threshold_pps,
        block_secs: 0,
        mitre: Vec::new(),
        description: String::new(),
    }
}

/// A SYN from a port to a host, a port on it, with flags beside SYN.
fn syn(from: (&str, u16), to: (&str, u16), flags: u8) -> Vec<u8> {
    Packet::new().between(from.0, to.0).tcp(from.1, to.1).flags(0x02 | flags).build()
}

/// This thread keeps to a CPU: what is held is its own.
fn keep_to_one_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// What is held until the next tick is not lost: neither by counters, nor by the window, nor by the next event.
#[test]
fn a_flood_of_syns_is_counted_whole() {
    const THRESHOLD: u32 = 100;
    const COUNT: u32 = 10_000;
    keep_to_one_cpu();
    for action in [Action::Drop, Action::Pass] {
        let mut limits = Limits::new(&[Rule { action, ..cookies("syn", 80, THRESHOLD) }], &Guard::default());
        limits.xdp.set_cookies_usable(true);
        let frame = syn(("198.51.100.1", 4000), ("192.0.2.10", 80), 0);
        limits.xdp.test_run(&frame, 0, COUNT).unwrap();
        let answered = u64::from(COUNT - THRESHOLD);
        assert_eq!(limits.counted(), [(u64::from(THRESHOLD), answered)], "{action:?}");
        // Longer than a tick, and in the window of a second that the first one began.
        std::thread::sleep(std::time::Duration::from_millis(30));
        limits.xdp.test_run(&frame, 0, 1).unwrap();
        assert_eq!(limits.counted(), [(u64::from(THRESHOLD), answered + 1)], "{action:?}");
        let common = limits.xdp.common_at(limits.slots.get("syn").unwrap().into());
        assert_eq!(common.word[0], u64::from(COUNT) + 1, "{action:?}: SYNs of the first window");
        assert_eq!(u64::from(common.dropped), answered + 1, "{action:?}: of which events tell");
    }
}

/// A rule is found again only for what it is about, however soon the next SYN comes.
#[test]
fn a_syn_is_not_taken_for_the_one_before() {
    keep_to_one_cpu();
    let of_a_source = |id: &str, change: &dyn Fn(&mut Match)| {
        let mut rule = cookies(id, 80, 0);
        change(&mut rule.matches);
        rule
    };
    type Syn = (&'static str, u16, &'static str, u16, u8, usize);
    let guard = Guard { ports: vec![22], networks: vec!["10.0.0.0/8".parse().unwrap()] };
    // Rules, then SYNs, each with the rule that is to count it; the last number is that of nobody.
    let cases: [(Vec<Rule>, Vec<Syn>); 4] = [
        (
            vec![cookies("web", 80, 0), cookies("ssh", 22, 0)],
            vec![
                ("10.0.0.1", 1000, "192.0.2.1", 80, 0, 0),
                ("172.16.0.1", 2000, "192.0.2.2", 80, 0, 0),
                ("172.16.0.1", 2000, "192.0.2.2", 81, 0, 2),
                ("172.16.0.1", 2000, "192.0.2.2", 22, 0, 1),
                ("10.0.0.1", 2000, "192.0.2.2", 22, 0, 3), // the guard's: counted, and not answered
                ("2001:db8::1", 1000, "2001:db8::2", 80, 0, 0),
                ("2001:db8::1", 1000, "2001:db8::2", 81, 0, 2),
                ("10.0.0.1", 1000, "192.0.2.1", 80, 0xc0, 0),
                ("10.0.0.1", 1000, "192.0.2.1", 80, 0x10, 2),
                ("10.0.0.1", 1000, "192.0.2.1", 80, 0x04, 2),
            ],
        ),
        (
            vec![of_a_source("net", &|matches| matches.src_ip = Some("10.0.0.0/8".parse().unwrap()))],
            vec![("10.0.0.1", 1000, "192.0.2.1", 80, 0, 0), ("172.16.0.1", 1000, "192.0.2.1", 80, 0, 1)],
        ),
        (
            vec![of_a_source("port", &|matches| matches.src_port = Some(PortRange { low: 1000, high: 1999 }))],
            vec![
                ("10.0.0.1", 1000, "192.0.2.1", 80, 0, 0),
                ("10.0.0.1", 2000, "192.0.2.1", 80, 0, 1),
                ("2001:db8::1", 1000, "2001:db8::2", 80, 0, 0),
                ("2001:db8::1", 2000, "2001:db8::2", 80, 0, 1),
            ],
        ),
        (
            vec![of_a_source("host", &|matches| matches.dst_ip = Some("192.0.2.1/32".parse().unwrap()))],
            vec![("10.0.0.1", 1000, "192.0.2.1", 80, 0, 0), ("10.0.0.1", 1000, "192.0.2.2", 80, 0, 1)],
        ),
    ];
    let mut random = Random::new(0x5_7a);
    for (rules, syns) in cases {
        let mut limits = Limits::new(&rules, &guard);
        limits.xdp.set_cookies_usable(true);
        let frames: Vec<_> = syns.iter().map(|one| (syn((one.0, one.1), (one.2, one.3), one.4), one.5)).collect();
        let (nobody, guarded) = (rules.len(), rules.len() + 1);
        for _ in 0..30 {
            let mut expected = limits.counted();
            // Many in one tick: reading the counters takes longer than that.
            for _ in 0..100 {
                let (frame, rule) = &frames[random.below(frames.len())];
                if *rule == guarded {
                    expected[1].0 += 1;
                } else if *rule != nobody {
                    expected[*rule].1 += 1;
                }
                limits.xdp.test_run(frame, 0, 1).unwrap();
            }
            assert_eq!(limits.counted(), expected, "{syns:?}");
        }
        // And at once, when the host takes no more cookies.
        limits.xdp.test_run(&frames[0].0, 0, 10).unwrap();
        limits.xdp.set_cookies_usable(false);
        let mut expected = limits.counted();
        expected[0].0 += 10;
        limits.xdp.test_run(&frames[0].0, 0, 10).unwrap();
        assert_eq!(limits.counted(), expected);
    }
}
