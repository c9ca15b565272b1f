//! Captures behind a firewall: what it drops is not inspected, what l7 refuses stays away, and both ways agree on it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::{Ran, captures, events, fixtures, is_root, of_kind, run, steady};
use crate::support::captures::{Order, Precision, pcap};
use crate::support::conversations::{Client, Conversation, Packets, Server, with_link};
use crate::support::random::Random;

const SECOND_NS: u64 = 1_000_000_000;
const ETHERNET: u32 = 1;
const COOKED: u32 = 113;

/// A folder with a configuration and captures.
pub struct Desk {
    folder: TempDir,
    config: String,
}

impl Desk {
    pub fn new(sections: &str) -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        fs::write(&config, format!("[agent]\ninterfaces = [\"eth0\", \"eth1\"]\n{sections}")).unwrap();
        Desk { config: config.to_str().unwrap().to_owned(), folder }
    }

    fn capture(&self, link: u32, packets: &Packets) -> PathBuf {
        let file = self.folder.path().join("capture.pcap");
        fs::write(&file, pcap(Order::Little, Precision::Nano, link, packets)).unwrap();
        file
    }

    /// Replays without the kernel and, as root, with it: the same comes out.
    #[track_caller]
    fn replay_file(&self, arguments: &[&str], file: &Path) -> Ran {
        let arguments = [&["--events", "-c", &self.config], arguments].concat();
        let model = run(&[&["--no-kernel"], &arguments[..]].concat(), file);
        assert_eq!(model.code, 0, "{}", model.notes);
        if is_root() {
            let kernel = run(&arguments, file);
            assert_eq!((kernel.code, &kernel.lines), (0, &model.lines), "{}", kernel.notes);
            assert_eq!(steady(&kernel.notes), steady(&model.notes));
        }
        model
    }

    #[track_caller]
    pub fn replay(&self, arguments: &[&str], packets: &Packets) -> Ran {
        self.replay_file(arguments, &self.capture(ETHERNET, packets))
    }
}

/// Three packets to open, three for each path, three to close.
fn browse(client: &str, server: &str, vlans: &[u16], start_ns: u64, paths: &[&str]) -> Packets {
    let first = (start_ns / 1000) as u32;
    let mut talk = Conversation::new(client, server, start_ns).vlans(vlans).numbered(first).handshake();
    for path in paths {
        talk = talk
            .say(Client, format!("GET {path} HTTP/1.1\r\nHost: www.example.org\r\n\r\n").as_bytes())
            .say(Server, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
    talk.close()
}

/// Ends of a conversation in both versions of IP, with the network of its client.
pub const ENDS: [(&str, &str, &str); 2] = [
    ("192.0.2.1:40000", "198.51.100.9:80", "192.0.2.1/32"),
    ("[2001:db8:1::1]:40000", "[2001:db8:2::9]:80", "2001:db8:1::/48"),
];

const NO_SECRET: &str = "[l7]\nenabled = true\nmode = \"block\"\n\
    [[l7.rules]]\nid = \"no-secret\"\npriority = 1\nprotocol = \"http\"\naction = \"deny\"\npath = \"/secret\"\n";

fn paths(events: &[Value]) -> Vec<&str> {
    of_kind(events, "http").iter().map(|event| event["http"]["url"].as_str().unwrap()).collect()
}

#[test]
fn what_the_firewall_drops_is_not_inspected() {
    for (client, server, network) in ENDS {
        for vlans in [&[][..], &[100], &[100, 7]] {
            let vlan = vlans.first().copied().unwrap_or(0);
            let desk = Desk::new(&format!(
                "[firewall]\nmode = \"block\"\n[[firewall.rules]]\nid = \"not-them\"\npriority = 1\naction = \"deny\"\n\
                 protocol = \"tcp\"\nsrc_ip = \"{network}\"\ndst_port = 80\nvlan_id = {vlan}\n{NO_SECRET}"
            ));
            let ran = desk.replay(&[], &browse(client, server, vlans, fixtures::START, &["/secret"]));
            let seen = events(&ran.lines);
            // Only the answer is seen, to nobody knows what.
            assert!(of_kind(&seen, "http").iter().all(|event| event["http"].get("url").is_none()), "{}", ran.lines);
            let alerts = of_kind(&seen, "alert");
            assert_eq!(alerts.len(), 1, "one line for all packets of it: {}", ran.lines);
            let alert = &alerts[0]["alert"];
            let keys: Vec<&str> = alert.as_object().unwrap().keys().map(String::as_str).collect();
            let suricata = ["action", "category", "gid", "metadata", "rev", "severity", "signature", "signature_id"];
            assert_eq!(keys, suricata, "no other key but Suricata's");
            assert_eq!((&alert["action"], &alert["signature"]), (&"blocked".into(), &"not-them".into()));
            let metadata = serde_json::json!({
                "component": ["firewall"], "rule": ["not-them"], "rule_action": ["deny"],
            });
            assert_eq!(alert["metadata"], metadata);
            assert_eq!((&alerts[0]["dest_port"], &alerts[0]["proto"]), (&80.into(), &"TCP".into()));
            assert_eq!(alerts[0]["src_ip"], client.rsplit_once(':').unwrap().0.trim_matches(['[', ']']));
            // The other direction passes: it is a flow of its own, which says so.
            let flow = of_kind(&seen, "flow")[0];
            assert_eq!(
                flow["flow"]["pkts_toserver"].as_u64().unwrap() + flow["flow"]["pkts_toclient"].as_u64().unwrap(),
                4
            );
            assert_eq!(flow["community_id"], alerts[0]["community_id"]);
            assert!(ran.notes.contains("firewall   4 passed, 6 dropped\n"), "{}", ran.notes);
            assert!(ran.notes.contains("firewall not-them") && !ran.notes.contains("l7 no-secret"), "{}", ran.notes);
            // With another tag the rule is about others.
            let other = browse(client, server, &[5], fixtures::START, &["/secret"]);
            let ran = desk.replay(&[], &other);
            let seen = events(&ran.lines);
            assert_eq!(of_kind(&seen, "alert")[0]["alert"]["signature"], "no-secret", "{}", ran.lines);
        }
    }
}

#[test]
fn in_mode_alert_everything_passes_and_is_told() {
    let rules = "[[firewall.rules]]\nid = \"no-web\"\npriority = 1\naction = \"deny\"\nprotocol = \"tcp\"\ndst_port = 80\n\
        [[firewall.rules]]\nid = \"answers\"\npriority = 2\naction = \"log\"\nprotocol = \"tcp\"\nsrc_port = 80\n";
    let desk = Desk::new(&format!("[firewall]\nmode = \"alert\"\n{rules}"));
    let (client, server, _) = ENDS[0];
    let ran = desk.replay(&[], &browse(client, server, &[], fixtures::START, &["/"]));
    let seen = events(&ran.lines);
    assert_eq!(paths(&seen), ["/"]);
    let alerts: Vec<_> = of_kind(&seen, "alert").iter().map(|event| event["alert"].clone()).collect();
    let told = alerts.iter().map(|alert| (alert["signature"].clone(), alert["action"].clone())).collect::<Vec<_>>();
    assert_eq!(told, [("no-web".into(), "allowed".into()), ("answers".into(), "allowed".into())]);
    assert!(
        ran.notes.contains("firewall   4 passed, 0 dropped, 6 passed that mode \"block\" drops\n"),
        "{}",
        ran.notes
    );
}

#[test]
fn what_l7_refuses_stays_away_as_long_as_the_block() {
    for (client, server, _) in ENDS {
        for vlans in [&[][..], &[100, 7]] {
            let desk = Desk::new(&format!("[firewall]\nmode = \"block\"\n{NO_SECRET}"));
            let mut packets = browse(client, server, vlans, fixtures::START, &["/", "/secret", "/more", "/secret"]);
            // The same ports again: within the block, and after it.
            packets.extend(browse(client, server, vlans, fixtures::START + 60 * SECOND_NS, &["/later"]));
            packets.extend(browse(client, server, vlans, fixtures::START + 125 * SECOND_NS, &["/after"]));
            let ran = desk.replay(&[], &packets);
            let seen = events(&ran.lines);
            // The refused request itself has reached its server; that is how far inspection goes.
            assert_eq!(paths(&seen), ["/", "/after"], "{}", ran.lines);
            let alerts = of_kind(&seen, "alert");
            assert_eq!(alerts.len(), 1, "{}", ran.lines);
            assert_eq!(alerts[0]["alert"]["action"], "blocked");
            // What passes: 3 to open, 4 of the first page, 1 that asks for what is refused; then the last connection.
            assert!(ran.notes.contains("blocked    24 of flows that a rule of l7 refused\n"), "{}", ran.notes);
            assert!(ran.notes.contains("firewall   18 passed, 0 dropped\n"), "{}", ran.notes);
        }
    }
}

#[test]
fn a_flow_that_goes_on_after_its_block_is_blocked_anew() {
    for (tcp_reset, (client, server, _)) in [(true, ENDS[0]), (false, ENDS[0]), (true, ENDS[1])] {
        let rules = NO_SECRET.replace("enabled = true", &format!("enabled = true\ntcp_reset = {tcp_reset}"));
        goes_on_after_its_block(client, server, &rules);
    }
}

fn goes_on_after_its_block(client: &str, server: &str, rules: &str) {
    let desk = Desk::new(&format!("[firewall]\nmode = \"block\"\n{rules}"));
    let mut packets = browse(client, server, &[], fixtures::START, &["/secret"]);
    packets.truncate(4);
    for second in [1, 119, 121, 122, 240, 242] {
        let mut talk = Conversation::new(client, server, fixtures::START + second * SECOND_NS);
        talk.segment(Client, 300, 0x18, b"GET /more HTTP/1.1\r\n\r\n");
        packets.extend(talk.packets);
    }
    let ran = desk.replay(&[], &packets);
    // At 121 it passes, and at 242.
    assert!(ran.notes.contains("blocked    4 of flows that a rule of l7 refused\n"), "{}", ran.notes);
    assert!(ran.notes.contains("firewall   6 passed, 0 dropped\n"), "{}", ran.notes);
    assert!(paths(&events(&ran.lines)).is_empty(), "{}", ran.lines);
}

/// A name, and what is put into a conversation.
type Forgery<'a> = (&'a str, &'a dyn Fn(&mut Conversation));

/// What one segment says, in its place or out of it, real or made for the observer, ends no flow: it is blocked all the same.
#[test]
fn no_fin_and_no_reset_keeps_a_flow_from_being_blocked() {
    const FIN: u8 = 0x01;
    const RST: u8 = 0x04;
    const PSH_ACK: u8 = 0x18;
    const ACK: u8 = 0x10;
    let request = b"GET /secret HTTP/1.1\r\nHost: www.example.org\r\n\r\n";
    let last = request.len() - 1;
    let before: &[Forgery<'_>] = &[
        ("nothing", &|_| {}),
        ("the last byte with a FIN", &|talk| talk.segment(Client, last as i64, FIN | PSH_ACK, &request[last..])),
        ("a FIN ahead", &|talk| talk.segment(Client, 5, FIN | ACK, &[])),
        ("a FIN in place", &|talk| talk.segment(Client, 0, FIN | ACK, &[])),
        ("a FIN of the server's", &|talk| talk.segment(Server, 0, FIN | ACK, &[])),
        ("a reset", &|talk| talk.segment(Client, 0, RST | ACK, &[])),
        ("a reset of the server's", &|talk| talk.segment(Server, 0, RST | ACK, &[])),
    ];
    for (client, server, _) in ENDS {
        for (name, forge) in before {
            let desk = Desk::new(&format!("[firewall]\nmode = \"block\"\n{NO_SECRET}"));
            let mut talk = Conversation::new(client, server, fixtures::START).handshake();
            forge(&mut talk);
            let passed = talk.packets.len() + 1;
            let packets = talk.say(Client, request).say(Server, b"HTTP/1.1 200 OK\r\n\r\nsecret").packets;
            let ran = desk.replay(&[], &packets);
            let seen = events(&ran.lines);
            let alerts = of_kind(&seen, "alert");
            assert_eq!(alerts.len(), 1, "{name}: {}", ran.lines);
            assert_eq!(alerts[0]["alert"]["action"], "blocked", "{name}");
            let says = format!("firewall   {passed} passed, 0 dropped\n");
            assert!(ran.notes.contains(&says), "{name}: {says}{}", ran.notes);
        }
    }
}

/// Who says no more after the request waits for the response all the same.
#[test]
fn a_client_that_half_closes_is_blocked_for_what_it_is_told() {
    let desk = Desk::new(
        "[firewall]\nmode = \"block\"\n[l7]\nenabled = true\nmode = \"block\"\n[[l7.rules]]\nid = \"no-programs\"\n\
         priority = 1\nprotocol = \"http\"\naction = \"deny\"\ncontent_type = \"application/x-*\"\n",
    );
    for (client, server, _) in ENDS {
        let mut talk = Conversation::new(client, server, fixtures::START).handshake();
        talk.segment(Client, 0, 0x19, b"GET /tool HTTP/1.1\r\nHost: h\r\n\r\n");
        let response = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-executable\r\nContent-Length: 5000\r\n\r\n";
        let packets = talk.say(Server, &[&response[..], &[7; 5000]].concat()).packets;
        let ran = desk.replay(&[], &packets);
        let seen = events(&ran.lines);
        assert_eq!(of_kind(&seen, "alert")[0]["alert"]["action"], "blocked", "{}", ran.lines);
        assert!(ran.notes.contains("blocked    1 of flows that a rule of l7 refused\n"), "{}", ran.notes);
    }
}

const DENIED: &[u8] = b"GET /secret HTTP/1.1\r\nHost: www.example.org\r\n\r\n";

/// A segment in the name of another, who has said nothing.
fn forged(client: &str, server: &str, start_ns: u64) -> Packets {
    let mut talk = Conversation::new(client, server, start_ns);
    talk.segment(Client, 0, 0x18, DENIED);
    talk.packets
}

/// Whoever sends in the name of others fills no table, so that the genuine are blocked all the same.
#[test]
fn forged_packets_do_not_keep_others_from_being_blocked() {
    let desk = Desk::new(&format!("[firewall]\nmode = \"block\"\n{NO_SECRET}"));
    let (client, server, _) = ENDS[0];
    let stranger = |n: usize| format!("203.0.113.{}:{}", n % 250 + 1, 1024 + n / 250);
    let mut packets: Packets = (0..66_000).flat_map(|n| forged(&stranger(n), server, fixtures::START)).collect();
    packets.extend(browse(client, server, &[], fixtures::START, &["/secret", "/more"]));
    let ran = desk.replay(&[], &packets);
    let seen = events(&ran.lines);
    let alerts = of_kind(&seen, "alert");
    assert_eq!((alerts.len(), &alerts[66_000]["alert"]["action"]), (66_001, &"blocked".into()));
    assert_eq!(alerts[66_000]["src_ip"], "192.0.2.1");
    assert_eq!(paths(&seen).iter().filter(|path| **path == "/more").count(), 0);
}

/// One forged packet shuts the port of who has it for seconds, not for minutes; what goes on is cut as long as it does.
#[test]
fn what_nobody_answers_is_blocked_shortly_and_again() {
    let desk = Desk::new(&format!("[firewall]\nmode = \"block\"\n{NO_SECRET}"));
    for (client, server, _) in ENDS {
        let mut packets = forged(client, server, fixtures::START);
        packets.extend(browse(client, server, &[], fixtures::START + 9 * SECOND_NS, &["/soon"]));
        packets.extend(browse(client, server, &[], fixtures::START + 11 * SECOND_NS, &["/then"]));
        let ran = desk.replay(&[], &packets);
        assert_eq!(paths(&events(&ran.lines)), ["/then"], "{}", ran.lines);
        assert!(ran.notes.contains("blocked    10 of flows that a rule of l7 refused\n"), "{}", ran.notes);

        // Seen in one direction only: of ten seconds each one packet passes.
        let mut packets = forged(client, server, fixtures::START);
        for second in 1..=40 {
            let mut talk = Conversation::new(client, server, fixtures::START + second * SECOND_NS);
            talk.segment(Client, DENIED.len() as i64, 0x18, b"more");
            packets.extend(talk.packets);
        }
        let ran = desk.replay(&[], &packets);
        assert!(ran.notes.contains("firewall   5 passed, 0 dropped\n"), "{}", ran.notes);

        // From the middle on: when it is known to be genuine it is blocked as such.
        let mut packets = forged(client, server, fixtures::START);
        for (second, from) in [(10, Server), (11, Client), (100, Client), (129, Server), (131, Client)] {
            let mut talk = Conversation::new(client, server, fixtures::START + second * SECOND_NS);
            talk.segment(from, if from == Client { DENIED.len() as i64 } else { 0 }, 0x18, b"more");
            packets.extend(talk.packets);
        }
        let ran = desk.replay(&[], &packets);
        assert!(ran.notes.contains("firewall   3 passed, 0 dropped\n"), "{}", ran.notes);
    }
}

#[test]
fn without_a_block_the_flow_goes_on() {
    let desk = Desk::new(&NO_SECRET.replace("\"block\"", "\"alert\""));
    let (client, server, _) = ENDS[0];
    let ran = desk.replay(&[], &browse(client, server, &[], fixtures::START, &["/secret", "/more"]));
    let seen = events(&ran.lines);
    assert_eq!(paths(&seen), ["/secret", "/more"]);
    assert_eq!(of_kind(&seen, "alert")[0]["alert"]["action"], "allowed");
    assert!(!ran.notes.contains("blocked "), "{}", ran.notes);
}

#[test]
fn answers_to_a_local_client_pass() {
    for (client, server, network) in ENDS {
        let desk = Desk::new("[firewall]\nmode = \"block\"\ndefault_policy = \"drop\"\n");
        let packets = browse(client, server, &[], fixtures::START, &["/"]);
        let ran = desk.replay(&["--local", &format!("203.0.113.0/24,{network}")], &packets);
        assert_eq!(paths(&events(&ran.lines)), ["/"]);
        // What leaves is not judged.
        assert!(ran.notes.contains("firewall   4 passed, 0 dropped\n"), "{}", ran.notes);
        // The other way around a stranger asks, and what he is told leaves.
        let (server_network, _) = server.rsplit_once(':').unwrap();
        let ran = desk.replay(&["--local", server_network.trim_matches(['[', ']'])], &packets);
        assert!(ran.notes.contains("firewall   0 passed, 6 dropped\n"), "{}", ran.notes);
        let ran = desk.replay(&[], &packets);
        assert!(ran.notes.contains("firewall   0 passed, 10 dropped\n"), "{}", ran.notes);
        let seen = events(&ran.lines);
        assert!(seen.iter().all(|event| event["alert"]["signature"] == "default_policy"), "{}", ran.lines);
    }
}

/// A cooked capture says itself what left.
#[test]
fn what_a_cooked_capture_calls_outgoing_leaves() {
    let desk = Desk::new("[firewall]\nmode = \"block\"\ndefault_policy = \"drop\"\n");
    let (client, server, _) = ENDS[0];
    let packets = browse(client, server, &[], fixtures::START, &["/"]);
    let mut cooked = with_link(&packets, COOKED);
    for ((_, frame), (_, ethernet)) in cooked.iter_mut().zip(&packets) {
        if ethernet[26..30] == [192, 0, 2, 1] {
            frame[1] = 4;
        }
    }
    let ran = desk.replay_file(&[], &desk.capture(COOKED, &cooked));
    assert_eq!(paths(&events(&ran.lines)), ["/"]);
    assert!(ran.notes.contains("firewall   4 passed, 0 dropped\n"), "{}", ran.notes);
}

#[test]
fn packets_arrive_on_the_interface_that_is_named() {
    let desk = Desk::new(
        "[firewall]\nmode = \"block\"\n[[firewall.rules]]\nid = \"second\"\npriority = 1\naction = \"deny\"\n\
         interfaces = [\"eth1\"]\n[ratelimit]\nenabled = true\n",
    );
    let (client, server, _) = ENDS[1];
    let packets = browse(client, server, &[], fixtures::START, &["/"]);
    let passed = |arguments: &[&str]| desk.replay(arguments, &packets).notes;
    for (arguments, says) in [
        (&[][..], "firewall   10 passed, 0 dropped\n"),
        (&["--interface", "eth0"], "firewall   10 passed, 0 dropped\n"),
        (&["--interface", "eth1"], "firewall   0 passed, 10 dropped\n"),
    ] {
        let notes = passed(arguments);
        assert!(notes.contains(says), "{arguments:?}: {notes}");
        assert!(notes.contains("ratelimit  not asked"), "{notes}");
    }
    let file = desk.capture(ETHERNET, &packets);
    let ran = run(&["--no-kernel", "-c", &desk.config, "--interface", "eth2"], &file);
    assert_eq!((ran.code, ran.lines.as_str()), (2, ""));
    assert!(ran.notes.contains("\"eth2\" is not among agent.interfaces: eth0, eth1"), "{}", ran.notes);
    let ran = run(&["--no-kernel", "--interface", "eth0"], &file);
    assert_eq!(ran.code, 2);
    assert!(ran.notes.contains("so it needs --config"), "{}", ran.notes);
}

/// Rules about what is in the captures of tests/data.
fn random_rules(random: &mut Random) -> String {
    let policies = ["pass", "drop"];
    let mut text = format!(
        "[firewall]\nmode = \"{}\"\ndefault_policy = \"{}\"\nunparsable = \"{}\"\n",
        random.pick(&["block", "block", "alert"]),
        random.pick(&policies),
        random.pick(&policies)
    );
    for place in 0..random.between(1, 12) {
        text += &format!("[[firewall.rules]]\nid = \"rule-{place}\"\npriority = {}\n", random.between(1, 9));
        text += &format!("action = \"{}\"\n", random.pick(&["allow", "deny", "deny", "log"]));
        match random.below(4) {
            0 => {
                let networks = ["192.0.2.0/24", "198.51.100.0/25", "198.51.100.53", "2001:db8::1", "10.9.0.0/16"];
                text += &format!("{} = \"{}\"\n", random.pick(&["src_ip", "dst_ip"]), random.pick(&networks));
            }
            1 => {
                let ports = ["53", "22", "445", "40000-40004", "8080", "2121", "50051", "2525"];
                text += &format!("{} = \"{}\"\n", random.pick(&["src_port", "dst_port"]), random.pick(&ports));
            }
            2 => {
                let flags = ["S/SA", "A/A", "F/F"];
                text += &format!("protocol = \"tcp\"\ntcp_flags = \"{}\"\n", random.pick(&flags));
            }
            _ => {
                text += &format!("protocol = \"{}\"\n", random.pick(&["tcp", "udp", "17", "47", "4"]));
                let states = ["new", "established", "invalid"];
                if random.chance(40) {
                    text += &format!("state = [\"{}\"]\n", random.pick(&states));
                }
            }
        }
        if random.chance(15) {
            text += "vlan_id = 100\n";
        }
        if random.chance(20) {
            text += "enabled = false\n";
        }
    }
    text + NO_SECRET
}

#[test]
fn every_capture_meets_the_same_fate_by_kernel_and_model() {
    let mut dropped = 0;
    for round in 0..5u64 {
        let mut random = Random::new(round);
        let rules = random_rules(&mut random);
        let desk = Desk::new(&rules);
        let local: &[&str] = if round % 2 == 1 { &["--local", "192.0.2.0/24,2001:db8::1"] } else { &[] };
        for (name, _) in fixtures::all() {
            let ran = desk.replay_file(local, &captures().join(name));
            events(&ran.lines);
            dropped += usize::from(!ran.notes.contains(" passed, 0 dropped"));
        }
    }
    assert!(dropped > 10, "the rules drop too little to tell: {dropped}");
}

#[test]
fn broken_captures_meet_the_same_fate_too() {
    for (round, (name, bytes)) in fixtures::all().into_iter().enumerate() {
        let mut random = Random::new(500 + round as u64);
        let desk = Desk::new(&random_rules(&mut random));
        let file = desk.folder.path().join("broken");
        let mut bytes = bytes.clone();
        for _ in 0..bytes.len() / 50 {
            // What stands first says that it is a capture, and of what.
            let at = 24 + random.below(bytes.len() - 24);
            bytes[at] ^= 1 << random.below(8);
        }
        fs::write(&file, &bytes).unwrap();
        let ran = desk.replay_file(&["--local", "192.0.2.0/24"], &file);
        assert!(ran.notes.contains("firewall "), "{name}: {}", ran.notes);
    }
}

/// Frames of every length, as a short snap length leaves them, whichever way they go.
#[test]
fn frames_that_are_cut_anywhere_meet_the_same_fate() {
    let mut packets = Vec::new();
    for (client, server, _) in ENDS {
        for vlans in [&[][..], &[100]] {
            let whole = &browse(client, server, vlans, fixtures::START, &[])[0].1;
            packets.extend((0..=whole.len()).map(|length| (fixtures::START, whole[..length].to_vec())));
        }
    }
    for policy in ["pass", "drop"] {
        let desk = Desk::new(&format!("[firewall]\nmode = \"block\"\ndefault_policy = \"{policy}\"\n"));
        // From 14 bytes on they are judged. Those from the local host leave, as far as their addresses can be read.
        let arrive = 41 + 45 + 61 + 65;
        for (local, judged) in [(&[][..], arrive), (&["--local", "192.0.2.0/24"], arrive - 2 * 21)] {
            let ran = desk.replay(local, &packets);
            events(&ran.lines);
            let [passed, dropped] = if policy == "pass" { [judged, 0] } else { [0, judged] };
            let says = format!("firewall   {passed} passed, {dropped} dropped\n");
            assert!(ran.notes.contains(&says), "{says}{}", ran.notes);
        }
    }
}

/// Without a rule that could drop or tell, the firewall changes nothing.
#[test]
fn an_open_firewall_changes_nothing() {
    let desk = Desk::new("[ids]\nudp_packets = 65535\n");
    for (name, _) in fixtures::all() {
        let file = captures().join(name);
        let plain = run(&["--no-kernel", "--events"], &file);
        assert_eq!(desk.replay_file(&[], &file).lines, plain.lines, "{name}");
    }
}
