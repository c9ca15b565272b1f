//! Live alerts for whoever listens: the last of them in a ring, and where each listener is in it.
//!
//! The router puts an alert into the ring and goes on; it never waits for a listener. Who is so slow that the ring comes
//! round to him loses what is overwritten, and is told how many of the alerts that he wanted these were. Who comes back
//! begins after the last event that he has seen: in the ring, or, for what is older, in the [`History`]. That has each alert
//! once, as it is now: he gets those that began before that event and were told again since, then those that began later.
//!
//! A listener takes alerts on a thread of his own ([`Subscription::wait`]) or as a future ([`Subscription::poll_ready`]).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::sinks::Sink;
use super::{Alert, AlertId, Filter, Severity};
use crate::classify::rules::technique;
use crate::component::Component;
use crate::metrics::StreamMetrics;

/// Alerts in the ring of an agent: at 50,000 alerts a second a client may be a twelfth of a second late, at a hundred, 40
/// seconds. A few megabytes.
pub const RING: usize = 4096;
/// Entries of the ring that are looked at before the lock is given to the others.
const LOOK_AT: usize = 256;
/// Alerts that are read from the history at a time.
const PAGE: usize = 256;
/// A listener who has read all of the history waits so long for what is on its way into it, so often.
const SETTLE: Duration = Duration::from_millis(100);
const SETTLE_ROUNDS: u32 = 30;

/// What was told so long ago is in the history, if it ever comes there.
const KEPT_AFTER: Duration = Duration::from_secs(2);
/// From the last event of an alert to its telling: queues, and the search for a process.
const ON_ITS_WAY_NS: u64 = 5_000_000_000;

/// Names one telling of an alert: its id, and which revision it was. As text `ID`, and `ID.REVISION` of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId {
    /// Of the alert.
    pub alert: AlertId,
    /// 0 for the first telling.
    pub revision: u32,
}

impl EventId {
    fn of(alert: &Alert) -> EventId {
        EventId { alert: alert.id, revision: alert.revision }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision {
            0 => write!(f, "{}", self.alert),
            revision => write!(f, "{}.{revision}", self.alert),
        }
    }
}

impl FromStr for EventId {
    type Err = String;

    fn from_str(s: &str) -> Result<EventId, String> {
        let (id, revision) = match s.split_once('.') {
            None => (s, Some(0)),
            // FromStr takes "+3"; an id is written in one way.
            Some((id, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => (id, number.parse().ok()),
            Some((id, _)) => (id, None),
        };
        let alert = id.parse::<AlertId>()?;
        let revision = revision.ok_or_else(|| format!("\"{}\" has no revision after the dot", shortened(s)))?;
        Ok(EventId { alert, revision })
    }
}

/// A filter of what a client wrote; the error says what is wrong with it. What is absent fits all.
pub fn filter_of(
    min_severity: Option<&str>,
    component: Option<&str>,
    rule_id: Option<&str>,
    mitre: Option<&str>,
) -> Result<Filter, String> {
    let component_of = |name: &str| {
        let found = Component::ALL.iter().find(|component| component.name() == name);
        found.copied().ok_or_else(|| {
            format!("\"{}\" is not a component; use one of {}", shortened(name), Component::NAMES.join(", "))
        })
    };
    Ok(Filter {
        min_severity: min_severity.map(str::parse).transpose()?.unwrap_or(Severity::Low),
        components: component.map(component_of).transpose()?.into_iter().collect(),
        rule_ids: rule_id.map(str::parse).transpose()?.into_iter().collect(),
        mitre: mitre.map(technique).transpose()?.into_iter().collect(),
    })
}

/// `text` as a message may repeat it.
fn shortened(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// An alert in the ring.
#[derive(Debug)]
pub struct Live {
    alert: Arc<Alert>,
    told: Instant,
    json: OnceLock<String>,
}

impl Live {
    /// The alert.
    pub fn alert(&self) -> &Arc<Alert> {
        &self.alert
    }

    /// Names this telling.
    pub fn id(&self) -> EventId {
        EventId::of(&self.alert)
    }

    /// The alert as one line of JSON; written once for all listeners.
    pub fn json(&self) -> &str {
        self.json.get_or_init(|| serde_json::to_string(&*self.alert).expect("an alert is representable as JSON"))
    }
}

/// An alert of the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its id.
    pub id: AlertId,
    /// As the API shows it.
    pub document: Value,
}

impl Stored {
    /// Names the telling that the history has kept: the last one.
    pub fn event_id(&self) -> EventId {
        let revision = self.document["revision"].as_u64().and_then(|number| number.try_into().ok());
        EventId { alert: self.id, revision: revision.unwrap_or(0) }
    }
}

/// Alerts that are kept for longer than the ring does.
pub trait History: Send + Sync {
    /// Which revision of this alert is kept, and when it last happened, in nanoseconds since 1970; `None`: it is not kept.
    /// Reads from a disk.
    fn seen(&self, id: AlertId) -> Result<Option<(u32, u64)>, String>;

    /// At most `limit` of the alerts with greater ids, in their order. Reads from a disk.
    fn after(&self, id: AlertId, limit: usize) -> Result<Vec<Stored>, String>;

    /// Of the alerts in `span` those that were told more than once, in the order of their ids; at most `limit` alerts are
    /// looked at. The id above which to go on; `None`: these were all. Reads from a disk.
    fn updated(&self, span: &Span, limit: usize) -> Result<(Vec<Stored>, Option<AlertId>), String>;
}

/// Alerts that may have been told again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// That last happened at this time or later, in nanoseconds since 1970.
    pub from_ns: u64,
    /// With greater ids than this.
    pub above: Option<AlertId>,
    /// With no greater ids than this.
    pub up_to: AlertId,
}

/// What a listener gets.
#[derive(Clone, Debug)]
pub enum Event {
    /// An alert, or an update of one.
    Live(Arc<Live>),
    /// An alert that happened before the listener came.
    Stored(Box<Stored>),
    /// Alerts that he does not get.
    Gap(Gap),
}

impl Event {
    /// Counts it as sent.
    pub fn count(&self, metrics: &StreamMetrics) {
        match self {
            Event::Live(_) | Event::Stored(_) => metrics.alert(),
            Event::Gap(gap) => metrics.gap(gap.reason.name(), gap.missed),
        }
    }
}

/// Alerts that a listener does not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// How many he would have got, where that is known.
    pub missed: Option<u64>,
    /// Why.
    pub reason: GapReason,
}

/// Why there is a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The listener took them more slowly than they came.
    SlowClient,
    /// The event to begin after is not known (any more).
    UnknownId,
    /// The history could not be read, or has not got what left the ring.
    StoreFailed,
    /// Updates of alerts have left the ring that may not be in the history yet.
    Updates,
}

impl GapReason {
    /// The word in streams and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            GapReason::SlowClient => "slow_client",
            GapReason::UnknownId => "unknown_id",
            GapReason::StoreFailed => "store_failed",
            GapReason::Updates => "updates",
        }
    }
}

/// The ring and its listeners. Clones are the same hub.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    history: OnceLock<Arc<dyn History>>,
    capacity: usize,
    /// See [`Hub::note_window`].
    window_ns: AtomicU64,
}

#[derive(Default)]
struct State {
    ring: VecDeque<Arc<Live>>,
    /// How many were in the ring before its first.
    overwritten: u64,
    /// The greatest id that was told for the first time and has left the ring.
    newest_overwritten: Option<AlertId>,
    /// When the newest update was told that has left the ring.
    newest_update_overwritten: Option<Instant>,
    listeners: HashMap<u64, Listener>,
    next_listener: u64,
    closed: bool,
}

/// A listener, as the ring sees him.
struct Listener {
    filter: Filter,
    /// How many alerts were put into the ring before the next that he looks at.
    position: u64,
    /// He has had these from the history: first tellings up to an id, before a position.
    had: Option<(AlertId, u64)>,
    /// Overwritten before he looked, and he wanted them.
    missed: u64,
    waiting: Waiting,
}

enum Waiting {
    No,
    Thread(Arc<Condvar>),
    Task(Waker),
}

impl Waiting {
    fn wake(self) {
        match self {
            Waiting::No => {}
            Waiting::Thread(bell) => bell.notify_one(),
            Waiting::Task(waker) => waker.wake(),
        }
    }
}

impl Listener {
    /// Whether the alert at `position` is for him.
    fn gets(&self, alert: &Alert, position: u64) -> bool {
        let had = self.had.is_some_and(|(id, end)| position < end && alert.revision == 0 && alert.id <= id);
        !had && self.filter.wants(alert)
    }
}

impl State {
    fn end(&self) -> u64 {
        self.overwritten + self.ring.len() as u64
    }

    /// The position after this telling.
    fn after(&self, id: EventId) -> Option<u64> {
        // The newest first: who comes back has seen something recent.
        let found = self.ring.iter().rposition(|live| live.id() == id)?;
        Some(self.overwritten + found as u64 + 1)
    }

    fn overwrite_oldest(&mut self) {
        let Some(oldest) = self.ring.pop_front() else { return };
        let position = self.overwritten;
        for listener in self.listeners.values_mut().filter(|listener| listener.position <= position) {
            listener.missed += u64::from(listener.gets(&oldest.alert, position));
            listener.position = position + 1;
        }
        if oldest.alert.revision == 0 {
            self.newest_overwritten = self.newest_overwritten.max(Some(oldest.alert.id));
        } else {
            self.newest_update_overwritten = Some(oldest.told);
        }
        self.overwritten += 1;
    }
}

impl Hub {
    /// A hub that keeps the last `capacity` alerts, at least one.
    pub fn new(capacity: usize) -> Hub {
        let capacity = capacity.max(1);
        let state = State { ring: VecDeque::with_capacity(capacity), ..State::default() };
        let (history, window_ns) = (OnceLock::new(), AtomicU64::new(0));
        Hub { shared: Arc::new(Shared { state: Mutex::new(state), history, capacity, window_ns }) }
    }

    /// Where older alerts are. Once, before anybody listens.
    pub fn set_history(&self, history: Arc<dyn History>) {
        let _ = self.shared.history.set(history);
    }

    /// An update may come so long after what it tells of: the router's window. The longest that there was counts.
    pub fn note_window(&self, window: Duration) {
        self.shared.window_ns.fetch_max(window.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The hub as the router writes to it.
    pub fn sink(&self) -> HubSink {
        HubSink { hub: self.clone(), woken: Vec::new() }
    }

    /// A listener from now on, or from after an event that he has seen.
    pub fn subscribe(&self, filter: Filter, after: Option<EventId>) -> Subscription {
        let mut subscription = Subscription {
            hub: self.clone(),
            filter,
            listener: None,
            bell: Arc::default(),
            behind: after.map(|after| Behind { after, part: Part::Begin, rounds: 0 }),
        };
        if after.is_none() {
            let mut state = self.lock();
            let end = state.end();
            subscription.join(&mut state, end, None);
        }
        subscription
    }

    /// Ends every subscription, after what its listener has not had yet.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.listeners.values_mut().for_each(|listener| std::mem::replace(&mut listener.waiting, Waiting::No).wake());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The router's end of a [`Hub`].
pub struct HubSink {
    hub: Hub,
    /// Those to wake, outside of the lock. Kept for its room.
    woken: Vec<Waiting>,
}

impl Sink for HubSink {
    fn name(&self) -> &str {
        "stream"
    }

    fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str> {
        let live = Arc::new(Live { alert: alert.clone(), told: Instant::now(), json: OnceLock::new() });
        let mut state = self.hub.lock();
        if state.ring.len() >= self.hub.shared.capacity {
            state.overwrite_oldest();
        }
        let position = state.end();
        state.ring.push_back(live);
        for listener in state.listeners.values_mut() {
            if !matches!(listener.waiting, Waiting::No) && listener.gets(alert, position) {
                self.woken.push(std::mem::replace(&mut listener.waiting, Waiting::No));
            }
        }
        drop(state);
        self.woken.drain(..).for_each(Waiting::wake);
        Ok(())
    }
}

/// A listener's end of a [`Hub`].
pub struct Subscription {
    hub: Hub,
    filter: Filter,
    /// His number among the listeners of the ring; `None` while he is behind it.
    listener: Option<u64>,
    bell: Arc<Condvar>,
    behind: Option<Behind>,
}

/// He reads what he missed.
#[derive(Clone, Copy)]
struct Behind {
    /// The last that he has.
    after: EventId,
    part: Part,
    /// How often the history had nothing more, and the ring does not join it.
    rounds: u32,
}

/// What he reads of the history.
#[derive(Clone, Copy)]
enum Part {
    /// Nothing yet.
    Begin,
    /// Alerts that he has seen begin, and that were told again; since when he reads.
    Updates(Span, Instant),
    /// Alerts with greater ids than that of the last that he has; since when he reads.
    Later(Instant),
}

/// One step of a listener who comes back.
#[derive(Clone, Debug)]
pub enum Step {
    /// What he missed, a part of it; perhaps nothing that he wanted. There is more.
    Events(Vec<Event>),
    /// There will be more after this time.
    Later(Duration),
    /// He has all up to now: [`Subscription::take`] goes on.
    Live,
}

impl Subscription {
    /// Reads a part of what happened after the event that he began after. Reads from a disk. Call it until it says
    /// [`Step::Live`], before all else.
    pub fn catch_up(&mut self) -> Step {
        let Some(Behind { after, part, .. }) = self.behind else { return Step::Live };
        {
            let hub = self.hub.clone();
            let mut state = hub.lock();
            match (state.after(after), part) {
                (Some(_), Part::Later(since)) => return self.join_from_history(&mut state, after.alert, since),
                (Some(position), _) => {
                    self.join(&mut state, position, None);
                    return Step::Live;
                }
                (None, _) => {}
            }
        }
        match self.read_history(after, part) {
            Ok(step) => step,
            Err(error) => {
                log::error!("reading alerts for a stream: {error}");
                self.give_up(after, GapReason::StoreFailed)
            }
        }
    }

    fn read_history(&mut self, after: EventId, part: Part) -> Result<Step, String> {
        let Some(history) = self.hub.shared.history.get().cloned() else {
            return Ok(self.give_up(after, GapReason::UnknownId));
        };
        let Some(behind) = &mut self.behind else { return Ok(Step::Live) };
        let since = match part {
            Part::Begin => {
                let since = Instant::now();
                let seen = history.seen(after.alert)?;
                let window_ns = self.hub.shared.window_ns.load(Ordering::Relaxed);
                // An update is told up to a window after it last happened.
                let from_ns = told_at_ns(after, seen).map(|at| at.saturating_sub(window_ns + ON_ITS_WAY_NS));
                behind.part = from_ns.map_or(Part::Later(since), |from_ns| {
                    Part::Updates(Span { from_ns, above: None, up_to: after.alert }, since)
                });
                // What is later than it may be there all the same.
                return Ok(Step::Events(if seen.is_none() { vec![gap(GapReason::UnknownId)] } else { Vec::new() }));
            }
            Part::Updates(span, since) => {
                let (page, above) = history.updated(&span, PAGE)?;
                behind.part =
                    above.map_or(Part::Later(since), |above| Part::Updates(Span { above: Some(above), ..span }, since));
                let had = |stored: &Stored| stored.id == after.alert && stored.event_id().revision <= after.revision;
                return Ok(Step::Events(self.wanted(page.into_iter().filter(|stored| !had(stored)))));
            }
            Part::Later(since) => since,
        };
        let page = history.after(after.alert, PAGE)?;
        if let Some(last) = page.last() {
            (behind.after, behind.rounds) = (EventId { alert: last.id, revision: 0 }, 0);
            return Ok(Step::Events(self.wanted(page.into_iter())));
        }
        behind.rounds += 1;
        let rounds = behind.rounds;
        let hub = self.hub.clone();
        let mut state = hub.lock();
        if state.closed || state.newest_overwritten.is_none_or(|newest| newest <= after.alert) {
            return Ok(self.join_from_history(&mut state, after.alert, since));
        }
        drop(state);
        // What has left the ring is on its way into the history.
        if rounds <= SETTLE_ROUNDS {
            return Ok(Step::Later(SETTLE));
        }
        Err("what was told meanwhile is not there".to_owned())
    }

    fn wanted(&self, page: impl Iterator<Item = Stored>) -> Vec<Event> {
        let wanted = page.filter(|stored| self.filter.wants_document(&stored.document));
        wanted.map(|stored| Event::Stored(Box::new(stored))).collect()
    }

    /// Goes on with the ring after all that the history has, up to the id `had`. It was read from `since` on: updates that
    /// the ring has are told again, and those that have left it were in the history by then, or may be missing.
    fn join_from_history(&mut self, state: &mut State, had: AlertId, since: Instant) -> Step {
        let start = state.overwritten;
        self.join(state, start, Some(had));
        match state.newest_update_overwritten.is_some_and(|told| told + KEPT_AFTER > since) {
            true => Step::Events(vec![gap(GapReason::Updates)]),
            false => Step::Live,
        }
    }

    /// Goes on with what is in the ring.
    fn give_up(&mut self, after: EventId, reason: GapReason) -> Step {
        let hub = self.hub.clone();
        let mut state = hub.lock();
        let start = state.overwritten;
        self.join(&mut state, start, Some(after.alert));
        Step::Events(vec![gap(reason)])
    }

    /// Becomes a listener of the ring, at `position`; first tellings that are there now, up to the id `had`, he has had.
    fn join(&mut self, state: &mut State, position: u64, had: Option<AlertId>) {
        let number = state.next_listener;
        state.next_listener += 1;
        let had = had.map(|id| (id, state.end()));
        let listener = Listener { filter: self.filter.clone(), position, had, missed: 0, waiting: Waiting::No };
        state.listeners.insert(number, listener);
        self.listener = Some(number);
        self.behind = None;
    }

    /// What has come since the last time, a part of it: at most `max` alerts, and a gap before them where some are missing.
    /// Does not wait. Nothing does not mean that nothing is there: [`Subscription::wait`] knows.
    pub fn take(&mut self, max: usize) -> Vec<Event> {
        let Some(number) = self.listener else { return Vec::new() };
        let mut state = self.hub.lock();
        let State { ring, overwritten, listeners, .. } = &mut *state;
        let Some(listener) = listeners.get_mut(&number) else { return Vec::new() };
        let mut events = Vec::new();
        match std::mem::take(&mut listener.missed) {
            0 => {}
            missed => events.push(Event::Gap(Gap { missed: Some(missed), reason: GapReason::SlowClient })),
        }
        let from = (listener.position - *overwritten) as usize;
        for live in ring.range(from..).take(LOOK_AT) {
            if events.len() >= max {
                break;
            }
            if listener.gets(&live.alert, listener.position) {
                events.push(Event::Live(live.clone()));
            }
            listener.position += 1;
        }
        events
    }

    /// Whether [`Subscription::take`] has something to look at, or never will again: then [`Subscription::is_over`].
    fn is_ready(state: &State, number: u64) -> bool {
        let end = state.end();
        state.closed || state.listeners.get(&number).is_none_or(|one| one.position < end || one.missed > 0)
    }

    /// Waits until there may be something to take. False when there is not by `deadline`.
    pub fn wait(&mut self, deadline: Instant) -> bool {
        let Some(number) = self.listener else { return true };
        let mut state = self.hub.lock();
        loop {
            if Subscription::is_ready(&state, number) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if let Some(listener) = state.listeners.get_mut(&number) {
                listener.waiting = Waiting::Thread(self.bell.clone());
            }
            state = self.bell.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            if let Some(listener) = state.listeners.get_mut(&number) {
                listener.waiting = Waiting::No;
            }
        }
    }

    /// The same for a task.
    pub fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(number) = self.listener else { return Poll::Ready(()) };
        let mut state = self.hub.lock();
        if Subscription::is_ready(&state, number) {
            return Poll::Ready(());
        }
        if let Some(listener) = state.listeners.get_mut(&number) {
            listener.waiting = Waiting::Task(context.waker().clone());
        }
        Poll::Pending
    }

    /// Whether [`Subscription::catch_up`] comes first.
    pub fn is_behind(&self) -> bool {
        self.behind.is_some()
    }

    /// Whether the hub was closed, and there is nothing more to take.
    pub fn is_over(&self) -> bool {
        let state = self.hub.lock();
        let all = self.listener.and_then(|number| state.listeners.get(&number));
        state.closed && all.is_none_or(|listener| listener.position == state.end() && listener.missed == 0)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(number) = self.listener {
            self.hub.lock().listeners.remove(&number);
        }
    }
}

/// A time, in nanoseconds since 1970, before which an event was not told; `seen` is what is kept of its alert.
fn told_at_ns(event: EventId, seen: Option<(u32, u64)>) -> Option<u64> {
    match seen {
        // It is the last telling, which came after all that it tells of.
        Some((revision, last_ns)) if revision == event.revision && revision > 0 => Some(last_ns),
        // It came after the alert was made, which the id knows to the millisecond.
        _ => {
            let (seconds, nanos) = event.alert.0.get_timestamp()?.to_unix();
            Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanos.into()))
        }
    }
}

fn gap(reason: GapReason) -> Event {
    Event::Gap(Gap { missed: None, reason })
}

#[cfg(test)]
mod tests;
