//! SMTP: commands, mails, STARTTLS.

/// A command with its reply, or a mail as it is handed over.
///
/// Each command is asked ([`super::Stage::Asked`]) as a transaction of its own; those of one mail (MAIL to the end of its
/// data) share one, which is asked at each of its commands and done with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// The last command, upper case: `EHLO`, `MAIL`, `RCPT`, `DATA`...
    pub command: Vec<u8>,
    /// Its argument as it was sent.
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
