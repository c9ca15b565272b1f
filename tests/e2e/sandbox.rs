//! The walls around the running agent, as the kernel tells them of each of its threads.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;

use ebpfsentinel::api::Method;
use ebpfsentinel::client::{Client, Endpoint};
use nix::errno::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::{Value, json};

use super::pki::Pki;
use super::support::{Agent, Lab, WORLD, config, rule, udp, wait_until};

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

/// All threads are there, and none can more than it needs.
fn all_enclosed(agent: &Agent) {
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
}

#[test]
fn every_thread_is_behind_the_walls() {
    let lab = Lab::new();
    let mut agent = lab.start(&everything(""));
    all_enclosed(&agent);
    let mut sandbox = lab.get("/api/v1/agent/status")["sandbox"].take();
    let read: Vec<String> = serde_json::from_value(sandbox["read"].take()).unwrap();
    assert!(read.iter().any(|path| path == "/etc") && !read.iter().any(|path| path == "/nix/store"), "{read:?}");
    let write: Vec<String> = serde_json::from_value(sandbox["write"].take()).unwrap();
    let state = lab.state_dir().canonicalize().unwrap();
    assert!(write.iter().any(|path| *path == state.display().to_string()), "{write:?}");
    assert_eq!(
        sandbox,
        json!({
            "enabled": true,
            "capabilities": ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"],
            "no_new_privs": true,
            "seccomp": "enforced",
            "landlock": "enforced",
            "read": null,
            "write": null,
            "missing": [],
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

/// Ports below 1024 are bound before the walls stand, and nobody behind them could bind another.
#[test]
fn low_ports_are_served_without_the_right_to_bind_them() {
    let lab = Lab::new();
    let ports = "http_port = 80\nmetrics_port = 90\ngrpc_port = 51";
    lab.write_config(&everything(ports));
    let agent = lab.launch();
    let ask = |port: u16, target: &str| {
        let client = Client::new(Endpoint { host: "127.0.0.1".to_owned(), port }, None);
        lab.host.run(|| client.send(Method::Get, target, None)).unwrap().map_or(0, |answer| answer.status)
    };
    wait_until("the agent is ready", || ask(80, "/readyz") == 200);
    assert_eq!((ask(90, "/metrics"), ask(90, "/readyz")), (200, 404));
    let connected = lab.host.run(|| std::net::TcpStream::connect("127.0.0.1:51")).unwrap();
    assert!(connected.is_ok(), "{connected:?}");
    all_enclosed(&agent);
    agent.stop();
}

/// Puts `name` in `folder` in place of what is there, as a link to `target`, in one step.
fn lead(folder: &Path, name: &str, target: &str) {
    let fresh = folder.join("fresh");
    symlink(target, &fresh).unwrap();
    fs::rename(fresh, folder.join(name)).unwrap();
}

/// Certificates and configuration behind chains of links, as certbot and Kubernetes make them: what is put in their place
/// later is read, and nothing else is.
#[test]
fn what_is_renewed_behind_links_is_read() {
    let (lab, pki) = (Lab::new(), Pki::new());
    let (old, new) = (pki.authority("old"), pki.authority("new"));
    for folder in ["live", "archive", "volume", "volume/..1", "volume/..2", "elsewhere"] {
        fs::create_dir(pki.path(folder)).unwrap();
    }
    pki.certificate(&old, "archive/cert1");
    for ending in ["pem", "key"] {
        lead(&pki.path("live"), &format!("cert.{ending}"), &format!("../archive/cert1.{ending}"));
    }
    // The configuration itself leads by a volume's directory to what changes.
    let tls = |name: &str| {
        format!("[tls]\nenabled = true\ncert_path = '{}.pem'\nkey_path = '{}.key'\n", pki.arg(name), pki.arg(name))
    };
    let text = |more: &str| everything("") + &tls("live/cert") + more;
    fs::write(pki.path("volume/..1/config.toml"), text("")).unwrap();
    lead(&pki.path("volume"), "..data", "..1");
    fs::write(pki.path("elsewhere/secret"), "{}").unwrap();
    symlink(pki.path("volume/..data/config.toml"), lab.config_path()).unwrap();
    let agent = lab.launch();
    let believed = |authority: &str| lab.cli(&["--cacert", &pki.arg(authority), "health"]).status.success();
    wait_until("the agent serves", || believed("old.pem"));

    pki.certificate(&new, "archive/cert2");
    for ending in ["key", "pem"] {
        lead(&pki.path("live"), &format!("cert.{ending}"), &format!("../archive/cert2.{ending}"));
    }
    wait_until("the renewed certificate is shown", || believed("new.pem"));

    let rule = rule("no-4002", 20, "deny", "protocol = \"udp\"\ndst_port = 4002");
    fs::write(pki.path("volume/..2/config.toml"), text(&rule)).unwrap();
    assert!(lab.passes(udp(WORLD, 4002)));
    lead(&pki.path("volume"), "..data", "..2");
    wait_until("the new configuration is in force", || !lab.passes(udp(WORLD, 4002)));

    let output = lab.cli(&["--cacert", &pki.arg("new.pem"), "-o", "json", "status"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert_eq!((&status["degraded"], &status["sandbox"]["missing"]), (&json!([]), &json!([])));
    let read: Vec<&str> = status["sandbox"]["read"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let canonical = |name: &str| pki.path(name).canonicalize().unwrap().display().to_string();
    for name in ["live", "archive", "volume"] {
        assert!(read.contains(&canonical(name).as_str()), "{name}: {read:?}");
    }
    let elsewhere = canonical("elsewhere");
    assert!(!read.iter().any(|open| Path::new(&elsewhere).starts_with(open)), "{elsewhere} is open: {read:?}");
    // A link to where nothing was at the start.
    lead(&pki.path("live"), "cert.pem", "../elsewhere/secret");
    agent.says("Permission denied");
    assert!(believed("new.pem"));
    agent.stop();
}

/// What the agent is to write into and is not there is told, and stays closed; rules go on being reloaded.
#[test]
fn a_directory_that_is_missing_at_the_start_is_told() {
    let lab = Lab::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = elsewhere.path().canonicalize().unwrap().join("none");
    let text = |firewall: &str| {
        format!(
            "{firewall}[[alerting.routes]]\nname = \"eve\"\ndestination = \"eve\"\npath = \"{}/eve.json\"\n",
            folder.display()
        )
    };
    lab.write_config(&text(&everything("")));
    let agent = lab.launch();
    wait_until("the agent answers", || lab.answers());
    let told = format!("sandbox: writing: {} is not there; make it and restart the agent", folder.display());
    agent.says(&told);
    let ready = lab.send(Method::Get, "/readyz", None);
    assert_eq!(ready.status, 503);
    let reasons: Value = serde_json::from_str(&ready.body).unwrap();
    assert_eq!(reasons["reasons"], json!([told]));
    let sandbox = lab.get("/api/v1/agent/status")["sandbox"].take();
    assert_eq!(sandbox["missing"], json!([folder.display().to_string()]));
    let write = sandbox["write"].as_array().unwrap();
    assert!(!write.contains(&json!(folder.display().to_string())), "{write:?}");
    // It is still closed when it is there, and that is no reason to refuse rules.
    fs::create_dir(&folder).unwrap();
    assert!(lab.passes(udp(WORLD, 4005)));
    let rule = rule("no-4005", 20, "deny", "protocol = \"udp\"\ndst_port = 4005");
    lab.write_unseen(&text(&(everything("") + &rule)));
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    assert!(!lab.passes(udp(WORLD, 4005)));
    assert_eq!(lab.send(Method::Get, "/readyz", None).status, 503);
    agent.stop();
    let mut agent = lab.launch();
    lab.wait_ready(&mut agent);
    agent.stop();
}

/// No thread's capabilities can be dropped, that of the thread outside of Landlock included: each is told, and the agent is
/// not ready.
#[test]
fn a_thread_that_keeps_its_capabilities_costs_readiness() {
    let lab = Lab::new();
    lab.write_config(&everything(""));
    let refusals = BTreeMap::from([(libc::SYS_capset, Vec::new())]);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter: BpfProgram =
        SeccompFilter::new(refusals, SeccompAction::Allow, refuse, arch).unwrap().try_into().unwrap();
    let mut command = lab.command(&lab.config_path(), &lab.state_dir());
    // SAFETY: system calls on a filter that is made already; nothing allocates or locks between fork and exec.
    unsafe { command.pre_exec(move || seccompiler::apply_filter(&filter).map_err(|_| Errno::last().into())) };
    let agent = Agent::launch(command);
    wait_until("the agent answers", || lab.answers());
    let ready = lab.send(Method::Get, "/readyz", None);
    let reasons: Value = serde_json::from_str(&ready.body).unwrap();
    let reasons: Vec<&str> = reasons["reasons"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let [all, looking] = reasons[..] else { panic!("{reasons:?}") };
    assert_eq!(ready.status, 503);
    assert!(all.starts_with("sandbox: dropping capabilities: emptying"), "{all}");
    assert!(looking.starts_with("sandbox: dropping capabilities of the look-up of processes: emptying"), "{looking}");
    agent.says(looking);
    agent.stop();
}
