//! Who logs in by NTLM.

use super::names::{Fields, utf16};

/// Longest name that is kept, in bytes of the wire.
const NAME_MAX: usize = 512;

/// User and domain of an AUTHENTICATE message ([MS-NLMP] 2.2.1.3), wherever it stands in a security blob: SPNEGO
/// wraps it in ASN.1 of which nothing else is wanted.
pub(super) fn user(blob: &[u8]) -> Option<(String, String)> {
    let start = memchr::memmem::find(blob, b"NTLMSSP\0")?;
    let message = Fields(&blob[start..]);
    if message.u32(8)? != 3 {
        return None;
    }
    let is_unicode = message.u32(60).is_none_or(|flags| flags & 1 != 0);
    let name = |at: usize| {
        let (length, offset) = (message.u16(at)?, message.u32(at + 4)?);
        let bytes = message.at_most(usize::try_from(offset).ok()?, usize::from(length).min(NAME_MAX));
        Some(if is_unicode { utf16(bytes) } else { String::from_utf8_lossy(bytes).into_owned() })
    };
    let (domain, user) = (name(28)?, name(36)?);
    // An anonymous login has no name.
    (!user.is_empty()).then_some((user, domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u32, flags: u32, user: &[u8], domain: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x60\x81SPNEGO NTLMSSP\0".to_vec();
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        let mut offset = 64u32;
        for name in [domain, user, b""] {
            let length = (name.len() as u16).to_le_bytes();
            bytes.extend_from_slice(&[&length[..], &length, &offset.to_le_bytes()].concat());
            offset += name.len() as u32;
        }
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&flags.to_le_bytes());
        [bytes, domain.to_vec(), user.to_vec()].concat()
    }

    #[test]
    fn finds_names() {
        let pair = |user: &str, domain: &str| Some((user.to_string(), domain.to_string()));
        assert_eq!(user(&message(3, 1, b"b\0o\0b\0", b"L\0A\0B\0")), pair("bob", "LAB"));
        assert_eq!(user(&message(3, 2, b"bob", b"LAB")), pair("bob", "LAB"));
        assert_eq!(user(&message(1, 1, b"b\0", b"")), None);
        assert_eq!(user(&message(3, 1, b"", b"L\0")), None);
        assert_eq!(user(b"no such thing"), None);
        let whole = message(3, 1, b"b\0o\0b\0", b"L\0A\0B\0");
        for end in 0..whole.len() {
            user(&whole[..end]);
        }
    }
}
