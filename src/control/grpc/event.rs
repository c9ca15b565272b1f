//! An alert as the message of the stream.

use std::net::IpAddr;

use serde_json::Value;

use super::pb::{AlertEvent, Gap};
use crate::alert::hub::{self, Event};
use crate::alert::{Alert, Field, protocol_number};

/// The message of an event.
pub fn message(event: &Event) -> AlertEvent {
    match event {
        Event::Live(live) => of_alert(live.alert()),
        Event::Stored(stored) => of_document(&stored.document),
        Event::Gap(gap) => of_gap(gap),
    }
}

fn of_gap(gap: &hub::Gap) -> AlertEvent {
    let gap = Gap { missed: gap.missed, reason: gap.reason.name().to_owned() };
    AlertEvent { gap: Some(gap), ..AlertEvent::default() }
}

fn of_alert(alert: &Alert) -> AlertEvent {
    let mut event = AlertEvent {
        timestamp_ns: alert.timestamp_ns,
        protocol: alert.protocol.unwrap_or(0).into(),
        first_seen_ns: alert.first_seen_ns,
        last_seen_ns: alert.last_seen_ns,
        mitre: alert.mitre.iter().map(|technique| technique.to_string()).collect(),
        ..AlertEvent::default()
    };
    for (name, field) in alert.fields() {
        match field {
            Field::Text(text) => set_text(&mut event, name, text.into_owned()),
            Field::Number(number) => set_number(&mut event, name, number),
            Field::List(_) => {}
        }
    }
    set_addresses(&mut event);
    event
}

/// The same from an alert as the REST API shows it.
fn of_document(document: &Value) -> AlertEvent {
    let mut event = AlertEvent::default();
    let Some(fields) = document.as_object() else { return event };
    for (name, value) in fields {
        match value {
            Value::String(text) => {
                set_times(&mut event, name, text);
                set_text(&mut event, name, text.clone());
            }
            Value::Number(number) => set_number(&mut event, name, number.as_u64().unwrap_or(0)),
            Value::Bool(set) if name == "false_positive" => event.false_positive = *set,
            Value::Array(items) if name == "mitre" => {
                event.mitre = items.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            }
            // What somebody wrote to the alert afterwards.
            other => drop(event.details.insert(name.clone(), other.to_string())),
        }
    }
    set_addresses(&mut event);
    event
}

fn set_text(event: &mut AlertEvent, name: &str, text: String) {
    match name {
        "id" => event.id = text,
        "component" => event.component = text,
        "severity" => event.severity = text,
        "rule_id" => event.rule_id = text,
        "action" => event.action = text,
        "src_ip" => event.src_ip = text,
        "dst_ip" => event.dst_ip = text,
        "direction" => event.direction = text,
        "message" => event.message = text,
        "protocol" => event.protocol = protocol_number(&text).unwrap_or(0).into(),
        // They are there as numbers.
        "timestamp" | "first_seen" | "last_seen" => {}
        other => drop(event.details.insert(other.to_owned(), text)),
    }
}

fn set_times(event: &mut AlertEvent, name: &str, text: &str) {
    let wanted = match name {
        "first_seen" => &mut event.first_seen_ns,
        "last_seen" => &mut event.last_seen_ns,
        _ => return,
    };
    let time = text.parse::<jiff::Timestamp>().ok();
    *wanted = time.and_then(|time| time.as_nanosecond().try_into().ok()).unwrap_or(0);
}

fn set_number(event: &mut AlertEvent, name: &str, number: u64) {
    // Wider than what they hold: ports, a process id, a count of updates.
    let narrow = u32::try_from(number).unwrap_or(u32::MAX);
    match name {
        "timestamp_ns" => event.timestamp_ns = number,
        "src_port" => event.src_port = narrow,
        "dst_port" => event.dst_port = narrow,
        "pid" => event.pid = narrow,
        "count" => event.count = number,
        "revision" => event.revision = narrow,
        other => drop(event.details.insert(other.to_owned(), number.to_string())),
    }
}

fn set_addresses(event: &mut AlertEvent) {
    let addresses = [&event.src_ip, &event.dst_ip].map(|text| text.parse::<IpAddr>().ok());
    event.is_ipv6 = addresses.iter().flatten().any(IpAddr::is_ipv6);
    let [source, destination] = addresses.map(|address| address.map(words).unwrap_or_default());
    event.src_addr = source;
    event.dst_addr = destination;
}

/// An address in four words.
fn words(address: IpAddr) -> Vec<u32> {
    match address {
        IpAddr::V4(v4) => vec![v4.to_bits(), 0, 0, 0],
        IpAddr::V6(v6) => (0..4).map(|word| (v6.to_bits() >> (96 - 32 * word)) as u32).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Severity;
    use crate::alert::hub::{GapReason, Stored};
    use crate::component::Component;

    fn alert() -> Alert {
        let mut alert = Alert::new(Component::L7, Severity::High, "admin", "deny", 1_500_000_000, "GET /admin");
        alert.src_ip = Some("198.51.100.7".parse().unwrap());
        alert.src_port = Some(40_000);
        alert.dst_ip = Some("192.0.2.1".parse().unwrap());
        alert.dst_port = Some(80);
        alert.protocol = Some(6);
        alert.vlan_id = Some(7);
        alert.mitre = vec!["T1190".into()];
        alert.process = Some((4711, "nginx".to_owned()));
        alert.facts = vec![("http_url", "/admin".to_owned())];
        alert.direction = Some("ingress");
        alert.count = 3;
        alert.last_seen_ns = 2_000_000_001;
        alert.revision = 2;
        alert
    }

    #[test]
    fn every_field_has_its_place() {
        let alert = alert();
        let event = of_alert(&alert);
        let details = [("command", "nginx"), ("http_url", "/admin"), ("vlan_id", "7")];
        let want = AlertEvent {
            id: alert.id.to_string(),
            timestamp_ns: 1_500_000_000,
            component: "l7".to_owned(),
            severity: "high".to_owned(),
            rule_id: "admin".to_owned(),
            action: "deny".to_owned(),
            src_addr: vec![0xc633_6407, 0, 0, 0],
            dst_addr: vec![0xc000_0201, 0, 0, 0],
            src_port: 40_000,
            dst_port: 80,
            protocol: 6,
            message: "GET /admin".to_owned(),
            is_ipv6: false,
            false_positive: false,
            pid: 4711,
            direction: "ingress".to_owned(),
            src_ip: "198.51.100.7".to_owned(),
            dst_ip: "192.0.2.1".to_owned(),
            count: 3,
            first_seen_ns: 1_500_000_000,
            last_seen_ns: 2_000_000_001,
            revision: 2,
            mitre: vec!["T1190".to_owned()],
            details: details.map(|(name, text)| (name.to_owned(), text.to_owned())).into(),
            gap: None,
        };
        assert_eq!(event, want);
    }

    #[test]
    fn an_alert_of_the_store_looks_as_it_did_live() {
        let alert = alert();
        let mut document = serde_json::to_value(&alert).unwrap();
        assert_eq!(of_document(&document), of_alert(&alert));
        document["false_positive"] = true.into();
        document["comment"] = "a scanner of ours".into();
        let stored = Event::Stored(Box::new(Stored { id: alert.id, document }));
        let event = message(&stored);
        assert!(event.false_positive);
        assert_eq!(event.details["comment"], "a scanner of ours");
    }

    #[test]
    fn ipv6_addresses_are_four_words() {
        let mut alert = Alert::new(Component::Firewall, Severity::Low, "r", "deny", 1, "m");
        alert.src_ip = Some("2001:db8::7:8".parse().unwrap());
        alert.protocol = Some(253);
        let event = of_alert(&alert);
        assert_eq!((event.src_addr, event.is_ipv6), (vec![0x2001_0db8, 0, 0, 0x0007_0008], true));
        assert_eq!((event.dst_addr, event.dst_ip.as_str()), (vec![], ""));
        assert_eq!(of_document(&serde_json::to_value(&alert).unwrap()).protocol, 253);
    }

    #[test]
    fn a_gap_says_nothing_else() {
        let gap = hub::Gap { missed: Some(7), reason: GapReason::SlowClient };
        let event = message(&Event::Gap(gap));
        let said = Gap { missed: Some(7), reason: "slow_client".to_owned() };
        assert_eq!(event, AlertEvent { gap: Some(said), ..AlertEvent::default() });
    }
}
