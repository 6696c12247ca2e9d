//! Messages on our subjects that are none of ours: passed over, set aside, kept, and no order suffers.

use async_nats::jetstream;
use backbone::log::ids::{CustomerKey, OrderId, OrderKey};
use backbone::log::subjects::{self, EventKind, LIVE_PREFIX};
use harness::{Deployment, Load, Options, PATIENCE, default_route, item, order_of};
use proto::orders::v1::{CreateOrderRequest, Order, OrderCreated, OrderStatus};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::accounting::{STOCK, WHOLE_WAY, each_is_carried_out_once, ids, widgets};
use crate::events::{kind, kinds};

const GARBAGE: &str = "\u{1}garbage";

fn request() -> CreateOrderRequest {
    order_of("customer", "request", vec![item("widget", 1)])
}

/// The id that [`request`]'s order has or will have.
fn id() -> OrderId {
    let order = OrderKey::of_request("", "customer", "request");
    OrderId { customer: CustomerKey::of("", "customer"), order }
}

async fn publish(jetstream: &jetstream::Context, subject: String, payload: impl Into<Vec<u8>>) -> u64 {
    let ack = jetstream.publish(subject, payload.into().into()).await.unwrap();
    ack.await.unwrap().sequence
}

/// Waits until `step` says that it set the message at `sequence` aside.
async fn set_aside(waybill: &mut Deployment, step: &str, sequence: u64) {
    let logged = |fields: &Value| {
        let message = fields["message"].as_str()?;
        (message == "undecodable message, stored as dead letter" && fields["sequence"] == sequence)
            .then_some(())
    };
    waybill.processor(step).logged(&format!("{step} and message {sequence}"), logged).await;
}

async fn place(waybill: &Deployment) -> Order {
    let order = waybill.place(request()).await.unwrap();
    assert_eq!(order.order_id, id().to_string());
    order
}

#[tokio::test]
async fn processors_set_foreign_messages_aside_and_go_on() {
    let mut waybill = Deployment::start().await;
    let order = place(&waybill).await;
    waybill.finished(&order.order_id).await;
    let created = waybill.messages().await.remove(0).payload;

    let jetstream = waybill.jetstream().await;
    let elsewhere = OrderId { order: OrderKey::unique(), ..id() };
    let foreign = [
        ("ORDER.1.2.3.4.inventory".to_owned(), GARBAGE.into()),
        (subjects::event(EventKind::Created, &elsewhere, "inventory"), GARBAGE.into()),
        (subjects::event(EventKind::Created, &elsewhere, "inventory"), Vec::new()),
        // An event of one order among those of another, and under the name of another event.
        (subjects::event(EventKind::Created, &elsewhere, "inventory"), created.to_vec()),
        (subjects::event(EventKind::Rejected, &id(), "inventory"), created.to_vec()),
    ];
    publish(&jetstream, "ORDER.junk".to_owned(), GARBAGE).await;
    for (subject, payload) in foreign {
        let sequence = publish(&jetstream, subject.clone(), payload).await;
        set_aside(&mut waybill, "inventory", sequence).await;
        let kept = waybill.messages().await.into_iter().find(|message| message.sequence.0 == sequence);
        assert_eq!(kept.unwrap().subject.as_str(), subject, "still where its sequence finds it");
    }
    waybill.idle("inventory").await;
    let times =
        waybill.processor("inventory").output().matches("undecodable message, stored as dead letter").count();
    assert_eq!(times, 5, "each is looked at once");

    let next = waybill.place(order_of("customer", "next", vec![item("widget", 1)])).await.unwrap();
    each_is_carried_out_once(&waybill, &[order, next]).await;
}

#[tokio::test]
async fn an_order_is_finished_although_garbage_lies_between_its_events() {
    let mut waybill = Deployment::start().await;
    let steps = ["inventory", "payment", "fulfilment"];
    for step in steps {
        waybill.idle(step).await;
        waybill.kill_processors(step);
    }
    let order = place(&waybill).await;
    let mut watcher = waybill.watch(&order.order_id, 0).await.unwrap();
    assert_eq!(kind(&watcher.event().await), EventKind::Created);

    let jetstream = waybill.jetstream().await;
    for (i, step) in steps.into_iter().enumerate() {
        // On the subject of the last event, of the next one, and of one that never comes.
        for garbage in [WHOLE_WAY[i], WHOLE_WAY[i + 1], EventKind::Cancelled] {
            publish(&jetstream, subjects::event(garbage, &id(), step), GARBAGE).await;
        }
        waybill.start_processor(step);
        assert_eq!(kind(&watcher.event().await), WHOLE_WAY[i + 1], "{step}");
    }
    assert_eq!(watcher.rest().await, []);
    each_is_carried_out_once(&waybill, &[order]).await;
}

#[tokio::test]
async fn an_order_is_accepted_although_garbage_lies_on_its_subject() {
    let waybill = Deployment::start().await;
    let jetstream = waybill.jetstream().await;
    publish(&jetstream, subjects::event(EventKind::Created, &id(), "inventory"), GARBAGE).await;
    let order = place(&waybill).await;
    assert_eq!(waybill.place(request()).await.unwrap().order_id, order.order_id);
    let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    assert_eq!(kinds(&events), WHOLE_WAY);
}

#[tokio::test]
async fn garbage_on_a_finished_orders_subjects_hides_none_of_its_events() {
    let waybill = Deployment::start().await;
    let jetstream = waybill.jetstream().await;
    for garbage in WHOLE_WAY {
        let request = order_of("customer", garbage.as_str(), vec![item("widget", 1)]);
        let order = waybill.place(request.clone()).await.unwrap();
        let order = waybill.finished(&order.order_id).await;
        let id = order.order_id.parse().unwrap();
        publish(&jetstream, subjects::event(garbage, &id, subjects::END), GARBAGE).await;

        assert_eq!(waybill.get(&order.order_id).await.unwrap(), order, "garbage on {garbage:?}");
        assert_eq!(waybill.place(request).await.unwrap(), order, "garbage on {garbage:?}");
        let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
        assert_eq!(kinds(&events), WHOLE_WAY, "garbage on {garbage:?}");
    }
}

/// Appends an order that no gateway would accept.
async fn forge(waybill: &Deployment, skus: &[String]) -> String {
    let id = OrderId { order: OrderKey::unique(), ..id() };
    let items = skus.iter().map(|sku| item(sku, 1)).collect();
    let (order_id, customer_id) = (id.to_string(), "customer".to_owned());
    let created = OrderCreated { order_id, customer_id, items, ..OrderCreated::default() };
    let deadline = Instant::now() + PATIENCE;
    waybill.order_log().await.create(id, created, default_route(), deadline).await.unwrap();
    id.to_string()
}

#[tokio::test]
async fn forged_orders_with_impossible_skus_hold_up_no_other_and_are_parked() {
    let mut options = Options::default();
    options.processors.push(("MAX_ATTEMPTS", "2".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    // All together are delivered at once, and so would share a batch.
    waybill.idle("inventory").await;
    waybill.kill_processors("inventory");
    let many: Vec<_> = (0..1200).map(|n| format!("sku-{n}")).collect();
    let mut forged = Vec::new();
    for skus in [&[">".to_owned()][..], &["widget".to_owned(), "a.*".to_owned()], &many] {
        forged.push(forge(&waybill, skus).await);
    }
    let orders = Load::start(waybill.channel(), widgets(50)).all().await;
    waybill.start_processor("inventory");

    let ids = ids(&orders);
    assert_eq!(waybill.statuses(&ids).await.get(&OrderStatus::Fulfilled), Some(&ids.len()));
    let output = waybill.processor("inventory").output();
    let tried_again = |id: &String| {
        output.lines().any(|line| line.contains("attempt failed, order retried") && line.contains(id))
    };
    assert!(!ids.iter().any(tried_again), "{output}");
    for id in &forged {
        waybill.reached(id, OrderStatus::Failed).await;
    }
    let output = waybill.processor("inventory").output();
    assert!(
        forged
            .iter()
            .all(|id| output.lines().any(|line| line.contains("malformed order") && line.contains(id)))
    );
    assert_eq!(waybill.available("widget").await, STOCK - ids.len() as u64);
}

#[tokio::test]
async fn a_watcher_passes_over_what_others_publish_on_live_subjects() {
    let mut waybill = Deployment::start().await;
    waybill.kill_processors("fulfilment");
    let order = place(&waybill).await;
    let mut watcher = waybill.watch(&order.order_id, 0).await.unwrap();
    for expected in &WHOLE_WAY[..3] {
        assert_eq!(kind(&watcher.event().await), *expected);
    }
    let client = waybill.jetstream().await.client();
    let live = format!("{LIVE_PREFIX}{}", subjects::event(EventKind::Fulfilled, &id(), subjects::END));
    client.publish(live, GARBAGE.into()).await.unwrap();
    client.flush().await.unwrap();
    waybill.start_processor("fulfilment");
    assert_eq!(kinds(&watcher.rest().await), [EventKind::Fulfilled]);
}

#[tokio::test]
async fn a_program_whose_client_of_the_broker_dies_ends_and_says_so() {
    let mut waybill = Deployment::start().await;
    let mut broker = TcpStream::connect(waybill.broker.address()).await.unwrap();
    // async-nats 0.51 takes no lone carriage return in a header.
    let headers = "NATS/1.0\r\nname: a\rb\r\n\r\n";
    let subject = subjects::event(EventKind::Created, &id(), "inventory");
    let (length, login) = (headers.len(), waybill.broker.words_of("waybill"));
    let message = format!(
        "CONNECT {{\"headers\":true,{login}}}\r\nHPUB {subject} {length} {length}\r\n{headers}\r\nPING\r\n"
    );
    broker.write_all(message.as_bytes()).await.unwrap();
    let inventory = waybill.processor("inventory");
    assert_eq!(inventory.ended().await.code(), Some(1));
    assert!(inventory.output().contains("NATS client stopped"), "{}", inventory.output());
}
