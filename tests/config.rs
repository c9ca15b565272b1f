//! Config files as users write them: good ones, and a folder of bad ones that say what must be said about them.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ebpfsentinel::alert::config::AlertingConfig;
use ebpfsentinel::alert::sinks::config::Destination;
use ebpfsentinel::alert::{Filter, Limits, RulePattern, Severity};
use ebpfsentinel::api::Role;
use ebpfsentinel::audit::config::AuditConfig;
use ebpfsentinel::classify::rules::Mode;
use ebpfsentinel::component::Component;
use ebpfsentinel::config::agent::{CpuSteering, GuardFrom, OnExit, XdpMode};
use ebpfsentinel::config::tls::ClientAuth;
use ebpfsentinel::config::{self, Config, Flag, variable_of};
use ebpfsentinel::control::auth::{Auth, Credentials};
use ebpfsentinel::engines::firewall::config::Policy;
use ebpfsentinel::engines::l7;
use ebpfsentinel::engines::ratelimit::rule::{Action, Algorithm, Scope};
use ebpfsentinel::metrics::Metrics;
use ebpfsentinel::ruled::AnyRule;
use ebpfsentinel::ruled::body::read_rule_json;
use ebpfsentinel::supervise::Supervisor;
use ebpfsentinel::written::{Kind, SECRET_KEYS, WrittenError};
use proptest::prelude::*;

// What the fuzz targets do with their bytes; here it is run over a corpus and mutations of it, without a fuzzer.
#[path = "fuzz/targets/config.rs"]
mod fuzz_config;
#[path = "fuzz/targets/rule_json.rs"]
mod fuzz_rule_json;

const MINIMAL: &str = "[agent]\ninterfaces = [\"eth0\"]\n";

fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text_of(path: &str) -> String {
    std::fs::read_to_string(in_tree(path)).unwrap()
}

fn parse(text: &str) -> Result<Config, String> {
    config::parse("c.toml", text.as_bytes(), [], &[]).map(|(config, _)| config).map_err(|e| e.to_string())
}

fn with(text: &str, variables: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Result<Config, String> {
    let environment = variables.iter().map(|&(name, value)| (OsString::from(name), OsString::from(value)));
    let flags = flags.iter().map(|&(name, key, value)| Flag { name, key, value }).collect::<Vec<_>>();
    config::parse("c.toml", text.as_bytes(), environment, &flags).map(|(config, _)| config).map_err(|e| e.to_string())
}

/// What a file under bad_configs expects: lines `#! LINE PATH: PART` at its top, `-` for no line and `.` for no path.
fn expected(text: &[u8]) -> Vec<(Option<u32>, String, String)> {
    let lines = text.split(|&byte| byte == b'\n').map(String::from_utf8_lossy);
    let marked = lines.map_while(|line| line.strip_prefix("#! ").map(str::to_owned));
    marked
        .map(|line| {
            let (line, rest) = line.split_once(' ').expect("LINE PATH: PART");
            let (path, part) = rest.split_once(": ").unwrap_or((rest.trim_end_matches(':'), ""));
            (line.parse().ok(), path.trim_start_matches('.').to_owned(), part.to_owned())
        })
        .collect()
}

#[test]
fn each_bad_config_gives_exactly_its_errors() {
    let mut files = std::fs::read_dir(in_tree("tests/data/bad_configs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect::<Vec<_>>();
    files.sort();
    assert!(files.len() >= 60, "{} files", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read(&path).unwrap();
        let expected = expected(&text);
        assert!(!expected.is_empty(), "{name} says nothing about its errors");
        let errors = match config::parse(name, &text, [], &[]) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.errors,
        };
        let fits = |error: &WrittenError, (line, path, part): &(Option<u32>, String, String)| {
            error.line == *line && error.path == *path && error.message.contains(part.as_str())
        };
        if errors.len() != expected.len() || !errors.iter().zip(&expected).all(|(error, wish)| fits(error, wish)) {
            let lines = errors.iter().map(|error| format!("    {error}\n")).collect::<String>();
            wrong.push(format!("{name}: expected {expected:?}, found\n{lines}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_least_config_has_the_defaults() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.agent.interfaces, ["eth0"]);
    assert_eq!(config.agent.http_port, 8080);
    assert_eq!(config.agent.bind_address.to_string(), "127.0.0.1");
    assert_eq!((config.agent.xdp_mode, config.agent.on_exit), (XdpMode::Auto, OnExit::Detach));
    assert_eq!(config.agent.anti_lockout.from, GuardFrom::Sessions);
    assert_eq!((config.firewall.mode, config.firewall.default_policy), (Mode::Alert, Policy::Pass));
    assert!(config.firewall.enabled && config.firewall.stateful && config.firewall.dhcp);
    assert!(config.firewall.rules.is_empty());
    assert_eq!((config.ratelimit.mode, config.ratelimit.max_sources), (Mode::Alert, 262_144));
    assert!(
        !config.ratelimit.enabled && config.ratelimit.default_rule().is_none() && config.ratelimit.rules.is_empty()
    );
}

#[test]
fn inspection_is_on_where_it_is_needed() {
    let inspects = |text: &str| parse(&format!("{MINIMAL}{text}")).unwrap().inspects();
    assert!(!inspects(""));
    assert!(inspects("[ids]\nenabled = true\n"));
    assert!(inspects("[l7]\nenabled = true\n"));
    assert!(inspects("[l7.default_action]\nsmb = 'log'\n"));
    assert!(!inspects("[ids]\nenabled = false\n[l7]\nenabled = false\ndefault_action.smb = 'deny'\n"));
}

#[test]
fn numbers_of_bytes() {
    let depth = |text: &str| parse(&format!("{MINIMAL}[ids]\nstream_depth = {text}\n")).map(|it| it.ids.stream_depth);
    for (text, bytes) in [("0", 0), ("4097", 4097), ("'64KiB'", 65_536), ("'2 MiB'", 2 << 20), ("'1024GiB'", 1 << 40)] {
        assert_eq!(depth(text), Ok(bytes), "{text}");
    }
    for text in ["'1025GiB'", "'99999999999999999GiB'", "1099511627777", "''", "'KiB'", "'1.5MiB'", "'+-1'", "'1mib'"] {
        assert!(depth(text).is_err(), "{text}");
    }
}

#[test]
fn names_of_the_host_are_lower_case() {
    let config = parse(&format!("{MINIMAL}host_names = ['Sentinel.Example.ORG', 'proxy']\n")).unwrap();
    assert_eq!(config.agent.host_names, ["sentinel.example.org", "proxy"]);
}

#[test]
fn words_with_the_same_meaning() {
    let firewall = |line: &str| parse(&format!("{MINIMAL}[firewall]\n{line}\n")).unwrap().firewall;
    for (word, mode) in [("monitor", Mode::Alert), ("observe", Mode::Alert), ("enforce", Mode::Block)] {
        assert_eq!(firewall(&format!("mode = '{word}'")).mode, mode);
    }
    assert_eq!(firewall("default_policy = 'deny'").unparsable, Policy::Drop, "it follows the default policy");
    assert_eq!(firewall("default_policy = 'deny'\nunparsable = 'allow'").unparsable, Policy::Pass);
}

#[test]
fn the_installed_config_is_the_defaults() {
    let installed = text_of("conf/ebpfsentinel.toml");
    assert_eq!(parse(&installed), parse(MINIMAL));

    // With every comment that is a setting switched on it still says the defaults, and has a rule of every key.
    let is_of_key = |byte: u8| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let setting = |line: &str| {
        let rest = line.strip_prefix("# ")?;
        let is_key = rest.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(is_of_key));
        (is_key || rest.starts_with('[')).then(|| rest.to_owned())
    };
    let full =
        installed.lines().map(|line| setting(line).unwrap_or_else(|| line.to_owned()) + "\n").collect::<String>();
    // Rules and the ways to ask who calls have no default; what has a comment for a header is one of them.
    let (rules, others): (Vec<_>, Vec<_>) = full.split("\n[").partition(|section| {
        section.starts_with('[') || installed.contains(&format!("# [{}\n", section.lines().next().unwrap_or_default()))
    });
    assert_eq!(rules.len(), 8, "what has no default is switched on");
    // Unless it is said, `ids.enabled` is what the other sections need.
    let mut least = parse(MINIMAL).unwrap();
    assert!(!least.inspects());
    least.ids.enabled = Some(false);
    assert_eq!(parse(&others.join("\n[")), Ok(least));

    // A rule cannot have all keys at once; its own errors are those of the keys that exclude each other, no others.
    let errors = parse(&full).unwrap_err();
    let (of_auth, lines): (Vec<&str>, Vec<&str>) = errors.lines().partition(|line| line.contains(": auth."));
    for (line, part) in of_auth.iter().zip([
        "auth.api_keys[0].key_hash: the key is given already",
        "auth.api_keys[0].key_file: auth.api_keys[0].key stands here already",
        "auth.api_keys[0].namespaces: namespaces are for operators",
        "auth.jwt.public_key_path: /etc/ebpfsentinel/jwt.pub: cannot be read",
        "auth.oidc: jwt and oidc exclude each other",
        "auth.oidc.ca_file: /etc/ebpfsentinel/issuer-ca.pem: cannot be read",
    ]) {
        assert!(line.contains(part), "{line} is not {part}");
    }
    assert_eq!(of_auth.len(), 6, "{errors}");
    let others = ["sni", "alpn", "ja3", "ja4", "service", "command", "from", "to", "file", "share", "dialect"];
    let lines = &lines[..];
    assert_eq!(lines.len(), 4 + others.len(), "{errors}");
    assert!(
        lines[0].contains("tls.clients[0]: a client is known by its certificate's subject or by its finger"),
        "{errors}"
    );
    let lines = &lines[1..];
    assert!(lines[0].contains("firewall.rules[0].icmp_type: needs protocol"), "{errors}");
    assert!(lines[1].contains("ratelimit.rules[0].icmp_type: needs protocol"), "{errors}");
    assert!(lines[2].contains("ratelimit.rules[0].threshold_pps: goes with algorithm"), "{errors}");
    for (line, key) in lines[3..].iter().zip(others) {
        assert!(line.contains(&format!("l7.rules[0].{key}: is a key of protocol = ")), "{line}");
    }

    for key in config::known_keys() {
        let last = key.path.rsplit('.').next().unwrap();
        let (table, _) = key.path.rsplit_once('.').unwrap_or(("", ""));
        let header = match table.strip_suffix("[]") {
            Some(list) => format!("[[{list}]]"),
            None => format!("[{table}]"),
        };
        // A table of a rule stands on one line.
        let stands = if key.kind == Kind::Table && !table.ends_with("[]") {
            full.contains(&format!("[{}]", key.path))
        } else {
            // At the start of a line: comments name sections, too.
            let section =
                full.split(&format!("\n{header}")).nth(1).unwrap_or_default().split("\n[").next().unwrap_or_default();
            section.lines().any(|line| line.starts_with(&format!("{last} = ")))
        };
        // No route has the keys of all destinations, and most have no mail server: these are shown in prose.
        let alerting = installed.split("\n[alerting]\n").nth(1).unwrap();
        let is_named =
            |word: &str| alerting.split(|c: char| !(c == '_' || c.is_ascii_alphanumeric())).any(|w| w == word);
        let is_shown = key.path.starts_with("alerting.routes[].") || key.path.starts_with("alerting.smtp");
        let stands = stands || is_shown && is_named(last);
        assert!(stands, "{} does not stand in conf/ebpfsentinel.toml", key.path);
    }
}

#[test]
fn the_example_is_good() {
    let (config, warnings) =
        config::parse("firewall.toml", text_of("conf/examples/firewall.toml").as_bytes(), [], &[]).unwrap();
    assert_eq!(warnings, []);
    let rules = &config.firewall.rules;
    assert_eq!((config.firewall.mode, config.firewall.default_policy), (Mode::Block, Policy::Drop));
    let has = |what: &str, found: bool| assert!(found, "the example shows no {what}");
    let matches = || rules.iter().map(|rule| &rule.matches);
    has("IPv4 rule", matches().any(|asked| asked.is_ipv4() == Some(true)));
    has("IPv6 rule", matches().any(|asked| asked.is_ipv4() == Some(false)));
    has("VLAN", matches().any(|asked| asked.vlan_id.is_some_and(|id| id > 0)));
    has("TCP flags", matches().any(|asked| asked.tcp_flags.is_some()));
    has("ICMP type", matches().any(|asked| asked.icmp_type.is_some()));
    has("ICMP code", matches().any(|asked| asked.icmp_code.is_some()));
    has("port range", matches().any(|asked| asked.dst_port.is_some_and(|range| range.low < range.high)));
    has("state", matches().any(|asked| !asked.states.is_any()));
    has("interface", matches().any(|asked| !asked.interfaces.is_empty()));
    has("log", rules.iter().any(|rule| rule.log));
    has("disabled rule", rules.iter().any(|rule| !rule.enabled));
}

#[test]
fn the_example_of_rate_limits_is_good() {
    let (config, warnings) =
        config::parse("ratelimit.toml", text_of("conf/examples/ratelimit.toml").as_bytes(), [], &[]).unwrap();
    assert_eq!(warnings, []);
    assert!(config.ratelimit.mode == Mode::Block && config.ratelimit.default_rule().is_some());
    let rules = &config.ratelimit.rules;
    let has = |what: &str, found: bool| assert!(found, "the example shows no {what}");
    for (word, scope) in Scope::WORDS {
        has(word, rules.iter().any(|rule| rule.scope == *scope));
    }
    for (word, algorithm) in Algorithm::WORDS {
        has(word, rules.iter().any(|rule| rule.algorithm == *algorithm));
    }
    for (word, action) in Action::WORDS {
        has(word, rules.iter().any(|rule| rule.action == *action));
    }
    has("TCP flags", rules.iter().any(|rule| rule.matches.tcp_flags.is_some()));
    has("prefix", rules.iter().any(|rule| rule.ipv6_prefix_len != 64));
    has("disabled rule", rules.iter().any(|rule| !rule.enabled));
}

#[test]
fn the_example_of_alerting_is_good() {
    let (config, warnings) =
        config::parse("alerting.toml", text_of("conf/examples/alerting.toml").as_bytes(), [], &[]).unwrap();
    assert_eq!(warnings, []);
    let routes = &config.alerting.routes;
    let has = |what: &str, found: bool| assert!(found, "the example shows no {what}");
    has("severity", routes.iter().any(|route| route.filter.min_severity > Severity::Low));
    has("component", routes.iter().any(|route| !route.filter.components.is_empty()));
    has("technique", routes.iter().any(|route| !route.filter.mitre.is_empty()));
    let patterns = || routes.iter().flat_map(|route| &route.filter.rule_ids);
    has("name of a rule", patterns().any(|pattern| matches!(pattern, RulePattern::Exact(_))));
    has("beginning of a name", patterns().any(|pattern| matches!(pattern, RulePattern::Prefix(_))));
    for word in ["log", "eve", "syslog", "webhook", "email"] {
        has(word, routes.iter().any(|route| route.destination.word() == word));
    }
    has("spool", routes.iter().any(|route| route.destination.spool.is_some()));
    has("rule with a technique", config.firewall.rules.iter().any(|rule| !rule.mitre.is_empty()));
}

#[test]
fn routes_of_alerts() {
    let alerting = |text: &str| parse(&format!("{MINIMAL}{text}")).map(|config| config.alerting);
    let names = |config: &AlertingConfig| config.routes.iter().map(|route| route.name.clone()).collect::<Vec<_>>();
    let default = alerting("").unwrap();
    assert_eq!(names(&default), ["default-log"]);
    assert_eq!(
        (default.routes[0].filter.clone(), &default.routes[0].destination),
        (Filter::default(), &Destination::log())
    );
    assert_eq!(default.limits(), Limits::default());
    let none = alerting("[alerting]\nroutes = []\n").unwrap();
    assert!(none.routes.is_empty());
    let off = alerting("[alerting]\nenabled = false\n").unwrap();
    assert!(names(&off) == ["default-log"] && off.routes_in_force().is_empty());
    let route = "[[alerting.routes]]\nname = 'a'\ndestination = 'log'\n";
    let two = alerting(&format!("{route}event_types = ['l7', 'ids']\n{}", route.replace("'a'", "'b'"))).unwrap();
    assert_eq!(names(&two), ["a", "b"]);
    assert_eq!(two.routes[0].filter.components, [Component::L7, Component::Ids]);
    let many = |count: usize| (0..count).map(|n| route.replace("'a'", &format!("'r{n}'"))).collect::<String>();
    assert_eq!(alerting(&many(100)).unwrap().routes.len(), 100);
    assert!(alerting(&many(101)).unwrap_err().contains("alerting.routes: 101 routes, and 100 is the limit"));
    // What is shown is what was written.
    let shown = parse(&format!("{MINIMAL}{route}rule_ids = ['ssh-*']\nmitre = ['T1110']\n")).unwrap().masked();
    let shown = &shown["alerting"]["routes"][0];
    assert_eq!(
        (&shown["name"], &shown["destination"], &shown["min_severity"]),
        (&"a".into(), &"log".into(), &"low".into())
    );
    assert_eq!((&shown["rule_ids"][0], &shown["mitre"][0]), (&"ssh-*".into(), &"T1110".into()));
    // Secrets are not.
    let secret = "[[alerting.routes]]\nname = 'h'\ndestination = 'webhook'\nwebhook_url = 'https://example.org/s3cret'\n\
                  webhook_secret = 's3cret'\n[alerting.smtp]\nhost = 'm'\nfrom_address = 'a@example.org'\nusername = 'u'\n\
                  password = 's3cret'\n";
    let shown = parse(&format!("{MINIMAL}{secret}")).unwrap().masked().to_string();
    assert!(shown.contains("https://example.org/***") && !shown.contains("s3cret"), "{shown}");
    let set = with(&format!("{MINIMAL}{secret}"), &[("EBPFSENTINEL_ALERTING_SMTP_PORT", "2525")], &[]).unwrap();
    assert_eq!(set.alerting.smtp.map(|smtp| smtp.port), Some(2525));
}

#[test]
fn the_example_of_l7_rules_is_good() {
    let (config, warnings) = config::parse("l7.toml", text_of("conf/examples/l7.toml").as_bytes(), [], &[]).unwrap();
    assert_eq!(warnings, []);
    assert!(config.l7.enabled && config.l7.mode == Mode::Block && !config.l7.default_action.are_all_allow());
    let rules = &config.l7.rules;
    let has = |what: &str, found: bool| assert!(found, "the example shows no {what}");
    for (protocol, field) in
        l7::rule::Protocol::ALL.iter().flat_map(|one| one.fields().iter().map(move |(_, f)| (one, f)))
    {
        let shows = |rule: &l7::rule::Rule| rule.conditions.iter().any(|condition| condition.field == *field);
        has(&format!("{protocol:?} {}", field.name()), rules.iter().any(shows));
    }
    for action in ["allow", "deny", "log"] {
        has(action, rules.iter().any(|rule| rule.action.name() == action));
    }
    let texts = || rules.iter().flat_map(|rule| &rule.conditions).map(|condition| condition.matcher.form());
    use ebpfsentinel::matching::matcher::Form;
    has("exact text", texts().any(|form| matches!(form, Form::Exact(_))));
    has("prefix", texts().any(|form| matches!(form, Form::Prefix(_))));
    has("suffix", texts().any(|form| matches!(form, Form::Suffix(_))));
    has("wildcard", texts().any(|form| matches!(form, Form::Wildcard(_))));
    has("regular expression", texts().any(|form| matches!(form, Form::Regex(..))));
    has("disabled rule", rules.iter().any(|rule| !rule.enabled));
    // It can be put in force.
    assert_eq!(l7::Ruling::of(&config.l7).unwrap().judge.rule_count(), rules.len() - 1);
}

#[test]
fn the_example_of_tls_is_good() {
    let (config, warnings) = config::parse("tls.toml", text_of("conf/examples/tls.toml").as_bytes(), [], &[]).unwrap();
    assert_eq!(warnings, []);
    let tls = &config.tls;
    assert!(tls.enabled && tls.client_auth == ClientAuth::Required && tls.files().len() == 3);
    let (supervisor, _failures) = Supervisor::new().unwrap();
    let auth = Auth::new(&config.auth, &tls.clients, &Metrics::new(), &supervisor).unwrap();
    let caller = |fingerprint: &str, subject: &str| {
        let credentials = Credentials { certificate: Some((fingerprint, subject)), ..Credentials::default() };
        auth.identify(&credentials, None).ok()
    };
    let role = |fingerprint, subject| caller(fingerprint, subject).map(|caller| caller.role);
    let admin = "3f5b8e9a1027c4556e0d71b293acf84419d62b708ce1a53d974f06bb52c8ee61";
    assert_eq!(role(admin, "prometheus"), Some(Role::Admin), "the fingerprint stands in front");
    assert_eq!(role("00", "prometheus"), Some(Role::Viewer));
    assert_eq!((role("00", "nobody"), role("00", "")), (None, None));
    let namespaces = caller("00", "deploy").unwrap().namespaces;
    assert!(namespaces.check(Some("web")).is_ok() && namespaces.check(Some("db")).is_err(), "{namespaces:?}");
    // Who says what a client may do wants everybody asked.
    assert!(config.auth.enabled && !config.agent.allow_unauthenticated_api);
    let off = text_of("conf/examples/tls.toml") + "\n[auth]\nenabled = false\n";
    assert!(parse(&off).unwrap_err().contains("auth.enabled: with false nobody is asked"));
}

#[test]
fn l7_is_on_as_soon_as_it_has_something_to_do() {
    let l7 = |text: &str| parse(&format!("{MINIMAL}[l7]\n{text}")).unwrap().l7;
    assert!(!l7("").enabled && l7("default_action.tls = 'deny'").enabled && l7("enabled = true").enabled);
    assert!(!l7("enabled = false\ndefault_action.tls = 'deny'").enabled);
    let rule = "[[l7.rules]]\nid='a'\npriority=1\naction='block'\nprotocol='http'\npath='/x'\n";
    assert!(l7(rule).enabled && l7("mode = 'enforce'").mode == Mode::Block);
    let action = |text: &str, protocol| l7(text).default_action.of(protocol).name();
    use l7::rule::Protocol::{Grpc, Http};
    assert_eq!(action("default_action.http = 'deny'", Grpc), "deny", "a call is an exchange");
    assert_eq!(action("default_action = { http = 'deny', grpc = 'allow' }", Grpc), "allow");
    assert_eq!(action("default_action.grpc = 'deny'", Http), "allow");
    let rules = |count: usize| {
        let rule = |n| format!("[[l7.rules]]\nid='r{n}'\npriority=1\naction='deny'\nprotocol='tls'\n");
        parse(&format!("{MINIMAL}{}", (0..count).map(rule).collect::<String>()))
    };
    assert_eq!(rules(10_000).unwrap().l7.rules.len(), 10_000);
    assert!(rules(10_001).unwrap_err().contains("l7.rules: 10001 rules, and 10000 is the limit"));
}

#[test]
fn flags_before_environment_before_file_before_defaults() {
    let file = format!("{MINIMAL}log_level = 'warn'\n");
    let level = |variables: &[(&str, &str)], flags: &[(&str, &str, &str)]| {
        with(&file, variables, flags).unwrap().agent.log_level.as_str().to_lowercase()
    };
    let variable = [("EBPFSENTINEL_AGENT_LOG_LEVEL", "debug")];
    let flag = [("--log-level", "agent.log_level", "trace")];
    assert_eq!(parse(MINIMAL).unwrap().agent.log_level.as_str(), "INFO");
    assert_eq!(level(&[], &[]), "warn");
    assert_eq!(level(&variable, &[]), "debug");
    assert_eq!(level(&variable, &flag), "trace");
}

#[test]
fn the_environment_sets_every_key() {
    let config = with(
        "",
        &[
            ("EBPFSENTINEL_AGENT_INTERFACES", "eth0, eth1"),
            ("EBPFSENTINEL_HOST", "::1"),
            ("EBPFSENTINEL_PORT", "81"),
            ("EBPFSENTINEL_FIREWALL_MODE", "block"),
            ("EBPFSENTINEL_FIREWALL_STATEFUL", "false"),
            ("EBPFSENTINEL_FIREWALL_TIMEOUTS_TCP_CLOSING_SECS", "7"),
            ("EBPFSENTINEL_AGENT_ANTI_LOCKOUT_SSH_PORTS", "22,2222"),
            ("EBPFSENTINEL_TOKEN", "secret"),
            ("EBPFSENTINEL_CONFIG", "/etc/x"),
            ("EBPFSENTINEL_SOCKET", "/run/x"),
            ("EBPFSENTINEL_CACERT", "/etc/x.pem"),
            ("EBPFSENTINEL_TLS_ALLOW_TLS12", "true"),
            ("PATH", "/bin"),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(config.agent.interfaces, ["eth0", "eth1"]);
    assert_eq!((config.agent.bind_address.to_string().as_str(), config.agent.http_port), ("::1", 81));
    assert_eq!((config.firewall.mode, config.firewall.stateful), (Mode::Block, false));
    assert_eq!(config.firewall.timeouts.tcp_closing_secs, 7);
    assert_eq!(config.agent.anti_lockout.ssh_ports, [22, 2222]);
}

#[test]
fn errors_outside_the_file_name_their_origin() {
    let errors =
        |variables: &[(&str, &str)], flags: &[(&str, &str, &str)]| with(MINIMAL, variables, flags).unwrap_err();
    assert_eq!(
        errors(&[("EBPFSENTINEL_PORT", "80x")], &[]),
        "environment variable EBPFSENTINEL_PORT: agent.http_port: expected an integer from 1 to 65535, found the string \
         \"80x\""
    );
    assert_eq!(
        errors(&[("EBPFSENTINEL_FIREWAL_MODE", "block")], &[]),
        "environment variable EBPFSENTINEL_FIREWAL_MODE: sets no key; did you mean EBPFSENTINEL_FIREWALL_MODE?"
    );
    assert_eq!(
        errors(&[("EBPFSENTINEL_PORT", "1"), ("EBPFSENTINEL_AGENT_HTTP_PORT", "1")], &[]),
        "environment variable EBPFSENTINEL_PORT: sets agent.http_port, and so does EBPFSENTINEL_AGENT_HTTP_PORT; keep \
         one of the two"
    );
    assert_eq!(
        errors(&[], &[("--log-level", "agent.log_level", "loud")]),
        "--log-level: agent.log_level: \"loud\" is not known here; use error, warn, info, debug or trace"
    );
    // A variable repairs what the file has wrong, since the file's value is not used.
    assert!(with("[agent]\ninterfaces=['eth0']\nhttp_port=0", &[("EBPFSENTINEL_PORT", "1")], &[]).is_ok());
}

#[test]
fn each_variable_belongs_to_one_key() {
    let mut names = config::known_keys().iter().map(|key| variable_of(&key.path)).collect::<Vec<_>>();
    names.sort();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn files_that_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let load = |path: &Path| config::load(path, [], &[]).map(|loaded| loaded.config).map_err(|e| e.to_string());

    assert!(load(&path).unwrap_err().ends_with("c.toml: cannot be read: No such file or directory"));
    std::fs::write(&path, MINIMAL).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(load(&path), parse(MINIMAL));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(load(&path).unwrap_err().contains("may write to it (mode 0666)"));
    assert!(load(folder.path()).unwrap_err().ends_with("not a regular file"));
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert!(load(&fifo).unwrap_err().ends_with("not a regular file"));

    let large = folder.path().join("large");
    let begin = std::time::Instant::now();
    std::fs::File::create(&large).unwrap().set_len(100 << 20).unwrap();
    std::fs::set_permissions(&large, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(load(&large).unwrap_err().contains("more than the 16 MiB"));
    assert!(begin.elapsed().as_secs() < 1, "refused by its length, not by reading it");
}

#[test]
fn details_show_the_line() {
    let text = format!("{MINIMAL}\thttp_port = 0\n");
    let errors = config::parse("c.toml", text.as_bytes(), [], &[]).unwrap_err();
    assert_eq!(
        errors.detailed(),
        "c.toml:3:14: agent.http_port: expected an integer from 1 to 65535, found the integer 0\n 3 | \thttp_port = 0\n   | \
         \t            ^\n"
    );
}

/// A config with a secret at each key that takes one; they are made of letters that stand nowhere else.
const SECRETS: &str = "[agent]
interfaces = ['eth0']
[[auth.api_keys]]
name = 'one'
key = 'QZJXQZJXQZJXQZJX'
[[auth.api_keys]]
name = 'two'
key_hash = 'QZJXQZJXQZJXQZJX'
[auth]
api_keys = [{ name = 'three', key = 'QZJXQZJXQZJXQZJX' }]
[alerting.smtp]
host = 'mail'
from_address = 'a@example.org'
username = 'a'
password = \"\"\"
QZJXQZJX\"\"\"
[[alerting.routes]]
name = 'hook'
destination = 'webhook'
webhook_url = 'http://hooks.example.org/QZJXQZJX'
webhook_secret = 'QZJXQZJX'
webhook_template = '{\"key\": \"QZJXQZJX\"}'
webhook_headers = { Authorization = 'QZJXQZJX', X-Key = { value = 'QZJXQZJX' } }
[[alerting.routes]]
name = 'mail'
destination = 'email'
[alerting.routes.webhook_headers]
X-Key = 'QZJXQZJX'
";

#[track_caller]
fn says_no_secret(text: &str) {
    if let Err(errors) = config::parse("c.toml", text.as_bytes(), [], &[]) {
        for said in [errors.detailed(), errors.to_string()] {
            assert!(!["QZJ", "ZJX", "JXQ", "XQZ"].iter().any(|part| said.contains(part)), "{text}\n{said}");
        }
    }
}

#[test]
fn no_error_shows_a_secret() {
    says_no_secret(SECRETS);
    // Whatever one slip of the finger makes of it.
    for (at, c) in SECRETS.char_indices() {
        let (before, from) = SECRETS.split_at(at);
        for edit in ["", "\n", "'", "#", "="] {
            says_no_secret(&format!("{before}{edit}{}", &from[c.len_utf8()..]));
        }
        for edit in ["\"", "[", "}"] {
            says_no_secret(&format!("{before}{edit}{from}"));
        }
    }
    // And values of other types, which messages repeat elsewhere.
    for value in ["77777", "7.7777", "[77777]", "1977-07-07", "77777x", "yes", "{ a = 77777 }", "'77777'", "['77777']"]
    {
        let route = "[[alerting.routes]]\nname = 'a'\ndestination = 'webhook'\n";
        let key = "[[auth.api_keys]]\nname = 'a'\n";
        for line in [
            format!("{key}key = {value}"),
            format!("{key}key_hash = {value}"),
            format!("{key}kye = {value}"),
            format!("[auth]\napi_keys = {value}"),
            format!("[alerting.smtp]\npassword = {value}"),
            format!("{route}webhook_url = {value}"),
            format!("{route}webhook_secret = {value}"),
            format!("{route}webhook_headers = {value}"),
            format!("{route}webhook_headers = {{ A = {value} }}"),
            format!("{route}[alerting.routes.webhook_headers]\nA = {value}"),
            format!("{route}webhook_template = {value}\nwebhook_batch = 2"),
        ] {
            let Err(errors) = config::parse("c.toml", format!("{MINIMAL}{line}\n").as_bytes(), [], &[]) else {
                continue;
            };
            for said in [errors.detailed(), errors.to_string()] {
                assert!(!said.contains("777") && !said.contains("1977"), "{line}\n{said}");
            }
        }
    }
}

#[test]
fn every_secret_is_known_as_one() {
    let keys = config::known_keys();
    let is_known = |path: &str| keys.iter().any(|key| key.path == path);
    let secrets = keys.iter().filter(|key| is_known(&format!("{}_credential", key.path)));
    let names: Vec<&str> = secrets.filter_map(|key| key.path.rsplit('.').next()).collect();
    assert!(names.len() >= 4 && names.iter().all(|name| SECRET_KEYS.contains(name)), "{names:?}");
}

#[test]
fn cpus_to_steer_to_are_a_switch_or_a_list() {
    let steering = |value: &str| parse(&format!("{MINIMAL}cpu_steering = {value}\n")).unwrap().agent.cpu_steering;
    assert_eq!(steering("true"), CpuSteering::Online);
    assert_eq!(steering("false"), CpuSteering::Off);
    assert_eq!(steering("\"0\""), CpuSteering::Cpus(vec![0]));
    assert_eq!(steering("\"0-0,0\""), CpuSteering::Cpus(vec![0]));
    let variable =
        |value| with(MINIMAL, &[("EBPFSENTINEL_AGENT_CPU_STEERING", value)], &[]).unwrap().agent.cpu_steering;
    assert_eq!((variable("true"), variable("0")), (CpuSteering::Online, CpuSteering::Cpus(vec![0])));
    let off = parse(&format!("{MINIMAL}cpu_steering = true\n[firewall]\nenabled = false\n")).unwrap_err();
    assert!(off.contains("flows are steered behind the firewall"), "{off}");
}

#[test]
fn a_reload_names_what_needs_a_restart() {
    let old = parse(MINIMAL).unwrap();
    let changed = |text: &str| parse(text).unwrap().restart_needed(&old);
    assert_eq!(changed(MINIMAL), [""; 0]);
    assert_eq!(changed("[agent]\ninterfaces=['eth1']\nhttp_port=1"), ["agent.interfaces", "agent.http_port"]);
    assert_eq!(changed(&format!("{MINIMAL}log_level='debug'\n[firewall]\nmode='block'")), [""; 0]);
    assert_eq!(
        changed(&format!("{MINIMAL}cpu_steering=true\non_exit='keep'\n[firewall]\nstateful=false")),
        ["agent.cpu_steering", "agent.on_exit", "firewall.stateful"]
    );
    assert_eq!(changed(&format!("{MINIMAL}[firewall.timeouts]\ntcp_closing_secs=1")), ["firewall.timeouts"]);
    assert_eq!(changed(&format!("{MINIMAL}[ratelimit]\nmode='block'\nenabled=false\ndefault_rate=7")), [""; 0]);
    assert_eq!(
        changed(&format!("{MINIMAL}[ratelimit]\ndefault_rate=7\nmax_sources=1024")),
        ["ratelimit.enabled", "ratelimit.max_sources"]
    );
    assert_eq!(changed(&format!("{MINIMAL}[l7]\nenabled=false\nmode='block'\ndefault_action.tls='deny'")), [""; 0]);
    assert_eq!(changed(&format!("{MINIMAL}[l7]\ndefault_action.tls='deny'")), ["l7.enabled"]);
    assert_eq!(
        changed(&format!("{MINIMAL}socket='off'\nrequests_per_second=9\n[tls]\nenabled=true\nmetrics=false")),
        ["agent.socket", "agent.requests_per_second", "tls.enabled", "tls.metrics"]
    );
    let renewed = "cert_path='/a'\nkey_path='/b'\nclient_auth='optional'\nclient_ca_path='/c'\nallow_tls12=true";
    assert_eq!(changed(&format!("{MINIMAL}[tls]\n{renewed}")), [""; 0]);
    assert_eq!(
        changed(&format!(
            "{MINIMAL}[audit]\nretention_days=1\nmax_entries=1000\nalerts={{retention_days=1,max_alerts=1000}}"
        )),
        [""; 0]
    );
    assert_eq!(
        changed(&format!(
            "{MINIMAL}[audit]\nenabled=false\nbuffer_size=100\nstorage_path='/a'\nalerts={{enabled=false,buffer_size=100}}"
        )),
        [
            "audit.enabled",
            "audit.buffer_size",
            "audit.storage_path",
            "audit.alerts.enabled",
            "audit.alerts.buffer_size"
        ]
    );
}

#[test]
fn the_example_of_the_audit_trail_is_good() {
    let (config, warnings) =
        config::parse("audit.toml", text_of("conf/examples/audit.toml").as_bytes(), [], &[]).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let (audit, state) = (&config.audit, Path::new("/var/lib/x"));
    assert_eq!(audit.limits().age.as_secs(), 366 * 86_400);
    assert_eq!(audit.alerts.limits().count, 200_000);
    let file = |audit: &AuditConfig| [audit.trail_file(state), audit.alerts_file(state)];
    assert_eq!(file(audit), [Path::new("/srv/audit/trail.redb"), Path::new("/srv/audit/alerts.redb")]);
    assert_eq!(
        file(&AuditConfig::default()),
        [Path::new("/var/lib/x/audit.redb"), Path::new("/var/lib/x/alerts.redb")]
    );
}

#[test]
fn the_shown_config_is_the_used_one() {
    let config = parse(&format!(
        "{MINIMAL}anti_lockout.from = ['10.0.0.9/8']\n[[firewall.rules]]\nid='a'\npriority=1\naction='drop'\ndst_port='80-90'"
    ))
    .unwrap();
    let shown = config.masked();
    assert_eq!(shown["agent"]["log_level"], "info");
    assert_eq!(shown["agent"]["anti_lockout"]["from"], serde_json::json!(["10.0.0.0/8"]));
    assert_eq!(shown["firewall"]["rules"][0]["action"], "deny");
    assert_eq!(shown["firewall"]["rules"][0]["dst_port"], "80-90");
    // Each key that can be written is shown, and the other way round.
    let mut known = config::known_keys().into_iter().filter(|key| !key.path.contains("[]")).collect::<Vec<_>>();
    let lists = [".rules", ".routes", ".clients"];
    known.retain(|key| key.kind != Kind::Table || lists.iter().any(|list| key.path.ends_with(list)));
    // Its parts exclude each other; see the_shown_auth_is_the_used_one.
    known.retain(|key| !key.path.starts_with("auth."));
    // The mail server is shown where there is one; it is one key here.
    known.retain(|key| !key.path.starts_with("alerting.smtp."));
    let count = |value: &serde_json::Value| value.as_object().unwrap().len();
    let leaves = count(&shown["agent"]) - 1 + count(&shown["agent"]["anti_lockout"]) + count(&shown["firewall"]) - 1
        + count(&shown["firewall"]["timeouts"])
        + count(&shown["tls"])
        + count(&shown["ratelimit"])
        + count(&shown["l7"])
        - 1
        + count(&shown["l7"]["default_action"])
        + count(&shown["ids"])
        - 1
        + count(&shown["ids"]["sampling"])
        + count(&shown["alerting"])
        - 1
        + count(&shown["audit"])
        - 1
        + count(&shown["audit"]["alerts"]);
    assert_eq!(known.len(), leaves);
    assert!(shown["ids"]["enabled"].is_null(), "it is what the other sections need");
    for key in known.into_iter().filter(|key| key.path != "ids.enabled") {
        assert!(!shown.pointer(&format!("/{}", key.path.replace('.', "/"))).unwrap().is_null(), "{}", key.path);
    }
}

#[test]
fn the_shown_auth_is_the_used_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwt.pub");
    std::fs::write(&path, ED25519_PEM).unwrap();
    let keys = "[[auth.api_keys]]\nname='a'\nkey='0123456789abcdef'\n";
    let jwt = format!("jwt = {{ issuer='i', audience='a', public_key_path='{}', algorithm='EdDSA' }}", path.display());
    let oidc = "oidc = { issuer='https://i.example', audience='a', jwks_url='https://i.example/k' }";
    let shown = |method: &str| parse(&format!("{MINIMAL}[auth]\n{method}\n{keys}")).unwrap().masked()["auth"].take();
    let (jwt, oidc) = (shown(&jwt), shown(oidc));
    for key in config::known_keys() {
        let Some(path) = key.path.strip_prefix("auth.") else { continue };
        let pointer = format!("/{}", path.replace("[]", "/0").replace('.', "/"));
        // One name of a secret is enough, and a file of certificates need not be.
        if ["key", "key_file", "key_credential", "ca_file"].iter().any(|name| path.ends_with(&format!(".{name}"))) {
            continue;
        }
        let found = jwt.pointer(&pointer).filter(|value| !value.is_null()).or_else(|| oidc.pointer(&pointer));
        assert!(found.is_some_and(|value| !value.is_null()), "{path} is not shown");
    }
    assert_eq!((&jwt["enabled"], &jwt["api_keys"][0]["key_hash"]), (&true.into(), &"***".into()));
    assert_eq!((&jwt["jwt"]["leeway_secs"], &jwt["api_keys"][0]["role"]), (&30.into(), &"viewer".into()));
    assert!(jwt["jwt"].get("public_key").is_none());
}

/// A public key of openssl's: `openssl genpkey -algorithm ed25519 | openssl pkey -pubout`.
const ED25519_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAqbzdQLUfJVeuRiO883JEaWVqJxkYdNZDwpV0mQ2QRXc=\n-----END PUBLIC KEY-----\n";

#[test]
fn who_calls_is_asked_as_soon_as_there_is_a_way() {
    let auth = |text: &str| parse(&format!("{MINIMAL}{text}")).unwrap().auth;
    let key = "[[auth.api_keys]]\nname='a'\nkey='0123456789abcdef'\n";
    assert!(!auth("").enabled && auth(key).enabled && !auth(&format!("[auth]\nenabled=false\n{key}")).enabled);
    // An address that other hosts reach is taken then, and only then.
    let open = "[agent]\ninterfaces=['eth0']\nbind_address='0.0.0.0'\n";
    assert!(parse(&format!("{open}{key}")).is_ok());
    for off in ["", "[auth]\nenabled=false\n", &format!("[auth]\nenabled=false\n{key}")] {
        let error = parse(&format!("{open}{off}")).unwrap_err();
        assert!(error.contains("the API does not ask who is there; set up [auth]"), "{error}");
    }
    let (_, warnings) =
        config::parse("c.toml", format!("{MINIMAL}[auth]\nenabled=true\n").as_bytes(), [], &[]).unwrap();
    assert!(warnings[0].message.contains("only the Unix socket and client certificates"), "{warnings:?}");
    let operator = format!("{MINIMAL}{key}role='operator'\n");
    let (_, warnings) = config::parse("c.toml", operator.as_bytes(), [], &[]).unwrap();
    assert!(warnings[0].message.contains("an operator without namespaces changes no rule"), "{warnings:?}");
    let changed = parse(&format!("{MINIMAL}{key}")).unwrap();
    assert_eq!(changed.restart_needed(&parse(MINIMAL).unwrap()), [""; 0]);
    let many: String = (0..257)
        .map(|n| format!("[[auth.api_keys]]\nname='k{n}'\nkey_hash='sha256:0123456789abcdef:{n:064x}'\n"))
        .collect();
    assert!(parse(&format!("{MINIMAL}{many}")).unwrap_err().contains("257 keys, and 256 is the limit"));
}

#[test]
fn public_keys_are_looked_at_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8], mode: u32| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let error = |path: &str, algorithm: &str| {
        let jwt = format!("issuer='i', audience='a', public_key_path='{path}', algorithm='{algorithm}'");
        parse(&format!("{MINIMAL}[auth]\njwt = {{ {jwt} }}\n")).err().unwrap_or_default()
    };
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl").args(arguments).output().expect("openssl is installed");
        assert!(output.status.success(), "openssl {arguments:?}");
        output.stdout
    };
    let public = |name: &str, arguments: &[&str]| {
        let private = write(&format!("{name}.key"), &openssl(arguments), 0o600);
        (private.clone(), write(name, &openssl(&["pkey", "-pubout", "-in", &private]), 0o644))
    };
    let (private, ed) = public("ed", &["genpkey", "-algorithm", "ed25519"]);
    let (_, p256) = public("p256", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    let (_, p384) = public("p384", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]);
    let (_, rsa) = public("rsa", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let (_, weak) = public("weak", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    for (path, algorithm) in [(&ed, "EdDSA"), (&p256, "ES256"), (&rsa, "RS256")] {
        assert_eq!(error(path, algorithm), "", "{algorithm}");
    }
    for (path, algorithm, part) in [
        (&private, "EdDSA", "it holds a private key"),
        (&rsa, "ES256", "it holds no public key (PEM) for ES256"),
        (&ed, "RS256", "it holds no public key (PEM) for RS256"),
        (&p384, "ES256", "its key is not good for ES256: not on P-256"),
        (&weak, "RS256", "its key is not good for RS256: 1024 bits"),
        (&write("text", b"hello", 0o644), "RS256", "it holds no public key"),
        (&write("empty", b"", 0o644), "RS256", "it holds no public key"),
        (&write("bytes", b"\xff\xfe", 0o644), "RS256", "not a PEM file"),
        (&write("long", &vec![b'a'; 70_000], 0o644), "RS256", "more than the 64 KiB"),
        (&write("open", ED25519_PEM.as_bytes(), 0o666), "EdDSA", "everybody on this host may write to it"),
        (&folder.path().display().to_string(), "RS256", "not a regular file"),
        (&folder.path().join("none").display().to_string(), "RS256", "cannot be read: No such file"),
        (&"jwt.pub".to_owned(), "RS256", "is not an absolute path"),
    ] {
        let error = error(path, algorithm);
        assert!(error.contains(part), "{path} {algorithm}: {error}");
    }
}

#[test]
fn the_example_of_auth_is_good() {
    let (config, warnings) =
        config::parse("auth.toml", text_of("conf/examples/auth.toml").as_bytes(), [], &[]).unwrap();
    assert_eq!(warnings, []);
    let auth = &config.auth;
    assert!(auth.enabled && auth.metrics_auth_required && auth.oidc.is_some());
    let keys = ["change-me-admin-key", "change-me-prod-deploy", "change-me-scraper"];
    for (known, (key, role)) in auth.api_keys.iter().zip(keys.into_iter().zip(["admin", "operator", "viewer"])) {
        assert!(bool::from(known.hash.matches(key)) && known.role.name() == role, "{}", known.name);
    }
    assert_eq!(config.firewall.rules[0].namespace.as_deref(), Some("prod"));
}

#[test]
fn rules_beyond_the_limit_are_counted_by_family() {
    let rules = |v4: usize, both: usize| {
        let rule = |n, ip| format!("[[firewall.rules]]\nid='r{n}'\npriority=1\naction='deny'\n{ip}\n");
        let rules = (0..v4 + both).map(|n| rule(n, if n < v4 { "src_ip='10.0.0.1'" } else { "" })).collect::<String>();
        parse(&format!("{MINIMAL}{rules}"))
    };
    assert_eq!(rules(4000, 96).unwrap().firewall.rules.len(), 4096);
    let error = rules(4000, 97).unwrap_err();
    assert!(
        error.contains("4097 rules for IPv4, and 4096 is the limit for each family (4000 with IPv4 addresses"),
        "{error}"
    );
}

#[test]
fn host_bits_are_dropped_with_a_warning() {
    let text = format!("{MINIMAL}[[firewall.rules]]\nid='a'\npriority=1\naction='deny'\nsrc_ip='10.1.2.3/8'");
    let (config, warnings) = config::parse("c.toml", text.as_bytes(), [], &[]).unwrap();
    assert_eq!(config.firewall.rules[0].matches.src_ip.unwrap().to_string(), "10.0.0.0/8");
    assert_eq!(
        warnings[0].to_string(),
        "c.toml:7:8: firewall.rules[0].src_ip: 10.1.2.3/8 has host bits; it means 10.0.0.0/8"
    );
}

#[test]
fn the_default_limit_is_one_of_the_rules() {
    let rules = |count: usize, section: &str| {
        let rule = |n| format!("[[ratelimit.rules]]\nid='r{n}'\npriority=1\nrate=1\n");
        parse(&format!("{MINIMAL}[ratelimit]\n{section}\n{}", (0..count).map(rule).collect::<String>()))
    };
    assert_eq!(rules(4096, "").unwrap().ratelimit.rules.len(), 4096);
    assert_eq!(rules(4095, "default_rate = 1").unwrap().ratelimit.rules.len(), 4095);
    let error = rules(4096, "default_rate = 1").unwrap_err();
    assert!(error.contains("ratelimit.rules: 4096 rules for IPv4, and 4095 is the limit for each family"), "{error}");
}

/// TOML and JSON of the same rule are read alike.
#[test]
fn toml_and_json_read_the_same_rule() {
    fn check<R: AnyRule + std::fmt::Debug + PartialEq>(rules: &[R]) {
        for rule in rules {
            let json = serde_json::to_vec(&rule.text()).unwrap();
            assert_eq!(read_rule_json::<R>(&json).as_ref(), Ok(rule));
        }
    }
    check(&parse(&text_of("conf/examples/firewall.toml")).unwrap().firewall.rules);
    check(&parse(&text_of("conf/examples/ratelimit.toml")).unwrap().ratelimit.rules);
    check(&parse(&text_of("conf/examples/l7.toml")).unwrap().l7.rules);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Whatever is done to a good text, reading it ends in what it says or in errors that stand inside it.
    #[test]
    fn mutations_never_panic(edits in edits()) {
        fuzz_config::run(&mutated(text_of("conf/examples/firewall.toml").into_bytes(), &edits));
        fuzz_config::run(&mutated(text_of("conf/examples/ratelimit.toml").into_bytes(), &edits));
        fuzz_config::run(&mutated(text_of("conf/examples/l7.toml").into_bytes(), &edits));
        fuzz_rule_json::run(&mutated(RULES_JSON.to_vec(), &edits));
        for rule in RULES_JSON.split(|&byte| byte == b'\n') {
            fuzz_rule_json::run(&mutated(rule.to_vec(), &edits[..1]));
        }
    }
}

const RULES_JSON: &[u8] = br#"[
{"id":"a","priority":1,"action":"allow","protocol":"tcp","src_ip":"10.0.0.0/8","dst_port":"80-443","tcp_flags":"S/SA"},
{"id":"b","priority":2,"action":"deny","protocol":"icmpv6","dst_ip":"2001:db8::1","icmp_type":"echo-request","log":true},
{"id":"c","priority":3,"action":"log","protocol":47,"vlan_id":0,"state":["new","related"],"interfaces":["eth0"]},
{"id":"d","priority":4,"action":"drop","src_port":53,"enabled":false,"description":"\u00e9 \"x\"","dst_ip":null},
{"id":"e","priority":5,"rate":"1.5M","burst":9,"unit":"packets","scope":"per_ip","ipv6_prefix_len":56,"action":"block","block_secs":60},
{"id":"f","priority":6,"rate":20000,"unit":"bits","algorithm":"sliding_window","scope":"global","action":"pass","state":null},
{"id":"g","priority":7,"action":"deny","protocol":"http","path":"/a*","header":{"X-a":"~b+","c":"=*"},"severity":"low","host":null},
{"id":"h","priority":8,"action":"allow","protocol":"smtp","to":"*@?.example","command":"=MAIL","dst_port":25}
]"#;

#[test]
fn the_fuzz_targets_take_the_corpus() {
    fuzz_config::run(text_of("conf/ebpfsentinel.toml").as_bytes());
    for example in ["firewall", "ratelimit", "l7", "tls", "audit", "auth"] {
        fuzz_config::run(text_of(&format!("conf/examples/{example}.toml")).as_bytes());
    }
    for entry in std::fs::read_dir(in_tree("tests/data/bad_configs")).unwrap() {
        let text = std::fs::read(entry.unwrap().path()).unwrap();
        fuzz_config::run(&text);
        fuzz_rule_json::run(&text);
    }
    fuzz_rule_json::run(RULES_JSON);
}

type Edit = (prop::sample::Index, u8, u8);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    prop::collection::vec((any::<prop::sample::Index>(), 0..6u8, any::<u8>()), 1..20)
}

/// Bytes overwritten, removed and inserted, pieces doubled and cut out, the end torn off.
fn mutated(mut text: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for &(index, kind, byte) in edits {
        if text.is_empty() {
            break;
        }
        let at = index.index(text.len());
        let piece = at..(at + byte as usize).min(text.len());
        match kind {
            0 => text[at] = byte,
            1 => drop(text.remove(at)),
            2 => text.insert(at, b"[]{}\"'=.,\n#\\"[byte as usize % 12]),
            3 => text.truncate(text.len() - (byte as usize).min(text.len() - 1)),
            4 => drop(text.splice(at..at, text[piece].to_vec()).count()),
            _ => drop(text.drain(piece).count()),
        }
    }
    text
}

#[test]
fn the_places_that_a_config_speaks_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let text = "[agent]\ninterfaces = ['eth0']\nstate_dir = '/srv/state'\nsocket = '/srv/run/agent.sock'\n\
        [audit]\nstorage_path = '/srv/trail/audit.redb'\n\
        [[firewall.rules]]\nid = 'a'\npriority = 1\naction = 'log'\ndescription = '/not/a/path'\n\
        [[l7.rules]]\nid = 'b'\npriority = 1\naction = 'log'\nprotocol = 'http'\npath = '/admin'\n\
        [[alerting.routes]]\nname = 'eve'\ndestination = 'eve'\npath = '/srv/eve/eve.json'\n\
        [[alerting.routes]]\nname = 'chat'\ndestination = 'webhook'\nwebhook_url_file = '@/chat.url'\n\
        webhook_headers = { X-Path = '/usr/bin/says' }\n";
    let url = folder.path().join("chat.url");
    std::fs::write(&url, "https://chat.example.org/hook").unwrap();
    std::fs::set_permissions(&url, std::fs::Permissions::from_mode(0o600)).unwrap();
    let text = text.replace('@', folder.path().to_str().unwrap());
    std::fs::write(&file, text).unwrap();
    let paths = config::load(&file, [], &[]).unwrap().paths;
    let write: Vec<&str> = paths.write.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(write, ["/srv/state", "/srv/run", "/srv/trail", "/srv/eve"]);
    assert!([folder.path(), &file, &url].iter().all(|path| paths.read.iter().any(|read| read == path)), "{paths:?}");
    let canonical = folder.path().canonicalize().unwrap();
    assert!(paths.read.iter().all(|path| path.starts_with(folder.path()) || path.starts_with(&canonical)), "{paths:?}");
}
