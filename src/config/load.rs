//! File, environment and flags -> [`Config`]. Flags stand in front of the environment, the environment in front of the
//! file, the file in front of the defaults; all four are one tree by the time it is read, so they are checked alike.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::{Config, shown};
use crate::guarded::{self, Holds};
use crate::written::{Document, Key, Kind, TEXT_MAX, WrittenError, did_you_mean};

/// All variables of ours begin so.
const PREFIX: &str = "EBPFSENTINEL_";
/// Variables that the command line reads for itself.
const CLIENT_VARIABLES: &[&str] =
    &["EBPFSENTINEL_TOKEN", "EBPFSENTINEL_CONFIG", "EBPFSENTINEL_SOCKET", "EBPFSENTINEL_CACERT"];
/// Short names, from before there was a variable for every key.
const SHORT_VARIABLES: &[(&str, &str)] =
    &[("EBPFSENTINEL_HOST", "agent.bind_address"), ("EBPFSENTINEL_PORT", "agent.http_port")];

/// A flag that sets a key.
#[derive(Clone, Copy, Debug)]
pub struct Flag<'f> {
    /// As the user typed it: `--log-level`.
    pub name: &'f str,
    /// The key: `agent.log_level`.
    pub key: &'f str,
    /// Its value.
    pub value: &'f str,
}

/// A config without errors.
#[derive(Debug)]
pub struct Loaded {
    /// What to do.
    pub config: Config,
    /// The file that it came from.
    pub path: PathBuf,
    /// What works, but probably not as meant.
    pub warnings: Vec<WrittenError>,
    /// Where the agent has to be let.
    pub paths: Paths,
}

/// The places in the file system that a config speaks of, itself included. Those of rules are patterns of other things.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Files that are read, and the directories around them: whoever renews a file may put another in its place.
    pub read: Vec<PathBuf>,
    /// Directories in which files are written.
    pub write: Vec<PathBuf>,
}

impl Paths {
    fn of(config: &Path, document: &Document) -> Paths {
        let mut paths = Paths::default();
        paths.add_read(config);
        for (key, path) in document.absolute_paths() {
            let last = key.rsplit('.').next().unwrap_or_default();
            match key.as_str() {
                rule if rule.contains("rules[]") => {}
                "agent.state_dir" => paths.write.push(path),
                "agent.socket" | "audit.storage_path" | "alerting.routes[].path" => {
                    paths.write.extend(path.parent().map(Path::to_owned));
                }
                // Keys and certificates. Any other text of these tables is no path, whatever it begins with.
                alerts if alerts.starts_with("alerting.") && !last.ends_with("_file") => {}
                _ => paths.add_read(&path),
            }
        }
        // The root would be everything.
        paths.read.retain(|path| path.parent().is_some());
        paths.write.retain(|path| path.parent().is_some());
        paths
    }

    fn add_read(&mut self, path: &Path) {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.read.extend(path.parent().map(Path::to_owned));
        self.read.push(path);
    }
}

/// All that is wrong with a config. Displays as one line for each error; [`ConfigErrors::detailed`] shows the text too, but
/// none that may be a secret.
#[derive(Debug)]
pub struct ConfigErrors {
    /// In the order of the text; never empty.
    pub errors: Vec<WrittenError>,
    /// The line that each error speaks of, if it may be shown.
    lines: Vec<Option<String>>,
}

impl ConfigErrors {
    fn new(errors: Vec<WrittenError>, text: &[u8]) -> ConfigErrors {
        let names =
            KNOWN_KEYS.iter().flat_map(|key| key.path.split('.')).map(|name| name.trim_end_matches("[]")).collect();
        // Of a text that is not UTF-8 nothing is shown.
        let may_show = shown::lines(std::str::from_utf8(text).unwrap_or_default(), &names);
        let line = |error: &WrittenError| {
            let number = error.line.filter(|&number| may_show.get(number as usize - 1) == Some(&true))?;
            line_of(text, number).filter(|line| !shown::names_secret(line))
        };
        let lines = errors.iter().map(line).collect();
        ConfigErrors { errors, lines }
    }

    fn one(error: WrittenError) -> ConfigErrors {
        ConfigErrors::new(vec![error], b"")
    }

    /// Each error with its line of the text, and a mark below its place. Lines that may hold a secret are left out.
    pub fn detailed(&self) -> String {
        let mut out = String::new();
        for (error, line) in self.errors.iter().zip(&self.lines) {
            out.push_str(&format!("{error}\n"));
            if let (Some(text), Some(number), Some(column)) = (line, error.line, error.column) {
                let blank = " ".repeat(number.to_string().len());
                let before = text.chars().take(column as usize - 1);
                let indent = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect::<String>();
                out.push_str(&format!(" {number} | {text}\n {blank} | {indent}^\n"));
            }
        }
        out
    }
}

/// One line of the text, unless it is too long to show or has anything in it that a terminal obeys.
fn line_of(text: &[u8], number: u32) -> Option<String> {
    let line = text.split(|&byte| byte == b'\n').nth((number as usize).checked_sub(1)?)?;
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let plain = line.len() <= 200 && !line.chars().any(|c| c.is_control() && c != '\t');
    plain.then(|| line.trim_start_matches('\u{feff}').to_owned())
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads and checks a config. Nothing is changed anywhere.
pub fn load(
    path: &Path,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &[Flag<'_>],
) -> Result<Loaded, ConfigErrors> {
    let origin = path.display().to_string();
    let text = guarded::read(path, Holds::Orders, TEXT_MAX);
    let text = text.map_err(|message| ConfigErrors::one(WrittenError::whole(&origin, message)))?;
    let (config, warnings, document) = parse_document(&origin, &text, environment, flags)?;
    let paths = Paths::of(path, &document);
    Ok(Loaded { config, path: path.to_owned(), warnings, paths })
}

/// [`load`] without the file: checks `text`, which errors call `origin`.
pub fn parse(
    origin: &str,
    text: &[u8],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &[Flag<'_>],
) -> Result<(Config, Vec<WrittenError>), ConfigErrors> {
    parse_document(origin, text, environment, flags).map(|(config, warnings, _)| (config, warnings))
}

fn parse_document(
    origin: &str,
    text: &[u8],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &[Flag<'_>],
) -> Result<(Config, Vec<WrittenError>, Document), ConfigErrors> {
    let mut document = Document::toml(origin, text).map_err(|errors| ConfigErrors::new(errors, text))?;
    let mut errors = overlay(&mut document, environment, flags);
    let outcome = document.read(|root| Config::read(&root));
    errors.extend(outcome.errors);
    match outcome.value {
        Some(config) if errors.is_empty() => Ok((config, outcome.warnings, document)),
        _ => Err(ConfigErrors::new(errors, text)),
    }
}

/// Learned once: they are always the same.
static KNOWN_KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| Document::known_keys(|root| Config::read(&root)));

/// Every key of every section.
pub fn known_keys() -> Vec<Key> {
    KNOWN_KEYS.clone()
}

/// The environment variable that sets a key.
pub fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

/// Puts the environment, then the flags, in front of what the file says.
fn overlay(
    document: &mut Document,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    flags: &[Flag<'_>],
) -> Vec<WrittenError> {
    let mut errors = Vec::new();
    let settable = KNOWN_KEYS.iter().filter(|key| key.kind != Kind::Table && !key.path.contains("[]"));
    let mut variables = settable.clone().map(|key| (variable_of(&key.path), key)).collect::<Vec<_>>();
    for &(short, path) in SHORT_VARIABLES {
        variables.extend(settable.clone().find(|key| key.path == path).map(|key| (short.to_owned(), key)));
    }

    let mut ours = environment
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok().filter(|name| name.starts_with(PREFIX))?, value)))
        .filter(|(name, _)| !CLIENT_VARIABLES.contains(&name.as_str()))
        .collect::<Vec<_>>();
    ours.sort();
    let mut set: Vec<(&Key, String)> = Vec::new();
    for (name, value) in ours {
        let origin = format!("environment variable {name}");
        let mut fail = |message: String| errors.push(WrittenError::whole(&origin, message));
        let Some((_, key)) = variables.iter().find(|(known, _)| *known == name) else {
            let names = variables.iter().map(|(known, _)| known.as_str()).chain(CLIENT_VARIABLES.iter().copied());
            fail(format!("sets no key{}", did_you_mean(&name, names)));
            continue;
        };
        let Some(value) = value.to_str() else {
            fail("not valid UTF-8".to_owned());
            continue;
        };
        if let Some((_, other)) = set.iter().find(|(known, _)| known == key) {
            fail(format!("sets {}, and so does {other}; keep one of the two", key.path));
            continue;
        }
        document.set(key, &origin, value);
        set.push((key, name));
    }
    for flag in flags {
        match settable.clone().find(|key| key.path == flag.key) {
            Some(key) => document.set(key, flag.name, flag.value),
            None => errors.push(WrittenError::whole(flag.name, format!("sets {}, which is not a key", flag.key))),
        }
    }
    errors
}
