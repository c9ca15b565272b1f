//! A limit as the user means it, and as the kernel's arithmetic (`include/buckets.h`) takes it.

use std::fmt;

use thiserror::Error;

use crate::abi::rl_limit;

/// A second in the kernel side's unit of time, 2^-16 ns.
const SECOND: u128 = 1_000_000_000 << 16;

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Packets, whatever their size.
    Packets,
    /// Bits of the frames.
    Bits,
}

impl Unit {
    /// Words that stand for a unit.
    pub const WORDS: &'static [(&'static str, Unit)] = &[("packets", Unit::Packets), ("bits", Unit::Bits)];

    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Unit::Packets => "packets",
            Unit::Bits => "bits",
        }
    }

    /// Rates that the kernel side can count with, in units a second: lowest and highest.
    pub fn rates(self) -> (u64, u64) {
        match self {
            Unit::Packets => (1, 1_000_000_000),
            Unit::Bits => (1000, 999_999_999_999),
        }
    }

    /// The smallest burst: a packet, or the bits of a full Ethernet frame with a tag. With less it would never pass.
    pub fn burst_min(self) -> u64 {
        match self {
            Unit::Packets => 1,
            Unit::Bits => 1518 * 8,
        }
    }

    /// Power of two below which `scale` has to stay, so that a packet's cost times `scale` stays below 2^63: a packet
    /// costs 1, a frame fewer than 2^19 bits.
    fn scale_bits(self) -> u32 {
        match self {
            Unit::Packets => 63,
            Unit::Bits => 44,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// So many units a second, and how many may come at once after a rest. Algorithms that count by windows take no notice
/// of the burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Units a second.
    pub rate: u64,
    /// Units at once.
    pub burst: u64,
    /// What is counted.
    pub unit: Unit,
}

/// Why a limit cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LimitError {
    /// The rate is outside of [`Unit::rates`].
    #[error("a rate of {rate} {unit} a second is not between {} and {}", .unit.rates().0, .unit.rates().1)]
    Rate {
        /// The rate asked for.
        rate: u64,
        /// What it counts.
        unit: Unit,
    },
    /// The burst is below [`Unit::burst_min`].
    #[error("a burst of {burst} {unit} is below {}, so a full packet would never pass", .unit.burst_min())]
    BurstTooSmall {
        /// The burst asked for.
        burst: u64,
        /// What it counts.
        unit: Unit,
    },
    /// The burst is worth more than [`Limit::BURST_SECONDS_MAX`].
    #[error(
        "a burst of {burst} {unit} takes more than {} hours at {rate} {unit} a second",
        Limit::BURST_SECONDS_MAX / 3600
    )]
    BurstTooLong {
        /// The burst asked for.
        burst: u64,
        /// The rate that goes with it.
        rate: u64,
        /// What they count.
        unit: Unit,
    },
}

impl Limit {
    /// How long an empty bucket may take to fill. The kernel side has room for 19 hours.
    pub const BURST_SECONDS_MAX: u64 = 12 * 3600;

    /// Whether the kernel side can count with this limit.
    ///
    /// # Errors
    /// What is out of bounds, and what the bound is.
    pub fn check(&self) -> Result<(), LimitError> {
        let Limit { rate, burst, unit } = *self;
        let (lowest, highest) = unit.rates();
        if !(lowest..=highest).contains(&rate) {
            return Err(LimitError::Rate { rate, unit });
        }
        if burst < unit.burst_min() {
            return Err(LimitError::BurstTooSmall { burst, unit });
        }
        if burst > rate * Limit::BURST_SECONDS_MAX {
            return Err(LimitError::BurstTooLong { burst, rate, unit });
        }
        Ok(())
    }

    /// The numbers that `include/buckets.h` takes, all rounded down; it says how much that is. Only for a limit that
    /// passes [`Limit::check`], on a kernel with so many ticks a second: at least one, at most 2^20.
    pub fn arithmetic(&self, ticks_per_second: u64) -> rl_limit {
        debug_assert_eq!(self.check(), Ok(()));
        debug_assert!((1..=1 << 20).contains(&ticks_per_second));
        let rate = u128::from(self.rate);
        let scale = |shift: u32| (SECOND << shift) / rate;
        let shift = (0..64).rev().find(|&shift| scale(shift) < 1 << self.unit.scale_bits()).unwrap_or(0);
        rl_limit {
            scale: scale(shift) as u64,
            depth: (u128::from(self.burst) * SECOND / rate) as u64,
            per_window: self.rate,
            shift,
            window: ticks_per_second as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(rate: u64, burst: u64) -> Limit {
        Limit { rate, burst, unit: Unit::Packets }
    }

    fn bits(rate: u64, burst: u64) -> Limit {
        Limit { rate, burst, unit: Unit::Bits }
    }

    #[test]
    fn a_limit_that_the_kernel_side_cannot_count_with_is_refused() {
        const HALF_A_DAY: u64 = 12 * 3600;
        let check = |limit: Limit, said: &str| {
            let answer = limit.check().map_or_else(|error| error.to_string(), |()| String::new());
            assert_eq!(answer, said, "{limit:?}");
        };
        check(packets(1, 1), "");
        check(packets(1, HALF_A_DAY), "");
        check(packets(1_000_000_000, 1_000_000_000 * HALF_A_DAY), "");
        check(bits(1000, 12_144), "");
        check(bits(1000, 1000 * HALF_A_DAY), "");
        check(bits(999_999_999_999, 999_999_999_999 * HALF_A_DAY), "");
        check(packets(0, 1), "a rate of 0 packets a second is not between 1 and 1000000000");
        check(packets(1_000_000_001, 1), "a rate of 1000000001 packets a second is not between 1 and 1000000000");
        check(bits(999, 12_144), "a rate of 999 bits a second is not between 1000 and 999999999999");
        check(
            bits(u64::MAX, 12_144),
            &format!("a rate of {} bits a second is not between 1000 and 999999999999", u64::MAX),
        );
        check(packets(1, 0), "a burst of 0 packets is below 1, so a full packet would never pass");
        check(bits(1000, 12_143), "a burst of 12143 bits is below 12144, so a full packet would never pass");
        check(packets(1, HALF_A_DAY + 1), "a burst of 43201 packets takes more than 12 hours at 1 packets a second");
        check(
            bits(2000, u64::MAX),
            &format!("a burst of {} bits takes more than 12 hours at 2000 bits a second", u64::MAX),
        );
    }

    #[test]
    fn the_arithmetic_is_as_its_header_says() {
        let check = |limit: Limit, scale: u64, shift: u32, depth: u64| {
            let made = limit.arithmetic(250);
            assert_eq!((made.scale, made.shift, made.depth), (scale, shift, depth), "{limit:?}");
            assert_eq!((made.per_window, made.window), (limit.rate, 250), "{limit:?}");
        };
        let second: u64 = 1_000_000_000 << 16;
        check(packets(1, 2), second << 17, 17, 2 * second);
        check(packets(3, 3), 5_726_623_061_333_333_333, 18, second);
        check(packets(1_000_000_000, 5), 1 << 62, 46, 5 << 16);
        check(bits(1000, 12_144), (second / 1000) << 8, 8, second / 1000 * 12_144);
        check(bits(999_999_999_999, 1_000_000_000_000), 9_007_199_254_749, 37, 65_536_000_000_065);
    }

    #[test]
    fn nothing_overflows_and_scale_is_as_fine_as_it_can_be() {
        for unit in [Unit::Packets, Unit::Bits] {
            let (lowest, highest) = unit.rates();
            let cost_max = if unit == Unit::Packets { 1 } else { 65535 * 8 };
            let mut rate = lowest;
            while rate < highest {
                for rate in [rate, rate + 1, highest] {
                    let limit = Limit { rate, burst: rate * Limit::BURST_SECONDS_MAX, unit };
                    let made = limit.arithmetic(1000);
                    let bits = unit.scale_bits();
                    assert!(made.scale >> (bits - 1) == 1 && made.shift < 64, "{limit:?}: {made:?}");
                    assert!(made.scale.checked_mul(cost_max).is_some_and(|product| product < 1 << 63), "{limit:?}");
                    assert!(made.depth < 1 << 62 && made.per_window < 1 << 40, "{limit:?}: {made:?}");
                    // A whole burst at once is never more than the depth.
                    assert!(made.scale >> made.shift <= made.depth, "{limit:?}");
                }
                rate = rate * 17 / 16 + 1;
            }
        }
    }
}
