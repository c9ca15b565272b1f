//! The flow cache: what it answers is what the rules say, and counted like it, and no swap leaves anything behind.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ebpfsentinel::abi::fw_flow_limits;
use ebpfsentinel::packet::build::Packet;

use crate::harness::{DROP, Kernel, XDP_DROP, XDP_PASS, arrive};
use crate::support::random::Random;

/// Entries of both families for a CPU, at most.
const FLOWS: usize = (fw_flow_limits::FW_FLOW_SETS.0 * fw_flow_limits::FW_FLOW_WAYS.0) as usize * 3 / 2;

const RULES: &str = r#"
    rules = [
        { id = "syn", priority = 1, action = "deny", protocol = "tcp", tcp_flags = "S/SA", dst_port = 80 },
        { id = "web", priority = 2, action = "allow", protocol = "tcp", dst_port = 80 },
        { id = "dns", priority = 3, action = "allow", protocol = "udp", dst_port = 53 },
        { id = "ping", priority = 4, action = "allow", protocol = "icmp", icmp_type = 8, icmp_code = 0 },
        { id = "ping6", priority = 5, action = "allow", protocol = "icmpv6", icmp_type = 128, icmp_code = 0 },
        { id = "gre", priority = 6, action = "allow", protocol = 47 },
        { id = "sctp", priority = 7, action = "allow", protocol = 132, dst_port = 80 },
        { id = "rest", priority = 9, action = "deny" },
    ]
"#;

fn packet(ipv6: bool) -> Packet {
    if ipv6 {
        Packet::new().between("2001:db8::1", "2001:db8::2")
    } else {
        Packet::new().between("10.0.0.1", "10.0.0.2")
    }
}

fn counted(kernel: &Kernel, id: &str) -> (u64, u64) {
    let count = kernel.xdp.counts().rules[usize::from(kernel.slots.get(id).unwrap())];
    (count.packets, count.bytes)
}

/// Each field that tells flows apart, right after a packet of another flow went in.
#[test]
fn neighbours_are_told_apart() {
    const TCP_SYN: u8 = 2;
    const TCP_ACK: u8 = 16;
    const TCP_CWR: u8 = 128;
    let kernel = Kernel::new(&format!("{DROP}{RULES}"));
    for ipv6 in [false, true] {
        let (echo, reply) = if ipv6 { (128, 129) } else { (8, 0) };
        // In the other family the number of ICMP is a protocol like any other.
        let (icmp, not_icmp) = if ipv6 { (58, 1) } else { (1, 58) };
        for (frame, action) in [
            (packet(ipv6).tcp(4000, 80).flags(TCP_ACK).build(), XDP_PASS),
            (packet(ipv6).tcp(4000, 80).flags(TCP_SYN).build(), XDP_DROP),
            (packet(ipv6).tcp(4000, 80).flags(TCP_ACK | TCP_SYN).build(), XDP_PASS),
            (packet(ipv6).udp(4000, 80).build(), XDP_DROP),
            (packet(ipv6).udp(4000, 53).build(), XDP_PASS),
            (packet(ipv6).tcp(4000, 53).build(), XDP_DROP),
            (packet(ipv6).tcp(4001, 53).build(), XDP_DROP),
            (packet(ipv6).tcp(4000, 80).flags(TCP_SYN | TCP_CWR).build(), XDP_DROP),
            (packet(ipv6).tcp(4000, 80).flags(TCP_ACK | TCP_CWR).build(), XDP_PASS),
            (packet(ipv6).icmp(echo, 0).build(), XDP_PASS),
            (packet(ipv6).icmp(echo, 1).build(), XDP_DROP),
            (packet(ipv6).icmp(reply, 0).build(), XDP_DROP),
            (packet(ipv6).protocol(not_icmp).payload(&[echo, 0, 0, 0, 0, 0, 0, 0, 0, 0]).build(), XDP_DROP),
            (packet(ipv6).protocol(icmp).payload(&[echo, 0, 0, 0, 0, 0, 0, 0]).build(), XDP_PASS),
            (packet(ipv6).protocol(icmp).payload(&[echo, 0, 0, 0, 0, 0, 0]).build(), XDP_DROP),
            (packet(ipv6).protocol(47).payload(&[0; 40]).build(), XDP_PASS),
            (packet(ipv6).protocol(48).payload(&[0; 40]).build(), XDP_DROP),
            (packet(ipv6).protocol(132).payload(&[0, 1, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]).build(), XDP_PASS),
            (packet(ipv6).protocol(132).payload(&[0, 1, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0]).build(), XDP_DROP),
            (packet(ipv6).protocol(47).payload(&[]).build(), XDP_PASS),
        ] {
            for _ in 0..3 {
                assert_eq!(kernel.xdp.test_run(&frame, 0, 1).unwrap().action, action, "{frame:02x?}");
            }
        }
    }
}

/// Packets that are all zeros where a flow is told from others, of flows that are never kept: they are no free entry.
#[test]
fn nothing_is_taken_for_an_entry_that_is_free() {
    const CWR: u8 = 128;
    let kernel = Kernel::new(&format!("{DROP}{RULES}"));
    for between in [("0.0.0.0", "0.0.0.0"), ("::", "::")] {
        let packet = || Packet::new().between(between.0, between.1);
        for frame in [
            packet().tcp(0, 0).flags(CWR).build(),
            packet().tcp(0, 0).flags(0).build(),
            packet().udp(0, 0).build(),
            packet().protocol(136).payload(&[0; 20]).build(),
            packet().protocol(132).payload(&[0; 20]).build(),
            packet().protocol(253).payload(&[0; 20]).build(),
        ] {
            for _ in 0..3 {
                kernel.check("all zeros", &frame, "drop rule rest");
            }
        }
    }
}

/// More flows than there are entries, in random order and number, over swaps that keep some rules and drop others.
#[test]
fn every_packet_is_counted_once() {
    const SWAPS: u32 = 4;
    let mut random = Random::new(5);
    let mut kernel = Kernel::new(&format!("{DROP}{RULES}"));
    let mut expected = (0, 0);
    for swap in 0..SWAPS {
        for _ in 0..2 * FLOWS {
            let frame = packet(random.chance(50))
                .tcp(random.between(1, 65535) as u16, 80)
                .flags(16)
                .payload(&vec![0; random.below(100)])
                .build();
            let repeat = 1 + random.below(3);
            for _ in 0..repeat {
                assert_eq!(kernel.xdp.test_run(&frame, 0, 1).unwrap().action, XDP_PASS);
            }
            expected.0 += repeat as u64;
            expected.1 += (repeat * frame.len()) as u64;
        }
        assert_eq!(counted(&kernel, "web"), expected, "before swap {swap}");
        kernel.swap(&format!("{DROP}{}", if swap % 2 == 0 { RULES.replace("rest", "others") } else { RULES.into() }));
        assert_eq!(counted(&kernel, "web"), expected, "after swap {swap}");
        assert_eq!(counted(&kernel, if swap % 2 == 0 { "others" } else { "rest" }), (0, 0));
    }
    let all: u64 = kernel.xdp.counts().ifaces.iter().flat_map(|iface| iface.packets).sum();
    assert_eq!(all, expected.0, "by interface");
}

/// A rule that is gone judges nothing any more, however busy its flow was.
#[test]
fn a_swap_ends_what_was_cached() {
    let frame = packet(false).tcp(4000, 80).flags(16).build();
    let mut kernel = Kernel::new(&format!("{DROP}{RULES}"));
    for round in 0..50 {
        let allowed = round % 2 == 0;
        let action = if allowed { XDP_PASS } else { XDP_DROP };
        for _ in 0..10 {
            assert_eq!(kernel.xdp.test_run(&frame, 0, 1).unwrap().action, action, "round {round}");
        }
        let rules = if allowed {
            RULES.replace("\"web\", priority = 2, action = \"allow\"", "\"web\", priority = 2, action = \"deny\"")
        } else {
            RULES.into()
        };
        kernel.swap(&format!("{DROP}{rules}"));
    }
    assert_eq!(counted(&kernel, "web").0, 500);
}

/// A reader that looks while packets arrive never sees a counter go back, and in the end sees all of them.
#[test]
fn counters_only_rise() {
    const RUNS: u32 = 200;
    const REPEAT: u32 = 5000;
    let kernel = Kernel::new(&format!("{DROP}{RULES}"));
    let done = AtomicBool::new(false);
    let program = kernel.xdp.program().as_raw_fd();
    let frames: Vec<_> = (0..4).map(|port| packet(port % 2 == 1).udp(5000 + port, 53).build()).collect();
    let seen = std::thread::scope(|scope| {
        scope.spawn(|| {
            for run in 0..RUNS {
                arrive(program, &frames[run as usize % frames.len()], REPEAT);
            }
            done.store(true, Ordering::Release);
        });
        let (mut last, mut seen) = (0, 0);
        while !done.load(Ordering::Acquire) {
            let now = counted(&kernel, "dns").0;
            assert!(now >= last, "{now} after {last}");
            seen += u32::from(now > last);
            last = now;
            std::thread::sleep(Duration::from_millis(1));
        }
        seen
    });
    assert!(seen > 2, "nothing was read in between");
    assert_eq!(counted(&kernel, "dns").0, u64::from(RUNS * REPEAT));
}
