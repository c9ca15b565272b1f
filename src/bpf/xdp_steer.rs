//! The object xdp_steer: spreads flows over CPUs.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result, ensure};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::map::{self, MapFacts};
use super::skeletons::xdp_steer::{XdpSteerSkel, XdpSteerSkelBuilder};
use super::{cpu_ids, random};
use crate::abi::{steer_count, steer_limits};

/// Frames that wait for a CPU, at most: as many as the largest ring of a usual card holds.
pub const QUEUE_FRAMES: u32 = 2048;

/// The program's name.
pub const PROGRAM: &str = "xdp_steer";

/// The loaded object.
pub struct XdpSteer {
    skel: XdpSteerSkel<'static>,
    cpus: Vec<u32>,
}

impl XdpSteer {
    /// Loads the programs and makes a queue for each of `cpus`, which are online. `multi_buffer` is that of the chain.
    ///
    /// # Errors
    /// What the kernel lacks or the verifier says.
    pub fn load(cpus: &[u32], multi_buffer: bool) -> Result<XdpSteer> {
        let most = steer_limits::STEER_TARGETS.0 as usize;
        ensure!((1..=most).contains(&cpus.len()), "{} CPUs to steer to, of 1 to {most}", cpus.len());
        // The skeleton borrows its storage for as long as it lives, which is as long as the agent.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = XdpSteerSkelBuilder::default().open(storage).context("opening xdp_steer")?;
        let constants = open.maps.rodata_data.as_deref_mut().context("xdp_steer has no constants")?;
        constants.steer_targets = cpus.len() as u32;
        constants.steer_target[..cpus.len()].copy_from_slice(cpus);
        for secret in &mut constants.steer_secret {
            *secret = random()? | 1;
        }
        let possible = cpu_ids("possible")? as u32;
        open.maps
            .steer_cpus
            .set_max_entries(possible)
            .and(open.maps.steer_counts.set_max_entries(possible))
            .context("sizing the maps of CPUs")?;
        if multi_buffer {
            open.progs.xdp_steer.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
            open.progs.xdp_steered.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
        }
        let skel = open.load().context("loading xdp_steer")?;
        let arrival = skel.progs.xdp_steered.as_fd().as_raw_fd() as u32;
        for &cpu in cpus {
            // struct bpf_cpumap_val: the queue's size, and the program that runs at its end.
            let value = [QUEUE_FRAMES.to_ne_bytes(), arrival.to_ne_bytes()].concat();
            skel.maps
                .steer_cpus
                .update(&cpu.to_ne_bytes(), &value, MapFlags::ANY)
                .with_context(|| format!("making a queue for CPU {cpu}"))?;
        }
        Ok(XdpSteer { skel, cpus: cpus.to_vec() })
    }

    /// The program that sends.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.skel.progs.xdp_steer.as_fd()
    }

    /// The maps that it needs when the agent is gone, by the names of their pins.
    pub fn pins(&self) -> Result<Vec<(&'static str, MapHandle)>> {
        Ok(vec![("steer_cpus", map::handle(&self.skel.maps.steer_cpus)?)])
    }

    /// What was counted for each of the CPUs. Those that arrived are read last: what is missing waits, or is lost.
    pub fn counts(&self) -> Result<Vec<(u32, steer_count)>> {
        let mut sums = vec![steer_count::default(); self.skel.maps.steer_counts.max_entries() as usize];
        let counts = map::handle(&self.skel.maps.steer_counts)?;
        let mut read = |add: fn(&mut steer_count, &steer_count)| {
            map::read_per_cpu(&counts, |cpu, one: steer_count| {
                if let Some(sum) = sums.get_mut(cpu as usize) {
                    add(sum, &one);
                }
            })
        };
        read(|sum, one| sum.steered += one.steered)?;
        read(|sum, one| sum.arrived += one.arrived)?;
        Ok(self.cpus.iter().filter_map(|&cpu| Some((cpu, *sums.get(cpu as usize)?))).collect())
    }

    /// Its maps, as status shows them.
    pub fn maps(&self) -> Vec<MapFacts> {
        vec![map::facts(&self.skel.maps.steer_cpus), map::facts(&self.skel.maps.steer_counts)]
    }
}
