//! What HTTP/1 and HTTP/2 have in common: an exchange of a request and its response.

pub(super) mod body;
#[cfg(test)]
pub(super) mod talk;
pub(super) mod target;

use std::ops::Range;

pub use body::{BODY_MAX, WIRE_MAX};

/// Fields of a message that are kept; more are counted as an oddity. Apache stops at 100, Suricata at 1024.
pub const FIELDS_MAX: usize = 256;
/// Bytes of a head, trailers or a header list. nginx takes 32 KiB in its defaults, Apache 8 KiB a line.
pub const HEAD_MAX: usize = 64 * 1024;

/// Fields of a head, in their order, with repeats. Names as they stood on the wire; HTTP/2's are lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    bytes: Vec<u8>,
    fields: Vec<(Range<u32>, Range<u32>)>,
}

impl Headers {
    /// With room for so many fields, and so many bytes of names and values.
    pub fn with_capacity(fields: usize, bytes: usize) -> Headers {
        Headers { bytes: Vec::with_capacity(bytes), fields: Vec::with_capacity(fields) }
    }

    /// Adds a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let mut add = |part: &[u8]| {
            let start = self.bytes.len() as u32;
            self.bytes.extend_from_slice(part);
            start..self.bytes.len() as u32
        };
        let field = (add(name), add(value));
        self.fields.push(field);
    }

    /// All fields: name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let part = |range: &Range<u32>| &self.bytes[range.start as usize..range.end as usize];
        self.fields.iter().map(move |(name, value)| (part(name), part(value)))
    }

    /// The value of the first field of a name, whatever its case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(each, _)| each.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// Bytes of memory, about.
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + self.fields.capacity() * size_of::<(Range<u32>, Range<u32>)>()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }
}

/// Version of an exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// A request without a version (HTTP/0.9).
    V09,
    /// HTTP/1.0.
    V10,
    /// HTTP/1.1.
    #[default]
    V11,
    /// HTTP/2.
    V2,
}

/// What gRPC makes of an exchange of HTTP/2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grpc {
    /// `package.Service`, from the path.
    pub service: Vec<u8>,
    /// The method.
    pub method: Vec<u8>,
    /// `grpc-status` of the trailers.
    pub status: Option<u32>,
}

/// A request and its response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exchange {
    /// Of the request; of the response when no request was seen.
    pub version: Version,
    /// The stream of HTTP/2.
    pub stream: Option<u32>,
    /// Empty when no request was seen.
    pub method: Vec<u8>,
    /// The request target as it was sent; of HTTP/2 `:path`.
    pub target: Vec<u8>,
    /// The host that was asked, without port: of the target if it is absolute, else of `Host` or `:authority`. As it was
    /// sent; an IPv6 address stands in its brackets (RFC 3986, 3.2.2).
    pub host: Option<Vec<u8>>,
    /// The port beside the host, if it was said.
    pub port: Option<u16>,
    /// Fields of the request, then those of its trailers; without the pseudo fields of HTTP/2.
    pub request: Headers,
    /// Status of the last response (not 1xx); `None` until it came.
    pub status: Option<u16>,
    /// Its reason phrase, of HTTP/1.
    pub reason: Vec<u8>,
    /// Fields of the response, likewise.
    pub response: Headers,
    /// Bytes of the request's body as it was sent, without chunk framing.
    pub request_bytes: u64,
    /// Bytes of the response's body as it was sent, without chunk framing.
    pub response_bytes: u64,
    /// The start of the request's body, decoded (gzip, deflate, br), as far as the parser's cap goes.
    pub request_body: Vec<u8>,
    /// The start of the response's body, likewise.
    pub response_body: Vec<u8>,
    /// The exchange is a call of gRPC.
    pub grpc: Option<Grpc>,
}

impl Exchange {
    /// Bytes of memory, about.
    pub fn memory(&self) -> usize {
        size_of::<Exchange>()
            + self.method.capacity()
            + self.target.capacity()
            + self.host.as_ref().map_or(0, Vec::capacity)
            + self.request.memory()
            + self.reason.capacity()
            + self.response.memory()
            + self.request_body.capacity()
            + self.response_body.capacity()
    }
}
