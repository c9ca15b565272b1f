//! A request's body, as it arrives. It is read whole before a worker sees the request: a slow client holds no thread.

use super::head::{Framing, Refusal, body_too_large};

/// Longest chunk-size line, extensions included, and all trailer fields together.
const LINE_MAX: usize = 256;
const TRAILER_MAX: usize = 4096;

/// The bytes so far and where the end will be.
#[derive(Debug)]
pub struct Body {
    pub bytes: Vec<u8>,
    /// Whether the client has sent more than the body.
    pub surplus: bool,
    expected: Expected,
    max: usize,
}

#[derive(Debug, PartialEq)]
enum Expected {
    /// So many bytes more.
    Length(usize),
    /// A chunk-size line, of which this has come.
    Size(Vec<u8>),
    /// So many bytes of a chunk.
    Chunk(usize),
    /// The CRLF after a chunk; whether the CR has come.
    ChunkEnd(bool),
    /// A trailer line after the last chunk, of which this has come; and bytes of trailers so far.
    Trailer(Vec<u8>, usize),
    /// Nothing.
    End,
}

impl Body {
    /// An empty body of at most `max` bytes.
    pub fn new(framing: Framing, max: usize) -> Body {
        let expected = match framing {
            Framing::Length(0) => Expected::End,
            Framing::Length(length) => Expected::Length(length),
            Framing::Chunked => Expected::Size(Vec::new()),
        };
        Body { bytes: Vec::new(), surplus: false, expected, max }
    }

    /// Whether all has come.
    pub fn is_complete(&self) -> bool {
        self.expected == Expected::End
    }

    /// Takes what has arrived. What comes after the end (a pipelined request) is noted and left aside.
    pub fn take(&mut self, mut input: &[u8]) -> Result<(), Refusal> {
        while let Some(&first) = input.first() {
            match &mut self.expected {
                Expected::End => {
                    self.surplus = true;
                    return Ok(());
                }
                Expected::Length(left) | Expected::Chunk(left) => {
                    let n = input.len().min(*left);
                    self.bytes.extend_from_slice(&input[..n]);
                    input = &input[n..];
                    *left -= n;
                    if *left == 0 {
                        let chunk = matches!(self.expected, Expected::Chunk(_));
                        self.expected = if chunk { Expected::ChunkEnd(false) } else { Expected::End };
                    }
                    continue;
                }
                Expected::Size(line) => {
                    line.push(first);
                    if line.ends_with(b"\n") {
                        let size = chunk_size(line)?;
                        if size > self.max - self.bytes.len() {
                            return Err(body_too_large());
                        }
                        self.expected =
                            if size == 0 { Expected::Trailer(Vec::new(), 0) } else { Expected::Chunk(size) };
                    } else if line.len() > LINE_MAX {
                        return Err(bad_chunk());
                    }
                }
                Expected::ChunkEnd(false) if first == b'\r' => self.expected = Expected::ChunkEnd(true),
                Expected::ChunkEnd(true) if first == b'\n' => self.expected = Expected::Size(Vec::new()),
                Expected::ChunkEnd(_) => return Err(bad_chunk()),
                Expected::Trailer(line, seen) => {
                    line.push(first);
                    *seen += 1;
                    if line == b"\r\n" {
                        self.expected = Expected::End;
                    } else if *seen > TRAILER_MAX {
                        return Err(bad_chunk());
                    } else if first == b'\n' {
                        line.clear();
                    }
                }
            }
            input = &input[1..];
        }
        Ok(())
    }
}

fn bad_chunk() -> Refusal {
    Refusal::new(400, "BAD_REQUEST", "framing", "the chunked body is malformed")
}

/// The size in a chunk's first line: hexadecimal digits, then nothing or `;` and an extension, which is ignored.
fn chunk_size(line: &[u8]) -> Result<usize, Refusal> {
    let line = line.strip_suffix(b"\r\n").ok_or_else(bad_chunk)?;
    let digits = line.split(|b| *b == b';').next().unwrap_or_default();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(bad_chunk());
    }
    let text = std::str::from_utf8(digits).map_err(|_| bad_chunk())?;
    Ok(usize::from_str_radix(text, 16).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result must not depend on how the bytes are cut.
    fn check(framing: Framing, text: &str, want: Result<Option<&str>, u16>) {
        for step in [1, 2, 3, 7, text.len().max(1)] {
            let mut body = Body::new(framing, 10);
            let taken = text.as_bytes().chunks(step).try_for_each(|part| body.take(part));
            let got = match taken {
                Ok(()) if body.is_complete() => Ok(Some(String::from_utf8(body.bytes).unwrap())),
                Ok(()) => Ok(None),
                Err(refusal) => Err(refusal.status),
            };
            assert_eq!(got, want.map(|body| body.map(str::to_owned)), "{text:?} in steps of {step}");
        }
    }

    #[test]
    fn bodies() {
        let chunked = Framing::Chunked;
        check(Framing::Length(0), "", Ok(Some("")));
        check(Framing::Length(0), "GET /", Ok(Some("")));
        check(Framing::Length(3), "ab", Ok(None));
        check(Framing::Length(3), "abcd", Ok(Some("abc")));
        check(chunked, "3\r\nabc\r\n0\r\n\r\n", Ok(Some("abc")));
        check(chunked, "3;x=y\r\nabc\r\n2\r\nde\r\n000\r\nt: v\r\nu: w\r\n\r\nGET", Ok(Some("abcde")));
        check(chunked, "3\r\nabc\r\n", Ok(None));
        check(chunked, "0\r\n", Ok(None));
        check(chunked, "A\r\n0123456789\r\n0\r\n\r\n", Ok(Some("0123456789")));
        check(chunked, "B\r\n", Err(413));
        check(chunked, "6\r\nabcdef\r\n5\r\n", Err(413));
        check(chunked, "ffffffffffffffffffffffff\r\n", Err(413));
        for bad in
            ["\r\n", "x\r\n", "+3\r\n", " 3\r\n", "3 \r\n", "0x3\r\n", "3\nabc", "-1\r\n", "3\r\nabcd", "3\r\nabc\n"]
        {
            check(chunked, bad, Err(400));
        }
        check(chunked, &format!("3;{}", "x".repeat(300)), Err(400));
        check(chunked, &format!("0\r\n{}", "a: b\r\n".repeat(1000)), Err(400));
    }
}
