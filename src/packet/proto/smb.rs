//! SMB 1, 2 and 3: requests, shares, files.

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
    /// The file, as the client named it.
    pub file: Option<String>,
    /// User and domain of NTLM, if it was seen.
    pub user: Option<(String, String)>,
}
