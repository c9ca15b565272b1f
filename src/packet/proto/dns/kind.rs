//! Types of records by name (the IANA's registry of DNS parameters).

use std::borrow::Cow;

macro_rules! kinds {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        $(pub(super) const $name: u16 = $number;)*

        /// A type's name where it has one that is in use, e.g. `AAAA`.
        pub fn kind_name(kind: u16) -> Option<&'static str> {
            match kind {
                $($number => Some($text),)*
                _ => other_name(kind),
            }
        }
    };
}

kinds! {
    A = 1, "A";
    NS = 2, "NS";
    MD = 3, "MD";
    MF = 4, "MF";
    CNAME = 5, "CNAME";
    SOA = 6, "SOA";
    MB = 7, "MB";
    MG = 8, "MG";
    MR = 9, "MR";
    PTR = 12, "PTR";
    HINFO = 13, "HINFO";
    MINFO = 14, "MINFO";
    MX = 15, "MX";
    TXT = 16, "TXT";
    RP = 17, "RP";
    AFSDB = 18, "AFSDB";
    AAAA = 28, "AAAA";
    SRV = 33, "SRV";
    NAPTR = 35, "NAPTR";
    KX = 36, "KX";
    DNAME = 39, "DNAME";
    OPT = 41, "OPT";
    DS = 43, "DS";
    SSHFP = 44, "SSHFP";
    RRSIG = 46, "RRSIG";
    NSEC = 47, "NSEC";
    DNSKEY = 48, "DNSKEY";
    NSEC3 = 50, "NSEC3";
    NSEC3PARAM = 51, "NSEC3PARAM";
    TLSA = 52, "TLSA";
    SMIMEA = 53, "SMIMEA";
    CDS = 59, "CDS";
    CDNSKEY = 60, "CDNSKEY";
    OPENPGPKEY = 61, "OPENPGPKEY";
    SVCB = 64, "SVCB";
    HTTPS = 65, "HTTPS";
    SPF = 99, "SPF";
    URI = 256, "URI";
    CAA = 257, "CAA";
}

/// Types whose data is shown in hexadecimal, and those of questions.
fn other_name(kind: u16) -> Option<&'static str> {
    Some(match kind {
        10 => "NULL",
        11 => "WKS",
        19 => "X25",
        20 => "ISDN",
        21 => "RT",
        22 => "NSAP",
        23 => "NSAP-PTR",
        24 => "SIG",
        25 => "KEY",
        26 => "PX",
        27 => "GPOS",
        29 => "LOC",
        30 => "NXT",
        31 => "EID",
        32 => "NIMLOC",
        34 => "ATMA",
        37 => "CERT",
        38 => "A6",
        40 => "SINK",
        42 => "APL",
        45 => "IPSECKEY",
        49 => "DHCID",
        55 => "HIP",
        56 => "NINFO",
        57 => "RKEY",
        58 => "TALINK",
        62 => "CSYNC",
        63 => "ZONEMD",
        100 => "UINFO",
        101 => "UID",
        102 => "GID",
        103 => "UNSPEC",
        104 => "NID",
        105 => "L32",
        106 => "L64",
        107 => "LP",
        108 => "EUI48",
        109 => "EUI64",
        249 => "TKEY",
        250 => "TSIG",
        251 => "IXFR",
        252 => "AXFR",
        253 => "MAILB",
        254 => "MAILA",
        255 => "ANY",
        258 => "AVC",
        259 => "DOA",
        260 => "AMTRELAY",
        32768 => "TA",
        32769 => "DLV",
        _ => return None,
    })
}

/// A type in text: its name, or its number (RFC 3597, 5).
pub(super) fn kind_text(kind: u16) -> Cow<'static, str> {
    kind_name(kind).map_or_else(|| format!("TYPE{kind}").into(), Cow::Borrowed)
}
