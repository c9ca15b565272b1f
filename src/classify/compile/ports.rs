//! Ports of one side to classes: ports with the same rules share a class.

use super::rows::{self, RowSet, RowTable};
use super::{CompileError, Placed, two_level};
use crate::classify::matching::{Match, PortRange};

/// Classes that a side can have: the bounds of 4096 ranges cut the ports into 8193 pieces, and there is class 0.
const CLASSES: usize = 16384;

/// The classes of one side. Class 0 is that of a packet without ports, which meets only rules that do not ask for one;
/// ports that no rule names are in it too.
#[derive(Debug)]
pub struct PortClasses {
    /// Class of each port.
    classes: Vec<u16>,
    /// Row of each class.
    pub rows: RowTable,
}

impl PortClasses {
    /// The classes of one side of the rules.
    pub fn of(rules: &[Placed], field: impl Fn(&Match) -> Option<PortRange>) -> Result<PortClasses, CompileError> {
        const FULL: CompileError = CompileError::Full("port_row");
        let mut row = vec![0; rows::width_of(rules.len())];
        // Where the row changes: (port, rule, whether the rule's range starts there). A range that ends with the last
        // port has no end.
        let mut bounds: Vec<(u16, u16, bool)> = Vec::with_capacity(2 * rules.len());
        for (place, placed) in rules.iter().enumerate() {
            match field(placed.matches) {
                None => rows::insert(&mut row, place),
                Some(range) => {
                    bounds.push((range.low, place as u16, true));
                    bounds.extend(range.high.checked_add(1).map(|end| (end, place as u16, false)));
                }
            }
        }
        bounds.sort_unstable();

        let mut set = RowSet::new(row.len(), CLASSES);
        let mut classes = vec![set.intern(&row).ok_or(FULL)?; 1 << 16];
        for (index, same) in chunks_with_end(&bounds) {
            for &(_, rule, starts) in same {
                if starts { rows::insert(&mut row, rule.into()) } else { rows::remove(&mut row, rule.into()) }
            }
            let class = set.intern(&row).ok_or(FULL)?;
            classes[index].fill(class);
        }
        Ok(PortClasses { classes, rows: set.into_rows() })
    }

    /// Writes the two levels of the side's table.
    pub fn write(&self, block: &mut [u16; 256], class: &mut [u16; 65536]) {
        two_level::write(&self.classes, block, class);
    }
}

/// The bounds at each port, with the ports from there up to the next bound.
fn chunks_with_end(bounds: &[(u16, u16, bool)]) -> impl Iterator<Item = (std::ops::Range<usize>, &[(u16, u16, bool)])> {
    let chunks = bounds.chunk_by(|a, b| a.0 == b.0);
    let ends = chunks.clone().skip(1).map(|next| usize::from(next[0].0)).chain([1 << 16]);
    chunks.zip(ends).map(|(same, end)| (usize::from(same[0].0)..end, same))
}
