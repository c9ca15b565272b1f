//! Decides which packets pass, in the kernel.

pub mod config;
pub mod rule;
