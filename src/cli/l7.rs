//! `l7`: the rules of the L7 firewall on the command line.

use argh::{CommandInfo, EarlyExit, FromArgs, SubCommand};
use serde_json::{Map, Value};

use super::{
    Column, DeleteArgs, Exit, ListArgs, Remote, ShowArgs, body_of, confirmed, delete, get, list, number_or_text, post,
    rule_path, update, usage,
};

/// Where the rules are.
pub const RULES: &str = "/api/v1/firewall/l7-rules";

/// Manage the rules of the L7 firewall.
#[derive(FromArgs)]
#[argh(subcommand, name = "l7", help_triggers("-h", "--help", "help"))]
pub struct L7Args {
    #[argh(subcommand)]
    command: L7Sub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum L7Sub {
    List(ListArgs),
    Show(ShowArgs),
    Add(Box<AddArgs>),
    Update(Box<UpdateArgs>),
    Delete(DeleteArgs),
}

/// Add a rule, by its fields or as JSON (an array adds several at once). A text is exact, prefix*, *suffix, a wildcard
/// with * and ?, ~regex, or =text for a text that is exact whatever is in it.
#[derive(FromArgs, Default)]
#[argh(subcommand, name = "add", help_triggers("-h", "--help"))]
struct AddArgs {
    /// the rule as JSON: the text, @FILE, or - for stdin
    #[argh(option, arg_name = "body")]
    json: Option<String>,

    /// take it back after so many seconds unless `config confirm` comes first
    #[argh(option, arg_name = "seconds")]
    confirm: Option<u32>,

    /// unique id
    #[argh(option)]
    id: Option<String>,

    /// namespace whose operators may change it
    #[argh(option, arg_name = "name")]
    namespace: Option<String>,

    /// lower numbers are asked first
    #[argh(option)]
    priority: Option<u32>,

    /// allow, deny or log
    #[argh(option)]
    action: Option<String>,

    /// http, tls (also in QUIC), grpc, smtp, ftp or smb
    #[argh(option)]
    protocol: Option<String>,

    /// network of the client
    #[argh(option, arg_name = "cidr")]
    src_ip: Option<String>,

    /// network of the server
    #[argh(option, arg_name = "cidr")]
    dst_ip: Option<String>,

    /// port of the client, or range as 1024-65535
    #[argh(option, arg_name = "ports")]
    src_port: Option<String>,

    /// port of the server, or range as 80-443
    #[argh(option, arg_name = "ports")]
    dst_port: Option<String>,

    /// http: method of the request; grpc: of the call
    #[argh(option, arg_name = "text")]
    method: Option<String>,

    /// http: path, without its query
    #[argh(option, arg_name = "text")]
    path: Option<String>,

    /// http: host that is asked for
    #[argh(option, arg_name = "text")]
    http_host: Option<String>,

    /// http: field of the request's head, as NAME=TEXT; may be given several times
    #[argh(option, arg_name = "name=text")]
    header: Vec<String>,

    /// http: media type of request or response
    #[argh(option, arg_name = "text")]
    content_type: Option<String>,

    /// tls: name that the client asks for
    #[argh(option, arg_name = "text")]
    sni: Option<String>,

    /// tls: a protocol that it offers
    #[argh(option, arg_name = "text")]
    alpn: Option<String>,

    /// tls: its JA3
    #[argh(option, arg_name = "text")]
    ja3: Option<String>,

    /// tls: its JA4
    #[argh(option, arg_name = "text")]
    ja4: Option<String>,

    /// grpc: package.Service
    #[argh(option, arg_name = "text")]
    service: Option<String>,

    /// smtp, ftp, smb: command, such as MAIL, RETR or CREATE
    #[argh(option, arg_name = "text")]
    command: Option<String>,

    /// smtp: sender
    #[argh(option, arg_name = "text")]
    from: Option<String>,

    /// smtp: a recipient
    #[argh(option, arg_name = "text")]
    to: Option<String>,

    /// ftp, smb: file
    #[argh(option, arg_name = "text")]
    file: Option<String>,

    /// smb: share
    #[argh(option, arg_name = "text")]
    share: Option<String>,

    /// smb: dialect in force
    #[argh(option, arg_name = "text")]
    dialect: Option<String>,

    /// how bad a match is: low, medium, high or critical
    #[argh(option)]
    severity: Option<String>,

    /// techniques of MITRE ATT&CK that it is a sign of, by commas
    #[argh(option, arg_name = "ids")]
    mitre: Option<String>,

    /// free text
    #[argh(option, arg_name = "text")]
    description: Option<String>,

    /// keep the rule switched off
    #[argh(switch)]
    disabled: bool,
}

/// Takes what `l7 add` takes.
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
pub fn command(args: L7Args) -> Result<Remote, Exit> {
    Ok(match args.command {
        L7Sub::List(_) => Remote::L7List,
        L7Sub::Show(args) => get(&rule_path(RULES, &args.id)),
        L7Sub::Delete(args) => delete(RULES, &args),
        L7Sub::Add(args) => {
            let target = confirmed(RULES, args.confirm);
            post(target, Some(body("l7 add", *args).map_err(usage)?))
        }
        L7Sub::Update(args) => {
            let confirm = args.0.confirm;
            update("l7 update", RULES, body("l7 update", args.0).map_err(usage)?, confirm)?
        }
    })
}

fn body(command: &str, args: AddArgs) -> Result<Value, String> {
    let text = |text: Option<String>| text.map(Value::from);
    let fields = vec![
        ("id", text(args.id)),
        ("namespace", text(args.namespace)),
        ("priority", args.priority.map(Value::from)),
        ("action", text(args.action)),
        ("protocol", text(args.protocol)),
        ("src_ip", text(args.src_ip)),
        ("dst_ip", text(args.dst_ip)),
        ("src_port", args.src_port.map(number_or_text)),
        ("dst_port", args.dst_port.map(number_or_text)),
        ("method", text(args.method)),
        ("path", text(args.path)),
        ("host", text(args.http_host)),
        ("header", headers(command, &args.header)?),
        ("content_type", text(args.content_type)),
        ("sni", text(args.sni)),
        ("alpn", text(args.alpn)),
        ("ja3", text(args.ja3)),
        ("ja4", text(args.ja4)),
        ("service", text(args.service)),
        ("command", text(args.command)),
        ("from", text(args.from)),
        ("to", text(args.to)),
        ("file", text(args.file)),
        ("share", text(args.share)),
        ("dialect", text(args.dialect)),
        ("severity", text(args.severity)),
        ("mitre", args.mitre.map(list)),
        ("description", text(args.description)),
        ("enabled", args.disabled.then_some(Value::Bool(false))),
    ];
    body_of(command, args.json, fields, &["id", "priority", "action", "protocol"])
}

/// Fields of a head as an object.
fn headers(command: &str, written: &[String]) -> Result<Option<Value>, String> {
    let mut fields = Map::new();
    for field in written {
        let (name, text) =
            field.split_once('=').ok_or_else(|| format!("{command}: --header {field}: write it as NAME=TEXT"))?;
        if fields.insert(name.to_owned(), text.into()).is_some() {
            return Err(format!("{command}: --header {name} is given twice"));
        }
    }
    Ok((!fields.is_empty()).then_some(Value::Object(fields)))
}

/// Columns of the list.
pub const COLUMNS: &[Column] = &[
    ("ID", &["id"]),
    ("NAMESPACE", &["namespace"]),
    ("PRIORITY", &["priority"]),
    ("ACTION", &["action"]),
    ("PROTOCOL", &["protocol"]),
    ("SOURCE", &["src_ip", "src_port"]),
    ("DESTINATION", &["dst_ip", "dst_port"]),
    (
        "MORE",
        &[
            "method",
            "path",
            "host",
            "header",
            "content_type",
            "sni",
            "alpn",
            "ja3",
            "ja4",
            "service",
            "command",
            "from",
            "to",
            "file",
            "share",
            "dialect",
        ],
    ),
    ("ENABLED", &["enabled"]),
    ("FROM", &["source"]),
    ("SEVERITY", &["severity"]),
    ("HITS", &["hits"]),
    ("ENFORCED", &["enforced"]),
    ("LAST HIT", &["last_hit"]),
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::{Call, Command, Output, ask, parse_from};
    use crate::client::Client;
    use crate::client::tests::{http, serve};

    fn call(args: &[&str]) -> Call {
        match parse_from(args, |_| None).unwrap().command {
            Command::Remote(Remote::Call(call)) => call,
            other => panic!("{args:?}: {other:?}"),
        }
    }

    #[test]
    fn options_become_a_rule() {
        let call = call(&[
            "l7",
            "add",
            "--id",
            "a",
            "--priority",
            "7",
            "--action",
            "deny",
            "--protocol",
            "http",
            "--path",
            "/admin*",
            "--http-host",
            "*.example",
            "--header",
            "user-agent=~curl=",
            "--header",
            "x=y",
            "--dst-port",
            "8080",
            "--confirm",
            "9",
            "--disabled",
            "--severity",
            "low",
            "--host",
            "h",
        ]);
        assert_eq!(call.target, "/api/v1/firewall/l7-rules?confirm_secs=9");
        assert_eq!(
            call.body.unwrap(),
            json!({"id": "a", "priority": 7, "action": "deny", "protocol": "http", "path": "/admin*", "host": "*.example",
                   "header": {"user-agent": "~curl=", "x": "y"}, "dst_port": 8080, "enabled": false, "severity": "low"})
        );
    }

    #[test]
    fn the_command_of_the_manual() {
        let text = r#"{"id":"l7-block-admin","priority":10,"action":"deny","protocol":"http","path":"/admin"}"#;
        let call = call(&["l7", "add", "--json", text]);
        assert_eq!((call.target.as_str(), call.body), (RULES, Some(serde_json::from_str(text).unwrap())));
    }

    #[test]
    fn every_key_of_a_rule_is_an_option() {
        let keys: Vec<&str> = COLUMNS.iter().find(|(heading, _)| *heading == "MORE").unwrap().1.to_vec();
        for protocol in crate::engines::l7::rule::Protocol::ALL {
            for (key, _) in protocol.fields() {
                assert!(keys.contains(key), "{key} is not listed");
                let option =
                    if *key == "host" { "--http-host".to_owned() } else { format!("--{}", key.replace('_', "-")) };
                let call = call(&[
                    "l7",
                    "update",
                    "--id",
                    "a",
                    "--priority",
                    "1",
                    "--action",
                    "log",
                    "--protocol",
                    protocol.name(),
                    &option,
                    "text",
                ]);
                assert_eq!(call.body.unwrap()[*key], "text", "{key}");
            }
        }
    }

    #[test]
    fn rules_as_a_table() {
        let rules = r#"[{"id":"no-admin","priority":10,"action":"deny","protocol":"http","src_ip":"10.0.0.0/8","path":"/admin*",
                         "header":{"x":"y\u001b"},"enabled":true,"severity":"high","source":"api","hits":7,"enforced":3,
                         "last_hit":null},
                        {"id":"sni","priority":11,"action":"log","protocol":"tls","sni":"*.example","enabled":false,
                         "severity":"low","source":"file","hits":0,"enforced":0,"last_hit":null}]"#;
        let (endpoint, server) = serve(vec![http(200, rules), http(200, "[]")]);
        let client = Client::new(endpoint, None);
        insta::assert_snapshot!("l7_rules", ask(&client, &Remote::L7List, Output::Table).unwrap().0);
        assert_eq!(ask(&client, &Remote::L7List, Output::Table).unwrap().0, "no rules");
        assert!(server.join().unwrap()[0].starts_with("GET /api/v1/firewall/l7-rules?limit=5000&offset=0 "));
    }

    #[test]
    fn mistakes() {
        for args in [
            &["l7"][..],
            &["l7", "add", "--id", "a", "--priority", "1", "--action", "deny"],
            &["l7", "add", "--json", "{}", "--header", "x"],
            &["l7", "add", "--json", "{}", "--header", "x=1", "--header", "x=2"],
            &["l7", "add", "--json", "{}", "--path", "/"],
            &["l7", "update", "--json", "{}"],
        ] {
            assert_eq!(parse_from(args, |_| None).unwrap_err().code, crate::cli::USAGE, "{args:?}");
        }
    }
}
