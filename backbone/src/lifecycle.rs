//! What may happen to an order, as a pure function: no clock, no I/O, no randomness.
//!
//! | event     | while the order is                       | makes it                                       |
//! |-----------|------------------------------------------|------------------------------------------------|
//! | created   | not there                                | ACCEPTED                                       |
//! | reserved  | ACCEPTED                                 | RESERVED                                       |
//! | paid      | RESERVED                                 | PAID                                           |
//! | fulfilled | PAID                                     | FULFILLED                                      |
//! | rejected  | ACCEPTED                                 | REJECTED                                       |
//! | rejected  | RESERVED                                 | REJECTED, owes release                         |
//! | cancelled | ACCEPTED                                 | CANCELLED, owes release                        |
//! | cancelled | RESERVED, PAID                           | CANCELLED, owes release and refund             |
//! | cancelled | FAILED, parked as one of the three       | as from the status it was parked with          |
//! | released  | owing release                            | owes it no longer                              |
//! | refunded  | owing refund                             | owes it no longer                              |
//! | failed    | ACCEPTED, RESERVED, PAID, or owing       | FAILED, parked with that status                |
//! | redriven  | FAILED                                   | the status it was parked with                  |
//!
//! An order cancelled while ACCEPTED owes a release although nothing may be reserved: the reservation may
//! be under way at that moment, and only inventory can tell.

use prost_types::Timestamp;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Money, Order, OrderCreated, OrderItem, OrderStatus, Undo};
use thiserror::Error;

use crate::subjects::EventKind;

/// The reason of a cancelled order.
pub const REASON_CANCELLED: &str = "CLIENT_REQUEST";

/// An event that may not happen to the order as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// The order's status does not allow the event.
    #[error("an order that is {status} can not be {event}", status = status.as_str_name(), event = event.as_str())]
    Transition {
        /// What was to happen.
        event: EventKind,
        /// Where the order stands.
        status: OrderStatus,
    },
    /// The items add up to no total.
    #[error(transparent)]
    Total(#[from] TotalError),
}

/// Items that have no common total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TotalError {
    /// An item has no price.
    #[error("every item needs a unit_price")]
    Unpriced,
    /// Two items have different currencies.
    #[error("all items need the same currency")]
    MixedCurrencies,
    /// The sum does not fit.
    #[error("the total exceeds {max} minor units", max = i64::MAX)]
    Overflow,
}

/// The sum of quantity x unit_price. An order without items has no currency, hence no total.
pub fn total(items: &[OrderItem]) -> Result<Money, TotalError> {
    let first = items.first().and_then(|item| item.unit_price.as_ref()).ok_or(TotalError::Unpriced)?;
    let mut minor_units = 0i64;
    for item in items {
        let price = item.unit_price.as_ref().ok_or(TotalError::Unpriced)?;
        if price.currency_code != first.currency_code {
            return Err(TotalError::MixedCurrencies);
        }
        minor_units = price
            .minor_units
            .checked_mul(i64::from(item.quantity))
            .and_then(|line| minor_units.checked_add(line))
            .ok_or(TotalError::Overflow)?;
    }
    Ok(Money { currency_code: first.currency_code.clone(), minor_units })
}

/// The order that `created` begins.
pub fn create(created: &OrderCreated, now: Timestamp) -> Result<Order, Refused> {
    Ok(Order {
        order_id: created.order_id.clone(),
        customer_id: created.customer_id.clone(),
        items: created.items.clone(),
        total: Some(total(&created.items)?),
        status: OrderStatus::Accepted.into(),
        create_time: Some(now),
        update_time: Some(now),
        ..Order::default()
    })
}

/// The order after `detail` happened to it at `now`.
pub fn apply(order: &Order, detail: &Detail, now: Timestamp) -> Result<Order, Refused> {
    let status = order.status();
    let event = EventKind::of(detail);
    let refused = Refused::Transition { event, status };
    let next = match event {
        EventKind::Created => None,
        EventKind::Reserved => (status == OrderStatus::Accepted).then_some(OrderStatus::Reserved),
        EventKind::Paid => (status == OrderStatus::Reserved).then_some(OrderStatus::Paid),
        EventKind::Fulfilled => (status == OrderStatus::Paid).then_some(OrderStatus::Fulfilled),
        EventKind::Rejected => {
            matches!(status, OrderStatus::Accepted | OrderStatus::Reserved).then_some(OrderStatus::Rejected)
        }
        EventKind::Cancelled => is_open(unparked(order)).then_some(OrderStatus::Cancelled),
        EventKind::Released => order.undo_pending.contains(&Undo::Release.into()).then_some(status),
        EventKind::Refunded => order.undo_pending.contains(&Undo::Refund.into()).then_some(status),
        EventKind::Failed => {
            (status != OrderStatus::Failed && !is_finished(order)).then_some(OrderStatus::Failed)
        }
        // A foreign event may have parked it with none.
        EventKind::Redriven => (status == OrderStatus::Failed)
            .then_some(order.parked_status())
            .filter(|parked| *parked != OrderStatus::Unspecified),
    }
    .ok_or(refused)?;

    let mut after = order.clone();
    after.set_status(next);
    after.update_time = later(order.update_time, now);
    match detail {
        Detail::Created(_) | Detail::Reserved(_) | Detail::Paid(_) | Detail::Fulfilled(_) => {}
        Detail::Rejected(rejected) => {
            after.reason.clone_from(&rejected.reason);
            if status == OrderStatus::Reserved {
                after.undo_pending = vec![Undo::Release.into()];
            }
        }
        Detail::Cancelled(_) => {
            after.reason = REASON_CANCELLED.to_owned();
            after.undo_pending = if unparked(order) == OrderStatus::Accepted {
                vec![Undo::Release.into()]
            } else {
                vec![Undo::Release.into(), Undo::Refund.into()]
            };
            after.set_parked_status(OrderStatus::Unspecified);
            after.dead_letter_id.clear();
        }
        Detail::Released(_) => after.undo_pending.retain(|undo| *undo != i32::from(Undo::Release)),
        Detail::Refunded(_) => after.undo_pending.retain(|undo| *undo != i32::from(Undo::Refund)),
        Detail::Failed(failed) => {
            // An order that is parked while it owes something keeps the reason that it ended for.
            if is_open(status) {
                after.reason.clone_from(&failed.reason);
            }
            after.set_parked_status(status);
            after.dead_letter_id.clone_from(&failed.dead_letter_id);
        }
        Detail::Redriven(_) => {
            if is_open(next) {
                after.reason.clear();
            }
            after.set_parked_status(OrderStatus::Unspecified);
            after.dead_letter_id.clear();
        }
    }
    Ok(after)
}

/// Whether nothing more will happen to the order: it is terminal and owes nothing.
pub fn is_finished(order: &Order) -> bool {
    match order.status() {
        OrderStatus::Fulfilled | OrderStatus::Rejected | OrderStatus::Cancelled => {
            order.undo_pending.is_empty()
        }
        OrderStatus::Unspecified
        | OrderStatus::Accepted
        | OrderStatus::Reserved
        | OrderStatus::Paid
        | OrderStatus::Failed => false,
    }
}

/// Whether a step still has to carry the order forward.
fn is_open(status: OrderStatus) -> bool {
    match status {
        OrderStatus::Accepted | OrderStatus::Reserved | OrderStatus::Paid => true,
        OrderStatus::Unspecified
        | OrderStatus::Fulfilled
        | OrderStatus::Rejected
        | OrderStatus::Cancelled
        | OrderStatus::Failed => false,
    }
}

/// The status, or, of a parked order, the one it was parked with.
fn unparked(order: &Order) -> OrderStatus {
    if order.status() == OrderStatus::Failed { order.parked_status() } else { order.status() }
}

/// The later of the two, so that writers' clocks that disagree never turn an order's time back.
fn later(before: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    match before {
        Some(before) if (before.seconds, before.nanos) > (now.seconds, now.nanos) => Some(before),
        Some(_) | None => Some(now),
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
