//! What a client's bytes go through: TCP, TLS over TCP, or a Unix socket. None of them ever waits.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustls::{ServerConfig, ServerConnection};

use crate::control::tls::client_name;

/// Plaintext that waits inside of a TLS session to be sent: one record.
pub const SESSION_BYTES: usize = 16 << 10;

/// TLS records without a byte of ours in them, one after the other. A handshake with the longest chain of certificates
/// fits; who sends more wants to keep us busy.
const SILENT_BYTES_MAX: usize = 256 << 10;

/// A client's connection.
pub enum Transport {
    Tcp(TcpStream),
    Tls(Box<Tls>),
    Unix(UnixStream),
}

/// A TLS session on its connection.
pub struct Tls {
    tcp: TcpStream,
    session: ServerConnection,
    /// Bytes read since there was something for us in them.
    silent: usize,
    /// Whether anything has come.
    begun: bool,
    /// Whether what comes is no TLS, so that we speak plainly too.
    plain: bool,
    closing: bool,
}

/// The source of the error of [`Transport::read`] when a client speaks plain HTTP on a TLS port. It can be answered
/// plainly from there on.
#[derive(Debug, thiserror::Error)]
#[error("this is not TLS")]
pub struct NotTls;

impl Transport {
    /// TLS, of which nothing has been said yet.
    pub fn tls(tcp: TcpStream, config: Arc<ServerConfig>) -> io::Result<Transport> {
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(SESSION_BYTES));
        Ok(Transport::Tls(Box::new(Tls { tcp, session, silent: 0, begun: false, plain: false, closing: false })))
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let socket: &mut dyn Source = match self {
            Transport::Tcp(tcp) => tcp,
            Transport::Tls(tls) => &mut tls.tcp,
            Transport::Unix(unix) => unix,
        };
        socket.register(registry, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Bytes of ours that wait inside of it.
    pub fn held(&self) -> usize {
        match self {
            Transport::Tls(tls) if tls.session.wants_write() => SESSION_BYTES,
            _ => 0,
        }
    }

    /// Whether what is written now would not reach the client: TLS is still being agreed on.
    pub fn is_handshaking(&self) -> bool {
        matches!(self, Transport::Tls(tls) if !tls.plain && tls.session.is_handshaking())
    }

    /// The client's verified certificate, as [`client_name`] writes it.
    pub fn certificate(&self) -> Option<String> {
        let Transport::Tls(tls) = self else { return None };
        Some(client_name(tls.session.peer_certificates()?.first()?))
    }

    /// Says that nothing more comes. False when that could not be sent yet: call it again.
    pub fn finish(&mut self) -> io::Result<bool> {
        match self {
            Transport::Tcp(tcp) => tcp.shutdown(Shutdown::Write)?,
            Transport::Unix(unix) => unix.shutdown(Shutdown::Write)?,
            Transport::Tls(tls) => {
                if !tls.closing && !tls.plain {
                    tls.closing = true;
                    tls.session.send_close_notify();
                }
                tls.flush()?;
                if tls.session.wants_write() {
                    return Ok(false);
                }
                tls.tcp.shutdown(Shutdown::Write)?;
            }
        }
        Ok(true)
    }

    /// Reads what the client sends and drops it, unread by TLS.
    pub fn discard(&mut self, block: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Tls(tls) => tls.tcp.read(block),
            other => other.read(block),
        }
    }
}

impl Read for Transport {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(tcp) => tcp.read(block),
            Transport::Unix(unix) => unix.read(block),
            Transport::Tls(tls) => tls.read(block),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(tcp) => tcp.write(bytes),
            Transport::Unix(unix) => unix.write(bytes),
            Transport::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Transport::Tls(tls) => tls.flush(),
            _ => Ok(()),
        }
    }
}

impl Tls {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        if !self.begun {
            self.look_at_first_byte()?;
        }
        if self.plain {
            return self.tcp.read(block);
        }
        loop {
            self.flush()?;
            match self.session.reader().read(block) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // The client closed without saying so in TLS: that was all.
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                other => {
                    self.silent = 0;
                    return other;
                }
            }
            let n = self.session.read_tls(&mut self.tcp)?;
            self.silent += n;
            if let Err(e) = self.session.process_new_packets() {
                // The alert that says why. If it cannot go out now, the client is told nothing.
                let _ = self.flush();
                return Err(io::Error::new(ErrorKind::InvalidData, e));
            }
            if self.silent > SILENT_BYTES_MAX {
                return Err(io::Error::new(ErrorKind::InvalidData, "TLS records that hold nothing, without an end"));
            }
        }
    }

    /// A client that speaks plain HTTP here begins with a method's letter; TLS begins with 22.
    fn look_at_first_byte(&mut self) -> io::Result<()> {
        let mut first = [0];
        if self.tcp.peek(&mut first)? == 1 {
            self.begun = true;
            if first[0].is_ascii_uppercase() {
                self.plain = true;
                return Err(io::Error::new(ErrorKind::InvalidData, NotTls));
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.plain {
            return self.tcp.write(bytes);
        }
        self.flush()?;
        if self.session.wants_write() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = self.session.writer().write(bytes)?;
        self.flush()?;
        Ok(n)
    }

    /// Sends what the session has to send, as much as the socket takes.
    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.tcp) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
