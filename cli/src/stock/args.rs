//! The command line of `waybill stock`.

use clap::{Args as ClapArgs, Subcommand};

use crate::operators::Operators;

#[derive(Debug, ClapArgs)]
pub(crate) struct StockArgs {
    #[command(flatten)]
    pub(crate) gateway: Operators,
    #[command(subcommand)]
    pub(crate) command: StockCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StockCommand {
    /// List all SKUs: available units, reserved units, and the revision.
    List,
    /// Show one SKU.
    Get {
        /// The SKU.
        sku: String,
    },
    /// Add units. Creates a SKU that does not exist.
    Add {
        /// The SKU.
        sku: String,
        /// Number of units.
        units: i64,
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Remove units, all or none.
    Remove {
        /// The SKU.
        sku: String,
        /// Number of units.
        units: i64,
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Set the available units, if they have not changed since that revision.
    Set {
        /// The SKU.
        sku: String,
        /// The new number of available units.
        units: i64,
        /// The revision that `get` shows; 0 if the SKU does not exist.
        #[arg(long, value_name = "REVISION")]
        revision: u64,
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Release the reservations of orders that the order log has lost. An order may have been fulfilled before it was
    /// lost: use --dry-run first.
    Reconcile {
        /// Report what would be released, and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Only reservations of at least this age.
        #[arg(long, default_value = "10m", value_name = "TIME")]
        older_than: humantime::Duration,
        /// Only those of this order. Several are allowed.
        #[arg(long = "order", value_name = "ORDER_ID")]
        orders: Vec<String>,
        /// All of them. The log cannot tell whether a lost order was fulfilled: use --dry-run first.
        #[arg(long, conflicts_with = "orders")]
        all: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RequestArgs {
    /// Identifies this change for 7 days: a retry changes nothing and returns the first answer. Unset: a new id.
    #[arg(long, value_name = "ID")]
    pub(crate) request_id: Option<String>,
}
