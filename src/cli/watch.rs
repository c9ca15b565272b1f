//! `alerts watch`: alerts as they happen, a line each, until Ctrl-C.

use std::io::{self, BufRead, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use argh::FromArgs;
use crossbeam_channel::bounded;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::{OK, Output, REFUSED, Remote, UNREACHABLE, complain, encoded, printable};
use crate::client::{Client, ClientError};
use crate::supervise::Bell;
use crate::system::Signals;

/// The agent says something every 15 seconds; who hears nothing for so long is not connected any more.
const SILENCE: Duration = Duration::from_secs(40);
/// Between attempts to come back, at first and at most.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest line of a stream; an alert is a few kilobytes.
const LINE_MAX: u64 = 1 << 20;
/// A line that is being written when Ctrl-C is pressed has so long to be whole.
const LAST_LINE: Duration = Duration::from_millis(200);

/// Show alerts as they happen, until Ctrl-C. After an interruption it goes on where it was.
#[derive(FromArgs)]
#[argh(subcommand, name = "watch", help_triggers("-h", "--help", "help"))]
pub struct WatchArgs {
    /// only of this component
    #[argh(option, arg_name = "name")]
    component: Option<String>,

    /// only from this severity on: low, medium, high or critical
    #[argh(option, arg_name = "word")]
    severity: Option<String>,

    /// only of this rule; a * at the end stands for any rest
    #[argh(option, arg_name = "id")]
    rule: Option<String>,

    /// only with this MITRE technique, as T1190, or a part of it
    #[argh(option, arg_name = "id")]
    mitre: Option<String>,

    /// begin with what happened after this alert
    #[argh(option, arg_name = "id")]
    after: Option<String>,
}

/// What to ask for.
#[derive(Debug, PartialEq)]
pub struct Watch {
    target: String,
    after: Option<String>,
}

/// The request.
pub fn command(args: WatchArgs) -> Remote {
    let parts =
        [("component", args.component), ("min_severity", args.severity), ("rule_id", args.rule), ("mitre", args.mitre)];
    let query: Vec<String> =
        parts.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(&value?)))).collect();
    let mut target = "/api/v1/alerts/stream".to_owned();
    if !query.is_empty() {
        target += &format!("?{}", query.join("&"));
    }
    Remote::Watch(Watch { target, after: args.after })
}

/// Prints alerts until a signal or an error ends it; the exit code.
pub fn run(client: Client, watch: &Watch, output: Output) -> i32 {
    let failed = |what: &str, error: nix::Error| {
        complain(&format!("alerts watch: {what}: {error}"));
        UNREACHABLE
    };
    // Before the other thread starts: threads inherit the mask.
    let signals = match Signals::block() {
        Ok(signals) => signals,
        Err(error) => return failed("taking signals", error),
    };
    let bell = match Bell::new() {
        Ok(bell) => bell,
        Err(error) => return failed("making a bell", error),
    };
    let (end, ended) = bounded(1);
    let writing = Arc::new(Mutex::new(()));
    let mut watcher = Watcher {
        client,
        target: watch.target.clone(),
        last: watch.after.clone(),
        output,
        writing: writing.clone(),
        connected: false,
    };
    let rings = bell.clone();
    std::thread::spawn(move || {
        let code = watcher.run();
        // Nobody waits for it when a signal came first.
        let _ = end.send(code);
        rings.ring();
    });
    loop {
        let mut ready = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return failed("waiting", error),
        }
        if let Ok(code) = ended.try_recv() {
            return code;
        }
        if matches!(signals.take(), Ok(Some(_))) {
            let deadline = Instant::now() + LAST_LINE;
            while writing.try_lock().is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            return OK;
        }
    }
}

struct Watcher {
    client: Client,
    target: String,
    /// The last event that was printed.
    last: Option<String>,
    output: Output,
    /// Held while a line is written.
    writing: Arc<Mutex<()>>,
    /// Whether it ever was.
    connected: bool,
}

/// Why a stream is over.
enum Over {
    /// The agent, or something on the way, has ended it.
    Stream(String),
    /// Nobody reads what is printed.
    Reader,
}

impl Watcher {
    fn run(&mut self) -> i32 {
        let mut pause = PAUSE;
        let mut away = false;
        loop {
            let why = match self.client.stream(&self.target, self.last.as_deref(), SILENCE) {
                Ok(stream) => {
                    if std::mem::take(&mut away) {
                        eprintln!("connected again");
                    }
                    (self.connected, pause) = (true, PAUSE);
                    match self.read(stream) {
                        Over::Stream(why) => why,
                        Over::Reader => return OK,
                    }
                }
                Err(error) => match &error {
                    // It said why once, and says the same again and again.
                    ClientError::Refused { status: 429 | 503, .. } | ClientError::Unreachable { .. }
                        if self.connected =>
                    {
                        error.to_string()
                    }
                    _ => {
                        complain(&error.to_string());
                        return if matches!(error, ClientError::Refused { .. }) { REFUSED } else { UNREACHABLE };
                    }
                },
            };
            if !std::mem::replace(&mut away, true) {
                eprintln!("{}; trying again", printable(&why));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Prints the events of a stream until it is over.
    fn read(&mut self, mut stream: impl BufRead) -> Over {
        let mut event = Event::default();
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut stream).take(LINE_MAX).read_until(b'\n', &mut line) {
                Ok(0) => return Over::Stream("the agent has ended the stream".to_owned()),
                Ok(_) if !line.ends_with(b"\n") && line.len() as u64 == LINE_MAX => {
                    return Over::Stream("a line of the stream is too long".to_owned());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Over::Stream("the agent says nothing any more".to_owned());
                }
                Err(error) => return Over::Stream(format!("the connection was lost: {error}")),
            }
            let text = String::from_utf8_lossy(&line);
            if !event.add(text.trim_end_matches(['\r', '\n'])) {
                continue;
            }
            let Event { name, data, id } = std::mem::take(&mut event);
            if !data.is_empty() && self.print(&line_of(&name, &data, self.output)).is_err() {
                return Over::Reader;
            }
            self.last = id.or(self.last.take());
        }
    }

    fn print(&self, line: &str) -> io::Result<()> {
        let _writing = self.writing.lock();
        let mut out = io::stdout().lock();
        out.write_all(format!("{}\n", printable(line)).as_bytes())?;
        out.flush()
    }
}

/// An event of the stream, as far as it has come.
#[derive(Debug, Default, PartialEq)]
struct Event {
    name: String,
    data: String,
    id: Option<String>,
}

impl Event {
    /// Adds a line. True when it was the last one.
    fn add(&mut self, line: &str) -> bool {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => return line.is_empty(),
            "event" => self.name = value.to_owned(),
            "id" => self.id = Some(value.to_owned()),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // How soon to come back is ours to know.
            _ => {}
        }
        false
    }
}

/// An event as it is printed.
fn line_of(name: &str, data: &str, output: Output) -> String {
    let document: Value = serde_json::from_str(data).unwrap_or_else(|_| json!(data));
    match (name, output) {
        ("gap", Output::Json) => json!({"gap": document}).to_string(),
        ("gap", Output::Table) => {
            let number = document["missed"].as_u64().map_or_else(|| "Some".to_owned(), |missed| missed.to_string());
            let reason = document["reason"].as_str().unwrap_or("unknown");
            format!("--- {number} alerts are missing here ({reason}) ---")
        }
        (_, Output::Json) => document.to_string(),
        (_, Output::Table) => summary(&document).replace('\n', " "),
    }
}

/// An alert on one line.
fn summary(alert: &Value) -> String {
    let text = |key: &str| alert[key].as_str().unwrap_or("-");
    let end = |address: &str, port: &str| {
        let address = text(address);
        match (alert[port].as_u64(), address.parse::<IpAddr>()) {
            (Some(port), Ok(IpAddr::V6(v6))) => format!("[{v6}]:{port}"),
            (Some(port), _) => format!("{address}:{port}"),
            (None, _) => address.to_owned(),
        }
    };
    let seen = text("last_seen").split('.').next().unwrap_or_default().trim_end_matches('Z').to_owned();
    let count = match alert["count"].as_u64() {
        Some(count @ 2..) => format!(" x{count}"),
        _ => String::new(),
    };
    format!(
        "{seen}Z {:8} {:9} {} {} {} -> {} {}{count}: {}",
        text("severity"),
        text("component"),
        text("rule_id"),
        text("action"),
        end("src_ip", "src_port"),
        end("dst_ip", "dst_port"),
        text("protocol"),
        text("message"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_line_by_line() {
        let check = |lines: &[&str], want: Option<Event>| {
            let mut event = Event::default();
            let ended: Vec<bool> = lines.iter().map(|line| event.add(line)).collect();
            assert_eq!(ended.iter().rposition(|end| *end), want.as_ref().map(|_| lines.len() - 1), "{lines:?}");
            if let Some(want) = want {
                assert_eq!(event, want, "{lines:?}");
            }
        };
        let event = |name: &str, data: &str, id: Option<&str>| {
            Some(Event { name: name.to_owned(), data: data.to_owned(), id: id.map(str::to_owned) })
        };
        check(&["id: 7", "data: {}", ""], event("", "{}", Some("7")));
        check(&["event:gap", "data:a", "data: b", ""], event("gap", "a\nb", None));
        check(&[": still here", ""], event("", "", None));
        check(&["retry: 2000", "data", ""], event("", "", None));
        check(&["id: 7", "data: {}"], None);
    }

    #[test]
    fn an_alert_is_a_line_and_so_is_a_gap() {
        let alert = json!({
            "last_seen": "2026-11-30T22:15:45.123456789Z", "severity": "high", "component": "firewall", "rule_id": "ssh",
            "action": "deny", "src_ip": "2001:db8::7", "src_port": 40000, "dst_ip": "192.0.2.1", "dst_port": 22,
            "protocol": "tcp", "message": "two\nlines", "count": 3,
        });
        assert_eq!(
            line_of("", &alert.to_string(), Output::Table),
            "2026-11-30T22:15:45Z high     firewall  ssh deny [2001:db8::7]:40000 -> 192.0.2.1:22 tcp x3: two lines"
        );
        assert_eq!(line_of("", &alert.to_string(), Output::Json), alert.to_string());
        let bare = json!({"last_seen": "2026-11-30T22:15:45Z", "severity": "low", "component": "l7", "message": "m"});
        assert_eq!(
            line_of("", &bare.to_string(), Output::Table),
            "2026-11-30T22:15:45Z low      l7        - - - -> - -: m"
        );
        let gap = r#"{"missed":15,"reason":"slow_client"}"#;
        assert_eq!(line_of("gap", gap, Output::Table), "--- 15 alerts are missing here (slow_client) ---");
        assert_eq!(line_of("gap", gap, Output::Json), format!("{{\"gap\":{gap}}}"));
        let unknown = r#"{"missed":null,"reason":"unknown_id"}"#;
        assert_eq!(line_of("gap", unknown, Output::Table), "--- Some alerts are missing here (unknown_id) ---");
    }
}
