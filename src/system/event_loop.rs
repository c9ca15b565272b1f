//! What the main thread waits for, as one stream of events.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::{ConfigWatch, LinkEvent, LinkWatch, Signal, Signals};
use crate::supervise::{Bell, Failures, Fatal};

/// Something that main acts on. `T` names the timers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MainEvent<T> {
    /// A signal arrived.
    Signal(Signal),
    /// The configuration file changed and has been quiet since.
    ConfigChanged,
    /// One of the other files changed, and all have been quiet since.
    FilesChanged,
    /// A network link came, went or changed.
    Link(LinkEvent),
    /// A timer ran out. It has to be set again to run again.
    Timer(T),
    /// Another thread has called: serve the mailbox.
    Call,
    /// A thread failed; the process is to end.
    Fatal(Fatal),
}

const SIGNALS: Token = Token(0);
const FAILURES: Token = Token(1);
const CALLS: Token = Token(2);
const LINKS: Token = Token(3);
const CONFIG: Token = Token(4);
/// The first of the other files.
const FILES: Token = Token(5);

/// Waits for signals, failures, calls, links, the configuration file and timers.
pub struct MainLoop<T> {
    poll: Poll,
    ready: Events,
    signals: Signals,
    failures: Failures,
    config: Option<ConfigWatch>,
    files: Vec<ConfigWatch>,
    links: Option<LinkWatch>,
    timers: Vec<(Instant, T)>,
    pending: VecDeque<MainEvent<T>>,
    /// Links were not all read; their descriptor stays readable, and mio tells of edges only.
    more_links: bool,
}

impl<T: Copy + Eq> MainLoop<T> {
    /// A loop that hears signals and failures.
    pub fn new(signals: Signals, failures: Failures) -> io::Result<MainLoop<T>> {
        let main_loop = MainLoop {
            poll: Poll::new()?,
            ready: Events::with_capacity(16),
            signals,
            failures,
            config: None,
            files: Vec::new(),
            links: None,
            timers: Vec::new(),
            pending: VecDeque::new(),
            more_links: false,
        };
        main_loop.register(&main_loop.signals, SIGNALS)?;
        main_loop.register(&main_loop.failures, FAILURES)?;
        Ok(main_loop)
    }

    /// Hears calls too: `bell` is the one of main's mailbox.
    pub fn hear_calls(&mut self, bell: &Bell) -> io::Result<()> {
        self.register(bell, CALLS)
    }

    /// Watches the configuration file too.
    pub fn watch_config(&mut self, path: &Path) -> io::Result<()> {
        let config = ConfigWatch::new(path)?;
        self.register(&config, CONFIG)?;
        self.config = Some(config);
        Ok(())
    }

    /// Watches these files too, instead of those of the last call.
    pub fn watch_files(&mut self, paths: &[PathBuf]) -> io::Result<()> {
        let files = paths.iter().map(|path| ConfigWatch::new(path)).collect::<io::Result<Vec<_>>>()?;
        // Their descriptors close, so the poll forgets them.
        self.files.clear();
        for (i, file) in files.iter().enumerate() {
            self.register(file, Token(FILES.0 + i))?;
        }
        self.files = files;
        Ok(())
    }

    /// Watches the links of the calling thread's network namespace too, and gives those that exist now.
    pub fn watch_links(&mut self) -> io::Result<&LinkWatch> {
        let links = LinkWatch::new()?;
        self.poll.registry().register(&mut SourceFd(&links.as_raw_fd()), LINKS, Interest::READABLE)?;
        Ok(self.links.insert(links))
    }

    /// The links, if they are watched.
    pub fn links(&self) -> Option<&LinkWatch> {
        self.links.as_ref()
    }

    /// The signals, to release them when the process ends.
    pub fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Lets `timer` run out at `at`, and no more at the time that was set before.
    pub fn set_timer(&mut self, timer: T, at: Instant) {
        self.cancel_timer(timer);
        self.timers.push((at, timer));
    }

    /// Forgets `timer`, also when it has run out but was not yet told.
    pub fn cancel_timer(&mut self, timer: T) {
        self.timers.retain(|(_, other)| *other != timer);
        self.pending.retain(|event| *event != MainEvent::Timer(timer));
    }

    /// Waits for the next event.
    pub fn wait(&mut self) -> io::Result<MainEvent<T>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            let timeout = if self.more_links { Some(Duration::ZERO) } else { self.time_left(Instant::now()) };
            match self.poll.poll(&mut self.ready, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.collect(Instant::now())?;
        }
    }

    fn register(&self, source: &impl AsFd, token: Token) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&source.as_fd().as_raw_fd()), token, Interest::READABLE)
    }

    /// Time until something is due by the clock.
    fn time_left(&self, now: Instant) -> Option<Duration> {
        let timers = self.timers.iter().map(|(at, _)| *at);
        let next = timers.chain(self.config.as_ref().and_then(ConfigWatch::due)).chain(self.files_due()).min()?;
        Some(next.saturating_duration_since(now))
    }

    /// When all files that changed have been quiet for long enough: a certificate and its key are one change.
    fn files_due(&self) -> Option<Instant> {
        self.files.iter().filter_map(ConfigWatch::due).max()
    }

    fn collect(&mut self, now: Instant) -> io::Result<()> {
        let is_ready = |token| self.ready.iter().any(|event| event.token() == token);
        // A failure and a wish to stop come before everything else.
        if is_ready(FAILURES) {
            self.pending.extend(std::iter::from_fn(|| self.failures.take()).map(MainEvent::Fatal));
        }
        if is_ready(SIGNALS) {
            while let Some(signal) = self.signals.take()? {
                self.pending.push_back(MainEvent::Signal(signal));
            }
        }
        if is_ready(CALLS) {
            self.pending.push_back(MainEvent::Call);
        }
        if let Some(links) = &mut self.links
            && (is_ready(LINKS) || self.more_links)
        {
            let mut changes = Vec::new();
            self.more_links = links.read(&mut changes)?;
            self.pending.extend(changes.into_iter().map(MainEvent::Link));
        }
        if let Some(config) = &mut self.config {
            if is_ready(CONFIG) {
                config.read(now)?;
            }
            if config.take(now) {
                self.pending.push_back(MainEvent::ConfigChanged);
            }
        }
        for (i, file) in self.files.iter_mut().enumerate() {
            if self.ready.iter().any(|event| event.token() == Token(FILES.0 + i)) {
                file.read(now)?;
            }
        }
        if self.files_due().is_some_and(|due| due <= now) {
            for file in &mut self.files {
                file.take(now);
            }
            self.pending.push_back(MainEvent::FilesChanged);
        }
        self.timers.sort_by_key(|(at, _)| *at);
        let due = self.timers.partition_point(|(at, _)| *at <= now);
        self.pending.extend(self.timers.drain(..due).map(|(_, timer)| MainEvent::Timer(timer)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::supervise::{Mailbox, Supervisor};
    use crate::system::LinkChange;

    #[test]
    fn every_source_arrives() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let signals = Signals::block().unwrap();
            let (supervisor, failures) = Supervisor::new().unwrap();
            let mut main_loop = MainLoop::<u8>::new(signals, failures).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.toml");
            main_loop.watch_config(&path).unwrap();
            assert_eq!(main_loop.watch_links().unwrap().links().len(), 1);
            let (handle, mailbox) = Mailbox::<u32>::new("main").unwrap();
            main_loop.hear_calls(&mailbox.bell()).unwrap();

            let now = Instant::now();
            main_loop.set_timer(1, now + Duration::from_secs(3600));
            main_loop.set_timer(2, now + Duration::from_millis(20));
            main_loop.set_timer(3, now + Duration::from_millis(10));
            main_loop.set_timer(4, now);
            main_loop.cancel_timer(4);
            assert_eq!(main_loop.wait().unwrap(), MainEvent::Timer(3));
            assert_eq!(main_loop.wait().unwrap(), MainEvent::Timer(2));

            nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
            assert_eq!(main_loop.wait().unwrap(), MainEvent::Signal(Signal::Hangup));

            let caller = std::thread::spawn(move || {
                handle.call(|state| {
                    *state += 1;
                    *state
                })
            });
            assert_eq!(main_loop.wait().unwrap(), MainEvent::Call);
            mailbox.serve(&mut 41);
            assert_eq!(caller.join().unwrap(), Ok(42));

            std::fs::write(&path, "").unwrap();
            assert_eq!(main_loop.wait().unwrap(), MainEvent::ConfigChanged);
            assert!(now.elapsed() >= crate::system::DEBOUNCE);

            let others = ["a", "b"].map(|name| dir.path().join(name));
            main_loop.watch_files(&[dir.path().join("before")]).unwrap();
            main_loop.watch_files(&others).unwrap();
            std::fs::write(dir.path().join("before"), "").unwrap();
            others.iter().for_each(|path| std::fs::write(path, "").unwrap());
            assert_eq!(main_loop.wait().unwrap(), MainEvent::FilesChanged);
            assert_eq!(main_loop.files_due(), None, "two files that change together are told once");

            assert!(Command::new("ip").args(["link", "add", "x", "type", "bridge"]).status().unwrap().success());
            let MainEvent::Link(link) = main_loop.wait().unwrap() else { panic!("a link was expected") };
            assert_eq!((link.name.as_str(), link.change), ("x", LinkChange::Appeared { up: false }));

            supervisor.spawn("failing", |_| -> anyhow::Result<()> { anyhow::bail!("no more") }).unwrap();
            let fatal = Fatal { thread: "failing".into(), message: "no more".into() };
            assert_eq!(main_loop.wait().unwrap(), MainEvent::Fatal(fatal));
        })
        .join()
        .unwrap();
    }
}
