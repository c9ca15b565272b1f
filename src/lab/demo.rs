//! The agent shown to its user: real packets from a world of its own against the example configuration, and what the
//! kernel did with each.
//!
//! Two namespaces, `world` and `host`, joined by one link. The agent runs in `host` on that link, with mounts of its
//! own, so that it neither sees nor touches the bpffs of an agent that guards this machine.

use std::fs::DirBuilder;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{FrameSocket, Interface, Namespace, Process, connect, sweep};
use crate::api::Method;
use crate::client::{Client, Endpoint};
use crate::packet::build::Packet;

/// A packet that passes takes far less; a SYN that is dropped is sent again only after a second.
const PATIENCE: Duration = Duration::from_millis(600);
const READY_WITHIN: Duration = Duration::from_secs(20);
const STOP_WITHIN: Duration = Duration::from_secs(5);

const HOST: &str = "192.0.2.10";
const HOST_V6: &str = "2001:db8:1::10";
const VISITOR: &str = "192.0.2.1";
const VISITOR_V6: &str = "2001:db8:1::1";
const ADMIN: &str = "10.20.5.7";
const ADMIN_V6: &str = "2001:db8:20::7";
const PARTNER: &str = "203.0.113.5";

/// The configuration that the steps are about.
const CONFIG: &str = include_str!("../../conf/examples/firewall.toml");

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What is sent.
enum Traffic {
    /// A connection by the kernel's own TCP.
    Tcp { from: &'static str, to: &'static str, port: u16 },
    /// A connection that the guarded host opens.
    Out { to: &'static str, port: u16 },
    /// A datagram by the kernel's own UDP.
    Udp { from: &'static str, to: &'static str, port: u16 },
    /// Frames as they stand; they have passed when the host's network stack got all of them.
    Raw(fn() -> Packet),
    /// The same in fragments of 64 bytes.
    Fragments(fn() -> Packet),
}

struct Step {
    about: &'static str,
    traffic: Traffic,
    passes: bool,
    /// The rule that decides; `None` is the default policy or the state.
    rule: Option<&'static str>,
}

const fn step(about: &'static str, traffic: Traffic, passes: bool, rule: Option<&'static str>) -> Step {
    Step { about, traffic, passes, rule }
}

const PASSES: bool = true;
const DROPS: bool = false;

/// The steps, by the rules of conf/examples/firewall.toml.
static STEPS: &[Step] = &[
    step("visitor opens the web site", Traffic::Tcp { from: VISITOR, to: HOST, port: 443 }, PASSES, Some("web")),
    step("the same over IPv6", Traffic::Tcp { from: VISITOR_V6, to: HOST_V6, port: 443 }, PASSES, Some("web")),
    step("visitor sends HTTP/3", Traffic::Udp { from: VISITOR, to: HOST, port: 443 }, PASSES, Some("web-quic")),
    step("visitor tries a closed service", Traffic::Tcp { from: VISITOR, to: HOST, port: 8443 }, DROPS, None),
    step("the same over IPv6", Traffic::Tcp { from: VISITOR_V6, to: HOST_V6, port: 8443 }, DROPS, None),
    step("visitor asks for names", Traffic::Udp { from: VISITOR, to: HOST, port: 53 }, DROPS, None),
    step("administrator logs in", Traffic::Tcp { from: ADMIN, to: HOST, port: 22 }, PASSES, Some("ssh-mgmt")),
    step("the same over IPv6", Traffic::Tcp { from: ADMIN_V6, to: HOST_V6, port: 22 }, PASSES, Some("ssh-mgmt-v6")),
    step("visitor tries to log in", Traffic::Tcp { from: VISITOR, to: HOST, port: 22 }, DROPS, Some("ssh-others")),
    step("partner fetches by FTP", Traffic::Tcp { from: PARTNER, to: HOST, port: 50007 }, PASSES, Some("ftp-partner")),
    step("one port beyond the range", Traffic::Tcp { from: PARTNER, to: HOST, port: 50100 }, DROPS, None),
    step("the host calls out, answers return", Traffic::Out { to: VISITOR, port: 8000 }, PASSES, None),
    step("the same over IPv6", Traffic::Out { to: VISITOR_V6, port: 8000 }, PASSES, None),
    step(
        "an answer to nothing",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).tcp(8000, 6000).flags(0x10).numbers(7, 7)),
        DROPS,
        Some("no-connection"),
    ),
    step(
        "spoofed: from 127.0.0.1",
        Traffic::Raw(|| Packet::new().between("127.0.0.1", HOST).tcp(4000, 443)),
        DROPS,
        Some("spoofed-loopback"),
    ),
    step(
        "spoofed: from ::1",
        Traffic::Raw(|| Packet::new().between("::1", HOST_V6).tcp(4000, 443)),
        DROPS,
        Some("spoofed-loopback-v6"),
    ),
    step(
        "scan: TCP without flags",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).tcp(4001, 443).flags(0)),
        DROPS,
        Some("tcp-no-flags"),
    ),
    step(
        "scan: SYN and FIN at once",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).tcp(4002, 443).flags(3)),
        DROPS,
        Some("tcp-syn-fin"),
    ),
    step(
        "backup in VLAN 30",
        Traffic::Raw(|| Packet::new().vlan(30).between(VISITOR, HOST).tcp(4003, 873)),
        PASSES,
        Some("backup-vlan"),
    ),
    step(
        "backup in VLAN 31",
        Traffic::Raw(|| Packet::new().vlan(31).between(VISITOR, HOST).tcp(4004, 873)),
        DROPS,
        None,
    ),
    step(
        "backup in VLAN 30, QinQ",
        Traffic::Raw(|| Packet::new().vlan(30).vlan(7).between(VISITOR, HOST).tcp(4005, 873)),
        PASSES,
        Some("backup-vlan"),
    ),
    step("ping", Traffic::Raw(|| Packet::new().between(VISITOR, HOST).ping(1, 1)), PASSES, Some("ping")),
    step(
        "ping over IPv6",
        Traffic::Raw(|| Packet::new().between(VISITOR_V6, HOST_V6).ping(1, 1)),
        PASSES,
        Some("ping-v6"),
    ),
    step(
        "IPv4 with options",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).options(&[1, 1, 1, 0]).tcp(4006, 443)),
        PASSES,
        Some("web"),
    ),
    step(
        "IPv6 behind extension headers",
        Traffic::Raw(|| Packet::new().between(VISITOR_V6, HOST_V6).destination_options(&[]).tcp(4007, 443)),
        PASSES,
        Some("web"),
    ),
    step(
        "HTTP/3 in fragments",
        Traffic::Fragments(|| Packet::new().between(VISITOR, HOST).udp(4008, 443).payload(&[7; 200])),
        PASSES,
        Some("web-quic"),
    ),
    step(
        "fragments for a closed port",
        Traffic::Fragments(|| Packet::new().between(VISITOR, HOST).udp(4009, 53).payload(&[7; 200])),
        DROPS,
        None,
    ),
    step(
        "fragments over IPv6",
        Traffic::Fragments(|| Packet::new().between(VISITOR_V6, HOST_V6).udp(4010, 443).payload(&[7; 200])),
        PASSES,
        Some("web-quic"),
    ),
    step(
        "a header that lies about its length",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).ihl(4).tcp(4011, 443)),
        DROPS,
        None,
    ),
];

/// Runs the demonstration. True when everything happened as expected.
/// Everything that it made is gone when it returns, also after an interruption by a signal.
pub fn run() -> Result<bool> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and loads eBPF programs: run it as root"
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler stores to an atomic and does nothing else.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("watching for {signal}"))?;
    }
    sweep();
    let mut stage = Stage::new()?;
    println!("{:<36} {:<32} {:<9} {:<9} {:<20}", "STEP", "SENT", "EXPECTED", "HAPPENED", "RULE");
    let mut wrong = 0;
    for step in STEPS {
        if INTERRUPTED.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let (passed, rule) = stage.play(step).with_context(|| format!("step \"{}\"", step.about))?;
        let right = passed == step.passes && rule.as_deref() == step.rule;
        wrong += usize::from(!right);
        println!(
            "{:<36} {:<32} {:<9} {:<9} {:<20} {}",
            step.about,
            step.traffic.words(),
            word(step.passes),
            word(passed),
            rule.as_deref().unwrap_or("-"),
            if right { "ok".to_owned() } else { format!("WRONG, expected rule {}", step.rule.unwrap_or("-")) }
        );
    }
    let status = stage.agent.stop(STOP_WITHIN)?;
    println!("\n{} of {} steps as expected", STEPS.len() - wrong, STEPS.len());
    match status {
        Some(status) if status.success() => {}
        _ => bail!("the agent did not end well:\n{}", stage.agent.output()),
    }
    Ok(wrong == 0)
}

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

fn word(passes: bool) -> &'static str {
    if passes { "pass" } else { "drop" }
}

impl Traffic {
    fn words(&self) -> String {
        match self {
            Traffic::Tcp { from, port, .. } => format!("tcp {from} to {port}"),
            Traffic::Out { to, port } => {
                format!("tcp out to {} port {port}", if to.contains(':') { "v6" } else { "v4" })
            }
            Traffic::Udp { from, port, .. } => format!("udp {from} to {port}"),
            Traffic::Raw(packet) => format!("frame of {} bytes", packet().build().len()),
            Traffic::Fragments(packet) => format!("{} fragments", packet().fragments(1, 64).len()),
        }
    }
}

/// The agent on its scene. The fields end in this order: the agent before what it stands on.
struct Stage {
    agent: Process,
    scene: Scene,
    _folder: Folder,
}

/// Namespaces, sockets and servers, without an agent.
struct Scene {
    world_socket: FrameSocket,
    host_socket: FrameSocket,
    udp: Vec<UdpSocket>,
    _listeners: Vec<TcpListener>,
    world_end: Interface,
    host_end: Interface,
    world: Namespace,
    host: Namespace,
    next_fragment_id: u32,
}

impl Stage {
    fn new() -> Result<Stage> {
        let folder = Folder::new()?;
        let scene = Scene::new()?;
        let agent = start_agent(&scene.host, &folder)?;
        let mut stage = Stage { agent, scene, _folder: folder };
        stage.wait_ready()?;
        Ok(stage)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.agent.ended()? {
                bail!("the agent ended at once ({status}):\n{}", self.agent.output());
            }
            let last = match self.scene.host.run(|| client().send(Method::Get, "/readyz", None))? {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => answer.body,
                Err(error) => error.to_string(),
            };
            if INTERRUPTED.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if Instant::now() > deadline {
                bail!("the agent is not ready after {READY_WITHIN:?}: {last}\n{}", self.agent.output());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether the traffic passed, and which rule counted it.
    fn play(&mut self, step: &Step) -> Result<(bool, Option<String>)> {
        let before = self.counters()?;
        let passed = self.scene.send(&step.traffic)?;
        // Rules are asked in order of priority, and a connection has more packets than its first: the first rule that
        // has counted is the one that let it begin.
        let after = self.counters()?;
        let rule = after
            .into_iter()
            .find(|(id, packets)| before.iter().any(|(known, earlier)| known == id && packets > earlier));
        Ok((passed, rule.map(|(id, _)| id)))
    }

    fn counters(&self) -> Result<Vec<(String, u64)>> {
        let rules = self.scene.host.run(|| client().json(Method::Get, "/api/v1/firewall/rules?limit=5000", None))??;
        let rules = rules.as_array().context("the agent's rules are not a list")?;
        let counter = |rule: &serde_json::Value| Some((rule["id"].as_str()?.to_owned(), rule["packets"].as_u64()?));
        rules.iter().map(|rule| counter(rule).context("a rule without id or packets")).collect()
    }
}

impl Scene {
    fn new() -> Result<Scene> {
        let (world, host) = (Namespace::new("world")?, Namespace::new("host")?);
        let addresses = ["192.0.2.1/24", "2001:db8:1::1/64", "10.20.5.7/32", "203.0.113.5/32", "2001:db8:20::7/128"];
        let world_port = addresses.iter().fold(world.port("eth0"), |port, address| port.address(address));
        let host_port = host.port("eth0").address("192.0.2.10/24").address("2001:db8:1::10/64");
        let (world_end, host_end) = connect(&world_port, &host_port)?;
        for route in ["10.20.0.0/16", "203.0.113.0/24", "2001:db8:20::/48"] {
            host.ip(&format!("route add {route} dev eth0"))?;
        }
        let mut listeners = Vec::new();
        for port in [22, 443, 8443, 873, 50007, 50100] {
            // Answers both families.
            listeners.push(host.run(|| TcpListener::bind(("::", port)))?.context("listening in the host")?);
        }
        listeners.push(world.run(|| TcpListener::bind(("::", 8000)))?.context("listening in the world")?);
        let mut udp = Vec::new();
        for port in [53, 443] {
            let socket = host.run(|| UdpSocket::bind(("::", port)))?.context("listening in the host")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            udp.push(socket);
        }
        Ok(Scene {
            world_socket: FrameSocket::open(&world, "eth0")?,
            host_socket: FrameSocket::open(&host, "eth0")?,
            udp,
            _listeners: listeners,
            world_end,
            host_end,
            world,
            host,
            next_fragment_id: 1,
        })
    }

    fn send(&mut self, traffic: &Traffic) -> Result<bool> {
        match traffic {
            Traffic::Tcp { from, to, port } => self.world.run(|| reaches(Some(from), to, *port))?,
            Traffic::Out { to, port } => self.host.run(|| reaches(None, to, *port))?,
            Traffic::Udp { from, to, port } => {
                let mark = format!("{from} {port}");
                let from = SocketAddr::new(from.parse()?, 0);
                let to = SocketAddr::new(to.parse()?, *port);
                self.world.run(|| UdpSocket::bind(from)?.send_to(mark.as_bytes(), to))??;
                let server = self.udp.iter().find(|socket| socket.local_addr().is_ok_and(|at| at.port() == *port));
                let server = server.context("no server on this port")?;
                let mut buffer = [0; 64];
                // Datagrams of earlier steps may still lie there; the first error is the end of patience.
                while let Ok(length) = server.recv(&mut buffer) {
                    if buffer[..length] == *mark.as_bytes() {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Traffic::Raw(packet) => self.frames(vec![self.addressed(packet).build()]),
            Traffic::Fragments(packet) => {
                self.next_fragment_id += 1;
                self.frames(self.addressed(packet).fragments(self.next_fragment_id, 64))
            }
        }
    }

    fn addressed(&self, packet: &fn() -> Packet) -> Packet {
        packet().mac(self.world_end.mac, self.host_end.mac)
    }

    fn frames(&self, frames: Vec<Vec<u8>>) -> Result<bool> {
        for frame in &frames {
            self.world_socket.send(frame)?;
        }
        let count = self.host_socket.count(PATIENCE, frames.len(), |got| frames.contains(&got.bytes))?;
        Ok(count == frames.len())
    }
}

fn client() -> Client {
    Client::new(Endpoint { host: "127.0.0.1".to_owned(), port: 8080 }, None)
}

fn start_agent(host: &Namespace, folder: &Folder) -> Result<Process> {
    let path = folder.0.join("config.toml");
    std::fs::write(&path, CONFIG).with_context(|| format!("writing {}", path.display()))?;
    let mut command = host.command(std::env::current_exe().context("finding the agent's program")?)?;
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EBPFSENTINEL_")) {
        command.env_remove(name);
    }
    command
        .args(["--log-format", "text", "--config"])
        .arg(&path)
        .env("EBPFSENTINEL_AGENT_STATE_DIR", folder.0.join("state"))
        .env("EBPFSENTINEL_AGENT_ON_EXIT", "detach")
        // Ctrl-C is for the demo, which then stops the agent.
        .process_group(0);
    // SAFETY: system calls on constant text only; nothing allocates or locks between fork and exec.
    unsafe {
        command.pre_exec(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some(c"bpf"), c"/sys/fs/bpf", Some(c"bpf"), MsFlags::empty(), None::<&str>)?;
            // If the demo is killed its agent ends too.
            nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
            Ok(())
        });
    }
    Process::start(&mut command)
}

/// Whether a TCP connection comes about within [`PATIENCE`], in the namespace of the calling thread.
fn reaches(from: Option<&str>, to: &str, port: u16) -> Result<bool> {
    let to: IpAddr = to.parse()?;
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = nix::sys::socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The time limit of sending is that of connecting, too.
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(0, PATIENCE.as_micros() as i64))?;
    if let Some(from) = from {
        let from = SocketAddr::new(from.parse()?, 0);
        nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    Ok(nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, port))).is_ok())
}

/// A folder for config and state, only root's, removed with what is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = PathBuf::from(format!("/run/ebs-{}-demo", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies in /run, which a restart empties.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_passes_where_nobody_guards() {
        let mut scene = Scene::new().unwrap();
        for step in STEPS {
            assert!(scene.send(&step.traffic).unwrap(), "{}: {}", step.about, step.traffic.words());
        }
    }

    #[test]
    fn the_steps_speak_of_rules_that_exist() {
        for rule in STEPS.iter().filter_map(|step| step.rule) {
            assert!(CONFIG.contains(&format!("id = \"{rule}\"")), "{rule}");
        }
    }

    #[test]
    fn what_is_lost_is_seen_as_lost() {
        let mut scene = Scene::new().unwrap();
        scene.host.ip("link set eth0 down").unwrap();
        for step in STEPS.iter().filter(|step| !matches!(step.traffic, Traffic::Out { .. })).step_by(5) {
            // Without a carrier even sending may fail, which is as good as lost.
            assert!(!scene.send(&step.traffic).unwrap_or(false), "{}: {}", step.about, step.traffic.words());
        }
    }
}
