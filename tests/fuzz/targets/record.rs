//! Records of the ring buffers. What is taken for one is whole, says what stands in it, and its frame can be read.

use ebpfsentinel::abi::{bytes_of, from_bytes, ids_record};
use ebpfsentinel::bpf::tc_ids::{FRAME_MAX, decode, pair_hash};
use ebpfsentinel::event::{Event, OverLimit, Reason};
use ebpfsentinel::packet::frame::{self, Link};

fn record_of_tc_ids(bytes: &[u8]) {
    let head: Option<ids_record> = from_bytes(bytes);
    assert_eq!(pair_hash(bytes), head.map(|head| head.pair));
    let Some(record) = decode(bytes) else { return };
    let head = head.expect("what is decoded is long enough");
    assert_eq!(size_of::<ids_record>() + record.frame.len(), bytes.len());
    assert!(record.frame.len() <= record.length() as usize);
    assert_eq!((record.pair_hash(), record.boot_ns()), (head.pair, head.boot_ns));
    let meta = record.meta(0);
    assert_eq!((meta.time_ns, meta.direction), (head.boot_ns, record.direction()));
    assert_eq!(meta.unseen, (head.unseen_packets, head.unseen_bytes));
    // The boot's time and the record's may be any.
    record.meta(u64::MAX);
    let _ = (record.signature(), record.has_lost(), record.is_headers_only(), record.is_truncated());
    for link in [Link::Ethernet, Link::Raw, Link::Null, Link::Sll, Link::Sll2, Link::Ppp] {
        let _ = frame::decode(link, meta.vlans, record.frame);
    }
}

/// Reads the bytes as each kind of record; of tc_ids also with lengths that are as they should be.
pub fn run(bytes: &[u8]) {
    record_of_tc_ids(bytes);
    if let Some(mut head) = from_bytes::<ids_record>(bytes) {
        let frame = &bytes[size_of::<ids_record>()..];
        let frame = &frame[..frame.len().min(FRAME_MAX)];
        head.copied = frame.len() as u32;
        head.length = head.length.max(head.copied);
        (head.direction, head.signature, head.flags) = (head.direction & 1, head.signature % 9, head.flags & 0xf);
        record_of_tc_ids(&[bytes_of(&head), frame].concat());
    }
    if let Some(Event::Verdict(verdict)) = Event::decode(bytes) {
        let _ = verdict.outcome.name();
        assert!(Reason::ALL.contains(&verdict.reason));
        assert_eq!(Event::decode(bytes), Some(Event::Verdict(verdict)));
    }
    let limit = OverLimit::decode(bytes);
    // Bytes behind a record do not change it.
    assert!(limit.is_none() || OverLimit::decode(&[bytes, &[0xff]].concat()) == limit);
}
