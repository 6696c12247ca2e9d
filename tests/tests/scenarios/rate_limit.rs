//! A peer that calls too often is told when to come back, and is let in then.

use futures::{StreamExt, stream};
use harness::{Deployment, Options, item, order_of};
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
    let wait = refusal.get_details_retry_info().unwrap().retry_delay.unwrap();
    // Probes are not calls of a peer.
    assert_eq!(waybill.gateway.health("").await, Some(ServingStatus::Serving));

    // The wait is what is tried here.
    tokio::time::sleep(wait).await;
    call().await.unwrap();
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
