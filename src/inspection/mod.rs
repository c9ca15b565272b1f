//! Inspection: tc_ids and the threads that read what it copies.
//!
//! Section `[ids]`; route `/api/v1/flows`. The thread `inspection` ([`Inspection`]) owns the programs of tc_ids: it loads and
//! attaches them, and forgets blocks that have ended. Their records go from the ring buffer through the thread `poller-ids`
//! in batches ([`batch`]) to the workers `inspect-0`, ... ([`Worker`]): all packets between two addresses to the same one, so
//! that it owns their flows. A worker reassembles and parses ([`crate::flow`]), lets the rules judge, and blocks and resets
//! what they refuse ([`live`]).

pub mod api;
mod batch;
mod live;
mod reset;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use arc_swap::ArcSwap;
use crossbeam_channel::Receiver;
use libbpf_rs::MapHandle;
use prometheus_client::metrics::counter::Counter;

use self::batch::{Batch, Incoming, Outgoing, Used};
use self::live::Live;
pub use self::live::SharedBlocks;
pub use self::live::block_secs;
use self::reset::ResetCounts;
use crate::abi::{fw_guard, ids_count};
use crate::alert::AlertSender;
use crate::bpf::attach::{self, AttachMode, Attached};
use crate::bpf::blocks::Blocks;
use crate::bpf::ringbuf::{self, Ring};
use crate::bpf::tc_ids::{self, Options, PROGRAMS, Sampling, TcIds};
use crate::bpf::{self, ProgramStatus, random};
use crate::classify::guard::Guard;
use crate::engines::l7::Ruling;
use crate::enrichment::Scanner;
use crate::event::unix_time_of;
use crate::flow::config::{CaptureConfig, SamplingMode};
use crate::flow::{Direction, Flow, Inspector, Link, Stats};
use crate::metrics::{CaptureCounters, InspectionCounters, Metrics, WorkerCounters};
use crate::packet::proto::AppProto;
use crate::supervise::{Handle, Owned, Supervisor, Thread};

/// Flows that can be blocked at a time.
pub const BLOCKED_FLOWS_MAX: u32 = 65_536;
/// The same of addresses.
const BLOCKED_ADDRESSES_MAX: u32 = 65_536;
/// How often the ring buffer is looked at.
const POLL: Duration = Duration::from_millis(1);
/// What waits for the poller. At a gigabit a second this is a quarter of one.
const RING_BYTES: u32 = 32 << 20;
/// How the inspection starts.
pub struct Start<'a> {
    /// Section `[ids]`.
    pub config: CaptureConfig,
    /// Names of the interfaces to watch.
    pub interfaces: Vec<String>,
    /// What is blocked; xdp_firewall heeds it, too.
    pub blocks: SharedBlocks,
    /// The lock-out guard, and whether DHCP is never blocked.
    pub exceptions: (&'a Guard, bool),
    /// The rules of `[l7]`, if they are in force.
    pub ruling: Option<Arc<ArcSwap<Ruling>>>,
    /// Finds the processes of sockets.
    pub scanner: Scanner,
    /// Where alerts go.
    pub alerts: AlertSender,
    /// The agent's metrics.
    pub metrics: &'a Arc<Metrics>,
}

/// Room for what is blocked; made before the firewall, which is to heed it.
///
/// # Errors
/// The kernel refuses.
pub fn new_blocks() -> Result<SharedBlocks> {
    Ok(Arc::new(Mutex::new(Blocks::new(BLOCKED_FLOWS_MAX, BLOCKED_ADDRESSES_MAX)?)))
}

/// An interface that is watched.
struct Watched {
    name: String,
    /// Ingress and egress, while it is there.
    attached: Option<[Attached; 2]>,
    failure: Option<String>,
}

/// Owns tc_ids.
pub struct Inspection {
    kernel: Result<TcIds, String>,
    watched: Vec<Watched>,
    blocks: SharedBlocks,
    metrics: Arc<Metrics>,
    /// Batches that wait for each worker.
    queues: Vec<Receiver<Batch>>,
}

/// The inspection's threads, and who stops them.
pub struct Threads {
    poller: Option<Thread<()>>,
    stop: Arc<AtomicBool>,
    workers: Vec<(Handle<Worker>, Thread<Worker>)>,
    owner: (Handle<Inspection>, Thread<Inspection>),
}

impl Threads {
    /// The owner of tc_ids.
    pub fn inspection(&self) -> Handle<Inspection> {
        self.owner.0.clone()
    }

    /// The workers.
    pub fn workers(&self) -> Vec<Handle<Worker>> {
        self.workers.iter().map(|(handle, _)| handle.clone()).collect()
    }

    /// Ends them in the order of a packet's way, each within `limit`; what went wrong.
    pub fn stop(self, limit: Duration) -> Vec<String> {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        let mut gone = Vec::new();
        let polled = self.poller.map_or(Ok(()), |poller| poller.join(limit));
        gone.extend(polled.err());
        for (handle, thread) in self.workers {
            gone.extend(handle.stop().and_then(|()| thread.join(limit).map(drop)).err());
        }
        let (handle, thread) = self.owner;
        gone.extend(handle.stop().and_then(|()| thread.join(limit).map(drop)).err());
        gone.into_iter().map(|one| one.to_string()).collect()
    }
}

/// Loads tc_ids, starts the threads, and only then attaches. A kernel that does not take the programs leaves the agent
/// without inspection, which readiness says.
///
/// # Errors
/// A thread could not be started.
pub fn start(start: Start<'_>, supervisor: &Supervisor) -> Result<Threads> {
    let Start { config, interfaces, blocks, exceptions: (guard, dhcp), ruling, scanner, alerts, metrics } = start;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = config.workers_on(cpus);
    let loaded = {
        let mut blocks = blocks.lock().unwrap_or_else(PoisonError::into_inner);
        set_exceptions(&mut blocks, guard, dhcp);
        TcIds::load(&options_of(&config, &blocks))
    };
    let kernel = loaded.map_err(|error| format!("{error:#}")).inspect_err(|error| log::error!("tc_ids: {error}"));
    let (outgoing, incoming) = Outgoing::new(workers, metrics.events_lost("poller_ids", "queue_full"));
    let queues = incoming.iter().map(|one| one.batches.clone()).collect();
    let undecodable = metrics.events_lost("poller_ids", "undecodable");
    let now = Instant::now();
    let mut running = Vec::new();
    for (number, Incoming { batches, used }) in incoming.into_iter().enumerate() {
        // At most as many as the section allows, once in the life of the process.
        let name: &'static str = Box::leak(format!("inspect-{number}").into_boxed_str());
        let limits = config.limits(number, workers);
        let live = Live::new(ruling.clone(), blocks.clone(), scanner.clone(), alerts.clone(), now);
        let inspector = Inspector::new(limits, random()?);
        let worker = Worker { inspector, live, used, undecodable: undecodable.clone() };
        running.push(supervisor.spawn_owner(name, worker, batches)?);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let poller = match &kernel {
        Ok(kernel) => {
            let undecodable = metrics.events_lost("poller_ids", "undecodable");
            Some(spawn_poller(supervisor, kernel.events()?, outgoing, undecodable, stop.clone())?)
        }
        Err(_) => None,
    };
    let watched = interfaces.into_iter().map(|name| Watched { name, attached: None, failure: None }).collect();
    let mut inspection = Inspection { kernel, watched, blocks, metrics: metrics.clone(), queues };
    inspection.attach();
    let owner = supervisor.spawn_owner("inspection", inspection, crossbeam_channel::never())?;
    Ok(Threads { poller, stop, workers: running, owner })
}

fn options_of<'a>(config: &CaptureConfig, blocks: &'a Blocks) -> Options<'a> {
    let rate = config.sampling.rate;
    Options {
        max_flows: config.max_flows,
        stream_depth: config.stream_depth,
        udp_packets: config.udp_packets,
        sampling: match config.sampling.mode {
            SamplingMode::None => Sampling::All,
            SamplingMode::Random => Sampling::Random(rate),
            SamplingMode::Hash => Sampling::Hash(rate),
        },
        ring_bytes: RING_BYTES,
        blocks: Some(blocks),
        is_replay: false,
    }
}

fn set_exceptions(blocks: &mut Blocks, guard: &Guard, dhcp: bool) {
    let mut written = fw_guard::default();
    guard.write(&mut written);
    blocks.set_exceptions(&written, dhcp);
}

/// Hands records to the workers in batches. Never waits for them.
fn spawn_poller(
    supervisor: &Supervisor,
    events: MapHandle,
    outgoing: Outgoing,
    undecodable: Counter,
    stop: Arc<AtomicBool>,
) -> std::io::Result<Thread<()>> {
    supervisor.spawn("poller-ids", move |pulse| {
        let outgoing = std::cell::RefCell::new(outgoing);
        let each = Box::new(|record: &[u8]| match tc_ids::pair_hash(record) {
            Some(hash) => outgoing.borrow_mut().push(hash, record),
            None => {
                undecodable.inc();
            }
        });
        let rings = vec![Ring { map: &events, each }];
        ringbuf::consume(rings, POLL, &stop, || {
            outgoing.borrow_mut().flush();
            pulse.beat();
        })
    })
}

impl Inspection {
    /// Attaches where an interface is and the programs are not yet.
    fn attach(&mut self) {
        let Ok(kernel) = &self.kernel else { return };
        for one in &mut self.watched {
            let ifindex = attach::ifindex(&one.name);
            if one.attached.as_ref().is_some_and(|attached| Some(attached[0].ifindex) != ifindex) {
                one.attached = None;
            }
            let Some(ifindex) = ifindex.filter(|_| one.attached.is_none()) else { continue };
            match kernel.attach(ifindex, &one.name) {
                Ok(attached) => (one.attached, one.failure) = (Some(attached), None),
                Err(error) => {
                    log::error!("{}: {error:#}", one.name);
                    one.failure = Some(format!("{error:#}"));
                }
            }
        }
        let is_active = self.watched.iter().any(|one| one.attached.is_some());
        PROGRAMS.iter().for_each(|program| self.metrics.set_program_active(program, is_active));
    }

    /// Looks at the interfaces anew.
    pub fn links_changed(&mut self) {
        self.attach();
    }

    /// Other sessions are working on this host now.
    pub fn set_exceptions(&mut self, guard: &Guard, dhcp: bool) {
        set_exceptions(&mut self.blocks.lock().unwrap_or_else(PoisonError::into_inner), guard, dhcp);
    }

    /// What does not work as configured, a sentence each.
    pub fn degraded(&self) -> Vec<String> {
        if let Err(failure) = &self.kernel {
            return vec![format!("flows are not inspected: tc_ids is not loaded: {failure}")];
        }
        let unwatched = |one: &Watched| match (&one.attached, &one.failure) {
            (Some(_), _) => None,
            (None, Some(failure)) => Some(format!("{}: flows are not inspected: {failure}", one.name)),
            (None, None) => Some(format!("{}: flows are not inspected, it is not there", one.name)),
        };
        self.watched.iter().filter_map(unwatched).collect()
    }

    /// The programs, for status.
    pub fn program_status(&self) -> Vec<ProgramStatus> {
        let status = |(name, direction): (&'static str, Direction)| ProgramStatus {
            name,
            enabled: true,
            facts: self.kernel.as_ref().ok().and_then(|kernel| bpf::program_facts(kernel.program(direction)).ok()),
            failure: self.kernel.as_ref().err().cloned(),
            maps: match (&self.kernel, direction) {
                (Ok(kernel), Direction::Ingress) => {
                    let mut maps = kernel.maps();
                    maps.extend(self.blocks.lock().unwrap_or_else(PoisonError::into_inner).maps());
                    maps
                }
                _ => Vec::new(),
            },
        };
        PROGRAMS.into_iter().zip([Direction::Ingress, Direction::Egress]).map(status).collect()
    }

    /// How the programs are attached: interface, program and mode.
    pub fn attachments(&self) -> Vec<(String, &'static str, AttachMode)> {
        let of = |one: &Watched| {
            let name = one.name.clone();
            one.attached
                .iter()
                .flat_map(|attached| PROGRAMS.into_iter().zip(attached))
                .map(|(program, attached)| (name.clone(), program, attached.mode))
                .collect::<Vec<_>>()
        };
        self.watched.iter().flat_map(of).collect()
    }

    /// What the kernel counted, and what waits.
    pub fn counters(&self) -> InspectionCounters {
        let counts = self
            .kernel
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|kernel| kernel.counts().map_err(|error| format!("{error:#}")));
        let counts = counts.inspect_err(|error| log::warn!("reading what tc_ids counted: {error}")).unwrap_or_default();
        // Addresses are blocked by nobody yet, so nothing is told of them.
        let (flows, blocks_evicted) = {
            let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
            (blocks.len().0, blocks.evicted())
        };
        InspectionCounters {
            capture: [("ingress", &counts[0]), ("egress", &counts[1])]
                .map(|(name, of)| capture_counters(name, of))
                .into(),
            blocks: vec![("flow", flows as u64)],
            blocks_evicted,
            queues: self.queues.iter().map(|queue| queue.len() as u64).collect(),
            workers: Vec::new(),
        }
    }
}

/// Counters of a direction, by their names.
fn capture_counters(direction: &'static str, count: &ids_count) -> CaptureCounters {
    let [ring_full, pressure, unreadable] = count.lost;
    CaptureCounters {
        direction,
        bytes: count.bytes,
        copied_bytes: count.copied_bytes,
        packets: vec![
            ("recorded", count.records),
            ("past_budget", count.past_budget),
            ("sampled_out", count.sampled_out),
            ("forwarded", count.twice),
            ("blocked_flow", count.blocked_flow),
            ("lost", ring_full + pressure + unreadable),
        ],
        lost: vec![("ring_full", ring_full), ("ring_pressure", pressure), ("unreadable", unreadable)],
        truncated: count.truncated,
        flows_evicted: count.evicted,
    }
}

impl Owned for Inspection {
    type Event = std::convert::Infallible;

    fn event(&mut self, event: std::convert::Infallible, _now: Instant) {
        match event {}
    }

    fn tick(&mut self, _now: Instant) {
        if let Err(error) = self.blocks.lock().unwrap_or_else(PoisonError::into_inner).expire() {
            log::error!("forgetting blocks that have ended: {error:#}");
        }
    }
}

/// Owns the flows of some pairs of addresses.
pub struct Worker {
    inspector: Inspector,
    live: Live,
    used: Used,
    undecodable: Counter,
}

impl Worker {
    /// The flows that there are.
    pub fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.inspector.flows()
    }

    /// What was counted, and what is kept.
    pub fn counters(&self) -> WorkerCounters {
        let mut flows: BTreeMap<&'static str, u64> = AppProto::ALL.iter().map(|proto| (proto.name(), 0)).collect();
        flows.insert("unknown", 0);
        for flow in self.inspector.flows() {
            *flows.entry(flow.app_proto.map_or("unknown", AppProto::name)).or_default() += 1;
        }
        let stats: Stats = *self.inspector.stats();
        let ResetCounts { sent, limited, failed } = self.live.resets();
        WorkerCounters {
            flows: flows.into_iter().collect(),
            stats: stats.iter().collect(),
            memory: self.inspector.memory() as u64,
            reassembly_memory: self.inspector.reassembly_memory() as u64,
            resets: vec![("sent", sent), ("limited", limited), ("failed", failed)],
            blocks_failed: self.live.blocks_failed,
        }
    }
}

impl Owned for Worker {
    type Event = Batch;

    /// Resets wait for packets that are on their way, not for the next batch.
    const TICK: Duration = Duration::from_millis(10);

    fn event(&mut self, batch: Batch, now: Instant) {
        // The clocks may be set while the agent runs.
        let boot_ns = unix_time_of(0);
        for bytes in batch.records() {
            match tc_ids::decode(bytes) {
                Some(record) => {
                    self.inspector.packet(Link::Ethernet, &record.meta(boot_ns), record.frame, &mut self.live);
                }
                None => {
                    self.undecodable.inc();
                }
            }
        }
        self.used.give_back(batch);
        self.live.send_resets(now);
    }

    fn tick(&mut self, now: Instant) {
        self.inspector.tick(unix_now(), &mut self.live);
        self.live.send_resets(now);
    }

    fn finish(&mut self, now: Instant) {
        self.live.send_resets(now);
        self.inspector.finish(&mut self.live);
    }
}

/// Nanoseconds since 1970.
fn unix_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}
