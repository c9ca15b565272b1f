//! QUIC: the client's first packets, whose keys anyone can reckon (RFC 9001, 5.2).

use std::sync::Arc;

use super::tls;

/// What the client's Initial packets said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Initial {
    /// Version: 1 (RFC 9000), 0x6b3343cf (RFC 9369)...
    pub version: u32,
    /// The client's hello, if it could be read.
    pub handshake: Arc<tls::Handshake>,
}
