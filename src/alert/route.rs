//! A route: a sink, and which alerts it hears.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::sinks::Sink;
use super::{Alert, Severity};
use crate::classify::rules::serialize_mitre;
use crate::component::Component;

/// Longest pattern for names of rules, in characters.
const PATTERN_MAX: usize = 128;

/// Names of rules: one of them, or all that begin alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RulePattern {
    /// This one.
    Exact(String),
    /// All that begin so; written with a `*` at the end.
    Prefix(String),
}

impl RulePattern {
    fn matches(&self, rule_id: &str) -> bool {
        match self {
            RulePattern::Exact(name) => rule_id == name,
            RulePattern::Prefix(start) => rule_id.starts_with(start.as_str()),
        }
    }
}

impl FromStr for RulePattern {
    type Err = String;

    fn from_str(s: &str) -> Result<RulePattern, String> {
        let shown = || s.chars().take(60).collect::<String>().escape_debug().to_string();
        let (name, is_prefix) = s.strip_suffix('*').map_or((s, false), |start| (start, true));
        if s.is_empty() || s.len() > PATTERN_MAX || !s.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "\"{}\" cannot be the name of a rule: 1 to {PATTERN_MAX} letters, digits and signs, no spaces",
                shown()
            ));
        }
        if name.contains('*') {
            return Err(format!("\"{}\" has a * that is not at its end; write such as \"ssh-*\"", shown()));
        }
        Ok(if is_prefix { RulePattern::Prefix(name.to_owned()) } else { RulePattern::Exact(name.to_owned()) })
    }
}

impl fmt::Display for RulePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RulePattern::Exact(name) => f.write_str(name),
            RulePattern::Prefix(start) => write!(f, "{start}*"),
        }
    }
}

impl Serialize for RulePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which alerts a route hears: those that fit each of its parts. A list that is empty fits all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Filter {
    /// From this severity on.
    pub min_severity: Severity,
    /// Of one of these components.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub components: Vec<Component>,
    /// Of a rule with one of these names; `ssh-*` is every name that begins so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", default)]
    pub rule_ids: Vec<RulePattern>,
    /// With one of these MITRE ATT&CK techniques; a technique stands for its sub-techniques, too.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "serialize_mitre")]
    #[schemars(with = "Vec<String>", default)]
    pub mitre: Vec<Arc<str>>,
}

impl Default for Filter {
    /// Everything.
    fn default() -> Filter {
        Filter { min_severity: Severity::Low, components: Vec::new(), rule_ids: Vec::new(), mitre: Vec::new() }
    }
}

impl Filter {
    /// Whether an alert fits.
    pub fn wants(&self, alert: &Alert) -> bool {
        fn fits<T>(list: &[T], is_it: impl FnMut(&T) -> bool) -> bool {
            list.is_empty() || list.iter().any(is_it)
        }
        alert.severity >= self.min_severity
            && fits(&self.components, |component| *component == alert.component)
            && fits(&self.rule_ids, |pattern| pattern.matches(&alert.rule_id))
            && fits(&self.mitre, |wanted| alert.mitre.iter().any(|technique| is_part_of(technique, wanted)))
    }

    /// Whether an alert fits, from the document that the API shows.
    pub fn wants_document(&self, document: &Value) -> bool {
        let text = |key: &str| document[key].as_str().unwrap_or_default();
        let component = Component::ALL.iter().copied().find(|component| component.name() == text("component"));
        let (Some(component), Ok(severity)) = (component, text("severity").parse()) else { return false };
        let techniques = document["mitre"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut alert = Alert::new(component, severity, text("rule_id"), "", 0, "");
        alert.mitre = techniques.map(Into::into).collect();
        self.wants(&alert)
    }
}

/// Whether a technique is the wanted one or a part of it: T1110.001 is a part of T1110.
fn is_part_of(technique: &str, wanted: &str) -> bool {
    technique.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A sink and what it hears. Clones share the sink, so that the agent's own sinks outlive a reload.
#[derive(Clone)]
pub struct Route {
    name: Arc<str>,
    filter: Filter,
    /// Whether it is one of the agent itself.
    is_own: bool,
    /// Taken by the router's thread only, so it never waits.
    sink: Arc<Mutex<Box<dyn Sink>>>,
}

impl Route {
    /// Everything to this sink of the agent itself, which gives the route its name.
    pub fn all(sink: impl Sink + 'static) -> Route {
        let name = sink.name().to_owned();
        Route { is_own: true, ..Route::new(&name, Filter::default(), Box::new(sink)) }
    }

    /// A route of the configuration: what the filter wants, to this sink.
    pub fn new(name: &str, filter: Filter, sink: Box<dyn Sink>) -> Route {
        Route { name: name.into(), filter, is_own: false, sink: Arc::new(Mutex::new(sink)) }
    }

    /// Whether it is one of the agent itself, such as that of the store, which hears everything.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// Its name, unique among those of a router.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it hears an alert.
    pub fn wants(&self, alert: &Alert) -> bool {
        self.filter.wants(alert)
    }

    /// Hands an alert to its sink. An error is where it was lost and why.
    pub(super) fn tell(&self, alert: &Arc<Alert>) -> Result<(), (String, &'static str)> {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.write(alert).map_err(|reason| (sink.name().to_owned(), reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(rule: &str, severity: Severity, mitre: &[&str]) -> Alert {
        let mut alert = Alert::new(Component::L7, severity, rule, "log", 1, "m");
        alert.mitre = mitre.iter().map(|&id| id.into()).collect();
        alert
    }

    #[test]
    fn a_filter_wants_what_fits_each_of_its_parts() {
        let filter = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter
        };
        let ssh = alert("ssh-guess", Severity::Medium, &["T1110.001", "T1021"]);
        for (filter, want) in [
            (Filter::default(), true),
            (filter(|it| it.min_severity = Severity::Medium), true),
            (filter(|it| it.min_severity = Severity::High), false),
            (filter(|it| it.components = vec![Component::Firewall, Component::L7]), true),
            (filter(|it| it.components = vec![Component::Firewall]), false),
            (filter(|it| it.rule_ids = vec!["other".parse().unwrap(), "ssh-guess".parse().unwrap()]), true),
            (filter(|it| it.rule_ids = vec!["ssh-".parse().unwrap()]), false),
            (filter(|it| it.rule_ids = vec!["ssh-*".parse().unwrap()]), true),
            (filter(|it| it.rule_ids = vec!["*".parse().unwrap()]), true),
            (filter(|it| it.mitre = vec!["T1110".into()]), true),
            (filter(|it| it.mitre = vec!["T1110.001".into()]), true),
            (filter(|it| it.mitre = vec!["T1110.002".into()]), false),
            (filter(|it| it.mitre = vec!["T1021.004".into()]), false),
            (filter(|it| it.mitre = vec!["T111".into()]), false),
            (
                filter(|it| {
                    it.mitre = vec!["T1021".into()];
                    it.components = vec![Component::Ids];
                }),
                false,
            ),
        ] {
            assert_eq!(filter.wants(&ssh), want, "{filter:?}");
        }
        let untagged = alert("ssh", Severity::Medium, &[]);
        assert!(!filter(|it| it.mitre = vec!["T1110".into()]).wants(&untagged));
    }

    #[test]
    fn patterns_read_back() {
        for text in ["ssh", "ssh-*", "*", "(default)", "http.no_host", "unparsable:ip-*"] {
            assert_eq!(text.parse::<RulePattern>().unwrap().to_string(), text);
        }
        for (text, part) in [
            ("", "cannot be the name"),
            ("a b", "cannot be the name"),
            ("é", "cannot be the name"),
            (&"x".repeat(129), "cannot be the name"),
            ("*ssh", "not at its end"),
            ("a**", "not at its end"),
        ] {
            let error = text.parse::<RulePattern>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
