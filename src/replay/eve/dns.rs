//! DNS messages in EVE, version 3: questions and all records, by the mnemonics of their types.

use super::json::Json;
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
        json.text("rrname", &query.name);
        kind(json, query.kind);
        json.close();
    }
    json.end_array();
    records(json, "answers", &message.answers);
    records(json, "authorities", &message.authorities);
    records(json, "additionals", &message.additionals);
    json.close();
}

fn records(json: &mut Json, name: &str, records: &[Record]) {
    if records.is_empty() {
        return;
    }
    json.array(name);
    for record in records {
        json.open();
        json.text("rrname", &record.name);
        kind(json, record.kind);
        json.number("ttl", u64::from(record.ttl));
        json.text("rdata", &record.data);
        json.close();
    }
    json.end_array();
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
