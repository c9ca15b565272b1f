//! A conversation that goes on in another protocol: its parser, inside of the one that it began in.

use super::{AppProto, Out, Parser, Side, parser_for};

/// The parser of what a conversation became. Its transactions are numbered on from those before.
pub(crate) struct Inner {
    /// `None` where no parser is there for it: what it says is passed over.
    parser: Option<Box<dyn Parser>>,
    first_tx: u32,
}

impl Inner {
    /// Goes on as `protocol`, with its first transaction numbered `first_tx`, and tells so.
    pub(crate) fn begin(protocol: AppProto, first_tx: u32, out: &mut Out) -> Inner {
        out.became = Some(protocol);
        Inner { parser: parser_for(protocol), first_tx }
    }

    /// As [`Parser::take`].
    pub(crate) fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        if !bytes.is_empty() {
            self.run(out, |parser, out| parser.take(side, bytes, out));
        }
    }

    /// As [`Parser::skip`].
    pub(crate) fn skip(&mut self, side: Side, missing: u64, out: &mut Out) {
        self.run(out, |parser, out| parser.skip(side, missing, out));
    }

    /// As [`Parser::end`].
    pub(crate) fn end(&mut self, side: Side, out: &mut Out) {
        self.run(out, |parser, out| parser.end(side, out));
    }

    /// As [`Parser::memory`].
    pub(crate) fn memory(&self) -> usize {
        self.parser.as_ref().map_or(0, |parser| parser.memory())
    }

    fn run(&mut self, out: &mut Out, work: impl FnOnce(&mut dyn Parser, &mut Out)) {
        let Some(parser) = &mut self.parser else { return };
        let before = out.told.len();
        work(parser.as_mut(), out);
        for told in &mut out.told[before..] {
            told.tx = told.tx.wrapping_add(self.first_tx);
        }
    }
}
