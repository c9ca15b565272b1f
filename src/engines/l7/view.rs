//! Which values a transaction has for the fields of rules, and which of them may still come.

use super::normal::Values;
use super::rule::{Field, Protocol};
use crate::packet::proto::{Fact, Stage, Told, ftp, http, smb, smtp, tls};

/// Commands of FTP whose argument is a path.
const FILE_COMMANDS: &[&str] = &[
    "RETR", "STOR", "STOU", "APPE", "DELE", "RNFR", "RNTO", "SIZE", "MDTM", "MFMT", "MKD", "XMKD", "RMD", "XRMD", "CWD",
    "XCWD", "LIST", "NLST", "MLSD", "MLST", "STAT", "HASH", "XMD5", "XCRC", "XSHA1",
];
/// Commands of SMTP that belong to a mail, in their order.
pub const MAIL_COMMANDS: &[&str] = &["MAIL", "RCPT", "DATA", "BDAT"];

/// The protocols whose rules are about a fact. The last one's default action is the fact's; none is of no rule.
pub fn protocols_of(fact: &Fact) -> &'static [Protocol] {
    match fact {
        Fact::Http(exchange) if exchange.grpc.is_some() => &[Protocol::Http, Protocol::Grpc],
        Fact::Http(_) => &[Protocol::Http],
        Fact::Tls(_) | Fact::Quic(_) => &[Protocol::Tls],
        Fact::Smtp(_) => &[Protocol::Smtp],
        Fact::Ftp(_) | Fact::FtpData(_) => &[Protocol::Ftp],
        Fact::Smb(_) => &[Protocol::Smb],
        Fact::Ssh(_) | Fact::Dns(_) => &[],
    }
}

/// Whether the client's part was seen: an answer to what nobody saw, or a server's greeting, is nothing that a default
/// could refuse.
pub fn is_asked(told: &Told) -> bool {
    match &told.fact {
        _ if told.stage == Stage::Asked => true,
        Fact::Http(exchange) => !exchange.method.is_empty(),
        Fact::Tls(hello) => hello.client_version != 0,
        Fact::Quic(_) | Fact::Smb(_) | Fact::FtpData(_) => true,
        Fact::Smtp(exchange) => !exchange.command.is_empty(),
        Fact::Ftp(exchange) => !exchange.command.is_empty(),
        Fact::Ssh(_) | Fact::Dns(_) => false,
    }
}

/// Fills in the values of a field; fields of a request's head are another matter. Returns whether there may be more, or
/// the first one, at a later stage of the same transaction.
pub fn fill(field: &Field, told: &Told, values: &mut Values) -> bool {
    let may_come = told.stage == Stage::Asked;
    match &told.fact {
        Fact::Http(exchange) => of_http(field, exchange, may_come, values),
        Fact::Tls(hello) => of_tls(field, hello, values),
        Fact::Quic(initial) => of_tls(field, &initial.handshake, values),
        Fact::Smtp(exchange) => of_smtp(field, exchange, may_come, values),
        Fact::Ftp(exchange) => of_ftp(field, exchange, values),
        Fact::FtpData(transfer) => of_transfer(field, transfer, may_come, values),
        Fact::Smb(exchange) => of_smb(field, exchange, may_come, values),
        Fact::Ssh(_) | Fact::Dns(_) => false,
    }
}

fn of_http(field: &Field, exchange: &http::Exchange, may_come: bool, values: &mut Values) -> bool {
    let named = |headers: &'_ http::Headers, name: &'static str, take: &mut dyn FnMut(&[u8])| {
        let same = headers.iter().filter(|(each, _)| each.eq_ignore_ascii_case(name.as_bytes()));
        same.for_each(|(_, value)| take(value));
    };
    match field {
        // A response whose request was not seen has neither.
        Field::Method if !exchange.method.is_empty() => values.folded(&exchange.method),
        Field::Path if !exchange.method.is_empty() => values.path(&exchange.target),
        Field::Host => {
            let fields = exchange.request.iter().filter(|(name, _)| name.eq_ignore_ascii_case(b"host"));
            values.hosts(exchange.host.as_deref().into_iter().chain(fields.map(|(_, value)| value)));
        }
        Field::ContentType => {
            named(&exchange.request, "content-type", &mut |value| values.media_type(value));
            named(&exchange.response, "content-type", &mut |value| values.media_type(value));
            return may_come;
        }
        Field::Service => exchange.grpc.iter().for_each(|call| values.plain(&call.service)),
        Field::CallMethod => exchange.grpc.iter().for_each(|call| values.plain(&call.method)),
        _ => {}
    }
    false
}

fn of_tls(field: &Field, hello: &tls::Handshake, values: &mut Values) -> bool {
    match field {
        Field::Sni => hello.sni.iter().for_each(|name| values.server_name(name)),
        Field::Alpn => hello.client_alpn.iter().for_each(|protocol| values.plain(protocol)),
        Field::Ja3 => hello.ja3.iter().for_each(|(digest, _)| values.folded(digest.as_bytes())),
        Field::Ja4 => hello.ja4.iter().for_each(|text| values.folded(text.as_bytes())),
        _ => {}
    }
    false
}

fn of_smtp(field: &Field, exchange: &smtp::Exchange, may_come: bool, values: &mut Values) -> bool {
    let is_now = |name: &&str| exchange.command.eq_ignore_ascii_case(name.as_bytes());
    let is_mail = exchange.mail_from.is_some() || !exchange.rcpt_to.is_empty() || MAIL_COMMANDS.iter().any(|name| is_now(name));
    match field {
        Field::SmtpCommand => {
            // A mail has had these before the one that it is at.
            let had = [("MAIL", exchange.mail_from.is_some()), ("RCPT", !exchange.rcpt_to.is_empty())];
            if !exchange.command.is_empty() {
                values.folded(&exchange.command);
            }
            for (name, _) in had.into_iter().filter(|(name, had)| *had && !is_now(name)) {
                values.folded(name.as_bytes());
            }
            may_come && is_mail
        }
        Field::MailFrom => {
            exchange.mail_from.iter().for_each(|address| values.mailbox(address));
            may_come && is_mail && exchange.mail_from.is_none()
        }
        Field::MailTo => {
            exchange.rcpt_to.iter().for_each(|address| values.mailbox(address));
            may_come && is_mail
        }
        _ => false,
    }
}

fn of_ftp(field: &Field, exchange: &ftp::Exchange, values: &mut Values) -> bool {
    match field {
        Field::FtpCommand if !exchange.command.is_empty() => values.folded(&exchange.command),
        Field::FtpFile => {
            let names_one = FILE_COMMANDS.iter().any(|name| exchange.command.eq_ignore_ascii_case(name.as_bytes()));
            if names_one && !exchange.argument.is_empty() {
                values.ftp_file(&exchange.argument);
            }
        }
        _ => {}
    }
    false
}

fn of_transfer(field: &Field, transfer: &ftp::Transfer, may_come: bool, values: &mut Values) -> bool {
    match field {
        Field::FtpCommand if !transfer.command.is_empty() => values.folded(&transfer.command),
        Field::FtpFile if !transfer.file.is_empty() => values.ftp_file(&transfer.file),
        _ => {}
    }
    // It begins before its command is known.
    may_come && transfer.command.is_empty()
}

fn of_smb(field: &Field, exchange: &smb::Exchange, may_come: bool, values: &mut Values) -> bool {
    match field {
        Field::SmbCommand => values.smb_command(exchange.command),
        Field::SmbFile => exchange.file.iter().for_each(|name| values.smb_file(name)),
        Field::Share => exchange.share.iter().for_each(|name| values.smb_share(name)),
        Field::Dialect if !exchange.dialect.is_empty() => values.folded(exchange.dialect.as_bytes()),
        // What a negotiation agrees on is the server's answer.
        Field::Dialect => return may_come,
        _ => {}
    }
    false
}
