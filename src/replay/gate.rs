//! What a packet passes before it is inspected: its flow's budget, kept by the loaded tc_ids or by a model of it.

use anyhow::{Context, Result, ensure};

use crate::bpf::ringbuf::OneByOne;
use crate::bpf::tc_ids::{Arrival, Options, TcIds, decode};
use crate::flow::Direction;
use crate::flow::budget::{BudgetLimits, Budgets, REPLAY_SECRET, Spent};
use crate::flow::config::CaptureConfig;

/// Bytes of a frame that are judged: what a test run takes is a page, with what the kernel puts around a frame. What is
/// longer (merged by a network card) is inspected whole, but past its budget counted as this long.
const JUDGED_MAX: usize = 3500;
/// The shortest frame that a test run takes: an Ethernet header. A shorter one is no IP.
const JUDGED_MIN: usize = 14;
/// Flows that have entries at the same time.
const FLOWS: u32 = 65_536;
/// Room for records: one is there at a time.
const RING_BYTES: u32 = 1 << 20;

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Passage<'f> {
    /// It is inspected.
    Recorded {
        /// The frame, or its headers.
        bytes: &'f [u8],
        /// Packets and bytes of its direction that were not recorded since the last one that was; of this one the bytes
        /// that are missing in `bytes`.
        unseen: (u64, u64),
    },
    /// It is not: its flow's budget is spent, or it is no IP.
    NotRecorded,
}

/// How much of each direction of a flow is inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Payload bytes of TCP.
    pub stream_depth: u64,
    /// Packets of UDP and of all else.
    pub udp_packets: u32,
}

impl Default for Depth {
    /// Of UDP everything: a capture can wait, unlike the wire.
    fn default() -> Depth {
        Depth { stream_depth: 1 << 20, udp_packets: u32::MAX }
    }
}

impl Depth {
    /// What a section allows.
    pub fn of(config: &CaptureConfig) -> Depth {
        Depth { stream_depth: config.stream_depth, udp_packets: config.udp_packets }
    }
}

/// The way that packets take.
pub enum Gate {
    /// A model of the program.
    Model(Budgets),
    /// The program.
    Kernel(Box<Kernel>),
}

/// The loaded program, and its records.
pub struct Kernel {
    tc_ids: TcIds,
    records: OneByOne,
    record: Vec<u8>,
}

impl Gate {
    /// The model.
    pub fn model(depth: Depth) -> Gate {
        let limits = BudgetLimits {
            stream_depth: depth.stream_depth,
            udp_packets: depth.udp_packets.into(),
            entries: 2 * FLOWS as usize,
        };
        Gate::Model(Budgets::new(limits, REPLAY_SECRET))
    }

    /// The program.
    ///
    /// # Errors
    /// The kernel refuses: it wants root.
    pub fn kernel(depth: Depth) -> Result<Gate> {
        let options = Options {
            max_flows: FLOWS,
            stream_depth: depth.stream_depth,
            udp_packets: depth.udp_packets,
            ring_bytes: RING_BYTES,
            is_replay: true,
            ..Options::default()
        };
        let tc_ids = TcIds::load(&options).context("without root use --no-kernel, which prints the same")?;
        let records = OneByOne::new(&tc_ids.events()?)?;
        Ok(Gate::Kernel(Box::new(Kernel { tc_ids, records, record: Vec::new() })))
    }

    /// Passes a packet, at a time of the capture.
    ///
    /// # Errors
    /// The kernel does not run its program.
    pub fn pass<'f>(&'f mut self, frame: &'f [u8], time_ns: u64) -> Result<Passage<'f>> {
        if frame.len() < JUDGED_MIN {
            return Ok(Passage::NotRecorded);
        }
        let judged = &frame[..frame.len().min(JUDGED_MAX)];
        match self {
            Gate::Model(budgets) => Ok(match budgets.spend(judged, time_ns) {
                Spent::Recorded { length, unseen } => recorded(frame, judged.len(), length, unseen),
                Spent::Past | Spent::NotLookedAt => Passage::NotRecorded,
            }),
            Gate::Kernel(kernel) => kernel.pass(frame, judged, time_ns),
        }
    }

    /// Packets whose flow's budget was spent.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn past_budget(&self) -> Result<u64> {
        match self {
            Gate::Model(budgets) => Ok(budgets.past),
            Gate::Kernel(kernel) => Ok(kernel.tc_ids.counts()?[0].past_budget),
        }
    }
}

/// A frame of which `length` bytes were recorded, out of those that were judged.
fn recorded(frame: &[u8], judged: usize, length: usize, unseen: (u64, u64)) -> Passage<'_> {
    let length = if length == judged { frame.len() } else { length };
    let missing = (frame.len() - length) as u64;
    Passage::Recorded { bytes: &frame[..length], unseen: (unseen.0, unseen.1 + missing) }
}

impl Kernel {
    fn pass<'f>(&'f mut self, frame: &'f [u8], judged: &[u8], time_ns: u64) -> Result<Passage<'f>> {
        let arrival = Arrival { time_ns, ..Arrival::default() };
        self.tc_ids.test_run(Direction::Ingress, judged, &arrival, 1)?;
        if !self.records.take(&mut self.record)? {
            return Ok(Passage::NotRecorded);
        }
        let record = decode(&self.record).context("a record of tc_ids cannot be read")?;
        let meta = record.meta(0);
        ensure!(judged.starts_with(record.frame), "a record of tc_ids holds another packet");
        Ok(recorded(frame, judged.len(), record.frame.len(), meta.unseen))
    }
}
