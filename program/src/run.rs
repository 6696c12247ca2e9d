//! A program's life: settings, logging, traces, metrics, its work until a signal, the last spans and lines, an exit code.

use std::future::Future;
use std::process::ExitCode;

use clap::Parser;
use tokio::join;
use tracing::{error, info};

use crate::config;
use crate::metrics::Metrics;
use crate::otlp;
use crate::shutdown::Shutdown;
use crate::telemetry::{self, TelemetryConfig};
use crate::trace::export::Traces;

/// What a program has read and checked before it starts.
#[derive(Debug)]
pub struct Prepared<P> {
    /// How it logs.
    pub telemetry: TelemetryConfig,
    /// Whether it has metrics.
    pub has_metrics: bool,
    /// What its work needs.
    pub settings: P,
}

/// Runs a program: reads its settings, has `prepare` check them, and does `work` until that ends, which it has to soon
/// after [`Shutdown::requested`].
///
/// The exit code is 64 for an invalid setting, which standard error names, and 1 if the work fails.
pub async fn run<C, P, W>(
    prepare: impl FnOnce(C) -> Result<Prepared<P>, String>,
    work: impl FnOnce(P, Shutdown) -> W,
) -> ExitCode
where
    C: Parser,
    W: Future<Output = anyhow::Result<()>>,
{
    let config: C = match config::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let Prepared { telemetry, has_metrics, settings } = match prepare(config) {
        Ok(prepared) => prepared,
        Err(reason) => return config::refuse(&reason),
    };
    let command = C::command();
    let program = command.get_name();
    let traces = match Traces::start(program) {
        Ok(traces) => traces,
        Err(reason) => return config::refuse(&reason),
    };
    let _telemetry = telemetry::start_with(&telemetry, traces.layer());
    traces.announce();
    let metrics = match has_metrics.then(|| Metrics::start(program)).transpose() {
        Ok(metrics) => metrics,
        Err(reason) => return config::refuse(&reason),
    };
    otlp::warn_of_resource();
    let ended = match Shutdown::listen() {
        Ok(shutdown) => Box::pin(work(settings, shutdown)).await,
        Err(error) => Err(error.into()),
    };
    let code = match ended {
        Ok(()) => {
            info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!(program, error = format!("{error:#}"), "stopped by an error");
            ExitCode::FAILURE
        }
    };
    let flush_metrics = async {
        if let Some(metrics) = metrics {
            metrics.flush().await;
        }
    };
    join!(traces.flush(), flush_metrics);
    code
}
