//! A peer that calls too often is told when to come back, and is let in then.

use std::time::Duration;

use futures::{StreamExt, stream};
use harness::{Deployment, Options, eventually, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

#[tokio::test]
async fn who_waits_as_long_as_told_is_let_in() {
    let gateway = vec![("RATE_LIMIT", "5".to_owned()), ("RATE_BURST", "10".to_owned())];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let call = || waybill.place(order_of("customer", "", vec![item("widget", 1)]));

    let refusal = refused(call).await;
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    assert_eq!(refusal.get_details_error_info().unwrap().reason, "RATE_LIMITED");
    assert!(refusal.get_details_quota_failure().is_some());
    let wait = retry_delay(&refusal);
    // Probes are not calls of a peer.
    assert_eq!(waybill.gateway.health("").await, Some(ServingStatus::Serving));

    // The wait is what is tried here.
    tokio::time::sleep(wait).await;
    call().await.unwrap();
}

/// Callers that come at once, each with one order, and each waiting exactly as it is told.
const CROWD: usize = 60;

#[tokio::test]
async fn a_crowd_that_waits_as_told_makes_two_calls_an_order() {
    let gateway = vec![("RATE_LIMIT", "10".to_owned()), ("RATE_BURST", "10".to_owned())];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let one = |waybill: &Deployment| {
        let channel = waybill.channel();
        async move {
            for calls in 1.. {
                let request = order_of("customer", "", vec![item("widget", 1)]);
                let answer = OrderServiceClient::new(channel.clone()).create_order(request).await;
                let Err(refusal) = answer else { return calls };
                assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}");
                // The wait is what is tried here.
                tokio::time::sleep(retry_delay(&refusal)).await;
            }
            unreachable!("an endless loop")
        }
    };
    let crowd = futures::future::join_all((0..CROWD).map(|_| one(&waybill)));
    let calls: Vec<usize> = crowd.await;
    let total: usize = calls.iter().sum();
    assert!(total <= 2 * CROWD, "{total} calls for {CROWD} orders: {calls:?}");
}

#[tokio::test]
async fn a_hint_is_given_in_the_form_that_grpc_libraries_obey() {
    let mut waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    waybill.broker.kill();
    let call = || waybill.place(order_of("customer", "", vec![item("widget", 1)]));
    let refusal = eventually("a refusal", async || {
        let refusal = call().await.unwrap_err();
        (refusal.code() == Code::Unavailable).then_some(refusal)
    })
    .await;
    let said: u128 =
        refusal.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap();
    let wait = retry_delay(&refusal).as_millis();
    assert!(said >= wait && said <= wait + 1, "{said}, {wait}");
    // Not all are told the same.
    let other = eventually("another wait", async || {
        let other = retry_delay(&call().await.unwrap_err()).as_millis();
        (other != wait).then_some(other)
    })
    .await;
    assert!((250..=750).contains(&wait) && (250..=750).contains(&other), "{wait}, {other}");
}

fn retry_delay(refusal: &Status) -> Duration {
    refusal.get_details_retry_info().unwrap().retry_delay.unwrap()
}

/// Calls until a call is refused.
async fn refused<T>(call: impl AsyncFn() -> Result<T, Status>) -> Status {
    // Far more than a bucket of ten holds, however slowly they come.
    for _ in 0..10_000 {
        if let Err(status) = call().await {
            return status;
        }
    }
    panic!("never refused");
}

#[tokio::test]
async fn refusals_do_not_cost_a_client_its_connection() {
    let gateway = vec![("RATE_LIMIT", "10".to_owned()), ("RATE_BURST", "10".to_owned())];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let client = waybill.client().await;
    // Their messages are larger than what travels with a call's head.
    let items = vec![item(&"s".repeat(64), 1); 100];
    let calls = stream::iter(0..5_000).map(|_| {
        let mut client = client.clone();
        let request = order_of("ada", "", items.clone());
        async move { client.create_order(request).await.err() }
    });
    let refusals: Vec<_> = calls.buffer_unordered(100).filter_map(std::future::ready).collect().await;
    assert!(refusals.len() > 4_000);
    for refusal in refusals {
        assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}");
    }
}
