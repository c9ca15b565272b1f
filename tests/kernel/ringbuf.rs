//! The consumer of ring buffers, while records come.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ebpfsentinel::bpf::ringbuf::{self, Ring};
use ebpfsentinel::bpf::tc_ids::{Arrival, Options, TcIds, decode};
use ebpfsentinel::flow::Direction;
use ebpfsentinel::packet::build::Packet;

use crate::support::random::Random;

const RECORDS: u32 = 30_000;

/// A frame that says its number, of a length that follows from it.
fn frame(number: u32) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(4 + Random::new(number.into()).below(1400), number as u8);
    Packet::new().between("10.0.0.1", "10.0.0.2").udp(5000, 5001).payload(&payload).build()
}

/// A ring that holds few records goes round many times: each record is whole, in order, taken once, or counted as lost.
#[test]
fn records_are_taken_once_and_in_order_while_others_come() {
    let options = Options { ring_bytes: 32 << 10, udp_packets: u32::MAX, max_flows: 16, ..Options::default() };
    let ids = TcIds::load(&options).unwrap();
    let events = ids.events().unwrap();
    let stop = AtomicBool::new(false);
    let (taken, rounds) = std::thread::scope(|scope| {
        let poller = scope.spawn(|| {
            let (mut taken, mut rounds) = (Vec::new(), 0);
            let each = |bytes: &[u8]| {
                let record = decode(bytes).expect("a record of tc_ids");
                let number = u32::from_be_bytes(*record.frame[42..].first_chunk().unwrap());
                assert_eq!(record.frame, frame(number));
                taken.push(number);
            };
            let rings = vec![Ring { map: &events, each: Box::new(each) }];
            ringbuf::consume(rings, Duration::from_micros(100), &stop, || rounds += 1).unwrap();
            (taken, rounds)
        });
        for number in 0..RECORDS {
            ids.test_run(Direction::Ingress, &frame(number), &Arrival::default(), 1).unwrap();
        }
        stop.store(true, Ordering::Release);
        poller.join().expect("the poller")
    });
    assert!(taken.is_sorted_by(|one, next| one < next), "not in order");
    let [count, _] = ids.counts().unwrap();
    assert_eq!((count.records, count.packets), (taken.len() as u64, RECORDS.into()));
    assert_eq!(count.records + count.lost.iter().sum::<u64>(), count.packets);
    // The ring went round, and the poller came back to its caller meanwhile.
    assert!(taken.len() > 1000 && rounds > 10, "{} records in {rounds} looks", taken.len());
}
