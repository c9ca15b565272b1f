//! The classifier's tables in the kernel: two generations, of which packets read one while the agent writes the other.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::map::{self, MapFacts, Mapped};
use crate::abi::{fw_control, fw_row, fw_tables};

/// Rows of a generation, written straight into the kernel's memory.
pub trait WriteRows {
    /// Entries of the map of rows that they take.
    fn entries(&self) -> usize;
    /// Writes them all; `out` has exactly that many.
    fn write_rows(&self, out: &mut [fw_row]);
}

/// No rows.
impl WriteRows for () {
    fn entries(&self) -> usize {
        0
    }

    fn write_rows(&self, _: &mut [fw_row]) {}
}

/// Both generations of a loaded program. Its owner is their only writer.
pub struct Generations {
    tables: Mapped<fw_tables>,
    control: Mapped<fw_control>,
    rows: MapHandle,
    rows_bytes: u64,
}

impl Generations {
    /// Those of a program, by its maps `.bss.tables`, `.bss.control` and `fw_rows`.
    pub fn new<'m, M>(tables: &impl MapCore, control: &impl MapCore, rows: &'m M) -> Result<Generations>
    where
        M: MapCore,
        MapHandle: TryFrom<&'m M, Error = libbpf_rs::Error>,
    {
        Ok(Generations {
            tables: Mapped::within(tables.as_fd(), tables.value_size() as usize, 2)?,
            control: Mapped::within(control.as_fd(), control.value_size() as usize, 1)?,
            rows: map::handle(rows)?,
            rows_bytes: 0,
        })
    }

    fn active(&self) -> &AtomicU32 {
        // SAFETY: active is an aligned u32 in memory that lives as long as self; the kernel only reads it.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.control.at(0)).active) }
    }

    /// The live tables, to look at.
    pub fn live(&mut self) -> &fw_tables {
        let live = self.active().load(Ordering::Acquire) as usize & 1;
        &self.tables.values()[live]
    }

    /// Address of a generation's tables, for a single volatile or atomic access.
    pub fn at(&self, generation: usize) -> *mut fw_tables {
        self.tables.at(generation)
    }

    /// Builds the next generation and makes it live; returns which of the two it is.
    ///
    /// `build` gets its number, writes policy and tables into memory that no packet reads (and that holds what an older
    /// generation left there) and returns the rows that its tables refer to. When it fails, nothing changes. After the
    /// return no packet is judged by the old generation any more.
    pub fn swap<R: WriteRows>(&mut self, build: impl FnOnce(usize, &mut fw_tables) -> Result<R>) -> Result<usize> {
        let live = self.active().load(Ordering::Acquire) & 1;
        let idle = 1 - live;
        let rows = build(idle as usize, &mut self.tables.values()[idle as usize])?;
        self.set_rows(idle, &rows_map(&rows)?)?;
        self.rows_bytes = (size_of::<fw_row>() * rows.entries().max(1)) as u64;
        self.active().store(idle, Ordering::Release);
        // The kernel waits here until every packet that may have read the old index is done (synchronize_rcu in the
        // update of a map in a map), so that the old tables may be written again. Also gives their rows back.
        self.set_rows(live, &rows_map(&())?)?;
        Ok(idle as usize)
    }

    fn set_rows(&self, generation: u32, rows: &MapHandle) -> Result<()> {
        let fd = rows.as_fd().as_raw_fd() as u32;
        self.rows
            .update(&generation.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
            .context("giving the kernel the rows of a generation")
    }

    /// The rows of the live generation, as status shows them.
    pub fn rows_facts(&self) -> MapFacts {
        let entries = self.rows_bytes / size_of::<fw_row>() as u64;
        MapFacts {
            name: "fw_rows".to_owned(),
            kind: "array in arrayofmaps".to_owned(),
            entries: Some(entries),
            max_entries: entries as u32,
            bytes: self.rows_bytes,
        }
    }
}

/// A map of rows, with at least one entry: an array cannot be empty.
fn rows_map(rows: &impl WriteRows) -> Result<MapHandle> {
    let entries = rows.entries();
    let map = map::create_inner_array("fw_rows", size_of::<fw_row>() as u32, entries.max(1) as u32)?;
    if entries != 0 {
        rows.write_rows(Mapped::<fw_row>::new(&map, entries)?.values());
    }
    Ok(map)
}
