//! What a trace shows of a message: where it came from, its delivery, and the event in it.

use async_nats::jetstream::Message;
use backbone::broker::trace_headers;
use backbone::log::event::Recorded;
use backbone::log::subjects;
use program::trace::{KeyValue, Span, SpanKind, TraceContext, attribute};

use crate::delivery::Delivery;
use crate::step::Step;

/// Where the message was written.
pub(crate) fn origin(message: &Message) -> TraceContext {
    message.headers.as_ref().and_then(trace_headers::read).unwrap_or_else(TraceContext::root)
}

/// The span of a message that has come: until the attempt at it begins. The first delivery's has an id that follows
/// from the message, so that the later ones can link to it.
pub(crate) fn received<S: Step>(delivery: &Delivery<'_>) -> Span {
    let message = delivery.message;
    let parent = message.headers.as_ref().and_then(trace_headers::read);
    let name = || format!("receive {}", template(message)).into();
    let what = || format!("{} {}", S::NAME, delivery.id.sequence());
    let span = match &parent {
        Some(parent) if delivery.deliveries == 1 => {
            Span::from_remote_about(parent, what, SpanKind::Client, name)
        }
        Some(_) | None => Span::from_remote(parent.as_ref(), SpanKind::Client, name),
    };
    span.set(|| about_delivery::<S>(delivery, "receive"));
    if delivery.is_redelivery()
        && span.is_recorded()
        && let Some(parent) = parent
    {
        span.link(&parent.child_about(&what()), || [KeyValue::new(attribute::DELIVERIES, 1)]);
    }
    span
}

pub(crate) fn about_delivery<S: Step>(delivery: &Delivery<'_>, operation: &'static str) -> [KeyValue; 8] {
    [
        KeyValue::new(attribute::MESSAGING_SYSTEM, attribute::NATS),
        KeyValue::new(attribute::MESSAGING_OPERATION_NAME, operation),
        KeyValue::new(attribute::MESSAGING_OPERATION_TYPE, operation),
        KeyValue::new(attribute::MESSAGING_DESTINATION_NAME, delivery.message.subject.to_string()),
        KeyValue::new(attribute::MESSAGING_DESTINATION_TEMPLATE, template(delivery.message)),
        KeyValue::new(attribute::MESSAGING_CONSUMER_GROUP_NAME, S::NAME),
        KeyValue::new(attribute::STEP, S::NAME),
        KeyValue::new(attribute::DELIVERIES, delivery.deliveries),
    ]
}

pub(crate) fn about_event(event: &Recorded) -> [KeyValue; 3] {
    [
        KeyValue::new(attribute::MESSAGING_MESSAGE_ID, event.event_id.clone()),
        KeyValue::new(attribute::ORDER_ID, event.id.to_string()),
        KeyValue::new(attribute::ORDER_REVISION, i64::try_from(event.revision.0).unwrap_or(i64::MAX)),
    ]
}

/// The message's subject without what differs from order to order.
pub(crate) fn template(message: &Message) -> String {
    subjects::parse(&message.subject).map_or_else(|| "ORDER.>".to_owned(), |(kind, _)| subjects::kind(kind))
}
