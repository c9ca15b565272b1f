//! One head of HTTP/1, whole and contiguous: start line, fields, and what the fields say of the message's framing.
//!
//! What follows RFC 9112 is read by httparse. What does not is read again by lines, as lenient servers and proxies do,
//! and every leniency that was needed is told: where two receivers may read a message differently, smuggling starts.

use std::mem::MaybeUninit;

use crate::packet::proto::http::body::Codings;
use crate::packet::proto::http::{FIELDS_MAX, Headers, Version};

/// Fields that the first reading takes; heads with more are read by lines.
const FAST_FIELDS: usize = 96;
/// A method's longest name.
const METHOD_MAX: usize = 64;

/// What was odd in a head.
pub(super) type Oddities = Vec<&'static str>;

/// The first line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start<'a> {
    Request {
        method: &'a [u8],
        target: &'a [u8],
        version: Version,
    },
    Response {
        version: Version,
        status: u16,
        reason: &'a [u8],
    },
    /// The preface of HTTP/2 (RFC 9113, 3.4) up to its first empty line.
    Preface,
}

/// What a request wants to go on with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Upgrade {
    #[default]
    None,
    /// HTTP/2 in clear text (RFC 7540, 3.2).
    H2c,
    Other,
}

/// How a body's end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Chunked,
    Length(u64),
    /// Neither was said, or it cannot be relied on.
    Unsaid,
}

/// Fields and what they say.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub headers: Headers,
    pub codings: Codings,
    pub upgrade: Upgrade,
    hosts: u32,
    dropped: u32,
    length: Option<u64>,
    lengths: u32,
    transfer: Option<Transfer>,
    transfer_codings: Codings,
}

/// What `Transfer-Encoding` said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    /// `chunked` stands last.
    Chunked,
    Other,
}

impl Fields {
    /// Takes a field. Those past the cap are dropped, but what they say of the framing counts.
    pub fn add(&mut self, name: &[u8], value: &[u8], odd: &mut Oddities) {
        if self.headers.len() < FIELDS_MAX {
            self.headers.push(name, value);
        } else {
            self.dropped += 1;
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            4 if is("host") => self.hosts += 1,
            7 if is("upgrade") => {
                let is_h2c = value.split(|&b| b == b',').any(|each| each.trim_ascii().eq_ignore_ascii_case(b"h2c"));
                self.upgrade = if is_h2c { Upgrade::H2c } else { Upgrade::Other };
            }
            14 if is("content-length") => self.add_length(value, odd),
            16 if is("content-encoding") => self.codings.add_list(value),
            17 if is("transfer-encoding") => self.add_transfer(value, odd),
            _ => {}
        }
    }

    fn add_length(&mut self, value: &[u8], odd: &mut Oddities) {
        // A list of equal numbers is one that a recipient put together from several fields (RFC 9110, 8.6).
        for each in value.split(|&b| b == b',') {
            self.lengths += 1;
            match (number(each.trim_ascii()), self.length) {
                (None, _) => odd.push("http.bad_content_length"),
                (Some(length), None) => {
                    self.length = Some(length);
                    if self.lengths > 1 {
                        odd.push("http.content_length_conflict");
                    }
                }
                (Some(length), Some(first)) if length == first => odd.push("http.content_length_repeated"),
                (Some(_), Some(_)) => odd.push("http.content_length_conflict"),
            }
        }
    }

    fn add_transfer(&mut self, value: &[u8], odd: &mut Oddities) {
        if self.transfer.is_some() {
            odd.push("http.transfer_encoding_repeated");
        }
        for each in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
            if self.transfer == Some(Transfer::Chunked) {
                odd.push("http.bad_transfer_encoding");
            }
            let is = |known: &str| each.eq_ignore_ascii_case(known.as_bytes());
            if is("chunked") {
                self.transfer = Some(Transfer::Chunked);
                continue;
            }
            self.transfer = Some(Transfer::Other);
            if is("gzip") || is("x-gzip") || is("deflate") {
                self.transfer_codings.add(each);
            } else {
                odd.push("http.bad_transfer_encoding");
            }
        }
    }

    /// What the fields mean together (RFC 9112, 6.3).
    pub fn conclude(&mut self, version: Version, odd: &mut Oddities) -> Framing {
        if self.hosts > 1 {
            odd.push("http.several_hosts");
        }
        if self.dropped > 0 {
            odd.push("http.too_many_fields");
        }
        if self.transfer.is_some() {
            // Codings of the transfer lie over those of the content.
            self.codings.add_all(self.transfer_codings);
            if self.lengths > 0 {
                odd.push("http.transfer_encoding_with_length");
            }
            if version != Version::V11 {
                odd.push("http.transfer_encoding_in_http10");
            }
        }
        match (self.transfer, self.length) {
            (Some(Transfer::Chunked), _) => Framing::Chunked,
            (_, Some(length)) => Framing::Length(length),
            _ => Framing::Unsaid,
        }
    }

    /// Whether there is a field `Host`.
    pub fn has_host(&self) -> bool {
        self.hosts > 0
    }
}

/// Digits and nothing else: no sign, no space, no overflow.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// Reads a head, from its first line to the empty one. `None` when the first line is none.
pub(super) fn parse<'a>(head: &'a [u8], is_response: bool, odd: &mut Oddities) -> Option<(Start<'a>, Fields)> {
    let fast = if is_response { fast_response(head, odd) } else { fast_request(head, odd) };
    fast.or_else(|| by_lines(head, is_response, odd))
}

fn fast_request<'a>(head: &'a [u8], odd: &mut Oddities) -> Option<(Start<'a>, Fields)> {
    let mut room = [const { MaybeUninit::uninit() }; FAST_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(head, &mut room);
    if !matches!(parsed, Ok(httparse::Status::Complete(n)) if n == head.len()) {
        return None;
    }
    let (method, target) = (request.method?.as_bytes(), request.path?.as_bytes());
    if method.len() > METHOD_MAX {
        return None;
    }
    let start = Start::Request { method, target, version: version_of(request.version?) };
    Some((start, taken(request.headers, odd)))
}

fn fast_response<'a>(head: &'a [u8], odd: &mut Oddities) -> Option<(Start<'a>, Fields)> {
    let mut room = [const { MaybeUninit::uninit() }; FAST_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let parsed = config.parse_response_with_uninit_headers(&mut response, head, &mut room);
    if !matches!(parsed, Ok(httparse::Status::Complete(n)) if n == head.len()) {
        return None;
    }
    let (version, status) = (version_of(response.version?), response.code?);
    // httparse gives no reason when it holds bytes outside of ASCII; those are wanted as they were sent.
    let (line, _) = split_line(head)?;
    let reason = trim(line.get(12..).unwrap_or_default());
    Some((Start::Response { version, status, reason }, taken(response.headers, odd)))
}

fn version_of(minor: u8) -> Version {
    if minor == 0 { Version::V10 } else { Version::V11 }
}

fn taken(parsed: &[httparse::Header<'_>], odd: &mut Oddities) -> Fields {
    let bytes = parsed.iter().map(|field| field.name.len() + field.value.len()).sum();
    let mut fields = Fields { headers: Headers::with_capacity(parsed.len(), bytes), ..Fields::default() };
    for field in parsed {
        fields.add(field.name.as_bytes(), field.value, odd);
    }
    fields
}

/// The lenient reading. Lines that are cut off at the head's end are left out.
pub(super) fn by_lines<'a>(head: &'a [u8], is_response: bool, odd: &mut Oddities) -> Option<(Start<'a>, Fields)> {
    let (line, rest) = split_line(head)?;
    let start = if is_response { status_line(line, odd) } else { request_line(line, odd) }?;
    let mut fields = Fields::default();
    field_lines(rest, &mut fields, odd);
    Some((start, fields))
}

/// Fields by lines, up to the empty one.
pub(super) fn field_lines(mut rest: &[u8], fields: &mut Fields, odd: &mut Oddities) {
    // A field waits for the next line, which may go on with it (obs-fold, RFC 9112, 5.2).
    let mut waiting: Option<(&[u8], Vec<u8>)> = None;
    while let Some((line, behind)) = split_line(rest) {
        rest = behind;
        if line.is_empty() {
            break;
        }
        if line[0] == b' ' || line[0] == b'\t' {
            odd.push("http.obs_fold");
            if let Some((_, value)) = &mut waiting {
                let more = trim(line);
                if !value.is_empty() && !more.is_empty() {
                    value.push(b' ');
                }
                value.extend_from_slice(more);
                continue;
            }
        }
        if let Some((name, value)) = waiting.take() {
            fields.add(name, &value, odd);
        }
        let Some(colon) = memchr::memchr(b':', line) else {
            odd.push("http.field_without_colon");
            continue;
        };
        let name = trim(&line[..colon]);
        if name.len() != colon {
            odd.push("http.space_around_field_name");
        }
        if name.is_empty() || !name.iter().all(|&b| is_token(b)) {
            odd.push("http.bad_field_name");
        }
        let value = trim(&line[colon + 1..]);
        if value.iter().any(|&b| (b < b' ' && b != b'\t') || b == 0x7f) {
            odd.push("http.bad_field_value");
        }
        waiting = Some((name, value.to_vec()));
    }
    if let Some((name, value)) = waiting {
        fields.add(name, &value, odd);
    }
}

/// The next line without its end, and what stands behind it.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', bytes)?;
    let line = &bytes[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &bytes[end + 1..]))
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// `tchar` of RFC 9110, 5.6.2.
pub(super) fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// A request line without its end: `method SP target SP version`, or without the version that of HTTP/0.9.
pub(super) fn request_line<'a>(line: &'a [u8], odd: &mut Oddities) -> Option<Start<'a>> {
    let method_len = line.iter().position(|b| b" \t".contains(b))?;
    let method = &line[..method_len];
    if method.is_empty() || method_len > METHOD_MAX || !method.iter().all(|&b| is_token(b)) {
        return None;
    }
    let rest = trim(&line[method_len..]);
    let version_at = rest.iter().rposition(|b| b" \t".contains(b)).map_or(0, |at| at + 1);
    let (target, version) = rest.split_at(version_at);
    let target = trim(target);
    if !version.starts_with(b"HTTP/") || target.is_empty() {
        // Only GET exists in HTTP/0.9; all else without a version is something else.
        let is_simple = method == b"GET" && !rest.is_empty() && !rest.iter().any(|b| b" \t".contains(b));
        return is_simple.then_some(Start::Request { method, target: rest, version: Version::V09 });
    }
    if (method, target, version) == (b"PRI", b"*", b"HTTP/2.0") {
        return Some(Start::Preface);
    }
    let between = line.len() - method_len - target.len() - version.len();
    if between != 2 || line[method_len] != b' ' || line[method_len + 1 + target.len()] != b' ' {
        odd.push("http.bad_spaces_in_request_line");
    }
    if target.iter().any(|&b| b <= b' ' || b == 0x7f) {
        odd.push("http.bad_target");
    }
    Some(Start::Request { method, target, version: version_in(version, odd)? })
}

/// A status line without its end: `version SP status SP reason`.
pub(super) fn status_line<'a>(line: &'a [u8], odd: &mut Oddities) -> Option<Start<'a>> {
    let version_len = line.iter().position(|b| b" \t".contains(b))?;
    let version = version_in(&line[..version_len], odd)?;
    let rest = trim(&line[version_len..]);
    let (digits, behind) = rest.split_at_checked(3)?;
    if behind.first().is_some_and(|b| !b" \t".contains(b)) {
        return None;
    }
    let status = number(digits)? as u16;
    let is_plain = line.len() >= 12 && line[version_len] == b' ' && line[9..12] == *digits;
    if !is_plain || !(100..=999).contains(&status) {
        odd.push("http.bad_status_line");
    }
    Some(Start::Response { version, status, reason: trim(behind) })
}

/// `HTTP/1.0` and `HTTP/1.1`; other digits are taken for 1.1, as most receivers do.
fn version_in(version: &[u8], odd: &mut Oddities) -> Option<Version> {
    match version {
        b"HTTP/1.1" => Some(Version::V11),
        b"HTTP/1.0" => Some(Version::V10),
        _ => {
            let digits = version.strip_prefix(b"HTTP/")?;
            let is_number = !digits.is_empty() && digits.iter().all(|b| b.is_ascii_digit() || *b == b'.');
            odd.push("http.bad_version");
            is_number.then_some(Version::V11)
        }
    }
}

/// Whether a line, without its end, is the first of a request or response beyond doubt: what a side that lost its place
/// looks for.
pub(super) fn is_certain_start(line: &[u8], is_response: bool) -> bool {
    let mut odd = Oddities::new();
    if is_response {
        status_line(line, &mut odd).is_some() && odd.is_empty()
    } else {
        match request_line(line, &mut odd) {
            Some(Start::Request { method, version, .. }) => {
                odd.is_empty() && version != Version::V09 && method.iter().all(u8::is_ascii_uppercase)
            }
            _ => false,
        }
    }
}

/// Finds a head's lines and its end in pieces of any size, looking at each byte once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EndSearch {
    /// The last two bytes, the later one first.
    last: [u8; 2],
    /// A line ended without CR.
    pub has_bare_lf: bool,
}

impl EndSearch {
    /// One that stands behind a line's end: an empty line may follow at once.
    pub fn behind_a_line() -> EndSearch {
        EndSearch { last: [b'\n', b'\r'], has_bare_lf: false }
    }

    /// Length up to and with the next line's end, and whether that line is empty. All is taken when there is none.
    pub fn next_line(&mut self, bytes: &[u8]) -> Option<(usize, bool)> {
        let found = memchr::memchr(b'\n', bytes);
        let taken = found.unwrap_or(bytes.len());
        for &b in &bytes[taken.saturating_sub(2)..taken] {
            self.last = [b, self.last[0]];
        }
        let at = found?;
        let is_empty = self.last[0] == b'\n' || self.last == [b'\r', b'\n'];
        self.has_bare_lf |= self.last[0] != b'\r';
        self.last = [b'\n', self.last[0]];
        Some((at + 1, is_empty))
    }
}
