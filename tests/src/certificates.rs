//! Certificates: an authority of the test's own, and what it signs.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Where gateways of tests are reached.
const GATEWAY: &str = "127.0.0.1";

/// An authority that only this test trusts.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority of tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("authority") }
    }

    /// Its own certificate, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for a gateway of a test.
    pub fn gateway(&self) -> Certified {
        self.certify(GATEWAY, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate for a client by a name: a URI or a DNS name.
    pub fn client(&self, name: &str) -> Certified {
        self.certify(name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn certify(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Certified {
        let mut params = if name.contains("://") {
            let mut params = CertificateParams::default();
            params.subject_alt_names.push(SanType::URI(name.try_into().expect("name")));
            params
        } else {
            CertificateParams::new([name.to_owned()]).expect("name")
        };
        params.insert_extended_key_usage(usage);
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.issuer).expect("certificate").pem();
        Certified { cert, key: key.serialize_pem() }
    }

    /// How a client reaches a gateway whose certificate is of this authority.
    pub fn trusting(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.pem()))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Certified {
    /// What a client shows.
    pub fn identity(&self) -> Identity {
        Identity::from_pem(&self.cert, &self.key)
    }

    /// Puts both into place in `dir`, each in one step.
    pub fn write(&self, dir: &Path) -> (PathBuf, PathBuf) {
        (replace(dir, "tls.crt", &self.cert), replace(dir, "tls.key", &self.key))
    }

    /// Puts both into place in `dir`, and gives the settings of a gateway that uses them.
    pub fn settings(&self, dir: &Path) -> Vec<(&'static str, String)> {
        let (cert, key) = self.write(dir);
        vec![("TLS_CERT", cert.display().to_string()), ("TLS_KEY", key.display().to_string())]
    }
}

/// Writes a file atomically.
pub fn replace(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    let new = dir.join(format!("{name}.new"));
    fs::write(&new, text).expect("file");
    fs::rename(&new, &path).expect("file");
    path
}
