//! Which limit a packet would be charged to, asked of the kernel's program, and how full its bucket is.

use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::Serialize;

use super::Ratelimit;
use super::api::BucketView;
use super::buckets::{bucket_view, common_view};
use super::rule::Action;
use crate::abi::{fw_answer, rl_place};
use crate::bpf;
use crate::bpf::xdp_ratelimit::Bucket;
use crate::classify::rules::Mode;

/// The limit that is meant for a packet, and its bucket as it is before that packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LimitView {
    /// What the rate limiter would do: `pass`, `drop`, `challenge` (answer with a SYN cookie), or `would_drop` and
    /// `would_challenge` (over the limit, and passed because of `action = "pass"` or `mode = "alert"`).
    pub verdict: &'static str,
    /// Whose packets share the bucket: per_ip, per_flow, per_dst or global.
    pub scope: &'static str,
    /// Whether this packet would be the first one of its bucket.
    pub is_new: bool,
    /// Whether it passes whatever the limit says: an answer to this host's DHCP client, or of somebody whom the lock-out
    /// guard lets in.
    pub is_exempt: bool,
    /// The bucket. Without one so far, what it would be.
    #[serde(flatten)]
    pub bucket: BucketView,
}

impl LimitView {
    /// All of it in a sentence.
    pub fn text(&self) -> String {
        let BucketView { bucket, available, algorithm, unit, rate, .. } = &self.bucket;
        let fate = match self.verdict {
            _ if self.is_exempt => "which it passes in any case",
            "pass" => "which it passes",
            "drop" => "which drops it",
            "challenge" => "which answers it with a SYN cookie",
            _ => "which it is over and passes, since nothing is to be dropped",
        };
        let state = match bucket.blocked_secs_left {
            0 => format!("{available} {unit} are available"),
            secs => format!("blocked for {secs} seconds more"),
        };
        let (rule, scope) = (&bucket.rule, self.scope);
        format!("Then it meets the rate limit {rule} ({scope}, {algorithm}, {rate} {unit} a second; {state}), {fate}.")
    }
}

impl Ratelimit {
    /// The limit that is meant for a frame which arrives on an interface and passes the firewall; charges nothing.
    /// `None` when there is none.
    pub fn explain(&self, frame: &[u8], ifindex: u32) -> Result<Option<LimitView>> {
        let answered = self.kernel.explain(frame, ifindex)?;
        if answered.answer & fw_answer::FW_NO_MATCH.0 != 0 {
            return Ok(None);
        }
        let slot = (answered.answer & fw_answer::FW_SLOT_MASK.0) as usize;
        let name = self.names.get(slot).cloned().flatten().context("the program named a rule that is not there")?;
        let rule = &self.placings.get(&*name).context("the program named a rule that is gone")?.rule;
        let (now, ticks) = (self.kernel.now()?, bpf::jiffies_per_second()?);
        let place = rl_place(answered.place.into());
        let of = match place {
            rl_place::RL_OWN => self.kernel.bucket_at(answered.at as usize),
            rl_place::RL_COMMON => self.kernel.common_at(slot),
            _ => Bucket {
                start: now.tick as u32,
                word: [if rule.algorithm.is_bucket() { now.ns << 16 } else { 0 }, 0],
                ..Bucket::default()
            },
        };
        let mut bucket = bucket_view(rule, &of, now, ticks);
        if place == rl_place::RL_COMMON {
            bucket.bucket = common_view(rule, &of, now, ticks);
        }
        if place == rl_place::RL_NEW {
            // It has no key so far.
            (bucket.bucket.source, bucket.bucket.destination, bucket.bucket.protocol) = (None, None, None);
        }
        let passes = rule.action == Action::Pass || self.config.mode == Mode::Alert;
        let verdict = match (answered.over != 0 && answered.exempt == 0, rule.is_about_cookies()) {
            (false, _) => "pass",
            (true, false) if passes => "would_drop",
            (true, false) => "drop",
            (true, true) if passes => "would_challenge",
            (true, true) => "challenge",
        };
        Ok(Some(LimitView {
            verdict,
            scope: rule.scope.name(),
            is_new: place == rl_place::RL_NEW,
            is_exempt: answered.exempt != 0,
            bucket,
        }))
    }
}
