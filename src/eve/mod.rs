//! What lines of EVE JSON are made of, whoever writes them: a replay of its flows, a sink of its alerts.

pub mod alert;
pub mod json;
pub mod time;

use json::Json;

/// The member `proto`: Suricata's word, or the number in three digits.
pub fn protocol(json: &mut Json, number: u8) {
    json.key("proto");
    let name: &[u8] = match number {
        6 => b"\"TCP\"",
        17 => b"\"UDP\"",
        132 => b"\"SCTP\"",
        1 => b"\"ICMP\"",
        47 => b"\"GRE\"",
        50 => b"\"ESP\"",
        58 => b"\"IPv6-ICMP\"",
        _ => b"",
    };
    json.raw(name);
    if name.is_empty() {
        json.raw(b"\"");
        json.padded(u64::from(number), 3);
        json.raw(b"\"");
    }
}
