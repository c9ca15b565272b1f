//! Log lines: JSON on stderr by default, text on request, the native protocol when stderr is journald's.
//!
//! Whatever stands in a record may come from the network (a rule's text, a name in a packet), so no character that a
//! terminal or a line reader would obey leaves here as it came in. `RUST_LOG` overrides the level of the
//! configuration. The target `alert` is written at `info` whatever the level, since alerts are what the agent is for;
//! only `RUST_LOG=alert=…` quietens it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::str::FromStr;
use std::sync::{Arc, OnceLock, RwLock};

use log::kv::{self, VisitSource, VisitValue};
use log::{Level, LevelFilter, Log, Metadata, Record};

/// The target of alert records.
pub const ALERT_TARGET: &str = "alert";

/// What the journal shows as the source of a record.
pub const SYSLOG_IDENTIFIER: &str = "ebpfsentinel-agent";

/// The keys of a JSON line that every line has; a record's own field of such a name gets an underscore after it.
const RESERVED_KEYS: [&str; 4] = ["timestamp", "level", "target", "message"];

/// How lines on stderr look. Under journald neither is used: the journal has fields of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// Time, level, target, message, then `key=value`.
    Text,
}

impl Format {
    /// The word in `agent.log_format` and `--log-format`.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Text => "text",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(s: &str) -> Result<Format, String> {
        match s {
            "json" => Ok(Format::Json),
            "text" => Ok(Format::Text),
            _ => Err(format!("\"{s}\" is not a log format; use json or text")),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `RUST_LOG` cannot be understood.
    #[error("RUST_LOG=\"{value}\": {reason}")]
    RustLog {
        /// The whole variable.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another logger is in place.
    #[error("a logger is already installed in this process")]
    Installed,
}

/// Installs the logger for the whole process. Call once, before any thread starts.
pub fn init(level: LevelFilter, format: Format) -> Result<(), LoggingError> {
    let output = Output::new(level, format, rust_log()?.as_deref())?;
    log::set_logger(&SWITCH).map_err(|_| LoggingError::Installed)?;
    SWITCH.install(output);
    Ok(())
}

/// Changes level and format of the running logger, for a reload. On an error nothing changes.
pub fn reconfigure(level: LevelFilter, format: Format) -> Result<(), LoggingError> {
    SWITCH.install(Output::new(level, format, rust_log()?.as_deref())?);
    Ok(())
}

/// Nanoseconds since 1970 as RFC 3339 in UTC, with nanoseconds, so that it says what the number says.
pub fn rfc3339(unix_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(unix_ns))
        .map(|time| format!("{time:.9}"))
        .expect("64 bits of nanoseconds end in 2554, long before jiff's last year")
}

fn rust_log() -> Result<Option<String>, LoggingError> {
    match std::env::var("RUST_LOG") {
        Ok(value) if value.trim().is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(value)) => Err(LoggingError::RustLog {
            value: value.to_string_lossy().into_owned(),
            reason: "it is not valid UTF-8".into(),
        }),
    }
}

static SWITCH: Switch = Switch { output: OnceLock::new() };

/// The installed logger; its output can be exchanged while other threads log.
struct Switch {
    output: OnceLock<RwLock<Arc<Output>>>,
}

impl Switch {
    fn install(&self, output: Output) {
        let level = output.stderr.filter();
        let output = Arc::new(output);
        let slot = self.output.get_or_init(|| RwLock::new(output.clone()));
        *slot.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = output;
        log::set_max_level(level);
    }

    /// The lock is held for the copy only: formatting runs foreign `Display` code, which may log or panic itself.
    fn output(&self) -> Option<Arc<Output>> {
        let slot = self.output.get()?;
        Some(slot.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone())
    }
}

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.output().is_some_and(|output| output.stderr.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(output) = self.output() {
            output.log(record);
        }
    }

    fn flush(&self) {}
}

struct Output {
    /// The filter of both ways out, and the writer to stderr.
    stderr: env_logger::Logger,
    journal: Option<systemd_journal_logger::JournalLog>,
}

impl Output {
    fn new(level: LevelFilter, format: Format, rust_log: Option<&str>) -> Result<Output, LoggingError> {
        let under_journald = systemd_journal_logger::connected_to_journal();
        // Without the native socket (a container that has only the stream), journald reads the priority from a prefix.
        let journal = under_journald
            .then(|| systemd_journal_logger::JournalLog::empty().ok())
            .flatten()
            .map(|journal| journal.with_syslog_identifier(SYSLOG_IDENTIFIER.into()));
        let mut builder = env_logger::Builder::new();
        builder
            .target(env_logger::Target::Stderr)
            .write_style(env_logger::WriteStyle::Never)
            .format(move |out, record| out.write_all(line(record, format, under_journald).as_bytes()))
            .filter_level(level)
            .filter_module(ALERT_TARGET, level.max(LevelFilter::Info))
            // At trace they show paths and headers of requests, which may be secrets.
            .filter_module("ureq", level.min(LevelFilter::Debug))
            .filter_module("ureq_proto", level.min(LevelFilter::Debug));
        if let Some(value) = rust_log {
            check_filter(value)
                .map_err(|reason| LoggingError::RustLog { value: value.escape_debug().to_string(), reason })?;
            builder.parse_filters(value);
        }
        Ok(Output { stderr: builder.build(), journal })
    }

    fn log(&self, record: &Record<'_>) {
        let Some(journal) = &self.journal else {
            return self.stderr.log(record);
        };
        if !self.stderr.matches(record) {
            return;
        }
        // journald keeps any bytes, but journalctl shows a message with controls in it as "blob data" only.
        let mut message = String::new();
        push_escaped(&mut message, &record.args().to_string());
        let sent = journal.journal_send(&record.to_builder().args(format_args!("{message}")).build());
        // journald may be restarting: the stream on stderr then still takes the line.
        if sent.is_err() {
            self.stderr.log(record);
        }
    }
}

/// Finds what env_logger would pass over with a warning, or take for a module: `RUST_LOG=warning` would mean "only
/// the module called warning, in full", which nobody wants.
fn check_filter(value: &str) -> Result<(), String> {
    const LEVELS: &str = "the levels are off, error, warn, info, debug and trace";
    let mut parts = value.split('/');
    let directives = parts.next().unwrap_or_default();
    if parts.nth(1).is_some() {
        return Err("there is more than one \"/\"; one is allowed, before a text to search for".into());
    }
    for directive in directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let mut sides = directive.split('=').map(str::trim);
        match (sides.next().unwrap_or_default(), sides.next(), sides.next()) {
            (module, Some(level), None) if !module.is_empty() => {
                if LevelFilter::from_str(level).is_err() {
                    return Err(format!("\"{}\" is not a level; {LEVELS}", level.escape_debug()));
                }
            }
            (word, None, None) => {
                let known = LevelFilter::from_str(word).is_ok() || word.contains("::");
                let module = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                let meant = ["off", "error", "warn", "warning", "info", "debug", "trace"]
                    .iter()
                    .find(|level| strsim::osa_distance(level, &word.to_lowercase()) <= 1);
                if !known && (!module || meant.is_some()) {
                    let word = word.escape_debug();
                    return Err(format!("\"{word}\" is not a level; {LEVELS}, or write module=level"));
                }
            }
            _ => {
                let directive = directive.escape_debug();
                return Err(format!("\"{directive}\" is neither a level nor module=level"));
            }
        }
    }
    Ok(())
}

/// The whole line of a record, with its end.
fn line(record: &Record<'_>, format: Format, priority_prefix: bool) -> String {
    let mut out = String::with_capacity(256);
    if priority_prefix {
        let priority = match record.level() {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 5,
            Level::Debug => 6,
            Level::Trace => 7,
        };
        let _ = write!(out, "<{priority}>");
    }
    let time = jiff::Timestamp::now();
    match format {
        Format::Json => {
            let _ = write!(out, "{{\"timestamp\":\"{time:.6}\",\"level\":\"{}\",\"target\":", record.level());
            push_json_string(&mut out, record.target());
            out.push_str(",\"message\":");
            push_json_string(&mut out, &record.args().to_string());
            // A field that cannot be read is left out; the line itself still stands.
            let _ = record.key_values().visit(&mut JsonFields(&mut out));
            out.push('}');
        }
        Format::Text => {
            let _ = write!(out, "{time:.6} {:<5} ", record.level());
            push_escaped(&mut out, record.target());
            out.push_str(": ");
            push_escaped(&mut out, &record.args().to_string());
            let _ = record.key_values().visit(&mut TextFields(&mut out));
        }
    }
    out.push('\n');
    out
}

/// Characters that change what a terminal or a reader of lines does: controls (C0, DEL, C1), line and paragraph
/// separators, and those that turn the direction of text.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_json_string(out: &mut String, s: &str) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // All of them lie below U+FFFF, so that one unit is enough.
            c if is_unsafe(c) => drop(write!(out, "\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn push_escaped(out: &mut String, s: &str) {
    for c in s.chars() {
        if is_unsafe(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

struct JsonFields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for JsonFields<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        self.0.push(',');
        if RESERVED_KEYS.contains(&key.as_str()) {
            push_json_string(self.0, &format!("{key}_"));
        } else {
            push_json_string(self.0, key.as_str());
        }
        self.0.push(':');
        value.visit(JsonValue(self.0))
    }
}

/// Numbers and booleans stay what they are, so that `jq` can compare them.
struct JsonValue<'a>(&'a mut String);

impl VisitValue<'_> for JsonValue<'_> {
    fn visit_any(&mut self, value: kv::Value<'_>) -> Result<(), kv::Error> {
        push_json_string(self.0, &value.to_string());
        Ok(())
    }
    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0.push_str("null");
        Ok(())
    }
    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        Ok(write!(self.0, "{value}")?)
    }
    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        Ok(write!(self.0, "{value}")?)
    }
    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        Ok(write!(self.0, "{value}")?)
    }
    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // JSON has no word for infinity.
        if value.is_finite() { Ok(write!(self.0, "{value}")?) } else { Ok(write!(self.0, "\"{value}\"")?) }
    }
}

struct TextFields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for TextFields<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        self.0.push(' ');
        push_escaped(self.0, key.as_str());
        self.0.push('=');
        let value = value.to_string();
        if value.is_empty() || value.contains([' ', '"', '=', '\\']) {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            self.0.push('"');
            push_escaped(self.0, &quoted);
            self.0.push('"');
        } else {
            push_escaped(self.0, &value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line that a record with this message and these fields gives.
    fn written(format: Format, message: &str, fields: &[(&str, kv::Value<'_>)]) -> String {
        line(
            &Record::builder()
                .level(Level::Info)
                .target("agent")
                .args(format_args!("{message}"))
                .key_values(&fields)
                .build(),
            format,
            false,
        )
    }

    #[test]
    fn a_json_line_keeps_types() {
        let text = written(
            Format::Json,
            "agent started",
            &[
                ("version", kv::Value::from("0.1.0")),
                ("rules", kv::Value::from(4096u64)),
                ("delta", kv::Value::from(-2i64)),
                ("ratio", kv::Value::from(1.5)),
                ("bad", kv::Value::from(f64::NAN)),
                ("native", kv::Value::from(true)),
                ("level", kv::Value::from("mine")),
            ],
        );
        assert!(text.ends_with("}\n") && text.lines().count() == 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let time: jiff::Timestamp = value["timestamp"].as_str().unwrap().parse().unwrap();
        assert!(time.as_second() > 1_700_000_000);
        assert!(value["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(value["level"], "INFO");
        assert_eq!(value["target"], "agent");
        assert_eq!(value["message"], "agent started");
        assert_eq!(value["version"], "0.1.0");
        assert_eq!(value["rules"], 4096);
        assert_eq!(value["delta"], -2);
        assert_eq!(value["ratio"], 1.5);
        assert_eq!(value["bad"], "NaN");
        assert_eq!(value["native"], true);
        assert_eq!(value["level_"], "mine");
    }

    #[test]
    fn a_text_line_reads_well() {
        let text = written(
            Format::Text,
            "rule added",
            &[("id", kv::Value::from("web")), ("about", kv::Value::from("say \"hi\""))],
        );
        assert!(text.ends_with(" INFO  agent: rule added id=web about=\"say \\\"hi\\\"\"\n"), "{text}");
    }

    #[test]
    fn nothing_reaches_the_terminal_as_a_command() {
        let hostile = "a\x1b[2J\r\nb\u{9b}31m\u{202e}c\u{2028}\x07\x7f";
        for format in [Format::Json, Format::Text] {
            let text = written(format, hostile, &[(hostile, kv::Value::from(hostile))]);
            assert!(!text.trim_end_matches('\n').chars().any(is_unsafe), "{text:?}");
        }
        let value: serde_json::Value =
            serde_json::from_str(&written(Format::Json, hostile, &[("name", kv::Value::from(hostile))])).unwrap();
        assert_eq!(value["message"], hostile, "JSON gives back what went in");
        assert_eq!(value["name"], hostile);
    }

    #[test]
    fn a_filter_is_understood_or_refused() {
        let check = |value: &str, want: Result<(), &str>| match (check_filter(value), want) {
            (Ok(()), Ok(())) => {}
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{value}: {reason}"),
            (got, want) => panic!("{value}: {got:?}, wanted {want:?}"),
        };
        check("debug", Ok(()));
        check("TRACE", Ok(()));
        check("off", Ok(()));
        check("ebpfsentinel=debug, ebpfsentinel::alert=trace,warn", Ok(()));
        check("ebpfsentinel", Ok(()));
        check("info/firewall", Ok(()));
        check("ebpfsentinel=loud", Err("\"loud\" is not a level"));
        check("warning", Err("the levels are off, error, warn"));
        check("inof", Err("\"inof\" is not a level"));
        check("not a word", Err("is not a level"));
        check("a=b=c", Err("neither a level nor module=level"));
        check("=info", Err("neither a level nor module=level"));
        check("ebpfsentinel=", Err("\"\" is not a level"));
        check("info/a/b", Err("more than one \"/\""));
    }

    #[test]
    fn the_level_is_the_configured_one_unless_rust_log_says_more() {
        let enabled = |level, rust_log, target: &str, at| {
            let output = Output::new(level, Format::Json, rust_log).unwrap();
            output.stderr.enabled(&Metadata::builder().target(target).level(at).build())
        };
        assert!(enabled(LevelFilter::Info, None, "ebpfsentinel::agent", Level::Info));
        assert!(!enabled(LevelFilter::Info, None, "ebpfsentinel::agent", Level::Debug));
        assert!(enabled(LevelFilter::Info, Some("debug"), "ebpfsentinel::agent", Level::Debug));
        assert!(!enabled(LevelFilter::Info, Some("error"), "ebpfsentinel::agent", Level::Warn));
        assert!(enabled(LevelFilter::Error, None, ALERT_TARGET, Level::Info), "alerts are not diagnostics");
        assert!(!enabled(LevelFilter::Error, Some("alert=off"), ALERT_TARGET, Level::Error));
        assert!(Output::new(LevelFilter::Info, Format::Json, Some("x=y")).is_err());
    }

    #[test]
    fn times_are_utc_with_nanoseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(1_795_473_000_123_456_789), "2026-11-23T22:30:00.123456789Z");
        assert!(rfc3339(u64::MAX).starts_with("2554-"));
    }
}
