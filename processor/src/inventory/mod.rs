//! Inventory: reserves all of an order's stock or none of it, and releases it again.

mod batch;
mod ledger;
mod reservations;
mod store;

use std::collections::BTreeMap;

use backbone::connection::Connection;
use backbone::subjects::EventKind;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderStatus, StockLine, StockReleased, StockReserved, Undo};

pub use store::{
    BUCKET, InventoryConfig, Reservation, ReservationState, StoreError, reservation_key, stock_key,
};

use crate::step::{Step, StepError};
use ledger::{Answer, Wish};
use reservations::Reservations;
use store::Store;

/// Reason of an order that asked for more than there is.
pub const OUT_OF_STOCK: &str = "OUT_OF_STOCK";

/// The inventory step.
#[derive(Debug)]
pub struct Inventory {
    reservations: Reservations,
}

impl Inventory {
    /// Opens the inventory behind `connection`, setting it up where it is missing.
    pub async fn open(config: &InventoryConfig, connection: Connection) -> Result<Self, StoreError> {
        let store = Store::open(connection, config).await?;
        Ok(Self { reservations: Reservations::start(store) })
    }

    /// Gives back what the order holds, and tells what it was.
    async fn release(&self, order: &Order) -> Result<Units, StepError> {
        match self.reservations.ask(order, Wish::Release).await? {
            Answer::Released(units) => Ok(units),
            Answer::Refused(reason) => Err(StepError::Unexpected(reason)),
            Answer::Held | Answer::OutOfStock(_) => {
                Err(StepError::Unexpected("a release was not released".to_owned()))
            }
        }
    }
}

impl Step for Inventory {
    const NAME: &'static str = "inventory";
    const EVENTS: &'static [EventKind] = &[EventKind::Created, EventKind::Rejected];
    /// A commit takes an fsync, some milliseconds on a busy disk, and serves all workers that wait for it.
    const WORKER_POOL_SIZE: u16 = 128;

    async fn handle(&self, order: &Order) -> Result<Option<Detail>, StepError> {
        match order.status() {
            OrderStatus::Accepted => {
                let wanted = units_of(order);
                match self.reservations.ask(order, Wish::Reserve(wanted.clone())).await? {
                    Answer::Held => Ok(Some(Detail::Reserved(StockReserved { lines: lines(wanted) }))),
                    Answer::OutOfStock(message) => Err(StepError::Rejected { reason: OUT_OF_STOCK, message }),
                    // The order is past the status in this event, or soon will be.
                    Answer::Released(_) => {
                        Err(StepError::Unexpected("the reservation was already released".to_owned()))
                    }
                    Answer::Refused(reason) => Err(StepError::Unexpected(reason)),
                }
            }
            OrderStatus::Rejected | OrderStatus::Cancelled if owes_release(order) => {
                let released = self.release(order).await?;
                Ok(Some(Detail::Released(StockReleased { lines: lines(released) })))
            }
            OrderStatus::Unspecified
            | OrderStatus::Reserved
            | OrderStatus::Paid
            | OrderStatus::Fulfilled
            | OrderStatus::Rejected
            | OrderStatus::Cancelled
            | OrderStatus::Failed => Ok(None),
        }
    }

    async fn compensate(&self, order: &Order) -> Result<(), StepError> {
        match order.status() {
            // It ended without a reservation in the log: what was reserved for it meanwhile goes back.
            OrderStatus::Rejected | OrderStatus::Cancelled => {
                self.release(order).await?;
                Ok(())
            }
            // Another worker's append of the same reservation was first, or the order may yet need it.
            OrderStatus::Unspecified
            | OrderStatus::Accepted
            | OrderStatus::Reserved
            | OrderStatus::Paid
            | OrderStatus::Fulfilled
            | OrderStatus::Failed => Ok(()),
        }
    }
}

/// Units by SKU.
type Units = BTreeMap<String, u64>;

fn units_of(order: &Order) -> Units {
    let mut units = Units::new();
    for item in &order.items {
        *units.entry(item.sku.clone()).or_default() += u64::try_from(item.quantity).unwrap_or(0);
    }
    units
}

fn lines(units: Units) -> Vec<StockLine> {
    let line = |(sku, quantity)| StockLine { sku, quantity: i64::try_from(quantity).unwrap_or(i64::MAX) };
    units.into_iter().map(line).collect()
}

fn owes_release(order: &Order) -> bool {
    order.undo_pending.contains(&Undo::Release.into())
}
