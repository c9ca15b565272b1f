//! Bytes on the wire, without I/O.

pub mod build;
pub mod frame;
pub mod headers;
pub mod proto;
