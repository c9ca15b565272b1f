//! Frames that nobody would send in good faith: whatever they are, they do not get past a policy that drops.

use ebpfsentinel::abi::{fw_reason, fw_verdict};
use ebpfsentinel::packet::build::Packet;

use crate::harness::{DROP, Kernel};
use crate::support::random::Random;

// What the fuzz target does with its bytes; here it is run over mutations of a corpus, without a fuzzer.
#[path = "../fuzz/targets/frame.rs"]
mod fuzz_frame;

const FRAMES: usize = 200_000;
const SEED: u64 = 0x1791;

/// Bytes that parsers look at: lengths, versions, protocols, fragment fields.
const TELLING: [u8; 24] =
    [0, 1, 2, 4, 5, 6, 17, 20, 41, 43, 44, 45, 50, 51, 58, 59, 60, 0x40, 0x45, 0x4f, 0x60, 0x81, 0x88, 0xff];

/// Frames of every kind that the parser knows.
pub fn seeds() -> Vec<Vec<u8>> {
    let v4 = || Packet::new().between("10.0.0.1", "10.0.0.2");
    let v6 = || Packet::new().between("fe80::1", "fe80::2");
    let mut seeds = vec![
        v4().tcp(1, 2).build(),
        v4().vlan(1).vlan(2).options(&[1; 12]).tcp(1, 2).tcp_options(&[1; 12]).payload(&[1; 30]).build(),
        v4().udp(67, 68).build(),
        v4().ping(1, 1).build(),
        v4().icmp(3, 3).payload(&v4().udp(3, 4).build()[14..]).build(),
        v6().tcp(1, 2).build(),
        v6().udp(547, 546).build(),
        v6().icmp(135, 0).ttl(255).payload(&[0; 16]).build(),
        v6().icmp(1, 4).payload(&v6().udp(3, 4).build()[14..]).build(),
        v6().hop_by_hop(&[5, 2, 0, 0]).icmp(130, 0).ttl(1).payload(&[0; 20]).build(),
        v6().hop_by_hop(&[0; 6]).routing(0, 0).destination_options(&[0; 22]).authentication(12).tcp(1, 2).build(),
        (0..8).fold(v6(), |p, _| p.destination_options(&[0; 6])).fragment(1, 0, true).udp(1, 2).build(),
        Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build(),
    ];
    for packet in [v4().tcp(1, 2), v6().udp(1, 2), v6().vlan(3).destination_options(&[0; 6]).tcp(1, 2)] {
        seeds.extend(packet.payload(&[3; 200]).fragments(9, 40));
    }
    seeds
}

/// One of `seeds` with a few bytes changed, cut or put in; or noise.
pub fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut frame = match random.below(10) {
        0 => (0..14 + random.below(200)).map(|_| random.bits() as u8).collect(),
        _ => seeds[random.below(seeds.len())].clone(),
    };
    for _ in 0..random.below(6) {
        let at = 12 + random.below(frame.len() - 12);
        match random.below(5) {
            0 => frame[at] = random.bits() as u8,
            1 => frame[at] = random.pick(&TELLING),
            2 => frame[at] ^= 1 << random.below(8),
            3 => frame.truncate(at.max(14)),
            _ => {
                let bytes: Vec<u8> = (0..1 + random.below(16)).map(|_| random.pick(&TELLING)).collect();
                frame.splice(at..at, bytes);
            }
        }
    }
    frame
}

#[test]
fn nothing_gets_past_drop_but_the_exceptions() {
    let kernel = Kernel::new(DROP);
    let seeds = seeds();
    let mut random = Random::new(SEED);
    let (mut dropped, mut excepted) = (0u64, 0u64);
    for _ in 0..FRAMES {
        let frame = mutated(&seeds, &mut random);
        match fuzz_frame::run(&kernel.xdp, &frame) {
            true => excepted += 1,
            false => dropped += 1,
        }
    }
    println!("{FRAMES} frames: {dropped} dropped, {excepted} passed as exceptions");
    assert!(dropped > FRAMES as u64 / 2 && excepted > 1000, "{dropped} dropped, {excepted} passed: a poor mixture");

    // All of them were counted, once.
    let counts = kernel.counts();
    let sum = |counted: &[(u64, u64)]| counted.iter().map(|(packets, _)| packets).sum::<u64>();
    assert_eq!((sum(&counts.cells), sum(&counts.slots)), (FRAMES as u64, FRAMES as u64));
    let unparsable = fw_reason::FW_BY_PARSER.0 as usize * fw_verdict::FW_VERDICTS.0 as usize;
    let by_parser = sum(&counts.cells[unparsable..unparsable + 3]);
    assert_eq!(counts.unparsable.iter().sum::<u64>(), by_parser);
    // The mixture reaches every reason.
    assert!(counts.unparsable[1..].iter().all(|&packets| packets > 0), "{:?}", counts.unparsable);
}
