//! Whoever asks how the gateway is, by gRPC or HTTP, is told soon that its broker is lost, and that it is back.

use std::time::{Duration, Instant};

use harness::{Deployment, Options, PATIENCE, eventually, item, order_of};
use nix::sys::signal::Signal;
use tokio::time::timeout;
use tonic::{Code, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt;

/// The server as a whole, and its service.
const NAMES: [&str; 2] = ["", "orders.v1.OrderService"];
/// What is promised is 2 s. A machine that has much else to do may take longer over it.
const NOTICED_MAX: Duration = Duration::from_secs(4);

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

async fn gateway_only() -> Deployment {
    Deployment::start_with(Options { replicas: 0, ..Options::default() }).await
}

/// A health watch of each name.
async fn watches(waybill: &Deployment) -> Vec<Streaming<HealthCheckResponse>> {
    let mut watches = Vec::new();
    for name in NAMES {
        let mut client = HealthClient::new(waybill.channel());
        watches.push(client.watch(request(name)).await.unwrap().into_inner());
    }
    watches
}

/// Waits until a watch says so.
async fn says(watch: &mut Streaming<HealthCheckResponse>, expected: ServingStatus) {
    let saying = async { while watch.message().await.unwrap().unwrap().status() != expected {} };
    timeout(PATIENCE, saying).await.unwrap_or_else(|_| panic!("never {expected:?}"));
}

/// Waits until /readyz answers so.
async fn readyz(waybill: &Deployment, expected: u16) {
    let answer = async || (waybill.http("/readyz").await.0 == expected).then_some(());
    eventually(&format!("{expected} of /readyz"), answer).await;
}

/// Everybody who asks is told within the time that the broker is lost, and afterwards that it is back.
async fn loss_is_noticed(waybill: &mut Deployment, how: &str, lose: impl AsyncFnOnce(&mut Deployment)) {
    let mut watches = watches(waybill).await;
    for watch in &mut watches {
        says(watch, ServingStatus::Serving).await;
    }
    lose(waybill).await;
    let lost = Instant::now();
    readyz(waybill, 503).await;
    let by_http = lost.elapsed();
    for watch in &mut watches {
        says(watch, ServingStatus::NotServing).await;
    }
    let by_all = lost.elapsed();
    eprintln!("broker {how}: /readyz 503 after {by_http:?}, every watch NOT_SERVING after {by_all:?}");
    assert!(by_all < NOTICED_MAX, "{how}: noticed after {by_all:?} only");

    for name in NAMES {
        assert_eq!(waybill.gateway.health(name).await, Some(ServingStatus::NotServing));
    }
    assert_eq!(waybill.http("/livez").await.0, 200);
}

/// The gateway serves again without having been told to.
async fn is_back(waybill: &Deployment) {
    readyz(waybill, 200).await;
    for watch in &mut watches(waybill).await {
        says(watch, ServingStatus::Serving).await;
    }
    waybill.place(order_of("ada", "", vec![item("widget", 1)])).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_dies_is_missed_soon_and_welcome_again() {
    let mut waybill = gateway_only().await;
    loss_is_noticed(&mut waybill, "killed", async |waybill| waybill.broker.kill()).await;
    waybill.broker.start().await;
    is_back(&waybill).await;
}

#[tokio::test]
async fn a_broker_that_stands_still_is_missed_soon_and_welcome_again() {
    let mut waybill = gateway_only().await;
    // Its connections stay open, and nothing comes on them.
    loss_is_noticed(&mut waybill, "paused", async |waybill| waybill.broker.pause()).await;
    waybill.broker.resume();
    is_back(&waybill).await;
}

#[tokio::test]
async fn a_service_that_nobody_knows_has_no_health() {
    let waybill = gateway_only().await;
    let channels = [waybill.channel(), waybill.operations_channel()];
    let names = [NAMES, ["", "operations.v1.DeadLetterService"]];
    let mut watches = Vec::new();
    for (channel, names) in channels.into_iter().zip(names) {
        let mut client = HealthClient::new(channel);
        for name in names {
            let checked = client.check(request(name)).await.unwrap().into_inner();
            assert_eq!(checked.status(), ServingStatus::Serving, "{name:?}");
        }
        for unknown in ["orders.v1", "orders.v1.OrderService/CreateOrder", "grpc.health.v1.Health"] {
            let status = client.check(request(unknown)).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{unknown}");
            // A watch waits for the service to appear (grpc.health.v1.Health.Watch).
            let mut watch = client.watch(request(unknown)).await.unwrap().into_inner();
            says(&mut watch, ServingStatus::ServiceUnknown).await;
            watches.push(watch);
        }
    }
    waybill.gateway.process.signal(Signal::SIGTERM);
    for mut watch in watches {
        let ended = timeout(PATIENCE, watch.message()).await.expect("an end in time");
        let status = ended.expect_err("an end when the gateway stops, and not before");
        assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
    }
}
