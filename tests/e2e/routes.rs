//! What the host's routes say of packets: forged sources are dropped, and events know the way of what is forwarded.

use ebpfsentinel::api::Method;
use ebpfsentinel::lab::{Namespace, connect};
use ebpfsentinel::packet::build::Packet;
use serde_json::json;

use super::support::{HOST, HOST_V6, Lab, WORLD, WORLD_V6, config, udp, wait_until};

const SYN: u8 = 2;
const LO: [&str; 2] = ["ipv4/conf/lo/forwarding", "ipv6/conf/lo/forwarding"];

/// The host has a second link, eth1, and behind it 203.0.113.0/24 and 2001:db8:3::/48.
fn second_link(lab: &Lab) -> Namespace {
    let far = Namespace::new("far").unwrap();
    let near = lab.host.port("eth1").address("198.51.100.10/24").address("2001:db8:2::10/64");
    connect(&near, &far.port("eth1").address("198.51.100.1/24").address("2001:db8:2::1/64")).unwrap();
    lab.host.ip("route add 203.0.113.0/24 via 198.51.100.1").unwrap();
    lab.host.ip("route add 2001:db8:3::/48 via 2001:db8:2::1").unwrap();
    far
}

fn text(agent: &str, how: &str) -> String {
    config(agent, &format!("mode = \"block\"\nrp_filter = \"{how}\""), &[])
}

fn switches(lab: &Lab) -> [String; 2] {
    LO.map(|key| lab.host.run(|| std::fs::read_to_string(format!("/proc/sys/net/{key}"))).unwrap().unwrap())
        .map(|value| value.trim().to_owned())
}

fn forged(lab: &Lab) -> f64 {
    lab.metric("ebpfsentinel_forged_source_packets_total{interface=\"eth0\",verdict=\"drop\"}")
}

#[test]
fn forged_sources_are_dropped_and_told() {
    let lab = Lab::new();
    let _far = second_link(&lab);
    let asymmetric = ["203.0.113.9", "2001:db8:3::1", "198.51.100.1", "2001:db8:2::1"];
    let nowhere = ["8.8.8.8", "2001:4860::8888", HOST, HOST_V6, "198.51.100.10", "224.0.0.5"];
    assert_eq!(switches(&lab), ["0", "0"]);
    let agent = lab.start(&text("", "strict"));
    assert_eq!(switches(&lab), ["1", "1"]);
    let mut count = 0.0;
    for from in asymmetric.iter().chain(&nowhere) {
        assert!(!lab.passes(udp(from, 7)), "{from}");
        count += 1.0;
        assert_eq!(forged(&lab), count, "{from}");
    }
    assert!(lab.passes(udp(WORLD, 7)) && lab.passes(udp(WORLD_V6, 7)));
    agent.says("packet dropped by rp_filter");
    let explain = |from: &str, to: &str| {
        let body = json!({"src_ip": from, "dst_ip": to, "protocol": "udp", "dst_port": 7});
        lab.ask(Method::Post, "/api/v1/explain", Some(body))
    };
    let answer = explain("203.0.113.9", HOST);
    assert_eq!((&answer["verdict"], &answer["decided_by"]), (&json!("drop"), &json!("rp_filter")));
    assert!(answer["text"].as_str().unwrap().contains("behind eth0"), "{answer}");
    assert_eq!(explain(WORLD_V6, HOST_V6)["verdict"], "pass");

    // Who has no address yet is heard, and who works here is not shut out.
    let unspecified = |packet: Packet| lab.passes(packet);
    assert!(unspecified(Packet::new().between("0.0.0.0", "255.255.255.255").udp(68, 67).payload(&[0; 300])));
    assert!(unspecified(Packet::new().between("::", "ff02::1:ff00:7").ttl(255).icmp(135, 0).payload(&[0; 20])));
    assert!(unspecified(Packet::new().between("fe80::7", "ff02::1:2").udp(546, 547).payload(&[0; 40])));

    lab.write_config(&text("", "loose"));
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    for from in asymmetric {
        assert!(lab.passes(udp(from, 8)), "{from}");
    }
    for from in nowhere {
        assert!(!lab.passes(udp(from, 8)), "{from}");
    }
    // Routes change under flows that are known.
    lab.host.ip("route del 203.0.113.0/24").unwrap();
    wait_until("the route is missed", || !lab.passes(udp("203.0.113.9", 8)));
    lab.host.ip("route add 203.0.113.0/24 via 198.51.100.1").unwrap();
    wait_until("the route is found", || lab.passes(udp("203.0.113.9", 8)));

    lab.write_config(&text("", "off"));
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    assert_eq!(switches(&lab), ["0", "0"]);
    assert!(nowhere.iter().all(|from| lab.passes(udp(from, 9))));
    agent.stop();
}

#[test]
fn the_guard_opens_the_way_in_for_a_source_without_a_route() {
    let lab = Lab::new();
    let list = "anti_lockout = { ssh_ports = [22], from = [\"8.8.8.0/24\"] }";
    let agent = lab.start(&text(list, "strict"));
    let syn = |port| Packet::new().between("8.8.8.8", HOST).tcp(5000, port).flags(SYN);
    assert!(lab.passes(syn(22)) && !lab.passes(syn(23)));
    agent.stop();
}

/// The switches that the kernel wants are put back, and the host keeps the routes that routers told it.
#[test]
fn the_host_is_left_as_it_was() {
    let lab = Lab::new();
    let default = || lab.host.ip("-6 route show default").unwrap();
    let advertise = || {
        // Hop limit 64, no flags, a router for 1800 seconds; reachable and retransmission times are left open.
        let router = Packet::new().between("fe80::1", "ff02::1").ttl(255).icmp(134, 0).rest(0x4000_0708);
        assert!(lab.passes(router.payload(&[0; 8])));
        wait_until("a default route is learned", || default().contains("proto ra"));
    };
    // This is what the kernel does without care.
    advertise();
    lab.host.sysctl(LO[1], "1").unwrap();
    assert!(!default().contains("proto ra"));
    lab.host.sysctl(LO[1], "0").unwrap();
    advertise();
    let agent = lab.start(&text("", "loose"));
    assert!(default().contains("proto ra"), "the agent's start has cost the host its router");
    assert_eq!(switches(&lab), ["1", "1"]);
    // An administrator may switch them off; that is told, and a reload puts it right.
    lab.host.sysctl(LO[0], "0").unwrap();
    wait_until("not ready", || {
        let answer = lab.send(Method::Get, "/readyz", None);
        answer.status == 503 && answer.body.contains("net.ipv4.conf.lo.forwarding is 0")
    });
    assert!(lab.passes(udp("8.8.8.8", 7)), "nobody is accused");
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    assert!(!lab.passes(udp("8.8.8.8", 8)));
    assert_eq!(lab.send(Method::Get, "/readyz", None).status, 200);
    let said = agent.stop();
    assert!(said.contains("net.ipv6.conf.lo.forwarding was 0 and is 1 now"), "{said}");
    assert_eq!(switches(&lab), ["0", "0"]);
    assert!(default().contains("proto ra"));
    let accept = lab.host.run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra")).unwrap().unwrap();
    assert_eq!(accept.trim(), "1");

    // Whoever had them on before keeps them, and so does who goes on filtering without an agent.
    lab.host.sysctl(LO[0], "1").unwrap();
    lab.start(&text("", "loose")).stop();
    assert_eq!(switches(&lab), ["1", "0"]);
    lab.start(&text("on_exit = \"keep\"", "loose")).stop();
    assert_eq!(switches(&lab), ["1", "1"]);
    assert!(!lab.passes(udp("8.8.8.8", 9)), "still filtered");
    lab.start(&text("", "off")).stop();
}

/// The route to the world leaves by what stands on eth0, and that may change.
#[test]
fn an_interface_may_become_a_port_of_a_bridge() {
    let lab = Lab::new();
    let _far = second_link(&lab);
    let agent = lab.start(&text("", "strict"));
    assert!(lab.passes(udp(WORLD, 7)) && lab.passes(udp(WORLD_V6, 7)));
    lab.host.ip("link add name br0 type bridge").unwrap();
    lab.host.ip("link set br0 up").unwrap();
    lab.host.ip("addr flush dev eth0").unwrap();
    lab.host.ip("addr add 192.0.2.10/24 dev br0").unwrap();
    lab.host.ip("addr add 2001:db8:1::10/64 dev br0").unwrap();
    wait_until("the route leaves by br0", || !lab.passes(udp(WORLD, 8)) && !lab.passes(udp(WORLD_V6, 8)));
    lab.host.ip("link set eth0 master br0").unwrap();
    wait_until("br0 stands on eth0", || lab.passes(udp(WORLD, 9)) && lab.passes(udp(WORLD_V6, 9)));
    assert!(!lab.passes(udp("203.0.113.9", 9)) && !lab.passes(udp("2001:db8:3::1", 9)));
    lab.host.ip("link set eth0 nomaster").unwrap();
    wait_until("it does no more", || !lab.passes(udp(WORLD, 10)) && !lab.passes(udp(WORLD_V6, 10)));
    agent.stop();
}

/// Events of packets that the host forwards know where those go.
#[test]
fn events_know_the_next_hop() {
    let lab = Lab::new();
    let _far = second_link(&lab);
    lab.host.sysctl("ipv4/ip_forward", "1").unwrap();
    lab.host.sysctl("ipv6/conf/all/forwarding", "1").unwrap();
    let rules = [super::support::rule("told", 10, "log", "protocol = \"udp\"")];
    let agent = lab.start(&config("", "mode = \"block\"\nnext_hop = true", &rules));
    let to = |from: &str, to: &str, port| Packet::new().between(from, to).udp(4000, port).payload(b"probe");
    let line = |port: u16| {
        let mark = format!("dst_port={port}");
        super::support::wait_for(&mark, || {
            agent.said().lines().find(|line| line.contains("rule told") && line.contains(&mark)).map(str::to_owned)
        })
    };
    for (port, from, dst, next_hop) in [
        (1001, WORLD, "203.0.113.9", "198.51.100.1"),
        (1002, WORLD, "198.51.100.1", "198.51.100.1"),
        (1003, WORLD, "198.51.100.77", "198.51.100.77"),
        (1004, WORLD_V6, "2001:db8:3::1", "2001:db8:2::1"),
        (1005, WORLD_V6, "2001:db8:2::77", "2001:db8:2::77"),
    ] {
        assert!(lab.passes(to(from, dst, port)));
        let line = line(port);
        assert!(line.contains(&format!("next_hop={next_hop} out_interface=eth1")), "{line}");
    }
    for (port, from, dst) in [(1006, WORLD, HOST), (1007, WORLD_V6, HOST_V6), (1008, WORLD, "8.8.8.8")] {
        assert!(lab.passes(to(from, dst, port)));
        let line = line(port);
        assert!(!line.contains("next_hop") && !line.contains("out_interface"), "{line}");
    }
    // Who did not ask is not told, and who does not forward has no next hop.
    lab.write_config(&config("", "mode = \"block\"", &rules));
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    assert!(lab.passes(to(WORLD, "203.0.113.9", 1009)) && !line(1009).contains("next_hop"));
    lab.write_config(&config("", "mode = \"block\"\nnext_hop = true", &rules));
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    lab.host.sysctl("ipv4/ip_forward", "0").unwrap();
    assert!(lab.passes(to(WORLD, "203.0.113.9", 1010)) && !line(1010).contains("next_hop"));
    agent.stop();
}
