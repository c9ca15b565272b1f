//! The judge against the definition of what it decides, over random rules and transactions; and what a rule's author would
//! try first.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use super::L7;
use super::alerts::Enforcement;
use super::config::{DefaultActions, L7Config};
use super::judge::{DEFAULT_RULE, Decided, Hit, Judge, Judgement, Scratch};
use super::normal::Values;
use super::rule::{Field, Protocol, Rule};
use super::tally::Tally;
use super::view;
use crate::classify::rules::Action;
use crate::flow::{Direction, Flow, State};
use crate::matching::matcher::Form;
use crate::matching::patterns::{self, Pattern, Patterns};
use crate::metrics::Metrics;
use crate::packet::proto::{AppProto, Fact, Stage, Told, ftp, http, quic, smb, smtp, tls};
use crate::ruled::body::{RuleBody, read_rule_json, read_rules_json};
use crate::ruled::store::Store;
use crate::ruled::{ChangeError, RuleOwner};
use crate::written::Document;

fn flow_between(client: &str, server: &str) -> Flow {
    Flow {
        id: 1,
        protocol: 6,
        client: client.parse().unwrap(),
        server: server.parse().unwrap(),
        vlans: [7, 0],
        ifindex: 2,
        direction: Direction::Ingress,
        start_ns: 1,
        last_ns: 5,
        packets: [1, 0],
        bytes: [60, 0],
        arrived: [true, false],
        left: [false, true],
        gap_bytes: [0, 0],
        app_proto: Some(AppProto::Http),
        state: State::Established,
        tcp_flags: [0, 0],
        next_seq: [0, 0],
        is_midstream: false,
        is_answered: true,
        is_finished: false,
        is_tunnelled: false,
        is_blocked: false,
        socket_cookie: 0,
        cgroup_id: 0,
    }
}

fn flow() -> Flow {
    flow_between("10.1.2.3:4000", "192.0.2.1:80")
}

fn told(stage: Stage, fact: Fact) -> Told {
    Told { tx: 0, stage, fact }
}

fn rules(json: &str) -> Vec<Rule> {
    match read_rules_json(json.as_bytes()).unwrap() {
        RuleBody::One(rule) => vec![rule],
        RuleBody::Many(mut rules) => {
            rules.sort_by_key(|rule: &Rule| rule.priority);
            rules
        }
    }
}

fn judge_of(rules: &[Rule], defaults: &DefaultActions) -> Judge {
    Judge::compile(rules, defaults, &mut Tally::default()).unwrap()
}

/// What a judge of these rules says in the end.
fn hit(json: &str, told: &Told) -> Option<Hit> {
    hit_in(json, &flow(), told)
}

fn hit_in(json: &str, flow: &Flow, told: &Told) -> Option<Hit> {
    match judge_of(&rules(json), &DefaultActions::default()).judge(&mut Scratch::default(), flow, told) {
        Judgement::Final(hit) => hit,
        Judgement::Later => panic!("not final: {json} {told:?}"),
    }
}

fn http(method: &str, target: &str) -> http::Exchange {
    http::Exchange { method: method.into(), target: target.into(), ..http::Exchange::default() }
}

fn asked(exchange: http::Exchange) -> Told {
    told(Stage::Asked, Fact::Http(Arc::new(exchange)))
}

/// A rule of one condition, as JSON.
fn one(protocol: &str, action: &str, key: &str, text: &str) -> String {
    serde_json::json!({"id": "r", "priority": 1, "action": action, "protocol": protocol, key: text}).to_string()
}

#[test]
fn the_rule_of_the_manual_works() {
    let json = r#"{"id":"l7-block-admin","priority":10,"action":"deny","protocol":"http","path":"/admin"}"#;
    let found = hit(json, &asked(http("GET", "/admin"))).unwrap();
    assert_eq!((&*found.rule, found.action, found.field.as_deref()), ("l7-block-admin", Action::Deny, Some("path")));
    assert_eq!((&found.matched[..], found.counts.read().hits), (&b"/admin"[..], 1));
    assert!(hit(json, &asked(http("GET", "/"))).is_none());
}

#[test]
fn no_spelling_of_a_path_hides_it() {
    let denied =
        |text: &str, target: &str| hit(&one("http", "deny", "path", text), &asked(http("GET", target))).is_some();
    for target in [
        "/admin",
        "/admin?x=1",
        "/admin#x",
        "/admin/",
        "//admin",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "/%2561dmin",
        "/%u0061dmin",
        "/%uff41dmin",
        "/./admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x/%252e%252e/admin",
        "/x/..%2fadmin",
        "/x/..\\admin",
        "/x/..%5cadmin",
        "\\admin",
        "/admin;jsessionid=1",
        "/x/..;/admin",
        "/x;a=b/../admin",
        "/admin%00.html",
        "/admin%3bx",
        "/%c1%a1dmin",
        "/x%c0%af..%c0%afadmin",
        "/x%e0%80%af..%e0%80%afadmin",
        "/x%f0%80%80%af..%f0%80%80%afadmin",
        "http://host/admin",
        "http://host/x/../admin?y",
        "/../../admin",
    ] {
        assert!(denied("/admin", target), "{target}");
        assert!(denied("/adm?n", target), "{target}");
        assert!(denied("~^/admin$", target), "{target}");
    }
    for target in ["/", "/admins", "/x/admin", "/ADMIN", "/?/admin", "/x?/../admin", "*", "/adm%69", "/adm%zzin"] {
        assert!(!denied("/admin", target), "{target}");
    }
    // As it was sent is a spelling, too.
    assert!(denied("*%2561*", "/%2561dmin") && denied("*/../*", "/x/../admin"));
}

#[test]
fn what_is_allowed_is_so_however_a_server_takes_it() {
    let allowed =
        |text: &str, target: &str| hit(&one("http", "allow", "path", text), &asked(http("GET", target))).is_some();
    for target in ["/public/a", "/public/%61", "/public//a", "/x/../public/a", "/public/a?../../admin", "/public/a;b"] {
        assert!(allowed("/public/*", target), "{target}");
    }
    for target in [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/%252e%252e/admin",
        "/public/..%5cadmin",
        "/public/..;/admin",
        "/public/../admin%00",
    ] {
        assert!(!allowed("/public/*", target), "{target}");
    }
    let exchange = |values: &[&str]| {
        let mut exchange = http("GET", "/");
        values.iter().for_each(|value| exchange.request.push(b"X-Role", value.as_bytes()));
        asked(exchange)
    };
    let rule = |action: &str| {
        format!(r#"{{"id":"r","priority":1,"action":"{action}","protocol":"http","header":{{"x-role":"user"}}}}"#)
    };
    assert!(hit(&rule("allow"), &exchange(&["user"])).is_some());
    assert!(hit(&rule("allow"), &exchange(&["user", "admin"])).is_none(), "a server may take either");
    assert!(hit(&rule("deny"), &exchange(&["user", "admin"])).is_some());
    assert!(hit(&rule("deny"), &exchange(&[" user\t"])).is_some());
    assert!(hit(&rule("deny"), &exchange(&[])).is_none());
}

#[test]
fn case_is_as_servers_take_it() {
    let check = |key: &str, text: &str, exchange: http::Exchange, want: bool| {
        assert_eq!(hit(&one("http", "deny", key, text), &asked(exchange)).is_some(), want, "{key} {text}");
    };
    let host = |name: &str| http::Exchange { host: Some(name.into()), ..http("GET", "/") };
    check("method", "post", http("POST", "/"), true);
    check("method", "POST", http("pOsT", "/"), true);
    check("method", "GET", http("POST", "/"), false);
    check("host", "WWW.example.org", host("www.EXAMPLE.org."), true);
    check("host", "www.example.org.", host("www.example.org"), true);
    check("host", "*.example.org", host("a.b.Example.Org"), true);
    check("host", "*.example.org", host("example.org"), false);
    check("host", "~^WWW\\.", host("www.example.org"), true);
    check("host", "www.example.org", host("www%2eexample.org"), true);
    check("host", "2001:db8::1", host("[2001:DB8::1]"), true);
    let mut two = host("inside");
    two.request.push(b"HOST", b"outside:8080");
    check("host", "outside", two.clone(), true);
    check("host", "inside", two, true);
}

#[test]
fn fields_of_each_protocol() {
    let check = |protocol: &str, key: &str, text: &str, fact: &Fact, want: bool| {
        let found = hit(&one(protocol, "deny", key, text), &told(Stage::Done, fact.clone()));
        assert_eq!(found.is_some(), want, "{protocol} {key} {text}");
    };
    let hello = Arc::new(tls::Handshake {
        sni: Some(b"Bad.Example.".to_vec()),
        client_alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        ja3: Some(("ABCD".to_owned(), "771,1".to_owned())),
        ja4: Some("t13d_x".to_owned()),
        client_version: 0x303,
        ..tls::Handshake::default()
    });
    for fact in [Fact::Tls(hello.clone()), Fact::Quic(Arc::new(quic::Initial { version: 1, handshake: hello }))] {
        check("tls", "sni", "bad.example", &fact, true);
        check("tls", "sni", "*.bad.example", &fact, false);
        check("tls", "alpn", "http/1.1", &fact, true);
        check("tls", "alpn", "H2", &fact, false);
        check("tls", "ja3", "abcd", &fact, true);
        check("tls", "ja4", "T13D_*", &fact, true);
        check("http", "path", "*a*", &fact, false);
    }
    let call = http::Grpc { service: b"a.B".to_vec(), method: b"Get".to_vec(), status: None };
    let fact = Fact::Http(Arc::new(http::Exchange { grpc: Some(call), ..http("POST", "/a.B/Get") }));
    check("grpc", "service", "a.*", &fact, true);
    check("grpc", "method", "Get", &fact, true);
    check("grpc", "method", "POST", &fact, false);
    check("http", "method", "POST", &fact, true);
    let mail = Fact::Smtp(Arc::new(smtp::Exchange {
        command: b"DATA".to_vec(),
        mail_from: Some(b"\"Me\"@One.example.".to_vec()),
        rcpt_to: vec![b"@relay:You@two.example".to_vec(), b"x@three.example".to_vec()],
        ..smtp::Exchange::default()
    }));
    check("smtp", "from", "me@one.example", &mail, true);
    check("smtp", "to", "you@two.example", &mail, true);
    check("smtp", "to", "*@THREE.example", &mail, true);
    check("smtp", "command", "rcpt", &mail, true);
    check("smtp", "command", "VRFY", &mail, false);
    let exchange = |command: &str, argument: &str| {
        let (command, argument) = (command.into(), argument.into());
        Fact::Ftp(Arc::new(ftp::Exchange { command, argument, ..ftp::Exchange::default() }))
    };
    check("ftp", "command", "stor", &exchange("STOR", "a"), true);
    check("ftp", "file", "/etc/*", &exchange("RETR", "/x//../etc/passwd"), true);
    check("ftp", "file", "passwd", &exchange("RETR", "./passwd"), true);
    check("ftp", "file", "*e*", &exchange("USER", "eve"), false);
    let transfer = ftp::Transfer { command: b"RETR".to_vec(), file: b"a.exe".to_vec(), bytes: 1 };
    check("ftp", "file", "*.exe", &Fact::FtpData(Arc::new(transfer)), true);
    let request = Fact::Smb(Arc::new(smb::Exchange {
        command: "SMB2_COMMAND_CREATE",
        dialect: "3.11".to_owned(),
        share: Some("\\\\Server\\C$".to_owned()),
        file: Some("Windows\\.\\x\\..\\NTDS.dit".to_owned()),
        ..smb::Exchange::default()
    }));
    check("smb", "command", "create", &request, true);
    check("smb", "command", "smb2_*", &request, true);
    check("smb", "file", "windows\\ntds.dit", &request, true);
    check("smb", "share", "c$", &request, true);
    check("smb", "share", "\\\\server\\c$", &request, true);
    check("smb", "dialect", "3.11", &request, true);
    check("smb", "dialect", "3*2", &request, false);
    assert!(hit(&one("smb", "allow", "share", "c$"), &told(Stage::Done, request)).is_some());
}

#[test]
fn addresses_and_ports_are_the_flows() {
    let check = |key: &str, text: &str, want: bool| {
        let json =
            serde_json::json!({"id": "r", "priority": 1, "action": "deny", "protocol": "http", key: text}).to_string();
        for (client, server) in [("10.1.2.3:4000", "192.0.2.1:80"), ("[::ffff:10.1.2.3]:4000", "[::ffff:192.0.2.1]:80")]
        {
            let found = hit_in(&json, &flow_between(client, server), &asked(http("GET", "/")));
            assert_eq!(found.is_some(), want, "{key} {text}");
        }
    };
    check("src_ip", "10.0.0.0/8", true);
    check("src_ip", "10.1.2.3", true);
    check("src_ip", "11.0.0.0/8", false);
    check("src_ip", "2001:db8::/32", false);
    check("dst_ip", "192.0.2.0/24", true);
    check("dst_ip", "10.0.0.0/8", false);
    check("dst_port", "80", true);
    check("dst_port", "81-90", false);
    check("src_port", "1-5000", true);
}

#[test]
fn a_rule_that_waits_is_not_passed_by() {
    let judge = |json: &str| judge_of(&rules(json), &DefaultActions::default());
    let by = |judgement: Judgement| match judgement {
        Judgement::Later => "later".to_owned(),
        Judgement::Final(hit) => hit.map_or("none".to_owned(), |hit| hit.rule.to_string()),
    };
    let exchange = |response: Option<&str>| {
        let mut exchange = http("GET", "/x");
        response.iter().for_each(|value| exchange.response.push(b"Content-Type", value.as_bytes()));
        Fact::Http(Arc::new(exchange))
    };
    // The response decides, whatever comes behind it.
    let first = r#"{"id":"html","priority":1,"action":"allow","protocol":"http","content_type":"text/html"}"#;
    let second = r#"{"id":"x","priority":2,"action":"deny","protocol":"http","path":"/x"}"#;
    let both = judge(&format!("[{first},{second}]"));
    let mut scratch = Scratch::default();
    let mut said = |stage, response| by(both.judge(&mut scratch, &flow(), &told(stage, exchange(response))));
    assert_eq!(said(Stage::Asked, None), "later");
    assert_eq!(said(Stage::Done, Some("text/html; charset=utf-8")), "html");
    assert_eq!(said(Stage::Done, Some("image/png")), "x");
    // What wants the same need not be waited for, and what cannot hold any more does not wait.
    let same = judge(&format!("[{},{second}]", first.replace("allow", "deny")));
    assert_eq!(by(same.judge(&mut scratch, &flow(), &told(Stage::Asked, exchange(None)))), "x");
    let posts = judge(&format!("[{},{second}]", first.replace("\"http\",", "\"http\",\"method\":\"POST\",")));
    assert_eq!(by(posts.judge(&mut scratch, &flow(), &told(Stage::Asked, exchange(None)))), "x");

    let mail = |command: &str, rcpt_to: &[&str]| {
        let rcpt_to = rcpt_to.iter().map(|address| address.as_bytes().to_vec()).collect();
        let (command, mail_from) = (command.into(), Some(b"a@b".to_vec()));
        Fact::Smtp(Arc::new(smtp::Exchange { command, mail_from, rcpt_to, ..smtp::Exchange::default() }))
    };
    let judge = judge(
        r#"[{"id":"evil","priority":1,"action":"deny","protocol":"smtp","to":"*@evil"},
            {"id":"mail","priority":2,"action":"allow","protocol":"smtp","command":"~^(mail|rcpt|data)$"}]"#,
    );
    let mut said = |stage, fact| by(judge.judge(&mut scratch, &flow(), &told(stage, fact)));
    assert_eq!(said(Stage::Asked, mail("MAIL", &[])), "later");
    assert_eq!(said(Stage::Asked, mail("RCPT", &["x@good"])), "later");
    assert_eq!(said(Stage::Asked, mail("RCPT", &["x@good", "y@evil"])), "evil");
    assert_eq!(said(Stage::Done, mail("DATA", &["x@good"])), "mail");
}

#[test]
fn defaults_are_of_what_was_asked() {
    let mut defaults = DefaultActions::default();
    defaults.set(Protocol::Ftp, Action::Deny);
    defaults.set(Protocol::Http, Action::Log);
    let judge = judge_of(&rules(&one("ftp", "allow", "command", "user")), &defaults);
    let said = |stage, fact| match judge.judge(&mut Scratch::default(), &flow(), &told(stage, fact)) {
        Judgement::Final(hit) => hit.map(|hit| (hit.rule.to_string(), hit.action)),
        Judgement::Later => panic!("later"),
    };
    let ftp =
        |command: &str| Fact::Ftp(Arc::new(ftp::Exchange { command: command.into(), ..ftp::Exchange::default() }));
    let default = |action| Some((DEFAULT_RULE.to_owned(), action));
    assert_eq!(said(Stage::Done, ftp("")), None, "a greeting is no request");
    assert_eq!(said(Stage::Asked, ftp("USER")), Some(("r".to_owned(), Action::Allow)));
    assert_eq!(said(Stage::Asked, ftp("PASS")), default(Action::Deny));
    assert_eq!(said(Stage::Asked, Fact::Http(Arc::new(http("GET", "/")))), default(Action::Log));
    assert_eq!(said(Stage::Done, Fact::Http(Arc::default())), None, "a response without its request");
    assert_eq!(said(Stage::Asked, Fact::Smb(Arc::default())), None);
}

#[test]
fn a_transaction_is_decided_once() {
    let judge = judge_of(&rules(&one("http", "deny", "path", "/x")), &DefaultActions::default());
    let (mut decided, mut scratch) = (Decided::default(), Scratch::default());
    let mut say = |tx, stage| {
        let told = Told { tx, stage, fact: Fact::Http(Arc::new(http("GET", "/x"))) };
        decided.judge(&judge, &mut scratch, &flow(), &told).is_some()
    };
    assert!(say(3, Stage::Asked) && !say(3, Stage::Asked));
    assert!(say(1, Stage::Asked), "transactions overlap");
    assert!(!say(3, Stage::Done) && !say(1, Stage::Done));
    assert!(say(7, Stage::Done), "it was never asked");
    (10..1000).for_each(|tx| assert!(say(tx, Stage::Asked)));
    assert!(!say(999, Stage::Done) && say(10, Stage::Done), "the oldest are forgotten");
}

#[test]
fn an_alert_says_what_was_done() {
    let told = asked(http::Exchange { host: Some(b"h".to_vec()), ..http("GET", "/x\n") });
    let denied = hit(&one("http", "deny", "path", "/x*"), &told).unwrap();
    let action = |enforcement| denied.alert(&flow(), &told, 9, Some("eth0"), enforcement).unwrap();
    assert_eq!(action(Enforcement::NotWanted).action, "would_block");
    assert_eq!(action(Enforcement::TooLate).action, "too_late");
    assert_eq!(action(Enforcement::Spared).action, "spared");
    assert_eq!(action(Enforcement::Failed).action, "block_failed");
    assert_eq!(denied.counts.read().enforced, 0);
    let alert = action(Enforcement::Blocked);
    assert_eq!((alert.action, denied.counts.read().enforced), ("blocked", 1));
    let json = serde_json::to_value(&alert).unwrap();
    for (key, want) in [
        ("component", "l7"),
        ("rule_id", "r"),
        ("severity", "high"),
        ("src_ip", "10.1.2.3"),
        ("protocol", "tcp"),
        ("interface", "eth0"),
        ("direction", "ingress"),
        ("app_proto", "http"),
        ("http_method", "GET"),
        ("http_host", "h"),
        ("http_url", "/x\\x0a"),
        ("matched_field", "path"),
        ("matched", "/x\\x0a"),
        ("message", "http path \"/x\\x0a\" matches rule r: flow blocked"),
    ] {
        assert_eq!(json[key], want, "{key}");
    }
    assert_eq!((&json["dst_port"], &json["vlan_id"]), (&80.into(), &7.into()));
    assert_eq!(json["community_id"], crate::flow::community_id(&flow()));

    let logged = hit(&one("http", "log", "path", "/x*"), &told).unwrap();
    assert_eq!(logged.alert(&flow(), &told, 9, None, Enforcement::Blocked).unwrap().action, "log");
    assert_eq!(logged.counts.read().enforced, 0, "what is logged is not enforced");
    let allowed = hit(&one("http", "allow", "path", "/x*"), &told).unwrap();
    assert_eq!(allowed.alert(&flow(), &told, 9, None, Enforcement::Blocked), None);
}

#[test]
fn only_what_both_ends_have_finished_is_too_late_to_block() {
    let section =
        "mode = 'block'\n[[rules]]\nid = 'r'\npriority = 5\naction = 'deny'\nprotocol = 'http'\npath = '/x'\n";
    let directory = tempfile::tempdir().unwrap();
    let ruling = engine(directory.path(), section).unwrap().ruling().load_full();
    let told = asked(http("GET", "/x"));
    let hit = Decided::default().judge(&ruling.judge, &mut Scratch::default(), &flow(), &told).unwrap();
    let becomes = |flow: &Flow| ruling.enforce(&hit, flow, || Enforcement::Blocked);
    assert_eq!(becomes(&flow()), Enforcement::Blocked);
    // One FIN or reset, which anybody can forge.
    assert_eq!(becomes(&Flow { state: State::Closed, ..flow() }), Enforcement::Blocked);
    assert_eq!(becomes(&Flow { state: State::Closed, is_finished: true, ..flow() }), Enforcement::TooLate);
    assert_eq!(becomes(&Flow { is_tunnelled: true, ..flow() }), Enforcement::Tunnelled);
}

/// Who was blocked is blocked again only as long as that is wanted.
#[test]
fn a_block_is_renewed_as_long_as_its_rule_denies() {
    let directory = tempfile::tempdir().unwrap();
    let section = "mode = 'block'\ndefault_action = { tls = 'deny' }\n[[rules]]\nid = 'r'\npriority = 5\n\
        action = 'deny'\nprotocol = 'http'\npath = '/x'\n";
    let again = |section: &str, rule: &str, protocol: Protocol| {
        engine(directory.path(), section).unwrap().ruling().load().blocks_again(rule, protocol)
    };
    assert!(again(section, "r", Protocol::Http) && again(section, DEFAULT_RULE, Protocol::Tls));
    assert!(!again(section, "gone", Protocol::Http) && !again(section, DEFAULT_RULE, Protocol::Http));
    assert!(!again(&section.replace("action = 'deny'\n", "action = 'log'\n"), "r", Protocol::Http));
    assert!(!again(&section.replace("id = 'r'\n", "id = 'r'\nenabled = false\n"), "r", Protocol::Http));
    assert!(!again(&section.replace("mode = 'block'", "mode = 'alert'"), "r", Protocol::Http));
}

#[test]
fn a_rule_switched_off_never_matches() {
    let json = r#"{"id":"r","priority":1,"action":"deny","protocol":"http","path":"/x","enabled":false}"#;
    assert!(hit(json, &asked(http("GET", "/x"))).is_none());
}

#[test]
fn ten_thousand_rules_cost_what_one_does() {
    let rule = |n: usize| {
        let path = match n % 4 {
            0 => format!("/exact/{n}"),
            1 => format!("/prefix/{n}/*"),
            2 => format!("*/suffix/{n}"),
            _ => format!("~^/regex/{n}/[a-z]+$"),
        };
        let body = serde_json::json!({"id": format!("r{n}"), "priority": n + 1, "action": "deny", "protocol": "http",
            "method": "GET", "path": path});
        read_rule_json::<Rule>(body.to_string().as_bytes()).unwrap()
    };
    let rules: Vec<Rule> = (0..10_000).map(rule).collect();
    let begun = std::time::Instant::now();
    let judge = judge_of(&rules, &DefaultActions::default());
    let compiled = begun.elapsed();
    let mut scratch = Scratch::default();
    let mut by = |path: &str| match judge.judge(&mut scratch, &flow(), &asked(http("GET", path))) {
        Judgement::Final(hit) => hit.map(|hit| hit.rule.to_string()),
        Judgement::Later => panic!("later"),
    };
    assert_eq!(by("/exact/4000").as_deref(), Some("r4000"));
    assert_eq!(by("/prefix/4001/x").as_deref(), Some("r4001"));
    assert_eq!(by("/a/suffix/4002").as_deref(), Some("r4002"));
    assert_eq!(by("/regex/4003/abc").as_deref(), Some("r4003"));
    assert_eq!(by("/index.html"), None);
    let begun = std::time::Instant::now();
    (0..1000).for_each(|n| assert_eq!(by(&format!("/nothing/{n}")), None));
    let each = begun.elapsed() / 1000;
    // To ask 10,000 rules one after the other takes half a millisecond and more.
    assert!(each.as_micros() < 200, "{each:?} for a transaction, {compiled:?} to compile");
}

/// An engine in a directory of its own, with a file of one rule.
fn engine(directory: &std::path::Path, section: &str) -> anyhow::Result<L7> {
    let document = Document::toml("l7.toml", section.as_bytes()).unwrap();
    let config = document.read(|root| root.table().map(L7Config::read)).into_result().unwrap().unwrap();
    L7::start(super::Start { config, store: Store::new(directory), metrics: Metrics::new() })
}

#[test]
fn the_engine_swaps_keeps_and_counts() {
    let directory = tempfile::tempdir().unwrap();
    let file =
        "mode = 'block'\n[[rules]]\nid = 'file'\npriority = 5\naction = 'deny'\nprotocol = 'http'\npath = '/file'\n";
    let mut l7 = engine(directory.path(), file).unwrap();
    let ruling = l7.ruling();
    let decide = |path: &str| {
        let ruling = ruling.load();
        let told = asked(http("GET", path));
        let hit = Decided::default().judge(&ruling.judge, &mut Scratch::default(), &flow(), &told)?;
        Some((hit.rule.to_string(), ruling.blocks(&hit)))
    };
    let added = |id: &str, path: &str| {
        let body = serde_json::json!({"id": id, "priority": 1, "action": "deny", "protocol": "http", "path": path});
        read_rule_json::<Rule>(body.to_string().as_bytes()).unwrap()
    };
    assert_eq!((decide("/file"), decide("/api")), (Some(("file".to_owned(), true)), None));
    l7.add(vec![added("api", "/api"), added("other", "~^/other")], true).unwrap();
    assert_eq!(decide("/api"), Some(("api".to_owned(), true)));
    l7.update(added("api", "/changed"), true).unwrap();
    assert_eq!((decide("/api"), decide("/changed")), (None, Some(("api".to_owned(), true))));
    let shown = |l7: &L7| -> Vec<(String, u64)> {
        let listed = serde_json::to_value(l7.list(10, 0).unwrap()).unwrap();
        let each = |one: &serde_json::Value| (one["id"].as_str().unwrap().to_owned(), one["hits"].as_u64().unwrap());
        listed.as_array().unwrap().iter().map(each).collect()
    };
    let want = [("api", 2), ("other", 0), ("file", 1)].map(|(id, hits)| (id.to_owned(), hits));
    assert_eq!(shown(&l7), want, "counters outlive a change of their rule");
    assert!(matches!(l7.add(vec![added("file", "/x")], true), Err(ChangeError::Taken(_))));
    assert!(matches!(l7.delete("file", true), Err(ChangeError::Taken(_))));
    assert!(matches!(l7.delete("nobody", true), Err(ChangeError::NotFound(_))));
    let counters = l7.counters();
    let of_api = counters.rules.iter().find(|one| one.rule == "api").unwrap();
    assert_eq!((of_api.action, of_api.matches, of_api.blocked_flows, counters.scan_failures), ("deny", 2, 0, 0));

    // What waits for its confirmation is not saved, and taken back whole.
    let before = l7.snapshot();
    l7.delete("api", false).unwrap();
    assert_eq!(decide("/changed"), None);
    l7.restore(before).unwrap();
    assert_eq!(decide("/changed"), Some(("api".to_owned(), true)));
    drop(l7);

    // Another start finds the rules of the API, and a file that takes one's name hides it.
    let alert = engine(directory.path(), &file.replace("block", "alert").replace("'file'", "'other'")).unwrap();
    let ruling = alert.ruling();
    let told = asked(http("GET", "/changed"));
    let hit = Decided::default().judge(&ruling.load().judge, &mut Scratch::default(), &flow(), &told).unwrap();
    assert!(&*hit.rule == "api" && !ruling.load().blocks(&hit), "mode alert blocks nothing");
    assert_eq!(shown(&alert).iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["api", "other"]);
    let rules_of_file = alert.book().file.to_vec();
    assert!(alert.book().refuse_names_of_added(&rules_of_file).is_ok());
    let mut alert = alert;
    let config = L7Config { rules: vec![added("api", "/y")], ..alert.snapshot().config };
    assert!(alert.replace(config).unwrap_err().to_string().contains("rule api of the configuration file"));
}

#[test]
fn sets_that_stay_are_not_compiled_anew() {
    let rule = |n: usize| {
        let body = serde_json::json!({"id": format!("r{n}"), "priority": 1, "action": "deny", "protocol": "http",
            "path": format!("~^/x{n}/[a-z]+/y{{1,20}}$")});
        read_rule_json::<Rule>(body.to_string().as_bytes()).unwrap()
    };
    let rules: Vec<Rule> = (0..400).map(rule).collect();
    let defaults = DefaultActions::default();
    let time = |earlier: Option<&Judge>, rules: &[Rule]| {
        let begun = std::time::Instant::now();
        let judge = Judge::compile_after(earlier, rules, &defaults, &mut Tally::default()).unwrap();
        (judge, begun.elapsed())
    };
    let (first, fresh) = time(None, &rules);
    let mut more = rules.clone();
    more.insert(0, added_path("/plain"));
    let (second, again) = time(Some(&first), &more);
    assert!(again * 4 < fresh, "{again:?} after {fresh:?}");
    let by = |judge: &Judge, path: &str| match judge.judge(&mut Scratch::default(), &flow(), &asked(http("GET", path)))
    {
        Judgement::Final(hit) => hit.map(|hit| hit.rule.to_string()),
        Judgement::Later => panic!("later"),
    };
    for n in [0, 7, 399] {
        assert_eq!(by(&second, &format!("/x{n}/abc/yyy")), Some(format!("r{n}")));
    }
    assert_eq!(by(&second, "/plain").as_deref(), Some("plain"));
    assert_eq!(by(&second, "/x400/abc/y"), None);
}

fn added_path(path: &str) -> Rule {
    let body = serde_json::json!({"id": "plain", "priority": 1, "action": "deny", "protocol": "http", "path": path});
    read_rule_json::<Rule>(body.to_string().as_bytes()).unwrap()
}

// ---- against the definition ----

/// Whether one condition holds of all that is known in the end, by its definition.
fn holds(rule: &Rule, field: &Field, form: &Form, told: &Told) -> bool {
    let mut values = Values::default();
    match (field, &told.fact) {
        (Field::Header(name), Fact::Http(exchange)) => {
            let same = exchange.request.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name.as_bytes()));
            same.for_each(|(_, value)| values.header(value));
        }
        _ => drop(view::fill(field, told, &mut values)),
    }
    let matches = |bytes: &[u8]| match form {
        Form::Regex(expression, is_caseless) => {
            let alone = Pattern { expression, is_caseless: *is_caseless, id: 0 };
            let mut found = Vec::new();
            let set = Patterns::compile(&[alone]).unwrap();
            set.scan(&mut patterns::Scratch::default(), bytes, &mut found).unwrap();
            !found.is_empty()
        }
        form => form.matches(bytes),
    };
    let any_form = |value: usize| values.forms(value).0.any(matches);
    let all_forms = |value: usize| {
        let (forms, resolved) = values.forms(value);
        resolved != 0 && forms.enumerate().all(|(at, bytes)| resolved & 1 << at == 0 || matches(bytes))
    };
    let mut all = 0..values.len();
    match (rule.action, field.wants_all()) {
        (Action::Deny | Action::Log, _) => all.any(any_form),
        (Action::Allow, false) => all.any(all_forms),
        (Action::Allow, true) => !values.is_empty() && all.all(all_forms),
    }
}

/// The first rule that matches, by asking all of them.
fn by_definition(rules: &[Rule], defaults: &DefaultActions, flow: &Flow, told: &Told) -> Option<(String, Action)> {
    let protocols = view::protocols_of(&told.fact);
    let first = rules.iter().find(|rule| {
        let (client, server) = (flow.client.ip().to_canonical(), flow.server.ip().to_canonical());
        rule.enabled
            && protocols.contains(&rule.protocol)
            && rule.matches.src_ip.is_none_or(|net| net.contains(&client))
            && rule.matches.dst_ip.is_none_or(|net| net.contains(&server))
            && rule.matches.src_port.is_none_or(|ports| ports.contains(flow.client.port()))
            && rule.matches.dst_port.is_none_or(|ports| ports.contains(flow.server.port()))
            && rule.conditions.iter().all(|one| holds(rule, &one.field, one.matcher.form(), told))
    });
    let default = defaults.of(*protocols.last()?);
    first
        .map(|rule| (rule.id.clone(), rule.action))
        .or_else(|| (view::is_asked(told) && default != Action::Allow).then(|| (DEFAULT_RULE.to_owned(), default)))
}

const TEXTS: &[(&str, &str, &[&str])] = &[
    ("http", "method", &["GET", "po*", "~^P"]),
    ("http", "path", &["/admin", "/admin*", "/pub/*", "*.php", "/*a?m*", "~adm.n", "~^/x", "?*"]),
    ("http", "host", &["a.example", "*.example", "~^b"]),
    ("http", "content_type", &["text/html", "*json", "~xml", "text/*"]),
    ("tls", "sni", &["a.example", "*.example", "~b"]),
    ("tls", "alpn", &["h2", "http*"]),
    ("grpc", "service", &["a.B", "a*", "~B$"]),
    ("grpc", "method", &["Get", "*et"]),
    ("smtp", "command", &["MAIL", "ehlo", "~^(rcpt|data)$", "*a*", "vrfy"]),
    ("smtp", "from", &["a@b", "*@b"]),
    ("smtp", "to", &["*@good", "~evil", "x@good"]),
    ("ftp", "command", &["RETR", "st*"]),
    ("ftp", "file", &["/etc/*", "*.exe", "~passwd"]),
    ("smb", "command", &["create", "SMB2_*"]),
    ("smb", "file", &["*.exe", "dir\\*"]),
    ("smb", "dialect", &["3.11", "2*", "~NT"]),
];

fn any_rule() -> impl Strategy<Value = serde_json::Value> {
    let protocol = select(vec!["http", "tls", "grpc", "smtp", "ftp", "smb"]);
    let protocol = protocol.prop_union(select(vec!["http", "smtp"]));
    let condition = (any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let conditions = prop::collection::vec(condition, 0..3);
    let header = prop::option::weighted(0.2, select(vec!["good", "g*", "~o{2}"]));
    let src = prop::option::weighted(0.3, select(vec!["10.0.0.0/8", "10.1.2.3", "10.9.0.0/16", "2001:db8::/32"]));
    let port = prop::option::weighted(0.2, select(vec!["80", "1-79", "443"]));
    let action = select(vec!["allow", "deny", "log"]);
    let rule = (protocol, conditions, header, src, port, action, 1..6u32, prop::bool::weighted(0.9));
    rule.prop_map(|(protocol, conditions, header, src, port, action, priority, enabled)| {
        let mut rule = serde_json::json!({"priority": priority, "action": action, "protocol": protocol,
            "src_ip": src, "dst_port": port, "enabled": enabled});
        let own: Vec<_> = TEXTS.iter().filter(|(of, _, _)| *of == protocol).collect();
        for (key, text) in conditions {
            let (_, key, texts) = key.get(&own);
            rule[*key] = (*text.get(texts)).into();
        }
        if let (Some(text), "http") = (header, protocol) {
            rule["header"] = serde_json::json!({ "X-Test": text });
        }
        rule
    })
}

fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
    prop::collection::vec(any_rule(), 0..14).prop_map(|mut all| {
        (0..).zip(&mut all).for_each(|(n, rule): (usize, _)| rule["id"] = format!("r{n}").into());
        if all.is_empty() { Vec::new() } else { rules(&serde_json::Value::from(all).to_string()) }
    })
}

fn some(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    select(texts).prop_map(|text| text.as_bytes().to_vec())
}

fn any_http() -> impl Strategy<Value = http::Exchange> {
    let targets: &[&str] = &[
        "/admin",
        "/%61dmin",
        "/pub/../admin",
        "/pub/a",
        "/x.php?y",
        "/a/b",
        "http://h/admin",
        "/ADMIN",
        "/%2561dmin",
        "/pub/%252e%252e/admin",
        "/",
        "*",
    ];
    let types: &[&str] = &["text/html", "text/html; charset=x", "application/json", "Text/XML"];
    let heads = prop::collection::vec(some(&["good", "bad", " good ", "food"]), 0..3);
    let grpc = prop::option::of((some(&["a.B", "b"]), some(&["Get", "Put"])));
    (
        some(&["GET", "POST", "get"]),
        some(targets),
        prop::option::of(some(&["a.example", "b.example", "A.EXAMPLE."])),
        heads,
        prop::option::of(some(types)),
        prop::option::of(some(types)),
        grpc,
    )
        .prop_map(|(method, target, host, heads, sent, answered, grpc)| {
            let mut exchange = http::Exchange { method, target, host, ..http::Exchange::default() };
            heads.iter().for_each(|value| exchange.request.push(b"x-tesT", value));
            sent.iter().for_each(|value| exchange.request.push(b"content-type", value));
            answered.iter().for_each(|value| exchange.response.push(b"Content-Type", value));
            exchange.grpc = grpc.map(|(service, method)| http::Grpc { service, method, status: None });
            exchange
        })
}

/// A transaction when it was asked (once or several times), and when it is done.
fn any_transaction() -> impl Strategy<Value = (Vec<Fact>, Fact)> {
    let http = any_http().prop_map(|exchange| {
        let asked = http::Exchange { response: http::Headers::default(), ..exchange.clone() };
        (vec![Fact::Http(Arc::new(asked))], Fact::Http(Arc::new(exchange)))
    });
    let alpn = prop::collection::vec(some(&["h2", "http/1.1"]), 0..3);
    let tls = (prop::option::of(some(&["a.example", "B.example"])), alpn).prop_map(|(sni, client_alpn)| {
        let hello = tls::Handshake { sni, client_alpn, client_version: 0x303, ..tls::Handshake::default() };
        let fact = Fact::Tls(Arc::new(hello));
        (vec![fact.clone()], fact)
    });
    let recipients = prop::collection::vec(some(&["x@good", "y@good", "z@evil"]), 0..4);
    let mail = (some(&["a@b", "c@d"]), recipients).prop_map(|(from, rcpt_to)| {
        let at = |command: &str, recipients: usize| {
            Fact::Smtp(Arc::new(smtp::Exchange {
                command: command.into(),
                mail_from: Some(from.clone()),
                rcpt_to: rcpt_to[..recipients].to_vec(),
                ..smtp::Exchange::default()
            }))
        };
        let mut asked = vec![at("MAIL", 0)];
        asked.extend((1..=rcpt_to.len()).map(|recipients| at("RCPT", recipients)));
        asked.push(at("DATA", rcpt_to.len()));
        (asked, at("DATA", rcpt_to.len()))
    });
    let command = some(&["EHLO", "VRFY", "QUIT"]).prop_map(|command| {
        let fact = Fact::Smtp(Arc::new(smtp::Exchange { command, ..smtp::Exchange::default() }));
        (vec![fact.clone()], fact)
    });
    let ftp = (some(&["RETR", "STOR", "USER"]), some(&["/etc/passwd", "/etc/../x.exe", "a"]));
    let ftp = ftp.prop_map(|(command, argument)| {
        let fact = Fact::Ftp(Arc::new(ftp::Exchange { command, argument, ..ftp::Exchange::default() }));
        (vec![fact.clone()], fact)
    });
    let smb = (select(vec!["SMB2_COMMAND_CREATE", "SMB1_COMMAND_NEGOTIATE_PROTOCOL"]), any::<bool>());
    let smb = (smb, select(vec!["3.11", "2.10", "NT LM 0.12"]), prop::option::of(select(vec!["a.EXE", "dir\\x"])));
    let smb = smb.prop_map(|((command, is_agreed), dialect, file)| {
        let file = file.map(str::to_owned);
        let done = smb::Exchange { command, dialect: dialect.to_owned(), file, ..smb::Exchange::default() };
        let dialect = if is_agreed { done.dialect.clone() } else { String::new() };
        let asked = smb::Exchange { dialect, ..done.clone() };
        (vec![Fact::Smb(Arc::new(asked))], Fact::Smb(Arc::new(done)))
    });
    prop_oneof![3 => http, 1 => tls, 3 => mail, 1 => command, 1 => ftp, 1 => smb]
}

fn any_defaults() -> impl Strategy<Value = DefaultActions> {
    prop::collection::vec(select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Log]), 6).prop_map(
        |actions| {
            let mut defaults = DefaultActions::default();
            Protocol::ALL.into_iter().zip(actions).for_each(|(protocol, action)| defaults.set(protocol, action));
            defaults
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// In the end the first rule that matches has decided; and what is final before is what the end would have been.
    #[test]
    fn the_judge_says_what_the_rules_say(
        rules in any_rules(),
        defaults in any_defaults(),
        transactions in prop::collection::vec(any_transaction(), 1..6),
        client in select(vec!["10.1.2.3:1000", "10.9.9.9:1000", "[2001:db8::1]:1000", "[::ffff:10.1.2.3]:1"]),
        port in select(vec![80, 443, 25]),
    ) {
        let judge = judge_of(&rules, &defaults);
        let server = if client.starts_with('[') { format!("[2001:db8::9]:{port}") } else { format!("192.0.2.1:{port}") };
        let flow = flow_between(client, &server);
        let mut scratch = Scratch::default();
        for (all_asked, done) in transactions {
            let done = told(Stage::Done, done);
            let want = by_definition(&rules, &defaults, &flow, &done);
            let Judgement::Final(hit) = judge.judge(&mut scratch, &flow, &done) else { panic!("done and not final") };
            prop_assert_eq!(hit.map(|hit| (hit.rule.to_string(), hit.action)), want.clone());
            let wanted = want.map(|(_, action)| action);
            for fact in all_asked {
                let asked = told(Stage::Asked, fact);
                match judge.judge(&mut scratch, &flow, &asked) {
                    Judgement::Later => {
                        // Only a rule that asks for what comes later can be waited for.
                        let waits = |field: &Field| matches!(field, Field::ContentType | Field::Dialect | Field::MailTo
                            | Field::MailFrom | Field::SmtpCommand | Field::FtpCommand | Field::FtpFile);
                        prop_assert!(rules.iter().any(|rule| rule.conditions.iter().any(|one| waits(&one.field))));
                    }
                    Judgement::Final(hit) => {
                        let action = hit.map(|hit| hit.action);
                        // Nothing to say is the same as allowed.
                        let pass = |action: Option<Action>| action.filter(|action| *action != Action::Allow);
                        prop_assert_eq!(pass(action), pass(wanted), "{:?}", asked);
                        break;
                    }
                }
            }
        }
    }
}
