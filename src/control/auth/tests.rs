use std::net::Ipv4Addr;

use super::*;
use crate::api::{self, Method};
use crate::config;
use crate::config::tls::{CertName, TlsClient};
use crate::support::pki::Pki;
use crate::support::tokens::{AUDIENCE, ISSUER, Signer, changed, claims, now_secs};

const ADMIN: &str = "the-key-of-the-admin";
const OPERATOR: &str = "the-key-of-an-operator";
const VIEWER: &str = "the-key-of-a-viewer-0";

fn config(more: &str) -> AuthConfig {
    let keys = format!(
        "[agent]\ninterfaces = ['eth0']\n[auth]\n{more}\n\
         [[auth.api_keys]]\nname = 'root'\nkey = '{ADMIN}'\nrole = 'admin'\n\
         [[auth.api_keys]]\nname = 'op'\nkey_hash = '{}'\nrole = 'operator'\nnamespaces = ['prod', 'dev']\n\
         [[auth.api_keys]]\nname = 'see'\nkey = '{VIEWER}'\n",
        config::auth::KeyHash::of(OPERATOR).text()
    );
    config::parse("c.toml", keys.as_bytes(), [], &[]).map_err(|errors| errors.to_string()).unwrap().0.auth
}

fn made(config: &AuthConfig, clients: &[TlsClient]) -> Arc<Auth> {
    let (supervisor, _failures) = Supervisor::new().unwrap();
    Auth::new(config, clients, &Metrics::new(), &supervisor).unwrap()
}

fn auth(more: &str) -> Arc<Auth> {
    made(&config(more), &[])
}

fn peer() -> Option<IpAddr> {
    Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)))
}

fn key(key: &str) -> Credentials<'_> {
    Credentials { api_key: Some(key), ..Credentials::default() }
}

fn by_bearer(credential: &str) -> Credentials<'_> {
    Credentials { bearer: Some(credential), ..Credentials::default() }
}

const fn spec(role: Role) -> Spec {
    Spec {
        command: "test",
        method: Method::Get,
        path: "/test",
        query: &[],
        role,
        summary: "",
        body: None,
        reply: api::no_reply,
        success: 200,
    }
}

#[test]
fn keys_say_who_calls() {
    let auth = auth("");
    let name = |credentials: Credentials<'_>| {
        let caller = auth.identify(&credentials, None);
        caller.map(|caller| (caller.name, caller.role)).map_err(|refusal| (refusal.error.status, refusal.reason))
    };
    assert_eq!(name(key(ADMIN)), Ok(("root".to_owned(), Role::Admin)));
    assert_eq!(name(by_bearer(OPERATOR)), Ok(("op".to_owned(), Role::Operator)));
    assert_eq!(name(key(VIEWER)), Ok(("see".to_owned(), Role::Viewer)));
    for wrong in ["the-key-of-the-admim", "the-key-of-the-admin ", "the-key-of-the-admi", "THE-KEY-OF-THE-ADMIN"] {
        assert_eq!(name(key(wrong)), Err((401, "unknown_key")), "{wrong}");
    }
    for wrong in ["", &"k".repeat(257)] {
        assert_eq!(name(key(wrong)), Err((401, "malformed")), "{wrong}");
    }
    assert_eq!(name(Credentials::default()), Err((401, "missing")));
    // What is shown first must be good, whatever else is shown.
    let both = Credentials { bearer: Some("not-a-key-of-ours"), api_key: Some(ADMIN), ..Credentials::default() };
    assert_eq!(name(both), Err((401, "unknown_key")));
    assert_eq!(name(Credentials { unix: Some((0, 0)), ..key("not-a-key-of-ours") }), Err((401, "unknown_key")));
    // A token where none is taken.
    assert_eq!(name(by_bearer("a.b.c")), Err((401, "malformed")));
    let operator = auth.identify(&key(OPERATOR), None).unwrap();
    assert!(operator.namespaces.check(Some("dev")).is_ok() && operator.namespaces.check(None).is_err());
    assert_eq!(operator.method, "api_key");
}

#[test]
fn authorization_is_bearer() {
    for (text, want) in [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic YTpi", ""),
        ("Bearer", ""),
        ("abc", ""),
        ("", ""),
        ("Bearerabc", ""),
    ] {
        assert_eq!(bearer(text), want, "{text:?}");
    }
}

#[test]
fn the_answer_tells_no_more_than_it_must() {
    let auth = auth("");
    let refused = |credentials: Credentials<'_>| auth.identify(&credentials, peer()).unwrap_err();
    let missing = refused(Credentials::default());
    assert_eq!(missing.challenge, Some("Bearer realm=\"ebpfsentinel\""));
    let bad = refused(key("not-a-key-of-ours"));
    let worse = refused(by_bearer("a.b.c"));
    assert_eq!((&bad.error, bad.challenge), (&worse.error, worse.challenge));
    assert_eq!(bad.error.code, "AUTHENTICATION_REQUIRED");
    assert!(bad.challenge.unwrap().contains("invalid_token"));
}

#[test]
fn roles_are_enough_or_not() {
    let auth = auth("metrics_auth_required = true");
    static METRICS: Spec = Spec { path: "/metrics", ..spec(Role::Public) };
    static OPEN: Spec = spec(Role::Public);
    static READ: Spec = spec(Role::Viewer);
    static CHANGE: Spec = spec(Role::Operator);
    static COMMAND: Spec = spec(Role::Admin);
    let check = |spec: &Spec, credentials: Credentials<'_>, want: u16| {
        let got = auth.admit(spec, &credentials, None);
        assert_eq!(
            got.map_or_else(|refusal| refusal.error.status, |_| 200),
            want,
            "{} {credentials:?}",
            spec.role.name()
        );
    };
    for (credentials, statuses) in [
        (Credentials::default(), [401, 200, 401, 401, 401]),
        (key("not-a-key-of-ours"), [401, 200, 401, 401, 401]),
        (key(VIEWER), [200, 200, 200, 403, 403]),
        (key(OPERATOR), [200, 200, 200, 200, 403]),
        (key(ADMIN), [200; 5]),
    ] {
        for (spec, want) in [&METRICS, &OPEN, &READ, &CHANGE, &COMMAND].into_iter().zip(statuses) {
            check(spec, credentials, want);
        }
    }
    let refused = auth.admit(&COMMAND, &key(VIEWER), None).unwrap_err();
    assert_eq!((refused.error.code, refused.reason), ("INSUFFICIENT_ROLE", "role"));
    assert_eq!(refused.error.message, "this needs the role admin; yours is viewer");
    assert_eq!(refused.caller.unwrap().name, "see");
    let open = super::Auth::open(&Metrics::new());
    assert_eq!(open.admit(&COMMAND, &Credentials::default(), peer()).unwrap().role, Role::Admin);
}

#[test]
fn users_of_the_socket_and_certificates() {
    let client = |name: CertName, role| TlsClient { name, role, namespaces: vec!["prod".to_owned()] };
    let clients = [
        client(CertName::Subject("scraper".to_owned()), Role::Viewer),
        client(CertName::Subject("deploy".to_owned()), Role::Operator),
        client(CertName::Fingerprint("aa11".to_owned()), Role::Admin),
    ];
    let auth = made(&config(""), &clients);
    let role = |credentials: Credentials<'_>| {
        auth.identify(&credentials, None).map(|caller| caller.role).map_err(|refusal| refusal.reason)
    };
    let certificate = |fingerprint, subject| {
        role(Credentials { certificate: Some((fingerprint, subject)), ..Credentials::default() })
    };
    assert_eq!(certificate("AA11", "anybody"), Ok(Role::Admin));
    assert_eq!(certificate("bb22", "scraper"), Ok(Role::Viewer));
    assert_eq!(certificate("AA11", "scraper"), Ok(Role::Admin), "the very certificate counts more than its name");
    assert_eq!(certificate("bb22", "anybody"), Err("certificate"));
    assert_eq!(certificate("bb22", ""), Err("certificate"));
    let shown = Credentials { certificate: Some(("bb22", "deploy")), ..Credentials::default() };
    let deploy = auth.identify(&shown, None).unwrap();
    assert_eq!((deploy.name.as_str(), deploy.method), ("deploy", "certificate"));
    assert!(deploy.namespaces.check(Some("prod")).is_ok() && deploy.namespaces.check(Some("dev")).is_err());
    let unix = |user, group| role(Credentials { unix: Some((user, group)), ..Credentials::default() });
    assert_eq!(unix(0, 0), Ok(Role::Admin));
    assert_eq!(unix(0, 12345), Ok(Role::Admin));
    assert_eq!(unix(54321, 12345), Err("missing"));
    let members = Members { user: 7, group: Some(9) };
    let have = |user, group| members.have(user, group);
    assert!(have(0, 1) && !have(1, 7));
    assert!(have(7, 1) && have(1, 9) && !have(1, 0) && !have(9, 7));
}

#[test]
fn a_flood_is_slowed_and_locks_nobody_out() {
    let auth = auth("");
    let status = |text: &str, address: Option<IpAddr>| {
        auth.identify(&key(text), address).map_or_else(|refusal| refusal.error.status, |_| 200)
    };
    assert_eq!(status(VIEWER, peer()), 200);
    let guesses: Vec<u16> = (0..30).map(|n| status(&format!("a-guess-of-a-key-{n}"), peer())).collect();
    let burst = Limits::DEFAULT.burst as usize;
    assert_eq!(guesses[..burst], vec![401; burst]);
    // Time goes on meanwhile, so one or another may be looked at again.
    assert!(guesses[burst..].iter().filter(|&&status| status == 429).count() >= 15, "{guesses:?}");
    assert_eq!(status(VIEWER, peer()), 200, "whoever was let in from there still is");
    let refused = auth.identify(&key(ADMIN), peer()).unwrap_err();
    assert_eq!((refused.error.code, refused.reason), ("RATE_LIMITED", "throttled"), "a guess, as far as is known");
    assert!((1..=2).contains(&refused.retry_after_secs.unwrap()));
    assert_eq!(status(ADMIN, Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)))), 200);
    assert_eq!(status("a-guess-of-a-key", None), 401, "users of the socket are not slowed");
    let told = (0..30).filter(|_| auth.identify(&Credentials::default(), peer()).unwrap_err().told.is_some());
    assert!(told.count() < 15, "what is told of a flood is bounded");
}

#[test]
fn good_tokens_pass_in_a_flood() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer::new(jsonwebtoken::Algorithm::EdDSA, "one");
    let path = folder.path().join("jwt.pub");
    std::fs::write(&path, &signer.public_pem).unwrap();
    let jwt = format!(
        "jwt = {{ issuer = '{ISSUER}', audience = '{AUDIENCE}', public_key_path = '{}', algorithm = 'EdDSA' }}",
        path.display()
    );
    let auth = auth(&jwt);
    let good = signer.sign(&claims("viewer"));
    let (said, signature) = good.rsplit_once('.').unwrap();
    let other = if signature.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{said}.{other}{}", &signature[1..]);
    let status =
        |token: &str| auth.identify(&by_bearer(token), peer()).map_or_else(|refusal| refusal.error.status, |_| 200);
    let statuses: Vec<u16> = (0..40).map(|_| status(&forged)).collect();
    assert!(statuses.iter().all(|status| matches!(status, 401 | 429)) && statuses.contains(&429), "{statuses:?}");
    assert_eq!(status(&good), 200);
    let caller = auth.identify(&by_bearer(&good), peer()).unwrap();
    assert_eq!((caller.name.as_str(), caller.method), ("viewer-by-token", "jwt"));
}

/// An issuer that cannot be asked.
fn oidc(more: &str) -> AuthConfig {
    config(&format!("oidc = {{ issuer = 'https://127.0.0.1:1', audience = 'a', allow_private = true{more} }}"))
}

#[test]
fn a_token_that_has_expired_is_refused_for_certain() {
    let auth = made(&oidc(", algorithms = ['EdDSA'], leeway_secs = 10"), &[]);
    let signer = Signer::new(jsonwebtoken::Algorithm::EdDSA, "one");
    let refused = |expires: serde_json::Value| {
        let token = signer.sign(&changed(&claims("viewer"), "exp", expires));
        let refusal = auth.identify(&by_bearer(&token), None).unwrap_err();
        (refusal.error.status, refusal.reason)
    };
    let now = now_secs();
    assert_eq!(refused((now - 60).into()), (401, "expired"));
    assert_eq!(refused((now as f64 - 60.5).into()), (401, "expired"));
    assert_eq!(refused(0.into()), (401, "expired"));
    // These may be good.
    assert_eq!(refused((now - 3).into()), (503, "issuer_unavailable"), "clocks differ");
    assert_eq!(refused((now + 60).into()), (503, "issuer_unavailable"));
    assert_eq!(refused("soon".into()), (503, "issuer_unavailable"), "that is for the library to say");
}

#[test]
fn a_reload_keeps_the_issuer_that_stays() {
    let auth = made(&oidc(""), &[]);
    let source = |state: &State| match &state.tokens {
        Some(Tokens::Published(_, _, keys)) => keys.clone(),
        _ => panic!("there is no issuer"),
    };
    let first = source(&auth.current());
    let same = auth.prepare(&oidc(""), &[]).unwrap();
    assert!(Arc::ptr_eq(&first, &source(&same)));
    let other = auth.prepare(&oidc(", refresh_secs = 60"), &[]).unwrap();
    assert!(!Arc::ptr_eq(&first, &source(&other)));
    // The same file that says something else is another one.
    let pki = Pki::new();
    let with_ca = || oidc(&format!(", ca_file = '{}'", pki.arg("ca.pem")));
    pki.authority("ca");
    auth.replace(auth.prepare(&with_ca(), &[]).unwrap());
    let second = source(&auth.current());
    assert!(Arc::ptr_eq(&second, &source(&auth.prepare(&with_ca(), &[]).unwrap())));
    pki.authority("ca");
    assert!(!Arc::ptr_eq(&second, &source(&auth.prepare(&with_ca(), &[]).unwrap())));
    // A key that is taken out lets nobody in any more, and comes back when the change is taken back.
    let mut without = oidc("");
    without.api_keys.remove(0);
    let before = auth.replace(auth.prepare(&without, &[]).unwrap());
    assert_eq!(auth.identify(&key(ADMIN), None).unwrap_err().reason, "unknown_key");
    auth.replace(before);
    assert_eq!(auth.identify(&key(ADMIN), None).unwrap().name, "root");
}
