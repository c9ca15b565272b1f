//! Alerts from packets on a wire to other programs: a webhook that dies and comes back, over a restart of the agent, and a
//! file of EVE JSON.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ebpfsentinel::lab::Process;
use serde_json::Value;

use super::support::{Lab, WORLD, config, rule, udp, wait_for, wait_until};

const PYTHON: &str = "/usr/bin/python3";
const RECEIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sinks/receiver.py");
const PORT: u16 = 8199;

/// Starts a webhook on the host's loopback, which writes to a file what it gets.
fn webhook(lab: &Lab, out: &Path) -> Process {
    let mode = out.with_extension("mode");
    std::fs::write(&mode, "ok").unwrap();
    let mut command = lab.host.command(PYTHON).unwrap();
    let process = Process::start(command.arg(RECEIVER).arg("http").arg(PORT.to_string()).arg(out).arg(mode)).unwrap();
    wait_until("the webhook listens", || process.output().contains("ready"));
    process
}

fn end(mut process: Process) {
    process.stop(Duration::from_secs(10)).unwrap();
}

/// The destination ports that lines of JSON tell of, by the alert in each.
fn ports(path: &Path, alert: impl Fn(Value) -> Value, key: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |line: &str| alert(serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")));
    let mut ports: Vec<u64> = whole.lines().map(|line| read(line)[key].as_u64().unwrap()).collect();
    ports.dedup();
    ports
}

#[test]
fn an_alert_reaches_a_webhook_that_was_down_and_a_file() {
    let lab = Lab::new();
    let folder: PathBuf = lab.config_path().parent().unwrap().to_owned();
    let (eve, hook) = (folder.join("eve.json"), folder.join("hook.json"));
    let rules = [rule("shut", 10, "deny", "protocol = \"udp\"\ndst_port = \"1000-1099\"\nlog = true\n")];
    let text = format!(
        "{}\n[[alerting.routes]]\nname = \"hook\"\ndestination = \"webhook\"\nwebhook_url = \"http://127.0.0.1:{PORT}/s3cret\"\n\
         webhook_secret = \"k3y\"\nallow_private = true\ninsecure = true\nspool = \"1MiB\"\nbreaker_failures = 2\n\
         breaker_secs = 1\n[[alerting.routes]]\nname = \"file\"\ndestination = \"eve\"\npath = \"{}\"\n",
        config("", "mode = \"block\"", &rules),
        eve.display()
    );
    let in_hook = || {
        let body = |record: Value| serde_json::from_str(record["body"].as_str().unwrap()).unwrap();
        ports(&hook, body, "dst_port")
    };
    let in_eve = || ports(&eve, |line| line, "dest_port");
    let send =
        |port: u16| assert!(lab.arrive(&[lab.addressed(udp(WORLD, port)).build()]).iter().all(|arrived| !arrived));
    let delivered = "ebpfsentinel_alert_sender_alerts_total{destination=\"hook\",result=\"delivered\"}";
    let circuit = "ebpfsentinel_alert_sender_circuit_state{destination=\"hook\"}";

    let receiver = webhook(&lab, &hook);
    let agent = lab.start(&text);
    send(1000);
    wait_until("the webhook has it", || in_hook() == [1000]);
    wait_until("it is counted", || lab.metric(delivered) == 1.0);
    assert_eq!(lab.metric(circuit), 0.0);
    end(receiver);
    (1001..1020).for_each(send);
    wait_until("the circuit is open", || lab.metric(circuit) == 2.0);
    wait_until("the file has all", || in_eve() == (1000..1020).collect::<Vec<u64>>());
    let line = std::fs::read_to_string(&eve).unwrap();
    let line: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!((&line["event_type"], &line["alert"]["action"]), (&"alert".into(), &"blocked".into()));
    assert_eq!((&line["src_ip"], &line["proto"]), (&WORLD.into(), &"UDP".into()));
    assert!(line["flow_id"].as_u64().is_some_and(|id| id > 0), "{line}");
    assert_eq!(line["alert"]["metadata"]["rule"], serde_json::json!(["shut"]));
    let shown = lab.get("/api/v1/config").to_string();
    assert!(
        shown.contains("http://127.0.0.1:8199/***") && !shown.contains("s3cret") && !shown.contains("k3y"),
        "{shown}"
    );
    let said = agent.stop();
    assert!(said.contains("alerts cannot be delivered") && !said.contains("s3cret") && !said.contains("k3y"), "{said}");

    // The next run, and the webhook is back: the spool goes first.
    let agent = lab.start(&text);
    send(1020);
    let receiver = webhook(&lab, &hook);
    wait_until("the webhook has all", || in_hook().len() >= 21);
    assert_eq!(in_hook(), (1000..1021).collect::<Vec<u64>>());
    wait_for("nothing waits", || {
        (lab.metric("ebpfsentinel_alert_sender_spool_bytes{destination=\"hook\"}") == 0.0).then_some(())
    });
    agent.stop();
    end(receiver);
}
