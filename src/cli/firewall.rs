//! `firewall`: its rules on the command line.

use argh::FromArgs;
use serde_json::Value;

use super::add::add_args;
use super::columns::RULE_COLUMNS;
use super::rules::{self, DeleteArgs, Key, ListArgs, RuleArgs, Rules, ShowArgs, Update, list, number_or_text};
use super::{Exit, Remote};

/// Its rules.
pub static RULES: Rules = Rules {
    command: "firewall",
    path: "/api/v1/firewall/rules",
    required: &["id", "priority", "action"],
    columns: RULE_COLUMNS,
};

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
    Update(Box<Update<AddArgs>>),
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

/// What the command asks of the agent.
pub fn command(args: FirewallArgs) -> Result<Remote, Exit> {
    Ok(match args.command {
        FirewallSub::List(_) => RULES.list(),
        FirewallSub::Show(args) => RULES.show(&args),
        FirewallSub::Add(args) => rules::add(*args)?,
        FirewallSub::Update(args) => rules::update(*args)?,
        FirewallSub::Delete(args) => RULES.delete(&args),
    })
}

impl RuleArgs for AddArgs {
    const RULES: &'static Rules = &RULES;
    const UPDATE: &'static str = "Replace a rule that was made through the API; its counters go on.";

    fn json(&mut self) -> Option<String> {
        self.json.take()
    }

    fn confirm(&self) -> Option<u32> {
        self.confirm
    }

    fn keys(mut self) -> Result<Vec<Key>, String> {
        let mut keys = self.common_keys();
        keys.extend([
            ("action", self.action.map(Value::from)),
            ("state", self.state.map(list)),
            ("mirror_to", self.mirror_to.map(Value::from)),
            ("log", self.log.then_some(Value::Bool(true))),
        ]);
        Ok(keys)
    }
}
