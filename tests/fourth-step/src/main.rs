//! `waybill-fraud`: screens reserved orders before they are paid.

mod fraud;

use std::process::ExitCode;

use clap::Parser;
use processor::config::ProcessorConfig;
use processor::step::StepProfile;

use fraud::Fraud;

/// Screens reserved orders before they are paid.
#[derive(Debug, Parser)]
#[command(name = "waybill-fraud", version)]
struct Config {
    #[command(flatten)]
    processor: ProcessorConfig,
}

impl processor::config::Config for Config {
    fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }

    fn step(&self) -> StepProfile {
        StepProfile::new("fraud")
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    processor::run(async |_: Config, connection| Fraud::open(&connection).await).await
}
