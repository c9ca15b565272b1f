//! A table of bounded size whose entries are forgotten: when they were silent for too long, and, when it is full, the one
//! that was silent longest.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// An entry.
struct Item<V> {
    /// Tells it from an earlier one with the same key.
    number: u64,
    last_ns: u64,
    value: V,
}

/// The table.
pub struct Aged<K, V> {
    items: HashMap<K, Item<V>>,
    /// Entries by the time at which they were made or last looked at here; some of them are gone.
    queue: VecDeque<(u64, u64, K)>,
    room: usize,
    made: u64,
    /// Keys that were forgotten, for whoever keeps another table in step.
    forgotten: Option<Vec<K>>,
}

impl<K: Copy + Eq + Hash, V> Aged<K, V> {
    /// A table of `room` entries. With `notes` it keeps the keys that it forgets; see [`Aged::forgotten`].
    pub fn new(room: usize, notes: bool) -> Aged<K, V> {
        let forgotten = notes.then(Vec::new);
        Aged { items: HashMap::new(), queue: VecDeque::new(), room: room.max(1), made: 0, forgotten }
    }

    /// Keys that were forgotten since this was asked before.
    pub fn forgotten(&mut self) -> Vec<K> {
        self.forgotten.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// What is known; forgets it first if it was silent for longer than `timeout_ns` allows.
    pub fn find(&mut self, key: &K, now_ns: u64, timeout_ns: impl Fn(&V) -> u64) -> Option<&mut V> {
        let is_over = |item: &Item<V>| now_ns.saturating_sub(item.last_ns) > timeout_ns(&item.value);
        if self.items.get(key).is_some_and(is_over) {
            self.remove(key);
        }
        self.items.get_mut(key).map(|item| &mut item.value)
    }

    /// An entry was heard of.
    pub fn touch(&mut self, key: &K, now_ns: u64) {
        if let Some(item) = self.items.get_mut(key) {
            item.last_ns = now_ns;
        }
    }

    /// Makes or replaces an entry.
    pub fn insert(&mut self, key: K, value: V, now_ns: u64) {
        if let Some(item) = self.items.get_mut(&key) {
            (item.last_ns, item.value) = (now_ns, value);
            return;
        }
        while self.items.len() >= self.room {
            self.evict();
        }
        if self.queue.len() >= 2 * self.room {
            let items = &self.items;
            self.queue.retain(|(number, _, key)| items.get(key).is_some_and(|item| item.number == *number));
        }
        self.made += 1;
        self.items.insert(key, Item { number: self.made, last_ns: now_ns, value });
        self.queue.push_back((self.made, now_ns, key));
    }

    fn remove(&mut self, key: &K) {
        self.items.remove(key);
        if let Some(forgotten) = &mut self.forgotten {
            forgotten.push(*key);
        }
    }

    /// Forgets the entry that was silent longest, or puts one that was not back in line.
    fn evict(&mut self) {
        let Some((number, queued_ns, key)) = self.queue.pop_front() else {
            return self.items.clear();
        };
        match self.items.get(&key) {
            Some(item) if item.number == number && item.last_ns > queued_ns => {
                self.queue.push_back((number, item.last_ns, key));
            }
            Some(item) if item.number == number => self.remove(&key),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_silent_make_room_and_are_told() {
        let mut table = Aged::new(2, true);
        table.insert(1, 'a', 10);
        table.insert(2, 'b', 20);
        table.touch(&1, 30);
        table.insert(3, 'c', 40);
        assert_eq!(table.forgotten(), [2]);
        assert_eq!(table.find(&1, 130, |_| 100), Some(&mut 'a'));
        assert_eq!(table.find(&1, 131, |_| 100), None);
        assert_eq!(table.forgotten(), [1]);
        // One that comes again is another one: its old place in the queue is of no meaning.
        table.insert(1, 'd', 140);
        table.insert(4, 'e', 150);
        assert_eq!(table.forgotten(), [3]);
        assert_eq!(table.find(&1, 150, |_| 100), Some(&mut 'd'));
    }

    #[test]
    fn its_queue_does_not_grow_without_bound() {
        let mut table = Aged::new(4, false);
        for turn in 0..1000u64 {
            table.insert(turn % 3, (), turn);
            assert_eq!(table.find(&(turn % 3), turn + 10, |()| 5), None);
        }
        assert!(table.queue.len() <= 8, "{}", table.queue.len());
        assert!(table.forgotten().is_empty());
    }
}
