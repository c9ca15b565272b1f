//! The kernel's buckets for people: whose they are, and how full. `include/buckets.h` says what the words mean.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::api::{BucketView, TopView};
use super::limit::Limit;
use super::rule::{Algorithm, Rule, Scope};
use crate::abi::rl_limit;
use crate::bpf::xdp_ratelimit::{Bucket, Moment};
use crate::classify::matching::Protocol;

/// Bits of a bucket's id below the instance of its rule: protocol and ports, where the scope looks at them.
const INSTANCE_SHIFT: u32 = 40;
/// Highest instance of a rule: a bucket's id has 24 bits for it.
pub const INSTANCE_MAX: u32 = (1 << (64 - INSTANCE_SHIFT)) - 1;
/// Bits of a window's word that are its units.
const WINDOW_UNITS: u32 = 40;

/// Which rule's bucket it is.
pub fn instance_of(bucket: &Bucket) -> u32 {
    (bucket.id >> INSTANCE_SHIFT) as u32
}

/// One of the two addresses of a key, the first or the second, IPv4 mapped.
fn words(rule: &Rule, bucket: &Bucket, second: bool) -> u128 {
    if rule.scope != Scope::PerFlow && bucket.id as u8 == 4 {
        return Ipv4Addr::from_bits(bucket.key[0] as u32).to_ipv6_mapped().into();
    }
    let at = if second { 2 } else { 0 };
    u128::from(bucket.key[at]) << 64 | u128::from(bucket.key[at + 1])
}

/// Whether a bucket counts packets from or to an address.
pub fn is_about(rule: &Rule, bucket: &Bucket, address: IpAddr) -> bool {
    // IPv4 stands in keys as IPv6 that is mapped.
    let wanted: u128 = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        IpAddr::V6(v6) => v6.into(),
    };
    let prefix = if address.is_ipv4() { 128 } else { rule.ipv6_prefix_len };
    let mask = u128::MAX << (128 - u32::from(prefix));
    match rule.scope {
        Scope::PerIp => words(rule, bucket, false) == wanted & mask,
        Scope::PerDst => words(rule, bucket, false) == wanted,
        Scope::PerFlow => words(rule, bucket, false) == wanted || words(rule, bucket, true) == wanted,
        Scope::Global => false,
    }
}

/// Whose bucket it is, and what happened to packets over its limit.
pub fn top_view(rule: &Rule, of: &Bucket, now: Moment, ticks_per_second: u64) -> TopView {
    let address = |second| Ipv6Addr::from(words(rule, of, second)).to_canonical();
    let source = match (rule.scope, address(false)) {
        (Scope::PerIp, IpAddr::V6(v6)) if rule.ipv6_prefix_len < 128 => {
            IpNet::new(v6.into(), rule.ipv6_prefix_len).ok().map(|net| net.to_string())
        }
        (Scope::PerIp | Scope::PerFlow, address) => Some(address.to_string()),
        _ => None,
    };
    let is_flow = rule.scope == Scope::PerFlow;
    let (ports, protocol) = (of.id as u32, (of.id >> 32) as u8);
    let port = |port: u32| (is_flow && ports != 0).then_some(port as u16);
    let ticks_left = |until: u32| until.wrapping_sub(now.tick as u32).cast_signed().max(0).cast_unsigned();
    TopView {
        rule: rule.id.clone(),
        common: (rule.scope == Scope::Global).then_some("all"),
        source,
        destination: match rule.scope {
            Scope::PerFlow => Some(address(true)),
            Scope::PerDst => Some(address(false)),
            Scope::PerIp | Scope::Global => None,
        },
        src_port: port(ports >> 16),
        dst_port: port(ports & 0xffff),
        protocol: is_flow.then(|| Protocol::Number(protocol).to_string()),
        dropped: of.dropped,
        blocked_secs_left: u64::from(of.blocked_until.map_or(0, ticks_left)).div_ceil(ticks_per_second) as u32,
    }
}

/// The same of a rule's common bucket.
pub fn common_view(rule: &Rule, of: &Bucket, now: Moment, ticks_per_second: u64) -> TopView {
    let TopView { dropped, blocked_secs_left, .. } = top_view(rule, of, now, ticks_per_second);
    TopView {
        rule: rule.id.clone(),
        common: Some(if rule.scope == Scope::Global || rule.is_about_cookies() { "all" } else { "crowded" }),
        source: None,
        destination: None,
        src_port: None,
        dst_port: None,
        protocol: None,
        dropped,
        blocked_secs_left,
    }
}

/// A bucket of its own, and how full it is.
pub fn bucket_view(rule: &Rule, of: &Bucket, now: Moment, ticks_per_second: u64) -> BucketView {
    BucketView {
        bucket: top_view(rule, of, now, ticks_per_second),
        available: match rule.algorithm {
            // SYNs of this second that would still go on, of all sources.
            Algorithm::SynCookie => {
                let rate = u64::from(rule.threshold_pps.max(1));
                let limit = Limit { rate, burst: rate, ..rule.limit };
                let left = available(rule.algorithm, &limit.arithmetic(ticks_per_second), of, now);
                if rule.threshold_pps == 0 { 0 } else { left }
            }
            _ => available(rule.algorithm, &rule.limit.arithmetic(ticks_per_second), of, now),
        },
        algorithm: rule.algorithm.name(),
        unit: rule.limit.unit.name(),
        rate: rule.limit.rate,
        burst: rule.algorithm.is_bucket().then_some(rule.limit.burst),
    }
}

/// Units that would pass at a moment.
fn available(algorithm: Algorithm, limit: &rl_limit, bucket: &Bucket, now: Moment) -> u64 {
    if algorithm.is_bucket() {
        let wait = bucket.word[0].wrapping_sub(now.ns << 16).cast_signed().max(0).cast_unsigned();
        let room = limit.depth.saturating_sub(wait);
        return ((u128::from(room) << limit.shift) / u128::from(limit.scale.max(1))) as u64;
    }
    let ticks = (now.tick as u32).wrapping_sub(bucket.start);
    let (number, elapsed) = (u64::from(ticks / limit.window), u64::from(ticks % limit.window));
    let units = |word: u64, number: u64| {
        let is_its = word >> WINDOW_UNITS == number & ((1 << (64 - WINDOW_UNITS)) - 1);
        if is_its { word & ((1 << WINDOW_UNITS) - 1) } else { 0 }
    };
    let window = u64::from(limit.window);
    let used = match algorithm {
        Algorithm::SlidingWindow => {
            let (this, before) = (bucket.word[(number & 1) as usize], bucket.word[(!number & 1) as usize]);
            let older = u128::from(units(before, number.wrapping_sub(1))) * u128::from(window - elapsed);
            units(this, number) + older.div_ceil(u128::from(window)) as u64
        }
        _ => units(bucket.word[0], number),
    };
    limit.per_window.saturating_sub(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::ratelimit::limit::{Limit, Unit};

    #[test]
    fn what_is_available_is_what_is_left() {
        let limit = Limit { rate: 10, burst: 20, unit: Unit::Packets }.arithmetic(100);
        let now = Moment { ns: 5_000_000_000, tick: 500 };
        let check = |algorithm, word: [u64; 2], start, left| {
            let bucket = Bucket { id: 0, key: [0; 4], word, start, dropped: 0, blocked_until: None };
            assert_eq!(available(algorithm, &limit, &bucket, now), left, "{algorithm:?} {word:?}");
        };
        let second = 1_000_000_000 << 16;
        check(Algorithm::TokenBucket, [5 * second, 0], 0, 20);
        check(Algorithm::TokenBucket, [second, 0], 0, 20);
        check(Algorithm::TokenBucket, [6 * second, 0], 0, 10);
        check(Algorithm::LeakyBucket, [9 * second, 0], 0, 0);
        check(Algorithm::FixedWindow, [4 << 40 | 7, 0], 50, 3);
        check(Algorithm::FixedWindow, [3 << 40 | 7, 0], 50, 10);
        // Half a second into window 4: half of the 6 of window 3 still count.
        check(Algorithm::SlidingWindow, [4 << 40 | 2, 3 << 40 | 6], 50, 5);
    }
}
