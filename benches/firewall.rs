//! `cargo bench --bench firewall`: what the real xdp_firewall costs, beside the programs that it is compared with.
//!
//! Figures are ratios inside one run: medians of interleaved rounds, in the time that the kernel reports, with a program
//! that drops at once, one that only parses (the floor) and a canary beside them. They go to
//! `target/bench/firewall.json` and are printed as tables. Needs root.
//!
//! `cargo bench --bench firewall -- [--quick] [NAME]`: fewer rounds and sizes; only figures whose name contains NAME.

#[path = "firewall/figures.rs"]
pub mod figures;
#[path = "firewall/foreign.rs"]
mod foreign;
#[path = "firewall/headers.rs"]
mod headers;
#[path = "firewall/kernel.rs"]
pub mod kernel;
#[path = "firewall/linear.rs"]
mod linear;
#[path = "firewall/policies.rs"]
mod policies;
#[path = "firewall/product.rs"]
mod product;
#[path = "firewall/report.rs"]
mod report;
#[path = "../tests/support/mod.rs"]
pub mod support;
#[path = "firewall/veth.rs"]
mod veth;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ebpfsentinel::engines::firewall::rule::{Action, Rule};

use figures::{Figures, median};
use foreign::Hook;
use headers::{HeaderV4, HeaderV6};
use kernel::{Bench, HEADERS, Target, Variant};
use linear::{LinearV4, LinearV6};
use policies::{Set, Workload};
use product::{Policy, Product};
use support::classbench::{Kind, Style};
use support::packets::PacketFields;

/// XDP_DROP.
const DROP: u32 = 1;

/// Nothing passes that no rule allows; the state is measured apart.
const BASE: Policy = Policy { drop_unmatched: true, stateful: false };

struct Options {
    quick: bool,
    filter: String,
}

impl Options {
    fn from_args() -> Result<Options> {
        let mut options = Options { quick: false, filter: String::new() };
        for arg in std::env::args().skip(1) {
            match arg.as_str() {
                "--bench" => {} // cargo's own
                "--quick" => options.quick = true,
                _ => {
                    ensure!(!arg.starts_with('-'), "unknown option {arg}; there is --quick, and a part of a name");
                    options.filter = arg;
                }
            }
        }
        Ok(options)
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }

    /// Whether a figure of one of these groups is wanted for any of the ClassBench styles.
    fn wants_group(&self, groups: &[&str]) -> bool {
        groups.iter().any(|group| Style::ALL.iter().any(|style| self.wants(&format!("{group}.{}", style.name()))))
    }

    fn rounds(&self) -> usize {
        if self.quick { 7 } else { 15 }
    }

    fn sizes(&self) -> &'static [usize] {
        if self.quick { &[256, 4096] } else { &[1, 16, 256, 1024, 4096] }
    }
}

struct Run {
    options: Options,
    bench: Bench,
    product: Product,
    figures: Figures,
}

fn main() -> Result<()> {
    let options = Options::from_args()?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this bench loads BPF programs and makes network namespaces: run it as root"
    );
    kernel::pin()?;
    let started = Instant::now();
    let bench = Bench::load()?;
    let product = Product::load()?;
    bench.set_target(Target::Firewall, product.program())?;
    let mut run = Run { options, bench, product, figures: Figures::default() };
    run.programs()?;
    run.matrix()?;
    run.worst()?;
    run.first_packets()?;
    run.stateful()?;
    run.swaps()?;
    run.end_to_end()?;
    run.figures.set("void_rounds", run.bench.void_rounds as f64);
    run.figures.set("noisy_measurements", run.bench.noisy as f64);
    run.figures.set("seconds", started.elapsed().as_secs_f64());
    report::print(&run.figures);
    println!("\n{}", run.figures.write("firewall")?.display());
    Ok(())
}

impl Run {
    /// The programs for themselves: instructions, memory, and what a test run costs before any rule is asked.
    fn programs(&mut self) -> Result<()> {
        for (name, instructions) in self.product.verified_instructions()? {
            self.figures.set(format!("verifier_insns.{name}"), instructions.into());
        }
        let frame = headers::frame_v4();
        let mut variants = vec![
            Variant::new("ns.drop", self.bench.program("drop")?, frame),
            self.bench.replay(Target::Drop, true, "ns.injector.v4")?,
            self.bench.replay(Target::Drop, false, "ns.injector.v6")?,
            self.bench.replay(Target::Parse, true, "ns.floor.v4")?,
            self.bench.replay(Target::Parse, false, "ns.floor.v6")?,
        ];
        let workload = Workload::new(Set::ClassBench(Style::Acl).rules(16));
        self.replay_both(&workload.trace(Kind::Uniform, HEADERS));
        let medians = self.bench.interleave(&mut variants, self.options.rounds())?;
        for (variant, ns) in variants.iter().zip(medians) {
            self.figures.set(variant.label, ns);
        }
        Ok(())
    }

    fn matrix(&mut self) -> Result<()> {
        for set in Set::ALL {
            for &size in self.options.sizes() {
                let cell = |family: &str, kind: Kind| format!("{family}.{}.{}.{size}", kind.name(), set.name());
                let wanted: Vec<Kind> = Kind::ALL
                    .into_iter()
                    .filter(|&kind| {
                        ["v4", "v6"].iter().any(|family| {
                            let cell = cell(family, kind);
                            self.options.wants(&format!("x_floor.{cell}"))
                                || self.options.wants(&format!("linear_over_ours.{cell}"))
                        })
                    })
                    .collect();
                if wanted.is_empty() {
                    continue;
                }
                eprintln!("{} {size}", set.name());
                let workload = Workload::new(set.rules(size));
                self.load(BASE, &workload)?;
                let (all, rows) = self.product.memory_bytes();
                self.figures.set(format!("bytes.maps.{}.{size}", set.name()), all as f64);
                self.figures.set(format!("bytes.rows.{}.{size}", set.name()), rows as f64);
                for kind in wanted {
                    let packets = workload.trace(kind, HEADERS);
                    if packets.is_empty() {
                        eprintln!("  every packet matches a rule of {}: no {}", set.name(), kind.name());
                        continue;
                    }
                    self.replay_both(&packets);
                    self.agree(&packets)?;
                    let mut ours = [0.0; 2];
                    for (place, family) in ["v4", "v6"].into_iter().enumerate() {
                        ours[place] = self.cell(&cell(family, kind), place == 0, kind, &packets)?;
                    }
                    self.figures.set(format!("v6_over_v4.{}.{}.{size}", kind.name(), set.name()), ours[1] / ours[0]);
                }
            }
        }
        Ok(())
    }

    /// One cell of the matrix; the answer is our ns. A hot flow is one packet that nobody rewrites.
    fn cell(&mut self, name: &str, ipv4: bool, kind: Kind, packets: &[PacketFields]) -> Result<f64> {
        let mut variants = if kind == Kind::Hot {
            let frame = if ipv4 {
                HeaderV4::of(&packets[0]).frame()
            } else {
                HeaderV6::of(&policies::in_ipv6(&packets[..1])[0]).frame()
            };
            let direct = |label, program| Variant::new(label, program, frame.clone());
            let mut variants =
                vec![direct("parse", self.bench.program("parse")?), direct("ours", self.product.program())];
            if self.bench.has_linear {
                variants.push(direct("linear", self.bench.program("linear")?));
            }
            variants
        } else {
            let mut variants = vec![
                self.bench.replay(Target::Parse, ipv4, "parse")?,
                self.bench.replay(Target::Firewall, ipv4, "ours")?,
            ];
            if self.bench.has_linear {
                variants.push(self.bench.replay(Target::Linear, ipv4, "linear")?);
            }
            variants
        };
        let medians = self.bench.interleave(&mut variants, self.options.rounds())?;
        self.figures.set(format!("ns.floor.{name}"), medians[0]);
        self.figures.set(format!("ns.ours.{name}"), medians[1]);
        self.figures.set(format!("x_floor.{name}"), medians[1] / medians[0]);
        if let Some(linear) = medians.get(2) {
            self.figures.set(format!("linear_over_ours.{name}"), linear / medians[1]);
        }
        Ok(medians[1])
    }

    /// The dearest packets that we know how to make.
    fn worst(&mut self) -> Result<()> {
        if !["v4", "v6"].iter().any(|family| self.options.wants(&format!("x_floor_worst.{family}.4096"))) {
            return Ok(());
        }
        eprintln!("worst case");
        let (rules, packets) = policies::worst(4096);
        let workload = Workload::new(rules);
        self.load(BASE, &workload)?;
        self.replay_both(&packets);
        self.agree(&packets)?;
        for (ipv4, family) in [(true, "v4"), (false, "v6")] {
            let mut variants =
                [self.bench.replay(Target::Parse, ipv4, "parse")?, self.bench.replay(Target::Firewall, ipv4, "ours")?];
            let medians = self.bench.interleave(&mut variants, self.options.rounds())?;
            self.figures.set(format!("x_floor_worst.{family}.4096"), medians[1] / medians[0]);
        }
        Ok(())
    }

    /// What the first packet of a flow costs: once through the trace after each swap, which empties the flow cache.
    fn first_packets(&mut self) -> Result<()> {
        if !self.options.wants("x_floor_first.") {
            return Ok(());
        }
        for style in Style::ALL {
            eprintln!("{} first packets", style.name());
            let workload = Workload::new(Set::ClassBench(style).rules(4096));
            self.replay_both(&workload.trace(Kind::Uniform, HEADERS));
            for (ipv4, family) in [(true, "v4"), (false, "v6")] {
                let variants = [
                    self.bench.replay(Target::Parse, ipv4, "parse")?,
                    self.bench.replay(Target::Firewall, ipv4, "ours")?,
                ];
                let [mut floor, mut ours] = [Vec::new(), Vec::new()];
                for _ in 0..self.options.rounds() {
                    self.load(BASE, &workload)?;
                    for (variant, figures) in variants.iter().zip([&mut floor, &mut ours]) {
                        figures.push(kernel::test_run(variant.program, &variant.frame, HEADERS as u32)?.ns);
                    }
                }
                self.figures
                    .set(format!("x_floor_first.{family}.uniform.{}.4096", style.name()), median(ours) / median(floor));
            }
        }
        Ok(())
    }

    /// What it costs to ask the connection table where no rule decides.
    fn stateful(&mut self) -> Result<()> {
        if !self.options.wants("x_floor_stateful.") {
            return Ok(());
        }
        for style in Style::ALL {
            eprintln!("{} stateful", style.name());
            let workload = Workload::new(Set::ClassBench(style).rules(4096));
            for kind in [Kind::Zipf, Kind::NoMatch] {
                let packets = workload.trace(kind, HEADERS);
                if packets.is_empty() {
                    continue;
                }
                for (state, stateful) in [("off", false), ("on", true)] {
                    self.load(Policy { stateful, ..BASE }, &workload)?;
                    self.replay_both(&packets);
                    let mut variants = [
                        self.bench.replay(Target::Parse, true, "parse")?,
                        self.bench.replay(Target::Firewall, true, "ours")?,
                    ];
                    let medians = self.bench.interleave(&mut variants, self.options.rounds())?;
                    let name = format!("x_floor_stateful.{state}.v4.{}.{}.4096", kind.name(), style.name());
                    self.figures.set(name, medians[1] / medians[0]);
                }
            }
        }
        Ok(())
    }

    /// From rules in memory to the packet that is judged by them.
    fn swaps(&mut self) -> Result<()> {
        if !self.options.wants_group(&["swap_ms"]) {
            return Ok(());
        }
        for style in Style::ALL {
            eprintln!("{} swap", style.name());
            let rules = Set::ClassBench(style).rules(4096);
            let all =
                |action: Action| -> Vec<Rule> { rules.iter().map(|rule| Rule { action, ..rule.clone() }).collect() };
            let sets = [all(Action::Allow), all(Action::Deny)];
            let frame = HeaderV4::of(&Workload::new(rules.clone()).trace(Kind::Hot, 1)[0]).frame();
            let (mut one, mut both) = (Vec::new(), Vec::new());
            for round in 0..2 * self.options.rounds() {
                let set = &sets[round % 2];
                let started = Instant::now();
                self.product.apply(BASE, set, &[])?;
                let dropped = kernel::verdict(self.product.program(), &frame)? == DROP;
                one.push(started.elapsed().as_secs_f64() * 1000.0);
                ensure!(dropped == (round % 2 == 1), "a swap returned before its rules were in effect");
            }
            let v6 = support::classbench::to_ipv6(&rules);
            for _ in 0..self.options.rounds() {
                let started = Instant::now();
                self.product.apply(BASE, &rules, &v6)?;
                both.push(started.elapsed().as_secs_f64() * 1000.0);
            }
            self.figures.set(format!("swap_ms.{}", style.name()), median(one));
            self.figures.set(format!("swap_both_families_ms.{}", style.name()), median(both));
        }
        Ok(())
    }

    /// Over veth pairs, against the kernel's own firewalls with the same 4096 rules; every packet is dropped.
    fn end_to_end(&mut self) -> Result<()> {
        let groups = ["e2e_x_drop", "nft_linear_over_ours", "nft_set_over_ours", "iptables_over_ours"];
        for style in Style::ALL {
            if !groups.iter().any(|group| self.options.wants(&format!("{group}.{}", style.name()))) {
                continue;
            }
            eprintln!("{} end to end", style.name());
            let rules: Vec<Rule> = Set::ClassBench(style)
                .rules(4096)
                .into_iter()
                .map(|rule| Rule { action: Action::Deny, ..rule })
                .collect();
            let workload = Workload::new(rules);
            self.load(BASE, &workload)?;
            self.replay_both(&workload.trace(Kind::Uniform, HEADERS));
            let mut stateful = Product::load()?;
            stateful.apply(Policy { stateful: true, ..BASE }, &workload.v4, &workload.v6)?;
            let mut wire = self.wire(&workload.v4, style)?;
            wire.add_xdp("stateful", stateful.program())?;
            self.end_to_end_figures(wire, style)?;

            // The same among flows of which few have most packets, as on most wires. No goal stands for it.
            self.replay_both(&workload.trace(Kind::Zipf, HEADERS));
            let mut wire = veth::Wire::new()?;
            wire.add_xdp("drop", self.bench.program("drop")?)?;
            wire.add_xdp("ours", self.product.program())?;
            let medians = wire.measure(&mut self.bench, self.options.rounds())?;
            self.figures.set(format!("e2e_x_drop_zipf.{}", style.name()), medians[1] / medians[0]);
        }
        Ok(())
    }

    fn wire(&mut self, rules: &[Rule], style: Style) -> Result<veth::Wire> {
        let mut wire = veth::Wire::new()?;
        wire.add_xdp("drop", self.bench.program("drop")?)?;
        wire.add_xdp("parse", self.bench.program("parse")?)?;
        wire.add_xdp("ours", self.product.program())?;
        if self.bench.has_linear {
            wire.add_xdp("linear", self.bench.program("linear")?)?;
        }
        if veth::exists("nft") {
            for (label, hook) in [("nft linear, netdev", Hook::Netdev), ("nft linear, inet", Hook::Prerouting)] {
                let text = foreign::nft_linear(rules, hook)?;
                wire.add(label, || veth::feed("nft", &["-f", "-"], &text))?;
            }
            for (label, hook) in [("nft set, netdev", Hook::Netdev), ("nft set, inet", Hook::Prerouting)] {
                let (kept, text) = foreign::nft_set(rules, hook)?;
                self.figures.set(format!("nft_set_rules.{}", style.name()), kept as f64);
                wire.add(label, || veth::feed("nft", &["-f", "-"], &text))?;
            }
        } else {
            eprintln!("  no nft here: not compared");
        }
        if veth::exists("iptables-legacy-restore") {
            let text = foreign::iptables(rules)?;
            wire.add("iptables", || veth::feed("iptables-legacy-restore", &[], &text))?;
        } else {
            eprintln!("  no iptables-legacy here: not compared");
        }
        Ok(wire)
    }

    fn end_to_end_figures(&mut self, mut wire: veth::Wire, style: Style) -> Result<()> {
        let medians = wire.measure(&mut self.bench, self.options.rounds())?;
        let style = style.name();
        let ns = |label: &str| -> Option<f64> {
            wire.receivers
                .iter()
                .zip(&medians)
                .filter(|(receiver, _)| receiver.label.starts_with(label))
                .map(|(_, ns)| *ns)
                .min_by(f64::total_cmp)
        };
        let ours = ns("ours").context("not measured")?;
        let drop = ns("drop").context("not measured")?;
        self.figures.set(format!("e2e_x_drop.{style}"), ours / drop);
        self.figures.set(format!("e2e_x_drop_stateful.{style}"), ns("stateful").context("not measured")? / drop);
        for (name, label) in [
            ("nft_linear_over_ours", "nft linear"),
            ("nft_set_over_ours", "nft set"),
            ("iptables_over_ours", "iptables"),
            ("e2e_linear_over_ours", "linear"),
        ] {
            if let Some(ns) = ns(label) {
                self.figures.set(format!("{name}.{style}"), ns / ours);
            }
        }
        for (receiver, ns) in wire.receivers.iter().zip(&medians) {
            self.figures.set(format!("e2e_ns.{style}.{}", receiver.label), *ns);
            ensure!(
                receiver.lost < 0.01,
                "{}: {:.1} % of the frames never arrived",
                receiver.label,
                receiver.lost * 100.0
            );
        }
        Ok(())
    }

    /// Gives a policy to the firewall and to the linear scan.
    fn load(&mut self, policy: Policy, workload: &Workload) -> Result<()> {
        self.product.apply(policy, &workload.v4, &workload.v6)?;
        for (entry, rule) in self.bench.linear_v4.as_mut_slice().iter_mut().zip(&workload.v4) {
            *entry = LinearV4::of(rule)?;
        }
        for (entry, rule) in self.bench.linear_v6.as_mut_slice().iter_mut().zip(&workload.v6) {
            *entry = LinearV6::of(rule)?;
        }
        let control = self.bench.control();
        control.linear_rules = workload.v4.len() as u32;
        control.default_action = DROP;
        Ok(())
    }

    /// Makes the packets the trace of both families.
    fn replay_both(&mut self, packets: &[PacketFields]) {
        for (entry, packet) in self.bench.trace_v4.as_mut_slice().iter_mut().zip(packets.iter().cycle()) {
            *entry = HeaderV4::of(packet);
        }
        let v6 = policies::in_ipv6(packets);
        for (entry, packet) in self.bench.trace_v6.as_mut_slice().iter_mut().zip(v6.iter().cycle()) {
            *entry = HeaderV6::of(packet);
        }
        self.bench.control().cursor = 0;
    }

    /// A program that is fast and wrong is no comparison: both must give the same verdict on a sample.
    fn agree(&self, packets: &[PacketFields]) -> Result<()> {
        if !self.bench.has_linear {
            return Ok(());
        }
        let (linear, ours) = (self.bench.program("linear")?, self.product.program());
        let dhcp = |packet: &PacketFields| packet.protocol == 17 && matches!(packet.dst_port, 68 | 546);
        for packet in packets.iter().step_by(37).filter(|packet| !dhcp(packet)) {
            let v6 = policies::in_ipv6(std::slice::from_ref(packet));
            for frame in [HeaderV4::of(packet).frame(), HeaderV6::of(&v6[0]).frame()] {
                let (expected, got) = (kernel::verdict(linear, &frame)?, kernel::verdict(ours, &frame)?);
                ensure!(expected == got, "{packet:?}: the linear scan says {expected}, the firewall {got}");
            }
        }
        Ok(())
    }
}
