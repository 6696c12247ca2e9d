//! Subjects of the order log: `ORDER.<event>.<partition>.<customer_key>.<order_key>`.

use proto::orders::v1::order_event::Detail;

use crate::ids::{CustomerKey, OrderId};

/// The subjects that belong to the order log.
pub const ALL_ORDERS: &str = "ORDER.>";
/// Where the stream republishes every stored event: `live.` and the event's own subject.
pub const LIVE_PREFIX: &str = "live.";

/// What an event is about; the second token of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "documented in orders/v1/order_event.proto")]
pub enum EventKind {
    Created,
    Reserved,
    Paid,
    Fulfilled,
    Rejected,
    Cancelled,
    Released,
    Refunded,
    Failed,
    Redriven,
}

impl EventKind {
    /// Every kind there is.
    pub const ALL: [Self; 10] = [
        Self::Created,
        Self::Reserved,
        Self::Paid,
        Self::Fulfilled,
        Self::Rejected,
        Self::Cancelled,
        Self::Released,
        Self::Refunded,
        Self::Failed,
        Self::Redriven,
    ];

    /// The kind of an event, by its detail.
    pub fn of(detail: &Detail) -> Self {
        match detail {
            Detail::Created(_) => Self::Created,
            Detail::Reserved(_) => Self::Reserved,
            Detail::Paid(_) => Self::Paid,
            Detail::Fulfilled(_) => Self::Fulfilled,
            Detail::Rejected(_) => Self::Rejected,
            Detail::Cancelled(_) => Self::Cancelled,
            Detail::Released(_) => Self::Released,
            Detail::Refunded(_) => Self::Refunded,
            Detail::Failed(_) => Self::Failed,
            Detail::Redriven(_) => Self::Redriven,
        }
    }

    /// The word for it in subjects, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Reserved => "reserved",
            Self::Paid => "paid",
            Self::Fulfilled => "fulfilled",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
            Self::Released => "released",
            Self::Refunded => "refunded",
            Self::Failed => "failed",
            Self::Redriven => "redriven",
        }
    }

    /// The CloudEvents type: the full name of the detail's message.
    pub fn ce_type(self) -> &'static str {
        match self {
            Self::Created => "orders.v1.OrderCreated",
            Self::Reserved => "orders.v1.StockReserved",
            Self::Paid => "orders.v1.PaymentCaptured",
            Self::Fulfilled => "orders.v1.OrderFulfilled",
            Self::Rejected => "orders.v1.OrderRejected",
            Self::Cancelled => "orders.v1.OrderCancelled",
            Self::Released => "orders.v1.StockReleased",
            Self::Refunded => "orders.v1.PaymentRefunded",
            Self::Failed => "orders.v1.OrderFailed",
            Self::Redriven => "orders.v1.OrderRedriven",
        }
    }

    fn parse(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == token)
    }
}

/// Where an event of this kind about this order is stored.
pub fn event(kind: EventKind, id: &OrderId) -> String {
    format!("ORDER.{}.{}.{}.{}", kind.as_str(), id.customer.partition(), id.customer, id.order)
}

/// All events of one order.
pub fn order(id: &OrderId) -> String {
    format!("ORDER.*.{}.{}.{}", id.customer.partition(), id.customer, id.order)
}

/// All events of all orders of one customer.
pub fn customer(key: CustomerKey) -> String {
    format!("ORDER.*.{}.{key}.>", key.partition())
}

/// All events of all orders of one customer, as they are republished.
pub fn live_customer(key: CustomerKey) -> String {
    format!("{LIVE_PREFIX}{}", customer(key))
}

/// All first events of one customer's orders.
pub fn created_by(key: CustomerKey) -> String {
    format!("ORDER.{}.{}.{key}.>", EventKind::Created.as_str(), key.partition())
}

/// All events of one order, as they are republished.
pub fn live_order(id: &OrderId) -> String {
    format!("{LIVE_PREFIX}{}", order(id))
}

/// All events of one kind.
pub fn kind(kind: EventKind) -> String {
    format!("ORDER.{}.>", kind.as_str())
}

/// What and whom an event's subject is about; `None` for a subject that Waybill never writes.
pub fn parse(subject: &str) -> Option<(EventKind, OrderId)> {
    let mut tokens = subject.split('.');
    if tokens.next() != Some("ORDER") {
        return None;
    }
    let kind = EventKind::parse(tokens.next()?)?;
    let partition = tokens.next()?;
    let id = OrderId::from_keys(tokens.next()?, tokens.next()?).ok()?;
    let right_place = tokens.next().is_none() && partition == id.customer.partition().to_string();
    right_place.then_some((kind, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::OrderKey;
    use proptest::prelude::*;
    use proptest::sample::select;

    proptest! {
        #[test]
        fn a_subject_tells_its_event_and_order(kind in select(&EventKind::ALL[..]), customer in ".{1,30}") {
            let id = OrderId { customer: CustomerKey::of("", &customer), order: OrderKey::unique() };
            let subject = event(kind, &id);
            prop_assert_eq!(parse(&subject), Some((kind, id)));
            prop_assert!(!subject.contains(char::is_whitespace));
        }

        #[test]
        fn a_foreign_subject_is_none_of_ours(subject in "(ORDER|live)?(\\.[a-z0-9*>-]{0,30}){0,6}") {
            if let Some((kind, id)) = parse(&subject) {
                prop_assert_eq!(event(kind, &id), subject);
            }
        }
    }

    #[test]
    fn an_order_in_the_wrong_partition_is_none_of_ours() {
        let id = OrderId { customer: CustomerKey::of("", "c"), order: OrderKey::unique() };
        let right = format!(".{}.", id.customer.partition());
        assert_eq!(parse(&event(EventKind::Paid, &id).replace(&right, ".64.")), None);
    }
}
