//! A processor's settings: each a flag and an environment variable.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use backbone::broker::credentials::BrokerConfig;
use backbone::broker::streams::StreamConfig;
use clap::Parser;
use program::config::{DAY, duration, parse_addr};
use program::telemetry::TelemetryConfig;

use crate::step::StepProfile;

/// The range of ACK_WAIT. Workers acknowledge progress every third of it.
pub const ACK_WAIT: RangeInclusive<Duration> = Duration::from_millis(100)..=DAY;
/// Each part of an attempt (read, effect, append) gets a fraction of it, which must suffice at a busy broker.
const ATTEMPT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Settings that every processor has.
#[derive(Clone, Debug, clap::Args)]
pub struct ProcessorConfig {
    /// Orders that this process works on at once, 1-1000, plus one probe. With 1, an order that fails alone has a
    /// worker of its own. Unset: 10, and 128 for inventory, whose workers share their commits.
    #[arg(long, env = "WORKER_POOL_SIZE", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub worker_pool_size: Option<u16>,
    /// How long the broker waits for an acknowledgement or a sign of progress before it redelivers a message,
    /// 100ms-1d.
    #[arg(long, env = "ACK_WAIT", default_value = "10s", value_parser = duration(ACK_WAIT))]
    pub ack_wait: Duration,
    /// Deadline of one attempt at an order, 1s-1d.
    #[arg(long, env = "ATTEMPT_TIMEOUT", default_value = "30s",
          value_parser = duration(ATTEMPT_TIMEOUT_MIN..=DAY))]
    pub attempt_timeout: Duration,
    /// Failed attempts after which an order is parked as a dead letter, 1-100. Attempts during an outage of the
    /// dependency do not count.
    #[arg(long, env = "MAX_ATTEMPTS", default_value = "10", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub max_attempts: u8,
    /// Address of the HTTP port with /livez, /readyz, /health and /metrics. Port 0 takes a free one, which is logged.
    /// Unset: not served.
    #[arg(long, env = "OPS_ADDR", value_parser = parse_addr)]
    pub ops_addr: Option<SocketAddr>,
    /// How long running work may take after SIGTERM, 0s-1d.
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_parser = duration(Duration::ZERO..=DAY))]
    pub drain_timeout: Duration,
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
    /// The step that it runs.
    fn step(&self) -> StepProfile;
    /// Whether its values can be used together; if not, which cannot, and what to do.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
