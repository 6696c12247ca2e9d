//! Who may call.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use harness::{Deployment, Options, PATIENCE, Shows, eventually, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{
    CancelOrderRequest, GetOrderRequest, ListOrderEventsRequest, Order, WatchOrderRequest, WatchOrdersRequest,
};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

pub(crate) const BOTH: &str = "orders:write,orders:read";

pub(crate) fn write_keys(path: &Path, keys: &[(&str, &str, &str)]) {
    let mut lines = String::new();
    for (key, tenant, roles) in keys {
        for byte in Sha256::digest(key) {
            write!(lines, "{byte:02x}").unwrap();
        }
        writeln!(lines, " {tenant} {roles}").unwrap();
    }
    std::fs::File::create(path).unwrap().write_all(lines.as_bytes()).unwrap();
}

pub(crate) async fn with_keys(path: &Path) -> Deployment {
    let gateway = vec![("API_KEYS_FILE", path.to_str().unwrap().to_owned())];
    Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await
}

pub(crate) type Client = OrderServiceClient<InterceptedService<Channel, Shows>>;

pub(crate) fn client(waybill: &Deployment, key: Option<&str>) -> Client {
    key.map_or_else(Shows::default, Shows::key).on(waybill.channel())
}

async fn place(client: &mut Client, request_id: &str) -> Result<Order, Status> {
    let request = order_of("ada", request_id, vec![item("widget", 1)]);
    Ok(client.create_order(request).await?.into_inner().order.unwrap())
}

/// What each method that takes an order_id answers.
async fn answers(client: &mut Client, order_id: &str) -> [Result<(), Status>; 4] {
    let order_id = || order_id.to_owned();
    [
        client.get_order(GetOrderRequest { order_id: order_id() }).await.map(drop),
        client
            .list_order_events(ListOrderEventsRequest { order_id: order_id(), ..Default::default() })
            .await
            .map(drop),
        client.watch_order(WatchOrderRequest { order_id: order_id(), after_revision: 0 }).await.map(drop),
        client
            .cancel_order(CancelOrderRequest { order_id: order_id(), message: String::new() })
            .await
            .map(drop),
    ]
}

#[tokio::test]
async fn a_call_needs_a_credential_with_the_right_role() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    write_keys(&path, &[("reader", "shop", "orders:read"), ("writer", "shop", "orders:write")]);
    let waybill = with_keys(&path).await;
    let reason = |status: &Status| status.get_details_error_info().unwrap().reason;

    for (key, code, expected) in [
        (None, Code::Unauthenticated, "CREDENTIAL_MISSING"),
        (Some("unknown"), Code::Unauthenticated, "CREDENTIAL_INVALID"),
        (Some("reader"), Code::PermissionDenied, "ROLE_MISSING"),
    ] {
        let status = place(&mut client(&waybill, key), "r-1").await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (code, expected), "{key:?}");
    }
    let order = place(&mut client(&waybill, Some("writer")), "r-1").await.unwrap();
    assert_eq!(order.tenant, "shop", "whose credential it was");
    let [get, events, watch, cancel] = answers(&mut client(&waybill, Some("writer")), &order.order_id).await;
    for refused in [get, events, watch] {
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    }
    cancel.unwrap();
    let get = GetOrderRequest { order_id: order.order_id };
    client(&waybill, Some("reader")).get_order(get).await.unwrap();
    // Probes and reflection have no credential.
    assert_eq!(waybill.gateway.health("").await, Some(ServingStatus::Serving));
}

#[tokio::test]
async fn keys_come_and_go_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    write_keys(&path, &[("old", "shop", BOTH)]);
    let mut waybill = with_keys(&path).await;
    place(&mut client(&waybill, Some("old")), "r-1").await.unwrap();

    // A file that cannot be used leaves the keys as they are.
    std::fs::write(&path, "nonsense").unwrap();
    waybill
        .gateway
        .process
        .logged("refusal of the file", |line| {
            line["message"].as_str()?.contains("not reloaded").then_some(())
        })
        .await;
    place(&mut client(&waybill, Some("old")), "r-2").await.unwrap();

    let watch = WatchOrdersRequest { customer_id: "ada".to_owned(), after_revision: 0 };
    let mut watch = client(&waybill, Some("old")).watch_orders(watch).await.unwrap().into_inner();
    write_keys(&path, &[("new", "shop", BOTH)]);
    eventually("the new key", async || place(&mut client(&waybill, Some("new")), "r-3").await.ok()).await;
    let status = place(&mut client(&waybill, Some("old")), "r-4").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    // What was opened with the old key ends too.
    let end = async {
        loop {
            if let Err(status) = watch.message().await.map(|event| event.expect("an end with a status")) {
                return status;
            }
        }
    };
    let end = timeout(PATIENCE, end).await.expect("an end");
    assert_eq!(end.code(), Code::Unauthenticated);
}
