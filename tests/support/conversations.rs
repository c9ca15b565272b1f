//! Whole conversations, packet by packet, as two honest hosts hold them.

use std::net::SocketAddr;

use ebpfsentinel::packet::build::Packet;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    Client,
    Server,
}

pub use Speaker::{Client, Server};

/// Packets with their times in nanoseconds since 1970.
pub type Packets = Vec<(u64, Vec<u8>)>;

/// A conversation over TCP or UDP.
pub struct Conversation {
    ends: [SocketAddr; 2],
    vlans: Vec<u16>,
    next: [u32; 2],
    now_ns: u64,
    /// What was sent.
    pub packets: Packets,
}

impl Conversation {
    /// Between two ends such as `192.0.2.1:49152`, from a time on.
    pub fn new(client: &str, server: &str, start_ns: u64) -> Conversation {
        Conversation {
            ends: [client.parse().unwrap(), server.parse().unwrap()],
            vlans: Vec::new(),
            next: [1_000_000, u32::MAX - 100],
            now_ns: start_ns,
            packets: Vec::new(),
        }
    }

    /// With VLAN tags, outer first.
    pub fn vlans(mut self, vlans: &[u16]) -> Conversation {
        self.vlans = vlans.to_vec();
        self
    }

    /// With other first numbers of TCP: another connection between the same ends.
    pub fn numbered(mut self, first: u32) -> Conversation {
        self.next = [first, first ^ 0x5555_5555];
        self
    }

    fn packet(&self, from: Speaker) -> Packet {
        let (from, to) = (self.ends[from as usize], self.ends[1 - from as usize]);
        self.vlans.iter().fold(Packet::new(), |packet, vlan| packet.vlan(*vlan)).ip(from.ip(), to.ip()).unwrap()
    }

    fn send(&mut self, frame: Vec<u8>) {
        self.packets.push((self.now_ns, frame));
        self.now_ns += 1_000_000;
    }

    /// A segment at a place relative to what is next.
    pub fn segment(&mut self, from: Speaker, offset: i64, flags: u8, payload: &[u8]) {
        let (own, other) = (from as usize, 1 - from as usize);
        let sequence = self.next[own].wrapping_add(offset as u32);
        let acknowledged = if flags & ACK == 0 { 0 } else { self.next[other] };
        let packet = self.packet(from).tcp(self.ends[own].port(), self.ends[other].port());
        self.send(packet.flags(flags).numbers(sequence, acknowledged).payload(payload).build());
    }

    /// The three packets that begin a connection.
    pub fn handshake(mut self) -> Conversation {
        self.segment(Client, 0, SYN, &[]);
        self.next[0] = self.next[0].wrapping_add(1);
        self.segment(Server, 0, SYN | ACK, &[]);
        self.next[1] = self.next[1].wrapping_add(1);
        self.segment(Client, 0, ACK, &[]);
        self
    }

    /// Bytes in pieces of a size, in order, and their acknowledgement.
    pub fn say_in(mut self, from: Speaker, bytes: &[u8], size: usize) -> Conversation {
        for piece in bytes.chunks(size) {
            self.segment(from, 0, PSH | ACK, piece);
            self.next[from as usize] = self.next[from as usize].wrapping_add(piece.len() as u32);
        }
        let other = if from == Client { Server } else { Client };
        self.segment(other, 0, ACK, &[]);
        self
    }

    /// Bytes in pieces of ordinary size.
    pub fn say(self, from: Speaker, bytes: &[u8]) -> Conversation {
        self.say_in(from, bytes, 1400)
    }

    /// Bytes in pieces of a size, last first, and the first one twice.
    pub fn say_backwards(mut self, from: Speaker, bytes: &[u8], size: usize) -> Conversation {
        let pieces: Vec<_> = bytes.chunks(size).enumerate().collect();
        for (place, piece) in pieces.iter().rev().chain(pieces.last()) {
            self.segment(from, (place * size) as i64, PSH | ACK, piece);
        }
        self.next[from as usize] = self.next[from as usize].wrapping_add(bytes.len() as u32);
        self
    }

    /// Both close.
    pub fn close(mut self) -> Packets {
        for from in [Client, Server] {
            self.segment(from, 0, FIN | ACK, &[]);
            self.next[from as usize] = self.next[from as usize].wrapping_add(1);
        }
        self.segment(Client, 0, ACK, &[]);
        self.packets
    }

    /// A datagram.
    pub fn datagram(mut self, from: Speaker, bytes: &[u8]) -> Conversation {
        let (own, other) = (from as usize, 1 - from as usize);
        let packet = self.packet(from).udp(self.ends[own].port(), self.ends[other].port());
        self.send(packet.payload(bytes).build());
        self
    }

    /// A datagram in fragments.
    pub fn fragmented(mut self, from: Speaker, bytes: &[u8], size: usize) -> Conversation {
        let (own, other) = (from as usize, 1 - from as usize);
        let packet = self.packet(from).udp(self.ends[own].port(), self.ends[other].port()).payload(bytes);
        packet.fragments(77, size).into_iter().for_each(|fragment| self.send(fragment));
        self
    }
}

/// Ethernet frames with another link layer, by its number (LINKTYPE_...).
pub fn with_link(packets: &Packets, link: u32) -> Packets {
    let change = |frame: &[u8]| {
        let (ethertype, packet) = ([frame[12], frame[13]], &frame[14..]);
        match link {
            0 => [&(if ethertype == [8, 0] { 2u32 } else { 30 }).to_le_bytes()[..], packet].concat(),
            101 => packet.to_vec(),
            113 => [&[0, 0, 0, 1, 0, 6][..], &frame[6..12], &[0, 0], &ethertype, packet].concat(),
            276 => [&ethertype[..], &[0, 0, 0, 0, 0, 2, 0, 1, 0, 6], &frame[6..12], &[0, 0], packet].concat(),
            _ => frame.to_vec(),
        }
    };
    packets.iter().map(|(time, frame)| (*time, change(frame))).collect()
}
