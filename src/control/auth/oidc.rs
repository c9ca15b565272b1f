//! The keys of an issuer that publishes them: OpenID Connect Discovery 1.0 and JWK Sets (RFC 7517).
//!
//! One thread, `oidc-keys`, asks the issuer: when it starts, every `refresh_secs`, sooner after a failure, and when a token
//! names a key that is not known. That last one anybody can cause, so there is one such question in [`Timing::cooldown`];
//! within it all keys that were not found are known not to be there. A request waits for the answer for at most
//! [`Timing::wait`], and only [`WAITERS_MAX`] requests at a time, so that the other workers go on. While the issuer does
//! not answer, its keys stay good for `max_stale_secs`; a key that it does not list any more is gone at once.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use serde_json::Value;

use super::Fault;
use super::token::{KID_MAX, Signed, shown};
use crate::config::auth::{OidcConfig, TokenAlgorithm, check_verification_key, parse_url};
use crate::metrics::Metrics;
use crate::outbound::{Client, ClientConfig, Fetched, Validators};
use crate::supervise::{Pulse, Supervisor};

/// Longest answer of an issuer, in bytes.
const ANSWER_MAX: u64 = 256 << 10;
/// Keys that are looked at in one set.
const KEYS_MAX: usize = 64;
/// Requests that wait for the issuer at a time.
const WAITERS_MAX: usize = 2;
/// For one question to the issuer.
const FETCH_WITHIN: Duration = Duration::from_secs(10);

/// When the issuer is asked, and for how long its answers are good.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between questions when all is well.
    pub refresh: Duration,
    /// After a failure; doubled with each further one, up to `refresh` or five minutes.
    pub retry: Duration,
    /// Age of the last answer from which on its keys are not good any more.
    pub max_stale: Duration,
    /// Between questions because of unknown keys.
    pub cooldown: Duration,
    /// For which a request waits.
    pub wait: Duration,
}

impl Timing {
    fn of(config: &OidcConfig) -> Timing {
        Timing {
            refresh: Duration::from_secs(config.refresh_secs.into()),
            retry: Duration::from_secs(5),
            max_stale: Duration::from_secs(config.max_stale_secs.into()),
            cooldown: Duration::from_secs(30),
            wait: Duration::from_secs(2),
        }
    }

    fn after_failures(&self, failures: u32) -> Duration {
        let longest = self.refresh.min(Duration::from_secs(300));
        (self.retry * 2u32.saturating_pow(failures.saturating_sub(1).min(16))).min(longest)
    }
}

/// Asks an issuer.
pub trait Ask: Send + 'static {
    /// The document at a URL.
    fn get(&mut self, url: &str) -> Result<Vec<u8>, String>;
}

struct Outbound {
    client: Client,
    allow_private: bool,
}

impl Ask for Outbound {
    fn get(&mut self, url: &str) -> Result<Vec<u8>, String> {
        let url = parse_url(url, self.allow_private)?;
        match self.client.get(&url, &[("accept", "application/json")], &Validators::default()) {
            Ok(Fetched::Document { body, .. }) => Ok(body),
            Ok(Fetched::Refused(answer)) => Err(format!("{url} answered {}", answer.status)),
            Ok(Fetched::NotModified) => Err(format!("{url} answered 304")),
            Err(error) => Err(format!("{url}: {error}")),
        }
    }
}

/// Where the keys are.
#[derive(Clone, Debug)]
enum Place {
    /// In the document about the issuer of this name.
    Discover(String),
    /// There.
    At(String),
}

/// The keys that an issuer lists, by their ids. Only those that are good for an algorithm that is allowed.
#[derive(Debug, Default)]
pub struct KeySet(HashMap<String, Vec<(TokenAlgorithm, DecodingKey)>>);

impl KeySet {
    /// Reads a JWK Set. Keys that are not for us are passed over, as RFC 7517 section 5 has it.
    pub fn read(json: &[u8], allowed: &[TokenAlgorithm]) -> Result<KeySet, String> {
        let document: Value = serde_json::from_slice(json).map_err(|_| "the keys are not JSON".to_owned())?;
        let listed = document["keys"].as_array().ok_or("there is no list of keys in the answer")?;
        if listed.len() > KEYS_MAX {
            return Err(format!("{} keys, and {KEYS_MAX} is the limit", listed.len()));
        }
        let mut keys = KeySet::default();
        for jwk in listed {
            let Ok(jwk) = serde_json::from_value::<Jwk>(jwk.clone()) else { continue };
            let Some(kid) = jwk.common.key_id.clone().filter(|kid| kid.len() <= KID_MAX) else { continue };
            if let Some((algorithm, key)) = usable(&jwk, allowed) {
                keys.0.entry(kid).or_default().push((algorithm, key));
            }
        }
        Ok(keys)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys that may have signed a token.
    pub fn find(&self, kid: &str, algorithm: TokenAlgorithm) -> impl Iterator<Item = &DecodingKey> {
        let named = self.0.get(kid).map(Vec::as_slice).unwrap_or_default();
        named.iter().filter(move |(known, _)| *known == algorithm).map(|(_, key)| key)
    }
}

/// What a key is good for: it says so itself, by its type and by what else it says.
fn usable(jwk: &Jwk, allowed: &[TokenAlgorithm]) -> Option<(TokenAlgorithm, DecodingKey)> {
    if jwk.common.public_key_use.as_ref().is_some_and(|it| *it != PublicKeyUse::Signature) {
        return None;
    }
    if jwk.common.key_operations.as_ref().is_some_and(|them| !them.contains(&KeyOperations::Verify)) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => TokenAlgorithm::Rs256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => TokenAlgorithm::Es256,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => TokenAlgorithm::EdDSA,
        _ => return None,
    };
    let named = jwk.common.key_algorithm.map(|named| jsonwebtoken::Algorithm::try_from(named).ok());
    if !allowed.contains(&algorithm) || named.is_some_and(|named| named != Some(algorithm.algorithm())) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    check_verification_key(&key, algorithm).ok()?;
    Some((algorithm, key))
}

#[derive(Default)]
struct State {
    /// The last answer, and when it came.
    keys: Option<(Arc<KeySet>, Instant)>,
    /// Questions that have ended.
    asked: u64,
    /// A question was wanted, or is under way.
    is_asking: bool,
    /// When an unknown key last was a reason to ask.
    wanted: Option<Instant>,
    waiters: usize,
    /// Why the last question failed, and how many in a row did.
    failure: Option<String>,
    failures: u32,
    /// The thread is gone: a mistake of ours.
    is_dead: bool,
}

struct Shared {
    state: Mutex<State>,
    answered: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An issuer's keys. Its thread ends when it is dropped.
pub struct KeySource {
    issuer: String,
    timing: Timing,
    shared: Arc<Shared>,
    wake: Sender<()>,
}

impl KeySource {
    /// Starts asking. A failure of the issuer is none of the start's.
    pub fn start(config: &OidcConfig, metrics: &Arc<Metrics>, supervisor: &Supervisor) -> anyhow::Result<KeySource> {
        let client = Client::new(ClientConfig {
            allow_private: config.allow_private,
            // Of which parse_url decides; see there.
            insecure: true,
            ca_file: config.ca_file.as_ref().map(|file| file.path().to_owned()),
            timeout: FETCH_WITHIN,
            redirects_max: 0,
            body_max: ANSWER_MAX,
        })
        .map_err(anyhow::Error::msg)
        .context("auth.oidc")?;
        let ask = Outbound { client, allow_private: config.allow_private };
        KeySource::with(config, Timing::of(config), ask, metrics, supervisor)
    }

    /// The same with another way to ask, and other times.
    pub fn with(
        config: &OidcConfig,
        timing: Timing,
        ask: impl Ask,
        metrics: &Arc<Metrics>,
        supervisor: &Supervisor,
    ) -> anyhow::Result<KeySource> {
        let (wake, woken) = crossbeam_channel::bounded(1);
        let state = State { is_asking: true, ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), answered: Condvar::new() });
        let place = match &config.jwks_url {
            Some(url) => Place::At(url.clone()),
            None => Place::Discover(config.issuer.clone()),
        };
        let (seen, metrics, allowed) = (shared.clone(), metrics.clone(), config.algorithms.clone());
        let run = move |_: &Pulse| {
            let asker = Asker { place, allowed, timing, shared: seen.clone(), metrics };
            // What an issuer says is a stranger's text: a mistake of ours in reading it must not end the agent.
            if catch_unwind(AssertUnwindSafe(|| asker.run(ask, &woken))).is_err() {
                log::error!("the thread oidc-keys panicked: no keys of the issuer will be seen any more");
                seen.lock().is_dead = true;
                seen.answered.notify_all();
            }
            Ok(())
        };
        supervisor.spawn("oidc-keys", run).context("starting the thread oidc-keys")?;
        Ok(KeySource { issuer: config.issuer.clone(), timing, shared, wake })
    }

    /// The keys among which the one of a token is. May wait for [`Timing::wait`].
    pub fn keys_for(&self, signed: &Signed) -> Result<Arc<KeySet>, Fault> {
        let kid = signed.kid.as_deref().ok_or_else(|| Fault::new("unknown_key", "a token without kid"))?;
        let mut state = self.shared.lock();
        let known = |state: &State, now: Instant| {
            let keys = self.good_keys(state, now)?;
            keys.find(kid, signed.algorithm).next().is_some().then(|| keys.clone())
        };
        let now = Instant::now();
        if let Some(keys) = known(&state, now) {
            return Ok(keys);
        }
        let is_allowed = state.wanted.is_none_or(|last| now.saturating_duration_since(last) >= self.timing.cooldown);
        if !state.is_asking && is_allowed && !state.is_dead {
            state.wanted = Some(now);
            state.is_asking = true;
            // Full means that it will ask anyway.
            let _ = self.wake.try_send(());
        }
        if !state.is_asking || state.is_dead {
            return Err(self.unknown(&state, kid, now));
        }
        if state.waiters >= WAITERS_MAX {
            return Err(Fault::unavailable("the issuer is being asked for its keys"));
        }
        let asked = state.asked;
        state.waiters += 1;
        let waiting = self
            .shared
            .answered
            .wait_timeout_while(state, self.timing.wait, |state| state.asked == asked && !state.is_dead);
        let (mut state, timeout) = waiting.unwrap_or_else(PoisonError::into_inner);
        state.waiters -= 1;
        let now = Instant::now();
        match known(&state, now) {
            Some(keys) => Ok(keys),
            None if timeout.timed_out() => Err(Fault::unavailable("the issuer has not told its keys yet")),
            None => Err(self.unknown(&state, kid, now)),
        }
    }

    fn good_keys<'s>(&self, state: &'s State, now: Instant) -> Option<&'s Arc<KeySet>> {
        let (keys, since) = state.keys.as_ref()?;
        (now.saturating_duration_since(*since) < self.timing.max_stale).then_some(keys)
    }

    fn unknown(&self, state: &State, kid: &str, now: Instant) -> Fault {
        match self.good_keys(state, now) {
            Some(_) => Fault::new("unknown_key", format!("the issuer has no key {}", shown(kid))),
            None => Fault::unavailable("no keys of the issuer are known"),
        }
    }

    /// Why tokens are not let in, or soon will not be.
    pub fn degraded(&self, now: Instant) -> Option<String> {
        let state = self.shared.lock();
        let why = state.failure.clone().unwrap_or_else(|| "it was not asked yet".to_owned());
        let issuer = &self.issuer;
        if state.is_dead {
            return Some(format!("auth.oidc: the thread oidc-keys has ended; keys of {issuer} are not looked at"));
        }
        match &state.keys {
            None if state.asked == 0 => None,
            None => Some(format!("auth.oidc: no keys of {issuer}: {why}")),
            Some((keys, _)) if keys.is_empty() => Some(format!("auth.oidc: {issuer} has no key that can be used")),
            Some((_, since)) => {
                let age = now.saturating_duration_since(*since);
                let is_late = age > self.timing.refresh * 2 || age >= self.timing.max_stale;
                is_late.then(|| format!("auth.oidc: the keys of {issuer} are {} s old: {why}", age.as_secs()))
            }
        }
    }
}

/// What the thread does.
struct Asker {
    place: Place,
    allowed: Vec<TokenAlgorithm>,
    timing: Timing,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

impl Asker {
    fn run(&self, mut ask: impl Ask, woken: &Receiver<()>) {
        loop {
            let pause = self.ask_once(&mut ask);
            match woken.recv_timeout(pause) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => self.shared.lock().is_asking = true,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The time until the next question.
    fn ask_once(&self, ask: &mut impl Ask) -> Duration {
        let answer = self.fetch(ask);
        self.metrics.auth_keys_fetched(answer.is_ok());
        let mut state = self.shared.lock();
        state.is_asking = false;
        state.asked += 1;
        let pause = match answer {
            Ok(keys) => {
                if state.failures > 0 {
                    log::info!("auth.oidc: the issuer answers again");
                }
                (state.failure, state.failures) = (None, 0);
                log::debug!("auth.oidc: {} keys of the issuer", keys.len());
                state.keys = Some((Arc::new(keys), Instant::now()));
                self.timing.refresh
            }
            Err(why) => {
                // Once for each outage.
                if state.failure.as_ref() != Some(&why) {
                    log::warn!("auth.oidc: asking the issuer for its keys: {why}");
                }
                state.failures = state.failures.saturating_add(1);
                state.failure = Some(why);
                self.timing.after_failures(state.failures)
            }
        };
        drop(state);
        self.shared.answered.notify_all();
        pause
    }

    fn fetch(&self, ask: &mut impl Ask) -> Result<KeySet, String> {
        let url = match &self.place {
            Place::At(url) => url.clone(),
            Place::Discover(issuer) => {
                let about = ask.get(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')))?;
                jwks_uri(&about, issuer)?
            }
        };
        let keys = KeySet::read(&ask.get(&url)?, &self.allowed)?;
        if keys.is_empty() {
            log::warn!("auth.oidc: the issuer has no key that can be used");
        }
        Ok(keys)
    }
}

/// Where the document about an issuer says that its keys are. Fails where it is about another one.
pub fn jwks_uri(json: &[u8], issuer: &str) -> Result<String, String> {
    let about: Value =
        serde_json::from_slice(json).map_err(|_| "the document about the issuer is not JSON".to_owned())?;
    let named = about["issuer"].as_str().unwrap_or_default();
    if named != issuer {
        // OpenID Connect Discovery 1.0, section 4.3: it must be the same text.
        return Err(format!("the document is about the issuer \"{}\", not \"{issuer}\"", shown(named)));
    }
    let uri = about["jwks_uri"].as_str().ok_or("the document about the issuer names no jwks_uri")?;
    Ok(uri.to_owned())
}

#[cfg(test)]
mod tests;
