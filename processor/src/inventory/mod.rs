//! Inventory: reserves all of an order's stock or none of it, and releases it again.

mod initial_stock;
mod ledger;
mod opening;
mod orphaned;
mod reservations;

use std::convert::Infallible;
use std::time::Duration;

use backbone::broker::connection::Connection;
use backbone::log::OrderLog;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, StockLine, StockReleased, StockReserved};

use tracing::warn;

pub use initial_stock::{InventoryConfig, Stock};
pub use stock::{BUCKET, Reservation, ReservationState, StoreError, provision, reservation_key, stock_key};

use crate::step::{Step, StepError, StepProfile};
use ledger::{Answer, ReservationRequest};
use reservations::Reservations;
use stock::{ORDER_SKUS_MAX, Presence, SKU_RULE, Units, is_sku};
use tokio_util::task::AbortOnDropHandle;

/// Reason of an order that asked for more than there is.
pub const OUT_OF_STOCK: &str = "OUT_OF_STOCK";

/// The inventory step.
pub const PROFILE: StepProfile = StepProfile {
    name: "inventory",
    // Reservations expire.
    carried: Some("inventory-carried"),
    // A commit takes an fsync, some milliseconds on a busy disk, and serves all workers that wait for it.
    worker_pool_size: 128,
    defers: false,
    gets_payment_method: false,
};

/// The inventory step.
#[derive(Debug)]
pub struct Inventory {
    reservations: Reservations,
    presence: Presence,
    _presence_task: AbortOnDropHandle<Infallible>,
    _orphan_task: AbortOnDropHandle<()>,
}

impl Inventory {
    /// Opens the inventory behind `connection`, and sets it up if it never existed. One attempt at an order may take
    /// `attempt_timeout`, of which the inventory takes half at the most.
    pub async fn open(
        config: &InventoryConfig,
        connection: Connection,
        attempt_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let presence = Presence::new(connection.clone());
        let store = opening::open(&presence, connection.clone(), config, PROFILE.name).await?;
        let log = OrderLog::new(connection, PROFILE.name).await?;
        let watched = presence.clone();
        let presence_task = tokio::spawn(async move { watched.keep().await });
        let orphan_task = tokio::spawn(orphaned::count_periodically(store.clone(), log));
        Ok(Self {
            reservations: Reservations::start(store, attempt_timeout / 2),
            presence,
            _presence_task: AbortOnDropHandle::new(presence_task),
            _orphan_task: AbortOnDropHandle::new(orphan_task),
        })
    }
}

impl Step for Inventory {
    fn lacks(&self) -> Option<&'static str> {
        self.presence.missing()
    }

    async fn act(&self, order: &Order, _: u64) -> Result<Detail, StepError> {
        let wanted = units_of(order)?;
        match self.reservations.ask(order, ReservationRequest::Reserve(wanted.clone())).await? {
            Answer::Held => Ok(Detail::Reserved(StockReserved { lines: lines(wanted) })),
            Answer::OutOfStock(message) => Err(StepError::Rejected { reason: OUT_OF_STOCK.into(), message }),
            // The order has moved on from the status in this event, or is about to.
            Answer::Released(_) => {
                Err(StepError::Unexpected("the reservation was already released".to_owned()))
            }
            Answer::Refused(reason) => Err(StepError::Unexpected(reason)),
            Answer::Kept => Err(StepError::Unexpected("reservation was renewed, not made".to_owned())),
        }
    }

    async fn compensate(&self, order: &Order, _: bool, _: u64) -> Result<Detail, StepError> {
        match self.reservations.ask(order, ReservationRequest::Release).await? {
            Answer::Released(units) => Ok(Detail::Released(StockReleased { lines: lines(units) })),
            Answer::Refused(reason) => Err(StepError::Unexpected(reason)),
            Answer::Held | Answer::Kept | Answer::OutOfStock(_) => {
                Err(StepError::Unexpected("reservation was not released".to_owned()))
            }
        }
    }

    async fn keep(&self, order: &Order) -> Result<(), StepError> {
        let answer = self.reservations.ask(order, ReservationRequest::Keep).await?;
        // An unreadable record is reported when it is needed. It must not park an order that waits for another step.
        if let Answer::Refused(reason) = answer {
            warn!(order_id = order.order_id, reason, "reservation of a carried order not renewed");
        }
        Ok(())
    }
}

/// The request of the order. Only an order that no gateway accepted breaks a rule here; it must not get into a batch,
/// where it would delay the others.
fn units_of(order: &Order) -> Result<Units, StepError> {
    let malformed = |reason: String| StepError::Unexpected(format!("malformed order: {reason}"));
    let mut units = Units::new();
    for (i, item) in order.items.iter().enumerate() {
        if !is_sku(&item.sku) {
            return Err(malformed(format!("the SKU of items[{i}] is not {SKU_RULE}")));
        }
        let quantity = u64::try_from(item.quantity)
            .map_err(|_| malformed(format!("the quantity of items[{i}] is {}", item.quantity)))?;
        *units.entry(item.sku.clone()).or_default() += quantity;
    }
    if units.len() > ORDER_SKUS_MAX {
        return Err(malformed(format!("{} SKUs, more than {ORDER_SKUS_MAX}", units.len())));
    }
    Ok(units)
}

fn lines(units: Units) -> Vec<StockLine> {
    let line = |(sku, quantity)| StockLine { sku, quantity: i64::try_from(quantity).unwrap_or(i64::MAX) };
    units.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::orders::v1::OrderItem;

    fn order(lines: impl IntoIterator<Item = (String, i32)>) -> Order {
        let item = |(sku, quantity)| OrderItem { sku, quantity, ..OrderItem::default() };
        Order { items: lines.into_iter().map(item).collect(), ..Order::default() }
    }

    fn numbered(skus: usize) -> Order {
        order((0..skus).map(|n| (format!("sku-{n}"), 1)))
    }

    #[test]
    fn an_order_that_no_gateway_accepts_is_refused() {
        assert_eq!(units_of(&numbered(100)).unwrap().len(), 100);
        assert_eq!(units_of(&order([("a".repeat(64), 1)])).unwrap().len(), 1);
        let odd = [">", "*", "", "a.b", "a b", "\u{fc}", &"a".repeat(65)];
        let odd = odd.map(|sku| order([("widget".to_owned(), 1), (sku.to_owned(), 1)]));
        for order in odd.iter().chain([&numbered(101), &order([("widget".to_owned(), -1)])]) {
            let refused = units_of(order);
            assert!(matches!(refused, Err(StepError::Unexpected(_))), "{refused:?}");
        }
    }
}
