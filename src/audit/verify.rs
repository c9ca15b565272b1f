//! Whether the trail is as it was written.
//!
//! The chain ties each entry to the one before; the head file names the last one. What retention removed at the front
//! is told by an entry, so that it is in the chain, too. The history of rules is an index of entries: a version is true
//! if the entry that it names says the same of itself.

use redb::{ReadTransaction, ReadableTable, ReadableTableMetadata};
use schemars::JsonSchema;
use serde::Serialize;

use super::Action;
use super::chain::Link;
use super::store::{ANCHOR, ENTRIES, HISTORY, Record, Removed, decoded, history_key, split};
use crate::store::db::DbError;
use crate::store::existing;

/// Problems that a verification lists.
const PROBLEMS_MAX: usize = 20;

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

/// What retention has removed since the trail was begun.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Removal {
    /// Entries 1 to this one.
    pub last: u64,
    /// Of them, those that had become too old.
    pub by_age: u64,
    /// Of them, those that had become too many.
    pub by_count: u64,
    /// Number of the entry that tells of it.
    pub told_by: u64,
    /// When that was made, RFC 3339.
    pub timestamp: String,
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
    /// What is missing before the first because retention removed it, which an entry of the chain tells; `null`:
    /// nothing.
    pub removed: Option<Removal>,
    /// Versions of rules in the history, each of which an entry of the chain is.
    pub versions: u64,
    /// What is wrong, at most 20 of it.
    pub problems: Vec<String>,
    /// What happened to the trail and was written into it, at most 20 of it.
    pub incidents: Vec<String>,
}

fn note(list: &mut Vec<String>, text: String) {
    if list.len() < PROBLEMS_MAX {
        list.push(text);
    }
}

/// The key in the history of a version of a rule.
fn version_key(record: &Record) -> Option<Vec<u8>> {
    let (rule, component) = record.rule()?;
    Some(history_key(rule, component, record.version?))
}

/// Looks at every entry and every version. `head` was read before the snapshot was taken.
pub(super) fn verify(read: &ReadTransaction, head: &std::io::Result<Option<Link>>) -> Result<Verification, DbError> {
    let mut problems = Vec::new();
    let mut incidents = Vec::new();
    let anchor = match existing(read.open_table(ANCHOR))? {
        Some(table) => Removed::read(&table)?,
        None => None,
    };
    let start = anchor.map_or(Link::START, |anchor| anchor.link);
    let history = existing(read.open_table(HISTORY))?;
    let (mut link, mut count, mut first, mut versions) = (start, 0, 0, 0);
    let mut told = None;
    let mut at_head = matches!(head, Ok(Some(head)) if *head == start);
    let entries = existing(read.open_table(ENTRIES))?;
    if let Some(table) = &entries {
        for item in table.iter()? {
            let (seq, value) = item?;
            let seq = seq.value();
            let (hash, bytes) = split(value.value());
            if seq != link.seq + 1 {
                note(&mut problems, format!("entries {} to {} are missing", link.seq + 1, seq.saturating_sub(1)));
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
            let Some(record) = decoded(value.value()) else {
                note(&mut problems, format!("entry {seq} cannot be read"));
                continue;
            };
            if record.seq != seq {
                note(&mut problems, format!("entry {seq} calls itself {}", record.seq));
            }
            if let Some(key) = version_key(&record) {
                let named = match &history {
                    Some(history) => history.get(key.as_slice())?.map(|named| named.value()),
                    None => None,
                };
                versions += u64::from(named == Some(seq));
                if named != Some(seq) {
                    let (rule, version) =
                        (record.rule_id.as_deref().unwrap_or_default(), record.version.unwrap_or_default());
                    let instead = named.map_or(String::new(), |named| format!(", which names entry {named} instead"));
                    let text = format!("entry {seq}, version {version} of rule {rule}, is not in the history{instead}");
                    note(&mut problems, text);
                }
            }
            if record.is_of_retention() {
                told = Some(record);
            } else if record.action == Action::Trail {
                note(&mut incidents, format!("entry {seq}, {}: {}", record.timestamp, record.detail));
            }
        }
    }
    if let Some(history) = &history
        && history.len()? != versions
    {
        // Else each of its rows was met above.
        for item in history.iter()? {
            let (key, seq) = item?;
            let entry = match &entries {
                Some(entries) => entries.get(seq.value())?.and_then(|value| decoded(value.value())),
                None => None,
            };
            if entry.as_ref().and_then(version_key).as_deref() != Some(key.value()) {
                let rule = rule_of(key.value());
                let text = format!("the history of rule {rule} names entry {}, which is no such version", seq.value());
                note(&mut problems, text);
            }
        }
    }
    let told = told.filter(|record| {
        let after = record.after.as_ref();
        anchor.is_some_and(|anchor| after.is_some_and(|after| anchor.is_told_by(after)))
    });
    let removed = anchor.zip(told).map(|(anchor, told)| Removal {
        last: anchor.link.seq,
        by_age: anchor.by_age,
        by_count: anchor.by_count,
        told_by: told.seq,
        timestamp: told.timestamp,
    });
    if anchor.is_some() && removed.is_none() {
        let text =
            format!("entries up to {} are missing, and retention has not written that it removed them", start.seq);
        note(&mut problems, text);
    }
    match head {
        Ok(Some(_)) if at_head => {}
        Ok(Some(head)) if head.seq > link.seq => {
            note(&mut problems, format!("entries {} to {} are missing at the end", link.seq + 1, head.seq));
        }
        Ok(Some(head)) if head.seq <= start.seq => {
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
    Ok(Verification {
        status,
        entries: count,
        first,
        last: link.seq,
        last_hash,
        removed,
        versions,
        problems,
        incidents,
    })
}

/// The rule of a key of the history, for people.
fn rule_of(key: &[u8]) -> String {
    let (length, rest) =
        key.split_first_chunk().map_or((0, &[][..]), |(length, rest)| (u16::from_be_bytes(*length), rest));
    String::from_utf8_lossy(rest.get(..usize::from(length)).unwrap_or(rest)).escape_debug().to_string()
}
