//! Effect, then append, then acknowledge: a step that died between any two of them, or whose message comes
//! again for any other reason, changes nothing by working on it once more.

use std::collections::BTreeMap;

use async_nats::jetstream::consumer::PullConsumer;
use backbone::broker::streams::ORDERS;
use backbone::log::Appended;
use backbone::log::subjects::EventKind;
use futures::StreamExt;
use harness::{Deployment, Options, PATIENCE, eventually, item, order_of};
use processor::creation_time::CreationTime;
use processor::inventory::{Reservation, ReservationState, reservation_key, stock_key};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderRejected, OrderStatus};
use tokio::time::{Instant, timeout};

use crate::accounting::{STOCK, WHOLE_WAY};

const UNITS: u64 = 2;

/// A deployment whose inventory has died after it was set up, and an order that waits for it.
async fn order_without_inventory() -> (Deployment, Order) {
    let mut waybill = Deployment::start().await;
    let mut consumer = waybill.consumer("inventory").await;
    waybill.kill_processors("inventory");
    // Until the broker has noticed, it would hand the order to the dead.
    eventually("no worker that waits", async || (consumer.info().await.ok()?.num_waiting == 0).then_some(()))
        .await;
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 2)])).await.unwrap();
    (waybill, order)
}

/// Does what inventory does for an order, up to the point where it would append.
async fn reserve(waybill: &Deployment, order: &Order) {
    let inventory = waybill.inventory().await;
    inventory.put(stock_key("widget"), (STOCK - UNITS).to_string().into()).await.unwrap();
    let held = Reservation {
        creation_time: CreationTime::of(order).unwrap(),
        state: ReservationState::Held,
        units: BTreeMap::from([("widget".to_owned(), UNITS)]),
    };
    let held = serde_json::to_vec(&held).unwrap();
    inventory.put(reservation_key(&order.order_id), held.into()).await.unwrap();
}

/// Rejects an order, as another replica of inventory could.
async fn reject(waybill: &Deployment, order_id: &str) {
    let log = waybill.step_log("inventory").await;
    let order = log.load(&order_id.parse().unwrap()).await.unwrap().unwrap();
    let rejected =
        Detail::Rejected(OrderRejected { reason: "OUT_OF_STOCK".to_owned(), message: String::new() });
    let deadline = Instant::now() + PATIENCE;
    let appended = log.append(&order, rejected, deadline).await.unwrap();
    assert!(matches!(appended, Appended::Stored(_)), "{appended:?}");
}

/// Takes a step's next message and dies without a word.
pub(crate) async fn take_and_die(consumer: &PullConsumer) {
    let mut messages = consumer.fetch().max_messages(1).expires(PATIENCE).messages().await.unwrap();
    timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_reservation_whose_worker_died_before_the_append_is_held_once() {
    let (mut waybill, order) = order_without_inventory().await;
    reserve(&waybill, &order).await;
    waybill.start_processor("inventory");

    let order = waybill.finished(&order.order_id).await;
    assert_eq!(order.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.history(&order.order_id).await, WHOLE_WAY);
    assert_eq!((waybill.held("widget").await, waybill.available("widget").await), (UNITS, STOCK - UNITS));
}

#[tokio::test]
async fn a_reservation_whose_worker_died_before_the_append_is_held_once_when_redelivered() {
    let (mut waybill, order) = order_without_inventory().await;
    take_and_die(&waybill.consumer("inventory").await).await;
    reserve(&waybill, &order).await;
    waybill.start_processor("inventory");

    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!((waybill.held("widget").await, waybill.available("widget").await), (UNITS, STOCK - UNITS));
}

#[tokio::test]
async fn a_reservation_for_an_order_that_was_rejected_meanwhile_is_given_back() {
    let (mut waybill, order) = order_without_inventory().await;
    reserve(&waybill, &order).await;
    reject(&waybill, &order.order_id).await;
    waybill.start_processor("inventory");
    holds_nothing_in_the_end(&waybill, &order.order_id).await;
}

#[tokio::test]
async fn a_reservation_is_given_back_although_its_worker_died_before_it_saw_the_rejection() {
    let (mut waybill, order) = order_without_inventory().await;
    take_and_die(&waybill.consumer("inventory").await).await;
    reserve(&waybill, &order).await;
    reject(&waybill, &order.order_id).await;
    waybill.start_processor("inventory");
    holds_nothing_in_the_end(&waybill, &order.order_id).await;
}

async fn holds_nothing_in_the_end(waybill: &Deployment, order_id: &str) {
    waybill.idle("inventory").await;
    let reservation = waybill.reservation(order_id).await.unwrap();
    assert_eq!(reservation.state, ReservationState::Released);
    assert_eq!((waybill.held("widget").await, waybill.available("widget").await), (0, STOCK));
    assert_eq!(waybill.history(order_id).await, [EventKind::Created, EventKind::Rejected]);
}

#[tokio::test]
async fn a_step_that_gets_all_its_messages_again_changes_nothing() {
    let mut waybill =
        Deployment::start_with(Options { stock: vec![("widget", 10)], ..Options::default() }).await;
    let mut orders = Vec::new();
    for (customer, quantity) in [("customer", 2), ("declined-customer", 3), ("greedy-customer", 100)] {
        let order = waybill.place(order_of(customer, "request", vec![item("widget", quantity)])).await;
        orders.push(waybill.finished(&order.unwrap().order_id).await);
    }
    let reserved_then_released =
        [EventKind::Created, EventKind::Reserved, EventKind::Rejected, EventKind::Released];
    let ways = [&WHOLE_WAY[..], &reserved_then_released, &[EventKind::Created, EventKind::Rejected]];

    for step in ["inventory", "payment", "fulfilment"] {
        waybill.idle(step).await;
        waybill.kill_processors(step);
        let jetstream = waybill.jetstream().await;
        let stream = jetstream.get_stream(ORDERS).await.unwrap();
        stream.delete_consumer(step).await.unwrap();
        waybill.broker.provision().await;
        waybill.start_processor(step);
        waybill.idle(step).await;
        let delivered = waybill.consumer(step).await.cached_info().delivered.consumer_sequence;
        assert!(delivered > 0, "{step} got nothing again");

        for (order, way) in orders.iter().zip(ways) {
            assert_eq!(waybill.history(&order.order_id).await, way, "after {step} got everything again");
            assert_eq!(waybill.get(&order.order_id).await.unwrap(), *order);
        }
        assert_eq!((waybill.held("widget").await, waybill.available("widget").await), (2, 8), "{step}");
    }
}

#[tokio::test]
async fn a_step_whose_consumer_is_deleted_opens_it_anew() {
    let waybill = Deployment::start().await;
    let first = waybill.place(order_of("customer", "first", vec![item("widget", 2)])).await.unwrap();
    waybill.finished(&first.order_id).await;
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.idle(step).await;
        let stream = waybill.jetstream().await.get_stream(ORDERS).await.unwrap();
        stream.delete_consumer(step).await.unwrap();
        waybill.broker.provision().await;
    }
    let second = waybill.place(order_of("customer", "second", vec![item("widget", 2)])).await.unwrap();
    assert_eq!(waybill.finished(&second.order_id).await.status(), OrderStatus::Fulfilled);
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.idle(step).await;
    }
    for order in [first, second] {
        assert_eq!(waybill.history(&order.order_id).await, WHOLE_WAY);
    }
    assert_eq!(waybill.held("widget").await, 2 * UNITS);
}
