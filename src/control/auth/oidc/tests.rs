use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use jsonwebtoken::Algorithm;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::support::tokens::Signer;

const HOUR: Duration = Duration::from_secs(3600);
/// Long enough for a busy machine; nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);
const TIMING: Timing = Timing { refresh: HOUR, retry: HOUR, max_stale: HOUR, cooldown: HOUR, wait: PATIENCE };

/// An issuer that is asked by a call.
#[derive(Clone, Default)]
struct Issuer {
    /// What it answers; an error when nothing is there.
    keys: Arc<Mutex<Option<Value>>>,
    asked: Arc<AtomicUsize>,
    /// Each question waits for one of these, if there is a gate.
    gate: Option<Receiver<()>>,
}

impl Issuer {
    fn publish(&self, signers: &[&Signer]) {
        *self.keys.lock().unwrap() = Some(json!({"keys": signers.iter().map(|one| one.jwk()).collect::<Vec<_>>()}));
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn source(&self, timing: Timing) -> KeySource {
        source(Some("https://issuer.example/keys"), timing, self.clone())
    }
}

impl Ask for Issuer {
    fn get(&mut self, _url: &str) -> Result<Vec<u8>, String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.recv().map_err(|_| "the gate is gone".to_owned())?;
        }
        let keys = self.keys.lock().unwrap();
        keys.as_ref().map(|keys| keys.to_string().into_bytes()).ok_or_else(|| "out of order".to_owned())
    }
}

fn config(jwks_url: Option<&str>) -> OidcConfig {
    OidcConfig {
        issuer: "https://issuer.example".to_owned(),
        jwks_url: jwks_url.map(str::to_owned),
        audience: "a".to_owned(),
        algorithms: vec![TokenAlgorithm::EdDSA],
        refresh_secs: 3600,
        max_stale_secs: 3600,
        leeway_secs: 0,
        ca_file: None,
        allow_private: false,
    }
}

fn source(jwks_url: Option<&str>, timing: Timing, ask: impl Ask) -> KeySource {
    let (supervisor, _failures) = Supervisor::new().unwrap();
    KeySource::with(&config(jwks_url), timing, ask, &Metrics::new(), &supervisor).unwrap()
}

fn of(kid: &str) -> Signed {
    Signed { algorithm: TokenAlgorithm::EdDSA, kid: Some(kid.to_owned()) }
}

/// The reason of a refusal.
fn reason(source: &KeySource, kid: &str) -> &'static str {
    source.keys_for(&of(kid)).map(|_| "found").unwrap_or_else(|fault| fault.reason)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_new_key_is_found_and_unknown_ones_ask_once() {
    let (issuer, one, two) =
        (Issuer::default(), Signer::new(Algorithm::EdDSA, "one"), Signer::new(Algorithm::EdDSA, "two"));
    issuer.publish(&[&one]);
    let source = issuer.source(TIMING);
    // The first request waits for the first answer.
    assert_eq!((reason(&source, "one"), issuer.asked()), ("found", 1));
    issuer.publish(&[&two]);
    assert_eq!((reason(&source, "two"), issuer.asked()), ("found", 2));
    assert_eq!(reason(&source, "one"), "unknown_key", "a key that is not listed is gone");
    for n in 0..1000 {
        assert_eq!(reason(&source, &format!("made-up-{n}")), "unknown_key");
    }
    assert_eq!(issuer.asked(), 2, "a flood of unknown keys asks nothing more in its cool-down");
    let without = Signed { algorithm: TokenAlgorithm::EdDSA, kid: None };
    assert_eq!(source.keys_for(&without).unwrap_err().reason, "unknown_key");
    let other = Signed { algorithm: TokenAlgorithm::Rs256, kid: Some("two".to_owned()) };
    assert_eq!(source.keys_for(&other).unwrap_err().reason, "unknown_key", "a key is good for its algorithm only");
}

#[test]
fn keys_outlive_an_outage_and_are_not_good_for_ever() {
    let (issuer, one) = (Issuer::default(), Signer::new(Algorithm::EdDSA, "one"));
    let mut source = issuer.source(TIMING);
    wait_until("it was asked", || source.shared.lock().asked == 1);
    // Out of order from the start: our fault, not the client's.
    assert_eq!((reason(&source, "one"), issuer.asked()), ("issuer_unavailable", 2));
    assert_eq!((reason(&source, "one"), issuer.asked()), ("issuer_unavailable", 2));
    let why = source.degraded(Instant::now()).unwrap();
    assert_eq!(why, "auth.oidc: no keys of https://issuer.example: out of order");
    issuer.publish(&[&one]);
    source.shared.lock().wanted = None;
    assert_eq!((reason(&source, "one"), issuer.asked()), ("found", 3));
    assert_eq!(source.degraded(Instant::now()), None);
    *issuer.keys.lock().unwrap() = None;
    source.shared.lock().wanted = None;
    assert_eq!((reason(&source, "two"), issuer.asked()), ("unknown_key", 4));
    assert_eq!(reason(&source, "one"), "found", "the issuer does not answer, and its keys stay");
    let late = source.degraded(Instant::now() + HOUR * 3).unwrap();
    assert!(late.contains("s old: out of order"), "{late}");
    source.timing.max_stale = Duration::ZERO;
    assert_eq!(reason(&source, "one"), "issuer_unavailable", "but not for longer than max_stale");
}

#[test]
fn few_requests_wait_for_a_slow_issuer() {
    let (open, gate) = crossbeam_channel::unbounded();
    let issuer = Issuer { gate: Some(gate), ..Issuer::default() };
    let one = Signer::new(Algorithm::EdDSA, "one");
    issuer.publish(&[&one]);
    let source = Arc::new(issuer.source(TIMING));
    let waiting: Vec<_> = (0..WAITERS_MAX)
        .map(|_| {
            let source = source.clone();
            std::thread::spawn(move || reason(&source, "one"))
        })
        .collect();
    wait_until("all wait", || source.shared.lock().waiters == WAITERS_MAX);
    for _ in 0..100 {
        assert_eq!(reason(&source, "one"), "issuer_unavailable", "the others do not");
    }
    open.send(()).unwrap();
    for waiter in waiting {
        assert_eq!(waiter.join().unwrap(), "found");
    }
    assert_eq!((issuer.asked(), source.shared.lock().waiters), (1, 0), "one question for all");
}

#[test]
fn a_request_does_not_wait_for_ever() {
    let (_open, gate) = crossbeam_channel::bounded::<()>(0);
    let issuer = Issuer { gate: Some(gate), ..Issuer::default() };
    let source = issuer.source(Timing { wait: Duration::from_millis(20), ..TIMING });
    assert_eq!(reason(&source, "one"), "issuer_unavailable");
}

#[test]
fn the_thread_ends_with_its_source_and_its_panic_is_told() {
    struct Broken;
    impl Ask for Broken {
        fn get(&mut self, _: &str) -> Result<Vec<u8>, String> {
            panic!("on purpose")
        }
    }
    let source = source(Some("https://a"), TIMING, Broken);
    assert_eq!(reason(&source, "one"), "issuer_unavailable");
    wait_until("it is told", || {
        source.degraded(Instant::now()).is_some_and(|why| why.contains("the thread oidc-keys has ended"))
    });

    let issuer = Issuer::default();
    let source = issuer.source(TIMING);
    wait_until("it was asked", || source.shared.lock().asked == 1);
    drop(source);
    // The thread holds a clone of the issuer.
    wait_until("it ends", || Arc::strong_count(&issuer.asked) == 1);
}

#[test]
fn an_issuer_that_fails_is_asked_less_and_less() {
    let timing = Timing { refresh: Duration::from_secs(3600), retry: Duration::from_secs(5), ..TIMING };
    let secs: Vec<u64> = (1..10).map(|failures| timing.after_failures(failures).as_secs()).collect();
    assert_eq!(secs, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    assert_eq!(timing.after_failures(u32::MAX).as_secs(), 300);
    assert_eq!(Timing { refresh: Duration::from_secs(60), ..timing }.after_failures(9).as_secs(), 60);
}

#[test]
fn discovery_must_be_about_the_issuer() {
    struct Answers(VecDeque<(&'static str, Value)>);
    impl Ask for Answers {
        fn get(&mut self, url: &str) -> Result<Vec<u8>, String> {
            let (expected, answer) = self.0.pop_front().expect("it is asked no more");
            assert_eq!(url, expected);
            Ok(answer.to_string().into_bytes())
        }
    }
    let about = "https://issuer.example/.well-known/openid-configuration";
    let good = json!({"issuer": "https://issuer.example", "jwks_uri": "https://keys.example/k"});
    let one = Signer::new(Algorithm::EdDSA, "one");
    let answers = [(about, good), ("https://keys.example/k", json!({"keys": [one.jwk()]}))];
    let source = source(None, TIMING, Answers(answers.into()));
    assert_eq!(reason(&source, "one"), "found");

    let check = |text: &str, want: &str| {
        assert_eq!(jwks_uri(text.as_bytes(), "https://issuer.example").unwrap_err(), want, "{text}");
    };
    check("<html>", "the document about the issuer is not JSON");
    check(r#"{"issuer": "https://issuer.example"}"#, "the document about the issuer names no jwks_uri");
    for other in ["https://issuer.example/", "https://evil.example", "HTTPS://issuer.example"] {
        let error = jwks_uri(
            json!({"issuer": other, "jwks_uri": "https://k"}).to_string().as_bytes(),
            "https://issuer.example",
        );
        assert!(error.unwrap_err().starts_with("the document is about the issuer"), "{other}");
    }
}

#[test]
fn only_keys_that_are_for_us_are_taken() {
    let (rsa, ec, ed) = (
        Signer::new(Algorithm::RS256, "rsa"),
        Signer::new(Algorithm::ES256, "ec"),
        Signer::new(Algorithm::EdDSA, "ed"),
    );
    let all = [TokenAlgorithm::Rs256, TokenAlgorithm::Es256, TokenAlgorithm::EdDSA];
    let count = |keys: &[Value], allowed: &[TokenAlgorithm]| {
        KeySet::read(json!({ "keys": keys }).to_string().as_bytes(), allowed).map(|set| set.len())
    };
    let good = [rsa.jwk(), ec.jwk(), ed.jwk()];
    assert_eq!(count(&good, &all), Ok(3));
    assert_eq!(count(&good, &all[..1]), Ok(1));
    let with = |jwk: &Value, changes: &[(&str, Value)]| {
        let mut jwk = jwk.clone();
        for (name, value) in changes {
            match value {
                Value::Null => drop(jwk.as_object_mut().unwrap().remove(*name)),
                value => jwk[*name] = value.clone(),
            }
        }
        jwk
    };
    // `alg`, `use` and `key_ops` may be absent.
    assert_eq!(count(&[with(&rsa.jwk(), &[("alg", Value::Null), ("use", Value::Null)])], &all), Ok(1));
    let short = "0".repeat(170);
    for (base, changes) in [
        (&rsa, vec![("kid", Value::Null)]),
        (&rsa, vec![("kid", json!("k".repeat(KID_MAX + 1)))]),
        (&rsa, vec![("kid", json!(7))]),
        (&rsa, vec![("use", json!("enc"))]),
        (&rsa, vec![("key_ops", json!(["encrypt"]))]),
        (&rsa, vec![("alg", json!("RS512"))]),
        (&rsa, vec![("alg", json!("HS256"))]),
        (&rsa, vec![("alg", json!("none"))]),
        (&rsa, vec![("kty", json!("oct")), ("k", json!("AAAA"))]),
        (&rsa, vec![("n", json!(short))]),
        (&rsa, vec![("n", json!("A".repeat(4000)))]),
        (&rsa, vec![("n", json!("***"))]),
        (&rsa, vec![("e", json!("AQ"))]),
        (&rsa, vec![("e", json!("AA"))]),
        (&rsa, vec![("e", json!(""))]),
        (&ec, vec![("crv", json!("P-384"))]),
        (&ec, vec![("x", json!(""))]),
        (&ec, vec![("x", ec.jwk()["y"].clone())]),
        (&ed, vec![("crv", json!("P-256"))]),
        (&ed, vec![("x", json!("AAAA"))]),
        (&ed, vec![("kty", json!("AKP"))]),
    ] {
        let key = with(&base.jwk(), &changes);
        assert_eq!(count(std::slice::from_ref(&key), &all), Ok(0), "{key}");
    }
    assert!(count(&vec![json!({}); KEYS_MAX + 1], &all).is_err());
    for bad in ["", "[]", "{}", "null", r#"{"keys": {}}"#, "{\"keys\": []} x", &"[".repeat(100_000)] {
        assert!(KeySet::read(bad.as_bytes(), &all).is_err(), "{}", &bad[..bad.len().min(20)]);
    }
    assert!(KeySet::read(br#"{"keys": []}"#, &all).unwrap().is_empty());
}

proptest! {
    /// What an issuer answers is read or refused, whatever it is.
    #[test]
    fn no_answer_is_a_panic(
        kty in "RSA|EC|OKP|oct|\\PC{0,4}",
        crv in "P-256|Ed25519|\\PC{0,4}",
        texts in prop::collection::vec("[A-Za-z0-9_=-]{0,400}", 4),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let all = [TokenAlgorithm::Rs256, TokenAlgorithm::Es256, TokenAlgorithm::EdDSA];
        let jwk = json!({"kty": kty, "crv": crv, "kid": "a", "n": texts[0], "e": texts[1], "x": texts[2], "y": texts[3]});
        let _ = KeySet::read(json!({"keys": [jwk]}).to_string().as_bytes(), &all);
        let _ = KeySet::read(&bytes, &all);
        let _ = jwks_uri(&bytes, "a");
    }
}
