//! TLS handshakes: hellos, names, fingerprints, certificates.
//!
//! [`Conversation`] reads records and puts the messages together (`conversation.rs`), `hello.rs` reads the two hellos,
//! `certificate.rs` what the server shows up to TLS 1.2, `fingerprint.rs` reckons JA3 and JA4.

mod certificate;
mod conversation;
mod fingerprint;
mod hello;

#[cfg(test)]
pub(crate) mod tests;

pub use conversation::Conversation;
pub use fingerprint::Carrier;
pub(crate) use hello::{Answer, read_client, read_server};

use super::Side;

/// Whether a version is 1.3 or one of its drafts: all behind the server's hello is encrypted.
pub(crate) fn is_version_13(version: u16) -> bool {
    version == 0x0304 || version >> 8 == 0x7f
}

/// What a handshake said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// Name that the client asked for (RFC 6066), as it was sent.
    pub sni: Option<Vec<u8>>,
    /// Protocols that the client offers (RFC 7301).
    pub client_alpn: Vec<Vec<u8>>,
    /// The one that the server chose; in TLS 1.3 it is encrypted.
    pub server_alpn: Option<Vec<u8>>,
    /// `legacy_version` of the client's hello, e.g. 0x0303.
    pub client_version: u16,
    /// Versions that the client offers in `supported_versions`, in its order, without GREASE.
    pub client_versions: Vec<u16>,
    /// The version in force, by the server's hello and its `supported_versions`; `None` until it came.
    pub version: Option<u16>,
    /// The cipher suite that the server chose.
    pub cipher: Option<u16>,
    /// JA3 of the client's hello: MD5 in hexadecimal, and the text behind it.
    pub ja3: Option<(String, String)>,
    /// JA3S of the server's hello, likewise.
    pub ja3s: Option<(String, String)>,
    /// JA4 of the client's hello.
    pub ja4: Option<String>,
    /// The server's own certificate, where it is not encrypted (up to TLS 1.2).
    pub certificate: Option<Certificate>,
    /// The session goes on from an earlier one.
    pub is_resumed: bool,
    /// The alert in the clear that ended the handshake: whose, and its description (RFC 8446, 6).
    pub alert: Option<(Side, u8)>,
}

impl Handshake {
    /// Bytes that it takes, about.
    pub(crate) fn memory(&self) -> usize {
        let lists = self.client_alpn.iter().map(|name| size_of::<Vec<u8>>() + name.capacity()).sum::<usize>();
        let text = |pair: &Option<(String, String)>| pair.as_ref().map_or(0, |(hash, text)| hash.len() + text.len());
        let certificate = self.certificate.as_ref().map_or(0, |certificate| {
            let names = certificate.names.iter().map(|name| size_of::<String>() + name.len()).sum::<usize>();
            names + certificate.subject.len() + certificate.issuer.len()
        });
        size_of::<Self>() + lists + text(&self.ja3) + text(&self.ja3s) + certificate
    }
}

/// What a certificate says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Subject, e.g. `CN=www.example.org`.
    pub subject: String,
    /// Issuer, likewise.
    pub issuer: String,
    /// Serial number, hexadecimal with colons.
    pub serial: String,
    /// Start of validity, in seconds since 1970.
    pub not_before: i64,
    /// End of validity, likewise.
    pub not_after: i64,
    /// DNS names of the subject.
    pub names: Vec<String>,
    /// SHA-1 of the certificate, hexadecimal with colons.
    pub fingerprint: String,
}
