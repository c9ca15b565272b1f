//! The inspector: packets in, flows and what they say out.

use std::net::SocketAddr;
use std::sync::Arc;

use super::app::{App, Feed, Protocols, Upper};
use super::community_id::icmp_ports;
use super::defrag::Defrag;
use super::entry::Entry;
use super::expect::Expectations;
use super::fold::Folds;
use super::history::History;
use super::limits::{Checksums, Limits, SECOND_NS};
use super::reassembly::{Room, Sink};
use super::stats::Stats;
use super::table::{FLOWS_MAX, Key, Table};
use super::tcp::{Arrival, Next, Tcp};
use super::{Direction, EndReason, Flow, Link, PacketMeta, State, Watcher};
use crate::packet::frame::{self, Checksum, Content, Datagram, Frame, Malformed, Segment, Unread, protocol, tcp_flag};
use crate::packet::proto::ftp::Transfer;
use crate::packet::proto::{AppProto, Out, Side, datagram_parser_for, detect, parser_for};

/// Flows that are evicted for one packet's memory at most.
const EVICTIONS_MAX: usize = 16;
/// How often packets look for flows that timed out, in nanoseconds.
const EXPIRE_NS: u64 = SECOND_NS;

/// Owns the flows of one worker.
pub struct Inspector {
    limits: Limits,
    protocols: Protocols,
    table: Table,
    defrag: Defrag,
    history: History,
    expectations: Expectations,
    /// Anomalies of packets without a flow.
    folds: Folds,
    out: Out,
    named: Vec<(u64, Arc<Transfer>)>,
    stats: Stats,
    /// Bytes of out-of-order data.
    held_total: usize,
    /// Bytes that flows keep beside their entries.
    counted: usize,
    /// The latest time that was seen: clocks of captures go back now and then.
    now_ns: u64,
    expired_ns: u64,
}

/// A packet on its way to its flow.
struct Packet<'a> {
    meta: &'a PacketMeta,
    frame: Frame<'a>,
    /// Frames that it came in, and their bytes.
    frames: (u64, u64),
}

impl Inspector {
    /// An inspector with nothing in it. The secret keys its hash tables; nothing that it tells depends on it.
    pub fn new(limits: Limits, secret: u64) -> Inspector {
        let protocols = Protocols { detect: detect::detect, begins: detect::begins, parser_for, datagram_parser_for };
        Inspector::with_protocols(limits, secret, protocols)
    }

    /// The same, with protocols of the caller's.
    pub fn with_protocols(mut limits: Limits, secret: u64, protocols: Protocols) -> Inspector {
        limits.flows_max = limits.flows_max.clamp(2, FLOWS_MAX);
        Inspector {
            table: Table::new(&limits, secret),
            defrag: Defrag::new(secret),
            history: History::new(limits.history_bytes),
            expectations: Expectations::default(),
            folds: Folds::default(),
            out: Out::default(),
            named: Vec::new(),
            stats: Stats::default(),
            held_total: 0,
            counted: 0,
            now_ns: 0,
            expired_ns: 0,
            limits,
            protocols,
        }
    }

    /// Takes a packet.
    pub fn packet(&mut self, link: Link, meta: &PacketMeta, bytes: &[u8], watcher: &mut dyn Watcher) {
        self.now_ns = self.now_ns.max(meta.time_ns);
        if self.now_ns - self.expired_ns >= EXPIRE_NS {
            self.expire(watcher);
        }
        self.stats.packets += 1;
        self.stats.bytes += bytes.len() as u64;
        self.stats.unseen_packets += meta.unseen.0;
        self.stats.unseen_bytes += meta.unseen.1;
        match frame::decode(link, meta.vlans, bytes) {
            Ok(frame) => self.frame(Packet { meta, frame, frames: (1, bytes.len() as u64) }, watcher),
            Err(unread) => self.unread(unread, watcher),
        }
    }

    /// Lets time pass: ends flows that were silent for too long.
    pub fn tick(&mut self, now_ns: u64, watcher: &mut dyn Watcher) {
        self.now_ns = self.now_ns.max(now_ns);
        self.expire(watcher);
    }

    /// The end: all flows end, in the order of their ids.
    pub fn finish(&mut self, watcher: &mut dyn Watcher) {
        let mut ids: Vec<u64> = self.table.iter().map(|entry| entry.flow.id).collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(slot) = self.table.slot_of(id) {
                let is_over = self.table.get(slot).is_some_and(|entry| entry.is_over);
                self.end(slot, if is_over { EndReason::Closed } else { EndReason::Shutdown }, watcher);
            }
        }
        for anomaly in self.folds.rest() {
            watcher.anomaly(None, &anomaly);
        }
    }

    /// What was counted so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Bytes that it keeps, all in all.
    pub fn memory(&self) -> usize {
        let tables = self.table.memory() + self.defrag.memory() + self.expectations.memory();
        tables + self.history.memory() + self.folds.memory() + self.counted
    }

    /// Bytes of streams, parsers and undecided beginnings.
    pub fn reassembly_memory(&self) -> usize {
        self.counted
    }

    /// The flows that there are, in no order.
    pub fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.table.iter().map(|entry| &entry.flow)
    }

    /// Notes that a flow is blocked: it is not inspected any more. Says whether it is there.
    pub fn block(&mut self, id: u64) -> bool {
        let Some(slot) = self.table.slot_of(id) else { return false };
        if let Some(entry) = self.table.get_mut(slot) {
            self.stats.blocked += u64::from(!entry.flow.is_blocked);
            entry.flow.is_blocked = true;
            entry.ignore(&mut self.held_total);
        }
        self.table.touch(slot, self.now_ns);
        self.recount(slot);
        true
    }

    /// Notes that a connection was reset, by whoever refused it: what comes next between its ends is another one.
    pub fn reset(&mut self, id: u64) {
        let Some(slot) = self.table.slot_of(id) else { return };
        if let Some(entry) = self.table.get_mut(slot) {
            entry.is_over = true;
            entry.flow.state = State::Closed;
        }
        self.table.touch(slot, self.now_ns);
    }

    fn unread(&mut self, unread: Unread, watcher: &mut dyn Watcher) {
        match unread {
            Unread::NotIp => self.stats.not_ip += 1,
            Unread::Cut => self.stats.cut += 1,
            Unread::Malformed(what) => {
                self.stats.malformed += 1;
                self.odd(None, "decode", what.name(), None, watcher);
            }
        }
    }

    /// Notes an anomaly of a flow, or of none.
    fn odd(
        &mut self,
        slot: Option<u32>,
        layer: &'static str,
        name: &'static str,
        side: Option<Side>,
        watcher: &mut dyn Watcher,
    ) {
        let entry = slot.and_then(|slot| self.table.get_mut(slot));
        let (flow, folds) = match entry {
            Some(entry) => (Some(&entry.flow), &mut entry.folds),
            None => (None, &mut self.folds),
        };
        if let Some(anomaly) = folds.note(layer, name, side, self.now_ns, &mut self.stats) {
            watcher.anomaly(flow, &anomaly);
        }
    }

    fn frame(&mut self, packet: Packet<'_>, watcher: &mut dyn Watcher) {
        let Content::Fragment(fragment) = packet.frame.content else {
            return self.whole(packet, watcher);
        };
        self.stats.fragments += 1;
        for what in packet.frame.oddities.iter() {
            self.odd(None, "decode", what.name(), None, watcher);
        }
        if let Checksum::Bad(what) = packet.frame.ip.checksum
            && self.limits.check_checksums != Checksums::Trust
        {
            self.stats.bad_checksums += 1;
            return self.odd(None, "decode", what.name(), None, watcher);
        }
        let len = packet.frames.1 as usize;
        let outcome = self.defrag.take(&packet.frame, &fragment, len, self.now_ns, &self.limits, &mut self.stats);
        if let Some(name) = outcome.odd {
            self.odd(None, "decode", name, None, watcher);
        }
        let Some(whole) = outcome.whole else { return };
        match frame::resume(whole.ip, whole.protocol, &whole.payload) {
            // Only one that carries another IP header can be a fragment again, and their depth is bounded.
            Ok(frame) => {
                let others = packet.frames.0 - 1;
                let frames = (whole.packets + others, whole.bytes);
                self.frame(Packet { meta: packet.meta, frame, frames }, watcher);
            }
            Err(unread) => self.unread(unread, watcher),
        }
    }

    /// A packet that is no fragment.
    fn whole(&mut self, packet: Packet<'_>, watcher: &mut dyn Watcher) {
        let key = key_of(&packet.frame);
        let mut found = self.table.find(&key);
        if let Some((slot, _)) = found
            && self.table.is_expired(slot, &self.limits, self.now_ns)
        {
            self.end(slot, EndReason::Timeout, watcher);
            found = None;
        }
        // A packet that its receiver will throw away makes no flow.
        if let Some(what) = self.refusal(found, &packet.frame) {
            self.stats.bad_checksums += 1;
            let side = found.map(|(_, side)| side);
            return self.odd(found.map(|(slot, _)| slot), "decode", what.name(), side, watcher);
        }
        let (slot, side) = match found {
            Some(found) => found,
            None => self.begin(&key, &packet, None, watcher),
        };
        for what in packet.frame.oddities.iter() {
            self.odd(Some(slot), "decode", what.name(), Some(side), watcher);
        }
        self.count(slot, side, &packet);
        let next = match packet.frame.content {
            Content::Tcp(segment) => self.segment(slot, side, &packet, segment, watcher),
            Content::Udp(datagram) => {
                self.datagram(slot, side, datagram, watcher);
                Next::Done
            }
            _ => {
                if let Some(entry) = self.table.get_mut(slot) {
                    entry.hear(side);
                }
                Next::Done
            }
        };
        match next {
            Next::Done => self.settle(slot, goes_on(&packet.frame.content), watcher),
            Next::Restart { syn } => {
                self.end(slot, EndReason::Closed, watcher);
                let (slot, side) = self.begin(&key, &packet, syn, watcher);
                self.count(slot, side, &packet);
                if let Content::Tcp(segment) = packet.frame.content {
                    self.segment(slot, side, &packet, segment, watcher);
                }
                self.settle(slot, true, watcher);
            }
        }
    }

    /// What is wrong with a packet's checksum, if it must not be used.
    fn refusal(&mut self, found: Option<(u32, Side)>, frame: &Frame<'_>) -> Option<Malformed> {
        let checksum = frame.ip.checksum;
        let entry = found.and_then(|(slot, side)| Some((self.table.get_mut(slot)?, side)));
        let may_be_offloaded = entry.is_none_or(|(entry, side)| entry.may_be_offloaded(side, checksum));
        match (checksum, self.limits.check_checksums) {
            (Checksum::Bad(what) | Checksum::Owed(what), Checksums::Verify) => Some(what),
            (Checksum::Bad(what), Checksums::Auto) if !may_be_offloaded => Some(what),
            _ => None,
        }
    }

    /// Makes a flow for a packet. `syn` is the number of the SYN that it answers.
    fn begin(&mut self, key: &Key, packet: &Packet<'_>, syn: Option<u32>, watcher: &mut dyn Watcher) -> (u32, Side) {
        while self.table.len() >= self.limits.flows_max as usize {
            let Some(victim) = self.table.next_victim(u32::MAX) else { break };
            if let Some(entry) = self.table.get(victim) {
                let counter = match (entry.is_over, entry.flow.state) {
                    (true, _) => &mut self.stats.flows_evicted_closed,
                    (false, State::New) => &mut self.stats.flows_evicted_new,
                    (false, _) => &mut self.stats.flows_evicted_established,
                };
                *counter += 1;
            }
            self.end(victim, EndReason::Evicted, watcher);
        }
        let (is_answer, is_midstream) = match packet.frame.content {
            Content::Tcp(segment) => {
                let is_syn = segment.has(tcp_flag::SYN);
                let is_answer = is_syn && segment.has(tcp_flag::ACK);
                (is_answer, !is_syn || is_answer && syn.is_none())
            }
            _ => (false, false),
        };
        let side = if is_answer { Side::Server } else { Side::Client };
        let (client, server) = if is_answer { (key.destination, key.source) } else { (key.source, key.destination) };
        let meta = packet.meta;
        let flow = Flow {
            id: 0,
            protocol: key.protocol,
            client,
            server,
            vlans: key.vlans,
            ifindex: meta.ifindex,
            direction: meta.direction,
            start_ns: meta.time_ns,
            last_ns: self.now_ns,
            packets: [0; 2],
            bytes: [0; 2],
            arrived: [false; 2],
            left: [false; 2],
            gap_bytes: [0; 2],
            app_proto: None,
            state: State::New,
            tcp_flags: [0; 2],
            next_seq: [0; 2],
            is_midstream,
            is_answered: false,
            is_finished: false,
            is_tunnelled: key.depth > 0,
            is_blocked: false,
            socket_cookie: meta.socket_cookie,
            cgroup_id: meta.cgroup_id,
        };
        let mut entry = Entry::new(flow, key.depth);
        if let Some(isn) = syn {
            let end = &mut entry.ends[side.other() as usize];
            end.has_syn = true;
            end.is_synced = true;
            end.isn = isn;
            end.next = isn.wrapping_add(1);
        }
        entry.may_be_offloaded(side, packet.frame.ip.checksum);
        self.stats.flows += 1;
        let slot = self.table.insert(entry, self.now_ns);
        self.expect(slot);
        (slot, side)
    }

    /// Whether a new flow was announced.
    fn expect(&mut self, slot: u32) {
        let Some(entry) = self.table.get_mut(slot).filter(|entry| entry.flow.protocol == protocol::TCP) else { return };
        let flow = &mut entry.flow;
        let met = self.expectations.meet(&(flow.client.ip(), flow.server), flow.id, self.now_ns, &mut self.stats);
        if let Some(transfer) = met {
            flow.app_proto = Some(AppProto::FtpData);
            entry.app = App::FtpData { transfer, is_told: false };
        }
    }

    /// Counts a packet in its flow.
    fn count(&mut self, slot: u32, side: Side, packet: &Packet<'_>) {
        let Some(entry) = self.table.get_mut(slot) else { return };
        let flow = &mut entry.flow;
        let (frames, meta) = (packet.frames, packet.meta);
        flow.packets[side as usize] += frames.0 + meta.unseen.0;
        flow.bytes[side as usize] += frames.1 + meta.unseen.1;
        match meta.direction {
            Direction::Ingress => flow.arrived[side as usize] = true,
            Direction::Egress => flow.left[side as usize] = true,
        }
        flow.last_ns = self.now_ns;
        if flow.socket_cookie == 0 {
            flow.socket_cookie = meta.socket_cookie;
        }
        if flow.cgroup_id == 0 {
            flow.cgroup_id = meta.cgroup_id;
        }
        if let Content::Tcp(segment) = packet.frame.content {
            flow.tcp_flags[side as usize] |= segment.flags;
        }
    }

    /// The entry of a flow, with what works on it.
    fn at_work<'a>(
        &'a mut self,
        slot: u32,
        watcher: &'a mut dyn Watcher,
    ) -> Option<(&'a mut Entry, Room<'a>, Upper<'a>)> {
        let entry = self.table.get_mut(slot)?;
        let room = Room {
            limits: &self.limits,
            history: &mut self.history,
            stats: &mut self.stats,
            held_total: &mut self.held_total,
        };
        let upper = Upper {
            limits: &self.limits,
            protocols: self.protocols,
            out: &mut self.out,
            expectations: &mut self.expectations,
            named: &mut self.named,
            watcher,
            now_ns: self.now_ns,
        };
        Some((entry, room, upper))
    }

    fn segment(
        &mut self,
        slot: u32,
        side: Side,
        packet: &Packet<'_>,
        segment: Segment<'_>,
        watcher: &mut dyn Watcher,
    ) -> Next {
        let (has_unseen, unseen_bytes) = (packet.meta.unseen.0 > 0, packet.meta.unseen.1);
        let mut arrival = Arrival { segment, side, ttl: packet.frame.ip.ttl, unseen_bytes, has_unseen };
        let Some((entry, mut room, mut upper)) = self.at_work(slot, watcher) else { return Next::Done };
        Tcp { entry, room: &mut room, upper: &mut upper }.take(&mut arrival)
    }

    fn datagram(&mut self, slot: u32, side: Side, datagram: Datagram<'_>, watcher: &mut dyn Watcher) {
        let Some((entry, room, mut upper)) = self.at_work(slot, watcher) else { return };
        entry.hear(side);
        if datagram.payload.is_empty() {
            return;
        }
        let (flow, app, folds) = (&mut entry.flow, &mut entry.app, &mut entry.folds);
        let mut feed = Feed { flow, app, folds, side, is_swapped: false, upper: &mut upper };
        feed.data(datagram.payload, room.stats);
        if feed.is_swapped {
            entry.swap_ends();
        }
        if entry.flow.is_blocked {
            entry.app = App::Ignored;
        }
    }

    /// After a packet: a blocked flow that goes on is told, the flow goes to its list, and what it keeps is counted.
    fn settle(&mut self, slot: u32, goes_on: bool, watcher: &mut dyn Watcher) {
        if let Some(entry) = self.table.get_mut(slot)
            && entry.flow.is_blocked
            && goes_on
        {
            entry.flow.is_blocked = watcher.blocked_packet(&entry.flow);
        }
        self.table.touch(slot, self.now_ns);
        self.recount(slot);
        while let Some((id, transfer)) = self.named.pop() {
            self.rename(id, transfer);
        }
        if self.counted <= self.limits.memory_max {
            return;
        }
        for _ in 0..EVICTIONS_MAX {
            let Some(victim) = self.table.next_holder(slot) else { break };
            self.stats.flows_evicted_memory += 1;
            self.end(victim, EndReason::Evicted, watcher);
            if self.counted <= self.limits.memory_max {
                return;
            }
        }
        if let Some(entry) = self.table.get_mut(slot) {
            self.stats.memory_refused += 1;
            entry.ignore(&mut self.held_total);
        }
        self.recount(slot);
    }

    fn recount(&mut self, slot: u32) {
        if let Some(entry) = self.table.get_mut(slot) {
            let now = entry.memory();
            self.counted = self.counted - entry.counted + now;
            entry.counted = now;
        }
    }

    /// The control connection named the file of a data connection that is open already.
    fn rename(&mut self, id: u64, transfer: Arc<Transfer>) {
        let Some(entry) = self.table.slot_of(id).and_then(|slot| self.table.get_mut(slot)) else { return };
        if let App::FtpData { transfer: old, is_told: false } = &mut entry.app
            && !entry.is_over
        {
            *old = transfer;
        }
    }

    fn expire(&mut self, watcher: &mut dyn Watcher) {
        self.expired_ns = self.now_ns;
        while let Some(slot) = self.table.next_expired(&self.limits, self.now_ns) {
            self.end(slot, EndReason::Timeout, watcher);
        }
        self.defrag.expire(self.now_ns, &self.limits, &mut self.stats);
    }

    /// Ends a flow: tells what is not told yet, then that it ended.
    fn end(&mut self, slot: u32, why: EndReason, watcher: &mut dyn Watcher) {
        if let Some((entry, mut room, mut upper)) = self.at_work(slot, watcher) {
            // Closed: the packet at hand begins the next connection, which must not suffer for this one.
            entry.flow.is_finished |= why == EndReason::Closed;
            Tcp { entry, room: &mut room, upper: &mut upper }.finish();
            let (flow, app, folds) = (&mut entry.flow, &mut entry.app, &mut entry.folds);
            Feed { flow, app, folds, side: Side::Client, is_swapped: false, upper: &mut upper }.finish(room.stats);
            entry.ignore(room.held_total);
        }
        let Some(mut entry) = self.table.remove(slot) else { return };
        self.counted -= entry.counted;
        for anomaly in entry.folds.rest() {
            watcher.anomaly(Some(&entry.flow), &anomaly);
        }
        // A closed flow stays for late packets until it times out.
        let why = if why == EndReason::Timeout && entry.is_over { EndReason::Closed } else { why };
        match why {
            EndReason::Closed => self.stats.flows_closed += 1,
            EndReason::Timeout => self.stats.flows_timed_out += 1,
            EndReason::Evicted | EndReason::Shutdown => {}
        }
        watcher.ended(&entry.flow, why);
    }
}

/// Whether a packet shows that its flow goes on, and does not only open another connection between the same ports, or end
/// this one.
fn goes_on(content: &Content<'_>) -> bool {
    match content {
        Content::Tcp(segment) if segment.has(tcp_flag::RST) => false,
        Content::Tcp(segment) if segment.has(tcp_flag::SYN) && !segment.has(tcp_flag::ACK) => {
            segment.payload.len() + segment.missing > 0
        }
        _ => true,
    }
}

/// What tells a packet's flow from others.
fn key_of(frame: &Frame<'_>) -> Key {
    let (source, destination) = match frame.content {
        Content::Tcp(segment) => (segment.source, segment.destination),
        Content::Udp(datagram) => (datagram.source, datagram.destination),
        Content::Icmp { kind, code } => {
            let (source, destination, _) = icmp_ports(frame.protocol, kind, code);
            (source, destination)
        }
        Content::Fragment(_) | Content::Other => (0, 0),
    };
    Key {
        source: SocketAddr::new(frame.ip.source, source),
        destination: SocketAddr::new(frame.ip.destination, destination),
        protocol: frame.protocol,
        vlans: frame.ip.vlans,
        depth: frame.ip.depth,
    }
}
