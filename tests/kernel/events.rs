//! What the kernel tells: which packets, how often, and what stands in it.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ebpfsentinel::bpf::ringbuf;
use ebpfsentinel::event::{Event, Outcome, Reason, Verdict};
use ebpfsentinel::packet::build::Packet;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::harness::{DROP, Kernel};

const RULES: &str = r#"
    rules = [
        { id = "web", priority = 1, action = "allow", log = true, protocol = "tcp", dst_port = 80 },
        { id = "telnet", priority = 2, action = "deny", log = true, protocol = "tcp", dst_port = 23 },
        { id = "seen", priority = 3, action = "log", protocol = "icmpv6", icmp_type = 128 },
        { id = "ftp", priority = 4, action = "deny", protocol = "tcp", dst_port = 21 },
        { id = "quiet", priority = 5, action = "allow", protocol = "tcp", dst_port = 443 },
        { id = "begin", priority = 6, action = "deny", log = true, protocol = "udp", state = ["new"] },
    ]
"#;

/// Records are thinned out for each CPU: a test that counts them stays on one.
fn stay_on_one_cpu() {
    let mut one = CpuSet::new();
    one.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).expect("staying on CPU 0");
}

/// All events that wait.
fn told(kernel: &Kernel) -> Vec<Verdict> {
    let mut all = Vec::new();
    let each = |record: &[u8]| {
        let Event::Verdict(verdict) = Event::decode(record).expect("a record of xdp_firewall");
        all.push(verdict);
    };
    let ring = ringbuf::Ring { map: &kernel.xdp.events().unwrap(), each: Box::new(each) };
    ringbuf::consume(vec![ring], Duration::ZERO, &AtomicBool::new(true), || {}).unwrap();
    all
}

fn tcp(port: u16) -> Packet {
    Packet::new().between("10.0.0.1", "10.0.0.2").tcp(4000, port)
}

#[test]
fn events_say_what_happened() {
    stay_on_one_cpu();
    let kernel = Kernel::new(&format!("{DROP}{RULES}"));
    let blank = Verdict {
        boot_ns: 0,
        ifindex: 1,
        src: Some("10.0.0.1".parse().unwrap()),
        dst: Some("10.0.0.2".parse().unwrap()),
        src_port: 4000,
        dst_port: 0,
        protocol: 6,
        vlan_id: 0,
        tcp_flags: 2,
        icmp: (0, 0),
        bytes: 0,
        packets: 1,
        outcome: Outcome::Dropped,
        reason: Reason::Rule,
        slot: None,
        generation: 1,
        state: None,
        unparsable: None,
        next_hop: None,
    };
    let slot = |id: &str| kernel.slots.get(id);
    let fragments = tcp(23).payload(&[0; 80]).fragments(3, 40);
    let v6 = || Packet::new().between("2001:db8::1", "2001:db8::2");
    let (src, dst) = ("2001:db8::1".parse().ok(), "2001:db8::2".parse().ok());
    let unparsed = Verdict { src_port: 0, tcp_flags: 0, reason: Reason::Unparsable, ..blank.clone() };
    let cases = [
        (
            tcp(80).vlan(77).flags(0x12).build(),
            Some(Verdict {
                dst_port: 80,
                vlan_id: 77,
                tcp_flags: 0x12,
                outcome: Outcome::Passed,
                slot: slot("web"),
                ..blank.clone()
            }),
        ),
        (tcp(443).build(), None),
        (tcp(23).build(), Some(Verdict { dst_port: 23, slot: slot("telnet"), ..blank.clone() })),
        (tcp(21).build(), Some(Verdict { dst_port: 21, slot: slot("ftp"), ..blank.clone() })),
        (tcp(5).build(), Some(Verdict { dst_port: 5, reason: Reason::Policy, state: Some(0), ..blank.clone() })),
        (
            v6().ping(9, 1).build(),
            Some(Verdict {
                src,
                dst,
                src_port: 9,
                dst_port: 9,
                protocol: 58,
                tcp_flags: 0,
                icmp: (128, 0),
                outcome: Outcome::Passed,
                slot: slot("seen"),
                ..blank.clone()
            }),
        ),
        (
            v6().udp(4000, 7).build(),
            Some(Verdict {
                src,
                dst,
                dst_port: 7,
                protocol: 17,
                tcp_flags: 0,
                slot: slot("begin"),
                state: Some(0),
                ..blank.clone()
            }),
        ),
        (fragments[0].clone(), Some(Verdict { dst_port: 23, slot: slot("telnet"), ..blank.clone() })),
        (
            fragments[1].clone(),
            Some(Verdict {
                src_port: 0,
                tcp_flags: 0,
                reason: Reason::Fragment,
                slot: slot("telnet"),
                ..blank.clone()
            }),
        ),
        (tcp(80).truncate(40).build(), Some(Verdict { unparsable: Some("short_transport"), ..unparsed.clone() })),
    ];
    let mut last = 0;
    for (frame, expected) in cases {
        kernel.xdp.test_run(&frame, 0, 1).unwrap();
        let events = told(&kernel);
        let times: Vec<u64> = events.iter().map(|event| event.boot_ns).collect();
        assert!(times.iter().all(|&time| time > last), "times go up");
        last = times.first().copied().unwrap_or(last);
        let seen: Vec<Verdict> = events.into_iter().map(|event| Verdict { boot_ns: 0, ..event }).collect();
        let bytes = frame.len() as u32;
        let expected: Vec<Verdict> = expected.map(|event| Verdict { bytes, ..event }).into_iter().collect();
        assert_eq!(seen, expected, "{frame:02x?}");
    }
    assert_eq!(kernel.counts().ring_full, 0);
}

#[test]
fn a_frame_without_addresses_is_told_without_them() {
    stay_on_one_cpu();
    let kernel = Kernel::new(DROP);
    kernel.xdp.test_run(&tcp(80).ethertype(0x8864).vlan(3).build(), 0, 1).unwrap();
    let events = told(&kernel);
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.src, event.dst, event.protocol, event.vlan_id), (None, None, 0, 3));
    assert_eq!((event.reason, event.unparsable, event.slot), (Reason::Unparsable, Some("not_ip"), None));
}

#[test]
fn floods_are_told_once_a_second_and_none_is_forgotten() {
    stay_on_one_cpu();
    for (mode, outcome) in [("block", Outcome::Dropped), ("alert", Outcome::WouldDrop)] {
        let text = format!("mode = \"{mode}\"\ndefault_policy = \"drop\"\n{RULES}");
        let kernel = Kernel::new(&text);
        for frame in [tcp(21).build(), tcp(5).build(), tcp(80).ihl(0).build()] {
            kernel.xdp.test_run(&frame, 0, 1000).unwrap();
            let counts = |events: &[Verdict]| events.iter().map(|event| event.packets).collect::<Vec<_>>();
            let first = told(&kernel);
            assert_eq!(counts(&first), [1], "the first one, and silence");
            assert_eq!(first[0].outcome, outcome);
            std::thread::sleep(Duration::from_millis(1050));
            kernel.xdp.test_run(&frame, 0, 10).unwrap();
            assert_eq!(counts(&told(&kernel)), [1000], "those before, and the one that tells");
        }
    }
}

#[test]
fn a_rule_that_records_tells_every_packet() {
    stay_on_one_cpu();
    let kernel = Kernel::new(&format!("{DROP}{RULES}"));
    for (port, outcome) in [(80, Outcome::Passed), (23, Outcome::Dropped)] {
        kernel.xdp.test_run(&tcp(port).build(), 0, 500).unwrap();
        let events = told(&kernel);
        assert_eq!(events.len(), 500);
        assert!(events.iter().all(|event| event.packets == 1 && event.outcome == outcome));
    }
    kernel.explain(&tcp(80).build());
    kernel.xdp.test_run(&tcp(443).build(), 0, 500).unwrap();
    assert_eq!(told(&kernel), [], "questions and quiet rules tell nothing");
}

#[test]
fn what_finds_no_room_is_counted() {
    const PACKETS: u64 = 60_000;
    let kernel = Kernel::new(&format!("{DROP}{RULES}"));
    let frame = tcp(23).build();
    kernel.xdp.test_run(&frame, 0, PACKETS as u32).unwrap();
    let counts = kernel.counts();
    assert_eq!(counts.events + counts.ring_full, PACKETS);
    assert!(counts.ring_full > 0 && counts.events > 40_000, "{} of {PACKETS} told", counts.events);
    let slot = usize::from(kernel.slots.get("telnet").unwrap());
    assert_eq!(counts.slots[slot], (PACKETS, PACKETS * frame.len() as u64), "counted nevertheless");
    assert_eq!(told(&kernel).len() as u64, counts.events);
    kernel.xdp.test_run(&frame, 0, 3).unwrap();
    assert_eq!(told(&kernel).len(), 3, "and then it goes on");
}
