//! Changes that wait for their confirmation: beside changes of other engines, and when the agent stops meanwhile.

use ebpfsentinel::api::Method;
use serde_json::{Value, json};

use super::support::{Lab, WORLD, config, rule, udp, wait_until};

const CONFIRM: &str = "/api/v1/config/confirm";
const RELOAD: &str = "/api/v1/config/reload?confirm_secs=600";

/// Where rules of each engine are, and a rule of it.
fn rules_of(engine: usize, id: &str) -> (&'static str, Value) {
    match engine {
        0 => (
            "/api/v1/firewall/rules",
            json!({"id": id, "priority": 5, "action": "deny", "protocol": "udp", "dst_port": 1001}),
        ),
        1 => ("/api/v1/ratelimit/rules", json!({"id": id, "priority": 5, "rate": 1000})),
        _ => (
            "/api/v1/firewall/l7-rules",
            json!({"id": id, "priority": 5, "action": "deny", "protocol": "http", "path": "/x"}),
        ),
    }
}

fn file(agent: &str) -> String {
    format!("{}\n[ratelimit]\nenabled = true\n[l7]\nenabled = true\n", config(agent, "mode = \"block\"", &[]))
}

/// Rules of all engines.
fn ids(lab: &Lab) -> Vec<String> {
    let of = |engine| lab.get(rules_of(engine, "").0).as_array().cloned().unwrap_or_default();
    (0..3).flat_map(of).map(|rule| rule["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn of_changes_of_several_engines_at_the_same_time_one_waits() {
    let lab = Lab::new();
    let agent = lab.start(&file(""));
    for round in 0..4 {
        let status = &|racer: usize| {
            let (path, rule) = rules_of(racer % 3, &format!("racer-{racer}"));
            lab.send(Method::Post, &format!("{path}?confirm_secs=600"), Some(rule)).status
        };
        let answers: Vec<u16> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..6).map(|racer| scope.spawn(move || status(racer))).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let mut sorted = answers.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [201, 409, 409, 409, 409, 409], "round {round}");
        let won = answers.iter().position(|&status| status == 201).unwrap();
        assert_eq!(ids(&lab), [format!("racer-{won}")], "round {round}");
        lab.ask(Method::Post, CONFIRM, None);
        let path = format!("{}/racer-{won}", rules_of(won % 3, "").0);
        lab.ask(Method::Delete, &path, None);
    }
    agent.stop();
}

/// Reloads that may be taken back and changes that are kept, at the same time: each change is either there in the end, or
/// was refused.
#[test]
fn a_change_beside_a_reload_is_refused_or_stays() {
    let lab = Lab::new();
    let agent = lab.start(&file(""));
    for round in 0..4 {
        let status = &|racer: usize| match racer {
            0 => lab.send(Method::Post, &RELOAD.replace("600", "1"), None).status,
            _ => {
                let (path, rule) = rules_of(racer % 3, &format!("round-{round}-{racer}"));
                lab.send(Method::Post, path, Some(rule)).status
            }
        };
        let before = ids(&lab).len();
        let answers: Vec<u16> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..7).map(|racer| scope.spawn(move || status(racer))).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert_eq!(answers[0], 200, "a reload waits for those that go on: {answers:?}");
        assert!(answers[1..].iter().all(|status| [201, 409].contains(status)), "{answers:?}");
        wait_until("the reload is taken back", || lab.get("/api/v1/agent/status")["pending_confirm"].is_null());
        let made = answers[1..].iter().filter(|&&status| status == 201).count();
        assert_eq!(ids(&lab).len(), before + made, "{answers:?}");
    }
    let said = agent.stop();
    assert_eq!(said.matches("config reload: not confirmed in time, taken back").count(), 4, "{said}");
}

/// What the kernel goes on doing without the agent is what somebody could still confirm.
#[test]
fn an_agent_that_stops_takes_back_what_waits() {
    let lab = Lab::new();
    let agent = lab.start(&file("on_exit = \"keep\""));
    let (path, rule_of_api) = rules_of(0, "hasty");
    lab.ask(Method::Post, &format!("{path}?confirm_secs=600"), Some(rule_of_api));
    assert!(!lab.passes(udp(WORLD, 1001)));
    let said = agent.stop();
    assert!(said.contains("rule hasty added: not confirmed before the agent stopped, taken back"), "{said}");
    assert!(!lab.pinned().is_empty() && lab.passes(udp(WORLD, 1001)));

    let agent = lab.start(&file("on_exit = \"keep\""));
    let before = config("on_exit = \"keep\"", "mode = \"block\"", &[]);
    let wider = rule("wider", 5, "deny", "protocol = \"udp\"\ndst_port = 1002");
    lab.write_unseen(&file("on_exit = \"keep\"").replace(&before, &format!("{before}{wider}")));
    lab.ask(Method::Post, RELOAD, None);
    assert!(!lab.passes(udp(WORLD, 1002)));
    let said = agent.stop();
    assert!(said.contains("config reload: not confirmed before the agent stopped, taken back"), "{said}");
    assert!(lab.passes(udp(WORLD, 1002)));
}
