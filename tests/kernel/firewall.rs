//! xdp_firewall without rules: policy, exceptions, what cannot be parsed, metadata, the next program.

use ebpfsentinel::abi::{fw_row, fw_tables, fw_verdict};
use ebpfsentinel::bpf::xdp_firewall::{Switches, XdpFirewall};
use ebpfsentinel::packet::build::Packet;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn drop_all(tables: &mut fw_tables) -> anyhow::Result<Vec<fw_row>> {
    tables.policy.generation = 1;
    tables.policy.enforce = 1;
    tables.policy.drop_unmatched = 1;
    tables.policy.drop_unparsable = 1;
    Ok(Vec::new())
}

#[test]
fn policy_drops_and_discovery_passes() {
    let mut firewall = XdpFirewall::load(&Switches::default()).unwrap();
    let frame = Packet::new().between("10.0.0.1", "10.0.0.2").tcp(1, 2).build();
    assert_eq!(firewall.test_run(&frame, 0, 1).unwrap().action, XDP_PASS);
    firewall.swap(drop_all).unwrap();
    let ran = firewall.test_run(&frame, 0, 100_000).unwrap();
    println!("{ran:?}");
    assert_eq!(ran.action, XDP_DROP);
    let answered = firewall.explain(&frame, 0).unwrap();
    assert_eq!(u32::from(answered.verdict), fw_verdict::FW_DROP.0);
}
