//! The alerts that were told: kept, found again, marked as false positives, and let go of after a time.
//!
//! The `alert-store` thread writes what the router tells, all that came in [`COMMIT_INTERVAL`] at once. For each alert there
//! is the JSON that the API shows; what is asked of it is in blocks (see [`block`](super::block)). An update takes the
//! place of the alert with its id and leaves the mark alone. Readers see what was committed, and disturb nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use ipnet::IpNet;
use prometheus_client::metrics::counter::Counter;
use redb::{ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::block::{Block, ROWS_MAX, Row, Summary, Wanted, rows};
use super::db::{Db, DbError};
use super::health::{Attempts, Health, Unreadable};
use super::{COMMIT_INTERVAL, existing, now_ns};
use crate::alert::hub::{History, Span, Stored};
use crate::alert::sinks::Sink;
use crate::alert::{Alert, AlertId, Full, Suppression, Suppressions};
use crate::metrics::Metrics;
use crate::supervise::{Handle, Owned, Supervisor, Thread};

/// Id -> the alert as JSON.
const ALERTS: TableDefinition<'static, u128, &[u8]> = TableDefinition::new("alerts");
/// A number that is not greater than the ids of the block, and greater than those of the block before -> its rows.
const BLOCKS: TableDefinition<'static, u128, &[u8]> = TableDefinition::new("blocks");
/// The same -> its summary.
const SUMMARIES: TableDefinition<'static, u128, &[u8]> = TableDefinition::new("summaries");
/// Id -> the mark as JSON.
const MARKS: TableDefinition<'static, u128, &[u8]> = TableDefinition::new("marks");
/// Id of the suppression -> the suppression as JSON.
const SUPPRESSIONS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("suppressions");

const SCHEMA: u32 = 1;
/// What [`Unreadable`] calls what cannot be read.
const ALERT: &str = "unreadable_alert";
const BLOCK: &str = "unreadable_block";
const MARK: &str = "unreadable_mark";
const SUPPRESSION: &str = "unreadable_suppression";
/// Alerts of one commit.
const COMMIT_MAX: usize = 2000;
/// Alerts that one pass of retention removes.
const REMOVE_MAX: u64 = 10_000;
/// Rows that one question looks at.
const ROWS_SCAN_MAX: usize = 1_000_000;
/// Alerts of which one question reads the text.
const TEXTS_SCAN_MAX: usize = 10_000;
/// Between looks for what is too old.
const RETENTION_PAUSE: Duration = Duration::from_secs(30);

impl History for AlertStore {
    fn seen(&self, id: AlertId) -> Result<Option<(u32, u64)>, String> {
        let found = self.get(id).map_err(|error| error.to_string())?;
        Ok(found.map(|alert| {
            let last_ns = Row::of_document(id.0.as_u128(), &alert.document).map_or(0, |row| row.last_ns);
            (stored(alert).event_id().revision, last_ns)
        }))
    }

    fn after(&self, id: AlertId, limit: usize) -> Result<Vec<Stored>, String> {
        let found = AlertStore::after(self, id, limit).map_err(|error| error.to_string())?;
        Ok(found.into_iter().map(stored).collect())
    }

    fn updated(&self, span: &Span, limit: usize) -> Result<(Vec<Stored>, Option<AlertId>), String> {
        let (found, above) = AlertStore::updated(self, span, limit).map_err(|error| error.to_string())?;
        Ok((found.into_iter().map(stored).collect(), above))
    }
}

fn stored(StoredAlert { id, document }: StoredAlert) -> Stored {
    Stored { id, document }
}

/// An alert that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredAlert {
    /// Its id.
    pub id: AlertId,
    /// All of it, as the API shows it.
    pub document: Value,
}

/// That an alert is a false positive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mark {
    /// Who says so.
    pub by: String,
    /// When, RFC 3339.
    pub at: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

/// Which alerts are wanted.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// By what rows tell.
    pub wanted: Wanted,
    /// With this text in one of their values, in upper or lower case.
    pub text: Option<String>,
    /// Most alerts in the answer.
    pub limit: u32,
    /// Alerts to skip.
    pub offset: u32,
}

impl Question {
    /// The address or network that is asked for.
    pub fn network(text: &str) -> Result<IpNet, String> {
        let wrong = || "not an address or network such as 192.0.2.1 or 2001:db8::/32".to_owned();
        match text.contains('/') {
            true => text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| wrong()),
            false => text.parse::<std::net::IpAddr>().map(|ip| ip.to_canonical().into()).map_err(|_| wrong()),
        }
    }
}

/// Some alerts, the newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The alerts.
    pub alerts: Vec<StoredAlert>,
    /// Alerts that the question wants, as far as `total_is_exact` says.
    pub total: u64,
    /// False where not all were looked at; there may be more then.
    pub total_is_exact: bool,
    /// Ask for those before this one to go on; `None`: there are no more.
    pub next: Option<AlertId>,
}

/// What the store is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long after it last happened an alert is kept.
    pub age: Duration,
    /// How many are kept.
    pub count: u64,
    /// How many may wait.
    pub buffer: usize,
}

/// Why an alert was not marked, or a suppression not made.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// No alert has this id; it may have been let go of.
    #[error("there is no alert {0}")]
    NotFound(AlertId),
    /// It has no source that could be suppressed.
    #[error("the alert has no source address, so there is nothing to suppress; mark it without \"suppress\"")]
    NoSource,
    /// There are too many.
    #[error(transparent)]
    Full(#[from] crate::alert::Full),
    /// The disk.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// A suppression that is wanted beside a mark.
#[derive(Clone, Debug)]
pub struct Suppress {
    /// Until when, in nanoseconds since 1970.
    pub until_ns: u64,
    /// Who wants it.
    pub by: String,
}

/// The alerts.
#[derive(Clone)]
pub struct AlertStore {
    db: Arc<Db>,
    health: Arc<Health>,
    unreadable: Arc<Unreadable>,
    broken: Arc<Mutex<BTreeSet<u128>>>,
    queue: Sender<Arc<Alert>>,
    handle: Handle<Writer>,
    suppressions: Arc<Suppressions>,
}

/// What the router writes to.
struct StoreSink(Sender<Arc<Alert>>);

impl Sink for StoreSink {
    fn name(&self) -> &str {
        "alert_store"
    }

    fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str> {
        self.0.try_send(alert.clone()).map_err(|_| "full")
    }
}

impl AlertStore {
    /// Starts the thread of the store at `path`, which opens it, or begins one, and puts the suppressions in it in
    /// force. Nobody waits for that: until then, and while a file cannot be opened, [`AlertStore::health`] says so,
    /// alerts wait in the queue, and readers are told that it is not open.
    pub fn start(
        path: PathBuf,
        limits: Limits,
        suppressions: &Arc<Suppressions>,
        metrics: &Arc<Metrics>,
        supervisor: &Supervisor,
    ) -> std::io::Result<(AlertStore, Thread<Writer>)> {
        let db = Arc::new(Db::new(path, "alerts", SCHEMA));
        let health = Arc::new(Health::default());
        let unreadable = Arc::new(Unreadable::new("store of alerts", "alert_store", &health, metrics));
        let broken = Arc::<Mutex<BTreeSet<u128>>>::default();
        let (queue, alerts) = bounded(limits.buffer);
        let writer = Writer {
            db: db.clone(),
            health: health.clone(),
            unreadable: unreadable.clone(),
            broken: broken.clone(),
            limits,
            suppressions: suppressions.clone(),
            metrics: metrics.clone(),
            pending: Vec::new(),
            count: None,
            lost: metrics.events_lost("alert_store", "disk"),
            written: metrics.store_records("alerts"),
            attempts: Attempts::new("the store of alerts", &health, metrics.store_failures("alerts")),
            retention_at: Instant::now(),
        };
        let (handle, thread) = supervisor.spawn_owner("alert-store", writer, alerts)?;
        let suppressions = suppressions.clone();
        Ok((AlertStore { db, health, unreadable, broken, queue, handle, suppressions }, thread))
    }

    /// What the router tells it by.
    pub fn sink(&self) -> impl Sink + 'static {
        StoreSink(self.queue.clone())
    }

    /// What is wrong with it, for readiness.
    pub fn health(&self) -> Vec<String> {
        self.health.reasons()
    }

    /// The owner's handle.
    pub fn handle(&self) -> &Handle<Writer> {
        &self.handle
    }

    /// The suppressions that it keeps.
    pub fn suppressions(&self) -> &Suppressions {
        &self.suppressions
    }

    /// The alert of an id; also `None` where it cannot be read.
    pub fn get(&self, id: AlertId) -> Result<Option<StoredAlert>, DbError> {
        self.db.read(|read| match Documents::open(read, &self.unreadable)? {
            Some(documents) => documents.get(id.0.as_u128()),
            None => Ok(None),
        })
    }

    /// So many of the alerts with a greater id, in the order of their ids: for who has heard all up to this one. Alerts are
    /// here [`COMMIT_INTERVAL`] after they were told at the latest; updates of older ones are not among them.
    pub fn after(&self, id: AlertId, limit: usize) -> Result<Vec<StoredAlert>, DbError> {
        self.db.read(|read| {
            let Some(documents) = Documents::open(read, &self.unreadable)? else { return Ok(Vec::new()) };
            let Some(next) = id.0.as_u128().checked_add(1) else { return Ok(Vec::new()) };
            let shown = documents.alerts.range(next..)?.map(|item| {
                let (id, value) = item?;
                documents.shown(id.value(), value.value())
            });
            shown.filter_map(Result::transpose).take(limit).collect()
        })
    }

    /// The alerts in `span` that were told more than once, in the order of their ids; so many are looked at. The id above
    /// which there are more.
    pub fn updated(&self, span: &Span, limit: usize) -> Result<(Vec<StoredAlert>, Option<AlertId>), DbError> {
        let wanted = Wanted { from_ns: Some(span.from_ns), ..Wanted::default() };
        let (above, up_to) = (span.above.map_or(0, |id| id.0.as_u128()), span.up_to.0.as_u128());
        self.db.read(|read| {
            let mut found = Vec::new();
            let Some(documents) = Documents::open(read, &self.unreadable)? else { return Ok((found, None)) };
            let (blocks, summaries) = (read.open_table(BLOCKS)?, read.open_table(SUMMARIES)?);
            // The block that holds the first of them.
            let first = summaries.range(..=above)?.next_back().transpose()?.map_or(0, |(key, _)| key.value());
            let (mut looked_at, mut last) = (0, above);
            for item in summaries.range(first..=up_to)? {
                let (key, value) = item?;
                if Summary::decode(value.value()).is_some_and(|summary| !wanted.may_be_in(&summary)) {
                    continue;
                }
                let block = blocks.get(key.value())?;
                let Some(rows) = block.as_ref().and_then(|block| rows(block.value())) else {
                    self.unreadable.skip(BLOCK, AlertId(Uuid::from_u128(key.value())));
                    self.broken.lock().unwrap_or_else(PoisonError::into_inner).insert(key.value());
                    continue;
                };
                for row in rows.filter(|row| row.id > above && row.id <= up_to && wanted.fits(row)) {
                    if looked_at == limit {
                        return Ok((found, Some(AlertId(Uuid::from_u128(last)))));
                    }
                    (looked_at, last) = (looked_at + 1, row.id);
                    let alert = documents.of_row(row.id)?;
                    found.extend(alert.filter(|alert| alert.document["revision"].as_u64() > Some(0)));
                }
            }
            Ok((found, None))
        })
    }

    /// The alerts that a question wants, the newest first.
    pub fn find(&self, question: &Question) -> Result<Answer, DbError> {
        let mut broken = BTreeSet::new();
        let found = self.db.read(|read| find(read, question, &self.unreadable, &mut broken));
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).append(&mut broken);
        found
    }
}

fn strange(what: &str) -> DbError {
    DbError::Damaged(format!("{what} cannot be read"))
}

/// Alerts with their marks.
struct Documents<'u> {
    unreadable: &'u Unreadable,
    alerts: redb::ReadOnlyTable<u128, &'static [u8]>,
    marks: Option<redb::ReadOnlyTable<u128, &'static [u8]>>,
}

impl<'u> Documents<'u> {
    fn open(read: &redb::ReadTransaction, unreadable: &'u Unreadable) -> Result<Option<Documents<'u>>, DbError> {
        let Some(alerts) = existing(read.open_table(ALERTS))? else { return Ok(None) };
        Ok(Some(Documents { unreadable, alerts, marks: existing(read.open_table(MARKS))? }))
    }

    fn get(&self, id: u128) -> Result<Option<StoredAlert>, DbError> {
        match self.alerts.get(id)? {
            Some(value) => self.shown(id, value.value()),
            None => Ok(None),
        }
    }

    /// The alert of a row. It is there, unless somebody was at the file.
    fn of_row(&self, id: u128) -> Result<Option<StoredAlert>, DbError> {
        let found = self.get(id)?;
        if found.is_none() {
            self.unreadable.skip(ALERT, AlertId(Uuid::from_u128(id)));
        }
        Ok(found)
    }

    /// `None` where it cannot be read.
    fn shown(&self, id: u128, bytes: &[u8]) -> Result<Option<StoredAlert>, DbError> {
        let id_of = AlertId(Uuid::from_u128(id));
        let Some(mut document) = document_of(bytes) else {
            self.unreadable.skip(ALERT, id_of);
            return Ok(None);
        };
        let mark = match &self.marks {
            Some(marks) => marks.get(id)?,
            None => None,
        };
        document["false_positive"] = mark.is_some().into();
        if let Some(mark) = mark {
            match serde_json::from_slice(mark.value()) {
                Ok(mark) => document["mark"] = mark,
                Err(_) => self.unreadable.skip(MARK, id_of),
            }
        }
        Ok(Some(StoredAlert { id: id_of, document }))
    }
}

/// An alert as it is kept.
fn document_of(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice(bytes).ok().filter(Value::is_object)
}

/// Whether a value, or one in it, has a text in lower case in it.
fn holds(value: &Value, lower: &str) -> bool {
    match value {
        Value::String(text) => text.to_lowercase().contains(lower),
        Value::Array(items) => items.iter().any(|item| holds(item, lower)),
        Value::Object(map) => map.values().any(|item| holds(item, lower)),
        Value::Number(number) => number.to_string() == lower,
        Value::Null | Value::Bool(_) => false,
    }
}

/// Blocks that cannot be read are put among the `broken`.
fn find(
    read: &redb::ReadTransaction,
    question: &Question,
    unreadable: &Unreadable,
    broken: &mut BTreeSet<u128>,
) -> Result<Answer, DbError> {
    let wanted = &question.wanted;
    let lower = question.text.as_deref().map(str::to_lowercase);
    let mut answer = Answer { alerts: Vec::new(), total: 0, total_is_exact: true, next: None };
    let Some(documents) = Documents::open(read, unreadable)? else { return Ok(answer) };
    let (blocks, summaries) = (read.open_table(BLOCKS)?, read.open_table(SUMMARIES)?);
    let id_of = |id: u128| Some(AlertId(Uuid::from_u128(id)));
    let (mut looked_at, mut read_texts) = (0, 0);
    let mut last_shown = None;
    let all = match wanted.before {
        Some(before) => summaries.range(..before)?,
        None => summaries.range::<u128>(..)?,
    };
    for item in all.rev() {
        let (key, value) = item?;
        let Some(summary) = Summary::decode(value.value()) else {
            unreadable.skip(BLOCK, AlertId(Uuid::from_u128(key.value())));
            broken.insert(key.value());
            continue;
        };
        if !wanted.may_be_in(&summary) {
            continue;
        }
        let is_full = answer.alerts.len() >= question.limit as usize;
        let counted = wanted.count_in(&summary).filter(|_| lower.is_none());
        // What is skipped or beyond the page is only counted.
        let passed = answer.total + counted.unwrap_or_default() <= u64::from(question.offset);
        if let Some(count) = counted.filter(|_| is_full || passed) {
            answer.total += count;
            if is_full && count > 0 {
                answer.next = answer.next.or(last_shown);
            }
            continue;
        }
        let block = blocks.get(key.value())?;
        let Some(rows) = block.as_ref().and_then(|block| rows(block.value())) else {
            unreadable.skip(BLOCK, AlertId(Uuid::from_u128(key.value())));
            broken.insert(key.value());
            continue;
        };
        for row in rows.rev() {
            let is_full = answer.alerts.len() >= question.limit as usize;
            let too_much = looked_at >= ROWS_SCAN_MAX || read_texts >= TEXTS_SCAN_MAX;
            if too_much || (is_full && lower.is_some()) {
                answer.total_is_exact = false;
                answer.next = if is_full { answer.next.or(last_shown) } else { id_of(row.id.saturating_add(1)) };
                return Ok(answer);
            }
            looked_at += 1;
            if !wanted.fits(&row) {
                continue;
            }
            let mut document = None;
            if let Some(lower) = &lower {
                read_texts += 1;
                let Some(found) = documents.of_row(row.id)? else { continue };
                if !holds(&found.document, lower) {
                    continue;
                }
                document = Some(found);
            }
            answer.total += 1;
            if is_full {
                answer.next = answer.next.or(last_shown);
            } else if answer.total > u64::from(question.offset) {
                let found = match document {
                    Some(found) => Some(found),
                    None => documents.of_row(row.id)?,
                };
                let Some(found) = found else {
                    answer.total -= 1;
                    continue;
                };
                last_shown = Some(found.id);
                answer.alerts.push(found);
            }
        }
    }
    Ok(answer)
}

/// The owner of the file.
pub struct Writer {
    db: Arc<Db>,
    health: Arc<Health>,
    unreadable: Arc<Unreadable>,
    /// Blocks that could not be read; the next pass of retention makes them anew.
    broken: Arc<Mutex<BTreeSet<u128>>>,
    limits: Limits,
    suppressions: Arc<Suppressions>,
    metrics: Arc<Metrics>,
    pending: Vec<Arc<Alert>>,
    /// Alerts that are kept; `None` while the file is not open.
    count: Option<u64>,
    lost: Counter,
    written: Counter,
    attempts: Attempts,
    retention_at: Instant,
}

impl Owned for Writer {
    type Event = Arc<Alert>;

    const TICK: Duration = COMMIT_INTERVAL;

    fn begin(&mut self, now: Instant) {
        self.commit(now);
    }

    fn event(&mut self, alert: Arc<Alert>, now: Instant) {
        if self.pending.len() >= self.limits.buffer.max(COMMIT_MAX) {
            self.lost.inc();
            return;
        }
        self.pending.push(alert);
        if self.pending.len() >= COMMIT_MAX {
            self.commit(now);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.commit(now);
        // Also while nothing can be written, which it may put an end to.
        if now >= self.retention_at {
            let more = self.apply_retention();
            self.retention_at = now + if more { COMMIT_INTERVAL } else { RETENTION_PAUSE };
        }
    }

    fn finish(&mut self, now: Instant) {
        self.attempts.hurry();
        self.commit(now);
        self.lost.inc_by(self.pending.len() as u64);
    }
}

impl Writer {
    /// Other limits, at a reload; room for waiting alerts stays what it was.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = Limits { buffer: self.limits.buffer, ..limits };
        self.retention_at = Instant::now();
    }

    /// Writes what waits, unless it failed a moment ago.
    fn commit(&mut self, now: Instant) {
        if !self.attempts.may(now) {
            return;
        }
        let result = self.try_commit();
        self.attempts.note(&result, now);
    }

    fn try_commit(&mut self) -> Result<(), DbError> {
        if self.count.is_none() || self.db.is_suspect() {
            self.open()?;
        }
        while !self.pending.is_empty() {
            let count = self.pending.len().min(COMMIT_MAX);
            let batch = &self.pending[..count];
            let new = self.write(|write| {
                let mut editor = Editor::new(write, &self.unreadable)?;
                for alert in batch {
                    editor.put(alert)?;
                }
                editor.finish()
            });
            let new = self.noted(new)?;
            self.count = self.count.map(|kept| kept.saturating_add_signed(new));
            self.written.inc_by(count as u64);
            self.pending.drain(..count);
        }
        Ok(())
    }

    fn write<R>(&self, write: impl FnOnce(&WriteTransaction) -> Result<R, DbError>) -> Result<R, DbError> {
        if self.count.is_none() {
            return Err(DbError::Closed);
        }
        self.db.write(write)
    }

    /// After an error the file is opened anew at once, for its readers, unless there was just no room.
    fn noted<R>(&mut self, result: Result<R, DbError>) -> Result<R, DbError> {
        if result.as_ref().is_err_and(|error| !matches!(error, DbError::NoRoom(_))) {
            self.count = None;
            if let Err(error) = self.open() {
                log::debug!("{:?}: opening anew: {error}", self.db);
            }
        }
        result
    }

    /// Opens the file, or opens it anew, counts what is in it, and puts its suppressions in force.
    fn open(&mut self) -> Result<(), DbError> {
        let told = self.db.mend(self.db.is_suspect())?;
        if let Some(told) = told {
            self.health.look_at(format!("store of alerts: {told}"));
        }
        let (count, suppressions) = self.db.read(|read| {
            let count = existing(read.open_table(ALERTS))?.map_or(Ok(0), |alerts| alerts.len())?;
            let mut suppressions: Vec<Suppression> = Vec::new();
            if let Some(table) = existing(read.open_table(SUPPRESSIONS))? {
                for item in table.range::<&str>(..)? {
                    let (id, value) = item?;
                    match serde_json::from_slice(value.value()) {
                        Ok(one) => suppressions.push(one),
                        Err(_) => self.unreadable.skip(SUPPRESSION, id.value()),
                    }
                }
            }
            Ok((count, suppressions))
        })?;
        let now = now_ns();
        // Their ids, and so the table, are in the order in which they were made: the newest for a rule and source wins.
        let left_out = self.suppressions.restore(suppressions, now);
        if left_out > 0 {
            log::warn!("store of alerts: {left_out} suppressions are not in force: {Full}");
        }
        self.count = Some(count);
        Ok(())
    }

    /// Marks an alert as a false positive, or takes the mark away (`None`), and hides others like it if that is wanted. The
    /// answer is the mark before and the suppression that was made. All of it is on the disk then, or nothing was changed.
    pub fn mark(
        &mut self,
        id: AlertId,
        mark: Option<Mark>,
        suppress: Option<Suppress>,
    ) -> Result<(Option<Mark>, Option<Suppression>), MarkError> {
        self.commit(Instant::now());
        let key = id.0.as_u128();
        let document = self.db.read(|read| match Documents::open(read, &self.unreadable)? {
            Some(documents) => documents.get(key),
            None => Ok(None),
        })?;
        let document = document.ok_or(MarkError::NotFound(id))?.document;
        let suppression = suppress.map(|suppress| suppression_of(&document, &mark, suppress)).transpose()?;
        let now = now_ns();
        let replaced = match &suppression {
            Some(suppression) => self.suppressions.add(suppression.clone(), now)?,
            None => None,
        };
        let written = self.write(|write| {
            let before = {
                let mut marks = write.open_table(MARKS)?;
                let bytes = mark.as_ref().map(serde_json::to_vec).transpose().map_err(|_| strange("a mark"))?;
                let before = match bytes {
                    Some(bytes) => marks.insert(key, bytes.as_slice())?,
                    None => marks.remove(key)?,
                };
                before.and_then(|before| serde_json::from_slice::<Mark>(before.value()).ok())
            };
            let mut editor = Editor::new(write, &self.unreadable)?;
            if let Some(row) = editor.row_mut(key)? {
                row.set_marked(mark.is_some());
            }
            editor.finish()?;
            let mut table = write.open_table(SUPPRESSIONS)?;
            if let Some(old) = &replaced {
                table.remove(old.id.as_str())?;
            }
            if let Some(one) = &suppression {
                let bytes = serde_json::to_vec(one).map_err(|_| strange("a suppression"))?;
                table.insert(one.id.as_str(), bytes.as_slice())?;
            }
            Ok(before)
        });
        match self.noted(written) {
            Ok(before) => {
                if before.is_none() && mark.is_some() {
                    let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
                    self.metrics.false_positive(&text("component"), &text("rule_id"));
                }
                Ok((before, suppression))
            }
            Err(error) => {
                if let Some(one) = suppression {
                    self.suppressions.remove(&one.id);
                }
                if let Some(old) = replaced {
                    // There is room for it: it was there a moment ago.
                    let _ = self.suppressions.add(old, now);
                }
                Err(error.into())
            }
        }
    }

    /// Ends a suppression; `None` if there is none of that id.
    pub fn end_suppression(&mut self, id: &str) -> Result<Option<Suppression>, DbError> {
        let Some(ended) = self.suppressions.remove(id) else { return Ok(None) };
        let written = self.write(|write| {
            write.open_table(SUPPRESSIONS)?.remove(id)?;
            Ok(())
        });
        if let Err(error) = self.noted(written) {
            // It goes on, also after the next start.
            let _ = self.suppressions.add(ended, now_ns());
            return Err(error);
        }
        Ok(Some(ended))
    }

    /// Removes what is too old and what is too much, so many at a time. True if there may be more.
    fn apply_retention(&mut self) -> bool {
        let Some(count) = self.count else { return false };
        let now = now_ns();
        let cutoff = now.saturating_sub(self.limits.age.as_nanos() as u64);
        let too_many = count.saturating_sub(self.limits.count);
        let due = self.db.read(|read| {
            let (mut due, mut broken) = (Vec::new(), BTreeSet::new());
            if let Some(summaries) = existing(read.open_table(SUMMARIES))? {
                for item in summaries.range::<u128>(..)? {
                    let (key, value) = item?;
                    match Summary::decode(value.value()) {
                        Some(summary) if summary.min_last_ns < cutoff => due.push(key.value()),
                        Some(_) => {}
                        None => {
                            broken.insert(key.value());
                        }
                    }
                }
            }
            let mut over = Vec::new();
            if let Some(table) = existing(read.open_table(SUPPRESSIONS))? {
                for item in table.range::<&str>(..)? {
                    let (id, value) = item?;
                    match serde_json::from_slice::<Suppression>(value.value()) {
                        Ok(one) if one.until_ns > now => {}
                        // Also what cannot be read: it hides nothing, and cannot be ended otherwise.
                        _ => over.push(id.value().to_owned()),
                    }
                }
            }
            Ok((due, broken, over))
        });
        let (due, mut broken, over) = match due {
            Ok(found) => found,
            Err(error) => {
                log::warn!("store of alerts: looking for old ones: {error}");
                return false;
            }
        };
        broken.append(&mut self.broken.lock().unwrap_or_else(PoisonError::into_inner));
        if due.is_empty() && over.is_empty() && broken.is_empty() && too_many == 0 {
            if self.pending.is_empty() || self.attempts.failed() {
                let compacted = self.db.compact();
                match self.noted(compacted) {
                    Ok(true) => log::info!("{:?}: compacted", self.db),
                    Ok(false) => {}
                    Err(error) => log::warn!("{:?}: compacting: {error}", self.db),
                }
            }
            return false;
        }
        let removed = self.db.remove(|write| {
            {
                let mut table = write.open_table(SUPPRESSIONS)?;
                for id in &over {
                    table.remove(id.as_str())?;
                }
            }
            let mut editor = Editor::new(write, &self.unreadable)?;
            for key in broken {
                editor.mend(key)?;
            }
            let mut removed = 0;
            while removed < too_many.min(REMOVE_MAX) {
                let Some(oldest) = editor.oldest()? else { break };
                let mut left = too_many.min(REMOVE_MAX) - removed;
                removed += editor.remove(oldest, |_| {
                    let goes = left > 0;
                    left -= u64::from(goes);
                    goes
                })?;
            }
            for key in due {
                if removed >= REMOVE_MAX {
                    break;
                }
                removed += editor.remove(key, |row| row.last_ns < cutoff)?;
            }
            Ok((removed, editor.finish()?))
        });
        match self.noted(removed) {
            Ok((removed, added)) => {
                self.count = Some(count.saturating_add_signed(added));
                if removed > 0 {
                    self.db.note_removed(removed, count.saturating_sub(removed));
                    log::debug!("store of alerts: {removed} alerts were removed by age or number");
                }
                // On a full disk, to give it back.
                removed >= REMOVE_MAX || (removed > 0 && self.attempts.failed())
            }
            Err(error) => {
                log::warn!("store of alerts: removing old ones: {error}");
                false
            }
        }
    }
}

fn suppression_of(document: &Value, mark: &Option<Mark>, suppress: Suppress) -> Result<Suppression, MarkError> {
    let component = serde_json::from_value(document["component"].clone()).map_err(|_| strange("an alert"))?;
    let src_ip = document["src_ip"].as_str().and_then(|text| text.parse().ok()).ok_or(MarkError::NoSource)?;
    Ok(Suppression {
        id: AlertId::next().to_string(),
        component,
        rule_id: document["rule_id"].as_str().unwrap_or_default().to_owned(),
        src_ip: Some(src_ip),
        created_ns: now_ns(),
        until_ns: suppress.until_ns,
        created_by: suppress.by,
        comment: mark.as_ref().map(|mark| mark.comment.clone()).unwrap_or_default(),
        hidden: 0,
    })
}

/// Changes alerts and blocks within one transaction. Blocks are written when it ends, each once.
struct Editor<'t> {
    unreadable: &'t Unreadable,
    alerts: Table<'t, u128, &'static [u8]>,
    blocks: Table<'t, u128, &'static [u8]>,
    summaries: Table<'t, u128, &'static [u8]>,
    marks: Table<'t, u128, &'static [u8]>,
    /// Those that were looked into.
    open: BTreeMap<u128, Block>,
    /// The key of the newest block, where almost all go.
    newest: Option<u128>,
    /// Alerts that came, less those that went.
    added: i64,
}

impl<'t> Editor<'t> {
    fn new(write: &'t WriteTransaction, unreadable: &'t Unreadable) -> Result<Editor<'t>, DbError> {
        let blocks = write.open_table(BLOCKS)?;
        let newest = blocks.last()?.map(|(key, _)| key.value());
        Ok(Editor {
            unreadable,
            alerts: write.open_table(ALERTS)?,
            summaries: write.open_table(SUMMARIES)?,
            marks: write.open_table(MARKS)?,
            blocks,
            open: BTreeMap::new(),
            newest,
            added: 0,
        })
    }

    /// The key of the block in which an id is, or would be.
    fn key_of(&self, id: u128) -> Result<Option<u128>, DbError> {
        if self.newest.is_some_and(|newest| id >= newest) {
            return Ok(self.newest);
        }
        let stored = self.blocks.range(..=id)?.next_back().transpose()?.map(|(key, _)| key.value());
        let open = self.open.range(..=id).next_back().map(|(key, _)| *key);
        Ok(stored.max(open))
    }

    fn block_mut(&mut self, key: u128) -> Result<&mut Block, DbError> {
        if !self.open.contains_key(&key) {
            let stored = self.blocks.get(key)?.map(|bytes| Block::decode(bytes.value()));
            match stored {
                Some(Some(block)) => drop(self.open.insert(key, block)),
                Some(None) => self.mend(key)?,
                None => drop(self.open.insert(key, Block::default())),
            }
        }
        self.open.get_mut(&key).ok_or_else(|| strange("a block"))
    }

    /// Makes a block anew, which cannot be read or has no summary that can, from the alerts that are kept. Those of
    /// them that cannot be read either are removed.
    fn mend(&mut self, key: u128) -> Result<(), DbError> {
        self.unreadable.skip(BLOCK, AlertId(Uuid::from_u128(key)));
        let after = (Bound::Excluded(key), Bound::Unbounded);
        let stored = self.blocks.range::<u128>(after)?.next().transpose()?.map(|(key, _)| key.value());
        let open = self.open.range(after).next().map(|(key, _)| *key);
        let end = [stored, open].into_iter().flatten().min().map_or(Bound::Unbounded, Bound::Excluded);
        let (mut at, mut block, mut lost) = (key, Block::default(), Vec::new());
        for item in self.alerts.range::<u128>((Bound::Included(key), end))? {
            let (id, value) = item?;
            let id = id.value();
            let Some(mut row) = document_of(value.value()).and_then(|document| Row::of_document(id, &document)) else {
                lost.push(id);
                continue;
            };
            row.set_marked(self.marks.get(id)?.is_some());
            if let (_, Some(upper)) = block.put(row) {
                self.open.insert(at, std::mem::replace(&mut block, upper));
                at = id;
                self.newest = self.newest.max(Some(at));
            }
        }
        self.open.insert(at, block);
        for id in lost {
            self.unreadable.skip(ALERT, AlertId(Uuid::from_u128(id)));
            self.alerts.remove(id)?;
            self.marks.remove(id)?;
            self.added -= 1;
        }
        Ok(())
    }

    /// The row of an id.
    fn row_mut(&mut self, id: u128) -> Result<Option<&mut Row>, DbError> {
        match self.key_of(id)? {
            Some(key) => Ok(self.block_mut(key)?.get_mut(id)),
            None => Ok(None),
        }
    }

    fn put(&mut self, alert: &Alert) -> Result<(), DbError> {
        let row = Row::new(alert);
        let bytes = serde_json::to_vec(alert).map_err(|_| strange("an alert"))?;
        let key = self.key_of(row.id)?.unwrap_or(row.id);
        // Before the alert is among the others, of which the block may have to be made anew.
        let (is_new, upper) = self.block_mut(key)?.put(row);
        self.alerts.insert(row.id, bytes.as_slice())?;
        self.added += i64::from(is_new);
        let mut last = key;
        if let Some(upper) = upper {
            last = upper.rows().first().map_or(row.id, |row| row.id);
            self.open.insert(last, upper);
        }
        self.newest = self.newest.max(Some(last));
        Ok(())
    }

    /// The key of the oldest block that is not empty.
    fn oldest(&self) -> Result<Option<u128>, DbError> {
        for item in self.blocks.iter()? {
            let key = item?.0.value();
            if self.open.get(&key).is_none_or(|block| !block.rows().is_empty()) {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// Removes alerts of a block; how many.
    fn remove(&mut self, key: u128, is_over: impl FnMut(&Row) -> bool) -> Result<u64, DbError> {
        let removed = self.block_mut(key)?.remove(is_over);
        for id in &removed {
            self.alerts.remove(id)?;
            self.marks.remove(id)?;
        }
        self.added -= removed.len() as i64;
        Ok(removed.len() as u64)
    }

    /// Writes the blocks; the answer is how many alerts came, less those that went.
    fn finish(mut self) -> Result<i64, DbError> {
        for (key, block) in std::mem::take(&mut self.open) {
            debug_assert!(block.rows().len() <= ROWS_MAX);
            if block.rows().is_empty() {
                self.blocks.remove(key)?;
                self.summaries.remove(key)?;
            } else {
                self.blocks.insert(key, block.encode().as_slice())?;
                self.summaries.insert(key, block.summary().encode().as_slice())?;
            }
        }
        Ok(self.added)
    }
}

impl From<&Answer> for Value {
    fn from(answer: &Answer) -> Value {
        json!({
            "alerts": answer.alerts.iter().map(|alert| &alert.document).collect::<Vec<_>>(),
            "total": answer.total,
            "total_is_exact": answer.total_is_exact,
            "next": answer.next.map(|id| id.to_string()),
        })
    }
}

#[cfg(test)]
mod tests;
