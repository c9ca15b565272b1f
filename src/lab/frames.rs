//! Raw frames into and out of an interface, by AF_PACKET.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Namespace;

const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// The largest frame that fits through; longer ones are cut.
const FRAME_MAX: usize = 65_600;

/// A packet socket on one interface. It keeps its namespace, whichever thread uses it.
#[derive(Debug)]
pub struct FrameSocket {
    fd: OwnedFd,
}

/// A frame that arrived, with its outermost VLAN tag where it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From the destination hardware address on.
    pub bytes: Vec<u8>,
}

impl FrameSocket {
    /// Opens `interface` of `namespace`; frames that arrive from now on are kept until they are received, those that
    /// leave are not.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<FrameSocket> {
        let index = namespace.interface(interface)?.index;
        let fd = namespace
            .run(|| open_on(index))?
            .with_context(|| format!("opening a packet socket on {interface} in {}", namespace.name()))?;
        Ok(FrameSocket { fd })
    }

    /// Sends one frame as it stands.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer and the length are those of one slice.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("sending a frame of {} bytes", frame.len()));
        }
        Ok(())
    }

    /// The first frame for which `wanted` holds, within `limit`; others are passed over.
    pub fn receive(&self, limit: Duration, mut wanted: impl FnMut(&Frame) -> bool) -> Result<Option<Frame>> {
        let deadline = Instant::now() + limit;
        loop {
            match self.receive_one() {
                Ok(frame) if wanted(&frame) => return Ok(Some(frame)),
                Ok(_) if Instant::now() < deadline => continue,
                Ok(_) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("receiving a frame"),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let wait = PollTimeout::try_from(left.as_millis() as i64 + 1).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.fd), PollFlags::POLLIN)];
            match poll(&mut fds, wait) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for a frame"),
            }
        }
    }

    /// Counts the frames for which `wanted` holds until `limit` has passed or `most` have come.
    pub fn count(&self, limit: Duration, most: usize, mut wanted: impl FnMut(&Frame) -> bool) -> Result<usize> {
        let deadline = Instant::now() + limit;
        let mut count = 0;
        while count < most {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.receive(left, &mut wanted)?.is_none() {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    fn receive_one(&self) -> io::Result<Frame> {
        let mut bytes = vec![0u8; FRAME_MAX];
        let mut control = [0u64; 16];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: msghdr is plain data for which all zeros is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: everything that `message` points to lives in this function and has the length it says.
        let got = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        if got < 0 {
            return Err(io::Error::last_os_error());
        }
        bytes.truncate(got as usize);
        if let Some(tag) = stripped_tag(&message) {
            bytes.splice(12..12, tag);
        }
        Ok(Frame { bytes })
    }
}

/// The VLAN tag that the kernel took out of the frame on its way to the socket.
fn stripped_tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: `message` was filled by recvmsg and its control buffer lives; the CMSG functions stay inside of it.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so it points to a whole header within the control buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA {
            // SAFETY: a control message of this kind carries a tpacket_auxdata, perhaps not aligned.
            let data: libc::tpacket_auxdata =
                unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            if data.tp_status & TP_STATUS_VLAN_VALID != 0 {
                let known = data.tp_status & TP_STATUS_VLAN_TPID_VALID != 0;
                let protocol_id = if known { data.tp_vlan_tpid } else { 0x8100 };
                let [a, b] = protocol_id.to_be_bytes();
                let [c, d] = data.tp_vlan_tci.to_be_bytes();
                return Some([a, b, c, d]);
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

fn open_on(index: u32) -> io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // Protocol 0 until it is bound, else frames of every interface would already come in.
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    for (level, name, value) in [
        (libc::SOL_PACKET, libc::PACKET_AUXDATA, 1),
        (libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1),
        (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 8 << 20),
    ] {
        let value: libc::c_int = value;
        // SAFETY: pointer and length are those of `value`.
        let result = unsafe {
            libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size_of_val(&value) as _)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: sockaddr_ll is plain data for which all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    // SAFETY: pointer and length are those of `address`.
    let result = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}
