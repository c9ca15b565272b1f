//! `agent.cpu_steering`: every packet arrives once and in its flow's order, on more than one CPU; drops stay drops.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ebpfsentinel::lab::{FrameSocket, Namespace, connect};
use nix::sys::socket::{setsockopt, sockopt};

use super::support::{HOST, HOST_V6, Lab, WORLD, WORLD_V6, config, rule, udp, wait_until};

const WITHIN: Duration = Duration::from_secs(30);
const FLOWS: u16 = 24;
/// Of each flow, and how many of them are sent before any is received.
const DATAGRAMS: u32 = 304;
const AT_ONCE: u32 = 8;
/// Datagrams of each family that are dropped.
const DROPPED: u64 = 100;

fn rules() -> Vec<String> {
    vec![
        rule("shut", 10, "deny", "protocol = \"udp\"\ndst_port = 7200"),
        rule("seen", 10, "allow", "protocol = \"udp\"\ndst_port = 7300\nmirror_to = \"mon0\""),
    ]
}

fn text(agent: &str, rest: &str) -> String {
    config(&format!("cpu_steering = true\n{agent}"), "mode = \"block\"", &rules()[..1]) + rest
}

/// Packets sent to each CPU, and of them those that arrived.
fn counts(lab: &Lab) -> Vec<(u64, u64)> {
    let of = |name: &str, cpu: usize| lab.metric(&format!("ebpfsentinel_{name}_total{{cpu=\"{cpu}\"}}")) as u64;
    let cpus = std::thread::available_parallelism().unwrap().get();
    (0..cpus).map(|cpu| (of("steered_packets", cpu), of("steered_arrived_packets", cpu))).collect()
}

/// Waits until all of these frames, which are different, have come to the host's network stack.
fn all_arrive(lab: &Lab, what: &str, frames: &[Vec<u8>]) {
    let sender = FrameSocket::open(&lab.world, "eth0").unwrap();
    let receiver = FrameSocket::open(&lab.host, "eth0").unwrap();
    frames.iter().for_each(|frame| sender.send(frame).unwrap());
    await_all(&receiver, what, frames);
}

fn await_all(receiver: &FrameSocket, what: &str, frames: &[Vec<u8>]) {
    let mut missing = frames.to_vec();
    let all = receiver.receive(WITHIN, |got| {
        missing.retain(|frame| *frame != got.bytes);
        missing.is_empty()
    });
    assert!(all.unwrap().is_some(), "{what}: {} of {} are missing", missing.len(), frames.len());
}

/// Sends numbered datagrams of many flows of both families, interleaved, and checks that each arrives once and in order.
fn flows_keep_their_order(lab: &Lab, what: &str) {
    let mut inboxes = Vec::new();
    for address in [HOST, HOST_V6] {
        let to = SocketAddr::new(address.parse().unwrap(), 7000);
        let socket = lab.host.run(|| UdpSocket::bind(to)).unwrap().unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        socket.set_read_timeout(Some(WITHIN)).unwrap();
        inboxes.push(socket);
    }
    let outs: Vec<UdpSocket> = (0..FLOWS)
        .map(|flow| {
            let (from, to) = if flow % 2 == 0 { (WORLD, HOST) } else { (WORLD_V6, HOST_V6) };
            let from: IpAddr = from.parse().unwrap();
            let out = lab.world.run(|| UdpSocket::bind((from, 0))).unwrap().unwrap();
            out.connect(SocketAddr::new(to.parse().unwrap(), 7000)).unwrap();
            out
        })
        .collect();
    let before = counts(lab);
    let mut next: HashMap<SocketAddr, u32> = HashMap::new();
    // No more on the way than any queue holds, however long a CPU that is wanted elsewhere lets them wait.
    for turn in 0..DATAGRAMS / AT_ONCE {
        for number in turn * AT_ONCE..(turn + 1) * AT_ONCE {
            outs.iter().for_each(|out| assert_eq!(out.send(&number.to_be_bytes()).unwrap(), 4));
        }
        for inbox in &inboxes {
            for _ in 0..u32::from(FLOWS / 2) * AT_ONCE {
                let mut bytes = [0; 8];
                let (length, from) = inbox.recv_from(&mut bytes).unwrap_or_else(|error| {
                    panic!("{what}: {error}, {next:?}, steered and arrived {:?}", counts(lab));
                });
                let number = u32::from_be_bytes(bytes[..4].try_into().unwrap());
                let expected = next.entry(from).or_default();
                assert_eq!((length, number), (4, *expected), "{what}: from {from}");
                *expected += 1;
            }
        }
    }
    for inbox in &inboxes {
        inbox.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(inbox.recv_from(&mut [0; 8]).is_err(), "{what}: one came twice");
    }
    let moved: Vec<(u64, u64)> =
        counts(lab).iter().zip(before).map(|(now, was)| (now.0 - was.0, now.1 - was.1)).collect();
    let all: u64 = moved.iter().map(|(steered, _)| steered).sum();
    assert!(all >= u64::from(FLOWS) * u64::from(DATAGRAMS), "{what}: {moved:?}");
    for (steered, arrived) in &moved {
        assert_eq!(steered, arrived, "{what}");
        // 24 flows miss one of two CPUs once in 8 million times.
        assert!(*arrived > 0, "{what}: {moved:?}");
    }
}

#[test]
fn flows_spread_keep_their_order_and_drops_stay_drops() {
    let limits = "\n[ratelimit]\nmode = \"block\"\ndefault_rate = 1000000\n";
    for (agent, rest) in [("xdp_mode = \"native\"", ""), ("xdp_mode = \"generic\"", ""), ("", limits)] {
        let lab = Lab::new();
        let running = lab.start(&text(agent, rest));
        flows_keep_their_order(&lab, &format!("{agent}{rest}"));
        let before = counts(&lab);
        for from in [WORLD, WORLD_V6] {
            let dropped = lab.packets("shut");
            assert!(!lab.passes(udp(from, 7200)), "{agent}");
            let (sender, shut) =
                (FrameSocket::open(&lab.world, "eth0").unwrap(), lab.addressed(udp(from, 7200)).build());
            (1..DROPPED).for_each(|_| sender.send(&shut).unwrap());
            // Fragments arrive together, whatever their flow.
            let whole = lab.addressed(udp(from, 7100).payload(&[3; 3000])).fragments(5, 1000);
            all_arrive(&lab, agent, &whole);
            assert_eq!(lab.packets("shut") - dropped, DROPPED, "{agent}");
        }
        all_arrive(&lab, agent, &[lab.addressed(udp(WORLD, 9).vlan(7)).build()]);
        // What was dropped went nowhere; a few of those that moved are the kernels' own.
        let sum = |counts: &[(u64, u64)]| counts.iter().map(|(steered, _)| steered).sum::<u64>();
        let moved = sum(&counts(&lab)) - sum(&before);
        assert!((9..DROPPED).contains(&moved), "{agent}: {moved}");
        let status = lab.get("/api/v1/ebpf/status");
        let programs = status["programs"].as_array().unwrap();
        let steer = programs.iter().find(|one| one["name"] == "xdp_steer").unwrap();
        assert_eq!(steer["state"], "active");
        running.stop();
        assert_eq!(lab.attached(), "");
    }
}

#[test]
fn tcp_flows_through() {
    const BYTES: usize = 2 << 20;
    let lab = Lab::new();
    let agent = lab.start(&text("", ""));
    for address in [HOST, HOST_V6] {
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        let listener = lab.host.run(|| TcpListener::bind(to)).unwrap().unwrap();
        let server = lab.host.spawn(move || {
            let mut got = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
            got
        });
        let sent: Vec<u8> = (0..BYTES).map(|n| (n / 3) as u8).collect();
        let mut stream = lab.world.run(|| TcpStream::connect(to)).unwrap().unwrap();
        stream.write_all(&sent).unwrap();
        drop(stream);
        assert!(server.unwrap().join().unwrap().unwrap() == sent);
    }
    agent.stop();
}

/// What xdp_firewall has noted of a packet goes with it to the other CPU, so that it can be mirrored there.
#[test]
fn metadata_goes_along() {
    let (lab, monitor) = (Lab::new(), Namespace::new("monitor").unwrap());
    connect(&lab.host.port("mon0"), &monitor.port("tap0")).unwrap();
    for namespace in [&lab.world, &lab.host] {
        namespace.ip("link set eth0 mtu 9000").unwrap();
    }
    for namespace in [(&lab.host, "mon0"), (&monitor, "tap0")] {
        namespace.0.ip(&format!("link set {} mtu 9000", namespace.1)).unwrap();
    }
    let agent = lab.start(&config("cpu_steering = \"0-1\"", "mode = \"block\"", &rules()));
    let tap = FrameSocket::open(&monitor, "tap0").unwrap();
    let frames: Vec<Vec<u8>> = (0..40u16)
        .map(|n| {
            let packet = udp([WORLD, WORLD_V6][usize::from(n % 2)], 7300).payload(&vec![n as u8; usize::from(n) * 200]);
            lab.addressed(if n % 3 == 0 { packet.vlan(7) } else { packet }).build()
        })
        .collect();
    all_arrive(&lab, "the packets", &frames);
    await_all(&tap, "the copies", &frames);
    assert_eq!(lab.metric("ebpfsentinel_mirror_lost_packets_total{interface=\"eth0\",reason=\"no_metadata\"}"), 0.0);
    agent.stop();
}

#[test]
fn an_agent_that_keeps_goes_on_steering() {
    let lab = Lab::new();
    let keep = text("on_exit = \"keep\"", "");
    lab.start(&keep).kill();
    let frames = [WORLD, WORLD_V6].map(|from| lab.addressed(udp(from, 9)).build());
    all_arrive(&lab, "without an agent", &frames);
    assert!(!lab.passes(udp(WORLD, 7200)) && !lab.passes(udp(WORLD_V6, 7200)));
    let agent = lab.start(&keep);
    flows_keep_their_order(&lab, "taken over");
    assert!(lab.pinned().iter().any(|pin| pin.ends_with("steer_cpus")), "{:?}", lab.pinned());
    agent.stop();
    let agent = lab.start(&config("", "mode = \"block\"", &rules()[..1]));
    assert!(lab.passes(udp(WORLD, 9)) && !lab.passes(udp(WORLD, 7200)));
    assert!(counts(&lab).iter().all(|&count| count == (0, 0)));
    agent.stop();
    wait_until("nothing is pinned", || lab.pinned().is_empty());
}
