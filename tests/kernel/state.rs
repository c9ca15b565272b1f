//! Connections: tc_egress sees what this host sends, xdp_firewall judges what comes back. Both by test runs.

use std::os::fd::AsRawFd;
use std::time::Duration;

use ebpfsentinel::abi::{bytes_of, conn, conn_key, conn_origin, conn_phase};
use ebpfsentinel::bpf::jiffies_per_second;
use ebpfsentinel::bpf::tc_egress::TcEgress;
use ebpfsentinel::bpf::xdp_firewall::{ConnTimeouts, Switches};
use ebpfsentinel::classify::guard::Guard;
use ebpfsentinel::packet::build::Packet;
use libbpf_rs::{MapCore, MapFlags};

use crate::harness::{DROP, Kernel, XDP_DROP, XDP_PASS};
use crate::hostile;
use crate::support::random::Random;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

const NEXT: i32 = -1;

/// Both programs on one host.
struct Host {
    kernel: Kernel,
    egress: TcEgress,
}

impl Host {
    fn new(text: &str) -> Host {
        let kernel = Kernel::with(text, &Switches::default(), &Guard::default());
        let (connections, counts) = (kernel.xdp.connections().unwrap(), kernel.xdp.misc_counts_map().unwrap());
        let egress = TcEgress::load(&connections, &counts, &ConnTimeouts::default()).expect("loading tc_egress");
        Host { kernel, egress }
    }

    /// The frame leaves the host.
    fn sends(&self, frame: &[u8]) {
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as u64,
            data_in: frame.as_ptr().cast(),
            data_size_in: frame.len() as u32,
            repeat: 1,
            ..Default::default()
        };
        // SAFETY: a loaded program, and options whose one pointer has the length beside it; both outlive the call.
        let rc = unsafe { libbpf_sys::bpf_prog_test_run_opts(self.egress.program().as_raw_fd(), &mut options) };
        assert_eq!((rc, options.retval as i32), (0, NEXT), "{frame:02x?}");
    }

    fn check(&self, what: &str, frame: &[u8], expected: &str) {
        self.kernel.check(what, frame, expected);
    }

    /// The only connection.
    fn connection(&self) -> (conn_key, conn) {
        let all = self.kernel.connections();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0]
    }

    /// Lets every connection look as if it had been silent for `secs` more seconds.
    fn age(&self, secs: u64) {
        let map = self.kernel.xdp.connections().unwrap();
        for (key, mut conn) in self.kernel.connections() {
            conn.last_jiffies -= secs * jiffies_per_second().unwrap();
            map.update(bytes_of(&key), bytes_of(&conn), MapFlags::EXIST).unwrap();
        }
        // Whatever the flow cache knows it forgets with the kernel's next tick, at most 10 ms from now.
        std::thread::sleep(Duration::from_millis(20));
    }
}

const HOST: [&str; 2] = ["10.0.0.1", "2001:db8::1"];
const PEER: [&str; 2] = ["10.0.0.2", "2001:db8::2"];
const OTHER: [&str; 2] = ["10.0.0.3", "2001:db8::3"];

/// From the host to its peer, by family.
fn out(family: usize) -> Packet {
    Packet::new().between(HOST[family], PEER[family])
}

/// From the peer to the host.
fn back(family: usize) -> Packet {
    Packet::new().between(PEER[family], HOST[family])
}

#[test]
fn answers_pass_and_nothing_else_does() {
    for family in [0, 1] {
        let host = Host::new(DROP);
        let stranger = || Packet::new().between(OTHER[family], HOST[family]);
        let reply = |id: u32| back(family).icmp(if family == 0 { 0 } else { 129 }, 0).rest(id << 16 | 1);
        let cases = [
            ("TCP", out(family).tcp(40000, 80), back(family).tcp(80, 40000).flags(SYN | ACK)),
            ("UDP", out(family).udp(40000, 53), back(family).udp(53, 40000)),
            ("echo", out(family).ping(77, 1), reply(77)),
            ("GRE", out(family).protocol(47).payload(&[0; 8]), back(family).protocol(47).payload(&[0; 8])),
        ];
        for (what, request, answer) in &cases {
            host.check(what, &answer.build(), "drop default_policy");
            host.sends(&request.build());
            host.check(what, &answer.build(), "pass state");
            host.check(what, &answer.build(), "pass state");
        }
        host.check("data", &back(family).tcp(80, 40000).flags(ACK).payload(b"x").build(), "pass state");
        let others = [
            back(family).tcp(80, 40001).flags(ACK),
            back(family).tcp(81, 40000).flags(ACK),
            back(family).tcp(40000, 80).flags(ACK),
            back(family).udp(80, 40000),
            stranger().tcp(80, 40000).flags(ACK),
            stranger().udp(53, 40000),
            out(family).tcp(40000, 80).flags(ACK),
            reply(78),
            back(family).ping(76, 1),
        ];
        for frame in &others {
            host.check("not an answer", &frame.build(), "drop default_policy");
        }
        host.check("as a fragment", &back(family).udp(53, 40000).fragment(5, 0, true).build(), "pass state");
        host.check("its rest", &back(family).fragment(5, 8, false).protocol(17).build(), "pass fragment");
        assert_eq!(host.kernel.counts().conn_full, 0);
    }
}

/// Nothing that the flow cache keeps stands between a connection and what happens to it.
#[test]
fn a_flow_in_the_cache_follows_its_connection() {
    for family in [0, 1] {
        let host = Host::new(DROP);
        let run = |frame: &[u8]| host.kernel.xdp.test_run(frame, 0, 1).unwrap().action;
        for port in 1000..1200 {
            let answer = |flags| back(family).tcp(80, port).flags(flags).build();
            (0..3).for_each(|_| assert_eq!(run(&answer(SYN | ACK)), XDP_DROP, "before it was asked for"));
            host.sends(&out(family).tcp(port, 80).flags(SYN).build());
            (0..3).for_each(|_| assert_eq!(run(&answer(SYN | ACK)), XDP_PASS, "an answer"));
            (0..3).for_each(|_| assert_eq!(run(&answer(ACK)), XDP_PASS, "data"));
            assert_eq!(run(&answer(FIN | ACK)), XDP_PASS);
        }
        let closing = |conn: &conn| conn_phase(conn.phase.into()) == conn_phase::CONN_CLOSING;
        let ended = host.kernel.connections().iter().filter(|(_, conn)| closing(conn)).count();
        assert_eq!(ended, 200, "each end was seen");
    }
}

#[test]
fn rules_win_over_state() {
    let rules = "rules = [{ id = \"no-web\", priority = 1, action = \"deny\", protocol = \"tcp\", src_port = 80 }]";
    let host = Host::new(&format!("{DROP}{rules}"));
    let stateless = Host::new(&format!("{DROP}stateful = false\n"));
    for family in [0, 1] {
        for port in [80, 81] {
            host.sends(&out(family).tcp(40000, port).build());
            stateless.sends(&out(family).tcp(40000, port).build());
        }
        let answer = |port| back(family).tcp(port, 40000).flags(SYN | ACK).build();
        host.check("denied", &answer(80), "drop rule no-web");
        host.check("not denied", &answer(81), "pass state");
        stateless.check("stateful = false", &answer(81), "drop default_policy");
    }
}

const STATES: &str = r#"
    rules = [
        { id = "old", priority = 1, action = "allow", state = ["established"] },
        { id = "errors", priority = 2, action = "allow", state = ["related"] },
        { id = "odd", priority = 3, action = "deny", state = ["invalid"] },
        { id = "ssh", priority = 4, action = "allow", protocol = "tcp", dst_port = 22, tcp_flags = "S/SA", state = ["new"] },
        { id = "rest", priority = 5, action = "deny" },
    ]
"#;

/// The usual list: what is established passes, a few ports are open, all else is denied.
#[test]
fn rules_ask_for_states() {
    let host = Host::new(&format!("{DROP}{STATES}"));
    for family in [0, 1] {
        host.check("SYN", &back(family).tcp(5000, 22).build(), "pass rule ssh");
        host.check("SYN to another port", &back(family).tcp(5000, 23).build(), "drop rule rest");
        host.check("ACK of nothing", &back(family).tcp(5000, 22).flags(ACK).build(), "drop rule odd");
        host.check("RST of nothing", &back(family).tcp(5000, 22).flags(RST).build(), "drop rule odd");
        host.check("SYN and FIN", &back(family).tcp(5000, 22).flags(SYN | FIN).build(), "drop rule odd");
        host.check("no flags", &back(family).tcp(5000, 22).flags(0).build(), "drop rule odd");
        let reply = back(family).icmp(if family == 0 { 0 } else { 129 }, 0).build();
        host.check("echo reply to nothing", &reply, "drop rule odd");
        host.check("echo", &back(family).ping(1, 1).build(), "drop rule rest");
        host.check("UDP", &back(family).udp(1, 2).build(), "drop rule rest");

        // Opened there: the handshake goes on, and so does the connection.
        host.sends(&out(family).tcp(22, 5000).flags(SYN | ACK).build());
        for _ in 0..2 {
            host.check("handshake", &back(family).tcp(5000, 22).flags(ACK).build(), "pass rule old");
        }
        host.check("what opens is new", &back(family).tcp(5000, 22).build(), "pass rule ssh");

        // Opened here: the first answer is not new either.
        host.sends(&out(family).tcp(40000, 443).build());
        host.check("SYN and ACK", &back(family).tcp(443, 40000).flags(SYN | ACK).build(), "pass rule old");
        host.check("data", &back(family).tcp(443, 40000).flags(ACK).build(), "pass rule old");
        host.sends(&out(family).udp(40000, 53).build());
        host.check("UDP", &back(family).udp(53, 40000).build(), "pass rule old");
    }
}

#[test]
fn a_rule_for_the_new_leaves_answers_alone() {
    let text = "mode = \"block\"\ndefault_policy = \"pass\"\n\
                rules = [{ id = \"new\", priority = 1, action = \"deny\", state = [\"new\"] }]";
    let mut host = Host::new(text);
    for family in [0, 1] {
        host.sends(&out(family).tcp(40000, 443).build());
        let answer = back(family).tcp(443, 40000).flags(SYN | ACK).build();
        host.check("first answer", &answer, "pass state");
        host.kernel.swap(text);
        host.check("after a change of rules", &answer, "pass state");
        host.check("a new one", &back(family).tcp(1, 22).build(), "drop rule new");
    }
}

#[test]
fn a_new_deny_ends_an_old_connection() {
    let ssh =
        "{ id = \"ssh\", priority = 4, action = \"allow\", protocol = \"tcp\", dst_port = 22, state = [\"new\"] }";
    let old = "{ id = \"old\", priority = 1, action = \"allow\", state = [\"established\"] }";
    let deny = "{ id = \"no\", priority = 2, action = \"deny\", protocol = \"tcp\", dst_port = 22 }";
    for family in [0, 1] {
        let mut host = Host::new(&format!("{DROP}rules = [{old}, {ssh}]"));
        let data = back(family).tcp(5000, 22).flags(ACK).build();
        host.check("SYN", &back(family).tcp(5000, 22).build(), "pass rule ssh");
        host.sends(&out(family).tcp(22, 5000).flags(SYN | ACK).build());
        host.check("data", &data, "pass rule old");

        host.kernel.swap(&format!("{DROP}rules = [{old}, {ssh}]"));
        assert_eq!(host.kernel.state(&data), "new", "judged again");
        host.check("still allowed", &data, "pass rule ssh");
        host.check("and then it is old", &data, "pass rule old");

        host.kernel.swap(&format!("{DROP}rules = [{old}, {deny}, {ssh}]"));
        for _ in 0..3 {
            host.check("no longer allowed", &data, "drop rule no");
        }
        // Without a rule: the default policy, because it was not opened here.
        host.kernel.swap(&format!("{DROP}rules = [{old}]"));
        host.check("no rule", &data, "drop default_policy");
        host.check("no rule for it", &data, "drop default_policy");
    }
}

#[test]
fn what_was_opened_there_needs_a_rule() {
    for family in [0, 1] {
        let mut host = Host::new(&format!(
            "{DROP}rules = [{{ id = \"ssh\", priority = 4, action = \"allow\", protocol = \"tcp\", dst_port = 22 }}]"
        ));
        host.check("SYN", &back(family).tcp(5000, 22).build(), "pass rule ssh");
        host.sends(&out(family).tcp(22, 5000).flags(SYN | ACK).build());
        assert_eq!(u32::from(host.connection().1.origin), conn_origin::CONN_OPENED_THERE.0);
        let data = back(family).tcp(5000, 22).flags(ACK).build();
        host.check("data", &data, "pass rule ssh");
        host.kernel.swap(DROP);
        host.check("the rule is gone", &data, "drop default_policy");
    }
}

/// An ICMP error from a router on the way, about `frame` without its Ethernet header, cut after `bytes`.
fn error(family: usize, kind: u8, code: u8, frame: &[u8], bytes: usize) -> Vec<u8> {
    let quote = &frame[14..frame.len().min(bytes.saturating_add(14))];
    Packet::new().between(OTHER[family], HOST[family]).icmp(kind, code).payload(quote).build()
}

#[test]
fn errors_about_own_connections_are_related() {
    let host = Host::new(DROP);
    let rules = Host::new(&format!("{DROP}{STATES}"));
    for (family, header, errors, others) in [
        (0, 20, vec![(3, 0), (3, 4), (4, 0), (5, 1), (11, 0), (12, 0)], [0u8, 8, 13, 17]),
        (1, 40, vec![(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)], [128, 129, 139, 144]),
    ] {
        for sent in [out(family).tcp(40000, 443), out(family).udp(40000, 53), out(family).ping(9, 1)] {
            let sent = sent.build();
            let all = |kind, code| error(family, kind, code, &sent, usize::MAX);
            for &(kind, code) in &errors {
                host.check("not sent yet", &all(kind, code), "drop default_policy");
                rules.check("not sent yet", &all(kind, code), "drop rule odd");
            }
            host.sends(&sent);
            rules.sends(&sent);
            for &(kind, code) in &errors {
                host.check("error", &all(kind, code), "pass state");
                rules.check("error", &all(kind, code), "pass rule errors");
                assert_eq!(rules.kernel.state(&all(kind, code)), "related");
                host.check("8 bytes", &error(family, kind, code, &sent, header + 8), "pass state");
                for bytes in [0, 1, header - 1, header, header + 7] {
                    host.check("too short", &error(family, kind, code, &sent, bytes), "drop default_policy");
                }
            }
            for kind in others {
                host.check("no error", &all(kind, 0), "drop default_policy");
            }
        }
        // What the error speaks of must have been sent by this host, in this direction and as it is quoted.
        let (kind, code) = errors[0];
        let not_ours = [
            back(family).tcp(443, 40000),
            out(family).tcp(40001, 443),
            out(family).tcp(40000, 444),
            out(family).udp(40000, 443),
            Packet::new().between(OTHER[family], PEER[family]).tcp(40000, 443),
        ];
        for quoted in not_ours {
            let frame = error(family, kind, code, &quoted.build(), usize::MAX);
            host.check("not ours", &frame, "drop default_policy");
        }
        let fragment = out(family).fragment(1, 8, true).protocol(6).payload(&[0x9c, 0x40, 1, 187, 0, 0, 0, 0]).build();
        host.check("a later fragment", &error(family, kind, code, &fragment, usize::MAX), "drop default_policy");
        let mut wrong = out(family).tcp(40000, 443).build();
        wrong[14] ^= 0xf0;
        host.check("no IP packet", &error(family, kind, code, &wrong, usize::MAX), "drop default_policy");
    }
    // An error keeps nothing alive.
    let before = host.kernel.connections();
    host.age(10);
    let aged = host.kernel.connections();
    host.check("error", &error(0, 3, 0, &out(0).tcp(40000, 443).build(), usize::MAX), "pass state");
    assert_eq!(format!("{aged:?}"), format!("{:?}", host.kernel.connections()));
    assert_ne!(format!("{before:?}"), format!("{aged:?}"));
}

#[test]
fn silent_connections_expire() {
    let timeouts = ConnTimeouts::default();
    for family in [0, 1] {
        let syn = || out(family).tcp(40000, 80).build();
        let answer = || back(family).tcp(80, 40000).flags(SYN | ACK).build();
        let fin = || back(family).tcp(80, 40000).flags(FIN | ACK).build();
        let query = || out(family).udp(40000, 53).build();
        let reply = || back(family).udp(53, 40000).build();
        // What is sent, what comes back before the silence, how long silence lasts, and what comes then.
        let cases = [
            ("TCP opening", syn(), vec![], timeouts.tcp_opening_secs, answer()),
            ("TCP open", syn(), vec![answer()], timeouts.tcp_open_secs, answer()),
            ("TCP closing", syn(), vec![answer(), fin()], timeouts.tcp_closing_secs, answer()),
            ("UDP opening", query(), vec![], timeouts.other_opening_secs, reply()),
            ("UDP open", query(), vec![reply()], timeouts.other_open_secs, reply()),
        ];
        for (what, sent, before, secs, then) in cases {
            let host = Host::new(DROP);
            host.sends(&sent);
            for frame in &before {
                host.check(what, frame, "pass state");
            }
            host.age(u64::from(secs) - 2);
            assert_eq!(host.kernel.state(&then), "established", "{what}, just in time");
            host.age(4);
            host.check(what, &then, "drop default_policy");
            // Sent once more, it lives again.
            host.sends(&sent);
            host.check(what, &then, "pass state");
        }
    }
}

#[test]
fn phases_follow_the_flags() {
    let host = Host::new(DROP);
    let phase = || conn_phase(host.connection().1.phase.into());
    host.sends(&out(0).tcp(40000, 80).flags(RST).build());
    host.sends(&out(0).tcp(40000, 80).flags(RST | ACK).build());
    host.sends(&out(0).icmp(3, 3).payload(&back(0).udp(1, 2).build()[14..]).build());
    host.sends(&out(0).icmp(0, 0).build());
    host.sends(&out(1).icmp(129, 0).build());
    host.sends(&out(1).icmp(1, 4).payload(&back(1).udp(1, 2).build()[14..]).build());
    host.sends(&out(0).fragment(3, 800, true).protocol(17).payload(&[0; 80]).build());
    host.sends(&Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build());
    assert_eq!(host.kernel.connections().len(), 0, "refusals, errors and replies open nothing");

    host.sends(&out(0).vlan(9).tcp(40000, 80).build());
    let (key, conn) = host.connection();
    assert_eq!((key.local, key.remote), ([0, 0x0a00_0001], [0, 0x0a00_0002]));
    assert_eq!((key.local_port, key.remote_port, key.protocol, key.family), (40000, 80, 6, 4));
    assert_eq!(u32::from(conn.origin), conn_origin::CONN_OPENED_HERE.0);
    assert_eq!(phase(), conn_phase::CONN_OPENING);
    let answer = |flags| back(0).tcp(80, 40000).flags(flags).build();
    host.check("answer", &answer(SYN | ACK), "pass state");
    assert_eq!(phase(), conn_phase::CONN_OPEN);
    host.check("a reset, perhaps forged", &answer(RST), "pass state");
    assert_eq!(phase(), conn_phase::CONN_OPEN);
    host.check("FIN", &answer(FIN | ACK), "pass state");
    assert_eq!(phase(), conn_phase::CONN_CLOSING);
    host.sends(&out(0).tcp(40000, 80).build());
    assert_eq!(phase(), conn_phase::CONN_OPENING, "the ports are used again");
    host.sends(&out(0).tcp(40000, 80).flags(ACK).build());
    assert_eq!(phase(), conn_phase::CONN_OPEN);
    host.sends(&out(0).tcp(40000, 80).flags(RST).build());
    assert_eq!(phase(), conn_phase::CONN_CLOSING);
}

#[test]
fn a_question_changes_no_connection() {
    let mut host = Host::new(&format!("{DROP}{STATES}"));
    for family in [0, 1] {
        host.sends(&out(family).tcp(40000, 443).build());
        host.sends(&out(family).udp(40000, 53).build());
        host.sends(&out(family).tcp(22, 5000).flags(SYN | ACK).build());
    }
    host.age(5);
    for _ in 0..2 {
        let facts = |host: &Host| {
            let maps: Vec<_> = host.kernel.xdp.maps().into_iter().map(|map| (map.name, map.entries)).collect();
            format!("{:?} {maps:?} {:?}", host.kernel.connections(), host.kernel.counts())
        };
        let before = facts(&host);
        for family in [0, 1] {
            for frame in [
                back(family).tcp(443, 40000).flags(SYN | ACK),
                back(family).tcp(443, 40000).flags(FIN | ACK),
                back(family).udp(53, 40000),
                back(family).udp(53, 40000).fragment(1, 0, true),
                back(family).tcp(5000, 22).flags(ACK),
                back(family).tcp(5001, 22),
                back(family).ihl(3),
            ] {
                host.kernel.explain(&frame.build());
            }
        }
        assert_eq!(before, facts(&host));
        host.kernel.swap(&format!("{DROP}{STATES}"));
    }
}

#[test]
fn whatever_leaves_is_let_go() {
    let host = Host::new(DROP);
    let seeds = hostile::seeds();
    let mut random = Random::new(4);
    for _ in 0..50_000 {
        let mut frame = hostile::mutated(&seeds, &mut random);
        // The kernel refuses test runs of an IP packet without its header.
        frame.resize(frame.len().max(54), 0);
        host.sends(&frame);
    }
    assert!(host.kernel.connections().len() > 100);
}
