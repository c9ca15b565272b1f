//! Where the trail is kept: one file, written by the `audit-store` thread, read by anybody.
//!
//! An entry is committed at once when no other waits behind it, else together with those, after
//! [`COMMIT_INTERVAL`] at most. What `kill -9` loses is what was not committed then.

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use prometheus_client::metrics::counter::Counter;
use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain::{Head, Link};
use super::{Action, Auditor, Change, DETAIL_MAX, Entry, NAME_MAX, any_value, changes, cut, cut_value};
use crate::logging::rfc3339;
use crate::metrics::Metrics;
use crate::store::db::{Db, DbError};
use crate::store::health::{Attempts, Health};
use crate::store::{COMMIT_INTERVAL, existing, now_ns};
use crate::supervise::{Handle, Owned, Supervisor, Thread};

/// Number -> hash and bytes of the entry.
const ENTRIES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("entries");
/// Rule, component and version -> number of the entry; see [`history_key`].
const HISTORY: TableDefinition<'static, &[u8], u64> = TableDefinition::new("history");
/// `"removed"` -> number and hash of the last entry that retention took away.
const ANCHOR: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("anchor");

const SCHEMA: u32 = 1;
/// Entries of one commit.
const COMMIT_MAX: usize = 1000;
/// Entries that one pass of retention removes: the thread has other things to do, too.
const REMOVE_MAX: usize = 5000;
/// Entries that one question looks at.
const SCAN_MAX: usize = 50_000;
/// Between looks for what is too old.
const RETENTION_PAUSE: Duration = Duration::from_secs(30);
/// Between lines of the log that name the chain's end.
const HEAD_PAUSE: Duration = Duration::from_secs(3600);
/// Refused attempts that get an entry of their own in a window; the others of it share one. Else who may not enter could
/// fill the trail, and push out what was done before.
const REFUSALS_MAX: u32 = 100;
const REFUSALS_WINDOW: Duration = Duration::from_secs(60);
/// How long whoever makes an entry waits for room in the queue. Losing one is worse.
const SENDER_PATIENCE: Duration = Duration::from_millis(250);
/// Problems that a verification lists.
const PROBLEMS_MAX: usize = 20;
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

    /// Whether this is a version of a rule.
    fn rule(&self) -> Option<(&str, &str)> {
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

/// How a trail is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Soundness {
    /// Every entry is as it was written, and none is missing.
    Intact,
    /// The entries fit together, but some of them tell that something happened to the trail.
    Incidents,
    /// Entries were changed, removed or put in, or the end is missing.
    Broken,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Verification {
    /// In a word.
    pub status: Soundness,
    /// Entries that were looked at: all.
    pub entries: u64,
    /// Number of the first that is kept; 0 when there is none.
    pub first: u64,
    /// Number of the last.
    pub last: u64,
    /// Its hash. Keep it elsewhere, to compare it some day.
    pub last_hash: String,
    /// What is wrong, at most 20 of it.
    pub problems: Vec<String>,
    /// What happened to the trail and was written into it, at most 20 of it.
    pub incidents: Vec<String>,
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
    verifying: Arc<AtomicBool>,
}

impl AuditStore {
    /// Opens the trail at `path`, or begins one, and starts its thread. A file that cannot be opened is told of by
    /// [`AuditStore::health`] and tried again; it stops nothing.
    pub fn start(
        path: PathBuf,
        limits: Limits,
        metrics: &Metrics,
        supervisor: &Supervisor,
    ) -> std::io::Result<(AuditStore, Thread<Writer>)> {
        let db = Arc::new(Db::new(path, "audit", SCHEMA));
        let head = Head::beside(db.path());
        let health = Arc::new(Health::default());
        let (queue, entries) = bounded(limits.buffer);
        let mut writer = Writer {
            refusals: Refusals::default(),
            db: db.clone(),
            head: head.clone(),
            health: health.clone(),
            queue: entries.clone(),
            limits,
            pending: Vec::new(),
            link: None,
            promised: None,
            lost_now: 0,
            lost: metrics.events_lost("audit", "disk"),
            written: metrics.store_records("audit"),
            attempts: Attempts::new("the audit trail", &health, metrics.store_failures("audit")),
            retention_at: Instant::now(),
            head_told_at: Instant::now(),
        };
        writer.commit(Instant::now());
        let (handle, thread) = supervisor.spawn_owner("audit-store", writer, entries)?;
        let lost = metrics.events_lost("audit", "full");
        Ok((AuditStore { db, head, health, queue, handle, lost, verifying: Arc::default() }, thread))
    }

    /// What is wrong with it, for readiness.
    pub fn health(&self) -> Vec<String> {
        self.health.reasons()
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
                let record = decoded(value.value())?;
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
            for seq in numbers.into_iter().rev().take(limit) {
                let value = entries.get(seq)?;
                let value = value.ok_or_else(|| DbError::Damaged(format!("entry {seq} of a history is missing")))?;
                let record = decoded(value.value())?;
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
        }
    }
}

/// The parts of a kept entry.
fn split(value: &[u8]) -> Result<(super::chain::Hash, &[u8]), DbError> {
    let (hash, bytes) =
        value.split_first_chunk().ok_or_else(|| DbError::Damaged("an entry is too short".to_owned()))?;
    Ok((super::chain::Hash(*hash), bytes))
}

/// An entry from the bytes that are kept: its hash, and itself as JSON.
///
/// # Errors
/// They are none of an entry.
pub fn decoded(value: &[u8]) -> Result<Record, DbError> {
    let (hash, bytes) = split(value)?;
    let record: Record =
        serde_json::from_slice(bytes).map_err(|error| DbError::Damaged(format!("an entry cannot be read: {error}")))?;
    Ok(Record { hash: hash.to_string(), ..record })
}

/// The rule's length and the rule: no rule's keys begin as another's do.
fn rule_prefix(rule: &str) -> Vec<u8> {
    let rule = cut(rule, NAME_MAX);
    let mut key = (rule.len() as u16).to_be_bytes().to_vec();
    key.extend(rule.as_bytes());
    key
}

/// Rule, component, and the version as eight bytes.
fn history_key(rule: &str, component: &str, version: u64) -> Vec<u8> {
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
    Some(Link { seq: u64::from_be_bytes(*seq), hash: super::chain::Hash(hash.try_into().ok()?) })
}

/// What retention took away last, as the file and as the entry that it left say it.
fn removed_value(link: Link) -> Value {
    serde_json::json!({"seq": link.seq, "hash": link.hash.to_string()})
}

fn verify(read: &ReadTransaction, head: &std::io::Result<Option<Link>>) -> Result<Verification, DbError> {
    let mut problems = Vec::new();
    let mut incidents = Vec::new();
    let note = |list: &mut Vec<String>, text: String| {
        if list.len() < PROBLEMS_MAX {
            list.push(text);
        }
    };
    let anchor = match existing(read.open_table(ANCHOR))? {
        Some(table) => table.get("removed")?.and_then(|value| link_of(value.value())),
        None => None,
    };
    let anchor = anchor.unwrap_or(Link::START);
    let (mut link, mut count, mut first) = (anchor, 0, 0);
    let mut removed = None;
    let mut at_head = matches!(head, Ok(Some(head)) if *head == anchor);
    if let Some(table) = existing(read.open_table(ENTRIES))? {
        for item in table.iter()? {
            let (seq, value) = item?;
            let seq = seq.value();
            let (hash, bytes) = split(value.value())?;
            let expected = link.seq.saturating_add(1);
            if seq != expected {
                note(&mut problems, format!("entries {expected} to {} are missing", seq.saturating_sub(1)));
                link.seq = seq.saturating_sub(1);
            }
            let want = link.next(bytes);
            if want.hash != hash {
                note(&mut problems, format!("entry {seq} is not what was written, or what was before it is not"));
            }
            // From what stands there, so that one forged entry is one problem.
            link = Link { seq, hash };
            count += 1;
            first = if first == 0 { seq } else { first };
            at_head |= matches!(head, Ok(Some(head)) if *head == link);
            match decoded(value.value()) {
                Ok(record) if record.seq != seq => {
                    note(&mut problems, format!("entry {seq} calls itself {}", record.seq));
                }
                Ok(record) if record.action == Action::Trail => match record.after {
                    Some(after) => removed = Some(after),
                    None => note(&mut incidents, format!("entry {seq}, {}: {}", record.timestamp, record.detail)),
                },
                Ok(_) => {}
                Err(error) => note(&mut problems, format!("entry {seq}: {error}")),
            }
        }
    }
    if anchor != Link::START && removed != Some(removed_value(anchor)) {
        let text =
            format!("entries up to {} are missing, and retention has not written that it removed them", anchor.seq);
        note(&mut problems, text);
    }
    match head {
        Ok(Some(_)) if at_head => {}
        Ok(Some(head)) if head.seq > link.seq => {
            note(&mut problems, format!("entries {} to {} are missing at the end", link.seq + 1, head.seq));
        }
        Ok(Some(head)) if head.seq <= anchor.seq => {
            note(&mut problems, format!("the head file stands at entry {}, which is no more", head.seq));
        }
        Ok(Some(head)) => note(&mut problems, format!("entry {} is not the one that the head file names", head.seq)),
        Ok(None) if count > 0 => note(&mut problems, "the head file is missing".to_owned()),
        Ok(None) => {}
        Err(error) => note(&mut problems, format!("the head file cannot be read: {error}")),
    }
    let status = match (problems.is_empty(), incidents.is_empty()) {
        (false, _) => Soundness::Broken,
        (true, false) => Soundness::Incidents,
        (true, true) => Soundness::Intact,
    };
    let last_hash = link.hash.to_string();
    Ok(Verification { status, entries: count, first, last: link.seq, last_hash, problems, incidents })
}

/// Refused attempts of a window.
#[derive(Debug, Default)]
struct Refusals {
    end: Option<Instant>,
    told: u32,
    withheld: u64,
    last: String,
}

impl Refusals {
    /// Whether one more gets an entry of its own.
    fn admit(&mut self, entry: &Entry, now: Instant) -> bool {
        self.end.get_or_insert(now + REFUSALS_WINDOW);
        if self.told < REFUSALS_MAX {
            self.told += 1;
            return true;
        }
        self.withheld += 1;
        let address = entry.actor.address.map(|address| format!(" from {address}")).unwrap_or_default();
        self.last = format!("{} by {}{address}", entry.operation, cut(&entry.actor.name, 100));
        false
    }

    /// What the others of a window that is over at `now` share.
    fn summary(&mut self, now: Instant) -> Option<Entry> {
        if self.end.is_none_or(|end| now < end) {
            return None;
        }
        let Refusals { withheld, last, .. } = std::mem::take(self);
        let text = format!("{withheld} more attempts were refused in the same minute, the last one: {last}");
        let actor = super::Actor { name: "agent".to_owned(), ..super::Actor::config_reload() };
        (withheld > 0).then(|| Entry::new(actor, "refused attempts", 429, text))
    }
}

/// The owner of the file.
pub struct Writer {
    refusals: Refusals,
    db: Arc<Db>,
    head: Head,
    health: Arc<Health>,
    /// To see whether more entries wait.
    queue: Receiver<Entry>,
    limits: Limits,
    pending: Vec<Entry>,
    /// The last entry; `None` while the file is not open.
    link: Option<Link>,
    /// What the last entry would be, had the last commit gone well. It may have, though it was said to have failed.
    promised: Option<(Link, usize)>,
    /// Lost since the disk failed.
    lost_now: u64,
    lost: Counter,
    written: Counter,
    attempts: Attempts,
    retention_at: Instant,
    head_told_at: Instant,
}

impl Owned for Writer {
    type Event = Entry;

    const TICK: Duration = COMMIT_INTERVAL;

    fn event(&mut self, entry: Entry, now: Instant) {
        if entry.action() == Action::PolicyViolation && !self.refusals.admit(&entry, now) {
            return;
        }
        if self.pending.len() >= self.limits.buffer.max(COMMIT_MAX) {
            self.lost_now += 1;
            self.lost.inc();
            return;
        }
        self.pending.push(entry);
        if self.pending.len() >= COMMIT_MAX || self.queue.is_empty() {
            self.commit(now);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.pending.extend(self.refusals.summary(now));
        self.commit(now);
        if now >= self.retention_at && !self.attempts.failed() {
            let more = self.apply_retention();
            self.retention_at = now + if more { COMMIT_INTERVAL } else { RETENTION_PAUSE };
        }
        if now >= self.head_told_at + HEAD_PAUSE {
            self.tell_head();
            self.head_told_at = now;
        }
    }

    fn finish(&mut self, now: Instant) {
        self.pending.extend(self.refusals.summary(now + REFUSALS_WINDOW));
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
        if self.pending.is_empty() && self.lost_now == 0 {
            return Ok(());
        }
        while !self.pending.is_empty() || self.lost_now > 0 {
            let count = self.pending.len().min(COMMIT_MAX);
            if self.lost_now > 0 && self.pending.len() <= COMMIT_MAX {
                let text = format!("{} entries were lost, as the disk could not be written", self.lost_now);
                self.append(count, Some(trail(text, None)))?;
                self.lost_now = 0;
            } else {
                self.append(count, None)?;
            }
        }
        Ok(())
    }

    /// Commits the first `count` entries that wait, and one more.
    fn append(&mut self, count: usize, more: Option<Entry>) -> Result<(), DbError> {
        let link = self.link.ok_or(DbError::Closed)?;
        let entries: Vec<Entry> = self.pending[..count].iter().cloned().chain(more).collect();
        let promised = &mut self.promised;
        let written = self.db.write(|write| {
            let link = put(write, link, entries)?;
            *promised = Some((link, count));
            Ok(link)
        })?;
        self.committed(written, count);
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
                Some(table) => table.get("removed")?.and_then(|value| link_of(value.value())),
                None => None,
            };
            let last = match existing(read.open_table(ENTRIES))? {
                Some(table) => table.last()?.map(|(seq, value)| (seq.value(), value.value().to_vec())),
                None => None,
            };
            let last = last.map(|(seq, value)| Ok::<_, DbError>(Link { seq, hash: split(&value)?.0 })).transpose()?;
            let head = self.head.read();
            let said = match &head {
                Ok(Some(head)) if Some(*head) == last || Some(*head) == removed => None,
                Ok(Some(head)) => match existing(read.open_table(ENTRIES))? {
                    Some(table) => match table.get(head.seq)? {
                        Some(value) if split(value.value())?.0 == head.hash => None,
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
        if let Some((promised, count)) = self.promised.take()
            && promised == link
        {
            // The commit that was said to have failed did not.
            self.pending.drain(..count.min(self.pending.len()));
        }
        self.link = Some(link);
        for text in told.into_iter().chain(said) {
            log::error!("audit trail: {text}");
            self.health.look_at(format!("audit trail: {text}; see audit verify"));
            self.append(0, Some(trail(text, None)))?;
        }
        Ok(())
    }

    /// Removes what is too old and what is too much, so many at a time. True if there may be more.
    fn apply_retention(&mut self) -> bool {
        let Some(link) = self.link else { return false };
        let cutoff = now_ns().saturating_sub(self.limits.age.as_nanos() as u64);
        let count_max = self.limits.count;
        let db = self.db.clone();
        // A look that writes nothing first.
        let due = db.read(|read| {
            let Some(table) = existing(read.open_table(ENTRIES))? else { return Ok((false, 0)) };
            let Some((_, first)) = table.first()? else { return Ok((false, 0)) };
            let entries = table.len()?;
            Ok((entries > count_max || decoded(first.value())?.timestamp_ns < cutoff, entries))
        });
        let entries = match due {
            Ok((true, entries)) => entries,
            Ok((false, _)) => {
                // What retention took away is given back to the disk when nothing else is to be done.
                if self.pending.is_empty() && self.queue.is_empty() {
                    match self.db.compact() {
                        Ok(true) => log::info!("{:?}: compacted", self.db),
                        Ok(false) => {}
                        Err(error) => log::warn!("{:?}: compacting: {error}", self.db),
                    }
                }
                return false;
            }
            Err(error) => {
                log::warn!("{:?}: looking for old entries: {error}", self.db);
                return false;
            }
        };
        let removed = self.db.write(|write| {
            let (removed, count) = remove(write, cutoff, count_max)?;
            let Some(removed) = removed else { return Ok((link, 0)) };
            write.open_table(ANCHOR)?.insert("removed", link_bytes(removed).as_slice())?;
            let text = format!("retention removed {count} entries, up to number {}", removed.seq);
            Ok((put(write, link, vec![trail(text, Some(removed_value(removed)))])?, count))
        });
        match removed {
            Ok((link, count)) => {
                self.db.note_removed(count as u64, entries.saturating_sub(count as u64));
                self.committed(link, 0);
                count == REMOVE_MAX
            }
            Err(error) => {
                log::warn!("{:?}: removing old entries: {error}", self.db);
                if !matches!(error, DbError::NoRoom(_)) {
                    self.reopen();
                }
                false
            }
        }
    }
}

/// An entry of the trail about itself.
fn trail(detail: String, after: Option<Value>) -> Entry {
    let actor = super::Actor { name: "agent".to_owned(), ..super::Actor::config_reload() };
    Entry { after, ..Entry::new(actor, TRAIL, 200, detail) }
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

/// Removes the oldest entries, those before `cutoff` and those beyond `count_max`; the last one removed, and how many.
fn remove(write: &WriteTransaction, cutoff: u64, count_max: u64) -> Result<(Option<Link>, usize), DbError> {
    let mut table = write.open_table(ENTRIES)?;
    let mut history = write.open_table(HISTORY)?;
    let (mut removed, mut count) = (None, 0);
    // One more than is counted here: the entry that tells of it comes on top.
    let mut beyond = (table.len()? + 1).saturating_sub(count_max);
    while count < REMOVE_MAX {
        let Some((seq, value)) = table.first()?.map(|(seq, value)| (seq.value(), value.value().to_vec())) else {
            break;
        };
        let record = decoded(&value)?;
        if beyond == 0 && record.timestamp_ns >= cutoff {
            break;
        }
        if let (Some((rule, component)), Some(version)) = (record.rule(), record.version) {
            history.remove(history_key(rule, component, version).as_slice())?;
        }
        table.remove(seq)?;
        removed = Some(Link { seq, hash: split(&value)?.0 });
        count += 1;
        beyond = beyond.saturating_sub(1);
    }
    Ok((removed, count))
}

#[cfg(test)]
mod tests;
