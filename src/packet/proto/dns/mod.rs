//! DNS messages over UDP and TCP.
//!
//! [`Datagrams`] and [`Stream`] take what hosts sent (`conversation.rs`), `message.rs` reads a message, `name.rs` its
//! names, `data.rs` what records hold, `kind.rs` knows the types by name.

mod conversation;
mod data;
mod kind;
mod message;
mod name;

#[cfg(test)]
mod tests;

pub use conversation::{Datagrams, Stream};
pub use kind::kind_name;

/// A query or a response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Identifier.
    pub id: u16,
    /// The flags' 16 bits (RFC 1035, 4.1.1): QR is the highest.
    pub flags: u16,
    /// Questions.
    pub queries: Vec<Question>,
    /// Records of the answer section.
    pub answers: Vec<Record>,
    /// Records of the authority section.
    pub authorities: Vec<Record>,
    /// Records of the additional section, without OPT.
    pub additionals: Vec<Record>,
    /// What OPT says (RFC 6891).
    pub edns: Option<Edns>,
}

/// The extension of DNS that stands in an OPT record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edns {
    /// Bytes of a datagram that the sender takes.
    pub udp_size: u16,
    /// The upper eight bits of the extended response code.
    pub rcode_high: u8,
    /// Version, 0.
    pub version: u8,
    /// The sender wants signatures (DO).
    pub is_dnssec_ok: bool,
}

impl Message {
    /// Whether it is a response.
    pub fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }
}

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Name without the trailing dot; bytes outside of printable ASCII, dots inside of labels and backslashes are escaped
    /// as in zone files (RFC 1035, 5.1). The root is empty.
    pub name: String,
    /// TYPE.
    pub kind: u16,
    /// CLASS.
    pub class: u16,
}

/// A resource record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Whose it is; as [`Question::name`].
    pub name: String,
    /// TYPE.
    pub kind: u16,
    /// CLASS.
    pub class: u16,
    /// Seconds to live.
    pub ttl: u32,
    /// Its data in the presentation form of its type; hexadecimal where the type has none, or the data breaks its form.
    ///
    /// Names are written as [`Question::name`], but the root is a dot. The strings of a TXT record are joined without
    /// quotes, as those who use them do (RFC 7208, 3.3). Times of signatures are in seconds since 1970 (RFC 4034, 3.2).
    pub data: String,
}
