//! `cargo bench --bench inspection`: what inspecting flows costs in the kernel and in the agent.
//!
//! Figures are ratios and medians inside one run. They go to `target/bench/inspection.json`. Needs root.
//!
//! `cargo bench --bench inspection -- [--quick]`: fewer rounds.

#[path = "firewall/figures.rs"]
pub mod figures;
#[path = "firewall/headers.rs"]
pub mod headers;
#[path = "firewall/kernel.rs"]
pub mod kernel;
#[path = "inspection/kernel.rs"]
mod kernel_side;
#[path = "firewall/linear.rs"]
pub mod linear;
#[path = "../tests/support/mod.rs"]
pub mod support;

use anyhow::{Result, ensure};

use figures::Figures;
use kernel::Bench;

fn main() -> Result<()> {
    let quick = std::env::args().any(|arg| arg == "--quick");
    ensure!(nix::unistd::geteuid().is_root(), "this bench loads BPF programs: run it as root");
    kernel::pin()?;
    let mut bench = Bench::load()?;
    let mut figures = Figures::default();
    kernel_side::measure(&mut bench, &mut figures, if quick { 7 } else { 15 })?;
    figures.set("void_rounds", bench.void_rounds as f64);
    figures.set("noisy_measurements", bench.noisy as f64);
    figures.starting_with("").for_each(|(name, value)| println!("{name} {value:.3}"));
    println!("\n{}", figures.write("inspection")?.display());
    Ok(())
}
