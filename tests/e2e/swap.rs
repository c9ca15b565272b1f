//! Rules change under traffic: each packet is judged by one rule set or the other, never by a mixture.

use ebpfsentinel::api::Method;
use serde_json::json;

use super::support::{Flow, Lab, WORLD, WORLD_V6, config, rule, wait_until};

const SWAPS: usize = 1000;

/// Two sets that say the same about ports 7, 8 (pass) and 9, 11 (drop), each in its own way: taking tables from one and
/// policy from the other, or rows from one and rules from the other, is wrong for at least one of the ports.
fn sets() -> [String; 2] {
    let noise = |shift: u32| {
        (0..60u32).map(move |n| {
            let (net, port) = ((n * 7 + shift) % 200, 20_000 + (n * 37 + shift * 11) % 30_000);
            let action = if (n + shift).is_multiple_of(2) { "allow" } else { "deny" };
            let rest = format!("src_ip = \"10.{net}.0.0/16\"\nprotocol = \"udp\"\ndst_port = \"{port}-{}\"", port + 99);
            rule(&format!("noise-{shift}-{n}"), 5 + n, action, &rest)
        })
    };
    let mut strict: Vec<String> = noise(0).collect();
    strict.push(rule("open", 30, "allow", "protocol = \"udp\"\ndst_port = \"7-8\""));
    let mut lax: Vec<String> = noise(1).collect();
    lax.push(rule("shut", 3, "deny", "protocol = \"udp\"\ndst_port = 9"));
    lax.push(rule("shut-v4", 50, "deny", "src_ip = \"192.0.2.0/24\"\nprotocol = \"udp\"\ndst_port = \"10-4000\""));
    lax.push(rule("shut-v6", 50, "deny", "src_ip = \"2001:db8:1::/64\"\nprotocol = \"udp\"\ndst_port = \"10-4000\""));
    [
        config("", "mode = \"block\"\ndefault_policy = \"drop\"", &strict),
        config("", "mode = \"block\"\ndefault_policy = \"pass\"", &lax),
    ]
}

#[test]
fn no_packet_gets_a_wrong_verdict_while_rules_are_swapped() {
    let lab = Lab::new();
    let sets = sets();
    let agent = lab.start(&sets[0]);
    let swing = |port: u16, action: &str| json!({"id": "swing", "priority": 1, "action": action, "protocol": "udp", "dst_port": port});
    lab.ask(Method::Post, "/api/v1/firewall/rules", Some(swing(7, "allow")));
    let open = [Flow::start(&lab, WORLD, 7), Flow::start(&lab, WORLD_V6, 8)];
    let shut = [Flow::start(&lab, WORLD, 9), Flow::start(&lab, WORLD_V6, 11)];
    for turn in 0..SWAPS / 2 {
        lab.write_unseen(&sets[(turn + 1) % 2]);
        lab.ask(Method::Post, "/api/v1/config/reload", None);
        let body = if turn % 2 == 0 { swing(9, "deny") } else { swing(7, "allow") };
        lab.ask(Method::Put, "/api/v1/firewall/rules/swing", Some(body));
    }
    wait_until("traffic has gone on", || open.iter().chain(&shut).all(|flow| flow.sent() > 100));
    for flow in open {
        assert!(flow.got() > 0);
        let (sent, got) = flow.end();
        assert_eq!(got, sent, "dropped though both sets allow it");
    }
    for flow in shut {
        let (sent, got) = flow.end();
        assert_eq!(got, 0, "of {sent} passed though both sets deny it");
    }
    let said = agent.stop();
    assert!(!said.contains("ERROR"), "{said}");
}
