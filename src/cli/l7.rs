//! `l7`: the rules of the L7 firewall on the command line.

use argh::FromArgs;
use serde_json::{Map, Value};

use super::rules::{self, DeleteArgs, Key, ListArgs, RuleArgs, Rules, ShowArgs, Update, list, number_or_text};
use super::{Column, Exit, Remote};

/// Its rules.
pub static RULES: Rules = Rules {
    command: "l7",
    path: "/api/v1/firewall/l7-rules",
    required: &["id", "priority", "action", "protocol"],
    columns: COLUMNS,
};

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
    Update(Box<Update<AddArgs>>),
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

/// What the command asks of the agent.
pub fn command(args: L7Args) -> Result<Remote, Exit> {
    Ok(match args.command {
        L7Sub::List(_) => RULES.list(),
        L7Sub::Show(args) => RULES.show(&args),
        L7Sub::Add(args) => rules::add(*args)?,
        L7Sub::Update(args) => rules::update(*args)?,
        L7Sub::Delete(args) => RULES.delete(&args),
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

    fn keys(self) -> Result<Vec<Key>, String> {
        let text = |text: Option<String>| text.map(Value::from);
        Ok(vec![
            ("id", text(self.id)),
            ("namespace", text(self.namespace)),
            ("priority", self.priority.map(Value::from)),
            ("action", text(self.action)),
            ("protocol", text(self.protocol)),
            ("src_ip", text(self.src_ip)),
            ("dst_ip", text(self.dst_ip)),
            ("src_port", self.src_port.map(number_or_text)),
            ("dst_port", self.dst_port.map(number_or_text)),
            ("method", text(self.method)),
            ("path", text(self.path)),
            ("host", text(self.http_host)),
            ("header", headers(&self.header)?),
            ("content_type", text(self.content_type)),
            ("sni", text(self.sni)),
            ("alpn", text(self.alpn)),
            ("ja3", text(self.ja3)),
            ("ja4", text(self.ja4)),
            ("service", text(self.service)),
            ("command", text(self.command)),
            ("from", text(self.from)),
            ("to", text(self.to)),
            ("file", text(self.file)),
            ("share", text(self.share)),
            ("dialect", text(self.dialect)),
            ("severity", text(self.severity)),
            ("mitre", self.mitre.map(list)),
            ("description", text(self.description)),
            ("enabled", self.disabled.then_some(Value::Bool(false))),
        ])
    }
}

/// Fields of a head as an object.
fn headers(written: &[String]) -> Result<Option<Value>, String> {
    let mut fields = Map::new();
    for field in written {
        let (name, text) = field.split_once('=').ok_or_else(|| format!("--header {field}: write it as NAME=TEXT"))?;
        if fields.insert(name.to_owned(), text.into()).is_some() {
            return Err(format!("--header {name} is given twice"));
        }
    }
    Ok((!fields.is_empty()).then_some(Value::Object(fields)))
}

/// Columns of the list.
const COLUMNS: &[Column] = &[
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
        assert_eq!((call.target.as_str(), call.body), (RULES.path, Some(serde_json::from_str(text).unwrap())));
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
        insta::assert_snapshot!("l7_rules", ask(&client, &RULES.list(), Output::Table).unwrap().0);
        assert_eq!(ask(&client, &RULES.list(), Output::Table).unwrap().0, "no rules");
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
