//! Floods of SYNs against a web server: what its clients notice, with and without the agent, and what is on the wire.
//!
//! The host receives on a thread of its own (threaded NAPI), so that the flood does not wait for it: what the host is too
//! slow for is lost, as on a card. Sources are random, nobody answers from there. Attacker and receiving thread go before
//! everything else on the machine, so this is a test program of its own: cargo runs one after the other. Needs root.

#[path = "support/syn_flood.rs"]
pub mod flood;
#[path = "e2e/support.rs"]
pub mod support;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ebpfsentinel::bpf::attach::{self, Attached, TcPlace, XdpMode};
use ebpfsentinel::bpf::offload;
use ebpfsentinel::lab::{FrameSocket, Namespace};
use ebpfsentinel::packet::build::Packet;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;

use flood::{ALL_SOURCES, Aim, CLIENT_OPTIONS, SynAck, SynFlood};
use support::{HOST, HOST_V6, Lab, WORLD, WORLD_V6, config, wait_until};

/// SYNs in a second that are offered, where the machine is fast enough.
const RATE: u32 = 600_000;
/// A flood that is not ended ends by itself after this.
const FLOOD_SECS_MAX: u32 = 20;
const FLOOD_TIME: Duration = Duration::from_secs(6);
/// A client gives up when a connection takes as long, or an answer. A SYN that is lost is sent again after a second.
const PATIENCE: Duration = Duration::from_secs(3);
/// What comes at all comes within this.
const SOON: Duration = Duration::from_millis(250);
const CLIENTS: usize = 8;
/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(20);
const DOWNLOAD_BYTES: usize = 8 << 20;
const PORT: u16 = 80;

/// Two floods at once would be one that no machine is made for.
static ONE: Mutex<()> = Mutex::new(());

/// A laboratory with an attacker in the world and a web server in the host.
struct Scene {
    lab: Lab,
    flood: SynFlood,
    vlan: bool,
    _server: Server,
    _hooks: Vec<Attached>,
    _one: MutexGuard<'static, ()>,
}

impl Scene {
    fn new(vlan: bool) -> Scene {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let lab = Lab::new();
        let flood = SynFlood::load().unwrap();
        let mut hooks = Vec::new();
        for namespace in [&lab.world, &lab.host] {
            // Frames that XDP sends arrive only at an end that collects them.
            namespace.run(|| offload::switch("eth0", &["rx-gro"], true)).unwrap().unwrap();
            if vlan {
                hooks.push(vlan_on(namespace, &flood));
            }
        }
        let index = lab.world.interface("eth0").unwrap().index;
        let swallow = || attach::xdp(flood.swallow().unwrap(), index, "eth0", XdpMode::Native).unwrap();
        hooks.push(lab.world.run(swallow).unwrap());
        lab.host.ip(&format!("route add default via {WORLD}")).unwrap();
        lab.host.ip(&format!("-6 route add default via {WORLD_V6}")).unwrap();
        receive_on_a_thread(&lab.host);
        let server = Server::start(&lab.host);
        Scene { lab, flood, vlan, _server: server, _hooks: hooks, _one: one }
    }

    fn aim(&self, ipv6: bool) -> Aim {
        let (world, host) = (self.lab.world.interface("eth0").unwrap(), self.lab.host.interface("eth0").unwrap());
        Aim {
            ifindex: world.index,
            macs: (world.mac, host.mac),
            to: host_address(ipv6),
            port: PORT,
            tcp_options: CLIENT_OPTIONS.to_vec(),
            vlan: self.vlan,
            sources: ALL_SOURCES,
            rate: Some(RATE),
        }
    }

    /// A request from the world.
    fn fetch(&self, ipv6: bool, path: &str) -> io::Result<Vec<u8>> {
        self.lab.world.run(|| fetch(ipv6, path)).unwrap()
    }

    /// Requests of clients while a flood goes on.
    fn under_flood(&self, ipv6: bool) -> Outcome {
        let before = self.flood.answers().unwrap();
        let attack = Attack::start(&self.lab.world, &self.flood, &self.aim(ipv6));
        let clients = Clients::start(&self.lab.world, ipv6, FLOOD_TIME);
        let requests = clients.end();
        let (sent, time) = attack.end();
        let answered = self.flood.answers().unwrap().syn_acks - before.syn_acks;
        Outcome { requests, sent, time, answered }
    }
}

fn host_address(ipv6: bool) -> IpAddr {
    if ipv6 { HOST_V6 } else { HOST }.parse().unwrap()
}

/// Puts a namespace's eth0 into a VLAN.
fn vlan_on(namespace: &Namespace, flood: &SynFlood) -> Attached {
    let index = namespace.interface("eth0").unwrap().index;
    let (untag, tag) = flood.vlan().unwrap();
    let hook = || {
        let mut hook = libbpf_rs::TcHookBuilder::new(untag)
            .ifindex(index as i32)
            .replace(true)
            .handle(1)
            .priority(1)
            .hook(libbpf_rs::TC_INGRESS);
        hook.create().unwrap();
        hook.attach().unwrap();
        attach::tc(tag, "tag", TcPlace::Egress, index, "eth0").unwrap()
    };
    namespace.run(hook).unwrap()
}

/// Makes eth0 receive on a kernel thread that nothing but the flood keeps busy, and that user programs do not delay, as
/// they do not delay a softirq.
fn receive_on_a_thread(namespace: &Namespace) {
    let before = receivers();
    let script = "echo 1 > /sys/class/net/eth0/threaded";
    let status =
        std::process::Command::new("ip").args(["netns", "exec", namespace.name(), "sh", "-c", script]).status();
    assert!(status.unwrap().success(), "threaded NAPI");
    for pid in receivers().into_iter().filter(|pid| !before.contains(pid)) {
        take_precedence(pid);
        pin(pid, 0);
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Keeps a thread, 0 for this one, on one CPU.
fn pin(thread: i32, cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(thread), &only).unwrap();
}

/// Lets a thread, 0 for this one, go before everything that is not as urgent.
fn take_precedence(thread: i32) {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter lives through the call.
    assert_eq!(unsafe { libc::sched_setscheduler(thread, libc::SCHED_FIFO, &parameter) }, 0);
}

/// Kernel threads that receive for an eth0.
fn receivers() -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let name = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| name(pid).starts_with("napi/eth0-")).collect()
}

/// A flood, until it is ended.
struct Attack<'f> {
    flood: &'f SynFlood,
    thread: JoinHandle<anyhow::Result<()>>,
    begun: Instant,
    sent_before: u64,
}

impl Attack<'_> {
    /// At [`RATE`], or as fast as it goes, on the last CPU.
    fn start<'f>(world: &Namespace, flood: &'f SynFlood, aim: &Aim) -> Attack<'f> {
        let sender = flood.aim(aim).unwrap();
        let sent_before = flood.sent().unwrap();
        let thread = world.spawn(move || {
            pin(0, cpus() - 1);
            // An attacker is another machine: what runs on this one does not slow it down.
            take_precedence(0);
            sender.send(RATE * FLOOD_SECS_MAX).unwrap();
        });
        wait_until("the flood comes", || flood.sent().unwrap() > sent_before);
        Attack { flood, thread: thread.unwrap(), begun: Instant::now(), sent_before }
    }

    /// How many were sent, in what time.
    fn end(self) -> (u64, Duration) {
        let (sent, time) = (self.flood.sent().unwrap(), self.begun.elapsed());
        self.flood.stop(true).unwrap();
        self.thread.join().unwrap().unwrap();
        self.flood.stop(false).unwrap();
        (sent - self.sent_before, time)
    }
}

/// What came of it.
struct Outcome {
    /// How long each request took that was answered.
    requests: Vec<Option<Duration>>,
    sent: u64,
    time: Duration,
    answered: u64,
}

impl Outcome {
    fn share(&self) -> f64 {
        self.requests.iter().flatten().count() as f64 / self.requests.len() as f64
    }

    /// SYNs of the flood that were answered: what the host took.
    fn answered_share(&self) -> f64 {
        self.answered as f64 / self.sent as f64
    }

    fn tell(&self, what: &str) {
        let mut times: Vec<Duration> = self.requests.iter().flatten().copied().collect();
        times.sort();
        let quantile = |part: f64| times.get((times.len() as f64 * part) as usize).copied().unwrap_or_default();
        println!(
            "{what}: {:.0} SYN/s, {:.1} % answered; {} requests, {:.1} % succeed, median {:.1?}, 99 % {:.1?}",
            self.sent as f64 / self.time.as_secs_f64(),
            self.answered_share() * 100.0,
            self.requests.len(),
            self.share() * 100.0,
            quantile(0.5),
            quantile(0.99),
        );
    }
}

/// Clients that ask for a page again and again.
struct Clients(Vec<JoinHandle<anyhow::Result<Vec<Option<Duration>>>>>);

impl Clients {
    fn start(world: &Namespace, ipv6: bool, time: Duration) -> Clients {
        let until = Instant::now() + time;
        let client = |_| {
            let ask = move || {
                let mut took = Vec::new();
                while Instant::now() < until {
                    let begun = Instant::now();
                    let answer = fetch(ipv6, "/");
                    took.push(answer.is_ok_and(|body| body == b"hello\n").then(|| begun.elapsed()));
                    std::thread::sleep(PAUSE);
                }
                took
            };
            world.spawn(ask).unwrap()
        };
        Clients((0..CLIENTS).map(client).collect())
    }

    fn end(self) -> Vec<Option<Duration>> {
        self.0.into_iter().flat_map(|client| client.join().unwrap().unwrap()).collect()
    }
}

/// The body of an answer, in the namespace of the calling thread.
fn fetch(ipv6: bool, path: &str) -> io::Result<Vec<u8>> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(host_address(ipv6), PORT), PATIENCE)?;
    exchange(stream, path)
}

fn exchange(mut stream: TcpStream, path: &str) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = b"HTTP/1.0 200 OK\r\n\r\n";
    answer.strip_prefix(head).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A web server with threads; ends when dropped.
struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(host: &Namespace) -> Server {
        let listener = host.run(|| TcpListener::bind(("::", PORT))).unwrap().unwrap();
        // Also of accept().
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..4).map(|_| {
            let (listener, stop) = (listener.try_clone().unwrap(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // A client that is gone is no concern of the server.
                    let _ = listener.accept().and_then(|(stream, _)| serve(stream));
                }
            })
        });
        Server { threads: threads.collect(), stop }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut request, mut buffer) = (Vec::new(), [0; 512]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => request.extend(&buffer[..length]),
        }
    }
    let body = if request.starts_with(b"GET /download ") { download() } else { b"hello\n".to_vec() };
    stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n")?;
    stream.write_all(&body)
}

/// Bytes of which no two pieces are alike.
fn download() -> Vec<u8> {
    (0..DOWNLOAD_BYTES as u32 / 4).flat_map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()).collect()
}

/// Answers SYNs with cookies beyond a threshold, whatever their port.
fn cookies(threshold_pps: u32) -> String {
    format!(
        "{}\n[ratelimit]\nmode = \"block\"\n[[ratelimit.rules]]\nid = \"syn\"\npriority = 10\nprotocol = \"tcp\"\n\
         algorithm = \"syn_cookie\"\nthreshold_pps = {threshold_pps}\n",
        config("", "mode = \"block\"", &[])
    )
}

/// What became of SYNs and acknowledgements, by its name in the metrics.
fn result(lab: &Lab, name: &str) -> u64 {
    lab.metric(&format!("ebpfsentinel_ratelimit_syn_cookies_total{{result=\"{name}\"}}")) as u64
}

/// Lets the host's stack take cookies, and keep options in them.
fn take_cookies(host: &Namespace) {
    host.sysctl("ipv4/tcp_syncookies", "2").unwrap();
    host.sysctl("ipv4/tcp_timestamps", "2").unwrap();
}

/// A flood without the agent, with the host's TCP as it is by default, and one with the agent.
fn clients_are_served(vlan: bool, ipv6: bool) {
    let what = format!("IPv{}{}", if ipv6 { 6 } else { 4 }, if vlan { " in a VLAN" } else { "" });
    // In a laboratory of its own: connections that ended before the agent came would be in the way of the next ones.
    let without = Scene::new(vlan).under_flood(ipv6);
    without.tell(&format!("{what}, without the agent"));
    let scene = Scene::new(vlan);
    take_cookies(&scene.lab.host);
    let agent = scene.lab.start(&cookies(1000));
    let with = scene.under_flood(ipv6);
    with.tell(&format!("{what}, with the agent"));
    assert!(with.share() >= 0.99, "only {:.1} % of the requests succeed", with.share() * 100.0);
    // How much better that is than without the agent depends on how fast the machine is, so it is only told.
    let rule = |key: &str| scene.lab.get("/api/v1/ratelimit/rules/syn")[key].as_u64().unwrap();
    // Below the threshold the stack answers.
    assert!(result(&scene.lab, "answered") + rule("passed") >= with.answered);
    assert!(result(&scene.lab, "accepted") > 0);
    // It ends with the flood: SYNs go to the stack, which answers by itself.
    wait_until("SYNs go to the stack", || {
        let (answered, passed) = (result(&scene.lab, "answered"), rule("passed"));
        scene.fetch(ipv6, "/").unwrap();
        result(&scene.lab, "answered") == answered && rule("passed") > passed
    });
    agent.stop();
}

#[test]
fn clients_are_served_in_ipv4() {
    clients_are_served(false, false);
}

#[test]
fn clients_are_served_in_ipv6() {
    clients_are_served(false, true);
}

#[test]
fn clients_are_served_in_a_vlan() {
    clients_are_served(true, false);
}

/// A usual client gets everything that it offers, with a cookie, and downloads by it.
#[test]
fn connections_by_cookies_lack_nothing() {
    const MTU: u16 = 1400;
    for (vlan, ipv6) in [(false, false), (false, true), (true, false), (true, true)] {
        let scene = Scene::new(vlan);
        scene.lab.host.ip(&format!("link set eth0 mtu {MTU}")).unwrap();
        take_cookies(&scene.lab.host);
        let agent = scene.lab.start(&cookies(0));
        let capture = FrameSocket::open(&scene.lab.world, "eth0").unwrap();
        assert!(scene.fetch(ipv6, "/download").unwrap() == download(), "vlan {vlan}, ipv6 {ipv6}: other bytes");
        let answer = syn_ack(&capture, |_| true).expect("a SYN-ACK");
        assert_eq!(answer.source, host_address(ipv6));
        assert_eq!(answer.vlan, vlan.then_some(flood::VLAN_ID));
        assert_eq!(answer.mss, Some(MTU - if ipv6 { 60 } else { 40 }));
        assert!(answer.window_scale.is_some() && answer.sack_permitted && answer.timestamps.is_some(), "{answer:?}");
        assert_eq!((result(&scene.lab, "answered"), result(&scene.lab, "accepted")), (1, 1));
        assert!(syn_ack(&capture, |_| true).is_none(), "it was answered once");
        agent.stop();
    }
}

/// The first SYN-ACK that is wanted, if it comes soon.
fn syn_ack(capture: &FrameSocket, wanted: impl Fn(&SynAck) -> bool) -> Option<SynAck> {
    let is_wanted = |frame: &[u8]| SynAck::read(frame).filter(|read| wanted(read));
    let frame = capture.receive(SOON, |frame| is_wanted(&frame.bytes).is_some()).unwrap();
    frame.and_then(|frame| is_wanted(&frame.bytes))
}

/// Whoever forges a source reflects no more than he sends, and gets only options that he offers.
#[test]
fn no_answer_is_longer_than_its_syn() {
    const NOBODY: [&str; 2] = ["192.0.2.77", "2001:db8:1::77"];
    let offers: [&[u8]; 7] = [
        &[],
        &[2, 4, 0x05, 0xb4],
        &[1, 1, 1, 1],
        &[3, 3, 7, 1],
        &[2, 4, 0x05, 0xb4, 1, 3, 3, 7],
        &[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0],
        &CLIENT_OPTIONS,
    ];
    for vlan in [false, true] {
        let scene = Scene::new(vlan);
        take_cookies(&scene.lab.host);
        let agent = scene.lab.start(&cookies(0));
        let (capture, sender) = (
            FrameSocket::open(&scene.lab.world, "eth0").unwrap(),
            FrameSocket::open(&scene.lab.world, "eth0").unwrap(),
        );
        for (family, from) in NOBODY.into_iter().enumerate() {
            for (at, options) in offers.into_iter().enumerate() {
                let port = 20_000 + at as u16;
                let packet = scene.lab.addressed(Packet::new());
                let packet = packet.ip(from.parse().unwrap(), host_address(family == 1)).unwrap();
                let syn = packet.tcp(port, PORT).numbers(77, 0).tcp_options(options).build();
                sender.send(&syn).unwrap();
                let is_mine = |read: &SynAck| read.ports == (PORT, port) && read.destination.to_string() == from;
                let answer = syn_ack(&capture, is_mine).unwrap_or_else(|| panic!("no answer to {syn:02x?}"));
                // The tag comes on the way.
                let length = syn.len() + if vlan { 4 } else { 0 };
                assert!(answer.frame_bytes <= length, "{answer:?} to {length} bytes");
                assert_eq!((answer.acknowledgement, answer.vlan), (78, vlan.then_some(flood::VLAN_ID)));
                let offers = |kind: u8, length: u8| options.windows(2).any(|pair| pair == [kind, length]);
                assert!(answer.window_scale.is_none() || offers(3, 3), "{answer:?}");
                assert!(!answer.sack_permitted || offers(4, 2), "{answer:?}");
                assert!(answer.timestamps.is_none() || offers(8, 10), "{answer:?}");
            }
        }
        assert_eq!(result(&scene.lab, "answered"), 2 * offers.len() as u64);
        agent.stop();
    }
}

/// One source, however many SYNs come in its name, gets a few answers in a second; the rest are counted.
#[test]
fn a_source_gets_few_answers() {
    const SENT: u32 = 50_000;
    const IN_A_SECOND: u64 = 256;
    for ipv6 in [false, true] {
        let scene = Scene::new(false);
        take_cookies(&scene.lab.host);
        let agent = scene.lab.start(&cookies(0));
        let sender = scene.flood.aim(&Aim { sources: 1, ..scene.aim(ipv6) }).unwrap();
        let begun = Instant::now();
        scene.lab.world.run(|| sender.send(SENT)).unwrap().unwrap();
        wait_until("all that arrived are counted", || {
            let seen = || result(&scene.lab, "answered") + result(&scene.lab, "limited");
            let before = seen();
            std::thread::sleep(SOON / 2);
            before > 0 && seen() == before
        });
        // Its seconds have a seam at each end.
        let most = IN_A_SECOND * (begun.elapsed().as_secs() + 2);
        let (answered, limited) = (result(&scene.lab, "answered"), result(&scene.lab, "limited"));
        assert!(answered > 0 && answered <= most, "{answered} answers");
        assert!(limited > 10 * answered, "{limited} SYNs were limited and {answered} answered");
        let answers = scene.flood.answers().unwrap();
        assert_eq!((answers.syn_acks, answers.resets, answers.others), (answered, 0, 0));
        agent.stop();
    }
}

#[test]
fn where_nobody_listens_nobody_gets_a_cookie() {
    const SENT: u32 = 200;
    let scene = Scene::new(false);
    take_cookies(&scene.lab.host);
    let agent = scene.lab.start(&cookies(0));
    for ipv6 in [false, true] {
        let sender = scene.flood.aim(&Aim { port: PORT + 1, ..scene.aim(ipv6) }).unwrap();
        scene.lab.world.run(|| sender.send(SENT)).unwrap().unwrap();
    }
    wait_until("they go to the stack", || result(&scene.lab, "no_listener") == 2 * u64::from(SENT));
    wait_until("the stack refuses them", || scene.flood.answers().unwrap().resets > 0);
    assert_eq!((scene.flood.answers().unwrap().syn_acks, result(&scene.lab, "answered")), (0, 0));
    agent.stop();
}

/// A client whose port comes again, after a connection that the host remembers from before the agent: the stack answers.
#[test]
fn a_port_that_comes_again_is_served() {
    let scene = Scene::new(false);
    take_cookies(&scene.lab.host);
    for ipv6 in [false, true] {
        let ask = || {
            let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
            let from: IpAddr = if ipv6 { WORLD_V6 } else { WORLD }.parse().unwrap();
            let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
            // The time limit of sending is that of connecting, too.
            setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0)).unwrap();
            let address = |ip, port| SockaddrStorage::from(SocketAddr::new(ip, port));
            bind(socket.as_raw_fd(), &address(from, 33_333)).unwrap();
            connect(socket.as_raw_fd(), &address(host_address(ipv6), PORT))?;
            exchange(TcpStream::from(socket), "/")
        };
        scene.lab.world.run(ask).unwrap().unwrap();
        let agent = scene.lab.start(&cookies(0));
        // From now on it is known who listens.
        scene.fetch(ipv6, "/").unwrap();
        assert_eq!(scene.lab.world.run(ask).unwrap().unwrap(), b"hello\n");
        assert_eq!(result(&scene.lab, "known"), 1);
        // And with the agent, which has seen it end.
        assert_eq!(scene.lab.world.run(ask).unwrap().unwrap(), b"hello\n");
        agent.stop();
    }
}
