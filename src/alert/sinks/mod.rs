//! Where alerts go.
//!
//! Each destination is an [`Outlet`] with a queue and a thread of its own, so that one that is dead delays neither the
//! router nor another. What sends is a [`Deliver`]; retries, pauses, the circuit breaker, the spool on disk and the
//! counting are the outlet's. An alert is sent at least once: what was sent and not answered is sent again, and a receiver
//! tells by the `id` (and `revision`).

mod circuit;
pub mod config;
mod email;
mod eve;
mod log;
mod notice;
mod outlet;
mod outlets;
pub mod spool;
mod syslog;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

pub use circuit::CircuitConfig;
pub use log::LogSink;
pub use notice::Notice;
pub use outlet::{Outlet, OutletConfig};
pub use outlets::{Outlets, Prepared, Sinks};

use super::Alert;

/// A way out for alerts. Runs on the router's thread, so it must not wait: a sink that has to talk to someone slow
/// keeps a bounded queue and a thread of its own.
pub trait Sink: Send {
    /// The sink's name, as the metric of lost alerts shows it.
    fn name(&self) -> &str;

    /// Takes an alert, or an update of one, or says in a word why it was lost.
    fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str>;
}

impl Sink for Box<dyn Sink> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str> {
        (**self).write(alert)
    }
}

/// Sends alerts. Runs on its outlet's thread and may wait, as long as its timeouts say.
pub trait Deliver: Send {
    /// Sends some alerts, in order.
    fn deliver(&mut self, batch: &[Notice]) -> Result<(), Failure>;
}

/// Why some alerts of a batch were not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// So many from the front were sent.
    pub delivered: usize,
    /// What to do with the others.
    pub kind: FailureKind,
    /// For the log.
    pub message: String,
}

/// What to do with alerts that were not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Send them again, and not before this pause, if there is one.
    Retry(Option<Duration>),
    /// Send each of them alone: it may be one that is refused.
    Split,
    /// They are refused for good: the answer is about these alerts, and not about the destination.
    Refused,
}

impl Failure {
    /// None was sent; try again.
    pub fn retry(message: impl Into<String>) -> Failure {
        Failure { delivered: 0, kind: FailureKind::Retry(None), message: message.into() }
    }

    /// They are refused for good.
    pub fn refused(message: impl Into<String>) -> Failure {
        Failure { delivered: 0, kind: FailureKind::Refused, message: message.into() }
    }
}
