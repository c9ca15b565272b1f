//! Facts about a connection that its packets do not tell: which process has the socket.
//!
//! The kernel is asked by addresses and ports (sock_diag), never by the task that happened to run when a packet was
//! seen: that is often another one. It is asked only when an alert is made, and not too often; who was not found is
//! left out. Going through the open files of all processes is another thread's work, for which nobody has to wait: who
//! asks may come back for the answer.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, TCP_LISTEN};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

use crate::supervise::Supervisor;

/// Processes are looked for so often in a second: each time all open files of the host are gone through.
const SCANS_PER_SECOND: u32 = 5;
/// A search begins if those before took at most this part of the time, and this much more: where there are many files
/// one takes long, and who asks has other things to do.
const SCANS_PART: u32 = 10;
const SCANS_TIME: Duration = Duration::from_millis(100);
/// Files that one search looks at.
const FILES_MAX: usize = 200_000;
/// Searches that wait for the one under way.
const SEARCHES_MAX: usize = 64;
/// How long an answer is waited for: going through the open files of a busy host takes a tenth of a second.
pub const SEARCH_FOR: Duration = Duration::from_secs(1);
/// Sockets whose process is remembered, and for how long: a socket may be handed on.
const KNOWN_MAX: usize = 4096;
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// Bytes of a command line that are kept.
const COMMAND_MAX: usize = 256;
/// The kernel answers with one message of a few hundred bytes.
const ANSWER_BYTES: usize = 8192;

/// Who has a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id in this agent's pid namespace.
    pub pid: u32,
    /// Its command line, arguments apart by spaces; its name when it has none.
    pub command: String,
    /// The user that owns the socket.
    pub uid: u32,
}

/// What another thread is asked for.
pub struct Search {
    inode: u32,
    uid: u32,
    answer: Sender<Answer>,
}

impl Search {
    /// Goes through the open files of all processes, and answers.
    fn run(self) {
        let begun = Instant::now();
        let process = owner_of(self.inode, self.uid);
        self.answer(process, begun.elapsed());
    }

    /// Answers; `took` is what the search cost.
    pub fn answer(self, process: Option<Process>, took: Duration) {
        // Who asked may have given up.
        let _ = self.answer.send(Answer { process, took });
    }
}

struct Answer {
    process: Option<Process>,
    took: Duration,
}

/// What is known about the process of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is this one, or nobody's of this host.
    Known(Option<Process>),
    /// It is being looked for; [`Processes::answer`] says what comes of it.
    Asked(Ticket),
    /// It is somebody's, and was not looked for: there were too many searches.
    TooMany,
}

/// Stands for a search that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    inode: u32,
}

/// What became of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is no answer yet.
    Open,
    /// It was found, or nobody was.
    Done(Option<Process>),
    /// It took too long.
    Late,
}

/// The thread that goes through open files. It may see processes that the threads which ask may not see any more
/// (`system::harden`). Clones are the same thread, which ends with the last of them.
#[derive(Clone)]
pub struct Scanner {
    searches: Sender<Search>,
}

impl Scanner {
    /// Starts the thread. `prepare` is the first that it does; what comes of it is returned, and searches are served in any
    /// case.
    ///
    /// # Errors
    /// There is no room for another thread, or `prepare` panics.
    pub fn start<T: Send + 'static>(
        supervisor: &Supervisor,
        prepare: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<(Scanner, T)> {
        let (searches, queue): (_, Receiver<Search>) = bounded(SEARCHES_MAX);
        let (prepared, outcome) = bounded(1);
        supervisor.spawn("proc-scan", move |_| {
            // It has room, and who waits for it does so until it is there.
            let _ = prepared.send(prepare());
            queue.into_iter().for_each(Search::run);
            Ok(())
        })?;
        let outcome = outcome.recv().map_err(std::io::Error::other)?;
        Ok((Scanner { searches }, outcome))
    }

    /// A scanner without a thread, and what it is asked for: for tests.
    #[cfg(test)]
    pub fn manual() -> (Scanner, Receiver<Search>) {
        let (searches, queue) = bounded(SEARCHES_MAX);
        (Scanner { searches }, queue)
    }

    /// Where the answer comes; `None` if there are too many questions.
    fn ask(&self, inode: u32, uid: u32) -> Option<Receiver<Answer>> {
        let (answer, answered) = bounded(1);
        self.searches.try_send(Search { inode, uid, answer }).ok()?;
        Some(answered)
    }
}

/// Finds the processes of sockets.
pub struct Processes {
    socket: Socket,
    /// To ask which addresses are this host's.
    routes: Socket,
    scanner: Scanner,
    known: HashMap<u32, (Instant, Option<Process>)>,
    /// Searches under way, and since when.
    asked: HashMap<u32, (Instant, Receiver<Answer>)>,
    scans_left: u32,
    /// What searches took beyond their part of the time.
    spent: Duration,
    refilled: Instant,
}

impl Processes {
    /// Connects to the kernel.
    pub fn open(scanner: Scanner, now: Instant) -> std::io::Result<Processes> {
        Ok(Processes {
            socket: netlink(NETLINK_SOCK_DIAG)?,
            routes: netlink(NETLINK_ROUTE)?,
            scanner,
            known: HashMap::new(),
            asked: HashMap::new(),
            scans_left: SCANS_PER_SECOND,
            spent: Duration::ZERO,
            refilled: now,
        })
    }

    /// The process of this host that has an end of a flow of TCP (6) or UDP (17), if one has. May wait for
    /// [`SEARCH_FOR`].
    pub fn of_flow(&mut self, protocol: u8, ends: [SocketAddr; 2], now: Instant) -> Option<Process> {
        let [first, second] = ends;
        let socket = self.connected(protocol, first, second).or_else(|| self.connected(protocol, second, first));
        match self.search(socket, now) {
            Found::Known(process) => process,
            Found::TooMany => None,
            Found::Asked(Ticket { inode }) => {
                let (since, answered) = self.asked.remove(&inode)?;
                match answered.recv_timeout(SEARCH_FOR) {
                    Ok(answer) => self.learn(inode, answer, now),
                    Err(_) => {
                        self.spent += since.elapsed();
                        None
                    }
                }
            }
        }
    }

    /// The process that sent a packet from one address to another, or is to get it, without waiting. When a packet is
    /// seen its connection need not be there: at the first of TCP, and never where a server speaks UDP.
    pub fn of_packet(&mut self, protocol: u8, [from, to]: [SocketAddr; 2], now: Instant) -> Found {
        let socket = self.connected(protocol, from, to).or_else(|| self.taking(protocol, to, from));
        self.search(socket, now)
    }

    /// The process that has a socket, by its inode and user.
    fn search(&mut self, socket: Option<(u32, u32)>, now: Instant) -> Found {
        let Some((inode, uid)) = socket else { return Found::Known(None) };
        if let Some((when, process)) = self.known.get(&inode)
            && now.duration_since(*when) < KNOWN_FOR
        {
            return Found::Known(process.clone());
        }
        // Those for which nobody came back.
        let spent = &mut self.spent;
        self.asked.retain(|_, (since, _)| {
            let is_open = now.duration_since(*since) < SEARCH_FOR;
            *spent += if is_open { Duration::ZERO } else { SEARCH_FOR };
            is_open
        });
        if self.asked.contains_key(&inode) {
            return Found::Asked(Ticket { inode });
        }
        let passed = now.duration_since(self.refilled);
        if passed >= Duration::from_secs(1) {
            (self.scans_left, self.refilled) = (SCANS_PER_SECOND, now);
            self.spent = self.spent.saturating_sub(passed / SCANS_PART);
        }
        if self.spent > SCANS_TIME || self.scans_left == 0 {
            return Found::TooMany;
        }
        let Some(answered) = self.scanner.ask(inode, uid) else { return Found::TooMany };
        self.scans_left -= 1;
        self.asked.insert(inode, (now, answered));
        Found::Asked(Ticket { inode })
    }

    /// As if searches had taken so long: for tests.
    #[cfg(test)]
    pub fn spend(&mut self, time: Duration) {
        self.spent += time;
    }

    /// What became of a search, however often it is asked for.
    pub fn answer(&mut self, ticket: Ticket, now: Instant) -> Outcome {
        let Some((since, answered)) = self.asked.get(&ticket.inode) else {
            return match self.known.get(&ticket.inode) {
                Some((_, process)) => Outcome::Done(process.clone()),
                None => Outcome::Late,
            };
        };
        let waited = now.duration_since(*since);
        let answer = answered.try_recv();
        if answer.is_err() && waited < SEARCH_FOR {
            return Outcome::Open;
        }
        self.asked.remove(&ticket.inode);
        match answer {
            Ok(answer) => Outcome::Done(self.learn(ticket.inode, answer, now)),
            Err(_) => {
                self.spent += waited;
                Outcome::Late
            }
        }
    }

    fn learn(&mut self, inode: u32, Answer { process, took }: Answer, now: Instant) -> Option<Process> {
        self.spent += took;
        if self.known.len() >= KNOWN_MAX {
            self.known.retain(|_, (when, _)| now.duration_since(*when) < KNOWN_FOR);
        }
        if self.known.len() < KNOWN_MAX {
            self.known.insert(inode, (now, process.clone()));
        }
        process
    }

    /// What the kernel says is at `local` for packets from `remote`.
    fn socket_at(&mut self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Option<InetResponseHeader> {
        let (ip_protocol, source, destination) = match u32::from(protocol) {
            tcp if tcp == u32::from(IPPROTO_TCP) => (IPPROTO_TCP, local, remote),
            // The kernel takes the ends of UDP the other way round (net/ipv4/udp_diag.c).
            udp if udp == u32::from(IPPROTO_UDP) => (IPPROTO_UDP, remote, local),
            _ => return None,
        };
        let request = InetRequest {
            family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: ip_protocol,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: source.port(),
                destination_port: destination.port(),
                source_address: source.ip(),
                destination_address: destination.ip(),
                interface_id: 0,
                cookie: [0xff; 8],
            },
        };
        match ask(&self.socket, SockDiagMessage::InetRequest(request))? {
            SockDiagMessage::InetResponse(found) => Some(found.header),
            _ => None,
        }
    }

    /// Inode and user of the connected socket between two addresses, seen from `local`.
    fn connected(&mut self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Option<(u32, u32)> {
        let found = self.socket_at(protocol, local, remote)?;
        // Where no connection is, the kernel names the listener.
        (is_between(&found, local, remote) && found.inode != 0).then_some((found.inode, found.uid))
    }

    /// The same of the socket that takes what `remote` sends to `local`: the connected one, or where there is none (yet)
    /// the listener of TCP, or the UDP socket that speaks with everybody.
    fn taking(&mut self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Option<(u32, u32)> {
        let mut found = self.socket_at(protocol, local, remote)?;
        if is_between(&found, local, remote) {
            if found.inode != 0 {
                return Some((found.inode, found.uid));
            }
            // A handshake that is not over, or a connection that is: nobody has it, but somebody listens.
            found = self.socket_at(protocol, local, SocketAddr::new(remote.ip(), 0))?;
        }
        let SocketId { source_port, destination_port, .. } = found.socket_id;
        let is_tcp = u32::from(protocol) == u32::from(IPPROTO_TCP);
        let is_open = [source_port, destination_port] == [local.port(), 0] && (!is_tcp || found.state == TCP_LISTEN);
        // One that is bound to every address is not meant where the packet goes through this host, or out of it.
        (is_open && found.inode != 0 && self.is_of_host(local.ip())).then_some((found.inode, found.uid))
    }

    /// Whether packets to this address end in this host.
    fn is_of_host(&mut self, address: IpAddr) -> bool {
        let mut message = RouteMessage::default();
        let (family, bits) = if address.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
        (message.header.address_family, message.header.destination_prefix_length) = (family, bits);
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let answer = ask(&self.routes, RouteNetlinkMessage::GetRoute(message));
        matches!(answer, Some(RouteNetlinkMessage::NewRoute(route)) if route.header.kind == RouteType::Local)
    }
}

/// Asks the kernel, which answers at once, with one message.
fn ask<M>(socket: &Socket, question: M) -> Option<M>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).ok()?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut answer, 0).ok()?;
    match NetlinkMessage::<M>::deserialize(&answer).ok()?.payload {
        NetlinkPayload::InnerMessage(answer) => Some(answer),
        _ => None,
    }
}

/// A socket of the kernel without blocking.
fn netlink(protocol: isize) -> std::io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Whether it is the connection itself.
fn is_between(found: &InetResponseHeader, local: SocketAddr, remote: SocketAddr) -> bool {
    let id = &found.socket_id;
    [id.source_port, id.destination_port] == [local.port(), remote.port()] && same(id.destination_address, remote.ip())
}

/// Whether two addresses are one, IPv4 also as IPv6 sockets write it.
fn same(one: IpAddr, other: IpAddr) -> bool {
    one.to_canonical() == other.to_canonical()
}

/// Goes through the open files of all processes.
fn owner_of(inode: u32, uid: u32) -> Option<Process> {
    let wanted = format!("socket:[{inode}]");
    let mut files = 0;
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Those of other users, or that ended meanwhile, cannot be read.
        let Ok(open) = fs::read_dir(entry.path().join("fd")) else { continue };
        for file in open.flatten() {
            files += 1;
            if files > FILES_MAX {
                return None;
            }
            if fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
                return Some(Process { pid, command: command_of(pid), uid });
            }
        }
    }
    None
}

fn command_of(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = if line.is_empty() { fs::read(format!("/proc/{pid}/comm")).unwrap_or_default() } else { line };
    let words: Vec<u8> = line.into_iter().take(COMMAND_MAX).map(|byte| if byte == 0 { b' ' } else { byte }).collect();
    String::from_utf8_lossy(&words).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn this_process_has_its_connections() {
        let now = Instant::now();
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (scanner, ()) = Scanner::start(&supervisor, || ()).unwrap();
        let mut processes = Processes::open(scanner, now).unwrap();
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (_server, _) = listener.accept().unwrap();
            let ends = [client.local_addr().unwrap(), client.peer_addr().unwrap()];
            let found = processes.of_flow(6, ends, now).unwrap_or_else(|| panic!("{ends:?}"));
            assert_eq!(found.pid, std::process::id());
            assert!(found.command.contains("ebpfsentinel"), "{found:?}");
            // Nobody has this one, although somebody listens.
            let stranger = SocketAddr::new(ends[0].ip(), 1);
            assert_eq!(processes.of_flow(6, [stranger, ends[1]], now), None);

            let (one, other) = (UdpSocket::bind(host).unwrap(), UdpSocket::bind(host).unwrap());
            one.connect(other.local_addr().unwrap()).unwrap();
            let ends = [one.local_addr().unwrap(), other.local_addr().unwrap()];
            assert_eq!(processes.of_flow(17, ends, now).map(|found| found.pid), Some(std::process::id()));
        }
        assert_eq!(processes.of_flow(1, ["127.0.0.1:1".parse().unwrap(); 2], now), None);
    }

    #[test]
    fn a_packet_is_its_listeners_while_there_is_no_connection() {
        // There are only so many searches in a second.
        let mut now = Instant::now();
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (scanner, ()) = Scanner::start(&supervisor, || ()).unwrap();
        let mut processes = Processes::open(scanner, now).unwrap();
        let mut of_packet = |protocol, from: &str, to: SocketAddr| {
            now += Duration::from_secs(1);
            let found = match processes.of_packet(protocol, [from.parse().unwrap(), to], now) {
                Found::Asked(ticket) => loop {
                    match processes.answer(ticket, now) {
                        Outcome::Open => std::thread::sleep(Duration::from_millis(1)),
                        Outcome::Done(process) => break process,
                        Outcome::Late => panic!("this moment lasts"),
                    }
                },
                Found::Known(process) => process,
                Found::TooMany => panic!("not so many"),
            };
            found.map(|process| process.pid)
        };
        let this = Some(std::process::id());
        // Bound to one address, and to all of them, of both families.
        for (bound, to, stranger, beyond) in [
            ("127.0.0.1:0", "127.0.0.1", "192.0.2.7:4000", "192.0.2.9"),
            ("[::1]:0", "::1", "[2001:db8::7]:4000", "2001:db8::9"),
            ("[::]:0", "127.0.0.1", "192.0.2.7:4000", "192.0.2.9"),
            ("[::]:0", "::1", "[2001:db8::7]:4000", "2001:db8::9"),
        ] {
            let (listener, server) = (TcpListener::bind(bound).unwrap(), UdpSocket::bind(bound).unwrap());
            let (tcp, udp) = (listener.local_addr().unwrap().port(), server.local_addr().unwrap().port());
            let (to, beyond): (IpAddr, IpAddr) = (to.parse().unwrap(), beyond.parse().unwrap());
            let at = |port| SocketAddr::new(to, port);
            assert_eq!(of_packet(6, stranger, at(tcp)), this, "{bound} {to}");
            assert_eq!(of_packet(17, stranger, at(udp)), this, "{bound} {to}");
            // Through this host to another, or out of it, where somebody may have the same port.
            assert_eq!(of_packet(6, stranger, SocketAddr::new(beyond, tcp)), None, "{bound} {beyond}");
            assert_eq!(of_packet(17, stranger, SocketAddr::new(beyond, udp)), None, "{bound} {beyond}");
            // And back from it: that a server has its source's port says nothing.
            assert_eq!(of_packet(6, &at(tcp).to_string(), stranger.parse().unwrap()), None, "{bound} {to}");
            drop((listener, server));
            assert_eq!(of_packet(6, stranger, at(tcp)), None, "{bound} {to}");
            assert_eq!(of_packet(17, stranger, at(udp)), None, "{bound} {to}");
        }
        // A connection that is over (TIME_WAIT) is nobody's any more.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let client = TcpStream::connect(to).unwrap();
        let from = client.local_addr().unwrap().to_string();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(of_packet(6, &from, to), this);
        drop(server);
        drop(client);
        assert_eq!(of_packet(6, &from, to), this, "it is the listener's");
    }
}
