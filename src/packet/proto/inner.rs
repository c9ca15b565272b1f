//! A conversation that goes on in another protocol: its parser, inside of the one that it began in, and for those
//! that ask for TLS by a command, when it begins.

use std::mem;

use super::{AppProto, Out, Parser, Side, parser_for};

/// Bytes of TLS that are kept when they are seen before the reply that grants it.
const EARLY_MAX: usize = 16 * 1024;

/// What the client's bytes are, where it may have asked for TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// What they were before.
    Plain,
    /// TLS: [`Grant::begin`] is to be called.
    Tls,
    /// They were taken, to wait for the reply.
    Held,
}

/// TLS that a client asked for by a command (STARTTLS, AUTH TLS).
#[derive(Debug, Default)]
pub(crate) struct Grant {
    /// The reply is to come.
    is_asked: bool,
    /// Replies are missing, one of which may have granted it.
    is_likely: bool,
    early: Vec<u8>,
}

impl Grant {
    /// The command was seen.
    pub(crate) fn ask(&mut self) {
        self.is_asked = true;
    }

    /// Whether the reply is to come.
    pub(crate) fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// What the client's next bytes are. A record of TLS where a command would begin was seen before the reply that
    /// grants it, or that reply is missing.
    pub(crate) fn next(&mut self, is_at_start: bool, rest: &mut &[u8]) -> Next {
        let is_record = is_at_start && rest.first() == Some(&0x16);
        if !self.early.is_empty() || is_record && self.is_asked {
            let room = EARLY_MAX - self.early.len();
            self.early.extend_from_slice(&rest[..rest.len().min(room)]);
            *rest = &[];
            return Next::Held;
        }
        if is_record && self.is_likely { Next::Tls } else { Next::Plain }
    }

    /// Its reply will not be seen. True when TLS has begun nevertheless.
    pub(crate) fn lose(&mut self) -> bool {
        self.is_likely |= mem::take(&mut self.is_asked);
        !self.early.is_empty()
    }

    /// It was refused: what was held is plain.
    pub(crate) fn refuse(&mut self) -> Vec<u8> {
        self.is_asked = false;
        mem::take(&mut self.early)
    }

    /// It begins.
    pub(crate) fn begin(&mut self, first_tx: u32, out: &mut Out) -> Inner {
        let mut inner = Inner::begin(AppProto::Tls, first_tx, out);
        inner.take(Side::Client, &mem::take(&mut self.early), out);
        inner
    }

    /// Bytes that it keeps, about.
    pub(crate) fn memory(&self) -> usize {
        self.early.capacity()
    }
}

/// A parser whose transactions are numbered on from those that were told before it.
pub(crate) struct Renumbered {
    pub parser: Box<dyn Parser>,
    pub first_tx: u32,
}

impl Renumbered {
    fn run(&mut self, out: &mut Out, work: impl FnOnce(&mut dyn Parser, &mut Out)) {
        let before = out.told.len();
        work(&mut *self.parser, out);
        for told in &mut out.told[before..] {
            told.tx = told.tx.wrapping_add(self.first_tx);
        }
    }
}

impl Parser for Renumbered {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        self.run(out, |parser, out| parser.take(side, bytes, out));
    }

    fn skip(&mut self, side: Side, missing: u64, out: &mut Out) {
        self.run(out, |parser, out| parser.skip(side, missing, out));
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        self.run(out, |parser, out| parser.end(side, out));
    }

    fn memory(&self) -> usize {
        size_of::<Renumbered>() + self.parser.memory()
    }
}

/// The parser of what a conversation became; none where what it says is passed over.
pub(crate) struct Inner(Option<Renumbered>);

impl Inner {
    /// Goes on as `protocol`, with its first transaction numbered `first_tx`, and tells so.
    pub(crate) fn begin(protocol: AppProto, first_tx: u32, out: &mut Out) -> Inner {
        out.became = Some(protocol);
        Inner(parser_for(protocol).map(|parser| Renumbered { parser, first_tx }))
    }

    /// As [`Parser::take`].
    pub(crate) fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        if let Some(parser) = self.0.as_mut().filter(|_| !bytes.is_empty()) {
            parser.take(side, bytes, out);
        }
    }

    /// As [`Parser::skip`].
    pub(crate) fn skip(&mut self, side: Side, missing: u64, out: &mut Out) {
        if let Some(parser) = &mut self.0 {
            parser.skip(side, missing, out);
        }
    }

    /// As [`Parser::end`].
    pub(crate) fn end(&mut self, side: Side, out: &mut Out) {
        if let Some(parser) = &mut self.0 {
            parser.end(side, out);
        }
    }

    /// As [`Parser::memory`].
    pub(crate) fn memory(&self) -> usize {
        self.0.as_ref().map_or(0, Renumbered::memory)
    }
}
