//! Places for what lasts (a call, a stream): so many in all, and so many of them for one client.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::front::Peer;

/// How many there are, and who has taken some.
#[derive(Debug)]
pub struct Places {
    max: usize,
    per_address: usize,
    here: usize,
    /// One entry for each that is taken: whose it is, by [`Peer::key`].
    taken: Mutex<Vec<u128>>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All are taken: so many.
    InAll(usize),
    /// The client has so many, and gets no more.
    OfAddress(usize),
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    key: u128,
}

impl Places {
    /// `max` places: of these at most `per_address` for one remote address (IPv6: one /64), and `here` for one loopback
    /// address, and for all that come through the Unix socket.
    pub fn new(max: usize, per_address: usize, here: usize) -> Arc<Places> {
        Arc::new(Places { max, per_address, here, taken: Mutex::default() })
    }

    /// Takes one for a client; without an address it came through the Unix socket.
    pub fn take(self: &Arc<Places>, client: Option<SocketAddr>) -> Result<Place, Full> {
        let peer = client.map_or(Peer::Local { uid: 0, gid: 0 }, Peer::net);
        let (key, of_one) = (peer.key(), if peer.is_here() { self.here } else { self.per_address });
        let mut taken = self.taken();
        if taken.len() >= self.max {
            return Err(Full::InAll(self.max));
        }
        if taken.iter().filter(|other| **other == key).count() >= of_one {
            return Err(Full::OfAddress(of_one));
        }
        taken.push(key);
        drop(taken);
        Ok(Place { places: self.clone(), key })
    }

    fn taken(&self) -> MutexGuard<'_, Vec<u128>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(at) = taken.iter().position(|key| *key == self.key) {
            taken.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_leaves_places_for_others() {
        let places = Places::new(6, 2, 3);
        let take = |text: &str| places.take((!text.is_empty()).then(|| text.parse().unwrap()));
        let mut held: Vec<Place> = (0..2).map(|n| take(&format!("[2001:db8::{n}]:1")).unwrap()).collect();
        // Another address of the same network, and of the same host as IPv6 shows it.
        assert_eq!(take("[2001:db8::7:8:9:a]:5").unwrap_err(), Full::OfAddress(2));
        held.push(take("192.0.2.1:1").unwrap());
        held.push(take("[::ffff:192.0.2.1]:2").unwrap());
        assert_eq!(take("192.0.2.1:3").unwrap_err(), Full::OfAddress(2));
        drop(held.drain(..2));
        held.extend((0..3).map(|_| take("").unwrap()));
        assert_eq!(take("").unwrap_err(), Full::OfAddress(3));
        held.push(take("127.0.0.1:1").unwrap());
        assert_eq!(take("192.0.2.2:1").unwrap_err(), Full::InAll(6));
        // A place that is free again is anybody's.
        held.truncate(2);
        assert!(take("[2001:db8::1]:1").is_ok());
        assert_eq!(places.taken().len(), 2);
    }
}
