//! The control port by TLS and by its Unix socket, against curl, openssl and clients that mean no good.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpfsentinel::api::{self, Method, Operation, Reply, Request, Spec};
use ebpfsentinel::audit::NoAuditor;
use ebpfsentinel::client::{Client, Endpoint, Trust, Way};
use ebpfsentinel::config;
use ebpfsentinel::config::tls::TlsConfig;
use ebpfsentinel::control::auth::Auth;
use ebpfsentinel::control::grpc::{Credentials, gate_of};
use ebpfsentinel::control::tls::{TlsState, TlsStore, client_name};
use ebpfsentinel::control::{Control, ControlConfig, UnixSocket};
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::supervise::Supervisor;
use http::{BIG_BYTES, PATIENCE, connect, spec, status};
use pki::Pki;
use rcgen::{BasicConstraints, DnType, IsCa};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

#[path = "support/http.rs"]
pub mod http;
#[path = "support/pki.rs"]
pub mod pki;

static PING: Spec = spec("ping", Method::Get, "/ping");
static BIG: Spec = spec("big", Method::Get, "/big");
static PEER: Spec = spec("peer", Method::Get, "/peer");
static LENGTH: Spec = Spec { body: Some(api::schema::<String>), ..spec("length", Method::Post, "/length") };

struct Port {
    control: Control,
    rest: SocketAddr,
    metrics: Arc<Metrics>,
    tls: Arc<TlsStore>,
    directory: tempfile::TempDir,
}

fn start(tls: &TlsConfig, change: impl FnOnce(&mut ControlConfig)) -> Port {
    let directory = tempfile::tempdir().unwrap();
    let mut config = ControlConfig::new("127.0.0.1:0".parse().unwrap(), directory.path().join("run"));
    let tls = TlsStore::load(tls).unwrap();
    config.tls = Some(Arc::clone(&tls));
    config.metrics = Some(SocketAddr::from(([127, 0, 0, 1], 0)).into());
    let socket = UnixSocket::bind(&directory.path().join("control.sock"), &directory.path().join("run"));
    config.socket = Some(socket.unwrap());
    change(&mut config);
    let operations = vec![
        Operation::new(&PING, |_| Ok(Reply::json(&"pong"))),
        Operation::new(&BIG, |_| Ok(Reply::Text { content_type: "text/plain", body: "x".repeat(BIG_BYTES) })),
        Operation::new(&PEER, |request: &Request| Ok(Reply::json(&request.peer.map(|peer| peer.to_string())))),
        Operation::new(&LENGTH, |request| Ok(Reply::json(&request.body.len()))),
    ];
    let metrics = Metrics::new();
    let control = Control::start(config, operations, Arc::clone(&metrics)).unwrap();
    let rest = control.addresses().rest;
    Port { control, rest, metrics, tls, directory }
}

impl Port {
    fn refusals(&self, reason: &str) -> u64 {
        http::refusals(&self.metrics, reason)
    }

    fn await_refusals(&self, reason: &str, want: u64) {
        let begin = Instant::now();
        while self.refusals(reason) < want && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.refusals(reason), want, "{reason}");
    }

    /// `curl -sS` with these arguments, where `URL` stands for the address. Its exit code, and status with body or error.
    fn curl(&self, arguments: &[&str]) -> (i32, String) {
        let url = format!("https://localhost:{}", self.rest.port());
        let output = curl(&arguments.iter().map(|argument| argument.replace("URL", &url)).collect::<Vec<_>>());
        let text = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    fn connect(&self) -> TcpStream {
        connect(self.rest)
    }

    /// A TLS connection that believes `authority`.
    fn session(&self, pki: &Pki, authority: &str) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.path(authority)).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), self.connect())
    }

    /// Sends `text` (`|` is a line's end) and reads until the port closes.
    fn raw(&self, pki: &Pki, text: &str) -> String {
        let mut session = self.session(pki, "ca.pem");
        let _ = session.write_all(text.replace('|', "\r\n").as_bytes());
        read_all(&mut session)
    }
}

fn curl(arguments: &[String]) -> Output {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "-w", "\n%{http_code} %{ssl_verify_result}"]).args(arguments);
    curl.output().expect("curl is installed")
}

fn read_all(client: &mut impl Read) -> String {
    String::from_utf8_lossy(&http::read_all(client)).into_owned()
}

#[test]
fn curl_speaks_tls_1_3_and_no_other_unless_allowed() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.authority("other");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |_| {});
    let (authority, other) = (pki.arg("ca.pem"), pki.arg("other.pem"));
    let believing = ["--cacert", &authority, "URL/ping"];
    assert_eq!(port.curl(&[&["--tlsv1.3"], &believing[..]].concat()), (0, "\"pong\"\n\n200 0".to_owned()));
    let (code, text) = port.curl(&[&["-v", "--http1.1"], &believing[..]].concat());
    assert_eq!(code, 0, "{text}");
    let (code, text) = port.curl(&[&["--tls-max", "1.2"], &believing[..]].concat());
    assert!(code == 35 && text.contains("protocol version"), "{code} {text}");
    assert_eq!(port.curl(&["--cacert", &other, "URL/ping"]).0, 60, "another authority's certificate");
    port.await_refusals("tls", 2);

    // Half of a body, chunked, and a megabyte.
    let file = pki.path("body");
    fs::write(&file, "x".repeat(1 << 20)).unwrap();
    let data = format!("@{}", file.display());
    for more in [&["-H", "Expect: 100-continue"][..], &["-H", "Transfer-Encoding: chunked"]] {
        let (_, text) = port.curl(&[more, &["--cacert", &authority, "--data-binary", &data, "URL/length"]].concat());
        assert_eq!(text, format!("{}\n\n200 0", 1 << 20), "{more:?}");
    }
    let (_, text) =
        port.curl(&["--cacert", &authority, "-o", "/dev/null", "-w", "%{size_download} %{http_code}", "URL/big"]);
    assert_eq!(text, format!("{BIG_BYTES} 200"));

    let old = start(&pki.config("server", "allow_tls12 = true"), |_| {});
    assert_eq!(old.curl(&[&["--tls-max", "1.2"], &believing[..]].concat()), (0, "\"pong\"\n\n200 0".to_owned()));
    assert_eq!(old.curl(&[&["--tlsv1.3"], &believing[..]].concat()).0, 0);
    assert_eq!(old.curl(&[&["--tls-max", "1.1"], &believing[..]].concat()).0, 35);
}

#[test]
fn openssl_sees_what_was_agreed_on() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |_| {});
    let ask = |more: &[&str]| {
        let address = format!("127.0.0.1:{}", port.rest.port());
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &address, "-CAfile", &pki.arg("ca.pem"), "-verify_return_error"]);
        let output = openssl.args(more).stdin(Stdio::null()).output().expect("openssl is installed");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    };
    let (ok, text) = ask(&["-alpn", "h2,http/1.1"]);
    assert!(ok && text.contains("ALPN protocol: http/1.1") && text.contains("TLSv1.3"), "{text}");
    assert!(!text.contains("Post-Handshake New Session Ticket"), "no session is resumed: {text}");
    let (ok, text) = ask(&["-alpn", "h2"]);
    assert!(!ok && text.contains("no application protocol"), "{text}");
    let (ok, text) = ask(&["-tls1_2"]);
    assert!(!ok && text.contains("protocol version"), "{text}");
}

#[test]
fn keys_as_openssl_writes_them() {
    let pki = Pki::new();
    let (cert, key) = (pki.arg("server.pem"), pki.arg("server.key"));
    let names = ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let serves = |what: &str| {
        let begin = ["req", "-x509", "-days", "2", "-subj", "/CN=localhost", "-key", &key, "-out", &cert];
        openssl(&[&begin[..], &names].concat());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let port = start(&pki.config("server", ""), |_| {});
        assert_eq!(port.curl(&["--cacert", &cert, "URL/ping"]), (0, "\"pong\"\n\n200 0".to_owned()), "{what}");
        assert_eq!(port.tls.state().warnings(), [""; 0], "{what}");
    };
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &key]);
    serves("RSA, PKCS#8");
    openssl(&["genrsa", "-traditional", "-out", &key, "2048"]);
    serves("RSA, PKCS#1");
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-out", &key]);
    serves("EC, SEC1 behind its parameters");
    openssl(&["ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", &key]);
    serves("EC, P-384");
    openssl(&["genpkey", "-algorithm", "ED25519", "-out", &key]);
    serves("Ed25519");
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-aes256",
        "-pass",
        "pass:x",
        "-out",
        &key,
    ]);
    let error = format!("{:#}", TlsState::load(&pki.config("server", "")).err().unwrap());
    assert!(error.contains("server.key (tls.key_path) holds a private key under a passphrase"), "{error}");
}

#[test]
fn plain_http_on_a_tls_port_is_told_so() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |_| {});
    let output = curl(&[format!("http://127.0.0.1:{}/ping", port.rest.port())]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("TLS_REQUIRED") && text.contains("https://") && text.ends_with("\n400 0"), "{text}");
    assert_eq!(port.refusals("not_tls"), 1);
    // What is neither gets an alert and is closed.
    let mut strange = port.connect();
    strange.write_all(b"\x16\x03\x01\x00\x05hello and more of it").unwrap();
    read_all(&mut strange);
    port.await_refusals("tls", 1);
    assert_eq!(port.curl(&["--cacert", &pki.arg("ca.pem"), "URL/ping"]).0, 0);
}

#[test]
fn client_certificates() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    let clients = pki.authority("clients");
    let other = pki.authority("other");
    pki.certificate(&ca, "server");
    pki.certificate(&clients, "deploy");
    pki.certificate(&other, "forged");
    pki.certificate_of(&clients, "late", |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let more = |auth: &str| format!("client_auth = '{auth}'\nclient_ca_path = '{}'", pki.arg("clients.pem"));
    let authority = pki.arg("ca.pem");
    let ask = |port: &Port, name: Option<&str>| {
        let files = name.map(|name| (pki.arg(&format!("{name}.pem")), pki.arg(&format!("{name}.key"))));
        let mut arguments = vec!["--cacert", &authority, "URL/ping"];
        if let Some((cert, key)) = &files {
            arguments.extend(["--cert", cert, "--key", key]);
        }
        port.curl(&arguments)
    };
    let required = start(&pki.config("server", &more("required")), |_| {});
    assert_eq!(ask(&required, Some("deploy")), (0, "\"pong\"\n\n200 0".to_owned()));
    for (name, alert) in [(None, "certificate required"), (Some("forged"), "unknown ca"), (Some("late"), "expired")] {
        let (code, text) = ask(&required, name);
        assert!(code != 0 && text.to_lowercase().contains(alert), "{name:?}: {code} {text}");
    }
    required.await_refusals("tls", 3);
    let optional = start(&pki.config("server", &more("optional")), |_| {});
    assert_eq!(ask(&optional, Some("deploy")).0, 0);
    assert_eq!(ask(&optional, None).0, 0);
    assert_ne!(ask(&optional, Some("forged")).0, 0);

    // As the server knows it, and as openssl shows it.
    let shown = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in", &pki.arg("deploy.pem")])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let digits = shown.trim().rsplit('=').next().unwrap().replace(':', "").to_lowercase();
    let certificate = |name: &str| CertificateDer::from_pem_file(pki.path(name)).unwrap();
    assert_eq!(client_name(&certificate("deploy.pem")), format!("{digits} deploy"));
    for odd in ["evil\r\nx-agent-uid: 0", "ä", ""] {
        pki.certificate_of(&clients, "odd", |params| params.distinguished_name.push(DnType::CommonName, odd));
        assert_eq!(client_name(&certificate("odd.pem")).len(), 64, "{odd:?}");
    }
}

/// A name is the same by REST and by gRPC, and is another one with a blank at an end.
#[test]
fn a_subject_is_exact() {
    let pki = Pki::new();
    let (ca, clients) = (pki.authority("ca"), pki.authority("clients"));
    pki.certificate(&ca, "server");
    let names = [("plain", "deploy"), ("last", "deploy "), ("first", " deploy")];
    for (file, name) in names {
        pki.certificate_of(&clients, file, |params| params.distinguished_name.push(DnType::CommonName, name));
    }
    let section = "[agent]\ninterfaces = ['eth0']\n[auth]\nenabled = true\n\
                   [[auth.api_keys]]\nname = 'root'\nkey = 'the-key-of-the-admin'\nrole = 'admin'\n";
    let parsed = config::parse("c.toml", section.as_bytes(), [], &[]).map_err(|errors| errors.to_string());
    let section = parsed.unwrap().0.auth;
    for (_, configured) in names {
        let known = format!("clients = [{{ subject = '{configured}', role = 'viewer' }}]");
        let more = format!("client_auth = 'required'\nclient_ca_path = '{}'\n{known}", pki.arg("clients.pem"));
        let tls = pki.config("server", &more);
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let auth = Auth::new(&section, &tls.clients, &Metrics::new(), &supervisor).unwrap();
        let port = start(&tls, |config| config.auth = Some(auth.clone()));
        let gate = gate_of(auth, Arc::new(NoAuditor));
        for (file, name) in names {
            let (cert, key) = (pki.arg(&format!("{file}.pem")), pki.arg(&format!("{file}.key")));
            let (_, text) = port.curl(&["--cacert", &pki.arg("ca.pem"), "--cert", &cert, "--key", &key, "URL/ping"]);
            let shown = client_name(&CertificateDer::from_pem_file(&cert).unwrap());
            let peer = "127.0.0.1:1".parse().unwrap();
            let by_grpc = gate(&Credentials { bearer: None, api_key: None, certificate: Some(shown.into()), peer });
            let good = name == configured;
            assert_eq!((text.ends_with("200 0"), by_grpc.is_ok()), (good, good), "{name:?} for {configured:?}: {text}");
        }
    }
}

#[test]
fn a_renewed_certificate_serves_new_connections_and_spares_old_ones() {
    let pki = Pki::new();
    let (old, new) = (pki.authority("ca"), pki.authority("new"));
    pki.certificate(&old, "server");
    let config = pki.config("server", "");
    let port = start(&config, |_| {});
    let mut download = port.session(&pki, "ca.pem");
    download.write_all(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut head = [0; 15];
    download.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");

    pki.certificate(&new, "server");
    port.tls.reload().unwrap();
    assert_eq!(port.curl(&["--cacert", &pki.arg("new.pem"), "URL/ping"]).0, 0);
    assert_eq!(port.curl(&["--cacert", &pki.arg("ca.pem"), "URL/ping"]).0, 60);
    let rest = read_all(&mut download);
    assert_eq!(rest.split_once("\r\n\r\n").unwrap().1.len(), BIG_BYTES, "the download goes on as it began");

    // What is wrong with the files is said, and changes nothing.
    let good_key = fs::read_to_string(pki.path("server.key")).unwrap();
    let good = fs::read_to_string(pki.path("server.pem")).unwrap();
    pki.certificate(&new, "second");
    let other_key = fs::read_to_string(pki.path("second.key")).unwrap();
    let check = |cert: &str, key: &str, mode: u32, want: &str| {
        pki.write_pair("server", cert, key);
        fs::set_permissions(pki.path("server.key"), fs::Permissions::from_mode(mode)).unwrap();
        let error = format!("{:#}", port.tls.reload().unwrap_err());
        assert!(error.contains(want) && error.contains("server."), "{want}: {error}");
        let complaint = port.tls.complaint().unwrap();
        assert!(complaint.contains(want) && complaint.contains("read before is in use"), "{complaint}");
        assert_eq!(port.curl(&["--cacert", &pki.arg("new.pem"), "URL/ping"]).0, 0, "{want}");
    };
    check(&good, &other_key, 0o600, "is not that of");
    check(&good, &good_key, 0o604, "everybody on this host may read or change");
    check(&good, "no key", 0o600, "holds no private key");
    check("", &good_key, 0o600, "holds no certificate");
    check(&good[..200], &good_key, 0o600, "server.pem");
    check(&"x".repeat(2 << 20), &good_key, 0o600, "are more than the 1 MiB");
    fs::remove_file(pki.path("server.pem")).unwrap();
    assert!(format!("{:#}", port.tls.reload().unwrap_err()).contains("No such file"));
    pki.write_pair("server", &good, &good_key);
    port.tls.reload().unwrap();
    assert_eq!(port.tls.complaint(), None);

    pki.certificate_of(&new, "server", |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let state = TlsState::load(&config).unwrap();
    let warnings = state.warnings();
    assert!(
        warnings.len() == 2 && warnings[0].contains("has expired") && warnings[1].contains("CA:TRUE"),
        "{warnings:?}"
    );
    port.tls.replace(Arc::new(state));
    assert!(port.tls.complaint().unwrap().ends_with("has expired"));
    assert_eq!(port.tls.not_after(), 1_577_836_800);
}

#[test]
fn slow_handshakes_and_heads_are_cut() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |config| config.limits.head_timeout = Duration::from_millis(300));
    let silent = port.connect();
    let mut slow = port.connect();
    slow.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
    let begin = Instant::now();
    // A byte now and then does not prolong it.
    while slow.write_all(b"x").is_ok() {
        assert!(begin.elapsed() < PATIENCE, "still open");
        std::thread::sleep(Duration::from_millis(20));
    }
    port.await_refusals("tls_timeout", 2);
    assert_eq!(read_all(&mut { silent }).len(), 7, "an alert that says goodbye");

    let mut session = port.session(&pki, "ca.pem");
    session.write_all(b"GET /ping HTTP/1.1\r\nHost: local").unwrap();
    assert_eq!(status(&read_all(&mut session)), 408);
    port.await_refusals("head_timeout", 1);
}

#[test]
fn five_hundred_half_open_handshakes() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |_| {});
    let authority = pki.arg("ca.pem");
    let mut half_open = Vec::new();
    for i in 0..500 {
        let mut client = port.connect();
        let _ = match i % 3 {
            0 => Ok(()),
            1 => client.write_all(b"\x16\x03\x01\x02\x00\x01\x00"),
            _ => {
                let mut session = port.session(&pki, "ca.pem");
                let result = session.write_all(b"GET /ping HTTP/1.1\r\nHost: local");
                half_open.push(session.sock);
                result
            }
        };
        half_open.push(client);
        if i % 100 == 99 {
            assert_eq!(port.curl(&["--cacert", &authority, "URL/ping"]).0, 0, "after {i} half-open clients");
        }
    }
    assert!(port.refusals("evicted") >= 500, "{}", port.refusals("evicted"));
    drop(half_open);
    assert_eq!(port.curl(&["--cacert", &authority, "URL/ping"]).0, 0);
}

#[test]
fn shapes_of_smuggling_by_tls() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |_| {});
    let check = |head: &str, want: u16| assert_eq!(status(&port.raw(&pki, &format!("{head}||"))), want, "{head}");
    check("POST /length HTTP/1.1|Host: localhost|Content-Length: 3|Transfer-Encoding: chunked", 400);
    check("POST /length HTTP/1.1|Host: localhost|Content-Length: 3|Content-Length: 4", 400);
    check("POST /length HTTP/1.1|Host: localhost|Content-Length: +3", 400);
    check("GET /ping HTTP/1.1|Host: evil.example", 421);
    check("GET /ping HTTP/1.1|Host: localhost|Origin: https://evil.example", 403);
    check("GET /ping HTTP/1.1|Host: localhost|Origin: https://localhost", 200);
    check(&format!("GET /ping HTTP/1.1|Host: localhost|X: {}", "x".repeat(64 << 10)), 431);
    let one = "GET /ping HTTP/1.1|Host: localhost|Connection: keep-alive||";
    let answer = port.raw(&pki, &one.repeat(200));
    assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), (200, 1));
    let answer = port.raw(&pki, &format!("POST /length HTTP/1.1|Host: localhost|Content-Length: 3||abc{one}"));
    assert_eq!((status(&answer), answer.matches("HTTP/1.1 ").count()), (200, 1));
    let forged = "GET /peer HTTP/1.1|Host: localhost|X-Agent-Peer: 6.6.6.6:6|X-Agent-Uid: 0|X-Agent-Listener: unix||";
    assert!(port.raw(&pki, forged).contains("\"127.0.0.1:"));
}

#[test]
fn a_connection_is_kept_for_who_asks() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |config| {
        config.limits.requests_per_connection = 5;
        config.limits.idle_timeout = Duration::from_millis(500);
    });
    let keep = ["-H", "Connection: keep-alive", "--cacert", &pki.arg("ca.pem")];
    let new = "%{num_connects} %{http_code}\n";
    let many = ["-w", new, "URL/ping", "URL/ping", "-X", "GET"];
    let (code, text) = port.curl(&[&keep[..], &many].concat());
    assert_eq!((code, text.as_str()), (0, "\"pong\"\n1 200\n\"pong\"\n0 200\n"));

    // Answers with bodies, without, and for HEAD, one after the other, as many as there may be.
    let mut session = port.session(&pki, "ca.pem");
    let mut ask = |line: &str, body: &str| {
        let head =
            format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\nContent-Length: {}", body.len());
        session.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        let mut head = String::new();
        let mut byte = [0];
        while !head.ends_with("\r\n\r\n") {
            session.read_exact(&mut byte).unwrap();
            head.push(byte[0].into());
        }
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; if line.starts_with("HEAD") { 0 } else { length.parse().unwrap() }];
        session.read_exact(&mut body).unwrap();
        let kept = head.contains("connection: keep-alive");
        assert_ne!(kept, head.contains("connection: close"), "{head}");
        (status(&head), String::from_utf8(body).unwrap(), kept)
    };
    assert_eq!(ask("POST /length", "abc"), (200, "3\n".to_owned(), true));
    assert_eq!(ask("HEAD /ping", ""), (200, String::new(), true));
    assert_eq!(ask("GET /nothing", "").0, 404, "an operation's error keeps it");
    assert_eq!(ask("GET /big", ""), (200, "x".repeat(BIG_BYTES), true));
    assert_eq!(ask("GET /ping", ""), (200, "\"pong\"\n".to_owned(), false), "the last one says that it is");
    assert_eq!(session.read(&mut [0]).unwrap(), 0);

    // A connection that is kept and silent is closed, and gives way to a new client before.
    let mut idle = port.session(&pki, "ca.pem");
    idle.write_all(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n").unwrap();
    assert_eq!(status(&read_all(&mut idle)), 200);
    let refused = port.raw(&pki, "GET /ping HTTP/1.1|Host: evil.example|Connection: keep-alive||");
    assert!(status(&refused) == 421 && !refused.contains("keep-alive"), "{refused}");
}

#[test]
fn who_asks_too_often_is_told_when_to_come_back() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |config| config.limits.requests_here_per_s = 5);
    let statuses: Vec<u16> = (0..30).map(|_| status(&port.raw(&pki, "GET /ping HTTP/1.1|Host: localhost||"))).collect();
    let good = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses[..10].iter().all(|status| *status == 200), "{statuses:?}");
    assert!(good < 30 && statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert_eq!(port.refusals("rate"), 30 - good as u64);
    // Also on a connection that had answers before. Without bodies, so that an answer is one piece.
    std::thread::sleep(Duration::from_secs(1));
    let mut session = port.session(&pki, "ca.pem");
    let mut answered = Vec::new();
    while answered.last() != Some(&429) && answered.len() < 30 {
        session.write_all(b"HEAD /ping HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let mut answer = [0; 4096];
        let length = session.read(&mut answer).unwrap();
        answered.push(status(&String::from_utf8_lossy(&answer[..length])));
    }
    assert!(answered.len() > 1 && answered.last() == Some(&429), "{answered:?}");
    let mut refused = String::new();
    let begin = Instant::now();
    while status_or(&refused, 200) == 200 {
        assert!(begin.elapsed() < PATIENCE);
        refused = port.raw(&pki, "GET /ping HTTP/1.1|Host: localhost||");
    }
    assert!(refused.contains("retry-after: 1\r\n") && refused.contains("RATE_LIMITED"), "{refused}");
}

fn status_or(answer: &str, without: u16) -> u16 {
    if answer.is_empty() { without } else { status(answer) }
}

#[test]
fn the_metrics_port_by_tls_and_plain() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    for metrics_tls in [true, false] {
        let port = start(&pki.config("server", ""), |config| config.metrics_tls = metrics_tls);
        let metrics = port.control.addresses().metrics.unwrap();
        let scheme = if metrics_tls { "https" } else { "http" };
        let arguments = ["--cacert", &pki.arg("ca.pem"), &format!("{scheme}://127.0.0.1:{}/ping", metrics.port())];
        let output = curl(&arguments.map(str::to_owned));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("this listener serves /metrics only") && text.ends_with("404 0"), "{text}");
    }
}

#[test]
fn the_unix_socket_by_curl_and_by_our_client() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |_| {});
    let path = port.directory.path().join("control.sock");
    assert_eq!(port.control.socket(), Some(path.as_path()));
    let by_socket = |what: &str| {
        let arguments = ["--unix-socket", &path.display().to_string(), &format!("http://localhost{what}")];
        String::from_utf8(curl(&arguments.map(str::to_owned)).stdout).unwrap()
    };
    assert_eq!(by_socket("/ping"), "\"pong\"\n\n200 0");
    assert_eq!(by_socket("/peer"), "null\n\n200 0", "no address");
    assert!(by_socket("/big").len() > BIG_BYTES);
    let client = Client::over(&Way::Unix(path.clone()), None).unwrap();
    assert_eq!(client.json(Method::Get, "/ping", None).unwrap(), "pong");
    assert_eq!(client.json(Method::Post, "/length", Some(&serde_json::json!("abc"))).unwrap(), 5);
    assert_eq!(client.text(Method::Get, "/big", None).unwrap().len(), BIG_BYTES);
    let mut dumb = UnixStream::connect(&path).unwrap();
    dumb.write_all(b"GET /ping HTTP/1.1\r\nHost: evil.example\r\n\r\n").unwrap();
    assert_eq!(status(&read_all(&mut dumb)), 421);
    port.control.stop();
    assert!(!path.exists());
    let error = client.json(Method::Get, "/ping", None).unwrap_err().to_string();
    assert!(error.contains("control.sock") && error.contains("No such file"), "{error}");
}

/// The group may use the socket; others may not.
#[test]
fn the_unix_socket_is_for_root_and_the_group() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = ControlConfig::new("127.0.0.1:0".parse().unwrap(), dir.path().join("run"));
    let path = dir.path().join("control.sock");
    config.socket = Some(UnixSocket::bind(&path, &dir.path().join("run")).unwrap());
    let control = Control::start(config, vec![Operation::new(&PING, |_| Ok(Reply::json(&1)))], Metrics::new()).unwrap();
    let as_user = |groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=12345", "--regid=12345", groups, "curl", "-sS", "--max-time", "20", "--unix-socket"]);
        command.arg(&path).arg("http://localhost/ping").output().expect("setpriv is installed").status.success()
    };
    assert!(!as_user("--clear-groups"));
    let gid = std::os::unix::fs::MetadataExt::gid(&fs::metadata(&path).unwrap());
    assert!(as_user(&format!("--groups={gid}")));
    control.stop();
}

#[test]
fn our_client_by_tls() {
    let pki = Pki::new();
    let (ca, clients) = (pki.authority("ca"), pki.authority("clients"));
    pki.authority("other");
    pki.certificate(&ca, "server");
    pki.certificate(&clients, "deploy");
    let more = format!("client_auth = 'required'\nclient_ca_path = '{}'", pki.arg("clients.pem"));
    let port = start(&pki.config("server", &more), |_| {});
    let open = start(&pki.config("server", ""), |_| {});
    let ask = |port: &Port, host: &str, trust: Trust| {
        let endpoint = Endpoint { host: host.to_owned(), port: port.rest.port() };
        let client = Client::over(&Way::Tls(endpoint, trust), Some("token".to_owned()))?;
        client.json(Method::Get, "/ping", None).map(|value| value.to_string()).map_err(|e| e.to_string())
    };
    let trust = |name: &str| Trust { cacert: Some(pki.path(name)), ..Trust::default() };
    let identity = || Some((pki.path("deploy.pem"), pki.path("deploy.key")));
    assert_eq!(ask(&open, "localhost", trust("ca.pem")), Ok("\"pong\"".to_owned()));
    assert_eq!(ask(&open, "127.0.0.1", trust("ca.pem")), Ok("\"pong\"".to_owned()));
    assert_eq!(ask(&open, "localhost", Trust { insecure: true, ..Trust::default() }), Ok("\"pong\"".to_owned()));
    assert_eq!(ask(&port, "localhost", Trust { identity: identity(), ..trust("ca.pem") }), Ok("\"pong\"".to_owned()));
    let check = |got: Result<String, String>, want: &str| {
        let error = got.unwrap_err();
        assert!(error.contains(want), "{want}: {error}");
    };
    check(ask(&open, "localhost", trust("other.pem")), "--cacert FILE names the authority to believe");
    check(ask(&port, "localhost", trust("ca.pem")), "it wants a client certificate; give --cert and --cert-key");
    check(ask(&open, "localhost", trust("nothing.pem")), "nothing.pem: No such file");
    let endpoint = Endpoint { host: "localhost".to_owned(), port: open.rest.port() };
    check(
        Client::new(endpoint, None).json(Method::Get, "/ping", None).map(|v| v.to_string()).map_err(|e| e.to_string()),
        "this port speaks TLS: ask it with https:// (ebpfsentinel-agent: --tls) (TLS_REQUIRED, HTTP 400)",
    );
    let plain = start_plain();
    check(ask_plain(&plain, &pki), "it does not speak TLS there");
}

fn start_plain() -> Control {
    let config = ControlConfig::new("127.0.0.1:0".parse().unwrap(), tempfile::tempdir().unwrap().keep());
    Control::start(config, Vec::new(), Metrics::new()).unwrap()
}

fn ask_plain(control: &Control, pki: &Pki) -> Result<String, String> {
    let trust = Trust { cacert: Some(pki.path("ca.pem")), ..Trust::default() };
    let endpoint = Endpoint { host: "127.0.0.1".to_owned(), port: control.addresses().rest.port() };
    let client = Client::over(&Way::Tls(endpoint, trust), None)?;
    client.json(Method::Get, "/ping", None).map(|value| value.to_string()).map_err(|e| e.to_string())
}

/// Certificates change and clients come and go, and everyone gets a whole answer.
#[test]
fn renewal_under_load() {
    let pki = Pki::new();
    let ca = pki.authority("ca");
    pki.certificate(&ca, "server");
    let port = start(&pki.config("server", ""), |_| {});
    std::thread::scope(|scope| {
        let askers = [0; 3].map(|_| {
            scope.spawn(|| {
                for _ in 0..10 {
                    let answer = port.raw(&pki, "GET /ping HTTP/1.1|Host: localhost||");
                    assert!(answer.ends_with("\"pong\"\n"), "{answer}");
                }
            })
        });
        while !askers.iter().all(|asker| asker.is_finished()) {
            pki.certificate(&ca, "server");
            port.tls.reload().unwrap();
        }
    });
    assert_eq!(port.refusals("tls"), 0);
}
