//! `alerts`: the alerts that are kept, on the command line.

use argh::FromArgs;
use serde_json::{Map, Value, json};

use super::watch::{self, WatchArgs};
use super::{Call, Column, Exit, Paged, Remote, encoded, get, post, query, usage};
use crate::api::Method;

const ALERTS: &str = "/api/v1/alerts";
const SUPPRESSIONS: &str = "/api/v1/alerts/suppressions";

const COLUMNS: &[Column] = &[
    ("ID", &["id"]),
    ("LAST", &["last_seen"]),
    ("SEVERITY", &["severity"]),
    ("COMPONENT", &["component"]),
    ("RULE", &["rule_id"]),
    ("ACTION", &["action"]),
    ("SOURCE", &["src_ip", "src_port"]),
    ("DESTINATION", &["dst_ip", "dst_port"]),
    ("PROTOCOL", &["protocol", "app_proto"]),
    ("COUNT", &["count"]),
    ("FALSE", &["false_positive"]),
    ("MESSAGE", &["message"]),
];

const SUPPRESSION_COLUMNS: &[Column] = &[
    ("ID", &["id"]),
    ("COMPONENT", &["component"]),
    ("RULE", &["rule_id"]),
    ("SOURCE", &["src_ip"]),
    ("UNTIL", &["until"]),
    ("BY", &["created_by"]),
    ("HIDDEN", &["hidden"]),
    ("COMMENT", &["comment"]),
];

/// List, watch and mark alerts.
#[derive(FromArgs)]
#[argh(subcommand, name = "alerts", help_triggers("-h", "--help", "help"))]
pub struct AlertsArgs {
    #[argh(subcommand)]
    command: AlertsSub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum AlertsSub {
    List(ListArgs),
    Show(ShowArgs),
    Watch(WatchArgs),
    MarkFp(MarkFpArgs),
    UnmarkFp(UnmarkFpArgs),
    Suppressions(SuppressionsArgs),
    Unsuppress(UnsuppressArgs),
}

/// List the alerts that are kept, the newest first.
#[derive(FromArgs)]
#[argh(subcommand, name = "list", help_triggers("-h", "--help", "help"))]
struct ListArgs {
    /// only of this component
    #[argh(option, arg_name = "name")]
    component: Option<String>,

    /// only from this severity on: low, medium, high or critical
    #[argh(option, arg_name = "word")]
    severity: Option<String>,

    /// only of this rule
    #[argh(option, arg_name = "id")]
    rule: Option<String>,

    /// only with this address, or one of this network, on either side
    #[argh(option, arg_name = "address")]
    ip: Option<String>,

    /// only what last happened at this time or later, as 2026-11-30T08:00:00Z
    #[argh(option, arg_name = "time")]
    from: Option<String>,

    /// only what first happened before this time
    #[argh(option, arg_name = "time")]
    to: Option<String>,

    /// only with this text in a field
    #[argh(option, arg_name = "text")]
    text: Option<String>,

    /// true: only false positives; false: all but those
    #[argh(option, arg_name = "bool")]
    false_positive: Option<bool>,

    /// only older ones than that of this id
    #[argh(option, arg_name = "id")]
    before: Option<String>,

    /// how many; else 100
    #[argh(option, arg_name = "number", default = "100")]
    limit: u32,

    /// how many to skip
    #[argh(option, arg_name = "number")]
    offset: Option<u32>,
}

/// Show one alert.
#[derive(FromArgs)]
#[argh(subcommand, name = "show", help_triggers("-h", "--help"))]
struct ShowArgs {
    /// the alert's id
    #[argh(positional)]
    id: String,
}

/// Mark an alert as a false positive.
#[derive(FromArgs)]
#[argh(subcommand, name = "mark-fp", help_triggers("-h", "--help"))]
struct MarkFpArgs {
    /// the alert's id
    #[argh(positional)]
    id: String,

    /// why
    #[argh(option, arg_name = "text")]
    comment: Option<String>,

    /// tell of no alert of this rule about this source for so many minutes
    #[argh(option, arg_name = "minutes")]
    suppress: Option<u32>,
}

/// Take the mark from an alert.
#[derive(FromArgs)]
#[argh(subcommand, name = "unmark-fp", help_triggers("-h", "--help"))]
struct UnmarkFpArgs {
    /// the alert's id
    #[argh(positional)]
    id: String,
}

/// List what hides alerts now.
#[derive(FromArgs)]
#[argh(subcommand, name = "suppressions", help_triggers("-h", "--help", "help"))]
struct SuppressionsArgs {}

/// End a suppression.
#[derive(FromArgs)]
#[argh(subcommand, name = "unsuppress", help_triggers("-h", "--help"))]
struct UnsuppressArgs {
    /// the suppression's id
    #[argh(positional)]
    id: String,
}

/// What the command asks of the agent.
pub fn command(args: AlertsArgs) -> Result<Remote, Exit> {
    let one = |id: &str| format!("{ALERTS}/{}", encoded(id));
    let delete = |target: String| Remote::Call(Call { method: Method::Delete, target, body: None });
    Ok(match args.command {
        AlertsSub::Watch(args) => watch::command(args),
        AlertsSub::List(args) => Remote::Page(Paged {
            target: query(
                ALERTS,
                &[
                    ("component", args.component),
                    ("min_severity", args.severity),
                    ("rule_id", args.rule),
                    ("ip", args.ip),
                    ("from", args.from),
                    ("to", args.to),
                    ("text", args.text),
                    ("false_positive", args.false_positive.map(|is| is.to_string())),
                    ("before", args.before),
                    ("limit", Some(args.limit.to_string())),
                    ("offset", args.offset.map(|offset| offset.to_string())),
                ],
            ),
            field: Some("alerts"),
            columns: COLUMNS,
            nothing: "no alerts",
        }),
        AlertsSub::Show(args) => get(&one(&args.id)),
        AlertsSub::MarkFp(args) => {
            if args.suppress == Some(0) {
                return Err(usage("alerts mark-fp: --suppress takes minutes, from 1 on".to_owned()));
            }
            let comment = args.comment.map(|comment| ("comment".to_owned(), json!(comment)));
            let suppress = args.suppress.map(|minutes| ("suppress".to_owned(), json!({"minutes": minutes})));
            let body: Map<String, Value> = comment.into_iter().chain(suppress).collect();
            post(format!("{}/false-positive", one(&args.id)), Some(body.into()))
        }
        AlertsSub::UnmarkFp(args) => delete(format!("{}/false-positive", one(&args.id))),
        AlertsSub::Suppressions(_) => Remote::All(Paged {
            target: SUPPRESSIONS.to_owned(),
            field: None,
            columns: SUPPRESSION_COLUMNS,
            nothing: "nothing hides alerts",
        }),
        AlertsSub::Unsuppress(args) => delete(format!("{SUPPRESSIONS}/{}", encoded(&args.id))),
    })
}
