//! Messages of SMB 2 and 3 ([MS-SMB2] 2.2).

use super::frames::Want;
use super::names::{Fields, dialect_v2, utf16};
use super::ntlm;

/// Length of the header.
const HEADER: usize = 64;
/// Dialects of a negotiation that are kept.
const DIALECTS_MAX: usize = 32;

pub(super) const NEGOTIATE: u16 = 0;
pub(super) const SESSION_SETUP: u16 = 1;
pub(super) const LOGOFF: u16 = 2;
pub(super) const TREE_CONNECT: u16 = 3;
pub(super) const TREE_DISCONNECT: u16 = 4;
pub(super) const CREATE: u16 = 5;
pub(super) const CLOSE: u16 = 6;
const FLUSH: u16 = 7;
const READ: u16 = 8;
const WRITE: u16 = 9;
const LOCK: u16 = 10;
const IOCTL: u16 = 11;
pub(super) const CANCEL: u16 = 12;
const FIND: u16 = 14;
const CHANGE_NOTIFY: u16 = 15;
const GET_INFO: u16 = 16;
const SET_INFO: u16 = 17;
const OPLOCK_BREAK: u16 = 18;

/// The header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub command: u16,
    pub status: u32,
    pub is_response: bool,
    pub is_async: bool,
    /// It goes on with session, tree and file of the one that it is chained to.
    pub is_related: bool,
    pub message: u64,
    pub tree: u32,
    pub session: u64,
}

/// Reads the header.
pub(super) fn header(message: &[u8]) -> Option<Header> {
    let fields = Fields(message);
    let flags = fields.u32(16)?;
    let is_async = flags & 2 != 0;
    Some(Header {
        command: fields.u16(12)?,
        status: fields.u32(8)?,
        is_response: flags & 1 != 0,
        is_async,
        is_related: flags & 4 != 0,
        message: fields.u64(24)?,
        // An asynchronous one has an id of its own in this place.
        tree: if is_async { 0 } else { fields.u32(36)? },
        session: fields.u64(40)?,
    })
}

/// What is wanted of a message that begins with the magic of SMB 2. `None` if it is none.
pub(super) fn want(start: &[u8], left: usize, is_request: bool) -> Option<Want> {
    if left < HEADER + 2 {
        return None;
    }
    if start.len() < HEADER {
        return Some(Want::More(HEADER));
    }
    let fields = Fields(start);
    let next = fields.u32(20)? as usize;
    // The next one begins behind this header, at a multiple of 8, within the frame.
    if fields.u16(4)? != 64 || next != 0 && (next < HEADER + 2 || !next.is_multiple_of(8) || next >= left) {
        return None;
    }
    let length = if next == 0 { left } else { next };
    let body = match (fields.u16(12)?, is_request) {
        (NEGOTIATE, true) => 36 + 2 * DIALECTS_MAX,
        (SESSION_SETUP, true) => 16 * 1024,
        (TREE_CONNECT, true) => 4 * 1024,
        (CREATE, true) => 16 * 1024,
        (SET_INFO, true) => 4 * 1024,
        (CREATE, false) => 88,
        (_, true) => 48,
        (_, false) => 16,
    };
    let head = length.min(HEADER + body);
    Some(if start.len() < head { Want::More(head) } else { Want::Head { head, length } })
}

/// What a request says beside its header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub offered: Vec<String>,
    pub share: Option<String>,
    pub file: Option<String>,
    pub rename_to: Option<String>,
    pub file_id: Option<[u8; 16]>,
    pub user: Option<(String, String)>,
    /// A name is longer than what is kept of the message.
    pub is_cut: bool,
}

/// Reads a request.
pub(super) fn request(command: u16, message: &[u8]) -> Request {
    let fields = Fields(message);
    let mut request = Request::default();
    let mut name = |offset_at: usize, length_at: usize| {
        let (offset, length) = (fields.u16(offset_at)?, fields.u16(length_at)?);
        let bytes = fields.at_most(offset.into(), length.into());
        request.is_cut = bytes.len() < usize::from(length);
        Some(utf16(bytes))
    };
    match command {
        NEGOTIATE => {
            let count = usize::from(fields.u16(HEADER + 2).unwrap_or_default()).min(DIALECTS_MAX);
            let numbers = (0..count).map_while(|index| fields.u16(HEADER + 36 + 2 * index));
            request.offered = numbers.map(dialect_v2).collect();
        }
        SESSION_SETUP => request.user = ntlm::user(message.get(HEADER + 24..).unwrap_or_default()),
        TREE_CONNECT => request.share = name(HEADER + 4, HEADER + 6),
        CREATE => request.file = name(HEADER + 44, HEADER + 46),
        _ => request.file_id = file_id_at(command).and_then(|at| fields.array(at)),
    }
    if command == SET_INFO {
        rename(fields, &mut request);
    }
    request
}

/// Where a request has the number of its file.
fn file_id_at(command: u16) -> Option<usize> {
    Some(match command {
        READ | WRITE | SET_INFO => HEADER + 16,
        CLOSE | FLUSH | LOCK | IOCTL | FIND | CHANGE_NOTIFY | OPLOCK_BREAK => HEADER + 8,
        GET_INFO => HEADER + 24,
        _ => return None,
    })
}

/// A SET_INFO that renames: FileRenameInformation ([MS-FSCC] 2.4.42.2) of a file.
fn rename(fields: Fields<'_>, request: &mut Request) {
    let is_rename = fields.u8(HEADER + 2) == Some(1) && fields.u8(HEADER + 3) == Some(10);
    let at = fields.u16(HEADER + 8).map_or(0, usize::from);
    if let (true, Some(length)) = (is_rename, fields.u32(at + 16)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = fields.at_most(at + 20, length);
        request.is_cut = bytes.len() < length;
        request.rename_to = Some(utf16(bytes));
    }
}

/// The dialect that the server chose.
pub(super) fn dialect(message: &[u8]) -> Option<String> {
    Fields(message).u16(HEADER + 4).map(dialect_v2)
}

/// The number that the server gave a file.
pub(super) fn created(message: &[u8]) -> Option<[u8; 16]> {
    Fields(message).array(HEADER + 64)
}
