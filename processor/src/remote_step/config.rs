//! Which step it is, and where its service is.

use std::path::PathBuf;
use std::time::Duration;

use backbone::log::subjects::is_step_name;
use program::config::{DAY, duration};
use proto::orders::{RESERVED_STEP_NAMES, RESERVED_STEP_SUFFIX};
use tonic::transport::Endpoint;

use crate::remote::{CredentialFiles, UnusableCredentials, endpoint, readable};

const TIMEOUT_MIN: Duration = Duration::from_millis(10);
/// Steps with programs and events of their own.
const BUILT_IN: [&str; 3] = ["inventory", "payment", "fulfilment"];

/// Settings of a step whose work a service does.
#[derive(Clone, Debug, clap::Args)]
pub struct RemoteStepConfig {
    /// Name of the step in the route file, and of its consumer: 1-32 characters of a-z, 0-9 and '-'.
    #[arg(long, env = "STEP_NAME", value_name = "NAME", value_parser = step_name)]
    pub name: &'static str,
    /// Address of the step's steps.v1.StepService, as http://HOST:PORT or https://HOST:PORT.
    #[arg(long, env = "STEP_URL", hide_env_values = true, value_name = "URL", value_parser = endpoint)]
    pub url: Endpoint,
    /// Deadline of one call to the service, 10ms-1d. A call without an answer is retried at most twice, within half of
    /// ATTEMPT_TIMEOUT; then the order waits for its next attempt.
    #[arg(long, env = "STEP_TIMEOUT", default_value = "5s", value_name = "TIME", value_parser = duration(TIMEOUT_MIN..=DAY))]
    pub timeout: Duration,
    /// Certificate authorities of the service (PEM). Unset: the system's. This file and the following ones are read
    /// again when they change.
    #[arg(long, env = "STEP_CA_FILE", value_name = "PATH", value_parser = readable)]
    pub ca_file: Option<PathBuf>,
    /// Client certificate for the service (PEM).
    #[arg(long, env = "STEP_CERT_FILE", value_name = "PATH", value_parser = readable)]
    pub cert_file: Option<PathBuf>,
    /// Key of the client certificate (PEM).
    #[arg(long, env = "STEP_KEY_FILE", value_name = "PATH", value_parser = readable)]
    pub key_file: Option<PathBuf>,
    /// Bearer token for the service, which must be at https:// or on this machine.
    #[arg(long, env = "STEP_TOKEN_FILE", value_name = "PATH", value_parser = readable)]
    pub token_file: Option<PathBuf>,
}

impl RemoteStepConfig {
    /// Whether the files can be used for this service.
    pub fn check(&self) -> Result<(), UnusableCredentials> {
        self.files().check(self.url.clone())
    }

    pub(super) fn files(&self) -> CredentialFiles {
        CredentialFiles {
            prefix: "STEP",
            ca: self.ca_file.clone(),
            cert: self.cert_file.clone(),
            key: self.key_file.clone(),
            token: self.token_file.clone(),
        }
    }
}

/// The name lives as long as the program.
fn step_name(text: &str) -> Result<&'static str, String> {
    let is_free = is_step_name(text)
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && !RESERVED_STEP_NAMES.contains(&text)
        && !text.ends_with(RESERVED_STEP_SUFFIX);
    if BUILT_IN.contains(&text) {
        return Err(format!("{text} is a built-in step, run by waybill-{text}; give your step another name"));
    }
    if !is_free {
        return Err("must be a step of the route file: 1-32 characters of a-z, 0-9 and '-', the first one of a-z, not `end`, \
                    `gateway`, `payment-sandbox`, `step` or ending with `-carried`"
            .to_owned());
    }
    Ok(Box::leak(text.to_owned().into_boxed_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_a_route_can_have() {
        for good in ["fraud", "a", "label-2"] {
            assert_eq!(step_name(good), Ok(good));
        }
        for bad in
            ["", "Fraud", "2nd", "end", "step", "gateway", "inventory-carried", "a b", "inventory", "payment"]
        {
            step_name(bad).unwrap_err();
        }
    }
}
