//! Who may listen, and for how long.

use ebpfsentinel::audit::{Auditor, Entry};
use ebpfsentinel::config;
use ebpfsentinel::config::auth::AuthConfig;
use ebpfsentinel::control::auth::Auth;
use ebpfsentinel::control::grpc::gate_of;

use super::*;

const KEY: &str = "the-key-of-a-viewer-0";

fn section(keys: &str) -> AuthConfig {
    let text = format!("[agent]\ninterfaces = ['eth0']\n[auth]\nenabled = true\n{keys}");
    config::parse("c.toml", text.as_bytes(), [], &[]).map_err(|errors| errors.to_string()).unwrap().0.auth
}

fn key(name: &str, key: &str) -> String {
    format!("[[auth.api_keys]]\nname = '{name}'\nkey = '{key}'\n")
}

/// The audit trail.
#[derive(Default)]
struct Trail(Mutex<Vec<Entry>>);

impl Auditor for Trail {
    fn record(&self, entry: Entry) {
        self.0.lock().unwrap().push(entry);
    }
}

#[test]
fn a_key_lets_in_by_either_way_until_it_is_taken_away() {
    let (metrics, trail) = (Metrics::new(), Arc::new(Trail::default()));
    let (supervisor, _failures) = Supervisor::new().unwrap();
    let keys = key("see", KEY) + &key("other", "the-key-of-somebody-else");
    let auth = Auth::new(&section(&keys), &[], &metrics, &supervisor).unwrap();
    let bench = Bench::with(RING, |control, grpc| {
        control.limits.credentials_interval = Duration::ZERO;
        control.auth = Some(auth.clone());
        grpc.limits.credentials_interval = Duration::from_millis(50);
        grpc.gate = Some(gate_of(auth.clone(), trail.clone()));
    });
    let (_, said) = bench.curl("", &["-w", "\n%{http_code}"]).end();
    assert!(said.contains("AUTHENTICATION_REQUIRED") && said.ends_with("\n401"), "{said}");
    let (_, said) = bench.grpc(&["stream", "{}"]).end();
    assert!(said.starts_with("UNAUTHENTICATED: "), "{said}");
    let (_, said) = bench.grpc(&["--metadata=x-api-key=not-a-key-of-anybody", "stream", "{}"]).end();
    assert!(said.starts_with("UNAUTHENTICATED: "), "{said}");
    {
        let entries = trail.0.lock().unwrap();
        assert!(!entries.is_empty());
        for entry in &*entries {
            assert_eq!((entry.operation.as_str(), entry.outcome), ("alerts watch", 401));
            assert!(entry.detail.starts_with("gRPC StreamAlerts: "), "{}", entry.detail);
            assert!(entry.actor.address.is_some_and(|address| address.is_loopback()));
        }
    }

    let header = format!("X-API-Key: {KEY}");
    let (by_key, by_bearer) = (format!("--metadata=x-api-key={KEY}"), format!("--metadata=authorization=Bearer {KEY}"));
    let curl = bench.curl("", &["-H", &header]);
    let clients = [bench.grpc(&[&by_key, "stream", "{}"]), bench.grpc(&[&by_bearer, "stream", "{}"])];
    bench.listeners("sse", 1);
    bench.listeners("grpc", 2);
    bench.tell(alert("ssh"));
    for client in clients.iter().chain([&curl]) {
        client.wait_lines(1, |line| line.contains("ssh"));
    }
    let without = section(&key("other", "the-key-of-somebody-else"));
    auth.replace(auth.prepare(&without, &[]).unwrap());
    for client in clients {
        let (_, said) = client.end();
        assert!(said.lines().nth(1).is_some_and(|line| line.starts_with("UNAUTHENTICATED: ")), "{said}");
    }
    // The next that would be told is not.
    bench.tell(alert("secret"));
    let (_, said) = curl.end();
    assert!(said.contains("ssh") && !said.contains("secret"), "{said}");
    bench.listeners("sse", 0);
}
