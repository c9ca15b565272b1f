//! The agent's configuration: the sum of its sections, and how it is loaded.
//!
//! A section is read where it belongs: `[agent]` in `agent.rs`, a component's beside its engine. Each turns what the user
//! wrote into the type that is used, with every check done, so nothing that runs needs to doubt its config.

use schemars::JsonSchema;
use serde::Serialize;

use crate::engines::firewall::config::FirewallConfig;
use crate::written::Field;

pub mod agent;
mod load;

pub use agent::AgentConfig;
pub use load::{ConfigErrors, Flag, Loaded, known_keys, load, parse, variable_of};

/// Everything that the user can set, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Config {
    /// Section `[agent]`.
    pub agent: AgentConfig,
    /// Section `[firewall]`.
    pub firewall: FirewallConfig,
}

impl Config {
    fn read(root: &Field<'_>) -> Option<Config> {
        let mut r = root.table()?;
        let (agent_field, firewall_field) = (r.key("agent"), r.key("firewall"));
        r.finish();
        let agent = agent_field.table().and_then(AgentConfig::read);
        let interfaces = agent.as_ref().map(|agent| agent.interfaces.as_slice());
        let firewall = FirewallConfig::read(firewall_field.table()?, interfaces);
        Some(Config { agent: agent?, firewall })
    }

    /// The config as it is used, defaults included, for people to see. Nothing in it is secret yet; a type that holds a
    /// secret serialises as its mask.
    pub fn masked(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a config is made of strings, numbers, lists and maps with string keys")
    }

    /// Keys that differ from `old` and only take effect at a start. A reload that meets one is refused whole.
    pub fn restart_needed(&self, old: &Config) -> Vec<&'static str> {
        let (new, old) = ((&self.agent, &self.firewall), (&old.agent, &old.firewall));
        [
            ("agent.interfaces", new.0.interfaces != old.0.interfaces),
            ("agent.bind_address", new.0.bind_address != old.0.bind_address),
            ("agent.http_port", new.0.http_port != old.0.http_port),
            ("agent.metrics_port", new.0.metrics_port != old.0.metrics_port),
            ("agent.host_names", new.0.host_names != old.0.host_names),
            ("agent.xdp_mode", new.0.xdp_mode != old.0.xdp_mode),
            ("agent.on_exit", new.0.on_exit != old.0.on_exit),
            ("agent.state_dir", new.0.state_dir != old.0.state_dir),
            // Whether programs are attached, and what the verifier saw of them.
            ("firewall.enabled", new.1.enabled != old.1.enabled),
            ("firewall.stateful", new.1.stateful != old.1.stateful),
            ("firewall.max_connections", new.1.max_connections != old.1.max_connections),
            ("firewall.timeouts", new.1.timeouts != old.1.timeouts),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }
}
