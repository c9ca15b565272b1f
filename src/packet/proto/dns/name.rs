//! Domain names on the wire (RFC 1035, 3.1 and 4.1.4).

/// Bytes of a name on the wire, with its lengths and the root.
const NAME_MAX: usize = 255;

/// Pointers that a name may go by. Servers compress by one or two; a chain of them only costs time.
const JUMPS_MAX: usize = 32;

/// Appends the name that stands at `at`, without the dot at its end; where the next field begins. What stands in place must
/// end by `end`. A pointer leads back only, before the labels that led to it, so that no name goes round; into the header
/// is odd, but servers follow it.
pub(super) fn push_name(text: &mut String, message: &[u8], at: usize, end: usize) -> Option<usize> {
    let mut at = at;
    let mut end = end.min(message.len());
    let mut start = at;
    let mut next = None;
    let mut length = 1;
    let mut jumps = 0;
    let begin = text.len();
    loop {
        if at >= end {
            return None;
        }
        let first = message[at];
        match first >> 6 {
            0 if first == 0 => return Some(next.unwrap_or(at + 1)),
            0 => {
                let label = message.get(at + 1..at + 1 + usize::from(first))?;
                at += 1 + label.len();
                length += 1 + label.len();
                if length > NAME_MAX || at > end {
                    return None;
                }
                if text.len() > begin {
                    text.push('.');
                }
                push_label(text, label);
            }
            3 => {
                if at + 2 > end {
                    return None;
                }
                let target = usize::from(u16::from_be_bytes([first & 0x3f, message[at + 1]]));
                next.get_or_insert(at + 2);
                jumps += 1;
                if target >= start || jumps > JUMPS_MAX {
                    return None;
                }
                (at, start, end) = (target, target, message.len());
            }
            _ => return None,
        }
    }
}

/// As [`push_name`], the root as a dot.
pub(super) fn push_name_or_dot(text: &mut String, message: &[u8], at: usize, end: usize) -> Option<usize> {
    let before = text.len();
    let next = push_name(text, message, at, end)?;
    if text.len() == before {
        text.push('.');
    }
    Some(next)
}

fn push_label(text: &mut String, label: &[u8]) {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && !b".\\".contains(byte);
    if label.iter().all(is_plain)
        && let Ok(label) = str::from_utf8(label)
    {
        return text.push_str(label);
    }
    for byte in label {
        if *byte == b'.' {
            text.push_str("\\.");
        } else if *byte == b' ' {
            text.push_str("\\032");
        } else {
            push_byte(text, *byte);
        }
    }
}

/// Appends a byte as zone files write it: a backslash doubled, what cannot be printed as three decimal digits.
pub(super) fn push_byte(text: &mut String, byte: u8) {
    match byte {
        b'\\' => text.push_str("\\\\"),
        b' '..=b'~' => text.push(char::from(byte)),
        _ => {
            text.push('\\');
            for divisor in [100, 10, 1] {
                text.push(char::from(b'0' + byte / divisor % 10));
            }
        }
    }
}
