//! SMTP: commands, mails, STARTTLS.
//!
//! [`Conversation`] reads commands and replies (RFC 5321), matched in order since clients may send several commands at once
//! (RFC 2920); `mail.rs` finds the end of a mail and its subject. What a client says to log in is not kept.

mod conversation;
mod mail;

#[cfg(test)]
mod tests;

pub use conversation::Conversation;

/// A command with its reply, or a mail as it is handed over.
///
/// Each command is asked ([`super::Stage::Asked`]) as a transaction of its own; those of one mail (MAIL to the end of its
/// data) share one, which is asked at each of its commands and done with it. Asked at a RCPT it has the recipient of that
/// command only, else a thousand recipients would be told of a thousand times; at the first DATA or BDAT, and done, it has
/// all that are kept (100).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// The last command, upper case: `EHLO`, `MAIL`, `RCPT`, `DATA`...
    pub command: Vec<u8>,
    /// Its argument as it was sent, up to a KiB; of AUTH the mechanism only.
    pub argument: Vec<u8>,
    /// What the client called itself.
    pub helo: Option<Vec<u8>>,
    /// The reverse path, without angle brackets.
    pub mail_from: Option<Vec<u8>>,
    /// The forward paths, without angle brackets.
    pub rcpt_to: Vec<Vec<u8>>,
    /// Code of the last reply.
    pub reply: Option<u16>,
    /// `Subject:` of the mail as it was sent, unfolded.
    pub subject: Option<Vec<u8>>,
    /// Bytes of the mail.
    pub mail_bytes: u64,
}
