//! The prefixes that the rules name in one address field, each with its row.

use ipnet::IpNet;

use super::Placed;
use super::rows::{self, RowTable};
use crate::classify::matching::Match;

/// A prefix. IPv4 prefixes stand in the high 32 bits, so both families look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// The bits of the prefix, from the highest on; zeros follow.
    pub key: u128,
    /// Number of bits.
    pub length: u8,
    /// Place of the longest prefix around this one; its own place for the prefix of length 0.
    pub parent: u16,
}

/// Distinct prefixes, the one of length 0 always among them, sorted so that a prefix follows those around it.
///
/// At most 4097 for 4096 rules. A prefix's place is its row's number: a row holds the prefix's own rules and those of
/// the prefixes around it, so no two prefixes have the same row and none needs to be looked for.
#[derive(Debug)]
pub struct Nets {
    pub nets: Vec<Net>,
    pub rows: RowTable,
}

impl Nets {
    /// The prefixes of one field of the rules.
    pub fn of(rules: &[Placed], field: impl Fn(&Match) -> Option<IpNet>) -> Nets {
        let mut wanted: Vec<(u128, u8, u16)> = rules
            .iter()
            .enumerate()
            .map(|(place, placed)| {
                let (key, length) = field(placed.matches).map_or((0, 0), bits_of);
                (key, length, place as u16)
            })
            .collect();
        wanted.sort_unstable();

        let width = rows::width_of(rules.len());
        let mut nets = vec![Net { key: 0, length: 0, parent: 0 }];
        let mut rows = RowTable::new(width);
        let mut row = vec![0; width];
        let (open, nested) = wanted.split_at(wanted.partition_point(|&(_, length, _)| length == 0).min(wanted.len()));
        open.iter().for_each(|&(_, _, rule)| rows::insert(&mut row, rule.into()));
        rows.push(&row);

        // The sorting puts the prefixes around a prefix before it, so the innermost of them is the newest one or around
        // the newest one.
        let mut innermost = 0usize;
        for same in nested.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (key, length, _) = same[0];
            while !covers(&nets[innermost], key) {
                innermost = nets[innermost].parent.into();
            }
            nets.push(Net { key, length, parent: innermost as u16 });
            let row = rows.push_copy(innermost);
            same.iter().for_each(|&(_, _, rule)| rows::insert(row, rule.into()));
            innermost = nets.len() - 1;
        }
        Nets { nets, rows }
    }
}

fn bits_of(net: IpNet) -> (u128, u8) {
    match net {
        IpNet::V4(net) => (u128::from(net.network().to_bits()) << 96, net.prefix_len()),
        IpNet::V6(net) => (net.network().to_bits(), net.prefix_len()),
    }
}

/// The ones at the front of a prefix of this length.
pub fn mask_of(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

fn covers(net: &Net, key: u128) -> bool {
    (net.key ^ key) & mask_of(net.length) == 0
}
