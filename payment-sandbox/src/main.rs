//! `waybill-payment-sandbox`: a payment service that moves no money, and goes wrong on demand.

mod behaviour;
mod journal;
mod ledger;
mod ledger_task;
mod sandbox;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use program::Prepared;
use program::config::{DAY, duration, parse_addr};
use program::shutdown::{self, Shutdown};
use program::telemetry::TelemetryConfig;
use tokio::net::TcpListener;
use tokio::select;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::sandbox::PaymentSandbox;

/// Serves payments.v1.PaymentService, moves no money, and injects faults on demand (SandboxControlService).
#[derive(Debug, Parser)]
#[command(name = "waybill-payment-sandbox", version)]
struct Config {
    /// Address of the gRPC port, without authentication. Port 0 takes a free one, which is logged.
    #[arg(long, env = "PAYMENT_SANDBOX_ADDR", default_value = "127.0.0.1:50052", value_parser = parse_addr)]
    payment_sandbox_addr: SocketAddr,
    /// File of captures and refunds. It only grows, up to 1,000,000 payments; then new ones are rejected. Start with
    /// an empty file then.
    #[arg(long, env = "PAYMENT_SANDBOX_DATA", default_value = "payments.jsonl")]
    payment_sandbox_data: PathBuf,
    /// How long open calls may take after SIGTERM, 0s-1d.
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_parser = duration(Duration::ZERO..=DAY))]
    drain_timeout: Duration,
    #[command(flatten)]
    telemetry: TelemetryConfig,
}

#[tokio::main]
async fn main() -> ExitCode {
    let prepare = |config: Config| {
        let telemetry = config.telemetry.clone();
        Ok(Prepared { telemetry, has_metrics: false, settings: config })
    };
    program::run(prepare, serve).await
}

async fn serve(config: Config, mut shutdown: Shutdown) -> anyhow::Result<()> {
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
        () = shutdown.requested() => {}
    }
    stopping.cancel();
    if let Some(ended) = shutdown::drain(config.drain_timeout, serving).await {
        ended?;
    }
    Ok(())
}
