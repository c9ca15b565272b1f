//! A disk that is full, and an agent that is killed.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::support::{Running, Scene, free_port, once, records, until};

/// Whose child is told by this variable where to work.
const CHILD: &str = "SINKS_CHILD";

/// A small disk of its own.
struct Disk<'s>(&'s Path);

impl<'s> Disk<'s> {
    fn new(path: &'s Path) -> Disk<'s> {
        fs::create_dir(path).unwrap();
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        Disk(path)
    }

    /// Nothing more has room there.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

fn syslog(port: u16) -> String {
    format!(
        "destination = 'syslog'\nhost = '127.0.0.1'\nport = {port}\ntransport = 'tcp'\nspool = '4MiB'\nbreaker_secs = 1\n"
    )
}

fn last_words(records: &[Value]) -> Vec<usize> {
    let last = |record: &Value| record["message"].as_str().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    once(records.iter().map(last))
}

#[test]
fn a_full_disk_delays_and_tears_nothing() {
    let scene = Scene::new();
    let (state, logs) = (scene.path("state"), scene.path("logs"));
    let (state_disk, log_disk) = (Disk::new(&state), Disk::new(&logs));
    let port = free_port();
    let path = logs.join("eve.json");
    let eve = format!("destination = 'eve'\npath = '{}'", path.display());
    let mut running = Running::new(&scene, &[("siem", syslog(port)), ("eve", eve)]);
    running.tell(0..10);
    until("the file is begun", || running.sender("eve").1 == 10);
    until("the spool is begun", || running.metrics.sender("siem").queue.get() == 0);
    state_disk.fill();
    log_disk.fill();
    // More than the last page of a file has room for.
    running.tell(10..100);
    until("the file is tried again", || running.metrics.sender("eve").retried.get() > 0);
    until("the spool is in memory", || running.metrics.sender("siem").queue.get() > 0);
    state_disk.empty();
    log_disk.empty();
    running.tell(100..120);
    let receiver = scene.receiver("tcp", port);
    receiver.wait(120);
    assert_eq!(last_words(&receiver.records()), (0..120).collect::<Vec<_>>());
    until("the file is whole", || running.sender("eve").1 == 120);
    let message = |line: &Value| line["alert"]["metadata"]["message"][0].as_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(records(&path).iter().map(message).collect::<Vec<_>>(), (0..120).collect::<Vec<_>>());
    let metrics = running.stop();
    for reason in ["full", "spool_full", "spool_failed", "spool_torn", "stopped", "refused"] {
        for place in ["sink_siem", "sink_eve"] {
            assert_eq!(metrics.events_lost(place, reason).get(), 0, "{place} {reason}");
        }
    }
}

/// Killed in the midst of it, again and again: what was in the spool goes on from there, in order and without a gap.
#[test]
fn kill_9_loses_nothing_that_was_spooled() {
    if let Ok(arguments) = std::env::var(CHILD) {
        spool_until_killed(&arguments);
    }
    let scene = Scene::new();
    let port = free_port();
    let mut told = 0;
    for _ in 0..25 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hardship::kill_9_loses_nothing_that_was_spooled", "--nocapture"])
            .env(CHILD, format!("{port} {told} {}", scene.path("state").display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let count = scene.path("state").join("count");
        let before = told;
        let read = || fs::read_to_string(&count).ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
        until("the child spools", || read() > before + 20);
        child.kill().unwrap();
        child.wait().unwrap();
        // It may have spooled more than it could say.
        told = read();
    }
    let receiver = scene.receiver("tcp", port);
    let running = Running::new(&scene, &[("siem", syslog(port))]);
    until("all arrive", || last_words(&receiver.records()).len() >= told);
    until("the spool is empty", || running.metrics.sender("siem").spool_bytes.get() == 0);
    assert_eq!(last_words(&receiver.records())[..told], (0..told).collect::<Vec<_>>());
    running.stop();
}

/// What the child does: spools, and says in a file how much surely is.
fn spool_until_killed(arguments: &str) -> ! {
    let (port, rest) = arguments.split_once(' ').unwrap();
    let (first, state) = rest.split_once(' ').unwrap();
    let (port, first): (u16, usize) = (port.parse().unwrap(), first.parse().unwrap());
    let state = Path::new(state);
    let mut running = Running::in_state(state, &[("siem", syslog(port))]);
    let bytes = |running: &Running| running.metrics.sender("siem").spool_bytes.get();
    for number in first.. {
        let before = bytes(&running);
        running.tell(number..number + 1);
        // Nobody listens, so it only grows.
        until("it is spooled", || bytes(&running) > before);
        fs::write(state.join("new"), (number + 1).to_string()).unwrap();
        fs::rename(state.join("new"), state.join("count")).unwrap();
    }
    unreachable!("numbers do not end")
}
