//! Streams of alerts from the real agent: curl, a gRPC client and `alerts watch` hear what packets on a wire cause, and who
//! comes back after a restart gets from the store what he missed.

use ebpfsentinel::lab::Process;
use ebpfsentinel::packet::build::Packet;
use nix::sys::signal::Signal;

use super::support::{Agent, BINARY, Lab, WITHIN, WORLD, config, rule, udp, wait_until};

const PYTHON: &str = "/usr/bin/python3";
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/grpc_client.py");
const URL: &str = "http://127.0.0.1:8080/api/v1/alerts/stream";

fn listen(lab: &Lab, program: &str, words: &[&str]) -> Process {
    let mut command = lab.host.command(program).unwrap();
    Process::start(command.args(words).env_remove("EBPFSENTINEL_TOKEN")).unwrap()
}

fn hears(client: &Process, text: &str) {
    wait_until(&format!("a client hears {text:?}"), || client.output().contains(text));
}

fn denied(lab: &Lab, port: u16) {
    let packet: Packet = udp(WORLD, port);
    assert!(!lab.passes(packet));
}

fn listeners(lab: &Lab, kind: &str) -> f64 {
    lab.metric(&format!("ebpfsentinel_stream_clients{{kind=\"{kind}\"}}"))
}

/// The id of the alert of a port, once the store has it.
fn id_of(lab: &Lab, port: u16) -> String {
    let mut id = None;
    wait_until("the store has the alert", || {
        let found = lab.get("/api/v1/alerts");
        let mut alerts = found["alerts"].as_array().unwrap().iter();
        id = alerts.find(|alert| alert["dst_port"] == port).map(|alert| alert["id"].as_str().unwrap().to_owned());
        id.is_some()
    });
    id.unwrap()
}

#[test]
fn alerts_are_heard_live_and_after_a_restart() {
    let lab = Lab::new();
    let shut = rule("shut", 10, "deny", "protocol = \"udp\"\ndst_port = \"1000-1099\"\nlog = true");
    let text = config("", "mode = \"block\"", &[shut]);
    let agent = lab.start(&text);
    assert_eq!(lab.get("/api/v1/agent/status")["grpc_address"], "127.0.0.1:50051");
    let mut curl = listen(&lab, "curl", &["-sN", URL]);
    let mut grpc = listen(&lab, PYTHON, &[CLIENT, "127.0.0.1:50051", "stream", r#"{"component": "firewall"}"#]);
    let mut watch = listen(&lab, BINARY, &["--host", "127.0.0.1", "-o", "json", "alerts", "watch"]);
    wait_until("all three listen", || (listeners(&lab, "sse"), listeners(&lab, "grpc")) == (2.0, 1.0));
    denied(&lab, 1000);
    hears(&curl, "\"dst_port\":1000");
    hears(&watch, "\"dst_port\":1000");
    hears(&grpc, "\"dst_port\": 1000");
    assert!(grpc.output().contains("\"src_ip\": \"192.0.2.1\""), "{}", grpc.output());
    let first = id_of(&lab, 1000);

    agent.stop();
    assert!(curl.wait(WITHIN).unwrap().is_some_and(|status| status.success()), "a stream ends with the agent");
    assert!(grpc.wait(WITHIN).unwrap().is_some());
    assert!(grpc.output().contains("UNAVAILABLE: the agent is stopping"), "{}", grpc.output());

    // A second run, in which something happens while nobody listens, and a third.
    let agent = lab.start(&text);
    denied(&lab, 1001);
    id_of(&lab, 1001);
    hears(&watch, "\"dst_port\":1001");
    agent.stop();
    let agent: Agent = lab.start(&text);
    let late = listen(&lab, "curl", &["-sN", "-H", &format!("Last-Event-ID: {first}"), URL]);
    hears(&late, "\"dst_port\":1001");
    denied(&lab, 1002);
    hears(&late, "\"dst_port\":1002");
    hears(&watch, "\"dst_port\":1002");
    assert!(!late.output().contains("event: gap") && !late.output().contains("\"dst_port\":1000"), "{}", late.output());
    let request = format!(r#"{{"resume_after_id": "{first}"}}"#);
    let again = listen(&lab, PYTHON, &[CLIENT, "127.0.0.1:50051", "stream", &request]);
    hears(&again, "\"dst_port\": 1002");
    assert!(again.output().contains("\"dst_port\": 1001") && !again.output().contains("\"gap\""), "{}", again.output());

    watch.signal(Signal::SIGINT).unwrap();
    assert!(watch.wait(WITHIN).unwrap().is_some_and(|status| status.success()), "{}", watch.output());
    agent.stop();
}
