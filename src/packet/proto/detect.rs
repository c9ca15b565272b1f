//! What protocol a conversation speaks, by its first bytes.
//!
//! Each side's bytes are looked at alone; only SMTP and FTP, which greet and command alike, are told apart by both
//! sides together. Checks are strict, since a wrong answer makes a parser report oddities of a protocol that nobody
//! spoke, and "no" is a fine answer. A port alone decides nothing: it breaks the tie between SMTP and FTP when a
//! client says nothing that only one of them knows, and off its own port DNS is held to a tighter form.

mod talk;
#[cfg(test)]
mod tests;

use super::{AppProto, Side};
use talk::talk;

/// Bytes of a stream's start that are looked at.
pub const PREFIX_MAX: usize = 512;

/// Bytes of a stream's start that who keeps it needs: of empty lines in front no more than [`PREFIX_MAX`], whose number
/// changes no answer, and as much behind them.
pub const START_MAX: usize = 2 * PREFIX_MAX;

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// It is this one.
    Yes {
        /// The protocol.
        protocol: AppProto,
        /// Which of the two given sides is the protocol's client: the server, when the conversation was picked up at a
        /// response and the sides were guessed the wrong way round.
        client: Side,
    },
    /// None that is known here.
    No,
    /// Not to be said yet.
    More,
}

/// Longest name of an HTTP method or of a command that is waited for.
const WORD_MAX: usize = 32;

/// What one side's bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// The protocol, and who says such bytes; `None` where both do.
    Is(AppProto, Option<Side>),
    /// It may become one.
    Open,
    /// None.
    Not,
}

/// Finds the protocol by what both sides sent so far: of TCP the starts of both streams, of UDP the first datagram of
/// each side; what stands behind [`PREFIX_MAX`] bytes is not looked at, nor what stands so far behind empty lines.
///
/// For bytes of one side, more of them never change an answer other than [`Detected::More`]; so the answer does not
/// depend on how a stream was cut. A side that says nothing known is not given up alone: servers are lenient with what
/// they take for a request, and their answer tells what it was. With both prefixes full the answer is `More` only where
/// one of them is nothing but empty lines.
pub fn detect(is_udp: bool, client: &[u8], server: &[u8], server_port: u16) -> Detected {
    let starts = (client, server);
    let client = &client[..client.len().min(PREFIX_MAX)];
    let server = &server[..server.len().min(PREFIX_MAX)];
    if is_udp {
        return both(look_datagram(client, server_port), look_datagram(server, server_port)).unwrap_or(
            // A datagram is whole: what it does not say now it will not say later.
            if client.is_empty() && server.is_empty() { Detected::More } else { Detected::No },
        );
    }
    let looks = (look_stream(starts.0, server_port), look_stream(starts.1, server_port));
    if let Some(found) = both(looks.0, looks.1) {
        return found;
    }
    let talks = (talk(client, server, server_port), talk(server, client, server_port));
    if let Some(found) = both(talks.0, talks.1) {
        return found;
    }
    let is_open = [looks.0, looks.1, talks.0, talks.1].contains(&Look::Open);
    if is_open { Detected::More } else { Detected::No }
}

/// The protocol that a datagram begins beyond doubt, whatever was said before it: who wants to hide a connection sends
/// something else first, which its receiver drops. It is asked of each datagram of a flow, so that a chance of 2^-32
/// must not do: of QUIC it knows the versions that servers speak.
pub fn begins(datagram: &[u8]) -> Option<AppProto> {
    let bytes = datagram.get(..PREFIX_MAX)?;
    let is_sure = bytes[0] & 0xc0 == 0xc0 && initial_kind(quic_version(bytes)).is_some() && quic(bytes) != Look::Not;
    is_sure.then_some(AppProto::Quic)
}

/// The answer if one of the two is sure.
fn both(client: Look, server: Look) -> Option<Detected> {
    let (protocol, speaker, given) = match (client, server) {
        (Look::Is(protocol, speaker), _) => (protocol, speaker, Side::Client),
        (_, Look::Is(protocol, speaker)) => (protocol, speaker, Side::Server),
        _ => return None,
    };
    let is_right = speaker.is_none_or(|speaker| speaker == given);
    Some(Detected::Yes { protocol, client: if is_right { Side::Client } else { Side::Server } })
}

/// What the start of one side's stream says, as far as one side can tell.
fn look_stream(start: &[u8], server_port: u16) -> Look {
    if start.is_empty() {
        return Look::Open;
    }
    let bytes = &start[..start.len().min(PREFIX_MAX)];
    // SSH first: its banner may go on as a request line does, and is sure before that ends.
    let looks =
        [ssh(bytes), http(start), http2(bytes), tls(bytes), sslv2(bytes), smb(bytes), dns_stream(bytes, server_port)];
    let sure = looks.iter().find(|look| matches!(look, Look::Is(..)));
    let open = looks.iter().find(|look| **look == Look::Open);
    *sure.or(open).unwrap_or(&Look::Not)
}

/// What a side's first datagram says.
fn look_datagram(bytes: &[u8], server_port: u16) -> Look {
    match quic(bytes) {
        Look::Not => dns_datagram(bytes, server_port),
        found => found,
    }
}

/// Compares the start of `bytes` with `wanted`: `Is` stands for all of it.
fn starts(bytes: &[u8], wanted: &[u8]) -> Option<bool> {
    let shared = bytes.len().min(wanted.len());
    (bytes[..shared] == wanted[..shared]).then_some(bytes.len() >= wanted.len())
}

/// As [`starts`], in any case of letters.
fn starts_in_any_case(bytes: &[u8], wanted: &[u8]) -> Option<bool> {
    let shared = bytes.len().min(wanted.len());
    bytes[..shared].eq_ignore_ascii_case(&wanted[..shared]).then_some(bytes.len() >= wanted.len())
}

/// Methods that may stand before a target whose line is longer than the prefix, or has no version (RFC 9110, 9; RFC
/// 4918; RFC 3253; RFC 5789).
const METHODS: [&str; 31] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "SEARCH",
    "REPORT",
    "MKACTIVITY",
    "CHECKOUT",
    "CHECKIN",
    "UNCHECKOUT",
    "MERGE",
    "BIND",
    "ACL",
    "MKCALENDAR",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "LINK",
    "UNLINK",
    "PURGE",
];

/// Bytes of line ends that a stream begins with.
pub fn blank_start(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
}

/// HTTP/1: a request line or a status line (RFC 9112, 3 and 4).
fn http(start: &[u8]) -> Look {
    if let Some(whole) = starts(start, b"HTTP/") {
        return if whole { status_line(&start[5..]) } else { Look::Open };
    }
    // Servers skip empty lines before a request (RFC 9112, 2.2), some of them any number.
    let bytes = &start[blank_start(start)..];
    let bytes = &bytes[..bytes.len().min(PREFIX_MAX)];
    let word = bytes.iter().take(WORD_MAX + 1).take_while(|byte| is_token(**byte)).count();
    if word == bytes.len() && word <= WORD_MAX {
        return Look::Open;
    }
    if word == 0 || word > WORD_MAX || !matches!(bytes[word], b' ' | b'\t') {
        return Look::Not;
    }
    request_line(&bytes[..word], &bytes[word..], bytes.len() == PREFIX_MAX)
}

/// A request line from behind its method on.
fn request_line(method: &[u8], rest: &[u8], is_full: bool) -> Look {
    let is_known = METHODS.iter().any(|known| known.as_bytes() == method);
    let line_end = rest.iter().position(|byte| *byte == b'\n');
    let line = rest[..line_end.unwrap_or(rest.len())].trim_ascii();
    // Control bytes stand in no request line; bytes above ASCII stand in those of careless clients.
    if line.iter().any(|byte| *byte < b' ' && *byte != b'\t' || *byte == 0x7f) {
        return Look::Not;
    }
    let schemes = || [&b"http://"[..], b"https://"].map(|scheme| starts_in_any_case(line, scheme));
    let starts_as_target = || line.first() == Some(&b'/') || schemes().contains(&Some(true));
    // Servers skip any number of spaces in front of the target, so that it may come later, or be cut.
    let may_start_as_target = || starts_as_target() || schemes().contains(&Some(false));
    match line_end {
        None if is_full && is_known && may_start_as_target() => Look::Is(AppProto::Http, Some(Side::Client)),
        None if is_full => Look::Not,
        None => Look::Open,
        Some(_) => {
            let version = line.rsplit(|byte| matches!(byte, b' ' | b'\t')).next().unwrap_or_default();
            let has_target = version.len() < line.len();
            let is_versioned = has_target && starts(version, b"HTTP/") == Some(true) && version.len() > 5;
            let is_simple = method == b"GET" && !has_target && starts_as_target();
            // "PRI * HTTP/2.0" opens HTTP/2 or nothing.
            if (is_versioned || is_simple) && method != b"PRI" {
                Look::Is(AppProto::Http, Some(Side::Client))
            } else {
                Look::Not
            }
        }
    }
}

/// A status line from behind `HTTP/` on: a version of 0 or 1, then a code.
fn status_line(rest: &[u8]) -> Look {
    let fits = |at: usize, good: fn(u8) -> bool| rest.get(at).is_none_or(|byte| good(*byte));
    let is_fit = fits(0, |byte| matches!(byte, b'0' | b'1'))
        && fits(1, |byte| byte == b'.')
        && fits(2, |byte| byte.is_ascii_digit())
        && fits(3, |byte| matches!(byte, b' ' | b'\t'));
    match is_fit {
        false => Look::Not,
        true if rest.len() < 5 => Look::Open,
        true if rest[4].is_ascii_digit() || rest[4] == b' ' => Look::Is(AppProto::Http, Some(Side::Server)),
        true => Look::Not,
    }
}

/// Bytes of a token (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The preface of HTTP/2 (RFC 9113, 3.4).
fn http2(bytes: &[u8]) -> Look {
    match starts(bytes, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") {
        Some(true) => Look::Is(AppProto::Http2, Some(Side::Client)),
        Some(false) => Look::Open,
        None => Look::Not,
    }
}

/// TLS: a record of a handshake that begins with a hello (RFC 8446, 4 and 5.1). The hello may be cut into records of
/// any size, down to a byte each.
fn tls(bytes: &[u8]) -> Look {
    // Type, length and version of the hello.
    let mut hello = [0u8; 6];
    let mut have = 0;
    let mut rest = bytes;
    while have < hello.len() {
        // Of the version receivers ask the first byte only.
        if starts(rest, &[22, 3]).is_none() {
            return Look::Not;
        }
        if rest.len() < 5 {
            return Look::Open;
        }
        let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        // 2^14 bytes of fragment (RFC 8446, 5.1), none of which may be empty in a handshake.
        if length == 0 || length > 1 << 14 {
            return Look::Not;
        }
        rest = &rest[5..];
        let taken = length.min(rest.len()).min(hello.len() - have);
        hello[have..have + taken].copy_from_slice(&rest[..taken]);
        have += taken;
        if have < hello.len() && rest.len() < length {
            break;
        }
        rest = &rest[length.min(rest.len())..];
    }
    tls_hello(&hello[..have])
}

/// The first six bytes of a hello, as far as they are there.
fn tls_hello(hello: &[u8]) -> Look {
    let (speaker, least) = match hello.first() {
        None => return Look::Open,
        Some(1) => (Side::Client, 38),
        Some(2) => (Side::Server, 38),
        Some(_) => return Look::Not,
    };
    if hello.len() >= 4 {
        let length = u32::from_be_bytes([0, hello[1], hello[2], hello[3]]);
        // The largest hello that two extension blocks' worth of key shares makes.
        if !(least..=1 << 17).contains(&length) {
            return Look::Not;
        }
    }
    match hello.get(4..) {
        Some([3, 0..=4]) => Look::Is(AppProto::Tls, Some(speaker)),
        Some([] | [3]) | None => Look::Open,
        Some(_) => Look::Not,
    }
}

/// The hello of SSL 2, in which clients of old offered SSL 3 and TLS (RFC 5246, E.2).
fn sslv2(bytes: &[u8]) -> Look {
    let fits = |at: usize, good: &dyn Fn(u8) -> bool| bytes.get(at).is_none_or(|byte| good(*byte));
    let is_fit = fits(0, &|byte| byte & 0x80 != 0)
        && fits(2, &|byte| byte == 1)
        && fits(3, &|byte| byte == 0 || byte == 3)
        && fits(4, &|byte| byte <= 3);
    if !is_fit {
        return Look::Not;
    }
    if bytes.len() < 11 {
        return Look::Open;
    }
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (ciphers, session, challenge) = (word(5), word(7), word(9));
    let length = u32::from(word(0) & 0x7fff);
    let is_whole = length == 9 + u32::from(ciphers) + u32::from(session) + u32::from(challenge);
    let is_version = word(3) == 2 || bytes[3] == 3;
    let is_sane = ciphers > 0 && ciphers % 3 == 0 && matches!(session, 0 | 16) && (16..=32).contains(&challenge);
    if is_whole && is_version && is_sane { Look::Is(AppProto::Tls, Some(Side::Client)) } else { Look::Not }
}

/// The banner of SSH (RFC 4253, 4.2), which both sides send alike.
fn ssh(bytes: &[u8]) -> Look {
    match starts(bytes, b"SSH-") {
        Some(true) => {}
        Some(false) => return Look::Open,
        None => return Look::Not,
    }
    let fits = |at: usize, good: fn(u8) -> bool| bytes.get(at).is_none_or(|byte| good(*byte));
    let is_fit = fits(4, |byte| matches!(byte, b'1' | b'2'))
        && fits(5, |byte| byte == b'.')
        && fits(6, |byte| byte.is_ascii_digit());
    match is_fit {
        true if bytes.len() >= 7 => Look::Is(AppProto::Ssh, None),
        true => Look::Open,
        false => Look::Not,
    }
}

/// SMB over TCP: a NetBIOS session header (RFC 1002, 4.3.1; of [MS-SMB2] 2.1 the direct form), then a header of SMB.
/// On the NetBIOS port a session is asked for first.
fn smb(bytes: &[u8]) -> Look {
    match bytes[0] {
        0x00 => smb_message(bytes),
        0x81 => match session_request(bytes) {
            Some(true) => smb_after(bytes, 72),
            Some(false) => Look::Open,
            None => Look::Not,
        },
        // The session is granted.
        0x82 => match starts(bytes, &[0x82, 0, 0, 0]) {
            Some(true) => smb_after(bytes, 4),
            Some(false) => Look::Open,
            None => Look::Not,
        },
        _ => Look::Not,
    }
}

/// What stands behind the first `at` bytes, which are there.
fn smb_after(bytes: &[u8], at: usize) -> Look {
    match bytes.get(at..) {
        None | Some([]) => Look::Open,
        Some(rest) if rest[0] == 0 => smb_message(rest),
        Some(_) => Look::Not,
    }
}

/// A message of any SMB that begins with a zero byte. Its flags tell who sent it.
fn smb_message(bytes: &[u8]) -> Look {
    let magic = bytes.get(4..bytes.len().min(8)).unwrap_or_default();
    let first = magic.first().copied().unwrap_or(0xff);
    // SMB 1, SMB 2 and 3, encrypted, compressed: where the flags stand, and the least length.
    let (flags_at, least) = match first {
        0xff => (4 + 9, 35),
        0xfe => (4 + 16, 64 + 2),
        0xfd => (4, 52),
        0xfc => (4, 16),
        _ => return Look::Not,
    };
    if starts(&magic[magic.len().min(1)..], b"SMB").is_none() {
        return Look::Not;
    }
    if bytes.len() <= flags_at || magic.len() < 4 {
        return Look::Open;
    }
    let length = u32::from_be_bytes([0, bytes[1], bytes[2], bytes[3]]);
    if length < least {
        return Look::Not;
    }
    let side = |is_reply: bool| Some(if is_reply { Side::Server } else { Side::Client });
    match first {
        0xff => Look::Is(AppProto::Smb, side(bytes[flags_at] & 0x80 != 0)),
        // StructureSize is always 64.
        0xfe if bytes[8..10] != [64, 0] => Look::Not,
        0xfe => Look::Is(AppProto::Smb, side(bytes[flags_at] & 1 != 0)),
        _ => Look::Is(AppProto::Smb, None),
    }
}

/// Whether a NetBIOS session request stands there whole: two names of 16 bytes, each byte as two letters from `A` to
/// `P` (RFC 1002, 4.1 and 4.3.2). `None` if it is none.
fn session_request(bytes: &[u8]) -> Option<bool> {
    let is_fit = bytes.iter().take(72).enumerate().all(|(at, byte)| match at {
        0..4 => [0x81, 0, 0, 68][at] == *byte,
        4 | 38 => *byte == 32,
        37 | 71 => *byte == 0,
        _ => (b'A'..=b'P').contains(byte),
    });
    is_fit.then_some(bytes.len() >= 72)
}

/// Port of DNS.
const DNS_PORT: u16 = 53;

/// Whether a message of DNS over TCP begins here, on a port that says nothing; `None` when more bytes are needed, of
/// which [`PREFIX_MAX`] are enough.
pub(super) fn is_dns_message(bytes: &[u8]) -> Option<bool> {
    match dns_stream(bytes, 0) {
        Look::Is(..) => Some(true),
        Look::Not => Some(false),
        Look::Open => None,
    }
}

/// DNS over TCP: a length, then a message (RFC 1035, 4.2.2).
fn dns_stream(bytes: &[u8], server_port: u16) -> Look {
    if bytes.len() < 2 {
        return Look::Open;
    }
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let message = &bytes[2..bytes.len().min(2 + length)];
    dns(message, length, server_port)
}

/// DNS over UDP.
fn dns_datagram(bytes: &[u8], server_port: u16) -> Look {
    // The names of NetBIOS stand in the same form, under a name of its own; so do those of mDNS and LLMNR, which do
    // not ask for recursion (RFC 6762, 18.6; RFC 4795, 2.1.1), as one who asks a real server there does.
    let is_recursive = bytes.len() > 2 && bytes[2] & 1 != 0 && bytes[..2] != [0, 0];
    if server_port == 137 || matches!(server_port, 5353 | 5355) && !is_recursive {
        return Look::Not;
    }
    // A datagram that fills the prefix may be longer.
    let length = if bytes.len() == PREFIX_MAX { usize::from(u16::MAX) } else { bytes.len() };
    match dns(bytes, length, server_port) {
        Look::Open => Look::Not,
        sure => sure,
    }
}

/// A message of `length` bytes, of which the first ones are there: header and first question must be sane
/// (RFC 1035, 4.1). Off port 53 it must be a plain query or response of names that are text.
fn dns(message: &[u8], length: usize, server_port: u16) -> Look {
    if length < 12 + 5 {
        return Look::Not;
    }
    let is_home = server_port == DNS_PORT;
    // An inverse query holds the answer, and asks for the question (RFC 1035, 6.4).
    let is_inverse = is_home && message.get(2).is_some_and(|flags| flags & 0xf8 == 0x08);
    // One question, an opcode that exists, and the reserved bit: looked at as they come, to be done with others soon.
    let is_fit = message.iter().take(6).enumerate().all(|(at, byte)| match at {
        2 => byte >> 3 & 0xf <= 6 && (is_home || byte & 0x80 != 0 || length <= 1024),
        3 => byte & 0x40 == 0,
        4 => *byte == 0,
        5 => *byte == u8::from(!is_inverse),
        _ => true,
    });
    if !is_fit {
        return Look::Not;
    }
    if message.len() < 12 {
        return Look::Open;
    }
    let count = |at: usize| usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    let records = count(6) + count(8) + count(10);
    let is_response = message[2] & 0x80 != 0;
    let opcode = message[2] >> 3 & 0xf;
    // A query has no code; truncation and "recursion available" are a server's to say.
    let is_plain = opcode == 0 && (is_response || message[2] & 0x06 == 0 && message[3] & 0x8f == 0 && count(6) == 0);
    if !is_home && !is_plain || is_inverse && (count(6), records) != (1, 1) {
        return Look::Not;
    }
    // The name, type and class of what is asked, or of the answer.
    let name_end = match dns_name(message, is_home) {
        Ok(end) => end,
        Err(look) => return look,
    };
    let Some(question) = message.get(name_end..name_end + 4) else {
        return if name_end + 4 > length { Look::Not } else { Look::Open };
    };
    let kind = u16::from_be_bytes([question[0], question[1]]);
    let class = u16::from_be_bytes([question[2], question[3]]);
    // NetBIOS, where it is at home nowhere: a name of 32 letters (RFC 1002, 4.1) asked for as NBSTAT, or anything asked
    // for as NB, which has the number of a record that DNS never used. On port 53 a server answers both.
    let is_netbios_name = message[12] == 32 && message[13..45].iter().all(|byte| (b'A'..=b'P').contains(byte));
    let is_netbios = !is_home && (kind == 0x20 || kind == 0x21 && is_netbios_name);
    let is_sane = kind != 0 && matches!(class, 1 | 3 | 4 | 254 | 255) && !is_netbios;
    // A record is at least a root name and ten bytes.
    let after = length.saturating_sub(name_end + 4);
    let is_room = if is_inverse { after >= 6 } else { records * 11 <= after && (is_home || records > 0 || after == 0) };
    let is_known = is_home || matches!(kind, 1..=65 | 99..=109 | 249..=258 | 32768..=32769);
    let is_few = is_home || is_response || records <= 2;
    if is_sane && is_room && is_known && is_few {
        Look::Is(AppProto::Dns, Some(if is_response { Side::Server } else { Side::Client }))
    } else {
        Look::Not
    }
}

/// Walks over the first question's name and says where it ends. It cannot be compressed: nothing stands before it.
fn dns_name(message: &[u8], is_any_byte: bool) -> Result<usize, Look> {
    let mut at = 12;
    loop {
        match message.get(at) {
            None => return Err(Look::Open),
            Some(0) => return Ok(at + 1),
            Some(length @ 1..=63) => {
                let next = at + 1 + usize::from(*length);
                // A name has up to 255 bytes, its end included.
                if next - 12 >= 255 {
                    return Err(Look::Not);
                }
                let label = &message[at + 1..next.min(message.len())];
                if !is_any_byte && !label.iter().all(|byte| byte.is_ascii_graphic()) {
                    return Err(Look::Not);
                }
                at = next;
            }
            Some(_) => return Err(Look::Not),
        }
    }
}

/// QUIC: the Initial packet that opens a connection (RFC 9000, 17.2.2; RFC 9369, 3.2), in a datagram that is large as
/// it must be (RFC 9000, 14.1), of which the prefix shows enough. Google's own versions before it say theirs in
/// letters.
fn quic(bytes: &[u8]) -> Look {
    let is = Look::Is(AppProto::Quic, Some(Side::Client));
    if bytes.len() < PREFIX_MAX {
        return Look::Not;
    }
    // T: the same with TLS inside.
    let letters = |at: usize| {
        matches!(bytes[at], b'Q' | b'T')
            && bytes[at + 1] == b'0'
            && bytes[at + 2..at + 4].iter().all(u8::is_ascii_digit)
    };
    // Before Q046: flags of version and an 8-byte id, id, version.
    if matches!(bytes[0], 0x09 | 0x0d) && letters(9) {
        return is;
    }
    if bytes[0] & 0xc0 != 0xc0 {
        return Look::Not;
    }
    let kind = bytes[0] >> 4 & 3;
    let version = quic_version(bytes);
    let initial = match initial_kind(version) {
        Some(kind) => kind,
        // Those that ask the server to offer others (RFC 9000, 15).
        None if version & 0x0f0f_0f0f == 0x0a0a_0a0a => 0,
        None if letters(1) => return is,
        None => return Look::Not,
    };
    if kind == initial && quic_lengths(bytes) { is } else { Look::Not }
}

/// The version in a long header.
fn quic_version(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]])
}

/// The type that Initial packets of a version have.
fn initial_kind(version: u32) -> Option<u8> {
    match version {
        // Version 1, its drafts from 22 on, Facebook's.
        1 | 0xff00_0016..=0xff00_0022 | 0xface_b001 | 0xface_b002 | 0xface_b00e => Some(0),
        // Version 2.
        0x6b33_43cf => Some(1),
        _ => None,
    }
}

/// Whether ids, token and length of an Initial are such as a client's first may have.
fn quic_lengths(bytes: &[u8]) -> bool {
    let varint = |at: usize| -> Option<(u64, usize)> {
        let size = 1usize << (bytes.get(at)? >> 6);
        let value = bytes.get(at..at + size)?.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        Some((value & (u64::MAX >> (64 - 8 * size as u32) >> 2), at + size))
    };
    let lengths = || {
        let destination = *bytes.get(5)?;
        let source_at = 6 + usize::from(destination);
        let source = *bytes.get(source_at)?;
        let (token, after) = varint(source_at + 1 + usize::from(source))?;
        // A token that leaves the prefix leaves nothing to look at behind it.
        let rest = usize::try_from(token).ok().and_then(|token| varint(after + token));
        // A client chooses at least 8 bytes (RFC 9000, 7.2); 20 are the most.
        let is_sane = (8..=20).contains(&destination) && source <= 20 && token < 1400;
        Some(is_sane && rest.is_none_or(|(length, _)| (20..=65535).contains(&length)))
    };
    lengths().unwrap_or(false)
}
