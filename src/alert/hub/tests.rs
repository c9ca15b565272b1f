//! Listeners that are fast, slow, away, and back again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use super::*;
use crate::alert::Severity;

const PATIENCE: Duration = Duration::from_secs(20);

fn alert(rule: &str) -> Alert {
    Alert::new(Component::Firewall, Severity::Low, rule, "deny", 1, "denied")
}

/// A hub with the router's end of it.
struct Bench {
    hub: Hub,
    sink: HubSink,
}

impl Bench {
    fn new(capacity: usize) -> Bench {
        let hub = Hub::new(capacity);
        let sink = hub.sink();
        Bench { hub, sink }
    }

    fn tell(&mut self, alert: Alert) -> AlertId {
        let id = alert.id;
        self.sink.write(&Arc::new(alert)).unwrap();
        id
    }

    /// Rules `first` to `last`, by their numbers.
    fn tell_rules(&mut self, first: u32, last: u32) -> Vec<AlertId> {
        (first..=last).map(|number| self.tell(alert(&number.to_string()))).collect()
    }

    fn listen(&self) -> Subscription {
        self.hub.subscribe(Filter::default(), None)
    }

    fn resume(&self, after: AlertId) -> Subscription {
        self.hub.subscribe(Filter::default(), Some(EventId { alert: after, revision: 0 }))
    }

    fn keep(&self, history: &Arc<Kept>) {
        self.hub.set_history(history.clone());
    }
}

/// Everything that there is, in a word each: the rule, `~rule` of the history, `-missed reason` of a gap.
fn heard(subscription: &mut Subscription) -> Vec<String> {
    let mut words = Vec::new();
    while subscription.is_behind() {
        match subscription.catch_up() {
            Step::Live => {}
            Step::Events(events) => words.extend(events.iter().map(word)),
            Step::Later(_) => words.push("later".to_owned()),
        }
        assert!(words.len() < 1000, "it never gets there: {words:?}");
    }
    while !subscription.is_over() && subscription.wait(Instant::now()) {
        words.extend(subscription.take(7).iter().map(word));
    }
    words
}

fn word(event: &Event) -> String {
    match event {
        Event::Live(live) => match live.id().revision {
            0 => live.alert().rule_id.to_string(),
            revision => format!("{}.{revision}", live.alert().rule_id),
        },
        Event::Stored(stored) => match (stored.document["rule_id"].as_str().unwrap(), stored.event_id().revision) {
            (rule, 0) => format!("~{rule}"),
            (rule, revision) => format!("~{rule}.{revision}"),
        },
        Event::Gap(Gap { missed: Some(missed), reason }) => format!("-{missed} {}", reason.name()),
        Event::Gap(Gap { missed: None, reason }) => format!("-? {}", reason.name()),
    }
}

fn numbers(first: u32, last: u32) -> Vec<String> {
    (first..=last).map(|number| number.to_string()).collect()
}

/// A history that a test writes.
#[derive(Default)]
struct Kept {
    /// With the time at which each last happened.
    alerts: Mutex<Vec<(Stored, u64)>>,
    broken: bool,
}

impl Kept {
    fn keep(&self, alert: &Alert) {
        let stored = Stored { id: alert.id, document: serde_json::to_value(alert).unwrap() };
        let mut alerts = self.alerts.lock().unwrap();
        alerts.retain(|(kept, _)| kept.id != alert.id);
        alerts.push((stored, alert.last_seen_ns));
        alerts.sort_by_key(|(kept, _)| kept.id);
    }
}

impl History for Kept {
    fn seen(&self, id: AlertId) -> Result<Option<(u32, u64)>, String> {
        if self.broken {
            return Err("the disk is on fire".to_owned());
        }
        let alerts = self.alerts.lock().unwrap();
        let found = alerts.iter().find(|(stored, _)| stored.id == id);
        Ok(found.map(|(stored, last_ns)| (stored.event_id().revision, *last_ns)))
    }

    fn after(&self, id: AlertId, limit: usize) -> Result<Vec<Stored>, String> {
        let alerts = self.alerts.lock().unwrap();
        let later = alerts.iter().map(|(stored, _)| stored).filter(|stored| stored.id > id);
        Ok(later.take(limit.min(2)).cloned().collect())
    }

    fn updated(&self, span: &Span, limit: usize) -> Result<(Vec<Stored>, Option<AlertId>), String> {
        let alerts = self.alerts.lock().unwrap();
        let in_span = |(stored, last_ns): &&(Stored, u64)| {
            *last_ns >= span.from_ns && Some(stored.id) > span.above && stored.id <= span.up_to
        };
        let page: Vec<_> = alerts.iter().filter(in_span).take(limit.min(2)).map(|(stored, _)| stored.clone()).collect();
        let last = page.last().map(|stored| stored.id);
        Ok((page.into_iter().filter(|stored| stored.event_id().revision > 0).collect(), last))
    }
}

#[test]
fn everybody_hears_all_in_order_from_when_he_came() {
    let mut bench = Bench::new(100);
    bench.tell_rules(1, 3);
    let mut first = bench.listen();
    bench.tell_rules(4, 30);
    let mut second = bench.listen();
    bench.tell_rules(31, 40);
    assert_eq!(heard(&mut first), numbers(4, 40));
    assert_eq!(heard(&mut second), numbers(31, 40));
    bench.tell_rules(41, 41);
    assert_eq!((heard(&mut first), heard(&mut second)), (numbers(41, 41), numbers(41, 41)));
}

#[test]
fn a_filter_lets_through_what_it_says() {
    let base = Alert { mitre: vec!["T1110.001".into()], ..alert("ssh-1") };
    let check = |filter: Result<Filter, String>, alert: &Alert, want: bool| {
        let filter = filter.unwrap();
        assert_eq!(filter.wants(alert), want, "{filter:?}");
        assert_eq!(filter.wants_document(&serde_json::to_value(alert).unwrap()), want, "{filter:?} of the history");
    };
    check(filter_of(None, None, None, None), &base, true);
    for (least, want) in [("low", true), ("medium", true), ("high", false), ("critical", false)] {
        check(filter_of(Some(least), None, None, None), &Alert { severity: Severity::Medium, ..base.clone() }, want);
    }
    for (component, want) in [("firewall", true), ("l7", false)] {
        check(filter_of(None, Some(component), None, None), &base, want);
    }
    for (rule, want) in [("ssh-1", true), ("ssh", false), ("ssh*", true), ("*", true), ("ssh-1*", true), ("x*", false)]
    {
        check(filter_of(None, None, Some(rule), None), &base, want);
    }
    for (technique, want) in [("T1110", true), ("T1110.001", true), ("T1110.002", false), ("T1190", false)] {
        check(filter_of(None, None, None, Some(technique)), &base, want);
    }
    check(filter_of(None, None, None, Some("T1110")), &alert("ssh-1"), false);

    let wrong = |severity, component, technique| filter_of(severity, component, None, technique).unwrap_err();
    assert!(filter_of(None, None, Some("*x"), None).unwrap_err().contains("not at its end"));
    assert!(wrong(Some("loud"), None, None).contains("use low, medium, high or critical"));
    assert_eq!(
        wrong(None, Some("ips\n"), None),
        "\"ips\\n\" is not a component; use one of firewall, ratelimit, ids, l7"
    );
    assert!(wrong(None, None, Some("1190")).contains("MITRE"));
}

#[test]
fn who_is_slow_is_told_how_many_he_missed_and_nobody_else_misses_any() {
    let mut bench = Bench::new(10);
    let mut slow = bench.listen();
    let mut picky = bench.hub.subscribe(filter_of(None, None, Some("1*"), None).unwrap(), None);
    let mut fast = bench.listen();
    for number in 1..=25 {
        bench.tell_rules(number, number);
        assert_eq!(heard(&mut fast), numbers(number, number));
    }
    let mut want = vec!["-15 slow_client".to_owned()];
    want.extend(numbers(16, 25));
    assert_eq!(heard(&mut slow), want);
    // Of 1 and 10 to 19 he wanted, 1 and 10 to 15 were overwritten.
    let mut want = vec!["-7 slow_client".to_owned()];
    want.extend(numbers(16, 19));
    assert_eq!(heard(&mut picky), want);
    bench.tell_rules(26, 26);
    assert_eq!(heard(&mut slow), numbers(26, 26), "he is told once");
}

#[test]
fn who_wants_none_of_what_is_told_misses_none() {
    let mut bench = Bench::new(3);
    let mut picky = bench.hub.subscribe(filter_of(None, None, Some("x"), None).unwrap(), None);
    bench.tell_rules(1, 50);
    assert_eq!(heard(&mut picky), [] as [&str; 0]);
    bench.tell(alert("x"));
    assert_eq!(heard(&mut picky), ["x"]);
}

#[test]
fn who_comes_back_soon_goes_on_where_he_was() {
    let mut bench = Bench::new(10);
    let ids = bench.tell_rules(1, 5);
    assert_eq!(heard(&mut bench.resume(ids[1])), numbers(3, 5));
    assert_eq!(heard(&mut bench.resume(ids[4])), [] as [&str; 0]);

    // Updates have their alert's id: which of its tellings was seen is the difference.
    let first = Alert { id: ids[0], ..alert("1") };
    bench.tell(Alert { revision: 1, ..first.clone() });
    bench.tell_rules(6, 6);
    bench.tell(Alert { revision: 2, ..first });
    assert_eq!(heard(&mut bench.resume(ids[0])), ["2", "3", "4", "5", "1.1", "6", "1.2"]);
    let after = |id: &str| heard(&mut bench.hub.subscribe(Filter::default(), Some(id.parse().unwrap())));
    assert_eq!(after(&format!("{}.1", ids[0])), ["6", "1.2"]);
    assert_eq!(after(&format!("{}.2", ids[0])), [] as [&str; 0]);
}

#[test]
fn ids_of_events_read_back() {
    let id = AlertId::next();
    for (text, revision) in [(id.to_string(), 0), (format!("{id}.1"), 1), (format!("{id}.4294967295"), u32::MAX)] {
        let event: EventId = text.parse().unwrap();
        assert_eq!((event, event.to_string()), (EventId { alert: id, revision }, text));
    }
    for wrong in ["", "7", &format!("{id}."), &format!("{id}.+1"), &format!("{id}.4294967296"), &format!("{id}.1.1")] {
        assert!(wrong.parse::<EventId>().is_err(), "{wrong}");
    }
}

#[test]
fn without_a_history_an_id_that_is_gone_is_a_gap_of_unknown_size() {
    let mut bench = Bench::new(3);
    let ids = bench.tell_rules(1, 5);
    assert_eq!(heard(&mut bench.resume(ids[0])), ["-? unknown_id", "3", "4", "5"]);
    // From a run before this one.
    let old = AlertId(uuid::Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001));
    let mut bench = Bench::new(3);
    assert_eq!(heard(&mut bench.resume(old)), ["-? unknown_id"]);
    bench.tell_rules(1, 2);
    assert_eq!(heard(&mut bench.resume(old)), ["-? unknown_id", "1", "2"]);
    // From a host whose clock is ahead: nothing that happens from now on is taken for old.
    let early = AlertId(uuid::Uuid::from_u128(0x7190_0000_0000_7000_8000_0000_0000_0001));
    let mut early = bench.resume(early);
    assert_eq!(heard(&mut early), ["-? unknown_id"]);
    bench.tell_rules(3, 3);
    assert_eq!(heard(&mut early), ["3"]);
}

#[test]
fn what_left_the_ring_comes_from_the_history() {
    let (mut bench, kept) = (Bench::new(3), Arc::new(Kept::default()));
    bench.keep(&kept);
    let alerts: Vec<Alert> = (1..=9).map(|number| alert(&number.to_string())).collect();
    for (number, one) in alerts.iter().enumerate() {
        // The last one is on its way into the history.
        if number < 8 {
            kept.keep(one);
        }
        bench.tell(one.clone());
    }
    // The ring has 7 to 9; 7 was had from the history, two at a time, and then the ring goes on.
    assert_eq!(heard(&mut bench.resume(alerts[1].id)), ["~3", "~4", "~5", "~6", "~7", "~8", "9"]);
    assert_eq!(heard(&mut bench.resume(alerts[2].id)), ["~4", "~5", "~6", "~7", "8", "9"]);
    assert_eq!(heard(&mut bench.resume(alerts[6].id)), ["8", "9"]);
    let picky = filter_of(None, None, Some("4"), None).unwrap();
    let after = EventId { alert: alerts[1].id, revision: 0 };
    assert_eq!(heard(&mut bench.hub.subscribe(picky, Some(after))), ["~4"]);
    // An update that the ring still has is told, whether or not the history had it.
    bench.tell(Alert { revision: 1, ..alerts[3].clone() });
    assert_eq!(heard(&mut bench.resume(alerts[1].id)), ["~3", "~4", "~5", "~6", "~7", "~8", "9", "4.1"]);
}

#[test]
fn after_a_restart_the_history_and_the_ring_join() {
    let kept = Arc::new(Kept::default());
    let before: Vec<Alert> = (1..=3).map(|number| alert(&number.to_string())).collect();
    before.iter().for_each(|one| kept.keep(one));
    let mut bench = Bench::new(10);
    bench.keep(&kept);
    assert_eq!(heard(&mut bench.resume(before[0].id)), ["~2", "~3"]);
    assert_eq!(heard(&mut bench.resume(before[2].id)), [] as [&str; 0]);
    let new = alert("4");
    kept.keep(&new);
    bench.tell(new);
    bench.tell_rules(5, 5);
    assert_eq!(heard(&mut bench.resume(before[0].id)), ["~2", "~3", "~4", "5"]);
    // Deleted, or never there: what is later is told all the same, and that something is missing.
    let old = AlertId(uuid::Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001));
    assert_eq!(heard(&mut bench.resume(old)), ["-? unknown_id", "~1", "~2", "~3", "~4", "5"]);
}

#[test]
fn updates_of_what_began_before_come_from_the_history_too() {
    let now_ns = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let second = 1_000_000_000;
    let seen = |alert: &Alert, revision, last_seen_ns| Alert { revision, last_seen_ns, ..alert.clone() };
    let kept = Arc::new(Kept::default());
    let all: Vec<Alert> = (1..=6).map(|number| alert(&number.to_string())).collect();
    // After 5 was told: 1 and 4 went on, and 3 did not; 2 was told again before, at the latest.
    kept.keep(&seen(&all[0], 10, now_ns + second));
    kept.keep(&seen(&all[1], 1, now_ns - 3600 * second));
    kept.keep(&seen(&all[2], 0, now_ns));
    kept.keep(&seen(&all[3], 2, now_ns - 40 * second));
    kept.keep(&seen(&all[4], 3, now_ns + 2 * second));
    kept.keep(&all[5]);
    let resumed = |capacity, told: &[&Alert], after: &Alert, revision| {
        let mut bench = Bench::new(capacity);
        bench.keep(&kept);
        bench.hub.note_window(Duration::from_secs(60));
        bench.hub.note_window(Duration::from_secs(10));
        for alert in told {
            bench.tell((*alert).clone());
        }
        let after = Some(EventId { alert: after.id, revision });
        heard(&mut bench.hub.subscribe(Filter::default(), after))
    };
    // After a restart. What is told at the end of a window may have happened at its beginning.
    assert_eq!(resumed(10, &[], &all[4], 0), ["~1.10", "~4.2", "~5.3", "~6"]);
    assert_eq!(resumed(10, &[], &all[4], 2), ["~1.10", "~4.2", "~5.3", "~6"]);
    assert_eq!(resumed(10, &[], &all[4], 3), ["~1.10", "~4.2", "~6"]);
    // What the id does not name any more is no reason to lose the others.
    let gone = alert("7");
    assert_eq!(resumed(10, &[], &gone, 0), ["-? unknown_id", "~1.10", "~4.2", "~5.3"]);
    let picky = filter_of(None, None, Some("4"), None).unwrap();
    let bench = Bench::new(3);
    bench.keep(&kept);
    bench.hub.note_window(Duration::from_secs(60));
    let after = Some(EventId { alert: all[4].id, revision: 0 });
    assert_eq!(heard(&mut bench.hub.subscribe(picky, after)), ["~4.2"]);

    // Updates that left the ring a moment ago may not be in the history yet; those that are in the ring are told again.
    let update = seen(&all[0], 11, now_ns + 9 * second);
    let (told, had) = ([&update, &all[5]], ["~1.10", "~4.2", "~6"]);
    assert_eq!(resumed(2, &told, &all[4], 3), [&had[..], &["1.11"]].concat());
    assert_eq!(resumed(1, &told, &all[4], 3), [&had[..], &["-? updates"]].concat());
}

#[test]
fn updates_that_left_the_ring_long_ago_are_no_gap() {
    let (mut bench, kept) = (Bench::new(1), Arc::new(Kept::default()));
    bench.keep(&kept);
    let (first, second) = (alert("1"), alert("2"));
    [&first, &second].into_iter().for_each(|alert| kept.keep(alert));
    for alert in [first.clone(), second.clone(), Alert { revision: 1, ..first.clone() }, second] {
        bench.tell(alert);
    }
    bench.hub.lock().newest_update_overwritten = Instant::now().checked_sub(KEPT_AFTER);
    assert_eq!(heard(&mut bench.resume(first.id)), ["~2"]);
}

#[test]
fn a_history_that_fails_or_lacks_something_is_a_gap() {
    let mut bench = Bench::new(3);
    bench.keep(&Arc::new(Kept { broken: true, ..Kept::default() }));
    let ids = bench.tell_rules(1, 5);
    assert_eq!(heard(&mut bench.resume(ids[0])), ["-? store_failed", "3", "4", "5"]);

    let (mut bench, kept) = (Bench::new(3), Arc::new(Kept::default()));
    bench.keep(&kept);
    let first = alert("1");
    kept.keep(&first);
    bench.tell(first.clone());
    bench.tell_rules(2, 5);
    let words = heard(&mut bench.resume(first.id));
    let (waited, rest) = words.split_at(SETTLE_ROUNDS as usize);
    assert!(waited.iter().all(|word| word == "later"), "{words:?}");
    assert_eq!(rest, ["-? store_failed", "3", "4", "5"]);
}

#[test]
fn a_thread_waits_until_something_comes_that_it_wants() {
    let mut bench = Bench::new(10);
    let hub = bench.hub.clone();
    let (begun, has_begun) = crossbeam_channel::bounded(1);
    let listener = std::thread::spawn(move || {
        let mut picky = hub.subscribe(filter_of(None, None, Some("x"), None).unwrap(), None);
        assert!(!picky.wait(Instant::now()), "nothing is there");
        begun.send(()).unwrap();
        let mut words = Vec::new();
        while words.is_empty() {
            assert!(picky.wait(Instant::now() + PATIENCE), "woken in vain, or not at all");
            words.extend(picky.take(10).iter().map(word));
        }
        words
    });
    has_begun.recv().unwrap();
    bench.tell_rules(1, 3);
    bench.tell(alert("x"));
    assert_eq!(listener.join().unwrap(), ["x"]);
    assert!(bench.hub.lock().listeners.is_empty(), "who has gone is not told");
}

#[test]
fn a_task_is_woken_once_and_only_for_what_it_wants() {
    struct Woken(AtomicUsize);
    impl Wake for Woken {
        fn wake(self: Arc<Woken>) {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }
    let mut bench = Bench::new(10);
    let woken = Arc::new(Woken(AtomicUsize::new(0)));
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let mut picky = bench.hub.subscribe(filter_of(None, None, Some("x"), None).unwrap(), None);
    assert!(picky.poll_ready(&mut context).is_pending());
    bench.tell_rules(1, 3);
    assert_eq!(woken.0.load(Ordering::Acquire), 0);
    bench.tell(alert("x"));
    bench.tell(alert("x"));
    assert_eq!(woken.0.load(Ordering::Acquire), 1);
    assert!(picky.poll_ready(&mut context).is_ready());
    assert_eq!(heard(&mut picky), ["x", "x"]);
}

#[test]
fn a_closed_hub_ends_listeners_after_what_they_have_not_had() {
    let mut bench = Bench::new(10);
    let mut listener = bench.listen();
    let ids = bench.tell_rules(1, 3);
    let hub = bench.hub.clone();
    let waiting = std::thread::spawn(move || {
        let mut late = hub.subscribe(Filter::default(), None);
        late.wait(Instant::now() + PATIENCE) && late.take(10).is_empty() && late.is_over()
    });
    bench.hub.close();
    assert!(waiting.join().unwrap());
    assert!(!listener.is_over());
    assert_eq!(heard(&mut listener), numbers(1, 3));
    assert!(listener.is_over());
    assert!(bench.resume(ids[0]).is_over());
    assert!(bench.listen().is_over());
}

/// Threads that listen while another tells: what each gets, and what it is told that it did not get, is all there was.
#[test]
fn nobody_misses_anything_unsaid() {
    let mut bench = Bench::new(16);
    let listeners: Vec<_> = (0..4)
        .map(|pause_us| {
            let mut subscription = bench.listen();
            std::thread::spawn(move || {
                let (mut got, mut missed, mut last) = (0, 0, 0u64);
                while !subscription.is_over() {
                    assert!(subscription.wait(Instant::now() + PATIENCE), "nothing comes");
                    for event in subscription.take(5) {
                        match event {
                            Event::Live(live) => {
                                let number: u64 = live.alert().rule_id.parse().unwrap();
                                assert_eq!(number, last + missed_since(&mut missed, last, number) + 1);
                                (got, last) = (got + 1, number);
                            }
                            Event::Gap(gap) => missed += gap.missed.unwrap(),
                            Event::Stored(_) => panic!("there is no history"),
                        }
                    }
                    std::thread::sleep(Duration::from_micros(50 * pause_us));
                }
                (got, last)
            })
        })
        .collect();
    /// Of what was said to be missing, that which lies before `number`: all of it.
    fn missed_since(missed: &mut u64, last: u64, number: u64) -> u64 {
        let said = std::mem::take(missed);
        assert_eq!(said, number - last - 1, "before {number}");
        said
    }
    for number in 1..=20_000 {
        bench.tell_rules(number, number);
    }
    bench.hub.close();
    for listener in listeners {
        let (got, last) = listener.join().unwrap();
        assert_eq!(last, 20_000);
        assert!(got > 0);
    }
}
