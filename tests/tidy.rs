//! What the compiler does not check: which module may import which, what a file must say, how long a name may be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules of `src/` from the top down. A module imports from its own line and from those below. What is not listed
/// fails the test: a new module says here where it stands.
const LAYERS: &[&[&str]] = &[
    &["main", "cli", "client", "agent", "explain", "lab", "replay"],
    &["control", "inspection"],
    &["config", "audit", "system"],
    &["engines"],
    &["ruled"],
    &["alert", "bpf", "classify", "confirm", "matching", "store"],
    &["flow", "feeds", "eve", "event", "enrichment", "outbound", "guarded", "secret", "written", "api"],
    &["abi", "component", "packet", "metrics", "logging", "supervise"],
];

/// Longer than this, a file is several: split it.
const LINES_MAX: usize = 1500;

/// Names of programs, maps and threads, without the closing zero.
const KERNEL_NAME_MAX: usize = 15;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Whether git ignores a folder: what cargo builds, also for `packaging/fuzz`, and what that learns.
fn is_generated(folder: &Path) -> bool {
    let learnt = ["corpus", "artifacts", "coverage"];
    folder.ends_with("target") || learnt.iter().any(|name| *folder == root().join("tests/fuzz").join(name))
}

/// Path from the root, and text, of every file under `folder` with one of the endings, in order.
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend((!is_generated(&path)).then_some(path));
            } else if endings.iter().any(|ending| path.to_str().unwrap().ends_with(ending)) {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    let rust = ["src", "tests", "benches"].iter().flat_map(|folder| files(folder, &[".rs"]));
    let c = ["bpf", "include"].iter().flat_map(|folder| files(folder, &[".c", ".h"]));
    rust.chain(c).filter(|(name, _)| name != "tests/tidy.rs").collect()
}

/// The part of a file before its unit tests, without comment lines; what is numbered is the line.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let tests = ["\n#[cfg(test)]\nmod tests", "\n#[cfg(test)]\npub(crate) mod tests"];
    let tests = tests.iter().filter_map(|start| text.find(start)).min().unwrap_or(text.len());
    text[..tests]
        .lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn complain(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The words that follow each `before` in `line`.
fn words_after<'a>(line: &'a str, before: &'a str) -> impl Iterator<Item = &'a str> {
    line.match_indices(before).map(move |(at, _)| {
        let rest = &line[at + before.len()..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn imports_go_down_only() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut faults = Vec::new();
    for (name, text) in files("src", &[".rs"]) {
        let parts: Vec<&str> = name.trim_end_matches(".rs").split('/').skip(1).collect();
        // `src/**/tests.rs` is the test module of the file beside it.
        if name == "src/lib.rs" || parts.last() == Some(&"tests") {
            continue;
        }
        let Some(own) = layer(parts[0]) else {
            faults.push(format!("{name}: the module {} has no place in LAYERS of tests/tidy.rs", parts[0]));
            continue;
        };
        let own_engine = (parts[0] == "engines").then(|| parts.get(1).copied()).flatten();
        // A use of several modules may go over several lines.
        let joined: Vec<(usize, String)> = code(&text).map(|(number, line)| (number, line.replace(' ', ""))).collect();
        for (number, line) in &joined {
            let path = if line.starts_with("usecrate::{") || line.starts_with("pubusecrate::{") {
                faults.push(format!(
                    "{name}:{number}: write one `use crate::module` a line, so that imports can be read"
                ));
                continue;
            } else {
                line
            };
            for module in words_after(path, "crate::") {
                match layer(module) {
                    Some(other) if other < own => {
                        faults.push(format!("{name}:{number}: {} must not import {module}", parts[0]));
                    }
                    // Macros and names that main and lib define at the root.
                    _ => {}
                }
            }
            for engine in words_after(path, "crate::engines::") {
                let foreign = own_engine.is_some_and(|own| own != engine && own != "mod" && !engine.is_empty());
                if foreign && root().join("src/engines").join(engine).is_dir() {
                    faults.push(format!("{name}:{number}: an engine must not import another ({engine})"));
                }
            }
        }
    }
    complain(faults);
}

#[test]
fn nothing_is_left_for_later() {
    // In two parts, so that a search of the tree finds none.
    let marks: Vec<String> = [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("XX", "X:"),
        ("to", "do!("),
        ("unimple", "mented!("),
        ("#[ig", "nore"),
        ("allow(dead", "_code"),
    ]
    .iter()
    .map(|(a, b)| format!("{a}{b}"))
    .collect();
    let mut faults = Vec::new();
    for (name, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            faults.extend(
                marks.iter().filter(|mark| line.contains(*mark)).map(|mark| format!("{name}:{}: {mark}", number + 1)),
            );
        }
    }
    complain(faults);
}

#[test]
fn each_unsafe_says_why_it_is_sound() {
    let mut faults = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| name.ends_with(".rs")) {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let is_unsafe = ["unsafe {", "unsafe impl", "unsafe fn", "unsafe trait", "unsafe extern"]
                .iter()
                .any(|form| code.contains(form) && !code.contains(&format!("\"{form}")));
            // One statement may hold the block some lines down; a doc comment may stand above attributes.
            let said = lines[at.saturating_sub(8)..=at]
                .iter()
                .any(|near| near.contains("SAFETY:") || near.contains("# Safety"));
            if is_unsafe && !said {
                faults.push(format!("{name}:{}: unsafe without a SAFETY: comment above it", at + 1));
            }
        }
    }
    complain(faults);
}

#[test]
fn kernel_sources_name_their_licence() {
    let all = ["bpf", "include"].iter().flat_map(|folder| files(folder, &[".c", ".h"]));
    let first = |text: &str| text.lines().next().unwrap_or_default().to_string();
    let good = |line: &str| line.contains("SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause");
    complain(
        all.filter(|(_, text)| !good(&first(text)))
            .map(|(name, text)| format!("{name}:1: no SPDX line of GPL-2.0-only OR BSD-2-Clause: {}", first(&text)))
            .collect(),
    );
}

#[test]
fn names_fit_into_the_kernels_space() {
    let mut faults = Vec::new();
    let mut check = |place: String, what: &str, name: &str| {
        if name.len() > KERNEL_NAME_MAX {
            faults.push(format!("{place}: the {what} name {name} is longer than {KERNEL_NAME_MAX}"));
        }
    };
    for (file, text) in ["bpf", "include"].iter().flat_map(|folder| files(folder, &[".c", ".h"])) {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let place = format!("{file}:{}", at + 1);
            if line.contains("SEC(\".maps\")") {
                if let Some(name) = words_after(line, "} ").next() {
                    check(place, "map", name);
                }
            } else if line.starts_with("SEC(\"") && !line.contains('=') {
                // The function's name stands on this line or the next, before its first bracket after SEC(…).
                let rest = line.split_once("\")").map_or("", |(_, rest)| rest);
                let text = if rest.trim().is_empty() { lines.get(at + 1).copied().unwrap_or_default() } else { rest };
                let name = text.split('(').next().unwrap_or_default().split([' ', '*']).next_back().unwrap_or_default();
                check(place, "program", name);
            }
        }
    }
    for (file, text) in files("src", &[".rs"]) {
        for (number, line) in code(&text) {
            for before in ["spawn(\"", "spawn_owner(\"", ".name(\""] {
                words_after(line, before).for_each(|name| check(format!("{file}:{number}"), "thread", name));
            }
        }
    }
    complain(faults);
}

#[test]
fn every_thread_is_supervised() {
    // The laboratory's threads end with it, and neither they nor that of `alerts watch` run in the agent. Control tells of
    // its threads' panics by the callback that it is given; a thread that writes one client's stream catches its own.
    let free = |name: &str| {
        ["src/supervise.rs", "src/control/mod.rs", "src/control/server.rs", "src/cli/watch.rs"].contains(&name)
            || name.starts_with("src/lab/")
            || name.ends_with("/tests.rs")
            || name.ends_with("_tests.rs")
    };
    let mut faults = Vec::new();
    for (name, text) in files("src", &[".rs"]).into_iter().filter(|(name, _)| !free(name)) {
        for (number, line) in code(&text) {
            if line.contains("thread::spawn(") || line.contains("thread::Builder") {
                faults.push(format!(
                    "{name}:{number}: start threads by supervise::Supervisor, else a panic goes unheard"
                ));
            }
        }
    }
    complain(faults);
}

#[test]
fn tests_and_benches_are_registered() {
    // Cargo does not look for them by itself, so that a folder can be one test program.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut faults = Vec::new();
    for folder in ["tests", "benches"] {
        for entry in fs::read_dir(root().join(folder)).into_iter().flatten() {
            let path = entry.unwrap().path();
            let target = if path.is_dir() { path.join("main.rs") } else { path };
            let target = target.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
            let is_target = target.ends_with(".rs") && root().join(&target).is_file();
            // Without a path, cargo takes the name for the file's or the folder's.
            let stem =
                target.trim_end_matches("/main.rs").trim_end_matches(".rs").rsplit('/').next().unwrap_or_default();
            let section = format!("[[{}]]\nname = \"{stem}\"", if folder == "tests" { "test" } else { "bench" });
            if is_target && !manifest.contains(&section) {
                faults.push(format!("{target}: not registered in Cargo.toml"));
            }
        }
    }
    complain(faults);
}

#[test]
fn no_file_is_a_heap() {
    let long = |(name, text): (String, String)| {
        let lines = text.lines().count();
        (lines > LINES_MAX).then(|| format!("{name}: {lines} lines; split it"))
    };
    complain(sources().into_iter().filter_map(long).collect());
}

#[test]
fn scripts_are_sound_shell() {
    let scripts =
        ["packaging/lib.sh", "packaging/setup", "packaging/demo", "packaging/test", "packaging/fuzz", ".ci/run"];
    for script in scripts {
        let path = root().join(script);
        let status = Command::new("bash").arg("-n").arg(&path).status().unwrap();
        assert!(status.success(), "{script}");
        assert!(script.ends_with(".sh") || is_executable(&path), "{script} is not executable");
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().unwrap().permissions().mode() & 0o111 != 0
}
