//! Webhooks: alerts as JSON by POST, signed where there is a secret, or in the shape of a template.

use std::borrow::Cow;
use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Serialize, Serializer};
use sha2::Sha256;

use super::notice::{now_ms, text_of};
use super::{Deliver, Failure, FailureKind, Notice};
use crate::alert::Field;
use crate::outbound::{Answer, Client, Url};
use crate::secret::{MASK, Secret};

/// When the signature was made, in seconds since 1970.
pub const TIMESTAMP_HEADER: &str = "X-Ebpfsentinel-Timestamp";
/// `sha256=` and the HMAC-SHA256, in hexadecimal, of the timestamp, a dot and the body.
pub const SIGNATURE_HEADER: &str = "X-Ebpfsentinel-Signature";

/// What a body is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An alert, an object.
    One,
    /// Alerts, an array.
    Many,
    /// What the template makes of an alert.
    Template(Template),
}

/// Posts alerts to a URL.
pub struct WebhookSink {
    client: Client,
    url: Url,
    headers: Vec<(String, Secret)>,
    secret: Option<Secret>,
    shape: Shape,
}

impl WebhookSink {
    /// A sink.
    pub fn new(
        client: Client,
        url: Url,
        headers: Vec<(String, Secret)>,
        secret: Option<Secret>,
        shape: Shape,
    ) -> WebhookSink {
        WebhookSink { client, url, headers, secret, shape }
    }

    fn post(&self, body: &str, alerts: usize) -> Result<(), Failure> {
        let timestamp = (now_ms() / 1000).to_string();
        let signature = self.secret.as_ref().map(|secret| sign(secret, &timestamp, body));
        let mut headers = vec![("Content-Type", "application/json"), (TIMESTAMP_HEADER, timestamp.as_str())];
        headers.extend(signature.as_deref().map(|signature| (SIGNATURE_HEADER, signature)));
        headers.extend(self.headers.iter().map(|(name, value)| (name.as_str(), value.expose())));
        match self.client.post(&self.url, &headers, body.as_bytes()) {
            Ok(answer) => judge(&answer, alerts)
                .map_err(|failure| Failure { message: format!("{} {}", self.url, failure.message), ..failure }),
            Err(error) => Err(Failure::retry(format!("{}: {error}", self.url))),
        }
    }
}

impl Deliver for WebhookSink {
    fn deliver(&mut self, batch: &[Notice]) -> Result<(), Failure> {
        if self.shape == Shape::Many {
            let objects: Vec<Cow<'_, str>> = batch.iter().map(Notice::json).collect();
            return self.post(&format!("[{}]", objects.join(",")), batch.len());
        }
        for (delivered, notice) in batch.iter().enumerate() {
            let result = match &self.shape {
                Shape::Template(template) => self.post(&template.fill(notice), 1),
                Shape::One | Shape::Many => self.post(&notice.json(), 1),
            };
            result.map_err(|failure| Failure { delivered, ..failure })?;
        }
        Ok(())
    }
}

/// What an answer means. Redirects are not followed. For good are only those of the 4xx that speak of the alert: a
/// redirect, a login that is asked for or refused, a path that is not there speak of the destination, and so of every
/// alert alike. Somebody mends that, and alerts wait for it as they wait for a host that is down.
fn judge(answer: &Answer, alerts: usize) -> Result<(), Failure> {
    let kind = match answer.status {
        200..=299 => return Ok(()),
        // It may be one alert of many that it does not like, or that they are too many.
        400 | 413 | 422 if alerts > 1 => FailureKind::Split,
        401 | 403 | 404 | 405 | 407 | 408 | 410 | 421 | 425 | 429 => FailureKind::Retry(answer.retry_after),
        400..=499 => FailureKind::Refused,
        _ => FailureKind::Retry(answer.retry_after),
    };
    let more = match answer.status {
        300..=399 => ", a redirect, which is not followed".to_owned(),
        _ if answer.body_len > 0 => {
            format!("; {} bytes say why, and are not shown, as they may repeat a secret", answer.body_len)
        }
        _ => String::new(),
    };
    Err(Failure { delivered: 0, kind, message: format!("answers {}{more}", answer.status) })
}

fn sign(secret: &Secret, timestamp: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("HMAC takes a key of any length");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    format!("sha256={}", data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes()))
}

/// Fields that a template may name. Those that an alert does not have are empty.
const PLACEHOLDERS: &[&str] = &[
    "id",
    "timestamp",
    "timestamp_ns",
    "component",
    "severity",
    "rule_id",
    "action",
    "message",
    "count",
    "revision",
    "first_seen",
    "last_seen",
    "mitre",
    "src_ip",
    "src_port",
    "dst_ip",
    "dst_port",
    "protocol",
    "vlan_id",
    "tcp_flags",
    "bytes",
    "interface",
    "next_hop",
    "out_interface",
    "direction",
    "community_id",
    "pid",
    "command",
    "app_proto",
    "matched_field",
    "matched",
    "http_method",
    "http_host",
    "http_url",
    "http_user_agent",
    "http_status",
    "tls_sni",
    "tls_ja3",
    "tls_ja4",
    "smtp_from",
    "smtp_to",
    "smtp_subject",
    "ftp_command",
    "ftp_file",
    "smb_share",
    "smb_file",
    "smb_user",
    "ssh_client",
    "ssh_server",
    "dns_query",
];
/// Numbers that every alert has: they may stand without quotes.
const NUMBERS: &[&str] = &["timestamp_ns", "count"];
/// Stands for the whole alert, a JSON object.
const WHOLE: &str = "alert";

/// A JSON text with `{message}`, `{severity}` and the like in its strings. `{{message}}` stands for `{message}` itself.
/// It is not shown: some services have their key in the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

#[derive(Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(&'static str),
    Whole,
}

impl Template {
    /// Reads a template, and proves that whatever an alert holds it gives valid JSON.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            if let Some(word) = word_in(from, "{{", "}}") {
                plain.push_str(&format!("{{{word}}}"));
                rest = &from[word.len() + 4..];
            } else if let Some(word) = word_in(from, "{", "}") {
                let known = PLACEHOLDERS.iter().find(|known| **known == word);
                let part = match known {
                    Some(name) => Part::Field(name),
                    None if word == WHOLE => Part::Whole,
                    None => {
                        let near = crate::written::did_you_mean(word, PLACEHOLDERS.iter().copied().chain([WHOLE]));
                        return Err(format!("{{{word}}} is no field of an alert{near}"));
                    }
                };
                parts.push(Part::Text(std::mem::take(&mut plain)));
                parts.push(part);
                rest = &from[word.len() + 2..];
            } else {
                plain.push('{');
                rest = &from[1..];
            }
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        let template = Template { text: text.to_owned(), parts };
        // With everything there, in the worst shape, and with nothing there but what always is.
        for there in [true, false] {
            let filled = template.fill_with(
                |name| match name {
                    name if NUMBERS.contains(&name) => "1".into(),
                    _ if there => "\"\\\n\u{1}ü{x}".into(),
                    _ => Cow::Borrowed(""),
                },
                "{\"a\":1}",
            );
            let check: Result<serde_json::Value, _> = serde_json::from_str(&filled);
            check.map_err(|error| format!("it does not give valid JSON: {error}; fields stand in quotes"))?;
        }
        Ok(template)
    }

    fn fill(&self, notice: &Notice) -> String {
        let fields: Vec<(&str, Field<'_>)> = notice.fields();
        let find = |name: &str| fields.iter().find(|(known, _)| *known == name).map(|(_, field)| text_of(field));
        self.fill_with(|name| find(name).unwrap_or_default(), &notice.json())
    }

    fn fill_with<'v>(&self, value: impl Fn(&'static str) -> Cow<'v, str>, whole: &str) -> String {
        let mut out = String::with_capacity(self.text.len() + 256);
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Whole => out.push_str(whole),
                Part::Field(name) => {
                    let quoted = serde_json::to_string(value(name).as_ref()).unwrap_or_default();
                    out.push_str(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default());
                }
            }
        }
        out
    }
}

/// The word of lower-case letters, digits and `_` between an opening at the start of the text and a closing.
fn word_in<'t>(text: &'t str, open: &str, close: &str) -> Option<&'t str> {
    let rest = text.strip_prefix(open)?;
    let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))?;
    (end > 0 && rest[end..].starts_with(close)).then(|| &rest[..end])
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::alert::{Alert, Severity};
    use crate::component::Component;
    use crate::outbound::ClientConfig;

    #[test]
    fn a_template_gives_valid_json_whatever_an_alert_holds() {
        let template = Template::parse(
            r#"{"text": "*[{severity}]* {message} {{message}} {matched}", "n": {count}, "o": {"a": {}}, "raw": {alert}}"#,
        );
        let mut alert = Alert::new(Component::L7, Severity::High, "r", "log", 1, "say \"hi\"\\\n");
        alert.count = 7;
        let filled = template.unwrap().fill(&Notice::new(Arc::new(alert)));
        let value: serde_json::Value = serde_json::from_str(&filled).unwrap();
        assert_eq!(value["text"], "*[high]* say \"hi\"\\\n {message} ");
        assert_eq!((&value["n"], &value["raw"]["count"]), (&7.into(), &7.into()));
    }

    #[test]
    fn a_template_that_does_not_is_refused() {
        let check = |text: &str, part: &str| {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        };
        check(r#"{"text": {message}}"#, "fields stand in quotes");
        check(r#"{"text": {src_port}}"#, "fields stand in quotes");
        check(r#"{"text": "{mesage}"}"#, "{mesage} is no field of an alert; did you mean message?");
        check(r#"{"text": "{message}""#, "not give valid JSON");
        check(r#"{"text": "{alert}"}"#, "not give valid JSON");
        check("", "not give valid JSON");
    }

    #[test]
    fn the_signature_is_that_of_other_programs() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac s3cret
        let signature = sign(&Secret::new("s3cret"), "1700000000", "{\"a\":1}");
        assert_eq!(signature, "sha256=1698a50bc74d1ff1db85c4e0a5297c2ad9fdba245d5737cdb789e4cc6e098940");
    }

    /// A receiver that says back all that it was told: the URL, the headers, the body.
    #[test]
    fn nothing_of_an_answer_is_told_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/s3cret?token=s3cret", listener.local_addr().unwrap());
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                let mut some = [0; 4096];
                let read = stream.read(&mut some).unwrap();
                assert!(read > 0, "the request ends early");
                request.extend_from_slice(&some[..read]);
            }
            let head = format!("HTTP/1.1 400 s3cret\r\nX-Echo: s3cret\r\nContent-Length: {}\r\n\r\n", request.len());
            stream.write_all(&[head.as_bytes(), &request].concat()).unwrap();
            String::from_utf8(request).unwrap()
        });
        let config = ClientConfig { allow_private: true, insecure: true, ..ClientConfig::default() };
        let headers = vec![("Authorization".to_owned(), Secret::new("Bearer s3cret"))];
        let shape = Shape::Template(Template::parse(r#"{"key": "s3cret", "text": "{message}"}"#).unwrap());
        let url = Url::parse(&url, true, true).unwrap();
        let mut sink = WebhookSink::new(Client::new(config).unwrap(), url, headers, None, shape);
        let alert = Alert::new(Component::L7, Severity::High, "r", "log", 1, "m");
        let failure = sink.deliver(&[Notice::new(Arc::new(alert))]).unwrap_err();
        assert_eq!(echo.join().unwrap().matches("s3cret").count(), 4, "it was told");
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.contains("/*** answers 400; ") && !failure.message.contains("s3cret"), "{failure:?}");
    }

    #[test]
    fn an_answer_is_taken_refused_or_tried_again() {
        let kind = |status: u16, alerts: usize| {
            let answer = Answer { status, retry_after: Some(Duration::from_secs(3)), body_len: 3 };
            judge(&answer, alerts).map_err(|failure| failure.kind)
        };
        let later = Err(FailureKind::Retry(Some(Duration::from_secs(3))));
        for (status, alerts, want) in [
            (200, 1, Ok(())),
            (204, 1, Ok(())),
            (400, 1, Err(FailureKind::Refused)),
            (400, 2, Err(FailureKind::Split)),
            (413, 1, Err(FailureKind::Refused)),
            (413, 9, Err(FailureKind::Split)),
            (415, 2, Err(FailureKind::Refused)),
            (422, 1, Err(FailureKind::Refused)),
            (422, 2, Err(FailureKind::Split)),
            (451, 1, Err(FailureKind::Refused)),
        ] {
            assert_eq!(kind(status, alerts), want, "{status}");
        }
        // These say the same of every alert.
        for status in [
            101, 300, 301, 302, 303, 304, 307, 308, 401, 403, 404, 405, 407, 408, 410, 421, 425, 429, 500, 503, 511,
            600,
        ] {
            for alerts in [1, 2] {
                assert_eq!(kind(status, alerts), later, "{status}");
            }
        }
    }
}
