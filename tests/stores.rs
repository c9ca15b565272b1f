//! The stores where it hurts: killed at any moment, on a disk that is full, on a disk that refuses.
//!
//! Where a process has to die or to have limits of its own, the test runs itself as that process: see [`child`].

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpfsentinel::alert::sinks::Sink;
use ebpfsentinel::alert::{Alert, Severity, Suppression};
use ebpfsentinel::api::Note;
use ebpfsentinel::audit::store::{AuditStore, Soundness};
use ebpfsentinel::audit::{Actor, Auditor, Entry, store};
use ebpfsentinel::component::Component;
use ebpfsentinel::control::{Control, ControlConfig};
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::store::alerts::{self, AlertStore, Question, Writer};
use ebpfsentinel::supervise::{Supervisor, Thread};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Stores {
    alerts: AlertStore,
    audit: AuditStore,
    sink: Box<dyn Sink>,
    metrics: Arc<Metrics>,
    threads: (Thread<Writer>, Thread<store::Writer>),
    _supervisor: Supervisor,
}

impl Stores {
    fn open(directory: &Path, alerts_max: u64, entries_max: u64, buffer: usize) -> Stores {
        let metrics = Metrics::new();
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let age = Duration::from_secs(86_400);
        let limits = alerts::Limits { age, count: alerts_max, buffer };
        let path = directory.join("alerts.redb");
        let (alerts, alerts_thread) = AlertStore::start(path, limits, &Arc::default(), &metrics, &supervisor).unwrap();
        let limits = store::Limits { age, count: entries_max, buffer };
        let (audit, audit_thread) =
            AuditStore::start(directory.join("audit.redb"), limits, &metrics, &supervisor).unwrap();
        // They open their files by themselves.
        alerts.handle().call(|_| ()).unwrap();
        audit.handle().call(|_| ()).unwrap();
        let sink = Box::new(alerts.sink());
        Stores { alerts, audit, sink, metrics, threads: (alerts_thread, audit_thread), _supervisor: supervisor }
    }

    fn written(&self, which: &str) -> u64 {
        self.metrics.store_records(which).get()
    }

    fn stop(self) {
        self.alerts.handle().stop().unwrap();
        self.audit.handle().stop().unwrap();
        self.threads.0.join(PATIENCE).unwrap();
        self.threads.1.join(PATIENCE).unwrap();
    }

    /// Numbers of the newest alerts, the newest first.
    fn newest(&self, limit: u32) -> Vec<u64> {
        let found = self.alerts.find(&Question { limit, ..Question::default() }).unwrap();
        found.alerts.iter().map(|alert| alert.document["bytes"].as_u64().unwrap()).collect()
    }
}

/// An alert that carries a number.
fn alert(number: u64) -> Arc<Alert> {
    let mut alert = Alert::new(Component::Firewall, Severity::Medium, format!("r{}", number % 50), "deny", 1, "denied");
    alert.src_ip = Some(Ipv4Addr::from(number as u32).into());
    alert.dst_ip = Some(Ipv4Addr::LOCALHOST.into());
    alert.bytes = Some(number as u32);
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    alert.last_seen_ns = now.as_nanos() as u64;
    Arc::new(alert)
}

fn entry(number: u64) -> Entry {
    let note = Note {
        component: Some(Component::Firewall),
        rule: Some(format!("r{}", number % 20)),
        before: None,
        after: Some(number.into()),
    };
    Entry::new(Actor::config_reload(), "firewall add", 201, "").with(note)
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// This test program, running only `test`, which finds the directory in its environment.
fn child(test: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("STORES_CHILD", directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn directory_of_child() -> Option<std::path::PathBuf> {
    std::env::var_os("STORES_CHILD").map(Into::into)
}

/// Says how the stores are, then writes until it is killed, and says what is committed.
fn write_until_killed(directory: &Path) -> ! {
    let mut stores = Stores::open(directory, 20_000, 3000, 10_000);
    let found = stores.audit.verify().unwrap().unwrap();
    let newest = stores.newest(1000);
    // No holes: what was committed is all that was told up to some moment.
    assert!(newest.windows(2).all(|pair| pair[0] == pair[1] + 1), "{newest:?}");
    assert_eq!(stores.alerts.health(), Vec::<String>::new());
    let first = newest.first().map_or(0, |newest| newest + 1);
    let mut out = std::io::stdout().lock();
    let intact = found.status == Soundness::Intact;
    writeln!(out, "\nstate {first} {} {intact} {:?}", found.last, found.problems).unwrap();
    let (mut number, mut told) = (first, (u64::MAX, u64::MAX));
    let entries_before = stores.written("audit");
    loop {
        for _ in 0..20 {
            if stores.sink.write(&alert(number)).is_ok() {
                number += 1;
            }
        }
        stores.audit.record(entry(number));
        let now = (first + stores.written("alerts"), found.last + stores.written("audit") - entries_before);
        if now != told {
            writeln!(out, "committed {} {}", now.0, now.1).unwrap();
            out.flush().unwrap();
            told = now;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// 200 times killed while it writes, removes what is too much, and compacts: nothing that was said to be committed is
/// missing, there are no holes, and the chain of the trail verifies each time.
#[test]
fn killed_200_times_it_loses_nothing_that_was_committed() {
    const KILLS: u64 = 200;
    if let Some(directory) = directory_of_child() {
        write_until_killed(&directory);
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut committed, mut alerts_of_all, mut kills_while_writing) = ((0, 0), 0, 0);
    for round in 0..=KILLS {
        let mut child = child("killed_200_times_it_loses_nothing_that_was_committed", directory.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let state = lines.find(|line| line.starts_with("state ")).unwrap_or_else(|| panic!("round {round}: no state"));
        let words: Vec<&str> = state.split(' ').collect();
        let found: (u64, u64) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        assert!(found.0 >= committed.0 && found.1 >= committed.1, "round {round}: {committed:?}, now {state}");
        assert_eq!(words[3], "true", "round {round}: {state}");
        // From at once to a few commits later; the numbers are spread, and the same each time.
        std::thread::sleep(Duration::from_millis(round * 7919 % 450));
        child.kill().unwrap();
        child.wait().unwrap();
        let before = found;
        committed = lines
            .filter_map(|line| {
                let (alerts, entries) = line.strip_prefix("committed ")?.split_once(' ')?;
                Some((alerts.parse().ok()?, entries.parse().ok()?))
            })
            .last()
            .unwrap_or(before);
        kills_while_writing += u64::from(committed.0 > before.0 || committed.1 > before.1);
        alerts_of_all = committed.0;
    }
    assert!(kills_while_writing > KILLS / 2, "{kills_while_writing} of the kills met a writer that had committed");
    println!("{alerts_of_all} alerts and {} entries in {KILLS} lives", committed.1);
}

/// A mount namespace of this thread's own, with a small disk at `at`.
fn small_disk(at: &Path) {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("this test needs root, as those of the kernel do");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=64m")).unwrap();
}

#[test]
fn on_a_full_disk_it_waits_counts_and_goes_on_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    small_disk(directory.path());
    const BUFFER: u64 = 2000;
    let mut stores = Stores::open(directory.path(), 100_000, 10_000, BUFFER as usize);
    for number in 0..500 {
        stores.sink.write(&alert(number)).unwrap();
    }
    wait_for("alerts", || stores.written("alerts") == 500);
    let ballast = directory.path().join("ballast");
    let free = 64 << 20;
    let used: u64 = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    fs::write(&ballast, vec![0; (free - used - (8 << 20)) as usize]).unwrap();
    stores.audit.record(entry(1));
    stores.sink.write(&alert(500)).unwrap();
    wait_for("reasons", || !stores.alerts.health().is_empty() && !stores.audit.health().is_empty());
    let reasons = [stores.alerts.health(), stores.audit.health()].concat();
    assert!(reasons.iter().all(|reason| reason.contains("no space is left on the disk")), "{reasons:?}");
    assert!(stores.metrics.store_failures("alerts").get() > 0 && stores.metrics.store_failures("audit").get() > 0);
    // Far more than there is room for: it neither grows nor waits, and every one that is lost is counted.
    let mut refused = 0;
    let sent = 20_000;
    for number in 501..501 + sent {
        refused += u64::from(stores.sink.write(&alert(number)).is_err());
        if number.is_multiple_of(500) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    for number in 0..5000 {
        stores.audit.record(entry(number));
    }
    let lost = |place, reason| stores.metrics.events_lost(place, reason).get();
    wait_for("what is lost", || lost("alert_store", "disk") + refused + 2 * BUFFER >= sent);
    assert!(lost("audit", "disk") + lost("audit", "full") >= 5000 - 2 * BUFFER);
    // Readers go on.
    assert_eq!(stores.newest(1), [499]);
    assert_eq!(stores.audit.verify().unwrap().unwrap().status, Soundness::Intact);

    fs::remove_file(&ballast).unwrap();
    wait_for("recovery", || stores.alerts.health().is_empty() && stores.audit.health().is_empty());
    // What waited is there, and what was told is either there or counted.
    let told = 501 + sent;
    wait_for("all", || stores.written("alerts") + lost("alert_store", "disk") + refused == told);
    assert_eq!(stores.newest(1).len(), 1);
    let found = stores.audit.verify().unwrap().unwrap();
    assert_eq!(found.status, Soundness::Incidents);
    assert!(found.incidents[0].contains("entries were lost, as the disk could not be written"), "{found:?}");
    stores.sink.write(&alert(99_999)).unwrap();
    wait_for("one more", || stores.newest(1) == [99_999]);
    stores.stop();
}

/// A damaged file on a full disk: that it was is told now, and written into the new trail as soon as there is room.
#[test]
fn what_happened_to_the_trail_is_written_when_there_is_room_again() {
    let directory = tempfile::tempdir().unwrap();
    small_disk(directory.path());
    let ballast = directory.path().join("ballast");
    fs::write(&ballast, vec![0; 56 << 20]).unwrap();
    fs::write(directory.path().join("audit.redb"), "this is no database").unwrap();
    let stores = Stores::open(directory.path(), 1000, 1000, 1000);
    let reasons = stores.audit.health();
    assert!(reasons.len() == 2 && reasons[0].contains("no space") && reasons[1].contains("was damaged"), "{reasons:?}");
    fs::remove_file(&ballast).unwrap();
    wait_for("room", || stores.audit.health().len() == 1);
    let found = stores.audit.verify().unwrap().unwrap();
    assert_eq!((found.status, found.entries), (Soundness::Incidents, 1));
    assert!(found.incidents[0].contains("was damaged"), "{found:?}");
    stores.stop();
}

/// What they keep has filled the disk, and others took the rest to the last byte. Then less is to be kept, as it is
/// when days have passed: they remove it, give the room back, and go on by themselves.
#[test]
fn a_disk_that_they_filled_is_free_again_when_they_keep_less() {
    let directory = tempfile::tempdir().unwrap();
    small_disk(directory.path());
    let mut stores = Stores::open(directory.path(), 1_000_000, 1_000_000, 2000);
    let lacks_room =
        |reasons: Vec<String>| reasons.iter().any(|reason| reason.contains("no space is left on the disk"));
    let mut number = 0;
    wait_for("a full disk", || {
        for _ in 0..200 {
            let alert = Alert { message: "x".repeat(2000), ..(*alert(number)).clone() };
            let _ = stores.sink.write(&Arc::new(alert));
            number += 1;
        }
        for _ in 0..10 {
            stores.audit.record(Entry { after: Some("x".repeat(20_000).into()), ..entry(number) });
        }
        lacks_room(stores.alerts.health()) && lacks_room(stores.audit.health())
    });
    let mut ballast = fs::File::create(directory.path().join("ballast")).unwrap();
    while ballast.write_all(&[0; 4096]).is_ok() {}
    let kept = stores.alerts.find(&Question { limit: 1, ..Question::default() }).unwrap().total;
    assert!(kept > 5000, "{kept}");

    let age = Duration::from_secs(86_400);
    let limits = alerts::Limits { age, count: 100, buffer: 2000 };
    stores.alerts.handle().call(move |writer| writer.set_limits(limits)).unwrap();
    let limits = store::Limits { age, count: 100, buffer: 2000 };
    stores.audit.handle().call(move |writer| writer.set_limits(limits)).unwrap();
    wait_for("room", || stores.alerts.health().is_empty() && stores.audit.health().is_empty());
    // What waited is written now, and then removed down to the number.
    let before = stores.written("audit");
    stores.sink.write(&alert(number)).unwrap();
    stores.audit.record(entry(number));
    wait_for("one more alert", || stores.newest(1) == [number]);
    wait_for("one more entry", || stores.written("audit") > before);
    let found = stores.audit.verify().unwrap().unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
    assert!(found.removed.is_some_and(|removed| removed.by_count > 100), "{:?}", found.status);
    // Also for the next time.
    for name in ["alerts.redb.reserve", "audit.redb.reserve"] {
        assert!(fs::metadata(directory.path().join(name)).is_ok_and(|file| file.len() == 4 << 20), "{name}");
    }
    stores.stop();
}

/// The disk refuses in the middle of a commit: here by the limit of a file's size.
#[test]
fn a_commit_that_fails_half_way_is_made_anew() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigHandler, Signal, signal};
    let Some(directory) = directory_of_child() else {
        let directory = tempfile::tempdir().unwrap();
        let mut child = child("a_commit_that_fails_half_way_is_made_anew", directory.path());
        assert!(child.wait().unwrap().success());
        return;
    };
    // SAFETY: no handler runs, the signal is ignored.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let mut stores = Stores::open(&directory, 100_000, 10_000, 50_000);
    for number in 0..1000 {
        stores.sink.write(&alert(number)).unwrap();
    }
    wait_for("alerts", || stores.written("alerts") == 1000);
    let size = fs::metadata(directory.join("alerts.redb")).unwrap().len();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, size, hard).unwrap();
    for number in 1000..20_000 {
        stores.sink.write(&alert(number)).unwrap();
    }
    wait_for("a failure", || stores.metrics.store_failures("alerts").get() >= 2);
    assert!(stores.alerts.health()[0].contains("File too large"), "{:?}", stores.alerts.health());
    // Readers have the file back between the attempts.
    wait_for("a reader", || stores.alerts.find(&Question { limit: 1, ..Question::default() }).is_ok());
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    wait_for("recovery", || stores.alerts.health().is_empty() && stores.written("alerts") >= 20_000);
    let newest = stores.newest(1000);
    assert_eq!(newest, (19_000..20_000).rev().collect::<Vec<_>>());
    assert_eq!(stores.alerts.find(&Question { limit: 1, ..Question::default() }).unwrap().total, 20_000);
    stores.stop();
}

/// Runs the command line against the port; exit code and output.
fn cli(port: u16, line: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ebpfsentinel-agent"))
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .args(line)
        .env_remove("EBPFSENTINEL_TOKEN")
        .output()
        .unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

fn curl(method: &str, url: &str, body: &str) -> (u16, serde_json::Value) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "-w", "\n%{http_code}", "-X", method, url]);
    if !body.is_empty() {
        curl.args(["-H", "Content-Type: application/json", "-d", body]);
    }
    let text = String::from_utf8(curl.output().expect("curl is installed").stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn operators_find_alerts_mark_them_and_see_who_did_by_curl_and_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut stores = Stores::open(directory.path(), 10_000, 10_000, 10_000);
    for number in 0..250 {
        stores.sink.write(&alert(number)).unwrap();
    }
    wait_for("alerts", || stores.written("alerts") == 250);
    let mut config = ControlConfig::new("127.0.0.1:0".parse().unwrap(), directory.path().join("run"));
    config.auditor = Arc::new(stores.audit.clone());
    let mut operations = ebpfsentinel::store::api::operations(Some(&stores.alerts), Arc::new(|_, _| Ok(None)));
    operations.extend(ebpfsentinel::audit::api::operations(Some(&stores.audit)));
    let control = Control::start(config, operations, stores.metrics.clone()).unwrap();
    let port = control.addresses().rest.port();
    let url = |path: &str| format!("http://127.0.0.1:{port}/api/v1/{path}");
    let get = |path: &str| curl("GET", &url(path), "");

    let (status, page) = get("alerts?limit=2");
    assert_eq!((status, &page["total"], &page["total_is_exact"]), (200, &250.into(), &true.into()));
    assert_eq!((&page["limit"], &page["offset"]), (&2.into(), &0.into()));
    let newest = &page["alerts"][0];
    assert_eq!((&newest["bytes"], &newest["src_ip"]), (&249.into(), &"0.0.0.249".into()));
    assert_eq!((&newest["false_positive"], &newest["severity"]), (&false.into(), &"medium".into()));
    let next = page["next"].as_str().unwrap();
    let (_, second) = get(&format!("alerts?limit=2&before={next}"));
    assert_eq!((&second["alerts"][0]["bytes"], &second["total"]), (&247.into(), &248.into()));
    assert_eq!(get("alerts?rule_id=r7&ip=0.0.0.0/25").1["total"], 3);
    assert_eq!(get("alerts?ip=127.0.0.1&min_severity=medium&component=firewall").1["total"], 250);
    assert_eq!(get("alerts?text=DENIED&limit=3").1["alerts"].as_array().unwrap().len(), 3);
    assert_eq!(get("alerts?from=2100-01-01T00:00:00Z").1["total"], 0);
    let id = newest["id"].as_str().unwrap();
    assert_eq!(get(&format!("alerts/{id}")).1, *newest);
    for (path, status, part) in [
        ("alerts?ip=10.0.0.0/33", 400, "not an address or network"),
        ("alerts?from=yesterday", 400, "not a time such as"),
        ("alerts?component=dlpx", 400, "must be one of firewall"),
        ("alerts?severity=high", 400, "unknown query parameter"),
        ("alerts?min_severity=urgent", 400, "must be one of low"),
        ("alerts?before=7", 400, "is not the id of an alert"),
        ("alerts/7", 404, "is not the id of an alert"),
        ("alerts/00000000-0000-7000-8000-000000000000", 404, "there is no alert"),
        ("audit/logs?action=pass", 400, "must be one of config_changed"),
        ("audit/rules/none/history", 404, "no version of rule \"none\" is kept"),
    ] {
        let (got, body) = get(path);
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(got == status && message.contains(part), "{path}: {got} {body}");
    }

    let fp = url(&format!("alerts/{id}/false-positive"));
    for body in ["{", "{\"minutes\":5}", "{\"suppress\":{\"minutes\":0}}", "{\"comment\":\"\\u0007\"}"] {
        assert_eq!(curl("POST", &fp, body).0, 400, "{body}");
    }
    let (status, marked) = curl("POST", &fp, r#"{"comment":"our scanner","suppress":{"minutes":60}}"#);
    assert_eq!((status, &marked["alert_id"], &marked["marked"]), (200, &id.into(), &true.into()));
    let suppression = marked["suppression"]["id"].as_str().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    assert!(stores.alerts.suppressions().hides(&alert(249), now as u64));
    assert_eq!(get("alerts?false_positive=true").1["alerts"][0]["mark"]["comment"], "our scanner");
    assert_eq!(get("alerts/suppressions").1[0]["src_ip"], "0.0.0.249");

    let (code, text) = cli(port, &["alerts", "list", "--limit", "2"]);
    assert!(code == 0 && text.contains("0.0.0.249") && text.contains("There may be more: --before"), "{text}");
    let (code, text) = cli(port, &["alerts", "suppressions"]);
    assert!(code == 0 && text.contains("our scanner"), "{text}");
    // More of them than one answer has.
    for number in 1..=5003u32 {
        let one = Suppression {
            id: format!("s{number}"),
            component: Component::Firewall,
            rule_id: "many".to_owned(),
            src_ip: Some(Ipv4Addr::from_bits(number).into()),
            created_ns: now as u64 + u64::from(number),
            until_ns: u64::MAX,
            created_by: "anna".to_owned(),
            comment: String::new(),
            hidden: 0,
        };
        stores.alerts.suppressions().add(one, now as u64).unwrap();
    }
    let (code, text) = cli(port, &["-o", "json", "alerts", "suppressions"]);
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let ids: HashSet<_> = all.iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!((code, all.len(), ids.len(), &all[5003]["id"]), (0, 5004, 5004, &"s5003".into()));
    let (code, text) = cli(port, &["alerts", "suppressions"]);
    assert!(code == 0 && text.contains("s5003") && text.contains("our scanner"), "{text}");
    let (code, text) = cli(port, &["alerts", "unsuppress", suppression]);
    assert_eq!((code, text.as_str()), (0, ""));
    assert!(!stores.alerts.suppressions().hides(&alert(249), now as u64));
    assert_eq!(cli(port, &["alerts", "unsuppress", suppression]).0, 1);
    let (code, text) = cli(port, &["-o", "json", "alerts", "mark-fp", id, "--comment", "again"]);
    assert!(code == 0 && text.contains("\"marked\": true"), "{text}");
    assert_eq!(cli(port, &["alerts", "unmark-fp", id]).0, 0);
    let (code, text) = cli(port, &["alerts", "show", id]);
    assert!(
        code == 0 && text.lines().any(|line| line.starts_with("false_positive") && line.ends_with("false")),
        "{text}"
    );

    // Seven changes, of which four were refused, and one that found nothing to end.
    let (code, text) = cli(port, &["-o", "json", "audit", "logs"]);
    let logs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let told: Vec<String> = logs["entries"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|entry| format!("{} {} {}", entry["operation"], entry["outcome"], entry["action"]).replace('"', ""))
        .collect();
    let refused = "alerts mark-fp 400 failed";
    assert_eq!(code, 0);
    assert_eq!(
        told,
        [
            refused,
            refused,
            refused,
            refused,
            "alerts mark-fp 200 false_positive",
            "alerts unsuppress 204 false_positive",
            "alerts unsuppress 404 failed",
            "alerts mark-fp 200 false_positive",
            "alerts unmark-fp 204 false_positive",
        ]
    );
    assert_eq!(logs["entries"][0]["before"]["mark"]["comment"], "again");
    stores.audit.record(entry(1));
    stores.audit.record(Entry { before: Some(1.into()), after: Some(2.into()), ..entry(1) });
    wait_for("history", || get("audit/rules/r1/history").1["total"] == 2);
    let (code, text) = cli(port, &["audit", "history", "r1"]);
    assert!(code == 0 && text.contains("rule_updated") && text.contains(": 1 -> 2"), "{text}");
    let (code, text) = cli(port, &["audit", "verify"]);
    assert!(code == 0 && text.contains("intact"), "{text}");
    control.stop();
    stores.stop();
}
