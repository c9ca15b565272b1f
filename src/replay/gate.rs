//! What a packet passes before it is inspected: the firewall, the blocks, and its flow's budget, each kept by the loaded
//! programs or by a model of them.

use anyhow::{Context, Result, ensure};

use super::blocks::ReplayBlocks;
use super::wall::{Fate, Notice, Wall};
use crate::bpf::ringbuf::OneByOne;
use crate::bpf::takes_test_run;
use crate::bpf::tc_ids::{Arrival, Options, TcIds, decode};
use crate::event::Outcome;
use crate::flow::Direction;
use crate::flow::budget::{BudgetLimits, Budgets, REPLAY_SECRET, Spent};
use crate::flow::config::CaptureConfig;
use crate::packet::headers;

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

/// A packet's way.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed<'f> {
    /// What the firewall said, if it was asked: of what arrives.
    pub fate: Option<Fate>,
    /// What it told.
    pub notice: Option<Notice>,
    /// Its flow is blocked, and no firewall was asked: it leaves, or there is none.
    pub is_blocked: bool,
    /// What of it is inspected.
    pub passage: Passage<'f>,
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
pub struct Gate {
    wall: Option<Wall>,
    budget: Budget,
}

/// Who keeps budgets.
enum Budget {
    /// A model of the program.
    Model(Budgets),
    /// The program.
    Kernel(Box<Kernel>),
}

/// The loaded program, and its records.
struct Kernel {
    tc_ids: TcIds,
    records: OneByOne,
    record: Vec<u8>,
}

impl Gate {
    /// Models of the programs, behind a firewall that is one, too.
    pub fn model(depth: Depth, wall: Option<Wall>) -> Gate {
        let limits = BudgetLimits {
            stream_depth: depth.stream_depth,
            udp_packets: depth.udp_packets.into(),
            entries: 2 * FLOWS as usize,
        };
        Gate { wall, budget: Budget::Model(Budgets::new(limits, REPLAY_SECRET)) }
    }

    /// The programs.
    ///
    /// # Errors
    /// The kernel refuses: it wants root.
    pub fn kernel(depth: Depth, wall: Option<Wall>, blocks: &ReplayBlocks) -> Result<Gate> {
        let options = Options {
            max_flows: FLOWS,
            stream_depth: depth.stream_depth,
            udp_packets: depth.udp_packets,
            ring_bytes: RING_BYTES,
            is_replay: true,
            blocks: blocks.kernel(),
            ..Options::default()
        };
        let tc_ids = TcIds::load(&options).context("without root use --no-kernel, which prints the same")?;
        let records = OneByOne::new(&tc_ids.events()?)?;
        let kernel = Kernel { tc_ids, records, record: Vec::new() };
        Ok(Gate { wall, budget: Budget::Kernel(Box::new(kernel)) })
    }

    /// Passes a packet. `time_ns` is its own time; `now_ns` that of the capture so far, which never goes back.
    ///
    /// # Errors
    /// The kernel does not run its programs.
    pub fn pass<'f>(
        &mut self,
        frame: &'f [u8],
        (time_ns, now_ns): (u64, u64),
        direction: Direction,
        blocks: &ReplayBlocks,
    ) -> Result<Passed<'f>> {
        let mut passed = Passed { fate: None, notice: None, is_blocked: false, passage: Passage::NotRecorded };
        if frame.len() < JUDGED_MIN {
            return Ok(passed);
        }
        let judged = &frame[..frame.len().min(JUDGED_MAX)];
        let read = headers::read(judged);
        passed.is_blocked = blocks.finds(&read.0, judged, direction);
        match (&mut self.wall, direction) {
            (Some(wall), Direction::Ingress) => {
                let (fate, mut notice) = wall.arrives(judged, &read, now_ns, passed.is_blocked)?;
                if let Some(notice) = &mut notice {
                    notice.verdict.bytes = frame.len() as u32;
                }
                let goes_on = matches!(fate, Fate::Judged(Outcome::Passed | Outcome::WouldDrop));
                passed.is_blocked = fate == Fate::Blocked;
                (passed.fate, passed.notice) = (Some(fate), notice);
                if !goes_on {
                    return Ok(passed);
                }
            }
            (Some(wall), Direction::Egress) => wall.leaves(judged, &read, now_ns)?,
            (None, _) => {}
        }
        match &mut self.budget {
            Budget::Model(_) if passed.is_blocked => {}
            Budget::Model(budgets) => {
                if let Spent::Recorded { length, unseen } = budgets.spend_read(&read, judged, time_ns) {
                    passed.passage = recorded(frame, judged.len(), length, unseen);
                }
            }
            Budget::Kernel(kernel) => {
                (passed.is_blocked, passed.passage) = kernel.pass(frame, judged, direction, time_ns)?;
            }
        }
        Ok(passed)
    }

    /// Packets whose flow's budget was spent.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn past_budget(&self) -> Result<u64> {
        match &self.budget {
            Budget::Model(budgets) => Ok(budgets.past),
            Budget::Kernel(kernel) => Ok(kernel.tc_ids.counts()?.iter().map(|count| count.past_budget).sum()),
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
    /// Whether the packet is blocked, and what is inspected of it.
    fn pass<'f>(
        &mut self,
        frame: &'f [u8],
        judged: &[u8],
        direction: Direction,
        time_ns: u64,
    ) -> Result<(bool, Passage<'f>)> {
        const TCX_DROP: u32 = 2;
        if !takes_test_run(judged) {
            // What cannot be parsed belongs to no flow, and tc_ids records it whole.
            return Ok((false, recorded(frame, judged.len(), judged.len(), (0, 0))));
        }
        let arrival = Arrival { time_ns, ..Arrival::default() };
        let is_blocked = self.tc_ids.test_run(direction, judged, &arrival, 1)?.action == TCX_DROP;
        if !self.records.take(&mut self.record)? {
            return Ok((is_blocked, Passage::NotRecorded));
        }
        let record = decode(&self.record).context("a record of tc_ids cannot be read")?;
        let meta = record.meta(0);
        ensure!(judged.starts_with(record.frame), "a record of tc_ids holds another packet");
        Ok((is_blocked, recorded(frame, judged.len(), record.frame.len(), meta.unseen)))
    }
}
