//! Tables of 65536 classes in two levels, so that the lines which packets touch stay few: equal blocks of 256 are shared.

use std::collections::HashMap;

const BLOCK: usize = 256;

/// Writes `classes` (65536 of them): `block[value >> 8]` is `b`, `class[b << 8 | value & 255]` the class of `value`.
pub fn write(classes: &[u16], block: &mut [u16; 256], class: &mut [u16; 65536]) {
    let mut known: HashMap<&[u16], u16> = HashMap::new();
    for (entry, content) in block.iter_mut().zip(classes.chunks_exact(BLOCK)) {
        let fresh = known.len();
        *entry = *known.entry(content).or_insert_with(|| {
            class[fresh * BLOCK..(fresh + 1) * BLOCK].copy_from_slice(content);
            fresh as u16
        });
    }
}
