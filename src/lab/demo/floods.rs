//! Scene two: floods against the limits of conf/examples/ratelimit.toml, behind the firewall of scene one. Each goes on
//! until what happens beside it was seen.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};

use super::scene::{
    ADMIN, ADMIN_V6, ASKING, FLOODER, FLOODER_V6, HOST, HOST_V6, NOBODY, NOBODY_V6, PAGES, Scene, VISITOR, VISITOR_V6,
    connection,
};
use super::steps::word;
use super::{FIREWALL, INTERRUPTED, LONG_PATIENCE, PATIENCE, Score, Stage, interrupted};
use crate::lab::{Frame, FrameSocket};
use crate::packet::build::Packet;

const LIMITS: &str = include_str!("../../../conf/examples/ratelimit.toml");

/// A flood ends after this, however slow the machine is.
const FLOOD_MAX: Duration = Duration::from_secs(20);
const DATAGRAMS_MIN: u64 = 20_000;
/// SYNs and pings that differ. All are sent, and then again.
const FRAMES: u16 = 2_000;
const PAYLOAD: usize = 1400;
/// The port that datagrams of a flood come from.
const FLOOD_PORT: u16 = 7000;
/// What a receiver waits for more before it looks whether it is to end.
const SILENCE: Duration = Duration::from_millis(100);
/// Room for all that may pass at once.
const RECEIVE_BUFFER: usize = 16 << 20;

#[derive(Clone, Copy)]
enum Kind {
    /// Datagrams to a port that is open to everybody.
    Datagrams,
    /// Datagrams to a port that the host has sent one from: answers to it pass the firewall.
    Answers,
    Syns,
    /// SYNs to the pages, from addresses that nobody has: `from` and others near it, in IPv6 a /64 each.
    Invented,
    Pings,
}

/// What is tried while a flood goes on.
enum Beside {
    /// An HTTP request and its answer.
    Page(&'static str),
    /// A datagram.
    Datagram(&'static str),
    /// A TCP connection, and whether it comes about.
    Connection(&'static str, bool),
    /// An echo request and its answer.
    Ping(&'static str),
}

struct Flood {
    about: &'static str,
    kind: Kind,
    from: &'static str,
    /// The limit that it runs into.
    limit: &'static str,
    beside: &'static [(&'static str, Beside)],
}

static FLOODS: &[Flood] = &[
    Flood {
        about: "visitor floods with HTTP/3",
        kind: Kind::Datagrams,
        from: VISITOR,
        limit: "quic",
        beside: &[
            ("meanwhile: another fetches a page", Beside::Page(ADMIN)),
            ("meanwhile: another sends HTTP/3", Beside::Datagram(ADMIN)),
        ],
    },
    Flood {
        about: "the same over IPv6",
        kind: Kind::Datagrams,
        from: VISITOR_V6,
        limit: "quic",
        beside: &[
            ("meanwhile: another fetches a page", Beside::Page(ADMIN_V6)),
            ("meanwhile: another sends HTTP/3", Beside::Datagram(ADMIN_V6)),
        ],
    },
    Flood {
        about: "flood of answers to one question",
        kind: Kind::Answers,
        from: VISITOR,
        limit: "udp-flood",
        beside: &[("meanwhile: another fetches a page", Beside::Page(ADMIN))],
    },
    Flood {
        about: "the same over IPv6",
        kind: Kind::Answers,
        from: VISITOR_V6,
        limit: "udp-flood",
        beside: &[("meanwhile: another fetches a page", Beside::Page(ADMIN_V6))],
    },
    Flood {
        about: "flood of SYNs",
        kind: Kind::Syns,
        from: FLOODER,
        limit: "syn-flood",
        beside: &[
            ("it is blocked: no connection at all", Beside::Connection(FLOODER, false)),
            ("meanwhile: another connects", Beside::Connection(VISITOR, true)),
        ],
    },
    Flood {
        about: "the same over IPv6",
        kind: Kind::Syns,
        from: FLOODER_V6,
        limit: "syn-flood",
        beside: &[
            ("it is blocked: no connection at all", Beside::Connection(FLOODER_V6, false)),
            ("meanwhile: another connects", Beside::Connection(VISITOR_V6, true)),
        ],
    },
    Flood {
        about: "SYNs from invented addresses",
        kind: Kind::Invented,
        from: NOBODY,
        limit: "syn-cookies",
        beside: &[("meanwhile: another fetches a page", Beside::Page(ADMIN))],
    },
    Flood {
        about: "the same over IPv6",
        kind: Kind::Invented,
        from: NOBODY_V6,
        limit: "syn-cookies",
        beside: &[("meanwhile: another fetches a page", Beside::Page(ADMIN_V6))],
    },
    Flood {
        about: "flood of pings",
        kind: Kind::Pings,
        from: VISITOR,
        limit: "icmp-flood",
        beside: &[("meanwhile: ping of another", Beside::Ping(ADMIN))],
    },
    Flood {
        about: "the same over IPv6",
        kind: Kind::Pings,
        from: VISITOR_V6,
        limit: "icmpv6-flood",
        beside: &[("meanwhile: ping of another", Beside::Ping(ADMIN_V6))],
    },
];

/// The whole firewall example, and what the other example says of limits.
pub(super) fn config() -> Result<String> {
    let (_, limits) = LIMITS.split_once("\n[ratelimit]\n").context("the example of limits has no [ratelimit]")?;
    Ok(format!("{FIREWALL}\n[ratelimit]\n{limits}"))
}

/// Plays all floods.
pub(super) fn play(stage: &mut Stage, score: &mut Score) -> Result<()> {
    Score::head("LIMIT");
    for flood in FLOODS {
        interrupted()?;
        play_one(stage, flood, score).with_context(|| format!("step \"{}\" of {}", flood.about, flood.from))?;
    }
    Ok(())
}

/// What was seen of something that was tried beside a flood.
struct Seen {
    passed: bool,
    /// The limit whose bucket of this source is blocked.
    blocked_by: Option<String>,
}

fn play_one(stage: &Stage, flood: &Flood, score: &mut Score) -> Result<()> {
    let before = Counters::of(stage, flood.limit)?;
    let receiver = Receiver::start(&stage.scene, flood)?;
    let begun = Instant::now();
    let sender = start_sender(&stage.scene, flood)?;
    wait_over(stage, flood.limit, &before)?;
    let mut seen = Vec::new();
    for (about, beside) in flood.beside {
        interrupted()?;
        seen.push(look(stage, beside, &receiver).with_context(|| (*about).to_owned())?);
    }
    let sent = sender.end()?;
    let arrived = receiver.end(flood.from.parse()?)?;
    let after = Counters::of(stage, flood.limit)?;
    let (passed, over) = (after.passed - before.passed, after.over - before.over);
    // Where SYNs are answered, those over the limit are, and there are as many answers as questions that differ.
    let (most, kept) = match flood.kind {
        Kind::Invented => (FRAMES.into(), arrived <= passed + over),
        _ => {
            let most = after.most_in(begun.elapsed(), flood.frame_bits());
            (most, arrived <= passed && passed <= most)
        }
    };
    score.add(
        arrived > 0 && kept && over > 0,
        [flood.about, &flood.words(sent), &format!("<= {most}"), &arrived.to_string(), flood.limit],
        &format!("the limit counted {passed} passed and {over} over it"),
    );
    for ((about, beside), seen) in flood.beside.iter().zip(seen) {
        let blocked_by = (!beside.passes()).then_some(flood.limit);
        score.add(
            seen.passed == beside.passes() && seen.blocked_by.as_deref() == blocked_by,
            [
                about,
                &beside.words(),
                word(beside.passes()),
                word(seen.passed),
                seen.blocked_by.as_deref().unwrap_or("-"),
            ],
            &format!("expected limit {}", blocked_by.unwrap_or("-")),
        );
    }
    Ok(())
}

/// Waits until the flood is over its limit. If it never is, its own line tells.
fn wait_over(stage: &Stage, limit: &str, before: &Counters) -> Result<()> {
    let deadline = Instant::now() + LONG_PATIENCE;
    while Counters::of(stage, limit)?.over == before.over && Instant::now() < deadline {
        interrupted()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Tries something beside a flood.
fn look(stage: &Stage, beside: &Beside, receiver: &Receiver) -> Result<Seen> {
    let scene = &stage.scene;
    let (from, to) = (beside.from(), host_of(beside.from()));
    let passed = match beside {
        Beside::Page(_) => scene.fetches(from, to)?,
        Beside::Datagram(_) => datagram_arrives(scene, from, to, receiver)?,
        Beside::Connection(_, passes) => {
            let patience = if *passes { LONG_PATIENCE } else { PATIENCE };
            scene.world.run(|| connection(Some(from), to, 443, patience))??.is_some()
        }
        Beside::Ping(_) => ping_is_answered(scene, from, to)?,
    };
    let buckets = stage.get(&format!("/api/v1/ratelimit/buckets/{from}"))?;
    let is_blocked = |bucket: &&serde_json::Value| bucket["blocked_secs_left"].as_u64().is_some_and(|secs| secs > 0);
    let blocked = buckets.as_array().context("buckets are not a list")?.iter().find(is_blocked);
    Ok(Seen { passed, blocked_by: blocked.and_then(|bucket| bucket["rule"].as_str()).map(str::to_owned) })
}

/// Sends again what may be lost where a flood fills the link.
fn datagram_arrives(scene: &Scene, from: &str, to: &str, receiver: &Receiver) -> Result<bool> {
    let (from, to): (IpAddr, IpAddr) = (from.parse()?, to.parse()?);
    let socket = scene.world.run(|| UdpSocket::bind((from, 0)))??;
    let send = || {
        socket.send_to(b"hello", (to, 443))?;
        Ok(())
    };
    retried(send, || Ok(receiver.count(from) > 0))
}

fn ping_is_answered(scene: &Scene, from: &str, to: &str) -> Result<bool> {
    const ID: u16 = 77;
    let (sender, listener) = (FrameSocket::open(&scene.world, "eth0")?, FrameSocket::open(&scene.world, "eth0")?);
    let ping = scene.addressed(Packet::new().between(from, to).ping(ID, 1)).build();
    let answers = Answers { to: from.parse()?, kind: Kind::Pings };
    let send = || {
        // A full link is no reason to give up.
        let _ = sender.send(&ping);
        Ok(())
    };
    let is_answer = |frame: &Frame| answers.number_of(&frame.bytes).is_some();
    retried(send, || Ok(listener.receive(SILENCE, is_answer)?.is_some()))
}

/// Sends and looks by turns, until it is seen or patience ends.
fn retried(send: impl Fn() -> Result<()>, seen: impl Fn() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + LONG_PATIENCE;
    while Instant::now() < deadline {
        interrupted()?;
        send()?;
        for _ in 0..10 {
            if seen()? {
                return Ok(true);
            }
            std::thread::sleep(SILENCE / 10);
        }
    }
    Ok(false)
}

/// The guarded host's address in the family of `address`.
fn host_of(address: &str) -> &'static str {
    if address.contains(':') { HOST_V6 } else { HOST }
}

impl Flood {
    fn words(&self, sent: u64) -> String {
        let Flood { from, .. } = self;
        match self.kind {
            Kind::Datagrams | Kind::Answers => format!("{sent} udp {from} to {}", self.port()),
            Kind::Syns => format!("{sent} syn {from}"),
            Kind::Invented => format!("{sent} syn from anywhere"),
            Kind::Pings => format!("{sent} ping {from}"),
        }
    }

    fn port(&self) -> u16 {
        match self.kind {
            Kind::Answers => ASKING,
            Kind::Invented => PAGES,
            _ => 443,
        }
    }

    /// Bits of a datagram's frame.
    fn frame_bits(&self) -> u64 {
        8 * (14 + if self.from.contains(':') { 40 } else { 20 } + 8 + PAYLOAD as u64)
    }
}

impl Beside {
    fn from(&self) -> &'static str {
        match self {
            Beside::Page(from) | Beside::Datagram(from) | Beside::Connection(from, _) | Beside::Ping(from) => from,
        }
    }

    fn passes(&self) -> bool {
        !matches!(self, Beside::Connection(_, false))
    }

    fn words(&self) -> String {
        match self {
            Beside::Page(from) => format!("http {from} to 80"),
            Beside::Datagram(from) => format!("udp {from} to 443"),
            Beside::Connection(from, _) => format!("tcp {from} to 443"),
            Beside::Ping(from) => format!("ping {from}"),
        }
    }
}

/// A limit and what it has counted.
struct Counters {
    rate: u64,
    burst: u64,
    in_bits: bool,
    passed: u64,
    over: u64,
}

impl Counters {
    fn of(stage: &Stage, limit: &str) -> Result<Counters> {
        let rule = stage.get(&format!("/api/v1/ratelimit/rules/{limit}"))?;
        let number = |key: &str| rule[key].as_u64().with_context(|| format!("{limit} has no {key}"));
        // Windows have no burst.
        Ok(Counters {
            rate: number("rate")?,
            burst: rule["burst"].as_u64().unwrap_or(0),
            in_bits: rule["unit"] == "bits",
            passed: number("passed")?,
            over: number("over_limit")?,
        })
    }

    /// Packets that may pass in a time: a tenth more than the limit says, and the few of others.
    fn most_in(&self, time: Duration, frame_bits: u64) -> u64 {
        let units = self.burst as f64 + self.rate as f64 * time.as_secs_f64();
        let packets = if self.in_bits { units / frame_bits as f64 } else { units };
        (packets * 1.1) as u64 + 5
    }
}

/// A thread that sends, or counts, until it is told to end, or dropped.
struct Worker<R> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<R>>>,
}

impl<R> Worker<R> {
    fn end(mut self) -> Result<R> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it has ended before")?;
        thread.join().map_err(|_| anyhow!("a thread of the demo has panicked"))?
    }
}

impl<R> Drop for Worker<R> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Whatever it says, the demo has failed for another reason.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Sends a flood. The worker's result is how much was sent.
fn start_sender(scene: &Scene, flood: &Flood) -> Result<Worker<u64>> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = match flood.kind {
        Kind::Datagrams | Kind::Answers => {
            let from: IpAddr = flood.from.parse()?;
            let socket = scene.world.run(|| UdpSocket::bind((from, FLOOD_PORT)))??;
            if matches!(flood.kind, Kind::Answers) {
                scene.udp_server(ASKING)?.send_to(b"a question", question_to(from))?;
            }
            let to = SocketAddr::new(host_of(flood.from).parse()?, flood.port());
            let send = move |_| socket.send_to(&[0; PAYLOAD], to).is_ok();
            scene.world.spawn(move || repeat(DATAGRAMS_MIN, &stopped, send))
        }
        Kind::Syns | Kind::Invented | Kind::Pings => {
            let frames: Vec<_> = (0..FRAMES).map(|number| frame(scene, flood, number)).collect();
            let socket = FrameSocket::open(&scene.world, "eth0")?;
            let send = move |at: usize| socket.send(&frames[at % frames.len()]).is_ok();
            scene.world.spawn(move || repeat(FRAMES.into(), &stopped, send))
        }
    }?;
    Ok(Worker { stop, thread: Some(thread) })
}

/// The address as a socket for both families takes it.
fn question_to(address: IpAddr) -> SocketAddr {
    let mapped = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    SocketAddr::new(IpAddr::V6(mapped), FLOOD_PORT)
}

fn frame(scene: &Scene, flood: &Flood, number: u16) -> Vec<u8> {
    let other = 1 + number % 250;
    let invented = match (flood.kind, flood.from.split_once("::")) {
        (Kind::Invented, Some((network, _))) => Some(format!("{network}:{other:x}::1")),
        (Kind::Invented, None) => flood.from.rsplit_once('.').map(|(network, _)| format!("{network}.{other}")),
        _ => None,
    };
    let packet = Packet::new().between(invented.as_deref().unwrap_or(flood.from), host_of(flood.from));
    let packet = match flood.kind {
        Kind::Pings => packet.ping(7, number),
        _ => packet.tcp(20_000 + number, flood.port()),
    };
    scene.addressed(packet).build()
}

/// Sends as fast as it goes: at least so many, and then until it is to end. How many were sent.
fn repeat(least: u64, stop: &AtomicBool, send: impl Fn(usize) -> bool) -> u64 {
    let deadline = Instant::now() + FLOOD_MAX;
    let mut sent = 0;
    let mut tries = 0;
    while (sent < least || !stop.load(Ordering::Relaxed)) && Instant::now() < deadline {
        if INTERRUPTED.load(Ordering::Relaxed) {
            break;
        }
        sent += u64::from(send(tries));
        tries += 1;
    }
    sent
}

/// Which frames answer a flood.
struct Answers {
    to: IpAddr,
    kind: Kind,
}

impl Answers {
    /// What tells the answers apart: the port that is answered, or the ping's number.
    fn number_of(&self, frame: &[u8]) -> Option<u16> {
        let (to, protocol, at): (IpAddr, u8, usize) = match frame.get(12..14)? {
            [0x08, 0x00] => (<[u8; 4]>::try_from(frame.get(30..34)?).ok()?.into(), *frame.get(23)?, 34),
            [0x86, 0xdd] => (<[u8; 16]>::try_from(frame.get(38..54)?).ok()?.into(), *frame.get(20)?, 54),
            _ => return None,
        };
        let rest = frame.get(at..)?;
        const SYN_AND_ACK: u8 = 0x12;
        let place = match (self.kind, protocol, *rest.first()?) {
            (Kind::Syns | Kind::Invented, 6, _) if *rest.get(13)? & SYN_AND_ACK == SYN_AND_ACK => 2,
            (Kind::Pings, 1, 0) | (Kind::Pings, 58, 129) => 6,
            _ => return None,
        };
        let number = <[u8; 2]>::try_from(rest.get(place..place + 2)?).ok()?;
        self.is_for(to).then(|| u16::from_be_bytes(number))
    }

    fn is_for(&self, to: IpAddr) -> bool {
        match (self.kind, to, self.to) {
            (Kind::Invented, IpAddr::V4(to), IpAddr::V4(from)) => to.octets()[..3] == from.octets()[..3],
            (Kind::Invented, IpAddr::V6(to), IpAddr::V6(from)) => to.octets()[..6] == from.octets()[..6],
            _ => to == self.to,
        }
    }
}

/// Sees what a flood brought: the datagrams in the host, or the answers in the world.
enum Receiver {
    Datagrams { counts: Arc<Mutex<HashMap<IpAddr, u64>>>, worker: Worker<()> },
    Answers { worker: Worker<Result<HashSet<u16>>> },
}

impl Receiver {
    fn start(scene: &Scene, flood: &Flood) -> Result<Receiver> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        if matches!(flood.kind, Kind::Datagrams | Kind::Answers) {
            let socket = scene.udp_server(flood.port())?.try_clone()?;
            socket.set_read_timeout(Some(SILENCE))?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            let counts = Arc::new(Mutex::new(HashMap::new()));
            let counting = counts.clone();
            let thread = scene.host.spawn(move || count_datagrams(&socket, &counting, &stopped))?;
            return Ok(Receiver::Datagrams { counts, worker: Worker { stop, thread: Some(thread) } });
        }
        let socket = FrameSocket::open(&scene.world, "eth0")?;
        let answers = Answers { to: flood.from.parse()?, kind: flood.kind };
        let thread = scene.world.spawn(move || collect_answers(&socket, &answers, &stopped))?;
        Ok(Receiver::Answers { worker: Worker { stop, thread: Some(thread) } })
    }

    /// Datagrams of a source so far.
    fn count(&self, from: IpAddr) -> u64 {
        match self {
            Receiver::Datagrams { counts, .. } => count_of(counts, from),
            Receiver::Answers { .. } => 0,
        }
    }

    /// Ends when nothing more comes; how much came from, or went as an answer to, `from`.
    fn end(self, from: IpAddr) -> Result<u64> {
        match self {
            Receiver::Datagrams { counts, worker } => {
                worker.end()?;
                Ok(count_of(&counts, from))
            }
            Receiver::Answers { worker } => Ok(worker.end()??.len() as u64),
        }
    }
}

fn count_of(counts: &Mutex<HashMap<IpAddr, u64>>, from: IpAddr) -> u64 {
    counts.lock().unwrap_or_else(PoisonError::into_inner).get(&from).copied().unwrap_or(0)
}

fn count_datagrams(socket: &UdpSocket, counts: &Mutex<HashMap<IpAddr, u64>>, stop: &AtomicBool) {
    let deadline = Instant::now() + 2 * FLOOD_MAX;
    let mut buffer = [0; 1];
    while Instant::now() < deadline {
        match socket.recv_from(&mut buffer) {
            Ok((_, from)) => {
                let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                *counts.entry(from.ip().to_canonical()).or_default() += 1;
            }
            Err(_) if stop.load(Ordering::Relaxed) => return,
            Err(_) => {}
        }
    }
}

fn collect_answers(socket: &FrameSocket, answers: &Answers, stop: &AtomicBool) -> Result<HashSet<u16>> {
    let deadline = Instant::now() + 2 * FLOOD_MAX;
    let mut numbers = HashSet::new();
    while Instant::now() < deadline {
        let answer = |bytes: &[u8]| answers.number_of(bytes);
        match socket.receive(SILENCE, |frame| answer(&frame.bytes).is_some())? {
            Some(frame) => numbers.extend(answer(&frame.bytes)),
            None if stop.load(Ordering::Relaxed) => break,
            None => {}
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floods_speak_of_limits_that_exist() {
        let config = config().unwrap();
        assert_eq!(config.matches("\n[agent]\n").count(), 1);
        for flood in FLOODS {
            assert!(config.contains(&format!("id = \"{}\"", flood.limit)), "{}", flood.limit);
        }
    }
}
