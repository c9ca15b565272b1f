//! The kernel's side of inspection: what tc_ids costs a packet, and how fast its records get to the poller.
//!
//! A packet's cost is a ratio to a TC program that only parses it, in interleaved rounds of one run, by
//! BPF_PROG_TEST_RUN. Records go through the real ring buffer to a thread that looks every millisecond, as the agent's
//! does; that all of them arrived or were counted as lost is checked each time.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ebpfsentinel::bpf::ringbuf::{self, Ring};
use ebpfsentinel::bpf::tc_ids::{self, Options, TcIds};
use ebpfsentinel::flow::Direction;
use ebpfsentinel::packet::build::Packet;

use crate::figures::{Figures, median};
use crate::kernel::{self, Bench, Variant};

/// Lengths of frames by the names of the figures.
const LENGTHS: [(&str, usize); 3] = [("64", 64), ("256", 256), ("1536", 1536)];

/// Flows that take turns, beside a single one.
const MANY: u32 = 16_384;

/// A burst of records, by length of the frame, and bursts of which the median is taken.
const BURST: Duration = Duration::from_millis(80);
const BURSTS: usize = 11;

/// Sets `x_floor.within_budget`, `x_floor.past_budget`, the same with many flows, `ns_per_lost_event` and
/// `events_m_per_s.{64,256,1536}`.
///
/// # Errors
/// What the kernel refuses, or records that were neither delivered nor counted.
pub fn measure(bench: &mut Bench, figures: &mut Figures, rounds: usize) -> Result<()> {
    past_budget(bench, figures, rounds)?;
    within_budget(bench, figures, rounds)?;
    for (name, length) in LENGTHS {
        eprintln!("records of {name} bytes");
        let bursts = (0..BURSTS).map(|_| events(length)).collect::<Result<Vec<_>>>()?;
        figures.set(format!("events_m_per_s.{name}"), median(bursts));
    }
    Ok(())
}

fn frame(length: usize) -> Vec<u8> {
    const HEADERS: usize = 42;
    Packet::new().between("10.0.0.1", "10.0.0.2").udp(5000, 5001).payload(&vec![7; length - HEADERS]).build()
}

/// A program whose flows are past their budget from the first packet on, or never.
fn load(udp_packets: u32, ring_bytes: u32) -> Result<TcIds> {
    TcIds::load(&Options { udp_packets, ring_bytes, ..Options::default() })
}

fn past_budget(bench: &mut Bench, figures: &mut Figures, rounds: usize) -> Result<()> {
    eprintln!("packets past the budget, and lost ones");
    let past = load(0, 1 << 20)?;
    // A page of ring: full at once, and nobody reads it. That is more than any overload.
    let full = load(u32::MAX, 4096)?;
    let program = |ids: &TcIds| ids.program(Direction::Ingress).as_raw_fd();
    let mut variants = [
        Variant::new("parse", bench.program("tc_parse")?, frame(64)),
        Variant::new("past budget", program(&past), frame(64)),
        Variant::new("lost", program(&full), frame(64)),
    ];
    let medians = bench.interleave(&mut variants, rounds)?;
    figures.set("x_floor.past_budget", medians[1] / medians[0]);
    figures.set("floor_ns", medians[0]);
    figures.set("past_budget_ns", medians[1]);
    figures.set("ns_per_lost_event", medians[2] - medians[1]);
    let [count, _] = past.counts()?;
    ensure!(count.past_budget == count.packets, "not all were past the budget: {count:?}");
    let [count, _] = full.counts()?;
    ensure!(count.records + count.lost.iter().sum::<u64>() == count.packets, "{count:?}");
    ensure!(count.records < 64, "the ring was not full: {count:?}");

    bench.set_tc_targets(program(&past))?;
    bench.control().source_mask = MANY - 1;
    let mut variants = [
        Variant::new("parse", bench.program("tc_many_to_parse")?, frame(64)),
        Variant::new("past budget", bench.program("tc_many_to_ids")?, frame(64)),
    ];
    let medians = bench.interleave(&mut variants, rounds)?;
    figures.set(format!("x_floor.past_budget_{MANY}"), medians[1] / medians[0]);
    Ok(())
}

/// Records that find room: the ring is emptied between two batches, outside of what is measured.
fn within_budget(bench: &Bench, figures: &mut Figures, rounds: usize) -> Result<()> {
    const BATCH: u32 = 200_000;
    eprintln!("packets within the budget");
    let ids = load(u32::MAX, 64 << 20)?;
    let events = ids.events()?;
    let (mut floors, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        floors.push(kernel::test_run(bench.program("tc_parse")?, &frame(64), BATCH)?.ns);
        ours.push(kernel::test_run(ids.program(Direction::Ingress).as_raw_fd(), &frame(64), BATCH)?.ns);
        let stop = AtomicBool::new(true);
        let rings = vec![Ring { map: &events, each: Box::new(|_| ()) }];
        ringbuf::consume(rings, Duration::ZERO, &stop, || ())?;
    }
    let [count, _] = ids.counts()?;
    ensure!(count.records == count.packets, "records were lost: {count:?}");
    figures.set("x_floor.within_budget", median(ours.clone()) / median(floors));
    figures.set("within_budget_ns", median(ours));
    Ok(())
}

/// Millions of records a second that a poller on another CPU takes while packets come as fast as they can.
fn events(length: usize) -> Result<f64> {
    const CHUNK: u32 = 4096;
    let ids = load(u32::MAX, 8 << 20)?;
    let events = ids.events()?;
    let program = ids.program(Direction::Ingress).as_raw_fd();
    let frame = frame(length);
    let (stop, taken, bytes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let took = std::thread::scope(|scope| -> Result<Duration> {
        let poller = scope.spawn(|| {
            let mut cpus = nix::sched::CpuSet::new();
            cpus.set(0).and(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus))?;
            let take = |record: &[u8]| {
                if let Some(record) = tc_ids::decode(record) {
                    taken.fetch_add(1, Ordering::Relaxed);
                    bytes.fetch_add(record.frame.len() as u64, Ordering::Relaxed);
                }
            };
            let rings = vec![Ring { map: &events, each: Box::new(take) }];
            ringbuf::consume(rings, Duration::from_millis(1), &stop, || ())
        });
        let begun = Instant::now();
        while begun.elapsed() < BURST {
            kernel::test_run(program, &frame, CHUNK)?;
        }
        let took = begun.elapsed();
        stop.store(true, Ordering::Release);
        poller.join().ok().context("the poller died")??;
        Ok(took)
    })?;
    let [count, _] = ids.counts()?;
    let (taken, bytes) = (taken.into_inner(), bytes.into_inner());
    ensure!(count.records == taken && bytes == taken * frame.len() as u64, "{taken} taken of {count:?}");
    ensure!(count.packets == taken + count.lost.iter().sum::<u64>(), "{taken} taken of {count:?}");
    Ok(taken as f64 / took.as_secs_f64() / 1e6)
}
