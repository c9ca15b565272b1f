//! What outlives the agent: alerts of real packets, their marks, and the audit trail.

use ebpfsentinel::api::Method;
use serde_json::{Value, json};

use super::support::{Lab, WORLD, config, rule, udp, wait_for, wait_until};

#[test]
fn alerts_marks_and_the_trail_survive_a_kill_and_a_suppression_holds() {
    let lab = Lab::new();
    let rules = |action: &str| [rule("shut", 20, action, "dst_port = 9")];
    let text = |action: &str| config("", "mode = \"block\"", &rules(action));
    let agent = lab.start(&text("deny"));
    assert!(!lab.passes(udp(WORLD, 9)));
    let alerts = || lab.get("/api/v1/alerts?rule_id=shut")["alerts"].as_array().cloned().unwrap_or_default();
    let alert = wait_for("the alert", || alerts().pop());
    assert_eq!((&alert["component"], &alert["src_ip"]), (&json!("firewall"), &json!(WORLD)));
    let id = alert["id"].as_str().unwrap();
    let wish = json!({"comment": "a test", "suppress": {"minutes": 5}});
    let marked = lab.ask(Method::Post, &format!("/api/v1/alerts/{id}/false-positive"), Some(wish));
    assert_eq!((&marked["marked"], &marked["suppression"]["rule_id"]), (&json!(true), &json!("shut")));
    let web = json!({"id": "web", "priority": 5, "action": "deny", "protocol": "tcp", "dst_port": 80});
    lab.ask(Method::Post, "/api/v1/firewall/rules", Some(web));
    let logs = || lab.get("/api/v1/audit/logs")["entries"].as_array().cloned().unwrap_or_default();
    // The start, the rule and the keys that are in force, and both.
    wait_until("all entries", || logs().len() == 5);
    let first = lab.get("/api/v1/audit/rules/shut/history");
    assert_eq!((&first["total"], &first["entries"][0]["action"]), (&json!(1), &json!("rule_added")));
    agent.kill();

    // Also the agent that comes after hides what was suppressed, and knows what was done.
    let agent = lab.start(&text("deny"));
    wait_until("the start", || logs().len() == 6);
    assert_eq!((&logs()[0]["operation"], &logs()[0]["actor"]), (&json!("agent start"), &json!("agent")));
    assert!(!lab.passes(udp(WORLD, 9)));
    wait_until("the suppression", || lab.get("/api/v1/alerts/suppressions")[0]["hidden"].as_u64() > Some(0));
    let kept = alerts();
    assert_eq!((kept.len(), &kept[0]["id"], &kept[0]["mark"]["comment"]), (1, &alert["id"], &json!("a test")));
    // A reload by the file is in the trail, and in the history of the rule that it changed.
    lab.rename_config(&text("log"));
    let history = wait_for("the history", || {
        let answer = lab.send(Method::Get, "/api/v1/audit/rules/shut/history", None);
        let history = serde_json::from_str::<Value>(&answer.body).unwrap();
        (history["total"] == 2).then_some(history)
    });
    let version = &history["entries"][0];
    assert_eq!((&version["actor"], &version["action"]), (&json!("config_reload"), &json!("rule_updated")));
    let change = version["changes"].as_array().unwrap().iter().find(|change| change["key"] == "action").unwrap();
    assert_eq!((&change["before"], &change["after"]), (&json!("deny"), &json!("log")));
    let verified = lab.cli(&["-o", "json", "audit", "verify"]);
    let found: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!((verified.status.code(), &found["status"]), (Some(0), &json!("intact")));
    assert!(found["entries"].as_u64() >= Some(3), "{found}");
    agent.stop();

    // What is written into the file while no agent runs is another version of the rule, too.
    let agent = lab.start(&text("deny"));
    let newest = wait_for("the third version", || {
        let history = lab.get("/api/v1/audit/rules/shut/history");
        (history["total"] == 3).then(|| history["entries"][0].clone())
    });
    assert_eq!((&newest["operation"], &newest["action"]), (&json!("agent start"), &json!("rule_updated")));
    let change = json!({"key": "action", "before": "log", "after": "deny"});
    assert_eq!((&newest["actor"], &newest["changes"][0]), (&json!("agent"), &change));
    let operations: Vec<_> = logs().into_iter().map(|entry| entry["operation"].clone()).collect();
    assert_eq!(operations[..3], ["agent start", "agent start", "agent stop"]);
    agent.stop();
}
