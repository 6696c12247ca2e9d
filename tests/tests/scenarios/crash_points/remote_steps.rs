//! A step that calls a service, and the deferral of an order.

use std::time::{Duration, SystemTime};

use backbone::log::subjects::EventKind::{
    Cancelled, Compensated, Completed, Created, Deferred, Fulfilled, Paid, Refunded, Released, Reserved,
    Resumed,
};
use harness::step_service::{DEFERRED, TestStepService};
use harness::{Deployment, Options, eventually};
use proto::orders::v1::{Order, OrderStatus};

use super::{
    ACT, CUSTOMER, DEFER, GATEWAY, RESUME, TAKE_BACK, at_each_point, check_stock, deployment_with, end_of,
    ended, place,
};

const APPROVAL: &str = "approval";
const DEFERS_BY: Duration = Duration::from_millis(1_200);

/// A deployment with a step that calls a service and compensates, in which one program can be killed at a point.
async fn deployment(program: &'static str) -> (Deployment, TestStepService) {
    let (service, addr) = TestStepService::serve(DEFERS_BY).await;
    let routes = "routes: {reviewed: [inventory, {name: approval, compensates: true}, payment, fulfilment]}";
    let options = Options {
        routes: Some(routes.to_owned()),
        steps: vec!["inventory", APPROVAL, "payment", "fulfilment"],
        services: vec![(APPROVAL, format!("http://{addr}"))],
        ..Options::default()
    };
    (deployment_with(program, options).await, service)
}

/// The service was called again at the time to which it had deferred the order, and not before.
fn check_deferral(service: &TestStepService, order: &Order) {
    let record = service.record(&order.order_id);
    let until = record.until.expect("a deferral");
    let early = |act: &&SystemTime| **act < until;
    // A repetition of the first call may have the deferral as its answer.
    let first = record.acts[0];
    let before: Vec<_> = record.acts.iter().filter(early).collect();
    let repeated = before.iter().all(|act| act.duration_since(first).is_ok_and(|after| after < DEFERS_BY));
    assert!(record.is_done && record.acts.len() > before.len() && repeated, "{record:?}");
}

#[tokio::test]
async fn a_step_that_calls_a_service_killed_at_any_point_completes_once() {
    let (mut waybill, service) = deployment(APPROVAL).await;
    at_each_point(&mut waybill, APPROVAL, ACT, async |waybill, point| {
        point.arm(waybill);
        let order = place(waybill, CUSTOMER, point).await;
        point.die(waybill).await;
        let way = [Created, Reserved, Completed, Paid, Fulfilled];
        assert_eq!(end_of(waybill, APPROVAL, &order).await, ended(OrderStatus::Fulfilled, way));
        let record = service.record(&order.order_id);
        assert_eq!((record.is_done, record.compensations), (true, 0));
    })
    .await;
}

#[tokio::test]
async fn a_step_that_calls_a_service_killed_at_any_point_of_a_deferral_completes_once_and_in_time() {
    let (mut waybill, service) = deployment(APPROVAL).await;
    at_each_point(&mut waybill, APPROVAL, DEFER, async |waybill, point| {
        point.arm(waybill);
        let order = place(waybill, DEFERRED, point).await;
        point.die(waybill).await;
        let end = end_of(waybill, APPROVAL, &order).await;
        let ways = [
            ended(OrderStatus::Fulfilled, [Created, Reserved, Deferred, Resumed, Completed, Paid, Fulfilled]),
            // The time came before the deferral was in the log: the service completed the order at once.
            ended(OrderStatus::Fulfilled, [Created, Reserved, Completed, Paid, Fulfilled]),
        ];
        assert!(ways.contains(&end), "{end:?}");
        check_deferral(&service, &order);
    })
    .await;
}

#[tokio::test]
async fn a_gateway_killed_at_any_point_of_resuming_resumes_the_order() {
    let (mut waybill, service) = deployment(GATEWAY).await;
    at_each_point(&mut waybill, GATEWAY, RESUME, async |waybill, point| {
        let order = place(waybill, DEFERRED, point).await;
        point.arm(waybill);
        point.die(waybill).await;
        let way = [Created, Reserved, Deferred, Resumed, Completed, Paid, Fulfilled];
        assert_eq!(end_of(waybill, GATEWAY, &order).await, ended(OrderStatus::Fulfilled, way));
        check_deferral(&service, &order);
        // The gateway deletes the due message after the append.
        let jetstream = waybill.jetstream().await;
        eventually("no message of the order", async || {
            let mut stream = jetstream.get_stream("DEFERRALS").await.ok()?;
            (stream.info().await.ok()?.state.messages == 0).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_step_that_calls_a_service_killed_at_any_point_compensates_once() {
    let (mut waybill, service) = deployment(APPROVAL).await;
    waybill.kill_processors("fulfilment");
    at_each_point(&mut waybill, APPROVAL, TAKE_BACK, async |waybill, point| {
        let order = place(waybill, CUSTOMER, point).await;
        waybill.reached(&order.order_id, OrderStatus::Paid).await;
        waybill.idle(APPROVAL).await;
        point.arm(waybill);
        waybill.cancel(&order.order_id).await.unwrap();
        point.die(waybill).await;
        let way = [Created, Reserved, Completed, Paid, Cancelled, Released, Compensated, Refunded];
        assert_eq!(end_of(waybill, APPROVAL, &order).await, ended(OrderStatus::Cancelled, way));
        check_stock(waybill, &order, false).await;
        assert!(service.record(&order.order_id).compensations >= 1);
    })
    .await;
}
