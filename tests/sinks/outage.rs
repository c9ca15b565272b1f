//! Every receiver is dead for the length of 10,000 alerts, and the agent is restarted meanwhile.

use std::sync::Arc;
use std::sync::Mutex;

use ebpfsentinel::alert::Alert;
use ebpfsentinel::alert::sinks::Sink;
use serde_json::Value;

use crate::support::{Receiver, Running, Scene, free_port, once, records, until};

const ALERTS: usize = 10_000;
/// Kinds of receivers; each is a route of the same name.
const KINDS: [&str; 5] = ["webhook", "smtp", "udp", "tcp", "tls"];

/// Takes at once what it is told: the part of the log, or of the store.
struct Prompt(Arc<Mutex<Vec<usize>>>);

impl Sink for Prompt {
    fn name(&self) -> &str {
        "prompt"
    }

    fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str> {
        self.0.lock().unwrap().push(alert.message.parse().unwrap());
        Ok(())
    }
}

fn route(scene: &Scene, kind: &str, port: u16) -> String {
    let ca = format!("ca_file = {}", scene.quoted("ca.pem"));
    let common = "spool = '64MiB'\nbreaker_secs = 1\nbreaker_failures = 3\ntimeout_secs = 10\n";
    match kind {
        "webhook" => format!(
            "destination = 'webhook'\nwebhook_url = 'https://localhost:{port}/'\nallow_private = true\nwebhook_batch = 100\n\
             {common}{ca}\n"
        ),
        "smtp" => format!(
            "destination = 'email'\nemail_to = ['soc@example.org']\ndigest_secs = 0\ndigest_max = 1000\n{common}[smtp]\n\
             host = 'localhost'\nport = {port}\nfrom_address = 'a@example.org'\nusername = 'agent'\n\
             password = 'pass word'\n{ca}\n"
        ),
        _ => {
            let ca = if kind == "tls" { ca } else { String::new() };
            format!("destination = 'syslog'\nhost = '127.0.0.1'\nport = {port}\ntransport = '{kind}'\n{common}{ca}\n")
        }
    }
}

/// The numbers of the alerts that a receiver got, in order.
fn numbers(kind: &str, records: &[Value]) -> Vec<usize> {
    let text = |record: &Value, key: &str| record[key].as_str().unwrap().to_owned();
    match kind {
        "webhook" => crate::numbers_of(records),
        "smtp" => {
            let bodies = records.iter().map(|record| text(record, "text"));
            let lines = |body: String| -> Vec<usize> {
                body.lines().filter_map(|line| line.strip_prefix("message: ")?.parse().ok()).collect()
            };
            bodies.flat_map(lines).collect()
        }
        _ => {
            let last = |record: &Value| text(record, "message").rsplit(' ').next().unwrap().parse().unwrap();
            records.iter().map(last).collect()
        }
    }
}

#[test]
fn ten_thousand_alerts_wait_for_their_receivers_and_arrive_in_order() {
    let scene = Scene::new();
    let ports = KINDS.map(|kind| (kind, free_port()));
    let mut routes: Vec<(&str, String)> =
        ports.iter().map(|(kind, port)| (*kind, route(&scene, kind, *port))).collect();
    routes.push(("eve", format!("destination = 'eve'\npath = {}", scene.quoted("eve.json"))));
    let start = || -> Vec<Receiver> { ports.iter().map(|(kind, port)| scene.receiver(kind, *port)).collect() };
    let receivers = start();
    let mut running = Running::new(&scene, &routes);
    let heard = Arc::new(Mutex::new(Vec::new()));
    running.sinks.push(Box::new(Prompt(heard.clone())));
    running.tell(0..100);
    for kind in KINDS {
        until(&format!("{kind} is there"), || running.sender(kind).1 == 100);
    }

    drop(receivers);
    for chunk in 0..ALERTS / 100 {
        running.tell(100 + chunk * 100..200 + chunk * 100);
        // As fast as the spools and the file take them, which are not dead.
        until("queues have room", || {
            KINDS.iter().chain(&["eve"]).all(|kind| running.metrics.sender(kind).queue.get() < 4000)
        });
    }
    assert_eq!(*heard.lock().unwrap(), (0..ALERTS + 100).collect::<Vec<_>>(), "the prompt one heard all meanwhile");
    for kind in KINDS {
        until(&format!("the circuit of {kind} opens"), || running.sender(kind).0 == 2);
        assert_eq!((running.sender(kind).1, running.sender(kind).2), (100, 0), "{kind}");
    }
    until("the file is written", || running.sender("eve").1 == (ALERTS + 100) as u64);

    // Another run of the agent finds them on the disk.
    let metrics = running.stop();
    for kind in KINDS {
        assert!(metrics.sender(kind).spool_bytes.get() > 1_000_000, "{kind}");
    }
    let receivers = start();
    let running = Running::new(&scene, &routes);
    for (kind, receiver) in KINDS.iter().zip(&receivers) {
        until(&format!("{kind} gets all"), || running.sender(kind).1 >= ALERTS as u64);
        until(&format!("all of {kind} is written down"), || {
            once(numbers(kind, &receiver.records())).len() >= ALERTS + 100
        });
        assert_eq!(once(numbers(kind, &receiver.records())), (0..ALERTS + 100).collect::<Vec<_>>(), "{kind}");
        assert_eq!(running.sender(kind).2, 0, "{kind}");
        until(&format!("the spool of {kind} is empty"), || running.metrics.sender(kind).spool_bytes.get() == 0);
    }
    let lines = records(&scene.path("eve.json"));
    assert_eq!(lines.len(), ALERTS + 100);
    let lost = metrics.render() + &running.stop().render();
    for line in lost.lines().filter(|line| line.starts_with("ebpfsentinel_events_lost_total{place=\"sink_")) {
        assert!(line.ends_with(" 0"), "{line}");
    }
}
