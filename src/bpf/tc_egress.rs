//! The object tc_egress: notes the connections that this host opens.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapHandle, ProgramInput};

use super::map::MapFacts;
use super::skeletons::tc_egress::{TcEgressSkel, TcEgressSkelBuilder};
use super::xdp_firewall::ConnTimeouts;

/// The loaded object.
pub struct TcEgress {
    skel: TcEgressSkel<'static>,
}

impl TcEgress {
    /// Loads the program; it writes into the connections of xdp_firewall.
    pub fn load(connections: &MapHandle, counts: &MapHandle, timeouts: &ConnTimeouts) -> Result<TcEgress> {
        // The skeleton borrows its storage for as long as it lives, which is as long as the agent.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = TcEgressSkelBuilder::default().open(storage).context("opening tc_egress")?;
        open.maps.connections.reuse_fd(connections.as_fd()).context("sharing the connections")?;
        open.maps.misc_counts.reuse_fd(counts.as_fd()).context("sharing the counters")?;
        open.maps.rodata_data.as_deref_mut().context("tc_egress has no constants")?.conn_timeout =
            timeouts.jiffies()?;
        let skel = open.load().context("loading tc_egress")?;
        Ok(TcEgress { skel })
    }

    /// The program.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.skel.progs.tc_egress.as_fd()
    }

    /// Runs the program over a frame as if it left.
    ///
    /// # Errors
    /// The kernel refuses; see [`TcIds::test_run`](super::tc_ids::TcIds::test_run).
    pub fn test_run(&self, frame: &[u8]) -> Result<()> {
        let input = ProgramInput { data_in: Some(frame), repeat: 1, ..Default::default() };
        self.skel.progs.tc_egress.test_run(input).context("running tc_egress on a packet")?;
        Ok(())
    }

    /// Its own maps; what it shares is told by xdp_firewall.
    pub fn maps(&self) -> Vec<MapFacts> {
        Vec::new()
    }
}
