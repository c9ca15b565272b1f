//! SYN cookies: what XDP answers is what the kernel itself would, in the frame that asked, and to nobody else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ebpfsentinel::abi::{syn_order, syn_result};
use ebpfsentinel::bpf::xdp_ratelimit::{self, XdpRatelimit};
use ebpfsentinel::bpf::xdp_syncookie::{Switches, XdpSyncookie};
use ebpfsentinel::engines::ratelimit::cookies::HostTcp;
use ebpfsentinel::lab::{FrameSocket, Namespace, Wire, connect_by};
use ebpfsentinel::packet::build::Packet;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use crate::harness::{XDP_DROP, XDP_PASS};
use crate::support::random::Random;

const XDP_TX: u32 = 3;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 10];
const PORT: u16 = 80;
const V4: [&str; 2] = ["192.0.2.1", "192.0.2.10"];
const V6: [&str; 2] = ["2001:db8:1::1", "2001:db8:1::10"];
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;

/// What Linux writes into a SYN.
const LINUX: &[u8] = &[2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];

/// A host with a listener, a client's wire to it, and the loaded program.
struct Host {
    world: Namespace,
    host: Namespace,
    program: XdpSyncookie,
    ifindex: u32,
    order: syn_order,
    _limiter: XdpRatelimit,
}

impl Host {
    fn new(mtu: u16, timestamps: &str) -> Host {
        let (world, host) = (Namespace::new("world").unwrap(), Namespace::new("host").unwrap());
        let far = world.port("eth0").mac(CLIENT_MAC).address("192.0.2.1/24").address("2001:db8:1::1/64");
        let near = host.port("eth0").mac(HOST_MAC).address("192.0.2.10/24").address("2001:db8:1::10/64");
        connect_by(&far, &near, Wire { mtu, queues: 1 }).unwrap();
        for address in [V4[0], V6[0]] {
            host.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:01 dev eth0 nud permanent")).unwrap();
        }
        for address in [V4[1], V6[1]] {
            world.ip(&format!("neigh replace {address} lladdr 02:00:00:00:00:0a dev eth0 nud permanent")).unwrap();
        }
        host.sysctl("ipv4/tcp_syncookies", "2").unwrap();
        host.sysctl("ipv4/tcp_timestamps", timestamps).unwrap();
        let ifindex = host.interface("eth0").unwrap().index;
        let switches = xdp_ratelimit::Switches { multi_buffer: false, buckets: 1024, chain: None, steers: false };
        let limiter = XdpRatelimit::load(switches).expect("loading xdp_ratelimit");
        let mut program = XdpSyncookie::load(&Switches { multi_buffer: false, chain: None, steers: false }, &limiter)
            .expect("loading xdp_syncookie");
        program.set_host(host.run(HostTcp::read).unwrap().in_kernel());
        program.set_interfaces(&[(ifindex, HOST_MAC)]).unwrap();
        let order = syn_order { per_source: u16::MAX, prefix: 64, active: 1, ..syn_order::default() };
        Host { world, host, program, ifindex, order, _limiter: limiter }
    }

    /// Sockets that listen on both addresses, prepared by `prepare`.
    fn listen(&self, prepare: impl Fn(&TcpListener) + Send + Sync) -> Vec<TcpListener> {
        let bind = |ip: &str| {
            let listener = TcpListener::bind(SocketAddr::new(ip.parse::<IpAddr>().unwrap(), PORT)).unwrap();
            prepare(&listener);
            listener
        };
        self.host.run(move || [V4[1], V6[1]].iter().map(|ip| bind(ip)).collect()).unwrap()
    }

    fn run(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let Host { host, program, ifindex, order, .. } = self;
        // On one CPU, as the packets of a flow arrive. And as its only user: it is not to be shared by threads.
        let pinned = || {
            let mut cpus = CpuSet::new();
            cpus.set(0).unwrap();
            sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
        };
        host.run(|| {
            pinned();
            program.test_run(frame, *ifindex, *order)
        })
        .unwrap()
        .unwrap()
    }

    /// What it did, and that it counted it so.
    fn check(&mut self, what: &str, frame: &[u8], action: u32, result: Option<syn_result>) -> Vec<u8> {
        let before = self.program.counts().unwrap();
        let (got, out) = self.run(frame);
        let after = self.program.counts().unwrap();
        let moved: Vec<u32> = (0..before.result.len() as u32)
            .filter(|&at| before.result[at as usize] != after.result[at as usize])
            .collect();
        assert_eq!((got, moved), (action, result.map(|one| one.0).into_iter().collect()), "{what}");
        if action == XDP_PASS {
            assert_eq!(out, frame, "{what}: it goes on as it came");
        }
        out
    }

    /// The answer of the host's own stack.
    fn kernel_answer(&self, wire: &FrameSocket, syn: &[u8], port: u16) -> Vec<u8> {
        wire.send(syn).unwrap();
        let is_it = |frame: &ebpfsentinel::lab::Frame| {
            read(&frame.bytes).is_some_and(|one| one.flags == SYN_ACK && one.ports == [PORT, port])
        };
        wire.receive(Duration::from_secs(10), is_it).unwrap().expect("the kernel answers").bytes
    }
}

fn between(addresses: [&str; 2]) -> Packet {
    Packet::new().mac(CLIENT_MAC, HOST_MAC).between(addresses[0], addresses[1])
}

fn syn(addresses: [&str; 2], port: u16, options: &[u8]) -> Vec<u8> {
    between(addresses).tcp(port, PORT).flags(SYN).numbers(1000, 0).tcp_options(options).build()
}

/// What matters of an untagged TCP frame without IP options.
#[derive(Debug, PartialEq, Eq)]
struct Segment {
    macs: [u8; 12],
    ports: [u16; 2],
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    options: BTreeMap<u8, Vec<u8>>,
}

fn read(frame: &[u8]) -> Option<Segment> {
    let at = match frame.get(12..14)? {
        [8, 0] if frame.get(14) == Some(&0x45) && frame[23] == 6 => 34,
        [0x86, 0xdd] if frame.get(20) == Some(&6) => 54,
        _ => return None,
    };
    let tcp = frame.get(at..)?;
    let word = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().unwrap()));
    let long = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().unwrap()));
    let mut options = BTreeMap::new();
    let mut rest = tcp.get(20..usize::from(tcp.get(12)? >> 4) * 4)?;
    while let [kind, after @ ..] = rest {
        rest = match kind {
            0 => break,
            1 => after,
            _ => {
                let length = usize::from(*after.first()?);
                options.insert(*kind, rest.get(2..length)?.to_vec());
                &rest[length..]
            }
        };
    }
    Some(Segment {
        macs: frame[..12].try_into().unwrap(),
        ports: [word(0)?, word(2)?],
        sequence: long(4)?,
        acknowledgement: long(8)?,
        flags: tcp[13],
        window: word(14)?,
        options,
    })
}

/// An answer without what is another one each time: the cookie, and the time in the time stamp.
fn lasting(frame: &[u8]) -> Segment {
    let mut segment = read(frame).expect("a TCP segment");
    segment.sequence = 0;
    if let Some(stamp) = segment.options.get_mut(&8) {
        stamp[..3].fill(0);
        stamp[3] &= 63;
    }
    segment
}

/// Sets a TCP option of a socket that nix does not have.
fn set(listener: &TcpListener, option: libc::c_int, value: libc::c_int) {
    // SAFETY: the value lives through the call and has the length that is told.
    let set = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "option {option}");
}

#[test]
fn an_answer_is_that_of_the_kernel() {
    type Prepare = fn(&TcpListener);
    let listeners: [(&str, Prepare); 5] = [
        ("as it is", |_| {}),
        ("a small buffer", |one| setsockopt(one, sockopt::RcvBuf, &4096).unwrap()),
        ("a large buffer", |one| setsockopt(one, sockopt::RcvBuf, &200_000).unwrap()),
        ("small segments", |one| set(one, libc::TCP_MAXSEG, 700)),
        ("a clamped window", |one| set(one, libc::TCP_WINDOW_CLAMP, 20_000)),
    ];
    let stamp: &[u8] = &[8, 10, 9, 8, 7, 6, 0, 0, 0, 0];
    let clients: Vec<Vec<u8>> = vec![
        LINUX.to_vec(),
        vec![],
        vec![2, 4, 2, 24],
        [&[2, 4, 5, 180, 1, 1], stamp].concat(),
        [&[2, 4, 5, 180, 4, 2], stamp].concat(),
        [&[2, 4, 5, 180, 1, 3, 3, 0, 1, 1], stamp].concat(),
        [stamp, &[3, 3, 14, 1, 2, 4, 0, 100, 4, 2]].concat(),
        [stamp, &[1, 3, 3, 99, 4, 2]].concat(),
        [&[1, 1, 1, 1, 253, 6, 0, 0, 0, 0], stamp].concat(),
        vec![3, 3, 7, 4, 2, 0, 0, 0],
    ];
    for mtu in [1500u16, 9000, 1280] {
        let mut lab = Host::new(mtu, "2");
        let wire = FrameSocket::open(&lab.world, "eth0").unwrap();
        let mut port = 2000;
        for (what, prepare) in listeners {
            let sockets = lab.listen(prepare);
            for addresses in [V4, V6] {
                for options in &clients {
                    port += 1;
                    let frame = syn(addresses, port, options);
                    let expected = lab.kernel_answer(&wire, &frame, port);
                    // The kernel's own MSS needs room that the asking frame may not have.
                    let (action, got) = lab.run(&frame);
                    let lacks_room = frame.len() < expected.len();
                    let mut expected = lasting(&expected);
                    if lacks_room {
                        // The scale goes first, then all else.
                        match expected.options.get_mut(&8).filter(|_| options.len() >= 16) {
                            Some(stamp) => stamp[3] |= 15,
                            None => expected.options.clear(),
                        }
                        expected.options.remove(&3);
                    }
                    assert_eq!(action, XDP_TX, "{what}, MTU {mtu}, {options:?}");
                    assert_eq!(lasting(&got), expected, "{what}, MTU {mtu}, {addresses:?}, {options:?}");
                    assert!(got.len() <= frame.len(), "{what}, MTU {mtu}, {options:?}: no longer than the question");
                }
            }
            drop(sockets);
            // What was found out about the old listener is believed for a second.
            std::thread::sleep(Duration::from_millis(1100));
        }
    }
}

/// Every way to write a SYN, and the answer written by somebody else: checksums, lengths and all.
#[test]
fn any_syn_is_answered_in_its_own_frame() {
    let mut lab = Host::new(1500, "2");
    let _sockets = lab.listen(|_| {});
    let mut random = Random::new(0x5eed);
    let mut window = |addresses, options: &[u8]| lasting(&lab.run(&syn(addresses, 1999, options)).1).window;
    let windows = [V4, V6].map(|addresses| [window(addresses, &LINUX[..4]), window(addresses, LINUX)]);
    for round in 0..3000u32 {
        let addresses = if random.below(2) == 0 { V4 } else { V6 };
        let port = 2000 + round as u16;
        let tags: Vec<u16> = (0..random.below(3)).map(|_| random.below(0xffff) as u16).collect();
        let tagged = |packet: Packet| {
            tags.iter().enumerate().fold(packet, |packet, (at, &control)| {
                packet.tag(if at == 0 && tags.len() == 2 { 0x88a8 } else { 0x8100 }, control)
            })
        };
        let mut asking = tagged(between(addresses));
        if addresses == V4 {
            asking = asking.options(&vec![1; random.below(11) * 4]);
        } else {
            for _ in 0..random.below(3) {
                asking = asking.destination_options(&vec![0; random.below(3) * 8 + 6]);
            }
        }
        // The MSS that the client says does not come back; the rest decides what does.
        let (has_stamp, has_scale, has_sack) = (random.below(4) > 0, random.below(2) > 0, random.below(2) > 0);
        let stamp = random.bits() as u32;
        let mut options = vec![2, 4, 5, random.below(256) as u8];
        if has_sack {
            options.extend([4, 2]);
        }
        options.extend(vec![1; random.below(3)]);
        if has_stamp {
            options.extend([8, 10]);
            options.extend(stamp.to_be_bytes());
            options.extend([0; 4]);
        }
        if has_scale {
            options.extend([3, 3, random.below(15) as u8]);
        }
        options.resize(options.len().next_multiple_of(4).max(20), 0);
        let sequence = random.bits() as u32;
        let frame = asking
            .tcp(port, PORT)
            .flags(SYN | (random.below(8) as u8) << 5)
            .numbers(sequence, 0)
            .tcp_options(&options)
            .payload(&vec![7; random.below(3) * 50])
            .build();
        let (action, got) = lab.run(&frame);
        assert_eq!(action, XDP_TX, "{frame:02x?}");

        let tcp_at = got.len() - 24 - if has_stamp { 12 + 4 * usize::from(has_scale) } else { 0 };
        let long = |at: usize| u32::from_be_bytes(got[tcp_at + at..tcp_at + at + 4].try_into().unwrap());
        let mss = if addresses == V4 { 1460u16 } else { 1440 };
        let mut answer = vec![2, 4];
        answer.extend(mss.to_be_bytes());
        if has_stamp {
            answer.extend(if has_sack { [4, 2] } else { [1, 1] });
            answer.extend([8, 10]);
            answer.extend(long(28).to_be_bytes());
            answer.extend(stamp.to_be_bytes());
            if has_scale {
                answer.extend([1, 3, 3, got[tcp_at + 39]]);
            }
        }
        let back = tagged(Packet::new().mac(HOST_MAC, CLIENT_MAC).between(addresses[1], addresses[0])).ttl(64);
        let back = if addresses == V4 { back.dont_fragment() } else { back };
        let expected = back
            .tcp(PORT, port)
            .flags(SYN_ACK)
            .numbers(long(4), sequence.wrapping_add(1))
            .window(windows[usize::from(addresses == V6)][usize::from(has_stamp)])
            .tcp_options(&answer)
            .build();
        assert_eq!(got, expected, "asked by {frame:02x?}");
        assert!(got.len() <= frame.len());
    }
}

#[test]
fn only_who_may_is_answered() {
    let mut lab = Host::new(1500, "2");
    lab.check("nobody listens", &syn(V4, 1, LINUX), XDP_PASS, Some(syn_result::SYN_NO_LISTENER));
    std::thread::sleep(Duration::from_millis(1100));
    let _sockets = lab.listen(|_| {});
    lab.check("somebody listens", &syn(V4, 2, LINUX), XDP_TX, Some(syn_result::SYN_ANSWERED));
    let elsewhere = Packet::new().mac(CLIENT_MAC, [2, 0, 0, 0, 0, 11]).between(V4[0], V4[1]);
    let elsewhere = elsewhere.tcp(3, PORT).flags(SYN).tcp_options(LINUX).build();
    lab.check("to another machine", &elsewhere, XDP_PASS, Some(syn_result::SYN_NOT_MINE));
    let cut = between(V4).tcp(4, PORT).flags(SYN).tcp_options(&[2, 9, 0, 0]).build();
    lab.check("options that are none", &cut, XDP_PASS, None);
    let fragment = between(V4).fragment(1, 0, true).tcp(5, PORT).flags(SYN).build();
    lab.check("a fragment", &fragment, XDP_PASS, None);
    let ifindex = lab.ifindex;
    lab.program.set_interfaces(&[]).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    lab.check("an interface that is not ours", &syn(V4, 6, LINUX), XDP_PASS, Some(syn_result::SYN_NOT_MINE));
    lab.program.set_interfaces(&[(ifindex, HOST_MAC)]).unwrap();
    std::thread::sleep(Duration::from_millis(1100));

    // No more to a source in a second than it may have. A second may end between two of them, so there are more.
    lab.order.per_source = 3;
    let from = |source: &str, port| syn([source, if source.contains(':') { V6[1] } else { V4[1] }], port, LINUX);
    let mut answered = |sources: &[&str]| {
        (0..12).filter(|&port| lab.run(&from(sources[port % sources.len()], port as u16)).0 == XDP_TX).count()
    };
    for (sources, most) in [
        (&["192.0.2.1"][..], 3),
        (&["192.0.2.3"], 3),
        (&["2001:db8:7::1", "2001:db8:7::2"], 3),
        (&["2001:db8:8::1", "2001:db8:9::1"], 6),
    ] {
        let count = answered(sources);
        assert!(count == most || (most < count && count <= 2 * most), "{count} answers to {sources:?}");
    }
    assert!(lab.program.counts().unwrap().result[syn_result::SYN_LIMITED.0 as usize] > 0);
}

#[test]
fn a_listener_without_room_answers_nobody() {
    let mut lab = Host::new(1500, "2");
    let _sockets = lab.listen(|one| {
        // SAFETY: a call on a descriptor that is open.
        assert_eq!(unsafe { libc::listen(one.as_raw_fd(), 0) }, 0);
    });
    let address = SocketAddr::new(V4[1].parse().unwrap(), PORT);
    let _waiting = lab.world.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap()).unwrap();
    lab.check("nobody accepts", &syn(V4, 1, LINUX), XDP_DROP, Some(syn_result::SYN_FULL));
    lab.check("another listener does", &syn(V6, 1, LINUX), XDP_TX, Some(syn_result::SYN_ANSWERED));
}

#[test]
fn acknowledgements_carry_a_cookie_or_belong_to_a_connection() {
    let mut lab = Host::new(1500, "2");
    let sockets = lab.listen(|_| {});
    for addresses in [V4, V6] {
        let ack = |port: u16, numbers: (u32, u32), flags: u8| {
            between(addresses).tcp(port, PORT).flags(flags).numbers(numbers.0, numbers.1).build()
        };
        lab.check("nobody was answered there", &ack(1, (1, 1), ACK), XDP_PASS, None);
        let answer =
            read(&lab.check("a SYN", &syn(addresses, 2, LINUX), XDP_TX, Some(syn_result::SYN_ANSWERED))).unwrap();
        let cookie = answer.sequence.wrapping_add(1);
        lab.check("a guess", &ack(2, (1001, cookie ^ 0x40_0000), ACK), XDP_DROP, Some(syn_result::SYN_FORGED));
        lab.check("of another port", &ack(3, (1001, cookie), ACK), XDP_DROP, Some(syn_result::SYN_FORGED));
        lab.check("the end of nothing", &ack(2, (1001, 7), FIN_ACK), XDP_DROP, Some(syn_result::SYN_FORGED));
        lab.check("a cookie", &ack(2, (1001, cookie), ACK), XDP_PASS, Some(syn_result::SYN_ACCEPTED));
        lab.check("what comes with it", &ack(2, (2449, cookie), ACK), XDP_PASS, None);
        lab.order.active = 0;
        lab.check("when all is calm", &ack(4, (1001, 5), ACK), XDP_PASS, None);
        lab.order.active = 1;

        // A connection that the stack has, and one that it has just closed: its SYN has to be seen by TCP.
        let address = SocketAddr::new(addresses[1].parse().unwrap(), PORT);
        let client = lab.world.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        let (served, _) = sockets[usize::from(addresses == V6)].accept().unwrap();
        lab.check("of a connection", &ack(port, (5, 5), ACK), XDP_PASS, None);
        drop(served);
        drop(client);
        std::thread::sleep(Duration::from_millis(100));
        lab.check("its end", &ack(port, (6, 6), FIN_ACK), XDP_PASS, None);
        let again = syn(addresses, port, LINUX);
        lab.check("the same port again", &again, XDP_PASS, Some(syn_result::SYN_KNOWN));
        lab.check("another one", &syn(addresses, port ^ 1, LINUX), XDP_TX, Some(syn_result::SYN_ANSWERED));
    }
}
