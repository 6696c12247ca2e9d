//! A processor's whole life, the same for every step.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;

use backbone::connection::{BrokerConfig, Connection};
use backbone::log::OrderLog;
use backbone::shutdown::Shutdown;
use backbone::stream::{StreamConfig, provision};
use backbone::telemetry::{self, TelemetryConfig};
use clap::Parser;
use tokio::select;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::runtime;
use crate::step::Step;

/// Settings that every processor has.
#[derive(Clone, Debug, clap::Args)]
pub struct ProcessorConfig {
    /// Orders that this process works on at the same time, 1-1000. Unset: what suits the step, which is 10, and
    /// for inventory, whose workers share their commits, 128.
    #[arg(long, env = "WORKER_POOL_SIZE", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub worker_pool_size: Option<u16>,
    /// How long the broker waits for a sign of life about an order before it gives it to another worker.
    #[arg(long, env = "ACK_WAIT", default_value = "10s")]
    pub ack_wait: humantime::Duration,
    /// How long one attempt at an order may take.
    #[arg(long, env = "ATTEMPT_TIMEOUT", default_value = "30s")]
    pub attempt_timeout: humantime::Duration,
    /// How long running work may take to end after SIGTERM.
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s")]
    pub drain_timeout: humantime::Duration,
    #[allow(missing_docs, reason = "documented at its type")]
    #[command(flatten)]
    pub broker: BrokerConfig,
    #[allow(missing_docs, reason = "documented at its type")]
    #[command(flatten)]
    pub stream: StreamConfig,
    #[allow(missing_docs, reason = "documented at its type")]
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
}

/// A processor's whole configuration, of which [`ProcessorConfig`] is a part.
pub trait Config: Parser {
    /// The part that every processor has.
    fn processor(&self) -> &ProcessorConfig;
}

/// Runs a processor until it is told to stop. `open` makes the step, once the broker is there.
pub async fn run<C, S, F>(open: impl FnOnce(C, Connection) -> F) -> ExitCode
where
    C: Config,
    S: Step,
    F: Future<Output = anyhow::Result<S>>,
{
    let config: C = match backbone::config::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    telemetry::start(&config.processor().telemetry);
    match Box::pin(work(config, open)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(step = S::NAME, error = format!("{error:#}"), "processor stopped");
            ExitCode::FAILURE
        }
    }
}

async fn work<C, S, F>(config: C, open: impl FnOnce(C, Connection) -> F) -> anyhow::Result<()>
where
    C: Config,
    S: Step,
    F: Future<Output = anyhow::Result<S>>,
{
    let settings = config.processor().clone();
    let mut shutdown = Shutdown::listen()?;
    let connection = Connection::open(&settings.broker, S::NAME).await?;
    let log = OrderLog::new(connection.clone(), S::NAME).await?;
    let drain = CancellationToken::new();

    let processing = async {
        let opening = async {
            provision(&connection, &settings.stream).await?;
            open(config, connection.clone()).await
        };
        let step = select! {
            step = opening => Arc::new(step?),
            // Nothing has begun that would have to be finished.
            () = drain.cancelled() => return Ok(()),
        };
        runtime::process(step, log, &settings, &drain).await
    };
    tokio::pin!(processing);
    select! {
        // Ends by itself only with an error.
        ended = &mut processing => return ended,
        signal = shutdown.requested() => info!(step = S::NAME, signal, "draining"),
    }
    drain.cancel();
    match timeout(settings.drain_timeout.into(), processing).await {
        Ok(ended) => ended?,
        Err(_) => {
            warn!(step = S::NAME, drain_timeout = %settings.drain_timeout, "left work unfinished; it will be redelivered")
        }
    }
    connection.flush().await;
    info!(step = S::NAME, "stopped");
    Ok(())
}
