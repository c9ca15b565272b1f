//! `alerts`: alerts on the command line.

use argh::FromArgs;

use super::{Remote, watch};

/// Show alerts.
#[derive(FromArgs)]
#[argh(subcommand, name = "alerts", help_triggers("-h", "--help", "help"))]
pub struct AlertsArgs {
    #[argh(subcommand)]
    command: AlertsSub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum AlertsSub {
    Watch(watch::WatchArgs),
}

/// The request.
pub fn command(args: AlertsArgs) -> Remote {
    match args.command {
        AlertsSub::Watch(args) => watch::command(args),
    }
}
