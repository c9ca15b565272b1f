//! Each field of a rule on a wire, in IPv4 and IPv6: a packet that it names is dropped and counted by that rule, its
//! nearest neighbours pass.

use ebpfsentinel::packet::build::Packet;

use super::support::{HOST, HOST_V6, Lab, OTHER, WORLD, WORLD_V6, rule};

const OTHER_V6: &str = "2001:db8:1::2";
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A rule, by what it says beside id, priority and action, with packets that it names and packets that it does not.
struct Case {
    id: &'static str,
    says: &'static str,
    named: Vec<Packet>,
    others: Vec<Packet>,
}

/// From the world to the host.
fn v4() -> Packet {
    Packet::new().between(WORLD, HOST)
}

fn v6() -> Packet {
    Packet::new().between(WORLD_V6, HOST_V6)
}

/// The same of both families.
fn both(make: impl Fn(Packet) -> Packet) -> Vec<Packet> {
    vec![make(v4()), make(v6())]
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut case = |id, says, named: Vec<Vec<Packet>>, others: Vec<Vec<Packet>>| {
        cases.push(Case { id, says, named: named.concat(), others: others.concat() });
    };
    case(
        "protocol-tcp",
        "protocol = \"tcp\"\ndst_port = 2001",
        vec![both(|p| p.tcp(4000, 2001))],
        vec![both(|p| p.udp(4000, 2001)), both(|p| p.tcp(2001, 4000))],
    );
    case(
        "protocol-udp",
        "protocol = \"udp\"\ndst_port = 2002",
        vec![both(|p| p.udp(4000, 2002))],
        vec![both(|p| p.tcp(4000, 2002))],
    );
    case(
        "protocol-number",
        "protocol = 47",
        vec![both(|p| p.protocol(47).payload(&[0; 30]))],
        vec![both(|p| p.protocol(46).payload(&[0; 30]))],
    );
    case(
        "src-ip",
        "src_ip = \"192.0.2.2/31\"\ndst_port = 2003",
        vec![vec![
            Packet::new().between(OTHER, HOST).udp(1, 2003),
            Packet::new().between("192.0.2.3", HOST).udp(1, 2003),
        ]],
        vec![vec![Packet::new().between("192.0.2.4", HOST).udp(1, 2003)], both(|p| p.udp(1, 2003))],
    );
    case(
        "src-ip-v6",
        "src_ip = \"2001:db8:1::2\"\ndst_port = 2004",
        vec![vec![Packet::new().between(OTHER_V6, HOST_V6).udp(1, 2004)]],
        vec![both(|p| p.udp(1, 2004)), vec![Packet::new().between("2001:db8:1:0:1::2", HOST_V6).udp(1, 2004)]],
    );
    case(
        "dst-ip",
        "dst_ip = \"192.0.2.10\"\ndst_port = 2005",
        vec![vec![v4().udp(1, 2005)]],
        vec![vec![v6().udp(1, 2005), Packet::new().between(WORLD, "192.0.2.11").udp(1, 2005)]],
    );
    case(
        "dst-ip-v6",
        "dst_ip = \"2001:db8:1::/124\"\ndst_port = 2006",
        vec![vec![Packet::new().between(WORLD_V6, "2001:db8:1::f").udp(1, 2006)]],
        vec![both(|p| p.udp(1, 2006))],
    );
    case(
        "src-port",
        "protocol = \"udp\"\nsrc_port = \"5000-5010\"",
        vec![both(|p| p.udp(5000, 9)), both(|p| p.udp(5010, 9))],
        vec![both(|p| p.udp(4999, 9)), both(|p| p.udp(5011, 9)), both(|p| p.udp(9, 5000))],
    );
    case(
        "dst-port",
        "dst_port = \"2007-2009\"",
        vec![both(|p| p.udp(1, 2007)), both(|p| p.tcp(1, 2009))],
        vec![both(|p| p.udp(1, 2010)), both(|p| p.protocol(50).payload(&[7, 215, 7, 215, 0, 0, 0, 0]))],
    );
    case(
        "vlan-id",
        "vlan_id = 7\ndst_port = 2011",
        vec![both(|p| p.vlan(7).udp(1, 2011)), both(|p| p.tag(0x88a8, 7).vlan(30).udp(1, 2011))],
        vec![
            both(|p| p.udp(1, 2011)),
            both(|p| p.vlan(8).udp(1, 2011)),
            both(|p| p.tag(0x88a8, 30).vlan(7).udp(1, 2011)),
        ],
    );
    case(
        "untagged",
        "vlan_id = 0\ndst_port = 2012",
        vec![both(|p| p.udp(1, 2012))],
        vec![both(|p| p.vlan(7).udp(1, 2012))],
    );
    case(
        "tcp-flags",
        "protocol = \"tcp\"\ntcp_flags = \"S/SA\"\ndst_port = 2013",
        vec![both(|p| p.tcp(1, 2013).flags(SYN)), both(|p| p.tcp(1, 2013).flags(SYN | 128))],
        vec![both(|p| p.tcp(1, 2013).flags(SYN | ACK)), both(|p| p.tcp(1, 2013).flags(ACK))],
    );
    case(
        "icmp",
        "protocol = \"icmp\"\nicmp_type = 8\nicmp_code = 0",
        vec![vec![v4().ping(1, 1)]],
        vec![vec![v4().icmp(8, 1), v4().icmp(13, 0)]],
    );
    case(
        "icmpv6",
        "protocol = \"icmpv6\"\nicmp_type = 128",
        vec![vec![v6().ping(1, 1), v6().icmp(128, 1)]],
        vec![vec![v6().icmp(129, 0), v4().icmp(128, 0)]],
    );
    case(
        "state",
        "protocol = \"tcp\"\ndst_port = 2014\nstate = [\"invalid\"]",
        vec![both(|p| p.tcp(1, 2014).flags(ACK))],
        vec![both(|p| p.tcp(1, 2014).flags(SYN))],
    );
    case("interfaces", "dst_port = 2015\ninterfaces = [\"eth0\"]", vec![both(|p| p.udp(1, 2015))], vec![]);
    case("elsewhere", "dst_port = 2016\ninterfaces = [\"lo\"]", vec![], vec![both(|p| p.udp(1, 2016))]);
    case("enabled", "dst_port = 2017\nenabled = false\ndescription = \"off\"", vec![], vec![both(|p| p.udp(1, 2017))]);
    case(
        "headers-in-between",
        "protocol = \"udp\"\ndst_port = 2018",
        vec![vec![
            v4().options(&[1; 8]).udp(1, 2018),
            v6().hop_by_hop(&[1, 4, 0, 0, 0, 0]).udp(1, 2018),
            v6().hop_by_hop(&[1, 4, 0, 0, 0, 0]).destination_options(&[1, 4, 0, 0, 0, 0]).udp(1, 2018),
        ]],
        vec![vec![v4().options(&[1; 8]).udp(1, 2019), v6().destination_options(&[1, 4, 0, 0, 0, 0]).udp(1, 2019)]],
    );
    cases
}

#[test]
fn each_field_of_a_rule_decides() {
    let cases = cases();
    let rules: Vec<String> =
        cases.iter().enumerate().map(|(at, case)| rule(case.id, at as u32 + 1, "deny", case.says)).collect();
    let lab = Lab::new();
    let agent = lab
        .start(&format!("[agent]\ninterfaces = [\"eth0\", \"lo\"]\n[firewall]\nmode = \"block\"\n{}", rules.concat()));
    for case in &cases {
        let frames = |packets: &[Packet]| -> Vec<Vec<u8>> {
            packets.iter().map(|packet| lab.addressed(packet.clone()).build()).collect()
        };
        let (named, others) = (frames(&case.named), frames(&case.others));
        assert_eq!(lab.arrive(&named), vec![false; named.len()], "{}: what it names", case.id);
        assert_eq!(lab.arrive(&others), vec![true; others.len()], "{}: what it does not name", case.id);
        assert_eq!(lab.packets(case.id), named.len() as u64, "{} counts what it names", case.id);
    }
    agent.stop();
}

#[test]
fn fragments_follow_their_first_one() {
    let lab = Lab::new();
    let shut = rule("shut", 1, "deny", "protocol = \"udp\"\ndst_port = 2001");
    let agent = lab.start(&format!("[agent]\ninterfaces = [\"eth0\"]\n[firewall]\nmode = \"block\"\n{shut}"));
    for (id, packet) in (1u32..).zip(both(|p| p.payload(&[7; 100]))) {
        let fragments = |port, id| lab.addressed(packet.clone().udp(1, port)).fragments(id, 40);
        let (shut, open) = (fragments(2001, id), fragments(2002, 10 + id));
        assert!(shut.len() > 2);
        assert_eq!(lab.arrive(&shut), vec![false; shut.len()]);
        assert_eq!(lab.arrive(&open), vec![true; open.len()]);
    }
    agent.stop();
}

#[test]
fn a_rule_that_logs_passes_and_records() {
    let lab = Lab::new();
    let rules = [rule("seen", 1, "log", "dst_port = 2001"), rule("noted", 2, "allow", "dst_port = 2002\nlog = true")];
    let agent = lab.start(&format!(
        "[agent]\ninterfaces = [\"eth0\"]\n[firewall]\nmode = \"block\"\ndefault_policy = \"drop\"\n{}",
        rules.concat()
    ));
    for (port, id) in [(2001, "seen"), (2002, "noted")] {
        for packet in both(|p| p.udp(1, port)) {
            assert!(lab.passes(packet));
        }
        agent.says(&format!("rule {id}"));
        assert_eq!(lab.packets(id), 2);
    }
    assert!(!lab.passes(v4().udp(1, 2003)));
    agent.stop();
}
