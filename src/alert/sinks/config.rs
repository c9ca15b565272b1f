//! Where a route's alerts go, as written -> as used.

use schemars::JsonSchema;
use serde::Serialize;

use crate::written::Reader;

/// Key `destination` of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "destination", rename_all = "lowercase")]
pub enum Destination {
    /// The agent's own log: a line of stderr, or an entry of the journal.
    Log,
}

impl Destination {
    /// Reads the key and those that belong to it. `None` means that an error was noted.
    pub fn read(r: &mut Reader<'_>) -> Option<Destination> {
        r.key("destination").required().one_of(&[("log", ())]).map(|()| Destination::Log)
    }
}
