//! SMTP and FTP: both greet with `220` and answer in three digits, so both sides together tell which it is.

use super::{Look, PREFIX_MAX, WORD_MAX};
use crate::packet::proto::{AppProto, Side};

/// Commands that only SMTP has (RFC 5321; RFC 2033; RFC 3030; RFC 3207; RFC 1985; XCLIENT and XFORWARD of Postfix).
const SMTP: [&str; 14] = [
    "EHLO", "HELO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "VRFY", "EXPN", "STARTTLS", "ETRN", "XCLIENT",
    "XFORWARD",
];

/// Commands that only FTP has (RFC 959, 2228, 2389, 2428, 3659), and no other protocol that greets in digits.
const FTP: [&str; 45] = [
    "USER", "PASS", "ACCT", "CWD", "CDUP", "SMNT", "REIN", "PORT", "PASV", "EPRT", "EPSV", "LPRT", "LPSV", "TYPE",
    "STRU", "RETR", "STOR", "STOU", "APPE", "ALLO", "REST", "RNFR", "RNTO", "ABOR", "DELE", "RMD", "XRMD", "MKD",
    "XMKD", "PWD", "XPWD", "NLST", "MLSD", "MLST", "SITE", "SYST", "FEAT", "OPTS", "LANG", "CLNT", "PBSZ", "PROT",
    "SIZE", "MDTM", "ADAT",
];

/// Commands of FTP that news servers know too.
const FTP_OR_NEWS: [&str; 4] = ["LIST", "STAT", "MODE", "HOST"];

/// Commands that a client of either may begin with.
const EITHER: [&str; 4] = ["NOOP", "QUIT", "HELP", "AUTH"];

/// What a command says of its protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Smtp,
    Ftp,
    /// Of FTP, unless the server is one of news.
    FtpAfterGreeting,
    Either,
    Unknown,
}

/// What the server's first line is.
enum Greeting<'a> {
    /// Nothing, or too little to say.
    Open,
    /// A code, and its line if that is complete.
    Code(u16, Option<&'a [u8]>),
    /// No reply.
    Not,
}

/// Whether `commands` and `replies` are a conversation of SMTP or FTP.
pub(super) fn talk(commands: &[u8], replies: &[u8], server_port: u16) -> Look {
    if let Some(protocol) = alone(commands) {
        return is(protocol);
    }
    match greeting(replies) {
        Greeting::Not => Look::Not,
        Greeting::Open if commands.len() < PREFIX_MAX && may_begin(commands) => Look::Open,
        Greeting::Open => Look::Not,
        Greeting::Code(code, line) => answered(commands, replies, code, line, server_port),
    }
}

/// Who speaks the commands is the client.
fn is(protocol: AppProto) -> Look {
    Look::Is(protocol, Some(Side::Client))
}

/// The first word of a line: letters, then whatever ends it. `None` while it may go on.
fn word(line: &[u8]) -> Option<(&[u8], u8)> {
    let length = line.iter().take(WORD_MAX).take_while(|byte| byte.is_ascii_alphabetic()).count();
    line.get(length).map(|end| (&line[..length], *end))
}

/// The first line without its end, and what stands behind it. `None` while it is not complete.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]), &bytes[end + 1..]))
}

fn is_text(line: &[u8]) -> bool {
    line.iter().all(|byte| *byte >= b' ' && *byte != 0x7f || *byte == b'\t')
}

fn one_of(words: &[&str], word: &[u8]) -> bool {
    words.iter().any(|each| each.as_bytes().eq_ignore_ascii_case(word))
}

/// What is sure without a reply: commands that no other protocol writes like this.
fn alone(commands: &[u8]) -> Option<AppProto> {
    let (first, rest) = line(commands)?;
    let (name, _) = word(first).unwrap_or((first, b'\n'));
    let argument = first[name.len()..].trim_ascii();
    if !is_text(first) {
        return None;
    }
    if one_of(&["EHLO", "HELO", "LHLO"], name) && !argument.is_empty() && !argument.contains(&b' ')
        || one_of(&["MAIL"], name) && argument.len() >= 5 && argument[..5].eq_ignore_ascii_case(b"FROM:")
    {
        return Some(AppProto::Smtp);
    }
    let is_address = || argument.iter().filter(|byte| **byte == b',').count() == 5;
    let is_extended =
        || argument.len() > 2 && argument.first() == argument.last() && !argument[0].is_ascii_alphanumeric();
    let is_sure = one_of(&["PORT"], name) && is_address()
        || one_of(&["EPRT"], name) && is_extended()
        || one_of(&["PASV", "EPSV"], name) && argument.is_empty();
    // POP and IRC have a USER too, and what comes next is theirs or not.
    let is_login = one_of(&["USER"], name) && {
        let second = line(rest).map(|(second, _)| second);
        let next = second.map(|second| word(second).map_or(second, |(next, _)| next));
        next.is_some_and(|next| !one_of(&["USER", "PASS", "RETR", "DELE"], next) && one_of(&FTP, next))
    };
    (is_sure || is_login).then_some(AppProto::Ftp)
}

/// Whether this may be the start of a command, before there is a reply.
fn may_begin(commands: &[u8]) -> bool {
    let lists: [&[&str]; 4] = [&SMTP, &FTP, &FTP_OR_NEWS, &EITHER];
    let mut words = lists.into_iter().flatten();
    match word(commands) {
        Some((name, end)) => {
            matches!(end, b' ' | b'\r' | b'\n') && words.any(|each| each.as_bytes().eq_ignore_ascii_case(name))
        }
        None => words.any(|each| {
            each.len() >= commands.len() && each.as_bytes()[..commands.len()].eq_ignore_ascii_case(commands)
        }),
    }
}

/// Reads the first reply's code, and its first line if that is complete.
fn greeting(replies: &[u8]) -> Greeting<'_> {
    let is_fit = replies.iter().take(4).enumerate().all(|(at, byte)| match at {
        0 => (b'1'..=b'5').contains(byte),
        1 | 2 => byte.is_ascii_digit(),
        _ => matches!(byte, b' ' | b'-' | b'\r' | b'\n'),
    });
    if !is_fit {
        return Greeting::Not;
    }
    if replies.len() < 4 {
        return Greeting::Open;
    }
    let first = match line(replies) {
        Some((first, _)) => Some(first),
        None if replies.len() == PREFIX_MAX => Some(replies),
        None => None,
    };
    Greeting::Code(code(replies), first)
}

/// The three digits that a reply begins with.
fn code(reply: &[u8]) -> u16 {
    reply.iter().take(3).fold(0, |code, digit| code * 10 + u16::from(digit - b'0'))
}

/// The server answered: what do the commands say?
fn answered(commands: &[u8], replies: &[u8], code: u16, greeting: Option<&[u8]>, server_port: u16) -> Look {
    // Anything else is the middle of a conversation, or another protocol.
    let is_greeting = matches!(code, 120 | 220 | 421 | 554);
    if commands.is_empty() {
        return if is_greeting { unasked(replies) } else { Look::Open };
    }
    let open = if commands.len() == PREFIX_MAX { Look::Not } else { Look::Open };
    let mut rest = commands;
    loop {
        let Some((name, end)) = word(rest) else { return open };
        let whole = line(rest);
        let is_command = !name.is_empty() && matches!(end, b' ' | b'\r' | b'\n' | b'\t');
        // A server that greets so answers rubbish with an error, and takes the next line.
        if !is_command && !is_greeting {
            return Look::Not;
        }
        let word = if is_command { judge(name, whole.map(|(line, _)| &line[name.len()..])) } else { Word::Unknown };
        match word {
            Word::Smtp => return is(AppProto::Smtp),
            Word::Ftp => return is(AppProto::Ftp),
            Word::FtpAfterGreeting if is_greeting => return is(AppProto::Ftp),
            Word::Either => {}
            Word::FtpAfterGreeting | Word::Unknown if is_greeting => {}
            Word::FtpAfterGreeting | Word::Unknown => return Look::Not,
        }
        let Some((said, behind)) = whole else { return open };
        if !is_text(said) && !is_greeting {
            return Look::Not;
        }
        if is_greeting && is_command && is_text(said) {
            let Some(greeting) = greeting else { return Look::Open };
            if let Some(protocol) = tie(greeting, server_port) {
                return is(protocol);
            }
        }
        rest = behind;
    }
}

/// What a command says; its argument where the line is complete.
fn judge(name: &[u8], argument: Option<&[u8]>) -> Word {
    if one_of(&["AUTH"], name) {
        // Mechanisms of SASL (RFC 4954) on the one hand, of RFC 2228 and 4217 on the other.
        let mechanism = argument.and_then(|argument| argument.trim_ascii().split(|byte| *byte == b' ').next());
        return match mechanism {
            Some(mechanism) if one_of(&["TLS", "SSL", "TLS-C", "TLS-P", "KERBEROS_V4"], mechanism) => Word::Ftp,
            Some(mechanism) if !mechanism.is_empty() && !one_of(&["GSSAPI"], mechanism) => Word::Smtp,
            _ => Word::Either,
        };
    }
    match name {
        _ if one_of(&SMTP, name) => Word::Smtp,
        _ if one_of(&FTP, name) => Word::Ftp,
        _ if one_of(&FTP_OR_NEWS, name) => Word::FtpAfterGreeting,
        _ if one_of(&EITHER, name) => Word::Either,
        _ => Word::Unknown,
    }
}

/// Between both protocols: what the greeting calls itself, else what the port is for.
fn tie(greeting: &[u8], server_port: u16) -> Option<AppProto> {
    let says = |name: &[u8]| greeting.windows(name.len()).any(|window| window.eq_ignore_ascii_case(name));
    match (says(b"SMTP") || says(b"LMTP"), says(b"FTP")) {
        (true, false) => Some(AppProto::Smtp),
        (false, true) => Some(AppProto::Ftp),
        _ => match server_port {
            24 | 25 | 465 | 587 | 2525 => Some(AppProto::Smtp),
            21 | 990 | 2121 => Some(AppProto::Ftp),
            _ => None,
        },
    }
}

/// Only the server is heard: the reply after its greeting answers a first command that is known by it.
fn unasked(replies: &[u8]) -> Look {
    let mut rest = replies;
    // The greeting goes on as long as a hyphen stands behind the code, or no code at all.
    loop {
        let Some((first, behind)) = line(rest) else { return Look::Open };
        rest = behind;
        if first.len() >= 3 && first[..3] == replies[..3] && first.get(3) != Some(&b'-') {
            break;
        }
    }
    match greeting(rest) {
        // The capabilities of an EHLO.
        Greeting::Code(250, _) => is(AppProto::Smtp),
        // USER, AUTH, FEAT, SYST.
        Greeting::Code(211 | 215 | 230 | 234 | 331 | 332, _) => is(AppProto::Ftp),
        Greeting::Not => Look::Not,
        _ => Look::Open,
    }
}
