//! eBPFsentinel: a network security agent in one binary.

pub mod abi;
pub mod api;
pub mod component;
pub mod engines;
pub mod logging;
pub mod metrics;
pub mod packet;
pub mod written;
