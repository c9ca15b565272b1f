//! `cargo bench --bench inspection`: what inspecting flows costs in the kernel and in the agent.
//!
//! Everything runs on one core, the poller of records alone on another. Figures are medians inside one run, those of
//! tc_ids ratios to a program that only parses. They go to `target/bench/inspection.json`. Needs root.
//!
//! `cargo bench --bench inspection -- [--quick] [--only kernel|flow|parsers|replay]`: fewer rounds; one part only, and
//! then no file is written.

#[path = "firewall/figures.rs"]
pub mod figures;
#[path = "inspection/files.rs"]
mod files;
#[path = "inspection/flow.rs"]
mod flow;
#[path = "firewall/headers.rs"]
pub mod headers;
#[path = "inspection/http.rs"]
mod http;
#[path = "firewall/kernel.rs"]
pub mod kernel;
#[path = "inspection/kernel.rs"]
mod kernel_side;
#[path = "firewall/linear.rs"]
pub mod linear;
#[path = "inspection/mix.rs"]
mod mix;
#[path = "inspection/names.rs"]
mod names;
#[path = "inspection/replay.rs"]
mod replay;
#[path = "../tests/support/mod.rs"]
pub mod support;

use anyhow::{Result, bail, ensure};

use figures::Figures;
use kernel::Bench;

/// Bytes of a stream that come at once, as from segments of Ethernet.
const PIECE: usize = 1448;

/// Names in the order, or that of the way from the wire.
const PROTOCOLS: [&str; 8] = ["reassembly", "reassembly_http1", "http1", "tls", "dns", "smtp", "smb2", "http2"];
const LENGTHS: [&str; 3] = ["64", "256", "1536"];
const PARTS: [&str; 4] = ["kernel", "flow", "parsers", "replay"];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let quick = args.iter().any(|arg| arg == "--quick");
    let only = args.iter().position(|arg| arg == "--only").map(|at| args.get(at + 1).map_or("", String::as_str));
    if let Some(part) = only
        && !PARTS.contains(&part)
    {
        bail!("--only takes one of {}", PARTS.join(", "));
    }
    let wants = |part| only.is_none_or(|only| only == part);
    ensure!(nix::unistd::geteuid().is_root(), "this bench loads BPF programs: run it as root");
    kernel::pin()?;
    let mut figures = Figures::default();
    if wants("kernel") {
        let mut bench = Bench::load()?;
        kernel_side::measure(&mut bench, &mut figures, if quick { 7 } else { 15 })?;
        figures.set("void_rounds", bench.void_rounds as f64);
        figures.set("noisy_measurements", bench.noisy as f64);
    }
    if wants("flow") {
        eprintln!("flows");
        flow::figures().into_iter().for_each(|(name, value)| figures.set(name, value));
    }
    if wants("parsers") {
        parsers(&mut figures, quick);
    }
    if wants("replay") {
        replay::measure(&mut figures, if quick { 3 } else { 7 })?;
    }
    print(&figures);
    if only.is_none() {
        println!("\n{}", figures.write("inspection")?.display());
    }
    Ok(())
}

fn parsers(figures: &mut Figures, quick: bool) {
    let (rounds, round_ms) = if quick { (3, 100) } else { (9, 300) };
    eprintln!("parsers");
    figures.set("gb_per_s.http1", http::http1_gb_per_s(PIECE, rounds as usize));
    figures.set("gb_per_s.http2", http::http2_gb_per_s(PIECE, rounds as usize));
    let (tls, handshakes) = names::tls(rounds, round_ms);
    figures.set("gb_per_s.tls", tls);
    figures.set("gb_per_s.tls_handshakes", handshakes);
    figures.set("gb_per_s.dns", names::dns(rounds, round_ms));
    figures.set("gb_per_s.smtp", files::smtp(rounds, round_ms));
    figures.set("gb_per_s.smb2", files::smb2(rounds, round_ms));
}

fn print(figures: &Figures) {
    for (title, prefix, names) in [
        ("GB/s on one core", "gb_per_s", &PROTOCOLS[..]),
        ("Millions of records a second to one poller, by bytes of the frame", "events_m_per_s", &LENGTHS),
    ] {
        let columns: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let cells: Vec<_> = names.iter().map(|name| figures.get(&format!("{prefix}.{name}"))).collect();
        if cells.iter().any(Option::is_some) {
            figures::print_table(title, &columns, &[(String::new(), cells)]);
        }
    }
    println!("\n| figure | now |\n|---|---:|");
    for (name, value) in figures.starting_with("") {
        println!("| {name} | {value:.3} |");
    }
    println!("\n| goal | bound | now | |\n|---|---:|---:|---|");
    for (name, bound, at_most) in [
        ("x_floor.past_budget", 2.0, true),
        ("gb_per_s.reassembly_http1", 1.5, false),
        ("replay_m_packets_per_s.silent", 1.5, false),
        ("replay_m_packets_per_s.events", 0.8, false),
        ("replay_mib", 190.0, true),
        ("events_m_per_s.64", 5.0, false),
        ("events_m_per_s.1536", 1.0, false),
        ("ns_per_lost_event", 30.0, true),
    ] {
        let Some(now) = figures.get(name) else { continue };
        let met = if at_most { now <= bound } else { now >= bound };
        let sign = if at_most { "≤" } else { "≥" };
        println!("| {name} | {sign} {bound} | {now:.2} | {} |", if met { "met" } else { "MISSED" });
    }
}
