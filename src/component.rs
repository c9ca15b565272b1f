//! The nine components, once: name as it stands in config sections, routes, metrics labels and alerts.

use serde::{Deserialize, Serialize};

/// One protective unit of the agent. ("Domain" always means a DNS domain here.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// Packet filter in XDP.
    Firewall,
    /// Rate limiter in XDP, behind the firewall.
    Ratelimit,
}

impl Component {
    /// Every component that this build has.
    pub const ALL: &'static [Component] = &[Component::Firewall, Component::Ratelimit];

    /// The one name: section, route segment, label value.
    pub const fn name(self) -> &'static str {
        match self {
            Component::Firewall => "firewall",
            Component::Ratelimit => "ratelimit",
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
