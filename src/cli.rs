//! The command line: reads it, asks the agent, prints the answer.
//!
//! argh wants an option before the command that follows it, and takes no `--option=value`. [`arrange`] moves the global
//! options to the front first, so that `status --host h` and `--host h status` are the same.

mod add;
mod alerts;
mod audit;
mod auth;
mod columns;
mod firewall;
mod l7;
mod ratelimit;
mod rules;
mod watch;
mod way;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use argh::FromArgs;
use comfy_table::{ContentArrangement, Table};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use self::columns::{FLOW_COLUMNS, TOP_COLUMNS};
use self::rules::Rules;
use self::way::client;
use crate::api::{Method, PAGE_LIMIT_MAX};
use crate::client::{Answer, Client, ClientError, Trust, refused};

/// Exit code: all went well.
pub const OK: i32 = 0;
/// Exit code: the agent said no, or is not healthy.
pub const REFUSED: i32 = 1;
/// Exit code: the command line or its input is wrong.
pub const USAGE: i32 = 2;
/// Exit code: nobody answered.
pub const UNREACHABLE: i32 = 3;

const PROGRAM: &str = "ebpfsentinel-agent";
/// What the user asked for.
#[derive(Debug)]
pub struct Invocation {
    /// Options that every command takes.
    pub global: Global,
    /// The command.
    pub command: Command,
}

/// Options that every command takes; `None` means not given.
#[derive(Clone, Debug)]
pub struct Global {
    /// Config file.
    pub config: Option<PathBuf>,
    /// Log level.
    pub log_level: Option<String>,
    /// Log format.
    pub log_format: Option<String>,
    /// API key or token.
    pub token: Option<Secret>,
    /// Table or JSON.
    pub output: Output,
    /// For the agent the address that it listens on, for a command the agent's.
    pub host: Option<String>,
    /// The port of the same.
    pub port: Option<u16>,
    /// The agent's Unix socket.
    pub socket: Option<PathBuf>,
    /// Whether the agent is asked by TLS, and whom to believe then.
    pub tls: Option<Trust>,
}

/// A token that is not shown by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Table,
    /// The API's JSON.
    Json,
}

/// A command, local or not.
#[derive(Debug)]
pub enum Command {
    /// No command: run the agent.
    Run,
    /// Print the version.
    Version,
    /// Validate a config file: this one, else that of `--config`.
    Check(Option<PathBuf>),
    /// Show the agent at work in a laboratory.
    Demo,
    /// Run a capture file through the same judgement and inspection.
    Replay(Replay),
    /// Make API keys and their hashes.
    Auth(auth::Local),
    /// Ask a running agent.
    Remote(Remote),
}

/// What to replay, and how.
#[derive(Debug, PartialEq, Eq)]
pub struct Replay {
    /// The capture file.
    pub file: PathBuf,
    /// Whether the kernel's programs see the packets; else models of them.
    pub kernel: bool,
    /// Whether there are lines for transactions, anomalies and flows, too.
    pub events: bool,
    /// Networks whose hosts are taken for this one.
    pub local: Vec<IpNet>,
    /// On which interface of the configuration packets arrive.
    pub interface: Option<String>,
}

/// A command that a running agent answers.
#[derive(Debug, PartialEq)]
pub enum Remote {
    /// Liveness and readiness.
    Health,
    /// The metrics, as Prometheus reads them.
    Metrics,
    /// The rules of an engine.
    Rules(&'static Rules),
    /// So many of those who are over a rate limit.
    RatelimitTop(u32),
    /// The target, with its query.
    Flows(String),
    /// A page of something.
    Page(Paged),
    /// All of it, however many pages.
    All(Paged),
    /// Whether the audit trail is as it was written.
    AuditVerify,
    /// Alerts as they happen.
    Watch(watch::Watch),
    /// One request whose answer is printed as it is.
    Call(Call),
}

/// A list that is asked for page by page.
#[derive(Debug, PartialEq)]
pub struct Paged {
    /// Path and query.
    pub target: String,
    /// Where in the answer the list is; `None`: it is the answer.
    pub field: Option<&'static str>,
    columns: &'static [Column],
    nothing: &'static str,
}

/// One request.
#[derive(Debug, PartialEq)]
pub struct Call {
    /// HTTP method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// JSON body.
    pub body: Option<Value>,
}

/// Why there is nothing to run: help to print, or a mistake.
#[derive(Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code.
    pub code: i32,
    /// For stdout when the code is 0, else for stderr.
    pub text: String,
}

#[derive(FromArgs)]
#[argh(
    description = "Filters and limits packets in XDP, inspects flows at TC. Without a command, runs the agent.",
    help_triggers("-h", "--help", "help"),
    note = "Options above may stand before or after the command, as --name VALUE or --name=VALUE.",
    example = "{command_name} firewall add --id no-ssh --priority 10 --action deny --protocol tcp --dst-port 22 --confirm 60",
    example = "{command_name} -o json firewall list | jq '.[] | .id'",
    example = "{command_name} status --host 10.0.0.1 --port 8080 --cacert authority.pem",
    error_code(0, "All went well."),
    error_code(1, "The agent said no, or is not healthy."),
    error_code(2, "The command line or its input is wrong."),
    error_code(3, "The agent cannot be reached.")
)]
struct Line {
    /// config file [default: /etc/ebpfsentinel/config.toml]
    #[argh(option, short = 'c', arg_name = "path")]
    config: Option<PathBuf>,

    /// log level: error, warn, info, debug, trace
    #[argh(option, short = 'l', arg_name = "level")]
    log_level: Option<String>,

    /// log format: json (default) or text
    #[argh(option, arg_name = "format")]
    log_format: Option<String>,

    /// API key or token (JWT) [env: EBPFSENTINEL_TOKEN, which other users cannot see]
    #[argh(option, arg_name = "token")]
    token: Option<String>,

    /// output format: table (default) or json
    #[argh(option, short = 'o', arg_name = "format", from_str_fn(output))]
    output: Option<Output>,

    /// address of the agent [env: EBPFSENTINEL_HOST, default: 127.0.0.1]
    #[argh(option, arg_name = "host", from_str_fn(host))]
    host: Option<String>,

    /// port of the agent [env: EBPFSENTINEL_PORT, default: 8080]
    #[argh(option, arg_name = "port", from_str_fn(port))]
    port: Option<u16>,

    /// the agent's Unix socket [env: EBPFSENTINEL_SOCKET, default without --host, --port and --tls: the one of this host
    /// if there is one]
    #[argh(option, arg_name = "path")]
    socket: Option<PathBuf>,

    /// ask the agent by TLS
    #[argh(switch)]
    tls: bool,

    /// authorities to believe, a PEM file, else those of this system; implies --tls [env: EBPFSENTINEL_CACERT]
    #[argh(option, arg_name = "path")]
    cacert: Option<PathBuf>,

    /// client certificate to show, a PEM file; implies --tls
    #[argh(option, arg_name = "path")]
    cert: Option<PathBuf>,

    /// key of the client certificate, a PEM file
    #[argh(option, arg_name = "path")]
    cert_key: Option<PathBuf>,

    /// believe whoever answers; implies --tls
    #[argh(switch)]
    insecure: bool,

    /// print the version
    #[argh(switch)]
    version: bool,

    #[argh(subcommand)]
    command: Option<Sub>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Sub {
    Version(VersionArgs),
    Status(StatusArgs),
    Health(HealthArgs),
    Metrics(MetricsArgs),
    Firewall(firewall::FirewallArgs),
    Ratelimit(ratelimit::RatelimitArgs),
    Flows(FlowsArgs),
    L7(l7::L7Args),
    Alerts(alerts::AlertsArgs),
    Audit(audit::AuditArgs),
    Config(ConfigArgs),
    Check(CheckArgs),
    Explain(ExplainArgs),
    Ebpf(EbpfArgs),
    Openapi(OpenapiArgs),
    Auth(auth::AuthArgs),
    Demo(DemoArgs),
    Replay(ReplayArgs),
}

/// Display version and build information.
#[derive(FromArgs)]
#[argh(subcommand, name = "version", help_triggers("-h", "--help", "help"))]
struct VersionArgs {}

/// Query the running agent's status.
#[derive(FromArgs)]
#[argh(subcommand, name = "status", help_triggers("-h", "--help", "help"))]
struct StatusArgs {}

/// Check the agent's liveness and readiness.
#[derive(FromArgs)]
#[argh(subcommand, name = "health", help_triggers("-h", "--help", "help"))]
struct HealthArgs {}

/// Display the Prometheus metrics.
#[derive(FromArgs)]
#[argh(subcommand, name = "metrics", help_triggers("-h", "--help", "help"))]
struct MetricsArgs {}

/// Print the OpenAPI document of the REST API.
#[derive(FromArgs)]
#[argh(subcommand, name = "openapi", help_triggers("-h", "--help", "help"))]
struct OpenapiArgs {}

/// Show the agent at work against genuine clients in network namespaces of its own (root).
#[derive(FromArgs)]
#[argh(subcommand, name = "demo", help_triggers("-h", "--help", "help"))]
struct DemoArgs {}

/// Inspect a capture file as the wire is: EVE JSON to stdout, a summary to stderr (-o table: to stdout, alone).
#[derive(FromArgs)]
#[argh(
    subcommand,
    name = "replay",
    help_triggers("-h", "--help", "help"),
    note = "With --config the firewall judges the packets first, and flows that l7 refuses are blocked. What goes by this\n\
            host and not by the capture is not asked: rate limits, SYN cookies, rp_filter, next_hop, the lock-out guard,\n\
            rules made through the API."
)]
struct ReplayArgs {
    /// the capture file
    #[argh(positional)]
    file: PathBuf,

    /// print lines for transactions, anomalies and flows, too
    #[argh(switch)]
    events: bool,

    /// use models of the kernel's programs: needs no root, and prints the same
    #[argh(switch)]
    no_kernel: bool,

    /// networks of the host itself, comma-separated: what they send to others leaves and is not judged; without it all
    /// packets arrive, but those that a Linux cooked capture calls outgoing
    #[argh(option, arg_name = "networks", from_str_fn(networks))]
    local: Option<Vec<IpNet>>,

    /// the one of agent.interfaces on which packets arrive [default: the first]
    #[argh(option, arg_name = "name")]
    interface: Option<String>,
}

/// Networks or addresses between commas.
fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let network = |one: &str| {
        let (one, wrong) = (one.trim(), || format!("\"{one}\" is not a network such as 192.0.2.0/24 or 2001:db8::/32"));
        one.parse::<IpNet>().or_else(|_| one.parse::<std::net::IpAddr>().map(IpNet::from)).map_err(|_| wrong())
    };
    text.split(',').map(network).collect()
}

/// Validate a config file without starting.
#[derive(FromArgs)]
#[argh(subcommand, name = "check", help_triggers("-h", "--help", "help"))]
struct CheckArgs {
    /// the file; else that of --config
    #[argh(positional)]
    path: Option<PathBuf>,
}

/// List the live flows, the heaviest first.
#[derive(FromArgs)]
#[argh(subcommand, name = "flows", help_triggers("-h", "--help", "help"))]
struct FlowsArgs {
    /// bytes (default) or packets
    #[argh(option, default = "String::from(\"bytes\")")]
    sort: String,

    /// only flows of this address
    #[argh(option, arg_name = "address")]
    ip: Option<std::net::IpAddr>,

    /// only flows of this protocol: tcp, udp, or http, tls...
    #[argh(option, arg_name = "name")]
    protocol: Option<String>,

    /// how many; else 20
    #[argh(option, arg_name = "number", default = "20")]
    limit: u32,
}

/// Show, reload and confirm the agent's configuration.
#[derive(FromArgs)]
#[argh(subcommand, name = "config", help_triggers("-h", "--help", "help"))]
struct ConfigArgs {
    #[argh(subcommand)]
    command: ConfigSub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum ConfigSub {
    Show(ConfigShowArgs),
    Reload(ReloadArgs),
    Confirm(ConfirmArgs),
}

/// Show the configuration in force, secrets masked.
#[derive(FromArgs)]
#[argh(subcommand, name = "show", help_triggers("-h", "--help", "help"))]
struct ConfigShowArgs {}

/// Read the configuration anew; on any error nothing changes.
#[derive(FromArgs)]
#[argh(subcommand, name = "reload", help_triggers("-h", "--help", "help"))]
struct ReloadArgs {
    /// take it back after so many seconds unless `config confirm` comes first
    #[argh(option, arg_name = "seconds")]
    confirm: Option<u32>,
}

/// Keep a change that waits for its confirmation.
#[derive(FromArgs)]
#[argh(subcommand, name = "confirm", help_triggers("-h", "--help", "help"))]
struct ConfirmArgs {}

/// Show the eBPF programs and their maps.
#[derive(FromArgs)]
#[argh(subcommand, name = "ebpf", help_triggers("-h", "--help", "help"))]
struct EbpfArgs {
    #[argh(subcommand)]
    command: EbpfSub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum EbpfSub {
    Status(EbpfStatusArgs),
}

/// Per program: state, attachment, figures, maps.
#[derive(FromArgs)]
#[argh(subcommand, name = "status", help_triggers("-h", "--help", "help"))]
struct EbpfStatusArgs {}

/// Ask the loaded program what it would do to a packet, and which rule says so.
#[derive(FromArgs)]
#[argh(subcommand, name = "explain", help_triggers("-h", "--help", "help"))]
struct ExplainArgs {
    /// source address
    #[argh(option, arg_name = "address")]
    src: String,

    /// destination address
    #[argh(option, arg_name = "address")]
    dst: String,

    /// tcp, udp, icmp, icmpv6, or a number
    #[argh(option, arg_name = "protocol")]
    proto: String,

    /// source port
    #[argh(option, arg_name = "port")]
    sport: Option<u16>,

    /// destination port
    #[argh(option, arg_name = "port")]
    dport: Option<u16>,

    /// VLAN id
    #[argh(option, arg_name = "id")]
    vlan: Option<u16>,

    /// interface on which it arrives; else the agent's first
    #[argh(option, arg_name = "name")]
    iface: Option<String>,

    /// TCP flags that are set, such as SA; else S
    #[argh(option, arg_name = "flags")]
    tcp_flags: Option<String>,

    /// ICMP type
    #[argh(option, arg_name = "number")]
    icmp_type: Option<u8>,

    /// ICMP code
    #[argh(option, arg_name = "number")]
    icmp_code: Option<u8>,
}

/// Global options that take a value, with their short forms.
const GLOBALS: &[(&str, Option<&str>)] = &[
    ("--config", Some("-c")),
    ("--log-level", Some("-l")),
    ("--log-format", None),
    ("--token", None),
    ("--output", Some("-o")),
    ("--host", None),
    ("--port", None),
    ("--socket", None),
    ("--cacert", None),
    ("--cert", None),
    ("--cert-key", None),
];
/// Global options without a value.
const GLOBAL_SWITCHES: &[&str] = &["--version", "--tls", "--insecure"];
/// Other options without a value; every other one has one.
const SWITCHES: &[&str] = &["--help", "-h", "--log", "--disabled", "--events", "--no-kernel", "--generate"];

fn output(text: &str) -> Result<Output, String> {
    match text {
        "table" => Ok(Output::Table),
        "json" => Ok(Output::Json),
        _ => Err("use table or json".to_owned()),
    }
}

fn host(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    let v6 = bare.parse::<std::net::Ipv6Addr>().is_ok();
    if bare.is_empty() || !bare.chars().all(plain) || (bare.contains(':') && !v6) {
        return Err("it is neither a name nor an address; the port is given by --port".to_owned());
    }
    Ok(bare.to_owned())
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port @ 1..) => Ok(port),
        _ => Err("a port is a number from 1 to 65535".to_owned()),
    }
}

/// Reads the command line of this process; prints help or the mistake and exits where there is nothing to run.
pub fn parse() -> Invocation {
    let mut args = Vec::new();
    for arg in std::env::args_os().skip(1) {
        match arg.into_string() {
            Ok(arg) => args.push(arg),
            Err(arg) => leave(&Exit { code: USAGE, text: format!("{} is not UTF-8", arg.display()) }),
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    parse_from(&args, |name| std::env::var(name).ok()).unwrap_or_else(|exit| leave(&exit))
}

fn leave(exit: &Exit) -> ! {
    if exit.code == OK {
        print(&exit.text);
    } else {
        complain(&exit.text);
    }
    std::process::exit(exit.code)
}

/// Reads a command line; `environment` is asked for the variables that stand in for options.
pub fn parse_from(args: &[&str], environment: impl Fn(&str) -> Option<String>) -> Result<Invocation, Exit> {
    let args = arrange(args);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let line = Line::from_args(&[PROGRAM], &args).map_err(|early| match early.status {
        Ok(()) => Exit { code: OK, text: early.output.trim_end().to_owned() },
        Err(()) => usage(format!("{}\nSee {PROGRAM} --help", early.output.trim_end())),
    })?;
    let given = |name: &str| environment(name).filter(|value| !value.is_empty());
    let command = match line.command {
        _ if line.version => Command::Version,
        None => Command::Run,
        Some(sub) => command(sub)?,
    };
    let mut global = Global {
        config: line.config,
        log_level: line.log_level,
        log_format: line.log_format,
        token: line.token.or_else(|| given("EBPFSENTINEL_TOKEN")).map(Secret),
        // A replay's events are for other programs, unless a table is asked for.
        output: line.output.unwrap_or(match command {
            Command::Replay(_) => Output::Json,
            _ => Output::Table,
        }),
        host: line.host,
        port: line.port,
        socket: line.socket,
        tls: trust(line.tls, line.cacert, line.cert, line.cert_key, line.insecure)?,
    };
    // For the agent itself the environment is a layer below the flags, which config knows; here it says whom to ask.
    if matches!(command, Command::Remote(_)) {
        let wrong = |name: &str, reason| usage(format!("{name} in the environment: {reason}"));
        if let (None, Some(text)) = (&global.host, given("EBPFSENTINEL_HOST")) {
            global.host = Some(host(&text).map_err(|reason| wrong("EBPFSENTINEL_HOST", reason))?);
        }
        if let (None, Some(text)) = (&global.port, given("EBPFSENTINEL_PORT")) {
            global.port = Some(port(&text).map_err(|reason| wrong("EBPFSENTINEL_PORT", reason))?);
        }
        let by_network = global.host.is_some() || global.port.is_some() || global.tls.is_some();
        if global.socket.is_some() && by_network {
            return Err(usage("--socket is one way to the agent, and --host, --port and --tls are another".to_owned()));
        }
        if !by_network && global.socket.is_none() {
            global.socket = given("EBPFSENTINEL_SOCKET").map(PathBuf::from);
        }
        if let (Some(trust), Some(path)) = (&mut global.tls, given("EBPFSENTINEL_CACERT"))
            && trust.cacert.is_none()
        {
            trust.cacert = Some(PathBuf::from(path));
        }
    } else if global.socket.is_some() || global.tls.is_some() {
        let text = "--socket, --tls and what goes with it say how a running agent is asked; for the agent itself the \
                    configuration says where it listens";
        return Err(usage(text.to_owned()));
    }
    Ok(Invocation { global, command })
}

/// How TLS is spoken, if it is.
fn trust(
    tls: bool,
    cacert: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    insecure: bool,
) -> Result<Option<Trust>, Exit> {
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err(usage("--cert and --cert-key belong together".to_owned())),
    };
    if insecure && cacert.is_some() {
        return Err(usage("--insecure believes whoever answers, so --cacert has nothing to say".to_owned()));
    }
    let wanted = tls || insecure || cacert.is_some() || identity.is_some();
    Ok(wanted.then_some(Trust { cacert, insecure, identity }))
}

/// Moves global options to the front and splits `--name=value`. What follows another option is its value, whatever it
/// looks like.
fn arrange(args: &[&str]) -> Vec<String> {
    let (mut front, mut rest) = (Vec::new(), Vec::new());
    let mut args = args.iter();
    while let Some(&arg) = args.next() {
        if arg == "--" {
            rest.push(arg.to_owned());
            rest.extend(args.map(|&arg| arg.to_owned()));
            break;
        }
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) if arg.starts_with("--") => (name, Some(value)),
            _ => (arg, None),
        };
        let global = GLOBALS.iter().any(|(long, short)| name == *long || Some(name) == *short);
        let global_switch = GLOBAL_SWITCHES.contains(&name);
        let to = if global || global_switch { &mut front } else { &mut rest };
        to.push(name.to_owned());
        let option = name.starts_with('-') && name.len() > 1;
        if option && (inline.is_some() || !(global_switch || SWITCHES.contains(&name))) {
            to.extend(inline.or_else(|| args.next().copied()).map(str::to_owned));
        }
    }
    front.extend(rest);
    front
}

fn usage(text: String) -> Exit {
    Exit { code: USAGE, text }
}

fn command(sub: Sub) -> Result<Command, Exit> {
    Ok(Command::Remote(match sub {
        Sub::Version(_) => return Ok(Command::Version),
        Sub::Check(args) => return Ok(Command::Check(args.path)),
        Sub::Demo(_) => return Ok(Command::Demo),
        Sub::Auth(args) => return Ok(Command::Auth(auth::command(args))),
        Sub::Replay(args) => {
            return Ok(Command::Replay(Replay {
                file: args.file,
                kernel: !args.no_kernel,
                events: args.events,
                local: args.local.unwrap_or_default(),
                interface: args.interface,
            }));
        }
        Sub::Status(_) => get("/api/v1/agent/status"),
        Sub::Health(_) => Remote::Health,
        Sub::Metrics(_) => Remote::Metrics,
        Sub::Openapi(_) => get("/api-docs/openapi.json"),
        Sub::Ebpf(EbpfArgs { command: EbpfSub::Status(_) }) => get("/api/v1/ebpf/status"),
        Sub::Config(args) => match args.command {
            ConfigSub::Show(_) => get("/api/v1/config"),
            ConfigSub::Reload(args) => post(rules::confirmed("/api/v1/config/reload", args.confirm), None),
            ConfigSub::Confirm(_) => post("/api/v1/config/confirm".to_owned(), None),
        },
        Sub::Firewall(args) => firewall::command(args)?,
        Sub::Ratelimit(args) => ratelimit::command(args)?,
        Sub::Flows(args) => Remote::Flows(flows_target(&args)),
        Sub::L7(args) => l7::command(args)?,
        Sub::Alerts(args) => alerts::command(args)?,
        Sub::Audit(args) => audit::command(args),
        Sub::Explain(args) => post("/api/v1/explain".to_owned(), Some(packet_body(args))),
    }))
}

fn get(path: &str) -> Remote {
    Remote::Call(Call { method: Method::Get, target: path.to_owned(), body: None })
}

fn post(target: String, body: Option<Value>) -> Remote {
    Remote::Call(Call { method: Method::Post, target, body })
}

/// A path with those parameters that are given.
fn query(path: &str, parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let mut target = path.to_owned();
    for (n, (name, value)) in given.enumerate() {
        target += &format!("{}{name}={}", if n == 0 { '?' } else { '&' }, encoded(value));
    }
    target
}

fn flows_target(args: &FlowsArgs) -> String {
    let mut target = format!("/api/v1/flows?sort={}&limit={}", encoded(&args.sort), args.limit);
    if let Some(ip) = args.ip {
        target += &format!("&ip={}", encoded(&ip.to_string()));
    }
    if let Some(protocol) = &args.protocol {
        target += &format!("&protocol={}", encoded(protocol));
    }
    target
}

/// A text as a segment of a path.
fn encoded(text: &str) -> String {
    let mut path = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => path.push(byte as char),
            _ => path += &format!("%{byte:02X}"),
        }
    }
    path
}

fn packet_body(args: ExplainArgs) -> Value {
    let fields = [
        ("src_ip", Some(json!(args.src))),
        ("dst_ip", Some(json!(args.dst))),
        ("protocol", Some(json!(args.proto))),
        ("src_port", args.sport.map(Value::from)),
        ("dst_port", args.dport.map(Value::from)),
        ("vlan_id", args.vlan.map(Value::from)),
        ("interface", args.iface.map(Value::from)),
        ("tcp_flags", args.tcp_flags.map(Value::from)),
        ("icmp_type", args.icmp_type.map(Value::from)),
        ("icmp_code", args.icmp_code.map(Value::from)),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
}

/// Runs a command that needs no agent, and returns the exit code.
pub fn run_auth(global: &Global, local: auth::Local) -> i32 {
    auth::run(local, global.output)
}

/// What `version` prints.
pub fn version(output: Output) -> String {
    let (version, target) = (env!("CARGO_PKG_VERSION"), format!("{}-linux", std::env::consts::ARCH));
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    match output {
        Output::Table => format!("{PROGRAM} {version} ({target}, {build} build)"),
        Output::Json => pretty(&json!({"name": PROGRAM, "version": version, "target": target, "build": build})),
    }
}

/// Asks the agent, prints its answer, and returns the exit code.
pub fn run_remote(global: &Global, remote: &Remote) -> i32 {
    let client = match client(global) {
        Ok(client) => client,
        Err(exit) => {
            complain(&exit.text);
            return exit.code;
        }
    };
    if let Remote::Watch(asked) = remote {
        return watch::run(client, asked, global.output);
    }
    match ask(&client, remote, global.output) {
        Ok((text, code)) => {
            print(&text);
            code
        }
        Err(error) => {
            complain(&error.to_string());
            match error {
                ClientError::Refused { .. } => REFUSED,
                ClientError::Unreachable { .. } | ClientError::Strange { .. } => UNREACHABLE,
            }
        }
    }
}

/// The text for stdout and the exit code.
fn ask(client: &Client, remote: &Remote, output: Output) -> Result<(String, i32), ClientError> {
    let show = |value: &Value| match output {
        Output::Json => pretty(value),
        Output::Table => fields(value),
    };
    Ok(match remote {
        Remote::Metrics => (printable(&client.text(Method::Get, "/metrics", None)?), OK),
        Remote::Health => {
            client.json(Method::Get, "/healthz", None)?;
            let answer = client.send(Method::Get, "/readyz", None)?;
            let ready = ready(&answer)?;
            let code = if answer.status == 200 { OK } else { REFUSED };
            (show(&json!({"healthz": "ok", "readyz": ready})), code)
        }
        Remote::Rules(rules) => (listed(output, rules.fetch(client)?, rules.columns, "no rules"), OK),
        Remote::RatelimitTop(limit) => {
            let target = format!("/api/v1/ratelimit/top?limit={limit}");
            (listed(output, list_of(client, &target)?, TOP_COLUMNS, "nobody is over a limit"), OK)
        }
        Remote::Flows(target) => (listed(output, list_of(client, target)?, FLOW_COLUMNS, "no flows"), OK),
        Remote::Page(page) => (paged(output, page, client.json(Method::Get, &page.target, None)?), OK),
        Remote::All(page) => (paged(output, page, all_of(client, &page.target)?.into()), OK),
        Remote::AuditVerify => {
            let found = client.json(Method::Get, "/api/v1/audit/verify", None)?;
            (show(&found), if found["status"] == "intact" { OK } else { REFUSED })
        }
        // It prints for itself, for as long as it runs.
        Remote::Watch(_) => (String::new(), OK),
        Remote::Call(call) => {
            let value = client.json(call.method, &call.target, call.body.as_ref())?;
            (if value.is_null() { String::new() } else { show(&value) }, OK)
        }
    })
}

/// The body of `/readyz`, which is not an error when the agent is not ready: the reasons are shown as what they are, and
/// the error that says the same once more is not.
fn ready(answer: &Answer) -> Result<Value, ClientError> {
    let mut body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    match answer.status {
        200 => Ok(body),
        503 if body["status"] == "not_ready" => {
            body.as_object_mut().map(|fields| fields.remove("error"));
            Ok(body)
        }
        _ => Err(refused(answer)),
    }
}

fn list_of(client: &Client, target: &str) -> Result<Vec<Value>, ClientError> {
    match client.json(Method::Get, target, None)? {
        Value::Array(items) => Ok(items),
        _ => {
            let (endpoint, reason) = (client.endpoint().to_owned(), "the answer is not a list".to_owned());
            Err(ClientError::Strange { endpoint, reason })
        }
    }
}

fn listed(output: Output, items: Vec<Value>, columns: &[Column], nothing: &str) -> String {
    match output {
        Output::Json => pretty(&Value::Array(items)),
        Output::Table if items.is_empty() => nothing.to_owned(),
        Output::Table => list_table(&items, columns),
    }
}

/// All pages of a list that has no end of its own; the path has no query.
fn all_of(client: &Client, path: &str) -> Result<Vec<Value>, ClientError> {
    let mut all = Vec::new();
    loop {
        let page = list_of(client, &format!("{path}?limit={PAGE_LIMIT_MAX}&offset={}", all.len()))?;
        let is_last = page.len() < PAGE_LIMIT_MAX as usize;
        all.extend(page);
        if is_last {
            return Ok(all);
        }
    }
}

/// A page for people says how to go on; for programs it is the answer as it is.
fn paged(output: Output, page: &Paged, mut answer: Value) -> String {
    if output == Output::Json {
        return pretty(&answer);
    }
    let items = match page.field {
        Some(field) => answer[field].take(),
        None => answer.take(),
    };
    let Value::Array(mut items) = items else { return page.nothing.to_owned() };
    for changes in items.iter_mut().filter_map(|item| item.get_mut("changes")) {
        let text = |change: &Value| {
            format!("{}: {} -> {}", scalar(&change["key"]), scalar(&change["before"]), scalar(&change["after"]))
        };
        *changes = changes.as_array().map(|all| all.iter().map(text).collect::<Vec<_>>().join("; ")).into();
    }
    let mut text = listed(output, items, page.columns, page.nothing);
    if !answer["next"].is_null() {
        text += &format!("\nThere may be more: --before {}", scalar(&answer["next"]));
    }
    text
}

/// A column of a table: heading, and the fields that it shows, those that are absent left out.
type Column = (&'static str, &'static [&'static str]);

fn list_table(rules: &[Value], columns: &[Column]) -> String {
    let shown = |rule: &Value, field: &str| match &rule[field] {
        Value::Null => None,
        Value::Array(items) if items.is_empty() => None,
        value => Some(scalar(value)),
    };
    let columns: Vec<_> = columns
        .iter()
        .filter(|(_, fields)| rules.iter().any(|rule| fields.iter().any(|field| shown(rule, field).is_some())))
        .collect();
    let rows = rules.iter().map(|rule| {
        let cell = |(heading, names): &&Column| {
            let named = |name: &&str| match *heading {
                "MORE" => shown(rule, name).map(|value| format!("{name} {value}")),
                _ => shown(rule, name),
            };
            match names.iter().filter_map(named).collect::<Vec<_>>().join(" ") {
                text if text.is_empty() => "-".to_owned(),
                text => text,
            }
        };
        columns.iter().map(cell).collect()
    });
    table(columns.iter().map(|(heading, _)| (*heading).to_owned()).collect(), rows)
}

/// An object as lines of dotted key and value.
fn fields(value: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", value, &mut rows);
    table(Vec::new(), rows.into_iter())
}

fn flatten(key: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| flatten(&below(name), value, rows)),
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            // An item that has a name is known by it, not by its place.
            for (index, item) in items.iter().enumerate() {
                let name = ["name", "id"].iter().find_map(|field| item[field].as_str());
                flatten(&below(&name.map_or_else(|| index.to_string(), str::to_owned)), item, rows);
            }
        }
        _ => rows.push(vec![printable(key), scalar(value)]),
    }
}

/// A value in one cell, harmless to a terminal.
fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text).replace('\n', "\\n"),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        other => printable(&other.to_string()),
    }
}

fn table(header: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

fn pretty(value: &Value) -> String {
    // JSON escapes the control characters below space; printable() does the rest, which inside of a JSON text can only
    // stand in strings, where its escapes mean the same.
    printable(&format!("{value:#}"))
}

/// `text` without what a terminal obeys: control characters other than line ends, and those that turn the direction of
/// writing, are shown as escapes.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out += &format!("\\u{:04x}", c as u32)
            }
            c if c.is_control() => out += &format!("\\u{:04x}", c as u32),
            c => out.push(c),
        }
    }
    out
}

/// Prints to stdout; a reader that has gone away (`| head`) is no error.
fn print(text: &str) {
    if !text.is_empty() {
        let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    }
}

/// Prints an error to stderr.
pub fn complain(text: &str) {
    let stderr = std::io::stderr();
    let name = if stderr.is_terminal() { "\x1b[31mError:\x1b[0m" } else { "Error:" };
    let _ = writeln!(stderr.lock(), "{name} {}", printable(text.trim_end()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::{http, serve};

    pub(super) fn line(text: &str) -> Result<Invocation, Exit> {
        parse_from(&text.split_whitespace().collect::<Vec<_>>(), |_| None)
    }

    #[test]
    fn replay_prints_json_unless_a_table_is_asked_for() {
        let asked = |text: &str| {
            let invocation = line(text).unwrap();
            match invocation.command {
                Command::Replay(replay) => (replay, invocation.global.output),
                other => panic!("{text}: {other:?}"),
            }
        };
        let replay = |kernel, events| Replay {
            file: PathBuf::from("x.pcap"),
            kernel,
            events,
            local: Vec::new(),
            interface: None,
        };
        assert_eq!(asked("replay x.pcap"), (replay(true, false), Output::Json));
        assert_eq!(asked("replay --events x.pcap --no-kernel"), (replay(false, true), Output::Json));
        assert_eq!(asked("replay --no-kernel x.pcap -o table"), (replay(false, false), Output::Table));
        assert_eq!(line("replay").unwrap_err().code, USAGE);
        let (local, _) = asked("replay x.pcap --local 192.0.2.0/24,2001:db8::7 --interface eth1");
        let networks = ["192.0.2.0/24", "2001:db8::7/128"].map(|network| network.parse().unwrap()).to_vec();
        assert_eq!(local, Replay { local: networks, interface: Some("eth1".to_owned()), ..replay(true, false) });
        let wrong = line("replay x.pcap --local 192.0.2.0/33").unwrap_err();
        assert_eq!(wrong.code, USAGE);
        assert!(wrong.text.contains("is not a network such as"), "{}", wrong.text);
    }

    #[track_caller]
    fn call(text: &str) -> Call {
        match line(text).unwrap().command {
            Command::Remote(Remote::Call(call)) => call,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn global_options_stand_anywhere() {
        for text in [
            "--host h --port 99 -o json -c /x --token t status",
            "status --host h --port 99 -o json -c /x --token t",
            "--port=99 status --host=h --output json --config /x --token=t",
        ] {
            let Invocation { global, command } = line(text).unwrap();
            assert!(matches!(command, Command::Remote(Remote::Call(_))), "{text}");
            assert_eq!((global.host.as_deref(), global.port, global.output), (Some("h"), Some(99), Output::Json));
            assert_eq!((global.config, global.token), (Some("/x".into()), Some(Secret("t".into()))));
        }
        // The value of another option is a value, also when it looks like a global option.
        let body = call("firewall add --id --host --priority 1 --action deny --log --host h").body.unwrap();
        assert_eq!(body, json!({"id": "--host", "priority": 1, "action": "deny", "log": true}));
        let global = line("-l debug --log-format text").unwrap();
        assert!(matches!(global.command, Command::Run));
        assert_eq!(global.global.log_level.as_deref(), Some("debug"));
        assert!(!format!("{:?}", line("--token secret").unwrap()).contains("secret"));
    }

    #[test]
    fn the_environment_stands_in() {
        let environment = |name: &str| match name {
            "EBPFSENTINEL_TOKEN" => Some("t".to_owned()),
            "EBPFSENTINEL_HOST" => Some("10.0.0.1".to_owned()),
            "EBPFSENTINEL_PORT" => Some("81".to_owned()),
            _ => None,
        };
        let global = parse_from(&["status", "--port", "82"], environment).unwrap().global;
        assert_eq!((global.host.as_deref(), global.port), (Some("10.0.0.1"), Some(82)));
        assert_eq!(global.token, Some(Secret("t".into())));
        assert_eq!(parse_from(&[], environment).unwrap().global.host, None);
        assert_eq!(parse_from(&["status"], |_| Some("9 9".into())).unwrap_err().code, USAGE);
    }

    #[test]
    fn commands_become_requests() {
        let check = |text: &str, method: Method, target: &str| {
            let call = call(text);
            assert_eq!((call.method, call.target.as_str()), (method, target), "{text}");
        };
        check("status", Method::Get, "/api/v1/agent/status");
        check("alerts show 019a", Method::Get, "/api/v1/alerts/019a");
        check("alerts unmark-fp 019a", Method::Delete, "/api/v1/alerts/019a/false-positive");
        check("alerts unsuppress 019b", Method::Delete, "/api/v1/alerts/suppressions/019b");
        check("alerts mark-fp 019a --comment x --suppress 60", Method::Post, "/api/v1/alerts/019a/false-positive");
        let body = call("alerts mark-fp 019a --comment known --suppress 60").body.unwrap();
        assert_eq!(body, json!({"comment": "known", "suppress": {"minutes": 60}}));
        assert_eq!(call("alerts mark-fp 019a").body.unwrap(), json!({}));
        let page = |text: &str| match line(text).unwrap().command {
            Command::Remote(Remote::Page(page)) => page.target,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(
            page("alerts list --component ids --severity high --limit 50"),
            "/api/v1/alerts?component=ids&min_severity=high&limit=50"
        );
        assert_eq!(
            page("alerts list --ip 10.0.0.0/8 --from 2026-11-30T08:00:00Z --false-positive false"),
            "/api/v1/alerts?ip=10%2E0%2E0%2E0%2F8&from=2026-11-30T08%3A00%3A00Z&false_positive=false&limit=100"
        );
        assert_eq!(
            page("audit logs --component firewall --limit 20"),
            "/api/v1/audit/logs?component=firewall&limit=20"
        );
        assert_eq!(page("audit history fw-001"), "/api/v1/audit/rules/fw-001/history?limit=50");
        assert!(matches!(line("audit verify").unwrap().command, Command::Remote(Remote::AuditVerify)));
        assert_eq!(line("alerts mark-fp 019a --suppress 0").unwrap_err().code, USAGE);
        check("config show", Method::Get, "/api/v1/config");
        check("config reload", Method::Post, "/api/v1/config/reload");
        check("config reload --confirm 60", Method::Post, "/api/v1/config/reload?confirm_secs=60");
        check("config confirm", Method::Post, "/api/v1/config/confirm");
        check("ebpf status", Method::Get, "/api/v1/ebpf/status");
        check("firewall show fw-1", Method::Get, "/api/v1/firewall/rules/fw-1");
        check("firewall delete ../x", Method::Delete, "/api/v1/firewall/rules/%2E%2E%2Fx");
        check(
            "firewall update --id fw-1 --priority 2 --action deny --confirm 9",
            Method::Put,
            "/api/v1/firewall/rules/fw-1?confirm_secs=9",
        );
        check("firewall add --json {} --confirm=5", Method::Post, "/api/v1/firewall/rules?confirm_secs=5");
        check("ratelimit show syn", Method::Get, "/api/v1/ratelimit/rules/syn");
        check("ratelimit delete syn --confirm 9", Method::Delete, "/api/v1/ratelimit/rules/syn?confirm_secs=9");
        check("ratelimit update --id a --priority 2 --rate 7", Method::Put, "/api/v1/ratelimit/rules/a");
        check("ratelimit buckets 2001:db8::1", Method::Get, "/api/v1/ratelimit/buckets/2001%3Adb8%3A%3A1");
        check("explain --src 1.2.3.4 --dst 5.6.7.8 --proto tcp", Method::Post, "/api/v1/explain");
        assert_eq!(
            call("explain --src ::1 --dst ::2 --proto udp --dport 53 --vlan 7 --iface e0").body.unwrap(),
            json!({"src_ip": "::1", "dst_ip": "::2", "protocol": "udp", "dst_port": 53, "vlan_id": 7, "interface": "e0"})
        );
        assert_eq!(
            call("firewall add --id a --priority 7 --action deny --dst-port 80-443 --src-port 53 --state new,related --disabled")
                .body
                .unwrap(),
            json!({"id": "a", "priority": 7, "action": "deny", "dst_port": "80-443", "src_port": 53,
                   "state": ["new", "related"], "enabled": false})
        );
        assert_eq!(
            call("ratelimit add --id a --priority 7 --rate 1.5M --burst 20 --unit bits --action block --block-secs 60")
                .body
                .unwrap(),
            json!({"id": "a", "priority": 7, "rate": "1.5M", "burst": 20, "unit": "bits", "action": "block",
                   "block_secs": 60})
        );
        assert!(matches!(line("check /x").unwrap().command, Command::Check(Some(path)) if path.to_str() == Some("/x")));
        assert!(matches!(line("status --version").unwrap().command, Command::Version));
        assert!(matches!(line("auth hash").unwrap().command, Command::Auth(auth::Local::Hash)));
        assert!(matches!(line("auth hash --generate").unwrap().command, Command::Auth(auth::Local::Generate)));
    }

    #[test]
    fn mistakes_are_exit_code_2() {
        for text in [
            "nosuch",
            "firewall",
            "firewall delete",
            "status --nosuch 1",
            "-o yaml status",
            "--port 0 status",
            "--port 70000 status",
            "--host a/b status",
            "--host a:80 status",
            "--host",
            "firewall add",
            "firewall add --id a --priority 1",
            "firewall add --id a --priority x --action deny",
            "firewall add --json {",
            "firewall add --json 7",
            "firewall add --json {} --id x",
            "firewall add --json @/nosuch/file",
            "firewall update --id a --priority 1",
            "firewall update --json []",
            "firewall update --json {}",
            "ratelimit",
            "ratelimit add --rate 5",
            "ratelimit add --id a --priority 1 --rate 5 --state new",
            "ratelimit update --json {}",
            "ratelimit top --limit x",
            "ratelimit buckets 300.0.0.1",
            "explain --src 1.2.3.4",
            "auth",
            "auth hash a-key-does-not-stand-here",
        ] {
            let exit = line(text).unwrap_err();
            assert_eq!(exit.code, USAGE, "{text}: {}", exit.text);
            assert!(!exit.text.is_empty(), "{text}");
        }
        for text in ["--help", "-h", "help", "firewall --help", "firewall add --help", "config help"] {
            assert_eq!(line(text).unwrap_err().code, OK, "{text}");
        }
    }

    #[test]
    fn help_is_as_agreed() {
        insta::assert_snapshot!("help", line("--help").unwrap_err().text);
        insta::assert_snapshot!("help_firewall_add", line("firewall add --help").unwrap_err().text);
        insta::assert_snapshot!("help_ratelimit", line("ratelimit --help").unwrap_err().text);
        insta::assert_snapshot!("help_l7", line("l7 --help").unwrap_err().text);
        insta::assert_snapshot!("help_l7_add", line("l7 add --help").unwrap_err().text);
        insta::assert_snapshot!("help_ratelimit_add", line("ratelimit add --help").unwrap_err().text);
    }

    #[test]
    fn rules_as_a_table_and_as_json() {
        let rules = r#"[{"id":"a","priority":1,"action":"deny","protocol":"tcp","src_ip":"10.0.0.0/8","dst_port":22,"packets":3},
                        {"id":"b\u001b[31m","priority":2,"action":"allow","protocol":"any","state":["new"]}]"#;
        let (endpoint, server) = serve(vec![http(200, rules), http(200, rules)]);
        let client = Client::new(endpoint, None);
        let (text, code) = ask(&client, &firewall::RULES.list(), Output::Table).unwrap();
        assert_eq!(code, OK);
        insta::assert_snapshot!("rules", text);
        let (text, _) = ask(&client, &firewall::RULES.list(), Output::Json).unwrap();
        assert!(!text.contains('\x1b'));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), serde_json::from_str::<Value>(rules).unwrap());
        assert!(server.join().unwrap()[0].starts_with("GET /api/v1/firewall/rules?limit=5000&offset=0 "));
    }

    #[test]
    fn rate_limits_as_tables() {
        let limits = r#"[{"id":"syn","priority":1,"rate":100,"unit":"packets","burst":200,"algorithm":"token_bucket",
                          "scope":"per_ip","ipv6_prefix_len":64,"action":"block","block_secs":60,"protocol":"tcp",
                          "tcp_flags":"S/SA","enabled":true,"source":"file","passed":7,"over_limit":3}]"#;
        let top = r#"[{"rule":"syn","source":"192.0.2.1","destination":null,"src_port":null,"dst_port":null,
                       "protocol":null,"dropped":3,"blocked_secs_left":59}]"#;
        let (endpoint, server) = serve(vec![http(200, limits), http(200, top), http(200, "[]")]);
        let client = Client::new(endpoint, None);
        let shown = |remote| ask(&client, &remote, Output::Table).unwrap().0;
        insta::assert_snapshot!("limits", shown(ratelimit::RULES.list()));
        insta::assert_snapshot!("limits_top", shown(Remote::RatelimitTop(20)));
        assert_eq!(shown(Remote::RatelimitTop(20)), "nobody is over a limit");
        let asked = server.join().unwrap();
        assert!(asked[0].starts_with("GET /api/v1/ratelimit/rules?limit=5000&offset=0 "));
        assert!(asked[1].starts_with("GET /api/v1/ratelimit/top?limit=20 "));
    }

    /// As the agent says it.
    const NOT_READY: &str = r#"{"ebpf_loaded":true,"error":{"code":"SERVICE_UNAVAILABLE","message":
        "not ready: nope0: no such interface"},"reasons":["nope0: no such interface"],"status":"not_ready"}"#;

    #[test]
    fn health_shows_what_is_missing() {
        let shown = |output| {
            let (endpoint, server) = serve(vec![http(200, r#"{"status":"ok"}"#), http(503, NOT_READY)]);
            let shown = ask(&Client::new(endpoint, None), &Remote::Health, output).unwrap();
            server.join().unwrap();
            shown
        };
        let (json, code) = shown(Output::Json);
        let ready = json!({"status": "not_ready", "ebpf_loaded": true, "reasons": ["nope0: no such interface"]});
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), json!({"healthz": "ok", "readyz": ready}));
        let (table, same) = shown(Output::Table);
        assert!(table.contains("healthz") && table.contains("nope0: no such interface"), "{table}");
        assert!(!table.contains("SERVICE_UNAVAILABLE") && (code, same) == (REFUSED, REFUSED), "{table}");
        // A 503 of anybody else is an error.
        let busy = http(503, r#"{"error":{"code":"SERVICE_UNAVAILABLE","message":"busy"}}"#);
        let (endpoint, server) = serve(vec![http(200, "{}"), busy]);
        assert!(ask(&Client::new(endpoint, None), &Remote::Health, Output::Json).is_err());
        server.join().unwrap();
    }

    #[test]
    fn health_and_errors_give_their_codes() {
        let run = |answers: Vec<String>, remote: &Remote| {
            let (endpoint, server) = serve(answers);
            let mut global = line("status -o json").unwrap().global;
            global.port = Some(endpoint.port);
            let code = run_remote(&global, remote);
            server.join().unwrap();
            code
        };
        let ok = || http(200, r#"{"status":"ok"}"#);
        assert_eq!(run(vec![ok(), http(200, r#"{"status":"ready"}"#)], &Remote::Health), OK);
        assert_eq!(run(vec![ok(), http(503, NOT_READY)], &Remote::Health), REFUSED);
        assert_eq!(run(vec![http(200, "a_total 1\n# EOF\n")], &Remote::Metrics), OK);
        let status = Remote::Call(call("status"));
        assert_eq!(run(vec![http(401, r#"{"error":{"code":"UNAUTHORIZED","message":"no"}}"#)], &status), REFUSED);
        assert_eq!(run(vec![http(200, "<html>")], &status), UNREACHABLE);
        let mut global = line("status").unwrap().global;
        global.port = Some(1);
        assert_eq!(run_remote(&global, &status), UNREACHABLE);
    }

    #[test]
    fn nothing_that_a_terminal_obeys() {
        assert_eq!(printable("a\x1b[2J\u{9b}b\rc\n\u{202e}ä"), "a\\u001b[2J\\u009bb\\u000dc\n\\u202eä");
        let text = fields(&json!({"programs": [{"name": "xdp\x07", "maps": []}], "ok": true, "list": [1, 2]}));
        assert!(text.contains("programs.xdp\\u0007.maps") && text.contains("1, 2"), "{text}");
        assert!(pretty(&json!({"a": "\u{9b}"})).contains("\\u009b"));
    }
}
