//! The setting, for every program that knows routes.

use std::path::PathBuf;

/// Where the routes are defined.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RoutesConfig {
    /// File of the routes that orders can take (YAML, see docs/routes.md). Read at start. Unset: one route, inventory,
    /// payment, fulfilment.
    #[arg(long, env = "ROUTES_FILE")]
    pub routes_file: Option<PathBuf>,
}
