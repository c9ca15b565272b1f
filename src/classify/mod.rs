//! From rules as people write them to tables in which the kernel finds the first one that matches: the part that is the
//! same for every engine with rules.
//!
//! - `matching` is what a rule asks of a packet; `text`, `keys` and `rules` read it and show it.
//! - `compile` makes the kernel's tables of it. What a hit means is the engine's: the compiler passes its bits on.
//! - `slots` gives each rule its counters, `interfaces` each interface its number; `guard` is whom no rule shuts out.

pub mod compile;
pub mod guard;
pub mod interfaces;
pub mod keys;
pub mod matching;
pub mod rules;
pub mod slots;
pub mod text;
