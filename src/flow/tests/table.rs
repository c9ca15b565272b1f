//! The flow table under pressure: caps, who is evicted, timeouts.

use super::*;

/// The `n`th half-open connection, from an address of its own.
fn half_open(lab: &mut Lab, n: u32) {
    let address = std::net::Ipv4Addr::from(0x0b00_0000 + n);
    let frame = Build::new().ipv4(address, [10, 0, 0, 2]).tcp(1000, 80).numbers(n, 0).build();
    let meta = lab.meta();
    lab.inspector.packet(Link::Ethernet, &meta, &frame, &mut lab.told);
}

#[test]
fn a_flood_of_half_open_connections_evicts_its_own() {
    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"Chello ");
    let before = lab.inspector.memory();
    for n in 0..20_000 {
        half_open(&mut lab, n);
        assert!(lab.inspector.flows().take(1001).count() <= 1000);
    }
    lab.c(7, b"again");
    assert_eq!(lab.told.client(), "Chello again");
    let stats = *lab.inspector.stats();
    assert_eq!((stats.flows, stats.flows_evicted_new, stats.flows_evicted_established), (20_001, 19_001, 0));
    let bytes_per_flow = (lab.inspector.memory() - before) / 1000;
    assert!(bytes_per_flow < 1100, "{bytes_per_flow}");
    assert!(lab.told.ended.iter().all(|(_, why)| *why == EndReason::Evicted));
}

#[test]
fn the_one_silent_longest_goes_first() {
    let mut lab = Lab::with(Limits { flows_max: 3, ..limits() }, false);
    for port in [1, 2, 3] {
        lab.ports.0 = port;
        lab.handshake();
        lab.time_ns += 2 * SECOND_NS;
    }
    lab.ports.0 = 1;
    lab.c(0, b"Cfirst");
    lab.ports.0 = 4;
    lab.handshake();
    assert_eq!(lab.told.ended.iter().map(|(flow, _)| flow.client.port()).collect::<Vec<_>>(), [2]);
    assert_eq!(lab.inspector.stats().flows_evicted_established, 1);
    // Closed ones go before those.
    lab.ports.0 = 3;
    lab.close();
    lab.ports.0 = 5;
    lab.handshake();
    assert_eq!(lab.told.ended.last().unwrap().0.client.port(), 3);
    assert_eq!(lab.inspector.stats().flows_evicted_closed, 1);
}

#[test]
fn silence_ends_a_flow_by_its_state() {
    let limits = limits();
    let times = [limits.tcp_new_ns, limits.tcp_established_ns, limits.tcp_closed_ns];
    for (state, time) in times.into_iter().enumerate() {
        for is_ticked in [true, false] {
            let mut lab = Lab::new(false);
            if state == 0 {
                lab.segment(Side::Client, SYN, u32::MAX, b"");
            } else {
                lab.handshake();
            }
            if state == 2 {
                lab.close();
            }
            lab.inspector.tick(lab.time_ns + time, &mut lab.told);
            assert_eq!(lab.told.ended.len(), 0);
            lab.time_ns += time + 2 * SECOND_NS;
            if is_ticked {
                lab.inspector.tick(lab.time_ns, &mut lab.told);
            } else {
                lab.segment(Side::Client, SYN, 1_000_000, b"");
            }
            let why = if state == 2 { EndReason::Closed } else { EndReason::Timeout };
            assert_eq!(lab.told.ended.iter().map(|(_, why)| *why).collect::<Vec<_>>(), [why]);
            assert_eq!(lab.inspector.flows().count(), usize::from(!is_ticked));
        }
    }
}

#[test]
fn a_flow_that_goes_on_does_not_time_out() {
    let mut lab = Lab::new(false);
    lab.handshake().c(0, b"Cabc");
    for at in 0..2000 {
        lab.time_ns += SECOND_NS / 2;
        lab.c(4 + at, b"x");
    }
    assert_eq!((lab.told.client().len(), lab.told.ended.len()), (2004, 0));
}

#[test]
fn memory_of_all_flows_is_capped() {
    let limits = Limits { memory_max: 100_000, undecided_max: 4096, ..limits() };
    let mut lab = Lab::with(limits, false);
    for port in 1..200 {
        lab.ports.0 = port;
        lab.handshake().c(0, &[b'?'; 2000]);
        assert!(lab.inspector.reassembly_memory() <= 100_000);
    }
    let stats = *lab.inspector.stats();
    assert!(stats.flows_evicted_memory > 100, "{stats:?}");
    assert_eq!(stats.memory_refused, 0);
    // One that needs more than all others have is not inspected.
    let mut lab = Lab::with(Limits { memory_max: 1000, ..super::limits() }, false);
    lab.handshake().c(0, &[b'?'; 2000]);
    assert_eq!((lab.inspector.stats().memory_refused, lab.inspector.reassembly_memory()), (1, 0));
}

/// Ids of some flows, of which some are evicted.
fn ids(secret: u64) -> Vec<u64> {
    let mut inspector = Inspector::with_protocols(Limits { flows_max: 100, ..limits() }, secret, protocols());
    let mut lab = Lab::new(false);
    std::mem::swap(&mut lab.inspector, &mut inspector);
    for n in 0..1000 {
        half_open(&mut lab, n % 150);
    }
    lab.finish().ended.iter().map(|(flow, _)| flow.id).collect()
}

#[test]
fn ids_do_not_depend_on_the_secret() {
    assert_eq!(ids(1), ids(2));
    let mut all = ids(1);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), ids(1).len());
}

#[test]
fn workers_give_different_ids() {
    let ids = |worker| {
        let mut lab = Lab::with(Limits { worker: (worker, 2), ..limits() }, false);
        (0..10).for_each(|n| half_open(&mut lab, n));
        lab.inspector.flows().map(|flow| flow.id).collect::<Vec<_>>()
    };
    assert!(ids(0).iter().all(|id| !ids(1).contains(id)));
}

#[test]
fn vlans_tell_flows_apart() {
    let mut lab = Lab::new(false);
    for vlan in [1, 2] {
        let frame = lab.ip(Side::Client).vlan(vlan).tcp(1, 2).build();
        lab.frame(&frame);
    }
    let mut vlans: Vec<_> = lab.inspector.flows().map(|flow| flow.vlans).collect();
    vlans.sort_unstable();
    assert_eq!(vlans, [[1, 0], [2, 0]]);
}

/// A connection, or datagrams, blocked a moment ago.
fn blocked(is_udp: bool) -> Lab {
    let mut lab = Lab::new(false);
    lab.told.block_on = Some(b"Cbad");
    match is_udp {
        true => udp(&mut lab),
        false => drop(lab.handshake().c(0, b"Cbad").ack(4)),
    }
    assert!(lab.inspector.flows().all(|flow| flow.is_blocked));
    lab.told.going_on = 0;
    lab
}

fn udp(lab: &mut Lab) {
    let answer = lab.ip(Side::Server).udp(53, 4000).payload(b"S").build();
    let question = lab.ip(Side::Client).udp(4000, 53).payload(b"Cbad").build();
    lab.frame(&answer).frame(&question);
}

fn wait(lab: &mut Lab, seconds: u64) {
    lab.time_ns += seconds * SECOND_NS;
    lab.inspector.tick(lab.time_ns, &mut lab.told);
}

/// A block is as good as silence, so nothing but the block's own time makes a blocked flow forgotten.
#[test]
fn a_blocked_flow_is_known_beyond_its_block() {
    for (is_udp, ends) in [(true, false), (false, false), (false, true)] {
        let mut lab = blocked(is_udp);
        if ends {
            // As by the agent's own resets.
            lab.reset(Side::Client, 4).reset(Side::Server, 0);
            let id = lab.inspector.flows().next().unwrap().id;
            lab.inspector.reset(id);
        }
        assert_eq!(lab.told.going_on, 0, "a reset does not show that it goes on");
        for round in 1..4 {
            wait(&mut lab, 239);
            match is_udp {
                true => udp(&mut lab),
                false => drop(lab.c(4, b"more")),
            }
            assert_eq!(lab.told.going_on, if is_udp { 2 * round } else { round });
        }
        assert_eq!((lab.told.ended.len(), lab.inspector.stats().flows), (0, 1));
        assert_eq!(lab.told.anomalies, [""; 0]);
        wait(&mut lab, 242);
        assert_eq!((lab.told.ended.len(), lab.told.client().as_str()), (1, "Cbad"));
    }
}

#[test]
fn a_blocked_flow_that_is_let_go_is_only_counted() {
    let mut lab = blocked(false);
    lab.told.lets_go = true;
    lab.c(4, b"Cbad").c(8, b"Cbad");
    assert_eq!(lab.told.going_on, 1);
    assert!(lab.inspector.flows().all(|flow| !flow.is_blocked));
    wait(&mut lab, 300);
    assert_eq!((lab.inspector.flows().count(), lab.told.client().as_str()), (1, "Cbad"));
}

/// The next connection between the ports of a blocked one is another; a SYN that nobody answers is none.
#[test]
fn a_blocked_flow_ends_by_the_next_connection_alone() {
    for is_reset in [false, true] {
        let mut lab = blocked(false);
        if is_reset {
            lab.reset(Side::Client, 4).reset(Side::Server, 0);
        }
        let first = lab.isn;
        wait(&mut lab, 130);
        lab.isn = [900_000, 800_000];
        lab.segment(Side::Client, SYN, u32::MAX, b"");
        assert_eq!(lab.told.going_on, 0);
        lab.isn = first;
        lab.c(4, b"more");
        assert_eq!((lab.told.going_on, lab.told.ended.len()), (1, 0));
        wait(&mut lab, 130);
        (lab.isn, lab.sent) = ([900_000, 800_000], [0, 0]);
        lab.handshake().c(0, b"Cgood");
        assert_eq!((lab.told.going_on, lab.told.ended.len()), (1, 1));
        assert_eq!(lab.told.client(), "CbadCgood");
        assert!(lab.inspector.flows().all(|flow| !flow.is_blocked && !flow.is_midstream));
    }
}

/// What a stranger sends in the name of others is forgotten soon, and the first SYN of who has the port is another flow.
#[test]
fn a_blocked_flow_that_nobody_answered_is_forgotten_soon() {
    for has_syn in [false, true] {
        for ends in [false, true] {
            let mut lab = Lab::new(false);
            lab.told.block_on = Some(b"Cbad");
            if has_syn {
                lab.segment(Side::Client, SYN, u32::MAX, b"");
            }
            lab.c(0, b"Cbad");
            if ends {
                lab.reset(Side::Client, 4);
            }
            wait(&mut lab, 29);
            lab.c(4, b"more");
            assert_eq!((lab.told.going_on, lab.told.ended.len()), (2, 0));
            if !ends {
                lab.isn = [900_000, 800_000];
                lab.handshake().c(0, b"Cgood");
                assert_eq!((lab.told.going_on, lab.told.ended.len()), (2, 1));
                assert_eq!(lab.told.client(), "CbadCgood");
            }
            wait(&mut lab, if ends { 32 } else { 700 });
            assert_eq!(lab.inspector.flows().count(), 0);
        }
    }
}

#[test]
fn a_flow_is_answered_by_who_knows_its_numbers() {
    let is_answered = |lab: &Lab| lab.inspector.flows().next().unwrap().is_answered;
    for is_v6 in [false, true] {
        let mut lab = Lab::new(is_v6);
        lab.segment(Side::Client, SYN, u32::MAX, b"").segment(Side::Server, SYN | ACK, u32::MAX, b"");
        assert!(!is_answered(&lab));
        // Somebody who has not seen the server's number, as its answer went to another.
        let isn = std::mem::replace(&mut lab.isn, [1000, 0x7000_0000]);
        lab.c(0, b"Cbad").reset(Side::Client, 4);
        assert!(!is_answered(&lab));
        lab.isn = isn;
        lab.c(0, b"");
        assert!(is_answered(&lab));

        // From the middle on, in one direction, and then in both.
        let mut lab = Lab::new(is_v6);
        lab.c(0, b"Chello").c(6, b"again");
        assert!(!is_answered(&lab));
        lab.ack(11);
        assert!(is_answered(&lab));

        // A reset answers nothing.
        let mut lab = Lab::new(is_v6);
        lab.c(0, b"Chello").reset(Side::Server, 0).c(6, b"again");
        assert!(!is_answered(&lab));

        let mut lab = Lab::new(is_v6);
        let question = lab.ip(Side::Client).udp(4000, 53).payload(b"C").build();
        lab.frame(&question);
        assert!(!is_answered(&lab));
        udp(&mut lab);
        assert!(is_answered(&lab));
    }
}
