//! Orders that fail while others are served: they wait, and are counted; the others do not wait for them.

use std::collections::HashMap;
use std::time::Duration;

use backbone::broker::streams::DEAD_LETTERS;
use futures::future::join_all;
use harness::{Deployment, Load, Options, eventually, item, order_of};
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus};
use proto::payments::v1::{Behaviour, Fault, SetBehaviourRequest};
use tokio::time::timeout;

use crate::accounting::ids;
use crate::dead_letters::{break_gadgets, mend};

pub(crate) const BAD: &str = "bad";
/// Healthy orders that a test places, one after the other.
const HEALTHY: usize = 10;
/// Each of them is finished long before the service gives up an order that it does not answer for, which takes 15 s.
const HEALTHY_MAX: Duration = Duration::from_secs(10);

/// What the payment service does about the orders of one customer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Refusing,
    Hanging,
}

async fn deployment(processors: &[(&'static str, &str)]) -> Deployment {
    // Of another version, to see what it does.
    let programs = std::env::var_os("PROGRAMS").map(Into::into);
    let mut options = Options { payment_sandbox: true, replicas: 2, programs, ..Options::default() };
    options.processors.extend(processors.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Deployment::start_with(options).await
}

pub(crate) async fn begin(waybill: &mut Deployment, customer: &str, trouble: Trouble) {
    let behaviour = match trouble {
        Trouble::Refusing => Behaviour { fault: Fault::Outage.into(), ..Behaviour::default() },
        Trouble::Hanging => {
            let latency = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
            Behaviour { latency, ..Behaviour::default() }
        }
    };
    let request = SetBehaviourRequest { customer_id: customer.to_owned(), behaviour: Some(behaviour) };
    waybill.sandbox().control().set_behaviour(request).await.unwrap();
}

fn orders_of(customer: &str, count: usize) -> Vec<CreateOrderRequest> {
    (0..count).map(|n| order_of(customer, &format!("{customer}-{n}"), vec![item("widget", 1)])).collect()
}

/// Orders of which payment has begun some.
pub(crate) async fn bad_orders(waybill: &mut Deployment, count: usize) -> Vec<Order> {
    let orders = Load::start(waybill.channel(), orders_of(BAD, count)).all().await;
    eventually("calls for them", async || {
        (waybill.sandbox().ledger("").await.capture_calls > 0).then_some(())
    })
    .await;
    orders
}

async fn healthy_orders_pass(waybill: &Deployment, round: &str) {
    for n in 0..HEALTHY {
        let request = order_of("healthy", &format!("{round}-{n}"), vec![item("widget", 1)]);
        let order = waybill.place(request).await.unwrap();
        let end = timeout(HEALTHY_MAX, waybill.finished(&order.order_id)).await;
        let end = end.unwrap_or_else(|_| panic!("healthy order {n} is not finished within {HEALTHY_MAX:?}"));
        assert_eq!(end.status(), OrderStatus::Fulfilled);
    }
}

/// The bad orders wait as long as it takes, and end as if nothing had been.
async fn recovers(waybill: &mut Deployment, bad: &[Order]) {
    waybill.sandbox().recover().await;
    let fulfilled = HashMap::from([(OrderStatus::Fulfilled, bad.len())]);
    assert_eq!(waybill.statuses(&ids(bad)).await, fulfilled);
}

async fn bad_orders_stop_no_good_ones(bad: usize, trouble: Trouble, processors: &[(&'static str, &str)]) {
    let mut waybill = deployment(processors).await;
    begin(&mut waybill, BAD, trouble).await;
    let bad = bad_orders(&mut waybill, bad).await;
    healthy_orders_pass(&waybill, "healthy").await;
    for order in &bad {
        // Inventory may have begun with others.
        eventually("a bad order that waits for its payment", async || {
            let order = waybill.get(&order.order_id).await.unwrap();
            (order.status() == OrderStatus::Reserved).then_some(())
        })
        .await;
    }
    recovers(&mut waybill, &bad).await;
}

#[tokio::test]
async fn a_dozen_orders_that_are_refused_stop_no_others() {
    bad_orders_stop_no_good_ones(12, Trouble::Refusing, &[]).await;
}

#[tokio::test]
async fn a_dozen_orders_that_hang_stop_no_others() {
    // As many as there are workers.
    bad_orders_stop_no_good_ones(12, Trouble::Hanging, &[("WORKER_POOL_SIZE", "6")]).await;
}

#[tokio::test]
async fn with_one_worker_too_orders_that_are_refused_stop_no_others() {
    bad_orders_stop_no_good_ones(12, Trouble::Refusing, &[("WORKER_POOL_SIZE", "1")]).await;
}

#[tokio::test]
async fn with_one_worker_too_orders_that_hang_stop_no_others() {
    bad_orders_stop_no_good_ones(12, Trouble::Hanging, &[("WORKER_POOL_SIZE", "1")]).await;
}

#[tokio::test]
async fn hundreds_of_orders_that_hang_stop_no_others() {
    bad_orders_stop_no_good_ones(500, Trouble::Hanging, &[]).await;
}

/// Who fails together need not be a customer: these are one order of each of a dozen.
#[tokio::test]
async fn a_dozen_customers_whose_orders_are_refused_stop_no_others() {
    let mut waybill = deployment(&[]).await;
    let customers: Vec<_> = (0..12).map(|n| format!("bad-{n}")).collect();
    let mut requests = Vec::new();
    for customer in &customers {
        begin(&mut waybill, customer, Trouble::Refusing).await;
        requests.extend(orders_of(customer, 1));
    }
    let bad = Load::start(waybill.channel(), requests).all().await;
    healthy_orders_pass(&waybill, "healthy").await;
    recovers(&mut waybill, &bad).await;
}

/// Nobody is served but a customer of theirs now and then, and so they use up their attempts.
async fn bad_orders_are_parked(trouble: Trouble, pool_size: &str) {
    let further = [
        ("WORKER_POOL_SIZE", pool_size),
        ("MAX_ATTEMPTS", "2"),
        ("PAYMENT_TIMEOUT", "200ms"),
        // Two workers at a time wait so long, for each attempt.
        ("ATTEMPT_TIMEOUT", "2s"),
    ];
    let mut waybill = deployment(&further).await;
    begin(&mut waybill, BAD, trouble).await;
    let bad = bad_orders(&mut waybill, 12).await;
    let parked = {
        let parked = join_all(bad.iter().map(|order| waybill.reached(&order.order_id, OrderStatus::Failed)));
        tokio::pin!(parked);
        let mut round = 0;
        loop {
            let name = format!("round-{round}");
            tokio::select! {
                parked = &mut parked => break parked,
                () = healthy_orders_pass(&waybill, &name) => round += 1,
            }
        }
    };
    for order in parked {
        assert_eq!(order.reason, "RETRIES_EXHAUSTED");
        let letter = waybill.letter(&order.dead_letter_id).await.unwrap();
        assert_eq!(letter.attempts.len(), 2, "{letter:?}");
    }
    let scrape = waybill.scrape_of("payment").await;
    assert!(scrape.sum("waybill_step_failed_alone_total", &[]) > Some(0.0), "an operator sees it");
}

#[tokio::test]
async fn a_dozen_orders_that_are_refused_are_counted_and_parked() {
    bad_orders_are_parked(Trouble::Refusing, "10").await;
}

#[tokio::test]
async fn a_dozen_orders_that_hang_are_counted_and_parked() {
    bad_orders_are_parked(Trouble::Hanging, "1").await;
}

/// Orders of customers some of which had failed alone before wait for a service that is away, and none is parked.
#[tokio::test]
async fn an_outage_uses_up_no_attempts_whatever_failed_alone_before() {
    let mut waybill = deployment(&[("MAX_ATTEMPTS", "2"), ("PAYMENT_TIMEOUT", "200ms")]).await;
    begin(&mut waybill, BAD, Trouble::Refusing).await;
    bad_orders(&mut waybill, 3).await;
    healthy_orders_pass(&waybill, "before").await;
    begin(&mut waybill, "", Trouble::Refusing).await;
    begin(&mut waybill, "healthy", Trouble::Refusing).await;
    let requests =
        ["healthy", "one", "two", "three"].into_iter().flat_map(|customer| orders_of(customer, 10));
    let in_outage = Load::start(waybill.channel(), requests.collect()).all().await;
    eventually("an open breaker", async || {
        let scrape = waybill.scrape_of("payment").await;
        (scrape.sum("waybill_step_breaker_state", &[]) == Some(2.0)).then_some(())
    })
    .await;
    let calls = waybill.sandbox().ledger("").await.capture_calls;
    eventually("probes", async || {
        (waybill.sandbox().ledger("").await.capture_calls > calls + 30).then_some(())
    })
    .await;
    // A parked order would not end.
    recovers(&mut waybill, &in_outage).await;
}

/// Orders for a SKU whose record in the bucket cannot be read, and inventory with one worker.
async fn damaged_stock() -> (Deployment, Vec<Order>) {
    // None of them is parked while the test lasts.
    let processors = vec![("WORKER_POOL_SIZE", "1".to_owned()), ("MAX_ATTEMPTS", "100".to_owned())];
    let programs = std::env::var_os("PROGRAMS").map(Into::into);
    let waybill = Deployment::start_with(Options { processors, programs, ..Options::default() }).await;
    break_gadgets(&waybill).await;
    let requests = (0..12).map(|n| order_of(BAD, &format!("gadget-{n}"), vec![item("gadget", 1)]));
    let bad = Load::start(waybill.channel(), requests.collect()).all().await;
    (waybill, bad)
}

#[tokio::test]
async fn orders_that_inventory_cannot_reserve_stop_no_others() {
    let (waybill, bad) = damaged_stock().await;
    healthy_orders_pass(&waybill, "healthy").await;
    mend(&waybill).await;
    let fulfilled = HashMap::from([(OrderStatus::Fulfilled, bad.len())]);
    assert_eq!(waybill.statuses(&ids(&bad)).await, fulfilled);
}

#[tokio::test]
async fn orders_that_cannot_be_parked_stop_no_others() {
    let (waybill, _) = damaged_stock().await;
    waybill.jetstream().await.delete_stream(DEAD_LETTERS).await.unwrap();
    healthy_orders_pass(&waybill, "healthy").await;
    waybill.broker.provision().await;
}
