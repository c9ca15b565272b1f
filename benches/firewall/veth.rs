//! End to end: live frames from a generator through veth pairs, a receiver in a namespace of its own for each variant.
//!
//! The namespaces have no name: they live by a file descriptor and go with the process, however it ends. The frames are
//! received in the generator's own softirq, on the same core, so a figure holds the generator's share, too.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use ebpfsentinel::bpf::offload;
use nix::sched::{CloneFlags, setns, unshare};

use crate::figures::median;
use crate::headers::frame_v4;
use crate::kernel::{Bench, TestRun, attach_native, calibrate, live_run};

/// Length of a batch.
const BATCH_NS: f64 = 4.0e7;

/// A network namespace.
pub struct Namespace(File);

impl Namespace {
    /// The one that this thread is in.
    fn current() -> Result<Namespace> {
        Ok(Namespace(File::open("/proc/thread-self/ns/net").context("opening the namespace")?))
    }

    fn new() -> Result<Namespace> {
        let home = Namespace::current()?;
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (root is needed)")?;
        let made = Namespace::current();
        home.enter()?;
        made
    }

    fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }

    /// Runs `act` in the namespace and comes back.
    pub fn within<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = Namespace::current()?;
        self.enter()?;
        let result = act();
        home.enter()?;
        result
    }

    /// A path that names it for `ip link set … netns`.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Feeds `input` to a program in this thread's namespace.
pub fn feed(program: &str, args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let text = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    // A reader that gave up early says why on stderr; that is worth more than our broken pipe.
    let written = writer.join().expect("the writer does not panic");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}", said.lines().take(3).collect::<Vec<_>>().join("; "));
    }
    written.with_context(|| format!("writing to {program}"))
}

/// Whether a program can be run here.
pub fn exists(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// What waits at the other end of a veth pair.
pub struct Receiver {
    pub label: &'static str,
    pub namespace: Namespace,
    /// Of the generator's end.
    pub ifindex: u32,
    repeat: u32,
    /// Frames before each batch: once through the trace, for those that are fast enough, as in the matrix.
    warm_up: u32,
    /// Share of the frames that never arrived.
    pub lost: f64,
}

/// The generator's namespace and the receivers.
pub struct Wire {
    pub generator: Namespace,
    pub receivers: Vec<Receiver>,
}

impl Wire {
    pub fn new() -> Result<Wire> {
        let generator = Namespace::new()?;
        generator.within(|| feed("ip", &["-batch", "-"], "link set lo up\n"))?;
        Ok(Wire { generator, receivers: Vec::new() })
    }

    /// Adds a receiver with `b0` up; `prepare` runs in its namespace.
    pub fn add(&mut self, label: &'static str, prepare: impl FnOnce() -> Result<()>) -> Result<()> {
        let namespace = Namespace::new()?;
        let name = format!("a{}", self.receivers.len());
        namespace.within(|| {
            fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
            Ok(())
        })?;
        let ifindex = self.generator.within(|| {
            fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
            feed(
                "ip",
                &["-batch", "-"],
                &format!(
                    "link add {name} address 02:00:00:00:00:01 type veth peer name b0 address 02:00:00:00:00:02 netns {}\n\
                     link set {name} up\n",
                    namespace.path()
                ),
            )?;
            nix::net::if_::if_nametoindex(name.as_str()).context("the veth that was just made")
        })?;
        namespace.within(|| {
            feed("ip", &["-batch", "-"], "link set lo up\nlink set b0 up\n")?;
            // Without GRO a veth that has no XDP program takes no frame from a redirect.
            offload::switch("b0", &["rx-gro"], true)?;
            prepare()
        })?;
        self.receivers.push(Receiver { label, namespace, ifindex, repeat: 0, warm_up: 0, lost: 0.0 });
        Ok(())
    }

    /// Adds a receiver with an XDP program in the driver.
    pub fn add_xdp(&mut self, label: &'static str, program: RawFd) -> Result<()> {
        self.add(label, || attach_native(program, "b0"))
    }

    /// Median ns for a frame of the trace, generator included, of each receiver; one batch each per round.
    pub fn measure(&mut self, bench: &mut Bench, rounds: usize) -> Result<Vec<f64>> {
        let generate = bench.program("generate")?;
        let frame = frame_v4();
        self.measure_by(bench, rounds, |bench, ifindex, count| {
            bench.control().generator_ifindex = ifindex;
            live_run(generate, &frame, count)
        })
    }

    /// The same for another generator: `send` sends a number of frames out of an interface of this thread's namespace.
    pub fn measure_by(
        &mut self,
        bench: &mut Bench,
        rounds: usize,
        mut send: impl FnMut(&mut Bench, u32, u32) -> Result<TestRun>,
    ) -> Result<Vec<f64>> {
        let mut quiet: Vec<Vec<f64>> = vec![Vec::new(); self.receivers.len()];
        let mut all = quiet.clone();
        let mut attempts = 0;
        for receiver in &mut self.receivers {
            let ifindex = receiver.ifindex;
            (receiver.warm_up, receiver.repeat) =
                self.generator.within(|| calibrate(BATCH_NS, |count| send(bench, ifindex, count)))?;
        }
        while quiet[0].len() < rounds && attempts < rounds + rounds / 2 {
            attempts += 1;
            let before = bench.canary()?;
            let mut round = Vec::with_capacity(self.receivers.len());
            for receiver in &mut self.receivers {
                let seen = receiver.namespace.within(received)?;
                let ifindex = receiver.ifindex;
                self.generator.within(|| send(bench, ifindex, receiver.warm_up))?;
                round.push(self.generator.within(|| send(bench, ifindex, receiver.repeat))?.ns);
                let seen = receiver.namespace.within(received)? - seen;
                receiver.lost = receiver.lost.max(1.0 - seen as f64 / f64::from(receiver.warm_up + receiver.repeat));
            }
            let good = before && bench.canary()?;
            bench.void_rounds += u64::from(!good);
            for (place, ns) in round.into_iter().enumerate() {
                all[place].push(ns);
                if good {
                    quiet[place].push(ns);
                }
            }
        }
        if quiet[0].len() < rounds.min(5) {
            bench.noisy += 1;
            quiet = all;
        }
        Ok(quiet.into_iter().map(median).collect())
    }
}

/// Packets that `b0` of this namespace has received.
fn received() -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").context("reading net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("b0:")).context("no b0 in net/dev")?;
    line.split_whitespace().nth(1).and_then(|packets| packets.parse().ok()).context("net/dev has no packets")
}
