//! eBPFsentinel: a network security agent in one binary.
//!
//! # A packet's way
//! `bpf/xdp_firewall.bpf.c` judges it in the kernel: parse, classify, ask the connection's state where it matters, count,
//! tell. The common packet (untagged, whole, without options) of a flow that these rules have judged before takes that
//! answer from the flow cache (`include/flows.h`). With `firewall.rp_filter` the host's routes are asked whether the source
//! of what would pass is forged (`include/routes.h`). What it passes goes on to `bpf/xdp_ratelimit.bpf.c`, by a tail call, if
//! the limiter runs: a rule by the same classifier with tables of its own, a bucket that all CPUs share
//! (`include/bucket_table.h`), one step of an algorithm (`include/buckets.h`). SYNs beyond the threshold of a rule with
//! `syn_cookie`, and meanwhile acknowledgements, go on to `bpf/xdp_syncookie.bpf.c`. With `agent.cpu_steering`
//! `bpf/xdp_steer.bpf.c` comes last and sends the packet to its flow's CPU. At TC `bpf/tc_mirror.bpf.c` sends copies of
//! what a rule with `mirror_to` has passed, by the slot that xdp_firewall notes in front of the packet
//! (`include/xdp_meta.h`). Behind it, and behind `bpf/tc_egress.bpf.c` on the way out, `bpf/tc_ids.bpf.c` copies what each
//! flow says, by direction and as far as its budget goes (`include/flow_budget.h`). What the agent has blocked
//! (`include/verdicts.h`) xdp_firewall drops before it asks its rules, and tc_ids in both directions.
//!
//! What the kernel side tells goes one way, through bounded queues, and never waits; every loss is counted by place and
//! reason:
//!
//! ring buffers -> `poller` thread (bytes to [`event::Event`], [`event::OverLimit`]) -> `firewall` and `ratelimit` threads
//! ([`engines`]: event to [`alert::Alert`]) -> `alert-router` thread (folds, throttles, routes) -> sinks ([`alert::sinks`]:
//! a queue and a thread `sink-0`, ... for each, and `spool-0`, ... where alerts are kept on the disk until they are sent),
//! of which one is `alert-store` ([`store`]: kept, found again by the API). Who listens takes from a ring ([`alert::hub`]):
//! a thread `http-stream` for each client of [`control::stream`], and `grpc`, with a runtime of its own, for all of
//! [`control::grpc`].
//!
//! What flows say has a ring buffer of its own -> `poller-ids` thread (batches, by the hash of the two addresses that each
//! record carries) -> `inspect-0`, ... ([`inspection::Worker`]: [`packet::frame`] reads the headers, [`flow`] puts streams
//! together and finds the protocol, [`packet::proto`] reads it, [`engines::l7`] judges what it says; a flow that is refused
//! is blocked in the kernel and reset at both ends) -> `alert-router`. The `inspection` thread owns the programs. The `l7`
//! thread owns the rules, and hands workers a new set of them by one store.
//!
//! # A request's way
//! curl -> `http-front` thread ([`control`]: one mio loop that meets the network, by TLS too, and processes of this host
//! by a Unix socket) -> tiny_http on a private Unix socket -> a worker ([`control::auth`]: who calls, and may they) ->
//! [`supervise::Handle::call`], a closure run by the thread that owns the state -> answer. What changed, and who was
//! refused, goes to `audit-store` ([`audit`]: a chain of entries, and each rule's history).
//!
//! [`replay`] gives a capture file the same way: packets through xdp_firewall, tc_egress, the blocks and tc_ids, or through
//! models of them ([`engines::firewall::model`], [`flow::budget`]), then flows, rules, EVE JSON.
//!
//! # Invariants
//! - State has one owner, a thread. Every kernel map has one writer: the kernel side or one thread of the agent. The flow
//!   cache is the kernel's, a part for each CPU; the agent empties it only at a swap, while it is closed. The limiter's
//!   buckets are the kernel's, too, which also frees those that are silent, and so are the entries of flows of tc_ids.
//! - The tables of each engine exist twice. The idle generation is compiled while no packet reads it, then made live by one
//!   store; a packet reads the live index once ([`bpf::generations::Generations::swap`]).
//! - Maps are filled before anything is attached.
//! - What crosses the kernel line stands in `include/abi.h` and nowhere else; [`abi`] is generated from it.
//! - A reload validates and builds everything, then commits; an error changes nothing.
//! - Imports go down only: main, cli, client, agent, lab > control > config, audit, system > engines > ruled > alert, bpf,
//!   classify, confirm, matching, store > flow, eve, event, outbound, guarded, secret, written, api > abi, component,
//!   packet, metrics, logging, supervise. Engines never import each other; what several of them need to tell packets apart is
//!   [`classify`], to match bytes [`matching`], to own rules [`ruled`]. `tests/tidy.rs` checks it.

pub mod abi;
pub mod agent;
pub mod alert;
pub mod api;
pub mod audit;
pub mod bpf;
pub mod classify;
pub mod cli;
pub mod client;
pub mod component;
pub mod config;
pub mod confirm;
pub mod control;
pub mod engines;
pub mod enrichment;
pub mod eve;
pub mod event;
pub mod explain;
pub mod flow;
pub mod guarded;
pub mod inspection;
pub mod lab;
pub mod logging;
pub mod matching;
pub mod metrics;
pub mod outbound;
pub mod packet;
pub mod replay;
pub mod ruled;
pub mod secret;
pub mod store;
pub mod supervise;
pub mod system;
pub mod written;

// The support of the tests speaks of this crate by its name, from inside the crate as from outside.
#[cfg(test)]
extern crate self as ebpfsentinel;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
pub mod support;
