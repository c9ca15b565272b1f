//! Values as a server would see them, before they are matched.
//!
//! A value has several spellings, and servers differ in which they undo. So each value is looked at in several forms:
//! as it was sent, and as servers resolve it. A rule that denies or logs holds if any form matches: there is no spelling
//! to hide behind. A rule that allows holds only if every resolved form does: there is none to slip through by.
//!
//! | value | forms |
//! |---|---|
//! | path | as sent; percent-decoded once and twice (`%uXXXX` and overlong UTF-8 too); each of these with backslashes as slashes, empty and dot segments resolved, with and without `;parameters`, cut at a NUL; without slashes at its end |
//! | host, SNI | lower case, without trailing dot; the host also percent-decoded, cut at a NUL, and each `Host` field that differs |
//! | media type | lower case; without its parameters, and as a second value with them |
//! | mail address | lower case; without source route, quotes and trailing dot |
//! | file of FTP | as sent; with `//` and dot segments resolved |
//! | file and share of SMB | lower case; with slashes as backslashes, without empty and dot segments; of a share its last segment as a second value |
//! | header field | without white space around it |
//! | all others | as sent, lower case where case means nothing |
//!
//! Query and fragment are no part of a path. Nothing is converted between `xn--` labels and Unicode.

use std::borrow::Cow;
use std::ops::Range;

/// Forms of one value at most: as many as a word has bits.
pub const FORMS_MAX: usize = 32;
/// Longest part of a value that is looked at, in bytes: more than any parser keeps.
const VALUE_MAX: usize = 1 << 20;

/// One form of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Form {
    bytes: Range<usize>,
    /// What a server makes of it, not how it was spelt.
    is_resolved: bool,
}

/// The values of one field in one transaction, each in its forms. Kept and filled anew: no transaction costs memory.
#[derive(Clone, Debug, Default)]
pub struct Values {
    bytes: Vec<u8>,
    forms: Vec<Form>,
    /// Where each value's forms begin.
    values: Vec<usize>,
}

impl Values {
    /// Empties it.
    pub fn clear(&mut self) {
        // A long value is rare, and its memory is not kept for the next.
        if self.bytes.capacity() > VALUE_MAX {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.forms.clear();
        self.values.clear();
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The forms of a value, at most [`FORMS_MAX`], and which of them are resolved, as bits.
    pub fn forms(&self, value: usize) -> (impl Iterator<Item = &[u8]>, u32) {
        let forms = self.range(value);
        let resolved = self.forms[forms.clone()].iter().enumerate();
        let mask = resolved.fold(0, |mask, (at, form)| mask | u32::from(form.is_resolved) << at);
        (self.forms[forms].iter().map(|form| &self.bytes[form.bytes.clone()]), mask)
    }

    /// One form of a value.
    pub fn form(&self, value: usize, at: usize) -> &[u8] {
        self.forms(value).0.nth(at).unwrap_or_default()
    }

    fn range(&self, value: usize) -> Range<usize> {
        self.values[value]..self.values.get(value + 1).copied().unwrap_or(self.forms.len())
    }

    /// Begins a value.
    fn begin(&mut self) {
        self.values.push(self.forms.len());
    }

    /// Adds a form to the last value, unless it has it.
    fn add(&mut self, bytes: &[u8], is_resolved: bool) {
        let Some(&start) = self.values.last() else { return };
        let bytes = &bytes[..bytes.len().min(VALUE_MAX)];
        match self.forms[start..].iter().position(|form| self.bytes[form.bytes.clone()] == *bytes) {
            Some(at) => self.forms[start + at].is_resolved |= is_resolved,
            None if self.forms.len() - start < FORMS_MAX => {
                let at = self.bytes.len();
                self.bytes.extend_from_slice(bytes);
                self.forms.push(Form { bytes: at..self.bytes.len(), is_resolved });
            }
            // No field has so many forms; a test counts them.
            None => debug_assert!(false, "more forms than bits"),
        }
    }

    /// A value whose bytes are what they are.
    pub fn plain(&mut self, value: &[u8]) {
        self.begin();
        self.add(value, true);
    }

    /// A value without case.
    pub fn folded(&mut self, value: &[u8]) {
        self.begin();
        self.add(&value.to_ascii_lowercase(), true);
    }

    /// Names of the host that a request asks for: that of its target or authority, and those of its `Host` fields. A server
    /// takes one of them, and it is not known which, so they are forms of one value.
    pub fn hosts<'h>(&mut self, hosts: impl Iterator<Item = &'h [u8]>) {
        // Requests with more are refused by every server.
        const HOSTS_MAX: usize = 8;
        let mut is_first = true;
        for host in hosts.take(HOSTS_MAX) {
            if std::mem::take(&mut is_first) {
                self.begin();
            }
            let name = without_port(host.trim_ascii());
            self.add(&dns_name(name), true);
            self.add(&dns_name(&cut_at_nul(&percent_decoded(name))), true);
        }
    }

    /// A name that a TLS client asks for.
    pub fn server_name(&mut self, name: &[u8]) {
        self.begin();
        self.add(&dns_name(name), true);
        self.add(&dns_name(&cut_at_nul(name)), true);
    }

    /// A field of a request.
    pub fn header(&mut self, value: &[u8]) {
        self.plain(value.trim_ascii());
    }

    /// A media type, and the same with its parameters as a value of its own.
    pub fn media_type(&mut self, value: &[u8]) {
        let value = value.trim_ascii().to_ascii_lowercase();
        let end = value.iter().position(|&byte| matches!(byte, b';' | b',')).unwrap_or(value.len());
        self.plain(value[..end].trim_ascii());
        if end < value.len() {
            self.plain(&value);
        }
    }

    /// The path of a request's target.
    pub fn path(&mut self, target: &[u8]) {
        self.begin();
        let sent = path_of(target);
        let once = percent_decoded(sent);
        let twice = percent_decoded(&once);
        for spelling in [sent, &*once, &*twice] {
            self.add(spelling, false);
            self.add(without_slashes(spelling), false);
        }
        for decoded in [&*once, &*twice] {
            for cut in [decoded, &*cut_at_nul(decoded)] {
                for keeps_parameters in [false, true] {
                    let resolved = resolved_path(cut, keeps_parameters);
                    self.add(&resolved, true);
                    self.add(without_slashes(&resolved), false);
                }
            }
        }
    }

    /// A file as FTP names it.
    pub fn ftp_file(&mut self, file: &[u8]) {
        self.begin();
        self.add(file, false);
        let is_absolute = file.first() == Some(&b'/');
        let resolved = resolved_path(file, true);
        // A relative name stays one.
        self.add(if is_absolute { &resolved } else { resolved.strip_prefix(b"/").unwrap_or(&resolved) }, true);
    }

    /// A mail address, of the envelope.
    pub fn mailbox(&mut self, address: &[u8]) {
        self.begin();
        let sent = address.trim_ascii().to_ascii_lowercase();
        let routed = match sent.first() {
            // A source route, which receivers ignore (RFC 5321, appendix C): @one,@two:user@three.
            Some(b'@') => sent.iter().position(|&byte| byte == b':').map_or(&sent[..], |at| &sent[at + 1..]),
            _ => &sent[..],
        };
        let (local, domain) = match routed.iter().rposition(|&byte| byte == b'@') {
            Some(at) => routed.split_at(at),
            None => (routed, &[][..]),
        };
        let mut resolved = unquoted(local).into_owned();
        let domain_end = if domain.len() > 1 && domain.ends_with(b".") { domain.len() - 1 } else { domain.len() };
        resolved.extend_from_slice(&domain[..domain_end]);
        self.add(&sent, false);
        self.add(&resolved, true);
    }

    /// A file as SMB names it, from the root of its share.
    pub fn smb_file(&mut self, name: &str) {
        self.begin();
        self.add(&name.to_ascii_lowercase().into_bytes(), false);
        self.add(smb_path(name).as_bytes(), true);
    }

    /// A share, and its last part as a value of its own.
    pub fn smb_share(&mut self, name: &str) {
        let path = smb_path(name);
        self.plain(format!("\\\\{path}").as_bytes());
        self.plain(path.rsplit('\\').next().unwrap_or_default().as_bytes());
    }

    /// A command of SMB by its name, and the same without its protocol's as a value of its own.
    pub fn smb_command(&mut self, name: &str) {
        self.folded(name.as_bytes());
        if let Some((_, short)) = name.split_once("_COMMAND_") {
            self.folded(short.as_bytes());
        }
    }
}

/// A path of SMB as its server takes it: lower case, `\` between its parts, which are neither empty nor dots.
fn smb_path(name: &str) -> String {
    let sent = name.to_ascii_lowercase().replace('/', "\\");
    let mut parts: Vec<&str> = Vec::new();
    for part in sent.split('\\') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("\\")
}
/// Lower case, without the dot at the end.
fn dns_name(name: &[u8]) -> Vec<u8> {
    let mut name = name.to_ascii_lowercase();
    if name.len() > 1 && name.ends_with(b".") {
        name.pop();
    }
    name
}

/// A host without port and user, whose brackets, if it is an IPv6 address, are left out.
fn without_port(host: &[u8]) -> &[u8] {
    let host = match host.iter().rposition(|&byte| byte == b'@') {
        Some(at) => &host[at + 1..],
        None => host,
    };
    if let [b'[', rest @ ..] = host {
        return rest.split(|&byte| byte == b']').next().unwrap_or(rest);
    }
    let colons = host.iter().filter(|&&byte| byte == b':').count();
    if colons == 1 { host.split(|&byte| byte == b':').next().unwrap_or(host) } else { host }
}

fn cut_at_nul(text: &[u8]) -> Cow<'_, [u8]> {
    Cow::Borrowed(text.split(|&byte| byte == 0).next().unwrap_or(text))
}

/// The path of a target in any of its forms (RFC 9112, 3.2), without query and fragment.
fn path_of(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|&byte| matches!(byte, b'?' | b'#')).unwrap_or(target.len());
    let target = &target[..end];
    if target.first() == Some(&b'/') {
        return target;
    }
    // scheme://authority/path; anything else (`*`, host:port of CONNECT, a relative name) is taken as it is.
    let Some(scheme) = target.windows(3).position(|window| window == b"://") else { return target };
    let is_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    if scheme == 0 || !target[..scheme].iter().all(is_scheme) {
        return target;
    }
    let authority = &target[scheme + 3..];
    match authority.iter().position(|&byte| matches!(byte, b'/' | b'\\')) {
        Some(at) => &authority[at..],
        None => b"/",
    }
}

fn without_slashes(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| !matches!(byte, b'/' | b'\\')).map_or(1, |at| at + 1);
    &path[..end.min(path.len())]
}

/// `%41`, `%u0041` and `%uff21` (which some servers take for an A) resolved once, and overlong UTF-8 made short.
fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [b'u' | b'U', a, b, c, d, tail @ ..]) if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) => {
                rest = tail;
                let unit = [a, b, c, d].iter().fold(0u32, |unit, digit| unit << 4 | hex(**digit));
                // The full-width forms of ASCII.
                let unit = if (0xff01..=0xff5e).contains(&unit) { unit - 0xfee0 } else { unit };
                // Half of a pair stands for nothing.
                let char = char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            }
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest = tail;
                out.push((hex(*high) << 4 | hex(*low)) as u8);
            }
            _ => out.push(*first),
        }
    }
    shorten_utf8(&mut out);
    out
}

fn hex(digit: u8) -> u32 {
    char::from(digit).to_digit(16).unwrap_or(0)
}

/// Replaces UTF-8 that spells an ASCII character with more bytes than one: C0 AF, E0 80 AF and F0 80 80 AF are all `/` to a
/// careless decoder.
fn shorten_utf8(bytes: &mut Vec<u8>) {
    if !bytes.iter().any(|byte| matches!(byte, 0xc0 | 0xc1 | 0xe0 | 0xf0)) {
        return;
    }
    let mut short = Vec::with_capacity(bytes.len());
    let mut rest = &bytes[..];
    while let [first, tail @ ..] = rest {
        rest = tail;
        let (char, tail) = match (first, tail) {
            (0xc0 | 0xc1, [last @ 0x80..=0xbf, tail @ ..]) => ((first & 1) << 6 | last & 0x3f, tail),
            (0xe0, [middle @ (0x80 | 0x81), last @ 0x80..=0xbf, tail @ ..])
            | (0xf0, [0x80, middle @ (0x80 | 0x81), last @ 0x80..=0xbf, tail @ ..]) => {
                ((middle & 1) << 6 | last & 0x3f, tail)
            }
            _ => {
                short.push(*first);
                continue;
            }
        };
        short.push(char);
        rest = tail;
    }
    *bytes = short;
}

/// Slashes instead of backslashes, no empty segments, no `.`, and none that a `..` takes back. Always begins with a slash.
/// `;parameters` of segments are left out unless they are kept.
fn resolved_path(path: &[u8], keeps_parameters: bool) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len() + 1);
    // Where each segment that stands in it begins, with its slash.
    let mut starts = Vec::new();
    let mut ends_open = true;
    for segment in path.split(|&byte| matches!(byte, b'/' | b'\\')) {
        let name = match keeps_parameters {
            true => segment,
            false => segment.split(|&byte| byte == b';').next().unwrap_or(segment),
        };
        ends_open = match name {
            b"" | b"." => true,
            b".." => {
                out.truncate(starts.pop().unwrap_or(0));
                true
            }
            _ => {
                starts.push(out.len());
                out.push(b'/');
                out.extend_from_slice(name);
                false
            }
        };
    }
    // A directory keeps its slash.
    if ends_open {
        out.push(b'/');
    }
    out
}

/// A local part without quotes: `"a\b"` is `ab` (RFC 5321, 4.1.2).
fn unquoted(local: &[u8]) -> Cow<'_, [u8]> {
    let [b'"', inside @ .., b'"'] = local else { return Cow::Borrowed(local) };
    let mut out = Vec::with_capacity(inside.len());
    let mut bytes = inside.iter();
    while let Some(&byte) = bytes.next() {
        out.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
    }
    Cow::Owned(out)
}
