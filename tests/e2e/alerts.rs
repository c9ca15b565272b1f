//! Alerts from packets on a wire to the log: repeats are one alert, routes hear what they ask for, what is withheld is
//! counted and summed up, and a reload changes all of it or nothing.

use std::net::{TcpListener, UdpSocket};

use ebpfsentinel::api::Method;
use ebpfsentinel::packet::build::Packet;
use serde_json::json;

use super::support::{Agent, HOST, Lab, OTHER, WORLD, config, rule, udp, wait_for, wait_until};

const RELOAD: &str = "/api/v1/config/reload";

/// One alert in the log.
#[derive(Debug)]
struct Line(String);

impl Line {
    /// The value of a field that has no spaces in it; empty where there is none.
    fn get(&self, key: &str) -> &str {
        let start = format!("{key}=");
        self.0.split(' ').find_map(|word| word.strip_prefix(start.as_str())).unwrap_or_default()
    }

    fn number(&self, key: &str) -> u64 {
        self.get(key).parse().unwrap_or(0)
    }
}

/// The alerts of a rule that an agent has told, in order.
fn told(said: &str, rule: &str) -> Vec<Line> {
    let lines = said.lines().map(|line| Line(line.to_owned()));
    lines.filter(|line| !line.get("alert_id").is_empty() && line.get("rule_id") == rule).collect()
}

fn wait_for_told(agent: &Agent, rule: &str, what: &str, is_it: impl Fn(&[Line]) -> bool) -> Vec<Line> {
    wait_for(what, || Some(told(&agent.said(), rule)).filter(|lines| is_it(lines)))
}

/// Denies and records datagrams to these ports.
fn shut(id: &str, ports: &str, more: &str) -> String {
    rule(id, 10, "deny", &format!("protocol = \"udp\"\ndst_port = \"{ports}\"\nlog = true\n{more}"))
}

fn alerting(rules: &[String], section: &str) -> String {
    format!("{}\n[alerting]\n{section}\n", config("", "mode = \"block\"", rules))
}

fn route(name: &str, more: &str) -> String {
    format!("[[alerting.routes]]\nname = \"{name}\"\ndestination = \"log\"\n{more}\n")
}

/// Datagrams that differ in nothing that an alert is known by, none of which arrives.
fn send_alike(lab: &Lab, from: &str, port: u16, count: u8) {
    let frames: Vec<_> = (0..count).map(|n| lab.addressed(udp(from, port).ttl(100 + n)).build()).collect();
    assert!(lab.arrive(&frames).iter().all(|arrived| !arrived));
}

fn send_to_ports(lab: &Lab, from: &str, ports: std::ops::Range<u16>) {
    let frames: Vec<_> = ports.map(|port| lab.addressed(udp(from, port)).build()).collect();
    assert!(lab.arrive(&frames).iter().all(|arrived| !arrived));
}

fn dropped(lab: &Lab, reason: &str) -> f64 {
    lab.metric(&format!("ebpfsentinel_alerts_dropped_total{{reason=\"{reason}\"}}"))
}

fn told_by(lab: &Lab, route: &str) -> f64 {
    lab.metric(&format!("ebpfsentinel_alerts_told_total{{route=\"{route}\"}}"))
}

#[test]
fn repeats_are_one_alert_with_a_count() {
    let lab = Lab::new();
    let rules = [shut("shut", "1000-1001", "mitre = [\"T1110\", \"T1021.004\"]")];
    let agent = lab.start(&alerting(&rules, "dedup_window_secs = 1"));
    send_alike(&lab, WORLD, 1000, 30);
    send_alike(&lab, WORLD, 1001, 1);
    send_alike(&lab, OTHER, 1000, 1);
    let lines = wait_for_told(&agent, "shut", "all are told", |lines| {
        lines.iter().any(|line| line.number("count") == 30) && lines.len() >= 4
    });
    let of_many: Vec<&Line> =
        lines.iter().filter(|line| line.get("src_ip") == WORLD && line.get("dst_port") == "1000").collect();
    let id = of_many[0].get("alert_id");
    let began = of_many[0].get("first_seen");
    assert_eq!((of_many[0].number("revision"), of_many[0].get("mitre")), (0, "T1110,T1021.004"));
    for (revision, pair) in (1..).zip(of_many.windows(2)) {
        let (before, update) = (pair[0], pair[1]);
        assert_eq!((update.get("alert_id"), update.get("first_seen")), (id, began));
        assert_eq!(update.number("revision"), revision);
        assert!(update.number("count") > before.number("count"), "{lines:?}");
        assert!(update.get("last_seen") >= before.get("last_seen"));
    }
    let others: Vec<_> = lines.iter().filter(|line| line.get("alert_id") != id).collect();
    assert_eq!(others.len(), 2, "{lines:?}");
    assert!(others.iter().all(|line| line.number("count") == 1));
    wait_until("what was folded is counted", || dropped(&lab, "dedup") == 30.0 - of_many[0].number("count") as f64);
    assert_eq!(told_by(&lab, "default-log"), lines.len() as f64);
    agent.stop();
}

#[test]
fn routes_hear_what_they_ask_for_and_a_reload_changes_them() {
    let lab = Lab::new();
    let rules = [shut("ssh-guess", "1000", "mitre = [\"T1110.001\"]"), shut("web", "2000-2099", "")];
    let text = |second: &str| alerting(&rules, &format!("{}{}", route("all", ""), route("some", second)));
    let agent = lab.start(&text("mitre = [\"T1110\"]"));
    send_alike(&lab, WORLD, 1000, 1);
    send_alike(&lab, WORLD, 2000, 1);
    wait_until("both are told", || told_by(&lab, "all") == 2.0);
    assert_eq!(told_by(&lab, "some"), 1.0);
    wait_for_told(&agent, "ssh-guess", "both routes tell", |lines| lines.len() == 2);
    wait_for_told(&agent, "web", "one route tells", |lines| lines.len() == 1);

    lab.write_unseen(&text("rule_ids = [\"w*\"]\nmin_severity = \"medium\""));
    lab.ask(Method::Post, RELOAD, None);
    send_alike(&lab, WORLD, 2001, 1);
    wait_until("it is told", || told_by(&lab, "all") == 3.0);
    assert_eq!(told_by(&lab, "some"), 2.0);
    // What cannot be is refused, and nothing changes.
    lab.write_unseen(&text("min_severity = \"urgent\""));
    let (status, _, message) = lab.refused(Method::Post, RELOAD, None);
    assert!(status == 400 && message.contains("alerting.routes[1].min_severity"), "{message}");
    send_alike(&lab, WORLD, 2002, 1);
    wait_until("it is told", || told_by(&lab, "some") == 3.0);

    // What nobody confirms is taken back, routes and limits.
    lab.write_unseen(&alerting(&rules, "enabled = false"));
    lab.ask(Method::Post, &format!("{RELOAD}?confirm_secs=2"), None);
    assert_eq!(lab.get("/api/v1/config")["alerting"]["enabled"], false);
    send_alike(&lab, WORLD, 2003, 1);
    wait_until("it is counted", || dropped(&lab, "disabled") == 1.0);
    agent.says("not confirmed in time, taken back");
    let shown = lab.get("/api/v1/config")["alerting"].clone();
    assert_eq!((&shown["enabled"], &shown["routes"][1]["rule_ids"]), (&json!(true), &json!(["w*"])));
    send_alike(&lab, WORLD, 2004, 1);
    wait_until("it is told", || told_by(&lab, "some") == 4.0);

    lab.write_unseen(&alerting(&rules, "routes = []"));
    lab.ask(Method::Post, RELOAD, None);
    send_alike(&lab, WORLD, 2005, 1);
    wait_until("nobody wants it", || dropped(&lab, "no_route") == 1.0);
    let handed = told_by(&lab, "all") + told_by(&lab, "some");
    let said = agent.stop();
    assert_eq!((told(&said, "ssh-guess").len() + told(&said, "web").len()) as f64, handed);
    assert!(!said.contains("dst_port=2005"), "nobody asked for it");
}

#[test]
fn what_is_withheld_is_counted_and_summed_up() {
    let lab = Lab::new();
    let rules = [shut("scan", "1000-1999", "")];
    let agent = lab.start(&alerting(&rules, "throttle_max = 3"));
    send_to_ports(&lab, WORLD, 1000..1010);
    send_to_ports(&lab, OTHER, 1000..1001);
    wait_until("the others are withheld", || dropped(&lab, "throttle") == 7.0);
    wait_until("each source is told of", || told_by(&lab, "default-log") == 4.0);
    let lines = told(&agent.stop(), "scan");
    let summary = lines.last().unwrap();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert_eq!((summary.get("action"), summary.number("count"), summary.get("src_ip")), ("withheld", 7, WORLD));
    assert!(summary.0.contains("7 more events of scan from 192.0.2.1, beyond alerting.throttle_max"), "{summary:?}");

    let agent = lab.start(&alerting(&rules, "throttle_max = 1000\nmax_alerts_per_second = 4"));
    send_to_ports(&lab, WORLD, 1000..1200);
    wait_until("all are told or withheld", || dropped(&lab, "ceiling") + told_by(&lab, "default-log") == 200.0);
    let withheld = dropped(&lab, "ceiling");
    assert!(withheld >= 100.0, "{withheld} of 200, and 3 a second are told");
    let lines = told(&agent.stop(), "scan");
    let summary = lines.last().unwrap();
    assert_eq!((summary.get("action"), summary.number("count") as f64), ("withheld", withheld));
    assert!(summary.0.contains("beyond alerting.max_alerts_per_second"), "{summary:?}");
}

#[test]
fn a_rule_of_the_api_keeps_its_techniques() {
    let lab = Lab::new();
    let text = alerting(&[], "");
    let agent = lab.start(&text);
    let words = "firewall add --id mine --priority 5 --action deny --protocol udp --dst-port 1000 --log \
                 --mitre T1110,T1190.001";
    let output = lab.cli(&words.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(lab.get("/api/v1/firewall/rules/mine")["mitre"], json!(["T1110", "T1190.001"]));
    let bad = json!({"id": "bad", "priority": 5, "action": "deny", "mitre": ["T1"]});
    let (status, _, message) = lab.refused(Method::Post, "/api/v1/firewall/rules", Some(bad));
    assert!(status == 400 && message.contains("mitre[0]: \"T1\" is not a technique"), "{message}");
    let limit = json!({"id": "few", "priority": 1, "rate": 1, "mitre": ["T1498"]});
    assert_eq!(lab.refused(Method::Post, "/api/v1/ratelimit/rules", Some(limit)).0, 503);
    agent.stop();

    let agent = lab.start(&text);
    send_alike(&lab, WORLD, 1000, 1);
    let lines = wait_for_told(&agent, "mine", "it is told", |lines| !lines.is_empty());
    assert_eq!(lines[0].get("mitre"), "T1110,T1190.001");
    agent.stop();
}

#[test]
fn an_alert_about_a_packet_names_the_process_that_has_the_socket() {
    let lab = Lab::new();
    let rules = [rule("see", 10, "log", "protocol = \"udp\"\ndst_port = 1000")];
    let agent = lab.start(&alerting(&rules, ""));
    let socket = lab.host.run(|| UdpSocket::bind((HOST, 1000))).unwrap().unwrap();
    socket.connect((WORLD, 4000)).unwrap();
    let packet: Packet = udp(WORLD, 1000);
    assert!(lab.passes(packet));
    let lines = wait_for_told(&agent, "see", "it is told", |lines| !lines.is_empty());
    assert_eq!(lines[0].number("pid"), u64::from(std::process::id()), "{lines:?}");
    agent.stop();
}

/// The first packet of TCP comes before the connection, and a server of UDP is connected to nobody.
#[test]
fn an_alert_about_a_first_packet_names_the_process_that_waits_for_it() {
    let lab = Lab::new();
    let rules = [("tcp", 10), ("udp", 11)].map(|(protocol, priority)| {
        rule(protocol, priority, "log", &format!("protocol = \"{protocol}\"\ndst_port = \"1000-1001\""))
    });
    let agent = lab.start(&alerting(&rules, ""));
    let _server = lab.host.run(|| UdpSocket::bind(("0.0.0.0", 1000))).unwrap().unwrap();
    let _listener = lab.host.run(|| TcpListener::bind((HOST, 1000))).unwrap().unwrap();
    let nobody = || lab.metric("ebpfsentinel_alert_process_searches_total{result=\"nobody\"}");
    assert!(lab.passes(udp(WORLD, 1000)) && lab.passes(Packet::new().between(WORLD, HOST).tcp(4000, 1000)));
    for protocol in ["tcp", "udp"] {
        let lines = wait_for_told(&agent, protocol, "it is told", |lines| !lines.is_empty());
        assert_eq!(lines[0].number("pid"), u64::from(std::process::id()), "{lines:?}");
    }
    assert_eq!(nobody(), 0.0);
    // Nobody waits at the next port.
    assert!(lab.passes(udp(WORLD, 1001)));
    let lines = wait_for_told(&agent, "udp", "both are told", |lines| lines.len() == 2);
    assert_eq!((lines[1].get("pid"), nobody()), ("", 1.0), "{lines:?}");
    agent.stop();
}
