//! What secures calls to a service: files, which are read again when they change.

use std::fs::metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use program::config::read_file;
use program::telemetry::LogThrottle;
use thiserror::Error;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tracing::{info, warn};

/// Least time between two checks of the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How a certificate begins in a PEM file.
const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
const TOKEN_BYTES_MAX: usize = 16 * 1024;

static NOT_RELOADED: LogThrottle = LogThrottle::every(Duration::from_secs(30));

/// The files. All are optional, and all but the token are PEM.
#[derive(Clone, Debug, Default)]
pub struct CredentialFiles {
    /// How the names of their variables begin: `STEP` or `PAYMENT`.
    pub prefix: &'static str,
    /// Certificate authorities to trust, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Client certificate.
    pub cert: Option<PathBuf>,
    /// Key of the client certificate.
    pub key: Option<PathBuf>,
    /// Bearer token, sent as `authorization: Bearer <token>`.
    pub token: Option<PathBuf>,
}

/// Credentials that cannot be used. Each names the settings by their prefix.
#[derive(Debug, Error)]
pub enum UnusableCredentials {
    /// A file cannot be read.
    #[error("{0}_*_FILE: cannot read {path}: {2}", path = .1.display())]
    Unreadable(&'static str, PathBuf, io::Error),
    /// The token is empty, too long, or not visible ASCII.
    #[error(
        "{0}_TOKEN_FILE: {path} must have one line with a token of 1-{TOKEN_BYTES_MAX} visible ASCII characters",
        path = .1.display()
    )]
    Token(&'static str, PathBuf),
    /// The certificates or the key are not PEM, or do not fit.
    #[error("{0}_CA_FILE, {0}_CERT_FILE or {0}_KEY_FILE cannot be used: {1}")]
    Tls(&'static str, String),
    /// A certificate without its key, or a key without its certificate.
    #[error("{0}_CERT_FILE and {0}_KEY_FILE must be given together")]
    HalfIdentity(&'static str),
    /// Certificates for an address without TLS.
    #[error("{0}_CA_FILE, {0}_CERT_FILE and {0}_KEY_FILE need a service at https:// ({0}_URL)")]
    NoTls(&'static str),
    /// The token would cross a network in clear text.
    #[error("{0}_TOKEN_FILE needs a service at https://, or on this machine ({0}_URL)")]
    TokenInTheClear(&'static str),
}

/// A connection with the credentials of now.
#[derive(Debug)]
pub(super) struct Secured {
    endpoint: Endpoint,
    files: CredentialFiles,
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    versions: Versions,
    looked: Instant,
}

/// When each file was last changed, and its size.
type Versions = [Option<(SystemTime, u64)>; 4];

impl Secured {
    /// A connection to `endpoint`, which is made at the first call.
    pub(super) fn new(endpoint: Endpoint, files: CredentialFiles) -> Result<Self, UnusableCredentials> {
        let versions = files.versions();
        let channel = files.secure(endpoint.clone())?.connect_lazy();
        let token = files.token()?;
        Ok(Self { endpoint, files, channel, token, versions, looked: Instant::now() })
    }

    /// The connection and the token, with files that have changed. Unusable files change nothing.
    pub(super) fn current(&mut self) -> (Channel, Option<MetadataValue<Ascii>>) {
        if self.looked.elapsed() >= LOOK_INTERVAL {
            self.looked = Instant::now();
            let versions = self.files.versions();
            if versions != self.versions {
                self.reload(versions);
            }
        }
        (self.channel.clone(), self.token.clone())
    }

    fn reload(&mut self, versions: Versions) {
        let [.., token] = versions;
        let is_tls_changed = versions[..3] != self.versions[..3];
        let reloaded = || {
            let endpoint =
                if is_tls_changed { Some(self.files.secure(self.endpoint.clone())?) } else { None };
            Ok::<_, UnusableCredentials>((endpoint, self.files.token()?))
        };
        // A file that is being written is read again at the next look.
        match reloaded() {
            Ok((endpoint, read)) => {
                if let Some(endpoint) = endpoint {
                    self.channel = endpoint.connect_lazy();
                }
                info!(token = token.is_some(), certificates = is_tls_changed, "credentials reloaded");
                (self.token, self.versions) = (read, versions);
            }
            Err(error) => {
                if let Some(left_out) = NOT_RELOADED.allow() {
                    warn!(%error, left_out, "credentials not reloaded, previous credentials kept");
                }
            }
        }
    }
}

impl CredentialFiles {
    fn versions(&self) -> Versions {
        [&self.ca, &self.cert, &self.key, &self.token].map(|path| {
            let file = metadata(path.as_ref()?).ok()?;
            Some((file.modified().ok()?, file.len()))
        })
    }

    /// The endpoint with these certificates.
    fn secure(&self, endpoint: Endpoint) -> Result<Endpoint, UnusableCredentials> {
        let is_tls = endpoint.uri().scheme_str() == Some("https");
        if self.token.is_some() && !is_tls && !is_local(endpoint.uri().host().unwrap_or_default()) {
            return Err(UnusableCredentials::TokenInTheClear(self.prefix));
        }
        if !is_tls {
            let has_certificates = self.ca.is_some() || self.cert.is_some() || self.key.is_some();
            return if has_certificates {
                Err(UnusableCredentials::NoTls(self.prefix))
            } else {
                Ok(endpoint)
            };
        }
        let tls = match &self.ca {
            Some(ca) => {
                let pem = self.read(ca)?;
                // Without any, no service would be trusted.
                if !pem.windows(CERTIFICATE.len()).any(|text| text == CERTIFICATE) {
                    return Err(UnusableCredentials::Tls(
                        self.prefix,
                        format!("{} has no certificate", ca.display()),
                    ));
                }
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        let tls = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => tls.identity(Identity::from_pem(self.read(cert)?, self.read(key)?)),
            (None, None) => tls,
            (Some(_), None) | (None, Some(_)) => return Err(UnusableCredentials::HalfIdentity(self.prefix)),
        };
        endpoint.tls_config(tls).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            UnusableCredentials::Tls(self.prefix, cause.unwrap_or_else(|| error.to_string()))
        })
    }

    /// Whether calls to `endpoint` can use them.
    pub(crate) fn check(&self, endpoint: Endpoint) -> Result<(), UnusableCredentials> {
        self.secure(endpoint)?;
        self.token()?;
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, UnusableCredentials> {
        read_file(path).map_err(|error| UnusableCredentials::Unreadable(self.prefix, path.to_owned(), error))
    }

    fn token(&self) -> Result<Option<MetadataValue<Ascii>>, UnusableCredentials> {
        let Some(path) = &self.token else { return Ok(None) };
        let unusable = || UnusableCredentials::Token(self.prefix, path.clone());
        let bytes = self.read(path)?;
        let token = std::str::from_utf8(&bytes).map_err(|_| unusable())?.trim();
        let is_token =
            (1..=TOKEN_BYTES_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_token {
            return Err(unusable());
        }
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| unusable())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// A path of a setting, whose file must be readable.
pub(crate) fn readable(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    read_file(&path).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(path)
}

fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::write;

    fn endpoint(url: &'static str) -> Endpoint {
        Endpoint::from_static(url)
    }

    fn files(token: Option<&Path>) -> CredentialFiles {
        CredentialFiles { prefix: "STEP", token: token.map(Path::to_owned), ..CredentialFiles::default() }
    }

    #[tokio::test]
    async fn a_token_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        write(&path, "first\n").unwrap();
        let mut secured = Secured::new(endpoint("http://127.0.0.1:1"), files(Some(&path))).unwrap();
        let mut token = || {
            secured.looked = Instant::now() - LOOK_INTERVAL;
            secured.current().1.unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(token(), "Bearer first");
        write(&path, "second one").unwrap();
        assert_eq!(token(), "Bearer first", "no token");
        write(&path, "the-second").unwrap();
        assert_eq!(token(), "Bearer the-second");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(token(), "Bearer the-second");
    }

    #[tokio::test]
    async fn unusable_credentials_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, "text").unwrap();
        let file = || Some(path.clone());
        for (url, files, wanted) in [
            ("http://pay:1", files(Some(&path)), "needs a service at https://"),
            ("http://localhost:1", CredentialFiles { ca: file(), ..Default::default() }, "at https://"),
            ("https://pay:1", CredentialFiles { cert: file(), ..Default::default() }, "together"),
            ("https://pay:1", CredentialFiles { ca: file(), ..Default::default() }, "cannot be used"),
            (
                "https://pay:1",
                CredentialFiles { cert: file(), key: file(), ..Default::default() },
                "cannot be used",
            ),
            ("https://pay:1", files(Some(Path::new("/nowhere"))), "cannot read /nowhere"),
        ] {
            let error = Secured::new(endpoint(url), files).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        for text in ["", "\n", "two words", "caf\u{e9}", &"a".repeat(TOKEN_BYTES_MAX + 1)] {
            write(&path, text).unwrap();
            let error = Secured::new(endpoint("https://pay:1"), files(Some(&path))).unwrap_err();
            assert!(matches!(error, UnusableCredentials::Token(..)), "{text:?}: {error}");
        }
    }
}
