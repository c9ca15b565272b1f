//! What engines match bytes with: the text forms of a matcher, and sets of patterns that are searched for at once.
//!
//! - `matcher` is one condition on a value as people write it: exact, `prefix*`, `*suffix`, `wild*c?rd`, `~regex`.
//! - `patterns` searches bytes for thousands of regular expressions in one pass, by Hyperscan.
//! - `complexity` refuses regular expressions that would take too long to compile, before anybody compiles them.

pub mod complexity;
pub mod matcher;
pub mod patterns;
