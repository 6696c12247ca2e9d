//! A consumer that is there and delivers nothing, although there is work, is noticed and opened anew.

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use backbone::stream::ORDERS;
use harness::{Deployment, Options, Relay, eventually, item, order_of};
use proto::orders::v1::{Order, OrderStatus};
use serde_json::Value;

use crate::accounting::each_is_carried_out_once;
use crate::redelivery::take_and_die;

async fn place(waybill: &Deployment, request_id: &str) -> Order {
    waybill.place(order_of("customer", request_id, vec![item("widget", 1)])).await.unwrap()
}

/// Waits until inventory says that it opened its consumer anew, for a reason of which this is a part.
async fn opened_anew(waybill: &mut Deployment, reason: &str) {
    let said = |fields: &Value| {
        let lost = fields["message"] == "consumer lost, opened anew";
        (lost && fields["reason"].as_str()?.contains(reason)).then_some(())
    };
    waybill.processor("inventory").logged("a consumer that is opened anew", said).await;
}

#[tokio::test]
async fn a_subscription_that_the_broker_has_forgotten_is_made_anew() {
    let mut waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let relay = Relay::start(waybill.broker.address()).await;
    waybill.start_processor_at("inventory", relay.url());
    waybill.start_processor("payment");
    waybill.start_processor("fulfilment");
    let first = place(&waybill, "first").await;
    waybill.finished(&first.order_id).await;
    waybill.idle("inventory").await;

    relay.lose_subscription();
    // The client asks again for what its workers can take, and the broker no longer knows whom to answer.
    eventually("a broker that forgets", async || relay.is_done().then_some(())).await;
    let second = place(&waybill, "second").await;
    opened_anew(&mut waybill, "no sign of life").await;
    each_is_carried_out_once(&waybill, &[first, second]).await;
}

#[tokio::test]
async fn a_consumer_that_somebody_has_narrowed_is_widened_again() {
    let mut options = Options::default();
    options.processors.push(("ACK_WAIT", "1h".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    waybill.idle("inventory").await;
    let mut consumer = waybill.consumer("inventory").await;
    // One message is with somebody who says nothing, and one is all that may be out.
    waybill.kill_processors("inventory");
    eventually("no worker that waits", async || (consumer.info().await.ok()?.num_waiting == 0).then_some(()))
        .await;
    let held = place(&waybill, "held").await;
    take_and_die(&consumer).await;
    let config = consumer.info().await.unwrap().config.clone();
    let narrow = pull::Config {
        durable_name: Some("inventory".to_owned()),
        max_ack_pending: 1,
        ack_wait: Duration::from_secs(3600),
        filter_subjects: config.filter_subjects,
        ..pull::Config::default()
    };
    waybill.start_processor("inventory");
    eventually("a worker that waits", async || (consumer.info().await.ok()?.num_waiting > 0).then_some(()))
        .await;
    let stream = waybill.jetstream().await.get_stream(ORDERS).await.unwrap();
    stream.create_consumer(narrow).await.unwrap();
    let order = place(&waybill, "order").await;
    opened_anew(&mut waybill, "none was delivered").await;
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.get(&held.order_id).await.unwrap().status(), OrderStatus::Accepted);
}
