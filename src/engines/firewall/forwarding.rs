//! What a look-up in the routing tables needs: forwarding switched on for the loopback interface.
//!
//! The kernel answers a program about routes only as from an interface that forwards. A host is no router, so the question
//! is put as from the loopback interface, as for packets that the host itself makes. What forwards there is nothing: no
//! packet for somebody else ever arrives on it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const IPV4: &str = "/proc/sys/net/ipv4/conf/lo/forwarding";
const IPV6: &str = "/proc/sys/net/ipv6/conf/lo/forwarding";
const IPV6_INTERFACES: &str = "/proc/sys/net/ipv6/conf";

/// The switches of this network namespace, and which of them this agent has moved.
#[derive(Debug, Default)]
pub struct Forwarding {
    moved: Vec<&'static str>,
}

impl Forwarding {
    /// Sees to it that both switches are on. One whose family the host does not have is not there.
    ///
    /// # Errors
    /// A switch is off and cannot be moved.
    pub fn switch_on(&mut self) -> Result<()> {
        for path in off() {
            let set = || std::fs::write(path, "1").with_context(|| format!("switching {} on", name_of(path)));
            if path == IPV6 {
                keep_router_routes(set)?
            } else {
                set()?
            }
            log::info!(
                "{} was 0 and is 1 now: without it the kernel does not tell a program about routes; \
                 the host does not become a router by it",
                name_of(path)
            );
            self.moved.push(path);
        }
        Ok(())
    }

    /// Puts back what was moved.
    pub fn put_back(&mut self) {
        for path in self.moved.drain(..) {
            match std::fs::write(path, "0") {
                Ok(()) => log::info!("{} is 0 again", name_of(path)),
                Err(error) => log::warn!("{} stays 1: {error}", name_of(path)),
            }
        }
    }
}

/// What is wrong, if a switch is off: then no look-up is answered.
pub fn problem() -> Option<String> {
    let names: Vec<String> = off().map(name_of).collect();
    (!names.is_empty()).then(|| {
        format!("{} is 0, so the kernel does not tell about routes and no source is taken for forged", names.join(", "))
    })
}

/// Switches that are there and off.
fn off() -> impl Iterator<Item = &'static str> {
    [IPV4, IPV6].into_iter().filter(|path| std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "0"))
}

/// The switch as `sysctl` calls it.
fn name_of(path: &str) -> String {
    path.trim_start_matches("/proc/sys/").replace('/', ".")
}

/// Does what makes the kernel throw away the default routes that routers have announced (any interface's IPv6 forwarding
/// that is switched on does), with these routes kept: the kernel spares interfaces that listen to routers although they
/// forward, `accept_ra = 2`, so all of them are such for that moment.
fn keep_router_routes(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut others: Vec<(PathBuf, String)> = Vec::new();
    for entry in std::fs::read_dir(IPV6_INTERFACES).context("looking for interfaces with IPv6")?.flatten() {
        let path = entry.path().join("accept_ra");
        let is_template = ["all", "default"].iter().any(|name| entry.path() == Path::new(IPV6_INTERFACES).join(name));
        // An interface may go while we look.
        if let (false, Ok(value)) = (is_template, std::fs::read_to_string(&path))
            && value.trim() != "2"
        {
            others.push((path, value));
        }
    }
    let spare = others.iter().try_for_each(|(path, _)| match std::fs::write(path, "2") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("keeping routes: setting {}", path.display()))
        }
        _ => Ok(()),
    });
    let done = spare.and_then(|()| work());
    for (path, value) in &others {
        if let Err(error) = std::fs::write(path, value.trim())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            log::warn!("{} is 2 and was {}: {error}", path.display(), value.trim());
        }
    }
    done
}
