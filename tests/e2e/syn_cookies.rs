//! SYN cookies: a client that is answered by XDP never notices, and readiness says when the host would not take them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use ebpfsentinel::lab::FrameSocket;
use ebpfsentinel::packet::build::Packet;
use serde_json::json;

use super::support::{HOST, HOST_V6, Lab, OTHER, WORLD, config, rule, wait_until};

const PORT: u16 = 80;

fn cookies(rest: &str) -> String {
    cookies_behind(&config("", "mode = \"block\"", &[]), rest)
}

fn cookies_behind(firewall: &str, rest: &str) -> String {
    let rule = "[[ratelimit.rules]]\nid = \"syn\"\npriority = 10\nprotocol = \"tcp\"\nalgorithm = \"syn_cookie\"\n";
    format!("{firewall}\n[ratelimit]\nmode = \"block\"\n{rule}{rest}\n")
}

/// A laboratory whose host takes cookies; `timestamps` is its net.ipv4.tcp_timestamps.
fn lab(timestamps: &str) -> Lab {
    let lab = Lab::new();
    lab.host.sysctl("ipv4/tcp_syncookies", "2").unwrap();
    lab.host.sysctl("ipv4/tcp_timestamps", timestamps).unwrap();
    lab
}

/// Answers connections with what comes in, `count` of them.
fn echo(lab: &Lab, count: usize) -> JoinHandle<anyhow::Result<()>> {
    let listeners = lab
        .host
        .run(|| [HOST, HOST_V6].map(|ip| TcpListener::bind(SocketAddr::new(ip.parse().unwrap(), PORT)).unwrap()))
        .unwrap();
    lab.host
        .spawn(move || {
            let threads = listeners.map(|listener| {
                std::thread::spawn(move || {
                    for stream in listener.incoming().take(count) {
                        let mut stream = stream.unwrap();
                        let mut text = Vec::new();
                        stream.read_to_end(&mut text).unwrap();
                        stream.write_all(&text).unwrap();
                    }
                })
            });
            for thread in threads {
                thread.join().unwrap();
            }
        })
        .unwrap()
}

/// Sends bytes to the host and gets them back.
fn ask(lab: &Lab, to: &str, bytes: usize) {
    let address = SocketAddr::new(to.parse::<IpAddr>().unwrap(), PORT);
    let text: Vec<u8> = (0..bytes).map(|at| (at * 7 % 251) as u8).collect();
    let got = lab
        .world
        .run(|| {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let sent = text.clone();
            let writing = std::thread::spawn(move || {
                writer.write_all(&sent).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            writing.join().unwrap();
            got
        })
        .unwrap();
    assert!(got == text, "{} bytes came back of {bytes}", got.len());
}

fn result(lab: &Lab, name: &str) -> u64 {
    lab.metric(&format!("ebpfsentinel_ratelimit_syn_cookies_total{{result=\"{name}\"}}")) as u64
}

#[test]
fn clients_do_not_notice() {
    for timestamps in ["1", "2"] {
        let lab = lab(timestamps);
        let _taken = lab.world.take_xdp_frames("eth0").unwrap();
        let _agent = lab.start(&cookies("threshold_pps = 0"));
        let server = echo(&lab, 6);
        for _ in 0..6 {
            for to in [HOST, HOST_V6] {
                ask(&lab, to, 3_000_000);
            }
        }
        server.join().unwrap().unwrap();
        assert_eq!((result(&lab, "answered"), result(&lab, "accepted")), (12, 12));
    }
}

/// A firewall that lets nobody in but by state: the acknowledgement of a cookie is the first that it sees of a connection.
#[test]
fn a_stateful_firewall_knows_a_cookie() {
    let lab = lab("2");
    let _taken = lab.world.take_xdp_frames("eth0").unwrap();
    let rules = [
        rule("new", 1, "allow", "protocol = \"tcp\"\ndst_port = 80\nstate = [\"new\"]"),
        rule("open", 2, "allow", "state = [\"established\"]"),
    ];
    let firewall = config("", "mode = \"block\"\ndefault_policy = \"drop\"", &rules);
    let _agent = lab.start(&cookies_behind(&firewall, "threshold_pps = 0"));
    let server = echo(&lab, 2);
    for to in [HOST, HOST_V6, HOST, HOST_V6] {
        ask(&lab, to, 100_000);
    }
    server.join().unwrap().unwrap();
    assert_eq!(result(&lab, "accepted"), 4);
    let scan = Packet::new().between(WORLD, HOST).tcp(4000, PORT).flags(0x10).numbers(7, 8);
    assert!(!lab.passes(scan), "an acknowledgement of nothing is invalid");
}

/// A rule that only tells, and an agent that only tells, answer nobody.
#[test]
fn who_only_tells_answers_nobody() {
    let lab = lab("2");
    let told = |agent: &super::support::Agent| {
        let server = echo(&lab, 1);
        ask(&lab, HOST, 10);
        ask(&lab, HOST_V6, 10);
        server.join().unwrap().unwrap();
        agent.says("action=would_challenge");
        assert_eq!(result(&lab, "answered") + result(&lab, "accepted"), 0);
        let rule = lab.get("/api/v1/ratelimit/rules/syn");
        assert_eq!((&rule["passed"], &rule["over_limit"]), (&json!(0), &json!(2)));
    };
    let passes = cookies("threshold_pps = 0\naction = \"pass\"");
    let agent = lab.start(&passes);
    told(&agent);
    agent.stop();
    let agent = lab.start(&cookies("threshold_pps = 0").replace("[ratelimit]\nmode = \"block\"", "[ratelimit]"));
    told(&agent);
}

/// Below the threshold the stack answers; beyond it XDP does, and for a whole calm second more.
#[test]
fn the_threshold_opens_and_shuts() {
    let lab = lab("2");
    let _taken = lab.world.take_xdp_frames("eth0").unwrap();
    let _agent = lab.start(&cookies("threshold_pps = 20"));
    let server = echo(&lab, 3);
    ask(&lab, HOST, 10);
    ask(&lab, HOST_V6, 10);
    assert_eq!(result(&lab, "answered"), 0, "two SYNs are no flood");
    // All in one second; if they fall into two of them, half of them still is beyond the threshold.
    let syns = |at: u32| lab.addressed(Packet::new().between(OTHER, HOST).tcp(4000 + at as u16, PORT)).build();
    let frames: Vec<_> = (0..100).map(syns).collect();
    let wire = FrameSocket::open(&lab.world, "eth0").unwrap();
    frames.iter().for_each(|frame| wire.send(frame).unwrap());
    wait_until("the flood was counted", || {
        let rule = lab.get("/api/v1/ratelimit/rules/syn");
        rule["passed"].as_u64().unwrap() + rule["over_limit"].as_u64().unwrap() == 102
    });
    let answered = result(&lab, "answered");
    assert!((50..=82).contains(&answered), "{answered} of 100 were beyond the threshold of 20");
    ask(&lab, HOST, 10);
    ask(&lab, HOST_V6, 10);
    wait_until("it is calm again", || {
        let before = result(&lab, "answered");
        let frame = lab.addressed(Packet::new().between(OTHER, HOST).tcp(3999, PORT)).build();
        wire.send(&frame).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        result(&lab, "answered") == before
    });
    ask(&lab, HOST, 10);
    ask(&lab, HOST_V6, 10);
    server.join().unwrap().unwrap();
}

#[test]
fn readiness_says_when_the_host_does_not_take_cookies() {
    let lab = lab("1");
    lab.host.sysctl("ipv4/tcp_syncookies", "1").unwrap();
    let _taken = lab.world.take_xdp_frames("eth0").unwrap();
    lab.write_config(&cookies("threshold_pps = 0"));
    let _agent = lab.launch();
    wait_until("the agent answers", || lab.answers());
    let reason = || lab.get("/api/v1/agent/status")["degraded"][0].clone();
    wait_until("the agent says why", || reason().as_str().is_some_and(|text| text.contains("tcp_syncookies=2")));
    // SYNs go on meanwhile.
    let server = echo(&lab, 1);
    ask(&lab, HOST, 10);
    assert_eq!(result(&lab, "answered"), 0);
    lab.host.sysctl("ipv4/tcp_syncookies", "2").unwrap();
    wait_until("it sees the change", || reason() == json!(null));
    ask(&lab, HOST_V6, 10);
    server.join().unwrap().unwrap();
}
