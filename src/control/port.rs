//! A TCP port that is bound before it is listened on.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

/// Where clients are heard. Made of an address, it is bound when the server starts; or [`Port::bind`] has done so.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    socket: Option<OwnedFd>,
}

impl From<SocketAddr> for Port {
    /// Port 0 takes a free one.
    fn from(address: SocketAddr) -> Port {
        Port { address, socket: None }
    }
}

impl Port {
    /// Binds. Clients are refused until the server starts. A port below 1024 takes `CAP_NET_BIND_SERVICE`, so this comes
    /// before that is given up.
    ///
    /// # Errors
    /// The address is not this host's, or its port is taken; `key` is what the configuration calls it.
    pub fn bind(address: SocketAddr, key: &str) -> Result<Port> {
        let bound = || -> nix::Result<OwnedFd> {
            let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            // What is left of connections of the agent before this one does not hold the port.
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
            Ok(socket)
        };
        let socket = bound().map_err(std::io::Error::from);
        Ok(Port { address, socket: Some(socket.with_context(|| format!("listening on {address} ({key})"))?) })
    }

    /// Clients may come.
    pub(super) fn listen(self, key: &str) -> Result<TcpListener> {
        let Port { address, socket: Some(socket) } = self else { return Port::bind(self.address, key)?.listen(key) };
        let listening = listen(&socket, Backlog::MAXCONN).map_err(std::io::Error::from);
        listening.with_context(|| format!("listening on {address} ({key})"))?;
        Ok(TcpListener::from(socket))
    }
}
