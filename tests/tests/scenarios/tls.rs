//! TLS on the gRPC port, and certificates that change under what is open.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::certificates::{Authority, replace};
use harness::{Deployment, Options, PATIENCE, Shows, eventually, health, item, order_of};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{CancelOrderRequest, GetOrderRequest, ListOrdersRequest, WatchOrderRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

async fn deployment(authority: &Authority, dir: &Path, more: &[(&'static str, &str)]) -> Deployment {
    let mut gateway = authority.gateway().settings(dir);
    gateway.extend(more.iter().map(|&(name, value)| (name, value.to_owned())));
    Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await
}

/// Whether somebody who trusts this authority alone gets an answer over a new connection.
async fn is_trusted(waybill: &Deployment, authority: &Authority) -> bool {
    let health = health(waybill.gateway.secure_channel(authority.trusting()), "");
    timeout(PATIENCE, health).await == Ok(Some(ServingStatus::Serving))
}

async fn logged(waybill: &mut Deployment, text: &str) {
    let said = |line: &serde_json::Value| line["message"].as_str()?.contains(text).then_some(());
    waybill.gateway.process.logged(text, said).await;
}

#[tokio::test]
async fn a_call_over_tls_is_answered_and_one_in_the_clear_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let waybill = deployment(&authority, dir.path(), &[]).await;

    let mut client = Shows::default().on(waybill.gateway.secure_channel(authority.trusting()));
    client.create_order(order_of("ada", "r-1", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.gateway.health("").await, None, "in the clear");
    assert!(!is_trusted(&waybill, &Authority::new()).await);
}

#[tokio::test]
async fn a_new_certificate_ends_nothing_that_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    let waybill = Arc::new(deployment(&old, dir.path(), &[]).await);
    let channel = waybill.gateway.secure_channel(old.trusting());
    let mut client = Shows::default().on(channel.clone());
    let order = client.create_order(order_of("ada", "r-1", vec![item("widget", 1)])).await.unwrap();
    let order_id = order.into_inner().order.unwrap().order_id;

    let watch = WatchOrderRequest { order_id: order_id.clone(), after_revision: 0 };
    let mut watch = client.watch_order(watch).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("its creation");
    let swapped = Arc::new(AtomicBool::new(false));
    let calling = tokio::spawn(call_until(channel, order_id.clone(), swapped.clone()));

    new.gateway().write(dir.path());
    eventually("the new certificate", async || is_trusted(&waybill, &new).await.then_some(())).await;
    assert!(!is_trusted(&waybill, &old).await, "the old certificate is no longer shown");
    swapped.store(true, Ordering::Relaxed);
    calling.await.expect("no call fails");

    // The stream that was open before sees what comes over a new connection.
    let mut other = Shows::default().on(waybill.gateway.secure_channel(new.trusting()));
    other.cancel_order(CancelOrderRequest { order_id, message: String::new() }).await.unwrap();
    let event = timeout(PATIENCE, watch.message()).await.expect("an event").unwrap().unwrap().event;
    assert!(matches!(event.unwrap().detail, Some(Detail::Cancelled(_))));
}

async fn call_until(channel: Channel, order_id: String, done: Arc<AtomicBool>) {
    let mut client = Shows::default().on(channel);
    while !done.load(Ordering::Relaxed) {
        client.get_order(GetOrderRequest { order_id: order_id.clone() }).await.unwrap();
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_leave_the_certificate_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let mut waybill = deployment(&authority, dir.path(), &[]).await;
    // A certificate without its key, as for the moment between two writes.
    let new = Authority::new();
    let certified = new.gateway();
    replace(dir.path(), "tls.crt", &certified.cert);
    logged(&mut waybill, "not reloaded").await;
    assert!(is_trusted(&waybill, &authority).await);
    replace(dir.path(), "tls.key", &certified.key);
    eventually("the new certificate", async || is_trusted(&waybill, &new).await.then_some(())).await;
}

#[tokio::test]
async fn a_handshake_that_stalls_holds_up_nobody_and_takes_up_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let mut waybill = deployment(&authority, dir.path(), &[("MAX_CONNECTIONS", "3")]).await;
    // A ClientHello that does not go on.
    let stall = async || {
        let mut stalled = TcpStream::connect(&waybill.gateway.grpc_addr).await.unwrap();
        stalled.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
        stalled
    };
    eventually("a call beside a handshake that stalls", async || {
        let stalled = stall().await;
        // Answered while the other was still there, and not once it had been sent away.
        let answered = is_trusted(&waybill, &authority).await;
        let waits = stalled.try_read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        (answered && waits).then_some(())
    })
    .await;

    let mut stalled = [stall().await, stall().await, stall().await];
    logged(&mut waybill, "connection limit reached").await;
    // Once the stalled ones have been sent away.
    eventually("a place", async || is_trusted(&waybill, &authority).await.then_some(())).await;
    drop(timeout(PATIENCE, stalled[0].read_to_end(&mut Vec::new())).await.expect("an end in time"));
}

#[tokio::test]
async fn peers_are_told_apart_by_their_addresses_over_tls_too() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let limits = [("RATE_LIMIT", "1"), ("RATE_BURST", "10")];
    let waybill = deployment(&authority, dir.path(), &limits).await;
    let from = |address: &str| {
        let endpoint = Channel::from_shared(format!("https://{}", waybill.gateway.grpc_addr)).unwrap();
        let endpoint = endpoint.local_address(Some(address.parse().unwrap()));
        Shows::default().on(endpoint.tls_config(authority.trusting()).unwrap().connect_lazy())
    };
    // Costs all of the burst.
    let list = || ListOrdersRequest { customer_id: "ada".to_owned(), ..Default::default() };
    from("127.0.0.1").list_orders(list()).await.unwrap();
    let refused = from("127.0.0.1").list_orders(list()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.get_details_quota_failure().unwrap().violations[0].subject, "peer");
    from("127.0.0.2").list_orders(list()).await.unwrap();
}
