//! DNS messages over UDP and TCP.

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
    /// Its data in the presentation form of its type (addresses, names, text...); hexadecimal where the type has none.
    pub data: String,
}
