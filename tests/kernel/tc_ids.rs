//! tc_ids: what is recorded of each flow and direction, what is only counted, and that nothing is lost uncounted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ebpfsentinel::abi::{ids_count, ids_limits, ids_loss};
use ebpfsentinel::bpf::tc_ids::{self, Arrival, DirectionKey, FRAME_MAX, Options, Sampling, TcIds};
use ebpfsentinel::bpf::{attach, has_packet_cgroups, offload};
use ebpfsentinel::flow::Direction;
use ebpfsentinel::lab::{FrameSocket, Namespace, connect};
use ebpfsentinel::packet::build::Packet;
use ebpfsentinel::packet::proto::AppProto;
use libbpf_rs::{MapHandle, RingBufferBuilder};

use crate::support::random::Random;

pub const TCX_NEXT: u32 = u32::MAX;
pub const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];
pub const FAMILIES: [(&str, &str); 2] = [("10.0.0.1", "10.0.9.2"), ("2001:db8::1", "2001:db8:9::2")];

const SYN: u8 = 2;
const FIN_ACK: u8 = 17;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A record, copied out of the ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub frame: Vec<u8>,
    pub length: usize,
    pub unseen: (u64, u64),
    pub time_ns: u64,
    pub pair: u32,
    pub vlans: [u16; 2],
    pub direction: Direction,
    pub ifindex: u32,
    pub signature: Option<AppProto>,
    pub lost: bool,
    pub headers: bool,
    pub truncated: bool,
    pub no_flow: bool,
    pub cookie: u64,
    pub cgroup: u64,
}

/// All records that wait in a ring buffer.
pub fn records(events: &MapHandle) -> Vec<Told> {
    let mut all = Vec::new();
    let mut builder = RingBufferBuilder::new();
    let take = |bytes: &[u8]| {
        let record = tc_ids::decode(bytes).expect("a record of tc_ids");
        let meta = record.meta(0);
        all.push(Told {
            frame: record.frame.to_vec(),
            length: record.length() as usize,
            unseen: meta.unseen,
            time_ns: meta.time_ns,
            pair: record.pair_hash(),
            vlans: meta.vlans,
            direction: meta.direction,
            ifindex: meta.ifindex,
            signature: record.signature(),
            lost: record.has_lost(),
            headers: record.is_headers_only(),
            truncated: record.is_truncated(),
            no_flow: record.has_no_flow(),
            cookie: meta.socket_cookie,
            cgroup: meta.cgroup_id,
        });
        0
    };
    builder.add(events, take).unwrap();
    let ring = builder.build().unwrap();
    ring.consume().unwrap();
    drop(ring);
    all
}

/// Few flows, and a small ring: one that is read for each packet is mapped for each packet.
pub fn small() -> Options<'static> {
    Options { max_flows: 1024, ring_bytes: 64 << 10, ..Options::default() }
}

pub struct Ids {
    pub kernel: TcIds,
    pub events: MapHandle,
}

impl Ids {
    pub fn new(options: &Options<'_>) -> Ids {
        let kernel = TcIds::load(options).expect("loading tc_ids");
        let events = kernel.events().unwrap();
        Ids { kernel, events }
    }

    /// With a budget, few flows, and a clock that packets bring along.
    fn replay(stream_depth: u64, udp_packets: u32) -> Ids {
        Ids::new(&Options { stream_depth, udp_packets, is_replay: true, ..small() })
    }

    fn at(&self, direction: Direction, frame: &[u8], time_ns: u64) -> Vec<Told> {
        let arrival = Arrival { time_ns, ..Arrival::default() };
        let ran = self.kernel.test_run(direction, frame, &arrival, 1).unwrap();
        assert_eq!(ran.action, TCX_NEXT);
        self.records()
    }

    /// Lets a frame pass, and says what is told of it.
    fn pass(&self, direction: Direction, frame: &[u8]) -> Vec<Told> {
        self.at(direction, frame, 1_000_000_000)
    }

    fn records(&self) -> Vec<Told> {
        records(&self.events)
    }

    pub fn count(&self, direction: Direction) -> ids_count {
        self.kernel.counts().unwrap()[usize::from(direction == Direction::Egress)]
    }

    /// Every packet is counted as one thing.
    pub fn check_sums(&self) {
        for direction in BOTH {
            let count = self.count(direction);
            let sum = count.records
                + count.lost.iter().sum::<u64>()
                + count.past_budget
                + count.sampled_out
                + count.twice
                + count.blocked_flow
                + count.blocked_address;
            assert_eq!(count.packets, sum, "{direction:?}: {count:?}");
        }
    }
}

pub fn key(src: &str, dst: &str, ports: (u16, u16), protocol: u8, vlans: [u16; 2]) -> DirectionKey {
    let end = |address: &str, port| SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    DirectionKey { src: end(src, ports.0), dst: end(dst, ports.1), protocol, vlans }
}

/// How a record is told in a line: whole, or headers only; and what was unseen before.
fn line(told: &[Told], frame: &[u8]) -> String {
    match told {
        [] => "-".to_owned(),
        [one] => {
            assert_eq!(one.length, frame.len());
            assert_eq!(one.frame, frame[..one.frame.len()]);
            assert!(one.headers || one.frame.len() == frame.len(), "{one:?}");
            let what = if one.headers { format!("headers {}", one.frame.len()) } else { "whole".to_owned() };
            format!("{what} {} {}", one.unseen.0, one.unseen.1)
        }
        more => panic!("{} records of one packet", more.len()),
    }
}

#[test]
fn a_budget_of_tcp_is_bytes_of_payload_and_ends_are_told_past_it() {
    for direction in BOTH {
        let ids = Ids::replay(1000, 1);
        for (here, there) in FAMILIES {
            let tcp = || Packet::new().between(here, there).tcp(5000, 80);
            let data = || tcp().flags(ACK).payload(&[b'x'; 400]).tcp_options(&[1; 12]);
            let size = data().build().len();
            let bare = data().payload(&[]).build().len();
            let two = format!("2 {}", 2 * size);
            for (what, packet, expected) in [
                ("opens", tcp(), "whole 0 0".to_owned()),
                ("within", data(), "whole 0 0".to_owned()),
                ("within", data(), "whole 0 0".to_owned()),
                ("the last one goes beyond", data(), "whole 0 0".to_owned()),
                ("past", data(), "-".to_owned()),
                ("past", data(), "-".to_owned()),
                ("an end", data().flags(FIN_ACK), format!("headers {bare} {two}")),
                ("past", data(), "-".to_owned()),
                ("an abort", data().flags(RST), format!("headers {bare} 1 {size}")),
                ("opens anew", tcp(), "whole 0 0".to_owned()),
                ("within", data(), "whole 0 0".to_owned()),
            ] {
                let frame = packet.build();
                assert_eq!(line(&ids.pass(direction, &frame), &frame), expected, "{what}: {here} {direction:?}");
            }
            let counts = ids.kernel.direction(&key(here, there, (5000, 80), 6, [0; 2])).expect("an entry");
            assert_eq!((counts.packets, counts.unseen_packets), (11, 0));
            assert_eq!(counts.spent, 400);
            // The other direction has spent nothing.
            let back = Packet::new().between(there, here).tcp(80, 5000).flags(ACK).payload(&[b'y'; 400]).build();
            assert_eq!(line(&ids.pass(direction, &back), &back), "whole 0 0");
            assert_eq!(ids.kernel.direction(&key(there, here, (80, 5000), 6, [0; 2])).unwrap().spent, 400);
            assert_eq!(ids.kernel.direction(&key(there, here, (80, 5001), 6, [0; 2])), None);
        }
        ids.check_sums();
    }
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn a_budget_of_udp_is_packets_and_comes_back_after_a_silence() {
    for direction in BOTH {
        let ids = Ids::replay(1000, 3);
        for (here, there) in FAMILIES {
            let frame = Packet::new().between(here, there).udp(5000, 53).payload(&[7; 30]).build();
            let headers = frame.len() - 30;
            for (at_s, expected) in [
                (1, "whole 0 0".to_owned()),
                (2, "whole 0 0".to_owned()),
                (3, "whole 0 0".to_owned()),
                (4, "-".to_owned()),
                (12, "-".to_owned()),
                (14, format!("headers {headers} 2 {}", 2 * frame.len())),
                (15, "-".to_owned()),
                (74, format!("headers {headers} 1 {}", frame.len())),
                (135, "whole 0 0".to_owned()),
                (136, "whole 0 0".to_owned()),
                (137, "whole 0 0".to_owned()),
                (138, "-".to_owned()),
            ] {
                let told = ids.at(direction, &frame, at_s * SECOND);
                assert_eq!(line(&told, &frame), expected, "{here} at {at_s} s");
                assert!(told.iter().all(|one| one.time_ns == at_s * SECOND && one.direction == direction));
            }
        }
        ids.check_sums();
    }
}

#[test]
fn acknowledgements_have_a_budget_of_their_own() {
    const DEPTH: u64 = 4096;
    let ids = Ids::replay(DEPTH, 1);
    let most = tc_ids::empty_packets(DEPTH);
    assert_eq!(most, 20);
    let frame = Packet::new().between("10.0.0.1", "10.0.0.2").tcp(1, 2).flags(ACK).build();
    let told = (0..most + 5).map(|_| ids.pass(Direction::Ingress, &frame).len() as u64).sum::<u64>();
    assert_eq!(told, most);
    let data = Packet::new().between("10.0.0.1", "10.0.0.2").tcp(1, 2).flags(ACK).payload(&[1; 9]).build();
    assert_eq!(line(&ids.pass(Direction::Ingress, &data), &data), format!("whole 5 {}", 5 * frame.len()));
}

/// What the rules of include/flow_budget.h make of a direction, written down anew.
#[derive(Default)]
struct Model {
    is_known: bool,
    spent: u64,
    empty: u64,
    last: u32,
    told: u32,
    unseen: (u64, u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Other,
    Free,
}

impl Model {
    /// What is told of a packet: whether it is whole, and what was unseen before.
    fn pass(&mut self, kind: Kind, flags: u8, payload: u64, bytes: u64, now: u32) -> Option<(bool, (u64, u64))> {
        const DEPTH: u64 = 2000;
        const PACKETS: u64 = 4;
        let ticks = |secs: u64| ((secs * SECOND) >> ids_limits::IDS_REPLAY_TICK_SHIFT.0) as u32;
        if !self.is_known {
            *self = Model { is_known: true, last: now, told: now, ..Model::default() };
        }
        let anew = match kind {
            Kind::Tcp => flags & SYN != 0,
            Kind::Other => now.wrapping_sub(self.last) >= ticks(60),
            Kind::Free => false,
        };
        if anew {
            (self.spent, self.empty) = (0, 0);
        }
        self.last = now;
        let within = match kind {
            Kind::Tcp if payload > 0 => self.spent < DEPTH,
            Kind::Tcp => self.empty < tc_ids::empty_packets(DEPTH),
            Kind::Other => self.spent < PACKETS,
            Kind::Free => true,
        };
        if !within && flags & (SYN | 1 | RST) == 0 && now.wrapping_sub(self.told) < ticks(10) {
            self.unseen = (self.unseen.0 + 1, self.unseen.1 + bytes);
            return None;
        }
        if within {
            match kind {
                Kind::Tcp if payload > 0 => self.spent += payload,
                Kind::Tcp => self.empty += 1,
                Kind::Other => self.spent += 1,
                Kind::Free => {}
            }
        }
        self.told = now;
        Some((within, std::mem::take(&mut self.unseen)))
    }
}

#[test]
fn budgets_are_kept_as_a_plain_model_keeps_them() {
    let ids = Ids::replay(2000, 4);
    let mut random = Random::new(41);
    let mut models: BTreeMap<String, Model> = BTreeMap::new();
    let mut now = SECOND;
    let (mut whole, mut headers, mut silent) = (0, 0, 0);
    for step in 0..8000 {
        now += match random.below(400) {
            0 => 70 * SECOND,
            1..4 => 11 * SECOND,
            _ => 5_000_000,
        };
        let (here, there) = random.pick(&FAMILIES);
        let (here, there) = if random.chance(50) { (here, there) } else { (there, here) };
        let mut packet = Packet::new().between(here, there);
        let vlan = random.pick(&[0u16, 0, 0, 7]);
        if vlan != 0 {
            packet = packet.vlan(vlan);
        }
        let inner = random.pick(&[0u16, 0, 8]);
        if vlan != 0 && inner != 0 {
            packet = packet.vlan(inner);
        }
        let payload = random.pick(&[0usize, 0, 1, 300, 600]);
        let flags = random.pick(&[ACK, ACK, ACK, ACK, ACK, ACK, ACK, ACK, SYN, SYN | ACK, FIN_ACK, RST]);
        let port = 80;
        let (what, kind, flags, packet) = match random.below(10) {
            0..5 => ("tcp", Kind::Tcp, flags, packet.tcp(port, 9).flags(flags)),
            5..8 => ("udp", Kind::Other, 0, packet.udp(port, 9)),
            8 => ("icmp", Kind::Other, 0, packet.ping(port, 1)),
            _ => ("vxlan", Kind::Free, 0, packet.udp(port, 4789)),
        };
        let frame = packet.payload(&vec![3; payload]).build();
        let port = if what == "icmp" { 0 } else { port };
        let name = format!("{what} {here} {there} {port} {vlan} {}", if vlan != 0 { inner } else { 0 });
        let model = models.entry(name.clone()).or_default();
        let tick = (now >> ids_limits::IDS_REPLAY_TICK_SHIFT.0) as u32;
        let expected = model.pass(kind, flags, payload as u64, frame.len() as u64, tick);
        let direction = random.pick(&BOTH);
        let told = ids.at(direction, &frame, now);
        let got = told.first().map(|one| (!one.headers, one.unseen));
        assert_eq!(got, expected, "step {step}: {name}, flags {flags}, {payload} bytes at {now}");
        for one in &told {
            let length = if one.headers && what != "icmp" { frame.len() - payload } else { one.frame.len() };
            assert_eq!((one.length, one.frame.len(), &one.frame[..]), (frame.len(), length, &frame[..length]));
        }
        *(match expected {
            Some((true, _)) => &mut whole,
            Some((false, _)) => &mut headers,
            None => &mut silent,
        }) += 1;
    }
    assert!([whole, headers, silent].iter().all(|&seen| seen > 300), "{whole} {headers} {silent}");
    let counts = ids.kernel.counts().unwrap();
    let sum = |of: fn(&ids_count) -> u64| of(&counts[0]) + of(&counts[1]);
    assert_eq!((sum(|one| one.records), sum(|one| one.past_budget)), (whole + headers, silent));
    assert_eq!(sum(|one| one.made), models.len() as u64);
    ids.check_sums();
}

#[test]
fn what_has_no_flow_or_no_budget_is_recorded_whole() {
    let ids = Ids::replay(0, 0);
    for (here, there) in FAMILIES {
        let packet = || Packet::new().between(here, there);
        let mut pairs = Vec::new();
        let tunnels = [4, 41, 47].map(|protocol| packet().protocol(protocol).payload(&[0; 60]).build());
        let fragments = packet().udp(1, 2).payload(&[5; 900]).fragments(9, 400);
        let vxlan = packet().udp(1, 4789).payload(&[0; 60]).build();
        for frame in tunnels.into_iter().chain(fragments).chain([vxlan]) {
            for _ in 0..3 {
                let told = ids.pass(Direction::Ingress, &frame);
                assert_eq!(line(&told, &frame), "whole 0 0", "{frame:02x?}");
                assert!(!told[0].no_flow);
                pairs.push(told[0].pair);
            }
        }
        let short = packet().tcp(1, 2).truncate(60).data_offset(1).build();
        let told = ids.pass(Direction::Ingress, &short);
        assert_eq!(line(&told, &short), "whole 0 0");
        assert!(told[0].no_flow);
        pairs.push(told[0].pair);
        let back = Packet::new().between(there, here).tcp(7, 8).build();
        pairs.push(ids.pass(Direction::Egress, &back)[0].pair);
        assert!(pairs.iter().all(|&pair| pair == pairs[0]), "all between two hosts meet: {pairs:?}");
        // Nothing is within a budget of nothing.
        for silent in [packet().udp(1, 2), packet().tcp(1, 2).flags(ACK).payload(&[1]), packet().ping(1, 2)] {
            assert_eq!(ids.pass(Direction::Ingress, &silent.build()), []);
        }
    }
    let arp = Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build();
    assert_eq!(ids.pass(Direction::Ingress, &arp), []);
    let count = ids.count(Direction::Ingress);
    assert_eq!((count.no_flow, count.packets), (2, 2 * (3 * 3 + 3 * 3 + 3 + 1 + 3)));
    ids.check_sums();
}

/// With a full ring, what was produced is what was delivered and what was counted as lost, and flows say that they lost.
#[test]
fn every_loss_is_counted_and_told() {
    const PRODUCED: u64 = 2000;
    let ids = Ids::new(&Options { udp_packets: u32::MAX, ring_bytes: 4096, max_flows: 64, ..Options::default() });
    let frame = |port| Packet::new().between("10.0.0.1", "10.0.0.2").udp(port, 2).payload(&[1; 22]).build();
    let one = frame(1);
    assert_eq!(one.len(), 64);
    let run = |frame: &[u8], repeat| {
        ids.kernel.test_run(Direction::Ingress, frame, &Arrival::default(), repeat).unwrap();
    };
    let lost = |why: ids_loss| ids.count(Direction::Ingress).lost[why.0 as usize];
    run(&one, PRODUCED as u32);
    let newcomer = frame(9);
    run(&newcomer, 1);
    let told = ids.records();
    // Of 4096 bytes each record takes 8 + 64 + 64.
    assert!((28..=30).contains(&told.len()), "{}", told.len());
    assert!(told.iter().all(|record| record.unseen == (0, 0) && !record.lost && record.frame == one));
    assert_eq!(told.len() as u64 + lost(ids_loss::IDS_RING_FULL), PRODUCED);
    assert_eq!((lost(ids_loss::IDS_PRESSURE), lost(ids_loss::IDS_UNREADABLE)), (1, 0));
    // The next record of each says what is missing.
    let missing = PRODUCED - told.len() as u64;
    for (frame, missing) in [(&one, missing), (&newcomer, 1)] {
        run(frame, 2);
        let told = ids.records();
        assert!(told[0].lost && !told[1].lost, "{told:?}");
        assert_eq!(told[0].unseen, (missing, missing * 64));
        assert_eq!(told[1].unseen, (0, 0));
    }
    let counts = ids.kernel.direction(&key("10.0.0.1", "10.0.0.2", (1, 2), 17, [0; 2])).unwrap();
    assert_eq!((counts.packets, counts.bytes), (PRODUCED + 2, (PRODUCED + 2) * 64));
    // At three quarters new flows stop, and known ones go on.
    run(&one, 24);
    run(&frame(10), 1);
    run(&one, 1);
    assert_eq!(lost(ids_loss::IDS_PRESSURE), 2);
    assert_eq!(ids.records().len(), 25);
    ids.check_sums();
}

#[test]
fn the_least_recently_used_entry_of_a_set_makes_room_and_is_counted() {
    // One set.
    let ids = Ids::new(&Options { udp_packets: 1, max_flows: 4, is_replay: true, ..small() });
    let pass = |port: u16, at| {
        let frame = Packet::new().between("10.0.0.1", "10.0.0.2").udp(port, 2).build();
        ids.at(Direction::Ingress, &frame, at * 10_000_000).len()
    };
    assert_eq!(pass(1000, 1), 1);
    for other in 1..=20 {
        assert_eq!(pass(other, u64::from(2 * other)), 1);
        assert_eq!(pass(1000, u64::from(2 * other + 1)), 0, "the flow that is in use stays: {other}");
    }
    let count = ids.count(Direction::Ingress);
    assert_eq!((count.made, count.evicted), (21, 21 - 8));
    // The last seven are still there, those before them are not.
    for other in 1..=20 {
        let key = key("10.0.0.1", "10.0.0.2", (other, 2), 17, [0; 2]);
        assert_eq!(ids.kernel.direction(&key).is_some(), other > 13, "{other}");
    }
}

#[test]
fn what_is_forwarded_is_looked_at_once() {
    let ids = Ids::replay(1000, 2);
    for (here, there) in FAMILIES {
        let frame = Packet::new().between(here, there).udp(1, 2).build();
        let arrival = Arrival { ifindex: 1, ..Arrival::default() };
        ids.kernel.test_run(Direction::Ingress, &frame, &arrival, 1).unwrap();
        assert_eq!(ids.records().len(), 1);
        let leaving = Arrival { ifindex: 1, ingress_ifindex: 1, ..Arrival::default() };
        ids.kernel.test_run(Direction::Egress, &frame, &leaving, 1).unwrap();
        assert_eq!(ids.records(), []);
        // From an interface that is not inspected.
        let leaving = Arrival { ifindex: 1, ingress_ifindex: 77, ..Arrival::default() };
        ids.kernel.test_run(Direction::Egress, &frame, &leaving, 1).unwrap();
        assert_eq!(ids.records().len(), 1);
    }
    assert_eq!(ids.count(Direction::Egress).twice, 2);
    ids.check_sums();
}

/// Flows of which at least one packet was recorded, of `all`, and packets that were.
fn sampled(sampling: Sampling, all: u16, each: u32) -> (usize, usize) {
    let ids = Ids::new(&Options { sampling, udp_packets: 100, max_flows: 8192, ..small() });
    let mut flows = 0;
    let mut packets = 0;
    for flow in 0..all {
        let (here, there) = FAMILIES[usize::from(flow) % 2];
        let out = Packet::new().between(here, there).udp(10_000 + flow, 53).build();
        let back = Packet::new().between(there, here).udp(53, 10_000 + flow).build();
        ids.kernel.test_run(Direction::Ingress, &out, &Arrival::default(), each).unwrap();
        ids.kernel.test_run(Direction::Egress, &back, &Arrival::default(), each).unwrap();
        let told = ids.records();
        let by = |direction| told.iter().filter(|one| one.direction == direction).count();
        if let Sampling::Hash(_) | Sampling::All = sampling {
            assert!(told.is_empty() || BOTH.iter().all(|&way| by(way) == each as usize), "half of flow {flow}");
        }
        flows += usize::from(!told.is_empty());
        packets += told.len();
    }
    let sampled_out: u64 = BOTH.iter().map(|&way| ids.count(way).sampled_out).sum();
    assert_eq!(packets as u64 + sampled_out, 2 * u64::from(each) * u64::from(all));
    ids.check_sums();
    (flows, packets)
}

#[test]
fn sampling_keeps_to_its_rate_and_by_hash_to_whole_flows() {
    for rate in [0.1, 0.5] {
        // Seven standard deviations.
        let within =
            |seen: usize, all: f64| (seen as f64 - all * rate).abs() < 7.0 * (all * rate * (1.0 - rate)).sqrt();
        let (flows, _) = sampled(Sampling::Hash(rate), 2000, 1);
        assert!(within(flows, 2000.0), "{flows} flows of 2000 at {rate}");
        let (_, packets) = sampled(Sampling::Random(rate), 50, 40);
        assert!(within(packets, 4000.0), "{packets} packets of 4000 at {rate}");
    }
    for sampling in [Sampling::Hash(0.0), Sampling::Random(0.0)] {
        assert_eq!(sampled(sampling, 50, 2), (0, 0));
    }
    for sampling in [Sampling::Hash(1.0), Sampling::Random(1.0), Sampling::All] {
        assert_eq!(sampled(sampling, 50, 2), (50, 200));
    }
}

#[test]
fn protocols_are_told_by_their_first_bytes() {
    use AppProto::{Dns, Ftp, Http, Http2, Smb, Smtp, Ssh, Tls};
    let hello = |kind| [&[22, 3, 1, 2, 0, kind, 0, 1, 252, 3, 3][..], &[9; 40]].concat();
    let smb = |magic: u8| [&[0, 0, 0, 68, magic][..], b"SMB", &[0; 64]].concat();
    let question = b"\x07example\x03com\x00\x00\x01\x00\x01";
    let dns = |flags: u16, counts: [u8; 4]| {
        let header = [&[0x12, 0x34][..], &flags.to_be_bytes(), &counts.map(|count| [0, count]).concat()].concat();
        let message = [&header[..], question].concat();
        [&(message.len() as u16).to_be_bytes()[..], &message].concat()
    };
    let cases: Vec<(Option<AppProto>, Vec<u8>)> = vec![
        (Some(Http), b"GET / HTTP/1.1\r\n".to_vec()),
        (Some(Http), b"POST /form HTTP/1.0\r\n".to_vec()),
        (Some(Http), b"HEAD / HTTP/1.1\r\n".to_vec()),
        (Some(Http), b"PUT /x HTTP/1.1\r\n".to_vec()),
        (Some(Http), b"DELETE /x HTTP/1.1\r\n".to_vec()),
        (Some(Http), b"OPTIONS * HTTP/1.1\r\n".to_vec()),
        (Some(Http), b"PATCH /x HTTP/1.1\r\n".to_vec()),
        (Some(Http), b"TRACE / HTTP/1.1\r\n".to_vec()),
        (Some(Http), b"CONNECT a:443 HTTP/1.1\r\n".to_vec()),
        (Some(Http), b"HTTP/1.1 200 OK\r\n".to_vec()),
        (Some(Http2), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12".to_vec()),
        (Some(Tls), hello(1)),
        (Some(Tls), hello(2)),
        (Some(Ssh), b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        (Some(Smtp), b"EHLO a.example\r\n".to_vec()),
        (Some(Smtp), b"HELO a\r\n".to_vec()),
        (Some(Smtp), b"220 mail.example ESMTP Postfix\r\n".to_vec()),
        (Some(Smtp), b"220-mail.example SMTP\r\n".to_vec()),
        (Some(Ftp), b"220 (vsFTPd 3.0.3)\r\n".to_vec()),
        (Some(Ftp), b"220 ProFTPD Server\r\n".to_vec()),
        (Some(Ftp), b"USER anonymous\r\n".to_vec()),
        (Some(Smb), smb(0xff)),
        (Some(Smb), smb(0xfe)),
        (Some(Smb), smb(0xfd)),
        (Some(Dns), dns(0x0100, [1, 0, 0, 0])),
        (Some(Dns), dns(0x8180, [1, 1, 0, 0])),
        (Some(Dns), dns(0x8183, [1, 0, 1, 0])),
        // Nothing that is known, or not for certain.
        (None, b"GET".to_vec()),
        (None, b"GETTER x".to_vec()),
        (None, b"220 hello\r\n250 SMTP".to_vec()),
        (None, b"221 SMTP bye\r\n".to_vec()),
        (None, b"SSH".to_vec()),
        (None, vec![22, 3, 1, 2, 0, 11, 0, 0]),
        (None, vec![22, 3, 9, 2, 0, 1, 0, 0]),
        (None, vec![23, 3, 3, 2, 0, 1, 0, 0]),
        (None, vec![0, 0, 0, 68, 0xfe, b'S', b'M', b'A']),
        (None, dns(0x2900, [1, 0, 0, 0])),
        (None, dns(0x0100, [2, 0, 0, 0])),
        (None, dns(0x0100, [1, 1, 0, 0])),
        (None, vec![0; 64]),
        (None, vec![b'A'; 400]),
    ];
    let ids = Ids::replay(1 << 20, 1);
    for (at, (expected, payload)) in cases.iter().enumerate() {
        for (here, there) in FAMILIES {
            let tcp = || Packet::new().between(here, there).tcp(4000 + at as u16, 9999).flags(ACK);
            let told = |packet: Packet| ids.pass(Direction::Ingress, &packet.build())[0].signature;
            let shown = String::from_utf8_lossy(payload);
            assert_eq!(told(tcp()), None);
            assert_eq!(told(tcp().payload(payload).tcp_options(&[1; 12])), *expected, "{shown}");
            // It stays known, and later bytes say nothing.
            assert_eq!(told(tcp().payload(b"SSH-2.0-later")), *expected, "{shown}");
            assert_eq!(told(tcp().flags(SYN)), None, "{shown}");
        }
    }
}

/// Two hosts and a wire on which super-packets travel whole, as between a host and its own network card.
struct Wire {
    client: Namespace,
    server: Namespace,
}

impl Wire {
    fn new() -> Wire {
        let (client, server) = (Namespace::new("client").unwrap(), Namespace::new("server").unwrap());
        let end = |host: &Namespace, last: u8| {
            (format!("192.0.2.{last}/24"), format!("2001:db8::{last}/64"), host.name().to_owned())
        };
        let (a, b) = (end(&client, 1), end(&server, 2));
        connect(&client.port("eth0").address(&a.0).address(&a.1), &server.port("eth0").address(&b.0).address(&b.1))
            .unwrap();
        for host in [&client, &server] {
            let on = || offload::switch("eth0", offload::LEFT_TO_CARDS, true);
            host.run(on).unwrap().unwrap();
        }
        Wire { client, server }
    }

    fn attach(host: &Namespace, ids: &mut Ids) -> [attach::Attached; 2] {
        let kernel = &mut ids.kernel;
        host.run(move || kernel.attach(attach::ifindex("eth0").unwrap(), "eth0")).unwrap().unwrap()
    }

    fn connect(&self, server: &str) -> (TcpStream, TcpStream) {
        let server: SocketAddr = server.parse().unwrap();
        let listener = self.server.run(|| TcpListener::bind(server)).unwrap().unwrap();
        let client = self.client.run(|| TcpStream::connect(server)).unwrap().unwrap();
        (client, listener.accept().unwrap().0)
    }
}

/// The payloads of a direction, and where each stands in its stream.
fn payloads(records: &[Told], ipv6: bool, from: u16) -> Vec<(usize, &[u8])> {
    let l4 = if ipv6 { 54 } else { 34 };
    let mut start = None;
    let mut found = Vec::new();
    for record in records {
        let tcp = &record.frame[l4..];
        if u16::from_be_bytes([tcp[0], tcp[1]]) != from || record.headers {
            continue;
        }
        let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
        if tcp[13] & SYN != 0 {
            start = Some(sequence.wrapping_add(1));
        }
        let claimed = if ipv6 {
            usize::from(u16::from_be_bytes([record.frame[18], record.frame[19]]))
        } else {
            usize::from(u16::from_be_bytes([record.frame[16], record.frame[17]])) - 20
        };
        let payload = &tcp[usize::from(tcp[12] >> 4) * 4..claimed];
        if !payload.is_empty() {
            found.push((sequence.wrapping_sub(start.expect("a SYN")) as usize, payload));
        }
    }
    found
}

#[test]
fn super_packets_are_copied_whole_wherever_their_bytes_stand() {
    const DEPTH: usize = 3 << 20;
    const SENT: usize = 4 << 20;
    let cpus = std::thread::available_parallelism().unwrap().get();
    let wire = Wire::new();
    let content: Vec<u8> = (0..SENT as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    for (address, ipv6) in [("192.0.2.2:8080", false), ("[2001:db8::2]:8080", true)] {
        let options = || Options { stream_depth: DEPTH as u64, max_flows: 1024, ..Options::default() };
        let (mut leaving, mut arriving) = (Ids::new(&options()), Ids::new(&options()));
        let _attached = (Wire::attach(&wire.client, &mut leaving), Wire::attach(&wire.server, &mut arriving));
        let (client, mut server) = wire.connect(address);
        let port = client.local_addr().unwrap().port();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            server.read_to_end(&mut all).unwrap();
            all
        });
        send_file(&file, SENT, &client);
        let cookie = socket_cookie(&client);
        drop(client);
        assert!(reader.join().unwrap() == content);
        for (what, ids, direction) in
            [("leaving", &leaving, Direction::Egress), ("arriving", &arriving, Direction::Ingress)]
        {
            let told: Vec<Told> = ids.records().into_iter().filter(|one| one.direction == direction).collect();
            let payloads = payloads(&told, ipv6, port);
            for (at, payload) in &payloads {
                assert!(content[*at..].starts_with(payload), "{what}: other bytes at {at}");
            }
            let longest = told.iter().map(|one| one.frame.len()).max().unwrap();
            assert!(longest > 20_000, "{what}: no super-packet, the longest frame had {longest} bytes");
            assert!(told.iter().all(|one| !one.truncated && (one.headers || one.frame.len() == one.length)));
            let (src, dst) =
                (if ipv6 { "2001:db8::1" } else { "192.0.2.1" }, if ipv6 { "2001:db8::2" } else { "192.0.2.2" });
            let counts = ids.kernel.direction(&key(src, dst, (port, 8080), 6, [0; 2])).unwrap();
            assert!(counts.bytes > SENT as u64, "{what}: {counts:?}");
            // What a busy machine makes TCP send again is spent, and told, again.
            let spent = counts.spent as usize;
            let copied: usize = payloads.iter().map(|(_, payload)| payload.len()).sum();
            // Each CPU may have seen room for its last packet.
            assert!((DEPTH..DEPTH + FRAME_MAX * cpus).contains(&spent), "{what}: {counts:?}");
            assert_eq!(spent, copied, "{what}: {counts:?}");
            assert_eq!(ids.count(direction).lost, [0; 3], "{what}");
            if direction == Direction::Egress {
                assert!(told.iter().any(|one| one.cookie == cookie), "{what}: cookie {cookie}");
                assert_eq!(told.iter().any(|one| one.cgroup != 0), has_packet_cgroups(), "{what}");
            }
            ids.check_sums();
        }
    }
}

fn send_file(file: &File, bytes: usize, to: &TcpStream) {
    let mut at: libc::off_t = 0;
    while (at as usize) < bytes {
        // SAFETY: two open descriptors, and an offset that outlives the call.
        let sent = unsafe { libc::sendfile(to.as_raw_fd(), file.as_raw_fd(), &mut at, bytes - at as usize) };
        assert!(sent > 0, "{}", std::io::Error::last_os_error());
    }
}

fn socket_cookie(socket: &TcpStream) -> u64 {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    let place = (&raw mut cookie).cast();
    // SAFETY: an open socket, and room for the eight bytes of a cookie.
    let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, place, &mut len) };
    assert_eq!(rc, 0);
    cookie
}

/// Of what arrives the kernel takes the outer tag out; what leaves here has its tags in the frame.
#[test]
fn tags_are_told_and_tell_flows_apart_in_the_frame_and_beside_it() {
    let wire = Wire::new();
    let options = || Options { udp_packets: 2, ..small() };
    let (mut leaving, mut arriving) = (Ids::new(&options()), Ids::new(&options()));
    let _attached = (Wire::attach(&wire.client, &mut leaving), Wire::attach(&wire.server, &mut arriving));
    let socket = FrameSocket::open(&wire.client, "eth0").unwrap();
    let tags: [&[u16]; 4] = [&[], &[7], &[8], &[7, 9]];
    for (here, there) in FAMILIES {
        for tags in tags {
            let plain = || Packet::new().between(here, there).udp(4000, 53).payload(b"tagged");
            let tagged = |tags: &[u16]| tags.iter().fold(plain(), |packet, &tag| packet.vlan(tag)).build();
            let frame = tagged(tags);
            for _ in 0..4 {
                socket.send(&frame).unwrap();
            }
            let outer = tags.first().copied().unwrap_or(0);
            let inner = tags.get(1).copied().unwrap_or(0);
            let own = |ids: &Ids, vlans| ids.kernel.direction(&key(here, there, (4000, 53), 17, vlans));
            let limit = Instant::now() + Duration::from_secs(10);
            while own(&arriving, [outer, inner]).is_none_or(|counts| counts.packets < 4) {
                assert!(Instant::now() < limit, "{tags:?} never arrived");
                std::thread::sleep(Duration::from_millis(1));
            }
            for (ids, direction, vlan, bytes) in [
                (&leaving, Direction::Egress, 0, frame.clone()),
                (&arriving, Direction::Ingress, outer, tagged(tags.get(1..).unwrap_or(&[]))),
            ] {
                let told = ids.records();
                let is_ours = |one: &&Told| one.direction == direction && one.frame.ends_with(b"tagged");
                let told: Vec<&Told> = told.iter().filter(is_ours).collect();
                assert_eq!(told.len(), 2, "{direction:?} {tags:?}: {told:?}");
                assert!(told.iter().all(|one| one.vlans == [vlan, 0] && one.frame == bytes), "{tags:?}: {told:?}");
                assert_eq!(own(ids, [outer, inner]).unwrap().packets, 4, "{direction:?} {tags:?}");
            }
        }
    }
}

/// Known flows are still found in a table that strangers have filled.
#[test]
fn a_flood_of_flows_stays_within_the_table() {
    let ids = Ids::new(&Options { max_flows: 512, udp_packets: 1, ..small() });
    let begun = Instant::now();
    for flow in 0..20_000u32 {
        let source = std::net::Ipv4Addr::from(0x0a00_0000 + flow);
        let frame = Packet::new().ipv4(source, [192, 0, 2, 1]).tcp(1, 80).build();
        ids.kernel.test_run(Direction::Ingress, &frame, &Arrival::default(), 1).unwrap();
        if flow % 1000 == 0 {
            ids.records();
        }
    }
    let count = ids.count(Direction::Ingress);
    assert_eq!(count.made, 20_000);
    assert!((20_000 - 1024..20_000 - 900).contains(&count.evicted), "{count:?}");
    ids.check_sums();
    assert!(begun.elapsed() < Duration::from_secs(60));
}
