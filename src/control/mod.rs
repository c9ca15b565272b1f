//! The control port: REST and metrics over HTTP.
//!
//! `front` meets the network (with `tls`) and processes of this host (by `socket`), `server` runs operations behind it,
//! `auth` says who may call them, `routes` finds them, `openapi` describes them, `pages` shows that in a browser, and
//! `agent` holds those that belong to no component. Everything is built from a list of [`Operation`]s. `stream` tells
//! alerts as they happen to who asks over HTTP, and `grpc`, a port of its own, to who asks by gRPC.

pub mod agent;
pub mod auth;
pub mod front;
pub mod grpc;
pub mod openapi;
mod pages;
mod places;
mod port;
pub mod routes;
mod server;
mod socket;
pub mod stream;
pub mod tls;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use self::auth::Auth;
pub use self::front::Limits;
use self::front::{Front, Hosts, Kind, Socket, Stopper};
pub use self::port::Port;
use self::routes::Routes;
use self::server::Server;
use self::socket::SocketFile;
use self::tls::TlsStore;
use crate::api::Operation;
use crate::audit::{Auditor, NoAuditor};
use crate::metrics::Metrics;

/// What control listens on.
pub struct ControlConfig {
    /// `agent.bind_address` and `agent.http_port`.
    pub rest: Port,
    /// The same with `agent.metrics_port`. `/metrics` is on `rest` in any case.
    pub metrics: Option<Port>,
    /// What `rest` speaks TLS with, if it does.
    pub tls: Option<Arc<TlsStore>>,
    /// Whether `metrics` does too.
    pub metrics_tls: bool,
    /// Where processes of this host reach what is on `rest`, by a Unix socket.
    pub socket: Option<UnixSocket>,
    /// Where the socket between front and server may lie: `/run/ebpfsentinel`. Made if absent.
    pub runtime_dir: PathBuf,
    /// Names beside the host's own that a `Host` header may hold.
    pub host_names: Vec<String>,
    pub limits: Limits,
    /// Asks callers who they are; `None` asks nobody.
    pub auth: Option<Arc<Auth>>,
    /// Whether Swagger UI is served under `/swagger-ui/`.
    pub swagger_ui: bool,
    /// Told when a thread of control panics, with the thread's name and the message: the port does not work any more.
    pub on_failure: OnFailure,
    /// Told of every operation that changes something.
    pub auditor: Arc<dyn Auditor>,
}

/// A Unix socket on which nobody is served yet; see [`ControlConfig::socket`].
pub struct UnixSocket {
    file: SocketFile,
    listener: UnixListener,
}

impl UnixSocket {
    /// Listens at `path`, which is in the file system of `runtime_dir`, in place of a socket that nobody listens on any more.
    /// Giving it to its group takes `CAP_CHOWN`, so this comes before that is given up.
    pub fn bind(path: &Path, runtime_dir: &Path) -> anyhow::Result<UnixSocket> {
        let private = private_directory(runtime_dir)?;
        let bound = SocketFile::bind(path, &private);
        // Best effort: a leftover does no harm.
        let _ = fs::remove_dir_all(&private);
        let (file, listener) = bound?;
        Ok(UnixSocket { file, listener })
    }
}

/// See [`ControlConfig::on_failure`].
pub type OnFailure = Arc<dyn Fn(String, String) + Send + Sync>;

impl ControlConfig {
    /// REST on `rest`, plainly, nothing else, default limits, failures to the log only.
    pub fn new(rest: SocketAddr, runtime_dir: impl Into<PathBuf>) -> ControlConfig {
        ControlConfig {
            rest: rest.into(),
            metrics: None,
            tls: None,
            metrics_tls: true,
            socket: None,
            runtime_dir: runtime_dir.into(),
            host_names: Vec::new(),
            limits: Limits::default(),
            auth: None,
            swagger_ui: false,
            on_failure: Arc::new(|_, _| {}),
            auditor: Arc::new(NoAuditor),
        }
    }
}

/// Where control listens, with the real ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub rest: SocketAddr,
    pub metrics: Option<SocketAddr>,
}

/// The running control port.
pub struct Control {
    addresses: Addresses,
    stopper: Stopper,
    /// `None` when stopped.
    server: Option<Arc<Server>>,
    front: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
    /// Removed when the port stops.
    socket_file: Option<SocketFile>,
    directory: PathBuf,
    stop_timeout: Duration,
}

impl Control {
    /// Listens, and serves `operations`, and their description, on threads of its own.
    pub fn start(
        config: ControlConfig,
        mut operations: Vec<Operation>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Control> {
        operations.push(openapi::operation(operations.iter().map(|operation| operation.spec).collect()));
        if config.swagger_ui {
            operations.extend(pages::operations().context("reading Swagger UI")?);
        }
        let routes = Routes::new(operations)?;
        let rest = config.rest.listen("agent.http_port")?;
        let metrics_socket = config.metrics.map(|port| port.listen("agent.metrics_port")).transpose()?;
        let addresses = Addresses {
            rest: rest.local_addr().context("asking for the port")?,
            metrics: metrics_socket.as_ref().map(TcpListener::local_addr).transpose().context("asking for the port")?,
        };
        let mut sockets = vec![(Socket::Tcp(rest, config.tls.clone()), Kind::Rest)];
        if let Some(socket) = metrics_socket {
            let tls = config.tls.filter(|_| config.metrics_tls);
            sockets.push((Socket::Tcp(socket, tls), Kind::Metrics));
        }

        let directory = private_directory(&config.runtime_dir)?;
        let socket_file = config.socket.map(|UnixSocket { file, listener }| {
            sockets.push((Socket::Unix(listener, file.group()), Kind::Unix));
            file
        });
        let auth = config.auth.unwrap_or_else(|| Auth::open(&metrics));
        let every = config.limits.credentials_interval;
        let server = Server::new(directory.clone(), routes, auth, Arc::clone(&metrics), config.auditor, every)
            .with_context(|| format!("listening in {}", directory.display()))?;
        let server = Arc::new(server);
        let hosts = Hosts::new(&config.host_names);
        let backend: Arc<dyn front::Backend> = server.clone();
        let limits = config.limits;
        let (front, stopper) = Front::new(sockets, limits.clone(), hosts, backend, metrics)
            .context("setting up the control port's event loop")?;

        let mut control = Control {
            addresses,
            stopper,
            server: Some(Arc::clone(&server)),
            front: None,
            workers: Vec::new(),
            socket_file,
            directory,
            stop_timeout: limits.stop_timeout,
        };
        control.front = Some(spawn("http-front".to_owned(), &config.on_failure, move || front.run())?);
        for i in 0..limits.workers {
            let server = Arc::clone(&server);
            control.workers.push(spawn(format!("http-{i}"), &config.on_failure, move || server.work())?);
        }
        Ok(control)
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Where its Unix socket is.
    pub fn socket(&self) -> Option<&Path> {
        self.socket_file.as_ref().map(SocketFile::path)
    }

    /// Stops accepting, lets what is under way end (for [`Limits::stop_timeout`]), and takes its threads down.
    pub fn stop(self) {
        drop(self);
    }

    fn shut_down(&mut self) {
        let deadline = Instant::now() + self.stop_timeout + Duration::from_secs(1);
        self.stopper.stop();
        self.socket_file = None;
        join_until(self.front.take(), deadline);
        if let Some(server) = &self.server {
            server.stop(self.workers.len());
        }
        // An operation that hangs keeps its thread; the process ends all the same.
        self.workers.drain(..).for_each(|worker| join_until(Some(worker), deadline));
        let streams = self.server.as_ref().map(|server| server.take_streams()).unwrap_or_default();
        streams.into_iter().for_each(|stream| join_until(Some(stream), deadline));
        // Before its socket goes: tiny_http ends its accept thread by connecting to it.
        self.server = None;
        if let Err(e) = fs::remove_dir_all(&self.directory) {
            log::warn!("control: removing {}: {e}", self.directory.display());
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn spawn(name: String, on_failure: &OnFailure, run: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    let on_failure = Arc::clone(on_failure);
    let inside = name.clone();
    let run = move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            let message = panic_message(&*panic);
            log::error!("control: the thread {inside} panicked: {message}");
            on_failure(inside, message.to_owned());
        }
    };
    std::thread::Builder::new().name(name.clone()).spawn(run).with_context(|| format!("starting the thread {name}"))
}

/// The text of a panic.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// `JoinHandle` has no join with a deadline.
fn join_until(thread: Option<JoinHandle<()>>, deadline: Instant) {
    let Some(thread) = thread else { return };
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            log::warn!("control: the thread {} does not end", thread.thread().name().unwrap_or("?"));
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // A panic was logged when it happened.
    let _ = thread.join();
}

/// A directory of this process that only its user may enter: whoever reaches the socket in it can claim any peer address.
/// Those of processes that are gone (killed, not stopped) are removed.
fn private_directory(runtime_dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(runtime_dir).with_context(|| format!("making {}", runtime_dir.display()))?;
    for entry in fs::read_dir(runtime_dir).with_context(|| format!("reading {}", runtime_dir.display()))?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("http-")?.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Best effort: a leftover does no harm.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    // A process may have several control ports (tests do), and a pid may come again.
    for n in 0..1000 {
        let directory = runtime_dir.join(format!("http-{}-{n}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
            other => other.with_context(|| format!("making {}", directory.display()))?,
        }
        let made = fs::symlink_metadata(&directory).with_context(|| format!("looking at {}", directory.display()))?;
        let ours = made.is_dir() && made.uid() == nix::unistd::geteuid().as_raw();
        ensure!(ours && made.permissions().mode() & 0o077 == 0, "{} is not private", directory.display());
        return Ok(directory);
    }
    anyhow::bail!("{} is full of directories of this process", runtime_dir.display())
}
