//! Scene three: what may be said, by the rules of conf/examples/l7.toml behind the firewall of scene one. Inspection is
//! passive: a request that is refused has reached the server, and what would follow it does not.

use std::time::Instant;

use anyhow::{Context, Result};

use super::scene::{ADMIN, HOST, HOST_V6, PAGES, Scene, VISITOR, VISITOR_V6};
use super::talk::{self, Outcome};
use super::{FIREWALL, PATIENCE, Score, Stage, interrupted};

const RULES: &str = include_str!("../../../conf/examples/l7.toml");

const TLS: u16 = 443;
/// The server's part up to where it becomes slow: a head that promises much more, and a record that does.
const PAGE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n";
const SERVER_HELLO: &[u8] = &[22, 3, 3, 0x20, 0, 2, 0, 0x1f, 0xfc, 3, 3];

/// How a request travels.
enum Way {
    /// From an address of the world, in one piece.
    Whole(&'static str),
    /// In segments, the last one first.
    Reordered(&'static str),
}

/// What a client says first.
enum Opening {
    /// A ClientHello for a name.
    Hello(&'static str),
    /// A request for a path by a program.
    Request(&'static str, &'static str),
}

struct Step {
    about: &'static str,
    way: Way,
    port: u16,
    opening: Opening,
    is_cut: bool,
    /// The rule that decides; `None` is the default action.
    rule: Option<&'static str>,
}

const fn hello(
    about: &'static str,
    way: Way,
    port: u16,
    name: &'static str,
    is_cut: bool,
    rule: Option<&'static str>,
) -> Step {
    Step { about, way, port, opening: Opening::Hello(name), is_cut, rule }
}

const fn page(about: &'static str, way: Way, path: &'static str, is_cut: bool, rule: Option<&'static str>) -> Step {
    Step { about, way, port: PAGES, opening: Opening::Request(path, "demo"), is_cut, rule }
}

const CUT: bool = true;
const GOES_ON: bool = false;
const GOOD: &str = "www.example.org";
const BAD: &str = "ads.tracker.example";

/// The steps, by the rules of conf/examples/l7.toml.
static STEPS: &[Step] = &[
    hello("visitor opens TLS", Way::Whole(VISITOR), TLS, GOOD, GOES_ON, None),
    hello("the same over IPv6", Way::Whole(VISITOR_V6), TLS, GOOD, GOES_ON, None),
    hello("TLS by a name that is denied", Way::Whole(VISITOR), TLS, BAD, CUT, Some("no-trackers")),
    hello("the same over IPv6", Way::Whole(VISITOR_V6), TLS, BAD, CUT, Some("no-trackers")),
    hello("on a port that is not its own", Way::Whole(VISITOR), PAGES, BAD, CUT, Some("no-trackers")),
    hello("a hello in segments, last one first", Way::Reordered(HOST), TLS, BAD, CUT, Some("no-trackers")),
    hello("the same over IPv6", Way::Reordered(HOST_V6), TLS, BAD, CUT, Some("no-trackers")),
    hello("so by a name that is allowed", Way::Reordered(HOST), TLS, GOOD, GOES_ON, None),
    page("visitor fetches a page", Way::Whole(VISITOR), "/news", GOES_ON, None),
    page("the same over IPv6", Way::Whole(VISITOR_V6), "/news", GOES_ON, None),
    page("a path that is denied", Way::Whole(VISITOR), "/admin/users", CUT, Some("no-admin")),
    page("the same over IPv6", Way::Whole(VISITOR_V6), "/admin/users", CUT, Some("no-admin")),
    page("administrator asks for it", Way::Whole(ADMIN), "/admin/users", GOES_ON, Some("admin-from-office")),
    page("in segments, last one first", Way::Reordered(HOST), "/admin/users", CUT, Some("no-admin")),
    page("the same over IPv6", Way::Reordered(HOST_V6), "/admin/users", CUT, Some("no-admin")),
    page("so, and written otherwise", Way::Reordered(HOST), "/x/../%61dmin/users", CUT, Some("no-admin")),
    page("the same over IPv6", Way::Reordered(HOST_V6), "/x/../%61dmin/users", CUT, Some("no-admin")),
    page("so, a path that is allowed", Way::Reordered(HOST), "/news/../archive/today", GOES_ON, None),
    page("the same over IPv6", Way::Reordered(HOST_V6), "/news/../archive/today", GOES_ON, None),
    Step {
        about: "a scanner is told of",
        way: Way::Whole(VISITOR),
        port: PAGES,
        opening: Opening::Request("/news", "sqlmap/1.8"),
        is_cut: GOES_ON,
        rule: Some("scanners"),
    },
];

/// The firewall of scene one with the rules of the example.
pub(super) fn config() -> Result<String> {
    let (_, rules) = RULES.split_once("\n[l7]\n").context("the example of rules has no [l7]")?;
    Ok(format!("{FIREWALL}\n[l7]\n{rules}"))
}

/// Plays all steps.
pub(super) fn play(stage: &mut Stage, score: &mut Score) -> Result<()> {
    Score::head("L7 RULE");
    for (number, step) in STEPS.iter().enumerate() {
        interrupted()?;
        play_one(stage, number, step, score).with_context(|| format!("step \"{}\"", step.about))?;
    }
    Ok(())
}

fn play_one(stage: &Stage, number: usize, step: &Step, score: &mut Score) -> Result<()> {
    let before = counters(stage)?;
    let outcome = step.converse(&stage.scene, number)?;
    let (rule, enforced) = wait_hit(stage, &before, step.rule.is_some())?;
    let expected = if step.is_cut { Outcome::Cut } else { Outcome::GoesOn };
    let is_right = outcome == expected && rule.as_deref() == step.rule && enforced == u64::from(step.is_cut);
    score.add(
        is_right,
        [step.about, &step.words(), expected.word(), outcome.word(), rule.as_deref().unwrap_or("-")],
        &format!("expected rule {}; {enforced} flows were blocked", step.rule.unwrap_or("-")),
    );
    Ok(())
}

/// The rule that has a new hit, and of how many its flow was blocked. Waits for it if there is to be one.
fn wait_hit(stage: &Stage, before: &[Counters], is_expected: bool) -> Result<(Option<String>, u64)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let after = counters(stage)?;
        let hit = before.iter().zip(after).find(|(before, after)| after.hits > before.hits);
        match hit {
            Some((before, after)) => return Ok((Some(after.id), after.enforced - before.enforced)),
            None if !is_expected || Instant::now() > deadline => return Ok((None, 0)),
            None => std::thread::sleep(PATIENCE / 20),
        }
    }
}

/// What a rule has counted.
struct Counters {
    id: String,
    hits: u64,
    enforced: u64,
}

fn counters(stage: &Stage) -> Result<Vec<Counters>> {
    let rules = stage.get("/api/v1/firewall/l7-rules?limit=5000")?;
    let counters = |rule: &serde_json::Value| {
        let number = |key: &str| rule[key].as_u64();
        Some(Counters { id: rule["id"].as_str()?.to_owned(), hits: number("hits")?, enforced: number("enforced")? })
    };
    let rules = rules.as_array().context("the agent's rules are not a list")?;
    rules.iter().map(|rule| counters(rule).context("a rule without id, hits or enforced")).collect()
}

impl Step {
    fn converse(&self, scene: &Scene, number: usize) -> Result<Outcome> {
        let (request, port) = (self.opening.bytes(), self.port);
        let answer = match self.opening {
            Opening::Hello(_) => SERVER_HELLO,
            Opening::Request(..) => PAGE,
        };
        match self.way {
            Way::Whole(from) => {
                let to = if from.contains(':') { HOST_V6 } else { HOST };
                talk::whole(scene, from, to, port, &request, answer)
            }
            Way::Reordered(to) => talk::reordered(scene, number as u16, to, port, &request, answer),
        }
    }

    fn words(&self) -> String {
        let what = match self.opening {
            Opening::Hello(name) => name,
            Opening::Request(path, _) => path,
        };
        match self.way {
            Way::Whole(_) => format!("{what} at {}", self.port),
            Way::Reordered(_) => format!("{what}, {} parts", talk::segments_of(&self.opening.bytes())),
        }
    }
}

impl Opening {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Opening::Hello(name) => client_hello(name.as_bytes()),
            Opening::Request(path, program) => {
                format!("GET {path} HTTP/1.1\r\nHost: {GOOD}\r\nUser-Agent: {program}\r\n\r\n").into_bytes()
            }
        }
    }
}

/// A ClientHello of TLS 1.2 (RFC 5246, section 7.4.1.2) that asks for a name (RFC 6066, section 3).
fn client_hello(name: &[u8]) -> Vec<u8> {
    let counted = |bytes: Vec<u8>| [(bytes.len() as u16).to_be_bytes().to_vec(), bytes].concat();
    let names = counted([vec![0], counted(name.to_vec())].concat());
    let server_name = [vec![0, 0], counted(names)].concat();
    let groups = vec![0, 10, 0, 4, 0, 2, 0, 29];
    // Version, random, no session, two suites, no compression.
    let body = [vec![3, 3], vec![7; 32], vec![0], vec![0, 4, 0xc0, 0x2f, 0xc0, 0x2b], vec![1, 0]].concat();
    let body = [body, counted([server_name, groups].concat())].concat();
    let handshake = [vec![1, 0], counted(body)].concat();
    [vec![22, 3, 1], counted(handshake)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_goes_on_where_nobody_guards() {
        let scene = Scene::new().unwrap();
        for (number, step) in STEPS.iter().enumerate() {
            assert_eq!(step.converse(&scene, number).unwrap(), Outcome::GoesOn, "{}: {}", step.about, step.words());
        }
    }

    #[test]
    fn what_is_lost_is_no_answer() {
        let scene = Scene::new().unwrap();
        scene.host.ip("link set eth0 down").unwrap();
        for step in STEPS.iter().filter(|step| matches!(step.way, Way::Whole(_))).step_by(4) {
            assert_eq!(step.converse(&scene, 0).unwrap(), Outcome::Hangs, "{}: {}", step.about, step.words());
        }
    }

    #[test]
    fn the_steps_speak_of_rules_that_exist() {
        let config = config().unwrap();
        assert_eq!(config.matches("\n[agent]\n").count(), 1);
        for rule in STEPS.iter().filter_map(|step| step.rule) {
            assert!(config.contains(&format!("id = \"{rule}\"")), "{rule}");
        }
    }
}
