//! Where alerts go.

pub mod config;
mod log;
mod outlets;

pub use self::log::LogSink;
pub use outlets::{Outlets, Prepared};

use std::sync::Arc;

use super::Alert;

/// A way out for alerts. Runs on the router's thread, so it must not wait: a sink that has to talk to someone slow
/// keeps a bounded queue and a thread of its own.
pub trait Sink: Send {
    /// The sink's name, as the metric of lost alerts shows it.
    fn name(&self) -> &str;

    /// Takes an alert, or an update of one, or says in a word why it was lost.
    fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str>;
}
