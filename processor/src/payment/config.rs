//! The payment provider: the service at PAYMENT_URL, or the sandbox in this process.

use std::error::Error;
use std::time::Duration;

use program::config::DAY;
use program::config::duration;
use tonic::transport::{Endpoint, Uri};
use tracing::{info, warn};

use super::provider::{Capture, CaptureError, PaymentProvider, ProviderError, Refund};
use super::{Remote, Sandbox};

const TIMEOUT_MIN: Duration = Duration::from_millis(10);

/// Settings of the payment step.
#[derive(Clone, Debug, clap::Args)]
pub struct PaymentConfig {
    /// Address of payments.v1.PaymentService, as http://HOST:PORT or https://HOST:PORT; https trusts the system's
    /// certificate authorities. Unset: a sandbox in this process, which moves no money and keeps its payments in
    /// memory.
    #[arg(long, env = "PAYMENT_URL", hide_env_values = true, value_name = "URL", value_parser = endpoint)]
    pub payment_url: Option<Endpoint>,
    /// Deadline of one call to the payment service, 10ms-1d. A call without an answer is retried at most twice,
    /// within half of ATTEMPT_TIMEOUT; then the order waits for its next attempt.
    #[arg(long, env = "PAYMENT_TIMEOUT", default_value = "5s", value_parser = duration(TIMEOUT_MIN..=DAY))]
    pub payment_timeout: Duration,
}

impl PaymentConfig {
    /// The provider that was configured. Needs no connection yet.
    ///
    /// `attempt_timeout` is how long one attempt at an order may take, of which the calls get one half, and the
    /// append of what came of them the other.
    pub fn provider(&self, attempt_timeout: Duration) -> ConfiguredProvider {
        match &self.payment_url {
            Some(endpoint) => {
                info!(payment_url = %endpoint.uri(), "payment service configured");
                let remote = Remote::new(endpoint.clone(), self.payment_timeout, attempt_timeout / 2);
                ConfiguredProvider::Remote(remote)
            }
            None => {
                warn!("in-process payment sandbox: no money moves, payments are lost at a restart");
                ConfiguredProvider::Sandbox(Sandbox::default())
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

    async fn refund(&self, idempotency_key: &str) -> Result<Option<Refund>, ProviderError> {
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

fn endpoint(text: &str) -> Result<Endpoint, String> {
    const FORM: &str = "write it as http://HOST:PORT or https://HOST:PORT";
    // A URI would be parsed without its fragment.
    if text.contains('#') {
        return Err(FORM.to_owned());
    }
    let uri: Uri = text.parse().map_err(|error| format!("{FORM} ({error})"))?;
    if !is_address(&uri) {
        return Err(FORM.to_owned());
    }
    Endpoint::new(uri).map_err(|error| match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    })
}

/// Whether it is scheme, host and port alone. gRPC has its own paths, and credentials in a URL would be ignored without
/// notice.
fn is_address(uri: &Uri) -> bool {
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let host_and_port = match authority.port_u16() {
        Some(0) => return false,
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    };
    matches!(scheme, "http" | "https")
        && !authority.host().is_empty()
        && authority.as_str() == host_and_port
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_service_is_named_by_scheme_host_and_port() {
        for good in
            ["http://127.0.0.1:50052", "https://payments.example.org", "http://[::1]:1/", "https://pay:443"]
        {
            assert!(is_address(&good.parse().unwrap()), "{good}");
        }
        for bad in [
            "",
            "payments",
            "127.0.0.1:50052",
            "grpc://payments:1",
            "unix:///run/payments",
            "http://",
            "http://:50052",
            "/run/payments",
            "http://payments/v1",
            "http://payments?key=1",
            "http://payments#1",
            "http://payments:0",
            "http://user:password@payments",
            "http://payments:port",
            "http://payments:",
            "http://pay ments",
        ] {
            assert!(endpoint(bad).unwrap_err().contains("http://HOST:PORT"), "{bad}");
        }
    }
}
