//! Packet in, verdict out: the loaded programs, by BPF_PROG_TEST_RUN. Needs root.

mod firewall;
mod oracle;
#[path = "../support/mod.rs"]
pub mod support;
