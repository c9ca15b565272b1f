//! The engines: one folder each, all of one shape (`mod.rs`, `config.rs`, `maps.rs`, `api.rs`).

pub mod firewall;
pub mod l7;
pub mod ratelimit;
