//! What SYN cookies need of this host: how its TCP is set, and on which interfaces SYNs may be answered.

use std::fs;

use anyhow::Result;

use super::rule::Rule;
use crate::abi::{syn_counts, syn_host, syn_result};
use crate::bpf::offload;
use crate::bpf::xdp_syncookie::XdpSyncookie;
use crate::classify::interfaces::Port;

/// `net.ipv4.tcp_syncookies` with which the kernel takes cookies that it did not make itself.
const ALWAYS: u32 = 2;
/// `net.ipv4.tcp_timestamps` without a secret offset.
const NO_OFFSET: u32 = 2;

/// Settings of this host's TCP, in the network namespace of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTcp {
    syncookies: u32,
    timestamps: u32,
    window_scaling: u32,
    sack: u32,
    receive_max: u32,
    window_signed: u32,
}

impl HostTcp {
    /// Reads them. What is missing is as the kernel has it by default.
    pub fn read() -> HostTcp {
        // Three numbers: least, default and most.
        let receive = setting("ipv4/tcp_rmem", 2).unwrap_or(6_291_456);
        HostTcp {
            syncookies: setting("ipv4/tcp_syncookies", 0).unwrap_or(0),
            timestamps: setting("ipv4/tcp_timestamps", 0).unwrap_or(1),
            window_scaling: setting("ipv4/tcp_window_scaling", 0).unwrap_or(1),
            sack: setting("ipv4/tcp_sack", 0).unwrap_or(1),
            receive_max: receive.max(setting("core/rmem_max", 0).unwrap_or(212_992)),
            window_signed: setting("ipv4/tcp_workaround_signed_windows", 0).unwrap_or(0),
        }
    }

    /// Whether the kernel takes our cookies.
    pub fn takes_cookies(&self) -> bool {
        self.syncookies == ALWAYS
    }

    /// Why it does not, if it does not.
    pub fn refusal(&self) -> Option<String> {
        let HostTcp { syncookies, .. } = self;
        (!self.takes_cookies()).then(|| {
            format!(
                "net.ipv4.tcp_syncookies is {syncookies}: the kernel would not accept the connections that are answered \
                 with cookies, so SYNs go on to it; run: sysctl -w net.ipv4.tcp_syncookies={ALWAYS}"
            )
        })
    }

    /// What clients that are answered with cookies do without, if anything.
    pub fn shortcoming(&self) -> Option<String> {
        let HostTcp { timestamps, .. } = *self;
        (timestamps != NO_OFFSET).then(|| {
            format!(
                "net.ipv4.tcp_timestamps is {timestamps}: connections that are answered with SYN cookies have no window \
                 scaling and no SACK, which the cookie keeps in time stamps without offset (tcp_timestamps = {NO_OFFSET})"
            )
        })
    }

    /// As xdp_syncookie takes it.
    pub fn in_kernel(&self) -> syn_host {
        let HostTcp { timestamps, window_scaling, sack, receive_max, window_signed, .. } = *self;
        syn_host {
            timestamps: (timestamps == NO_OFFSET).into(),
            window_scaling,
            sack,
            receive_max,
            window_signed,
            ..syn_host::default()
        }
    }
}

/// The `at`-th number of a setting.
fn setting(name: &str, at: usize) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
    text.split_whitespace().nth(at)?.parse().ok()
}

/// Why SYNs cannot be answered on an interface.
pub fn interface_refusal(interface: &str) -> Option<String> {
    let hiders = offload::tag_hiders(interface).unwrap_or_default();
    if hiders.is_empty() || !carries_vlans(interface) {
        return None;
    }
    let off = hiders.iter().map(|name| format!(" {name} off")).collect::<String>();
    Some(format!(
        "takes VLAN tags out of frames before XDP sees them, so that an answer would go out without its tag: SYN cookies are \
         not used there; run: ethtool -K {interface}{off}"
    ))
}

/// Whether VLAN interfaces stand on an interface: the last column of a list that the kernel has when any do.
fn carries_vlans(interface: &str) -> bool {
    let list = fs::read_to_string("/proc/net/vlan/config").unwrap_or_default();
    list.lines().any(|line| line.rsplit('|').next().is_some_and(|name| name.trim() == interface))
}

/// Gives the program the interfaces on which it may answer.
pub fn set_interfaces(program: &mut XdpSyncookie, ports: &[Port]) -> Result<()> {
    let usable = ports.iter().filter(|port| interface_refusal(&port.name).is_none());
    let with_mac = usable.filter_map(|port| Some((port.ifindex?, offload::mac(&port.name).ok()??)));
    program.set_interfaces(&with_mac.collect::<Vec<_>>())
}

/// The rule that answers SYNs first, if one does.
pub fn first_rule<'r>(mut rules: impl Iterator<Item = &'r Rule>) -> Option<&'r Rule> {
    rules.find(|rule| rule.enabled && rule.is_about_cookies())
}

/// The counts by the names that metrics have for them.
pub fn by_name(counts: &syn_counts) -> Vec<(&'static str, u64)> {
    [
        ("answered", syn_result::SYN_ANSWERED),
        ("limited", syn_result::SYN_LIMITED),
        ("full", syn_result::SYN_FULL),
        ("no_listener", syn_result::SYN_NO_LISTENER),
        ("not_mine", syn_result::SYN_NOT_MINE),
        ("known", syn_result::SYN_KNOWN),
        ("accepted", syn_result::SYN_ACCEPTED),
        ("forged", syn_result::SYN_FORGED),
    ]
    .map(|(name, result)| (name, counts.result[result.0 as usize]))
    .to_vec()
}
