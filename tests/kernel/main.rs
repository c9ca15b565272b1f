//! Packet in, verdict out: the loaded programs, by BPF_PROG_TEST_RUN. Needs root.

mod fragments;
mod harness;
mod hostile;
mod oracle;
mod parser;
#[path = "../support/mod.rs"]
pub mod support;
