//! Where the trail is kept: one file, written by the `audit-store` thread, read by anybody.
//!
//! An entry is committed at once when no other waits behind it, else together with those, after
//! [`COMMIT_INTERVAL`] at most. What `kill -9` loses is what was not committed then.

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use prometheus_client::metrics::counter::Counter;
use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::budget::{Budget, WINDOW};
use super::chain::{GENESIS, Hash, Head, Link};
use super::run::{self, Known, Run, Told};
use super::verify::verify;
pub use super::verify::{Removal, Soundness, Verification};
use super::{Action, Actor, Auditor, Change, DETAIL_MAX, Entry, NAME_MAX, any_value, changes, cut, cut_value};
use crate::logging::rfc3339;
use crate::metrics::Metrics;
use crate::store::db::{Db, DbError};
use crate::store::health::{Attempts, Health, Unreadable};
use crate::store::{COMMIT_INTERVAL, existing, now_ns};
use crate::supervise::{Handle, Owned, Supervisor, Thread};

/// Number -> hash and bytes of the entry.
pub(super) const ENTRIES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("entries");
/// Rule, component and version -> number of the entry; see [`history_key`].
pub(super) const HISTORY: TableDefinition<'static, &[u8], u64> = TableDefinition::new("history");
/// What retention took away: `"removed"` -> number and hash of the last entry, `"counts"` -> how many by age and by
/// number.
pub(super) const ANCHOR: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("anchor");

const SCHEMA: u32 = 1;
/// Entries of one commit.
const COMMIT_MAX: usize = 1000;
/// Entries that one pass of retention removes: the thread has other things to do, too.
const REMOVE_MAX: usize = 5000;
/// Entries that one question looks at.
const SCAN_MAX: usize = 50_000;
/// Between looks for what is too old.
const RETENTION_PAUSE: Duration = Duration::from_secs(30);
/// By so much more than their age entries are let grow older, so that not every one that becomes too old has a pass of
/// retention, and that pass its entry.
const AGE_STEP: Duration = Duration::from_secs(3600);
/// What [`Unreadable`] calls what cannot be read.
const ENTRY: &str = "unreadable_entry";
/// Between lines of the log that name the chain's end.
const HEAD_PAUSE: Duration = Duration::from_secs(3600);
/// How long whoever makes an entry waits for room in the queue. Losing one is worse.
const SENDER_PATIENCE: Duration = Duration::from_millis(250);
/// How far the clock may have been set back: that much earlier than asked for, entries are still looked at.
const CLOCK_STEP_NS: u64 = 86_400_000_000_000;

/// The name of entries that the trail makes about itself.
const TRAIL: &str = "audit trail";

/// An entry as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Its number; they go up by one.
    pub seq: u64,
    /// When, RFC 3339.
    pub timestamp: String,
    /// The same in nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// What sort of thing was done.
    pub action: Action,
    /// The operation, by the words of its command.
    pub operation: String,
    /// Of which component.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub component: Option<String>,
    /// The rule that it was about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule_id: Option<String>,
    /// Which version of the rule that made, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<u64>,
    /// Who did it.
    pub actor: String,
    /// The role that it had; empty for none.
    pub role: String,
    /// Where it called from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<String>,
    /// How it said who it is.
    pub method: String,
    /// The HTTP status that was answered.
    pub outcome: u16,
    /// What there was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(schema_with = "any_value")]
    pub before: Option<Value>,
    /// What there is now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schemars(schema_with = "any_value")]
    pub after: Option<Value>,
    /// For people.
    pub detail: String,
    /// SHA-256 of the entry and the one before, in hexadecimal. Not part of what is hashed.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub hash: String,
}

impl Record {
    fn new(entry: Entry, seq: u64, version: Option<u64>) -> Record {
        Record {
            seq,
            timestamp: rfc3339(entry.time_ns),
            timestamp_ns: entry.time_ns,
            action: if entry.operation == TRAIL { Action::Trail } else { entry.action() },
            component: entry.component.map(|component| component.name().to_owned()),
            rule_id: entry.rule.as_deref().map(|rule| cut(rule, NAME_MAX)),
            version,
            operation: cut(&entry.operation, NAME_MAX),
            actor: cut(&entry.actor.name, NAME_MAX),
            role: entry.actor.role,
            address: entry.actor.address.map(|address| address.to_string()),
            method: entry.actor.method,
            outcome: entry.outcome,
            before: entry.before.map(cut_value),
            after: entry.after.map(cut_value),
            detail: cut(&entry.detail, DETAIL_MAX),
            hash: String::new(),
        }
    }

    /// Whether retention says with it what it has removed.
    pub(super) fn is_of_retention(&self) -> bool {
        self.action == Action::Trail && self.after.is_some()
    }

    /// Whether this is a version of a rule.
    pub(super) fn rule(&self) -> Option<(&str, &str)> {
        let is_version = matches!(self.action, Action::RuleAdded | Action::RuleUpdated | Action::RuleRemoved);
        Some((self.rule_id.as_deref()?, self.component.as_deref().unwrap_or_default())).filter(|_| is_version)
    }
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Not before this, in nanoseconds since 1970.
    pub from_ns: Option<u64>,
    /// Before this.
    pub to_ns: Option<u64>,
    /// Of this component.
    pub component: Option<String>,
    /// Of this sort.
    pub action: Option<String>,
    /// About this rule.
    pub rule_id: Option<String>,
    /// By this actor.
    pub actor: Option<String>,
    /// With a lower number than this.
    pub before: Option<u64>,
}

impl Filter {
    fn wants(&self, record: &Record) -> bool {
        let is = |wish: &Option<String>, value: Option<&str>| wish.is_none() || wish.as_deref() == value;
        self.from_ns.is_none_or(|from| record.timestamp_ns >= from)
            && self.to_ns.is_none_or(|to| record.timestamp_ns < to)
            && is(&self.component, record.component.as_deref())
            && is(&self.action, Some(record.action.name()))
            && is(&self.rule_id, record.rule_id.as_deref())
            && is(&self.actor, Some(&record.actor))
    }

    fn is_everything(&self) -> bool {
        let Filter { from_ns, to_ns, component, action, rule_id, actor, before: _ } = self;
        from_ns.is_none() && to_ns.is_none() && [component, action, rule_id, actor].iter().all(|wish| wish.is_none())
    }
}

/// Some entries, the newest first.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct LogPage {
    /// The entries.
    pub entries: Vec<Record>,
    /// Entries that the filter wants, as far as `total_is_exact` says.
    pub total: u64,
    /// False where not all entries were looked at; there may be more then.
    pub total_is_exact: bool,
    /// Most entries in an answer.
    pub limit: u32,
    /// Entries that were skipped.
    pub offset: u32,
    /// Ask with `before` set to this for those that follow; `null`: none do.
    pub next: Option<u64>,
}

/// A version of a rule.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Version {
    /// From 1.
    pub version: u64,
    /// When, RFC 3339.
    pub timestamp: String,
    /// The same in nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// Of which component.
    pub component: String,
    /// `rule_added`, `rule_updated` or `rule_removed`.
    pub action: Action,
    /// The operation, by the words of its command.
    pub operation: String,
    /// Who did it.
    pub actor: String,
    /// The rule as it was; `null`: it was not there.
    #[schemars(schema_with = "any_value")]
    pub before: Option<Value>,
    /// The rule as it is; `null`: it is no more.
    #[schemars(schema_with = "any_value")]
    pub after: Option<Value>,
    /// The keys that differ.
    pub changes: Vec<Change>,
    /// Number of the entry in the trail.
    pub seq: u64,
}

/// The history of a rule, the newest version first.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct History {
    /// The rule.
    pub rule_id: String,
    /// Its versions; of all components where several have a rule of that id.
    pub entries: Vec<Version>,
    /// Versions that are kept.
    pub total: u64,
}

/// What the store is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How old an entry may get.
    pub age: Duration,
    /// How many there may be.
    pub count: u64,
    /// How many may wait.
    pub buffer: usize,
}

/// The trail.
#[derive(Clone)]
pub struct AuditStore {
    db: Arc<Db>,
    head: Head,
    health: Arc<Health>,
    queue: Sender<Entry>,
    handle: Handle<Writer>,
    lost: Counter,
    /// Lost since the owner last wrote how many.
    unheard: Arc<AtomicU64>,
    told: Arc<Told>,
    unreadable: Arc<Unreadable>,
    verifying: Arc<AtomicBool>,
}

impl AuditStore {
    /// Starts the thread of the trail at `path`, which opens it, or begins one. Nobody waits for that: until then, and
    /// while a file cannot be opened, [`AuditStore::health`] says so, entries wait in the queue, and readers are told
    /// that it is not open.
    pub fn start(
        path: PathBuf,
        limits: Limits,
        metrics: &Arc<Metrics>,
        supervisor: &Supervisor,
    ) -> std::io::Result<(AuditStore, Thread<Writer>)> {
        let db = Arc::new(Db::new(path, "audit", SCHEMA));
        let head = Head::beside(db.path());
        let health = Arc::new(Health::default());
        let unheard = Arc::<AtomicU64>::default();
        let told = Arc::<Told>::default();
        let unreadable = Arc::new(Unreadable::new("audit trail", "audit", &health, metrics));
        let (queue, entries) = bounded(limits.buffer);
        let writer = Writer {
            budget: Budget::default(),
            withheld: metrics.events_lost("audit", "attempts"),
            unreadable: unreadable.clone(),
            db: db.clone(),
            head: head.clone(),
            health: health.clone(),
            queue: entries.clone(),
            limits,
            pending: Vec::new(),
            link: None,
            promised: None,
            told: told.clone(),
            run: None,
            config: None,
            untold: Vec::new(),
            lost_now: 0,
            unheard: unheard.clone(),
            unheard_now: 0,
            lost: metrics.events_lost("audit", "disk"),
            written: metrics.store_records("audit"),
            attempts: Attempts::new("the audit trail", &health, metrics.store_failures("audit")),
            retention_at: Instant::now(),
            head_told_at: Instant::now(),
        };
        let (handle, thread) = supervisor.spawn_owner("audit-store", writer, entries)?;
        let lost = metrics.events_lost("audit", "full");
        let verifying = Arc::default();
        Ok((AuditStore { db, head, health, queue, handle, lost, unheard, told, unreadable, verifying }, thread))
    }

    /// What is wrong with it, for readiness.
    pub fn health(&self) -> Vec<String> {
        self.health.reasons()
    }

    /// Tells of a run that begins: an entry of its start, and one of each rule, and of the keys, that are other than in
    /// the run before. Waits for nothing.
    pub fn begin_run(&self, run: Run) {
        self.told.change(|waiting| waiting.run = Some(run));
    }

    /// Another configuration is in force, secrets masked: the next run is compared with it. That it changed is for who
    /// changed it to record.
    pub fn configured(&self, config: Value) {
        self.told.change(|waiting| waiting.config = Some(config));
    }

    /// The owner's handle, to stop it.
    pub fn handle(&self) -> &Handle<Writer> {
        &self.handle
    }

    /// Entries that a filter wants, the newest first.
    pub fn logs(&self, filter: &Filter, limit: u32, offset: u32) -> Result<LogPage, DbError> {
        self.db.read(|read| {
            let mut page = LogPage { entries: Vec::new(), total: 0, total_is_exact: true, limit, offset, next: None };
            let Some(table) = existing(read.open_table(ENTRIES))? else { return Ok(page) };
            let end = filter.before.map_or(Bound::Unbounded, Bound::Excluded);
            let counts_by_itself = filter.is_everything();
            for (scanned, item) in table.range((Bound::Unbounded, end))?.rev().enumerate() {
                let (seq, value) = item?;
                let full = page.entries.len() == limit as usize;
                if scanned == SCAN_MAX || (full && counts_by_itself) {
                    page.total_is_exact = counts_by_itself;
                    page.next = page.next.or(Some(seq.value() + 1));
                    break;
                }
                let Some(record) = decoded(value.value()) else {
                    self.unreadable.skip(ENTRY, seq.value());
                    continue;
                };
                if filter.from_ns.is_some_and(|from| record.timestamp_ns.saturating_add(CLOCK_STEP_NS) < from) {
                    break;
                }
                if !filter.wants(&record) {
                    continue;
                }
                page.total += 1;
                if full {
                    page.next = page.next.or(Some(seq.value() + 1));
                } else if page.total > u64::from(offset) {
                    page.entries.push(record);
                }
            }
            if counts_by_itself {
                let first = table.first()?.map_or(0, |(seq, _)| seq.value());
                let last = table.last()?.map_or(0, |(seq, _)| seq.value());
                let last = filter.before.map_or(last, |before| last.min(before.saturating_sub(1)));
                page.total = if first == 0 { 0 } else { (last + 1).saturating_sub(first) };
            }
            Ok(page)
        })
    }

    /// The versions of a rule, the newest first.
    pub fn history(&self, rule: &str, component: Option<&str>, limit: usize) -> Result<History, DbError> {
        self.db.read(|read| {
            let mut found = History { rule_id: rule.to_owned(), entries: Vec::new(), total: 0 };
            let Some(history) = existing(read.open_table(HISTORY))? else { return Ok(found) };
            let entries = read.open_table(ENTRIES)?;
            let prefix = rule_prefix(rule);
            let mut numbers = Vec::new();
            for item in history.range(prefix.as_slice()..)? {
                let (key, seq) = item?;
                let Some(rest) = key.value().strip_prefix(prefix.as_slice()) else { break };
                let of = rest.get(..rest.len().saturating_sub(8)).unwrap_or_default();
                if component.is_none_or(|wanted| wanted.as_bytes() == of) {
                    numbers.push(seq.value());
                }
            }
            numbers.sort_unstable();
            found.total = numbers.len() as u64;
            for seq in numbers.into_iter().rev() {
                if found.entries.len() == limit {
                    break;
                }
                let Some(record) = entries.get(seq)?.and_then(|value| decoded(value.value())) else {
                    self.unreadable.skip(ENTRY, seq);
                    continue;
                };
                found.entries.push(Version {
                    version: record.version.unwrap_or_default(),
                    timestamp: record.timestamp,
                    timestamp_ns: record.timestamp_ns,
                    component: record.component.unwrap_or_default(),
                    action: record.action,
                    operation: record.operation,
                    actor: record.actor,
                    changes: changes(record.before.as_ref(), record.after.as_ref()),
                    before: record.before,
                    after: record.after,
                    seq,
                });
            }
            Ok(found)
        })
    }

    /// Looks at every entry. `None` while another verification is under way: it reads the whole file.
    pub fn verify(&self) -> Option<Result<Verification, DbError>> {
        if self.verifying.swap(true, Ordering::AcqRel) {
            return None;
        }
        // Before the entries: the file may be behind them, never ahead.
        let head = self.head.read();
        let result = self.db.read(|read| verify(read, &head));
        self.verifying.store(false, Ordering::Release);
        Some(result)
    }
}

impl Auditor for AuditStore {
    fn record(&self, entry: Entry) {
        let sent = match self.health.is_failing() {
            true => self.queue.try_send(entry).is_ok(),
            false => self.queue.send_timeout(entry, SENDER_PATIENCE).is_ok(),
        };
        if !sent {
            self.lost.inc();
            self.unheard.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The parts of a kept entry. One that is too short for a hash is none that was written, and fits nowhere in the chain.
pub(super) fn split(value: &[u8]) -> (Hash, &[u8]) {
    value.split_first_chunk().map_or((GENESIS, &[]), |(hash, bytes)| (Hash(*hash), bytes))
}

/// An entry from the bytes that are kept: its hash, and itself as JSON; `None` where the bytes are none.
pub fn decoded(value: &[u8]) -> Option<Record> {
    let (hash, bytes) = split(value);
    let record: Record = serde_json::from_slice(bytes).ok()?;
    Some(Record { hash: hash.to_string(), ..record })
}

/// The rule's length and the rule: no rule's keys begin as another's do.
fn rule_prefix(rule: &str) -> Vec<u8> {
    let rule = cut(rule, NAME_MAX);
    let mut key = (rule.len() as u16).to_be_bytes().to_vec();
    key.extend(rule.as_bytes());
    key
}

/// Rule, component, and the version as eight bytes.
pub(super) fn history_key(rule: &str, component: &str, version: u64) -> Vec<u8> {
    let mut key = rule_prefix(rule);
    key.extend(component.as_bytes());
    key.extend(version.to_be_bytes());
    key
}

fn link_bytes(link: Link) -> Vec<u8> {
    [link.seq.to_be_bytes().as_slice(), &link.hash.0].concat()
}

fn link_of(bytes: &[u8]) -> Option<Link> {
    let (seq, hash) = bytes.split_first_chunk()?;
    Some(Link { seq: u64::from_be_bytes(*seq), hash: Hash(hash.try_into().ok()?) })
}

/// What retention has removed since the trail was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Removed {
    /// The last entry of it.
    pub link: Link,
    /// Entries that had become too old.
    pub by_age: u64,
    /// Entries that had become too many.
    pub by_count: u64,
}

impl Removed {
    const NOTHING: Removed = Removed { link: Link::START, by_age: 0, by_count: 0 };

    /// As the file says it beside the chain; `None`: nothing was removed.
    pub fn read(anchor: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Option<Removed>, DbError> {
        let Some(link) = anchor.get("removed")?.and_then(|value| link_of(value.value())) else { return Ok(None) };
        let counts = anchor.get("counts")?;
        let counts = counts.as_ref().map_or(&[][..], |value| value.value());
        let count = |at: usize| counts.as_chunks::<8>().0.get(at).map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Ok(Some(Removed { link, by_age: count(0), by_count: count(1) }))
    }

    fn write(&self, anchor: &mut redb::Table<'_, &'static str, &'static [u8]>) -> Result<(), DbError> {
        anchor.insert("removed", link_bytes(self.link).as_slice())?;
        let counts = [self.by_age.to_be_bytes(), self.by_count.to_be_bytes()].concat();
        anchor.insert("counts", counts.as_slice())?;
        Ok(())
    }

    /// As the entry that retention leaves in the chain says it.
    fn value(&self) -> Value {
        let Removed { link, by_age, by_count } = self;
        json!({"seq": link.seq, "hash": link.hash.to_string(), "by_age": by_age, "by_count": by_count})
    }

    /// Whether an entry of the chain says the same.
    pub fn is_told_by(&self, told: &Value) -> bool {
        let count = |name: &str| told[name].as_u64().unwrap_or_default();
        told["seq"] == self.link.seq
            && told["hash"] == self.link.hash.to_string()
            && (count("by_age"), count("by_count")) == (self.by_age, self.by_count)
    }
}

/// The owner of the file.
pub struct Writer {
    budget: Budget,
    withheld: Counter,
    unreadable: Arc<Unreadable>,
    db: Arc<Db>,
    head: Head,
    health: Arc<Health>,
    /// To see whether more entries wait.
    queue: Receiver<Entry>,
    limits: Limits,
    pending: Vec<Entry>,
    /// The last entry; `None` while the file is not open.
    link: Option<Link>,
    /// What the last commit was, had it gone well. It may have, though it was said to have failed.
    promised: Option<Promised>,
    /// What the agent tells of the configuration.
    told: Arc<Told>,
    /// The run that begins, until the file says what was before.
    run: Option<Run>,
    /// The configuration that is to be kept with the next commit.
    config: Option<Value>,
    /// What happened to the file and is not written into it yet.
    untold: Vec<String>,
    /// Lost since the disk failed.
    lost_now: u64,
    /// Lost by who had no room in the queue; see [`AuditStore::unheard`].
    unheard: Arc<AtomicU64>,
    /// Of those, what was taken over to be written.
    unheard_now: u64,
    lost: Counter,
    written: Counter,
    attempts: Attempts,
    retention_at: Instant,
    head_told_at: Instant,
}

/// A commit of the trail.
struct Promised {
    /// The last entry then.
    link: Link,
    /// How many of the waiting ones were in it.
    count: usize,
    /// Whether the trail's entries about itself were, and the configuration.
    told: bool,
}

impl Owned for Writer {
    type Event = Entry;

    const TICK: Duration = COMMIT_INTERVAL;

    fn begin(&mut self, now: Instant) {
        self.commit(now);
    }

    fn event(&mut self, entry: Entry, now: Instant) {
        if !self.budget.admit(&entry, now) {
            self.withheld.inc();
            return;
        }
        self.take(entry);
        if self.pending.len() >= COMMIT_MAX || self.queue.is_empty() {
            self.commit(now);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.budget.summaries(now).into_iter().for_each(|entry| self.take(entry));
        self.commit(now);
        // Also while nothing can be written, which it may put an end to.
        if now >= self.retention_at {
            let more = self.apply_retention();
            self.retention_at = now + if more { COMMIT_INTERVAL } else { RETENTION_PAUSE };
        }
        if now >= self.head_told_at + HEAD_PAUSE {
            self.tell_head();
            self.head_told_at = now;
        }
    }

    fn finish(&mut self, now: Instant) {
        self.budget.summaries(now + WINDOW).into_iter().for_each(|entry| self.take(entry));
        self.attempts.hurry();
        self.commit(now);
        self.lost.inc_by(self.pending.len() as u64);
        self.tell_head();
    }
}

impl Writer {
    /// Other limits, at a reload; room for waiting entries stays what it was.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = Limits { buffer: self.limits.buffer, ..limits };
        self.retention_at = Instant::now();
    }

    /// Lets an entry wait for the next commit, if there is room.
    fn take(&mut self, entry: Entry) {
        if self.pending.len() < self.limits.buffer.max(COMMIT_MAX) {
            self.pending.push(entry);
        } else {
            self.lost_now += 1;
            self.lost.inc();
        }
    }

    fn tell_head(&self) {
        if let Some(link) = self.link.filter(|link| link.seq > 0) {
            log::info!(seq = link.seq, hash = link.hash.to_string().as_str(); "audit trail ends at entry {}, {}", link.seq, link.hash);
        }
    }

    /// Writes what waits, unless it failed a moment ago.
    fn commit(&mut self, now: Instant) {
        if !self.attempts.may(now) {
            return;
        }
        let result = self.try_commit();
        self.attempts.note(&result, now);
        if result.is_err_and(|error| !matches!(error, DbError::NoRoom(_))) {
            self.reopen();
        }
    }

    /// After an error of the disk, at once, for the readers; else with the next attempt.
    fn reopen(&mut self) {
        self.link = None;
        if let Err(error) = self.open() {
            log::debug!("{:?}: opening anew: {error}", self.db);
        }
    }

    fn try_commit(&mut self) -> Result<(), DbError> {
        if self.link.is_none() || self.db.is_suspect() {
            self.open()?;
        }
        self.hear()?;
        loop {
            let count = self.pending.len().min(COMMIT_MAX);
            let is_last = count == self.pending.len();
            let about = if is_last { self.about_itself() } else { (Vec::new(), Vec::new()) };
            if count == 0 && about.0.is_empty() && about.1.is_empty() && self.config.is_none() {
                return Ok(());
            }
            self.append(count, about, is_last)?;
        }
    }

    /// Takes over what the agent tells of the configuration. The first entries of a run come before all others of it.
    fn hear(&mut self) -> Result<(), DbError> {
        let run::Waiting { run, config } = self.told.take();
        self.run = run.or(self.run.take());
        self.config = config.or(self.config.take());
        if let Some(run) = &self.run {
            let entries = self.db.read(Known::read)?.entries(run);
            self.config.get_or_insert_with(|| run.config.clone());
            self.run = None;
            // As many as there are rules: that they are more than may wait is no reason to lose one.
            self.pending.splice(..0, entries);
        }
        Ok(())
    }

    /// What the trail has to say about itself, before the entries that wait and after them.
    fn about_itself(&mut self) -> (Vec<Entry>, Vec<Entry>) {
        self.unheard_now += self.unheard.swap(0, Ordering::Relaxed);
        let untold = self.untold.iter().map(|text| trail(text.clone(), None)).collect();
        let causes =
            [(self.lost_now, "the disk could not be written"), (self.unheard_now, "there was no room in the queue")];
        let lost = causes.into_iter().filter(|(count, _)| *count > 0);
        (untold, lost.map(|(count, why)| trail(format!("{count} entries were lost, as {why}"), None)).collect())
    }

    fn was_told(&mut self) {
        (self.lost_now, self.unheard_now) = (0, 0);
        self.config = None;
        self.untold.clear();
    }

    /// Commits the first `count` entries that wait, with those `about` the trail itself.
    fn append(&mut self, count: usize, about: (Vec<Entry>, Vec<Entry>), told: bool) -> Result<(), DbError> {
        let link = self.link.ok_or(DbError::Closed)?;
        let waiting = self.pending[..count].iter().cloned();
        let entries: Vec<Entry> = about.0.into_iter().chain(waiting).chain(about.1).collect();
        let promised = &mut self.promised;
        let config = self.config.as_ref().filter(|_| told);
        let written = self.db.write(|write| {
            let link = put(write, link, entries)?;
            config.map_or(Ok(()), |config| run::keep(write, config))?;
            *promised = Some(Promised { link, count, told });
            Ok(link)
        })?;
        self.committed(written, count);
        if told {
            self.was_told();
        }
        Ok(())
    }

    fn committed(&mut self, link: Link, count: usize) {
        self.promised = None;
        self.written.inc_by(self.link.map_or(0, |before| link.seq.saturating_sub(before.seq)));
        self.link = Some(link);
        self.pending.drain(..count);
        if let Err(error) = self.head.write(link) {
            log::warn!("writing {}: {error}", self.head.path().display());
        }
    }

    /// Opens the file, or opens it anew, and finds where it ends.
    fn open(&mut self) -> Result<(), DbError> {
        let told = self.db.mend(self.db.is_suspect())?;
        let link = self.db.read(|read| {
            let removed = match existing(read.open_table(ANCHOR))? {
                Some(table) => Removed::read(&table)?.map(|removed| removed.link),
                None => None,
            };
            let last = match existing(read.open_table(ENTRIES))? {
                Some(table) => {
                    table.last()?.map(|(seq, value)| Link { seq: seq.value(), hash: split(value.value()).0 })
                }
                None => None,
            };
            let head = self.head.read();
            let said = match &head {
                Ok(Some(head)) if Some(*head) == last || Some(*head) == removed => None,
                Ok(Some(head)) => match existing(read.open_table(ENTRIES))? {
                    Some(table) => match table.get(head.seq)? {
                        Some(value) if split(value.value()).0 == head.hash => None,
                        _ => Some(format!(
                            "the head file says entry {}, {}; the store does not have it",
                            head.seq, head.hash
                        )),
                    },
                    None => Some(format!("the head file says entry {}, {}; the store is empty", head.seq, head.hash)),
                },
                Ok(None) if last.is_some() => Some("the head file was missing".to_owned()),
                Ok(None) => None,
                Err(error) => Some(format!("the head file could not be read: {error}")),
            };
            Ok((last.or(removed).unwrap_or(Link::START), said))
        });
        let (link, said) = link?;
        if let Some(promised) = self.promised.take()
            && promised.link == link
        {
            // The commit that was said to have failed did not.
            self.pending.drain(..promised.count.min(self.pending.len()));
            if promised.told {
                self.was_told();
            }
        }
        self.link = Some(link);
        for text in told.into_iter().chain(said) {
            log::error!("audit trail: {text}");
            self.health.look_at(format!("audit trail: {text}; see audit verify"));
            // With the next commit that goes well.
            if !self.untold.contains(&text) {
                self.untold.push(text);
            }
        }
        Ok(())
    }

    /// Removes what is too old and what is too much, so many at a time. True if there may be more.
    ///
    /// Each pass leaves an entry. So it comes seldom, and not for the entries of passes before: else they would go
    /// round.
    fn apply_retention(&mut self) -> bool {
        let Some(link) = self.link else { return false };
        let (age, count_max) = (self.limits.age, self.limits.count);
        let cutoff = now_ns().saturating_sub(age.as_nanos() as u64);
        let due_at = cutoff.saturating_sub(AGE_STEP.min(age / 24).as_nanos() as u64);
        // A look that writes nothing first.
        let due = self.db.read(|read| {
            let Some(table) = existing(read.open_table(ENTRIES))? else { return Ok(None) };
            let entries = table.len()?;
            let is_due = entries > count_max || oldest_ns(&table)?.is_some_and(|oldest| oldest < due_at);
            Ok(is_due.then_some(entries))
        });
        let entries = match due {
            Ok(Some(entries)) => entries,
            Ok(None) => {
                self.compact();
                return false;
            }
            Err(error) => {
                log::warn!("{:?}: looking for old entries: {error}", self.db);
                return false;
            }
        };
        let slack = if entries > count_max { (count_max / 100).min(REMOVE_MAX as u64) } else { 0 };
        let removed = self.db.remove(|write| {
            let before = Removed::read(&write.open_table(ANCHOR)?)?.unwrap_or(Removed::NOTHING);
            let removed = remove(write, before, cutoff, count_max.saturating_sub(slack), &self.unreadable)?;
            let (by_age, by_count) = (removed.by_age - before.by_age, removed.by_count - before.by_count);
            let count = by_age + by_count;
            if count == 0 {
                return Ok((link, 0));
            }
            removed.write(&mut write.open_table(ANCHOR)?)?;
            let text = format!(
                "retention removed {count} entries, up to number {}: {by_age} by age, {by_count} by number",
                removed.link.seq
            );
            Ok((put(write, link, vec![trail(text, Some(removed.value()))])?, count))
        });
        match removed {
            Ok((link, count)) => {
                self.db.note_removed(count, entries.saturating_sub(count));
                self.committed(link, 0);
                // On a full disk, to give it back.
                count == REMOVE_MAX as u64 || (count > 0 && self.attempts.failed())
            }
            Err(error) => {
                log::warn!("{:?}: removing old entries: {error}", self.db);
                self.reopen();
                false
            }
        }
    }

    /// What retention took away is given back to the disk when nothing else is to be done, or nothing else can be.
    fn compact(&mut self) {
        if !(self.pending.is_empty() && self.queue.is_empty() || self.attempts.failed()) {
            return;
        }
        match self.db.compact() {
            Ok(true) => log::info!("{:?}: compacted", self.db),
            Ok(false) => {}
            Err(error) => {
                log::warn!("{:?}: compacting: {error}", self.db);
                self.reopen();
            }
        }
    }
}

/// When the oldest entry was made that is not retention's own.
fn oldest_ns(table: &impl ReadableTable<u64, &'static [u8]>) -> Result<Option<u64>, DbError> {
    for item in table.iter()?.take(SCAN_MAX) {
        let record = decoded(item?.1.value());
        if let Some(record) = record.filter(|record| !record.is_of_retention()) {
            return Ok(Some(record.timestamp_ns));
        }
    }
    Ok(None)
}

/// An entry of the trail about itself.
fn trail(detail: String, after: Option<Value>) -> Entry {
    Entry { after, ..Entry::new(Actor::agent(), TRAIL, 200, detail) }
}

/// Appends entries behind `link`; the answer is the last one's.
fn put(write: &WriteTransaction, mut link: Link, entries: Vec<Entry>) -> Result<Link, DbError> {
    let mut table = write.open_table(ENTRIES)?;
    let mut history = write.open_table(HISTORY)?;
    for entry in entries {
        // A number that wraps would write over the first entries. No trail comes so far by itself.
        let seq = link.seq.checked_add(1).filter(|seq| *seq < u64::MAX);
        let seq = seq.ok_or_else(|| DbError::Damaged(format!("no number is left after {}", link.seq)))?;
        let mut record = Record::new(entry, seq, None);
        if let Some((rule, component)) = record.rule() {
            let (low, high) = (history_key(rule, component, 0), history_key(rule, component, u64::MAX));
            let newest = match history.range(low.as_slice()..=high.as_slice())?.next_back() {
                Some(item) => item?.0.value().last_chunk().map_or(0, |version| u64::from_be_bytes(*version)),
                None => 0,
            };
            let version = newest.saturating_add(1);
            let key = history_key(rule, component, version);
            history.insert(key.as_slice(), seq)?;
            record.version = Some(version);
        }
        let bytes = serde_json::to_vec(&record).map_err(|error| DbError::Disk(format!("an entry: {error}")))?;
        link = link.next(&bytes);
        table.insert(seq, [link.hash.0.as_slice(), &bytes].concat().as_slice())?;
    }
    Ok(link)
}

/// Removes the oldest entries, those before `cutoff` and those beyond `count_max`; what was removed by now.
///
/// One that cannot be read is as old as the next that can.
fn remove(
    write: &WriteTransaction,
    before: Removed,
    cutoff: u64,
    count_max: u64,
    unreadable: &Unreadable,
) -> Result<Removed, DbError> {
    let mut table = write.open_table(ENTRIES)?;
    let mut history = write.open_table(HISTORY)?;
    // One more than is counted here: the entry that tells of it comes on top.
    let mut beyond = (table.len()? + 1).saturating_sub(count_max);
    let (mut going, mut numbers) = (Vec::new(), Vec::new());
    let mut removed = before;
    for item in table.iter()? {
        let (seq, value) = item?;
        let record = decoded(value.value());
        if record.is_none() {
            unreadable.skip(ENTRY, seq.value());
        }
        let is_old = record.as_ref().map(|record| record.timestamp_ns < cutoff);
        if going.len() == REMOVE_MAX || (beyond == 0 && is_old == Some(false)) {
            break;
        }
        going.push((seq.value(), split(value.value()).0, is_old, beyond > 0));
        beyond = beyond.saturating_sub(1);
        if let Some(record) = &record
            && let (Some((rule, component)), Some(version)) = (record.rule(), record.version)
        {
            numbers.push(history_key(rule, component, version));
        }
    }
    // What cannot be read at the end of these is not known to be old.
    while going.last().is_some_and(|(_, _, is_old, is_beyond)| is_old.is_none() && !is_beyond) {
        going.pop();
    }
    let mut has_unreadable = false;
    for (seq, hash, is_old, is_beyond) in going {
        table.remove(seq)?;
        removed.link = Link { seq, hash };
        match is_old.unwrap_or(!is_beyond) {
            true => removed.by_age += 1,
            false => removed.by_count += 1,
        }
        has_unreadable |= is_old.is_none();
    }
    for key in numbers {
        history.remove(key.as_slice())?;
    }
    if has_unreadable {
        // Which versions they were is not known.
        history.retain(|_, seq| seq > removed.link.seq)?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
