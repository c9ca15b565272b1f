//! Rate limits on a wire: what passes is the rate, changes hold at once, and the kernel goes on without the agent.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ebpfsentinel::api::Method;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::support::{HOST, HOST_V6, Lab, OTHER, WORLD, WORLD_V6, config, udp, wait_until};

/// A limit of the file; `rest` are its keys beside id, priority and rate.
fn limit(id: &str, priority: u32, rate: &str, rest: &str) -> String {
    format!("[[ratelimit.rules]]\nid = \"{id}\"\npriority = {priority}\nrate = {rate}\n{rest}\n")
}

/// A firewall that lets everything through, and these limits.
fn limits(agent: &str, section: &str, rules: &[String]) -> String {
    format!("{}\n[ratelimit]\nmode = \"block\"\n{section}\n{}", config(agent, "mode = \"block\"", &[]), rules.concat())
}

fn rule(lab: &Lab, id: &str) -> Value {
    lab.get(&format!("/api/v1/ratelimit/rules/{id}"))
}

fn number(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_else(|| panic!("{key} of {of}"))
}

/// Datagrams of one size to many ports of the host, as fast as they go, from every CPU, until it is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Flood {
    const PAYLOAD: usize = 100;

    /// Bits of a frame of it.
    fn frame_bits(ipv6: bool) -> u64 {
        8 * (14 + if ipv6 { 40 } else { 20 } + 8 + Flood::PAYLOAD as u64)
    }

    fn start(lab: &Lab, from: &str, ports: std::ops::Range<u16>) -> Flood {
        let stop = Arc::new(AtomicBool::new(false));
        let from: IpAddr = from.parse().unwrap();
        let to: IpAddr = if from.is_ipv4() { HOST } else { HOST_V6 }.parse().unwrap();
        let cpus = std::thread::available_parallelism().unwrap().get();
        assert!(cpus > 1, "a limit is shared by CPUs: needs two");
        let sender = |cpu: usize| {
            let (stop, ports) = (stop.clone(), ports.clone());
            lab.world
                .spawn(move || {
                    let mut set = CpuSet::new();
                    set.set(cpu).unwrap();
                    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
                    let out = UdpSocket::bind((from, 0)).unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        // Nobody listens there, and the host may say so.
                        ports
                            .clone()
                            .for_each(|port| drop(out.send_to(&[0; Flood::PAYLOAD], SocketAddr::new(to, port))));
                    }
                })
                .unwrap()
        };
        Flood { senders: (0..cpus).map(sender).collect(), stop }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.senders.into_iter().for_each(|sender| sender.join().unwrap().unwrap());
    }
}

/// Each algorithm, by source and for all together, in packets and in bits, at ten times the rate and more, on all CPUs at
/// once: 2 % of ten seconds' worth, whatever the machine does meanwhile.
fn ten_seconds(from: &str) {
    const FIRST_PORT: u16 = 20_000;
    let algorithms = ["token_bucket", "leaky_bucket", "fixed_window", "sliding_window"];
    let ipv6 = from.contains(':');
    let mut rules = Vec::new();
    for algorithm in algorithms {
        for scope in ["per_ip", "global"] {
            for unit in ["packets", "bits"] {
                let port = FIRST_PORT + rules.len() as u16;
                let rate = if unit == "bits" { 400 * Flood::frame_bits(ipv6) } else { 400 };
                // Half a second's worth: this machine may stand still for so long.
                let burst = if algorithm.ends_with("bucket") { format!("burst = {}", rate / 2) } else { String::new() };
                let rest = format!(
                    "protocol = \"udp\"\ndst_port = {port}\nscope = \"{scope}\"\nunit = \"{unit}\"\n\
                     algorithm = \"{algorithm}\"\n{burst}"
                );
                rules.push((format!("{algorithm}-{scope}-{unit}"), algorithm, rate.to_string(), rest));
            }
        }
    }
    let text: Vec<String> =
        rules.iter().enumerate().map(|(at, (id, _, rate, rest))| limit(id, at as u32 + 1, rate, rest)).collect();
    let lab = Lab::new();
    let agent = lab.start(&limits("", "", &text));
    let begun = Instant::now();
    let flood = Flood::start(&lab, from, FIRST_PORT..FIRST_PORT + rules.len() as u16);
    std::thread::sleep(Duration::from_millis(10_500));
    let all = lab.get("/api/v1/ratelimit/rules");
    let elapsed = begun.elapsed().as_secs_f64();
    flood.end();
    for (shown, (id, algorithm, ..)) in all.as_array().unwrap().iter().zip(&rules) {
        assert_eq!(shown["id"], json!(id));
        let (passed, dropped) = (number(shown, "passed"), number(shown, "over_limit"));
        assert!(passed + dropped > 10 * 400 * 10, "{id}: only {passed} + {dropped} were offered");
        let expected = 400.0
            * match *algorithm {
                // Whole windows; the last one may begin between the two clocks' readings.
                "fixed_window" => (passed as f64 / 400.0).round().clamp((elapsed - 0.4).ceil(), elapsed.ceil()),
                "sliding_window" => elapsed,
                _ => elapsed + 0.5,
            };
        let off = passed as f64 / expected - 1.0;
        println!("{id}: {passed} of {expected:.0}, {:+.2} %", off * 100.0);
        assert!(off.abs() < 0.02, "{id}: {passed} passed of {} offered, expected {expected}", passed + dropped);
    }
    agent.stop();
}

#[test]
fn what_passes_is_the_rate_in_ipv4() {
    ten_seconds(WORLD);
}

#[test]
fn what_passes_is_the_rate_in_ipv6() {
    ten_seconds(WORLD_V6);
}

/// A rule that is made, changed, listed and deleted by REST and by the command line, and kept.
#[test]
fn rules_are_made_changed_and_kept() {
    let lab = Lab::new();
    let text = limits("", "enabled = true", &[]);
    let agent = lab.start(&text);
    assert!(lab.passes(udp(WORLD, 9)));
    let body = json!({"id": "one", "priority": 10, "rate": 1, "burst": 2, "protocol": "udp", "dst_port": 53});
    lab.ask(Method::Post, "/api/v1/ratelimit/rules", Some(body.clone()));
    let (status, code, _) = lab.refused(Method::Post, "/api/v1/ratelimit/rules", Some(body));
    assert_eq!((status, code.as_str()), (409, "DUPLICATE_RULE"));
    assert!(lab.passes(udp(WORLD, 53)));
    assert!(lab.passes(udp(WORLD, 53).ttl(63)));
    assert!(!lab.passes(udp(WORLD, 53).ttl(62)));
    assert!(lab.passes(udp(OTHER, 53)), "each source has a bucket of its own");
    assert!(lab.passes(udp(WORLD, 54)), "another port is not limited");
    let shown = rule(&lab, "one");
    assert_eq!((number(&shown, "passed"), number(&shown, "over_limit")), (3, 1));

    let top = lab.get("/api/v1/ratelimit/top");
    assert_eq!((&top[0]["rule"], &top[0]["source"], &top[0]["dropped"]), (&json!("one"), &json!(WORLD), &json!(1)));
    let buckets = lab.get(&format!("/api/v1/ratelimit/buckets/{WORLD}"));
    assert_eq!((&buckets[0]["rule"], &buckets[0]["available"]), (&json!("one"), &json!(0)));
    agent.says("over rate limit one");

    let faster = json!({"id": "one", "priority": 10, "rate": "1M", "protocol": "udp", "dst_port": 53});
    lab.ask(Method::Put, "/api/v1/ratelimit/rules/one", Some(faster));
    for ttl in 40..60 {
        assert!(lab.passes(udp(WORLD, 53).ttl(ttl)), "the new rate holds at once");
    }
    assert!(number(&rule(&lab, "one"), "passed") >= 23, "its counters go on");
    let out = lab.cli(&["ratelimit", "list"]);
    let listed = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && listed.contains("one"), "{listed}");
    agent.stop();

    let agent = lab.start(&text);
    assert_eq!(number(&rule(&lab, "one"), "priority"), 10);
    lab.ask(Method::Delete, "/api/v1/ratelimit/rules/one", None);
    let (status, code, _) = lab.refused(Method::Get, "/api/v1/ratelimit/rules/one", None);
    assert_eq!((status, code.as_str()), (404, "RULE_NOT_FOUND"));
    assert!(lab.passes(udp(WORLD, 53)));
    agent.stop();
}

#[test]
fn alert_tells_and_drops_nothing() {
    let lab = Lab::new();
    let rules = [limit("few", 1, "1", "burst = 1\nprotocol = \"udp\"")];
    let text = limits("", "", &rules).replace("[ratelimit]\nmode = \"block\"", "[ratelimit]\nmode = \"alert\"");
    let agent = lab.start(&text);
    for port in 1..10 {
        assert!(lab.passes(udp(WORLD, port)));
    }
    agent.says("over rate limit few");
    wait_until("it is counted", || {
        lab.metric("ebpfsentinel_ratelimit_rule_packets_total{rule=\"few\",verdict=\"would_drop\"}") == 8.0
    });
    assert!(lab.metric("ebpfsentinel_ratelimit_buckets") >= 1.0);
    assert_eq!(lab.metric("ebpfsentinel_ebpf_program_status{program=\"xdp_ratelimit\"}"), 1.0);
    agent.stop();
}

/// `explain` says which limit is meant for a packet and how full its bucket is, and charges nothing.
#[test]
fn explain_shows_the_bucket() {
    let lab = Lab::new();
    let rules = [
        limit("few", 1, "1", "burst = 3\nprotocol = \"udp\"\ndst_port = 53\naction = \"block\"\nblock_secs = 600"),
        limit("all", 2, "1", "burst = 2\nprotocol = \"udp\"\ndst_port = 54\nscope = \"global\""),
    ];
    let shut = super::support::rule("shut", 1, "deny", "protocol = \"udp\"\ndst_port = 9");
    let agent = lab.start(&limits("", "", &rules).replace("[ratelimit]", &format!("{shut}\n[ratelimit]")));
    let explain = |port: u16| {
        let body = json!({"src_ip": WORLD, "dst_ip": HOST, "protocol": "udp", "dst_port": port});
        lab.ask(Method::Post, "/api/v1/explain", Some(body))
    };
    for _ in 0..5 {
        let limit = explain(53)["rate_limit"].clone();
        assert_eq!(limit["rule"], "few");
        assert_eq!(limit["scope"], "per_ip");
        assert_eq!(
            (&limit["is_new"], &limit["available"], &limit["verdict"]),
            (&json!(true), &json!(3), &json!("pass"))
        );
    }
    // All at once: time brings one more a second.
    let frames: Vec<_> = (40..60).map(|ttl| lab.addressed(udp(WORLD, 53).ttl(ttl)).build()).collect();
    let arrived = lab.arrive(&frames);
    assert!(arrived[..3].iter().all(|arrived| *arrived) && !arrived[19], "{arrived:?}");
    let answer = explain(53);
    let limit = &answer["rate_limit"];
    assert_eq!(
        (&answer["verdict"], &limit["verdict"], &limit["is_new"]),
        (&json!("pass"), &json!("drop"), &json!(false))
    );
    assert_eq!(limit["source"], WORLD);
    assert!(number(limit, "dropped") >= 10, "{limit}");
    assert!((500..=600).contains(&number(limit, "blocked_secs_left")), "{limit}");
    let text = answer["text"].as_str().unwrap();
    assert!(text.contains("rate limit few (per_ip, token_bucket, 1 packets a second; blocked for"), "{text}");
    // The bucket of all.
    assert!(lab.passes(udp(WORLD, 54)) && lab.passes(udp(OTHER, 54)));
    wait_until("it is over", || !lab.passes(udp(OTHER, 54).ttl(59)));
    let limit = explain(54)["rate_limit"].clone();
    assert_eq!((&limit["common"], &limit["source"], &limit["is_new"]), (&json!("all"), &Value::Null, &json!(false)));
    let top = lab.get("/api/v1/ratelimit/top");
    let row = |rule: &str| top.as_array().unwrap().iter().find(|row| row["rule"] == rule).unwrap().clone();
    assert_eq!((&row("few")["common"], &row("few")["source"]), (&Value::Null, &json!(WORLD)));
    assert_eq!((&row("all")["common"], &row("all")["source"]), (&json!("all"), &Value::Null));
    // None is meant for it, or it does not get there.
    assert_eq!(explain(55)["rate_limit"], Value::Null);
    assert!(explain(55)["text"].as_str().unwrap().contains("No rate limit is meant for it"));
    let dropped = explain(9);
    assert_eq!((&dropped["verdict"], &dropped["rate_limit"]), (&json!("drop"), &Value::Null));
    assert!(!dropped["text"].as_str().unwrap().contains("rate limit"));
    // What is told about a packet over its limit.
    let frame = udp(WORLD, 53).build().len();
    agent.says(&format!("protocol=udp bytes={frame} interface=eth0"));
    agent.stop();
}

/// A reload changes limits, and one with an error nothing.
#[test]
fn limits_are_reloaded() {
    let lab = Lab::new();
    let few = limit("few", 1, "1", "burst = 1\nprotocol = \"udp\"\ndst_port = 53");
    let agent = lab.start(&limits("", "", std::slice::from_ref(&few)));
    assert!(lab.passes(udp(WORLD, 53)));
    assert!(!lab.passes(udp(WORLD, 53).ttl(63)));
    let many = few
        .replace("rate = 1\nburst = 1", "rate = 1000")
        .replace("rate = 1\n", "rate = 1000\n")
        .replace("burst = 1\n", "");
    lab.write_config(&limits("", "", &[many]));
    lab.ask(Method::Post, "/api/v1/config/reload", None);
    for ttl in 40..60 {
        assert!(lab.passes(udp(WORLD, 53).ttl(ttl)));
    }
    lab.write_config(&limits("", "", &[few.replace("burst = 1", "burts = 1")]));
    let (status, _, message) = lab.refused(Method::Post, "/api/v1/config/reload", None);
    assert_eq!(status, 400, "{message}");
    assert!(message.contains("burts") && message.contains("did you mean burst?"), "{message}");
    assert!(lab.passes(udp(WORLD, 53).ttl(30)));
    agent.stop();
}

/// With on_exit = "keep" limits hold while there is no agent, and the next one takes over.
#[test]
fn limits_hold_without_the_agent() {
    let lab = Lab::new();
    let few = limit("few", 1, "1", "burst = 1\nprotocol = \"udp\"\ndst_port = 53");
    let text = limits("on_exit = \"keep\"", "", &[few]);
    lab.start(&text).kill();
    assert!(lab.passes(udp(WORLD, 53)));
    assert!(!lab.passes(udp(WORLD, 53).ttl(63)));
    assert!(lab.passes(udp(WORLD, 54)));
    let agent = lab.start(&text);
    assert!(lab.passes(udp(OTHER, 53)));
    assert!(!lab.passes(udp(OTHER, 53).ttl(63)));
    agent.stop();
    assert!(lab.passes(udp(WORLD_V6, 53)));
    assert!(!lab.passes(udp(WORLD_V6, 53).ttl(63)), "after a good end the limits hold, too");
    // Without the section nothing is limited, and nothing is left behind.
    let agent = lab.start(&config("on_exit = \"keep\"", "mode = \"block\"", &[]));
    for ttl in 40..50 {
        assert!(lab.passes(udp(WORLD, 53).ttl(ttl)));
    }
    agent.stop();
    let agent = lab.start(&config("", "mode = \"block\"", &[]));
    agent.stop();
    assert_eq!(lab.pinned(), Vec::<std::path::PathBuf>::new());
}

/// Without the section nothing is loaded, and the API says why.
#[test]
fn a_limiter_that_is_off_says_so() {
    let lab = Lab::new();
    let agent = lab.start(&config("", "mode = \"block\"", &[]));
    let (status, _, message) = lab.refused(Method::Get, "/api/v1/ratelimit/rules", None);
    assert_eq!(status, 503);
    assert!(message.contains("ratelimit.enabled"), "{message}");
    agent.stop();
}
