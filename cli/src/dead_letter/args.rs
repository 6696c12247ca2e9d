//! The command line of `waybill dead-letter`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use crate::operators::Operators;
use crate::usage::UsageError;

#[derive(Debug, ClapArgs)]
pub(crate) struct DeadLetterArgs {
    #[command(flatten)]
    pub(crate) gateway: Operators,
    #[command(subcommand)]
    pub(crate) command: DeadLetterCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetterCommand {
    /// Count open dead letters by cause, and list them, oldest first.
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// Maximum number of dead letters.
        #[arg(long, default_value = "50", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one dead letter with every attempt.
    Get {
        /// The id of the dead letter, as `list` shows it.
        dead_letter_id: String,
        /// Write the original message's payload to this file, byte for byte.
        #[arg(long, value_name = "PATH")]
        payload: Option<PathBuf>,
    },
    /// Redrive parked orders.
    Redrive(RedriveArgs),
    /// Close a dead letter for good; it stays readable, and its order FAILED.
    Discard {
        /// The id of the dead letter, as `list` shows it.
        dead_letter_id: String,
        /// The reason, for the record.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Selects dead letters.
#[derive(Debug, ClapArgs)]
pub(crate) struct FilterArgs {
    /// Only dead letters of this step.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "STEP")]
    pub(crate) step: String,
    /// Only dead letters with this fingerprint.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "HEX")]
    pub(crate) fingerprint: String,
    /// Only dead letters of at least this age, such as 2h.
    #[arg(long, value_name = "TIME")]
    pub(crate) older_than: Option<humantime::Duration>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RedriveArgs {
    /// The ids of the dead letters, as `list` shows them. Without any, use a filter or --all.
    pub(crate) dead_letter_ids: Vec<String>,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// All open dead letters.
    #[arg(long, conflicts_with_all = ["dead_letter_ids", "step", "fingerprint", "older_than"])]
    pub(crate) all: bool,
    /// Report what would be done, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Maximum number of orders a second, 1-1000.
    #[arg(long, default_value = "10", value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1000))]
    pub(crate) rate: i32,
    /// Maximum number of dead letters, oldest first, 1-20000.
    #[arg(long, default_value = "20000", value_name = "N", value_parser = clap::value_parser!(i32).range(1..=20_000))]
    pub(crate) limit: i32,
    /// Redrive one order, and the others only once that one has finished.
    #[arg(long)]
    pub(crate) canary: bool,
}

impl RedriveArgs {
    /// A redrive requires a selection.
    pub(crate) fn check(&self) -> Result<(), UsageError> {
        let named = !self.dead_letter_ids.is_empty();
        if !named && !self.all && !self.filter.is_set() {
            return Err(UsageError(
                "name dead letters: by id, --step, --fingerprint, --older-than, or --all".to_owned(),
            ));
        }
        if named && self.filter.is_set() {
            return Err(UsageError("name dead letters by id or by a filter, not both".to_owned()));
        }
        Ok(())
    }
}

impl FilterArgs {
    /// Whether it leaves anything out.
    pub(crate) fn is_set(&self) -> bool {
        !self.step.is_empty() || !self.fingerprint.is_empty() || self.older_than.is_some()
    }
}
