//! The demonstration, which is a test of each field of a rule, and of the shipped limits and rules of l7, by itself.

use std::process::Command;

#[test]
fn every_step_of_the_demo_is_as_expected() {
    let output = Command::new(env!("CARGO_BIN_EXE_ebpfsentinel-agent")).arg("demo").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("\n73 of 73 steps as expected\n") && !text.contains("WRONG"), "{text}");
}
