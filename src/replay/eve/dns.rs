//! DNS messages in EVE, version 3: questions and all records, by the mnemonics of their types.

use crate::eve::json::Json;
use crate::packet::proto::dns::{Message, Record, kind_name};

/// Bits of the flags (RFC 1035, 4.1.1; RFC 4035, 3.2) that are shown when they are set.
const FLAGS: [(u16, &str); 7] =
    [(0x8000, "qr"), (0x0400, "aa"), (0x0200, "tc"), (0x0100, "rd"), (0x0080, "ra"), (0x0020, "ad"), (0x0010, "cd")];

/// Names of response codes (IANA, "DNS RCODEs").
const RCODES: [&str; 12] = [
    "NOERROR",
    "FORMERR",
    "SERVFAIL",
    "NXDOMAIN",
    "NOTIMP",
    "REFUSED",
    "YXDOMAIN",
    "YXRRSET",
    "NXRRSET",
    "NOTAUTH",
    "NOTZONE",
    "DSOTYPENI",
];

/// The member `dns`.
pub fn write(json: &mut Json, tx: u32, message: &Message) {
    json.object("dns");
    json.number("version", 3);
    json.text("type", if message.flags & 0x8000 == 0 { "request" } else { "response" });
    json.number("tx_id", u64::from(tx));
    json.number("id", u64::from(message.id));
    json.hex("flags", "", u64::from(message.flags), 1);
    for (bit, name) in FLAGS {
        if message.flags & bit != 0 {
            json.flag(name, true);
        }
    }
    json.number("opcode", u64::from(message.flags >> 11 & 0xf));
    let rcode = message.flags & 0xf;
    match RCODES.get(usize::from(rcode)) {
        Some(name) => json.text("rcode", name),
        None => number_as_text(json, "rcode", rcode),
    }
    json.array("queries");
    for query in &message.queries {
        json.open();
        name(json, "rrname", &query.name);
        kind(json, query.kind);
        json.close();
    }
    json.end_array();
    records(json, "answers", &message.answers);
    records(json, "authorities", &message.authorities);
    records(json, "additionals", &message.additionals);
    json.close();
}

fn records(json: &mut Json, section: &str, records: &[Record]) {
    if records.is_empty() {
        return;
    }
    json.array(section);
    for record in records {
        json.open();
        name(json, "rrname", &record.name);
        kind(json, record.kind);
        json.number("ttl", u64::from(record.ttl));
        name(json, "rdata", &record.data);
        json.close();
    }
    json.end_array();
}

/// A name, or data in presentation form: bytes that zone files escape as `\DDD` are shown as all bytes of the wire are
/// here.
fn name(json: &mut Json, key: &str, text: &str) {
    if !text.contains('\\') {
        return json.text(key, text);
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&first, behind)) = rest.split_first() {
        let number = match behind {
            digits if first == b'\\' => digits.first_chunk().and_then(decimal),
            _ => None,
        };
        match number {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            // Another character behind a backslash stands for itself, a backslash too.
            None if first == b'\\' && !behind.is_empty() => {
                bytes.extend_from_slice(&rest[..2]);
                rest = &behind[1..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    json.wire(key, &bytes);
}

/// A byte in three digits.
fn decimal(digits: &[u8; 3]) -> Option<u8> {
    std::str::from_utf8(digits).ok().filter(|_| digits.iter().all(u8::is_ascii_digit))?.parse().ok()
}

fn kind(json: &mut Json, kind: u16) {
    match kind_name(kind) {
        Some(name) => json.text("rrtype", name),
        None => number_as_text(json, "rrtype", kind),
    }
}

fn number_as_text(json: &mut Json, name: &str, number: u16) {
    json.key(name);
    json.raw(b"\"");
    json.digits(u64::from(number));
    json.raw(b"\"");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let mut json = Json::default();
        json.open();
        name(&mut json, "n", text);
        json.close();
        assert_eq!(std::str::from_utf8(json.bytes()).unwrap(), format!(r#"{{"n":"{expected}"}}"#));
    }

    #[test]
    fn escapes_of_zone_files_are_bytes_again() {
        check("www.example.org", "www.example.org");
        check(r"a\001b\200.c", r"a\u0001b\\xc8.c");
        check(r"a\.b", r"a\\.b");
        check(r"a\\001", r"a\\\\001");
        check(r"a\999\1", r"a\\999\\1");
    }
}
