//! The nine components, once: name as it stands in config sections, routes, metrics labels and alerts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One protective unit of the agent. ("Domain" always means a DNS domain here.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// Packet filter in XDP.
    Firewall,
    /// Rate limiter in XDP, behind the firewall.
    Ratelimit,
    /// Inspection of flows.
    Ids,
    /// Application-layer firewall over reassembled flows.
    L7,
}

impl Component {
    /// Every component that this build has.
    pub const ALL: &'static [Component] = &[Component::Firewall, Component::Ratelimit, Component::Ids, Component::L7];

    /// The names of all, in that order.
    pub const NAMES: &'static [&'static str] = &{
        let mut names = [""; Component::ALL.len()];
        let mut i = 0;
        while i < names.len() {
            names[i] = Component::ALL[i].name();
            i += 1;
        }
        names
    };

    /// The one name: section, route segment, label value.
    pub const fn name(self) -> &'static str {
        match self {
            Component::Firewall => "firewall",
            Component::Ratelimit => "ratelimit",
            Component::Ids => "ids",
            Component::L7 => "l7",
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
