//! Syslog: RFC 5424 over UDP (RFC 5426), TCP (RFC 6587, octet counting) and TLS (RFC 5425), with structured data or CEF.
//!
//! Syslog has no answer, so what a receiver had taken into its memory when it died is lost to it. What can be known is:
//! over TCP and TLS a batch counts as delivered when the peer's kernel has acknowledged its last byte, and a connection
//! that the peer has closed is noticed before the next batch. UDP tells no more than that nobody listens.

mod message;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::{Deliver, Failure, FailureKind, Notice};
use crate::outbound::{plain, trusted};

pub use message::{Format, Header};

/// How often the kernel is asked whether the peer has everything.
const LOOK: Duration = Duration::from_millis(2);

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams: one message each, no news of those that are lost.
    Udp,
    /// A stream.
    Tcp,
    /// A stream that is encrypted and verified.
    Tls,
}

/// Where messages go.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How.
    pub transport: Transport,
    /// Certificates that are trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// For connecting, and then for a batch.
    pub timeout: Duration,
}

/// Sends alerts to a syslog receiver.
pub struct SyslogSink {
    target: Target,
    header: Header,
    format: Format,
    message_max: usize,
    tls: Option<Arc<ClientConfig>>,
    link: Option<Link>,
}

enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl SyslogSink {
    /// A sink; connects when there is something to send. `message_max` is in bytes.
    pub fn new(target: Target, header: Header, format: Format, message_max: usize) -> Result<SyslogSink, String> {
        let tls = (target.transport == Transport::Tls).then(|| tls_config(&target)).transpose()?;
        Ok(SyslogSink { target, header, format, message_max, tls, link: None })
    }

    /// The link, which is there when this returns without an error.
    fn connect(&mut self) -> io::Result<&mut Link> {
        if self.link.as_mut().is_some_and(Link::has_ended) {
            self.link = None;
        }
        let link = match self.link.take() {
            Some(link) => link,
            None => self.open()?,
        };
        Ok(self.link.insert(link))
    }

    fn open(&self) -> io::Result<Link> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        for address in (self.target.host.as_str(), self.target.port).to_socket_addrs()? {
            match self.open_to(address) {
                Ok(link) => return Ok(link),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn open_to(&self, address: SocketAddr) -> io::Result<Link> {
        if self.target.transport == Transport::Udp {
            let any: IpAddr =
                if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_write_timeout(Some(self.target.timeout))?;
            socket.connect(address)?;
            return Ok(Link::Udp(socket));
        }
        let stream = TcpStream::connect_timeout(&address, self.target.timeout)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(self.target.timeout))?;
        stream.set_read_timeout(Some(self.target.timeout))?;
        let Some(tls) = &self.tls else { return Ok(Link::Tcp(stream)) };
        let name = ServerName::try_from(self.target.host.clone()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        let deadline = Instant::now() + self.target.timeout;
        while stream.conn.is_handshaking() {
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake takes too long"));
            }
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Link::Tls(Box::new(stream)))
    }
}

impl Deliver for SyslogSink {
    fn deliver(&mut self, batch: &[Notice]) -> Result<(), Failure> {
        let messages: Vec<Vec<u8>> =
            batch.iter().map(|notice| message::of(notice, &self.header, self.format, self.message_max)).collect();
        let (host, port, timeout) = (self.target.host.clone(), self.target.port, self.target.timeout);
        let result = match self.connect() {
            Ok(link) => link.send(&messages, timeout),
            Err(error) => Err((0, error)),
        };
        result.map_err(|(delivered, error)| {
            self.link = None;
            let message = format!("{host} port {port}: {}", plain(&error));
            Failure { delivered, kind: FailureKind::Retry(None), message }
        })
    }
}

impl Link {
    /// Sends all. The error says how many surely arrived.
    fn send(&mut self, messages: &[Vec<u8>], timeout: Duration) -> Result<(), (usize, io::Error)> {
        if let Link::Udp(socket) = self {
            for (sent, message) in messages.iter().enumerate() {
                let result = socket.send(message).and_then(|_| socket.take_error()).and_then(|late| match late {
                    Some(error) => Err(error),
                    None => Ok(()),
                });
                result.map_err(|error| (sent, error))?;
            }
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(messages.iter().map(|message| message.len() + 8).sum());
        for message in messages {
            bytes.extend_from_slice(format!("{} ", message.len()).as_bytes());
            bytes.extend_from_slice(message);
        }
        let deadline = Instant::now() + timeout;
        let written = match self {
            Link::Tcp(stream) => stream.write_all(&bytes),
            Link::Tls(stream) => stream.write_all(&bytes).and_then(|()| stream.flush()),
            Link::Udp(_) => Ok(()),
        };
        written.and_then(|()| self.wait_until_taken(deadline)).map_err(|error| (0, error))
    }

    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Link::Udp(_) => None,
            Link::Tcp(stream) => Some(stream),
            Link::Tls(stream) => Some(&stream.sock),
        }
    }

    /// Waits until the peer's kernel has acknowledged every byte.
    fn wait_until_taken(&self, deadline: Instant) -> io::Result<()> {
        let Some(socket) = self.socket() else { return Ok(()) };
        loop {
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
            let mut left: libc::c_int = 0;
            // SAFETY: TIOCOUTQ writes one int to the pointer, and the descriptor is open as long as `socket` lives.
            if unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut left) } != 0 {
                return Err(io::Error::last_os_error());
            }
            if left == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the receiver does not take what is sent"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether the peer has closed the connection. What else it says is read and left.
    fn has_ended(&mut self) -> bool {
        let Some(socket) = self.socket() else { return false };
        if socket.set_nonblocking(true).is_err() {
            return true;
        }
        let mut scrap = [0; 512];
        let ended = loop {
            let read = match self {
                Link::Udp(_) => return false,
                Link::Tcp(stream) => stream.read(&mut scrap),
                Link::Tls(stream) => stream.read(&mut scrap),
            };
            match read {
                Ok(0) => break true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        let blocks_again = self.socket().is_some_and(|socket| socket.set_nonblocking(false).is_ok());
        ended || !blocks_again
    }
}

fn tls_config(target: &Target) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted(target.ca_file.as_deref())?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
