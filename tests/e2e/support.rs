//! A laboratory with an agent: namespaces `world` and `host` joined by one link, which the agent guards in `host`.
//!
//! Nothing here measures time: what must happen is waited for, and what must not happen is known not to have happened
//! because something sent after it has arrived.

use std::collections::HashSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ebpfsentinel::api::Method;
use ebpfsentinel::client::{Answer, Client, Endpoint};
use ebpfsentinel::lab::{FrameSocket, Namespace, Process, connect};
use ebpfsentinel::packet::build::Packet;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

pub const WORLD: &str = "192.0.2.1";
pub const WORLD_V6: &str = "2001:db8:1::1";
/// Another host of the world.
pub const OTHER: &str = "192.0.2.2";
pub const HOST: &str = "192.0.2.10";
pub const HOST_V6: &str = "2001:db8:1::10";

/// The end of all patience: far above what anything here takes.
pub const WITHIN: Duration = Duration::from_secs(30);
/// A frame that overtook its marker arrives within this.
const REORDERED: Duration = Duration::from_millis(60);

pub const BINARY: &str = env!("CARGO_BIN_EXE_ebpfsentinel-agent");

/// Namespaces, a folder with configuration and state, and a BPF file system that outlives each agent.
pub struct Lab {
    pub world: Namespace,
    pub host: Namespace,
    folder: tempfile::TempDir,
}

/// A running agent; killed when dropped, and heard when its test fails.
pub struct Agent {
    process: Process,
}

/// Waits until `look` finds something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WITHIN;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `holds`.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// A configuration that guards eth0; `agent` and `firewall` are further lines of these sections.
pub fn config(agent: &str, firewall: &str, rules: &[String]) -> String {
    format!("[agent]\ninterfaces = [\"eth0\"]\n{agent}\n[firewall]\n{firewall}\n{}", rules.concat())
}

/// A rule of the file; `rest` are its keys beside id, priority and action.
pub fn rule(id: &str, priority: u32, action: &str, rest: &str) -> String {
    format!("[[firewall.rules]]\nid = \"{id}\"\npriority = {priority}\naction = \"{action}\"\n{rest}\n")
}

/// A datagram from the world to a port of the host, in the family of `from`.
pub fn udp(from: &str, port: u16) -> Packet {
    let to = if from.contains(':') { HOST_V6 } else { HOST };
    Packet::new().between(from, to).udp(4000, port).payload(b"probe")
}

impl Default for Lab {
    fn default() -> Lab {
        Lab::new()
    }
}

impl Lab {
    pub fn new() -> Lab {
        let (world, host) = (Namespace::new("world").unwrap(), Namespace::new("host").unwrap());
        let folder = tempfile::Builder::new().prefix("ebs-e2e-").tempdir().unwrap();
        let lab = Lab { world, host, folder };
        std::fs::create_dir(lab.bpf()).unwrap();
        mount(Some("bpf"), &lab.bpf(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        lab.connect();
        lab
    }

    /// Makes the link, at first or anew.
    pub fn connect(&self) {
        let world = self.world.port("eth0").mac([2, 0, 0, 0, 0, 1]).address("192.0.2.1/24").address("192.0.2.2/24");
        let host = self.host.port("eth0").mac([2, 0, 0, 0, 0, 10]).address("192.0.2.10/24");
        connect(&world.address("2001:db8:1::1/64"), &host.address("2001:db8:1::10/64")).unwrap();
        // Nobody has to be asked for an address while packets are counted.
        for (namespace, address, mac) in [
            (&self.world, HOST, "02:00:00:00:00:0a"),
            (&self.world, HOST_V6, "02:00:00:00:00:0a"),
            (&self.host, WORLD, "02:00:00:00:00:01"),
            (&self.host, OTHER, "02:00:00:00:00:01"),
            (&self.host, WORLD_V6, "02:00:00:00:00:01"),
        ] {
            namespace.ip(&format!("neigh replace {address} lladdr {mac} dev eth0 nud permanent")).unwrap();
        }
    }

    fn bpf(&self) -> PathBuf {
        self.folder.path().join("bpf")
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Writes the configuration into the file that is there.
    pub fn write_config(&self, text: &str) {
        let mut file = std::fs::File::create(self.config_path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Puts a new file in the place of the configuration, as editors do.
    pub fn rename_config(&self, text: &str) {
        let fresh = self.folder.path().join("config.toml.new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, self.config_path()).unwrap();
    }

    /// Writes the configuration by another name of the same file, in a directory that the agent does not watch: what
    /// happens then happens because it was asked for.
    pub fn write_unseen(&self, text: &str) {
        let aside = self.folder.path().join("aside");
        std::fs::create_dir_all(&aside).unwrap();
        let name = aside.join("config.toml");
        let _ = std::fs::remove_file(&name);
        std::fs::hard_link(self.config_path(), &name).unwrap();
        std::fs::write(&name, text).unwrap();
    }

    /// Starts an agent with the configuration that is there, and does not wait for anything.
    pub fn launch(&self) -> Agent {
        self.launch_with(&self.config_path(), &self.state_dir())
    }

    pub fn launch_with(&self, config: &Path, state_dir: &Path) -> Agent {
        Agent::launch(self.command(config, state_dir))
    }

    /// The agent's command, in `host`, with the BPF file system of this laboratory.
    pub fn command(&self, config: &Path, state_dir: &Path) -> Command {
        let mut command = self.host.command(BINARY).unwrap();
        let environment = std::env::vars_os().map(|(name, _)| name);
        for name in environment.filter(|name| name.to_string_lossy().starts_with("EBPFSENTINEL_")) {
            command.env_remove(name);
        }
        command.args(["--log-format", "text", "--config"]).arg(config);
        command.env("EBPFSENTINEL_AGENT_STATE_DIR", state_dir).env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        let bpf = std::ffi::CString::new(self.bpf().into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: system calls on text that is there already; nothing allocates or locks between fork and exec.
        unsafe {
            command.pre_exec(move || {
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
                mount(Some(bpf.as_c_str()), c"/sys/fs/bpf", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                Ok(())
            });
        }
        command
    }

    /// Starts an agent with this configuration and waits until it is ready.
    pub fn start(&self, config: &str) -> Agent {
        self.write_config(config);
        let mut agent = self.launch();
        self.wait_ready(&mut agent);
        agent
    }

    pub fn wait_ready(&self, agent: &mut Agent) {
        wait_until("the agent is ready", || {
            if let Some(status) = agent.process.ended().unwrap() {
                panic!("the agent ended ({status})");
            }
            self.try_send(Method::Get, "/readyz", None).is_some_and(|answer| answer.status == 200)
        });
    }

    /// Starts an agent that must refuse; its exit code and what it said.
    pub fn refusal(&self, config: &Path, state_dir: &Path) -> (ExitStatus, String) {
        let mut agent = self.launch_with(config, state_dir);
        let status = agent.process.wait(WITHIN).unwrap().expect("the agent should have refused to start");
        (status, agent.said())
    }

    fn try_send(&self, method: Method, target: &str, body: Option<&Value>) -> Option<Answer> {
        let client = Client::new(Endpoint { host: "127.0.0.1".to_owned(), port: 8080 }, None);
        self.host.run(|| client.send(method, target, body)).unwrap().ok()
    }

    /// Whether the agent answers at all.
    pub fn answers(&self) -> bool {
        self.try_send(Method::Get, "/healthz", None).is_some()
    }

    /// One request, whatever comes of it.
    pub fn send(&self, method: Method, target: &str, body: Option<Value>) -> Answer {
        let answer = self.try_send(method, target, body.as_ref());
        answer.unwrap_or_else(|| panic!("no answer to {method} {target}"))
    }

    /// One request that must go well.
    pub fn ask(&self, method: Method, target: &str, body: Option<Value>) -> Value {
        let answer = self.send(method, target, body);
        assert!((200..300).contains(&answer.status), "{method} {target}: {} {}", answer.status, answer.body);
        if answer.body.is_empty() { Value::Null } else { serde_json::from_str(&answer.body).unwrap() }
    }

    pub fn get(&self, target: &str) -> Value {
        self.ask(Method::Get, target, None)
    }

    /// One request that must be refused; status, code and message.
    pub fn refused(&self, method: Method, target: &str, body: Option<Value>) -> (u16, String, String) {
        let answer = self.send(method, target, body);
        assert!(answer.status >= 400, "{method} {target}: {} {}", answer.status, answer.body);
        let error: Value = serde_json::from_str(&answer.body).unwrap();
        let text = |key: &str| error["error"][key].as_str().unwrap_or_else(|| panic!("{}", answer.body)).to_owned();
        (answer.status, text("code"), text("message"))
    }

    /// The agent's command line, talking to the agent.
    pub fn cli(&self, words: &[&str]) -> Output {
        self.host.command(BINARY).unwrap().args(words).output().unwrap()
    }

    /// Ids of the rules in force, in order.
    pub fn rule_ids(&self) -> Vec<String> {
        let rules = self.get("/api/v1/firewall/rules");
        rules.as_array().unwrap().iter().map(|rule| rule["id"].as_str().unwrap().to_owned()).collect()
    }

    /// What a rule has counted.
    pub fn packets(&self, rule: &str) -> u64 {
        self.get(&format!("/api/v1/firewall/rules/{rule}"))["packets"].as_u64().unwrap()
    }

    /// A figure of the metrics, by the whole name with its labels; 0 where it is not told.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.send(Method::Get, "/metrics", None).body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// Whether a packet from the world gets to the host's network stack.
    pub fn passes(&self, packet: Packet) -> bool {
        self.arrive(&[self.addressed(packet).build()]) == [true]
    }

    /// The packet with the hardware addresses of the link.
    pub fn addressed(&self, packet: Packet) -> Packet {
        let (world, host) = (self.world.interface("eth0").unwrap(), self.host.interface("eth0").unwrap());
        packet.mac(world.mac, host.mac)
    }

    /// Which of these frames, all different, get from the world to the host's network stack.
    pub fn arrive(&self, frames: &[Vec<u8>]) -> Vec<bool> {
        static MARKERS: AtomicU32 = AtomicU32::new(0);
        let sender = FrameSocket::open(&self.world, "eth0").unwrap();
        let receiver = FrameSocket::open(&self.host, "eth0").unwrap();
        // ARP passes whatever the rules are; who asks here is nobody, so that nobody answers.
        let nobody = Ipv4Addr::from(0x0a00_0000 + MARKERS.fetch_add(1, Ordering::Relaxed));
        let marker = Packet::new().arp_request(nobody, Ipv4Addr::new(10, 255, 255, 255));
        let marker = self.addressed(marker).build();
        frames.iter().for_each(|frame| sender.send(frame).unwrap());
        sender.send(&marker).unwrap();
        let mut seen = vec![false; frames.len()];
        let mut note = |got: &[u8]| frames.iter().zip(&mut seen).for_each(|(frame, seen)| *seen |= got == frame);
        let marked = receiver.receive(WITHIN, |got| {
            note(&got.bytes);
            got.bytes == marker
        });
        assert!(marked.unwrap().is_some(), "not even ARP passes");
        receiver
            .receive(REORDERED, |got| {
                note(&got.bytes);
                false
            })
            .unwrap();
        seen
    }

    /// What is attached to the host's interface, as `ip` tells it; empty when nothing is.
    pub fn attached(&self) -> String {
        let text = self.host.ip("-details link show eth0").unwrap();
        text.lines().filter(|line| line.contains("xdp") || line.contains("clsact")).collect()
    }

    /// Everything that is pinned.
    pub fn pinned(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.bpf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() && !path.is_symlink() {
                    true => folders.push(path),
                    // The file system itself has two.
                    false if path.extension().is_some_and(|ending| ending == "debug") => {}
                    false => found.push(path),
                }
            }
        }
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pin in self.pinned() {
            let _ = std::fs::remove_file(pin);
        }
        let _ = umount2(&self.bpf(), MntFlags::MNT_DETACH);
    }
}

impl Agent {
    pub fn launch(mut command: Command) -> Agent {
        Agent { process: Process::start(&mut command).unwrap() }
    }

    /// Everything that it has said so far.
    pub fn said(&self) -> String {
        self.process.output()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn says(&self, text: &str) {
        wait_until(&format!("the agent says {text:?}"), || self.said().contains(text));
    }

    pub fn hang_up(&self) {
        self.process.signal(Signal::SIGHUP).unwrap();
    }

    /// Ends it as an operator would; it must end well.
    pub fn stop(mut self) -> String {
        let status = self.process.stop(WITHIN).unwrap();
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
        self.said()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.signal(Signal::SIGKILL).unwrap();
        assert!(self.process.wait(WITHIN).unwrap().is_some());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent said:\n{}", self.said());
        }
    }
}

/// Datagrams with numbers, sent without end to one port of the host, and who of them arrived.
pub struct Flow {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    got: Arc<AtomicU64>,
    sender: JoinHandle<anyhow::Result<()>>,
    receiver: JoinHandle<anyhow::Result<HashSet<u64>>>,
}

impl Flow {
    /// About a thousand datagrams a second, from `from` to `port`.
    pub fn start(lab: &Lab, from: &str, port: u16) -> Flow {
        let from: IpAddr = from.parse().unwrap();
        let to: IpAddr = if from.is_ipv4() { HOST } else { HOST_V6 }.parse().unwrap();
        let socket = lab.host.run(|| UdpSocket::bind((to, port))).unwrap().unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let out = lab.world.run(|| UdpSocket::bind((from, 0))).unwrap().unwrap();
        out.connect(SocketAddr::new(to, port)).unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), sent.clone());
        let sender = lab.world.spawn(move || {
            let mut number = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                out.send(&number.to_be_bytes()).unwrap();
                number += 1;
                count.store(number, Ordering::Release);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let got = Arc::new(AtomicU64::new(0));
        let (stopped, arrived) = (stop.clone(), got.clone());
        let receiver = lab.host.spawn(move || {
            let (mut seen, mut buffer, mut idle) = (HashSet::new(), [0; 8], 0);
            // What was sent before the end has arrived long before three idle turns after it.
            while idle < 3 {
                match socket.recv(&mut buffer) {
                    Ok(8) => {
                        assert!(seen.insert(u64::from_be_bytes(buffer)), "a datagram came twice");
                        arrived.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(length) => panic!("a datagram of {length} bytes"),
                    Err(_) if stopped.load(Ordering::Relaxed) => idle += 1,
                    Err(_) => {}
                }
            }
            seen
        });
        Flow { stop, sent, got, sender: sender.unwrap(), receiver: receiver.unwrap() }
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    pub fn got(&self) -> u64 {
        self.got.load(Ordering::Relaxed)
    }

    /// Ends it; how many were sent and how many arrived.
    pub fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().unwrap().unwrap();
        let seen = self.receiver.join().unwrap().unwrap();
        (self.sent.load(Ordering::Acquire), seen.len() as u64)
    }
}
