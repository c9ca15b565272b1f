//! Lines of a stream that comes in pieces, for the protocols that speak in lines.

/// Cuts one side's stream into lines. Keeps only what no line end has come for yet, and of that no more than a line may have.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    kept: Vec<u8>,
    /// Bytes of the line that is not complete, also those that were not kept.
    length: usize,
    /// Its last byte.
    last: u8,
    /// `kept` was handed out: the next line begins anew.
    is_told: bool,
    /// Bytes are missing: what comes up to the next line end is the rest of something unknown.
    is_lost: bool,
}

/// A line without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// What was kept of it.
    pub text: &'a [u8],
    /// It was longer than that.
    pub is_cut: bool,
    /// A line feed without a carriage return ended it.
    pub is_bare: bool,
}

impl Lines {
    /// The next line, of which `max` bytes are kept, taken off the front of `bytes`. `None` when all of them are taken and
    /// no line is complete.
    pub(crate) fn next<'a, 'b: 'a>(&'a mut self, bytes: &mut &'b [u8], max: usize) -> Option<Line<'a>> {
        if self.is_told {
            self.clear();
        }
        if self.is_lost {
            let end = memchr::memchr(b'\n', bytes);
            *bytes = &bytes[end.map_or(bytes.len(), |end| end + 1)..];
            self.is_lost = end.is_none();
        }
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.keep(bytes, max);
            *bytes = &[];
            return None;
        };
        let (part, behind) = (&bytes[..end], &bytes[end + 1..]);
        *bytes = behind;
        let (text, length, last) = match self.length {
            0 => (part, part.len(), part.last().copied().unwrap_or_default()),
            _ => {
                self.keep(part, max);
                self.is_told = true;
                (&self.kept[..], self.length, self.last)
            }
        };
        let is_bare = last != b'\r';
        let length = if is_bare { length } else { length - 1 };
        Some(Line { text: &text[..length.min(max)], is_cut: length > max, is_bare })
    }

    /// Keeps a part of a line: up to `max` bytes and a carriage return behind them.
    fn keep(&mut self, part: &[u8], max: usize) {
        let room = (max + 1).saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&part[..part.len().min(room)]);
        self.length = self.length.saturating_add(part.len());
        self.last = part.last().copied().unwrap_or(self.last);
    }

    fn clear(&mut self) {
        self.kept.clear();
        self.length = 0;
        self.is_told = false;
    }

    /// Bytes are missing: goes on behind the next line end.
    pub(crate) fn lose(&mut self) {
        self.clear();
        self.is_lost = true;
    }

    /// Whether the next byte begins a line.
    pub(crate) fn is_at_start(&self) -> bool {
        !self.is_lost && (self.is_told || self.length == 0)
    }

    /// Bytes that it keeps, about.
    pub(crate) fn memory(&self) -> usize {
        self.kept.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = (String, bool, bool);

    fn lines(pieces: &[&[u8]], max: usize) -> Vec<Told> {
        let mut lines = Lines::default();
        let mut told = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while let Some(line) = lines.next(&mut rest, max) {
                told.push((String::from_utf8(line.text.to_vec()).unwrap(), line.is_cut, line.is_bare));
            }
            assert!(lines.kept.len() <= max + 1);
        }
        told
    }

    #[test]
    fn any_cut_gives_the_same_lines() {
        let text = b"one\r\n\r\ntwo\nfour\r\nfive5\r\nsix6\r\r\nseven77\n\n";
        let wanted = [
            ("one", false, false),
            ("", false, false),
            ("two", false, true),
            ("four", false, false),
            ("five", true, false),
            ("six6", true, false),
            ("seve", true, true),
            ("", false, true),
        ];
        let wanted: Vec<Told> = wanted.iter().map(|(text, cut, bare)| (text.to_string(), *cut, *bare)).collect();
        assert_eq!(lines(&[text], 4), wanted);
        for first in 0..text.len() {
            for second in first..text.len() {
                assert_eq!(
                    lines(&[&text[..first], &text[first..second], &text[second..]], 4),
                    wanted,
                    "{first} {second}"
                );
            }
        }
    }

    #[test]
    fn goes_on_behind_a_gap() {
        let mut lines = Lines::default();
        assert_eq!(lines.next(&mut &b"half a li"[..], 80), None);
        lines.lose();
        assert!(!lines.is_at_start());
        let mut rest = &b"ne\r\nwhole\r\n"[..];
        assert_eq!(lines.next(&mut rest, 80).map(|line| line.text), Some(&b"whole"[..]));
        assert!(lines.is_at_start());
    }
}
