//! The spans of a message: its delivery, and the attempt.

use async_nats::jetstream::Message;
use backbone::broker::trace_headers;
use backbone::log::event::Recorded;
use backbone::log::subjects;
use program::trace::{self, Context, OpenTelemetrySpanExt};
use tracing::field::{Empty, display};
use tracing::{Span, info_span};

use crate::delivery::Delivery;

/// The span of a delivered message, until its attempt begins, and the trace context of the work. Deliveries of the same
/// message have the same parent, and differ in their number.
pub(crate) fn received(step: &'static str, delivery: &Delivery<'_>) -> (Span, Context) {
    let span = info_span!(
        "receive",
        otel.name = format!("receive {}", template(delivery.message)),
        otel.kind = "client",
        messaging.system = "nats",
        messaging.operation.name = "receive",
        messaging.operation.type = "receive",
        messaging.destination.name = %delivery.message.subject,
        messaging.destination.template = template(delivery.message),
        messaging.consumer.group.name = step,
        messaging.message.id = Empty,
        waybill.step = step,
        waybill.deliveries = delivery.deliveries,
        waybill.order.id = Empty,
        waybill.order.revision = Empty,
    );
    let parent = delivery.message.headers.as_ref().and_then(trace_headers::read);
    let context = trace::continue_in(&span, parent);
    (span, context)
}

/// The span of an attempt, a child of the delivery's span. It does not keep the parent open, so that the delivery is
/// exported even if the process dies in the attempt.
pub(crate) fn processed(step: &'static str, delivery: &Delivery<'_>, received: &Context) -> (Span, Context) {
    let span = info_span!(
        parent: None,
        "process",
        otel.name = format!("process {}", template(delivery.message)),
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = %delivery.message.subject,
        messaging.destination.template = template(delivery.message),
        messaging.consumer.group.name = step,
        messaging.message.id = Empty,
        waybill.step = step,
        waybill.deliveries = delivery.deliveries,
        waybill.order.id = Empty,
        waybill.order.revision = Empty,
        waybill.attempt.delay = Empty,
    );
    if span.is_disabled() || span.set_parent(received.clone()).is_err() {
        return (span, received.clone());
    }
    let context = span.context();
    (span, context)
}

/// Records which event the message is.
pub(crate) fn record_event(span: &Span, event: &Recorded) {
    span.record("messaging.message.id", &*event.event_id)
        .record("waybill.order.id", display(&event.id))
        .record("waybill.order.revision", i64::try_from(event.revision.0).unwrap_or(i64::MAX));
}

/// The message's subject without the parts that differ from order to order.
fn template(message: &Message) -> String {
    subjects::parse(&message.subject)
        .map_or_else(|| subjects::ALL_ORDERS.to_owned(), |subject| subjects::kind(subject.kind))
}
