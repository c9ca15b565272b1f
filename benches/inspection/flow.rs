//! The flow layer: reassembly without a parser and with that of HTTP/1, flows that come and go, and what a flow costs
//! in memory.

use ebpfsentinel::flow::{
    Anomaly, Direction, EndReason, Flow, Inspector, Limits, Link, PacketMeta, Protocols, Reaction, Watcher,
};
use ebpfsentinel::packet::build::Packet;
use ebpfsentinel::packet::frame::tcp_flag::{ACK, FIN, SYN};
use ebpfsentinel::packet::proto::detect::Detected;
use ebpfsentinel::packet::proto::{AppProto, Out, Parser, Side, Stage, Told};

use crate::figures::median;
use crate::names::core_time;

/// Connections whose frames are made beforehand: 16 MiB of payload, more than fits into the caches of a core.
const CONNECTIONS: u32 = 256;
/// Connections that come and go.
const SHORT: u32 = 16_384;
/// Bytes of a response.
const RESPONSE: usize = 64 << 10;
/// Bytes of a segment.
const SEGMENT: usize = 1448;
/// Rounds of each measurement; the median counts.
const ROUNDS: usize = 7;
/// How often the frames are taken in a round.
const PASSES: usize = 10;
/// Half-open flows whose memory is measured.
const HALF_OPEN: u32 = 100_000;

/// A parser that only looks at the length.
struct Counter(u64);

impl Parser for Counter {
    fn take(&mut self, _: Side, bytes: &[u8], _: &mut Out) {
        self.0 += bytes.len() as u64;
    }

    fn skip(&mut self, _: Side, _: u64, _: &mut Out) {}

    fn end(&mut self, _: Side, _: &mut Out) {}

    fn memory(&self) -> usize {
        size_of::<Counter>()
    }
}

/// Counts transactions, and flows that ended.
#[derive(Default)]
struct Done {
    transactions: usize,
    flows: usize,
}

impl Watcher for Done {
    fn transaction(&mut self, _: &Flow, _: u64, told: &Told) -> Reaction {
        self.transactions += usize::from(told.stage == Stage::Done);
        Reaction::GoOn
    }

    fn anomaly(&mut self, flow: Option<&Flow>, anomaly: &Anomaly) {
        panic!("the bench's own packets are odd: {anomaly:?} of {flow:?}");
    }

    fn ended(&mut self, _: &Flow, why: EndReason) {
        assert_eq!(why, EndReason::Closed);
        self.flows += 1;
    }
}

/// An inspector whose only parser is [`Counter`].
fn counting() -> Inspector {
    let protocols = Protocols {
        detect: |_, _, _, _| Detected::Yes { protocol: AppProto::Http, client: Side::Client },
        begins: |_| None,
        parser_for: |_| Some(Box::new(Counter(0))),
        datagram_parser_for: |_| None,
    };
    Inspector::with_protocols(Limits::default(), 1, protocols)
}

fn meta(time_ns: u64) -> PacketMeta {
    PacketMeta {
        time_ns,
        ifindex: 1,
        direction: Direction::Ingress,
        vlans: [0; 2],
        socket_cookie: 0,
        cgroup_id: 0,
        unseen: (0, 0),
    }
}

/// A response of HTTP, so many bytes with its headers.
fn response(bytes: usize) -> Vec<u8> {
    const HEADERS: usize = 128;
    let length = bytes - HEADERS;
    let mut response = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nServer: ");
    response.push_str(&"s".repeat(HEADERS - 4 - response.len()));
    response.push_str("\r\n\r\n");
    response.push_str(&"x".repeat(length));
    response.into_bytes()
}

/// Frames of connections that each ask for one response, one connection after the other.
fn frames(connections: u32, response: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for number in 0..connections {
        let client = [10, 1, (number >> 8) as u8, number as u8];
        let side = |is_client: bool, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]| {
            let (ip, (from, to)) = if is_client {
                (Packet::new().ipv4(client, [10, 0, 0, 2]), (40_000, 80))
            } else {
                (Packet::new().ipv4([10, 0, 0, 2], client), (80, 40_000))
            };
            ip.tcp(from, to).flags(flags).numbers(sequence, acknowledgement).window(65_535).payload(payload).build()
        };
        let request = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
        let asked = 1 + request.len() as u32;
        frames.push(side(true, SYN, 0, 0, b""));
        frames.push(side(false, SYN | ACK, 0, 1, b""));
        frames.push(side(true, ACK, 1, 1, b""));
        frames.push(side(true, ACK, 1, 1, request));
        let mut end = 1;
        for (count, segment) in response.chunks(SEGMENT).enumerate() {
            frames.push(side(false, ACK, end, asked, segment));
            end += segment.len() as u32;
            if count % 2 == 1 {
                frames.push(side(true, ACK, asked, end, b""));
            }
        }
        frames.push(side(false, FIN | ACK, end, asked, b""));
        frames.push(side(true, FIN | ACK, asked, end + 1, b""));
        frames.push(side(false, ACK, end + 1, asked + 1, b""));
    }
    frames
}

/// Seconds that the frames take once, the median of some rounds. Each pass has so many flows, and as many transactions
/// or none.
fn seconds(mut inspector: Inspector, frames: &[Vec<u8>], flows: u32, transactions: u32) -> f64 {
    let linger_ns = 2 * Limits::default().tcp_closed_ns;
    let mut time_ns = 0;
    let mut done = Done::default();
    let mut pass = || {
        for frame in frames {
            time_ns += 1000;
            inspector.packet(Link::Ethernet, &meta(time_ns), frame, &mut done);
        }
        // The next pass has the same ports and numbers: it would repeat what these flows said.
        time_ns += linger_ns;
        inspector.tick(time_ns, &mut done);
    };
    let rounds = (0..=ROUNDS).map(|_| {
        let start = core_time();
        (0..PASSES).for_each(|_| pass());
        (core_time() - start).as_secs_f64() / PASSES as f64
    });
    // The first round warms up.
    let seconds = median(rounds.skip(1).collect());
    let passes = PASSES * (1 + ROUNDS);
    assert_eq!((done.flows, done.transactions), (flows as usize * passes, transactions as usize * passes));
    assert_eq!((inspector.stats().gaps, inspector.flows().count()), (0, 0));
    seconds
}

/// Bytes of a flow that has not got past its first SYN.
fn bytes_per_flow() -> f64 {
    let mut inspector = counting();
    let before = inspector.memory();
    for number in 0..HALF_OPEN {
        let frame = Packet::new().ipv4(0x0b00_0000 + number, [10, 0, 0, 2]).tcp(40_000, 80).build();
        inspector.packet(Link::Ethernet, &meta(1), &frame, &mut Done::default());
    }
    (inspector.memory() - before) as f64 / f64::from(HALF_OPEN)
}

/// The figures, by the names that they have in target/bench/inspection.json.
pub fn figures() -> Vec<(&'static str, f64)> {
    let bytes = f64::from(CONNECTIONS) * RESPONSE as f64;
    let long = frames(CONNECTIONS, &response(RESPONSE));
    let short = frames(SHORT, &response(400));
    let real = Inspector::new(Limits::default(), 1);
    vec![
        ("gb_per_s.reassembly", bytes / seconds(counting(), &long, CONNECTIONS, 0) / 1e9),
        ("gb_per_s.reassembly_http1", bytes / seconds(real, &long, CONNECTIONS, CONNECTIONS) / 1e9),
        ("flows_per_s", f64::from(SHORT) / seconds(counting(), &short, SHORT, 0)),
        ("bytes_per_flow", bytes_per_flow()),
    ]
}
