//! tc_ids: what is recorded of each flow and direction, what is only counted, and that nothing is lost uncounted.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ebpfsentinel::abi::{ids_count, ids_limits, ids_loss};
use ebpfsentinel::bpf::tc_ids::{self, Arrival, DirectionKey, FRAME_MAX, Options, Sampling, TcIds};
use ebpfsentinel::flow::Direction;
use ebpfsentinel::packet::build::Packet;
use ebpfsentinel::packet::proto::AppProto;
use libbpf_rs::{MapHandle, RingBufferBuilder};

use crate::support::random::Random;

pub const TCX_NEXT: u32 = u32::MAX;
pub const TCX_DROP: u32 = 2;
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
        Ids::new(&Options { stream_depth, udp_packets, is_replay: true, max_flows: 1024, ..Options::default() })
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
            assert_eq!(one.headers, one.frame.len() < frame.len() || one.headers);
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
