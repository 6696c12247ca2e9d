//! An event as it is stored in the order log: protobuf payload, CloudEvents headers and trace headers.
//!
//! Headers follow the CloudEvents binding for NATS in binary mode
//! (<https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md>), so that foreign
//! consumers need no code of Waybill.

use std::time::SystemTime;

use async_nats::HeaderMap;
use bytes::Bytes;
use program::trace::SpanContext;
use prost::Message;
use prost_types::Timestamp;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderEvent, OrderStatus};
use thiserror::Error;
use uuid::Uuid;

use crate::broker::trace_headers;
use crate::log::ids::{OrderId, Revision};
use crate::log::lifecycle;
use crate::log::payment_method;
use crate::log::subjects::{self, EventKind, EventSubject};
use crate::log::unknown_fields;

const CONTENT_TYPE: &str = "application/protobuf";
const CE_SPEC_VERSION: &str = "1.0";

/// What the largest event that the contract allows takes, in bytes, headers included: an order of at most 60 KiB is in it
/// twice.
pub const BYTES_MAX: usize = 128 * 1024;

/// The program that writes events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    /// CloudEvents source of its events.
    pub(crate) source: &'static str,
    /// The step that it is; empty for other programs.
    pub(crate) step: &'static str,
}

/// An event on its way into the log.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) event_id: String,
    pub(crate) subject: String,
    pub(crate) payload: Bytes,
    kind: EventKind,
    time: Option<Timestamp>,
    source: &'static str,
}

impl Draft {
    /// Encodes the event that makes `order` what it is. The order's revision is left out: it is the sequence
    /// that the stream will give the event. `unknown_fields` of a newer version are preserved.
    pub(crate) fn new(
        id: &OrderId,
        previous: Revision,
        order: &mut Order,
        unknown_fields: &Bytes,
        detail: Detail,
        writer: Writer,
    ) -> Self {
        let kind = EventKind::of(&detail);
        order.revision = Revision::NONE.0;
        let mut event = OrderEvent {
            event_id: Uuid::now_v7().to_string(),
            previous_revision: previous.0,
            order: Some(std::mem::take(order)),
            trace_id: String::new(),
            step: writer.step.to_owned(),
            detail: Some(detail),
        };
        let payload = unknown_fields::encode(&mut event, unknown_fields);
        *order = event.order.take().unwrap_or_default();
        let subject = subjects::event(kind, id, lifecycle::next(order));
        // Carrying an order does not change its update_time.
        let time = if kind == EventKind::Carried { Some(now()) } else { order.update_time };
        Self { event_id: event.event_id, subject, payload, kind, time, source: writer.source }
    }

    /// The headers of one publish, within the current trace. Built for each publish, because the client consumes them.
    pub(crate) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("ce-specversion", CE_SPEC_VERSION);
        headers.insert("ce-id", self.event_id.as_str());
        headers.insert("ce-type", self.kind.ce_type());
        headers.insert("ce-source", self.source);
        if let Some(time) = self.time {
            headers.insert("ce-time", time.to_string());
        }
        headers.insert("content-type", CONTENT_TYPE);
        trace_headers::write(&mut headers);
        headers
    }
}

/// An event read back from the log; all its parts exist and agree.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Whose event it is.
    pub id: OrderId,
    /// Where in the log it is.
    pub revision: Revision,
    /// Where the order's event before it is.
    pub previous: Revision,
    /// The event id that its writer chose.
    pub event_id: String,
    /// The order after it, with `revision` filled in.
    pub order: Order,
    /// What happened.
    pub detail: Detail,
    /// The step that wrote it; empty for other writers.
    pub step: String,
    /// The trace that it belongs to, if its headers name one.
    pub trace: Option<SpanContext>,
    /// When the broker stored it, by its clock, if its headers contain the time.
    pub stored: Option<SystemTime>,
    /// The stored order, if it contains fields of a newer version; else empty.
    pub(crate) unknown_fields: Bytes,
}

/// A message on a subject of the order log that is not a complete event of Waybill.
#[derive(Debug, Error)]
pub enum Undecodable {
    /// Waybill writes no such subject.
    #[error("the subject is not one of an order's events")]
    ForeignSubject,
    /// The payload is not protobuf, or not this message.
    #[error("the payload is not an orders.v1.OrderEvent: {0}")]
    Payload(#[from] prost::DecodeError),
    /// A part that every event has is missing.
    #[error("the event has no {0}")]
    Missing(&'static str),
    /// The payload names another order or event than the subject.
    #[error("the {0} of subject and payload differ")]
    Mismatch(&'static str),
}

/// The stream's metadata of a message that it returns or republishes.
pub fn stored(headers: &HeaderMap) -> Option<SystemTime> {
    let time: Timestamp = headers.get_last("Nats-Time-Stamp")?.as_str().parse().ok()?;
    time.try_into().ok()
}

impl Recorded {
    /// Reads a message of the order log.
    pub fn decode(
        subject: &str,
        revision: Revision,
        headers: Option<&HeaderMap>,
        payload: Bytes,
    ) -> Result<Self, Undecodable> {
        let EventSubject { kind, id, next } = subjects::parse(subject).ok_or(Undecodable::ForeignSubject)?;
        let event = OrderEvent::decode(payload.clone())?;
        let unknown_fields = unknown_fields::beyond(&event, &payload);
        let detail = event.detail.ok_or(Undecodable::Missing("detail"))?;
        let mut order = event.order.ok_or(Undecodable::Missing("order"))?;
        if event.event_id.is_empty() {
            return Err(Undecodable::Missing("event_id"));
        }
        if order.status() == OrderStatus::Unspecified {
            return Err(Undecodable::Missing("known order.status"));
        }
        if EventKind::of(&detail) != kind {
            return Err(Undecodable::Mismatch("events"));
        }
        if order.order_id != id.to_string() {
            return Err(Undecodable::Mismatch("order ids"));
        }
        if lifecycle::next(&order) != next {
            return Err(Undecodable::Mismatch("next steps"));
        }
        order.revision = revision.0;
        Ok(Self {
            id,
            revision,
            previous: Revision(event.previous_revision),
            event_id: event.event_id,
            order,
            detail,
            step: event.step,
            trace: headers.and_then(trace_headers::read),
            stored: headers.and_then(stored),
            unknown_fields,
        })
    }

    /// What happened, in one word.
    pub fn kind(&self) -> EventKind {
        EventKind::of(&self.detail)
    }

    /// The dead letter that the order was parked by, if that is what happened.
    pub fn parked_by(&self) -> Option<&str> {
        if let Detail::Failed(failed) = &self.detail { Some(&failed.dead_letter_id) } else { None }
    }

    /// The dead letter that the order was redriven from, if that is what happened.
    pub fn redriven_from(&self) -> Option<&str> {
        if let Detail::Redriven(redriven) = &self.detail { Some(&redriven.dead_letter_id) } else { None }
    }

    /// Since when the order stands as it does after this event: one that is carried stands as it stood.
    pub fn stands_since(&self) -> Revision {
        if let Detail::Carried(carried) = &self.detail {
            Revision(carried.since_revision)
        } else {
            self.revision
        }
    }

    /// The event as clients see it, without the payment method.
    pub fn into_proto(self) -> OrderEvent {
        payment_method::removed_from_event(OrderEvent {
            event_id: self.event_id,
            previous_revision: self.previous.0,
            order: Some(self.order),
            trace_id: self.trace.map(|trace| trace.trace_id().to_string()).unwrap_or_default(),
            step: self.step,
            detail: Some(self.detail),
        })
    }
}

/// The present moment, as events carry it.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::ids::{CustomerKey, OrderKey};
    use program::trace;
    use proptest::prelude::*;
    use proto::orders::v1::OrderCreated;

    fn draft(id: &OrderId) -> Draft {
        let mut order = Order { order_id: id.to_string(), revision: 7, ..Order::default() };
        order.set_status(OrderStatus::Accepted);
        let detail = Detail::Created(OrderCreated::default());
        let writer = Writer { source: "test", step: "" };
        Draft::new(id, Revision(3), &mut order, &Bytes::new(), detail, writer)
    }

    fn id() -> OrderId {
        OrderId { customer: CustomerKey::of("", "c"), order: OrderKey::unique() }
    }

    #[test]
    fn an_event_decodes_as_written() {
        let (id, trace) = (id(), trace::root());
        let draft = draft(&id);
        let _current = trace::remote(trace.clone()).attach();
        let read =
            Recorded::decode(&draft.subject, Revision(9), Some(&draft.headers()), draft.payload).unwrap();
        assert_eq!((read.id, read.revision, read.previous), (id, Revision(9), Revision(3)));
        assert_eq!(read.event_id, draft.event_id);
        assert_eq!(read.order.revision, 9);
        assert_eq!(read.trace, Some(trace));
    }

    #[test]
    fn an_event_on_another_orders_subject_is_refused() {
        let draft = draft(&id());
        let elsewhere = subjects::event(EventKind::Created, &id(), subjects::END);
        let read = Recorded::decode(&elsewhere, Revision(9), None, draft.payload);
        assert!(matches!(read, Err(Undecodable::Mismatch("order ids"))), "{read:?}");
    }

    #[test]
    fn an_event_on_the_subject_of_another_step_is_refused() {
        let (id, draft) = (id(), draft(&id()));
        let elsewhere = subjects::event(EventKind::Created, &id, "payment");
        let mut event = OrderEvent::decode(draft.payload).unwrap();
        event.order.as_mut().unwrap().order_id = id.to_string();
        let read = Recorded::decode(&elsewhere, Revision(9), None, event.encode_to_vec().into());
        assert!(matches!(read, Err(Undecodable::Mismatch("next steps"))), "{read:?}");
    }

    proptest! {
        #[test]
        fn no_payload_panics(payload: Vec<u8>) {
            let subject = subjects::event(EventKind::Created, &id(), subjects::END);
            prop_assert!(Recorded::decode(&subject, Revision(1), None, payload.into()).is_err());
        }

        #[test]
        fn a_damaged_event_never_panics(at: prop::sample::Index, byte: u8) {
            let draft = draft(&id());
            let mut payload = draft.payload.to_vec();
            let at = at.index(payload.len());
            payload[at] = byte;
            // Whether it still decodes depends on the byte; the property is that it does not panic.
            drop(Recorded::decode(&draft.subject, Revision(1), None, payload.into()));
        }
    }
}
