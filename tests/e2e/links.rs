//! Interfaces that come and go, and starts that cannot be.

use std::net::TcpListener;
use std::path::PathBuf;

use ebpfsentinel::api::Method;

use super::support::{Lab, WORLD, WORLD_V6, config, rule, udp, wait_until};

fn text(agent: &str) -> String {
    let rules = [rule("shut", 10, "deny", "protocol = \"udp\"\ndst_port = 1001\ninterfaces = [\"eth0\"]")];
    config(agent, "mode = \"block\"", &rules)
}

fn enforces(lab: &Lab) {
    assert!(!lab.passes(udp(WORLD, 1001)) && !lab.passes(udp(WORLD_V6, 1001)));
    assert!(lab.passes(udp(WORLD, 1002)));
}

fn is_not_ready(lab: &Lab, reason: &str) {
    wait_until(&format!("not ready: {reason}"), || {
        let answer = lab.send(Method::Get, "/readyz", None);
        answer.status == 503 && answer.body.contains(reason)
    });
}

#[test]
fn an_interface_that_comes_back_is_guarded_again() {
    for agent in ["", "on_exit = \"keep\"", "xdp_mode = \"generic\""] {
        let lab = Lab::new();
        let mut running = lab.start(&text(agent));
        enforces(&lab);
        for _ in 0..2 {
            lab.host.ip("link del eth0").unwrap();
            is_not_ready(&lab, "eth0");
            lab.connect();
            lab.wait_ready(&mut running);
            enforces(&lab);
        }
        let said = running.stop();
        assert!(!said.contains("ERROR") || said.contains("eth0 does not exist"), "{said}");
    }
}

#[test]
fn an_interface_may_come_late() {
    let lab = Lab::new();
    lab.host.ip("link del eth0").unwrap();
    lab.write_config(&text(""));
    let mut agent = lab.launch();
    agent.says("REST on");
    is_not_ready(&lab, "interface eth0 does not exist");
    assert_eq!(lab.send(Method::Get, "/healthz", None).status, 200);
    assert_eq!(lab.get("/api/v1/agent/status")["interfaces"][0]["attached"], false);
    lab.connect();
    lab.wait_ready(&mut agent);
    enforces(&lab);
    agent.stop();
    assert_eq!(lab.attached(), "");
}

/// Frames that stand in several buffers are judged, and counted whole.
#[test]
fn jumbo_frames_are_judged() {
    for mode in ["native", "generic"] {
        let lab = Lab::new();
        for namespace in [&lab.world, &lab.host] {
            namespace.ip("link set eth0 mtu 9000").unwrap();
        }
        let agent = lab.start(&text(&format!("xdp_mode = \"{mode}\"")));
        let payload: Vec<u8> = (0..8900u32).map(|n| n as u8).collect();
        for from in [WORLD, WORLD_V6] {
            let jumbo = |port| udp(from, port).payload(&payload);
            let bytes = lab.get("/api/v1/firewall/rules/shut")["bytes"].as_u64().unwrap();
            assert!(lab.passes(jumbo(1002)), "{mode}: {from}, whole and unchanged");
            assert!(!lab.passes(jumbo(1001)), "{mode}: {from}");
            let counted = lab.get("/api/v1/firewall/rules/shut")["bytes"].as_u64().unwrap() - bytes;
            assert_eq!(counted, jumbo(1001).build().len() as u64, "{mode}: {from}");
        }
        agent.stop();
    }
}

/// A card that takes tags out of frames makes rules about them wrong: that has to be said, with what helps.
#[test]
fn hidden_vlan_tags_are_said() {
    let lab = Lab::new();
    let vlan = rule("backup", 20, "deny", "vlan_id = 30");
    let ethtool = |words: &str| {
        let done = lab.host.command("ethtool").unwrap().args(["-K", "eth0"]).args(words.split(' ')).status().unwrap();
        assert!(done.success(), "ethtool -K eth0 {words}");
    };
    let mut agent = lab.start(&config("", "mode = \"block\"", std::slice::from_ref(&vlan)));
    ethtool("rx-vlan-hw-parse on");
    is_not_ready(&lab, "rule backup takes tagged packets for untagged ones");
    let reason = lab.get("/api/v1/agent/status")["interfaces"][0]["reason"].as_str().unwrap().to_owned();
    let (_, cure) = reason.split_once("ethtool -K eth0 ").expect(&reason);
    ethtool(cure);
    lab.wait_ready(&mut agent);
    // Who has no such rule does not care.
    ethtool("rx-vlan-hw-parse on");
    is_not_ready(&lab, "ethtool -K eth0");
    lab.write_config(&text(""));
    lab.wait_ready(&mut agent);
    agent.stop();
}

#[test]
fn another_xdp_program_is_named_and_left_alone() {
    let lab = Lab::new();
    let agent = lab.start(&text(""));
    let ports = "http_port = 8081\nmetrics_port = 9091\ngrpc_port = 50052\n";
    for words in [ports.to_owned(), format!("{ports}on_exit = \"keep\"")] {
        let other = lab.state_dir().join("other.toml");
        std::fs::write(&other, text(&words)).unwrap();
        let (status, said) = lab.refusal(&other, &lab.state_dir().join("other"));
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.matches("Error").count(), 1, "{said}");
        assert!(
            said.contains("another XDP program is on eth0: id ") && said.contains("bpftool prog show id "),
            "{said}"
        );
        assert_eq!(lab.pinned(), Vec::<PathBuf>::new());
    }
    enforces(&lab);
    agent.stop();
    lab.start(&text("")).stop();
}

#[test]
fn a_start_that_cannot_be_says_why_once_and_leaves_nothing() {
    let lab = Lab::new();
    let refused = |text: &str, words: &[&str]| {
        lab.write_config(text);
        let (status, said) = lab.refusal(&lab.config_path(), &lab.state_dir());
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("Error")).count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in {said:?}");
        }
        assert_eq!(lab.attached(), "");
        assert_eq!(lab.pinned(), Vec::<PathBuf>::new());
        assert!(lab.passes(udp(WORLD, 1001)));
    };
    refused("", &["agent", "interfaces"]);
    refused(&text("http_prot = 1"), &["http_prot", "http_port"]);
    refused(&text("interfaces = []"), &["interfaces"]);
    for (port, agent) in [(8080, ""), (9090, ""), (8080, "on_exit = \"keep\"")] {
        let taken = lab.host.run(|| TcpListener::bind(("127.0.0.1", port))).unwrap().unwrap();
        refused(&text(agent), &[&port.to_string(), "in use"]);
        drop(taken);
    }
}

/// One when programs are attached and pinned already, and one before (a taken port).
#[test]
fn a_start_that_fails_late_leaves_nothing_and_the_next_one_works() {
    let lab = Lab::new();
    let parts = "[ratelimit]\nenabled = true\n[l7]\nenabled = true\n";
    let keep = |port: u16| format!("{}{parts}", text(&format!("on_exit = \"keep\"\ngrpc_port = {port}")));
    let refused = |text: &str, word: &str| {
        lab.write_config(text);
        let (status, said) = lab.refusal(&lab.config_path(), &lab.state_dir());
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(word), "{word:?} is not in {said:?}");
        said
    };
    let nothing_is_left = |said: &str| {
        assert_eq!(lab.attached(), "", "{said}");
        assert_eq!(lab.pinned(), Vec::<PathBuf>::new(), "{said}");
        assert!(lab.passes(udp(WORLD, 1001)), "{said}");
    };
    let rules = lab.state_dir().join("l7-rules.json");
    std::fs::create_dir_all(lab.state_dir()).unwrap();
    for agent in ["on_exit = \"keep\"", ""] {
        std::fs::write(&rules, "no rules").unwrap();
        nothing_is_left(&refused(&format!("{}{parts}", text(agent)), "l7-rules.json is damaged"));
        std::fs::remove_file(&rules).unwrap();
    }
    let taken = lab.host.run(|| TcpListener::bind(("127.0.0.1", 50051))).unwrap().unwrap();
    nothing_is_left(&refused(&keep(50051), "50051"));
    drop(taken);
    let agent = lab.start(&keep(50051));
    enforces(&lab);
    agent.stop();

    // What an earlier agent kept goes on when its successor does not come up.
    enforces(&lab);
    std::fs::write(&rules, "no rules").unwrap();
    refused(&keep(50051), "l7-rules.json is damaged");
    enforces(&lab);
    let detach = format!("{}{parts}", text(""));
    refused(&detach, "l7-rules.json is damaged");
    enforces(&lab);
    std::fs::remove_file(&rules).unwrap();
    let agent = lab.start(&keep(50051));
    enforces(&lab);
    agent.stop();
    let agent = lab.start(&detach);
    assert_eq!(lab.pinned(), Vec::<PathBuf>::new());
    enforces(&lab);
    agent.stop();
    assert_eq!(lab.attached(), "");
}

#[test]
fn a_missing_file_and_a_taken_state_directory_are_told() {
    let lab = Lab::new();
    let missing = lab.state_dir().join("none.toml");
    let (status, said) = lab.refusal(&missing, &lab.state_dir());
    assert!(!status.success() && said.contains("none.toml"), "{said}");
    let agent = lab.start(&text(""));
    let (status, said) = lab.refusal(&lab.config_path(), &lab.state_dir());
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("another agent is running") && said.contains(lab.state_dir().to_str().unwrap()), "{said}");
    enforces(&lab);
    agent.stop();
}
