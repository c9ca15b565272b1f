//! The front with a backend of the test's own, which answers as tiny_http and the stream threads behind it do.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::metrics::Metrics;
use crate::support::pki::Pki;

const PATIENCE: Duration = Duration::from_secs(20);

struct Backstage(PathBuf);

impl Backend for Backstage {
    fn socket(&self) -> PathBuf {
        self.0.clone()
    }

    fn gone(&self, socket: &Path) {
        panic!("{} is gone", socket.display());
    }
}

/// A front, and the requests that reach the backend: each head, and the connection to answer on.
struct Stage {
    address: SocketAddr,
    requests: Receiver<(String, UnixStream)>,
    stopper: Stopper,
    front: Option<JoinHandle<()>>,
    metrics: Arc<Metrics>,
    directory: tempfile::TempDir,
}

fn start(change: impl FnOnce(&mut Limits)) -> Stage {
    start_with(change, None)
}

/// With TLS if there is a store, and a Unix socket `here.sock` in the directory.
fn start_with(change: impl FnOnce(&mut Limits), tls: Option<Arc<TlsStore>>) -> Stage {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("back.sock");
    let backend = UnixListener::bind(&path).unwrap();
    let (sender, requests) = channel();
    std::thread::spawn(move || accept(&backend, &sender));
    let mut limits = Limits::default();
    change(&mut limits);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let metrics = Metrics::new();
    let hosts = Hosts::new(&[]);
    let backend = Arc::new(Backstage(path));
    let here = UnixListener::bind(directory.path().join("here.sock")).unwrap();
    let sockets = vec![(Socket::Tcp(socket, tls), Kind::Rest), (Socket::Unix(here, None), Kind::Unix)];
    let (front, stopper) = Front::new(sockets, limits, hosts, backend, Arc::clone(&metrics)).unwrap();
    let front = Some(std::thread::spawn(move || front.run()));
    Stage { address, requests, stopper, front, metrics, directory }
}

fn accept(backend: &UnixListener, sender: &Sender<(String, UnixStream)>) {
    // Ends when the test has ended: nobody takes the request any more.
    for stream in backend.incoming() {
        let mut stream = stream.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        if sender.send((String::from_utf8(head).unwrap(), stream)).is_err() {
            return;
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stopper.stop();
        self.front.take().unwrap().join().unwrap();
    }
}

impl Stage {
    fn ask(&self, path: &str) -> TcpStream {
        self.ask_from(1, path)
    }

    /// Asks from 127.0.0.`host`, which is a client of its own.
    fn ask_from(&self, host: u8, path: &str) -> TcpStream {
        let mut client = connect_from(host, self.address);
        client.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        client
    }

    /// A client, and what answers it.
    fn open(&self, path: &str) -> (TcpStream, UnixStream) {
        let client = self.ask(path);
        let (head, upstream) = self.requests.recv_timeout(PATIENCE).unwrap();
        assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{head}");
        (client, upstream)
    }

    fn open_stream(&self) -> (TcpStream, UnixStream) {
        let (mut client, mut upstream) = self.open("/stream");
        upstream.write_all(b"HTTP/1.1 200 OK\r\nX-Agent-Stream: 1\r\nContent-Type: text/event-stream\r\n\r\n").unwrap();
        let head = read_until(&mut client, "\r\n\r\n");
        assert_eq!(head, "HTTP/1.1 200 OK\r\nconnection: close\r\nContent-Type: text/event-stream\r\n\r\n");
        (client, upstream)
    }

    fn refusals(&self, reason: &str) -> u64 {
        let line = format!("ebpfsentinel_http_refused_total{{reason=\"{reason}\"}} ");
        let text = self.metrics.render();
        text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.parse().unwrap())
    }
}

fn connect_from(host: u8, to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    let descriptor = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(descriptor.as_raw_fd(), &SockaddrIn::new(127, 0, 0, host, 0)).unwrap();
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    connect(descriptor.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
    let client = TcpStream::from(descriptor);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Writes an answer of which nobody reads the end, until nothing goes any more.
fn fill(mut upstream: &UnixStream) {
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").unwrap();
    upstream.set_nonblocking(true).unwrap();
    let mut tries = 0;
    while tries < 20 {
        tries = match upstream.write(&[b'x'; 65536]) {
            Ok(_) => 0,
            Err(e) if e.kind() == ErrorKind::WouldBlock => tries + 1,
            Err(e) => panic!("{e}"),
        };
        std::thread::sleep(Duration::from_millis(if tries > 0 { 10 } else { 0 }));
    }
    upstream.set_nonblocking(false).unwrap();
}

fn read_until(client: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end.as_bytes()) {
        assert_eq!(client.read(&mut byte).unwrap(), 1, "closed after {:?}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// What comes until the connection's end, whatever it is.
fn rest_of(client: &mut TcpStream) {
    match client.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
}

fn rest(client: &mut TcpStream) -> String {
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_stream_outlives_every_time_limit() {
    let stage = start(|limits| {
        limits.answer_timeout = Duration::from_millis(100);
        limits.stall_timeout = Duration::from_millis(100);
        limits.drain_timeout = Duration::from_millis(100);
    });
    let (mut client, mut upstream) = stage.open_stream();
    for n in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        upstream.write_all(format!("data: {n}\n\n").as_bytes()).unwrap();
        assert_eq!(read_until(&mut client, "\n\n"), format!("data: {n}\n\n"));
    }
    drop(upstream);
    assert_eq!(rest(&mut client), "");
    assert_eq!((stage.refusals("answer_timeout"), stage.refusals("client_stalled")), (0, 0));
}

#[test]
fn streams_take_no_place_of_requests_and_have_a_cap() {
    let stage = start(|limits| {
        limits.in_flight = 1;
        limits.connections = 2;
        limits.connections_loopback = 2;
        limits.streams = 3;
    });
    let mut open: Vec<_> = (0..3).map(|_| stage.open_stream()).collect();
    let (mut one_more, mut upstream) = stage.open("/stream");
    upstream.write_all(b"HTTP/1.1 200 OK\r\nx-agent-stream: 1\r\n\r\n").unwrap();
    let refused = rest(&mut one_more);
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("too many streams are open"), "{refused}");
    assert_eq!(upstream.read(&mut [0]).unwrap(), 0, "its source is told");
    assert_eq!(stage.refusals("streams"), 1);

    let (mut client, mut upstream) = stage.open("/plain");
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    drop(upstream);
    assert!(rest(&mut client).ends_with("\r\n\r\nok"));

    // A place that is free again is given again.
    drop(open.pop().unwrap().0);
    let patience = Instant::now() + PATIENCE;
    loop {
        let (mut client, mut upstream) = stage.open("/stream");
        upstream.write_all(b"HTTP/1.1 200 OK\r\nx-agent-stream: 1\r\n\r\n").unwrap();
        if read_until(&mut client, "\r\n").starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(Instant::now() < patience, "the place is not free");
    }
}

#[test]
fn a_reader_that_is_too_slow_holds_up_its_source_and_is_cut() {
    let stage = start(|limits| limits.stall_timeout = Duration::from_millis(300));
    let (client, mut upstream) = stage.open_stream();
    let (mut fast, mut fast_upstream) = stage.open_stream();
    let mut sent = 0;
    let error = loop {
        match upstream.write(&[b'x'; 65536]) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    // What the sockets between take is the kernel's affair: a few megabytes at most, and no more when time goes on.
    assert!(sent < 16 << 20, "{sent} bytes went somewhere");
    assert_eq!(stage.refusals("client_stalled"), 1);
    fast_upstream.write_all(b"data\n\n").unwrap();
    assert_eq!(read_until(&mut fast, "\n\n"), "data\n\n");
    drop(client);
}

/// However many its slow readers are, an address has fewer requests with the workers than there are workers, and holds
/// a part of what all may hold.
#[test]
fn slow_readers_of_one_address_leave_workers_and_room_for_others() {
    let stage = start(|limits| {
        limits.stall_timeout = Duration::from_secs(3600);
        limits.workers = 3;
        limits.held_bytes = 1 << 20;
        limits.held_bytes_here = 512 << 10;
    });
    let clients: Vec<_> = (0..6).map(|_| stage.ask_from(2, "/big")).collect();
    let begun: Vec<_> = (0..2).map(|_| stage.requests.recv_timeout(PATIENCE).unwrap().1).collect();
    begun.iter().for_each(fill);
    // As large a body as the others leave room for, from elsewhere, and then an answer.
    let mut healthy = connect_from(3, stage.address);
    let body = vec![b'x'; 400 << 10];
    let head = format!("POST /healthy HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    healthy.write_all(&[head.as_bytes(), &body].concat()).unwrap();
    let (head, mut upstream) = stage.requests.recv_timeout(PATIENCE).unwrap();
    assert!(head.starts_with("POST /healthy "), "{head}: one more of the same address was handed on");
    upstream.read_exact(&mut vec![0; body.len()]).unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    drop(upstream);
    assert!(rest(&mut healthy).ends_with("\r\n\r\nok"));
    // When one has gone, the next of them has its turn.
    assert!(stage.requests.try_recv().is_err());
    let mut clients = clients.into_iter();
    drop(clients.by_ref().take(2).collect::<Vec<_>>());
    for _ in 0..2 {
        let (head, _) = stage.requests.recv_timeout(PATIENCE).unwrap();
        assert!(head.starts_with("GET /big "), "{head}");
    }
}

/// Where slow readers of several addresses have all workers, the slowest of them ends for the sake of who waits; nobody
/// does while nobody waits.
#[test]
fn slow_readers_of_many_addresses_do_not_keep_all_workers() {
    let stage = start(|limits| {
        limits.stall_timeout = Duration::from_secs(3600);
        limits.slow_timeout = Duration::from_millis(300);
        limits.workers = 2;
    });
    let (mut clients, mut upstreams) = (Vec::new(), Vec::new());
    for host in [2, 3] {
        clients.push(stage.ask_from(host, "/big"));
        upstreams.push(stage.requests.recv_timeout(PATIENCE).unwrap().1);
        fill(upstreams.last().unwrap());
    }
    assert_eq!(stage.refusals("client_slow"), 0);
    let mut healthy = stage.ask_from(4, "/healthy");
    let mut waiting = stage.requests.recv_timeout(PATIENCE).unwrap().1;
    // The first of them is cut, which its source sees.
    let error = loop {
        if let Err(error) = upstreams[0].write(&[b'x'; 65536]) {
            break error;
        }
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    assert_eq!(stage.refusals("client_slow"), 1);
    waiting.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    drop(waiting);
    assert!(rest(&mut healthy).ends_with("\r\n\r\nok"));
    let mut cut = Vec::new();
    // A reset may take what was on its way.
    let _ = clients[0].read_to_end(&mut cut);
    assert_eq!(String::from_utf8_lossy(&cut).matches("HTTP/1.1 ").count(), 1, "nothing is put into the answer");
    assert_eq!(stage.refusals("client_slow"), 1);
}

/// A TLS client that says nothing takes a place among the handshakes until newer ones come.
#[test]
fn handshakes_have_a_cap_in_all_and_for_each_address() {
    let pki = Pki::new();
    pki.certificate(&pki.authority("ca"), "server");
    let tls = TlsStore::load(&pki.config("server", "")).unwrap();
    let stage = start_with(
        |limits| {
            limits.head_timeout = Duration::from_secs(3600);
            (limits.handshakes, limits.handshakes_loopback) = (5, 3);
        },
        Some(tls),
    );
    let counted = |reason: &str, want: u64| {
        let patience = Instant::now() + PATIENCE;
        while stage.refusals(reason) < want {
            assert!(Instant::now() < patience, "{reason}: {}", stage.refusals(reason));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(stage.refusals(reason), want, "{reason}");
    };
    // The oldest of one address gives way to the fourth and fifth, and sees its connection's end.
    let mut own: Vec<_> = (0..5).map(|_| connect_from(2, stage.address)).collect();
    counted("handshakes_of_address", 2);
    for mut closed in own.drain(..2) {
        rest_of(&mut closed);
    }
    // With two of another address there are five; the next one ends the oldest, which is of the first.
    let _other: Vec<_> = (0..2).map(|_| connect_from(3, stage.address)).collect();
    let _third = connect_from(4, stage.address);
    counted("handshakes", 1);
    rest_of(&mut own.remove(0));
    // Who speaks is served meanwhile, and then is none of them.
    let mut curl = std::process::Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--cacert", &pki.arg("ca.pem"), "-o", "/dev/null"]);
    curl.arg(format!("https://127.0.0.1:{}/", stage.address.port()));
    let mut curl = curl.spawn().expect("curl is installed");
    let (_, mut upstream) = stage.requests.recv_timeout(PATIENCE).unwrap();
    upstream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    drop(upstream);
    assert!(curl.wait().unwrap().success());
    counted("handshakes", 2);
    counted("handshakes_of_address", 2);
}

#[test]
fn the_source_learns_that_the_client_has_left() {
    let stage = start(|_| {});
    let (client, mut upstream) = stage.open_stream();
    drop(client);
    assert_eq!(upstream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn stopping_ends_streams_after_what_they_have_said() {
    let mut stage = start(|limits| limits.stop_timeout = PATIENCE);
    let (mut client, mut upstream) = stage.open_stream();
    upstream.write_all(b"data: last\n\n").unwrap();
    assert_eq!(read_until(&mut client, "\n\n"), "data: last\n\n");
    let begin = Instant::now();
    stage.stopper.stop();
    assert_eq!(rest(&mut client), "");
    drop(client);
    stage.front.take().unwrap().join().unwrap();
    assert!(begin.elapsed() < PATIENCE, "it waited for the stream's end");
    stage.front = Some(std::thread::spawn(|| {}));
    assert_eq!(upstream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_backend_is_told_who_asks() {
    let pki = Pki::new();
    let (ca, clients) = (pki.authority("ca"), pki.authority("clients"));
    pki.certificate(&ca, "server");
    pki.certificate(&clients, "deploy");
    let more = format!("client_auth = 'optional'\nclient_ca_path = '{}'", pki.arg("clients.pem"));
    let stage = start_with(|_| {}, Some(TlsStore::load(&pki.config("server", &more)).unwrap()));
    let ask = |arguments: &[&str]| {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--cacert", &pki.arg("ca.pem"), "-o", "/dev/null"]).args(arguments);
        let mut curl = curl.spawn().expect("curl is installed");
        let (head, mut upstream) = stage.requests.recv_timeout(PATIENCE).unwrap();
        upstream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        drop(upstream);
        assert!(curl.wait().unwrap().success());
        head
    };
    let url = format!("https://127.0.0.1:{}/", stage.address.port());
    let forged = ["-H", "X-Agent-Cert: 00 admin", "-H", "X-Agent-Uid: 0"];
    let head = ask(&[&forged[..], &[&url]].concat());
    assert!(head.contains("x-agent-listener: rest\r\nx-agent-peer: 127.0.0.1:"), "{head}");
    assert!(!head.contains("x-agent-cert") && !head.contains("x-agent-uid"), "{head}");

    let (cert, key) = (pki.arg("deploy.pem"), pki.arg("deploy.key"));
    let head = ask(&["--cert", &cert, "--key", &key, &url]);
    let shown = head.lines().find_map(|line| line.strip_prefix("x-agent-cert: ")).unwrap();
    let (fingerprint, subject) = shown.split_once(' ').unwrap();
    assert!(fingerprint.len() == 64 && subject == "deploy", "{head}");
    // What a reader of header fields would take away at its end stays.
    pki.certificate_of(&clients, "blank", |params| params.distinguished_name.push(rcgen::DnType::CommonName, " a% "));
    let (cert, key) = (pki.arg("blank.pem"), pki.arg("blank.key"));
    let head = ask(&["--cert", &cert, "--key", &key, &url]);
    let shown = head.lines().find_map(|line| line.strip_prefix("x-agent-cert: ")).unwrap();
    assert_eq!(shown.split_once(' ').unwrap().1, "%20a%25%20", "{head}");

    let here = stage.directory.path().join("here.sock").display().to_string();
    let head = ask(&[&forged[..], &["--unix-socket", &here, "http://localhost/"]].concat());
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    let want = format!("x-agent-listener: unix\r\nx-agent-uid: {uid}\r\nx-agent-gid: {gid}\r\n");
    assert!(head.contains(&want) && !head.contains("x-agent-peer") && !head.contains("x-agent-cert"), "{head}");
}

/// Each event is there before the next one is sent, TLS or not, and the source learns of curl's end.
#[test]
fn a_stream_by_tls_comes_at_once() {
    let pki = Pki::new();
    pki.certificate(&pki.authority("ca"), "server");
    let stage = start_with(|_| {}, Some(TlsStore::load(&pki.config("server", "")).unwrap()));
    let mut curl = std::process::Command::new("curl");
    curl.args(["-sSN", "--max-time", "20", "--cacert", &pki.arg("ca.pem")]);
    curl.arg(format!("https://127.0.0.1:{}/stream", stage.address.port()));
    let mut curl = curl.stdout(std::process::Stdio::piped()).spawn().expect("curl is installed");
    let (_, mut upstream) = stage.requests.recv_timeout(PATIENCE).unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\nX-Agent-Stream: 1\r\n\r\n").unwrap();
    let mut out = curl.stdout.take().unwrap();
    // The last one is longer than what a TLS session and a socket take at once.
    for length in [1, 100, 20_000, 3_000_000] {
        let event = vec![b'x'; length];
        let writer = std::thread::spawn({
            let (mut upstream, event) = (upstream.try_clone().unwrap(), event.clone());
            move || upstream.write_all(&event)
        });
        let mut got = vec![0; length];
        out.read_exact(&mut got).unwrap();
        assert!(got == event, "{length}");
        writer.join().unwrap().unwrap();
    }
    curl.kill().unwrap();
    curl.wait().unwrap();
    assert_eq!(upstream.read(&mut [0]).unwrap(), 0);
}
