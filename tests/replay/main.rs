//! `replay` as a user runs it: every capture in tests/data/captures, by the real binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use assert_cmd::Command;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

mod evasion;
mod firewall;
mod fixtures;
#[path = "../support/mod.rs"]
pub mod support;

/// No capture may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/captures")
}

struct Ran {
    code: i32,
    lines: String,
    notes: String,
}

fn run(arguments: &[&str], file: &Path) -> Ran {
    let began = Instant::now();
    let output = Command::cargo_bin("ebpfsentinel-agent")
        .unwrap()
        .arg("replay")
        .args(arguments)
        .arg(file)
        .timeout(PATIENCE)
        .output()
        .unwrap();
    assert!(began.elapsed() < PATIENCE, "{} took too long", file.display());
    Ran {
        code: output.status.code().unwrap_or(-1),
        lines: String::from_utf8(output.stdout).unwrap(),
        notes: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Notes without how long it took.
fn steady(notes: &str) -> String {
    let is_timed = |line: &&str| !line.starts_with("packets") && !line.starts_with("capture");
    notes.lines().filter(is_timed).map(|line| format!("{line}\n")).collect()
}

fn events(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of_kind<'e>(events: &'e [Value], kind: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["event_type"] == kind).collect()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The files are those that the code makes. With WRITE_CAPTURES they are written.
#[test]
fn captures_are_what_the_code_makes() {
    let mut known = Vec::new();
    for (name, bytes) in fixtures::all() {
        let path = captures().join(name);
        if std::env::var_os("WRITE_CAPTURES").is_some() {
            fs::create_dir_all(captures()).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert!(fs::read(&path).unwrap() == bytes, "{name} is not what tests/replay/fixtures.rs makes");
        known.push(name.to_owned());
    }
    let mut there: Vec<String> =
        fs::read_dir(captures()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    known.sort();
    there.sort();
    assert_eq!(there, known);
}

#[test]
fn every_capture_is_told_as_ever() {
    for (name, _) in fixtures::all() {
        let ran = run(&["--no-kernel", "--events"], &captures().join(name));
        assert_eq!(ran.code, 0, "{name}: {}", ran.notes);
        insta::assert_snapshot!(name, format!("{}---\n{}", ran.lines, without_folder(&steady(&ran.notes))));
    }
}

/// Section `[ids]` holds for a capture, too.
#[test]
fn a_configuration_says_how_deep() {
    let folder = tempfile::tempdir().unwrap();
    let config = |text: &str| {
        let path = folder.path().join(format!("{}.toml", text.len()));
        fs::write(&path, format!("[agent]\ninterfaces = [\"eth0\"]\n{text}")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (whole, shallow) = (config(""), config("[ids]\nstream_depth = 100\nudp_packets = 0\n"));
    let http = captures().join("http.pcap");
    let said = |config: &str, ways: &[&str]| run(&[ways, &["--events", "--config", config]].concat(), &http);
    let all = run(&["--no-kernel", "--events"], &http);
    assert_eq!(said(&whole, &["--no-kernel"]).lines, all.lines);
    let less = said(&shallow, &["--no-kernel"]);
    assert_eq!(less.code, 0, "{}", less.notes);
    assert!(all.notes.contains("dropped    0 past"), "{}", all.notes);
    assert!(!less.notes.contains("dropped    0 past"), "{}", less.notes);
    assert_ne!(less.lines, all.lines);
    if is_root() {
        assert_eq!(said(&shallow, &[]).lines, less.lines);
    }
    let names = |ways: &[&str]| {
        let ran = run(&[&["--no-kernel", "--events"], ways].concat(), &captures().join("dns-cooked.pcap"));
        of_kind(&events(&ran.lines), "dns").len()
    };
    assert_eq!((names(&["--config", &shallow]), names(&["--config", &whole])), (0, names(&[])));
    assert!(names(&[]) > 0);
}

fn without_folder(notes: &str) -> String {
    notes.replace(&format!("{}/", captures().display()), "")
}

#[test]
fn two_runs_and_both_ways_say_the_same() {
    for (name, _) in fixtures::all() {
        let file = captures().join(name);
        let first = run(&["--no-kernel", "--events"], &file);
        let second = run(&["--events", "--no-kernel"], &file);
        assert_eq!(first.lines, second.lines, "{name}");
        if is_root() {
            let kernel = run(&["--events"], &file);
            assert_eq!(kernel.code, 0, "{name}: {}", kernel.notes);
            assert_eq!(kernel.lines, first.lines, "{name}");
            assert_eq!(steady(&kernel.notes), steady(&first.notes), "{name}");
        }
    }
}

/// Facts that the goldens show, too; here so that whoever renews those sees what must stand in them.
#[test]
fn what_was_said_is_found() {
    let told = |name: &str| events(&run(&["--no-kernel", "--events"], &captures().join(name)).lines);
    for name in ["http.pcap", "http-tunnels.pcap"] {
        let events = told(name);
        let http = of_kind(&events, "http");
        assert_eq!(http.len(), 1, "{name}");
        assert_eq!(http[0]["http"]["hostname"], "www.example.org");
        assert_eq!((&http[0]["http"]["status"], &http[0]["http"]["length"]), (&200.into(), &12.into()));
    }
    let split = told("tls-split.pcapng");
    let tls = of_kind(&split, "tls")[0];
    assert_eq!((&tls["tls"]["sni"], &tls["tls"]["version"]), (&"www.example.org".into(), &"TLS 1.3".into()));
    assert_eq!(tls["vlan"], serde_json::json!([100, 7]));
    let ftp = told("ftp-sections.pcapng");
    assert_eq!(of_kind(&ftp, "ftp_data")[0]["ftp_data"]["filename"], "file.txt");
    let dns = of_kind(&ftp, "dns");
    assert_eq!(dns[1]["dns"]["answers"][1]["rdata"], "2001:db8::1");
    let fragments = told("dns-fragments.pcap");
    assert_eq!(of_kind(&fragments, "dns")[1]["dns"]["answers"][0]["rrtype"], "TXT");
    let grpc = told("grpc-cooked2.pcap");
    assert_eq!(of_kind(&grpc, "http")[0]["http"]["grpc"]["method"], "Add");
    let mail = told("smtp-loopback.pcap");
    assert!(of_kind(&mail, "smtp").iter().any(|event| event["smtp"]["rcpt_to"][1] == "<c@example.net>"));
    assert_eq!(of_kind(&told("smb.pcap"), "smb").last().unwrap()["smb"]["filename"], r"dir\file.txt");
    assert_eq!(of_kind(&told("ssh.pcap"), "ssh")[0]["ssh"]["client"]["software_version"], "client_1.0");
}

#[test]
fn without_events_there_are_alerts_only_and_rules_make_them() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    let rules = "[agent]\ninterfaces = [\"lo\"]\n[l7]\nenabled = true\nmode = \"alert\"\n\
        [[l7.rules]]\nid = \"no-index\"\npriority = 1\nprotocol = \"http\"\naction = \"deny\"\npath = \"/index.html\"\n";
    fs::write(&config, rules).unwrap();
    let file = captures().join("http.pcap");
    assert_eq!(run(&["--no-kernel"], &file).lines, "");
    let ran = run(&["--no-kernel", "--config", config.to_str().unwrap()], &file);
    assert_eq!(ran.code, 0, "{}", ran.notes);
    let events = events(&ran.lines);
    assert_eq!(events.len(), 1, "{}", ran.lines);
    assert_eq!(events[0]["event_type"], "alert");
    assert_eq!(events[0]["alert"]["metadata"]["rule"], serde_json::json!(["no-index"]));
    // Nothing was enforced, and so it says.
    assert_eq!(events[0]["alert"]["action"], "allowed");
    assert!(ran.notes.contains("l7 no-index"), "{}", ran.notes);
}

#[test]
fn a_table_is_the_summary_alone() {
    let ran = run(&["--no-kernel", "-o", "table", "--events"], &captures().join("http.pcap"));
    assert_eq!((ran.code, ran.notes.as_str()), (0, ""));
    assert!(ran.lines.starts_with("packets"), "{}", ran.lines);
    assert!(ran.lines.contains("tcp    http"), "{}", ran.lines);
}

#[test]
fn what_is_no_capture_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    fs::write(&file, "no capture").unwrap();
    let ran = run(&["--no-kernel"], &file);
    assert_eq!((ran.code, ran.lines.as_str()), (2, ""));
    assert!(ran.notes.contains("it is neither a pcap nor a pcapng file"), "{}", ran.notes);
    let ran = run(&["--no-kernel"], &folder.path().join("missing.pcap"));
    assert_eq!(ran.code, 2);
    assert!(ran.notes.contains("No such file"), "{}", ran.notes);
    assert_eq!(run(&["--no-kernel"], folder.path()).code, 2);
    // Of a capture only the beginning of its beginning.
    fs::write(&file, [0xd4, 0xc3]).unwrap();
    let ran = run(&["--no-kernel"], &file);
    assert_eq!(ran.code, 0);
    assert!(ran.notes.contains("it ends too early"), "{}", ran.notes);
}

/// Whatever is broken in a capture, the command ends well and in time.
#[test]
fn broken_captures_end_well() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken");
    let all = fixtures::all();
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    let strategy = (
        0..all.len(),
        proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        proptest::option::of(any::<prop::sample::Index>()),
    );
    TestRunner::new(config)
        .run(&strategy, |(which, changes, end)| {
            let mut bytes = all[which].1.clone();
            for (at, byte) in changes {
                // The first four bytes say that it is a capture at all.
                let at = 4 + at.index(bytes.len() - 4);
                bytes[at] = byte;
            }
            bytes.truncate(end.map_or(bytes.len(), |end| end.index(bytes.len())));
            fs::write(&file, &bytes).unwrap();
            let ran = run(&["--no-kernel", "--events"], &file);
            prop_assert_eq!(ran.code, 0, "{}", ran.notes);
            events(&ran.lines);
            Ok(())
        })
        .unwrap();
}

/// Past the budget both ways stop at the same packet, and count alike.
#[test]
fn a_long_flow_is_inspected_as_far_as_its_budget_goes() {
    use support::captures::{Order, Precision, pcap};
    use support::conversations::{Client, Conversation, Server};
    let request = b"GET /big HTTP/1.1\r\nHost: big.example\r\n\r\n";
    let length = 3 << 20;
    let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    response.resize(response.len() + length, b'x');
    let packets = Conversation::new("192.0.2.1:40000", "198.51.100.9:80", fixtures::START)
        .handshake()
        .say(Client, request)
        .say(Server, &response)
        .close();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("long.pcap");
    fs::write(&file, pcap(Order::Little, Precision::Nano, 1, &packets)).unwrap();
    let model = run(&["--no-kernel", "--events"], &file);
    let events = events(&model.lines);
    let flow = of_kind(&events, "flow")[0];
    let counted = flow["flow"]["pkts_toclient"].as_u64().unwrap() + flow["flow"]["pkts_toserver"].as_u64().unwrap();
    assert_eq!(counted, packets.len() as u64);
    let bytes = flow["flow"]["bytes_toclient"].as_u64().unwrap() + flow["flow"]["bytes_toserver"].as_u64().unwrap();
    assert_eq!(bytes, packets.iter().map(|(_, frame)| frame.len() as u64).sum::<u64>());
    assert!(!model.notes.contains(" 0 past their flow's budget"), "{}", model.notes);
    if is_root() {
        let kernel = run(&["--events"], &file);
        assert_eq!(kernel.lines, model.lines);
        assert_eq!(steady(&kernel.notes), steady(&model.notes));
    }
}
