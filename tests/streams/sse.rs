//! Server-sent events.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::*;

/// An event of a stream.
#[derive(Clone, Debug, PartialEq)]
struct Event {
    id: Option<String>,
    name: Option<String>,
    data: Value,
}

impl Event {
    fn rule(&self) -> &str {
        self.data["rule_id"].as_str().unwrap_or_default()
    }
}

/// The whole events in a stream's text.
fn events(text: &str) -> Vec<Event> {
    let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
    let field = |part: &str, name: &str| part.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
    whole
        .split("\n\n")
        .filter_map(|part| {
            let data = serde_json::from_str(&field(part, "data:")?).unwrap();
            Some(Event { id: field(part, "id:"), name: field(part, "event:"), data })
        })
        .collect()
}

fn rules(client: &Client) -> Vec<String> {
    events(&client.said()).iter().map(|event| event.rule().to_owned()).collect()
}

fn is_data(line: &str) -> bool {
    line.starts_with("data:")
}

/// A client that reads when it is told to. The stream has begun.
fn raw(bench: &Bench) -> TcpStream {
    let stream = TcpStream::connect(bench.rest).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (&stream).write_all(b"GET /api/v1/alerts/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let head = read_until(&stream, "retry: 2000\n\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    stream
}

/// Reads until `end` has come.
fn read_until(mut stream: &TcpStream, end: &str) -> String {
    let (mut text, mut block) = (String::new(), [0; 64 << 10]);
    while !text.contains(end) {
        let n = stream.read(&mut block).unwrap();
        assert!(n > 0, "it ended: {text}");
        text.push_str(std::str::from_utf8(&block[..n]).unwrap());
    }
    text
}

#[test]
fn curl_shows_alerts_as_they_happen() {
    let bench = Bench::new();
    let curl = bench.curl("", &["-i"]);
    bench.listeners("sse", 1);
    let first = bench.tell(alert("ssh"));
    curl.wait_lines(1, is_data);
    let update = Alert { id: first, revision: 1, count: 7, ..alert("ssh") };
    bench.tell(update);
    curl.wait_lines(2, is_data);
    let said = curl.said();
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
    for field in ["content-type: text/event-stream", "cache-control: no-store", "x-content-type-options: nosniff"] {
        assert!(head.lines().any(|line| line == field), "{head}");
    }
    assert!(!head.contains("x-agent"), "{head}");
    assert!(body.starts_with("retry: 2000\n\n"), "{body}");
    let events = events(body);
    assert_eq!(events[0].id.as_deref(), Some(first.to_string().as_str()));
    assert_eq!(events[0].name, None);
    assert_eq!(events[0].data["src_ip"], "2001:db8::7");
    assert_eq!(events[0].data["id"], first.to_string());
    assert_eq!(events[1].id, Some(format!("{first}.1")));
    assert_eq!((&events[1].data["count"], &events[1].data["revision"]), (&7.into(), &1.into()));
    assert_eq!(bench.metric("ebpfsentinel_stream_alerts_total{kind=\"sse\"}"), 2);
    // The client's end is noticed, also when nothing is told.
    drop(curl);
    bench.listeners("sse", 0);
}

#[test]
fn filters_and_where_to_begin() {
    let bench = Bench::new();
    let ids: Vec<AlertId> = ["a-1", "a-2", "b-1"].iter().map(|rule| bench.tell(alert(rule))).collect();
    bench.tell(Alert { severity: Severity::Critical, component: Component::L7, ..alert("a-3") });
    bench.tell(Alert { mitre: vec!["T1110.001".into()], ..alert("b-2") });
    let after = ids[0].to_string();
    let check = |query: &str, header: Option<&str>, want: &[&str]| {
        let header = header.map(|id| format!("Last-Event-ID: {id}"));
        let options: Vec<&str> = header.iter().flat_map(|header| ["-H", header.as_str()]).collect();
        let curl = bench.curl(query, &options);
        curl.wait_lines(want.len(), is_data);
        assert_eq!(rules(&curl), want, "{query}");
    };
    check("", Some(&after), &["a-2", "b-1", "a-3", "b-2"]);
    check(&format!("?last_event_id={after}"), None, &["a-2", "b-1", "a-3", "b-2"]);
    // The header counts: a browser that comes back has the query with which it first came.
    check(&format!("?last_event_id={after}"), Some(&ids[2].to_string()), &["a-3", "b-2"]);
    check(&format!("?last_event_id={after}&rule_id=a-*"), None, &["a-2", "a-3"]);
    check(&format!("?last_event_id={after}&rule_id=a-2"), None, &["a-2"]);
    check(&format!("?last_event_id={after}&component=l7"), None, &["a-3"]);
    check(&format!("?last_event_id={after}&min_severity=high"), None, &["a-3"]);
    check(&format!("?last_event_id={after}&mitre=T1110"), None, &["b-2"]);
    bench.listeners("sse", 0);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let bench = Bench::new();
    let check = |query: &str, options: &[&str], words: &str| {
        let (_, said) = bench.curl(query, &[&["-w", "\n%{http_code}"], options].concat()).end();
        assert!(said.ends_with("\n400") && said.contains("VALIDATION_ERROR") && said.contains(words), "{said}");
    };
    check("?min_severity=loud", &[], "must be one of low, medium, high, critical");
    check("?component=ips2", &[], "must be one of firewall");
    check("?mitre=1190", &[], "MITRE ATT&CK");
    check("?severity=low", &[], "known: min_severity, component, rule_id, mitre, last_event_id");
    check("?last_event_id=7", &[], "last event id");
    check("", &["-H", "Last-Event-ID: 7"], "last event id");
    check("", &["-H", "Last-Event-ID: 019ad3c1-5b7e-7c40-9c1e-6f2f1d0a4b33.x"], "no revision");
    // What is asked of the head alone ends.
    let (code, said) = bench.curl("", &["-I"]).end();
    assert!(code == Some(0) && said.to_ascii_lowercase().contains("content-type: text/event-stream"), "{said}");
    bench.listeners("sse", 0);
}

#[test]
fn an_id_that_is_gone_is_a_gap() {
    let bench = Bench::with(2, |_, _| ());
    let ids: Vec<AlertId> = (0..4).map(|number| bench.tell(alert(&number.to_string()))).collect();
    let curl = bench.curl(&format!("?last_event_id={}", ids[0]), &[]);
    curl.wait_lines(3, is_data);
    let events = events(&curl.said());
    let gap = &events[0];
    assert_eq!((gap.id.as_deref(), gap.name.as_deref()), (None, Some("gap")));
    assert_eq!(gap.data, serde_json::json!({"missed": null, "reason": "unknown_id"}));
    assert_eq!((events[1].rule(), events[2].rule()), ("2", "3"));
    assert_eq!(bench.metric("ebpfsentinel_stream_gaps_total{kind=\"sse\",reason=\"unknown_id\"}"), 1);
}

#[test]
fn a_slow_client_is_told_what_it_missed_and_a_fast_one_misses_nothing() {
    const ALERTS: usize = 600;
    let bench = Bench::with(RING, |control, _| control.limits.stall_timeout = PATIENCE);
    let slow = raw(&bench);
    let fast = bench.curl("", &[]);
    bench.listeners("sse", 2);
    for number in 0..ALERTS {
        bench.tell(long_alert(&number.to_string()));
        // Never further ahead of the fast one than the ring is long.
        if number % (RING / 2) == 0 {
            fast.wait_lines(number + 1, is_data);
        }
    }
    fast.wait_lines(ALERTS, is_data);
    let all: Vec<String> = (0..ALERTS).map(|number| number.to_string()).collect();
    assert_eq!(rules(&fast), all);

    bench.tell(alert("end"));
    let text = read_until(&slow, "\"end\"");
    let (mut told, mut missed, mut next) = (0, 0, 0);
    for event in events(&(text + "\n\n")) {
        match event.name.as_deref() {
            Some("gap") => {
                assert_eq!(event.data["reason"], "slow_client");
                missed += event.data["missed"].as_u64().unwrap() as usize;
                next += event.data["missed"].as_u64().unwrap() as usize;
            }
            _ if event.rule() == "end" => break,
            // Each gap stands where its alerts are missing.
            _ => {
                assert_eq!(event.rule(), next.to_string());
                (told, next) = (told + 1, next + 1);
            }
        }
    }
    assert!(missed > 0, "it was not slow");
    assert_eq!(told + missed, ALERTS);
    assert_eq!(
        bench.metric("ebpfsentinel_events_lost_total{place=\"stream_sse\",reason=\"slow_client\"}") as usize,
        missed
    );
}

#[test]
fn a_client_that_takes_nothing_is_cut_and_comes_back() {
    let bench = Bench::with(4096, |control, _| control.limits.stall_timeout = Duration::from_millis(300));
    let stuck = raw(&bench);
    bench.listeners("sse", 1);
    let ids: Vec<AlertId> = (0..600).map(|number| bench.tell(long_alert(&number.to_string()))).collect();
    bench.listeners("sse", 0);
    assert_eq!(bench.metric("ebpfsentinel_http_refused_total{reason=\"client_stalled\"}"), 1);
    drop(stuck);
    let again = bench.curl(&format!("?last_event_id={}", ids[10]), &[]);
    again.wait_lines(589, is_data);
    assert_eq!(rules(&again), (11..600).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn there_are_64_streams_and_no_more() {
    let bench = Bench::new();
    let mut streams: Vec<TcpStream> = (0..64).map(|_| raw(&bench)).collect();
    bench.listeners("sse", 64);
    let (_, said) = bench.curl("", &["-w", "\n%{http_code}"]).end();
    assert!(said.contains("64 streams are open, and that is the limit"), "{said}");
    assert!(said.contains("SERVICE_UNAVAILABLE") && said.ends_with("\n503"), "{said}");
    // Other requests are answered meanwhile.
    let openapi = format!("http://{}/api-docs/openapi.json", bench.rest);
    let (code, document) = Client::start(Command::new("curl").args(["-sf", &openapi])).end();
    assert!(code == Some(0) && document.contains("/api/v1/alerts/stream"), "{document}");
    bench.tell(alert("for-all"));
    streams.iter().for_each(|stream| drop(read_until(stream, "for-all")));
    // A place is free when its client has gone.
    drop(streams.pop());
    bench.listeners("sse", 63);
    streams.push(raw(&bench));
}

#[test]
fn when_the_agent_stops_streams_end() {
    let mut bench = Bench::new();
    let curl = bench.curl("", &[]);
    bench.listeners("sse", 1);
    bench.tell(alert("last"));
    bench.stop();
    let (code, said) = curl.end();
    assert_eq!((code, events(&said).len()), (Some(0), 1), "{said}");
}
