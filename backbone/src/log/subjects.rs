//! Subjects of the order log: `ORDER.<partition>.<customer_key>.<order_key>.<event>.<next>`.
//!
//! The order comes first, so that the index of an order's subjects is one small branch. The last token names the step that
//! acts next, so that every step's consumer has exactly one filter.

use proto::orders::v1::order_event::Detail;

use crate::log::ids::{CustomerKey, OrderId};

/// The subjects that belong to the order log.
pub const ALL_ORDERS: &str = "ORDER.>";
/// The subject of barriers in the order log ([`crate::broker::barrier`]). No event has it, and no filter for events
/// matches it.
pub const ORDER_BARRIER: &str = "ORDER.barrier";
/// Where the stream republishes every stored event: `live.` and the event's own subject.
pub const LIVE_PREFIX: &str = "live.";
/// The last token of an event's subject when no step acts next: the order is finished, or parked. No step has this name.
pub const END: &str = "end";
/// The longest name of a step.
const STEP_NAME_BYTES_MAX: usize = 32;
/// In the stream of the order log, and of no order: written to find out whether there is space for events.
pub const STORAGE_PROBE: &str = "ORDER.probe";

/// The subjects of the timers of deferred orders, in a stream of their own.
pub(crate) const ALL_DEFERRALS: &str = "DEFERRAL.>";
/// Orders whose deferral is over.
pub(crate) const ALL_DUE: &str = "DEFERRAL.due.>";

/// Makes [`EventKind`] of one row for each event: its detail's name in the contract, the word for it, and the full
/// name of the detail's message.
macro_rules! event_kinds {
    ($($kind:ident $word:literal $message:literal,)*) => {
        /// What an event is about; the fifth token of its subject.
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
    Completed "completed" "orders.v1.StepCompleted",
    Compensated "compensated" "orders.v1.StepCompensated",
    Deferred "deferred" "orders.v1.StepDeferred",
    Resumed "resumed" "orders.v1.StepResumed",
}

impl EventKind {
    /// Whether such an event completes a step.
    pub fn completes_a_step(self) -> bool {
        matches!(self, Self::Reserved | Self::Paid | Self::Fulfilled | Self::Completed)
    }

    fn parse(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == token)
    }
}

/// What an event's subject says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSubject<'a> {
    /// What happened.
    pub kind: EventKind,
    /// Whose event it is.
    pub id: OrderId,
    /// The step that acts next, or [`END`].
    pub next: &'a str,
}

/// Where an event of this kind about this order is stored, if `next` acts next.
pub fn event(kind: EventKind, id: &OrderId, next: &str) -> String {
    let OrderId { customer, order } = id;
    format!("ORDER.{}.{customer}.{order}.{}.{next}", customer.partition(), kind.as_str())
}

/// All events of one order.
pub fn order(id: &OrderId) -> String {
    format!("ORDER.{}.{}.{}.>", id.customer.partition(), id.customer, id.order)
}

/// All events of one kind of one order.
pub fn order_kind(kind: EventKind, id: &OrderId) -> String {
    event(kind, id, "*")
}

/// The events of one order after which no step acts.
pub fn order_ends(id: &OrderId) -> String {
    let OrderId { customer, order } = id;
    format!("ORDER.{}.{customer}.{order}.*.{END}", customer.partition())
}

/// All events of all orders of one customer.
pub fn customer(key: CustomerKey) -> String {
    format!("ORDER.{}.{key}.>", key.partition())
}

/// All events of all orders of one customer, as they are republished.
pub fn live_customer(key: CustomerKey) -> String {
    format!("{LIVE_PREFIX}{}", customer(key))
}

/// All events of one kind of one customer's orders.
pub fn customer_kind(kind: EventKind, key: CustomerKey) -> String {
    format!("ORDER.{}.{key}.*.{}.*", key.partition(), kind.as_str())
}

/// All events of one order, as they are republished.
pub fn live_order(id: &OrderId) -> String {
    format!("{LIVE_PREFIX}{}", order(id))
}

/// All events of one kind.
pub fn kind(kind: EventKind) -> String {
    format!("ORDER.*.*.*.{}.*", kind.as_str())
}

/// All events after which `step` acts.
pub fn for_step(step: &str) -> String {
    format!("ORDER.*.*.*.*.{step}")
}

/// The timer of an order that `step` has deferred.
pub(crate) fn timer(step: &str, id: &OrderId) -> String {
    format!("DEFERRAL.timer.{step}.{}.{}", id.customer, id.order)
}

/// The message of an order whose deferral is over.
pub(crate) fn due(id: &OrderId) -> String {
    format!("DEFERRAL.due.{}.{}", id.customer, id.order)
}

/// The order of such a message.
pub(crate) fn due_order(subject: &str) -> Option<OrderId> {
    let (customer, order) = subject.strip_prefix("DEFERRAL.due.")?.split_once('.')?;
    OrderId::from_keys(customer, order).ok()
}

/// Whether a subject matches a filter in which `*` stands for one token.
pub(crate) fn matches(filter: &str, subject: &str) -> bool {
    let (mut wanted, mut tokens) = (filter.split('.'), subject.split('.'));
    loop {
        match (wanted.next(), tokens.next()) {
            (None, None) => return true,
            (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
            (Some(_), _) | (None, Some(_)) => return false,
        }
    }
}

/// What an event's subject says; `None` for a subject that Waybill never writes.
pub fn parse(subject: &str) -> Option<EventSubject<'_>> {
    let mut tokens = subject.split('.');
    if tokens.next() != Some("ORDER") {
        return None;
    }
    let partition = tokens.next()?;
    let id = OrderId::from_keys(tokens.next()?, tokens.next()?).ok()?;
    let kind = EventKind::parse(tokens.next()?)?;
    let next = tokens.next().filter(|next| is_step_name(next))?;
    let right_place = tokens.next().is_none() && partition == id.customer.partition().to_string();
    right_place.then_some(EventSubject { kind, id, next })
}

/// Whether the text can be a step's name, and so a token of a subject.
pub fn is_step_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= STEP_NAME_BYTES_MAX && text.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::ids::OrderKey;
    use proptest::prelude::*;
    use proptest::sample::select;

    proptest! {
        #[test]
        fn a_subject_tells_its_event_order_and_next_step(
            kind in select(&EventKind::ALL[..]),
            customer in ".{1,30}",
            next in "[a-z][a-z0-9-]{0,31}",
        ) {
            let id = OrderId { customer: CustomerKey::of("", &customer), order: OrderKey::unique() };
            let subject = event(kind, &id, &next);
            prop_assert_eq!(parse(&subject), Some(EventSubject { kind, id, next: &next }));
            prop_assert!(!subject.contains(char::is_whitespace));
        }

        #[test]
        fn a_foreign_subject_is_rejected(subject in "(ORDER|live)?(\\.[a-z0-9*>-]{0,33}){0,7}") {
            if let Some(EventSubject { kind, id, next }) = parse(&subject) {
                prop_assert_eq!(event(kind, &id, next), subject);
            }
        }
    }

    #[test]
    fn a_filter_matches_the_events_of_its_step() {
        let id = OrderId { customer: CustomerKey::of("", "c"), order: OrderKey::unique() };
        let subject = event(EventKind::Created, &id, "payment");
        assert!(matches(&for_step("payment"), &subject));
        assert!(!matches(&for_step("fraud"), &subject));
        assert!(!matches(&for_step("payment"), &format!("{subject}.payment")));
        assert!(!matches(&for_step("payment"), "payment"));
    }

    #[test]
    fn a_due_message_names_its_order() {
        let id = OrderId { customer: CustomerKey::of("", "c"), order: OrderKey::unique() };
        assert_eq!(due_order(&due(&id)), Some(id));
        assert_eq!(due_order(&timer("fraud", &id)), None);
        assert_eq!(due_order("DEFERRAL.due.c"), None);
    }

    #[test]
    fn an_order_in_the_wrong_partition_is_rejected() {
        let id = OrderId { customer: CustomerKey::of("", "c"), order: OrderKey::unique() };
        let right = format!(".{}.", id.customer.partition());
        assert_eq!(parse(&event(EventKind::Paid, &id, END).replace(&right, ".64.")), None);
    }
}
