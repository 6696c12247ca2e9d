//! A step of somebody's own, as a service that `waybill-step` calls.

use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use backbone::log::subjects::EventKind::{
    Cancelled, Compensated, Completed, Created, Deferred, Fulfilled, Paid, Refunded, Rejected, Released,
    Reserved, Resumed,
};
use harness::step_service::{ATTRIBUTE, DEFERRED, DEFERRED_REASON, TestStepService};
use harness::test_steps::{REFUSED, REFUSED_REASON};
use harness::{Deployment, Options, eventually, item, order_of};
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus, Shipment};

const ROUTES: &str = "
routes:
  reviewed:
    - inventory
    - {name: approval, compensates: true}
    - payment
    - fulfilment
";

async fn deployment(defers_by: Duration) -> (Deployment, TestStepService) {
    let (service, addr) = TestStepService::serve(defers_by).await;
    let options = Options {
        routes: Some(ROUTES.to_owned()),
        steps: vec!["inventory", "approval", "payment", "fulfilment"],
        services: vec![("approval", format!("http://{addr}"))],
        ..Options::default()
    };
    let waybill = Deployment::start_with(options).await;
    waybill.idle("approval").await;
    (waybill, service)
}

fn order_by(customer_id: &str) -> CreateOrderRequest {
    order_of(customer_id, "request", vec![item("widget", 1)])
}

/// The order once its step has deferred it.
async fn deferred(waybill: &Deployment, order_id: &str) -> Order {
    eventually("a deferral", async || {
        waybill.get(order_id).await.ok().filter(|order| order.deferral.is_some())
    })
    .await
}

#[tokio::test]
async fn what_a_service_says_of_an_order_becomes_part_of_it() {
    let (waybill, service) = deployment(Duration::ZERO).await;
    let order = waybill.place(order_by("customer")).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    assert_eq!(order.status(), OrderStatus::Fulfilled);
    let (key, value) = ATTRIBUTE;
    assert_eq!(order.attributes, [(format!("approval.{key}"), value.to_owned())].into());
    let Shipment { carrier, shipment_id, .. } = order.shipment.clone().unwrap();
    assert_eq!((carrier.as_str(), shipment_id.is_empty()), (value, false));
    assert_eq!(waybill.history(&order.order_id).await, [Created, Reserved, Completed, Paid, Fulfilled]);
    assert_eq!(service.record(&order.order_id).acts.len(), 1);
}

#[tokio::test]
async fn a_service_rejects_an_order() {
    let (waybill, _) = deployment(Duration::ZERO).await;
    let order = waybill.place(order_by(REFUSED)).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    assert_eq!((order.status(), order.reason.as_str()), (OrderStatus::Rejected, REFUSED_REASON));
    assert_eq!(waybill.history(&order.order_id).await, [Created, Reserved, Rejected, Released]);
}

#[tokio::test]
async fn a_deferred_order_is_resumed_at_its_time_and_not_before() {
    let (waybill, service) = deployment(Duration::from_secs(3)).await;
    let order = waybill.place(order_by(DEFERRED)).await.unwrap();
    let waits = deferred(&waybill, &order.order_id).await;
    let deferral = waits.deferral.clone().unwrap();
    assert_eq!((deferral.reason.as_str(), deferral.message.as_str()), (DEFERRED_REASON, "later"));
    assert_eq!((waits.status(), waits.current_step.as_str()), (OrderStatus::Reserved, "approval"));
    waybill.idle("approval").await;
    let order = waybill.finished(&order.order_id).await;
    assert_eq!((order.status(), order.deferral), (OrderStatus::Fulfilled, None));
    let history = [Created, Reserved, Deferred, Resumed, Completed, Paid, Fulfilled];
    assert_eq!(waybill.history(&order.order_id).await, history);
    let acts = service.record(&order.order_id).acts;
    let until = SystemTime::try_from(deferral.until.unwrap()).unwrap();
    assert!(acts.len() == 2 && acts[1] >= until, "{acts:?} until {until:?}");
}

#[tokio::test]
async fn a_deferral_survives_the_death_of_everything() {
    let (mut waybill, service) = deployment(Duration::from_secs(6)).await;
    let order = waybill.place(order_by(DEFERRED)).await.unwrap();
    let deferral = deferred(&waybill, &order.order_id).await.deferral.unwrap();
    waybill.kill_processors("approval");
    waybill.gateway.process.kill();
    waybill.broker.kill();
    waybill.broker.start().await;
    waybill.restart_gateway().await;
    waybill.ready().await;
    waybill.restart_processor("approval");
    let order = waybill.finished(&order.order_id).await;
    assert_eq!(order.status(), OrderStatus::Fulfilled);
    let until = SystemTime::try_from(deferral.until.unwrap()).unwrap();
    let late: Vec<_> = service.record(&order.order_id).acts.into_iter().filter(|act| *act >= until).collect();
    assert_eq!(late.len(), 1, "the effect is done once, after its time");
}

/// A timer of an earlier deferral that arrives late replaces the one of this deferral, and fires at once.
#[tokio::test]
async fn an_early_timer_neither_resumes_an_order_nor_loses_its_timer() {
    let (waybill, service) = deployment(Duration::from_secs(3_600)).await;
    let order = waybill.place(order_by(DEFERRED)).await.unwrap();
    deferred(&waybill, &order.order_id).await;
    waybill.idle("approval").await;
    let jetstream = waybill.jetstream().await;
    let keys = order.order_id.replace('-', ".");
    let timer = format!("DEFERRAL.timer.approval.{keys}");
    let timers = async || jetstream.get_stream("DEFERRALS").await.unwrap();
    let ours =
        eventually("the timer", async || timers().await.get_last_raw_message_by_subject(&timer).await.ok())
            .await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Schedule", "@at 2026-01-01T00:00:00Z");
    headers.insert("Nats-Schedule-Target", format!("DEFERRAL.due.{keys}"));
    let published = jetstream.publish_with_headers(timer.clone(), headers, "".into()).await.unwrap();
    let late = published.await.unwrap().sequence;
    let again = eventually("the timer again", async || {
        let again = timers().await.get_last_raw_message_by_subject(&timer).await.ok()?;
        (again.sequence > late).then_some(again)
    })
    .await;
    let at = |headers: &HeaderMap| headers.get("Nats-Schedule").unwrap().to_string();
    assert_eq!(at(&again.headers), at(&ours.headers), "of the same time");
    let order = waybill.get(&order.order_id).await.unwrap();
    assert!(order.deferral.is_some() && service.record(&order.order_id).acts.len() == 1);
}

#[tokio::test]
async fn a_deferred_order_can_be_cancelled_and_is_compensated() {
    let (waybill, service) = deployment(Duration::from_secs(3_600)).await;
    let order = waybill.place(order_by(DEFERRED)).await.unwrap();
    deferred(&waybill, &order.order_id).await;
    waybill.cancel(&order.order_id).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    assert_eq!((order.status(), order.deferral), (OrderStatus::Cancelled, None));
    let history = [Created, Reserved, Deferred, Cancelled, Released, Compensated];
    assert_eq!(waybill.history(&order.order_id).await, history);
    let record = service.record(&order.order_id);
    assert_eq!((record.acts.len(), record.compensations, record.is_done), (1, 1, false));
}

#[tokio::test]
async fn a_completed_step_is_compensated_once() {
    let (mut waybill, service) = deployment(Duration::ZERO).await;
    waybill.kill_processors("fulfilment");
    let order = waybill.place(order_by("customer")).await.unwrap();
    eventually("a paid order", async || {
        waybill.get(&order.order_id).await.ok().filter(|order| order.status() == OrderStatus::Paid)
    })
    .await;
    waybill.cancel(&order.order_id).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    assert_eq!(order.status(), OrderStatus::Cancelled);
    let history = [Created, Reserved, Completed, Paid, Cancelled, Released, Compensated, Refunded];
    assert_eq!(waybill.history(&order.order_id).await, history);
    let record = service.record(&order.order_id);
    assert_eq!((record.compensations, record.is_done), (1, true));
}
