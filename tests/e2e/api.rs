//! Rules through the port and the command line: what is refused, what stays, what takes itself back.

use ebpfsentinel::api::Method;
use serde_json::{Value, json};

use super::support::{Lab, WORLD, WORLD_V6, config, rule, udp, wait_until};

const RULES: &str = "/api/v1/firewall/rules";

fn shut(id: &str, port: u16) -> Value {
    json!({"id": id, "priority": 5, "action": "deny", "protocol": "udp", "dst_port": port})
}

fn file() -> String {
    config("", "mode = \"block\"", &[rule("of-file", 1, "deny", "protocol = \"udp\"\ndst_port = 1")])
}

fn path(id: &str) -> String {
    format!("{RULES}/{id}")
}

#[test]
fn rules_are_made_shown_changed_and_deleted() {
    let lab = Lab::new();
    let agent = lab.start(&file());
    let made = lab.send(Method::Post, RULES, Some(shut("one", 1001)));
    assert_eq!(made.status, 201, "{}", made.body);
    assert!(!lab.passes(udp(WORLD, 1001)) && !lab.passes(udp(WORLD_V6, 1001)));
    let shown = lab.get(&path("one"));
    assert_eq!((&shown["source"], &shown["dst_port"], &shown["packets"]), (&json!("api"), &json!("1001"), &json!(2)));
    assert!(shown["last_hit"].is_string() && shown["bytes"].as_u64().unwrap() > 80, "{shown}");
    let of_file = lab.get(&path("of-file"));
    assert_eq!((&of_file["source"], &of_file["last_hit"]), (&json!("file"), &Value::Null));

    lab.ask(Method::Put, &path("one"), Some(shut("one", 1002)));
    assert!(lab.passes(udp(WORLD, 1001)));
    assert!(!lab.passes(udp(WORLD, 1002)));
    assert_eq!(lab.packets("one"), 3, "the counters of a changed rule go on");
    let mut allow = shut("above", 1002);
    (allow["action"], allow["priority"]) = (json!("allow"), json!(2));
    lab.ask(Method::Post, RULES, Some(allow));
    assert!(lab.passes(udp(WORLD, 1002)));
    assert_eq!(lab.rule_ids(), ["of-file", "above", "one"]);

    assert_eq!(lab.send(Method::Delete, &path("above"), None).status, 204);
    assert!(!lab.passes(udp(WORLD, 1002)));
    assert_eq!(lab.send(Method::Delete, &path("one"), None).status, 204);
    assert!(lab.passes(udp(WORLD, 1002)));
    assert_eq!(lab.rule_ids(), ["of-file"]);
    agent.stop();
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let lab = Lab::new();
    let agent = lab.start(&file());
    lab.ask(Method::Post, RULES, Some(shut("one", 1001)));
    let with = |key: &str, value: Value| {
        let mut body = shut("two", 1002);
        body[key] = value;
        body
    };
    let before = lab.rule_ids();
    let many = |bodies: &[Value]| Some(Value::Array(bodies.to_vec()));
    for (method, target, body, status, code, word) in [
        (Method::Post, RULES.to_owned(), Some(shut("one", 1002)), 409, "DUPLICATE_RULE", "one"),
        (Method::Post, RULES.to_owned(), Some(shut("of-file", 1002)), 409, "DUPLICATE_RULE", "configuration file"),
        (Method::Put, path("of-file"), Some(shut("of-file", 1002)), 409, "DUPLICATE_RULE", "configuration file"),
        (Method::Delete, path("of-file"), None, 409, "DUPLICATE_RULE", "configuration file"),
        (Method::Get, path("none"), None, 404, "RULE_NOT_FOUND", "none"),
        (Method::Put, path("none"), Some(shut("none", 1002)), 404, "RULE_NOT_FOUND", "none"),
        (Method::Delete, path("none"), None, 404, "RULE_NOT_FOUND", "none"),
        (Method::Put, path("one"), Some(shut("two", 1002)), 400, "VALIDATION_ERROR", "two"),
        (Method::Post, RULES.to_owned(), Some(with("priority", json!(0))), 400, "VALIDATION_ERROR", "priority"),
        (Method::Post, RULES.to_owned(), Some(with("dst_port", json!("9-7"))), 400, "VALIDATION_ERROR", "dst_port"),
        (Method::Post, RULES.to_owned(), Some(with("dst_prot", json!(9))), 400, "VALIDATION_ERROR", "dst_port"),
        (Method::Post, RULES.to_owned(), Some(with("interfaces", json!(["eth7"]))), 400, "VALIDATION_ERROR", "eth7"),
        (Method::Post, RULES.to_owned(), Some(with("src_ip", json!("10.0.0.0/33"))), 400, "VALIDATION_ERROR", "src_ip"),
        (Method::Post, RULES.to_owned(), None, 400, "VALIDATION_ERROR", ""),
        (
            Method::Post,
            RULES.to_owned(),
            many(&[shut("two", 1002), with("action", json!("explode"))]),
            400,
            "VALIDATION_ERROR",
            "action",
        ),
        (
            Method::Post,
            RULES.to_owned(),
            many(&[shut("two", 1002), shut("of-file", 3)]),
            409,
            "DUPLICATE_RULE",
            "of-file",
        ),
        (Method::Post, RULES.to_owned(), many(&[shut("two", 1002), shut("one", 3)]), 409, "DUPLICATE_RULE", "one"),
        (
            Method::Post,
            format!("{RULES}?confirm_secs=0"),
            Some(shut("two", 1002)),
            400,
            "VALIDATION_ERROR",
            "confirm_secs",
        ),
    ] {
        let about = format!("{method} {target} {body:?}");
        let refused = lab.refused(method, &target, body);
        assert_eq!((refused.0, refused.1.as_str()), (status, code), "{about}: {}", refused.2);
        assert!(refused.2.contains(word), "{about}: {}", refused.2);
        assert_eq!(lab.rule_ids(), before, "{about}");
    }
    let twice = lab.refused(Method::Post, RULES, many(&[shut("two", 1002), shut("two", 1003)]));
    assert!(matches!(twice.0, 400 | 409) && twice.2.contains("two"), "{twice:?}");
    assert!(lab.passes(udp(WORLD, 1002)));
    assert!(!lab.passes(udp(WORLD, 1001)));
    agent.stop();
}

#[test]
fn an_array_is_one_step_and_rules_survive() {
    let lab = Lab::new();
    let agent = lab.start(&file());
    let rules: Vec<Value> = (0..300).map(|n| shut(&format!("bulk-{n}"), 2000 + n)).collect();
    lab.ask(Method::Post, RULES, Some(Value::Array(rules)));
    lab.ask(Method::Delete, &path("bulk-7"), None);
    let there = lab.rule_ids();
    assert_eq!(there.len(), 300);
    let holds = |when: &str| {
        assert_eq!(lab.rule_ids(), there, "{when}");
        assert!(!lab.passes(udp(WORLD, 2299)), "{when}");
        assert!(lab.passes(udp(WORLD, 2007)), "{when}");
    };
    holds("at once");
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    holds("after a reload");
    agent.stop();
    let agent = lab.start(&file());
    holds("after a restart");
    agent.kill();
    let agent = lab.start(&file());
    holds("after SIGKILL");
    agent.stop();
    std::fs::write(lab.state_dir().join("firewall-rules.json"), "[{").unwrap();
    let (status, said) = lab.refusal(&lab.config_path(), &lab.state_dir());
    assert!(!status.success() && said.contains("firewall-rules.json"), "{said}");
    assert_eq!(lab.attached(), "");
}

/// A name that nobody gave us may be that of an attacker's page.
#[test]
fn it_answers_to_its_names_only() {
    let lab = Lab::new();
    let agent = lab.start(&config("host_names = [\"proxy.example\"]", "", &[]));
    let ask = |name: &str| {
        let mut curl = lab.host.command("curl").unwrap();
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", &format!("Host: {name}")]);
        String::from_utf8(curl.arg("http://127.0.0.1:8080/healthz").output().unwrap().stdout).unwrap()
    };
    assert_eq!((ask("Proxy.example:443").as_str(), ask("127.0.0.1").as_str()), ("200", "200"));
    assert!(ask("page.example").starts_with('4'), "{}", ask("page.example"));
    agent.stop();
}

/// The command line does what the routes do.
#[test]
fn rules_from_the_command_line() {
    let lab = Lab::new();
    let agent = lab.start(&file());
    let run = |words: &str| lab.cli(&words.split(' ').collect::<Vec<_>>());
    let done = |words: &str| assert!(run(words).status.success(), "{words}: {:?}", run(words));
    done("firewall add --id mine --priority 5 --action deny --protocol udp --dst-port 1001");
    assert!(!lab.passes(udp(WORLD, 1001)) && lab.passes(udp(WORLD, 1002)));
    done("firewall update --id mine --priority 5 --action deny --protocol udp --dst-port 1002");
    assert!(lab.passes(udp(WORLD, 1001)) && !lab.passes(udp(WORLD, 1002)));
    assert_eq!(lab.packets("mine"), 2, "its counters go on");
    for (words, refusal) in [
        ("firewall update --id of-file --priority 5 --action allow", "configuration file"),
        ("firewall update --id nobodys --priority 5 --action allow", "no rule"),
    ] {
        let output = run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(refusal), "{words}: {said}");
    }
    done("firewall delete mine");
    assert!(lab.passes(udp(WORLD, 1002)));
    agent.stop();
}

#[test]
fn a_rule_that_nobody_confirms_goes_by_itself() {
    let lab = Lab::new();
    let agent = lab.start(&file());
    let words = "firewall add --id hasty --priority 5 --action deny --protocol udp --dst-port 1001 --confirm 2";
    let output = lab.cli(&words.split(' ').collect::<Vec<_>>());
    assert!(output.status.success(), "{output:?}");
    assert!(!lab.passes(udp(WORLD, 1001)));
    let pending = lab.get("/api/v1/agent/status")["pending_confirm"].clone();
    assert!(pending["what"].as_str().is_some_and(|what| what.contains("hasty")), "{pending}");
    let (status, _, message) = lab.refused(Method::Post, RULES, Some(shut("other", 1002)));
    assert!(status == 409 && message.contains("hasty"), "{message}");
    wait_until("it is taken back", || lab.passes(udp(WORLD, 1001)));
    assert_eq!(lab.rule_ids(), ["of-file"]);
    agent.says("not confirmed in time, taken back");
    assert_eq!(lab.refused(Method::Post, "/api/v1/config/confirm", None).0, 409);

    // What is confirmed stays, and only then is it on disk.
    lab.ask(Method::Post, &format!("{RULES}?confirm_secs=600"), Some(shut("sure", 1001)));
    let output = lab.cli(&["config", "confirm"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(lab.get("/api/v1/agent/status")["pending_confirm"], Value::Null);
    agent.kill();
    let agent = lab.start(&file());
    assert!(!lab.passes(udp(WORLD, 1001)));
    lab.ask(Method::Delete, &format!("{}?confirm_secs=600", path("sure")), None);
    assert!(lab.passes(udp(WORLD, 1001)));
    agent.kill();
    let agent = lab.start(&file());
    assert!(!lab.passes(udp(WORLD, 1001)), "a restart takes back what was not confirmed");
    agent.stop();
}

#[test]
fn of_changes_at_the_same_time_one_waits_and_none_is_lost() {
    let lab = Lab::new();
    let agent = lab.start(&file());
    for round in 0..3 {
        let status = &|n: u16| {
            let body = shut(&format!("racer-{n}"), 1000 + n);
            lab.send(Method::Post, &format!("{RULES}?confirm_secs=600"), Some(body)).status
        };
        let answers: Vec<u16> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..6).map(|n| scope.spawn(move || status(n))).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert_eq!(answers.iter().filter(|&&status| status == 201).count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|&&status| status == 409).count(), 5, "{answers:?}");
        assert_eq!(lab.rule_ids().len(), 2, "round {round}");
        lab.ask(Method::Post, "/api/v1/config/confirm", None);
        let kept = lab.rule_ids().pop().unwrap();
        lab.ask(Method::Delete, &path(&kept), None);
    }
    let made: Vec<u16> = std::thread::scope(|scope| {
        let lab = &lab;
        let racers: Vec<_> = (0..8u16)
            .map(|n| {
                scope.spawn(move || lab.send(Method::Post, RULES, Some(shut(&format!("many-{n}"), 1000 + n))).status)
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(made, [201; 8]);
    assert_eq!(lab.rule_ids().len(), 9);
    for n in 0..8 {
        assert!(!lab.passes(udp(WORLD, 1000 + n)));
    }
    agent.stop();
}

#[test]
fn a_reload_that_nobody_confirms_is_taken_back() {
    let lab = Lab::new();
    let agent = lab.start(&file());
    let wider = file() + &rule("wider", 5, "deny", "protocol = \"udp\"\ndst_port = 1001");
    lab.write_unseen(&wider);
    let reply = lab.ask(Method::Post, "/api/v1/config/reload?confirm_secs=2", None);
    assert!(reply["pending_confirm"].is_object(), "{reply}");
    assert!(!lab.passes(udp(WORLD, 1001)));
    wait_until("it is taken back", || lab.passes(udp(WORLD, 1001)));
    assert_eq!(lab.rule_ids(), ["of-file"]);
    wait_until("the configuration shown is the old one, too", || {
        !lab.get("/api/v1/config").to_string().contains("wider")
    });

    lab.ask(Method::Post, "/api/v1/config/reload?confirm_secs=600", None);
    lab.ask(Method::Post, "/api/v1/config/confirm", None);
    assert!(!lab.passes(udp(WORLD, 1001)));
    assert_eq!(lab.rule_ids(), ["of-file", "wider"]);
    agent.stop();
}
