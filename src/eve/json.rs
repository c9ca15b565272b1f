//! JSON, written straight into a buffer that is used again for each line.
//!
//! What came from the wire is kept whole: valid UTF-8 as it is, other bytes as `\xNN` (two characters `\x` and two
//! digits), and a backslash that would look like the start of such an escape as `\x5c`.

use std::net::IpAddr;

/// Bytes of the wire in one string; what is longer is cut.
pub const TEXT_MAX: usize = 8 * 1024;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Bytes that JSON wants escaped in a string, and the backslash.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        special[byte] = true;
        byte += 1;
    }
    special[b'"' as usize] = true;
    special[b'\\' as usize] = true;
    special[0x7f] = true;
    special
};

/// A JSON text that grows. Commas set themselves: one comes before whatever does not stand first.
#[derive(Debug, Default)]
pub struct Json {
    out: Vec<u8>,
}

impl Json {
    /// The text so far.
    pub fn bytes(&self) -> &[u8] {
        &self.out
    }

    /// Starts anew, in the same buffer.
    pub fn clear(&mut self) {
        self.out.clear();
    }

    /// Bytes as they are: they are JSON already.
    pub fn raw(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    fn comma(&mut self) {
        if !matches!(self.out.last(), None | Some(b'{' | b'[' | b':')) {
            self.out.push(b',');
        }
    }

    /// `"name":`, of an object's member. Names are ours: nothing in them needs an escape.
    pub fn key(&mut self, name: &str) {
        self.comma();
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// Opens an object: the value of the key before it, or an element.
    pub fn open(&mut self) {
        self.comma();
        self.out.push(b'{');
    }

    /// Closes an object.
    pub fn close(&mut self) {
        self.out.push(b'}');
    }

    /// Opens an object as a member.
    pub fn object(&mut self, name: &str) {
        self.key(name);
        self.out.push(b'{');
    }

    /// Opens an array as a member.
    pub fn array(&mut self, name: &str) {
        self.key(name);
        self.out.push(b'[');
    }

    /// Closes an array.
    pub fn end_array(&mut self) {
        self.out.push(b']');
    }

    /// A number as a member.
    pub fn number(&mut self, name: &str, value: u64) {
        self.key(name);
        self.digits(value);
    }

    /// `true` or `false` as a member.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.key(name);
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// A text as a member.
    pub fn text(&mut self, name: &str, value: &str) {
        self.key(name);
        self.string(value.as_bytes());
    }

    /// Bytes of the wire as a member.
    pub fn wire(&mut self, name: &str, value: &[u8]) {
        self.key(name);
        self.string(value);
    }

    /// An address as a member.
    pub fn address(&mut self, name: &str, value: IpAddr) {
        self.key(name);
        self.out.push(b'"');
        match value {
            IpAddr::V4(value) => {
                for (place, octet) in value.octets().into_iter().enumerate() {
                    if place > 0 {
                        self.out.push(b'.');
                    }
                    self.digits(u64::from(octet));
                }
            }
            // As Suricata and the C library write them, but for embedded IPv4.
            IpAddr::V6(value) => self.display(value),
        }
        self.out.push(b'"');
    }

    /// What a type shows of itself: nothing that needs an escape.
    pub fn display(&mut self, value: impl std::fmt::Display) {
        use std::io::Write;
        // A vector takes whatever is written.
        let _ = write!(self.out, "{value}");
    }

    /// A number as an element.
    pub fn element(&mut self, value: u64) {
        self.comma();
        self.digits(value);
    }

    /// Bytes of the wire as an element.
    pub fn wire_element(&mut self, value: &[u8]) {
        self.comma();
        self.string(value);
    }

    /// A number in decimal.
    pub fn digits(&mut self, mut value: u64) {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.out.extend_from_slice(&digits[at..]);
    }

    /// The lowest `width` digits of a number in decimal, with zeros in front.
    pub fn padded(&mut self, mut value: u64, width: usize) {
        let start = self.out.len();
        self.out.resize(start + width, b'0');
        for place in self.out[start..].iter_mut().rev() {
            *place = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }

    /// A number in hexadecimal, with at least `width` digits (up to 16), as text.
    pub fn hex(&mut self, name: &str, prefix: &str, value: u64, width: usize) {
        self.key(name);
        self.out.push(b'"');
        self.out.extend_from_slice(prefix.as_bytes());
        let needed = (64 - value.leading_zeros()).div_ceil(4).max(1) as usize;
        for place in (0..needed.max(width).min(16)).rev() {
            self.out.push(HEX[(value >> (4 * place) & 0xf) as usize]);
        }
        self.out.push(b'"');
    }

    fn string(&mut self, value: &[u8]) {
        self.out.push(b'"');
        let value = &value[..value.len().min(TEXT_MAX)];
        for chunk in value.utf8_chunks() {
            self.escaped(chunk.valid().as_bytes());
            for &byte in chunk.invalid() {
                self.byte_escape(byte);
            }
        }
        self.out.push(b'"');
    }

    /// `\xNN`, whose backslash JSON wants doubled.
    fn byte_escape(&mut self, byte: u8) {
        self.out.extend_from_slice(&[b'\\', b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]]);
    }

    fn escaped(&mut self, text: &[u8]) {
        let mut done = 0;
        while let Some(length) = text[done..].iter().position(|&byte| SPECIAL[usize::from(byte)]) {
            self.out.extend_from_slice(&text[done..done + length]);
            done += length;
            let byte = text[done];
            done += 1;
            match byte {
                b'"' => self.out.extend_from_slice(b"\\\""),
                b'\\' if looks_escaped(&text[done..]) => self.byte_escape(b'\\'),
                b'\\' => self.out.extend_from_slice(b"\\\\"),
                b'\n' => self.out.extend_from_slice(b"\\n"),
                b'\r' => self.out.extend_from_slice(b"\\r"),
                b'\t' => self.out.extend_from_slice(b"\\t"),
                byte => {
                    let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]];
                    self.out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digits[0], digits[1]]);
                }
            }
        }
        self.out.extend_from_slice(&text[done..]);
    }
}

/// Whether what follows a backslash reads as one of our escapes.
fn looks_escaped(rest: &[u8]) -> bool {
    matches!(rest, [b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(value: &[u8]) -> String {
        let mut json = Json::default();
        json.open();
        json.wire("a", value);
        json.close();
        String::from_utf8(json.out).unwrap()
    }

    /// What was sent, from what was written.
    fn undone(text: &str) -> Vec<u8> {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let written = value["a"].as_str().unwrap().as_bytes();
        let (mut bytes, mut at) = (Vec::new(), 0);
        while at < written.len() {
            if written[at] == b'\\' && looks_escaped(&written[at + 1..]) {
                let digits = std::str::from_utf8(&written[at + 2..at + 4]).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                at += 4;
            } else {
                bytes.push(written[at]);
                at += 1;
            }
        }
        bytes
    }

    #[test]
    fn strings_read_as_people_expect() {
        assert_eq!(one(b"/index.html?q=\"x\""), r#"{"a":"/index.html?q=\"x\""}"#);
        assert_eq!(one("Grüße\r\n\x07".as_bytes()), "{\"a\":\"Grüße\\r\\n\\u0007\"}");
        assert_eq!(one(b"caf\xe9"), r#"{"a":"caf\\xe9"}"#);
        assert_eq!(one(br"\\server\share"), r#"{"a":"\\\\server\\share"}"#);
        assert_eq!(one(br"\xe9"), r#"{"a":"\\x5cxe9"}"#);
        assert_eq!(one(&[b'a'; TEXT_MAX + 1]).len(), TEXT_MAX + r#"{"a":""}"#.len());
    }

    #[test]
    fn commas_set_themselves() {
        let mut json = Json::default();
        json.open();
        json.number("n", u64::MAX);
        json.array("l");
        json.element(0);
        json.element(10);
        json.open();
        json.flag("yes", true);
        json.close();
        json.wire_element(b"{");
        json.wire_element(b"[");
        json.end_array();
        json.object("o");
        json.close();
        json.hex("h", "0x", 0xbeef, 8);
        json.hex("z", "", 0, 1);
        json.close();
        assert_eq!(
            std::str::from_utf8(json.bytes()).unwrap(),
            r#"{"n":18446744073709551615,"l":[0,10,{"yes":true},"{","["],"o":{},"h":"0x0000beef","z":"0"}"#
        );
    }

    proptest! {
        #[test]
        fn nothing_of_the_wire_is_lost(value in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            proptest::collection::vec(proptest::sample::select(b"\\x5ceE\"\n\xc3\xa4".to_vec()), 0..60),
        ]) {
            prop_assert_eq!(undone(&one(&value)), value);
        }

        #[test]
        fn numbers_and_addresses_are_their_display(number: u64, address: std::net::IpAddr) {
            let mut json = Json::default();
            json.open();
            json.number("n", number);
            json.address("a", address);
            json.close();
            let value: serde_json::Value = serde_json::from_slice(json.bytes()).unwrap();
            let shown = address.to_string();
            prop_assert_eq!(value["n"].as_u64(), Some(number));
            prop_assert_eq!(value["a"].as_str(), Some(&*shown));
        }
    }
}
