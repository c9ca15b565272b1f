//! The bench's own object, its memory, and test runs of any program, interleaved and guarded by the canary.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr::NonNull;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ebpfsentinel::bpf::has_raw_cookies;
use libbpf_rs::{MapCore, Object, ObjectBuilder};

use crate::figures::median;
use crate::headers::{HeaderV4, HeaderV6, frame_v4, frame_v6};
use crate::linear::{LinearV4, LinearV6};

/// Replayed headers, as benches/bench.bpf.c has it.
pub const HEADERS: usize = 16384;

/// A round is void when the canary is slower than this times its best.
const CANARY_LIMIT: f64 = 1.3;

/// Time that one batch of one program takes, about: many ticks of the kernel's clock.
const BATCH_NS: f64 = 2.0e7;

/// A run is long enough for a nanosecond's fraction.
const LONG_RUN_NS: f64 = 4.0e6;

/// Before a batch the program runs unmeasured for about this time, but no longer than it takes to see every header once:
/// the canary and the other programs have emptied the caches, and a stream of packets does not meet them empty.
const WARM_UP_NS: f64 = 5.0e6;

/// Slots of `targets` in benches/bench.bpf.c.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Drop = 0,
    Parse = 1,
    Linear = 2,
    Firewall = 3,
    Limit = 4,
    Lru = 5,
}

/// `struct bench_control`.
#[repr(C)]
pub struct Control {
    pub cursor: u64,
    sink: u64,
    pub linear_rules: u32,
    pub default_action: u32,
    pub generator_ifindex: u32,
    random: u32,
    pub source_mask: u32,
    pad: u32,
}

/// A map's memory, shared with the kernel.
pub struct Mapped<T> {
    start: NonNull<T>,
    length: usize,
    bytes: usize,
}

impl<T> Mapped<T> {
    fn new(map: &impl MapCore, length: usize) -> Result<Mapped<T>> {
        let size = map.value_size() as usize * map.max_entries() as usize;
        ensure!(size == length * size_of::<T>(), "{:?} has {size} bytes", map.name());
        let bytes = size.next_multiple_of(4096);
        // SAFETY: a new shared mapping of a map that allows it; the kernel checks length and protection.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("mapping {:?}", map.name()));
        }
        let start = NonNull::new(start.cast()).context("mapped at 0")?;
        Ok(Mapped { start, length, bytes })
    }

    /// The elements. The kernel reads them only during a test run, which takes `&mut Bench`.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: the mapping holds `length` values that are plain integers, lives as long as self and is only lent here.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// The loaded object of benches/bench.bpf.c.
pub struct Bench {
    object: Object,
    pub trace_v4: Mapped<HeaderV4>,
    pub trace_v6: Mapped<HeaderV6>,
    pub linear_v4: Mapped<LinearV4>,
    pub linear_v6: Mapped<LinearV6>,
    control: Mapped<Control>,
    pub has_linear: bool,
    canary_best: f64,
    /// Rounds that were thrown away because the caches were busy.
    pub void_rounds: u64,
    /// Measurements that never became quiet and so stand on noisy rounds.
    pub noisy: u64,
}

impl Bench {
    pub fn load() -> Result<Bench> {
        let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/bench.bpf.o")).to_vec();
        let mut builder = ObjectBuilder::default();
        let mut open = builder.open_memory(&bytes).context("opening bench.bpf.o")?;
        let has_linear = kernel_has_bpf_loop();
        for mut program in open.progs_mut() {
            let is_left_out = match program.name().to_str() {
                Some("linear") => !has_linear,
                Some("syn_floor") => !has_raw_cookies(),
                _ => false,
            };
            if is_left_out {
                program.set_autoload(false);
            }
        }
        let object = open.load().context("loading bench.bpf.o")?;
        let map = |name: &str| {
            object.maps().find(|map| map.name() == name).ok_or_else(|| anyhow!("bench.bpf.o has no map {name}"))
        };
        let mut bench = Bench {
            trace_v4: Mapped::new(&map(".bss.trace_v4")?, HEADERS)?,
            trace_v6: Mapped::new(&map(".bss.trace_v6")?, HEADERS)?,
            linear_v4: Mapped::new(&map("linear_v4_rules")?, 4096)?,
            linear_v6: Mapped::new(&map("linear_v6_rules")?, 4096)?,
            control: Mapped::new(&map(".bss.control")?, 1)?,
            object,
            has_linear,
            canary_best: f64::INFINITY,
            void_rounds: 0,
            noisy: 0,
        };
        bench.set_target(Target::Drop, bench.program("drop")?)?;
        bench.set_target(Target::Parse, bench.program("parse")?)?;
        if has_linear {
            bench.set_target(Target::Linear, bench.program("linear")?)?;
        }
        for _ in 0..50 {
            bench.canary()?;
        }
        Ok(bench)
    }

    pub fn control(&mut self) -> &mut Control {
        &mut self.control.as_mut_slice()[0]
    }

    pub fn program(&self, name: &str) -> Result<RawFd> {
        let program = self.object.progs().find(|program| program.name() == name);
        Ok(program.with_context(|| format!("bench.bpf.o has no program {name}"))?.as_fd().as_raw_fd())
    }

    /// Makes the injectors of `target` jump to `program`.
    pub fn set_target(&self, target: Target, program: RawFd) -> Result<()> {
        let targets = self.object.maps().find(|map| map.name() == "targets").context("no map targets")?;
        let slot = (target as u32).to_ne_bytes();
        targets
            .update(&slot, &program.to_ne_bytes(), libbpf_rs::MapFlags::ANY)
            .context("putting a program into the injectors' slot (it must be XDP, and loaded for no device)")
    }

    /// Makes the injectors of TC jump to the floor and to `ids`.
    pub fn set_tc_targets(&self, ids: RawFd) -> Result<()> {
        let targets = self.object.maps().find(|map| map.name() == "tc_targets").context("no map tc_targets")?;
        for (slot, program) in [self.program("tc_parse")?, ids].into_iter().enumerate() {
            targets
                .update(&(slot as u32).to_ne_bytes(), &program.to_ne_bytes(), libbpf_rs::MapFlags::ANY)
                .context("putting a program into the slot of TC's injectors")?;
        }
        Ok(())
    }

    /// The injector that replays the trace of a family into `target`.
    pub fn replay(&self, target: Target, ipv4: bool, label: &'static str) -> Result<Variant> {
        let name = match target {
            Target::Drop => "to_drop",
            Target::Parse => "to_parse",
            Target::Linear => "to_linear",
            Target::Firewall => "to_firewall",
            Target::Limit | Target::Lru => bail!("only sources go into a limiter"),
        };
        let family = if ipv4 { "v4" } else { "v6" };
        let frame = if ipv4 { frame_v4() } else { frame_v6() };
        Ok(Variant::new(label, self.program(&format!("{name}_{family}"))?, frame))
    }

    /// An injector of frames of many sources; see `Control::source_mask`.
    pub fn sources(&self, injector: &str, label: &'static str) -> Result<Variant> {
        Ok(Variant::new(label, self.program(injector)?, frame_v4()))
    }

    /// ns of one canary run, and whether the caches are quiet now.
    pub fn canary(&mut self) -> Result<bool> {
        let took = test_run(self.program("canary")?, &frame_v4(), 20_000)?.ns;
        self.canary_best = self.canary_best.min(took);
        Ok(took <= self.canary_best * CANARY_LIMIT)
    }

    /// Median ns of each variant, one batch each per round, round robin.
    pub fn interleave(&mut self, variants: &mut [Variant], rounds: usize) -> Result<Vec<f64>> {
        for variant in variants.iter_mut() {
            (variant.warm_up, variant.repeat) =
                calibrate(BATCH_NS, |repeat| test_run(variant.program, &variant.frame, repeat))?;
        }
        let mut quiet: Vec<Vec<f64>> = vec![Vec::new(); variants.len()];
        let mut all = quiet.clone();
        let mut attempts = 0;
        while quiet[0].len() < rounds && attempts < rounds + rounds / 2 {
            attempts += 1;
            let before = self.canary()?;
            let mut round = Vec::with_capacity(variants.len());
            for variant in variants.iter() {
                test_run(variant.program, &variant.frame, variant.warm_up)?;
                round.push(test_run(variant.program, &variant.frame, variant.repeat)?.ns);
            }
            let good = before && self.canary()?;
            self.void_rounds += u64::from(!good);
            for (place, ns) in round.into_iter().enumerate() {
                all[place].push(ns);
                if good {
                    quiet[place].push(ns);
                }
            }
        }
        if quiet[0].len() < rounds.min(5) {
            self.noisy += 1;
            quiet = all;
        }
        Ok(quiet.into_iter().map(median).collect())
    }
}

/// How many packets go before a batch, once through the trace for a variant that is fast enough, and how many a batch
/// of `batch_ns` has. What a variant remembers of packets it knows when this returns.
pub fn calibrate(batch_ns: f64, mut run: impl FnMut(u32) -> Result<TestRun>) -> Result<(u32, u32)> {
    let cold = run(256)?.ns;
    let warm = run((10.0 * WARM_UP_NS / cold).clamp(256.0, HEADERS as f64) as u32)?.ns;
    Ok(((WARM_UP_NS / warm).clamp(1.0, HEADERS as f64) as u32, (batch_ns / warm).clamp(256.0, 2_000_000.0) as u32))
}

/// A program with the packet that it is run on.
pub struct Variant {
    pub label: &'static str,
    pub program: RawFd,
    pub frame: Vec<u8>,
    repeat: u32,
    warm_up: u32,
}

impl Variant {
    pub fn new(label: &'static str, program: RawFd, frame: Vec<u8>) -> Variant {
        Variant { label, program, frame, repeat: 0, warm_up: 0 }
    }
}

/// What the kernel says of a test run.
pub struct TestRun {
    /// ns for one packet, as the kernel measures it: wall time would hold a millisecond of changing the XDP dispatcher,
    /// and the time of other processes. The kernel rounds down; where within that nanosecond it was is said by the time
    /// that this thread was on its CPU, if the run was so long that its preparation is nothing beside it.
    pub ns: f64,
    pub verdict: u32,
}

pub fn test_run(program: RawFd, frame: &[u8], repeat: u32) -> Result<TestRun> {
    run(program, frame, repeat, 0, 0)
}

/// Frames that are really sent: the program's redirect is carried out, 64 at a time.
pub fn live_run(program: RawFd, frame: &[u8], repeat: u32) -> Result<TestRun> {
    run(program, frame, repeat, libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES, 64)
}

fn run(program: RawFd, frame: &[u8], repeat: u32, flags: u32, batch: u32) -> Result<TestRun> {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as u64,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: repeat as i32,
        flags,
        batch_size: batch,
        ..Default::default()
    };
    let before = thread_ns()?;
    // SAFETY: opts is a valid struct of the size it says; the kernel only reads `frame`, which outlives the call.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program, &mut opts) };
    let took = thread_ns()? - before;
    if result != 0 {
        bail!("BPF_PROG_TEST_RUN: {}", std::io::Error::from_raw_os_error(-result));
    }
    let floor = f64::from(opts.duration);
    let ns = if flags != 0 || took < LONG_RUN_NS {
        floor + 0.5
    } else {
        (took / f64::from(repeat)).clamp(floor, floor + 1.0)
    };
    Ok(TestRun { ns, verdict: opts.retval })
}

/// Time that this thread was on a CPU.
fn thread_ns() -> Result<f64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).context("reading a clock")?;
    Ok(std::time::Duration::from(time).as_nanos() as f64)
}

/// Verdict on one frame.
pub fn verdict(program: RawFd, frame: &[u8]) -> Result<u32> {
    Ok(test_run(program, frame, 1)?.verdict)
}

fn kernel_has_bpf_loop() -> bool {
    // SAFETY: no pointer but null is passed.
    let result = unsafe {
        libbpf_sys::libbpf_probe_bpf_helper(libbpf_sys::BPF_PROG_TYPE_XDP, libbpf_sys::BPF_FUNC_loop, std::ptr::null())
    };
    result == 1
}

/// Pins this thread to the machine's last CPU: the first one serves most interrupts.
pub fn pin() -> Result<()> {
    let mut cpus = nix::sched::CpuSet::new();
    let last = std::thread::available_parallelism().map_or(1, |count| count.get()) - 1;
    cpus.set(last)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).context("pinning to one CPU")
}

/// Attaches a program to an interface of this thread's namespace, in the driver.
pub fn attach_native(program: RawFd, interface: &str) -> Result<()> {
    let name = CString::new(interface)?;
    // SAFETY: a valid C string.
    let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(ifindex != 0, "no interface {interface}");
    // SAFETY: no pointer but null is passed.
    let result = unsafe {
        libbpf_sys::bpf_xdp_attach(ifindex as i32, program, libbpf_sys::XDP_FLAGS_DRV_MODE, std::ptr::null())
    };
    ensure!(result == 0, "attaching to {interface}: {}", std::io::Error::from_raw_os_error(-result));
    Ok(())
}
