//! TLS handshakes: hellos, names, fingerprints, certificates.

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
