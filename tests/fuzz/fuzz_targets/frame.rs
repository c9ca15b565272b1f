#![no_main]
// Needs root: the kernel runs the program.

use ebpfsentinel::bpf::xdp_firewall::{Switches, XdpFirewall};

#[path = "../targets/frame.rs"]
mod target;

/// Less is no Ethernet, and more does not fit into the page that a test run has.
const LENGTHS: std::ops::RangeInclusive<usize> = 14..=3000;

thread_local! {
    static PROGRAM: XdpFirewall = dropping();
}

fn dropping() -> XdpFirewall {
    let mut program = XdpFirewall::load(&Switches::default()).expect("loading xdp_firewall");
    let dropping = program.swap(|tables| {
        tables.policy.generation = 1;
        tables.policy.enforce = 1;
        tables.policy.drop_unmatched = 1;
        tables.policy.drop_unparsable = 1;
        Ok(())
    });
    dropping.expect("setting the policy");
    program
}

libfuzzer_sys::fuzz_target!(|frame: &[u8]| {
    if LENGTHS.contains(&frame.len()) {
        PROGRAM.with(|program| target::run(program, frame));
    }
});
