//! Google's QUIC before TLS (Q039 to Q050): the client's hello, a table of tags and values; in the clear but for Q050.

use crate::packet::proto::reader::Reader;

/// Flags of a packet with a version and an 8-byte id: one byte of packet number, or four.
const OLD_FLAGS: [u8; 2] = [0x09, 0x0d];
/// Where the hello begins at the latest: header, hash and the frame's own header stand before it.
const HELLO_AT_MAX: usize = 64;
/// Entries of the table at most.
const TAGS_MAX: usize = 128;

/// What a client's first packet says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello<'a> {
    /// `Q` and three digits.
    pub(super) version: u32,
    /// The name that it asks for.
    pub(super) server_name: Option<&'a [u8]>,
}

/// The hello of a datagram, if it is such a client's first.
pub(super) fn hello(datagram: &[u8]) -> Option<Hello<'_>> {
    let version_at = match datagram.first()? {
        first if OLD_FLAGS.contains(first) => 9,
        first if first & 0xc0 == 0xc0 => 1,
        _ => return None,
    };
    let version: [u8; 4] = *datagram.get(version_at..)?.first_chunk()?;
    if version[0] != b'Q' || !version[1..].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let server_name = server_name(datagram)?;
    Some(Hello { version: u32::from_be_bytes(version), server_name })
}

/// The name in the hello that begins near the start of these bytes, if there is a hello: of Q050 its opened frames.
pub(super) fn server_name(bytes: &[u8]) -> Option<Option<&[u8]>> {
    let at = bytes.windows(4).take(HELLO_AT_MAX).position(|tag| tag == b"CHLO")?;
    Some(value(&bytes[at + 4..], b"SNI\0"))
}

/// A tag's value. The table says of each where it ends, counted from the table's end; numbers are little-endian.
fn value<'a>(message: &'a [u8], wanted: &[u8; 4]) -> Option<&'a [u8]> {
    let mut reader = Reader::new(message);
    let count = usize::from(reader.u16()?.swap_bytes());
    reader.take(2)?;
    if count > TAGS_MAX {
        return None;
    }
    let values = message.get(4 + 8 * count..)?;
    let mut start = 0;
    for _ in 0..count {
        let tag = reader.take(4)?;
        let end = usize::try_from(reader.u32()?.swap_bytes()).ok()?;
        if tag == wanted {
            return values.get(start..end);
        }
        start = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(tags: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut message = b"CHLO".to_vec();
        message.extend((tags.len() as u16).to_le_bytes());
        message.extend([0; 2]);
        let mut end = 0;
        for (tag, value) in tags {
            end += value.len() as u32;
            message.extend(*tag);
            message.extend(end.to_le_bytes());
        }
        tags.iter().for_each(|(_, value)| message.extend(*value));
        message
    }

    #[test]
    fn the_name_is_found_in_both_headers() {
        let table = table(&[(b"PAD\0", &[0; 9]), (b"SNI\0", b"www.example.org"), (b"VER\0", b"Q043")]);
        let old = [&[0x0d][..], &[7; 8], b"Q043", &[1], &[5; 12], &[0xa0, 1, 0, 4], &table].concat();
        let name = Some(&b"www.example.org"[..]);
        assert_eq!(hello(&old), Some(Hello { version: 0x5130_3433, server_name: name }));
        let new = [&[0xc3][..], b"Q046", &[0x50], &[7; 8], &[0, 0, 0, 1], &[5; 12], &[0xa0, 1, 0, 4], &table].concat();
        assert_eq!(hello(&new), Some(Hello { version: 0x5130_3436, server_name: name }));
        // Cut anywhere, it is found or not, and never another.
        for length in 0..new.len() {
            let found = hello(&new[..length]).and_then(|hello| hello.server_name);
            assert!(found.is_none() || found == name, "{length}");
        }
    }

    #[test]
    fn tables_that_lie_have_no_name() {
        let value = |tags: &[(&[u8; 4], u32)]| {
            let mut message = (tags.len() as u16).to_le_bytes().to_vec();
            message.extend([0; 2]);
            for (tag, end) in tags {
                message.extend(*tag);
                message.extend(end.to_le_bytes());
            }
            message.extend([9; 10]);
            super::value(&message, b"SNI\0").map(<[u8]>::to_vec)
        };
        assert_eq!(value(&[(b"SNI\0", 10)]), Some(vec![9; 10]));
        assert_eq!(value(&[(b"SNI\0", 11)]), None);
        assert_eq!(value(&[(b"PAD\0", 8), (b"SNI\0", 4)]), None);
        assert_eq!(value(&[(b"PAD\0", u32::MAX), (b"SNI\0", 4)]), None);
    }
}
