//! How a store is, for readiness and for its readers.

use std::sync::{Mutex, PoisonError};

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
    /// The store cannot write, because of this. True if that is new.
    pub fn fails(&self, why: String) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = state.now.is_none();
        state.now = Some(why);
        is_new
    }

    /// The store writes. True if it did not before.
    pub fn works(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).now.take().is_some()
    }

    /// Something that somebody must look at.
    pub fn look_at(&self, what: String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.told.len() < TOLD_MAX {
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
