//! `waybill-inventory`: reserves and releases the stock of orders.

use std::process::ExitCode;

use clap::Parser;
use processor::config::ProcessorConfig;
use processor::inventory::{self, Inventory, InventoryConfig};
use processor::step::StepProfile;

/// Reserves and releases the stock of orders.
#[derive(Debug, Parser)]
#[command(name = "waybill-inventory", version)]
struct Config {
    #[command(flatten)]
    inventory: InventoryConfig,
    #[command(flatten)]
    processor: ProcessorConfig,
}

impl processor::config::Config for Config {
    fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }

    fn step(&self) -> StepProfile {
        inventory::PROFILE
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    processor::run(async |config: Config, connection| {
        Inventory::open(&config.inventory, connection, config.processor.attempt_timeout).await
    })
    .await
}
