//! What the host's routes say of packets: forged sources, in a network namespace with two interfaces.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ebpfsentinel::bpf::xdp_firewall::Switches;
use ebpfsentinel::classify::guard::Guard;
use ebpfsentinel::classify::interfaces::Port;
use ebpfsentinel::lab::{Namespace, connect};
use ebpfsentinel::packet::build::Packet;

use crate::harness::{DROP, Kernel, PASS, XDP_DROP, XDP_PASS};

const HOST: &str = "192.0.2.10";
const HOST_V6: &str = "2001:db8:1::10";
const FORGED: &str = "drop rp_filter";
const ANY_VLAN: u32 = 4096;

/// A host with eth0 (192.0.2.0/24, 2001:db8:1::/64) and eth1 (198.51.100.0/24, 2001:db8:2::/64), and no default route.
struct Host {
    host: Namespace,
    world: Namespace,
}

impl Host {
    fn new() -> Host {
        let (host, world) = (Namespace::new("host").unwrap(), Namespace::new("world").unwrap());
        for (name, v4, v6) in
            [("eth0", "192.0.2.10/24", "2001:db8:1::10/64"), ("eth1", "198.51.100.10/24", "2001:db8:2::10/64")]
        {
            connect(&host.port(name).address(v4).address(v6), &world.port(name)).unwrap();
        }
        for family in ["ipv4", "ipv6"] {
            host.sysctl(&format!("{family}/conf/lo/forwarding"), "1").unwrap();
        }
        for route in [
            "203.0.113.0/24 via 198.51.100.1",
            "blackhole 10.1.0.0/16",
            "unreachable 10.2.0.0/16",
            "prohibit 10.3.0.0/16",
            "throw 10.4.0.0/16",
            "2001:db8:3::/48 via 2001:db8:2::1",
            "blackhole 2001:db8:a1::/48",
            "unreachable 2001:db8:a2::/48",
            "prohibit 2001:db8:a3::/48",
        ] {
            host.ip(&format!("route add {route}")).unwrap();
        }
        Host { host, world }
    }

    /// Runs `test` on a thread in the host, where its interfaces are found.
    fn with(&self, text: &str, guard: &Guard, test: impl FnOnce(&mut Kernel) + Send) {
        self.host
            .run(|| {
                let port =
                    |name: &str| Port { name: name.to_owned(), ifindex: ebpfsentinel::bpf::attach::ifindex(name) };
                let ports = vec![port("eth0"), port("eth1")];
                test(&mut Kernel::on(text, &Switches::default(), guard, ports));
            })
            .unwrap();
    }
}

fn filter(how: &str) -> String {
    format!("{PASS}rp_filter = \"{how}\"\n")
}

fn to_host(from: &str) -> Packet {
    Packet::new().between(from, if from.contains(':') { HOST_V6 } else { HOST }).udp(4000, 53).payload(b"probe")
}

/// Each by both ways through the program: a frame with a priority tag is not a common one, and untagged all the same.
fn check(kernel: &Kernel, what: &str, packet: Packet, expected: &str) {
    kernel.check(what, &packet.build(), expected);
    kernel.check(&format!("{what}, the long way"), &packet.vlan(0).build(), expected);
}

#[test]
fn sources_are_where_routes_lead() {
    const PASSES: &str = "pass default_policy";
    /// Source, and what loose and strict say of it on eth0.
    const SOURCES: &[(&str, &str, &str)] = &[
        ("192.0.2.1", PASSES, PASSES),
        ("198.51.100.1", PASSES, FORGED),
        ("203.0.113.9", PASSES, FORGED),
        ("8.8.8.8", FORGED, FORGED),
        ("10.1.0.1", FORGED, FORGED),
        ("10.2.0.1", FORGED, FORGED),
        ("10.3.0.1", FORGED, FORGED),
        ("10.4.0.1", FORGED, FORGED),
        (HOST, FORGED, FORGED),
        ("198.51.100.10", FORGED, FORGED),
        ("127.0.0.1", FORGED, FORGED),
        ("192.0.2.255", FORGED, FORGED),
        ("224.0.0.5", FORGED, FORGED),
        ("239.255.255.255", FORGED, FORGED),
        ("255.255.255.255", FORGED, FORGED),
        ("0.0.0.0", FORGED, FORGED),
        ("0.0.0.1", FORGED, FORGED),
        ("2001:db8:1::1", PASSES, PASSES),
        ("2001:db8:2::1", PASSES, FORGED),
        ("2001:db8:3::1", PASSES, FORGED),
        ("2001:4860::8888", FORGED, FORGED),
        ("2001:db8:a1::1", FORGED, FORGED),
        ("2001:db8:a2::1", FORGED, FORGED),
        ("2001:db8:a3::1", FORGED, FORGED),
        (HOST_V6, FORGED, FORGED),
        ("2001:db8:2::10", FORGED, FORGED),
        ("::1", FORGED, FORGED),
        ("ff02::1", FORGED, FORGED),
        ("::", FORGED, FORGED),
        ("fe80::7", PASSES, PASSES),
    ];
    let lab = Host::new();
    for strict in [false, true] {
        lab.with(&filter(if strict { "strict" } else { "loose" }), &Guard::default(), |kernel| {
            for &(source, in_loose, in_strict) in SOURCES {
                check(kernel, source, to_host(source), if strict { in_strict } else { in_loose });
            }
            kernel.at = 1;
            for source in ["203.0.113.9", "2001:db8:3::1", "198.51.100.1", "2001:db8:2::1"] {
                check(kernel, source, to_host(source), PASSES);
            }
            check(kernel, "eth0's", to_host("192.0.2.1"), if strict { FORGED } else { PASSES });
            // With a default route everybody is somewhere, but for those who cannot be.
            lab.host.ip("route add default via 198.51.100.1").unwrap();
            lab.host.ip("route add default via 2001:db8:2::1").unwrap();
            for source in ["8.8.8.8", "2001:4860::8888"] {
                check(kernel, source, to_host(source), PASSES);
            }
            kernel.at = 0;
            for source in ["8.8.8.8", "2001:4860::8888"] {
                check(kernel, source, to_host(source), if strict { FORGED } else { PASSES });
            }
            for source in ["224.0.0.5", "255.255.255.255", "ff02::1", "0.0.0.0", "::", "10.1.0.1", HOST, HOST_V6] {
                check(kernel, source, to_host(source), FORGED);
            }
            lab.host.ip("route del default via 198.51.100.1").unwrap();
            lab.host.ip("route del default via 2001:db8:2::1").unwrap();
        });
    }
    // Whoever does not want it does not have it; and a kernel that does not answer accuses nobody.
    lab.with(&filter("off"), &Guard::default(), |kernel| {
        SOURCES.iter().for_each(|(source, ..)| check(kernel, source, to_host(source), PASSES));
    });
    for family in ["ipv4", "ipv6"] {
        lab.host.sysctl(&format!("{family}/conf/lo/forwarding"), "0").unwrap();
    }
    lab.with(&filter("strict"), &Guard::default(), |kernel| {
        for source in ["8.8.8.8", "2001:4860::8888", HOST, HOST_V6] {
            check(kernel, source, to_host(source), PASSES);
        }
    });
}

#[test]
fn who_has_no_address_yet_may_ask_for_one() {
    let lab = Host::new();
    for how in ["loose", "strict"] {
        lab.with(&filter(how), &Guard::default(), |kernel| {
            let discover = Packet::new().between("0.0.0.0", "255.255.255.255").udp(68, 67).payload(&[0; 300]);
            check(kernel, "DHCP discover", discover, "pass default_policy");
            check(kernel, "IGMP", Packet::new().between("0.0.0.0", "224.0.0.22").protocol(2), "pass default_policy");
            // This host has no route to the server so far.
            let offer = Packet::new().between("10.9.9.9", "255.255.255.255").udp(67, 68).payload(&[0; 300]);
            check(kernel, "DHCP offer", offer, "pass exception dhcp");
            let dad = Packet::new().between("::", "ff02::1:ff00:7").ttl(255).icmp(135, 0).payload(&[0; 20]);
            check(kernel, "address detection", dad, "pass exception neighbour");
            let report = Packet::new().between("::", "ff02::16").icmp(143, 0).payload(&[0; 20]);
            check(kernel, "MLD report", report, "pass default_policy");
            let solicit = Packet::new().between("fe80::7", "ff02::1:2").udp(546, 547).payload(&[0; 40]);
            check(kernel, "DHCPv6", solicit, "pass default_policy");
            let arp = Packet::new().arp_request("8.8.8.8".parse().unwrap(), HOST.parse().unwrap());
            kernel.check("ARP", &arp.build(), "pass exception link_control");
        });
    }
}

/// The other things that decide, and the order in which they do.
#[test]
fn forgers_do_not_pass_whatever_the_rules_say() {
    let lab = Host::new();
    let rules = r#"
        rules = [
            { id = "shut", priority = 1, action = "deny", protocol = "udp", dst_port = 9 },
            { id = "told", priority = 2, action = "log", protocol = "udp", dst_port = 10 },
            { id = "all", priority = 3, action = "allow" },
        ]
    "#;
    let guard = Guard { ports: vec![22], networks: vec!["8.8.8.0/24".parse().unwrap()] };
    let from = |port| Packet::new().between("8.8.8.8", HOST).udp(4000, port).payload(b"probe");
    lab.with(&format!("{}{rules}", filter("loose")), &guard, |kernel| {
        check(kernel, "a deny rule is first", from(9), "drop rule shut");
        check(kernel, "an allow rule is not", from(11), FORGED);
        let events = kernel.counts().events;
        for _ in 0..50 {
            check(kernel, "nor one that records", from(10), FORGED);
        }
        assert!(kernel.counts().events - events < 10, "a flood of forged packets is not told one by one");
        let tcp = |port| Packet::new().between("8.8.8.8", HOST).tcp(4000, port);
        check(kernel, "who works here keeps the way in", tcp(22), "pass exception guard");
        check(kernel, "but no other way", tcp(23), FORGED);
        let fragments = from(11).payload(&[0; 100]).fragments(7, 40);
        kernel.check("first fragment", &fragments[0], FORGED);
        kernel.check("later fragment", &fragments[1], "drop fragment");
        // A later fragment of another's datagram; it comes by an interface by which its source does not.
        let honest = Packet::new().between("198.51.100.1", HOST).udp(1, 2).payload(&[0; 100]).fragments(8, 40);
        kernel.at = 1;
        kernel.check("first fragment", &honest[0], "pass rule all");
        kernel.swap(&format!("{}{rules}", filter("strict")));
        kernel.check("first fragment", &honest[0], "pass rule all");
        kernel.check("later fragment", &honest[1], "pass fragment all");
        kernel.at = 0;
        kernel.check("later fragment on the wrong interface", &honest[1], FORGED);
        let broken = from(11).ihl(15).build();
        kernel.check("what cannot be parsed has a source, or none", &broken, "pass unparsable bad_ipv4");
        let short = Packet::new().between("8.8.8.8", HOST).protocol(6).payload(&[0; 4]).build();
        kernel.check("or one", &short, FORGED);
        kernel.swap(&filter("loose").replace("block", "alert"));
        check(kernel, "mode alert", from(11), "would_drop rp_filter");
        kernel.swap(&format!("{DROP}rp_filter = \"loose\"\n"));
        check(kernel, "is dropped anyway", from(11), "drop default_policy");
    });
}

/// Devices that stand on the guarded interface. Not every kernel has VLAN devices, so a link is said to be one.
#[test]
fn routes_leave_by_what_stands_on_the_interface() {
    const PASSES: &str = "pass default_policy";
    let lab = Host::new();
    let port = lab.host.port("above").address("10.5.0.10/24").address("2001:db8:5::10/64");
    connect(&port, &lab.world.port("above")).unwrap();
    let above = lab.host.interface("above").unwrap().index;
    let sources = ["10.5.0.1", "2001:db8:5::1"];
    lab.with(&filter("strict"), &Guard::default(), |kernel| {
        let on = |kernel: &Kernel, expected: [&str; 3]| {
            for source in sources {
                check(kernel, "untagged", to_host(source), expected[0]);
                kernel.check("tag 5", &to_host(source).vlan(5).build(), expected[1]);
                kernel.check("tag 6", &to_host(source).vlan(6).build(), expected[2]);
            }
        };
        let set = |kernel: &mut Kernel, entries: &[((u32, u32), u64)]| {
            kernel.xdp.set_uppers(&entries.iter().copied().collect::<BTreeMap<_, _>>()).unwrap();
        };
        on(kernel, [FORGED; 3]);
        set(kernel, &[((above, 0), 1)]);
        on(kernel, [PASSES, FORGED, FORGED]);
        set(kernel, &[((above, 5), 1)]);
        on(kernel, [FORGED, PASSES, FORGED]);
        set(kernel, &[((above, ANY_VLAN), 1)]);
        on(kernel, [PASSES; 3]);
        kernel.at = 1;
        on(kernel, [FORGED; 3]);
        set(kernel, &[((above, 0), 2), ((above, 6), 3)]);
        on(kernel, [PASSES, FORGED, PASSES]);
        set(kernel, &[]);
        on(kernel, [FORGED; 3]);
        // An interface that is not known is not known to be the wrong one.
        for (source, verdict) in [("192.0.2.1", 0), ("203.0.113.9", 0), ("8.8.8.8", 1), (HOST, 1), ("ff02::1", 1)] {
            let answered = kernel.xdp.explain(&to_host(source).build(), above).unwrap();
            assert_eq!(answered.verdict, verdict, "{source}");
        }
        // The route to it leaves by eth0, and not by a VLAN of eth0.
        kernel.at = 0;
        kernel.check("no such VLAN device", &to_host("192.0.2.1").vlan(5).build(), FORGED);
        kernel.swap(&filter("loose"));
        on(kernel, [PASSES; 3]);
        kernel.check("no such VLAN device", &to_host("192.0.2.1").vlan(5).build(), PASSES);
    });
}

/// What the flow cache holds does not outlive a change of routes for long, also of a flow that never pauses.
#[test]
fn a_changed_route_is_soon_seen() {
    let lab = Host::new();
    lab.with(&filter("loose"), &Guard::default(), |kernel| {
        let frames = ["203.0.113.9", "2001:db8:3::1"].map(|source| to_host(source).build());
        let until = |action: u32| {
            let begin = Instant::now();
            while frames.iter().any(|frame| kernel.arrives(frame) != action) {
                assert!(begin.elapsed() < Duration::from_secs(20), "routes are not looked at again");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        for _ in 0..2 {
            until(XDP_PASS);
            lab.host.ip("route del 203.0.113.0/24").unwrap();
            lab.host.ip("route del 2001:db8:3::/48").unwrap();
            until(XDP_DROP);
            lab.host.ip("route add 203.0.113.0/24 via 198.51.100.1").unwrap();
            lab.host.ip("route add 2001:db8:3::/48 via 2001:db8:2::1").unwrap();
        }
    });
}
