//! NATS credentials: the servers' addresses, and this program's identity at the broker. All values are checked when the
//! settings are read.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;
use program::config::read_file;

/// Address of the broker, and credentials for it.
#[derive(Clone, Debug, clap::Args)]
pub struct BrokerConfig {
    /// NATS servers, separated by commas. User and password, or a token, may precede the host, percent-encoded; those
    /// of the first server apply to all.
    #[arg(
        long,
        env = "NATS_URL",
        default_value = "nats://localhost:4222",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub nats_url: Vec<ServerUrl>,
    /// NATS credentials file (JWT and seed).
    #[arg(long, env = "NATS_CREDS", value_parser = credentials)]
    pub nats_creds: Option<Credentials>,
    /// Certificate authorities to trust (PEM), instead of the system's. This and the next two require TLS.
    #[arg(long, env = "NATS_TLS_CA", value_parser = certificates)]
    pub nats_tls_ca: Option<PathBuf>,
    /// Client certificate (PEM).
    #[arg(long, env = "NATS_TLS_CERT", requires = "nats_tls_key", value_parser = certificates)]
    pub nats_tls_cert: Option<PathBuf>,
    /// Key of the client certificate (PEM).
    #[arg(long, env = "NATS_TLS_KEY", requires = "nats_tls_cert", value_parser = key)]
    pub nats_tls_key: Option<PathBuf>,
}

/// A server, and the user and password in its URL.
#[derive(Clone, Debug)]
pub struct ServerUrl {
    pub(crate) addr: ServerAddr,
    login: Option<Login>,
}

#[derive(Clone, PartialEq, Eq)]
enum Login {
    Password { user: String, password: String },
    Token(String),
}

/// The content of a credentials file.
#[derive(Clone)]
pub struct Credentials(String);

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl BrokerConfig {
    /// Options that let us in.
    pub(crate) fn options(&self) -> std::io::Result<ConnectOptions> {
        let mut options = ConnectOptions::new();
        options = match self.nats_url.iter().find_map(|server| server.login.clone()) {
            Some(Login::Password { user, password }) => options.user_and_password(user, password),
            Some(Login::Token(token)) => options.token(token),
            None => options,
        };
        if let Some(Credentials(text)) = &self.nats_creds {
            options = options.credentials(text)?;
        }
        if let Some(path) = &self.nats_tls_ca {
            // An operator who sets certificates expects TLS, even with a nats:// URL.
            options = options.add_root_certificates(path.clone()).require_tls(true);
        }
        if let (Some(cert), Some(key)) = (&self.nats_tls_cert, &self.nats_tls_key) {
            options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
        }
        Ok(options)
    }
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let addr: ServerAddr = text.trim().parse().map_err(|error: std::io::Error| error.to_string())?;
        if addr.host().is_empty() {
            return Err("no host; write it as nats://HOST:PORT".to_owned());
        }
        if addr.is_websocket() {
            return Err("WebSockets are not supported; use nats:// or tls://".to_owned());
        }
        let login = match (addr.username(), addr.password()) {
            (Some(user), Some(password)) => {
                Some(Login::Password { user: decoded(user)?, password: decoded(password)? })
            }
            (Some(token), None) => Some(Login::Token(decoded(token)?)),
            (None, _) => None,
        };
        Ok(Self { addr, login })
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|_| "user and password must be UTF-8 after percent-decoding".to_owned())?.into_owned())
}

fn credentials(path: &str) -> Result<Credentials, String> {
    let text = String::from_utf8(read(path)?).map_err(|_| "is not UTF-8 text".to_owned())?;
    ConnectOptions::with_credentials(&text).map_err(|error| error.to_string())?;
    Ok(Credentials(text))
}

fn certificates(path: &str) -> Result<PathBuf, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("contains no certificate".to_owned()) } else { Ok(path.into()) }
}

fn key(path: &str) -> Result<PathBuf, String> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| error.to_string())?;
    Ok(path.into())
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    read_file(path.as_ref()).map_err(|error| format!("cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_server_is_read() {
        for (text, host, port) in [
            ("broker", "broker", 4222),
            ("broker:4333", "broker", 4333),
            ("nats://10.0.0.1", "10.0.0.1", 4222),
            ("tls://broker:4333", "broker", 4333),
            (" nats://[::1]:4333", "::1", 4333),
        ] {
            let addr = text.parse::<ServerUrl>().unwrap().addr;
            assert_eq!((addr.host(), addr.port()), (host, port), "{text}");
        }
    }

    #[test]
    fn an_unusable_server_url_is_rejected() {
        for text in
            ["", " ", "nats://", "nats://:4222", ":::", "http://broker", "ws://broker", "nats://%ff@a"]
        {
            assert!(text.parse::<ServerUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_login_is_decoded_and_never_printed() {
        let login = |text: &str| text.parse::<ServerUrl>().unwrap().login;
        let password = |user: &str, password: &str| {
            Some(Login::Password { user: user.to_owned(), password: password.to_owned() })
        };
        assert_eq!(login("nats://way%20bill:p%40ss%25@broker"), password("way bill", "p@ss%"));
        assert_eq!(login("nats://waybill:p^ss@broker"), password("waybill", "p^ss"));
        assert_eq!(login("s%2Fcret@broker"), Some(Login::Token("s/cret".to_owned())));
        assert_eq!(login("nats://broker"), None);
        assert_eq!(format!("{:?}", login("nats://user:hidden@broker")), "Some(Login)");
    }
}
