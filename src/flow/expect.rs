//! Connections that a conversation announced: FTP's data.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::limits::SECOND_NS;
use super::stats::Stats;
use crate::packet::proto::ftp::Transfer;

/// How long a connection is waited for.
const TIMEOUT_NS: u64 = 60 * SECOND_NS;

/// Who will open it, and where to.
type Key = (IpAddr, SocketAddr);

struct Waiting {
    transfer: Arc<Transfer>,
    until_ns: u64,
    /// The flow that met it.
    met_by: Option<u64>,
}

/// Announcements that were not met yet, or lately.
#[derive(Default)]
pub(super) struct Expectations {
    waiting: HashMap<Key, Waiting>,
    /// In the order of their time.
    order: VecDeque<Key>,
}

impl Expectations {
    /// Notes an announcement. If the same one was met by a flow already, gives the flow's id: a file may be named after
    /// its connection was opened.
    pub(super) fn announce(
        &mut self,
        key: Key,
        transfer: &Arc<Transfer>,
        now_ns: u64,
        max: usize,
        stats: &mut Stats,
    ) -> Option<u64> {
        self.expire(now_ns, stats);
        if self.waiting.contains_key(&key) {
            self.order.retain(|other| *other != key);
        }
        while self.order.len() >= max.max(1) {
            stats.expected_evicted += u64::from(self.drop_first());
        }
        let met_by = self.waiting.get(&key).and_then(|old| old.met_by);
        let until_ns = now_ns.saturating_add(TIMEOUT_NS);
        self.waiting.insert(key, Waiting { transfer: transfer.clone(), until_ns, met_by });
        self.order.push_back(key);
        met_by
    }

    /// The transfer of a new flow, if it was announced.
    pub(super) fn meet(&mut self, key: &Key, flow_id: u64, now_ns: u64, stats: &mut Stats) -> Option<Arc<Transfer>> {
        if self.waiting.is_empty() {
            return None;
        }
        self.expire(now_ns, stats);
        let waiting = self.waiting.get_mut(key)?;
        waiting.met_by = Some(flow_id);
        stats.expected_met += 1;
        Some(waiting.transfer.clone())
    }

    fn expire(&mut self, now_ns: u64, stats: &mut Stats) {
        while let Some(key) = self.order.front()
            && self.waiting.get(key).is_none_or(|waiting| waiting.until_ns <= now_ns)
        {
            stats.expected_timed_out += u64::from(self.drop_first());
        }
    }

    /// Forgets the oldest; says whether it was still waited for.
    fn drop_first(&mut self) -> bool {
        let key = self.order.pop_front();
        key.and_then(|key| self.waiting.remove(&key)).is_some_and(|waiting| waiting.met_by.is_none())
    }

    /// Bytes that it takes, about.
    pub(super) fn memory(&self) -> usize {
        self.waiting.capacity() * size_of::<(Key, Waiting)>() + self.order.capacity() * size_of::<Key>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        ([10, 0, 0, 1].into(), ([10, 0, 0, 2], port).into())
    }

    fn file(name: &str) -> Arc<Transfer> {
        Arc::new(Transfer { file: name.into(), ..Transfer::default() })
    }

    #[test]
    fn a_connection_is_met_until_its_time_is_over() {
        let (mut expected, mut stats) = (Expectations::default(), Stats::default());
        assert_eq!(expected.announce(key(1), &file("a"), 0, 9, &mut stats), None);
        assert_eq!(expected.announce(key(2), &file("b"), 5, 9, &mut stats), None);
        assert_eq!(expected.meet(&key(3), 7, 6, &mut stats), None);
        assert_eq!(expected.meet(&key(1), 7, TIMEOUT_NS - 1, &mut stats), Some(file("a")));
        assert_eq!(expected.meet(&key(2), 8, TIMEOUT_NS + 5, &mut stats), None);
        assert_eq!((stats.expected_met, stats.expected_timed_out), (1, 1));
    }

    /// Captures may claim any time.
    #[test]
    fn at_the_end_of_time_it_is_still_waited_for() {
        let (mut expected, mut stats) = (Expectations::default(), Stats::default());
        let end = u64::MAX - 1;
        assert_eq!(expected.announce(key(1), &file("a"), end, 9, &mut stats), None);
        assert_eq!(expected.meet(&key(1), 7, end, &mut stats), Some(file("a")));
    }

    #[test]
    fn a_name_that_comes_late_finds_its_flow() {
        let (mut expected, mut stats) = (Expectations::default(), Stats::default());
        expected.announce(key(1), &file(""), 0, 9, &mut stats);
        expected.meet(&key(1), 7, 1, &mut stats);
        assert_eq!(expected.announce(key(1), &file("a"), 2, 9, &mut stats), Some(7));
    }

    #[test]
    fn the_oldest_makes_room() {
        let (mut expected, mut stats) = (Expectations::default(), Stats::default());
        for port in 0..1000 {
            expected.announce(key(port), &file("a"), 0, 10, &mut stats);
        }
        assert_eq!((stats.expected_evicted, expected.order.len(), expected.waiting.len()), (990, 10, 10));
        assert!(expected.meet(&key(989), 1, 1, &mut stats).is_none());
        assert!(expected.meet(&key(990), 1, 1, &mut stats).is_some());
        // One that is announced again and again is one.
        for _ in 0..1000 {
            expected.announce(key(5), &file("b"), 2, 10, &mut stats);
        }
        assert_eq!((expected.order.len(), expected.waiting.len()), (10, 10));
        // The one that made room was met already.
        assert_eq!(stats.expected_evicted, 990);
    }
}
