//! A frame, put to the loaded kernel program: under a policy that drops, what passes is one of the exceptions.

use ebpfsentinel::abi::{fw_reason, fw_verdict};
use ebpfsentinel::bpf::xdp_firewall::XdpFirewall;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// Whether the frame passed. The program has no rules, and drops what it does not know or cannot parse.
pub fn run(program: &XdpFirewall, frame: &[u8]) -> bool {
    match program.test_run(frame, 0, 1).expect("running the program").action {
        XDP_DROP => false,
        XDP_PASS => {
            let answered = program.explain(frame, 0).expect("asking the program");
            assert_eq!(u32::from(answered.verdict), fw_verdict::FW_PASS.0, "passed, but is no pass: {frame:02x?}");
            // What follows the first fragment of an exception is one as well.
            let reason = fw_reason(answered.reason.into());
            let followed = [fw_reason::FW_BY_EXCEPTION, fw_reason::FW_BY_FRAGMENT].contains(&reason);
            assert!(followed, "passed by {reason:?}: {frame:02x?}");
            true
        }
        other => panic!("action {other} for {frame:02x?}"),
    }
}
