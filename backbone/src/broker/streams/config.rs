//! How the order log is kept: what operators choose.

use std::time::Duration;

use program::config::{DAY, duration};

/// Of a stream that is new.
pub(super) const RETENTION_DEFAULT: Duration = DAY.saturating_mul(30);
/// The shortest time that the order log may be kept for.
pub const RETENTION_MIN: Duration = Duration::from_secs(1);
/// The longest: in nanoseconds, as the broker counts, a third of what fits in 63 bits.
pub const RETENTION_MAX: Duration = Duration::from_secs(100 * 31_557_600);

/// How the order log is kept.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct StreamConfig {
    /// Retention of events, such as `30d`, 1s-100y. A longer time than the stream's is applied, a shorter one rejected.
    /// Unset: that of the stream, or 30 days if it is new.
    #[arg(long, env = "ORDERS_RETENTION", value_parser = duration(RETENTION_MIN..=RETENTION_MAX))]
    pub orders_retention: Option<Duration>,
    /// Replicas of the streams, 1-5. Unset: those of the stream, or if it is new 1 on a single server and 3 on a
    /// cluster.
    #[arg(long, env = "ORDERS_REPLICAS", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub orders_replicas: Option<u8>,
}
