//! What records hold, in the presentation forms that the RFCs of their types give.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use data_encoding::{BASE32HEX_NOPAD, BASE64};

use super::kind::{self, kind_text};
use super::name::{push_byte, push_name_or_dot};
use crate::packet::proto::reader::{Reader, hex, push_hex};

/// The text of a record's data; `None` where it breaks the form of its type.
pub(super) fn text(message: &[u8], range: Range<usize>, kind: u16) -> Option<String> {
    if range.is_empty() {
        // As deletions in updates have it (RFC 2136, 2.5).
        return Some(String::new());
    }
    let mut fields = Fields { message, at: range.start, end: range.end, text: String::new() };
    fields.of_kind(kind)?;
    (fields.at == fields.end).then_some(fields.text)
}

/// Reads fields of a record's data, and writes them.
struct Fields<'a> {
    message: &'a [u8],
    at: usize,
    end: usize,
    text: String,
}

impl<'a> Fields<'a> {
    fn of_kind(&mut self, kind: u16) -> Option<()> {
        match kind {
            kind::A => self.ipv4(),
            kind::AAAA => self.ipv6(),
            kind::NS | kind::MD | kind::MF | kind::CNAME | kind::MB | kind::MG | kind::MR => self.name(),
            kind::PTR | kind::DNAME => self.name(),
            kind::SOA => {
                self.names(2)?;
                (0..5).try_for_each(|_| self.u32())
            }
            kind::MINFO | kind::RP => self.names(2),
            kind::HINFO => {
                self.quoted()?;
                self.quoted()
            }
            kind::MX | kind::AFSDB | kind::KX => {
                self.u16()?;
                self.name()
            }
            kind::TXT | kind::SPF => self.strings(),
            kind::SRV => {
                (0..3).try_for_each(|_| self.u16())?;
                self.name()
            }
            kind::NAPTR => {
                (0..2).try_for_each(|_| self.u16())?;
                (0..3).try_for_each(|_| self.quoted())?;
                self.name()
            }
            kind::DS | kind::CDS => {
                self.u16()?;
                self.u8()?;
                self.u8()?;
                self.rest_hex()
            }
            kind::SSHFP => {
                self.u8()?;
                self.u8()?;
                self.rest_hex()
            }
            kind::TLSA | kind::SMIMEA => {
                (0..3).try_for_each(|_| self.u8())?;
                self.rest_hex()
            }
            kind::DNSKEY | kind::CDNSKEY => {
                self.u16()?;
                self.u8()?;
                self.u8()?;
                self.rest_base64()
            }
            kind::RRSIG => self.rrsig(),
            kind::NSEC => {
                self.name()?;
                self.kinds()
            }
            kind::NSEC3 => {
                self.nsec3_parameters()?;
                let hash = self.vector8()?;
                self.write(&BASE32HEX_NOPAD.encode(hash).to_ascii_lowercase());
                self.kinds()
            }
            kind::NSEC3PARAM => self.nsec3_parameters(),
            kind::OPENPGPKEY => self.rest_base64(),
            kind::CAA => self.caa(),
            kind::URI => {
                (0..2).try_for_each(|_| self.u16())?;
                let target = self.take(self.end - self.at)?;
                self.write_quoted(target);
                Some(())
            }
            kind::SVCB | kind::HTTPS => self.service(),
            _ => self.rest_hex(),
        }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let next = self.at.checked_add(count).filter(|next| *next <= self.end)?;
        let taken = self.message.get(self.at..next)?;
        self.at = next;
        Some(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let [length] = self.take_array()?;
        self.take(length.into())
    }

    /// Appends a field, by a space.
    fn write(&mut self, field: &str) {
        self.space();
        self.text.push_str(field);
    }

    fn space(&mut self) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
    }

    fn write_number(&mut self, number: u32) -> Option<()> {
        self.space();
        write!(self.text, "{number}").ok()
    }

    fn u8(&mut self) -> Option<()> {
        let [value] = self.take_array()?;
        self.write_number(value.into())
    }

    fn u16(&mut self) -> Option<()> {
        let value = self.take_array().map(u16::from_be_bytes)?;
        self.write_number(value.into())
    }

    fn u32(&mut self) -> Option<()> {
        let value = self.take_array().map(u32::from_be_bytes)?;
        self.write_number(value)
    }

    fn ipv4(&mut self) -> Option<()> {
        let address = Ipv4Addr::from(self.take_array::<4>()?);
        write!(self.text, "{address}").ok()
    }

    fn ipv6(&mut self) -> Option<()> {
        let address = Ipv6Addr::from(self.take_array::<16>()?);
        write!(self.text, "{address}").ok()
    }

    fn name(&mut self) -> Option<()> {
        self.space();
        self.at = push_name_or_dot(&mut self.text, self.message, self.at, self.end)?;
        Some(())
    }

    fn names(&mut self, count: usize) -> Option<()> {
        (0..count).try_for_each(|_| self.name())
    }

    fn quoted(&mut self) -> Option<()> {
        let string = self.vector8()?;
        self.write_quoted(string);
        Some(())
    }

    fn write_quoted(&mut self, string: &[u8]) {
        self.write("\"");
        for byte in string {
            if *byte == b'"' {
                self.text.push('\\');
            }
            push_byte(&mut self.text, *byte);
        }
        self.text.push('"');
    }

    fn strings(&mut self) -> Option<()> {
        while self.at < self.end {
            for byte in self.vector8()? {
                push_byte(&mut self.text, *byte);
            }
        }
        Some(())
    }

    fn rest_hex(&mut self) -> Option<()> {
        let rest = self.take(self.end - self.at)?;
        self.space();
        push_hex(&mut self.text, rest);
        Some(())
    }

    fn rest_base64(&mut self) -> Option<()> {
        let rest = self.take(self.end - self.at)?;
        self.write(&BASE64.encode(rest));
        Some(())
    }

    /// RFC 4034, 3.2.
    fn rrsig(&mut self) -> Option<()> {
        let covered = self.take_array().map(u16::from_be_bytes)?;
        self.write(&kind_text(covered));
        self.u8()?;
        self.u8()?;
        (0..3).try_for_each(|_| self.u32())?;
        self.u16()?;
        self.name()?;
        self.rest_base64()
    }

    /// Types of a bitmap in windows of 256 (RFC 4034, 4.1.2).
    fn kinds(&mut self) -> Option<()> {
        while self.at < self.end {
            let [window] = self.take_array()?;
            let bitmap = self.vector8()?;
            if !(1..=32).contains(&bitmap.len()) {
                return None;
            }
            for (byte, bits) in bitmap.iter().enumerate() {
                for bit in (0..8).filter(|bit| bits & 0x80 >> bit != 0) {
                    let kind = u16::from(window) << 8 | (8 * byte + bit) as u16;
                    self.write(&kind_text(kind));
                }
            }
        }
        Some(())
    }

    /// RFC 5155, 4.3.
    fn nsec3_parameters(&mut self) -> Option<()> {
        self.u8()?;
        self.u8()?;
        self.u16()?;
        let salt = self.vector8()?;
        let salt = if salt.is_empty() { "-".to_string() } else { hex(salt) };
        self.write(&salt);
        Some(())
    }

    /// RFC 8659, 4.1.1.
    fn caa(&mut self) -> Option<()> {
        self.u8()?;
        let tag = self.vector8()?;
        if tag.is_empty() || !tag.iter().all(u8::is_ascii_alphanumeric) {
            return None;
        }
        self.write(str::from_utf8(tag).ok()?);
        let value = self.take(self.end - self.at)?;
        self.write_quoted(value);
        Some(())
    }

    /// RFC 9460, 2.1 and 2.2.
    fn service(&mut self) -> Option<()> {
        self.u16()?;
        self.name()?;
        while self.at < self.end {
            let key = self.take_array().map(u16::from_be_bytes)?;
            let length = self.take_array().map(u16::from_be_bytes)?;
            let value = self.take(length.into())?;
            self.space();
            self.service_parameter(key, value)?;
        }
        Some(())
    }

    /// RFC 9460, 14.3.2; ECH in hexadecimal.
    fn service_parameter(&mut self, key: u16, value: &[u8]) -> Option<()> {
        let text = &mut self.text;
        push_service_key(text, key);
        if value.is_empty() {
            return Some(());
        }
        text.push('=');
        let mut reader = Reader::new(value);
        let mut is_first = true;
        let mut comma = |text: &mut String| {
            if !std::mem::take(&mut is_first) {
                text.push(',');
            }
        };
        match key {
            0 => {
                while !reader.is_empty() {
                    comma(text);
                    push_service_key(text, reader.u16()?);
                }
            }
            1 => {
                while !reader.is_empty() {
                    comma(text);
                    push_value(text, reader.vector8()?);
                }
            }
            3 => {
                write!(text, "{}", reader.u16()?).ok()?;
                return reader.is_empty().then_some(());
            }
            4 => {
                while !reader.is_empty() {
                    comma(text);
                    write!(text, "{}", Ipv4Addr::from(reader.array::<4>()?)).ok()?;
                }
            }
            6 => {
                while !reader.is_empty() {
                    comma(text);
                    write!(text, "{}", Ipv6Addr::from(reader.array::<16>()?)).ok()?;
                }
            }
            7 => push_value(text, value),
            _ => push_hex(text, value),
        }
        Some(())
    }
}

/// Appends a value of a parameter that stands without quotes: spaces, quotes and the commas inside of it are escaped.
fn push_value(text: &mut String, value: &[u8]) {
    for byte in value {
        match byte {
            b' ' => text.push_str("\\032"),
            b'"' | b',' => text.extend(['\\', char::from(*byte)]),
            _ => push_byte(text, *byte),
        }
    }
}

fn push_service_key(text: &mut String, key: u16) {
    match key {
        0 => text.push_str("mandatory"),
        1 => text.push_str("alpn"),
        2 => text.push_str("no-default-alpn"),
        3 => text.push_str("port"),
        4 => text.push_str("ipv4hint"),
        5 => text.push_str("ech"),
        6 => text.push_str("ipv6hint"),
        7 => text.push_str("dohpath"),
        // Writing to a string does not fail.
        _ => drop(write!(text, "key{key}")),
    }
}
