//! FTP: commands on the control connection, and the connections that they announce.
//!
//! [`Conversation`] reads commands and replies (RFC 959), matched in order; `address.rs` reads what PORT, EPRT, PASV and
//! EPSV announce (RFC 2428); [`Carrier`] is the parser of an announced connection.

mod address;
mod carrier;
mod conversation;

#[cfg(test)]
mod tests;

pub use carrier::Carrier;
pub use conversation::Conversation;

/// A command with its reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// The command, upper case; empty for the server's greeting, and for a reply that no command was seen for.
    pub command: Vec<u8>,
    /// Its argument as it was sent; none of PASS, ACCT and ADAT, which is secret.
    pub argument: Vec<u8>,
    /// Lines of the replies, without the codes; up to 64, and 8 KiB in all.
    pub reply: Vec<Vec<u8>>,
    /// Codes of its lines, where they have one.
    pub codes: Vec<u16>,
    /// The port that a PORT, EPRT, PASV or EPSV announced.
    pub data_port: Option<u16>,
    /// Whether that was the server's (PASV, EPSV).
    pub is_passive: bool,
}

/// A file or a listing on a connection of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// The command that asked for it: `RETR`, `STOR`, `LIST`...; empty while it was not given yet.
    pub command: Vec<u8>,
    /// The file.
    pub file: Vec<u8>,
    /// Bytes that were carried.
    pub bytes: u64,
}
