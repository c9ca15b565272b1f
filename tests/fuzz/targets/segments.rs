//! A conversation as segments: in order, and cut, shuffled and repeated. Both give the same transactions and no gap.

use std::collections::BTreeMap;

use ebpfsentinel::flow::{
    Anomaly, Direction, EndReason, Flow, Inspector, Limits, Link, PacketMeta, Reaction, SECOND_NS, Watcher,
};
use ebpfsentinel::packet::build::Packet;
use ebpfsentinel::packet::frame::tcp_flag::{ACK, FIN, SYN};
use ebpfsentinel::packet::proto::{AppProto, Side, Told};

const SERVERS_PORTS: [u16; 4] = [80, 25, 53, 40_000];
/// How long segments are where nothing is shuffled.
const WHOLE: usize = 1460;

/// What one side says before the other answers.
struct Flight<'a> {
    side: Side,
    /// Of the order of its segments, and how long they are.
    seed: u8,
    bytes: &'a [u8],
}

fn flights(mut bytes: &[u8]) -> Vec<Flight<'_>> {
    let mut flights = Vec::new();
    while let [kind, length, rest @ ..] = bytes {
        let side = if kind & 1 == 0 { Side::Client } else { Side::Server };
        let (now, behind) = rest.split_at(rest.len().min(usize::from(*length) << (kind >> 1 & 3)));
        flights.push(Flight { side, seed: kind >> 3, bytes: now });
        bytes = behind;
    }
    flights
}

/// What was told of the flow, without what depends on how many packets there were.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    told: Vec<Told>,
    anomalies: BTreeMap<(&'static str, Option<bool>), u64>,
    protocol: Option<AppProto>,
    gap_bytes: [u64; 2],
    flows: u32,
}

impl Watcher for Heard {
    fn transaction(&mut self, _flow: &Flow, _time_ns: u64, told: &Told) -> Reaction {
        self.told.push(told.clone());
        Reaction::GoOn
    }

    fn anomaly(&mut self, _flow: Option<&Flow>, anomaly: &Anomaly) {
        let side = anomaly.side.map(|side| side == Side::Client);
        *self.anomalies.entry((anomaly.name, side)).or_default() += anomaly.count;
    }

    fn ended(&mut self, flow: &Flow, _why: EndReason) {
        (self.protocol, self.gap_bytes) = (flow.app_proto, flow.gap_bytes);
        self.flows += 1;
    }
}

struct Wire {
    inspector: Inspector,
    heard: Heard,
    is_v6: bool,
    ports: [u16; 2],
    /// Number of the next byte of each side.
    next: [u32; 2],
    time_ns: u64,
}

impl Wire {
    fn segment(&mut self, side: Side, flags: u8, at: usize, payload: &[u8]) {
        self.time_ns += 1000;
        let meta = PacketMeta {
            time_ns: self.time_ns,
            ifindex: 1,
            direction: Direction::Ingress,
            vlans: [0; 2],
            socket_cookie: 0,
            cgroup_id: 0,
            unseen: (0, 0),
        };
        let hosts = if self.is_v6 { ["2001:db8::1", "2001:db8::2"] } else { ["192.0.2.1", "192.0.2.2"] };
        let (own, other) = (side as usize, side.other() as usize);
        let sequence = self.next[own].wrapping_add(at as u32);
        let acknowledged = if flags & ACK == 0 { 0 } else { self.next[other] };
        let frame = Packet::new().between(hosts[own], hosts[other]).tcp(self.ports[own], self.ports[other]);
        let frame = frame.flags(flags).numbers(sequence, acknowledged).payload(payload).build();
        self.inspector.packet(Link::Ethernet, &meta, &frame, &mut self.heard);
    }

    fn advance(&mut self, side: Side, bytes: usize) {
        self.next[side as usize] = self.next[side as usize].wrapping_add(bytes as u32);
    }

    fn flight(&mut self, flight: &Flight<'_>, is_shuffled: bool) {
        let size = if is_shuffled { 1 + usize::from(flight.seed & 7) * 37 } else { WHOLE };
        let mut pieces: Vec<(usize, &[u8])> =
            flight.bytes.chunks(size).enumerate().map(|(i, piece)| (i * size, piece)).collect();
        if is_shuffled {
            let mut state = u64::from(flight.seed) * 2 + 0x9e37_79b9_7f4a_7c15;
            let mut below = |bound: usize| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % bound.max(1) as u64) as usize
            };
            for at in (1..pieces.len()).rev() {
                pieces.swap(at, below(at + 1));
            }
            // A piece again, and one that spans others.
            if let Some(&again) = pieces.get(below(pieces.len())) {
                pieces.insert(below(pieces.len()), again);
            }
            let from = below(flight.bytes.len());
            let until = (from + WHOLE).min(flight.bytes.len());
            pieces.insert(below(pieces.len()), (from, &flight.bytes[from..until]));
        }
        pieces.retain(|(_, piece)| !piece.is_empty());
        for (at, piece) in pieces {
            self.segment(flight.side, ACK, at, piece);
        }
        self.advance(flight.side, flight.bytes.len());
    }
}

fn hear(choice: u8, isn: [u32; 2], flights: &[Flight<'_>], is_shuffled: bool) -> Heard {
    let limits = Limits { history_bytes: 64 << 10, ..Limits::default() };
    let mut wire = Wire {
        inspector: Inspector::new(limits, 7),
        heard: Heard::default(),
        is_v6: choice & 1 != 0,
        ports: [50_000, SERVERS_PORTS[usize::from(choice >> 1 & 3)]],
        next: isn,
        time_ns: 1_700_000_000 * SECOND_NS,
    };
    wire.segment(Side::Client, SYN, 0, b"");
    wire.advance(Side::Client, 1);
    wire.segment(Side::Server, SYN | ACK, 0, b"");
    wire.advance(Side::Server, 1);
    wire.segment(Side::Client, ACK, 0, b"");
    for flight in flights {
        wire.flight(flight, is_shuffled);
    }
    for side in Side::BOTH {
        wire.segment(side, FIN | ACK, 0, b"");
        wire.advance(side, 1);
    }
    wire.segment(Side::Client, ACK, 0, b"");
    wire.inspector.finish(&mut wire.heard);
    wire.heard
}

/// The first byte chooses IP version and port, the next eight the first sequence numbers. Of each flight: who and how, a
/// length, its bytes.
pub fn run(bytes: &[u8]) {
    let [choice, a, b, c, d, e, f, g, h, rest @ ..] = bytes else { return };
    let isn = [u32::from_le_bytes([*a, *b, *c, *d]), u32::from_le_bytes([*e, *f, *g, *h])];
    let flights = flights(rest);
    let whole = hear(*choice, isn, &flights, false);
    assert_eq!((whole.gap_bytes, whole.flows), ([0; 2], 1));
    assert_eq!(hear(*choice, isn, &flights, true), whole);
}
