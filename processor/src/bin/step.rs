//! `waybill-step`: runs any step by calling its service.

use std::process::ExitCode;

use clap::Parser;
use processor::config::ProcessorConfig;
use processor::remote_step::{RemoteStep, RemoteStepConfig};
use processor::step::StepProfile;

/// Runs a step of a route by calling a steps.v1.StepService.
#[derive(Debug, Parser)]
#[command(name = "waybill-step", version)]
struct Config {
    #[command(flatten)]
    step: RemoteStepConfig,
    #[command(flatten)]
    processor: ProcessorConfig,
}

impl processor::config::Config for Config {
    fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }

    fn step(&self) -> StepProfile {
        StepProfile { defers: true, ..StepProfile::new(self.step.name) }
    }

    fn check(&self) -> Result<(), String> {
        self.step.check().map_err(|error| error.to_string())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    processor::run(async |config: Config, _| {
        Ok(RemoteStep::new(&config.step, config.processor.attempt_timeout)?)
    })
    .await
}
