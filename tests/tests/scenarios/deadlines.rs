//! A call is answered before its caller stops waiting, with what is known by then.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use harness::{Deployment, Options, PATIENCE, eventually, item, order_of};
use http_body::Frame;
use http_body_util::StreamBody;
use proto::orders::v1::{GetOrderRequest, WatchOrderRequest};
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};

const TIMEOUT: Duration = Duration::from_secs(1);

/// The gateway's own answer to a call whose time runs out. On a busy machine the caller may have stopped
/// listening a moment before, and is then told by its own library.
pub(crate) async fn in_time(call: impl AsyncFn() -> Result<(), Status>) -> Status {
    eventually("an answer before the caller stops listening", async || {
        call().await.err().filter(|status| status.get_details_error_info().is_some())
    })
    .await
}

#[tokio::test]
async fn a_call_whose_time_runs_out_says_what_is_known() {
    let waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let order = waybill.place(order_of("ada", "r-1", vec![item("widget", 1)])).await.unwrap();
    let client = waybill.client().await;
    waybill.broker.pause();

    let status = in_time(async || {
        let mut request = Request::new(order_of("ada", "r-2", vec![item("widget", 1)]));
        request.set_timeout(TIMEOUT);
        client.clone().create_order(request).await.map(drop)
    })
    .await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.reason, "OUTCOME_UNKNOWN");
    assert!(status.message().contains("request_id"), "{}", status.message());

    let status = in_time(async || {
        let mut request = Request::new(GetOrderRequest { order_id: order.order_id.clone() });
        request.set_timeout(TIMEOUT);
        client.clone().get_order(request).await.map(drop)
    })
    .await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "TIMED_OUT");

    waybill.broker.resume();
    // What was unknown is found out by a repeat.
    let repeated = waybill.place(order_of("ada", "r-2", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(repeated.order_id, info.metadata["order_id"]);
}

#[tokio::test]
async fn a_watch_ends_when_its_caller_stops_listening() {
    let waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let order = waybill.place(order_of("ada", "r-1", vec![item("widget", 1)])).await.unwrap();
    let mut request = Request::new(WatchOrderRequest { order_id: order.order_id, after_revision: 0 });
    request.set_timeout(TIMEOUT);
    let mut watch = waybill.client().await.watch_order(request).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let status = watch.message().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn a_request_has_to_come_in_time_as_well() {
    let gateway = vec![("REQUEST_TIMEOUT", "500ms".to_owned())];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let request = http::Request::post("http://gateway/orders.v1.OrderService/CreateOrder")
        .header("content-type", "application/grpc")
        .body(Body::new(StreamBody::new(stream::pending::<Result<Frame<Bytes>, Status>>())))
        .unwrap();
    let mut channel = waybill.channel();
    let answer = timeout(PATIENCE, channel.ready().await.unwrap().call(request)).await;
    let answer = answer.expect("an answer in time").unwrap();
    let status = Status::from_header_map(answer.headers()).expect("a refusal");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "TIMED_OUT");
}
