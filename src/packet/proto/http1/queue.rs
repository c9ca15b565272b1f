//! Exchanges that are not done, in the order of their requests, which is that of their responses (RFC 9112, 9.3.2).

use std::collections::VecDeque;
use std::sync::Arc;

use crate::packet::proto::http::{Exchange, Version};
use crate::packet::proto::{Fact, Out, Side, Stage};

/// Requests that wait for their response. Clients that pipeline send a handful.
pub(super) const PIPELINE_MAX: usize = 64;
/// Bytes of all requests that wait for their response; past it further ones are told, and not waited for.
const PENDING_BYTES_MAX: usize = 256 * 1024;

/// The exchanges of a connection.
#[derive(Default)]
pub(super) struct Queue {
    list: VecDeque<Pending>,
    /// Bytes of their exchanges.
    bytes: usize,
    /// Requests behind the last one that are not waited for.
    untracked: u32,
}

/// An exchange that is not done.
struct Pending {
    tx: u32,
    exchange: Arc<Exchange>,
    bytes: usize,
    /// Requests in front of it that were too many to be waited for: as many responses are not its own.
    untracked_before: u32,
    /// Which sides' parts are over.
    is_over: [bool; 2],
}

impl Queue {
    /// Adds a request; gives it back when there are too many.
    pub fn push(&mut self, tx: u32, exchange: Arc<Exchange>) -> Result<(), Arc<Exchange>> {
        if self.list.len() >= PIPELINE_MAX || self.bytes + exchange.memory() > PENDING_BYTES_MAX {
            self.untracked = self.untracked.saturating_add(1);
            return Err(exchange);
        }
        let untracked_before = std::mem::take(&mut self.untracked);
        self.insert(self.list.len(), Pending { tx, exchange, bytes: 0, untracked_before, is_over: [false; 2] });
        Ok(())
    }

    fn insert(&mut self, at: usize, mut pending: Pending) {
        pending.bytes = pending.exchange.memory();
        self.bytes += pending.bytes;
        self.list.insert(at, pending);
    }

    /// The first exchange whose response is not complete.
    pub fn unanswered(&self) -> Option<(u32, &Exchange)> {
        self.list.iter().find(|pending| !pending.is_over[Side::Server as usize]).map(|each| (each.tx, &*each.exchange))
    }

    /// The last request.
    pub fn last(&self) -> Option<&Exchange> {
        self.list.back().map(|pending| &*pending.exchange)
    }

    /// The exchange that the next response belongs to; one of its own (`new_tx`) when its request is not known.
    pub fn place_of_response(&mut self, version: Version, new_tx: impl FnOnce() -> u32) -> u32 {
        let at = self.list.iter().position(|pending| !pending.is_over[Side::Server as usize]);
        let untracked = match at {
            Some(at) => &mut self.list[at].untracked_before,
            None => &mut self.untracked,
        };
        if let (Some(at), 0) = (at, *untracked) {
            return self.list[at].tx;
        }
        *untracked = untracked.saturating_sub(1);
        let tx = new_tx();
        let exchange = Arc::new(Exchange { version, ..Exchange::default() });
        let alone = Pending { tx, exchange, bytes: 0, untracked_before: 0, is_over: [true, false] };
        self.insert(at.unwrap_or(self.list.len()), alone);
        tx
    }

    /// Changes an exchange that is here.
    pub fn change<T>(&mut self, tx: u32, change: impl FnOnce(&mut Exchange) -> T) -> Option<T> {
        let pending = self.list.iter_mut().find(|pending| pending.tx == tx)?;
        let changed = change(Arc::make_mut(&mut pending.exchange));
        let bytes = pending.exchange.memory();
        self.bytes = self.bytes + bytes - pending.bytes;
        pending.bytes = bytes;
        Some(changed)
    }

    /// A side's part of an exchange is over; it is told if both are.
    pub fn part_over(&mut self, tx: u32, role: Side, out: &mut Out) {
        let Some(at) = self.list.iter().position(|pending| pending.tx == tx) else { return };
        self.list[at].is_over[role as usize] = true;
        if self.list[at].is_over == [true; 2] {
            self.tell(at, out);
        }
    }

    /// A side sends no more; with `is_all` neither does the other.
    pub fn side_over(&mut self, role: Side, is_all: bool, out: &mut Out) {
        let mut at = 0;
        while let Some(pending) = self.list.get_mut(at) {
            // Requests whose client is silent still wait for their answers; responses will not come any more.
            pending.is_over[Side::Server as usize] |= role == Side::Server;
            if is_all || pending.is_over == [true; 2] {
                self.tell(at, out);
            } else {
                at += 1;
            }
        }
    }

    /// Takes an exchange out, which goes on elsewhere.
    pub fn remove(&mut self, tx: u32) -> Option<Arc<Exchange>> {
        let at = self.list.iter().position(|pending| pending.tx == tx)?;
        self.remove_at(at).map(|pending| pending.exchange)
    }

    pub fn memory(&self) -> usize {
        self.list.capacity() * size_of::<Pending>() + self.bytes
    }

    fn tell(&mut self, at: usize, out: &mut Out) {
        if let Some(pending) = self.remove_at(at) {
            out.tell(pending.tx, Stage::Done, Fact::Http(pending.exchange));
        }
    }

    fn remove_at(&mut self, at: usize) -> Option<Pending> {
        let pending = self.list.remove(at)?;
        self.bytes -= pending.bytes;
        // Responses that are not its own are still to come, before those of the next one.
        let next = self.list.get_mut(at).map_or(&mut self.untracked, |next| &mut next.untracked_before);
        *next = next.saturating_add(pending.untracked_before);
        Some(pending)
    }
}
