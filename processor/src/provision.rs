//! Creates the streams, the bucket and the consumers of steps at the broker, so that the programs need no permission to.

use std::time::Duration;

use backbone::broker::connection::Connection;
use backbone::broker::streams::{self, StreamConfig};
use backbone::consumer::{Consumer, ConsumerConfig};
use program::backoff::Backoff;
use thiserror::Error;
use tokio::time::sleep;

use crate::inventory::{self, StoreError};

const RETRY: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) };

/// A part that is not configured as required, and cannot be changed.
#[derive(Debug, Error)]
pub enum ProvisionError {
    /// One of the streams.
    #[error(transparent)]
    Stream(#[from] streams::ProvisionError),
    /// The bucket.
    #[error(transparent)]
    Bucket(#[from] StoreError),
}

/// Ensures that everything exists that these steps need, and waits for the broker without a deadline. `waiting` receives the cause. Safe to
/// run at any time: existing parts are left as they are, or completed.
pub async fn provision(
    connection: &Connection,
    config: &StreamConfig,
    steps: &[&str],
    ack_wait: Duration,
    waiting: impl Fn(String),
) -> Result<(), ProvisionError> {
    streams::provision_with_deferrals(connection, config, &waiting).await?;
    inventory::provision(connection, &waiting).await?;
    let carried = inventory::PROFILE.carried.filter(|_| steps.contains(&inventory::PROFILE.name));
    let carried = carried.map(|consumer| ConsumerConfig::of_carried(consumer, ack_wait));
    let consumers = steps.iter().map(|step| ConsumerConfig::of_step(step, ack_wait)).chain(carried);
    for consumer in consumers {
        let mut attempts = 0;
        while let Err(error) = Consumer::provision(connection, &consumer).await {
            attempts += 1;
            waiting(format!("consumer {} cannot be set up yet: {error}", consumer.name));
            sleep(RETRY.after(attempts)).await;
            connection.up().await;
        }
    }
    Ok(())
}
