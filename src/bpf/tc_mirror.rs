//! The object tc_mirror: sends copies of what rules with `mirror_to` have let in.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};

use super::map::{self, MapFacts, Mapped};
use super::skeletons::tc_mirror::{TcMirrorSkel, TcMirrorSkelBuilder};
use crate::abi::{fw_limits, mirror_count, mirror_limits, mirror_table};

/// The program's name.
pub const PROGRAM: &str = "tc_mirror";

/// Where the packets of a rule go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// To the interface with this index, which is above 0.
    Interface(u32),
    /// To one that is not there now.
    Absent,
}

/// The loaded object. One thread owns it; it is the only writer of its maps but for the counters.
pub struct TcMirror {
    skel: TcMirrorSkel<'static>,
    table: Mapped<mirror_table>,
}

impl TcMirror {
    /// Loads the program. It copies nothing yet.
    ///
    /// # Errors
    /// What the kernel lacks or the verifier says.
    pub fn load() -> Result<TcMirror> {
        // The skeleton borrows its storage for as long as it lives, which is as long as the agent.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let open = TcMirrorSkelBuilder::default().open(storage).context("opening tc_mirror")?;
        let skel = open.load().context("loading tc_mirror")?;
        let table = &skel.maps.bss_mirrors;
        let table = Mapped::within(table.as_fd(), table.value_size() as usize, 1)?;
        Ok(TcMirror { skel, table })
    }

    /// The program.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.skel.progs.tc_mirror.as_fd()
    }

    /// Says for each slot of a rule where its packets go; those of all others go nowhere.
    pub fn set_monitors(&mut self, monitors: &[(u16, Monitor)]) {
        let mut next = [0u32; fw_limits::FW_SLOTS.0 as usize];
        for &(slot, monitor) in monitors {
            next[usize::from(slot)] = match monitor {
                Monitor::Interface(ifindex) => ifindex,
                Monitor::Absent => mirror_limits::MIRROR_ABSENT.0,
            };
        }
        let table = self.table.at(0);
        for (slot, next) in next.into_iter().enumerate() {
            // SAFETY: an aligned word within the mapping; the kernel only reads it.
            unsafe { AtomicU32::from_ptr(&raw mut (*table).monitor[slot]) }.store(next, Ordering::Relaxed);
        }
    }

    /// Whether packets are to have metadata: one without counts as lost then.
    pub fn set_active(&mut self, active: bool) {
        // SAFETY: an aligned word within the mapping; the kernel only reads it.
        let word = unsafe { AtomicU32::from_ptr(&raw mut (*self.table.at(0)).active) };
        word.store(active.into(), Ordering::Release);
    }

    /// Under which number what arrives on an interface is counted: its place in `indexes`, for those that exist.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_interfaces(&self, indexes: &[Option<u32>]) -> Result<()> {
        let map = &self.skel.maps.mirror_ifaces;
        let known: Vec<Vec<u8>> = map.keys().collect();
        for key in known {
            if !indexes.iter().flatten().any(|index| index.to_ne_bytes() == key[..]) {
                map.delete(&key).context("forgetting an interface")?;
            }
        }
        for (number, index) in indexes.iter().enumerate() {
            if let Some(index) = index {
                map.update(&index.to_ne_bytes(), &(number as u32).to_ne_bytes(), MapFlags::ANY)
                    .context("numbering an interface")?;
            }
        }
        Ok(())
    }

    /// What was counted, by number of the interface; all CPUs together.
    pub fn counts(&self) -> Result<Vec<mirror_count>> {
        let mut sums = vec![mirror_count::default(); fw_limits::FW_IFACES.0 as usize];
        map::read_per_cpu(&map::handle(&self.skel.maps.mirror_counts)?, |number, one: mirror_count| {
            if let Some(sum) = sums.get_mut(number as usize) {
                sum.packets += one.packets;
                sum.bytes += one.bytes;
                sum.lost.iter_mut().zip(one.lost).for_each(|(sum, one)| *sum += one);
            }
        })?;
        Ok(sums)
    }

    /// Its maps, as status shows them.
    pub fn maps(&self) -> Vec<MapFacts> {
        let maps = &self.skel.maps;
        vec![map::facts(&maps.bss_mirrors), map::facts(&maps.mirror_ifaces), map::facts(&maps.mirror_counts)]
    }
}
