//! The object tc_ids: copies what flows say, as far as their budgets go (include/flow_budget.h), and drops what is blocked.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, ensure};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapHandle, ProgramInput};

use super::attach::{self, Attached, TcPlace};
use super::blocks::Blocks;
use super::map::{self, MapFacts, Mapped};
use super::skeletons::tc_ids::{TcIdsSkel, TcIdsSkelBuilder};
use super::tc_mirror;
use super::xdp_firewall::Ran;
use super::{cpu_ids, has_packet_cgroups, jiffies_per_second, random};
use crate::abi::{
    from_bytes, ids_back, ids_count, ids_counts, ids_direction, ids_entry, ids_flag, ids_limits, ids_record,
    ids_sampling, ids_scratch, ids_signature,
};
use crate::flow::{Direction, PacketMeta};
use crate::packet::proto::AppProto;

/// Names of the two programs.
pub const PROGRAMS: [&str; 2] = ["tc_ids_ingress", "tc_ids_egress"];

/// Bytes of a frame in a record, at most; a longer one is cut and says so.
pub const FRAME_MAX: usize = ids_limits::IDS_FRAME_MAX.0 as usize;

const WAYS: u64 = ids_limits::IDS_WAYS.0 as u64;

/// Which packets are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Sampling {
    /// All.
    #[default]
    All,
    /// Each one by chance: this part of them, 0 to 1.
    Random(f64),
    /// Whole flows, by a secret hash: this part of them, 0 to 1.
    Hash(f64),
}

impl Sampling {
    /// As the program takes it: the way, and the part in units of 2^-32.
    fn constants(self) -> (ids_sampling, u64) {
        let part = |rate: f64| (rate.clamp(0.0, 1.0) * (1u64 << 32) as f64).round() as u64;
        match self {
            Sampling::All => (ids_sampling::IDS_SAMPLE_ALL, part(1.0)),
            Sampling::Random(rate) => (ids_sampling::IDS_SAMPLE_RANDOM, part(rate)),
            Sampling::Hash(rate) => (ids_sampling::IDS_SAMPLE_HASH, part(rate)),
        }
    }
}

/// What is fixed when the programs are loaded.
pub struct Options<'a> {
    /// Flows that have entries at the same time; each of their two directions has one. Rounded up to a power of two.
    pub max_flows: u32,
    /// Bytes of payload of TCP, by direction.
    pub stream_depth: u64,
    /// Packets of everything else, by direction.
    pub udp_packets: u32,
    /// Which packets are looked at.
    pub sampling: Sampling,
    /// Bytes of the ring buffer; rounded up to a power of two, of at least a page and at most 1 GiB.
    pub ring_bytes: u32,
    /// What is blocked; without, nothing can be.
    pub blocks: Option<&'a Blocks>,
    /// Packets are those of a capture: their time stamps are the clock.
    pub is_replay: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            max_flows: 262_144,
            stream_depth: 1 << 20,
            udp_packets: 16,
            sampling: Sampling::All,
            ring_bytes: 32 << 20,
            blocks: None,
            is_replay: false,
        }
    }
}

/// A record of the ring buffer, in its place there.
#[derive(Clone, Copy, Debug)]
pub struct Record<'r> {
    head: ids_record,
    /// The frame, as far as it was copied.
    pub frame: &'r [u8],
}

/// Reads a record of tc_ids; `None` when it is not one.
pub fn decode(record: &[u8]) -> Option<Record<'_>> {
    let head: ids_record = from_bytes(record)?;
    let frame = record.get(size_of::<ids_record>()..)?;
    let is_whole = frame.len() == head.copied as usize && head.copied <= head.length;
    let is_known = u32::from(head.direction) < ids_direction::IDS_DIRECTIONS.0
        && u32::from(head.signature) < ids_signature::IDS_SIGNATURES.0
        && u32::from(head.flags) <= ids_flag::IDS_FLAGS.0;
    (is_whole && is_known).then_some(Record { head, frame })
}

/// Which worker a record is for, by the keyed hash of its two addresses; `None` when it is too short for one. The worker
/// decodes the rest.
pub fn pair_hash(record: &[u8]) -> Option<u32> {
    Some(from_bytes::<ids_record>(record)?.pair)
}

impl Record<'_> {
    fn has(&self, flag: ids_flag) -> bool {
        u32::from(self.head.flags) & flag.0 != 0
    }

    /// What is known beside the bytes. `boot_ns` is when this host booted, in nanoseconds since 1970; 0 in a replay.
    pub fn meta(&self, boot_ns: u64) -> PacketMeta {
        PacketMeta {
            time_ns: self.head.boot_ns.wrapping_add(boot_ns),
            ifindex: self.head.ifindex,
            direction: self.direction(),
            vlans: [self.head.vlan, 0],
            socket_cookie: self.head.socket_cookie,
            cgroup_id: self.head.cgroup_id,
            unseen: (self.head.unseen_packets, self.head.unseen_bytes),
        }
    }

    /// Nanoseconds since boot, suspended time included (CLOCK_BOOTTIME); in a replay the capture's time.
    pub fn boot_ns(&self) -> u64 {
        self.head.boot_ns
    }

    /// Which way it went.
    pub fn direction(&self) -> Direction {
        if u32::from(self.head.direction) == ids_direction::IDS_EGRESS.0 {
            Direction::Egress
        } else {
            Direction::Ingress
        }
    }

    /// Keyed hash of the two addresses, the same in both directions: says which worker reads the flow.
    pub fn pair_hash(&self) -> u32 {
        self.head.pair
    }

    /// Bytes of the frame as it passed, without the tag that the kernel took out.
    pub fn length(&self) -> u32 {
        self.head.length
    }

    /// What the direction speaks, by its first bytes; `None` when they were not enough to say.
    pub fn signature(&self) -> Option<AppProto> {
        match ids_signature(self.head.signature.into()) {
            ids_signature::IDS_HTTP1 => Some(AppProto::Http),
            ids_signature::IDS_HTTP2 => Some(AppProto::Http2),
            ids_signature::IDS_TLS => Some(AppProto::Tls),
            ids_signature::IDS_SSH => Some(AppProto::Ssh),
            ids_signature::IDS_SMTP => Some(AppProto::Smtp),
            ids_signature::IDS_FTP => Some(AppProto::Ftp),
            ids_signature::IDS_SMB => Some(AppProto::Smb),
            ids_signature::IDS_DNS => Some(AppProto::Dns),
            _ => None,
        }
    }

    /// Among the unseen packets are such as should have been recorded and found no room.
    pub fn has_lost(&self) -> bool {
        self.has(ids_flag::IDS_LOST)
    }

    /// The budget is spent: the frame ends before its payload.
    pub fn is_headers_only(&self) -> bool {
        self.has(ids_flag::IDS_HEADERS)
    }

    /// The frame is longer than [`FRAME_MAX`], and cut.
    pub fn is_truncated(&self) -> bool {
        self.has(ids_flag::IDS_TRUNCATED)
    }

    /// The kernel could not parse it, so it has no flow there.
    pub fn has_no_flow(&self) -> bool {
        self.has(ids_flag::IDS_NO_FLOW)
    }
}

/// A direction of a flow, as the kernel tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectionKey {
    /// Sender.
    pub src: SocketAddr,
    /// Receiver, of the same family.
    pub dst: SocketAddr,
    /// IP protocol. Ports count for TCP and UDP only.
    pub protocol: u8,
    /// VLAN ids, outer first; 0 for none.
    pub vlans: [u16; 2],
}

/// What the kernel has counted of a direction since its entry was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionCounts {
    /// Packets, recorded or not. One that GRO has put together, or that is yet to be cut, is one.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Packets of them that no record has told of so far.
    pub unseen_packets: u64,
    /// Bytes of those.
    pub unseen_bytes: u64,
    /// What is spent of the budget: bytes of TCP, packets of everything else.
    pub spent: u64,
}

/// A packet of a capture, or of a test.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    /// Index of the interface; 0 for none in particular.
    pub ifindex: u32,
    /// Index of the interface on which it came, if it is forwarded.
    pub ingress_ifindex: u32,
    /// Its time; only a replay looks at it.
    pub time_ns: u64,
}

/// The loaded object. One thread owns it; the programs write its maps.
pub struct TcIds {
    skel: TcIdsSkel<'static>,
    entries: Mapped<ids_entry>,
    backs: Mapped<ids_back>,
    secret: [u64; 4],
}

impl TcIds {
    /// Loads the programs. Nothing is attached.
    ///
    /// # Errors
    /// What the kernel lacks or the verifier says.
    pub fn load(options: &Options<'_>) -> Result<TcIds> {
        // The skeleton borrows its storage for as long as it lives, which is as long as the agent.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = TcIdsSkelBuilder::default().open(storage).context("opening tc_ids")?;
        let entries = (u64::from(options.max_flows.clamp(4, 1 << 22)) * 2).next_power_of_two();
        let ring_bytes = options.ring_bytes.clamp(4096, 1 << 30).next_power_of_two();
        let possible = cpu_ids("possible")?;
        let second = jiffies_per_second()?;
        let mut secret = [0u64; 4];
        for word in &mut secret {
            *word = random()? | 1;
        }
        let ticks = |secs: ids_limits| {
            let secs = u64::from(secs.0);
            let nanos = secs * 1_000_000_000;
            (if options.is_replay { nanos >> ids_limits::IDS_REPLAY_TICK_SHIFT.0 } else { secs * second }) as u32
        };
        let (sampling, rate) = options.sampling.constants();
        let constants = open.maps.rodata_data.as_deref_mut().context("tc_ids has no constants")?;
        constants.ids_entries = entries;
        constants.ids_set_shift = 64 - (entries / WAYS).trailing_zeros();
        constants.ids_secret = secret;
        constants.stream_depth = options.stream_depth;
        constants.empty_packets = empty_packets(options.stream_depth);
        constants.udp_packets = options.udp_packets.into();
        constants.heartbeat_ticks = ticks(ids_limits::IDS_HEARTBEAT_SECS);
        constants.silent_ticks = ticks(ids_limits::IDS_SILENT_SECS);
        constants.replaying = options.is_replay.into();
        constants.sampling = sampling.0;
        constants.sampling_rate = rate;
        constants.ring_bytes = ring_bytes.into();
        constants.has_cgroups = has_packet_cgroups().into();
        constants.has_blocks = options.blocks.is_some().into();
        constants.scratch_cpus = possible as u32;
        let maps = &mut open.maps;
        Blocks::give(options.blocks, [&mut maps.blocked_flows, &mut maps.blocked_addrs, &mut maps.block_policy])?;
        maps.ids_events.set_max_entries(ring_bytes).context("sizing the ring buffer")?;
        maps.bss_ids_table
            .set_value_size((entries as usize * size_of::<ids_entry>()) as u32)
            .and(maps.bss_ids_backs.set_value_size((entries as usize * size_of::<ids_back>()) as u32))
            .context("making room for flows")?;
        maps.bss_scratch
            .set_value_size((possible * size_of::<ids_scratch>()) as u32)
            .context("giving each CPU room for a record")?;
        let skel = open.load().context("loading tc_ids")?;
        let (table, backs) = (&skel.maps.bss_ids_table, &skel.maps.bss_ids_backs);
        let table = Mapped::within(table.as_fd(), table.value_size() as usize, entries as usize)?;
        let backs = Mapped::within(backs.as_fd(), backs.value_size() as usize, entries as usize)?;
        Ok(TcIds { skel, entries: table, backs, secret })
    }

    /// The program of a direction.
    pub fn program(&self, direction: Direction) -> BorrowedFd<'_> {
        match direction {
            Direction::Ingress => self.skel.progs.tc_ids_ingress.as_fd(),
            Direction::Egress => self.skel.progs.tc_ids_egress.as_fd(),
        }
    }

    /// Attaches both programs to an interface, behind tc_mirror and tc_egress: ingress, then egress.
    ///
    /// # Errors
    /// The kernel refuses; then neither is attached.
    pub fn attach(&self, ifindex: u32, interface: &str) -> Result<[Attached; 2]> {
        let behind = TcPlace::IngressBehind(tc_mirror::PROGRAM);
        Ok([
            attach::tc(self.program(Direction::Ingress), PROGRAMS[0], behind, ifindex, interface)?,
            attach::tc(self.program(Direction::Egress), PROGRAMS[1], TcPlace::EgressToo, ifindex, interface)?,
        ])
    }

    /// A handle of the ring buffer of records; see [`decode`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn events(&self) -> Result<MapHandle> {
        map::handle(&self.skel.maps.ids_events)
    }

    /// What was counted, ingress and egress; all CPUs together.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn counts(&self) -> Result<[ids_count; 2]> {
        let mut sums = [ids_count::default(); 2];
        map::read_per_cpu(&map::handle(&self.skel.maps.ids_counts)?, |_, one: ids_counts| {
            for (sum, one) in sums.iter_mut().zip(&one.direction) {
                add(sum, one);
            }
        })?;
        Ok(sums)
    }

    /// What the kernel knows of a direction of a flow now; `None` when it has no entry.
    pub fn direction(&self, key: &DirectionKey) -> Option<DirectionCounts> {
        let at = self.find(key)?;
        let (entry, back) = (self.entries.at(at), self.backs.at(at));
        // SAFETY: whole words within the mappings, to which only the kernel writes.
        let (unseen, told, spent) = unsafe {
            (
                (
                    (&raw const (*entry).unseen_packets).read_volatile(),
                    (&raw const (*entry).unseen_bytes).read_volatile(),
                ),
                ((&raw const (*back).told_packets).read_volatile(), (&raw const (*back).told_bytes).read_volatile()),
                (&raw const (*entry).spent).read_volatile(),
            )
        };
        Some(DirectionCounts {
            packets: told.0 + unseen.0,
            bytes: told.1 + unseen.1,
            unseen_packets: unseen.0,
            unseen_bytes: unseen.1,
            spent,
        })
    }

    /// Index of a direction's entry: find_entry() of include/flow_budget.h.
    fn find(&self, key: &DirectionKey) -> Option<usize> {
        let wanted = EntryKey::of(key, &self.secret)?;
        let hash = wanted.hash(&self.secret);
        let set = hash >> (64 - (self.entries.len() as u64 / WAYS).trailing_zeros());
        (0..WAYS).map(|i| (set * WAYS + ((hash & (WAYS - 1)) ^ i)) as usize).find(|&at| {
            let (entry, back) = (self.entries.at(at), self.backs.at(at));
            // SAFETY: as in direction().
            let (addresses, word, src, dst) = unsafe {
                (
                    (&raw const (*entry).addresses).read_volatile(),
                    (&raw const (*entry).word).read_volatile(),
                    (&raw const (*back).src).read_volatile(),
                    (&raw const (*back).dst).read_volatile(),
                )
            };
            (addresses, word) == (wanted.addresses, wanted.word) && wanted.ends.is_none_or(|ends| ends == [src, dst])
        })
    }

    /// Runs the program of a direction `repeat` times over a frame: what it returned, and its time. Counts and records
    /// like any packet.
    ///
    /// # Errors
    /// The kernel refuses: a frame has 14 bytes at least, and must fit into a page with what the kernel puts around it.
    pub fn test_run(&self, direction: Direction, frame: &[u8], arrival: &Arrival, repeat: u32) -> Result<Ran> {
        ensure!(frame.len() >= 14, "a frame has at least 14 bytes");
        // struct __sk_buff, of which a test run takes ingress_ifindex, ifindex and tstamp.
        let mut context = [0u8; 192];
        context[36..40].copy_from_slice(&arrival.ingress_ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&arrival.ifindex.to_ne_bytes());
        context[152..160].copy_from_slice(&arrival.time_ns.to_ne_bytes());
        let program = match direction {
            Direction::Ingress => &self.skel.progs.tc_ids_ingress,
            Direction::Egress => &self.skel.progs.tc_ids_egress,
        };
        let output = program
            .test_run(ProgramInput {
                context_in: Some(&mut context),
                data_in: Some(frame),
                repeat,
                ..Default::default()
            })
            .context("running tc_ids on a packet")?;
        Ok(Ran { action: output.return_value, ns: output.duration.as_nanos() as u64 })
    }

    /// Its maps, as status shows them; what it shares is told by [`Blocks::maps`].
    pub fn maps(&self) -> Vec<MapFacts> {
        let maps = &self.skel.maps;
        vec![
            map::facts(&maps.bss_ids_table),
            map::facts(&maps.bss_ids_backs),
            map::facts(&maps.bss_scratch),
            map::facts(&maps.ids_counts),
            map::facts(&maps.ids_events),
        ]
    }
}

/// Packets of TCP without payload that a direction may have: include/flow_budget.h.
pub fn empty_packets(stream_depth: u64) -> u64 {
    u64::from(ids_limits::IDS_EMPTY_PACKETS.0) + stream_depth / u64::from(ids_limits::IDS_EMPTY_SHARE.0)
}

fn add(sum: &mut ids_count, one: &ids_count) {
    sum.packets += one.packets;
    sum.bytes += one.bytes;
    sum.records += one.records;
    sum.copied_bytes += one.copied_bytes;
    sum.lost.iter_mut().zip(one.lost).for_each(|(sum, one)| *sum += one);
    sum.past_budget += one.past_budget;
    sum.sampled_out += one.sampled_out;
    sum.twice += one.twice;
    sum.blocked_flow += one.blocked_flow;
    sum.blocked_address += one.blocked_address;
    sum.truncated += one.truncated;
    sum.no_flow += one.no_flow;
    sum.made += one.made;
    sum.evicted += one.evicted;
}

/// The key of an entry: key_of() of include/flow_budget.h.
struct EntryKey {
    addresses: u64,
    word: u64,
    /// Of IPv6 both addresses.
    ends: Option<[[u64; 2]; 2]>,
}

impl EntryKey {
    /// `None` when the addresses are of different families.
    fn of(key: &DirectionKey, secret: &[u64; 4]) -> Option<EntryKey> {
        const TCP: u8 = 6;
        const UDP: u8 = 17;
        let wire = |port: u16| u64::from(u16::from_ne_bytes(port.to_be_bytes()));
        let ports = wire(key.src.port()) | wire(key.dst.port()) << 16;
        let (kind, low) = match key.protocol {
            TCP => (2, ports),
            UDP => (4, ports),
            other => (6, other.into()),
        };
        let (addresses, ends) = match (key.src, key.dst) {
            (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
                let word = |address: std::net::Ipv4Addr| u64::from(u32::from_ne_bytes(address.octets()));
                (word(*dst.ip()) << 32 | word(*src.ip()), None)
            }
            (SocketAddr::V6(src), SocketAddr::V6(dst)) => {
                let words = |address: std::net::Ipv6Addr| {
                    let (high, low) = (u128::from(address) >> 64, u128::from(address));
                    [high as u64, low as u64].map(|half| u64::from_ne_bytes(half.to_be_bytes()))
                };
                let [src, dst] = [words(*src.ip()), words(*dst.ip())];
                let part =
                    |at: usize, multiplier: usize| src[at].wrapping_add(dst[at].wrapping_mul(secret[multiplier]));
                let mixed = part(0, 1).wrapping_mul(secret[0]).wrapping_add(part(1, 3).wrapping_mul(secret[2]));
                (mixed, Some([src, dst]))
            }
            _ => return None,
        };
        let kind = kind + u64::from(ends.is_some());
        let word = low | u64::from(key.vlans[0]) << 32 | u64::from(key.vlans[1]) << 44 | kind << 56;
        Some(EntryKey { addresses, word, ends })
    }

    fn hash(&self, secret: &[u64; 4]) -> u64 {
        let mix = |x: u64| (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mix(mix(self.addresses.wrapping_mul(secret[2]).wrapping_add(self.word)).wrapping_mul(secret[3]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::bytes_of;

    fn record() -> ids_record {
        ids_record { boot_ns: 7, length: 100, copied: 3, vlan: 9, direction: 1, signature: 3, ..Default::default() }
    }

    #[test]
    fn a_record_is_decoded_in_place() {
        let bytes = [bytes_of(&record()), &[1, 2, 3]].concat();
        let decoded = decode(&bytes).unwrap();
        assert_eq!(decoded.frame.as_ptr(), bytes[64..].as_ptr());
        assert_eq!((decoded.frame, decoded.length(), decoded.signature()), (&[1, 2, 3][..], 100, Some(AppProto::Tls)));
        let meta = decoded.meta(1000);
        assert_eq!((meta.time_ns, meta.direction, meta.vlans), (1007, Direction::Egress, [9, 0]));
    }

    #[test]
    fn what_is_no_record_is_none() {
        let whole = [bytes_of(&record()), &[1, 2, 3]].concat();
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_none(), "{length}");
        }
        assert!(decode(&[&whole[..], &[0]].concat()).is_none());
        for broken in [
            ids_record { direction: 2, ..record() },
            ids_record { signature: 9, ..record() },
            ids_record { flags: 16, ..record() },
            ids_record { length: 2, ..record() },
        ] {
            assert!(decode(&[bytes_of(&broken), &[1, 2, 3]].concat()).is_none(), "{broken:?}");
        }
    }

    #[test]
    fn a_rate_is_a_part_of_all() {
        for (rate, part) in [(0.0, 0), (0.25, 1 << 30), (1.0, 1 << 32), (7.0, 1 << 32), (-1.0, 0)] {
            assert_eq!(Sampling::Random(rate).constants(), (ids_sampling::IDS_SAMPLE_RANDOM, part), "{rate}");
            assert_eq!(Sampling::Hash(rate).constants(), (ids_sampling::IDS_SAMPLE_HASH, part), "{rate}");
        }
        assert_eq!(Sampling::Random(f64::NAN).constants().1, 0);
    }
}
