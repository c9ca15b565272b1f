//! `mode = "alert"` drops nothing, whatever happens; `mode = "block"` does.

use ebpfsentinel::api::Method;
use serde_json::json;

use super::support::{Agent, Lab, WORLD, WORLD_V6, config, rule, udp, wait_until};

const WOULD: &str = "would have been dropped (mode alert)";

/// Would-be drops by rules and by the default policy, all told.
fn would_drop(lab: &Lab) -> f64 {
    lab.metric("ebpfsentinel_packets_total{interface=\"eth0\",verdict=\"would_drop\"}")
}

/// The packet passes, is counted, and the journal names who would have dropped it.
fn passes_and_is_told(lab: &Lab, agent: &Agent, packet: ebpfsentinel::packet::build::Packet, who: &str) {
    let before = would_drop(lab);
    assert!(lab.passes(packet), "{who}");
    wait_until("it is counted", || would_drop(lab) > before);
    wait_until(&format!("{who} is told"), || {
        agent.said().lines().any(|line| line.contains(WOULD) && line.contains(who))
    });
}

#[test]
fn alert_drops_nothing_at_start_after_a_reload_and_after_a_write() {
    let lab = Lab::new();
    let alert = "mode = \"alert\"\ndefault_policy = \"drop\"\nunparsable = \"drop\"";
    let first = rule("first", 10, "deny", "protocol = \"udp\"\ndst_port = 1001");
    let agent = lab.start(&config("", alert, std::slice::from_ref(&first)));
    passes_and_is_told(&lab, &agent, udp(WORLD, 1001), "rule first");
    passes_and_is_told(&lab, &agent, udp(WORLD_V6, 9), "default_policy");
    passes_and_is_told(&lab, &agent, udp(WORLD, 9).ihl(4), "unparsable:");

    let second = rule("second", 10, "deny", "protocol = \"udp\"\ndst_port = 1002");
    lab.write_config(&config("", alert, &[first, second]));
    agent.hang_up();
    wait_until("the reload is done", || lab.rule_ids().contains(&"second".to_owned()));
    passes_and_is_told(&lab, &agent, udp(WORLD_V6, 1002), "rule second");
    passes_and_is_told(&lab, &agent, udp(WORLD_V6, 1001), "rule first");

    let body = json!({"id": "third", "priority": 1, "action": "deny", "protocol": "udp", "dst_port": 1003});
    lab.ask(Method::Post, "/api/v1/firewall/rules", Some(body));
    passes_and_is_told(&lab, &agent, udp(WORLD, 1003), "rule third");
    passes_and_is_told(&lab, &agent, udp(WORLD, 1002), "rule second");
    assert_eq!(lab.get("/api/v1/agent/status")["firewall_mode"], "alert");
    assert_eq!(lab.metric("ebpfsentinel_packets_total{interface=\"eth0\",verdict=\"drop\"}"), 0.0);
    agent.stop();
}

#[test]
fn block_drops_and_a_reload_changes_the_mode() {
    let lab = Lab::new();
    let rules = [rule("shut", 10, "deny", "protocol = \"udp\"\ndst_port = 1001")];
    let agent = lab.start(&config("", "mode = \"block\"", &rules));
    assert!(!lab.passes(udp(WORLD, 1001)));
    assert!(!lab.passes(udp(WORLD_V6, 1001)));
    assert!(lab.passes(udp(WORLD, 1002)));
    agent.says("packet dropped by rule shut");

    lab.write_config(&config("", "mode = \"monitor\"", &rules));
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    assert!(lab.passes(udp(WORLD, 1001)));
    lab.write_config(&config("", "mode = \"enforce\"", &rules));
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    assert!(!lab.passes(udp(WORLD, 1001)));
    agent.stop();
}

#[test]
fn the_default_mode_is_alert() {
    let lab = Lab::new();
    let agent = lab.start(&config("", "default_policy = \"drop\"", &[]));
    passes_and_is_told(&lab, &agent, udp(WORLD, 9), "default_policy");
    agent.stop();
}
