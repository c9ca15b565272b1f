//! Who may call the control port, from outside: real sockets, curl, openssl's keys, an issuer behind TLS.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ebpfsentinel::api::{Method, Operation, Reply, Role, Spec};
use ebpfsentinel::audit::{Auditor, Entry};
use ebpfsentinel::config;
use ebpfsentinel::confirm::Confirmations;
use ebpfsentinel::control::agent as control_agent;
use ebpfsentinel::control::auth::{Auth, GROUP};
use ebpfsentinel::control::{Control, ControlConfig, stream};
use ebpfsentinel::engines::l7::config::L7Config;
use ebpfsentinel::engines::l7::{self, L7};
use ebpfsentinel::engines::{firewall, ratelimit};
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::outbound::install_crypto;
use ebpfsentinel::ruled::store::Store;
use ebpfsentinel::supervise::Supervisor;
use ebpfsentinel::written::Document;
use ebpfsentinel::{audit, explain, inspection, store};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use serde_json::{Value, json};

#[path = "support/mod.rs"]
pub mod support;
use support::tokens::{AUDIENCE, ISSUER, Signer, changed, claims, now_secs};

/// Where the times of a test must be long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const ADMIN: &str = "the-key-of-the-admin";
const OPERATOR: &str = "the-key-of-an-operator";
const OTHER: &str = "the-key-of-another-operator";
const VIEWER: &str = "the-key-of-a-viewer-0";
const BINARY: &str = env!("CARGO_BIN_EXE_ebpfsentinel-agent");

/// API keys of each role, and what else the section says.
fn section(more: &str) -> String {
    let key =
        |name: &str, key: &str, rest: &str| format!("[[auth.api_keys]]\nname = '{name}'\nkey = '{key}'\n{rest}\n");
    format!(
        "[agent]\ninterfaces = ['eth0']\n[auth]\n{more}\n{}{}{}{}",
        key("root", ADMIN, "role = 'admin'"),
        key("op", OPERATOR, "role = 'operator'\nnamespaces = ['prod']"),
        key("other-op", OTHER, "role = 'operator'\nnamespaces = ['finance']"),
        key("see", VIEWER, "")
    )
}

struct Port {
    control: Option<Control>,
    rest: SocketAddr,
    metrics: Arc<Metrics>,
    auth: Arc<Auth>,
    trail: Arc<Trail>,
    directory: tempfile::TempDir,
}

/// What the audit log is told.
#[derive(Default)]
struct Trail(Mutex<Vec<Entry>>);

impl Auditor for Trail {
    fn record(&self, entry: Entry) {
        self.0.lock().unwrap().push(entry);
    }
}

impl Trail {
    /// Who, by what, what, and with which outcome.
    fn told(&self) -> Vec<(String, String, String, u16)> {
        let entries = self.0.lock().unwrap();
        let line = |entry: &Entry| {
            (entry.actor.name.clone(), entry.actor.method.clone(), entry.operation.clone(), entry.outcome)
        };
        entries.iter().map(line).collect()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.stop();
        }
    }
}

fn start(text: &str, operations: impl FnOnce(&Path) -> Vec<Operation>) -> Port {
    install_crypto();
    let directory = tempfile::tempdir().unwrap();
    let parsed = config::parse("c.toml", text.as_bytes(), [], &[]);
    let section = parsed.map_err(|errors| errors.to_string()).unwrap().0.auth;
    let metrics = Metrics::new();
    let (supervisor, _failures) = Supervisor::new().unwrap();
    let auth = Auth::new(&section, &[], &metrics, &supervisor).unwrap();
    let mut config = ControlConfig::new("127.0.0.1:0".parse().unwrap(), directory.path().join("run"));
    config.metrics = Some(SocketAddr::from(([127, 0, 0, 1], 0)).into());
    config.auth = Some(auth.clone());
    let trail = Arc::new(Trail::default());
    config.auditor = trail.clone();
    let control = Control::start(config, operations(directory.path()), metrics.clone()).unwrap();
    Port { rest: control.addresses().rest, control: Some(control), metrics, auth, trail, directory }
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    fn field(&self, name: &str) -> Option<String> {
        let line = self.head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")))?;
        Some(line[name.len() + 2..].to_owned())
    }
}

/// A connection from an address of this host: 127.0.0.0/8 is all its own, so each client can have one.
fn connection(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else { panic!("{to} is not of IPv4") };
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(std::net::SocketAddrV4::new(from, 0))).unwrap();
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(to)).unwrap();
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(from: Ipv4Addr, to: SocketAddr, method: &str, target: &str, fields: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = connection(from, to);
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in fields {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("\r\n{body}");
    // A refusal may come before all is sent.
    let _ = stream.write_all(text.as_bytes());
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{method} {target}: {text:?}"));
    let status = head[9..12].parse().unwrap();
    Answer { status, head: head.to_owned(), body: serde_json::from_str(body).unwrap_or_default() }
}

/// The address of a client that nobody else in its test has.
fn next_client() -> Ipv4Addr {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(127, 1, (n >> 8) as u8, n as u8)
}

impl Port {
    fn ask(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        ask(next_client(), self.rest, method, target, fields, body)
    }

    fn with_token(&self, token: &str) -> Answer {
        self.ask("GET", "/api/v1/agent/status", &[("Authorization", &format!("Bearer {token}"))], "")
    }

    fn counted(&self, metric: &str) -> u64 {
        let text = self.metrics.render();
        text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse().ok()).unwrap_or(0)
    }

    fn failures(&self, reason: &str) -> u64 {
        self.counted(&format!("ebpfsentinel_auth_failures_total{{reason=\"{reason}\"}} "))
    }
}

/// What the agent offers: every operation, but for the document about them that the port adds itself.
fn all_specs() -> Vec<&'static Spec> {
    let engines = [firewall::api::SPECS, ratelimit::api::SPECS, l7::api::SPECS, inspection::api::SPECS];
    let stores = [audit::api::SPECS, store::api::SPECS];
    [control_agent::SPECS, &engines.concat(), &stores.concat(), explain::SPECS, &[&stream::WATCH]].concat()
}

/// Operations that succeed: what is asked here is who gets so far.
fn stubs(_: &Path) -> Vec<Operation> {
    all_specs().into_iter().map(|spec| Operation::new(spec, |_| Ok(Reply::json(&"done")))).collect()
}

fn target_of(spec: &Spec) -> String {
    let path: Vec<(&str, &str)> = spec.path_params().map(|name| (name, "10.0.0.1")).collect();
    spec.target(&path, &[])
}

/// A key or a token.
#[derive(Clone, Debug)]
enum Shown {
    Nothing,
    Key(String),
    Bearer(String),
}

impl Shown {
    fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Shown::Nothing => Vec::new(),
            Shown::Key(key) => vec![("X-API-Key", key.clone())],
            Shown::Bearer(token) => vec![("Authorization", format!("Bearer {token}"))],
        }
    }
}

/// Every operation, each role, each kind of credential: 401, 403 and 200 where they belong, and nothing else.
fn walk(port: &Port, credentials: &[(Shown, Option<Role>)]) {
    for spec in all_specs() {
        let method = spec.method.name();
        for (shown, role) in credentials {
            let fields = shown.fields();
            let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = port.ask(method, &target_of(spec), &fields, "");
            let want = match role {
                _ if spec.role == Role::Public => (200, ""),
                None => (401, "AUTHENTICATION_REQUIRED"),
                Some(role) if *role < spec.role => (403, "INSUFFICIENT_ROLE"),
                Some(_) => (200, ""),
            };
            let about = format!("{method} {} by {role:?} {shown:?}", spec.path);
            assert_eq!((answer.status, answer.code()), want, "{about}: {answer:?}");
            assert_eq!(answer.field("www-authenticate").is_some(), want.0 == 401, "{about}: {answer:?}");
        }
    }
}

#[test]
fn role_walk_with_api_keys() {
    let port = start(&section(""), stubs);
    let key = |text: &str| Shown::Key(text.to_owned());
    let bearer = |text: &str| Shown::Bearer(text.to_owned());
    walk(
        &port,
        &[
            (Shown::Nothing, None),
            (key("a-key-of-nobody-here"), None),
            (bearer("a-key-of-nobody-here"), None),
            (bearer("a.token.here"), None),
            (key(VIEWER), Some(Role::Viewer)),
            (bearer(VIEWER), Some(Role::Viewer)),
            (key(OPERATOR), Some(Role::Operator)),
            (bearer(OPERATOR), Some(Role::Operator)),
            (key(ADMIN), Some(Role::Admin)),
            (bearer(ADMIN), Some(Role::Admin)),
        ],
    );
    let roles: BTreeMap<&str, usize> = all_specs().iter().fold(BTreeMap::new(), |mut counts, spec| {
        *counts.entry(spec.role.name()).or_default() += 1;
        counts
    });
    assert!(["public", "viewer", "operator", "admin"].iter().all(|role| roles[role] > 0), "{roles:?}");
    assert_eq!(port.ask("GET", "/api-docs/openapi.json", &[], "").status, 200, "the description is the source's");
    // Everything that is open is named here, and everything that changes something is not a viewer's.
    for spec in all_specs() {
        let open = ["/healthz", "/readyz", "/metrics"].contains(&spec.path);
        assert_eq!(spec.role == Role::Public, open, "{}", spec.path);
        let changes = spec.method != Method::Get && spec.path != "/api/v1/explain";
        assert_eq!(spec.role > Role::Viewer, changes, "{} {}", spec.method, spec.path);
    }
}

#[test]
fn role_walk_with_tokens() {
    let signer = Signer::new(Algorithm::EdDSA, "one");
    let folder = tempfile::tempdir().unwrap();
    let port = start(&section(&jwt_section(folder.path(), &signer.public_pem, "EdDSA")), stubs);
    let token = |claims: &Value| Shown::Bearer(signer.sign(claims));
    walk(
        &port,
        &[
            (token(&changed(&claims("admin"), "exp", json!(now_secs() - 120))), None),
            (token(&claims("viewer")), Some(Role::Viewer)),
            (token(&claims("operator")), Some(Role::Operator)),
            (token(&claims("admin")), Some(Role::Admin)),
            // Who has no role here is known, and may do nothing.
            (token(&claims("nobody")), Some(Role::Public)),
            (Shown::Key(ADMIN.to_owned()), Some(Role::Admin)),
        ],
    );
}

/// What is asked first: the path, who calls, what they may do, and only then what they say.
#[test]
fn what_is_asked_first() {
    let port = start(&section(""), stubs);
    let check = |method: &str, target: &str, key: &str, status: u16, code: &str| {
        let fields = [("X-API-Key", key)];
        let fields = if key.is_empty() { &[][..] } else { &fields[..] };
        let answer = port.ask(method, target, fields, "");
        assert_eq!((answer.status, answer.code()), (status, code), "{method} {target} {key}");
    };
    check("GET", "/nothing", "", 404, "NOT_FOUND");
    check("BREW", "/api/v1/config", "", 405, "METHOD_NOT_ALLOWED");
    check("GET", "/api/v1/config?x=1", "", 401, "AUTHENTICATION_REQUIRED");
    check("GET", "/api/v1/config?x=1", VIEWER, 400, "VALIDATION_ERROR");
    check("POST", "/api/v1/config/reload?x=1", VIEWER, 403, "INSUFFICIENT_ROLE");
    check("POST", "/api/v1/config/reload?x=1", ADMIN, 400, "VALIDATION_ERROR");
    let answer = port.ask("GET", "/api/v1/config", &[("Authorization", "Basic cm9vdDpyb290")], "");
    assert_eq!((answer.status, answer.code()), (401, "AUTHENTICATION_REQUIRED"));
    let twice = [("X-API-Key", ADMIN), ("X-API-Key", VIEWER)];
    assert_eq!(port.ask("GET", "/api/v1/config", &twice, "").status, 400, "one of each field");
    // The front's own fields are not a client's to give.
    let forged = [("X-Agent-Uid", "0"), ("X-Agent-Gid", "0"), ("X-Agent-Cert", "aa root")];
    assert_eq!(port.ask("GET", "/api/v1/config", &forged, "").status, 401);
    assert_eq!(port.failures("missing"), 2);
    assert_eq!((port.failures("malformed"), port.failures("role")), (1, 1));
}

#[test]
fn metrics_are_open_unless_told_otherwise() {
    let check = |more: &str, with: &[(&str, &str)], want: u16| {
        let port = start(&section(more), stubs);
        let metrics = port.control.as_ref().unwrap().addresses().metrics.unwrap();
        for to in [port.rest, metrics] {
            assert_eq!(ask(next_client(), to, "GET", "/metrics", with, "").status, want, "{more} {to}");
        }
        assert_eq!(port.ask("GET", "/healthz", &[], "").status, 200);
    };
    check("", &[], 200);
    check("metrics_auth_required = true", &[], 401);
    check("metrics_auth_required = true", &[("X-API-Key", VIEWER)], 200);
    check("metrics_auth_required = true\nenabled = false", &[], 200);
}

/// The engine of the L7 firewall with a rule of the file, and the port before it.
fn with_l7(text: &str) -> (Port, Arc<Confirmations>) {
    let confirmations = Arc::new(Confirmations::default());
    let bound = confirmations.clone();
    let port = start(text, |state| {
        let section = b"[[rules]]\nid = 'file'\nnamespace = 'prod'\npriority = 5\naction = 'log'\nprotocol = 'tls'\nsni = '*.example'";
        let document = Document::toml("l7.toml", section).unwrap();
        let config = document.read(|root| root.table().map(L7Config::read)).into_result().unwrap().unwrap();
        let start = l7::Start { config, store: Store::new(state), metrics: Metrics::new() };
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let engine = L7::start(start).unwrap();
        let (handle, _thread) = supervisor.spawn_owner("l7", engine, crossbeam_channel::never()).unwrap();
        let mut operations = l7::api::operations(&handle, &bound);
        let confirm = control_agent::SPECS.iter().find(|spec| spec.path == "/api/v1/config/confirm").unwrap();
        operations.push(Operation::new(confirm, move |request| {
            let by = (request.role < Role::Admin).then(|| request.caller_id());
            let kept = bound.confirm(by.as_deref())?;
            Ok(Reply::json(&kept.map(|(what, _)| what)))
        }));
        operations
    });
    (port, confirmations)
}

#[test]
fn operators_change_the_rules_of_their_namespaces() {
    let (port, _confirmations) = with_l7(&section(""));
    let rules = "/api/v1/firewall/l7-rules";
    let rule = |id: &str, namespace: Option<&str>| {
        let mut rule = json!({"id": id, "priority": 10, "action": "deny", "protocol": "http", "path": "/x"});
        if let Some(namespace) = namespace {
            rule["namespace"] = json!(namespace);
        }
        rule
    };
    let send = |key: &str, method: &str, path: &str, body: Option<Value>| {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let fields = [("X-API-Key", key), ("Content-Type", "application/json")];
        let answer = port.ask(method, &format!("{rules}{path}"), &fields, &body);
        (answer.status, answer.code().to_owned())
    };
    let check = |key: &str, method: &str, path: &str, body: Option<Value>, want: (u16, &str)| {
        let about = format!("{key} {method} {path} {body:?}");
        let got = send(key, method, path, body);
        assert_eq!((got.0, got.1.as_str()), want, "{about}");
    };
    const FORBIDDEN: (u16, &str) = (403, "NAMESPACE_FORBIDDEN");
    check(OPERATOR, "POST", "", Some(rule("mine", Some("prod"))), (201, ""));
    check(OPERATOR, "POST", "", Some(rule("not-mine", Some("finance"))), FORBIDDEN);
    check(OPERATOR, "POST", "", Some(rule("nobodys", None)), FORBIDDEN);
    check(OPERATOR, "POST", "", Some(json!([rule("a", Some("prod")), rule("b", Some("finance"))])), FORBIDDEN);
    check(OPERATOR, "POST", "", Some(rule("bad", Some("pr od"))), (400, "VALIDATION_ERROR"));
    check(OPERATOR, "POST", "", Some(json!({"namespace": "finance"})), (400, "VALIDATION_ERROR"));
    check(ADMIN, "POST", "", Some(rule("nobodys", None)), (201, ""));
    check(ADMIN, "POST", "", Some(rule("theirs", Some("finance"))), (201, ""));
    // Both what a rule is and what it becomes must be the operator's.
    check(OPERATOR, "PUT", "/theirs", Some(rule("theirs", Some("prod"))), FORBIDDEN);
    check(OPERATOR, "PUT", "/mine", Some(rule("mine", Some("finance"))), FORBIDDEN);
    check(OPERATOR, "PUT", "/mine", Some(rule("mine", None)), FORBIDDEN);
    check(OPERATOR, "PUT", "/nobodys", Some(rule("nobodys", Some("prod"))), FORBIDDEN);
    check(OPERATOR, "PUT", "/mine", Some(rule("mine", Some("prod"))), (200, ""));
    check(OPERATOR, "DELETE", "/theirs", None, FORBIDDEN);
    check(OPERATOR, "DELETE", "/nobodys", None, FORBIDDEN);
    check(OTHER, "DELETE", "/mine", None, FORBIDDEN);
    check(OPERATOR, "DELETE", "/none", None, (404, "RULE_NOT_FOUND"));
    check(OPERATOR, "PUT", "/none", Some(rule("none", Some("prod"))), (404, "RULE_NOT_FOUND"));
    // The file's rules are changed in the file, whosever they are.
    check(OTHER, "DELETE", "/file", None, FORBIDDEN);
    check(OPERATOR, "DELETE", "/file", None, (409, "DUPLICATE_RULE"));
    check(OPERATOR, "POST", "", Some(rule("file", Some("prod"))), (409, "DUPLICATE_RULE"));
    for key in [VIEWER, OPERATOR, OTHER, ADMIN] {
        check(key, "GET", "/theirs", None, (200, ""));
    }
    check(VIEWER, "DELETE", "/mine", None, (403, "INSUFFICIENT_ROLE"));
    check(OPERATOR, "DELETE", "/mine", None, (204, ""));
    check(ADMIN, "DELETE", "/theirs", None, (204, ""));
    assert!(port.failures("namespace") == 11 && port.failures("role") == 1, "{}", port.metrics.render());
    // What survives a restart keeps its namespace.
    check(OPERATOR, "POST", "", Some(rule("kept", Some("prod"))), (201, ""));
    let saved = std::fs::read_to_string(port.directory.path().join("l7-rules.json")).unwrap();
    let saved: Value = serde_json::from_str(&saved).unwrap();
    let namespaces: Vec<_> = saved.as_array().unwrap().iter().map(|rule| &rule["namespace"]).collect();
    assert_eq!(namespaces, [&Value::Null, &json!("prod")]);
}

#[test]
fn the_audit_log_is_told_of_who_was_not_let() {
    let (port, _confirmations) = with_l7(&section(""));
    let send = |from: Ipv4Addr, key: &str, method: &str, path: &str, body: &str| {
        let fields = [("X-API-Key", key), ("Content-Type", "application/json")];
        let fields = if key.is_empty() { &fields[1..] } else { &fields[..] };
        ask(from, port.rest, method, &format!("/api/v1/firewall/l7-rules{path}"), fields, body).status
    };
    let rule = r#"{"id":"mine","namespace":"prod","priority":1,"action":"deny","protocol":"http"}"#;
    let from = next_client();
    assert_eq!(send(from, OPERATOR, "GET", "", ""), 200);
    assert_eq!(send(from, OPERATOR, "POST", "", rule), 201);
    assert_eq!(send(from, OTHER, "DELETE", "/mine", ""), 403);
    assert_eq!(send(from, VIEWER, "DELETE", "/mine", ""), 403);
    assert_eq!(send(from, "a-key-of-nobody-here", "GET", "", ""), 401);
    assert_eq!(send(from, "", "GET", "", ""), 401);
    let line = |name: &str, method: &str, operation: &str, outcome| {
        (name.to_owned(), method.to_owned(), operation.to_owned(), outcome)
    };
    let told = [
        line("op", "api_key", "l7 add", 201),
        line("other-op", "api_key", "l7 delete", 403),
        line("see", "api_key", "l7 delete", 403),
        line("anonymous", "none", "l7 list", 401),
        line("anonymous", "none", "l7 list", 401),
    ];
    assert_eq!(port.trail.told(), told);
    {
        let entries = port.trail.0.lock().unwrap();
        assert!(entries.iter().all(|entry| entry.actor.address == Some(IpAddr::V4(from))));
        assert_eq!(entries[0].after.as_ref().unwrap()["namespace"], "prod");
        assert!(entries[1].detail.contains("namespace") && entries[3].detail.contains("unknown_key"), "{entries:?}");
        assert!(entries.iter().all(|entry| !entry.detail.contains("a-key-of-nobody-here")));
    }
    // A flood is counted, not written down.
    for n in 0..100 {
        send(from, &format!("a-guess-of-a-key-{n}"), "GET", "", "");
    }
    assert!(port.trail.told().len() < 30, "{}", port.trail.told().len());
}

/// A viewer could push out of the trail what others changed.
#[test]
fn the_audit_log_is_not_told_of_what_changes_nothing() {
    let port = start(&section(""), stubs);
    let post = |key: &str, target: &str| port.ask("POST", target, &[("X-API-Key", key)], "{}").status;
    for key in [VIEWER, OPERATOR, ADMIN] {
        assert_eq!(post(key, "/api/v1/explain"), 200, "{key}");
    }
    assert_eq!(port.trail.told(), []);
    assert_eq!(post("a-key-of-nobody-here", "/api/v1/explain"), 401);
    assert_eq!(port.ask("POST", "/api/v1/config/reload", &[("X-API-Key", ADMIN)], "").status, 200);
    let told = port.trail.told();
    let operations: Vec<(&str, u16)> =
        told.iter().map(|(_, _, operation, outcome)| (operation.as_str(), *outcome)).collect();
    assert_eq!(operations, [("explain", 401), ("config reload", 200)]);
}

#[test]
fn a_change_that_waits_is_confirmed_by_who_made_it() {
    let (port, confirmations) = with_l7(&section(""));
    let send = |key: &str, method: &str, path: &str, body: &str| {
        let answer = port.ask(method, path, &[("X-API-Key", key), ("Content-Type", "application/json")], body);
        (answer.status, answer.code().to_owned())
    };
    let rule = r#"{"id":"mine","namespace":"prod","priority":1,"action":"deny","protocol":"http"}"#;
    let add = || send(OPERATOR, "POST", "/api/v1/firewall/l7-rules?confirm_secs=60", rule).0;
    let confirm = |key: &str| send(key, "POST", "/api/v1/config/confirm", "");
    assert_eq!(add(), 201);
    assert_eq!(confirm(VIEWER), (403, "INSUFFICIENT_ROLE".to_owned()));
    assert_eq!(confirm(OTHER), (403, "INSUFFICIENT_ROLE".to_owned()));
    assert_eq!(confirm(OPERATOR).0, 200);
    assert!(confirmations.pending(Instant::now()).is_none());
    assert_eq!(send(OPERATOR, "DELETE", "/api/v1/firewall/l7-rules/mine?confirm_secs=60", "").0, 204);
    assert_eq!(confirm(ADMIN).0, 200, "an admin confirms whatever waits");
    assert_eq!(add(), 201);
}

/// The section that takes tokens of one known key, which is written to a file.
fn jwt_section(folder: &Path, pem: &str, algorithm: &str) -> String {
    let path = folder.join("jwt.pub");
    std::fs::write(&path, pem).unwrap();
    format!(
        "jwt = {{ issuer = '{ISSUER}', audience = '{AUDIENCE}', public_key_path = '{}', algorithm = '{algorithm}', \
         leeway_secs = 30 }}",
        path.display()
    )
}

/// openssl's output; `input` is its stdin.
fn openssl(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A private key of openssl's in PKCS 8, and its public one.
fn openssl_key(algorithm: &str) -> (EncodingKey, String) {
    let private = match algorithm {
        "RS256" => openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], ""),
        "ES256" => openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], ""),
        _ => openssl(&["genpkey", "-algorithm", "ed25519"], ""),
    };
    let public = openssl(&["pkey", "-pubout"], &private);
    let key = match algorithm {
        "RS256" => EncodingKey::from_rsa_pem(private.as_bytes()),
        "ES256" => EncodingKey::from_ec_pem(private.as_bytes()),
        _ => EncodingKey::from_ed_pem(private.as_bytes()),
    };
    (key.unwrap(), public)
}

#[test]
fn tokens_of_a_known_key() {
    for (word, algorithm) in [("RS256", Algorithm::RS256), ("ES256", Algorithm::ES256), ("EdDSA", Algorithm::EdDSA)] {
        let folder = tempfile::tempdir().unwrap();
        let (key, public) = openssl_key(word);
        let port = start(&section(&jwt_section(folder.path(), &public, word)), stubs);
        let good = claims("viewer");
        let sign = |claims: &Value| encode(&Header::new(algorithm), claims, &key).unwrap();
        assert_eq!(port.with_token(&sign(&good)).status, 200, "{word}");
        let mut refused = 0;
        let mut check = |what: &str, token: &str, reason: &str| {
            let before = port.failures(reason);
            let answer = port.with_token(token);
            assert_eq!((answer.status, answer.code()), (401, "AUTHENTICATION_REQUIRED"), "{word} {what}: {answer:?}");
            assert_eq!(answer.body["error"]["message"], "the credential is not accepted", "{what}");
            assert_eq!(port.failures(reason), before + 1, "{word} {what}: {}", port.metrics.render());
            refused += 1;
        };
        // What it says.
        let now = now_secs();
        check("expired", &sign(&changed(&good, "exp", json!(now - 60))), "expired");
        check("without exp", &sign(&changed(&good, "exp", Value::Null)), "claims");
        check("an exp that is none", &sign(&changed(&good, "exp", json!("tomorrow"))), "claims");
        check("a negative exp", &sign(&changed(&good, "exp", json!(-1))), "claims");
        check("not yet", &sign(&changed(&good, "nbf", json!(now + 600))), "not_yet_valid");
        check("an nbf that is none", &sign(&changed(&good, "nbf", json!("now"))), "claims");
        check("another audience", &sign(&changed(&good, "aud", json!("other"))), "audience");
        check("other audiences", &sign(&changed(&good, "aud", json!(["other", "another"]))), "audience");
        check("without audience", &sign(&changed(&good, "aud", Value::Null)), "claims");
        check("another issuer", &sign(&changed(&good, "iss", json!("https://evil.example"))), "issuer");
        check("nearly the issuer", &sign(&changed(&good, "iss", json!(format!("{ISSUER}/")))), "issuer");
        check("without issuer", &sign(&changed(&good, "iss", Value::Null)), "claims");
        check("without subject", &sign(&changed(&good, "sub", Value::Null)), "claims");
        check("roles that are none", &sign(&changed(&good, "role", json!({"admin": true}))), "claims");
        // Within the leeway.
        assert_eq!(port.with_token(&sign(&changed(&good, "exp", json!(now - 5)))).status, 200, "{word}");
        assert_eq!(port.with_token(&sign(&changed(&good, "nbf", json!(now + 15)))).status, 200, "{word}");
        assert_eq!(port.with_token(&sign(&changed(&good, "aud", json!(["other", AUDIENCE])))).status, 200, "{word}");

        // How it is signed.
        let encoded = |value: &Value| data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let admin = claims("admin");
        for none in ["none", "None", "NONE"] {
            let header = json!({"alg": none, "typ": "JWT"});
            check("no signature", &format!("{}.{}.", encoded(&header), encoded(&admin)), "malformed");
        }
        // The public key is known to everybody; as a secret it must not count.
        let secret = EncodingKey::from_secret(public.as_bytes());
        check(
            "HS256 with the public key",
            &encode(&Header::new(Algorithm::HS256), &admin, &secret).unwrap(),
            "algorithm",
        );
        let other = openssl_key(word).0;
        check("another key", &encode(&Header::new(algorithm), &admin, &other).unwrap(), "signature");
        let token = sign(&admin);
        let parts: Vec<&str> = token.split('.').collect();
        let swapped =
            format!("{}.{}.{}", parts[0], encoded(&admin).replace('=', ""), &sign(&good).split('.').nth(2).unwrap());
        check("the signature of another", &swapped, "signature");
        let signature = data_encoding::BASE64URL_NOPAD.decode(parts[2].as_bytes()).unwrap();
        let short = data_encoding::BASE64URL_NOPAD.encode(&signature[..signature.len() - 1]);
        check("a signature cut short", &format!("{}.{}.{short}", parts[0], parts[1]), "signature");
        check("an empty signature", &format!("{}.{}.", parts[0], parts[1]), "signature");
        let own = Signer::new(algorithm, "evil");
        let mut header = Header::new(algorithm);
        header.jwk = serde_json::from_value(own.jwk()).ok();
        header.jku = Some("https://evil.example/keys".to_owned());
        header.kid = Some("../../dev/null".to_owned());
        check("a key of its own", &own.sign_with(header, &admin), "signature");
        let mut header = Header::new(algorithm);
        header.crit = Some(vec!["b64".to_owned()]);
        check("what must be understood", &encode(&header, &admin, &key).unwrap(), "malformed");
        let mut header = Header::new(algorithm);
        header.typ = Some("logout+jwt".to_owned());
        check("a token for another end", &encode(&header, &admin, &key).unwrap(), "malformed");
        // What is no token at all.
        check("too long", &format!("{}.{}.{}", "a".repeat(3000), "b".repeat(5000), "c".repeat(1000)), "malformed");
        check("nothing in it", "..", "malformed");
        check("not base64", "a!.b!.c!", "malformed");
        check("not JSON", &format!("{}.{}.AAAA", encoded(&json!([1])), encoded(&json!([2]))), "malformed");
        assert!(refused > 25);
        assert_eq!(port.with_token(&"x.y.".repeat(6000)).status, 431, "what is endless does not get so far");
        assert_eq!(port.with_token(&sign(&good)).status, 200, "{word}");
    }
}

/// What an issuer answers.
#[derive(Default)]
struct Published {
    keys: Vec<Value>,
    /// It takes connections and says nothing.
    is_silent: bool,
    /// It answers 500.
    is_broken: bool,
    /// Paths that were asked for.
    asked: Vec<String>,
}

/// An issuer behind TLS, with its document and its keys.
struct Issuer {
    port: u16,
    published: Arc<Mutex<Published>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

impl Issuer {
    fn start() -> Issuer {
        install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_certificate = authority.self_signed(&authority_key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority_certificate.pem()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &rcgen::Issuer::new(authority, authority_key)).unwrap();
        let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (published, stop) = (Arc::new(Mutex::new(Published::default())), Arc::new(AtomicBool::new(false)));
        let (seen, stopped, tls) = (published.clone(), stop.clone(), Arc::new(tls));
        let thread = std::thread::spawn(move || {
            // Connections that were never answered stay open until the end.
            let mut silent = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                if seen.lock().unwrap().is_silent {
                    silent.push(stream);
                    continue;
                }
                let (tls, seen) = (tls.clone(), seen.clone());
                // A client that goes away is no error here.
                std::thread::spawn(move || serve(stream, tls, port, &seen).ok());
            }
        });
        Issuer { port, published, stop, thread: Some(thread), folder }
    }

    fn name(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn set(&self, change: impl FnOnce(&mut Published)) {
        change(&mut self.published.lock().unwrap());
    }

    fn asked(&self, path: &str) -> usize {
        self.published.lock().unwrap().asked.iter().filter(|asked| *asked == path).count()
    }

    fn section(&self, more: &str) -> String {
        format!(
            "oidc = {{ issuer = '{}', audience = '{AUDIENCE}', algorithms = ['RS256', 'ES256', 'EdDSA'], \
             allow_private = true, ca_file = '{}'{more} }}",
            self.name(),
            self.ca().display()
        )
    }

    fn claims(&self, role: &str) -> Value {
        changed(&claims(role), "iss", json!(self.name()))
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: TcpStream, tls: Arc<rustls::ServerConfig>, port: u16, seen: &Mutex<Published>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut tls = rustls::StreamOwned::new(rustls::ServerConnection::new(tls).map_err(std::io::Error::other)?, stream);
    // The client may keep its connection for the next question.
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if tls.read(&mut byte)? == 0 {
                return Ok(());
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (status, body) = {
            let mut seen = seen.lock().unwrap();
            seen.asked.push(path.clone());
            match path.as_str() {
                _ if seen.is_broken => (500, json!({"error": "out of order"})),
                "/.well-known/openid-configuration" => {
                    let issuer = format!("https://127.0.0.1:{port}");
                    (200, json!({"jwks_uri": format!("{issuer}/keys"), "issuer": issuer}))
                }
                "/keys" => (200, json!({"keys": seen.keys})),
                _ => (404, json!({})),
            }
        };
        let body = body.to_string();
        write!(tls, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        tls.flush()?;
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const SUCCESSES: &str = "ebpfsentinel_auth_jwks_fetches_total{result=\"success\"} ";
const FAILURES: &str = "ebpfsentinel_auth_jwks_fetches_total{result=\"failure\"} ";

#[test]
fn role_walk_with_an_issuer() {
    let issuer = Issuer::start();
    let signer = Signer::new(Algorithm::ES256, "one");
    issuer.set(|it| it.keys = vec![signer.jwk()]);
    let port = start(&section(&issuer.section("")), stubs);
    let token = |role: &str| Shown::Bearer(signer.sign(&issuer.claims(role)));
    walk(
        &port,
        &[
            (Shown::Bearer(signer.sign(&claims("admin"))), None),
            (token("viewer"), Some(Role::Viewer)),
            (token("operator"), Some(Role::Operator)),
            (token("admin"), Some(Role::Admin)),
            (token("root"), Some(Role::Public)),
            (Shown::Key(OPERATOR.to_owned()), Some(Role::Operator)),
        ],
    );
    assert_eq!((issuer.asked("/.well-known/openid-configuration"), issuer.asked("/keys")), (1, 1));
}

#[test]
fn an_issuer_rotates_its_keys() {
    let issuer = Issuer::start();
    let (old, new) = (Signer::new(Algorithm::RS256, "2025"), Signer::new(Algorithm::EdDSA, "2026"));
    issuer.set(|it| it.keys = vec![old.jwk()]);
    let port = start(&section(&issuer.section("")), stubs);
    let status = |signer: &Signer| port.with_token(&signer.sign(&issuer.claims("viewer"))).status;
    assert_eq!(status(&old), 200);
    issuer.set(|it| it.keys = vec![new.jwk()]);
    assert_eq!(status(&old), 200, "nobody had a reason to look");
    assert_eq!(status(&new), 200, "an unknown key is one");
    assert_eq!(status(&old), 401, "what is not listed any more is gone");
    assert_eq!(issuer.asked("/keys"), 2);

    // A flood of unknown keys does not become a flood of questions.
    for n in 0..300 {
        let kid = match n % 4 {
            0 => format!("made-up-{n}"),
            1 => "../../keys".to_owned(),
            2 => "' OR 1=1 --".to_owned(),
            _ => "k".repeat(200),
        };
        let header = Header { kid: Some(kid), ..Header::new(Algorithm::EdDSA) };
        assert_eq!(port.with_token(&new.sign_with(header, &issuer.claims("admin"))).status, 401);
    }
    assert_eq!((issuer.asked("/keys"), port.counted(SUCCESSES)), (2, 2));
    assert_eq!(port.failures("unknown_key"), 301);
    // The right id of a key of another algorithm, the right key under another id, and no id.
    let check = |header: Header, key: &Signer| {
        assert_eq!(port.with_token(&key.sign_with(header, &issuer.claims("admin"))).status, 401);
    };
    check(Header { kid: Some("2026".to_owned()), ..Header::new(Algorithm::RS256) }, &old);
    check(Header::new(Algorithm::EdDSA), &new);
    let forger = Signer::new(Algorithm::EdDSA, "2026");
    assert_eq!(status(&forger), 401);
    let secret = EncodingKey::from_secret(new.public_pem.as_bytes());
    let header = Header { kid: Some("2026".to_owned()), ..Header::new(Algorithm::HS256) };
    assert_eq!(port.with_token(&encode(&header, &issuer.claims("admin"), &secret).unwrap()).status, 401);
    assert_eq!(status(&new), 200);
}

#[test]
fn an_issuer_that_fails_takes_nobody_with_it() {
    let issuer = Issuer::start();
    let signer = Signer::new(Algorithm::EdDSA, "one");
    issuer.set(|it| it.is_silent = true);
    let port = start(&section(&issuer.section("")), stubs);
    let token = signer.sign(&issuer.claims("viewer"));
    // Whoever has a token waits a little, and is told to come again; whoever has a key does not even notice.
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let (rest, from, token) = (port.rest, next_client(), token.clone());
            let fields = format!("Bearer {token}");
            std::thread::spawn(move || {
                ask(from, rest, "GET", "/api/v1/agent/status", &[("Authorization", &fields)], "")
            })
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(port.ask("GET", "/api/v1/agent/status", &[("X-API-Key", VIEWER)], "").status, 200);
    }
    for answer in waiting.into_iter().map(|thread| thread.join().unwrap()) {
        assert_eq!((answer.status, answer.code()), (503, "SERVICE_UNAVAILABLE"), "{answer:?}");
        assert_eq!(answer.field("retry-after").as_deref(), Some("1"));
    }
    assert!(port.failures("issuer_unavailable") == 8);
}

#[test]
fn keys_outlive_an_outage() {
    let issuer = Issuer::start();
    let signer = Signer::new(Algorithm::EdDSA, "one");
    issuer.set(|it| it.is_broken = true);
    let port = start(&section(&issuer.section("")), stubs);
    wait_until("it was asked", || port.counted(FAILURES) == 1);
    let degraded = port.auth.degraded();
    assert!(degraded.len() == 1 && degraded[0].contains("answered 500"), "{degraded:?}");
    issuer.set(|it| {
        it.is_broken = false;
        it.keys = vec![signer.jwk()];
    });
    let status = || port.with_token(&signer.sign(&issuer.claims("viewer"))).status;
    assert_eq!(status(), 200);
    assert!(port.auth.degraded().is_empty());
    issuer.set(|it| it.is_broken = true);
    for _ in 0..10 {
        assert_eq!(status(), 200);
    }
    // A certificate that nobody vouches for: no keys of it.
    let stranger = Issuer::start();
    let section = section(&stranger.section(""))
        .replace(&stranger.ca().display().to_string(), &issuer.ca().display().to_string());
    let port = start(&section, stubs);
    wait_until("it was asked", || port.counted(FAILURES) == 1);
    assert!(port.auth.degraded()[0].to_lowercase().contains("certificate"), "{:?}", port.auth.degraded());
    assert_eq!(stranger.asked("/keys"), 0);
}

#[test]
fn a_flood_of_guesses_by_address() {
    let port = start(&section(""), stubs);
    let (flooder, other) = (next_client(), next_client());
    let status = |from: Ipv4Addr, key: &str| ask(from, port.rest, "GET", "/api/v1/config", &[("X-API-Key", key)], "");
    assert_eq!(status(flooder, VIEWER).status, 200);
    let answers: Vec<Answer> = (0..60).map(|n| status(flooder, &format!("a-guess-of-a-key-{n}"))).collect();
    let count = |wanted: u16| answers.iter().filter(|answer| answer.status == wanted).count();
    assert!(count(401) >= 10 && count(429) >= 20 && count(401) + count(429) == 60, "{} {}", count(401), count(429));
    let slowed = answers.iter().find(|answer| answer.status == 429).unwrap();
    assert_eq!(slowed.code(), "RATE_LIMITED");
    assert!(matches!(slowed.field("retry-after").as_deref(), Some("1" | "2")), "{slowed:?}");
    assert_eq!(status(flooder, VIEWER).status, 200, "who was let in from there still is");
    assert_eq!(status(other, ADMIN).status, 200, "other addresses are not concerned");
    assert_eq!(port.failures("throttled"), count(429) as u64);
}

/// The real command line: a hash that it prints lets its key in, by curl and by itself.
#[test]
fn a_hash_of_the_command_line_lets_its_key_in() {
    let hash = |input: &str| {
        let mut child = Command::new(BINARY)
            .args(["auth", "hash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    for (input, part) in [
        ("too-short\n", "16 to 256 characters"),
        ("", "16 to 256 characters"),
        ("a key with blanks in it\n", "printable ASCII"),
        ("two-lines-are-no-key\nat-all", "printable ASCII"),
        ("eyJhbGciOi.eyJzdWIiOi.AAAAAAA\n", "two dots"),
    ] {
        let (code, out, error) = hash(input);
        assert!(code == Some(2) && out.is_empty() && error.contains(part), "{input:?}: {code:?} {out} {error}");
        assert!(input.is_empty() || !error.contains(input.trim_end()), "the key is not shown: {error}");
    }
    let key = "a-key-that-nobody-wrote-down";
    let (code, printed, _) = hash(&format!("{key}\n"));
    assert_eq!(code, Some(0));
    assert_ne!(hash(key).1, printed, "each hash has a salt of its own");
    // What it says can be done with other tools.
    let (salt, hex) = printed.strip_prefix("sha256:").unwrap().split_once(':').unwrap();
    assert!(openssl(&["dgst", "-sha256", "-hex"], &format!("{salt}{key}")).contains(hex));

    let text = format!(
        "[agent]\ninterfaces = ['eth0']\n[[auth.api_keys]]\nname = 'by-hash'\nkey_hash = '{printed}'\nrole = 'admin'\n"
    );
    let port = start(&text, stubs);
    let curl = |field: &str| {
        let url = format!("http://{}/api/v1/agent/status", port.rest);
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "-H", field, &url])
            .output()
            .expect("curl is installed");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(curl(&format!("X-API-Key: {key}")), "200");
    assert_eq!(curl(&format!("Authorization: Bearer {key}")), "200");
    assert_eq!(curl("X-API-Key: another-key-altogether"), "401");
    let cli = |token: &str| {
        let port = port.rest.port().to_string();
        let output = Command::new(BINARY)
            .args(["--token", token, "--host", "127.0.0.1", "--port", &port, "-o", "json", "status"])
            .env_remove("EBPFSENTINEL_TOKEN")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(cli(key).0, Some(0));
    let (code, error) = cli("another-key-altogether");
    assert!(code == Some(1) && error.contains("AUTHENTICATION_REQUIRED"), "{error}");

    let generated = Command::new(BINARY).args(["-o", "json", "auth", "hash", "--generate"]).output().unwrap();
    let made: Value = serde_json::from_slice(&generated.stdout).unwrap();
    let config = text.replace(&printed, made["key_hash"].as_str().unwrap());
    let port = start(&config, stubs);
    let fields = [("X-API-Key", made["key"].as_str().unwrap())];
    assert_eq!(port.ask("GET", "/api/v1/config", &fields, "").status, 200);
}

#[test]
fn no_secret_is_shown() {
    let parsed = config::parse("c.toml", section("").as_bytes(), [], &[]).unwrap().0;
    for text in [parsed.masked().to_string(), format!("{parsed:?}")] {
        assert!(text.contains("***") && !text.contains("sha256:"), "{text}");
        assert!([ADMIN, OPERATOR, VIEWER].iter().all(|key| !text.contains(key)), "{text}");
    }
    assert_eq!(parsed.masked()["auth"]["api_keys"][1]["role"], "operator");
    assert_eq!(GROUP, "ebpfsentinel");
}
