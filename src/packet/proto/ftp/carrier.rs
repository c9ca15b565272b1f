//! A connection that carries a file or a listing.

use std::sync::Arc;

use super::Transfer;
use crate::packet::proto::{Fact, Out, Parser, Side, Stage};

/// Counts what is carried: the bytes are the file's own, whatever they are.
///
/// It is asked at its first byte: by then the command that says what is carried was given, also where the connection was
/// opened before.
#[derive(Default)]
pub struct Carrier {
    transfer: Arc<Transfer>,
    is_asked: bool,
    has_ended: [bool; 2],
}

impl Carrier {
    /// Of a connection that was expected ([`crate::packet::proto::Expected`]).
    pub fn new(transfer: Arc<Transfer>) -> Carrier {
        Carrier { transfer, ..Carrier::default() }
    }

    fn count(&mut self, bytes: u64, out: &mut Out) {
        if !self.is_asked {
            self.is_asked = true;
            out.tell(0, Stage::Asked, Fact::FtpData(self.transfer.clone()));
        }
        let transfer = Arc::make_mut(&mut self.transfer);
        transfer.bytes = transfer.bytes.saturating_add(bytes);
    }
}

impl Parser for Carrier {
    fn take(&mut self, _: Side, bytes: &[u8], out: &mut Out) {
        self.count(bytes.len() as u64, out);
    }

    fn skip(&mut self, _: Side, missing: u64, out: &mut Out) {
        self.count(missing, out);
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        self.has_ended[side as usize] = true;
        if self.has_ended == [true; 2] {
            out.tell(0, Stage::Done, Fact::FtpData(self.transfer.clone()));
        }
    }

    fn memory(&self) -> usize {
        size_of::<Self>() + size_of::<Transfer>() + self.transfer.command.capacity() + self.transfer.file.capacity()
    }
}
