//! Reads fields from a slice: what is not there is `None`, and nothing is read twice.

/// What is left to read. Numbers are big-endian, as networks write them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { left: bytes }
    }

    /// What was not read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.left
    }

    /// Whether all was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.left.split_at_checked(count)?;
        self.left = left;
        Some(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, left) = self.left.split_first_chunk::<N>()?;
        self.left = left;
        Some(*taken)
    }

    /// One byte.
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    /// Two bytes.
    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Three bytes.
    pub(crate) fn u24(&mut self) -> Option<u32> {
        self.array().map(|[a, b, c]| u32::from_be_bytes([0, a, b, c]))
    }

    /// Four bytes.
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// What a length of one byte stands before.
    pub(crate) fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// What a length of two bytes stands before.
    pub(crate) fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    /// As [`Reader::vector16`]; of what was cut off the part that is there, and whether it is whole.
    pub(crate) fn vector16_lenient(&mut self) -> Option<(&'a [u8], bool)> {
        let length = usize::from(self.u16()?);
        let there = length.min(self.left.len());
        Some((self.take(there)?, there == length))
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    push_hex(&mut text, bytes);
    text
}

/// Appends bytes as lower-case hexadecimal digits.
pub(crate) fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_none_and_moves_nothing() {
        let mut reader = Reader::new(&[1, 2, 3, 0, 2, 9]);
        assert_eq!(reader.u24(), Some(0x010203));
        assert_eq!(reader.u32(), None);
        assert_eq!(reader.rest(), [0, 2, 9]);
        assert_eq!(reader.clone().vector16(), None);
        assert_eq!(reader.vector16_lenient(), Some((&[9][..], false)));
        assert!(reader.is_empty());
        assert_eq!(hex(&[0, 0xaf]), "00af");
    }
}
