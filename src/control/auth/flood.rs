//! Slows down whoever guesses.
//!
//! Each client address (of IPv6 its /64) may present [`Limits::burst`] bad credentials at once, and then one in each
//! [`Limits::pause`]; beyond that it is told to wait. API keys, which could be guessed, are then not even looked at. But a
//! key that was good from that address before is: a neighbour behind the same address who guesses locks nobody out, and
//! guessing gains nothing, as such a key would have to be guessed first. Tokens cannot be guessed, so they are checked
//! in any case, and only the answer to a bad one changes.
//!
//! The table of addresses is bounded. Those that were not heard of for a while make room; if none can, the addresses
//! that find none share one allowance.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use sha2::{Digest, Sha256};

use crate::api::whose;

/// What an address may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bad credentials at once.
    pub burst: u32,
    /// Time after which there may be another one.
    pub pause: Duration,
    /// Addresses that are known at a time.
    pub addresses: usize,
    /// An address that was silent for so long may be forgotten.
    pub forget: Duration,
}

impl Limits {
    /// Those of the agent.
    pub const DEFAULT: Limits =
        Limits { burst: 10, pause: Duration::from_secs(2), addresses: 4096, forget: Duration::from_secs(600) };
}

/// Credentials that are remembered as good, for each address.
const GOOD_MAX: usize = 8;

/// A credential, remembered without being kept.
pub type Fingerprint = [u8; 16];

/// Allowance of one address.
#[derive(Clone, Debug)]
struct Bucket {
    used: Duration,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Bucket {
        Bucket { used: Duration::ZERO, at: now }
    }

    /// Time until another one is allowed; zero when it is now.
    fn wait(&mut self, limits: &Limits, now: Instant) -> Duration {
        self.used = self.used.saturating_sub(now.saturating_duration_since(self.at));
        self.at = now;
        (self.used + limits.pause).saturating_sub(limits.pause * limits.burst)
    }

    /// Uses one if there is one; else the time until there is.
    fn take(&mut self, limits: &Limits, now: Instant) -> Result<(), Duration> {
        match self.wait(limits, now) {
            Duration::ZERO => {
                self.used += limits.pause;
                Ok(())
            }
            wait => Err(wait),
        }
    }
}

#[derive(Debug)]
struct Entry {
    guesses: Bucket,
    /// How often its refusals are told in log and audit.
    told: Bucket,
    /// Refusals that were not told since the last one that was.
    untold: u64,
    good: Vec<Fingerprint>,
    heard: Instant,
}

impl Entry {
    fn new(now: Instant) -> Entry {
        Entry { guesses: Bucket::new(now), told: Bucket::new(now), untold: 0, good: Vec::new(), heard: now }
    }
}

struct Table {
    entries: HashMap<IpAddr, Entry>,
    /// For addresses that found no room.
    common: Entry,
    swept: Instant,
}

/// What is known of client addresses.
pub struct Flood {
    limits: Limits,
    /// So that fingerprints say nothing about credentials.
    secret: [u8; 16],
    table: Mutex<Table>,
}

impl Flood {
    /// Knows nobody.
    pub fn new(limits: Limits, now: Instant) -> Flood {
        let mut secret = [0; 16];
        rand::fill(&mut secret).expect("the kernel has random numbers");
        let table = Table { entries: HashMap::default(), common: Entry::new(now), swept: now };
        Flood { limits, secret, table: Mutex::new(table) }
    }

    /// What is remembered of a credential.
    pub fn fingerprint(&self, credential: &str) -> Fingerprint {
        let digest = Sha256::new().chain_update(self.secret).chain_update(credential).finalize();
        digest[..16].try_into().expect("a digest is longer")
    }

    /// How long the client must wait before a credential that can be guessed is looked at; `None` when it is now.
    pub fn refuses(&self, address: IpAddr, credential: &Fingerprint, now: Instant) -> Option<Duration> {
        self.with(address, now, |entry, limits| {
            if entry.good.contains(credential) {
                return None;
            }
            Some(entry.guesses.wait(limits, now)).filter(|wait| !wait.is_zero())
        })
    }

    /// A bad credential came; with how long the client must wait when there were too many.
    pub fn failed(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        self.with(address, now, |entry, limits| entry.guesses.take(limits, now))
    }

    /// A good credential came that could have been guessed.
    pub fn succeeded(&self, address: IpAddr, credential: Fingerprint, now: Instant) {
        self.with(address, now, |entry, _| {
            if entry.good.contains(&credential) {
                return;
            }
            if entry.good.len() == GOOD_MAX {
                entry.good.remove(0);
            }
            entry.good.push(credential);
        });
    }

    /// Whether a refusal is told, with the number of those that were not since the last one; the others are only counted.
    pub fn may_tell(&self, address: IpAddr, now: Instant) -> Option<u64> {
        self.with(address, now, |entry, limits| match entry.told.take(limits, now) {
            Ok(()) => Some(std::mem::take(&mut entry.untold)),
            Err(_) => {
                entry.untold += 1;
                None
            }
        })
    }

    fn with<A>(&self, address: IpAddr, now: Instant, ask: impl FnOnce(&mut Entry, &Limits) -> A) -> A {
        let address = whose(address);
        let mut table = self.lock();
        let Table { entries, common, swept } = &mut *table;
        let is_full = entries.len() >= self.limits.addresses && !entries.contains_key(&address);
        // Not with each request: it is a walk through all of them.
        if is_full && now.saturating_duration_since(*swept) >= Duration::from_secs(1) {
            *swept = now;
            entries.retain(|_, entry| now.saturating_duration_since(entry.heard) < self.limits.forget);
        }
        let entry = if entries.len() >= self.limits.addresses && !entries.contains_key(&address) {
            // Nobody is remembered as good here: whom it is about is not known.
            common.good.clear();
            common
        } else {
            entries.entry(address).or_insert_with(|| Entry::new(now))
        };
        entry.heard = now;
        ask(entry, &self.limits)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    const LIMITS: Limits =
        Limits { burst: 3, pause: Duration::from_secs(2), addresses: 2, forget: Duration::from_secs(60) };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn guesses_are_slowed_by_address() {
        let start = Instant::now();
        let flood = Flood::new(LIMITS, start);
        let at = |ms: u64| start + Duration::from_millis(ms);
        let (one, two) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let (good, bad) = (flood.fingerprint("good"), flood.fingerprint("bad"));
        flood.succeeded(one, good, at(0));
        for _ in 0..3 {
            assert_eq!(flood.refuses(one, &bad, at(0)), None);
            assert_eq!(flood.failed(one, at(0)), Ok(()));
        }
        assert_eq!(flood.refuses(one, &bad, at(500)), Some(Duration::from_millis(1500)));
        assert_eq!(flood.failed(one, at(500)), Err(Duration::from_millis(1500)));
        // Who was let in from here before still is; the other address does not know the key, and has its own allowance.
        assert_eq!(flood.refuses(one, &good, at(500)), None);
        assert_eq!(flood.refuses(one, &flood.fingerprint("goood"), at(500)), Some(Duration::from_millis(1500)));
        assert_eq!(flood.refuses(two, &bad, at(500)), None);
        assert_eq!(flood.refuses(ip("::ffff:192.0.2.1"), &bad, at(500)), Some(Duration::from_millis(1500)));
        assert_eq!(flood.refuses(one, &bad, at(2000)), None);
        assert_eq!(flood.failed(one, at(2000)), Ok(()));
        assert_eq!(flood.refuses(one, &bad, at(2000)), Some(Duration::from_millis(2000)));
        // After a rest all is as at first, and no more.
        for _ in 0..3 {
            assert_eq!(flood.failed(one, at(3_600_000)), Ok(()));
        }
        assert!(flood.failed(one, at(3_600_000)).is_err());
    }

    #[test]
    fn the_table_is_bounded() {
        let start = Instant::now();
        let flood = Flood::new(LIMITS, start);
        let at = |secs: u64| start + Duration::from_secs(secs);
        let bad = flood.fingerprint("bad");
        for n in 0..1000u32 {
            let address = IpAddr::from(Ipv6Addr::from_bits(u128::from(n) << 64 | u128::from(n)));
            // Two have their own allowance, all others one together.
            assert_eq!(flood.failed(address, at(2)).is_ok(), n < 5, "{n}");
        }
        assert_eq!(flood.lock().entries.len(), 2);
        let stranger = ip("192.0.2.9");
        flood.succeeded(stranger, bad, at(2));
        assert!(flood.refuses(stranger, &bad, at(2)).is_some(), "the common entry remembers nobody");
        assert_eq!(flood.refuses(stranger, &bad, at(62)), None);
        assert_eq!(flood.lock().entries.keys().collect::<Vec<_>>(), [&stranger]);
        for credential in 0..100u8 {
            flood.succeeded(stranger, [credential; 16], at(62));
        }
        assert_eq!(flood.lock().entries[&stranger].good.len(), GOOD_MAX);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let start = Instant::now();
        let flood = Flood::new(LIMITS, start);
        for n in 0..3u128 {
            assert_eq!(flood.failed(IpAddr::from(Ipv6Addr::from_bits(7 << 64 | n)), start), Ok(()));
        }
        assert!(flood.failed(IpAddr::from(Ipv6Addr::from_bits(7 << 64 | 99)), start).is_err());
    }

    #[test]
    fn what_is_not_told_is_counted() {
        let start = Instant::now();
        let flood = Flood::new(LIMITS, start);
        let one = ip("192.0.2.1");
        let told: Vec<_> = (0..8).map(|_| flood.may_tell(one, start)).collect();
        assert_eq!(told, [Some(0), Some(0), Some(0), None, None, None, None, None]);
        assert_eq!(flood.may_tell(one, start + Duration::from_secs(2)), Some(5));
    }
}
