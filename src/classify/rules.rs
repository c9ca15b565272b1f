//! What the rules of every engine have besides their match: a name, an action, a description,
//! others beside them, and a mode.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::matching::Match;
use crate::written::{Field, Reader};

/// Longest `id`, in characters.
const ID_MAX: usize = 64;
/// Longest `description`, in characters.
const DESCRIPTION_MAX: usize = 256;
/// Most techniques of a rule.
const MITRE_MAX: usize = 16;

/// Whether verdicts are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is dropped; events say what would have been.
    Alert,
    /// Verdicts are enforced.
    Block,
}

impl Mode {
    /// Words that stand for a mode, the usual one first.
    pub const WORDS: &'static [(&'static str, Mode)] = &[
        ("alert", Mode::Alert),
        ("block", Mode::Block),
        ("monitor", Mode::Alert),
        ("observe", Mode::Alert),
        ("enforce", Mode::Block),
    ];

    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Alert => "alert",
            Mode::Block => "block",
        }
    }
}

/// What a rule wishes for what it matches: a packet, or a transaction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Let it go on.
    Allow,
    /// Drop the packet, or block the transaction's flow (in `mode = "block"`).
    Deny,
    /// Let it go on, and tell.
    Log,
}

impl Action {
    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Log => "log",
        }
    }
}

impl FromStr for Action {
    type Err = String;

    /// `allow`/`pass`, `deny`/`drop`/`block`, `log`.
    fn from_str(s: &str) -> Result<Action, String> {
        match s {
            "allow" | "pass" => Ok(Action::Allow),
            "deny" | "drop" | "block" => Ok(Action::Deny),
            "log" => Ok(Action::Log),
            _ => Err(format!("\"{}\" is not an action; use allow, deny or log", s.escape_debug())),
        }
    }
}

/// A name of letters, digits, `_` and `-`.
pub fn read_id(field: &Field<'_>) -> Option<String> {
    let id = field.text()?;
    let wrong = id.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-'));
    if let Some(wrong) = wrong {
        field.error(format!("{wrong:?} cannot be in an id; use letters, digits, _ and -"));
    } else if id.is_empty() || id.len() > ID_MAX {
        field.error(format!("an id has 1 to {ID_MAX} characters; this one has {}", id.len()));
    } else {
        return Some(id.to_owned());
    }
    None
}

/// The namespace of a rule, by which operators are told apart; named as ids are. `None` when absent.
pub fn read_namespace(field: &Field<'_>) -> Option<String> {
    read_id(field)
}

/// A line of free text; empty when absent.
pub fn read_description(field: &Field<'_>) -> String {
    let text = field.text().unwrap_or_default();
    let length = text.chars().count();
    if length > DESCRIPTION_MAX {
        field.error(format!("a description has at most {DESCRIPTION_MAX} characters; this one has {length}"));
    } else if let Some(control) = text.chars().find(|c| c.is_control()) {
        field.error(format!("a description is one line of plain text; this one has {control:?} in it"));
    }
    text.to_owned()
}

/// The id of a technique or sub-technique of MITRE ATT&CK, such as T1110 or T1110.001. The error is a sentence for people.
pub fn technique(text: &str) -> Result<Arc<str>, String> {
    let are_digits = |part: &str, count: usize| part.len() == count && part.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.strip_prefix('T').unwrap_or_default();
    let is_id = match number.split_once('.') {
        Some((technique, part)) => are_digits(technique, 4) && are_digits(part, 3),
        None => are_digits(number, 4),
    };
    let shown = || text.chars().take(60).collect::<String>().escape_debug().to_string();
    let error = || format!("\"{}\" is not a technique of MITRE ATT&CK, such as T1110 or T1110.001", shown());
    if is_id { Ok(text.into()) } else { Err(error()) }
}

/// The same as the value of a key. `None` means that an error was noted.
pub fn read_technique(field: &Field<'_>) -> Option<Arc<str>> {
    technique(field.text()?).map_err(|error| field.error(error)).ok()
}

/// What a rule is a sign of: techniques, each once.
pub fn read_mitre(field: &Field<'_>) -> Vec<Arc<str>> {
    let items = field.items().unwrap_or_default();
    if items.len() > MITRE_MAX {
        field.error(format!("{} techniques, and {MITRE_MAX} is the limit", items.len()));
        return Vec::new();
    }
    let mut techniques = Vec::with_capacity(items.len());
    for item in items {
        let Some(technique) = read_technique(&item) else { continue };
        if techniques.contains(&technique) {
            item.error(format!("{technique} stands here already"));
        }
        techniques.push(technique);
    }
    techniques
}

/// Techniques as a rule or a route shows them.
pub fn serialize_mitre<S: Serializer>(techniques: &[Arc<str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(techniques.iter().map(|technique| &**technique))
}

/// Reads rules that belong together: their ids must differ. `read` reads one of them, `id` gives its name.
pub fn read_rules<'r, R>(
    readers: Vec<Reader<'r>>,
    read: impl Fn(Reader<'r>) -> Option<R>,
    id: fn(&R) -> &str,
) -> Vec<R> {
    let mut rules = Vec::with_capacity(readers.len());
    let mut places: HashMap<String, (String, Option<u32>)> = HashMap::new();
    for mut reader in readers {
        let field = reader.key("id");
        let place = (reader.path().to_owned(), field.line());
        let Some(rule) = read(reader) else { continue };
        if let Some((path, line)) = places.get(id(&rule)) {
            let line = line.map(|line| format!(" on line {line}")).unwrap_or_default();
            field.error(format!("\"{}\" is already the id of {path}{line}", id(&rule)));
        } else {
            places.insert(id(&rule).to_owned(), place);
        }
        rules.push(rule);
    }
    rules
}

/// Whether the rules fit the kernel's tables: `max` in each family, and those without addresses are in both. Rules that
/// are switched off count too, so that switching one on never fails.
pub fn check_counts<'r>(rules: impl IntoIterator<Item = &'r Match>, max: usize) -> Result<(), String> {
    let [mut v4, mut v6, mut both] = [0usize; 3];
    for rule in rules {
        match rule.is_ipv4() {
            Some(true) => v4 += 1,
            Some(false) => v6 += 1,
            None => both += 1,
        }
    }
    let family = |name, own| match own + both {
        sum if sum > max => Err(format!(
            "{sum} rules for {name}, and {max} is the limit for each family ({own} with {name} addresses, \
             {both} without addresses, which apply to both families)"
        )),
        _ => Ok(()),
    };
    family("IPv4", v4)?;
    family("IPv6", v6)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::written::Document;

    /// Techniques that a rule can have.
    pub(crate) fn any_mitre() -> impl Strategy<Value = Vec<Arc<str>>> {
        let ids = prop::collection::btree_set("T[0-9]{4}(\\.[0-9]{3})?", 0..4);
        ids.prop_map(|ids| ids.into_iter().map(Arc::from).collect())
    }

    #[test]
    fn techniques_have_the_form_of_attack() {
        let read = |list: &str| {
            let document = Document::toml("f", format!("mitre = {list}").as_bytes()).unwrap();
            let outcome = document.read(|root| read_mitre(&root.table().unwrap().key("mitre")));
            let texts = outcome.value.iter().map(ToString::to_string).collect::<Vec<_>>();
            (texts, outcome.errors.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(read("['T1110', 'T1110.001']"), (vec!["T1110".into(), "T1110.001".into()], vec![]));
        assert_eq!(read("[]"), (vec![], vec![]));
        for wrong in ["", "T111", "T11100", "t1110", "1110", "T1110.", "T1110.1", "T1110.0011", "T1110.001.1", "TA0006"]
        {
            let (_, errors) = read(&format!("['{wrong}']"));
            assert_eq!(errors.len(), 1, "{wrong}");
            assert!(errors[0].contains(&format!("mitre[0]: \"{wrong}\" is not a technique")), "{errors:?}");
        }
        assert!(read("['T1110', 'T1110']").1[0].contains("mitre[1]: T1110 stands here already"));
        let many = (0..17).map(|n| format!("'T10{n:02}'")).collect::<Vec<_>>().join(",");
        assert!(read(&format!("[{many}]")).1[0].contains("17 techniques, and 16 is the limit"));
        assert!(read("'T1110'").1[0].contains("expected an array"));
    }
}
