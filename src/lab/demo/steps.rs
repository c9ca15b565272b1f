//! Scene one: what the firewall of conf/examples/firewall.toml does with one thing after the other.

use anyhow::{Context, Result};

use super::scene::{ADMIN, ADMIN_V6, HOST, HOST_V6, PARTNER, Traffic, VISITOR, VISITOR_V6};
use super::{Score, Stage, interrupted};
use crate::packet::build::Packet;

pub(super) struct Step {
    pub(super) about: &'static str,
    pub(super) traffic: Traffic,
    passes: bool,
    /// The rule that decides; `None` is the default policy or the state.
    pub(super) rule: Option<&'static str>,
}

const fn step(about: &'static str, traffic: Traffic, passes: bool, rule: Option<&'static str>) -> Step {
    Step { about, traffic, passes, rule }
}

const PASSES: bool = true;
const DROPS: bool = false;

/// The steps, by the rules of conf/examples/firewall.toml.
pub(super) static STEPS: &[Step] = &[
    step("visitor opens the web site", Traffic::Tcp { from: VISITOR, to: HOST, port: 443 }, PASSES, Some("web")),
    step("the same over IPv6", Traffic::Tcp { from: VISITOR_V6, to: HOST_V6, port: 443 }, PASSES, Some("web")),
    step("visitor sends HTTP/3", Traffic::Udp { from: VISITOR, to: HOST, port: 443 }, PASSES, Some("web-quic")),
    step("visitor tries a closed service", Traffic::Tcp { from: VISITOR, to: HOST, port: 8443 }, DROPS, None),
    step("the same over IPv6", Traffic::Tcp { from: VISITOR_V6, to: HOST_V6, port: 8443 }, DROPS, None),
    step("visitor asks for names", Traffic::Udp { from: VISITOR, to: HOST, port: 53 }, DROPS, None),
    step("administrator logs in", Traffic::Tcp { from: ADMIN, to: HOST, port: 22 }, PASSES, Some("ssh-mgmt")),
    step("the same over IPv6", Traffic::Tcp { from: ADMIN_V6, to: HOST_V6, port: 22 }, PASSES, Some("ssh-mgmt-v6")),
    step("visitor tries to log in", Traffic::Tcp { from: VISITOR, to: HOST, port: 22 }, DROPS, Some("ssh-others")),
    step("partner fetches by FTP", Traffic::Tcp { from: PARTNER, to: HOST, port: 50007 }, PASSES, Some("ftp-partner")),
    step("one port beyond the range", Traffic::Tcp { from: PARTNER, to: HOST, port: 50100 }, DROPS, None),
    step("the host calls out, answers return", Traffic::Out { to: VISITOR, port: 8000 }, PASSES, None),
    step("the same over IPv6", Traffic::Out { to: VISITOR_V6, port: 8000 }, PASSES, None),
    step(
        "an answer to nothing",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).tcp(8000, 6000).flags(0x10).numbers(7, 7)),
        DROPS,
        Some("no-connection"),
    ),
    step(
        "spoofed: from 127.0.0.1",
        Traffic::Raw(|| Packet::new().between("127.0.0.1", HOST).tcp(4000, 443)),
        DROPS,
        Some("spoofed-loopback"),
    ),
    step(
        "spoofed: from ::1",
        Traffic::Raw(|| Packet::new().between("::1", HOST_V6).tcp(4000, 443)),
        DROPS,
        Some("spoofed-loopback-v6"),
    ),
    step(
        "scan: TCP without flags",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).tcp(4001, 443).flags(0)),
        DROPS,
        Some("tcp-no-flags"),
    ),
    step(
        "scan: SYN and FIN at once",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).tcp(4002, 443).flags(3)),
        DROPS,
        Some("tcp-syn-fin"),
    ),
    step(
        "backup in VLAN 30",
        Traffic::Raw(|| Packet::new().vlan(30).between(VISITOR, HOST).tcp(4003, 873)),
        PASSES,
        Some("backup-vlan"),
    ),
    step(
        "backup in VLAN 31",
        Traffic::Raw(|| Packet::new().vlan(31).between(VISITOR, HOST).tcp(4004, 873)),
        DROPS,
        None,
    ),
    step(
        "backup in VLAN 30, QinQ",
        Traffic::Raw(|| Packet::new().vlan(30).vlan(7).between(VISITOR, HOST).tcp(4005, 873)),
        PASSES,
        Some("backup-vlan"),
    ),
    step("ping", Traffic::Raw(|| Packet::new().between(VISITOR, HOST).ping(1, 1)), PASSES, Some("ping")),
    step(
        "ping over IPv6",
        Traffic::Raw(|| Packet::new().between(VISITOR_V6, HOST_V6).ping(1, 1)),
        PASSES,
        Some("ping-v6"),
    ),
    step(
        "IPv4 with options",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).options(&[1, 1, 1, 0]).tcp(4006, 443)),
        PASSES,
        Some("web"),
    ),
    step(
        "IPv6 behind extension headers",
        Traffic::Raw(|| Packet::new().between(VISITOR_V6, HOST_V6).destination_options(&[]).tcp(4007, 443)),
        PASSES,
        Some("web"),
    ),
    step(
        "HTTP/3 in fragments",
        Traffic::Fragments(|| Packet::new().between(VISITOR, HOST).udp(4008, 443).payload(&[7; 200])),
        PASSES,
        Some("web-quic"),
    ),
    step(
        "fragments for a closed port",
        Traffic::Fragments(|| Packet::new().between(VISITOR, HOST).udp(4009, 53).payload(&[7; 200])),
        DROPS,
        None,
    ),
    step(
        "fragments over IPv6",
        Traffic::Fragments(|| Packet::new().between(VISITOR_V6, HOST_V6).udp(4010, 443).payload(&[7; 200])),
        PASSES,
        Some("web-quic"),
    ),
    step(
        "a header that lies about its length",
        Traffic::Raw(|| Packet::new().between(VISITOR, HOST).ihl(4).tcp(4011, 443)),
        DROPS,
        None,
    ),
];

/// Plays all steps.
pub(super) fn play(stage: &mut Stage, score: &mut Score) -> Result<()> {
    Score::head("RULE");
    for step in STEPS {
        interrupted()?;
        let (passed, rule) = play_one(stage, step).with_context(|| format!("step \"{}\"", step.about))?;
        let note = (rule.as_deref() != step.rule).then(|| format!("expected rule {}", step.rule.unwrap_or("-")));
        score.add(
            passed == step.passes && note.is_none(),
            [step.about, &step.traffic.words(), word(step.passes), word(passed), rule.as_deref().unwrap_or("-")],
            &note.unwrap_or_default(),
        );
    }
    Ok(())
}

/// Whether the traffic passed, and which rule counted it.
fn play_one(stage: &mut Stage, step: &Step) -> Result<(bool, Option<String>)> {
    let before = counters(stage)?;
    let passed = stage.scene.send(&step.traffic)?;
    // Rules are asked in order of priority, and a connection has more packets than its first: the first rule that has
    // counted is the one that let it begin.
    let after = counters(stage)?;
    let rule =
        after.into_iter().find(|(id, packets)| before.iter().any(|(known, earlier)| known == id && packets > earlier));
    Ok((passed, rule.map(|(id, _)| id)))
}

fn counters(stage: &Stage) -> Result<Vec<(String, u64)>> {
    let rules = stage.get("/api/v1/firewall/rules?limit=5000")?;
    let rules = rules.as_array().context("the agent's rules are not a list")?;
    let counter = |rule: &serde_json::Value| Some((rule["id"].as_str()?.to_owned(), rule["packets"].as_u64()?));
    rules.iter().map(|rule| counter(rule).context("a rule without id or packets")).collect()
}

/// What becomes of a packet, in the table.
pub(super) fn word(passes: bool) -> &'static str {
    if passes { "pass" } else { "drop" }
}

#[cfg(test)]
mod tests {
    use super::super::FIREWALL;
    use super::super::scene::Scene;
    use super::*;

    #[test]
    fn everything_passes_where_nobody_guards() {
        let mut scene = Scene::new().unwrap();
        for step in STEPS {
            assert!(scene.send(&step.traffic).unwrap(), "{}: {}", step.about, step.traffic.words());
        }
    }

    #[test]
    fn the_steps_speak_of_rules_that_exist() {
        for rule in STEPS.iter().filter_map(|step| step.rule) {
            assert!(FIREWALL.contains(&format!("id = \"{rule}\"")), "{rule}");
        }
    }

    #[test]
    fn what_is_lost_is_seen_as_lost() {
        let mut scene = Scene::new().unwrap();
        scene.host.ip("link set eth0 down").unwrap();
        for step in STEPS.iter().filter(|step| !matches!(step.traffic, Traffic::Out { .. })).step_by(5) {
            // Without a carrier even sending may fail, which is as good as lost.
            assert!(!scene.send(&step.traffic).unwrap_or(false), "{}: {}", step.about, step.traffic.words());
        }
    }
}
