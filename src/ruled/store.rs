//! Rules made through the API, kept on disk: written whole to a new file that then takes the old one's place.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::AnyRule;
use super::body::{RuleBody, read_rules_json};

/// The file of an engine's rules in the agent's state directory.
#[derive(Clone, Debug)]
pub struct Store<R> {
    path: PathBuf,
    rules: PhantomData<fn() -> R>,
}

impl<R: AnyRule> Store<R> {
    /// The store in `state_dir`, which must exist; the file is [`AnyRule::FILE`].
    pub fn new(state_dir: &Path) -> Store<R> {
        Store { path: state_dir.join(R::FILE), rules: PhantomData }
    }

    /// All rules that were saved, in the order in which they were made.
    ///
    /// # Errors
    /// A file that cannot be read or is not what [`Store::save`] wrote: nothing is guessed.
    pub fn load(&self) -> Result<Vec<R>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", self.path.display())),
        };
        if bytes.trim_ascii() == b"[]" {
            return Ok(Vec::new());
        }
        match read_rules_json(&bytes) {
            Ok(RuleBody::Many(rules)) => Ok(rules),
            Ok(RuleBody::One(_)) => bail!("{} holds one rule, not a list of rules", self.path.display()),
            Err(errors) => {
                let first = errors.first().map(ToString::to_string).unwrap_or_default();
                bail!("{} is damaged ({first}); mend it or move it away", self.path.display())
            }
        }
    }

    /// Saves all rules. After a crash at any moment the file holds either all of the old or all of the new ones.
    pub fn save(&self, rules: &[R]) -> Result<()> {
        let text: Vec<R::Text> = rules.iter().map(R::text).collect();
        let fresh = self.path.with_extension("json.new");
        let saved = (|| -> Result<()> {
            let mut file = File::create(&fresh)?;
            serde_json::to_writer_pretty(&mut file, &text)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&fresh, &self.path)?;
            let directory = self.path.parent().context("the store has a directory")?;
            File::open(directory)?.sync_all()?;
            Ok(())
        })();
        saved.with_context(|| format!("saving rules in {}", self.path.display()))
    }
}
