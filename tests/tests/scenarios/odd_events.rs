//! Events that decode and yet do not fit: they come again, contradict what was before, or are of a newer version.
//! docs/operations.md says what becomes of them.

use std::collections::BTreeSet;

use async_nats::HeaderMap;
use backbone::broker::direct_get::Stored;
use backbone::log::subjects::{self, EventKind};
use harness::{Deployment, Options, eventually, item, order_of};
use prost::Message;
use proto::operations::v1::DeadLetterReason;
use proto::orders::v1::{Money, Order, OrderEvent, OrderStatus};

use crate::accounting::WHOLE_WAY;
use crate::events::kinds;

/// A deployment whose steps give up after two attempts, and whose payments are on record.
async fn deployment() -> Deployment {
    let mut options = Options { payment_sandbox: true, ..Options::default() };
    options.processors.push(("MAX_ATTEMPTS", "2".to_owned()));
    Deployment::start_with(options).await
}

async fn place(waybill: &Deployment) -> Order {
    waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap()
}

/// The first event of a kind, as it is stored.
async fn stored(waybill: &Deployment, kind: EventKind) -> (String, OrderEvent) {
    let is_it = |message: &Stored| subjects::parse(&message.subject).is_some_and(|it| it.kind == kind);
    let message = waybill.messages().await.into_iter().find(is_it).unwrap();
    (message.subject.to_string(), OrderEvent::decode(message.payload).unwrap())
}

async fn publish(waybill: &Deployment, subject: String, payload: Vec<u8>) -> u64 {
    let jetstream = waybill.jetstream().await;
    let ack = jetstream.publish_with_headers(subject, HeaderMap::new(), payload.into()).await.unwrap();
    ack.await.unwrap().sequence
}

/// What was really done for an order of one widget: units held, captures, and the amount of each.
async fn done(waybill: &mut Deployment, order: &Order) -> (u64, i64, Vec<i64>) {
    let held = waybill.held("widget").await;
    let ledger = waybill.sandbox().ledger(&order.order_id).await;
    let captured = ledger.payments.iter().map(|payment| payment.amount.as_ref().unwrap().minor_units);
    (held, ledger.captures, captured.collect())
}

#[tokio::test]
async fn an_old_event_that_comes_again_out_of_order_has_every_effect_once() {
    let mut waybill = deployment().await;
    let order = place(&waybill).await;
    let order = waybill.finished(&order.order_id).await;
    let before = done(&mut waybill, &order).await;
    let price = order.total.as_ref().unwrap().minor_units;
    assert_eq!(before, (1, 1, vec![price]));

    // Each is the latest when it is stored, and so what the order then is.
    for kind in [EventKind::Paid, EventKind::Reserved, EventKind::Created] {
        let (subject, event) = stored(&waybill, kind).await;
        publish(&waybill, subject, event.encode_to_vec()).await;
        let after = waybill.finished(&order.order_id).await;
        assert_eq!((after.status(), &after.total), (OrderStatus::Fulfilled, &order.total), "{kind:?} again");
        for step in ["inventory", "payment", "fulfilment"] {
            waybill.idle(step).await;
        }
        assert_eq!(done(&mut waybill, &order).await, before, "{kind:?} again");
    }
    assert!(waybill.open_letters().await.is_empty());
}

#[tokio::test]
async fn a_snapshot_that_contradicts_the_history_moves_neither_stock_nor_money() {
    let mut waybill = deployment().await;
    let order = place(&waybill).await;
    let order = waybill.finished(&order.order_id).await;
    let before = done(&mut waybill, &order).await;

    let (subject, mut event) = stored(&waybill, EventKind::Created).await;
    let snapshot = event.order.as_mut().unwrap();
    snapshot.items[0].quantity = 1000;
    snapshot.total = Some(Money { currency_code: "EUR".to_owned(), minor_units: 1_000_000 });
    publish(&waybill, subject, event.encode_to_vec()).await;
    let parked = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    assert_eq!(parked.items[0].quantity, 1000, "the latest event is believed");
    assert_eq!(done(&mut waybill, &order).await, before, "their owners know better");
}

/// An event as a newer version may write it, whose detail and status nobody here knows.
fn newer(mut event: OrderEvent) -> Vec<u8> {
    event.event_id = "newer".to_owned();
    event.detail = None;
    event.order.as_mut().unwrap().status = 99;
    let mut bytes = event.encode_to_vec();
    // Field 99 of the oneof: a message without content.
    prost::encoding::encode_key(99, prost::encoding::WireType::LengthDelimited, &mut bytes);
    bytes.push(0);
    bytes
}

#[tokio::test]
async fn events_of_a_newer_version_hold_up_no_order() {
    let mut waybill = deployment().await;
    waybill.idle("payment").await;
    waybill.kill_processors("payment");
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;

    let (reserved, event) = stored(&waybill, EventKind::Reserved).await;
    let unknown = reserved.replace(".reserved.", ".screened.");
    assert_eq!(subjects::parse(&unknown), None);
    let on_an_unknown_subject = publish(&waybill, unknown, newer(event.clone())).await;
    let on_a_known_subject = publish(&waybill, reserved, newer(event)).await;
    assert_eq!(waybill.get(&order.order_id).await.unwrap().status(), OrderStatus::Reserved);

    waybill.start_processor("payment");
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    assert_eq!(kinds(&events), WHOLE_WAY);
    let ids = [on_an_unknown_subject, on_a_known_subject].map(|sequence| format!("payment-{sequence}"));
    for id in &ids {
        let letter = eventually("the letter", async || waybill.letter(id).await.ok()).await;
        assert_eq!(letter.reason(), DeadLetterReason::Undecodable);
    }
    // In the order in which they were stored.
    let open = waybill.open_letters().await;
    assert_eq!(open.iter().collect::<BTreeSet<_>>(), ids.iter().collect());
}

/// The event as a newer version may write it, which says more of the order than anybody here knows.
fn saying_more(mut event: OrderEvent, more: &[u8]) -> Vec<u8> {
    let mut order = event.order.take().unwrap().encode_to_vec();
    order.extend(more);
    event.event_id = "newer".to_owned();
    let mut bytes = event.encode_to_vec();
    // Field 3 of an event is its order.
    prost::encoding::encode_key(3, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(order.len() as u64, &mut bytes);
    bytes.extend(order);
    bytes
}

#[tokio::test]
async fn what_a_newer_version_says_of_an_order_is_carried_on_by_steps_and_gateway() {
    let mut waybill = deployment().await;
    waybill.idle("payment").await;
    waybill.kill_processors("payment");
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    // Field 2004, of two bytes.
    let more = [0xa2, 0x7d, 2, b'h', b'i'];
    let (reserved, mut event) = stored(&waybill, EventKind::Reserved).await;
    event.previous_revision = waybill.get(&order.order_id).await.unwrap().revision;
    publish(&waybill, reserved, saying_more(event, &more)).await;

    waybill.kill_processors("fulfilment");
    waybill.start_processor("payment");
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    waybill.cancel(&order.order_id).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Cancelled);
    for message in waybill.messages().await.into_iter().skip(2) {
        let carries = message.payload.windows(more.len()).filter(|window| *window == more).count();
        assert_eq!(carries, 1, "{}", message.subject);
    }
}
