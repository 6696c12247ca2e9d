//! What dead lettering has to know of the event in a message.

use backbone::log::event::Recorded;
use backbone::log::ids::{OrderId, Revision};

/// A decoded message.
#[derive(Debug)]
pub(crate) struct OrderContext {
    pub(crate) order_id: OrderId,
    /// The dead letter that the order was redriven from, if the message is a `redriven`.
    pub(crate) redriven_from: String,
    /// If the message says that the order is carried: since when it stands as it does, and its event before.
    pub(crate) carried: Option<(Revision, Revision)>,
}

impl OrderContext {
    /// What the event says.
    pub(crate) fn of(event: &Recorded) -> Self {
        let stands_since = event.stands_since();
        Self {
            order_id: event.id,
            redriven_from: event.redriven_from().unwrap_or_default().to_owned(),
            carried: (stands_since < event.revision).then_some((stands_since, event.previous)),
        }
    }
}
