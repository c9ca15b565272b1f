//! Packets of every link layer, one after the other, to an inspector with tiny caps: it keeps within them, tells of each
//! flow's end once and of each transaction in order, forgets all at the end, and never panics.

use std::collections::{HashMap, HashSet};

use ebpfsentinel::flow::{
    Anomaly, Checksums, Direction, EndReason, Flow, Inspector, Limits, Link, PacketMeta, Reaction, Watcher,
};
use ebpfsentinel::packet::proto::{Fact, Stage, Told};

const LINKS: [Link; 6] = [Link::Ethernet, Link::Raw, Link::Null, Link::Sll, Link::Sll2, Link::Ppp];
/// What the flow table, fragments, announcements and anomalies may take beside what [`limits`] says, in bytes.
const TABLES_MAX: usize = 512 << 10;
/// Anomalies of one flow, which it keeps until it ends.
const FOLDS_MAX: usize = 8 << 10;

/// Small, so that a few packets reach each of them. Bits of `choice` say what becomes of wrong checksums, and how much
/// streams may hold.
fn limits(choice: u8) -> Limits {
    let check_checksums = [Checksums::Trust, Checksums::Auto, Checksums::Verify][usize::from(choice & 3) % 3];
    let small = choice & 4 != 0;
    Limits {
        flows_max: if small { 3 } else { 64 },
        memory_max: if small { 6_000 } else { 200_000 },
        held_max: if small { 1_500 } else { 20_000 },
        held_total_max: if small { 2_500 } else { 50_000 },
        history_bytes: 4096,
        undecided_max: 600,
        expected_max: 2,
        fragmented_max: 3,
        fragment_bytes_max: 8_000,
        check_checksums,
        ..Limits::default()
    }
}

/// What was told, as far as the order matters.
#[derive(Default)]
struct Witness {
    /// Of each flow that did not end: how far its transactions are.
    open: HashMap<u64, HashMap<u32, Stage>>,
    ended: u64,
    /// Flows with transactions that were asked and not done, and were not blocked.
    cut_off: u64,
    told: u64,
    /// Every so many transactions the flow is blocked; 0 for never.
    block_every: u64,
    /// Flows that were blocked while the packet was read, of which all that it says is told still.
    blocked_now: Vec<u64>,
    blocked: HashSet<u64>,
}

impl Watcher for Witness {
    fn transaction(&mut self, flow: &Flow, _time_ns: u64, told: &Told) -> Reaction {
        assert!(!self.blocked.contains(&flow.id), "told of a flow that was blocked before this packet: {told:?}");
        // A query may never be answered, and a mail is asked at each of its commands.
        if !matches!(told.fact, Fact::Dns(_)) {
            let before = self.open.entry(flow.id).or_default().insert(told.tx, told.stage);
            let is_next = match before {
                None => true,
                Some(Stage::Asked) => told.stage == Stage::Done || matches!(told.fact, Fact::Smtp(_)),
                Some(Stage::Done) => false,
            };
            assert!(is_next, "{before:?}, {told:?}");
        }
        self.told += 1;
        if self.block_every > 0 && self.told.is_multiple_of(self.block_every) {
            self.blocked_now.push(flow.id);
            Reaction::Blocked
        } else {
            Reaction::GoOn
        }
    }

    fn anomaly(&mut self, _flow: Option<&Flow>, anomaly: &Anomaly) {
        assert!(anomaly.count > 0 && !anomaly.name.is_empty());
    }

    fn ended(&mut self, flow: &Flow, _why: EndReason) {
        let open = self.open.remove(&flow.id).unwrap_or_default();
        let is_done = open.values().all(|stage| *stage == Stage::Done);
        self.cut_off += u64::from(!flow.is_blocked && !is_done);
        assert!(flow.packets[0] + flow.packets[1] > 0);
        self.ended += 1;
    }
}

/// The first byte chooses limits. Of each packet: its link layer and what is known of it, how far time goes on, its
/// length in two bytes, itself.
pub fn run(bytes: &[u8]) {
    let [choice, rest @ ..] = bytes else { return };
    let limits = limits(*choice);
    let mut inspector = Inspector::new(limits.clone(), 7);
    let mut witness = Witness { block_every: u64::from(choice >> 4), ..Witness::default() };
    let mut time_ns = 1_700_000_000_000_000_000u64;
    let mut rest = rest;
    while let [kind, pause, a, b, behind @ ..] = rest {
        let length = u16::from_le_bytes([*a, *b]);
        let (frame, behind) = behind.split_at(behind.len().min(length.into()));
        rest = behind;
        // From nanoseconds to a month; the highest bit goes back, and 0xff to the end of time.
        let step = 1u64 << (pause & 0x3f).min(51);
        time_ns = match pause {
            0xff => u64::MAX,
            0x80.. => time_ns.saturating_sub(step),
            _ => time_ns.saturating_add(step),
        };
        let is_told_more = kind & 0x10 != 0;
        let meta = PacketMeta {
            time_ns,
            ifindex: u32::from(kind & 7),
            direction: if kind & 8 == 0 { Direction::Ingress } else { Direction::Egress },
            vlans: [if kind & 0x20 == 0 { 0 } else { 7 }, 0],
            socket_cookie: u64::from(kind & 0x40),
            cgroup_id: u64::from(kind & 0x40),
            unseen: if is_told_more { (1 + u64::from(*pause), u64::from(length) << (pause & 0x1f)) } else { (0, 0) },
        };
        match kind >> 7 {
            1 if length == 0 => inspector.tick(time_ns, &mut witness),
            1 if length == 1 => {
                let id = inspector.flows().map(|flow| flow.id).min();
                assert_eq!(id.is_some_and(|id| inspector.block(id)), id.is_some());
                witness.blocked_now.extend(id);
            }
            _ => inspector.packet(LINKS[usize::from(kind & 7) % LINKS.len()], &meta, frame, &mut witness),
        }
        witness.blocked.extend(witness.blocked_now.drain(..));
        assert!(inspector.flows().count() <= limits.flows_max as usize);
        let kept = inspector.reassembly_memory();
        assert!(kept <= limits.memory_max + FOLDS_MAX, "{kept} bytes of {}", limits.memory_max);
        let memory = inspector.memory();
        let allowed = limits.memory_max + limits.history_bytes + limits.fragment_bytes_max + TABLES_MAX;
        assert!(memory <= allowed, "{memory} bytes of {allowed}");
    }
    inspector.finish(&mut witness);
    assert_eq!((inspector.flows().count(), inspector.reassembly_memory()), (0, 0));
    // Of a flow for which there is no memory nothing more is told.
    assert!(witness.cut_off <= inspector.stats().memory_refused, "{} flows not done", witness.cut_off);
    assert_eq!((inspector.stats().flows, witness.open.len()), (witness.ended, 0));
}
