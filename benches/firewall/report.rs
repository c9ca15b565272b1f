//! The tables of a run.

use crate::figures::{Figures, print_table};

const SIZES: [usize; 5] = [1, 16, 256, 1024, 4096];
const KINDS: [&str; 4] = ["hot", "zipf", "uniform", "nomatch"];
const SETS: [&str; 4] = ["acl", "fw", "ipc", "hostile"];
const STYLES: [&str; 3] = ["acl", "fw", "ipc"];

pub fn print(figures: &Figures) {
    matrix(figures, "x_floor", "Times the cost of parsing alone");
    matrix(figures, "linear_over_ours", "Times cheaper than a linear scan (bpf_loop over an array)");
    end_to_end(figures);
    for (title, prefix) in [
        ("The worst packets, times the cost of parsing alone", "x_floor_worst."),
        ("First packets of flows, times the cost of parsing alone", "x_floor_first."),
        ("Connection state, times the cost of parsing alone", "x_floor_stateful."),
        ("Swap, milliseconds", "swap_"),
        ("Instructions that the verifier walked", "verifier_insns."),
        ("Memory, bytes", "bytes."),
    ] {
        let rows: Vec<_> =
            figures.starting_with(prefix).map(|(name, value)| (name.to_owned(), vec![Some(value)])).collect();
        if !rows.is_empty() {
            print_table(title, &["value".to_owned()], &rows);
        }
    }
    goals(figures);
    for name in ["ns.drop", "ns.floor.v4", "ns.floor.v6", "void_rounds", "noisy_measurements", "seconds"] {
        if let Some(value) = figures.get(name) {
            println!("{name} {value:.1}");
        }
    }
}

fn matrix(figures: &Figures, prefix: &str, title: &str) {
    for family in ["v4", "v6"] {
        let mut rows = Vec::new();
        for set in SETS {
            for kind in KINDS {
                let cells: Vec<Option<f64>> =
                    SIZES.iter().map(|size| figures.get(&format!("{prefix}.{family}.{kind}.{set}.{size}"))).collect();
                if cells.iter().any(Option::is_some) {
                    rows.push((format!("{set}, {kind}"), cells));
                }
            }
        }
        if !rows.is_empty() {
            let columns: Vec<String> = SIZES.iter().map(|size| format!("{size} rules")).collect();
            print_table(&format!("{title}, IP{family}"), &columns, &rows);
        }
    }
}

fn end_to_end(figures: &Figures) {
    let mut labels: Vec<&str> =
        figures.starting_with("e2e_ns.acl.").map(|(name, _)| &name["e2e_ns.acl.".len()..]).collect();
    if labels.is_empty() {
        return;
    }
    let cost = |label: &str| figures.get(&format!("e2e_ns.acl.{label}")).unwrap_or(0.0);
    labels.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    let rows: Vec<_> = labels
        .into_iter()
        .map(|label| {
            let cells = STYLES
                .iter()
                .flat_map(|style| {
                    let ns = figures.get(&format!("e2e_ns.{style}.{label}"));
                    let ours = figures.get(&format!("e2e_ns.{style}.ours"));
                    [ns, ns.zip(ours).map(|(ns, ours)| ns / ours)]
                })
                .collect();
            (label.to_owned(), cells)
        })
        .collect();
    let columns: Vec<String> =
        STYLES.iter().flat_map(|style| [format!("{style} ns"), format!("{style} / ours")]).collect();
    print_table("End to end over veth, 4096 rules, one core, generator included", &columns, &rows);
    for style in STYLES {
        if let Some(kept) = figures.get(&format!("nft_set_rules.{style}")) {
            println!(
                "{style}: the nft set holds {kept:.0} of 4096 rules, those that do not overlap; it is not the same policy."
            );
        }
    }
}

/// Each goal: figure, bound, whether the bound is a ceiling.
fn goals(figures: &Figures) {
    let mut goals: Vec<(String, Option<f64>, f64, bool)> = Vec::new();
    let mut goal = |name: String, bound, ceiling| goals.push((name.clone(), figures.get(&name), bound, ceiling));
    for (style, zipf, wire) in [("acl", 3.0, 1.5), ("fw", 5.0, 2.5), ("ipc", 3.5, 2.5)] {
        goal(format!("x_floor.v4.zipf.{style}.4096"), zipf, true);
        goal(format!("x_floor.v4.hot.{style}.4096"), 1.6, true);
        goal(format!("linear_over_ours.v4.uniform.{style}.4096"), 60.0, false);
        for kind in KINDS {
            goal(format!("v6_over_v4.{kind}.{style}.4096"), 2.0, true);
        }
        goal(format!("e2e_x_drop.{style}"), wire, true);
        goal(format!("nft_linear_over_ours.{style}"), 100.0, false);
        goal(format!("nft_set_over_ours.{style}"), 5.0, false);
        goal(format!("iptables_over_ours.{style}"), 25.0, false);
        goal(format!("swap_ms.{style}"), 40.0, true);
    }
    goal("x_floor_worst.v4.4096".to_owned(), 25.0, true);
    goal("x_floor_worst.v6.4096".to_owned(), 25.0, true);
    let all = figures.starting_with("x_floor.").chain(figures.starting_with("x_floor_first."));
    let dearest = all.max_by(|a, b| a.1.total_cmp(&b.1));
    goals.push(("the dearest x_floor".to_owned(), dearest.map(|(_, value)| value), 25.0, true));
    let growth = figures.get("ns.ours.v4.zipf.acl.4096").zip(figures.get("ns.ours.v4.zipf.acl.256"));
    goals.push(("acl zipf, 4096 rules over 256".to_owned(), growth.map(|(large, small)| large / small), 2.0, true));

    println!("\n| goal | bound | now | |\n|---|---:|---:|---|");
    for (name, value, bound, ceiling) in goals {
        let Some(value) = value else { continue };
        let met = if ceiling { value <= bound } else { value >= bound };
        let sign = if ceiling { "≤" } else { "≥" };
        println!("| {name} | {sign} {bound} | {value:.2} | {} |", if met { "met" } else { "MISSED" });
    }
}
