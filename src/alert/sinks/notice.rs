//! An alert on its way to a sink: as it was told, or as it comes back from the disk.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::alert::{Alert, Field, Severity};

/// An alert for a sink.
#[derive(Clone, Debug)]
pub struct Notice {
    source: Source,
    accepted_ms: u64,
}

#[derive(Clone, Debug)]
enum Source {
    Live(Arc<Alert>),
    Stored(Stored),
}

/// What was written to the disk, and the same taken apart.
#[derive(Clone, Debug)]
struct Stored {
    json: Box<str>,
    fields: Vec<(Box<str>, Value)>,
}

#[derive(Clone, Debug)]
enum Value {
    Text(Box<str>),
    Number(u64),
    List(Vec<Arc<str>>),
}

impl Notice {
    /// An alert that was told just now.
    pub fn new(alert: Arc<Alert>) -> Notice {
        Notice { source: Source::Live(alert), accepted_ms: now_ms() }
    }

    /// An alert from the disk, accepted at that time in milliseconds since 1970. The error says what is wrong with it.
    pub fn stored(json: &[u8], accepted_ms: u64) -> Result<Notice, String> {
        let json = std::str::from_utf8(json).map_err(|error| error.to_string())?;
        let Fields(fields) = serde_json::from_str(json).map_err(|error| error.to_string())?;
        Ok(Notice { source: Source::Stored(Stored { json: json.into(), fields }), accepted_ms })
    }

    /// When a sink got it, in milliseconds since 1970.
    pub fn accepted_ms(&self) -> u64 {
        self.accepted_ms
    }

    /// The alert as a JSON object.
    pub fn json(&self) -> Cow<'_, str> {
        match &self.source {
            Source::Live(alert) => {
                serde_json::to_string(alert).expect("an alert is made of strings, numbers and lists").into()
            }
            Source::Stored(stored) => Cow::Borrowed(&stored.json),
        }
    }

    /// The fields in the order of [`Alert::fields`].
    pub fn fields(&self) -> Vec<(&str, Field<'_>)> {
        match &self.source {
            Source::Live(alert) => alert.fields(),
            Source::Stored(stored) => {
                stored.fields.iter().map(|(name, value)| (name.as_ref(), value.as_field())).collect()
            }
        }
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match &self.source {
            Source::Live(alert) => alert.severity,
            Source::Stored(stored) => {
                let word = stored.fields.iter().find(|(name, _)| name.as_ref() == "severity");
                let word = word.and_then(|(_, value)| value.as_text()).and_then(|word| word.parse().ok());
                word.unwrap_or(Severity::High)
            }
        }
    }
}

impl Value {
    fn as_field(&self) -> Field<'_> {
        match self {
            Value::Text(text) => Field::Text(Cow::Borrowed(text)),
            Value::Number(number) => Field::Number(*number),
            Value::List(list) => Field::List(list),
        }
    }

    fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A field's text, whatever it is; lists with commas.
pub fn text_of<'f>(field: &'f Field<'_>) -> Cow<'f, str> {
    match field {
        Field::Text(text) => Cow::Borrowed(text),
        Field::Number(number) => number.to_string().into(),
        Field::List(list) => list.join(",").into(),
    }
}

/// Text without characters that a receiver or a terminal would obey; they are shown as `\n` or `\u{1b}`.
pub fn shown(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| {
        c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_bad(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out.into()
}

/// The members of an object, in their order.
struct Fields(Vec<(Box<str>, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an alert")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Fields, M::Error> {
                let mut fields = Vec::with_capacity(24);
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a whole number or a list of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.into()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
                Ok(Value::Number(number))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Value, S::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element::<String>()? {
                    list.push(Arc::from(item));
                }
                Ok(Value::List(list))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::Component;

    #[test]
    fn what_comes_back_from_the_disk_says_the_same() {
        let mut alert = Alert::new(Component::L7, Severity::Medium, "r\"1", "blocked", 1_500_000_000, "a\u{1f}b\\ü");
        alert.src_ip = Some("2001:db8::7".parse().unwrap());
        alert.dst_port = Some(22);
        alert.facts = vec![("http_url", "/x?y".to_owned())];
        let live = Notice::new(Arc::new(alert));
        let stored = Notice::stored(live.json().as_bytes(), 7).unwrap();
        assert_eq!(stored.fields(), live.fields());
        assert_eq!((stored.json(), stored.severity()), (live.json(), Severity::Medium));
        assert_eq!(stored.accepted_ms(), 7);
        let with_list = Notice::stored(br#"{"mitre":["T1190","T1059"],"count":3}"#, 0).unwrap();
        let texts: Vec<String> = with_list.fields().iter().map(|(_, field)| text_of(field).into_owned()).collect();
        assert_eq!(texts, ["T1190,T1059", "3"]);
        for bad in [&b"{"[..], b"[]", b"{\"a\":{}}", b"\xff", b"{\"a\":1.5}"] {
            assert!(Notice::stored(bad, 0).is_err());
        }
    }
}
