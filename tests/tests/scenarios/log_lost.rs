//! Events that the log loses are missed: by a line, a metric and the watches of their orders.

use std::time::Duration;

use async_nats::jetstream::Context;
use backbone::broker::streams::{DEAD_LETTERS, ORDERS};
use harness::{
    Deployment, Options, PATIENCE, Process, Scrape, Watcher, eventually, http_get, item, order_of,
};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{Order, OrderStatus, WatchOrdersRequest};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const LOST: &str = "the order log has lost events";
const LOST_EVENTS: &str = "waybill_log_lost_events";

async fn place(waybill: &Deployment, customer: &str) -> Order {
    waybill.place(order_of(customer, "", vec![item("widget", 1)])).await.unwrap()
}

/// Orders that stand at RESERVED, because nobody takes payments.
async fn reserved(waybill: &Deployment, orders: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..orders {
        ids.push(place(waybill, "customer").await.order_id);
    }
    for id in &ids {
        waybill.reached(id, OrderStatus::Reserved).await;
    }
    looked_at().await;
    ids
}

async fn without_payments() -> Deployment {
    let mut waybill = Deployment::start().await;
    waybill.kill_processors("payment");
    waybill
}

/// A watch that has told all there is.
async fn caught_up(waybill: &Deployment, order_id: &str) -> Watcher {
    let mut watch = waybill.watch(order_id, 0).await.unwrap();
    while watch.event().await.order.unwrap().status() != OrderStatus::Reserved {}
    watch
}

/// Ends with DATA_LOSS, for a reason that a program can read.
fn is_lost(status: &Status) {
    assert_eq!(status.code(), Code::DataLoss, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "LOG_REPLACED");
}

async fn customer_is_told(waybill: &Deployment) -> impl Future<Output = ()> + use<> {
    let request = WatchOrdersRequest { customer_id: "customer".to_owned(), after_revision: 0 };
    let mut client = OrderServiceClient::new(waybill.channel());
    let mut stream = client.watch_orders(request).await.unwrap().into_inner();
    async move {
        let end = async {
            loop {
                if let Err(status) = stream.message().await {
                    return status;
                }
            }
        };
        is_lost(&timeout(PATIENCE, end).await.expect("an end of WatchOrders"));
    }
}

/// The fields of the line that a process says of it.
async fn told(process: &mut Process) -> Value {
    process.logged(LOST, |fields| fields["message"].as_str()?.contains(LOST).then(|| fields.clone())).await
}

/// Every program looks at the log once a second. What is lost before its first look it cannot miss.
async fn looked_at() {
    sleep(Duration::from_secs(3)).await;
}

async fn lost_events(addr: &str) -> Option<f64> {
    let (_, text) = http_get(addr, "/metrics").await?;
    Scrape::read(&text).samples.iter().find(|sample| sample.name == LOST_EVENTS).map(|sample| sample.value)
}

async fn shows(addr: &str, events: f64) {
    eventually(&format!("{LOST_EVENTS} {events}"), async || {
        (lost_events(addr).await? == events).then_some(())
    })
    .await;
}

async fn messages(jetstream: &Context) -> u64 {
    jetstream.get_stream(ORDERS).await.unwrap().cached_info().state.messages
}

#[tokio::test]
async fn a_purge_of_acknowledged_orders_is_told_counted_and_ends_their_watches() {
    let mut waybill = without_payments().await;
    let ids = reserved(&waybill, 20).await;
    let watch = caught_up(&waybill, &ids[0]).await;
    let customer = customer_is_told(&waybill).await;
    let jetstream = waybill.jetstream().await;
    let before = messages(&jetstream).await;
    assert_eq!(before, 40);
    jetstream.get_stream(ORDERS).await.unwrap().purge().await.unwrap();

    let line = told(&mut waybill.gateway.process).await;
    assert_eq!((line["events"].as_u64(), line["from_sequence"].as_u64()), (Some(40), Some(1)), "{line}");
    assert_eq!(line["to_sequence"].as_u64(), Some(40), "{line}");
    for time in ["from_time", "to_time"] {
        assert!(line[time].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    }
    shows(&waybill.gateway.ops_addr, 40.0).await;
    let inventory = waybill.processor("inventory").ops_addr().await;
    shows(&inventory, 40.0).await;
    let mut watch = watch;
    is_lost(&watch.next().await.unwrap_err());
    customer.await;

    // Said once, and known to those who start later, until somebody acknowledges it.
    place(&waybill, "customer").await;
    let said = waybill.gateway.process.output();
    let lines: Vec<_> = said.lines().filter(|line| line.contains(LOST)).collect();
    assert!(lines.len() == 1 && lines[0].contains("\"level\":\"ERROR\""), "{lines:?}");
    // A user of least privilege may not write it down for them; then those that run through it tell.
    if !waybill.broker.has_users() {
        waybill.restart_gateway().await;
    }
    shows(&waybill.gateway.ops_addr, 40.0).await;
    waybill.acknowledge_loss().await;
    shows(&waybill.gateway.ops_addr, 0.0).await;
    shows(&inventory, 0.0).await;
    waybill.restart_gateway().await;
    shows(&waybill.gateway.ops_addr, 0.0).await;
}

#[tokio::test]
async fn orders_that_are_purged_alone_end_their_watches_and_no_others() {
    let mut waybill = without_payments().await;
    let ids = reserved(&waybill, 2).await;
    let mut watches = [caught_up(&waybill, &ids[0]).await, caught_up(&waybill, &ids[1]).await];
    let jetstream = waybill.jetstream().await;
    let subjects = backbone::log::subjects::order(&ids[0].parse().unwrap());
    let stream = jetstream.get_stream(ORDERS).await.unwrap();
    let purged = stream.purge().filter(&subjects).await.unwrap();
    assert_eq!(purged.purged, 2);
    let line = told(&mut waybill.gateway.process).await;
    assert_eq!(line["events"].as_u64(), Some(2), "{line}");
    is_lost(&watches[0].next().await.unwrap_err());
    let open = timeout(Duration::from_secs(2), watches[1].next()).await;
    assert!(open.is_err(), "{open:?}");
}

#[tokio::test]
async fn a_stream_that_is_deleted_is_told_with_what_it_held() {
    let mut waybill = without_payments().await;
    let ids = reserved(&waybill, 5).await;
    let mut watch = caught_up(&waybill, &ids[0]).await;
    waybill.jetstream().await.delete_stream(ORDERS).await.unwrap();
    waybill.broker.provision().await;
    let line = told(&mut waybill.gateway.process).await;
    assert_eq!((line["events"].as_u64(), line["to_sequence"].as_u64()), (Some(10), Some(10)), "{line}");
    shows(&waybill.gateway.ops_addr, 10.0).await;
    is_lost(&watch.next().await.unwrap_err());
}

#[tokio::test]
async fn a_store_that_is_wiped_while_gateways_are_down_is_told_by_steps_that_run() {
    let mut waybill = without_payments().await;
    reserved(&waybill, 5).await;
    waybill.gateway.process.kill();
    waybill.broker.lose_data();
    waybill.broker.start().await;
    // The loss is known soon, and with it that the stock is missing: this gateway need not get ready.
    waybill.replace_gateway().await;
    let line = told(waybill.processor("fulfilment")).await;
    assert_eq!(line["events"].as_u64(), Some(10), "{line}");
    let fulfilment = waybill.processor("fulfilment").ops_addr().await;
    shows(&fulfilment, 10.0).await;
}

/// Three orders are FAILED.
async fn with_letters() -> Deployment {
    let mut options = Options::default();
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    let waybill = Deployment::start_with(options).await;
    let key = processor::inventory::stock_key("gadget");
    let jetstream = waybill.jetstream().await;
    eventually("a damaged record", async || {
        let bucket = jetstream.get_key_value(processor::inventory::BUCKET).await.ok()?;
        bucket.get(&key).await.ok()??;
        bucket.put(&key, "oops".into()).await.ok()
    })
    .await;
    for _ in 0..3 {
        let order = waybill.place(order_of("customer", "", vec![item("gadget", 1)])).await.unwrap();
        waybill.reached(&order.order_id, OrderStatus::Failed).await;
    }
    waybill
}

#[tokio::test]
async fn open_letters_that_are_lost_with_their_stream_are_counted() {
    let mut waybill = with_letters().await;
    let counted = async |waybill: &Deployment, name: &str, letters: f64| {
        eventually(&format!("{name} {letters}"), async || {
            (waybill.scrape().await.sum(name, &[])? == letters).then_some(())
        })
        .await;
    };
    counted(&waybill, "waybill_dead_letters_open", 3.0).await;
    waybill.jetstream().await.delete_stream(DEAD_LETTERS).await.unwrap();
    if waybill.broker.has_users() {
        waybill.broker.provision().await;
    }
    counted(&waybill, "waybill_dead_letters_lost", 3.0).await;
    let lost = |fields: &Value| {
        fields["message"].as_str()?.contains("has lost open dead letters").then(|| fields["letters"].as_u64())
    };
    assert_eq!(waybill.gateway.process.logged("lost letters", lost).await, Some(3));
    waybill.acknowledge_loss().await;
    counted(&waybill, "waybill_dead_letters_lost", 0.0).await;
}

#[tokio::test]
async fn a_log_that_is_lost_while_nobody_runs_is_told_by_the_open_letters() {
    let mut waybill = with_letters().await;
    waybill.gateway.process.kill();
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.kill_processors(step);
    }
    waybill.jetstream().await.delete_stream(ORDERS).await.unwrap();
    waybill.broker.provision().await;
    waybill.restart_gateway().await;
    let line = told(&mut waybill.gateway.process).await;
    assert!(line["events"].as_u64().is_some_and(|events| events >= 5), "{line}");
}

#[tokio::test]
async fn what_expires_is_no_loss() {
    let mut options = Options::default();
    for settings in [&mut options.gateway, &mut options.processors] {
        settings.push(("ORDERS_RETENTION", "6s".to_owned()));
    }
    let waybill = Deployment::start_with(options).await;
    let first = place(&waybill, "customer").await;
    for _ in 0..3 {
        for _ in 0..5 {
            place(&waybill, "customer").await;
        }
        sleep(Duration::from_secs(1)).await;
    }
    let jetstream = waybill.jetstream().await;
    eventually("a log of which all has expired", async || (messages(&jetstream).await == 0).then_some(()))
        .await;
    assert_eq!(waybill.get(&first.order_id).await.unwrap_err().code(), Code::NotFound);
    looked_at().await;
    assert_eq!(lost_events(&waybill.gateway.ops_addr).await, Some(0.0));
    assert!(!waybill.gateway.process.output().contains(LOST));
}
