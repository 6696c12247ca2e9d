//! Probing whether the broker has space for events again, in a program that receives no work until it has.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::OrderLog;
use crate::broker::publish::publish;
use crate::broker::streams::ORDERS;
use crate::log::subjects::STORAGE_PROBE;

const CHECK_INTERVAL: Duration = Duration::from_millis(250);
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause after a probe that was made because a publish went unanswered.
const SUSPICION_PAUSE: Duration = Duration::from_secs(10);

impl OrderLog {
    /// Why the log takes no events, if the broker has no space for them.
    pub fn full(&self) -> Option<String> {
        self.connection.storage().full(ORDERS)
    }

    /// When it is time to probe for storage space, and no event does so, publishes a message of no order, which no
    /// process reads. A stored one stays in the log until it expires.
    pub async fn keep_probing(&self) {
        let storage = self.connection.storage();
        let mut suspected_from = Instant::now();
        loop {
            sleep(CHECK_INTERVAL).await;
            let now = Instant::now();
            let is_due = storage.probe_at(ORDERS).is_some_and(|probe_at| now >= probe_at);
            let is_suspect = now >= suspected_from && storage.take_suspicion();
            if !is_due && !is_suspect {
                continue;
            }
            suspected_from = now + SUSPICION_PAUSE;
            let (subject, headers) = (STORAGE_PROBE.to_owned(), HeaderMap::new());
            // `storage` keeps the outcome.
            publish(&self.connection, ORDERS, subject, headers, Bytes::new(), None, now + PROBE_TIMEOUT)
                .await;
            if self.connection.may_not_publish(STORAGE_PROBE) && self.full().is_some() {
                warn!(subject = STORAGE_PROBE, "storage probe not permitted, the next order probes instead");
                storage.assume_space(ORDERS);
            }
        }
    }
}
