//! The consuming end of a ring buffer.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapHandle, RingBuffer, RingBufferBuilder};

/// Takes records. It must not panic: it is called from C.
pub type Taker<'r> = Box<dyn FnMut(&[u8]) + 'r>;

/// A ring buffer and who takes its records.
pub struct Ring<'r> {
    /// The map.
    pub map: &'r MapHandle,
    /// Called with each record.
    pub each: Taker<'r>,
}

/// Gives every record of the rings to their takers, looking each `interval`, until `stop` is set; `round` is called after
/// each look.
///
/// Records do not wake the consumer (7.3 against 4.1 million a second, and a wake-up costs the packet that makes it), so
/// the buffers are looked at on a timer.
pub fn consume(rings: Vec<Ring<'_>>, interval: Duration, stop: &AtomicBool, mut round: impl FnMut()) -> Result<()> {
    let mut builder = RingBufferBuilder::new();
    for Ring { map, mut each } in rings {
        let add = builder.add(map, move |record| {
            each(record);
            0
        });
        add.with_context(|| format!("reading the ring buffer {:?}", map.name()))?;
    }
    let buffer = builder.build().context("reading the ring buffers")?;
    while !stop.load(Ordering::Acquire) {
        buffer.consume().context("reading the ring buffers")?;
        round();
        std::thread::sleep(interval);
    }
    buffer.consume().context("reading the ring buffers a last time")?;
    round();
    Ok(())
}

/// A ring buffer that is read when asked: for packets that are run one at a time.
pub struct OneByOne {
    buffer: RingBuffer<'static>,
    record: Rc<RefCell<Vec<u8>>>,
}

impl OneByOne {
    /// Reads a map from here on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(map: &MapHandle) -> Result<OneByOne> {
        let record = Rc::new(RefCell::new(Vec::new()));
        let kept = Rc::clone(&record);
        let mut builder = RingBufferBuilder::new();
        let keep = move |bytes: &[u8]| {
            let mut kept = kept.borrow_mut();
            kept.clear();
            kept.extend_from_slice(bytes);
            0
        };
        builder.add(map, keep).with_context(|| format!("reading the ring buffer {:?}", map.name()))?;
        Ok(OneByOne { buffer: builder.build().context("reading the ring buffer")?, record })
    }

    /// The last record that came since it was asked before, copied into `record`; whether there was one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take(&self, record: &mut Vec<u8>) -> Result<bool> {
        self.record.borrow_mut().clear();
        self.buffer.consume().context("reading the ring buffer")?;
        std::mem::swap(&mut *self.record.borrow_mut(), record);
        Ok(!record.is_empty())
    }
}
