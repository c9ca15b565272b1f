//! Commit-confirm: a change that takes itself back unless somebody who can still reach the host confirms it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::{ApiError, Note};

/// Longest time that a change may wait, in seconds.
pub const CONFIRM_SECS_MAX: u32 = 3600;

type Act = Box<dyn FnOnce() -> anyhow::Result<()> + Send>;

struct Pending {
    what: String,
    /// Who made it; see [`crate::api::Request::caller_id`].
    by: String,
    deadline: Instant,
    keep: Act,
    undo: Act,
    notes: Vec<Note>,
}

/// A change that nobody confirmed in time.
pub struct Expired {
    /// What it was.
    pub what: String,
    /// Whether it could be taken back.
    pub undone: anyhow::Result<()>,
    /// What taking it back changed, for the audit log.
    pub notes: Vec<Note>,
}

/// The one change that may wait for its confirmation.
#[derive(Default)]
pub struct Confirmations {
    pending: Mutex<Option<Pending>>,
}

impl Confirmations {
    fn lock(&self) -> MutexGuard<'_, Option<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, and for how long still.
    pub fn pending(&self, now: Instant) -> Option<(String, Duration)> {
        self.lock().as_ref().map(|pending| (pending.what.clone(), pending.deadline.saturating_duration_since(now)))
    }

    /// Fails while a change waits: another one on top of it could not be taken back by itself.
    pub fn refuse_while_pending(&self) -> Result<(), ApiError> {
        match &*self.lock() {
            Some(pending) => Err(ApiError::conflict(format!(
                "{} waits for its confirmation; confirm it or let it be taken back first",
                pending.what
            ))),
            None => Ok(()),
        }
    }

    /// Lets a change that `by` just made wait. `keep` runs when it is confirmed, `undo` when time is up.
    pub fn begin(
        &self,
        what: impl Into<String>,
        by: impl Into<String>,
        deadline: Instant,
        keep: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
        undo: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) {
        let (keep, undo): (Act, Act) = (Box::new(keep), Box::new(undo));
        let (what, by) = (what.into(), by.into());
        *self.lock() = Some(Pending { what, by, deadline, keep, undo, notes: Vec::new() });
    }

    /// Remembers what the change that waits has changed, to tell the opposite when it is taken back.
    pub fn remember(&self, notes: Vec<Note>) {
        if let Some(pending) = self.lock().as_mut() {
            pending.notes = notes;
        }
    }

    /// Keeps what waits; `None` when nothing does. With `by` it must be that caller's own change.
    pub fn confirm(&self, by: Option<&str>) -> Result<Option<(String, anyhow::Result<()>)>, ApiError> {
        let mut lock = self.lock();
        if let (Some(pending), Some(by)) = (&*lock, by)
            && pending.by != by
        {
            let message = format!("{} is the change of another caller; they or an admin may confirm it", pending.what);
            return Err(ApiError::insufficient_role(message));
        }
        let Some(pending) = lock.take() else { return Ok(None) };
        drop(lock);
        Ok(Some((pending.what, (pending.keep)())))
    }

    /// Takes back what waited too long; `None` when nothing did.
    pub fn expire(&self, now: Instant) -> Option<Expired> {
        let mut lock = self.lock();
        if lock.as_ref()?.deadline > now {
            return None;
        }
        let pending = lock.take()?;
        drop(lock);
        let opposite = |note: Note| Note { before: note.after, after: note.before, ..note };
        let notes = pending.notes.into_iter().map(opposite).collect();
        Some(Expired { what: pending.what, undone: (pending.undo)(), notes })
    }
}
