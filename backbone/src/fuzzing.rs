//! Properties that hold for any bytes from outside. Each function takes the bytes, and panics where a property is
//! violated. The fuzz targets in `fuzz/` call them with libFuzzer's input, the test below with its seeds.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "it tells by panicking")]

use async_nats::HeaderMap;
use program::trace::{self, TRACEPARENT, TRACESTATE};
use prost::Message;
use prost_types::Timestamp;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderEvent, OrderStatus};

use crate::log::event::{Draft, Recorded, Writer};
use crate::log::ids::{OrderId, Revision};
use crate::log::lifecycle::{self, is_finished};
use crate::log::payment_method::{removed_from_event, removed_from_payload};
use crate::log::subjects::{self, END, EventKind, EventSubject};

/// A text is the id of one order or of none, and so is a subject.
pub fn order_id(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(id) = text.parse::<OrderId>() {
        assert_eq!(id.to_string(), text);
        for kind in EventKind::ALL {
            let subject = subjects::event(kind, &id, END);
            assert_eq!(subjects::parse(&subject), Some(EventSubject { kind, id, next: END }));
            assert!(subject.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.'), "{subject}");
        }
    }
    if let Some(EventSubject { kind, id, next }) = subjects::parse(text) {
        assert_eq!(subjects::event(kind, &id, next), text);
    }
}

/// A message of the log is a complete event or is skipped; an event that is written can be read. Takes three lines
/// (subject, traceparent, tracestate) and a payload.
pub fn event(bytes: &[u8]) {
    let mut parts = bytes.splitn(4, |byte| *byte == b'\n');
    let mut part = || parts.next();
    let (Some(subject), Some(parent), Some(state), Some(payload)) = (part(), part(), part(), part()) else {
        return;
    };
    let text = |bytes| str::from_utf8(bytes).unwrap_or_default();
    // The NATS client rejects header values with line breaks.
    let header = |bytes| text(bytes).replace('\r', "");
    let mut headers = HeaderMap::new();
    headers.insert(TRACEPARENT, header(parent));
    headers.insert(TRACESTATE, header(state));
    let decode =
        |subject: &str| Recorded::decode(subject, Revision(9), Some(&headers), payload.to_vec().into());

    if let Ok(event) = decode(text(subject)) {
        let next = lifecycle::next(&event.order);
        assert_eq!(subjects::event(event.kind(), &event.id, next), text(subject));
        check(&event);
    }
    let shown = removed_from_payload(payload);
    assert!(shown.len() <= payload.len());
    if let Ok(event) = OrderEvent::decode(payload) {
        assert_eq!(OrderEvent::decode(shown.as_slice()), Ok(removed_from_event(event)));
    }

    // Decodes it on the subject that it would belong to.
    let Ok(OrderEvent { event_id, order: Some(order), detail: Some(detail), .. }) =
        OrderEvent::decode(payload)
    else {
        return;
    };
    let Ok(id) = order.order_id.parse::<OrderId>() else { return };
    let subject = subjects::event(EventKind::of(&detail), &id, lifecycle::next(&order));
    let event = decode(&subject);
    let is_whole = !event_id.is_empty()
        && order.status() != OrderStatus::Unspecified
        && subjects::parse(&subject).is_some();
    assert_eq!(event.is_ok(), is_whole, "{event:?}");
    if let Ok(event) = event {
        check(&event);
    }
}

fn check(event: &Recorded) {
    assert_eq!((event.revision, event.order.revision), (Revision(9), 9));
    assert_eq!(event.order.order_id, event.id.to_string());
    assert_ne!(event.order.status(), OrderStatus::Unspecified);
    let shown = event.clone().into_proto();
    assert_eq!(OrderEvent::decode(shown.encode_to_vec().as_slice()), Ok(shown.clone()));
    let trace = event.trace.clone();
    assert_eq!(shown.trace_id, trace.as_ref().map(|trace| trace.trace_id().to_string()).unwrap_or_default());

    let trace = trace.unwrap_or_else(trace::root);
    let _current = trace::remote(trace.clone()).attach();
    for next in [event.detail.clone()].into_iter().chain(details()) {
        let now = Timestamp { seconds: 1_800_000_000, nanos: 0 };
        let Ok(after) = lifecycle::apply(&event.order, &event.order.current_step, &next, now) else {
            continue;
        };
        // A foreign route may have a step with a name that no subject can have.
        let subject = subjects::event(EventKind::of(&next), &event.id, lifecycle::next(&after));
        if subjects::parse(&subject).is_none() {
            continue;
        }
        assert!(!is_finished(&event.order), "{next:?} after {event:?}");
        let read = read_back(event, after, next);
        assert_eq!(read.trace.as_ref(), Some(&trace));
    }
}

const WRITER: Writer = Writer { source: "fuzzing", step: "" };

/// What this program would append is an event for every reader.
fn read_back(before: &Recorded, mut order: Order, detail: Detail) -> Recorded {
    let id = &before.id;
    let draft = Draft::new(id, Revision(9), &mut order, &before.unknown_fields, detail.clone(), WRITER);
    let headers = draft.headers();
    let read = Recorded::decode(&draft.subject, Revision(10), Some(&headers), draft.payload.clone());
    let read = read.unwrap();
    assert_eq!((read.id, read.previous), (*id, Revision(9)));
    assert_eq!((&read.event_id, &read.detail), (&draft.event_id, &detail));
    assert_eq!(read.order, Order { revision: 10, ..order });
    read
}

/// One event of each kind.
fn details() -> [Detail; 15] {
    [
        Detail::Created(Default::default()),
        Detail::Reserved(Default::default()),
        Detail::Paid(Default::default()),
        Detail::Fulfilled(Default::default()),
        Detail::Rejected(Default::default()),
        Detail::Cancelled(Default::default()),
        Detail::Released(Default::default()),
        Detail::Refunded(Default::default()),
        Detail::Failed(Default::default()),
        Detail::Redriven(Default::default()),
        Detail::Carried(Default::default()),
        Detail::Completed(Default::default()),
        Detail::Compensated(Default::default()),
        Detail::Deferred(Default::default()),
        Detail::Resumed(Default::default()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_seed_passes(name: &str, target: fn(&[u8])) {
        let folder = format!("{}/../fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
        let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|seed| seed.unwrap().path()).collect();
        assert!(!seeds.is_empty(), "{name}");
        for seed in seeds {
            eprintln!("{}", seed.display());
            target(&std::fs::read(seed).unwrap());
        }
    }

    #[test]
    fn every_seed_passes_its_fuzz_target() {
        every_seed_passes("order_id", order_id);
        every_seed_passes("event", event);
    }
}
