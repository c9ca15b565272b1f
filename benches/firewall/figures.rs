//! Medians, and the figures by name: `target/bench/firewall.json` and the tables that people read.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The middle one; of an even number the lower of the two.
pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "a median of nothing");
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

/// Every figure of a run by its name.
#[derive(Default)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), value);
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    pub fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.iter().filter(move |(name, _)| name.starts_with(prefix)).map(|(name, value)| (name.as_str(), *value))
    }

    /// A flat object in `target/bench`, three digits after the point: no clock here is better than that.
    pub fn write(&self, bench: &str) -> Result<PathBuf> {
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
        let path = target.join(format!("bench/{bench}.json"));
        fs::create_dir_all(path.parent().expect("has a parent")).context("creating target/bench")?;
        let rounded: BTreeMap<&str, f64> =
            self.0.iter().map(|(name, value)| (name.as_str(), (value * 1000.0).round() / 1000.0)).collect();
        fs::write(&path, serde_json::to_string_pretty(&rounded)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// A markdown table, ready for the README. Cells that were not measured stay empty.
pub fn print_table(title: &str, columns: &[String], rows: &[(String, Vec<Option<f64>>)]) {
    println!("\n{title}\n");
    println!("| | {} |", columns.join(" | "));
    println!("|---|{}", "---:|".repeat(columns.len()));
    for (name, cells) in rows {
        let cells: Vec<String> = cells.iter().map(|cell| cell.map_or_else(String::new, show)).collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
}

fn show(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
