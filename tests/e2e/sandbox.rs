//! The walls around the running agent, as the kernel tells them of each of its threads.

use std::collections::BTreeMap;
use std::fs;

use ebpfsentinel::api::Method;
use serde_json::json;

use super::support::{Lab, WORLD, config, rule, udp};

/// The agent with all that has threads of its own.
fn everything(agent: &str) -> String {
    let firewall =
        config(agent, "mode = \"block\"", &[rule("no-4001", 10, "deny", "protocol = \"udp\"\ndst_port = 4001")]);
    format!("{firewall}\n[ratelimit]\nenabled = true\n[l7]\nenabled = true\n")
}

/// Of each thread, by its name: effective capabilities, no_new_privs, mode of seccomp.
fn threads(pid: u32) -> BTreeMap<String, [String; 3]> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        (field("Name"), [field("CapEff"), field("NoNewPrivs"), field("Seccomp")])
    };
    tasks.flatten().map(of).collect()
}

#[test]
fn every_thread_is_behind_the_walls() {
    let lab = Lab::new();
    let mut agent = lab.start(&everything(""));
    // CAP_NET_ADMIN 12, CAP_NET_RAW 13, CAP_PERFMON 38, CAP_BPF 39; CAP_DAC_READ_SEARCH 2, CAP_SYS_PTRACE 19.
    let usual = ["000000c000003000", "1", "2"];
    let looking = ["0000000000080004", "1", "2"];
    let threads = threads(agent.pid());
    for name in ["ebpfsentinel-ag", "firewall", "ratelimit", "l7", "inspect-0", "alert-router", "poller", "http-front"]
    {
        assert!(threads.contains_key(name), "{name} is not in {threads:?}");
    }
    for (name, walls) in &threads {
        assert_eq!(walls.each_ref().map(String::as_str), if name == "proc-scan" { looking } else { usual }, "{name}");
    }
    assert!(threads.contains_key("proc-scan"));
    assert_eq!(
        lab.get("/api/v1/agent/status")["sandbox"],
        json!({
            "enabled": true,
            "capabilities": ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"],
            "no_new_privs": true,
            "seccomp": "enforced",
            "landlock": "enforced",
            "failures": [],
        })
    );
    // What changes the kernel's side still does.
    assert!(!lab.passes(udp(WORLD, 4001)));
    let body = json!({"id": "no-4002", "priority": 20, "action": "deny", "protocol": "udp", "dst_port": 4002});
    lab.ask(Method::Post, "/api/v1/firewall/rules", Some(body));
    assert!(!lab.passes(udp(WORLD, 4002)) && lab.passes(udp(WORLD, 4003)));
    lab.host.ip("link del eth0").unwrap();
    lab.connect();
    lab.wait_ready(&mut agent);
    assert!(!lab.passes(udp(WORLD, 4002)) && lab.passes(udp(WORLD, 4003)));
    agent.stop();
}

#[test]
fn without_a_sandbox_status_says_so() {
    let lab = Lab::new();
    let agent = lab.start(&everything("sandbox = false"));
    let status = lab.get("/api/v1/agent/status");
    let sandbox = &status["sandbox"];
    assert_eq!(
        (&sandbox["enabled"], &sandbox["seccomp"], &sandbox["landlock"]),
        (&json!(false), &json!("off"), &json!("off"))
    );
    assert!(sandbox["capabilities"].as_array().unwrap().iter().any(|one| one == "CAP_SYS_ADMIN"));
    assert!(threads(agent.pid()).values().all(|walls| walls[2] == "0"));
    lab.write_unseen(&everything("sandbox = true"));
    let (status, _, message) = lab.refused(Method::Post, "/api/v1/config/reload", None);
    assert_eq!(status, 400);
    assert!(message.contains("agent.sandbox cannot change without a restart"), "{message}");
    agent.stop();
}
