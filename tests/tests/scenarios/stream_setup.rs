//! The stream is set up where it is missing, and left alone where touching it could lose orders.

use std::time::Duration;

use async_nats::jetstream::kv;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use backbone::broker::streams::ORDERS;
use harness::{Deployment, Options, eventually, item, order_of};
use processor::inventory::BUCKET;
use proto::orders::v1::OrderStatus;
use serde_json::Value;
use tonic::Code;

async fn stream_config(waybill: &Deployment) -> Config {
    waybill.jetstream().await.get_stream(ORDERS).await.unwrap().cached_info().config.clone()
}

#[tokio::test]
async fn a_second_start_finds_the_stream_as_the_first_made_it() {
    let mut waybill = Deployment::start().await;
    let made = stream_config(&waybill).await;
    assert_eq!((made.storage, made.discard), (StorageType::File, DiscardPolicy::New));
    assert!(made.allow_direct && made.republish.is_some());

    waybill.restart_gateway().await;
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.kill_processors(step);
        waybill.start_processor(step);
    }
    let order = waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(stream_config(&waybill).await, made);
}

#[tokio::test]
async fn stock_that_is_there_is_not_set_again_by_a_restart() {
    let options = Options { stock: vec![("widget", 5)], ..Options::default() };
    let mut waybill = Deployment::start_with(options).await;
    let order = waybill.place(order_of("customer", "", vec![item("widget", 3)])).await.unwrap();
    waybill.finished(&order.order_id).await;
    waybill.kill_processors("inventory");
    waybill.start_processor("inventory");
    let order = waybill.place(order_of("customer", "", vec![item("widget", 3)])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Rejected);
    assert_eq!(waybill.available("widget").await, 2);
}

#[tokio::test]
async fn a_bucket_that_could_lose_stock_is_refused_and_left_as_it_is() {
    let mut waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let jetstream = waybill.jetstream().await;
    let bucket = kv::Config {
        bucket: BUCKET.to_owned(),
        storage: StorageType::Memory,
        history: 5,
        max_age: Duration::from_secs(3600),
        ..kv::Config::default()
    };
    jetstream.create_key_value(bucket).await.unwrap();
    let config = async || {
        let mut stream = jetstream.get_stream(format!("KV_{BUCKET}")).await.unwrap();
        stream.info().await.unwrap().config.clone()
    };
    let before = config().await;

    waybill.start_processor("inventory");
    let inventory = waybill.processor("inventory");
    assert_eq!(inventory.ended().await.code(), Some(1));
    let said = inventory.output();
    for harm in [
        "storage is Memory, must be File",
        "max_msgs_per_subject is 5, must be 1",
        "max_age is 1h, must be unlimited",
        "allow_atomic is false, must be true",
    ] {
        assert!(said.contains(harm), "{said}");
    }
    assert_eq!(config().await, before);
}

#[tokio::test]
async fn a_stream_that_could_lose_orders_is_refused_and_left_as_it_is() {
    let mut waybill = Deployment::start_without_broker(Options { replicas: 0, ..Options::default() }).await;
    // The gateway must not find the broker before the stream is there.
    waybill.gateway.process.kill();
    waybill.broker.start().await;
    let foreign = Config {
        name: ORDERS.to_owned(),
        subjects: vec!["ORDER.>".to_owned()],
        storage: StorageType::Memory,
        discard: DiscardPolicy::Old,
        ..Config::default()
    };
    waybill.jetstream().await.create_stream(foreign).await.unwrap();
    let before = stream_config(&waybill).await;

    waybill.replace_gateway().await;
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.start_processor(step);
    }
    let processors = waybill.processors.values_mut().flatten();
    for process in processors.chain([&mut waybill.gateway.process]) {
        let status = process.ended().await;
        let said = process.output();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("storage is Memory, must be File"), "{said}");
        assert!(said.contains("discard is Old, must be New"), "{said}");
    }
    assert_eq!(stream_config(&waybill).await, before);
}

#[tokio::test]
async fn replicas_that_a_single_server_cannot_have_are_refused_by_name() {
    let replicas = vec![("ORDERS_REPLICAS", "3".to_owned())];
    let options = Options { gateway: replicas.clone(), processors: replicas, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    waybill.broker.start().await;
    let processors = waybill.processors.values_mut().flatten();
    for process in processors.chain([&mut waybill.gateway.process]) {
        let status = process.ended().await;
        let said = process.output();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("replicas > 1 not supported") && said.contains("ORDERS_REPLICAS"), "{said}");
    }
}

async fn not_ready_because(waybill: &Deployment, reason: &str) {
    eventually(&format!("/readyz with {reason:?}"), async || {
        let (status, said) = waybill.http("/readyz").await;
        (status == 503 && said.contains(reason)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_gateway_says_what_its_stream_waits_for() {
    let mut waybill = Deployment::start_without_broker(Options::default()).await;
    not_ready_because(&waybill, "not connected").await;
    waybill.broker.start_without_jetstream();
    not_ready_because(&waybill, "stream ORDERS cannot be set up yet").await;
    waybill.broker.kill();
    not_ready_because(&waybill, "not connected").await;
    waybill.broker.start().await;
    waybill.ready().await;
}

/// Every program looks at the log once a second.
async fn looked_at() {
    tokio::time::sleep(Duration::from_secs(3)).await;
}

async fn told_and_made_anew(waybill: &mut Deployment) {
    for word in ["not ready", "the order log has lost events"] {
        let told = |fields: &Value| fields["message"].as_str()?.contains(word).then_some(());
        waybill.gateway.process.logged(word, told).await;
    }
    waybill.ready().await;
}

#[tokio::test]
async fn a_stream_that_is_deleted_is_made_anew_and_orders_go_on() {
    let mut waybill = Deployment::start().await;
    let order = waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
    waybill.finished(&order.order_id).await;
    looked_at().await;
    waybill.jetstream().await.delete_stream(ORDERS).await.unwrap();
    // Not there at all, or there again and without the order.
    let refusal = waybill.get(&order.order_id).await.unwrap_err();
    assert!(matches!(refusal.code(), Code::Unavailable | Code::NotFound), "{refusal:?}");

    told_and_made_anew(&mut waybill).await;
    let order = waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
}

#[tokio::test]
async fn a_broker_that_comes_back_without_its_data_gets_a_new_stream() {
    // A processor that starts makes a missing stream too; here the gateway is alone.
    let mut waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
    looked_at().await;
    waybill.broker.lose_data();
    waybill.broker.start().await;
    told_and_made_anew(&mut waybill).await;
    waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
}
