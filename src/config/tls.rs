//! Section `[tls]`: how clients on the network are spoken with, and which certificates of theirs mean what.

use std::collections::HashSet;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::agent::read_path;
use super::auth::NAMESPACES_MAX;
use crate::api::Role;
use crate::classify::rules::read_id;
use crate::written::{Field, Reader};

/// Entries of `[[tls.clients]]`.
pub const CLIENTS_MAX: usize = 256;
/// Characters of a certificate's common name.
pub const SUBJECT_MAX: usize = 256;

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// No.
    #[default]
    None,
    /// Yes, and who has none may come in by other credentials.
    Optional,
    /// Yes, and who has none gets no connection.
    Required,
}

impl ClientAuth {
    const WORDS: &'static [(&'static str, ClientAuth)] =
        &[("none", ClientAuth::None), ("optional", ClientAuth::Optional), ("required", ClientAuth::Required)];
}

/// How a client's certificate is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CertName {
    /// The common name of its subject, as it stands there.
    Subject(String),
    /// The SHA-256 of the whole certificate in DER, in lower-case hexadecimal digits.
    Fingerprint(String),
}

/// What a client with a certificate may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TlsClient {
    /// Which certificate.
    #[serde(flatten)]
    pub name: CertName,
    /// `viewer`, `operator` or `admin`.
    #[serde(serialize_with = "role_name")]
    #[schemars(with = "String")]
    pub role: Role,
    /// Namespaces whose rules an operator may change.
    pub namespaces: Vec<String>,
}

fn role_name<S: Serializer>(role: &Role, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(role.name())
}

/// Section `[tls]`, checked. Its files are read by [`crate::control::tls`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TlsConfig {
    /// Whether REST, metrics and gRPC are spoken over TLS. The Unix socket never is.
    pub enabled: bool,
    /// PEM file with the server's certificate, and after it those that lead to its authority.
    pub cert_path: PathBuf,
    /// PEM file with the private key of the first; nobody but its owner and group may have rights on it.
    pub key_path: PathBuf,
    /// Whether the metrics port speaks TLS too.
    pub metrics: bool,
    /// Whether TLS 1.2 is spoken beside 1.3.
    pub allow_tls12: bool,
    /// PEM file with the authorities of client certificates. Read when they are asked for.
    pub client_ca_path: PathBuf,
    /// Whether clients are asked for a certificate.
    pub client_auth: ClientAuth,
    /// What clients with a certificate may do. Who has one that is not among these has shown no credentials.
    pub clients: Vec<TlsClient>,
}

impl TlsConfig {
    /// Reads the section.
    pub fn read(mut r: Reader<'_>) -> TlsConfig {
        let enabled = r.key("enabled").boolean().unwrap_or(false);
        let path = |field: Field<'_>, usual: &str| read_path(&field).unwrap_or_else(|| PathBuf::from(usual));
        let cert_path = path(r.key("cert_path"), "/etc/ebpfsentinel/tls/cert.pem");
        let key_path = path(r.key("key_path"), "/etc/ebpfsentinel/tls/key.pem");
        let metrics = r.key("metrics").boolean().unwrap_or(true);
        let allow_tls12 = r.key("allow_tls12").boolean().unwrap_or(false);
        let client_ca_path = path(r.key("client_ca_path"), "/etc/ebpfsentinel/tls/clients.pem");
        let client_auth = r.key("client_auth").one_of(ClientAuth::WORDS).unwrap_or_default();
        let clients_field = r.key("clients");
        let clients = read_clients(&clients_field);
        if client_auth == ClientAuth::None && !clients.is_empty() {
            clients_field.error("are not used; set tls.client_auth to \"optional\" or \"required\"");
        }
        r.finish();
        TlsConfig { enabled, cert_path, key_path, metrics, allow_tls12, client_ca_path, client_auth, clients }
    }

    /// The files that it names, to watch them.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        if self.enabled {
            files.extend([self.cert_path.clone(), self.key_path.clone()]);
            files.extend((self.client_auth != ClientAuth::None).then(|| self.client_ca_path.clone()));
        }
        files
    }
}

fn read_clients(field: &Field<'_>) -> Vec<TlsClient> {
    let tables = field.tables();
    if tables.len() > CLIENTS_MAX {
        field.error(format!("{} clients, and {CLIENTS_MAX} is the limit", tables.len()));
        return Vec::new();
    }
    let mut names = HashSet::new();
    let mut clients = Vec::new();
    for mut r in tables {
        let (subject, fingerprint) = (r.key("subject"), r.key("fingerprint"));
        let name = read_name(&r, &subject, &fingerprint);
        let role = r.key("role").required().one_of(&[
            (Role::Viewer.name(), Role::Viewer),
            (Role::Operator.name(), Role::Operator),
            (Role::Admin.name(), Role::Admin),
        ]);
        let namespaces_field = r.key("namespaces");
        let items = namespaces_field.items().unwrap_or_default();
        if items.len() > NAMESPACES_MAX {
            namespaces_field.error(format!("{} namespaces, and {NAMESPACES_MAX} is the limit", items.len()));
        }
        let namespaces: Vec<String> = items.iter().take(NAMESPACES_MAX).filter_map(read_id).collect();
        if !namespaces.is_empty() && role.is_some_and(|role| role != Role::Operator) {
            namespaces_field.error("only an operator is held to namespaces");
        }
        if name.as_ref().is_some_and(|name| !names.insert(name.clone())) {
            let named = if subject.is_present() { &subject } else { &fingerprint };
            named.error("stands here already");
        }
        r.finish();
        if let (Some(name), Some(role)) = (name, role) {
            clients.push(TlsClient { name, role, namespaces });
        }
    }
    clients
}

fn read_name(r: &Reader<'_>, subject: &Field<'_>, fingerprint: &Field<'_>) -> Option<CertName> {
    if subject.is_present() == fingerprint.is_present() {
        r.error("a client is known by its certificate's subject or by its fingerprint: give one of the two");
        return None;
    }
    if let Some(text) = subject.text() {
        if text.is_empty() || text.len() > SUBJECT_MAX || !text.bytes().all(|b| matches!(b, b' '..=b'~')) {
            subject
                .error(format!("a subject is the common name of a certificate: 1 to {SUBJECT_MAX} ASCII characters"));
            return None;
        }
        return Some(CertName::Subject(text.to_owned()));
    }
    let digits = fingerprint.text()?.replace(':', "").to_ascii_lowercase();
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        fingerprint.error(
            "a fingerprint is the SHA-256 of a certificate, 64 hexadecimal digits: openssl x509 -noout -fingerprint \
             -sha256 -in FILE shows it",
        );
        return None;
    }
    Some(CertName::Fingerprint(digits))
}
