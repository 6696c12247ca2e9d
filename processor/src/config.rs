//! A processor's settings: each a flag and an environment variable.

use backbone::connection::BrokerConfig;
use backbone::stream::StreamConfig;
use backbone::telemetry::TelemetryConfig;
use clap::Parser;

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
