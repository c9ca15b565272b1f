//! A capture file, replayed as by the command line: the budget's model, flows, parsers, rules of l7, EVE JSON. Each line
//! is JSON with the same first members, a second run gives the same, and what is counted adds up.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::LazyLock;

use ebpfsentinel::config::{self, Config};
use ebpfsentinel::replay::summary::Summary;
use ebpfsentinel::replay::{self, Job};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// A line is longer than its capture's longest stream only by what escapes and names add.
const LINE_MAX: usize = 1 << 20;

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let text = include_str!("../../../conf/examples/l7.toml");
    config::parse("l7.toml", text.as_bytes(), [], &[]).expect("the example is right").0
});

fn lines(job: &Job, has_rules: bool) -> Option<(Summary, Vec<u8>)> {
    let mut out = Vec::new();
    let summary = replay::run(job, has_rules.then_some(&*CONFIG), &mut out).ok()?;
    Some((summary, out))
}

pub fn run(bytes: &[u8]) {
    let mut file = File::from(memfd_create("capture", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.write_all(bytes).expect("writing to memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let job = Job { file: path, kernel: false, events: true, lines: true, local: Vec::new(), interface: None };
    // Most of the time goes to compiling the rules.
    let has_rules = bytes.len().is_multiple_of(8);
    let Some((summary, out)) = lines(&job, has_rules) else { return };
    assert_eq!(summary.lines, out.iter().filter(|&&byte| byte == b'\n').count() as u64);
    for line in out.split_inclusive(|&byte| byte == b'\n') {
        assert!(line.len() <= LINE_MAX && line.ends_with(b"\n"), "a line of {} bytes", line.len());
        let line: serde_json::Value = serde_json::from_slice(line).expect("a line is JSON");
        assert!(line["timestamp"].is_string() && line["event_type"].is_string(), "{line}");
    }
    let again = (bytes.len() % 8 == 1).then(|| lines(&job, false)).flatten();
    assert!(again.is_none_or(|(_, again)| again == out), "a second run tells something else");
}
