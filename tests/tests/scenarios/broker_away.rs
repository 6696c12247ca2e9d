//! Nothing is accepted while the broker is away, and everything goes on when it comes.

use harness::{Deployment, Options, PATIENCE, eventually, item, order_of};
use proto::orders::v1::{ListOrderEventsRequest, ListOrdersRequest, OrderStatus};
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use crate::accounting::{each_is_carried_out_once, widgets};

const SERVICES: [&str; 2] = ["", "orders.v1.OrderService"];

async fn says(waybill: &Deployment, expected: ServingStatus, readyz: u16) {
    for service in SERVICES {
        eventually(&format!("{expected:?} of {service:?}"), async || {
            (waybill.gateway.health(service).await == Some(expected)).then_some(())
        })
        .await;
    }
    for path in ["/readyz", "/health"] {
        eventually(&format!("{readyz} of {path}"), async || {
            (waybill.http(path).await.0 == readyz).then_some(())
        })
        .await;
    }
    assert_eq!(waybill.http("/livez").await.0, 200);
}

fn to_come_back(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "BROKER_UNAVAILABLE");
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(!wait.is_zero());
}

#[tokio::test]
async fn programs_that_start_before_the_broker_wait_for_it() {
    let mut waybill = Deployment::start_without_broker(Options::default()).await;
    says(&waybill, ServingStatus::NotServing, 503).await;
    let request = order_of("customer", "request", vec![item("widget", 1)]);
    to_come_back(&waybill.place(request.clone()).await.unwrap_err());

    waybill.broker.start().await;
    says(&waybill, ServingStatus::Serving, 200).await;
    let order = waybill.place(request).await.unwrap();
    each_is_carried_out_once(&waybill, &[order]).await;
}

#[tokio::test]
async fn a_gateway_whose_broker_is_lost_refuses_and_comes_back_by_itself() {
    let mut waybill = Deployment::start().await;
    says(&waybill, ServingStatus::Serving, 200).await;
    let mut requests = widgets(2).into_iter();
    let first = waybill.place(requests.next().unwrap()).await.unwrap();
    let first = waybill.finished(&first.order_id).await;

    waybill.broker.kill();
    says(&waybill, ServingStatus::NotServing, 503).await;
    let second = requests.next().unwrap();
    to_come_back(&waybill.place(second.clone()).await.unwrap_err());
    to_come_back(&waybill.get(&first.order_id).await.unwrap_err());
    to_come_back(&waybill.watch(&first.order_id, 0).await.unwrap_err());

    waybill.broker.start().await;
    says(&waybill, ServingStatus::Serving, 200).await;
    assert_eq!(waybill.get(&first.order_id).await.unwrap().status(), OrderStatus::Fulfilled);
    let second = waybill.place(second).await.unwrap();
    each_is_carried_out_once(&waybill, &[first, second]).await;
}

#[tokio::test]
async fn a_read_without_a_broker_is_told_so_and_not_left_to_its_deadline() {
    // Less than the broker is given for an answer.
    let gateway = vec![("REQUEST_TIMEOUT", "1s".to_owned())];
    let mut waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let order = waybill.place(order_of("ada", "", vec![item("widget", 1)])).await.unwrap();
    waybill.broker.kill();
    says(&waybill, ServingStatus::NotServing, 503).await;
    to_come_back(&waybill.get(&order.order_id).await.unwrap_err());
    let list = ListOrdersRequest { customer_id: "ada".to_owned(), ..ListOrdersRequest::default() };
    to_come_back(&waybill.client().await.list_orders(list).await.unwrap_err());
    let events = ListOrderEventsRequest { order_id: order.order_id.clone(), ..Default::default() };
    to_come_back(&waybill.client().await.list_order_events(events).await.unwrap_err());
    to_come_back(&waybill.watch(&order.order_id, 0).await.unwrap_err());
}

#[tokio::test]
async fn programs_that_wait_for_the_broker_stop_at_once_when_told() {
    // As long as this no test waits: whoever uses the drain timeout up fails.
    let drain = vec![("DRAIN_TIMEOUT", "1h".to_owned())];
    let options = Options { gateway: drain.clone(), processors: drain, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    says(&waybill, ServingStatus::NotServing, 503).await;
    assert!(waybill.gateway.process.stop().await.success());
    for step in ["inventory", "payment", "fulfilment"] {
        let process = waybill.processor(step);
        // Before its first line it may not yet listen for signals.
        process.line("a sign of life", |line| line.contains("broker").then_some(())).await;
        let status = timeout(PATIENCE, process.stop()).await.expect("an end");
        assert!(status.success(), "{step}: {status}");
    }
}
