//! What the running agent may still do: the sandbox that it shuts itself into, `agent.sandbox`.
//!
//! Three walls, each of which stands without the others:
//! - Capabilities: of root's powers those of [`KEPT`] are kept. The user stays root, since pins in the BPF file system,
//!   the switches of `firewall.rp_filter` and keys belong to root; without `CAP_DAC_OVERRIDE` it is root over root's
//!   own files only. `no_new_privs` and the bounding set see to it that nothing comes back. Ports are bound before.
//! - Landlock: files may be read where configuration, certificates and system libraries are and written where state is.
//!   Nothing may be executed. It judges files by where they lie, so [`links`] are followed, and what is not there at the
//!   start stays closed.
//! - seccomp: a list of system calls ([`calls`]); any other fails with EPERM and is told to the kernel's audit log.
//!
//! Landlock and capabilities belong to a thread and are inherited, so [`Sandbox::enter`] comes before all threads but
//! one: that which looks up processes ([`keep_only`], `enrichment::Scanner`), as Landlock lets no thread look into
//! processes that are not as restricted as itself. It holds no capability but those for this look. The filter for
//! system calls is put on all threads at once, when the start is over ([`Sandbox::close`]).

mod calls;
mod links;

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

/// What is read in any case: libraries and data of the resolver, roots of certificates, users and groups, the kernel. A
/// store of packages is /usr where there is one, and everybody reads it.
const READ: &[&str] = &[
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/proc",
    "/sys",
    "/dev/urandom",
    "/dev/null",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
];

/// Files in these places that may be links to others: openSUSE has its resolver's in /run/netconfig, for one. The roots of
/// certificates come on top.
const SYSTEM_FILES: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/passwd",
    "/etc/group",
    "/etc/ld.so.cache",
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
    /// Files and directories that may be read, with all that is in them, if there are limits on files.
    pub read: Vec<String>,
    /// Files and directories that may be written, and read.
    pub write: Vec<String>,
    /// What the configuration names and was not there at the start: it stays closed until a restart.
    pub missing: Vec<String>,
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

    fn stands(self) -> bool {
        matches!(self, Wall::Enforced | Wall::Partial)
    }
}

/// What the limits on files leave open, without links and dots, and what they do not.
#[derive(Debug, Default)]
struct Places {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    /// Asked for, and not there.
    missing: Vec<PathBuf>,
}

impl Places {
    /// What is there of what is asked for. What lies in a place that is open is not asked for once more.
    fn of(plan: &Plan) -> Places {
        let mut places = Places::default();
        let there = |paths: &'static [&'static str]| paths.iter().map(PathBuf::from).filter(|path| path.exists());
        there(WRITE).chain(plan.write.iter().cloned()).for_each(|path| places.add(&path, true));
        there(READ).for_each(|path| places.add(&path, false));
        for link in SYSTEM_FILES.iter().map(Path::new).filter(|path| path.is_symlink() && !path.exists()) {
            let target = std::fs::read_link(link).unwrap_or_default();
            places.add(&link.parent().unwrap_or(link).join(target), false);
        }
        let certificates = openssl_probe::probe();
        let entries = certificates.cert_dir.iter().flat_map(|directory| links::beside_entries(directory));
        let mut beside: BTreeSet<PathBuf> = entries.collect();
        let files = there(SYSTEM_FILES).chain(certificates.cert_file.clone()).chain(certificates.cert_dir.clone());
        let files: Vec<PathBuf> = files.chain(plan.read.iter().cloned()).collect();
        beside.extend(files.iter().flat_map(|path| links::beside(path)));
        // Directories first, as files in them are open with them.
        beside.iter().chain(&files).for_each(|path| places.add(path, false));
        places
    }

    fn add(&mut self, path: &Path, writes: bool) {
        let there = path.exists();
        let path = real(path);
        if self.has(&path, writes) || self.is_missing(&path) {
            return;
        }
        match (there, writes) {
            (false, _) => self.missing.push(path),
            (true, true) => self.write.push(path),
            (true, false) => self.read.push(path),
        }
    }

    /// Whether this path, which has no links in it, may be read, or written.
    fn has(&self, path: &Path, writes: bool) -> bool {
        let beneath = |roots: &[PathBuf]| roots.iter().any(|root| path.starts_with(root));
        beneath(&self.write) || (!writes && beneath(&self.read))
    }

    /// Whether this path, or a directory that leads to it, was not there.
    fn is_missing(&self, path: &Path) -> bool {
        self.missing.iter().any(|missing| path.starts_with(missing))
    }
}

/// The walls around this process.
#[derive(Debug)]
pub struct Sandbox {
    enabled: bool,
    landlock: Wall,
    seccomp: Mutex<Wall>,
    failures: Mutex<Vec<String>>,
    places: Places,
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
            places: Places::default(),
            _switches: Vec::new(),
        }
    }

    /// Takes from the calling thread, and those that it starts from now on, what the plan does not need. What cannot be
    /// taken is noted and does not end the agent.
    pub fn enter(plan: &Plan) -> Sandbox {
        let mut failures = Vec::new();
        let mut note = |what: &str, error: &dyn std::fmt::Display| failures.push(format!("sandbox: {what}: {error}"));
        if let Err(error) = keep_only(KEPT) {
            note("dropping capabilities", &format!("{error:#}"));
        }
        let mut places = Places::of(plan);
        let landlock = restrict_files(&mut places, plan.abstract_sockets).unwrap_or_else(|error| {
            note("landlock", &format!("{error:#}"));
            Wall::Failed
        });
        if !landlock.stands() {
            places = Places::default();
        }
        // What is only read is read at the start: if it is missing and needed, that has ended the agent.
        for path in &places.missing {
            if plan.write.iter().any(|write| real(write) == *path) {
                note("writing", &format!("{} is not there; make it and restart the agent", path.display()));
            } else {
                log::warn!("sandbox: {} is not there, and stays closed until a restart", path.display());
            }
        }
        let switches = [IPV4_SWITCHES, IPV6_SWITCHES].iter().filter_map(|path| PathFd::new(path).ok()).collect();
        Sandbox {
            enabled: true,
            landlock,
            seccomp: Mutex::new(Wall::Off),
            failures: Mutex::new(failures),
            places,
            _switches: switches,
        }
    }

    /// Takes something into what could not be done: a thread outside of these walls has kept more than it should.
    pub fn note(&self, what: &str, error: &anyhow::Error) {
        lock(&self.failures).push(format!("sandbox: {what}: {error:#}"));
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
        let told = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect();
        SandboxStatus {
            enabled: self.enabled,
            capabilities: names.into_iter().collect(),
            no_new_privs: nix::sys::prctl::get_no_new_privs().unwrap_or(false),
            seccomp: lock(&self.seccomp).name().to_owned(),
            landlock: self.landlock.name().to_owned(),
            read: told(&self.places.read),
            write: told(&self.places.write),
            missing: told(&self.places.missing),
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
        if !self.landlock.stands() {
            return None;
        }
        // What was missing at the start and is not needed for reading now is no reason: nothing changes with it.
        let closed = |path: &Path, writes| {
            let path = real(path);
            let known = self.places.is_missing(&path) && (writes || !path.exists());
            !known && !self.places.has(&path, writes)
        };
        let read = plan.read.iter().find(|path| closed(path, false));
        let write = plan.write.iter().find(|path| closed(path, true));
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

/// Puts the calling thread, and those that it starts from now on, under Landlock. What is left open is left in `places`.
fn restrict_files(places: &mut Places, abstract_sockets: bool) -> Result<Wall> {
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
    let Places { read, write, missing } = places;
    for (paths, access) in [(read, reading), (write, reading | writing)] {
        for path in std::mem::take(paths) {
            // Gone since it was looked for.
            let Ok(fd) = PathFd::new(&path) else {
                missing.push(path);
                continue;
            };
            // A file takes no rights of a directory.
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
            let added = ruleset.add_rule(PathBeneath::new(fd, access));
            ruleset = added.with_context(|| format!("a rule for {}", path.display()))?;
            paths.push(path);
        }
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
