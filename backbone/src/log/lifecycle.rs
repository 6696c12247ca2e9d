//! What may happen to an order, as a pure function of the order and an event: no clock, no I/O, no randomness. The order
//! carries its route, so no step is named here.
//!
//! | event               | while                                 | makes the order                                       |
//! |---------------------|---------------------------------------|-------------------------------------------------------|
//! | created             | it is missing                         | ACCEPTED; the turn of the route's first step          |
//! | completed by a step | it is the step's turn                 | the status that the step leads to, if any; the next   |
//! |                     |                                       | step's turn; FULFILLED after the last                 |
//! | rejected by a step  | it is the step's turn                 | REJECTED; owed by the completed steps that compensate |
//! | cancelled           | it is a step's turn, or parked so     | CANCELLED; owed by the same, and by the step whose    |
//! |                     |                                       | turn it was, which may be at work                     |
//! | compensated by a    | it is REJECTED or CANCELLED, and it   | no longer owed by it; the turn of the next that owes  |
//! | step                | is the step's turn                    |                                                       |
//! | deferred by a step  | it is the step's turn                 | as it was, with a deferral                            |
//! | resumed             | deferred                              | as it was, without the deferral                       |
//! | failed              | not finished                          | FAILED, parked with its status                        |
//! | redriven            | FAILED                                | the status it was parked with                         |
//! | carried             | not finished                          | as it was, with a younger event                       |
//!
//! Completed: `reserved`, `paid`, `fulfilled`, `completed`. Compensated: `released`, `refunded`, `compensated`.
//!
//! Steps compensate one after the other, in the order of the route. The first steps of a route hold what other orders wait
//! for (stock), the later ones call services that may be unavailable: those must not delay the first ones.
//!
//! Every event but `carried` ends a deferral.

use prost_types::Timestamp;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{
    Deferral, Money, Order, OrderCreated, OrderItem, OrderStatus, Route, RouteStep, StepCompleted,
};
use thiserror::Error;

use crate::log::subjects::{END, EventKind};

/// The attributes of steps that describe the order's shipment: its carrier, tracking number and tracking URL.
pub const SHIPMENT_ATTRIBUTES: [&str; 3] = ["carrier", "tracking_number", "tracking_url"];

/// The reason of a cancelled order.
pub const REASON_CANCELLED: &str = "CLIENT_REQUEST";

/// An event that may not happen to the order as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// The order's status, or whose turn it is, does not allow the event.
    #[error(
        "an order that is {status} and waits for {turn:?} can not be {event}",
        status = status.as_str_name(),
        event = event.as_str(),
    )]
    Transition {
        /// The intended change.
        event: EventKind,
        /// The order's status.
        status: OrderStatus,
        /// The step whose turn it is; empty if there is none.
        turn: String,
    },
    /// The route has no steps.
    #[error("the route has no steps")]
    NoSteps,
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

/// The order that `created` begins, on `route`.
pub fn create(created: &OrderCreated, route: Route, now: Timestamp) -> Result<Order, Refused> {
    let current_step = route.steps.first().ok_or(Refused::NoSteps)?.name.clone();
    Ok(Order {
        order_id: created.order_id.clone(),
        customer_id: created.customer_id.clone(),
        items: created.items.clone(),
        total: Some(total(&created.items)?),
        status: OrderStatus::Accepted.into(),
        create_time: Some(now),
        update_time: Some(now),
        route: Some(route),
        current_step,
        metadata: created.metadata.clone(),
        shipping_address: created.shipping_address.clone(),
        payment_method: created.payment_method.clone(),
        note: created.note.clone(),
        reference: created.reference.clone(),
        tenant: created.tenant.clone(),
        ..Order::default()
    })
}

/// Whether the order waits for `step` to do its work.
pub fn waits_for(order: &Order, step: &str) -> bool {
    is_under_way(order.status()) && order.current_step == step
}

/// Whether the order has ended otherwise than it was meant to, so that what was done for it is taken back.
pub fn is_called_off(order: &Order) -> bool {
    matches!(order.status(), OrderStatus::Rejected | OrderStatus::Cancelled)
}

/// Whether the order waits for `step` to compensate. A parked order does not compensate until it is redriven.
pub fn owes(order: &Order, step: &str) -> bool {
    is_called_off(order) && order.current_step == step
}

/// Whether the order's route makes `step` compensate.
pub fn compensates(order: &Order, step: &str) -> bool {
    steps(order).iter().any(|other| other.compensates && other.name == step)
}

/// Whether `step` has completed for this order.
pub fn has_completed(order: &Order, step: &str) -> bool {
    completed(order).iter().any(|other| other.name == step)
}

/// The step that acts on the order next, or [`END`]: the last token of its latest event's subject.
pub fn next(order: &Order) -> &str {
    if order.status() == OrderStatus::Failed || order.current_step.is_empty() {
        END
    } else {
        &order.current_step
    }
}

/// The order after `detail` happened to it at `now`, written by `step`; empty for a client, an operator or a gateway.
pub fn apply(order: &Order, step: &str, detail: &Detail, now: Timestamp) -> Result<Order, Refused> {
    let status = order.status();
    let is_turn = !step.is_empty() && order.current_step == step;
    let refused =
        || Refused::Transition { event: EventKind::of(detail), status, turn: order.current_step.clone() };
    let mut after = order.clone();
    after.update_time = later(order.update_time, now);
    after.deferral = None;
    match detail {
        Detail::Created(_) => return Err(refused()),
        // Carrying changes nothing about the order.
        Detail::Carried(_) => return if is_finished(order) { Err(refused()) } else { Ok(order.clone()) },
        Detail::Reserved(_) | Detail::Paid(_) | Detail::Fulfilled(_) | Detail::Completed(_) => {
            if !is_turn || !is_under_way(status) {
                return Err(refused());
            }
            if let Detail::Completed(completed) = detail {
                describe(&mut after, step, completed);
            } else if let Detail::Fulfilled(fulfilled) = detail {
                let shipment = after.shipment.get_or_insert_default();
                shipment.shipment_id.clone_from(&fulfilled.shipment_id);
            }
            complete(&mut after);
        }
        Detail::Deferred(deferred) => {
            if !is_turn || !is_under_way(status) {
                return Err(refused());
            }
            after.deferral = Some(Deferral {
                until: deferred.until,
                reason: deferred.reason.clone(),
                message: deferred.message.clone(),
            });
        }
        Detail::Resumed(_) => {
            if order.deferral.is_none() {
                return Err(refused());
            }
        }
        Detail::Rejected(rejected) => {
            if !is_turn || !is_under_way(status) {
                return Err(refused());
            }
            after.set_status(OrderStatus::Rejected);
            after.reason.clone_from(&rejected.reason);
            call_off(&mut after, completed(order));
        }
        Detail::Cancelled(_) => {
            if !is_under_way(unparked(order)) {
                return Err(refused());
            }
            after.set_status(OrderStatus::Cancelled);
            after.reason = REASON_CANCELLED.to_owned();
            // The step whose turn it was may be at work, and only it knows what it has done.
            let begun = completed(order).len() + 1;
            call_off(&mut after, steps(order).get(..begun).unwrap_or(steps(order)));
            unpark(&mut after);
        }
        Detail::Released(_) | Detail::Refunded(_) | Detail::Compensated(_) => {
            if !is_turn || after.compensation_pending.first().is_none_or(|owing| owing != step) {
                return Err(refused());
            }
            after.compensation_pending.remove(0);
            after.current_step = after.compensation_pending.first().cloned().unwrap_or_default();
        }
        Detail::Failed(failed) => {
            if status == OrderStatus::Failed || is_finished(order) {
                return Err(refused());
            }
            // An order parked while it owes a compensation keeps the reason of its rejection or cancellation.
            if is_under_way(status) {
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
                return Err(refused());
            }
            if is_under_way(parked) {
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
    is_terminal && order.compensation_pending.is_empty()
}

/// Whether an order with this status goes along its route.
fn is_under_way(status: OrderStatus) -> bool {
    matches!(status, OrderStatus::Accepted | OrderStatus::Reserved | OrderStatus::Paid)
}

/// The steps of the order's route.
fn steps(order: &Order) -> &[RouteStep] {
    order.route.as_ref().map_or(&[], |route| &route.steps)
}

/// Those that are completed.
fn completed(order: &Order) -> &[RouteStep] {
    let completed = usize::try_from(order.completed_steps).unwrap_or_default();
    steps(order).get(..completed).unwrap_or(steps(order))
}

/// Adds the attributes of a step to the order and its shipment.
fn describe(order: &mut Order, step: &str, completed: &StepCompleted) {
    let attributes = &completed.attributes;
    for (key, value) in attributes {
        order.attributes.insert(attribute_key(step, key), value.clone());
    }
    let [carrier, tracking_number, tracking_url] = SHIPMENT_ATTRIBUTES.map(|key| attributes.get(key));
    if carrier.or(tracking_number).or(tracking_url).is_none() {
        return;
    }
    let shipment = order.shipment.get_or_insert_default();
    for (field, said) in [
        (&mut shipment.carrier, carrier),
        (&mut shipment.tracking_number, tracking_number),
        (&mut shipment.tracking_url, tracking_url),
    ] {
        if let Some(said) = said {
            field.clone_from(said);
        }
    }
}

/// Whether `step` has completed this order with other attributes.
pub fn contradicts(order: &Order, step: &str, said: &StepCompleted) -> bool {
    let kept = order.attributes.range(attribute_key(step, "")..);
    let kept = kept.take_while(|(key, _)| key.strip_prefix(step).is_some_and(|key| key.starts_with('.')));
    let said = said.attributes.iter().map(|(key, value)| (attribute_key(step, key), value.clone()));
    has_completed(order, step) && !kept.map(|(key, value)| (key.clone(), value.clone())).eq(said)
}

/// The key of a step's attribute in the order.
fn attribute_key(step: &str, key: &str) -> String {
    format!("{step}.{key}")
}

/// The current step has done its work: the next one's turn.
fn complete(order: &mut Order) {
    let at = completed(order).len();
    let leads_to = steps(order).get(at).map_or(OrderStatus::Unspecified, RouteStep::leads_to);
    let next = steps(order).get(at + 1).map(|next| next.name.clone());
    // A foreign event may have any count.
    order.completed_steps = order.completed_steps.saturating_add(1);
    match next {
        None => order.set_status(OrderStatus::Fulfilled),
        // Only the last step fulfils the order.
        Some(_) if is_under_way(leads_to) => order.set_status(leads_to),
        Some(_) => {}
    }
    order.current_step = next.unwrap_or_default();
}

/// The order owes the compensation of those of the `begun` steps that compensate.
fn call_off(order: &mut Order, begun: &[RouteStep]) {
    let owing = begun.iter().filter(|step| step.compensates);
    order.compensation_pending = owing.map(|step| step.name.clone()).collect();
    order.current_step = order.compensation_pending.first().cloned().unwrap_or_default();
}

fn unpark(order: &mut Order) {
    order.set_parked_status(OrderStatus::Unspecified);
    order.dead_letter_id.clear();
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
