//! gRPC, by a client that learns the service from the server.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use ebpfsentinel::control::grpc::{Credentials, Denied};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};

use super::*;

const SERVICE: &str = "ebpfsentinel.v1.AlertStreamService";

/// The events that a client has printed.
fn events(client: &Client) -> Vec<Value> {
    client.lines().iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn rules(client: &Client) -> Vec<String> {
    events(client).iter().map(|event| event["rule_id"].as_str().unwrap_or_default().to_owned()).collect()
}

fn any(_: &str) -> bool {
    true
}

#[test]
fn the_server_describes_itself() {
    let bench = Bench::new();
    let (_, said) = bench.grpc(&["services"]).end();
    for service in [SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(said.lines().any(|line| line == service), "{said}");
    }
    assert_eq!(bench.grpc(&["health", ""]).end().1, "SERVING\n");
    assert_eq!(bench.grpc(&["health", SERVICE]).end().1, "SERVING\n");
    assert_eq!(bench.grpc(&["health", "nosuch"]).end().1, "NOT_FOUND: service not registered\n");
}

#[test]
fn alerts_are_told_as_they_happen() {
    let bench = Bench::new();
    let client = bench.grpc(&["stream", "{}"]);
    bench.listeners("grpc", 1);
    let id = bench.tell(alert("ssh"));
    bench.tell(Alert { id, revision: 1, count: 7, vlan_id: Some(9), ..alert("ssh") });
    client.wait_lines(2, any);
    let events = events(&client);
    // As JSON has it: 64 bits are texts, and what is zero or empty is left out.
    assert_eq!(
        events[0],
        json!({
            "id": id.to_string(), "timestamp_ns": "1500000000", "component": "firewall", "severity": "medium",
            "rule_id": "ssh", "action": "deny", "src_addr": [0x2001_0db8, 0, 0, 7], "dst_addr": [0x2001_0db8, 0, 0, 1],
            "dst_port": 22, "protocol": 6, "message": "denied", "is_ipv6": true, "src_ip": "2001:db8::7",
            "dst_ip": "2001:db8::1", "count": "1", "first_seen_ns": "1500000000", "last_seen_ns": "1500000000",
        })
    );
    assert_eq!((&events[1]["revision"], &events[1]["count"]), (&json!(1), &json!("7")));
    assert_eq!(events[1]["details"], json!({"vlan_id": "9"}));
    assert_eq!(bench.metric("ebpfsentinel_stream_alerts_total{kind=\"grpc\"}"), 2);
    // The client's end is noticed, also when nothing is told.
    drop(client);
    bench.listeners("grpc", 0);
}

#[test]
fn filters_and_where_to_begin() {
    let bench = Bench::with(4, |_, _| ());
    let ids: Vec<AlertId> = ["a-0", "a-1", "a-2"].iter().map(|rule| bench.tell(alert(rule))).collect();
    bench.tell(Alert { severity: Severity::Critical, component: Component::L7, ..alert("a-3") });
    bench.tell(Alert { mitre: vec!["T1110.001".into()], ..alert("b-2") });
    let check = |request: Value, want: &[&str]| {
        let client = bench.grpc(&["stream", &request.to_string()]);
        client.wait_lines(want.len(), any);
        assert_eq!(rules(&client), want, "{request}");
    };
    let after = ids[1].to_string();
    check(json!({"resume_after_id": after}), &["a-2", "a-3", "b-2"]);
    check(json!({"resume_after_id": after, "rule_id": "a-*"}), &["a-2", "a-3"]);
    check(json!({"resume_after_id": after, "component": "l7"}), &["a-3"]);
    check(json!({"resume_after_id": after, "min_severity": "high"}), &["a-3"]);
    check(json!({"resume_after_id": after, "mitre_technique_id": "T1110"}), &["b-2"]);
    // What is gone is said to be.
    let client = bench.grpc(&["stream", &json!({"resume_after_id": ids[0].to_string()}).to_string()]);
    client.wait_lines(5, any);
    assert_eq!(events(&client)[0], json!({"gap": {"reason": "unknown_id"}}));
    assert_eq!(rules(&client)[1..], ["a-1", "a-2", "a-3", "b-2"]);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let bench = Bench::new();
    let check = |request: Value, words: &str| {
        let (_, said) = bench.grpc(&["stream", &request.to_string()]).end();
        assert!(said.starts_with("INVALID_ARGUMENT: ") && said.contains(words), "{said}");
    };
    check(json!({"min_severity": "loud"}), "use low, medium, high or critical");
    check(json!({"component": "nosuch"}), "use one of firewall");
    check(json!({"mitre_technique_id": "1190"}), "MITRE ATT&CK");
    check(json!({"mitre_tactic": "TA0001"}), "use mitre_technique_id");
    check(json!({"resume_after_id": "7"}), "resume_after_id: \"7\"");
    // More than any filter needs.
    let (_, said) = bench.grpc(&["stream", &json!({"rule_id": "x".repeat(20_000)}).to_string()]).end();
    assert!(said.starts_with("OUT_OF_RANGE: "), "{said}");
    bench.listeners("grpc", 0);
}

#[test]
fn a_slow_client_is_told_what_it_missed_and_a_fast_one_misses_nothing() {
    const ALERTS: usize = 600;
    let bench = Bench::new();
    let mut slow = bench.grpc(&["sum", "{}"]);
    let fast = bench.grpc(&["stream", "{}"]);
    bench.listeners("grpc", 2);
    bench.tell(alert("begin"));
    slow.wait_lines(1, |line| line == "ready");
    for number in 0..ALERTS {
        bench.tell(long_alert(&number.to_string()));
        if number % (RING / 2) == 0 {
            fast.wait_lines(number + 2, any);
        }
    }
    fast.wait_lines(ALERTS + 1, any);
    assert_eq!(rules(&fast)[1..], (0..ALERTS).map(|number| number.to_string()).collect::<Vec<_>>());
    bench.tell(alert("end"));
    slow.go_on();
    let (_, said) = slow.end();
    let numbers: Vec<usize> = said.lines().nth(1).unwrap().split(' ').map(|word| word.parse().unwrap()).collect();
    let [told, gaps, missed] = numbers[..] else { panic!("{said}") };
    assert!(gaps > 0 && missed > 0, "it was not slow: {said}");
    assert_eq!(told + missed, ALERTS, "{said}");
    assert_eq!(
        bench.metric("ebpfsentinel_events_lost_total{place=\"stream_grpc\",reason=\"slow_client\"}") as usize,
        missed
    );
}

#[test]
fn there_are_64_streams_and_no_more() {
    let bench = Bench::new();
    let mut full = bench.grpc(&["hold", "64"]);
    full.wait_lines(1, |line| line == "ready");
    bench.listeners("grpc", 64);
    full.go_on();
    let (_, said) = full.end();
    assert_eq!(said, "ready\nRESOURCE_EXHAUSTED: 64 streams are open, and that is the limit\n");
    bench.listeners("grpc", 0);
    assert_eq!(bench.grpc(&["health", SERVICE]).end().1, "SERVING\n");
}

#[test]
fn who_may_not_listen_is_told_so_and_so_is_whose_key_is_taken_away() {
    let revoked = Arc::new(AtomicBool::new(false));
    let key_is_gone = revoked.clone();
    let bench = Bench::with(RING, |_, grpc| {
        grpc.limits.credentials_interval = Duration::from_millis(50);
        grpc.gate = Some(Arc::new(move |shown: &Credentials| {
            assert!(shown.peer.ip().is_loopback());
            match (shown.bearer.as_deref(), shown.api_key.as_deref()) {
                (Some("good"), None) | (None, Some("good")) if !key_is_gone.load(Ordering::Acquire) => Ok(()),
                (Some("small"), None) => Err(Denied::Forbidden("viewer is needed".to_owned())),
                (Some("often"), None) => Err(Denied::TooMany("come again later".to_owned())),
                (Some("lost"), None) => Err(Denied::Unavailable("the issuer is away".to_owned())),
                _ => Err(Denied::Unauthenticated("show a token".to_owned())),
            }
        }));
    });
    let check = |metadata: &[&str], want: &str| {
        let metadata: Vec<String> = metadata.iter().map(|pair| format!("--metadata={pair}")).collect();
        let words: Vec<&str> = metadata.iter().map(String::as_str).chain(["stream", "{}"]).collect();
        assert_eq!(bench.grpc(&words).end().1, want);
    };
    check(&[], "UNAUTHENTICATED: show a token\n");
    check(&["authorization=Bearer bad"], "UNAUTHENTICATED: show a token\n");
    check(&["authorization=Basic good"], "UNAUTHENTICATED: authorization must be \"Bearer TOKEN\"\n");
    check(&["authorization=Bearer small"], "PERMISSION_DENIED: viewer is needed\n");
    check(&["authorization=Bearer often"], "RESOURCE_EXHAUSTED: come again later\n");
    check(&["authorization=Bearer lost"], "UNAVAILABLE: the issuer is away\n");
    // Health and reflection tell nothing that needs a key.
    assert_eq!(bench.grpc(&["health", SERVICE]).end().1, "SERVING\n");

    let first = bench.grpc(&["--metadata=authorization=bearer good", "stream", "{}"]);
    let second = bench.grpc(&["--metadata=x-api-key=good", "stream", "{}"]);
    bench.listeners("grpc", 2);
    bench.tell(alert("ssh"));
    for client in [&first, &second] {
        client.wait_lines(1, |line| line.contains("ssh"));
    }
    revoked.store(true, Ordering::Release);
    for client in [first, second] {
        let (_, said) = client.end();
        assert_eq!(said.lines().nth(1), Some("UNAUTHENTICATED: show a token"));
    }
}

#[test]
fn when_the_agent_stops_streams_end_and_say_why() {
    let mut bench = Bench::new();
    let client = bench.grpc(&["stream", "{}"]);
    let health = bench.grpc(&["watch", SERVICE]);
    bench.listeners("grpc", 1);
    health.wait_lines(1, any);
    bench.tell(alert("last"));
    bench.stop();
    let (_, said) = client.end();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("\"last\""), "{said}");
    assert_eq!(lines[1], "UNAVAILABLE: the agent is stopping; come again with resume_after_id");
    let (_, said) = health.end();
    assert_eq!(said.lines().take(2).collect::<Vec<_>>(), ["SERVING", "NOT_SERVING"]);
}

#[test]
fn over_tls_only_who_trusts_the_certificate_gets_in() {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.subject_alt_names.push(rcgen::SanType::IpAddress("127.0.0.1".parse().unwrap()));
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "authority of a test");
    let authority_key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&authority_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = rcgen::Issuer::from_params(&authority, &authority_key);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let tls = Arc::new(tls);
    let bench = Bench::with(RING, |_, grpc| grpc.tls = Some(Arc::new(move || tls.clone())));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ca.pem()).unwrap();
    let trusting = format!("--ca={}", file.path().display());

    assert_eq!(bench.grpc(&[&trusting, "health", SERVICE]).end().1, "SERVING\n");
    let client = bench.grpc(&[&trusting, "stream", "{}"]);
    bench.listeners("grpc", 1);
    bench.tell(alert("ssh"));
    client.wait_lines(1, |line| line.contains("ssh"));
    drop(client);
    bench.listeners("grpc", 0);

    let (_, said) = bench.grpc(&["health", SERVICE]).end();
    assert!(said.starts_with("UNAVAILABLE: "), "{said}");
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other.path(), authority.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
    let (_, said) = bench.grpc(&[&format!("--ca={}", other.path().display()), "health", SERVICE]).end();
    assert!(said.starts_with("UNAVAILABLE: "), "{said}");
    wait_until("refusals are counted", || bench.metric("ebpfsentinel_grpc_refused_total{reason=\"tls\"}") >= 2);
}

/// Opens a connection and says this on it.
fn say(bench: &Bench, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(bench.grpc_address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// All that comes until the connection's end.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let (mut bytes, mut block) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut block) {
            Ok(0) => return bytes,
            Ok(n) => bytes.extend_from_slice(&block[..n]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("it is not closed: {error}"),
        }
    }
}

/// The preface, and SETTINGS without any.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[test]
fn strangers_are_closed_and_cost_nobody_a_place() {
    let bench = Bench::with(RING, |_, grpc| {
        grpc.limits.handshake_timeout = Duration::from_secs(1);
        grpc.limits.idle_timeout = Duration::from_secs(1);
        (grpc.limits.connections, grpc.limits.connections_loopback) = (8, 6);
    });
    let refused = |reason: &str| bench.metric(&format!("ebpfsentinel_grpc_refused_total{{reason=\"{reason}\"}}"));
    let counted = |reason: &str, number: u64| wait_until(reason, || refused(reason) == number);
    let (_, said) = Client::start(Command::new("curl").args(["-s", &format!("http://{}/", bench.grpc_address)])).end();
    assert_eq!(said, "This port speaks gRPC (HTTP/2).\r\n");
    for text in [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], b"SSH-2.0-x\r\n", b"PRI * HTTP/2.1\r\n"] {
        rest(say(&bench, text));
    }
    counted("not_http2", 4);
    assert_eq!(rest(say(&bench, b"PRI")), b"");
    assert_eq!(rest(say(&bench, b"")), b"");
    counted("handshake_timeout", 2);
    // It has begun well and asks for nothing.
    rest(say(&bench, HELLO));
    counted("idle", 1);

    // Who asks stays, however long it takes.
    let client = bench.grpc(&["stream", "{}"]);
    bench.listeners("grpc", 1);
    let idle: Vec<TcpStream> = (0..5).map(|_| say(&bench, HELLO)).collect();
    wait_until("one too many is refused", || {
        // As soon as the five are in.
        rest(say(&bench, HELLO));
        refused("connections") > 0
    });
    idle.into_iter().for_each(|stream| drop(rest(stream)));
    bench.tell(alert("ssh"));
    client.wait_lines(1, |line| line.contains("ssh"));
    assert_eq!(bench.grpc(&["health", ""]).end().1, "SERVING\n");
}

/// Who connects and says nothing takes places of those who have not begun, and of nobody else, and only until others
/// come.
#[test]
fn who_does_not_begin_gives_way() {
    let bench = Bench::with(RING, |_, grpc| {
        grpc.limits.handshake_timeout = PATIENCE * 60;
        (grpc.limits.handshakes, grpc.limits.handshakes_loopback) = (6, 4);
        (grpc.limits.connections, grpc.limits.connections_loopback) = (8, 8);
    });
    let refused = |reason: &str| bench.metric(&format!("ebpfsentinel_grpc_refused_total{{reason=\"{reason}\"}}"));
    let counted = |reason: &str, number: u64| wait_until(reason, || refused(reason) == number);
    let mut silent: Vec<TcpStream> = (0..20).map(|_| say(&bench, b"")).collect();
    counted("handshakes_of_address", 16);
    silent.drain(..16).for_each(|stream| drop(rest(stream)));
    assert_eq!(bench.grpc(&["health", SERVICE]).end().1, "SERVING\n");
    // Four of other addresses, with three that are left: one is too many in all.
    let elsewhere: Vec<TcpStream> = (2..6).map(|host| say_from(&bench, host)).collect();
    counted("handshakes", 1);
    assert_eq!(bench.grpc(&["health", SERVICE]).end().1, "SERVING\n");
    assert_eq!(refused("connections"), 0);
    drop((silent, elsewhere));
}

/// A connection from 127.0.0.`host`, on which nothing is said.
fn say_from(bench: &Bench, host: u8) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    let descriptor = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(descriptor.as_raw_fd(), &SockaddrIn::new(127, 0, 0, host, 0)).unwrap();
    let SocketAddr::V4(to) = bench.grpc_address else { panic!("{}", bench.grpc_address) };
    connect(descriptor.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
    TcpStream::from(descriptor)
}

#[test]
fn one_address_has_not_all_calls_and_streams() {
    let bench = Bench::with(RING, |_, grpc| {
        (grpc.limits.calls_loopback, grpc.limits.streams_loopback) = (6, 3);
    });
    let refused = |reason: &str| bench.metric(&format!("ebpfsentinel_grpc_refused_total{{reason=\"{reason}\"}}"));
    // Each with a connection of its own.
    let streams: Vec<Client> = (0..3).map(|_| bench.grpc(&["stream", "{}"])).collect();
    bench.listeners("grpc", 3);
    let (_, said) = bench.grpc(&["stream", "{}"]).end();
    assert_eq!(said, "RESOURCE_EXHAUSTED: 3 streams of your address are open, and that is the limit\n");
    let watching: Vec<Client> = (0..3).map(|_| bench.grpc(&["watch", SERVICE])).collect();
    watching.iter().for_each(|client| client.wait_lines(1, any));
    let (_, said) = bench.grpc(&["health", SERVICE]).end();
    assert_eq!(said, "RESOURCE_EXHAUSTED: 6 calls of your address are under way\n");
    assert_eq!((refused("streams_of_address"), refused("calls_of_address")), (1, 1));
    drop((streams, watching));
    bench.listeners("grpc", 0);
    assert_eq!(bench.grpc(&["health", SERVICE]).end().1, "SERVING\n");
}

#[test]
fn nonsense_after_a_good_beginning_harms_nobody() {
    let bench = Bench::new();
    let mut state = 7u32;
    for _ in 0..200 {
        let mut bytes = HELLO.to_vec();
        for _ in 0..64 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((state >> 24) as u8);
        }
        // Its end of the connection may have gone before all was said.
        let mut stream = TcpStream::connect(bench.grpc_address).unwrap();
        let _ = stream.write_all(&bytes);
    }
    assert_eq!(bench.grpc(&["health", SERVICE]).end().1, "SERVING\n");
}
