//! The commands on rules, written once for all engines that have some: list, show, add, update, delete.
//!
//! An engine says what its rules are ([`Rules`]) and what its options are ([`RuleArgs`]).

use std::io::Read;

use argh::{CommandInfo, EarlyExit, FromArgs, SubCommand};
use serde_json::{Map, Value, json};

use super::{Call, Column, Exit, Remote, encoded, get, list_of, post, usage};
use crate::api::Method;
use crate::client::{Client, ClientError};

/// Rules fetched by one request; the API gives no more at once.
const PAGE: usize = 5000;
/// Pages fetched at most: more rules than an agent can hold.
const PAGES_MAX: usize = 16;
/// The longest body read from a file or stdin; the agent takes no longer one.
const BODY_MAX: u64 = 4 << 20;

/// The rules of an engine.
#[derive(Debug, PartialEq)]
pub struct Rules {
    /// The engine's command.
    pub command: &'static str,
    /// Where they are in the API.
    pub path: &'static str,
    /// Keys without which options make no rule.
    pub required: &'static [&'static str],
    /// Columns of their list.
    pub columns: &'static [Column],
}

/// A key of a rule, and its value if it is given.
pub type Key = (&'static str, Option<Value>);

/// What `add` and `update` of an engine take.
pub trait RuleArgs: FromArgs {
    /// Whose rule it makes.
    const RULES: &'static Rules;

    /// What the help says of `update`.
    const UPDATE: &'static str;

    /// `--json`, taken out: the whole rule.
    fn json(&mut self) -> Option<String>;

    /// `--confirm`.
    fn confirm(&self) -> Option<u32>;

    /// The rule by its keys.
    ///
    /// # Errors
    /// An option that does not say what it should, which the agent could not tell.
    fn keys(self) -> Result<Vec<Key>, String>;
}

/// Takes what `add` takes.
pub struct Update<A>(A);

impl<A: RuleArgs> FromArgs for Update<A> {
    fn from_args(command_name: &[&str], args: &[&str]) -> Result<Update<A>, EarlyExit> {
        A::from_args(command_name, args).map(Update)
    }
}

impl<A: RuleArgs> SubCommand for Update<A> {
    const COMMAND: &'static CommandInfo = &CommandInfo { name: "update", short: &'\0', description: A::UPDATE };
}

/// List the rules with their counters.
#[derive(FromArgs)]
#[argh(subcommand, name = "list", help_triggers("-h", "--help", "help"))]
pub struct ListArgs {}

/// Show one rule.
#[derive(FromArgs)]
#[argh(subcommand, name = "show", help_triggers("-h", "--help"))]
pub struct ShowArgs {
    /// the rule's id
    #[argh(positional)]
    id: String,
}

/// Delete a rule that was made through the API.
#[derive(FromArgs)]
#[argh(subcommand, name = "delete", help_triggers("-h", "--help"))]
pub struct DeleteArgs {
    /// the rule's id
    #[argh(positional)]
    id: String,

    /// take it back after so many seconds unless `config confirm` comes first
    #[argh(option, arg_name = "seconds")]
    confirm: Option<u32>,
}

impl Rules {
    /// What `list` asks of the agent.
    pub fn list(&'static self) -> Remote {
        Remote::Rules(self)
    }

    /// What `show` asks of the agent.
    pub fn show(&self, args: &ShowArgs) -> Remote {
        get(&self.path_of(&args.id))
    }

    /// What `delete` asks of the agent.
    pub fn delete(&self, args: &DeleteArgs) -> Remote {
        let target = confirmed(&self.path_of(&args.id), args.confirm);
        Remote::Call(Call { method: Method::Delete, target, body: None })
    }

    /// All rules, however many requests that takes.
    pub fn fetch(&self, client: &Client) -> Result<Vec<Value>, ClientError> {
        let mut all = Vec::new();
        for page in 0..PAGES_MAX {
            let rules = list_of(client, &format!("{}?limit={PAGE}&offset={}", self.path, page * PAGE))?;
            let last = rules.len() < PAGE;
            all.extend(rules);
            if last {
                break;
            }
        }
        Ok(all)
    }

    fn path_of(&self, id: &str) -> String {
        format!("{}/{}", self.path, encoded(id))
    }
}

/// What `add` asks of the agent.
pub fn add<A: RuleArgs>(args: A) -> Result<Remote, Exit> {
    let target = confirmed(A::RULES.path, args.confirm());
    let body = body_of(args).map_err(|why| usage(format!("{} add: {why}", A::RULES.command)))?;
    Ok(post(target, Some(body)))
}

/// What `update` asks of the agent.
pub fn update<A: RuleArgs>(Update(args): Update<A>) -> Result<Remote, Exit> {
    let refused = |why: String| usage(format!("{} update: {why}", A::RULES.command));
    let confirm = args.confirm();
    let body = body_of(args).map_err(refused)?;
    let id = body["id"].as_str().ok_or_else(|| refused("one rule with its id".to_owned()))?;
    let target = confirmed(&A::RULES.path_of(id), confirm);
    Ok(Remote::Call(Call { method: Method::Put, target, body: Some(body) }))
}

/// A path of a change that may have to be confirmed.
pub fn confirmed(path: &str, seconds: Option<u32>) -> String {
    seconds.map_or_else(|| path.to_owned(), |seconds| format!("{path}?confirm_secs={seconds}"))
}

/// A number is a number in JSON; a range, a name or a number with a suffix is text.
pub fn number_or_text(text: String) -> Value {
    text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number))
}

/// A list that is written with commas.
pub fn list(text: String) -> Value {
    json!(text.split(',').map(str::trim).collect::<Vec<_>>())
}

/// The JSON of a rule, whole or from its keys. The agent checks the values; here only what cannot be sent is refused.
fn body_of<A: RuleArgs>(mut args: A) -> Result<Value, String> {
    let json = args.json();
    let given = args.keys()?.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let body: Map<String, Value> = given.collect();
    let Some(text) = json else {
        return match A::RULES.required.iter().find(|name| !body.contains_key(**name)) {
            Some(name) => Err(format!("--{name} is missing (or give the whole rule by --json)")),
            None => Ok(Value::Object(body)),
        };
    };
    if let Some(name) = body.keys().next() {
        return Err(format!("--json holds the whole rule, so {name} cannot be an option beside it"));
    }
    let (from, text) = match text.strip_prefix('@') {
        _ if text == "-" => ("stdin".to_owned(), read(std::io::stdin().lock(), "stdin")?),
        Some(path) => {
            let file = std::fs::File::open(path).map_err(|error| format!("opening {path}: {error}"))?;
            (path.to_owned(), read(file, path)?)
        }
        None => ("--json".to_owned(), text),
    };
    let body: Value = serde_json::from_str(&text).map_err(|error| format!("{from} is not JSON: {error}"))?;
    match body {
        Value::Object(_) | Value::Array(_) => Ok(body),
        _ => Err(format!("{from} is neither a rule nor an array of rules")),
    }
}

fn read(from: impl Read, name: &str) -> Result<String, String> {
    let mut text = String::new();
    from.take(BODY_MAX + 1).read_to_string(&mut text).map_err(|error| format!("reading {name}: {error}"))?;
    if text.len() as u64 > BODY_MAX {
        return Err(format!("{name} is longer than {} MiB", BODY_MAX >> 20));
    }
    Ok(text)
}
