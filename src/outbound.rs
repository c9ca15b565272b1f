//! The one HTTP client for what the agent asks of others: webhooks, feeds, keys of token issuers.
//!
//! An address that somebody else chose must not lead into this host or its networks. So a name is resolved once, every
//! address that comes of it is checked, and the connection goes to one that was checked: there is no second look-up whose
//! answer could differ. Redirects are followed only on request, and each hop is checked in the same way. Proxies of the
//! environment are not used, TLS is verified against the roots of the system and those of `ca_file`, and sizes and times
//! have limits.

use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};
use ureq::config::Config;
use ureq::http::{Method, Request, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

use crate::secret::MASK;

/// Longest URL, in bytes.
pub const URL_MAX: usize = 2048;
/// Longest head of an answer, in bytes.
const HEAD_MAX: usize = 16 << 10;
/// How much of an answer that is no document is read and left.
const SCRAP_MAX: u64 = 4 << 10;
/// Certificates in a `ca_file`, at most.
const CA_MAX: usize = 1000;
/// Longest `ca_file`, in bytes.
const CA_FILE_MAX: u64 = 4 << 20;

/// Makes aws-lc-rs the provider of cryptography for every user of rustls in this process. May be called again.
pub fn install_crypto() {
    // The error says that there is one already, which is this one: no other is compiled in.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Where a client may not go, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// This host and the networks that are not of the internet: open to those who set `allow_private`.
    Private(&'static str),
    /// Open to nobody.
    Never(&'static str),
}

impl Forbidden {
    fn what(self) -> &'static str {
        match self {
            Forbidden::Private(what) | Forbidden::Never(what) => what,
        }
    }
}

/// Whether an address is none of the internet. Addresses of IPv6 that stand for one of IPv4 are judged by that one.
pub fn forbidden(address: IpAddr) -> Option<Forbidden> {
    match address {
        IpAddr::V4(address) => forbidden_v4(address),
        IpAddr::V6(address) => forbidden_v6(address),
    }
}

fn forbidden_v4(address: Ipv4Addr) -> Option<Forbidden> {
    use Forbidden::{Never, Private};
    let octets = address.octets();
    Some(match octets {
        // Where clouds tell a machine its secrets.
        [169, 254, 169, 254] | [100, 100, 100, 200] | [192, 0, 0, 192] | [168, 63, 129, 16] => {
            Never("metadata service of a cloud")
        }
        [0, ..] => Never("unspecified"),
        [127, ..] => Private("loopback"),
        [10, ..] | [192, 168, ..] => Private("private"),
        [172, 16..=31, ..] => Private("private"),
        [100, 64..=127, ..] => Private("carrier-grade NAT"),
        [169, 254, ..] => Never("link-local"),
        [192, 0, 0, _] | [192, 88, 99, _] => Never("reserved"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Private("documentation"),
        [198, 18..=19, ..] => Private("benchmarking"),
        [224..=239, ..] => Never("multicast"),
        [240..=255, ..] => Never("reserved"),
        _ => return None,
    })
}

fn forbidden_v6(address: Ipv6Addr) -> Option<Forbidden> {
    use Forbidden::{Never, Private};
    let segments = address.segments();
    let v4 = |high: u16, low: u16| forbidden_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    Some(match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Never("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Private("loopback"),
        // IPv4 in another coat: compatible, mapped, translated, NAT64, 6to4.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => return v4(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => return v4(high, low),
        [0x64, 0xff9b, 1, _, _, _, high, low] if matches!(v4(high, low), Some(Never(_))) => return v4(high, low),
        [0x64, 0xff9b, 1, ..] => Private("local NAT64"),
        [0x2001, 0, ..] => Never("Teredo"),
        // Where clouds tell a machine its secrets: all that Amazon (also those of a pod), Google and Oracle keep for
        // their own services, and the one of Scaleway, whose block is anybody's.
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] | [0xfd00, 0xc1, ..] | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42] => {
            Never("metadata service of a cloud")
        }
        [0xfc00..=0xfdff, ..] => Private("unique local"),
        [0xfe80..=0xfebf, ..] => Never("link-local"),
        [0xfec0..=0xfeff, ..] => Private("site-local"),
        [0xff00..=0xffff, ..] => Never("multicast"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Private("documentation"),
        [0x2001, 0x2, 0, ..] => Private("benchmarking"),
        [0x100, 0, 0, 0, ..] => Never("discard"),
        // ISATAP: the last half says which IPv4 address it goes to.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] if v4(high, low).is_some() => return v4(high, low),
        // The internet is 2000::/3; the first 64 bits of its IETF block hold protocols, not hosts.
        [0x2001, 0x10..=0x3f, ..] => Never("reserved"),
        [0x2000..=0x3fff, ..] => return None,
        _ => Never("reserved"),
    })
}

/// A URL that may be asked, as far as that can be seen without resolving its name. Displays without its path, which in
/// many a webhook is the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    uri: Uri,
}

impl Url {
    /// Checks a URL. `insecure` allows `http`, `allow_private` addresses of this host and its networks.
    pub fn parse(text: &str, insecure: bool, allow_private: bool) -> Result<Url, String> {
        if text.len() > URL_MAX {
            return Err(format!("a URL of {} bytes, and {URL_MAX} is the limit", text.len()));
        }
        // The parser's own message would show what may be a secret.
        let strange = || "not a URL such as https://example.org/path".to_owned();
        if text.contains('#') || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(strange());
        }
        let uri: Uri = text.parse().map_err(|_| strange())?;
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if insecure => {}
            Some("http") => {
                return Err("http is neither encrypted nor verified; use https, or set insecure = true".to_owned());
            }
            _ => return Err("only https and http are spoken".to_owned()),
        }
        let authority = uri.authority().ok_or_else(strange)?;
        if authority.as_str().contains('@') {
            return Err("no user and password in a URL; send them in a header".to_owned());
        }
        let has_port = authority.as_str().len() > authority.host().len();
        if authority.host().is_empty() || has_port && uri.port_u16().is_none_or(|port| port == 0) {
            return Err(strange());
        }
        let url = Url { uri };
        if let Some(address) = url.literal() {
            may_connect(address, allow_private)?;
        }
        Ok(url)
    }

    fn literal(&self) -> Option<IpAddr> {
        let host = self.uri.host()?;
        host.trim_start_matches('[').trim_end_matches(']').parse().ok()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, authority) = (self.uri.scheme_str().unwrap_or_default(), self.uri.authority());
        write!(f, "{scheme}://{}", authority.map_or("", |authority| authority.as_str()))?;
        if self.uri.path_and_query().is_some_and(|path| path.as_str() != "/") { write!(f, "/{MASK}") } else { Ok(()) }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn may_connect(address: IpAddr, allow_private: bool) -> Result<(), String> {
    match forbidden(address) {
        None => Ok(()),
        Some(Forbidden::Private(_)) if allow_private => Ok(()),
        Some(Forbidden::Private(what)) => Err(format!(
            "{address} is an address of this host or its networks ({what}); set allow_private = true if that is meant"
        )),
        Some(never @ Forbidden::Never(_)) => Err(format!("{address} is never connected to ({})", never.what())),
    }
}

/// What a client may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Whether addresses of this host and its networks are allowed.
    pub allow_private: bool,
    /// Whether `http` is allowed, in the URL and in redirects.
    pub insecure: bool,
    /// Certificates (PEM) that are trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// For one request in all: name, connection, TLS, both bodies.
    pub timeout: Duration,
    /// Redirects that a GET without headers of its own follows. A POST follows none.
    pub redirects_max: u32,
    /// Bytes of the body of an answer to a GET, after decompression.
    pub body_max: u64,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            allow_private: false,
            insecure: false,
            ca_file: None,
            timeout: Duration::from_secs(10),
            redirects_max: 0,
            body_max: 64 << 20,
        }
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The address may not be connected to, or the URL not be asked.
    #[error("{0}")]
    Refused(String),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is longer than is read.
    #[error("the answer is longer than {0} bytes")]
    TooLong(u64),
    /// Name, connection, TLS or HTTP failed.
    #[error("{0}")]
    Failed(String),
}

/// The answer to a POST. What its body says is nobody's to know: it may repeat the URL, a header or the body that was
/// sent, as they are or in another writing, and any of them may be a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// `Retry-After`, in whichever of its two forms.
    pub retry_after: Option<Duration>,
    /// Bytes of the body, as far as they were read: at most 4096.
    pub body_len: u64,
}

/// What a document was when it was read last: its `ETag` and `Last-Modified`, for the next question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub last_modified: Option<String>,
}

/// The answer to a GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It is what it was.
    NotModified,
    /// It is this.
    Document {
        /// All of it.
        body: Vec<u8>,
        /// For the next question.
        validators: Validators,
    },
    /// There is none.
    Refused(Answer),
}

/// Asks others by HTTP.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    config: ClientConfig,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Client {
    /// A client. Reads the system's roots and `ca_file`.
    pub fn new(config: ClientConfig) -> Result<Client, String> {
        let roots = trusted(config.ca_file.as_deref())?;
        let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root.as_ref()).to_owned()).collect();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build();
        let settings = Config::builder()
            .tls_config(tls)
            .proxy(None)
            .https_only(!config.insecure)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(config.timeout))
            .max_response_header_size(HEAD_MAX)
            .max_idle_connections(2)
            .max_idle_connections_per_host(1)
            .max_idle_age(Duration::from_secs(15))
            .user_agent(concat!("ebpfsentinel-agent/", env!("CARGO_PKG_VERSION")))
            .build();
        let resolver = Checked { allow_private: config.allow_private, resolver: DefaultResolver::default() };
        let agent = Agent::with_parts(settings, DefaultConnector::default(), resolver);
        Ok(Client { agent, config })
    }

    /// Sends a body, and says what was answered.
    pub fn post(&self, url: &Url, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, OutboundError> {
        self.check(url)?;
        let mut request = Request::builder().method(Method::POST).uri(url.uri.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(|_| OutboundError::Refused("a header is not valid".to_owned()))?;
        let response = self.agent.run(request).map_err(|error| self.error(error))?;
        let (head, body) = response.into_parts();
        Ok(self.answer(&head, body))
    }

    /// Asks for a document, unless it is what it was.
    pub fn get(&self, url: &Url, headers: &[(&str, &str)], validators: &Validators) -> Result<Fetched, OutboundError> {
        self.check(url)?;
        let validators = [("if-none-match", &validators.etag), ("if-modified-since", &validators.last_modified)];
        let validators = validators.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?)));
        let mut request = Request::builder().method(Method::GET).uri(url.uri.clone());
        for (name, value) in headers.iter().copied().chain(validators) {
            request = request.header(name, value);
        }
        let request = request.body(()).map_err(|_| OutboundError::Refused("a header is not valid".to_owned()))?;
        // Headers may hold what another server must not learn.
        let redirects = if headers.is_empty() { self.config.redirects_max } else { 0 };
        let request = self.agent.configure_request(request).max_redirects(redirects).build();
        let response = self.agent.run(request).map_err(|error| self.error(error))?;
        let (head, body) = response.into_parts();
        match head.status.as_u16() {
            304 => return Ok(Fetched::NotModified),
            200 => {}
            _ => return Ok(Fetched::Refused(self.answer(&head, body))),
        }
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let validators = Validators { etag: text("etag"), last_modified: text("last-modified") };
        let body = body.into_with_config().limit(self.config.body_max).read_to_vec();
        Ok(Fetched::Document { body: body.map_err(|error| self.error(error))?, validators })
    }

    /// A URL that was checked for a client with more rights.
    fn check(&self, url: &Url) -> Result<(), OutboundError> {
        url.literal()
            .map_or(Ok(()), |address| may_connect(address, self.config.allow_private))
            .map_err(OutboundError::Refused)
    }

    fn answer(&self, head: &ureq::http::response::Parts, body: Body) -> Answer {
        let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let mut scrap = Vec::new();
        // What of it cannot be read is not counted; the status is what counts.
        let _ = body.into_reader().take(SCRAP_MAX).read_to_end(&mut scrap);
        Answer {
            status: head.status.as_u16(),
            retry_after: text("retry-after").and_then(|value| retry_after(value, jiff::Timestamp::now())),
            body_len: scrap.len() as u64,
        }
    }

    fn error(&self, error: ureq::Error) -> OutboundError {
        match error {
            ureq::Error::Timeout(_) => OutboundError::Timeout(self.config.timeout),
            ureq::Error::BodyExceedsLimit(limit) => OutboundError::TooLong(limit),
            ureq::Error::Other(why) => match why.downcast::<NotThere>() {
                Ok(why) => OutboundError::Refused(why.0),
                Err(why) => OutboundError::Failed(why.to_string()),
            },
            // These two show the URI, of which the path may be a secret.
            ureq::Error::BadUri(_) => OutboundError::Failed("the URL cannot be asked".to_owned()),
            ureq::Error::RequireHttpsOnly(_) => OutboundError::Refused("it redirects from https to http".to_owned()),
            ureq::Error::HostNotFound => OutboundError::Failed("its name has no address".to_owned()),
            ureq::Error::Io(error) => OutboundError::Failed(plain(&error)),
            other => OutboundError::Failed(other.to_string()),
        }
    }
}

/// An I/O error in words, without its number.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The roots of the system, and those of a file.
pub fn trusted(ca_file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, String> {
    // Folders with a broken certificate among the good ones are common; what cannot be read is not trusted.
    let mut roots = rustls_native_certs::load_native_certs().certs;
    if let Some(path) = ca_file {
        roots.extend(certificates(path)?);
    }
    Ok(roots)
}

/// The certificates of a PEM file; at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let cannot = |error: std::io::Error| format!("{shown}: cannot be read: {}", plain(&error));
    let file = std::fs::File::open(path).map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(format!("{shown}: not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(CA_FILE_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > CA_FILE_MAX {
        return Err(format!("{shown}: longer than {CA_FILE_MAX} bytes"));
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).take(CA_MAX).collect();
    let found = found.map_err(|_| format!("{shown}: not a PEM file of certificates"))?;
    if found.is_empty() {
        return Err(format!("{shown}: no certificate in it (-----BEGIN CERTIFICATE-----)"));
    }
    let mut store = rustls::RootCertStore::empty();
    for certificate in &found {
        store.add(certificate.clone()).map_err(|error| format!("{shown}: {error}"))?;
    }
    Ok(found)
}

/// A file of certificates that was read. Equal to another one only if both said the same, so that a file that was
/// renewed is a change of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct CaFile {
    path: PathBuf,
    #[serde(skip)]
    #[schemars(skip)]
    digest: [u8; 32],
}

impl CaFile {
    /// Reads the file; the error names it.
    pub fn load(path: PathBuf) -> Result<CaFile, String> {
        let found = certificates(&path)?;
        let digest = found.iter().fold(Sha256::new(), |digest, one| digest.chain_update(one)).finalize();
        Ok(CaFile { path, digest: digest.into() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `Retry-After`: seconds, or a date.
fn retry_after(value: &str, now: jiff::Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(then.duration_since(now)).unwrap_or_default())
}

/// Resolves a name once, and refuses it if any of its addresses is forbidden.
#[derive(Debug)]
struct Checked {
    allow_private: bool,
    resolver: DefaultResolver,
}

/// The error of [`Checked`], as it passes through the HTTP library.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotThere(String);

impl Resolver for Checked {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.resolver.resolve(uri, config, timeout)?;
        for address in found.iter() {
            may_connect(address.ip(), self.allow_private).map_err(|why| {
                let host = uri.host().unwrap_or_default();
                let is_literal = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
                let why = if is_literal { why } else { format!("{host}: {why}") };
                ureq::Error::Other(Box::new(NotThere(why)))
            })?;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
