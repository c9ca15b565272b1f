//! `cargo bench --bench control`: what the control port answers, and what the alert pipeline takes.
//!
//! Requests come from this process, through the front, tiny_http and an operation that answers a kilobyte: by
//! connections that are kept as long as the port keeps them. Alerts go through router and store as the agent's do, and
//! then pages of them are asked for. Figures go to `target/bench/control.json`; all of it shares the host's cores with
//! the client.
//!
//! `cargo bench --bench control -- [--quick] [--only requests|alerts]`: shorter; one part only, and then no file is
//! written.

#[path = "control/client.rs"]
mod client;
#[path = "firewall/figures.rs"]
pub mod figures;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ebpfsentinel::alert::{self, Alert, Route, Router, Severity, Suppressions};
use ebpfsentinel::api::{self, Method, Operation, Reply, Role, Spec};
use ebpfsentinel::component::Component;
use ebpfsentinel::control::{Control, ControlConfig, Limits};
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::store::alerts::{AlertStore, Limits as StoreLimits, Question};
use ebpfsentinel::store::block::Wanted;
use ebpfsentinel::supervise::Supervisor;
use figures::{Figures, median};

const CONNECTIONS: [usize; 3] = [1, 64, 512];
const PARTS: [&str; 2] = ["requests", "alerts"];
/// Connections of each kind that hold the port up.
const SLOW: usize = 8;
/// The alerts among which pages are looked for; a quick run has as many, since the figure is named after them.
const STORED: u64 = 1_000_000;
/// Alerts on their way to the disk at most: the store's queue has room for them.
const UNDER_WAY: u64 = 32_768;

static PAGE: Spec = Spec {
    command: "page",
    method: Method::Get,
    path: "/page",
    query: &[],
    role: Role::Public,
    summary: "A kilobyte",
    body: None,
    reply: api::schema::<Vec<String>>,
    success: 200,
};
static LONG: Spec = Spec {
    command: "long",
    method: Method::Get,
    path: "/long",
    query: &[],
    role: Role::Public,
    summary: "Four megabytes",
    body: None,
    reply: api::schema::<String>,
    success: 200,
};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let quick = args.iter().any(|arg| arg == "--quick");
    let only = args.iter().position(|arg| arg == "--only").map(|at| args.get(at + 1).map_or("", String::as_str));
    if let Some(part) = only
        && !PARTS.contains(&part)
    {
        bail!("--only takes one of {}", PARTS.join(", "));
    }
    let wants = |part| only.is_none_or(|only| only == part);
    let mut figures = Figures::default();
    if wants("requests") {
        requests(&mut figures, Duration::from_secs(if quick { 2 } else { 10 }))?;
    }
    if wants("alerts") {
        alerts(&mut figures)?;
    }
    for (name, value) in figures.starting_with("") {
        println!("{name:<24} {value:>12.3}");
    }
    if only.is_none() {
        println!("written to {}", figures.write("control")?.display());
    }
    Ok(())
}

/// A control port with room for all connections of this bench; what the default limits are for is tested elsewhere.
fn port(directory: &std::path::Path) -> Result<Control> {
    let mut config = ControlConfig::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), directory.join("run"));
    config.limits =
        Limits { connections: 1024, connections_loopback: 1024, requests_per_connection: 1000, ..Limits::default() };
    let page: Vec<String> = (0..40).map(|n| format!("a line of the page, {n:04}")).collect();
    let operations = vec![
        Operation::new(&PAGE, move |_| Ok(Reply::json(&page))),
        Operation::new(&LONG, |_| Ok(Reply::json(&"x".repeat(4 << 20)))),
    ];
    Control::start(config, operations, Metrics::new())
}

fn requests(figures: &mut Figures, length: Duration) -> Result<()> {
    let directory = tempfile::tempdir().context("making a folder")?;
    let control = port(directory.path())?;
    let address = control.addresses().rest;
    // Threads, pages and sockets that are there for the first time are nobody's figure.
    client::load(address, 8, "/page", Duration::from_millis(300))?;
    for connections in CONNECTIONS {
        let load = client::load(address, connections, "/page", length)?;
        figures.set(format!("requests_per_s.{connections}"), load.per_second());
        figures.set(format!("p99_ms.{connections}"), load.percentile_ms(99.0));
    }
    let slow = slow_neighbours(address)?;
    let load = client::load(address, 64, "/page", length)?;
    figures.set("p99_ms.slow_neighbour", load.percentile_ms(99.0));
    drop(slow);
    control.stop();
    Ok(())
}

/// Connections that say nothing, half a head, half a body, and that ask for what they do not read.
fn slow_neighbours(address: SocketAddr) -> Result<Vec<TcpStream>> {
    let beginnings = [
        "",
        "GET /page HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        "POST /page HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{",
        "GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ];
    let mut streams = Vec::new();
    for beginning in beginnings.iter().flat_map(|beginning| std::iter::repeat_n(beginning, SLOW)) {
        let mut stream = TcpStream::connect(address).context("connecting a slow client")?;
        stream.write_all(beginning.as_bytes()).context("beginning slowly")?;
        streams.push(stream);
    }
    Ok(streams)
}

fn alerts(figures: &mut Figures) -> Result<()> {
    let directory = tempfile::tempdir().context("making a folder")?;
    let metrics = Metrics::new();
    let (supervisor, _failures) = Supervisor::new().context("setting up supervision")?;
    let suppressions = Arc::new(Suppressions::default());
    let limits = StoreLimits { age: Duration::from_secs(86_400), count: 2 * STORED, buffer: 2 * UNDER_WAY as usize };
    let path = directory.path().join("alerts.redb");
    let (store, store_thread) = AlertStore::start(path, limits, &suppressions, &metrics, &supervisor)?;
    // Nothing is folded or held back: each of these alerts is told and kept.
    let limits = alert::Limits {
        fold_window: Duration::ZERO,
        throttle_max: u32::MAX,
        alerts_per_second: u32::MAX,
        ..alert::Limits::default()
    };
    let (sender, queue) = alert::queue(&metrics, 2 * UNDER_WAY as usize);
    let routes = vec![Route::all(store.sink())];
    let router = Router::new(limits, routes, suppressions, None, &metrics, Instant::now());
    let (router, router_thread) = supervisor.spawn_owner("alert-router", router, queue)?;

    let written = metrics.store_records("alerts");
    let begin = Instant::now();
    for number in 0..STORED {
        while number - written.get().min(number) >= UNDER_WAY {
            ensure!(begin.elapsed() < Duration::from_secs(600), "the store stands still at {}", written.get());
            std::thread::sleep(Duration::from_micros(200));
        }
        sender.send(made(number));
    }
    while written.get() < STORED {
        ensure!(begin.elapsed() < Duration::from_secs(600), "{} of {STORED} alerts were kept", written.get());
        std::thread::sleep(Duration::from_micros(200));
    }
    figures.set("alerts_per_s", STORED as f64 / begin.elapsed().as_secs_f64());

    // One rule of a thousand and one severity of four, wherever they stand.
    let mut times = Vec::new();
    for round in 0..50u64 {
        let wanted = Wanted { min_severity: Some(Severity::High), ..Wanted::default() };
        let wanted = wanted.of_rule(&rule_of(round * 37));
        let question = Question { wanted, text: None, limit: 100, offset: 0 };
        let begin = Instant::now();
        let answer = store.find(&question).context("looking for alerts")?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(answer.alerts.len() == 100, "{} alerts on the page", answer.alerts.len());
    }
    figures.set(format!("query_ms.{STORED}"), median(times));
    router.stop()?;
    router_thread.join(Duration::from_secs(10))?;
    store.handle().stop()?;
    store_thread.join(Duration::from_secs(10))?;
    Ok(())
}

fn rule_of(number: u64) -> String {
    format!("rule-{:03}", number % 1000)
}

/// An alert as the firewall makes them, of many sources and a thousand rules; each rule has all severities.
fn made(number: u64) -> Alert {
    let severity = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical][(number / 1000 % 4) as usize];
    let now = 1_796_080_000_000_000_000 + number * 1_000_000;
    let message = format!("packet dropped by rule {}", rule_of(number));
    let mut alert = Alert::new(Component::Firewall, severity, rule_of(number), "drop", now, message);
    alert.src_ip = Some(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + (number * 7919 % 100_000) as u32)));
    alert.dst_ip = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)));
    (alert.src_port, alert.dst_port) = (Some((number % 60_000) as u16), Some(443));
    alert.protocol = Some(6);
    alert.interface = Some("eth0".to_owned());
    alert
}
