//! What may happen to an order, as a pure function: no clock, no I/O, no randomness.
//!
//! | event     | while the order is                       | makes it                                       |
//! |-----------|------------------------------------------|------------------------------------------------|
//! | created   | missing                                  | ACCEPTED                                       |
//! | reserved  | ACCEPTED                                 | RESERVED                                       |
//! | paid      | RESERVED                                 | PAID                                           |
//! | fulfilled | PAID                                     | FULFILLED                                      |
//! | rejected  | ACCEPTED                                 | REJECTED                                       |
//! | rejected  | RESERVED                                 | REJECTED, owes release                         |
//! | cancelled | ACCEPTED                                 | CANCELLED, owes release                        |
//! | cancelled | RESERVED, PAID                           | CANCELLED, owes release and refund             |
//! | cancelled | FAILED, parked as one of the three       | as from the status it was parked with          |
//! | released  | owing release                            | no longer owes it                              |
//! | refunded  | owing refund                             | no longer owes it                              |
//! | failed    | ACCEPTED, RESERVED, PAID, or owing       | FAILED, parked with that status                |
//! | redriven  | FAILED                                   | the status it was parked with                  |
//! | carried   | not finished                             | as it was, with a younger event                |
//!
//! The first four lines, and what a rejection or a cancel owes, are the rows of [`WAY`]: one for each step.

use prost_types::Timestamp;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Money, Order, OrderCreated, OrderItem, OrderStatus, Undo};
use thiserror::Error;

use crate::log::subjects::EventKind;

/// The reason of a cancelled order.
pub const REASON_CANCELLED: &str = "CLIENT_REQUEST";

/// An event that may not happen to the order as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// The order's status does not allow the event.
    #[error("an order that is {status} can not be {event}", status = status.as_str_name(), event = event.as_str())]
    Transition {
        /// The intended change.
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

/// The place of one step on an order's way.
struct Row {
    /// While the order is this, it waits for the step,
    status: OrderStatus,
    /// which appends this when it is done,
    event: EventKind,
    /// and so makes the order this.
    next: OrderStatus,
    /// What the order owes if the step rejects it. `None`: the step cannot.
    rejected_owes: Option<&'static [Undo]>,
    /// The compensation owed by an order that is cancelled while it waits. Its step may be working on it at that
    /// moment, and only the step knows what was done, so the step's compensation is included.
    cancelled_owes: &'static [Undo],
}

/// An order's way: what each step waits for, appends and compensates follows from its row.
const WAY: &[Row] = &[
    Row {
        status: OrderStatus::Accepted,
        event: EventKind::Reserved,
        next: OrderStatus::Reserved,
        rejected_owes: Some(&[]),
        cancelled_owes: &[Undo::Release],
    },
    Row {
        status: OrderStatus::Reserved,
        event: EventKind::Paid,
        next: OrderStatus::Paid,
        rejected_owes: Some(&[Undo::Release]),
        cancelled_owes: &[Undo::Release, Undo::Refund],
    },
    Row {
        status: OrderStatus::Paid,
        event: EventKind::Fulfilled,
        next: OrderStatus::Fulfilled,
        rejected_owes: None,
        cancelled_owes: &[Undo::Release, Undo::Refund],
    },
];

/// The row of the step that an order with this status waits for.
fn row_at(status: OrderStatus) -> Option<&'static Row> {
    WAY.iter().find(|row| row.status == status)
}

/// Whether the order waits for the step that appends `event`.
pub fn waits_for(order: &Order, event: EventKind) -> bool {
    row_at(order.status()).is_some_and(|row| row.event == event)
}

/// Whether the order has ended otherwise than it was meant to, so that what was done for it is taken back.
pub fn is_called_off(order: &Order) -> bool {
    matches!(order.status(), OrderStatus::Rejected | OrderStatus::Cancelled)
}

/// Whether the order owes this compensation now. A parked order does not compensate until it is redriven.
pub fn owes(order: &Order, undo: Undo) -> bool {
    is_called_off(order) && order.undo_pending.contains(&undo.into())
}

/// The events after which an order may wait for the step that appends `does`, or owe `undoes`. That an order was
/// redriven or carried is one in any case: it then stands where it did.
pub fn wakes(does: EventKind, undoes: Option<Undo>) -> Vec<EventKind> {
    let mut events = Vec::new();
    if let Some(row) = WAY.iter().find(|row| row.event == does) {
        let before = WAY.iter().find(|before| before.next == row.status);
        events.push(before.map_or(EventKind::Created, |before| before.event));
    }
    if let Some(undo) = undoes {
        if WAY.iter().any(|row| row.rejected_owes.is_some_and(|owed| owed.contains(&undo))) {
            events.push(EventKind::Rejected);
        }
        if WAY.iter().any(|row| row.cancelled_owes.contains(&undo)) {
            events.push(EventKind::Cancelled);
        }
    }
    events.extend([EventKind::Redriven, EventKind::Carried]);
    events
}

/// The order after `detail` happened to it at `now`.
pub fn apply(order: &Order, detail: &Detail, now: Timestamp) -> Result<Order, Refused> {
    let status = order.status();
    let event = EventKind::of(detail);
    let refused = Refused::Transition { event, status };

    // Carrying changes nothing about the order.
    if let Detail::Carried(_) = detail {
        return if is_finished(order) { Err(refused) } else { Ok(order.clone()) };
    }
    let mut after = order.clone();
    after.update_time = later(order.update_time, now);
    match detail {
        Detail::Created(_) | Detail::Carried(_) => return Err(refused),
        Detail::Reserved(_) | Detail::Paid(_) | Detail::Fulfilled(_) => {
            let row = row_at(status).filter(|row| row.event == event).ok_or(refused)?;
            after.set_status(row.next);
        }
        Detail::Rejected(rejected) => {
            let owed = row_at(status).and_then(|row| row.rejected_owes).ok_or(refused)?;
            after.set_status(OrderStatus::Rejected);
            after.reason.clone_from(&rejected.reason);
            after.undo_pending = to_numbers(owed);
        }
        Detail::Cancelled(_) => {
            let row = row_at(unparked(order)).ok_or(refused)?;
            after.set_status(OrderStatus::Cancelled);
            after.reason = REASON_CANCELLED.to_owned();
            after.undo_pending = to_numbers(row.cancelled_owes);
            unpark(&mut after);
        }
        Detail::Released(_) => complete_compensation(&mut after, Undo::Release, refused)?,
        Detail::Refunded(_) => complete_compensation(&mut after, Undo::Refund, refused)?,
        Detail::Failed(failed) => {
            if status == OrderStatus::Failed || is_finished(order) {
                return Err(refused);
            }
            // An order parked while it owes a compensation keeps the reason of its rejection or cancellation.
            if row_at(status).is_some() {
                after.reason.clone_from(&failed.reason);
            }
            after.set_status(OrderStatus::Failed);
            after.set_parked_status(status);
            after.dead_letter_id.clone_from(&failed.dead_letter_id);
        }
        Detail::Redriven(_) => {
            let parked = order.parked_status();
            // A foreign event may have parked it without a parked_status.
            if status != OrderStatus::Failed || parked == OrderStatus::Unspecified {
                return Err(refused);
            }
            if row_at(parked).is_some() {
                after.reason.clear();
            }
            after.set_status(parked);
            unpark(&mut after);
        }
    }
    Ok(after)
}

/// Whether nothing more will happen to the order: it is terminal and owes nothing.
pub fn is_finished(order: &Order) -> bool {
    let is_terminal = order.status() == OrderStatus::Fulfilled || is_called_off(order);
    is_terminal && order.undo_pending.is_empty()
}

fn complete_compensation(order: &mut Order, undo: Undo, refused: Refused) -> Result<(), Refused> {
    let owed = order.undo_pending.len();
    order.undo_pending.retain(|pending| *pending != i32::from(undo));
    if order.undo_pending.len() < owed { Ok(()) } else { Err(refused) }
}

fn unpark(order: &mut Order) {
    order.set_parked_status(OrderStatus::Unspecified);
    order.dead_letter_id.clear();
}

/// As the contract carries them.
fn to_numbers(owed: &[Undo]) -> Vec<i32> {
    owed.iter().map(|undo| i32::from(*undo)).collect()
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
