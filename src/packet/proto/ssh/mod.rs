//! SSH: banners, and the key exchange's fingerprint.

mod conversation;

pub use conversation::Conversation;

/// What both sides said before all is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// The client's.
    pub client: Half,
    /// The server's.
    pub server: Half,
}

/// One side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Half {
    /// Protocol of the banner, e.g. `2.0`; empty while it did not come.
    pub protocol: Vec<u8>,
    /// Software of the banner, e.g. `OpenSSH_9.2p1`, and the comment behind it.
    pub software: Vec<u8>,
    /// HASSH (the client's) or HASSHServer: MD5 in hexadecimal, and the text behind it.
    pub hassh: Option<(String, String)>,
}
