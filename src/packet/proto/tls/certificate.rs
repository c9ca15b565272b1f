//! The server's certificate, where it is sent in the clear.

use std::fmt::Write;

use aws_lc_rs::digest;
use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::Certificate;
use crate::packet::proto::reader::{Reader, push_hex};

/// Names of the subject that are kept; some certificates of large sites hold hundreds.
pub(super) const NAMES_MAX: usize = 128;

/// The first certificate of a Certificate message (RFC 5246, 7.4.2), which is the server's own.
///
/// `Ok(None)` when the list is empty.
pub(super) fn leaf(message: &[u8]) -> Result<Option<Certificate>, ()> {
    let mut reader = Reader::new(message);
    let length = reader.u24().ok_or(())?;
    if length == 0 {
        return Ok(None);
    }
    let length = reader.u24().ok_or(())?;
    let der = reader.take(length as usize).ok_or(())?;
    read(der).map(Some).ok_or(())
}

fn read(der: &[u8]) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut names = Vec::new();
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        let dns = extension.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_string()),
            _ => None,
        });
        names.extend(dns.take(NAMES_MAX));
    }
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der);
    Some(Certificate {
        subject: name_text(certificate.subject()),
        issuer: name_text(certificate.issuer()),
        serial: with_colons(certificate.raw_serial()).to_ascii_uppercase(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        names,
        fingerprint: with_colons(digest.as_ref()),
    })
}

fn with_colons(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(3 * bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        if at > 0 {
            text.push(':');
        }
        push_hex(&mut text, &[*byte]);
    }
    text
}

/// A distinguished name in the order of the wire: `C=US, O=Example, CN=www.example.org`.
fn name_text(name: &X509Name) -> String {
    let mut text = String::new();
    for set in name.iter() {
        for (at, attribute) in set.iter().enumerate() {
            text.push_str(match (at, text.is_empty()) {
                (0, true) => "",
                (0, false) => ", ",
                _ => " + ",
            });
            match oid2abbrev(attribute.attr_type(), oid_registry()) {
                Ok(abbreviation) => text.push_str(abbreviation),
                // Writing to a string does not fail.
                Err(_) => drop(write!(text, "{}", attribute.attr_type())),
            }
            text.push('=');
            text.push_str(&value_text(attribute.attr_value()));
        }
    }
    text
}

/// A value of a name. Not every issuer keeps to the alphabet that the tag promises: such bytes are shown as they can be.
fn value_text(value: &Any) -> String {
    if value.tag() != Tag::BmpString {
        return String::from_utf8_lossy(value.data).into_owned();
    }
    let units = value.data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
