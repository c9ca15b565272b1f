//! `firewall`: its rules on the command line.

use argh::{CommandInfo, EarlyExit, FromArgs, SubCommand};
use serde_json::Value;

use super::add::add_args;
use super::{
    DeleteArgs, Exit, ListArgs, Remote, ShowArgs, body_of, confirmed, delete, get, list, number_or_text, post,
    rule_path, update, usage,
};

/// Where the rules are.
pub const RULES: &str = "/api/v1/firewall/rules";

/// Manage the firewall's rules.
#[derive(FromArgs)]
#[argh(subcommand, name = "firewall", help_triggers("-h", "--help", "help"))]
pub struct FirewallArgs {
    #[argh(subcommand)]
    command: FirewallSub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum FirewallSub {
    List(ListArgs),
    Show(ShowArgs),
    Add(Box<AddArgs>),
    Update(Box<UpdateArgs>),
    Delete(DeleteArgs),
}

add_args! {
    AddArgs: "Add or replace a rule, by its fields or as JSON (an array adds several at once)."
    {
        /// allow, deny or log
        #[argh(option)]
        action: Option<String>,
    }
    {
        /// connection states, by commas: new, established, related, invalid
        #[argh(option, arg_name = "states")]
        state: Option<String>,
    }
    {
        /// interface that copies are sent to
        #[argh(option, arg_name = "name")]
        mirror_to: Option<String>,

        /// record each packet that matches
        #[argh(switch)]
        log: bool,
    }
}

/// Takes what `firewall add` takes.
struct UpdateArgs(AddArgs);

impl FromArgs for UpdateArgs {
    fn from_args(command_name: &[&str], args: &[&str]) -> Result<UpdateArgs, EarlyExit> {
        AddArgs::from_args(command_name, args).map(UpdateArgs)
    }
}

impl SubCommand for UpdateArgs {
    const COMMAND: &'static CommandInfo = &CommandInfo {
        name: "update",
        short: &'\0',
        description: "Replace a rule that was made through the API; its counters go on.",
    };
}

/// What the command asks of the agent.
pub fn command(args: FirewallArgs) -> Result<Remote, Exit> {
    Ok(match args.command {
        FirewallSub::List(_) => Remote::FirewallList,
        FirewallSub::Show(args) => get(&rule_path(RULES, &args.id)),
        FirewallSub::Delete(args) => delete(RULES, &args),
        FirewallSub::Add(args) => {
            let target = confirmed(RULES, args.confirm);
            post(target, Some(body("firewall add", *args).map_err(usage)?))
        }
        FirewallSub::Update(args) => {
            let confirm = args.0.confirm;
            update("firewall update", RULES, body("firewall update", args.0).map_err(usage)?, confirm)?
        }
    })
}

fn body(command: &str, mut args: AddArgs) -> Result<Value, String> {
    let mut fields = args.common_fields();
    fields.extend([
        ("action", args.action.map(Value::from)),
        ("state", args.state.map(list)),
        ("mirror_to", args.mirror_to.map(Value::from)),
        ("log", args.log.then_some(Value::Bool(true))),
    ]);
    body_of(command, args.json, fields, &["id", "priority", "action"])
}
