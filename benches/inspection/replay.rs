//! How fast the agent's own binary replays a capture, and in how much memory: `replay_m_packets_per_s.{silent,events}`
//! and `replay_mib`. A second is one that the process had a core, reading the file included.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};

use crate::figures::{Figures, median};
use crate::mix;

/// How often the memory of a run is looked at: seldom enough to cost it nothing, and its peak stays until it ends.
const LOOK: Duration = Duration::from_millis(10);

/// Sets the three figures, and what the capture is like.
///
/// # Errors
/// A replay that fails, or that finds other flows than there are.
pub fn measure(figures: &mut Figures, rounds: usize) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("mix.pcap");
    eprintln!("a capture to replay");
    let mix = mix::write(&mut File::create(&path)?)?;
    figures.set("replay_packet_bytes", mix.bytes as f64 / mix.packets as f64);
    let mut peak: f64 = 0.0;
    for (name, arguments) in [("silent", &[][..]), ("events", &["--events"])] {
        eprintln!("replay, {name}");
        let mut rates = Vec::new();
        for _ in 0..rounds {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ebpfsentinel-agent"));
            command.args(["replay", "--no-kernel"]).arg(&path).args(arguments);
            let before = children_time()?;
            let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
            let (said, mib) = watch(child)?;
            rates.push(mix.packets as f64 / (children_time()? - before).as_secs_f64() / 1e6);
            peak = peak.max(mib);
            mix.check(&said)?;
        }
        figures.set(format!("replay_m_packets_per_s.{name}"), median(rates));
    }
    figures.set("replay_mib", peak);
    Ok(())
}

/// Time that the children which have ended had a core.
fn children_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: nix::sys::time::TimeVal| (time.tv_sec() * 1_000_000 + time.tv_usec()) as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

/// Waits for a run; what it said, and the most memory that it had at any time, in MiB.
fn watch(mut child: Child) -> Result<(String, f64)> {
    let status = format!("/proc/{}/status", child.id());
    let mut kib = 0.0;
    let exit = loop {
        // A process that has ended has no memory any more, and no line of it.
        let line = fs::read_to_string(&status).unwrap_or_default();
        if let Some(word) = line.lines().find_map(|line| line.strip_prefix("VmHWM:")) {
            kib = word.trim().trim_end_matches(" kB").parse().context("VmHWM")?;
        }
        match child.try_wait()? {
            Some(exit) => break exit,
            None => std::thread::sleep(LOOK),
        }
    };
    let mut said = String::new();
    child.stderr.take().context("no stderr")?.read_to_string(&mut said)?;
    ensure!(exit.success(), "replay failed: {said}");
    ensure!(kib > 0.0, "replay was too short to be watched");
    Ok((said, kib / 1024.0))
}
