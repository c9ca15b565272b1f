//! The object xdp_syncookie: answers SYNs for xdp_ratelimit, which hands them over.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, ProgramInput};

use super::chain::Chain;
use super::map::{self, MapFacts, Mapped};
use super::skeletons::xdp_syncookie::{XdpSyncookieSkel, XdpSyncookieSkelBuilder};
use super::xdp_ratelimit::{Moment, XdpRatelimit};
use super::{jiffies_per_second, random};
use crate::abi::{bytes_of, syn_counts, syn_host, syn_iface, syn_order};

/// What is fixed when the program is loaded.
pub struct Switches<'a> {
    /// Frames may stand in several buffers (MTU above a page; 5.18+).
    pub multi_buffer: bool,
    /// The programs behind it; without, there are none.
    pub chain: Option<&'a Chain>,
    /// Whether xdp_steer is the last of that chain.
    pub steers: bool,
}

/// The loaded object. One thread owns it; it is the only writer of its host and its interfaces.
pub struct XdpSyncookie {
    skel: XdpSyncookieSkel<'static>,
    host: Mapped<syn_host>,
    tick_zero_ns: u64,
}

impl XdpSyncookie {
    /// Opens, fixes the switches and loads. It answers nothing before [`XdpSyncookie::set_interfaces`].
    ///
    /// # Errors
    /// What the kernel lacks or the verifier says.
    pub fn load(switches: &Switches<'_>, limiter: &XdpRatelimit) -> Result<XdpSyncookie> {
        // The skeleton borrows its storage for as long as it lives, which is as long as the agent.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = XdpSyncookieSkelBuilder::default().open(storage).context("opening xdp_syncookie")?;
        let second = jiffies_per_second()?;
        let constants = open.maps.rodata_data.as_deref_mut().context("xdp_syncookie has no constants")?;
        constants.multi_buffer = switches.multi_buffer.into();
        constants.steers = switches.steers.into();
        constants.has_raw_helpers = super::has_raw_cookies().into();
        constants.second = second as u32;
        constants.tick_ns = 1_000_000_000 / second;
        for secret in &mut constants.secret {
            *secret = random()? | 1;
        }
        open.maps.syn_order.reuse_fd(limiter.orders().as_fd()).context("sharing the map of orders")?;
        if let Some(chain) = switches.chain {
            chain.give(&mut open.maps.xdp_next)?;
        }
        if switches.multi_buffer {
            open.progs.xdp_syncookie.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
        }
        let skel = open.load().context("loading xdp_syncookie")?;
        let host = Mapped::within(skel.maps.bss_host.as_fd(), skel.maps.bss_host.value_size() as usize, 1)?;
        Ok(XdpSyncookie { skel, host, tick_zero_ns: limiter.tick_zero_ns() })
    }

    /// The program.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.skel.progs.xdp_syncookie.as_fd()
    }

    /// Says what this host's TCP does; the ticks are the program's own affair.
    pub fn set_host(&mut self, host: syn_host) {
        let current = &mut self.host.values()[0];
        *current = syn_host { tick_zero_ns: self.tick_zero_ns, watched_since: current.watched_since, ..host };
    }

    /// Says that the ends of connections are noted from now on. Those of the last minute are not known, so each SYN is
    /// looked up until they are.
    pub fn watch_from(&mut self, now: Moment) {
        self.host.values()[0].watched_since = now.tick as u32;
    }

    /// Where SYNs may be answered: interfaces by index, with their MAC addresses. On others they are not.
    pub fn set_interfaces(&mut self, interfaces: &[(u32, [u8; 6])]) -> Result<()> {
        let map = &self.skel.maps.syn_ifaces;
        let is_wanted = |key: &[u8]| interfaces.iter().any(|(ifindex, _)| key == ifindex.to_ne_bytes());
        let gone: Vec<Vec<u8>> = map.keys().filter(|key| !is_wanted(key)).collect();
        for key in gone {
            map.delete(&key).context("taking an interface from xdp_syncookie")?;
        }
        for (ifindex, mac) in interfaces {
            let value = syn_iface { mac: *mac, pad: 0 };
            map.update(&ifindex.to_ne_bytes(), bytes_of(&value), MapFlags::ANY)
                .context("giving an interface to xdp_syncookie")?;
        }
        Ok(())
    }

    /// What became of SYNs and acknowledgements; all CPUs together, by `enum syn_result`.
    pub fn counts(&self) -> Result<syn_counts> {
        let mut sum = syn_counts::default();
        map::read_per_cpu(&map::handle(&self.skel.maps.syn_counts)?, |_, one: syn_counts| {
            for (sum, one) in sum.result.iter_mut().zip(one.result) {
                *sum += one;
            }
        })?;
        Ok(sum)
    }

    /// Its maps, as status shows them.
    pub fn maps(&self) -> Vec<MapFacts> {
        let maps = &self.skel.maps;
        vec![
            map::facts(&maps.bss_sources),
            map::facts(&maps.bss_open),
            map::facts(&maps.bss_ended),
            map::facts(&maps.syn_services),
            map::facts(&maps.syn_ifaces),
            map::facts(&maps.syn_counts),
        ]
    }

    /// Runs the program once over a frame as if xdp_ratelimit had handed it over on `ifindex`: enum xdp_action and what
    /// became of the frame.
    pub fn test_run(&mut self, frame: &[u8], ifindex: u32, order: syn_order) -> Result<(u32, Vec<u8>)> {
        let cpus = libbpf_rs::num_possible_cpus().context("counting CPUs")?;
        let orders = vec![bytes_of(&order).to_vec(); cpus];
        let map = &self.skel.maps.syn_order;
        map.update_percpu(&0u32.to_ne_bytes(), &orders, MapFlags::ANY).context("writing an order")?;
        let mut context: Vec<u8> =
            [0, frame.len() as u32, 0, ifindex, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let mut out = vec![0u8; frame.len() + 256];
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..Default::default()
        };
        let output = self.skel.progs.xdp_syncookie.test_run(input).context("running xdp_syncookie on a packet")?;
        let (action, len) = (output.return_value, output.data.map_or(0, |data| data.len()));
        out.truncate(len);
        Ok((action, out))
    }
}
