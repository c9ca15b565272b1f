//! A hit as an alert: what was found in which flow, and what was done about it.

use super::judge::Hit;
use crate::alert::Alert;
use crate::alert::facts::escaped;
use crate::classify::rules::Action;
use crate::component::Component;
use crate::flow::{Flow, Reaction};
use crate::packet::proto::Told;

/// What became of the wish to block a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// The kernel drops its packets from now on.
    Blocked,
    /// Nothing was to be done: `mode = "alert"`.
    NotWanted,
    /// The flow had ended by then, on both sides.
    TooLate,
    /// It is among what is never blocked: sessions that the lock-out guard keeps open, and DHCP.
    Spared,
    /// It is carried in a tunnel, and the kernel blocks by the outer addresses only.
    Tunnelled,
    /// The kernel did not take it.
    Failed,
}

impl Enforcement {
    /// What the watcher of the flow answers.
    pub fn reaction(self) -> Reaction {
        if self == Enforcement::Blocked { Reaction::Blocked } else { Reaction::GoOn }
    }
}

impl Hit {
    /// Whether its flow is to be blocked, in `mode = "block"`.
    pub fn wants_block(&self) -> bool {
        self.action == Action::Deny
    }

    /// The alert about it; `None` for what is allowed. `enforcement` is of no meaning unless it [wants to
    /// block](Hit::wants_block); what was enforced is counted for its rule here.
    pub fn alert(
        &self,
        flow: &Flow,
        told: &Told,
        time_ns: u64,
        interface: Option<&str>,
        enforcement: Enforcement,
    ) -> Option<Alert> {
        let (action, done) = match (self.action, enforcement) {
            (Action::Allow, _) => return None,
            (Action::Log, _) => ("log", "let go on"),
            (Action::Deny, Enforcement::Blocked) => ("blocked", "flow blocked"),
            (Action::Deny, Enforcement::NotWanted) => ("would_block", "let go on, since nothing is to be blocked"),
            (Action::Deny, Enforcement::TooLate) => ("too_late", "not blocked, the flow had ended"),
            (Action::Deny, Enforcement::Spared) => ("spared", "let go on, since the lock-out guard keeps it open"),
            (Action::Deny, Enforcement::Tunnelled) => ("block_failed", "not blocked, since it is carried in a tunnel"),
            (Action::Deny, Enforcement::Failed) => ("block_failed", "not blocked, the kernel refused"),
        };
        if action == "blocked" {
            self.counts.enforced();
        }
        let (protocol, rule) = (self.protocol.name(), &self.rule);
        let message = match &self.field {
            Some(field) => format!("{protocol} {field} \"{}\" matches rule {rule}: {done}", escaped(&self.matched)),
            None => format!("{protocol} transaction meets rule {rule}: {done}"),
        };
        let mut alert = Alert::new(Component::L7, self.severity, self.rule.clone(), action, time_ns, message);
        alert.mitre = self.mitre.clone();
        alert.set_flow(flow, interface);
        alert.set_facts(told);
        alert.matched_field = self.field.clone();
        alert.matched = self.field.as_ref().map(|_| escaped(&self.matched));
        Some(alert)
    }
}
