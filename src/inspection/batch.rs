//! Records of tc_ids on their way from the poller to the workers: many in one piece.
//!
//! A channel costs more than a small record, and a record of its own an allocation. So the poller writes records behind
//! each other into a buffer for each worker, hands the buffer over when it is full or the ring is empty, and gets it back
//! when it was read. It never waits: a batch that finds no room is given up, and its records are counted.

use crossbeam_channel::{Receiver, Sender, bounded};
use prometheus_client::metrics::counter::Counter;

/// A buffer is handed over from this size on. Records are at most 64 KiB and a little, so its memory stays below twice that.
const BATCH_BYTES: usize = 128 * 1024;
/// Buffers on their way to a worker, at most.
const BATCHES_MAX: usize = 128;
/// Bytes in front of each record: its length.
const LENGTH_BYTES: usize = size_of::<u32>();

/// Records behind each other.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: u64,
}

impl Batch {
    fn push(&mut self, record: &[u8]) {
        self.bytes.extend_from_slice(&(record.len() as u32).to_ne_bytes());
        self.bytes.extend_from_slice(record);
        self.records += 1;
    }

    /// The records, in their order.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let (length, behind) = rest.split_first_chunk::<LENGTH_BYTES>()?;
            let (record, behind) = behind.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
            rest = behind;
            Some(record)
        })
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.records = 0;
    }
}

/// The worker's end: batches to read, and the way back for their buffers.
pub struct Incoming {
    /// What arrives.
    pub batches: Receiver<Batch>,
    /// Where read buffers go.
    pub used: Used,
}

/// The way back of read buffers.
pub struct Used(Sender<Batch>);

impl Used {
    /// Gives a buffer back. When nobody wants it, it is freed.
    pub fn give_back(&self, mut batch: Batch) {
        batch.clear();
        let _ = self.0.try_send(batch);
    }
}

/// The poller's end: one lane for each worker.
pub struct Outgoing {
    lanes: Vec<Lane>,
    lost: Counter,
}

struct Lane {
    batch: Batch,
    batches: Sender<Batch>,
    used: Receiver<Batch>,
}

impl Outgoing {
    /// Lanes to so many workers. `lost` counts records that found no room.
    pub fn new(workers: usize, lost: Counter) -> (Outgoing, Vec<Incoming>) {
        let (lanes, incoming) = (0..workers.max(1))
            .map(|_| {
                let (batches, to_read) = bounded(BATCHES_MAX);
                let (give_back, used) = bounded(BATCHES_MAX);
                let lane = Lane { batch: Batch::default(), batches, used };
                (lane, Incoming { batches: to_read, used: Used(give_back) })
            })
            .unzip();
        (Outgoing { lanes, lost }, incoming)
    }

    /// Takes a record for the worker that `hash` names.
    pub fn push(&mut self, hash: u32, record: &[u8]) {
        let at = ((u64::from(hash) * self.lanes.len() as u64) >> 32) as usize;
        self.lanes[at].batch.push(record);
        if self.lanes[at].batch.bytes.len() >= BATCH_BYTES {
            self.hand_over(at);
        }
    }

    /// Hands over what waits: the ring is empty for now.
    pub fn flush(&mut self) {
        for at in 0..self.lanes.len() {
            if self.lanes[at].batch.records > 0 {
                self.hand_over(at);
            }
        }
    }

    fn hand_over(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        let records = lane.batch.records;
        let next = lane.used.try_recv().unwrap_or_default();
        if let Err(refused) = lane.batches.try_send(std::mem::replace(&mut lane.batch, next)) {
            self.lost.inc_by(records);
            lane.batch = refused.into_inner();
            lane.batch.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u32) -> Vec<u8> {
        let mut record = number.to_ne_bytes().to_vec();
        record.resize(4 + number as usize % 700, 7);
        record
    }

    #[test]
    fn each_record_arrives_once_and_in_order_or_is_counted() {
        let lost = Counter::default();
        let (mut outgoing, incoming) = Outgoing::new(3, lost.clone());
        let all = 200_000u32;
        for number in 0..all {
            outgoing.push(number.wrapping_mul(0x9e37_79b9), &record(number));
        }
        outgoing.flush();
        assert!(lost.get() > 0, "the queues hold less than what was sent");
        let mut arrived = 0;
        for worker in &incoming {
            let mut last = None;
            while let Ok(batch) = worker.batches.try_recv() {
                for bytes in batch.records() {
                    let number = u32::from_ne_bytes(*bytes.first_chunk().unwrap());
                    assert_eq!(bytes, record(number));
                    assert!(last < Some(number), "{number} after {last:?}");
                    last = Some(number);
                    arrived += 1;
                }
                worker.used.give_back(batch);
            }
        }
        assert_eq!(arrived + lost.get(), u64::from(all));
    }

    #[test]
    fn a_hash_always_means_the_same_worker() {
        let (mut outgoing, incoming) = Outgoing::new(4, Counter::default());
        for hash in [0, 1, u32::MAX / 2, u32::MAX] {
            outgoing.push(hash, &hash.to_ne_bytes());
            outgoing.push(hash, &hash.to_ne_bytes());
        }
        outgoing.flush();
        let of_worker = |worker: &Incoming| {
            let batch = worker.batches.try_recv().ok()?;
            Some(batch.records().map(|bytes| u32::from_ne_bytes(bytes.try_into().unwrap())).collect::<Vec<_>>())
        };
        let all: Vec<_> = incoming.iter().map(of_worker).collect();
        assert_eq!(all, [Some(vec![0, 0, 1, 1]), Some(vec![u32::MAX / 2; 2]), None, Some(vec![u32::MAX; 2])]);
    }
}
