//! How often one client may ask: a token bucket for each, in a table that does not grow.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Clients remembered. Of more, those that have been quiet longest are forgotten, which gives them a full bucket.
const CLIENTS_MAX: usize = 4096;

/// The buckets.
pub struct Rate {
    per_s: f64,
    burst: f64,
    clients: HashMap<u128, Bucket>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rate {
    /// `per_s` in the long run, and `burst` at once.
    pub fn new(per_s: u32, burst: u32) -> Rate {
        Rate { per_s: per_s.into(), burst: burst.into(), clients: HashMap::new() }
    }

    /// Takes one token of `client`'s; when there is none, how long until there is.
    pub fn take(&mut self, client: u128, now: Instant) -> Result<(), Duration> {
        if self.clients.len() >= CLIENTS_MAX && !self.clients.contains_key(&client) {
            self.forget(now);
        }
        let bucket = self.clients.entry(client).or_insert(Bucket { tokens: self.burst, at: now });
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_s;
        bucket.tokens = (bucket.tokens + gained).min(self.burst);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / self.per_s));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    /// Makes room: of those whose bucket is full again nothing needs to be known; else the older half goes.
    fn forget(&mut self, now: Instant) {
        let (per_s, burst) = (self.per_s, self.burst);
        let full = |b: &Bucket| b.tokens + now.saturating_duration_since(b.at).as_secs_f64() * per_s >= burst;
        self.clients.retain(|_, bucket| !full(bucket));
        if self.clients.len() >= CLIENTS_MAX {
            let mut times: Vec<Instant> = self.clients.values().map(|bucket| bucket.at).collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            self.clients.retain(|_, bucket| bucket.at > median);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut rate = Rate::new(10, 3);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!((0..3).map(|_| rate.take(1, at(0))).collect::<Vec<_>>(), [Ok(()); 3]);
        assert_eq!(rate.take(1, at(0)), Err(Duration::from_millis(100)));
        assert_eq!(rate.take(2, at(0)), Ok(()), "another client");
        assert!(rate.take(1, at(50)).is_err());
        assert_eq!(rate.take(1, at(101)), Ok(()));
        assert!(rate.take(1, at(102)).is_err());
        assert_eq!((0..4).map(|_| rate.take(1, at(9000)).is_ok()).collect::<Vec<_>>(), [true, true, true, false]);
    }

    #[test]
    fn the_table_does_not_grow_and_forgets_the_quiet_first() {
        let mut rate = Rate::new(1, 2);
        let start = Instant::now();
        let busy = 7;
        for n in 0..50_000u32 {
            let now = start + Duration::from_micros(n.into());
            rate.take(u128::from(n) + 1000, now).unwrap();
            let _ = rate.take(busy, now);
            assert!(rate.clients.len() <= CLIENTS_MAX);
        }
        assert!(rate.take(busy, start + Duration::from_micros(50_000)).is_err(), "it was forgotten");
    }
}
