//! The flow layer under a flood, at the size of life.

use std::net::Ipv4Addr;

use ebpfsentinel::flow::{
    Anomaly, Direction, EndReason, Flow, Inspector, Limits, Link, PacketMeta, Protocols, Reaction, Watcher,
};
use ebpfsentinel::packet::build::Packet;
use ebpfsentinel::packet::frame::tcp_flag::{ACK, SYN};
use ebpfsentinel::packet::proto::detect::Detected;
use ebpfsentinel::packet::proto::ftp::Transfer;
use ebpfsentinel::packet::proto::{AppProto, Fact, Out, Parser, Side, Stage, Told};

/// Half-open connections.
const FLOOD: u32 = 1_000_000;
/// Connections that are known before it comes.
const KNOWN: u16 = 500;

/// Tells each run of bytes as the name of a file.
struct Echo;

impl Parser for Echo {
    fn take(&mut self, _: Side, bytes: &[u8], out: &mut Out) {
        let transfer = Transfer { file: bytes.to_vec(), ..Transfer::default() };
        out.tell(0, Stage::Asked, Fact::FtpData(transfer.into()));
    }

    fn skip(&mut self, _: Side, missing: u64, _: &mut Out) {
        panic!("{missing} bytes are missing");
    }

    fn end(&mut self, _: Side, _: &mut Out) {}

    fn memory(&self) -> usize {
        64
    }
}

#[derive(Default)]
struct Heard {
    files: Vec<(u16, Vec<u8>)>,
    evicted_known: u64,
}

impl Watcher for Heard {
    fn transaction(&mut self, flow: &Flow, _: u64, told: &Told) -> Reaction {
        let Fact::FtpData(transfer) = &told.fact else { panic!("{told:?}") };
        self.files.push((flow.client.port(), transfer.file.clone()));
        Reaction::GoOn
    }

    fn anomaly(&mut self, _: Option<&Flow>, anomaly: &Anomaly) {
        panic!("{anomaly:?}");
    }

    fn ended(&mut self, flow: &Flow, why: EndReason) {
        assert_eq!(why, EndReason::Evicted);
        self.evicted_known += u64::from(flow.client.ip() == Ipv4Addr::new(10, 0, 0, 1));
    }
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

#[test]
fn a_million_half_open_flows_stay_within_caps_and_hide_nothing() {
    let limits = Limits::default();
    let flows_max = limits.flows_max as usize;
    let protocols = Protocols {
        detect: |_, _, _, _| Detected::Yes { protocol: AppProto::Http, client: Side::Client },
        begins: |_| None,
        parser_for: |_| Some(Box::new(Echo)),
        datagram_parser_for: |_| None,
    };
    let mut inspector = Inspector::with_protocols(limits, 1, protocols);
    let mut heard = Heard::default();
    let mut time_ns = 1_000_000_000;
    let mut send = |inspector: &mut Inspector, heard: &mut Heard, packet: Packet| {
        // A million in a second: none of them times out.
        time_ns += 1000;
        inspector.packet(Link::Ethernet, &meta(time_ns), &packet.build(), heard);
    };
    let known = |port: u16, flags: u8, at: u32, bytes: &[u8]| {
        let ip = Packet::new().ipv4([10, 0, 0, 1], [10, 0, 0, 2]);
        ip.tcp(port, 80).flags(flags).numbers(at, if flags & ACK != 0 { 1 } else { 0 }).payload(bytes)
    };
    let halves: (Vec<u16>, Vec<u16>) = (1..=KNOWN).partition(|port| port % 2 == 0);
    for port in 1..=KNOWN {
        send(&mut inspector, &mut heard, known(port, SYN, 0, b""));
        let answer = Packet::new().ipv4([10, 0, 0, 2], [10, 0, 0, 1]).tcp(80, port);
        send(&mut inspector, &mut heard, answer.flags(SYN | ACK).numbers(0, 1));
        send(&mut inspector, &mut heard, known(port, ACK, 1, b"before"));
    }
    for number in 0..FLOOD {
        let source = Ipv4Addr::from(0x0b00_0000 + number);
        send(&mut inspector, &mut heard, Packet::new().ipv4(source, [10, 0, 0, 2]).tcp(1000, 80));
        if number == FLOOD / 2 {
            for port in &halves.0 {
                send(&mut inspector, &mut heard, known(*port, ACK, 7, b"during"));
            }
        }
    }
    for port in &halves.1 {
        send(&mut inspector, &mut heard, known(*port, ACK, 7, b"after"));
    }
    assert_eq!(heard.files.len(), 2 * usize::from(KNOWN));
    assert_eq!(heard.files.iter().filter(|(_, file)| file == b"during").count(), halves.0.len());
    assert_eq!(heard.files.iter().filter(|(_, file)| file == b"after").count(), halves.1.len());
    assert_eq!(heard.evicted_known, 0);
    let stats = inspector.stats();
    assert_eq!(inspector.flows().count(), flows_max);
    assert_eq!(stats.flows, u64::from(FLOOD) + u64::from(KNOWN));
    assert_eq!(stats.flows_evicted_new, stats.flows - flows_max as u64);
    assert_eq!((stats.flows_evicted_established, stats.flows_timed_out), (0, 0));
    // All in all, with the history that any inspector has.
    assert!(inspector.memory() < 120 << 20, "{}", inspector.memory());
}
