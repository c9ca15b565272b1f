//! TCP, UDP and ICMP.

use super::{Checksum, Content, Frame, Malformed, Oddities, Packet, Unread, checksum, protocol, tcp_flag};

/// A segment of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Port of the sender.
    pub source: u16,
    /// Port of the receiver.
    pub destination: u16,
    /// Number of its first byte, or of its SYN.
    pub sequence: u32,
    /// The next byte that the sender waits for, if the flag ACK is set.
    pub acknowledgement: u32,
    /// Bits of [`tcp_flag`].
    pub flags: u8,
    /// Window as it stands, without its scale.
    pub window: u16,
    /// Scale of the sender's windows; only a SYN has it.
    pub window_scale: Option<u8>,
    /// Its data.
    pub payload: &'a [u8],
    /// Bytes at the end of its data that were not captured.
    pub missing: usize,
}

impl Segment<'_> {
    /// Whether one of the bits is set.
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}

/// A datagram of UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Port of the sender.
    pub source: u16,
    /// Port of the receiver.
    pub destination: u16,
    /// Its data.
    pub payload: &'a [u8],
    /// Bytes at the end of its data that were not captured.
    pub missing: usize,
}

/// Reads what the innermost IP header carries.
pub(super) fn read<'a>(mut packet: Packet<'a>, mut oddities: Oddities) -> Result<Frame<'a>, Unread> {
    let is_cut = packet.missing > 0;
    let content = match content(&mut packet, &mut oddities) {
        Ok(content) => content,
        // The header may be whole where the rest of it is.
        Err(Malformed::TcpTruncated | Malformed::UdpTruncated | Malformed::IcmpTruncated) if is_cut => {
            return Err(Unread::Cut);
        }
        Err(what) => return Err(what.into()),
    };
    // Captures may hold headers only, on purpose; but with a part of its payload a packet could be taken for another.
    let has_payload = match content {
        Content::Tcp(segment) => !segment.payload.is_empty(),
        Content::Udp(datagram) => !datagram.payload.is_empty(),
        _ => !packet.payload.is_empty(),
    };
    if is_cut && has_payload {
        oddities.add(Malformed::IpTruncated);
    }
    Ok(Frame { ip: packet.ip, protocol: packet.protocol, content, oddities })
}

fn content<'a>(packet: &mut Packet<'a>, oddities: &mut Oddities) -> Result<Content<'a>, Malformed> {
    Ok(match packet.protocol {
        protocol::TCP => Content::Tcp(tcp(packet, oddities)?),
        protocol::UDP => Content::Udp(udp(packet, oddities)?),
        protocol::ICMP | protocol::ICMPV6 => {
            let head = packet.payload.first_chunk::<4>().ok_or(Malformed::IcmpTruncated)?;
            Content::Icmp { kind: head[0], code: head[1] }
        }
        _ => Content::Other,
    })
}

/// Adds the verdict on the checksum at `at` in `covered` to that of the header.
fn verify(packet: &mut Packet<'_>, covered: &[u8], at: usize, bad: Malformed) {
    if packet.ip.checksum != Checksum::Good {
        return;
    }
    packet.ip.checksum = if packet.missing > 0 || packet.ip.is_routed {
        Checksum::Unknown
    } else {
        match checksum::transport(&packet.ip.source, &packet.ip.destination, packet.protocol, covered, at) {
            checksum::Transport::Good => Checksum::Good,
            checksum::Transport::Owed => Checksum::Owed(bad),
            checksum::Transport::Bad => Checksum::Bad(bad),
        }
    };
}

fn tcp<'a>(packet: &mut Packet<'a>, oddities: &mut Oddities) -> Result<Segment<'a>, Malformed> {
    let bytes = packet.payload;
    let head = bytes.first_chunk::<20>().ok_or(Malformed::TcpTruncated)?;
    let header_len = usize::from(head[12] >> 4) * 4;
    if header_len > bytes.len() && packet.missing > 0 {
        return Err(Malformed::TcpTruncated);
    }
    if header_len < 20 || header_len > bytes.len() {
        return Err(Malformed::TcpBadHeaderLength);
    }
    verify(packet, bytes, 16, Malformed::TcpBadChecksum);
    let flags = head[13];
    let mut window_scale = None;
    match options(&bytes[20..header_len]) {
        Ok(scale) if flags & tcp_flag::SYN != 0 => window_scale = scale,
        Ok(_) => {}
        Err(what) => oddities.add(what),
    }
    Ok(Segment {
        source: u16::from_be_bytes([head[0], head[1]]),
        destination: u16::from_be_bytes([head[2], head[3]]),
        sequence: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
        acknowledgement: u32::from_be_bytes([head[8], head[9], head[10], head[11]]),
        flags,
        window: u16::from_be_bytes([head[14], head[15]]),
        window_scale,
        payload: &bytes[header_len..],
        missing: packet.missing,
    })
}

/// Walks over the options; gives the window scale.
fn options(mut rest: &[u8]) -> Result<Option<u8>, Malformed> {
    // Two fillers and a timestamp: what nearly every segment has.
    if rest.len() == 12 && rest[..4] == [1, 1, 8, 10] {
        return Ok(None);
    }
    let mut window_scale = None;
    while let Some((&kind, after)) = rest.split_first() {
        match kind {
            0 => break,
            1 => rest = after,
            _ => {
                let length = usize::from(*after.first().ok_or(Malformed::TcpBadOptions)?);
                if length < 2 || length > rest.len() {
                    return Err(Malformed::TcpBadOptions);
                }
                if kind == 3 && length == 3 {
                    // RFC 7323 2.3: more than 14 means 14.
                    window_scale = Some(rest[2].min(14));
                }
                rest = &rest[length..];
            }
        }
    }
    Ok(window_scale)
}

fn udp<'a>(packet: &mut Packet<'a>, oddities: &mut Oddities) -> Result<Datagram<'a>, Malformed> {
    let bytes = packet.payload;
    let (head, _) = bytes.split_first_chunk::<8>().ok_or(Malformed::UdpTruncated)?;
    let promised = bytes.len() + packet.missing;
    let length = match usize::from(u16::from_be_bytes([head[4], head[5]])) {
        // As in IP: longer than the field can say.
        0 if promised > 65_535 => promised,
        length if length < 8 || length > promised => return Err(Malformed::UdpBadLength),
        length => length,
    };
    let covered = &bytes[..length.min(bytes.len())];
    packet.missing = length - covered.len();
    match (head[6..8] == [0, 0], packet.ip.source.is_ipv4()) {
        (false, _) => verify(packet, covered, 6, Malformed::UdpBadChecksum),
        (true, true) => {
            if packet.ip.checksum == Checksum::Good {
                packet.ip.checksum = Checksum::Unknown;
            }
        }
        (true, false) => oddities.add(Malformed::UdpNoChecksum),
    }
    Ok(Datagram {
        source: u16::from_be_bytes([head[0], head[1]]),
        destination: u16::from_be_bytes([head[2], head[3]]),
        payload: &covered[8..],
        missing: packet.missing,
    })
}
