//! IPv4 address to row: stride tables of 16, 8 and 8 bits.

use super::CompileError;
use super::nets::Nets;
use crate::abi::{fw_stride, fw_v4};

/// Entries in a block.
const BLOCK: usize = 256;
const IS_BLOCK: u16 = fw_stride::FW_BLOCK.0 as u16;

/// Writes both fields.
///
/// The blocks suffice: a prefix longer than 16 bits opens at most one block of each of the two lower strides, so 4096
/// rules with two addresses open 16384 at most. No two blocks are equal (the innermost prefix in each is in no other), so
/// there is nothing to share.
pub fn write(nets: [&Nets; 2], table: &mut fw_v4) -> Result<(), CompileError> {
    let fw_v4 { top, block, .. } = table;
    let mut blocks = Blocks { entries: block, used: 0 };
    for (nets, top) in nets.into_iter().zip(top) {
        // The first prefix has length 0, so nothing remains of what an older rule set left in the top stride.
        for (row, net) in nets.nets.iter().enumerate() {
            let address = (net.key >> 96) as usize;
            let (high, middle, low) = (address >> 16, address >> 8 & 255, address & 255);
            if net.length <= 16 {
                top[high..high + (1 << (16 - net.length))].fill(row as u16);
                continue;
            }
            top[high] = blocks.opened(top[high])?;
            let middle = start_of(top[high]) + middle;
            if net.length <= 24 {
                blocks.entries[middle..middle + (1 << (24 - net.length))].fill(row as u16);
                continue;
            }
            blocks.entries[middle] = blocks.opened(blocks.entries[middle])?;
            let low = start_of(blocks.entries[middle]) + low;
            blocks.entries[low..low + (1 << (32 - net.length))].fill(row as u16);
        }
    }
    Ok(())
}

struct Blocks<'a> {
    entries: &'a mut [u16],
    used: usize,
}

impl Blocks<'_> {
    /// The entry with a block below it: itself if it has one, else that of a new block which says what the entry said.
    fn opened(&mut self, entry: u16) -> Result<u16, CompileError> {
        if entry & IS_BLOCK != 0 {
            return Ok(entry);
        }
        let opened = IS_BLOCK | self.used as u16;
        let fresh = self.entries.get_mut(self.used * BLOCK..(self.used + 1) * BLOCK);
        fresh.ok_or(CompileError::Full("block"))?.fill(entry);
        self.used += 1;
        Ok(opened)
    }
}

/// Where the block of an entry starts.
fn start_of(entry: u16) -> usize {
    usize::from(entry & !IS_BLOCK) * BLOCK
}
