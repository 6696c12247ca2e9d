//! `waybill-payment`: captures the total of reserved orders, and refunds cancelled ones.

use std::process::ExitCode;

use clap::Parser;
use processor::config::ProcessorConfig;
use processor::payment::{self, Payment, PaymentConfig};
use processor::step::StepProfile;

/// Captures the total of reserved orders, and refunds cancelled ones.
#[derive(Debug, Parser)]
#[command(name = "waybill-payment", version)]
struct Config {
    #[command(flatten)]
    payment: PaymentConfig,
    #[command(flatten)]
    processor: ProcessorConfig,
}

impl processor::config::Config for Config {
    fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }

    fn step(&self) -> StepProfile {
        payment::PROFILE
    }

    fn check(&self) -> Result<(), String> {
        self.payment.check().map_err(|error| error.to_string())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    processor::run(async |config: Config, _| {
        Ok(Payment::new(config.payment.provider(config.processor.attempt_timeout)?))
    })
    .await
}
