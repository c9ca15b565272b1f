//! Slows down whoever guesses.
//!
//! Each client address (of IPv6 its /64) may present [`Limits::burst`] bad credentials at once, and then one in each
//! [`Limits::pause`]; beyond that it is told to wait. API keys, which could be guessed, are then not even looked at.
//! But a key that was good from that address before is: a neighbour behind the same address who guesses locks nobody
//! out, and guessing gains nothing, as such a key would have to be guessed first. Tokens and certificates cannot be
//! guessed, so they are checked in any case, and only the answer to a bad one changes; they have an allowance of their
//! own, so that a client whose token has expired costs the keys beside it nothing.
//!
//! Who has one network of IPv6 may have many: all of a /48 together have [`NET_TIMES`] the allowance of one address,
//! and [`NET_ENTRIES`] of them entries of their own. The table of addresses is bounded. An entry whose allowances are
//! whole again says nothing and makes room; if none does, the addresses that find no room share one allowance. What was
//! good from where is kept apart from it, and only somebody who has a good key can add to that: a flood of bad
//! credentials, from however many addresses, takes it from nobody.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use sha2::{Digest, Sha256};

use crate::api::whose;
use crate::config::auth::API_KEYS_MAX;

/// What an address may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bad credentials of a kind at once.
    pub burst: u32,
    /// Time after which there may be another one.
    pub pause: Duration,
    /// Addresses that are known at a time.
    pub addresses: usize,
}

impl Limits {
    /// Those of the agent.
    pub const DEFAULT: Limits = Limits { burst: 10, pause: Duration::from_secs(2), addresses: 4096 };
}

/// How many times the allowance of one address all of a /48, or all that find no room in the table, have together.
const NET_TIMES: u32 = 4;
/// Networks of one /48 that have an entry of their own.
const NET_ENTRIES: usize = 16;
/// Good credentials that are remembered; the one that was silent longest makes room. Those of the configuration fit,
/// and as many that were in it before.
const GOOD_MAX: usize = 2 * API_KEYS_MAX;
/// Addresses from which one of them is remembered as good. Of more, the one that was silent longest is forgotten, so
/// the holder of a key who comes from everywhere forgets only their own.
const GOOD_ADDRESSES: usize = 64;
/// Between two walks through a full table.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// A credential, remembered without being kept.
pub type Fingerprint = [u8; 16];

/// What a bad credential was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An API key, which could be guessed.
    Key,
    /// A token or a certificate.
    Signed,
}

/// An allowance.
#[derive(Clone, Debug)]
struct Bucket {
    used: Duration,
    at: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Bucket {
        Bucket { used: Duration::ZERO, at: now }
    }

    /// What is used of it.
    fn used(&self, now: Instant) -> Duration {
        self.used.saturating_sub(now.saturating_duration_since(self.at))
    }

    /// Time until another one is allowed; zero when it is now. `times` is how many times it is that of one address.
    fn wait(&self, limits: &Limits, times: u32, now: Instant) -> Duration {
        (self.used(now) + limits.pause / times).saturating_sub(limits.pause * limits.burst)
    }

    fn take(&mut self, limits: &Limits, times: u32, now: Instant) {
        self.used = self.used(now) + limits.pause / times;
        self.at = now;
    }
}

#[derive(Debug)]
struct Entry {
    keys: Bucket,
    signed: Bucket,
    /// How often its refusals are told in log and audit.
    told: Bucket,
    /// Refusals that were not told since the last one that was.
    untold: u64,
    /// Of a /48: how many of its networks have entries.
    nets: usize,
}

impl Entry {
    fn new(now: Instant) -> Entry {
        Entry { keys: Bucket::new(now), signed: Bucket::new(now), told: Bucket::new(now), untold: 0, nets: 0 }
    }

    fn bucket(&mut self, which: Which) -> &mut Bucket {
        match which {
            Which::Bad(Kind::Key) => &mut self.keys,
            Which::Bad(Kind::Signed) => &mut self.signed,
            Which::Told => &mut self.told,
        }
    }

    /// Whether it says no more than a new one would, but for what was not told.
    fn is_whole(&self, now: Instant) -> bool {
        [&self.keys, &self.signed, &self.told].iter().all(|bucket| bucket.used(now).is_zero())
    }
}

/// One of the allowances of an entry.
#[derive(Clone, Copy)]
enum Which {
    Bad(Kind),
    Told,
}

/// Whose an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Whose {
    /// A client (see [`whose`])'s.
    Address(IpAddr),
    /// A /48's.
    Net(Ipv6Addr),
    /// All that found no room.
    Others,
}

impl Whose {
    /// How many times the allowance of one address is theirs.
    fn times(self) -> u32 {
        match self {
            Whose::Address(_) => 1,
            Whose::Net(_) | Whose::Others => NET_TIMES,
        }
    }

    /// The /48 of an address of IPv6.
    fn net(self) -> Option<Whose> {
        match self {
            Whose::Address(IpAddr::V6(v6)) => Some(Whose::Net(Ipv6Addr::from_bits(v6.to_bits() >> 80 << 80))),
            _ => None,
        }
    }
}

struct Table {
    entries: HashMap<Whose, Entry>,
    others: Entry,
    swept: Instant,
    /// From where a credential was good, and when it last was.
    good: HashMap<Fingerprint, Vec<(IpAddr, Instant)>>,
}

impl Table {
    /// Whose allowances are those of a client at `address`, with entries for them.
    fn whose(&mut self, address: IpAddr, limits: &Limits, now: Instant) -> Vec<Whose> {
        let own = Whose::Address(address);
        let Some(net) = own.net() else {
            return vec![if self.has(own, limits, now) { own } else { Whose::Others }];
        };
        if !self.has(net, limits, now) {
            return vec![Whose::Others];
        }
        if !self.entries.contains_key(&own) {
            if self.entry(net).nets >= NET_ENTRIES {
                return vec![net];
            }
            // Before room is looked for: it keeps the entry of the net in the table.
            self.entry(net).nets += 1;
            if !self.has(own, limits, now) {
                self.entry(net).nets -= 1;
                return vec![net];
            }
        }
        vec![own, net]
    }

    /// Whether there is an entry, be it a new one.
    fn has(&mut self, whose: Whose, limits: &Limits, now: Instant) -> bool {
        if self.entries.contains_key(&whose) {
            return true;
        }
        // Not with each request: it is a walk through all of them.
        if self.entries.len() >= limits.addresses && now.saturating_duration_since(self.swept) >= SWEEP_PAUSE {
            self.sweep(now);
        }
        if self.entries.len() >= limits.addresses {
            return false;
        }
        self.entries.insert(whose, Entry::new(now));
        true
    }

    /// Forgets the entries that say nothing.
    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        let mut untold = 0;
        let mut forget = |entry: &Entry| {
            let goes = entry.nets == 0 && entry.is_whole(now);
            untold += if goes { entry.untold } else { 0 };
            goes
        };
        let mut left = Vec::new();
        self.entries.retain(|whose, entry| {
            let goes = forget(entry);
            left.extend(whose.net().filter(|_| goes));
            !goes
        });
        for net in left {
            self.entry(net).nets -= 1;
        }
        // Networks of which none is left.
        self.entries.retain(|_, entry| !forget(entry));
        self.others.untold += untold;
    }

    fn entry(&mut self, whose: Whose) -> &mut Entry {
        self.entries.get_mut(&whose).unwrap_or(&mut self.others)
    }

    /// The time until all of them allow another one.
    fn wait(&mut self, whose: &[Whose], which: Which, limits: &Limits, now: Instant) -> Duration {
        let waits = whose.iter().map(|&one| self.entry(one).bucket(which).wait(limits, one.times(), now));
        waits.max().unwrap_or_default()
    }

    /// Uses one of each if all of them allow it; else the time until they do.
    fn take(&mut self, whose: &[Whose], which: Which, limits: &Limits, now: Instant) -> Result<(), Duration> {
        match self.wait(whose, which, limits, now) {
            Duration::ZERO => {
                whose.iter().for_each(|&one| self.entry(one).bucket(which).take(limits, one.times(), now));
                Ok(())
            }
            wait => Err(wait),
        }
    }
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
        let table =
            Table { entries: HashMap::default(), others: Entry::new(now), swept: now, good: HashMap::default() };
        Flood { limits, secret, table: Mutex::new(table) }
    }

    /// What is remembered of a credential.
    pub fn fingerprint(&self, credential: &str) -> Fingerprint {
        let digest = Sha256::new().chain_update(self.secret).chain_update(credential).finalize();
        digest[..16].try_into().expect("a digest is longer")
    }

    /// How long the client must wait before a key is looked at; `None` when it is now.
    pub fn refuses(&self, address: IpAddr, key: &Fingerprint, now: Instant) -> Option<Duration> {
        let address = whose(address);
        let mut table = self.lock();
        if table.good.get(key).is_some_and(|known| known.iter().any(|(from, _)| *from == address)) {
            return None;
        }
        let whose = table.whose(address, &self.limits, now);
        Some(table.wait(&whose, Which::Bad(Kind::Key), &self.limits, now)).filter(|wait| !wait.is_zero())
    }

    /// A bad credential came; with how long the client must wait when there were too many.
    pub fn failed(&self, address: IpAddr, kind: Kind, now: Instant) -> Result<(), Duration> {
        let mut table = self.lock();
        let whose = table.whose(whose(address), &self.limits, now);
        table.take(&whose, Which::Bad(kind), &self.limits, now)
    }

    /// A good key came.
    pub fn succeeded(&self, address: IpAddr, key: Fingerprint, now: Instant) {
        let address = whose(address);
        let mut table = self.lock();
        let good = &mut table.good;
        if good.len() >= GOOD_MAX && !good.contains_key(&key) {
            let last = |known: &[(IpAddr, Instant)]| known.iter().map(|(_, at)| *at).max();
            if let Some(oldest) = good.iter().min_by_key(|(_, known)| last(known)).map(|(key, _)| *key) {
                good.remove(&oldest);
            }
        }
        let known = good.entry(key).or_default();
        if let Some((_, at)) = known.iter_mut().find(|(from, _)| *from == address) {
            *at = now;
            return;
        }
        if known.len() >= GOOD_ADDRESSES
            && let Some(oldest) = (0..known.len()).min_by_key(|&place| known[place].1)
        {
            known.swap_remove(oldest);
        }
        known.push((address, now));
    }

    /// Whether a refusal is told, with the number of those that were not since the last one, here or from addresses
    /// that were forgotten meanwhile; the others are only counted.
    pub fn may_tell(&self, address: IpAddr, now: Instant) -> Option<u64> {
        let mut table = self.lock();
        let whose = table.whose(whose(address), &self.limits, now);
        match table.take(&whose, Which::Told, &self.limits, now) {
            Ok(()) => {
                let own: u64 = whose.iter().map(|&one| std::mem::take(&mut table.entry(one).untold)).sum();
                Some(own + std::mem::take(&mut table.others.untold))
            }
            Err(_) => {
                table.entry(whose[0]).untold += 1;
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LIMITS: Limits = Limits { burst: 3, pause: Duration::from_secs(2), addresses: 2 };

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
            assert_eq!(flood.failed(one, Kind::Key, at(0)), Ok(()));
        }
        assert_eq!(flood.refuses(one, &bad, at(500)), Some(Duration::from_millis(1500)));
        assert_eq!(flood.failed(one, Kind::Key, at(500)), Err(Duration::from_millis(1500)));
        // Who was let in from here before still is; the other address does not know the key, and has its own allowance.
        assert_eq!(flood.refuses(one, &good, at(500)), None);
        assert_eq!(flood.refuses(one, &flood.fingerprint("goood"), at(500)), Some(Duration::from_millis(1500)));
        assert_eq!(flood.refuses(two, &bad, at(500)), None);
        assert_eq!(flood.refuses(ip("::ffff:192.0.2.1"), &bad, at(500)), Some(Duration::from_millis(1500)));
        assert_eq!(flood.refuses(one, &bad, at(2000)), None);
        assert_eq!(flood.failed(one, Kind::Key, at(2000)), Ok(()));
        assert_eq!(flood.refuses(one, &bad, at(2000)), Some(Duration::from_millis(2000)));
        // After a rest all is as at first, and no more.
        for _ in 0..3 {
            assert_eq!(flood.failed(one, Kind::Key, at(3_600_000)), Ok(()));
        }
        assert!(flood.failed(one, Kind::Key, at(3_600_000)).is_err());
    }

    /// Addresses of IPv6, each in a /64 of its own: those of a /48 first.
    fn network(n: u32) -> IpAddr {
        IpAddr::from(Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(n) << 64 | u128::from(n)))
    }

    fn bad_ones(flood: &Flood, address: IpAddr, now: Instant) -> usize {
        (0..10).filter(|_| flood.failed(address, Kind::Key, now).is_ok()).count()
    }

    #[test]
    fn the_table_is_bounded() {
        let start = Instant::now();
        let flood = Flood::new(LIMITS, start);
        let at = |secs: u64| start + Duration::from_secs(secs);
        let bad = flood.fingerprint("bad");
        for n in 0..1000u32 {
            // Two have their own allowance, all others one together, which is that of four.
            let allowed = if n < 2 {
                3
            } else if n < 3 {
                10
            } else if n < 4 {
                2
            } else {
                0
            };
            assert_eq!(bad_ones(&flood, IpAddr::from(Ipv4Addr::from_bits(n)), at(2)), allowed, "{n}");
        }
        assert_eq!(flood.lock().entries.len(), 2);
        let stranger = ip("192.0.2.9");
        assert!(flood.refuses(stranger, &bad, at(2)).is_some(), "there is a limit, though no room");
        // An entry whose allowance is whole again says nothing.
        assert_eq!(flood.refuses(stranger, &bad, at(8)), None);
        assert_eq!(flood.lock().entries.keys().collect::<Vec<_>>(), [&Whose::Address(stranger)]);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let start = Instant::now();
        let flood = Flood::new(LIMITS, start);
        let host = |n: u128| IpAddr::from(Ipv6Addr::from_bits(7 << 64 | n));
        for n in 0..3u128 {
            assert_eq!(flood.failed(host(n), Kind::Key, start), Ok(()));
        }
        assert!(flood.failed(host(99), Kind::Key, start).is_err());
    }

    #[test]
    fn many_networks_of_one_48_neither_fill_the_table_nor_guess_for_ever() {
        let start = Instant::now();
        let flood = Flood::new(Limits { addresses: 100, ..LIMITS }, start);
        let allowed: usize = (0..1000).map(|n| bad_ones(&flood, network(n), start)).sum();
        assert_eq!(allowed, 3 * NET_TIMES as usize, "as many as four addresses");
        assert_eq!(flood.lock().entries.len(), 1 + NET_ENTRIES);
        // Whoever is elsewhere has an allowance of their own.
        assert_eq!(bad_ones(&flood, ip("192.0.2.1"), start), 3);
        assert_eq!(bad_ones(&flood, ip("2001:db8:1::1"), start), 3);
        // When all is whole again, nothing is left of it.
        let later = start + Duration::from_secs(6);
        flood.lock().sweep(later);
        assert_eq!(flood.lock().entries.len(), 0);
        assert_eq!(bad_ones(&flood, network(5), later), 3);
        assert_eq!(flood.lock().entry(Whose::Address(network(0)).net().unwrap()).nets, 1);
    }

    #[test]
    fn a_flood_from_everywhere_locks_no_known_client_out() {
        let start = Instant::now();
        let flood = Flood::new(Limits { addresses: 50, ..LIMITS }, start);
        let keys: Vec<Fingerprint> = (0..20u8).map(|n| flood.fingerprint(&format!("key {n}"))).collect();
        let office = ip("198.51.100.7");
        keys.iter().for_each(|key| flood.succeeded(office, *key, start));
        // An hour in which nothing was heard of them, with a flood at its end from networks that have nothing in
        // common.
        let now = start + Duration::from_secs(3600);
        let mut allowed = 0;
        for n in 0..10_000u32 {
            allowed += bad_ones(&flood, network(n << 16), now);
            allowed += bad_ones(&flood, IpAddr::from(Ipv4Addr::from_bits(n)), now);
        }
        assert!(allowed <= 50 * 3 + 3 * NET_TIMES as usize, "{allowed} guesses");
        assert_eq!(flood.lock().entries.len(), 50);
        for key in &keys {
            assert_eq!(flood.refuses(office, key, now), None);
        }
        // Nor is a key good from elsewhere, or another one from there, for that.
        assert!(flood.refuses(ip("198.51.100.8"), &keys[0], now).is_some());
        assert!(flood.refuses(office, &flood.fingerprint("a guess"), now).is_some());
    }

    #[test]
    fn bad_tokens_cost_keys_nothing() {
        let start = Instant::now();
        let flood = Flood::new(LIMITS, start);
        let (one, key) = (ip("192.0.2.1"), flood.fingerprint("key"));
        let tokens = (0..10).filter(|_| flood.failed(one, Kind::Signed, start).is_ok()).count();
        assert_eq!((tokens, flood.refuses(one, &key, start)), (3, None));
        assert_eq!(bad_ones(&flood, one, start), 3);
        assert!(flood.refuses(one, &key, start).is_some());
    }

    #[test]
    fn what_is_remembered_as_good_is_bounded() {
        let start = Instant::now();
        let flood = Flood::new(LIMITS, start);
        let at = |ms: u64| start + Duration::from_millis(ms);
        let (own, other) = (flood.fingerprint("own"), flood.fingerprint("other"));
        let office = ip("198.51.100.7");
        flood.succeeded(office, other, start);
        // Somebody who has a key comes from everywhere.
        for n in 0..1000u32 {
            flood.succeeded(network(n), own, at(n.into()));
        }
        assert_eq!(flood.lock().good[&own].len(), GOOD_ADDRESSES);
        assert!(flood.lock().good[&own].iter().any(|(from, _)| *from == whose(network(999))));
        assert!(flood.lock().good[&other].iter().any(|(from, _)| *from == office));
        for n in 0..2 * GOOD_MAX as u64 {
            flood.succeeded(office, flood.fingerprint(&n.to_string()), at(1000 + n));
            flood.succeeded(office, other, at(1000 + n));
        }
        let table = flood.lock();
        assert_eq!(table.good.len(), GOOD_MAX);
        assert!(table.good.contains_key(&other) && !table.good.contains_key(&own), "the silent one has gone");
    }

    #[test]
    fn what_is_not_told_is_counted() {
        let start = Instant::now();
        let flood = Flood::new(LIMITS, start);
        let one = ip("192.0.2.1");
        let told: Vec<_> = (0..8).map(|_| flood.may_tell(one, start)).collect();
        assert_eq!(told, [Some(0), Some(0), Some(0), None, None, None, None, None]);
        assert_eq!(flood.may_tell(one, start + Duration::from_secs(2)), Some(5));
        // Nor is it lost with what is known of the address.
        let later = start + Duration::from_secs(100);
        assert!((0..5).filter_map(|_| flood.may_tell(one, later)).eq([0; 3]));
        flood.lock().sweep(later + Duration::from_secs(100));
        assert_eq!(flood.lock().entries.len(), 0);
        assert_eq!(flood.may_tell(ip("192.0.2.2"), later + Duration::from_secs(100)), Some(2));
    }
}
