//! IPv6 address to row: a trie with level and path compression (Nilsson and Karlsson 1999).
//!
//! A node looks at the first bits in which the prefixes below it differ, and at as many of them as keep its table
//! reasonably full. Bits between two nodes are skipped, hence a leaf is compared in the end. An address that leaves the
//! leaf's prefix at some bit left every prefix below that bit with it, so it belongs to one of the prefixes around the
//! leaf: the longest that ends before that bit.

use super::CompileError;
use super::nets::{Net, Nets, mask_of};
use crate::abi::{fw_leaf, fw_trie_word, fw_v6};

const IS_LEAF: u32 = 1 << fw_trie_word::FW_LEAF_BIT.0;
const POS_SHIFT: u32 = fw_trie_word::FW_TRIE_BASE_BITS.0;
const SIZE_SHIFT: u32 = POS_SHIFT + fw_trie_word::FW_TRIE_POS_BITS.0;

/// Most bits that a node looks at: what its word has room for.
const SIZE_MAX: u32 = (1 << fw_trie_word::FW_TRIE_SIZE_BITS.0) - 1;

/// Fewest bits that a node looks at, unless the address or its first half ends sooner. A path then has at most
/// 2 * 64 / 4 = 32 nodes, within `FW_TRIE_STEPS`; and 16 words are one cache line, so smaller nodes would save nothing.
const SIZE_MIN: u32 = 4;

/// Words of a node for each child that is not a mere copy. More makes paths shorter and tables larger.
///
/// Every node has `c >= 2` such children and at most `16c` words, which is at most 32 for each child beyond the
/// first. Children beyond the first are fewer than prefixes, so both tries have at most 2 * 32 * 4095 = 262,080 words
/// of 262,144.
const WORDS_PER_CHILD: u32 = 16;

/// Writes both fields.
///
/// The other tables suffice too: a field has at most 4097 prefixes, so both have 8194 of 8256 leaves. A chain is that of
/// all prefixes right below one prefix; at most 4096 prefixes of a field have any, each within at most 127 others, so
/// their chains take at most 128 entries each: 1,048,576 for both.
pub fn write(nets: [&Nets; 2], table: &mut fw_v6) -> Result<(), CompileError> {
    let fw_v6 { root, leaf, trie, chain, .. } = table;
    let mut chains = Chains { entries: chain, used: 0 };
    let mut words = Words { entries: trie, used: 0 };
    let mut first_leaf = 0;
    for (nets, root) in nets.into_iter().zip(root) {
        let nets = &nets.nets;
        let leaves = leaf.get_mut(first_leaf..first_leaf + nets.len()).ok_or(CompileError::Full("leaf"))?;
        write_leaves(nets, leaves, &mut chains)?;
        let shared = nets.windows(2).map(|pair| (pair[0].key ^ pair[1].key).leading_zeros()).collect();
        let mut trie = Trie { nets, shared, first_leaf, words: &mut words };
        *root = trie.subtree(1, nets.len(), 0)?;
        first_leaf += nets.len();
    }
    Ok(())
}

fn write_leaves(nets: &[Net], leaves: &mut [fw_leaf], chains: &mut Chains) -> Result<(), CompileError> {
    // Where the chain of the prefixes right below a prefix starts, once one of them was met.
    let mut chain_below: Vec<Option<u32>> = vec![None; nets.len()];
    for (row, net) in nets.iter().enumerate() {
        let parent = usize::from(net.parent);
        let mut leaf =
            fw_leaf { key: halves(net.key), mask: halves(mask_of(net.length)), row: row as u16, ..fw_leaf::default() };
        if net.length > 0 {
            let around = (u128::from(leaves[parent].lengths[0]) << 64) | u128::from(leaves[parent].lengths[1]);
            leaf.lengths = halves(around | 1 << (128 - net.length));
            leaf.chain = match chain_below[parent] {
                Some(chain) => chain,
                None => {
                    let chain = chains.extended(leaves[parent].chain, around.count_ones() as usize, net.parent)?;
                    *chain_below[parent].insert(chain)
                }
            };
        }
        leaves[row] = leaf;
    }
    Ok(())
}

fn halves(bits: u128) -> [u64; 2] {
    [(bits >> 64) as u64, bits as u64]
}

/// Rows of the prefixes around a prefix, by their rank.
struct Chains<'a> {
    entries: &'a mut [u16],
    used: usize,
}

impl Chains<'_> {
    /// A new chain: the first `length` entries of the one at `old`, then `row`.
    fn extended(&mut self, old: u32, length: usize, row: u16) -> Result<u32, CompileError> {
        let start = self.used;
        if start + length >= self.entries.len() {
            return Err(CompileError::Full("chain"));
        }
        self.entries.copy_within(old as usize..old as usize + length, start);
        self.entries[start + length] = row;
        self.used = start + length + 1;
        Ok(start as u32)
    }
}

/// The words of both tries, given out from the front.
struct Words<'a> {
    entries: &'a mut [u32],
    used: usize,
}

struct Trie<'a, 'b> {
    nets: &'a [Net],
    /// Bits that the keys of a prefix and the next one share.
    shared: Vec<u32>,
    first_leaf: usize,
    words: &'a mut Words<'b>,
}

impl Trie<'_, '_> {
    /// The word that stands for the prefixes `first..end` (which share a path) inside prefix `around`.
    fn subtree(&mut self, mut first: usize, end: usize, mut around: usize) -> Result<u32, CompileError> {
        // Prefixes around all the others need no node of their own: they are in the chain of every leaf below.
        while first < end && self.is_around(first, end - 1) {
            around = first;
            first += 1;
        }
        if first == end {
            return Ok(self.leaf(around));
        }
        self.node(first, end, around)
    }

    /// A node that tells the prefixes `first..end` apart; at least two of them lie in different children.
    fn node(&mut self, first: usize, end: usize, around: usize) -> Result<u32, CompileError> {
        let position = *self.shared[first..end - 1].iter().min().expect("two prefixes at least");
        let size = self.size_of_node(first, end, position);
        let base = self.words.used;
        let copied = self.leaf(around);
        let children = self.words.entries.get_mut(base..base + (1 << size));
        children.ok_or(CompileError::Full("trie"))?.fill(copied);
        self.words.used += 1 << size;

        let below = position + size;
        let mut at = first;
        while at < end {
            let child = base + self.child_of(at, position, size);
            let length = u32::from(self.nets[at].length);
            if length <= below {
                // Ends within this node. The prefixes inside it come later and write over their part.
                let leaf = self.leaf(at);
                self.words.entries[child..child + (1 << (below - length))].fill(leaf);
                at += 1;
                continue;
            }
            let mut next = at + 1;
            while next < end && self.shared[next - 1] >= below {
                next += 1;
            }
            let innermost = (self.words.entries[child] & !IS_LEAF) as usize - self.first_leaf;
            self.words.entries[child] = self.subtree(at, next, innermost)?;
            at = next;
        }
        Ok(base as u32 | position << POS_SHIFT | size << SIZE_SHIFT)
    }

    /// The largest number of bits whose table is full enough.
    fn size_of_node(&self, first: usize, end: usize, position: u32) -> u32 {
        // A node never straddles the halves of an address, so that the kernel extracts its bits from one word.
        let room = (if position < 64 { 64 - position } else { 128 - position }).min(SIZE_MAX);
        let mut splits = [0u32; SIZE_MAX as usize + 1];
        for shared in &self.shared[first..end - 1] {
            splits[(shared - position).min(SIZE_MAX) as usize] += 1;
        }
        let mut children = 1;
        let mut best = SIZE_MIN.min(room);
        for size in 1..=room {
            children += splits[size as usize - 1];
            if size > best && 1 << size <= WORDS_PER_CHILD * children {
                best = size;
            }
        }
        best
    }

    fn child_of(&self, net: usize, position: u32, size: u32) -> usize {
        (self.nets[net].key >> (128 - position - size)) as usize & ((1 << size) - 1)
    }

    fn is_around(&self, outer: usize, inner: usize) -> bool {
        let outer = &self.nets[outer];
        (outer.key ^ self.nets[inner].key) & mask_of(outer.length) == 0
    }

    fn leaf(&self, net: usize) -> u32 {
        IS_LEAF | (self.first_leaf + net) as u32
    }
}
