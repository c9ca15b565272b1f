//! What stands on the disk: records of alerts, blocks and their summaries, entries of the audit trail, spooled alerts, and
//! whole stores of such. Each is read or refused; what is read and written again is the same; pages of damaged stores
//! have an end. The first byte says which it is.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebpfsentinel::alert::sinks::Sink;
use ebpfsentinel::alert::sinks::spool::{RECORD_MAX, Spool};
use ebpfsentinel::alert::{Alert, AlertId, Severity, Suppression};
use ebpfsentinel::audit::chain::{Head, Link};
use ebpfsentinel::audit::store::{AuditStore, Filter, Record, decoded};
use ebpfsentinel::audit::{self, Actor, Auditor, Entry, changes};
use ebpfsentinel::component::Component;
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::store::alerts::{self, AlertStore, Mark, Question};
use ebpfsentinel::store::block::{Block, ROWS_MAX, Row, Summary, Wanted, rows};
use ebpfsentinel::store::db::Db;
use ebpfsentinel::supervise::{Handle, Owned, Supervisor, Thread};
use redb::TableDefinition;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Bytes of a row, and where in it are the severity and what is behind that.
const ROW: usize = 80;
const SEVERITY: usize = 72;
const AGE: Duration = Duration::from_secs(3600);
/// Records that a store may keep; retention takes away what is beyond.
const KEPT_MAX: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

thread_local! {
    static DIRECTORY: tempfile::TempDir = tempfile::tempdir().expect("a directory");
}

pub fn run(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind % 8 {
        0 => block(bytes),
        1 => summary(bytes),
        2 => audit_entry(bytes),
        3 => {
            json::<Mark>(bytes);
            json::<Suppression>(bytes);
        }
        4 => DIRECTORY.with(|directory| spool(&emptied(directory.path()), bytes)),
        5 => DIRECTORY.with(|directory| trail(&emptied(directory.path()), bytes)),
        _ => DIRECTORY.with(|directory| alert_store(&emptied(directory.path()), bytes)),
    }
}

fn emptied(directory: &Path) -> std::path::PathBuf {
    let folder = directory.join("store");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a directory");
    folder
}

fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(read) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&read).expect("it is JSON");
        assert_eq!(serde_json::from_slice::<T>(&written).expect("it is read again"), read);
    }
}

/// A question that differs from the one for everything.
fn asked(change: impl FnOnce(&mut Wanted)) -> Wanted {
    let mut wanted = Wanted::default();
    change(&mut wanted);
    wanted
}

fn questions(row: Option<&Row>) -> Vec<Wanted> {
    let network = |text: &str| Wanted::default().of_network(text.parse().expect("a network"));
    let mut all = vec![
        Wanted::default(),
        Wanted::default().of_rule("r"),
        network("0.0.0.0/0"),
        network("::/0"),
        network("192.0.2.1/32"),
        asked(|wanted| wanted.component = Some(Component::L7)),
        asked(|wanted| wanted.min_severity = Some(Severity::High)),
        asked(|wanted| wanted.marked = Some(true)),
        asked(|wanted| wanted.marked = Some(false)),
    ];
    if let Some(row) = row {
        all.push(asked(|wanted| wanted.from_ns = Some(row.last_ns)));
        all.push(asked(|wanted| wanted.to_ns = Some(row.first_ns)));
        all.push(asked(|wanted| (wanted.before, wanted.component) = (Some(row.id), Some(Component::Firewall))));
    }
    all
}

fn block(bytes: &[u8]) {
    let read: Option<Vec<Row>> = rows(bytes).map(Iterator::collect);
    let Some(block) = Block::decode(bytes) else {
        assert_eq!(read, None);
        return;
    };
    assert_eq!(read.as_deref(), Some(block.rows()));
    assert_eq!(block.rows().len() * ROW, bytes.len());
    assert_eq!(Block::decode(&block.encode()), Some(block.clone()));
    assert_eq!(Summary::decode(&block.summary().encode()), Some(block.summary()));
    // Any rows that an alert may have make blocks in which a question passes none that it wants.
    let mut sound = bytes.to_vec();
    for row in sound.as_chunks_mut::<ROW>().0 {
        row[SEVERITY] &= 3;
        row[SEVERITY + 1] &= 15;
        if row[56..64] > row[64..72] {
            row.copy_within(56..64, 64);
        }
    }
    let mut block = Block::default();
    let mut ids = BTreeSet::new();
    for row in rows(&sound).expect("they are whole") {
        let (is_new, upper) = block.put(row);
        assert_eq!(is_new, ids.insert(row.id));
        assert!(block.rows().len() <= ROWS_MAX);
        if let Some(upper) = upper {
            upper.rows().iter().for_each(|row| assert!(ids.remove(&row.id)));
        }
    }
    assert!(block.rows().iter().map(|row| row.id).eq(ids));
    let summary = block.summary();
    assert_eq!(summary.count(), block.rows().len() as u64);
    for wanted in questions(block.rows().first()) {
        let count = block.rows().iter().filter(|row| wanted.fits(row)).count() as u64;
        assert!(count == 0 || wanted.may_be_in(&summary), "{wanted:?} {block:?}");
        assert!(wanted.count_in(&summary).is_none_or(|told| told == count), "{wanted:?} {block:?}");
    }
}

fn summary(bytes: &[u8]) {
    let Some(summary) = Summary::decode(bytes) else { return };
    assert_eq!(summary.encode(), bytes);
    for wanted in questions(None) {
        wanted.may_be_in(&summary);
        wanted.count_in(&summary);
    }
}

/// Numbers with fractions are read to the last digit but one.
fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_fraction),
        Value::Object(map) => map.values().any(has_fraction),
        _ => false,
    }
}

fn audit_entry(bytes: &[u8]) {
    let Some(record) = decoded(bytes) else { return };
    let sides = [record.before.as_ref(), record.after.as_ref()];
    let found = changes(sides[0], sides[1]);
    assert_eq!(found.is_empty(), sides[0].unwrap_or(&Value::Null) == sides[1].unwrap_or(&Value::Null));
    if !sides.into_iter().flatten().any(has_fraction) {
        let text = serde_json::to_vec(&Record { hash: String::new(), ..record.clone() }).expect("it is JSON");
        assert_eq!(decoded(&[&bytes[..32], &text].concat()).expect("it is read again"), record);
    }
}

/// Takes numbers and texts from the front of bytes; zeros where there are none left.
struct Steps<'b>(&'b [u8]);

impl<'b> Steps<'b> {
    fn take(&mut self, length: usize) -> &'b [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    /// Small, or close to the largest but one: what lies between is all the same.
    fn number(&mut self) -> u64 {
        match self.byte() {
            near @ 0xf8.. => u64::MAX - 1 - u64::from(near & 7),
            near => near.into(),
        }
    }

    fn text(&mut self) -> &'b [u8] {
        let length = usize::from(self.byte()) << 8 | usize::from(self.byte());
        self.take(length)
    }
}

/// A segment of records, some of them broken, and a cursor: what is whole is read up to the first that is not.
fn spool(folder: &Path, bytes: &[u8]) {
    let mut steps = Steps(bytes);
    let (number, offset) = (steps.number(), steps.number());
    let mut cursor = [number.to_le_bytes(), offset.to_le_bytes()].concat();
    cursor.extend((crc32fast::hash(&cursor) ^ u32::from(steps.byte() == 9)).to_le_bytes());
    fs::write(folder.join("cursor"), cursor).expect("writing");
    let mut segment = Vec::new();
    let mut whole = Vec::new();
    let mut is_broken = false;
    while !steps.0.is_empty() {
        let (flaw, json) = (steps.byte(), steps.text());
        let length = (json.len() as u32).to_le_bytes();
        let time = u64::from(flaw).to_le_bytes();
        let crc = crc32fast::hash(&[&length[..], &time, json].concat()) ^ u32::from(flaw == 1);
        segment.extend([&length[..], &crc.to_le_bytes(), &time, json].concat());
        if flaw == 2 {
            segment.truncate(segment.len() - 1);
        }
        is_broken |= matches!(flaw, 1 | 2);
        if !is_broken {
            whole.push(json);
        }
    }
    // What is behind a record that lost its end may be anything.
    fs::write(folder.join("0000000000000001.seg"), &segment).expect("writing");
    if number == u64::MAX - 1 {
        fs::write(folder.join("ffffffffffffffff.seg"), &segment).expect("writing");
    }
    for again in 0..2 {
        let spool = Spool::open(folder, 1 << 20, Default::default(), Default::default()).expect("opening");
        assert!(spool.bytes() <= 2 * segment.len() as u64);
        let read = spool.read(usize::MAX >> 1);
        assert!(read.iter().all(|lent| lent.json.len() <= RECORD_MAX));
        if number == 0 && offset == 0 && again == 0 {
            assert!(read.iter().map(|lent| lent.json.as_slice()).eq(whole.iter().copied()));
        }
        spool.append(b"{}", 7).expect("there is room");
        let last = spool.read(usize::MAX >> 1);
        assert!(last.len() == 1 && last[0].json == b"{}", "what was appended is not read");
        read.into_iter().chain(last).for_each(|lent| spool.acknowledge(lent.token));
        assert!(spool.read(1).is_empty());
        assert_eq!(spool.bytes(), 0);
    }
}

struct Running<S, W: Owned> {
    store: S,
    handle: Handle<W>,
    thread: Thread<W>,
    _supervisor: Supervisor,
}

impl<S, W: Owned> Running<S, W> {
    /// Retention and what else comes by the clock.
    fn tick(&self) {
        self.handle.call(|writer| writer.tick(Instant::now() + AGE)).expect("the owner goes on");
    }

    fn stop(self) {
        self.handle.stop().expect("the owner goes on");
        drop(self.thread.join(PATIENCE).expect("the owner ends"));
    }
}

/// Walks pages, each of which says where the next begins: there is a last one.
fn walk(mut page: impl FnMut(Option<u128>) -> Option<u128>, most: usize) {
    let mut before = None;
    for _ in 0..most {
        before = page(before);
        if before.is_none() {
            return;
        }
    }
    panic!("the pages have no end");
}

fn trail(folder: &Path, bytes: &[u8]) {
    const ENTRIES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("entries");
    const HISTORY: TableDefinition<'static, &[u8], u64> = TableDefinition::new("history");
    const ANCHOR: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("anchor");
    let path = folder.join("audit.redb");
    let db = Db::new(path.clone(), "audit", 1);
    db.mend(false).expect("a new file");
    let head = Head::beside(&path);
    let mut steps = Steps(bytes);
    let mut count = 0;
    let written = db.write(|write| {
        let (mut entries, mut history) = (write.open_table(ENTRIES)?, write.open_table(HISTORY)?);
        let mut link = Link::START;
        while !steps.0.is_empty() {
            count += 1;
            match steps.byte() % 6 {
                0 => drop(entries.insert(steps.number(), steps.text())?),
                1 => {
                    let text = steps.text();
                    link = link.next(text);
                    entries.insert(link.seq, [&link.hash.0[..], text].concat().as_slice())?;
                }
                2 => {
                    let number = steps.number();
                    history.insert(&[&[0, 1, b'r'][..], steps.text(), &number.to_be_bytes()].concat()[..], number)?;
                }
                3 => {
                    let anchor = [&steps.number().to_be_bytes()[..], &[0; 32]].concat();
                    write.open_table(ANCHOR)?.insert("removed", anchor.as_slice())?;
                }
                4 => head.write(link).expect("writing"),
                _ => fs::write(head.path(), steps.text()).expect("writing"),
            }
        }
        Ok(())
    });
    written.expect("writing");
    drop(db);
    let metrics = Metrics::new();
    let (supervisor, _failures) = Supervisor::new().expect("a supervisor");
    let limits = audit::store::Limits { age: AGE, count: KEPT_MAX, buffer: 100 };
    let (store, thread) = AuditStore::start(path, limits, &metrics, &supervisor).expect("a thread");
    let running = Running { handle: store.handle().clone(), store, thread, _supervisor: supervisor };
    for _ in 0..2 {
        let is = |text: &str| Some(text.to_owned());
        for filter in [
            Filter::default(),
            Filter { rule_id: is("r"), ..Filter::default() },
            Filter { action: is("rule_added"), from_ns: Some(1 << 40), ..Filter::default() },
        ] {
            let page = |before: Option<u128>| {
                let before = before.map(|before| before as u64);
                let page = running.store.logs(&Filter { before, ..filter.clone() }, 2, 0).ok()?;
                assert!(page.entries.len() <= 2);
                page.next.map(u128::from)
            };
            walk(page, 3 * count + 8);
        }
        drop(running.store.history("r", None, 5));
        drop(running.store.history("r", Some("l7"), 5));
        drop(running.store.verify());
        running.store.record(Entry::new(Actor::config_reload(), "config reload", 200, "once"));
        running.tick();
        running.tick();
    }
    running.stop();
}

fn alert_store(folder: &Path, bytes: &[u8]) {
    const BY_ID: [&str; 4] = ["alerts", "blocks", "summaries", "marks"];
    const SUPPRESSIONS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("suppressions");
    let path = folder.join("alerts.redb");
    let db = Db::new(path.clone(), "alerts", 1);
    db.mend(false).expect("a new file");
    let mut steps = Steps(bytes);
    let mut ids = Vec::new();
    let written = db.write(|write| {
        let by_id = |table: usize| write.open_table(TableDefinition::<u128, &[u8]>::new(BY_ID[table]));
        while !steps.0.is_empty() {
            let kind = steps.byte() % 6;
            let id = u128::from(steps.number());
            ids.push(AlertId(uuid::Uuid::from_u128(id)));
            match kind {
                0..4 => drop(by_id(kind.into())?.insert(id, steps.text())?),
                4 => drop(write.open_table(SUPPRESSIONS)?.insert(id.to_string().as_str(), steps.text())?),
                // A block as it should be, and its summary.
                _ => {
                    let mut block = Block::default();
                    for row in rows(steps.text()).into_iter().flatten() {
                        block.put(row);
                        by_id(0)?.insert(row.id, b"{}".as_slice())?;
                    }
                    let first = block.rows().first().map_or(id, |row| row.id);
                    by_id(1)?.insert(first, block.encode().as_slice())?;
                    by_id(2)?.insert(first, block.summary().encode().as_slice())?;
                }
            }
        }
        Ok(())
    });
    written.expect("writing");
    drop(db);
    let metrics = Metrics::new();
    let (supervisor, _failures) = Supervisor::new().expect("a supervisor");
    let limits = alerts::Limits { age: AGE, count: KEPT_MAX, buffer: 100 };
    let (store, thread) = AlertStore::start(path, limits, &Arc::default(), &metrics, &supervisor).expect("a thread");
    let running = Running { handle: store.handle().clone(), store, thread, _supervisor: supervisor };
    let most = bytes.len() / ROW + ids.len();
    for _ in 0..2 {
        for wanted in questions(None) {
            let text = wanted.marked.is_some().then(|| "a".to_owned());
            let page = |before: Option<u128>| {
                let mut wanted = wanted.clone();
                wanted.before = before;
                let question = Question { wanted, text: text.clone(), limit: 2, offset: 0 };
                let answer = running.store.find(&question).ok()?;
                assert!(answer.alerts.len() <= 2);
                answer.next.map(|id| id.0.as_u128())
            };
            walk(page, 3 * most + 8);
        }
        for id in ids.iter().take(4).copied() {
            drop(running.store.get(id));
            drop(running.store.after(id, 3));
            let mark = Mark { by: "a".into(), at: "t".into(), comment: String::new() };
            drop(running.handle.call(move |writer| writer.mark(id, Some(mark), None)).expect("the owner goes on"));
        }
        let alert = Alert::new(Component::L7, Severity::High, "r", "deny", 7, "m");
        running.store.sink().write(&Arc::new(alert)).expect("there is room");
        running.tick();
        running.tick();
    }
    running.stop();
}
