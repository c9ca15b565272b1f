//! The consuming end of a ring buffer.
//!
//! Written here rather than taken from libbpf for two reasons. libbpf tells the kernel after every
//! record how far it came; that word is read by every producer, so each record then costs both sides a cache line's way
//! between two cores. And it stays as long as records come, so that under a flood nothing else is done by its thread.

use std::ffi::c_int;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libbpf_rs::{MapCore, MapHandle, MapType};

/// Takes records.
pub type Taker<'r> = Box<dyn FnMut(&[u8]) + 'r>;

/// A ring buffer and who takes its records.
pub struct Ring<'r> {
    /// The map.
    pub map: &'r MapHandle,
    /// Called with each record.
    pub each: Taker<'r>,
}

/// Bytes that are taken before producers may use them again. Of a small ring it is a part.
const RELEASE_BYTES: u64 = 64 * 1024;
const RELEASE_SHARE: u64 = 16;

/// Flags in the length of a record (include/uapi/linux/bpf.h): it is being written; it was given up.
const BUSY: u32 = libbpf_sys::BPF_RINGBUF_BUSY_BIT;
const DISCARDED: u32 = libbpf_sys::BPF_RINGBUF_DISCARD_BIT;
/// Bytes in front of each record; records begin at multiples of it.
const HEADER: u64 = libbpf_sys::BPF_RINGBUF_HDR_SZ as u64;

/// Gives every record of the rings to their takers, looking each `interval`, until `stop` is set; `round` is called
/// after each look. A look takes what is there when it begins, and the next one follows at once while much comes.
///
/// Records do not wake the consumer (7.3 against 4.1 million a second, and a wake-up costs the packet that makes it),
/// so the buffers are looked at on a timer.
///
/// # Errors
/// A map that cannot be mapped, or whose records make no sense.
pub fn consume(rings: Vec<Ring<'_>>, interval: Duration, stop: &AtomicBool, mut round: impl FnMut()) -> Result<()> {
    let open = |Ring { map, each }| Ok((Reader::new(map)?, each));
    let mut readers = rings.into_iter().map(open).collect::<Result<Vec<(Reader, Taker<'_>)>>>()?;
    loop {
        // Asked before the look: what came before the stop is taken.
        let is_last = stop.load(Ordering::Acquire);
        let mut has_much = false;
        for (reader, each) in &mut readers {
            has_much |= reader.take(each)? >= reader.release_bytes;
        }
        round();
        if is_last {
            return Ok(());
        }
        if !has_much {
            std::thread::sleep(interval);
        }
    }
}

/// A ring buffer that is read when asked: for packets that are run one at a time.
pub struct OneByOne(Reader);

impl OneByOne {
    /// Reads a map from here on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(map: &MapHandle) -> Result<OneByOne> {
        Reader::new(map).map(OneByOne)
    }

    /// The last record that came since it was asked before, copied into `record`; whether there was one.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub fn take(&mut self, record: &mut Vec<u8>) -> Result<bool> {
        record.clear();
        self.0.take(|bytes| {
            record.clear();
            record.extend_from_slice(bytes);
        })?;
        Ok(!record.is_empty())
    }
}

/// The memory of a ring buffer, as the kernel lays it out (Documentation/bpf/ringbuf.rst): a page that says how far the
/// consumer came, which it writes; one that says how far producers came; then the records, twice behind each other, so
/// that none is ever cut in two.
struct Reader {
    consumer: Memory,
    producer: Memory,
    page: usize,
    /// Bytes of all records, a power of two.
    size: u64,
    /// Bytes since the ring was made, up to which records were taken.
    position: u64,
    /// What of them the kernel knows.
    released: u64,
    release_bytes: u64,
}

impl Reader {
    fn new(map: &MapHandle) -> Result<Reader> {
        let name = map.name();
        ensure!(map.map_type() == MapType::RingBuf, "{name:?} is no ring buffer");
        // SAFETY: it only asks.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).context("asking for the page size")?;
        let size = u64::from(map.max_entries());
        let context = || format!("mapping the ring buffer {name:?}");
        let consumer = Memory::map(map, libc::PROT_READ | libc::PROT_WRITE, 0, page).with_context(context)?;
        let producer = Memory::map(map, libc::PROT_READ, page, page + 2 * size as usize).with_context(context)?;
        let position = consumer.word(0).load(Ordering::Acquire);
        let release_bytes = RELEASE_BYTES.min(size / RELEASE_SHARE);
        Ok(Reader { consumer, producer, page, size, position, released: position, release_bytes })
    }

    /// Gives away the records that are there now, up to one that is still being written; bytes of them.
    fn take(&mut self, mut each: impl FnMut(&[u8])) -> Result<u64> {
        let begin = self.position;
        let end = self.producer.word(0).load(Ordering::Acquire);
        while self.position < end {
            if self.next(&mut each)?.is_break() {
                break;
            }
            if self.position - self.released >= self.release_bytes {
                self.release();
            }
        }
        self.release();
        Ok(self.position - begin)
    }

    fn next(&mut self, each: &mut impl FnMut(&[u8])) -> Result<ControlFlow<()>> {
        let at = self.page + (self.position & (self.size - 1)) as usize;
        let length = self.producer.half(at).load(Ordering::Acquire);
        if length & BUSY != 0 {
            return Ok(ControlFlow::Break(()));
        }
        let bytes = u64::from(length & !DISCARDED);
        let taken = (HEADER + bytes).next_multiple_of(HEADER);
        if taken > self.size {
            bail!("a record of {bytes} bytes in a ring buffer of {}", self.size);
        }
        if length & DISCARDED == 0 {
            each(self.producer.bytes(at + HEADER as usize, bytes as usize));
        }
        self.position += taken;
        Ok(ControlFlow::Continue(()))
    }

    /// Lets producers use what was taken.
    fn release(&mut self) {
        if self.released != self.position {
            self.consumer.word(0).store(self.position, Ordering::Release);
            self.released = self.position;
        }
    }
}

/// A part of a map, shared with the kernel.
struct Memory {
    start: NonNull<u8>,
    length: usize,
}

impl Memory {
    fn map(map: &MapHandle, protection: c_int, offset: usize, length: usize) -> Result<Memory> {
        let fd = map.as_fd().as_raw_fd();
        // SAFETY: a fresh shared mapping of a map that the kernel keeps as long as the mapping; no address is asked
        // for.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, offset as libc::off_t)
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let start = NonNull::new(start.cast()).context("mapped at the address 0")?;
        Ok(Memory { start, length })
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.length);
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.start.as_ptr().add(offset).cast() }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: mapped, aligned (the mapping begins at a page), and everybody's accesses to it are atomic.
        unsafe { AtomicU64::from_ptr(self.at(offset)) }
    }

    fn half(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as for `word`.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }
    }

    /// Bytes of a record that is complete and not released: nobody writes there.
    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        assert!(offset <= self.length && length <= self.length - offset);
        // SAFETY: within the mapping, by the assertion.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset), length) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that map() made, which nothing refers to any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
