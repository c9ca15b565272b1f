//! What outlives a run: files of records, each with one owner thread that writes, and readers that never wait for it.
//!
//! [`db`] is the only code that touches redb. [`alerts`] keeps what the router told. The audit trail is a store of its
//! own, in [`audit`](crate::audit).
//!
//! Promises, of both stores: a record is on the disk at most [`COMMIT_INTERVAL`] after it was taken in, so that is what
//! `kill -9` loses; a file is never half written; a disk that is full or fails costs records, which are counted, and
//! readiness, and is left by itself; a damaged file is moved aside, and a new one begun.

pub mod alerts;
pub mod api;
pub mod block;
pub mod db;
pub mod health;

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::api::{ApiError, Operation, Param, ParamKind, Reply, Request, Spec};
use crate::component::Component;

/// How long a record waits at most until it is committed together with those that came meanwhile.
pub const COMMIT_INTERVAL: Duration = Duration::from_millis(200);

/// A moment that a reader names: RFC 3339, or nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Moment, String> {
        if let Ok(ns) = text.parse() {
            return Ok(Moment(ns));
        }
        let time: jiff::Timestamp = text.parse().map_err(|_| "not a time such as 2026-11-30T08:00:00Z".to_owned())?;
        u64::try_from(time.as_nanosecond()).map(Moment).map_err(|_| "not between 1970 and 2554".to_owned())
    }
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// A table that nothing has been written to yet is not there.
pub fn existing<T>(table: Result<T, redb::TableError>) -> Result<Option<T>, db::DbError> {
    match table {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a store's operation answers when the store cannot.
pub fn refused(error: &db::DbError) -> ApiError {
    match error {
        db::DbError::Closed => ApiError::unavailable(error.to_string()),
        _ => ApiError::unavailable(format!("the store cannot be read or written now: {error}")),
    }
}

/// Most items of a page of what a store holds.
const PAGE_MAX: u64 = 1000;

/// `limit` of such a page.
pub const LIMIT: Param =
    Param::optional("limit", "Most items in the answer; 100 when absent", ParamKind::Integer { min: 1, max: PAGE_MAX });

/// The code of an operation on a store.
pub type Run<S> = fn(&S, &Request) -> Result<Reply, ApiError>;

/// Operations on a store; without one, each says what is `missing`.
pub fn operations<S: Clone + Send + Sync + 'static>(
    store: Option<&S>,
    missing: &'static str,
    all: &[(&'static Spec, Run<S>)],
) -> Vec<Operation> {
    let bind = |&(spec, run): &(&'static Spec, Run<S>)| {
        let store = store.cloned();
        Operation::new(spec, move |request| match &store {
            Some(store) => run(store, request),
            None => Err(ApiError::unavailable(missing)),
        })
    };
    all.iter().map(bind).collect()
}

/// The query parameters `from` and `to`, in nanoseconds since 1970.
pub fn period_of(request: &Request) -> Result<[Option<u64>; 2], ApiError> {
    let moment = |name| Ok(request.query_as::<Moment>(name)?.map(|moment| moment.0));
    Ok([moment("from")?, moment("to")?])
}

/// The query parameter `component`. A misspelt name must not quietly find nothing.
pub fn component_of(request: &Request) -> Result<Option<Component>, ApiError> {
    let Some(name) = request.query("component") else { return Ok(None) };
    match Component::ALL.iter().find(|component| component.name() == name) {
        Some(component) => Ok(Some(*component)),
        None => {
            let names: Vec<_> = Component::ALL.iter().map(|component| component.name()).collect();
            Err(ApiError::validation(format!("query parameter \"component\" must be one of {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Moment;

    #[test]
    fn moments_are_rfc_3339_or_nanoseconds() {
        for (text, want) in [
            ("1970-01-01T00:00:01.5Z", Ok(Moment(1_500_000_000))),
            ("1970-01-01T01:00:00+01:00", Ok(Moment(0))),
            ("17", Ok(Moment(17))),
            ("yesterday", Err("not a time such as 2026-11-30T08:00:00Z".to_owned())),
            ("1969-12-31T23:59:59Z", Err("not between 1970 and 2554".to_owned())),
            ("2600-01-01T00:00:00Z", Err("not between 1970 and 2554".to_owned())),
        ] {
            assert_eq!(text.parse(), want, "{text}");
        }
    }
}
