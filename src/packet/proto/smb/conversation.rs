//! Which response belongs to which request, and what the numbers in them stand for.

use std::collections::VecDeque;
use std::sync::Arc;

use super::frames::{Frames, Reader, Want};
use super::{Exchange, names, v1, v2};
use crate::packet::proto::{Fact, Out, Parser, Side, Stage};

/// Requests that may wait for their responses, and bytes that are kept of them.
const PENDING_MAX: usize = 512;
const PENDING_BYTES_MAX: usize = 128 * 1024;
/// Shares and files whose names are kept, and the bytes of those.
const SHARES_MAX: usize = 64;
const FILES_MAX: usize = 512;
const NAMES_BYTES_MAX: usize = 64 * 1024;
/// `STATUS_PENDING`: the response proper comes later ([MS-SMB2] 3.3.4.2).
const STATUS_PENDING: u32 = 0x103;
/// The number of a file that stands for the one of the request before ([MS-SMB2] 3.3.5.2.7.2).
const SAME_FILE: FileKey = FileKey([0xff; 16]);

/// The number of a file, of SMB 1 with zeros behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileKey([u8; 16]);

impl FileKey {
    /// Of SMB 1, whose numbers never meet those of SMB 2: tree and number.
    fn v1(tree: u16, number: u16) -> FileKey {
        let mut key = [0; 16];
        key[..2].copy_from_slice(&number.to_le_bytes());
        key[2..4].copy_from_slice(&tree.to_le_bytes());
        FileKey(key)
    }
}

/// What numbers stand for. When there are too many, the oldest are forgotten.
#[derive(Debug)]
struct Names<K> {
    entries: VecDeque<(K, String)>,
    bytes: usize,
    count_max: usize,
}

impl<K: PartialEq> Names<K> {
    fn new(count_max: usize) -> Names<K> {
        Names { entries: VecDeque::new(), bytes: 0, count_max }
    }

    fn add(&mut self, key: K, name: String, out: &mut Out) {
        self.remove(&key);
        self.bytes += name.len();
        self.entries.push_back((key, name));
        while self.entries.len() > self.count_max || self.bytes > NAMES_BYTES_MAX {
            let Some((_, oldest)) = self.entries.pop_front() else { break };
            self.bytes -= oldest.len();
            out.odd(Side::Server, "smb.many_names");
        }
    }

    /// The newest stand last, and are asked for most.
    fn get(&self, key: &K) -> Option<&String> {
        self.entries.iter().rev().find(|(each, _)| each == key).map(|(_, name)| name)
    }

    fn remove(&mut self, key: &K) {
        if let Some((_, name)) =
            self.entries.iter().rposition(|(each, _)| each == key).and_then(|at| self.entries.remove(at))
        {
            self.bytes -= name.len();
        }
    }

    fn memory(&self) -> usize {
        self.entries.capacity() * size_of::<(K, String)>() + self.bytes
    }
}

/// What a response tells of by its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    V1(u8),
    V2(u16),
}

#[derive(Debug)]
struct Pending {
    kind: Kind,
    message: u64,
    tx: u32,
    /// The file that the request is about.
    file: Option<FileKey>,
    exchange: Arc<Exchange>,
}

/// Reads a conversation of SMB.
#[derive(Default)]
pub struct Conversation {
    frames: [Frames; 2],
    talk: Talk,
    /// The server sends no more.
    is_server_over: bool,
}

impl Parser for Conversation {
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Out) {
        let mut reader = SideReader { talk: &mut self.talk, side, out };
        self.frames[side as usize].take(bytes, &mut reader);
    }

    fn skip(&mut self, side: Side, missing: u64, _: &mut Out) {
        self.frames[side as usize].skip(missing);
    }

    fn end(&mut self, side: Side, out: &mut Out) {
        // Responses may still come when the client is silent; without a server nothing will.
        self.is_server_over |= side == Side::Server;
        if self.is_server_over {
            while let Some(pending) = self.talk.remove(0) {
                self.talk.done(pending, None, out);
            }
        }
    }

    fn memory(&self) -> usize {
        let frames: usize = self.frames.iter().map(Frames::memory).sum();
        let talk = &self.talk;
        let pending = talk.pending.capacity() * size_of::<Pending>() + talk.pending_bytes;
        size_of::<Self>() + frames + pending + talk.shares.memory() + talk.files.memory()
    }
}

/// Reads what one side sends.
struct SideReader<'a> {
    talk: &'a mut Talk,
    side: Side,
    out: &'a mut Out,
}

impl Reader for SideReader<'_> {
    fn want(&mut self, start: &[u8], left: usize) -> Want {
        if left < 4 {
            self.odd("smb.bad_header");
            return Want::Nothing;
        }
        if start.len() < 4 {
            return Want::More(4);
        }
        let is_request = self.side == Side::Client;
        let want = match &start[..4] {
            b"\xffSMB" => v1::want(start, left, is_request),
            b"\xfeSMB" => v2::want(start, left, is_request),
            // Encrypted, compressed ([MS-SMB2] 2.2.41, 2.2.42).
            b"\xfdSMB" | b"\xfcSMB" => Some(Want::Nothing),
            _ => None,
        };
        want.unwrap_or_else(|| {
            self.odd("smb.bad_header");
            Want::Nothing
        })
    }

    fn read(&mut self, head: &[u8], is_first: bool) {
        match (head.first(), self.side) {
            (Some(0xff), _) => {
                if let Some(header) = v1::header(head) {
                    self.v1(header, head);
                }
            }
            (_, side) => {
                let Some(header) = v2::header(head) else { return };
                if header.is_response != (side == Side::Server) {
                    self.odd("smb.wrong_direction");
                }
                match side {
                    Side::Client => self.talk.request_v2(header, head, is_first, self.out),
                    Side::Server => self.talk.response_v2(header, head, self.out),
                }
            }
        }
    }

    fn odd(&mut self, name: &'static str) {
        self.out.odd(self.side, name);
    }
}

impl SideReader<'_> {
    fn v1(&mut self, header: v1::Header, head: &[u8]) {
        if header.is_response != (self.side == Side::Server) {
            self.odd("smb.wrong_direction");
        }
        match self.side {
            Side::Client => {
                for block in v1::blocks(header, head) {
                    self.talk.request_v1(header, block, self.out);
                }
            }
            Side::Server => self.talk.response_v1(header, head, self.out),
        }
    }
}

/// What is known of the conversation.
struct Talk {
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    next_tx: u32,
    dialect: String,
    shares: Names<(u64, u32)>,
    files: Names<FileKey>,
    /// Session, tree and file of the request before in a chain.
    before: (u64, u32, Option<String>),
}

impl Default for Talk {
    fn default() -> Talk {
        Talk {
            pending: VecDeque::new(),
            pending_bytes: 0,
            next_tx: 0,
            dialect: String::new(),
            shares: Names::new(SHARES_MAX),
            files: Names::new(FILES_MAX),
            before: (0, 0, None),
        }
    }
}

/// Bytes of an exchange, about.
fn size_of_exchange(exchange: &Exchange) -> usize {
    let texts = [&exchange.share, &exchange.file, &exchange.rename_to];
    let user = exchange.user.as_ref().map_or(0, |(user, domain)| user.len() + domain.len());
    let offered: usize = exchange.offered.iter().map(|dialect| size_of::<String>() + dialect.len()).sum();
    size_of::<Exchange>() + texts.into_iter().flatten().map(String::len).sum::<usize>() + user + offered
}

impl Talk {
    fn new_tx(&mut self) -> u32 {
        let tx = self.next_tx;
        self.next_tx = tx.wrapping_add(1);
        tx
    }

    /// A request: told, and kept until its response is there.
    fn ask(&mut self, kind: Kind, message: u64, file: Option<FileKey>, exchange: Exchange, out: &mut Out) {
        let exchange = Arc::new(exchange);
        let tx = self.new_tx();
        out.tell(tx, Stage::Asked, Fact::Smb(exchange.clone()));
        let pending = Pending { kind, message, tx, file, exchange };
        // What cancels has no response ([MS-SMB2] 3.3.5.16, [MS-CIFS] 2.2.4.65).
        if matches!(kind, Kind::V2(v2::CANCEL) | Kind::V1(v1::NT_CANCEL)) {
            return self.done(pending, None, out);
        }
        self.pending_bytes += size_of_exchange(&pending.exchange);
        self.pending.push_back(pending);
        while self.pending.len() > PENDING_MAX || self.pending_bytes > PENDING_BYTES_MAX {
            out.odd(Side::Client, "smb.many_requests");
            let Some(oldest) = self.remove(0) else { break };
            self.done(oldest, None, out);
        }
    }

    fn remove(&mut self, at: usize) -> Option<Pending> {
        let pending = self.pending.remove(at)?;
        self.pending_bytes -= size_of_exchange(&pending.exchange);
        Some(pending)
    }

    /// The request that a response answers.
    fn answered(&mut self, kind: Kind, message: u64) -> Option<Pending> {
        let at = self.pending.iter().position(|pending| pending.message == message && pending.kind == kind)?;
        self.remove(at)
    }

    fn done(&mut self, pending: Pending, status: Option<u32>, out: &mut Out) {
        let Pending { tx, mut exchange, .. } = pending;
        if status.is_some() {
            Arc::make_mut(&mut exchange).status = status;
        }
        out.tell(tx, Stage::Done, Fact::Smb(exchange));
    }

    /// A response to a request that was not seen.
    fn unasked(&mut self, exchange: Exchange, out: &mut Out) {
        let tx = self.new_tx();
        out.tell(tx, Stage::Done, Fact::Smb(Arc::new(exchange)));
    }
}

/// SMB 2 and 3.
impl Talk {
    fn request_v2(&mut self, header: v2::Header, message: &[u8], is_first: bool, out: &mut Out) {
        let request = v2::request(header.command, message);
        if request.is_cut {
            out.odd(Side::Client, "smb.long_name");
        }
        let (mut session, mut tree) = (header.session, header.tree);
        if is_first {
            self.before.2 = None;
        } else if header.is_related {
            (session, tree) = (self.before.0, self.before.1);
        }
        let key = request.file_id.map(FileKey);
        let file = match key {
            Some(SAME_FILE) => self.before.2.clone(),
            Some(key) => self.files.get(&key).cloned(),
            None => request.file,
        };
        if file.is_some() {
            self.before.2.clone_from(&file);
        }
        (self.before.0, self.before.1) = (session, tree);
        let share = request.share.or_else(|| self.shares.get(&(session, tree)).cloned());
        let exchange = Exchange {
            command: names::command_v2(header.command),
            dialect: self.dialect.clone(),
            offered: request.offered,
            status: None,
            session,
            tree,
            share,
            file,
            rename_to: request.rename_to,
            user: request.user,
        };
        self.ask(Kind::V2(header.command), header.message, key, exchange, out);
    }

    fn response_v2(&mut self, header: v2::Header, message: &[u8], out: &mut Out) {
        // The answer proper comes later.
        if header.is_async && header.status == STATUS_PENDING {
            return;
        }
        let is_ok = header.status == 0;
        if header.command == v2::NEGOTIATE && is_ok {
            self.dialect = v2::dialect(message).unwrap_or_default();
        }
        let kind = Kind::V2(header.command);
        let mut found = self.answered(kind, header.message);
        // A client that knows both versions asks in the older one, and is answered in the newer ([MS-SMB2] 3.3.5.3.1).
        if found.is_none() && header.command == v2::NEGOTIATE {
            let at = self.pending.iter().position(|pending| pending.kind == Kind::V1(v1::NEGOTIATE));
            found = at.and_then(|at| self.remove(at));
        }
        let Some(mut pending) = found else {
            let exchange = Exchange {
                command: names::command_v2(header.command),
                dialect: self.dialect.clone(),
                status: Some(header.status),
                session: header.session,
                tree: header.tree,
                share: self.shares.get(&(header.session, header.tree)).cloned(),
                ..Exchange::default()
            };
            return self.unasked(exchange, out);
        };
        if is_ok {
            self.learn_v2(header, message, &mut pending, out);
        }
        self.done(pending, Some(header.status), out);
    }

    /// What a response that grants something says.
    fn learn_v2(&mut self, header: v2::Header, message: &[u8], pending: &mut Pending, out: &mut Out) {
        match header.command {
            v2::NEGOTIATE => Arc::make_mut(&mut pending.exchange).dialect.clone_from(&self.dialect),
            v2::SESSION_SETUP => Arc::make_mut(&mut pending.exchange).session = header.session,
            v2::TREE_CONNECT => {
                let exchange = Arc::make_mut(&mut pending.exchange);
                exchange.tree = header.tree;
                if let Some(share) = &exchange.share {
                    self.shares.add((exchange.session, header.tree), share.clone(), out);
                }
            }
            v2::TREE_DISCONNECT => self.shares.remove(&(pending.exchange.session, pending.exchange.tree)),
            v2::CREATE => {
                if let (Some(id), Some(name)) = (v2::created(message), &pending.exchange.file) {
                    self.files.add(FileKey(id), name.clone(), out);
                }
            }
            v2::CLOSE => {
                if let Some(key) = pending.file {
                    self.files.remove(&key);
                }
            }
            v2::LOGOFF => self.shares.entries.retain(|((session, _), _)| *session != pending.exchange.session),
            _ => {}
        }
    }
}

/// SMB 1.
impl Talk {
    fn request_v1(&mut self, header: v1::Header, block: v1::Block<'_>, out: &mut Out) {
        let request = v1::request(block);
        let (session, tree) = (u64::from(header.user), u32::from(header.tree));
        let key = request.file_id.map(|number| FileKey::v1(header.tree, number));
        let file = request.file.or_else(|| key.and_then(|key| self.files.get(&key).cloned()));
        let share = request.share.or_else(|| self.shares.get(&(0, tree)).cloned());
        let exchange = Exchange {
            command: names::command_v1(block.command),
            dialect: self.dialect.clone(),
            offered: request.offered,
            status: None,
            session,
            tree,
            share,
            file,
            rename_to: request.rename_to,
            user: request.user,
        };
        self.ask(Kind::V1(block.command), header.message, key, exchange, out);
    }

    fn response_v1(&mut self, header: v1::Header, message: &[u8], out: &mut Out) {
        let mut is_known = false;
        for block in v1::blocks(header, message) {
            if let Some(mut pending) = self.answered(Kind::V1(block.command), header.message) {
                is_known = true;
                if header.status == 0 {
                    self.learn_v1(header, block, &mut pending, out);
                }
                self.done(pending, Some(header.status), out);
            }
        }
        if header.status != 0 && is_known {
            self.end_chain(header, out);
        }
        // Answers in several parts have one request (TRANS2, NT_TRANS).
        let is_part = matches!(header.command, 0x25 | 0x32 | 0xa0);
        if !is_known && !is_part {
            let exchange = Exchange {
                command: names::command_v1(header.command),
                dialect: self.dialect.clone(),
                status: Some(header.status),
                session: header.user.into(),
                tree: header.tree.into(),
                share: self.shares.get(&(0, header.tree.into())).cloned(),
                ..Exchange::default()
            };
            self.unasked(exchange, out);
        }
    }

    /// An error ends a chain: its later commands are not answered.
    fn end_chain(&mut self, header: v1::Header, out: &mut Out) {
        let is_same = |pending: &Pending| matches!(pending.kind, Kind::V1(_)) && pending.message == header.message;
        while let Some(pending) = self.pending.iter().position(is_same).and_then(|at| self.remove(at)) {
            self.done(pending, Some(header.status), out);
        }
    }

    /// What a response that grants something says.
    fn learn_v1(&mut self, header: v1::Header, block: v1::Block<'_>, pending: &mut Pending, out: &mut Out) {
        let tree = u32::from(header.tree);
        match block.command {
            v1::NEGOTIATE => {
                let chosen = v1::chosen(block).and_then(|number| pending.exchange.offered.get(number).cloned());
                self.dialect = chosen.unwrap_or_default();
                Arc::make_mut(&mut pending.exchange).dialect.clone_from(&self.dialect);
            }
            v1::SESSION_SETUP => Arc::make_mut(&mut pending.exchange).session = header.user.into(),
            v1::TREE_CONNECT | v1::TREE_CONNECT_ANDX => {
                let exchange = Arc::make_mut(&mut pending.exchange);
                exchange.tree = tree;
                if let Some(share) = &exchange.share {
                    self.shares.add((0, tree), share.clone(), out);
                }
            }
            v1::TREE_DISCONNECT => self.shares.remove(&(0, tree)),
            v1::CLOSE => {
                if let Some(key) = pending.file {
                    self.files.remove(&key);
                }
            }
            _ => {
                if let (Some(number), Some(name)) = (v1::created(block), &pending.exchange.file) {
                    self.files.add(FileKey::v1(header.tree, number), name.clone(), out);
                }
            }
        }
    }
}
