//! What the agent has blocked: xdp_firewall and both hooks of tc_ids drop it, and nothing else.

use std::net::{IpAddr, SocketAddr};

use ebpfsentinel::abi::fw_guard;
use ebpfsentinel::bpf::blocks::{BlockError, BlockedFlow, Blocks};
use ebpfsentinel::bpf::boot_seconds;
use ebpfsentinel::bpf::tc_ids::{Arrival, Options};
use ebpfsentinel::bpf::xdp_firewall::Switches;
use ebpfsentinel::classify::guard::Guard;
use ebpfsentinel::flow::Direction;
use ebpfsentinel::packet::build::Packet;

use crate::harness::{Kernel, PASS};
use crate::tc_ids::{BOTH, FAMILIES, Ids, TCX_NEXT};

const TCX_DROP: u32 = 2;
const FLOW: &str = "drop blocked_flow";
const ADDRESS: &str = "drop blocked_address";
const PASSES: &str = "pass default_policy";

struct Host {
    blocks: Blocks,
    ids: Ids,
    firewall: Kernel,
}

impl Host {
    fn new() -> Host {
        Host::with(PASS)
    }

    fn with(policy: &str) -> Host {
        let blocks = Blocks::new(2, 2).unwrap();
        let options = Options { blocks: Some(&blocks), max_flows: 1024, udp_packets: u32::MAX, ..Options::default() };
        let ids = Ids::new(&options);
        let switches = Switches { blocks: Some(&blocks), ..Switches::default() };
        let firewall = Kernel::with(policy, &switches, &Guard::default());
        Host { blocks, ids, firewall }
    }

    fn tc(&self, direction: Direction, frame: &[u8]) -> u32 {
        self.ids.kernel.test_run(direction, frame, &Arrival::default(), 1).unwrap().action
    }

    /// Fails unless the packet has this end at the firewall, by the short way and by the long one, and at both hooks.
    fn check(&self, what: &str, packet: &Packet, expected: &str) {
        let frame = packet.build();
        self.firewall.check(what, &frame, expected);
        self.firewall.check(what, &packet.clone().vlan(0).build(), expected);
        let action = if expected.starts_with("drop") { TCX_DROP } else { TCX_NEXT };
        for direction in BOTH {
            let before = self.ids.count(direction);
            assert_eq!(self.tc(direction, &frame), action, "{what} {direction:?}");
            let after = self.ids.count(direction);
            let moved = (after.blocked_flow - before.blocked_flow, after.blocked_address - before.blocked_address);
            assert_eq!(moved, (u64::from(expected == FLOW), u64::from(expected == ADDRESS)), "{what} {direction:?}");
        }
        self.ids.check_sums();
    }
}

fn end(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

fn flow(here: &str, there: &str, ports: (u16, u16), protocol: u8, vlan: u16) -> BlockedFlow {
    BlockedFlow::new(end(here, ports.0), end(there, ports.1), protocol, vlan).unwrap()
}

const ACK: u8 = 16;

#[test]
fn a_blocked_flow_can_neither_arrive_nor_leave_and_others_can() {
    let mut host = Host::new();
    for (here, there) in FAMILIES {
        let tcp = |ports: (u16, u16)| Packet::new().between(here, there).tcp(ports.0, ports.1).flags(ACK);
        let back = Packet::new().between(there, here).tcp(80, 5000).flags(ACK);
        // The flow cache knows it before it is blocked.
        for _ in 0..3 {
            host.check("before", &tcp((5000, 80)), PASSES);
            host.check("before", &back, PASSES);
        }
        let blocked = flow(there, here, (80, 5000), 6, 0);
        host.blocks.block_flow(blocked, None).unwrap();
        host.check("blocked", &tcp((5000, 80)), FLOW);
        host.check("the other direction", &back, FLOW);
        host.check("another port", &tcp((5001, 80)), PASSES);
        host.check("other ends", &tcp((80, 5000)), PASSES);
        host.check("another protocol", &Packet::new().between(here, there).udp(5000, 80), PASSES);
        let frame = tcp((5000, 80)).vlan(7).build();
        host.firewall.check("another VLAN", &frame, PASSES);
        assert_eq!(host.tc(Direction::Ingress, &frame), TCX_NEXT);
        // Each of two packets: twice at the firewall, whose questions do not count, and at two hooks.
        assert_eq!(host.blocks.flows(None, 9).first().map(|one| (one.what, one.packets)), Some((blocked, 8)));
        assert!(host.blocks.unblock_flow(&blocked).unwrap());
        assert!(!host.blocks.unblock_flow(&blocked).unwrap());
        host.check("unblocked", &tcp((5000, 80)), PASSES);
    }
    assert!(host.blocks.is_empty());
}

#[test]
fn resets_leave_a_blocked_flow_and_do_not_arrive() {
    const RST_ACK: u8 = 0x14;
    let mut host = Host::new();
    for (here, there) in FAMILIES {
        let reset = Packet::new().between(here, there).tcp(5000, 80).flags(RST_ACK);
        let ends = |packet: &Packet| BOTH.map(|direction| host.tc(direction, &packet.build()));
        assert_eq!(ends(&reset), [TCX_NEXT; 2]);
        let blocked = flow(here, there, (5000, 80), 6, 0);
        host.blocks.block_flow(blocked, None).unwrap();
        let ends = |packet: &Packet| BOTH.map(|direction| host.tc(direction, &packet.build()));
        assert_eq!(BOTH, [Direction::Ingress, Direction::Egress]);
        assert_eq!(ends(&reset), [TCX_DROP, TCX_NEXT]);
        assert_eq!(ends(&reset.clone().payload(b"x")), [TCX_DROP; 2], "it carries something");
        host.firewall.check("it arrives", &reset.build(), FLOW);
        host.blocks.unblock_flow(&blocked).unwrap();
        host.blocks.block_address(there.parse().unwrap(), None).unwrap();
        let ends = |packet: &Packet| BOTH.map(|direction| host.tc(direction, &packet.build()));
        assert_eq!(ends(&reset), [TCX_DROP; 2], "its address is blocked");
        host.blocks.unblock_address(there.parse().unwrap()).unwrap();
    }
}

#[test]
fn a_block_of_a_flow_is_within_its_vlan() {
    let mut host = Host::new();
    for (here, there) in FAMILIES {
        let udp = || Packet::new().between(here, there).udp(4, 5);
        let blocked = flow(here, there, (4, 5), 17, 7);
        host.blocks.block_flow(blocked, None).unwrap();
        for (frame, expected) in
            [(udp().vlan(7).build(), FLOW), (udp().vlan(7).vlan(9).build(), FLOW), (udp().build(), PASSES)]
        {
            host.firewall.check("by VLAN", &frame, expected);
            let action = if expected == FLOW { TCX_DROP } else { TCX_NEXT };
            assert_eq!(BOTH.map(|direction| host.tc(direction, &frame)), [action; 2]);
        }
        host.blocks.unblock_flow(&blocked).unwrap();
    }
}

#[test]
fn a_blocked_address_is_blocked_as_source_and_destination_in_every_vlan() {
    let mut host = Host::with("mode = \"alert\"\ndefault_policy = \"pass\"\n");
    for (here, there) in FAMILIES {
        let address: IpAddr = there.parse().unwrap();
        host.blocks.block_address(address, None).unwrap();
        for (from, to) in [(here, there), (there, here)] {
            let packet = || Packet::new().between(from, to);
            host.check("TCP", &packet().tcp(1, 2).flags(ACK), ADDRESS);
            host.check("UDP", &packet().udp(1, 2), ADDRESS);
            host.check("echo", &packet().ping(1, 2), ADDRESS);
            host.check("no ports", &packet().protocol(47).payload(&[0; 20]), ADDRESS);
            host.check("cut off", &packet().tcp(1, 2).data_offset(1), ADDRESS);
            for frame in packet().udp(1, 2).payload(&[1; 900]).fragments(3, 400) {
                host.firewall.check("fragments", &frame, ADDRESS);
                assert_eq!(BOTH.map(|direction| host.tc(direction, &frame)), [TCX_DROP; 2]);
            }
            let tagged = packet().udp(1, 2).vlan(7).vlan(8).build();
            host.firewall.check("tagged", &tagged, ADDRESS);
            assert_eq!(BOTH.map(|direction| host.tc(direction, &tagged)), [TCX_DROP; 2]);
        }
        let elsewhere = if address.is_ipv4() { "10.0.9.3" } else { "2001:db8:9::3" };
        host.check("somebody else", &Packet::new().between(here, elsewhere).udp(1, 2), PASSES);
        assert!(host.blocks.unblock_address(address).unwrap());
        host.check("unblocked", &Packet::new().between(here, there).udp(1, 2), PASSES);
    }
}

#[test]
fn a_block_ends_by_itself() {
    let mut host = Host::new();
    let (here, there) = FAMILIES[0];
    let packet = Packet::new().between(here, there).udp(1, 2);
    let now = boot_seconds().unwrap();
    let ours = flow(here, there, (1, 2), 17, 0);
    let address: IpAddr = there.parse().unwrap();
    host.blocks.block_flow(ours, Some(now + 1000)).unwrap();
    host.check("to come", &packet, FLOW);
    assert_eq!(host.blocks.expire().unwrap(), (0, 0));
    host.blocks.block_flow(ours, Some(now)).unwrap();
    host.blocks.block_address(address, Some(0)).unwrap();
    host.check("over, and still in the table", &packet, PASSES);
    assert_eq!(host.blocks.len(), (1, 1));
    assert_eq!(host.blocks.expire().unwrap(), (1, 1));
    assert!(host.blocks.is_empty());
    host.check("taken away", &packet, PASSES);
}

#[test]
fn a_full_table_is_an_error_and_throws_nobody_out() {
    let mut host = Host::new();
    let address = |last: u8| IpAddr::from([10, 9, 9, last]);
    let ours = |port| flow("10.0.0.1", "10.0.0.2", (port, 80), 6, 0);
    for n in [1, 2] {
        host.blocks.block_address(address(n), None).unwrap();
        host.blocks.block_flow(ours(n.into()), None).unwrap();
    }
    assert!(matches!(host.blocks.block_address(address(3), None), Err(BlockError::Full(2, _))));
    assert!(matches!(host.blocks.block_flow(ours(3), None), Err(BlockError::Full(2, _))));
    // Who is in gets a new end.
    host.blocks.block_address(address(1), Some(boot_seconds().unwrap() + 99)).unwrap();
    let listed: Vec<IpAddr> = host.blocks.addresses(None, 9).iter().map(|one| one.what).collect();
    assert_eq!(listed, [address(1), address(2)]);
    assert_eq!(host.blocks.addresses(Some(&address(1)), 9)[0].what, address(2));
    assert_eq!(host.blocks.addresses(None, 1).len(), 1);
    for n in [1, 2, 3] {
        let from = format!("10.9.9.{n}");
        host.check(&from, &Packet::new().between(&from, "10.0.0.9").udp(1, 2), if n < 3 { ADDRESS } else { PASSES });
    }
    // IPv4 in IPv6's clothes is IPv4.
    assert!(host.blocks.unblock_address("::ffff:10.9.9.1".parse().unwrap()).unwrap());
}

/// Flows of which one end alone was heard fill no table, and keep nobody out of it.
#[test]
fn what_was_not_answered_makes_room() {
    let mut blocks = Blocks::new(8, 1).unwrap();
    let ours = |n: u16| flow("10.0.0.1", "10.0.0.9", (n, 80), 6, 0);
    let blocked = |blocks: &Blocks| (1..40).filter(|n| blocks.is_blocked(&ours(*n))).collect::<Vec<_>>();
    let until = Some(boot_seconds().unwrap() + 1000);
    (1..=20).for_each(|n| blocks.block_unanswered(ours(n), until).unwrap());
    assert_eq!((blocked(&blocks), blocks.evicted()), (vec![19, 20], 18));
    // One that was answered meanwhile stays, and stays so.
    blocks.block_flow(ours(19), until).unwrap();
    blocks.block_unanswered(ours(19), Some(boot_seconds().unwrap() + 1)).unwrap();
    assert_eq!(blocks.flows(None, 1)[0].until_secs, until);
    (21..=27).for_each(|n| blocks.block_flow(ours(n), until).unwrap());
    assert_eq!((blocked(&blocks), blocks.evicted()), (vec![19, 21, 22, 23, 24, 25, 26, 27], 19));
    assert!(matches!(blocks.block_flow(ours(28), until), Err(BlockError::Full(8, _))));
    assert!(matches!(blocks.block_unanswered(ours(28), until), Err(BlockError::Full(8, _))));
    // The kernel's table has the same entries.
    (19..=27).for_each(|n| assert_eq!(blocks.unblock_flow(&ours(n)).unwrap(), n != 20));
    assert!(blocks.is_empty());
    blocks.block_unanswered(ours(1), Some(0)).unwrap();
    assert_eq!(blocks.expire().unwrap(), (1, 0));
    (2..=4).for_each(|n| blocks.block_unanswered(ours(n), until).unwrap());
    assert_eq!((blocked(&blocks), blocks.evicted()), (vec![3, 4], 20));
}

#[test]
fn nobody_is_shut_out_who_must_not_be() {
    let mut host = Host::new();
    let mut guard = fw_guard::default();
    Guard { ports: vec![22], networks: vec!["10.0.0.0/24".parse().unwrap()] }.write(&mut guard);
    host.blocks.set_exceptions(&guard, true);
    let (admin, me) = ("10.0.0.1", "10.0.9.2");
    host.blocks.block_address(admin.parse().unwrap(), None).unwrap();
    host.blocks.block_flow(flow(admin, me, (5000, 22), 6, 0), None).unwrap();
    // Who decides asks the same; of a forwarded flow no end is this host's.
    let spare = |protocol, local: &str, remote: &str| {
        host.blocks.spare(protocol, local.parse().unwrap(), remote.parse().unwrap())
    };
    assert!(spare(6, "10.0.9.2:22", "10.0.0.1:5000") && spare(17, "10.0.9.2:68", "10.0.0.1:67"));
    assert!(spare(17, "[fe80::1]:546", "[fe80::2]:547"));
    for (protocol, local, remote) in [
        (6, "10.0.0.1:5000", "10.0.9.2:22"),
        (6, "10.0.9.2:22", "10.0.1.1:5000"),
        (6, "10.0.9.2:80", "10.0.0.1:22"),
        (17, "10.0.9.2:22", "10.0.0.1:5000"),
        (17, "10.0.9.2:67", "10.0.0.1:68"),
    ] {
        assert!(!spare(protocol, local, remote), "{protocol} {local} {remote}");
    }
    let action = |direction, packet: Packet| host.tc(direction, &packet.build());
    let ssh = || Packet::new().between(admin, me).tcp(5000, 22).flags(ACK);
    let answer = || Packet::new().between(me, admin).tcp(22, 5000).flags(ACK);
    host.firewall.check("guarded", &ssh().build(), PASSES);
    assert_eq!(action(Direction::Ingress, ssh()), TCX_NEXT);
    assert_eq!(action(Direction::Egress, answer()), TCX_NEXT);
    // A guarded port is this host's: nobody gets in by sending from one, or out by sending to one.
    host.firewall.check("from the port", &Packet::new().between(admin, me).tcp(22, 80).flags(ACK).build(), ADDRESS);
    assert_eq!(action(Direction::Egress, ssh()), TCX_DROP);
    assert_eq!(action(Direction::Ingress, answer()), TCX_DROP);
    host.check("another port", &Packet::new().between(admin, me).tcp(5000, 80).flags(ACK), ADDRESS);
    let lease = Packet::new().between(admin, me).udp(67, 68);
    host.firewall.check("DHCP", &lease.build(), PASSES);
    assert_eq!(action(Direction::Ingress, lease.clone()), TCX_NEXT);
    assert_eq!(action(Direction::Egress, Packet::new().between(me, admin).udp(68, 67)), TCX_NEXT);
    host.blocks.set_exceptions(&guard, false);
    host.firewall.check("DHCP that is not asked for", &lease.build(), ADDRESS);
    let arp = Packet::new().arp_request(admin.parse().unwrap(), me.parse().unwrap()).build();
    host.firewall.check("ARP", &arp, "pass exception link_control");
    assert_eq!(BOTH.map(|direction| host.tc(direction, &arp)), [TCX_NEXT; 2]);
    let neighbour = "fe80::1";
    host.blocks.block_address(neighbour.parse().unwrap(), None).unwrap();
    let solicitation = |ttl| Packet::new().between(neighbour, "fe80::2").icmp(135, 0).ttl(ttl).payload(&[0; 20]);
    host.firewall.check("a neighbour", &solicitation(255).build(), "pass exception neighbour");
    assert_eq!(BOTH.map(|direction| host.tc(direction, &solicitation(255).build())), [TCX_NEXT; 2]);
    host.firewall.check("from afar", &solicitation(64).build(), ADDRESS);
}
