//! Headers that come more than once: each means what its specification says, and none is read by chance of its place.

use async_nats::HeaderMap;
use backbone::broker::trace_headers;
use backbone::log::subjects::LIVE_PREFIX;
use futures::StreamExt;
use harness::{Deployment, Options, PATIENCE, item, order_of};
use program::trace::SpanContext;
use proto::orders::v1::GetOrderRequest;
use proto::orders::v1::order_service_client::OrderServiceClient;
use tokio::time::timeout;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::tenants::{BOTH, with_keys, write_keys};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER_TRACE_ID: &str = "5bf92f3577b34da6a3ce929d0e0e4736";

async fn gateway_only() -> Deployment {
    Deployment::start_with(Options { replicas: 0, ..Options::default() }).await
}

/// The trace context of the event that a CreateOrder with this metadata leads to.
async fn trace_of_order(waybill: &Deployment, metadata: &[(&'static str, &str)]) -> SpanContext {
    let mut request = Request::new(order_of("ada", "", vec![item("widget", 1)]));
    for (name, value) in metadata {
        request.metadata_mut().append(*name, value.parse().unwrap());
    }
    let created = waybill.client().await.create_order(request).await.unwrap().into_inner().order.unwrap();
    let messages = waybill.messages().await;
    let keys = created.order_id.replace('-', ".");
    let message = messages.iter().find(|message| message.subject.contains(&keys));
    trace_headers::read(&message.expect("the event").headers).expect("a trace")
}

#[tokio::test]
async fn entries_of_several_tracestate_headers_are_kept_in_their_order() {
    let waybill = gateway_only().await;
    let traceparent = ("traceparent", &*format!("00-{TRACE_ID}-00f067aa0ba902b7-01"));
    for (states, expected) in [
        (&["a=1", "b=2"][..], Some("a=1,b=2")),
        (&["a=1,b=2", "c=3"], Some("a=1,b=2,c=3")),
        (&["", "a=1"], Some("a=1")),
        (&["a=1", ""], Some("a=1")),
        (&[""], None),
    ] {
        let states = states.iter().map(|state| ("tracestate", *state));
        let metadata: Vec<_> = states.chain([traceparent]).collect();
        let trace = trace_of_order(&waybill, &metadata).await;
        assert_eq!(trace.trace_id().to_string(), TRACE_ID);
        assert_eq!(trace.trace_state().header(), expected.unwrap_or_default(), "{metadata:?}");
    }
}

#[tokio::test]
async fn a_call_with_two_traceparents_begins_a_new_trace() {
    let waybill = gateway_only().await;
    let one = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    let other = format!("00-{OTHER_TRACE_ID}-00f067aa0ba902b7-01");
    for second in [&other, &one, ""] {
        let metadata = [("traceparent", one.as_str()), ("traceparent", second), ("tracestate", "a=1")];
        let trace = trace_of_order(&waybill, &metadata).await;
        assert!(
            ![TRACE_ID, OTHER_TRACE_ID].contains(&trace.trace_id().to_string().as_str()),
            "{second:?}: {trace:?}"
        );
        assert_eq!(trace.trace_state().header(), "", "that of no trace");
    }
}

#[tokio::test]
async fn a_call_with_two_credentials_of_a_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    write_keys(&path, &[("key-1", "shop", BOTH), ("key-2", "rival", BOTH)]);
    let waybill = with_keys(&path).await;
    let get = GetOrderRequest { order_id: "aaaaaaaaaaaaaaaa-aaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned() };
    let ask = async |keys: &[&str]| {
        let mut request = Request::new(get.clone());
        for key in keys {
            request.metadata_mut().append("x-api-key", key.parse().unwrap());
        }
        OrderServiceClient::new(waybill.channel()).get_order(request).await.unwrap_err()
    };
    assert_eq!(ask(&["key-1"]).await.code(), Code::NotFound);
    // A proxy that checks the one, and a gateway that goes by the other.
    for keys in [&["key-1", "key-2"][..], &["key-1", "key-1"], &["key-1", ""], &["nope", "key-1"]] {
        let status = ask(keys).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{keys:?}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "CREDENTIAL_INVALID");
    }
}

#[tokio::test]
async fn what_the_broker_says_of_a_message_counts_and_not_what_its_writer_says() {
    let waybill = gateway_only().await;
    waybill.place(order_of("ada", "", vec![item("widget", 1)])).await.unwrap();
    let event = waybill.messages().await.remove(0);
    let mut live = waybill.jetstream().await.client().subscribe(format!("{LIVE_PREFIX}>")).await.unwrap();
    let mut forged = HeaderMap::new();
    for (name, value) in [
        ("Nats-Sequence", "7777"),
        ("Nats-Subject", "ORDER.00.x.y.created.inventory"),
        ("Nats-Time-Stamp", "2001-01-01T00:00:00Z"),
        ("Nats-Num-Pending", "7777"),
    ] {
        forged.insert(name, value);
    }
    let jetstream = waybill.jetstream().await;
    let published = jetstream.publish_with_headers(event.subject.to_string(), forged, event.payload.clone());
    let sequence = published.await.unwrap().await.unwrap().sequence;
    // The broker puts its own behind them, in what it gives and in what it republishes.
    let republished = timeout(PATIENCE, live.next()).await.unwrap().unwrap().headers.unwrap();
    assert_eq!(republished.get_all("Nats-Sequence").count(), 2, "{republished:?}");

    let read = waybill.messages().await.remove(1);
    assert_eq!((read.sequence.0, &read.subject), (sequence, &event.subject));
}
