//! What is known of one side of a connection of HTTP/1.

use super::chunks::Chunks;
use super::head::EndSearch;
use crate::packet::proto::http::body::{Body, Codings};

/// Bytes of room that a side keeps from one head to the next.
const ROOM_KEPT: usize = 4 * 1024;

/// Where a side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Between messages.
    Start,
    /// In a head.
    Head,
    /// In a body, of which so many bytes are left.
    Length(u64),
    /// In a body that ends with the connection.
    UntilClose,
    /// In a body of chunks.
    Chunked,
    /// Behind the last chunk.
    Trailers,
    /// Nobody knows.
    Lost,
    /// Where another protocol starts.
    TunnelStart,
    /// In another protocol.
    Tunnel,
}

/// A side.
pub(super) struct Half {
    pub state: State,
    /// A head, trailers or a line that are not complete.
    pub kept: Vec<u8>,
    pub search: EndSearch,
    /// The head's first line was complete, and looked at.
    pub has_first_line: bool,
    /// While lost: the next byte is a line's first.
    pub is_at_line: bool,
    pub body: Body,
    pub chunks: Chunks,
    /// The exchange whose body it is.
    pub tx: u32,
    /// It asked for HTTP/2.
    pub wants_h2c: bool,
    pub is_ended: bool,
}

impl Default for Half {
    fn default() -> Half {
        Half {
            state: State::Start,
            kept: Vec::new(),
            search: EndSearch::default(),
            has_first_line: false,
            is_at_line: false,
            body: Body::default(),
            chunks: Chunks::default(),
            tx: 0,
            wants_h2c: false,
            is_ended: false,
        }
    }
}

impl Half {
    pub fn start_head(&mut self) {
        self.state = State::Head;
        self.search = EndSearch::default();
        self.has_first_line = false;
        self.kept.clear();
    }

    pub fn start_body(&mut self, state: State, tx: u32, codings: Codings) {
        self.state = state;
        self.tx = tx;
        self.body = Body::new(codings);
        self.chunks = Chunks::default();
    }

    pub fn is_in_body(&self) -> bool {
        matches!(self.state, State::Length(_) | State::UntilClose | State::Chunked | State::Trailers)
    }

    pub fn is_in_tunnel(&self) -> bool {
        matches!(self.state, State::TunnelStart | State::Tunnel)
    }

    pub fn take_kept(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.kept)
    }

    /// Keeps the room of what was taken, if it is modest.
    pub fn give_back(&mut self, mut kept: Vec<u8>) {
        if kept.capacity() <= ROOM_KEPT && self.kept.capacity() == 0 {
            kept.clear();
            self.kept = kept;
        }
    }

    pub fn memory(&self) -> usize {
        self.kept.capacity() + self.body.memory() + self.chunks.memory()
    }
}
