//! A conversation as frames, a parser that notes what it gets, a watcher that notes what it is told.

use std::sync::Arc;

use crate::flow::*;
use crate::packet::build::Packet as Build;
use crate::packet::frame::tcp_flag::{ACK, FIN, RST, SYN};
use crate::packet::proto::detect::{Detected, blank_start};
use crate::packet::proto::ftp::Transfer;
use crate::packet::proto::{Expected, Fact, Out, Parser, Stage};

pub const MS: u64 = 1_000_000;

/// Tells each run of bytes that it gets as a transfer: the side is the command, the bytes are the file, and bytes that
/// are missing are told as a transfer of so many. `EXPECT port;` announces a connection to that port of the server.
struct Echo {
    seen: [Vec<u8>; 2],
}

fn tell(side: Side, file: &[u8], bytes: u64, out: &mut Out) {
    let command = [b"client", b"server"][side as usize].to_vec();
    out.tell(0, Stage::Asked, Fact::FtpData(Arc::new(Transfer { command, file: file.to_vec(), bytes })));
}

impl Parser for Echo {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        assert!(!bytes.is_empty());
        tell(side, bytes, 0, out);
        self.seen[side as usize].extend_from_slice(bytes);
        let text = String::from_utf8_lossy(&self.seen[side as usize]).into_owned();
        if let Some((_, rest)) = text.split_once("EXPECT ")
            && let Some((port, _)) = rest.split_once(';')
        {
            out.expected.push(Expected {
                server: ([0, 0, 0, 0], port.parse().unwrap()).into(),
                opener: Side::Client,
                transfer: Arc::new(Transfer { command: b"RETR".to_vec(), file: b"secret".to_vec(), bytes: 0 }),
            });
            self.seen[side as usize].clear();
        }
        if text.contains("ODD") {
            out.odd(side, "echo.odd");
        }
    }

    fn skip(&mut self, side: Side, missing: u64, out: &mut Out) {
        tell(side, b"", missing, out);
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        tell(side, b"END", 0, out);
    }

    fn memory(&self) -> usize {
        self.seen.iter().map(Vec::capacity).sum::<usize>() + 100
    }
}

/// A client begins with `C`, a server with `S`, anything else is unknown; it takes three bytes to know. Empty lines in
/// front do not count.
fn detect(is_udp: bool, client: &[u8], server: &[u8], _port: u16) -> Detected {
    let protocol = AppProto::Ftp;
    for (bytes, of) in [(client, Side::Client), (server, Side::Server)] {
        if let (true, Some(protocol)) = (is_udp, begins(bytes)) {
            return Detected::Yes { protocol, client: of };
        }
        match &bytes[blank_start(bytes)..] {
            [b'C', _, _, ..] => return Detected::Yes { protocol, client: of },
            [b'S', _, _, ..] => return Detected::Yes { protocol, client: of.other() },
            [b'C' | b'S', ..] | [] | [b'?', ..] => {}
            _ => return Detected::No,
        }
    }
    Detected::More
}

/// A datagram that begins with `Q` begins a connection.
fn begins(datagram: &[u8]) -> Option<AppProto> {
    datagram.starts_with(b"Q").then_some(AppProto::Quic)
}

pub fn protocols() -> Protocols {
    let echo: fn(AppProto) -> Option<Box<dyn Parser>> = |_| Some(Box::new(Echo { seen: [Vec::new(), Vec::new()] }));
    Protocols { detect, begins, parser_for: echo, datagram_parser_for: echo }
}

/// What a watcher was told.
#[derive(Default)]
pub struct Told {
    /// Bytes of both sides as the parser got them, all flows together; `~N~` stands for N that are missing.
    pub text: [Vec<u8>; 2],
    pub anomalies: Vec<&'static str>,
    pub facts: Vec<(Stage, Transfer)>,
    /// Numbers of the transactions that gave `text`.
    pub tx: Vec<u32>,
    pub ended: Vec<(Flow, EndReason)>,
    /// What a transaction with these bytes is answered with.
    pub block_on: Option<&'static [u8]>,
    /// Packets of blocked flows that showed that these go on, and whether these are let go.
    pub going_on: usize,
    pub lets_go: bool,
}

impl Told {
    pub fn client(&self) -> String {
        String::from_utf8_lossy(&self.text[0]).into_owned()
    }

    pub fn server(&self) -> String {
        String::from_utf8_lossy(&self.text[1]).into_owned()
    }

    pub fn has(&self, name: &str) -> bool {
        self.anomalies.contains(&name)
    }
}

impl Watcher for Told {
    fn transaction(&mut self, flow: &Flow, _time_ns: u64, told: &crate::packet::proto::Told) -> Reaction {
        let Fact::FtpData(transfer) = &told.fact else { panic!("{told:?}") };
        if flow.app_proto == Some(AppProto::FtpData) {
            self.facts.push((told.stage, Transfer::clone(transfer)));
        } else {
            self.tx.push(told.tx);
            let text = &mut self.text[usize::from(transfer.command == b"server")];
            match transfer.bytes {
                0 => text.extend_from_slice(&transfer.file),
                missing => text.extend_from_slice(format!("~{missing}~").as_bytes()),
            }
        }
        if self.block_on.is_some_and(|bytes| transfer.file == bytes) { Reaction::Blocked } else { Reaction::GoOn }
    }

    fn anomaly(&mut self, _flow: Option<&Flow>, anomaly: &Anomaly) {
        self.anomalies.push(anomaly.name);
    }

    fn blocked_packet(&mut self, _flow: &Flow) -> bool {
        self.going_on += 1;
        !self.lets_go
    }

    fn ended(&mut self, flow: &Flow, why: EndReason) {
        self.ended.push((flow.clone(), why));
    }
}

/// A connection whose frames go to an inspector.
pub struct Lab {
    pub inspector: Inspector,
    pub told: Told,
    pub is_v6: bool,
    pub time_ns: u64,
    pub ports: (u16, u16),
    /// First sequence numbers.
    pub isn: [u32; 2],
    /// Bytes that each side has sent, for acknowledgements.
    pub sent: [u32; 2],
    pub ttl: u8,
    pub window: u16,
    pub direction: Direction,
    pub unseen: (u64, u64),
}

/// Small caps.
pub fn limits() -> Limits {
    Limits {
        flows_max: 1000,
        memory_max: 1 << 20,
        held_max: 64 << 10,
        held_total_max: 256 << 10,
        history_bytes: 64 << 10,
        ..Limits::default()
    }
}

impl Lab {
    pub fn new(is_v6: bool) -> Lab {
        Lab::with(limits(), is_v6)
    }

    pub fn with(limits: Limits, is_v6: bool) -> Lab {
        Lab {
            inspector: Inspector::with_protocols(limits, 7, protocols()),
            told: Told::default(),
            is_v6,
            time_ns: 1_700_000_000_000 * MS,
            ports: (40000, 21),
            isn: [1000, 5000],
            sent: [0; 2],
            ttl: 64,
            window: 60_000,
            direction: Direction::Ingress,
            unseen: (0, 0),
        }
    }

    pub fn meta(&self) -> PacketMeta {
        PacketMeta {
            time_ns: self.time_ns,
            ifindex: 1,
            direction: self.direction,
            vlans: [0; 2],
            socket_cookie: 0,
            cgroup_id: 0,
            unseen: self.unseen,
        }
    }

    /// A frame, a millisecond later.
    pub fn frame(&mut self, frame: &[u8]) -> &mut Lab {
        self.time_ns += MS;
        let meta = self.meta();
        self.inspector.packet(Link::Ethernet, &meta, frame, &mut self.told);
        self
    }

    pub fn ip(&self, side: Side) -> Build {
        let build = match (self.is_v6, side) {
            (false, Side::Client) => Build::new().between("10.0.0.1", "10.0.0.2"),
            (false, Side::Server) => Build::new().between("10.0.0.2", "10.0.0.1"),
            (true, Side::Client) => Build::new().between("2001:db8::1", "2001:db8::2"),
            (true, Side::Server) => Build::new().between("2001:db8::2", "2001:db8::1"),
        };
        build.ttl(self.ttl)
    }

    /// A segment; `at` counts from the byte after the SYN.
    pub fn build(&self, side: Side, flags: u8, at: u32, payload: &[u8]) -> Build {
        let (source, destination) = match side {
            Side::Client => self.ports,
            Side::Server => (self.ports.1, self.ports.0),
        };
        let number = |side: Side| self.isn[side as usize].wrapping_add(1);
        let sequence = number(side).wrapping_add(at);
        let acknowledgement = number(side.other()).wrapping_add(self.sent[side.other() as usize]);
        self.ip(side)
            .tcp(source, destination)
            .flags(flags)
            .numbers(sequence, if flags & ACK != 0 { acknowledgement } else { 0 })
            .window(self.window)
            .payload(payload)
    }

    pub fn segment(&mut self, side: Side, flags: u8, at: u32, payload: &[u8]) -> &mut Lab {
        let frame = self.build(side, flags, at, payload).build();
        self.frame(&frame)
    }

    pub fn handshake(&mut self) -> &mut Lab {
        self.segment(Side::Client, SYN, u32::MAX, b"");
        self.segment(Side::Server, SYN | ACK, u32::MAX, b"");
        self.segment(Side::Client, ACK, 0, b"")
    }

    /// Data of the client at a place; the server has not seen it yet.
    pub fn c(&mut self, at: u32, payload: &[u8]) -> &mut Lab {
        self.segment(Side::Client, ACK, at, payload)
    }

    /// Data of the server.
    pub fn s(&mut self, at: u32, payload: &[u8]) -> &mut Lab {
        self.segment(Side::Server, ACK, at, payload)
    }

    /// The server acknowledges so many bytes.
    pub fn ack(&mut self, bytes: u32) -> &mut Lab {
        self.sent[0] = bytes;
        let at = self.sent[1];
        self.segment(Side::Server, ACK, at, b"")
    }

    pub fn close(&mut self) -> &mut Lab {
        let [client, server] = self.sent;
        self.segment(Side::Client, FIN | ACK, client, b"");
        self.sent[0] += 1;
        self.segment(Side::Server, FIN | ACK, server, b"");
        self.sent[1] += 1;
        self.segment(Side::Client, ACK, client + 1, b"")
    }

    pub fn reset(&mut self, side: Side, at: u32) -> &mut Lab {
        self.segment(side, RST, at, b"")
    }

    /// The end; gives what was told.
    pub fn finish(mut self) -> Told {
        self.inspector.finish(&mut self.told);
        assert_eq!(self.inspector.flows().count(), 0);
        assert_eq!(self.inspector.reassembly_memory(), 0);
        self.told
    }
}
