//! `mirror_to`: copies that are whole, none missing, and what becomes of those that cannot be made.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use ebpfsentinel::api::Method;
use ebpfsentinel::lab::{FrameSocket, Namespace, connect};
use ebpfsentinel::packet::build::Packet;
use serde_json::{Value, json};

use super::support::{HOST, HOST_V6, Lab, WORLD, WORLD_V6, config, rule, udp, wait_for, wait_until};

const WITHIN: Duration = Duration::from_secs(30);
/// The hardware address of the world, from which all frames come that can have a copy.
const WORLD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The port to which the last frame of a test goes; it is mirrored too.
const LAST: u16 = 9999;

/// A laboratory whose host has a monitor at its interface mon0.
struct Monitored {
    lab: Lab,
    monitor: Namespace,
}

/// All that is mirrored, and what else arrives.
fn rules() -> Vec<String> {
    vec![
        rule("seen", 10, "allow", "protocol = \"udp\"\ndst_port = \"7000-7099\"\nmirror_to = \"mon0\""),
        rule("web", 10, "log", "protocol = \"tcp\"\ndst_port = 80\nmirror_to = \"mon0\""),
        rule("last", 10, "allow", &format!("protocol = \"udp\"\ndst_port = {LAST}\nmirror_to = \"mon0\"")),
        rule("unseen", 10, "allow", "protocol = \"udp\"\ndst_port = \"7100-7199\""),
        rule("denied", 10, "deny", "protocol = \"udp\"\ndst_port = 7200"),
    ]
}

fn text(agent: &str) -> String {
    config(agent, "mode = \"block\"\nunparsable = \"pass\"", &rules())
}

impl Monitored {
    fn new() -> Monitored {
        let (lab, monitor) = (Lab::new(), Namespace::new("monitor").unwrap());
        let it = Monitored { lab, monitor };
        it.connect();
        it
    }

    fn connect(&self) {
        connect(&self.lab.host.port("mon0"), &self.monitor.port("tap0")).unwrap();
    }

    fn mtu(&self, bytes: u16) {
        self.lab.host.ip(&format!("link set mon0 mtu {bytes}")).unwrap();
        self.monitor.ip(&format!("link set tap0 mtu {bytes}")).unwrap();
    }

    fn tap(&self) -> FrameSocket {
        FrameSocket::open(&self.monitor, "tap0").unwrap()
    }

    /// Sends these frames, then one more, and returns the copies that came before the copy of that one.
    fn copies(&self, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let tap = self.tap();
        let out = FrameSocket::open(&self.lab.world, "eth0").unwrap();
        let last = self.lab.addressed(udp(WORLD, LAST)).build();
        for frame in frames {
            out.send(frame).unwrap();
        }
        out.send(&last).unwrap();
        copies_until(&tap, &last)
    }

    fn count(&self, name: &str) -> f64 {
        self.lab.metric(&format!("ebpfsentinel_{name}_total{{interface=\"eth0\"}}"))
    }

    fn lost(&self, reason: &str) -> f64 {
        self.lab.metric(&format!("ebpfsentinel_mirror_lost_packets_total{{interface=\"eth0\",reason=\"{reason}\"}}"))
    }

    /// What status says of tc_mirror: its state, and the interfaces on which it runs.
    fn program(&self) -> (String, usize) {
        let status = self.lab.get("/api/v1/ebpf/status");
        let all = status["programs"].as_array().unwrap();
        let one = all.iter().find(|one| one["name"] == "tc_mirror").unwrap();
        (one["state"].as_str().unwrap().to_owned(), one["attached"].as_array().unwrap().len())
    }

    fn is_not_ready(&self, reason: &str) {
        wait_until(&format!("not ready: {reason}"), || {
            let answer = self.lab.send(Method::Get, "/readyz", None);
            answer.status == 503 && answer.body.contains(reason)
        });
    }
}

/// The world's frames that come in before `last`, which must come.
fn copies_until(tap: &FrameSocket, last: &[u8]) -> Vec<Vec<u8>> {
    let mut copies = Vec::new();
    let end = tap.receive(WITHIN, |got| {
        let from_world = got.bytes[6..12] == WORLD_MAC;
        if from_world && got.bytes != last {
            copies.push(got.bytes.clone());
        }
        got.bytes == last
    });
    assert!(end.unwrap().is_some(), "the last copy did not come, after {} others", copies.len());
    copies
}

/// Frames of all shapes: those that are mirrored, then those that are not.
fn shapes(lab: &Lab, mtu: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let build = |packet: Packet| lab.addressed(packet).build();
    let cut = |packet: Packet, id| lab.addressed(packet).fragments(id, 400);
    let large: Vec<u8> = (0..mtu - 100).map(|n| n as u8).collect();
    let (mut seen, mut unseen) = (Vec::new(), Vec::new());
    for from in [WORLD, WORLD_V6] {
        seen.extend([
            build(udp(from, 7000)),
            build(udp(from, 7000)), // the second one of its flow; from here on the cache answers
            build(udp(from, 7000).payload(b"third")),
            build(udp(from, 7001).vlan(7)),
            build(udp(from, 7001).tag(0x88a8, 20).vlan(7)),
            build(udp(from, 7002).payload(&large)),
            build(udp(from, 7002).payload(&large).vlan(7)),
            build(udp(from, 7003).payload(&[])),
        ]);
        seen.extend(cut(udp(from, 7004).payload(&large[..1000]), 77));
        unseen.extend([build(udp(from, 7100)), build(udp(from, 7100).vlan(7)), build(udp(from, 1234))]);
        unseen.extend(cut(udp(from, 7101).payload(&large[..1000]), 78));
    }
    seen.push(build(udp(WORLD, 7005).options(&[1; 12])));
    seen.push(build(udp(WORLD_V6, 7005).hop_by_hop(&[0; 6])));
    unseen.push(build(udp(WORLD, 9).ihl(4)));
    (seen, unseen)
}

#[test]
fn copies_are_whole_and_come_of_what_the_rule_lets_in_only() {
    for (mode, mtu) in [("native", 1500), ("generic", 1500), ("native", 9000), ("generic", 9000)] {
        let it = Monitored::new();
        for namespace in [&it.lab.world, &it.lab.host] {
            namespace.ip(&format!("link set eth0 mtu {mtu}")).unwrap();
        }
        it.mtu(mtu);
        let agent = it.lab.start(&text(&format!("xdp_mode = \"{mode}\"")));
        assert_eq!(it.program(), ("active".to_owned(), 1));
        let (seen, unseen) = shapes(&it.lab, mtu.into());
        let denied = it.lab.addressed(udp(WORLD, 7200)).build();
        let all: Vec<Vec<u8>> = seen.iter().chain(&unseen).cloned().collect();
        assert_eq!(it.lab.arrive(&all), vec![true; all.len()], "{mode} {mtu}: the host gets all of it");
        let mixed = [unseen, seen.clone(), vec![denied]].concat();
        let (packets, bytes) = (it.count("mirrored_packets"), it.count("mirrored_bytes"));
        let copies = it.copies(&mixed);
        assert_eq!(copies.len(), seen.len(), "{mode} {mtu}");
        for (copy, frame) in copies.iter().zip(&seen) {
            assert_eq!(copy, frame, "{mode} {mtu}");
        }
        let last = it.lab.addressed(udp(WORLD, LAST)).build().len();
        let sum = seen.iter().map(Vec::len).sum::<usize>() + last;
        assert_eq!(it.count("mirrored_packets") - packets, seen.len() as f64 + 1.0);
        assert_eq!(it.count("mirrored_bytes") - bytes, sum as f64);
        for reason in ["no_metadata", "no_interface", "mtu", "clone_failed"] {
            assert_eq!(it.lost(reason), 0.0, "{mode} {mtu}: {reason}");
        }
        agent.stop();
        assert_eq!(it.lab.attached(), "");
    }
}

#[test]
fn none_is_missing_at_a_moderate_rate() {
    const FRAMES: u32 = 20_000;
    let it = Monitored::new();
    let agent = it.lab.start(&text(""));
    let tap = it.tap();
    let out = FrameSocket::open(&it.lab.world, "eth0").unwrap();
    let frame = |number: u32| {
        let from = [WORLD, WORLD_V6][number as usize % 2];
        it.lab.addressed(udp(from, 7000 + (number % 50) as u16).payload(&number.to_be_bytes())).build()
    };
    let last = it.lab.addressed(udp(WORLD, LAST)).build();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..FRAMES {
                out.send(&frame(number)).unwrap();
                if number % 20 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            out.send(&last).unwrap();
        });
        let copies = copies_until(&tap, &last);
        assert_eq!(copies.len(), FRAMES as usize);
        for (number, copy) in (0..).zip(copies) {
            assert_eq!(copy, frame(number), "number {number}");
        }
    });
    agent.stop();
}

/// What GRO puts together is cut again for the monitor: it gets the segments that were on the wire.
#[test]
fn tcp_that_gro_puts_together_is_copied_whole() {
    const BYTES: usize = 4 << 20;
    for (address, offset) in [(HOST, 34), (HOST_V6, 54)] {
        let it = Monitored::new();
        let gro = it.lab.host.command("ethtool").unwrap().args(["-K", "eth0", "gro", "on"]).status().unwrap();
        assert!(gro.success());
        let agent = it.lab.start(&text(""));
        let (tap, at_host) = (it.tap(), FrameSocket::open(&it.lab.host, "eth0").unwrap());
        let to = std::net::SocketAddr::new(address.parse().unwrap(), 80);
        let listener = it.lab.host.run(|| TcpListener::bind(to)).unwrap().unwrap();
        let server = it.lab.host.spawn(move || {
            let mut got = Vec::new();
            listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
            got
        });
        let sent: Vec<u8> = (0..BYTES).map(|n| (n / 7) as u8 ^ (n >> 13) as u8).collect();
        let mut stream = it.lab.world.run(|| TcpStream::connect(to)).unwrap().unwrap();
        stream.write_all(&sent).unwrap();
        drop(stream);
        assert!(server.unwrap().join().unwrap().unwrap() == sent, "the stream itself");

        let out = FrameSocket::open(&it.lab.world, "eth0").unwrap();
        let last = it.lab.addressed(udp(WORLD, LAST)).build();
        out.send(&last).unwrap();
        let copies = copies_until(&tap, &last);
        assert_eq!(copies.len() as u64, it.lab.packets("web"), "a copy of every frame that XDP has seen");
        assert_eq!(it.count("mirrored_packets"), copies.len() as f64 + 1.0);
        // The initial sequence number is the SYN's; payload by sequence number must be the stream.
        let word = |frame: &[u8], at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let start = word(&copies[0], offset + 4).wrapping_add(1);
        let mut stream = vec![0u8; BYTES];
        let mut covered = 0;
        for copy in &copies {
            assert!(copy.len() <= 1514, "a frame of {} bytes", copy.len());
            let ends = if offset == 34 { 14 + usize::from(copy[16]) * 256 + usize::from(copy[17]) } else { copy.len() };
            let payload = &copy[offset + usize::from(copy[offset + 12] >> 4) * 4..ends];
            if !payload.is_empty() {
                let at = word(copy, offset + 4).wrapping_sub(start) as usize;
                stream[at..at + payload.len()].copy_from_slice(payload);
                covered += payload.len();
            }
        }
        assert!(covered >= BYTES && stream == sent, "{covered} bytes of the stream were copied");
        // GRO was at work, or this has shown nothing.
        let together = at_host.receive(WITHIN, |got| got.bytes[6..12] == WORLD_MAC && got.bytes.len() > 1514).unwrap();
        assert!(together.is_some());
        agent.stop();
    }
}

#[test]
fn what_is_too_long_for_the_monitor_still_passes() {
    let it = Monitored::new();
    // IPv6 wants 1280.
    it.mtu(1300);
    let agent = it.lab.start(&text(""));
    for (times, from) in (1..).zip([WORLD, WORLD_V6]) {
        let headers = if from == WORLD { 28 } else { 48 };
        let fits = it.lab.addressed(udp(from, 7000).payload(&vec![1; 1300 - headers]).vlan(7)).build();
        let long = it.lab.addressed(udp(from, 7000).payload(&vec![1; 1301 - headers])).build();
        assert_eq!(it.copies(&[long.clone(), fits.clone()]), std::slice::from_ref(&fits));
        assert_eq!(it.lost("mtu"), f64::from(2 * times - 1));
        assert_eq!(it.lab.arrive(&[long, fits]), [true, true]);
        assert_eq!(it.lost("mtu"), f64::from(2 * times));
    }
    let shown = it.lab.cli(&["metrics"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("reason=\"mtu\"} 4"), "{shown:?}");
    // A stream whose segments do not fit flows on.
    let listener = it.lab.host.run(|| TcpListener::bind((HOST, 80))).unwrap().unwrap();
    let server = it.lab.host.spawn(move || std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()));
    let mut stream = it.lab.world.run(|| TcpStream::connect((HOST, 80))).unwrap().unwrap();
    stream.write_all(&vec![7; 1 << 20]).unwrap();
    drop(stream);
    assert_eq!(server.unwrap().join().unwrap().unwrap().unwrap(), 1 << 20);
    assert!(it.lost("mtu") > 10.0);
    agent.stop();
}

#[test]
fn a_rule_of_the_api_begins_to_mirror_and_ends() {
    let it = Monitored::new();
    let other = Namespace::new("other").unwrap();
    connect(&it.lab.host.port("mon1"), &other.port("tap1")).unwrap();
    let agent = it.lab.start(&config("", "mode = \"block\"", &[]));
    assert_eq!(it.program(), ("disabled".to_owned(), 0));
    let frame = it.lab.addressed(udp(WORLD, 7000)).build();
    let last = it.lab.addressed(udp(WORLD, LAST)).build();
    let out = FrameSocket::open(&it.lab.world, "eth0").unwrap();
    // Sends, and says whether the copies arrive at both of these taps.
    let arrives = |tap: &FrameSocket, at: &str| {
        out.send(&frame).unwrap();
        out.send(&last).unwrap();
        assert_eq!(copies_until(tap, &last), std::slice::from_ref(&frame), "{at}");
    };
    let (tap0, tap1) = (it.tap(), FrameSocket::open(&other, "tap1").unwrap());
    let body =
        |monitor: &str| json!({"id": "m", "priority": 1, "action": "allow", "protocol": "udp", "mirror_to": monitor});
    assert!(it.lab.passes(udp(WORLD, 7000)));
    let added = it.lab.cli(&[
        "firewall",
        "add",
        "--id",
        "m",
        "--priority",
        "1",
        "--action",
        "allow",
        "--protocol",
        "udp",
        "--mirror-to",
        "mon0",
    ]);
    assert!(added.status.success(), "{added:?}");
    assert_eq!(it.lab.get("/api/v1/firewall/rules/m")["mirror_to"], "mon0");
    assert_eq!(it.program(), ("active".to_owned(), 1));
    arrives(&tap0, "added");
    it.lab.ask(Method::Put, "/api/v1/firewall/rules/m", Some(body("mon1")));
    arrives(&tap1, "updated");
    it.lab.ask(Method::Delete, "/api/v1/firewall/rules/m", None);
    assert_eq!(it.program(), ("disabled".to_owned(), 0));
    assert!(it.lab.passes(udp(WORLD, 7000)));
    it.lab.ask(Method::Post, "/api/v1/firewall/rules", Some(body("mon0")));
    // What was sent while it mirrored to mon1, or not at all, has no copy at mon0: the first two are those of now.
    arrives(&tap0, "added again");
    assert!(tap1.receive(Duration::from_millis(50), |got| got.bytes[6..12] == WORLD_MAC).unwrap().is_none());
    it.lab.ask(Method::Delete, "/api/v1/firewall/rules/m", None);

    // By a reload of the file too.
    it.lab.write_unseen(&text(""));
    it.lab.ask(Method::Post, "/api/v1/config/reload", None);
    arrives(&tap0, "by the file");
    it.lab.write_unseen(&config("", "mode = \"block\"", &[]));
    it.lab.ask(Method::Post, "/api/v1/config/reload", None);
    assert_eq!(it.program(), ("disabled".to_owned(), 0));

    let refused = |body: Value| it.lab.refused(Method::Post, "/api/v1/firewall/rules", Some(body));
    let (status, _, message) = refused(body("eth0"));
    assert!((400..500).contains(&status) && message.contains("is among agent.interfaces"), "{status} {message}");
    let mut deny = body("mon0");
    deny["action"] = json!("deny");
    let (status, _, message) = refused(deny);
    assert!(status == 400 && message.contains("mirror_to: what is denied"), "{status} {message}");
    agent.stop();
}

#[test]
fn a_monitor_may_come_late_be_down_and_go() {
    let it = Monitored::new();
    it.lab.host.ip("link del mon0").unwrap();
    it.lab.write_config(&text(""));
    let mut agent = it.lab.launch();
    agent.says("REST on");
    it.is_not_ready("interface mon0 does not exist");
    assert!(it.lab.passes(udp(WORLD, 7000)));
    assert_eq!(it.lost("no_interface"), 1.0);
    for _ in 0..2 {
        it.connect();
        it.lab.wait_ready(&mut agent);
        let frame = [it.lab.addressed(udp(WORLD, 7000)).build()];
        assert_eq!(it.copies(&frame), frame);
        it.lab.host.ip("link set mon0 down").unwrap();
        it.is_not_ready("mon0 is down");
        let before = it.lost("clone_failed");
        assert!(it.lab.passes(udp(WORLD, 7000)));
        assert_eq!(it.lost("clone_failed") - before, 1.0);
        it.lab.host.ip("link set mon0 up").unwrap();
        it.lab.wait_ready(&mut agent);
        it.monitor.wait_up("tap0").unwrap();
        assert_eq!(it.copies(&frame), frame);
        it.lab.host.ip("link del mon0").unwrap();
        it.is_not_ready("interface mon0 does not exist");
        let before = it.lost("no_interface");
        assert!(it.lab.passes(udp(WORLD, 7000)));
        assert_eq!(it.lost("no_interface") - before, 1.0);
    }
    agent.stop();
}

/// What reaches TC past XDP has no metadata: that is counted, and said once it is more than a few.
#[test]
fn packets_without_metadata_are_told() {
    let it = Monitored::new();
    let agent = it.lab.start(&text("xdp_mode = \"native\""));
    let aside = Namespace::new("aside").unwrap();
    connect(&aside.port("eth0"), &it.lab.host.port("in0")).unwrap();
    for words in [
        "qdisc add dev in0 clsact",
        "filter add dev in0 ingress bpf bytecode 1,6#0#0#4294967295 action mirred ingress redirect dev eth0",
    ] {
        let words: Vec<String> = words.split(' ').map(|word| word.replace('#', " ")).collect();
        let done = it.lab.host.command("tc").unwrap().args(&words).output().unwrap();
        assert!(done.status.success(), "tc {words:?}: {done:?}");
    }
    let out = FrameSocket::open(&aside, "eth0").unwrap();
    let frame = it.lab.addressed(udp(WORLD, 7000)).build();
    for _ in 0..100 {
        out.send(&frame).unwrap();
    }
    wait_until("all are counted", || it.lost("no_metadata") >= 100.0);
    it.is_not_ready("without the metadata that mirroring goes by");
    assert_eq!(it.count("mirrored_packets"), 0.0);
    agent.stop();
}

#[test]
fn an_agent_that_keeps_goes_on_mirroring() {
    let it = Monitored::new();
    let keep = "on_exit = \"keep\"";
    let frame = [it.lab.addressed(udp(WORLD, 7000)).build()];
    let mirrors = |when: &str| assert_eq!(it.copies(&frame), frame, "{when}");
    it.lab.start(&text(keep)).kill();
    mirrors("killed");
    it.lab.start(&text(keep)).stop();
    mirrors("ended");
    let agent = it.lab.start(&text(keep));
    mirrors("taken over");
    let mirror_pins = || it.lab.pinned().iter().filter(|pin| pin.to_string_lossy().contains("/mirror_")).count();
    assert_eq!(mirror_pins(), 1);
    agent.stop();
    // One without such a rule takes the pin away.
    let agent = it.lab.start(&config(keep, "mode = \"block\"", &[]));
    assert_eq!((mirror_pins(), it.program()), (0, ("disabled".to_owned(), 0)));
    agent.stop();
    let agent = it.lab.start(&text(""));
    mirrors("detaching");
    agent.stop();
    assert_eq!(it.lab.pinned(), Vec::<std::path::PathBuf>::new());
    wait_for("nothing is attached", || it.lab.attached().is_empty().then_some(()));
}
