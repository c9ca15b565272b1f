//! The rules of the configuration file and those made through the API, as one list.

use std::collections::HashSet;

use anyhow::{Result, bail};

use super::{AnyRule, ChangeError};

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration file.
    File,
    /// The API.
    Api,
}

impl Source {
    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Source::File => "file",
            Source::Api => "api",
        }
    }
}

/// All rules of an engine.
#[derive(Debug)]
pub struct Book<'r, R> {
    /// Those of the configuration file, in the order in which they were written.
    pub file: &'r [R],
    /// Those made through the API, in the order in which they were made.
    pub added: &'r [R],
}

impl<'r, R: AnyRule> Book<'r, R> {
    /// All rules in the order in which they are asked, and where each comes from. Equal priorities: the file's before
    /// the API's, each as written. A rule of the API whose name the file has taken meanwhile rests.
    pub fn in_order_with_source(&self) -> Vec<(&'r R, Source)> {
        let taken: HashSet<&str> = self.file.iter().map(R::id).collect();
        let added = self.added.iter().filter(|rule| !taken.contains(rule.id()));
        let mut all: Vec<_> = self.file.iter().map(|rule| (rule, Source::File)).collect();
        all.extend(added.map(|rule| (rule, Source::Api)));
        all.sort_by_key(|(rule, _)| rule.priority());
        all
    }

    /// All rules in the order in which they are asked; see [`Book::in_order_with_source`].
    pub fn in_order(&self) -> Vec<&'r R> {
        self.in_order_with_source().into_iter().map(|(rule, _)| rule).collect()
    }

    /// The rule that has this name; of two, the file's, which hides the other.
    pub fn find(&self, id: &str) -> Option<&'r R> {
        self.file.iter().chain(self.added).find(|rule| rule.id() == id)
    }

    /// Whether there are at most `max` rules; see [`AnyRule::check_count`].
    pub fn check_count(&self, max: usize) -> Result<(), String> {
        R::check_count(&mut self.in_order().into_iter(), max)
    }

    /// Tells of each rule of the API that a rule of the file hides.
    pub fn warn_of_hidden(&self) {
        for rule in self.added.iter().filter(|rule| self.is_in_file(rule.id())) {
            log::warn!("rule {} of the configuration file hides the rule of that name made through the API", rule.id());
        }
    }

    /// Refuses rules of a new file that have the name of a rule of the API, unless the old file had one of that name.
    pub fn refuse_names_of_added(&self, new_file: &[R]) -> Result<()> {
        for id in new_file.iter().map(R::id).filter(|id| !self.is_in_file(id)) {
            if self.added.iter().any(|other| other.id() == id) {
                bail!(
                    "rule {id} of the configuration file has the name of a rule made through the API; delete that one \
                     first"
                );
            }
        }
        Ok(())
    }

    /// The rules of the API with some more, each of which passes `check`.
    pub fn with(&self, rules: Vec<R>, check: impl Fn(&R) -> Result<(), ChangeError>) -> Result<Vec<R>, ChangeError> {
        let mut added = self.added.to_vec();
        for rule in rules {
            if self.is_in_file(rule.id()) {
                return Err(ChangeError::Taken(format!("rule \"{}\" is in the configuration file", rule.id())));
            }
            if added.iter().any(|other| other.id() == rule.id()) {
                return Err(ChangeError::Taken(format!("rule \"{}\" exists", rule.id())));
            }
            check(&rule)?;
            added.push(rule);
        }
        Ok(added)
    }

    /// The rules of the API with `rule` in the place of the one that has its name.
    pub fn with_changed(&self, rule: R) -> Result<Vec<R>, ChangeError> {
        let place = self.place_of(rule.id())?;
        let mut added = self.added.to_vec();
        added[place] = rule;
        Ok(added)
    }

    /// The rules of the API without one of them.
    pub fn without(&self, id: &str) -> Result<Vec<R>, ChangeError> {
        let place = self.place_of(id)?;
        let mut added = self.added.to_vec();
        added.remove(place);
        Ok(added)
    }

    fn is_in_file(&self, id: &str) -> bool {
        self.file.iter().any(|rule| rule.id() == id)
    }

    fn place_of(&self, id: &str) -> Result<usize, ChangeError> {
        if self.is_in_file(id) {
            return Err(ChangeError::Taken(format!(
                "rule \"{id}\" is in the configuration file; change it there and reload"
            )));
        }
        self.added.iter().position(|rule| rule.id() == id).ok_or_else(|| ChangeError::NotFound(id.to_owned()))
    }
}
