//! The gateway finds out how safely the broker keeps orders, says so, and takes none that are kept less safely than it was
//! asked for.

use harness::{Cluster, Deployment, Options, SERVERS, eventually, free_port, item, order_of};
use proto::orders::v1::OrderStatus;
use tonic::Code;
use tonic_types::StatusExt;

fn strict(more: &[(&'static str, String)]) -> Options {
    let gateway = [&[("DURABILITY", "strict".to_owned())], more].concat();
    Options { gateway, ..Options::default() }
}

/// Waits until /readyz says this, with that status.
async fn readyz(waybill: &Deployment, status: u16, said: &str) {
    eventually(&format!("{status} with {said:?}"), async || {
        let answer = waybill.http("/readyz").await;
        (answer.0 == status && answer.1.contains(said)).then_some(())
    })
    .await;
}

async fn below_wanted(waybill: &Deployment) -> Option<f64> {
    waybill.scrape().await.sum("waybill_durability_below_wanted", &[])
}

#[tokio::test]
async fn a_single_server_that_does_not_write_through_gets_no_orders_if_that_is_too_little() {
    let mut waybill = Deployment::start_without_broker(strict(&[])).await;
    waybill.broker.start().await;
    readyz(&waybill, 503, "durability is below DURABILITY=strict (process:").await;
    assert_eq!(waybill.http("/health").await.0, 200);
    assert_eq!(below_wanted(&waybill).await, Some(1.0));
    let refused = waybill.place(order_of("ada", "a", vec![item("widget", 1)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "NOT_DURABLE");
    assert!(refused.get_details_retry_info().is_some());
    assert!(waybill.messages().await.is_empty());

    // To whom it is enough, it is said all the same.
    let any = waybill.gateway_with("gateway-2", vec![("DURABILITY", "any".to_owned())]).await;
    assert!(any.http("/readyz").await.1.contains("process"), "{:?}", any.http("/readyz").await);
}

#[tokio::test]
async fn a_server_that_writes_through_and_says_so_gets_orders() {
    let port = free_port();
    let monitor = ("NATS_MONITOR_URL", format!("http://127.0.0.1:{port}"));
    let mut waybill = Deployment::start_without_broker(strict(&[monitor])).await;
    // By its name alone nobody could tell it from the one that it was before.
    let http = format!("server_name: one\nhttp: \"127.0.0.1:{port}\"");
    waybill.broker.start_configured("sync_interval: always", &http);
    readyz(&waybill, 200, "durability: fsync").await;
    assert_eq!(below_wanted(&waybill).await, Some(0.0));
    let order = waybill.place(order_of("ada", "a", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);

    // It comes back, and writes through no longer.
    waybill.broker.kill();
    waybill.broker.start_configured("", &http);
    readyz(&waybill, 503, "durability is below DURABILITY=strict (process:").await;
    let refused = waybill.place(order_of("ada", "b", vec![item("widget", 1)])).await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "NOT_DURABLE");
    waybill.broker.kill();
    waybill.broker.start_configured("sync_interval: always", &http);
    readyz(&waybill, 200, "durability: fsync").await;
}

#[tokio::test]
async fn three_servers_get_orders() {
    let options = Options { servers: SERVERS, ..strict(&[]) };
    let mut waybill = Deployment::start_without_broker(options).await;
    let mut cluster = Cluster::start(&mut waybill);
    readyz(&waybill, 200, "durability: replicated").await;
    let order = waybill.place(order_of("ada", "a", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    let current = eventually("all copies", async || {
        let scrape = waybill.scrape().await;
        scrape
            .sum("waybill_stream_replicas_current", &[("stream", "ORDERS")])
            .filter(|current| *current == 3.0)
    });
    assert_eq!(current.await, 3.0);
    // One that is gone is noticed.
    cluster.server(&mut waybill, 2).kill();
    eventually("two copies", async || {
        let scrape = waybill.scrape().await;
        let current = scrape.sum("waybill_stream_replicas_current", &[("stream", "ORDERS")]);
        (current == Some(2.0) && below_wanted(&waybill).await == Some(0.0)).then_some(())
    })
    .await;
}
