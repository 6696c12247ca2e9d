//! A replica that is behind answers as it knows it, and nobody decides for good by that.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer;
use backbone::broker::streams::{DEAD_LETTERS, ORDERS};
use futures::StreamExt;
use harness::{Deployment, Options, PATIENCE, item, order_of};
use proto::orders::v1::OrderStatus;
use tokio::time::timeout;

/// Longer than the test takes.
const PAUSE: Duration = Duration::from_secs(600);

#[tokio::test]
async fn a_step_that_is_shown_an_order_as_it_was_before_the_event_believes_the_event() {
    let processors = vec![("ACK_WAIT", "5m".to_owned())];
    let mut waybill = Deployment::start_with(Options { processors, ..Options::default() }).await;
    waybill.steps_are_open().await;
    waybill.kill_processors("payment");
    let order = waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    // A step reads the order of an event that is older than its consumer, which delivers nothing yet.
    let jetstream = waybill.jetstream().await;
    let stream = jetstream.get_stream(ORDERS).await.unwrap();
    let consumer = waybill.consumer("payment").await.cached_info().config.clone();
    let pause_until = Some((SystemTime::now() + PAUSE).into());
    stream.delete_consumer("payment").await.unwrap();
    stream.create_consumer(consumer::Config { pause_until, ..consumer }).await.unwrap();
    waybill.restart_processor("payment");
    waybill.steps_are_open().await;

    // In the place of the broker somebody answers who has heard of nothing but the first event.
    let (config, created) = (stream.cached_info().config.clone(), stream.get_raw_message(1).await.unwrap());
    let mut closed = config.clone();
    closed.allow_direct = false;
    jetstream.update_stream(closed).await.unwrap();
    let client = jetstream.client();
    let mut questions = client.subscribe(format!("$JS.API.DIRECT.GET.{ORDERS}.>")).await.unwrap();
    client.flush().await.unwrap();
    stream.resume_consumer("payment").await.unwrap();
    let question = timeout(PATIENCE, questions.next()).await.unwrap().unwrap();
    let mut headers = created.headers.clone();
    headers.insert("Nats-Stream", ORDERS);
    headers.insert("Nats-Subject", created.subject.as_str());
    headers.insert("Nats-Sequence", created.sequence.to_string());
    headers.insert("Nats-Time-Stamp", "2026-01-01T00:00:00Z");
    client.publish_with_headers(question.reply.unwrap(), headers, created.payload).await.unwrap();
    client.flush().await.unwrap();
    drop(questions);
    jetstream.update_stream(config).await.unwrap();

    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
}

#[tokio::test]
async fn an_order_is_not_refused_because_a_replica_knows_of_no_stock() {
    let mut waybill = Deployment::start().await;
    waybill.steps_are_open().await;
    let jetstream = waybill.jetstream().await;
    let config = jetstream.get_stream("KV_INVENTORY").await.unwrap().cached_info().config.clone();
    let mut closed = config.clone();
    closed.allow_direct = false;
    jetstream.update_stream(closed).await.unwrap();
    let client = jetstream.client();
    let mut questions = client.subscribe("$JS.API.DIRECT.GET.KV_INVENTORY").await.unwrap();
    client.flush().await.unwrap();

    let order = waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
    // Another stream is asked in its place, and has nothing of it.
    let question = questions.next().await.unwrap();
    let elsewhere = format!("$JS.API.DIRECT.GET.{DEAD_LETTERS}");
    client.publish_with_reply(elsewhere, question.reply.unwrap(), question.payload).await.unwrap();
    client.flush().await.unwrap();
    drop(questions);
    jetstream.update_stream(config).await.unwrap();

    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.held("widget").await, 1);
}
