//! Alerts as records of the log: a JSON line, or an entry of the journal with a field for each part.

use log::kv::Value;
use log::{Level, Record};

use super::notice::text_of;
use super::{Deliver, Failure, Notice};
use crate::alert::{Field, Severity};
use crate::logging::ALERT_TARGET;

/// Writes each alert as one record with the target `alert`.
#[derive(Debug, Default)]
pub struct LogSink;

impl Deliver for LogSink {
    fn deliver(&mut self, batch: &[Notice]) -> Result<(), Failure> {
        batch.iter().for_each(|notice| with_record(notice, |record| log::logger().log(record)));
        Ok(())
    }
}

/// The alert as a record. Its own time and message have other names in a log line, which has both already.
fn with_record(notice: &Notice, write: impl FnOnce(&Record<'_>)) {
    let level = match notice.severity() {
        Severity::Low => Level::Info,
        Severity::Medium => Level::Warn,
        Severity::High | Severity::Critical => Level::Error,
    };
    let fields = notice.fields();
    let texts: Vec<_> = fields.iter().map(|(_, field)| text_of(field)).collect();
    let mut message = "";
    let mut pairs: Vec<(&str, Value<'_>)> = Vec::with_capacity(fields.len());
    for ((key, field), text) in fields.iter().zip(&texts) {
        let key = match *key {
            "id" => "alert_id",
            "message" => {
                message = text;
                continue;
            }
            "timestamp" => "event_time",
            key => key,
        };
        let value = match field {
            Field::Number(number) => Value::from(*number),
            Field::Text(_) | Field::List(_) => Value::from(text.as_ref()),
        };
        pairs.push((key, value));
    }
    write(
        &Record::builder().level(level).target(ALERT_TARGET).args(format_args!("{message}")).key_values(&pairs).build(),
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::alert::Alert;
    use crate::component::Component;

    #[test]
    fn the_record_carries_every_field_once() {
        let mut alert = Alert::new(Component::Firewall, Severity::Medium, "web", "deny", 7, "web from afar");
        alert.dst_ip = Some("192.0.2.1".parse().unwrap());
        alert.dst_port = Some(80);
        let id = alert.id;
        with_record(&Notice::new(Arc::new(alert)), |record| {
            assert_eq!((record.level(), record.target()), (Level::Warn, "alert"));
            assert_eq!(record.args().to_string(), "web from afar");
            let get = |key: &str| record.key_values().get(key.into()).map(|value| value.to_string());
            assert_eq!(get("alert_id"), Some(id.to_string()));
            assert_eq!(get("event_time").as_deref(), Some("1970-01-01T00:00:00.000000007Z"));
            assert_eq!(get("timestamp_ns").as_deref(), Some("7"));
            assert_eq!(get("component").as_deref(), Some("firewall"));
            assert_eq!(get("rule_id").as_deref(), Some("web"));
            assert_eq!(get("dst_ip").as_deref(), Some("192.0.2.1"));
            assert_eq!(get("dst_port").as_deref(), Some("80"));
            assert_eq!(get("src_ip"), None);
            assert_eq!(get("message"), None);
        });
    }
}
