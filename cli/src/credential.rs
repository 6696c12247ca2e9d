//! Who calls: the API key that goes with every call. It is never shown, not even when it is no good.

use std::ffi::OsStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Metadata that carries an API key.
const API_KEY: &str = "x-api-key";

/// The API key, if the gateway asks for one.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Credential {
    /// The API key, for a gateway that asks for one. Other users of this machine can read a flag, but not the
    /// variable.
    #[arg(long, env = "WAYBILL_API_KEY", hide_env_values = true, global = true, value_name = "KEY",
          value_parser = ApiKeyParser)]
    api_key: Option<AsciiMetadataValue>,
}

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.api_key {
            request.metadata_mut().insert(API_KEY, key.clone());
        }
        Ok(request)
    }
}

/// Not a function: clap would quote the key in the error.
#[derive(Clone)]
struct ApiKeyParser;

impl TypedValueParser for ApiKeyParser {
    type Value = AsciiMetadataValue;

    fn parse_ref(
        &self,
        command: &Command,
        _: Option<&Arg>,
        key: &OsStr,
    ) -> Result<AsciiMetadataValue, clap::Error> {
        let is_key = |key: &&str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        let key = key.to_str().filter(is_key);
        let Some(Ok(mut key)) = key.map(str::parse::<AsciiMetadataValue>) else {
            let message =
                "--api-key or WAYBILL_API_KEY: an API key is visible ASCII characters, without spaces\n";
            return Err(clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command));
        };
        // Also keeps it out of every {:?}.
        key.set_sensitive(true);
        Ok(key)
    }
}
