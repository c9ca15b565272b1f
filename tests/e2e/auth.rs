//! Who may change what, on the real agent: in each engine that needs the kernel, over reloads, and back again.

use serde_json::{Value, json};

use super::support::{Agent, Lab, WORLD, config, rule, udp, wait_for, wait_until};

const ADMIN: &str = "the-key-of-the-admin";
const OPERATOR: &str = "the-key-of-an-operator";

fn key(name: &str, key: &str, rest: &str) -> String {
    format!("[[auth.api_keys]]\nname = \"{name}\"\nkey = \"{key}\"\n{rest}\n")
}

fn operator() -> String {
    key("op", OPERATOR, "role = \"operator\"\nnamespaces = [\"prod\"]")
}

fn file(keys: &str) -> String {
    let rules = [rule("of-file", 1, "deny", "namespace = \"finance\"\nprotocol = \"udp\"\ndst_port = 1")];
    config("", "mode = \"block\"", &rules) + "[ratelimit]\nenabled = true\n" + keys
}

/// The command line with a key: its exit code, its output as JSON, and what it complains of.
fn cli(lab: &Lab, token: &str, words: &[&str]) -> (i32, Value, String) {
    let output = lab.cli(&[&["--token", token, "-o", "json"], words].concat());
    let shown = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), shown, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn start(lab: &Lab) -> Agent {
    lab.start(&file(&(key("root", ADMIN, "role = \"admin\"") + &operator())))
}

#[test]
fn operators_of_a_namespace_in_the_engines_of_the_kernel() {
    let lab = Lab::new();
    let agent = start(&lab);
    let firewall = ["firewall", "add", "--priority", "5", "--action", "deny", "--protocol", "udp", "--dst-port", "9"];
    let limit = ["ratelimit", "add", "--priority", "5", "--rate", "5"];
    for (engine, add) in [("firewall", &firewall[..]), ("ratelimit", &limit[..])] {
        fn with<'a>(add: &[&'a str], id: &'a str, more: &[&'a str]) -> Vec<&'a str> {
            [add, &["--id", id], more].concat()
        }
        let (code, made, error) = cli(&lab, OPERATOR, &with(add, "mine", &["--namespace", "prod"]));
        assert!(code == 0 && made["namespace"] == "prod", "{engine}: {made} {error}");
        for other in [&["--namespace", "finance"][..], &[]] {
            let (code, _, error) = cli(&lab, OPERATOR, &with(add, "theirs", other));
            assert!(code == 1 && error.contains("NAMESPACE_FORBIDDEN"), "{engine}: {error}");
        }
        assert_eq!(cli(&lab, ADMIN, &with(add, "theirs", &["--namespace", "finance"])).0, 0, "{engine}");
        let (code, _, error) = cli(&lab, OPERATOR, &[engine, "delete", "theirs"]);
        assert!(code == 1 && error.contains("NAMESPACE_FORBIDDEN"), "{engine}: {error}");
        let (code, shown, _) = cli(&lab, OPERATOR, &[engine, "show", "theirs"]);
        assert!(code == 0 && shown["namespace"] == "finance", "{engine}: {shown}");
        assert_eq!(cli(&lab, OPERATOR, &[engine, "delete", "mine"]).0, 0, "{engine}");
    }
    let (code, _, error) = cli(&lab, OPERATOR, &["firewall", "delete", "of-file"]);
    assert!(code == 1 && error.contains("NAMESPACE_FORBIDDEN"), "{error}");
    let (code, _, error) = cli(&lab, OPERATOR, &["config", "reload"]);
    assert!(code == 1 && error.contains("INSUFFICIENT_ROLE"), "{error}");
    let unasked = lab.cli(&["--port", "8080", "status"]);
    assert!(unasked.status.code() == Some(1), "{}", String::from_utf8_lossy(&unasked.stderr));
    // What is saved comes back with its namespace.
    agent.stop();
    let agent = start(&lab);
    let (_, shown, _) = cli(&lab, ADMIN, &["firewall", "show", "theirs"]);
    assert_eq!((&shown["namespace"], &shown["source"]), (&json!("finance"), &json!("api")));
    assert_eq!(lab.metric("ebpfsentinel_auth_failures_total{reason=\"namespace\"}"), 0.0);
    agent.stop();
}

#[test]
fn a_reload_changes_who_is_let_in_and_can_be_taken_back() {
    let lab = Lab::new();
    let agent = start(&lab);
    assert_eq!(cli(&lab, OPERATOR, &["status"]).0, 0);
    let root = key("root", ADMIN, "role = \"admin\"");
    lab.write_unseen(&file(&root));
    assert_eq!(cli(&lab, ADMIN, &["config", "reload"]).0, 0);
    let (code, _, error) = cli(&lab, OPERATOR, &["status"]);
    assert!(code == 1 && error.contains("AUTHENTICATION_REQUIRED"), "{error}");
    // Nobody is left who could confirm this one.
    lab.write_unseen(&file(&operator()));
    assert_eq!(cli(&lab, ADMIN, &["config", "reload", "--confirm", "1"]).0, 0);
    wait_until("it is taken back", || cli(&lab, ADMIN, &["status"]).0 == 0);
    assert_eq!(cli(&lab, OPERATOR, &["status"]).0, 1);
    let (_, shown, _) = cli(&lab, ADMIN, &["config", "show"]);
    assert_eq!(
        shown["auth"]["api_keys"],
        json!([{"name": "root", "key_hash": "***", "role": "admin", "namespaces": []}])
    );
    // A configuration that is wrong changes nothing.
    lab.write_unseen(&file(&key("root", "short", "")));
    assert_eq!(cli(&lab, ADMIN, &["config", "reload"]).0, 1);
    assert_eq!(cli(&lab, ADMIN, &["status"]).0, 0);
    agent.stop();
}

#[test]
fn operators_mark_the_alerts_of_their_rules() {
    let lab = Lab::new();
    let deny = |id: &str, port: u16, more: &str| {
        rule(id, port.into(), "deny", &format!("{more}protocol = \"udp\"\ndst_port = {port}"))
    };
    let rules =
        [deny("ours", 1, "namespace = \"prod\"\n"), deny("theirs", 2, "namespace = \"finance\"\n"), deny("any", 3, "")];
    let agent =
        lab.start(&(config("", "mode = \"block\"", &rules) + &key("root", ADMIN, "role = \"admin\"") + &operator()));
    for (port, id, may) in [(1, "ours", true), (2, "theirs", false), (3, "any", false)] {
        assert!(!lab.passes(udp(WORLD, port)));
        let alert = wait_for("the alert", || {
            let (_, found, _) = cli(&lab, ADMIN, &["alerts", "list", "--rule", id]);
            found["alerts"][0]["id"].as_str().map(str::to_owned)
        });
        for word in ["mark-fp", "unmark-fp"] {
            assert_eq!(cli(&lab, ADMIN, &["alerts", word, &alert]).0, 0, "{id}");
            let (code, _, error) = cli(&lab, OPERATOR, &["alerts", word, &alert]);
            let forbidden = error.contains("NAMESPACE_FORBIDDEN");
            assert_eq!((code, forbidden), if may { (0, false) } else { (1, true) }, "{word} {id}: {error}");
        }
    }
    agent.stop();
}
