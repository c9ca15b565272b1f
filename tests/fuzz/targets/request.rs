//! What a client sends to the control port. The front reads it the same however it is cut, and writes it anew with nothing
//! of the client's that could be taken for its own; nobody is let in without a key; and each operation answers, or
//! refuses in the one shape. The operations are the agent's own; the engines behind them are lists of rules.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpfsentinel::alert::hub::Hub;
use ebpfsentinel::alert::sinks::Sink;
use ebpfsentinel::alert::{Alert, AlertId, Severity};
use ebpfsentinel::api::{ApiError, Method, Operation, Reply, Request, Role, Spec};
use ebpfsentinel::audit::store::AuditStore;
use ebpfsentinel::audit::{self, Actor, Auditor, Entry};
use ebpfsentinel::classify::text::Surroundings;
use ebpfsentinel::component::Component;
use ebpfsentinel::config;
use ebpfsentinel::confirm::Confirmations;
use ebpfsentinel::control::auth::{self, Auth, Credentials};
use ebpfsentinel::control::front::body::Body;
use ebpfsentinel::control::front::head::{self, Head, Refusal, Sender};
use ebpfsentinel::control::front::{Hosts, Kind, LISTENER_HEADER, PEER_HEADER, Peer};
use ebpfsentinel::control::routes::Routes;
use ebpfsentinel::control::{agent, stream};
use ebpfsentinel::engines::firewall::explain::Question;
use ebpfsentinel::engines::{firewall, l7, ratelimit};
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::ruled::api::{Context, RuleSpecs, invalid};
use ebpfsentinel::ruled::store::Store;
use ebpfsentinel::ruled::{AnyRule, Book, ChangeError, RuleOwner, Source, check_surroundings};
use ebpfsentinel::store::alerts::{self, AlertStore};
use ebpfsentinel::supervise::{Owned, Supervisor};
use ebpfsentinel::{explain, inspection, store};

const BODY_MAX: usize = 4096;
/// Rules of the fuzzed engine at a time.
const RULES_MAX: usize = 64;
/// The only alert of the store.
const ALERT: &str = "019ad3c1-5b7e-7c40-9c1e-6f2f1d0a4b33";
/// Header fields that the front writes itself, and those of the client's that it hands on.
const OURS: [&str; 5] = ["host", "connection", "content-length", LISTENER_HEADER, PEER_HEADER];
const RELAYED: [&str; 6] = ["accept", "authorization", "content-type", "last-event-id", "user-agent", "x-api-key"];
/// Keys, and whose they are.
const KEYS: [(&str, Role); 3] = [
    ("the-key-of-the-admin", Role::Admin),
    ("the-key-of-an-operator", Role::Operator),
    ("the-key-of-a-viewer-0", Role::Viewer),
];
const CONFIG: &str = "[agent]\ninterfaces = ['eth0']\n[auth]\n\
    [[auth.api_keys]]\nname = 'root'\nkey = 'the-key-of-the-admin'\nrole = 'admin'\n\
    [[auth.api_keys]]\nname = 'op'\nkey = 'the-key-of-an-operator'\nrole = 'operator'\nnamespaces = ['prod']\n\
    [[auth.api_keys]]\nname = 'see'\nkey = 'the-key-of-a-viewer-0'\n";

/// An engine of which only the rules are there.
struct Rules<R> {
    added: Vec<R>,
    store: Store<R>,
}

impl<R: AnyRule> Owned for Rules<R> {
    type Event = Infallible;

    fn event(&mut self, event: Infallible, _now: Instant) {
        match event {}
    }
}

impl<R: AnyRule> RuleOwner for Rules<R> {
    type Rule = R;
    type Counts = ();
    type View = serde_json::Value;
    type Snapshot = Vec<R>;

    fn book(&self) -> Book<'_, R> {
        Book { file: &[], added: &self.added }
    }

    fn store(&self) -> &Store<R> {
        &self.store
    }

    fn rules_max(&self) -> usize {
        RULES_MAX
    }

    fn check(&self, rule: &R) -> Result<(), ChangeError> {
        check_surroundings(rule, Surroundings::default())
    }

    fn replace_added(&mut self, added: Vec<R>) -> anyhow::Result<()> {
        self.added = added;
        Ok(())
    }

    fn snapshot(&self) -> Vec<R> {
        self.added.clone()
    }

    fn restore(&mut self, snapshot: Vec<R>) -> anyhow::Result<()> {
        self.added = snapshot;
        Ok(())
    }

    fn counts(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn view(&self, _counts: &(), rule: &R, _source: Source) -> serde_json::Value {
        serde_json::to_value(rule.text()).expect("a rule is strings, numbers and lists")
    }
}

struct Port {
    hosts: Hosts,
    routes: Routes,
    auth: Arc<Auth>,
    confirmations: Arc<Confirmations>,
    /// Leave the engines without rules.
    empty: Vec<Box<dyn Fn()>>,
    supervisor: Supervisor,
    /// Goes last: the stores are in it.
    directory: tempfile::TempDir,
}

thread_local! {
    static PORT: Port = Port::new();
}

fn spec_of(specs: &[&'static Spec], method: Method, has_id: bool) -> &'static Spec {
    let rules = specs.iter().filter(|spec| spec.path.ends_with(if has_id { "rules/{id}" } else { "rules" }));
    rules.copied().find(|spec| spec.method == method).expect("every engine has rules")
}

impl Port {
    fn new() -> Port {
        let directory = tempfile::tempdir().expect("a directory");
        let metrics = Metrics::new();
        let (supervisor, _failures) = Supervisor::new().expect("a supervisor");
        let config = config::parse("c.toml", CONFIG.as_bytes(), [], &[]).expect("it is right").0.auth;
        let mut port = Port {
            hosts: Hosts::new(&["agent.example".to_owned()]),
            routes: Routes::default(),
            auth: Auth::new(&config, &[], &metrics, &supervisor).expect("it asks nobody"),
            confirmations: Arc::default(),
            empty: Vec::new(),
            supervisor,
            directory,
        };
        let mut operations = port.stores(&metrics);
        operations.extend(port.rules::<firewall::rule::Rule>("firewall", firewall::api::SPECS));
        operations.extend(port.rules::<ratelimit::rule::Rule>("ratelimit", ratelimit::api::SPECS));
        operations.extend(port.rules::<l7::rule::Rule>("l7", l7::api::SPECS));
        operations.push(stream::operation(Hub::new(16), stream::STREAMS_MAX, &metrics));
        operations.extend(explain::SPECS.iter().map(|spec| Operation::new(spec, explain)));
        // What is left has no body.
        let others = [agent::SPECS, inspection::api::SPECS, firewall::api::SPECS, ratelimit::api::SPECS].concat();
        for spec in others {
            if !operations.iter().any(|operation| std::ptr::eq(operation.spec, spec)) {
                operations.push(Operation::new(spec, read_parameters));
            }
        }
        port.routes = Routes::new(operations).expect("paths are right");
        port
    }

    fn rules<R: AnyRule>(&mut self, name: &'static str, specs: &[&'static Spec]) -> Vec<Operation> {
        let rules = Rules::<R> { added: Vec::new(), store: Store::new(self.directory.path()) };
        let spawned = self.supervisor.spawn_owner(name, rules, crossbeam_channel::never());
        let (handle, _thread) = spawned.expect("a thread");
        let context = Context::new(&handle, &self.confirmations);
        self.empty.push(Box::new(move || handle.call(|owner| owner.added.clear()).expect("it goes on")));
        context.operations(RuleSpecs {
            list: spec_of(specs, Method::Get, false),
            show: spec_of(specs, Method::Get, true),
            add: spec_of(specs, Method::Post, false),
            update: spec_of(specs, Method::Put, true),
            delete: spec_of(specs, Method::Delete, true),
        })
    }

    fn stores(&mut self, metrics: &Arc<Metrics>) -> Vec<Operation> {
        let (age, count, buffer) = (Duration::from_secs(1 << 30), 100, 10);
        let limits = alerts::Limits { age, count, buffer };
        let path = self.directory.path().join("alerts.redb");
        let alerts = AlertStore::start(path, limits, &Arc::default(), metrics, &self.supervisor);
        let (alerts, _thread) = alerts.expect("a thread");
        let mut alert = Alert::new(Component::L7, Severity::High, "no-admin", "deny", 1_800_000_000_000_000_000, "m");
        alert.id = ALERT.parse().expect("it is an id");
        alert.src_ip = Some("192.0.2.1".parse().expect("it is an address"));
        alerts.sink().write(&Arc::new(alert)).expect("there is room");
        let limits = audit::store::Limits { age, count, buffer };
        let path = self.directory.path().join("audit.redb");
        let (trail, _thread) = AuditStore::start(path, limits, metrics, &self.supervisor).expect("a thread");
        trail.record(Entry::new(Actor::config_reload(), "config reload", 200, "once"));
        let id: AlertId = ALERT.parse().expect("it is an id");
        let begin = Instant::now();
        while !matches!(alerts.get(id), Ok(Some(_))) {
            assert!(begin.elapsed() < Duration::from_secs(60), "the alert is not written: {:?}", alerts.health());
            std::thread::sleep(Duration::from_millis(5));
        }
        [store::api::operations(Some(&alerts), Arc::new(|_, _| Ok(None))), audit::api::operations(Some(&trail))]
            .into_iter()
            .flatten()
            .collect()
    }
}

fn read_parameters(request: &Request) -> Result<Reply, ApiError> {
    for name in request.spec.path_params() {
        request.path(name)?;
    }
    for param in request.spec.query {
        request.query(param.name);
    }
    Ok(Reply::NoContent)
}

fn explain(request: &Request) -> Result<Reply, ApiError> {
    let question = Question::read(&request.body).map_err(invalid)?;
    assert!(question.frame().is_some_and(|frame| frame.len() >= 14), "{question:?}");
    Ok(Reply::NoContent)
}

/// What the front makes of bytes that come in pieces of a size.
fn read(bytes: &[u8], size: usize, hosts: &Hosts) -> Result<Option<(Head, Body)>, Refusal> {
    let mut input = Vec::new();
    let mut request: Option<(Head, Body)> = None;
    for piece in bytes.chunks(size) {
        match &mut request {
            Some((_, body)) if body.is_complete() => break,
            Some((_, body)) => body.take(piece)?,
            None => {
                input.extend_from_slice(piece);
                if input.len() > piece.len() && !piece.contains(&b'\n') {
                    continue;
                }
                if let Some((head, length)) = head::parse(&input, hosts, BODY_MAX)? {
                    let mut body = Body::new(head.framing, BODY_MAX);
                    body.take(&input[length..])?;
                    request = Some((head, body));
                }
            }
        }
        assert!(request.as_ref().is_none_or(|(_, body)| body.bytes.len() <= BODY_MAX));
    }
    Ok(request)
}

/// The header fields of the client's that go on, by their names.
fn check_rewritten(head: &Head, length: usize) -> Vec<(String, String)> {
    let peer = "192.0.2.7:5";
    let sender = Sender { kind: Kind::Rest, peer: Peer::Net(peer.parse().expect("an address")), certificate: None };
    let text = head.rewrite(&sender, length);
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut request = httparse::Request::new(&mut fields);
    assert_eq!(request.parse(&text), Ok(httparse::Status::Complete(text.len())), "{head:?}");
    let line = (request.method, request.path, request.version);
    assert_eq!(line, (Some(head.method.as_str()), Some(head.target.as_str()), Some(1)));
    assert!(text.is_ascii(), "{head:?}");
    let fields = request
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8(field.value.to_vec()).expect("it is ASCII")));
    let (ours, theirs): (Vec<_>, Vec<_>) = fields.partition(|(name, _)| OURS.contains(&name.as_str()));
    let length = length.to_string();
    let values = ["agent", "close", &length, "rest", peer].map(str::to_owned);
    let want: Vec<_> = OURS.map(str::to_owned).into_iter().zip(values).collect();
    assert_eq!(ours, want);
    for (at, (name, _)) in theirs.iter().enumerate() {
        assert!(RELAYED.contains(&name.as_str()), "{name}");
        assert!(theirs[at + 1..].iter().all(|(other, _)| other != name), "{name} twice");
    }
    theirs
}

#[track_caller]
fn check_error(error: &ApiError) {
    assert!((400..=599).contains(&error.status) && error.status != 500, "{error}");
    assert!(!error.code.is_empty() && !error.message.is_empty(), "{error}");
    assert!(error.message.len() <= 64 << 10, "a message of {} bytes", error.message.len());
}

fn answer(port: &Port, head: &Head, fields: &[(String, String)], body: Vec<u8>) {
    let (operation, call) = match port.routes.find(&head.method, &head.target) {
        Ok(found) => found,
        Err(miss) => return check_error(&miss.error),
    };
    let value = |name: &str| fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
    let (api_key, bearer) = (value("x-api-key"), value("authorization").map(auth::bearer));
    let shown = Credentials { api_key, bearer, ..Credentials::default() };
    let caller = match port.auth.admit(operation.spec, &shown, None) {
        Ok(caller) => caller,
        Err(refusal) => {
            assert!(matches!(refusal.error.status, 401 | 403), "{refusal:?}");
            return check_error(&refusal.error);
        }
    };
    if operation.spec.role > Role::Public {
        let holds = KEYS.iter().any(|&(key, role)| {
            role >= operation.spec.role && role == caller.role && [api_key, bearer].contains(&Some(key))
        });
        assert!(holds, "{caller:?} by {shown:?}");
    }
    let mut call = match call {
        Ok(call) => call.called_by(caller),
        Err(error) => return check_error(&error),
    };
    call.last_event_id = value("last-event-id").map(str::to_owned);
    if operation.spec.body.is_none() && !body.is_empty() {
        return;
    }
    call.body = body;
    match (operation.run)(&call) {
        Ok(reply) => assert!((200..300).contains(&reply.status()), "{reply:?}"),
        Err(error) => check_error(&error),
    }
    if operation.spec.method != Method::Get {
        if let Some(expired) = port.confirmations.expire(Instant::now() + Duration::from_secs(1 << 20)) {
            expired.undone.expect("it can be taken back");
        }
        port.empty.iter().for_each(|empty| empty());
    }
}

pub fn run(bytes: &[u8]) {
    PORT.with(|port| {
        let whole = read(bytes, usize::MAX, &port.hosts);
        match (&whole, read(bytes, 1 + bytes.len() % 97, &port.hosts)) {
            // It waits for the end of a line.
            (_, Ok(None)) => {}
            (Ok(Some((head, body))), Ok(Some((other, others)))) => {
                assert_eq!((head, &body.bytes, body.is_complete()), (&other, &others.bytes, others.is_complete()));
            }
            (Err(refusal), Err(other)) => assert_eq!(*refusal, other),
            (whole, cut) => panic!("cut it is {cut:?}, and whole {whole:?}"),
        }
        match whole {
            Ok(Some((head, body))) => {
                let fields = check_rewritten(&head, body.bytes.len());
                if body.is_complete() {
                    answer(port, &head, &fields, body.bytes);
                }
            }
            Ok(None) => {}
            Err(refusal) => assert!((400..=599).contains(&refusal.status) && !refusal.message.is_empty()),
        }
    });
}
