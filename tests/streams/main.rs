//! Streams of alerts from outside: curl, a gRPC client that learns the service by reflection, and clients that are slow,
//! too many, or gone.

mod auth;
mod grpc;
mod sse;
mod watch;

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ebpfsentinel::alert::hub::{Hub, HubSink};
use ebpfsentinel::alert::sinks::Sink;
use ebpfsentinel::alert::{Alert, AlertId, Severity};
use ebpfsentinel::component::Component;
use ebpfsentinel::control::grpc::{Grpc, GrpcConfig};
use ebpfsentinel::control::{Control, ControlConfig, stream};
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::supervise::{Failures, Supervisor};

/// Above all that anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The ring of a bench: small, so that a slow client is soon too slow.
const RING: usize = 64;
/// Debian's, which has the modules that packaging/setup installs.
const PYTHON: &str = "/usr/bin/python3";
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/grpc_client.py");

/// A control port and a gRPC port over one hub, as the agent has them.
struct Bench {
    hub: Hub,
    sink: Mutex<HubSink>,
    metrics: Arc<Metrics>,
    rest: SocketAddr,
    grpc_address: SocketAddr,
    control: Option<Control>,
    grpc: Option<Grpc>,
    failures: Failures,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(RING, |_, _| ())
    }

    fn with(ring: usize, change: impl FnOnce(&mut ControlConfig, &mut GrpcConfig)) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let (hub, metrics) = (Hub::new(ring), Metrics::new());
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut control = ControlConfig::new(any, directory.path().join("run"));
        let mut grpc = GrpcConfig::new(any, hub.clone());
        change(&mut control, &mut grpc);
        let operations = vec![stream::operation(hub.clone(), stream::STREAMS_MAX, &metrics)];
        let control = Control::start(control, operations, metrics.clone()).unwrap();
        let (supervisor, failures) = Supervisor::new().unwrap();
        let grpc = Grpc::start(grpc, &supervisor, &metrics).unwrap();
        Bench {
            sink: Mutex::new(hub.sink()),
            hub,
            metrics,
            rest: control.addresses().rest,
            grpc_address: grpc.address(),
            control: Some(control),
            grpc: Some(grpc),
            failures,
            directory,
        }
    }

    fn tell(&self, alert: Alert) -> AlertId {
        let id = alert.id;
        self.sink.lock().unwrap().write(&Arc::new(alert)).unwrap();
        id
    }

    fn url(&self, query: &str) -> String {
        format!("http://{}/api/v1/alerts/stream{query}", self.rest)
    }

    /// Waits until so many clients listen.
    fn listeners(&self, kind: &str, number: usize) {
        let line = format!("ebpfsentinel_stream_clients{{kind=\"{kind}\"}} {number}");
        wait_until(&line, || self.metrics.render().lines().any(|own| own == line));
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.render();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// curl on the stream.
    fn curl(&self, query: &str, options: &[&str]) -> Client {
        let url = self.url(query);
        Client::start(Command::new("curl").args(["-sN", "--max-time", "120"]).args(options).arg(url))
    }

    fn grpc(&self, words: &[&str]) -> Client {
        let address = self.grpc_address.to_string();
        let at = words.iter().position(|word| !word.starts_with("--")).unwrap();
        Client::start(Command::new(PYTHON).arg(CLIENT).args(&words[..at]).arg(address).args(&words[at..]))
    }

    fn stop(&mut self) {
        self.hub.close();
        if let Some(grpc) = self.grpc.take() {
            grpc.stop().unwrap();
        }
        if let Some(control) = self.control.take() {
            control.stop();
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
            assert_eq!(self.failures.take(), None, "a thread failed");
        }
    }
}

/// A program that talks to a port. Killed when dropped.
struct Client {
    child: Child,
    said: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
    stdin: Option<ChildStdin>,
}

impl Client {
    fn start(command: &mut Command) -> Client {
        use std::io::Read;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, mut stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let said = Arc::new(Mutex::new(String::new()));
        let reader = std::thread::spawn({
            let said = said.clone();
            move || {
                let mut block = [0; 64 << 10];
                while let Ok(n @ 1..) = stdout.read(&mut block) {
                    said.lock().unwrap().push_str(&String::from_utf8_lossy(&block[..n]));
                }
            }
        });
        Client { child, said, reader: Some(reader), stdin }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// The whole lines that it has said.
    fn lines(&self) -> Vec<String> {
        let said = self.said();
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(str::to_owned).collect()
    }

    /// Waits until it has said so many lines that `counts`.
    fn wait_lines(&self, number: usize, counts: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        // Where it stands in the text: what was looked at is not looked at again.
        let (mut at, mut found) = (0, 0);
        while found < number {
            {
                let said = self.said.lock().unwrap();
                let whole = said.rfind('\n').map_or(0, |end| end + 1);
                found += said[at..whole].lines().filter(|line| counts(line)).count();
                at = whole;
            }
            assert!(Instant::now() < deadline, "not {number} of them in {}", self.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn go_on(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// Waits for its end; all that it has said.
    fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        };
        self.reader.take().unwrap().join().unwrap();
        (status.code(), self.said())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Fails only when it has been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn alert(rule: &str) -> Alert {
    let mut alert = Alert::new(Component::Firewall, Severity::Medium, rule, "deny", 1_500_000_000, "denied");
    alert.src_ip = Some("2001:db8::7".parse().unwrap());
    alert.dst_ip = Some("2001:db8::1".parse().unwrap());
    alert.dst_port = Some(22);
    alert.protocol = Some(6);
    alert
}

/// A long one, so that buffers between here and the client fill soon.
fn long_alert(rule: &str) -> Alert {
    Alert { message: "x".repeat(16_000), ..alert(rule) }
}
