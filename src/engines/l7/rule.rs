//! A rule of the L7 firewall as the engine uses it: every field checked and in its own type.

use std::sync::Arc;

use crate::alert::Severity;
use crate::classify::matching::Match;
use crate::classify::rules::Action;
use crate::matching::matcher::{Folding, Matcher};

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Exchanges of HTTP/1 and HTTP/2, those of gRPC among them.
    Http,
    /// Handshakes of TLS, also those that QUIC carries.
    Tls,
    /// Calls of gRPC.
    Grpc,
    /// Commands and mails.
    Smtp,
    /// Commands, and the transfers that they ask for.
    Ftp,
    /// Requests of SMB 1, 2 and 3.
    Smb,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 6] =
        [Protocol::Http, Protocol::Tls, Protocol::Grpc, Protocol::Smtp, Protocol::Ftp, Protocol::Smb];

    /// Words that stand for a protocol.
    pub const WORDS: &'static [(&'static str, Protocol)] = &[
        ("http", Protocol::Http),
        ("tls", Protocol::Tls),
        ("grpc", Protocol::Grpc),
        ("smtp", Protocol::Smtp),
        ("ftp", Protocol::Ftp),
        ("smb", Protocol::Smb),
    ];

    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::Tls => "tls",
            Protocol::Grpc => "grpc",
            Protocol::Smtp => "smtp",
            Protocol::Ftp => "ftp",
            Protocol::Smb => "smb",
        }
    }

    /// The fields that its rules may ask for, by their keys; those of [`Field::Header`] stand in a table of their own.
    pub const fn fields(self) -> &'static [(&'static str, Field)] {
        match self {
            Protocol::Http => &[
                ("method", Field::Method),
                ("path", Field::Path),
                ("host", Field::Host),
                ("content_type", Field::ContentType),
            ],
            Protocol::Tls => &[("sni", Field::Sni), ("alpn", Field::Alpn), ("ja3", Field::Ja3), ("ja4", Field::Ja4)],
            Protocol::Grpc => &[("service", Field::Service), ("method", Field::CallMethod)],
            Protocol::Smtp => &[("command", Field::SmtpCommand), ("from", Field::MailFrom), ("to", Field::MailTo)],
            Protocol::Ftp => &[("command", Field::FtpCommand), ("file", Field::FtpFile)],
            Protocol::Smb => &[
                ("command", Field::SmbCommand),
                ("file", Field::SmbFile),
                ("share", Field::Share),
                ("dialect", Field::Dialect),
            ],
        }
    }
}

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// Method of an HTTP request.
    Method,
    /// Path of its target, without the query.
    Path,
    /// The host that it asks for.
    Host,
    /// One of its fields, by its name in lower case.
    Header(Arc<str>),
    /// Media type of the request, or of the response.
    ContentType,
    /// Name that a TLS client asks for.
    Sni,
    /// A protocol that it offers.
    Alpn,
    /// Its JA3, as 32 hexadecimal digits.
    Ja3,
    /// Its JA4.
    Ja4,
    /// `package.Service` of a call of gRPC.
    Service,
    /// Its method.
    CallMethod,
    /// A command of SMTP; of a mail any of its commands.
    SmtpCommand,
    /// Reverse path of a mail.
    MailFrom,
    /// A forward path of a mail.
    MailTo,
    /// A command of FTP.
    FtpCommand,
    /// The file that it names, or that is transferred.
    FtpFile,
    /// A command of SMB, such as `SMB2_COMMAND_CREATE` or `CREATE`.
    SmbCommand,
    /// A file on a share.
    SmbFile,
    /// The share, such as `\\server\share` or `share`.
    Share,
    /// The dialect in force.
    Dialect,
}

impl Field {
    /// The key of the field, as rules and alerts name it.
    pub fn name(&self) -> Arc<str> {
        match self {
            Field::Header(name) => format!("header.{name}").into(),
            field => {
                let all = Protocol::ALL.iter().flat_map(|protocol| protocol.fields());
                all.clone().find(|(_, known)| known == field).map_or("", |(key, _)| *key).into()
            }
        }
    }

    /// What is the same in its values: as a server takes it.
    pub const fn folding(&self) -> Folding {
        match self {
            Field::Host | Field::Sni => Folding::Name,
            Field::Path | Field::Header(_) | Field::Alpn | Field::Service | Field::CallMethod | Field::FtpFile => {
                Folding::None
            }
            Field::Method
            | Field::ContentType
            | Field::Ja3
            | Field::Ja4
            | Field::SmtpCommand
            | Field::MailFrom
            | Field::MailTo
            | Field::FtpCommand
            | Field::SmbCommand
            | Field::SmbFile
            | Field::Share
            | Field::Dialect => Folding::Case,
        }
    }

    /// Whether a rule that allows holds only if all values of a transaction match, where others hold if one does. A client
    /// offers several protocols and wants one; a share is called by its whole name or the last part of it; but a mail goes to
    /// all of its recipients.
    pub const fn wants_all(&self) -> bool {
        !matches!(self, Field::Alpn | Field::ContentType | Field::SmtpCommand | Field::SmbCommand | Field::Share)
    }
}

/// A field and what its value must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What is looked at.
    pub field: Field,
    /// What it must be.
    pub matcher: Matcher,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique name, `[A-Za-z0-9_-]`, 1 to 64 characters.
    pub id: String,
    /// Whose rule it is: operators of this namespace may change it. Without one it is the admins'.
    pub namespace: Option<String>,
    /// Lower numbers are asked first; from 1. Equal priorities keep the order in which they were written.
    pub priority: u32,
    /// A rule that is switched off is kept and shown, and never matches.
    pub enabled: bool,
    /// What to do with a transaction that matches.
    pub action: Action,
    /// What kind of transaction that is.
    pub protocol: Protocol,
    /// Addresses and ports of its flow, the client's as source; nothing else is asked here.
    pub matches: Match,
    /// What must hold beside that: all of it. Of each field at most one, headers by their names; in the order of the keys.
    pub conditions: Vec<Condition>,
    /// How bad a match is; of no meaning with [`Action::Allow`].
    pub severity: Severity,
    /// What it is a sign of: ids of MITRE ATT&CK techniques, at most 16.
    pub mitre: Vec<Arc<str>>,
    /// Free text for people, at most 256 characters.
    pub description: String,
}

impl Rule {
    /// `severity` when it is not written.
    pub const fn severity_of(action: Action) -> Severity {
        match action {
            Action::Deny => Severity::High,
            Action::Log | Action::Allow => Severity::Low,
        }
    }
}
