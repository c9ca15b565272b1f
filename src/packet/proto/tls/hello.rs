//! Bodies of ClientHello and ServerHello (RFC 8446, 4.1.2 and 4.1.3; RFC 5246, 7.4.1).
//!
//! Both are read as far as they go: what stands before a fault counts, the fault is told.

use super::fingerprint::{self, Carrier};
use super::{Handshake, is_version_13};
use crate::packet::proto::reader::Reader;

/// Protocols of ALPN that are kept.
pub(super) const PROTOCOLS_MAX: usize = 32;

/// Bytes of a name that are kept: a DNS name has fewer (RFC 1035, 2.3.4).
pub(super) const NAME_MAX: usize = 255;

/// Values in the lists of a hello, all together, up to which it gets fingerprints. Real ones have fewer than a hundred.
const VALUES_MAX: usize = 2048;

/// The random bytes of a ServerHello that is a HelloRetryRequest (RFC 8446, 4.1.3).
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const EC_POINT_FORMATS: u16 = 11;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const PRE_SHARED_KEY: u16 = 41;
const SUPPORTED_VERSIONS: u16 = 43;

/// A list of 16-bit values as it stands on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Values<'a>(&'a [u8]);

impl<'a> Values<'a> {
    /// Takes the bytes of a list; an odd one at the end is no value.
    pub(super) fn new(bytes: &'a [u8]) -> Values<'a> {
        Values(bytes)
    }

    /// The values.
    pub(super) fn iter(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.0.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
    }

    fn len(&self) -> usize {
        self.0.len() / 2
    }

    fn is_uneven(&self) -> bool {
        self.0.len() % 2 != 0
    }
}

/// A client's hello, as far as fingerprints and rules look at it.
#[derive(Debug, Default)]
pub(super) struct ClientHello<'a> {
    /// `legacy_version`.
    pub(super) version: u16,
    /// Cipher suites.
    pub(super) ciphers: Values<'a>,
    /// Types of the extensions in their order, as on the wire.
    pub(super) extension_kinds: Vec<u8>,
    /// `supported_groups`.
    pub(super) groups: Values<'a>,
    /// `ec_point_formats`.
    pub(super) point_formats: &'a [u8],
    /// `signature_algorithms`.
    pub(super) signatures: Values<'a>,
    /// `supported_versions`.
    pub(super) supported_versions: Values<'a>,
    /// The first host name.
    name: Option<&'a [u8]>,
    /// The list of ALPN.
    protocols: &'a [u8],
}

impl<'a> ClientHello<'a> {
    /// Types of the extensions in their order.
    pub(super) fn extensions(&self) -> impl Iterator<Item = u16> {
        Values::new(&self.extension_kinds).iter()
    }

    /// Whether an extension is there.
    pub(super) fn extensions_hold(&self, kind: u16) -> bool {
        self.extensions().any(|each| each == kind)
    }

    /// Protocols of ALPN, as far as they can be read.
    pub(super) fn protocols(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut reader = Reader::new(self.protocols);
        std::iter::from_fn(move || reader.vector8())
    }

    /// Reads a body as far as it goes.
    fn read(body: &'a [u8], odd: &mut dyn FnMut(&'static str)) -> ClientHello<'a> {
        let mut hello = ClientHello::default();
        if hello.read_fields(body, odd).is_none() {
            odd("tls.malformed_client_hello");
        }
        hello
    }

    fn read_fields(&mut self, body: &'a [u8], odd: &mut dyn FnMut(&'static str)) -> Option<()> {
        let mut reader = Reader::new(body);
        self.version = reader.u16()?;
        reader.take(32)?;
        reader.vector8()?;
        let (ciphers, is_whole) = reader.vector16_lenient()?;
        self.ciphers = Values::new(ciphers);
        if !is_whole || self.ciphers.is_uneven() {
            return None;
        }
        reader.vector8()?;
        if reader.is_empty() {
            // Older clients send no extensions at all.
            return Some(());
        }
        let (extensions, is_whole) = reader.vector16_lenient()?;
        self.read_extensions(extensions, odd)?;
        (is_whole && reader.is_empty()).then_some(())
    }

    fn read_extensions(&mut self, extensions: &'a [u8], odd: &mut dyn FnMut(&'static str)) -> Option<()> {
        let mut reader = Reader::new(extensions);
        let mut is_sound = true;
        while !reader.is_empty() {
            let kind = reader.u16()?;
            let (data, is_whole) = reader.vector16_lenient()?;
            if [SERVER_NAME, ALPN].contains(&kind) && self.extensions_hold_once(kind) {
                // Which one a server takes is its own affair; the first is told.
                odd("tls.repeated_extension");
            } else {
                is_sound &= self.read_extension(kind, data, odd).is_some();
            }
            self.extension_kinds.extend_from_slice(&kind.to_be_bytes());
            if !is_whole {
                return None;
            }
        }
        is_sound.then_some(())
    }

    /// Whether one of the two that are told was there before. It is asked of these two only, so that a hello of nothing but
    /// extensions costs no more than its length.
    fn extensions_hold_once(&self, kind: u16) -> bool {
        if kind == SERVER_NAME { self.name.is_some() } else { !self.protocols.is_empty() }
    }

    fn read_extension(&mut self, kind: u16, data: &'a [u8], odd: &mut dyn FnMut(&'static str)) -> Option<()> {
        let mut reader = Reader::new(data);
        let mut list = |into: &mut Values<'a>| {
            *into = Values::new(reader.vector16()?);
            (reader.is_empty() && !into.is_uneven()).then_some(())
        };
        match kind {
            SERVER_NAME => {
                self.name = read_names(data, odd);
                Some(())
            }
            SUPPORTED_GROUPS => list(&mut self.groups),
            SIGNATURE_ALGORITHMS => list(&mut self.signatures),
            EC_POINT_FORMATS => {
                self.point_formats = reader.vector8()?;
                reader.is_empty().then_some(())
            }
            SUPPORTED_VERSIONS => {
                self.supported_versions = Values::new(reader.vector8()?);
                reader.is_empty().then_some(())
            }
            ALPN => {
                let (protocols, is_whole) = reader.vector16_lenient()?;
                self.protocols = protocols;
                let read: usize = self.protocols().map(|name| 1 + name.len()).sum();
                (is_whole && read == protocols.len() && reader.is_empty()).then_some(())
            }
            _ => Some(()),
        }
    }

    /// How many values the lists hold.
    fn value_count(&self) -> usize {
        let lists = [self.ciphers, self.groups, self.signatures, self.supported_versions];
        lists.iter().map(Values::len).sum::<usize>() + self.extension_kinds.len() / 2 + self.point_formats.len()
    }
}

/// The first host name of a server_name extension (RFC 6066, 3); of a name that is cut off, what is there.
fn read_names<'a>(data: &'a [u8], odd: &mut dyn FnMut(&'static str)) -> Option<&'a [u8]> {
    let mut reader = Reader::new(data);
    let (list, is_whole) = reader.vector16_lenient().unwrap_or_default();
    let mut is_sound = is_whole && reader.is_empty() && !list.is_empty();
    let mut first: Option<&[u8]> = None;
    let mut names = Reader::new(list);
    while !names.is_empty() {
        let (kind, name) = (names.u8(), names.vector16_lenient());
        let (Some(kind), Some((name, is_whole))) = (kind, name) else {
            is_sound = false;
            break;
        };
        is_sound &= is_whole;
        if kind != 0 {
            continue;
        }
        if first.is_some() {
            odd("tls.several_names");
            break;
        }
        is_sound &= !name.is_empty() && name.len() <= NAME_MAX && !name.contains(&0);
        first = Some(name);
    }
    if !is_sound {
        odd("tls.malformed_name");
    }
    first.map(|name| &name[..name.len().min(NAME_MAX)]).filter(|name| !name.is_empty())
}

/// Reads a client's hello, without its four bytes of handshake header, and notes what it says.
pub(crate) fn read_client(body: &[u8], carrier: Carrier, into: &mut Handshake, odd: &mut dyn FnMut(&'static str)) {
    let hello = ClientHello::read(body, odd);
    into.client_version = hello.version;
    into.sni = hello.name.map(<[u8]>::to_vec);
    into.client_alpn = hello.protocols().take(PROTOCOLS_MAX).map(<[u8]>::to_vec).collect();
    let offered = hello.supported_versions.iter().filter(|version| !fingerprint::is_grease(*version));
    into.client_versions = offered.take(PROTOCOLS_MAX).collect();
    if hello.value_count() > VALUES_MAX || hello.protocols().nth(PROTOCOLS_MAX).is_some() {
        odd("tls.too_many_values");
    }
    if hello.value_count() <= VALUES_MAX {
        into.ja3 = Some(fingerprint::ja3(&hello));
        into.ja4 = Some(fingerprint::ja4(carrier, &hello));
    }
}

/// What a server's hello was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The server chose.
    Hello,
    /// It wants another hello.
    Retry,
}

/// Reads a server's hello, without its four bytes of handshake header, and notes what it says; `None` where it is no hello.
pub(crate) fn read_server(body: &[u8], into: &mut Handshake, odd: &mut dyn FnMut(&'static str)) -> Option<Answer> {
    let mut reader = Reader::new(body);
    let version = reader.u16()?;
    let random = reader.array::<32>()?;
    reader.vector8()?;
    let cipher = reader.u16()?;
    reader.u8()?;
    if random == RETRY_RANDOM {
        return Some(Answer::Retry);
    }
    into.version = Some(version);
    into.cipher = Some(cipher);
    let mut kinds = Vec::new();
    if !reader.is_empty() && read_server_extensions(reader, into, &mut kinds).is_none() {
        odd("tls.malformed_server_hello");
    }
    if kinds.len() <= VALUES_MAX {
        into.ja3s = Some(fingerprint::ja3s(version, cipher, &kinds));
    } else {
        odd("tls.too_many_values");
    }
    Some(Answer::Hello)
}

fn read_server_extensions(mut reader: Reader, into: &mut Handshake, kinds: &mut Vec<u16>) -> Option<()> {
    let (extensions, is_whole) = reader.vector16_lenient()?;
    let mut extensions = Reader::new(extensions);
    let mut is_sound = is_whole && reader.is_empty();
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        kinds.push(kind);
        let mut data = Reader::new(data);
        match kind {
            SUPPORTED_VERSIONS => into.version = Some(data.u16()?),
            PRE_SHARED_KEY => into.is_resumed = true,
            ALPN => {
                let mut list = Reader::new(data.vector16()?);
                into.server_alpn = Some(list.vector8()?.to_vec());
                is_sound &= list.is_empty();
            }
            _ => {}
        }
    }
    // PSK names a secret that both knew before; up to 1.2 the number meant nothing.
    into.is_resumed &= into.version.is_some_and(is_version_13);
    is_sound.then_some(())
}
