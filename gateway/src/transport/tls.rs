//! TLS on the gRPC port: its certificate, and the authorities of clients. Reloaded when a file changes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tracing::{error, info};
use webpki::EndEntityCert;

use crate::transport::files::{self, Current, WatchedFiles};

/// gRPC, and gRPC-Web of old clients.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The files.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TlsConfig {
    /// The gateway's certificate with its intermediates (PEM). Reloaded when it changes, like the next two. Unset: no
    /// TLS.
    #[arg(long, env = "TLS_CERT", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM).
    #[arg(long, env = "TLS_KEY", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Certificate authorities of clients (PEM). A client needs a certificate of one of them.
    #[arg(long, env = "TLS_CLIENT_CA", requires = "tls_cert")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Admit clients without a certificate too, for health checks and for calls with another credential.
    #[arg(long, env = "TLS_CLIENT_OPTIONAL")]
    pub(crate) tls_client_optional: bool,
}

/// The current configuration of handshakes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    files: Files,
    watched: WatchedFiles,
    current: Current<ServerConfig>,
}

#[derive(Clone, Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_optional: bool,
}

impl Tls {
    /// Reads the files, or returns an error that names the variable. `None` if TLS is not configured.
    pub(crate) fn read(config: &TlsConfig) -> Result<Option<Self>, String> {
        if config.tls_client_optional && config.tls_client_ca.is_none() {
            return Err(
                "TLS_CLIENT_OPTIONAL: set TLS_CLIENT_CA too, without which no certificate is requested"
                    .to_owned(),
            );
        }
        let (Some(cert), Some(key)) = (config.tls_cert.clone(), config.tls_key.clone()) else {
            return Ok(None);
        };
        let client_ca = config.tls_client_ca.clone();
        let files = Files { cert, key, client_ca, client_optional: config.tls_client_optional };
        let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
        let watched = WatchedFiles::new(paths.into_iter().flatten().cloned().collect());
        let current = Current::new(files.read()?);
        Ok(Some(Self { files, watched, current }))
    }

    /// Reads the files again whenever one of them has changed. Files that cannot be used, or do not belong
    /// together yet, change nothing; connections that are open go on. Runs for as long as the server does.
    pub(crate) async fn follow(self) {
        let take = |read| match read {
            Ok(config) => {
                info!("TLS certificates reloaded");
                self.current.set(config);
            }
            Err(error) => error!(error, "TLS certificates not reloaded, previous certificates kept"),
        };
        self.watched.follow(move || self.files.read(), take).await;
    }

    /// Performs a handshake. The caller sets the deadline.
    pub(crate) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = self.current.get();
        TlsAcceptor::from(config).accept(stream).await
    }
}

impl Files {
    fn read(&self) -> Result<ServerConfig, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates("TLS_CERT", &self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes("TLS_KEY", &self.key)?)
            .map_err(|error| format!("TLS_KEY: {}: {error}", self.key.display()))?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let refused =
                    |error: &dyn std::fmt::Display| format!("TLS_CLIENT_CA: {}: {error}", path.display());
                let mut roots = RootCertStore::empty();
                for authority in certificates("TLS_CLIENT_CA", path)? {
                    roots.add(authority).map_err(|error| refused(&error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if self.client_optional { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().map_err(|error| refused(&error))?)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| format!("TLS_CERT and TLS_KEY: {}: {error}", self.cert.display()))?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // A resumed session would admit a client whose certificate is no longer valid.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn certificates(variable: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes(variable, path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{variable}: {}: {error}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!("{variable}: {} contains no certificate", path.display()));
    }
    Ok(certificates)
}

fn bytes(variable: &str, path: &Path) -> Result<Vec<u8>, String> {
    files::read(path).map_err(|error| format!("{variable}: {} cannot be read: {error}", path.display()))
}

/// The subject alternative names of a certificate: URIs such as SPIFFE ids first, then DNS names.
/// A common name has no agreed form and counts for nothing (RFC 9525, section 2).
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else {
        return Vec::new();
    };
    certificate.valid_uri_names().chain(certificate.valid_dns_names()).map(str::to_owned).collect()
}
