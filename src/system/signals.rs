//! SIGTERM, SIGINT and SIGHUP as a descriptor that can be polled.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// A signal that the agent acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: stop.
    Terminate,
    /// SIGINT: stop.
    Interrupt,
    /// SIGHUP: read the configuration again.
    Hangup,
}

impl Signal {
    const ALL: [(Number, Signal); 3] =
        [(Number::SIGTERM, Signal::Terminate), (Number::SIGINT, Signal::Interrupt), (Number::SIGHUP, Signal::Hangup)];

    /// The name as `kill -l` writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Signal::Terminate => "SIGTERM",
            Signal::Interrupt => "SIGINT",
            Signal::Hangup => "SIGHUP",
        }
    }

    /// Whether the agent is to end.
    pub const fn is_stop(self) -> bool {
        matches!(self, Signal::Terminate | Signal::Interrupt)
    }
}

/// The agent's signals, which now arrive on a descriptor only.
pub struct Signals {
    mask: SigSet,
    fd: SignalFd,
}

impl Signals {
    /// Blocks the signals in the calling thread and in those that it starts from now on. Call it before any thread
    /// starts: a thread that does not block a signal would die of it, and the process too.
    pub fn block() -> nix::Result<Signals> {
        let mask: SigSet = Signal::ALL.iter().map(|(number, _)| *number).collect();
        mask.thread_block()?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Signals { mask, fd })
    }

    /// The next signal that has arrived.
    pub fn take(&self) -> nix::Result<Option<Signal>> {
        let Some(info) = self.fd.read_signal()? else {
            return Ok(None);
        };
        Ok(Signal::ALL.iter().find(|(number, _)| *number as u32 == info.ssi_signo).map(|(_, signal)| *signal))
    }

    /// Lets the signals act in their usual way again in the calling thread, so that a second Ctrl-C ends a stop that
    /// hangs.
    pub fn release(&self) -> nix::Result<()> {
        self.mask.thread_unblock()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_arrives_on_the_descriptor() {
        // `raise` signals this thread only; other tests share the process.
        std::thread::spawn(|| {
            let signals = Signals::block().unwrap();
            assert_eq!(signals.take(), Ok(None));
            for (number, signal) in Signal::ALL {
                nix::sys::signal::raise(number).unwrap();
                assert_eq!(signals.take(), Ok(Some(signal)));
            }
            assert_eq!(signals.take(), Ok(None));
        })
        .join()
        .unwrap();
    }
}
