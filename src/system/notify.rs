//! Telling the service manager how the agent does (`sd_notify(3)`).

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// The way to the service manager, if there is one.
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. Without a service manager every message is dropped.
    pub fn from_env() -> io::Result<Notifier> {
        let address = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty());
        Notifier::new(address, sd_notify::watchdog_enabled())
    }

    fn new(address: Option<OsString>, watchdog: Option<Duration>) -> io::Result<Notifier> {
        let socket = address.map(|address| connect(address.as_bytes())).transpose()?;
        Ok(Notifier { socket, watchdog: watchdog.filter(|limit| !limit.is_zero()) })
    }

    /// The agent protects. Also ends a reload.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// A reload begins; [`Self::ready`] ends it, whether it succeeded or not.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => log::warn!("the monotonic clock cannot be read: {error}"),
        }
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// The agent is about to end.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// Every watched thread is alive. Send it each [`Self::watchdog_interval`].
    pub fn watchdog(&self) {
        if self.watchdog.is_some() {
            self.send(&[NotifyState::Watchdog]);
        }
    }

    /// How often [`Self::watchdog`] is due: half of the limit, so that one late turn does no harm.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else {
            return;
        };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        // The agent works whether or not its manager listens.
        if let Err(error) = socket.send(message.as_bytes()) {
            log::warn!("the service manager cannot be told {message:?}: {error}");
        }
    }
}

/// A connected socket that never blocks; a leading `@` is an abstract address.
fn connect(address: &[u8]) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(std::ffi::OsStr::from_bytes(address))?,
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A line break would begin another assignment.
fn one_line(status: &str) -> String {
    status.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    fn tell_all(manager: &UnixDatagram, address: &str) {
        manager.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let notifier = Notifier::new(Some(address.into()), Some(Duration::from_secs(30))).unwrap();
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(15)));
        notifier.ready("2 interfaces\nMAINPID=1");
        assert_eq!(received(manager), "READY=1\nSTATUS=2 interfaces MAINPID=1\n");
        notifier.reloading();
        let text = received(manager);
        let clock = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("both in one datagram").trim();
        assert!(clock.parse::<u64>().unwrap() > 0);
        notifier.status("waiting");
        assert_eq!(received(manager), "STATUS=waiting\n");
        notifier.watchdog();
        assert_eq!(received(manager), "WATCHDOG=1\n");
        notifier.stopping();
        assert_eq!(received(manager), "STOPPING=1\n");
    }

    #[test]
    fn the_manager_hears_each_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        tell_all(&UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap());
        let name = format!("ebs-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        tell_all(&UnixDatagram::bind_addr(&abstract_address).unwrap(), &format!("@{name}"));
    }

    #[test]
    fn without_a_manager_nothing_is_sent_and_nothing_fails() {
        let notifier = Notifier::new(None, None).unwrap();
        notifier.ready("up");
        notifier.watchdog();
        assert_eq!(notifier.watchdog_interval(), None);
        assert!(Notifier::new(Some("/nonexistent/notify".into()), None).is_err());
    }
}
