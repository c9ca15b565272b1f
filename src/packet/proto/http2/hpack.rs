//! HPACK (RFC 7541): the fields of a header block.
//!
//! Three things set this decoder apart from those of clients and servers, and are why it stands here. It joins in the
//! middle: after missing bytes, entries that it cannot know are left out, and those that come later are right, because they
//! are counted from the newest. Its work is bounded by the wire: names are shared and not copied from entry to entry, so
//! that two bytes cannot copy a long one; what is told has a budget beside. And a string costs its length, whatever it is.

use std::collections::VecDeque;
use std::sync::Arc;

use super::huffman;

/// Size of a dynamic table until something else is said (RFC 9113, 6.5.2).
const TABLE_DEFAULT: usize = 4096;
/// The largest table that is kept. Browsers announce 64 KiB; entries past it count as unknown.
const TABLE_MAX: usize = 64 * 1024;
/// What an entry counts beside its bytes (RFC 7541, 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// The static table (RFC 7541, appendix A), from index 1.
#[rustfmt::skip]
static STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

/// A name, shared by the entries that were made from each other.
#[derive(Clone, Debug)]
enum Name {
    Static(&'static str),
    Own(Arc<[u8]>),
    /// It was sent before this decoder listened.
    Unknown,
}

impl Name {
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Name::Static(name) => Some(name.as_bytes()),
            Name::Own(name) => Some(name),
            Name::Unknown => None,
        }
    }

    fn len(&self) -> usize {
        self.bytes().map_or(0, <[u8]>::len)
    }
}

#[derive(Debug)]
struct Entry {
    name: Name,
    value: Box<[u8]>,
}

impl Entry {
    fn size(&self) -> usize {
        self.name.len() + self.value.len() + ENTRY_OVERHEAD
    }
}

/// The block does not follow its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The decoder of what one side sends.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    max_size: usize,
    /// What the other side allowed for `max_size`; `None` while that is not known.
    allowed: Option<usize>,
    /// There may be entries that were not seen.
    is_partial: bool,
    /// Room for strings that are decoded.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder {
            entries: VecDeque::new(),
            size: 0,
            max_size: TABLE_DEFAULT,
            allowed: Some(TABLE_DEFAULT),
            is_partial: false,
            name: Vec::new(),
            value: Vec::new(),
        }
    }
}

impl Decoder {
    /// What was sent so far is not known, or not all of it: entries from before are unknown from now on.
    pub fn lose(&mut self) {
        self.entries.clear();
        self.size = 0;
        self.is_partial = true;
        // A table that is larger than it is only remembers entries that are never asked for.
        self.max_size = TABLE_MAX;
        self.allowed = None;
    }

    /// The other side's SETTINGS_HEADER_TABLE_SIZE.
    pub fn allow(&mut self, size: usize) {
        if !self.is_partial {
            // The sender may go on with the larger size until it has seen the settings.
            self.allowed = self.allowed.map(|allowed| allowed.max(size));
        }
    }

    /// The other side's settings are not known.
    pub fn allow_any(&mut self) {
        self.allowed = None;
    }

    /// Bytes of memory, about.
    pub fn memory(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>() + self.size + self.name.capacity() + self.value.capacity()
    }

    /// Decodes a block: each field with its name and value, in order. How many were left out because they are unknown.
    /// After an error the state is that of [`Self::lose`].
    pub fn decode(&mut self, block: &[u8], field: impl FnMut(&[u8], &[u8])) -> Result<u32, Malformed> {
        let unknown = self.decode_fields(block, field);
        if unknown.is_err() {
            self.lose();
        }
        unknown
    }

    fn decode_fields(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<u32, Malformed> {
        let mut wire = Wire(block);
        let mut unknown = 0;
        let mut is_first = true;
        while let Some(&first) = wire.0.first() {
            if first & 0x80 != 0 {
                let index = wire.number(7)?;
                unknown += u32::from(!self.indexed(index, &mut field)?);
            } else if first & 0xc0 == 0x40 {
                let (name, is_known) = self.literal(&mut wire, 6, &mut field)?;
                unknown += u32::from(!is_known);
                self.insert(name);
            } else if first & 0xe0 == 0x20 {
                // Only at a block's start (RFC 7541, 4.2).
                if !is_first {
                    return Err(Malformed);
                }
                let size = wire.number(5)?;
                self.resize(size)?;
                continue;
            } else {
                // Without indexing, or never indexed: the same to a reader.
                let (_, is_known) = self.literal(&mut wire, 4, &mut field)?;
                unknown += u32::from(!is_known);
            }
            is_first = false;
        }
        Ok(unknown)
    }

    /// A field that is in a table; whether it is known.
    fn indexed(&self, index: usize, field: &mut impl FnMut(&[u8], &[u8])) -> Result<bool, Malformed> {
        if index == 0 {
            return Err(Malformed);
        }
        if let Some((name, value)) = STATIC.get(index - 1) {
            field(name.as_bytes(), value.as_bytes());
            return Ok(true);
        }
        match self.entries.get(index - 1 - STATIC.len()) {
            Some(entry) => match entry.name.bytes() {
                Some(name) => {
                    field(name, &entry.value);
                    Ok(true)
                }
                None => Ok(false),
            },
            None if self.is_partial => Ok(false),
            None => Err(Malformed),
        }
    }

    /// A field whose value stands here. Its name, and whether that is known; the value stays in `self.value`.
    fn literal(
        &mut self,
        wire: &mut Wire<'_>,
        prefix: u32,
        field: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(Name, bool), Malformed> {
        let index = wire.number(prefix)?;
        let name = match index {
            0 => {
                wire.string(&mut self.name)?;
                None
            }
            _ => Some(self.name_at(index)?),
        };
        wire.string(&mut self.value)?;
        let bytes = name.as_ref().map_or(Some(self.name.as_slice()), Name::bytes);
        if let Some(bytes) = bytes {
            field(bytes, &self.value);
        }
        let is_known = bytes.is_some();
        // Only an entry of the table needs a name of its own.
        let name =
            name.unwrap_or_else(|| if prefix == 6 { Name::Own(self.name.as_slice().into()) } else { Name::Unknown });
        Ok((name, is_known))
    }

    fn name_at(&self, index: usize) -> Result<Name, Malformed> {
        if let Some((name, _)) = STATIC.get(index - 1) {
            return Ok(Name::Static(name));
        }
        match self.entries.get(index - 1 - STATIC.len()) {
            Some(entry) => Ok(entry.name.clone()),
            None if self.is_partial => Ok(Name::Unknown),
            None => Err(Malformed),
        }
    }

    fn insert(&mut self, name: Name) {
        let entry = Entry { name, value: self.value.as_slice().into() };
        let size = entry.size();
        // One that is larger than the table empties it (RFC 7541, 4.4).
        self.shrink_to(self.max_size.saturating_sub(size));
        if size <= self.max_size {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    fn resize(&mut self, size: usize) -> Result<(), Malformed> {
        if self.allowed.is_some_and(|allowed| size > allowed) {
            return Err(Malformed);
        }
        if size > TABLE_MAX {
            self.is_partial = true;
        }
        self.max_size = size.min(TABLE_MAX);
        self.shrink_to(self.max_size);
        Ok(())
    }

    fn shrink_to(&mut self, size: usize) {
        while self.size > size {
            let Some(oldest) = self.entries.pop_back() else { break };
            self.size -= oldest.size();
        }
    }
}

/// What is left of a block.
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    /// An integer with a prefix of so many bits (RFC 7541, 5.1), up to 2^28.
    fn number(&mut self, prefix: u32) -> Result<usize, Malformed> {
        let (&first, rest) = self.0.split_first().ok_or(Malformed)?;
        let mask = (1 << prefix) - 1;
        let mut number = usize::from(first) & mask;
        if number < mask {
            self.0 = rest;
            return Ok(number);
        }
        for (at, &byte) in rest.iter().enumerate().take(4) {
            number += usize::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &rest[at + 1..];
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    /// A string (RFC 7541, 5.2).
    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        out.clear();
        let is_coded = self.0.first().ok_or(Malformed)? & 0x80 != 0;
        let len = self.number(7)?;
        let (wire, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        if is_coded {
            huffman::decode(wire, out).ok_or(Malformed)?;
        } else {
            out.extend_from_slice(wire);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
