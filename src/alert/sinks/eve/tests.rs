use std::os::unix::fs::symlink;
use std::sync::Arc;

use super::*;
use crate::alert::Alert;
use crate::component::Component;
use crate::eve::alert::tests::metadata_of;
use crate::eve::alert::{GENERATOR, signature_id};

fn notice(message: &str) -> Notice {
    Notice::new(Arc::new(Alert::new(
        Component::L7,
        Severity::High,
        "r1",
        "blocked",
        1_796_064_031_123_456_789,
        message,
    )))
}

fn messages(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'));
    let message = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        value["alert"]["metadata"]["message"][0].as_str().unwrap().to_owned()
    };
    text.lines().map(message).collect()
}

#[test]
fn a_line_says_what_suricata_says() {
    let mut alert = Alert::new(Component::L7, Severity::High, "r1", "blocked", 1_796_064_031_123_456_789, "a\nb");
    alert.src_ip = Some("2001:db8::7".parse().unwrap());
    alert.src_port = Some(4000);
    alert.dst_ip = Some("192.0.2.1".parse().unwrap());
    alert.dst_port = Some(80);
    alert.protocol = Some(6);
    alert.vlan_id = Some(7);
    alert.interface = Some("eth0".into());
    alert.app_proto = Some("http");
    alert.mitre = vec!["T1190".into(), "T1110.001".into()];
    alert.community_id = Some("1:LQU9qZlK+B5F3KDmev6m5PMibrg=".into());
    alert.process = Some((77, "nginx -g".into()));
    alert.matched_field = Some("path".into());
    alert.matched = Some("/x".into());
    alert.revision = 2;
    alert.facts = vec![("http_method", "GET".into()), ("http_url", "/x".into()), ("http_status", "404".into())];
    let mut lines = Lines::default();
    let live = Notice::new(Arc::new(alert));
    let line = String::from_utf8(lines.alert(&live).to_vec()).unwrap();
    let stored = Notice::stored(live.json().as_bytes(), 0).unwrap();
    assert_eq!(String::from_utf8(lines.alert(&stored).to_vec()).unwrap(), line, "from the disk");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let at = |pointer: &str| value.pointer(pointer).cloned().unwrap_or_default();
    for (pointer, want) in [
        ("/timestamp", "2026-11-30T18:40:31.123456+0000".into()),
        ("/event_type", "alert".into()),
        ("/in_iface", "eth0".into()),
        ("/vlan", serde_json::json!([7])),
        ("/src_ip", "2001:db8::7".into()),
        ("/src_port", 4000.into()),
        ("/dest_ip", "192.0.2.1".into()),
        ("/dest_port", 80.into()),
        ("/proto", "TCP".into()),
        ("/app_proto", "http".into()),
        ("/alert/action", "blocked".into()),
        ("/flow_id", flow_id("1:LQU9qZlK+B5F3KDmev6m5PMibrg=").into()),
        ("/alert/gid", GENERATOR.into()),
        ("/alert/signature_id", signature_id("l7", "r1").into()),
        ("/alert/signature", "r1".into()),
        ("/alert/category", "l7".into()),
        ("/alert/severity", 2.into()),
        ("/http/http_method", "GET".into()),
        ("/http/url", "/x".into()),
        ("/http/status", 404.into()),
    ] {
        assert_eq!(at(pointer), want, "{pointer} in {line}");
    }
    let mut metadata = metadata_of(line.as_bytes());
    metadata["id"].take();
    let want = serde_json::json!({
        "component": ["l7"], "rule": ["r1"], "rule_action": ["blocked"], "matched_field": ["path"], "matched": ["/x"],
        "message": ["a\nb"], "mitre_technique_id": ["T1190", "T1110.001"], "pid": ["77"], "command": ["nginx -g"],
        "id": null, "count": ["1"], "revision": ["2"], "first_seen": ["2026-11-30T18:40:31.123456789Z"],
        "last_seen": ["2026-11-30T18:40:31.123456789Z"],
    });
    assert_eq!(metadata, want);
}

/// What is told of a packet and what is told of its flow name the same flow, whichever way the packet went.
#[test]
fn alerts_between_the_same_ends_have_the_same_flow() {
    let mut lines = Lines::default();
    let mut flow_id = |alert: &Alert| {
        let line = lines.alert(&Notice::new(Arc::new(alert.clone()))).to_vec();
        metadata_of(&line);
        serde_json::from_slice::<serde_json::Value>(&line).unwrap()["flow_id"].as_u64()
    };
    let mut packet = Alert::new(Component::Firewall, Severity::Low, "r", "deny", 1, "m");
    assert_eq!(flow_id(&packet), None);
    packet.src_ip = Some("192.0.2.7".parse().unwrap());
    packet.dst_ip = Some("192.0.2.1".parse().unwrap());
    packet.protocol = Some(6);
    assert_eq!(flow_id(&packet), None, "no ports");
    (packet.src_port, packet.dst_port) = (Some(4000), Some(80));
    let id = flow_id(&packet);
    assert!(id.is_some_and(|id| id > 0 && id < 1 << 53), "{id:?}");
    let ends = ["192.0.2.7:4000", "192.0.2.1:80"].map(|end| end.parse().unwrap());
    let told = Alert { community_id: Some(community_id_of(6, ends[0], ends[1])), ..packet.clone() };
    let back = Alert {
        src_ip: packet.dst_ip,
        src_port: packet.dst_port,
        dst_ip: packet.src_ip,
        dst_port: packet.src_port,
        ..packet.clone()
    };
    let other = Alert { src_port: Some(4001), ..packet.clone() };
    assert_eq!((flow_id(&told), flow_id(&back)), (id, id));
    assert_ne!(flow_id(&other), id);
}

#[test]
fn the_file_is_rotated_by_size_and_so_many_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eve.json");
    let mut line = Lines::default();
    let length = line.alert(&notice("0")).len() as u64;
    let mut sink = EveSink::new(path.clone(), 2 * length, 2);
    for number in 0..9 {
        sink.deliver(&[notice(&number.to_string())]).unwrap();
    }
    assert_eq!(messages(&path), ["8"]);
    assert_eq!(messages(&folder.path().join("eve.json.1")), ["6", "7"]);
    assert_eq!(messages(&folder.path().join("eve.json.2")), ["4", "5"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let mut sink = EveSink::new(path.clone(), length, 0);
    sink.deliver(&[notice("9")]).unwrap();
    sink.deliver(&[notice("a")]).unwrap();
    assert_eq!(messages(&path), ["a"]);
    assert_eq!(messages(&folder.path().join("eve.json.1")), ["6", "7"], "with keep = 0 the others are left alone");
}

#[test]
fn a_file_that_was_renamed_or_removed_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eve.json");
    let mut sink = EveSink::new(path.clone(), 0, 0);
    sink.deliver(&[notice("a")]).unwrap();
    fs::rename(&path, folder.path().join("old")).unwrap();
    sink.deliver(&[notice("b")]).unwrap();
    fs::remove_file(&path).unwrap();
    sink.deliver(&[notice("c")]).unwrap();
    assert_eq!((messages(&folder.path().join("old")), messages(&path)), (vec!["a".into()], vec!["c".into()]));
    // logrotate's copytruncate.
    fs::write(&path, "").unwrap();
    sink.deliver(&[notice("d")]).unwrap();
    assert_eq!(messages(&path), ["d"]);
    assert_eq!(sink.open.unwrap().size, fs::metadata(&path).unwrap().len());
}

#[test]
fn a_torn_line_is_ended_before_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eve.json");
    fs::write(&path, "{\"half\":").unwrap();
    EveSink::new(path.clone(), 0, 0).deliver(&[notice("a")]).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("{\"half\":\n{\"timestamp\"") && text.lines().count() == 2, "{text}");
}

#[test]
fn what_cannot_be_written_is_tried_again_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eve.json");
    let fails = |sink: &mut EveSink| sink.deliver(&[notice("a"), notice("b")]).unwrap_err();
    // /dev/full is no regular file, and a link is not followed.
    let mut sink = EveSink::new(PathBuf::from("/dev/full"), 0, 0);
    let failure = fails(&mut sink);
    assert_eq!((failure.kind, failure.delivered), (FailureKind::Retry(None), 0));
    assert!(failure.message.contains("not a regular file"), "{}", failure.message);
    symlink("/tmp/elsewhere", &path).unwrap();
    assert!(fails(&mut EveSink::new(path.clone(), 0, 0)).message.contains("ymbolic link"));
    fs::remove_file(&path).unwrap();
    assert!(fails(&mut EveSink::new(folder.path().join("no/eve.json"), 0, 0)).message.contains("No such file"));
    // A file that takes no more, in the midst of a batch: what was written stays, and no part of a line.
    let mut sink = EveSink::new(path.clone(), 0, 0);
    sink.deliver(&[notice("a")]).unwrap();
    let open = sink.open.as_mut().unwrap();
    open.file = File::open(&path).unwrap();
    let failure = fails(&mut sink);
    assert_eq!(failure.delivered, 0);
    sink.deliver(&[notice("b")]).unwrap();
    assert_eq!(messages(&path), ["a", "b"]);
}
