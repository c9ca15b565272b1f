//! Alerts on the disk, until their sink has sent them.
//!
//! A folder of segments, `0000000000000001.seg` and so on, and `cursor`, which says up to where they were sent. A record is
//! length, CRC-32, time and JSON. Appending never goes to a segment of an earlier run, so a tail that a crash has torn ends
//! its segment and nothing else. What the cursor says is written after the sink has answered: after a crash the last few
//! alerts are sent again, none is left out. A full spool keeps what it has and refuses what is new: the beginning of an
//! attack says more than its noise. A disk that fails is stood in for by a small memory, until it works again.
//!
//! `kill -9` loses nothing that was appended; the kernel writes it out. A power failure loses at most what came since the
//! last [`Spool::sync`], once a second.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::outbound::plain;

/// Longest record, in bytes of JSON.
pub const RECORD_MAX: usize = 1 << 20;
/// Alerts in memory while the disk fails.
const MEMORY_MAX: usize = 1024;
/// Length, CRC, time.
const HEAD: usize = 16;
/// A spool is this many segments at most, since room comes back one segment at a time.
const SEGMENTS: u64 = 16;
const SEGMENT_MIN: u64 = 64 << 10;
const SEGMENT_MAX: u64 = 8 << 20;
const CURSOR_LEN: usize = 20;
/// No spool comes so far. What has a greater number is none of ours, and behind the last number there is none.
const NUMBER_MAX: u64 = u64::MAX >> 1;

/// A place in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    segment: u64,
    offset: u64,
}

/// What a record that was read is acknowledged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// It ends here.
    Disk { segment: u64, end: u64 },
    /// It is the first of those in memory.
    Memory,
}

/// A record that was read.
#[derive(Debug)]
pub struct Lent {
    /// The alert.
    pub json: Vec<u8>,
    /// When it was accepted, in milliseconds since 1970.
    pub accepted_ms: u64,
    /// For [`Spool::acknowledge`].
    pub token: Token,
}

struct Segment {
    number: u64,
    /// Bytes of whole records; what is behind them is torn.
    size: u64,
}

struct Inner {
    cap: u64,
    /// Oldest first.
    segments: VecDeque<Segment>,
    /// Of the last segment, if this run may append to it.
    writer: Option<File>,
    reader: Option<(u64, File)>,
    next_number: u64,
    total: u64,
    /// What is read next.
    read: Cursor,
    /// Up to where the sink has answered.
    acknowledged: Cursor,
    cursor: File,
    memory: VecDeque<(Vec<u8>, u64)>,
    /// Of those in memory, how many were read and not acknowledged.
    memory_lent: usize,
    failing: bool,
    dirty: bool,
    /// Shows what waits on the disk.
    bytes: Gauge,
}

impl Inner {
    fn waiting(&self) -> u64 {
        let sent = self.segments.front().filter(|segment| segment.number == self.acknowledged.segment);
        self.total - sent.map_or(0, |segment| self.acknowledged.offset.min(segment.size))
    }
}

/// A spool. One thread appends, one reads.
pub struct Spool {
    folder: PathBuf,
    inner: Mutex<Inner>,
    torn: Counter,
}

impl Spool {
    /// Opens or makes the spool of a folder, which keeps at most `cap` bytes.
    pub fn open(folder: &Path, cap: u64, bytes: Gauge, torn: Counter) -> io::Result<Spool> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let segments = segments_of(folder)?;
        let cursor_path = folder.join("cursor");
        let cursor =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(cursor_path)?;
        // One that cannot be read starts at the beginning: some alerts are sent twice.
        let acknowledged = read_cursor(&cursor).unwrap_or_default();
        let (done, segments): (Vec<_>, Vec<_>) =
            segments.into_iter().partition(|segment| segment.number < acknowledged.segment);
        for segment in done {
            fs::remove_file(path_of(folder, segment.number))?;
        }
        let last = segments.last().map_or(0, |segment| segment.number).max(acknowledged.segment);
        let inner = Inner {
            cap,
            total: segments.iter().map(|segment| segment.size).sum(),
            segments: segments.into(),
            writer: None,
            reader: None,
            next_number: last + 1,
            read: acknowledged,
            acknowledged,
            cursor,
            memory: VecDeque::new(),
            memory_lent: 0,
            failing: false,
            dirty: false,
            bytes,
        };
        inner.bytes.set(inner.waiting() as i64);
        Ok(Spool { folder: folder.to_owned(), inner: Mutex::new(inner), torn })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what waits on the disk in another gauge.
    pub fn show_in(&self, bytes: Gauge) {
        let mut inner = self.lock();
        bytes.set(inner.waiting() as i64);
        inner.bytes = bytes;
    }

    /// Another limit. What is there already stays.
    pub fn set_cap(&self, cap: u64) {
        self.lock().cap = cap;
    }

    /// Bytes on the disk that wait to be sent.
    pub fn bytes(&self) -> u64 {
        self.lock().waiting()
    }

    /// Alerts that stand in memory, as the disk fails: they end with the process.
    pub fn in_memory(&self) -> usize {
        self.lock().memory.len()
    }

    /// Puts a record at the end, or says in a word why it is lost.
    pub fn append(&self, json: &[u8], accepted_ms: u64) -> Result<(), &'static str> {
        if json.len() > RECORD_MAX {
            return Err("too_long");
        }
        let mut inner = self.lock();
        self.empty_memory(&mut inner);
        let result = if !inner.memory.is_empty() {
            keep(&mut inner, json, accepted_ms)
        } else if inner.total + (HEAD + json.len()) as u64 > inner.cap {
            Err("spool_full")
        } else if self.write(&mut inner, json, accepted_ms) {
            Ok(())
        } else {
            keep(&mut inner, json, accepted_ms)
        };
        inner.bytes.set(inner.waiting() as i64);
        result
    }

    /// Writes to the disk what stands in memory, unless it is being sent.
    fn empty_memory(&self, inner: &mut Inner) {
        while inner.memory_lent == 0 {
            let Some((json, accepted_ms)) = inner.memory.pop_front() else { return };
            let fits = inner.total + (HEAD + json.len()) as u64 <= inner.cap;
            if !fits || !self.write(inner, &json, accepted_ms) {
                inner.memory.push_front((json, accepted_ms));
                return;
            }
        }
    }

    /// Whether the record could be written. What was written of one that could not is taken back.
    fn write(&self, inner: &mut Inner, json: &[u8], accepted_ms: u64) -> bool {
        let result = self.try_write(inner, json, accepted_ms);
        if let Err(error) = &result
            && !inner.failing
        {
            let folder = self.folder.display().to_string();
            log::error!(
                folder = folder.as_str(); "alerts cannot be spooled and are kept in memory: {}", plain(error)
            );
        }
        if result.is_ok() && inner.failing {
            log::info!(folder = self.folder.display().to_string().as_str(); "alerts can be spooled again");
        }
        inner.failing = result.is_err();
        result.is_ok()
    }

    fn try_write(&self, inner: &mut Inner, json: &[u8], accepted_ms: u64) -> io::Result<()> {
        let segment_max = (inner.cap / SEGMENTS).clamp(SEGMENT_MIN, SEGMENT_MAX);
        if inner.writer.is_none() || inner.segments.back().is_none_or(|segment| segment.size >= segment_max) {
            self.sync_writer(inner)?;
            let number = inner.next_number;
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path_of(&self.folder, number));
            // One that is there is torn, or of somebody else: the next number is tried then.
            inner.next_number += 1;
            inner.writer = Some(file?);
            inner.segments.push_back(Segment { number, size: 0 });
        }
        let (Some(file), Some(segment)) = (&inner.writer, inner.segments.back_mut()) else {
            return Err(io::Error::other("no segment"));
        };
        if let Err(error) = file.write_all_at(&record(json, accepted_ms), segment.size) {
            if file.set_len(segment.size).is_err() {
                inner.writer = None;
            }
            return Err(error);
        }
        let length = (HEAD + json.len()) as u64;
        segment.size += length;
        inner.total += length;
        inner.dirty = true;
        Ok(())
    }

    /// Brings what was appended to the disk.
    pub fn sync(&self) {
        let mut inner = self.lock();
        self.empty_memory(&mut inner);
        if !inner.dirty {
            return;
        }
        inner.dirty = false;
        let file = inner.writer.as_ref().and_then(|file| file.try_clone().ok());
        // The reader need not wait for the disk.
        drop(inner);
        if let Some(error) = file.and_then(|file| file.sync_data().err()) {
            log::warn!("{}: {}", self.folder.display(), plain(&error));
        }
    }

    fn sync_writer(&self, inner: &mut Inner) -> io::Result<()> {
        let dirty = std::mem::take(&mut inner.dirty);
        match &inner.writer {
            Some(file) if dirty => file.sync_data(),
            _ => Ok(()),
        }
    }

    /// Up to `max` records after those that were read before. They stay until they are acknowledged.
    pub fn read(&self, max: usize) -> Vec<Lent> {
        let mut inner = self.lock();
        let mut lent = Vec::new();
        while lent.len() < max {
            if let Some(record) = self.read_disk(&mut inner) {
                lent.push(record);
                continue;
            }
            let Some((json, accepted_ms)) = inner.memory.get(inner.memory_lent) else { break };
            lent.push(Lent { json: json.clone(), accepted_ms: *accepted_ms, token: Token::Memory });
            inner.memory_lent += 1;
        }
        lent
    }

    fn read_disk(&self, inner: &mut Inner) -> Option<Lent> {
        loop {
            let read = inner.read;
            let segment = inner.segments.iter().find(|segment| segment.number >= read.segment)?;
            let (number, size) = (segment.number, segment.size);
            if number > read.segment {
                inner.read = Cursor { segment: number, offset: 0 };
            }
            let offset = inner.read.offset;
            if offset >= size {
                // The next one, if there is one.
                inner.segments.iter().find(|segment| segment.number > number)?;
                inner.read = Cursor { segment: number + 1, offset: 0 };
                continue;
            }
            match self.read_record(inner, number, offset, size) {
                Ok((json, accepted_ms, end)) => {
                    inner.read.offset = end;
                    return Some(Lent { json, accepted_ms, token: Token::Disk { segment: number, end } });
                }
                // Not what stands there, but that it cannot be read now: it is tried again.
                Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                    log::warn!("{}: {}", path_of(&self.folder, number).display(), plain(&error));
                    return None;
                }
                Err(error) => {
                    self.torn.inc();
                    let path = path_of(&self.folder, number);
                    log::warn!("{}: {} bytes are skipped: {}", path.display(), size - offset, plain(&error));
                    inner.read.offset = size;
                }
            }
        }
    }

    fn read_record(&self, inner: &mut Inner, number: u64, at: u64, size: u64) -> io::Result<(Vec<u8>, u64, u64)> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "a record is torn");
        let file = match &mut inner.reader {
            Some((of, file)) if *of == number => file,
            reader => &mut reader.insert((number, File::open(path_of(&self.folder, number))?)).1,
        };
        let mut head = [0; HEAD];
        if size - at < HEAD as u64 {
            return Err(broken());
        }
        file.read_exact_at(&mut head, at)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let end = at + (HEAD + length) as u64;
        if length > RECORD_MAX || end > size {
            return Err(broken());
        }
        let mut json = vec![0; length];
        file.read_exact_at(&mut json, at + HEAD as u64)?;
        let mut time = [0; 8];
        time.copy_from_slice(&head[8..]);
        let accepted_ms = u64::from_le_bytes(time);
        if record(&json, accepted_ms)[..HEAD] != head {
            return Err(broken());
        }
        Ok((json, accepted_ms, end))
    }

    /// The sink is done with a record, and with all before it.
    pub fn acknowledge(&self, token: Token) {
        let mut inner = self.lock();
        match token {
            Token::Memory => {
                inner.memory.pop_front();
                inner.memory_lent = inner.memory_lent.saturating_sub(1);
            }
            Token::Disk { segment, end } => {
                inner.acknowledged = Cursor { segment, offset: end };
                self.remove_done(&mut inner, SEGMENT_MIN);
                // Before the files go it says what was sent; after, that nothing is left of them.
                self.write_cursor(&inner);
            }
        }
        inner.bytes.set(inner.waiting() as i64);
    }

    fn write_cursor(&self, inner: &Inner) {
        if let Err(error) = inner.cursor.write_all_at(&cursor_bytes(inner.acknowledged), 0) {
            log::debug!("{}: {}", self.folder.display(), plain(&error));
        }
    }

    /// Removes the segments of which all is sent, but for one that is appended to and small.
    fn remove_done(&self, inner: &mut Inner, keep_below: u64) {
        while let Some(first) = inner.segments.front() {
            let (number, size) = (first.number, first.size);
            let acknowledged = inner.acknowledged;
            let is_done =
                number < acknowledged.segment || number == acknowledged.segment && acknowledged.offset >= size;
            // The one that is appended to stays while it is small: else there were a file for each alert.
            let is_kept = inner.writer.is_some() && inner.segments.len() == 1 && size < keep_below;
            if !is_done || is_kept {
                return;
            }
            if let Err(error) = fs::remove_file(path_of(&self.folder, number))
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("{}: cannot be removed: {}", path_of(&self.folder, number).display(), plain(&error));
                return;
            }
            inner.segments.pop_front();
            inner.total -= size;
            if inner.segments.is_empty() {
                inner.writer = None;
            }
            if inner.reader.as_ref().is_some_and(|(of, _)| *of == number) {
                inner.reader = None;
            }
        }
    }

    /// Whether everything that is there was read. Then nobody waits for it any more: what could not be read of it was
    /// counted, and its files go. Call it when all that was read is acknowledged.
    pub fn end(&self) -> bool {
        let mut inner = self.lock();
        let read = inner.read;
        let is_left = |segment: &Segment| {
            segment.number > read.segment || segment.number == read.segment && segment.size > read.offset
        };
        if inner.segments.iter().any(is_left) || !inner.memory.is_empty() {
            return false;
        }
        inner.acknowledged = read;
        self.remove_done(&mut inner, 0);
        self.write_cursor(&inner);
        inner.bytes.set(inner.waiting() as i64);
        true
    }

    /// Leaves no file of alerts that were sent. It may be used on.
    pub fn tidy(&self) {
        self.remove_done(&mut self.lock(), 0);
    }

    /// Reads again what was read and not acknowledged: there is another reader.
    pub fn rewind(&self) {
        let mut inner = self.lock();
        inner.read = inner.acknowledged;
        inner.memory_lent = 0;
    }
}

/// The segments in a folder, oldest first.
fn segments_of(folder: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg")).filter(|digits| digits.len() == 16);
        let number = number.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        if let Some(number) = number.filter(|number| *number <= NUMBER_MAX) {
            segments.push(Segment { number, size: entry.metadata()?.len() });
        }
    }
    segments.sort_by_key(|segment| segment.number);
    Ok(segments)
}

/// Bytes that wait to be sent in a folder of which nobody has the spool open. Changes nothing.
pub fn waiting_in(folder: &Path) -> io::Result<u64> {
    let sent = File::open(folder.join("cursor")).ok().and_then(|file| read_cursor(&file)).unwrap_or_default();
    let waiting = |segment: &Segment| match segment.number.cmp(&sent.segment) {
        Ordering::Less => 0,
        Ordering::Equal => segment.size.saturating_sub(sent.offset),
        Ordering::Greater => segment.size,
    };
    Ok(segments_of(folder)?.iter().map(waiting).sum())
}

/// Keeps a record in memory.
fn keep(inner: &mut Inner, json: &[u8], accepted_ms: u64) -> Result<(), &'static str> {
    if inner.memory.len() >= MEMORY_MAX {
        return Err("spool_failed");
    }
    inner.memory.push_back((json.to_vec(), accepted_ms));
    Ok(())
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016x}.seg"))
}

fn record(json: &[u8], accepted_ms: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + json.len());
    let length = (json.len() as u32).to_le_bytes();
    let mut crc = crc32fast::Hasher::new();
    crc.update(&length);
    crc.update(&accepted_ms.to_le_bytes());
    crc.update(json);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&crc.finalize().to_le_bytes());
    bytes.extend_from_slice(&accepted_ms.to_le_bytes());
    bytes.extend_from_slice(json);
    bytes
}

fn cursor_bytes(cursor: Cursor) -> [u8; CURSOR_LEN] {
    let mut bytes = [0; CURSOR_LEN];
    bytes[..8].copy_from_slice(&cursor.segment.to_le_bytes());
    bytes[8..16].copy_from_slice(&cursor.offset.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..16]);
    bytes[16..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn read_cursor(file: &File) -> Option<Cursor> {
    let mut bytes = [0; CURSOR_LEN];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let number = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
    let cursor = Cursor { segment: number(0)?, offset: number(8)? };
    (cursor_bytes(cursor) == bytes && cursor.segment <= NUMBER_MAX).then_some(cursor)
}

#[cfg(test)]
mod tests;
