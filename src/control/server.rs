//! Behind the front: tiny_http on a Unix socket, and the threads that run operations.
//!
//! Requests arrive complete and within limits, from the front only, which also says who sent them.

use std::io::{self, Cursor, Write};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tiny_http::{Header, Response, StatusCode};

use super::auth::{self, Auth, Credentials, Refusal};
use super::front::{self, CERT_HEADER, GID_HEADER, Kind, LISTENER_HEADER, PEER_HEADER, STREAM_HEADER, UID_HEADER};
use super::routes::{Miss, Routes};
use super::{pages, panic_message};
use crate::api::{ApiError, Caller, Method, Note, Reply, Role, Spec, Stream, percent_decode};
use crate::audit::{Actor, Auditor, Entry};
use crate::metrics::Metrics;

/// Between attempts to listen anew.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The operation label of requests that found none.
const NO_OPERATION: &str = "none";

/// Header fields of every answer; most tell a browser what it may not do with it.
const COMMON_HEADERS: [(&str, &str); 7] = [
    ("Server", "ebpfsentinel"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", pages::CONTENT_POLICY),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
];

/// What the worker threads share.
pub struct Server {
    backend: Mutex<Backend>,
    directory: PathBuf,
    routes: Routes,
    auth: Arc<Auth>,
    metrics: Arc<Metrics>,
    auditor: Arc<dyn Auditor>,
    stop: AtomicBool,
    /// How often it is asked again whether a stream's client may listen.
    credentials_interval: Duration,
    /// The threads that write streams.
    streams: Mutex<Vec<JoinHandle<()>>>,
}

/// tiny_http, and which one it is: its accept thread ends for good on an error, then another takes its place.
struct Backend {
    http: Arc<tiny_http::Server>,
    generation: u32,
}

impl Server {
    /// Listens in `directory`, which nobody else may enter.
    pub fn new(
        directory: PathBuf,
        routes: Routes,
        auth: Arc<Auth>,
        metrics: Arc<Metrics>,
        auditor: Arc<dyn Auditor>,
        credentials_interval: Duration,
    ) -> io::Result<Server> {
        let backend = Mutex::new(Backend { http: listen(&socket_path(&directory, 0))?, generation: 0 });
        let (stop, streams) = (AtomicBool::new(false), Mutex::default());
        Ok(Server { backend, directory, routes, auth, metrics, auditor, stop, credentials_interval, streams })
    }

    /// Lets the `workers` threads in [`Server::work`] end after the requests that have come.
    pub fn stop(&self, workers: usize) {
        self.stop.store(true, Ordering::Release);
        let http = Arc::clone(&self.backend().http);
        (0..workers).for_each(|_| http.unblock());
    }

    /// The threads that write streams. They end when their clients have gone: the front closes on them when it stops.
    pub fn take_streams(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.streams())
    }

    fn streams(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a worker thread does.
    pub fn work(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let (http, generation) = {
                let backend = self.backend();
                (Arc::clone(&backend.http), backend.generation)
            };
            match http.recv() {
                Ok(request) => self.serve(request),
                // Unblocked: stopping, or another worker has put a new one in place.
                Err(e) if e.raw_os_error().is_none() => {}
                Err(e) => self.replace(generation, &e),
            }
        }
    }

    fn backend(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another tiny_http in the place of the one whose accept thread has ended. Tries until it succeeds.
    fn replace(&self, generation: u32, error: &io::Error) {
        while !self.stop.load(Ordering::Acquire) && !self.try_replace(generation, &error.to_string()) {
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// Whether another than `generation` is in place now.
    fn try_replace(&self, generation: u32, why: &str) -> bool {
        let mut backend = self.backend();
        if backend.generation != generation {
            return true;
        }
        match listen(&socket_path(&self.directory, generation + 1)) {
            Ok(http) => {
                log::warn!("control: accepting ended ({why}); listening anew");
                let old = std::mem::replace(&mut *backend, Backend { http, generation: generation + 1 });
                // For the workers that wait on the old one; more than there are does no harm.
                (0..64).for_each(|_| old.http.unblock());
                true
            }
            Err(e) => {
                log::error!("control: accepting ended ({why}) and listening anew failed: {e}");
                false
            }
        }
    }

    fn serve(&self, mut request: tiny_http::Request) {
        let (operation, answer) = self.answer(&mut request);
        self.metrics.http_request(operation, answer.status);
        if let Some(stream) = answer.stream
            && *request.method() != tiny_http::Method::Head
        {
            return self.start_stream(operation, request, stream);
        }
        let mut response = Response::new(
            StatusCode(answer.status),
            COMMON_HEADERS.iter().map(|(name, value)| header(name, value)).collect(),
            Cursor::new(answer.body.as_bytes()),
            Some(answer.body.len()),
            None,
        )
        // Never chunked: the client may speak HTTP/1.0, and the length is known.
        .with_chunked_threshold(usize::MAX);
        if let Some(content_type) = answer.content_type {
            response.add_header(header("Content-Type", content_type));
        }
        for (name, value) in &answer.headers {
            response.add_header(header(name, value));
        }
        if let Err(e) = request.respond(response) {
            log::debug!("control: answering {operation}: {e}");
        }
    }

    /// Lets a thread of its own write the answer.
    fn start_stream(&self, operation: &'static str, request: tiny_http::Request, stream: Stream) {
        let (shown, auth, interval) = (Shown::of(&request), self.auth.clone(), self.credentials_interval);
        let write = move || {
            let out = request.into_writer();
            let mut out = Watched { out, auth, shown, role: stream.role, interval, next: Instant::now() + interval };
            let written = catch_unwind(AssertUnwindSafe(|| {
                out.write_all(stream_head(stream.content_type).as_bytes())?;
                out.flush()?;
                stream.write_to(&mut out)
            }));
            match written {
                Ok(Ok(())) => {}
                Ok(Err(e)) => log::debug!("control: {operation} ended: {e}"),
                Err(panic) => log::error!("control: {operation} panicked: {}", panic_message(&*panic)),
            }
        };
        let mut streams = self.streams();
        streams.retain(|thread| !thread.is_finished());
        match std::thread::Builder::new().name("http-stream".to_owned()).spawn(write) {
            Ok(thread) => streams.push(thread),
            // The request is answered with 500 as it is dropped.
            Err(e) => log::error!("control: starting a thread for {operation}: {e}"),
        }
    }

    /// The operation's name and its answer.
    fn answer(&self, request: &mut tiny_http::Request) -> (&'static str, Answer) {
        let method = request.method().as_str().to_owned();
        let target = request.url().to_owned();
        let listener = header_value(request, LISTENER_HEADER);
        let path = target.split('?').next().unwrap_or_default();
        if listener.as_deref() == Some(Kind::Metrics.name()) && path != "/metrics" {
            return (NO_OPERATION, ApiError::not_found("this listener serves /metrics only").into());
        }
        let (operation, call) = match self.routes.find(&method, &target) {
            Ok(found) => found,
            Err(miss) => return (NO_OPERATION, miss.into()),
        };
        let command = operation.spec.command;
        let peer = header_value(request, PEER_HEADER).and_then(|peer| peer.parse::<SocketAddr>().ok());
        let address = peer.map(|peer| peer.ip());
        let caller = match self.auth.admit(operation.spec, &Shown::of(request).credentials(), address) {
            Ok(caller) => caller,
            Err(refusal) => {
                self.audit_refusal(operation.spec, path, &refusal, Vec::new(), address);
                return (command, (*refusal).into());
            }
        };
        let mut call = match call {
            Ok(call) => call.called_by(caller.clone()),
            Err(error) => return (command, error.into()),
        };
        call.peer = peer;
        call.last_event_id = header_value(request, "last-event-id").filter(|id| !id.is_empty());
        if let Err(e) = request.as_reader().read_to_end(&mut call.body) {
            return (command, ApiError::validation(format!("the body could not be read: {e}")).into());
        }
        if operation.spec.body.is_none() && !call.body.is_empty() {
            return (command, ApiError::validation("this operation takes no body").into());
        }
        // An operation that panics is a mistake of ours, and its request's end, not the agent's.
        let result = catch_unwind(AssertUnwindSafe(|| (operation.run)(&call))).unwrap_or_else(|panic| {
            log::error!("control: {method} {path} panicked: {}", panic_message(&*panic));
            Err(ApiError::internal("the operation failed; the agent's log says why"))
        });
        let notes = call.take_notes();
        match result {
            // The operation knew more of what is asked than its role.
            Err(error) if error.status == 403 => {
                let refusal = self.auth.refused_by_operation(error, caller, address);
                self.audit_refusal(operation.spec, path, &refusal, notes, address);
                (command, (*refusal).into())
            }
            result => {
                self.audit(operation.spec, path, &caller, address, &result, notes);
                (command, result.map_or_else(Answer::from, Answer::from))
            }
        }
    }

    /// Tells the audit log of what changes something, and of what did not go well.
    fn audit(
        &self,
        spec: &Spec,
        path: &str,
        caller: &Caller,
        address: Option<IpAddr>,
        result: &Result<Reply, ApiError>,
        notes: Vec<Note>,
    ) {
        // What a viewer may do changes nothing, whatever its method: told of each time, it would push out of the trail what
        // did, as retention counts.
        if spec.method == Method::Get || (spec.role <= Role::Viewer && result.is_ok()) {
            return;
        }
        let (status, error) = match result {
            Ok(reply) => (reply.status(), String::new()),
            Err(error) => (error.status, format!(": {}", error.message)),
        };
        let entry = Entry::new(actor(caller, address), spec.command, status, format!("{} {path}{error}", spec.method));
        self.record(entry, notes);
    }

    /// Tells the audit log of who was not let, unless there are too many of them from one address: then it is told how many
    /// were left out by the next one that is not.
    fn audit_refusal(&self, spec: &Spec, path: &str, refusal: &Refusal, notes: Vec<Note>, address: Option<IpAddr>) {
        // Of strangers there may be too many; whoever is known is always told of.
        let untold = match (refusal.told, &refusal.caller) {
            (Some(untold), _) => untold,
            (None, Some(_)) => 0,
            (None, None) => return,
        };
        let nobody = Caller::anonymous(Role::Public);
        let caller = refusal.caller.as_ref().unwrap_or(&nobody);
        let more = if untold == 0 { String::new() } else { format!("; {untold} more before it") };
        let detail = format!("{} {path}: {}: {}{more}", spec.method, refusal.reason, refusal.detail);
        self.record(Entry::new(actor(caller, address), spec.command, refusal.error.status, detail), notes);
    }

    fn record(&self, entry: Entry, notes: Vec<Note>) {
        if notes.is_empty() {
            self.auditor.record(entry);
        } else {
            notes.into_iter().for_each(|note| self.auditor.record(entry.clone().with(note)));
        }
    }
}

/// The caller, as the audit log has them.
pub fn actor(caller: &Caller, address: Option<IpAddr>) -> Actor {
    Actor {
        name: caller.name.clone(),
        role: caller.role.name().to_owned(),
        address: address.map(|address| address.to_canonical()),
        method: caller.method.to_owned(),
    }
}

/// What a client says of itself, and what the front knows of it.
struct Shown {
    authorization: Option<String>,
    api_key: Option<String>,
    certificate: Option<String>,
    unix: Option<(u32, u32)>,
    peer: Option<IpAddr>,
}

impl Shown {
    fn of(request: &tiny_http::Request) -> Shown {
        let [authorization, api_key, certificate, uid, gid, peer] =
            ["authorization", "x-api-key", CERT_HEADER, UID_HEADER, GID_HEADER, PEER_HEADER]
                .map(|name| header_value(request, name));
        let number = |text: Option<String>| text.and_then(|text| text.parse::<u32>().ok());
        let peer = peer.and_then(|peer| peer.parse::<SocketAddr>().ok()).map(|peer| peer.ip());
        let certificate = certificate.and_then(|text| percent_decode(&text).ok());
        Shown { authorization, api_key, certificate, unix: number(uid).zip(number(gid)), peer }
    }

    fn credentials(&self) -> Credentials<'_> {
        Credentials {
            api_key: self.api_key.as_deref(),
            bearer: self.authorization.as_deref().map(auth::bearer),
            certificate: self.certificate.as_deref().map(|text| text.split_once(' ').unwrap_or((text, ""))),
            unix: self.unix,
        }
    }
}

/// The way to a stream's client, for as long as it may listen: a key may be taken away, a token expires.
struct Watched<W> {
    out: W,
    auth: Arc<Auth>,
    shown: Shown,
    role: Role,
    interval: Duration,
    next: Instant,
}

impl<W: Write> Write for Watched<W> {
    /// Before the bytes go anywhere: what is buffered gets out, whatever a flush says.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + self.interval;
            let asked = self.auth.require(self.role, &self.shown.credentials(), self.shown.peer);
            // That it cannot be told at present ends nothing. 429: a good key is never too many.
            if let Err(refusal) = asked
                && matches!(refusal.error.status, 401 | 403 | 429)
            {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal.error.message));
            }
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl front::Backend for Server {
    fn socket(&self) -> PathBuf {
        socket_path(&self.directory, self.backend().generation)
    }

    /// tiny_http's accept thread panics when descriptors run out at a bad moment, and tells nobody.
    fn gone(&self, socket: &Path) {
        let generation = self.backend().generation;
        if socket == socket_path(&self.directory, generation) {
            self.try_replace(generation, "it refuses connections");
        }
    }
}

/// An HTTP answer.
struct Answer {
    status: u16,
    content_type: Option<&'static str>,
    headers: Vec<(&'static str, String)>,
    body: String,
    /// What follows instead of the body.
    stream: Option<Stream>,
}

impl Answer {
    fn new(status: u16, content_type: Option<&'static str>, body: String) -> Answer {
        Answer { status, content_type, headers: Vec::new(), body, stream: None }
    }

    fn json(status: u16, body: &serde_json::Value) -> Answer {
        Answer::new(status, Some("application/json"), format!("{body}\n"))
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Answer {
        let status = reply.status();
        match reply {
            Reply::Json(body) | Reply::Created(body) | Reply::Status { body, .. } => Answer::json(status, &body),
            Reply::NoContent => Answer::new(status, None, String::new()),
            Reply::Text { content_type, body } => Answer::new(status, Some(content_type), body),
            Reply::Stream(stream) => {
                Answer { stream: Some(stream.clone()), ..Answer::new(status, Some(stream.content_type), String::new()) }
            }
        }
    }
}

impl From<ApiError> for Answer {
    fn from(error: ApiError) -> Answer {
        Answer::json(error.status, &error.body())
    }
}

impl From<Miss> for Answer {
    fn from(miss: Miss) -> Answer {
        let headers = miss.allow.into_iter().map(|allow| ("Allow", allow)).collect();
        Answer { headers, ..miss.error.into() }
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Answer {
        let challenge = refusal.challenge.map(|challenge| ("WWW-Authenticate", challenge.to_owned()));
        let wait = refusal.retry_after_secs.map(|secs| ("Retry-After", secs.to_string()));
        Answer { headers: challenge.into_iter().chain(wait).collect(), ..refusal.error.into() }
    }
}

fn listen(path: &Path) -> io::Result<Arc<tiny_http::Server>> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    tiny_http::Server::from_listener(listener, None).map(Arc::new).map_err(io::Error::other)
}

fn socket_path(directory: &Path, generation: u32) -> PathBuf {
    directory.join(format!("{generation}.sock"))
}

/// The head of a stream. Neither length nor chunks: it ends when the connection does.
fn stream_head(content_type: &str) -> String {
    let mut head = format!("HTTP/1.1 200 OK\r\n{STREAM_HEADER}: 1\r\nContent-Type: {content_type}\r\n");
    for (name, value) in COMMON_HEADERS {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("our header fields are ASCII")
}

fn header_value(request: &tiny_http::Request, name: &'static str) -> Option<String> {
    let field = request.headers().iter().find(|header| header.field.equiv(name))?;
    Some(field.value.as_str().to_owned())
}
