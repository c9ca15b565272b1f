use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::api::Note;
use crate::audit::Actor;
use crate::component::Component;

const LIMITS: Limits = Limits { age: Duration::from_secs(3600), count: 1000, buffer: 10_000 };

struct Bench {
    store: AuditStore,
    thread: Option<Thread<Writer>>,
    metrics: Arc<Metrics>,
    // The last to go: threads tell it of their end.
    _supervisor: Supervisor,
}

impl Bench {
    fn new(directory: &Path, limits: Limits) -> Bench {
        let metrics = Metrics::new();
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let (store, thread) = AuditStore::start(directory.join("audit.redb"), limits, &metrics, &supervisor).unwrap();
        // It opens the file by itself.
        store.handle.call(|_| ()).unwrap();
        Bench { store, thread: Some(thread), metrics, _supervisor: supervisor }
    }

    /// Records, and waits until it is written.
    fn record(&self, entries: Vec<Entry>) {
        let want = self.written() + entries.len() as u64;
        entries.into_iter().for_each(|entry| self.store.record(entry));
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.written() < want {
            assert!(Instant::now() < deadline, "not written in time; {:?}", self.store.health());
            std::thread::sleep(Duration::from_millis(5));
        }
        // The counter moves before the entry is taken off: wait for the writer to be idle.
        self.store.handle.call(|_| ()).unwrap();
    }

    fn written(&self) -> u64 {
        self.metrics.store_records("audit").get()
    }

    fn logs(&self, filter: Filter, limit: u32) -> (Vec<u64>, u64, bool, Option<u64>) {
        let page = self.store.logs(&filter, limit, 0).unwrap();
        (page.entries.iter().map(|entry| entry.seq).collect(), page.total, page.total_is_exact, page.next)
    }

    fn verify(&self) -> Verification {
        self.store.verify().unwrap().unwrap()
    }

    fn stop(mut self) -> Writer {
        self.store.handle.stop().unwrap();
        self.thread.take().unwrap().join(Duration::from_secs(10)).unwrap()
    }
}

fn entry(operation: &str, outcome: u16) -> Entry {
    let address = Some("192.0.2.7".parse().unwrap());
    let actor = Actor { name: "anna".into(), role: "admin".into(), address, method: "api_key".into() };
    Entry::new(actor, operation, outcome, "")
}

fn rule(component: Component, id: &str, before: Option<Value>, after: Option<Value>) -> Entry {
    let operation = format!("{component} change");
    entry(&operation, 200).with(Note { component: Some(component), rule: Some(id.to_owned()), before, after })
}

/// Changes the file as somebody would who wants to hide something.
fn tamper(directory: &Path, change: impl FnOnce(&WriteTransaction)) {
    let db = Db::new(directory.join("audit.redb"), "audit", SCHEMA);
    assert_eq!(db.mend(false).unwrap(), None);
    db.write(|write| {
        change(write);
        Ok(())
    })
    .unwrap();
}

#[test]
fn entries_are_kept_filtered_and_paged() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    assert_eq!(bench.logs(Filter::default(), 10), (vec![], 0, true, None));
    assert_eq!(bench.verify().status, Soundness::Intact);
    let mut all: Vec<Entry> = (0..20).map(|n| entry("config reload", if n % 5 == 0 { 403 } else { 200 })).collect();
    for (n, entry) in all.iter_mut().enumerate() {
        entry.time_ns = 1_000_000_000 * (n as u64 + 1) + now_ns();
    }
    let times: Vec<u64> = all.iter().map(|entry| entry.time_ns).collect();
    all[7].detail = "ä".repeat(400);
    bench.record(all);
    assert_eq!(bench.logs(Filter::default(), 3), (vec![20, 19, 18], 20, true, Some(18)));
    assert_eq!(bench.logs(Filter { before: Some(4), ..Filter::default() }, 3), (vec![3, 2, 1], 3, true, None));
    let refused = Filter { action: Some("policy_violation".into()), ..Filter::default() };
    assert_eq!(bench.logs(refused.clone(), 3), (vec![16, 11, 6], 4, true, Some(2)));
    assert_eq!(bench.logs(Filter { before: Some(2), ..refused }, 3), (vec![1], 1, true, None));
    let span = Filter { from_ns: Some(times[4]), to_ns: Some(times[6]), ..Filter::default() };
    assert_eq!(bench.logs(span, 10), (vec![6, 5], 2, true, None));
    assert_eq!(bench.logs(Filter { actor: Some("bob".into()), ..Filter::default() }, 10), (vec![], 0, true, None));
    let page = bench.store.logs(&Filter::default(), 5, 10).unwrap();
    assert_eq!(page.entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [10, 9, 8, 7, 6]);
    assert_eq!(page.entries[2].detail.len(), DETAIL_MAX - 1);
    assert_eq!((page.entries[0].actor.as_str(), page.entries[0].address.as_deref()), ("anna", Some("192.0.2.7")));

    // Nothing is lost by a restart, and the numbers go on.
    drop(bench.stop());
    let bench = Bench::new(directory.path(), LIMITS);
    bench.record(vec![entry("explain", 200)]);
    assert_eq!(bench.logs(Filter::default(), 2), (vec![21, 20], 21, true, Some(20)));
    let found = bench.verify();
    assert_eq!((found.status, found.entries, found.first, found.last), (Soundness::Intact, 21, 1, 21));
    assert_eq!(found.last_hash, bench.store.logs(&Filter::default(), 1, 0).unwrap().entries[0].hash);
    bench.stop();
}

#[test]
fn a_run_begins_with_what_is_other_than_in_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let (deny, log) = (json!({"id": "r", "action": "deny"}), json!({"id": "r", "action": "log"}));
    let config = |rule: &Value| json!({"firewall": {"mode": "alert", "rules": [rule]}});
    let begin = |bench: &Bench, rule: &Value| {
        let entry = Entry::new(Actor::agent(), "agent start", 200, "v");
        bench.store.begin_run(Run { entry, config: config(rule), added: Vec::new() });
    };
    // What is written is written in its order, and by the end.
    let trail = || {
        let bench = Bench::new(directory.path(), LIMITS);
        assert_eq!(bench.verify().status, Soundness::Intact);
        let page = bench.store.logs(&Filter::default(), 100, 0).unwrap();
        bench.stop();
        let text = |record: Record| format!("{} {}", record.operation, record.action.name());
        page.entries.into_iter().rev().map(text).collect::<Vec<_>>()
    };
    let record = |bench: &Bench, entry: Entry, last: u64| {
        bench.store.record(entry);
        let deadline = Instant::now() + Duration::from_secs(30);
        while bench.store.logs(&Filter::default(), 1, 0).unwrap().total < last {
            assert!(Instant::now() < deadline, "not written in time; {:?}", bench.store.health());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let actions = |bench: &Bench| {
        let history = bench.store.history("r", None, 10).unwrap().entries;
        history.into_iter().map(|version| version.after.unwrap()["action"].clone()).collect::<Vec<_>>()
    };

    let bench = Bench::new(directory.path(), LIMITS);
    begin(&bench, &deny);
    record(&bench, entry("explain", 200), 4);
    assert_eq!(actions(&bench), ["deny"]);
    // A reload, of which the entry is another's.
    bench.store.configured(config(&log));
    record(&bench, rule(Component::Firewall, "r", Some(deny.clone()), Some(log.clone())), 5);
    bench.stop();
    let mut all = vec!["agent start operation", "agent start rule_added", "agent start config_changed"];
    all.extend(["explain operation", "firewall change rule_updated"]);
    assert_eq!(trail(), all);

    // The same again, twice, and then what somebody wrote into the file meanwhile.
    for _ in 0..2 {
        let bench = Bench::new(directory.path(), LIMITS);
        begin(&bench, &log);
        bench.stop();
        all.push("agent start operation");
        assert_eq!(trail(), all);
    }
    let bench = Bench::new(directory.path(), LIMITS);
    begin(&bench, &deny);
    record(&bench, entry("explain", 200), 10);
    assert_eq!(actions(&bench), ["deny", "log", "deny"]);
    bench.stop();
    all.extend(["agent start operation", "agent start rule_updated", "explain operation"]);
    assert_eq!(trail(), all);
}

#[test]
fn a_first_run_has_an_entry_of_each_rule_however_many_may_wait() {
    let directory = tempfile::tempdir().unwrap();
    let rules: Vec<Value> = (0..2500).map(|n| json!({"id": format!("r{n}")})).collect();
    let bench = Bench::new(directory.path(), Limits { buffer: 100, count: 10_000, ..LIMITS });
    let entry = Entry::new(Actor::agent(), "agent start", 200, "v");
    bench.store.begin_run(Run { entry, config: json!({"l7": {"rules": rules}}), added: Vec::new() });
    bench.stop();
    let bench = Bench::new(directory.path(), LIMITS);
    assert_eq!(bench.store.history("r2499", Some("l7"), 10).unwrap().total, 1);
    assert_eq!(bench.verify().last, 2501);
    bench.stop();
}

#[test]
fn a_rule_has_versions() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    let (a, b) = (json!({"id": "r", "priority": 1}), json!({"id": "r", "priority": 2}));
    bench.record(vec![
        rule(Component::Firewall, "r", None, Some(a.clone())),
        rule(Component::Firewall, "r2", None, Some(a.clone())),
        rule(Component::Firewall, "r", Some(a.clone()), Some(b.clone())),
        Entry { outcome: 409, ..rule(Component::Firewall, "r", None, Some(a.clone())) },
        rule(Component::L7, "r", None, Some(b.clone())),
        rule(Component::Firewall, "r", Some(b.clone()), None),
    ]);
    let versions = |component| {
        let history = bench.store.history("r", component, 2).unwrap();
        let shown = history.entries.iter().map(|v| {
            let keys: Vec<_> = v.changes.iter().map(|change| change.key.as_str()).collect();
            format!("{} {} {} {}", v.version, v.component, v.action.name(), keys.join(","))
        });
        (shown.collect::<Vec<_>>(), history.total)
    };
    let removed = "3 firewall rule_removed id,priority".to_owned();
    assert_eq!(versions(Some("firewall")), (vec![removed.clone(), "2 firewall rule_updated priority".to_owned()], 3));
    assert_eq!(versions(None), (vec![removed, "1 l7 rule_added id,priority".to_owned()], 4));
    assert_eq!(bench.store.history("absent", None, 9).unwrap().total, 0);
    assert_eq!(bench.store.history("", None, 9).unwrap().total, 0);
    bench.stop();
}

#[test]
fn retention_removes_and_the_rest_still_verifies() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), Limits { count: 50, ..LIMITS });
    let old = |n: u64| Entry { time_ns: n, ..rule(Component::Firewall, "r", None, Some(json!(n))) };
    bench.record((1..=60).map(old).collect());
    bench.record((0..80).map(|_| entry("explain", 200)).collect());
    // Sixty are too old; of the eighty, the oldest are too many.
    bench.store.handle.call(|writer| while writer.apply_retention() {}).unwrap();
    let found = bench.verify();
    assert_eq!((found.status, found.entries, found.first, found.last), (Soundness::Intact, 50, 92, 141), "{found:?}");
    // What is missing in front is told, and by what.
    let removed = found.removed.unwrap();
    assert_eq!((removed.last, removed.by_age, removed.by_count, removed.told_by), (91, 60, 31, 141));
    assert_eq!(bench.store.history("r", None, 9).unwrap().total, 0);
    assert_eq!(bench.logs(Filter::default(), 1).1, 50);
    // Nothing more to do, and no entry that says so.
    bench.store.handle.call(|writer| assert!(!writer.apply_retention())).unwrap();
    assert_eq!(bench.verify().last, 141);
    drop(bench.stop());

    // Who removes more than retention has written is found out, also if the anchor fits.
    tamper(directory.path(), |write| {
        let mut entries = write.open_table(ENTRIES).unwrap();
        let gone = entries.remove(92).unwrap().unwrap().value().to_vec();
        let link = Link { seq: 92, hash: split(&gone).0 };
        write.open_table(ANCHOR).unwrap().insert("removed", link_bytes(link).as_slice()).unwrap();
    });
    let bench = Bench::new(directory.path(), LIMITS);
    let found = bench.verify();
    assert_eq!(found.status, Soundness::Broken);
    assert_eq!(found.problems, ["entries up to 92 are missing, and retention has not written that it removed them"]);
    bench.stop();
}

#[test]
fn tampering_shows() {
    type Change = fn(&mut redb::Table<'_, u64, &'static [u8]>);
    let forge: Change = |entries| {
        let value = entries.get(5).unwrap().unwrap().value().to_vec();
        let text = String::from_utf8_lossy(&value[32..]).replace("anna", "otto");
        entries.insert(5, [&value[..32], text.as_bytes()].concat().as_slice()).unwrap();
    };
    let with_own_hash: Change = |entries| {
        let before = entries.get(4).unwrap().unwrap().value().to_vec();
        let value = entries.get(5).unwrap().unwrap().value().to_vec();
        let text = String::from_utf8_lossy(&value[32..]).replace("anna", "otto");
        let link = Link { seq: 4, hash: split(&before).0 }.next(text.as_bytes());
        entries.insert(5, [link.hash.0.as_slice(), text.as_bytes()].concat().as_slice()).unwrap();
    };
    let take_out: Change = |entries| drop(entries.remove(5).unwrap());
    let cut_end: Change = |entries| drop(entries.remove(10).unwrap());
    let swap: Change = |entries| {
        let (a, b) =
            (entries.get(5).unwrap().unwrap().value().to_vec(), entries.get(6).unwrap().unwrap().value().to_vec());
        entries.insert(5, b.as_slice()).unwrap();
        entries.insert(6, a.as_slice()).unwrap();
    };
    for (change, problems) in [
        (forge, &["entry 5 is not what was written, or what was before it is not"][..]),
        (with_own_hash, &["entry 6 is not what was written, or what was before it is not"]),
        (take_out, &["entries 5 to 5 are missing", "entry 6 is not what was written, or what was before it is not"]),
        (
            swap,
            &[
                "entry 5 is not what was written, or what was before it is not",
                "entry 5 calls itself 6",
                "entry 6 is not what was written, or what was before it is not",
                "entry 6 calls itself 5",
                "entry 7 is not what was written, or what was before it is not",
            ],
        ),
        (cut_end, &["entries 10 to 10 are missing at the end"]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let bench = Bench::new(directory.path(), LIMITS);
        bench.record((0..10).map(|_| entry("explain", 200)).collect());
        drop(bench.stop());
        tamper(directory.path(), |write| change(&mut write.open_table(ENTRIES).unwrap()));
        let db = Db::new(directory.path().join("audit.redb"), "audit", SCHEMA);
        db.mend(false).unwrap();
        let head = Head::beside(db.path()).read();
        let found = db.read(|read| verify(read, &head)).unwrap();
        assert_eq!(
            (found.status, found.problems.as_slice()),
            (Soundness::Broken, &problems.iter().map(|p| p.to_string()).collect::<Vec<_>>()[..])
        );
    }
}

#[test]
fn a_missing_end_is_told_at_the_start_and_ever_after() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    bench.record((0..10).map(|_| entry("explain", 200)).collect());
    drop(bench.stop());
    tamper(directory.path(), |write| drop(write.open_table(ENTRIES).unwrap().remove(10).unwrap()));
    let bench = Bench::new(directory.path(), LIMITS);
    let health = bench.store.health();
    assert!(health.len() == 1 && health[0].contains("the head file says entry 10"), "{health:?}");
    drop(bench.stop());
    // The trail went on, so the head file fits again; what happened stays written.
    let bench = Bench::new(directory.path(), LIMITS);
    assert_eq!(bench.store.health(), Vec::<String>::new());
    let found = bench.verify();
    assert_eq!((found.status, found.last), (Soundness::Incidents, 10));
    assert!(found.incidents[0].contains("the store does not have it"), "{found:?}");
    drop(bench.stop());

    fs::remove_file(directory.path().join("audit.redb.head")).unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    let incidents = bench.verify().incidents;
    assert!(incidents.len() == 2 && incidents[1].contains("the head file was missing"), "{incidents:?}");
    bench.stop();
}

#[test]
fn a_damaged_file_is_moved_aside() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    bench.record((0..200).map(|_| entry("explain", 200)).collect());
    drop(bench.stop());
    let path = directory.path().join("audit.redb");
    let good = fs::read(&path).unwrap();
    let mut halves = good.clone();
    halves.truncate(good.len() / 2);
    for (n, bad) in
        [b"this is no database".to_vec(), halves, vec![0; 100_000], vec![0xff; 8192]].into_iter().enumerate()
    {
        fs::write(&path, &bad).unwrap();
        let bench = Bench::new(directory.path(), LIMITS);
        let health = bench.store.health();
        assert!(health[0].contains("was damaged") && health[0].contains("a new one was begun"), "{n}: {health:?}");
        // It works, and says what happened.
        bench.record(vec![entry("explain", 200)]);
        let found = bench.verify();
        assert_eq!(found.status, Soundness::Incidents, "{n}: {found:?}");
        drop(bench.stop());
        let kept: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .filter_map(|entry| Some(entry.ok()?.path()).filter(|path| path.to_string_lossy().contains(".damaged-")))
            .collect();
        assert_eq!(kept.len(), (n + 1).min(3));
        assert!(kept.iter().any(|path| fs::read(path).unwrap() == bad), "{n}: the bytes are kept as they were");
    }
    // A file of something else is not written over either.
    let other = Db::new(path.clone(), "alerts", 1);
    let told = other.mend(false).unwrap().unwrap();
    assert!(told.contains("it is of kind \"audit\", schema 1, not \"alerts\", schema 1"), "{told}");
}

#[test]
fn bytes_that_flip_while_it_is_in_use_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    bench.record((0..900).map(|_| Entry { detail: "x".repeat(500), ..entry("explain", 200) }).collect());
    drop(bench.stop());
    let path = directory.path().join("audit.redb");
    let mut bytes = fs::read(&path).unwrap();
    // Everything behind the two headers' page.
    bytes[4096..].chunks_mut(64).for_each(|chunk| chunk[7] ^= 0x55);
    fs::write(&path, &bytes).unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    // Whether at the start or by the first reader: the trail goes on in a new file.
    let deadline = Instant::now() + Duration::from_secs(30);
    while bench.store.health().is_empty() {
        assert!(Instant::now() < deadline);
        let _ = bench.store.verify();
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.record(vec![entry("explain", 200)]);
    assert_eq!(bench.verify().status, Soundness::Incidents);
    bench.stop();
}

#[test]
fn what_finds_no_room_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), Limits { buffer: 10, ..LIMITS });
    // The owner is busy, the queue full: whoever has more to say waits a moment, and then it is lost.
    let (release, held) = bounded::<()>(0);
    let (begin, begun) = bounded::<()>(0);
    let handle = bench.store.handle.clone();
    let busy = std::thread::spawn(move || {
        handle.call(move |_| {
            begin.send(()).unwrap();
            held.recv().unwrap();
        })
    });
    begun.recv().unwrap();
    while !bench.store.queue.is_full() {
        let _ = bench.store.queue.try_send(entry("explain", 200));
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.store.record(entry("explain", 200));
    assert_eq!(bench.metrics.events_lost("audit", "full").get(), 1);
    release.send(()).unwrap();
    busy.join().unwrap().unwrap();
    // And the trail itself says so.
    drop(bench.stop());
    let bench = Bench::new(directory.path(), LIMITS);
    let found = bench.verify();
    assert_eq!(found.status, Soundness::Incidents);
    assert!(found.incidents[0].contains("1 entries were lost, as there was no room in the queue"), "{found:?}");
    bench.stop();
}

#[test]
fn who_may_not_enter_cannot_fill_the_trail() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    bench.record(vec![entry("config reload", 200)]);
    for n in 0..350 {
        let address = Some(std::net::Ipv4Addr::from(n).into());
        let actor = Actor { name: "nobody".into(), role: String::new(), address, method: "api_key".into() };
        bench.store.record(Entry::new(actor, "firewall add", 401, ""));
    }
    bench.store.record(entry("explain", 200));
    let page = |bench: &Bench| bench.store.logs(&Filter::default(), 3, 0).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    // The last of them: what came before it was taken in before it.
    while page(&bench).entries[0].operation != "explain" {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(page(&bench).total, 102);
    assert_eq!(bench.metrics.events_lost("audit", "attempts").get(), 250);
    bench.store.handle.call(|writer| writer.tick(Instant::now() + WINDOW)).unwrap();
    let newest = page(&bench).entries.remove(0);
    assert_eq!((newest.operation.as_str(), newest.action), ("refused attempts", Action::PolicyViolation));
    assert_eq!(
        newest.detail,
        "250 more attempts were refused in the same minute, the last one: firewall add by nobody from 0.0.1.93"
    );
    assert_eq!(bench.verify().status, Soundness::Intact);
    bench.stop();
}

/// Else the first entries would be written over.
#[test]
fn a_number_behind_which_there_is_none_stops_the_trail() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    bench.record(vec![entry("explain", 200)]);
    let first = bench.store.logs(&Filter::default(), 1, 0).unwrap().entries;
    bench.stop();
    tamper(directory.path(), |write| {
        let mut table = write.open_table(ENTRIES).unwrap();
        let value = table.get(1).unwrap().unwrap().value().to_vec();
        table.insert(u64::MAX - 1, value.as_slice()).unwrap();
    });
    let bench = Bench::new(directory.path(), LIMITS);
    bench.store.record(entry("config reload", 200));
    let deadline = Instant::now() + Duration::from_secs(30);
    while !bench.store.health().iter().any(|why| why.contains("no number is left")) {
        assert!(Instant::now() < deadline, "not told in time; {:?}", bench.store.health());
        std::thread::sleep(Duration::from_millis(5));
    }
    let kept = bench.store.logs(&Filter { before: Some(2), ..Filter::default() }, 1, 0).unwrap().entries;
    assert_eq!((kept, bench.written()), (first, 0));
    assert_eq!(bench.verify().status, Soundness::Broken);
    bench.stop();
}

/// A trail of ten entries, of which some are versions of rules, changed by somebody; what a verification then finds.
fn found_after(change: impl FnOnce(&WriteTransaction)) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    bench.record((0..4).map(|n| rule(Component::Firewall, "r", Some(json!(n)), Some(json!(n + 1)))).collect());
    bench.record((0..3).map(|n| rule(Component::L7, "q", Some(json!(n)), Some(json!(n + 1)))).collect());
    bench.record((0..3).map(|_| entry("explain", 200)).collect());
    let found = bench.verify();
    assert_eq!((found.status, found.versions, found.removed), (Soundness::Intact, 7, None));
    drop(bench.stop());
    tamper(directory.path(), change);
    let bench = Bench::new(directory.path(), LIMITS);
    // Whatever it is, readers and the writer go on.
    bench.logs(Filter::default(), 100);
    bench.store.history("r", None, 9).unwrap();
    bench.record(vec![entry("explain", 200)]);
    let found = bench.verify();
    assert_eq!(found.status, Soundness::Broken, "{found:?}");
    assert!(bench.store.db.is_open() && !bench.store.db.is_suspect());
    bench.stop();
    found.problems
}

#[test]
fn tampering_with_the_history_shows() {
    let key = |version| history_key("r", "firewall", version);
    type Change<'c> = &'c dyn Fn(&mut redb::Table<'_, &'static [u8], u64>);
    let history = |change: Change<'_>| found_after(|write| change(&mut write.open_table(HISTORY).unwrap()));
    assert_eq!(
        history(&|table| drop(table.remove(key(2).as_slice()).unwrap())),
        ["entry 2, version 2 of rule r, is not in the history"]
    );
    // The newest one: the next would have its number.
    assert_eq!(
        history(&|table| drop(table.remove(key(4).as_slice()).unwrap())),
        ["entry 4, version 4 of rule r, is not in the history"]
    );
    assert_eq!(
        history(&|table| drop(table.insert(key(2).as_slice(), 3).unwrap())),
        [
            "entry 2, version 2 of rule r, is not in the history, which names entry 3 instead",
            "the history of rule r names entry 3, which is no such version"
        ]
    );
    for (version, seq) in [(5, 9), (5, 3), (5, 77), (5, 5)] {
        assert_eq!(
            history(&|table| drop(table.insert(key(version).as_slice(), seq).unwrap())),
            [format!("the history of rule r names entry {seq}, which is no such version")]
        );
    }
    assert_eq!(
        history(&|table| drop(table.insert([0xff; 3].as_slice(), 1).unwrap())),
        ["the history of rule \u{fffd} names entry 1, which is no such version"]
    );
    let all = found_after(|write| assert!(write.delete_table(HISTORY).unwrap()));
    assert_eq!(all.len(), 7, "{all:?}");
}

#[test]
fn what_is_missing_in_front_or_cannot_be_read_shows() {
    let out_of_chain = |seq: u64| format!("entry {seq} is not what was written, or what was before it is not");
    let missing = found_after(|write| {
        let mut entries = write.open_table(ENTRIES).unwrap();
        (1..=3u64).for_each(|seq| drop(entries.remove(seq).unwrap()));
        let mut history = write.open_table(HISTORY).unwrap();
        (1..=3u64).for_each(|version| drop(history.remove(history_key("r", "firewall", version).as_slice()).unwrap()));
    });
    assert_eq!(missing, ["entries 1 to 3 are missing".to_owned(), out_of_chain(4)]);
    // With an anchor as retention leaves it, which no entry tells of.
    let anchored = found_after(|write| {
        let mut entries = write.open_table(ENTRIES).unwrap();
        let mut history = write.open_table(HISTORY).unwrap();
        let mut hash = GENESIS;
        for seq in 1..=3u64 {
            hash = split(entries.remove(seq).unwrap().unwrap().value()).0;
            history.remove(history_key("r", "firewall", seq).as_slice()).unwrap();
        }
        let removed = Removed { link: Link { seq: 3, hash }, by_age: 3, by_count: 0 };
        removed.write(&mut write.open_table(ANCHOR).unwrap()).unwrap();
    });
    assert_eq!(anchored, ["entries up to 3 are missing, and retention has not written that it removed them"]);
    for bad in [&b"short"[..], &[7; 32], &[7; 500]] {
        let problems = found_after(|write| drop(write.open_table(ENTRIES).unwrap().insert(9, bad).unwrap()));
        assert_eq!(problems, [out_of_chain(9), "entry 9 cannot be read".to_owned(), out_of_chain(10)]);
    }
    // The last one, to which the next is chained.
    let problems = found_after(|write| drop(write.open_table(ENTRIES).unwrap().insert(10, &b""[..]).unwrap()));
    assert_eq!(problems[..2], [out_of_chain(10), "entry 10 cannot be read".to_owned()]);
}

#[test]
fn counts_of_retention_are_in_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), LIMITS);
    bench.record((0..30).map(|_| entry("explain", 200)).collect());
    let less = Limits { count: 10, ..LIMITS };
    bench.store.handle.call(move |writer| writer.set_limits(less)).unwrap();
    bench.store.handle.call(|writer| while writer.apply_retention() {}).unwrap();
    let removed = bench.verify().removed.unwrap();
    assert_eq!((removed.last, removed.by_age, removed.by_count, removed.told_by), (21, 0, 21, 31));
    drop(bench.stop());
    tamper(directory.path(), |write| {
        let mut anchor = write.open_table(ANCHOR).unwrap();
        let removed = Removed::read(&anchor).unwrap().unwrap();
        Removed { by_age: 21, by_count: 0, ..removed }.write(&mut anchor).unwrap();
    });
    let bench = Bench::new(directory.path(), LIMITS);
    let found = bench.verify();
    assert_eq!((found.status, found.removed), (Soundness::Broken, None));
    assert_eq!(found.problems, ["entries up to 21 are missing, and retention has not written that it removed them"]);
    bench.stop();
}

#[test]
fn what_cannot_be_read_is_skipped_counted_and_told_once() {
    let directory = tempfile::tempdir().unwrap();
    // Nothing is too old at first.
    let all = Limits { age: Duration::from_secs(4_000_000_000), ..LIMITS };
    let bench = Bench::new(directory.path(), all);
    let old = |n: u64| Entry { time_ns: n, ..rule(Component::Firewall, "r", None, Some(json!(n))) };
    bench.record((1..=10).map(old).collect());
    bench.record((0..10).map(|_| entry("explain", 200)).collect());
    drop(bench.stop());
    tamper(directory.path(), |write| {
        let mut entries = write.open_table(ENTRIES).unwrap();
        for seq in [1, 5, 20] {
            entries.insert(seq, [7; 100].as_slice()).unwrap();
        }
    });
    // It goes on after the last one, though that cannot be read, and says that it is not what the head file says.
    let bench = Bench::new(directory.path(), all);
    bench.record(vec![entry("config reload", 200)]);
    let unreadable = || bench.metrics.events_lost("audit", "unreadable_entry").get();
    for _ in 0..3 {
        let (seqs, total, ..) = bench.logs(Filter::default(), 100);
        assert_eq!((seqs.len(), total), (19, 22));
        assert_eq!(bench.logs(Filter { actor: Some("anna".into()), ..Filter::default() }, 100).0.len(), 18);
        assert_eq!(bench.store.history("r", None, 100).unwrap().entries.len(), 8);
    }
    assert_eq!(unreadable(), 3);
    let told: Vec<_> = bench.store.health().into_iter().filter(|text| text.contains("cannot be read")).collect();
    assert!(told.len() == 1 && told[0].contains("unreadable_entry"), "{told:?}");
    // Nor do they stop retention; what cannot be read is as old as what follows it.
    bench.store.handle.call(|writer| writer.set_limits(LIMITS)).unwrap();
    bench.store.handle.call(|writer| while writer.apply_retention() {}).unwrap();
    let found = bench.verify();
    assert_eq!((found.first, found.last, found.removed.unwrap().by_age), (11, 23, 10));
    assert_eq!(bench.store.history("r", None, 100).unwrap().total, 0);
    assert!(bench.store.db.is_open() && !bench.store.db.is_suspect());
    bench.stop();
}

#[test]
fn retention_does_not_live_on_what_it_writes() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { age: Duration::from_secs(2400), ..LIMITS };
    let bench = Bench::new(directory.path(), limits);
    let ago = |seconds: u64| Entry { time_ns: now_ns() - seconds * 1_000_000_000, ..entry("explain", 200) };
    let pass = |bench: &Bench| {
        let more = bench.store.handle.call(|writer| writer.apply_retention()).unwrap();
        assert!(!more);
        bench.verify()
    };
    // Not for an entry that has only just become too old: there will be more of them.
    bench.record(vec![ago(2450), ago(100)]);
    assert_eq!(pass(&bench).last, 2);
    bench.record(vec![ago(2600)]);
    assert_eq!((pass(&bench).last, pass(&bench).first), (3, 1), "the first of them says when");
    drop(bench.stop());
    // Its own entries, of whatever age, are no reason for another one.
    let bench = Bench::new(directory.path(), Limits { age: Duration::ZERO, ..LIMITS });
    let found = pass(&bench);
    assert_eq!((found.first, found.last), (4, 4));
    for _ in 0..3 {
        assert_eq!(pass(&bench).last, 4);
    }
    // Another entry is, and takes them along.
    bench.record(vec![entry("explain", 200)]);
    let found = pass(&bench);
    assert_eq!((found.status, found.first, found.last), (Soundness::Intact, 6, 6));
    drop(bench.stop());
    // By number it removes a hundredth more, so that the next entry does not have a pass of its own.
    let bench = Bench::new(directory.path(), Limits { count: 1000, ..LIMITS });
    bench.record((0..1000).map(|_| entry("explain", 200)).collect());
    assert_eq!(pass(&bench).entries, 990);
    bench.record((0..10).map(|_| entry("explain", 200)).collect());
    assert_eq!(pass(&bench).entries, 1000);
    bench.stop();
}
