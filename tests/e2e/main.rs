//! The real binary between network namespaces, from packets on a wire to answers on its port. Needs root.

mod demo;
mod keep;
mod modes;
mod support;
mod swap;
