//! `cargo bench --bench ratelimit`: what the real xdp_ratelimit costs a packet, beside what is mostly written instead.
//!
//! Figures are differences and ratios inside one run: medians of interleaved rounds, in the time that the kernel reports,
//! with a program that only parses (the floor) and a canary beside them. Frames come from one source or from many, in no
//! order. They go to `target/bench/ratelimit.json`. Needs root.
//!
//! `cargo bench --bench ratelimit -- [--quick] [--only-syn]`: fewer rounds; SYNs only, and then no file is written.

#[path = "firewall/figures.rs"]
pub mod figures;
#[path = "firewall/headers.rs"]
pub mod headers;
#[path = "firewall/kernel.rs"]
pub mod kernel;
#[path = "firewall/linear.rs"]
pub mod linear;
#[path = "firewall/policies.rs"]
pub mod policies;
#[path = "firewall/product.rs"]
pub mod product;
#[path = "../tests/support/mod.rs"]
pub mod support;
#[path = "ratelimit/syn.rs"]
mod syn;
#[path = "firewall/veth.rs"]
pub mod veth;

use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};
use ebpfsentinel::abi::{rl_algorithm, rl_back, rl_bucket, rl_rule, xdp_chain};
use ebpfsentinel::bpf::chain::Chain;
use ebpfsentinel::bpf::jiffies_per_second;
use ebpfsentinel::bpf::xdp_firewall;
use ebpfsentinel::bpf::xdp_ratelimit::{Switches, XdpRatelimit};
use ebpfsentinel::engines::firewall::rule::{Action, Rule};
use ebpfsentinel::engines::ratelimit::limit::{Limit, Unit};

use figures::Figures;
use headers::HeaderV4;
use kernel::{Bench, HEADERS, Target, Variant};
use policies::{Set, Workload};
use product::{Policy, Product};
use support::classbench::{Kind, Style};

const ALGORITHMS: [(&str, rl_algorithm); 4] = [
    ("token_bucket", rl_algorithm::RL_TOKEN_BUCKET),
    ("leaky_bucket", rl_algorithm::RL_LEAKY_BUCKET),
    ("fixed_window", rl_algorithm::RL_FIXED_WINDOW),
    ("sliding_window", rl_algorithm::RL_SLIDING_WINDOW),
];

/// Sources by the name of the figure. A million is a little more, as everywhere else where memory is counted.
const SOURCES: [(&str, u32); 3] = [("1", 1), ("16384", 16_384), ("1000000", 1 << 20)];

/// Room for buckets: twice the sources, so that none goes by the common bucket.
const ROOM: u32 = 1 << 21;

const SLOT: u32 = 0;

fn main() -> Result<()> {
    let quick = std::env::args().any(|arg| arg == "--quick");
    ensure!(nix::unistd::geteuid().is_root(), "this bench loads BPF programs: run it as root");
    kernel::pin()?;
    let rounds = if quick { 7 } else { 15 };
    let mut bench = Bench::load()?;
    bench.set_target(Target::Lru, bench.program("lru_percpu")?)?;
    let mut figures = Figures::default();
    if std::env::args().any(|arg| arg == "--only-syn") {
        syn::measure(&mut bench, &mut figures, rounds)?;
        print(&figures);
        figures.starting_with("").for_each(|(name, value)| println!("{name} {value:.2}"));
        return Ok(());
    }
    for (name, algorithm) in ALGORITHMS {
        let limiter = limiter(algorithm)?;
        bench.set_target(Target::Limit, limiter.program().as_raw_fd())?;
        for (sources_name, sources) in SOURCES {
            eprintln!("{name}, {sources_name} sources");
            let before = limiter.counts();
            let [floor, ours, lru] = cell(&mut bench, sources, rounds)?;
            let after = limiter.counts();
            figures.set(format!("net_ns.{name}.{sources_name}"), ours - floor);
            figures.set(format!("x_floor.{name}.{sources_name}"), ours / floor);
            figures.set(format!("lru_percpu_over_ours.{name}.{sources_name}"), (lru - floor) / (ours - floor));
            let crowded = after.crowded - before.crowded;
            let packets = after.rules[SLOT as usize].passed - before.rules[SLOT as usize].passed;
            ensure!(crowded * 1000 < packets, "{crowded} of {packets} packets had no bucket of their own");
        }
    }
    chain(&mut bench, &mut figures, rounds)?;
    syn::measure(&mut bench, &mut figures, rounds)?;
    let token = |sources: &str| figures.get(&format!("lru_percpu_over_ours.token_bucket.{sources}"));
    if let Some(ratio) = token("1000000") {
        figures.set("lru_percpu_over_ours.1000000", ratio);
    }
    let bytes = size_of::<rl_bucket>() + size_of::<rl_back>();
    figures.set("bytes_per_source", bytes as f64);
    figures.set("void_rounds", bench.void_rounds as f64);
    figures.set("noisy_measurements", bench.noisy as f64);
    print(&figures);
    println!("\n{}", figures.write("ratelimit")?.display());
    Ok(())
}

/// A limiter that drops nothing, by source, in packets.
fn limiter(algorithm: rl_algorithm) -> Result<XdpRatelimit> {
    let mut limiter = XdpRatelimit::load(Switches { multi_buffer: false, buckets: ROOM, chain: None, steers: false })?;
    let second = jiffies_per_second()?;
    let limit = Limit { rate: 1_000_000_000, burst: 1_000_000_000, unit: Unit::Packets };
    limiter.clear_slot(SLOT, algorithm)?;
    limiter.swap(|tables, rules| {
        tables.policy.enforce = 1;
        rules.any = [SLOT; 2];
        rules.ask = [0; 2];
        rules.rule[SLOT as usize] = rl_rule {
            limit: limit.arithmetic(second),
            instance: 1,
            algorithm: algorithm.0 as u8,
            prefix: 64,
            // Sources of a minute ago are still here.
            hold: 20,
            ..rl_rule::default()
        };
        Ok(())
    })?;
    Ok(limiter)
}

/// ns of the floor, of ours, and of the kernel's table.
fn cell(bench: &mut Bench, sources: u32, rounds: usize) -> Result<[f64; 3]> {
    bench.control().source_mask = sources - 1;
    let mut variants = [
        bench.sources("sources_to_parse", "parse")?,
        bench.sources("sources_to_limit", "ours")?,
        bench.sources("sources_to_lru", "lru")?,
    ];
    // Every source has been seen before it is measured.
    for variant in &variants {
        kernel::test_run(variant.program, &headers::frame_v4(), 4 * sources.max(1024))?;
    }
    let medians = bench.interleave(&mut variants, rounds)?;
    Ok([medians[0], medians[1], medians[2]])
}

/// The whole way of a packet that passes: 4096 rules that all allow, a tail call, a limiter that knows 16,384 sources, and
/// the metadata for TC. Flows are those of the firewall's bench, few of which have most packets.
fn chain(bench: &mut Bench, figures: &mut Figures, rounds: usize) -> Result<()> {
    const PASS: u32 = 2;
    let rules = Set::ClassBench(Style::Acl).rules(4096);
    let workload = Workload::new(rules.into_iter().map(|rule| Rule { action: Action::Allow, ..rule }).collect());
    for (entry, packet) in bench.trace_v4.as_mut_slice().iter_mut().zip(&workload.trace(Kind::Zipf, HEADERS)) {
        *entry = HeaderV4::of(packet);
    }
    for (name, write_meta) in [("zipf_without_metadata", false), ("zipf", true)] {
        eprintln!("chain, {name}");
        let limiter = limiter(rl_algorithm::RL_TOKEN_BUCKET)?;
        bench.set_target(Target::Limit, limiter.program().as_raw_fd())?;
        bench.control().source_mask = 16_384 - 1;
        kernel::test_run(bench.program("sources_to_limit")?, &headers::frame_v4(), 8 * 16_384)?;
        let behind = Chain::new()?;
        behind.set(xdp_chain::CHAIN_RATELIMIT, limiter.program())?;
        let switches = xdp_firewall::Switches { write_meta, chain: Some(&behind), ..Default::default() };
        let mut product = Product::load_with(&switches)?;
        product.apply(Policy { drop_unmatched: false, stateful: false }, &workload.v4, &workload.v6)?;
        bench.set_target(Target::Firewall, product.program())?;
        let injector = bench.program("to_chain_v4")?;
        let mut variants =
            [bench.replay(Target::Parse, true, "parse")?, Variant::new("chain", injector, headers::frame_v4())];
        let before = limiter.counts().rules[SLOT as usize].passed;
        let run = kernel::test_run(injector, &headers::frame_v4(), HEADERS as u32)?;
        let limited = limiter.counts().rules[SLOT as usize].passed - before;
        ensure!(run.verdict == PASS && limited == HEADERS as u64, "{limited} packets of {HEADERS} met the limiter");
        let medians = bench.interleave(&mut variants, rounds)?;
        figures.set(format!("chain_ns.{name}"), medians[1]);
        figures.set(format!("chain_x_floor.{name}"), medians[1] / medians[0]);
    }
    Ok(())
}

fn print(figures: &Figures) {
    let columns: Vec<String> = SOURCES.iter().map(|(name, _)| format!("{name} sources")).collect();
    for (title, prefix) in [
        ("Nanoseconds more than parsing alone", "net_ns"),
        ("LRU_PERCPU_HASH with bpf_ktime_get_ns, times our cost", "lru_percpu_over_ours"),
    ] {
        let rows: Vec<_> = ALGORITHMS
            .iter()
            .map(|(name, _)| {
                let cells = SOURCES.iter().map(|(sources, _)| figures.get(&format!("{prefix}.{name}.{sources}")));
                ((*name).to_owned(), cells.collect())
            })
            .collect();
        figures::print_table(title, &columns, &rows);
    }
    println!("\n| goal | bound | now | |\n|---|---:|---:|---|");
    for (name, bound, at_most) in [
        ("net_ns.token_bucket.1", 10.0, true),
        ("net_ns.token_bucket.1000000", 160.0, true),
        ("lru_percpu_over_ours.1000000", 2.5, false),
        ("chain_x_floor.zipf", 7.0, true),
        ("chain_x_floor.zipf_without_metadata", 7.0, true),
        ("syn_x_drop", 2.0, true),
        ("kernel_cookies_over_ours", 12.0, false),
        ("iptables_synproxy_over_ours", 12.0, false),
        ("nft_synproxy_over_ours", 12.0, false),
        ("syn_answered_share", 1.0, false),
        ("syn_accepted_share", 1.0, false),
    ] {
        let now = figures.get(name).unwrap_or(f64::NAN);
        let met = if at_most { now <= bound } else { now >= bound };
        let sign = if at_most { "≤" } else { "≥" };
        println!("| {name} | {sign} {bound} | {now:.2} | {} |", if met { "met" } else { "MISSED" });
    }
    if let (Some(floor), Some(over)) = (figures.get("syn_floor_x_drop"), figures.get("syn_over_floor")) {
        println!("\nThe kernel's cookie and XDP_TX alone are {floor:.2} times XDP_DROP; ours is {over:.2} times that.");
    }
}
