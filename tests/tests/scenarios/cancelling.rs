//! A client may cancel until its order is shipped; whatever was done for the order is then undone.

use backbone::log::subjects::EventKind::{self, Cancelled, Created, Paid, Refunded, Released, Reserved};
use harness::{Deployment, eventually, item, order_of};
use processor::inventory::ReservationState;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderEvent, OrderStatus, PaymentRefunded, StockReleased};
use tonic::Code;
use tonic_types::StatusExt;

use crate::accounting::{STOCK, WHOLE_WAY};
use crate::events::{kind, kinds};
use crate::redelivery::take_and_die;

/// A deployment in which a step has died after it was set up.
async fn without(step: &'static str) -> Deployment {
    let mut waybill = Deployment::start().await;
    let mut consumer = waybill.consumer(step).await;
    waybill.kill_processors(step);
    // Until the broker has noticed, it would hand orders to the dead.
    eventually("no worker that waits", async || (consumer.info().await.ok()?.num_waiting == 0).then_some(()))
        .await;
    waybill
}

async fn place(waybill: &Deployment) -> Order {
    waybill.place(order_of("customer", "request", vec![item("widget", 2)])).await.unwrap()
}

/// The events of an order that ends as cancelled, and that nothing is left of.
async fn events_of_cancelled(waybill: &Deployment, order_id: &str) -> Vec<OrderEvent> {
    let events = waybill.watch(order_id, 0).await.unwrap().rest().await;
    let order = waybill.get(order_id).await.unwrap();
    assert_eq!((order.status(), order.reason.as_str()), (OrderStatus::Cancelled, "CLIENT_REQUEST"));
    assert!(order.compensation_pending.is_empty(), "{order:?}");
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.idle(step).await;
    }
    assert_eq!((waybill.held("widget").await, waybill.available("widget").await), (0, STOCK));
    assert_eq!(waybill.history(order_id).await, kinds(&events), "nothing happens afterwards");
    events
}

fn detail(events: &[OrderEvent], wanted: EventKind) -> &Detail {
    events.iter().find(|event| kind(event) == wanted).unwrap().detail.as_ref().unwrap()
}

fn released(events: &[OrderEvent]) -> &StockReleased {
    let Detail::Released(released) = detail(events, Released) else { panic!("{events:?}") };
    released
}

fn refunded(events: &[OrderEvent]) -> &PaymentRefunded {
    let Detail::Refunded(refunded) = detail(events, Refunded) else { panic!("{events:?}") };
    refunded
}

fn units_released(events: &[OrderEvent]) -> Vec<(&str, i64)> {
    released(events).lines.iter().map(|line| (line.sku.as_str(), line.quantity)).collect()
}

#[tokio::test]
async fn an_order_cancelled_before_inventory_saw_it_ends_without_a_reservation() {
    let mut waybill = without("inventory").await;
    let order = place(&waybill).await;
    let cancelled = waybill.cancel(&order.order_id).await.unwrap();
    assert_eq!((cancelled.status(), cancelled.current_step.as_str()), (OrderStatus::Cancelled, "inventory"));
    waybill.start_processor("inventory");
    let events = events_of_cancelled(&waybill, &order.order_id).await;
    assert_eq!(kinds(&events), [Created, Cancelled, Released]);
}

#[tokio::test]
async fn a_release_that_comes_before_the_reservation_releases_nothing_and_forbids_it() {
    let mut waybill = without("inventory").await;
    let order = place(&waybill).await;
    take_and_die(&waybill.consumer("inventory").await).await;
    waybill.cancel(&order.order_id).await.unwrap();
    waybill.start_processor("inventory");
    let events = events_of_cancelled(&waybill, &order.order_id).await;
    assert_eq!(kinds(&events), [Created, Cancelled, Released]);
    assert!(released(&events).lines.is_empty(), "{events:?}");
    let reservation = waybill.reservation(&order.order_id).await.unwrap();
    assert_eq!((reservation.state, reservation.units.len()), (ReservationState::Released, 0));
}

#[tokio::test]
async fn an_order_cancelled_before_its_payment_gives_its_stock_back_and_refunds_nothing() {
    let mut waybill = without("payment").await;
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    // So that the cancel is all that payment gets to see of the order.
    take_and_die(&waybill.consumer("payment").await).await;
    let cancelled = waybill.cancel(&order.order_id).await.unwrap();
    assert_eq!(cancelled.compensation_pending, ["inventory", "payment"]);
    waybill.start_processor("payment");
    let events = events_of_cancelled(&waybill, &order.order_id).await;
    assert_eq!(kinds(&events), [Created, Reserved, Cancelled, Released, Refunded]);
    assert_eq!(units_released(&events), [("widget", 2)]);
    assert_eq!(*refunded(&events), PaymentRefunded::default());
}

#[tokio::test]
async fn an_order_cancelled_after_its_payment_gives_back_stock_and_money() {
    let waybill = without("fulfilment").await;
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    waybill.cancel(&order.order_id).await.unwrap();
    let mut waybill = waybill;
    waybill.start_processor("fulfilment");
    let events = events_of_cancelled(&waybill, &order.order_id).await;
    assert_eq!(kinds(&events), [Created, Reserved, Paid, Cancelled, Released, Refunded]);
    assert_eq!(units_released(&events), [("widget", 2)]);
    assert_eq!(refunded(&events).amount, order.total);
    assert!(!refunded(&events).refund_id.is_empty());
}

#[tokio::test]
async fn a_second_cancel_answers_as_the_first() {
    let waybill = without("inventory").await;
    let order = place(&waybill).await;
    let first = waybill.cancel(&order.order_id).await.unwrap();
    assert_eq!(waybill.cancel(&order.order_id).await.unwrap(), first);
    assert_eq!(waybill.history(&order.order_id).await, [Created, Cancelled]);
}

#[tokio::test]
async fn an_order_that_is_shipped_can_not_be_cancelled() {
    let waybill = Deployment::start().await;
    let order = place(&waybill).await;
    waybill.finished(&order.order_id).await;
    let status = waybill.cancel(&order.order_id).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let violations = status.get_details_precondition_failure().unwrap().violations;
    assert_eq!(violations.len(), 1, "{violations:?}");
    assert!(violations[0].subject.contains(&order.order_id), "{violations:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "NOT_CANCELLABLE");
    assert_eq!(waybill.history(&order.order_id).await, WHOLE_WAY);
}
