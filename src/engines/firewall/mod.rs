//! Decides which packets pass, in the kernel.

pub mod rule;
