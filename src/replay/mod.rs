//! A capture file instead of the wire: the same inspection, with the capture's time as the clock.
//!
//! Packets go one at a time through a [`gate`], which says what of them the flow layer sees: the loaded tc_ids by test
//! runs, its records through its ring buffer, or a model of it that needs no rights. From there on all is as on the
//! wire: [`Inspector`], the rules of l7, events. The same capture gives the same lines, byte by byte, whichever gate it
//! took. The firewall's rules are not asked: what is in a capture has passed whoever took it. Of a configuration the rules
//! of `[l7]` count, and depth and limits of `[ids]`; nothing is sampled. Without one, UDP has no depth.
//!
//! Lines of EVE JSON go to stdout: alerts, and with `--events` transactions, anomalies and flows. Notes go to stderr:
//! what is wrong with the file, and the summary. A capture that is cut off or broken is read as far as it goes, which
//! is no failure.

pub mod capture;
pub mod eve;
pub mod frame;
pub mod gate;
pub mod summary;
mod teller;

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::config::Config;
use crate::engines::l7::Ruling;
use crate::flow::{Direction, Inspector, Limits, Link, PacketMeta};

use capture::{Capture, OpenError};
use gate::{Depth, Gate, Passage};
use summary::Summary;
use teller::Teller;

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
}

/// Why there was nothing to replay, or no end of it.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file cannot be read as a capture.
    #[error("{path}: {reason}", path = .0.display(), reason = .1)]
    Open(PathBuf, OpenError),
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
        matches!(self, ReplayError::Open(..))
    }
}

/// Replays a file by a configuration, if there is one: by its rules, and as deep as its section `[ids]` says. `out` takes
/// the lines.
pub fn run(job: &Job, config: Option<&Config>, out: &mut dyn Write) -> Result<Summary, ReplayError> {
    let file = open(&job.file)?;
    let mut capture = Capture::open(file).map_err(|error| ReplayError::Open(job.file.clone(), error))?;
    let mut out = BufWriter::with_capacity(OUTPUT_BUFFER, out);
    let ruling = config.filter(|config| config.l7.enabled).map(|config| Ruling::of(&config.l7));
    let ruling = ruling.transpose().map_err(ReplayError::Rules)?;
    let teller = Teller::new(job.lines.then_some(&mut out as &mut dyn Write), job.events, ruling);
    let depth = config.map_or_else(Depth::default, |config| Depth::of(&config.ids));
    let limits = config.map_or_else(Limits::default, |config| config.ids.limits(0, 1));
    let mut gate = if job.kernel { Gate::kernel(depth).map_err(ReplayError::Kernel)? } else { Gate::model(depth) };
    let summary = replay(&mut capture, &limits, &mut gate, teller)?;
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ReplayError::Write(error)),
        _ => Ok(summary),
    }
}

fn open(path: &Path) -> Result<File, ReplayError> {
    let wrong = |error| ReplayError::Open(path.to_owned(), OpenError::Io(error));
    File::open(path).map_err(wrong)
}

/// Replays what a reader gives.
pub(crate) fn replay<R: Read>(
    capture: &mut Capture<R>,
    limits: &Limits,
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
        let mut meta = PacketMeta {
            time_ns,
            ifindex: frame.interface,
            direction: Direction::Ingress,
            vlans: [0; 2],
            socket_cookie: 0,
            cgroup_id: 0,
            unseen: (0, 0),
        };
        let bytes = framed.of(frame.link, frame.bytes);
        match gate.pass(bytes, time_ns).map_err(ReplayError::Kernel)? {
            Passage::Recorded { bytes, unseen } => {
                meta.unseen = unseen;
                inspector.packet(Link::Ethernet, &meta, bytes, &mut teller);
            }
            Passage::NotRecorded => {}
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
