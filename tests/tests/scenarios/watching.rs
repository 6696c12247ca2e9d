//! A watcher sees each event exactly once and in order, whatever it missed live.

use backbone::broker::streams::ORDERS;
use backbone::log::subjects::EventKind;
use backbone::log::{Appended, OrderLog, OrderState};
use harness::{Deployment, Options, PATIENCE, item, order_of};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{OrderFulfilled, OrderStatus, PaymentCaptured, StockReserved};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::accounting::WHOLE_WAY;
use crate::events::{after, kind, kinds, revisions};

/// A deployment in which nothing fulfils, and a paid order in it.
async fn paid_order() -> (Deployment, String) {
    let mut waybill = Deployment::start().await;
    waybill.kill_processors("fulfilment");
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    (waybill, order.order_id)
}

fn refused_field(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    status.get_details_bad_request().unwrap().field_violations.remove(0).field
}

#[tokio::test]
async fn a_watch_begins_behind_the_revision_that_it_names() {
    let waybill = Deployment::start().await;
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    let all = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    assert_eq!(kinds(&all), WHOLE_WAY);

    for (i, revision) in revisions(&all).into_iter().enumerate() {
        let later = waybill.watch(&order.order_id, revision).await.unwrap().rest().await;
        assert_eq!(later, all[i + 1..], "after revision {revision}");
    }
}

#[tokio::test]
async fn a_watch_goes_on_from_history_to_live() {
    let (mut waybill, order_id) = paid_order().await;
    let mut watcher = waybill.watch(&order_id, 0).await.unwrap();
    let mut late = waybill.watch(&order_id, waybill.get(&order_id).await.unwrap().revision).await.unwrap();
    for expected in &WHOLE_WAY[..3] {
        assert_eq!(kind(&watcher.event().await), *expected);
    }
    waybill.start_processor("fulfilment");
    assert_eq!(kind(&late.event().await), EventKind::Fulfilled);
    assert_eq!(kinds(&watcher.rest().await), [EventKind::Fulfilled]);
    assert_eq!(late.rest().await, []);
}

#[tokio::test]
async fn a_watch_that_cannot_begin_says_why() {
    let waybill = Deployment::start().await;
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    let order = waybill.finished(&order.order_id).await;

    let beyond = waybill.watch(&order.order_id, order.revision + 1).await.unwrap_err();
    assert_eq!(refused_field(&beyond), "after_revision");
    for malformed in ["", "nonsense", "ORDER.>"] {
        assert_eq!(refused_field(&waybill.watch(malformed, 0).await.unwrap_err()), "order_id");
    }
    let (customer_key, order_key) = order.order_id.split_once('-').unwrap();
    let reversed: String = order_key.chars().rev().collect();
    // The last character of a key has spare bits that have to be zero, as those of 'a' are.
    let unknown = format!("{customer_key}-{}a", &reversed[..25]);
    let status = waybill.watch(&unknown, 0).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert_eq!(status.get_details_resource_info().unwrap().resource_name, unknown);
}

#[tokio::test]
async fn an_open_watch_survives_the_death_of_the_broker() {
    let (mut waybill, order_id) = paid_order().await;
    let mut first = waybill.watch(&order_id, 0).await.unwrap();
    let mut second = waybill.watch(&order_id, 0).await.unwrap();
    for expected in &WHOLE_WAY[..3] {
        assert_eq!(kind(&first.event().await), *expected);
        assert_eq!(kind(&second.event().await), *expected);
    }

    waybill.broker.kill();
    waybill.broker.start().await;
    waybill.start_processor("fulfilment");
    assert_eq!(kinds(&first.rest().await), [EventKind::Fulfilled]);
    assert_eq!(kinds(&second.rest().await), [EventKind::Fulfilled]);
}

#[tokio::test]
async fn a_watch_is_told_what_happened_while_its_gateway_was_cut_off() {
    let (mut waybill, order_id) = paid_order().await;
    let mut watcher = waybill.watch(&order_id, 0).await.unwrap();
    for expected in &WHOLE_WAY[..3] {
        assert_eq!(kind(&watcher.event().await), *expected);
    }

    // While it stands still, the broker does too, and both go on only when the order is finished.
    waybill.gateway.process.pause();
    waybill.broker.kill();
    waybill.broker.start().await;
    waybill.start_processor("fulfilment");
    waybill.idle("fulfilment").await;
    assert_eq!(waybill.history(&order_id).await, WHOLE_WAY);
    waybill.gateway.process.resume();

    assert_eq!(kinds(&watcher.rest().await), [EventKind::Fulfilled]);
}

#[tokio::test]
async fn a_watch_is_resumed_at_the_next_gateway_with_the_last_revision_seen() {
    let (mut waybill, order_id) = paid_order().await;
    let mut watcher = waybill.watch(&order_id, 0).await.unwrap();
    let mut seen = 0;
    for expected in &WHOLE_WAY[..2] {
        let event = watcher.event().await;
        assert_eq!(kind(&event), *expected);
        seen = after(&event).revision;
    }
    waybill.restart_gateway().await;
    waybill.start_processor("fulfilment");
    let resumed = waybill.watch(&order_id, seen).await.unwrap();
    assert_eq!(kinds(&resumed.rest().await), WHOLE_WAY[2..]);
}

#[tokio::test]
async fn a_watcher_that_missed_live_messages_is_filled_from_the_log() {
    let waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    let mut watcher = waybill.watch(&order.order_id, 0).await.unwrap();
    assert_eq!(kind(&watcher.event().await), EventKind::Created);

    let log = waybill.order_log().await;
    let order = log.load(&order.order_id.parse().unwrap()).await.unwrap().unwrap();
    republish(&waybill, false).await;
    let order =
        append(&waybill.step_log("inventory").await, order, Detail::Reserved(StockReserved::default())).await;
    republish(&waybill, true).await;
    let order =
        append(&waybill.step_log("payment").await, order, Detail::Paid(PaymentCaptured::default())).await;
    // The next live message shows the gap.
    assert_eq!(kind(&watcher.event().await), EventKind::Reserved);
    assert_eq!(kind(&watcher.event().await), EventKind::Paid);

    // With no further message, the regular look into the log finds what is missing.
    republish(&waybill, false).await;
    append(&waybill.step_log("fulfilment").await, order, Detail::Fulfilled(OrderFulfilled::default())).await;
    let last = watcher.event().await;
    assert_eq!(after(&last).status(), OrderStatus::Fulfilled);
    assert_eq!(watcher.rest().await, []);
}

/// Has the stream tell its watchers what is stored, or not.
async fn republish(waybill: &Deployment, on: bool) {
    let jetstream = waybill.jetstream().await;
    let mut config = jetstream.get_stream(ORDERS).await.unwrap().cached_info().config.clone();
    config.republish = on.then(|| async_nats::jetstream::stream::Republish {
        source: "ORDER.>".to_owned(),
        destination: "live.ORDER.>".to_owned(),
        headers_only: false,
    });
    jetstream.update_stream(config).await.unwrap();
}

async fn append(log: &OrderLog, order: OrderState, detail: Detail) -> OrderState {
    let deadline = Instant::now() + PATIENCE;
    match log.append(&order, detail, deadline).await.unwrap() {
        Appended::Stored(order) => order,
        Appended::Overtaken(order) => panic!("overtaken: {order:?}"),
    }
}
