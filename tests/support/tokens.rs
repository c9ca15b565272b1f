//! Tokens as an issuer signs them, and the keys to check them with.

use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::{Value, json};

/// The issuer of [`claims`].
pub const ISSUER: &str = "https://issuer.example";
/// Their audience.
pub const AUDIENCE: &str = "ebpfsentinel";

/// A key of an issuer.
pub struct Signer {
    pub kid: String,
    pub algorithm: Algorithm,
    key: EncodingKey,
    pub public_pem: String,
    public: Vec<u8>,
}

impl Signer {
    /// A new key; of RS256, ES256 or EdDSA.
    pub fn new(algorithm: Algorithm, kid: &str) -> Signer {
        let kind = match algorithm {
            Algorithm::RS256 => &rcgen::PKCS_RSA_SHA256,
            Algorithm::ES256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            _ => &rcgen::PKCS_ED25519,
        };
        let pair = KeyPair::generate_for(kind).unwrap();
        let pem = pair.serialize_pem();
        let key = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem.as_bytes()),
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem.as_bytes()),
            _ => EncodingKey::from_ed_pem(pem.as_bytes()),
        };
        let (public, public_pem) = (pair.der_bytes().to_vec(), pair.public_key_pem());
        Signer { kid: kid.to_owned(), algorithm, key: key.unwrap(), public_pem, public }
    }

    /// The key as its issuer publishes it.
    pub fn jwk(&self) -> Value {
        let mut jwk = match self.algorithm {
            Algorithm::EdDSA => {
                json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": BASE64URL_NOPAD.encode(&self.public)})
            }
            _ => serde_json::to_value(Jwk::from_encoding_key(&self.key, self.algorithm).unwrap()).unwrap(),
        };
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("sig");
        jwk
    }

    /// A token of these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_with(Header { kid: Some(self.kid.clone()), ..Header::new(self.algorithm) }, claims)
    }

    /// The same with another header.
    pub fn sign_with(&self, header: Header, claims: &Value) -> String {
        encode(&header, claims, &self.key).unwrap()
    }
}

/// Seconds since 1970.
pub fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims of somebody with a role, good for an hour.
pub fn claims(role: &str) -> Value {
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": format!("{role}-by-token"), "role": role, "exp": now_secs() + 3600})
}

/// `claims` with one of them changed; null takes it out.
pub fn changed(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims
}
