//! Real clients and servers through the inspecting agent: what they speak is recognised on ports that are not theirs, the
//! facts are right, and what a rule denies does not come about.

use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};

use ebpfsentinel::lab::Process;
use serde_json::Value;

use super::support::{Agent, HOST, HOST_V6, Lab, config, wait_for, wait_until};

const PYTHON: &str = "/usr/bin/python3";
const SERVICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/services.py");

/// Length of the file that nobody may have.
const SECRET_BYTES: usize = 24_000_000;

/// A firewall that lets everything through, and these keys and rules of the L7 firewall.
fn l7(keys: &str, rules: &[&str]) -> String {
    let rules: String = rules.iter().map(|rule| format!("  {rule},\n")).collect();
    format!("{}\n[l7]\nmode = \"block\"\n{keys}\nrules = [\n{rules}]\n", config("", "mode = \"block\"", &[]))
}

/// A laboratory whose host offers services.
struct Town {
    lab: Lab,
    servers: Vec<Process>,
    folder: tempfile::TempDir,
    agent: Agent,
}

impl Town {
    fn new(rules: &[&str]) -> Town {
        Town::with("", rules)
    }

    fn with(keys: &str, rules: &[&str]) -> Town {
        let lab = Lab::new();
        let agent = lab.start(&l7(keys, rules));
        let folder = tempfile::Builder::new().prefix("ebs-town-").tempdir().unwrap();
        // What is denied is long: packets that were on their way when the rule was met do pass.
        let secret = std::fs::File::create(folder.path().join("file.txt")).unwrap();
        secret.set_len(SECRET_BYTES as u64).unwrap();
        std::fs::write(folder.path().join("open.txt"), "open\n").unwrap();
        Town { lab, servers: Vec::new(), folder, agent }
    }

    fn folder(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// Starts a server in the host and waits until it listens.
    fn serve(&mut self, program: &str, words: &[&str], port: u16) {
        let mut command = self.lab.host.command(program).unwrap();
        command.args(words).current_dir(self.folder.path());
        self.servers.push(Process::start(&mut command).unwrap());
        let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok() || TcpStream::connect(("::1", port)).is_ok();
        wait_until(&format!("{program} {words:?} listens"), || self.lab.host.run(listens).unwrap());
    }

    fn service(&mut self, name: &str, port: u16, more: &[&str]) {
        let port_text = port.to_string();
        let words: Vec<&str> = [SERVICES, name, &port_text].into_iter().chain(more.iter().copied()).collect();
        self.serve(PYTHON, &words, port);
    }

    /// Runs a client in the world, for at most 15 seconds.
    fn client(&self, words: &[&str]) -> Output {
        let mut command: Command = self.lab.world.command("timeout").unwrap();
        command.arg("15").args(words).stdin(Stdio::null()).current_dir(self.folder.path()).output().unwrap()
    }

    fn curl(&self, words: &[&str]) -> Output {
        self.client(&[&["curl", "-sS", "--max-time", "9", "--limit-rate", "8M"], words].concat())
    }

    /// The alert of a rule that says what `holds`.
    fn alert(&self, rule: &str, holds: impl Fn(&str) -> bool) -> String {
        wait_for(&format!("an alert of {rule}"), || {
            let said = self.agent.said();
            said.lines().find(|line| line.contains(&format!("rule_id={rule} ")) && holds(line)).map(str::to_owned)
        })
    }

    /// Which protocol the live flow to a port of the host speaks. To be asked soon: flows that ended are forgotten.
    fn protocol_on(&self, port: u16) -> String {
        wait_for(&format!("the protocol on port {port}"), || {
            let flows = self.lab.get("/api/v1/flows?limit=1000");
            let flow = flows.as_array().unwrap().iter().find(|flow| flow["server_port"] == port)?.clone();
            flow["app_proto"].as_str().map(str::to_owned)
        })
    }

    /// The list of flows is sorted and filtered as asked, and traffic has moved what is told of it.
    fn shows_http_flows(&self) {
        let list = |query: &str| self.lab.get(&format!("/api/v1/flows?limit=1000{query}")).as_array().unwrap().clone();
        for (query, sent, got) in [
            ("&sort=packets", "client_packets", "server_packets"),
            ("&sort=bytes", "client_bytes", "server_bytes"),
            ("", "client_bytes", "server_bytes"),
        ] {
            let flows = list(&format!("&protocol=http&ip={HOST_V6}{query}"));
            assert!(flows.len() > 1 && flows.iter().all(|flow| flow["app_proto"] == "http"), "{flows:?}");
            assert!(flows.iter().all(|flow| flow["server_ip"] == HOST_V6), "{flows:?}");
            let weights = flows.iter().map(|flow| flow[sent].as_u64().unwrap() + flow[got].as_u64().unwrap());
            assert!(weights.is_sorted_by(|one, next| one >= next), "{query}: {flows:?}");
        }
        assert_eq!(list("&protocol=smtp"), [] as [Value; 0]);
        assert_eq!(list("&ip=203.0.113.1"), [] as [Value; 0]);
        assert_eq!(list("&protocol=tcp&offset=1").len() + 1, list("&protocol=tcp").len());
        let table = self.lab.cli(&["flows", "--protocol", "http", "--limit", "3"]);
        assert_eq!(succeeds(&table).lines().count(), 4, "{}", text(&table));
        for metric in [
            "flows{protocol=\"http\"}",
            "blocked{kind=\"flow\"}",
            "inspection_packets_total{direction=\"ingress\",result=\"recorded\"}",
            "inspection_packets_total{direction=\"egress\",result=\"recorded\"}",
            "inspection_packets_total{direction=\"egress\",result=\"blocked_flow\"}",
            "inspection_bytes_total{direction=\"egress\",kind=\"copied\"}",
            "inspection_memory_bytes{worker=\"0\",kind=\"all\"}",
            "inspection_events_total{worker=\"0\",event=\"blocked\"}",
            "tcp_resets_total{worker=\"0\",result=\"sent\"}",
            "l7_rule_matches_total{rule=\"admin\",action=\"deny\"}",
            "l7_blocked_flows_total{rule=\"admin\"}",
        ] {
            assert!(self.lab.metric(&format!("ebpfsentinel_{metric}")) > 0.0, "{metric}");
        }
    }

    fn rule(&self, id: &str) -> Value {
        self.lab.get(&format!("/api/v1/firewall/l7-rules/{id}"))
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn fails(output: &Output) {
    assert!(!output.status.success(), "{} bytes: {}", output.stdout.len(), String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.len() < SECRET_BYTES / 2, "{} bytes", output.stdout.len());
}

#[test]
fn http_by_curl_in_both_families() {
    let mut town = Town::new(&[
        "{ id = \"admin\", priority = 1, action = \"deny\", protocol = \"http\", path = \"/admin*\" }",
        "{ id = \"seen\", priority = 9, action = \"log\", protocol = \"http\", host = \"*.example.org\" }",
    ]);
    town.service("http", 8123, &[]);
    for host in [HOST.to_owned(), format!("[{HOST_V6}]")] {
        let to = |path: &str| format!("http://{host}:8123{path}");
        for path in ["/plain", "/chunked", "/gzip"] {
            let got = succeeds(&town.curl(&["--compressed", "-g", "-H", "Host: www.example.org", &to(path)]));
            assert_eq!(got.len(), 24_000, "{path}");
        }
        assert_eq!(town.protocol_on(8123), "http");
        // However it is written.
        for path in ["/admin/users", "/%61dmin", "/x/../admin", "//admin"] {
            fails(&town.curl(&["-g", "--path-as-is", &to(path)]));
        }
        // Also as the second request of a connection that was good so far.
        let both = town.curl(&["-g", &to("/plain"), &to("/admin")]);
        fails(&both);
        assert!(both.stdout.len() >= 24_000);
        // And in a body's shadow.
        fails(&town.curl(&["-g", "-d", "@/proc/self/cmdline", &to("/admin")]));
    }
    town.shows_http_flows();
    let alert = town.alert("admin", |line| line.contains("/admin/users"));
    for word in ["action=blocked", "component=l7", "app_proto=http", "community_id=\"1:", "direction=ingress", "pid="] {
        assert!(alert.contains(word), "{word}: {alert}");
    }
    assert!(town.alert("seen", |_| true).contains("www.example.org"));
    let rule = town.rule("admin");
    // curl asks again when a connection ends that was good before.
    assert!(rule["hits"].as_u64() >= Some(12), "{rule}");
    assert_eq!(rule["hits"], rule["enforced"], "{rule}");
}

#[test]
fn http2_by_curl_and_nghttpd_and_grpc() {
    let mut town = Town::new(&[
        "{ id = \"secret\", priority = 1, action = \"deny\", protocol = \"http\", path = \"/file.txt\" }",
        "{ id = \"bye\", priority = 2, action = \"deny\", protocol = \"grpc\", service = \"test.Greeter\", method = \"Bye\" }",
        "{ id = \"hello\", priority = 3, action = \"log\", protocol = \"grpc\", method = \"Hello\" }",
    ]);
    town.serve("nghttpd", &["--no-tls", "-d", ".", "8124"], 8124);
    let to = |path: &str| format!("http://{HOST}:8124{path}");
    assert_eq!(succeeds(&town.curl(&["--http2-prior-knowledge", &to("/open.txt")])), "open\n");
    assert_eq!(town.protocol_on(8124), "http2");
    fails(&town.curl(&["--http2-prior-knowledge", &to("/file.txt")]));
    assert!(town.alert("secret", |_| true).contains("action=blocked"));

    town.service("grpc", 8125, &[]);
    assert!(succeeds(&town.client(&[PYTHON, SERVICES, "call", "8125", "Hello"])).contains("hello you"));
    fails(&town.client(&[PYTHON, SERVICES, "call", "8125", "Bye"]));
    assert!(town.alert("bye", |_| true).contains("action=blocked"));
    assert!(town.alert("hello", |_| true).contains("test.Greeter"));
}

#[test]
fn tls_by_openssl_and_curl() {
    let mut town = Town::new(&[
        "{ id = \"tracker\", priority = 1, action = \"deny\", protocol = \"tls\", sni = \"*.tracker.example\" }",
        "{ id = \"all\", priority = 2, action = \"log\", protocol = \"tls\" }",
    ]);
    let made = town.client(&[
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-days",
        "9",
        "-subj",
        "/CN=town.example",
    ]);
    succeeds(&made);
    town.serve(
        "openssl",
        &["s_server", "-quiet", "-WWW", "-accept", "8126", "-cert", "cert.pem", "-key", "key.pem"],
        8126,
    );
    let connect = format!("{HOST}:8126");
    for version in ["-tls1_2", "-tls1_3"] {
        let words =
            ["openssl", "s_client", "-connect", &connect, "-servername", "good.example", version, "-alpn", "h2"];
        assert!(text(&town.client(&words)).contains("BEGIN CERTIFICATE"), "{version}");
    }
    assert_eq!(town.protocol_on(8126), "tls");
    for version in [&["--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        let get = |name: &str, file: &str| {
            let (url, place) = (format!("https://{name}:8126/{file}"), format!("{name}:8126:{HOST}"));
            town.curl(&[version, &["-k", "--resolve", &place, &url]].concat())
        };
        assert!(succeeds(&get("good.example", "open.txt")).contains("open\n"), "{version:?}");
        for name in ["a.tracker.example", "A.TRACKER.example"] {
            fails(&get(name, "file.txt"));
        }
    }
    let alert = town.alert("all", |line| line.contains("good.example"));
    assert!(alert.contains("ja3=") && alert.contains("ja4=t1"), "{alert}");
    assert!(town.alert("tracker", |_| true).contains("action=blocked"));
}

#[test]
fn mails_by_smtplib() {
    let mut town = Town::new(&[
        "{ id = \"victim\", priority = 1, action = \"deny\", protocol = \"smtp\", to = \"victim@*\" }",
        "{ id = \"mails\", priority = 2, action = \"log\", protocol = \"smtp\", from = \"a@example.org\" }",
    ]);
    town.service("smtp", 8127, &[]);
    succeeds(&town.client(&[PYTHON, SERVICES, "mail", "8127", "b@example.org"]));
    assert_eq!(town.protocol_on(8127), "smtp");
    fails(&town.client(&[PYTHON, SERVICES, "mail", "8127", "victim@example.org"]));
    let taken = town.servers[0].output();
    assert!(taken.contains("b@example.org") && !taken.contains("victim"), "{taken}");
    assert!(town.alert("victim", |_| true).contains("action=blocked"));
    town.alert("mails", |line| line.contains("b@example.org"));
}

#[test]
fn files_by_ftp_and_smb() {
    let mut town = Town::new(&[
        "{ id = \"ftp-file\", priority = 1, action = \"deny\", protocol = \"ftp\", command = \"RETR\", file = \"*file.txt\" }",
        "{ id = \"smb-file\", priority = 2, action = \"deny\", protocol = \"smb\", file = \"*file.txt\" }",
        "{ id = \"ftp-any\", priority = 3, action = \"log\", protocol = \"ftp\", command = \"RETR\" }",
        "{ id = \"smb-any\", priority = 4, action = \"log\", protocol = \"smb\", file = \"*open.txt\" }",
    ]);
    let folder = town.folder().to_owned();
    town.service("ftp", 8128, &[&folder]);
    for active in [&[][..], &["-P", "-"]] {
        let get = |file: &str| town.curl(&[active, &[&format!("ftp://{HOST}:8128/{file}")]].concat());
        assert_eq!(succeeds(&get("open.txt")), "open\n");
        assert_eq!(town.protocol_on(8128), "ftp");
        fails(&get("file.txt"));
    }
    assert!(town.alert("ftp-file", |_| true).contains("action=blocked"));
    town.alert("ftp-any", |line| line.contains("open.txt"));

    town.service("smb", 8129, &[&folder]);
    let get = |file: &str| {
        let (share, command) = (format!("//{HOST}/DOCS"), format!("get {file} /dev/stdout"));
        town.client(&["smbclient", "-p", "8129", "-N", &share, "-c", &command])
    };
    assert!(text(&get("open.txt")).contains("open\n"));
    assert_eq!(town.protocol_on(8129), "smb");
    let denied = get("file.txt");
    assert!(denied.stdout.len() < SECRET_BYTES / 2, "{} bytes", denied.stdout.len());
    assert!(town.alert("smb-file", |_| true).contains("action=blocked"));
    town.alert("smb-any", |_| true);
}

#[test]
fn ssh_is_recognised() {
    let mut town = Town::new(&["{ id = \"none\", priority = 1, action = \"log\", protocol = \"http\" }"]);
    succeeds(&town.client(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "host_key"]));
    std::fs::create_dir_all("/run/sshd").unwrap();
    let key = format!("{}/host_key", town.folder());
    town.serve("/usr/sbin/sshd", &["-D", "-e", "-f", "/dev/null", "-p", "8130", "-h", &key], 8130);
    // Nobody may log in, but both have shown what they are.
    fails(&town.client(&[
        "ssh",
        "-p",
        "8130",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "BatchMode=yes",
        HOST,
        "true",
    ]));
    assert_eq!(town.protocol_on(8130), "ssh");
}

/// A server of the test itself in the host, and a client of it in the world, each with patience.
fn connect(town: &Town, listen: &str, to: &str, port: u16) -> (TcpStream, TcpStream) {
    let listener = town.lab.host.run(|| TcpListener::bind((listen, port))).unwrap().unwrap();
    let client = town.lab.world.run(|| TcpStream::connect((to, port))).unwrap().unwrap();
    let (server, _) = listener.accept().unwrap();
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    }
    (client, server)
}

/// What a server that is refused a flow sees of it: it is not left waiting.
#[test]
fn both_ends_of_a_refused_connection_are_reset() {
    use std::io::{Read, Write};
    let town = Town::new(&["{ id = \"no\", priority = 1, action = \"deny\", protocol = \"http\", path = \"/no\" }"]);
    for (listen, to) in [("0.0.0.0", HOST), ("::", HOST_V6)] {
        let (mut client, mut server) = connect(&town, listen, to, 8131);
        client.write_all(b"GET /no HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let end = |stream: &mut TcpStream| loop {
            match stream.read(&mut [0; 512]) {
                Ok(0) => panic!("{to}: an end without a reset"),
                Ok(_) => {}
                Err(error) => return error.kind(),
            }
        };
        assert_eq!(end(&mut server), std::io::ErrorKind::ConnectionReset, "{to}");
        assert_eq!(end(&mut client), std::io::ErrorKind::ConnectionReset, "{to}");
    }
    assert!(town.lab.metric("ebpfsentinel_tcp_resets_total{worker=\"0\",result=\"sent\"}") >= 2.0);
}

/// The same where resets are not wanted: the kernel drops what comes, and says nothing.
#[test]
fn nobody_is_reset_where_that_is_switched_off() {
    use std::io::{ErrorKind, Read, Write};
    let rule = "{ id = \"no\", priority = 1, action = \"deny\", protocol = \"http\", path = \"/no\" }";
    let town = Town::with("tcp_reset = false", &[rule]);
    for (listen, to) in [("0.0.0.0", HOST), ("::", HOST_V6)] {
        let (mut client, mut server) = connect(&town, listen, to, 8132);
        client.write_all(b"GET /no HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut request = [0; 512];
        let length = server.read(&mut request).unwrap();
        assert!(request[..length].starts_with(b"GET /no"));
        town.alert("no", |line| line.contains("action=blocked") && line.contains(&format!("dst_ip={to} ")));
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        for stream in [&mut client, &mut server] {
            stream.set_read_timeout(Some(std::time::Duration::from_millis(700))).unwrap();
            assert_eq!(stream.read(&mut [0; 512]).unwrap_err().kind(), ErrorKind::WouldBlock, "{to}");
        }
    }
    assert_eq!(town.lab.metric("ebpfsentinel_tcp_resets_total{worker=\"0\",result=\"sent\"}"), 0.0);
}
