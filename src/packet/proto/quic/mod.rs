//! QUIC: the first packets of a connection, whose keys anyone can reckon (RFC 9001, 5.2).
//!
//! [`Conversation`] takes datagrams (`conversation.rs`); `keys.rs` opens Initial packets, `packet.rs` reads headers and
//! frames, `crypto_stream.rs` puts the handshake's bytes in order; `google.rs` reads hellos from before there was TLS
//! in it.

mod conversation;
mod crypto_stream;
mod google;
mod keys;
mod packet;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::tls;

pub use conversation::Conversation;

/// What the Initial packets said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Initial {
    /// Version: 1 (RFC 9000), 0x6b3343cf (RFC 9369)...
    pub version: u32,
    /// The client's hello, if it could be read, and the server's.
    pub handshake: Arc<tls::Handshake>,
}
