//! `alerts watch`, the real program.

use std::net::TcpListener;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::*;

const BINARY: &str = env!("CARGO_BIN_EXE_ebpfsentinel-agent");

/// The command, asking at `port`.
fn watch(port: u16, words: &[&str]) -> Client {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EBPFSENTINEL_")) {
        command.env_remove(name);
    }
    let port = port.to_string();
    command.args(["--host", "127.0.0.1", "--port", &port, "alerts", "watch"]).args(words);
    Client::start(&mut command)
}

fn rules(client: &Client) -> Vec<String> {
    let text = |line: &String| serde_json::from_str::<Value>(line).unwrap();
    client.lines().iter().map(|line| text(line)["rule_id"].as_str().unwrap_or("gap").to_owned()).collect()
}

#[test]
fn it_prints_alerts_until_ctrl_c() {
    let bench = Bench::new();
    let people = watch(bench.rest.port(), &[]);
    let program =
        watch(bench.rest.port(), &["-o", "json", "--severity", "high", "--component=firewall", "--rule", "s*"]);
    bench.listeners("sse", 2);
    bench.tell(alert("other"));
    bench.tell(Alert { severity: Severity::High, message: "a\x1b[2Jb".to_owned(), ..alert("ssh") });
    people.wait_lines(2, |_| true);
    program.wait_lines(1, |_| true);
    let lines = people.lines();
    assert_eq!(
        lines[0],
        "1970-01-01T00:00:01Z medium   firewall  other deny 2001:db8::7 -> [2001:db8::1]:22 tcp: denied"
    );
    assert!(lines[1].ends_with("tcp: a\\u001b[2Jb"), "{lines:?}");
    assert_eq!(rules(&program), ["ssh"]);
    for client in [people, program] {
        kill(Pid::from_raw(client.child.id() as i32), Signal::SIGINT).unwrap();
        assert_eq!(client.end().0, Some(0));
    }
    bench.listeners("sse", 0);
}

#[test]
fn it_begins_where_it_is_told_to_and_shows_gaps() {
    let bench = Bench::with(2, |_, _| ());
    let ids: Vec<AlertId> = (0..4).map(|number| bench.tell(alert(&number.to_string()))).collect();
    let after = watch(bench.rest.port(), &["-o", "json", "--after", &ids[2].to_string()]);
    after.wait_lines(1, |_| true);
    assert_eq!(rules(&after), ["3"]);
    let gone = watch(bench.rest.port(), &["--after", &ids[0].to_string()]);
    gone.wait_lines(3, |_| true);
    assert_eq!(gone.lines()[0], "--- Some alerts are missing here (unknown_id) ---");
}

#[test]
fn it_comes_back_after_an_interruption_and_misses_nothing() {
    // The same address twice: nobody else takes it meanwhile, as it is not one that the kernel gives away.
    let port = TcpListener::bind("127.0.0.7:0").unwrap().local_addr().unwrap().port();
    let rest: SocketAddr = format!("127.0.0.7:{port}").parse().unwrap();
    let mut bench = Bench::with(RING, |control, _| control.rest = rest.into());
    let client = watch_at("127.0.0.7", port);
    bench.listeners("sse", 1);
    bench.tell(alert("before"));
    client.wait_lines(1, |_| true);
    // The port closes, and opens again over the same hub, which has gone on.
    let metrics = bench.metrics.clone();
    bench.control.take().unwrap().stop();
    bench.listeners("sse", 0);
    bench.tell(alert("meanwhile"));
    let mut config = ControlConfig::new(rest, bench.directory.path().join("again"));
    config.limits.stop_timeout = Duration::from_secs(1);
    let operations = vec![stream::operation(bench.hub.clone(), stream::STREAMS_MAX, &metrics)];
    bench.control = Some(Control::start(config, operations, metrics).unwrap());
    bench.listeners("sse", 1);
    bench.tell(alert("after"));
    client.wait_lines(3, |_| true);
    assert_eq!(rules(&client), ["before", "meanwhile", "after"]);
}

fn watch_at(host: &str, port: u16) -> Client {
    let port = port.to_string();
    let words = ["--host", host, "--port", &port, "-o", "json", "alerts", "watch"];
    Client::start(Command::new(BINARY).args(words).env_remove("EBPFSENTINEL_TOKEN"))
}

#[test]
fn what_cannot_be_is_said_and_ends_it() {
    let bench = Bench::new();
    let code = |client: Client| client.end().0;
    assert_eq!(code(watch(bench.rest.port(), &["--severity", "loud"])), Some(1));
    assert_eq!(code(watch(bench.rest.port(), &["--after", "7"])), Some(1));
    assert_eq!(code(watch(1, &[])), Some(3));
    assert_eq!(code(watch(bench.rest.port(), &["--nosuch"])), Some(2));
    assert_eq!(bench.metric("ebpfsentinel_stream_clients{kind=\"sse\"}"), 0);
}

#[test]
fn it_ends_when_nobody_reads() {
    let bench = Bench::new();
    let mut command = Command::new("sh");
    let port = bench.rest.port().to_string();
    let script = "\"$0\" --host 127.0.0.1 --port \"$1\" alerts watch | head -n 1";
    let client = Client::start(command.args(["-c", script, BINARY, &port]).env_remove("EBPFSENTINEL_TOKEN"));
    bench.listeners("sse", 1);
    bench.tell(alert("first"));
    client.wait_lines(1, |_| true);
    // The first line that nobody reads is the last one.
    wait_until("it has ended", || {
        bench.tell(alert("more"));
        bench.metrics.render().contains("ebpfsentinel_stream_clients{kind=\"sse\"} 0")
    });
    assert!(client.end().1.contains(" first "));
}
