//! Rules of one address family in, the kernel's tables out. Pure computation, no I/O.
//!
//! Each field of a packet picks a row, a bit for each rule whose condition on that field holds; the lowest bit that all
//! rows share is the first rule that matches (Lakshman and Stiliadis 1998, Baboescu and Varghese 2001). What is compiled
//! here is the way from a field's value to its row; include/abi.h says how the kernel walks it, `lookup` does the same in
//! Rust for the tests.
//!
//! The tables are those of the idle generation and hold what an older rule set left there. Every entry that a lookup can
//! reach is written again and nothing else: what cannot be reached from a written entry keeps its old content.
//!
//! - `nets` gives each distinct prefix of an address field its row; `addresses_v4` and `addresses_v6` find the prefix.
//! - `ports` and `environment` sort the values of the other fields into classes of equal rows.
//! - `application` merges those classes into as few rows as the tables hold: [`Mode`].

mod addresses_v4;
mod addresses_v6;
mod application;
mod environment;
#[cfg(test)]
mod lookup;
mod nets;
mod ports;
mod rows;
#[cfg(test)]
mod tests;
mod two_level;

use thiserror::Error;

use self::environment::Environment;
use self::nets::Nets;
use self::ports::PortClasses;
use super::matching::{Match, proto};
use crate::abi::{fw_answer, fw_family, fw_uses, fw_v4, fw_v6};

pub use self::application::Mode;
pub use self::rows::{BothRows, Rows};

/// Rules in one address family; the kernel tables have a bit for each.
pub const RULES_MAX: usize = 4096;

/// An enabled rule with its place in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// What it matches.
    pub matches: &'a Match,
    /// What a hit tells the kernel, as bits of `enum fw_answer`: the action, and the slot of the rule's counters.
    /// `FW_STATEFUL` is added here.
    pub answer: u32,
    /// A bit for each interface, by number, on which it applies.
    pub interfaces: u64,
}

impl Placed<'_> {
    /// Every interface, known or not.
    pub const ALL_INTERFACES: u64 = u64::MAX;
}

/// Why a rule set cannot be compiled. The idle tables are of no use afterwards; the live ones were not touched.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CompileError {
    /// More rules than a row has bits.
    #[error("{0} rules of one address family; the kernel tables hold {RULES_MAX}")]
    TooManyRules(usize),
    /// A table is full. Each table holds whatever [`RULES_MAX`] rules can need, so this is a bug; it stops the change.
    #[error("the kernel table \"{0}\" is full")]
    Full(&'static str),
}

/// Compiles IPv4 rules, given in the order in which they are asked, into the tables of the idle generation. The rows
/// belong into the shared map of rows from entry `base` on.
pub fn compile_v4(
    rules: &[Placed],
    base: usize,
    family: &mut fw_family,
    addresses: &mut fw_v4,
) -> Result<Rows, CompileError> {
    compile(rules, base, proto::ICMP, family, |nets| addresses_v4::write(nets, addresses))
}

/// Compiles IPv6 rules; otherwise as [`compile_v4`].
pub fn compile_v6(
    rules: &[Placed],
    base: usize,
    family: &mut fw_family,
    addresses: &mut fw_v6,
) -> Result<Rows, CompileError> {
    compile(rules, base, proto::ICMPV6, family, |nets| addresses_v6::write(nets, addresses))
}

fn compile(
    rules: &[Placed],
    base: usize,
    icmp: u8,
    family: &mut fw_family,
    write_addresses: impl FnOnce([&Nets; 2]) -> Result<(), CompileError>,
) -> Result<Rows, CompileError> {
    if rules.len() > RULES_MAX {
        return Err(CompileError::TooManyRules(rules.len()));
    }
    let src = Nets::of(rules, |matches| matches.src_ip);
    let dst = Nets::of(rules, |matches| matches.dst_ip);
    write_addresses([&src, &dst])?;

    let src_ports = PortClasses::of(rules, |matches| matches.src_port)?;
    let dst_ports = PortClasses::of(rules, |matches| matches.dst_port)?;
    src_ports.write(&mut family.port_block[0], &mut family.port_class[0]);
    dst_ports.write(&mut family.port_block[1], &mut family.port_class[1]);
    let environment = Environment::of(rules, icmp, family)?;
    let app = application::write([&src_ports, &dst_ports], &environment, rules.is_empty(), family)?;

    let rows = Rows { src: src.rows, dst: dst.rows, app };
    family.uses = uses(rules);
    family.near_base = base as u32;
    family.row_base = (base + rows.near_entries()) as u32;
    family.dst_base = rows.src.len() as u32;
    family.app_base = family.dst_base + rows.dst.len() as u32;
    for (entry, placed) in family.rule.iter_mut().zip(rules) {
        *entry = answer(placed);
    }
    family.cache.fill(0);
    Ok(rows)
}

/// What a hit on the rule tells the kernel.
fn answer(placed: &Placed) -> u32 {
    let asks_for_state = !placed.matches.states.is_any();
    placed.answer | if asks_for_state { fw_answer::FW_STATEFUL.0 } else { 0 }
}

/// The fields that the rules look at.
fn uses(rules: &[Placed]) -> u32 {
    rules.iter().fold(0, |uses, placed| {
        let matches = placed.matches;
        let flag = |on: bool, flag: fw_uses| if on { flag.0 } else { 0 };
        uses | flag(matches.src_port.is_some() || matches.dst_port.is_some(), fw_uses::FW_USES_PORTS)
            | flag(matches.src_port.is_some(), fw_uses::FW_USES_SRC_PORT)
            | flag(matches.tcp_flags.is_some(), fw_uses::FW_USES_TCP_FLAGS)
            | flag(matches.src_ip.is_some(), fw_uses::FW_USES_SRC)
            | flag(matches.dst_ip.is_some(), fw_uses::FW_USES_DST)
            | flag(matches.icmp_type.is_some() || matches.icmp_code.is_some(), fw_uses::FW_USES_ICMP)
            | flag(matches.vlan_id.is_some(), fw_uses::FW_USES_VLAN)
            | flag(placed.interfaces != Placed::ALL_INTERFACES, fw_uses::FW_USES_IFACE)
            | flag(!matches.states.is_any(), fw_uses::FW_USES_STATE)
            | flag(matches.fragment.is_some() || environment::asks_transport(matches), fw_uses::FW_USES_FRAGMENT)
    })
}
