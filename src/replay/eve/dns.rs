//! DNS messages in EVE, version 3: questions and all records, by the mnemonics of their types.

use super::json::Json;
use crate::packet::proto::dns::{Message, Record};

/// Bits of the flags (RFC 1035, 4.1.1; RFC 4035, 3.2) that are shown when they are set.
const FLAGS: [(u16, &str); 7] =
    [(0x8000, "qr"), (0x0400, "aa"), (0x0200, "tc"), (0x0100, "rd"), (0x0080, "ra"), (0x0020, "ad"), (0x0010, "cd")];

/// Names of types (IANA, "Resource Record (RR) TYPEs").
const TYPES: &[(u16, &str)] = &[
    (1, "A"),
    (2, "NS"),
    (3, "MD"),
    (4, "MF"),
    (5, "CNAME"),
    (6, "SOA"),
    (7, "MB"),
    (8, "MG"),
    (9, "MR"),
    (10, "NULL"),
    (11, "WKS"),
    (12, "PTR"),
    (13, "HINFO"),
    (14, "MINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (18, "AFSDB"),
    (19, "X25"),
    (20, "ISDN"),
    (21, "RT"),
    (22, "NSAP"),
    (23, "NSAPPTR"),
    (24, "SIG"),
    (25, "KEY"),
    (26, "PX"),
    (27, "GPOS"),
    (28, "AAAA"),
    (29, "LOC"),
    (30, "NXT"),
    (33, "SRV"),
    (34, "ATMA"),
    (35, "NAPTR"),
    (36, "KX"),
    (37, "CERT"),
    (38, "A6"),
    (39, "DNAME"),
    (41, "OPT"),
    (42, "APL"),
    (43, "DS"),
    (44, "SSHFP"),
    (45, "IPSECKEY"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (49, "DHCID"),
    (50, "NSEC3"),
    (51, "NSEC3PARAM"),
    (52, "TLSA"),
    (55, "HIP"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (99, "SPF"),
    (108, "EUI48"),
    (109, "EUI64"),
    (249, "TKEY"),
    (250, "TSIG"),
    (251, "IXFR"),
    (252, "AXFR"),
    (253, "MAILB"),
    (254, "MAILA"),
    (255, "ANY"),
    (256, "URI"),
    (257, "CAA"),
];

/// Names of response codes (IANA, "DNS RCODEs").
const RCODES: [&str; 12] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH",
    "NOTZONE", "DSOTYPENI",
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
    match TYPES.binary_search_by_key(&kind, |(number, _)| *number) {
        Ok(place) => json.text("rrtype", TYPES[place].1),
        Err(_) => number_as_text(json, "rrtype", kind),
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

    #[test]
    fn types_can_be_searched() {
        assert!(TYPES.is_sorted_by(|one, other| one.0 < other.0));
    }
}
