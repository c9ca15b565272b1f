//! Who is at the other end of a connection, and who shares limits with whom.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use mio::net::UnixStream;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Gid;

/// Groups asked for at most, of one process.
const GROUPS_MAX: usize = 1024;

/// The other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A client on the network. An IPv4 address is never written as an IPv6 one.
    Net(SocketAddr),
    /// A process of this host, as the kernel knows it. The group is the one that opened it the socket, if it is in that,
    /// and else its first.
    Local { uid: u32, gid: u32 },
}

impl Peer {
    /// The process that connected to a socket of `group`.
    pub fn of_socket(stream: &UnixStream, group: Option<Gid>) -> std::io::Result<Peer> {
        let process = getsockopt(stream, sockopt::PeerCredentials)?;
        let mut gid = process.gid();
        if let Some(group) = group.map(Gid::as_raw)
            && groups(stream.as_raw_fd())?.contains(&group)
        {
            gid = group;
        }
        Ok(Peer::Local { uid: process.uid(), gid })
    }

    /// A client on the network.
    pub fn net(address: SocketAddr) -> Peer {
        Peer::Net(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// Whether it is on this host.
    pub fn is_here(self) -> bool {
        match self {
            Peer::Net(address) => address.ip().is_loopback(),
            Peer::Local { .. } => true,
        }
    }

    /// What counts as one client: an address, an IPv6 network that one host can have to itself, a user of this host.
    pub fn key(self) -> u128 {
        match self {
            Peer::Local { uid, .. } => u128::from(uid) | 1 << 62,
            Peer::Net(address) => address_key(address.ip()),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Net(address) => address.fmt(f),
            Peer::Local { uid, .. } => write!(f, "user {uid} of this host"),
        }
    }
}

/// The further groups of the process at the other end. (nix has no SO_PEERGROUPS.)
fn groups(socket: RawFd) -> std::io::Result<Vec<u32>> {
    let mut groups = vec![0u32; GROUPS_MAX];
    let mut length = size_of_val(groups.as_slice()) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is what `groups` has, and says how many it wrote.
    let result = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut length)
    };
    match nix::errno::Errno::result(result) {
        Ok(_) => {
            groups.truncate(length as usize / size_of::<u32>());
            Ok(groups)
        }
        // More groups than that: it goes by its first alone.
        Err(nix::errno::Errno::ERANGE) => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}

/// What counts as one client: an address, or an IPv6 network that one host can have to itself.
pub fn address_key(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) if v6.is_loopback() => v6.to_bits(),
        // Marked so that no network looks like an IPv4 address or a user.
        IpAddr::V6(v6) => v6.to_bits() & (u128::MAX << 64) | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_shares_limits() {
        let net = |text: &str| Peer::net(text.parse().unwrap()).key();
        assert_eq!(net("192.0.2.1:5"), net("[::ffff:192.0.2.1]:6"));
        assert_eq!(net("[2001:db8::1]:5"), net("[2001:db8::2:3:4:5]:5"));
        let all = [
            net("192.0.2.1:5"),
            net("192.0.2.2:5"),
            net("127.0.0.1:5"),
            net("[::1]:5"),
            net("[2001:db8:0:1::1]:5"),
            net("[2001:db8::1]:5"),
            Peer::Local { uid: 0, gid: 0 }.key(),
            Peer::Local { uid: 0xc000_0201, gid: 0 }.key(),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(!all[i + 1..].contains(one), "{i}");
        }
    }

    #[test]
    fn a_process_of_this_host() {
        let (a, _b) = UnixStream::pair().unwrap();
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid());
        assert_eq!(Peer::of_socket(&a, None).unwrap(), Peer::Local { uid, gid: gid.as_raw() });
        for group in nix::unistd::getgroups().unwrap() {
            assert_eq!(Peer::of_socket(&a, Some(group)).unwrap(), Peer::Local { uid, gid: group.as_raw() });
        }
        let foreign = Gid::from_raw(4_000_000);
        assert_eq!(Peer::of_socket(&a, Some(foreign)).unwrap(), Peer::Local { uid, gid: gid.as_raw() });
    }
}
