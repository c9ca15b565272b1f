//! Community ID, version 1: a name for a flow that tools of different makers agree on.

use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::Flow;
use crate::packet::frame::protocol;

/// The seed that tools use unless told otherwise.
const SEED: u16 = 0;

/// Kinds of ICMP that ask and are answered, with the answer.
const ICMP_PAIRS: [(u8, u8); 5] = [(8, 0), (10, 9), (13, 14), (15, 16), (17, 18)];
/// The same of ICMPv6.
const ICMPV6_PAIRS: [(u8, u8); 5] = [(128, 129), (133, 134), (135, 136), (130, 131), (144, 145)];

/// What stands for ports in a flow of ICMP: a kind, and the kind that answers it or, if none does, the code. The last
/// says whether there is an answer.
pub fn icmp_ports(protocol: u8, kind: u8, code: u8) -> (u16, u16, bool) {
    let pairs = if protocol == protocol::ICMPV6 { &ICMPV6_PAIRS } else { &ICMP_PAIRS };
    let answer = pairs.iter().find_map(|(ask, answer)| match kind {
        kind if kind == *ask => Some(*answer),
        kind if kind == *answer => Some(*ask),
        _ => None,
    });
    (u16::from(kind), u16::from(answer.unwrap_or(code)), answer.is_some())
}

/// The Community ID of a flow.
pub fn community_id(flow: &Flow) -> String {
    community_id_of(flow.protocol, flow.client, flow.server)
}

/// The Community ID of a packet's flow: by its IP protocol and its ends. What stands for ports in ICMP is given by
/// [`icmp_ports`].
pub fn community_id_of(ip_protocol: u8, source: SocketAddr, destination: SocketAddr) -> String {
    let has_ports = [protocol::TCP, protocol::UDP, protocol::SCTP].contains(&ip_protocol);
    let is_icmp = [protocol::ICMP, protocol::ICMPV6].contains(&ip_protocol);
    // One-way kinds keep their direction.
    let is_one_way = is_icmp && !icmp_ports(ip_protocol, source.port() as u8, destination.port() as u8).2;
    let (a, b) = if is_one_way || (source.ip(), source.port()) < (destination.ip(), destination.port()) {
        (source, destination)
    } else {
        (destination, source)
    };
    let mut hash = Sha1::new();
    hash.update(SEED.to_be_bytes());
    for address in [a.ip(), b.ip()] {
        match address {
            IpAddr::V4(v4) => hash.update(v4.octets()),
            IpAddr::V6(v6) => hash.update(v6.octets()),
        }
    }
    hash.update([ip_protocol, 0]);
    if has_ports || is_icmp {
        hash.update(a.port().to_be_bytes());
        hash.update(b.port().to_be_bytes());
    }
    format!("1:{}", STANDARD.encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Direction, State};

    fn check(protocol: u8, client: &str, server: &str, expected: &str) {
        let mut flow = Flow {
            id: 1,
            protocol,
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
            vlans: [0; 2],
            ifindex: 1,
            direction: Direction::Ingress,
            start_ns: 0,
            last_ns: 0,
            packets: [0; 2],
            bytes: [0; 2],
            arrived: [true, false],
            left: [false, true],
            gap_bytes: [0; 2],
            app_proto: None,
            state: State::New,
            tcp_flags: [0; 2],
            next_seq: [0; 2],
            is_midstream: false,
            is_answered: true,
            is_finished: false,
            is_tunnelled: false,
            is_blocked: false,
            socket_cookie: 0,
            cgroup_id: 0,
        };
        assert_eq!(community_id(&flow), expected);
        // Both directions have one id.
        std::mem::swap(&mut flow.client, &mut flow.server);
        assert_eq!(community_id(&flow), expected);
    }

    #[test]
    fn ids_are_those_of_the_specification() {
        // Of the baseline that the specification comes with.
        check(6, "128.232.110.120:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        check(17, "192.168.1.52:54585", "8.8.8.8:53", "1:d/FP5EW3wiY1vCndhwleRRKHowQ=");
        check(132, "192.168.170.8:7", "192.168.170.56:7", "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs=");
        check(1, "192.168.0.89:8", "192.168.0.1:0", "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
    }
}
