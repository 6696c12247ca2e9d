//! The authorities that a connection trusts, and its client certificate, for gateways with TLS.

use std::path::{Path, PathBuf};

use anyhow::Context;
use program::config::read_file;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Uri};

use crate::usage::CONNECTION;
use crate::usage::UsageError;

/// The files.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Tls {
    /// Certificate authorities to trust (PEM), instead of the system's.
    #[arg(long, env = "WAYBILL_CA", global = true, value_name = "PATH", help_heading = CONNECTION)]
    ca: Option<PathBuf>,
    /// Client certificate (PEM).
    #[arg(long, env = "WAYBILL_CERT", global = true, value_name = "PATH", help_heading = CONNECTION)]
    cert: Option<PathBuf>,
    /// Key of the client certificate (PEM).
    #[arg(long, env = "WAYBILL_KEY", global = true, value_name = "PATH", help_heading = CONNECTION)]
    key: Option<PathBuf>,
}

impl Tls {
    /// The same endpoint, with TLS if it is an `https` one.
    pub(crate) fn apply(&self, endpoint: Endpoint) -> anyhow::Result<Endpoint> {
        if endpoint.uri().scheme_str() != Some("https") {
            self.check_unused(endpoint.uri())?;
            return Ok(endpoint);
        }
        let tls = match &self.ca {
            Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        let tls = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => tls.identity(Identity::from_pem(read(cert)?, read(key)?)),
            (None, None) => tls,
            (Some(_), None) | (None, Some(_)) => {
                return Err(UsageError("--cert and --key must be given together".to_owned()).into());
            }
        };
        endpoint.tls_config(tls).context("the certificates cannot be used")
    }

    /// Certificates are rejected for an address without TLS.
    pub(crate) fn check_unused(&self, address: &Uri) -> Result<(), UsageError> {
        if self.ca.is_some() || self.cert.is_some() || self.key.is_some() {
            return Err(UsageError(format!(
                "--ca, --cert and --key are for an address at https://, not {address}"
            )));
        }
        Ok(())
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    read_file(path).map_err(|error| UsageError(format!("cannot read {}: {error}", path.display())).into())
}
