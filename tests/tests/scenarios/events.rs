//! Reading the events of a watch.

use backbone::log::subjects::EventKind;
use proto::orders::v1::{Order, OrderEvent};

/// What happened, in one word.
pub(crate) fn kind(event: &OrderEvent) -> EventKind {
    EventKind::of(event.detail.as_ref().expect("detail"))
}

/// What happened, in order.
pub(crate) fn kinds(events: &[OrderEvent]) -> Vec<EventKind> {
    events.iter().map(kind).collect()
}

/// The order after the event.
pub(crate) fn after(event: &OrderEvent) -> &Order {
    event.order.as_ref().expect("order")
}

/// Where each event is in the log.
pub(crate) fn revisions(events: &[OrderEvent]) -> Vec<u64> {
    events.iter().map(|event| after(event).revision).collect()
}
