//! Ten thousand watchers at one gateway, and what becomes of them when it stops.

use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use harness::{Deployment, Options, PATIENCE, item, order_of};
use nix::sys::signal::Signal;
use prost::Message;
use proto::orders::v1::{WatchOrderRequest, WatchOrderResponse};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::http2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Raw, call_headers, frame, grpc_message, stream_ids,
};

const CONNECTIONS: usize = 10;
/// On each connection.
const STREAMS: usize = 1_000;
/// Streams that are opened side by side.
const OPENED_AT_ONCE: usize = 64;

/// A gateway that has so long to drain, and an order in it that nobody carries on.
async fn waiting_order(drain_timeout: &str) -> (Deployment, WatchOrderRequest) {
    let gateway = vec![("DRAIN_TIMEOUT", drain_timeout.to_owned())];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let order = waybill.place(order_of("ada", "r-1", vec![item("widget", 1)])).await.unwrap();
    (waybill, WatchOrderRequest { order_id: order.order_id, after_revision: 0 })
}

/// Streams that have given out the order's history.
async fn open(waybill: &Deployment, request: &WatchOrderRequest) -> Vec<Streaming<WatchOrderResponse>> {
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = waybill.client().await;
        let opening = stream::iter(0..STREAMS).map(async |_| {
            let mut watch = client.clone().watch_order(request.clone()).await?.into_inner();
            watch.message().await?;
            Ok::<_, Status>(watch)
        });
        open.extend(opening.buffer_unordered(OPENED_AT_ONCE).try_collect::<Vec<_>>().await.unwrap());
    }
    open
}

#[tokio::test]
async fn a_gateway_sends_ten_thousand_watchers_away_each_with_its_reason() {
    // No test waits as long as this: whoever uses it up fails.
    let (mut waybill, request) = waiting_order("1h").await;
    let open = open(&waybill, &request).await;
    waybill.gateway.process.signal(Signal::SIGTERM);
    let start = Instant::now();
    let ends = open.into_iter().map(async |mut watch| watch.message().await.expect_err("an end"));
    let ends = timeout(PATIENCE, futures::future::join_all(ends)).await.expect("an end of each stream");
    let told = start.elapsed();
    for status in &ends {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.get_details_error_info().expect("a reason").reason, "DRAINING");
        assert!(status.get_details_retry_info().is_some());
    }
    let status = waybill.gateway.process.ended().await;
    eprintln!("{} streams were told after {told:?}, gateway gone after {:?}", ends.len(), start.elapsed());
    assert_eq!(ends.len(), CONNECTIONS * STREAMS);
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn watchers_that_take_nothing_do_not_keep_a_gateway_from_leaving() {
    const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
    let (mut waybill, request) = waiting_order("2s").await;
    let calls: Vec<u8> = stream_ids()
        .take(STREAMS)
        .flat_map(|id| {
            let headers = frame(HEADERS, END_HEADERS, id, &call_headers("WatchOrder"));
            let message = grpc_message(&request.encode_to_vec());
            [headers, frame(DATA, END_STREAM, id, &message)].concat()
        })
        .collect();
    let mut watchers = Vec::new();
    // Nothing may be sent to it, or one byte, or the history and no more.
    for window in [0, 1, 1_000] {
        let mut raw = Raw::greet_with_window(&waybill.gateway.grpc_addr, window).await;
        assert!(raw.write(&calls).await);
        raw.answers(STREAMS).await;
        watchers.push(raw);
    }
    let start = Instant::now();
    let status = waybill.gateway.process.stop().await;
    eprintln!("gateway gone after {:?} of {DRAIN_TIMEOUT:?}", start.elapsed());
    assert!(status.success(), "{status}");
    // The machine may be slow, but not by as much as one that waits for them.
    assert!(start.elapsed() < DRAIN_TIMEOUT + Duration::from_secs(8), "{:?}", start.elapsed());
}
