//! Everything of a packet that is neither address nor port: protocol, TCP flags, ICMP type, VLAN, interface, state.

use super::rows::{self, RowSet, RowTable};
use super::{CompileError, Placed, two_level};
use crate::abi::{fw_family, fw_limits};
use crate::classify::matching::{Match, Protocol, State, proto};

const IFACES: usize = fw_limits::FW_IFACES.0 as usize;
const VLANS: usize = 4096;
/// Classes of protocols: 256 numbers, as many of later fragments, 256 sets of TCP flags, and for each ICMP rule its type and its type and code.
const PROTOCOLS: usize = 16384;

/// Rows of the classes of each field.
#[derive(Debug)]
pub struct Environment {
    pub protocols: RowTable,
    pub vlans: RowTable,
    pub ifaces: RowTable,
    /// Row 0 while no state was looked up, when any rule may match yet; then one for each state, if a rule asks for one.
    pub states: RowTable,
}

impl Environment {
    /// Sorts the values of each field into classes and writes the tables from value to class.
    pub fn of(rules: &[Placed], icmp: u8, family: &mut fw_family) -> Result<Environment, CompileError> {
        Ok(Environment {
            protocols: protocols(rules, icmp, family)?,
            vlans: vlans(rules, family)?,
            ifaces: ifaces(rules, family)?,
            states: states(rules),
        })
    }
}

/// A TCP or ICMP packet has a class for its flags or its type, if any rule asks for those. A rule that does matches no
/// other protocol, and no later fragment, whose flags or type are not known.
fn protocols(rules: &[Placed], icmp: u8, family: &mut fw_family) -> Result<RowTable, CompileError> {
    const FULL: CompileError = CompileError::Full("proto_row");
    let mut set = RowSet::new(rows::width_of(rules.len()), PROTOCOLS);
    let mut any = vec![0; rows::width_of(rules.len())];
    let mut numbered: Vec<(u8, usize)> = Vec::new();
    let mut flagged: Vec<usize> = Vec::new();
    let mut typed: Vec<usize> = Vec::new();
    let mut any_later = any.clone();
    let mut numbered_later: Vec<(u8, usize)> = Vec::new();
    for (place, placed) in rules.iter().enumerate() {
        let matches = placed.matches;
        if matches.fragment != Some(false) && !asks_transport(matches) {
            match matches.protocol {
                Protocol::Any => rows::insert(&mut any_later, place),
                Protocol::Number(number) => numbered_later.push((number, place)),
            }
        }
        if matches.fragment == Some(true) {
            continue;
        }
        let may_be = |number| matches.protocol == Protocol::Any || matches.protocol == Protocol::Number(number);
        match (matches.tcp_flags.is_some(), matches.icmp_type.is_some() || matches.icmp_code.is_some()) {
            (false, false) => match matches.protocol {
                Protocol::Any => rows::insert(&mut any, place),
                Protocol::Number(number) => numbered.push((number, place)),
            },
            (true, false) if may_be(proto::TCP) => flagged.push(place),
            (false, true) if may_be(icmp) => typed.push(place),
            _ => {} // asks for what no packet has
        }
    }
    numbered.sort_unstable();
    numbered_later.sort_unstable();
    let row_of = |number: u8| {
        let mut row = any.clone();
        numbered.iter().filter(|named| named.0 == number).for_each(|&(_, place)| rows::insert(&mut row, place));
        row
    };

    family.proto_class.fill(set.intern(&any).ok_or(FULL)?);
    for same in numbered.chunk_by(|a, b| a.0 == b.0) {
        family.proto_class[usize::from(same[0].0)] = set.intern(&row_of(same[0].0)).ok_or(FULL)?;
    }

    family.frag_class.fill(set.intern(&any_later).ok_or(FULL)?);
    for same in numbered_later.chunk_by(|a, b| a.0 == b.0) {
        let mut row = any_later.clone();
        same.iter().for_each(|&(_, place)| rows::insert(&mut row, place));
        family.frag_class[usize::from(same[0].0)] = set.intern(&row).ok_or(FULL)?;
    }

    let tcp = row_of(proto::TCP);
    for (flags, class) in family.tcp_class.iter_mut().enumerate() {
        let mut row = tcp.clone();
        for &place in &flagged {
            let wanted = rules[place].matches.tcp_flags.expect("the rule asks for flags");
            if flags as u8 & wanted.mask == wanted.set {
                rows::insert(&mut row, place);
            }
        }
        *class = set.intern(&row).ok_or(FULL)?;
    }

    let classes = icmp_classes(rules, &typed, &row_of(icmp), &mut set).ok_or(FULL)?;
    two_level::write(&classes, &mut family.icmp_block, &mut family.icmp_class);
    Ok(set.into_rows())
}

/// Whether a rule asks for flags or types, which a later fragment does not have. (It has no ports either: those have a
/// class of their own for that.)
pub fn asks_transport(matches: &Match) -> bool {
    matches.tcp_flags.is_some() || matches.icmp_type.is_some() || matches.icmp_code.is_some()
}

/// Class of each ICMP type and code, as type << 8 | code. `base` is the row of the rules that ask for neither.
fn icmp_classes(rules: &[Placed], typed: &[usize], base: &[u64], set: &mut RowSet) -> Option<Vec<u16>> {
    let mut classes = vec![set.intern(base)?; 1 << 16];
    for kind in 0..=u8::MAX {
        let of_kind = typed.iter().copied().filter(|&place| rules[place].matches.icmp_type.is_none_or(|t| t == kind));
        let mut coded: Vec<(u8, usize)> = Vec::new();
        let mut row = base.to_vec();
        for place in of_kind {
            match rules[place].matches.icmp_code {
                None => rows::insert(&mut row, place),
                Some(code) => coded.push((code, place)),
            }
        }
        coded.sort_unstable();
        let of_kind = &mut classes[usize::from(kind) << 8..][..256];
        of_kind.fill(set.intern(&row)?);
        for same in coded.chunk_by(|a, b| a.0 == b.0) {
            let mut row = row.clone();
            same.iter().for_each(|&(_, place)| rows::insert(&mut row, place));
            of_kind[usize::from(same[0].0)] = set.intern(&row)?;
        }
    }
    Some(classes)
}

/// At most one class for each id that a rule names and one for all others.
fn vlans(rules: &[Placed], family: &mut fw_family) -> Result<RowTable, CompileError> {
    const FULL: CompileError = CompileError::Full("vlan_row");
    let mut set = RowSet::new(rows::width_of(rules.len()), VLANS);
    let mut any = vec![0; rows::width_of(rules.len())];
    let mut named: Vec<(u16, usize)> = Vec::new();
    for (place, placed) in rules.iter().enumerate() {
        match placed.matches.vlan_id {
            None => rows::insert(&mut any, place),
            Some(id) => named.push((id, place)),
        }
    }
    named.sort_unstable();
    family.vlan_class.fill(set.intern(&any).ok_or(FULL)?);
    for same in named.chunk_by(|a, b| a.0 == b.0) {
        let mut row = any.clone();
        same.iter().for_each(|&(_, place)| rows::insert(&mut row, place));
        // An id of more than 12 bits is on no packet.
        if let Some(class) = family.vlan_class.get_mut(usize::from(same[0].0)) {
            *class = set.intern(&row).ok_or(FULL)?;
        }
    }
    Ok(set.into_rows())
}

fn ifaces(rules: &[Placed], family: &mut fw_family) -> Result<RowTable, CompileError> {
    let mut set = RowSet::new(rows::width_of(rules.len()), IFACES);
    for (number, class) in family.iface_class.iter_mut().enumerate() {
        let mut row = vec![0; rows::width_of(rules.len())];
        for (place, placed) in rules.iter().enumerate() {
            if placed.interfaces >> number & 1 != 0 {
                rows::insert(&mut row, place);
            }
        }
        *class = set.intern(&row).ok_or(CompileError::Full("iface_class"))?;
    }
    Ok(set.into_rows())
}

fn states(rules: &[Placed]) -> RowTable {
    let width = rows::width_of(rules.len());
    let mut table = RowTable::new(width);
    let row_where = |holds: &dyn Fn(&Placed) -> bool| {
        let mut row = vec![0; width];
        rules.iter().enumerate().filter(|(_, placed)| holds(placed)).for_each(|(place, _)| {
            rows::insert(&mut row, place);
        });
        row
    };
    table.push(&row_where(&|_| true));
    if rules.iter().any(|placed| !placed.matches.states.is_any()) {
        for state in State::ALL {
            table.push(&row_where(&|placed| placed.matches.states.contains(state)));
        }
    }
    table
}
