//! The lock-out guard: TCP ports that no rule closes for those who are working on this host right now.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::abi::{fw_guard, fw_net, fw_policy_limits};

/// Ports that stay open, and from where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// TCP ports of this host; at most [`Guard::PORTS_MAX`].
    pub ports: Vec<u16>,
    /// Networks of those who may use them; at most [`Guard::NETWORKS_MAX`].
    pub networks: Vec<IpNet>,
}

impl Guard {
    /// Room for ports in the kernel.
    pub const PORTS_MAX: usize = fw_policy_limits::FW_GUARD_PORTS.0 as usize;
    /// Room for networks in the kernel.
    pub const NETWORKS_MAX: usize = fw_policy_limits::FW_GUARD_NETS.0 as usize;

    /// A guard of `ports` for every address that has a session with one of them now.
    pub fn of_sessions(ports: Vec<u16>) -> Guard {
        let mut networks = BTreeSet::new();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            // A kernel without IPv6 has no tcp6.
            let text = std::fs::read_to_string(table).unwrap_or_default();
            networks.extend(peers(&text, &ports).map(IpNet::from));
        }
        if networks.len() > Guard::NETWORKS_MAX {
            log::warn!(
                "the lock-out guard has room for {} addresses; {} more have sessions and are not guarded",
                Guard::NETWORKS_MAX,
                networks.len() - Guard::NETWORKS_MAX
            );
        }
        Guard { ports, networks: networks.into_iter().take(Guard::NETWORKS_MAX).collect() }
    }

    /// Writes the guard for the kernel.
    pub fn write(&self, guard: &mut fw_guard) {
        guard.filter = 0;
        guard.ports = self.ports.len().min(Guard::PORTS_MAX) as u8;
        for (place, &port) in guard.port.iter_mut().zip(&self.ports) {
            *place = port;
            guard.filter |= 1 << (port & 63);
        }
        guard.nets = self.networks.len().min(Guard::NETWORKS_MAX) as u8;
        for (place, net) in guard.net.iter_mut().zip(&self.networks) {
            *place = kernel_net(net);
        }
    }
}

/// A network as the kernel compares it: IPv4 mapped into IPv6 (::ffff:0:0/96).
fn kernel_net(net: &IpNet) -> fw_net {
    let (address, length) = match net {
        IpNet::V4(net) => (net.network().to_ipv6_mapped(), 96 + u32::from(net.prefix_len())),
        IpNet::V6(net) => (net.network(), u32::from(net.prefix_len())),
    };
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    let halves = |word: u128| [(word >> 64) as u64, word as u64];
    fw_net { addr: halves(u128::from(address) & mask), mask: halves(mask) }
}

/// Remote addresses of established sessions with one of `ports`, from the text of /proc/net/tcp or tcp6.
fn peers<'t>(table: &'t str, ports: &'t [u16]) -> impl Iterator<Item = IpAddr> + 't {
    const ESTABLISHED: &str = "01";
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (state == ESTABLISHED && ports.contains(&port)).then(|| proc_address(remote.rsplit_once(':')?.0)).flatten()
    })
}

/// An address in /proc/net: 32-bit words in the host's order, in hex.
fn proc_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0u8; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
            0: 0100007F:0016 0201A8C0:C350 01 0\n\
            1: 0100007F:0016 0301A8C0:C350 06 0\n\
            2: 0100007F:0050 0401A8C0:C350 01 0\n\
            garbage\n";
        let found: Vec<IpAddr> = peers(table, &[22]).collect();
        assert_eq!(found, ["192.168.1.2".parse::<IpAddr>().unwrap()]);
        let six = "h\n 0: 00:0016 B80D0120000000000000000001000000:C350 01\n 1: x:0016 0000000000000000FFFF00000201A8C0:1 01\n";
        let found: Vec<IpAddr> = peers(six, &[22]).collect();
        assert_eq!(found, ["2001:db8::1".parse::<IpAddr>().unwrap(), "192.168.1.2".parse().unwrap()]);
    }

    #[test]
    fn networks_are_mapped() {
        let net = kernel_net(&"192.168.1.0/24".parse().unwrap());
        assert_eq!(net.addr, [0, 0xffff_c0a8_0100]);
        assert_eq!(net.mask, [u64::MAX, 0xffff_ffff_ffff_ff00]);
        assert_eq!(kernel_net(&"::/0".parse().unwrap()).mask, [0, 0]);
        assert_eq!(kernel_net(&"0.0.0.0/0".parse().unwrap()).mask, [u64::MAX, 0xffff_ffff_0000_0000]);
    }
}
