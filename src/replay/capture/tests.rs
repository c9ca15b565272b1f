use proptest::prelude::*;

use super::*;
use crate::support::captures::{Order as Written, Pcapng, Precision, pcap};

#[derive(Debug, PartialEq, Eq)]
struct Packet {
    time_ns: u64,
    interface: u32,
    link: Link,
    bytes: Vec<u8>,
    wire_length: u32,
}

/// Gives a file in pieces of a size, as a pipe does.
struct Pieces<'f>(&'f [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.0.len().min(self.1).min(into.len());
        into[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

fn read_by(source: impl Read) -> (Vec<Packet>, Capture<impl Read>) {
    let mut capture = Capture::open(source).unwrap();
    let mut packets = Vec::new();
    while let Some(frame) = capture.next_frame() {
        packets.push(Packet {
            time_ns: frame.time_ns,
            interface: frame.interface,
            link: frame.link,
            bytes: frame.bytes.to_vec(),
            wire_length: frame.wire_length,
        });
    }
    (packets, capture)
}

/// Packets of a file that must be without fault.
#[track_caller]
fn read_all(file: &[u8]) -> Vec<Packet> {
    let (packets, capture) = read_by(file);
    assert_eq!(capture.fault(), None);
    assert_eq!(capture.refused(), &Refused::default());
    assert_eq!(capture.position(), file.len() as u64);
    packets
}

fn packet(time_ns: u64, interface: u32, link: Link, bytes: &[u8]) -> Packet {
    Packet { time_ns, interface, link, bytes: bytes.to_vec(), wire_length: bytes.len() as u32 }
}

const TIME: u64 = 1_796_064_031_123_456_789;

#[test]
fn pcap_in_every_order_and_precision() {
    let packets = [(TIME, vec![1, 2, 3]), (TIME + 5_000_000_000, vec![]), (TIME, vec![7; 70_000])];
    for order in [Written::Little, Written::Big] {
        for precision in [Precision::Micro, Precision::Nano, Precision::Modified] {
            let unit = if precision == Precision::Nano { 1 } else { 1000 };
            let expected: Vec<_> =
                packets.iter().map(|(time, bytes)| packet(time / unit * unit, 0, Link::Ethernet, bytes)).collect();
            assert_eq!(read_all(&pcap(order, precision, 1, &packets)), expected, "{order:?} {precision:?}");
        }
    }
}

#[test]
fn link_layers_by_their_numbers() {
    let known = [
        (0, Link::Null),
        (108, Link::Null),
        (1, Link::Ethernet),
        (12, Link::Raw),
        (14, Link::Raw),
        (101, Link::Raw),
        (228, Link::Raw),
        (229, Link::Raw),
        (9, Link::Ppp),
        (50, Link::Ppp),
        (113, Link::Sll),
        (276, Link::Sll2),
        // With the length of a frame check sequence above.
        (0x2400_0001, Link::Ethernet),
    ];
    for (number, link) in known {
        let file = pcap(Written::Little, Precision::Nano, number, &[(9, vec![1])]);
        assert_eq!(read_all(&file), [packet(9, 0, link, &[1])], "{number}");
    }
    let file = pcap(Written::Big, Precision::Micro, 105, &[(1, vec![1]), (2, vec![2])]);
    let (packets, capture) = read_by(&file[..]);
    assert!(packets.is_empty());
    assert_eq!(capture.refused().links, BTreeMap::from([(105, 2)]));
    assert_eq!(capture.fault(), None);
}

#[test]
fn pcapng_with_interfaces_and_sections() {
    for order in [Written::Little, Written::Big] {
        let other = if order == Written::Little { Written::Big } else { Written::Little };
        let mut file = Pcapng::new(order);
        file.interface(1, 0, &[(2, b"eth0".to_vec())])
            .interface(101, 0, &[(9, vec![9])])
            .block(0x0bad, b"not known")
            .enhanced(1, TIME, &[0x45])
            .enhanced(0, TIME / 1000, &[1, 2, 3, 4, 5])
            .old(1, TIME + 1, &[0x60, 0])
            .block(5, &[0; 40])
            .section(other)
            .interface(276, 3, &[(9, vec![0x80 | 10]), (14, other.u64(100).to_vec())])
            .enhanced(0, 1536, &[8, 9])
            .simple(5, &[1, 2, 3])
            .simple(2, &[6, 7]);
        let time = 101_500_000_000;
        let mut expected = vec![
            packet(TIME, 1, Link::Raw, &[0x45]),
            packet(TIME / 1000 * 1000, 0, Link::Ethernet, &[1, 2, 3, 4, 5]),
            packet(TIME + 1, 1, Link::Raw, &[0x60, 0]),
            packet(time, 0, Link::Sll2, &[8, 9]),
            packet(time, 0, Link::Sll2, &[1, 2, 3]),
            packet(time, 0, Link::Sll2, &[6, 7]),
        ];
        expected[4].wire_length = 5;
        assert_eq!(read_all(&file.file), expected, "{order:?}");
    }
}

#[test]
fn clocks_of_every_resolution() {
    let check = |resolution: u8, ticks: u64, expected: u64| {
        assert_eq!(Ticks::by_resolution(resolution).nanoseconds(ticks), expected, "{resolution:#x} {ticks}");
    };
    check(0, 3, 3_000_000_000);
    check(6, 1, 1000);
    check(9, u64::MAX, u64::MAX);
    check(6, u64::MAX, u64::MAX);
    check(12, 1_999, 1);
    check(28, u64::MAX, 1);
    check(29, u64::MAX, 0);
    check(127, u64::MAX, 0);
    check(0x80, 2, 2_000_000_000);
    check(0x80 | 1, 3, 1_500_000_000);
    check(0xff, u64::MAX, 0);
    let past = Interface { link_number: 1, snap_length: 0, ticks: Ticks::Each(1), offset_secs: i64::MIN };
    assert_eq!(past.time_ns(7), 0);
    assert_eq!(Interface { offset_secs: -1, ..past }.time_ns(1_000_000_007), 7);
    assert_eq!(Interface { offset_secs: i64::MAX, ..past }.time_ns(7), u64::MAX);
}

#[test]
fn what_is_too_long_is_refused_and_what_follows_is_read() {
    let long = vec![0; FRAME_MAX + 1];
    let file = pcap(Written::Little, Precision::Nano, 1, &[(1, long.clone()), (2, vec![0; FRAME_MAX]), (3, vec![5])]);
    let (packets, capture) = read_by(&file[..]);
    assert_eq!(packets.iter().map(|packet| packet.bytes.len()).collect::<Vec<_>>(), [FRAME_MAX, 1]);
    assert_eq!(capture.refused(), &Refused { oversized: 1, ..Refused::default() });

    let mut file = Pcapng::new(Written::Big);
    file.interface(1, 0, &[]).enhanced(0, 1, &long).enhanced(0, 2, &vec![0; 2 * WINDOW]);
    file.block(7, &vec![0; 3 * WINDOW]).enhanced(0, 3, &[5]);
    let (packets, capture) = read_by(&file.file[..]);
    assert_eq!(packets, [packet(3000, 0, Link::Ethernet, &[5])]);
    assert_eq!(capture.refused(), &Refused { oversized: 2, ..Refused::default() });
}

#[test]
fn blocks_that_make_no_sense_are_counted() {
    let mut file = Pcapng::new(Written::Little);
    // Before any interface; of one that is not there; longer than its block.
    file.enhanced(0, 1, &[1]).interface(1, 0, &[]).enhanced(1, 1, &[1]).old(9, 1, &[1]);
    let mut body = vec![0; 12];
    body.extend(99u32.to_le_bytes());
    body.extend(99u32.to_le_bytes());
    file.block(6, &body).block(6, &[]).simple(1, &[1]);
    let (packets, capture) = read_by(&file.file[..]);
    assert_eq!(packets, [packet(0, 0, Link::Ethernet, &[1])]);
    assert_eq!(capture.refused().malformed, 5);
    assert_eq!(capture.fault(), None);
}

#[test]
fn more_interfaces_than_are_told_apart() {
    let mut file = Pcapng::new(Written::Little);
    for _ in 0..=INTERFACES_MAX {
        file.interface(1, 0, &[]);
    }
    file.enhanced(INTERFACES_MAX as u32 - 1, 1, &[1]).enhanced(INTERFACES_MAX as u32, 1, &[1]);
    let (packets, capture) = read_by(&file.file[..]);
    assert_eq!((packets.len(), capture.refused().malformed), (1, 1));
}

#[test]
fn what_is_no_capture_is_said_to_be_none() {
    let wrong = |file: &[u8]| Capture::open(file).err().map(|error| error.to_string());
    assert_eq!(wrong(b"#!/bin/sh\nexit 0\n").as_deref(), Some("it is neither a pcap nor a pcapng file"));
    assert_eq!(wrong(b"x").as_deref(), Some("it is neither a pcap nor a pcapng file"));
    assert_eq!(wrong(&[0x1f, 0x8b, 8, 0]).as_deref(), Some("it is compressed; unpack it first, as gzip -d does"));
}

struct Failing(u8);

impl Read for Failing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let file = pcap(Written::Little, Precision::Nano, 1, &[(1, vec![1])]);
        self.0 += 1;
        match self.0 {
            1 => Err(io::ErrorKind::Interrupted.into()),
            2 => {
                into[..file.len()].copy_from_slice(&file);
                Ok(file.len())
            }
            _ => Err(io::Error::other("the disk is gone")),
        }
    }
}

#[test]
fn an_error_of_the_disk_is_a_fault() {
    let (packets, capture) = read_by(Failing(0));
    assert_eq!(packets.len(), 1);
    assert_eq!(capture.fault(), Some("reading at byte 41: the disk is gone"));
}

fn samples() -> Vec<Vec<u8>> {
    let packets = [(TIME, vec![1; 60]), (TIME + 1, vec![2; 5])];
    let mut pcapng = Pcapng::new(Written::Little);
    pcapng.interface(1, 96, &[(9, vec![9])]).enhanced(0, TIME, &[1; 60]).old(0, TIME, &[2; 5]).simple(3, &[3; 3]);
    vec![
        pcap(Written::Little, Precision::Micro, 1, &packets),
        pcap(Written::Big, Precision::Modified, 113, &packets),
        pcapng.file,
    ]
}

#[test]
fn a_file_cut_anywhere_gives_what_came_before() {
    for file in samples() {
        let whole = read_all(&file);
        let mut counts = Vec::new();
        for length in 0..file.len() {
            let (packets, capture) = read_by(&file[..length]);
            assert_eq!(packets[..], whole[..packets.len()]);
            // Between records a file may end; within one it is cut off, and says so.
            assert!(capture.fault().is_some() || capture.position() == length as u64);
            counts.push(packets.len());
        }
        assert!(counts.is_sorted());
        assert_eq!(counts.last(), Some(&(whole.len() - 1)));
    }
}

proptest! {
    #[test]
    fn how_a_file_arrives_does_not_matter(piece in 1usize..200, sample in 0usize..3) {
        let file = &samples()[sample];
        prop_assert_eq!(read_by(Pieces(file, piece)).0, read_all(file));
    }

    #[test]
    fn a_broken_file_ends(
        sample in 0usize..3,
        changes in proptest::collection::vec((0usize..300, any::<u8>()), 0..12),
        length in 0usize..400,
    ) {
        let mut file = samples()[sample].clone();
        for (at, byte) in changes {
            if let Some(place) = file.get_mut(at) {
                *place = byte;
            }
        }
        file.truncate(length);
        if let Ok(mut capture) = Capture::open(&file[..]) {
            let mut frames = 0;
            while let Some(frame) = capture.next_frame() {
                prop_assert!(frame.bytes.len() <= file.len());
                frames += 1;
            }
            prop_assert!(frames <= file.len());
            prop_assert!(capture.position() <= file.len() as u64);
            prop_assert!(capture.next_frame().is_none());
        }
    }
}
