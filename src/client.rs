//! Talks to a running agent over HTTP: one request, one answer, bounded in time and size. By TCP, TLS, or a Unix socket.
//!
//! Proxies of the environment are not asked and redirects are not followed: the token goes to the address that was
//! given and nowhere else.

use std::fmt;
use std::io;
use std::io::{BufReader, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use serde_json::Value;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use self::unix::UnixConnector;
use crate::api::Method;
use crate::config::auth::looks_like_token;

mod unix;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A reload compiles and swaps everything before it answers.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The longest answer is a full page of rules, a few megabytes.
const ANSWER_MAX: u64 = 32 << 20;
/// Longest PEM file.
const PEM_MAX: u64 = 1 << 20;

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    fn url(&self, scheme: &str) -> String {
        match self.host.parse::<Ipv6Addr>() {
            Ok(address) => format!("{scheme}://[{address}]:{}", self.port),
            Err(_) => format!("{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// How an agent is spoken with over TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// PEM file of the authorities that are believed; else those of the system.
    pub cacert: Option<PathBuf>,
    /// Whether anybody is believed.
    pub insecure: bool,
    /// PEM files of our own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The way to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Tcp(Endpoint),
    Tls(Endpoint, Trust),
    Unix(PathBuf),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Tcp(endpoint) => f.write_str(&endpoint.url("http")),
            Way::Tls(endpoint, _) => f.write_str(&endpoint.url("https")),
            Way::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answered in time.
    #[error("cannot reach the agent at {endpoint}: {reason}")]
    Unreachable {
        /// Who was asked.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// The agent answered with an error.
    #[error("{message} ({code}, HTTP {status})")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The error's code for programs.
        code: String,
        /// The error's text for people.
        message: String,
    },
    /// What answered does not speak as the agent does.
    #[error("{endpoint} answered what an agent would not: {reason}")]
    Strange {
        /// Who was asked.
        endpoint: String,
        /// What was wrong.
        reason: String,
    },
}

/// An answer, good or bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body; always text.
    pub body: String,
}

/// A connection-less client of one agent.
#[derive(Debug)]
pub struct Client {
    /// The way, as it is shown; and what was tried before it.
    endpoint: String,
    base: String,
    token: Option<String>,
    agent: ureq::Agent,
}

impl Client {
    /// A client that speaks plain TCP and shows `token` with each request.
    pub fn new(endpoint: Endpoint, token: Option<String>) -> Client {
        Client::build(&Way::Tcp(endpoint), TlsConfig::default(), token)
    }

    /// A client that goes this way. An error says what is wrong with the files of its [`Trust`].
    pub fn over(way: &Way, token: Option<String>) -> Result<Client, String> {
        let tls = match way {
            Way::Tls(_, trust) => tls_config(trust)?,
            Way::Tcp(_) | Way::Unix(_) => TlsConfig::default(),
        };
        Ok(Client::build(way, tls, token))
    }

    fn build(way: &Way, tls: TlsConfig, token: Option<String>) -> Client {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_WITHIN))
            .timeout_global(Some(ANSWER_WITHIN))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            // The agent may close a connection that nothing is asked on at any time.
            .max_idle_connections(0)
            .tls_config(tls)
            .user_agent(concat!("ebpfsentinel-agent/", env!("CARGO_PKG_VERSION")))
            .build();
        let (agent, base) = match way {
            Way::Tcp(endpoint) => (config.into(), endpoint.url("http")),
            Way::Tls(endpoint, _) => {
                let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), DefaultResolver::default());
                (agent, endpoint.url("https"))
            }
            Way::Unix(path) => {
                let agent = ureq::Agent::with_parts(config, UnixConnector::new(path.clone()), NoResolver);
                (agent, "http://localhost".to_owned())
            }
        };
        Client { endpoint: way.to_string(), base, token, agent }
    }

    /// Says in errors that `other` was tried first.
    pub fn after(mut self, other: &str) -> Client {
        self.endpoint += &format!(" ({other})");
        self
    }

    /// Whom it asks.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn request(&self, method: Method, target: &str, accept: &str) -> ureq::http::request::Builder {
        let request = ureq::http::Request::builder().method(method.name()).uri(format!("{}{target}", self.base));
        let request = request.header("accept", accept);
        match &self.token {
            Some(token) if looks_like_token(token) => request.header("authorization", format!("Bearer {token}")),
            Some(key) => request.header("x-api-key", key),
            None => request,
        }
    }

    /// Opens an answer that goes on, of `text/event-stream`, after the event `last` if there was one before. Its bytes, as
    /// they come; a read that gets none for `silence` is an error of the kind `TimedOut`.
    pub fn stream(
        &self,
        target: &str,
        last: Option<&str>,
        silence: Duration,
    ) -> Result<BufReader<Box<dyn Read + Send>>, ClientError> {
        let mut request = self.request(Method::Get, target, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(()).map_err(|error| self.strange(error))?;
        let request = self.agent.configure_request(request);
        let request =
            request.timeout_global(None).timeout_recv_response(Some(ANSWER_WITHIN)).timeout_per_read(Some(silence));
        let mut response = self.agent.run(request.build()).map_err(|error| self.failed(error))?;
        if !response.status().is_success() {
            return Err(refused(&self.read(&mut response)?));
        }
        let reader: Box<dyn Read + Send> = Box::new(TimedReader(response.into_body().into_reader()));
        Ok(BufReader::new(reader))
    }

    fn read(&self, response: &mut ureq::http::Response<ureq::Body>) -> Result<Answer, ClientError> {
        let bytes =
            response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec().map_err(|error| self.failed(error))?;
        let body = String::from_utf8(bytes).map_err(|_| self.strange("the body is not UTF-8"))?;
        Ok(Answer { status: response.status().as_u16(), body })
    }

    /// Sends one request; `target` is path and query. Every HTTP status is an answer.
    pub fn send(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Answer, ClientError> {
        let mut request = self.request(method, target, "application/json, text/plain");
        let sent = match (method, body) {
            (Method::Get | Method::Delete, _) => self.agent.run(request.body(()).map_err(|error| self.strange(error))?),
            (_, body) => {
                if body.is_some() {
                    request = request.header("content-type", "application/json");
                }
                let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
                self.agent.run(request.body(bytes).map_err(|error| self.strange(error))?)
            }
        };
        let mut response = sent.map_err(|error| self.failed(error))?;
        self.read(&mut response)
    }

    /// Sends one request that must go well; the body of the answer as text.
    pub fn text(&self, method: Method, target: &str, body: Option<&Value>) -> Result<String, ClientError> {
        let answer = self.send(method, target, body)?;
        if (200..300).contains(&answer.status) { Ok(answer.body) } else { Err(refused(&answer)) }
    }

    /// Sends one request that must go well; the body of the answer as JSON, null where there is none.
    pub fn json(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let text = self.text(method, target, body)?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| self.strange(format!("the body is not JSON: {error}")))
    }

    fn strange(&self, reason: impl fmt::Display) -> ClientError {
        ClientError::Strange { endpoint: self.endpoint.clone(), reason: reason.to_string() }
    }

    fn failed(&self, error: ureq::Error) -> ClientError {
        let reason = match &error {
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "connection refused; is it running, and does it listen there?".to_owned()
            }
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "permission denied; root may use it, and who is in the group ebpfsentinel".to_owned()
            }
            ureq::Error::Io(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                inner.map_or_else(|| error.to_string(), of_tls)
            }
            ureq::Error::Rustls(error) => of_tls(error),
            ureq::Error::Timeout(_) => "no answer in time".to_owned(),
            ureq::Error::HostNotFound => "there is no such host".to_owned(),
            ureq::Error::ConnectionFailed => "no connection".to_owned(),
            ureq::Error::BodyExceedsLimit(limit) => {
                return self.strange(format!("the body is longer than {limit} bytes"));
            }
            other => return self.strange(other),
        };
        ClientError::Unreachable { endpoint: self.endpoint.clone(), reason }
    }
}

/// Tells the end of patience by the error's kind.
struct TimedReader<R>(R);

impl<R: Read> Read for TimedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(ureq::Error::Timeout(_)) => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

/// Why TLS was not agreed on.
fn of_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => {
            format!("its certificate is not believed: {why}; --cacert FILE names the authority to believe")
        }
        rustls::Error::InvalidMessage(_) => format!("it does not speak TLS there ({error})"),
        rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired) => {
            "it wants a client certificate; give --cert and --cert-key".to_owned()
        }
        other => other.to_string(),
    }
}

/// What TLS believes, and shows.
fn tls_config(trust: &Trust) -> Result<TlsConfig, String> {
    let mut builder = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()))
        .disable_verification(trust.insecure);
    let roots = match &trust.cacert {
        _ if trust.insecure => Vec::new(),
        Some(path) => pem(path)?.0,
        None => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err("this system has no authorities to believe; name one by --cacert FILE".to_owned());
            }
            found.certs.iter().map(|one| Certificate::from_der(one).to_owned()).collect()
        }
    };
    builder = builder.root_certs(RootCerts::new_with_certs(&roots));
    if let Some((cert, key)) = &trust.identity {
        let key_name = key.display();
        let key = pem(key)?.1.ok_or_else(|| format!("{key_name}: there is no private key in it"))?;
        builder = builder.client_cert(Some(ClientCert::new_with_certs(&pem(cert)?.0, key)));
    }
    Ok(builder.build())
}

/// Certificates and the private key of a PEM file, at least one of anything.
fn pem(path: &Path) -> Result<(Vec<Certificate<'static>>, Option<PrivateKey<'static>>), String> {
    let failed = |reason: String| format!("{}: {reason}", path.display());
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(PEM_MAX).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    let (mut certificates, mut key) = (Vec::new(), None);
    for item in ureq::tls::parse_pem(&bytes) {
        match item.map_err(|error| failed(error.to_string()))? {
            PemItem::Certificate(certificate) => certificates.push(certificate),
            PemItem::PrivateKey(one) => key = Some(one),
            _ => {}
        }
    }
    if certificates.is_empty() && key.is_none() {
        return Err(failed("there is no PEM in it".to_owned()));
    }
    Ok((certificates, key))
}

/// No name needs to be looked up on the way to a Unix socket.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _: &ureq::http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut none = self.empty();
        none.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        Ok(none)
    }
}

/// The error that a bad answer carries, whoever wrote it.
pub fn refused(answer: &Answer) -> ClientError {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let field = |name: &str| body["error"][name].as_str().map(str::to_owned);
    ClientError::Refused {
        status: answer.status,
        code: field("code").unwrap_or_else(|| "no code".to_owned()),
        message: field("message").unwrap_or_else(|| "the agent refused without saying why".to_owned()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::{BufRead, Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    /// A server that gives each of `answers` to one request; returns the requests.
    pub(crate) fn serve(answers: Vec<String>) -> (Endpoint, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let server = std::thread::spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut got = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let n = stream.read(&mut buffer).unwrap();
                    got.extend(&buffer[..n]);
                    let text = String::from_utf8_lossy(&got).to_lowercase();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length =
                        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
                    if n == 0 || body.len() >= length.unwrap_or(0) {
                        break;
                    }
                }
                requests.push(String::from_utf8(got).unwrap());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            requests
        });
        (endpoint, server)
    }

    /// An HTTP answer.
    pub(crate) fn http(status: u16, body: &str) -> String {
        format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    #[test]
    fn requests_and_answers() {
        let answers = vec![http(200, "[1]"), http(204, ""), http(404, r#"{"error":{"code":"A","message":"b"}}"#)];
        let (endpoint, server) = serve(answers);
        let client = Client::new(endpoint, Some("secret".into()));
        assert_eq!(client.json(Method::Get, "/a?b=1", None).unwrap(), serde_json::json!([1]));
        let body = serde_json::json!({"id": "x"});
        assert_eq!(client.json(Method::Post, "/c", Some(&body)).unwrap(), Value::Null);
        let error = client.json(Method::Delete, "/d", None).unwrap_err();
        assert_eq!(error.to_string(), "b (A, HTTP 404)");
        let requests = server.join().unwrap();
        assert!(requests[0].starts_with("GET /a?b=1 HTTP/1.1\r\n"), "{requests:?}");
        assert!(requests[0].to_lowercase().contains("x-api-key: secret"), "{requests:?}");
        assert!(requests[1].ends_with(r#"{"id":"x"}"#), "{requests:?}");
        assert!(requests[2].starts_with("DELETE /d "), "{requests:?}");
    }

    #[test]
    fn nobody_there_and_nonsense() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let endpoint = Endpoint { host: "127.0.0.1".into(), port };
        let error = Client::new(endpoint, None).json(Method::Get, "/", None).unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("connection refused"), "{error}");

        let redirect = "HTTP/1.1 302 X\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n".to_owned();
        let (endpoint, server) = serve(vec![http(200, "<html>"), "SSH-2.0\r\n\r\n".into(), redirect]);
        let client = Client::new(endpoint, None);
        for _ in 0..2 {
            let error = client.json(Method::Get, "/", None).unwrap_err();
            assert!(matches!(error, ClientError::Strange { .. }), "{error}");
        }
        let error = client.json(Method::Get, "/", None).unwrap_err();
        assert!(matches!(error, ClientError::Refused { status: 302, .. }), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn a_stream_is_read_as_it_comes() {
        let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n";
        let refusal = http(401, r#"{"error":{"code":"A","message":"b"}}"#);
        let (endpoint, server) = serve(vec![format!("{head}data: 1\n\ndata: 2\n\n"), refusal]);
        let client = Client::new(endpoint, Some("secret".into()));
        let stream = client.stream("/s?a=b", Some("id-7"), Duration::from_secs(5)).unwrap();
        let lines: Vec<String> = stream.lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["data: 1", "", "data: 2", ""]);
        let refused = client.stream("/s", None, Duration::from_secs(5)).map(drop).unwrap_err();
        assert_eq!(refused.to_string(), "b (A, HTTP 401)");
        let requests = server.join().unwrap();
        let first = requests[0].to_lowercase();
        assert!(first.starts_with("get /s?a=b ") && first.contains("last-event-id: id-7\r\n"), "{first}");
        assert!(first.contains("accept: text/event-stream\r\n") && first.contains("x-api-key: secret"), "{first}");

        // Silence, with the connection open.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(format!("{head}data: 1\n").as_bytes()).unwrap();
            stream.read_to_end(&mut Vec::new()).map(drop)
        });
        let mut stream = Client::new(endpoint, None).stream("/s", None, Duration::from_millis(200)).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line, "data: 1\n");
        assert_eq!(stream.read_line(&mut line).unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(stream);
        let _ = server.join().unwrap();
    }

    #[test]
    fn endpoints_as_urls() {
        let endpoint = |host: &str| Endpoint { host: host.into(), port: 80 };
        assert_eq!(Way::Tcp(endpoint("::1")).to_string(), "http://[::1]:80");
        assert_eq!(Way::Tls(endpoint("agent.example"), Trust::default()).to_string(), "https://agent.example:80");
    }
}
