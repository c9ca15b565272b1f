//! An outlet: the queue and the thread of one destination.
//!
//! Without a spool the thread takes alerts from the queue; with one a second thread writes them to the disk and the
//! first reads them there, so that a destination that hangs does not keep alerts from the disk. A destination whose
//! spool was taken away has what is left in it first, and then the queue. Alerts go out in order. A failure is tried
//! again, after pauses, until it succeeds. Each failure gives up whatever is too old by then, in the hand, the queue
//! and the spool, so that what is new finds room; a refusal is counted and logged.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};

use super::circuit::{Circuit, CircuitConfig, State, Try, chance};
use super::notice::now_ms;
use super::spool::{Spool, Token};
use super::{Deliver, Failure, FailureKind, Notice, Sink};
use crate::alert::Alert;
use crate::metrics::{Metrics, SenderMetrics};

/// Alerts that wait for an outlet's thread.
pub const QUEUE_MAX: usize = 8192;
/// An outlet that has nothing to do looks up so often.
const IDLE: Duration = Duration::from_secs(3600);
/// How often what was spooled is brought to the disk.
const SYNC: Duration = Duration::from_secs(1);
/// Refusals are logged at most so often; all are counted.
const REFUSALS_LOGGED: Duration = Duration::from_secs(60);

/// How an outlet works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutletConfig {
    /// Alerts that are sent at a time.
    pub batch_max: usize,
    /// Time between two deliveries, unless there are `batch_max` alerts. The first alert goes at once.
    pub linger: Duration,
    /// How old an alert is when a failure gives it up.
    pub give_up: Duration,
    /// The circuit breaker.
    pub circuit: CircuitConfig,
}

impl Default for OutletConfig {
    fn default() -> OutletConfig {
        OutletConfig {
            batch_max: 64,
            linger: Duration::ZERO,
            give_up: Duration::from_secs(86_400),
            circuit: CircuitConfig {
                failures_max: 5,
                open: Duration::from_secs(60),
                pause_max: Duration::from_secs(30),
            },
        }
    }
}

/// The router's end of an outlet. Clones lead to the same queue.
#[derive(Clone)]
pub struct Outlet {
    name: Arc<str>,
    alerts: Sender<Arc<Alert>>,
    metrics: SenderMetrics,
}

impl Outlet {
    /// The router's end of a queue.
    pub(super) fn new(name: &str, alerts: Sender<Arc<Alert>>, metrics: &Arc<Metrics>) -> Outlet {
        Outlet { name: Arc::from(place(name)), alerts, metrics: metrics.sender(name) }
    }
}

impl Sink for Outlet {
    fn name(&self) -> &str {
        &self.name
    }

    fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str> {
        let taken = self.alerts.try_send(alert.clone());
        self.metrics.queue.set(self.alerts.len() as i64);
        taken.map_err(|_| "full")
    }
}

/// Where the losses of a destination are counted.
pub(super) fn place(name: &str) -> String {
    format!("sink_{name}")
}

/// What an outlet's thread is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Send what is there until this time, then end.
    Flush(Instant),
    /// End now: another thread goes on.
    HandOver,
}

/// What a thread leaves to the one that goes on.
#[derive(Debug, Default)]
pub(super) struct Estate {
    /// Taken from the queue and not sent, in order.
    pub notices: Vec<Notice>,
}

/// Counts what is lost, and how.
#[derive(Clone)]
pub(super) struct Losses {
    place: String,
    metrics: Arc<Metrics>,
}

impl Losses {
    pub fn new(name: &str, metrics: &Arc<Metrics>) -> Losses {
        Losses { place: place(name), metrics: metrics.clone() }
    }

    /// So many bytes of alerts stay in the spool, and nobody sends them.
    pub fn left(&self, spool: &str, bytes: u64) {
        self.metrics.set_spool_left(spool, bytes);
    }

    pub fn add(&self, reason: &'static str, alerts: usize) {
        if alerts > 0 {
            self.metrics.events_lost(self.place.clone(), reason).inc_by(alerts as u64);
        }
    }
}

/// Writes what is in the queue to the spool.
pub(super) struct Spooler {
    pub queue: Receiver<Arc<Alert>>,
    pub orders: Receiver<Order>,
    pub spool: Arc<Spool>,
    pub losses: Losses,
    /// Tells the sending thread that there is something new.
    pub wake: Sender<()>,
}

impl Spooler {
    /// Runs until it is told to end. What is in the queue is spooled before.
    pub fn run(self, inherited: Estate) {
        inherited.notices.iter().for_each(|notice| self.append(notice));
        let mut next_sync = Instant::now() + SYNC;
        loop {
            select! {
                recv(self.queue) -> alert => match alert {
                    Ok(alert) => self.append(&Notice::new(alert)),
                    Err(_) => break,
                },
                recv(self.orders) -> _ => break,
                default(next_sync.saturating_duration_since(Instant::now())) => {}
            }
            let now = Instant::now();
            if now >= next_sync {
                self.spool.sync();
                next_sync = now + SYNC;
            }
        }
        // The router may have put something there since.
        self.queue.try_iter().for_each(|alert| self.append(&Notice::new(alert)));
        self.spool.sync();
    }

    fn append(&self, notice: &Notice) {
        if let Err(reason) = self.spool.append(notice.json().as_bytes(), notice.accepted_ms()) {
            self.losses.add(reason, 1);
        }
        // A full channel means that the other has not looked yet.
        let _ = self.wake.try_send(());
    }
}

/// Where the sending thread finds its alerts.
pub(super) enum Source {
    /// The router's queue, and before it what is left in a spool that is no more wanted.
    Queue { queue: Receiver<Arc<Alert>>, left: Option<Arc<Spool>> },
    /// The spool; the channel tells of something new, and is closed when nothing will come any more.
    Spool { spool: Arc<Spool>, wake: Receiver<()> },
}

/// The sending thread of an outlet.
pub(super) struct Courier {
    pub name: String,
    pub deliver: Box<dyn Deliver>,
    pub config: OutletConfig,
    pub source: Source,
    pub orders: Receiver<Order>,
    pub metrics: SenderMetrics,
    pub losses: Losses,
}

/// What a courier has in its hands.
struct Hand {
    notices: VecDeque<Notice>,
    /// Of each notice that came from the spool.
    tokens: VecDeque<Token>,
    /// What another courier left: between the spool and the queue.
    inherited: VecDeque<Notice>,
    /// How many went out of the hand until now.
    done: usize,
}

impl Courier {
    /// Runs until it is told to end; gives what it did not send and nobody else has.
    pub fn run(mut self, inherited: Estate) -> Estate {
        let mut circuit = Circuit::new(self.config.circuit);
        let mut hand =
            Hand { notices: VecDeque::new(), tokens: VecDeque::new(), inherited: inherited.notices.into(), done: 0 };
        let mut order = None;
        // Alerts that go one by one after a batch was refused.
        let mut alone = 0;
        let mut last: Option<Instant> = None;
        let mut refusals = Refusals::default();
        loop {
            self.tell(&circuit, &hand);
            let now = Instant::now();
            // One that always has something to send waits for nothing, so it looks.
            order = order.or_else(|| self.orders.try_recv().ok());
            let until = match order {
                Some(Order::HandOver) => break,
                Some(Order::Flush(until)) if now >= until => break,
                Some(Order::Flush(until)) => Some(until),
                None => None,
            };
            let ended = self.fill(&mut hand);
            if hand.notices.is_empty() {
                if until.is_some() && ended {
                    break;
                }
                let ordered = order.is_some();
                order = order.or(self.wait(&mut hand, until.unwrap_or(now + IDLE), true, ordered));
                continue;
            }
            let due = last.map(|last| last + self.config.linger).filter(|due| *due > now);
            if let (Some(due), None) = (due, until)
                && hand.notices.len() < self.config.batch_max
            {
                order = self.wait(&mut hand, due, true, false);
                continue;
            }
            let most = match circuit.ask(now) {
                Try::NotBefore(time) if until.is_some_and(|until| time >= until) => break,
                Try::NotBefore(time) => {
                    order = order.or(self.wait(&mut hand, time, false, order.is_some()));
                    continue;
                }
                Try::One => 1,
                Try::Batch if alone > 0 => 1,
                Try::Batch => self.config.batch_max,
            };
            self.tell(&circuit, &hand);
            let size = hand.notices.len().min(most);
            let result = self.deliver.deliver(&hand.notices.make_contiguous()[..size]);
            let before = hand.done;
            match result {
                Ok(()) => {
                    // A failure is tried again when the circuit says so, not when the next digest is due.
                    last = Some(Instant::now());
                    self.metrics.delivered.inc_by(size as u64);
                    self.done(&mut hand, size);
                    let failures = circuit.delivered();
                    if failures > 0 {
                        log::info!(sink = self.name.as_str(), failures; "alerts are delivered again");
                    }
                }
                Err(failure) => {
                    let delivered = failure.delivered.min(size - 1);
                    self.metrics.delivered.inc_by(delivered as u64);
                    self.done(&mut hand, delivered);
                    alone = self.failed(&failure, size - delivered, &mut hand, &mut circuit, &mut refusals).max(alone);
                }
            }
            alone = alone.saturating_sub(hand.done - before);
        }
        self.finish(hand, order)
    }

    /// Numbers for Prometheus.
    fn tell(&self, circuit: &Circuit, hand: &Hand) {
        self.metrics.circuit.set(circuit.state() as i64);
        let queue = match &self.source {
            Source::Queue { queue, .. } => queue.len() + hand.inherited.len() + hand.notices.len() - hand.tokens.len(),
            Source::Spool { spool, .. } => spool.in_memory(),
        };
        self.metrics.queue.set(queue as i64);
    }

    /// Takes what is there, up to a batch. Whether nothing more will come, once it is told to end.
    fn fill(&mut self, hand: &mut Hand) -> bool {
        let missing = self.config.batch_max.saturating_sub(hand.notices.len());
        match &mut self.source {
            Source::Queue { queue, left } => {
                if let Some(spool) = left {
                    while lend(spool, missing, hand, &self.name, &self.losses) && hand.tokens.is_empty() {}
                    if !hand.tokens.is_empty() {
                        return false;
                    }
                    if !spool.end() {
                        // The disk fails. What comes now must not wait for it.
                        self.losses.left(&folder_of(&self.name), spool.bytes());
                        log::error!(
                            sink = self.name.as_str(), bytes = spool.bytes();
                            "what is left in the spool cannot be read and stays there"
                        );
                    }
                    *left = None;
                }
                let inherited = hand.inherited.len().min(missing);
                hand.notices.extend(hand.inherited.drain(..inherited));
                hand.notices.extend(queue.try_iter().take(missing - inherited).map(Notice::new));
                true
            }
            Source::Spool { spool, wake } => {
                // Asked before it is read: what the other thread wrote before it ended is read below.
                let ended = wake.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected);
                if missing == 0 {
                    return false;
                }
                while lend(spool, missing, hand, &self.name, &self.losses) && hand.tokens.is_empty() {}
                ended
            }
        }
    }

    /// Waits for an order unless it was given, for the time, and with `news` for alerts while the hand has room.
    fn wait(&mut self, hand: &mut Hand, until: Instant, news: bool, ordered: bool) -> Option<Order> {
        let timeout = until.saturating_duration_since(Instant::now());
        let (no_alerts, no_wake, no_orders) = (never(), never(), never());
        let orders = if ordered { &no_orders } else { &self.orders };
        let wants = news && hand.notices.len() < self.config.batch_max;
        let (queue, wake) = match &self.source {
            _ if !wants => (&no_alerts, &no_wake),
            // The spool goes first, and nothing more will come into it.
            Source::Queue { left: Some(_), .. } => (&no_alerts, &no_wake),
            Source::Queue { queue, .. } => (queue, &no_wake),
            Source::Spool { wake, .. } => (&no_alerts, wake),
        };
        select! {
            // One who gives orders no more has gone: nothing will come.
            recv(orders) -> order => Some(order.unwrap_or(Order::Flush(Instant::now()))),
            recv(queue) -> alert => {
                hand.notices.extend(alert.ok().map(Notice::new));
                None
            }
            recv(wake) -> woken => {
                // When the spooler has ended, this thread's order is on its way.
                let waits = woken.is_err() && !ordered;
                waits.then(|| self.orders.recv().unwrap_or(Order::Flush(Instant::now())))
            }
            default(timeout) => None,
        }
    }

    /// These will not be sent again.
    fn done(&self, hand: &mut Hand, count: usize) {
        hand.notices.drain(..count);
        hand.done += count;
        if let Source::Spool { spool, .. } | Source::Queue { left: Some(spool), .. } = &self.source {
            // On the disk the last token speaks for all before it; in memory each for itself.
            let tokens: Vec<Token> = hand.tokens.drain(..count.min(hand.tokens.len())).collect();
            for (at, token) in tokens.iter().enumerate() {
                let next_is_disk = matches!(tokens.get(at + 1), Some(Token::Disk { .. }));
                if !next_is_disk {
                    spool.acknowledge(*token);
                }
            }
        }
    }

    /// What to do with the first `count` in the hand, which were not sent. Gives how many go alone from here on.
    fn failed(
        &mut self,
        failure: &Failure,
        count: usize,
        hand: &mut Hand,
        circuit: &mut Circuit,
        refusals: &mut Refusals,
    ) -> usize {
        match failure.kind {
            FailureKind::Split if count > 1 => {
                circuit.answered();
                count
            }
            FailureKind::Split | FailureKind::Refused => {
                circuit.answered();
                self.metrics.failed.inc_by(count as u64);
                self.losses.add("refused", count);
                refusals.add(&self.name, count, &failure.message);
                self.done(hand, count);
                0
            }
            FailureKind::Retry(pause) => {
                if failure.delivered > 0 {
                    circuit.answered();
                }
                let was = circuit.state();
                circuit.failed(Instant::now(), pause, chance());
                self.metrics.retried.inc_by(count as u64);
                let (sink, message) = (self.name.as_str(), failure.message.as_str());
                if circuit.state() == State::Open && was == State::Closed {
                    log::error!(sink; "alerts cannot be delivered, tried again in a while: {message}");
                } else if circuit.failures() == 1 {
                    log::warn!(sink; "alerts were not delivered, tried again: {message}");
                } else {
                    log::debug!(sink; "alerts were not delivered: {message}");
                }
                self.give_up(hand, refusals);
                0
            }
        }
    }

    /// Gives up all that is too old, here and in the queue or the spool, which are in the order of their age.
    fn give_up(&mut self, hand: &mut Hand, refusals: &mut Refusals) {
        let oldest_ms = now_ms().saturating_sub(self.config.give_up.as_millis() as u64);
        // Much may be there, and an order does not wait for it: who goes on finds the rest.
        loop {
            let old = hand.notices.iter().take_while(|notice| notice.accepted_ms() < oldest_ms).count();
            if old > 0 {
                self.metrics.failed.inc_by(old as u64);
                self.losses.add("gave_up", old);
                refusals.add(&self.name, old, "too old to be tried again");
                self.done(hand, old);
            }
            if !hand.notices.is_empty() || !self.orders.is_empty() {
                return;
            }
            self.fill(hand);
            if hand.notices.is_empty() {
                return;
            }
        }
    }

    fn finish(&mut self, hand: Hand, order: Option<Order>) -> Estate {
        let handed_over = matches!(order, Some(Order::HandOver));
        if let Source::Spool { spool, .. } | Source::Queue { left: Some(spool), .. } = &self.source {
            spool.rewind();
            if !handed_over {
                spool.tidy();
                self.losses.add("stopped", spool.in_memory());
                let bytes = spool.bytes();
                self.losses.left(&folder_of(&self.name), bytes);
                if bytes > 0 {
                    log::warn!(sink = self.name.as_str(), bytes; "alerts that were not delivered stay in the spool");
                }
            }
        }
        if let Source::Queue { queue, .. } = &self.source {
            // What is in the spool is in no estate.
            let rest = hand.notices.into_iter().skip(hand.tokens.len()).chain(hand.inherited);
            let notices: Vec<Notice> = rest.chain(queue.try_iter().map(Notice::new)).collect();
            if handed_over {
                return Estate { notices };
            }
            if !notices.is_empty() {
                self.losses.add("stopped", notices.len());
                log::warn!(
                    sink = self.name.as_str(), alerts = notices.len();
                    "alerts that were not delivered are lost; a spool would keep them"
                );
            }
        }
        self.metrics.queue.set(0);
        Estate::default()
    }
}

/// Takes up to `max` records from the spool; whether there was any.
fn lend(spool: &Spool, max: usize, hand: &mut Hand, sink: &str, losses: &Losses) -> bool {
    let records = spool.read(max);
    let any = !records.is_empty();
    for lent in records {
        match Notice::stored(&lent.json, lent.accepted_ms) {
            Ok(notice) => {
                hand.notices.push_back(notice);
                hand.tokens.push_back(lent.token);
            }
            // Written by another version, or by somebody else. It goes with the next that is acknowledged.
            Err(why) => {
                losses.add("spool_torn", 1);
                log::warn!(sink; "an alert in the spool cannot be read: {why}");
                if hand.tokens.is_empty() {
                    spool.acknowledge(lent.token);
                }
            }
        }
    }
    any
}

/// A route's name as that of a folder: other characters than letters, digits, `-` and `_` as `%` and their number.
pub(super) fn folder_of(name: &str) -> String {
    let mut folder = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            folder.push(byte.into());
        } else {
            folder.push_str(&format!("%{byte:02x}"));
        }
    }
    folder
}

/// Says now and then what was refused.
#[derive(Default)]
struct Refusals {
    untold: usize,
    last: Option<Instant>,
}

impl Refusals {
    fn add(&mut self, sink: &str, alerts: usize, message: &str) {
        self.untold += alerts;
        let now = Instant::now();
        if self.last.is_none_or(|last| now.duration_since(last) >= REFUSALS_LOGGED) {
            log::error!(sink, alerts = self.untold; "alerts are lost: {message}");
            self.last = Some(now);
            self.untold = 0;
        }
    }
}

#[cfg(test)]
mod tests;
