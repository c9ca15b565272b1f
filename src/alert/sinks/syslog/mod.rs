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

/// What is wrong with a peer for which a time was over.
const SLOW: &str = "the receiver does not take what is sent";
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
    Tcp(Bounded),
    Tls(Box<StreamOwned<ClientConnection, Bounded>>),
}

/// A stream of which all reads and writes together end at a time. A time-out of the socket is for each of them, and a
/// peer that takes a byte now and then never lets it pass.
struct Bounded {
    stream: TcpStream,
    until: Instant,
}

impl Bounded {
    /// The time that is left for the next call.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::new(io::ErrorKind::TimedOut, SLOW)) } else { Ok(Some(left)) }
    }
}

impl Read for Bounded {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(bytes)
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl SyslogSink {
    /// A sink; connects when there is something to send. `message_max` is in bytes.
    pub fn new(target: Target, header: Header, format: Format, message_max: usize) -> Result<SyslogSink, String> {
        let tls = (target.transport == Transport::Tls).then(|| tls_config(&target)).transpose()?;
        Ok(SyslogSink { target, header, format, message_max, tls, link: None })
    }

    /// The link, which is there when this returns without an error.
    fn connect(&mut self) -> io::Result<&mut Link> {
        if let Some(bounded) = self.link.as_mut().and_then(Link::bounded) {
            bounded.until = Instant::now() + self.target.timeout;
        }
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
        let addresses: Vec<SocketAddr> = (self.target.host.as_str(), self.target.port).to_socket_addrs()?.collect();
        let until = Instant::now() + self.target.timeout;
        for (tried, address) in addresses.iter().enumerate() {
            // One that does not answer leaves their part of the time to the others.
            let left = until.saturating_duration_since(Instant::now()) / (addresses.len() - tried) as u32;
            match self.open_to(*address, left.max(LOOK)) {
                Ok(link) => return Ok(link),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn open_to(&self, address: SocketAddr, timeout: Duration) -> io::Result<Link> {
        if self.target.transport == Transport::Udp {
            let any: IpAddr =
                if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_write_timeout(Some(timeout))?;
            socket.connect(address)?;
            return Ok(Link::Udp(socket));
        }
        let until = Instant::now() + timeout;
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        let stream = Bounded { stream, until };
        let Some(tls) = &self.tls else { return Ok(Link::Tcp(stream)) };
        let name = ServerName::try_from(self.target.host.clone()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(tls.clone(), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
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
        let deadline = Instant::now() + timeout;
        if let Link::Udp(socket) = self {
            for (sent, message) in messages.iter().enumerate() {
                if Instant::now() >= deadline {
                    return Err((sent, io::Error::new(io::ErrorKind::TimedOut, SLOW)));
                }
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
        if let Some(bounded) = self.bounded() {
            bounded.until = deadline;
        }
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
            Link::Tcp(stream) => Some(&stream.stream),
            Link::Tls(stream) => Some(&stream.sock.stream),
        }
    }

    fn bounded(&mut self) -> Option<&mut Bounded> {
        match self {
            Link::Udp(_) => None,
            Link::Tcp(stream) => Some(stream),
            Link::Tls(stream) => Some(&mut stream.sock),
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
                return Err(io::Error::new(io::ErrorKind::TimedOut, SLOW));
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::alert::{Alert, Severity};
    use crate::component::Component;

    /// A receiver that takes a little now and then, so that no single write takes long.
    #[test]
    fn a_receiver_that_takes_a_little_now_and_then_does_not_hold_a_batch_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let size: libc::c_int = 8 << 10;
        // SAFETY: the option is an int, and the descriptor is open as long as `listener` lives.
        let set = unsafe {
            let (value, length) = (std::ptr::from_ref(&size).cast(), size_of::<libc::c_int>() as libc::socklen_t);
            libc::setsockopt(listener.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, value, length)
        };
        assert_eq!(set, 0);
        let target = Target {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
            transport: Transport::Tcp,
            ca_file: None,
            timeout: Duration::from_secs(1),
        };
        let (over, is_over) = crossbeam_channel::bounded::<()>(1);
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut little = [0; 1024];
            // 20 KiB a second, and 16 MB are sent: ten minutes and more.
            while is_over.recv_timeout(Duration::from_millis(50)).is_err_and(|error| error.is_timeout()) {
                if stream.read(&mut little).is_ok_and(|read| read == 0) {
                    break;
                }
            }
        });
        let (result, delivered) = crossbeam_channel::bounded(1);
        std::thread::spawn(move || {
            let header = Header::new(16, "host", 1);
            let mut sink = SyslogSink::new(target, header, Format::Rfc5424, 65_000).unwrap();
            let text = "x".repeat(16_000);
            let alert = Arc::new(Alert::new(Component::L7, Severity::High, "r", "log", 1, text));
            let batch: Vec<Notice> = (0..1024).map(|_| Notice::new(alert.clone())).collect();
            let _ = result.send(sink.deliver(&batch));
        });
        let failure = delivered.recv_timeout(Duration::from_secs(120)).expect("the batch is held").unwrap_err();
        assert!(failure.delivered == 0 && failure.kind == FailureKind::Retry(None), "{failure:?}");
        drop(over);
        receiver.join().unwrap();
    }
}
