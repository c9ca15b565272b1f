//! Decides which packets pass, in the kernel.

pub mod compile;
pub mod config;
pub mod rule;
