//! What include/classify.h does with the tables, in Rust and without the cache: for tests that need no kernel.
//!
//! Kept line by line beside the C, so that a test of the compiler is a test of what the kernel will find.

use super::rows::{NEAR_WORDS, NEARS};
use crate::abi::{
    fw_answer, fw_family, fw_leaf, fw_limits, fw_mode, fw_row, fw_stride, fw_trie_word, fw_uses, fw_v4, fw_v6,
};
use crate::classify::matching::proto;

/// The tables of one family.
pub struct Tables<'a> {
    pub family: &'a fw_family,
    pub addresses: Addresses<'a>,
    /// The map of rows, with those of both families.
    pub rows: &'a [fw_row],
}

/// The tables of its addresses.
pub enum Addresses<'a> {
    V4(&'a fw_v4),
    V6(&'a fw_v6),
}

/// What the parser found in a packet. Addresses in host order; IPv4 in the low 32 bits.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub src: u128,
    pub dst: u128,
    pub ports: Option<(u16, u16)>,
    pub protocol: u8,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    pub vlan_id: u16,
    pub interface: u8,
    pub later_fragment: bool,
}

impl Tables<'_> {
    /// Bits of `fw_answer`; `state` is 0 while none was looked up, else 1 + state.
    pub fn classify(&self, packet: &Packet, state: usize) -> u32 {
        let f = self.family;
        let uses = |field: fw_uses| f.uses & field.0 != 0;
        let mut ports = [0, 0];
        if let Some((src, dst)) = packet.ports.filter(|_| uses(fw_uses::FW_USES_PORTS)) {
            ports = [self.port_class(0, src), self.port_class(1, dst)];
        }
        let icmp = match self.addresses {
            Addresses::V4(_) => proto::ICMP,
            Addresses::V6(_) => proto::ICMPV6,
        };
        let mut protocol = f.proto_class[usize::from(packet.protocol)];
        if uses(fw_uses::FW_USES_TCP_FLAGS) && packet.protocol == proto::TCP {
            protocol = f.tcp_class[usize::from(packet.tcp_flags)];
        }
        if uses(fw_uses::FW_USES_ICMP) && packet.protocol == icmp {
            let block = usize::from(f.icmp_block[usize::from(packet.icmp_type)] & 255);
            protocol = f.icmp_class[block << 8 | usize::from(packet.icmp_code)];
        }
        if uses(fw_uses::FW_USES_FRAGMENT) && packet.later_fragment {
            protocol = f.frag_class[usize::from(packet.protocol)];
        }
        let protocol = usize::from(protocol);
        let vlan = if uses(fw_uses::FW_USES_VLAN) { f.vlan_class[usize::from(packet.vlan_id)].into() } else { 0usize };
        let iface =
            if uses(fw_uses::FW_USES_IFACE) { f.iface_class[usize::from(packet.interface)].into() } else { 0usize };

        let states = f.states as usize;
        let (cell, apart, split) = if f.mode == fw_mode::FW_MODE_APART.0 {
            (iface * states, true, true)
        } else {
            let mut env = usize::from(f.env[(protocol * f.vlans as usize + vlan) * f.ifaces as usize + iface]);
            let merged = f.mode == fw_mode::FW_MODE_MERGED.0;
            if merged {
                env += usize::from(f.pair[ports[0] * f.pair_stride as usize + ports[1]]) * f.envs as usize;
            }
            (env * states, false, !merged)
        };
        let src = self.address_row(0, packet.src);
        let dst = f.dst_base as usize + self.address_row(1, packet.dst);
        let app = |id: u16| f.app_base as usize + usize::from(id);
        let mut rows = vec![src, dst, app(f.cell[cell + if states > 1 { state } else { 0 }])];
        if f.mode == fw_mode::FW_MODE_EMPTY.0 {
            return fw_answer::FW_NO_MATCH.0;
        }
        if split {
            rows.extend([app(f.port_row[0][ports[0]]), app(f.port_row[1][ports[1]])]);
        }
        if apart {
            rows.extend([app(f.proto_row[protocol]), app(f.vlan_row[vlan])]);
        }
        self.walk(&rows).map_or(fw_answer::FW_NO_MATCH.0, |bit| f.rule[bit])
    }

    /// First bit that all rows share.
    fn walk(&self, rows: &[usize]) -> Option<usize> {
        let near = |row: usize| {
            let entry = &self.rows[self.family.near_base as usize + row / NEARS];
            &entry.word[row % NEARS * NEAR_WORDS..][..NEAR_WORDS]
        };
        let word_of = |row: usize, word: usize| {
            let (line, whole) = (near(row), self.rows[self.family.row_base as usize + row].word[word]);
            let rank = (line[0] & ((1 << word) - 1)).count_ones() as usize;
            if line[0] >> word & 1 == 1 && rank + 1 < NEAR_WORDS {
                assert_eq!(line[1 + rank], whole, "a row's first words are those of the row");
            }
            whole
        };
        let mut left = rows.iter().fold(u64::MAX, |left, &row| left & near(row)[0]);
        while left != 0 {
            let word = left.trailing_zeros() as usize;
            let bits = rows.iter().fold(u64::MAX, |bits, &row| bits & word_of(row, word));
            if bits != 0 {
                return Some(word << 6 | bits.trailing_zeros() as usize);
            }
            left &= left - 1;
        }
        None
    }

    fn port_class(&self, side: usize, port: u16) -> usize {
        let block = usize::from(self.family.port_block[side][usize::from(port >> 8)] & 255);
        self.family.port_class[side][block << 8 | usize::from(port & 255)].into()
    }

    fn address_row(&self, side: usize, address: u128) -> usize {
        match self.addresses {
            Addresses::V4(table) => lookup_ipv4(table, side, address as u32),
            Addresses::V6(table) => lookup_ipv6(table, side, (address >> 64) as u64, address as u64).0,
        }
    }
}

fn lookup_ipv4(table: &fw_v4, side: usize, address: u32) -> usize {
    let is_block = |entry: u16| u32::from(entry) & fw_stride::FW_BLOCK.0 != 0;
    let below = |entry: u16, byte: u32| {
        table.block[(usize::from(entry) & (fw_limits::FW_BLOCKS.0 as usize - 1)) << 8 | (byte & 255) as usize]
    };
    let mut entry = table.top[side][(address >> 16) as usize];
    if is_block(entry) {
        entry = below(entry, address >> 8);
        if is_block(entry) {
            entry = below(entry, address);
        }
    }
    entry.into()
}

/// The row, and the nodes on the way to it.
pub fn lookup_ipv6(table: &fw_v6, side: usize, high: u64, low: u64) -> (usize, usize) {
    let mut word = table.root[side];
    let mut steps = 0;
    while word >> fw_trie_word::FW_LEAF_BIT.0 == 0 && steps < fw_trie_word::FW_TRIE_STEPS.0 as usize {
        let position = word >> fw_trie_word::FW_TRIE_BASE_BITS.0 & 127;
        let size = word >> (fw_trie_word::FW_TRIE_BASE_BITS.0 + fw_trie_word::FW_TRIE_POS_BITS.0) & 15;
        let half = if position & 64 != 0 { low } else { high };
        let bits = half << (position & 63) >> (64 - size);
        word = table.trie[(word & ((1 << fw_trie_word::FW_TRIE_BASE_BITS.0) - 1)) as usize + bits as usize];
        steps += 1;
    }
    assert!(word >> fw_trie_word::FW_LEAF_BIT.0 == 1, "a path of more than FW_TRIE_STEPS nodes");
    let leaf: &fw_leaf = &table.leaf[(word & 16383) as usize];
    let (x, y) = (high ^ leaf.key[0], low ^ leaf.key[1]);
    if x & leaf.mask[0] | y & leaf.mask[1] == 0 {
        return (leaf.row.into(), steps);
    }
    let agreeing = |x: u64| u64::MAX.checked_shl(64 - x.leading_zeros()).unwrap_or(0);
    let mut rank = (leaf.lengths[0] & agreeing(x)).count_ones();
    if x == 0 {
        rank += (leaf.lengths[1] & agreeing(y)).count_ones();
    }
    (table.chain[(leaf.chain + rank) as usize].into(), steps)
}
