//! What the document shows of operations: a request and an answer as they are, and a word for each group of them.
//!
//! The test below holds that every operation of the agent has what it needs here, and tests/openapi.rs that a running
//! agent takes the requests and answers in the shapes that are shown.

use serde_json::Value;

/// What is shown of one operation.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// [`crate::api::Spec::command`].
    command: &'static str,
    /// JSON of a body; empty where none is taken.
    body: &'static str,
    /// JSON of an answer, or of the one item of a list that is answered; empty where there is none, or no JSON.
    reply: &'static str,
}

impl Example {
    /// That of an operation, if there is one.
    pub fn of(command: &str) -> Option<Example> {
        EXAMPLES.iter().copied().find(|example| example.command == command)
    }

    /// A body.
    pub fn body(&self) -> Option<Value> {
        parsed(self.command, self.body)
    }

    /// An answer; a list is written as its one item.
    pub fn reply(&self, is_list: bool) -> Option<Value> {
        let value = parsed(self.command, self.reply)?;
        Some(if is_list && !value.is_array() { Value::Array(vec![value]) } else { value })
    }
}

/// # Panics
/// If the text of an example is no JSON: seen by the first test or start.
fn parsed(command: &str, text: &str) -> Option<Value> {
    let value = || serde_json::from_str(text).unwrap_or_else(|error| panic!("the example of {command}: {error}"));
    (!text.is_empty()).then(value)
}

/// A value for a path parameter of an operation, by its name.
pub fn path_value(path: &str, name: &str) -> &'static str {
    match name {
        "id" if path.starts_with("/api/v1/alerts/") => "01a22ebc-dd29-76f0-9270-8355528429d1",
        "ip" => "192.0.2.1",
        "domain" => "example.org",
        _ => "web",
    }
}

/// What a group of operations is about, by the first word of their commands.
pub fn about(tag: &str) -> &'static str {
    match tag {
        "alerts" => "What the agent has found, and what became of it",
        "audit" => "Who has changed what, and who was refused",
        "auth" => "Who the caller is, and what they may do",
        "config" => "The configuration in force, and its renewal",
        "ebpf" => "The programs in the kernel",
        "explain" => "What would become of a packet, and why",
        "firewall" => "Rules that pass or drop packets by addresses, ports and protocols",
        "flows" => "The conversations that are going on",
        "health" | "ready" | "metrics" => "For those who watch the agent",
        "l7" => "Rules that judge what is said: HTTP, TLS, SMTP, FTP, SMB",
        "openapi" => "This document",
        "ratelimit" => "Limits on what one source may send",
        "status" => "The agent at a glance",
        _ => "",
    }
}

const FIREWALL_RULE: &str = r#"{
  "id": "web", "priority": 100, "action": "allow", "protocol": "tcp", "dst_port": 443, "src_ip": "192.0.2.0/24"
}"#;
const FIREWALL_TEXT: &str = r#"{
  "id": "web", "priority": 100, "action": "allow", "protocol": "tcp", "dst_port": "443", "src_ip": "192.0.2.0/24",
  "enabled": true, "log": false
}"#;
const FIREWALL_VIEW: &str = r#"{
  "id": "web", "priority": 100, "action": "allow", "protocol": "tcp", "dst_port": "443", "src_ip": "192.0.2.0/24",
  "enabled": true, "log": false, "source": "api", "packets": 1234, "bytes": 98765,
  "last_hit": "2026-11-30T22:14:05.123Z"
}"#;
const LIMIT_RULE: &str = r#"{
  "id": "web", "priority": 100, "protocol": "tcp", "dst_port": 443, "rate": 1000, "burst": 2000, "action": "drop"
}"#;
const LIMIT_TEXT: &str = r#"{
  "id": "web", "priority": 100, "protocol": "tcp", "dst_port": "443", "rate": 1000, "burst": 2000, "action": "drop",
  "algorithm": "token_bucket", "scope": "per_ip", "unit": "packets", "ipv6_prefix_len": 64, "enabled": true
}"#;
const LIMIT_VIEW: &str = r#"{
  "id": "web", "priority": 100, "protocol": "tcp", "dst_port": "443", "rate": 1000, "burst": 2000, "action": "drop",
  "algorithm": "token_bucket", "scope": "per_ip", "unit": "packets", "ipv6_prefix_len": 64, "enabled": true,
  "source": "api", "passed": 4711, "passed_bytes": 301504, "over_limit": 17, "over_limit_bytes": 1088
}"#;
const L7_RULE: &str = r#"{
  "id": "web", "priority": 100, "action": "deny", "protocol": "http", "path": "/admin", "severity": "high"
}"#;
const L7_TEXT: &str = r#"{
  "id": "web", "priority": 100, "action": "deny", "protocol": "http", "path": "/admin", "severity": "high",
  "enabled": true
}"#;
const L7_VIEW: &str = r#"{
  "id": "web", "priority": 100, "action": "deny", "protocol": "http", "path": "/admin", "severity": "high",
  "enabled": true, "source": "api", "hits": 3, "enforced": 3, "last_hit": "2026-11-30T22:14:05.123Z"
}"#;

const fn example(command: &'static str, body: &'static str, reply: &'static str) -> Example {
    Example { command, body, reply }
}

const EXAMPLES: &[Example] = &[
    example("health", "", r#"{"status": "ok"}"#),
    example("ready", "", r#"{"status": "ready", "ebpf_loaded": true, "reasons": []}"#),
    example(
        "status",
        "",
        r#"{
  "version": "0.1.0", "uptime_seconds": 86400, "ebpf_loaded": true, "rule_count": 3, "firewall_enabled": true,
  "firewall_mode": "block", "firewall_default_policy": "pass",
  "rules": {"file": 2, "api": 1, "disabled": 0, "ipv4": 3, "ipv6": 1},
  "interfaces": [{"name": "eth0", "ifindex": 2, "attached": true, "xdp_mode": "native", "reason": null}],
  "pending_confirm": null,
  "sandbox": {
    "enabled": true, "capabilities": ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"], "no_new_privs": true,
    "seccomp": "enforced", "landlock": "enforced", "read": ["/etc", "/usr"], "write": ["/var/lib/ebpfsentinel"],
    "missing": [], "failures": []
  },
  "degraded": []
}"#,
    ),
    example(
        "config show",
        "",
        r#"{"agent": {"interfaces": ["eth0"], "http_port": 8080}, "firewall": {"mode": "block", "rules": []}}"#,
    ),
    example(
        "config reload",
        "",
        r#"{"status": "reloaded", "message": "configuration reloaded, 3 rules in the file", "pending_confirm": null}"#,
    ),
    example("config confirm", "", r#"{"status": "confirmed", "message": "config reload"}"#),
    example(
        "ebpf status",
        "",
        r#"{
  "kernel": "6.18.44", "stats_enabled": false, "missing_features": [],
  "programs": [{
    "name": "xdp_firewall", "loaded": true, "state": "active", "reason": null,
    "attached": [{"interface": "eth0", "mode": "native"}],
    "run_count": null, "run_time_ns": null, "ns_per_run": null, "verified_insns": 86176,
    "maps": [{"name": "connections", "type": "lruhash", "max_entries": 131072, "entries": 3, "bytes": 7340032}]
  }]
}"#,
    ),
    example(
        "explain",
        r#"{"protocol": "tcp", "src_ip": "192.0.2.1", "dst_ip": "192.0.2.10", "dst_port": 443}"#,
        r#"{
  "verdict": "pass", "decided_by": "rule", "rule": "web", "state": null, "exception": null, "unparsable": null,
  "interface": "eth0", "generation": 1, "rate_limit": null,
  "text": "The packet passes: rule web matches. No rate limit is meant for it."
}"#,
    ),
    example(
        "flows",
        "",
        r#"[{
  "flow_id": 4194304, "community_id": "1:LQU9qZlK+B5F3KDmev6m5PMibrg=", "client_ip": "192.0.2.1", "client_port": 40000,
  "server_ip": "192.0.2.10", "server_port": 443, "protocol": "tcp", "app_proto": "tls", "state": "established",
  "direction": "ingress", "ifindex": 2, "vlans": [], "start": "2026-11-30T22:14:05.123Z",
  "last": "2026-11-30T22:14:06.456Z", "client_packets": 12, "client_bytes": 1800, "server_packets": 10,
  "server_bytes": 9400, "gap_bytes": 0, "blocked": false
}]"#,
    ),
    example("firewall list", "", FIREWALL_VIEW),
    example("firewall show", "", FIREWALL_VIEW),
    example("firewall add", FIREWALL_RULE, FIREWALL_TEXT),
    example("firewall update", FIREWALL_RULE, FIREWALL_TEXT),
    example("ratelimit list", "", LIMIT_VIEW),
    example("ratelimit show", "", LIMIT_VIEW),
    example("ratelimit add", LIMIT_RULE, LIMIT_TEXT),
    example("ratelimit update", LIMIT_RULE, LIMIT_TEXT),
    example(
        "ratelimit top",
        "",
        r#"[{"rule": "web", "source": "192.0.2.1", "dropped": 4711, "blocked_secs_left": 0}]"#,
    ),
    example(
        "ratelimit buckets",
        "",
        r#"[{
  "rule": "web", "source": "192.0.2.1", "dropped": 17, "blocked_secs_left": 0, "available": 1980,
  "algorithm": "token_bucket", "unit": "packets", "rate": 1000, "burst": 2000
}]"#,
    ),
    example("l7 list", "", L7_VIEW),
    example("l7 show", "", L7_VIEW),
    example("l7 add", L7_RULE, L7_TEXT),
    example("l7 update", L7_RULE, L7_TEXT),
    example(
        "alerts list",
        "",
        r#"{
  "alerts": [{
    "id": "01a22ebc-dd29-76f0-9270-8355528429d1", "timestamp": "2026-11-30T23:14:19.049166274Z",
    "timestamp_ns": 1796080459049166274, "component": "firewall", "severity": "medium", "rule_id": "web",
    "action": "drop", "message": "packet dropped by rule web", "src_ip": "192.0.2.1", "src_port": 40000,
    "dst_ip": "192.0.2.10", "dst_port": 443, "protocol": "tcp", "interface": "eth0", "bytes": 54, "count": 3,
    "first_seen": "2026-11-30T23:14:19.049166274Z", "last_seen": "2026-11-30T23:14:20.5Z", "false_positive": false
  }],
  "total": 1, "total_is_exact": true, "next": null, "limit": 100, "offset": 0
}"#,
    ),
    example(
        "alerts show",
        "",
        r#"{
  "id": "01a22ebc-dd29-76f0-9270-8355528429d1", "timestamp": "2026-11-30T23:14:19.049166274Z",
  "timestamp_ns": 1796080459049166274, "component": "firewall", "severity": "medium", "rule_id": "web",
  "action": "drop", "message": "packet dropped by rule web", "src_ip": "192.0.2.1", "src_port": 40000,
  "dst_ip": "192.0.2.10", "dst_port": 443, "protocol": "tcp", "interface": "eth0", "bytes": 54, "count": 3,
  "first_seen": "2026-11-30T23:14:19.049166274Z", "last_seen": "2026-11-30T23:14:20.5Z", "false_positive": false
}"#,
    ),
    example(
        "alerts mark-fp",
        r#"{"comment": "our own scanner", "suppress": {"minutes": 60}}"#,
        r#"{
  "alert_id": "01a22ebc-dd29-76f0-9270-8355528429d1", "marked": true,
  "suppression": {
    "id": "01a22ebc-e98d-72df-b14e-09614184b1a9", "component": "firewall", "rule_id": "web", "src_ip": "192.0.2.1",
    "comment": "our own scanner", "created_by": "alice", "created_ns": 1796080462221481137, "hidden": 0,
    "until": "2026-12-01T00:14:22.221357096Z", "until_ns": 1796084062221357096
  }
}"#,
    ),
    example(
        "alerts suppressions",
        "",
        r#"{
  "id": "01a22ebc-e98d-72df-b14e-09614184b1a9", "component": "firewall", "rule_id": "web", "src_ip": "192.0.2.1",
  "comment": "our own scanner", "created_by": "alice", "created_ns": 1796080462221481137, "hidden": 17,
  "until": "2026-12-01T00:14:22.221357096Z", "until_ns": 1796084062221357096
}"#,
    ),
    example(
        "audit logs",
        "",
        r#"{
  "entries": [{
    "seq": 1, "timestamp": "2026-11-30T23:14:21.118970323Z", "timestamp_ns": 1796080461118970323, "actor": "alice",
    "role": "operator", "method": "api_key", "address": "192.0.2.7", "operation": "firewall add",
    "action": "rule_added", "component": "firewall", "rule_id": "web", "version": 1, "outcome": 201,
    "after": {"id": "web", "priority": 100, "action": "allow", "protocol": "tcp", "dst_port": "443"},
    "detail": "POST /api/v1/firewall/rules",
    "hash": "31c767bb7eeeb992adfc9c3f946349e6feaabe36274b56f54fd87630ab71241e"
  }],
  "total": 1, "total_is_exact": true, "next": null, "limit": 100, "offset": 0
}"#,
    ),
    example(
        "audit history",
        "",
        r#"{
  "rule_id": "web", "total": 1,
  "entries": [{
    "version": 1, "seq": 1, "timestamp": "2026-11-30T23:14:21.118970323Z", "timestamp_ns": 1796080461118970323,
    "actor": "alice", "operation": "firewall add", "action": "rule_added", "component": "firewall", "before": null,
    "after": {"id": "web", "priority": 100, "action": "allow"},
    "changes": [{"key": "action", "before": null, "after": "allow"}]
  }]
}"#,
    ),
    example(
        "audit verify",
        "",
        r#"{
  "status": "intact", "entries": 2, "first": 1, "last": 2,
  "last_hash": "04fad8657c9843de4cbf6227f6f77b268366289fffff52a8fd914f106e271685", "removed": null,
  "versions": 3, "problems": [], "incidents": []
}"#,
    ),
    example("openapi", "", r#"{"openapi": "3.1.0", "info": {"title": "eBPFsentinel"}, "paths": {}}"#),
];
