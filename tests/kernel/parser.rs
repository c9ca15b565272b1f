//! What the parser makes of frames, well-formed and not: each is judged by the rule that its true fields match, by the
//! default policy, or as unparsable for exactly the reason that is told.

use ebpfsentinel::packet::build::Packet;

use crate::harness::{DROP, Kernel, PASS};

const RULES: &str = r#"
    rules = [
        { id = "https", priority = 1, action = "allow", protocol = "tcp", dst_port = 443 },
        { id = "dns", priority = 2, action = "allow", protocol = "udp", dst_port = 53 },
        { id = "ping", priority = 3, action = "allow", protocol = "icmp", icmp_type = 8 },
        { id = "ping6", priority = 4, action = "allow", protocol = "icmpv6", icmp_type = 128 },
    ]
"#;

fn v4() -> Packet {
    Packet::new().between("10.0.0.1", "10.0.0.2")
}

fn v6() -> Packet {
    Packet::new().between("2001:db8::1", "2001:db8::2")
}

/// Frames with what decides about them: "https" is the rule, "policy" the default policy, else why it is unparsable.
#[derive(Default)]
struct Cases(Vec<(String, Vec<u8>, &'static str)>);

impl Cases {
    fn add(&mut self, what: impl Into<String>, frame: Vec<u8>, expected: &'static str) {
        self.0.push((what.into(), frame, expected));
    }

    /// Judges all of them under all four policies.
    fn run(&self) {
        let word = |drop| if drop { "drop" } else { "pass" };
        let mut kernel = Kernel::new(DROP);
        for (unmatched, unparsable) in [(true, true), (true, false), (false, true), (false, false)] {
            let policy = if unmatched { DROP } else { PASS };
            kernel.swap(&format!("{policy}unparsable = \"{}\"\n{RULES}", word(unparsable)));
            for (what, frame, expected) in &self.0 {
                let expected = match *expected {
                    "https" | "dns" | "ping" | "ping6" => format!("pass rule {expected}"),
                    "policy" => format!("{} default_policy", word(unmatched)),
                    "link_control" | "neighbour" => format!("pass exception {expected}"),
                    why => format!("{} unparsable {why}", word(unparsable)),
                };
                kernel.check(what, frame, &expected);
            }
        }
    }
}

#[test]
fn ethernet_and_tags() {
    let mut cases = Cases::default();
    let tcp = || v4().tcp(1, 443);
    cases.add("no tag", tcp().build(), "https");
    cases.add("one tag", tcp().vlan(5).build(), "https");
    cases.add("two tags", tcp().vlan(5).vlan(6).build(), "https");
    cases.add("priority tag", tcp().vlan(0).build(), "https");
    cases.add("802.1ad alone", tcp().tag(0x88a8, 5).build(), "https");
    cases.add("802.1ad twice", tcp().tag(0x88a8, 5).tag(0x88a8, 6).build(), "https");
    cases.add("802.1Q twice", tcp().tag(0x8100, 5).tag(0x8100, 6).build(), "https");
    cases.add("IPv6 in two tags", v6().tcp(1, 443).vlan(5).vlan(6).build(), "https");
    cases.add("three tags", tcp().vlan(5).vlan(6).vlan(7).build(), "vlan_depth");
    cases.add("three tags, nothing else", tcp().vlan(5).vlan(6).vlan(7).truncate(22).build(), "vlan_depth");
    cases.add("ARP in three tags", arp().vlan(5).vlan(6).vlan(7).build(), "vlan_depth");
    cases.add("the old service tag 0x9100", tcp().tag(0x9100, 5).build(), "not_ip");
    for bytes in 14..18 {
        cases.add(format!("tag cut at {bytes}"), tcp().vlan(5).truncate(bytes).build(), "short_ethernet");
    }
    for bytes in 18..22 {
        cases.add(
            format!("second tag cut at {bytes}"),
            tcp().vlan(5).vlan(6).truncate(bytes).build(),
            "short_ethernet",
        );
    }
    // Length of 802.3 (spanning tree), IPX, RARP, PPPoE session, MPLS, MACsec, PTP, and IP with a wrong byte order.
    for ethertype in [0x0026, 0x8137, 0x8035, 0x8864, 0x8847, 0x88e5, 0x88f7, 0x0008, 0xdd86, 0x0000, 0xffff] {
        cases.add(format!("ethertype {ethertype:04x}"), tcp().ethertype(ethertype).build(), "not_ip");
        cases.add(format!("{ethertype:04x} in a tag"), tcp().ethertype(ethertype).vlan(9).build(), "not_ip");
    }
    for (name, ethertype) in [("ARP", 0x0806), ("LLDP", 0x88cc), ("LACP", 0x8809), ("EAPOL", 0x888e)] {
        let frame = || Packet::new().ethertype(ethertype).payload(&[0; 46]);
        cases.add(name, frame().build(), "link_control");
        cases.add(format!("{name}, nothing in it"), frame().truncate(14).build(), "link_control");
        cases.add(format!("{name} in a tag"), frame().vlan(7).build(), "link_control");
        cases.add(format!("{name} in two tags"), frame().vlan(7).vlan(8).build(), "link_control");
    }
    cases.run();
}

fn arp() -> Packet {
    Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
}

#[test]
fn rules_see_the_outer_tag_and_a_priority_tag_is_none() {
    let kernel = Kernel::new(&format!(
        "{DROP}rules = [\
         {{ id = \"v7\", priority = 1, action = \"allow\", vlan_id = 7 }},\
         {{ id = \"untagged\", priority = 2, action = \"allow\", vlan_id = 0 }}]"
    ));
    let tcp = || v4().tcp(1, 443);
    kernel.check("no tag", &tcp().build(), "pass rule untagged");
    kernel.check("priority tag", &tcp().tag(0x8100, 0xe000).build(), "pass rule untagged");
    kernel.check("7", &tcp().vlan(7).build(), "pass rule v7");
    kernel.check("7 with priority and DEI", &tcp().tag(0x8100, 0xf007).build(), "pass rule v7");
    kernel.check("outer 7", &tcp().vlan(7).vlan(8).build(), "pass rule v7");
    kernel.check("inner 7", &tcp().vlan(8).vlan(7).build(), "drop default_policy");
    kernel.check("8", &tcp().vlan(8).build(), "drop default_policy");
}

#[test]
fn ipv4_headers() {
    let mut cases = Cases::default();
    let tcp = || v4().tcp(1, 443);
    for words in 0..5 {
        cases.add(format!("IHL {words}"), tcp().ihl(words).build(), "bad_ipv4");
    }
    cases.add("IHL reaches into TCP", tcp().ihl(6).build(), "short_transport");
    cases.add("IHL behind the frame", tcp().ihl(15).build(), "bad_ipv4");
    for words in 1..=10 {
        let options = vec![1; words * 4];
        cases.add(format!("{words} words of options"), tcp().options(&options).build(), "https");
        // A parser that passes over options reads ports from them: 443 stands there, and 22 in the TCP header.
        let trap = [1, 187].repeat(words * 2);
        cases.add(format!("{words} words that look like ports"), v4().tcp(1, 22).options(&trap).build(), "policy");
    }
    for bytes in 14..34 {
        cases.add(format!("cut at {bytes}"), tcp().truncate(bytes).build(), "bad_ipv4");
    }
    cases.add("options cut", tcp().options(&[1; 40]).truncate(73).build(), "bad_ipv4");
    for (length, expected) in [
        (0, "bad_ipv4"),
        (19, "bad_ipv4"),
        (20, "short_transport"),
        (39, "short_transport"),
        (40, "https"),
        (41, "https"),
        (65535, "https"),
    ] {
        cases.add(format!("total length {length}"), tcp().total_length(length).build(), expected);
    }
    let padded = || tcp().options(&[1; 8]);
    cases.add("total length within the options", padded().total_length(27).build(), "bad_ipv4");
    cases.add("total length ends at the options", padded().total_length(28).build(), "short_transport");
    for version in [0, 1, 3, 5, 6, 7, 15] {
        let mut frame = tcp().build();
        frame[14] = version << 4 | 5;
        cases.add(format!("version {version}"), frame, "bad_ipv4");
    }
    cases.run();
}

#[test]
fn transport_headers_are_whole_or_unparsable() {
    let mut cases = Cases::default();
    for (family, start) in [(v4(), 34), (v6(), 54)] {
        let echo = if start == 34 { "ping" } else { "ping6" };
        let icmp = family.clone().ping(7, 1);
        let transports =
            [("tcp", family.clone().tcp(1, 443), 20, "https"), ("udp", family.clone().udp(1, 53), 8, "dns")];
        for (name, packet, header, rule) in transports.into_iter().chain([("icmp", icmp, 8, echo)]) {
            let packet = packet.payload(&[1, 187].repeat(20));
            for bytes in 0..header + 4 {
                let expected = if bytes < header { "short_transport" } else { rule };
                let what = format!("{name} at {start}, {bytes} bytes");
                cases.add(format!("{what} there"), packet.clone().truncate(start + bytes).build(), expected);
                let claimed = (if start == 34 { 20 + bytes } else { bytes }) as u16;
                cases.add(format!("{what} claimed"), packet.clone().total_length(claimed).build(), expected);
            }
        }
        for words in 0..16 {
            let expected = if words < 5 { "short_transport" } else { "https" };
            let frame = family.clone().tcp(1, 443).data_offset(words).build();
            cases.add(format!("data offset {words} at {start}"), frame, expected);
        }
        for protocol in [132, 136] {
            for bytes in 0..10 {
                let expected = if bytes < 8 { "short_transport" } else { "policy" };
                let frame = family.clone().protocol(protocol).payload(&vec![0; bytes]).build();
                cases.add(format!("protocol {protocol}, {bytes} bytes"), frame, expected);
            }
        }
        // No header that a rule asks for: any length will do. ICMP of the other family has no types here.
        for protocol in [2, 4, 41, 47, 50, 59, 89, 112, 135, 139, 140, 253, 255, if start == 34 { 58 } else { 1 }] {
            for bytes in [0, 1, 40] {
                let frame = family.clone().protocol(protocol).payload(&vec![1; bytes]).build();
                cases.add(format!("protocol {protocol} at {start}, {bytes} bytes"), frame, "policy");
            }
        }
    }
    cases.run();
}

#[test]
fn ipv6_headers() {
    let mut cases = Cases::default();
    let tcp = || v6().tcp(1, 443);
    cases.add("plain", tcp().build(), "https");
    for bytes in 14..54 {
        cases.add(format!("cut at {bytes}"), tcp().truncate(bytes).build(), "bad_ipv6");
    }
    for version in [0, 4, 5, 7, 15] {
        let mut frame = tcp().build();
        frame[14] = version << 4;
        cases.add(format!("version {version}"), frame, "bad_ipv6");
    }
    for (length, expected) in [(0, "short_transport"), (19, "short_transport"), (20, "https"), (65535, "https")] {
        cases.add(format!("payload length {length}"), tcp().total_length(length).build(), expected);
    }
    let with_options = || tcp().destination_options(&[0; 6]);
    for (length, expected) in [
        (0, "extension_headers"),
        (7, "extension_headers"),
        (8, "short_transport"),
        (27, "short_transport"),
        (28, "https"),
    ] {
        cases.add(
            format!("payload length {length} with options"),
            with_options().total_length(length).build(),
            expected,
        );
    }
    cases.add("jumbogram", tcp().hop_by_hop(&[0xc2, 4, 0, 1, 0, 0]).total_length(0).build(), "extension_headers");
    cases.add("traffic class and flow label", tcp().traffic_class(0xff).flow_label(0xfffff).build(), "https");
    cases.run();
}

type With = fn(Packet) -> Packet;

const EXTENSIONS: [(&str, With); 7] = [
    ("hop-by-hop", |p| p.hop_by_hop(&[0; 6])),
    ("long hop-by-hop", |p| p.hop_by_hop(&[0; 62])),
    ("destination options", |p| p.destination_options(&[1, 187, 1, 187, 1, 187])),
    ("routing", |p| p.routing(4, 0)),
    ("atomic fragment", |p| p.fragment(9, 0, false)),
    ("AH", |p| p.authentication(12)),
    ("AH without check value", |p| p.authentication(0)),
];

#[test]
fn extension_headers_are_walked() {
    let mut cases = Cases::default();
    for (name, with) in EXTENSIONS {
        let bare = with(v6()).tcp(1, 443);
        cases.add(name, bare.build(), "https");
        cases.add(format!("{name} before UDP"), with(v6()).udp(1, 53).build(), "dns");
        cases.add(format!("{name} before ICMPv6"), with(v6()).ping(1, 1).build(), "ping6");
        cases.add(format!("{name} before another port"), with(v6()).tcp(443, 22).build(), "policy");
        for (then, with_then) in EXTENSIONS {
            let frame = with_then(with(v6())).tcp(1, 443).build();
            cases.add(
                format!("{name}, {then}"),
                frame,
                if then.contains("hop") { "extension_headers" } else { "https" },
            );
        }
        let whole = bare.build();
        for bytes in 54..whole.len() {
            let start = whole.len() - 20;
            let expected = if bytes < start { "extension_headers" } else { "short_transport" };
            cases.add(format!("{name} cut at {bytes}"), whole[..bytes].to_vec(), expected);
        }
    }
    let chain = |count: usize| (0..count).fold(v6(), |p, _| p.destination_options(&[0; 6])).tcp(1, 443);
    for count in 1..=8 {
        cases.add(format!("{count} headers"), chain(count).build(), "https");
    }
    for count in 9..=12 {
        cases.add(format!("{count} headers"), chain(count).build(), "extension_headers");
    }
    let all = v6().hop_by_hop(&[0; 6]).destination_options(&[0; 14]).routing(0, 0).fragment(1, 0, false);
    cases.add("all kinds", all.authentication(12).destination_options(&[0; 6]).tcp(1, 443).build(), "https");
    let longest = v6().extension(60, &[&[255][..], &[0; 2046]].concat()).tcp(1, 443);
    cases.add("the longest header", longest.build(), "https");
    let lying = v6().extension(60, &[255, 0, 0, 0, 0, 0, 0]).tcp(1, 443);
    cases.add("longer than the frame", lying.build(), "extension_headers");
    cases.add("nothing behind", v6().destination_options(&[0; 6]).build(), "policy");
    cases.run();
}

/// Headers whose length a careless parser gets wrong, with ports that are allowed where it would look.
#[test]
fn lengths_are_those_of_the_header_type() {
    let mut cases = Cases::default();
    let port = |port: u16| {
        let header = v4().tcp(1, port).build();
        header[34..54].to_vec()
    };
    // AH of 16 bytes says 2: 4-byte units less 2. In 8-byte units it would be 24 bytes: then 443 is behind the port 22.
    let mut trap = vec![0u8; 15];
    trap[0] = 2;
    let payload = [&port(22)[..8], &port(443)[..], &[0; 20]].concat();
    // Behind the true end stands a TCP header to port 22 whose data offset is where that to 443 says it.
    let mut both = payload.clone();
    both[12] = 0x50;
    cases.add("AH in units of 8 bytes", v6().extension(51, &trap).protocol(6).payload(&both).build(), "policy");
    // The byte where other headers have their length is reserved in a fragment header (RFC 8200, 4.5).
    for reserved in [1, 2, 255] {
        let atomic = v6().extension(44, &[reserved, 0, 0, 0, 0, 0, 9]);
        let frame = atomic.clone().protocol(6).payload(&both).build();
        cases.add(format!("reserved byte {reserved}"), frame, "policy");
        cases.add(format!("reserved byte {reserved}, plain"), atomic.tcp(1, 443).build(), "https");
    }
    // The two reserved bits beside the offset are no offset.
    cases.add("reserved bits", v6().extension(44, &[0, 0, 6, 0, 0, 0, 9]).tcp(1, 443).build(), "https");
    cases.run();
}

#[test]
fn neighbours_are_always_found() {
    let mut cases = Cases::default();
    let link = || Packet::new().between("fe80::1", "ff02::1");
    for kind in 133..=137 {
        let message = |ttl| link().icmp(kind, 0).payload(&[0; 24]).ttl(ttl);
        cases.add(format!("type {kind}"), message(255).build(), "neighbour");
        cases.add(format!("type {kind} in a tag"), message(255).vlan(5).build(), "neighbour");
        cases.add(format!("type {kind} from elsewhere"), message(254).build(), "policy");
        cases.add(format!("type {kind}, hop limit 0"), message(0).build(), "policy");
        let code = link().icmp(kind, 1).payload(&[0; 24]).ttl(255);
        cases.add(format!("type {kind} with a code"), code.build(), "policy");
        cases.add(format!("type {kind} in a fragment"), message(255).fragment(kind.into(), 0, true).build(), "policy");
    }
    for kind in [132, 138, 143, 127] {
        cases.add(format!("type {kind}"), link().icmp(kind, 0).ttl(255).build(), "policy");
    }
    let query = |source: &str, ttl| {
        let packet = Packet::new().between(source, "ff02::1").hop_by_hop(&[5, 2, 0, 0]).icmp(130, 0);
        packet.payload(&[0; 20]).ttl(ttl).build()
    };
    cases.add("MLD query", query("fe80::1", 1), "neighbour");
    cases.add("MLD query, top of fe80::/10", query("febf::1", 1), "neighbour");
    cases.add("MLD query from behind fe80::/10", query("fec0::1", 1), "policy");
    cases.add("MLD query from a global address", query("2001:db8::1", 1), "policy");
    cases.add("MLD query, hop limit 2", query("fe80::1", 2), "policy");
    // ICMPv6 is nothing special in IPv4.
    let frame = v4().protocol(58).payload(&[135, 0, 0, 0, 0, 0, 0, 0]).ttl(255).build();
    cases.add("neighbour solicitation in IPv4", frame, "policy");
    cases.run();
}

#[test]
fn dhcp_answers_pass_when_they_may() {
    let answer4 = Packet::new().between("10.0.0.1", "255.255.255.255").udp(67, 68).build();
    let answer6 = Packet::new().between("fe80::1", "fe80::2").udp(547, 546).build();
    let others = [
        v4().udp(68, 67).build(),
        v4().tcp(67, 68).build(),
        v4().udp(547, 546).build(),
        v6().udp(67, 68).build(),
        v6().udp(546, 547).build(),
        v4().udp(67, 69).build(),
    ];
    let on = Kernel::new(DROP);
    let off = Kernel::new(&format!("{DROP}dhcp = false"));
    let denied = Kernel::new(&format!("{DROP}rules = [{{ id = \"all\", priority = 1, action = \"deny\" }}]"));
    for frame in [&answer4, &answer6] {
        on.check("dhcp = true", frame, "pass exception dhcp");
        off.check("dhcp = false", frame, "drop default_policy");
        denied.check("no rule stops it", frame, "pass exception dhcp");
    }
    for frame in &others {
        on.check("not an answer", frame, "drop default_policy");
        denied.check("not an answer", frame, "drop rule all");
    }
}
