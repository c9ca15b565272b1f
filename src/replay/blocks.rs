//! What is blocked in a replay: the flows that rules of l7 refused, by the capture's clock. With the kernel's programs its
//! tables say the same.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::bpf::blocks::{BlockedFlow, Blocks, Exceptions, Unanswered};
use crate::classify::guard::Guard;
use crate::event::address;
use crate::flow::{Direction, Flow};
use crate::inspection::{BLOCKED_FLOWS_MAX, block_secs};
use crate::packet::frame::protocol::TCP;
use crate::packet::frame::tcp_flag::RST;
use crate::packet::headers::{Headers, Place};

/// Blocked flows, each until a time of the capture.
pub struct ReplayBlocks {
    until_ns: HashMap<BlockedFlow, u64>,
    /// The ends of blocks; of those that were prolonged the earlier ones, too. First those of flows that were not answered.
    ends: [VecDeque<(u64, BlockedFlow)>; 2],
    unanswered: Unanswered,
    kernel: Option<Blocks>,
    /// No guard, as there are no sessions; DHCP, maybe.
    exceptions: Exceptions,
}

impl ReplayBlocks {
    /// Nothing is blocked. With `kernel` there are the kernel's tables, too.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(kernel: bool, dhcp: bool) -> Result<ReplayBlocks> {
        let mut kernel = kernel.then(|| Blocks::new(BLOCKED_FLOWS_MAX, 1)).transpose()?;
        if let Some(blocks) = &mut kernel {
            let mut guard = crate::abi::fw_guard::default();
            Guard::default().write(&mut guard);
            blocks.set_exceptions(&guard, dhcp);
        }
        let exceptions = Exceptions { dhcp, ..Exceptions::default() };
        Ok(ReplayBlocks {
            until_ns: HashMap::new(),
            ends: Default::default(),
            unanswered: Unanswered::default(),
            kernel,
            exceptions,
        })
    }

    /// The kernel's tables.
    pub fn kernel(&self) -> Option<&Blocks> {
        self.kernel.as_ref()
    }

    /// Whether nothing of a flow would be dropped if it was blocked.
    pub fn spare(&self, flow: &Flow) -> bool {
        flow.local_ends().any(|(local, remote)| self.exceptions.spare(flow.protocol, local, remote))
    }

    /// Blocks a flow for as long as on the wire; false when there is no room, or the kernel refuses.
    pub fn block(&mut self, flow: BlockedFlow, is_answered: bool, now_ns: u64) -> bool {
        let is_new = !self.until_ns.contains_key(&flow);
        if !is_answered && !is_new && !self.unanswered.has(&flow) {
            return true;
        }
        let room = BLOCKED_FLOWS_MAX as usize;
        if is_new
            && let Some(victim) = self.unanswered.victim(is_answered, self.until_ns.len(), room)
            && let Err(error) = self.end(&victim)
        {
            log::warn!("ending a block: {error:#}");
            return false;
        }
        if is_new && self.until_ns.len() >= room {
            return false;
        }
        if let Some(kernel) = &mut self.kernel
            && let Err(error) = kernel.block_flow(flow, None)
        {
            log::warn!("blocking a flow: {error}");
            return false;
        }
        let until_ns = now_ns.saturating_add(block_secs(is_answered) * 1_000_000_000);
        self.until_ns.insert(flow, until_ns);
        self.ends[usize::from(is_answered)].push_back((until_ns, flow));
        match is_answered {
            true => self.unanswered.forget(&flow),
            false => self.unanswered.note(flow),
        }
        true
    }

    fn end(&mut self, flow: &BlockedFlow) -> Result<()> {
        self.until_ns.remove(flow);
        self.unanswered.forget(flow);
        match &mut self.kernel {
            Some(kernel) => kernel.unblock_flow(flow).map(drop).context("ending a block"),
            None => Ok(()),
        }
    }

    /// Ends the blocks that are over.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn expire(&mut self, now_ns: u64) -> Result<()> {
        for kind in 0..self.ends.len() {
            while let Some((until_ns, flow)) = self.ends[kind].pop_front_if(|(until_ns, _)| *until_ns <= now_ns) {
                if self.until_ns.get(&flow) == Some(&until_ns) {
                    self.end(&flow)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a flow is blocked.
    pub fn is_blocked(&self, flow: &BlockedFlow) -> bool {
        self.until_ns.contains_key(flow)
    }

    /// Whether a packet is blocked: find_block() of include/verdicts.h, of which only flows are asked here.
    pub fn finds(&self, p: &Headers, frame: &[u8], direction: Direction) -> bool {
        if self.until_ns.is_empty() || !p.has_ports || p.place == Place::Later {
            return false;
        }
        let is_spared = match direction {
            Direction::Ingress => self.exceptions.dhcp && p.is_dhcp_answer(),
            Direction::Egress => (self.exceptions.dhcp && p.is_dhcp_request()) || is_parting_reset(p, frame),
        };
        let end = |words, port| Some(SocketAddr::new(address(p.family, words)?, port));
        let flow = || BlockedFlow::new(end(p.src, p.src_port)?, end(p.dst, p.dst_port)?, p.protocol, p.vlans[0]);
        !is_spared && flow().is_some_and(|flow| self.is_blocked(&flow))
    }
}

/// A reset without payload passes the block of its flow on its way out.
fn is_parting_reset(p: &Headers, frame: &[u8]) -> bool {
    let header = frame.get(p.transport + 12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    p.protocol == TCP && p.place == Place::Whole && p.tcp_flags & RST != 0 && p.claimed <= header
}
