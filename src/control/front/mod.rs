//! The only part of the control port that strangers reach: one thread that never waits for one of them.
//!
//! tiny_http has no time-outs, no limits and reads ambiguous requests its own way, so it listens only on a Unix socket in
//! a directory of ours, and gets complete, rewritten requests from here: accept, read the head and the body within limits
//! of size and time, refuse what is malformed or foreign, hand on, relay the answer. One request at a time, and one
//! for a connection unless the client asks to keep it; what comes behind a request in one piece with it ends the
//! connection after its answer. An answer with [`STREAM_HEADER`] may go on for hours; such have a cap of their own, and
//! take no place of a request.
//!
//! What is bounded, and by what, stands in [`Limits`]. Too many connections: a new one takes the place of the oldest that
//! has not said what it wants; a complete request is never thrown out for it. So 500 half-open clients cost a good one
//! nothing. Nor do slow readers: each address has its share of workers and of what is held, and where several addresses
//! keep all workers waiting while somebody else waits for one, the slowest answer is cut.
//! Out of descriptors: half-open connections are closed and accepting goes on a moment later; descriptors for tiny_http,
//! which does not survive their lack, are kept in reserve.

pub mod body;
mod connection;
pub mod head;
mod hosts;
mod limits;
mod peer;
mod rate;
mod table;
mod transport;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token, Waker};
use nix::unistd::Gid;

use self::connection::{Connection, Context, Stage, Step, busy, busy_as};
use self::head::Refusal;
pub use self::hosts::Hosts;
pub use self::limits::Limits;
pub use self::peer::Peer;
use self::rate::Rate;
use self::table::Table;
use self::transport::Transport;
use super::tls::TlsStore;
use crate::metrics::Metrics;

/// Header fields that the front adds, and only the front.
pub const PEER_HEADER: &str = "x-agent-peer";
pub const LISTENER_HEADER: &str = "x-agent-listener";
/// Of a client on the Unix socket, instead of its address.
pub const UID_HEADER: &str = "x-agent-uid";
/// The group by which it may use the socket, or its first.
pub const GID_HEADER: &str = "x-agent-gid";
/// Of a verified client certificate: its SHA-256, and after a space the subject's common name, percent-encoded, if that
/// is printable ASCII.
pub const CERT_HEADER: &str = "x-agent-cert";
/// A header field of an answer, for the front alone: the answer is a stream, without an end in sight.
pub const STREAM_HEADER: &str = "x-agent-stream";

/// Descriptors that tiny_http and the front need for a request: the two ends and tiny_http's copy of its one.
const DESCRIPTORS_PER_REQUEST: usize = 3;
/// Descriptors in reserve for clients, when there are none left and no connection gives way.
const DESCRIPTORS_TO_ACCEPT: usize = 4;
/// Until accepting is tried again after the lack of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// In this time tiny_http has accepted what was handed on, or has answered.
const HANDING_OVER: Duration = Duration::from_secs(1);
/// Accepted before the connections that are there have their turn.
const ACCEPT_TURN: usize = 64;
/// TLS connections for each request that a client may make, before they are closed without a handshake, which costs more
/// than a refusal.
const CONNECTIONS_PER_REQUEST: u32 = 2;

static TOO_MANY_STREAMS: Refusal = busy_as("streams", "too many streams are open; close one, or try again later");
static TOO_MANY_STREAMS_OF_ADDRESS: Refusal =
    busy_as("streams_of_address", "too many streams to this address are open; close one, or try again later");
const TOO_MANY_CONNECTIONS: Refusal = busy_as("connections", "too many connections");
const EVICTED: Refusal = busy_as("evicted", "closed to make room: the request was not complete");
const TOO_MANY_HANDSHAKES: Refusal = busy_as("handshakes", "closed to make room: the TLS handshake was not complete");
const TOO_MANY_HANDSHAKES_OF_ADDRESS: Refusal =
    busy_as("handshakes_of_address", "closed to make room for this address: the TLS handshake was not complete");
const SLOW: Refusal = busy_as("client_slow", "the answer is taken so slowly that others cannot be served");

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything.
    Rest,
    /// `GET /metrics` only.
    Metrics,
    /// Everything, for processes of this host.
    Unix,
}

impl Kind {
    /// The word in [`LISTENER_HEADER`].
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Rest => "rest",
            Kind::Metrics => "metrics",
            Kind::Unix => "unix",
        }
    }
}

/// tiny_http, as the front needs it.
pub trait Backend: Send + Sync {
    /// Where it listens at present.
    fn socket(&self) -> PathBuf;
    /// It no longer listens at `socket`: another one is to take its place.
    fn gone(&self, socket: &Path);
}

/// The front before it runs.
pub struct Front {
    poll: Poll,
    listeners: Vec<Listener>,
    connections: Table,
    /// Connections that had their turn and can do more.
    again: Vec<usize>,
    accepted: u64,
    accept_after: Option<Instant>,
    reserve: Reserve,
    rates: RefCell<Rates>,
    limits: Limits,
    hosts: Hosts,
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
}

/// How often clients ask, and how often they begin with TLS.
struct Rates {
    requests: Rate,
    here: Option<Rate>,
    handshakes: Rate,
}

/// A bound socket to serve.
pub enum Socket {
    /// Plainly, or by TLS.
    Tcp(std::net::TcpListener, Option<Arc<TlsStore>>),
    /// For processes of this host; the group that may use it beside its owner.
    Unix(std::os::unix::net::UnixListener, Option<Gid>),
}

struct Listener {
    socket: Listening,
    kind: Kind,
    /// There may be clients to accept.
    ready: bool,
}

enum Listening {
    Tcp(TcpListener, Option<Arc<TlsStore>>),
    Unix(UnixListener, Option<Gid>),
}

impl Listening {
    fn new(socket: Socket, poll: &Poll, token: Token) -> io::Result<Listening> {
        let mut socket = match socket {
            Socket::Tcp(socket, tls) => {
                socket.set_nonblocking(true)?;
                Listening::Tcp(TcpListener::from_std(socket), tls)
            }
            Socket::Unix(socket, group) => {
                socket.set_nonblocking(true)?;
                Listening::Unix(UnixListener::from_std(socket), group)
            }
        };
        let source: &mut dyn mio::event::Source = match &mut socket {
            Listening::Tcp(socket, _) => socket,
            Listening::Unix(socket, _) => socket,
        };
        poll.registry().register(source, token, Interest::READABLE)?;
        Ok(socket)
    }

    /// The next client, and how it is spoken with if by TLS.
    fn accept(&self) -> io::Result<Client> {
        match self {
            Listening::Tcp(socket, tls) => {
                let (stream, address) = socket.accept()?;
                Ok(Client::Tcp(stream, Peer::net(address), tls.clone()))
            }
            Listening::Unix(socket, group) => {
                let (stream, _) = socket.accept()?;
                Ok(Client::Unix(stream, *group))
            }
        }
    }
}

/// A client that was accepted.
enum Client {
    Tcp(mio::net::TcpStream, Peer, Option<Arc<TlsStore>>),
    Unix(UnixStream, Option<Gid>),
}

impl Client {
    fn connect(self) -> io::Result<(Transport, Peer)> {
        Ok(match self {
            Client::Tcp(stream, peer, tls) => {
                stream.set_nodelay(true)?;
                match tls {
                    Some(tls) => (Transport::tls(stream, tls.rest())?, peer),
                    None => (Transport::Tcp(stream), peer),
                }
            }
            Client::Unix(stream, group) => {
                let peer = Peer::of_socket(&stream, group)?;
                (Transport::Unix(stream), peer)
            }
        })
    }
}

/// Ends a running front.
#[derive(Clone)]
pub struct Stopper {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Stopper {
    /// No new clients; those that are served have [`Limits::stop_timeout`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Fails only when the poll is gone, which is what is wanted.
        let _ = self.waker.wake();
    }
}

impl Front {
    /// A front for these bound sockets.
    pub fn new(
        sockets: Vec<(Socket, Kind)>,
        limits: Limits,
        hosts: Hosts,
        backend: Arc<dyn Backend>,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Front, Stopper)> {
        let poll = Poll::new()?;
        let slots = limits.connections + limits.streams + limits.lingering + 1;
        let mut listeners = Vec::new();
        for (i, (socket, kind)) in sockets.into_iter().enumerate() {
            let socket = Listening::new(socket, &poll, Token(2 * slots + 1 + i))?;
            listeners.push(Listener { socket, kind, ready: true });
        }
        let waker = Arc::new(Waker::new(poll.registry(), Token(2 * slots))?);
        let stop = Arc::new(AtomicBool::new(false));
        let reserve = Reserve::new(DESCRIPTORS_PER_REQUEST * limits.in_flight + DESCRIPTORS_TO_ACCEPT);
        let rate = |per_s: u32| Rate::new(per_s, per_s.saturating_mul(2));
        let rates = RefCell::new(Rates {
            requests: rate(limits.requests_per_s),
            here: Some(limits.requests_here_per_s).filter(|per_s| *per_s > 0).map(rate),
            handshakes: rate(limits.requests_per_s.saturating_mul(CONNECTIONS_PER_REQUEST)),
        });
        let front = Front {
            poll,
            listeners,
            connections: Table::new(slots, limits.clone()),
            again: Vec::new(),
            accepted: 0,
            accept_after: None,
            reserve,
            rates,
            limits,
            hosts,
            backend,
            metrics,
            stop: Arc::clone(&stop),
        };
        Ok((front, Stopper { stop, waker }))
    }

    /// Serves until stopped.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut stop_at = None;
        loop {
            let timeout = self.next_deadline(stop_at).map(|at| at.saturating_duration_since(Instant::now()));
            if let Err(e) = self.poll.poll(&mut events, timeout)
                && e.kind() != ErrorKind::Interrupted
            {
                // Nothing but a mistake of ours leads here; without a pause it would take the CPU for itself.
                log::error!("control: waiting for events: {e}");
                std::thread::sleep(ACCEPT_PAUSE);
            }
            let listener_base = 2 * self.connections.slots() + 1;
            for event in &events {
                match event.token().0 {
                    token if token >= listener_base => self.listeners[token - listener_base].ready = true,
                    token if token == listener_base - 1 => {}
                    token => self.advance(token / 2),
                }
            }
            for slot in std::mem::take(&mut self.again) {
                self.advance(slot);
            }
            if self.stop.load(Ordering::Acquire) {
                stop_at.get_or_insert_with(|| Instant::now() + self.limits.stop_timeout);
                self.listeners.clear();
                self.drop_idle();
                (0..self.connections.slots()).for_each(|slot| self.with(slot, Connection::end_stream));
            }
            self.accept();
            self.expire();
            self.cut_slow();
            // After all that frees a place: nothing else may wake this thread for those that wait for one.
            self.hand_on();
            #[cfg(test)]
            self.connections.check();
            if !self.is_handing_over() {
                self.reserve.refill(self.reserve_wanted());
            }
            if stop_at.is_some_and(|at| Instant::now() >= at || self.connections.is_empty()) {
                return;
            }
        }
    }

    fn next_deadline(&self, stop_at: Option<Instant>) -> Option<Instant> {
        if !self.again.is_empty() || (self.accept_after.is_none() && self.listeners.iter().any(|l| l.ready)) {
            return Some(Instant::now());
        }
        let of_connections = self.connections.next_deadline();
        of_connections
            .into_iter()
            .chain(stop_at)
            .chain(self.accept_after)
            .chain(self.slow_deadline().map(|(at, _)| at))
            .min()
    }

    /// When a client is cut because every worker waits for one like it while another request waits for a worker, and
    /// which one that is. Whoever comes from one address alone cannot bring this about: see [`Limits::in_flight`].
    fn slow_deadline(&self) -> Option<(Instant, usize)> {
        let (slow, slowest) = self.connections.slow();
        let (slow_since, slot) = slowest.filter(|_| slow >= self.limits.workers)?;
        let waiting_since = self.connections.longest_waiting()?;
        Some((slow_since.max(waiting_since) + self.limits.slow_timeout, slot))
    }

    fn cut_slow(&mut self) {
        if let Some((at, slot)) = self.slow_deadline()
            && at <= Instant::now()
        {
            self.with(slot, |connection, context| connection.cut(&SLOW, context));
        }
    }

    /// Why there is no place for one more stream of this client's; `None` when there is one.
    fn stream_refused(&self, peer: Peer) -> Option<&'static Refusal> {
        let per_address = if peer.is_here() { self.limits.streams } else { self.limits.streams_per_address };
        if self.connections.all().streams >= self.limits.streams {
            return Some(&TOO_MANY_STREAMS);
        }
        (self.connections.of(peer.key()).streams >= per_address).then_some(&TOO_MANY_STREAMS_OF_ADDRESS)
    }

    fn reserve_wanted(&self) -> usize {
        let free = self.limits.in_flight.saturating_sub(self.connections.all().in_flight);
        DESCRIPTORS_PER_REQUEST * free + DESCRIPTORS_TO_ACCEPT
    }

    /// Whether tiny_http may still have to take descriptors that were released for it; nothing here may take them then.
    fn is_handing_over(&self) -> bool {
        self.connections.last_handed_over().is_some_and(|since| since.elapsed() < HANDING_OVER)
    }

    /// Runs `work` on a connection and closes it if that is the result.
    fn with(&mut self, slot: usize, work: impl FnOnce(&mut Connection, &Context<'_>) -> Step) {
        let Some(mut connection) = self.connections.take(slot) else { return };
        let metrics = &self.metrics;
        let refused = |refusal: &Refusal, peer: Peer| {
            metrics.http_refused(refusal.reason);
            log::debug!("control: {peer} refused ({}): {}", refusal.reason, refusal.message);
        };
        let now = Instant::now();
        let admits = |peer: Peer| self.rates.borrow_mut().admit(peer, now);
        let context = Context {
            limits: &self.limits,
            hosts: &self.hosts,
            now,
            admits: &admits,
            stream_refused: self.stream_refused(connection.peer),
            held_by_others: self.connections.all().held,
            held_by_own: self.connections.of(connection.peer.key()).held,
            refused: &refused,
        };
        let step = work(&mut connection, &context);
        if step == Step::Again {
            self.again.push(slot);
        }
        if step != Step::Close {
            self.connections.put(slot, connection);
            self.limit_lingering();
        }
    }

    fn advance(&mut self, slot: usize) {
        self.with(slot, Connection::advance);
    }

    fn expire(&mut self) {
        for slot in self.connections.expired(Instant::now()) {
            self.with(slot, Connection::expire);
        }
    }

    /// Gives complete requests to tiny_http, the one that waits longest first, as many as may be there at a time.
    fn hand_on(&mut self) {
        while self.connections.all().in_flight < self.limits.in_flight {
            let Some(slot) = self.connections.next_queued(self.limits.in_flight_of_one()) else { return };
            self.reserve.release(DESCRIPTORS_PER_REQUEST);
            let socket = self.backend.socket();
            let mut connected = UnixStream::connect(&socket);
            if connected.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {
                self.backend.gone(&socket);
                connected = UnixStream::connect(self.backend.socket());
            }
            let upstream = connected.and_then(|mut upstream| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(&mut upstream, Token(2 * slot + 1), interest)?;
                Ok(upstream)
            });
            self.with(slot, |connection, context| {
                match upstream {
                    Ok(upstream) => connection.hand_on(upstream, context.now),
                    Err(e) => {
                        log::error!("control: handing a request on: {e}");
                        connection.refuse(&busy("the request cannot be handed on now"), context);
                    }
                }
                connection.advance(context)
            });
        }
    }

    fn accept(&mut self) {
        if self.accept_after.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.accept_after = None;
        if self.reserve.short && self.is_handing_over() {
            self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
            return;
        }
        for i in 0..self.listeners.len() {
            let mut made_room = false;
            for _ in 0..ACCEPT_TURN {
                let listener = &mut self.listeners[i];
                if !listener.ready {
                    break;
                }
                match listener.socket.accept() {
                    Ok(client) => {
                        let kind = listener.kind;
                        self.admit(client, kind);
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => listener.ready = false,
                    // The client left before it was accepted.
                    Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                    Err(e) => {
                        self.metrics.http_refused("accept");
                        if made_room {
                            log::warn!("control: accepting a client: {e}; trying again");
                            self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                            return;
                        }
                        made_room = true;
                        self.reserve.short = true;
                        if !self.make_room(|_| true, &EVICTED) {
                            self.reserve.release(1);
                        }
                    }
                }
            }
        }
    }

    fn admit(&mut self, client: Client, kind: Kind) {
        let now = Instant::now();
        let by_tls = matches!(client, Client::Tcp(_, _, Some(_)));
        if let Client::Tcp(_, peer, Some(_)) = client
            && !peer.is_here()
            && self.rates.borrow_mut().handshakes.take(peer.key(), now).is_err()
        {
            return self.metrics.http_refused("handshake_rate");
        }
        let (client, peer) = match client.connect() {
            Ok(connected) => connected,
            // The client has left, or the process cannot be asked about.
            Err(e) => return log::debug!("control: a client that was accepted: {e}"),
        };
        let key = peer.key();
        let from_here = move |c: &Connection| c.peer.key() == key;
        let per_address =
            if peer.is_here() { self.limits.connections_loopback } else { self.limits.connections_per_address };
        let fits = (self.connections.of(key).served < per_address || self.make_room(from_here, &EVICTED))
            && (self.connections.all().served < self.limits.connections || self.make_room(|_| true, &EVICTED));
        if by_tls {
            self.limit_handshakes(peer);
        }
        // There is a slot for a refusal even when all others are served or linger; limit_lingering frees it again.
        let Some(slot) = self.connections.vacant() else { return };
        self.accepted += 1;
        let mut connection = Connection::new(client, peer, kind, self.accepted, now);
        if let Err(e) = connection.client.register(self.poll.registry(), Token(2 * slot)) {
            log::warn!("control: registering a client: {e}");
            return;
        }
        self.connections.put(slot, Box::new(connection));
        self.with(slot, |connection, context| {
            if !fits {
                connection.refuse(&TOO_MANY_CONNECTIONS, context);
            }
            // Most requests are there already: read it before somebody else's arrival throws it out.
            connection.advance(context)
        });
    }

    /// Before one more handshake with this client: of too many the oldest ends.
    fn limit_handshakes(&mut self, peer: Peer) {
        let Limits { handshakes, handshakes_per_address, handshakes_loopback, .. } = self.limits;
        let of_one = if peer.is_here() { handshakes_loopback } else { handshakes_per_address };
        let key = peer.key();
        let own = move |c: &Connection| c.client.is_handshaking() && c.peer.key() == key;
        while self.connections.of(key).handshakes >= of_one && self.make_room(own, &TOO_MANY_HANDSHAKES_OF_ADDRESS) {}
        let any = |c: &Connection| c.client.is_handshaking();
        while self.connections.all().handshakes >= handshakes && self.make_room(any, &TOO_MANY_HANDSHAKES) {}
    }

    /// Closes the connection that gives way first among `which`, for this reason. False when none does.
    fn make_room(&mut self, which: impl Fn(&Connection) -> bool, why: &Refusal) -> bool {
        // Each round either closes one or finds that one has gone on meanwhile.
        for _ in 0..self.connections.slots() {
            let candidates = self.connections.iter().filter_map(|(slot, connection)| {
                let stage = connection.gives_way().filter(|_| !connection.refused && which(connection))?;
                Some(((stage, connection.order), slot))
            });
            let Some(((stage, _), slot)) = candidates.min() else { return false };
            self.advance(slot);
            match self.connections.get(slot) {
                Some(connection) if !connection.refused && connection.stage == stage && which(connection) => {
                    self.with(slot, |connection, context| connection.give_way(why, context));
                    return true;
                }
                Some(connection) if !connection.refused => {}
                _ => return true,
            }
        }
        false
    }

    /// Those that only wait for their client to close have places of their own; the oldest gives way.
    fn limit_lingering(&mut self) {
        while self.connections.all().lingering > self.limits.lingering {
            let lingering = self.connections.iter().filter(|(_, c)| c.refused);
            let Some(slot) = lingering.min_by_key(|(_, c)| c.order).map(|(slot, _)| slot) else { return };
            self.connections.take(slot);
        }
    }

    /// When stopping: a client that has not asked yet gets no answer any more.
    fn drop_idle(&mut self) {
        let idle = |c: &Connection| matches!(c.stage, Stage::Head | Stage::Body | Stage::Linger);
        let slots: Vec<usize> = self.connections.iter().filter(|(_, c)| idle(c)).map(|(slot, _)| slot).collect();
        for slot in slots {
            self.connections.take(slot);
        }
    }
}

impl Rates {
    /// Takes note of a request; when the client has asked too often, how long until it may ask again.
    fn admit(&mut self, peer: Peer, now: Instant) -> Result<(), Duration> {
        match (&mut self.here, peer.is_here()) {
            (Some(here), true) => here.take(peer.key(), now),
            (None, true) => Ok(()),
            (_, false) => self.requests.take(peer.key(), now),
        }
    }
}

/// Descriptors kept for requests that are handed on, so that connections cannot take the last ones.
struct Reserve {
    files: Vec<File>,
    /// Descriptors have run out since it was last full.
    short: bool,
}

impl Reserve {
    fn new(size: usize) -> Reserve {
        let mut reserve = Reserve { files: Vec::with_capacity(size), short: false };
        reserve.refill(size);
        reserve
    }

    fn release(&mut self, n: usize) {
        self.files.truncate(self.files.len().saturating_sub(n));
    }

    /// As far as possible; the rest comes when descriptors are free again.
    fn refill(&mut self, size: usize) {
        while self.files.len() < size {
            match File::open("/dev/null") {
                Ok(file) => self.files.push(file),
                Err(_) => {
                    self.short = true;
                    return;
                }
            }
        }
        self.short = false;
    }
}

#[cfg(test)]
mod tests;
