//! A rate limit as the engine uses it: every field checked and in its own type.

use std::sync::Arc;

use super::limit::{Limit, Unit};
use crate::abi::{fw_while, rl_action, rl_algorithm, rl_rule, rl_scope};
use crate::classify::matching::Match;

/// Whose packets share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Those of a source address, or of an IPv6 prefix.
    PerIp,
    /// Those between two addresses with the same ports and protocol.
    PerFlow,
    /// Those to a destination address.
    PerDst,
    /// All that match the rule.
    Global,
}

impl Scope {
    /// Words that stand for a scope, the usual one first.
    pub const WORDS: &'static [(&'static str, Scope)] = &[
        ("per_ip", Scope::PerIp),
        ("per_flow", Scope::PerFlow),
        ("per_dst", Scope::PerDst),
        ("global", Scope::Global),
        ("source_ip", Scope::PerIp),
        ("src_ip", Scope::PerIp),
        ("per-ip", Scope::PerIp),
    ];

    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Scope::PerIp => "per_ip",
            Scope::PerFlow => "per_flow",
            Scope::PerDst => "per_dst",
            Scope::Global => "global",
        }
    }

    const fn in_kernel(self) -> rl_scope {
        match self {
            Scope::PerIp => rl_scope::RL_PER_IP,
            Scope::PerFlow => rl_scope::RL_PER_FLOW,
            Scope::PerDst => rl_scope::RL_PER_DST,
            Scope::Global => rl_scope::RL_GLOBAL,
        }
    }
}

/// How a bucket counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Tokens come at the rate, a packet takes some; the burst is what there may be of them.
    TokenBucket,
    /// Packets fill it, and it leaks at the rate; the burst is what it holds.
    LeakyBucket,
    /// The rate in each second from the bucket's first packet on.
    FixedWindow,
    /// The rate in the last second, the second before estimated.
    SlidingWindow,
    /// SYNs are answered with cookies while more than a threshold come in a second; the limit is that of the answers
    /// to a source.
    SynCookie,
}

impl Algorithm {
    /// Words that stand for an algorithm.
    pub const WORDS: &'static [(&'static str, Algorithm)] = &[
        ("token_bucket", Algorithm::TokenBucket),
        ("leaky_bucket", Algorithm::LeakyBucket),
        ("fixed_window", Algorithm::FixedWindow),
        ("sliding_window", Algorithm::SlidingWindow),
        ("syn_cookie", Algorithm::SynCookie),
    ];

    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::TokenBucket => "token_bucket",
            Algorithm::LeakyBucket => "leaky_bucket",
            Algorithm::FixedWindow => "fixed_window",
            Algorithm::SlidingWindow => "sliding_window",
            Algorithm::SynCookie => "syn_cookie",
        }
    }

    /// Whether it has a burst; else it counts by windows.
    pub const fn is_bucket(self) -> bool {
        matches!(self, Algorithm::TokenBucket | Algorithm::LeakyBucket)
    }

    /// The kernel's number.
    pub const fn in_kernel(self) -> rl_algorithm {
        match self {
            Algorithm::TokenBucket => rl_algorithm::RL_TOKEN_BUCKET,
            Algorithm::LeakyBucket => rl_algorithm::RL_LEAKY_BUCKET,
            Algorithm::FixedWindow => rl_algorithm::RL_FIXED_WINDOW,
            Algorithm::SlidingWindow => rl_algorithm::RL_SLIDING_WINDOW,
            Algorithm::SynCookie => rl_algorithm::RL_SYN_COOKIE,
        }
    }
}

/// What happens to a packet over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is dropped (in `mode = "block"`).
    Drop,
    /// It goes on; it is counted and told.
    Pass,
    /// It is dropped, and all of its bucket for a while (in `mode = "block"`).
    Block,
}

impl Action {
    /// Words that stand for an action, the usual one first.
    pub const WORDS: &'static [(&'static str, Action)] = &[
        ("drop", Action::Drop),
        ("pass", Action::Pass),
        ("block", Action::Block),
        ("deny", Action::Drop),
        ("log", Action::Pass),
    ];

    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Drop => "drop",
            Action::Pass => "pass",
            Action::Block => "block",
        }
    }

    const fn in_kernel(self) -> rl_action {
        match self {
            Action::Drop => rl_action::RL_DROP,
            Action::Pass => rl_action::RL_PASS,
            Action::Block => rl_action::RL_BLOCK,
        }
    }
}

/// One rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique name, `[A-Za-z0-9_-]`, 1 to 64 characters.
    pub id: String,
    /// Whose rule it is: operators of this namespace may change it. Without one it is the admins'.
    pub namespace: Option<String>,
    /// Lower numbers are asked first; from 1. Equal priorities keep the order in which they were written.
    pub priority: u32,
    /// A rule that is switched off is kept and shown, and never matches.
    pub enabled: bool,
    /// Which packets it is about; never about states.
    pub matches: Match,
    /// Whose packets share a bucket.
    pub scope: Scope,
    /// Bits of an IPv6 source address that count, 1 to 128; [`Rule::IPV6_PREFIX_LEN`] unless the scope is per address.
    pub ipv6_prefix_len: u8,
    /// How much may come. With windows the burst has no meaning and is the default.
    pub limit: Limit,
    /// How it is counted.
    pub algorithm: Algorithm,
    /// What happens to packets over the limit.
    pub action: Action,
    /// SYNs a second that go on, with [`Algorithm::SynCookie`], else 0.
    pub threshold_pps: u32,
    /// How long a bucket is blocked, in seconds, 1 to 86400 with [`Action::Block`], else 0.
    pub block_secs: u32,
    /// What it is a sign of: ids of MITRE ATT&CK techniques, at most 16.
    pub mitre: Vec<Arc<str>>,
    /// Free text for people, at most 256 characters.
    pub description: String,
}

impl Rule {
    /// `priority` when it is not written: behind what anybody would number by hand.
    pub const PRIORITY: u32 = 1000;

    /// `ipv6_prefix_len` when it is not written: what a subscriber has at least.
    pub const IPV6_PREFIX_LEN: u8 = 64;

    /// `threshold_pps` when it is not written: what a listener with a backlog of 1024 takes.
    pub const THRESHOLD_PPS: u32 = 1000;
    /// `rate` of SYN cookies when it is not written: connections that many people behind one address open.
    pub const COOKIE_RATE: u64 = 256;
    /// Answers to a source in a second are counted in 16 bits.
    pub const COOKIE_RATE_MAX: u64 = 65_535;

    /// Whether it answers SYNs.
    pub fn is_about_cookies(&self) -> bool {
        self.algorithm == Algorithm::SynCookie
    }

    /// The rule as a packet that matches it sees it. `instance` is the rule's own number, from 1.
    pub fn in_kernel(&self, instance: u32, ticks_per_second: u64) -> rl_rule {
        rl_rule {
            limit: self.limit.arithmetic(ticks_per_second),
            block_ticks: u64::from(self.block_secs) * ticks_per_second,
            instance,
            threshold: self.threshold_pps,
            algorithm: self.algorithm.in_kernel().0 as u8,
            scope: self.scope.in_kernel().0 as u8,
            action: self.action.in_kernel().0 as u8,
            bits: (self.limit.unit == Unit::Bits).into(),
            fine: self.needs_fine_time(ticks_per_second).into(),
            prefix: self.ipv6_prefix_len,
            hold: self.hold(ticks_per_second),
            ..rl_rule::default()
        }
    }

    /// Whether the buckets of one are as good for the other: the numbers of a limit may change under them.
    pub fn counts_like(&self, other: &Rule) -> bool {
        let what = |rule: &Rule| (rule.scope, rule.ipv6_prefix_len, rule.algorithm, rule.limit.unit);
        what(self) == what(other)
    }

    /// Ticks that the burst takes, rounded up.
    fn burst_ticks(&self, ticks_per_second: u64) -> u128 {
        (u128::from(self.limit.burst) * u128::from(ticks_per_second)).div_ceil(u128::from(self.limit.rate))
    }

    /// Whether a tick is too coarse: a bucket whose burst is worth less than ten of them.
    fn needs_fine_time(&self, ticks_per_second: u64) -> bool {
        const TICKS_MIN: u128 = 10;
        let burst_in_ticks = u128::from(self.limit.burst) * u128::from(ticks_per_second);
        self.algorithm.is_bucket() && burst_in_ticks < TICKS_MIN * u128::from(self.limit.rate)
    }

    /// A bucket that was silent for 2^hold whiles is as good as a new one: the least that is worth two windows and the
    /// burst.
    fn hold(&self, ticks_per_second: u64) -> u8 {
        const HOLD_MAX: u32 = 23;
        let burst = if self.algorithm.is_bucket() { self.burst_ticks(ticks_per_second) } else { 0 };
        let ticks = burst.max(2 * u128::from(ticks_per_second));
        let whiles = ticks.div_ceil(1 << fw_while::FW_WHILE_SHIFT.0);
        whiles.next_power_of_two().ilog2().min(HOLD_MAX) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(rate: u64, burst: u64, algorithm: Algorithm) -> Rule {
        Rule {
            id: "r".to_owned(),
            namespace: None,
            priority: 1,
            enabled: true,
            matches: Match::default(),
            scope: Scope::PerIp,
            ipv6_prefix_len: Rule::IPV6_PREFIX_LEN,
            limit: Limit { rate, burst, unit: Unit::Packets },
            algorithm,
            action: Action::Drop,
            threshold_pps: 0,
            block_secs: 0,
            mitre: Vec::new(),
            description: String::new(),
        }
    }

    #[test]
    fn time_is_as_fine_as_the_burst_needs() {
        let check = |rate, burst, algorithm, fine: u8, hold: u8| {
            let made = rule(rate, burst, algorithm).in_kernel(7, 1000);
            assert_eq!((made.fine, made.hold), (fine, hold), "{rate} {burst} {algorithm:?}");
        };
        // Two seconds are 2000 ticks, 125 whiles.
        check(1000, 10, Algorithm::TokenBucket, 0, 7);
        check(1000, 9, Algorithm::TokenBucket, 1, 7);
        check(1_000_000, 9999, Algorithm::LeakyBucket, 1, 7);
        check(1000, 9, Algorithm::FixedWindow, 0, 7);
        check(1, 43_200, Algorithm::SlidingWindow, 0, 7);
        // 2048 ticks are 128 whiles, and one more is 129.
        check(1000, 2048, Algorithm::TokenBucket, 0, 7);
        check(1000, 2049, Algorithm::TokenBucket, 0, 8);
        check(1, 43_200, Algorithm::TokenBucket, 0, 22);
        assert_eq!(rule(1, 43_200, Algorithm::TokenBucket).in_kernel(1, 1 << 20).hold, 23);
        assert_eq!(rule(1, 1, Algorithm::TokenBucket).in_kernel(1, 1).hold, 0);
    }

    #[test]
    fn the_kernel_gets_the_numbers_of_the_rule() {
        let mut rule = rule(1000, 20_000, Algorithm::LeakyBucket);
        rule.limit.unit = Unit::Bits;
        (rule.scope, rule.action, rule.block_secs) = (Scope::PerDst, Action::Block, 86_400);
        let made = rule.in_kernel(3, 250);
        assert_eq!((made.instance, made.bits, made.prefix), (3, 1, 64));
        assert_eq!(made.block_ticks, 86_400 * 250);
        assert_eq!(u32::from(made.algorithm), rl_algorithm::RL_LEAKY_BUCKET.0);
        assert_eq!(u32::from(made.scope), rl_scope::RL_PER_DST.0);
        assert_eq!(u32::from(made.action), rl_action::RL_BLOCK.0);
        assert_eq!(made.limit.window, 250);
    }
}
