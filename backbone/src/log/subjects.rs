//! Subjects of the order log: `ORDER.<event>.<partition>.<customer_key>.<order_key>`.

use proto::orders::v1::order_event::Detail;

use crate::log::ids::{CustomerKey, OrderId};

/// The subjects that belong to the order log.
pub const ALL_ORDERS: &str = "ORDER.>";
/// The subject of barriers in the order log ([`crate::broker::barrier`]). No event has it, and no filter for events
/// matches it.
pub const ORDER_BARRIER: &str = "ORDER.barrier";
/// Where the stream republishes every stored event: `live.` and the event's own subject.
pub const LIVE_PREFIX: &str = "live.";
/// In the stream of the order log, and of no order: written to find out whether there is space for events.
pub const STORAGE_PROBE: &str = "ORDER.probe";

/// Makes [`EventKind`] of one row for each event: its detail's name in the contract, the word for it, and the full
/// name of the detail's message.
macro_rules! event_kinds {
    ($($kind:ident $word:literal $message:literal,)*) => {
        /// What an event is about; the second token of its subject.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "documented in orders/v1/order_event.proto")]
        pub enum EventKind {
            $($kind,)*
        }

        impl EventKind {
            /// Every kind there is.
            pub const ALL: [Self; [$($word),*].len()] = [$(Self::$kind),*];

            /// The kind of an event, by its detail.
            pub fn of(detail: &Detail) -> Self {
                match detail {
                    $(Detail::$kind(_) => Self::$kind,)*
                }
            }

            /// The word for it in subjects, logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)*
                }
            }

            /// The CloudEvents type: the full name of the detail's message.
            pub fn ce_type(self) -> &'static str {
                match self {
                    $(Self::$kind => $message,)*
                }
            }
        }
    };
}

event_kinds! {
    Created "created" "orders.v1.OrderCreated",
    Reserved "reserved" "orders.v1.StockReserved",
    Paid "paid" "orders.v1.PaymentCaptured",
    Fulfilled "fulfilled" "orders.v1.OrderFulfilled",
    Rejected "rejected" "orders.v1.OrderRejected",
    Cancelled "cancelled" "orders.v1.OrderCancelled",
    Released "released" "orders.v1.StockReleased",
    Refunded "refunded" "orders.v1.PaymentRefunded",
    Failed "failed" "orders.v1.OrderFailed",
    Redriven "redriven" "orders.v1.OrderRedriven",
    Carried "carried" "orders.v1.OrderCarried",
}

impl EventKind {
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

/// All events by which orders of one customer are carried.
pub fn carried_of(key: CustomerKey) -> String {
    format!("ORDER.{}.{}.{key}.>", EventKind::Carried.as_str(), key.partition())
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
    use crate::log::ids::OrderKey;
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
        fn a_foreign_subject_is_rejected(subject in "(ORDER|live)?(\\.[a-z0-9*>-]{0,30}){0,6}") {
            if let Some((kind, id)) = parse(&subject) {
                prop_assert_eq!(event(kind, &id), subject);
            }
        }
    }

    #[test]
    fn an_order_in_the_wrong_partition_is_rejected() {
        let id = OrderId { customer: CustomerKey::of("", "c"), order: OrderKey::unique() };
        let right = format!(".{}.", id.customer.partition());
        assert_eq!(parse(&event(EventKind::Paid, &id).replace(&right, ".64.")), None);
    }
}
