//! The rate limiter: what passes is the rate, whoever counts it, and nobody pays for another one's packets.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use ebpfsentinel::abi::{fw_answer, rl_action, rl_algorithm, rl_rule, rl_scope};
use ebpfsentinel::bpf::jiffies_per_second;
use ebpfsentinel::bpf::xdp_ratelimit::{Switches, XdpRatelimit};
use ebpfsentinel::engines::ratelimit::limit::{Limit, Unit};
use ebpfsentinel::packet::build::Packet;
use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder};

use crate::harness::{XDP_DROP, XDP_PASS, arrive};

const SLOT: u32 = 7;

/// A rule for every packet.
#[derive(Clone, Copy)]
struct Rule {
    limit: Limit,
    algorithm: rl_algorithm,
    scope: rl_scope,
    action: rl_action,
    block_secs: u64,
    prefix: u8,
}

impl Default for Rule {
    fn default() -> Rule {
        Rule {
            limit: Limit { rate: 1000, burst: 20, unit: Unit::Packets },
            algorithm: rl_algorithm::RL_TOKEN_BUCKET,
            scope: rl_scope::RL_PER_IP,
            action: rl_action::RL_DROP,
            block_secs: 0,
            prefix: 64,
        }
    }
}

impl Rule {
    fn in_kernel(self, instance: u32) -> rl_rule {
        let second = jiffies_per_second().unwrap();
        rl_rule {
            limit: self.limit.arithmetic(second),
            block_ticks: self.block_secs * second,
            instance,
            algorithm: self.algorithm.0 as u8,
            scope: self.scope.0 as u8,
            action: self.action.0 as u8,
            bits: (self.limit.unit == Unit::Bits).into(),
            fine: 1,
            prefix: self.prefix,
            hold: 8,
            ..rl_rule::default()
        }
    }
}

struct Limiter {
    xdp: XdpRatelimit,
    instance: u32,
}

impl Limiter {
    fn new(rule: Rule) -> Limiter {
        Limiter::with_room(rule, 4096)
    }

    fn with_room(rule: Rule, buckets: u32) -> Limiter {
        let xdp = XdpRatelimit::load(Switches { multi_buffer: false, buckets, chain: None, steers: false })
            .expect("loading xdp_ratelimit");
        let mut limiter = Limiter { xdp, instance: 0 };
        limiter.replace(rule);
        limiter
    }

    /// A new rule in place of the old one.
    fn replace(&mut self, rule: Rule) {
        self.instance += 1;
        self.xdp.clear_slot(SLOT, rule.algorithm).unwrap();
        self.change(rule);
    }

    /// The same rule with other numbers.
    fn change(&mut self, rule: Rule) {
        let instance = self.instance;
        self.xdp
            .swap(|tables, rules| {
                tables.policy.enforce = 1;
                rules.any = [SLOT | fw_answer(0).0; 2];
                rules.ask = [0; 2];
                rules.rule[SLOT as usize] = rule.in_kernel(instance);
                Ok(())
            })
            .expect("swapping a rule in");
    }

    /// Whether one packet passes.
    fn passes(&self, frame: &[u8]) -> bool {
        match self.xdp.test_run(frame, 0, 1).unwrap().0 {
            XDP_PASS => true,
            XDP_DROP => false,
            other => panic!("action {other}"),
        }
    }

    /// How many of `count` packets pass that come at once.
    fn passing(&self, frame: &[u8], count: u32) -> u64 {
        let before = self.xdp.counts().rules[SLOT as usize].passed;
        self.xdp.test_run(frame, 0, count).unwrap();
        self.xdp.counts().rules[SLOT as usize].passed - before
    }
}

fn from(source: &str) -> Vec<u8> {
    let destination = if source.contains(':') { "2001:db8::ffff" } else { "10.255.255.255" };
    Packet::new().between(source, destination).udp(1000, 53).payload(&[0; 20]).build()
}

#[test]
fn a_burst_passes_and_no_more() {
    for algorithm in [rl_algorithm::RL_TOKEN_BUCKET, rl_algorithm::RL_LEAKY_BUCKET] {
        let limit = Limit { rate: 1, burst: 20, unit: Unit::Packets };
        let limiter = Limiter::new(Rule { limit, algorithm, ..Rule::default() });
        for source in ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1"] {
            assert_eq!(limiter.passing(&from(source), 500), 20, "{source}");
            assert!(!limiter.passes(&from(source)), "{source}");
        }
    }
}

/// How many packets the program takes in about a second, which a run of a few of them tells; those are charged, too.
fn in_a_second(limiter: &Limiter, frame: &[u8]) -> u32 {
    const FEW: u32 = 20_000;
    let (_, ns) = limiter.xdp.test_run(frame, 0, FEW).unwrap();
    (1_000_000_000 / ns.max(1)) as u32
}

/// Offered at many times the rate, without a pause but for those that the scheduler makes, which the burst outlasts.
#[test]
fn what_passes_is_the_rate() {
    let algorithms = [
        rl_algorithm::RL_TOKEN_BUCKET,
        rl_algorithm::RL_LEAKY_BUCKET,
        rl_algorithm::RL_FIXED_WINDOW,
        rl_algorithm::RL_SLIDING_WINDOW,
    ];
    for algorithm in algorithms {
        for (scope, source) in [(rl_scope::RL_PER_IP, "2001:db8::7"), (rl_scope::RL_GLOBAL, "10.0.0.7")] {
            let frame = from(source);
            for limit in [
                Limit { rate: 5000, burst: 1000, unit: Unit::Packets },
                Limit { rate: 4_000_000, burst: 800_000, unit: Unit::Bits },
            ] {
                let limiter = Limiter::new(Rule { limit, algorithm, scope, ..Rule::default() });
                let cost = if limit.unit == Unit::Bits { frame.len() as f64 * 8.0 } else { 1.0 };
                let begun = Instant::now();
                let offered = in_a_second(&limiter, &frame);
                limiter.xdp.test_run(&frame, 0, offered).unwrap();
                let passed = limiter.xdp.counts().rules[SLOT as usize].passed as f64 * cost;
                let elapsed = begun.elapsed().as_secs_f64();
                let of_rate = passed / limit.rate as f64;
                println!("{algorithm:?} {scope:?} {:?}: {of_rate:.3} seconds' worth in {elapsed:.3} s", limit.unit);
                assert!(f64::from(offered) * cost > 5.0 * elapsed * limit.rate as f64, "too slow to tell");
                let (low, high) = match algorithm {
                    // Everything at a window's begin.
                    rl_algorithm::RL_FIXED_WINDOW => ((elapsed - 0.1).ceil(), elapsed.ceil()),
                    // The first second has none before it to count with; reading the counters takes some milliseconds.
                    rl_algorithm::RL_SLIDING_WINDOW => ((elapsed - 0.1).max(1.0), elapsed.max(1.0)),
                    _ => (elapsed - 0.1, elapsed + limit.burst as f64 / limit.rate as f64),
                };
                assert!(
                    of_rate > low * 0.98 && of_rate < high * 1.02,
                    "{algorithm:?} {scope:?} {limit:?}: {of_rate} seconds' worth in {elapsed} s"
                );
            }
        }
    }
}

/// Addresses of IPv6 that agree in any 32 bits are two sources; those of one prefix are one.
#[test]
fn sources_are_told_apart() {
    let rule = Rule { limit: Limit { rate: 1, burst: 1, unit: Unit::Packets }, prefix: 128, ..Rule::default() };
    let mut limiter = Limiter::new(rule);
    assert!(limiter.passes(&from("2001:db8:1:2:3:4:5:6")));
    for bit in 0..128 {
        let address: std::net::Ipv6Addr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        let other = std::net::Ipv6Addr::from(u128::from(address) ^ 1 << bit);
        assert!(limiter.passes(&from(&other.to_string())), "bit {bit} is not looked at");
        assert!(!limiter.passes(&from(&other.to_string())), "bit {bit}");
    }
    // All of them stand in two sets, and differ in their backs only.
    let small = Limiter::with_room(rule, 16);
    let hosts: Vec<Vec<u8>> = (1..=12).map(|host| from(&format!("2001:db8::{host}"))).collect();
    assert!(hosts.iter().all(|frame| small.passes(frame)));
    assert!(!hosts.iter().any(|frame| small.passes(frame)));
    limiter.replace(Rule { prefix: 64, ..rule });
    assert!(limiter.passes(&from("2001:db8::1")));
    assert!(!limiter.passes(&from("2001:db8::2")));
    assert!(limiter.passes(&from("2001:db8:0:1::1")));
    limiter.replace(Rule { prefix: 33, ..rule });
    assert!(limiter.passes(&from("2001:db8::1")));
    assert!(!limiter.passes(&from("2001:db8:7fff::1")));
    assert!(limiter.passes(&from("2001:db8:8000::1")));
    // ::ffff:10.0.0.1 as an IPv6 source is nobody's IPv4 address; the firewall's rules see it as IPv6, too.
    limiter.replace(Rule { prefix: 128, ..rule });
    assert!(limiter.passes(&from("10.0.0.1")));
    assert!(limiter.passes(&from("10.0.0.2")));
    assert!(!limiter.passes(&from("10.0.0.1")));
}

#[test]
fn scopes_say_whose_packets_count_together() {
    let frame = |source: &str, destination: &str, port: u16| {
        Packet::new().between(source, destination).udp(port, 53).payload(&[0; 20]).build()
    };
    let rule = Rule { limit: Limit { rate: 1, burst: 1, unit: Unit::Packets }, ..Rule::default() };
    let packets = [
        frame("10.0.0.1", "10.1.0.1", 1),
        frame("10.0.0.1", "10.1.0.1", 2),
        frame("10.0.0.1", "10.1.0.2", 1),
        frame("10.0.0.2", "10.1.0.1", 1),
        frame("10.0.0.1", "10.1.0.1", 1),
    ];
    for (scope, expected) in [
        (rl_scope::RL_PER_IP, [true, false, false, true, false]),
        (rl_scope::RL_PER_FLOW, [true, true, true, true, false]),
        (rl_scope::RL_PER_DST, [true, false, true, false, false]),
        (rl_scope::RL_GLOBAL, [true, false, false, false, false]),
    ] {
        let limiter = Limiter::new(Rule { scope, ..rule });
        let passed: Vec<bool> = packets.iter().map(|frame| limiter.passes(frame)).collect();
        assert_eq!(passed, expected, "{scope:?}");
    }
}

#[test]
fn a_change_of_rate_is_in_effect_at_once() {
    let slow = Rule { limit: Limit { rate: 1, burst: 10, unit: Unit::Packets }, ..Rule::default() };
    let mut limiter = Limiter::new(slow);
    let frame = from("10.0.0.1");
    assert_eq!(limiter.passing(&frame, 100), 10);
    let fast = Rule { limit: Limit { rate: 1_000_000, burst: 10, unit: Unit::Packets }, ..slow };
    limiter.change(fast);
    assert!(limiter.passes(&frame), "the old rate still holds");
    std::thread::sleep(Duration::from_millis(1));
    assert!(limiter.passing(&frame, 100) >= 10, "the old rate still holds");
    limiter.change(slow);
    assert!(limiter.passing(&frame, 100) <= 10);
    assert!(!limiter.passes(&frame));
}

#[test]
fn who_is_blocked_stays_out() {
    let limit = Limit { rate: 1000, burst: 5, unit: Unit::Packets };
    for algorithm in [rl_algorithm::RL_TOKEN_BUCKET, rl_algorithm::RL_SLIDING_WINDOW] {
        let rule = Rule { limit, algorithm, action: rl_action::RL_BLOCK, block_secs: 1, ..Rule::default() };
        let limiter = Limiter::new(rule);
        let (bad, good) = (from("10.0.0.1"), from("10.0.0.2"));
        limiter.passing(&bad, 5000);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!limiter.passes(&bad), "{algorithm:?}");
        assert!(limiter.passes(&good), "{algorithm:?}");
        std::thread::sleep(Duration::from_millis(1000));
        assert!(limiter.passes(&bad), "{algorithm:?}: blocked for longer than asked");
    }
}

/// Who found no room goes by the common bucket, and that one is never blocked: one of them would shut out all others.
#[test]
fn newcomers_do_not_block_each_other() {
    let limit = Limit { rate: 1000, burst: 5, unit: Unit::Packets };
    let rule = Rule { limit, action: rl_action::RL_BLOCK, block_secs: 60, ..Rule::default() };
    let limiter = Limiter::with_room(rule, 16);
    for host in 1..=60 {
        limiter.passes(&from(&format!("10.0.0.{host}")));
    }
    assert_eq!(limiter.xdp.buckets().count(), 16, "there is no room left");
    let newcomer = from("10.0.1.1");
    assert!(limiter.passing(&newcomer, 5000) < 5000, "they are limited together");
    std::thread::sleep(Duration::from_millis(100));
    assert!(limiter.passes(&from("10.0.1.2")));
    // A rule for all together is blocked as a whole.
    let all = Limiter::new(Rule { scope: rl_scope::RL_GLOBAL, ..rule });
    all.passing(&newcomer, 5000);
    std::thread::sleep(Duration::from_millis(100));
    assert!(!all.passes(&from("10.0.1.2")));
}

#[test]
fn action_pass_counts_and_drops_nothing() {
    let limit = Limit { rate: 1, burst: 5, unit: Unit::Packets };
    let limiter = Limiter::new(Rule { limit, action: rl_action::RL_PASS, ..Rule::default() });
    let frame = from("10.0.0.1");
    assert_eq!(limiter.passing(&frame, 50), 5);
    assert!(limiter.passes(&frame));
    assert_eq!(limiter.xdp.counts().rules[SLOT as usize].dropped, 46);
}

/// Silent buckets go, by the kernel's own timer.
#[test]
fn silent_buckets_expire() {
    let limiter = Limiter::new(Rule::default());
    for host in 1..100 {
        assert!(limiter.passes(&from(&format!("10.0.0.{host}"))));
    }
    assert_eq!(limiter.xdp.buckets().count(), 99);
    let begun = Instant::now();
    while limiter.xdp.buckets().count() != 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} are left", limiter.xdp.buckets().count());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(limiter.xdp.counts().expired, 99);
}

/// The injector of sources of benches/bench.bpf.c, in front of a limiter.
struct Flood {
    object: Object,
}

impl Flood {
    fn new(limiter: &Limiter) -> Flood {
        /// TARGET_LIMIT.
        const TARGET: u32 = 4;
        let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/bench.bpf.o"));
        let mut builder = ObjectBuilder::default();
        let mut open = builder.open_memory(bytes).unwrap();
        // Others ask for helpers that not every kernel has.
        for mut program in open.progs_mut().filter(|program| program.name() != "sources_to_limit") {
            program.set_autoload(false);
        }
        let flood = Flood { object: open.load().unwrap() };
        let program = limiter.xdp.program().as_raw_fd().to_ne_bytes();
        flood.map("targets").update(&TARGET.to_ne_bytes(), &program, MapFlags::ANY).unwrap();
        flood
    }

    fn map(&self, name: &str) -> libbpf_rs::Map<'_> {
        self.object.maps().find(|map| map.name() == name).unwrap()
    }

    /// Sends `count` packets from sources of 10.0.0.0/8, `sources` of them, a power of two.
    fn send(&self, count: u32, sources: u32) {
        let control = self.map(".bss.control");
        let mut value = control.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
        // struct bench_control: source_mask is its last number but one.
        let at = value.len() - 8;
        value[at..at + 4].copy_from_slice(&(sources - 1).to_ne_bytes());
        control.update(&0u32.to_ne_bytes(), &value, MapFlags::ANY).unwrap();
        let program = self.object.progs().find(|program| program.name() == "sources_to_limit").unwrap();
        arrive(program.as_fd().as_raw_fd(), &from("10.0.0.1"), count);
    }
}

/// Ten million invented sources neither evict nor slow down who was here before.
#[test]
fn an_invented_crowd_evicts_nobody() {
    const KNOWN: usize = 200;
    const ROOM: u32 = 16_384;
    let limit = Limit { rate: 10, burst: 30, unit: Unit::Packets };
    let limiter = Limiter::with_room(Rule { limit, ..Rule::default() }, ROOM);
    let flood = Flood::new(&limiter);
    let clients: Vec<Vec<u8>> =
        (0..KNOWN).map(|host| from(&format!("192.0.2.{}", host + 1))).chain([from("2001:db8:77::1")]).collect();
    let starts = || -> std::collections::BTreeMap<[u64; 2], u32> {
        let known = limiter.xdp.buckets().filter(|one| one.id as u8 == 6 || one.key[0] >> 8 == 0x00c0_0002);
        known.map(|one| ([one.key[0], one.key[1]], one.start)).collect()
    };
    // They are known when they have been here for two seconds.
    for _ in 0..3 {
        clients.iter().for_each(|frame| assert!(limiter.passes(frame)));
        std::thread::sleep(Duration::from_millis(1100));
    }
    clients.iter().for_each(|frame| assert!(limiter.passes(frame)));
    let before = starts();
    assert_eq!(before.len(), clients.len());
    for _ in 0..10 {
        flood.send(1_000_000, 1 << 24);
        // A client in the middle of it, within its limit.
        clients.iter().take(20).for_each(|frame| assert!(limiter.passes(frame), "a known client was held up"));
    }
    assert_eq!(starts(), before, "buckets of known clients were lost, or made anew");
    let counts = limiter.xdp.counts();
    let rule = counts.rules[SLOT as usize];
    let strangers = rule.passed + rule.dropped - 4 * clients.len() as u64 - 200;
    assert_eq!(strangers, 10_000_000);
    assert!(counts.made - before.len() as u64 > u64::from(ROOM) / 2, "the flood was given the room that was free");
    assert!(counts.crowded > 9_000_000, "{} went by the common bucket", counts.crowded);
    assert!(rule.dropped > 9_000_000, "beyond that it was limited as a whole: {} dropped", rule.dropped);
    assert_eq!(counts.contended, 0);
}

/// All CPUs together get the rate, not each of them.
#[test]
fn cpus_share_a_limit() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!(cpus > 1, "needs two CPUs");
    for algorithm in [
        rl_algorithm::RL_TOKEN_BUCKET,
        rl_algorithm::RL_LEAKY_BUCKET,
        rl_algorithm::RL_FIXED_WINDOW,
        rl_algorithm::RL_SLIDING_WINDOW,
    ] {
        for scope in [rl_scope::RL_PER_IP, rl_scope::RL_GLOBAL] {
            let limit = Limit { rate: 20_000, burst: 4000, unit: Unit::Packets };
            let limiter = Limiter::new(Rule { limit, algorithm, scope, ..Rule::default() });
            let frame = from("10.0.0.1");
            let program = limiter.xdp.program().as_raw_fd();
            let begun = Instant::now();
            let offered = in_a_second(&limiter, &frame);
            let before = limiter.xdp.counts().rules[SLOT as usize];
            std::thread::scope(|threads| {
                for cpu in 0..cpus {
                    let frame = &frame;
                    threads.spawn(move || {
                        let mut set = nix::sched::CpuSet::new();
                        set.set(cpu).unwrap();
                        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
                        arrive(program, frame, offered);
                    });
                }
            });
            let elapsed = begun.elapsed().as_secs_f64();
            let counts = limiter.xdp.counts();
            let rule = counts.rules[SLOT as usize];
            let arrived = rule.passed + rule.dropped - before.passed - before.dropped;
            assert_eq!(arrived, cpus as u64 * u64::from(offered));
            let of_rate = rule.passed as f64 / limit.rate as f64;
            let high = match algorithm {
                rl_algorithm::RL_FIXED_WINDOW => elapsed.ceil(),
                rl_algorithm::RL_SLIDING_WINDOW => elapsed.max(1.0),
                _ => elapsed + 0.2,
            };
            println!(
                "{algorithm:?} {scope:?}: {of_rate:.3} seconds' worth in {elapsed:.3} s, {} contended",
                counts.contended
            );
            assert!(of_rate < high * 1.02, "{algorithm:?} {scope:?}: {of_rate} seconds' worth in {elapsed} s");
            assert!(
                of_rate > (elapsed - 0.4) * 0.98,
                "{algorithm:?} {scope:?}: {of_rate} seconds' worth in {elapsed} s"
            );
        }
    }
}
