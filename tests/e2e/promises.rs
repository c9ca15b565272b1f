//! What was promised by name: routes, commands and metrics. Each is here and answers, moves, or comes with the issue
//! that its row names; a row that is behind the times fails.

use std::process::{Command, Stdio};

use ebpfsentinel::api::Method;
use serde_json::json;

use super::support::{Lab, WORLD, config, rule, udp, wait_until};

/// Where a promise stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    Here,
    /// It comes with this issue.
    With(&'static str),
}
use Now::{Here, With};

const IDS: &str = "ids";
const IPS: &str = "ips";
const INTEL: &str = "threat intelligence";
const DNS: &str = "dns";

const ROUTES: &[(Method, &str, Now)] = &[
    (Method::Get, "/healthz", Here),
    (Method::Get, "/readyz", Here),
    (Method::Get, "/metrics", Here),
    (Method::Get, "/api/v1/agent/status", Here),
    (Method::Get, "/api/v1/firewall/rules", Here),
    (Method::Post, "/api/v1/firewall/rules", Here),
    (Method::Delete, "/api/v1/firewall/rules/made", Here),
    (Method::Get, "/api/v1/firewall/l7-rules", Here),
    (Method::Post, "/api/v1/firewall/l7-rules", Here),
    (Method::Delete, "/api/v1/firewall/l7-rules/made", Here),
    (Method::Get, "/api/v1/ips/rules", With(IPS)),
    (Method::Patch, "/api/v1/ips/rules/made", With(IPS)),
    (Method::Get, "/api/v1/ips/blacklist", With(IPS)),
    (Method::Get, "/api/v1/ratelimit/rules", Here),
    (Method::Post, "/api/v1/ratelimit/rules", Here),
    (Method::Delete, "/api/v1/ratelimit/rules/made", Here),
    (Method::Get, "/api/v1/threatintel/status", With(INTEL)),
    (Method::Get, "/api/v1/threatintel/iocs", With(INTEL)),
    (Method::Get, "/api/v1/threatintel/feeds", With(INTEL)),
    (Method::Get, "/api/v1/alerts", Here),
    (Method::Post, "/api/v1/alerts/made/false-positive", Here),
    (Method::Get, "/api/v1/audit/logs", Here),
    (Method::Get, "/api/v1/audit/rules/made/history", Here),
    (Method::Get, "/api/v1/dns/cache", With(DNS)),
    (Method::Delete, "/api/v1/dns/cache", With(DNS)),
    (Method::Get, "/api/v1/dns/stats", With(DNS)),
    (Method::Get, "/api/v1/dns/blocklist", With(DNS)),
    (Method::Get, "/api/v1/domains/reputation", With(DNS)),
    (Method::Post, "/api/v1/domains/blocklist", With(DNS)),
    (Method::Delete, "/api/v1/domains/blocklist/example.org", With(DNS)),
    (Method::Get, "/api/v1/config", Here),
    (Method::Post, "/api/v1/config/reload", Here),
    (Method::Get, "/api/v1/ebpf/status", Here),
    (Method::Get, "/swagger-ui/", Here),
    (Method::Get, "/api-docs/openapi.json", Here),
];

/// Commands as they are typed; `made` is a rule that the test has made.
const COMMANDS: &[(&str, Now)] = &[
    ("version", Here),
    ("status", Here),
    ("health", Here),
    ("metrics", Here),
    ("firewall list", Here),
    (
        "firewall add --json {\"id\":\"made\",\"priority\":9,\"action\":\"deny\",\"protocol\":\"tcp\",\"dst_port\":23}",
        Here,
    ),
    ("firewall delete made", Here),
    ("l7 list", Here),
    (
        "l7 add --json {\"id\":\"made\",\"priority\":9,\"action\":\"deny\",\"protocol\":\"http\",\"path\":\"/admin\"}",
        Here,
    ),
    ("l7 delete made", Here),
    ("ips list", With(IPS)),
    ("ips blacklist", With(IPS)),
    ("ips set-mode made block", With(IPS)),
    ("ratelimit list", Here),
    ("ratelimit add --json {\"id\":\"rl-global\",\"rate\":1000,\"burst\":2000,\"scope\":\"per_ip\"}", Here),
    ("ratelimit delete rl-global", Here),
    ("threatintel status", With(INTEL)),
    ("threatintel iocs", With(INTEL)),
    ("threatintel feeds", With(INTEL)),
    ("alerts list", Here),
    ("alerts mark-fp 01936d8a-0000-7000-8000-000000000000", Here),
    ("audit logs", Here),
    ("audit history made", Here),
    ("dns cache", With(DNS)),
    ("dns stats", With(DNS)),
    ("dns blocklist", With(DNS)),
    ("dns flush", With(DNS)),
    ("domains reputation", With(DNS)),
    ("domains block example.org", With(DNS)),
    ("domains unblock example.org", With(DNS)),
];

const METRICS: &[(&str, &[&str], Now)] = &[
    ("ebpfsentinel_packets_total", &["interface", "verdict"], Here),
    ("ebpfsentinel_rules_loaded", &["domain"], Here),
    ("ebpfsentinel_alerts_total", &["component", "severity"], Here),
    ("ebpfsentinel_processing_duration_seconds_count", &["domain"], Here),
    ("ebpfsentinel_ebpf_program_status", &["program"], Here),
    ("ebpfsentinel_ips_blacklist_size", &[], With(IPS)),
    ("ebpfsentinel_config_reloads_total", &["status"], Here),
    ("ebpfsentinel_memory_usage_bytes", &[], Here),
    ("ebpfsentinel_cpu_usage_percent", &[], Here),
    ("ebpfsentinel_bytes_processed_total", &["interface", "direction"], Here),
    ("ebpfsentinel_threshold_suppressed_total", &["component", "rule_id"], With(IDS)),
    ("ebpfsentinel_events_sampled_total", &["component"], With(IDS)),
    ("ebpfsentinel_dns_cache_size", &[], With(DNS)),
    ("ebpfsentinel_dns_queries_total", &[], With(DNS)),
    ("ebpfsentinel_dns_blocked_total", &[], With(DNS)),
    ("ebpfsentinel_domain_reputation_tracked", &[], With(DNS)),
    ("process_cpu_seconds_total", &[], Here),
    ("process_resident_memory_bytes", &[], Here),
    ("process_virtual_memory_bytes", &[], Here),
    ("process_start_time_seconds", &[], Here),
    ("process_open_fds", &[], Here),
    ("process_max_fds", &[], Here),
    ("process_threads", &[], Here),
];

fn everything() -> String {
    let shut = rule("shut", 10, "deny", "protocol = \"udp\"\ndst_port = 4001\nlog = true");
    let firewall = config("swagger_ui = true", "mode = \"block\"", &[shut]);
    format!("{firewall}\n[ratelimit]\nenabled = true\n[l7]\nenabled = true\n")
}

#[test]
fn routes_answer() {
    let lab = Lab::new();
    let agent = lab.start(&everything());
    let mut behind = Vec::new();
    for (method, path, now) in ROUTES {
        let body = match path.rsplit('/').next() {
            _ if *method != Method::Post => None,
            Some("rules") if path.contains("ratelimit") => {
                Some(json!({"id": "made", "priority": 9, "rate": 100, "burst": 100}))
            }
            Some("rules") => Some(json!({"id": "made", "priority": 9, "action": "deny"})),
            Some("l7-rules") => {
                Some(json!({"id": "made", "priority": 9, "action": "deny", "protocol": "http", "path": "/admin"}))
            }
            _ => None,
        };
        let answer = lab.send(*method, path, body);
        let absent = matches!(answer.status, 404 | 405) && !answer.body.contains("_NOT_FOUND\"");
        let missing = absent || answer.body.contains("there is nothing at");
        let good = match now {
            Here => !missing && (answer.status < 400 || path.contains("/made/")),
            With(_) => missing,
        };
        if !good {
            behind.push(format!("{method} {path}: {now:?}, and answers {} {}", answer.status, answer.body));
        }
    }
    assert!(behind.is_empty(), "\n{}", behind.join("\n"));
    agent.stop();
}

#[test]
fn commands_do_what_they_say() {
    let lab = Lab::new();
    let agent = lab.start(&everything());
    let mut behind = Vec::new();
    for (line, now) in COMMANDS {
        let words: Vec<&str> = line.split(' ').collect();
        let output = lab.cli(&words);
        // 2 is for a command line that is not understood.
        let good = match now {
            // There is no such alert.
            Here if line.contains("mark-fp") => output.status.code() == Some(1),
            Here => output.status.code() == Some(0),
            With(_) => output.status.code() == Some(2),
        };
        if !good {
            let said = String::from_utf8_lossy(&output.stderr);
            behind.push(format!("{line}: {now:?}, and ends with {} {said}", output.status));
        }
    }
    assert!(behind.is_empty(), "\n{}", behind.join("\n"));
    agent.stop();
}

#[test]
fn metrics_move_and_are_well_formed() {
    let lab = Lab::new();
    let agent = lab.start(&everything());
    assert!(!lab.passes(udp(WORLD, 4001)) && lab.passes(udp(WORLD, 4002)));
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    wait_until("the alert is counted", || {
        lab.send(Method::Get, "/metrics", None).body.contains("ebpfsentinel_alerts_total{component=\"firewall\"")
    });
    let text = lab.send(Method::Get, "/metrics", None).body;
    let mut behind = Vec::new();
    for (name, labels, now) in METRICS {
        let samples = || {
            text.lines().filter_map(|line| {
                let (sample, value) = line.rsplit_once(' ')?;
                let (own, pairs) = sample.split_once('{').unwrap_or((sample, ""));
                let mut names: Vec<&str> =
                    pairs.split("\",").filter_map(|pair| pair.split_once("=\"")).map(|(label, _)| label).collect();
                names.sort_unstable();
                (own == *name).then(|| (names, value.parse::<f64>().unwrap()))
            })
        };
        let mut wanted = labels.to_vec();
        wanted.sort_unstable();
        let labelled = samples().all(|(names, _)| names == wanted);
        let moved = samples().any(|(_, value)| value > 0.0);
        let good = match now {
            Here => labelled && moved,
            With(_) => samples().next().is_none(),
        };
        if !good {
            behind.push(format!("{name}: {now:?}, and has {:?}", samples().collect::<Vec<_>>()));
        }
    }
    assert!(behind.is_empty(), "\n{}", behind.join("\n"));

    // On the port of its own, too, where there is nothing else.
    let get = |url: &str| lab.host.command("curl").unwrap().args(["-s", "-i", url]).output().unwrap().stdout;
    let own = String::from_utf8(get("http://127.0.0.1:9090/metrics?format=text")).unwrap();
    let (head, text) = own.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(String::from_utf8(get("http://127.0.0.1:9090/healthz")).unwrap().starts_with("HTTP/1.1 404"));
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let verdict = promtool.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&verdict.stdout), String::from_utf8_lossy(&verdict.stderr));
    assert!(verdict.status.success() && said.is_empty(), "{said}\n{text}");
    agent.stop();
}
