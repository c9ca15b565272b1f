//! Threads, and what happens when one fails.
//!
//! Every thread of the agent is started here. A panic or an error in one is logged with its place and told to the main
//! thread, which ends the process in the one orderly way (what the kernel goes on doing is `agent.on_exit`). State that
//! several threads need has one owner, a thread; the others hand it a closure through a [`Handle`].

use std::any::Any;
use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded, never, select};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The kernel cuts thread names after this many bytes.
pub const THREAD_NAME_MAX: usize = 15;

/// Calls that wait for one owner at most.
const CALLS_MAX: usize = 64;

/// How long a call waits to be begun, and then again to be answered. Compiling 4096 rules is the longest call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Events that an owner takes in a row before it looks at its calls again.
const EVENTS_IN_A_ROW: usize = 64;

/// The end of a thread that should have gone on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("thread {thread} failed: {message}")]
pub struct Fatal {
    /// Name of the thread.
    pub thread: String,
    /// The panic's message and place, or the error with its causes.
    pub message: String,
}

/// Wakes a poll in another thread; several rings before it looks are one.
#[derive(Clone, Debug)]
pub struct Bell(Arc<EventFd>);

impl Bell {
    /// A silent bell.
    pub fn new() -> nix::Result<Bell> {
        Ok(Bell(Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)))
    }

    /// Makes the descriptor readable. It can only fail when it is readable already.
    pub fn ring(&self) {
        let _ = self.0.write(1);
    }

    /// Makes the descriptor silent again. Look at what the bell stands for after this, never before.
    pub fn hush(&self) {
        let _ = self.0.read();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A thread's sign of life: milliseconds since the supervisor was made, 0 before the first sign.
#[derive(Clone, Debug)]
pub struct Pulse {
    epoch: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Pulse {
    /// Says that the thread goes round its loop. A thread is watched from its first beat until it ends.
    pub fn beat(&self) {
        self.last_ms.store((self.epoch.elapsed().as_millis() as u64).max(1), Ordering::Relaxed);
    }
}

/// Starts threads and hears of their end. Clones are the same supervisor.
#[derive(Clone)]
pub struct Supervisor {
    epoch: Instant,
    failures: Sender<Fatal>,
    bell: Bell,
    watched: Arc<Mutex<Vec<(String, Pulse)>>>,
}

/// The main thread's end of a [`Supervisor`]: readable when a thread failed.
pub struct Failures {
    failures: Receiver<Fatal>,
    bell: Bell,
}

impl Failures {
    /// The next failure that was told, if any.
    pub fn take(&self) -> Option<Fatal> {
        self.bell.hush();
        self.failures.try_recv().ok()
    }
}

impl AsFd for Failures {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Supervisor {
    /// A supervisor and the end of it that main polls.
    pub fn new() -> nix::Result<(Supervisor, Failures)> {
        install_panic_hook();
        let bell = Bell::new()?;
        // The first failure ends the process, so the others may go unheard; each of them has been logged.
        let (sender, receiver) = bounded(16);
        let supervisor =
            Supervisor { epoch: Instant::now(), failures: sender, bell: bell.clone(), watched: Arc::default() };
        Ok((supervisor, Failures { failures: receiver, bell }))
    }

    /// Starts a thread. Its panic or error is logged and told to main; its quiet end is not a failure.
    ///
    /// Panics if the name does not fit into [`THREAD_NAME_MAX`].
    pub fn spawn<R: Send + 'static>(
        &self,
        name: &str,
        run: impl FnOnce(&Pulse) -> anyhow::Result<R> + Send + 'static,
    ) -> std::io::Result<Thread<R>> {
        assert!(!name.is_empty() && name.len() <= THREAD_NAME_MAX, "thread name \"{name}\"");
        let pulse = Pulse { epoch: self.epoch, last_ms: Arc::default() };
        self.watched.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((name.to_string(), pulse.clone()));
        let (result_sender, result) = bounded(1);
        let supervisor = self.clone();
        let spawned = thread::Builder::new().name(name.to_string()).spawn({
            let name = name.to_string();
            let pulse = pulse.clone();
            move || {
                LAST_PANIC.set(Some(String::new()));
                // Nothing of the closure is looked at after a panic but what its own Drop leaves behind.
                let outcome = panic::catch_unwind(AssertUnwindSafe(|| run(&pulse)));
                supervisor.unwatch(&pulse);
                match outcome {
                    Ok(Ok(value)) => drop(result_sender.send(value)),
                    Ok(Err(error)) => {
                        log::error!(thread = name; "thread {name} failed: {error:#}");
                        supervisor.fail(name, format!("{error:#}"));
                    }
                    Err(payload) => {
                        let told = LAST_PANIC.take().filter(|told| !told.is_empty());
                        supervisor.fail(name, told.unwrap_or_else(|| payload_text(payload.as_ref()).to_string()));
                    }
                }
            }
        });
        match spawned {
            Ok(handle) => Ok(Thread { name: name.to_string(), handle, result }),
            Err(error) => {
                self.unwatch(&pulse);
                Err(error)
            }
        }
    }

    /// Starts a thread that owns `state`: it runs the calls of [`Handle`], the events of `events` and a tick.
    pub fn spawn_owner<T: Owned>(
        &self,
        name: &'static str,
        state: T,
        events: Receiver<T::Event>,
    ) -> std::io::Result<(Handle<T>, Thread<T>)> {
        let (handle, calls) = call_queue(name, None);
        let thread = self.spawn(name, move |pulse| Ok(own(state, &calls, events, pulse)))?;
        Ok((handle, thread))
    }

    /// Tells main that `thread` failed; for threads that are not ours but must not fail silently.
    pub fn fail(&self, thread: String, message: String) {
        let _ = self.failures.try_send(Fatal { thread, message });
        self.bell.ring();
    }

    /// The watched threads that gave no sign of life for `limit`. While there is one, the watchdog must not be fed.
    pub fn stalled(&self, limit: Duration) -> Vec<String> {
        let now_ms = self.epoch.elapsed().as_millis() as u64;
        let limit_ms = limit.as_millis() as u64;
        let watched = self.watched.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let late = |pulse: &Pulse| {
            let last_ms = pulse.last_ms.load(Ordering::Relaxed);
            last_ms != 0 && now_ms.saturating_sub(last_ms) > limit_ms
        };
        watched.iter().filter(|(_, pulse)| late(pulse)).map(|(name, _)| name.clone()).collect()
    }

    fn unwatch(&self, pulse: &Pulse) {
        let mut watched = self.watched.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        watched.retain(|(_, other)| !Arc::ptr_eq(&other.last_ms, &pulse.last_ms));
    }
}

/// A started thread.
pub struct Thread<R> {
    name: String,
    handle: thread::JoinHandle<()>,
    result: Receiver<R>,
}

impl<R> Thread<R> {
    /// Waits for the thread's end and gives what it returned. The thread must have been asked to end.
    pub fn join(self, timeout: Duration) -> Result<R, Gone> {
        match self.result.recv_timeout(timeout) {
            Ok(value) => {
                // It has nothing left to do but to unwind its stack.
                let _ = self.handle.join();
                Ok(value)
            }
            Err(RecvTimeoutError::Timeout) => Err(Gone::Unanswered(self.name)),
            Err(RecvTimeoutError::Disconnected) => Err(Gone::Ended(self.name)),
        }
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// State with one owner thread. Time is an argument.
pub trait Owned: Send + Sized + 'static {
    /// What arrives on the event queue. [`std::convert::Infallible`] for an owner that is only called.
    type Event: Send + 'static;

    /// Time from tick to tick. Also the longest that the thread sleeps, so that it gives a sign of life.
    const TICK: Duration = Duration::from_secs(1);

    /// Called once, on the thread, before all else. It may take long: the thread is not watched yet.
    fn begin(&mut self, _now: Instant) {}

    /// Takes one event.
    fn event(&mut self, event: Self::Event, now: Instant);

    /// Called each [`Self::TICK`], also when events never cease.
    fn tick(&mut self, _now: Instant) {}

    /// When it has something to do on its own; `None`, or later than the next tick: at the next tick.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Called once after the last event and call, before the state is given back.
    fn finish(&mut self, _now: Instant) {}
}

type Run<T> = Box<dyn FnOnce(&mut T) + Send>;

enum Call<T> {
    Run(Run<T>),
    Stop,
}

/// Why a call brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// The owner has ended; nothing was done, or it failed while doing it and the process ends.
    #[error("the {0} thread has ended")]
    Ended(String),
    /// The owner did not get round to it in time. The call will not run.
    #[error("the {0} thread is busy; nothing was changed")]
    Busy(String),
    /// The owner began and did not finish in time. What the call did is not known.
    #[error("the {0} thread did not answer in time; the outcome is not known")]
    Unanswered(String),
}

/// Lets other threads use the state of an owner thread.
pub struct Handle<T> {
    name: &'static str,
    calls: Sender<Call<T>>,
    bell: Option<Bell>,
    timeout: Duration,
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Handle { name: self.name, calls: self.calls.clone(), bell: self.bell.clone(), timeout: self.timeout }
    }
}

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const WITHDRAWN: u8 = 2;

impl<T: 'static> Handle<T> {
    /// The same handle with another patience.
    pub fn with_timeout(&self, timeout: Duration) -> Handle<T> {
        Handle { timeout, ..self.clone() }
    }

    /// Runs `f` on the owner thread and gives its answer. Never call an owner from its own thread.
    pub fn call<R: Send + 'static>(&self, f: impl FnOnce(&mut T) -> R + Send + 'static) -> Result<R, Gone> {
        let deadline = Instant::now() + self.timeout;
        let (answer_sender, answer) = bounded(1);
        let stage = Arc::new(AtomicU8::new(WAITING));
        let run: Run<T> = Box::new({
            let stage = stage.clone();
            move |state| {
                if stage.compare_exchange(WAITING, BEGUN, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    // The caller may have lost patience meanwhile.
                    let _ = answer_sender.send(f(state));
                }
            }
        });
        match self.calls.send_deadline(Call::Run(run), deadline) {
            Ok(()) => self.bell.iter().for_each(Bell::ring),
            Err(SendTimeoutError::Timeout(_)) => return Err(Gone::Busy(self.name.into())),
            Err(SendTimeoutError::Disconnected(_)) => return Err(Gone::Ended(self.name.into())),
        }
        let mut answered = answer.recv_deadline(deadline);
        if matches!(answered, Err(RecvTimeoutError::Timeout)) {
            if stage.compare_exchange(WAITING, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Err(Gone::Busy(self.name.into()));
            }
            answered = answer.recv_timeout(self.timeout);
        }
        answered.map_err(|error| match error {
            RecvTimeoutError::Timeout => Gone::Unanswered(self.name.into()),
            RecvTimeoutError::Disconnected => Gone::Ended(self.name.into()),
        })
    }

    /// Asks the owner to end, after the events that wait now. Its state comes back through [`Thread::join`].
    pub fn stop(&self) -> Result<(), Gone> {
        match self.calls.send_timeout(Call::Stop, self.timeout) {
            Ok(()) => {
                self.bell.iter().for_each(Bell::ring);
                Ok(())
            }
            Err(SendTimeoutError::Timeout(_)) => Err(Gone::Busy(self.name.into())),
            Err(SendTimeoutError::Disconnected(_)) => Err(Gone::Ended(self.name.into())),
        }
    }
}

/// The calls to a state whose owner has a poll of its own, as main does: the bell says when to [`Mailbox::serve`].
pub struct Mailbox<T> {
    calls: Receiver<Call<T>>,
    bell: Bell,
}

impl<T: 'static> Mailbox<T> {
    /// A mailbox and the handle that puts calls into it.
    pub fn new(name: &'static str) -> nix::Result<(Handle<T>, Mailbox<T>)> {
        let bell = Bell::new()?;
        let (handle, calls) = call_queue(name, Some(bell.clone()));
        Ok((handle, Mailbox { calls, bell }))
    }

    /// The bell that rings with each call, for the owner's poll.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Runs the calls that wait. True when the owner was asked to stop.
    pub fn serve(&self, state: &mut T) -> bool {
        self.bell.hush();
        for _ in 0..CALLS_MAX {
            match self.calls.try_recv() {
                Ok(Call::Run(run)) => run(state),
                Ok(Call::Stop) => return true,
                Err(_) => return false,
            }
        }
        // There may be more; the poll comes back to it after the other sources had their turn.
        self.bell.ring();
        false
    }
}

fn call_queue<T>(name: &'static str, bell: Option<Bell>) -> (Handle<T>, Receiver<Call<T>>) {
    let (sender, receiver) = bounded(CALLS_MAX);
    (Handle { name, calls: sender, bell, timeout: CALL_TIMEOUT }, receiver)
}

/// The owner's loop. Ends when asked to, or when nobody can ask any more.
fn own<T: Owned>(mut state: T, calls: &Receiver<Call<T>>, mut events: Receiver<T::Event>, pulse: &Pulse) -> T {
    state.begin(Instant::now());
    let mut next_tick = Instant::now() + T::TICK;
    loop {
        pulse.beat();
        let now = Instant::now();
        if now >= next_tick || state.due().is_some_and(|due| now >= due) {
            state.tick(now);
            next_tick = now + T::TICK;
        }
        let wake = state.due().map_or(next_tick, |due| due.min(next_tick));
        select! {
            recv(calls) -> call => match call {
                Ok(Call::Run(run)) => run(&mut state),
                Ok(Call::Stop) | Err(_) => break,
            },
            recv(events) -> event => match event {
                Ok(event) => {
                    let now = Instant::now();
                    state.event(event, now);
                    // A select costs more than the event: take what is there, but not for so long that calls wait.
                    events.try_iter().take(EVENTS_IN_A_ROW).for_each(|event| state.event(event, now));
                }
                // No source is left; the calls go on.
                Err(_) => events = never(),
            },
            default(wake.saturating_duration_since(now)) => {}
        }
    }
    // What was taken in before the stop is still told, and the queue's size bounds it.
    let now = Instant::now();
    let waiting = events.len();
    events.try_iter().take(waiting).for_each(|event| state.event(event, now));
    state.finish(now);
    state
}

thread_local! {
    /// Set in supervised threads: the hook puts the panic's text and place here.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes the calling thread's panics go to the log as those of supervised threads do. For main.
pub fn log_panics_here() {
    install_panic_hook();
    LAST_PANIC.set(Some(String::new()));
}

/// The place of a panic is known to the hook only. Threads that are not ours keep the hook that was there.
fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|place| format!(" at {}:{}", place.file(), place.line()));
            let text = format!("panic: {}{}", payload_text(info.payload()), place.unwrap_or_default());
            let ours = LAST_PANIC.try_with(|last| match last.try_borrow_mut() {
                Ok(mut last) if last.is_some() => {
                    *last = Some(text.clone());
                    true
                }
                _ => false,
            });
            if !ours.unwrap_or(false) {
                return previous(info);
            }
            let thread = thread::current();
            let name = thread.name().unwrap_or("unnamed");
            log::error!(thread = name; "thread {name}: {text}");
        }));
    });
}

fn payload_text(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&'static str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;

    /// An owner whose ticks are far apart, and which has something to do before.
    struct Alarm {
        due: Option<Instant>,
        rung: Sender<Instant>,
    }

    impl Owned for Alarm {
        type Event = std::convert::Infallible;

        const TICK: Duration = Duration::from_secs(3600);

        fn event(&mut self, event: std::convert::Infallible, _now: Instant) {
            match event {}
        }

        fn tick(&mut self, now: Instant) {
            self.due = None;
            let _ = self.rung.send(now);
        }

        fn due(&self) -> Option<Instant> {
            self.due
        }
    }

    #[test]
    fn who_has_something_to_do_is_woken_for_it() {
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (rung, rings) = bounded(8);
        let due = Instant::now() + Duration::from_millis(20);
        let (_events, queue) = bounded(1);
        let (handle, thread) = supervisor.spawn_owner("alarm", Alarm { due: Some(due), rung }, queue).unwrap();
        assert!(rings.recv_timeout(Duration::from_secs(30)).unwrap() >= due);
        handle.stop().unwrap();
        thread.join(Duration::from_secs(5)).unwrap();
        assert!(rings.is_empty());
    }

    /// An owner that remembers what it was told.
    #[derive(Default)]
    struct Diary {
        events: Vec<u32>,
        ticks: u32,
        finished: bool,
    }

    impl Owned for Diary {
        type Event = u32;
        const TICK: Duration = Duration::from_millis(5);

        fn event(&mut self, event: u32, _now: Instant) {
            assert_ne!(event, 13, "unlucky event");
            self.events.push(event);
        }
        fn tick(&mut self, _now: Instant) {
            self.ticks += 1;
        }
        fn finish(&mut self, _now: Instant) {
            self.finished = true;
        }
    }

    fn readable(fd: &impl AsFd, timeout_ms: u16) -> bool {
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout_ms).unwrap() == 1
    }

    fn failure(failures: &Failures) -> Fatal {
        assert!(readable(failures, 5000), "no failure was told");
        failures.take().expect("the bell rang for a failure")
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn an_owner_takes_calls_events_and_ticks_and_gives_its_state_back() {
        let (supervisor, failures) = Supervisor::new().unwrap();
        let (events, queue) = bounded(1000);
        let (handle, thread) = supervisor.spawn_owner("diary", Diary::default(), queue).unwrap();
        assert_eq!(handle.call(|_| thread::current().name().map(String::from)).unwrap().as_deref(), Some("diary"));
        for n in 100..1000 {
            events.send(n).unwrap();
        }
        let end = Instant::now() + PATIENCE;
        while handle.call(|diary| diary.ticks).unwrap() < 2 {
            assert!(Instant::now() < end, "no ticks");
            thread::sleep(Duration::from_millis(1));
        }
        events.send(1000).unwrap();
        drop(events);
        handle.stop().unwrap();
        let diary = thread.join(PATIENCE).unwrap();
        assert_eq!(diary.events, (100..=1000).collect::<Vec<_>>(), "all, in order, also those before the stop");
        assert!(diary.finished);
        assert_eq!(handle.call(|_| ()), Err(Gone::Ended("diary".into())));
        assert!(!readable(&failures, 0), "an orderly end is no failure");
    }

    #[test]
    fn calls_are_served_while_events_never_cease() {
        struct Sink(u64);
        impl Owned for Sink {
            type Event = ();
            const TICK: Duration = Duration::from_millis(2);
            fn event(&mut self, (): (), _now: Instant) {}
            fn tick(&mut self, _now: Instant) {
                self.0 += 1;
            }
        }
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (events, queue) = bounded(10_000);
        let (handle, thread) = supervisor.spawn_owner("sink", Sink(0), queue).unwrap();
        let flood = thread::spawn(move || while events.send(()).is_ok() {});
        for _ in 0..100 {
            handle.call(|_| ()).unwrap();
        }
        let end = Instant::now() + PATIENCE;
        while handle.call(|sink| sink.0).unwrap() < 2 {
            assert!(Instant::now() < end, "the tick starves");
        }
        handle.stop().unwrap();
        thread.join(PATIENCE).unwrap();
        flood.join().unwrap();
    }

    /// Nobody waits for an owner that has much to do at first, and it is not thought to be frozen.
    #[test]
    fn an_owner_begins_on_its_own_thread_before_all_else() {
        struct Slow(Receiver<()>, Vec<u32>);
        impl Owned for Slow {
            type Event = u32;
            fn begin(&mut self, _now: Instant) {
                self.0.recv().unwrap();
                self.1.push(0);
            }
            fn event(&mut self, event: u32, _now: Instant) {
                self.1.push(event);
            }
        }
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (release, gate) = bounded(0);
        let (events, queue) = bounded(10);
        let (handle, thread) = supervisor.spawn_owner("slow", Slow(gate, Vec::new()), queue).unwrap();
        events.send(1).unwrap();
        let busy = handle.with_timeout(Duration::from_millis(20)).call(|_| ());
        assert_eq!(busy, Err(Gone::Busy("slow".into())));
        assert!(supervisor.stalled(Duration::ZERO).is_empty());
        release.send(()).unwrap();
        handle.stop().unwrap();
        assert_eq!(thread.join(PATIENCE).unwrap().1, [0, 1]);
    }

    #[test]
    fn a_panic_is_told_with_thread_message_and_place() {
        let (supervisor, failures) = Supervisor::new().unwrap();
        let thread = supervisor.spawn("clumsy", |_| -> anyhow::Result<()> { panic!("dropped {}", 7) }).unwrap();
        let fatal = failure(&failures);
        assert_eq!(fatal.thread, "clumsy");
        assert!(fatal.message.starts_with("panic: dropped 7 at src/supervise.rs:"), "{}", fatal.message);
        assert_eq!(thread.join(PATIENCE), Err(Gone::Ended("clumsy".into())));
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let (supervisor, failures) = Supervisor::new().unwrap();
        supervisor
            .spawn("poller", |_| -> anyhow::Result<()> { Err(anyhow::anyhow!("no such map").context("polling")) })
            .unwrap();
        assert_eq!(failure(&failures), Fatal { thread: "poller".into(), message: "polling: no such map".into() });
    }

    #[test]
    fn a_panic_in_a_call_or_an_event_reaches_caller_and_main() {
        let (supervisor, failures) = Supervisor::new().unwrap();
        let (_events, queue) = bounded(1);
        let (handle, _thread) = supervisor.spawn_owner("fragile", Diary::default(), queue).unwrap();
        assert_eq!(handle.call(|_| -> u32 { panic!("in a call") }), Err(Gone::Ended("fragile".into())));
        assert!(failure(&failures).message.contains("in a call at src/supervise.rs:"));
        assert_eq!(handle.call(|_| ()), Err(Gone::Ended("fragile".into())));

        let (events, queue) = bounded(1);
        let (_handle, _thread) = supervisor.spawn_owner("fragile2", Diary::default(), queue).unwrap();
        events.send(13).unwrap();
        assert!(failure(&failures).message.contains("unlucky event"));
    }

    #[test]
    fn a_call_that_was_given_up_never_runs() {
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (_events, queue) = bounded(1);
        let (handle, thread) = supervisor.spawn_owner("slow", Diary::default(), queue).unwrap();
        let (open_gate, gate) = bounded::<()>(0);
        let (begun_sender, begun) = bounded::<()>(0);
        let blocked = thread::spawn({
            let handle = handle.clone();
            move || {
                handle.call(move |_| {
                    begun_sender.send(()).unwrap();
                    gate.recv().unwrap();
                })
            }
        });
        begun.recv().unwrap();
        let hasty = handle.with_timeout(Duration::from_millis(10));
        assert_eq!(hasty.call(|diary| diary.events.push(1)), Err(Gone::Busy("slow".into())));
        open_gate.send(()).unwrap();
        blocked.join().unwrap().unwrap();
        assert_eq!(handle.call(|diary| diary.events.clone()), Ok(vec![]));

        let begun_and_late = hasty.call(|_| thread::sleep(Duration::from_millis(200)));
        assert_eq!(begun_and_late, Err(Gone::Unanswered("slow".into())));
        handle.stop().unwrap();
        thread.join(PATIENCE).unwrap();
    }

    #[test]
    fn a_full_call_queue_is_busy_not_endless() {
        let (handle, calls) = call_queue::<Diary>("stuck", None);
        let hasty = handle.with_timeout(Duration::from_millis(1));
        for _ in 0..CALLS_MAX + 3 {
            assert_eq!(hasty.call(|_| ()), Err(Gone::Busy("stuck".into())));
        }
        assert_eq!(calls.len(), CALLS_MAX);
    }

    #[test]
    fn a_mailbox_serves_calls_on_the_pollers_thread() {
        let (handle, mailbox) = Mailbox::<Vec<u32>>::new("main").unwrap();
        let caller = thread::spawn(move || {
            let len = handle.call(|state| {
                state.push(7);
                state.len()
            });
            handle.stop().unwrap();
            len
        });
        let mut state = vec![];
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(readable(&mailbox.bell(), 5000) && Instant::now() < end);
            if mailbox.serve(&mut state) {
                break;
            }
        }
        assert_eq!(caller.join().unwrap(), Ok(1));
        assert_eq!(state, [7]);
    }

    #[test]
    fn a_thread_that_stops_beating_is_found() {
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (release, gate) = bounded::<()>(0);
        let (begun_sender, begun) = bounded::<()>(0);
        let frozen = supervisor
            .spawn("frozen", move |pulse| {
                pulse.beat();
                begun_sender.send(())?;
                gate.recv()?;
                Ok(())
            })
            .unwrap();
        begun.recv().unwrap();
        assert!(supervisor.stalled(PATIENCE).is_empty());
        thread::sleep(Duration::from_millis(20));
        assert_eq!(supervisor.stalled(Duration::from_millis(5)), ["frozen"]);
        release.send(()).unwrap();
        frozen.join(PATIENCE).unwrap();
        assert!(supervisor.stalled(Duration::ZERO).is_empty(), "an ended thread is not watched");
    }

    #[test]
    fn names_are_checked_and_seen_by_the_kernel() {
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let comm = supervisor.spawn("fifteen-letters", |_| Ok(std::fs::read_to_string("/proc/thread-self/comm")?));
        assert_eq!(comm.unwrap().join(PATIENCE).unwrap(), "fifteen-letters\n");
        let long = panic::catch_unwind(AssertUnwindSafe(|| supervisor.spawn("sixteen-letters!", |_| Ok(())).is_ok()));
        assert!(long.is_err());
    }

    #[test]
    fn many_rings_are_one() {
        let bell = Bell::new().unwrap();
        assert!(bell.as_fd().as_raw_fd() >= 0 && !readable(&bell, 0));
        bell.ring();
        bell.ring();
        assert!(readable(&bell, 0));
        bell.hush();
        assert!(!readable(&bell, 0));
    }
}
