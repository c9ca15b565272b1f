//! What the agent stands on: namespaces, servers, and the traffic between them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::{LONG_PATIENCE, PATIENCE};
use crate::bpf::attach::Attached;
use crate::lab::{FrameSocket, Interface, Namespace, connect, mac_text};
use crate::packet::build::Packet;

pub(super) const HOST: &str = "192.0.2.10";
pub(super) const HOST_V6: &str = "2001:db8:1::10";
pub(super) const VISITOR: &str = "192.0.2.1";
pub(super) const VISITOR_V6: &str = "2001:db8:1::1";
pub(super) const ADMIN: &str = "10.20.5.7";
pub(super) const ADMIN_V6: &str = "2001:db8:20::7";
pub(super) const PARTNER: &str = "203.0.113.5";
/// Of addresses that nobody has, the first.
pub(super) const NOBODY: &str = "198.51.100.1";
pub(super) const NOBODY_V6: &str = "2001:db8:77::1";
pub(super) const FLOODER: &str = "203.0.113.66";
pub(super) const FLOODER_V6: &str = "2001:db8:66::66";
/// Neighbours that the world's kernel does not know: the demo itself speaks TCP for them.
pub(super) const SEGMENTS: &str = "192.0.2.77";
pub(super) const SEGMENTS_V6: &str = "2001:db8:1::77";
/// Where the host has asked something, so that datagrams pass as answers.
pub(super) const ASKING: u16 = 6000;
/// Where plain HTTP is served.
pub(super) const PAGES: u16 = 80;

/// What is sent.
pub(super) enum Traffic {
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

impl Traffic {
    pub(super) fn words(&self) -> String {
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

/// Namespaces, sockets and servers, without an agent.
pub(super) struct Scene {
    world_socket: FrameSocket,
    host_socket: FrameSocket,
    udp: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
    world_end: Interface,
    host_end: Interface,
    pub(super) world: Namespace,
    pub(super) host: Namespace,
    next_fragment_id: u32,
    /// SYNs are answered from the host's XDP.
    _taken: Attached,
}

impl Scene {
    pub(super) fn new() -> Result<Scene> {
        let (world, host) = (Namespace::new("world")?, Namespace::new("host")?);
        let neighbours = ["192.0.2.1/24", "2001:db8:1::1/64"].map(str::to_owned);
        let others = [ADMIN, PARTNER, FLOODER].map(|address| format!("{address}/32"));
        let others_v6 = [ADMIN_V6, FLOODER_V6].map(|address| format!("{address}/128"));
        let addresses = neighbours.iter().chain(&others).chain(&others_v6);
        let world_port = addresses.fold(world.port("eth0"), |port, address| port.address(address));
        let host_port = host.port("eth0").address("192.0.2.10/24").address("2001:db8:1::10/64");
        let (world_end, host_end) = connect(&world_port, &host_port)?;
        for route in ["10.20.0.0/16", "203.0.113.0/24", "2001:db8:20::/48", "2001:db8:66::/48"] {
            host.ip(&format!("route add {route} dev eth0"))?;
        }
        for neighbour in [SEGMENTS, SEGMENTS_V6] {
            host.ip(&format!("neighbour add {neighbour} lladdr {} dev eth0", mac_text(world_end.mac)))?;
        }
        // What is for them ends in the world, also where this machine is a router.
        world.sysctl("ipv4/ip_forward", "0")?;
        let taken = world.take_xdp_frames("eth0")?;
        host.sysctl("ipv4/tcp_syncookies", "2")?;
        host.sysctl("ipv4/tcp_timestamps", "2")?;
        let mut listeners = Vec::new();
        for port in [22, PAGES, 443, 8443, 873, 50007, 50100] {
            // Answers both families.
            listeners.push(host.run(|| TcpListener::bind(("::", port)))?.context("listening in the host")?);
        }
        listeners.push(world.run(|| TcpListener::bind(("::", 8000)))?.context("listening in the world")?);
        let mut udp = Vec::new();
        for port in [53, 443, ASKING] {
            let socket = host.run(|| UdpSocket::bind(("::", port)))?.context("listening in the host")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            udp.push(socket);
        }
        Ok(Scene {
            world_socket: FrameSocket::open(&world, "eth0")?,
            host_socket: FrameSocket::open(&host, "eth0")?,
            udp,
            listeners,
            world_end,
            host_end,
            world,
            host,
            next_fragment_id: 1,
            _taken: taken,
        })
    }

    pub(super) fn send(&mut self, traffic: &Traffic) -> Result<bool> {
        match traffic {
            Traffic::Tcp { from, to, port } => {
                self.world.run(|| connection(Some(from), to, *port, PATIENCE))?.map(|it| it.is_some())
            }
            Traffic::Out { to, port } => {
                self.host.run(|| connection(None, to, *port, PATIENCE))?.map(|it| it.is_some())
            }
            Traffic::Udp { from, to, port } => {
                let mark = format!("{from} {port}");
                let from = SocketAddr::new(from.parse()?, 0);
                let to = SocketAddr::new(to.parse()?, *port);
                self.world.run(|| UdpSocket::bind(from)?.send_to(mark.as_bytes(), to))??;
                let server = self.udp_server(*port)?;
                let mut buffer = [0; 64];
                // Datagrams of earlier steps may still lie there; the first error is the end of patience.
                while let Ok(length) = server.recv(&mut buffer) {
                    if buffer[..length] == *mark.as_bytes() {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Traffic::Raw(packet) => self.frames(vec![self.addressed(packet()).build()]),
            Traffic::Fragments(packet) => {
                self.next_fragment_id += 1;
                self.frames(self.addressed(packet()).fragments(self.next_fragment_id, 64))
            }
        }
    }

    /// The host's socket on a port.
    pub(super) fn udp_server(&self, port: u16) -> Result<&UdpSocket> {
        let server = self.udp.iter().find(|socket| socket.local_addr().is_ok_and(|at| at.port() == port));
        server.context("no server on this port")
    }

    /// A packet as it goes from the world to the host.
    pub(super) fn addressed(&self, packet: Packet) -> Packet {
        packet.mac(self.world_end.mac, self.host_end.mac)
    }

    /// Whether an HTTP request of `from` is answered.
    pub(super) fn fetches(&self, from: &str, to: &str) -> Result<bool> {
        let opened = self.world.run(|| connection(Some(from), to, PAGES, LONG_PATIENCE))??;
        let Some(client) = opened else { return Ok(false) };
        // What goes wrong on the way is no answer.
        Ok(exchange(client, self.listener(PAGES)?).unwrap_or(false))
    }

    /// The server's end of the connection to `port` that comes from the port `from`.
    pub(super) fn accepted(&self, port: u16, from: u16) -> Result<TcpStream> {
        accepted(self.listener(port)?, from).with_context(|| format!("accepting on port {port}"))
    }

    fn listener(&self, port: u16) -> Result<&TcpListener> {
        let server = self.listeners.iter().find(|listener| listener.local_addr().is_ok_and(|at| at.port() == port));
        server.context("no server on this port")
    }

    fn frames(&self, frames: Vec<Vec<u8>>) -> Result<bool> {
        for frame in &frames {
            self.world_socket.send(frame)?;
        }
        let count = self.host_socket.count(PATIENCE, frames.len(), |got| frames.contains(&got.bytes))?;
        Ok(count == frames.len())
    }
}

/// A TCP connection, if it comes about within `patience`, in the namespace of the calling thread.
pub(super) fn connection(from: Option<&str>, to: &str, port: u16, patience: Duration) -> Result<Option<TcpStream>> {
    let to: IpAddr = to.parse()?;
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = nix::sys::socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The time limit of sending is that of connecting, too.
    let limit = TimeVal::new(patience.as_secs() as i64, i64::from(patience.subsec_micros()));
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    if let Some(from) = from {
        let from = SocketAddr::new(from.parse()?, 0);
        nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    let connected =
        nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, port))).is_ok();
    Ok(connected.then(|| TcpStream::from(socket)))
}

/// A request and its answer, both ends by turns: what is sent waits in the kernel's buffers.
fn exchange(mut client: TcpStream, listener: &TcpListener) -> io::Result<bool> {
    client.set_read_timeout(Some(LONG_PATIENCE))?;
    client.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut server = accepted(listener, client.local_addr()?.port())?;
    server.set_read_timeout(Some(LONG_PATIENCE))?;
    let mut request = [0; 64];
    let length = server.read(&mut request)?;
    if !request[..length].starts_with(b"GET / ") {
        return Ok(false);
    }
    server.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello\n")?;
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.0 200"))
}

/// The server's end of the connection from `port`; those of earlier ones are passed over.
fn accepted(listener: &TcpListener, port: u16) -> io::Result<TcpStream> {
    let deadline = Instant::now() + LONG_PATIENCE;
    listener.set_nonblocking(true)?;
    while Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, peer)) if peer.port() == port => return Ok(stream),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
