//! How a store is, for readiness and for its readers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::db::DbError;
use crate::metrics::Metrics;

/// What is wrong with a store; shared by its owner and whoever asks.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Until the cause is gone.
    now: Option<String>,
    /// Until the next start: somebody has to look.
    told: Vec<String>,
}

/// Things to look at that are kept; the log has all of them.
const TOLD_MAX: usize = 8;

impl Health {
    /// The store cannot write, because of this.
    pub fn fails(&self, why: String) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).now = Some(why);
    }

    /// The store writes. True if it did not before.
    pub fn works(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).now.take().is_some()
    }

    /// Something that somebody must look at.
    pub fn look_at(&self, what: String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.told.len() < TOLD_MAX && !state.told.contains(&what) {
            state.told.push(what);
        }
    }

    /// Whether it cannot write now.
    pub fn is_failing(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).now.is_some()
    }

    /// All of it, a sentence each; empty when all is well.
    pub fn reasons(&self) -> Vec<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.now.iter().chain(&state.told).cloned().collect()
    }
}

/// Records that are remembered as unreadable. Beyond that, one that is met again is counted again.
const UNREADABLE_MAX: usize = 10_000;

/// Records of a store that cannot be read. They are skipped; each is counted once, and the first of each sort is told.
pub struct Unreadable {
    what: &'static str,
    place: &'static str,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    met: Mutex<HashSet<(&'static str, String)>>,
}

impl Unreadable {
    /// None was met in the store that is `what` to people and `place` to [`Metrics::events_lost`].
    pub fn new(what: &'static str, place: &'static str, health: &Arc<Health>, metrics: &Arc<Metrics>) -> Unreadable {
        Unreadable { what, place, health: health.clone(), metrics: metrics.clone(), met: Mutex::default() }
    }

    /// One of `sort`, a word such as `unreadable_alert`, is skipped; `key` says which.
    pub fn skip(&self, sort: &'static str, key: impl std::fmt::Display) {
        let key = key.to_string();
        let is_first = {
            let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
            if met.contains(&(sort, key.clone())) {
                return;
            }
            let is_first = met.iter().all(|(other, _)| *other != sort);
            if met.len() < UNREADABLE_MAX {
                met.insert((sort, key.clone()));
            }
            is_first
        };
        self.metrics.events_lost(self.place, sort).inc();
        if is_first {
            let told = format!(
                "{}: what cannot be read is skipped; the first is {key} ({sort}), how many there are says \
                 events_lost_total{{place=\"{}\"}}",
                self.what, self.place
            );
            log::error!("{told}");
            self.health.look_at(told);
        }
    }
}

/// Between attempts to write after the first that failed. It doubles with each that needs the file to be opened anew.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(8);

/// Attempts to write, and how they go.
#[derive(Debug)]
pub struct Attempts {
    what: &'static str,
    health: Arc<Health>,
    failures: Counter,
    retry_at: Option<Instant>,
    pause: Duration,
}

impl Attempts {
    /// None was made, which `health` tells until one was; `what` is written.
    pub fn new(what: &'static str, health: &Arc<Health>, failures: Counter) -> Attempts {
        health.fails(format!("{what} is not open yet"));
        Attempts { what, health: health.clone(), failures, retry_at: None, pause: RETRY_PAUSE }
    }

    /// Whether the last one went well, or is long enough ago.
    pub fn may(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| now >= at)
    }

    /// Whether the last one failed.
    pub fn failed(&self) -> bool {
        self.retry_at.is_some()
    }

    /// The last chance before the end.
    pub fn hurry(&mut self) {
        self.retry_at = None;
    }

    /// How one went, at `now`.
    pub fn note(&mut self, result: &Result<(), DbError>, now: Instant) {
        let failed_before = self.failed();
        match result {
            Ok(()) => {
                (self.retry_at, self.pause) = (None, RETRY_PAUSE);
                if self.health.works() && failed_before {
                    log::info!("{}: written again", self.what);
                }
            }
            Err(error) => {
                self.failures.inc();
                self.retry_at = Some(now + self.pause);
                self.pause = match error {
                    DbError::NoRoom(_) => RETRY_PAUSE,
                    _ => RETRY_PAUSE_MAX.min(self.pause * 2),
                };
                let why = format!("{} cannot be written: {error}", self.what);
                self.health.fails(why.clone());
                if !failed_before {
                    log::error!("{why}");
                }
            }
        }
    }
}
