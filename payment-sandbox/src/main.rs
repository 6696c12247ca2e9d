//! `waybill-payment-sandbox`: a payment service that moves no money, and goes wrong on demand.

mod behaviour;
mod journal;
mod keeper;
mod ledger;
mod sandbox;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use program::config::{DAY, duration, parse_addr};
use program::shutdown::Shutdown;
use program::telemetry::{self, TelemetryConfig};
use program::trace::export::Traces;
use tokio::net::TcpListener;
use tokio::select;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::sandbox::PaymentSandbox;

/// Serves payments.v1.PaymentService, moves no money, and goes wrong on demand (SandboxControlService).
#[derive(Debug, Parser)]
#[command(name = "waybill-payment-sandbox", version)]
struct Config {
    /// Where to serve gRPC. Port 0 takes a free one, which is logged. Nobody is asked who they are.
    #[arg(long, env = "PAYMENT_SANDBOX_ADDR", default_value = "127.0.0.1:50052", value_parser = parse_addr)]
    payment_sandbox_addr: SocketAddr,
    /// File that holds what was captured and refunded. It only grows, up to 1,000,000 payments, after which no new
    /// ones are taken; begin with an empty file then.
    #[arg(long, env = "PAYMENT_SANDBOX_DATA", default_value = "payments.jsonl")]
    payment_sandbox_data: PathBuf,
    /// How long open calls may take to end after SIGTERM, 0s-1d.
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_parser = duration(Duration::ZERO..=DAY))]
    drain_timeout: Duration,
    #[command(flatten)]
    telemetry: TelemetryConfig,
}

#[tokio::main]
async fn main() -> ExitCode {
    let config: Config = match program::config::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let _telemetry = telemetry::start(&config.telemetry);
    let traces = match Traces::start("waybill-payment-sandbox") {
        Ok(traces) => traces,
        Err(reason) => return program::config::refuse(&reason),
    };
    let code = match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "payment sandbox stopped");
            ExitCode::FAILURE
        }
    };
    traces.flush().await;
    code
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut shutdown = Shutdown::listen()?;
    let sandbox =
        PaymentSandbox::open(&config.payment_sandbox_data).context("PAYMENT_SANDBOX_DATA cannot be used")?;
    let listener = TcpListener::bind(config.payment_sandbox_addr).await.with_context(|| {
        format!("cannot listen on {} (PAYMENT_SANDBOX_ADDR)", config.payment_sandbox_addr)
    })?;
    info!(pid = std::process::id(), grpc_addr = %listener.local_addr()?, "listening");

    let stopping = CancellationToken::new();
    let serving = sandbox.serve(listener, stopping.clone());
    tokio::pin!(serving);
    select! {
        // Ends by itself only with an error.
        ended = &mut serving => return ended,
        signal = shutdown.requested() => info!(signal, "stopping"),
    }
    stopping.cancel();
    match timeout(config.drain_timeout, serving).await {
        Ok(ended) => ended?,
        Err(_) => {
            warn!(drain_timeout = ?config.drain_timeout, "calls were still open at the end of the drain")
        }
    }
    info!("stopped");
    Ok(())
}
