//! The firewall of a replay by the loaded programs and by its model: the same fate and the same record for every packet,
//! whatever the rules, the packets, their order and their time.

use std::collections::BTreeMap;

use ebpfsentinel::engines::firewall::config::{FirewallConfig, Policy};
use ebpfsentinel::engines::firewall::rule::Rule;
use ebpfsentinel::packet::build::Packet;
use ebpfsentinel::packet::headers;
use ebpfsentinel::replay::wall::{Fate, Wall};
use ebpfsentinel::written::Document;

use crate::support::packets::{PacketFields, interface_name};
use crate::support::random::Random;
use crate::support::rulesets;

const SECOND_NS: u64 = 1_000_000_000;

fn config(text: &str) -> FirewallConfig {
    let document = Document::toml("test", text.as_bytes()).expect(text);
    document.read(|root| FirewallConfig::read(root.table().expect("a table"), None)).into_result().expect(text)
}

/// Both, and what they said of packets so far.
struct Both {
    kernel: Wall,
    model: Wall,
    now_ns: u64,
    said: BTreeMap<String, usize>,
}

impl Both {
    fn new(config: &FirewallConfig) -> Both {
        let wall = |kernel| Wall::new(config, &interface_name(0), kernel, None).expect("a firewall");
        Both { kernel: wall(true), model: wall(false), now_ns: SECOND_NS, said: BTreeMap::new() }
    }

    /// A packet arrives: what both say of it, in a word or two.
    #[track_caller]
    fn arrives(&mut self, frame: &[u8]) -> String {
        let read = headers::read(frame);
        let kernel = self.kernel.arrives(frame, &read, self.now_ns, false).expect("running the program");
        let model = self.model.arrives(frame, &read, self.now_ns, false).expect("asking the model");
        assert_eq!(kernel, model, "{read:x?} {frame:02x?}");
        let (fate, notice) = model;
        let Fate::Judged(outcome) = fate else { panic!("nothing is blocked") };
        let reason = notice.map_or("-", |notice| notice.verdict.reason.name());
        let said = format!("{} {reason}", outcome.name());
        *self.said.entry(said.clone()).or_default() += 1;
        said
    }

    fn leaves(&mut self, frame: &[u8]) {
        let read = headers::read(frame);
        self.kernel.leaves(frame, &read, self.now_ns).expect("running the program");
        self.model.leaves(frame, &read, self.now_ns).expect("asking the model");
    }

    fn wait(&mut self, seconds: u64) {
        self.now_ns += seconds * SECOND_NS;
    }
}

/// A packet of the rules' kind, or anything.
fn packet(rules: &[Rule], ipv4: bool, random: &mut Random) -> Packet {
    let matches = &rules[random.below(rules.len())].matches;
    let fields = match random.below(3) {
        0 => PacketFields::inside(matches, ipv4, random),
        1 => PacketFields::at_edge(matches, ipv4, random),
        _ => PacketFields::random(ipv4, random),
    };
    let mut packet = Packet::new().ip(fields.src, fields.dst).expect("addresses of one family");
    if fields.vlan_id != 0 {
        packet = packet.vlan(fields.vlan_id);
    }
    if random.chance(10) {
        packet = packet.vlan(9);
    }
    if !ipv4 && random.chance(10) {
        packet = packet.hop_by_hop(&[1, 2, 0, 0]).destination_options(&[1, 2, 0, 0]);
    }
    match fields.protocol {
        6 => packet.tcp(fields.src_port, fields.dst_port).flags(fields.tcp_flags),
        17 => packet.udp(fields.src_port, fields.dst_port),
        1 | 58 => packet.icmp(fields.icmp_type, fields.icmp_code),
        other => packet.protocol(other),
    }
    .payload(&vec![7; random.below(200)])
}

/// Swaps ends, so that what left is answered: by the same addresses and ports.
fn answer(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let (headers, _) = headers::read(&frame);
    let (at, length) = if headers.family == 4 { (headers.transport - 8, 4) } else { (headers.transport - 32, 16) };
    let (source, rest) = frame[at..].split_at_mut(length);
    source.swap_with_slice(&mut rest[..length]);
    if headers.has_ports {
        let (source, rest) = frame[headers.transport..].split_at_mut(2);
        source.swap_with_slice(&mut rest[..2]);
    }
    frame
}

/// An error about a packet that was sent.
fn error_about(frame: &[u8], ipv4: bool) -> Vec<u8> {
    let (headers, _) = headers::read(frame);
    let at = headers.transport - if ipv4 { 20 } else { 40 };
    if ipv4 {
        Packet::new().ipv4([203, 0, 113, 7], [192, 0, 2, 1]).icmp(3, 1).payload(&frame[at..]).build()
    } else {
        Packet::new().between("2001:db8::99", "2001:db8::1").icmp(1, 0).payload(&frame[at..]).build()
    }
}

#[test]
fn random_packets_meet_the_same_fate() {
    let mut said = BTreeMap::new();
    for round in 0..24u64 {
        let mut random = Random::new(1000 + round);
        let mut config = config("mode = \"block\"\nmax_connections = 1024\ntimeouts = { other_opening_secs = 5 }\n");
        for policy in [&mut config.default_policy, &mut config.unparsable] {
            *policy = random.pick(&[Policy::Pass, Policy::Drop]);
        }
        if round % 6 == 5 {
            config.mode = ebpfsentinel::classify::rules::Mode::Alert;
        }
        let sizes = [random.between(1, 40) as usize, random.between(1, 40) as usize];
        config.rules = rulesets::random(sizes[0], true, round);
        for (place, mut rule) in rulesets::random(sizes[1], false, round).into_iter().enumerate() {
            rule.id = format!("six-{place}");
            config.rules.push(rule);
        }
        let rules = config.rules.clone();
        let mut both = Both::new(&config);
        let mut sent: Vec<(Vec<u8>, bool)> = Vec::new();
        for _ in 0..2500 {
            let ipv4 = random.chance(50);
            let packet = packet(&rules, ipv4, &mut random);
            let frame = packet.build();
            match random.below(12) {
                0..=4 => drop(both.arrives(&frame)),
                5 => {
                    both.leaves(&frame);
                    let is_simple = headers::read(&frame).1.is_ok() && headers::read(&frame).0.transport > 0;
                    let has_extensions = !ipv4 && frame.len() > 20 && matches!(frame[20], 0 | 60);
                    if is_simple && !has_extensions {
                        sent.push((frame, ipv4));
                    }
                }
                6 | 7 if !sent.is_empty() => {
                    let (frame, _) = &sent[random.below(sent.len())];
                    let frame = answer(frame);
                    both.arrives(&frame);
                }
                8 if !sent.is_empty() => {
                    let (frame, ipv4) = &sent[random.below(sent.len())];
                    let frame = error_about(frame, *ipv4);
                    both.arrives(&frame);
                }
                9 => {
                    // Fragments of few datagrams: first ones that disagree, later ones without a first one.
                    let mut fragments = packet.payload(&vec![3; 300]).fragments(random.below(4) as u64 as u32, 104);
                    random.shuffle(&mut fragments);
                    fragments.iter().for_each(|fragment| drop(both.arrives(fragment)));
                }
                10 => {
                    let mut frame = frame;
                    for _ in 0..random.between(1, 4) {
                        let at = random.below(frame.len().min(80));
                        frame[at] = random.bits() as u8;
                    }
                    frame.truncate(random.between(14, frame.len() as u64) as usize);
                    both.arrives(&frame);
                }
                _ => both.wait(random.pick(&[0, 1, 4, 31, 61])),
            }
        }
        for (what, count) in both.said {
            *said.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "pass -",
        "pass rule",
        "drop rule",
        "drop default_policy",
        "drop unparsable",
        "drop fragment",
        "would_drop rule",
    ] {
        assert!(said.get(what).is_some_and(|count| *count > 20), "{what} is hardly met: {said:?}");
    }
}

#[test]
fn state_lives_by_the_time_of_the_capture() {
    let drop = "mode = \"block\"\ndefault_policy = \"drop\"\n";
    let mut both = Both::new(&config(drop));
    for (here, there) in [("192.0.2.1", "198.51.100.9"), ("2001:db8::1", "2001:db8::9")] {
        let ask = Packet::new().between(here, there).udp(5000, 53).build();
        let told = Packet::new().between(there, here).udp(53, 5000).build();
        assert_eq!(both.arrives(&told), "drop default_policy");
        both.leaves(&ask);
        assert_eq!(both.arrives(&told), "pass -");
        both.wait(120);
        assert_eq!(both.arrives(&told), "pass -");
        both.wait(121);
        assert_eq!(both.arrives(&told), "drop default_policy");
        // Fragments wait for thirty seconds.
        both.leaves(&ask);
        let answer = Packet::new().between(there, here).udp(53, 5000).payload(&[1; 2000]);
        for (pause, said) in [(30, "pass -"), (31, "drop unparsable")] {
            let fragments = answer.fragments(77 + pause as u32, 1480);
            assert_eq!(both.arrives(&fragments[0]), "pass -");
            both.wait(pause);
            assert_eq!(both.arrives(&fragments[1]), said);
        }
    }
}

/// The oldest connection makes room, in the kernel's table as in the model's.
#[test]
fn connections_have_room() {
    let mut both = Both::new(&config("mode = \"block\"\ndefault_policy = \"drop\"\nmax_connections = 1024\n"));
    let ask = |port: u16| Packet::new().ipv4([192, 0, 2, 1], [198, 51, 100, 9]).udp(port, 53).build();
    for port in 1..=3000 {
        both.leaves(&ask(port));
    }
    let mut passed = Vec::new();
    for port in 1..=3000 {
        if both.arrives(&answer(&ask(port))) == "pass -" {
            passed.push(port);
        }
    }
    assert_eq!(passed, (3000 - 1023..=3000).collect::<Vec<_>>());
}
