//! Alerts as records of the log: a JSON line, or an entry of the journal with a field for each part.

use std::sync::Arc;

use log::kv::Value;
use log::{Level, Record};

use super::Sink;
use crate::alert::{Alert, Field, Severity};
use crate::logging::ALERT_TARGET;

/// Writes each alert as one record with the target `alert`.
#[derive(Debug, Default)]
pub struct LogSink;

impl Sink for LogSink {
    fn name(&self) -> &str {
        "log"
    }

    fn write(&mut self, alert: &Arc<Alert>) -> Result<(), &'static str> {
        with_record(alert, |record| log::logger().log(record));
        Ok(())
    }
}

/// The alert as a record. Its own time and message have other names in a log line, which has both already.
fn with_record(alert: &Alert, write: impl FnOnce(&Record<'_>)) {
    let level = match alert.severity {
        Severity::Low => Level::Info,
        Severity::Medium => Level::Warn,
        Severity::High | Severity::Critical => Level::Error,
    };
    let fields = alert.fields();
    // A field of the journal is one text.
    let joined: Vec<Option<String>> = fields
        .iter()
        .map(|(_, field)| match field {
            Field::List(texts) => Some(texts.join(",")),
            Field::Text(_) | Field::Number(_) => None,
        })
        .collect();
    let pairs: Vec<(&str, Value<'_>)> = fields
        .iter()
        .zip(&joined)
        .filter_map(|((key, field), joined)| {
            let key = match *key {
                "id" => "alert_id",
                "message" => return None,
                "timestamp" => "event_time",
                key => key,
            };
            let value = match field {
                Field::Text(text) => Value::from(text.as_ref()),
                Field::Number(number) => Value::from(*number),
                Field::List(_) => Value::from(joined.as_deref().unwrap_or_default()),
            };
            Some((key, value))
        })
        .collect();
    let message = format_args!("{}", alert.message);
    write(&Record::builder().level(level).target(ALERT_TARGET).args(message).key_values(&pairs).build());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::Component;

    #[test]
    fn the_record_carries_every_field_once() {
        let mut alert = Alert::new(Component::Firewall, Severity::Medium, "web", "deny", 7, "web from afar");
        alert.dst_ip = Some("192.0.2.1".parse().unwrap());
        alert.dst_port = Some(80);
        alert.mitre = vec!["T1190".into(), "T1110".into()];
        with_record(&alert, |record| {
            assert_eq!((record.level(), record.target()), (Level::Warn, "alert"));
            assert_eq!(record.args().to_string(), "web from afar");
            let get = |key: &str| record.key_values().get(key.into()).map(|value| value.to_string());
            assert_eq!(get("alert_id"), Some(alert.id.to_string()));
            assert_eq!(get("event_time").as_deref(), Some("1970-01-01T00:00:00.000000007Z"));
            assert_eq!(get("timestamp_ns").as_deref(), Some("7"));
            assert_eq!(get("component").as_deref(), Some("firewall"));
            assert_eq!(get("rule_id").as_deref(), Some("web"));
            assert_eq!(get("dst_ip").as_deref(), Some("192.0.2.1"));
            assert_eq!(get("dst_port").as_deref(), Some("80"));
            assert_eq!(get("mitre").as_deref(), Some("T1190,T1110"));
            assert_eq!(get("count").as_deref(), Some("1"));
            assert_eq!(get("src_ip"), None);
            assert_eq!(get("message"), None);
        });
    }
}
