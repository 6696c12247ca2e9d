//! The payment provider: the service at PAYMENT_URL, or the sandbox in this process.

use std::path::PathBuf;
use std::time::Duration;

use program::config::DAY;
use program::config::duration;
use tonic::transport::Endpoint;
use tracing::{info, warn};

use super::provider::{Capture, CaptureError, PaymentProvider, Refund};
use super::{Remote, Sandbox};
use crate::remote::{CallError, CredentialFiles, UnusableCredentials, endpoint, readable};

const TIMEOUT_MIN: Duration = Duration::from_millis(10);

/// Settings of the payment step.
#[derive(Clone, Debug, clap::Args)]
pub struct PaymentConfig {
    /// Address of payments.v1.PaymentService, as http://HOST:PORT or https://HOST:PORT. Unset: a sandbox in this process,
    /// which moves no money and keeps its payments in memory.
    #[arg(long, env = "PAYMENT_URL", hide_env_values = true, value_name = "URL", value_parser = endpoint)]
    pub payment_url: Option<Endpoint>,
    /// Deadline of one call to the payment service, 10ms-1d. A call without an answer is retried at most twice,
    /// within half of ATTEMPT_TIMEOUT; then the order waits for its next attempt.
    #[arg(long, env = "PAYMENT_TIMEOUT", default_value = "5s", value_parser = duration(TIMEOUT_MIN..=DAY))]
    pub payment_timeout: Duration,
    /// Certificate authorities of the payment service (PEM). Unset: the system's. This file and the following ones are
    /// read again when they change.
    #[arg(long, env = "PAYMENT_CA_FILE", value_name = "PATH", value_parser = readable)]
    pub payment_ca_file: Option<PathBuf>,
    /// Client certificate for the payment service (PEM).
    #[arg(long, env = "PAYMENT_CERT_FILE", value_name = "PATH", value_parser = readable)]
    pub payment_cert_file: Option<PathBuf>,
    /// Key of the client certificate (PEM).
    #[arg(long, env = "PAYMENT_KEY_FILE", value_name = "PATH", value_parser = readable)]
    pub payment_key_file: Option<PathBuf>,
    /// Bearer token for the payment service, which must be at https:// or on this machine.
    #[arg(long, env = "PAYMENT_TOKEN_FILE", value_name = "PATH", value_parser = readable)]
    pub payment_token_file: Option<PathBuf>,
}

impl PaymentConfig {
    /// Whether the files can be used for this service.
    pub fn check(&self) -> Result<(), UnusableCredentials> {
        self.payment_url.as_ref().map_or(Ok(()), |url| self.files().check(url.clone()))
    }

    fn files(&self) -> CredentialFiles {
        CredentialFiles {
            prefix: "PAYMENT",
            ca: self.payment_ca_file.clone(),
            cert: self.payment_cert_file.clone(),
            key: self.payment_key_file.clone(),
            token: self.payment_token_file.clone(),
        }
    }

    /// The provider that was configured. Needs no connection yet.
    ///
    /// `attempt_timeout` is how long one attempt at an order may take, of which the calls get one half, and the
    /// append of what came of them the other.
    pub fn provider(&self, attempt_timeout: Duration) -> Result<ConfiguredProvider, UnusableCredentials> {
        match &self.payment_url {
            Some(endpoint) => {
                let files = self.files();
                let remote = Remote::new(endpoint.clone(), files, self.payment_timeout, attempt_timeout / 2)?;
                info!(payment_url = %endpoint.uri(), "payment service configured");
                Ok(ConfiguredProvider::Remote(remote))
            }
            None => {
                warn!("in-process payment sandbox: no money moves, payments are lost at a restart");
                Ok(ConfiguredProvider::Sandbox(Sandbox::default()))
            }
        }
    }
}

/// A provider that the environment chose.
#[derive(Debug)]
pub enum ConfiguredProvider {
    /// The service at PAYMENT_URL.
    Remote(Remote),
    /// The sandbox in this process.
    Sandbox(Sandbox),
}

impl PaymentProvider for ConfiguredProvider {
    async fn capture(&self, capture: Capture<'_>) -> Result<String, CaptureError> {
        match self {
            Self::Remote(remote) => remote.capture(capture).await,
            Self::Sandbox(sandbox) => sandbox.capture(capture).await,
        }
    }

    async fn refund(&self, idempotency_key: &str) -> Result<Option<Refund>, CallError> {
        match self {
            Self::Remote(remote) => remote.refund(idempotency_key).await,
            Self::Sandbox(sandbox) => sandbox.refund(idempotency_key).await,
        }
    }

    fn remembers(&self) -> bool {
        match self {
            Self::Remote(remote) => remote.remembers(),
            Self::Sandbox(sandbox) => sandbox.remembers(),
        }
    }
}
