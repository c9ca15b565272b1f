//! Section `[auth]`: who may call the control ports.
//!
//! API keys are kept as salted hashes from the moment they are read; tokens are checked with public keys only. So nothing
//! here is a secret, and still no hash is shown.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::rand;
use data_encoding::HEXLOWER;
use jsonwebtoken::{Algorithm, DecodingKey};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use ureq::http::Uri;

use crate::api::Role;
use crate::classify::rules::read_id;
use crate::guarded::{self, Holds};
use crate::outbound::{CaFile, Url};
use crate::secret::{MASK, Secret};
use crate::written::{Field, Reader};

/// API keys: each one costs a hash for each request.
pub const API_KEYS_MAX: usize = 256;
/// Least and most characters of an API key. Less could be guessed.
pub const KEY_CHARS: std::ops::RangeInclusive<usize> = 16..=256;
/// Namespaces of one caller.
pub const NAMESPACES_MAX: usize = 256;
/// Longest issuer, audience and URL, in bytes.
const TEXT_MAX: usize = 512;
/// Longest file with a public key, in bytes.
const PEM_MAX: usize = 64 << 10;
/// Fewer bits of an RSA modulus are not verified with, more cost too much.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// Section `[auth]`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct AuthConfig {
    /// Whether callers are asked who they are.
    pub enabled: bool,
    /// Whether the metrics, too, need the role viewer.
    pub metrics_auth_required: bool,
    /// Claim of a token that holds the role; a name, or a path with dots.
    pub role_claim: String,
    /// Claim of a token that holds an operator's namespaces; a name, or a path with dots.
    pub namespaces_claim: String,
    /// Keys that let their holders in.
    pub api_keys: Vec<ApiKey>,
    /// Tokens that one known key has signed.
    pub jwt: Option<JwtConfig>,
    /// Tokens of an issuer that publishes its keys.
    pub oidc: Option<OidcConfig>,
}

/// A key that lets its holder in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ApiKey {
    /// What the log and the audit call its holder.
    pub name: String,
    /// What is known of the key.
    #[serde(rename = "key_hash")]
    #[schemars(with = "String")]
    pub hash: KeyHash,
    /// What its holder may do.
    #[serde(serialize_with = "role_name")]
    #[schemars(with = "String")]
    pub role: Role,
    /// Whose rules an operator may change.
    pub namespaces: BTreeSet<String>,
}

/// Tokens that one known key has signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct JwtConfig {
    /// What `iss` must be.
    pub issuer: String,
    /// What must be in `aud`.
    pub audience: String,
    /// The file of the public key.
    pub public_key_path: PathBuf,
    /// What was in it, PEM.
    #[serde(skip)]
    #[schemars(skip)]
    pub public_key: String,
    /// What `alg` must be.
    pub algorithm: TokenAlgorithm,
    /// Seconds by which clocks may differ.
    pub leeway_secs: u32,
}

/// Tokens of an issuer that publishes its keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OidcConfig {
    /// What `iss` must be, and where the issuer describes itself unless `jwks_url` is given.
    pub issuer: String,
    /// Where the keys are.
    pub jwks_url: Option<String>,
    /// What must be in `aud`.
    pub audience: String,
    /// What `alg` may be.
    pub algorithms: Vec<TokenAlgorithm>,
    /// Seconds between looks at the keys.
    pub refresh_secs: u32,
    /// Seconds for which keys are good while the issuer does not answer.
    pub max_stale_secs: u32,
    /// Seconds by which clocks may differ.
    pub leeway_secs: u32,
    /// Certificates that the issuer's may come from, besides those of the system; PEM.
    pub ca_file: Option<CaFile>,
    /// Whether the issuer may have an address that is not public.
    pub allow_private: bool,
}

/// How a token is signed. Always with a private key: who can check a token cannot make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub enum TokenAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    EdDSA,
}

impl TokenAlgorithm {
    /// Words of the algorithms.
    pub const WORDS: &'static [(&'static str, TokenAlgorithm)] =
        &[("RS256", TokenAlgorithm::Rs256), ("ES256", TokenAlgorithm::Es256), ("EdDSA", TokenAlgorithm::EdDSA)];

    /// As the library calls it.
    pub const fn algorithm(self) -> Algorithm {
        match self {
            TokenAlgorithm::Rs256 => Algorithm::RS256,
            TokenAlgorithm::Es256 => Algorithm::ES256,
            TokenAlgorithm::EdDSA => Algorithm::EdDSA,
        }
    }
}

fn role_name<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(role.name())
}

/// What is kept of an API key: `sha256:SALT:HEX`, where HEX is the SHA-256 of the text SALT and the key behind it. A fast
/// hash is enough for keys that cannot be guessed; see [`KEY_CHARS`].
#[derive(Clone, PartialEq, Eq)]
pub struct KeyHash {
    salt: String,
    digest: [u8; 32],
}

impl KeyHash {
    /// The hash of a key, with a salt of its own.
    pub fn of(key: &str) -> KeyHash {
        let salt = random_text();
        KeyHash { digest: digest(&salt, key), salt }
    }

    /// Whether this is the hash of `key`; takes the same time whatever differs.
    pub fn matches(&self, key: &str) -> Choice {
        self.digest.ct_eq(&digest(&self.salt, key))
    }

    /// The text that a configuration takes as `key_hash`. (There is no `Display`, so that no log shows it by mistake.)
    pub fn text(&self) -> String {
        format!("sha256:{}:{}", self.salt, HEXLOWER.encode(&self.digest))
    }
}

fn digest(salt: &str, key: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(key).finalize().into()
}

/// 128 random bits.
fn random_text() -> String {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).expect("the kernel has random numbers");
    HEXLOWER.encode(&bytes)
}

/// A new key of 256 random bits.
pub fn new_key() -> String {
    format!("ebs_{}{}", random_text(), random_text())
}

impl FromStr for KeyHash {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyHash, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let &["sha256", salt, hex] = parts.as_slice() else {
            return Err("a hash is sha256:SALT:HEX, as `ebpfsentinel-agent auth hash` prints it".to_owned());
        };
        if !(16..=64).contains(&salt.len()) || !salt.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err("the salt, the second part of the hash, is 16 to 64 letters and digits".to_owned());
        }
        let digest = HEXLOWER.decode(hex.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let digest = digest.ok_or("the third part of the hash is 64 hexadecimal digits in lower case")?;
        Ok(KeyHash { salt: salt.to_owned(), digest })
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

/// Whether a text can be an API key.
pub fn check_key(key: &str) -> Result<(), String> {
    let (least, most) = (KEY_CHARS.start(), KEY_CHARS.end());
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a key is printable ASCII without blanks: it travels in a header field".to_owned());
    }
    if !KEY_CHARS.contains(&key.len()) {
        return Err(format!("a key has {least} to {most} characters; this one has {}", key.len()));
    }
    if looks_like_token(key) {
        return Err("a key with two dots would be taken for a token (JWT)".to_owned());
    }
    Ok(())
}

/// Whether a credential is a token (JWT) by its shape; else it is an API key.
pub fn looks_like_token(credential: &str) -> bool {
    credential.bytes().filter(|&byte| byte == b'.').count() == 2
}

impl AuthConfig {
    /// Reads the section. `names_clients`: there are `[[tls.clients]]`, whose certificates are credentials, too.
    pub fn read(mut r: Reader<'_>, names_clients: bool) -> AuthConfig {
        let enabled_field = r.key("enabled");
        let enabled = enabled_field.boolean();
        let metrics_auth_required = r.key("metrics_auth_required").boolean().unwrap_or(false);
        let role_claim = read_text(&r.key("role_claim")).unwrap_or_else(|| "role".to_owned());
        let namespaces_claim = read_text(&r.key("namespaces_claim")).unwrap_or_else(|| "namespaces".to_owned());
        let api_keys = read_api_keys(&r.key("api_keys"));
        let (jwt_field, oidc_field) = (r.key("jwt"), r.key("oidc"));
        r.finish();
        let jwt = jwt_field.table().map(|r| JwtConfig::read(r, jwt_field.is_present()));
        let oidc = oidc_field.table().map(|r| OidcConfig::read(r, oidc_field.is_present()));
        if jwt_field.is_present() && oidc_field.is_present() {
            oidc_field.error("jwt and oidc exclude each other: a token would have two issuers; remove one");
        }
        let methods = names_clients || !api_keys.is_empty() || jwt_field.is_present() || oidc_field.is_present();
        // Whoever writes keys wants them asked for.
        let enabled = enabled.unwrap_or(methods);
        if !enabled && names_clients {
            enabled_field
                .error("with false nobody is asked, and whoever is in [[tls.clients]] or not would be an admin");
        }
        if enabled && !methods {
            enabled_field
                .warn("there is no api_keys, jwt or oidc: only the Unix socket and client certificates let anybody in");
        }
        AuthConfig {
            enabled,
            metrics_auth_required,
            role_claim,
            namespaces_claim,
            api_keys,
            jwt: jwt.flatten(),
            oidc: oidc.flatten(),
        }
    }
}

/// A text that is neither empty nor endless.
fn read_text(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.is_empty() || text.len() > TEXT_MAX || text.chars().any(char::is_control) {
        field.error(format!("expected 1 to {TEXT_MAX} bytes of text without control characters"));
        return None;
    }
    Some(text.to_owned())
}

/// The role of a caller that the configuration names; a viewer if it is not written.
pub fn read_role(field: &Field<'_>) -> Role {
    field.one_of(Role::WORDS).unwrap_or(Role::Viewer)
}

/// The namespaces of a caller of this role.
pub fn read_namespaces(field: &Field<'_>, role: Role) -> BTreeSet<String> {
    let items = field.items().unwrap_or_default();
    if items.len() > NAMESPACES_MAX {
        field.error(format!("{} namespaces, and {NAMESPACES_MAX} is the limit", items.len()));
        return BTreeSet::new();
    }
    if field.is_present() && role != Role::Operator {
        let why = if role == Role::Admin { "changes all rules" } else { "changes no rule" };
        field.error(format!("namespaces are for operators; the role here is {}, which {why}", role.name()));
    }
    if role == Role::Operator && items.is_empty() {
        field.warn("an operator without namespaces changes no rule; name them in namespaces");
    }
    items.iter().filter_map(read_id).collect()
}

fn read_api_keys(list: &Field<'_>) -> Vec<ApiKey> {
    let readers = list.tables();
    if readers.len() > API_KEYS_MAX {
        list.error(format!("{} keys, and {API_KEYS_MAX} is the limit", readers.len()));
        return Vec::new();
    }
    let mut keys: Vec<ApiKey> = Vec::with_capacity(readers.len());
    for mut r in readers {
        let name_field = r.key("name").required();
        let name = read_id(&name_field);
        let (key_field, hash_field) = (r.key("key"), r.key("key_hash"));
        let key = Secret::read(&mut r, "key");
        let others = ["key", "key_file", "key_credential"].map(|name| r.key(name));
        let role = read_role(&r.key("role"));
        let namespaces = read_namespaces(&r.key("namespaces"), role);
        let given = others.iter().find(|field| field.is_present());
        let hash = match (given, hash_field.is_present()) {
            (Some(_), true) => {
                hash_field.error("the key is given already; keep key_hash alone");
                None
            }
            (None, false) => {
                key_field.error(
                    "missing; write key_hash (see `ebpfsentinel-agent auth hash`), key_file, key_credential or key",
                );
                None
            }
            (None, true) => hash_field.parse::<KeyHash>(),
            (Some(field), false) => key.and_then(|key| {
                check_key(key.expose()).inspect_err(|why| field.error(why)).ok()?;
                if let Some(twin) = keys.iter().find(|known| known.hash.matches(key.expose()).into()) {
                    field.error(format!("it is the key of {}; each has one of its own", twin.name));
                }
                Some(KeyHash::of(key.expose()))
            }),
        };
        r.finish();
        let (Some(name), Some(hash)) = (name, hash) else { continue };
        if keys.iter().any(|known| known.name == name) {
            name_field.error(format!("\"{name}\" is the name of another key"));
        }
        if keys.iter().any(|known| known.hash == hash) {
            hash_field.error("it is the hash of another key");
        }
        keys.push(ApiKey { name, hash, role, namespaces });
    }
    keys
}

impl JwtConfig {
    fn read(mut r: Reader<'_>, is_present: bool) -> Option<JwtConfig> {
        let [issuer_field, audience_field, path_field] =
            ["issuer", "audience", "public_key_path"].map(|name| required_if(r.key(name), is_present));
        let (issuer, audience) = (read_text(&issuer_field), read_text(&audience_field));
        let algorithm = r.key("algorithm").one_of(TokenAlgorithm::WORDS).unwrap_or(TokenAlgorithm::Rs256);
        let leeway_secs = read_leeway(&r.key("leeway_secs"));
        let path = read_path(&path_field);
        r.finish();
        let path = path?;
        let public_key = read_public_key(&path, algorithm).inspect_err(|why| path_field.error(why)).ok();
        Some(JwtConfig {
            issuer: issuer?,
            audience: audience?,
            public_key_path: path,
            public_key: public_key?,
            algorithm,
            leeway_secs,
        })
    }
}

fn required_if(field: Field<'_>, is_required: bool) -> Field<'_> {
    if is_required { field.required() } else { field }
}

/// More than a minute is not skew but a broken clock.
fn read_leeway(field: &Field<'_>) -> u32 {
    field.integer(0..=60u32).unwrap_or(30)
}

fn read_path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    if !Path::new(text).is_absolute() || text.contains('\0') {
        field.error(format!("\"{}\" is not an absolute path", text.escape_debug()));
        return None;
    }
    Some(PathBuf::from(text))
}

fn read_public_key(path: &Path, algorithm: TokenAlgorithm) -> Result<String, String> {
    let bytes = guarded::read(path, Holds::Orders, PEM_MAX).map_err(|why| format!("{}: {why}", path.display()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{}: not a PEM file", path.display()))?;
    verification_key(text, algorithm)?;
    Ok(text.to_owned())
}

/// The key of a PEM text, if `algorithm` can verify with it.
pub fn verification_key(pem: &str, algorithm: TokenAlgorithm) -> Result<DecodingKey, String> {
    if pem.contains("PRIVATE KEY-----") {
        return Err("it holds a private key, and the agent needs the public one: openssl pkey -pubout".to_owned());
    }
    if pem.contains("BEGIN CERTIFICATE-----") {
        return Err("it holds a certificate, not a public key: openssl x509 -pubkey -noout".to_owned());
    }
    let key = match algorithm {
        TokenAlgorithm::Rs256 => DecodingKey::from_rsa_pem(pem.as_bytes()),
        TokenAlgorithm::Es256 => DecodingKey::from_ec_pem(pem.as_bytes()),
        TokenAlgorithm::EdDSA => DecodingKey::from_ed_pem(pem.as_bytes()),
    };
    let word = TokenAlgorithm::WORDS.iter().find(|(_, known)| *known == algorithm).map_or("", |(word, _)| *word);
    let key = key.map_err(|_| format!("it holds no public key (PEM) for {word}"))?;
    check_verification_key(&key, algorithm).map_err(|why| format!("its key is not good for {word}: {why}"))?;
    Ok(key)
}

/// Whether the library can verify with this key, found out now and not with the first token.
pub fn check_verification_key(key: &DecodingKey, algorithm: TokenAlgorithm) -> Result<(), String> {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RsaPublicKeyComponents};
    use jsonwebtoken::AlgorithmFamily;
    use jsonwebtoken::DecodingKeyKind;
    let modulus = |bytes: usize| match bytes {
        _ if RSA_BYTES.contains(&bytes) => Ok(()),
        _ => Err(format!("{} bits, and it takes {} to {}", bytes * 8, RSA_BYTES.start() * 8, RSA_BYTES.end() * 8)),
    };
    match (algorithm, key.kind()) {
        (TokenAlgorithm::Rs256, _) if key.family() != AlgorithmFamily::Rsa => Err("not of RSA".to_owned()),
        (TokenAlgorithm::Rs256, DecodingKeyKind::SecretOrDer(der)) => {
            let public = aws_lc_rs::rsa::PublicKey::from_der(der).map_err(|e| e.to_string())?;
            modulus(RsaPublicKeyComponents::<Vec<u8>>::from(&public).n.len())
        }
        (TokenAlgorithm::Rs256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            let e_is_good = e.len() <= 8 && e.last().is_some_and(|last| last % 2 == 1) && e.as_slice() != [1];
            let n = n.iter().position(|&byte| byte != 0).map_or(0, |zeros| n.len() - zeros);
            if e_is_good { modulus(n) } else { Err("a strange exponent".to_owned()) }
        }
        (TokenAlgorithm::Es256, DecodingKeyKind::SecretOrDer(point)) if key.family() == AlgorithmFamily::Ec => {
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).map(drop).map_err(|_| "not on P-256".to_owned())
        }
        (TokenAlgorithm::EdDSA, DecodingKeyKind::SecretOrDer(point)) if key.family() == AlgorithmFamily::Ed => {
            ParsedPublicKey::new(&ED25519, point).map(drop).map_err(|_| "not of Ed25519".to_owned())
        }
        _ => Err("of another kind".to_owned()),
    }
}

impl OidcConfig {
    fn read(mut r: Reader<'_>, is_present: bool) -> Option<OidcConfig> {
        let [issuer_field, audience_field] = ["issuer", "audience"].map(|name| required_if(r.key(name), is_present));
        let allow_private = r.key("allow_private").boolean().unwrap_or(false);
        let (issuer, audience) = (read_url(&issuer_field, allow_private), read_text(&audience_field));
        let jwks_url = read_url(&r.key("jwks_url"), allow_private);
        let algorithms = read_algorithms(&r.key("algorithms"));
        let refresh_secs = r.key("refresh_secs").integer(60..=86_400u32).unwrap_or(3600);
        let stale_field = r.key("max_stale_secs");
        let max_stale_secs = stale_field.integer(60..=604_800u32).unwrap_or(86_400);
        if max_stale_secs < refresh_secs {
            stale_field.error(format!("keys are looked at every {refresh_secs} s (refresh_secs); it cannot be less"));
        }
        let leeway_secs = read_leeway(&r.key("leeway_secs"));
        let ca_field = r.key("ca_file");
        let ca_file =
            read_path(&ca_field).and_then(|path| CaFile::load(path).inspect_err(|why| ca_field.error(why)).ok());
        r.finish();
        Some(OidcConfig {
            issuer: issuer?,
            jwks_url,
            audience: audience?,
            algorithms,
            refresh_secs,
            max_stale_secs,
            leeway_secs,
            ca_file,
            allow_private,
        })
    }
}

/// A URL whose answer nobody on the way can forge: https, or a server on this host.
fn read_url(field: &Field<'_>, allow_private: bool) -> Option<String> {
    let text = read_text(field)?;
    let url = parse_url(&text, allow_private);
    url.inspect_err(|why| field.error(format!("\"{}\": {why}", text.escape_debug()))).ok()?;
    Some(text)
}

/// The URL of an issuer or of its keys.
pub fn parse_url(text: &str, allow_private: bool) -> Result<Url, String> {
    let is_local = text.parse::<Uri>().is_ok_and(|uri| uri.host().is_some_and(is_this_host));
    if !is_local && text.starts_with("http://") {
        return Err("whoever is on the way could hand out keys; use https".to_owned());
    }
    Url::parse(text, is_local, allow_private)
}

fn is_this_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn read_algorithms(field: &Field<'_>) -> Vec<TokenAlgorithm> {
    let Some(items) = field.items() else { return vec![TokenAlgorithm::Rs256] };
    if items.is_empty() {
        field.error("the list is empty, so no token would be good; write such as [\"RS256\"]");
    }
    let mut algorithms = Vec::new();
    for item in items {
        let Some(algorithm) = item.one_of(TokenAlgorithm::WORDS) else { continue };
        if algorithms.contains(&algorithm) {
            item.error("stands here already");
        }
        algorithms.push(algorithm);
    }
    algorithms
}
