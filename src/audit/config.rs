//! Section `[audit]` as written -> as used: what is kept of alerts and of the audit trail, where, and for how long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::store::Limits;
use crate::store::alerts;
use crate::written::Reader;

/// Records that may wait for the disk, at most.
const BUFFER_MAX: u32 = 1_000_000;
/// Ten years.
const DAYS_MAX: u32 = 3660;

/// Section `[audit]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AuditConfig {
    /// Whether there is an audit trail.
    pub enabled: bool,
    /// Days after which an entry is deleted.
    pub retention_days: u32,
    /// Entries that are kept; the oldest go first.
    pub max_entries: u64,
    /// Entries that may wait for the disk; what does not fit is lost, and counted.
    pub buffer_size: u32,
    /// File of the trail; `audit.redb` in `agent.state_dir` when empty. `alerts.redb` is beside it.
    pub storage_path: PathBuf,
    /// Table `[audit.alerts]`.
    pub alerts: AlertsConfig,
}

/// Table `[audit.alerts]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AlertsConfig {
    /// Whether alerts are kept.
    pub enabled: bool,
    /// Days after which an alert is deleted.
    pub retention_days: u32,
    /// Alerts that are kept; the oldest go first.
    pub max_alerts: u64,
    /// Alerts that may wait for the disk; what does not fit is lost, and counted.
    pub buffer_size: u32,
}

impl Default for AuditConfig {
    fn default() -> AuditConfig {
        AuditConfig {
            enabled: true,
            retention_days: 90,
            max_entries: 1_000_000,
            buffer_size: 10_000,
            storage_path: PathBuf::new(),
            alerts: AlertsConfig::default(),
        }
    }
}

impl Default for AlertsConfig {
    fn default() -> AlertsConfig {
        AlertsConfig { enabled: true, retention_days: 90, max_alerts: 1_000_000, buffer_size: 10_000 }
    }
}

impl AuditConfig {
    /// Reads the section.
    pub fn read(mut r: Reader<'_>) -> AuditConfig {
        let default = AuditConfig::default();
        let enabled = r.key("enabled").boolean().unwrap_or(default.enabled);
        let retention_days = r.key("retention_days").integer(1..=DAYS_MAX).unwrap_or(default.retention_days);
        let max_entries = r.key("max_entries").integer(1000..=10_000_000u64).unwrap_or(default.max_entries);
        let buffer_size = r.key("buffer_size").integer(100..=BUFFER_MAX).unwrap_or(default.buffer_size);
        let path_field = r.key("storage_path");
        let text = path_field.text().unwrap_or_default();
        let storage_path = PathBuf::from(text);
        if !text.is_empty() {
            if !storage_path.is_absolute() {
                path_field.error(format!("\"{}\" is not an absolute path", text.escape_debug()));
            } else if text.contains('\0') {
                path_field.error("a path has no NUL in it");
            } else if text.ends_with('/') || storage_path.file_name().is_none() {
                path_field.error("name a file, such as /var/lib/ebpfsentinel/audit.redb");
            } else if storage_path.file_name().is_some_and(|name| name == ALERTS_FILE) {
                path_field.error(format!("{ALERTS_FILE} is the name of the alerts' file beside it"));
            }
        }
        let alerts = r.key("alerts").table().map(AlertsConfig::read).unwrap_or_default();
        r.finish();
        AuditConfig { enabled, retention_days, max_entries, buffer_size, storage_path, alerts }
    }

    /// What the trail is to keep.
    pub fn limits(&self) -> Limits {
        Limits { age: days(self.retention_days), count: self.max_entries, buffer: self.buffer_size as usize }
    }

    /// The file of the trail.
    pub fn trail_file(&self, state_dir: &Path) -> PathBuf {
        match self.storage_path.as_os_str().is_empty() {
            true => state_dir.join("audit.redb"),
            false => self.storage_path.clone(),
        }
    }

    /// The file of the alerts.
    pub fn alerts_file(&self, state_dir: &Path) -> PathBuf {
        self.trail_file(state_dir).with_file_name(ALERTS_FILE)
    }
}

fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 86_400)
}

const ALERTS_FILE: &str = "alerts.redb";

impl AlertsConfig {
    /// What the store of alerts is to keep.
    pub fn limits(&self) -> alerts::Limits {
        alerts::Limits { age: days(self.retention_days), count: self.max_alerts, buffer: self.buffer_size as usize }
    }

    fn read(mut r: Reader<'_>) -> AlertsConfig {
        let default = AlertsConfig::default();
        let enabled = r.key("enabled").boolean().unwrap_or(default.enabled);
        let retention_days = r.key("retention_days").integer(1..=DAYS_MAX).unwrap_or(default.retention_days);
        let max_alerts = r.key("max_alerts").integer(1000..=10_000_000u64).unwrap_or(default.max_alerts);
        let buffer_size = r.key("buffer_size").integer(100..=BUFFER_MAX).unwrap_or(default.buffer_size);
        r.finish();
        AlertsConfig { enabled, retention_days, max_alerts, buffer_size }
    }
}
