//! The control connection: commands, replies, and which belongs to which.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Exchange, Transfer, address};
use crate::packet::proto::inner::{Grant, Inner, Next};
use crate::packet::proto::lines::{Line, Lines};
use crate::packet::proto::{Expected, Fact, Out, Parser, Side, Stage};

/// Longest command line that is kept: a path may be as long as that.
const COMMAND_MAX: usize = 4096;
/// Longest name of a command.
const WORD_MAX: usize = 32;
/// Longest line of a reply that is kept, how many of a command's, and their bytes in all.
const REPLY_MAX: usize = 1024;
const REPLY_LINES_MAX: usize = 64;
const REPLY_BYTES_MAX: usize = 8 * 1024;
/// Commands that may wait for their replies, and bytes that are kept of them.
const PENDING_MAX: usize = 256;
const PENDING_BYTES_MAX: usize = 64 * 1024;

/// What follows from a command's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing.
    Plain,
    /// TLS, if it is granted.
    AuthTls,
    /// The server says where it listens.
    Passive,
    /// The client said where it listens.
    Active(SocketAddr),
    /// A connection carries something.
    Transfer,
    /// A line that is no command; the server will say so.
    Junk,
}

#[derive(Debug)]
struct Pending {
    kind: Kind,
    tx: u32,
    exchange: Arc<Exchange>,
    reply_bytes: usize,
}

/// Reads the control connection of FTP.
#[derive(Default)]
pub struct Conversation {
    lines: [Lines; 2],
    pending: VecDeque<Pending>,
    /// Bytes that `pending` keeps of commands.
    pending_bytes: usize,
    /// Replies that belong to commands which found no room in `pending`.
    forgotten: u32,
    next_tx: u32,
    is_greeted: bool,
    /// A reply of several lines is open, until a line with its code (RFC 959, 4.2).
    open_reply: Option<[u8; 3]>,
    /// Where the next transfer's connection goes, and who opens it.
    channel: Option<(SocketAddr, Side)>,
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
        self.lines[side as usize].lose();
        if side == Side::Server {
            self.is_greeted = true;
            self.give_up_replies(out);
            if self.grant.lose() {
                self.begin_tls(out);
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
        }
    }

    fn memory(&self) -> usize {
        let lines: usize = self.lines.iter().map(Lines::memory).sum();
        let replies: usize = self.pending.iter().map(|pending| pending.reply_bytes).sum();
        let pending = self.pending.capacity() * size_of::<Pending>() + self.pending_bytes + replies;
        let inner = self.inner.as_ref().map_or(0, Inner::memory);
        size_of::<Self>() + lines + pending + self.grant.memory() + inner
    }
}

/// The client's side.
impl Conversation {
    fn take_client(&mut self, rest: &mut &[u8], out: &mut Out) {
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
        let text = without_telnet(line.text);
        let end = text.iter().position(|byte| *byte == b' ').unwrap_or(text.len());
        let (word, argument) = text.split_at(end);
        if word.is_empty() || word.len() > WORD_MAX || !word.iter().all(u8::is_ascii_alphabetic) {
            out.odd(Side::Client, "ftp.bad_command");
            return self.await_reply(Kind::Junk, 0, Arc::default(), out);
        }
        if line.is_cut {
            out.odd(Side::Client, "ftp.long_command");
        }
        if self.grant.is_asked() {
            // It waits for the reply: else what it sends may be taken for said under TLS.
            out.odd(Side::Client, "ftp.auth_pipelined");
        }
        // One space stands between them; more belong to the file's name.
        self.command(word.to_ascii_uppercase(), argument.strip_prefix(b" ").unwrap_or(argument), out);
    }

    fn command(&mut self, word: Vec<u8>, argument: &[u8], out: &mut Out) {
        let is_secret = matches!(&word[..], b"PASS" | b"ACCT" | b"ADAT");
        let mut exchange = Exchange { argument: argument.to_vec(), ..Exchange::default() };
        let kind = match &word[..] {
            b"PORT" | b"LPRT" | b"EPRT" => {
                let announced = if word == b"PORT" { address::six(argument) } else { address::extended(argument) };
                exchange.data_port = announced.map(|address| address.port());
                match announced {
                    Some(address) => Kind::Active(address),
                    // LPRT (RFC 1639) is in use nowhere.
                    None => Kind::Plain,
                }
            }
            b"PASV" | b"EPSV" => Kind::Passive,
            b"AUTH" if is_tls(argument) => Kind::AuthTls,
            b"RETR" | b"STOR" | b"STOU" | b"APPE" | b"LIST" | b"NLST" | b"MLSD" => Kind::Transfer,
            _ => Kind::Plain,
        };
        if matches!(&word[..], b"PORT" | b"EPRT") && kind == Kind::Plain {
            out.odd(Side::Client, "ftp.bad_address");
        }
        if is_secret {
            exchange.argument = Vec::new();
        }
        exchange.command = word;
        if kind == Kind::AuthTls {
            self.grant.ask();
        }
        let exchange = Arc::new(exchange);
        let tx = self.new_tx();
        out.tell(tx, Stage::Asked, Fact::Ftp(exchange.clone()));
        self.await_reply(kind, tx, exchange, out);
        if kind == Kind::Transfer {
            self.expect(out);
        }
    }

    fn new_tx(&mut self) -> u32 {
        let tx = self.next_tx;
        self.next_tx = tx.wrapping_add(1);
        tx
    }

    /// Tells of the connection to come, with what it will carry if that was asked already.
    fn expect(&mut self, out: &mut Out) {
        let Some((server, opener)) = self.channel else { return };
        let asked = self.pending.iter().find(|pending| pending.kind == Kind::Transfer);
        let transfer = asked.map_or_else(Transfer::default, |pending| Transfer {
            command: pending.exchange.command.clone(),
            file: pending.exchange.argument.clone(),
            bytes: 0,
        });
        out.expected.push(Expected { server, opener, transfer: Arc::new(transfer) });
    }

    fn await_reply(&mut self, kind: Kind, tx: u32, exchange: Arc<Exchange>, out: &mut Out) {
        self.pending_bytes += size_of_command(&exchange);
        self.pending.push_back(Pending { kind, tx, exchange, reply_bytes: 0 });
        while self.pending.len() > PENDING_MAX || self.pending_bytes > PENDING_BYTES_MAX {
            out.odd(Side::Client, "ftp.many_commands");
            self.forgotten += 1;
            match self.pop_pending() {
                Some(oldest) => self.give_up(oldest, out),
                None => break,
            }
        }
    }

    fn pop_pending(&mut self) -> Option<Pending> {
        let oldest = self.pending.pop_front()?;
        self.pending_bytes -= size_of_command(&oldest.exchange);
        Some(oldest)
    }

    /// Its reply will not be seen, or not to its end.
    fn give_up(&mut self, pending: Pending, out: &mut Out) {
        if pending.kind == Kind::AuthTls {
            self.grant.lose();
        }
        if pending.kind != Kind::Junk {
            out.tell(pending.tx, Stage::Done, Fact::Ftp(pending.exchange));
        }
    }

    fn give_up_replies(&mut self, out: &mut Out) {
        self.forgotten = 0;
        self.open_reply = None;
        while let Some(oldest) = self.pop_pending() {
            self.give_up(oldest, out);
        }
    }
}

/// Bytes that a command takes, about, without its reply.
fn size_of_command(exchange: &Exchange) -> usize {
    size_of::<Exchange>() + exchange.command.len() + exchange.argument.len()
}

/// Mechanisms that mean TLS (RFC 4217, 4; the others by its drafts).
fn is_tls(argument: &[u8]) -> bool {
    [&b"TLS"[..], b"TLS-C", b"TLS-P", b"SSL"].iter().any(|name| name.eq_ignore_ascii_case(argument.trim_ascii()))
}

/// A command line without the commands of Telnet (RFC 854) that clients put in front of ABOR (RFC 959, 4.1.3).
fn without_telnet(line: &[u8]) -> Cow<'_, [u8]> {
    const IAC: u8 = 255;
    if memchr::memchr(IAC, line).is_none() {
        return Cow::Borrowed(line);
    }
    let mut plain = Vec::with_capacity(line.len());
    let mut rest = line;
    while let [byte, behind @ ..] = rest {
        rest = match (byte, behind) {
            // Doubled: the byte itself.
            (&IAC, [IAC, behind @ ..]) => {
                plain.push(IAC);
                behind
            }
            // WILL, WONT, DO, DONT and an option.
            (&IAC, [251..=254, behind @ ..]) => behind.get(1..).unwrap_or_default(),
            (&IAC, [240..=250, behind @ ..]) => behind,
            _ => {
                plain.push(*byte);
                behind
            }
        };
    }
    Cow::Owned(plain)
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

    fn reply_line(&mut self, line: &[u8], out: &mut Out) {
        let (code, end) = match line {
            [a, b, c, rest @ ..] if [a, b, c].iter().all(|byte| byte.is_ascii_digit()) => {
                (Some([*a, *b, *c]), rest.first())
            }
            _ => (None, None),
        };
        match (self.open_reply, code) {
            (Some(open), Some(code)) if open == code && matches!(end, None | Some(b' ')) => {
                self.open_reply = None;
                self.add_line(Some(code), line.get(4..).unwrap_or_default(), out);
                self.reply_ends(code, out);
            }
            (Some(open), _) => {
                let own = code.filter(|code| *code == open && end == Some(&b'-'));
                self.add_line(own, if own.is_some() { &line[4..] } else { line }, out);
            }
            (None, Some(code)) if matches!(end, None | Some(b' ' | b'-')) => {
                self.reply_begins(code);
                self.add_line(Some(code), line.get(4..).unwrap_or_default(), out);
                match end {
                    Some(b'-') => self.open_reply = Some(code),
                    _ => self.reply_ends(code, out),
                }
            }
            (None, _) => out.odd(Side::Server, "ftp.bad_reply"),
        }
    }

    /// Sees to it that there is something which the reply belongs to: the greeting, and a reply that no command was
    /// seen for, are transactions of their own.
    fn reply_begins(&mut self, code: [u8; 3]) {
        let is_greeting = !mem::replace(&mut self.is_greeted, true) && matches!(&code, b"120" | b"220" | b"421");
        if is_greeting || self.pending.is_empty() && self.forgotten == 0 {
            let tx = self.new_tx();
            let exchange = Arc::new(Exchange::default());
            self.pending_bytes += size_of_command(&exchange);
            self.pending.push_front(Pending { kind: Kind::Plain, tx, exchange, reply_bytes: 0 });
        }
    }

    fn add_line(&mut self, code: Option<[u8; 3]>, text: &[u8], out: &mut Out) {
        if self.forgotten > 0 {
            return;
        }
        let Some(front) = self.pending.front_mut() else { return };
        let size = size_of::<Vec<u8>>() + text.len();
        if front.exchange.reply.len() < REPLY_LINES_MAX && front.reply_bytes + size <= REPLY_BYTES_MAX {
            front.reply_bytes += size;
            let exchange = Arc::make_mut(&mut front.exchange);
            exchange.reply.push(text.to_vec());
            exchange.codes.extend(code.map(number));
        } else {
            out.odd(Side::Server, "ftp.long_reply");
        }
    }

    fn reply_ends(&mut self, code: [u8; 3], out: &mut Out) {
        // "Positive preliminary": another reply comes (RFC 959, 4.2.1).
        if code[0] == b'1' {
            return;
        }
        if self.forgotten > 0 {
            self.forgotten -= 1;
            return;
        }
        let Some(mut pending) = self.pop_pending() else { return };
        let is_granted = matches!(code[0], b'2' | b'3');
        match pending.kind {
            Kind::Passive if is_granted => self.passive(&mut pending.exchange, code, out),
            Kind::Active(address) if is_granted => {
                self.channel = Some((address, Side::Server));
                self.expect(out);
            }
            // A server listens once; the address of a client stays (RFC 959, 3.2).
            Kind::Transfer if is_granted && self.channel.is_some_and(|(_, opener)| opener == Side::Client) => {
                self.channel = None;
            }
            _ => {}
        }
        if pending.kind != Kind::Junk {
            out.tell(pending.tx, Stage::Done, Fact::Ftp(pending.exchange));
        }
        match pending.kind {
            Kind::AuthTls if is_granted => self.begin_tls(out),
            Kind::AuthTls => {
                let early = self.grant.refuse();
                self.take(Side::Client, &early, out);
            }
            _ => {}
        }
    }

    /// The server says where it listens.
    fn passive(&mut self, exchange: &mut Arc<Exchange>, code: [u8; 3], out: &mut Out) {
        let text = exchange.reply.last().map_or(&b""[..], |line| line);
        let announced = if &code == b"229" { address::extended_of_reply(text) } else { address::six_of_reply(text) };
        // "EPSV ALL" announces nothing (RFC 2428, 4).
        let Some(server) = announced else { return };
        let exchange = Arc::make_mut(exchange);
        exchange.data_port = Some(server.port());
        exchange.is_passive = true;
        self.channel = Some((server, Side::Client));
        self.expect(out);
    }

    /// TLS begins: what comes is not readable any more.
    fn begin_tls(&mut self, out: &mut Out) {
        self.give_up_replies(out);
        self.lines = Default::default();
        let mut inner = self.grant.begin(self.next_tx, out);
        // Who ended before TLS began ends in it, too.
        Side::BOTH.into_iter().filter(|side| self.is_over[*side as usize]).for_each(|side| inner.end(side, out));
        self.inner = Some(inner);
    }
}

fn number(code: [u8; 3]) -> u16 {
    code.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0'))
}
