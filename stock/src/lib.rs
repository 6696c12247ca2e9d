//! The stock: how the bucket `INVENTORY` is created, the records in it, and the ways to change them.
//!
//! Two components use it independently: step inventory, which reserves stock for orders, and the gateway, by which
//! operators list and change the stock. Every write expects the revision that its writer read. So of two concurrent
//! writers one succeeds, and the other reads again.
//!
//! | key                       | value                                                                     |
//! |---------------------------|---------------------------------------------------------------------------|
//! | `stock.<sku>`             | units available, as a decimal number                                      |
//! | `reservation.<order_id>`  | JSON: the units that the order holds, or that it holds none               |
//! | `change.<request key>`    | JSON: an operator's change, so that a retry changes nothing; 7 days       |
//! | `remade`                  | when the bucket was found to stand in for one that was lost               |
//! | `barrier`                 | empty: proves that an answer is current (`backbone/src/broker/barrier.rs`) |
//!
//! A reservation is written again when its order is carried, so it expires after its order's last event. Until then
//! another order may get the same id, so the reservation has the creation time of its order.

mod batch;
mod bucket;
mod change;
mod orphans;
mod presence;
mod records;
mod scan;
mod store;

pub use batch::{Batch, CommitError, WRITES_MAX, Write};
pub use bucket::{StoreError, is_known, make, provision};
pub use change::{Change, ChangeError, ChangeRequest, ChangeResult, UNITS_MAX};
pub use orphans::{Orphan, OrphanQuery, Orphans, ReleaseError};
pub use presence::{BucketState, Presence};
pub use records::{
    BUCKET, ORDER_SKUS_MAX, REMADE, Reservation, ReservationState, SKU_RULE, STREAM, Units, is_sku,
    parse_count, parse_reservation, reservation_key, stock_key,
};
pub use scan::{ReservedStock, StockEntry};
pub use store::{Records, Store, Versioned, reservation_ttl};
