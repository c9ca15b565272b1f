//! The way to a running agent: by the socket of this host, by TCP, by TLS.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{Exit, Global, UNREACHABLE, complain, usage};
use crate::client::{Client, Endpoint, Way};

/// Where an agent has its Unix socket: under systemd, and without.
const SOCKETS: [&str; 2] = ["/run/ebpfsentinel/control.sock", "/var/lib/ebpfsentinel/run/control.sock"];

/// The client that the options ask for. Without any, the agent of this host: by its Unix socket if it has one.
pub fn client(global: &Global) -> Result<Client, Exit> {
    let (way, before) = way(global, &SOCKETS.map(PathBuf::from))?;
    if global.token.is_some()
        && let Some(warning) = in_clear(&way)
    {
        complain(&warning);
    }
    if matches!(&way, Way::Tls(_, trust) if trust.insecure) {
        complain(
            "warning: --insecure: the agent's certificate is not checked, so somebody else may be there, read the token and \
             answer in the agent's place",
        );
    }
    let token = global.token.as_ref().map(|token| token.0.clone());
    let client = Client::over(&way, token).map_err(usage)?;
    Ok(before.into_iter().fold(client, |client, tried| client.after(&tried)))
}

/// What to say when a token goes this way, if others can read it: in clear, and not surely to this host.
fn in_clear(way: &Way) -> Option<String> {
    let Way::Tcp(Endpoint { host, .. }) = way else { return None };
    let is_here = match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    (!is_here).then(|| {
        format!(
            "warning: the token goes to {way} in clear: whoever is on the way can read it and use it; give --tls if \
             the agent speaks it, or ask it from its own host"
        )
    })
}

/// The way to the agent, and what was tried before it. Where no agent is at its sockets, it is asked by TCP. A socket
/// that fails otherwise is an error: whoever listens on the port may be somebody else, and would be told the token.
fn way(global: &Global, sockets: &[PathBuf]) -> Result<(Way, Option<String>), Exit> {
    if let Some(path) = &global.socket {
        return Ok((Way::Unix(path.clone()), None));
    }
    let mut before = Vec::new();
    if global.host.is_none() && global.port.is_none() && global.tls.is_none() {
        for path in sockets {
            match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Ok((Way::Unix(path.clone()), None)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    before.push(format!("{}: {error}", path.display()));
                }
                Err(error) => return Err(no_way(path, &error)),
            }
        }
    }
    let host = match global.host.as_deref() {
        None => "127.0.0.1",
        // What an agent listens on when it listens everywhere; it is asked where it surely is.
        Some("0.0.0.0") => "127.0.0.1",
        Some("::") => "::1",
        Some(host) => host,
    };
    let endpoint = Endpoint { host: host.to_owned(), port: global.port.unwrap_or(8080) };
    let way = match &global.tls {
        Some(trust) => Way::Tls(endpoint, trust.clone()),
        None => Way::Tcp(endpoint),
    };
    Ok((way, (!before.is_empty()).then(|| format!("and before by {}", before.join(", ")))))
}

/// Why the agent's own socket cannot be used, and what can.
fn no_way(path: &Path, error: &std::io::Error) -> Exit {
    let who = match error.kind() {
        ErrorKind::PermissionDenied => "; root may use it, and who is in the group ebpfsentinel",
        _ => "",
    };
    let text = format!(
        "cannot use the agent's socket {}: {error}{who}; --host 127.0.0.1 asks by TCP, with --token if need be",
        path.display()
    );
    Exit { code: UNREACHABLE, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Method;
    use crate::cli::tests::line;
    use crate::cli::{USAGE, parse_from};

    #[test]
    fn a_token_in_clear_is_told_of() {
        let warns = |text: &str| in_clear(&way(&line(text).unwrap().global, &[]).unwrap().0).is_some();
        let here = ["", "--port 9", "--host localhost", "--host ::1", "--host 127.8.0.1", "--host 0.0.0.0"];
        for quiet in
            here.into_iter().chain(["--tls --host agent.example", "--insecure --host 192.0.2.1", "--socket /a"])
        {
            assert!(!warns(format!("status {quiet}").trim()), "{quiet}");
        }
        for loud in ["agent.example", "192.0.2.1", "2001:db8::1", "localhost.example", "10.0.0.1"] {
            assert!(warns(&format!("status --host {loud}")), "{loud}");
        }
        let warning = in_clear(&Way::Tcp(Endpoint { host: "192.0.2.1".to_owned(), port: 8080 })).unwrap();
        assert!(warning.starts_with("warning: the token goes to http://192.0.2.1:8080 in clear"), "{warning}");
    }

    #[test]
    fn ways_to_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (none, dead, live) = (dir.path().join("none"), dir.path().join("dead"), dir.path().join("live"));
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let _listener = std::os::unix::net::UnixListener::bind(&live).unwrap();
        let check = |text: &str, sockets: &[&PathBuf], want: &str, before: bool| {
            let sockets: Vec<PathBuf> = sockets.iter().map(|path| (*path).clone()).collect();
            let (way, tried) = way(&line(text).unwrap().global, &sockets).unwrap();
            assert_eq!((way.to_string().as_str(), tried.is_some()), (want, before), "{text} {tried:?}");
        };
        let tcp = "http://127.0.0.1:8080";
        let shown = live.display().to_string();
        check("status", &[&none, &live], &shown, false);
        check("status", &[&dead, &live], &shown, false);
        check("status", &[&none], tcp, false);
        check("status", &[&dead], tcp, true);
        check("status --port 8080", &[&live], tcp, false);
        check("status --host 127.0.0.1", &[&live], tcp, false);
        check("--tls status", &[&live], "https://127.0.0.1:8080", false);
        check("status --insecure --host a", &[&live], "https://a:8080", false);
        check("status --cacert /x", &[&live], "https://127.0.0.1:8080", false);
        check("status --socket /y/z", &[&live], "/y/z", false);
        // Neither absent nor left behind by an agent: nobody else is asked instead, by whatever way there is.
        let odd = dir.path().join("file").join("socket");
        std::fs::write(dir.path().join("file"), "").unwrap();
        let refused = way(&line("status").unwrap().global, &[odd.clone(), live.clone()]).unwrap_err();
        assert_eq!(refused.code, UNREACHABLE);
        assert!(
            refused.text.contains("/file/socket: Not a directory") && refused.text.contains("--host"),
            "{refused:?}"
        );
        check("status --port 8080", &[&odd], tcp, false);
        let denied = no_way(&odd, &ErrorKind::PermissionDenied.into());
        assert!(denied.text.contains("who is in the group ebpfsentinel"), "{denied:?}");

        let environment = |name: &str| (name == "EBPFSENTINEL_SOCKET").then(|| "/e".to_owned());
        let socket = |args: &[&str]| parse_from(args, environment).unwrap().global.socket;
        assert_eq!(socket(&["status"]), Some(PathBuf::from("/e")));
        assert_eq!(socket(&["status", "--host", "h"]), None, "a flag stands in front of the environment");
        assert_eq!(socket(&[]), None, "the agent itself");
        for wrong in [
            "status --socket /a --host b",
            "status --socket /a --tls",
            "status --cert /a",
            "status --insecure --cacert /a",
            "--tls",
            "check --socket /a",
        ] {
            assert_eq!(line(wrong).unwrap_err().code, USAGE, "{wrong}");
        }
        let mut global = line("status --cacert /nonexistent/ca.pem").unwrap().global;
        assert!(client(&global).unwrap_err().text.contains("/nonexistent/ca.pem: No such file"));
        global.tls = None;
        global.socket = Some(dead);
        let error = client(&global).unwrap().json(Method::Get, "/", None).unwrap_err().to_string();
        assert!(error.contains("/dead: connection refused"), "{error}");
    }
}
