//! Steering: which packets are sent to another CPU, and to which; and tc_mirror without what it goes by.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};

use ebpfsentinel::abi::mirror_loss;
use ebpfsentinel::bpf::online_cpus;
use ebpfsentinel::bpf::tc_mirror::TcMirror;
use ebpfsentinel::bpf::xdp_steer::XdpSteer;
use ebpfsentinel::packet::build::Packet;

use crate::harness::XDP_PASS;

const XDP_REDIRECT: u32 = 4;
const TCX_NEXT: u32 = u32::MAX;

/// What a program returns for a frame.
fn run(program: BorrowedFd<'_>, frame: &[u8]) -> u32 {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as u64,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: a loaded program, and options whose one pointer has the length beside it; both outlive the call.
    let rc = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) };
    assert_eq!(rc, 0);
    options.retval
}

/// Sends the frame, and says to which CPU.
fn target(steer: &XdpSteer, frame: &[u8]) -> u32 {
    let before: BTreeMap<u32, u64> =
        steer.counts().unwrap().into_iter().map(|(cpu, count)| (cpu, count.steered)).collect();
    assert_eq!(run(steer.program(), frame), XDP_REDIRECT, "{frame:02x?}");
    let moved: Vec<u32> = steer
        .counts()
        .unwrap()
        .into_iter()
        .filter_map(|(cpu, count)| (count.steered != before[&cpu]).then_some(cpu))
        .collect();
    assert_eq!(moved.len(), 1, "{moved:?}");
    moved[0]
}

#[test]
fn a_flow_has_one_cpu_and_flows_have_all() {
    let cpus = online_cpus().unwrap();
    for multi_buffer in [false, true] {
        let steer = XdpSteer::load(&cpus, multi_buffer).unwrap();
        let mut seen = vec![0; cpus.len()];
        for flow in 0..100u16 {
            for (here, there) in [("10.0.0.1", "10.0.9.2"), ("2001:db8::1", "2001:db8:9::2")] {
                let out = Packet::new().between(here, there);
                let back = Packet::new().between(there, here);
                let cpu = target(&steer, &out.clone().udp(flow, 53).build());
                seen[cpus.iter().position(|&one| one == cpu).unwrap()] += 1;
                for (what, packet) in [
                    ("again", out.clone().udp(flow, 53)),
                    ("the other direction", back.clone().udp(53, flow)),
                    ("tagged", out.clone().udp(flow, 53).vlan(7)),
                    ("by the long way", out.clone().udp(flow, 53).vlan(8).vlan(9)),
                ] {
                    assert_eq!(target(&steer, &packet.build()), cpu, "{what}: {flow} from {here}");
                }
                let mut parts = out.clone().udp(flow, 53).payload(&[1; 900]).fragments(7, 400).into_iter();
                let together = target(&steer, &parts.next().unwrap());
                assert!(parts.all(|part| target(&steer, &part) == together), "fragments of {flow} from {here}");
            }
        }
        // 200 flows; a CPU of up to 8 misses a tenth of its share once in more than 10^9 times.
        assert!(seen.iter().all(|&flows| flows * cpus.len() * 10 > 200), "{seen:?}");
        let arp = Packet::new().arp_request([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).build();
        let lying = Packet::new().between("10.0.0.1", "10.0.9.2").udp(1, 2).ihl(4).build();
        for frame in [arp, lying] {
            assert_eq!(run(steer.program(), &frame), XDP_PASS);
        }
    }
}

#[test]
fn one_cpu_gets_all_when_it_is_the_only_one() {
    let last = *online_cpus().unwrap().last().unwrap();
    let steer = XdpSteer::load(&[last], false).unwrap();
    for flow in 0..20 {
        let frame = Packet::new().between("10.0.0.1", "10.0.9.2").tcp(flow, 80).build();
        assert_eq!(target(&steer, &frame), last);
    }
}

/// A test run has no metadata: that is a loss only while some rule mirrors.
#[test]
fn packets_without_metadata_are_counted_while_a_rule_mirrors() {
    let mut mirror = TcMirror::load().unwrap();
    // A test run arrives on the loopback device.
    mirror.set_interfaces(&[None, Some(1)]).unwrap();
    let frame = Packet::new().between("10.0.0.1", "10.0.9.2").udp(1, 53).build();
    let lost = |mirror: &TcMirror| -> Vec<u64> {
        let counts = mirror.counts().unwrap();
        counts.iter().map(|count| count.lost[mirror_loss::MIRROR_NO_METADATA.0 as usize]).take(3).collect()
    };
    for (active, expected) in [(false, 0), (true, 1), (true, 2), (false, 2)] {
        mirror.set_active(active);
        assert_eq!(run(mirror.program(), &frame), TCX_NEXT);
        assert_eq!(lost(&mirror), [0, expected, 0]);
    }
}
