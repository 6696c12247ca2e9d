//! `waybill-fulfilment`: hands paid orders to the carrier.

use std::process::ExitCode;

use clap::Parser;
use processor::config::ProcessorConfig;
use processor::fulfilment::{self, Fulfilment};
use processor::step::StepProfile;

/// Hands paid orders to the carrier.
#[derive(Debug, Parser)]
#[command(name = "waybill-fulfilment", version)]
struct Config {
    #[command(flatten)]
    processor: ProcessorConfig,
}

impl processor::config::Config for Config {
    fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }

    fn step(&self) -> StepProfile {
        fulfilment::PROFILE
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    processor::run(async |_: Config, _| Ok(Fulfilment)).await
}
