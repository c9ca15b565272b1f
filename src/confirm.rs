//! Commit-confirm: a change that takes itself back unless somebody who can still reach the host confirms it.
//!
//! What a change replaced can only be put back whole, so nothing else may change between the look at what there was and
//! the end of the wait. Every change of rules or configuration therefore begins here. Those that are kept at once [`enter`]
//! and may go on side by side; one that may have to be taken back as a whole [`reserve`]s, which lets the others end
//! first and keeps new ones out. Who comes meanwhile waits for a little; who comes while a change waits for its
//! confirmation is refused.
//!
//! A guard goes with the change into the thread that makes it: should the caller lose patience, the change still goes on
//! there, and nothing else begins before it ends.
//!
//! [`enter`]: Confirmations::enter
//! [`reserve`]: Confirmations::reserve

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::{ApiError, Note, Param, ParamKind};

/// Longest time that a change may wait, in seconds.
pub const CONFIRM_SECS_MAX: u32 = 86_400;

/// `confirm_secs` of every operation that can lock its caller out.
pub const CONFIRM_SECS: Param = Param::optional(
    "confirm_secs",
    "Take the change back after so many seconds unless it is confirmed (POST /api/v1/config/confirm)",
    ParamKind::Integer { min: 1, max: CONFIRM_SECS_MAX as u64 },
);

/// How long a change waits for those that go on. The longest of them, a reload, asks each engine to compile its rules.
const PATIENCE: Duration = Duration::from_secs(10);

/// From an attempt to take a change back that failed to the next one.
const RETRY: Duration = Duration::from_secs(5);

/// Makes a change last.
pub type Keep = Box<dyn FnMut() -> anyhow::Result<()> + Send>;

/// Takes a change back; called again later when it fails. With `true` an attempt to make it last has failed, and may
/// have left something on disk.
pub type Undo = Box<dyn FnMut(bool) -> anyhow::Result<()> + Send>;

/// A change that was made and may be taken back.
pub struct Trial {
    /// Who made it; see [`crate::api::Request::caller_id`].
    pub by: String,
    /// When it is taken back.
    pub deadline: Instant,
    /// What it changed: the opposite is told when it is taken back.
    pub notes: Vec<Note>,
    /// Runs when it is confirmed.
    pub keep: Keep,
    /// Runs when time is up.
    pub undo: Undo,
}

struct Pending {
    what: String,
    trial: Trial,
    keep_failed: bool,
    /// Attempts to take it back; with the first one the time of confirming is over.
    attempts: u32,
}

/// An attempt to take back a change that nobody confirmed.
pub struct Expired {
    /// What it was.
    pub what: String,
    /// Whether it could be taken back. If not, it is tried again.
    pub undone: anyhow::Result<()>,
    /// What taking it back changed, for the audit log.
    pub notes: Vec<Note>,
    /// Number of the attempt, from 1.
    pub attempt: u32,
}

#[derive(Default)]
enum Phase {
    /// Nothing waits, and no change keeps others out.
    #[default]
    Free,
    /// A change goes on alone.
    Reserved { id: u64, what: String },
    /// A change waits for its confirmation.
    Waiting(Pending),
    /// It is being kept, or taken back.
    Settling { what: String, deadline: Instant },
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// Changes that go on side by side.
    entered: usize,
    /// Of the last reservation.
    last_id: u64,
    /// The agent stops.
    closed: bool,
}

/// The one change that may wait for its confirmation, and the way in for all others.
#[derive(Default)]
pub struct Confirmations {
    state: Mutex<State>,
    /// Something ended.
    ended: Condvar,
}

/// A change goes on that is kept at once. Others of this kind may go on beside it.
pub struct Entered(Arc<Confirmations>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.lock().entered -= 1;
        self.0.ended.notify_all();
    }
}

/// A change goes on alone, until it waits or the last clone of this is dropped.
#[derive(Clone)]
pub struct Reserved(Arc<Reservation>);

struct Reservation {
    all: Arc<Confirmations>,
    id: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        if matches!(state.phase, Phase::Reserved { id, .. } if id == self.id) {
            state.phase = Phase::Free;
            self.all.ended.notify_all();
        }
    }
}

impl Reserved {
    /// The change is made; from now on it waits for its confirmation.
    pub fn wait(&self, trial: Trial) {
        let Reservation { all, id } = &*self.0;
        let mut state = all.lock();
        match mem::take(&mut state.phase) {
            Phase::Reserved { id: own, what } if own == *id => {
                state.phase = Phase::Waiting(Pending { what, trial, keep_failed: false, attempts: 0 });
            }
            other => {
                debug_assert!(false, "a reservation lasts until it waits");
                state.phase = other;
            }
        }
        all.ended.notify_all();
    }
}

impl Confirmations {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, and for how long still.
    pub fn pending(&self, now: Instant) -> Option<(String, Duration)> {
        let (what, deadline) = match &self.lock().phase {
            Phase::Waiting(pending) => (pending.what.clone(), pending.trial.deadline),
            Phase::Settling { what, deadline } => (what.clone(), *deadline),
            Phase::Free | Phase::Reserved { .. } => return None,
        };
        Some((what, deadline.saturating_duration_since(now)))
    }

    /// Begins a change that is kept at once.
    ///
    /// # Errors
    /// 409 while a change waits for its confirmation, or when one that goes on alone does not end soon.
    pub fn enter(self: &Arc<Self>) -> Result<Entered, ApiError> {
        let mut state = self.wait_until_free(Instant::now() + PATIENCE)?;
        state.entered += 1;
        Ok(Entered(self.clone()))
    }

    /// Begins a change that goes on alone. `what` is told to whoever has to wait.
    ///
    /// # Errors
    /// 409 while a change waits for its confirmation, or when one that goes on does not end soon.
    pub fn reserve(self: &Arc<Self>, what: impl Into<String>) -> Result<Reserved, ApiError> {
        self.reserve_until(what.into(), Instant::now() + PATIENCE)
    }

    fn reserve_until(self: &Arc<Self>, what: String, deadline: Instant) -> Result<Reserved, ApiError> {
        let mut state = self.wait_until_free(deadline)?;
        state.last_id += 1;
        let id = state.last_id;
        // First of all: whoever comes from now on comes after it.
        state.phase = Phase::Reserved { id, what };
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.ended.wait_timeout_while(state, left, |state| state.entered > 0);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let still = state.entered;
        drop(state);
        let reserved = Reserved(Arc::new(Reservation { all: self.clone(), id }));
        match still {
            0 => Ok(reserved),
            _ => Err(ApiError::conflict("other changes still go on; try again")),
        }
    }

    fn wait_until_free(&self, deadline: Instant) -> Result<MutexGuard<'_, State>, ApiError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let passes =
            |state: &mut State| !state.closed && matches!(state.phase, Phase::Reserved { .. } | Phase::Settling { .. });
        let waited = self.ended.wait_timeout_while(self.lock(), left, passes);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let refusal = match &state.phase {
            _ if state.closed => "the agent is stopping".to_owned(),
            Phase::Free => return Ok(state),
            Phase::Reserved { what, .. } => format!("{what}: still goes on; try again"),
            Phase::Settling { what, .. } => format!("{what}: is still being kept or taken back; try again"),
            Phase::Waiting(pending) if pending.attempts > 0 => {
                format!("{}: could not be taken back yet, which is tried again and again", pending.what)
            }
            Phase::Waiting(pending) => {
                format!("{} waits for its confirmation; confirm it or let it be taken back first", pending.what)
            }
        };
        Err(ApiError::conflict(refusal))
    }

    /// Keeps what waits; `None` when nothing does. With `by` it must be that caller's own change. When keeping fails, it
    /// goes on waiting.
    pub fn confirm(&self, by: Option<&str>) -> Result<Option<(String, anyhow::Result<()>)>, ApiError> {
        let mut state = self.lock();
        let Phase::Waiting(pending) = &state.phase else { return Ok(None) };
        let what = &pending.what;
        if by.is_some_and(|by| pending.trial.by != by) {
            let message = format!("{what} is the change of another caller; they or an admin may confirm it");
            return Err(ApiError::insufficient_role(message));
        }
        if pending.attempts > 0 {
            return Err(ApiError::conflict(format!("{what} was not confirmed in time, and is being taken back")));
        }
        let Some(mut pending) = settle(&mut state) else { return Ok(None) };
        drop(state);
        let (what, kept) = (pending.what.clone(), (pending.trial.keep)());
        pending.keep_failed |= kept.is_err();
        self.settled(kept.is_err().then_some(pending));
        Ok(Some((what, kept)))
    }

    /// Takes back what waited too long; `None` when nothing did.
    pub fn expire(&self, now: Instant) -> Option<Expired> {
        let mut state = self.lock();
        if !matches!(&state.phase, Phase::Waiting(pending) if pending.trial.deadline <= now) {
            return None;
        }
        let mut pending = settle(&mut state)?;
        drop(state);
        let undone = (pending.trial.undo)(pending.keep_failed);
        pending.attempts += 1;
        let (what, attempt) = (pending.what.clone(), pending.attempts);
        let opposite = |note: Note| Note { before: note.after, after: note.before, ..note };
        let notes = pending.trial.notes.iter().cloned().map(opposite).collect();
        pending.trial.deadline = now + RETRY;
        self.settled(undone.is_err().then_some(pending));
        Some(Expired { what, undone, notes, attempt })
    }

    /// The agent stops: no change begins any more, those that go on end within `patience` or are left to themselves, and
    /// what waits is taken back. What the kernel goes on doing without the agent must not be what nobody confirmed.
    pub fn close(&self, patience: Duration) -> Option<Expired> {
        let mut state = self.lock();
        state.closed = true;
        self.ended.notify_all();
        let goes_on = |state: &mut State| {
            state.entered > 0 || matches!(state.phase, Phase::Reserved { .. } | Phase::Settling { .. })
        };
        let waited = self.ended.wait_timeout_while(state, patience, goes_on);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            log::error!("a change still goes on while the agent stops, and is left to itself");
        }
        let now = Instant::now();
        if let Phase::Waiting(pending) = &mut state.phase {
            pending.trial.deadline = now;
        }
        drop(state);
        self.expire(now)
    }

    /// The change was kept or taken back, or goes on waiting.
    fn settled(&self, again: Option<Pending>) {
        self.lock().phase = again.map_or(Phase::Free, Phase::Waiting);
        self.ended.notify_all();
    }
}

/// Takes out what waits, to keep it or to take it back.
fn settle(state: &mut State) -> Option<Pending> {
    match mem::take(&mut state.phase) {
        Phase::Waiting(pending) => {
            state.phase = Phase::Settling { what: pending.what.clone(), deadline: pending.trial.deadline };
            Some(pending)
        }
        other => {
            state.phase = other;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use anyhow::bail;

    use super::*;

    /// What a trial was told.
    #[derive(Default)]
    struct Told {
        kept: AtomicU32,
        undone: AtomicU32,
        /// Attempts that fail before one goes well.
        failures: AtomicU32,
        keep_failed: AtomicU32,
    }

    impl Told {
        fn fails(&self) -> bool {
            self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
        }

        fn of(of: &AtomicU32) -> u32 {
            of.load(Ordering::SeqCst)
        }

        fn trial(self: &Arc<Self>, deadline: Instant) -> Trial {
            let (keeping, undoing) = (self.clone(), self.clone());
            Trial {
                by: "api_key ann".to_owned(),
                deadline,
                notes: vec![Note { component: None, rule: Some("r".to_owned()), before: None, after: Some(7.into()) }],
                keep: Box::new(move || {
                    keeping.kept.fetch_add(1, Ordering::SeqCst);
                    if keeping.fails() { bail!("no room") } else { Ok(()) }
                }),
                undo: Box::new(move |keep_failed| {
                    undoing.undone.fetch_add(1, Ordering::SeqCst);
                    undoing.keep_failed.fetch_add(keep_failed.into(), Ordering::SeqCst);
                    if undoing.fails() { bail!("busy") } else { Ok(()) }
                }),
            }
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn refused<T>(result: Result<T, ApiError>) -> String {
        let error = result.err().expect("it is refused");
        assert_eq!(error.status, 409);
        error.message
    }

    #[test]
    fn of_two_that_may_be_taken_back_the_second_does_not_begin() {
        let all = Arc::new(Confirmations::default());
        let told = Arc::new(Told::default());
        let first = all.reserve("first").unwrap();
        let now = Instant::now();
        assert!(refused(all.reserve_until("second".to_owned(), now)).starts_with("first: still goes on"));
        assert!(all.pending(now).is_none() && all.expire(soon()).is_none() && all.confirm(None).unwrap().is_none());
        first.wait(told.trial(soon()));
        assert!(refused(all.reserve("second")).contains("first waits for its confirmation"));
        assert!(refused(all.enter()).contains("first waits for its confirmation"));
        // A change that is late in its thread holds a clone of what it began with.
        let late = first.clone();
        drop(first);
        let (what, kept) = all.confirm(Some("api_key ann")).unwrap().unwrap();
        assert!(what == "first" && kept.is_ok());
        let second = all.reserve("second").unwrap();
        drop(late);
        assert!(
            refused(all.reserve_until("third".to_owned(), now)).starts_with("second"),
            "it is not that one's to free"
        );
        drop(second);
        drop(all.reserve("third").unwrap());
        assert_eq!((Told::of(&told.kept), Told::of(&told.undone)), (1, 0));
    }

    #[test]
    fn a_change_that_failed_makes_room() {
        let all = Arc::new(Confirmations::default());
        drop(all.reserve("first").unwrap());
        assert!(all.pending(Instant::now()).is_none());
        let beside = [all.enter().unwrap(), all.enter().unwrap()];
        assert_eq!(
            refused(all.reserve_until("reload".to_owned(), Instant::now())),
            "other changes still go on; try again"
        );
        drop(beside);
        drop(all.reserve("reload").unwrap());
    }

    #[test]
    fn who_goes_on_alone_waits_for_the_others_and_they_for_it() {
        let all = Arc::new(Confirmations::default());
        let order = Arc::new(Mutex::new(Vec::new()));
        let entered = all.enter().unwrap();
        let alone = thread::spawn({
            let (all, order) = (all.clone(), order.clone());
            move || {
                let reserved = all.reserve("reload").unwrap();
                order.lock().unwrap().push("reload");
                reserved
            }
        });
        // It keeps new ones out as soon as it waits.
        while !matches!(all.lock().phase, Phase::Reserved { .. }) {
            thread::yield_now();
        }
        let next = thread::spawn({
            let (all, order) = (all.clone(), order.clone());
            move || {
                drop(all.enter().unwrap());
                order.lock().unwrap().push("rule");
            }
        });
        order.lock().unwrap().push("first");
        drop(entered);
        drop(alone.join().unwrap());
        next.join().unwrap();
        assert_eq!(*order.lock().unwrap(), ["first", "reload", "rule"]);
    }

    #[test]
    fn while_it_is_settled_nothing_comes_between() {
        let all = Arc::new(Confirmations::default());
        let (began, goes_on) = crossbeam_channel::bounded::<()>(0);
        let entered = Arc::new(AtomicU32::new(0));
        let seen = entered.clone();
        let undo: Undo = Box::new(move |_| {
            began.send(())?;
            // Whoever was let in would be counted before this is received.
            began.send(())?;
            assert_eq!(seen.load(Ordering::SeqCst), 0);
            Ok(())
        });
        let trial = Trial { undo, ..Arc::new(Told::default()).trial(Instant::now()) };
        all.reserve("first").unwrap().wait(trial);
        let expired = thread::spawn({
            let all = all.clone();
            move || all.expire(Instant::now()).unwrap().undone
        });
        goes_on.recv().unwrap();
        assert!(all.pending(Instant::now()).is_some(), "it is still to be seen");
        assert!(all.confirm(None).unwrap().is_none(), "too late");
        let late = Instant::now();
        assert!(all.wait_until_free(late).is_err_and(|error| error.message.contains("being kept or taken back")));
        let other = thread::spawn({
            let (all, entered) = (all.clone(), entered.clone());
            move || {
                let change = all.enter().unwrap();
                entered.fetch_add(1, Ordering::SeqCst);
                drop(change);
            }
        });
        goes_on.recv().unwrap();
        expired.join().unwrap().unwrap();
        other.join().unwrap();
        assert_eq!(entered.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_could_not_be_kept_waits_on_and_is_taken_back_with_what_it_left() {
        let all = Arc::new(Confirmations::default());
        let told = Arc::new(Told::default());
        told.failures.store(1, Ordering::SeqCst);
        let deadline = soon();
        all.reserve("first").unwrap().wait(told.trial(deadline));
        assert!(all.confirm(Some("api_key bob")).is_err_and(|error| error.status == 403));
        assert!(all.confirm(None).unwrap().unwrap().1.is_err());
        assert!(all.pending(Instant::now()).is_some());
        assert!(all.expire(Instant::now()).is_none());
        let expired = all.expire(deadline).unwrap();
        assert!(expired.undone.is_ok());
        assert_eq!((expired.notes[0].before.clone(), expired.notes[0].after.clone()), (Some(7.into()), None));
        assert_eq!((Told::of(&told.undone), Told::of(&told.keep_failed)), (1, 1));
        drop(all.enter().unwrap());
    }

    #[test]
    fn what_could_not_be_taken_back_is_tried_again_and_cannot_be_kept() {
        let all = Arc::new(Confirmations::default());
        let told = Arc::new(Told::default());
        told.failures.store(2, Ordering::SeqCst);
        let now = Instant::now();
        all.reserve("first").unwrap().wait(told.trial(now));
        let expired = all.expire(now).unwrap();
        assert!((expired.attempt, expired.undone.is_err()) == (1, true) && all.expire(now).is_none());
        assert!(refused(all.confirm(None)).contains("was not confirmed in time"));
        assert!(refused(all.enter()).contains("could not be taken back yet"));
        assert!(all.expire(now + RETRY).unwrap().undone.is_err());
        let expired = all.expire(now + 2 * RETRY).unwrap();
        assert!((expired.attempt, expired.undone.is_ok()) == (3, true));
        assert_eq!((Told::of(&told.kept), Told::of(&told.undone)), (0, 3));
        drop(all.reserve("second").unwrap());
    }

    #[test]
    fn an_agent_that_stops_takes_back_what_waits_and_begins_nothing() {
        let all = Arc::new(Confirmations::default());
        let told = Arc::new(Told::default());
        let going = all.reserve("first").unwrap();
        let closed = thread::spawn({
            let all = all.clone();
            move || all.close(Duration::from_secs(60))
        });
        while !all.lock().closed {
            thread::yield_now();
        }
        // One that goes on is waited for.
        going.wait(told.trial(soon()));
        assert!(closed.join().unwrap().unwrap().undone.is_ok());
        assert_eq!(Told::of(&told.undone), 1);
        assert_eq!(refused(all.enter()), "the agent is stopping");
        assert_eq!(refused(all.reserve("second")), "the agent is stopping");
        assert!(all.close(Duration::ZERO).is_none());
    }
}
