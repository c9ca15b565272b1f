//! Frames of HTTP/2 (RFC 9113, 4 to 6): from a side's bytes to frames, of which DATA is never kept.

/// Bytes of a frame's header.
pub(super) const HEADER_LEN: usize = 9;
/// SETTINGS_MAX_FRAME_SIZE until something else is said.
pub(super) const SIZE_DEFAULT: u32 = 16 * 1024;

/// Types that are looked at.
pub(super) mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags that are looked at.
pub(super) mod flag {
    /// Of DATA and HEADERS.
    pub const END_STREAM: u8 = 0x1;
    /// Of SETTINGS and PING.
    pub const ACK: u8 = 0x1;
    /// Of HEADERS, PUSH_PROMISE and CONTINUATION.
    pub const END_HEADERS: u8 = 0x4;
    /// Of DATA, HEADERS and PUSH_PROMISE.
    pub const PADDED: u8 = 0x8;
    /// Of HEADERS.
    pub const PRIORITY: u8 = 0x20;
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub len: u32,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Header {
    pub fn read(bytes: &[u8; HEADER_LEN]) -> Header {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        Header { len: u32::from_be_bytes([0, a, b, c]), kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff }
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether this may be a side's first frame: its settings (RFC 9113, 3.4).
    pub fn opens(bytes: &[u8; HEADER_LEN]) -> bool {
        let header = Header::read(bytes);
        header.kind == kind::SETTINGS && !header.has(flag::ACK) && Header::is_plausible(bytes)
    }

    /// Whether a frame of this type may look so: what a side that lost its place goes by.
    pub fn is_plausible(bytes: &[u8; HEADER_LEN]) -> bool {
        let header = Header::read(bytes);
        let (len_is_right, flags, has_stream) = match header.kind {
            kind::DATA => (true, flag::END_STREAM | flag::PADDED, true),
            kind::HEADERS => {
                (header.len > 0, flag::END_STREAM | flag::END_HEADERS | flag::PADDED | flag::PRIORITY, true)
            }
            kind::PRIORITY => (header.len == 5, 0, true),
            kind::RST_STREAM => (header.len == 4, 0, true),
            kind::SETTINGS => (header.len.is_multiple_of(6) && header.len <= 120, flag::ACK, false),
            kind::PUSH_PROMISE => (header.len > 4, flag::END_HEADERS | flag::PADDED, true),
            kind::PING => (header.len == 8, flag::ACK, false),
            kind::GOAWAY => (header.len >= 8, 0, false),
            // Of a stream or of the connection.
            kind::WINDOW_UPDATE => (header.len == 4, 0, header.stream != 0),
            _ => return false,
        };
        len_is_right
            && header.len <= SIZE_DEFAULT
            && header.flags & !flags == 0
            && bytes[5] & 0x80 == 0
            && (header.stream != 0) == has_stream
            && header.stream < LIKELY_STREAMS
    }
}

/// Streams of a connection that a lost side believes in: a high number is more likely something else.
const LIKELY_STREAMS: u32 = 1 << 20;

/// The payload of a frame without its padding; `None` when it is longer than the frame (RFC 9113, 6.1).
pub(super) fn unpadded(header: Header, payload: &[u8]) -> Option<&[u8]> {
    if !header.has(flag::PADDED) {
        return Some(payload);
    }
    let (&padding, rest) = payload.split_first()?;
    rest.len().checked_sub(padding.into()).map(|len| &rest[..len])
}
