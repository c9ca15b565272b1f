//! What the system tells the agent, and the agent the system: signals, changes of the configuration file, network
//! links, the service manager. [`MainLoop`] waits for all of it on the main thread.

mod event_loop;
pub mod harden;
mod links;
mod notify;
mod signals;
mod watch;

pub use event_loop::{MainEvent, MainLoop};
pub use links::{Link, LinkChange, LinkEvent, LinkWatch};
pub use notify::Notifier;
pub use signals::{Signal, Signals};
pub use watch::{ConfigWatch, DEBOUNCE};
