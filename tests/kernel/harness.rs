//! A frame in, a verdict out: a loaded xdp_firewall with rules and policy in their text form, and every counter read
//! around every packet.

use std::os::fd::RawFd;

use ebpfsentinel::abi::{conn, conn_key, from_bytes, fw_answer, fw_answered, fw_limits, fw_reason, fw_verdict};
use ebpfsentinel::bpf::xdp_firewall::{Switches, XdpFirewall};
use ebpfsentinel::classify::guard::Guard;
use ebpfsentinel::classify::interfaces::Port;
use ebpfsentinel::classify::matching::State;
use ebpfsentinel::classify::slots::Slots;
use ebpfsentinel::engines::firewall::config::FirewallConfig;
use ebpfsentinel::engines::firewall::maps::Generation;
use ebpfsentinel::engines::firewall::rule::Rule;
use ebpfsentinel::event::{Outcome, Reason, UNPARSABLE};
use ebpfsentinel::written::Document;
use libbpf_rs::MapCore;

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;

/// Policies without a rule.
pub const DROP: &str = "mode = \"block\"\ndefault_policy = \"drop\"\n";
pub const PASS: &str = "mode = \"block\"\ndefault_policy = \"pass\"\n";

const EXCEPTIONS: [&str; 5] = ["none", "link_control", "neighbour", "dhcp", "guard"];
const SLOTS: usize = fw_limits::FW_SLOTS.0 as usize;
const VERDICTS: usize = fw_verdict::FW_VERDICTS.0 as usize;
const CELLS: usize = fw_reason::FW_REASONS.0 as usize * VERDICTS;

/// Every counter that a packet can move, all CPUs together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Packets and bytes by slot.
    pub slots: Vec<(u64, u64)>,
    /// Packets and bytes by interface and cell.
    pub cells: Vec<(u64, u64)>,
    pub unparsable: Vec<u64>,
    pub events: u64,
    pub ring_full: u64,
    pub conn_full: u64,
}

/// Where `after` differs from `before`: index and difference.
fn moved(before: &[(u64, u64)], after: &[(u64, u64)]) -> Vec<(usize, u64, u64)> {
    let pairs = before.iter().zip(after).enumerate();
    pairs.filter(|(_, (b, a))| b != a).map(|(at, (b, a))| (at, a.0 - b.0, a.1 - b.1)).collect()
}

/// The loaded program, with rules.
pub struct Kernel {
    pub xdp: XdpFirewall,
    pub slots: Slots,
    generation: u32,
    ports: Vec<Port>,
    /// Number of the interface on which frames arrive.
    pub at: usize,
}

impl Kernel {
    /// With the section `[firewall]` of `text` in force.
    pub fn new(text: &str) -> Kernel {
        Kernel::with(text, &Switches::default(), &Guard::default())
    }

    pub fn with(text: &str, switches: &Switches<'_>, guard: &Guard) -> Kernel {
        // A test run without an interface arrives on the loopback device.
        Kernel::on(text, switches, guard, vec![Port { name: "lo".to_owned(), ifindex: Some(1) }])
    }

    /// With these interfaces guarded.
    pub fn on(text: &str, switches: &Switches<'_>, guard: &Guard, ports: Vec<Port>) -> Kernel {
        let xdp = XdpFirewall::load(switches).expect("loading xdp_firewall");
        let mut kernel = Kernel { xdp, slots: Slots::default(), generation: 0, ports, at: 0 };
        kernel.swap_with(text, guard);
        kernel
    }

    /// The interface on which frames arrive, as a test run takes it: the loopback device has no receive queue to name.
    fn ifindex(&self) -> u32 {
        self.ports[self.at].ifindex.filter(|&ifindex| ifindex != 1).unwrap_or(0)
    }

    /// Lets a frame arrive; the program's action.
    pub fn arrives(&self, frame: &[u8]) -> u32 {
        self.xdp.test_run(frame, self.ifindex(), 1).expect("running the program").action
    }

    /// Makes other rules live.
    pub fn swap(&mut self, text: &str) {
        self.swap_with(text, &Guard::default());
    }

    fn swap_with(&mut self, text: &str, guard: &Guard) {
        let document = Document::toml("test", text.as_bytes()).expect(text);
        let read = document.read(|root| FirewallConfig::read(root.table().expect("a table"), None));
        let config = read.into_result().expect(text);
        let mut rules: Vec<&Rule> = config.rules.iter().collect();
        rules.sort_by_key(|rule| rule.priority);
        let (slots, fresh) =
            self.slots.next(config.rules.iter().map(|rule| rule.id.as_str())).expect("slots for the rules");
        for slot in fresh {
            self.xdp.clear_slot(slot.into());
        }
        self.slots = slots;
        self.generation += 1;
        let generation = Generation {
            number: self.generation,
            config: &config,
            rules: &rules,
            slots: &self.slots,
            ports: &self.ports,
            guard,
        };
        self.xdp.swap(|tables| generation.write(tables)).expect("swapping the rules in");
    }

    pub fn counts(&self) -> Counts {
        let rules = self.xdp.counts().rules;
        let slots = rules.iter().map(|one| (one.packets, one.bytes)).collect();
        Counts { slots, ..self.counts_but_slots() }
    }

    /// The slots are many, and reading them takes longer than all the rest.
    fn counts_but_slots(&self) -> Counts {
        let misc = self.xdp.misc_counts().expect("reading counters");
        let ifaces = self.xdp.counts().ifaces;
        Counts {
            slots: Vec::new(),
            cells: ifaces.iter().flat_map(|one| one.packets.into_iter().zip(one.bytes)).collect(),
            unparsable: misc.unparsable.to_vec(),
            events: misc.events,
            ring_full: misc.ring_full,
            conn_full: misc.conn_full,
        }
    }

    pub fn explain(&self, frame: &[u8]) -> fw_answered {
        self.xdp.explain(frame, self.ifindex()).expect("asking the program")
    }

    /// State of the packet's connection, as rules see it; "-" when it is not looked up.
    pub fn state(&self, frame: &[u8]) -> &'static str {
        State::ALL.get(usize::from(self.explain(frame).state)).map_or("-", |state| state.name())
    }

    /// Lets the frame arrive and says what became of it and why: "drop rule ssh", "pass unparsable bad_ipv4".
    ///
    /// Asks first, which must change no counter and tell the same; and exactly one packet with the frame's bytes must be
    /// counted in one slot, one cell of the interface and, when it could not be parsed, by the one reason.
    pub fn says(&self, frame: &[u8]) -> String {
        let quiet = self.counts_but_slots();
        let answered = self.explain(frame);
        let before = self.counts();
        assert_eq!(quiet, Counts { slots: Vec::new(), ..before.clone() }, "a question moved a counter");
        let action = self.arrives(frame);
        let after = self.counts();

        let one = |moved: &[(usize, u64, u64)]| match moved {
            [(at, 1, bytes)] if *bytes == frame.len() as u64 => *at,
            other => panic!("not one packet of {} bytes but {other:?}", frame.len()),
        };
        let (iface, cell) = {
            let at = one(&moved(&before.cells, &after.cells));
            (at / CELLS, at % CELLS)
        };
        assert_eq!(iface, self.at, "the interface on which it arrived");
        let slot = one(&moved(&before.slots, &after.slots));
        let reason = Reason::of((cell / VERDICTS) as u8).unwrap();
        let outcome = Outcome::of((cell % VERDICTS) as u8).unwrap();
        let expected = if outcome == Outcome::Dropped { XDP_DROP } else { XDP_PASS };
        assert_eq!(action, expected, "{outcome:?} by {reason:?}");
        let asked = (Outcome::of(answered.verdict), Reason::of(answered.reason), usize::from(answered.iface));
        assert_eq!(asked, (Some(outcome), Some(reason), iface), "the answer to a question is not what happens");

        let unparsable: Vec<usize> =
            (0..UNPARSABLE.len()).filter(|&why| before.unparsable[why] != after.unparsable[why]).collect();
        let expected: Vec<usize> =
            if reason == Reason::Unparsable { vec![answered.unparsable.into()] } else { Vec::new() };
        assert_eq!(unparsable, expected, "counted as unparsable");
        assert!(unparsable.iter().all(|&why| after.unparsable[why] == before.unparsable[why] + 1));

        let detail = match reason {
            Reason::Rule | Reason::Fragment if slot < SLOTS => {
                assert_eq!(slot, (answered.answer & fw_answer::FW_SLOT_MASK.0) as usize);
                format!(" {}", self.slots.rule(slot as u16).expect("the slot of a rule"))
            }
            Reason::Exception => format!(" {}", EXCEPTIONS[usize::from(answered.exception)]),
            Reason::Unparsable => format!(" {}", UNPARSABLE[unparsable[0]]),
            _ => String::new(),
        };
        if detail.is_empty() || reason == Reason::Exception || reason == Reason::Unparsable {
            assert_eq!(slot, SLOTS + cell / VERDICTS, "counted by reason");
        }
        format!("{} {}{detail}", outcome.name(), reason.name())
    }

    /// Fails unless the frame is judged so.
    pub fn check(&self, what: &str, frame: &[u8], expected: &str) {
        let says = self.says(frame);
        assert_eq!(says, expected, "{what}: {frame:02x?}");
    }

    /// All connections.
    pub fn connections(&self) -> Vec<(conn_key, conn)> {
        let map = self.xdp.connections().expect("the connections");
        let value = |key: &[u8]| map.lookup(key, libbpf_rs::MapFlags::ANY).expect("looking a connection up");
        let read = |key: Vec<u8>| Some((from_bytes(&key)?, from_bytes(&value(&key)?)?));
        map.keys().filter_map(read).collect()
    }
}

/// Runs a program from a thread that does not own it.
pub fn arrive(program: RawFd, frame: &[u8], repeat: u32) {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as u64,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: repeat as i32,
        ..Default::default()
    };
    // SAFETY: the options say how large they are; the kernel only reads the frame, which outlives the call.
    assert_eq!(unsafe { libbpf_sys::bpf_prog_test_run_opts(program, &mut options) }, 0);
}
