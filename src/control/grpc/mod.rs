//! gRPC: alerts as they happen, with health and reflection beside them.
//!
//! One thread, `grpc`, with a runtime of its own, so that the rest of the program stays synchronous. What may wait for a
//! disk or for another host (alerts of the store, the question who is there) runs on a few threads `grpc-read` that the
//! runtime starts when there is such work. `door` meets the network, `calls` counts what is under way, `event` writes an
//! alert as a message; this file is the service.

mod calls;
mod door;
mod event;

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tonic_health::ServingStatus;

use self::calls::{Calls, Counted};
use self::door::{Door, Seat};
use self::pb::alert_stream_service_server::{AlertStreamService, AlertStreamServiceServer};
use self::pb::{AlertEvent, StreamAlertsRequest};
use crate::alert::Filter;
use crate::alert::hub::{Event, EventId, Hub, Step, Subscription, filter_of};
use crate::api::{ApiError, Caller, Role};
use crate::audit::{Auditor, Entry};
use crate::control::auth::{self, Auth};
use crate::control::places::{Full, Place, Places};
use crate::control::port::Port;
use crate::control::server::actor;
use crate::control::stream::WATCH;
use crate::metrics::{Metrics, StreamMetrics};
use crate::supervise::{Gone, Pulse, Supervisor, Thread};

/// What `alerts.proto` describes.
pub mod pb {
    tonic::include_proto!("ebpfsentinel.v1");
}

/// `alerts.proto` as the server shows it by reflection.
const DESCRIPTION: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/alerts.fds"));

/// Messages that wait for a client here; those that wait in its connection come on top.
const QUEUE: usize = 16;
/// Alerts taken out of the hub at a time.
const BATCH: usize = 64;

/// What the server gives at most. `Default` is what the agent runs with; tests shorten the times.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Of these, from one remote address (IPv6: one /64).
    pub connections_per_address: usize,
    /// Of these, from loopback, which all local programs share.
    pub connections_loopback: usize,
    /// Connections that have not begun yet with TLS and HTTP/2. Beyond it, and beyond those of one address, the oldest
    /// of them gives way: a client that means well is through in a moment.
    pub handshakes: usize,
    /// Of these, from one remote address.
    pub handshakes_per_address: usize,
    /// Of these, from one loopback address.
    pub handshakes_loopback: usize,
    /// Open streams of alerts.
    pub streams: usize,
    /// Of these, to one remote address.
    pub streams_per_address: usize,
    /// Of these, to one loopback address.
    pub streams_loopback: usize,
    /// Calls of any kind that are under way, open streams included.
    pub calls: usize,
    /// Of these, of one remote address.
    pub calls_per_address: usize,
    /// Of these, of one loopback address.
    pub calls_loopback: usize,
    /// A message of a client, and all of its metadata together.
    pub message_bytes: u32,
    /// From the connection's start until TLS and HTTP/2 have begun.
    pub handshake_timeout: Duration,
    /// A connection without a call is closed after this time.
    pub idle_timeout: Duration,
    /// How often a client is asked whether it is still there, and how long it may take to say so.
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    /// How often the credentials of an open stream are looked at again.
    pub credentials_interval: Duration,
    /// For what is under way when the agent stops.
    pub stop_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 64,
            connections_per_address: 16,
            connections_loopback: 48,
            handshakes: 48,
            handshakes_per_address: 8,
            handshakes_loopback: 36,
            streams: 64,
            streams_per_address: 16,
            streams_loopback: 64,
            calls: 256,
            calls_per_address: 96,
            calls_loopback: 192,
            message_bytes: 16 << 10,
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(300),
            ping_interval: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(10),
            credentials_interval: Duration::from_secs(60),
            stop_timeout: Duration::from_secs(2),
        }
    }
}

/// What a client shows of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Metadata `authorization: Bearer ...`.
    pub bearer: Option<String>,
    /// Metadata `x-api-key`.
    pub api_key: Option<String>,
    /// The certificate that it showed and that was verified, by [`client_name`](crate::control::tls::client_name).
    pub certificate: Option<Arc<str>>,
    /// Where it comes from.
    pub peer: SocketAddr,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "credentials of {}", self.peer)
    }
}

/// Why a client may not listen, with a message for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It has not said who it is, or not so that it can be believed.
    Unauthenticated(String),
    /// It may not do this.
    Forbidden(String),
    /// It has tried too often.
    TooMany(String),
    /// It cannot be told at present.
    Unavailable(String),
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Status {
        match denied {
            Denied::Unauthenticated(message) => Status::unauthenticated(message),
            Denied::Forbidden(message) => Status::permission_denied(message),
            Denied::TooMany(message) => Status::resource_exhausted(message),
            Denied::Unavailable(message) => Status::unavailable(message),
        }
    }
}

/// Says whether a client may listen to alerts: what a viewer may. May take its time.
pub type Gate = Arc<dyn Fn(&Credentials) -> Result<(), Denied> + Send + Sync>;

/// The gate that asks as the REST API does, and tells the audit log of whom it does not let in.
pub fn gate_of(auth: Arc<Auth>, auditor: Arc<dyn Auditor>) -> Gate {
    Arc::new(move |shown| {
        let address = Some(shown.peer.ip().to_canonical());
        let credentials = auth::Credentials {
            api_key: shown.api_key.as_deref(),
            bearer: shown.bearer.as_deref(),
            certificate: shown.certificate.as_deref().map(|text| text.split_once(' ').unwrap_or((text, ""))),
            unix: None,
        };
        auth.require(Role::Viewer, &credentials, address).map(drop).map_err(|refusal| {
            if let Some(untold) = refusal.told {
                let caller = refusal.caller.clone().unwrap_or_else(|| Caller::anonymous(Role::Public));
                let more = if untold == 0 { String::new() } else { format!("; {untold} more before it") };
                let detail = format!("gRPC StreamAlerts: {}: {}{more}", refusal.reason, refusal.detail);
                auditor.record(Entry::new(actor(&caller, address), WATCH.command, refusal.error.status, detail));
            }
            let ApiError { status, message, .. } = refusal.error;
            match status {
                401 => Denied::Unauthenticated(message),
                403 => Denied::Forbidden(message),
                429 => Denied::TooMany(message),
                _ => Denied::Unavailable(message),
            }
        })
    })
}

/// The TLS configuration for the next connection; its ALPN must offer `h2`.
pub type Tls = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// What the server is made of.
pub struct GrpcConfig {
    /// `agent.bind_address` and `agent.grpc_port`.
    pub port: Port,
    /// Where alerts come from.
    pub hub: Hub,
    /// Who may listen; everybody when absent.
    pub gate: Option<Gate>,
    /// Plain text when absent.
    pub tls: Option<Tls>,
    pub limits: Limits,
}

impl GrpcConfig {
    /// Plain text, for everybody, with the default limits.
    pub fn new(port: impl Into<Port>, hub: Hub) -> GrpcConfig {
        GrpcConfig { port: port.into(), hub, gate: None, tls: None, limits: Limits::default() }
    }
}

/// The running server.
pub struct Grpc {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: Thread<()>,
    stop_timeout: Duration,
}

impl Grpc {
    /// Listens, and serves on a thread of its own.
    pub fn start(config: GrpcConfig, supervisor: &Supervisor, metrics: &Arc<Metrics>) -> anyhow::Result<Grpc> {
        let GrpcConfig { port, hub, gate, tls, limits } = config;
        let listener = port.listen("agent.grpc_port")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop_timeout = limits.stop_timeout;
        let (stop, stopped) = oneshot::channel();
        let metrics = metrics.clone();
        let thread = supervisor.spawn("grpc", move |pulse| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .max_blocking_threads(4)
                .thread_keep_alive(Duration::from_secs(5))
                .thread_name("grpc-read")
                .build()
                .context("setting up the runtime")?;
            let pulse = pulse.clone();
            let served = runtime.block_on(serve(listener, (hub, gate, tls), limits, stopped, pulse, metrics));
            // A read that hangs keeps its thread; the process ends all the same.
            runtime.shutdown_timeout(Duration::from_millis(100));
            served
        })?;
        Ok(Grpc { address, stop, thread, stop_timeout })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more clients, lets calls end for [`Limits::stop_timeout`], and ends the thread. Streams end when their hub is
    /// closed: do that before.
    pub fn stop(self) -> Result<(), Gone> {
        // It has ended already when nobody listens.
        let _ = self.stop.send(());
        self.thread.join(self.stop_timeout + Duration::from_secs(1))
    }
}

async fn serve(
    listener: TcpListener,
    (hub, gate, tls): (Hub, Option<Gate>, Option<Tls>),
    limits: Limits,
    stopped: oneshot::Receiver<()>,
    pulse: Pulse,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("handing the socket to the runtime")?;
    // As many as there can be: a connection that has got in must not wait.
    let (connected, incoming) = mpsc::channel(limits.connections.max(1));
    let door = Door::new(listener, tls, &limits, &metrics);
    let accepting = tokio::spawn(door.open(connected));
    let beating = tokio::spawn(async move {
        loop {
            pulse.beat();
            time::sleep(Duration::from_secs(1)).await;
        }
    });

    let calls = Calls::new(&limits, &metrics);
    let bytes = limits.message_bytes;
    let alerts = Alerts {
        hub,
        gate,
        places: Places::new(limits.streams, limits.streams_per_address, limits.streams_loopback),
        credentials_interval: limits.credentials_interval,
        streams: metrics.streams("grpc"),
        metrics: metrics.clone(),
    };
    let alerts = AlertStreamServiceServer::new(alerts).max_decoding_message_size(bytes as usize);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<AlertStreamServiceServer<Alerts>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTION)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (v1, v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let server = Server::builder()
        // Beyond it a client would wait without a word; the limits above tell it why it does not get more.
        .max_concurrent_streams(limits.calls as u32 + 1)
        .http2_max_header_list_size(bytes)
        .http2_keepalive_interval(Some(limits.ping_interval))
        .http2_keepalive_timeout(Some(limits.ping_timeout))
        .add_service(Counted::new(alerts, &calls))
        .add_service(Counted::new(health.max_decoding_message_size(bytes as usize), &calls))
        .add_service(Counted::new(v1.max_decoding_message_size(bytes as usize), &calls))
        .add_service(Counted::new(v1alpha.max_decoding_message_size(bytes as usize), &calls));

    let (last_word, stopping) = oneshot::channel::<()>();
    let server = server.serve_with_incoming_shutdown(ReceiverStream::new(incoming), async {
        // Dropped means the same.
        let _ = stopping.await;
    });
    let server = tokio::spawn(server);
    // Dropped, or asked to.
    let _ = stopped.await;
    accepting.abort();
    reporter.set_service_status("", ServingStatus::NotServing).await;
    reporter.set_not_serving::<AlertStreamServiceServer<Alerts>>().await;
    drop(last_word);
    let ended = time::timeout(limits.stop_timeout, server).await;
    beating.abort();
    match ended {
        Ok(Ok(served)) => served.context("serving gRPC"),
        Ok(Err(panic)) => Err(panic).context("serving gRPC"),
        // A client that does not let go; it is cut off with the runtime.
        Err(_) => Ok(()),
    }
}

/// The service.
struct Alerts {
    hub: Hub,
    gate: Option<Gate>,
    /// One for each stream that may be open.
    places: Arc<Places>,
    credentials_interval: Duration,
    streams: StreamMetrics,
    metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl AlertStreamService for Alerts {
    type StreamAlertsStream = ReceiverStream<Result<AlertEvent, Status>>;

    async fn stream_alerts(
        &self,
        request: Request<StreamAlertsRequest>,
    ) -> Result<Response<Self::StreamAlertsStream>, Status> {
        let credentials = credentials_of(&request)?;
        ask(self.gate.as_ref(), &credentials).await?;
        let (filter, after) = read_request(request.get_ref())?;
        let place = self.places.take(Some(credentials.peer)).map_err(|why| {
            full(why, ["streams", "streams_of_address"], "open, and that is the limit", &self.metrics)
        })?;
        let (events, stream) = mpsc::channel(QUEUE);
        let subscription = self.hub.subscribe(filter, after);
        let pump = Pump {
            events,
            gate: self.gate.clone(),
            credentials,
            credentials_interval: self.credentials_interval,
            metrics: self.streams.clone(),
            _place: place,
        };
        tokio::spawn(pump.run(subscription));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn credentials_of<T>(request: &Request<T>) -> Result<Credentials, Status> {
    let seat = request.extensions().get::<Seat>().ok_or_else(|| Status::internal("a call without a connection"))?;
    let text = |metadata: &MetadataMap, name: &str| {
        let Some(value) = metadata.get(name) else { return Ok(None) };
        let text = value.to_str().map_err(|_| Status::unauthenticated(format!("{name} is not ASCII text")))?;
        Ok::<_, Status>(Some(text.to_owned()))
    };
    let bearer = match text(request.metadata(), "authorization")? {
        None => None,
        Some(value) => match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim().to_owned()),
            _ => return Err(Status::unauthenticated("authorization must be \"Bearer TOKEN\"")),
        },
    };
    let api_key = text(request.metadata(), "x-api-key")?;
    Ok(Credentials { bearer, api_key, certificate: seat.certificate(), peer: seat.peer() })
}

async fn ask(gate: Option<&Gate>, credentials: &Credentials) -> Result<(), Status> {
    let Some(gate) = gate.cloned() else { return Ok(()) };
    let credentials = credentials.clone();
    let asked = spawn_blocking(move || gate(&credentials)).await;
    // It has panicked, which is logged.
    asked.map_err(|_| failed())?.map_err(Status::from)
}

/// What to send, and after which event.
fn read_request(request: &StreamAlertsRequest) -> Result<(Filter, Option<EventId>), Status> {
    fn given(text: &str) -> Option<&str> {
        (!text.is_empty()).then_some(text)
    }
    if !request.mitre_tactic.is_empty() {
        return Err(Status::invalid_argument("mitre_tactic: alerts carry techniques; use mitre_technique_id"));
    }
    let filter = filter_of(
        given(&request.min_severity),
        given(&request.component),
        given(&request.rule_id),
        given(&request.mitre_technique_id),
    );
    let after = given(&request.resume_after_id).map(str::parse).transpose();
    let after = after.map_err(|error: String| Status::invalid_argument(format!("resume_after_id: {error}")))?;
    Ok((filter.map_err(Status::invalid_argument)?, after))
}

/// Moves events from the hub to a client, as fast as it takes them.
struct Pump {
    events: mpsc::Sender<Result<AlertEvent, Status>>,
    gate: Option<Gate>,
    credentials: Credentials,
    credentials_interval: Duration,
    metrics: StreamMetrics,
    _place: Place,
}

/// The client has gone, or was told why it is over.
struct Over;

impl Pump {
    async fn run(self, subscription: Subscription) {
        let _listening = self.metrics.client();
        let Err(Over) = self.pump(subscription).await;
    }

    async fn pump(&self, subscription: Subscription) -> Result<Infallible, Over> {
        let mut subscription = self.catch_up(subscription).await?;
        let mut check = time::interval_at(Instant::now() + self.credentials_interval, self.credentials_interval);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.events.closed() => return Err(Over),
                _ = check.tick() => self.check_credentials().await?,
                () = poll_fn(|context| subscription.poll_ready(context)) => {
                    let events = subscription.take(BATCH);
                    if events.is_empty() && subscription.is_over() {
                        return self.end(stopping()).await;
                    }
                    self.send(events).await?;
                }
            }
        }
    }

    /// What happened before the client came.
    async fn catch_up(&self, mut subscription: Subscription) -> Result<Subscription, Over> {
        while subscription.is_behind() {
            if subscription.is_over() {
                return self.end(stopping()).await;
            }
            let read = spawn_blocking(move || {
                let step = subscription.catch_up();
                (subscription, step)
            });
            // It has panicked, which is logged.
            let Ok((back, step)) = read.await else { return self.end(failed()).await };
            subscription = back;
            match step {
                Step::Live => {}
                Step::Events(events) => self.send(events).await?,
                Step::Later(wait) => tokio::select! {
                    () = self.events.closed() => return Err(Over),
                    () = time::sleep(wait) => {}
                },
            }
        }
        Ok(subscription)
    }

    /// A key that was taken away and a token that has expired end the stream; that they cannot be looked at does not.
    async fn check_credentials(&self) -> Result<(), Over> {
        match ask(self.gate.as_ref(), &self.credentials).await {
            // The last: a bad credential too many.
            Err(status)
                if matches!(
                    status.code(),
                    Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted
                ) =>
            {
                self.end(status).await
            }
            _ => Ok(()),
        }
    }

    async fn send(&self, events: Vec<Event>) -> Result<(), Over> {
        for one in events {
            self.events.send(Ok(event::message(&one))).await.map_err(|_| Over)?;
            one.count(&self.metrics);
        }
        Ok(())
    }

    async fn end<T>(&self, status: Status) -> Result<T, Over> {
        // Who has gone need not be told.
        let _ = self.events.send(Err(status)).await;
        Err(Over)
    }
}

/// What a client reads for which there is no place, and counts it. `reasons`, of which the first is also the name of
/// what there are too many of: in all, and of its address.
fn full(why: Full, reasons: [&'static str; 2], state: &str, metrics: &Metrics) -> Status {
    let [what, of_address] = reasons;
    let (reason, whose, number) = match why {
        Full::InAll(number) => (what, "", number),
        Full::OfAddress(number) => (of_address, " of your address", number),
    };
    metrics.grpc_refused(reason);
    Status::resource_exhausted(format!("{number} {what}{whose} are {state}"))
}

fn stopping() -> Status {
    Status::unavailable("the agent is stopping; come again with resume_after_id")
}

fn failed() -> Status {
    Status::internal("the stream failed; the agent's log says why")
}
