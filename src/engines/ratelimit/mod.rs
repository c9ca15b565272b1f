//! Limits rates, in the kernel. Owns xdp_ratelimit and all of its maps.

pub mod limit;
