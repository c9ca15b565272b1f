//! The consuming end of a ring buffer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapHandle, RingBufferBuilder};

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
