//! `ratelimit`: the limits on the command line.

use argh::FromArgs;
use serde_json::Value;

use super::add::add_args;
use super::columns::LIMIT_COLUMNS;
use super::rules::{self, DeleteArgs, Key, ListArgs, RuleArgs, Rules, ShowArgs, Update, list, number_or_text};
use super::{Exit, Remote, encoded, get};

/// Its rules.
pub static RULES: Rules =
    Rules { command: "ratelimit", path: "/api/v1/ratelimit/rules", required: &["id"], columns: LIMIT_COLUMNS };

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
    Update(Box<Update<AddArgs>>),
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
        RatelimitSub::List(_) => RULES.list(),
        RatelimitSub::Show(args) => RULES.show(&args),
        RatelimitSub::Add(args) => rules::add(*args)?,
        RatelimitSub::Update(args) => rules::update(*args)?,
        RatelimitSub::Delete(args) => RULES.delete(&args),
        RatelimitSub::Top(args) => Remote::RatelimitTop(args.limit),
        RatelimitSub::Buckets(args) => {
            get(&format!("/api/v1/ratelimit/buckets/{}", encoded(&args.address.to_string())))
        }
    })
}

impl RuleArgs for AddArgs {
    const RULES: &'static Rules = &RULES;
    const UPDATE: &'static str = "Replace a rate limit that was made through the API; its counters go on.";

    fn json(&mut self) -> Option<String> {
        self.json.take()
    }

    fn confirm(&self) -> Option<u32> {
        self.confirm
    }

    fn keys(mut self) -> Result<Vec<Key>, String> {
        let mut keys = self.common_keys();
        keys.extend([
            ("fragment", self.fragment.map(Value::from)),
            ("rate", self.rate.map(number_or_text)),
            ("burst", self.burst.map(number_or_text)),
            ("unit", self.unit.map(Value::from)),
            ("algorithm", self.algorithm.map(Value::from)),
            ("threshold_pps", self.threshold_pps.map(Value::from)),
            ("scope", self.scope.map(Value::from)),
            ("ipv6_prefix_len", self.ipv6_prefix_len.map(Value::from)),
            ("action", self.action.map(Value::from)),
            ("block_secs", self.block_secs.map(Value::from)),
        ]);
        Ok(keys)
    }
}
