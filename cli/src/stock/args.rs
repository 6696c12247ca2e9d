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
    /// List all SKUs: units available, units that unfinished orders hold, and the revision.
    List,
    /// Show one SKU.
    Get {
        /// The SKU.
        sku: String,
    },
    /// Put units in. A SKU that does not exist is created.
    Add {
        /// The SKU.
        sku: String,
        /// How many units.
        units: i64,
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Take units out, all or none.
    Remove {
        /// The SKU.
        sku: String,
        /// How many units.
        units: i64,
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Set the available units, if nothing has changed since they were read.
    Set {
        /// The SKU.
        sku: String,
        /// How many units there are to be.
        units: i64,
        /// The revision that `get` shows; 0 if the SKU does not exist.
        #[arg(long, value_name = "REVISION")]
        revision: u64,
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Release what orders hold that the order log has lost. An order may have been fulfilled before it was lost: look
    /// with --dry-run first.
    Reconcile {
        /// Only say what would be released.
        #[arg(long)]
        dry_run: bool,
        /// Only reservations that were made so long ago.
        #[arg(long, default_value = "10m", value_name = "TIME")]
        older_than: humantime::Duration,
        /// Only those of this order. Repeat it for more.
        #[arg(long = "order", value_name = "ORDER_ID")]
        orders: Vec<String>,
        /// All of them. The log cannot tell whether a lost order was fulfilled: see them with --dry-run first.
        #[arg(long, conflicts_with = "orders")]
        all: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RequestArgs {
    /// Names this change for 7 days: repeated, it changes nothing and answers as it did first. Unset: a new name.
    #[arg(long, value_name = "ID")]
    pub(crate) request_id: Option<String>,
}
