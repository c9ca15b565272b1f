//! The two sides' talk: commands, replies, and which belongs to which.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use super::Exchange;
use super::mail::{Data, Head};
use crate::packet::proto::inner::{Grant, Inner, Next};
use crate::packet::proto::lines::{Line, Lines};
use crate::packet::proto::{Fact, Out, Parser, Side, Stage};

/// Longest command line that is kept; servers take 512 bytes, with extensions more (RFC 5321, 4.5.3.1.4).
const COMMAND_MAX: usize = 1024;
/// Longest name of a command.
const WORD_MAX: usize = 32;
/// Of a reply only the code counts.
const REPLY_MAX: usize = 16;
/// Recipients of a mail that are kept.
const RECIPIENTS_MAX: usize = 100;
/// Commands that may wait for their replies, and bytes that are kept of them.
const PENDING_MAX: usize = 1024;
const PENDING_BYTES_MAX: usize = 64 * 1024;

/// What the client's next bytes are.
#[derive(Debug, Default)]
enum Mode {
    /// Commands.
    #[default]
    Command,
    /// Lines of an AUTH exchange (RFC 4954), which are secret.
    Auth,
    /// A mail, up to its final dot.
    Data(Data),
    /// A piece of a mail (RFC 3030).
    Chunk { left: u64, is_last: bool },
}

/// What a reply is awaited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A command that nothing follows from.
    Plain,
    Auth,
    StartTls,
    Mail,
    Recipient,
    Data,
    Chunk,
    /// The end of a mail; LMTP has a reply for each recipient (RFC 2033, 4.2).
    End {
        replies: u32,
    },
    /// A line that is no command; the server will say so.
    Junk,
}

#[derive(Debug)]
struct Pending {
    kind: Kind,
    tx: u32,
    /// What is told when the reply is there; of a mail's commands the mail tells.
    exchange: Option<Arc<Exchange>>,
}

/// A mail that is being handed over.
#[derive(Debug, Default)]
struct Mail {
    tx: u32,
    exchange: Exchange,
    head: Head,
    accepted: u32,
    /// MAIL was refused.
    is_refused: bool,
    /// DATA or BDAT was asked.
    is_started: bool,
    /// Where it ends is not sure: bytes are missing, or a dot stood alone between line ends that some servers take.
    is_vague: bool,
}

/// Reads a conversation of SMTP or LMTP.
#[derive(Default)]
pub struct Conversation {
    lines: [Lines; 2],
    mode: Mode,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// Replies that belong to commands which found no room in `pending`.
    forgotten: u32,
    next_tx: u32,
    helo: Option<Vec<u8>>,
    is_lmtp: bool,
    mail: Option<Mail>,
    is_greeted: bool,
    grant: Grant,
    inner: Option<Inner>,
    /// Who sends no more.
    is_over: [bool; 2],
}

impl Parser for Conversation {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if let Some(inner) = &mut self.inner {
                return inner.take(side, rest, out);
            }
            match side {
                Side::Client => self.take_client(&mut rest, out),
                Side::Server => self.take_server(&mut rest, out),
            }
        }
    }

    fn skip(&mut self, side: Side, missing: u64, out: &mut Out) {
        if let Some(inner) = &mut self.inner {
            return inner.skip(side, missing, out);
        }
        match side {
            Side::Client => self.skip_client(missing, out),
            Side::Server => {
                self.lines[Side::Server as usize].lose();
                self.is_greeted = true;
                self.give_up_replies(out);
                if self.grant.lose() {
                    self.begin_tls(out);
                }
            }
        }
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        if let Some(inner) = &mut self.inner {
            return inner.end(side, out);
        }
        // Replies may still come when the client is silent; without a server nothing will.
        self.is_over[side as usize] = true;
        if self.is_over[Side::Server as usize] {
            self.give_up_replies(out);
            self.close_mail(out);
        }
    }

    fn memory(&self) -> usize {
        let mail = self.mail.as_ref().map_or(0, |mail| mail.head.memory() + size_of_exchange(&mail.exchange));
        let lines: usize = self.lines.iter().map(Lines::memory).sum();
        let inner = self.inner.as_ref().map_or(0, Inner::memory);
        let pending = self.pending.capacity() * size_of::<Pending>() + self.pending_bytes;
        size_of::<Self>() + lines + pending + mail + self.grant.memory() + inner
    }
}

/// Bytes of an exchange, about.
fn size_of_exchange(exchange: &Exchange) -> usize {
    let recipients: usize = exchange.rcpt_to.iter().map(|path| size_of::<Vec<u8>>() + path.capacity()).sum();
    let parts = [&exchange.helo, &exchange.mail_from, &exchange.subject];
    let parts: usize = parts.into_iter().flatten().map(Vec::capacity).sum();
    size_of::<Exchange>() + exchange.command.capacity() + exchange.argument.capacity() + recipients + parts
}

/// The client's side.
impl Conversation {
    fn take_client(&mut self, rest: &mut &[u8], out: &mut Out) {
        match &mut self.mode {
            Mode::Data(_) => self.take_data(rest, out),
            Mode::Chunk { .. } => self.take_chunk(rest, out),
            Mode::Command | Mode::Auth => self.take_lines(rest, out),
        }
    }

    fn take_lines(&mut self, rest: &mut &[u8], out: &mut Out) {
        match self.grant.next(self.lines[Side::Client as usize].is_at_start(), rest) {
            Next::Plain => {}
            Next::Tls => return self.begin_tls(out),
            Next::Held => return,
        }
        let mut lines = mem::take(&mut self.lines[Side::Client as usize]);
        if let Some(line) = lines.next(rest, COMMAND_MAX) {
            self.line(line, out);
        }
        self.lines[Side::Client as usize] = lines;
    }

    fn line(&mut self, line: Line<'_>, out: &mut Out) {
        if matches!(self.mode, Mode::Auth) {
            // What is said in AUTH is base64 or `*`: with a space or a colon it is a command, and the reply was missed.
            if !line.text.iter().any(|byte| matches!(byte, b' ' | b':')) {
                return;
            }
            self.mode = Mode::Command;
        }
        if line.is_bare {
            out.odd(Side::Client, "smtp.bare_lf");
        }
        let end = line.text.iter().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(line.text.len());
        let (word, argument) = line.text.split_at(end);
        if word.is_empty() || word.len() > WORD_MAX || !word.iter().all(u8::is_ascii_alphabetic) {
            out.odd(Side::Client, "smtp.bad_command");
            return self.await_reply(Pending { kind: Kind::Junk, tx: 0, exchange: None }, out);
        }
        let word = word.to_ascii_uppercase();
        if line.is_cut && word != b"AUTH" {
            out.odd(Side::Client, "smtp.long_command");
        }
        if self.grant.is_asked() {
            // It waits for the reply (RFC 3207, 4.2): else what it sends may be taken for said under TLS
            // (CVE-2011-0411).
            out.odd(Side::Client, "smtp.starttls_pipelined");
        }
        self.command(word, argument.trim_ascii(), out);
    }

    fn command(&mut self, word: Vec<u8>, argument: &[u8], out: &mut Out) {
        match &word[..] {
            b"MAIL" => self.mail(word, argument, out),
            b"RCPT" => self.recipient(word, argument, out),
            b"DATA" => {
                self.ask_mail(word, argument, out);
                self.mode = Mode::Data(Data::default());
                self.await_mail_reply(Kind::Data, out);
            }
            b"BDAT" => self.chunk(word, argument, out),
            b"EHLO" | b"HELO" | b"LHLO" => {
                self.close_mail(out);
                self.is_lmtp = word == b"LHLO";
                self.helo = Some(argument[..argument.len().min(255)].to_vec());
                self.plain(Kind::Plain, word, argument, out);
            }
            b"AUTH" => {
                let mechanism = argument.split(|byte| *byte == b' ').next().unwrap_or_default();
                self.plain(Kind::Auth, word, &mechanism[..mechanism.len().min(WORD_MAX)], out);
                self.mode = Mode::Auth;
            }
            b"STARTTLS" => {
                self.close_mail(out);
                self.grant.ask();
                self.plain(Kind::StartTls, word, argument, out);
            }
            b"RSET" | b"QUIT" => {
                self.close_mail(out);
                self.plain(Kind::Plain, word, argument, out);
            }
            _ => self.plain(Kind::Plain, word, argument, out),
        }
    }

    fn exchange(&self, command: Vec<u8>, argument: &[u8]) -> Exchange {
        Exchange { command, argument: argument.to_vec(), helo: self.helo.clone(), ..Exchange::default() }
    }

    fn new_tx(&mut self) -> u32 {
        let tx = self.next_tx;
        self.next_tx = tx.wrapping_add(1);
        tx
    }

    /// A command that is a transaction of its own.
    fn plain(&mut self, kind: Kind, word: Vec<u8>, argument: &[u8], out: &mut Out) {
        let exchange = Arc::new(self.exchange(word, argument));
        let tx = self.new_tx();
        out.tell(tx, Stage::Asked, Fact::Smtp(exchange.clone()));
        self.await_reply(Pending { kind, tx, exchange: Some(exchange) }, out);
    }

    fn mail(&mut self, word: Vec<u8>, argument: &[u8], out: &mut Out) {
        self.close_mail(out);
        let mut exchange = self.exchange(word, argument);
        exchange.mail_from = Some(path(argument, b"FROM:").to_vec());
        let tx = self.new_tx();
        out.tell(tx, Stage::Asked, Fact::Smtp(Arc::new(exchange.clone())));
        self.mail = Some(Mail { tx, exchange, ..Mail::default() });
        self.await_mail_reply(Kind::Mail, out);
    }

    /// The mail that a command belongs to; when its MAIL was not seen, one begins here.
    fn open_mail(&mut self) -> &mut Mail {
        if self.mail.is_none() {
            let exchange = self.exchange(Vec::new(), b"");
            let tx = self.new_tx();
            self.mail = Some(Mail { tx, exchange, ..Mail::default() });
        }
        self.mail.get_or_insert_default()
    }

    fn recipient(&mut self, word: Vec<u8>, argument: &[u8], out: &mut Out) {
        let recipient = path(argument, b"TO:").to_vec();
        let mail = self.open_mail();
        mail.exchange.command = word;
        mail.exchange.argument = argument.to_vec();
        let others = mem::take(&mut mail.exchange.rcpt_to);
        let asked = Exchange { rcpt_to: vec![recipient.clone()], ..mail.exchange.clone() };
        mail.exchange.rcpt_to = others;
        let is_room = mail.exchange.rcpt_to.len() < RECIPIENTS_MAX;
        if is_room {
            mail.exchange.rcpt_to.push(recipient);
        } else {
            out.odd(Side::Client, "smtp.many_recipients");
        }
        out.tell(mail.tx, Stage::Asked, Fact::Smtp(Arc::new(asked)));
        self.await_mail_reply(Kind::Recipient, out);
    }

    /// DATA or BDAT: the first tells all of the mail's envelope.
    fn ask_mail(&mut self, word: Vec<u8>, argument: &[u8], out: &mut Out) {
        let mail = self.open_mail();
        mail.exchange.command = word;
        mail.exchange.argument = argument.to_vec();
        let is_again = mem::replace(&mut mail.is_started, true);
        let envelope = is_again.then(|| mem::take(&mut mail.exchange.rcpt_to));
        out.tell(mail.tx, Stage::Asked, Fact::Smtp(Arc::new(mail.exchange.clone())));
        if let Some(recipients) = envelope {
            mail.exchange.rcpt_to = recipients;
        }
    }

    fn chunk(&mut self, word: Vec<u8>, argument: &[u8], out: &mut Out) {
        let mut parts = argument.split(|byte| *byte == b' ').filter(|part| !part.is_empty());
        let size = parts.next().and_then(|size| str::from_utf8(size).ok()).and_then(|size| size.parse::<u64>().ok());
        let last = parts.next();
        let is_last = last.is_some_and(|last| last.eq_ignore_ascii_case(b"LAST"));
        let Some(left) = size.filter(|_| (last.is_none() || is_last) && !argument.starts_with(b"+")) else {
            out.odd(Side::Client, "smtp.bad_bdat");
            return self.plain(Kind::Plain, word, argument, out);
        };
        self.ask_mail(word, argument, out);
        self.mode = Mode::Chunk { left, is_last };
        self.chunk_ends(out);
    }

    fn take_chunk(&mut self, rest: &mut &[u8], out: &mut Out) {
        let Mode::Chunk { left, .. } = &mut self.mode else { return };
        let count = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let (now, behind) = rest.split_at(count);
        *left -= count as u64;
        *rest = behind;
        if let Some(mail) = &mut self.mail {
            mail.head.take(now);
            mail.exchange.mail_bytes += count as u64;
        }
        self.chunk_ends(out);
    }

    /// Goes on with commands when a piece is complete.
    fn chunk_ends(&mut self, out: &mut Out) {
        let Mode::Chunk { left: 0, is_last } = self.mode else { return };
        self.mode = Mode::Command;
        if is_last {
            self.mail_ends(out);
        } else {
            self.await_mail_reply(Kind::Chunk, out);
        }
    }

    fn take_data(&mut self, rest: &mut &[u8], out: &mut Out) {
        let Mode::Data(data) = &mut self.mode else { return };
        let Some(mail) = &mut self.mail else {
            self.mode = Mode::Command;
            return;
        };
        let bytes_of_mail = &mut mail.exchange.mail_bytes;
        let (count, is_end) = data.take(rest, bytes_of_mail, &mut |name| out.odd(Side::Client, name));
        mail.head.take(&rest[..count]);
        *rest = &rest[count..];
        mail.is_vague |= data.shapes.false_end;
        if is_end {
            self.mode = Mode::Command;
            self.mail_ends(out);
        }
    }

    /// All of a mail is there: its reply makes it done.
    fn mail_ends(&mut self, out: &mut Out) {
        let Some(mail) = self.mail.take() else { return };
        let replies = if self.is_lmtp { mail.accepted.max(1) } else { 1 };
        let (tx, exchange) = (mail.tx, finish(mail));
        self.await_reply(Pending { kind: Kind::End { replies }, tx, exchange: Some(Arc::new(exchange)) }, out);
    }

    /// A mail that is not handed over to its end.
    fn close_mail(&mut self, out: &mut Out) {
        if let Some(mail) = self.mail.take() {
            let (tx, exchange) = (mail.tx, finish(mail));
            out.tell(tx, Stage::Done, Fact::Smtp(Arc::new(exchange)));
        }
        if matches!(self.mode, Mode::Data(_) | Mode::Chunk { .. }) {
            self.mode = Mode::Command;
        }
    }

    fn skip_client(&mut self, missing: u64, out: &mut Out) {
        match &mut self.mode {
            Mode::Command | Mode::Auth => self.lines[Side::Client as usize].lose(),
            Mode::Data(data) => {
                data.lose();
                if let Some(mail) = &mut self.mail {
                    mail.head.lose();
                    mail.is_vague = true;
                    mail.exchange.mail_bytes = mail.exchange.mail_bytes.saturating_add(missing);
                }
            }
            Mode::Chunk { left, .. } => {
                let within = missing.min(*left);
                *left -= within;
                if let Some(mail) = &mut self.mail {
                    mail.head.lose();
                    mail.exchange.mail_bytes = mail.exchange.mail_bytes.saturating_add(within);
                }
                self.chunk_ends(out);
                if missing > within {
                    self.lines[Side::Client as usize].lose();
                }
            }
        }
    }

    fn await_mail_reply(&mut self, kind: Kind, out: &mut Out) {
        let tx = self.mail.as_ref().map_or(0, |mail| mail.tx);
        self.await_reply(Pending { kind, tx, exchange: None }, out);
    }

    fn await_reply(&mut self, pending: Pending, out: &mut Out) {
        self.pending_bytes += pending.exchange.as_deref().map_or(0, size_of_exchange);
        self.pending.push_back(pending);
        while self.pending.len() > PENDING_MAX || self.pending_bytes > PENDING_BYTES_MAX {
            out.odd(Side::Client, "smtp.many_commands");
            self.forgotten += 1;
            match self.pop_pending() {
                Some(oldest) => self.give_up(oldest, out),
                None => break,
            }
        }
    }

    fn pop_pending(&mut self) -> Option<Pending> {
        let oldest = self.pending.pop_front()?;
        self.pending_bytes -= oldest.exchange.as_deref().map_or(0, size_of_exchange);
        Some(oldest)
    }

    /// Its reply will not be seen.
    fn give_up(&mut self, pending: Pending, out: &mut Out) {
        if pending.kind == Kind::StartTls {
            self.grant.lose();
        }
        if let Some(exchange) = pending.exchange {
            out.tell(pending.tx, Stage::Done, Fact::Smtp(exchange));
        }
    }

    fn give_up_replies(&mut self, out: &mut Out) {
        self.forgotten = 0;
        while let Some(oldest) = self.pop_pending() {
            self.give_up(oldest, out);
        }
    }
}

/// What is told of a mail at its end.
fn finish(mail: Mail) -> Exchange {
    Exchange { subject: mail.head.into_subject(), ..mail.exchange }
}

/// The path behind `FROM:` or `TO:`, without angle brackets (RFC 5321, 4.1.2).
fn path<'a>(argument: &'a [u8], keyword: &[u8]) -> &'a [u8] {
    let rest = match argument.split_at_checked(keyword.len()) {
        Some((start, rest)) if start.eq_ignore_ascii_case(keyword) => rest.trim_ascii_start(),
        _ => argument,
    };
    let Some(inside) = rest.strip_prefix(b"<") else {
        return rest.split(|byte| *byte == b' ').next().unwrap_or_default();
    };
    // The local part may be a quoted string, in which anything may stand.
    let (mut is_quoted, mut is_escaped) = (false, false);
    let end = inside.iter().position(|byte| {
        let is_end = *byte == b'>' && !is_quoted;
        is_quoted ^= *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && is_quoted && !is_escaped;
        is_end
    });
    &inside[..end.unwrap_or(inside.len())]
}

/// The server's side.
impl Conversation {
    fn take_server(&mut self, rest: &mut &[u8], out: &mut Out) {
        let mut lines = mem::take(&mut self.lines[Side::Server as usize]);
        if let Some(line) = lines.next(rest, REPLY_MAX) {
            self.reply_line(line.text, out);
        }
        self.lines[Side::Server as usize] = lines;
    }

    fn reply_line(&mut self, text: &[u8], out: &mut Out) {
        let (digits, end) = (text.get(..3).unwrap_or_default(), text.get(3));
        if digits.len() < 3 || !digits.iter().all(u8::is_ascii_digit) || !matches!(end, None | Some(b' ' | b'-')) {
            return out.odd(Side::Server, "smtp.bad_reply");
        }
        // A hyphen: more lines of the same reply come.
        if end != Some(&b'-') {
            let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
            self.reply(code, out);
        }
    }

    fn reply(&mut self, code: u16, out: &mut Out) {
        let is_first = !mem::replace(&mut self.is_greeted, true);
        let front = self.pending.front().map(|pending| pending.kind);
        if is_first && matches!(code, 220 | 554) && front != Some(Kind::StartTls) {
            return;
        }
        if self.forgotten > 0 {
            self.forgotten -= 1;
            return;
        }
        match front {
            None => self.reply_early(code, out),
            // A step of AUTH: the exchange goes on.
            Some(Kind::Auth) if code == 334 => {}
            Some(Kind::End { replies }) if replies > 1 => {
                if let Some(pending) = self.pending.front_mut() {
                    pending.kind = Kind::End { replies: replies - 1 };
                }
            }
            Some(_) => {
                if let Some(pending) = self.pop_pending() {
                    self.answered(pending, code, out);
                }
            }
        }
    }

    /// A reply that no command waits for.
    fn reply_early(&mut self, code: u16, out: &mut Out) {
        if !matches!(self.mode, Mode::Data(_) | Mode::Chunk { .. }) {
            return;
        }
        if let Some(mail) = &mut self.mail {
            mail.exchange.reply = Some(code);
            // The server saw the end that is not seen here.
            if mail.is_vague {
                self.close_mail(out);
            }
        }
    }

    fn answered(&mut self, pending: Pending, code: u16, out: &mut Out) {
        let Pending { kind, tx, exchange } = pending;
        if let Some(mut exchange) = exchange {
            Arc::make_mut(&mut exchange).reply = Some(code);
            out.tell(tx, Stage::Done, Fact::Smtp(exchange));
        }
        match kind {
            Kind::Plain | Kind::Junk | Kind::End { .. } => {}
            Kind::Auth => {
                if matches!(self.mode, Mode::Auth) {
                    self.mode = Mode::Command;
                }
            }
            Kind::StartTls => {
                if code == 220 {
                    self.begin_tls(out);
                } else {
                    let early = self.grant.refuse();
                    self.take(Side::Client, &early, out);
                }
            }
            Kind::Mail | Kind::Recipient | Kind::Data | Kind::Chunk => self.mail_answered(kind, tx, code, out),
        }
    }

    fn mail_answered(&mut self, kind: Kind, tx: u32, code: u16, out: &mut Out) {
        let Some(mail) = self.mail.as_mut().filter(|mail| mail.tx == tx) else { return };
        mail.exchange.reply = Some(code);
        let is_refused = code >= 400;
        match kind {
            Kind::Mail => mail.is_refused = is_refused,
            Kind::Recipient => mail.accepted += u32::from(!is_refused),
            Kind::Data if is_refused && matches!(self.mode, Mode::Data(_)) => {
                if mail.exchange.mail_bytes > 0 {
                    // What it sent are commands to the server.
                    out.odd(Side::Client, "smtp.data_before_reply");
                }
                self.mode = Mode::Command;
            }
            _ => {}
        }
        if mail.is_refused && matches!(self.mode, Mode::Command | Mode::Auth) {
            self.close_mail(out);
        }
    }

    /// TLS begins: what comes is not SMTP any more.
    fn begin_tls(&mut self, out: &mut Out) {
        self.give_up_replies(out);
        self.close_mail(out);
        self.lines = Default::default();
        let mut inner = self.grant.begin(self.next_tx, out);
        // Who ended before TLS began ends in it, too.
        Side::BOTH.into_iter().filter(|side| self.is_over[*side as usize]).for_each(|side| inner.end(side, out));
        self.inner = Some(inner);
    }
}
