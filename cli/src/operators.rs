//! How a gateway's service for operators is reached.

use clap::Args;
use tonic::transport::Uri;

use crate::address::parse_address;
use crate::credential::Credential;
use crate::tls::Tls;
use crate::usage::CONNECTION;

/// How a gateway's service for operators is reached.
#[derive(Debug, Args)]
pub(crate) struct Operators {
    /// The gateway's address for operators.
    #[arg(long, env = "WAYBILL_OPERATIONS", default_value = "http://127.0.0.1:50053", global = true,
          value_name = "URL", value_parser = parse_address, help_heading = CONNECTION)]
    pub(crate) operations: Uri,
    #[command(flatten)]
    pub(crate) tls: Tls,
    #[command(flatten)]
    pub(crate) credential: Credential,
}
