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
    /// How long events are kept, such as `30d`; a longer time than the stream's is applied, a shorter one
    /// refused. 1s-100y. Unset: what the stream has, or 30 days if it is new.
    #[arg(long, env = "ORDERS_RETENTION", value_parser = duration(RETENTION_MIN..=RETENTION_MAX))]
    pub orders_retention: Option<Duration>,
    /// Copies of the stream, 1-5. Unset: what the stream has, or if it is new 1 on a single server and 3 on a
    /// cluster. The stream of dead letters has as many.
    #[arg(long, env = "ORDERS_REPLICAS", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub orders_replicas: Option<u8>,
}
