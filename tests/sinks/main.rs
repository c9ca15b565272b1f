//! Alerts on their way to real receivers: HTTPS, SMTP, syslog and a file that is rotated, with outages.

use std::fs;
use std::path::Path;
use std::time::Duration;

use data_encoding::HEXLOWER;
use ebpfsentinel::outbound::{Client, ClientConfig, Fetched, OutboundError, Url, Validators};
use ebpfsentinel::supervise::Gone;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

mod hardship;
mod outage;
mod support;

use support::{Running, Scene, free_port, records, until};

fn webhook(scene: &Scene, port: u16, more: &str) -> String {
    format!(
        "destination = 'webhook'\nwebhook_url = 'https://localhost:{port}/s3cret'\nallow_private = true\nca_file = {}\n\
         timeout_secs = 1\nbreaker_secs = 1\n{more}",
        scene.quoted("ca.pem")
    )
}

/// The numbers of the alerts in bodies of any shape.
fn numbers_of(bodies: &[Value]) -> Vec<usize> {
    let number = |alert: &Value| -> usize {
        // A template of the tests has it as its second word.
        let text = alert["message"].as_str().or_else(|| alert["text"].as_str()?.split(' ').nth(1));
        text.unwrap_or_else(|| panic!("{alert}")).parse().unwrap()
    };
    let read = |record: &Value| -> Value { serde_json::from_str(record["body"].as_str().unwrap()).unwrap() };
    let numbers = |body: Value| match body.as_array() {
        Some(alerts) => alerts.iter().map(number).collect(),
        None => vec![number(&body)],
    };
    bodies.iter().map(read).flat_map(numbers).collect()
}

#[test]
fn a_webhook_gets_signed_json() {
    let scene = Scene::new();
    let port = free_port();
    let receiver = scene.receiver("webhook", port);
    let more = "webhook_secret = 'k3y'\nwebhook_headers = { Authorization = 'Bearer abc', X-Who = { value = 'me' } }";
    let mut running = Running::new(&scene, &[("hook", webhook(&scene, port, more))]);
    running.tell(0..3);
    let got = receiver.wait(3);
    assert_eq!(numbers_of(&got), [0, 1, 2]);
    for record in &got {
        let header = |name: &str| {
            record["headers"][name.to_lowercase()].as_str().unwrap_or_else(|| panic!("{name} in {record}"))
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(b"k3y").unwrap();
        mac.update(format!("{}.{}", header("X-Ebpfsentinel-Timestamp"), record["body"].as_str().unwrap()).as_bytes());
        let want = format!("sha256={}", HEXLOWER.encode(&mac.finalize().into_bytes()));
        assert_eq!(header("X-Ebpfsentinel-Signature"), want);
        assert_eq!((header("Authorization"), header("X-Who")), ("Bearer abc", "me"));
        assert_eq!((header("Content-Type"), record["path"].as_str()), ("application/json", Some("/s3cret")));
    }
    let body: Value = serde_json::from_str(got[0]["body"].as_str().unwrap()).unwrap();
    assert_eq!((&body["src_ip"], &body["severity"]), (&"2001:db8::7".into(), &"high".into()));
    until("it is counted", || running.sender("hook") == (0, 3, 0));
    running.stop();
}

#[test]
fn a_webhook_gets_a_template_or_many_at_a_time() {
    let scene = Scene::new();
    let port = free_port();
    let receiver = scene.receiver("webhook", port);
    let template = r#"webhook_template = '{"text": "[{severity}] {message} from {src_ip}", "username": "sentinel"}'"#;
    let mut running = Running::new(&scene, &[("slack", webhook(&scene, port, template))]);
    running.tell(7..8);
    let got = receiver.wait(1);
    let body: Value = serde_json::from_str(got[0]["body"].as_str().unwrap()).unwrap();
    assert_eq!(body, serde_json::json!({"text": "[high] 7 from 2001:db8::7", "username": "sentinel"}));

    // The same route, another shape: the queue goes on.
    scene.mode("503");
    running.tell(8..40);
    running.reload(&[("slack", webhook(&scene, port, "webhook_batch = 10"))]);
    scene.mode("ok");
    running.tell(40..48);
    until("all arrive", || running.sender("slack").1 == 41);
    let taken: Vec<Value> = receiver.records().into_iter().skip(1).filter(|record| record["mode"] == "ok").collect();
    assert_eq!(numbers_of(&taken).len(), 40);
    assert_eq!(support::once(numbers_of(&taken)), (8..48).collect::<Vec<_>>());
    assert!(taken.len() < 40, "in {} bodies", taken.len());
    running.stop();
}

#[test]
fn a_spool_outlives_a_change_of_its_destination() {
    let scene = Scene::new();
    let (nobody, port) = (free_port(), free_port());
    let receiver = scene.receiver("webhook", port);
    let mut running = Running::new(&scene, &[("hook", webhook(&scene, nobody, "spool = '1MiB'"))]);
    running.tell(0..50);
    until("it is tried", || running.metrics.sender("hook").retried.get() > 0);
    // One that is prepared and not put in force changes nothing.
    let other = support::destination(&webhook(&scene, port, "spool = '2MiB'\nwebhook_batch = 5"));
    drop(running.outlets.as_mut().unwrap().prepare([("hook", &other)]).unwrap());
    running.tell(50..60);
    running.reload(&[("hook", webhook(&scene, port, "spool = '2MiB'"))]);
    running.tell(60..70);
    until("all arrive", || receiver.records().len() >= 70);
    assert_eq!(support::once(numbers_of(&receiver.records())), (0..70).collect::<Vec<_>>());
    let states = |running: &Running| running.metrics.render().contains("circuit_state{destination=\"hook\"}");
    assert!(states(&running));
    running.reload(&[]);
    assert!(running.sinks.is_empty() && !states(&running));
    running.stop();
    let left = fs::read_dir(scene.path("state/spool/hook")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["cursor"]);
}

/// Bytes of alerts in the spools of routes that are no more, as Prometheus and the status see them.
fn left(running: &Running) -> Vec<(String, bool)> {
    let left: Vec<_> = running.metrics.spools_left().into_iter().map(|(spool, bytes)| (spool, bytes > 0)).collect();
    let shown = running.metrics.render();
    assert!(
        left.iter().all(|(spool, _)| shown.contains(&format!("alert_spool_left_bytes{{destination=\"{spool}\"}}")))
    );
    left
}

#[test]
fn a_spool_that_is_taken_off_its_route_is_sent_first() {
    let scene = Scene::new();
    let (nobody, port) = (free_port(), free_port());
    let receiver = scene.receiver("webhook", port);
    let mut running = Running::new(&scene, &[("hook", webhook(&scene, nobody, "spool = '1MiB'"))]);
    running.tell(0..50);
    until("it is tried", || running.metrics.sender("hook").retried.get() > 0);
    // By a reload. What comes meanwhile waits in the queue, and so it does when one more comes.
    running.reload(&[("hook", webhook(&scene, nobody, ""))]);
    running.tell(50..60);
    running.reload(&[("hook", webhook(&scene, nobody, "webhook_batch = 7"))]);
    running.tell(60..70);
    running.reload(&[("hook", webhook(&scene, port, ""))]);
    running.tell(70..80);
    until("all arrive", || receiver.records().len() >= 80);
    assert_eq!(numbers_of(&receiver.records()), (0..80).collect::<Vec<_>>());
    until("the spool is empty", || running.metrics.sender("hook").spool_bytes.get() == 0);
    // By a restart.
    running.reload(&[("hook", webhook(&scene, nobody, "spool = '1MiB'"))]);
    running.tell(80..90);
    until("it is spooled", || running.metrics.sender("hook").spool_bytes.get() > 0);
    running.stop();
    let mut running = Running::new(&scene, &[("hook", webhook(&scene, port, ""))]);
    running.tell(90..95);
    until("all arrive", || receiver.records().len() >= 95);
    assert_eq!(numbers_of(&receiver.records()), (0..95).collect::<Vec<_>>());
    assert!(left(&running).is_empty());
    running.stop();
    let left = fs::read_dir(scene.path("state/spool/hook")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["cursor"]);
}

#[test]
fn what_is_left_of_a_route_that_is_no_more_is_told_and_kept() {
    let scene = Scene::new();
    let (nobody, port) = (free_port(), free_port());
    let spooled = |port: u16| webhook(&scene, port, "spool = '1MiB'");
    let mut running = Running::new(&scene, &[("old", spooled(nobody))]);
    running.tell(0..20);
    until("it is tried", || running.metrics.sender("old").retried.get() > 0);
    // Renamed: nobody says that the new one is the old one.
    running.reload(&[("new", spooled(nobody))]);
    until("the old one has ended", || left(&running) == [("old".to_owned(), true)]);
    running.tell(20..30);
    until("it is tried", || running.metrics.sender("new").retried.get() > 0);
    running.stop();
    // After a restart it is seen on the disk, and another reload says it again.
    let mut running = Running::new(&scene, &[]);
    let both = [("new".to_owned(), true), ("old".to_owned(), true)];
    assert_eq!(left(&running), both);
    running.reload(&[]);
    assert_eq!(left(&running), both);
    let receiver = scene.receiver("webhook", port);
    running.reload(&[("old", spooled(port))]);
    until("all arrive", || receiver.records().len() >= 20);
    assert_eq!(numbers_of(&receiver.records()), (0..20).collect::<Vec<_>>());
    until("nobody waits for it", || left(&running) == [("new".to_owned(), true)]);
    fs::remove_dir_all(scene.path("state/spool/new")).unwrap();
    running.reload(&[("old", spooled(port))]);
    assert!(left(&running).is_empty());
    // Removed and back at once.
    running.reload(&[]);
    running.reload(&[("old", spooled(nobody))]);
    running.tell(30..31);
    until("the spool is seen", || running.metrics.sender("old").spool_bytes.get() > 0);
    running.stop();
}

/// Two configurations are prepared, and one comes into force after the other: each route has its own destination, also
/// where it was to stay as it was and is not any more.
#[test]
fn what_was_prepared_before_others_came_into_force_is_prepared_anew() {
    let scene = Scene::new();
    let file = |name: &str| format!("destination = 'eve'\npath = {}", scene.quoted(name));
    let mut running = Running::new(&scene, &[("a", file("a1")), ("b", file("b1")), ("c", file("c1"))]);
    let wanted = [("a", file("a1")), ("b", file("b1")), ("c", file("c2"))];
    let wanted = wanted.map(|(name, toml)| (name, support::destination(&toml)));
    let prepared = running.outlets.as_mut().unwrap().prepare(wanted.iter().map(|(name, to)| (*name, to))).unwrap();
    // Without a, with another b, and with a c that has its own.
    running.reload(&[("b", file("b2")), ("c", file("c3"))]);
    running.commit(prepared);
    let names: Vec<&str> = running.sinks.iter().map(|sink| sink.name()).collect();
    assert_eq!(names, ["sink_a", "sink_b", "sink_c"]);
    running.tell(0..3);
    running.stop();
    let lines = ["a1", "b1", "c2", "b2", "c3"].map(|name| records(&scene.path(name)).len());
    assert_eq!(lines, [3, 3, 3, 0, 0]);
}

/// A router that cannot be told keeps what it has, and so do the outlets.
#[test]
fn nothing_changes_if_the_router_cannot_be_told() {
    let scene = Scene::new();
    let file = |name: &str| support::destination(&format!("destination = 'eve'\npath = {}", scene.quoted(name)));
    let mut running = Running::new(&scene, &[("a", format!("destination = 'eve'\npath = {}", scene.quoted("a1")))]);
    let outlets = running.outlets.as_mut().unwrap();
    let (other, new) = (file("a2"), file("b"));
    let prepared = outlets.prepare([("a", &other), ("b", &new)]).unwrap();
    let error = outlets.commit(prepared, |_| Err(Gone::Busy("router".to_owned()))).unwrap_err();
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    running.tell(0..3);
    running.stop();
    assert_eq!(["a1", "a2", "b"].map(|name| records(&scene.path(name)).len()), [3, 0, 0]);
}

#[test]
fn a_webhook_that_refuses_is_counted_and_one_that_cannot_is_tried_again() {
    let scene = Scene::new();
    let port = free_port();
    let receiver = scene.receiver("webhook", port);
    let mut running = Running::new(&scene, &[("hook", webhook(&scene, port, ""))]);
    for (number, mode) in ["400", "415", "422"].iter().enumerate() {
        scene.mode(mode);
        running.tell(number..number + 1);
        until("it is counted", || running.sender("hook").2 == number as u64 + 1);
    }
    assert_eq!(receiver.records().len(), 3, "each once");
    assert_eq!(running.metrics.events_lost("sink_hook", "refused").get(), 3);
    for mode in ["503 Retry-After 1", "429", "hang", "401", "404"] {
        let before = receiver.records().len();
        let delivered = running.sender("hook").1;
        scene.mode(mode);
        running.tell(9..10);
        receiver.wait(before + 2);
        scene.mode("ok");
        until("it arrives", || running.sender("hook").1 == delivered + 1);
    }
    assert_eq!(running.sender("hook").2, 3);
    running.stop();
}

/// A maintenance page, a portal or a token that was changed: an outage like any other.
#[test]
fn a_receiver_that_redirects_does_not_empty_the_spool() {
    let scene = Scene::new();
    let port = free_port();
    let receiver = scene.receiver("webhook", port);
    scene.mode("302 Location http://169.254.169.254/latest");
    let mut running = Running::new(&scene, &[("hook", webhook(&scene, port, "spool = '1MiB'\nbreaker_failures = 2"))]);
    running.tell(0..200);
    until("the circuit opens", || running.sender("hook").0 == 2);
    until("all are in the spool", || running.metrics.sender("hook").spool_bytes.get() > 200 * 200);
    let tried = receiver.records().len();
    receiver.wait(tried + 1);
    assert_eq!((running.sender("hook").1, running.sender("hook").2), (0, 0));
    scene.mode("ok");
    until("all arrive", || running.sender("hook").1 == 200);
    let records = receiver.records();
    let taken: Vec<Value> = records.iter().filter(|record| record["mode"] == "ok").cloned().collect();
    assert_eq!(numbers_of(&taken), (0..200).collect::<Vec<usize>>());
    assert!(records.iter().all(|record| record["path"] == "/s3cret"), "no redirect was followed");
    running.stop();
}

#[test]
fn a_receiver_with_the_wrong_certificate_gets_nothing() {
    let scene = Scene::new();
    let (hook, syslog) = (free_port(), free_port());
    let receivers = [scene.receiver_with("webhook", hook, "other"), scene.receiver_with("tls", syslog, "other")];
    let tls = format!(
        "destination = 'syslog'\nhost = 'localhost'\nport = {syslog}\ntransport = 'tls'\nca_file = {}\nbreaker_failures = 2",
        scene.quoted("ca.pem")
    );
    // Its authority is not trusted, and the name is another one.
    let url = format!(
        "destination = 'webhook'\nwebhook_url = 'https://localhost:{hook}/'\nallow_private = true\nbreaker_failures = 2"
    );
    let mut running = Running::new(
        &scene,
        &[("tls", tls), ("untrusted", url), ("name", webhook(&scene, hook, "breaker_failures = 2"))],
    );
    running.tell(0..3);
    for name in ["tls", "untrusted", "name"] {
        until("the circuit opens", || running.sender(name).0 == 2);
        assert_eq!((running.sender(name).1, running.sender(name).2), (0, 0));
    }
    assert!(receivers.iter().all(|receiver| receiver.records().is_empty()));
    let metrics = {
        running.sinks.clear();
        running.outlets.take().unwrap().stop(Duration::from_millis(10));
        running.metrics
    };
    assert_eq!(metrics.events_lost("sink_name", "stopped").get(), 3);
}

#[test]
fn syslog_arrives_over_all_three() {
    let scene = Scene::new();
    for transport in ["udp", "tcp", "tls"] {
        let port = free_port();
        let receiver = scene.receiver(transport, port);
        let ca = if transport == "tls" { format!("ca_file = {}", scene.quoted("ca.pem")) } else { String::new() };
        let route = format!(
            "destination = 'syslog'\nhost = '127.0.0.1'\nport = {port}\ntransport = '{transport}'\nbreaker_secs = 1\n\
             facility = 'local3'\n{ca}\n"
        );
        let mut running = Running::new(&scene, &[("rfc", route.clone()), ("cef", format!("{route}format = 'cef'"))]);
        running.tell(0..200);
        let got = receiver.wait(400);
        let messages: Vec<&str> = got.iter().map(|record| record["message"].as_str().unwrap()).collect();
        let (cef, rfc): (Vec<&str>, Vec<&str>) = messages.iter().partition(|message| message.contains(" - CEF:0|"));
        assert_eq!((rfc.len(), cef.len()), (200, 200));
        for (number, message) in rfc.iter().enumerate() {
            assert!(message.starts_with("<155>1 2026-11-30T18:40:31.123456Z "), "{message}");
            assert!(
                message.contains(" ebpfsentinel ") && message.contains(" l7 [ebpfsentinel@32473 id=\""),
                "{message}"
            );
            assert!(message.ends_with(&format!("\"] {number}")), "{transport}: {message} is not {number}");
        }
        for (number, message) in cef.iter().enumerate() {
            assert!(message.ends_with(&format!(" msg={number}")), "{transport}: {message} is not {number}");
        }
        running.stop();
    }
}

#[test]
fn a_closed_connection_of_syslog_is_noticed_before_anything_is_sent() {
    let scene = Scene::new();
    for transport in ["tcp", "tls"] {
        let port = free_port();
        let route = format!(
            "destination = 'syslog'\nhost = 'localhost'\nport = {port}\ntransport = '{transport}'\nbreaker_secs = 1\n{}",
            if transport == "tls" { format!("ca_file = {}", scene.quoted("ca.pem")) } else { String::new() }
        );
        let mut running = Running::new(&scene, &[("syslog", route)]);
        for round in 0..3 {
            let receiver = scene.receiver(transport, port);
            running.tell(round..round + 1);
            receiver.wait(round + 1);
            until("it is counted", || running.sender("syslog").1 == round as u64 + 1);
        }
        running.stop();
    }
}

fn email(scene: &Scene, port: u16, more: &str) -> String {
    format!(
        "destination = 'email'\nemail_to = ['SOC <soc@example.org>', 'b@example.org']\nbreaker_secs = 1\ntimeout_secs = 5\n{more}\n\
         [smtp]\nhost = 'localhost'\nport = {port}\nfrom_address = 'Sentinel <agent@example.org>'\nca_file = {}\n",
        scene.quoted("ca.pem")
    )
}

const LOGIN: &str = "username = 'agent'\npassword = 'pass word'\n";

#[test]
fn a_mail_goes_by_starttls_with_a_login_and_then_a_digest() {
    let scene = Scene::new();
    let port = free_port();
    let receiver = scene.receiver("smtp", port);
    let route = email(&scene, port, "digest_secs = 2") + LOGIN;
    let mut running = Running::new(&scene, &[("mail", route)]);
    running.tell(0..1);
    let first = &receiver.wait(1)[0];
    assert_eq!(first["from"], "agent@example.org");
    assert_eq!(first["to"], serde_json::json!(["soc@example.org", "b@example.org"]));
    assert_eq!(first["tls"], true);
    let text = first["text"].as_str().unwrap();
    assert!(text.contains("\r\nSubject: [eBPFsentinel] high: 0\r\n"), "{text}");
    assert!(text.contains("\r\nAuto-Submitted: auto-generated\r\n") && text.contains("\r\nMessage-ID: <"), "{text}");
    assert!(text.contains("\r\nrule_id: rule-1\r\n") && text.contains("\r\nsrc_ip: 2001:db8::7\r\n"), "{text}");
    running.tell(1..20);
    let second = &receiver.wait(2)[1];
    let text = second["text"].as_str().unwrap();
    assert!(text.contains("\r\nSubject: [eBPFsentinel] 19 alerts, the gravest high\r\n"), "{text}");
    assert!((1..20).all(|number| text.contains(&format!("\r\nmessage: {number}\r\n"))), "{text}");
    running.stop();
    assert_eq!(receiver.records().len(), 2);
}

#[test]
fn mails_that_are_refused_are_not_sent_again() {
    let scene = Scene::new();
    let (port, tls) = (free_port(), free_port());
    let receiver = scene.receiver("smtp", port);
    let wrapped = scene.receiver("smtps", tls);
    let wrong = email(&scene, port, "digest_secs = 0") + "username = 'agent'\npassword = 'wrong'\n";
    let some = email(&scene, tls, "digest_secs = 0").replace("b@example.org", "gone@example.org") + "tls = 'tls'\n";
    let none = some.replace("'SOC <soc@example.org>', ", "");
    let mut running = Running::new(&scene, &[("wrong", wrong), ("some", some), ("none", none)]);
    running.tell(0..1);
    until("both are counted", || {
        ["some", "none"].iter().all(|name| running.sender(name).1 + running.sender(name).2 == 1)
    });
    assert_eq!((running.sender("some").1, running.sender("none").2), (1, 1));
    until("a login is tried again", || running.metrics.sender("wrong").retried.get() >= 2);
    assert_eq!((running.sender("wrong").1, running.sender("wrong").2), (0, 0));
    running.sinks.clear();
    running.outlets.take().unwrap().stop(Duration::from_secs(1));
    assert!(receiver.records().is_empty());
    let got = wrapped.records();
    assert_eq!((got.len(), &got[0]["to"], &got[0]["tls"]), (1, &serde_json::json!(["soc@example.org"]), &true.into()));
}

/// Of three recipients one is refused and one comes later: he alone gets the mail again, and what came meanwhile goes
/// to all.
#[test]
fn a_mail_that_one_recipient_takes_later_goes_again_to_him_alone() {
    let scene = Scene::new();
    let port = free_port();
    let receiver = scene.receiver("smtp", port);
    fs::write(scene.path("b@example.org"), "").unwrap();
    let to = "email_to = ['SOC <soc@example.org>', 'gone@example.org', 'b@example.org']";
    let route = email(&scene, port, "digest_secs = 0") + LOGIN;
    let route = route.replace("email_to = ['SOC <soc@example.org>', 'b@example.org']", to);
    let mut running = Running::new(&scene, &[("mail", route)]);
    running.tell(0..1);
    let later = || receiver.records().iter().filter(|record| record["later"] == "b@example.org").count();
    until("he is tried again", || later() >= 3);
    assert_eq!(running.sender("mail").1, 0, "it is not delivered as long as somebody waits for it");
    running.tell(1..3);
    fs::remove_file(scene.path("b@example.org")).unwrap();
    until("all is delivered", || running.sender("mail").1 == 3);
    let mails: Vec<Value> = receiver.records().into_iter().filter(|record| record["text"].is_string()).collect();
    let tells =
        |mail: &Value, number: usize| mail["text"].as_str().unwrap().contains(&format!("message: {number}\r\n"));
    let heard = |number: usize| -> Vec<Value> {
        mails.iter().filter(|mail| tells(mail, number)).map(|mail| mail["to"].clone()).collect()
    };
    let both = serde_json::json!(["soc@example.org", "b@example.org"]);
    assert_eq!(heard(0), [serde_json::json!(["soc@example.org"]), serde_json::json!(["b@example.org"])]);
    assert_eq!((heard(1), heard(2)), (vec![both.clone()], vec![both]));
    assert_eq!(running.sender("mail").2, 0);
    assert_eq!(running.metrics.events_lost("sink_mail", "recipient_refused").get(), 3);
    assert_eq!(running.metrics.events_lost("sink_mail", "recipient_late").get(), 0);
    running.stop();
}

/// logrotate renames the file while lines are written: no line is lost, torn or twice there.
#[test]
fn eve_goes_on_when_the_file_is_renamed() {
    let scene = Scene::new();
    let path = scene.path("eve.json");
    let route = format!("destination = 'eve'\npath = {}\nmax_size = 0", scene.quoted("eve.json"));
    let mut running = Running::new(&scene, &[("eve", route)]);
    let mut old = Vec::new();
    for round in 0..20 {
        running.tell(round * 100..(round + 1) * 100);
        until("there is something to rename", || !records(&path).is_empty());
        old.push(scene.path(&format!("eve.{round}")));
        fs::rename(&path, old.last().unwrap()).unwrap();
    }
    running.stop();
    let message = |line: &Value| line["alert"]["metadata"]["message"][0].as_str().unwrap().parse::<usize>().unwrap();
    let files = old.iter().map(|path| path.as_path()).chain([path.as_path()]);
    let whole = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        assert!(text.is_empty() || text.ends_with('\n'));
        records(path)
    };
    let all: Vec<usize> = files.flat_map(whole).map(|line| message(&line)).collect();
    assert_eq!(all, (0..2000).collect::<Vec<_>>());
}

#[test]
fn a_document_is_asked_for_with_limits() {
    let scene = Scene::new();
    scene.mode("ok");
    let port = free_port();
    let receiver = scene.receiver("http", port);
    let config = ClientConfig {
        allow_private: true,
        insecure: true,
        body_max: 1 << 20,
        redirects_max: 3,
        timeout: Duration::from_secs(30),
        ..ClientConfig::default()
    };
    let client = Client::new(config.clone()).unwrap();
    let url = |path: &str| Url::parse(&format!("http://localhost:{port}{path}"), true, true).unwrap();
    let get = |path: &str| client.get(&url(path), &[], &Validators::default());
    let Ok(Fetched::Document { body, validators }) = get("/document") else { panic!() };
    assert_eq!((body.as_slice(), validators.etag.as_deref()), (&b"text"[..], Some("\"v1\"")));
    assert_eq!(validators.last_modified.as_deref(), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    assert_eq!(client.get(&url("/document"), &[], &validators).unwrap(), Fetched::NotModified);
    let Ok(Fetched::Refused(answer)) = get("/none") else { panic!() };
    assert_eq!((answer.status, answer.body_len), (404, 4));
    for path in ["/bomb", "/endless"] {
        let error = get(path).unwrap_err();
        assert!(matches!(error, OutboundError::TooLong(1_048_576)), "{path}: {error}");
    }
    // Each hop is checked: one to where nobody may go, one that is fine, one more than are followed.
    let error = get("/to/http://169.254.169.254/latest").unwrap_err();
    assert!(matches!(&error, OutboundError::Refused(why) if why.contains("never connected to")), "{error}");
    assert!(matches!(get("/to//document"), Ok(Fetched::Document { .. })));
    assert!(matches!(get("/to//to//to//document"), Ok(Fetched::Document { .. })));
    assert!(matches!(get("/to//to//to//to//document"), Ok(Fetched::Refused(_))), "one too many");
    // Headers of one's own are shown to nobody else.
    let before = receiver.records().len();
    let Ok(Fetched::Refused(answer)) = client.get(&url("/to//document"), &[("X-Key", "k")], &Validators::default())
    else {
        panic!()
    };
    assert_eq!((answer.status, receiver.records().len() - before), (302, 1));
    // And one without the right to go where the first hop leads.
    let strict = Client::new(ClientConfig { allow_private: false, ..config }).unwrap();
    assert!(matches!(strict.get(&url("/document"), &[], &Validators::default()), Err(OutboundError::Refused(_))));
}
