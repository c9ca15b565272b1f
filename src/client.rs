//! Talks to a running agent over HTTP: one request, one answer, bounded in time and size.
//!
//! Proxies of the environment are not asked and redirects are not followed: the token goes to the address that was
//! given and nowhere else.

use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::time::Duration;

use serde_json::Value;

use crate::api::Method;
use crate::config::auth::looks_like_token;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A reload compiles and swaps everything before it answers.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The longest answer is a full page of rules, a few megabytes.
const ANSWER_MAX: u64 = 32 << 20;

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<Ipv6Addr>() {
            Ok(address) => write!(f, "http://[{address}]:{}", self.port),
            Err(_) => write!(f, "http://{}:{}", self.host, self.port),
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
        endpoint: Endpoint,
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
        endpoint: Endpoint,
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
    endpoint: Endpoint,
    token: Option<String>,
    agent: ureq::Agent,
}

impl Client {
    /// A client that shows `token` with each request.
    pub fn new(endpoint: Endpoint, token: Option<String>) -> Client {
        let agent = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_WITHIN))
            .timeout_global(Some(ANSWER_WITHIN))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("ebpfsentinel-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Client { endpoint, token, agent }
    }

    /// Whom it asks.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends one request; `target` is path and query. Every HTTP status is an answer.
    pub fn send(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Answer, ClientError> {
        let mut request =
            ureq::http::Request::builder().method(method.name()).uri(format!("{}{target}", self.endpoint));
        request = request.header("accept", "application/json, text/plain");
        if let Some(token) = &self.token {
            request = match looks_like_token(token) {
                true => request.header("authorization", format!("Bearer {token}")),
                false => request.header("x-api-key", token),
            };
        }
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
        let bytes =
            response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec().map_err(|error| self.failed(error))?;
        let body = String::from_utf8(bytes).map_err(|_| self.strange("the body is not UTF-8"))?;
        Ok(Answer { status: response.status().as_u16(), body })
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
                "connection refused; is it running, and on this port?".to_owned()
            }
            ureq::Error::Io(error) => error.to_string(),
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
    use std::io::{Read, Write};
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
    fn endpoints_as_urls() {
        let url = |host: &str| Endpoint { host: host.into(), port: 80 }.to_string();
        assert_eq!(url("::1"), "http://[::1]:80");
        assert_eq!(url("agent.example"), "http://agent.example:80");
    }
}
