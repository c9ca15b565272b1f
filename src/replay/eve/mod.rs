//! EVE JSON: a line for an event, with the keys of Suricata 7 and 8, so that what reads theirs reads ours.
//!
//! [`Eve`] makes lines and knows nothing of files. Lines of one flow say the same `flow_id` and `community_id`;
//! `src_ip` is the flow's client, but for anomalies, which name who did it. What is ours of an alert is in `metadata`.

mod dns;
mod facts;

use std::net::SocketAddr;

use crate::eve;
use crate::eve::alert::{Head, detail};
use crate::eve::json::Json;
use crate::eve::time::Stamp;
use crate::event::Verdict;
use crate::flow::community_id::icmp_ports;
use crate::flow::{Anomaly, EndReason, Flow, community_id, community_id_of};
use crate::packet::frame::protocol::{ICMP, ICMPV6};
use crate::packet::proto::{Side, Told};

/// What was enforced and said of a rule that was hit, by a flow or by a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert<'a> {
    /// What Suricata says of an alert, too.
    pub head: Head<'a>,
    /// What the rule wishes.
    pub rule_action: &'a str,
    /// What the rule matched, if it says so.
    pub matched: Option<&'a [u8]>,
}

/// Makes lines, each with its line end. A line stands until the next is made.
#[derive(Debug, Default)]
pub struct Eve {
    json: Json,
    stamp: Stamp,
    /// Number of the packet in the capture, from 1; 0 where there is no capture.
    packet: u64,
}

impl Eve {
    /// Lines from here on are about this packet of a capture.
    pub fn set_packet(&mut self, number: u64) {
        self.packet = number;
    }

    /// A transaction.
    pub fn transaction(&mut self, flow: &Flow, time_ns: u64, told: &Told) -> &[u8] {
        self.start(time_ns, facts::event_type(&told.fact), Some(flow), Side::Client);
        facts::write(&mut self.json, told);
        self.line()
    }

    /// A rule that was hit, by a transaction or by what else is known of the flow.
    pub fn alert(&mut self, flow: &Flow, time_ns: u64, alert: &Alert<'_>, told: Option<&Told>) -> &[u8] {
        self.start(time_ns, "alert", Some(flow), Side::Client);
        let json = &mut self.json;
        member(json, alert);
        if let Some(told) = told {
            facts::write(json, told);
        }
        json.object("flow");
        self.counts(flow);
        self.json.key("start");
        self.stamp.write(&mut self.json, flow.start_ns);
        self.json.close();
        self.line()
    }

    /// A rule that was hit by a packet, of which it does not know the flow.
    pub fn packet_alert(&mut self, verdict: &Verdict, alert: &Alert<'_>) -> &[u8] {
        self.start(verdict.boot_ns, "alert", None, Side::Client);
        let json = &mut self.json;
        if verdict.vlan_id != 0 {
            json.array("vlan");
            json.element(verdict.vlan_id.into());
            json.end_array();
        }
        if let (Some(source), Some(destination)) = (verdict.src, verdict.dst) {
            let protocol = verdict.protocol;
            ends(json, protocol, (source, verdict.src_port).into(), (destination, verdict.dst_port).into());
            let ports = match protocol {
                ICMP | ICMPV6 => {
                    let (source, destination, _) = icmp_ports(protocol, verdict.icmp.0, verdict.icmp.1);
                    (source, destination)
                }
                _ => (verdict.src_port, verdict.dst_port),
            };
            let id = community_id_of(protocol, (source, ports.0).into(), (destination, ports.1).into());
            json.text("community_id", &id);
        }
        member(json, alert);
        self.line()
    }

    /// Something odd.
    pub fn anomaly(&mut self, flow: Option<&Flow>, anomaly: &Anomaly) -> &[u8] {
        self.start(anomaly.time_ns, "anomaly", flow, anomaly.side.unwrap_or(Side::Client));
        let json = &mut self.json;
        json.object("anomaly");
        if let Some(app_proto) = flow.and_then(|flow| flow.app_proto).filter(|_| anomaly.layer == "applayer") {
            json.text("app_proto", app_proto.name());
        }
        json.text("type", anomaly.layer);
        json.text("event", anomaly.name);
        if anomaly.layer == "applayer" {
            json.text("layer", "proto_parser");
        }
        json.number("count", anomaly.count);
        json.close();
        self.line()
    }

    /// A flow that ended, as seen at `now_ns`.
    pub fn flow(&mut self, flow: &Flow, why: EndReason, now_ns: u64, alerted: bool) -> &[u8] {
        self.start(now_ns, "flow", Some(flow), Side::Client);
        self.json.object("flow");
        self.counts(flow);
        self.json.key("start");
        self.stamp.write(&mut self.json, flow.start_ns);
        self.json.key("end");
        self.stamp.write(&mut self.json, flow.last_ns);
        let json = &mut self.json;
        json.number("age", (flow.last_ns / 1_000_000_000).saturating_sub(flow.start_ns / 1_000_000_000));
        json.text("state", flow.state.name());
        // Suricata's words: it keeps a closed flow until a timeout, and its state says that it was closed.
        let reason = match why {
            EndReason::Closed | EndReason::Timeout => "timeout",
            EndReason::Evicted => "forced",
            EndReason::Shutdown => "shutdown",
        };
        json.text("reason", reason);
        json.flag("alerted", alerted);
        json.close();
        if flow.protocol == 6 {
            tcp(json, flow);
        }
        self.line()
    }

    fn counts(&mut self, flow: &Flow) {
        self.json.number("pkts_toserver", flow.packets[0]);
        self.json.number("pkts_toclient", flow.packets[1]);
        self.json.number("bytes_toserver", flow.bytes[0]);
        self.json.number("bytes_toclient", flow.bytes[1]);
    }

    /// What every line begins with.
    fn start(&mut self, time_ns: u64, event_type: &str, flow: Option<&Flow>, source: Side) {
        let json = &mut self.json;
        json.clear();
        json.open();
        json.key("timestamp");
        self.stamp.write(json, time_ns);
        if let Some(flow) = flow {
            json.number("flow_id", flow.id);
        }
        if self.packet > 0 {
            json.number("pcap_cnt", self.packet);
        }
        json.text("event_type", event_type);
        let Some(flow) = flow else { return };
        if flow.vlans[0] != 0 {
            json.array("vlan");
            flow.vlans.iter().filter(|tag| **tag != 0).for_each(|tag| json.element(u64::from(tag & 0xfff)));
            json.end_array();
        }
        let (source, destination) = match source {
            Side::Client => (flow.client, flow.server),
            Side::Server => (flow.server, flow.client),
        };
        ends(json, flow.protocol, source, destination);
        json.text("community_id", &community_id(flow));
        if let Some(app_proto) = flow.app_proto {
            json.text("app_proto", app_proto.name());
        } else if event_type == "flow" && matches!(flow.protocol, 6 | 17) {
            json.text("app_proto", "failed");
        }
    }

    fn line(&mut self) -> &[u8] {
        self.json.close();
        self.json.raw(b"\n");
        self.json.bytes()
    }
}

/// The member `alert`.
fn member(json: &mut Json, alert: &Alert<'_>) {
    eve::alert::alert(json, &alert.head, |json| {
        detail(json, "rule_action", alert.rule_action.as_bytes());
        if let Some(matched) = alert.matched {
            detail(json, "matched", matched);
        }
    });
}

/// Addresses, ports, protocol.
fn ends(json: &mut Json, protocol: u8, source: SocketAddr, destination: SocketAddr) {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const SCTP: u8 = 132;
    let has_ports = matches!(protocol, TCP | UDP | SCTP);
    json.address("src_ip", source.ip());
    if has_ports {
        json.number("src_port", u64::from(source.port()));
    }
    json.address("dest_ip", destination.ip());
    if has_ports {
        json.number("dest_port", u64::from(destination.port()));
    }
    eve::protocol(json, protocol);
}

/// What a flow of TCP shows of its flags.
fn tcp(json: &mut Json, flow: &Flow) {
    const FLAGS: [(u8, &str); 8] = [
        (0x02, "syn"),
        (0x01, "fin"),
        (0x04, "rst"),
        (0x08, "psh"),
        (0x10, "ack"),
        (0x20, "urg"),
        (0x40, "ecn"),
        (0x80, "cwr"),
    ];
    let all = flow.tcp_flags[0] | flow.tcp_flags[1];
    json.object("tcp");
    json.hex("tcp_flags", "", u64::from(all), 2);
    json.hex("tcp_flags_ts", "", u64::from(flow.tcp_flags[0]), 2);
    json.hex("tcp_flags_tc", "", u64::from(flow.tcp_flags[1]), 2);
    for (flag, name) in FLAGS {
        if all & flag != 0 {
            json.flag(name, true);
        }
    }
    json.text("state", flow.state.name());
    for (side, name) in [(Side::Client, "ts_gap"), (Side::Server, "tc_gap")] {
        if flow.gap_bytes[side as usize] > 0 {
            json.flag(name, true);
        }
    }
    json.close();
}

#[cfg(test)]
mod tests;
