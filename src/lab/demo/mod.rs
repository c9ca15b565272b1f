//! The agent shown to its user: real packets from a world of its own against the example configurations, and what the
//! kernel did with each.
//!
//! Two namespaces, `world` and `host`, joined by one link. The agent runs in `host` on that link, with mounts of its
//! own, so that it neither sees nor touches the bpffs of an agent that guards this machine.

mod floods;
mod l7;
mod scene;
mod steps;
mod talk;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use self::scene::Scene;
use super::{Namespace, Process, sweep};
use crate::api::Method;
use crate::client::{Client, Endpoint};

/// A packet that passes takes far less; a SYN that is dropped is sent again only after a second.
const PATIENCE: Duration = Duration::from_millis(600);
/// For what has to pass beside a flood, which may fill the link: a SYN is sent three times in it.
const LONG_PATIENCE: Duration = Duration::from_secs(5);
const READY_WITHIN: Duration = Duration::from_secs(20);
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// The configuration of scene one, and the firewall of the others.
const FIREWALL: &str = include_str!("../../../conf/examples/firewall.toml");

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the demonstration. True when everything happened as expected.
/// Everything that it made is gone when it returns, also after an interruption by a signal.
pub fn run() -> Result<bool> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and loads eBPF programs: run it as root"
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler stores to an atomic and does nothing else.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("watching for {signal}"))?;
    }
    sweep();
    let mut score = Score::default();
    staged(FIREWALL, |stage| steps::play(stage, &mut score))?;
    println!();
    staged(&floods::config()?, |stage| floods::play(stage, &mut score))?;
    println!();
    staged(&l7::config()?, |stage| l7::play(stage, &mut score))?;
    println!("\n{} of {} steps as expected", score.steps - score.wrong, score.steps);
    Ok(score.wrong == 0)
}

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn interrupted() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// A scene of its own, with an agent that is started for it and has to end well.
fn staged(config: &str, play: impl FnOnce(&mut Stage) -> Result<()>) -> Result<()> {
    let mut stage = Stage::new(config)?;
    play(&mut stage)?;
    match stage.agent.stop(STOP_WITHIN)? {
        Some(status) if status.success() => Ok(()),
        _ => bail!("the agent did not end well:\n{}", stage.agent.output()),
    }
}

/// The table, and how many of its steps were not as expected.
#[derive(Default)]
struct Score {
    steps: usize,
    wrong: usize,
}

impl Score {
    /// The line above the steps of a scene; `rule` is what decides in it.
    fn head(rule: &str) {
        println!("{:<36} {:<32} {:<9} {:<9} {rule}", "STEP", "SENT", "EXPECTED", "HAPPENED");
    }

    /// A step: what it is about, what is sent, expected and happened, and the rule. `note` says more if it went wrong.
    fn add(&mut self, right: bool, [about, sent, expected, happened, rule]: [&str; 5], note: &str) {
        self.steps += 1;
        self.wrong += usize::from(!right);
        let verdict = match (right, note) {
            (true, _) => "ok".to_owned(),
            (false, "") => "WRONG".to_owned(),
            (false, note) => format!("WRONG, {note}"),
        };
        println!("{about:<36} {sent:<32} {expected:<9} {happened:<9} {rule:<20} {verdict}");
    }
}

/// The agent on its scene. The fields end in this order: the agent before what it stands on.
struct Stage {
    agent: Process,
    scene: Scene,
    _folder: Folder,
}

impl Stage {
    fn new(config: &str) -> Result<Stage> {
        let folder = Folder::new()?;
        let scene = Scene::new()?;
        let agent = start_agent(&scene.host, &folder, config)?;
        let mut stage = Stage { agent, scene, _folder: folder };
        stage.wait_ready()?;
        Ok(stage)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.agent.ended()? {
                bail!("the agent ended at once ({status}):\n{}", self.agent.output());
            }
            let last = match self.scene.host.run(|| client().send(Method::Get, "/readyz", None))? {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => answer.body,
                Err(error) => error.to_string(),
            };
            interrupted()?;
            if Instant::now() > deadline {
                bail!("the agent is not ready after {READY_WITHIN:?}: {last}\n{}", self.agent.output());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the agent's API says.
    fn get(&self, target: &str) -> Result<serde_json::Value> {
        Ok(self.scene.host.run(|| client().json(Method::Get, target, None))??)
    }
}

fn client() -> Client {
    Client::new(Endpoint { host: "127.0.0.1".to_owned(), port: 8080 }, None)
}

fn start_agent(host: &Namespace, folder: &Folder, config: &str) -> Result<Process> {
    let path = folder.0.join("config.toml");
    std::fs::write(&path, config).with_context(|| format!("writing {}", path.display()))?;
    // This very program, also when its file was replaced since the first scene: a build may end meanwhile.
    let mut command = host.command("/proc/self/exe")?;
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EBPFSENTINEL_")) {
        command.env_remove(name);
    }
    command
        .args(["--log-format", "text", "--config"])
        .arg(&path)
        .env("EBPFSENTINEL_AGENT_STATE_DIR", folder.0.join("state"))
        .env("EBPFSENTINEL_AGENT_ON_EXIT", "detach")
        // Ctrl-C is for the demo, which then stops the agent.
        .process_group(0);
    // SAFETY: system calls on constant text only; nothing allocates or locks between fork and exec.
    unsafe {
        command.pre_exec(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some(c"bpf"), c"/sys/fs/bpf", Some(c"bpf"), MsFlags::empty(), None::<&str>)?;
            // If the demo is killed its agent ends too.
            nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
            Ok(())
        });
    }
    Process::start(&mut command)
}

/// A folder for config and state, only root's, removed with what is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = PathBuf::from(format!("/run/ebs-{}-demo", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies in /run, which a restart empties.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
