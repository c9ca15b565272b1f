//! A new configuration in force: by each way that leads there, whole or not at all.

use ebpfsentinel::api::Method;
use serde_json::json;

use super::support::{Agent, Lab, WORLD, WORLD_V6, config, rule, udp, wait_until};

const RELOAD: &str = "/api/v1/config/reload";
const SUCCEEDED: &str = "ebpfsentinel_config_reloads_total{status=\"success\"}";
const FAILED: &str = "ebpfsentinel_config_reloads_total{status=\"failure\"}";

/// A configuration that shuts port 1 always, and these.
fn shutting(ports: &[u16]) -> String {
    let mut rules = vec![rule("always", 1, "deny", "protocol = \"udp\"\ndst_port = 1")];
    rules.extend(
        ports
            .iter()
            .map(|port| rule(&format!("shut-{port}"), 10, "deny", &format!("dst_port = {port}\nprotocol = \"udp\""))),
    );
    config("", "mode = \"block\"", &rules)
}

/// Exactly this one of the ports is shut.
fn only_shut(lab: &Lab, shut: u16) {
    for port in [1000, 1001, 1002, 1003, 1004] {
        assert_eq!(lab.passes(udp(WORLD, port)), port != shut, "{port} when {shut} is shut");
    }
    assert!(!lab.passes(udp(WORLD_V6, shut)));
}

fn wait_for_success(lab: &Lab, agent: &Agent, count: f64, text: &str) {
    agent.says(&format!("{text}: configuration reloaded"));
    wait_until("the reload is counted", || lab.metric(SUCCEEDED) == count);
}

#[test]
fn each_way_leads_to_new_rules_and_counters_go_on() {
    let lab = Lab::new();
    let agent = lab.start(&shutting(&[1000]));
    only_shut(&lab, 1000);
    for _ in 0..3 {
        assert!(!lab.passes(udp(WORLD, 1)));
    }
    assert_eq!(lab.packets("always"), 3);

    lab.write_unseen(&shutting(&[1001]));
    only_shut(&lab, 1000);
    agent.hang_up();
    wait_for_success(&lab, &agent, 1.0, "SIGHUP");
    only_shut(&lab, 1001);

    lab.write_unseen(&shutting(&[1002]));
    let reply = lab.ask(Method::Post, RELOAD, None);
    assert_eq!(reply["status"], "reloaded");
    only_shut(&lab, 1002);
    assert_eq!(lab.metric(SUCCEEDED), 2.0);

    lab.write_config(&shutting(&[1003]));
    wait_for_success(&lab, &agent, 3.0, "the configuration file changed");
    only_shut(&lab, 1003);

    lab.rename_config(&shutting(&[1004]));
    wait_until("the reload is counted", || lab.metric(SUCCEEDED) == 4.0);
    only_shut(&lab, 1004);

    let output = lab.cli(&["config", "reload"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(lab.metric(SUCCEEDED), 5.0);
    assert_eq!(lab.metric(FAILED), 0.0);
    assert!(!lab.passes(udp(WORLD, 1)));
    assert_eq!(lab.packets("always"), 4, "a rule that stayed goes on counting");
    agent.stop();
}

#[test]
fn a_bad_configuration_changes_nothing_and_says_where() {
    let lab = Lab::new();
    let agent = lab.start(&shutting(&[1000]));
    let generation = || lab.metric("ebpfsentinel_rules_loaded{domain=\"firewall\"}");
    let before = (generation(), lab.rule_ids());
    let bad = shutting(&[1001]).replace("dst_port = 1001", "dst_prot = 1001");
    let line = 1 + bad.lines().position(|line| line.contains("dst_prot")).unwrap();
    let mut failures = 0.0;
    for (text, wants) in [
        (bad.as_str(), vec![format!("{line}"), "dst_prot".to_owned(), "dst_port".to_owned()]),
        ("[agent\n", vec!["1".to_owned()]),
        ("", vec!["interfaces".to_owned()]),
        (&shutting(&[1001]).replace("\"always\"", "\"shut-1001\""), vec!["shut-1001".to_owned()]),
    ] {
        lab.write_unseen(text);
        let (status, code, message) = lab.refused(Method::Post, RELOAD, None);
        assert_eq!((status, code.as_str()), (400, "VALIDATION_ERROR"));
        for want in wants {
            assert!(message.contains(&want), "{want:?} is not in {message:?}");
        }
        agent.hang_up();
        failures += 2.0;
        wait_until("the failure is counted", || lab.metric(FAILED) == failures);
        assert_eq!((generation(), lab.rule_ids()), before);
        only_shut(&lab, 1000);
    }
    agent.says("SIGHUP: nothing was changed");
    // By the watched file, too, and when it is gone.
    lab.write_config("[agent\n");
    agent.says("the configuration file changed: nothing was changed");
    std::fs::remove_file(lab.config_path()).unwrap();
    let (status, _, message) = lab.refused(Method::Post, RELOAD, None);
    assert_eq!(status, 400);
    assert!(message.contains(lab.config_path().to_str().unwrap()), "{message}");
    only_shut(&lab, 1000);
    assert_eq!(lab.metric(SUCCEEDED), 0.0);
    agent.stop();
}

#[test]
fn keys_that_need_a_restart_are_refused_with_all_the_rest() {
    let lab = Lab::new();
    let good = shutting(&[1000]);
    let agent = lab.start(&good);
    for (key, section, line) in [
        ("agent.http_port", "[agent]", "http_port = 8081"),
        ("agent.metrics_port", "[agent]", "metrics_port = 9091"),
        ("agent.grpc_port", "[agent]", "grpc_port = 0"),
        ("agent.xdp_mode", "[agent]", "xdp_mode = \"generic\""),
        ("agent.on_exit", "[agent]", "on_exit = \"keep\""),
        ("firewall.enabled", "[firewall]", "enabled = false"),
        ("firewall.stateful", "[firewall]", "stateful = false"),
        ("firewall.max_connections", "[firewall]", "max_connections = 4096"),
        ("firewall.timeouts", "[firewall]", "timeouts = { tcp_opening_secs = 7 }"),
    ] {
        lab.write_unseen(&shutting(&[1001]).replace(section, &format!("{section}\n{line}")));
        let (status, _, message) = lab.refused(Method::Post, RELOAD, None);
        assert_eq!(status, 400, "{message}");
        assert!(message.contains(key) && message.contains("restart"), "{message}");
        assert_eq!(lab.rule_ids(), ["always", "shut-1000"], "{key}");
    }
    only_shut(&lab, 1000);
    lab.write_unseen(&good.replace("\"eth0\"", "\"eth0\", \"eth1\""));
    assert!(lab.refused(Method::Post, RELOAD, None).2.contains("agent.interfaces"));
    agent.stop();
}

#[test]
fn a_rule_of_the_file_does_not_take_the_name_of_an_api_rule() {
    let lab = Lab::new();
    let agent = lab.start(&shutting(&[1000]));
    let body = json!({"id": "shut-1001", "priority": 5, "action": "deny", "protocol": "udp", "dst_port": 1002});
    lab.ask(Method::Post, "/api/v1/firewall/rules", Some(body));
    lab.write_unseen(&shutting(&[1000, 1001]));
    let (status, _, message) = lab.refused(Method::Post, RELOAD, None);
    assert_eq!(status, 409);
    assert!(message.contains("shut-1001"), "{message}");
    assert!(lab.passes(udp(WORLD, 1001)));
    assert!(!lab.passes(udp(WORLD, 1002)));
    lab.ask(Method::Delete, "/api/v1/firewall/rules/shut-1001", None);
    lab.ask(Method::Post, RELOAD, None);
    assert!(!lab.passes(udp(WORLD, 1001)));
    assert!(lab.passes(udp(WORLD, 1002)));
    agent.stop();
}
