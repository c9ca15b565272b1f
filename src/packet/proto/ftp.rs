//! FTP: commands on the control connection, and the connections that they announce.

/// A command with its reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// The command, upper case; empty for the server's greeting.
    pub command: Vec<u8>,
    /// Its argument as it was sent.
    pub argument: Vec<u8>,
    /// Lines of the reply, without the codes.
    pub reply: Vec<Vec<u8>>,
    /// Codes of its lines.
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
