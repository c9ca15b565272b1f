//! The object xdp_firewall: its switches, the two generations of its tables, its counters and its answers.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::blocks::Blocks;
use super::chain::Chain;
use super::counts::Counts;
use super::generations::{Generations, WriteRows};
use super::map::{self, MapFacts, Mapped};
use super::skeletons::xdp_firewall::{XdpFirewallSkel, XdpFirewallSkelBuilder};
use super::{CPUS_MAX, check, cpu_ids, jiffies_per_second, random};
use crate::abi::{
    bytes_of, conn_key, frag_key, from_bytes, fw_answered, fw_cpu_counts, fw_flow_limits, fw_flow_set_v4,
    fw_flow_set_v6, fw_misc_count, fw_question, fw_rule_count, fw_rule_note, fw_tables, fw_upper,
};
use libbpf_rs::ProgramInput as Input;

/// Silence after which a connection is forgotten, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnTimeouts {
    /// TCP before the handshake is complete.
    pub tcp_opening_secs: u32,
    /// TCP in use.
    pub tcp_open_secs: u32,
    /// TCP after a FIN or RST.
    pub tcp_closing_secs: u32,
    /// Everything else until an answer came.
    pub other_opening_secs: u32,
    /// Everything else that was answered.
    pub other_open_secs: u32,
}

impl Default for ConnTimeouts {
    fn default() -> ConnTimeouts {
        ConnTimeouts {
            tcp_opening_secs: 120,
            tcp_open_secs: 432_000,
            tcp_closing_secs: 120,
            other_opening_secs: 30,
            other_open_secs: 120,
        }
    }
}

impl ConnTimeouts {
    /// As the programs take them: `[1]` TCP, `[0]` everything else, by phase.
    pub(super) fn jiffies(&self) -> Result<[[u64; 3]; 2]> {
        let second = jiffies_per_second()?;
        let jiffies = |secs: u32| u64::from(secs) * second;
        Ok([
            [jiffies(self.other_opening_secs), jiffies(self.other_open_secs), jiffies(self.other_opening_secs)],
            [jiffies(self.tcp_opening_secs), jiffies(self.tcp_open_secs), jiffies(self.tcp_closing_secs)],
        ])
    }
}

/// What is fixed when the program is loaded.
pub struct Switches<'a> {
    /// Frames may stand in several buffers (MTU above a page; 5.18+).
    pub multi_buffer: bool,
    /// The metadata of all packets is read, whether a rule mirrors or not.
    pub write_meta: bool,
    /// Room for connections.
    pub max_connections: u32,
    /// When they are forgotten.
    pub timeouts: ConnTimeouts,
    /// Connections of an earlier agent to go on with.
    pub connections: Option<&'a MapHandle>,
    /// The programs behind it; without, there are none.
    pub chain: Option<&'a Chain>,
    /// Whether xdp_steer is the last of them.
    pub steers: bool,
    /// What is blocked; without, nothing can be, and no packet asks.
    pub blocks: Option<&'a Blocks>,
    /// Packets are those of a capture: the kernel's clock has no say. Nothing times out on its own, no answer is kept in
    /// the flow cache, no cookie is asked for, and each packet that does not pass is told.
    pub is_replay: bool,
}

impl Default for Switches<'_> {
    fn default() -> Self {
        Switches {
            multi_buffer: false,
            write_meta: false,
            max_connections: 131_072,
            timeouts: ConnTimeouts::default(),
            connections: None,
            chain: None,
            steers: false,
            blocks: None,
            is_replay: false,
        }
    }
}

/// The kernel's jiffies at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    jiffies: u64,
    per_second: u64,
}

impl Clock {
    /// How long ago `jiffies` were; `None` for 0, which means never.
    pub fn age_of(self, jiffies: u64) -> Option<std::time::Duration> {
        let ticks = self.jiffies.saturating_sub(jiffies);
        (jiffies != 0).then(|| std::time::Duration::from_millis(ticks.saturating_mul(1000) / self.per_second.max(1)))
    }
}

/// IPv4 sets of the flow cache for a CPU, a power of two, half as many are IPv6's: all of them together take at most 64 MB.
fn flow_sets(cpus: usize) -> usize {
    const BYTES_MAX: usize = 64 << 20;
    let sets = BYTES_MAX / (size_of::<fw_flow_set_v4>() + size_of::<fw_flow_set_v6>() / 2) / cpus.max(1);
    ((sets + 1).next_power_of_two() / 2).clamp(4, fw_flow_limits::FW_FLOW_SETS.0 as usize)
}

/// Seconds that the rest of a fragmented datagram is waited for.
pub const FRAGMENT_SECS: u64 = 30;
/// What no clock reaches: in a replay the agent forgets what the capture's time ends.
const NEVER: u64 = u64::MAX >> 1;

/// What the program said about a packet that was put to it as a question, or run as if it had arrived.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// What the program returned: enum xdp_action.
    pub action: u32,
    /// Average nanoseconds of a run, as the kernel measured.
    pub ns: u64,
}

/// The loaded object. One thread owns it; it is the only writer of its maps.
pub struct XdpFirewall {
    skel: XdpFirewallSkel<'static>,
    generations: Generations,
    flows_v4: Mapped<fw_flow_set_v4>,
    flows_v6: Mapped<fw_flow_set_v6>,
    counts: Mapped<fw_cpu_counts>,
    secret: [u64; 2],
}

impl XdpFirewall {
    /// Opens, fixes the switches and loads. No rule is in it yet and nothing is attached.
    ///
    /// # Errors
    /// What the kernel lacks or the verifier says.
    pub fn load(switches: &Switches<'_>) -> Result<XdpFirewall> {
        // The skeleton borrows its storage for as long as it lives, which is as long as the agent.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = XdpFirewallSkelBuilder::default().open(storage).context("opening xdp_firewall")?;
        let mut secret = [0u64; 2];
        for word in &mut secret {
            *word = random()?;
        }
        let second = jiffies_per_second()?;
        let constants = open.maps.rodata_data.as_deref_mut().context("xdp_firewall has no constants")?;
        constants.multi_buffer = switches.multi_buffer.into();
        constants.has_raw_helpers = (!switches.is_replay && super::has_raw_cookies()).into();
        constants.steers = switches.steers.into();
        constants.write_meta = switches.write_meta.into();
        constants.conn_timeout = if switches.is_replay { [[NEVER; 3]; 2] } else { switches.timeouts.jiffies()? };
        constants.fragment_timeout = if switches.is_replay { NEVER } else { FRAGMENT_SECS * second };
        constants.tell_interval = if switches.is_replay { 0 } else { second as u32 };
        constants.explain_secret = secret;
        constants.has_blocks = switches.blocks.is_some().into();
        if let Some(chain) = switches.chain {
            chain.give(&mut open.maps.xdp_next)?;
        }
        match switches.connections {
            Some(kept) => open.maps.connections.reuse_fd(kept.as_fd()).context("taking over the connections")?,
            None => {
                open.maps.connections.set_max_entries(switches.max_connections).context("sizing the connections")?
            }
        }
        // A virtual machine may announce hundreds of CPUs that never come. One that does come has counters, but no cache.
        let (possible, online) = (cpu_ids("possible")?, cpu_ids("online")?);
        let sets = flow_sets(online);
        constants.flow_sets = sets as u32;
        constants.flow_cpus = if switches.multi_buffer || switches.is_replay { 0 } else { online as u32 };
        let (sets_v4, sets_v6) = (online * sets, online * sets / 2);
        ensure!(
            possible <= CPUS_MAX,
            "this machine may have {possible} CPUs, and this agent counts for {CPUS_MAX} at most"
        );
        constants.count_cpus = possible as u32;
        open.maps
            .bss_counts
            .set_value_size((possible * size_of::<fw_cpu_counts>()) as u32)
            .context("giving each CPU its counters")?;
        let maps = &mut open.maps;
        Blocks::give(switches.blocks, [&mut maps.blocked_flows, &mut maps.blocked_addrs, &mut maps.block_policy])?;
        maps.bss_flows_v4
            .set_value_size((sets_v4 * size_of::<fw_flow_set_v4>()) as u32)
            .and(maps.bss_flows_v6.set_value_size((sets_v6 * size_of::<fw_flow_set_v6>()) as u32))
            .context("giving each CPU its flow cache")?;
        if switches.multi_buffer {
            open.progs.xdp_firewall.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
        }
        let skel = open.load().context("loading xdp_firewall")?;
        let generations = Generations::new(&skel.maps.bss_tables, &skel.maps.bss_control, &skel.maps.fw_rows)?;
        let (v4, v6) = (&skel.maps.bss_flows_v4, &skel.maps.bss_flows_v6);
        let flows_v4 = Mapped::within(v4.as_fd(), v4.value_size() as usize, sets_v4)?;
        let flows_v6 = Mapped::within(v6.as_fd(), v6.value_size() as usize, sets_v6)?;
        let counts = &skel.maps.bss_counts;
        let counts = Mapped::within(counts.as_fd(), counts.value_size() as usize, possible)?;
        Ok(XdpFirewall { skel, generations, flows_v4, flows_v6, counts, secret })
    }

    /// The program.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.skel.progs.xdp_firewall.as_fd()
    }

    /// The live tables, to look at.
    pub fn live(&mut self) -> &fw_tables {
        self.generations.live()
    }

    /// Builds the next generation and makes it live; see [`Generations::swap`].
    pub fn swap<R: WriteRows>(&mut self, build: impl FnOnce(&mut fw_tables) -> Result<R>) -> Result<()> {
        let live = self.generations.swap(|_, tables| {
            let rows = build(tables)?;
            tables.policy.flows_open = 0;
            Ok(rows)
        })?;
        self.restart_flows(live);
        Ok(())
    }

    /// Empties the flow cache and opens it for a generation. No packet uses it now: it was open for the generation
    /// before, by which no packet is judged any more.
    fn restart_flows(&mut self, generation: usize) {
        self.flows_v4.values().fill(fw_flow_set_v4::default());
        self.flows_v6.values().fill(fw_flow_set_v6::default());
        // SAFETY: a byte in memory that lives as long as self; the kernel only reads it.
        let open = unsafe { AtomicU8::from_ptr(&raw mut (*self.generations.at(generation)).policy.flows_open) };
        open.store(1, Ordering::Release);
    }

    /// Says which devices stand on guarded interfaces, by index and tag (include/routes.h). Those that stay are never gone
    /// in between.
    ///
    /// # Errors
    /// There are too many.
    pub fn set_uppers(&mut self, uppers: &BTreeMap<(u32, u32), u64>) -> Result<()> {
        let map = &self.skel.maps.fw_uppers;
        let key_of = |ifindex, vlan| fw_upper { ifindex, vlan };
        let old: Vec<fw_upper> = map.keys().filter_map(|key| from_bytes(&key)).collect();
        for key in old.iter().filter(|key| !uppers.contains_key(&(key.ifindex, key.vlan))) {
            map.delete(bytes_of(key)).context("forgetting a device")?;
        }
        for (&(ifindex, vlan), guarded) in uppers {
            map.update(bytes_of(&key_of(ifindex, vlan)), &guarded.to_ne_bytes(), MapFlags::ANY)
                .context("telling the kernel's program which devices stand on guarded interfaces")?;
        }
        Ok(())
    }

    /// A handle of the ring buffer of events.
    pub fn events(&self) -> Result<MapHandle> {
        map::handle(&self.skel.maps.fw_events)
    }

    /// A handle of the connections.
    pub fn connections(&self) -> Result<MapHandle> {
        map::handle(&self.skel.maps.connections)
    }

    /// Forgets a connection, if it is known.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget_connection(&self, key: &conn_key) -> Result<()> {
        forget(&self.skel.maps.connections, bytes_of(key)).context("forgetting a connection")
    }

    /// Forgets a fragmented datagram, if it is known.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget_fragments(&self, key: &frag_key) -> Result<()> {
        forget(&self.skel.maps.fragments, bytes_of(key)).context("forgetting a fragmented datagram")
    }

    /// A handle of the counters that other programs share.
    pub fn misc_counts_map(&self) -> Result<MapHandle> {
        map::handle(&self.skel.maps.misc_counts)
    }

    /// Everything that was counted by slot, reason and interface; all CPUs together.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for cpu in 0..self.counts.len() {
            let counts = self.counts.at(cpu);
            for slot in 0..sum.rules.len() {
                // SAFETY: within the mapping, to which only the kernel writes, whole words; see Mapped::at().
                let (count, note) = unsafe {
                    (
                        (&raw const (*counts).rule[slot]).read_volatile(),
                        (&raw const (*counts).note[slot]).read_volatile(),
                    )
                };
                sum.add_rule(slot, &count, &note);
            }
            for number in 0..sum.ifaces.len() {
                // SAFETY: as above.
                sum.add_iface(number, &unsafe { (&raw const (*counts).iface[number]).read_volatile() });
            }
        }
        sum
    }

    /// Sets the counters of a slot to zero, for a new rule. No packet is counted there: no live rule has the slot.
    pub fn clear_slot(&mut self, slot: u32) {
        for counts in self.counts.values() {
            counts.rule[slot as usize] = fw_rule_count::default();
            counts.note[slot as usize] = fw_rule_note::default();
        }
    }

    /// Losses and unparsable packets; all CPUs together.
    pub fn misc_counts(&self) -> Result<fw_misc_count> {
        let map = map::handle(&self.skel.maps.misc_counts)?;
        let mut sum = fw_misc_count::default();
        map::read_per_cpu(&map, |_, one: fw_misc_count| {
            sum.events += one.events;
            sum.ring_full += one.ring_full;
            sum.conn_full += one.conn_full;
            for (sum, one) in sum.unparsable.iter_mut().zip(one.unparsable) {
                *sum += one;
            }
        })?;
        Ok(sum)
    }

    /// Connections in the table now. Walks it, so it is for a person who asks, not for every scrape of a large table.
    pub fn connection_count(&self) -> u64 {
        self.skel.maps.connections.keys().count() as u64
    }

    /// Its maps, as status shows them; the rows of the live generation as one of them.
    pub fn maps(&self) -> Vec<MapFacts> {
        let maps = &self.skel.maps;
        let mut all = vec![
            map::facts(&maps.bss_tables),
            map::facts(&maps.bss_flows_v4),
            map::facts(&maps.bss_flows_v6),
            map::facts(&maps.connections),
            map::facts(&maps.fragments),
            map::facts(&maps.fw_uppers),
            map::facts(&maps.bss_counts),
            map::facts(&maps.misc_counts),
            map::facts(&maps.fw_events),
        ];
        all.push(self.generations.rows_facts());
        all
    }

    /// Asks what would be done to a frame, without counting, telling or remembering it. `ifindex` 0 asks for no
    /// particular interface.
    pub fn explain(&self, frame: &[u8], ifindex: u32) -> Result<fw_answered> {
        let question = fw_question { secret: self.secret, pad: [0; 2] };
        let mut data = bytes_of(&question).to_vec();
        data.extend_from_slice(frame);
        let (_, out) = self.run(&data, size_of::<fw_question>() as u32, ifindex, 1)?;
        from_bytes(&out).context("the program gave no answer")
    }

    /// The kernel's jiffies now.
    pub fn clock(&self) -> Result<Clock> {
        let arp =
            [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat().into_iter().chain([8, 6]).chain([0; 46]).collect::<Vec<u8>>();
        Ok(Clock { jiffies: self.explain(&arp, 0)?.jiffies, per_second: jiffies_per_second()? })
    }

    /// Runs the program `repeat` times over a frame as if it had arrived on `ifindex`. Counts and tells like any packet.
    pub fn test_run(&self, frame: &[u8], ifindex: u32, repeat: u32) -> Result<Ran> {
        self.run(frame, 0, ifindex, repeat).map(|(ran, _)| ran)
    }

    /// As [`XdpFirewall::test_run`], once, and returns the frame with the metadata in front of it.
    pub fn test_run_output(&self, frame: &[u8], ifindex: u32) -> Result<(Ran, Vec<u8>)> {
        self.run(frame, 0, ifindex, 1)
    }

    /// `meta` bytes of `data` are metadata.
    fn run(&self, data: &[u8], meta: u32, ifindex: u32, repeat: u32) -> Result<(Ran, Vec<u8>)> {
        ensure!(data.len() - meta as usize >= 14, "a frame has at least 14 bytes");
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let context: [u32; 6] = [meta, data.len() as u32, 0, ifindex, 0, 0];
        let mut context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut out = vec![0u8; data.len() + 256];
        let output = self
            .skel
            .progs
            .xdp_firewall
            .test_run(Input {
                context_in: Some(&mut context),
                data_in: Some(data),
                data_out: Some(&mut out),
                repeat,
                ..Default::default()
            })
            .context("running xdp_firewall on a packet")?;
        let ran = Ran { action: output.return_value, ns: output.duration.as_nanos() as u64 };
        let len = output.data.map_or(0, |data| data.len());
        out.truncate(len);
        Ok((ran, out))
    }
}

/// Deletes an entry that may not be there.
fn forget(map: &impl MapCore, key: &[u8]) -> libbpf_rs::Result<()> {
    match map.delete(key) {
        Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Pins a map at `path`, replacing an older pin.
pub fn pin_map(map: &MapHandle, path: &std::path::Path) -> Result<()> {
    if path.exists() {
        std::fs::remove_file(path).with_context(|| format!("removing the old pin {}", path.display()))?;
    }
    let text =
        std::ffi::CString::new(path.to_str().context("a pin path is ASCII")?).context("a pin path has no NUL")?;
    // SAFETY: a valid descriptor and a NUL-terminated path.
    check(unsafe { libbpf_sys::bpf_obj_pin(map.as_fd().as_raw_fd(), text.as_ptr()) })
        .with_context(|| format!("pinning a map at {}", path.display()))?;
    Ok(())
}
