//! The parts of an event that dead-lettering needs.

use backbone::log::event::Recorded;
use backbone::log::ids::{OrderId, Revision};

/// The order of a decoded message.
#[derive(Debug)]
pub(crate) struct OrderContext {
    pub(crate) order_id: OrderId,
    /// The dead letter that the order was redriven from, if the message is a `redriven`.
    pub(crate) redriven_from: String,
    /// If the message is a `carried`: the revision at which the order got its status, and that of its previous event.
    pub(crate) carried: Option<(Revision, Revision)>,
}

impl OrderContext {
    /// Reads them from the event.
    pub(crate) fn of(event: &Recorded) -> Self {
        let stands_since = event.stands_since();
        Self {
            order_id: event.id,
            redriven_from: event.redriven_from().unwrap_or_default().to_owned(),
            carried: (stands_since < event.revision).then_some((stands_since, event.previous)),
        }
    }
}
