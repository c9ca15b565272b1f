//! One alert as one message: RFC 5424, its text as people read it or as CEF.

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::alert::sinks::notice::{Notice, shown, text_of};
use crate::alert::{Field, Severity};
use crate::logging::rfc3339;

/// The structured data's name. The number is the one that is set aside for examples (RFC 5612): ours is none.
const SD_ID: &str = "ebpfsentinel@32473";
const APP_NAME: &str = "ebpfsentinel";
/// Longest name of a parameter (RFC 5424, 6.3.3).
const NAME_MAX: usize = 32;
const HOST_MAX: usize = 255;

/// What the text of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The alert's message; its fields are structured data.
    Rfc5424,
    /// Common Event Format, version 0.
    Cef,
}

/// What every message begins with.
#[derive(Clone, Debug)]
pub struct Header {
    facility: u8,
    host: String,
    process: u32,
}

impl Header {
    /// Facility 0 to 23; the host's name as it is known here.
    pub fn new(facility: u8, host: &str, process: u32) -> Header {
        let host: String = host.chars().filter(char::is_ascii_graphic).take(HOST_MAX).collect();
        Header { facility, host: if host.is_empty() { "-".to_owned() } else { host }, process }
    }
}

/// The message, at most `max` bytes long and cut between characters. Fields that do not fit are left out, the last first.
pub fn of(notice: &Notice, header: &Header, format: Format, max: usize) -> Vec<u8> {
    let fields = notice.fields();
    let find = |name: &str| fields.iter().find(|(known, _)| *known == name).map(|(_, field)| field);
    let text = |name: &str| find(name).map(text_of).unwrap_or_default();
    let priority = u32::from(header.facility) * 8 + level(notice.severity());
    let time_ns = if let Some(Field::Number(time)) = find("timestamp_ns") { *time } else { 0 };
    let component = text("component");
    let component = if component.is_empty() { Cow::Borrowed("-") } else { component };
    let mut out =
        format!("<{priority}>1 {} {} {APP_NAME} {} {component} ", microseconds(time_ns), header.host, header.process);
    match format {
        Format::Rfc5424 => {
            let message = text("message");
            let message = shown(&message);
            // The text has a quarter if it needs it; what it does not need, the fields may have.
            let message = cut(&message, max / 4);
            let room = max.saturating_sub(out.len() + message.len() + 4);
            out.push_str(&structured(&fields, room));
            out.push(' ');
            if !message.is_ascii() {
                out.push('\u{feff}');
            }
            out.push_str(&message);
        }
        Format::Cef => {
            out.push_str("- ");
            cef(&fields, notice.severity(), time_ns, &header.host, max.saturating_sub(out.len()), &mut out);
        }
    }
    out.into_bytes()
}

/// The severity of syslog.
fn level(severity: Severity) -> u32 {
    match severity {
        Severity::Low => 6,
        Severity::Medium => 4,
        Severity::High => 3,
        Severity::Critical => 2,
    }
}

/// RFC 5424 allows six digits behind the second.
fn microseconds(time_ns: u64) -> String {
    let text = rfc3339(time_ns);
    match text.split_once('.') {
        Some((whole, fraction)) => format!("{whole}.{}Z", fraction.get(..6).unwrap_or("000000")),
        None => text,
    }
}

/// `[ebpfsentinel@32473 id="..." ...]` with as many of the fields as have room.
fn structured(fields: &[(&str, Field<'_>)], room: usize) -> String {
    let mut out = format!("[{SD_ID}");
    for (name, field) in fields.iter().filter(|(name, _)| !matches!(*name, "message" | "timestamp_ns")) {
        let name: String =
            name.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '=' | ']' | '"')).take(NAME_MAX).collect();
        let mut value = String::new();
        for c in shown(&text_of(field)).chars() {
            if matches!(c, '"' | '\\' | ']') {
                value.push('\\');
            }
            value.push(c);
        }
        if out.len() + name.len() + value.len() + 5 <= room {
            // Writing to a string cannot fail.
            let _ = write!(out, " {name}=\"{value}\"");
        }
    }
    out.push(']');
    out
}

/// At most `max` bytes, cut between characters.
fn cut(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(max.saturating_sub(3));
    format!("{}...", &text[..end]).into()
}

/// CEF: seven fields between bars, then `key=value`.
fn cef(fields: &[(&str, Field<'_>)], severity: Severity, time_ns: u64, host: &str, room: usize, out: &mut String) {
    let find = |name: &str| fields.iter().find(|(known, _)| *known == name).map(|(_, field)| field);
    let text = |name: &str| find(name).map(text_of).unwrap_or_default();
    let grade = match severity {
        Severity::Low => 3,
        Severity::Medium => 5,
        Severity::High => 8,
        Severity::Critical => 10,
    };
    let start = out.len();
    let _ = write!(
        out,
        "CEF:0|eBPFsentinel|ebpfsentinel-agent|{}|{}|{}|{grade}|",
        env!("CARGO_PKG_VERSION"),
        head(&cut(&text("rule_id"), 128)),
        head(&cut(&text("message"), room / 4)),
    );
    let mut first = true;
    let mut add = |key: &str, value: &str| {
        let mut escaped = String::with_capacity(value.len());
        for c in value.chars() {
            match c {
                '\\' | '=' => escaped.extend(['\\', c]),
                '\n' => escaped.push_str("\\n"),
                '\r' => escaped.push_str("\\r"),
                c => escaped.push_str(&shown(c.encode_utf8(&mut [0; 4]))),
            }
        }
        if !value.is_empty() && out.len() - start + key.len() + escaped.len() + 2 <= room {
            let _ = write!(out, "{}{key}={escaped}", if first { "" } else { " " });
            first = false;
        }
    };
    add("rt", &(time_ns / 1_000_000).to_string());
    add("externalId", &text("id"));
    add("act", &text("action"));
    for (v4, v6, label, name, ours) in [
        ("src", "c6a2", "c6a2Label", "Source IPv6 Address", "src_ip"),
        ("dst", "c6a3", "c6a3Label", "Destination IPv6 Address", "dst_ip"),
    ] {
        let address = text(ours);
        if address.contains(':') {
            add(v6, &address);
            add(label, name);
        } else {
            add(v4, &address);
        }
    }
    add("spt", &text("src_port"));
    add("dpt", &text("dst_port"));
    add("proto", &text("protocol").to_uppercase());
    add("app", &text("app_proto"));
    add("cnt", &text("count"));
    add("in", &text("bytes"));
    add("deviceInboundInterface", &text("interface"));
    add("deviceOutboundInterface", &text("out_interface"));
    add("dvchost", host);
    add("requestMethod", &text("http_method"));
    add("request", &text("http_url"));
    add("requestClientApplication", &text("http_user_agent"));
    let name = if find("http_host").is_some() { text("http_host") } else { text("tls_sni") };
    add("dhost", &name);
    add("dvcpid", &text("pid"));
    add("sproc", &text("command"));
    for (number, label, ours) in
        [("cs1", "Component", "component"), ("cs2", "Community ID", "community_id"), ("cs3", "MITRE ATT&CK", "mitre")]
    {
        if find(ours).is_some() {
            add(number, &text(ours));
            add(&format!("{number}Label"), label);
        }
    }
    add("msg", &text("message"));
}

/// A field of CEF's head.
fn head(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '|' => out.extend(['\\', c]),
            c => out.push_str(&shown(c.encode_utf8(&mut [0; 4]))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::alert::Alert;
    use crate::component::Component;

    fn notice(change: impl FnOnce(&mut Alert)) -> Notice {
        let mut alert =
            Alert::new(Component::L7, Severity::High, "r|1", "blocked", 1_500_000_123_456_789, "GET \"a\"]");
        alert.src_ip = Some("2001:db8::7".parse().unwrap());
        alert.dst_ip = Some("192.0.2.1".parse().unwrap());
        alert.dst_port = Some(80);
        alert.protocol = Some(6);
        alert.facts = vec![("http_url", "/a=b\\x".to_owned())];
        change(&mut alert);
        Notice::new(Arc::new(alert))
    }

    fn text(notice: &Notice, format: Format, max: usize) -> String {
        let message = of(notice, &Header::new(16, "host 1\n", 42), format, max);
        assert!(message.len() <= max, "{} bytes", message.len());
        String::from_utf8(message).unwrap()
    }

    #[test]
    fn a_message_is_as_the_rfc_wants_it() {
        let text = text(&notice(|_| ()), Format::Rfc5424, 2048);
        let start = "<131>1 1970-01-18T08:40:00.123456Z host1 ebpfsentinel 42 l7 [ebpfsentinel@32473 id=\"";
        assert!(text.starts_with(start), "{text}");
        assert!(
            text.contains(
                " component=\"l7\" severity=\"high\" rule_id=\"r|1\" action=\"blocked\" src_ip=\"2001:db8::7\""
            )
        );
        assert!(text.contains(" http_url=\"/a=b\\\\x\""), "{text}");
        assert!(text.contains("\"] GET \"a\"]") && text.ends_with("\"] GET \"a\"]"), "{text}");
    }

    #[test]
    fn quotes_brackets_and_controls_in_a_value_are_escaped() {
        let text =
            text(&notice(|alert| alert.matched = Some("a\"]\\\r\n\u{1b}\u{202e}ü".into())), Format::Rfc5424, 4096);
        assert!(text.contains(" matched=\"a\\\"\\]\\\\\\\\u{d}\\\\u{a}\\\\u{1b}\\\\u{202e}ü\""), "{text}");
        assert!(!text.contains(['\n', '\r', '\u{1b}']));
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        for max in 480..700 {
            let notice = notice(|alert| alert.message = "ü".repeat(1000));
            let whole = text(&notice, Format::Rfc5424, max);
            assert!(whole.ends_with("ü...") && whole.contains("\"] \u{feff}ü"), "{whole}");
            assert!(whole.contains("rule_id=\"r|1\""), "{whole}");
            text(&notice, Format::Cef, max);
        }
        let notice = notice(|alert| alert.facts = vec![("http_url", "x".repeat(3000)), ("http_host", "h".to_owned())]);
        let whole = text(&notice, Format::Rfc5424, 1024);
        assert!(!whole.contains("http_url") && whole.contains("http_host=\"h\"") && whole.ends_with("\"] GET \"a\"]"));
    }

    #[test]
    fn cef_has_its_own_escapes() {
        let text = text(&notice(|alert| alert.message = "a|b\\c=d\ne".into()), Format::Cef, 2048);
        let version = env!("CARGO_PKG_VERSION");
        let start = format!(
            " l7 - CEF:0|eBPFsentinel|ebpfsentinel-agent|{version}|r\\|1|a\\|b\\\\c=d\\u{{a}}e|8|rt=1500000123 "
        );
        assert!(text.contains(&start), "{text}");
        assert!(
            text.contains(" act=blocked c6a2=2001:db8::7 c6a2Label=Source IPv6 Address dst=192.0.2.1 dpt=80 proto=TCP")
        );
        assert!(text.contains(" request=/a\\=b\\\\x ") && text.ends_with(" msg=a|b\\\\c\\=d\\ne"), "{text}");
    }
}
