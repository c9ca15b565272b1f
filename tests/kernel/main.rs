//! Packet in, verdict out: the loaded programs, by BPF_PROG_TEST_RUN. Needs root.

mod counters;
mod events;
mod flows;
mod fragments;
mod harness;
mod hostile;
mod oracle;
mod parser;
mod ratelimit;
mod state;
mod steer;
#[path = "../support/mod.rs"]
pub mod support;
