//! `waybill-payment`: captures the total of reserved orders, and refunds cancelled ones.

use std::process::ExitCode;

use clap::Parser;
use processor::config::ProcessorConfig;
use processor::payment::{Payment, Sandbox};
use processor::program;

/// Captures the total of reserved orders, and refunds cancelled ones. For now with the built-in sandbox, which
/// moves no money, and remembers what it captured only until this process ends.
#[derive(Debug, Parser)]
#[command(name = "waybill-payment", version)]
struct Config {
    #[command(flatten)]
    processor: ProcessorConfig,
}

impl processor::config::Config for Config {
    fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    program::run(async |_: Config, _| Ok(Payment::new(Sandbox::default()))).await
}
