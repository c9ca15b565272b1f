//! The control port from outside: real sockets, real curl, misbehaving clients.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ebpfsentinel::api::{self, ApiError, Method, Operation, Reply, Request, Spec};
use ebpfsentinel::audit::{self, Auditor, Entry};
use ebpfsentinel::confirm::Confirmations;
use ebpfsentinel::control::agent::{self, *};
use ebpfsentinel::control::{Control, ControlConfig, openapi};
use ebpfsentinel::engines::l7::config::L7Config;
use ebpfsentinel::engines::l7::{self, L7};
use ebpfsentinel::engines::{firewall, ratelimit};
use ebpfsentinel::inspection;
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::ruled::store::Store;
use ebpfsentinel::store;
use ebpfsentinel::supervise::Supervisor;
use ebpfsentinel::system::harden::SandboxStatus;
use ebpfsentinel::written::Document;
use http::{BIG_BYTES, PATIENCE, connect, spec, status};
use serde_json::{Value, json};

#[path = "support/http.rs"]
pub mod http;

struct Agent;

impl AgentControl for Agent {
    fn readiness(&self) -> Readiness {
        Readiness { ebpf_loaded: false, reasons: vec!["xdp_firewall is not attached to eth0".to_owned()] }
    }

    fn status(&self) -> AgentStatus {
        AgentStatus {
            version: "1.2.3".to_owned(),
            uptime_seconds: 7,
            ebpf_loaded: true,
            rule_count: 3,
            firewall_enabled: true,
            firewall_mode: "block".to_owned(),
            firewall_default_policy: "pass".to_owned(),
            rules: FirewallRuleCounts { file: 2, api: 1, disabled: 0, ipv4: 3, ipv6: 1 },
            grpc_address: None,
            interfaces: Vec::new(),
            pending_confirm: None,
            sandbox: SandboxStatus {
                enabled: false,
                capabilities: Vec::new(),
                no_new_privs: false,
                seccomp: "off".to_owned(),
                landlock: "off".to_owned(),
                read: Vec::new(),
                write: Vec::new(),
                missing: Vec::new(),
                failures: Vec::new(),
            },
            degraded: Vec::new(),
        }
    }

    fn config(&self) -> Value {
        json!({"agent": {"interfaces": ["eth0"]}})
    }

    fn reload(&self, confirm_secs: Option<u32>) -> Result<Reloaded, ApiError> {
        Ok(Reloaded {
            status: "reloaded".to_owned(),
            message: format!("{confirm_secs:?}"),
            pending_confirm: None,
            notes: Vec::new(),
        })
    }

    fn confirm(&self, _by: Option<&str>) -> Result<Confirmed, ApiError> {
        Err(ApiError::conflict("nothing waits for a confirmation"))
    }

    fn ebpf_status(&self) -> EbpfStatus {
        EbpfStatus { kernel: "6.18".to_owned(), stats_enabled: false, missing_features: vec![], programs: vec![] }
    }
}

/// Remembers what it is told.
#[derive(Default)]
struct Heard(Mutex<Vec<Entry>>);

impl Auditor for Heard {
    fn record(&self, entry: Entry) {
        self.0.lock().unwrap().push(entry);
    }
}

/// Operation, status, action, rule, and its path before and after.
fn told_of(entry: &Entry) -> String {
    let path = |value: &Option<Value>| {
        value.as_ref().map_or_else(|| "-".to_owned(), |value| value["path"].as_str().unwrap_or_default().to_owned())
    };
    let rule = entry.rule.as_deref().unwrap_or("-");
    let (before, after) = (path(&entry.before), path(&entry.after));
    format!("{} {} {} {rule} {before} {after}", entry.operation, entry.outcome, entry.action().name())
}

const fn with_body(spec: Spec, body: fn() -> Value) -> Spec {
    let Spec { command, method, path, query, role, summary, reply, success, .. } = spec;
    Spec { command, method, path, query, role, summary, body: Some(body), reply, success }
}

static PEER: Spec = spec("peer", Method::Get, "/peer");
static BIG: Spec = spec("big", Method::Get, "/big");
static PANIC: Spec = spec("panic", Method::Get, "/panic");
static HOLD: Spec = spec("hold", Method::Get, "/hold");
static ECHO: Spec = with_body(spec("echo", Method::Post, "/echo/{id}"), api::schema::<Vec<u32>>);
static LENGTH: Spec = with_body(spec("length", Method::Post, "/length"), api::schema::<String>);

/// Operations that wait until they are let go.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let open = self.open.lock().unwrap();
        let _ = self.changed.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap();
    }
}

struct Port {
    control: Control,
    rest: SocketAddr,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    directory: tempfile::TempDir,
}

fn start(change: impl FnOnce(&mut ControlConfig)) -> Port {
    let directory = tempfile::tempdir().unwrap();
    let mut config = ControlConfig::new("127.0.0.1:0".parse().unwrap(), directory.path().join("run"));
    config.metrics = Some(SocketAddr::from(([127, 0, 0, 1], 0)).into());
    change(&mut config);
    let metrics = Metrics::new();
    let gate = Arc::new(Gate::default());
    let held = Arc::clone(&gate);
    let mut operations = agent::operations(Arc::new(Agent), Arc::clone(&metrics));
    operations.extend([
        Operation::new(&PEER, |request: &Request| Ok(Reply::json(&request.peer.map(|peer| peer.to_string())))),
        Operation::new(&BIG, |_| Ok(Reply::Text { content_type: "text/plain", body: "x".repeat(BIG_BYTES) })),
        Operation::new(&PANIC, |_| panic!("on purpose")),
        Operation::new(&HOLD, move |_| {
            held.wait();
            Ok(Reply::NoContent)
        }),
        Operation::new(&ECHO, |request| {
            Ok(Reply::json(&json!({"id": request.path("id")?, "body": request.json::<Vec<u32>>()?})))
        }),
        Operation::new(&LENGTH, |request| Ok(Reply::json(&request.body.len()))),
    ]);
    let control = Control::start(config, operations, Arc::clone(&metrics)).unwrap();
    let rest = control.addresses().rest;
    Port { control, rest, gate, metrics, directory }
}

impl Port {
    /// Sends `text` (`|` is a line's end) and reads until the port closes.
    fn raw(&self, text: &str) -> String {
        let mut client = self.connect();
        // A refusal may come, and the port close, before all is sent.
        let _ = client.write_all(text.replace('|', "\r\n").as_bytes());
        read_all(&mut client)
    }

    fn connect(&self) -> TcpStream {
        connect(self.rest)
    }

    fn get(&self, path: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1|Host: localhost||"))
    }

    /// `curl` with these arguments; the address stands for `URL`. Status and body.
    fn curl(&self, arguments: &[&str]) -> (u16, String) {
        let url = format!("http://{}", self.rest);
        let arguments = arguments.iter().map(|argument| argument.replace("URL", &url));
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "-w", "\n%{http_code}"]).args(arguments);
        let output = curl.output().expect("curl is installed");
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        assert!(output.status.success(), "{}: {text}", String::from_utf8_lossy(&output.stderr));
        (status.parse().unwrap(), body.to_owned())
    }

    fn refusals(&self, reason: &str) -> u64 {
        http::refusals(&self.metrics, reason)
    }
}

/// A connection from 127.0.0.`host`, which is a client of its own.
fn connect_from(host: u8, to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    let descriptor = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(descriptor.as_raw_fd(), &SockaddrIn::new(127, 0, 0, host, 0)).unwrap();
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    connect(descriptor.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
    http::patient(TcpStream::from(descriptor))
}

fn read_all(client: &mut TcpStream) -> String {
    String::from_utf8(http::read_all(client)).unwrap()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

/// An answer that is a failure in the one shape.
#[track_caller]
fn assert_error(answer: &str, want: u16, code: &str) {
    assert_eq!(status(answer), want, "{answer}");
    assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
    let error: Value = serde_json::from_str(body(answer)).unwrap_or_else(|e| panic!("{e}: {answer}"));
    assert_eq!(error["error"]["code"], code, "{answer}");
    assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs the test of this name in a process of its own, where limits and sizes are its own. True in that process.
fn in_own_process(test: &str) -> bool {
    if std::env::var_os("CONTROL_TEST_CHILD").is_some() {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", test, "--nocapture"]).env("CONTROL_TEST_CHILD", "1").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    false
}

#[test]
fn curl_meets_every_operation_of_the_agent() {
    let port = start(|_| {});
    let (status, body) = port.curl(&["URL/healthz"]);
    assert_eq!((status, body.trim()), (200, r#"{"status":"ok"}"#));
    let (status, body) = port.curl(&["URL/readyz"]);
    let ready: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &ready["status"], &ready["ebpf_loaded"]), (503, &json!("not_ready"), &json!(false)));
    assert_eq!(ready["reasons"], json!(["xdp_firewall is not attached to eth0"]));
    assert_eq!(ready["error"]["code"], "SERVICE_UNAVAILABLE");
    let (status, body) = port.curl(&["URL/api/v1/agent/status"]);
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()["rule_count"].clone()), (200, json!(3)));
    assert_eq!(port.curl(&["URL/api/v1/config"]).0, 200);
    assert_eq!(port.curl(&["URL/api/v1/ebpf/status"]).0, 200);
    let (status, body) = port.curl(&["-X", "POST", "URL/api/v1/config/reload?confirm_secs=60"]);
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()["message"].clone()), (200, json!("Some(60)")));
    assert_eq!(port.curl(&["-X", "POST", "URL/api/v1/config/reload?confirm_secs=0"]).0, 400);
    assert_eq!(port.curl(&["-X", "POST", "URL/api/v1/config/confirm"]).0, 409);
    let (status, body) = port.curl(&["URL/metrics"]);
    assert_eq!(status, 200);
    assert!(body.contains("ebpfsentinel_http_requests_total{operation=\"ready\",status=\"503\"} 1"), "{body}");
    assert!(body.trim_end().ends_with("# EOF"));
    let (status, body) = port.curl(&["URL/api-docs/openapi.json"]);
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()["openapi"].clone()), (200, json!("3.1.0")));
}

#[test]
fn bodies_by_length_and_chunked() {
    let port = start(|_| {});
    let chunked = ["-H", "Transfer-Encoding: chunked"];
    let echo = |arguments: &[&str]| port.curl(&[arguments, &["-d", "[1,2]", "URL/echo/a%20b"]].concat());
    for arguments in [&[] as &[&str], &chunked, &["-0"], &["-H", "Expect: 100-continue"]] {
        let (status, body) = echo(arguments);
        assert_eq!((status, body.trim()), (200, r#"{"body":[1,2],"id":"a b"}"#), "{arguments:?}");
    }
    let file = port.directory.path().join("body");
    for (size, want) in [(1 << 20, 200), ((1 << 20) + 1, 413), (2 << 20, 413)] {
        std::fs::write(&file, "x".repeat(size)).unwrap();
        let data = format!("@{}", file.display());
        for arguments in [&[] as &[&str], &chunked, &["-H", "Expect:"]] {
            let (status, body) = port.curl(&[arguments, &["--data-binary", &data, "URL/length"]].concat());
            assert_eq!(status, want, "{size} {arguments:?} {body}");
            assert!(want != 200 || body.trim() == size.to_string(), "{body}");
        }
    }
    assert_error(&port.raw("POST /echo/1 HTTP/1.1|Host: localhost|Content-Length: 3||[1,"), 400, "VALIDATION_ERROR");
    assert_error(&port.raw("POST /echo/1 HTTP/1.1|Host: localhost||"), 400, "VALIDATION_ERROR");
    assert_error(&port.raw("GET /healthz HTTP/1.1|Host: localhost|Content-Length: 1||x"), 400, "VALIDATION_ERROR");
    // The length that made tiny_http alone abort the process.
    let huge = "POST /echo/1 HTTP/1.1|Host: localhost|Content-Length: 70368744177664||";
    assert_error(&port.raw(huge), 413, "BODY_TOO_LARGE");
    assert_eq!(status(&port.get("/healthz")), 200);
}

#[test]
fn head_gets_no_body() {
    let port = start(|_| {});
    let answer = port.raw("HEAD /healthz HTTP/1.1|Host: localhost||");
    assert_eq!((status(&answer), body(&answer)), (200, ""));
    assert!(answer.to_lowercase().contains("content-length: 16\r\n"), "{answer}");
    let answer = port.raw("HEAD /nothing HTTP/1.1|Host: localhost||");
    assert_eq!((status(&answer), body(&answer)), (404, ""));
    let answer = port.raw("HEAD / HTTP/1.1|Host: evil.example||");
    assert_eq!((status(&answer), body(&answer)), (421, ""));
}

#[test]
fn failures_have_one_shape() {
    let port = start(|_| {});
    assert_error(&port.get("/nothing"), 404, "NOT_FOUND");
    assert_error(&port.get("/healthz/"), 404, "NOT_FOUND");
    assert_error(&port.get("/healthz?x=1"), 400, "VALIDATION_ERROR");
    let wrong = port.raw("DELETE /healthz HTTP/1.1|Host: localhost||");
    assert_error(&wrong, 405, "METHOD_NOT_ALLOWED");
    assert!(wrong.contains("\r\nAllow: GET, HEAD\r\n"), "{wrong}");
    assert_error(&port.raw("BREW /healthz HTTP/1.1|Host: localhost||"), 405, "METHOD_NOT_ALLOWED");
    assert_error(&port.get("/panic"), 500, "INTERNAL_ERROR");
    assert_eq!(status(&port.get("/healthz")), 200);
}

#[test]
fn ambiguous_and_foreign_requests_are_refused() {
    let port = start(|config| config.host_names = vec!["agent.example".to_owned()]);
    let check = |head: &str, want: u16, code: &str| assert_error(&port.raw(&format!("{head}||")), want, code);
    check("GET / HTTP/1.1", 400, "BAD_REQUEST");
    check("POST / HTTP/1.1|Host: localhost|Content-Length: 3|Transfer-Encoding: chunked", 400, "BAD_REQUEST");
    check("POST / HTTP/1.1|Host: localhost|Content-Length: 3|Content-Length: 4", 400, "BAD_REQUEST");
    check("POST / HTTP/1.1|Host: localhost|Content-Length: +3", 400, "BAD_REQUEST");
    check("POST / HTTP/1.1|Host: localhost|Transfer-Encoding: xchunked", 400, "BAD_REQUEST");
    check("GET http://localhost/healthz HTTP/1.1|Host: localhost", 400, "BAD_REQUEST");
    check("\u{16}\u{3}\u{1}\u{2}", 400, "BAD_REQUEST");
    check("GET /healthz HTTP/1.1|Host: rebound.example", 421, "MISDIRECTED_REQUEST");
    check("GET /healthz HTTP/1.1|Host: localhost|Origin: http://evil.example", 403, "FORBIDDEN_ORIGIN");
    let long = format!("GET / HTTP/1.1|Host: localhost|X: {}", "x".repeat(64 << 10));
    check(&long, 431, "HEADERS_TOO_LARGE");
    let own = port.rest;
    for good in [
        format!("Host: {own}|Origin: http://{own}"),
        "Host: agent.example:443".to_owned(),
        "Host: 198.51.100.7:8080".to_owned(),
    ] {
        assert_eq!(status(&port.raw(&format!("GET /healthz HTTP/1.1|{good}||"))), 200, "{good}");
    }
    assert!(port.refusals("framing") >= 4 && port.refusals("host") >= 2 && port.refusals("origin") == 1);
}

#[test]
fn a_forged_peer_is_not_believed() {
    let port = start(|_| {});
    let answer = port.raw("GET /peer HTTP/1.1|Host: localhost|X-Agent-Peer: 6.6.6.6:6|x-agent-listener: metrics||");
    assert_eq!(status(&answer), 200);
    assert!(body(&answer).starts_with("\"127.0.0.1:"), "{answer}");
}

#[test]
fn a_second_request_on_a_connection_is_ignored() {
    let port = start(|_| {});
    let one = "GET /healthz HTTP/1.1|Host: localhost||";
    let answer = port.raw(&one.repeat(2000));
    assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), (200, 1));
    // Smuggled behind a body.
    let answer = port.raw(&format!("POST /echo/1 HTTP/1.1|Host: localhost|Content-Length: 3||[1]{one}"));
    assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), (200, 1));
}

#[test]
fn a_large_answer_arrives_whole() {
    let port = start(|_| {});
    let answer = port.get("/big");
    assert_eq!((status(&answer), body(&answer).len()), (200, BIG_BYTES));
    let old = port.raw("GET /big HTTP/1.0|Host: localhost||");
    assert_eq!((status(&old), body(&old).len()), (200, BIG_BYTES));
    assert!(!old[..1000].to_lowercase().contains("chunked"));
}

#[test]
fn clients_that_do_not_read_are_cut() {
    let port = start(|config| config.limits.stall_timeout = Duration::from_millis(300));
    // More of them than workers and than requests in flight.
    let mut idle: Vec<_> = (0..12).map(|_| port.connect()).collect();
    for client in &mut idle {
        client.write_all(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    assert_eq!(status(&port.get("/healthz")), 200);
    let start = Instant::now();
    while port.refusals("client_stalled") < 12 && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(port.refusals("client_stalled"), 12);
}

/// Slow readers of one address keep their workers, and nobody else is served the worse for it.
#[test]
fn slow_readers_of_one_address_starve_nobody_else() {
    let port = start(|config| config.limits.stall_timeout = Duration::from_secs(3600));
    let mut slow: Vec<_> = (0..12).map(|_| connect_from(2, port.rest)).collect();
    for client in &mut slow {
        client.write_all(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    // A byte now and then: none of them stalls.
    let mut byte = [0];
    for _ in 0..20 {
        assert_eq!(status(&port.get("/healthz")), 200);
        slow.iter_mut().take(2).for_each(|client| client.read_exact(&mut byte).unwrap());
    }
    assert_eq!((port.refusals("client_stalled"), port.refusals("client_slow")), (0, 0));
    drop(slow);
    assert_eq!(status(&port.get("/healthz")), 200);
}

#[test]
fn slow_heads_and_bodies_are_cut() {
    let port = start(|config| {
        config.limits.head_timeout = Duration::from_millis(300);
        config.limits.body_timeout = Duration::from_millis(300);
    });
    // A byte now and then does not prolong it.
    let mut slow = port.connect();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nX: ").unwrap();
    let begin = Instant::now();
    loop {
        slow.set_nonblocking(true).unwrap();
        let answered = slow.peek(&mut [0]).is_ok();
        slow.set_nonblocking(false).unwrap();
        if answered {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "still open");
        let _ = slow.write_all(b"x");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_error(&read_all(&mut slow), 408, "REQUEST_TIMEOUT");
    assert_error(&port.raw("POST /echo/1 HTTP/1.1|Host: localhost|Content-Length: 9||[1"), 408, "REQUEST_TIMEOUT");
    assert_eq!(read_all(&mut port.connect()), "", "a silent client is closed without an answer");
}

/// The acceptance of issue 2: 500 half-open clients, and a good request still answers; threads and memory stay bounded.
#[test]
fn five_hundred_half_open_clients() {
    if !in_own_process("five_hundred_half_open_clients") {
        return;
    }
    let port = start(|_| {});
    assert_eq!(status(&port.get("/healthz")), 200);
    let (threads_before, resident_before) = (threads(), resident_kib());
    let mut half_open = Vec::new();
    for i in 0..500 {
        let mut client = port.connect();
        let _ = match i % 3 {
            0 => Ok(()),
            1 => client.write_all(b"GET /healthz HTTP/1.1\r\nHost: local"),
            _ => client.write_all(b"POST /echo/1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n["),
        };
        half_open.push(client);
        if i % 50 == 49 {
            assert_eq!(status(&port.get("/healthz")), 200, "after {i} half-open clients");
        }
    }
    assert_eq!(port.curl(&["URL/healthz"]).0, 200);
    assert!(threads() <= threads_before + 4, "{threads_before} -> {} threads", threads());
    assert!(resident_kib() < resident_before + (8 << 10), "{resident_before} -> {} KiB", resident_kib());
    assert!(port.refusals("evicted") >= 400, "{}", port.refusals("evicted"));
    drop(half_open);
    assert_eq!(status(&port.get("/healthz")), 200);
}

/// Requests that are being answered are never thrown out for newer ones; those beyond all caps are told so.
#[test]
fn complete_requests_are_not_evicted() {
    let port = start(|config| {
        config.limits.connections = 10;
        config.limits.connections_loopback = 10;
        config.limits.in_flight = 2;
        config.limits.workers = 2;
    });
    let mut served: Vec<_> = (0..10).map(|_| port.connect()).collect();
    for client in &mut served {
        client.write_all(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..40 {
        assert_error(&port.get("/healthz"), 503, "SERVICE_UNAVAILABLE");
    }
    port.gate.open();
    for client in &mut served {
        assert_eq!(status(&read_all(client)), 204);
    }
    assert_eq!(status(&port.get("/healthz")), 200);
}

#[test]
fn the_metrics_listener_serves_metrics_only() {
    let port = start(|_| {});
    let metrics = port.control.addresses().metrics.unwrap();
    let ask = |head: &str| {
        let mut client = connect(metrics);
        client.write_all(format!("{head} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        read_all(&mut client)
    };
    let answer = ask("GET /metrics");
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    assert_eq!(status(&ask("HEAD /metrics")), 200);
    assert_error(&ask("GET /healthz"), 404, "NOT_FOUND");
    assert_error(&ask("POST /api/v1/config/reload"), 404, "NOT_FOUND");
    assert_error(&ask("DELETE /metrics"), 405, "METHOD_NOT_ALLOWED");
}

#[test]
fn a_taken_address_is_named_with_its_key() {
    let port = start(|_| {});
    let config = ControlConfig::new(port.rest, port.directory.path());
    let error = Control::start(config, Vec::new(), Metrics::new()).err().unwrap();
    assert_eq!(error.to_string(), format!("listening on {} (agent.http_port)", port.rest));
}

#[test]
fn stopping_lets_requests_end_and_leaves_nothing() {
    if !in_own_process("stopping_lets_requests_end_and_leaves_nothing") {
        return;
    }
    let before = threads();
    let port = start(|_| {});
    let mut busy = port.connect();
    busy.write_all(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let _idle = port.connect();
    std::thread::sleep(Duration::from_millis(200));
    let gate = Arc::clone(&port.gate);
    let opener = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        gate.open();
    });
    let runtime_dir = port.directory.path().join("run");
    assert_eq!(std::fs::read_dir(&runtime_dir).unwrap().count(), 1);
    port.control.stop();
    assert_eq!(status(&read_all(&mut busy)), 204);
    assert!(TcpStream::connect(port.rest).is_err());
    assert_eq!(std::fs::read_dir(&runtime_dir).unwrap().count(), 0);
    opener.join().unwrap();
    // tiny_http's accept thread and its pool end on their own.
    let start = Instant::now();
    while threads() > before && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(threads(), before);
}

#[test]
fn the_lack_of_descriptors_is_survived() {
    if !in_own_process("the_lack_of_descriptors_is_survived") {
        return;
    }
    let port = start(|_| {});
    assert_eq!(status(&port.get("/healthz")), 200);
    let half_open: Vec<_> = (0..20).map(|_| port.connect()).collect();
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, hard) = nix::sys::resource::getrlimit(limit).unwrap();
    nix::sys::resource::setrlimit(limit, used + 12, hard).unwrap();
    let mut filler = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        filler.push(file);
    }
    // One for the client here. The kernel completes its connection; accepting it fails until there is room again.
    filler.pop();
    let answer = port.get("/healthz");
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(port.refusals("accept") > 0, "the lack did not show");
    drop((filler, half_open));
    for _ in 0..20 {
        assert_eq!(status(&port.get("/healthz")), 200);
    }
}

/// The rules of the L7 firewall, by curl, of an engine that needs no kernel.
#[test]
fn l7_rules_by_curl() {
    let state = tempfile::tempdir().unwrap();
    let document = Document::toml(
        "l7.toml",
        b"[[rules]]\nid = 'file'\npriority = 5\naction = 'log'\nprotocol = 'tls'\nsni = '*.example'",
    );
    let document = document.unwrap();
    let section = document.read(|root| root.table().map(L7Config::read)).into_result().unwrap().unwrap();
    let metrics = Metrics::new();
    let engine = l7::Start { config: section, store: Store::new(state.path()), metrics: metrics.clone() };
    let (supervisor, _failures) = Supervisor::new().unwrap();
    let (handle, thread) =
        supervisor.spawn_owner("l7", L7::start(engine).unwrap(), crossbeam_channel::never()).unwrap();
    let confirmations = Arc::new(Confirmations::default());
    let mut config = ControlConfig::new("127.0.0.1:0".parse().unwrap(), state.path().join("run"));
    let heard = Arc::new(Heard::default());
    config.auditor = heard.clone();
    let control = Control::start(config, l7::api::operations(&handle, &confirmations), metrics).unwrap();
    let url = format!("http://{}/api/v1/firewall/l7-rules", control.addresses().rest);
    let send = |method: &str, path: &str, body: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "-w", "\n%{http_code}", "-X", method, &format!("{url}{path}")]);
        if !body.is_empty() {
            curl.args(["-H", "Content-Type: application/json", "-d", body]);
        }
        let text = String::from_utf8(curl.output().expect("curl is installed").stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse::<u16>().unwrap(), serde_json::from_str::<Value>(body).unwrap_or_default())
    };
    let rule = r#"{"id":"l7-block-admin","priority":10,"action":"deny","protocol":"http","path":"/admin"}"#;
    let (status, made) = send("POST", "", rule);
    assert_eq!((status, &made["path"], &made["severity"]), (201, &json!("/admin"), &json!("high")));
    assert_eq!(send("POST", "", rule).1["error"]["code"], "DUPLICATE_RULE");
    let ids = || {
        let listed = send("GET", "", "").1;
        listed.as_array().unwrap().iter().map(|rule| rule["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(), ["file", "l7-block-admin"]);
    let (status, shown) = send("GET", "/l7-block-admin", "");
    assert_eq!((status, &shown["hits"], &shown["enforced"]), (200, &json!(0), &json!(0)));
    assert_eq!((&shown["source"], &shown["last_hit"]), (&json!("api"), &Value::Null));
    assert_eq!(send("PUT", "/l7-block-admin", &rule.replace("/admin\"", "~^/adm[a-z]+$\"")).0, 200);
    assert_eq!(send("GET", "/l7-block-admin", "").1["path"], "~^/adm[a-z]+$");

    for (body, part) in [
        (rule.replace("/admin\"", "~(\""), "path: missing close parenthesis"),
        (rule.replace("\"path\"", "\"sni\""), "sni: is a key of protocol = \"tls\""),
        (rule.replace("http", "htp"), "did you mean http?"),
        (rule.replace("\"path\"", "\"paht\""), "paht: unknown key; did you mean path?"),
        ("{".to_owned(), "not valid JSON"),
    ] {
        let (status, refused) = send("POST", "", &body.replace("l7-block-admin", "new"));
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.to_lowercase().contains(&part.to_lowercase()), "{body}: {message}");
    }
    // All or none.
    let two = format!("[{},{rule}]", rule.replace("l7-block-admin", "new"));
    assert_eq!((send("POST", "", &two).0, ids().len()), (409, 2));

    assert_eq!(send("DELETE", "/l7-block-admin?confirm_secs=60", "").0, 204);
    assert_eq!((ids(), send("POST", "", rule).0), (vec!["file".to_owned()], 409));
    let expired = confirmations.expire(Instant::now() + Duration::from_secs(61)).unwrap();
    expired.undone.unwrap();
    let [note] = expired.notes.as_slice() else { panic!("{:?}", expired.notes) };
    assert_eq!((note.rule.as_deref(), &note.before), (Some("l7-block-admin"), &None), "it came back");
    assert_eq!(note.after.as_ref().unwrap()["path"], "~^/adm[a-z]+$");
    assert_eq!(ids(), ["file", "l7-block-admin"]);
    assert_eq!((send("DELETE", "/file", "").0, send("DELETE", "/nobody", "").0), (409, 404));
    assert_eq!((send("DELETE", "/l7-block-admin", "").0, send("GET", "/l7-block-admin", "").0), (204, 404));
    control.stop();
    // What changed, also what was refused; nothing of those who only looked.
    let told: Vec<String> = heard.0.lock().unwrap().iter().map(told_of).collect();
    assert_eq!(
        told,
        [
            "l7 add 201 rule_added l7-block-admin - /admin",
            "l7 add 409 failed l7-block-admin - /admin",
            "l7 update 200 rule_updated l7-block-admin /admin ~^/adm[a-z]+$",
            "l7 add 400 failed - - -",
            "l7 add 400 failed - - -",
            "l7 add 400 failed - - -",
            "l7 add 400 failed - - -",
            "l7 add 400 failed - - -",
            "l7 add 409 failed new - /admin",
            "l7 add 409 failed l7-block-admin - /admin",
            "l7 delete 204 rule_removed l7-block-admin ~^/adm[a-z]+$ -",
            "l7 add 409 failed l7-block-admin - /admin",
            "l7 delete 409 failed file - -",
            "l7 delete 404 failed nobody - -",
            "l7 delete 204 rule_removed l7-block-admin ~^/adm[a-z]+$ -",
        ]
    );
    let heard = heard.0.lock().unwrap();
    assert_eq!(heard[0].actor.address, Some("127.0.0.1".parse().unwrap()));
    assert!(heard[1].detail.starts_with("POST /api/v1/firewall/l7-rules: "), "{}", heard[1].detail);
    handle.stop().unwrap();
    thread.join(PATIENCE).unwrap();
}

#[test]
fn the_document_of_all_engines_has_each_type_once() {
    let all = [
        agent::SPECS,
        firewall::api::SPECS,
        ratelimit::api::SPECS,
        inspection::api::SPECS,
        l7::api::SPECS,
        audit::api::SPECS,
        store::api::SPECS,
    ]
    .concat();
    let document = openapi::document(&all);
    for spec in &all {
        let method = spec.method.to_string().to_lowercase();
        let operation = &document["paths"][spec.path][&method];
        assert!(operation.is_object(), "{} {}", spec.method, spec.path);
        let reply = &operation["responses"][spec.success.to_string()]["content"]["application/json"];
        let told = [&operation["requestBody"]["content"]["application/json"], reply];
        for content in told.into_iter().filter(|content| content.is_object()) {
            assert!(content["example"].is_object() || content["example"].is_array(), "{}: no example", spec.command);
        }
        let tag = document["tags"].as_array().unwrap().iter().find(|tag| tag["name"] == operation["tags"][0]);
        assert!(tag.is_some_and(|tag| tag["description"] != ""), "{}: nothing is told of its group", spec.command);
    }
    let rule = &document["components"]["schemas"]["L7RuleText"]["properties"];
    assert!(rule["sni"].is_object() && rule["header"].is_object(), "{rule}");
}

/// The document of the agent's own operations. `UPDATE_GOLDEN=1` writes it anew.
#[test]
fn the_openapi_document_is_golden() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/openapi-agent.json");
    let document = serde_json::to_string_pretty(&openapi::document(agent::SPECS)).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &document).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert!(document == golden, "{path} differs; run with UPDATE_GOLDEN=1 and look at the difference");
}
