//! Counters, alert mode, the lock-out guard, metadata, and the program behind the firewall.

use ebpfsentinel::abi::{fw_limits, fw_reason, fw_verdict, xdp_chain, xdp_meta_limits};
use ebpfsentinel::bpf::chain::Chain;
use ebpfsentinel::bpf::xdp_firewall::Switches;
use ebpfsentinel::classify::guard::Guard;
use ebpfsentinel::packet::build::Packet;

use crate::harness::{DROP, Kernel, PASS, XDP_DROP, XDP_PASS};

const RULES: &str = r#"
    rules = [
        { id = "web", priority = 1, action = "allow", protocol = "tcp", dst_port = 80 },
        { id = "telnet", priority = 2, action = "deny", protocol = "tcp", dst_port = 23 },
        { id = "off", priority = 1, action = "deny", enabled = false },
        { id = "there", priority = 3, action = "deny", protocol = "udp", interfaces = ["eth7"] },
        { id = "here", priority = 4, action = "allow", protocol = "udp", interfaces = ["lo"] },
    ]
"#;

fn tcp(port: u16) -> Packet {
    Packet::new().between("10.0.0.1", "10.0.0.2").tcp(4000, port)
}

#[test]
fn rules_count_packets_and_bytes() {
    let mut kernel = Kernel::new(&format!("{DROP}{RULES}"));
    let slot = |kernel: &Kernel, id: &str| {
        let slot = kernel.slots.get(id).unwrap();
        let count = kernel.xdp.counts().rules[usize::from(slot)];
        (count.packets, count.bytes, count.last_jiffies != 0)
    };
    assert_eq!(slot(&kernel, "web"), (0, 0, false));
    let sizes = [0, 1, 46, 700, 1446];
    for (at, &size) in (1u32..).zip(&sizes) {
        kernel.xdp.test_run(&tcp(80).payload(&vec![1; size]).build(), 0, at * 100).unwrap();
    }
    kernel.xdp.test_run(&tcp(23).build(), 0, 7).unwrap();
    kernel.xdp.test_run(&Packet::new().between("::1", "::2").tcp(1, 23).build(), 0, 5).unwrap();
    let bytes: usize = sizes.iter().enumerate().map(|(at, size)| (at + 1) * 100 * (54 + size)).sum();
    assert_eq!(slot(&kernel, "web"), (1500, bytes as u64, true));
    assert_eq!(slot(&kernel, "telnet"), (12, 7 * 54 + 5 * 74, true), "both families in one counter");
    assert_eq!(slot(&kernel, "off"), (0, 0, false));

    // Other rules: those that stay go on counting, a new one starts from zero.
    kernel.swap(&format!(
        "{DROP}rules = [{{ id = \"ftp\", priority = 1, action = \"deny\", protocol = \"tcp\", dst_port = 21 }},\
         {{ id = \"web\", priority = 9, action = \"deny\", protocol = \"tcp\", dst_port = 80 }}]"
    ));
    assert_eq!(slot(&kernel, "ftp"), (0, 0, false));
    kernel.check("web", &tcp(80).build(), "drop rule web");
    assert_eq!(slot(&kernel, "web"), (1501, bytes as u64 + 54, true));

    // And back: its counter was given to nobody, or was cleared.
    kernel.swap(&format!("{DROP}{RULES}"));
    assert_eq!(slot(&kernel, "telnet"), (0, 0, false));
}

#[test]
fn the_interface_decides_where_a_rule_says_so() {
    let kernel = Kernel::new(&format!("{DROP}{RULES}"));
    kernel.check("UDP", &Packet::new().between("10.0.0.1", "10.0.0.2").udp(1, 2).build(), "pass rule here");
    kernel.check("UDP", &Packet::new().between("::1", "::2").udp(1, 2).build(), "pass rule here");
}

#[test]
fn alert_mode_drops_nothing_and_says_what_it_would() {
    for policy in ["drop", "pass"] {
        let kernel = Kernel::new(&format!("mode = \"alert\"\ndefault_policy = \"{policy}\"\n{RULES}"));
        let would = if policy == "drop" { "would_drop" } else { "pass" };
        let frames = Packet::new().between("10.0.0.1", "10.0.0.2").tcp(1, 23).payload(&[0; 80]).fragments(1, 40);
        kernel.check("allowed", &tcp(80).build(), "pass rule web");
        kernel.check("denied", &tcp(23).build(), "would_drop rule telnet");
        kernel.check("no rule", &tcp(81).build(), &format!("{would} default_policy"));
        kernel.check("unparsable", &tcp(80).ihl(4).build(), &format!("{would} unparsable bad_ipv4"));
        kernel.check("first fragment", &frames[0], "would_drop rule telnet");
        kernel.check("later fragment", &frames[1], "would_drop fragment telnet");
        let arp = Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build();
        kernel.check("exception", &arp, "pass exception link_control");
    }
}

#[test]
fn the_guard_keeps_its_ports_open() {
    let guard = Guard {
        ports: vec![22, 8080],
        networks: ["10.9.0.0/24", "2001:db8:9::/64", "192.0.2.7/32"].map(|net| net.parse().unwrap()).to_vec(),
    };
    let deny = "rules = [{ id = \"all\", priority = 1, action = \"deny\" }]";
    let kernel = Kernel::with(&format!("{DROP}{deny}"), &Switches::default(), &guard);
    let to = |source: &str, port| {
        let host = if source.contains(':') { "2001:db8::1" } else { "10.0.0.1" };
        Packet::new().between(source, host).tcp(4000, port).build()
    };
    for source in ["10.9.0.1", "10.9.0.255", "2001:db8:9::1", "2001:db8:9:0:ffff::1", "192.0.2.7"] {
        for port in [22, 8080] {
            kernel.check(source, &to(source, port), "pass exception guard");
        }
        // 86 is 22 + 64: the same bit of the filter.
        for port in [21, 23, 86, 8144, 443] {
            kernel.check(source, &to(source, port), "drop rule all");
        }
    }
    for source in ["10.9.1.1", "10.8.255.255", "192.0.2.6", "192.0.2.8", "2001:db8:8::1", "::a09:1", "::ffff:10:9"] {
        kernel.check(source, &to(source, 22), "drop rule all");
    }
    let udp = Packet::new().between("10.9.0.1", "10.0.0.1").udp(22, 22).build();
    kernel.check("UDP is not guarded", &udp, "drop rule all");
    let from_guarded = Packet::new().between("10.9.0.1", "10.0.0.1").tcp(22, 4000).build();
    kernel.check("nor is the source port", &from_guarded, "drop rule all");
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[test]
fn metadata_says_what_was_found() {
    let switches = Switches { write_meta: true, ..Switches::default() };
    let kernel = Kernel::with(&format!("{PASS}{RULES}"), &switches, &Guard::default());
    let slots = fw_limits::FW_SLOTS.0;
    let by = |reason: fw_reason| (reason.0 as u8, (slots + reason.0) as u16);
    let web = (fw_reason::FW_BY_RULE.0 as u8, kernel.slots.get("web").unwrap());
    let policy = by(fw_reason::FW_BY_POLICY);
    let v6 = || Packet::new().between("2001:db8::1", "2001:db8::2");
    let v4 = || Packet::new().between("10.0.0.1", "10.0.0.2");
    let first = tcp(80).payload(&[0; 80]).fragments(3, 40);
    // Frame, what decided, offsets of network and transport, family, protocol, VLAN.
    let cases = [
        (tcp(80).build(), web, (14, 34), 4, 6, 0),
        (tcp(80).vlan(9).build(), web, (18, 38), 4, 6, 9),
        (tcp(80).vlan(9).vlan(8).options(&[1; 12]).build(), web, (22, 54), 4, 6, 9),
        (v4().udp(1, 2).build(), (0, kernel.slots.get("here").unwrap()), (14, 34), 4, 17, 0),
        (v6().tcp(1, 80).build(), web, (14, 54), 6, 6, 0),
        (v6().hop_by_hop(&[0; 6]).authentication(12).ping(1, 1).build(), policy, (14, 86), 6, 58, 0),
        (v4().protocol(47).build(), policy, (14, 34), 4, 47, 0),
        (first[0].clone(), web, (14, 34), 4, 6, 0),
        (first[1].clone(), (fw_reason::FW_BY_FRAGMENT.0 as u8, web.1), (14, 0), 4, 6, 0),
        (tcp(80).ihl(1).build(), by(fw_reason::FW_BY_PARSER), (14, 0), 0, 0, 0),
        (
            Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build(),
            by(fw_reason::FW_BY_EXCEPTION),
            (14, 0),
            0,
            0,
            0,
        ),
    ];
    for (frame, (reason, slot), (network, transport), family, protocol, vlan) in cases {
        let (ran, out) = kernel.xdp.test_run_output(&frame, 0).unwrap();
        assert_eq!(ran.action, XDP_PASS);
        assert_eq!(out[16..], frame, "the frame itself stays as it was");
        assert_eq!(u32::from_ne_bytes(out[..4].try_into().unwrap()), xdp_meta_limits::XDP_META_MAGIC.0);
        assert_eq!((word(&out, 4), out[6], out[7]), (slot, fw_verdict::FW_PASS.0 as u8, reason), "{frame:02x?}");
        assert_eq!((word(&out, 8), word(&out, 10)), (network, transport), "{frame:02x?}");
        assert_eq!((out[12], out[13], word(&out, 14)), (family, protocol, vlan), "{frame:02x?}");
    }
    let denied = tcp(23).build();
    let (ran, out) = kernel.xdp.test_run_output(&denied, 0).unwrap();
    assert_eq!((ran.action, out), (XDP_DROP, denied.clone()), "nothing for what is dropped");

    let without = Kernel::new(PASS);
    let (ran, out) = without.xdp.test_run_output(&denied, 0).unwrap();
    assert_eq!((ran.action, out), (XDP_PASS, denied), "nothing when nobody reads it");
}

/// The short ways write what the long one writes: a program for jumbo frames takes that for every packet.
#[test]
fn all_ways_write_the_same_metadata() {
    let rules = RULES.replace("[\"eth7\"]", "[\"lo\"]").replace(
        "rules = [",
        "rules = [{ id = \"echo\", priority = 9, \
        action = \"allow\", protocol = \"icmp\", icmp_type = 8 },",
    );
    let packets = |from: &str, to: &str| {
        let packet = || Packet::new().between(from, to);
        let payload = || packet().udp(9, 2).payload(&[7; 1400]);
        vec![
            ("allowed TCP", packet().tcp(4000, 80)),
            ("TCP by policy", packet().tcp(4000, 81)),
            ("TCP that would be dropped", packet().tcp(4000, 23)),
            ("UDP that would be dropped", packet().udp(1, 2)),
            ("large UDP", payload()),
            ("a ping", packet().ping(1, 1)),
            ("GRE", packet().protocol(47).payload(&[0; 40])),
            ("tagged", packet().tcp(4000, 80).vlan(7)),
        ]
    };
    for policy in ["mode = \"alert\"\ndefault_policy = \"drop\"\n", PASS, DROP] {
        let load = |multi_buffer| {
            let switches = Switches { write_meta: true, multi_buffer, ..Switches::default() };
            Kernel::with(&format!("{policy}{rules}"), &switches, &Guard::default())
        };
        let (short, long) = (load(false), load(true));
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")] {
            for (what, packet) in packets(from, to) {
                let frame = packet.build();
                let (ran, wanted) = long.xdp.test_run_output(&frame, 0).unwrap();
                assert_eq!(wanted.len(), frame.len() + if ran.action == XDP_PASS { 16 } else { 0 }, "{what}");
                // The first one may be told, the second is judged by the rules, and the cache knows the others.
                for round in 0..5 {
                    let (again, out) = short.xdp.test_run_output(&frame, 0).unwrap();
                    assert_eq!((again.action, out), (ran.action, wanted.clone()), "{what} from {from}, round {round}");
                }
            }
        }
    }
}

#[test]
fn metadata_is_there_as_long_as_a_rule_mirrors() {
    let plain = format!("{PASS}{RULES}");
    let mut kernel = Kernel::new(&plain);
    let frames = [tcp(80).build(), tcp(81).build(), tcp(80).vlan(7).build()];
    let lengths = |kernel: &Kernel| -> Vec<usize> {
        let once = || frames.iter().map(|frame| kernel.xdp.test_run_output(frame, 0).unwrap().1.len() - frame.len());
        // Thrice, so that the cache has its turn.
        (0..3).flat_map(|_| once()).collect()
    };
    assert_eq!(lengths(&kernel), [0; 9]);
    let mirror = "{ id = \"m\", priority = 9, action = \"allow\", protocol = \"icmp\", mirror_to = \"mon0\" },";
    kernel.swap(&plain.replace("rules = [", &format!("rules = [{mirror}")));
    assert_eq!(lengths(&kernel), [16; 9]);
    let off = mirror.replace("mirror_to", "enabled = false, mirror_to");
    kernel.swap(&plain.replace("rules = [", &format!("rules = [{off}")));
    assert_eq!(lengths(&kernel), [0; 9]);
}

#[test]
fn the_next_program_runs_after_a_pass_only() {
    let chain = Chain::new().unwrap();
    let switches = Switches { chain: Some(&chain), ..Switches::default() };
    let first = Kernel::with(&format!("{PASS}{RULES}"), &switches, &Guard::default());
    let next = Kernel::new(DROP);
    chain.set(xdp_chain::CHAIN_RATELIMIT, next.xdp.program()).unwrap();
    let seen = || next.counts().slots.iter().map(|(packets, _)| packets).sum::<u64>();
    let run = |frame: &[u8]| first.xdp.test_run(frame, 0, 1).unwrap().action;
    let arp = Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build();
    assert_eq!((run(&tcp(80).build()), seen()), (XDP_DROP, 1), "passed, and then dropped by the next");
    assert_eq!((run(&arp), seen()), (XDP_PASS, 2), "both pass it");
    assert_eq!((run(&tcp(81).build()), seen()), (XDP_DROP, 3));
    assert_eq!((run(&tcp(23).build()), seen()), (XDP_DROP, 3), "dropped: the next never sees it");
    first.explain(&tcp(80).build());
    assert_eq!(seen(), 3, "a question goes no further");
}
