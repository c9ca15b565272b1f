//! What a stranger sends as a token, and what an issuer sends as keys: read or refused, and never somebody's.

use ebpfsentinel::config::auth::TokenAlgorithm;
use ebpfsentinel::control::auth::{KeySet, TokenRules, read_header, verify};
use jsonwebtoken::DecodingKey;

const ALL: [TokenAlgorithm; 3] = [TokenAlgorithm::Rs256, TokenAlgorithm::Es256, TokenAlgorithm::EdDSA];

pub fn run(bytes: &[u8]) {
    let rules = TokenRules {
        issuer: "https://issuer.example".to_owned(),
        audience: "ebpfsentinel".to_owned(),
        algorithms: ALL.to_vec(),
        leeway_secs: 60,
        role_claim: "role".to_owned(),
        namespaces_claim: "realm.namespaces".to_owned(),
        method: "jwt",
    };
    let token = String::from_utf8_lossy(bytes);
    if let Ok(signed) = read_header(&token, &rules) {
        let key = match signed.algorithm {
            TokenAlgorithm::Rs256 => DecodingKey::from_rsa_raw_components(&[0xc5; 256], &[1, 0, 1]),
            TokenAlgorithm::Es256 => DecodingKey::from_ec_der(&[4; 65]),
            TokenAlgorithm::EdDSA => DecodingKey::from_ed_der(&[7; 32]),
        };
        assert!(verify(&token, signed.algorithm, &key, &rules).is_err());
    }
    if let Ok(keys) = KeySet::read(bytes, &ALL) {
        assert!(keys.len() <= 64, "{} keys", keys.len());
    }
}
