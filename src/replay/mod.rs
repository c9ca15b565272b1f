//! A capture file instead of the wire: the same inspection, with the capture's time as the clock.
//!
//! Packets go one at a time through a [`gate`], which says what becomes of them and what of them the flow layer sees: the
//! loaded xdp_firewall, tc_egress and tc_ids by test runs, their records through their ring buffers, or models of them
//! that need no rights. From there on all is as on the wire: [`Inspector`], the rules of l7, events; a flow that those
//! refuse is blocked, and what comes of it later is dropped. The same capture gives the same lines, byte by byte,
//! whichever gate it took. Of a configuration `[firewall]` and `[l7]` count, and depth and limits of `[ids]`; nothing is
//! sampled. Without one there is no firewall, and UDP has no depth.
//!
//! What is no matter of the capture is left out of both gates: rate limits and cookies (the kernel's clock), `rp_filter`
//! and `next_hop` (this host's routes), the lock-out guard (its sessions), and rules made through the API. Connections
//! and fragments end by the capture's clock. Packets arrive; those leave that a Linux cooked capture calls outgoing or,
//! with [`Job::local`], whose source alone is local: of these only the connection is noted.
//!
//! Lines of EVE JSON go to stdout: alerts, and with `--events` transactions, anomalies and flows. Notes go to stderr:
//! what is wrong with the file, and the summary. A capture that is cut off or broken is read as far as it goes, which
//! is no failure.

pub mod blocks;
pub mod capture;
pub mod eve;
pub mod frame;
pub mod gate;
pub mod summary;
mod teller;
pub mod wall;

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ipnet::IpNet;

use crate::config::Config;
use crate::engines::l7::Ruling;
use crate::event::address;
use crate::flow::{Direction, Inspector, Limits, Link, PacketMeta};
use crate::packet::headers;

use blocks::ReplayBlocks;
use capture::{Capture, Frame, OpenError};
use gate::{Depth, Gate, Passage};
use summary::{Judged, Summary};
use teller::Teller;
use wall::Wall;

/// How much of the capture's time passes between two looks for flows that are silent.
const TICK_NS: u64 = 100_000_000;
/// Secret of the hashes in a replay: chosen once, so that two runs do the same. On the wire it is random.
const SECRET: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes of output that are put together before they are written.
const OUTPUT_BUFFER: usize = 256 * 1024;

/// What to replay, and what to say of it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The capture file.
    pub file: PathBuf,
    /// Whether the kernel's programs see the packets; else their models.
    pub kernel: bool,
    /// Whether transactions, anomalies and flows get lines, besides alerts.
    pub events: bool,
    /// Whether there are lines at all.
    pub lines: bool,
    /// Networks whose hosts are taken for this one: what they send to others leaves.
    pub local: Vec<IpNet>,
    /// On which interface of the configuration packets arrive; else its first one.
    pub interface: Option<String>,
}

/// Why there was nothing to replay, or no end of it.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file cannot be read as a capture.
    #[error("{path}: {reason}", path = .0.display(), reason = .1)]
    Open(PathBuf, OpenError),
    /// The packets are to arrive on an interface that is none.
    #[error("--interface: {0}")]
    Interface(String),
    /// The output cannot be written.
    #[error("writing the events: {0}")]
    Write(io::Error),
    /// The rules cannot be compiled.
    #[error("compiling the rules: {0:#}")]
    Rules(anyhow::Error),
    /// The kernel's programs refused to run.
    #[error("{0:#}")]
    Kernel(anyhow::Error),
}

impl ReplayError {
    /// Whether it is what was given that is wrong.
    pub fn is_input(&self) -> bool {
        matches!(self, ReplayError::Open(..) | ReplayError::Interface(_))
    }
}

/// Replays a file by a configuration, if there is one: by its firewall and rules, and as deep as its section `[ids]` says.
/// `out` takes the lines.
pub fn run(job: &Job, config: Option<&Config>, out: &mut dyn Write) -> Result<Summary, ReplayError> {
    let file = open(&job.file)?;
    let mut capture = Capture::open(file).map_err(|error| ReplayError::Open(job.file.clone(), error))?;
    let mut out = BufWriter::with_capacity(OUTPUT_BUFFER, out);
    let ruling = config.filter(|config| config.l7.enabled).map(|config| Ruling::of(&config.l7));
    let ruling = ruling.transpose().map_err(ReplayError::Rules)?;
    let interface = interface(job, config)?;
    let firewall = config.map(|config| &config.firewall).filter(|firewall| firewall.enabled);
    let dhcp = firewall.is_some_and(|firewall| firewall.dhcp);
    let blocks = ReplayBlocks::new(job.kernel, dhcp)
        .map_err(|error| ReplayError::Kernel(error.context("without root use --no-kernel, which prints the same")))?;
    let wall = firewall.map(|firewall| Wall::new(firewall, interface, job.kernel, blocks.kernel()));
    let wall = wall.transpose().map_err(ReplayError::Kernel)?;
    let depth = config.map_or_else(Depth::default, |config| Depth::of(&config.ids));
    let limits = config.map_or_else(Limits::default, |config| config.ids.limits(0, 1));
    let mut gate = match job.kernel {
        true => Gate::kernel(depth, wall, &blocks).map_err(ReplayError::Kernel)?,
        false => Gate::model(depth, wall),
    };
    let lines = job.lines.then_some(&mut out as &mut dyn Write);
    let mut teller = Teller::new(lines, job.events, ruling, blocks);
    teller.summary.firewall = firewall.map(|_| Judged::default());
    teller.summary.has_limits = config.is_some_and(|config| config.ratelimit.enabled);
    let summary = replay(&mut capture, &limits, &job.local, &mut gate, teller)?;
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ReplayError::Write(error)),
        _ => Ok(summary),
    }
}

fn open(path: &Path) -> Result<File, ReplayError> {
    let wrong = |error| ReplayError::Open(path.to_owned(), OpenError::Io(error));
    File::open(path).map_err(wrong)
}

/// The interface on which packets arrive: one of the configuration's.
fn interface<'j>(job: &'j Job, config: Option<&'j Config>) -> Result<&'j str, ReplayError> {
    let names = config.map_or(&[][..], |config| &config.agent.interfaces);
    match &job.interface {
        None => Ok(names.first().map_or("", String::as_str)),
        Some(name) if names.contains(name) => Ok(name),
        Some(_) if config.is_none() => {
            Err(ReplayError::Interface("it names one of agent.interfaces, so it needs --config".to_owned()))
        }
        Some(name) => Err(ReplayError::Interface(format!(
            "\"{}\" is not among agent.interfaces: {}",
            name.escape_debug(),
            names.join(", ")
        ))),
    }
}

/// Which way a packet goes. Without local networks the capture says it, if it can.
fn direction_of(frame: &Frame<'_>, ethernet: &[u8], local: &[IpNet]) -> Direction {
    let leaves = if local.is_empty() {
        frame::is_outgoing(frame.link, frame.bytes)
    } else {
        let (headers, _) = headers::read(ethernet);
        let is_local = |address: Option<IpAddr>| {
            address.is_some_and(|address| local.iter().any(|network| network.contains(&address)))
        };
        is_local(address(headers.family, headers.src)) && !is_local(address(headers.family, headers.dst))
    };
    if leaves { Direction::Egress } else { Direction::Ingress }
}

/// Replays what a reader gives.
pub(crate) fn replay<R: Read>(
    capture: &mut Capture<R>,
    limits: &Limits,
    local: &[IpNet],
    gate: &mut Gate,
    mut teller: Teller<'_>,
) -> Result<Summary, ReplayError> {
    let began = Instant::now();
    let mut inspector = Inspector::new(limits.clone(), SECRET);
    let mut framed = frame::Ethernet::default();
    let (mut first_ns, mut last_ns, mut next_tick) = (None, 0, 0);
    while let Some(frame) = capture.next_frame() {
        let time_ns = frame.time_ns;
        first_ns.get_or_insert(time_ns);
        last_ns = last_ns.max(time_ns);
        let summary = &mut teller.summary;
        summary.packets += 1;
        summary.bytes += frame.bytes.len() as u64;
        summary.cut_packets += u64::from((frame.bytes.len() as u64) < u64::from(frame.wire_length));
        teller.set_packet(time_ns);
        if time_ns >= next_tick {
            inspector.tick(time_ns, &mut teller);
            next_tick = time_ns.saturating_add(TICK_NS);
        }
        let now_ns = teller.now_ns();
        teller.blocks.expire(now_ns).map_err(ReplayError::Kernel)?;
        let bytes = framed.of(frame.link, frame.bytes);
        let direction = direction_of(&frame, bytes, local);
        let passed = gate.pass(bytes, (time_ns, now_ns), direction, &teller.blocks).map_err(ReplayError::Kernel)?;
        teller.summary.count_passed(&passed);
        if let Some(notice) = &passed.notice {
            teller.verdict(notice);
        }
        let mut meta = PacketMeta {
            time_ns,
            ifindex: frame.interface,
            direction,
            vlans: [0; 2],
            socket_cookie: 0,
            cgroup_id: 0,
            unseen: (0, 0),
        };
        if let Passage::Recorded { bytes, unseen } = passed.passage {
            meta.unseen = unseen;
            inspector.packet(Link::Ethernet, &meta, bytes, &mut teller);
            teller.take_reset().into_iter().for_each(|id| inspector.reset(id));
        }
        if teller.has_failed() {
            break;
        }
    }
    inspector.finish(&mut teller);
    let mut summary = teller.finish().map_err(ReplayError::Write)?;
    summary.past_budget = gate.past_budget().map_err(ReplayError::Kernel)?;
    summary.refused = capture.refused().clone();
    summary.fault = capture.fault().map(str::to_owned);
    summary.span_ns = last_ns.saturating_sub(first_ns.unwrap_or(last_ns));
    summary.took = began.elapsed();
    Ok(summary)
}
