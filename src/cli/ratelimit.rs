//! `ratelimit`: the limits on the command line.

use argh::{CommandInfo, EarlyExit, FromArgs, SubCommand};
use serde_json::Value;

use super::add::add_args;
use super::{
    DeleteArgs, Exit, ListArgs, Remote, ShowArgs, body_of, confirmed, delete, encoded, get, list, number_or_text, post,
    rule_path, update, usage,
};

/// Where the limits are.
pub const LIMITS: &str = "/api/v1/ratelimit/rules";

/// Manage the rate limits.
#[derive(FromArgs)]
#[argh(subcommand, name = "ratelimit", help_triggers("-h", "--help", "help"))]
pub struct RatelimitArgs {
    #[argh(subcommand)]
    command: RatelimitSub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum RatelimitSub {
    List(ListArgs),
    Show(ShowArgs),
    Add(Box<AddArgs>),
    Update(Box<UpdateArgs>),
    Delete(DeleteArgs),
    Top(TopArgs),
    Buckets(BucketsArgs),
}

add_args! {
    AddArgs: "Add or replace a rate limit, by its fields or as JSON (an array adds several at once)."
    {
        /// units a second, as 5000, 5k or 1.5M; with syn_cookie SYNs of a source that are answered in a second, else 256
        #[argh(option)]
        rate: Option<String>,

        /// units at once after a rest; else as many as in a second
        #[argh(option)]
        burst: Option<String>,

        /// packets (default) or bits
        #[argh(option)]
        unit: Option<String>,

        /// token_bucket (default), leaky_bucket, fixed_window, sliding_window or syn_cookie
        #[argh(option)]
        algorithm: Option<String>,

        /// SYNs a second that go on before syn_cookie answers; else 1000
        #[argh(option, arg_name = "number")]
        threshold_pps: Option<u32>,

        /// whose packets are counted together: per_ip (default), per_flow, per_dst or global
        #[argh(option)]
        scope: Option<String>,

        /// bits of IPv6 sources that count with per_ip; else 64
        #[argh(option, arg_name = "bits")]
        ipv6_prefix_len: Option<u8>,

        /// over the limit: drop (default), pass or block
        #[argh(option)]
        action: Option<String>,

        /// how long action block lasts
        #[argh(option, arg_name = "seconds")]
        block_secs: Option<u32>,
    }
    {
        /// true: only fragments after the first one of their datagram; false: all but those
        #[argh(option, arg_name = "bool")]
        fragment: Option<bool>,
    }
    {}
}

/// Takes what `ratelimit add` takes.
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
        description: "Replace a rate limit that was made through the API; its counters go on.",
    };
}

/// List who is over a limit, those with the most packets over it first.
#[derive(FromArgs)]
#[argh(subcommand, name = "top", help_triggers("-h", "--help", "help"))]
struct TopArgs {
    /// how many; else 20
    #[argh(option, arg_name = "number", default = "20")]
    limit: u32,
}

/// Show the buckets of an address, and how full they are.
#[derive(FromArgs)]
#[argh(subcommand, name = "buckets", help_triggers("-h", "--help", "help"))]
struct BucketsArgs {
    /// the address
    #[argh(positional)]
    address: std::net::IpAddr,
}

/// What the command asks of the agent.
pub fn command(args: RatelimitArgs) -> Result<Remote, Exit> {
    Ok(match args.command {
        RatelimitSub::List(_) => Remote::RatelimitList,
        RatelimitSub::Top(args) => Remote::RatelimitTop(args.limit),
        RatelimitSub::Buckets(args) => {
            get(&format!("/api/v1/ratelimit/buckets/{}", encoded(&args.address.to_string())))
        }
        RatelimitSub::Show(args) => get(&rule_path(LIMITS, &args.id)),
        RatelimitSub::Delete(args) => delete(LIMITS, &args),
        RatelimitSub::Add(args) => {
            let target = confirmed(LIMITS, args.confirm);
            post(target, Some(body("ratelimit add", *args).map_err(usage)?))
        }
        RatelimitSub::Update(args) => {
            let confirm = args.0.confirm;
            update("ratelimit update", LIMITS, body("ratelimit update", args.0).map_err(usage)?, confirm)?
        }
    })
}

fn body(command: &str, mut args: AddArgs) -> Result<Value, String> {
    let mut fields = args.common_fields();
    fields.extend([
        ("fragment", args.fragment.map(Value::from)),
        ("rate", args.rate.map(number_or_text)),
        ("burst", args.burst.map(number_or_text)),
        ("unit", args.unit.map(Value::from)),
        ("algorithm", args.algorithm.map(Value::from)),
        ("threshold_pps", args.threshold_pps.map(Value::from)),
        ("scope", args.scope.map(Value::from)),
        ("ipv6_prefix_len", args.ipv6_prefix_len.map(Value::from)),
        ("action", args.action.map(Value::from)),
        ("block_secs", args.block_secs.map(Value::from)),
    ]);
    body_of(command, args.json, fields, &["id", "priority"])
}
