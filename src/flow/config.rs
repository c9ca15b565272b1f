//! Section `[ids]` as written -> as used: which packets are inspected, how deep, and how much memory that may take.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Checksums, Limits};
use crate::written::{Bytes, Reader};

/// Parts of an inspector's memory: what is out of order, what was delivered lately, and fragments. Parsers and flows have
/// the rest.
const HELD_PART: u64 = 3;
const HISTORY_PART: u64 = 16;
const FRAGMENTS_PART: u64 = 8;

/// Threads that inspect, at most.
pub const WORKERS_MAX: usize = 64;
/// Least memory, in bytes.
const MEMORY_MIN: u64 = 1 << 20;

/// Which flows the kernel copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SamplingMode {
    /// All of them.
    #[default]
    None,
    /// Each packet by chance. Streams get gaps: good for counting, not for reading.
    Random,
    /// Whole flows, by a secret hash.
    Hash,
}

impl SamplingMode {
    /// The words of the configuration.
    pub const WORDS: &'static [(&'static str, SamplingMode)] =
        &[("none", SamplingMode::None), ("random", SamplingMode::Random), ("hash", SamplingMode::Hash)];
}

/// Table `[ids.sampling]`, checked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Sampling {
    /// How flows or packets are chosen.
    pub mode: SamplingMode,
    /// Which part of them, 0 to 1.
    pub rate: f64,
}

// The rate is never NaN: it is read from 0 to 1.
impl Eq for Sampling {}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling { mode: SamplingMode::None, rate: 1.0 }
    }
}

/// Section `[ids]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CaptureConfig {
    /// Whether flows are inspected; `null`: where something needs it, such as rules of `[l7]`.
    pub enabled: Option<bool>,
    /// Bytes of payload of a TCP flow and direction that are inspected; what follows only is counted.
    pub stream_depth: u64,
    /// Packets of a UDP flow and direction that are inspected; anew after a minute of silence.
    pub udp_packets: u32,
    /// Which flows.
    pub sampling: Sampling,
    /// Threads that inspect; 0: one for every two CPUs.
    pub workers: usize,
    /// Flows that are known at the same time.
    pub max_flows: u32,
    /// Bytes that segments and fragments out of order, and parsers, may hold together.
    pub memory: u64,
    /// Whether segments with wrong checksums are left out, as their receiver leaves them out. What this host sends has
    /// its checksums made by the network card, and is taken as it is.
    pub check_checksums: bool,
}

impl Default for CaptureConfig {
    fn default() -> CaptureConfig {
        CaptureConfig {
            enabled: None,
            stream_depth: 1 << 20,
            udp_packets: 256,
            sampling: Sampling::default(),
            workers: 0,
            max_flows: 262_144,
            memory: 256 << 20,
            check_checksums: true,
        }
    }
}

impl CaptureConfig {
    /// Reads the section.
    pub fn read(mut r: Reader<'_>) -> CaptureConfig {
        let default = CaptureConfig::default();
        let enabled = r.key("enabled").boolean();
        let stream_depth = r.key("stream_depth").parse_or_integer::<Bytes>();
        let udp_packets = r.key("udp_packets").integer(0..=65_535u32).unwrap_or(default.udp_packets);
        let sampling = r.key("sampling").table().map(read_sampling).unwrap_or_default();
        let workers = r.key("workers").integer(0..=WORKERS_MAX).unwrap_or(default.workers);
        let max_flows = r.key("max_flows").integer(1024..=8_388_608u32).unwrap_or(default.max_flows);
        let memory = r.key("memory");
        let memory_bytes = memory.parse_or_integer::<Bytes>().map_or(default.memory, |bytes| bytes.0);
        if memory_bytes < MEMORY_MIN {
            memory.error("give 1MiB or more");
        }
        let check_checksums = r.key("check_checksums").boolean().unwrap_or(default.check_checksums);
        r.finish();
        CaptureConfig {
            enabled,
            stream_depth: stream_depth.map_or(default.stream_depth, |bytes| bytes.0),
            udp_packets,
            sampling,
            workers,
            max_flows,
            memory: memory_bytes,
            check_checksums,
        }
    }

    /// What one of so many inspectors, of which this is the one with that number, may keep: its share of what the section
    /// allows.
    pub fn limits(&self, number: usize, inspectors: usize) -> Limits {
        let memory = self.memory / inspectors as u64;
        Limits {
            flows_max: self.max_flows.div_ceil(inspectors as u32),
            memory_max: memory as usize,
            held_total_max: (memory / HELD_PART) as usize,
            history_bytes: (memory / HISTORY_PART) as usize,
            fragment_bytes_max: (memory / FRAGMENTS_PART) as usize,
            check_checksums: if self.check_checksums { Checksums::Auto } else { Checksums::Trust },
            worker: (number as u16, inspectors as u16),
            ..Limits::default()
        }
    }

    /// Threads that inspect on a machine of so many CPUs.
    pub fn workers_on(&self, cpus: usize) -> usize {
        if self.workers > 0 { self.workers } else { cpus.div_ceil(2).clamp(1, WORKERS_MAX) }
    }
}

fn read_sampling(mut r: Reader<'_>) -> Sampling {
    let (mode_field, rate_field) = (r.key("mode"), r.key("rate"));
    let mode = mode_field.one_of(SamplingMode::WORDS);
    let rate = rate_field.number(0.0..=1.0).unwrap_or(1.0);
    r.finish();
    let is_none = mode == Some(SamplingMode::None) || !mode_field.is_present();
    if is_none && rate < 1.0 {
        rate_field.error("goes with mode = \"hash\" or \"random\"; it is \"none\", which inspects everything");
    }
    Sampling { mode: mode.unwrap_or_default(), rate }
}
