//! Section `[alerting]` as written -> as used: how many alerts are told, and to whom.

use std::collections::HashMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::Severity;
use super::route::{Filter, RulePattern};
use super::router::Limits;
use super::sinks::config::{Destination, SmtpConfig};
use crate::classify::rules::{read_id, read_technique};
use crate::component::Component;
use crate::written::{Field, Reader};

/// Most routes.
pub const ROUTES_MAX: usize = 100;
/// Most entries of a list of a route.
const LIST_MAX: usize = 1000;

/// One of `[[alerting.routes]]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "AlertRoute")]
pub struct RouteConfig {
    /// Unique name.
    pub name: String,
    /// Which alerts it hears; all conditions must hold.
    #[serde(flatten)]
    pub filter: Filter,
    /// Where to, with the keys of that kind of destination.
    #[serde(flatten)]
    pub destination: Destination,
}

/// Section `[alerting]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AlertingConfig {
    /// Whether anybody is told of anything; else alerts are only counted.
    pub enabled: bool,
    /// Seconds during which repeats of an alert raise its count; 0: each is told by itself.
    pub dedup_window_secs: u32,
    /// Seconds of the throttle's window.
    pub throttle_window_secs: u32,
    /// Alerts of one rule and source that begin in such a window.
    pub throttle_max: u32,
    /// Alerts of all rules and sources that begin in a second.
    pub max_alerts_per_second: u32,
    /// The server of routes that mail; `null`: none.
    pub smtp: Option<SmtpConfig>,
    /// Who is told what, in the order in which it was written.
    pub routes: Vec<RouteConfig>,
}

impl AlertingConfig {
    /// Reads the section.
    pub fn read(mut r: Reader<'_>) -> AlertingConfig {
        let limits = Limits::default();
        let secs = |window: Duration| window.as_secs() as u32;
        let enabled = r.key("enabled").boolean().unwrap_or(limits.enabled);
        let dedup_window_secs = r.key("dedup_window_secs").integer(0..=3600).unwrap_or(secs(limits.fold_window));
        let throttle_window_secs =
            r.key("throttle_window_secs").integer(1..=86_400).unwrap_or(secs(limits.throttle_window));
        let throttle_max = r.key("throttle_max").integer(1..=1_000_000).unwrap_or(limits.throttle_max);
        let max_alerts_per_second =
            r.key("max_alerts_per_second").integer(1..=1_000_000).unwrap_or(limits.alerts_per_second);
        let (smtp_field, list) = (r.key("smtp"), r.key("routes"));
        let smtp = SmtpConfig::read(&smtp_field);
        let routes = match list.is_present() {
            true => read_routes(&list, smtp.as_ref()),
            false => default_routes(&list),
        };
        r.finish();
        AlertingConfig {
            enabled,
            dedup_window_secs,
            throttle_window_secs,
            throttle_max,
            max_alerts_per_second,
            smtp,
            routes,
        }
    }

    /// Windows and bounds of the router.
    pub fn limits(&self) -> Limits {
        let secs = |secs: u32| Duration::from_secs(secs.into());
        Limits {
            enabled: self.enabled,
            fold_window: secs(self.dedup_window_secs),
            throttle_window: secs(self.throttle_window_secs),
            throttle_max: self.throttle_max,
            alerts_per_second: self.max_alerts_per_second,
            ..Limits::default()
        }
    }

    /// The routes that hear something.
    pub fn routes_in_force(&self) -> &[RouteConfig] {
        if self.enabled { &self.routes } else { &[] }
    }

    /// Where they lead, by their names.
    pub fn destinations(&self) -> impl Iterator<Item = (&str, &Destination)> {
        self.routes_in_force().iter().map(|route| (route.name.as_str(), &route.destination))
    }
}

/// Without a route the log hears everything. The keys of a route are read nevertheless, so that they are known.
fn default_routes(list: &Field<'_>) -> Vec<RouteConfig> {
    read_routes(list, None);
    vec![RouteConfig { name: "default-log".to_owned(), filter: Filter::default(), destination: Destination::log() }]
}

fn read_routes(list: &Field<'_>, smtp: Option<&SmtpConfig>) -> Vec<RouteConfig> {
    let readers = list.tables();
    if readers.len() > ROUTES_MAX {
        list.error(format!("{} routes, and {ROUTES_MAX} is the limit", readers.len()));
        return Vec::new();
    }
    let mut places: HashMap<String, String> = HashMap::new();
    let mut routes: Vec<RouteConfig> = Vec::new();
    for mut reader in readers {
        let name_field = reader.key("name").required();
        let name = read_id(&name_field);
        if let Some(name) = &name {
            let line = reader.line().map(|line| format!(" on line {line}")).unwrap_or_default();
            let place = format!("{}{line}", reader.path());
            if let Some(other) = places.insert(name.clone(), place) {
                name_field.error(format!("\"{name}\" is already the name of {other}"));
            }
        }
        let filter = read_filter(&mut reader);
        let destination = Destination::read(&mut reader, smtp);
        let path_field = reader.key("path");
        reader.finish();
        // Two that rotate one file would take each other's lines away.
        let path = destination.as_ref().and_then(Destination::path);
        let twin = routes.iter().find(|route| path.is_some() && route.destination.path() == path);
        if let Some(twin) = twin {
            path_field.error(format!("route {} writes to this file already", twin.name));
        }
        if let (Some(name), Some(destination)) = (name, destination) {
            routes.push(RouteConfig { name, filter, destination });
        }
    }
    routes
}

fn read_filter(r: &mut Reader<'_>) -> Filter {
    let min_severity = r.key("min_severity").one_of(Severity::WORDS).unwrap_or(Severity::Low);
    let (components_field, event_types) = (r.key("components"), r.key("event_types"));
    let mut components = read_components(&components_field);
    // The same by another name.
    if event_types.is_present() {
        if components_field.is_present() {
            event_types.error("is the same as components; keep one of the two");
        }
        components = read_components(&event_types);
    }
    let rule_ids = read_list(&r.key("rule_ids"), |item| item.parse::<RulePattern>());
    let mitre = read_list(&r.key("mitre"), read_technique);
    Filter { min_severity, components, rule_ids, mitre }
}

fn read_components(field: &Field<'_>) -> Vec<Component> {
    let words: Vec<_> = Component::ALL.iter().map(|component| (component.name(), *component)).collect();
    read_list(field, |item| item.one_of(&words))
}

/// The entries of a list, which is not empty if it is there: who wants none would get all.
fn read_list<'r, T: PartialEq>(field: &Field<'r>, read: impl Fn(&Field<'r>) -> Option<T>) -> Vec<T> {
    let Some(items) = field.items() else { return Vec::new() };
    if items.is_empty() {
        field.error("the list is empty, so nothing would fit; leave the key out, and everything does");
    }
    if items.len() > LIST_MAX {
        field.error(format!("{} entries, and {LIST_MAX} is the limit", items.len()));
        return Vec::new();
    }
    let mut entries = Vec::new();
    for item in &items {
        let Some(entry) = read(item) else { continue };
        if entries.contains(&entry) {
            item.error("stands here already");
        }
        entries.push(entry);
    }
    entries
}
