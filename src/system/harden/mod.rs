//! What the running agent may still do: the sandbox that it shuts itself into, `agent.sandbox`.
//!
//! Three walls, each of which stands without the others:
//! - Capabilities: of root's powers those of [`KEPT`] are kept. The user stays root, since pins in the BPF file system,
//!   the switches of `firewall.rp_filter` and keys belong to root; without `CAP_DAC_OVERRIDE` it is root over root's
//!   own files only. `no_new_privs` and the bounding set see to it that nothing comes back.
//! - Landlock: files may be read where configuration, certificates and system libraries are and written where state is.
//!   Nothing may be executed.
//! - seccomp: a list of system calls ([`calls`]); any other fails with EPERM and is told to the kernel's audit log.
//!
//! Landlock and capabilities belong to a thread and are inherited, so [`Sandbox::enter`] comes before all threads but
//! one: that which looks up processes ([`keep_only`], `enrichment::Scanner`), as Landlock lets no thread look into
//! processes that are not as restricted as itself. It holds no capability but those for this look. The filter for
//! system calls is put on all threads at once, when the start is over ([`Sandbox::close`]).

mod calls;

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use caps::{CapSet, Capability};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use schemars::JsonSchema;
use serde::Serialize;

/// What all threads keep: programs and maps (`CAP_BPF`), their attachment (`CAP_NET_ADMIN`), pointers in them as the
/// verifier allows only to tracers (`CAP_PERFMON`), and TCP resets (`CAP_NET_RAW`).
pub const KEPT: &[Capability] =
    &[Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON, Capability::CAP_NET_RAW];

/// What the thread that looks up processes keeps: files of other users in /proc (`CAP_DAC_READ_SEARCH`), and where the
/// descriptors of processes lead that are not its own (`CAP_SYS_PTRACE`).
pub const LOOKING: &[Capability] = &[Capability::CAP_DAC_READ_SEARCH, Capability::CAP_SYS_PTRACE];

/// The newest Landlock whose rights are asked for. Version 9 would ask for every Unix socket, the journal's included.
const LANDLOCK: ABI = ABI::V6;

/// What is read in any case: libraries and data of the resolver, roots of certificates, users and groups, the kernel.
const READ: &[&str] = &[
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/proc",
    "/sys",
    "/dev/urandom",
    "/dev/null",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
];

/// What is written in any case: pins. And the switches for look-ups of routes; nothing else in /proc.
const WRITE: &[&str] = &["/sys/fs/bpf", "/dev/null", IPV4_SWITCHES, IPV6_SWITCHES];
const IPV4_SWITCHES: &str = "/proc/sys/net/ipv4/conf";
const IPV6_SWITCHES: &str = "/proc/sys/net/ipv6/conf";

/// What this configuration needs beyond [`READ`], [`WRITE`] and [`KEPT`].
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Files and directories to read.
    pub read: Vec<PathBuf>,
    /// Directories to read and write.
    pub write: Vec<PathBuf>,
    /// Whether a port below 1024 is listened on.
    pub low_port: bool,
    /// Whether the service manager listens on an abstract socket.
    pub abstract_sockets: bool,
}

/// The sandbox as `status` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SandboxStatus {
    /// `agent.sandbox`.
    pub enabled: bool,
    /// Capabilities in effect in the agent's threads, in alphabetical order.
    pub capabilities: Vec<String>,
    /// Whether no program that it starts could gain any.
    pub no_new_privs: bool,
    /// The filter for system calls: `enforced`, `off`, or `failed`.
    pub seccomp: String,
    /// The limits on files: `enforced`, `partial` (an older kernel), `unavailable` (the kernel has none, or the first version), `off`, or
    /// `failed`.
    pub landlock: String,
    /// What could not be done, a sentence each.
    pub failures: Vec<String>,
}

/// A wall's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wall {
    Off,
    Enforced,
    Partial,
    Unavailable,
    Failed,
}

impl Wall {
    fn name(self) -> &'static str {
        match self {
            Wall::Off => "off",
            Wall::Enforced => "enforced",
            Wall::Partial => "partial",
            Wall::Unavailable => "unavailable",
            Wall::Failed => "failed",
        }
    }
}

/// The walls around this process.
#[derive(Debug)]
pub struct Sandbox {
    enabled: bool,
    landlock: Wall,
    seccomp: Mutex<Wall>,
    failures: Mutex<Vec<String>>,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    /// Rules hold on to inodes, and those of /proc/sys are made anew when nobody uses them: here they are used.
    _switches: Vec<PathFd>,
}

impl Sandbox {
    /// None: `agent.sandbox = false`.
    pub fn off() -> Sandbox {
        Sandbox {
            enabled: false,
            landlock: Wall::Off,
            seccomp: Mutex::new(Wall::Off),
            failures: Mutex::default(),
            read: Vec::new(),
            write: Vec::new(),
            _switches: Vec::new(),
        }
    }

    /// Takes from the calling thread, and those that it starts from now on, what the plan does not need. What cannot be
    /// taken is noted and does not end the agent.
    pub fn enter(plan: &Plan) -> Sandbox {
        let mut failures = Vec::new();
        let mut note = |what: &str, error: &dyn std::fmt::Display| failures.push(format!("sandbox: {what}: {error}"));
        let mut wanted: Vec<Capability> = KEPT.to_vec();
        wanted.extend(plan.low_port.then_some(Capability::CAP_NET_BIND_SERVICE));
        if let Err(error) = keep_only(&wanted) {
            note("dropping capabilities", &format!("{error:#}"));
        }
        let read: Vec<PathBuf> = READ.iter().map(PathBuf::from).chain(plan.read.iter().cloned()).collect();
        let write: Vec<PathBuf> = WRITE.iter().map(PathBuf::from).chain(plan.write.iter().cloned()).collect();
        let landlock = restrict_files(&read, &write, plan.abstract_sockets).unwrap_or_else(|error| {
            note("landlock", &format!("{error:#}"));
            Wall::Failed
        });
        let switches = [IPV4_SWITCHES, IPV6_SWITCHES].iter().filter_map(|path| PathFd::new(path).ok()).collect();
        let canonical = |paths: Vec<PathBuf>| paths.iter().map(|path| real(path)).collect();
        Sandbox {
            enabled: true,
            landlock,
            seccomp: Mutex::new(Wall::Off),
            failures: Mutex::new(failures),
            read: canonical(read),
            write: canonical(write),
            _switches: switches,
        }
    }

    /// Puts the filter for system calls on all threads of the process. To be called when the start is over.
    pub fn close(&self) {
        if !self.enabled {
            return;
        }
        let state = match calls::apply(true) {
            Ok(()) => Wall::Enforced,
            Err(error) => {
                lock(&self.failures).push(format!("sandbox: seccomp: {error:#}"));
                Wall::Failed
            }
        };
        *lock(&self.seccomp) = state;
    }

    /// What is in force now. Capabilities and `no_new_privs` are the kernel's words.
    pub fn status(&self) -> SandboxStatus {
        let own = caps::read(None, CapSet::Effective).unwrap_or_default();
        let names: BTreeSet<String> = own.iter().map(ToString::to_string).collect();
        SandboxStatus {
            enabled: self.enabled,
            capabilities: names.into_iter().collect(),
            no_new_privs: nix::sys::prctl::get_no_new_privs().unwrap_or(false),
            seccomp: lock(&self.seccomp).name().to_owned(),
            landlock: self.landlock.name().to_owned(),
            failures: lock(&self.failures).clone(),
        }
    }

    /// What could not be done, a sentence each.
    pub fn degraded(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }

    /// Why a configuration with these needs cannot be put in force without a restart, if it cannot: the walls stand
    /// where the start has put them.
    pub fn refuses(&self, plan: &Plan) -> Option<String> {
        if !matches!(self.landlock, Wall::Enforced | Wall::Partial) {
            return None;
        }
        let beneath = |path: &Path, roots: &[PathBuf]| {
            let path = real(path);
            roots.iter().any(|root| path.starts_with(root))
        };
        let read = plan.read.iter().find(|path| !beneath(path, &self.read) && !beneath(path, &self.write));
        let write = plan.write.iter().find(|path| !beneath(path, &self.write));
        let (path, verb) = read.map(|path| (path, "read")).or(write.map(|path| (path, "written")))?;
        Some(format!(
            "{}: the sandbox as it was set up at the start does not let it be {verb}; restart the agent",
            path.display()
        ))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The path without links and dots, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    let mut at = path;
    loop {
        if let Ok(found) = std::fs::canonicalize(at) {
            return rest.iter().rev().fold(found, |path, part: &Component<'_>| path.join(part));
        }
        let (Some(parent), Some(last)) = (at.parent(), at.components().next_back()) else { return path.to_owned() };
        rest.push(last);
        at = parent;
    }
}

/// Leaves to the calling thread, and those that it starts from now on, these capabilities as far as it has them, and no
/// way to others.
///
/// # Errors
/// The kernel refuses.
pub fn keep_only(wanted: &[Capability]) -> Result<()> {
    nix::sys::prctl::set_no_new_privs().context("setting no_new_privs")?;
    // Needs a capability itself. Where it is not there, the service manager has set the bounds.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        for one in caps::read(None, CapSet::Bounding).context("reading the bounding set")? {
            if !wanted.contains(&one) {
                caps::drop(None, CapSet::Bounding, one)
                    .with_context(|| format!("taking {one} out of the bounding set"))?;
            }
        }
    }
    let had = caps::read(None, CapSet::Permitted).context("reading capabilities")?;
    let kept = wanted.iter().copied().filter(|one| had.contains(one)).collect();
    // The ambient and inheritable sets would only matter to programs that are started.
    for (set, name) in [(CapSet::Ambient, "ambient"), (CapSet::Inheritable, "inheritable")] {
        caps::clear(None, set).with_context(|| format!("emptying the {name} set"))?;
    }
    for (set, name) in [(CapSet::Effective, "effective"), (CapSet::Permitted, "permitted")] {
        caps::set(None, set, &kept).with_context(|| format!("setting the {name} set"))?;
    }
    Ok(())
}

/// Puts the calling thread, and those that it starts from now on, under Landlock.
fn restrict_files(read: &[PathBuf], write: &[PathBuf], abstract_sockets: bool) -> Result<Wall> {
    // The first version lets no file be moved to another directory, and that is how sockets are put in place.
    let moves = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::Refer);
    if moves.is_err() {
        return Ok(Wall::Unavailable);
    }
    let mut scopes = BitFlags::from(Scope::Signal);
    if !abstract_sockets {
        scopes |= Scope::AbstractUnixSocket;
    }
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|ruleset| ruleset.scope(scopes))
        .and_then(Ruleset::create)
        .context("making a ruleset")?;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    // No devices, no programs.
    let writing = AccessFs::from_write(LANDLOCK)
        & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeFifo | AccessFs::MakeSym | AccessFs::IoctlDev);
    let rules = read.iter().map(|path| (path, reading)).chain(write.iter().map(|path| (path, reading | writing)));
    for (path, access) in rules {
        // What is not there cannot be read; a file takes no rights of a directory.
        let Ok(fd) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
        let added = ruleset.add_rule(PathBeneath::new(fd, access));
        ruleset = added.with_context(|| format!("a rule for {}", path.display()))?;
    }
    let done = ruleset.restrict_self().context("restricting")?;
    Ok(match done.ruleset {
        RulesetStatus::FullyEnforced => Wall::Enforced,
        RulesetStatus::PartiallyEnforced => Wall::Partial,
        RulesetStatus::NotEnforced => Wall::Unavailable,
    })
}

/// Puts the filter for system calls on the calling thread only. For tests.
///
/// # Errors
/// The kernel has none, or refuses.
pub fn filter_this_thread() -> Result<()> {
    calls::apply(false)
}
