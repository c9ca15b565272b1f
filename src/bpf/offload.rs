//! What an interface does to frames before XDP, or leaves to be done after it. A card that takes VLAN tags out of the
//! frame hides them from XDP; a veth leaves checksums, segmentation and tags to a card that never comes.
//!
//! By the ethtool ioctl with the kernel's own feature names, so that no ethtool program is needed. The numbers are those
//! of `linux/ethtool.h`; libc does not have them.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const NAME_BYTES: usize = 32;
/// The kernel has under a hundred features; this bounds what is believed of its answer.
const FEATURES_MAX: usize = 1024;

/// What takes tags out of frames that arrive.
const TAG_HIDERS: &[&str] = &["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// What a veth leaves to a card: without these its frames are whole.
pub const LEFT_TO_CARDS: &[&str] = &[
    "tx-checksum-ipv4",
    "tx-checksum-ip-generic",
    "tx-checksum-ipv6",
    "tx-checksum-sctp",
    "tx-generic-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
    "tx-udp-segmentation",
    "tx-sctp-segmentation",
    "tx-vlan-hw-insert",
    "tx-vlan-stag-hw-insert",
    "rx-vlan-hw-parse",
    "rx-vlan-stag-hw-parse",
    "rx-gro",
];

/// Features of the interface that take VLAN tags out of frames before XDP sees them: then such a packet looks untagged.
/// By the kernel's names, which `ethtool -K` takes. In the namespace of the calling thread.
///
/// # Errors
/// The interface does not exist, or its driver has no ethtool operations.
pub fn tag_hiders(interface: &str) -> Result<Vec<&'static str>> {
    let names = feature_names(interface)?;
    // struct ethtool_gfeatures: cmd, count of blocks, then for each block of 32 features: available, requested, active,
    // never changed.
    let blocks = names.len().div_ceil(32);
    let mut request = vec![0u32; 2 + 4 * blocks];
    request[0] = ETHTOOL_GFEATURES;
    request[1] = blocks as u32;
    ethtool(interface, &mut request).context("reading its offloads")?;
    let is_active = |bit: usize| request[2 + 4 * (bit / 32) + 2] & 1 << (bit % 32) != 0;
    let is_on = |wanted: &&&str| names.iter().enumerate().any(|(bit, name)| name == **wanted && is_active(bit));
    Ok(TAG_HIDERS.iter().filter(is_on).copied().collect())
}

/// Switches those of the `features` that the interface has, in the namespace of the calling thread.
pub fn switch(interface: &str, features: &[&str], on: bool) -> Result<()> {
    let names = feature_names(interface)?;
    // struct ethtool_sfeatures: cmd, count of blocks, then for each block of 32 features: valid, requested.
    let blocks = names.len().div_ceil(32);
    let mut request = vec![0u32; 2 + 2 * blocks];
    request[0] = ETHTOOL_SFEATURES;
    request[1] = blocks as u32;
    for (bit, _) in names.iter().enumerate().filter(|(_, name)| features.contains(&name.as_str())) {
        request[2 + 2 * (bit / 32)] |= 1 << (bit % 32);
        request[3 + 2 * (bit / 32)] |= u32::from(on) << (bit % 32);
    }
    // Features that are fixed on this device are left as they are by the kernel, which is fine: a VLAN interface has
    // those of its parent.
    ethtool(interface, &mut request).context("switching its offloads")
}

fn feature_names(interface: &str) -> Result<Vec<String>> {
    // struct ethtool_sset_info: cmd, reserved, 64-bit mask of sets, then a count for each set asked for.
    let mut info = vec![ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    ethtool(interface, &mut info).context("counting its features")?;
    let count = info[4] as usize;
    if count > FEATURES_MAX {
        bail!("{interface} claims to have {count} features");
    }
    // struct ethtool_gstrings: cmd, set, length, then the names of 32 bytes each.
    let mut request = vec![0u32; 3 + count * NAME_BYTES / 4];
    request[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    ethtool(interface, &mut request).context("naming its features")?;
    let bytes: Vec<u8> = request[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text =
        |name: &[u8]| String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned();
    Ok(bytes.chunks(NAME_BYTES).map(text).collect())
}

fn ethtool(interface: &str, request: &mut [u32]) -> Result<()> {
    let mut ifreq = ifreq_of(interface)?;
    ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: the request is as long as its own counts say, which is all that the kernel reads and writes.
    unsafe { ask(libc::SIOCETHTOOL as _, &mut ifreq) }.with_context(|| format!("ethtool on {interface}"))
}

/// Largest packet that the interface takes, in bytes from the IP header on. By ioctl: a sysfs shows the namespace in
/// which it was mounted. In the namespace of the calling thread.
///
/// # Errors
/// The interface does not exist.
pub fn mtu(interface: &str) -> Result<u32> {
    let mut ifreq = ifreq_of(interface)?;
    // SAFETY: SIOCGIFMTU writes an integer into the request.
    unsafe { ask(libc::SIOCGIFMTU as _, &mut ifreq) }.with_context(|| format!("asking for the MTU of {interface}"))?;
    // SAFETY: it did; every bit pattern is an integer.
    Ok(unsafe { ifreq.ifr_ifru.ifru_mtu } as u32)
}

/// MAC address of an Ethernet interface; `None` if it is none. In the namespace of the calling thread.
///
/// # Errors
/// The interface does not exist.
pub fn mac(interface: &str) -> Result<Option<[u8; 6]>> {
    let mut ifreq = ifreq_of(interface)?;
    // SAFETY: SIOCGIFHWADDR writes an address into the request.
    unsafe { ask(libc::SIOCGIFHWADDR as _, &mut ifreq) }
        .with_context(|| format!("asking for the MAC of {interface}"))?;
    // SAFETY: it did; every bit pattern is an address.
    let address = unsafe { ifreq.ifr_ifru.ifru_hwaddr };
    let bytes = std::array::from_fn(|at| address.sa_data[at].cast_unsigned() as u8);
    Ok((address.sa_family == libc::ARPHRD_ETHER).then_some(bytes))
}

fn ifreq_of(interface: &str) -> Result<libc::ifreq> {
    // SAFETY: ifreq is plain data for which all zeros is a value.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= ifreq.ifr_name.len() {
        bail!("interface name {interface} is too long");
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(ifreq)
}

/// # Safety
/// What `request` reads and writes lies within `ifreq` and what that points to.
unsafe fn ask(request: libc::Ioctl, ifreq: &mut libc::ifreq) -> Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the caller's promise; ifreq lives through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, ifreq) };
    // Some answer with a positive number when a part was refused.
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}

/// Whether an interface's frames may be too long for one buffer of a page.
pub fn needs_several_buffers(interface: &str) -> bool {
    const ONE_BUFFER: u32 = 3000;
    mtu(interface).is_ok_and(|mtu| mtu > ONE_BUFFER)
}
