//! Frames built by [`crate::packet::build`] in, what was read out.

use proptest::prelude::*;

use super::*;
use crate::packet::build::Packet as Build;

fn v4() -> Build {
    Build::new().between("10.0.0.1", "10.0.0.2")
}

fn v6() -> Build {
    Build::new().between("2001:db8::1", "2001:db8::2")
}

fn read(frame: &[u8]) -> Result<Frame<'_>, Unread> {
    decode(Link::Ethernet, [0; 2], frame)
}

fn check_bad(frame: &[u8], expected: Malformed) {
    assert_eq!(read(frame), Err(Unread::Malformed(expected)));
}

/// The payload of a TCP segment between ports 1 and 2, read without anything odd.
fn check_tcp(link: Link, frame: &[u8], depth: u8, payload: &[u8]) {
    let frame = decode(link, [0; 2], frame).unwrap();
    assert_eq!((frame.ip.depth, frame.ip.checksum), (depth, Checksum::Good));
    assert_eq!(frame.oddities.iter().collect::<Vec<_>>(), []);
    let Content::Tcp(segment) = frame.content else { panic!("{frame:?}") };
    assert_eq!((segment.source, segment.destination, segment.payload), (1, 2, payload));
    assert_eq!(segment.missing, 0);
}

#[test]
fn plain_frames_of_each_link_layer_are_read() {
    for packet in [v4(), v6()] {
        let frame = packet.tcp(1, 2).payload(b"hello").build();
        let (ethertype, ip) = (&frame[12..14], &frame[14..]);
        let family: u32 = if ethertype == [8, 0] { 2 } else { 30 };
        check_tcp(Link::Ethernet, &frame, 0, b"hello");
        check_tcp(Link::Raw, ip, 0, b"hello");
        check_tcp(Link::Null, &[&family.to_be_bytes(), ip].concat(), 0, b"hello");
        check_tcp(Link::Null, &[&family.to_le_bytes(), ip].concat(), 0, b"hello");
        check_tcp(Link::Sll, &[&[0; 14], ethertype, ip].concat(), 0, b"hello");
        let ppp = if ethertype == [8, 0] { [0, 0x21] } else { [0, 0x57] };
        check_tcp(Link::Ppp, &[&[0xff, 0x03], &ppp, ip].concat(), 0, b"hello");
        check_tcp(Link::Sll2, &[ethertype, &[0; 18], ip].concat(), 0, b"hello");
    }
}

#[test]
fn tags_are_read_up_to_two() {
    let vlans = |packet: Build, before| decode(Link::Ethernet, before, &packet.udp(1, 2).build()).map(|f| f.ip.vlans);
    assert_eq!(vlans(v4().vlan(5), [0; 2]), Ok([5, 0]));
    assert_eq!(vlans(v4().vlan(5).vlan(6), [0; 2]), Ok([5, 6]));
    assert_eq!(vlans(v6().vlan(6), [5, 0]), Ok([5, 6]));
    assert_eq!(vlans(v4().vlan(5).vlan(6).vlan(7), [0; 2]), Err(Malformed::LinkTooManyTags.into()));
    assert_eq!(vlans(v4().vlan(6).vlan(7), [5, 0]), Err(Malformed::LinkTooManyTags.into()));
    assert_eq!(
        vlans(v4().tag(0x8100, 0).tag(0x8100, 0).tag(0x8100, 0), [0; 2]),
        Err(Malformed::LinkTooManyTags.into())
    );
}

#[test]
fn padding_of_ethernet_is_no_payload() {
    let mut frame = v4().tcp(1, 2).payload(b"x").build();
    frame.resize(60, 0xee);
    check_tcp(Link::Ethernet, &frame, 0, b"x");
    let mut frame = v6().tcp(1, 2).payload(b"x").build();
    frame.resize(90, 0xee);
    check_tcp(Link::Ethernet, &frame, 0, b"x");
}

#[test]
fn truncated_captures_say_how_much_is_missing() {
    for packet in [v4(), v6()] {
        let whole = packet.clone().tcp(1, 2).payload(&[7; 100]).build();
        let frame = read(&whole[..whole.len() - 40]).unwrap();
        let Content::Tcp(segment) = frame.content else { panic!() };
        assert_eq!((segment.payload.len(), segment.missing), (60, 40));
        assert_eq!(frame.ip.checksum, Checksum::Unknown);
        assert_eq!(frame.oddities.iter().collect::<Vec<_>>(), [Malformed::IpTruncated]);
        let whole = packet.clone().udp(1, 2).payload(&[7; 100]).build();
        let Content::Udp(datagram) = read(&whole[..whole.len() - 40]).unwrap().content else { panic!() };
        assert_eq!((datagram.payload.len(), datagram.missing), (60, 40));
        // Headers only are what was asked for; less than those is not enough.
        let whole = packet.clone().tcp(1, 2).payload(&[7; 100]).build();
        let frame = read(&whole[..whole.len() - 100]).unwrap();
        assert_eq!(frame.oddities.iter().count(), 0);
        let Content::Tcp(segment) = frame.content else { panic!() };
        assert_eq!((segment.payload.len(), segment.missing), (0, 100));
        assert_eq!(read(&whole[..whole.len() - 101]), Err(Unread::Cut));
        let options = packet.clone().tcp(1, 2).tcp_options(&[1; 12]).build();
        assert_eq!(read(&options[..options.len() - 1]), Err(Unread::Cut));
        let ping = packet.ping(1, 1).build();
        assert_eq!(read(&ping[..ping.len() - 8]), Err(Unread::Cut));
    }
}

#[test]
fn lengths_that_contradict_each_other_are_named() {
    check_bad(&v4().tcp(1, 2).ihl(4).build(), Malformed::Ipv4BadHeaderLength);
    check_bad(&v4().tcp(1, 2).total_length(19).build(), Malformed::Ipv4BadTotalLength);
    check_bad(&v4().tcp(1, 2).data_offset(4).build(), Malformed::TcpBadHeaderLength);
    check_bad(&v6().tcp(1, 2).data_offset(15).build(), Malformed::TcpBadHeaderLength);
    check_bad(&v4().tcp(1, 2).total_length(39).build(), Malformed::TcpTruncated);
    check_bad(&v4().udp(1, 2).total_length(27).build(), Malformed::UdpTruncated);
    check_bad(&v4().udp(1, 2).payload(b"abc").total_length(30).build(), Malformed::UdpBadLength);
    check_bad(&v4().icmp(8, 0).total_length(22).build(), Malformed::IcmpTruncated);
    check_bad(&v4().tcp(1, 2).ethertype(0x86dd).payload(&[0; 40]).build(), Malformed::IpBadVersion);
    check_bad(&v4().tcp(1, 2).truncate(33).build(), Malformed::Ipv4Truncated);
    check_bad(&v6().tcp(1, 2).truncate(53).build(), Malformed::Ipv6Truncated);
    check_bad(&[0; 13], Malformed::LinkTruncated);
    assert_eq!(read(&Build::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build()), Err(Unread::NotIp));
}

#[test]
fn extension_headers_are_walked_by_their_own_lengths() {
    let packet =
        v6().hop_by_hop(&[]).routing(4, 0).authentication(12).destination_options(&[1, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    check_tcp(Link::Ethernet, &packet.tcp(1, 2).payload(b"deep").build(), 0, b"deep");
    let odd = |packet: Build| read(&packet.tcp(1, 2).build()).unwrap().oddities.iter().collect::<Vec<_>>();
    assert_eq!(odd(v6().destination_options(&[]).hop_by_hop(&[])), [Malformed::Ipv6MisplacedHopByHop]);
    assert_eq!(odd(v6().routing(0, 0)), [Malformed::Ipv6RoutingType0]);
    let many = (0..9).fold(v6(), |packet, _| packet.destination_options(&[]));
    check_bad(&many.tcp(1, 2).build(), Malformed::Ipv6TooManyExtensions);
    check_bad(&v6().extension(60, &[9, 0, 0, 0, 0, 0, 0]).build(), Malformed::Ipv6TruncatedExtension);
    // A fragment that is all of its packet is no fragment.
    check_tcp(Link::Ethernet, &v6().fragment(9, 0, false).tcp(1, 2).payload(b"whole").build(), 0, b"whole");
}

#[test]
fn fragments_are_told_with_their_place() {
    for packet in [v4(), v6()] {
        let pieces = packet.udp(1, 2).payload(&[3; 2000]).fragments(77, 800);
        let read: Vec<_> = pieces.iter().map(|piece| read(piece).unwrap()).collect();
        let places: Vec<_> = read
            .iter()
            .map(|frame| {
                let Content::Fragment(part) = frame.content else { panic!("{frame:?}") };
                (frame.protocol, part.id, part.offset, part.bytes.len(), part.has_more)
            })
            .collect();
        assert_eq!(places, [(17, 77, 0, 800, true), (17, 77, 800, 800, true), (17, 77, 1600, 408, false)]);
    }
}

#[test]
fn checksums_are_judged() {
    let verdict = |packet: Build| read(&packet.build()).unwrap().ip.checksum;
    for packet in [v4(), v6()] {
        for length in 0..70 {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 37) as u8).collect();
            assert_eq!(verdict(packet.clone().tcp(1, 2).payload(&bytes)), Checksum::Good);
            assert_eq!(verdict(packet.clone().udp(1, 2).payload(&bytes)), Checksum::Good);
        }
        let mut frame = packet.clone().tcp(1, 2).payload(b"data").build();
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(read(&frame).unwrap().ip.checksum, Checksum::Bad(Malformed::TcpBadChecksum));
        let mut frame = packet.udp(1, 2).payload(b"data").build();
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(read(&frame).unwrap().ip.checksum, Checksum::Bad(Malformed::UdpBadChecksum));
    }
    for packet in [v4(), v6()] {
        // The sum over the rest taken out again, what is left is that of the pseudo header.
        let mut frame = packet.tcp(1, 2).payload(b"data").build();
        let at = frame.len() - 4 - 20;
        let mut sum = u32::from(!u16::from_be_bytes([frame[at + 16], frame[at + 17]]));
        frame[at + 16..at + 18].fill(0);
        for word in frame[at..].chunks(2) {
            sum += u32::from(!u16::from_be_bytes([word[0], word[1]]));
        }
        sum = (sum & 0xffff) + (sum >> 16);
        let pseudo = ((sum & 0xffff) + (sum >> 16)) as u16;
        frame[at + 16..at + 18].copy_from_slice(&pseudo.to_be_bytes());
        assert_eq!(read(&frame).unwrap().ip.checksum, Checksum::Owed(Malformed::TcpBadChecksum));
        frame[at + 16] ^= 1;
        assert_eq!(read(&frame).unwrap().ip.checksum, Checksum::Bad(Malformed::TcpBadChecksum));
    }
    let mut frame = v4().tcp(1, 2).build();
    frame[14 + 8] ^= 1;
    assert_eq!(read(&frame).unwrap().ip.checksum, Checksum::Bad(Malformed::Ipv4BadChecksum));
    let mut frame = v4().udp(1, 2).payload(b"data").build();
    frame[40..42].fill(0);
    assert_eq!(read(&frame).unwrap().ip.checksum, Checksum::Unknown);
    let mut frame = v6().udp(1, 2).payload(b"data").build();
    frame[60..62].fill(0);
    assert_eq!(read(&frame).unwrap().oddities.iter().collect::<Vec<_>>(), [Malformed::UdpNoChecksum]);
}

/// Inner frame, and the same without its Ethernet header.
fn inner(packet: Build) -> (Vec<u8>, Vec<u8>) {
    let frame = packet.tcp(1, 2).payload(b"inner").build();
    (frame.clone(), frame[14..].to_vec())
}

fn vxlan(flags: u8, frame: &[u8]) -> Vec<u8> {
    [&[flags, 0, 0, 0, 0, 0, 42, 0], frame].concat()
}

#[test]
fn tunnels_are_opened() {
    for outer in [v4(), v6()] {
        for packet in [v4(), v6()] {
            let number = if packet.clone().build()[12] == 8 { 4 } else { 41 };
            let ethertype: [u8; 2] = if number == 4 { [0x08, 0] } else { [0x86, 0xdd] };
            let (frame, ip) = inner(packet);
            check_tcp(Link::Ethernet, &outer.clone().protocol(number).payload(&ip).build(), 1, b"inner");
            for flags in [0u8, 0x80, 0x20, 0x10, 0xb0] {
                let fields = vec![0; 4 * (flags & 0xb0).count_ones() as usize];
                let gre = [&[flags, 0], &ethertype[..], &fields, &ip].concat();
                check_tcp(Link::Ethernet, &outer.clone().protocol(47).payload(&gre).build(), 1, b"inner");
            }
            let bridged = [&[0, 0, 0x65, 0x58], &frame[..]].concat();
            check_tcp(Link::Ethernet, &outer.clone().protocol(47).payload(&bridged).build(), 1, b"inner");
            check_tcp(Link::Ethernet, &outer.clone().udp(9, 4789).payload(&vxlan(8, &frame)).build(), 1, b"inner");
        }
    }
}

#[test]
fn what_only_looks_like_a_tunnel_stays_a_packet() {
    let (frame, ip) = inner(v4());
    let content = |packet: Build| matches!(read(&packet.build()).unwrap().content, Content::Udp(_));
    assert!(content(v4().udp(9, 4789).payload(&vxlan(0, &frame))));
    assert!(content(v4().udp(9, 4788).payload(&vxlan(8, &frame))));
    let pptp = [&[0x20, 1, 0x88, 0x0b], &ip[..]].concat();
    let pptp = v4().protocol(47).payload(&pptp).build();
    assert_eq!(read(&pptp).unwrap().content, Content::Other);
    check_bad(&v4().protocol(47).payload(&[0x80, 0, 8, 0]).build(), Malformed::GreTruncated);
    check_bad(&v4().protocol(4).payload(&ip[..10]).build(), Malformed::Ipv4Truncated);
    check_bad(&v4().udp(9, 4789).payload(&vxlan(8, &frame[..10])).build(), Malformed::TunnelTruncated);
}

#[test]
fn tunnels_are_opened_to_a_depth_of_two() {
    let (_, mut ip) = inner(v4());
    let around = |ip: &[u8]| v4().protocol(4).payload(ip).build();
    check_tcp(Link::Ethernet, &around(&ip), 1, b"inner");
    ip = around(&ip)[14..].to_vec();
    check_tcp(Link::Ethernet, &around(&ip), 2, b"inner");
    ip = around(&ip)[14..].to_vec();
    let frame = around(&ip);
    let frame = read(&frame).unwrap();
    assert_eq!((frame.ip.depth, frame.content), (2, Content::Other));
    assert_eq!(frame.oddities.iter().collect::<Vec<_>>(), [Malformed::TunnelTooDeep]);
}

#[test]
fn options_of_tcp_are_walked_within_their_bounds() {
    let scale = |options: &[u8]| {
        let frame = v4().tcp(1, 2).flags(tcp_flag::SYN).tcp_options(options).build();
        let frame = read(&frame).unwrap();
        let Content::Tcp(segment) = frame.content else { panic!() };
        (segment.window_scale, frame.oddities.iter().next())
    };
    assert_eq!(scale(&[2, 4, 5, 180, 1, 3, 3, 7]), (Some(7), None));
    assert_eq!(scale(&[3, 3, 200, 0]), (Some(14), None));
    assert_eq!(scale(&[0, 3, 3, 7]), (None, None));
    assert_eq!(scale(&[8, 0, 1, 1]), (None, Some(Malformed::TcpBadOptions)));
    assert_eq!(scale(&[1, 1, 8, 10]), (None, Some(Malformed::TcpBadOptions)));
}

proptest! {
    /// Whatever comes, it is read or refused; and a frame that is cut anywhere never says more than the whole one.
    #[test]
    fn no_bytes_make_it_panic(mut frame in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..8, link in 0usize..6) {
        let start: &[u8] = match kind {
            0 => &[0; 0],
            1 => &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45],
            2 => &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60],
            3 => &[0x45, 0, 0, 100, 0, 0, 0, 0, 64, 47],
            4 => &[0x60, 0, 0, 0, 0, 100, 43, 64],
            5 => &[2, 0, 0, 0, 0x45, 0, 0, 60, 0, 0, 0, 0, 9, 6],
            6 => &[0x46, 0, 0, 100, 0, 0, 0x20, 0, 64, 17],
            _ => &[0x60, 0, 0, 0, 0, 100, 44, 64],
        };
        let len = start.len().min(frame.len());
        frame[..len].copy_from_slice(&start[..len]);
        let link = [Link::Ethernet, Link::Raw, Link::Null, Link::Sll, Link::Sll2, Link::Ppp][link];
        if let Ok(read) = decode(link, [0; 2], &frame)
            && let Content::Fragment(part) = read.content
        {
            let _ = resume(read.ip, read.protocol, part.bytes);
        }
    }

    #[test]
    fn a_cut_frame_never_says_more(cut in 0usize..200, six in any::<bool>(), payload in prop::collection::vec(any::<u8>(), 0..100)) {
        let whole = if six { v6() } else { v4() }.tcp(1, 2).payload(&payload).build();
        let cut = cut.min(whole.len());
        if let Ok(Frame { content: Content::Tcp(segment), .. }) = read(&whole[..cut]) {
            prop_assert!(payload.starts_with(segment.payload));
            prop_assert_eq!(segment.payload.len() + segment.missing, payload.len());
        }
    }
}
