//! A route's destination as written -> as used, and section `[alerting.smtp]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lettre::message::Mailbox;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::Deliver;
use super::circuit::CircuitConfig;
use super::email::{EmailSink, Encryption, Server};
use super::eve::EveSink;
use super::log::LogSink;
use super::outlet::{Losses, OutletConfig};
use super::syslog::{Format, Header, SyslogSink, Target, Transport};
use super::webhook::{SIGNATURE_HEADER, Shape, TIMESTAMP_HEADER, Template, WebhookSink};
use crate::outbound::{CaFile, Client, ClientConfig, Url};
use crate::secret::Secret;
use crate::written::{Bytes, Field, Reader};

/// Addresses of one mail, at most.
const RECIPIENTS_MAX: usize = 50;
/// Headers of a webhook, at most.
const HEADERS_MAX: usize = 32;
/// Longest template, in bytes.
const TEMPLATE_MAX: usize = 16 << 10;
const SPOOL_MIN: u64 = 1 << 20;
const FILE_SIZE_MIN: u64 = 64 << 10;

/// Keys that only some destinations have.
const OWN_KEYS: &[(&str, &[&str])] = &[
    ("path", &["eve"]),
    ("max_size", &["eve"]),
    ("keep", &["eve"]),
    ("host", &["syslog"]),
    ("port", &["syslog"]),
    ("transport", &["syslog"]),
    ("format", &["syslog"]),
    ("facility", &["syslog"]),
    ("max_message", &["syslog"]),
    ("webhook_url", &["webhook"]),
    ("webhook_url_file", &["webhook"]),
    ("webhook_url_credential", &["webhook"]),
    ("webhook_headers", &["webhook"]),
    ("webhook_secret", &["webhook"]),
    ("webhook_secret_file", &["webhook"]),
    ("webhook_secret_credential", &["webhook"]),
    ("webhook_template", &["webhook"]),
    ("webhook_batch", &["webhook"]),
    ("allow_private", &["webhook"]),
    ("insecure", &["webhook"]),
    ("email_to", &["email"]),
    ("digest_secs", &["email"]),
    ("digest_max", &["email"]),
    ("ca_file", &["syslog", "webhook"]),
    ("spool", &["syslog", "webhook", "email"]),
    ("timeout_secs", &["syslog", "webhook", "email"]),
    ("give_up_secs", &["syslog", "webhook", "email"]),
    ("breaker_failures", &["syslog", "webhook", "email"]),
    ("breaker_secs", &["syslog", "webhook", "email"]),
];

const KINDS: &[(&str, Kind)] = &[
    ("log", Kind::Log),
    ("eve", Kind::Eve),
    ("syslog", Kind::Syslog),
    ("webhook", Kind::Webhook),
    ("email", Kind::Email),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Log,
    Eve,
    Syslog,
    Webhook,
    Email,
}

const TRANSPORTS: &[(&str, Transport)] = &[("udp", Transport::Udp), ("tcp", Transport::Tcp), ("tls", Transport::Tls)];
const FORMATS: &[(&str, Format)] = &[("rfc5424", Format::Rfc5424), ("cef", Format::Cef)];
const ENCRYPTIONS: &[(&str, Encryption)] =
    &[("starttls", Encryption::StartTls), ("tls", Encryption::Tls), ("none", Encryption::None)];
/// Facilities of syslog that are anybody's to use, by their common names.
const FACILITIES: &[(&str, u8)] = &[
    ("user", 1),
    ("daemon", 3),
    ("auth", 4),
    ("authpriv", 10),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

fn word_of<T: Copy + PartialEq, S: Serializer>(
    words: &[(&'static str, T)],
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let word = words.iter().find(|(_, meaning)| meaning == value).map_or("", |(word, _)| word);
    serializer.serialize_str(word)
}

fn transport_word<S: Serializer>(value: &Transport, serializer: S) -> Result<S::Ok, S::Error> {
    word_of(TRANSPORTS, value, serializer)
}

fn format_word<S: Serializer>(value: &Format, serializer: S) -> Result<S::Ok, S::Error> {
    word_of(FORMATS, value, serializer)
}

fn encryption_word<S: Serializer>(value: &Encryption, serializer: S) -> Result<S::Ok, S::Error> {
    word_of(ENCRYPTIONS, value, serializer)
}

fn facility_word<S: Serializer>(value: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    word_of(FACILITIES, value, serializer)
}

fn url_text<S: Serializer>(url: &Url, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(url)
}

/// Where a route's alerts go, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Destination {
    /// The way out, by `destination`.
    #[serde(flatten)]
    pub way: Way,
    /// How long a delivery may take, in seconds, 1 to 60.
    pub timeout_secs: u64,
    /// Age of alerts, in seconds, 60 to 2592000, that an attempt that fails gives up, in queue and spool.
    pub give_up_secs: u64,
    /// Failures in a row after which nothing is tried for a while, 1 to 100.
    pub breaker_failures: u32,
    /// How long that while is, in seconds, 1 to 3600.
    pub breaker_secs: u64,
    /// Bytes of alerts that are kept on the disk until they are sent; `null`: none, they wait in memory.
    pub spool: Option<u64>,
}

/// The ways out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "destination", rename_all = "lowercase")]
pub enum Way {
    /// The agent's own log.
    Log,
    /// A file of EVE JSON.
    Eve(EveConfig),
    /// A syslog receiver.
    Syslog(SyslogConfig),
    /// A URL.
    Webhook(WebhookConfig),
    /// Mails.
    Email(EmailConfig),
}

/// A file of EVE JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EveConfig {
    /// The file, absolute.
    pub path: PathBuf,
    /// Bytes at which it is rotated; 0: never.
    pub max_size: u64,
    /// Old files that are kept, 0 to 100.
    pub keep: u32,
}

/// A syslog receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SyslogConfig {
    /// Name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `udp`, `tcp` or `tls`.
    #[serde(serialize_with = "transport_word")]
    #[schemars(with = "String")]
    pub transport: Transport,
    /// `rfc5424` or `cef`.
    #[serde(serialize_with = "format_word")]
    #[schemars(with = "String")]
    pub format: Format,
    /// The facility's name.
    #[serde(serialize_with = "facility_word")]
    #[schemars(with = "String")]
    pub facility: u8,
    /// Longest message in bytes, 480 to 65000.
    pub max_message: usize,
    /// Certificates that are trusted beside those of the system.
    pub ca_file: Option<CaFile>,
}

/// A URL that alerts are posted to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct WebhookConfig {
    /// The URL, shown without its path.
    #[serde(serialize_with = "url_text")]
    #[schemars(with = "String")]
    pub webhook_url: Url,
    /// More headers: name and value, which is not shown.
    pub webhook_headers: Vec<(String, Secret)>,
    /// The key of the signature.
    pub webhook_secret: Option<Secret>,
    /// The body for one alert, which is not shown, as it may hold a key; `null`: the alert as it is.
    #[schemars(with = "Option<Secret>")]
    pub webhook_template: Option<Template>,
    /// Alerts in one body, 1 to 1000: 1 is an object, more are an array.
    pub webhook_batch: usize,
    /// Whether it may be this host or one of its networks.
    pub allow_private: bool,
    /// Whether it may be `http`.
    pub insecure: bool,
    /// Certificates that are trusted beside those of the system.
    pub ca_file: Option<CaFile>,
}

/// Mails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EmailConfig {
    /// To whom.
    pub email_to: Vec<String>,
    /// Seconds from mail to mail, 0 to 86400; what comes meanwhile is one mail.
    pub digest_secs: u64,
    /// Alerts in one mail, 1 to 1000.
    pub digest_max: usize,
    /// By which server.
    #[serde(skip)]
    pub smtp: SmtpConfig,
}

/// Section `[alerting.smtp]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SmtpConfig {
    /// Name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `starttls`, `tls` or `none`.
    #[serde(serialize_with = "encryption_word")]
    #[schemars(with = "String")]
    pub tls: Encryption,
    /// The account, if the server wants one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Who sends.
    pub from_address: String,
    /// Whether mails, and the password, may go to another host in the clear.
    pub insecure: bool,
    /// Certificates that are trusted beside those of the system.
    pub ca_file: Option<CaFile>,
}

/// Reads the key `ca_file`.
fn read_ca_file(field: &Field<'_>) -> Option<CaFile> {
    CaFile::load(read_path(field)?).inspect_err(|why| field.error(why)).ok()
}

impl Destination {
    /// The agent's log: where alerts go when nothing is said.
    pub fn log() -> Destination {
        let (timeout_secs, give_up_secs, breaker_failures, breaker_secs) = DELIVERY;
        Destination { way: Way::Log, timeout_secs, give_up_secs, breaker_failures, breaker_secs, spool: None }
    }

    /// Reads `destination` and the keys that go with it out of a route. `None` means that something is wrong, which is
    /// noted. The caller reads the route's other keys and finishes the reader.
    pub fn read(r: &mut Reader<'_>, smtp: Option<&SmtpConfig>) -> Option<Destination> {
        let field = r.key("destination");
        let kind = field.one_of(KINDS);
        if !field.is_present() {
            field.error("missing; this key is required: log, eve, syslog, webhook or email");
        }
        let Some(kind) = kind else {
            // All keys are known then: of those that belong to what was meant none is a mistake.
            learn(r);
            return None;
        };
        let word = KINDS.iter().find(|(_, known)| *known == kind).map_or("", |(word, _)| word);
        for (name, kinds) in OWN_KEYS.iter().filter(|(_, kinds)| !kinds.contains(&word)) {
            let owners = kinds.iter().map(|kind| format!("\"{kind}\"")).collect::<Vec<_>>().join(" or ");
            r.refuse(name, format!("goes with destination = {owners}; here it is \"{word}\""));
        }
        let mut destination = Destination::log();
        let way = match kind {
            Kind::Log => Some(Way::Log),
            Kind::Eve => read_eve(r).map(Way::Eve),
            Kind::Syslog => read_syslog(r).map(Way::Syslog),
            Kind::Webhook => read_webhook(r).map(Way::Webhook),
            Kind::Email => read_email(r, &field, smtp).map(Way::Email),
        };
        if !matches!(kind, Kind::Log | Kind::Eve) {
            read_delivery(r, &mut destination);
        }
        destination.way = way?;
        Some(destination)
    }

    /// The word of `destination`.
    pub fn word(&self) -> &'static str {
        match &self.way {
            Way::Log => "log",
            Way::Eve(_) => "eve",
            Way::Syslog(_) => "syslog",
            Way::Webhook(_) => "webhook",
            Way::Email(_) => "email",
        }
    }

    /// The file that it writes to, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.way {
            Way::Eve(eve) => Some(&eve.path),
            _ => None,
        }
    }

    /// How its outlet works.
    pub fn outlet(&self) -> OutletConfig {
        let mut config = OutletConfig {
            give_up: Duration::from_secs(self.give_up_secs),
            circuit: CircuitConfig {
                failures_max: self.breaker_failures,
                open: Duration::from_secs(self.breaker_secs),
                ..OutletConfig::default().circuit
            },
            ..OutletConfig::default()
        };
        match &self.way {
            Way::Log | Way::Syslog(_) => {}
            // A disk that has room again is used again soon.
            Way::Eve(_) => config.circuit.open = Duration::from_secs(5),
            Way::Webhook(webhook) => config.batch_max = webhook.webhook_batch,
            Way::Email(email) => {
                config.batch_max = email.digest_max;
                config.linger = Duration::from_secs(email.digest_secs);
            }
        }
        config
    }

    /// What sends there, and counts whom of several it does not reach.
    pub(super) fn deliver(&self, losses: &Losses) -> Result<Box<dyn Deliver>, String> {
        let timeout = Duration::from_secs(self.timeout_secs);
        Ok(match &self.way {
            Way::Log => Box::new(LogSink),
            Way::Eve(eve) => Box::new(EveSink::new(eve.path.clone(), eve.max_size, eve.keep)),
            Way::Syslog(syslog) => {
                let host = nix::unistd::gethostname().unwrap_or_default();
                let header = Header::new(syslog.facility, &host.to_string_lossy(), std::process::id());
                let target = Target {
                    host: syslog.host.clone(),
                    port: syslog.port,
                    transport: syslog.transport,
                    ca_file: syslog.ca_file.as_ref().map(|file| file.path().to_owned()),
                    timeout,
                };
                Box::new(SyslogSink::new(target, header, syslog.format, syslog.max_message)?)
            }
            Way::Webhook(webhook) => {
                let client = Client::new(ClientConfig {
                    allow_private: webhook.allow_private,
                    insecure: webhook.insecure,
                    ca_file: webhook.ca_file.as_ref().map(|file| file.path().to_owned()),
                    timeout,
                    ..ClientConfig::default()
                })?;
                let shape = match &webhook.webhook_template {
                    Some(template) => Shape::Template(template.clone()),
                    None if webhook.webhook_batch > 1 => Shape::Many,
                    None => Shape::One,
                };
                let (url, headers) = (webhook.webhook_url.clone(), webhook.webhook_headers.clone());
                Box::new(WebhookSink::new(client, url, headers, webhook.webhook_secret.clone(), shape))
            }
            Way::Email(email) => {
                let mailbox = |text: &String| text.parse::<Mailbox>().map_err(|error| error.to_string());
                let to = email.email_to.iter().map(mailbox).collect::<Result<_, _>>()?;
                let smtp = &email.smtp;
                let server = Server {
                    host: &smtp.host,
                    port: smtp.port,
                    encryption: smtp.tls,
                    login: smtp.username.as_deref().zip(smtp.password.as_ref()),
                    ca_file: smtp.ca_file.as_ref().map(CaFile::path),
                    timeout,
                };
                Box::new(EmailSink::new(&server, mailbox(&smtp.from_address)?, to, losses.clone())?)
            }
        })
    }
}

/// Defaults: timeout, give up, failures and pause of the breaker.
const DELIVERY: (u64, u64, u32, u64) = (10, 86_400, 5, 60);

/// Asks for the keys of all destinations, so that they are known as keys.
fn learn(r: &mut Reader<'_>) {
    for (name, _) in OWN_KEYS {
        let field = r.key(name);
        if !field.is_present() {
            let _ = field.text();
        }
    }
}

fn read_delivery(r: &mut Reader<'_>, destination: &mut Destination) {
    let (timeout, give_up, failures, pause) = DELIVERY;
    destination.timeout_secs = r.key("timeout_secs").integer(1..=60).unwrap_or(timeout);
    destination.give_up_secs = r.key("give_up_secs").integer(60..=2_592_000).unwrap_or(give_up);
    destination.breaker_failures = r.key("breaker_failures").integer(1..=100).unwrap_or(failures);
    destination.breaker_secs = r.key("breaker_secs").integer(1..=3600).unwrap_or(pause);
    let field = r.key("spool");
    destination.spool = field.parse_or_integer::<Bytes>().map(|bytes| bytes.0);
    if destination.spool.is_some_and(|bytes| bytes < SPOOL_MIN) {
        field.error("give 1MiB or more, or leave it out");
    }
}

fn read_path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    let path = Path::new(text);
    if !path.is_absolute() || path.file_name().is_none() || text.contains('\0') {
        field.error(format!("\"{}\" is not the absolute path of a file", text.escape_debug()));
        return None;
    }
    Some(path.to_owned())
}

fn read_eve(r: &mut Reader<'_>) -> Option<EveConfig> {
    let (path, size, keep) = (r.key("path").required(), r.key("max_size"), r.key("keep"));
    let max_size = size.parse_or_integer::<Bytes>().map_or(100 << 20, |bytes| bytes.0);
    if max_size > 0 && max_size < FILE_SIZE_MIN {
        size.error("give 64KiB or more, or 0 for a file that is never rotated");
    }
    let keep = keep.integer(0..=100).unwrap_or(5);
    Some(EveConfig { path: read_path(&path)?, max_size, keep })
}

fn read_host(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let is_name = text.len() <= 253 && text.trim_end_matches('.').split('.').all(is_label);
    if text.parse::<std::net::IpAddr>().is_err() && !is_name {
        field.error(format!(
            "\"{}\" is neither a name nor an address; the port is a key of its own",
            text.escape_debug()
        ));
        return None;
    }
    Some(text.to_owned())
}

fn read_syslog(r: &mut Reader<'_>) -> Option<SyslogConfig> {
    let host = read_host(&r.key("host").required());
    let transport = r.key("transport").one_of(TRANSPORTS).unwrap_or(Transport::Udp);
    let port = r.key("port").integer(1..=65535u16);
    let format = r.key("format").one_of(FORMATS).unwrap_or(Format::Rfc5424);
    let facility = r.key("facility").one_of(FACILITIES).unwrap_or(16);
    let message_max = r.key("max_message").integer(480..=65_000usize);
    let ca_field = r.key("ca_file");
    let ca_file = read_ca_file(&ca_field);
    if ca_field.is_present() && transport != Transport::Tls {
        ca_field.error("goes with transport = \"tls\"");
    }
    // What receivers of each take without being asked to.
    let (port_default, message_default) = match transport {
        Transport::Udp => (514, 2048),
        Transport::Tcp => (601, 8192),
        Transport::Tls => (6514, 8192),
    };
    Some(SyslogConfig {
        host: host?,
        port: port.unwrap_or(port_default),
        transport,
        format,
        facility,
        max_message: message_max.unwrap_or(message_default),
        ca_file,
    })
}

fn read_webhook(r: &mut Reader<'_>) -> Option<WebhookConfig> {
    let insecure = r.key("insecure").boolean().unwrap_or(false);
    let allow_private = r.key("allow_private").boolean().unwrap_or(false);
    let url = Secret::read_required(r, "webhook_url");
    let fields = [r.key("webhook_url"), r.key("webhook_url_file"), r.key("webhook_url_credential")];
    let url_field = fields.iter().find(|field| field.is_present()).unwrap_or(&fields[0]);
    let url = url.and_then(|url| {
        Url::parse(url.expose().trim(), insecure, allow_private).inspect_err(|why| url_field.error(why)).ok()
    });
    let webhook_headers = read_headers(&r.key("webhook_headers"));
    let webhook_secret = Secret::read(r, "webhook_secret");
    let template_field = r.key("webhook_template");
    let template = template_field.text().and_then(|text| {
        if text.len() > TEMPLATE_MAX {
            template_field.error(format!("{} bytes, and {TEMPLATE_MAX} is the limit", text.len()));
            return None;
        }
        Template::parse(text).inspect_err(|why| template_field.error(why)).ok()
    });
    let batch_field = r.key("webhook_batch");
    let webhook_batch = batch_field.integer(1..=1000usize).unwrap_or(1);
    if webhook_batch > 1 && template_field.is_present() {
        batch_field.error("a template is for one alert; leave webhook_batch out");
    }
    let ca_file = read_ca_file(&r.key("ca_file"));
    Some(WebhookConfig {
        webhook_url: url?,
        webhook_headers,
        webhook_secret,
        webhook_template: template,
        webhook_batch,
        allow_private,
        insecure,
        ca_file,
    })
}

/// Headers that are the client's to set, or that would say where a body ends.
const RESERVED_HEADERS: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "expect",
    "te",
    "trailer",
    "upgrade",
    "content-type",
];

fn read_headers(field: &Field<'_>) -> Vec<(String, Secret)> {
    let entries = field.entries().unwrap_or_default();
    if entries.len() > HEADERS_MAX {
        field.error(format!("{} headers, and {HEADERS_MAX} is the limit", entries.len()));
        return Vec::new();
    }
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let mut headers = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let lower = name.to_ascii_lowercase();
        let ours = [TIMESTAMP_HEADER, SIGNATURE_HEADER].iter().any(|ours| ours.eq_ignore_ascii_case(name));
        if name.is_empty() || name.len() > 128 || !name.bytes().all(is_token) {
            entry.error("not a name of a header");
            continue;
        }
        if ours || RESERVED_HEADERS.contains(&lower.as_str()) {
            entry.error("this header is set by the agent");
            continue;
        }
        let value = match entry.as_text() {
            Some(text) => Some(Secret::new(text)),
            // Values that are secrets may stand elsewhere.
            None => entry.table().and_then(|mut r| {
                let value = Secret::read_required(&mut r, "value");
                r.finish();
                value
            }),
        };
        let Some(value) = value else { continue };
        let is_text = |byte: u8| matches!(byte, b'\t' | b' '..=b'~');
        if value.expose().len() > 8192 || !value.expose().bytes().all(is_text) {
            entry.error("a header's value is one line of printable ASCII");
            continue;
        }
        headers.push((name.to_owned(), value));
    }
    headers
}

fn read_mailbox(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.parse::<Mailbox>().is_err() || text.chars().any(char::is_control) {
        let shown: String = text.chars().take(100).flat_map(char::escape_debug).collect();
        field.error(format!("\"{shown}\" is not a mail address, such as soc@example.org or SOC <soc@example.org>"));
        return None;
    }
    Some(text.to_owned())
}

fn read_email(r: &mut Reader<'_>, destination: &Field<'_>, smtp: Option<&SmtpConfig>) -> Option<EmailConfig> {
    let to_field = r.key("email_to").required();
    let items = to_field.items().unwrap_or_default();
    if to_field.is_list() && items.is_empty() {
        to_field.error("the list is empty; name somebody");
    }
    if items.len() > RECIPIENTS_MAX {
        to_field.error(format!("{} addresses, and {RECIPIENTS_MAX} is the limit", items.len()));
    }
    let email_to: Vec<String> = items.iter().take(RECIPIENTS_MAX).filter_map(read_mailbox).collect();
    let digest_secs = r.key("digest_secs").integer(0..=86_400).unwrap_or(60);
    let digest_max = r.key("digest_max").integer(1..=1000usize).unwrap_or(100);
    if smtp.is_none() {
        destination.error("mails need a server; write it in [alerting.smtp]");
    }
    Some(EmailConfig { email_to, digest_secs, digest_max, smtp: smtp?.clone() })
}

impl SmtpConfig {
    /// Reads the section; `None` if it is not there, or if something is wrong, which is noted.
    pub fn read(field: &Field<'_>) -> Option<SmtpConfig> {
        let is_present = field.is_present();
        let mut r = field.table()?;
        let host_field = r.key("host");
        let host = read_host(&host_field);
        let from_field = r.key("from_address");
        let from_address = read_mailbox(&from_field);
        let tls_field = r.key("tls");
        let tls = tls_field.one_of(ENCRYPTIONS).unwrap_or(Encryption::StartTls);
        let port = r.key("port").integer(1..=65535u16);
        let username_field = r.key("username");
        let username = username_field.text().map(str::to_owned);
        let password = Secret::read(&mut r, "password");
        let insecure = r.key("insecure").boolean().unwrap_or(false);
        let ca_field = r.key("ca_file");
        let ca_file = read_ca_file(&ca_field);
        r.finish();
        if is_present {
            host_field.required();
            from_field.required();
        }
        if username.is_some() != password.is_some() {
            username_field.error("username and password go together");
        }
        let is_local = host.as_deref().is_some_and(|host| {
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        });
        if tls == Encryption::None && !insecure && !is_local && host.is_some() {
            tls_field.error("mails to another host would go in the clear; use starttls or tls, or set insecure = true");
        }
        if ca_field.is_present() && tls == Encryption::None {
            ca_field.error("goes with tls = \"starttls\" or \"tls\"");
        }
        let port_default = match tls {
            Encryption::StartTls => 587,
            Encryption::Tls => 465,
            Encryption::None => 25,
        };
        let port = port.unwrap_or(port_default);
        Some(SmtpConfig { host: host?, port, tls, username, password, from_address: from_address?, insecure, ca_file })
    }
}

#[cfg(test)]
mod tests;
