//! Receivers in Python, and outlets that send to them.

use std::convert::Infallible;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpfsentinel::alert::sinks::config::{Destination, SmtpConfig};
use ebpfsentinel::alert::sinks::{Outlets, Prepared, Sink, Sinks};
use ebpfsentinel::alert::{Alert, Severity};
use ebpfsentinel::component::Component;
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::supervise::Supervisor;
use ebpfsentinel::written::Document;
use serde_json::Value;

const PYTHON: &str = "/usr/bin/python3";
/// Nothing here takes so long, but on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with a certificate of `localhost` and 127.0.0.1, and of another host, and who signed them.
pub struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Scene {
        let scene = Scene { folder: tempfile::tempdir().unwrap() };
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "authority of the test");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap();
        fs::write(scene.path("ca.pem"), authority.pem()).unwrap();
        for (file, names) in [("host", ["localhost", "127.0.0.1"]), ("other", ["other.example", "192.0.2.1"])] {
            let key = rcgen::KeyPair::generate().unwrap();
            let parameters = rcgen::CertificateParams::new(names.map(str::to_owned)).unwrap();
            let certificate = parameters.signed_by(&key, &authority).unwrap();
            fs::write(scene.path(&format!("{file}.pem")), certificate.pem()).unwrap();
            fs::write(scene.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
        }
        scene.mode("ok");
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path as a string of TOML.
    pub fn quoted(&self, name: &str) -> String {
        format!("'{}'", self.path(name).display())
    }

    /// What the webhook does from now on.
    pub fn mode(&self, mode: &str) {
        // In one step: the receiver reads it at any time.
        fs::write(self.path("mode.new"), mode).unwrap();
        fs::rename(self.path("mode.new"), self.path("mode")).unwrap();
    }

    /// Starts a receiver; what it gets goes to the file of its kind.
    pub fn receiver(&self, kind: &str, port: u16) -> Receiver {
        self.receiver_with(kind, port, "host")
    }

    /// A receiver with the certificate of that name.
    pub fn receiver_with(&self, kind: &str, port: u16, certificate: &str) -> Receiver {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sinks/receiver.py");
        let out = self.path(kind);
        let mut command = Command::new(PYTHON);
        command.arg(script).arg(kind).arg(port.to_string()).arg(&out);
        if matches!(kind, "webhook" | "http") {
            command.arg(self.path("mode"));
        }
        command.arg(self.path(&format!("{certificate}.pem"))).arg(self.path(&format!("{certificate}.key")));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let receiver = Receiver { child, out };
        assert_eq!(line, "ready\n", "receiver {kind}");
        receiver
    }
}

/// A port that nobody listens on just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A receiver, until it is dropped.
pub struct Receiver {
    child: Child,
    out: PathBuf,
}

impl Receiver {
    /// What it got until now.
    pub fn records(&self) -> Vec<Value> {
        records(&self.out)
    }

    /// Waits until it got so many, and gives them.
    pub fn wait(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} records in {}", self.out.display()), || self.records().len() >= count);
        self.records()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole lines of a file.
pub fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waiting in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads a destination as a route of the configuration has it.
pub fn destination(toml: &str) -> Destination {
    let document = Document::toml("route", toml.as_bytes()).unwrap();
    let outcome = document.read(|root| {
        let mut r = root.table().unwrap();
        let smtp = SmtpConfig::read(&r.key("smtp"));
        let destination = Destination::read(&mut r, smtp.as_ref());
        r.finish();
        destination
    });
    outcome.into_result().unwrap_or_else(|errors| panic!("{toml}\n{errors:#?}")).unwrap()
}

/// Outlets as the agent has them.
pub struct Running {
    pub outlets: Option<Outlets>,
    pub sinks: Vec<Box<dyn Sink>>,
    pub metrics: Arc<Metrics>,
}

impl Running {
    /// Outlets of these routes: name, and the route as written.
    pub fn new(scene: &Scene, routes: &[(&str, String)]) -> Running {
        Running::in_state(&scene.path("state"), routes)
    }

    /// The same with another state directory.
    pub fn in_state(state: &Path, routes: &[(&str, String)]) -> Running {
        ebpfsentinel::outbound::install_crypto();
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let metrics = Metrics::new();
        let outlets = Outlets::new(supervisor, metrics.clone(), state.to_owned());
        let mut running = Running { outlets: Some(outlets), sinks: Vec::new(), metrics };
        running.reload(routes);
        running
    }

    /// Other routes.
    pub fn reload(&mut self, routes: &[(&str, String)]) {
        let wanted: Vec<(&str, Destination)> = routes.iter().map(|(name, toml)| (*name, destination(toml))).collect();
        let outlets = self.outlets.as_mut().unwrap();
        let prepared = outlets.prepare(wanted.iter().map(|(name, destination)| (*name, destination))).unwrap();
        self.commit(prepared);
    }

    /// What was prepared.
    pub fn commit(&mut self, prepared: Prepared) {
        let take = |sinks: Sinks| {
            self.sinks = sinks.into_values().collect();
            Ok::<(), Infallible>(())
        };
        self.outlets.as_mut().unwrap().commit(prepared, take).unwrap();
    }

    /// Tells all sinks of these alerts, as the router does.
    pub fn tell(&mut self, range: std::ops::Range<usize>) {
        for number in range {
            let alert = Arc::new(alert(number));
            for sink in &mut self.sinks {
                if let Err(reason) = sink.write(&alert) {
                    self.metrics.events_lost(sink.name().to_owned(), reason).inc();
                }
            }
        }
    }

    pub fn stop(mut self) -> Arc<Metrics> {
        self.sinks.clear();
        self.outlets.take().unwrap().stop(Duration::from_secs(20));
        self.metrics
    }

    /// What the metrics say of a destination: circuit, delivered, failed.
    pub fn sender(&self, name: &str) -> (i64, u64, u64) {
        let sender = self.metrics.sender(name);
        (sender.circuit.get(), sender.delivered.get(), sender.failed.get())
    }
}

/// An alert whose message is a number.
pub fn alert(number: usize) -> Alert {
    let mut alert = Alert::new(Component::L7, Severity::High, "rule-1", "blocked", 1_796_064_031_123_456_789, "");
    alert.message = number.to_string();
    alert.src_ip = Some("2001:db8::7".parse().unwrap());
    alert.dst_ip = Some("192.0.2.1".parse().unwrap());
    alert.dst_port = Some(443);
    alert.protocol = Some(6);
    alert
}

/// Numbers, each once where it came several times in a row or again later: deliveries are at least once.
pub fn once(numbers: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut seen = std::collections::HashSet::new();
    numbers.into_iter().filter(|number| seen.insert(*number)).collect()
}
