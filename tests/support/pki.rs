//! Authorities and certificates for tests, as files that curl, openssl and the agent read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use ebpfsentinel::config::tls::TlsConfig;
use ebpfsentinel::written::Document;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// Authorities and certificates in a directory.
pub struct Pki {
    dir: tempfile::TempDir,
}

impl Default for Pki {
    fn default() -> Pki {
        Pki::new()
    }
}

impl Pki {
    pub fn new() -> Pki {
        Pki { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// An authority, `NAME.pem`, and what it signs with.
    pub fn authority(&self, name: &str) -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        fs::write(self.path(&format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
        Issuer::new(params, key)
    }

    /// `NAME.pem` and `NAME.key`, for localhost.
    pub fn certificate(&self, authority: &Issuer<'static, KeyPair>, name: &str) {
        self.certificate_of(authority, name, |_| {});
    }

    pub fn certificate_of(
        &self,
        authority: &Issuer<'static, KeyPair>,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, authority).unwrap();
        self.write_pair(name, &certificate.pem(), &key.serialize_pem());
    }

    pub fn write_pair(&self, name: &str, certificate: &str, key: &str) {
        let key_path = self.path(&format!("{name}.key"));
        fs::write(&key_path, key).unwrap();
        fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate).unwrap();
    }

    /// `[tls]` for the certificate of this name, with these further lines.
    pub fn config(&self, name: &str, more: &str) -> TlsConfig {
        let (cert, key) = (self.arg(&format!("{name}.pem")), self.arg(&format!("{name}.key")));
        let text = format!("enabled = true\ncert_path = '{cert}'\nkey_path = '{key}'\n{more}");
        let document = Document::toml("tls.toml", text.as_bytes()).unwrap();
        document.read(|root| root.table().map(TlsConfig::read)).into_result().unwrap().unwrap()
    }
}
