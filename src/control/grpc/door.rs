//! Where clients come in: accepts, counts, begins TLS and HTTP/2, and closes what is silent or too many.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{self, Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::{Limits, Tls};
use crate::control::front::Peer;
use crate::control::tls;
use crate::metrics::Metrics;

/// With this a client begins HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// For those who begin something else.
const NOT_HTTP2: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\
    content-length: 33\r\n\r\nThis port speaks gRPC (HTTP/2).\r\n";
/// Until accepting is tried again after the lack of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listener, and who may come in.
pub struct Door {
    listener: TcpListener,
    room: Arc<Room>,
}

/// What those who come in share.
struct Room {
    tls: Option<Tls>,
    limits: Limits,
    metrics: Arc<Metrics>,
    inside: Mutex<Inside>,
}

/// The open connections, in the order in which they came.
#[derive(Default)]
struct Inside {
    guests: Vec<Guest>,
    /// How many have come.
    number: u64,
}

/// An open connection.
struct Guest {
    number: u64,
    /// Whose it is, by [`Peer::key`].
    key: u128,
    /// Ends it, for this reason, while it has not begun with HTTP/2.
    handshake: Option<oneshot::Sender<&'static str>>,
}

impl Room {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections of one client there may be, and how many of them that have not begun.
    fn of_one(&self, peer: Peer) -> (usize, usize) {
        let limits = &self.limits;
        if peer.is_here() {
            (limits.connections_loopback, limits.handshakes_loopback)
        } else {
            (limits.connections_per_address, limits.handshakes_per_address)
        }
    }

    /// Why the oldest connection that has not begun must give way to this client's, and of whom: there are too many.
    fn crowded(&self, peer: Peer) -> Option<(&'static str, Option<u128>)> {
        let (inside, key, (_, of_one)) = (self.inside(), peer.key(), self.of_one(peer));
        let handshakes = || inside.guests.iter().filter(|guest| guest.handshake.is_some());
        if handshakes().filter(|guest| guest.key == key).count() > of_one {
            return Some(("handshakes_of_address", Some(key)));
        }
        (handshakes().count() > self.limits.handshakes).then_some(("handshakes", None))
    }

    /// Ends the oldest connection that has not begun: of this client, or of any.
    fn end_handshake(&self, why: &'static str, of: Option<u128>) {
        let mut inside = self.inside();
        let oldest = inside
            .guests
            .iter_mut()
            .filter(|guest| of.is_none_or(|key| guest.key == key))
            .find_map(|guest| guest.handshake.take());
        if let Some(oldest) = oldest {
            // Its task has ended meanwhile, and counted why.
            let _ = oldest.send(why);
        }
    }
}

impl Door {
    pub fn new(listener: TcpListener, tls: Option<Tls>, limits: &Limits, metrics: &Arc<Metrics>) -> Door {
        let room = Room { tls, limits: limits.clone(), metrics: metrics.clone(), inside: Mutex::default() };
        Door { listener, room: Arc::new(room) }
    }

    /// Lets clients in until it is dropped.
    pub async fn open(self, connected: mpsc::Sender<io::Result<Connection>>) {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    log::warn!("grpc: accepting: {error}");
                    time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some((place, ended)) = Place::take(&self.room, peer) else {
                self.room.metrics.grpc_refused("connections");
                log::debug!("grpc: {peer} refused: too many connections");
                continue;
            };
            if self.room.crowded(Peer::net(peer)).is_some() {
                // What has come of the others is looked at first: one may have begun.
                tokio::task::yield_now().await;
            }
            while let Some((why, of)) = self.room.crowded(Peer::net(peer)) {
                self.room.end_handshake(why, of);
            }
            let connected = connected.clone();
            tokio::spawn(async move {
                let room = place.room.clone();
                let greeting = time::timeout(room.limits.handshake_timeout, greet(stream, peer, place));
                let refused = tokio::select! {
                    Ok(reason) = ended => Refused { reason, why: "others came, and it had not begun".to_owned() },
                    greeted = greeting => match greeted {
                        Ok(Ok(connection)) => return drop(connected.send(Ok(connection)).await),
                        Ok(Err(refused)) => refused,
                        Err(_) => Refused { reason: "handshake_timeout", why: "it took too long to begin".to_owned() },
                    },
                };
                room.metrics.grpc_refused(refused.reason);
                log::debug!("grpc: {peer} refused ({}): {}", refused.reason, refused.why);
            });
        }
    }
}

struct Refused {
    reason: &'static str,
    why: String,
}

/// TLS, where it is on, and the first words of HTTP/2.
async fn greet(stream: TcpStream, peer: SocketAddr, place: Place) -> Result<Connection, Refused> {
    let lost = |error: io::Error| Refused { reason: "client_gone", why: error.to_string() };
    stream.set_nodelay(true).map_err(lost)?;
    let mut certificate = None;
    let mut stream = match &place.room.tls {
        None => Stream::Plain(stream),
        Some(tls) => {
            let failed = |error: io::Error| Refused { reason: "tls", why: error.to_string() };
            let stream = TlsAcceptor::from(tls()).accept(stream).await.map_err(failed)?;
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            certificate = shown.map(|one| tls::client_name(one).into());
            Stream::Tls(Box::new(stream))
        }
    };
    let mut said = [0; PREFACE.len()];
    let mut length = 0;
    while length < said.len() {
        let n = stream.read(&mut said[length..]).await.map_err(lost)?;
        if n == 0 {
            return Err(lost(ErrorKind::UnexpectedEof.into()));
        }
        length += n;
        if said[..length] != PREFACE[..length] {
            // Best effort: most likely it is HTTP/1.
            let _ = stream.write_all(NOT_HTTP2).await;
            let _ = stream.shutdown().await;
            return Err(Refused { reason: "not_http2", why: "it does not begin as HTTP/2 does".to_owned() });
        }
    }
    place.begun();
    let quiet = Quiet { calls: 0, since: Instant::now() };
    let seat = Seat { peer, certificate, quiet: Arc::new(Mutex::new(quiet)) };
    let idle = Box::pin(time::sleep(place.room.limits.idle_timeout));
    Ok(Connection { stream, unread: PREFACE, seat, idle, place })
}

/// A place among the connections, until it is dropped.
struct Place {
    room: Arc<Room>,
    number: u64,
}

impl Place {
    /// A place, and who hears that the connection must end before it has begun.
    fn take(room: &Arc<Room>, address: SocketAddr) -> Option<(Place, oneshot::Receiver<&'static str>)> {
        let peer = Peer::net(address);
        let (key, (of_one, _)) = (peer.key(), room.of_one(peer));
        let mut inside = room.inside();
        let own = inside.guests.iter().filter(|guest| guest.key == key).count();
        if inside.guests.len() >= room.limits.connections || own >= of_one {
            return None;
        }
        let (handshake, ended) = oneshot::channel();
        inside.number += 1;
        let number = inside.number;
        inside.guests.push(Guest { number, key, handshake: Some(handshake) });
        drop(inside);
        Some((Place { room: room.clone(), number }, ended))
    }

    /// It has begun: no other takes its place.
    fn begun(&self) {
        if let Some(guest) = self.room.inside().guests.iter_mut().find(|guest| guest.number == self.number) {
            guest.handshake = None;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.inside().guests.retain(|guest| guest.number != self.number);
    }
}

/// What its calls know of a connection.
#[derive(Clone)]
pub struct Seat {
    peer: SocketAddr,
    certificate: Option<Arc<str>>,
    quiet: Arc<Mutex<Quiet>>,
}

struct Quiet {
    calls: usize,
    /// When the last call ended.
    since: Instant,
}

impl Seat {
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn certificate(&self) -> Option<Arc<str>> {
        self.certificate.clone()
    }

    /// Calls that are under way.
    pub fn calls(&self) -> usize {
        self.quiet().calls
    }

    /// A call is under way until this is dropped.
    pub fn busy(&self) -> Busy {
        self.quiet().calls += 1;
        Busy { seat: self.clone() }
    }

    fn quiet(&self) -> MutexGuard<'_, Quiet> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Seat::busy`].
pub struct Busy {
    seat: Seat,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut quiet = self.seat.quiet();
        quiet.calls -= 1;
        quiet.since = Instant::now();
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A client that has come in.
pub struct Connection {
    stream: Stream,
    /// Of the preface: read here, and the server reads it again.
    unread: &'static [u8],
    seat: Seat,
    idle: Pin<Box<Sleep>>,
    place: Place,
}

impl Connection {
    /// Whether nothing was asked for so long that the place should go to somebody else.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let idle_timeout = self.place.room.limits.idle_timeout;
        loop {
            ready!(self.idle.as_mut().poll(context));
            let end = {
                let quiet = self.seat.quiet();
                let since = if quiet.calls > 0 { Instant::now() } else { quiet.since };
                since + idle_timeout
            };
            if end <= Instant::now() {
                return Poll::Ready(());
            }
            self.idle.as_mut().reset(end);
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Seat;

    fn connect_info(&self) -> Seat {
        self.seat.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let (now, later) = self.unread.split_at(self.unread.len().min(into.remaining()));
            into.put_slice(now);
            self.unread = later;
            return Poll::Ready(Ok(()));
        }
        if self.poll_idle(context).is_ready() {
            self.place.room.metrics.grpc_refused("idle");
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
