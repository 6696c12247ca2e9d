//! Who calls: the API key or the token that goes with every call. It is never shown, not even when it is no good.

use std::ffi::OsStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::args::CONNECTION;

/// Metadata that carries an API key.
const API_KEY: &str = "x-api-key";
/// Metadata that carries a token (RFC 6750).
const TOKEN: &str = "authorization";

/// What the gateway is shown, if it asks for something.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Credential {
    /// The API key, for a gateway that asks for one. Other users of this machine can read a flag, but not the
    /// variable.
    #[arg(long, env = "WAYBILL_API_KEY", hide_env_values = true, global = true, value_name = "KEY", help_heading = CONNECTION,
          value_parser = SecretParser { prefix: "", rule: "--api-key or WAYBILL_API_KEY: an API key is" })]
    api_key: Option<AsciiMetadataValue>,
    /// The token (JWT), for a gateway that asks for one. The same goes for it.
    #[arg(long, env = "WAYBILL_TOKEN", hide_env_values = true, global = true, value_name = "TOKEN", help_heading = CONNECTION,
          value_parser = SecretParser { prefix: "Bearer ", rule: "--token or WAYBILL_TOKEN: a token is" })]
    token: Option<AsciiMetadataValue>,
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in [(API_KEY, &self.api_key), (TOKEN, &self.token)] {
            if let Some(value) = value {
                request.metadata_mut().insert(name, value.clone());
            }
        }
        Ok(request)
    }
}

/// Not a function: clap would quote the secret in the error.
#[derive(Clone)]
struct SecretParser {
    /// What stands before it in the metadata.
    prefix: &'static str,
    /// How the error begins.
    rule: &'static str,
}

impl TypedValueParser for SecretParser {
    type Value = AsciiMetadataValue;

    fn parse_ref(
        &self,
        command: &Command,
        _: Option<&Arg>,
        secret: &OsStr,
    ) -> Result<AsciiMetadataValue, clap::Error> {
        let is_good = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let value = secret.to_str().filter(is_good).map(|text| format!("{}{text}", self.prefix));
        let Some(Ok(mut value)) = value.map(|value| value.parse::<AsciiMetadataValue>()) else {
            let message = format!("{} visible ASCII characters, without spaces\n", self.rule);
            return Err(clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command));
        };
        // Also keeps it out of every {:?}.
        value.set_sensitive(true);
        Ok(value)
    }
}
