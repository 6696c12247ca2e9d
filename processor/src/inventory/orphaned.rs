//! Counts reservations whose orders the log has lost, for a metric. Operators release them (`waybill stock reconcile`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backbone::broker::direct_get::ReadError;
use backbone::broker::streams::ORDERS;
use backbone::log::OrderLog;
use program::metrics;
use stock::{OrphanQuery, Store};
use tokio::select;
use tokio::time::sleep;
use tracing::{debug, error};

/// How often all reservations are scanned: they become orphans only by a loss, and each loss starts a scan.
const SCAN_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Interval while there are orphans, which an operator may be releasing, or after a failure.
const RESCAN_INTERVAL: Duration = Duration::from_secs(15);
/// Delay after a loss: by then the reservations of orders in progress exist.
const SCAN_DELAY_AFTER_LOSS: Duration = Duration::from_secs(5);
/// A younger reservation may be of an order that this scan has not read.
const OLDER_THAN: Duration = Duration::from_secs(5);

/// Counts periodically; never ends.
pub(super) async fn count_periodically(store: Store, log: OrderLog) {
    let known: Arc<Mutex<Option<u64>>> = Arc::default();
    let shown = known.clone();
    metrics::gauge(
        "waybill.stock.reservations.orphaned",
        "Reservations of orders that the log has lost.",
        move |gauge| {
            if let Some(orphans) = *shown.lock().unwrap_or_else(PoisonError::into_inner) {
                gauge.observe(orphans, &[]);
            }
        },
    );
    let mut losses = log.losses();
    let mut before = 0;
    loop {
        losses.mark_unchanged();
        let counted = count(&store, &log).await;
        let pause = match counted {
            Ok(0) => SCAN_INTERVAL,
            Ok(orphans) => {
                if orphans > before {
                    error!(orphans, "reservations of lost orders hold stock; run waybill stock reconcile");
                }
                RESCAN_INTERVAL
            }
            Err(ref error) => {
                debug!(%error, "reservations not compared with the log");
                RESCAN_INTERVAL
            }
        };
        if let Ok(orphans) = counted {
            before = orphans;
            *known.lock().unwrap_or_else(PoisonError::into_inner) = Some(orphans);
        }
        select! {
            () = sleep(pause) => {}
            Ok(()) = losses.changed() => sleep(SCAN_DELAY_AFTER_LOSS).await,
        }
    }
}

async fn count(store: &Store, log: &OrderLog) -> Result<u64, ReadError> {
    let orders = log.connection().jetstream().get_stream(ORDERS).await;
    let orders = orders.map_err(|error| ReadError::NoAnswer(error.to_string()))?;
    let retention = orders.cached_info().config.max_age;
    let mut orphans = store.orphans(log, OrphanQuery { retention, older_than: OLDER_THAN }).await?;
    let mut count = 0;
    while orphans.next().await?.is_some() {
        count += 1;
    }
    Ok(count)
}
