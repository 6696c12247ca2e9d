//! Opens the bucket: created and filled at the first start, and never recreated automatically.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream;
use backbone::broker::connection::Connection;
use backbone::broker::streams::ORDERS;
use backbone::log::ids::Revision;
use program::backoff::Backoff;
use program::telemetry::LogThrottle;
use stock::{
    BUCKET, Batch, BucketState, CommitError, Presence, STREAM, Store, StoreError, is_known, stock_key,
};
use tokio::time::sleep;
use tracing::{info, warn};

use super::initial_stock::{InventoryConfig, Stock};

/// Interval between log lines while waiting.
const LOG_INTERVAL: Duration = Duration::from_secs(15);
const RETRY: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) };

/// Opens the bucket. The first start creates and fills it. A bucket that existed before and is missing is not created:
/// the inventory works only once it exists again. `consumer` is the step's.
pub(super) async fn open(
    presence: &Presence,
    connection: Connection,
    config: &InventoryConfig,
    consumer: &str,
) -> Result<Store, StoreError> {
    let (mut attempts, log_throttle) = (0, LogThrottle::every(LOG_INTERVAL));
    loop {
        connection.up().await;
        match set_up(presence, &connection, config, consumer).await {
            Ok(opened) => return opened,
            Err(error) => {
                attempts += 1;
                if let Some(left_out) = log_throttle.allow() {
                    warn!(error, attempts, left_out, "bucket {BUCKET} not ready, retrying");
                }
                sleep(RETRY.after(attempts)).await;
            }
        }
    }
}

/// The outer error is transient.
async fn set_up(
    presence: &Presence,
    connection: &Connection,
    config: &InventoryConfig,
    consumer: &str,
) -> Result<Result<Store, StoreError>, String> {
    let jetstream = connection.jetstream();
    let orders = jetstream.get_stream(ORDERS).await.map_err(|error| error.to_string())?;
    let config_of_orders = &orders.cached_info().config;
    let store = Store::new(connection.clone(), stock::reservation_ttl(config_of_orders.max_age));
    match presence.look().await {
        BucketState::Unknown => return Err("bucket cannot be read yet".to_owned()),
        BucketState::Missing => return Ok(Ok(store)),
        // The orders that prove that the bucket existed may all have expired. The step has worked, so it existed.
        BucketState::NotYet if has_worked(&orders, consumer).await? => {
            presence.was_there();
            return Ok(Ok(store));
        }
        BucketState::NotYet | BucketState::Present(_) => {}
    }
    if let Err(error) = stock::make(connection, config_of_orders.num_replicas).await? {
        return Ok(Err(error));
    }
    presence.look().await;
    let bucket = jetstream.get_stream(STREAM).await.map_err(|error| error.to_string())?;
    let is_empty = bucket.cached_info().state.messages == 0;
    if is_empty && is_known(connection).await.map_err(|error| error.to_string())? {
        store.mark_as_remade().await.map_err(|error| error.to_string())?;
    }
    let Some(Stock(stock)) = &config.stock else { return Ok(Ok(store)) };
    if store.is_remade().await.map_err(|error| error.to_string())? {
        warn!(
            "STOCK not applied: bucket {BUCKET} was recreated after a loss; set the counts with waybill stock"
        );
    } else {
        seed(&store, stock).await?;
    }
    Ok(Ok(store))
}

/// Whether the step has ever taken an order from its consumer, which it does only when it has had a bucket.
async fn has_worked(orders: &stream::Stream, consumer: &str) -> Result<bool, String> {
    match orders.consumer_info(consumer).await {
        Ok(info) => Ok(info.delivered.consumer_sequence > 0),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

async fn seed(store: &Store, stock: &BTreeMap<String, u64>) -> Result<(), String> {
    // Existing SKUs need no write, for which there may be no storage space. If a lagging replica misses one, the write
    // conflicts.
    let keys: Vec<_> = stock.keys().map(|sku| stock_key(sku)).collect();
    let present = store.read(&keys).await.map_err(|error| error.to_string())?;
    for (sku, units) in stock.iter().filter(|(sku, _)| !present.contains_key(&stock_key(sku))) {
        let mut batch = Batch::default();
        batch.write(store.stock_write(sku, *units, Revision::NONE));
        match store.commit(batch).await {
            Ok(_) => info!(sku, units, "stock created"),
            Err(CommitError::Conflict) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}
