//! Columns of the tables in which lists are shown.

use super::Column;

/// Of the firewall's rules.
pub const RULE_COLUMNS: &[Column] = &[
    ("ID", &["id"]),
    ("NAMESPACE", &["namespace"]),
    ("PRIORITY", &["priority"]),
    ("ACTION", &["action"]),
    ("PROTOCOL", &["protocol"]),
    ("SOURCE", &["src_ip", "src_port"]),
    ("DESTINATION", &["dst_ip", "dst_port"]),
    ("VLAN", &["vlan_id"]),
    ("MORE", &["tcp_flags", "icmp_type", "icmp_code", "state", "interfaces"]),
    ("ENABLED", &["enabled"]),
    ("FROM", &["source"]),
    ("PACKETS", &["packets"]),
    ("BYTES", &["bytes"]),
    ("LAST HIT", &["last_hit"]),
];

/// Of the rate limits.
pub const LIMIT_COLUMNS: &[Column] = &[
    ("ID", &["id"]),
    ("NAMESPACE", &["namespace"]),
    ("PRIORITY", &["priority"]),
    ("RATE", &["rate", "unit"]),
    ("BURST", &["burst"]),
    ("ALGORITHM", &["algorithm", "threshold_pps"]),
    ("SCOPE", &["scope", "ipv6_prefix_len"]),
    ("ACTION", &["action", "block_secs"]),
    ("PROTOCOL", &["protocol"]),
    ("SOURCE", &["src_ip", "src_port"]),
    ("DESTINATION", &["dst_ip", "dst_port"]),
    ("VLAN", &["vlan_id"]),
    ("MORE", &["tcp_flags", "icmp_type", "icmp_code", "fragment", "interfaces"]),
    ("ENABLED", &["enabled"]),
    ("FROM", &["source"]),
    ("PASSED", &["passed"]),
    ("OVER LIMIT", &["over_limit"]),
];

/// Of the flows.
pub const FLOW_COLUMNS: &[Column] = &[
    ("CLIENT", &["client_ip", "client_port"]),
    ("SERVER", &["server_ip", "server_port"]),
    ("PROTOCOL", &["protocol", "app_proto"]),
    ("STATE", &["state"]),
    ("VLANS", &["vlans"]),
    ("SENT PACKETS", &["client_packets"]),
    ("SENT BYTES", &["client_bytes"]),
    ("GOT PACKETS", &["server_packets"]),
    ("GOT BYTES", &["server_bytes"]),
    ("BLOCKED", &["blocked"]),
    ("LAST", &["last"]),
];

/// Of those who are over a limit.
pub const TOP_COLUMNS: &[Column] = &[
    ("RULE", &["rule"]),
    ("COMMON", &["common"]),
    ("SOURCE", &["source", "src_port"]),
    ("DESTINATION", &["destination", "dst_port"]),
    ("PROTOCOL", &["protocol"]),
    ("DROPPED", &["dropped"]),
    ("BLOCKED FOR", &["blocked_secs_left"]),
];
