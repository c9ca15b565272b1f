//! Rows: sets of rules, a bit each.

use crate::abi::{fw_near, fw_row};
use crate::bpf::generations::WriteRows;

/// Bits in a word of a row.
const WORD_BITS: usize = u64::BITS as usize;

/// Words of `struct fw_near`, and how many of them an entry of the map of rows holds.
pub(super) const NEAR_WORDS: usize = size_of::<fw_near>() / size_of::<u64>();
pub(super) const NEARS: usize = size_of::<fw_row>() / size_of::<fw_near>();

/// Words that the rows of `rules` rules need; at least one, so that every row has a place.
pub fn width_of(rules: usize) -> usize {
    rules.div_ceil(WORD_BITS).max(1)
}

/// Puts a rule into a row.
pub fn insert(row: &mut [u64], rule: usize) {
    row[rule / WORD_BITS] |= 1 << (rule % WORD_BITS);
}

/// Takes a rule out of a row.
pub fn remove(row: &mut [u64], rule: usize) {
    row[rule / WORD_BITS] &= !(1 << (rule % WORD_BITS));
}

/// Rules that are in both rows.
pub fn intersect(out: &mut [u64], a: &[u64], b: &[u64]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a & b;
    }
}

/// Rows by number, all of one width.
#[derive(Debug)]
pub struct RowTable {
    width: usize,
    words: Vec<u64>,
}

impl RowTable {
    /// No rows yet.
    pub fn new(width: usize) -> RowTable {
        RowTable { width, words: Vec::new() }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.words.len() / self.width
    }

    /// Words in each row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The row of a number.
    pub fn row(&self, id: usize) -> &[u64] {
        &self.words[id * self.width..][..self.width]
    }

    /// Every row, by number.
    pub fn iter(&self) -> impl Iterator<Item = &[u64]> {
        self.words.chunks_exact(self.width)
    }

    /// Adds a row under the next number.
    pub fn push(&mut self, row: &[u64]) {
        self.words.extend_from_slice(row);
    }

    /// Adds a copy of row `id` under the next number and gives it to be changed.
    pub fn push_copy(&mut self, id: usize) -> &mut [u64] {
        let start = self.words.len();
        self.words.extend_from_within(id * self.width..(id + 1) * self.width);
        &mut self.words[start..]
    }
}

/// Different rows, numbered in the order in which they came.
#[derive(Debug)]
pub struct RowSet {
    table: RowTable,
    hashes: Vec<u64>,
    /// Open addressing over row numbers plus one; 0 is free. Never more than half full.
    index: Vec<u32>,
    limit: usize,
}

impl RowSet {
    /// A set that takes up to `limit` rows, at most 65536: numbers are 16 bits wide.
    pub fn new(width: usize, limit: usize) -> RowSet {
        debug_assert!(limit <= 1 << 16);
        RowSet { table: RowTable::new(width), hashes: Vec::new(), index: vec![0; 256], limit }
    }

    /// The number of this row, a new one if it is new; `None` when the set is full.
    pub fn intern(&mut self, row: &[u64]) -> Option<u16> {
        let hash = hash(row);
        let mut place = hash as usize & (self.index.len() - 1);
        while let Some(id) = (self.index[place] as usize).checked_sub(1) {
            if self.hashes[id] == hash && self.table.row(id) == row {
                return Some(id as u16);
            }
            place = (place + 1) & (self.index.len() - 1);
        }
        let id = self.hashes.len();
        if id == self.limit {
            return None;
        }
        self.table.push(row);
        self.hashes.push(hash);
        self.index[place] = id as u32 + 1;
        if self.hashes.len() * 2 > self.index.len() {
            self.grow();
        }
        Some(id as u16)
    }

    /// The rows, by number.
    pub fn into_rows(self) -> RowTable {
        self.table
    }

    fn grow(&mut self) {
        self.index = vec![0; self.index.len() * 2];
        for (id, &hash) in self.hashes.iter().enumerate() {
            let mut place = hash as usize & (self.index.len() - 1);
            while self.index[place] != 0 {
                place = (place + 1) & (self.index.len() - 1);
            }
            self.index[place] = id as u32 + 1;
        }
    }
}

/// Four independent lanes keep the multiplier busy: rows are hashed by the hundred thousand. Collisions only cost a
/// comparison; nobody gains by provoking them, since whoever writes rules may as well write none that work.
fn hash(row: &[u64]) -> u64 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut lanes = [0x243f_6a88_85a3_08d3u64, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];
    for words in row.chunks(4) {
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = (lane.rotate_left(29) ^ word).wrapping_mul(SPREAD);
        }
    }
    let all = lanes.into_iter().fold(0u64, |all, lane| (all.rotate_left(23) ^ lane).wrapping_mul(SPREAD));
    all ^ all >> 32
}

/// The rows of a family, as its lookups number them: source, then destination, then the rest.
#[derive(Debug)]
pub struct Rows {
    pub(super) src: RowTable,
    pub(super) dst: RowTable,
    pub(super) app: RowTable,
}

impl Rows {
    /// Number of rows; never 0.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.src.len() + self.dst.len() + self.app.len()
    }

    /// Entries of the map of rows that they take.
    pub fn entries(&self) -> usize {
        self.near_entries() + self.len()
    }

    /// Entries that hold the first words of all rows.
    pub(super) fn near_entries(&self) -> usize {
        self.len().div_ceil(NEARS)
    }

    /// Writes the rows over the first [`Rows::entries`] entries of `out`, which may hold anything.
    ///
    /// # Panics
    /// When `out` is shorter than that.
    pub fn write(&self, out: &mut [fw_row]) {
        let (nears, rows) = out[..self.entries()].split_at_mut(self.near_entries());
        let lines = nears.iter_mut().flat_map(|entry| entry.word.chunks_exact_mut(NEAR_WORDS));
        let words = [&self.src, &self.dst, &self.app].into_iter().flat_map(RowTable::iter);
        for ((words, row), line) in words.zip(rows).zip(lines) {
            let (used, unused) = row.word.split_at_mut(words.len());
            used.copy_from_slice(words);
            unused.fill(0);
            let (summary, first) = line.split_at_mut(1);
            summary[0] = words.iter().enumerate().fold(0, |bits, (at, &word)| bits | u64::from(word != 0) << at);
            first.fill(0);
            for (first, &word) in first.iter_mut().zip(words.iter().filter(|&&word| word != 0)) {
                *first = word;
            }
        }
    }
}

/// The rows of both families in their common map: first IPv4's, then IPv6's.
pub struct BothRows {
    /// IPv4.
    pub v4: Rows,
    /// IPv6.
    pub v6: Rows,
}

impl WriteRows for BothRows {
    fn entries(&self) -> usize {
        self.v4.entries() + self.v6.entries()
    }

    fn write_rows(&self, out: &mut [fw_row]) {
        let (v4, v6) = out.split_at_mut(self.v4.entries());
        self.v4.write(v4);
        self.v6.write(v6);
    }
}
