//! A laboratory of network namespaces, in code: what `demo` shows its user and what end-to-end tests and benches run in.
//!
//! A [`Namespace`] is a named one (`ip netns` sees it) whose name carries the pid of its maker, so that [`sweep`] can
//! tell what a process that was killed has left behind. Links are veth pairs whose frames are whole: no checksum, no
//! segmentation and no VLAN tag is left to a device that does not exist. Tagged traffic is sent as raw frames, since
//! not every kernel has VLAN interfaces. No thread of the caller ever changes its
//! namespace; work is done on threads made for it. Needs root, and `ip` of iproute2.

pub mod demo;
mod frames;
mod process;

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use nix::mount::{MntFlags, umount2};
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns};

use crate::bpf::attach::{self, Attached};
use crate::bpf::offload;

pub use frames::{Frame, FrameSocket};
pub use process::Process;

const NAMESPACES: &str = "/run/netns";
const PREFIX: &str = "ebs-";
/// How long interfaces may take to come up; a veth pair takes milliseconds.
const UP_WITHIN: Duration = Duration::from_secs(5);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network namespace, deleted when dropped. Its links go with it, also their other ends.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

/// One end of a link, as it is wanted.
#[derive(Clone, Debug)]
pub struct Port<'a> {
    namespace: &'a Namespace,
    name: String,
    mac: Option<[u8; 6]>,
    addresses: Vec<IpNet>,
}

/// An interface that stands and is up.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Name inside its namespace.
    pub name: String,
    /// Index inside its namespace.
    pub index: u32,
    /// Hardware address.
    pub mac: [u8; 6],
}

impl Namespace {
    /// Makes a namespace whose name contains `word`, with its loopback up.
    pub fn new(word: &str) -> Result<Namespace> {
        let name = format!("{PREFIX}{}-{}-{word}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]), "")?;
        let path = PathBuf::from(NAMESPACES).join(&name);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()));
        let namespace = match file {
            Ok(file) => Namespace { name, file },
            Err(error) => {
                unmount(&name);
                return Err(error);
            }
        };
        // Addresses are usable at once, and nothing but the test talks: no duplicate address detection, no
        // solicitation of routers. Applies to interfaces made later.
        namespace.run(|| -> Result<()> {
            for (key, value) in [("ipv6/conf/default/accept_dad", "0"), ("ipv6/conf/default/router_solicitations", "0")]
            {
                sysctl(key, value)?;
            }
            Ok(())
        })??;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The whole name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An end of a link to be, named `name` (at most 15 characters).
    pub fn port(&self, name: &str) -> Port<'_> {
        Port { namespace: self, name: name.to_owned(), mac: None, addresses: Vec::new() }
    }

    /// Runs `work` inside the namespace, on a thread of its own, and returns what it returns.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name(self.thread_name()).spawn_scoped(scope, || {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("entering network namespace {}", self.name))?;
                Ok(work())
            })?;
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread inside the namespace, for a server.
    pub fn spawn<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<R>>> {
        let (file, name) = (self.file.try_clone()?, self.name.clone());
        let thread = std::thread::Builder::new().name(self.thread_name()).spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("entering network namespace {name}"))?;
            Ok(work())
        })?;
        Ok(thread)
    }

    /// A command that will run inside the namespace. Unlike `ip netns exec` it keeps the mounts, so that
    /// /sys/fs/bpf stays in sight; /sys/class/net goes on showing the interfaces of the initial namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        process::command_in(&self.file, program)
    }

    /// `ip` with these words inside the namespace, for what has no method: routes, neighbours, link state.
    pub fn ip(&self, words: &str) -> Result<String> {
        run(Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace()), "")
    }

    /// Sets a value below /proc/sys/net, such as `ipv4/conf/all/rp_filter`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| sysctl(key, value))?
    }

    /// Lets an interface take the frames that the XDP of its peer sends back, until the result is dropped.
    pub fn take_xdp_frames(&self, name: &str) -> Result<Attached> {
        self.run(|| attach::xdp_pass(attach::ifindex(name).with_context(|| format!("there is no {name}"))?, name))?
    }

    /// Whether a device in the namespace has this interface; its index and hardware address.
    pub fn interface(&self, name: &str) -> Result<Interface> {
        let found = self.run(|| link_of(name))?.with_context(|| format!("looking at {name} in {}", self.name))?;
        let Link { index, mac, .. } = found.with_context(|| format!("{name} is not in {}", self.name))?;
        Ok(Interface { name: name.to_owned(), index, mac })
    }

    /// Waits until `name` is up and has a carrier.
    pub fn wait_up(&self, name: &str) -> Result<()> {
        let deadline = Instant::now() + UP_WITHIN;
        self.run(|| {
            loop {
                let link = link_of(name)?;
                if link.is_some_and(|link| link.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING)) {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    bail!("{name} in {} is not up after {UP_WITHIN:?}", self.name);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        })?
    }

    fn thread_name(&self) -> String {
        let word = self.name.rsplit('-').next().unwrap_or_default();
        format!("lab-{word}").chars().take(15).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        unmount(&self.name);
    }
}

impl<'a> Port<'a> {
    /// Adds an address with its prefix length, `192.0.2.1/24` or `2001:db8::1/64`.
    ///
    /// # Panics
    /// When the text is not one: addresses of the laboratory stand in the source code.
    pub fn address(mut self, address: &str) -> Port<'a> {
        self.addresses.push(address.parse().unwrap_or_else(|_| panic!("\"{address}\" is not an address with prefix")));
        self
    }

    /// Hardware address; else the kernel takes one at random.
    pub fn mac(mut self, mac: [u8; 6]) -> Port<'a> {
        self.mac = Some(mac);
        self
    }
}

/// How a veth pair is made.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Largest frame without the Ethernet header.
    pub mtu: u16,
    /// Queues in each direction; native XDP wants as many as there are CPUs that send to it, and one is enough here.
    pub queues: u16,
}

impl Default for Wire {
    fn default() -> Wire {
        Wire { mtu: 1500, queues: 1 }
    }
}

/// Joins two namespaces (or one with itself) by a veth pair, and returns when both ends are up.
pub fn connect(a: &Port<'_>, b: &Port<'_>) -> Result<(Interface, Interface)> {
    connect_by(a, b, Wire::default())
}

/// [`connect`], with the say over the wire.
pub fn connect_by(a: &Port<'_>, b: &Port<'_>, wire: Wire) -> Result<(Interface, Interface)> {
    let Wire { mtu, queues } = wire;
    let end = |port: &Port<'_>| {
        let mac = port.mac.map(|mac| format!(" address {}", mac_text(mac))).unwrap_or_default();
        format!(
            "name {} netns {} mtu {mtu} numtxqueues {queues} numrxqueues {queues}{mac}",
            port.name, port.namespace.name
        )
    };
    let words = format!("link add {} type veth peer {}", end(a), end(b));
    run(Command::new("ip").args(words.split_whitespace()), "")?;
    for port in [a, b] {
        port.namespace.run(|| offload::switch(&port.name, offload::LEFT_TO_CARDS, false))??;
        // All of one end in one process: `ip` is the slowest thing here.
        let mut batch = String::new();
        for address in &port.addresses {
            batch += &add_address(&port.name, address);
            batch.push('\n');
        }
        batch += &format!("link set {} up\n", port.name);
        run(Command::new("ip").args(["-n", port.namespace.name(), "-batch", "-"]), &batch)?;
    }
    for port in [a, b] {
        port.namespace.wait_up(&port.name)?;
    }
    Ok((a.namespace.interface(&a.name)?, b.namespace.interface(&b.name)?))
}

/// Removes namespaces of processes that are gone, and returns their names. The pid may have been given to another
/// process since: then the leftover stays until that one has ended too.
pub fn sweep() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(NAMESPACES) else { return Vec::new() };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            unmount(&name);
            removed.push(name);
        }
    }
    removed
}

/// Takes the name away; the namespace ends with its last process and socket.
fn unmount(name: &str) {
    let path = PathBuf::from(NAMESPACES).join(name);
    // Both fail only when somebody else has removed it already.
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_file(&path);
}

/// Runs a command to its end with `input`; its words and its stderr are the error.
fn run(command: &mut Command, input: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let words = || {
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        format!("{program} {}", args.join(" "))
    };
    let words = words();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program} (Debian has it in iproute2)"))?;
    // A child that ended early is reported by its status, not by the broken pipe.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("running {words}"))?;
    if !output.status.success() {
        let input = if input.is_empty() { String::new() } else { format!(" ({})", input.trim().replace('\n', "; ")) };
        bail!("{words}{input}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn sysctl(key: &str, value: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/net/{key}"), value).with_context(|| format!("setting net/{key} to {value}"))
}

fn add_address(name: &str, address: &IpNet) -> String {
    let nodad = if matches!(address.addr(), IpAddr::V6(_)) { " nodad" } else { "" };
    format!("address add {address} dev {name}{nodad}")
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

struct Link {
    index: u32,
    flags: InterfaceFlags,
    mac: [u8; 6],
}

/// The interface in the namespace of the calling thread.
fn link_of(name: &str) -> io::Result<Option<Link>> {
    for entry in nix::ifaddrs::getifaddrs()? {
        let Some(link) = entry.address.as_ref().and_then(|address| address.as_link_addr()) else { continue };
        if entry.interface_name == name {
            let index = link.ifindex() as u32;
            return Ok(Some(Link { index, flags: entry.flags, mac: link.addr().unwrap_or_default() }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::build::Packet;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    const SOON: Duration = Duration::from_secs(3);

    #[test]
    fn tcp_and_udp_cross_a_link_in_both_families() {
        let (left, right) = (Namespace::new("left").unwrap(), Namespace::new("right").unwrap());
        connect(
            &left.port("eth0").address("192.0.2.1/24").address("2001:db8::1/64"),
            &right.port("eth0").address("192.0.2.2/24").address("2001:db8::2/64").mac([2, 0, 0, 0, 0, 9]),
        )
        .unwrap();
        assert_eq!(right.interface("eth0").unwrap().mac, [2, 0, 0, 0, 0, 9]);
        for address in ["192.0.2.2:80", "[2001:db8::2]:80"] {
            let listener = right.run(|| TcpListener::bind(address)).unwrap().unwrap();
            let server = right.spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap()).unwrap();
            let text = left
                .run(|| {
                    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), SOON).unwrap();
                    let mut text = String::new();
                    stream.read_to_string(&mut text).map(|_| text)
                })
                .unwrap();
            assert_eq!(text.unwrap(), "hello");
            server.join().unwrap().unwrap();
        }
        let output = left.command("ping").unwrap().args(["-c1", "-W2", "192.0.2.2"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn frames_arrive_whole_with_their_tags() {
        let (left, right) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
        connect(&left.port("eth0").address("192.0.2.1/24"), &right.port("eth0").address("192.0.2.2/24")).unwrap();
        let sender = FrameSocket::open(&left, "eth0").unwrap();
        let receiver = FrameSocket::open(&right, "eth0").unwrap();
        let plain = Packet::new().between("198.51.100.1", "192.0.2.2").udp(7, 9).payload(b"raw");
        for packet in [plain.clone(), plain.clone().vlan(7), plain.clone().vlan(100).vlan(7)] {
            let frame = packet.build();
            sender.send(&frame).unwrap();
            let got = receiver.receive(SOON, |got| got.bytes == frame).unwrap();
            assert!(got.is_some(), "{frame:02x?} did not arrive as it was sent");
        }
        assert!(receiver.receive(Duration::from_millis(20), |got| got.bytes.len() == 9999).unwrap().is_none());

        // What the stack itself sends is whole too: no checksum left to a device.
        left.ip("neighbour replace 192.0.2.2 lladdr 02:00:00:00:00:77 dev eth0").unwrap();
        left.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"marker", "192.0.2.2:5000").unwrap()).unwrap();
        let got = receiver.receive(SOON, |got| got.bytes.ends_with(b"marker")).unwrap().expect("it arrives");
        let ip = &got.bytes[14..];
        let again = Packet::new()
            .between("192.0.2.1", "192.0.2.2")
            .udp(u16::from_be_bytes([ip[20], ip[21]]), 5000)
            .payload(b"marker")
            .build();
        assert_eq!(ip[26..28], again[40..42], "UDP checksum");
    }

    #[test]
    fn the_caller_stays_where_it_is_and_nothing_is_left() {
        let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let name = {
            let namespace = Namespace::new("gone").unwrap();
            let inside = namespace.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
            assert_ne!(before, inside);
            namespace.name().to_owned()
        };
        assert_eq!(before, std::fs::read_link("/proc/thread-self/ns/net").unwrap());
        assert!(!PathBuf::from(NAMESPACES).join(&name).exists());
    }

    #[test]
    fn sweeping_removes_only_what_the_dead_left() {
        let mine = Namespace::new("alive").unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        let dead = format!("{PREFIX}{}-0-dead", child.id());
        child.wait().unwrap();
        run(Command::new("ip").args(["netns", "add", &dead]), "").unwrap();
        assert!(sweep().contains(&dead));
        assert!(!PathBuf::from(NAMESPACES).join(&dead).exists());
        assert!(PathBuf::from(NAMESPACES).join(mine.name()).exists());
    }

    #[test]
    fn a_process_ends_with_its_owner() {
        let namespace = Namespace::new("proc").unwrap();
        let pid = {
            let process = Process::start(namespace.command("sleep").unwrap().arg("60")).unwrap();
            process.id()
        };
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
        let mut process =
            Process::start(namespace.command("sh").unwrap().args(["-c", "echo out; echo err >&2; exit 3"])).unwrap();
        let status = process.wait(SOON).unwrap().expect("ended");
        assert_eq!((status.code(), process.output().as_str()), (Some(3), "out\nerr\n"));
        assert!(Namespace::new("proc").unwrap().ip("link set nosuch up").unwrap_err().to_string().contains("nosuch"));
    }
}
