//! TLS and the Unix socket of the real agent: certificates that change, and what an operator is told of bad ones.

use std::fs;
use std::path::Path;
use std::process::Output;

use ebpfsentinel::api::Method;
use ebpfsentinel::client::{Client, Endpoint, Trust, Way};
use serde_json::Value;

use super::pki::Pki;
use super::support::{Agent, HOST, Lab, config, wait_for, wait_until};

/// The command line, by the agent's socket.
fn by_socket(lab: &Lab, words: &[&str]) -> Output {
    let socket = lab.state_dir().join("run/control.sock").display().to_string();
    lab.cli(&[&["--socket", &socket, "-o", "json"], words].concat())
}

fn wait_ready(lab: &Lab) {
    wait_until("the agent is ready", || by_socket(lab, &["health"]).status.success());
}

fn degraded(lab: &Lab) -> Vec<Value> {
    let output = by_socket(lab, &["status"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    status["degraded"].as_array().unwrap().clone()
}

/// Whether the agent shows a certificate of this authority.
fn believed(lab: &Lab, authority: &str) -> bool {
    lab.cli(&["--cacert", authority, "health"]).status.success()
}

fn start(lab: &Lab, pki: &Pki, agent: &str) -> Agent {
    let tls = format!(
        "[tls]\nenabled = true\ncert_path = '{}'\nkey_path = '{}'\n",
        pki.arg("server.pem"),
        pki.arg("server.key")
    );
    lab.write_config(&(config(agent, "", &[]) + &tls));
    let agent = lab.launch();
    wait_ready(lab);
    agent
}

#[test]
fn certificates_change_while_the_agent_runs() {
    let (lab, pki) = (Lab::new(), Pki::new());
    let (old, new) = (pki.authority("old"), pki.authority("new"));
    pki.certificate(&old, "server");
    let agent = start(&lab, &pki, "");
    agent.says("REST on 127.0.0.1:8080 by TLS and ");
    let (old_pem, new_pem) = (pki.arg("old.pem"), pki.arg("new.pem"));
    assert!(believed(&lab, &old_pem) && !believed(&lab, &new_pem));
    let plain = lab.cli(&["health"]);
    assert!(String::from_utf8_lossy(&plain.stderr).contains("this port speaks TLS"), "{plain:?}");
    let loud = lab.cli(&["--insecure", "health"]);
    assert!(loud.status.success() && String::from_utf8_lossy(&loud.stderr).contains("warning: --insecure"), "{loud:?}");

    // Written, and nothing more: it is noticed.
    pki.certificate(&new, "server");
    wait_until("the new certificate is shown", || believed(&lab, &new_pem));
    assert!(!believed(&lab, &old_pem));
    agent.says("the files changed: new connections get the new certificate");

    // Bad files: told, and the certificate of before stays.
    let (good, key) = (fs::read_to_string(pki.path("server.pem")), fs::read_to_string(pki.path("server.key")));
    let (good, key) = (good.unwrap(), key.unwrap());
    pki.certificate(&old, "other");
    pki.write_pair("server", &good, &fs::read_to_string(pki.path("other.key")).unwrap());
    let told = wait_for("the status tells", || degraded(&lab).first().cloned());
    assert!(told.as_str().unwrap().contains("is not that of"), "{told}");
    assert!(believed(&lab, &new_pem));
    agent.hang_up();
    agent.says("SIGHUP: nothing was changed: VALIDATION_ERROR: tls: the key in");
    assert!(believed(&lab, &new_pem));

    pki.write_pair("server", &good, &key);
    wait_until("the status is good again", || degraded(&lab).is_empty());
    agent.hang_up();
    agent.says("SIGHUP: configuration reloaded");

    // Other files, named by a reload, are watched from then on.
    pki.certificate(&old, "moved");
    let tls = format!(
        "[tls]\nenabled = true\ncert_path = '{}'\nkey_path = '{}'\n",
        pki.arg("moved.pem"),
        pki.arg("moved.key")
    );
    lab.write_config(&(config("", "", &[]) + &tls));
    wait_until("the other certificate is shown", || believed(&lab, &old_pem));
    pki.certificate(&new, "moved");
    wait_until("the other one's renewal is shown", || believed(&lab, &new_pem));
    let metrics = by_socket(&lab, &["metrics"]);
    let metrics = String::from_utf8_lossy(&metrics.stdout);
    assert!(metrics.contains("ebpfsentinel_tls_certificate_expiry_timestamp_seconds "), "{metrics}");
    assert!(metrics.contains("ebpfsentinel_tls_reloads_total{status=\"failure\"} "), "{metrics}");
    agent.stop();
    assert!(!lab.state_dir().join("run/control.sock").exists());
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
    let (lab, pki) = (Lab::new(), Pki::new());
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let agent = start(&lab, &pki, "");
    let socket = lab.state_dir().join("run/control.sock");
    agent.kill();
    assert!(socket.exists(), "SIGKILL leaves it behind");
    let nobody = by_socket(&lab, &["status"]);
    let said = String::from_utf8_lossy(&nobody.stderr);
    assert!(nobody.status.code() == Some(3) && said.contains("control.sock: connection refused"), "{nobody:?}");
    let agent = start(&lab, &pki, "");

    let second = pki.path("second.toml");
    let ports = format!("http_port = 8081\nmetrics_port = 9091\nsocket = '{}'", socket.display());
    fs::write(&second, config(&ports, "", &[]).replace("eth0", "eth9")).unwrap();
    let (status, said) = lab.refusal(&second, &pki.path("state"));
    assert!(!status.success() && said.contains("another process listens there"), "{said}");
    assert!(by_socket(&lab, &["status"]).status.success(), "the first one's socket is as it was");
    agent.stop();

    let bad = pki.path("bad.toml");
    let tls = "[tls]\nenabled = true\ncert_path = '/nonexistent/cert.pem'\n";
    fs::write(&bad, config("", "", &[]).replace("eth0", "eth9") + tls).unwrap();
    let (status, said) = lab.refusal(&bad, &pki.path("state"));
    assert!(!status.success() && said.contains("/nonexistent/cert.pem (tls.cert_path)"), "{said}");
    let check = lab.cli(&["check", Path::new(&bad).to_str().unwrap()]);
    assert!(check.status.code() == Some(2), "{check:?}");
    assert!(String::from_utf8_lossy(&check.stderr).contains("/nonexistent/cert.pem"), "{check:?}");
}

/// One remote address: first it is answered, then told to wait, then not even shaken hands with. The host is not touched.
#[test]
fn who_asks_too_often_from_elsewhere() {
    let (lab, pki) = (Lab::new(), Pki::new());
    let ca = pki.authority("ca");
    pki.certificate_of(&ca, "server", |params| {
        params.subject_alt_names.push(rcgen::SanType::IpAddress(HOST.parse().unwrap()));
    });
    let open = "bind_address = '0.0.0.0'\nallow_unauthenticated_api = true\nrequests_per_second = 5";
    let agent = start(&lab, &pki, open);
    let trust = Trust { cacert: Some(pki.path("ca.pem")), ..Trust::default() };
    let way = Way::Tls(Endpoint { host: HOST.to_owned(), port: 8080 }, trust);
    let asked = lab.world.run(|| {
        let client = Client::over(&way, None).unwrap();
        (0..60)
            .map(|_| client.send(Method::Get, "/healthz", None).map_or(0, |answer| answer.status))
            .collect::<Vec<_>>()
    });
    let asked = asked.unwrap();
    assert!(asked[..10].iter().all(|status| *status == 200), "{asked:?}");
    assert!(asked[10..].contains(&429) && asked.iter().all(|status| [200, 429, 0].contains(status)), "{asked:?}");
    let authority = pki.arg("ca.pem");
    for _ in 0..20 {
        assert!(believed(&lab, &authority), "the host itself has no such limit");
    }
    let metrics = by_socket(&lab, &["metrics"]);
    let metrics = String::from_utf8_lossy(&metrics.stdout);
    let count = |reason: &str| {
        let line = format!("ebpfsentinel_http_refused_total{{reason=\"{reason}\"}} ");
        metrics.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.trim().parse().unwrap())
    };
    assert_eq!(count("rate"), asked.iter().filter(|status| **status == 429).count());
    assert_eq!(count("handshake_rate"), asked.iter().filter(|status| **status == 0).count());
    agent.stop();
}
