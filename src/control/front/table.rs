//! The connections of the front, and what the front has to know of all of them at once.
//!
//! A connection changes only while it is out of the table, between [`Table::take`] and [`Table::put`]. So what is asked
//! for at every event — how many there are of a kind and of a client, how much they hold, who waits longest, whose time
//! is over next — is counted when one is put back, and costs no look at the others.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::connection::{Connection, Stage};
use super::limits::Limits;

/// An instant of a connection's, and its slot: the oldest comes first.
type Times = BTreeSet<(Instant, usize)>;

/// The connections, each in a slot of its own.
pub struct Table {
    slots: Vec<Option<Entry>>,
    all: Tally,
    clients: HashMap<u128, Client>,
    deadlines: Times,
    /// Of those whose client keeps a worker waiting: since when.
    slow: Times,
    /// Of those whose request waits for a worker to begin with its answer: since when.
    waiting: Times,
    /// Of those that tiny_http has not answered at all yet: since when it has had them.
    handed_over: Times,
    limits: Limits,
}

struct Entry {
    connection: Box<Connection>,
    /// As it was counted.
    note: Note,
}

/// Numbers of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// That ask or are answered; streams are not among them.
    pub served: usize,
    /// Of these, in the TLS handshake.
    pub handshakes: usize,
    /// Whose requests the workers have. A stream is a worker's until its head has come.
    pub in_flight: usize,
    pub streams: usize,
    /// That only wait for their client to close.
    pub lingering: usize,
    /// Bytes of bodies and answers, of all of them together.
    pub held: usize,
}

/// What the front knows of the connections of one address or user.
#[derive(Default)]
struct Client {
    connections: usize,
    tally: Tally,
    /// Of those whose requests are complete and have no worker yet: since when.
    queued: Times,
}

/// What counts of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    key: u128,
    tally: Tally,
    deadline: Option<Instant>,
    slow: Option<Instant>,
    waiting: Option<Instant>,
    handed_over: Option<Instant>,
    queued: Option<Instant>,
}

impl Note {
    fn of(connection: &Connection, limits: &Limits) -> Note {
        let served = !connection.refused && !connection.stream;
        let tally = Tally {
            served: served.into(),
            handshakes: (served && connection.client.is_handshaking()).into(),
            in_flight: (connection.upstream.is_some() && !connection.stream).into(),
            streams: connection.stream.into(),
            lingering: connection.refused.into(),
            held: connection.held(),
        };
        Note {
            key: connection.peer.key(),
            tally,
            deadline: connection.deadline(limits),
            slow: connection.slow_since(),
            waiting: connection.waiting_since(),
            handed_over: connection.handed_over_since(),
            queued: (connection.stage == Stage::Queued).then(|| connection.since()),
        }
    }
}

impl Tally {
    /// This one with the result of `count` for each pair of numbers.
    fn with(&mut self, other: &Tally, count: impl Fn(usize, usize) -> usize) {
        let Tally { served, handshakes, in_flight, streams, lingering, held } = self;
        *served = count(*served, other.served);
        *handshakes = count(*handshakes, other.handshakes);
        *in_flight = count(*in_flight, other.in_flight);
        *streams = count(*streams, other.streams);
        *lingering = count(*lingering, other.lingering);
        *held = count(*held, other.held);
    }
}

impl Table {
    /// Room for so many.
    pub fn new(slots: usize, limits: Limits) -> Table {
        Table {
            slots: (0..slots).map(|_| None).collect(),
            all: Tally::default(),
            clients: HashMap::new(),
            deadlines: Times::new(),
            slow: Times::new(),
            waiting: Times::new(),
            handed_over: Times::new(),
            limits,
        }
    }

    /// How many it has room for.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// A slot without a connection.
    pub fn vacant(&self) -> Option<usize> {
        self.slots.iter().position(Option::is_none)
    }

    pub fn get(&self, slot: usize) -> Option<&Connection> {
        Some(&*self.slots.get(slot)?.as_ref()?.connection)
    }

    /// Every slot with a connection, and that.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Connection)> {
        self.slots.iter().enumerate().filter_map(|(slot, entry)| Some((slot, &*entry.as_ref()?.connection)))
    }

    /// Takes one out: to change it and put it back, or to close it.
    pub fn take(&mut self, slot: usize) -> Option<Box<Connection>> {
        let Entry { connection, note } = self.slots.get_mut(slot)?.take()?;
        self.all.with(&note.tally, |all, one| all - one);
        if let Some(client) = self.clients.get_mut(&note.key) {
            client.connections -= 1;
            client.tally.with(&note.tally, |all, one| all - one);
            if let Some(since) = note.queued {
                client.queued.remove(&(since, slot));
            }
            if client.connections == 0 {
                self.clients.remove(&note.key);
            }
        }
        for (times, at) in self.times(&note) {
            if let Some(at) = at {
                times.remove(&(at, slot));
            }
        }
        Some(connection)
    }

    /// Puts one into a slot that is vacant.
    pub fn put(&mut self, slot: usize, connection: Box<Connection>) {
        let note = Note::of(&connection, &self.limits);
        self.all.with(&note.tally, |all, one| all + one);
        let client = self.clients.entry(note.key).or_default();
        client.connections += 1;
        client.tally.with(&note.tally, |all, one| all + one);
        client.queued.extend(note.queued.map(|since| (since, slot)));
        for (times, at) in self.times(&note) {
            times.extend(at.map(|at| (at, slot)));
        }
        self.slots[slot] = Some(Entry { connection, note });
    }

    fn times(&mut self, note: &Note) -> [(&mut Times, Option<Instant>); 4] {
        [
            (&mut self.deadlines, note.deadline),
            (&mut self.slow, note.slow),
            (&mut self.waiting, note.waiting),
            (&mut self.handed_over, note.handed_over),
        ]
    }

    /// Of all that are in the table.
    pub fn all(&self) -> Tally {
        self.all
    }

    /// Of these, of one address or user: see [`super::Peer::key`].
    pub fn of(&self, key: u128) -> Tally {
        self.clients.get(&key).map_or_else(Tally::default, |client| client.tally)
    }

    /// When the next of them has waited too long.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Those that have waited too long.
    pub fn expired(&self, now: Instant) -> Vec<usize> {
        self.deadlines.range(..=(now, usize::MAX)).map(|(_, slot)| *slot).collect()
    }

    /// How many workers wait for their client, and which of these connections has kept its worker longest, since when.
    pub fn slow(&self) -> (usize, Option<(Instant, usize)>) {
        (self.slow.len(), self.slow.first().copied())
    }

    /// Since when a request has waited for a worker to begin with its answer.
    pub fn longest_waiting(&self) -> Option<Instant> {
        self.waiting.first().map(|(since, _)| *since)
    }

    /// Since when tiny_http has had the newest of the requests that it has not answered at all.
    pub fn last_handed_over(&self) -> Option<Instant> {
        self.handed_over.last().map(|(since, _)| *since)
    }

    /// The complete request that has waited longest, of a client of which the workers have fewer than so many.
    pub fn next_queued(&self, in_flight_of_one: usize) -> Option<usize> {
        let clients = self.clients.values().filter(|client| client.tally.in_flight < in_flight_of_one);
        clients.filter_map(|client| client.queued.first()).min().map(|(_, slot)| *slot)
    }

    /// Counts all anew, as one would who had no notes.
    #[cfg(test)]
    pub fn check(&self) {
        let mut anew = Table::new(self.slots.len(), self.limits.clone());
        for (slot, entry) in self.slots.iter().enumerate() {
            let Some(Entry { connection, note }) = entry else { continue };
            assert_eq!(*note, Note::of(connection, &self.limits), "slot {slot} changed in the table");
            anew.all.with(&note.tally, |all, one| all + one);
            for (times, at) in anew.times(note) {
                times.extend(at.map(|at| (at, slot)));
            }
        }
        assert_eq!(self.all, anew.all);
        assert_eq!(self.deadlines, anew.deadlines);
        assert_eq!(self.slow, anew.slow);
        assert_eq!(self.waiting, anew.waiting);
        assert_eq!(self.handed_over, anew.handed_over);
        let mut keys = BTreeSet::new();
        for (_, connection) in self.iter() {
            let key = connection.peer.key();
            let own = || self.iter().filter(|(_, c)| c.peer.key() == key);
            let (client, mut tally) = (&self.clients[&key], Tally::default());
            own().for_each(|(_, c)| tally.with(&Note::of(c, &self.limits).tally, |all, one| all + one));
            let queued = own().filter(|(_, c)| c.stage == Stage::Queued).map(|(slot, c)| (c.since(), slot)).collect();
            assert_eq!((client.connections, client.tally, &client.queued), (own().count(), tally, &queued));
            keys.insert(key);
        }
        assert_eq!(self.clients.keys().copied().collect::<BTreeSet<_>>(), keys);
    }
}
