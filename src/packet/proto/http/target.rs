//! Who is asked: the authority of a target, and what it consists of.

/// The authority of a request's target: all of it for CONNECT, what stands behind `scheme://` of an absolute one
/// (RFC 9112, 3.2).
pub fn authority<'a>(method: &[u8], target: &'a [u8]) -> Option<&'a [u8]> {
    if method == b"CONNECT" {
        return Some(target);
    }
    // An origin form is the rule: no search in it.
    if target.first().is_none_or(|first| !first.is_ascii_alphabetic()) {
        return None;
    }
    let colon = memchr::memchr(b':', target)?;
    let is_scheme = target[..colon].iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b));
    let rest = target[colon + 1..].strip_prefix(b"//")?;
    let end = rest.iter().position(|b| b"/?#".contains(b)).unwrap_or(rest.len());
    is_scheme.then_some(&rest[..end])
}

/// Host and port of an authority (RFC 3986, 3.2), without user information. The host of an IPv6 address keeps its
/// brackets. `None` when it is malformed.
pub fn split(authority: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let authority = match memchr::memrchr(b'@', authority) {
        Some(at) => &authority[at + 1..],
        None => authority,
    };
    let host_len = match authority.first()? {
        b'[' => memchr::memchr(b']', authority)? + 1,
        _ => memchr::memchr(b':', authority).unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(host_len);
    let is_host = !host.is_empty() && host.iter().all(|b| b.is_ascii_graphic() && !b"/\\?#,".contains(b) || *b >= 0x80);
    let port = match rest {
        [] | [b':'] => None,
        [b':', digits @ ..] => Some(port_of(digits)?),
        _ => return None,
    };
    is_host.then_some((host, port))
}

fn port_of(digits: &[u8]) -> Option<u16> {
    if digits.len() > 5 {
        return None;
    }
    let number = digits.iter().try_fold(0_u32, |sum, b| b.is_ascii_digit().then(|| sum * 10 + u32::from(b - b'0')));
    u16::try_from(number?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, target: &str, expected: Option<&str>) {
        assert_eq!(authority(method.as_bytes(), target.as_bytes()), expected.map(str::as_bytes), "{method} {target}");
    }

    #[test]
    fn the_authority_of_targets() {
        check("GET", "/a:b//c", None);
        check("GET", "http://x.example/a", Some("x.example"));
        check("GET", "http://x.example?q", Some("x.example"));
        check("GET", "HTTP://u:p@x.example:81", Some("u:p@x.example:81"));
        check("GET", "mailto:a@b", None);
        check("OPTIONS", "*", None);
        check("CONNECT", "x.example:443", Some("x.example:443"));
    }

    #[test]
    fn host_and_port_of_authorities() {
        let split = |text: &'static str| {
            split(text.as_bytes()).map(|(host, port)| (String::from_utf8_lossy(host).into_owned(), port))
        };
        for (text, host, port) in [
            ("x.example", "x.example", None),
            ("x.example:", "x.example", None),
            ("x.example:8080", "x.example", Some(8080)),
            ("[2001:db8::1]", "[2001:db8::1]", None),
            ("[2001:db8::1]:80", "[2001:db8::1]", Some(80)),
            ("user:secret@x.example:1", "x.example", Some(1)),
        ] {
            assert_eq!(split(text), Some((host.to_owned(), port)), "{text}");
        }
        for text in ["", ":80", "x:99999", "x:+80", "x:8 0", "[::1", "[::1]x", "a b", "a,b", "x:80:80", "u@"] {
            assert_eq!(split(text), None, "{text}");
        }
    }
}
