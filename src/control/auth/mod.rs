//! Who calls, and may they: API keys, tokens, client certificates, peers of the Unix socket.
//!
//! A credential that is shown must be good: one in `Authorization: Bearer` is asked before one in `X-API-Key`, and both
//! before the certificate of the connection and the user at the other end of a Unix socket. By its shape a bearer's
//! credential is a token (two dots) or an API key. Without any of them the answer is 401.
//!
//! Roles: admin does everything; operator what viewer does, and changes the rules of their own namespaces
//! ([`crate::api::Namespaces`]); viewer reads. Paths are public, so what does not exist is 404 (and 405) for everybody; then comes
//! 401, then 403 INSUFFICIENT_ROLE, and only then is the request itself looked at: 400, and what [`crate::ruled::api`] says
//! of rules. Why a credential is not good stands in the log and in `auth_failures_total`, never in the answer.
//!
//! Through the Unix socket root, the agent's own user and processes of the group `ebpfsentinel` are admins without any
//! credential. The kernel says who they are; the group is looked up at the start and at a reload.

mod flood;
mod oidc;
mod token;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use jsonwebtoken::DecodingKey;
use nix::unistd::{Gid, geteuid};
use subtle::ConditionallySelectable;

use self::flood::{Flood, Kind, Limits};
use self::oidc::KeySource;
pub use self::oidc::{KeySet, jwks_uri};
pub use self::token::{TokenRules, read_header, verify};
use crate::api::{ApiError, Caller, Namespaces, Role, Spec};
use crate::config::auth::{ApiKey, AuthConfig, KEY_CHARS, OidcConfig, looks_like_token, verification_key};
use crate::config::tls::{CertName, TlsClient};
pub use crate::control::socket::GROUP;
use crate::control::socket::find_group;
use crate::metrics::Metrics;
use crate::supervise::Supervisor;

/// The operation that `auth.metrics_auth_required` is about.
const METRICS: &str = "/metrics";
/// What a client is told who may come again soon.
const SOON_SECS: u32 = 1;

/// What a client shows, or what its connection shows of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// `X-API-Key`.
    pub api_key: Option<&'a str>,
    /// What stands behind `Bearer` in `Authorization`; empty for another scheme. See [`bearer`].
    pub bearer: Option<&'a str>,
    /// Fingerprint (SHA-256, hexadecimal) and subject of a client certificate that was verified.
    pub certificate: Option<(&'a str, &'a str)>,
    /// User and group at the other end of a Unix socket.
    pub unix: Option<(u32, u32)>,
}

/// The credential in a field `Authorization`; empty if its scheme is not `Bearer`.
pub fn bearer(authorization: &str) -> &str {
    match authorization.split_once(' ') {
        Some((scheme, credential)) if scheme.eq_ignore_ascii_case("bearer") => credential.trim(),
        _ => "",
    }
}

/// Why a credential is not good. For the log, not for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Label of the metric.
    reason: &'static str,
    /// For the log.
    detail: String,
    /// It could not be found out; the client should come again.
    is_ours: bool,
}

impl Fault {
    fn new(reason: &'static str, detail: impl Into<String>) -> Fault {
        Fault { reason, detail: detail.into(), is_ours: false }
    }

    fn unavailable(detail: impl Into<String>) -> Fault {
        Fault { reason: "issuer_unavailable", detail: detail.into(), is_ours: true }
    }
}

/// A request that is refused for who sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the client reads.
    pub error: ApiError,
    /// Value of `WWW-Authenticate`, of a 401.
    pub challenge: Option<&'static str>,
    /// Value of `Retry-After`.
    pub retry_after_secs: Option<u32>,
    /// Label of `auth_failures_total`.
    pub reason: &'static str,
    /// For log and audit.
    pub detail: String,
    /// Who it is, where that is known: of a 403.
    pub caller: Option<Caller>,
    /// Whether log and audit are told, with the number of refusals since the last one that were not: a flood is counted,
    /// not written down.
    pub told: Option<u64>,
}

/// How callers are told apart, as one configuration says.
pub struct State {
    enabled: bool,
    metrics_auth_required: bool,
    keys: Vec<ApiKey>,
    tokens: Option<Tokens>,
    certificates: Vec<TlsClient>,
    members: Members,
}

/// How tokens are checked.
enum Tokens {
    /// With one key.
    Known(TokenRules, DecodingKey),
    /// With those that the issuer publishes.
    Published(TokenRules, OidcConfig, Arc<KeySource>),
}

/// Who is an admin through the Unix socket, besides root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Members {
    /// The agent's own user, who could do all that it can.
    user: u32,
    group: Option<u32>,
}

impl Members {
    /// The group as it is now; as it was `before` where that cannot be told.
    fn look_up(before: Option<Members>) -> Members {
        let group = match find_group(GROUP) {
            Ok(group) => group.map(Gid::as_raw),
            Err(error) => {
                log::warn!("looking up the group {GROUP}: {error}");
                before.and_then(|before| before.group)
            }
        };
        Members { user: geteuid().as_raw(), group }
    }

    fn have(self, user: u32, group: u32) -> bool {
        user == 0 || user == self.user || self.group == Some(group)
    }
}

/// Asks callers who they are. Shared by the control ports.
pub struct Auth {
    state: ArcSwap<State>,
    flood: Flood,
    metrics: Arc<Metrics>,
    /// Of the thread that asks an issuer; `None` where nobody is asked.
    supervisor: Option<Supervisor>,
}

impl Auth {
    /// Asks nobody: whoever calls is an admin.
    pub fn open(metrics: &Arc<Metrics>) -> Arc<Auth> {
        let state = State {
            enabled: false,
            metrics_auth_required: false,
            keys: Vec::new(),
            tokens: None,
            certificates: Vec::new(),
            members: Members::default(),
        };
        Auth::with(state, metrics, None)
    }

    /// Asks as the configuration says.
    pub fn new(
        config: &AuthConfig,
        certificates: &[TlsClient],
        metrics: &Arc<Metrics>,
        supervisor: &Supervisor,
    ) -> anyhow::Result<Arc<Auth>> {
        let state = State::new(config, certificates, None, metrics, Some(supervisor))?;
        Ok(Auth::with(state, metrics, Some(supervisor.clone())))
    }

    fn with(state: State, metrics: &Arc<Metrics>, supervisor: Option<Supervisor>) -> Arc<Auth> {
        let flood = Flood::new(Limits::DEFAULT, Instant::now());
        Arc::new(Auth { state: ArcSwap::from_pointee(state), flood, metrics: metrics.clone(), supervisor })
    }

    /// What [`Auth::replace`] puts in force. An issuer that stays is not asked anew. Changes nothing.
    pub fn prepare(&self, config: &AuthConfig, certificates: &[TlsClient]) -> anyhow::Result<Arc<State>> {
        let before = self.state.load_full();
        State::new(config, certificates, Some(&before), &self.metrics, self.supervisor.as_ref()).map(Arc::new)
    }

    /// What is in force, to go back to.
    pub fn current(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Asks differently from now on; what was before.
    pub fn replace(&self, state: Arc<State>) -> Arc<State> {
        self.state.swap(state)
    }

    /// Why callers who should be let in are not.
    pub fn degraded(&self) -> Vec<String> {
        match &self.state.load().tokens {
            Some(Tokens::Published(_, _, keys)) => keys.degraded(Instant::now()).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// Who may call an operation, if they may.
    pub fn admit(
        &self,
        spec: &Spec,
        credentials: &Credentials<'_>,
        peer: Option<IpAddr>,
    ) -> Result<Caller, Box<Refusal>> {
        let needed = match spec.role {
            Role::Public if spec.path == METRICS && self.state.load().metrics_auth_required => Role::Viewer,
            role => role,
        };
        if needed == Role::Public {
            Ok(Caller::anonymous(Role::Public))
        } else {
            self.require(needed, credentials, peer)
        }
    }

    /// Who calls, if their role is enough.
    pub fn require(
        &self,
        needed: Role,
        credentials: &Credentials<'_>,
        peer: Option<IpAddr>,
    ) -> Result<Caller, Box<Refusal>> {
        let caller = self.identify(credentials, peer)?;
        if caller.role >= needed {
            return Ok(caller);
        }
        let has = match caller.role {
            Role::Public => "you have none here".to_owned(),
            role => format!("yours is {}", role.name()),
        };
        let error = ApiError::insufficient_role(format!("this needs the role {}; {has}", needed.name()));
        Err(self.forbidden(error, "role", caller, peer))
    }

    /// Who calls. A token of a key that is not known may make it wait for the issuer, for two seconds at most.
    pub fn identify(&self, credentials: &Credentials<'_>, peer: Option<IpAddr>) -> Result<Caller, Box<Refusal>> {
        let state = self.state.load_full();
        if !state.enabled {
            return Ok(Caller::anonymous(Role::Admin));
        }
        let shown = match (credentials.bearer, credentials.api_key) {
            (Some(token), _) if looks_like_token(token) => {
                let caller = state.by_token(token);
                return caller.map_err(|fault| self.bad(fault, Kind::Signed, peer));
            }
            (bearer, api_key) => bearer.or(api_key),
        };
        if let Some(key) = shown {
            return self.by_key(&state, key, peer);
        }
        if let Some((fingerprint, subject)) = credentials.certificate {
            let caller = state.by_certificate(fingerprint, subject);
            return caller.map_err(|fault| self.bad(fault, Kind::Signed, peer));
        }
        if let Some((user, group)) = credentials.unix {
            if state.members.have(user, group) {
                let name = format!("uid:{user}");
                return Ok(Caller { name, role: Role::Admin, namespaces: Namespaces::All, method: "unix" });
            }
            return Err(self.unauthenticated(Fault::new("missing", format!("uid {user} without a credential")), peer));
        }
        Err(self.unauthenticated(Fault::new("missing", "no credential"), peer))
    }

    /// A request of a caller who is known that the operation itself refused for who sent it: counts it.
    pub fn refused_by_operation(&self, error: ApiError, caller: Caller, peer: Option<IpAddr>) -> Box<Refusal> {
        let reason = if error.code == "NAMESPACE_FORBIDDEN" { "namespace" } else { "role" };
        self.forbidden(error, reason, caller, peer)
    }

    fn by_key(&self, state: &State, key: &str, peer: Option<IpAddr>) -> Result<Caller, Box<Refusal>> {
        // A Unix socket's peers are users of this host, whom its permissions let in.
        let Some(address) = peer else {
            return state.by_key(key).map_err(|fault| self.unauthenticated(fault, peer));
        };
        let (fingerprint, now) = (self.flood.fingerprint(key), Instant::now());
        if let Some(wait) = self.flood.refuses(address, &fingerprint, now) {
            return Err(self.slow_down(wait, "not looked at", peer));
        }
        let caller = state.by_key(key).map_err(|fault| self.bad(fault, Kind::Key, peer))?;
        self.flood.succeeded(address, fingerprint, now);
        Ok(caller)
    }

    /// 401 for a credential that is bad, 429 for one too many, 503 when that could not be found out.
    fn bad(&self, fault: Fault, kind: Kind, peer: Option<IpAddr>) -> Box<Refusal> {
        if fault.is_ours {
            let error = ApiError::unavailable("who you are cannot be found out at the moment");
            let Fault { reason, detail, .. } = fault;
            return self.refusal(Refusal { retry_after_secs: Some(SOON_SECS), ..plain(error, reason, detail) }, peer);
        }
        match peer.map(|address| self.flood.failed(address, kind, Instant::now())) {
            Some(Err(wait)) => self.slow_down(wait, &fault.detail, peer),
            _ => self.unauthenticated(fault, peer),
        }
    }

    fn unauthenticated(&self, fault: Fault, peer: Option<IpAddr>) -> Box<Refusal> {
        let (message, challenge) = match fault.reason {
            "missing" => (
                "a credential is needed: an API key (X-API-Key) or a token (Authorization: Bearer)",
                "Bearer realm=\"ebpfsentinel\"",
            ),
            _ => ("the credential is not accepted", "Bearer realm=\"ebpfsentinel\", error=\"invalid_token\""),
        };
        let refusal = plain(ApiError::unauthenticated(message), fault.reason, fault.detail);
        self.refusal(Refusal { challenge: Some(challenge), ..refusal }, peer)
    }

    fn slow_down(&self, wait: Duration, detail: &str, peer: Option<IpAddr>) -> Box<Refusal> {
        let message = "too many bad credentials from your address; wait";
        let error = ApiError::new(429, "RATE_LIMITED", message);
        let secs = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1);
        let refusal = plain(error, "throttled", detail.to_owned());
        self.refusal(Refusal { retry_after_secs: Some(secs), ..refusal }, peer)
    }

    fn forbidden(&self, error: ApiError, reason: &'static str, caller: Caller, peer: Option<IpAddr>) -> Box<Refusal> {
        let detail = error.message.clone();
        self.refusal(Refusal { caller: Some(caller), ..plain(error, reason, detail) }, peer)
    }

    /// Counts a refusal, and tells the log of it unless there are too many.
    fn refusal(&self, mut refusal: Refusal, peer: Option<IpAddr>) -> Box<Refusal> {
        self.metrics.auth_failure(refusal.reason);
        refusal.told = match peer {
            Some(address) => self.flood.may_tell(address, Instant::now()),
            None => Some(0),
        };
        if let Some(untold) = refusal.told {
            let address = peer.map_or_else(|| "unix".to_owned(), |address| address.to_canonical().to_string());
            let actor = refusal.caller.as_ref().map_or("unknown", |caller| &caller.name);
            log::warn!(
                peer = address.as_str(), actor = actor, reason = refusal.reason, untold = untold;
                "control: refused {address} ({}): {}", refusal.reason, refusal.detail
            );
        }
        Box::new(refusal)
    }
}

fn plain(error: ApiError, reason: &'static str, detail: String) -> Refusal {
    Refusal { error, challenge: None, retry_after_secs: None, reason, detail, caller: None, told: None }
}

impl State {
    fn new(
        config: &AuthConfig,
        certificates: &[TlsClient],
        before: Option<&State>,
        metrics: &Arc<Metrics>,
        supervisor: Option<&Supervisor>,
    ) -> anyhow::Result<State> {
        let tokens = match (TokenRules::of(config), &config.jwt, &config.oidc) {
            // Nobody is asked, so the issuer is not either.
            _ if !config.enabled => None,
            (Some(rules), Some(jwt), _) => {
                let key = verification_key(&jwt.public_key, jwt.algorithm).map_err(anyhow::Error::msg);
                Some(Tokens::Known(rules, key.context("auth.jwt.public_key_path")?))
            }
            (Some(rules), None, Some(oidc)) => {
                let same = match before.and_then(|before| before.tokens.as_ref()) {
                    Some(Tokens::Published(_, known, keys)) if known == oidc => Some(keys.clone()),
                    _ => None,
                };
                let keys = match same {
                    Some(keys) => keys,
                    None => {
                        let supervisor =
                            supervisor.context("auth.oidc needs a thread, and nobody supervises threads here")?;
                        Arc::new(KeySource::start(oidc, metrics, supervisor)?)
                    }
                };
                Some(Tokens::Published(rules, oidc.clone(), keys))
            }
            _ => None,
        };
        Ok(State {
            enabled: config.enabled,
            metrics_auth_required: config.enabled && config.metrics_auth_required,
            keys: config.api_keys.clone(),
            tokens,
            certificates: certificates.to_vec(),
            members: Members::look_up(before.map(|before| before.members)),
        })
    }

    /// All keys are tried, whichever it is, so that the time says nothing.
    fn by_key(&self, key: &str) -> Result<Caller, Fault> {
        if !(1..=*KEY_CHARS.end()).contains(&key.len()) {
            return Err(Fault::new("malformed", format!("a credential of {} bytes", key.len())));
        }
        let mut found = 0u32;
        for (place, known) in (1u32..).zip(&self.keys) {
            found.conditional_assign(&place, known.hash.matches(key));
        }
        let known = (found as usize).checked_sub(1).and_then(|place| self.keys.get(place));
        let known = known.ok_or_else(|| Fault::new("unknown_key", "no API key of ours"))?;
        let namespaces = match known.role {
            Role::Admin => Namespaces::All,
            _ => Namespaces::Only(known.namespaces.clone()),
        };
        Ok(Caller { name: known.name.clone(), role: known.role, namespaces, method: "api_key" })
    }

    fn by_token(&self, token: &str) -> Result<Caller, Fault> {
        match &self.tokens {
            None => Err(Fault::new("malformed", "a token, and neither auth.jwt nor auth.oidc is set")),
            Some(Tokens::Known(rules, key)) => {
                let signed = token::read_header(token, rules)?;
                token::verify(token, signed.algorithm, key, rules)
            }
            Some(Tokens::Published(rules, _, source)) => {
                let signed = token::read_header(token, rules)?;
                token::check_expiry(token, rules, jsonwebtoken::get_current_timestamp())?;
                let keys = source.keys_for(&signed)?;
                let mut last = Fault::new("unknown_key", "a token without kid");
                for key in keys.find(signed.kid.as_deref().unwrap_or_default(), signed.algorithm) {
                    match token::verify(token, signed.algorithm, key, rules) {
                        Ok(caller) => return Ok(caller),
                        Err(fault) => last = fault,
                    }
                }
                Err(last)
            }
        }
    }

    fn by_certificate(&self, fingerprint: &str, subject: &str) -> Result<Caller, Fault> {
        let fits = |client: &&TlsClient| match &client.name {
            CertName::Fingerprint(own) => own.eq_ignore_ascii_case(fingerprint),
            CertName::Subject(own) => own == subject,
        };
        // What is said of this very certificate counts more than what is said of its name.
        let (exact, named): (Vec<_>, Vec<_>) =
            self.certificates.iter().filter(fits).partition(|client| matches!(client.name, CertName::Fingerprint(_)));
        let client = exact.into_iter().chain(named).next().ok_or_else(|| {
            Fault::new("certificate", format!("the certificate {} stands for nobody", token::shown(fingerprint)))
        })?;
        let namespaces = match client.role {
            Role::Admin => Namespaces::All,
            _ => Namespaces::Only(client.namespaces.iter().cloned().collect()),
        };
        let name = if subject.is_empty() { fingerprint } else { subject };
        let name = name.chars().filter(|c| !c.is_control()).take(256).collect();
        Ok(Caller { name, role: client.role, namespaces, method: "certificate" })
    }
}

#[cfg(test)]
mod tests;
