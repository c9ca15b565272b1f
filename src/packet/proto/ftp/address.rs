//! Addresses as FTP writes them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Six numbers: an IPv4 address and a port, high byte first (RFC 959, PORT and reply 227).
pub(super) fn six(text: &[u8]) -> Option<SocketAddr> {
    let mut parts = text.split(|byte| *byte == b',');
    let mut numbers = [0u8; 6];
    for number in &mut numbers {
        *number = str::from_utf8(parts.next()?.trim_ascii()).ok()?.parse().ok()?;
    }
    let [a, b, c, d, high, low] = numbers;
    let port = u16::from_be_bytes([high, low]);
    (parts.next().is_none() && port > 0).then(|| SocketAddr::from((Ipv4Addr::new(a, b, c, d), port)))
}

/// The six numbers in the text of a reply 227: servers put them into brackets, or do not (RFC 1123, 4.1.2.6).
pub(super) fn six_of_reply(text: &[u8]) -> Option<SocketAddr> {
    let is_part = |byte: &u8| byte.is_ascii_digit() || *byte == b',';
    text.split(|byte| !is_part(byte)).find_map(six)
}

/// `|family|address|port|` with any delimiter (RFC 2428, 2).
pub(super) fn extended(text: &[u8]) -> Option<SocketAddr> {
    let (family, address, port) = three(text)?;
    let address: IpAddr = address.parse().ok()?;
    let is_family = match address {
        IpAddr::V4(_) => family == "1",
        IpAddr::V6(_) => family == "2",
    };
    is_family.then(|| SocketAddr::new(address, port))
}

/// `(|||port|)` in the text of a reply 229 (RFC 2428, 3): the address is the server's own.
pub(super) fn extended_of_reply(text: &[u8]) -> Option<SocketAddr> {
    let start = memchr::memchr(b'(', text)? + 1;
    let end = start + memchr::memchr(b')', &text[start..])?;
    let (_, _, port) = three(&text[start..end])?;
    Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
}

/// The three fields between four delimiters.
fn three(text: &[u8]) -> Option<(&str, &str, u16)> {
    let delimiter = *text.first().filter(|byte| byte.is_ascii_graphic() && !byte.is_ascii_alphanumeric())?;
    let text = str::from_utf8(text).ok()?;
    let mut parts = text.split(char::from(delimiter)).skip(1);
    let (family, address, port) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
    // Behind the last delimiter stands nothing more.
    let is_end = parts.next() == Some("") && parts.next().is_none();
    (is_end && port > 0).then_some((family, address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: Option<SocketAddr>, wanted: &str) {
        assert_eq!(found.map_or_else(|| "none".to_string(), |address| address.to_string()), wanted);
    }

    #[test]
    fn reads_addresses() {
        check(six(b"10,0,0,1,4,1"), "10.0.0.1:1025");
        check(six(b" 10, 0,0,1,255,255 "), "10.0.0.1:65535");
        for bad in [&b"10,0,0,1,4"[..], b"10,0,0,1,4,1,1", b"256,0,0,1,4,1", b"10,0,0,1,0,0", b"", b"+1,0,0,1,4,1x"] {
            check(six(bad), "none");
        }
        check(six_of_reply(b"Entering Passive Mode (127,0,0,1,137,127)."), "127.0.0.1:35199");
        check(six_of_reply(b"2 ways: 127,0,0,1,137,127"), "127.0.0.1:35199");
        check(six_of_reply(b"Entering Passive Mode (127,0,0,1,137)"), "none");
        check(extended(b"|1|132.235.1.2|6275|"), "132.235.1.2:6275");
        check(extended(b"!2!1080::8:800:200c:417a!5282!"), "[1080::8:800:200c:417a]:5282");
        for bad in
            [&b"|2|132.235.1.2|6275|"[..], b"|1|132.235.1.2|0|", b"|1|132.235.1.2|6275", b"1|1|a|b", b"|1|1.2.3.4|1||"]
        {
            check(extended(bad), "none");
        }
        check(extended_of_reply(b"Entering Extended Passive Mode (|||6446|)"), "0.0.0.0:6446");
        check(extended_of_reply(b"odd (###65535#) text"), "0.0.0.0:65535");
        check(extended_of_reply(b"(|||65536|)"), "none");
        check(extended_of_reply(b") ("), "none");
    }
}
