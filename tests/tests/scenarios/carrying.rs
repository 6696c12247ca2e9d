//! Retention counts from the end of an order: one that is unfinished never expires, nor does what is held for it.

use std::collections::HashSet;
use std::time::Duration;

use backbone::log::carrying::Schedule;
use backbone::log::ids::Revision;
use backbone::log::subjects::EventKind;
use harness::measure::cpu_time;
use harness::{Deployment, Load, Options, PaymentSandbox, eventually, every_one, item, order_of, these};
use processor::inventory::ReservationState;
use proto::operations::v1::RedriveOutcome;
use proto::orders::v1::{CreateOrderRequest, ListOrdersRequest, Order, OrderEvent, OrderStatus};
use proto::payments::v1::Fault;
use tokio::time::{Instant, sleep, sleep_until};

use crate::accounting::{STOCK, ids, widgets};

const RETENTION: &str = "10s";
const UNITS: u64 = 3;

/// Keeps events for a short time, and gives up quickly.
async fn deployment() -> Deployment {
    let mut options = Options { payment_sandbox: true, ..Options::default() };
    options.environment.push(("ORDERS_RETENTION", RETENTION.to_owned()));
    options.processors.push(("PAYMENT_TIMEOUT", "300ms".to_owned()));
    options.processors.push(("MAX_ATTEMPTS", "2".to_owned()));
    Deployment::start_with(options).await
}

fn request(request_id: &str) -> CreateOrderRequest {
    order_of("customer", request_id, vec![item("widget", UNITS as i32)])
}

async fn place(waybill: &Deployment, request_id: &str, status: OrderStatus) -> Order {
    let order = waybill.place(request(request_id)).await.unwrap();
    waybill.reached(&order.order_id, status).await
}

/// Waits until the broker has dropped all events up to `revision`.
async fn expired(waybill: &Deployment, revision: u64) {
    eventually("events that have expired", async || {
        let first = waybill.messages().await.first().map(|message| message.sequence.0);
        first.is_none_or(|first| first > revision).then_some(())
    })
    .await;
}

async fn captured_once(sandbox: &PaymentSandbox, order: &Order) {
    let ledger = sandbox.ledger(&order.order_id).await;
    assert_eq!((ledger.captures, ledger.refunds), (1, 0), "{ledger:?}");
    assert_eq!(sandbox.accounts()[&order.order_id].captures, 1, "{:?}", sandbox.records());
}

#[tokio::test]
async fn orders_are_listed_once_while_their_first_events_expire() {
    let mut options = Options { replicas: 0, ..Options::default() };
    options.environment.push(("ORDERS_RETENTION", RETENTION.to_owned()));
    let waybill = Deployment::start_with(options).await;
    let requests = (0..40).map(|n| request(&format!("r-{n}"))).collect();
    let placed = Load::start(waybill.channel(), requests).all().await;
    let all: HashSet<_> = ids(&placed).into_iter().collect();
    let last = placed.iter().map(|order| order.revision).max().unwrap();
    let mut are_kept = true;
    while are_kept {
        let first = waybill.messages().await.first().map(|message| message.sequence.0);
        are_kept = first.is_none_or(|first| first <= last);
        for _ in 0..10 {
            let listed = ids(&listed(&waybill).await);
            assert_eq!(listed.len(), all.len(), "{listed:?}");
            assert_eq!(HashSet::from_iter(listed), all);
        }
    }
}

/// The customer's orders.
async fn listed(waybill: &Deployment) -> Vec<Order> {
    let request = ListOrdersRequest { customer_id: "customer".to_owned(), ..ListOrdersRequest::default() };
    waybill.client().await.list_orders(request).await.unwrap().into_inner().orders
}

fn statuses(events: &[OrderEvent]) -> Vec<OrderStatus> {
    let mut statuses: Vec<_> = events.iter().map(|event| event.order.as_ref().unwrap().status()).collect();
    statuses.dedup();
    statuses
}

/// The order waits past the retention for payment, which `ends` then lets go on; it ends as if nothing had happened.
async fn a_reserved_order_outlives_the_retention(
    mut waybill: Deployment,
    times: usize,
    ends: impl AsyncFnOnce(&mut Deployment),
) {
    let order = place(&waybill, "request", OrderStatus::Reserved).await;
    let watcher = waybill.watch(&order.order_id, 0).await.unwrap();
    for _ in 0..times {
        let last = waybill.messages().await.last().unwrap().sequence.0;
        expired(&waybill, last.max(order.revision)).await;
        let now = waybill.get(&order.order_id).await.unwrap();
        assert_eq!(now.status(), OrderStatus::Reserved);
        let again = waybill.place(request("request")).await.unwrap();
        assert_eq!((&again.order_id, again.status()), (&order.order_id, OrderStatus::Reserved));
        assert_eq!((again.create_time, again.update_time), (order.create_time, order.update_time));
        let listed = listed(&waybill).await;
        assert_eq!(listed.iter().map(|order| &order.order_id).collect::<Vec<_>>(), [&order.order_id]);
    }
    assert_eq!(waybill.available("widget").await, STOCK - UNITS);
    ends(&mut waybill).await;
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    captured_once(waybill.sandbox(), &order).await;
    assert_eq!(waybill.available("widget").await, STOCK - UNITS);
    assert_eq!(waybill.held("widget").await, UNITS);
    let watched = watcher.rest().await;
    assert!(
        watched
            .windows(2)
            .all(|pair| { pair[1].previous_revision == pair[0].order.as_ref().unwrap().revision })
    );
    let trace_ids: HashSet<_> = watched.iter().map(|event| &event.trace_id).collect();
    assert_eq!(trace_ids.len(), 1, "{trace_ids:?}");
    use OrderStatus::{Accepted, Fulfilled, Paid, Reserved};
    assert_eq!(statuses(&watched), [Accepted, Reserved, Paid, Fulfilled]);
    assert!(waybill.open_letters().await.is_empty());
    waybill.idle("payment").await;
}

#[tokio::test]
async fn an_order_reserved_while_payment_is_away_longer_than_the_retention_ends_well() {
    let waybill = deployment().await;
    waybill.payment_sandbox.as_ref().unwrap().fail("", Fault::Outage, 0).await;
    a_reserved_order_outlives_the_retention(waybill, 2, async |waybill| waybill.sandbox().recover().await)
        .await;
}

#[tokio::test]
async fn an_order_whose_event_expired_before_its_step_saw_it_ends_well() {
    let mut waybill = deployment().await;
    waybill.kill_processors("payment");
    a_reserved_order_outlives_the_retention(waybill, 1, async |waybill| waybill.restart_processor("payment"))
        .await;
}

#[tokio::test]
async fn a_capture_whose_reply_was_lost_longer_ago_than_the_retention_is_not_repeated() {
    let waybill = deployment().await;
    waybill.payment_sandbox.as_ref().unwrap().fail("", Fault::LostReply, 0).await;
    a_reserved_order_outlives_the_retention(waybill, 1, async |waybill| waybill.sandbox().recover().await)
        .await;
}

#[tokio::test]
async fn orders_that_failed_longer_ago_than_the_retention_are_redriven_and_cancelled() {
    let mut waybill = deployment().await;
    waybill.sandbox().fail("", Fault::Nonsense, 0).await;
    let redriven = place(&waybill, "redriven", OrderStatus::Failed).await;
    let cancelled = place(&waybill, "cancelled", OrderStatus::Failed).await;
    assert_eq!(waybill.available("widget").await, STOCK - 2 * UNITS);
    expired(&waybill, cancelled.revision).await;
    for order in [&redriven, &cancelled] {
        let now = waybill.get(&order.order_id).await.unwrap();
        assert_eq!((now.status(), &now.dead_letter_id), (OrderStatus::Failed, &order.dead_letter_id));
    }
    waybill.sandbox().recover().await;
    let letter = redriven.dead_letter_id.as_str();
    let answers = waybill.redrive(these(&[letter])).await.unwrap();
    assert_eq!(answers, [(letter.to_owned(), RedriveOutcome::Redriven)]);
    assert_eq!(waybill.finished(&redriven.order_id).await.status(), OrderStatus::Fulfilled);
    captured_once(waybill.sandbox(), &redriven).await;

    assert_eq!(waybill.cancel(&cancelled.order_id).await.unwrap().status(), OrderStatus::Cancelled);
    let end = waybill.finished(&cancelled.order_id).await;
    assert_eq!((end.status(), end.compensation_pending.len()), (OrderStatus::Cancelled, 0));
    assert_eq!(waybill.available("widget").await, STOCK - UNITS);
    let reservation = waybill.reservation(&cancelled.order_id).await.unwrap();
    assert_eq!(reservation.state, ReservationState::Released);
    let answers = waybill.redrive(every_one()).await.unwrap();
    assert_eq!(answers, [(cancelled.dead_letter_id.clone(), RedriveOutcome::OrderWentOn)]);
    assert!(waybill.open_letters().await.is_empty());
}

#[tokio::test]
async fn attempts_are_counted_on_when_an_order_is_carried_between_them() {
    const ATTEMPTS_MAX: usize = 6;
    let mut options = Options { payment_sandbox: true, ..Options::default() };
    options.gateway.push(("CARRY_AFTER", "1s".to_owned()));
    options.processors.push(("MAX_ATTEMPTS", ATTEMPTS_MAX.to_string()));
    let mut waybill = Deployment::start_with(options).await;
    waybill.sandbox().fail("", Fault::Nonsense, 0).await;
    let order = place(&waybill, "poison", OrderStatus::Failed).await;
    let letter = waybill.letter(&order.dead_letter_id).await.unwrap();
    assert_eq!(letter.attempts.len(), ATTEMPTS_MAX, "{letter:?}");
    let history = waybill.history(&order.order_id).await;
    let failed = history.iter().position(|kind| *kind == EventKind::Failed).unwrap();
    let carried = history[..failed].iter().filter(|kind| **kind == EventKind::Carried).count();
    assert!(carried >= 2, "{history:?}");
    // No attempt was made twice, by the message of an earlier event and by that of a later one.
    let calls = waybill.sandbox().ledger("").await.capture_calls;
    assert!(calls <= ATTEMPTS_MAX as i64 + 1, "{calls}");
    waybill.sandbox().recover().await;
    let letter = order.dead_letter_id.as_str();
    let answers = waybill.redrive(these(&[letter])).await.unwrap();
    assert_eq!(answers, [(letter.to_owned(), RedriveOutcome::Redriven)]);
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    captured_once(waybill.sandbox(), &order).await;
}

#[tokio::test]
#[ignore = "takes some six minutes: make soak"]
async fn ten_thousand_orders_outlive_an_outage_of_three_times_the_retention() {
    const OUTAGE: Duration = Duration::from_secs(180);
    let orders: usize = std::env::var("ORDERS").map_or(10_000, |orders| orders.parse().unwrap());
    let mut options = Options { payment_sandbox: true, ..Options::default() };
    options.environment.push(("ORDERS_RETENTION", "60s".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    waybill.sandbox().process.kill();
    let began = Instant::now();
    let requests = (0..orders).map(|n| {
        order_of(&format!("customer-{}", n % 100), &format!("r-{n}"), vec![item("widget", UNITS as i32)])
    });
    let placed = Load::start(waybill.channel(), requests.collect()).all().await;
    assert_eq!(placed.len(), orders);
    eprintln!("{:?}: {orders} orders are placed", began.elapsed());
    sleep_until(began + OUTAGE).await;
    let messages = waybill.messages().await.len();
    let figures = waybill.scrape().await;
    let carried = figures.samples.iter().filter(|sample| sample.name == "waybill_orders_carried_total");
    let carried: f64 = carried.map(|sample| sample.value).sum();
    eprintln!("{:?}: carried {carried} times; {messages} messages in the log", began.elapsed());
    waybill.sandbox().restart().await;
    // What was finished a minute ago is gone by now, as it should be: so the step that ends orders tells how many there were.
    let fulfilled = loop {
        sleep(Duration::from_secs(1)).await;
        let figures = waybill.scrape_of("fulfilment").await;
        let ends =
            figures.samples.iter().filter(|sample| sample.name == "waybill_order_duration_seconds_count");
        let ends = ends.map(|sample| sample.value).sum::<f64>() as usize;
        if ends >= orders {
            break ends;
        }
        assert!(began.elapsed() < OUTAGE * 4, "{ends} orders have ended");
    };
    eprintln!("{:?}: {fulfilled} orders are fulfilled", began.elapsed());
    assert_eq!(fulfilled, orders);
    let ledger = waybill.sandbox().ledger("").await;
    assert_eq!((ledger.captures, ledger.refunds), (orders as i64, 0));
    assert!(waybill.sandbox().accounts().values().all(|account| account.captures == 1));
    assert_eq!(waybill.available("widget").await, STOCK - UNITS * orders as u64);
    assert_eq!(waybill.held("widget").await, UNITS * orders as u64);
    assert!(waybill.open_letters().await.is_empty());
}

/// docs/sizing.md has what it prints.
#[tokio::test]
#[ignore = "prints what carrying costs; alone on its machine"]
async fn costs_of_carrying_table() {
    const FINISHED: usize = 10_000;
    const UNFINISHED: usize = 5_000;
    let mut waybill = Deployment::start_with(Options { least_privilege: false, ..Options::default() }).await;
    let finished = ids(&Load::start(waybill.channel(), widgets(FINISHED)).all().await);
    assert_eq!(waybill.statuses(&finished).await.get(&OrderStatus::Fulfilled), Some(&FINISHED));
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.idle(step).await;
        waybill.kill_processors(step);
    }
    let orders = (0..UNFINISHED).map(|n| order_of("patient", &format!("u-{n}"), vec![item("widget", 1)]));
    Load::start(waybill.channel(), orders.collect()).all().await;

    let log = waybill.order_log().await;
    let all_is_due = Schedule::of(Duration::from_nanos(2), None);
    let (broker, own) = (waybill.broker.pid(), std::process::id());
    let mut from = Revision::NONE;
    for (what, until) in [("finished", 4 * FINISHED as u64), ("unfinished", u64::MAX)] {
        let before = (Instant::now(), cpu_time(broker), cpu_time(own), from);
        let (mut looked_at, mut carried) = (0, 0);
        let first = log.extent().await.unwrap().last;
        while from.0 < until.min(first.0) {
            let walked = log.carry_due(from, &all_is_due).await.unwrap();
            (from, looked_at, carried) =
                (walked.next, looked_at + walked.looked_at, carried + walked.carried);
        }
        let (messages, took) = (from.0 - before.3.0, before.0.elapsed());
        let [broker, own] = [(broker, before.1), (own, before.2)].map(|(pid, before)| cpu_time(pid) - before);
        eprintln!(
            "{what}: {messages} messages in {took:?}, {looked_at} orders looked at, {carried} carried; \
             CPU of the broker {broker:?}, of the gateway's part {own:?}"
        );
    }
}
