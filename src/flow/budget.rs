//! The kernel's flow budget without the kernel: which packets tc_ids would record, and how much of them.
//!
//! The rules are those of `include/flow_budget.h`, whose contract both keep; the table is the same, too: sets of
//! [`WAYS`] entries, by the same hash, so that what is replaced is the same. This one serves captures that are read
//! without rights.

use crate::abi::ids_limits;
use crate::packet::frame::protocol::{GRE, IPIP, IPV6 as IPV6_IN_IP, TCP, UDP};
use crate::packet::frame::tcp_flag::{FIN, RST, SYN};
use crate::packet::headers::{self, Headers, Place, Unparsable};

/// Entries of a set.
const WAYS: usize = ids_limits::IDS_WAYS.0 as usize;
/// Ticks are 2^20 nanoseconds of the capture's time.
const TICK_SHIFT: u32 = ids_limits::IDS_REPLAY_TICK_SHIFT.0;
/// Packets of TCP without payload that are recorded, beside one for each [`EMPTY_SHARE`] bytes of the budget.
const EMPTY_PACKETS: u64 = ids_limits::IDS_EMPTY_PACKETS.0 as u64;
const EMPTY_SHARE: u64 = ids_limits::IDS_EMPTY_SHARE.0 as u64;
/// Seconds between records of a direction that is past its budget.
const HEARTBEAT_SECS: u64 = ids_limits::IDS_HEARTBEAT_SECS.0 as u64;
/// Seconds of silence after which a direction that is not TCP starts anew.
const SILENT_SECS: u64 = ids_limits::IDS_SILENT_SECS.0 as u64;
const VXLAN_PORT: u16 = ids_limits::IDS_VXLAN_PORT.0 as u16;

/// The secret of the kernel's hashes in a replay: odd, and chosen once, so that two runs do the same.
pub const REPLAY_SECRET: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];

/// How much of each direction of a flow is inspected, and how many of them are known at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetLimits {
    /// Payload bytes of TCP.
    pub stream_depth: u64,
    /// Packets of UDP and of all else.
    pub udp_packets: u64,
    /// Entries of the table, a power of two of at least 16.
    pub entries: usize,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// So many bytes of its frame are recorded; before it so many packets and bytes of its direction were not.
    Recorded {
        /// Bytes of the frame.
        length: usize,
        /// Packets and bytes.
        unseen: (u64, u64),
    },
    /// Its budget is spent.
    Past,
    /// It is no IP.
    NotLookedAt,
}

/// What the budget knows of a packet.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// As they stand on the wire; IPv4 in the first half.
    src: [u64; 2],
    dst: [u64; 2],
    /// Ports or protocol, VLANs, kind; 0 for a packet that belongs to no flow.
    word: u64,
    headers: usize,
    payload: u64,
    counted: Counted,
    tcp_flags: u8,
}

/// What a direction's budget counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Counted {
    #[default]
    Nothing,
    Bytes,
    Packets,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    src: [u64; 2],
    dst: [u64; 2],
    /// 0: free.
    word: u64,
    unseen: (u64, u64),
    spent: u64,
    empty: u32,
    last_tick: u32,
    told_tick: u32,
}

/// The table.
#[derive(Debug)]
pub struct Budgets {
    limits: BudgetLimits,
    secret: [u64; 4],
    entries: Vec<Entry>,
    set_shift: u32,
    empty_packets: u64,
    /// Packets that were not recorded.
    pub past: u64,
    /// Entries that were taken from other flows.
    pub evicted: u64,
}

impl Budgets {
    /// An empty table. The secret is that of the hashes, odd numbers.
    pub fn new(limits: BudgetLimits, secret: [u64; 4]) -> Budgets {
        let entries = limits.entries.max(2 * WAYS).next_power_of_two();
        Budgets {
            limits,
            secret,
            entries: vec![Entry::default(); entries],
            set_shift: u64::BITS - (entries / WAYS).ilog2(),
            empty_packets: EMPTY_PACKETS + limits.stream_depth / EMPTY_SHARE,
            past: 0,
            evicted: 0,
        }
    }

    /// Spends a packet's share, at a time in nanoseconds.
    pub fn spend(&mut self, frame: &[u8], time_ns: u64) -> Spent {
        self.spend_read(&headers::read(frame), frame, time_ns)
    }

    /// The same where the headers were read before.
    pub fn spend_read(&mut self, read: &(Headers, Result<(), Unparsable>), frame: &[u8], time_ns: u64) -> Spent {
        let whole = Spent::Recorded { length: frame.len(), unseen: (0, 0) };
        let seen = match see(read, frame) {
            Read::NoIp => return Spent::NotLookedAt,
            Read::Unparsable => return whole,
            Read::Packet(seen) => seen,
        };
        let tick = (time_ns >> TICK_SHIFT) as u32;
        let at = self.entry(&seen, tick);
        let (stream_depth, udp_packets) = (self.limits.stream_depth, self.limits.udp_packets);
        let empty_packets = self.empty_packets;
        let entry = &mut self.entries[at];
        let is_silent = tick.wrapping_sub(entry.last_tick) >= ticks(SILENT_SECS);
        let is_past = match seen.counted {
            Counted::Nothing => false,
            Counted::Bytes if seen.tcp_flags & SYN != 0 => false,
            Counted::Bytes if seen.payload > 0 => entry.spent >= stream_depth,
            Counted::Bytes => u64::from(entry.empty) >= empty_packets,
            Counted::Packets => entry.spent >= udp_packets && !is_silent,
        };
        let is_told =
            seen.tcp_flags & (SYN | FIN | RST) != 0 || tick.wrapping_sub(entry.told_tick) >= ticks(HEARTBEAT_SECS);
        entry.last_tick = tick;
        if is_past && !is_told {
            self.past += 1;
            entry.unseen.0 += 1;
            entry.unseen.1 += frame.len() as u64;
            return Spent::Past;
        }
        let unseen = std::mem::take(&mut entry.unseen);
        entry.told_tick = tick;
        if is_past {
            return Spent::Recorded { length: seen.headers.min(frame.len()), unseen };
        }
        let starts_anew = match seen.counted {
            Counted::Nothing => false,
            Counted::Bytes => seen.tcp_flags & SYN != 0,
            Counted::Packets => is_silent,
        };
        if starts_anew {
            (entry.spent, entry.empty) = (0, 0);
        }
        match seen.counted {
            Counted::Nothing => {}
            Counted::Packets => entry.spent += 1,
            Counted::Bytes if seen.payload > 0 => entry.spent += seen.payload,
            Counted::Bytes => entry.empty += 1,
        }
        Spent::Recorded { length: frame.len(), unseen }
    }

    /// The place of a direction's entry, which is made where there is none.
    fn entry(&mut self, seen: &Seen, tick: u32) -> usize {
        let hash = self.hash(seen);
        let set = (hash >> self.set_shift) as usize * WAYS;
        let way = |place: usize| set + ((hash as usize & (WAYS - 1)) ^ place);
        for at in (0..WAYS).map(way) {
            let entry = &self.entries[at];
            if entry.word == seen.word && entry.src == seen.src && entry.dst == seen.dst {
                return at;
            }
        }
        // The first one that is free, else the one that was silent the longest; of equals the first.
        let silence = |at: usize| match &self.entries[at] {
            Entry { word: 0, .. } => 1 << 32,
            entry => u64::from(tick.wrapping_sub(entry.last_tick)),
        };
        let at = (0..WAYS).map(way).rev().max_by_key(|at| silence(*at)).unwrap_or(set);
        self.evicted += u64::from(self.entries[at].word != 0);
        self.entries[at] = Entry {
            src: seen.src,
            dst: seen.dst,
            word: seen.word,
            last_tick: tick,
            told_tick: tick,
            ..Entry::default()
        };
        at
    }

    fn hash(&self, seen: &Seen) -> u64 {
        let [a, b, c, d] = self.secret;
        let addresses = if seen.word >> KIND & IPV6 == 0 {
            seen.dst[0] << 32 | seen.src[0]
        } else {
            let halves = |one: u64, other: u64, secret: u64| one.wrapping_add(other.wrapping_mul(secret));
            let first = halves(seen.src[0], seen.dst[0], b).wrapping_mul(a);
            first.wrapping_add(halves(seen.src[1], seen.dst[1], d).wrapping_mul(c))
        };
        mix(mix(addresses.wrapping_mul(c).wrapping_add(seen.word)).wrapping_mul(d))
    }
}

fn ticks(seconds: u64) -> u32 {
    ((seconds * 1_000_000_000) >> TICK_SHIFT) as u32
}

fn mix(x: u64) -> u64 {
    (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Places in an entry's word.
const OUTER_VLAN: u32 = 32;
const INNER_VLAN: u32 = 44;
const KIND: u32 = 56;
/// Kinds: the low bit says IPv6.
const KIND_TCP: u64 = 2;
const KIND_UDP: u64 = 4;
const KIND_OTHER: u64 = 6;
const IPV6: u64 = 1;
const OF_FRAGMENTS: u64 = 1 << 8;

enum Read {
    NoIp,
    Unparsable,
    Packet(Seen),
}

/// What the budget asks of a packet's headers.
fn see((headers, result): &(Headers, Result<(), Unparsable>), frame: &[u8]) -> Read {
    match result {
        Err(Unparsable::NotIp | Unparsable::ShortEthernet) => return Read::NoIp,
        Err(_) => return Read::Unparsable,
        Ok(()) => {}
    }
    let is_ipv6 = headers.family == 6;
    let is_fragment = headers.place != Place::Whole;
    let wire = |port: u16| u64::from(port.to_be());
    let ports = wire(headers.src_port) | wire(headers.dst_port) << 16;
    let header = match headers.protocol {
        _ if is_fragment => 0,
        TCP => frame.get(headers.transport + 12).map_or(0, |byte| usize::from(byte >> 4) * 4),
        UDP => 8,
        _ => 0,
    };
    let (kind, identity, counted) = match headers.protocol {
        other if is_fragment => (KIND_OTHER, u64::from(other) | OF_FRAGMENTS, Counted::Nothing),
        TCP => (KIND_TCP, ports, Counted::Bytes),
        UDP if headers.dst_port == VXLAN_PORT => (KIND_UDP, ports, Counted::Nothing),
        UDP => (KIND_UDP, ports, Counted::Packets),
        tunnel @ (IPIP | IPV6_IN_IP | GRE) => (KIND_OTHER, u64::from(tunnel), Counted::Nothing),
        other => (KIND_OTHER, u64::from(other), Counted::Packets),
    };
    let address = |words: [u64; 2]| {
        if is_ipv6 { words.map(u64::to_be) } else { [u64::from((words[1] as u32).to_be()), 0] }
    };
    let [outer, inner] = headers.vlans.map(u64::from);
    let kind = kind + u64::from(is_ipv6);
    Read::Packet(Seen {
        src: address(headers.src),
        dst: address(headers.dst),
        word: identity | outer << OUTER_VLAN | inner << INNER_VLAN | kind << KIND,
        headers: headers.transport + header,
        payload: headers.claimed.saturating_sub(header) as u64,
        counted,
        tcp_flags: if is_fragment { 0 } else { headers.tcp_flags },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::Packet;
    use crate::packet::frame::tcp_flag::ACK;
    use proptest::prelude::*;

    const SECRET: [u64; 4] = [3, 5, 7, 11];
    const SECOND: u64 = 1_000_000_000;

    fn budgets(stream_depth: u64, udp_packets: u64) -> Budgets {
        Budgets::new(BudgetLimits { stream_depth, udp_packets, entries: 16 }, SECRET)
    }

    fn tcp(flags: u8, payload: usize) -> Vec<u8> {
        Packet::new().ipv4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(1000, 80).flags(flags).payload(&vec![1; payload]).build()
    }

    fn udp(source: u16, destination: u16) -> Vec<u8> {
        Packet::new().ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(source, destination).payload(&[1; 10]).build()
    }

    fn whole(frame: &[u8], unseen: (u64, u64)) -> Spent {
        Spent::Recorded { length: frame.len(), unseen }
    }

    #[test]
    fn tcp_spends_payload_and_goes_beyond_by_one_packet() {
        let mut budgets = budgets(1000, 1);
        let data = tcp(ACK, 600);
        assert_eq!(budgets.spend(&tcp(SYN, 0), 0), whole(&tcp(SYN, 0), (0, 0)));
        assert_eq!(budgets.spend(&data, 0), whole(&data, (0, 0)));
        assert_eq!(budgets.spend(&data, 0), whole(&data, (0, 0)));
        assert_eq!(budgets.spend(&data, 0), Spent::Past);
        assert_eq!(budgets.spend(&data, 0), Spent::Past);
        // A FIN is told by its headers, and brings what was not seen.
        let length = data.len() as u64;
        assert_eq!(budgets.spend(&tcp(ACK | FIN, 600), 0), Spent::Recorded { length: 54, unseen: (2, 2 * length) });
        assert_eq!(budgets.spend(&tcp(RST, 0), 0), Spent::Recorded { length: 54, unseen: (0, 0) });
        // A SYN starts the direction anew.
        assert_eq!(budgets.spend(&tcp(SYN, 0), 0), whole(&tcp(SYN, 0), (0, 0)));
        assert_eq!(budgets.spend(&data, 0), whole(&data, (0, 0)));
    }

    #[test]
    fn a_direction_past_its_budget_is_heard_of_every_ten_seconds() {
        let mut budgets = budgets(1, 1);
        let data = tcp(ACK, 100);
        budgets.spend(&data, 0);
        let mut told = Vec::new();
        for second in 1..=30 {
            if let Spent::Recorded { length, unseen } = budgets.spend(&data, second * SECOND) {
                told.push((second, length, unseen.0));
            }
        }
        assert_eq!(told, [(10, 54, 9), (20, 54, 9), (30, 54, 9)]);
    }

    #[test]
    fn packets_of_tcp_without_payload_have_a_share_of_their_own() {
        let mut budgets = budgets(2048, 1);
        let empty = tcp(ACK, 0);
        let recorded = (0..100).filter(|_| budgets.spend(&empty, 0) == whole(&empty, (0, 0))).count();
        assert_eq!(recorded, 18);
        // Which leaves the payload's alone.
        assert!(matches!(budgets.spend(&tcp(ACK, 5), 0), Spent::Recorded { length: 59, .. }));
    }

    #[test]
    fn all_else_spends_packets_and_starts_anew_after_a_minute() {
        let mut budgets = budgets(1, 2);
        let packet = udp(5, 53);
        let mut run = |time: u64| budgets.spend(&packet, time * SECOND);
        assert_eq!(run(0), whole(&packet, (0, 0)));
        assert_eq!(run(0), whole(&packet, (0, 0)));
        assert_eq!(run(1), Spent::Past);
        assert_eq!(run(61), whole(&packet, (1, packet.len() as u64)));
        assert_eq!(run(61), whole(&packet, (0, 0)));
        assert_eq!(run(62), Spent::Past);
        let ping = Packet::new().ipv4([10, 0, 0, 1], [10, 0, 0, 2]).ping(1, 1).build();
        let told: Vec<_> = (0..3).map(|_| budgets.spend(&ping, 0)).collect();
        assert_eq!(told, [whole(&ping, (0, 0)), whole(&ping, (0, 0)), Spent::Past]);
    }

    #[test]
    fn directions_and_vlans_are_told_apart() {
        let mut budgets = budgets(1, 1);
        let base = || Packet::new().ipv4([10, 0, 0, 1], [10, 0, 0, 2]);
        let packets = [
            base().udp(1, 2).build(),
            base().udp(2, 1).build(),
            base().vlan(7).udp(1, 2).build(),
            base().vlan(7).vlan(8).udp(1, 2).build(),
            base().vlan(8).vlan(7).udp(1, 2).build(),
            Packet::new().ipv4([10, 0, 0, 2], [10, 0, 0, 1]).udp(1, 2).build(),
            Packet::new().between("2001:db8::1", "2001:db8::2").udp(1, 2).build(),
        ];
        for packet in &packets {
            assert_eq!(budgets.spend(packet, 0), whole(packet, (0, 0)));
            assert_eq!(budgets.spend(packet, 0), Spent::Past);
        }
    }

    #[test]
    fn what_carries_others_has_no_budget_and_what_is_no_ip_is_not_looked_at() {
        let mut budgets = budgets(1, 1);
        let base = || Packet::new().ipv4([10, 0, 0, 1], [10, 0, 0, 2]).payload(&[0x45; 64]);
        let fragments = base().udp(1, 2).payload(&[1; 3000]).fragments(9, 1480);
        let mut free = vec![udp(5, VXLAN_PORT), fragments[0].clone(), fragments[1].clone()];
        free.extend([IPIP, IPV6_IN_IP, GRE].map(|number| base().protocol(number).build()));
        // Not to be parsed: a header that is cut off.
        free.push(tcp(ACK, 0)[..40].to_vec());
        for packet in &free {
            for _ in 0..3 {
                assert_eq!(budgets.spend(packet, 0), whole(packet, (0, 0)), "{packet:x?}");
            }
        }
        let arp = Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build();
        assert_eq!(budgets.spend(&arp, 0), Spent::NotLookedAt);
        assert_eq!(budgets.spend(&[], 0), Spent::NotLookedAt);
        let deep = Packet::new().vlan(1).vlan(2).vlan(3).ipv4([10, 0, 0, 1], [10, 0, 0, 2]).udp(1, 2).build();
        assert_eq!(budgets.spend(&deep, 0), whole(&deep, (0, 0)));
    }

    #[test]
    fn the_one_that_was_silent_longest_makes_room() {
        let mut budgets = budgets(1, 1);
        for port in 0..1000u16 {
            let packet = udp(port, 53);
            let time = u64::from(port) * SECOND;
            assert_eq!(budgets.spend(&packet, time), whole(&packet, (0, 0)));
            assert_eq!(budgets.spend(&packet, time), Spent::Past);
        }
        assert_eq!(budgets.evicted, 1000 - 16);
        // The last eight are in whatever set they fell into.
        for port in 992..1000 {
            assert_eq!(budgets.spend(&udp(port, 53), 1000 * SECOND), Spent::Past, "{port}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_between_records(
            steps in proptest::collection::vec((0u8..4, 0usize..1500, 0u64..40), 1..200),
        ) {
            let mut budgets = budgets(4000, 3);
            let (mut time, mut past, mut told) = (0, (0, 0), (0, 0));
            for (flags, payload, pause) in steps {
                time += pause * SECOND / 4;
                let frame = tcp([ACK, ACK, SYN, FIN | ACK][usize::from(flags)], payload);
                match budgets.spend(&frame, time) {
                    Spent::Past => past = (past.0 + 1, past.1 + frame.len() as u64),
                    Spent::Recorded { length, unseen } => {
                        prop_assert!(length == frame.len() || length == 54);
                        told = (told.0 + unseen.0, told.1 + unseen.1);
                    }
                    Spent::NotLookedAt => prop_assert!(false),
                }
            }
            if let Spent::Recorded { unseen, .. } = budgets.spend(&tcp(RST, 0), time) {
                told = (told.0 + unseen.0, told.1 + unseen.1);
            }
            prop_assert_eq!(told, past);
        }

        #[test]
        fn whatever_comes_is_recorded_within_its_length(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..120),
            ethertype in proptest::sample::select(vec![0x0800u16, 0x86dd, 0x8100, 0x88a8]),
            version in proptest::sample::select(vec![0x45u8, 0x60, 0x4f]),
        ) {
            if let Some(place) = bytes.get_mut(12..15) {
                place[..2].copy_from_slice(&ethertype.to_be_bytes());
                place[2] = version;
            }
            let mut budgets = budgets(0, 0);
            for _ in 0..3 {
                if let Spent::Recorded { length, .. } = budgets.spend(&bytes, 0) {
                    prop_assert!(length <= bytes.len());
                }
            }
        }
    }
}
