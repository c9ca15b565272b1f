//! Capture files, read as a stream: pcap (micro- and nanoseconds, both byte orders, Kuznetzov's longer records) and
//! pcapng (sections, interfaces, their clocks; enhanced, simple and old packet blocks).
//!
//! The reader holds one window of [`WINDOW`] bytes whatever the file says. It takes files as they are found: what it
//! does not know it steps over, what it refuses it counts ([`Refused`]), and where a file ends too early or makes no
//! sense any more it says so once ([`Capture::fault`]) and ends. Formats: draft-ietf-opsawg-pcap,
//! draft-ietf-opsawg-pcapng.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};

use crate::flow::Link;

/// The longest frame that is taken, in bytes: the most that tcpdump and Wireshark write.
pub const FRAME_MAX: usize = 256 * 1024;
/// What is held of the file, in bytes: the longest frame, and all that a block may hold beside it.
const WINDOW: usize = 1 << 20;
/// Interfaces of a section that are told apart; those after them are not known.
const INTERFACES_MAX: usize = 4096;

/// Byte-order mark of a pcapng section.
const PCAPNG_ORDER: u32 = 0x1a2b_3c4d;
/// Type of the block that opens a section; the same in both byte orders.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// A packet of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'c> {
    /// When, in nanoseconds since 1970. A simple packet block has no time: it has that of the packet before it.
    pub time_ns: u64,
    /// Number of its interface in its section.
    pub interface: u32,
    /// What stands first in it.
    pub link: Link,
    /// Its bytes, as far as they were captured.
    pub bytes: &'c [u8],
    /// How long it was on the wire.
    pub wire_length: u32,
}

/// Packets that were not handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Longer than [`FRAME_MAX`].
    pub oversized: u64,
    /// Of a link layer that is not read, by its number (LINKTYPE_...).
    pub links: BTreeMap<u32, u64>,
    /// Of an interface that the section did not describe, or said to be longer than their block.
    pub malformed: u64,
}

impl Refused {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.oversized + self.malformed + self.links.values().sum::<u64>()
    }
}

/// Why a file cannot be read at all.
#[derive(Debug)]
pub enum OpenError {
    /// The system said no.
    Io(io::Error),
    /// It is something else.
    NoCapture,
    /// It is compressed by gzip.
    Gzip,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Io(error) => write!(f, "{error}"),
            OpenError::NoCapture => f.write_str("it is neither a pcap nor a pcapng file"),
            OpenError::Gzip => f.write_str("it is compressed; unpack it first, as gzip -d does"),
        }
    }
}

impl std::error::Error for OpenError {}

/// The link layer by its number, of those that are read. Numbers 12 and 14 are what BSDs call raw IP inside.
fn link_of(number: u32) -> Option<Link> {
    Some(match number {
        0 | 108 => Link::Null,
        1 => Link::Ethernet,
        12 | 14 | 101 | 228 | 229 => Link::Raw,
        9 | 50 => Link::Ppp,
        113 => Link::Sll,
        276 => Link::Sll2,
        _ => return None,
    })
}

/// Byte order of a file or a section.
#[derive(Clone, Copy, Debug)]
enum Order {
    Little,
    Big,
}

impl Order {
    /// The 16 bits at `at`; 0 behind the end.
    fn u16(self, bytes: &[u8], at: usize) -> u16 {
        let Some(&[a, b]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { return 0 };
        match self {
            Order::Little => u16::from_le_bytes([a, b]),
            Order::Big => u16::from_be_bytes([a, b]),
        }
    }

    /// The 32 bits at `at`; 0 behind the end.
    fn u32(self, bytes: &[u8], at: usize) -> u32 {
        let Some(&word) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { return 0 };
        match self {
            Order::Little => u32::from_le_bytes(word),
            Order::Big => u32::from_be_bytes(word),
        }
    }
}

/// How an interface's ticks become nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ticks {
    /// So many nanoseconds each.
    Each(u64),
    /// So many of them are a nanosecond.
    PerNanosecond(u128),
    /// 2 to this power of them are a second.
    PowerOfTwo(u8),
}

impl Ticks {
    /// By `if_tsresol`: the highest bit chooses the base.
    fn by_resolution(resolution: u8) -> Ticks {
        match resolution {
            0..=9 => Ticks::Each(10u64.pow(9 - u32::from(resolution))),
            // Beyond 10^38 to a second no 64-bit time lasts a nanosecond.
            10..=127 => Ticks::PerNanosecond(10u128.checked_pow(u32::from(resolution) - 9).unwrap_or(u128::MAX)),
            128.. => Ticks::PowerOfTwo(resolution & 0x7f),
        }
    }

    /// Nanoseconds, at most `u64::MAX`: the year 2554.
    fn nanoseconds(self, ticks: u64) -> u64 {
        let wide = match self {
            Ticks::Each(each) => return ticks.saturating_mul(each),
            Ticks::PerNanosecond(divisor) => u128::from(ticks) / divisor,
            Ticks::PowerOfTwo(power) => (u128::from(ticks) * 1_000_000_000) >> power,
        };
        u64::try_from(wide).unwrap_or(u64::MAX)
    }
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link_number: u32,
    /// Bytes that are captured of a packet at most; 0 is no limit.
    snap_length: u32,
    ticks: Ticks,
    offset_secs: i64,
}

impl Interface {
    fn time_ns(&self, ticks: u64) -> u64 {
        let time = self.ticks.nanoseconds(ticks);
        let offset = self.offset_secs.unsigned_abs().saturating_mul(1_000_000_000);
        if self.offset_secs < 0 { time.saturating_sub(offset) } else { time.saturating_add(offset) }
    }
}

/// The part of the file that is held.
struct Window<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of the file before `start`.
    passed: u64,
    error: Option<io::Error>,
}

impl<R: Read> Window<R> {
    fn new(source: R) -> Window<R> {
        Window { source, buffer: vec![0; WINDOW].into(), start: 0, end: 0, passed: 0, error: None }
    }

    /// Reads until so many bytes are held, at most [`WINDOW`]; says how many of them are there.
    fn want(&mut self, bytes: usize) -> usize {
        let bytes = bytes.min(WINDOW);
        if self.end - self.start >= bytes {
            return bytes;
        }
        if WINDOW - self.start < bytes {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < bytes && self.error.is_none() {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(more) => self.end += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.error = Some(error),
            }
        }
        bytes.min(self.end - self.start)
    }

    fn held(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Goes on by so many bytes of what is held.
    fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        self.passed += bytes as u64;
    }

    /// Goes on by so many bytes; says whether there were as many.
    fn skip(&mut self, mut bytes: u64) -> bool {
        while bytes > 0 {
            let there = self.want(usize::try_from(bytes).map_or(WINDOW, |bytes| bytes.min(WINDOW)));
            if there == 0 {
                return false;
            }
            self.advance(there);
            bytes -= there as u64;
        }
        true
    }
}

/// What kind of file it is.
enum Format {
    Pcap {
        order: Order,
        interface: Interface,
        record: usize,
    },
    Pcapng {
        order: Order,
        interfaces: Vec<Interface>,
    },
    /// It ended before it said.
    Unknown,
}

/// Where a packet stands in the window.
struct Place {
    time_ns: u64,
    interface: u32,
    link: Link,
    start: usize,
    length: usize,
    wire_length: u32,
}

/// A capture file that is being read.
pub struct Capture<R> {
    window: Window<R>,
    format: Format,
    refused: Refused,
    fault: Option<String>,
    last_ns: u64,
    /// Bytes at the window's start that the last frame took.
    taken: usize,
}

/// Recognises a file by its first bytes: its format, and how long its header is.
fn recognise(head: &[u8]) -> Result<(Format, usize), OpenError> {
    const PCAP: [[u8; 4]; 6] = [
        [0xa1, 0xb2, 0xc3, 0xd4],
        [0xd4, 0xc3, 0xb2, 0xa1],
        [0xa1, 0xb2, 0x3c, 0x4d],
        [0x4d, 0x3c, 0xb2, 0xa1],
        [0xa1, 0xb2, 0xcd, 0x34],
        [0x34, 0xcd, 0xb2, 0xa1],
    ];
    if head.starts_with(&[0x1f, 0x8b]) {
        return Err(OpenError::Gzip);
    }
    let magic = &head[..head.len().min(4)];
    if magic.len() < 4 {
        let section = SECTION_HEADER.to_be_bytes();
        let cut = section.starts_with(magic) || PCAP.iter().any(|whole| whole.starts_with(magic));
        return if cut { Ok((Format::Unknown, head.len())) } else { Err(OpenError::NoCapture) };
    }
    if magic == SECTION_HEADER.to_be_bytes() {
        return Ok((Format::Pcapng { order: Order::Little, interfaces: Vec::new() }, 0));
    }
    let kind = PCAP.iter().position(|known| known == magic).ok_or(OpenError::NoCapture)?;
    if head.len() < 24 {
        return Ok((Format::Unknown, head.len()));
    }
    let order = if kind % 2 == 0 { Order::Big } else { Order::Little };
    let interface = Interface {
        // What stands above says how long a frame check sequence is, which ends no frame too early.
        link_number: order.u32(head, 20) & 0xffff,
        snap_length: 0,
        ticks: Ticks::by_resolution(if kind / 2 == 1 { 9 } else { 6 }),
        offset_secs: 0,
    };
    // Kuznetzov's records have 8 bytes more.
    let record = if kind / 2 == 2 { 24 } else { 16 };
    Ok((Format::Pcap { order, interface, record }, 24))
}

impl<R: Read> Capture<R> {
    /// Recognises the file. One that ends within its first bytes is a capture that was cut off, unless they say
    /// otherwise.
    pub fn open(source: R) -> Result<Capture<R>, OpenError> {
        let mut window = Window::new(source);
        window.want(24);
        if let Some(error) = window.error.take() {
            return Err(OpenError::Io(error));
        }
        let (format, taken) = recognise(window.held())?;
        Ok(Capture { window, format, refused: Refused::default(), fault: None, last_ns: 0, taken })
    }

    /// The next packet; `None` at the end, or where the file cannot be read any further.
    pub fn next_frame(&mut self) -> Option<Frame<'_>> {
        let place = loop {
            self.window.advance(self.taken);
            self.taken = 0;
            if self.fault.is_some() {
                return None;
            }
            let found = match self.format {
                Format::Pcap { order, interface, record } => self.pcap_record(order, interface, record),
                Format::Pcapng { .. } => self.pcapng_block(),
                Format::Unknown => self.cut_off(),
            };
            match found {
                Step::Packet(place) => break place,
                Step::GoOn => {}
                Step::End => return None,
            }
        };
        self.last_ns = place.time_ns;
        Some(Frame {
            time_ns: place.time_ns,
            interface: place.interface,
            link: place.link,
            bytes: &self.window.held()[place.start..place.start + place.length],
            wire_length: place.wire_length,
        })
    }

    /// What was wrong with the file, if it could not be read to its end.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Packets that were not handed over.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Bytes of the file that were read.
    pub fn position(&self) -> u64 {
        self.window.passed + self.taken as u64
    }

    fn cut_off(&mut self) -> Step {
        self.broken("it ends too early")
    }

    /// Nothing more is read.
    fn broken(&mut self, what: &str) -> Step {
        let at = self.window.passed;
        self.fault = Some(match self.window.error.take() {
            Some(error) => format!("reading at byte {at}: {error}"),
            None => format!("{what}, at byte {at}"),
        });
        Step::End
    }

    /// The file's end, or what is left of a record or block.
    fn end(&mut self, held: usize) -> Step {
        if held == 0 && self.window.error.is_none() { Step::End } else { self.cut_off() }
    }

    fn skip(&mut self, bytes: u64) -> Step {
        if self.window.skip(bytes) { Step::GoOn } else { self.cut_off() }
    }

    /// The place of a frame in the window, unless it is refused.
    fn place(
        &mut self,
        interface: &Interface,
        number: u32,
        ticks: Option<u64>,
        place: (usize, u32, u32),
    ) -> Option<Place> {
        let (start, length, wire_length) = place;
        let Some(link) = link_of(interface.link_number) else {
            *self.refused.links.entry(interface.link_number).or_default() += 1;
            return None;
        };
        let time_ns = ticks.map_or(self.last_ns, |ticks| interface.time_ns(ticks));
        Some(Place { time_ns, interface: number, link, start, length: length as usize, wire_length })
    }

    fn pcap_record(&mut self, order: Order, interface: Interface, record: usize) -> Step {
        let there = self.window.want(record);
        if there < record {
            return self.end(there);
        }
        let head = self.window.held();
        let (seconds, fraction) = (order.u32(head, 0), order.u32(head, 4));
        let (length, wire_length) = (order.u32(head, 8), order.u32(head, 12));
        if length as usize > FRAME_MAX {
            self.refused.oversized += 1;
            return self.skip(record as u64 + u64::from(length));
        }
        let whole = record + length as usize;
        if self.window.want(whole) < whole {
            return self.cut_off();
        }
        self.taken = whole;
        let per_second = if interface.ticks == Ticks::Each(1) { 1_000_000_000 } else { 1_000_000 };
        let ticks = u64::from(seconds) * per_second + u64::from(fraction);
        match self.place(&interface, 0, Some(ticks), (record, length, wire_length)) {
            Some(place) => Step::Packet(place),
            None => Step::GoOn,
        }
    }

    fn pcapng_block(&mut self) -> Step {
        let there = self.window.want(12);
        if there < 12 {
            return self.end(there);
        }
        let head = self.window.held();
        if head.starts_with(&SECTION_HEADER.to_be_bytes()) {
            let order = [Order::Little, Order::Big].into_iter().find(|order| order.u32(head, 8) == PCAPNG_ORDER);
            let Some(order) = order else { return self.broken("a section of pcapng has no byte order") };
            self.format = Format::Pcapng { order, interfaces: Vec::new() };
        }
        let Format::Pcapng { order, .. } = self.format else { return self.cut_off() };
        let head = self.window.held();
        let (kind, length) = (order.u32(head, 0), order.u32(head, 4));
        if length < 12 {
            return self.broken("a block of pcapng is shorter than its frame");
        }
        // Blocks fill whole words; some writers do not count what fills the last one.
        let length = u64::from(length).next_multiple_of(4);
        let is_packet = matches!(kind, ENHANCED_PACKET | SIMPLE_PACKET | OLD_PACKET);
        if !is_packet && kind != INTERFACE_DESCRIPTION {
            return self.skip(length);
        }
        if length > WINDOW as u64 {
            if is_packet {
                self.refused.oversized += 1;
            } else {
                // What it says of itself stands in its first bytes; its options are not read.
                self.window.want(16);
                let interface = read_interface(order, &self.window.held()[8..][..8.min(self.window.held().len() - 8)]);
                self.add_interface(interface);
            }
            return self.skip(length);
        }
        let length = length as usize;
        if self.window.want(length) < length {
            return self.cut_off();
        }
        self.taken = length;
        if kind == INTERFACE_DESCRIPTION {
            let interface = read_interface(order, &self.window.held()[8..length - 4]);
            self.add_interface(interface);
            return Step::GoOn;
        }
        self.packet_block(order, kind, length - 4)
    }

    /// Also one that is not understood has a number.
    fn add_interface(&mut self, interface: Interface) {
        if let Format::Pcapng { interfaces, .. } = &mut self.format
            && interfaces.len() < INTERFACES_MAX
        {
            interfaces.push(interface);
        }
    }

    /// A packet block whose body ends at `end`.
    fn packet_block(&mut self, order: Order, kind: u32, end: usize) -> Step {
        let head = &self.window.held()[..end];
        let ticks = u64::from(order.u32(head, 12)) << 32 | u64::from(order.u32(head, 16));
        let (number, start, ticks) = match kind {
            ENHANCED_PACKET => (order.u32(head, 8), 28, Some(ticks)),
            OLD_PACKET => (u32::from(order.u16(head, 8)), 28, Some(ticks)),
            _ => (0, 12, None),
        };
        let Format::Pcapng { interfaces, .. } = &self.format else { return Step::End };
        let Some(&interface) = usize::try_from(number).ok().and_then(|number| interfaces.get(number)) else {
            self.refused.malformed += 1;
            return Step::GoOn;
        };
        let room = end.saturating_sub(start);
        let (length, wire_length) = match kind {
            SIMPLE_PACKET => {
                let whole = order.u32(head, 8);
                let limit = if interface.snap_length == 0 { u32::MAX } else { interface.snap_length };
                (whole.min(limit).min(room as u32), whole)
            }
            _ => (order.u32(head, 20), order.u32(head, 24)),
        };
        if end < start || length as usize > room {
            self.refused.malformed += 1;
            return Step::GoOn;
        }
        if length as usize > FRAME_MAX {
            self.refused.oversized += 1;
            return Step::GoOn;
        }
        match self.place(&interface, number, ticks, (start, length, wire_length)) {
            Some(place) => Step::Packet(place),
            None => Step::GoOn,
        }
    }
}

/// What became of a record or a block.
enum Step {
    /// It holds a packet.
    Packet(Place),
    /// It does not.
    GoOn,
    /// There is no more.
    End,
}

/// The body of an interface description block. Options that make no sense are as if they were not there.
fn read_interface(order: Order, body: &[u8]) -> Interface {
    const END: u16 = 0;
    const TS_RESOLUTION: u16 = 9;
    const TS_OFFSET: u16 = 14;
    let mut interface = Interface {
        link_number: u32::from(order.u16(body, 0)),
        snap_length: order.u32(body, 4),
        ticks: Ticks::by_resolution(6),
        offset_secs: 0,
    };
    let mut options = body.get(8..).unwrap_or_default();
    while let Some((head, rest)) = options.split_at_checked(4) {
        let (code, length) = (order.u16(head, 0), usize::from(order.u16(head, 2)));
        let Some(value) = rest.get(..length).filter(|_| code != END) else { break };
        match (code, length) {
            (TS_RESOLUTION, 1) => interface.ticks = Ticks::by_resolution(value[0]),
            (TS_OFFSET, 8) => {
                let (first, second) = (u64::from(order.u32(value, 0)), u64::from(order.u32(value, 4)));
                let offset = match order {
                    Order::Little => second << 32 | first,
                    Order::Big => first << 32 | second,
                };
                interface.offset_secs = offset as i64;
            }
            _ => {}
        }
        options = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    interface
}

#[cfg(test)]
#[path = "capture/tests.rs"]
mod tests;
