//! Packet in, verdict out: the loaded programs, by BPF_PROG_TEST_RUN. Needs root.

mod blocks;
mod counters;
mod events;
mod flows;
mod fragments;
mod harness;
mod hostile;
mod limits;
mod oracle;
mod parser;
mod ratelimit;
mod replay;
mod ringbuf;
mod routes;
mod state;
mod steer;
#[path = "../support/mod.rs"]
pub mod support;
mod syn_cookies;
mod tc_ids;
