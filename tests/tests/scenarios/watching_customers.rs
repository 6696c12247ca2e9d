//! A watcher of a customer sees the events of all their orders, each exactly once and in the log's order.

use std::collections::HashMap;

use backbone::log::subjects::EventKind;
use harness::{Deployment, Load, Options, PATIENCE, eventually, item, order_of, these};
use proto::orders::v1::{
    CreateOrderRequest, OrderEvent, OrderStatus, WatchOrdersRequest, WatchOrdersResponse,
};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::accounting::WHOLE_WAY;
use crate::dead_letters::with_damage;
use crate::events::{after, history, kind, revisions};

const ORDERS: usize = 50;

async fn watch(
    waybill: &Deployment,
    customer_id: &str,
    after_revision: u64,
) -> Result<Streaming<WatchOrdersResponse>, Status> {
    let request = WatchOrdersRequest { customer_id: customer_id.to_owned(), after_revision };
    Ok(waybill.client().await.watch_orders(request).await?.into_inner())
}

/// The next `count` events.
async fn take(watcher: &mut Streaming<WatchOrdersResponse>, count: usize) -> Vec<OrderEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        let message = timeout(PATIENCE, watcher.message()).await.expect("an event in time").unwrap();
        events.push(message.expect("a stream that goes on").event.unwrap());
    }
    events
}

fn orders_of(customer_id: &str, requests: std::ops::Range<usize>) -> Vec<CreateOrderRequest> {
    requests.map(|i| order_of(customer_id, &format!("r-{i}"), vec![item("widget", 1)])).collect()
}

/// So many messages that a watch does not have the broker count those of the customer.
const LONG: usize = 70_000;

/// The whole way of each order, in the log's order.
fn assert_whole(events: &[OrderEvent], orders: usize) {
    let revisions = revisions(events);
    assert!(revisions.is_sorted_by(|one, next| one < next), "{revisions:?}");
    let mut ways: HashMap<&str, Vec<EventKind>> = HashMap::new();
    for event in events {
        ways.entry(&after(event).order_id).or_default().push(kind(event));
    }
    assert_eq!(ways.len(), orders);
    assert!(ways.values().all(|way| way == &WHOLE_WAY), "{ways:?}");
}

#[tokio::test]
async fn orders_that_are_placed_while_one_watches_are_seen_from_their_first_event_on() {
    let waybill = Deployment::start().await;
    let mut watcher = watch(&waybill, "ada", 0).await.unwrap();
    let others = Load::start(waybill.channel(), orders_of("bob", 0..ORDERS));
    Load::start(waybill.channel(), orders_of("ada", 0..ORDERS)).all().await;
    others.all().await;
    let events = take(&mut watcher, ORDERS * WHOLE_WAY.len()).await;
    assert_whole(&events, ORDERS);
    assert!(events.iter().all(|event| after(event).customer_id == "ada"));
}

#[tokio::test]
async fn a_watch_is_resumed_behind_the_last_revision_seen() {
    let waybill = Deployment::start().await;
    let load = Load::start(waybill.channel(), orders_of("ada", 0..ORDERS));
    let mut seen = Vec::new();
    // Cut off again and again, in the middle of the orders' way.
    while seen.len() < ORDERS * WHOLE_WAY.len() {
        let last = revisions(&seen).last().copied().unwrap_or(0);
        let mut watcher = watch(&waybill, "ada", last).await.unwrap();
        seen.extend(take(&mut watcher, 20).await);
    }
    load.all().await;
    assert_whole(&seen, ORDERS);
}

#[tokio::test]
async fn events_on_more_subjects_than_one_answer_has_are_all_seen() {
    let waybill = Deployment::start().await;
    let orders = 400;
    waybill.lengthen_log(LONG).await;
    for placed in Load::start(waybill.channel(), orders_of("ada", 0..orders)).all().await {
        waybill.finished(&placed.order_id).await;
    }
    waybill.lengthen_log(LONG).await;
    let mut watcher = watch(&waybill, "ada", 0).await.unwrap();
    let seen = take(&mut watcher, orders * WHOLE_WAY.len()).await;
    assert_whole(&seen, orders);
    for resumed in [1, 700, seen.len() - 1] {
        let mut watcher = watch(&waybill, "ada", revisions(&seen)[resumed - 1]).await.unwrap();
        assert_eq!(take(&mut watcher, seen.len() - resumed).await, seen[resumed..]);
    }
    // Live events follow.
    let order = waybill.place(order_of("ada", "one-more", vec![item("widget", 1)])).await.unwrap();
    waybill.finished(&order.order_id).await;
    let more = take(&mut watcher, WHOLE_WAY.len()).await;
    assert_whole(&more, 1);
}

#[tokio::test]
async fn events_that_happened_to_an_order_more_than_once_are_all_seen() {
    let waybill = with_damage(1).await;
    let mut watcher = watch(&waybill, "customer", 0).await.unwrap();
    waybill.place(order_of("customer", "other", vec![item("widget", 1)])).await.unwrap();
    let order = waybill.place(order_of("customer", "", vec![item("gadget", 1)])).await.unwrap();
    let mut order = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    for _ in 0..3 {
        let letter = order.dead_letter_id.clone();
        waybill.redrive(these(&[&letter])).await.unwrap();
        order = eventually("another failure", async || {
            let order = waybill.get(&order.order_id).await.ok()?;
            let is_new = order.status() == OrderStatus::Failed && order.dead_letter_id != letter;
            is_new.then_some(order)
        })
        .await;
    }
    // Created and four failures, with a redrive between any two; and the other order's whole way.
    let count = 1 + 4 + 3 + WHOLE_WAY.len();
    let live = take(&mut watcher, count).await;
    let revisions = revisions(&live);
    assert!(revisions.is_sorted_by(|one, next| one < next), "{revisions:?}");
    let of_order = live.iter().filter(|event| after(event).order_id == order.order_id).cloned();
    assert_eq!(of_order.collect::<Vec<_>>(), history(&waybill.client().await, &order.order_id).await);
    waybill.lengthen_log(LONG).await;
    for resumed in 0..count {
        let after_revision = resumed.checked_sub(1).map_or(0, |last| revisions[last]);
        let mut watcher = watch(&waybill, "customer", after_revision).await.unwrap();
        assert_eq!(take(&mut watcher, count - resumed).await, live[resumed..]);
    }
}

#[tokio::test]
async fn nothing_is_missed_or_repeated_when_the_broker_dies() {
    let mut waybill = Deployment::start().await;
    let mut watcher = watch(&waybill, "ada", 0).await.unwrap();
    let mut load = Load::start(waybill.channel(), orders_of("ada", 0..500));
    load.acknowledged(100).await;
    waybill.broker.kill();
    waybill.broker.start().await;
    load.all().await;
    assert_whole(&take(&mut watcher, 500 * WHOLE_WAY.len()).await, 500);
}

#[tokio::test]
async fn a_watch_that_cannot_begin_says_why() {
    let waybill = Deployment::start().await;
    let refused = async |customer_id: &str, after_revision: u64| {
        let status = watch(&waybill, customer_id, after_revision).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        status.get_details_bad_request().unwrap().field_violations.remove(0).field
    };
    assert_eq!(refused("", 0).await, "customer_id");
    assert_eq!(refused("a b", 0).await, "customer_id");
    let order = waybill.place(order_of("ada", "r", vec![item("widget", 1)])).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    assert_eq!(refused("ada", order.revision + 1).await, "after_revision");
    watch(&waybill, "ada", order.revision).await.unwrap();
}

#[tokio::test]
async fn nobody_waits_for_revisions_that_a_lost_log_will_not_have() {
    let mut waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    for beyond in [1, 1000, u64::MAX - 1, u64::MAX] {
        let refused = watch(&waybill, "newcomer", beyond).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    Load::start(waybill.channel(), orders_of("ada", 0..ORDERS)).all().await;
    let mut watcher = watch(&waybill, "ada", 0).await.unwrap();
    let seen = revisions(&take(&mut watcher, ORDERS).await);
    let order_id = waybill.place(order_of("bob", "", vec![item("widget", 1)])).await.unwrap().order_id;
    let mut of_order = waybill.watch(&order_id, 0).await.unwrap();
    of_order.event().await;

    // A gateway that has not looked for the bucket yet cannot tell that there was none.
    eventually("a look for the bucket", async || {
        let missing = waybill.scrape().await.sum("waybill_stock_bucket_missing", &[]);
        (missing == Some(0.0)).then_some(())
    })
    .await;
    waybill.broker.lose_data();
    waybill.broker.start().await;
    waybill.ready().await;
    for end in [
        timeout(PATIENCE, watcher.message()).await.expect("an end in time").unwrap_err(),
        timeout(PATIENCE, of_order.next()).await.expect("an end in time").unwrap_err(),
    ] {
        assert_eq!(end.get_details_error_info().unwrap().reason, "LOG_REPLACED");
    }
    let resumed = watch(&waybill, "ada", *seen.last().unwrap()).await.unwrap_err();
    assert_eq!(resumed.code(), Code::InvalidArgument, "{resumed:?}");
    let mut anew = watch(&waybill, "ada", 0).await.unwrap();
    Load::start(waybill.channel(), orders_of("ada", 0..1)).all().await;
    assert_eq!(revisions(&take(&mut anew, 1).await), [1]);
}

#[tokio::test]
async fn large_events_are_watched_like_small_ones() {
    let waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let items: Vec<_> = (0..100).map(|i| item(&format!("{:s<64}", format!("sku-{i}-")), 1)).collect();
    // More than one look at the log brings.
    let requests = (0..ORDERS).map(|i| order_of("ada", &format!("r-{i}"), items.clone())).collect();
    Load::start(waybill.channel(), requests).all().await;
    let events = take(&mut watch(&waybill, "ada", 0).await.unwrap(), ORDERS).await;
    assert!(revisions(&events).is_sorted_by(|one, next| one < next));
}
