//! The only code that touches libbpf: loading programs, their maps, their attachment, and test runs; and what the
//! interfaces do to frames beside them.
//!
//! Everything here is mechanism. What goes into a map is decided by the engine that owns the program.

pub mod attach;
pub mod blocks;
pub mod chain;
pub mod counts;
pub mod generations;
pub mod map;
pub mod offload;
pub mod ringbuf;
pub mod tc_egress;
pub mod tc_ids;
pub mod tc_mirror;
pub mod xdp_firewall;
pub mod xdp_ratelimit;
pub mod xdp_steer;
pub mod xdp_syncookie;

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::abi::fw_cpu_counts;

pub use attach::{AttachMode, Attached, XdpMode};

/// Where links and maps are pinned with `on_exit = "keep"`.
pub const PIN_DIR: &str = "/sys/fs/bpf/ebpfsentinel";

#[allow(missing_docs, clippy::all, dead_code)] // generated code
pub(crate) mod skeletons {
    pub mod xdp_firewall {
        include!(concat!(env!("OUT_DIR"), "/xdp_firewall.skel.rs"));
    }
    pub mod xdp_ratelimit {
        include!(concat!(env!("OUT_DIR"), "/xdp_ratelimit.skel.rs"));
    }
    pub mod xdp_syncookie {
        include!(concat!(env!("OUT_DIR"), "/xdp_syncookie.skel.rs"));
    }
    pub mod xdp_steer {
        include!(concat!(env!("OUT_DIR"), "/xdp_steer.skel.rs"));
    }
    pub mod tc_egress {
        include!(concat!(env!("OUT_DIR"), "/tc_egress.skel.rs"));
    }
    pub mod tc_ids {
        include!(concat!(env!("OUT_DIR"), "/tc_ids.skel.rs"));
    }
    pub mod tc_mirror {
        include!(concat!(env!("OUT_DIR"), "/tc_mirror.skel.rs"));
    }
}

/// The verifier lets a program reach 512 MB of a map's value: enough for the counters of this many CPUs, whichever program's.
pub(crate) const CPUS_MAX: usize = (512 << 20) / size_of::<fw_cpu_counts>() - 1;

/// Numbers of a loaded program, from the kernel.
#[derive(Clone, Debug, Default)]
pub struct ProgramFacts {
    /// The kernel's id of the program.
    pub id: u32,
    /// Runs since load; only counted while `kernel.bpf_stats_enabled` is 1.
    pub run_count: u64,
    /// Nanoseconds spent in those runs.
    pub run_time_ns: u64,
    /// Instructions that the verifier walked (5.16+).
    pub verified_insns: u32,
}

/// A program, as status shows it.
#[derive(Clone, Debug)]
pub struct ProgramStatus {
    /// Its name.
    pub name: &'static str,
    /// Whether it should run.
    pub enabled: bool,
    /// The kernel's numbers, if it is loaded.
    pub facts: Option<ProgramFacts>,
    /// Why it is not loaded.
    pub failure: Option<String>,
    /// Its maps.
    pub maps: Vec<map::MapFacts>,
}

/// Asks the kernel about a program.
pub fn program_facts(program: std::os::fd::BorrowedFd<'_>) -> Result<ProgramFacts> {
    use std::os::fd::AsRawFd;
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: info is a zeroed bpf_prog_info and len its size; the kernel writes at most len bytes into it.
    let rc = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(program.as_raw_fd(), std::ptr::from_mut(&mut info).cast(), &mut len)
    };
    check(rc).context("asking the kernel about a program")?;
    Ok(ProgramFacts {
        id: info.id,
        run_count: info.run_cnt,
        run_time_ns: info.run_time_ns,
        verified_insns: info.verified_insns,
    })
}

/// Whether the kernel counts runs: `kernel.bpf_stats_enabled`.
pub fn run_stats_enabled() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1")
}

/// Ticks of the kernel's jiffies in a second. The coarse clocks move by one tick.
pub fn jiffies_per_second() -> Result<u64> {
    let tick =
        nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE).context("reading the length of a tick")?;
    let tick = Duration::from(tick);
    if tick.is_zero() {
        bail!("the kernel says that a tick takes no time");
    }
    Ok((Duration::from_secs(1).as_nanos() as f64 / tick.as_nanos() as f64).round() as u64)
}

/// Makes libbpf's messages log records: warnings as such, the rest for those who debug.
pub fn log_libbpf() {
    fn record(level: libbpf_rs::PrintLevel, text: String) {
        let text = text.trim_end();
        match level {
            libbpf_rs::PrintLevel::Warn => log::warn!(target: "libbpf", "{text}"),
            libbpf_rs::PrintLevel::Info => log::debug!(target: "libbpf", "{text}"),
            libbpf_rs::PrintLevel::Debug => log::trace!(target: "libbpf", "{text}"),
        }
    }
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, record)));
}

/// Turns libbpf's negative errno into an error.
fn check(rc: i32) -> std::io::Result<i32> {
    if rc < 0 { Err(std::io::Error::from_raw_os_error(-rc)) } else { Ok(rc) }
}

/// Whether XDP programs may take frames that stand in several buffers (5.18). Asked of the kernel itself: distributions
/// bring features to older version numbers.
pub fn has_multi_buffer() -> bool {
    has_xdp_helper(libbpf_sys::BPF_FUNC_xdp_get_buff_len)
}

/// Whether XDP programs may make SYN cookies without a listener at hand (6.0).
pub fn has_raw_cookies() -> bool {
    has_xdp_helper(libbpf_sys::BPF_FUNC_tcp_raw_gen_syncookie_ipv4)
}

/// Whether TC programs are told the cgroup of a packet: it is a matter of how the kernel was built.
pub fn has_packet_cgroups() -> bool {
    has_helper(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, libbpf_sys::BPF_FUNC_skb_cgroup_id)
}

fn has_xdp_helper(helper: libbpf_sys::bpf_func_id) -> bool {
    has_helper(libbpf_sys::BPF_PROG_TYPE_XDP, helper)
}

fn has_helper(program: libbpf_sys::bpf_prog_type, helper: libbpf_sys::bpf_func_id) -> bool {
    // SAFETY: takes two numbers and no options.
    let has = unsafe { libbpf_sys::libbpf_probe_bpf_helper(program, helper, std::ptr::null()) };
    has == 1
}

/// Whether the programs of a chain are loaded for frames that stand in several buffers: all of them, or none.
///
/// Not where nothing but generic mode is allowed. There the kernel puts frames into one buffer for a program that wants
/// that; for another one it copies them (since 6.9), and with the copy the place of the Ethernet header is lost to TC.
pub fn wants_multi_buffer(interfaces: &[String], mode: XdpMode) -> bool {
    mode != XdpMode::Generic && has_multi_buffer() && interfaces.iter().any(|name| offload::needs_several_buffers(name))
}

/// What this kernel lacks that the agent would use, and what it does instead.
pub fn missing_features() -> Vec<(&'static str, &'static str)> {
    let release =
        nix::sys::utsname::uname().map(|uts| uts.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|word| word.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    [
        (has_multi_buffer(), "multi-buffer XDP", "interfaces with an MTU above 3000 are filtered in generic mode"),
        (has_raw_cookies(), "raw SYN cookies", "a SYN that is answered is looked up among the sockets first"),
        (has_packet_cgroups(), "cgroups of packets", "flows are told without the cgroup of their socket"),
        (version >= (6, 6), "tcx", "tc_egress, tc_mirror and tc_ids are filters of the clsact qdisc"),
    ]
    .into_iter()
    .filter_map(|(has, name, fallback)| (!has).then_some((name, fallback)))
    .collect()
}

/// Whether a test run of a program at TC takes a frame: newer kernels (6.18 does) refuse one that says that it is IP and does
/// not hold an IP header.
pub fn takes_test_run(frame: &[u8]) -> bool {
    const ETHERNET: usize = 14;
    match frame.get(ETHERNET - 2..ETHERNET) {
        Some([0x08, 0x00]) => frame.len() >= ETHERNET + 20,
        Some([0x86, 0xdd]) => frame.len() >= ETHERNET + 40,
        other => other.is_some(),
    }
}

/// One more than the highest number of a CPU that is `online`, or `possible`. Numbers may be left out, so it is not their
/// count.
pub(crate) fn cpu_ids(which: &str) -> Result<usize> {
    let path = format!("/sys/devices/system/cpu/{which}");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let highest = text.trim().rsplit([',', '-']).next().unwrap_or_default();
    let highest: usize = highest.parse().with_context(|| format!("{path} says {text:?}"))?;
    Ok(highest + 1)
}

/// Seconds since boot, suspended time included (CLOCK_BOOTTIME).
pub fn boot_seconds() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).context("reading the clock since boot")?;
    Ok(now.tv_sec() as u64)
}

/// Numbers of the CPUs that are online.
pub fn online_cpus() -> Result<Vec<u32>> {
    let path = "/sys/devices/system/cpu/online";
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    parse_cpus(&text).with_context(|| format!("{path} says {text:?}"))
}

/// Reads a list of CPUs as the kernel and taskset write it: `0-3,6`. `None` when it is not one, or names more CPUs than
/// there can be. The numbers come out in order, each once.
pub fn parse_cpus(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (u32, u32) = (low.parse().ok()?, high.parse().ok()?);
        if low > high || high as usize >= CPUS_MAX {
            return None;
        }
        cpus.extend(low..=high);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// 64 random bits of the kernel's.
pub(crate) fn random() -> Result<u64> {
    let mut word = [0u8; 8];
    // SAFETY: word has the 8 bytes that the kernel may write.
    let got = unsafe { libc::getrandom(word.as_mut_ptr().cast(), word.len(), 0) };
    if got != 8 {
        bail!("the kernel gave no random numbers: {}", std::io::Error::last_os_error());
    }
    Ok(u64::from_ne_bytes(word))
}
