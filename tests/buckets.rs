//! The arithmetic of rate limits, `include/buckets.h`, compiled for this host and held against the algorithms as a book
//! has them, in exact arithmetic with the true rate.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use ebpfsentinel::abi::rl_limit;
use ebpfsentinel::engines::ratelimit::limit::{Limit, Unit};

use random::Random;

#[path = "support/random.rs"]
pub mod random;

/// A second in the unit of time of the buckets, 2^-16 ns. Windows count in ticks.
const SECOND: i128 = 1_000_000_000 << 16;
const MILLISECOND: i128 = SECOND / 1000;
const HOUR: i128 = 3600 * SECOND;

/// By how much a clock may seem to go back before a bucket is set right: 2^42, `BUCKET_STALL`.
const STALL: i128 = 1 << 42;

// ---- the C code ----

type BucketFn = extern "C" fn(u64, u64, u64, &rl_limit) -> u64;
type FixedFn = extern "C" fn(u64, u64, u64, u64, &rl_limit) -> u64;
type GateFn = extern "C" fn(u64, u64, u32, &mut u64) -> u64;
type SlidingFn = extern "C" fn(&mut [u64; 2], u64, u64, u64, &rl_limit) -> u64;

struct Native {
    token_bucket: BucketFn,
    leaky_bucket: BucketFn,
    fixed_window: FixedFn,
    sliding_window: SlidingFn,
    syn_gate: GateFn,
}

static NATIVE: LazyLock<Native> = LazyLock::new(|| {
    let library = compile();
    // SAFETY: the library has no constructors, and stays loaded.
    let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!handle.is_null(), "loading {library:?} failed");
    let find = |name: &CStr| -> *mut c_void {
        // SAFETY: the handle is of an open library, the name ends with a zero.
        let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
        assert!(!found.is_null(), "{library:?} has no {name:?}");
        found
    };
    // SAFETY: the functions of tests/native/buckets.c have these types, keep no pointer, and take any numbers but a
    // window of 0 ticks, which no limit has.
    unsafe {
        Native {
            token_bucket: std::mem::transmute::<*mut c_void, BucketFn>(find(c"native_token_bucket")),
            leaky_bucket: std::mem::transmute::<*mut c_void, BucketFn>(find(c"native_leaky_bucket")),
            fixed_window: std::mem::transmute::<*mut c_void, FixedFn>(find(c"native_fixed_window")),
            sliding_window: std::mem::transmute::<*mut c_void, SlidingFn>(find(c"native_sliding_window")),
            syn_gate: std::mem::transmute::<*mut c_void, GateFn>(find(c"native_syn_gate")),
        }
    }
});

fn compile() -> CString {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("buckets.so");
    let output = Command::new(clang())
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I"])
        .arg(root.join("include"))
        .arg("-o")
        .arg(&library)
        .arg(root.join("tests/native/buckets.c"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    CString::new(library.to_str().unwrap()).unwrap()
}

/// The compiler that build.rs takes.
fn clang() -> PathBuf {
    if let Some(path) = env::var_os("EBPFSENTINEL_CLANG") {
        return path.into();
    }
    let path = env::var_os("PATH").unwrap();
    ["clang-19", "clang-20", "clang-21", "clang"]
        .iter()
        .find_map(|name| env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()))
        .expect("a clang in PATH")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Token,
    Leaky,
    Fixed,
    Sliding,
}
use Algorithm::{Fixed, Leaky, Sliding, Token};

/// A bucket as the kernel side has it. Its time is 64 bits that go round: 2^-16 ns, or ticks.
#[derive(Clone)]
struct Bucket {
    algorithm: Algorithm,
    words: [u64; 2],
    start: u64,
}

impl Bucket {
    fn new(algorithm: Algorithm, now: u64) -> Bucket {
        let word = if matches!(algorithm, Token | Leaky) { now } else { 0 };
        Bucket { algorithm, words: [word, 0], start: now }
    }

    /// Whether a packet passes.
    fn arrive(&mut self, now: u64, cost: u64, limit: &rl_limit) -> bool {
        let word = self.words[0];
        self.words[0] = match self.algorithm {
            Token => (NATIVE.token_bucket)(word, now, cost, limit),
            Leaky => (NATIVE.leaky_bucket)(word, now, cost, limit),
            Fixed => (NATIVE.fixed_window)(word, now, self.start, cost, limit),
            Sliding => return (NATIVE.sliding_window)(&mut self.words, now, self.start, cost, limit) == 1,
        };
        self.words[0] != word
    }

    /// How many of `count` packets pass that come at once.
    fn pass_at_once(&mut self, now: u64, count: u64, cost: u64, limit: &rl_limit) -> u64 {
        (0..count).map(|_| u64::from(self.arrive(now, cost, limit))).sum()
    }
}

/// A moment later, or earlier.
fn at(now: u64, later: i128) -> u64 {
    now.wrapping_add(later as u64)
}

// ---- the same as a book has it ----

/// Time never goes round here. Units are multiplied by what a second has of time, so that the rate brings whole ones.
enum Exact {
    Token { tokens: i128, last: i128 },
    Leaky { level: i128, last: i128 },
    Windows { sliding: bool, units: BTreeMap<i128, i128> },
}

impl Exact {
    fn new(algorithm: Algorithm, limit: &Limit) -> Exact {
        match algorithm {
            Token => Exact::Token { tokens: i128::from(limit.burst) * SECOND, last: 0 },
            Leaky => Exact::Leaky { level: 0, last: 0 },
            Fixed => Exact::Windows { sliding: false, units: BTreeMap::new() },
            Sliding => Exact::Windows { sliding: true, units: BTreeMap::new() },
        }
    }

    /// Whether a packet passes that comes `now` after the bucket was made; `ticks` are those of a second.
    fn arrive(&mut self, now: i128, cost: u64, limit: &Limit, ticks: i128) -> bool {
        let (rate, cost) = (i128::from(limit.rate), i128::from(cost));
        let burst = i128::from(limit.burst) * SECOND;
        match self {
            Exact::Token { tokens, last } => {
                *tokens = (*tokens + (now - *last) * rate).min(burst);
                *last = now;
                let passes = *tokens >= cost * SECOND;
                *tokens -= if passes { cost * SECOND } else { 0 };
                passes
            }
            Exact::Leaky { level, last } => {
                *level = (*level - (now - *last) * rate).max(0);
                *last = now;
                let passes = *level + cost * SECOND <= burst;
                *level += if passes { cost * SECOND } else { 0 };
                passes
            }
            Exact::Windows { sliding, units } => {
                let room = Exact::room(*sliding, units, now, rate, ticks);
                let passes = cost * ticks <= room;
                *units.entry(now / ticks).or_default() += if passes { cost } else { 0 };
                passes
            }
        }
    }

    /// What still fits into a window, times `ticks`.
    fn room(sliding: bool, units: &BTreeMap<i128, i128>, now: i128, rate: i128, ticks: i128) -> i128 {
        let of = |window: i128| units.get(&window).copied().unwrap_or(0);
        let (window, elapsed) = (now / ticks, now % ticks);
        let older = if sliding { of(window - 1) * (ticks - elapsed) } else { 0 };
        (rate - of(window)) * ticks - older
    }
}

// ---- random arrivals ----

/// Uniform in its logarithm, with a share of round numbers.
fn spread(random: &mut Random, low: u64, high: u64) -> u64 {
    let exponent = random.unit() * (high as f64 / low as f64).log2();
    let value = ((low as f64 * exponent.exp2()) as u64).clamp(low, high);
    let digits = 10u64.pow(value.ilog10());
    if random.chance(25) { (value / digits * digits).max(low) } else { value }
}

fn random_limit(random: &mut Random) -> Limit {
    let unit = random.pick(&[Unit::Packets, Unit::Bits]);
    let (lowest, highest) = unit.rates();
    let rate = spread(random, lowest, highest);
    let longest = rate * Limit::BURST_SECONDS_MAX;
    let few = random.pick(&[1, 10, 100]) * unit.burst_min();
    let most = if random.chance(75) { few.min(longest) } else { longest };
    let burst = spread(random, unit.burst_min(), most);
    let limit = Limit { rate, burst, unit };
    limit.check().unwrap();
    limit
}

/// What the packets of a sequence may cost.
fn random_costs(random: &mut Random, unit: Unit) -> Vec<u64> {
    let bytes = match (unit, random.below(4)) {
        (Unit::Packets, _) => return vec![1],
        (_, 0) => vec![random.between(60, 1518)],
        (_, 1) => vec![60, 590, 1518],
        (_, 2) => (0..50).map(|_| random.between(14, 1518)).collect(),
        (_, _) => vec![60, 1518, random.between(1519, 65535)],
    };
    bytes.iter().map(|bytes| bytes * 8).collect()
}

/// How packets follow each other: not at all apart, or on average at this part of the rate. None is a whole multiple of
/// it: at twice the rate each second packet would come when a bucket with a burst of one is just ready for it. Then the
/// last 2^-16 ns decides, and who misses that moment has no second one.
const PACES: [Pace; 10] = [
    Pace::AtOnce,
    Pace::AtRate,
    Pace::Even(0.3),
    Pace::Even(0.999),
    Pace::Even(1.001),
    Pace::Even(1.618),
    Pace::Random(0.5),
    Pace::Random(1.0),
    Pace::Random(5.0),
    Pace::Random(1000.0),
];

#[derive(Clone, Copy)]
enum Pace {
    AtOnce,
    AtRate,
    Even(f64),
    Random(f64),
}

impl Pace {
    /// From a packet of this cost to the next one.
    fn gap(self, random: &mut Random, cost: u64, rate: u64) -> i128 {
        let (cost, rate) = (i128::from(cost), i128::from(rate));
        let part = |of: f64| ((cost * SECOND) as f64 / rate as f64 * of) as i128;
        match self {
            Pace::AtOnce => 0,
            Pace::AtRate => (cost * SECOND + rate - 1) / rate,
            Pace::Even(load) => part(1.0 / load),
            Pace::Random(load) => part(random.unit() * 2.0 / load),
        }
    }
}

/// What was compared.
#[derive(Debug, Default)]
struct Tally {
    sequences: u64,
    passed: u64,
    dropped: u64,
    /// Sequences in which each packet was decided alike.
    alike: u64,
}

/// Token and leaky bucket on one sequence: after each packet the units that passed differ by at most one packet's.
fn compare_bucket(algorithm: Algorithm, random: &mut Random, tally: &mut Tally) {
    let limit = random_limit(random);
    let costs = random_costs(random, limit.unit);
    let made = limit.arithmetic(1000);
    let depth = i128::from(made.depth);
    // 2^-16 ns, ns, µs, a tick of 4 ms.
    let grain = random.pick(&[1, 1 << 16, 1000 << 16, 4_000_000 << 16]);
    let mut arrivals = Vec::new();
    let mut now: i128 = 0;
    for _ in 0..random.between(4, 8) {
        let pace = random.pick(&PACES);
        for _ in 0..random.between(20, 80) {
            let cost = random.pick(&costs);
            arrivals.push(((now + grain - 1) / grain * grain, cost));
            now += pace.gap(random, cost, limit.rate);
        }
        let idle = random.pick(&[0, depth / 3, 2 * depth, 180 * SECOND]);
        now += (random.unit() * idle as f64) as i128;
    }
    // Half of the clocks go round in the middle.
    let base = if random.chance(50) { random.bits() } else { (now as u64 / 2).wrapping_neg() };
    let mut bucket = Bucket::new(algorithm, base);
    let mut exact = Exact::new(algorithm, &limit);
    if random.chance(30) {
        // Large bursts too should meet their end.
        bucket.words[0] = base.wrapping_add(made.depth);
        match &mut exact {
            Exact::Token { tokens, .. } => *tokens = 0,
            Exact::Leaky { level, .. } => *level = i128::from(limit.burst) * SECOND,
            Exact::Windows { .. } => unreachable!("not a bucket"),
        }
    }
    let packet = i128::from(*costs.iter().max().unwrap());
    let (mut ahead, mut alike) = (0i128, true);
    for &(now, cost) in &arrivals {
        let passes = bucket.arrive(at(base, now), cost, &made);
        let expected = exact.arrive(now, cost, &limit, 1);
        ahead += i128::from(cost) * (i128::from(passes) - i128::from(expected));
        assert!(
            ahead.abs() <= packet,
            "{algorithm:?}, {limit:?}: {ahead} units ahead at {now} of a sequence from {base}, sequence {}",
            tally.sequences
        );
        alike &= passes == expected;
        *(if passes { &mut tally.passed } else { &mut tally.dropped }) += 1;
    }
    tally.sequences += 1;
    tally.alike += u64::from(alike);
}

/// Windows on one sequence: each packet is decided alike.
fn compare_window(algorithm: Algorithm, random: &mut Random, tally: &mut Tally) {
    let limit = random_limit(random);
    let costs = random_costs(random, limit.unit);
    let window = random.pick(&[100, 250, 300, 1000]);
    let ticks = i128::from(window);
    let made = limit.arithmetic(window);
    let mut exact = Exact::new(algorithm, &limit);
    let mut bucket = Bucket::new(algorithm, random.bits() >> random.between(0, 32));
    let mut now = 0;
    if random.chance(30) {
        // The numbers are about to go round; neither word may be so old that it does not know yet.
        now = ticks * ((1 << 24) * i128::from(random.between(1, 3)) - 7);
        for _ in 0..2 {
            assert!(exact.arrive(now, 1, &limit, ticks) && bucket.arrive(at(bucket.start, now), 1, &made));
            now += 3 * ticks;
        }
    }
    for _ in 0..random.between(4, 8) {
        // One packet stands for all that filled the window so far: a few hundred reach low rates only.
        let cost = random.pick(&costs);
        if random.chance(80) {
            let Exact::Windows { sliding, units } = &exact else { unreachable!("not windows") };
            let room = Exact::room(*sliding, units, now, i128::from(limit.rate), ticks) / ticks;
            let bulk = room - i128::from(cost * random.between(0, 20)) - random.between(0, 9) as i128;
            if bulk > 0 {
                assert!(exact.arrive(now, bulk as u64, &limit, ticks));
                assert!(bucket.arrive(at(bucket.start, now), bulk as u64, &made));
            }
        }
        let pause = random.pick(&[0, 1, window / 20, window / 3]);
        for _ in 0..random.between(20, 80) {
            let cost = random.pick(&costs);
            let passes = bucket.arrive(at(bucket.start, now), cost, &made);
            let expected = exact.arrive(now, cost, &limit, ticks);
            assert_eq!(passes, expected, "{algorithm:?}, {limit:?}, tick {now} of {ticks}, cost {cost}");
            *(if passes { &mut tally.passed } else { &mut tally.dropped }) += 1;
            now += random.between(0, pause) as i128;
        }
        let idle = random.pick(&[0, window, 5 * window]);
        now += random.between(0, idle) as i128;
    }
    tally.sequences += 1;
    tally.alike += 1;
}

fn compare(algorithm: Algorithm, seed: u64) {
    const SEQUENCES: u64 = 10_000;
    let (mut random, mut tally) = (Random::new(seed), Tally::default());
    for _ in 0..SEQUENCES {
        match algorithm {
            Token | Leaky => compare_bucket(algorithm, &mut random, &mut tally),
            Fixed | Sliding => compare_window(algorithm, &mut random, &mut tally),
        }
    }
    println!("{algorithm:?}: {tally:?}");
    assert!(tally.passed > 50 * SEQUENCES && tally.dropped > 50 * SEQUENCES, "{tally:?}");
    assert!(tally.alike > SEQUENCES * 999 / 1000, "{tally:?}");
}

#[test]
fn a_token_bucket_is_as_the_book_has_it() {
    compare(Token, 1);
}

#[test]
fn a_leaky_bucket_is_as_the_book_has_it() {
    compare(Leaky, 2);
}

#[test]
fn a_fixed_window_is_as_the_book_has_it() {
    compare(Fixed, 3);
}

#[test]
fn a_sliding_window_is_as_the_book_has_it() {
    compare(Sliding, 4);
}

// ---- edges of the buckets ----

fn packets(rate: u64, burst: u64) -> Limit {
    let limit = Limit { rate, burst, unit: Unit::Packets };
    limit.check().unwrap();
    limit
}

fn bits(rate: u64, burst: u64) -> Limit {
    let limit = Limit { rate, burst, unit: Unit::Bits };
    limit.check().unwrap();
    limit
}

/// Time that so many units take at the true rate, rounded up.
fn time(units: u64, rate: u64) -> i128 {
    (i128::from(units) * SECOND + i128::from(rate) - 1) / i128::from(rate)
}

const FRAME: u64 = 1518 * 8;
const SHORT: u64 = 64 * 8;
const LARGEST: u64 = 65535 * 8;

/// Limits and costs that reach to the ends of what is allowed.
fn extremes() -> Vec<(Limit, u64)> {
    let top = 999_999_999_999;
    vec![
        (packets(1, 1), 1),
        (packets(1, 43_200), 1),
        (packets(3, 7), 1),
        (packets(1_000_000_000, 1), 1),
        (packets(1_000_000_000, 100_000), 1),
        (packets(999_984_741, 1000), 1),
        (bits(1000, FRAME), FRAME),
        (bits(1000, FRAME), SHORT),
        (bits(1000, LARGEST), LARGEST),
        (bits(1000, 43_200_000), LARGEST),
        (bits(top, FRAME), FRAME),
        (bits(top, FRAME), SHORT),
        (bits(top, 100 * LARGEST), LARGEST),
    ]
}

#[test]
fn at_the_extremes_the_burst_passes_and_then_the_rate() {
    for (limit, cost) in extremes() {
        for algorithm in [Token, Leaky] {
            let (made, mut now) = (limit.arithmetic(1000), u64::MAX / 3);
            let mut bucket = Bucket::new(algorithm, now);
            let burst = limit.burst / cost;
            assert_eq!(bucket.pass_at_once(now, burst + 3, cost, &made), burst, "{limit:?}");
            let start = now;
            let mut early = i128::from(burst) + 1 + (time(limit.burst, limit.rate) >> 43);
            for more in 1..=100 {
                let due = time((burst + more) * cost - limit.burst, limit.rate);
                early += 1 + (time(cost, limit.rate) >> 43);
                assert!(!bucket.clone().arrive(at(start, due - early), cost, &made), "{limit:?}: {more} too early");
                now = at(start, due);
                assert!(bucket.arrive(now, cost, &made), "{limit:?}: {more} is due");
            }
            // After a rest it is as new.
            now = at(now, time(limit.burst, limit.rate));
            assert_eq!(bucket.pass_at_once(now, burst + 3, cost, &made), burst, "{limit:?}");
        }
    }
}

#[test]
fn what_costs_more_than_the_burst_never_passes() {
    for algorithm in [Token, Leaky] {
        let (made, now) = (bits(1000, FRAME).arithmetic(1000), 12345);
        let mut bucket = Bucket::new(algorithm, now);
        assert!(!bucket.arrive(now, FRAME + 8, &made), "full");
        assert!(bucket.arrive(now, FRAME, &made));
        assert!(!bucket.arrive(now, FRAME + 8, &made), "empty");
        assert!(!bucket.arrive(at(now, -HOUR), FRAME + 8, &made), "emptier than empty");
        assert!(!bucket.arrive(at(now, HOUR), FRAME + 8, &made), "full again");
        assert!(!bucket.arrive(at(now, HOUR), LARGEST, &made));
    }
}

#[test]
fn a_clock_that_goes_back_neither_opens_a_bucket_nor_shuts_it() {
    for (limit, cost) in extremes() {
        for back in [1, MILLISECOND, 10 * MILLISECOND, SECOND, HOUR, 12 * HOUR] {
            for algorithm in [Token, Leaky] {
                let (made, before) = (limit.arithmetic(1000), 5000);
                let burst = limit.burst / cost;
                let mut bucket = Bucket::new(algorithm, before);
                assert_eq!(bucket.pass_at_once(before, burst + 1, cost, &made), burst);
                let now = at(before, -back);
                let context = format!("{limit:?}, {back} back");
                // Out by more than a stall it passes one packet, else none.
                let passed = bucket.pass_at_once(now, burst + 1, cost, &made);
                let unused = time(limit.burst - burst * cost, limit.rate);
                assert_eq!(passed, u64::from(back - unused > STALL), "{context}");
                let due = at(now, time(cost, limit.rate) + STALL);
                assert!(bucket.clone().arrive(due, cost, &made), "{context}: shut for too long");
                // From then on it is the rate's.
                let (steps, passed) = (1000, passed as i128);
                let later = (1..=steps).map(|step| i128::from(step) * time(cost, limit.rate) / 3);
                let more = later.map(|later| i128::from(bucket.arrive(at(now, later), cost, &made))).sum::<i128>();
                assert!(passed + more <= i128::from(burst) + i128::from(steps) / 3 + 2, "{context}: {more}");
            }
        }
    }
}

/// CPUs read the clock, and some time later swap the word that another one may have written in between.
#[test]
fn a_clock_that_is_read_too_early_buys_nothing() {
    for (limit, cost) in extremes() {
        for algorithm in [Token, Leaky] {
            let (made, start) = (limit.arithmetic(1000), u64::MAX - 1000);
            let mut random = Random::new(limit.rate ^ limit.burst ^ cost);
            let mut bucket = Bucket::new(algorithm, start);
            let (mut now, mut passed) = (0, 0i128);
            for _ in 0..20_000 {
                let late = (random.unit() * random.unit() * STALL as f64) as i128;
                passed += i128::from(bucket.arrive(at(start, (now - late).max(0)), cost, &made)) * i128::from(cost);
                let most = i128::from(limit.burst) * SECOND + now * i128::from(limit.rate);
                // Rounding gives 2^-16 ns a packet, of at least 64 in which a bit of it passes.
                let rounding = passed * i128::from(limit.rate) / i128::from(cost) + ((passed * SECOND) >> 43);
                assert!(passed * SECOND <= most + rounding, "{limit:?}, {late} late at {now}");
                now += (random.unit() * time(cost, limit.rate) as f64) as i128;
            }
            assert!(passed > i128::from(cost), "{limit:?}");
        }
    }
}

#[test]
fn a_changed_limit_counts_at_once() {
    for algorithm in [Token, Leaky] {
        // From, to, and what passes of a flood at the moment of the change and in the ten seconds after it.
        let check = |from: Limit, to: Limit, at_once: u64, then: u64| {
            let (old, new) = (from.arithmetic(1000), to.arithmetic(1000));
            let start = 77;
            let mut bucket = Bucket::new(algorithm, start);
            assert_eq!(bucket.pass_at_once(start, from.burst + 1, 1, &old), from.burst);
            let context = format!("{algorithm:?}, {from:?} to {to:?}");
            assert_eq!(bucket.pass_at_once(start, to.burst + 1, 1, &new), at_once, "{context}");
            let later = (1..=100_000).map(|step| i128::from(step) * SECOND / 10_000);
            let passed = later.map(|later| u64::from(bucket.arrive(at(start, later), 1, &new))).sum::<u64>();
            assert_eq!(passed, then, "{context}");
        };
        // Raised: what was lacking took 10 s, more than the new bucket can lack. Else those seconds would pass nothing.
        check(packets(1, 10), packets(1000, 10), 1, 10_000);
        check(packets(1, 10), packets(2, 10), 1, 20);
        check(packets(1, 10), packets(10, 100), 0, 100);
        // Lowered: what was lacking took 10 ms.
        check(packets(1000, 10), packets(1, 10), 9, 10);
        check(packets(1000, 10), packets(1, 5), 4, 10);
        // Another burst.
        check(packets(10, 10), packets(10, 1), 1, 100);
        check(packets(10, 10), packets(10, 30), 20, 100);
    }
    // A burst that was lowered holds for a bucket that is full.
    let mut bucket = Bucket::new(Token, 0);
    assert_eq!(bucket.pass_at_once(at(0, HOUR), 10, 1, &packets(1, 2).arithmetic(1000)), 2);
}

#[test]
fn a_clock_that_goes_round_changes_nothing() {
    for (limit, cost) in extremes() {
        let made = limit.arithmetic(1000);
        for algorithm in [Token, Leaky] {
            let run = |start: u64| {
                let mut random = Random::new(limit.burst);
                let mut bucket = Bucket::new(algorithm, start);
                let mut later = 0;
                let arrivals = (0..1000).map(|_| {
                    later += (random.unit() * time(cost, limit.rate) as f64 * 1.5) as i128;
                    bucket.arrive(at(start, later), cost, &made)
                });
                arrivals.collect::<Vec<bool>>()
            };
            let expected = run(0);
            for before in [1, 3, 100] {
                assert_eq!(run(at(0, -before * time(cost, limit.rate))), expected, "{limit:?}");
            }
            assert_eq!(run(i64::MAX as u64), expected, "{limit:?}");
        }
    }
}

#[test]
fn a_bucket_that_rested_is_full_and_never_shut() {
    for (limit, cost) in extremes() {
        let (made, burst) = (limit.arithmetic(1000), limit.burst / cost);
        let depth = i128::from(made.depth);
        for algorithm in [Token, Leaky] {
            let rested = |rest: i128| {
                let mut bucket = Bucket::new(algorithm, 99);
                let passed = bucket.pass_at_once(at(99, rest), burst + 1, cost, &made);
                (passed, bucket.arrive(at(99, rest + time(cost, limit.rate)), cost, &made))
            };
            for hours in [1, 20, 39] {
                assert_eq!(rested(hours * HOUR), (burst, true), "{limit:?} after {hours} hours");
            }
            let round = 1i128 << 64;
            for rest in [40 * HOUR, 50 * HOUR, round - depth - 2 * STALL] {
                assert_eq!(rested(rest), (1, true), "{limit:?} after {rest}");
            }
            assert_eq!(rested(round + HOUR), (burst, true), "{limit:?} after a whole turn");
        }
    }
}

// ---- edges of the windows ----

/// Packets of cost 1 by tick, of a window of 100 ticks, and how many of them pass.
fn windows(algorithm: Algorithm, start: u64, rate: u64, arrivals: &[(u64, u64, u64)]) {
    let made = packets(rate, 1).arithmetic(100);
    let mut bucket = Bucket::new(algorithm, start);
    for &(tick, count, passed) in arrivals {
        assert_eq!(bucket.pass_at_once(tick, count, 1, &made), passed, "{algorithm:?}: {arrivals:?} at {tick}");
    }
}

#[test]
fn a_window_begins_with_its_bucket() {
    windows(Fixed, 1050, 10, &[(1050, 8, 8), (1100, 4, 2), (1149, 4, 0), (1150, 12, 10), (1249, 1, 0), (1250, 99, 10)]);
    windows(Sliding, 1050, 10, &[(1050, 12, 10), (1149, 4, 0), (1150, 4, 0), (1159, 4, 0), (1160, 4, 1), (1199, 9, 3)]);
}

#[test]
fn a_sliding_window_forgets_the_one_before_bit_by_bit() {
    // The 10 of the window before count 10 * (100 - elapsed) / 100, exactly.
    let arrivals = [(0, 99, 10), (100, 1, 0), (109, 1, 0), (110, 9, 1), (119, 1, 0), (120, 9, 1), (199, 99, 7)];
    windows(Sliding, 0, 10, &arrivals);
    // 9 of 10 in it, so 1 of 10 is free at 200, and 9 * 88 / 100 + 2 <= 10 at 212.
    windows(Sliding, 0, 10, &[&arrivals[..], &[(200, 5, 1), (211, 5, 0), (212, 5, 1)]].concat());
    // The window before the one before counts nothing.
    windows(Sliding, 0, 10, &[(0, 99, 10), (200, 99, 10), (400, 3, 3), (500, 9, 7)]);
}

#[test]
fn a_word_of_another_window_counts_nothing() {
    for algorithm in [Fixed, Sliding] {
        // Two windows have the same slot, and each other's words.
        windows(algorithm, 0, 10, &[(0, 99, 10), (200, 99, 10), (1_000_000, 99, 10)]);
        for doublings in 1..24 {
            windows(algorithm, 0, 10, &[(0, 99, 10), (100 << doublings, 99, 10)]);
        }
    }
    // A clock that goes back by more than a window, which the kernel's never does, begins anew too.
    windows(Fixed, 0, 10, &[(1000, 99, 10), (500, 99, 10), (1000, 99, 10)]);
    windows(Sliding, 0, 10, &[(1000, 99, 10), (600, 99, 10)]);
}

#[test]
fn a_cpu_that_is_a_tick_behind_loses_no_count() {
    // It counts in the window that others have begun.
    windows(Fixed, 0, 10, &[(99, 3, 3), (100, 6, 6), (99, 2, 2), (100, 9, 2), (199, 9, 0), (200, 1, 1)]);
    // With two words it still finds its own.
    windows(Sliding, 0, 10, &[(99, 3, 3), (100, 6, 6), (99, 9, 7), (100, 9, 0), (199, 9, 3)]);
    // It may have read the clock before the bucket was made.
    for algorithm in [Fixed, Sliding] {
        windows(algorithm, 1000, 10, &[(1000, 6, 6), (999, 9, 4), (1000, 9, 0), (998, 9, 0)]);
        windows(algorithm, 1000, 10, &[(0, 9, 9), (1000, 9, 1)]);
    }
}

#[test]
fn numbers_of_windows_go_round() {
    let last = 100 * ((1 << 24) - 1);
    for turn in [0, 100 << 24, 100 << 30] {
        let last = turn + last;
        let fixed = [(last - 1, 99, 10), (last, 99, 10), (last + 99, 1, 0), (last + 100, 99, 10), (last + 200, 99, 10)];
        windows(Fixed, 0, 10, &fixed);
        let sliding = [(last, 99, 10), (last + 100, 9, 0), (last + 150, 9, 5), (last + 199, 9, 4), (last + 200, 9, 1)];
        windows(Sliding, 0, 10, &sliding);
    }
}

#[test]
fn a_changed_limit_counts_in_the_same_window() {
    for algorithm in [Fixed, Sliding] {
        let of = |rate: u64| packets(rate, 1).arithmetic(100);
        let mut bucket = Bucket::new(algorithm, 0);
        assert_eq!(bucket.pass_at_once(5, 99, 1, &of(10)), 10);
        assert_eq!(bucket.pass_at_once(5, 99, 1, &of(30)), 20, "raised");
        assert_eq!(bucket.pass_at_once(99, 99, 1, &of(20)), 0, "lowered");
        assert_eq!(bucket.pass_at_once(300, 99, 1, &of(20)), 20);
    }
}

#[test]
fn the_largest_windows_do_not_overflow() {
    let limit = bits(999_999_999_999, FRAME);
    for ticks in [1, 100, 1000, 1 << 20] {
        let made = limit.arithmetic(ticks);
        for algorithm in [Fixed, Sliding] {
            let mut bucket = Bucket::new(algorithm, 0);
            assert!(bucket.arrive(0, limit.rate - LARGEST, &made), "one packet stands for many");
            assert_eq!(bucket.pass_at_once(ticks - 1, 3, LARGEST, &made), 1, "{algorithm:?}, {ticks} ticks");
            assert!(!bucket.arrive(ticks - 1, 1, &made), "not even a bit");
            assert_eq!(bucket.arrive(ticks, LARGEST, &made), algorithm == Fixed, "the next window");
            assert!(bucket.arrive(3 * ticks, limit.rate, &made));
        }
    }
}

/// The gate of SYN cookies, window by window: it opens in the middle of one, and shuts when a whole one was calm.
#[test]
fn the_gate_of_cookies_opens_and_shuts() {
    for seed in 0..10_000 {
        let mut random = Random::new(seed);
        let threshold = if random.chance(10) { 0 } else { random.below(50) as u32 };
        let (mut open, mut was_open, mut last_stormy) = (0u64, false, None::<u64>);
        let mut number = random.bits() >> 40;
        for _ in 0..30 {
            let syns = random.below(3 * threshold as usize + 2) as u64;
            // Open from the window before, if that one or the one before it was a storm and it was open since.
            let mut is_open = was_open && last_stormy.is_some_and(|last| number - last <= 1);
            for units in 1..=syns {
                let bound = if is_open { threshold / 2 } else { threshold };
                if units > bound.into() {
                    last_stormy = Some(number);
                }
                is_open |= units > bound.into();
                let got = (NATIVE.syn_gate)(units, number, threshold, &mut open) != 0;
                assert_eq!(got, is_open, "seed {seed}, SYN {units} of window {number}, threshold {threshold}");
            }
            was_open = is_open;
            // Now and then nothing comes for a while.
            number += if random.chance(20) { 1 + random.below(4) as u64 } else { 1 };
            if random.chance(2) {
                // A rule that counts anew: the gate is as it was made.
                (open, was_open, last_stormy) = (0, false, None);
            }
        }
    }
}
