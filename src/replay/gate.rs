//! What a packet passes before it is inspected: the rules' verdict, and its flow's budget.

use anyhow::Result;

use crate::config::Config;
use crate::flow::budget::{BudgetLimits, Budgets, Spent};

/// Secrets of the kernel's hashes in a replay: odd, and chosen once.
pub const SECRET: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];

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
    /// Its flow's budget is spent, or it is no IP.
    PastBudget,
    /// The rules drop it.
    Dropped,
}

/// The way that packets take.
pub enum Gate {
    /// Models of the programs.
    Model(Budgets),
}

impl Gate {
    /// The programs, or their models.
    pub fn open(kernel: bool, config: Option<&Config>) -> Result<Gate> {
        let _ = (kernel, config);
        let limits = BudgetLimits { stream_depth: 1 << 20, udp_packets: 64, entries: 131_072 };
        Ok(Gate::Model(Budgets::new(limits, SECRET)))
    }

    /// Passes a packet, at a time of the capture.
    pub fn pass<'f>(&'f mut self, frame: &'f [u8], time_ns: u64) -> Result<Passage<'f>> {
        match self {
            Gate::Model(budgets) => Ok(match budgets.spend(frame, time_ns) {
                Spent::Recorded { length, unseen } => {
                    let missing = (frame.len() - length) as u64;
                    Passage::Recorded { bytes: &frame[..length], unseen: (unseen.0, unseen.1 + missing) }
                }
                Spent::Past => Passage::PastBudget,
                Spent::NotLookedAt => Passage::PastBudget,
            }),
        }
    }
}
