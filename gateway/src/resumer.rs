//! The resumer: wakes the steps of orders whose deferral is over. Every gateway runs one; compare-and-set resumes each order
//! once.

use std::convert::Infallible;
use std::time::Duration;

use backbone::log::OrderLog;
use program::telemetry::LogThrottle;
use tokio::time::sleep;
use tracing::warn;

/// How late an order is resumed at most, besides the broker's own delay.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Failures in a row that are not reported: the stream may be about to be created.
const SILENT_FAILURES: u32 = 2;

static FAILED_LOG: LogThrottle = LogThrottle::every(Duration::from_secs(30));

/// Resumes orders, and never ends.
pub(crate) async fn keep(log: OrderLog) -> Infallible {
    let mut failures = 0_u32;
    loop {
        let pause = match log.resume_due().await {
            Ok(more) => {
                failures = 0;
                if more { Duration::ZERO } else { CHECK_INTERVAL }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                if failures > SILENT_FAILURES
                    && log.connection().is_up()
                    && let Some(left_out) = FAILED_LOG.allow()
                {
                    warn!(%error, left_out, "deferred orders not resumed, retrying");
                }
                RETRY_INTERVAL
            }
        };
        sleep(pause).await;
    }
}
