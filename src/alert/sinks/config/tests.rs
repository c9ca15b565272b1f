use super::*;
use crate::written::Document;

fn read(toml: &str) -> Result<Destination, Vec<String>> {
    let document = Document::toml("c", toml.as_bytes()).unwrap();
    let outcome = document.read(|root| {
        let mut r = root.table().unwrap();
        let smtp = SmtpConfig::read(&r.key("smtp"));
        let destination = Destination::read(&mut r, smtp.as_ref());
        r.finish();
        destination
    });
    let errors = |errors: Vec<crate::written::WrittenError>| errors.iter().map(ToString::to_string).collect();
    outcome.into_result().map_err(errors).map(Option::unwrap)
}

#[test]
fn defaults_are_those_that_are_documented() {
    assert_eq!(read("destination = 'log'").unwrap(), Destination::log());
    let eve = read("destination = 'eve'\npath = '/var/log/eve.json'").unwrap();
    let want = EveConfig { path: "/var/log/eve.json".into(), max_size: 100 << 20, keep: 5 };
    assert_eq!(eve.way, Way::Eve(want));
    for (transport, port, max) in [("udp", 514, 2048), ("tcp", 601, 8192), ("tls", 6514, 8192)] {
        let text = format!("destination = 'syslog'\nhost = 'logs.example.org'\ntransport = '{transport}'");
        let Way::Syslog(syslog) = read(&text).unwrap().way else { panic!() };
        assert_eq!((syslog.port, syslog.max_message, syslog.facility), (port, max, 16));
    }
    let text = "destination = 'webhook'\nwebhook_url = 'https://example.org/s3cret'\nspool = '64MiB'";
    let webhook = read(text).unwrap();
    assert_eq!((webhook.spool, webhook.timeout_secs, webhook.breaker_failures), (Some(64 << 20), 10, 5));
    assert_eq!(webhook.outlet().batch_max, 1);
    for (tls, port) in [("starttls", 587), ("tls", 465)] {
        let text = format!(
            "destination = 'email'\nemail_to = ['SOC <soc@example.org>']\n[smtp]\nhost = 'mail.example.org'\n\
             from_address = 'a@example.org'\ntls = '{tls}'"
        );
        let email = read(&text).unwrap();
        let Way::Email(mail) = &email.way else { panic!() };
        assert_eq!((mail.smtp.port, mail.digest_secs, mail.digest_max), (port, 60, 100));
        assert_eq!(email.outlet().linger, Duration::from_secs(60));
    }
}

#[test]
fn secrets_are_not_shown() {
    let text = "destination = 'webhook'\nwebhook_url = 'https://example.org/s3cret'\nwebhook_secret = 's3cret'\n\
                webhook_headers.Authorization = 'Bearer s3cret'\n\
                webhook_template = '{\"routing_key\": \"s3cret\", \"summary\": \"{message}\"}'";
    let webhook = read(text).unwrap();
    let shown = serde_json::to_value(&webhook).unwrap();
    assert_eq!(shown["webhook_url"], "https://example.org/***");
    assert_eq!((&shown["destination"], &shown["webhook_secret"]), (&"webhook".into(), &"***".into()));
    assert_eq!(shown["webhook_headers"], serde_json::json!([["Authorization", "***"]]));
    assert_eq!(shown["webhook_template"], "***");
    assert!(!format!("{webhook:?} {shown}").contains("s3cret"));
    let text = "destination = 'email'\nemail_to = ['a@example.org']\n[smtp]\nhost = 'm'\nfrom_address = 'a@example.org'\n\
                username = 'u'\npassword = 's3cret'";
    let email = read(text).unwrap();
    assert!(!format!("{email:?} {}", serde_json::to_value(&email).unwrap()).contains("s3cret"));
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "s3cret").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let check = |toml: &str, wants: &[&str]| {
        let errors = read(toml).unwrap_err();
        let fits = errors.len() == wants.len() && errors.iter().zip(wants).all(|(error, want)| error.contains(want));
        assert!(fits && errors.iter().all(|error| !error.contains("s3cret")), "{toml}\n{errors:#?}");
    };
    check("", &["destination: missing; this key is required: log, eve"]);
    check(
        "destination = 'hook'\nwebhook_url = 'x'\nspool = '1MiB'",
        &["\"hook\" is not known here; use log, eve, syslog"],
    );
    check("destination = 'log'\npath = '/x'", &["path: goes with destination = \"eve\"; here it is \"log\""]);
    check(
        "destination = 'eve'\npath = '/x'\nspool = '1MiB'",
        &["spool: goes with destination = \"syslog\" or \"webhook\" or"],
    );
    check("destination = 'log'\npaht = '/x'", &["paht: unknown key"]);
    check("destination = 'eve'", &["path: missing"]);
    check(
        "destination = 'eve'\npath = 'x'\nmax_size = '1KiB'\nkeep = 101",
        &[
            "path: \"x\" is not the absolute path of a file",
            "max_size: give 64KiB or more",
            "keep: expected an integer from 0 to 100",
        ],
    );
    check("destination = 'syslog'", &["host: missing"]);
    check(
        "destination = 'syslog'\nhost = 'a:514'\nport = 0\ntransport = 'sctp'\nformat = 'leef'\nfacility = 'kern'\nmax_message = 479",
        &[
            "host: \"a:514\" is neither a name nor an address; the port is a key of its own",
            "port: expected an integer from 1 to 65535",
            "transport: \"sctp\" is not known here; use udp, tcp or tls",
            "format: \"leef\" is not known here; use rfc5424 or cef",
            "facility: \"kern\" is not known here; use user,",
            "max_message: expected an integer from 480 to 65000",
        ],
    );
    check(
        "destination = 'syslog'\nhost = 'a'\nca_file = '/nowhere/ca.pem'",
        &[
            "ca_file: /nowhere/ca.pem: cannot be read: No such file or directory",
            "ca_file: goes with transport = \"tls\"",
        ],
    );
    check(
        "destination = 'webhook'",
        &["webhook_url: missing; write webhook_url, webhook_url_file or webhook_url_credential"],
    );
    check(
        "destination = 'webhook'\nwebhook_url = 'http://example.org/s3cret'",
        &["webhook_url: http is neither encrypted"],
    );
    check(
        "destination = 'webhook'\nwebhook_url = 'https://192.168.0.1/s3cret'",
        &["set allow_private = true if that is meant"],
    );
    check(
        "destination = 'webhook'\nwebhook_url = 'https://169.254.169.254/'\nallow_private = true",
        &["never connected to"],
    );
    check(&format!("destination = 'webhook'\nwebhook_url_file = '{}'", secret.display()), &["mode 0644"]);
    let url = "destination = 'webhook'\nwebhook_url = 'https://example.org/s3cret'\n";
    check(&format!("{url}webhook_template = '{{\"text\": {{message}}}}'"), &["fields stand in quotes"]);
    check(
        &format!("{url}webhook_batch = 2\nwebhook_template = '{{\"text\": \"{{message}}\"}}'"),
        &["a template is for one alert"],
    );
    check(&format!("{url}webhook_batch = 0"), &["an integer from 1 to 1000"]);
    check(
        &format!("{url}timeout_secs = 61\ngive_up_secs = 1\nbreaker_failures = 0\nbreaker_secs = 0\nspool = '1KiB'"),
        &[
            "timeout_secs: expected",
            "give_up_secs: expected",
            "breaker_failures: expected",
            "breaker_secs: expected",
            "spool: give 1MiB or more",
        ],
    );
    check(
        &format!(
            "{url}webhook_headers = {{ Host = 'x', 'X Y' = 'x', X-Ebpfsentinel-Signature = 'x', A = \"s3cret\\n\", B = {{}} }}"
        ),
        &[
            "webhook_headers.Host: this header is set by the agent",
            "webhook_headers.X Y: not a name of a header",
            "webhook_headers.X-Ebpfsentinel-Signature: this header is set by the agent",
            "webhook_headers.A: a header's value is one line of printable ASCII",
            "webhook_headers.B.value: missing",
        ],
    );
    check("destination = 'email'\nemail_to = []", &["destination: mails need a server", "email_to: the list is empty"]);
    let smtp = "[smtp]\nhost = 'mail.example.org'\nfrom_address = 'a@example.org'\n";
    let email = "destination = 'email'\nemail_to = ['a@example.org']\n";
    check(
        &format!("destination = 'email'\nemail_to = ['a', \"a@b\\r\\nBcc: c@d\"]\n{smtp}"),
        &["email_to[0]: \"a\" is not a mail address", "email_to[1]: \"a@b\\r\\nBcc: c@d\" is not a mail address"],
    );
    check(
        &format!("{email}digest_secs = 86401\ndigest_max = 0\n{smtp}"),
        &["digest_secs: expected", "digest_max: expected"],
    );
    check(&format!("{email}{smtp}username = 'u'"), &["smtp.username: username and password go together"]);
    check(&format!("{email}{smtp}tls = 'none'"), &["smtp.tls: mails to another host would go in the clear"]);
    check(&format!("{email}{smtp}tls = true"), &["smtp.tls: expected a string"]);
    check("destination = 'log'\n[smtp]\nport = 25", &["smtp.host: missing", "smtp.from_address: missing"]);
}
