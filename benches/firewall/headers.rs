//! Packets as the injectors replay them, and the frames that they are written into.

use std::net::IpAddr;

use crate::support::packets::PacketFields;

/// Flags of a packet within a flow: most are no SYNs.
fn within(tcp_flags: u8) -> u8 {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    if tcp_flags == SYN { ACK } else { tcp_flags }
}

/// `struct header_v4` of benches/bench.bpf.c, in network order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HeaderV4 {
    src: [u8; 4],
    dst: [u8; 4],
    transport: [u8; 4],
    protocol: u8,
    tcp_flags: u8,
    pad: [u8; 2],
}

/// `struct header_v6`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HeaderV6 {
    src: [u8; 16],
    dst: [u8; 16],
    transport: [u8; 4],
    protocol: u8,
    tcp_flags: u8,
    pad: [u8; 2],
}

fn transport(packet: &PacketFields) -> [u8; 4] {
    if matches!(packet.protocol, 1 | 58) {
        return [packet.icmp_type, packet.icmp_code, 0, 0];
    }
    let (src, dst) = (packet.src_port.to_be_bytes(), packet.dst_port.to_be_bytes());
    [src[0], src[1], dst[0], dst[1]]
}

impl HeaderV4 {
    pub fn of(packet: &PacketFields) -> HeaderV4 {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (packet.src, packet.dst) else { panic!("an IPv4 packet") };
        HeaderV4 {
            src: src.octets(),
            dst: dst.octets(),
            transport: transport(packet),
            protocol: packet.protocol,
            tcp_flags: within(packet.tcp_flags),
            pad: [0; 2],
        }
    }

    /// What the injector makes of [`frame_v4`].
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = frame_v4();
        frame[26..30].copy_from_slice(&self.src);
        frame[30..34].copy_from_slice(&self.dst);
        frame[23] = self.protocol;
        frame[34..38].copy_from_slice(&self.transport);
        frame[47] = self.tcp_flags;
        frame
    }
}

impl HeaderV6 {
    pub fn of(packet: &PacketFields) -> HeaderV6 {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (packet.src, packet.dst) else { panic!("an IPv6 packet") };
        HeaderV6 {
            src: src.octets(),
            dst: dst.octets(),
            transport: transport(packet),
            protocol: packet.protocol,
            tcp_flags: within(packet.tcp_flags),
            pad: [0; 2],
        }
    }

    /// What the injector makes of [`frame_v6`].
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = frame_v6();
        frame[22..38].copy_from_slice(&self.src);
        frame[38..54].copy_from_slice(&self.dst);
        frame[20] = self.protocol;
        frame[54..58].copy_from_slice(&self.transport);
        frame[67] = self.tcp_flags;
        frame
    }
}

/// Everything of a 64-byte IPv4 frame that the injector leaves alone. The byte that is TCP's data offset is always there.
pub fn frame_v4() -> Vec<u8> {
    let mut frame = vec![0; 64];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    frame[14] = 0x45;
    frame[17] = 50;
    frame[22] = 64;
    frame[23] = 17;
    frame[39] = 30;
    frame[46] = 0x50;
    frame
}

/// The same for an 80-byte IPv6 frame.
pub fn frame_v6() -> Vec<u8> {
    let mut frame = vec![0; 80];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd]);
    frame[14] = 0x60;
    frame[19] = 26;
    frame[20] = 17;
    frame[21] = 64;
    frame[59] = 26;
    frame[66] = 0x50;
    frame
}
