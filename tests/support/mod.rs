//! What tests and benches share: rule sets, packets, and the answer that a plain reading of the rules gives.
//!
//! Use it with `#[path = "../support/mod.rs"] pub mod support;`. `pub`, because no single user needs all of it.

pub mod captures;
pub mod classbench;
pub mod conversations;
pub mod http;
pub mod packets;
pub mod pki;
pub mod random;
pub mod reference;
pub mod rulesets;
pub mod syn_flood;
pub mod tokens;
