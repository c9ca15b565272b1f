//! Tokens (JWT, RFC 7519): is one what it says, and whose is it.
//!
//! The library checks signatures and times. What is decided here is what it may check with: `alg` is pinned before a key is
//! looked at, keys come from the configuration or the issuer and never from the token (`jwk`, `jku`, `x5u` are not
//! read), and what a token demands to be understood (`crit`) is refused.

use std::collections::BTreeSet;

use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

use super::Fault;
use crate::api::{Caller, Namespaces, Role};
use crate::config::auth::{AuthConfig, NAMESPACES_MAX, TokenAlgorithm};

/// Longest token, in bytes: nothing longer is decoded.
pub const TOKEN_MAX: usize = 8 << 10;
/// Longest header of one, encoded.
const HEADER_MAX: usize = 2 << 10;
/// Longest id of a key.
pub const KID_MAX: usize = 256;
/// Longest subject, in characters.
const SUBJECT_MAX: usize = 256;
/// Roles that one token may list.
const ROLES_MAX: usize = 1024;
/// Types of tokens that may stand for access (RFC 7519 5.1, RFC 9068 2.1). Others, such as those of logout, are made for
/// other ends by the same issuer with the same keys.
const TYPES: &[&str] = &["JWT", "at+jwt", "application/at+jwt"];

/// What a token must be.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// What `iss` must be.
    pub issuer: String,
    /// What must be in `aud`.
    pub audience: String,
    /// What `alg` may be.
    pub algorithms: Vec<TokenAlgorithm>,
    /// Seconds by which clocks may differ.
    pub leeway_secs: u32,
    /// Where the role is.
    pub role_claim: String,
    /// Where the namespaces are.
    pub namespaces_claim: String,
    /// What a caller of such a token is said to have come by.
    pub method: &'static str,
}

impl TokenRules {
    /// Those of `[auth.jwt]` or `[auth.oidc]`, if there is one.
    pub fn of(config: &AuthConfig) -> Option<TokenRules> {
        let (issuer, audience, algorithms, leeway_secs, method) = match (&config.jwt, &config.oidc) {
            (Some(jwt), _) => (&jwt.issuer, &jwt.audience, vec![jwt.algorithm], jwt.leeway_secs, "jwt"),
            (None, Some(oidc)) => (&oidc.issuer, &oidc.audience, oidc.algorithms.clone(), oidc.leeway_secs, "oidc"),
            (None, None) => return None,
        };
        Some(TokenRules {
            issuer: issuer.clone(),
            audience: audience.clone(),
            algorithms,
            leeway_secs,
            role_claim: config.role_claim.clone(),
            namespaces_claim: config.namespaces_claim.clone(),
            method,
        })
    }
}

/// What a token says about its signature; not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// `alg`, one of those that are allowed.
    pub algorithm: TokenAlgorithm,
    /// `kid`.
    pub kid: Option<String>,
}

/// Reads the header of a token.
pub fn read_header(token: &str, rules: &TokenRules) -> Result<Signed, Fault> {
    if token.len() > TOKEN_MAX {
        return Err(Fault::new("malformed", format!("a token of {} bytes", token.len())));
    }
    if token.split('.').next().is_none_or(|header| header.len() > HEADER_MAX) {
        return Err(Fault::new("malformed", "a token whose header is too long"));
    }
    let header = decode_header(token).map_err(fault)?;
    let allowed = rules.algorithms.iter().find(|allowed| allowed.algorithm() == header.alg);
    let algorithm = *allowed.ok_or_else(|| Fault::new("algorithm", format!("alg {:?} is not allowed", header.alg)))?;
    if header.crit.is_some() {
        return Err(Fault::new("malformed", "it demands that something be understood (crit)"));
    }
    if let Some(typ) = header.typ.filter(|typ| !TYPES.iter().any(|known| known.eq_ignore_ascii_case(typ))) {
        return Err(Fault::new("malformed", format!("typ {} is not for access", shown(&typ))));
    }
    if header.kid.as_ref().is_some_and(|kid| kid.len() > KID_MAX) {
        return Err(Fault::new("malformed", "an endless kid"));
    }
    Ok(Signed { algorithm, kid: header.kid })
}

/// Refuses a token that says of itself that it has expired, whoever signed it: that needs no key, and no issuer that
/// answers. Says nothing of any other token.
pub fn check_expiry(token: &str, rules: &TokenRules, now_s: u64) -> Result<(), Fault> {
    let claims = insecure_decode_claims::<Map<String, Value>>(token).map_err(fault)?;
    match claims.get("exp").and_then(Value::as_f64) {
        Some(exp) if exp + f64::from(rules.leeway_secs) < now_s as f64 => {
            Err(Fault::new("expired", "it says that it has expired"))
        }
        _ => Ok(()),
    }
}

/// Checks a token with a key, and says whose it is.
pub fn verify(token: &str, algorithm: TokenAlgorithm, key: &DecodingKey, rules: &TokenRules) -> Result<Caller, Fault> {
    let mut validation = Validation::new(algorithm.algorithm());
    validation.leeway = rules.leeway_secs.into();
    validation.validate_nbf = true;
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.set_issuer(&[&rules.issuer]);
    validation.set_audience(&[&rules.audience]);
    let claims = decode::<Map<String, Value>>(token, key, &validation).map_err(fault)?.claims;
    caller(&claims, rules)
}

/// Whose token it is, and what they may do.
pub fn caller(claims: &Map<String, Value>, rules: &TokenRules) -> Result<Caller, Fault> {
    let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
    if subject.is_empty() || subject.chars().nth(SUBJECT_MAX).is_some() || subject.chars().any(char::is_control) {
        return Err(Fault::new("claims", "a subject that is no name"));
    }
    let roles = texts(claim(claims, &rules.role_claim), ROLES_MAX)
        .ok_or_else(|| Fault::new("claims", format!("{} is neither a text nor a list of texts", rules.role_claim)))?;
    let known = |role: &str| Role::WORDS.iter().find(|(word, _)| *word == role).map(|(_, role)| *role);
    let role = roles.into_iter().filter_map(known).max().unwrap_or(Role::Public);
    let namespaces = match role {
        Role::Admin => Namespaces::All,
        Role::Operator => {
            let names = texts(claim(claims, &rules.namespaces_claim), NAMESPACES_MAX);
            let names = names.ok_or_else(|| {
                Fault::new(
                    "claims",
                    format!("{} is not a list of at most {NAMESPACES_MAX} names", rules.namespaces_claim),
                )
            })?;
            Namespaces::Only(names.into_iter().map(str::to_owned).collect())
        }
        Role::Viewer | Role::Public => Namespaces::Only(BTreeSet::new()),
    };
    Ok(Caller { name: subject.to_owned(), role, namespaces, method: rules.method })
}

/// The claim of this name, or at this path: Auth0's names are URLs with dots, Keycloak's roles stand in objects.
fn claim<'c>(claims: &'c Map<String, Value>, name: &str) -> Option<&'c Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let mut names = name.split('.');
    let mut value = claims.get(names.next()?)?;
    for name in names {
        value = value.as_object()?.get(name)?;
    }
    Some(value)
}

/// A text or a list of them; absent is an empty one.
fn texts(value: Option<&Value>, max: usize) -> Option<Vec<&str>> {
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(text)) => Some(vec![text]),
        Some(Value::Array(items)) if items.len() <= max => items.iter().map(Value::as_str).collect(),
        Some(_) => None,
    }
}

/// Why the library refused a token: a word for the metric, a text for the log.
fn fault(error: jsonwebtoken::errors::Error) -> Fault {
    let reason = match error.kind() {
        ErrorKind::ExpiredSignature => "expired",
        ErrorKind::ImmatureSignature => "not_yet_valid",
        ErrorKind::InvalidIssuer => "issuer",
        ErrorKind::InvalidAudience => "audience",
        ErrorKind::InvalidSignature => "signature",
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => "algorithm",
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => "claims",
        _ => "malformed",
    };
    Fault::new(reason, shown(&error.to_string()))
}

/// `text` as a log may repeat it: short and printable.
pub fn shown(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn rules() -> TokenRules {
        TokenRules {
            issuer: "https://issuer.example".to_owned(),
            audience: "ebpfsentinel".to_owned(),
            algorithms: vec![TokenAlgorithm::Rs256, TokenAlgorithm::EdDSA],
            leeway_secs: 0,
            role_claim: "role".to_owned(),
            namespaces_claim: "https://example.org/namespaces".to_owned(),
            method: "jwt",
        }
    }

    fn token_of(header: &Value) -> String {
        let encoded = |text: &str| data_encoding::BASE64URL_NOPAD.encode(text.as_bytes());
        format!("{}.{}.AAAA", encoded(&header.to_string()), encoded("{}"))
    }

    #[test]
    fn headers_are_pinned() {
        let check = |header: Value, want: Result<(TokenAlgorithm, Option<&str>), &str>| {
            let got = read_header(&token_of(&header), &rules());
            let got = got.map(|signed| (signed.algorithm, signed.kid)).map_err(|fault| fault.reason);
            assert_eq!(got, want.map(|(algorithm, kid)| (algorithm, kid.map(str::to_owned))), "{header}");
        };
        check(json!({"alg": "RS256", "kid": "a", "typ": "JWT"}), Ok((TokenAlgorithm::Rs256, Some("a"))));
        check(json!({"alg": "EdDSA", "typ": "at+JWT"}), Ok((TokenAlgorithm::EdDSA, None)));
        check(json!({"alg": "RS256", "jku": "https://evil.example/k"}), Ok((TokenAlgorithm::Rs256, None)));
        check(json!({"alg": "ES256"}), Err("algorithm"));
        check(json!({"alg": "HS256"}), Err("algorithm"));
        check(json!({"alg": "RS512"}), Err("algorithm"));
        for none in ["none", "None", "NONE", "nOnE", ""] {
            check(json!({"alg": none}), Err("malformed"));
        }
        check(json!({}), Err("malformed"));
        check(json!({"alg": "RS256", "crit": ["exp"]}), Err("malformed"));
        check(json!({"alg": "RS256", "crit": []}), Err("malformed"));
        check(json!({"alg": "RS256", "typ": "logout+jwt"}), Err("malformed"));
        check(json!({"alg": "RS256", "kid": "k".repeat(KID_MAX + 1)}), Err("malformed"));
        check(json!({"alg": "RS256", "x": "x".repeat(HEADER_MAX)}), Err("malformed"));
        check(json!({"alg": "RS256", "kid": ["a"]}), Err("malformed"));
        for text in ["", ".", "..", "...", "a.b", "a.b.c.d", &"x".repeat(TOKEN_MAX + 1), "\u{0}.\u{7f}.é"] {
            assert_eq!(read_header(text, &rules()).unwrap_err().reason, "malformed", "{text:?}");
        }
    }

    #[test]
    fn claims_make_a_caller() {
        let check = |claims: Value, want: Result<(Role, &[&str]), &str>| {
            let got = caller(claims.as_object().unwrap(), &rules());
            let want = want.map(|(role, names)| {
                let names = names.iter().map(|name| (*name).to_owned()).collect();
                (role, if role == Role::Admin { Namespaces::All } else { Namespaces::Only(names) })
            });
            let got = got.map(|caller| (caller.role, caller.namespaces)).map_err(|fault| fault.reason);
            assert_eq!(got, want, "{claims}");
        };
        let names = "https://example.org/namespaces";
        check(json!({"sub": "a", "role": "admin"}), Ok((Role::Admin, &[])));
        check(json!({"sub": "a", "role": "viewer", names: ["prod"]}), Ok((Role::Viewer, &[])));
        check(json!({"sub": "a", "role": "operator"}), Ok((Role::Operator, &[])));
        check(json!({"sub": "a", "role": "operator", names: ["prod", "dev"]}), Ok((Role::Operator, &["prod", "dev"])));
        check(json!({"sub": "a", "role": "operator", names: "prod"}), Ok((Role::Operator, &["prod"])));
        check(json!({"sub": "a", "role": "operator", names: null}), Ok((Role::Operator, &[])));
        check(json!({"sub": "a", "role": ["x", "viewer", "operator"], names: "p"}), Ok((Role::Operator, &["p"])));
        // A role that is not ours is none, and none is no role at all.
        for none in [json!({"sub": "a"}), json!({"sub": "a", "role": "root"}), json!({"sub": "a", "role": "Admin"})] {
            check(none, Ok((Role::Public, &[])));
        }
        check(json!({"sub": "a", "role": "public"}), Ok((Role::Public, &[])));
        for wrong in [json!(7), json!({"admin": true}), json!(["admin", 7]), json!(true)] {
            check(json!({"sub": "a", "role": wrong}), Err("claims"));
            check(json!({"sub": "a", "role": "operator", names: wrong}), Err("claims"));
        }
        check(json!({"sub": "a", "role": "operator", names: vec!["n"; NAMESPACES_MAX + 1]}), Err("claims"));
        for subject in [json!(null), json!(""), json!(7), json!("a\nb"), json!("x".repeat(257))] {
            check(json!({"sub": subject, "role": "admin"}), Err("claims"));
        }
    }

    #[test]
    fn claims_are_found_by_name_and_by_path() {
        let claims = json!({"a": {"b": {"c": 1}}, "a.b": 2, "https://x.org/r": 3});
        let find = |name: &str| claim(claims.as_object().unwrap(), name).cloned();
        assert_eq!(find("a.b"), Some(json!(2)));
        assert_eq!(find("a.b.c"), Some(json!(1)));
        assert_eq!(find("https://x.org/r"), Some(json!(3)));
        for absent in ["", ".", "a.", "a.b.c.d", "a..b", "b"] {
            assert_eq!(find(absent), None, "{absent}");
        }
    }

    proptest! {
        /// Whatever comes as a token is an answer, not a panic, and never a caller.
        #[test]
        fn no_text_is_a_token(header in "\\PC{0,40}", text in "[A-Za-z0-9_.=-]{0,300}", bytes in any::<Vec<u8>>()) {
            let rules = rules();
            let key = DecodingKey::from_ed_der(&[7; 32]);
            let encoded = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
            let made = format!("{}.{}.{}", encoded(header.as_bytes()), encoded(&bytes), text.replace('.', "_"));
            let typed = format!("{}.{}.{text}", encoded(br#"{"alg":"EdDSA"}"#), encoded(&bytes));
            for token in [&text, &made, &typed] {
                let _ = read_header(token, &rules);
                prop_assert!(verify(token, TokenAlgorithm::EdDSA, &key, &rules).is_err());
            }
        }

        /// Claims of any shape make a caller or a refusal.
        #[test]
        fn any_claims_are_read(claims in json_value()) {
            let mut claims = claims.as_object().cloned().unwrap_or_default();
            let _ = caller(&claims, &rules());
            claims.insert("sub".to_owned(), json!("somebody"));
            if let Ok(caller) = caller(&claims, &rules()) {
                prop_assert!(caller.role < Role::Admin || claims["role"].to_string().contains("admin"));
            }
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let word = prop::sample::select(vec!["role", "sub", "admin", "operator", "viewer", "namespaces", "", "a.b"]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(word.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
