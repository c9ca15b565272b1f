//! Alerts as they happen, as server-sent events: `curl -N`, a browser's EventSource, `alerts watch`.
//!
//! An alert, or an update of one, is an event without a name whose data is the alert as the API shows it. Its id is that of
//! the alert, with `.REVISION` for an update; who comes back with it in `Last-Event-ID` gets what happened since. Where
//! alerts are missing, there is an event `gap` that says how many and why. Every 15 seconds of silence there is a comment.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::places::{Full, Places};
use crate::alert::hub::{self, Event, EventId, Hub, Step};
use crate::alert::{Filter, Severity};
use crate::api::{self, ApiError, Method, Operation, Param, ParamKind, Reply, Role, Spec};
use crate::component::Component;
use crate::metrics::{Metrics, StreamMetrics};

/// Streams at a time; each has a thread.
pub const STREAMS_MAX: usize = 64;
/// Of these, for one remote address. Who leaves is noticed when something is said, so a place is taken for longer than
/// the connection lasts, and the front's own limit alone would not keep one address from having all.
const STREAMS_PER_ADDRESS: usize = 16;
/// Silence after which a client is told that the stream goes on.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Alerts taken out of the hub at a time.
const BATCH: usize = 256;
/// A listener that has taken what there was sleeps so long before it waits for more: it is woken, by the router, at most so
/// often.
const REST: Duration = Duration::from_millis(2);
/// After this time a client whose connection has ended should come back.
const RETRY: Duration = Duration::from_secs(2);

/// The operation of the stream.
pub static WATCH: Spec = Spec {
    command: "alerts watch",
    method: Method::Get,
    path: "/api/v1/alerts/stream",
    query: &[
        Param::optional("min_severity", "From this severity on", ParamKind::Word(Severity::NAMES)),
        Param::optional("component", "Of this component", ParamKind::Word(Component::NAMES)),
        Param::optional("rule_id", "Of this rule; a * at the end stands for any rest", ParamKind::Text),
        Param::optional("mitre", "With this MITRE ATT&CK technique, as T1190, or a part of it", ParamKind::Text),
        Param::optional(
            "last_event_id",
            "Begin after this event. The header field Last-Event-ID says the same, and is the one that counts",
            ParamKind::Text,
        ),
    ],
    role: Role::Viewer,
    summary: "Alerts as they happen, as server-sent events, until the client closes",
    body: None,
    reply: event_stream,
    success: 200,
};

fn event_stream() -> serde_json::Value {
    json!({"type": "string", "contentMediaType": "text/event-stream"})
}

/// The stream, out of `hub`, for at most `streams_max` clients at a time.
pub fn operation(hub: Hub, streams_max: usize, metrics: &Arc<Metrics>) -> Operation {
    let places = Places::new(streams_max, STREAMS_PER_ADDRESS, streams_max);
    let (refused, metrics) = (metrics.clone(), metrics.streams("sse"));
    Operation::new(&WATCH, move |request| {
        let filter = filter_of(request)?;
        let after = last_event_id(request)?;
        let place = places.take(request.peer).map_err(|full| {
            let (reason, whose, number) = match full {
                Full::InAll(number) => ("streams", "", number),
                Full::OfAddress(number) => ("streams_of_address", " to your address", number),
            };
            refused.http_refused(reason);
            ApiError::unavailable(format!("{number} streams{whose} are open, and that is the limit"))
        })?;
        let (hub, metrics) = (hub.clone(), metrics.clone());
        Ok(Reply::Stream(api::Stream::new("text/event-stream", WATCH.role, move |out| {
            let _in_use = &place;
            tell(&hub, &filter, after, &metrics, out)
        })))
    })
}

fn filter_of(request: &api::Request) -> Result<Filter, ApiError> {
    let [severity, component, rule_id, technique] =
        ["min_severity", "component", "rule_id", "mitre"].map(|name| request.query(name));
    hub::filter_of(severity, component, rule_id, technique).map_err(ApiError::validation)
}

/// A browser that comes back sends the header field, and has the same query as at first.
fn last_event_id(request: &api::Request) -> Result<Option<EventId>, ApiError> {
    let Some(id) = request.last_event_id.as_deref().or(request.query("last_event_id")) else { return Ok(None) };
    api::check_value("last_event_id", id)?;
    id.parse().map(Some).map_err(|error| ApiError::validation(format!("last event id: {error}")))
}

/// Writes events until the client has gone or the hub is closed.
fn tell(
    hub: &Hub,
    filter: &Filter,
    after: Option<EventId>,
    metrics: &StreamMetrics,
    out: &mut dyn Write,
) -> io::Result<()> {
    let _listening = metrics.client();
    let mut subscription = hub.subscribe(filter.clone(), after);
    let mut out = Writer { out, metrics, last: Instant::now() };
    out.write(&format!("retry: {}\n\n", RETRY.as_millis()))?;
    while subscription.is_behind() && !subscription.is_over() {
        match subscription.catch_up() {
            Step::Live => {}
            Step::Events(events) => out.events(&events)?,
            Step::Later(wait) => std::thread::sleep(wait),
        }
        out.beat()?;
    }
    while !subscription.is_over() {
        if subscription.wait(out.last + HEARTBEAT) {
            out.events(&subscription.take(BATCH))?;
            std::thread::sleep(REST);
        }
        out.beat()?;
    }
    Ok(())
}

/// What the client reads.
struct Writer<'a> {
    out: &'a mut dyn Write,
    metrics: &'a StreamMetrics,
    /// When something was written.
    last: Instant,
}

impl Writer<'_> {
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()?;
        self.last = Instant::now();
        Ok(())
    }

    fn events(&mut self, events: &[Event]) -> io::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        self.write(&events.iter().map(text_of).collect::<String>())?;
        events.iter().for_each(|event| event.count(self.metrics));
        Ok(())
    }

    /// A sign of life, when it is time for one.
    fn beat(&mut self) -> io::Result<()> {
        if self.last.elapsed() >= HEARTBEAT { self.write(": still here\n\n") } else { Ok(()) }
    }
}

/// An event as it is sent. JSON on one line holds no line end.
fn text_of(event: &Event) -> String {
    match event {
        Event::Live(live) => format!("id: {}\ndata: {}\n\n", live.id(), live.json()),
        Event::Stored(stored) => format!("id: {}\ndata: {}\n\n", stored.event_id(), stored.document),
        Event::Gap(gap) => {
            format!("event: gap\ndata: {}\n\n", json!({"missed": gap.missed, "reason": gap.reason.name()}))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_have_all_streams() {
        let metrics = Metrics::new();
        let operation = operation(Hub::new(4), STREAMS_MAX, &metrics);
        let ask = |client: &str| {
            let mut request = api::Request::new(&WATCH);
            request.peer = Some(client.parse().unwrap());
            (operation.run)(&request).map_err(|error| (error.status, error.message))
        };
        let open: Vec<_> = (0..STREAMS_PER_ADDRESS).map(|n| ask(&format!("[2001:db8::{n}]:5")).unwrap()).collect();
        let refused = ask("[2001:db8::ffff]:5").map(drop).unwrap_err();
        assert_eq!(refused, (503, "16 streams to your address are open, and that is the limit".to_owned()));
        let other = ask("192.0.2.1:5").unwrap();
        drop(open);
        assert!(ask("[2001:db8::ffff]:5").is_ok());
        drop(other);
        let counted = "ebpfsentinel_http_refused_total{reason=\"streams_of_address\"} 1";
        assert!(metrics.render().lines().any(|line| line == counted));
    }
}
