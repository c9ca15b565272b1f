//! The server's side of TLS: certificates from files, checked before they are used, exchanged while connections go on.
//!
//! TLS 1.3, and 1.2 by option. No session is resumed: a certificate that is no longer trusted ends with its connection.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::config::tls::{ClientAuth, SUBJECT_MAX, TlsConfig};
use crate::guarded::{self, Holds};

/// Longest file that is read.
const FILE_MAX: usize = 1 << 20;
/// Certificates in a chain.
const CHAIN_MAX: usize = 16;
/// Authorities of clients.
const AUTHORITIES_MAX: usize = 256;

/// What servers speak TLS with. Connections keep what they began with.
pub struct TlsStore {
    state: ArcSwap<TlsState>,
    /// Why the files were not taken when they were last read.
    problem: Mutex<Option<String>>,
}

/// The files of one moment, checked.
pub struct TlsState {
    config: TlsConfig,
    rest: Arc<ServerConfig>,
    grpc: Arc<ServerConfig>,
    not_after: i64,
    warnings: Vec<String>,
}

impl TlsState {
    /// Reads and checks the files that `config` names. Errors name the file.
    pub fn load(config: &TlsConfig) -> Result<TlsState> {
        let (cert_path, key_path) = (&config.cert_path, &config.key_path);
        let chain = certificates(cert_path, "tls.cert_path", CHAIN_MAX)?;
        let name = format!("{} (tls.cert_path)", cert_path.display());
        let (not_after, warnings) = look_at(&chain[0], &name)?;
        let key_bytes = read_file(key_path, "tls.key_path", Holds::Secret)?;
        let key_name = || format!("{} (tls.key_path)", key_path.display());
        let key = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|_| {
            let locked = key_bytes.windows(9).any(|nine| nine == b"ENCRYPTED");
            let what = if locked {
                "a private key under a passphrase, which nobody is there to give"
            } else {
                "no private key in PEM"
            };
            anyhow!("{} holds {what}", key_name())
        })?;

        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions: &[&rustls::SupportedProtocolVersion] = match config.allow_tls12 {
            true => &[&rustls::version::TLS13, &rustls::version::TLS12],
            false => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions)?;
        let builder = match config.client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            auth => {
                let roots = Arc::new(authorities(config)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier = if auth == ClientAuth::Optional { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().context("tls.client_ca_path")?)
            }
        };
        let mut base = builder.with_single_cert(chain, key).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => anyhow!("the key in {} is not that of {name}", key_name()),
            e => anyhow!("{name} with {}: {e}", key_name()),
        })?;
        base.session_storage = Arc::new(NoServerSessionStorage {});
        base.send_tls13_tickets = 0;
        let with = |protocol: &[u8]| {
            let mut server = base.clone();
            server.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(server)
        };
        let (rest, grpc) = (with(b"http/1.1"), with(b"h2"));
        Ok(TlsState { config: config.clone(), rest, grpc, not_after, warnings })
    }

    /// What works, but probably not as meant: a certificate that has expired, or that clients will not take.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl TlsStore {
    /// Reads the files that `config` names.
    pub fn load(config: &TlsConfig) -> Result<Arc<TlsStore>> {
        let state = ArcSwap::from_pointee(TlsState::load(config)?);
        Ok(Arc::new(TlsStore { state, problem: Mutex::default() }))
    }

    /// For a new connection that speaks HTTP/1.1.
    pub fn rest(&self) -> Arc<ServerConfig> {
        self.state.load().rest.clone()
    }

    /// For a new connection that speaks HTTP/2.
    pub fn grpc(&self) -> Arc<ServerConfig> {
        self.state.load().grpc.clone()
    }

    /// What is in use.
    pub fn state(&self) -> Arc<TlsState> {
        self.state.load_full()
    }

    /// Uses `state` for new connections; those that are open go on as they began.
    pub fn replace(&self, state: Arc<TlsState>) {
        self.state.store(state);
        *self.problem() = None;
    }

    /// Reads the same files anew. When something is wrong with them, what was read before stays in use.
    pub fn reload(&self) -> Result<()> {
        match TlsState::load(&self.state.load().config) {
            Ok(state) => {
                self.replace(Arc::new(state));
                Ok(())
            }
            Err(error) => {
                *self.problem() = Some(format!("{error:#}; the certificate that was read before is in use"));
                Err(error)
            }
        }
    }

    /// What to tell the operator: why changed files are not in use, or that the certificate has expired.
    pub fn complaint(&self) -> Option<String> {
        let expired = || {
            let state = self.state.load();
            let path = state.config.cert_path.display();
            (state.not_after < now_s()).then(|| format!("the certificate in {path} has expired"))
        };
        self.problem().clone().or_else(expired).map(|text| format!("tls: {text}"))
    }

    /// When the certificate expires, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.state.load().not_after
    }

    fn problem(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is behind the front knows a client's certificate by: its SHA-256, and its subject's common name if it has one,
/// of printable ASCII.
pub fn client_name(certificate: &CertificateDer<'_>) -> String {
    let mut name = data_encoding::HEXLOWER.encode(&Sha256::digest(certificate));
    if let Ok((_, parsed)) = X509Certificate::from_der(certificate)
        && let [common] = parsed.subject().iter_common_name().collect::<Vec<_>>()[..]
        && let Ok(text) = common.as_str()
        && (1..=SUBJECT_MAX).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b' '..=b'~'))
    {
        name = format!("{name} {text}");
    }
    name
}

/// When it expires, and what is odd about it.
fn look_at(certificate: &CertificateDer<'_>, name: &str) -> Result<(i64, Vec<String>)> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| anyhow!("{name}: {e}"))?;
    let (begins, ends) = (parsed.validity().not_before, parsed.validity().not_after);
    let mut warnings = Vec::new();
    if ends.timestamp() < now_s() {
        warnings.push(format!("{name} has expired, on {ends}; clients will refuse it"));
    }
    if begins.timestamp() > now_s() {
        warnings.push(format!("{name} is not valid before {begins}; clients will refuse it"));
    }
    if parsed.is_ca() {
        warnings.push(format!(
            "{name} is an authority's (basicConstraints CA:TRUE); curl takes it, but this agent's own command line and \
             other rustls clients refuse it"
        ));
    }
    Ok((ends.timestamp(), warnings))
}

fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

fn authorities(config: &TlsConfig) -> Result<RootCertStore> {
    let path = &config.client_ca_path;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, "tls.client_ca_path", AUTHORITIES_MAX)? {
        roots.add(certificate).with_context(|| format!("{} (tls.client_ca_path)", path.display()))?;
    }
    Ok(roots)
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path, key: &str, max: usize) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read_file(path, key, Holds::Orders)?;
    let name = || format!("{} ({key})", path.display());
    let mut all = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        ensure!(all.len() < max, "{} holds more than {max} certificates", name());
        all.push(certificate.map_err(|e| anyhow!("{} is no PEM file: {e}", name()))?);
    }
    ensure!(!all.is_empty(), "{} holds no certificate in PEM", name());
    Ok(all)
}

/// Reads a file of the key `key` of the configuration.
fn read_file(path: &Path, key: &str, holds: Holds) -> Result<Zeroizing<Vec<u8>>> {
    guarded::read(path, holds, FILE_MAX).map_err(|why| anyhow!("{} ({key}): {why}", path.display()))
}
