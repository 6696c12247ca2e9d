//! A step of one's own, between two that are built in.

use backbone::log::subjects::EventKind::{
    Cancelled, Compensated, Completed, Created, Fulfilled, Paid, Refunded, Released, Reserved,
};
use harness::test_steps::EffectState;
use harness::{Deployment, Options, item, order_of};
use proto::orders::v1::{Order, OrderStatus};
use proto::payments::v1::PaymentState;

use super::{
    COMPENSATE, COMPLETE, COMPLETE_TOO_LATE, CUSTOMER, UNITS, at_each_point, check_money, check_stock,
    deployment_with, end_of, ended, overtaken, place,
};

const PACKING: &str = "packing";

/// A deployment in which inventory, packing and payment compensate.
async fn deployment() -> Deployment {
    let routes = "routes: {packed: [inventory, {name: packing, compensates: true}, payment, fulfilment]}";
    let options = Options {
        routes: Some(routes.to_owned()),
        steps: vec!["inventory", PACKING, "payment", "fulfilment"],
        payment_sandbox: true,
        ..Options::default()
    };
    deployment_with(PACKING, options).await
}

/// The effect of [`PACKING`] for an order was done once, or not at all, and undone if so.
async fn check_packed(waybill: &Deployment, order: &Order, states: &[EffectState]) {
    let effect = waybill.effects(PACKING).await.remove(&order.order_id).unwrap_or_default();
    assert!(states.contains(&effect.state), "{effect:?}");
    let counts = match effect.state {
        EffectState::None | EffectState::Forbidden => (0, 0),
        EffectState::Done => (1, 0),
        EffectState::Compensated => (1, 1),
    };
    assert_eq!((effect.done, effect.compensated), counts);
}

#[tokio::test]
async fn a_step_of_ones_own_killed_at_any_point_completes_once() {
    let mut waybill = deployment().await;
    at_each_point(&mut waybill, PACKING, COMPLETE, async |waybill, point| {
        point.arm(waybill);
        let order = place(waybill, CUSTOMER, point).await;
        point.die(waybill).await;
        let way = [Created, Reserved, Completed, Paid, Fulfilled];
        assert_eq!(end_of(waybill, PACKING, &order).await, ended(OrderStatus::Fulfilled, way));
        check_packed(waybill, &order, &[EffectState::Done]).await;
    })
    .await;
}

/// Before its first message the step before it has compensated, behind its append it is the turn of the step after it.
#[tokio::test]
async fn a_step_of_ones_own_killed_at_any_point_between_two_that_compensate_compensates_once() {
    let mut waybill = deployment().await;
    waybill.kill_processors("fulfilment");
    at_each_point(&mut waybill, PACKING, COMPENSATE, async |waybill, point| {
        let order = place(waybill, CUSTOMER, point).await;
        waybill.reached(&order.order_id, OrderStatus::Paid).await;
        waybill.idle(PACKING).await;
        point.arm(waybill);
        waybill.cancel(&order.order_id).await.unwrap();
        point.die(waybill).await;
        let way = [Created, Reserved, Completed, Paid, Cancelled, Released, Compensated, Refunded];
        assert_eq!(end_of(waybill, PACKING, &order).await, ended(OrderStatus::Cancelled, way));
        check_stock(waybill, &order, false).await;
        check_packed(waybill, &order, &[EffectState::Compensated]).await;
        check_money(waybill, &order, PaymentState::Refunded).await;
    })
    .await;
}

#[tokio::test]
async fn a_step_of_ones_own_killed_at_any_point_after_a_cancel_has_overtaken_it_keeps_nothing() {
    let mut waybill = deployment().await;
    at_each_point(&mut waybill, PACKING, COMPLETE_TOO_LATE, async |waybill, point| {
        let request = order_of(CUSTOMER, &point.request_id(), vec![item("widget", UNITS as i32)]);
        let order = overtaken(waybill, point, "append completed", request).await;
        let way = [Created, Reserved, Cancelled, Released, Compensated];
        assert_eq!(end_of(waybill, PACKING, &order).await, ended(OrderStatus::Cancelled, way));
        check_stock(waybill, &order, false).await;
        check_packed(waybill, &order, &[EffectState::Compensated]).await;
    })
    .await;
}
