//! A token and the keys of its issuer, made of texts so that base64 and signatures are in nobody's way: the first byte says
//! who signs, then come header, claims and key set, a line each. Who is let in is so by a plain reading of the claims,
//! too, and not with a signature that is another.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use data_encoding::BASE64URL_NOPAD;
use ebpfsentinel::api::{Namespaces, Role};
use ebpfsentinel::config::auth::TokenAlgorithm;
use ebpfsentinel::control::auth::{KeySet, TokenRules, jwks_uri, read_header, verify};
use serde_json::Value;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "ebpfsentinel";
const LEEWAY_SECS: u32 = 60;
const ALL: [TokenAlgorithm; 3] = [TokenAlgorithm::Rs256, TokenAlgorithm::Es256, TokenAlgorithm::EdDSA];
/// In the first byte: who signs (1 is the key of Ed25519, 2 that of P-256, else nobody).
const SIGNER: u8 = 3;
/// The header is the signer's own.
const OWN_HEADER: u8 = 4;
/// The key set is that of both signers.
const OWN_KEYS: u8 = 8;

/// The key of RFC 8037, appendix A, and that of RFC 7515, appendix A.3: everybody has them.
struct Signers {
    ed25519: Ed25519KeyPair,
    p256: EcdsaKeyPair,
}

const ED_D: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
const ED_X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const EC_D: &str = "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI";
const EC_X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const EC_Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";

static SIGNERS: LazyLock<Signers> = LazyLock::new(|| {
    let bytes = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).expect("it is base64");
    let point = [&[4][..], &bytes(EC_X), &bytes(EC_Y)].concat();
    let p256 = EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, &bytes(EC_D), &point);
    let ed25519 = Ed25519KeyPair::from_seed_and_public_key(&bytes(ED_D), &bytes(ED_X));
    let signers = Signers { ed25519: ed25519.expect("a key"), p256: p256.expect("a key") };
    let claims =
        format!(r#"{{"iss":"{ISSUER}","aud":"{AUDIENCE}","sub":"a","role":"admin","exp":9999999999}}"#).into_bytes();
    for choice in [1, 2] {
        let case = Case::of(&[&[choice | OWN_HEADER | OWN_KEYS, b'\n'][..], &claims].concat());
        let keys = KeySet::read(&case.keys, &ALL).expect("they are keys");
        assert!(case.lets_in(&signers, &keys, false), "a good token is refused");
    }
    signers
});

struct Case {
    choice: u8,
    header: Vec<u8>,
    claims: Vec<u8>,
    keys: Vec<u8>,
}

impl Case {
    fn of(bytes: &[u8]) -> Case {
        let (choice, rest) = bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest));
        let mut lines = rest.splitn(3, |&byte| byte == b'\n').map(<[u8]>::to_vec);
        let mut line = || lines.next().unwrap_or_default();
        let (mut header, claims, mut keys) = (line(), line(), line());
        if choice & OWN_HEADER != 0 {
            header = match choice & SIGNER {
                2 => br#"{"alg":"ES256","kid":"p"}"#.to_vec(),
                _ => br#"{"alg":"EdDSA","kid":"e","typ":"JWT"}"#.to_vec(),
            };
        }
        if choice & OWN_KEYS != 0 {
            keys = format!(
                r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"e","x":"{ED_X}"}},
                {{"kty":"EC","crv":"P-256","kid":"p","use":"sig","alg":"ES256","x":"{EC_X}","y":"{EC_Y}"}}]}}"#
            )
            .into_bytes();
        }
        Case { choice, header, claims, keys }
    }

    /// The token, with the signature or with one that differs in a bit.
    fn token(&self, signers: &Signers, is_forged: bool) -> String {
        let [header, claims] = [&self.header, &self.claims].map(|text| BASE64URL_NOPAD.encode(text));
        let text = format!("{header}.{claims}");
        let mut signature = match self.choice & SIGNER {
            1 => signers.ed25519.sign(text.as_bytes()).as_ref().to_vec(),
            2 => signers.p256.sign(&SystemRandom::new(), text.as_bytes()).expect("signing").as_ref().to_vec(),
            _ => vec![7; 64],
        };
        if is_forged {
            let at = self.claims.len() % signature.len();
            signature[at] ^= 1 << (self.header.len() % 8);
        }
        format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    /// Whether the token lets somebody in, by the way of the agent. What it says of them is checked.
    fn lets_in(&self, signers: &Signers, keys: &KeySet, is_forged: bool) -> bool {
        let rules = TokenRules {
            issuer: ISSUER.to_owned(),
            audience: AUDIENCE.to_owned(),
            algorithms: ALL.to_vec(),
            leeway_secs: LEEWAY_SECS,
            role_claim: "role".to_owned(),
            namespaces_claim: "realm.namespaces".to_owned(),
            method: "oidc",
        };
        let token = self.token(signers, is_forged);
        let Ok(signed) = read_header(&token, &rules) else { return false };
        let Some(kid) = &signed.kid else { return false };
        let mut callers = keys.find(kid, signed.algorithm);
        let Some(caller) = callers.find_map(|key| verify(&token, signed.algorithm, key, &rules).ok()) else {
            return false;
        };
        let signer = match self.choice & SIGNER {
            1 => TokenAlgorithm::EdDSA,
            2 => TokenAlgorithm::Es256,
            _ => panic!("nobody signed it, and {caller:?} is let in"),
        };
        assert_eq!(signed.algorithm, signer);
        let claims: Value = serde_json::from_slice(&self.claims).expect("claims are JSON");
        let has = |value: &Value, text: &str| {
            value == text || value.as_array().is_some_and(|all| all.iter().any(|one| one == text))
        };
        assert!(has(&claims["iss"], ISSUER) && has(&claims["aud"], AUDIENCE), "{claims}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs_f64();
        // A second for the clock, and one for rounding.
        let patience = f64::from(LEEWAY_SECS) + 2.0;
        assert!(claims["exp"].as_f64().is_some_and(|exp| exp + patience > now), "{claims}");
        assert!(claims["nbf"].is_null() || claims["nbf"].as_f64().is_some_and(|nbf| nbf < now + patience), "{claims}");
        assert!(claims["sub"] == caller.name.as_str() && (1..=256).contains(&caller.name.chars().count()), "{claims}");
        assert!(!caller.name.chars().any(char::is_control), "{claims}");
        let role = caller.role;
        assert!(role == Role::Public || has(&claims["role"], role.name()), "{role:?} by {claims}");
        let spaces = [&claims["realm.namespaces"], &claims["realm"]["namespaces"]];
        match caller.namespaces {
            Namespaces::All => assert_eq!(role, Role::Admin, "{claims}"),
            Namespaces::Only(names) => {
                assert!(names.is_empty() || role == Role::Operator, "{claims}");
                assert!(names.iter().all(|name| spaces.iter().any(|all| has(all, name))), "{names:?} by {claims}");
            }
        }
        true
    }
}

pub fn run(bytes: &[u8]) {
    let signers = &*SIGNERS;
    let case = Case::of(bytes);
    if let Ok(uri) = jwks_uri(&case.keys, ISSUER) {
        let about: Value = serde_json::from_slice(&case.keys).expect("it is JSON");
        assert!(about["issuer"] == ISSUER && about["jwks_uri"] == uri.as_str(), "{about}");
    }
    let Ok(keys) = KeySet::read(&case.keys, &ALL) else { return };
    assert!(keys.len() <= 64, "{} keys", keys.len());
    if case.lets_in(signers, &keys, false) {
        assert!(!case.lets_in(signers, &keys, true), "another signature is as good");
    }
}
