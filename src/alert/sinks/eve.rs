//! A file of EVE JSON: a line for an alert, with the keys of Suricata; what it has no key for is in `alert.metadata`.
//!
//! The file is rotated by size (`eve.json`, `eve.json.1`, ...), and opened anew when somebody else has renamed or removed
//! it, as logrotate does: no signal is needed, and SIGHUP does no harm. A line that could not be written whole is taken
//! back, so that no line is torn when the disk is full; it is written again when there is room.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::notice::text_of;
use super::{Deliver, Failure, FailureKind, Notice};
use crate::alert::{Field, Severity, protocol_number};
use crate::eve;
use crate::eve::alert::{Head, detail, details, flow_id};
use crate::eve::json::Json;
use crate::eve::time::Stamp;
use crate::flow::community_id_of;
use crate::outbound::plain;

/// Facts about a conversation (see [`crate::alert::facts`]) that Suricata says too: our name, its object, its name.
const FACTS: &[(&str, &str, &str)] = &[
    ("http_host", "http", "hostname"),
    ("http_url", "http", "url"),
    ("http_user_agent", "http", "http_user_agent"),
    ("http_content_type", "http", "http_content_type"),
    ("http_method", "http", "http_method"),
    ("http_status", "http", "status"),
    ("tls_subject", "tls", "subject"),
    ("tls_issuer", "tls", "issuerdn"),
    ("tls_sni", "tls", "sni"),
    ("tls_ja4", "tls", "ja4"),
    ("smtp_helo", "smtp", "helo"),
    ("smtp_from", "smtp", "mail_from"),
    ("ftp_command", "ftp", "command"),
    ("ftp_argument", "ftp", "command_data"),
    ("smb_command", "smb", "command"),
    ("smb_dialect", "smb", "dialect"),
    ("smb_share", "smb", "share"),
    ("smb_file", "smb", "filename"),
];

/// Fields that stand in `alert.metadata`, under their names there. That of the techniques is the one of the rule sets
/// for Suricata.
const METADATA: &[(&str, &str)] = &[
    ("action", "rule_action"),
    ("matched_field", "matched_field"),
    ("matched", "matched"),
    ("message", "message"),
    ("mitre", "mitre_technique_id"),
    ("pid", "pid"),
    ("command", "command"),
    ("id", "id"),
    ("count", "count"),
    ("revision", "revision"),
    ("first_seen", "first_seen"),
    ("last_seen", "last_seen"),
];

/// Writes alerts to a file.
#[derive(Debug)]
pub struct EveSink {
    path: PathBuf,
    /// Bytes at which it is rotated; 0: never.
    size_max: u64,
    /// Old files that are kept.
    keep: u32,
    open: Option<Open>,
    lines: Lines,
}

#[derive(Debug)]
struct Open {
    file: File,
    identity: (u64, u64),
    /// Up to here there are whole lines.
    size: u64,
}

impl EveSink {
    /// A sink for this file, which need not be there.
    pub fn new(path: PathBuf, size_max: u64, keep: u32) -> EveSink {
        EveSink { path, size_max, keep, open: None, lines: Lines::default() }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => open_at(&self.path)?,
        };
        if self.size_max > 0 && open.size > 0 && open.size + line.len() as u64 > self.size_max {
            rotate(&self.path, self.keep)?;
            open = open_at(&self.path)?;
        }
        let written = open.file.write_all(line);
        match written {
            Ok(()) => {
                open.size += line.len() as u64;
                self.open = Some(open);
                Ok(())
            }
            Err(error) => {
                // What is behind the half line is somebody else's, and stays. If it is not taken back, the next open ends it.
                let end = open.size + line.len() as u64;
                let is_last = open.file.metadata().is_ok_and(|found| found.len() < end);
                if is_last && open.file.set_len(open.size).is_ok() {
                    self.open = Some(open);
                }
                Err(error)
            }
        }
    }

    /// Forgets the file if its name leads to another one, or if somebody else has written to it or cut it.
    fn look(&mut self) {
        let is_there = |open: &Open| {
            let found = fs::metadata(&self.path);
            found.is_ok_and(|found| (found.dev(), found.ino()) == open.identity && found.len() == open.size)
        };
        if self.open.as_ref().is_some_and(|open| !is_there(open)) {
            self.open = None;
        }
    }
}

impl Deliver for EveSink {
    fn deliver(&mut self, batch: &[Notice]) -> Result<(), Failure> {
        self.look();
        for (delivered, notice) in batch.iter().enumerate() {
            let mut lines = std::mem::take(&mut self.lines);
            let result = self.write(lines.alert(notice));
            self.lines = lines;
            if let Err(error) = result {
                let message = format!("{}: {}", self.path.display(), plain(&error));
                return Err(Failure { delivered, kind: FailureKind::Retry(None), message });
            }
        }
        Ok(())
    }
}

/// Opens the file at its end. A line that a crash has torn gets its end.
fn open_at(path: &Path) -> io::Result<Open> {
    let mut options = OpenOptions::new();
    // Without O_NONBLOCK the open of a FIFO would wait for a reader.
    options.read(true).append(true).mode(0o640).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
    let mut file = match options.create_new(true).open(path) {
        Ok(file) => {
            // Its group reads it, whatever the umask says; one that was there keeps what it has.
            file.set_permissions(Permissions::from_mode(0o640))?;
            file
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.create_new(false).open(path)?,
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut size = file.seek(SeekFrom::End(0))?;
    let mut last = [b'\n'];
    if size > 0 {
        file.read_exact_at(&mut last, size - 1)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n")?;
        size += 1;
    }
    Ok(Open { file, identity: (metadata.dev(), metadata.ino()), size })
}

/// `eve.json` becomes `eve.json.1`, that `eve.json.2`, and the oldest goes.
fn rotate(path: &Path, keep: u32) -> io::Result<()> {
    let old = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    if keep == 0 {
        return fs::remove_file(path);
    }
    for number in (1..keep).rev() {
        match fs::rename(old(number), old(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, old(1))
}

/// Makes lines; one stands until the next is made.
#[derive(Debug, Default)]
struct Lines {
    json: Json,
    stamp: Stamp,
}

impl Lines {
    fn alert(&mut self, notice: &Notice) -> &[u8] {
        let fields = notice.fields();
        let find = |name: &str| fields.iter().find(|(known, _)| *known == name).map(|(_, field)| field);
        let json = &mut self.json;
        json.clear();
        json.open();
        json.key("timestamp");
        let time = if let Some(Field::Number(time)) = find("timestamp_ns") { *time } else { 0 };
        self.stamp.write(json, time);
        if let Some(id) = flow_of(&fields) {
            json.number("flow_id", id);
        }
        text(json, "in_iface", find("interface"));
        json.text("event_type", "alert");
        if let Some(Field::Number(vlan)) = find("vlan_id") {
            json.array("vlan");
            json.element(*vlan);
            json.end_array();
        }
        for (name, ours) in
            [("src_ip", "src_ip"), ("src_port", "src_port"), ("dest_ip", "dst_ip"), ("dest_port", "dst_port")]
        {
            text(json, name, find(ours));
        }
        if let Some(Field::Text(word)) = find("protocol") {
            eve::protocol(json, protocol_number(word).unwrap_or(0));
        }
        text(json, "community_id", find("community_id"));
        text(json, "app_proto", find("app_proto"));
        let word = |name: &str| find(name).map(text_of).unwrap_or_default();
        let (component, rule) = (word("component"), word("rule_id"));
        let head = Head {
            is_blocked: is_blocked(&word("action")),
            component: &component,
            rule: &rule,
            signature: &rule,
            category: &component,
            severity: grade(notice.severity()),
        };
        eve::alert::alert(json, &head, |json| {
            for (ours, name) in METADATA {
                match find(ours) {
                    None => {}
                    Some(Field::List(list)) => details(json, name, list.iter().map(|text| text.as_bytes())),
                    Some(field) => detail(json, name, text_of(field).as_bytes()),
                }
            }
        });
        let mut object = "";
        for (ours, within, name) in FACTS {
            let Some(field) = find(ours) else { continue };
            if *within != object {
                if !object.is_empty() {
                    json.close();
                }
                json.object(within);
                object = within;
            }
            match field {
                // The status is a number to Suricata.
                Field::Text(text) if *ours == "http_status" && text.parse::<u16>().is_ok() => {
                    json.number(name, text.parse().unwrap_or_default());
                }
                field => text(json, name, Some(field)),
            }
        }
        if !object.is_empty() {
            json.close();
        }
        json.close();
        json.raw(b"\n");
        json.bytes()
    }
}

/// The number of the flow: that of its Community ID. An alert of a packet does not know its flow, but its ends name it.
fn flow_of(fields: &[(&str, Field<'_>)]) -> Option<u64> {
    let find = |name: &str| fields.iter().find(|(known, _)| *known == name).map(|(_, field)| field);
    if let Some(Field::Text(id)) = find("community_id") {
        return flow_id(id);
    }
    let Some(Field::Text(protocol)) = find("protocol") else { return None };
    let end = |ip: &str, port: &str| match (find(ip), find(port)) {
        (Some(Field::Text(ip)), Some(Field::Number(port))) => {
            Some(SocketAddr::new(ip.parse().ok()?, u16::try_from(*port).ok()?))
        }
        _ => None,
    };
    let (source, destination) = (end("src_ip", "src_port")?, end("dst_ip", "dst_port")?);
    flow_id(&community_id_of(protocol_number(protocol)?, source, destination))
}

fn text(json: &mut Json, name: &str, field: Option<&Field<'_>>) {
    match field {
        None => {}
        Some(Field::Text(text)) => json.text(name, text),
        Some(Field::Number(number)) => json.number(name, *number),
        Some(Field::List(list)) => {
            json.array(name);
            list.iter().for_each(|text| json.wire_element(text.as_bytes()));
            json.end_array();
        }
    }
}

/// Suricata's numbers: 1 is the gravest.
fn grade(severity: Severity) -> u64 {
    match severity {
        Severity::Critical => 1,
        Severity::High => 2,
        Severity::Medium => 3,
        Severity::Low => 4,
    }
}

/// Whether what was done kept the packet or the flow from going on: the components' words for that.
fn is_blocked(action: &str) -> bool {
    matches!(action, "deny" | "drop" | "block" | "blocked" | "reject" | "reset")
}

#[cfg(test)]
mod tests;
