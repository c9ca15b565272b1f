//! Ports, protocol, VLAN, interface and state as one row, or as few rows as the tables hold.

use super::CompileError;
use super::environment::Environment;
use super::ports::PortClasses;
use super::rows::{self, RowSet, RowTable};
use crate::abi::{fw_family, fw_limits, fw_mode};

const ROWS: usize = fw_limits::FW_APP_ROWS.0 as usize;
const PAIRS: usize = fw_limits::FW_PAIRS.0 as usize;
const ENVS: usize = fw_limits::FW_ENVS.0 as usize;
const CELLS: usize = fw_limits::FW_CELLS.0 as usize;

/// How the rows of a family are combined. Each mode is tried where the one before it has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No rules.
    Empty,
    /// One row for everything: real rule sets name few services.
    Merged,
    /// A row for each port and one for the rest: sets with many different port ranges on both sides.
    Split,
    /// Protocol and VLAN apart too. At most 2 * 8193 rows for ports, 4865 for protocols (256 numbers, 256 of later
    /// fragments, 256 sets of flags, 4097 ICMP types and codes), 4096 for VLANs and 64 * 5 for interface and state: 25,667
    /// of 32,768.
    Apart,
}

impl Mode {
    fn number(self) -> u32 {
        match self {
            Mode::Empty => fw_mode::FW_MODE_EMPTY.0,
            Mode::Merged => fw_mode::FW_MODE_MERGED.0,
            Mode::Split => fw_mode::FW_MODE_SPLIT.0,
            Mode::Apart => fw_mode::FW_MODE_APART.0,
        }
    }
}

/// Writes the tables from classes to rows and gives the rows.
pub fn write(
    ports: [&PortClasses; 2],
    environment: &Environment,
    empty: bool,
    family: &mut fw_family,
) -> Result<RowTable, CompileError> {
    family.pair_stride = ports[1].rows.len() as u32;
    family.vlans = environment.vlans.len() as u32;
    family.ifaces = environment.ifaces.len() as u32;
    family.states = environment.states.len() as u32;
    family.envs = 0;

    let mut chosen = None;
    if let Some(envs) = environments(environment, family) {
        family.envs = envs.len() as u32;
        let states = &environment.states;
        chosen = merged(ports, &envs, states, family).map(|rows| (Mode::Merged, rows));
        if chosen.is_none() {
            chosen = split(ports, &envs, states, family).map(|rows| (Mode::Split, rows));
        }
    }
    let (mode, rows) = match chosen {
        Some(chosen) => chosen,
        None => (Mode::Apart, apart(ports, environment, family).ok_or(CompileError::Full("rows"))?),
    };
    family.mode = if empty { Mode::Empty } else { mode }.number();
    Ok(rows)
}

/// The distinct rows of protocol, VLAN and interface together; `None` when there are too many combinations.
fn environments(environment: &Environment, family: &mut fw_family) -> Option<RowTable> {
    let Environment { protocols, vlans, ifaces, .. } = environment;
    if protocols.len() * vlans.len() * ifaces.len() > ENVS {
        return None;
    }
    let mut set = RowSet::new(protocols.width(), ENVS);
    let mut with_vlan = vec![0; protocols.width()];
    let mut row = with_vlan.clone();
    let mut entries = family.env.iter_mut();
    for protocol in protocols.iter() {
        for vlan in vlans.iter() {
            rows::intersect(&mut with_vlan, protocol, vlan);
            for (iface, entry) in ifaces.iter().zip(&mut entries) {
                rows::intersect(&mut row, &with_vlan, iface);
                *entry = set.intern(&row)?;
            }
        }
    }
    Some(set.into_rows())
}

fn merged(ports: [&PortClasses; 2], envs: &RowTable, states: &RowTable, family: &mut fw_family) -> Option<RowTable> {
    let [src, dst] = ports.map(|side| &side.rows);
    if src.len() * dst.len() > PAIRS {
        return None;
    }
    // Pairs that differ differ as rows too, save where no environment shows the difference; so the rows' limit serves.
    let limit = ROWS.min(CELLS / (envs.len() * states.len()));
    let pairs = products(src, dst, limit, &mut family.pair)?;
    let cells = products_of_three(&pairs, envs, states, &mut family.cell)?;
    Some(cells.into_rows())
}

fn split(ports: [&PortClasses; 2], envs: &RowTable, states: &RowTable, family: &mut fw_family) -> Option<RowTable> {
    if envs.len() * states.len() > CELLS {
        return None;
    }
    let mut set = RowSet::new(envs.width(), ROWS);
    for (side, entries) in ports.into_iter().zip(&mut family.port_row) {
        intern_all(&side.rows, &mut set, entries)?;
    }
    intern_products(envs, states, &mut set, &mut family.cell)?;
    Some(set.into_rows())
}

fn apart(ports: [&PortClasses; 2], environment: &Environment, family: &mut fw_family) -> Option<RowTable> {
    let mut set = RowSet::new(environment.states.width(), ROWS);
    for (side, entries) in ports.into_iter().zip(&mut family.port_row) {
        intern_all(&side.rows, &mut set, entries)?;
    }
    intern_all(&environment.protocols, &mut set, &mut family.proto_row)?;
    intern_all(&environment.vlans, &mut set, &mut family.vlan_row)?;
    intern_products(&environment.ifaces, &environment.states, &mut set, &mut family.cell)?;
    Some(set.into_rows())
}

/// `out[i]` becomes the number of row `i`.
fn intern_all(rows: &RowTable, set: &mut RowSet, out: &mut [u16]) -> Option<()> {
    for (entry, row) in out.iter_mut().zip(rows.iter()) {
        *entry = set.intern(row)?;
    }
    Some(())
}

/// `out[i * b.len() + j]` becomes the number of what rows `i` of `a` and `j` of `b` share. The caller knows it has room.
fn intern_products(a: &RowTable, b: &RowTable, set: &mut RowSet, out: &mut [u16]) -> Option<()> {
    let mut row = vec![0; a.width()];
    let mut entries = out.iter_mut();
    for a in a.iter() {
        for (b, entry) in b.iter().zip(&mut entries) {
            rows::intersect(&mut row, a, b);
            *entry = set.intern(&row)?;
        }
    }
    Some(())
}

fn products(a: &RowTable, b: &RowTable, limit: usize, out: &mut [u16]) -> Option<RowTable> {
    let mut set = RowSet::new(a.width(), limit);
    intern_products(a, b, &mut set, out)?;
    Some(set.into_rows())
}

/// As [`intern_products`], for `out[(i * b.len() + j) * c.len() + k]`.
fn products_of_three(a: &RowTable, b: &RowTable, c: &RowTable, out: &mut [u16]) -> Option<RowSet> {
    let mut set = RowSet::new(a.width(), ROWS);
    let mut both = vec![0; a.width()];
    let mut row = both.clone();
    let mut entries = out.iter_mut();
    for a in a.iter() {
        for b in b.iter() {
            rows::intersect(&mut both, a, b);
            for (c, entry) in c.iter().zip(&mut entries) {
                rows::intersect(&mut row, &both, c);
                *entry = set.intern(&row)?;
            }
        }
    }
    Some(set)
}
