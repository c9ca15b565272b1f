//! SMB 1, 2 and 3: requests, shares, files.
//!
//! `frames.rs` cuts the stream into messages and passes over what files are made of; `v1.rs` and `v2.rs` read the
//! messages ([MS-CIFS], [MS-SMB2]), `ntlm.rs` who logs in; [`Conversation`] matches responses to requests and knows
//! what shares and files the numbers in them stand for. What is encrypted or compressed is passed over.

mod conversation;
mod frames;
mod names;
mod ntlm;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

pub use conversation::Conversation;

/// A request with its response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// The command by its name, e.g. `SMB2_COMMAND_CREATE` or `SMB1_COMMAND_NEGOTIATE_PROTOCOL`.
    pub command: &'static str,
    /// The dialect in force, e.g. `2.10`, `3.11`, `NT LM 0.12`; empty while none is agreed.
    pub dialect: String,
    /// Dialects that a negotiation offers.
    pub offered: Vec<String>,
    /// NT status of the response.
    pub status: Option<u32>,
    /// Session id.
    pub session: u64,
    /// Tree id.
    pub tree: u32,
    /// The share, e.g. `\\server\share`, where the tree's connection was seen.
    pub share: Option<String>,
    /// The file, as the client named it, also where a request has only the number that the server gave it; empty for
    /// the share itself.
    pub file: Option<String>,
    /// What a file is renamed to.
    pub rename_to: Option<String>,
    /// User and domain of NTLM, where they log in.
    pub user: Option<(String, String)>,
}
