//! eBPFsentinel: a network security agent in one binary.

pub mod abi;
pub mod agent;
pub mod alert;
pub mod api;
pub mod bpf;
pub mod cli;
pub mod client;
pub mod component;
pub mod config;
pub mod confirm;
pub mod control;
pub mod engines;
pub mod event;
pub mod lab;
pub mod logging;
pub mod metrics;
pub mod packet;
pub mod supervise;
pub mod system;
pub mod written;

// The support of the tests speaks of this crate by its name, from inside the crate as from outside.
#[cfg(test)]
extern crate self as ebpfsentinel;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
pub mod support;
