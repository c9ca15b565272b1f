use std::fs;
use std::path::Path;

use redb::ReadableTableMetadata;

use super::*;
use crate::alert::Severity;
use crate::component::Component;

const LIMITS: Limits = Limits { age: Duration::from_secs(3600), count: 100_000, buffer: 20_000 };

struct Bench {
    store: AlertStore,
    sink: Box<dyn Sink>,
    thread: Option<Thread<Writer>>,
    metrics: Arc<Metrics>,
    _supervisor: Supervisor,
}

impl Bench {
    fn new(directory: &Path, limits: Limits) -> Bench {
        let metrics = Metrics::new();
        let (supervisor, _failures) = Supervisor::new().unwrap();
        let path = directory.join("alerts.redb");
        let (store, thread) = AlertStore::start(path, limits, &Arc::default(), &metrics, &supervisor).unwrap();
        // It opens the file by itself.
        store.handle.call(|_| ()).unwrap();
        let sink = Box::new(store.sink());
        Bench { store, sink, thread: Some(thread), metrics, _supervisor: supervisor }
    }

    /// Stores, and waits until it is written.
    fn put(&mut self, alerts: impl IntoIterator<Item = Alert>) {
        let mut want = self.written();
        for alert in alerts {
            self.sink.write(&Arc::new(alert)).unwrap();
            want += 1;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.written() < want {
            assert!(Instant::now() < deadline, "not written in time; {:?}", self.store.health());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.store.handle.call(|_| ()).unwrap();
    }

    fn written(&self) -> u64 {
        self.metrics.store_records("alerts").get()
    }

    fn find(&self, wanted: Wanted, limit: u32, offset: u32) -> Answer {
        self.store.find(&Question { wanted, text: None, limit, offset }).unwrap()
    }

    /// Ports of the sources, which tell test alerts apart, of all that are wanted, page by page.
    fn walk(&self, wanted: &Wanted, text: Option<&str>, limit: u32) -> (Vec<u64>, Vec<u64>) {
        let (mut ports, mut totals) = (Vec::new(), Vec::new());
        let mut question = Question { wanted: wanted.clone(), text: text.map(Into::into), limit, offset: 0 };
        loop {
            let page = self.store.find(&question).unwrap();
            ports.extend(page.alerts.iter().map(|alert| alert.document["src_port"].as_u64().unwrap()));
            totals.push(page.total);
            assert!(page.alerts.len() <= limit as usize);
            let Some(next) = page.next else { return (ports, totals) };
            question.wanted.before = Some(next.0.as_u128());
        }
    }

    fn stop(mut self) -> Writer {
        self.store.handle.stop().unwrap();
        self.thread.take().unwrap().join(Duration::from_secs(20)).unwrap()
    }
}

/// Number `n`: its port says which it is, and everything about it follows.
fn alert(n: u64) -> Alert {
    let component = if n.is_multiple_of(3) { Component::L7 } else { Component::Firewall };
    let severity = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical][(n % 4) as usize];
    let mut alert =
        Alert::new(component, severity, format!("rule-{}", n % 5), "deny", now_ns(), format!("Number <{n}>"));
    alert.src_ip = Some(format!("198.51.{}.{}", n / 200 % 200, n % 200).parse().unwrap());
    alert.dst_ip = Some("2001:db8::1".parse().unwrap());
    alert.src_port = Some(n as u16);
    alert
}

#[test]
fn filters_and_pages_give_what_a_plain_look_at_all_gives() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    assert_eq!(bench.find(Wanted::default(), 10, 0).total, 0);
    assert_eq!(bench.store.get(AlertId::next()).unwrap(), None);
    const COUNT: u64 = 3000;
    bench.put((0..COUNT).map(alert));
    let marked = [7, 800, 2999];
    for n in marked {
        let page = bench.find(Wanted::default(), 1, (COUNT - 1 - n) as u32);
        let (id, mark) = (page.alerts[0].id, Mark { by: "a".into(), at: "t".into(), comment: String::new() });
        bench.store.handle.call(move |writer| writer.mark(id, Some(mark), None)).unwrap().unwrap();
    }
    let w = Wanted::default;
    let net = |text: &str| w().of_network(Question::network(text).unwrap());
    type Wish<'a> = (&'a str, Wanted, &'a dyn Fn(u64) -> bool);
    let all: [Wish<'_>; 14] = [
        ("everything", w(), &|_| true),
        ("component", Wanted { component: Some(Component::L7), ..w() }, &|n| n % 3 == 0),
        ("other component", Wanted { component: Some(Component::Ids), ..w() }, &|_| false),
        ("severity", Wanted { min_severity: Some(Severity::High), ..w() }, &|n| n % 4 >= 2),
        (
            "both",
            Wanted { component: Some(Component::Firewall), min_severity: Some(Severity::Critical), ..w() },
            &|n| n % 3 != 0 && n % 4 == 3,
        ),
        ("rule", w().of_rule("rule-2"), &|n| n % 5 == 2),
        ("rule, absent", w().of_rule("rule-"), &|_| false),
        ("source", net("198.51.3.7"), &|n| n == 607),
        ("destination", net("2001:db8::1"), &|_| true),
        ("network", net("198.51.4.0/24"), &|n| n / 200 == 4),
        ("address, absent", net("192.0.2.1"), &|_| false),
        ("marked", Wanted { marked: Some(true), ..w() }, &|n| marked.contains(&n)),
        ("not marked", Wanted { marked: Some(false), ..w() }, &|n| !marked.contains(&n)),
        (
            "all at once",
            Wanted { component: Some(Component::L7), min_severity: Some(Severity::Medium), ..net("198.51.0.0/16") }
                .of_rule("rule-0"),
            &|n| n % 3 == 0 && n % 4 >= 1 && n % 5 == 0,
        ),
    ];
    for (name, wanted, is_wanted) in &all {
        let want: Vec<u64> = (0..COUNT).rev().filter(|n| is_wanted(*n)).collect();
        for limit in [1000, 317] {
            let (got, totals) = bench.walk(wanted, None, limit);
            assert_eq!(got, want, "{name} by {limit}");
            assert_eq!(totals[0], want.len() as u64, "{name} by {limit}");
        }
        for offset in [0, 1, 799, 801, 2500] {
            let page = bench.find(wanted.clone(), 3, offset);
            let got: Vec<u64> = page.alerts.iter().map(|alert| alert.document["src_port"].as_u64().unwrap()).collect();
            let some: Vec<u64> = want.iter().copied().skip(offset as usize).take(3).collect();
            assert_eq!((got, page.total, page.total_is_exact), (some, want.len() as u64, true), "{name} from {offset}");
        }
    }
    // Text: in any value, in any case. There is no total beyond the page.
    assert_eq!(bench.walk(&w(), Some("nUMBER <123>"), 10).0, [123]);
    assert_eq!(bench.walk(&w().of_rule("rule-1"), Some("number <1"), 50).0.len(), 223);
    assert_eq!(bench.walk(&w(), Some("message"), 10).0, [0; 0], "keys are not searched");
    let page = bench.store.find(&Question { text: Some("number".into()), limit: 5, ..Question::default() }).unwrap();
    assert_eq!((page.alerts.len(), page.total_is_exact), (5, false));
    bench.stop();
}

#[test]
fn time_spans_are_of_when_it_happened() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    let start = now_ns();
    let spans = [(0, 500), (100, 100), (200, 250), (300, 300)];
    bench.put(spans.iter().enumerate().map(|(n, (first, last))| Alert {
        timestamp_ns: start + first,
        first_seen_ns: start + first,
        last_seen_ns: start + last,
        ..alert(n as u64)
    }));
    for (from, to, want) in [
        (Some(0), None, vec![3, 2, 1, 0]),
        (Some(101), Some(200), vec![0]),
        (Some(250), Some(300), vec![2, 0]),
        (Some(251), Some(301), vec![3, 0]),
        (Some(501), None, vec![]),
        (None, Some(1), vec![0]),
        (None, Some(0), vec![]),
    ] {
        let at = |ns: Option<u64>| ns.map(|ns| start + ns);
        let wanted = Wanted { from_ns: at(from), to_ns: at(to), ..Wanted::default() };
        assert_eq!(bench.walk(&wanted, None, 1).0, want, "{from:?} {to:?}");
        assert_eq!(bench.find(wanted, 9, 0).total, want.len() as u64);
    }
    bench.stop();
}

#[test]
fn an_update_takes_the_place_and_keeps_the_mark() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    let (first, other) = (alert(1), alert(2));
    let id = first.id;
    bench.put([first.clone(), other]);
    let mark = Mark { by: "anna".into(), at: "2026-11-30T00:00:00Z".into(), comment: "a scanner of ours".into() };
    let wanted = mark.clone();
    let marked = bench.store.handle.call(move |writer| writer.mark(id, Some(wanted), None)).unwrap();
    assert_eq!(marked.unwrap(), (None, None));
    let update = Alert { count: 9, revision: 1, severity: Severity::Critical, last_seen_ns: now_ns(), ..first };
    bench.put([update.clone()]);
    drop(bench.stop());

    let bench = Bench::new(directory.path(), LIMITS);
    let found = bench.store.get(id).unwrap().unwrap();
    let mut want = serde_json::to_value(&update).unwrap();
    want["false_positive"] = true.into();
    want["mark"] = serde_json::to_value(&mark).unwrap();
    assert_eq!((found.id, found.document), (id, want));
    assert_eq!(bench.walk(&Wanted { min_severity: Some(Severity::Critical), ..Wanted::default() }, None, 9).0, [1]);
    assert_eq!(bench.find(Wanted::default(), 9, 0).total, 2);
    // Who comes back hears the alerts that he missed.
    let after = |id| bench.store.after(id, 10).unwrap().len();
    assert_eq!((after(id), after(AlertId(Uuid::nil())), after(AlertId(Uuid::max()))), (1, 2, 0));
    let unmarked = bench.store.handle.call(move |writer| writer.mark(id, None, None)).unwrap().unwrap();
    assert_eq!(unmarked.0, Some(mark));
    assert_eq!(bench.store.get(id).unwrap().unwrap().document["false_positive"], false);
    assert_eq!(bench.find(Wanted { marked: Some(true), ..Wanted::default() }, 9, 0).total, 0);
    bench.stop();
}

#[test]
fn who_comes_back_finds_what_was_told_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    let all: Vec<Alert> = (0..2500).map(alert).collect();
    bench.put(all.iter().cloned());
    let later = now_ns() + 3_600_000_000_000;
    // Those that went on, and one that changed before the time that is asked for; blocks without one are passed over.
    let updated = [3, 700, 701, 2200, 2400];
    bench.put(updated.iter().map(|&n| Alert { revision: 2, last_seen_ns: later + n as u64, ..all[n].clone() }));
    bench.put([Alert { revision: 1, ..all[5].clone() }]);
    // It began late, and nothing was told again of it.
    bench.put([Alert { last_seen_ns: later, ..all[6].clone() }]);
    let walk = |from_ns, up_to: usize, limit| {
        let (mut span, mut found) = (Span { from_ns, above: None, up_to: all[up_to].id }, Vec::new());
        for _ in 0..5000 {
            let (page, above) = History::updated(&bench.store, &span, limit).unwrap();
            found.extend(page.iter().map(|stored| stored.document["src_port"].as_u64().unwrap()));
            span.above = above;
            if above.is_none() {
                return found;
            }
        }
        panic!("it never ends");
    };
    for limit in [1, 2, 100] {
        assert_eq!(walk(later, 2300, limit), [3, 700, 701, 2200], "{limit}");
    }
    assert_eq!(walk(later, 701, 1), [3, 700, 701]);
    assert_eq!(walk(later + 701, 2499, 1), [701, 2200, 2400]);
    assert_eq!(walk(0, 2499, 300), [3, 5, 700, 701, 2200, 2400]);
    assert_eq!(walk(u64::MAX, 2499, 1), [] as [u64; 0]);
    let seen = |id| History::seen(&bench.store, id).unwrap();
    assert_eq!(seen(all[3].id), Some((2, later + 3)));
    assert_eq!(seen(all[0].id), Some((0, all[0].last_seen_ns)));
    assert_eq!(seen(AlertId(Uuid::nil())), None);
    bench.stop();
}

#[test]
fn ids_that_come_out_of_order_find_their_place() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    // The clock was set back between two runs: what comes now is older than what is there.
    let old: Vec<Alert> = (0..1700).map(alert).collect();
    let new: Vec<Alert> = (1700..2500).map(alert).collect();
    bench.put(new.iter().step_by(2).cloned());
    bench.put(old.iter().rev().cloned());
    bench.put(new.iter().skip(1).step_by(2).cloned());
    let want: Vec<u64> = (0..2500).rev().collect();
    assert_eq!(bench.walk(&Wanted::default(), None, 1000).0, want);
    assert_eq!(bench.walk(&Wanted::default().of_rule("rule-4"), None, 100).0.len(), 500);
    bench.stop();
}

#[test]
fn a_mark_can_hide_others_like_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    let (one, none) = (alert(1), Alert { src_ip: None, ..alert(2) });
    let (id, without) = (one.id, none.id);
    bench.put([one.clone(), none]);
    let mark = |bench: &Bench, id, minutes: u64| {
        let mark = Mark { by: "anna".into(), at: String::new(), comment: "known".into() };
        let until_ns = now_ns() + minutes * 60_000_000_000;
        let suppress = Suppress { until_ns, by: "anna".into() };
        bench.store.handle.call(move |writer| writer.mark(id, Some(mark), Some(suppress))).unwrap()
    };
    let (before, made) = mark(&bench, id, 10).unwrap();
    let made = made.unwrap();
    assert_eq!((before, made.rule_id.as_str(), made.src_ip), (None, "rule-1", one.src_ip));
    assert!(bench.store.suppressions.hides(&one, now_ns()));
    assert!(!bench.store.suppressions.hides(&alert(6), now_ns()), "another source");
    assert!(matches!(mark(&bench, without, 10), Err(MarkError::NoSource)));
    assert_eq!(bench.store.get(without).unwrap().unwrap().document["false_positive"], false, "nothing was done");
    assert!(matches!(mark(&bench, AlertId::next(), 10), Err(MarkError::NotFound(_))));
    assert!(bench.metrics.render().contains("false_positives_total{component=\"firewall\",rule_id=\"rule-1\"} 1"));
    // Another one for the same takes its place, also on disk.
    let newer = mark(&bench, id, 20).unwrap().1.unwrap();
    drop(bench.stop());
    let bench = Bench::new(directory.path(), LIMITS);
    assert_eq!(bench.store.suppressions.list(now_ns()), std::slice::from_ref(&newer));
    let end = |bench: &Bench, id: &str| {
        let id = id.to_owned();
        bench.store.handle.call(move |writer| writer.end_suppression(&id)).unwrap().unwrap().map(|one| one.id)
    };
    assert_eq!(end(&bench, &made.id), None);
    assert_eq!(end(&bench, &newer.id), Some(newer.id.clone()));
    drop(bench.stop());
    let bench = Bench::new(directory.path(), LIMITS);
    assert_eq!(bench.store.suppressions.list(now_ns()), []);
    bench.stop();
}

#[test]
fn retention_by_age_and_number_removes_the_right_ones_and_gives_space_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    let hour = 3_600_000_000_000;
    // Every other one of the first thousand ended too long ago; one of those went on until now.
    let mut old: Vec<Alert> = (0..1000).map(alert).collect();
    for alert in old.iter_mut().step_by(2) {
        alert.last_seen_ns = now_ns() - 2 * hour;
        alert.first_seen_ns = now_ns() - 3 * hour;
    }
    old[4].last_seen_ns = now_ns();
    bench.put(old);
    bench.put((1000..9000).map(|n| Alert { message: "x".repeat(2000), ..alert(n) }));
    let pass = |bench: &Bench| bench.store.handle.call(|writer| writer.apply_retention()).unwrap();
    assert!(!pass(&bench));
    let want: Vec<u64> = (0..9000).rev().filter(|&n| n >= 1000 || n % 2 == 1 || n == 4).collect();
    assert_eq!(bench.walk(&Wanted::default(), None, 1000).0, want);
    let size = || fs::metadata(directory.path().join("alerts.redb")).unwrap().len();
    let before = size();
    // A smaller number, as after a reload.
    bench.store.handle.call(|writer| writer.set_limits(Limits { count: 500, ..LIMITS })).unwrap();
    while pass(&bench) {}
    assert_eq!(bench.walk(&Wanted::default(), None, 1000).0, (8500..9000).rev().collect::<Vec<_>>());
    // The thread may have done both by itself already, or does so now.
    pass(&bench);
    let after = size();
    assert!(before > 12 << 20 && after < before / 3, "{before} bytes, then {after}");
    assert_eq!(bench.find(Wanted::default(), 1, 0).total, 500);
    // Marks go with their alerts.
    let left = bench.store.db.read(|read| Ok(existing(read.open_table(ALERTS))?.unwrap().len().unwrap())).unwrap();
    assert_eq!(left, 500);
    drop(bench.stop());
    let mut bench = Bench::new(directory.path(), LIMITS);
    bench.put([alert(1)]);
    assert_eq!(bench.find(Wanted::default(), 1, 0).total, 501);
    bench.stop();
}

#[test]
fn a_damaged_file_is_moved_aside_and_readers_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    bench.put((0..2000).map(alert));
    drop(bench.stop());
    let path = directory.path().join("alerts.redb");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes.truncate(middle);
    fs::write(&path, &bytes).unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    assert!(bench.store.health()[0].contains("a new one was begun"), "{:?}", bench.store.health());
    bench.put([alert(1)]);
    assert_eq!(bench.find(Wanted::default(), 9, 0).total, 1);
    bench.stop();
}

#[test]
fn a_directory_that_is_not_there_yet_is_no_end() {
    let directory = tempfile::tempdir().unwrap();
    let below = directory.path().join("later");
    let mut bench = Bench::new(&below, Limits { buffer: 3000, ..LIMITS });
    assert!(bench.store.health()[0].contains("No such file"), "{:?}", bench.store.health());
    assert!(matches!(bench.store.find(&Question::default()), Err(DbError::Closed)));
    for n in 0..10 {
        bench.sink.write(&Arc::new(alert(n))).unwrap();
    }
    fs::create_dir(&below).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while bench.written() < 10 {
        assert!(Instant::now() < deadline, "{:?}", bench.store.health());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((bench.store.health(), bench.find(Wanted::default(), 1, 0).total), (vec![], 10));
    assert!(bench.metrics.store_failures("alerts").get() > 0);
    bench.stop();
}

#[test]
fn what_cannot_be_read_is_skipped_counted_told_once_and_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(directory.path(), LIMITS);
    bench.put((0..2500).map(alert));
    let ids: Vec<AlertId> = bench.find(Wanted::default(), 2500, 0).alerts.iter().rev().map(|one| one.id).collect();
    for n in [10, 900] {
        let (id, mark) = (ids[n], Mark { by: "anna".into(), at: "t".into(), comment: String::new() });
        let suppress = Suppress { until_ns: now_ns() + 3_600_000_000_000, by: "anna".into() };
        bench.store.handle.call(move |writer| writer.mark(id, Some(mark), Some(suppress))).unwrap().unwrap();
    }
    drop(bench.stop());
    // Of the four blocks the first has no summary that can be read; the second, and the one that is being filled, are
    // none; in the third is an alert that is none.
    let db = Db::new(directory.path().join("alerts.redb"), "alerts", SCHEMA);
    assert_eq!(db.mend(false).unwrap(), None);
    db.write(|write| {
        let mut summaries = write.open_table(SUMMARIES)?;
        let keys: Vec<u128> = summaries.iter()?.map(|item| item.unwrap().0.value()).collect();
        assert_eq!(keys.len(), 4);
        summaries.insert(keys[0], &b"?"[..])?;
        let mut blocks = write.open_table(BLOCKS)?;
        blocks.insert(keys[1], &[7; 81][..])?;
        blocks.insert(keys[3], &b"?"[..])?;
        write.open_table(ALERTS)?.insert(ids[1700].0.as_u128(), &b"\"?\""[..])?;
        write.open_table(MARKS)?.insert(ids[10].0.as_u128(), &b"?"[..])?;
        let mut suppressions = write.open_table(SUPPRESSIONS)?;
        let first = suppressions.first()?.unwrap().0.value().to_owned();
        suppressions.insert(first.as_str(), &b"?"[..])?;
        Ok(())
    })
    .unwrap();
    drop(db);

    let mut bench = Bench::new(directory.path(), LIMITS);
    assert_eq!(bench.store.suppressions.list(now_ns()).len(), 1);
    // It goes on, also in the block that cannot be read.
    bench.put((2500..2600).map(alert));
    let (ports, _) = bench.walk(&Wanted::default(), Some("number <"), 1000);
    assert!(ports.starts_with(&(2400..2600).rev().collect::<Vec<_>>()) && ports.len() >= 899, "{}", ports.len());
    assert_eq!(bench.store.get(ids[1700]).unwrap(), None);
    assert_eq!(bench.store.after(ids[1699], 2).unwrap()[0].id, ids[1701]);
    assert!(bench.store.db.is_open() && !bench.store.db.is_suspect());
    // Retention makes the blocks anew from their alerts, marks and all. It may have done so by itself already.
    let pass = |bench: &Bench| bench.store.handle.call(|writer| writer.apply_retention()).unwrap();
    assert!(!pass(&bench));
    let want: Vec<u64> = (0..2600).rev().filter(|&n| n != 1700).collect();
    assert_eq!(bench.walk(&Wanted::default(), None, 1000).0, want);
    let marked = bench.find(Wanted { marked: Some(true), ..Wanted::default() }, 10, 0).alerts;
    let marked: Vec<_> = marked.iter().map(|one| (one.id, one.document["mark"]["by"].as_str())).collect();
    assert_eq!(marked, [(ids[900], Some("anna")), (ids[10], None)]);
    let counted = |sort| bench.metrics.events_lost("alert_store", sort).get();
    assert_eq!([ALERT, BLOCK, MARK, SUPPRESSION].map(counted), [1, 3, 1, 1]);
    let health = bench.store.health();
    assert_eq!(health.len(), 4, "one for each sort: {health:?}");
    // What cannot be read goes like all else.
    bench.store.handle.call(|writer| writer.set_limits(Limits { count: 100, ..LIMITS })).unwrap();
    while pass(&bench) {}
    assert_eq!(bench.find(Wanted::default(), 1, 0).total, 100);
    let left = bench.store.db.read(|read| Ok(existing(read.open_table(ALERTS))?.unwrap().len().unwrap())).unwrap();
    assert_eq!(left, 100);
    bench.stop();
}
