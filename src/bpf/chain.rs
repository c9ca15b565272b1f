//! The map of the XDP programs that run one behind the other: include/chain.h.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, OpenMapMut};

use super::map;
use crate::abi::xdp_chain;

/// The programs behind xdp_firewall, by slot. All programs of the chain are loaded with this map; what it holds is a
/// program's as long as somebody holds the map.
#[derive(Debug)]
pub struct Chain {
    map: MapHandle,
}

impl Chain {
    /// A chain without programs.
    pub fn new() -> Result<Chain> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let map = MapHandle::create(MapType::ProgArray, Some("xdp_next"), 4, 4, xdp_chain::CHAIN_SLOTS.0, &options)
            .context("making the map of the chain of programs")?;
        Ok(Chain { map })
    }

    /// Puts a program into its slot: it runs from now on.
    pub fn set(&self, slot: xdp_chain, program: BorrowedFd<'_>) -> Result<()> {
        let fd = program.as_raw_fd() as u32;
        self.map
            .update(&slot.0.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
            .context("putting a program behind another one")
    }

    /// A handle of the map, to pin it: the kernel empties it when nobody holds it.
    pub fn map(&self) -> Result<MapHandle> {
        map::handle(&self.map)
    }

    /// Makes an object that is about to be loaded use this chain.
    pub(super) fn give(&self, xdp_next: &mut OpenMapMut<'_>) -> Result<()> {
        xdp_next.reuse_fd(self.map.as_fd()).context("giving a program its chain")
    }
}
