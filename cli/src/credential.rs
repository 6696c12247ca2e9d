//! The credential: the API key or token of every call. It is never shown, even if it is invalid.

use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::usage::CONNECTION;

/// Metadata that carries an API key.
const API_KEY: &str = "x-api-key";
/// Metadata that carries a token (RFC 6750).
const TOKEN: &str = "authorization";

/// What the gateway is shown, if it asks for something.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Credential {
    /// API key. Other users of this machine can read a flag, but not the variable.
    #[arg(long, env = "WAYBILL_API_KEY", hide_env_values = true, global = true, value_name = "KEY", help_heading = CONNECTION,
          value_parser = secret(""))]
    api_key: Option<AsciiMetadataValue>,
    /// Token (JWT). Other users of this machine can read a flag, but not the variable.
    #[arg(long, env = "WAYBILL_TOKEN", hide_env_values = true, global = true, value_name = "TOKEN", help_heading = CONNECTION,
          value_parser = secret("Bearer "))]
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

/// A parser of what is to be shown to the gateway, behind `scheme`.
fn secret(scheme: &'static str) -> impl Fn(&str) -> Result<AsciiMetadataValue, String> + Clone + Send + Sync {
    move |text| {
        let is_good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let value = is_good.then(|| format!("{scheme}{text}").parse::<AsciiMetadataValue>());
        let Some(Ok(mut value)) = value else {
            return Err("must be visible ASCII characters without spaces".to_owned());
        };
        // Also keeps it out of Debug output.
        value.set_sensitive(true);
        Ok(value)
    }
}
