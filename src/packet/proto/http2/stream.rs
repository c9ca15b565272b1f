//! One stream of HTTP/2: fields to an exchange.

use std::sync::Arc;

use crate::packet::proto::Side;
use crate::packet::proto::http::body::{Body, Codings};
use crate::packet::proto::http::{Exchange, FIELDS_MAX, Grpc, HEAD_MAX, Headers, Version, target};

/// A stream that is not done.
#[derive(Debug)]
pub(super) struct Stream {
    pub tx: u32,
    pub exchange: Arc<Exchange>,
    /// Bytes of memory, as they were counted last.
    pub bytes: usize,
    /// A head of each side came; what comes next are trailers.
    pub has_head: [bool; 2],
    pub is_ended: [bool; 2],
    pub bodies: [Body; 2],
}

impl Stream {
    pub fn new(tx: u32, exchange: Arc<Exchange>) -> Stream {
        let bytes = size_of::<Stream>() + exchange.memory();
        Stream { tx, exchange, bytes, has_head: [false; 2], is_ended: [false; 2], bodies: Default::default() }
    }

    /// Bytes of memory, about.
    pub fn memory(&self) -> usize {
        let bodies: usize = self.bodies.iter().map(Body::memory).sum();
        size_of::<Stream>() + self.exchange.memory() + bodies
    }

    /// Takes the fields of one block. Whether it was a final head, and not an interim response or trailers.
    pub fn take_fields(&mut self, side: Side, block: Block, odd: &mut Vec<&'static str>) -> bool {
        let exchange = Arc::make_mut(&mut self.exchange);
        if self.has_head[side as usize] {
            take_trailers(exchange, side, block, odd);
            return false;
        }
        match side {
            Side::Client => take_request(exchange, &block, odd),
            Side::Server => {
                if block.status.is_some_and(|status| (100..200).contains(&status)) {
                    return false;
                }
                if block.status.is_none() && block.is_whole() {
                    odd.push("http2.bad_pseudo_field");
                }
                exchange.status = block.status;
                take_status_of_grpc(exchange, &block);
            }
        }
        self.has_head[side as usize] = true;
        self.bodies[side as usize] = Body::new(block.codings);
        match side {
            Side::Client => exchange.request = block.headers,
            Side::Server => exchange.response = block.headers,
        }
        true
    }

    /// A side's part is over.
    pub fn end(&mut self, side: Side) -> Option<&'static str> {
        if std::mem::replace(&mut self.is_ended[side as usize], true) {
            return None;
        }
        let taken = self.bodies[side as usize].finish();
        let exchange = Arc::make_mut(&mut self.exchange);
        match side {
            Side::Client => (exchange.request_bytes, exchange.request_body) = (taken.bytes, taken.start),
            Side::Server => (exchange.response_bytes, exchange.response_body) = (taken.bytes, taken.start),
        }
        taken.oddity
    }
}

/// The fields of one header block.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub headers: Headers,
    pub method: Option<Vec<u8>>,
    pub path: Option<Vec<u8>>,
    pub authority: Option<Vec<u8>>,
    pub status: Option<u16>,
    /// Fields that were left out because nobody knows them.
    pub unknown: u32,
    /// The block ended in an error: there may have been more.
    pub is_broken: bool,
    codings: Codings,
    has_scheme: bool,
    hosts: u32,
    bytes: usize,
    is_too_long: bool,
    oddity: Option<&'static str>,
}

impl Block {
    /// Takes a field. Past the budget it is dropped: what a block unfolds to is not bounded by its length (RFC 9113, 10.5.1).
    pub fn add(&mut self, name: &[u8], value: &[u8]) {
        self.bytes += name.len() + value.len();
        if self.bytes > HEAD_MAX || self.headers.len() >= FIELDS_MAX {
            self.is_too_long = true;
            return;
        }
        if name.first() == Some(&b':') {
            return self.add_pseudo(name, value);
        }
        if !name.iter().all(|&b| b > b' ' && b < 0x7f && !b.is_ascii_uppercase() && b != b':') || name.is_empty() {
            self.oddity = Some("http2.bad_field_name");
        }
        if value.iter().any(|b| b"\r\n\0".contains(b)) {
            self.oddity = Some("http2.bad_field_value");
        }
        match name {
            b"host" => self.hosts += 1,
            b"content-encoding" => self.codings.add_list(value),
            b"connection" | b"transfer-encoding" | b"upgrade" | b"keep-alive" | b"proxy-connection" => {
                self.oddity = Some("http2.connection_field");
            }
            _ => {}
        }
        self.headers.push(name, value);
    }

    fn add_pseudo(&mut self, name: &[u8], value: &[u8]) {
        // They come before all others, and once each (RFC 9113, 8.3).
        let mut is_odd = !self.headers.is_empty() || value.iter().any(|b| b"\r\n\0".contains(b));
        let place = match name {
            b":method" => &mut self.method,
            b":path" => &mut self.path,
            b":authority" => &mut self.authority,
            b":status" => {
                is_odd |= self.status.is_some();
                let digits = std::str::from_utf8(value).ok().filter(|_| value.len() == 3);
                let status = digits.and_then(|digits| digits.parse().ok());
                is_odd |= status.is_none();
                self.status = self.status.or(status);
                self.oddity = if is_odd { Some("http2.bad_pseudo_field") } else { self.oddity };
                return;
            }
            b":scheme" => {
                is_odd |= std::mem::replace(&mut self.has_scheme, true);
                self.oddity = if is_odd { Some("http2.bad_pseudo_field") } else { self.oddity };
                return;
            }
            // Of extended CONNECT (RFC 8441).
            b":protocol" => return,
            _ => {
                self.oddity = Some("http2.bad_pseudo_field");
                return;
            }
        };
        is_odd |= place.is_some();
        place.get_or_insert_with(|| value.to_vec());
        self.oddity = if is_odd { Some("http2.bad_pseudo_field") } else { self.oddity };
    }

    fn is_whole(&self) -> bool {
        self.unknown == 0 && !self.is_broken
    }

    /// What was odd in it.
    pub fn oddities(&self) -> impl Iterator<Item = &'static str> + use<> {
        let too_long = self.is_too_long.then_some("http2.header_list_too_long");
        let unknown = (self.unknown > 0).then_some("http2.unknown_fields");
        let hosts = (self.hosts > 1).then_some("http.several_hosts");
        [self.oddity, too_long, unknown, hosts].into_iter().flatten()
    }
}

fn take_request(exchange: &mut Exchange, block: &Block, odd: &mut Vec<&'static str>) {
    exchange.version = Version::V2;
    exchange.method = block.method.clone().unwrap_or_default();
    exchange.target = block.path.clone().unwrap_or_default();
    let is_connect = exchange.method == b"CONNECT";
    let is_complete = block.method.is_some() && (is_connect || (block.path.is_some() && block.has_scheme));
    if (!is_complete && block.is_whole()) || block.status.is_some() {
        odd.push("http2.bad_pseudo_field");
    }
    if exchange.target.iter().any(|&b| b <= b' ' || b == 0x7f) {
        odd.push("http.bad_target");
    }
    let field = block.headers.get("host");
    let authority = block.authority.as_deref();
    if let (Some(field), Some(authority)) = (field, authority)
        && !field.eq_ignore_ascii_case(authority)
    {
        odd.push("http.host_mismatch");
    }
    if let Some(authority) = authority.or(field).filter(|authority| !authority.is_empty()) {
        match target::split(authority) {
            Some((host, port)) => (exchange.host, exchange.port) = (Some(host.to_vec()), port),
            None => {
                odd.push("http.bad_host");
                exchange.host = Some(authority.to_vec());
            }
        }
    }
    if block.headers.get("content-type").is_some_and(is_grpc) {
        exchange.grpc = Some(grpc_of(&exchange.target));
    }
}

/// `application/grpc`, also with a format behind it (`+proto`) or parameters; not `application/grpc-web`, which is not
/// carried so.
fn is_grpc(content_type: &[u8]) -> bool {
    let known = b"application/grpc";
    content_type.len() >= known.len()
        && content_type[..known.len()].eq_ignore_ascii_case(known)
        && content_type.get(known.len()).is_none_or(|b| b"+; ".contains(b))
}

/// `/package.Service/Method`.
fn grpc_of(path: &[u8]) -> Grpc {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let slash = memchr::memrchr(b'/', path);
    let (service, method) = slash.map_or((path, &b""[..]), |at| (&path[..at], &path[at + 1..]));
    Grpc { service: service.to_vec(), method: method.to_vec(), status: None }
}

fn take_trailers(exchange: &mut Exchange, side: Side, block: Block, odd: &mut Vec<&'static str>) {
    if block.method.is_some() || block.path.is_some() || block.status.is_some() || block.authority.is_some() {
        odd.push("http2.bad_pseudo_field");
    }
    if side == Side::Server {
        take_status_of_grpc(exchange, &block);
    }
    let headers = if side == Side::Client { &mut exchange.request } else { &mut exchange.response };
    let room = FIELDS_MAX.saturating_sub(headers.len());
    block.headers.iter().take(room).for_each(|(name, value)| headers.push(name, value));
}

/// `grpc-status` stands in the trailers, or in a head that is trailers at once.
fn take_status_of_grpc(exchange: &mut Exchange, block: &Block) {
    if exchange.method.is_empty() && exchange.grpc.is_none() && block.headers.get("content-type").is_some_and(is_grpc) {
        // The request was not seen.
        exchange.grpc = Some(Grpc::default());
    }
    if let Some(grpc) = &mut exchange.grpc
        && let Some(status) = block.headers.get("grpc-status")
    {
        grpc.status = std::str::from_utf8(status).ok().and_then(|digits| digits.parse().ok());
    }
}
