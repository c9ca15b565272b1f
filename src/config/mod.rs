//! The agent's configuration: the sum of its sections, and how it is loaded.
//!
//! A section is read where it belongs: `[agent]` in `agent.rs`, a component's beside its engine. Each turns what the user
//! wrote into the type that is used, with every check done, so nothing that runs needs to doubt its config.

use schemars::JsonSchema;
use serde::Serialize;

use crate::alert::config::AlertingConfig;
use crate::audit::config::AuditConfig;
use crate::classify::rules::Mode;
use crate::engines::firewall::config::FirewallConfig;
use crate::engines::l7::config::L7Config;
use crate::engines::ratelimit::config::RatelimitConfig;
use crate::flow::config::CaptureConfig;
use crate::written::Field;

pub mod agent;
pub mod auth;
mod load;
mod shown;
pub mod tls;

use agent::CpuSteering;
use tls::TlsConfig;

pub use agent::AgentConfig;
pub use auth::AuthConfig;
pub use load::{ConfigErrors, Flag, Loaded, Paths, known_keys, load, parse, variable_of};

/// Everything that the user can set, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Config {
    /// Section `[agent]`.
    pub agent: AgentConfig,
    /// Section `[tls]`.
    pub tls: TlsConfig,
    /// Section `[auth]`.
    pub auth: AuthConfig,
    /// Section `[firewall]`.
    pub firewall: FirewallConfig,
    /// Section `[ratelimit]`.
    pub ratelimit: RatelimitConfig,
    /// Section `[ids]`.
    pub ids: CaptureConfig,
    /// Section `[l7]`.
    pub l7: L7Config,
    /// Section `[audit]`.
    pub audit: AuditConfig,
    /// Section `[alerting]`.
    pub alerting: AlertingConfig,
}

impl Config {
    fn read(root: &Field<'_>) -> Option<Config> {
        let mut r = root.table()?;
        let (agent_field, firewall_field, ratelimit_field) = (r.key("agent"), r.key("firewall"), r.key("ratelimit"));
        let tls_field = r.key("tls");
        let ids_field = r.key("ids");
        let l7_field = r.key("l7");
        let auth_field = r.key("auth");
        let audit_field = r.key("audit");
        let alerting_field = r.key("alerting");
        r.finish();
        let tls = tls_field.table().map(TlsConfig::read);
        let names_clients = tls.as_ref().is_some_and(|tls| tls.enabled && !tls.clients.is_empty());
        let auth = auth_field.table().map(|r| AuthConfig::read(r, names_clients));
        let asks = auth.as_ref().is_none_or(|auth| auth.enabled);
        let agent = agent_field.table().and_then(|r| AgentConfig::read(r, asks));
        let interfaces = agent.as_ref().map(|agent| agent.interfaces.as_slice());
        let firewall = firewall_field.table().map(|r| FirewallConfig::read(r, interfaces));
        let ratelimit = ratelimit_field.table().map(|r| RatelimitConfig::read(r, interfaces));
        let ids = ids_field.table().map(CaptureConfig::read);
        let l7 = l7_field.table().map(L7Config::read);
        let audit = audit_field.table().map(AuditConfig::read);
        let alerting = alerting_field.table().map(AlertingConfig::read);
        let config = Config {
            agent: agent?,
            tls: tls?,
            auth: auth?,
            firewall: firewall?,
            ratelimit: ratelimit?,
            ids: ids?,
            l7: l7?,
            audit: audit?,
            alerting: alerting?,
        };
        if config.ratelimit.enabled && !config.firewall.enabled {
            ratelimit_field.error(
                "the rate limiter runs behind the firewall; set firewall.enabled = true (without rules it passes everything)",
            );
        }
        if config.l7.enabled && config.ids.enabled == Some(false) {
            ids_field.error(
                "enabled: the rules of [l7] judge what is inspected; set ids.enabled = true, or l7.enabled = false",
            );
        }
        if config.l7.enabled && config.l7.mode == Mode::Block && !config.firewall.enabled {
            l7_field.error(
                "flows are blocked by the firewall's program; set firewall.enabled = true (without rules it passes \
                 everything), or l7.mode = \"alert\"",
            );
        }
        if config.agent.cpu_steering != CpuSteering::Off && !config.firewall.enabled {
            agent_field.error(
                "cpu_steering: flows are steered behind the firewall; set firewall.enabled = true (without rules it passes \
                 everything)",
            );
        }
        Some(config)
    }

    /// Whether flows are inspected.
    pub fn inspects(&self) -> bool {
        self.ids.enabled.unwrap_or(self.l7.enabled)
    }

    /// The config as it is used, defaults included, for people to see. A type that holds a secret serialises as its
    /// mask.
    pub fn masked(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a config is made of strings, numbers, lists and maps with string keys")
    }

    /// Keys that differ from `old` and only take effect at a start. A reload that meets one is refused whole.
    pub fn restart_needed(&self, old: &Config) -> Vec<&'static str> {
        let (agent, was) = (&self.agent, &old.agent);
        let agent_keys = [
            ("agent.interfaces", agent.interfaces != was.interfaces),
            ("agent.bind_address", agent.bind_address != was.bind_address),
            ("agent.http_port", agent.http_port != was.http_port),
            ("agent.metrics_port", agent.metrics_port != was.metrics_port),
            ("agent.grpc_port", agent.grpc_port != was.grpc_port),
            ("agent.host_names", agent.host_names != was.host_names),
            ("agent.socket", agent.socket != was.socket),
            ("agent.requests_per_second", agent.requests_per_second != was.requests_per_second),
            ("agent.swagger_ui", agent.swagger_ui != was.swagger_ui),
            ("agent.sandbox", agent.sandbox != was.sandbox),
            ("agent.xdp_mode", agent.xdp_mode != was.xdp_mode),
            ("agent.cpu_steering", agent.cpu_steering != was.cpu_steering),
            ("agent.on_exit", agent.on_exit != was.on_exit),
            ("agent.state_dir", agent.state_dir != was.state_dir),
        ];
        let (tls, was) = (&self.tls, &old.tls);
        let tls_keys = [("tls.enabled", tls.enabled != was.enabled), ("tls.metrics", tls.metrics != was.metrics)];
        // Of the engines: whether programs are attached, and what the verifier saw of them.
        let (firewall, was) = (&self.firewall, &old.firewall);
        let firewall_keys = [
            ("firewall.enabled", firewall.enabled != was.enabled),
            ("firewall.stateful", firewall.stateful != was.stateful),
            ("firewall.max_connections", firewall.max_connections != was.max_connections),
            ("firewall.timeouts", firewall.timeouts != was.timeouts),
        ];
        let (ratelimit, was) = (&self.ratelimit, &old.ratelimit);
        let ratelimit_keys = [
            ("ratelimit.enabled", ratelimit.enabled != was.enabled),
            ("ratelimit.max_sources", ratelimit.max_sources != was.max_sources),
        ];
        let (ids, was) = (&self.ids, &old.ids);
        let ids_keys = [
            ("ids.enabled", ids.enabled != was.enabled),
            ("ids.stream_depth", ids.stream_depth != was.stream_depth),
            ("ids.udp_packets", ids.udp_packets != was.udp_packets),
            ("ids.sampling", ids.sampling != was.sampling),
            ("ids.workers", ids.workers != was.workers),
            ("ids.max_flows", ids.max_flows != was.max_flows),
            ("ids.memory", ids.memory != was.memory),
            ("ids.check_checksums", ids.check_checksums != was.check_checksums),
        ];
        let l7_keys = [("l7.enabled", self.l7.enabled != old.l7.enabled)];
        let (audit, was) = (&self.audit, &old.audit);
        let audit_keys = [
            ("audit.enabled", audit.enabled != was.enabled),
            ("audit.buffer_size", audit.buffer_size != was.buffer_size),
            ("audit.storage_path", audit.storage_path != was.storage_path),
            ("audit.alerts.enabled", audit.alerts.enabled != was.alerts.enabled),
            ("audit.alerts.buffer_size", audit.alerts.buffer_size != was.alerts.buffer_size),
        ];
        let keys: [&[(&str, bool)]; 7] =
            [&agent_keys, &tls_keys, &firewall_keys, &ratelimit_keys, &ids_keys, &l7_keys, &audit_keys];
        keys.concat().into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect()
    }
}
