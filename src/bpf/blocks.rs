//! What is blocked: flows and addresses, in tables that xdp_firewall and tc_ids share (include/verdicts.h).

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, OpenMapMut};

use super::boot_seconds;
use super::map::{self, MapFacts, Mapped, handle};
use crate::abi::{Plain, block, block_address, block_flow, block_policy, bytes_of, from_bytes, fw_guard, fw_net};
use crate::packet::frame::protocol::{TCP, UDP};

/// A flow, whichever way its packets go. Two that differ in the order of their ends are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockedFlow {
    low: SocketAddr,
    high: SocketAddr,
    protocol: u8,
    vlan: u16,
}

impl BlockedFlow {
    /// The flow between two ends, with its IP protocol and its outer VLAN id, 0 when untagged. `None` when the ends are of
    /// different families.
    pub fn new(one: SocketAddr, other: SocketAddr, protocol: u8, vlan: u16) -> Option<BlockedFlow> {
        if one.is_ipv4() != other.is_ipv4() {
            return None;
        }
        let end = |end: SocketAddr| SocketAddr::new(end.ip(), end.port());
        let (low, high) = if one <= other { (one, other) } else { (other, one) };
        Some(BlockedFlow { low: end(low), high: end(high), protocol, vlan })
    }

    /// Its ends, the lower one first.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.low, self.high)
    }

    /// Its IP protocol.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Its outer VLAN id; 0 when untagged.
    pub fn vlan(&self) -> u16 {
        self.vlan
    }

    fn key(&self) -> block_flow {
        block_flow {
            low: words(self.low.ip()),
            high: words(self.high.ip()),
            low_port: self.low.port(),
            high_port: self.high.port(),
            vlan: self.vlan,
            protocol: self.protocol,
            family: if self.low.is_ipv4() { 4 } else { 6 },
        }
    }
}

/// An address as struct packet has it: host order, high half first, IPv4 in the low 32 bits.
fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, u32::from(address).into()],
        IpAddr::V6(address) => [(u128::from(address) >> 64) as u64, u128::from(address) as u64],
    }
}

/// IPv4 is mapped into IPv6.
fn address_key(address: IpAddr) -> block_address {
    let address = match address {
        IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
        IpAddr::V6(address) => u128::from(address),
    };
    block_address { address: [(address >> 64) as u64, address as u64] }
}

/// Why something was not blocked.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Its table is full, and of what can be thrown out for a newcomer there is nothing.
    #[error("{0} {1} are blocked already, and there is no room for more")]
    Full(usize, &'static str),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] anyhow::Error),
}

/// A block, as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked<K> {
    /// What is blocked.
    pub what: K,
    /// Until when, in seconds since boot; `None`: for ever.
    pub until_secs: Option<u64>,
    /// Packets that were dropped for it.
    pub packets: u64,
}

/// Flows that were blocked although one end alone was heard. Anybody can make such flows in the name of others, so their
/// blocks get a part of the table, in which the oldest makes room, and make room for those of flows that were answered.
#[derive(Default)]
pub struct Unanswered {
    /// By the number of the block, which grows.
    order: BTreeMap<u64, BlockedFlow>,
    numbers: HashMap<BlockedFlow, u64>,
    next: u64,
}

impl Unanswered {
    /// One part in so many.
    const SHARE: usize = 4;

    /// Notes the newest block.
    pub fn note(&mut self, flow: BlockedFlow) {
        self.forget(&flow);
        self.order.insert(self.next, flow);
        self.numbers.insert(flow, self.next);
        self.next += 1;
    }

    /// A block is no more, or the flow was answered.
    pub fn forget(&mut self, flow: &BlockedFlow) {
        if let Some(number) = self.numbers.remove(flow) {
            self.order.remove(&number);
        }
    }

    /// Whether a flow is blocked as one that was not answered.
    pub fn has(&self, flow: &BlockedFlow) -> bool {
        self.numbers.contains_key(flow)
    }

    /// Whose room a newcomer takes, in a table of `room` with `taken` entries.
    pub fn victim(&self, is_answered: bool, taken: usize, room: usize) -> Option<BlockedFlow> {
        let has_no_share = !is_answered && self.order.len() >= (room / Self::SHARE).max(1);
        if has_no_share || taken >= room { self.order.first_key_value().map(|(_, flow)| *flow) } else { None }
    }
}

/// One of the two tables, and what is in it.
struct Table<K> {
    map: MapHandle,
    entries: BTreeMap<K, Option<u64>>,
    room: usize,
    what: &'static str,
}

impl<K: Copy + Ord> Table<K> {
    fn new<W: Plain>(name: &str, room: u32, what: &'static str) -> Result<Table<K>> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            map_flags: libbpf_sys::BPF_F_NO_PREALLOC,
            ..Default::default()
        };
        let (key, value) = (size_of::<W>() as u32, size_of::<block>() as u32);
        let map = MapHandle::create(MapType::Hash, Some(name), key, value, room.max(1), &options)
            .with_context(|| format!("making the table of blocked {what}"))?;
        Ok(Table { map, entries: BTreeMap::new(), room: room as usize, what })
    }

    fn packets<W: Plain>(&self, key: &W) -> u64 {
        let value = self.map.lookup(bytes_of(key), MapFlags::ANY).ok().flatten();
        value.and_then(|value| from_bytes::<block>(&value)).map_or(0, |block| block.packets)
    }

    fn insert<W: Plain>(&mut self, what: K, key: &W, until_secs: Option<u64>) -> Result<(), BlockError> {
        let is_new = !self.entries.contains_key(&what);
        if is_new && self.entries.len() >= self.room {
            return Err(BlockError::Full(self.entries.len(), self.what));
        }
        let packets = if is_new { 0 } else { self.packets(key) };
        // An end of 0 means never, and nothing ends before the first second.
        let value = block { until_s: until_secs.map_or(0, |until| until.max(1)), packets };
        self.map
            .update(bytes_of(key), bytes_of(&value), MapFlags::ANY)
            .with_context(|| format!("blocking one of the {}", self.what))?;
        self.entries.insert(what, until_secs);
        Ok(())
    }

    fn remove<W: Plain>(&mut self, what: &K, key: &W) -> Result<bool> {
        if !self.entries.contains_key(what) {
            return Ok(false);
        }
        self.map.delete(bytes_of(key)).with_context(|| format!("unblocking one of the {}", self.what))?;
        Ok(self.entries.remove(what).is_some())
    }

    fn page<W: Plain>(&self, after: Option<&K>, limit: usize, key: impl Fn(&K) -> W) -> Vec<Blocked<K>> {
        use std::ops::Bound;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let page = self.entries.range((start, Bound::Unbounded)).take(limit);
        page.map(|(what, &until_secs)| Blocked { what: *what, until_secs, packets: self.packets(&key(what)) }).collect()
    }

    fn expired(&self, now_secs: u64) -> Vec<K> {
        let is_over = |until: &Option<u64>| until.is_some_and(|until| until <= now_secs);
        self.entries.iter().filter(|(_, until)| is_over(until)).map(|(what, _)| *what).collect()
    }
}

/// All that is blocked. One thread owns it; it is the only writer of its maps, but for the counters of packets.
pub struct Blocks {
    flows: Table<BlockedFlow>,
    addresses: Table<IpAddr>,
    policy_map: MapHandle,
    policy: Mapped<block_policy>,
    exceptions: Exceptions,
    unanswered: Unanswered,
    evicted: u64,
}

/// Who is never blocked, as far as it is a matter of flows: is_spared() of include/verdicts.h.
#[derive(Clone, Copy, Default)]
pub struct Exceptions {
    /// The lock-out guard.
    pub guard: fw_guard,
    /// DHCP between this host and its server.
    pub dhcp: bool,
}

impl Exceptions {
    /// Whether the kernel drops nothing of the flow between an end of this host's and another one.
    pub fn spare(&self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> bool {
        match protocol {
            TCP => self.is_guarded(local.port(), remote.ip()),
            UDP => {
                let ports = if local.is_ipv4() { (68, 67) } else { (546, 547) };
                self.dhcp && (local.port(), remote.port()) == ports
            }
            _ => false,
        }
    }

    fn is_guarded(&self, port: u16, remote: IpAddr) -> bool {
        let [high, low] = address_key(remote).address;
        let has = |net: &fw_net| ((high ^ net.addr[0]) & net.mask[0]) | ((low ^ net.addr[1]) & net.mask[1]) == 0;
        let (ports, nets) = (usize::from(self.guard.ports), usize::from(self.guard.nets));
        self.guard.port.iter().take(ports).any(|one| *one == port) && self.guard.net.iter().take(nets).any(has)
    }
}

impl Blocks {
    /// Nothing is blocked, and there is room for so many.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(flows_max: u32, addresses_max: u32) -> Result<Blocks> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            map_flags: libbpf_sys::BPF_F_MMAPABLE,
            ..Default::default()
        };
        let size = size_of::<block_policy>() as u32;
        let policy_map = MapHandle::create(MapType::Array, Some("block_policy"), 4, size, 1, &options)
            .context("making the map that says whether anything is blocked")?;
        let policy = Mapped::new(&policy_map, 1)?;
        let flows = Table::new::<block_flow>("blocked_flows", flows_max, "flows")?;
        let addresses = Table::new::<block_address>("blocked_addrs", addresses_max, "addresses")?;
        Ok(Blocks {
            flows,
            addresses,
            policy_map,
            policy,
            exceptions: Exceptions::default(),
            unanswered: Unanswered::default(),
            evicted: 0,
        })
    }

    /// Makes an object that is about to be loaded use these tables, or none: flows, addresses, policy.
    pub(super) fn give(blocks: Option<&Blocks>, maps: [&mut OpenMapMut<'_>; 3]) -> Result<()> {
        let [flows, addresses, policy] = maps;
        let Some(blocks) = blocks else {
            for map in [flows, addresses, policy] {
                map.set_autocreate(false).context("leaving a map out")?;
            }
            return Ok(());
        };
        flows
            .reuse_fd(blocks.flows.map.as_fd())
            .and(addresses.reuse_fd(blocks.addresses.map.as_fd()))
            .and(policy.reuse_fd(blocks.policy_map.as_fd()))
            .context("sharing what is blocked")
    }

    /// Who is never blocked beside what include/verdicts.h names: those who are working on this host, and DHCP.
    pub fn set_exceptions(&mut self, guard: &fw_guard, dhcp: bool) {
        self.exceptions = Exceptions { guard: *guard, dhcp };
        let policy = self.policy.at(0);
        // SAFETY: within the mapping, of which this is the only writer; the kernel reads single words at any time, and any
        // mix of two guards spares nobody whom neither of them spares but by a port of one and a network of the other.
        unsafe {
            (&raw mut (*policy).guard).write_volatile(*guard);
            (&raw mut (*policy).dhcp).write_volatile(dhcp.into());
        }
    }

    /// Whether the kernel would drop nothing of a flow if it was blocked.
    pub fn spare(&self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> bool {
        self.exceptions.spare(protocol, local, remote)
    }

    /// Tells the kernel whether there is anything to look for.
    fn publish(&self) {
        let policy = self.policy.at(0);
        // SAFETY: aligned words within the mapping; the kernel only reads them.
        let (flows, addresses) = unsafe {
            (AtomicU32::from_ptr(&raw mut (*policy).flows), AtomicU32::from_ptr(&raw mut (*policy).addresses))
        };
        flows.store(self.flows.entries.len() as u32, Ordering::Release);
        addresses.store(self.addresses.entries.len() as u32, Ordering::Release);
    }

    /// Blocks a flow in both directions, from now on, until so many seconds since boot; `None`: for ever. One that is
    /// blocked already gets the new end.
    ///
    /// # Errors
    /// There is no room, or the kernel refuses.
    pub fn block_flow(&mut self, flow: BlockedFlow, until_secs: Option<u64>) -> Result<(), BlockError> {
        self.make_room(&flow, true)?;
        self.flows.insert(flow, &flow.key(), until_secs)?;
        self.unanswered.forget(&flow);
        self.publish();
        Ok(())
    }

    /// The same for a flow of which one end alone was heard: see [`Unanswered`]. A longer block stays as it is.
    ///
    /// # Errors
    /// There is no room, or the kernel refuses.
    pub fn block_unanswered(&mut self, flow: BlockedFlow, until_secs: Option<u64>) -> Result<(), BlockError> {
        if self.is_blocked(&flow) && !self.unanswered.has(&flow) {
            return Ok(());
        }
        self.make_room(&flow, false)?;
        self.flows.insert(flow, &flow.key(), until_secs)?;
        self.unanswered.note(flow);
        self.publish();
        Ok(())
    }

    fn make_room(&mut self, flow: &BlockedFlow, is_answered: bool) -> Result<()> {
        if !self.flows.entries.contains_key(flow)
            && let Some(victim) = self.unanswered.victim(is_answered, self.flows.entries.len(), self.flows.room)
        {
            self.unblock_flow(&victim)?;
            self.evicted += 1;
        }
        Ok(())
    }

    /// Blocks of flows that were not answered which made room for others.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The same for an address, as source and destination.
    ///
    /// # Errors
    /// There is no room, or the kernel refuses.
    pub fn block_address(&mut self, address: IpAddr, until_secs: Option<u64>) -> Result<(), BlockError> {
        let address = address.to_canonical();
        self.addresses.insert(address, &address_key(address), until_secs)?;
        self.publish();
        Ok(())
    }

    /// Unblocks a flow; false when it was not blocked.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unblock_flow(&mut self, flow: &BlockedFlow) -> Result<bool> {
        let was = self.flows.remove(flow, &flow.key())?;
        self.unanswered.forget(flow);
        self.publish();
        Ok(was)
    }

    /// Unblocks an address; false when it was not blocked.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unblock_address(&mut self, address: IpAddr) -> Result<bool> {
        let address = address.to_canonical();
        let was = self.addresses.remove(&address, &address_key(address))?;
        self.publish();
        Ok(was)
    }

    /// At most `limit` blocked flows in their order, from the one behind `after` on.
    pub fn flows(&self, after: Option<&BlockedFlow>, limit: usize) -> Vec<Blocked<BlockedFlow>> {
        self.flows.page(after, limit, BlockedFlow::key)
    }

    /// At most `limit` blocked addresses in their order, from the one behind `after` on.
    pub fn addresses(&self, after: Option<&IpAddr>, limit: usize) -> Vec<Blocked<IpAddr>> {
        self.addresses.page(after, limit, |&address| address_key(address))
    }

    /// Whether a flow is blocked now.
    pub fn is_blocked(&self, flow: &BlockedFlow) -> bool {
        let lasts = |until: &Option<u64>| until.is_none_or(|until| boot_seconds().is_ok_and(|now| now < until));
        self.flows.entries.get(flow).is_some_and(lasts)
    }

    /// How many flows and addresses are blocked, those included that have expired and were not taken away so far.
    pub fn len(&self) -> (usize, usize) {
        (self.flows.entries.len(), self.addresses.entries.len())
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }

    /// Takes away what has expired; how many flows and addresses. The kernel does not heed them any more in any case: this
    /// makes room.
    ///
    /// # Errors
    /// The kernel refuses, or has no clock.
    pub fn expire(&mut self) -> Result<(usize, usize)> {
        let now = boot_seconds()?;
        let (flows, addresses) = (self.flows.expired(now), self.addresses.expired(now));
        for flow in &flows {
            self.flows.remove(flow, &flow.key())?;
            self.unanswered.forget(flow);
        }
        for address in &addresses {
            self.addresses.remove(address, &address_key(*address))?;
        }
        self.publish();
        Ok((flows.len(), addresses.len()))
    }

    /// The tables, to be pinned, by the names of their pins.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pins(&self) -> Result<Vec<(&'static str, MapHandle)>> {
        Ok(vec![
            ("blocked_flows", handle(&self.flows.map)?),
            ("blocked_addrs", handle(&self.addresses.map)?),
            ("block_policy", handle(&self.policy_map)?),
        ])
    }

    /// Its maps, as status shows them.
    pub fn maps(&self) -> Vec<MapFacts> {
        vec![map::facts(&self.flows.map), map::facts(&self.addresses.map), map::facts(&self.policy_map)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_answered_has_a_share_and_gives_it_to_what_was() {
        let flow = |n: u16| BlockedFlow::new(([10, 0, 0, 1], n).into(), ([10, 0, 0, 2], 80).into(), 6, 0).unwrap();
        let mut unanswered = Unanswered::default();
        assert_eq!((unanswered.victim(false, 7, 8), unanswered.victim(true, 8, 8)), (None, None));
        unanswered.note(flow(1));
        assert_eq!(unanswered.victim(false, 1, 8), None);
        unanswered.note(flow(2));
        assert_eq!((unanswered.victim(false, 2, 8), unanswered.victim(true, 2, 8)), (Some(flow(1)), None));
        // Renewed, it is the newest.
        unanswered.note(flow(1));
        assert_eq!((unanswered.victim(false, 2, 8), unanswered.victim(true, 8, 8)), (Some(flow(2)), Some(flow(2))));
        unanswered.forget(&flow(2));
        assert_eq!((unanswered.victim(false, 1, 8), unanswered.victim(true, 8, 8)), (None, Some(flow(1))));
        assert!(unanswered.has(&flow(1)) && !unanswered.has(&flow(2)));
    }

    #[test]
    fn a_flow_is_the_same_from_both_ends() {
        for (one, other) in [("10.0.0.1:5000", "10.0.0.2:80"), ("[2001:db8::1]:9", "[2001:db8::1]:8")] {
            let (one, other): (SocketAddr, SocketAddr) = (one.parse().unwrap(), other.parse().unwrap());
            let flow = BlockedFlow::new(one, other, 6, 7).unwrap();
            assert_eq!(Some(flow), BlockedFlow::new(other, one, 6, 7));
            assert_ne!(Some(flow), BlockedFlow::new(one, other, 17, 7));
            assert_ne!(Some(flow), BlockedFlow::new(one, other, 6, 8));
            let key = flow.key();
            assert!((key.low, key.low_port) < (key.high, key.high_port), "{key:?}");
        }
        let mixed = BlockedFlow::new("10.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap(), 6, 0);
        assert_eq!(mixed, None);
    }
}
