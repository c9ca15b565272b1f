//! The object xdp_ratelimit: its rules in two generations, its buckets and its counters.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapHandle, ProgramInput};

use super::chain::Chain;
use super::generations::{Generations, WriteRows};
use super::map::{self, MapFacts, Mapped};
use super::skeletons::xdp_ratelimit::{XdpRatelimitSkel, XdpRatelimitSkelBuilder};
use super::{CPUS_MAX, cpu_ids, jiffies_per_second, random};
use crate::abi::{
    from_bytes, fw_limits, fw_tables, fw_while, rl_algorithm, rl_answered, rl_back, rl_bucket, rl_common,
    rl_cpu_counts, rl_host, rl_limits, rl_rule_count, rl_rules, rl_set,
};

/// Of enum xdp_action.
const XDP_PASS: u32 = 2;

/// After so long a source counts as known.
const KNOWN_AFTER: Duration = Duration::from_secs(2);
/// A known source may be silent for so long before its bucket is taken for another one.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// What is fixed when the program is loaded.
#[derive(Clone, Copy)]
pub struct Switches<'a> {
    /// Frames may stand in several buffers (MTU above a page; 5.18+).
    pub multi_buffer: bool,
    /// Room for buckets, at least; rounded up to a power of two.
    pub buckets: u32,
    /// The chain that it stands in; without, nothing runs behind it.
    pub chain: Option<&'a Chain>,
    /// Whether xdp_steer is the last of that chain.
    pub steers: bool,
}

/// What all CPUs counted.
#[derive(Clone, Debug)]
pub struct Counts {
    /// By slot of the rule.
    pub rules: Vec<rl_rule_count>,
    /// Buckets that were made.
    pub made: u64,
    /// Of them, those that took the place of a silent one.
    pub replaced: u64,
    /// Buckets that the kernel's timer took away.
    pub expired: u64,
    /// Packets that found no room, and went by their rule's common bucket.
    pub crowded: u64,
    /// Packets that gave up on a bucket that other CPUs kept changing; they count as over the limit.
    pub contended: u64,
    /// Records written.
    pub events: u64,
    /// Records lost: the ring buffer was full.
    pub ring_full: u64,
}

/// A bucket as the kernel has it: its front, and its back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// Whose it is.
    pub id: u64,
    /// Whose it is, too: see `struct rl_key`.
    pub key: [u64; 4],
    /// See `include/buckets.h`.
    pub word: [u64; 2],
    /// Tick in which it was made.
    pub start: u32,
    /// Packets over the limit since then.
    pub dropped: u32,
    /// Tick until which it is blocked, if it is.
    pub blocked_until: Option<u32>,
}

impl Bucket {
    fn of(bucket: &rl_bucket, back: &rl_back) -> Bucket {
        Bucket {
            id: bucket.id,
            key: [bucket.key, back.key[0], back.key[1], back.key[2]],
            word: [bucket.word, back.word],
            start: bucket.start,
            dropped: back.dropped,
            blocked_until: (bucket.seen >> 31 != 0).then_some(back.blocked_until),
        }
    }
}

/// The loaded object. One thread owns it; it is the only writer of its maps but for the buckets.
pub struct XdpRatelimit {
    skel: XdpRatelimitSkel<'static>,
    generations: Generations,
    rules: Mapped<rl_rules>,
    sets: Mapped<rl_set>,
    backs: Mapped<rl_back>,
    common: Mapped<rl_common>,
    counts: Mapped<rl_cpu_counts>,
    host: Mapped<rl_host>,
    tick_ns: u64,
}

/// A moment as the buckets tell it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub ns: u64,
    /// The kernel's tick counter, jiffies64.
    pub tick: u64,
}

impl XdpRatelimit {
    /// Opens, fixes the switches, loads, and starts the expiry of buckets. No rule is in it yet and nothing runs it.
    ///
    /// # Errors
    /// What the kernel lacks or the verifier says.
    pub fn load(switches: Switches<'_>) -> Result<XdpRatelimit> {
        // The skeleton borrows its storage for as long as it lives, which is as long as the agent.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = XdpRatelimitSkelBuilder::default().open(storage).context("opening xdp_ratelimit")?;
        let second = jiffies_per_second()?;
        let possible = cpu_ids("possible")?;
        ensure!(
            possible <= CPUS_MAX,
            "this machine may have {possible} CPUs, and this agent counts for {CPUS_MAX} at most"
        );
        let sets = (switches.buckets.div_ceil(rl_limits::RL_WAYS.0) as usize).next_power_of_two().max(2);
        let constants = open.maps.rodata_data.as_deref_mut().context("xdp_ratelimit has no constants")?;
        let whiles = |time: Duration| ((time.as_secs() * second) >> fw_while::FW_WHILE_SHIFT.0) as u32;
        constants.multi_buffer = switches.multi_buffer.into();
        constants.steers = switches.steers.into();
        constants.tick_ns = 1_000_000_000 / second;
        constants.tell_interval = second as u32;
        constants.rl_known_after = whiles(KNOWN_AFTER);
        constants.rl_known_for = whiles(KNOWN_FOR);
        constants.rl_sets = sets as u64;
        constants.rl_set_shift = 64 - sets.ilog2();
        for secret in &mut constants.rl_secret {
            *secret = random()? | 1;
        }
        constants.count_cpus = possible as u32;
        let maps = &mut open.maps;
        if let Some(chain) = switches.chain {
            chain.give(&mut maps.xdp_next)?;
        }
        let buckets = sets * rl_limits::RL_WAYS.0 as usize;
        maps.bss_buckets
            .set_value_size((sets * size_of::<rl_set>()) as u32)
            .and(maps.bss_backs.set_value_size((buckets * size_of::<rl_back>()) as u32))
            .context("making room for the buckets")?;
        maps.bss_counts
            .set_value_size((possible * size_of::<rl_cpu_counts>()) as u32)
            .context("giving each CPU its counters")?;
        if let Some(chain) = switches.chain {
            chain.give(&mut open.maps.xdp_next)?;
        }
        if switches.multi_buffer {
            open.progs.xdp_ratelimit.set_flags(libbpf_sys::BPF_F_XDP_HAS_FRAGS);
        }
        let skel = open.load().context("loading xdp_ratelimit")?;
        let maps = &skel.maps;
        let limiter = XdpRatelimit {
            generations: Generations::new(&maps.bss_tables, &maps.bss_control, &maps.fw_rows)?,
            rules: Mapped::within(maps.bss_rules.as_fd(), maps.bss_rules.value_size() as usize, 2)?,
            sets: Mapped::within(maps.bss_buckets.as_fd(), maps.bss_buckets.value_size() as usize, sets)?,
            backs: Mapped::within(maps.bss_backs.as_fd(), maps.bss_backs.value_size() as usize, buckets)?,
            common: Mapped::within(
                maps.bss_common.as_fd(),
                maps.bss_common.value_size() as usize,
                fw_limits::FW_SLOTS.0 as usize,
            )?,
            host: Mapped::within(maps.bss_host.as_fd(), maps.bss_host.value_size() as usize, 1)?,
            tick_ns: 1_000_000_000 / second,
            counts: Mapped::within(maps.bss_counts.as_fd(), maps.bss_counts.value_size() as usize, possible)?,
            skel,
        };
        let started = limiter.skel.progs.start_expiry.test_run(ProgramInput::default());
        let result = started.context("starting the expiry of buckets")?.return_value as i32;
        ensure!(result == 0, "starting the expiry of buckets: step {} was refused", -result);
        let tick = limiter.now()?.tick as u32;
        // SAFETY: within the mapping, a whole word; no packet is there yet. Ticks go round five minutes after boot, so 0
        // would be a time to come.
        unsafe { (&raw mut (*limiter.host.at(0)).cookies_until).write_volatile(tick) };
        Ok(limiter)
    }

    /// The program.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.skel.progs.xdp_ratelimit.as_fd()
    }

    /// Builds the next generation and makes it live; see [`Generations::swap`].
    pub fn swap<R: WriteRows>(&mut self, build: impl FnOnce(&mut fw_tables, &mut rl_rules) -> Result<R>) -> Result<()> {
        let rules = self.rules.values();
        self.generations.swap(|idle, tables| build(tables, &mut rules[idle])).map(|_| ())
    }

    /// A handle of the ring buffer of events.
    pub fn events(&self) -> Result<MapHandle> {
        map::handle(&self.skel.maps.rl_events)
    }

    /// Everything that was counted; all CPUs together.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts {
            rules: vec![rl_rule_count::default(); fw_limits::FW_SLOTS.0 as usize],
            made: 0,
            replaced: 0,
            // SAFETY: within the mapping, a whole word.
            expired: unsafe { (&raw const (*self.host.at(0)).expired).read_volatile() },
            crowded: 0,
            contended: 0,
            events: 0,
            ring_full: 0,
        };
        for cpu in 0..self.counts.len() {
            // A piece at a time: the whole is larger than a thread's stack has room for.
            let all = self.counts.at(cpu);
            // SAFETY: within the mapping, to which only the kernel writes, whole words; see Mapped::at().
            let word = |field: *const u64| unsafe { field.read_volatile() };
            for (slot, sum) in sum.rules.iter_mut().enumerate() {
                // SAFETY: as above; there are as many rules as slots.
                let one = unsafe { (&raw const (*all).rule[slot]).read_volatile() };
                sum.passed += one.passed;
                sum.passed_bytes += one.passed_bytes;
                sum.dropped += one.dropped;
                sum.dropped_bytes += one.dropped_bytes;
            }
            // SAFETY: within the mapping.
            sum.made += word(unsafe { &raw const (*all).made });
            // SAFETY: within the mapping.
            sum.replaced += word(unsafe { &raw const (*all).replaced });
            // SAFETY: within the mapping.
            sum.crowded += word(unsafe { &raw const (*all).crowded });
            // SAFETY: within the mapping.
            sum.contended += word(unsafe { &raw const (*all).contended });
            // SAFETY: within the mapping.
            sum.events += word(unsafe { &raw const (*all).events });
            // SAFETY: within the mapping.
            sum.ring_full += word(unsafe { &raw const (*all).ring_full });
        }
        sum
    }

    /// All buckets that are taken, one after the other, as they were when they were looked at.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> + '_ {
        let ways = rl_limits::RL_WAYS.0 as usize;
        // A bucket that is just being made has an id below 2^40.
        (0..self.sets.len() * ways).map(|at| self.bucket_at(at)).filter(|one| one.id >> 40 != 0)
    }

    /// Room for buckets.
    pub fn capacity(&self) -> usize {
        self.backs.len()
    }

    /// The map by which it tells xdp_syncookie about a packet.
    pub(super) fn orders(&self) -> &impl AsFd {
        &self.skel.maps.syn_order
    }

    /// Whether SYNs may be answered with cookies: this host's stack takes them, and xdp_syncookie runs.
    pub fn set_cookies_usable(&mut self, usable: bool) {
        // SAFETY: within the mapping, a whole word, which only this thread writes.
        unsafe { (&raw mut (*self.host.at(0)).cookies_usable).write_volatile(usable.into()) }
    }

    /// CLOCK_MONOTONIC at tick 0, modulo 2^64.
    pub(super) fn tick_zero_ns(&self) -> u64 {
        // SAFETY: within the mapping; written once, before load() returned.
        unsafe { (&raw const (*self.host.at(0)).tick_zero_ns).read_volatile() }
    }

    /// A bucket by its number, as it was when it was looked at.
    pub fn bucket_at(&self, at: usize) -> Bucket {
        let ways = rl_limits::RL_WAYS.0 as usize;
        // SAFETY: within the mappings (at() checks it), read once as a whole.
        let bucket = unsafe { (&raw const (*self.sets.at(at / ways)).way[at % ways]).read_volatile() };
        // SAFETY: as above.
        Bucket::of(&bucket, &unsafe { self.backs.at(at).read_volatile() })
    }

    /// The common bucket of a slot: of all packets of its rule, or of those that found no room.
    pub fn common_at(&self, slot: usize) -> Bucket {
        // SAFETY: within the mapping, read once as a whole.
        let common = unsafe { self.common.at(slot).read_volatile() };
        Bucket::of(&common.bucket, &common.back)
    }

    /// Asks what would be charged for a frame, without charging it.
    pub fn explain(&self, frame: &[u8], ifindex: u32) -> Result<rl_answered> {
        let meta = size_of::<rl_answered>();
        let mut data = vec![0; meta];
        data.extend_from_slice(frame);
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let context: [u32; 6] = [meta as u32, data.len() as u32, 0, ifindex, 0, 0];
        let mut context: Vec<u8> = context.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut out = vec![0u8; data.len()];
        let input = ProgramInput {
            context_in: Some(&mut context),
            data_in: Some(&data),
            data_out: Some(&mut out),
            ..Default::default()
        };
        let ran = self.skel.progs.explain_limit.test_run(input).context("asking the rate limiter's program")?;
        ensure!(ran.return_value == XDP_PASS, "the rate limiter's program gave no answer");
        from_bytes(&out).context("the rate limiter's program gave no answer")
    }

    /// Now, as the buckets tell it.
    pub fn now(&self) -> Result<Moment> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).context("reading a clock")?;
        let ns = Duration::from(now).as_nanos() as u64;
        Ok(Moment { ns, tick: ns.wrapping_sub(self.tick_zero_ns()) / self.tick_ns })
    }

    /// Sets counters and the common bucket of a slot to nothing, for a new rule that no packet knows yet.
    pub fn clear_slot(&mut self, slot: u32, algorithm: rl_algorithm) -> Result<()> {
        for counts in self.counts.values() {
            counts.rule[slot as usize] = rl_rule_count::default();
        }
        self.renew_common(slot, algorithm)
    }

    /// Makes the common bucket of a slot a new one: the rule counts otherwise from now on. A packet that is charged
    /// meanwhile counts before or after it.
    pub fn renew_common(&mut self, slot: u32, algorithm: rl_algorithm) -> Result<()> {
        let now = self.now()?;
        let common = &mut self.common.values()[slot as usize];
        *common = rl_common::default();
        common.bucket.start = now.tick as u32;
        if matches!(algorithm, rl_algorithm::RL_TOKEN_BUCKET | rl_algorithm::RL_LEAKY_BUCKET) {
            common.bucket.word = now.ns << 16;
        }
        Ok(())
    }

    /// A handle of the map with the timer that frees silent buckets: the timer ends when nobody holds that map.
    pub fn expiry(&self) -> Result<MapHandle> {
        map::handle(&self.skel.maps.rl_expiry)
    }

    /// Its maps, as status shows them.
    pub fn maps(&self) -> Vec<MapFacts> {
        let maps = &self.skel.maps;
        vec![
            map::facts(&maps.bss_tables),
            map::facts(&maps.bss_rules),
            map::facts(&maps.bss_buckets),
            map::facts(&maps.bss_backs),
            map::facts(&maps.bss_common),
            map::facts(&maps.bss_counts),
            map::facts(&maps.rl_events),
            self.generations.rows_facts(),
        ]
    }

    /// Runs the program `repeat` times over a frame as if it had arrived on `ifindex`; enum xdp_action and the average ns.
    pub fn test_run(&self, frame: &[u8], ifindex: u32, repeat: u32) -> Result<(u32, u64)> {
        let mut context: Vec<u8> =
            [0, frame.len() as u32, 0, ifindex, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let input = ProgramInput { context_in: Some(&mut context), data_in: Some(frame), repeat, ..Default::default() };
        let output = self.skel.progs.xdp_ratelimit.test_run(input).context("running xdp_ratelimit on a packet")?;
        Ok((output.return_value, output.duration.as_nanos() as u64))
    }
}
