//! The chunked transfer coding (RFC 9112, 7.1), up to its last chunk.

use crate::packet::proto::http::body::Body;

/// Bytes of a chunk's first line, with its extensions; nginx and Apache allow 4 to 8 KiB.
const LINE_MAX: usize = 4 * 1024;

/// Where a body of chunks is.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    place: Place,
    /// A first line that is not complete.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    /// In a chunk with so many bytes left.
    Data(u64),
    /// Behind a chunk; whether its CR came.
    Behind { has_cr: bool },
}

/// What one step did.
pub(super) struct Step<'a> {
    pub outcome: Outcome,
    pub rest: &'a [u8],
    pub oddity: Option<&'static str>,
}

/// How it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Goes,
    /// The last chunk came.
    Last,
    /// It is not chunked.
    Bad,
}

impl Chunks {
    /// One step: a line, or what there is of a chunk.
    pub fn take<'a>(&mut self, bytes: &'a [u8], body: &mut Body) -> Step<'a> {
        match self.place {
            Place::Size => self.on_size(bytes),
            Place::Data(left) => {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                body.take(&bytes[..n]);
                self.advance(left - n as u64);
                Step { outcome: Outcome::Goes, rest: &bytes[n..], oddity: None }
            }
            Place::Behind { has_cr } => self.on_behind(has_cr, bytes),
        }
    }

    /// Skips what of the missing bytes lies in the chunk; how many that were.
    pub fn skip(&mut self, missing: u64, body: &mut Body) -> u64 {
        let Place::Data(left) = self.place else { return 0 };
        let n = left.min(missing);
        body.skip(n);
        self.advance(left - n);
        n
    }

    pub fn memory(&self) -> usize {
        self.line.capacity()
    }

    fn advance(&mut self, left: u64) {
        self.place = if left == 0 { Place::Behind { has_cr: false } } else { Place::Data(left) };
    }

    fn on_size<'a>(&mut self, bytes: &'a [u8]) -> Step<'a> {
        let window = &bytes[..bytes.len().min(LINE_MAX - self.line.len())];
        let Some(end) = memchr::memchr(b'\n', window) else {
            self.line.extend_from_slice(window);
            let is_too_long = self.line.len() >= LINE_MAX;
            let rest = &bytes[window.len()..];
            return if is_too_long { bad(rest) } else { Step { outcome: Outcome::Goes, rest, oddity: None } };
        };
        let rest = &bytes[end + 1..];
        let size = if self.line.is_empty() {
            size_of_line(&bytes[..end])
        } else {
            self.line.extend_from_slice(&bytes[..end]);
            let size = size_of_line(&self.line);
            self.line.clear();
            size
        };
        let Some((size, oddity)) = size else { return bad(rest) };
        self.place = Place::Data(size);
        let outcome = if size == 0 { Outcome::Last } else { Outcome::Goes };
        Step { outcome, rest, oddity }
    }

    fn on_behind<'a>(&mut self, has_cr: bool, bytes: &'a [u8]) -> Step<'a> {
        let rest = &bytes[1..];
        let (place, oddity) = match (bytes[0], has_cr) {
            (b'\r', false) => (Place::Behind { has_cr: true }, None),
            (b'\n', true) => (Place::Size, None),
            (b'\n', false) => (Place::Size, Some("http.bare_lf_in_chunk")),
            _ => return bad(bytes),
        };
        self.place = place;
        Step { outcome: Outcome::Goes, rest, oddity }
    }
}

fn bad(rest: &[u8]) -> Step<'_> {
    Step { outcome: Outcome::Bad, rest, oddity: Some("http.bad_chunk") }
}

/// The size in a chunk's first line, without its LF: hexadecimal digits, then perhaps spaces, then perhaps extensions.
fn size_of_line(line: &[u8]) -> Option<(u64, Option<&'static str>)> {
    let (line, is_bare) = match line.strip_suffix(b"\r") {
        Some(line) => (line, false),
        None => (line, true),
    };
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let behind = line[digits..].trim_ascii_start();
    if digits == 0 || !(behind.is_empty() || behind[0] == b';') {
        return None;
    }
    let size = line[..digits].iter().try_fold(0_u64, |sum, &b| {
        let digit = u64::from((b as char).to_digit(16)?);
        (sum >> 59 == 0).then_some(sum << 4 | digit)
    })?;
    let oddity = if is_bare {
        Some("http.bare_lf_in_chunk")
    } else if memchr::memchr(b'\r', line).is_some() {
        Some("http.bad_chunk_extension")
    } else {
        None
    };
    Some((size, oddity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_lines() {
        for (line, size) in [("5\r", 5), ("fFf\r", 4095), ("00005 \r", 5), ("5;a=b\r", 5), ("5 ;a=\"x\"\r", 5)] {
            assert_eq!(size_of_line(line.as_bytes()), Some((size, None)), "{line:?}");
        }
        assert_eq!(size_of_line(b"5"), Some((5, Some("http.bare_lf_in_chunk"))));
        assert_eq!(size_of_line(b"5;a\rb\r"), Some((5, Some("http.bad_chunk_extension"))));
        assert_eq!(size_of_line(b"7fffffffffffffff\r"), Some((i64::MAX as u64, None)));
        for line in ["\r", " 5\r", "+5\r", "-1\r", "0x5\r", "5g\r", "5 5\r", "fffffffffffffffff\r", ";5\r"] {
            assert_eq!(size_of_line(line.as_bytes()), None, "{line:?}");
        }
    }
}
