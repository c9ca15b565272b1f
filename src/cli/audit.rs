//! `audit`: the audit trail on the command line.

use argh::FromArgs;

use super::{Column, Paged, Remote, encoded, query};

const COLUMNS: &[Column] = &[
    ("SEQ", &["seq"]),
    ("TIME", &["timestamp"]),
    ("ACTOR", &["actor"]),
    ("ROLE", &["role"]),
    ("ADDRESS", &["address"]),
    ("ACTION", &["action"]),
    ("OPERATION", &["operation"]),
    ("COMPONENT", &["component"]),
    ("RULE", &["rule_id"]),
    ("OUTCOME", &["outcome"]),
    ("DETAIL", &["detail"]),
];

const VERSION_COLUMNS: &[Column] = &[
    ("VERSION", &["version"]),
    ("TIME", &["timestamp"]),
    ("COMPONENT", &["component"]),
    ("ACTION", &["action"]),
    ("ACTOR", &["actor"]),
    ("CHANGES", &["changes"]),
];

/// Who changed what, and when.
#[derive(FromArgs)]
#[argh(subcommand, name = "audit", help_triggers("-h", "--help", "help"))]
pub struct AuditArgs {
    #[argh(subcommand)]
    command: AuditSub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum AuditSub {
    Logs(LogsArgs),
    History(HistoryArgs),
    Verify(VerifyArgs),
}

/// List the entries of the audit trail, the newest first.
#[derive(FromArgs)]
#[argh(subcommand, name = "logs", help_triggers("-h", "--help", "help"))]
struct LogsArgs {
    /// only about this component
    #[argh(option, arg_name = "name")]
    component: Option<String>,

    /// only of this sort: rule_added, rule_updated, rule_removed, config_changed, policy_violation...
    #[argh(option, arg_name = "word")]
    action: Option<String>,

    /// only about this rule
    #[argh(option, arg_name = "id")]
    rule: Option<String>,

    /// only what this one did
    #[argh(option, arg_name = "name")]
    actor: Option<String>,

    /// only from this time on, as 2026-11-30T08:00:00Z
    #[argh(option, arg_name = "time")]
    from: Option<String>,

    /// only before this time
    #[argh(option, arg_name = "time")]
    to: Option<String>,

    /// only entries with a lower number
    #[argh(option, arg_name = "number")]
    before: Option<u64>,

    /// how many; else 100
    #[argh(option, arg_name = "number", default = "100")]
    limit: u32,

    /// how many to skip
    #[argh(option, arg_name = "number")]
    offset: Option<u32>,
}

/// List the versions of a rule, the newest first.
#[derive(FromArgs)]
#[argh(subcommand, name = "history", help_triggers("-h", "--help"))]
struct HistoryArgs {
    /// the rule's id
    #[argh(positional)]
    id: String,

    /// only of this component
    #[argh(option, arg_name = "name")]
    component: Option<String>,

    /// how many; else 50
    #[argh(option, arg_name = "number", default = "50")]
    limit: u32,
}

/// Check the chain of the audit trail; the exit code is 1 where something is wrong with it.
#[derive(FromArgs)]
#[argh(subcommand, name = "verify", help_triggers("-h", "--help", "help"))]
struct VerifyArgs {}

/// What the command asks of the agent.
pub fn command(args: AuditArgs) -> Remote {
    match args.command {
        AuditSub::Logs(args) => Remote::Page(Paged {
            target: query(
                "/api/v1/audit/logs",
                &[
                    ("component", args.component),
                    ("action", args.action),
                    ("rule_id", args.rule),
                    ("actor", args.actor),
                    ("from", args.from),
                    ("to", args.to),
                    ("before", args.before.map(|before| before.to_string())),
                    ("limit", Some(args.limit.to_string())),
                    ("offset", args.offset.map(|offset| offset.to_string())),
                ],
            ),
            field: Some("entries"),
            columns: COLUMNS,
            nothing: "no entries",
        }),
        AuditSub::History(args) => Remote::Page(Paged {
            target: query(
                &format!("/api/v1/audit/rules/{}/history", encoded(&args.id)),
                &[("component", args.component), ("limit", Some(args.limit.to_string()))],
            ),
            field: Some("entries"),
            columns: VERSION_COLUMNS,
            nothing: "no versions",
        }),
        AuditSub::Verify(_) => Remote::AuditVerify,
    }
}
