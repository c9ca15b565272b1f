//! Messages of SMB 1 ([MS-CIFS] 2.2).

use super::frames::Want;
use super::names::{Fields, utf16};
use super::ntlm;

/// Length of the header, and of it with the count of words.
const HEADER: usize = 32;
/// Dialects of a negotiation that are kept, and bytes of each.
const DIALECTS_MAX: usize = 32;
const DIALECT_MAX: usize = 64;
/// Commands that one message may chain.
const CHAIN_MAX: usize = 8;

pub(super) const CREATE: u8 = 0x03;
pub(super) const OPEN: u8 = 0x02;
pub(super) const CLOSE: u8 = 0x04;
const RENAME: u8 = 0x07;
const TRANSACTION: u8 = 0x25;
pub(super) const OPEN_ANDX: u8 = 0x2d;
const TRANSACTION2: u8 = 0x32;
pub(super) const TREE_CONNECT: u8 = 0x70;
pub(super) const TREE_DISCONNECT: u8 = 0x71;
pub(super) const NEGOTIATE: u8 = 0x72;
pub(super) const SESSION_SETUP: u8 = 0x73;
pub(super) const TREE_CONNECT_ANDX: u8 = 0x75;
pub(super) const NT_CREATE: u8 = 0xa2;
pub(super) const NT_CANCEL: u8 = 0xa4;

/// The header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub command: u8,
    pub status: u32,
    pub is_response: bool,
    is_unicode: bool,
    pub tree: u16,
    pub user: u16,
    /// Multiplex and process id: what matches a response to its request.
    pub message: u64,
}

/// Reads the header.
pub(super) fn header(message: &[u8]) -> Option<Header> {
    let fields = Fields(message);
    let flags2 = fields.u16(10)?;
    let process = u64::from(fields.u16(12)?) << 16 | u64::from(fields.u16(26)?);
    Some(Header {
        command: fields.u8(4)?,
        status: fields.u32(5)?,
        is_response: fields.u8(9)? & 0x80 != 0,
        is_unicode: flags2 & 0x8000 != 0,
        tree: fields.u16(24)?,
        user: fields.u16(28)?,
        message: process << 16 | u64::from(fields.u16(30)?),
    })
}

/// What is wanted of a message that begins with the magic of SMB 1. `None` if it is none.
pub(super) fn want(start: &[u8], left: usize, is_request: bool) -> Option<Want> {
    if left < HEADER + 3 {
        return None;
    }
    if start.len() < HEADER {
        return Some(Want::More(HEADER));
    }
    let body = match (start[4], is_request) {
        // A security blob.
        (SESSION_SETUP, true) => 16 * 1024,
        // What is read and written is not wanted.
        (0x0b | 0x14 | 0x1d..=0x1f | 0x2c | 0x2f, true) => 64,
        (_, true) => 4 * 1024,
        (_, false) => 128,
    };
    let head = left.min(HEADER + body);
    Some(if start.len() < head { Want::More(head) } else { Want::Head { head, length: left } })
}

/// One command of a message, which may chain several ("AndX").
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub command: u8,
    fields: Fields<'a>,
    /// Where its words begin, and how many bytes they are.
    words_at: usize,
    words: usize,
    is_unicode: bool,
}

/// The commands of a message.
pub(super) fn blocks(header: Header, message: &[u8]) -> Vec<Block<'_>> {
    let fields = Fields(message);
    let mut blocks = Vec::new();
    let (mut command, mut at) = (header.command, HEADER);
    while blocks.len() < CHAIN_MAX {
        let Some(count) = fields.u8(at) else { break };
        let block =
            Block { command, fields, words_at: at + 1, words: 2 * usize::from(count), is_unicode: header.is_unicode };
        blocks.push(block);
        let is_chained =
            matches!(command, 0x24 | OPEN_ANDX | 0x2e | 0x2f | SESSION_SETUP..=TREE_CONNECT_ANDX | NT_CREATE);
        let (Some(next), Some(offset)) = (block.word_u8(0), block.word(2)) else { break };
        // Forwards only: so that it ends.
        if !is_chained || next == 0xff || usize::from(offset) <= at {
            break;
        }
        (command, at) = (next, offset.into());
    }
    blocks
}

impl<'a> Block<'a> {
    fn is_word(self, at: usize, size: usize) -> bool {
        at + size <= self.words
    }

    fn word_u8(self, at: usize) -> Option<u8> {
        self.is_word(at, 1).then(|| self.fields.u8(self.words_at + at))?
    }

    /// The number at byte `at` of its words.
    fn word(self, at: usize) -> Option<u16> {
        self.is_word(at, 2).then(|| self.fields.u16(self.words_at + at))?
    }

    /// Where its bytes begin and how many it says there are.
    fn bytes_at(self) -> (usize, usize) {
        let at = self.words_at + self.words;
        (at + 2, self.fields.u16(at).map_or(0, usize::from))
    }

    /// A text at a place of the message, up to its end or `length` bytes; in UTF-16 it begins at an even place.
    /// Where it ends is said beside it.
    fn text(self, at: usize, length: usize) -> (String, usize) {
        if !self.is_unicode {
            let bytes = self.fields.at_most(at, length);
            let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
            return (String::from_utf8_lossy(&bytes[..end]).into_owned(), at + end + 1);
        }
        let start = at + at % 2;
        let bytes = self.fields.at_most(start, length.saturating_sub(at % 2));
        let end = bytes.chunks_exact(2).position(|unit| unit == [0, 0]).map_or(bytes.len() & !1, |unit| 2 * unit);
        (utf16(&bytes[..end]), start + end + 2)
    }

    /// A text behind a byte that says its kind (4: a name), and where it ends.
    fn tagged(self, at: usize, end: usize) -> Option<(String, usize)> {
        let is_name = at < end && self.fields.u8(at) == Some(4);
        is_name.then(|| self.text(at + 1, end - at - 1))
    }
}

/// What a command says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub offered: Vec<String>,
    pub share: Option<String>,
    pub file: Option<String>,
    pub rename_to: Option<String>,
    pub file_id: Option<u16>,
    pub user: Option<(String, String)>,
}

/// Reads a command of a request.
pub(super) fn request(block: Block<'_>) -> Request {
    let (at, length) = block.bytes_at();
    let end = at.saturating_add(length);
    let mut request = Request::default();
    match block.command {
        NEGOTIATE => request.offered = dialects(block.fields.at_most(at, length)),
        SESSION_SETUP => request.user = login(block, at, length),
        TREE_CONNECT => request.share = block.tagged(at, end).map(|(share, _)| share),
        TREE_CONNECT_ANDX => {
            let password = block.word(6).map_or(0, usize::from);
            request.share = Some(block.text(at + password, length.saturating_sub(password)).0);
        }
        NT_CREATE => {
            let name = block.word(5).map_or(0, usize::from);
            // Its length is said without the byte that aligns it.
            request.file = Some(block.text(at, name + usize::from(block.is_unicode && at % 2 != 0)).0);
        }
        OPEN_ANDX | TRANSACTION => request.file = Some(block.text(at, length).0),
        // Names of files and folders.
        0x00..=0x03 | 0x06..=0x09 | 0x0e | 0x0f | 0x10 | 0x80..=0x82 | 0xa5 => {
            let first = block.tagged(at, end);
            if let (RENAME | 0xa5, Some((_, behind))) = (block.command, &first) {
                request.rename_to = block.tagged(*behind, end).map(|(name, _)| name);
            }
            request.file = first.map(|(name, _)| name);
        }
        TRANSACTION2 => request.file = transaction2(block),
        // Numbers of files.
        CLOSE | 0x05 | 0x0a..=0x0d | 0x12..=0x14 | 0x1a | 0x1d | 0x22 | 0x23 | 0x2c => request.file_id = block.word(0),
        0x24 | 0x2e | 0x2f => request.file_id = block.word(4),
        _ => {}
    }
    request
}

/// Dialects that are offered: each behind a byte 2, with a zero at its end ([MS-CIFS] 2.2.4.52.1).
fn dialects(bytes: &[u8]) -> Vec<String> {
    let each = bytes.split(|byte| *byte == 0).filter_map(|text| text.strip_prefix(b"\x02"));
    each.take(DIALECTS_MAX)
        .map(|text| String::from_utf8_lossy(&text[..text.len().min(DIALECT_MAX)]).into_owned())
        .collect()
}

/// Who logs in: in a security blob, or beside the passwords of a form without one ([MS-CIFS] 2.2.4.53.1).
fn login(block: Block<'_>, at: usize, length: usize) -> Option<(String, String)> {
    if block.words != 26 {
        return ntlm::user(block.fields.at_most(at, length));
    }
    let passwords = usize::from(block.word(14)?) + usize::from(block.word(16)?);
    let end = at + length;
    let start = at + passwords;
    let (user, behind) = block.text(start, end.checked_sub(start)?);
    let (domain, _) = block.text(behind, end.saturating_sub(behind));
    (!user.is_empty()).then_some((user, domain))
}

/// The name in the parameters of a TRANS2 request ([MS-CIFS] 2.2.6).
fn transaction2(block: Block<'_>) -> Option<String> {
    let (length, at) = (usize::from(block.word(18)?), usize::from(block.word(20)?));
    let name_at = match block.word(28)? {
        // OPEN2, FIND_FIRST2, QUERY_ and SET_PATH_INFORMATION, CREATE_DIRECTORY.
        0x00 => 28,
        0x01 => 12,
        0x05 | 0x06 => 6,
        0x0d => 4,
        _ => return None,
    };
    Some(block.text(at + name_at, length.checked_sub(name_at)?).0)
}

/// The number of the dialect that the server chose among those offered.
pub(super) fn chosen(block: Block<'_>) -> Option<usize> {
    block.word(0).map(usize::from)
}

/// The number that the server gave a file.
pub(super) fn created(block: Block<'_>) -> Option<u16> {
    match block.command {
        NT_CREATE => block.word(5),
        OPEN_ANDX => block.word(4),
        OPEN | CREATE => block.word(0),
        _ => None,
    }
}
