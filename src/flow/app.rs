//! From the bytes of a flow to its protocol, and to what its parser tells.

use std::net::SocketAddr;
use std::sync::Arc;

use super::entry::swap_sides;
use super::expect::Expectations;
use super::fold::Folds;
use super::limits::Limits;
use super::reassembly::Sink;
use super::stats::Stats;
use super::{Flow, Reaction, Watcher};
use crate::packet::frame::protocol;
use crate::packet::proto::detect::{Detected, PREFIX_MAX, START_MAX, blank_start};
use crate::packet::proto::ftp::Transfer;
use crate::packet::proto::inner::Renumbered;
use crate::packet::proto::{AppProto, Expected, Fact, Out, Parser, Side, Stage, Told};

/// Datagrams that may say nothing before a flow of UDP is given up.
const DATAGRAMS_MAX: u8 = 4;

/// Where protocols are known: what finds them, and what reads them.
#[derive(Clone, Copy)]
pub struct Protocols {
    /// See [`crate::packet::proto::detect::detect`].
    pub detect: fn(bool, &[u8], &[u8], u16) -> Detected,
    /// See [`crate::packet::proto::detect::begins`].
    pub begins: fn(&[u8]) -> Option<AppProto>,
    /// See [`crate::packet::proto::parser_for`].
    pub parser_for: fn(AppProto) -> Option<Box<dyn Parser>>,
    /// See [`crate::packet::proto::datagram_parser_for`].
    pub datagram_parser_for: fn(AppProto) -> Option<Box<dyn Parser>>,
}

/// What is above a flow.
pub(super) enum App {
    /// No data was seen.
    Waiting,
    /// The protocol is not known yet.
    Detecting(Box<Pending>),
    /// It is.
    Parsing {
        parser: Box<dyn Parser>,
        /// The protocol's client is the flow's server: a connection that was opened the other way round.
        is_flipped: bool,
        /// Which sides have ended, as the parser names them.
        ended: [bool; 2],
    },
    /// The data connection of FTP.
    FtpData { transfer: Arc<Transfer>, is_told: bool },
    /// It is only counted.
    Ignored,
}

/// Bytes whose protocol is not known yet.
#[derive(Default)]
pub(super) struct Pending {
    bytes: [Vec<u8>; 2],
    /// In what order they came.
    pieces: Vec<(Side, u32)>,
    /// Datagrams that said nothing.
    tries: u8,
}

impl App {
    /// Bytes that it keeps.
    pub(super) fn memory(&self) -> usize {
        match self {
            App::Waiting | App::Ignored => 0,
            App::Detecting(pending) => {
                size_of::<Pending>()
                    + pending.bytes.iter().map(Vec::capacity).sum::<usize>()
                    + pending.pieces.capacity() * size_of::<(Side, u32)>()
            }
            App::Parsing { parser, .. } => parser.memory(),
            App::FtpData { transfer, .. } => size_of::<Transfer>() + transfer.file.len() + transfer.command.len(),
        }
    }

    /// Forgets what one side sent, as long as nobody knows what it is.
    pub(super) fn forget(&mut self, side: Side) {
        if let App::Detecting(pending) = self {
            pending.forget(side);
        }
    }
}

impl Pending {
    fn forget(&mut self, side: Side) {
        self.bytes[side as usize].clear();
        self.pieces.retain(|(of, _)| *of != side);
    }

    /// Keeps bytes of a side; whether they may change what is found.
    fn push(&mut self, side: Side, bytes: &[u8]) -> bool {
        let kept = &mut self.bytes[side as usize];
        let old = kept.len();
        let is_blank = blank_start(&kept[..old.min(PREFIX_MAX)]) == old;
        let room = PREFIX_MAX.saturating_sub(old);
        // Empty lines in front may be any number; of them some are enough.
        let needless = if is_blank { blank_start(bytes).saturating_sub(room) } else { 0 };
        let bytes = match needless {
            0 => bytes,
            _ => {
                kept.extend_from_slice(&bytes[..room]);
                self.note(side, room);
                &bytes[room + needless..]
            }
        };
        self.bytes[side as usize].extend_from_slice(bytes);
        self.note(side, bytes.len());
        old < START_MAX && self.bytes[side as usize].len() > old
    }

    /// Notes that so many bytes of a side came next.
    fn note(&mut self, side: Side, bytes: usize) {
        match self.pieces.last_mut() {
            _ if bytes == 0 => {}
            // Without this a stream of tiny segments would cost a piece for each.
            Some((last, len)) if *last == side => *len += bytes as u32,
            _ => self.pieces.push((side, bytes as u32)),
        }
    }

    fn of(&self, side: Side) -> &[u8] {
        &self.bytes[side as usize]
    }
}

/// What everything above the streams shares.
pub(super) struct Upper<'a> {
    pub limits: &'a Limits,
    pub protocols: Protocols,
    pub out: &'a mut Out,
    pub expectations: &'a mut Expectations,
    /// Flows whose transfer got its name after they began.
    pub named: &'a mut Vec<(u64, Arc<Transfer>)>,
    pub watcher: &'a mut dyn Watcher,
    pub now_ns: u64,
}

/// One side of a flow as the sink of its stream.
pub(super) struct Feed<'a, 'b> {
    pub flow: &'a mut Flow,
    pub app: &'a mut App,
    pub folds: &'a mut Folds,
    /// The side as the stream names it.
    pub side: Side,
    /// The sides of the flow were exchanged meanwhile, those of the streams not yet.
    pub is_swapped: bool,
    pub upper: &'a mut Upper<'b>,
}

impl Sink for Feed<'_, '_> {
    fn data(&mut self, bytes: &[u8], stats: &mut Stats) {
        if self.flow.is_blocked {
            return;
        }
        if self.flow.protocol == protocol::UDP {
            self.begin_anew(bytes, stats);
        }
        let side = self.flow_side(self.side);
        match self.app {
            App::Parsing { parser, is_flipped, .. } => {
                let side = if *is_flipped { side.other() } else { side };
                parser.take(side, bytes, self.upper.out);
                self.pass_on(stats);
            }
            App::Waiting | App::Detecting(_) if self.flow.protocol == protocol::UDP => {
                self.detect_datagram(bytes, stats)
            }
            App::Waiting | App::Detecting(_) => self.detect_stream(bytes, stats),
            App::FtpData { transfer, is_told } => {
                Arc::make_mut(transfer).bytes += bytes.len() as u64;
                if !std::mem::replace(is_told, true) {
                    let fact = Fact::FtpData(transfer.clone());
                    self.upper.out.tell(0, Stage::Asked, fact);
                    self.pass_on(stats);
                }
            }
            App::Ignored => {}
        }
    }

    fn gap(&mut self, missing: u64, stats: &mut Stats) {
        let side = self.flow_side(self.side);
        self.flow.gap_bytes[side as usize] += missing;
        if self.flow.is_blocked {
            return;
        }
        match self.app {
            App::Parsing { parser, is_flipped, .. } => {
                let side = if *is_flipped { side.other() } else { side };
                parser.skip(side, missing, self.upper.out);
                self.pass_on(stats);
            }
            // What comes behind it is looked at as if it were the start.
            App::Detecting(pending) => pending.forget(self.side),
            App::Waiting | App::FtpData { .. } | App::Ignored => {}
        }
    }
}

impl Feed<'_, '_> {
    /// The flow's name for a side of the streams.
    fn flow_side(&self, side: Side) -> Side {
        if self.is_swapped { side.other() } else { side }
    }

    fn ask(&self, client: &[u8], server: &[u8]) -> Detected {
        (self.upper.protocols.detect)(self.flow.protocol == protocol::UDP, client, server, self.flow.server.port())
    }

    fn detect_stream(&mut self, bytes: &[u8], stats: &mut Stats) {
        let none: &[u8] = &[];
        let found = match self.app {
            App::Detecting(pending) => {
                let is_more = pending.push(self.side, bytes);
                let App::Detecting(pending) = &*self.app else { return };
                match is_more {
                    true => self.ask(pending.of(Side::Client), pending.of(Side::Server)),
                    // A side that sends on and on is not looked at again for each segment.
                    false => Detected::More,
                }
            }
            _ => match self.side {
                Side::Client => self.ask(bytes, none),
                Side::Server => self.ask(none, bytes),
            },
        };
        match found {
            Detected::Yes { protocol, client } => {
                let pending = std::mem::replace(self.app, App::Ignored);
                self.start(protocol, client);
                match pending {
                    App::Detecting(pending) => self.replay(&pending, stats),
                    _ => self.data(bytes, stats),
                }
            }
            Detected::No => {
                stats.undetected += 1;
                *self.app = App::Ignored;
            }
            Detected::More => {
                if matches!(self.app, App::Waiting) {
                    let mut pending = Box::<Pending>::default();
                    pending.push(self.side, bytes);
                    *self.app = App::Detecting(pending);
                }
                if let App::Detecting(pending) = self.app
                    && pending.bytes[self.side as usize].len() > self.upper.limits.undecided_max
                {
                    stats.undecided_overflows += 1;
                    *self.app = App::Ignored;
                }
            }
        }
    }

    /// A datagram is whole, and says what it is or does not; but the first may be of a kind that says nothing.
    fn detect_datagram(&mut self, bytes: &[u8], stats: &mut Stats) {
        let none: &[u8] = &[];
        let found = match self.side {
            Side::Client => self.ask(bytes, none),
            Side::Server => self.ask(none, bytes),
        };
        if let Detected::Yes { protocol, client } = found {
            self.start(protocol, client);
            return self.data(bytes, stats);
        }
        if matches!(self.app, App::Waiting) {
            *self.app = App::Detecting(Box::default());
        }
        if let App::Detecting(pending) = self.app {
            pending.tries += 1;
            if pending.tries == DATAGRAMS_MAX {
                stats.undetected += 1;
                *self.app = App::Ignored;
            }
        }
    }

    /// Datagrams that a receiver drops, or a query of DNS to a port where nobody speaks it, may stand in front of a
    /// connection to hide it. So a datagram that begins one for certain is believed against all that was said before.
    fn begin_anew(&mut self, bytes: &[u8], stats: &mut Stats) {
        if !matches!(self.app, App::Parsing { .. } | App::Ignored) {
            return;
        }
        let Some(protocol) = (self.upper.protocols.begins)(bytes) else { return };
        if self.flow.app_proto == Some(protocol) {
            return;
        }
        let speaker = self.side;
        for side in Side::BOTH {
            self.side = side;
            self.end(stats);
        }
        self.side = speaker;
        // What ended may have got the flow blocked.
        if self.flow.is_blocked {
            return;
        }
        // A datagram was at most one transaction.
        let first_tx = match self.flow.app_proto {
            Some(_) => self.flow.packets.iter().fold(0u32, |sum, packets| sum.wrapping_add(*packets as u32)),
            None => 0,
        };
        self.start(protocol, speaker);
        if let App::Parsing { parser, is_flipped, ended } = std::mem::replace(self.app, App::Ignored) {
            let parser = Box::new(Renumbered { parser, first_tx });
            *self.app = App::Parsing { parser, is_flipped, ended };
        }
    }

    /// The protocol is known. Who opened the connection is only believed to be the client if that was seen.
    fn start(&mut self, app_proto: AppProto, client: Side) {
        let mut is_flipped = client == Side::Server;
        if is_flipped && (self.flow.is_midstream || self.flow.protocol == protocol::UDP) {
            swap_sides(self.flow);
            self.is_swapped = !self.is_swapped;
            is_flipped = false;
        }
        let protocols = &self.upper.protocols;
        let is_datagrams = self.flow.protocol == protocol::UDP;
        let parser_for = if is_datagrams { protocols.datagram_parser_for } else { protocols.parser_for };
        *self.app = match parser_for(app_proto) {
            Some(parser) => {
                self.flow.app_proto = Some(app_proto);
                App::Parsing { parser, is_flipped, ended: [false; 2] }
            }
            None => App::Ignored,
        };
    }

    fn replay(&mut self, pending: &Pending, stats: &mut Stats) {
        let side = self.side;
        let mut rest = [&pending.bytes[0][..], &pending.bytes[1][..]];
        for (of, len) in &pending.pieces {
            let (piece, after) = rest[*of as usize].split_at(*len as usize);
            rest[*of as usize] = after;
            self.side = *of;
            if !piece.is_empty() {
                self.data(piece, stats);
            }
        }
        self.side = side;
    }

    /// A side sends no more.
    pub(super) fn end(&mut self, stats: &mut Stats) {
        let side = self.flow_side(self.side);
        if let App::Parsing { parser, is_flipped, ended } = self.app {
            let side = if *is_flipped { side.other() } else { side };
            if !std::mem::replace(&mut ended[side as usize], true) {
                parser.end(side, self.upper.out);
                self.pass_on(stats);
            }
        }
    }

    /// The conversation is over.
    pub(super) fn finish(&mut self, stats: &mut Stats) {
        for side in Side::BOTH {
            self.side = side;
            self.end(stats);
        }
        match std::mem::replace(self.app, App::Ignored) {
            App::FtpData { transfer, .. } => {
                self.upper.out.tell(0, Stage::Done, Fact::FtpData(transfer));
                self.pass_on(stats);
            }
            App::Detecting(_) => stats.undetected += 1,
            _ => {}
        }
    }

    /// Hands to the watcher what the parser told.
    fn pass_on(&mut self, stats: &mut Stats) {
        let out = &mut *self.upper.out;
        if let Some(app_proto) = out.became.take() {
            self.flow.app_proto = Some(app_proto);
        }
        for told in out.told.drain(..) {
            tell(self.flow, self.upper.watcher, self.upper.now_ns, &told, stats);
        }
        if !out.oddities.is_empty() {
            let is_flipped = matches!(self.app, App::Parsing { is_flipped: true, .. });
            for (side, oddity) in out.oddities.drain(..) {
                let side = if is_flipped { side.other() } else { side };
                let told = self.folds.note("applayer", oddity.0, Some(side), self.upper.now_ns, stats);
                if let Some(anomaly) = told {
                    self.upper.watcher.anomaly(Some(self.flow), &anomaly);
                }
            }
        }
        while let Some(expected) = self.upper.out.expected.pop() {
            self.expect(expected, stats);
        }
    }

    fn expect(&mut self, expected: Expected, stats: &mut Stats) {
        let is_flipped = matches!(self.app, App::Parsing { is_flipped: true, .. });
        let opener = if is_flipped { expected.opener.other() } else { expected.opener };
        let (opener, other) = match opener {
            Side::Client => (self.flow.client.ip(), self.flow.server.ip()),
            Side::Server => (self.flow.server.ip(), self.flow.client.ip()),
        };
        let port = expected.server.port();
        // An address may be left out (EPSV), and may be one that only the other side of a translator knows; clients
        // then go to the host of the control connection.
        let mut places = vec![SocketAddr::new(other, port)];
        if !expected.server.ip().is_unspecified() && expected.server.ip() != other {
            places.push(SocketAddr::new(expected.server.ip(), port));
        }
        for place in places {
            let (now_ns, max) = (self.upper.now_ns, self.upper.limits.expected_max);
            let met = self.upper.expectations.announce((opener, place), &expected.transfer, now_ns, max, stats);
            self.upper.named.extend(met.map(|id| (id, expected.transfer.clone())));
        }
    }
}

/// Tells of a transaction. All that came with the one that got the flow blocked is told as well, for it has passed.
fn tell(flow: &mut Flow, watcher: &mut dyn Watcher, now_ns: u64, told: &Told, stats: &mut Stats) {
    if watcher.transaction(flow, now_ns, told) == Reaction::Blocked && !flow.is_blocked {
        flow.is_blocked = true;
        stats.blocked += 1;
    }
}
