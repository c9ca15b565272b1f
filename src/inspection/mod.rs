//! Inspection: the threads that read flows.

mod batch;
mod reset;
