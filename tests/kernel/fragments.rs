//! Fragments: the later ones follow the first, and nothing that a receiver could put together went unjudged.

use ebpfsentinel::packet::build::Packet;

use crate::harness::{DROP, Kernel, PASS};

const RULES: &str = r#"
    rules = [
        { id = "dns", priority = 1, action = "allow", protocol = "udp", dst_port = 53 },
        { id = "web", priority = 2, action = "allow", protocol = "tcp", dst_port = 80 },
        { id = "discard", priority = 3, action = "deny", protocol = "udp", dst_port = 9 },
    ]
"#;

fn kernel() -> Kernel {
    Kernel::new(&format!("{DROP}{RULES}"))
}

fn families() -> [Packet; 2] {
    [Packet::new().between("10.0.0.1", "10.0.0.2"), Packet::new().between("2001:db8::1", "2001:db8::2")]
}

fn udp(family: &Packet, port: u16, id: u32) -> Vec<Vec<u8>> {
    let frames = family.clone().udp(4000, port).payload(&[7; 2000]).fragments(id, 800);
    assert_eq!(frames.len(), 3);
    frames
}

const STRAY: &str = "drop unparsable stray_fragment";
const OVERLAP: &str = "drop unparsable overlapping_fragment";
const TINY: &str = "drop unparsable tiny_fragment";

#[test]
fn later_fragments_follow_the_first() {
    let kernel = kernel();
    for family in families() {
        for (port, first, later) in [
            (53, "pass rule dns", "pass fragment dns"),
            (9, "drop rule discard", "drop fragment discard"),
            (1234, "drop default_policy", "drop fragment"),
        ] {
            let frames = udp(&family, port, u32::from(port));
            kernel.check("before the first", &frames[1], STRAY);
            kernel.check("first", &frames[0], first);
            kernel.check("second", &frames[1], later);
            kernel.check("third", &frames[2], later);
            kernel.check("third again", &frames[2], later);
        }
    }
    let kernel = Kernel::new(&format!("{PASS}{RULES}"));
    for family in families() {
        let frames = udp(&family, 1234, 1);
        kernel.check("stray under pass", &frames[1], "pass unparsable stray_fragment");
        kernel.check("first", &frames[0], "pass default_policy");
        kernel.check("second", &frames[1], "pass fragment");
    }
}

#[test]
fn a_datagram_is_its_addresses_protocol_and_id() {
    let kernel = kernel();
    for (family, swapped, stranger) in
        [("10.0.0.1", "10.0.0.2", "10.0.0.3"), ("2001:db8::1", "2001:db8::2", "2001:db8::3")]
    {
        let (source, destination) = (family, swapped);
        let of = |source: &str, destination: &str| Packet::new().between(source, destination);
        let own = of(source, destination);
        kernel.check("first", &udp(&own, 53, 7)[0], "pass rule dns");
        kernel.check("its own", &udp(&own, 53, 7)[1], "pass fragment dns");
        kernel.check("another id", &udp(&own, 53, 8)[1], STRAY);
        kernel.check("another source", &udp(&of(stranger, destination), 53, 7)[1], STRAY);
        kernel.check("another destination", &udp(&of(source, stranger), 53, 7)[1], STRAY);
        kernel.check("the way back", &udp(&of(destination, source), 53, 7)[1], STRAY);
        kernel.check("another VLAN", &udp(&own.clone().vlan(3), 53, 7)[1], STRAY);
        let of_protocol = own.clone().fragment(7, 800, true).protocol(47).payload(&[0; 40]).build();
        // IPv6 reassembles whatever the later fragments say about the protocol (RFC 8200, 4.5).
        let expected = if own.build()[12] == 8 { STRAY } else { "pass fragment dns" };
        kernel.check("another protocol", &of_protocol, expected);
    }
}

#[test]
fn a_second_first_fragment_must_agree() {
    let kernel = kernel();
    for family in families() {
        let good = udp(&family, 53, 21);
        kernel.check("first", &good[0], "pass rule dns");
        kernel.check("the same again", &good[0], "pass rule dns");
        kernel.check("later", &good[1], "pass fragment dns");
        kernel.check("first with another port", &udp(&family, 54, 21)[0], OVERLAP);
        kernel.check("later ones are not trusted any more", &good[1], OVERLAP);
        kernel.check("nor is the true first", &good[0], OVERLAP);
        kernel.check("another datagram is", &udp(&family, 53, 22)[0], "pass rule dns");

        // Flags count too: a SYN must not become what was judged as an ACK.
        let tcp = |flags| family.clone().tcp(1, 80).flags(flags).payload(&[0; 80]).fragments(23, 40);
        kernel.check("ACK", &tcp(16)[0], "pass rule web");
        kernel.check("SYN over it", &tcp(2)[0], OVERLAP);
        kernel.check("the rest", &tcp(16)[1], OVERLAP);
    }
    // In the other order: dropped first, then one that would be allowed.
    for family in families() {
        let denied = udp(&family, 9, 31);
        kernel.check("denied first", &denied[0], "drop rule discard");
        kernel.check("allowed over it", &udp(&family, 53, 31)[0], OVERLAP);
        kernel.check("the rest", &denied[1], OVERLAP);
    }
}

#[test]
fn no_fragment_splits_a_transport_header() {
    let kernel = kernel();
    for family in families() {
        let tcp = || family.clone().tcp(1, 80).payload(&[0; 80]);
        let pieces = tcp().fragments(41, 8);
        for piece in &pieces[..3] {
            kernel.check("8, 16 and 24 bytes of TCP", piece, TINY);
        }
        kernel.check("behind the header", &pieces[3], STRAY);
        kernel.check("16 bytes", &tcp().fragments(42, 16)[0], TINY);
        kernel.check("24 bytes", &tcp().fragments(43, 24)[0], "pass rule web");
        // RFC 3128: a whole first one that passes, then one that writes over its flags.
        for offset in [8, 16] {
            let over = family.clone().fragment(43, offset, true).protocol(6).payload(&[0xff; 24]).build();
            kernel.check("over the flags", &over, TINY);
        }
        kernel.check("the true rest", &tcp().fragments(43, 24)[1], "pass fragment web");
        for bytes in 0..8 {
            let first = family.clone().fragment(44, 0, true).protocol(17).payload(&vec![0; bytes]).build();
            kernel.check("part of a UDP header", &first, TINY);
        }
    }
}

#[test]
fn rules_that_change_make_old_fragments_strays() {
    let mut kernel = kernel();
    for family in families() {
        let frames = udp(&family, 53, 51);
        kernel.check("first", &frames[0], "pass rule dns");
        kernel.check("second", &frames[1], "pass fragment dns");
        kernel.swap(&format!("{DROP}rules = [{{ id = \"no\", priority = 1, action = \"deny\" }}]"));
        kernel.check("under new rules", &frames[1], STRAY);
        kernel.check("first under new rules", &frames[0], "drop rule no");
        kernel.check("and what follows it", &frames[2], "drop fragment no");
        kernel.swap(&format!("{DROP}{RULES}"));
        kernel.check("under the old ones again", &frames[1], STRAY);
        kernel.check("first", &frames[0], "pass rule dns");
        kernel.check("second", &frames[1], "pass fragment dns");
    }
}

#[test]
fn a_question_remembers_no_fragment() {
    let kernel = kernel();
    for family in families() {
        let (frames, other) = (udp(&family, 53, 61), udp(&family, 54, 61));
        kernel.explain(&frames[0]);
        kernel.check("only asked about the first", &frames[1], STRAY);
        kernel.check("first", &frames[0], "pass rule dns");
        kernel.explain(&other[0]);
        kernel.check("only asked about another first", &frames[1], "pass fragment dns");
    }
}

#[test]
fn extension_headers_in_first_fragments() {
    let kernel = kernel();
    let [_, v6] = families();
    let behind = v6.clone().fragment(71, 0, true).destination_options(&[0; 6]).udp(1, 53).payload(&[0; 16]);
    kernel.check("options inside of the fragment", &behind.build(), "pass rule dns");
    let later = v6.clone().fragment(71, 32, false).protocol(60).payload(&[0; 16]).build();
    kernel.check("its rest", &later, "pass fragment dns");
    let cut = v6.clone().fragment(72, 0, true).extension(60, &[1, 0, 0, 0, 0, 0, 0]).protocol(17).build();
    kernel.check("headers that go on in the next one (RFC 7112)", &cut, "drop unparsable extension_headers");
    let twice = v6.clone().fragment(73, 0, true).fragment(73, 0, true).udp(1, 53).build();
    kernel.check("a fragment of a fragment", &twice, "drop unparsable extension_headers");
    let hidden = v6.clone().fragment(74, 0, false).fragment(74, 8, false).protocol(17).payload(&[0; 16]).build();
    kernel.check("a later fragment in an atomic one", &hidden, STRAY);
}
