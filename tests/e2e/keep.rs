//! What the kernel goes on doing when the agent is gone.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::support::{Flow, Lab, WORLD, WORLD_V6, config, rule, udp, wait_until};

const KEEP: &str = "on_exit = \"keep\"";
const BLOCK: &str = "mode = \"block\"\ndefault_policy = \"drop\"";

fn rules() -> [String; 2] {
    [rule("open", 10, "allow", "protocol = \"udp\"\ndst_port = 7"), rule("shut", 20, "deny", "dst_port = 9")]
}

#[test]
fn nothing_leaks_while_the_agent_is_killed_and_started_again() {
    let lab = Lab::new();
    let server = lab.world.run(|| TcpListener::bind((WORLD, 8000))).unwrap().unwrap();
    let kept = config(KEEP, BLOCK, &rules());
    let mut agent = lab.start(&kept);
    // A connection of the host, whose answers pass only because it is remembered.
    let mut out = lab.host.run(|| TcpStream::connect((WORLD, 8000))).unwrap().unwrap();
    let (mut back, _) = server.accept().unwrap();
    out.set_read_timeout(Some(Duration::from_secs(20))).unwrap();

    let shut = [Flow::start(&lab, WORLD, 9), Flow::start(&lab, WORLD_V6, 9), Flow::start(&lab, WORLD, 11)];
    let open = [Flow::start(&lab, WORLD, 7), Flow::start(&lab, WORLD_V6, 7)];
    for round in 0..20u64 {
        agent.kill();
        agent = lab.launch();
        if round % 3 == 2 {
            // Somewhere in the middle of its start.
            std::thread::sleep(Duration::from_millis(30 * round));
            agent.kill();
            agent = lab.launch();
        }
        lab.wait_ready(&mut agent);
        back.write_all(&[round as u8]).unwrap();
        let mut byte = [0];
        out.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [round as u8], "an answer to a connection of before");
        let before = shut.each_ref().map(Flow::sent);
        wait_until("traffic goes on", || shut.iter().zip(before).all(|(flow, sent)| flow.sent() > sent + 10));
    }
    // The last one gives everything back at its end, and until then nothing leaks either.
    assert!(!lab.pinned().is_empty());
    agent.kill();
    let agent = lab.start(&config("on_exit = \"detach\"", BLOCK, &rules()));
    assert_eq!(lab.pinned(), Vec::<std::path::PathBuf>::new());
    for flow in shut {
        let (sent, got) = flow.end();
        assert!(sent > 100, "{sent}");
        assert_eq!(got, 0, "of {sent} leaked");
    }
    for flow in open {
        let (sent, got) = flow.end();
        assert_eq!(got, sent, "allowed, and lost on the way");
    }
    let said = agent.stop();
    assert!(!said.contains("ERROR"), "{said}");
    assert_eq!(lab.attached(), "");
    assert!(lab.passes(udp(WORLD, 9)), "nobody guards any more");
}

#[test]
fn an_agent_that_ends_well_keeps_too() {
    let lab = Lab::new();
    let kept = config(KEEP, BLOCK, &rules());
    lab.start(&kept).stop();
    assert!(!lab.passes(udp(WORLD, 9)));
    assert!(!lab.passes(udp(WORLD_V6, 11)));
    assert!(lab.passes(udp(WORLD_V6, 7)));
    lab.start(&kept).stop();
    assert!(!lab.passes(udp(WORLD, 9)));
}

#[test]
fn a_killed_agent_that_detaches_leaves_nothing() {
    let lab = Lab::new();
    let text = config("", BLOCK, &rules());
    for _ in 0..3 {
        let agent = lab.start(&text);
        assert!(!lab.passes(udp(WORLD, 9)));
        agent.kill();
        wait_until("the kernel lets go", || lab.attached().is_empty());
        assert!(lab.passes(udp(WORLD, 9)));
        assert_eq!(lab.pinned(), Vec::<std::path::PathBuf>::new());
    }
}
