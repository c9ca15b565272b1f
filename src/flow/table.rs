//! The flow table: flows in a slab, a hash table of their places, and lists in order of activity.
//!
//! The hash is keyed with a secret, so that nobody can choose addresses and ports that collide; nothing that is told
//! depends on it. A flow moves to the end of its list at most once in [`MOVE_NS`], so most packets touch no other flow
//! than their own; each step takes constant time.

use std::net::{IpAddr, SocketAddr};

use ahash::RandomState;
use hashbrown::HashTable;

use super::State;
use super::entry::Entry;
use super::limits::{Limits, SECOND_NS};
use crate::packet::frame::protocol;
use crate::packet::proto::Side;

/// How old a flow's place in its list may be.
const MOVE_NS: u64 = SECOND_NS;
/// Bits of an id that are the flow's place in the slab.
const SLOT_BITS: u32 = 22;
/// Most flows that a table can have.
pub(super) const FLOWS_MAX: u32 = 1 << SLOT_BITS;
/// No place.
const NONE: u32 = u32::MAX;

/// What tells flows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Sender of the packet.
    pub source: SocketAddr,
    /// Its receiver.
    pub destination: SocketAddr,
    /// IP protocol.
    pub protocol: u8,
    /// VLAN tags.
    pub vlans: [u16; 2],
    /// IP headers around it.
    pub depth: u8,
}

impl Key {
    /// The same for both directions.
    fn hash(&self, keys: &RandomState) -> u64 {
        let tags = u64::from(self.vlans[0]) << 32
            | u64::from(self.vlans[1]) << 16
            | u64::from(self.protocol) << 8
            | u64::from(self.depth);
        match (&self.source, &self.destination) {
            (SocketAddr::V4(a), SocketAddr::V4(b)) => {
                let [a, b] = [a, b].map(|at| u64::from(at.ip().to_bits()) << 16 | u64::from(at.port()));
                keys.hash_one((a.min(b), a.max(b), tags))
            }
            (a, b) => {
                let [a, b] = [a, b].map(|at| match at.ip() {
                    IpAddr::V4(v4) => (u128::from(v4.to_bits()), at.port()),
                    IpAddr::V6(v6) => (v6.to_bits(), at.port()),
                });
                let (a, b) = (a.min(b), a.max(b));
                keys.hash_one((a.0, b.0, tags | u64::from(a.1) << 48, b.1))
            }
        }
    }

    /// Which side of a flow the packet's sender is, if it belongs to it.
    fn side_in(&self, entry: &Entry) -> Option<Side> {
        let flow = &entry.flow;
        if flow.protocol != self.protocol || flow.vlans != self.vlans || entry.depth != self.depth {
            None
        } else if flow.client == self.source && flow.server == self.destination {
            Some(Side::Client)
        } else if flow.server == self.source && flow.client == self.destination {
            Some(Side::Server)
        } else {
            None
        }
    }

    fn of(entry: &Entry) -> Key {
        Key {
            source: entry.flow.client,
            destination: entry.flow.server,
            protocol: entry.flow.protocol,
            vlans: entry.flow.vlans,
            depth: entry.depth,
        }
    }
}

/// The lists. Each has one timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    TcpNew,
    TcpEstablished,
    TcpClosed,
    UdpNew,
    UdpEstablished,
    OtherNew,
    OtherEstablished,
    Blocked,
}

impl List {
    const ALL: [List; 8] = [
        List::TcpNew,
        List::TcpEstablished,
        List::TcpClosed,
        List::UdpNew,
        List::UdpEstablished,
        List::OtherNew,
        List::OtherEstablished,
        List::Blocked,
    ];

    /// The list of a flow; `is_over` says that its packets closed it.
    fn of(entry: &Entry) -> List {
        match (entry.flow.protocol, entry.flow.state) {
            _ if entry.flow.is_blocked && entry.flow.is_answered => List::Blocked,
            // Anybody can make as many of these as he likes.
            (protocol::TCP, _) if entry.flow.is_blocked => List::TcpNew,
            (protocol::UDP, _) if entry.flow.is_blocked => List::UdpNew,
            (protocol::TCP, _) if entry.is_over => List::TcpClosed,
            (protocol::TCP, State::New) => List::TcpNew,
            (protocol::TCP, _) => List::TcpEstablished,
            (protocol::UDP, State::New) => List::UdpNew,
            (protocol::UDP, _) => List::UdpEstablished,
            (_, State::New) => List::OtherNew,
            _ => List::OtherEstablished,
        }
    }

    fn timeout_ns(self, limits: &Limits) -> u64 {
        match self {
            List::TcpNew => limits.tcp_new_ns,
            List::TcpEstablished => limits.tcp_established_ns,
            List::TcpClosed => limits.tcp_closed_ns,
            List::UdpNew => limits.udp_new_ns,
            List::UdpEstablished => limits.udp_established_ns,
            List::OtherNew | List::OtherEstablished => limits.other_ns,
            List::Blocked => limits.blocked_ns,
        }
    }
}

#[derive(Clone, Copy)]
struct Links {
    prev: u32,
    next: u32,
    list: List,
    /// When it was put there.
    moved_ns: u64,
}

#[derive(Clone, Copy)]
struct Ends {
    head: u32,
    tail: u32,
}

/// The flows of one inspector.
pub(super) struct Table {
    keys: RandomState,
    places: HashTable<u32>,
    slots: Vec<Option<Entry>>,
    links: Vec<Links>,
    free: Vec<u32>,
    ends: [Ends; 8],
    /// Flows that there were.
    count: u64,
    worker: (u64, u64),
}

impl Table {
    pub(super) fn new(limits: &Limits, secret: u64) -> Table {
        Table {
            keys: RandomState::with_seeds(secret, !secret, secret.rotate_left(32), 0x9e37_79b9_7f4a_7c15),
            places: HashTable::new(),
            slots: Vec::new(),
            links: Vec::new(),
            free: Vec::new(),
            ends: [Ends { head: NONE, tail: NONE }; 8],
            // From 1: readers of EVE take an id of 0 for none.
            count: 1,
            worker: (limits.worker.0.into(), limits.worker.1.max(1).into()),
        }
    }

    /// Flows that are there.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes that it takes, without what its flows keep elsewhere.
    pub(super) fn memory(&self) -> usize {
        self.places.allocation_size()
            + self.slots.capacity() * size_of::<Option<Entry>>()
            + self.links.capacity() * size_of::<Links>()
            + self.free.capacity() * size_of::<u32>()
    }

    /// The flow of a packet, and the side that sent it.
    pub(super) fn find(&self, key: &Key) -> Option<(u32, Side)> {
        let mut side = None;
        let hash = key.hash(&self.keys);
        let slot = self.places.find(hash, |slot| {
            side = self.slots[*slot as usize].as_ref().and_then(|entry| key.side_in(entry));
            side.is_some()
        });
        slot.copied().zip(side)
    }

    /// Adds a flow, which gets an id. It must not be there.
    pub(super) fn insert(&mut self, mut entry: Entry, now_ns: u64) -> u32 {
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        entry.flow.id = (self.count * self.worker.1 + self.worker.0) << SLOT_BITS | u64::from(slot);
        self.count += 1;
        let hash = Key::of(&entry).hash(&self.keys);
        let links = Links { prev: NONE, next: NONE, list: List::of(&entry), moved_ns: now_ns };
        if slot as usize == self.slots.len() {
            if slot as usize == self.slots.capacity() {
                // By an eighth: to double a table of this size would keep far more than the flows need.
                let more = self.slots.len() / 8 + 64;
                self.slots.reserve_exact(more);
                self.links.reserve_exact(more);
            }
            self.slots.push(Some(entry));
            self.links.push(links);
        } else {
            self.slots[slot as usize] = Some(entry);
            self.links[slot as usize] = links;
        }
        let (slots, keys) = (&self.slots, &self.keys);
        self.places.insert_unique(hash, slot, |slot| {
            slots[*slot as usize].as_ref().map_or(0, |entry| Key::of(entry).hash(keys))
        });
        self.append(slot);
        slot
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Entry> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// The place of a flow that is still there.
    pub(super) fn slot_of(&self, id: u64) -> Option<u32> {
        let slot = (id & u64::from(FLOWS_MAX - 1)) as u32;
        self.get(slot).filter(|entry| entry.flow.id == id).map(|_| slot)
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Entry> {
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        let hash = Key::of(&entry).hash(&self.keys);
        if let Ok(place) = self.places.find_entry(hash, |other| *other == slot) {
            place.remove();
        }
        self.unlink(slot);
        self.free.push(slot);
        Some(entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().flatten()
    }

    /// Notes that a flow was active, or how it stands now.
    pub(super) fn touch(&mut self, slot: u32, now_ns: u64) {
        let Some(entry) = self.get(slot) else { return };
        let list = List::of(entry);
        let links = self.links[slot as usize];
        if links.list != list || now_ns.saturating_sub(links.moved_ns) >= MOVE_NS {
            self.move_to(slot, list, now_ns);
        }
    }

    /// Whether a flow has been silent for as long as it may.
    pub(super) fn is_expired(&self, slot: u32, limits: &Limits, now_ns: u64) -> bool {
        let timeout = self.links[slot as usize].list.timeout_ns(limits);
        self.get(slot).is_some_and(|entry| now_ns.saturating_sub(entry.flow.last_ns) > timeout)
    }

    /// A flow that has been silent for longer than it may, if there is one. It may be late by [`MOVE_NS`], since the
    /// lists are: a flow may have been active so long after it was put to its place.
    pub(super) fn next_expired(&self, limits: &Limits, now_ns: u64) -> Option<u32> {
        List::ALL.into_iter().find_map(|list| {
            let head = self.ends[list as usize].head;
            let is_due = head != NONE
                && now_ns.saturating_sub(self.links[head as usize].moved_ns) > list.timeout_ns(limits) + MOVE_NS;
            is_due.then_some(head)
        })
    }

    /// The flow whose loss costs least: a closed one, else of those that were not answered the one silent longest, else a
    /// blocked one, else one that was answered, TCP last. `spared` is not chosen.
    pub(super) fn next_victim(&self, spared: u32) -> Option<u32> {
        let new = [List::TcpNew, List::UdpNew, List::OtherNew];
        self.oldest(List::TcpClosed, spared)
            .or_else(|| {
                let heads = new.map(|list| self.oldest(list, spared));
                heads.into_iter().flatten().min_by_key(|slot| self.links[*slot as usize].moved_ns)
            })
            .or_else(|| self.oldest(List::Blocked, spared))
            .or_else(|| self.oldest(List::OtherEstablished, spared))
            .or_else(|| self.oldest(List::UdpEstablished, spared))
            .or_else(|| self.oldest(List::TcpEstablished, spared))
    }

    /// The same among flows that keep memory elsewhere: those that only wait for an answer keep none.
    pub(super) fn next_holder(&self, spared: u32) -> Option<u32> {
        let holders = [List::TcpClosed, List::UdpNew, List::UdpEstablished, List::TcpEstablished];
        // The rest keep anomalies at most.
        let others = [List::TcpNew, List::OtherNew, List::OtherEstablished, List::Blocked];
        holders.into_iter().chain(others).find_map(|list| self.oldest(list, spared))
    }

    /// The flow at the front of a list, or behind the one that is spared.
    fn oldest(&self, list: List, spared: u32) -> Option<u32> {
        let head = self.ends[list as usize].head;
        let first = if head == spared && head != NONE { self.links[head as usize].next } else { head };
        (first != NONE).then_some(first)
    }

    fn move_to(&mut self, slot: u32, list: List, now_ns: u64) {
        self.unlink(slot);
        let links = &mut self.links[slot as usize];
        links.list = list;
        links.moved_ns = now_ns;
        self.append(slot);
    }

    fn append(&mut self, slot: u32) {
        let list = self.links[slot as usize].list as usize;
        let tail = std::mem::replace(&mut self.ends[list].tail, slot);
        self.links[slot as usize].prev = tail;
        self.links[slot as usize].next = NONE;
        match tail {
            NONE => self.ends[list].head = slot,
            tail => self.links[tail as usize].next = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Links { prev, next, list, .. } = self.links[slot as usize];
        match prev {
            NONE => self.ends[list as usize].head = next,
            prev => self.links[prev as usize].next = next,
        }
        match next {
            NONE => self.ends[list as usize].tail = prev,
            next => self.links[next as usize].prev = prev,
        }
    }
}
