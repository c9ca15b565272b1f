//! Connections and fragments, as include/conntrack.h and include/fragments.h keep them, with a clock that is given.

use super::aged::Aged;
use crate::abi::{conn_key, frag_key};
use crate::classify::matching::State;
use crate::engines::firewall::config::Timeouts;
use crate::packet::frame::protocol::{ICMP, ICMPV6, TCP};
use crate::packet::frame::tcp_flag::{ACK, FIN, RST, SYN};
use crate::packet::headers::{Headers, Unparsable};

const SECOND_NS: u64 = 1_000_000_000;
/// Datagrams whose rest is waited for: fewer than the kernel's table takes, which therefore never makes room on its own.
const FRAGMENTS_MAX: usize = 4096;

/// A connection, by its ends: struct conn_key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnKey {
    local: [u64; 2],
    remote: [u64; 2],
    local_port: u16,
    remote_port: u16,
    protocol: u8,
    family: u8,
}

impl ConnKey {
    /// Of a packet that leaves this host, or arrives at it.
    fn of(p: &Headers, leaves: bool) -> ConnKey {
        let (src, dst) = ((p.src, p.src_port), (p.dst, p.dst_port));
        let (local, remote) = if leaves { (src, dst) } else { (dst, src) };
        ConnKey {
            local: local.0,
            remote: remote.0,
            local_port: local.1,
            remote_port: remote.1,
            protocol: p.protocol,
            family: p.family,
        }
    }

    /// Of the datagram that an ICMP error quotes: this host sent it.
    fn quoted(frame: &[u8], p: &Headers) -> Option<ConnKey> {
        let quote = frame.get(p.transport + 8..)?;
        let be16 = |at: usize| Some(u16::from_be_bytes(*quote.get(at..)?.first_chunk()?));
        let be32 = |at: usize| Some(u32::from_be_bytes(*quote.get(at..)?.first_chunk()?));
        let be64 = |at: usize| Some(u64::from_be_bytes(*quote.get(at..)?.first_chunk()?));
        let first = *quote.first()?;
        let (local, remote, protocol, at) = if p.family == 4 {
            let header = usize::from(first & 0xf) * 4;
            if quote.len() < 20 || first >> 4 != 4 || header < 20 || be16(6)? & 0x1fff != 0 {
                return None;
            }
            ([0, be32(12)?.into()], [0, be32(16)?.into()], quote[9], header)
        } else {
            if quote.len() < 40 || first >> 4 != 6 {
                return None;
            }
            ([be64(8)?, be64(16)?], [be64(24)?, be64(32)?], quote[6], 40)
        };
        if quote.len() < at + 8 {
            return None;
        }
        let (local_port, remote_port) = match protocol {
            ICMP | ICMPV6 => (be16(at + 4)?, be16(at + 4)?),
            _ => (be16(at)?, be16(at + 2)?),
        };
        Some(ConnKey { local, remote, local_port, remote_port, protocol, family: p.family })
    }

    /// As the kernel keeps it.
    pub fn abi(&self) -> conn_key {
        conn_key {
            local: self.local,
            remote: self.remote,
            local_port: self.local_port,
            remote_port: self.remote_port,
            protocol: self.protocol,
            family: self.family,
            pad: [0; 2],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    Closing,
}

/// A connection.
#[derive(Clone, Copy, Debug)]
struct Conn {
    /// This host opened it.
    is_ours: bool,
    phase: Phase,
}

/// What is known of a packet's connection.
pub struct Known {
    /// Its state, as rules ask for it.
    pub state: State,
    /// It, if there is one.
    pub key: Option<ConnKey>,
    /// This host opened it.
    pub is_ours: bool,
}

fn is_icmp_error(p: &Headers) -> bool {
    match p.family {
        4 => p.protocol == ICMP && matches!(p.icmp_type, 3 | 4 | 5 | 11 | 12),
        _ => p.protocol == ICMPV6 && p.icmp_type < 128,
    }
}

/// Whether it answers an echo.
fn is_echo_reply(p: &Headers) -> bool {
    p.is_icmp() && p.icmp_type == if p.family == 4 { 0 } else { 129 }
}

/// Whether a packet without a connection could open one.
fn can_open(p: &Headers) -> bool {
    if p.protocol == TCP {
        return p.tcp_flags & (SYN | ACK | RST | FIN) == SYN;
    }
    !p.is_icmp() || (!is_echo_reply(p) && !is_icmp_error(p))
}

/// The connections of this host.
pub struct Connections {
    table: Aged<ConnKey, Conn>,
    /// Silence after which one is forgotten: `[1]` TCP, `[0]` everything else, by phase.
    timeouts_ns: [[u64; 3]; 2],
}

impl Connections {
    /// None; `room` for so many.
    pub fn new(room: usize, timeouts: &Timeouts, notes: bool) -> Connections {
        let ns = |secs: u32| u64::from(secs) * SECOND_NS;
        let timeouts_ns = [
            [timeouts.other_opening_secs, timeouts.other_established_secs, timeouts.other_opening_secs].map(ns),
            [timeouts.tcp_opening_secs, timeouts.tcp_established_secs, timeouts.tcp_closing_secs].map(ns),
        ];
        Connections { table: Aged::new(room, notes), timeouts_ns }
    }

    /// Those that were forgotten since this was asked before.
    pub fn forgotten(&mut self) -> Vec<ConnKey> {
        self.table.forgotten()
    }

    fn find(&mut self, key: &ConnKey, now_ns: u64) -> Option<&mut Conn> {
        let timeouts_ns = self.timeouts_ns[usize::from(key.protocol == TCP)];
        self.table.find(key, now_ns, |conn| timeouts_ns[conn.phase as usize])
    }

    /// The state of an arriving packet's connection.
    pub fn state_of(&mut self, frame: &[u8], p: &Headers, now_ns: u64) -> Known {
        let is_error = is_icmp_error(p);
        let key = if is_error { ConnKey::quoted(frame, p) } else { Some(ConnKey::of(p, false)) };
        let found = key.and_then(|key| Some((key, self.find(&key, now_ns)?.is_ours)));
        let is_ours = found.is_some_and(|(_, is_ours)| is_ours);
        let state = match found {
            None if can_open(p) => State::New,
            None => State::Invalid,
            Some(_) if is_error => State::Related,
            // An answer opens nothing; what opens a connection of TCP anew is judged anew.
            Some(_) if is_ours || p.protocol != TCP || !can_open(p) => State::Established,
            Some(_) => State::New,
        };
        // An error does not keep its connection alive.
        Known { state, key: found.map(|(key, _)| key).filter(|_| !is_error), is_ours }
    }

    /// An arriving packet of a known connection passed.
    pub fn confirm(&mut self, key: &ConnKey, tcp_flags: u8, now_ns: u64) {
        if let Some(conn) = self.find(key, now_ns) {
            if key.protocol == TCP && tcp_flags & FIN != 0 {
                conn.phase = Phase::Closing;
            } else if conn.phase == Phase::Opening {
                conn.phase = Phase::Open;
            }
        }
        self.table.touch(key, now_ns);
    }

    /// A packet leaves.
    pub fn leaves(&mut self, p: &Headers, now_ns: u64) {
        if is_icmp_error(p) || is_echo_reply(p) {
            return;
        }
        let (is_tcp, key) = (p.protocol == TCP, ConnKey::of(p, true));
        let has = |flag: u8| is_tcp && p.tcp_flags & flag != 0;
        let known = self.find(&key, now_ns);
        if has(RST) && !has(SYN) {
            if let Some(conn) = known {
                conn.phase = Phase::Closing;
            }
            return;
        }
        if let Some(conn) = known.filter(|conn| !(has(SYN) && conn.phase == Phase::Closing)) {
            if has(FIN) {
                conn.phase = Phase::Closing;
            } else if is_tcp && conn.phase == Phase::Opening && !has(SYN) {
                conn.phase = Phase::Open;
            }
            return self.table.touch(&key, now_ns);
        }
        // A SYN with ACK answers somebody.
        let is_ours = !(has(SYN) && has(ACK));
        let phase = if is_tcp && !has(SYN) { Phase::Open } else { Phase::Opening };
        self.table.insert(key, Conn { is_ours, phase }, now_ns);
    }
}

/// A fragmented datagram: struct frag_key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragKey {
    src: [u64; 2],
    dst: [u64; 2],
    id: u32,
    protocol: u8,
    family: u8,
    vlan: u16,
}

impl FragKey {
    fn of(p: &Headers) -> FragKey {
        FragKey {
            src: p.src,
            dst: p.dst,
            id: p.fragment_id,
            protocol: if p.family == 4 { p.protocol } else { 0 },
            family: p.family,
            vlan: p.vlans[0],
        }
    }

    /// As the kernel keeps it.
    pub fn abi(&self) -> frag_key {
        frag_key {
            src: self.src,
            dst: self.dst,
            id: self.id,
            protocol: self.protocol,
            family: self.family,
            vlan: self.vlan,
        }
    }
}

/// Of the transport header of a first fragment, what a second one must agree in.
type Transport = (u16, u16, u8, u8, u8, u8);

fn transport_of(p: &Headers) -> Transport {
    (p.src_port, p.dst_port, p.tcp_flags, p.icmp_type, p.icmp_code, p.protocol)
}

struct Frag<J> {
    transport: Transport,
    is_broken: bool,
    judgement: J,
}

/// Verdicts on first fragments, for the later ones.
pub struct Fragments<J> {
    table: Aged<FragKey, Frag<J>>,
}

impl<J: Copy> Fragments<J> {
    /// None.
    pub fn new(notes: bool) -> Fragments<J> {
        Fragments { table: Aged::new(FRAGMENTS_MAX, notes) }
    }

    /// Those that were forgotten since this was asked before.
    pub fn forgotten(&mut self) -> Vec<FragKey> {
        self.table.forgotten()
    }

    fn find(&mut self, p: &Headers, now_ns: u64) -> Option<&mut Frag<J>> {
        let timeout_ns = crate::bpf::xdp_firewall::FRAGMENT_SECS * SECOND_NS;
        self.table.find(&FragKey::of(p), now_ns, |_| timeout_ns)
    }

    /// A first fragment; why it is not to be judged.
    pub fn first(&mut self, p: &Headers, now_ns: u64) -> Option<Unparsable> {
        let known = self.find(p, now_ns)?;
        known.is_broken |= known.transport != transport_of(p);
        known.is_broken.then_some(Unparsable::OverlapFragment)
    }

    /// A first fragment was judged.
    pub fn remember(&mut self, p: &Headers, judgement: J, now_ns: u64) {
        let frag = Frag { transport: transport_of(p), is_broken: false, judgement };
        self.table.insert(FragKey::of(p), frag, now_ns);
    }

    /// The judgement that a later fragment follows.
    ///
    /// # Errors
    /// Why there is none.
    pub fn later(&mut self, p: &Headers, now_ns: u64) -> Result<J, Unparsable> {
        match self.find(p, now_ns) {
            None => Err(Unparsable::StrayFragment),
            Some(frag) if frag.is_broken => Err(Unparsable::OverlapFragment),
            Some(frag) => Ok(frag.judgement),
        }
    }
}
