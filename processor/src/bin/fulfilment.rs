//! `waybill-fulfilment`: hands paid orders to the carrier.

use std::process::ExitCode;

use clap::Parser;
use processor::fulfilment::Fulfilment;
use processor::program::{self, ProcessorConfig};

/// Hands paid orders to the carrier.
#[derive(Debug, Parser)]
#[command(name = "waybill-fulfilment", version)]
struct Config {
    #[command(flatten)]
    processor: ProcessorConfig,
}

impl program::Config for Config {
    fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(async |_: Config, _| Ok(Fulfilment)).await
}
